"""Microsoft's SDK for Python on Azure Firewalls and firewall policies: created, changed, read back, removed."""

import pytest
from azure.core.exceptions import HttpResponseError
from azure.mgmt.network import models

OUTSIDE, REGION = "203.0.113.7", "westeurope"


def site(simulator, network):
    """A machine in a network with a firewall's subnet, and a public address for the firewall."""
    machine = simulator.control("world", {"machines": [{"name": "vm", "privateIp": "10.0.0.4"}]})["machines"][0]
    subnet = network.subnets.begin_create_or_update(
        "world", "main", "AzureFirewallSubnet", models.Subnet(address_prefix="10.0.1.0/26")).result()
    address = network.public_ip_addresses.begin_create_or_update("world", "fw-ip", models.PublicIPAddress(
        location=REGION, sku=models.PublicIPAddressSku(name="Standard"),
        public_ip_allocation_method="Static")).result()
    configuration = models.AzureFirewallIPConfiguration(
        name="public", subnet=models.SubResource(id=subnet.id), public_ip_address=models.SubResource(id=address.id))
    return machine, address.ip_address, configuration


def test_a_classic_firewall_translates_what_its_collections_say(simulator, clients):
    network = clients.network
    _, public, configuration = site(simulator, network)
    firewalls = network.azure_firewalls
    made = firewalls.begin_create_or_update("world", "fw", models.AzureFirewall(
        location=REGION, ip_configurations=[configuration])).result()
    assert (made.provisioning_state, made.threat_intel_mode) == ("Succeeded", "Alert")
    assert made.ip_configurations[0].private_ip_address == "10.0.1.4"
    assert not simulator.passes(OUTSIDE, public, 50022)

    made.nat_rule_collections = [models.AzureFirewallNatRuleCollection(
        name="in", priority=200, action=models.AzureFirewallNatRCAction(type="Dnat"),
        rules=[models.AzureFirewallNatRule(
            name="ssh", protocols=["TCP"], source_addresses=[OUTSIDE], destination_addresses=[public],
            destination_ports=["50022"], translated_address="10.0.0.4", translated_port="22")])]
    made.network_rule_collections = [models.AzureFirewallNetworkRuleCollection(
        name="net", priority=200, action=models.AzureFirewallRCAction(type="Allow"),
        rules=[models.AzureFirewallNetworkRule(
            name="any", protocols=["Any"], source_addresses=["10.0.0.0/16"], destination_addresses=["*"],
            destination_ports=["*"])])]
    firewalls.begin_create_or_update("world", "fw", made).result()
    read = firewalls.get("world", "fw")
    assert read.nat_rule_collections[0].rules[0].translated_port == "22"
    assert read.network_rule_collections[0].provisioning_state == "Succeeded"
    assert simulator.passes(OUTSIDE, public, 50022)
    assert [firewall.name for firewall in firewalls.list_all()] == ["fw"]

    read.nat_rule_collections[0].rules[0].destination_ports = ["64000"]
    with pytest.raises(HttpResponseError) as high:
        firewalls.begin_create_or_update("world", "fw", read)
    assert high.value.error.code == "AzureFirewallRuleInvalidDnatPortOrRangeFormat"
    firewalls.begin_delete("world", "fw").result()
    assert not simulator.passes(OUTSIDE, public, 50022)


def test_a_policy_reaches_the_firewalls_that_refer_to_it(simulator, clients):
    network = clients.network
    _, public, configuration = site(simulator, network)
    policies, groups = network.firewall_policies, network.firewall_policy_rule_collection_groups
    base = policies.begin_create_or_update("world", "base", models.FirewallPolicy(location=REGION)).result()
    own = policies.begin_create_or_update("world", "own", models.FirewallPolicy(
        location=REGION, base_policy=models.SubResource(id=base.id))).result()
    network.azure_firewalls.begin_create_or_update("world", "fw", models.AzureFirewall(
        location=REGION, ip_configurations=[configuration],
        firewall_policy=models.SubResource(id=own.id))).result()
    rule = models.NatRule(
        name="ssh", ip_protocols=["TCP"], source_addresses=[OUTSIDE], destination_addresses=[public],
        destination_ports=["50022"], translated_address="10.0.0.4", translated_port="22")
    collection = models.FirewallPolicyNatRuleCollection(
        name="in", priority=200, action=models.FirewallPolicyNatRuleCollectionAction(type="DNAT"), rules=[rule])
    made = groups.begin_create_or_update("world", "own", "jit", models.FirewallPolicyRuleCollectionGroup(
        priority=200, rule_collections=[collection])).result()
    assert made.provisioning_state == "Succeeded"
    assert isinstance(made.rule_collections[0].rules[0], models.NatRule)
    assert simulator.passes(OUTSIDE, public, 50022)
    assert [group.name for group in groups.list("world", "own")] == ["jit"]
    seen = policies.get("world", "own")
    assert seen.firewalls[0].id.endswith("/azureFirewalls/fw")
    groups.begin_delete("world", "own", "jit").result()
    assert not simulator.passes(OUTSIDE, public, 50022)
