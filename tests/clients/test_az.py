"""The az CLI over TLS."""


def test_rules_are_created_listed_and_deleted(simulator, az):
    machine = simulator.control("world", {"machines": [{"name": "web-1", "nicNsg": "web-1", "publicIp": True}]})["machines"][0]
    where = ("--resource-group", "world", "--nsg-name", "web-1")
    rule = az(
        "network", "nsg", "rule", "create", *where, "--name", "ssh", "--priority", "200",
        "--source-address-prefixes", "203.0.113.7", "--destination-port-ranges", "22", "--access", "Allow",
        "--protocol", "Tcp", "--direction", "Inbound",
    )
    assert rule["provisioningState"] == "Succeeded"
    assert simulator.passes("203.0.113.7", machine["publicIp"], 22)
    assert not simulator.passes("203.0.113.8", machine["publicIp"], 22)

    assert [r["name"] for r in az("network", "nsg", "rule", "list", *where)] == ["ssh"]
    updated = az("network", "nsg", "rule", "update", *where, "--name", "ssh", "--access", "Deny")
    assert updated["access"] == "Deny"
    assert not simulator.passes("203.0.113.7", machine["publicIp"], 22)

    clash = ("--name", "other", "--priority", "200", "--destination-port-ranges", "80")
    assert "SecurityRuleConflict" in az("network", "nsg", "rule", "create", *where, *clash, code=1)

    az("network", "nsg", "rule", "delete", *where, "--name", "ssh")
    assert az("network", "nsg", "rule", "list", *where) == []


def test_a_world_is_built_and_torn_down(simulator, az):
    az("group", "create", "--name", "g", "--location", "westeurope")
    az("network", "nsg", "create", "--resource-group", "g", "--name", "nsg")
    az(
        "network", "vnet", "create", "--resource-group", "g", "--name", "v", "--address-prefixes", "10.0.0.0/16",
        "--subnet-name", "s", "--subnet-prefixes", "10.0.0.0/24", "--nsg", "nsg",
    )
    nic = az("network", "nic", "create", "--resource-group", "g", "--name", "n", "--vnet-name", "v", "--subnet", "s")
    assert nic["NewNIC"]["ipConfigurations"][0]["privateIPAddress"] == "10.0.0.4"
    assert not simulator.passes("203.0.113.7", "10.0.0.4", 22)
    shown = az("network", "nsg", "show", "--resource-group", "g", "--name", "nsg")
    assert shown["subnets"][0]["id"].endswith("/subnets/s")
    az("group", "delete", "--name", "g", "--yes")
    assert az("group", "exists", "--name", "g") is False
