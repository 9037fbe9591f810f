"""Microsoft's SDK for Python, over TLS: create a world, change rules, poll, read back."""

import pytest
from azure.core.exceptions import HttpResponseError, ResourceExistsError, ResourceNotFoundError
from azure.mgmt.compute import models as compute_models
from azure.mgmt.network import models


def inbound(access, priority, source, port):
    return models.SecurityRule(
        access=access, direction="Inbound", priority=priority, protocol="Tcp", source_address_prefix=source,
        source_port_range="*", destination_address_prefix="*", destination_port_range=port,
    )


def build(clients):
    """A group, a network with a filtered subnet, an address, an interface and a machine, as a client makes them."""
    region = "westeurope"
    clients.resource.resource_groups.create_or_update("g", {"location": region})
    network = clients.network
    group = network.network_security_groups.begin_create_or_update(
        "g", "nsg", models.NetworkSecurityGroup(location=region)).result()
    subnet = models.Subnet(
        name="s", address_prefix="10.0.0.0/24", network_security_group=models.NetworkSecurityGroup(id=group.id))
    vnet = network.virtual_networks.begin_create_or_update("g", "v", models.VirtualNetwork(
        location=region, address_space=models.AddressSpace(address_prefixes=["10.0.0.0/16"]), subnets=[subnet])).result()
    address = network.public_ip_addresses.begin_create_or_update("g", "ip", models.PublicIPAddress(
        location=region, sku=models.PublicIPAddressSku(name="Standard"),
        public_ip_allocation_method="Static")).result()
    interface = network.network_interfaces.begin_create_or_update("g", "nic", models.NetworkInterface(
        location=region, ip_configurations=[models.NetworkInterfaceIPConfiguration(
            name="primary", subnet=models.Subnet(id=vnet.subnets[0].id),
            public_ip_address=models.PublicIPAddress(id=address.id))])).result()
    machine = clients.compute.virtual_machines.begin_create_or_update("g", "vm", compute_models.VirtualMachine(
        location=region, tags={"role": "web"},
        hardware_profile=compute_models.HardwareProfile(vm_size="Standard_B2s"),
        storage_profile=compute_models.StorageProfile(image_reference=compute_models.ImageReference(
            publisher="Canonical", offer="ubuntu-24_04-lts", sku="server", version="latest")),
        os_profile=compute_models.OSProfile(
            computer_name="vm", admin_username="azureuser", admin_password="not-read-back-1A"),
        network_profile=compute_models.NetworkProfile(
            network_interfaces=[compute_models.NetworkInterfaceReference(id=interface.id, primary=True)]))).result()
    return address.ip_address, machine


def test_a_world_is_created_and_its_rules_change_what_passes(simulator, clients):
    public, machine = build(clients)
    assert machine.vm_id and machine.provisioning_state == "Succeeded"
    assert machine.storage_profile.os_disk.os_type == "Linux"
    rules = clients.network.security_rules
    assert not simulator.passes("203.0.113.7", public, 22)

    made = rules.begin_create_or_update("g", "nsg", "ssh", inbound("Allow", 100, "203.0.113.7", "22")).result()
    assert (made.provisioning_state, made.priority) == ("Succeeded", 100)
    assert simulator.passes("203.0.113.7", public, 22)
    assert not simulator.passes("203.0.113.8", public, 22)

    group = clients.network.network_security_groups.get("g", "nsg")
    assert [r.name for r in group.security_rules] == ["ssh"]
    assert len(group.default_security_rules) == 6
    assert group.subnets[0].id.endswith("/subnets/s")

    rules.begin_delete("g", "nsg", "ssh").result()
    assert not simulator.passes("203.0.113.7", public, 22)
    with pytest.raises(ResourceNotFoundError):
        rules.get("g", "nsg", "ssh")
    rules.begin_delete("g", "nsg", "ssh").result()


def test_refusals_reach_the_client_as_errors_with_azures_codes(clients):
    clients.resource.resource_groups.create_or_update("g", {"location": "westeurope"})
    clients.network.network_security_groups.begin_create_or_update(
        "g", "nsg", models.NetworkSecurityGroup(location="westeurope")).result()
    rules = clients.network.security_rules
    rules.begin_create_or_update("g", "nsg", "a", inbound("Allow", 100, "*", "22")).result()
    with pytest.raises(HttpResponseError) as clash:
        rules.begin_create_or_update("g", "nsg", "b", inbound("Allow", 100, "*", "23"))
    assert clash.value.error.code == "SecurityRuleConflict"
    with pytest.raises(HttpResponseError) as low:
        rules.begin_create_or_update("g", "nsg", "b", inbound("Allow", 99, "*", "23"))
    assert low.value.error.code == "SecurityRuleInvalidPriority"


def test_throttled_and_failing_answers_are_retried_by_the_client(simulator, clients):
    clients.resource.resource_groups.create_or_update("g", {"location": "westeurope"})
    simulator.control("faults", [{"method": "PUT", "path": "/networkSecurityGroups/", "count": 2, "effect":
                                  {"status": {"status": 429, "code": "TooManyRequests", "retryAfter": 1}}}])
    made = clients.network.network_security_groups.begin_create_or_update(
        "g", "nsg", models.NetworkSecurityGroup(location="westeurope")).result()
    assert made.provisioning_state == "Succeeded"


def test_a_failed_operation_is_an_error(simulator, clients):
    clients.resource.resource_groups.create_or_update("g", {"location": "westeurope"})
    simulator.control("faults", {"method": "PUT", "path": "/networkSecurityGroups/", "count": 1, "effect":
                                 {"operation": {"fails": "InternalServerError"}}})
    poller = clients.network.network_security_groups.begin_create_or_update(
        "g", "nsg", models.NetworkSecurityGroup(location="westeurope"))
    with pytest.raises(HttpResponseError):
        poller.result()


def test_lists_are_followed_over_their_pages(simulator, clients):
    for name in ("a", "b", "c"):
        simulator.control("world", {"machines": [{"name": name}]})
    simulator.control("settings", {"pageSize": 2})
    assert sorted(m.name for m in clients.compute.virtual_machines.list("world")) == ["a", "b", "c"]
    assert len(list(clients.network.network_interfaces.list_all())) == 3
    assert [g.name for g in clients.resource.resource_groups.list()] == ["world"]


def test_a_machine_in_use_keeps_its_interface_until_it_goes(clients):
    build(clients)
    with pytest.raises((HttpResponseError, ResourceExistsError)) as used:
        clients.network.network_interfaces.begin_delete("g", "nic").result()
    assert used.value.error.code == "NicInUse"
    clients.compute.virtual_machines.begin_delete("g", "vm").result()
    clients.network.network_interfaces.begin_delete("g", "nic").result()
    clients.resource.resource_groups.begin_delete("g").result()
    assert not clients.resource.resource_groups.check_existence("g")
