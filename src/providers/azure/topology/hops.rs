//! What traffic from afar passes before it comes to a machine's network: the virtual appliances that the routes of its
//! subnet lead to, and which of them are Azure Firewalls.
//!
//! A firewall is found by its private address: the subnet that holds it says what has it, in the machine's own network
//! or in one that is peered.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::assemble::Found;
use super::{FIREWALLS, NETWORKS, POLICIES, World, here};
use crate::api::values::ArmId;
use crate::plan::model::{FirewallHop, FirewallId, Hop};
use crate::providers::CloudError;
use crate::providers::azure::wire::{items, provisioning, reference, text};

/// The most parents of a policy that are followed: a parent has none of its own today.
const MAX_PARENTS: usize = 4;

/// Where the routes of a table send traffic through an appliance, those of the widest routes first.
fn next_hops(table: &Value) -> Vec<IpAddr> {
    let mut found: Vec<(u8, IpAddr)> = Vec::new();
    for route in items(table, "/properties/routes") {
        let appliance = text(route, "/properties/nextHopType")
            .is_some_and(|kind| kind.eq_ignore_ascii_case("VirtualAppliance"));
        let address = text(route, "/properties/nextHopIpAddress").and_then(|text| text.parse().ok());
        let prefix = text(route, "/properties/addressPrefix").and_then(|text| text.parse::<IpNet>().ok());
        if let (true, Some(address)) = (appliance, address) {
            found.push((prefix.map_or(u8::MAX, |prefix| prefix.prefix_len()), address));
        }
    }
    found.sort();
    let mut hops = Vec::new();
    for (_, address) in found {
        if !hops.contains(&address) {
            hops.push(address);
        }
    }
    hops
}

fn holds<'a>(mut prefixes: impl Iterator<Item = &'a Value>, address: IpAddr) -> bool {
    prefixes.any(|prefix| {
        prefix
            .as_str()
            .and_then(|text| text.trim().parse::<IpNet>().ok())
            .is_some_and(|net| net.contains(&address))
    })
}

/// The networks that may hold an address as seen from one of them: itself, or its peers.
fn networks_holding(
    operation: &str,
    id: &ArmId,
    network: &Value,
    address: IpAddr,
) -> Result<Vec<ArmId>, CloudError> {
    if holds(items(network, "/properties/addressSpace/addressPrefixes").iter(), address) {
        return Ok(vec![id.clone()]);
    }
    let mut found = Vec::new();
    for peering in items(network, "/properties/virtualNetworkPeerings") {
        let spaces = ["remoteVirtualNetworkAddressSpace", "remoteAddressSpace"];
        let prefixes =
            spaces.iter().flat_map(|space| items(peering, &format!("/properties/{space}/addressPrefixes")));
        if holds(prefixes, address) {
            found.extend(reference(operation, peering, "/properties/remoteVirtualNetwork/id")?);
        }
    }
    Ok(found)
}

/// The firewall that has this address, by what its subnet says.
fn firewall_in(operation: &str, network: &Value, address: IpAddr) -> Result<Option<ArmId>, CloudError> {
    for subnet in items(network, "/properties/subnets") {
        let one = subnet.pointer("/properties/addressPrefix");
        if !holds(items(subnet, "/properties/addressPrefixes").iter().chain(one), address) {
            continue;
        }
        for part in items(subnet, "/properties/ipConfigurations") {
            let holder = reference(operation, part, "/id")?.and_then(|id| id.ancestor(2));
            let is_firewall =
                |id: &ArmId| id.resource_type().as_deref() == Some("microsoft.network/azurefirewalls");
            if let Some(holder) = holder.filter(is_firewall) {
                return Ok(Some(holder));
            }
        }
    }
    Ok(None)
}

/// Every place of a hop: the table's addresses with the networks that may hold them.
fn places(
    operation: &str,
    network_id: &ArmId,
    table: &Value,
    world: &World,
) -> Result<Vec<(IpAddr, Vec<ArmId>)>, CloudError> {
    let Some(Found::Here(network)) = world.networks.get(network_id) else { return Ok(Vec::new()) };
    next_hops(table)
        .into_iter()
        .map(|address| Ok((address, networks_holding(operation, network_id, network, address)?)))
        .collect()
}

/// The networks that have to be read to find out what the hops are.
pub(super) fn networks(
    operation: &str,
    tables: &[(ArmId, ArmId)],
    world: &World,
) -> Result<BTreeSet<ArmId>, CloudError> {
    let mut wanted = BTreeSet::new();
    for (network, table) in tables {
        if let Some(Found::Here(table)) = world.routes.get(table) {
            wanted.extend(places(operation, network, table, world)?.into_iter().flat_map(|(_, ids)| ids));
        }
    }
    wanted.retain(|id| !world.networks.contains_key(id));
    Ok(wanted)
}

/// The firewalls that hops lead to.
pub(super) fn firewalls(
    operation: &str,
    tables: &[(ArmId, ArmId)],
    world: &World,
) -> Result<BTreeSet<ArmId>, CloudError> {
    let mut wanted = BTreeSet::new();
    for (network, table) in tables {
        let Some(Found::Here(table)) = world.routes.get(table) else { continue };
        for (address, ids) in places(operation, network, table, world)? {
            for id in ids {
                if let Some(Found::Here(network)) = world.networks.get(&id) {
                    wanted.extend(firewall_in(operation, network, address)?);
                }
            }
        }
    }
    Ok(wanted)
}

/// The public addresses of firewalls.
pub(super) fn publics(operation: &str, world: &World) -> Result<BTreeSet<ArmId>, CloudError> {
    let mut wanted = BTreeSet::new();
    for firewall in here(&world.firewalls) {
        for part in items(firewall, "/properties/ipConfigurations") {
            wanted.extend(reference(operation, part, "/properties/publicIPAddress/id")?);
        }
    }
    wanted.retain(|id| !world.publics.contains_key(id));
    Ok(wanted)
}

/// Policies of firewalls, and parents of policies, that were not read yet.
pub(super) fn policies(operation: &str, world: &World) -> Result<BTreeSet<ArmId>, CloudError> {
    let mut wanted = BTreeSet::new();
    for firewall in here(&world.firewalls) {
        wanted.extend(reference(operation, firewall, "/properties/firewallPolicy/id")?);
    }
    for policy in here(&world.policies) {
        wanted.extend(reference(operation, policy, "/properties/basePolicy/id")?);
    }
    wanted.retain(|id| !world.policies.contains_key(id));
    Ok(wanted)
}

/// How often [`policies`] is worth asking.
pub(super) const POLICY_ROUNDS: usize = MAX_PARENTS + 1;

/// What the routes of a subnet lead through.
pub(super) fn hops(
    operation: &str,
    network_id: &ArmId,
    table: Option<&Value>,
    world: &World,
) -> Result<Vec<Hop>, CloudError> {
    let Some(table) = table else { return Ok(Vec::new()) };
    places(operation, network_id, table, world)?
        .into_iter()
        .map(|(address, networks)| hop(operation, address, &networks, world))
        .collect()
}

fn hop(operation: &str, address: IpAddr, networks: &[ArmId], world: &World) -> Result<Hop, CloudError> {
    let mut why = format!(
        "{address} is no Azure Firewall of the network or of a peered one: what it lets through is not seen"
    );
    for id in networks {
        let network = match world.networks.get(id) {
            Some(Found::Here(network)) => network,
            Some(Found::Forbidden(forbidden)) => {
                why = format!("what {address} is cannot be seen: {}", forbidden.message);
                continue;
            }
            Some(Found::Missing) | None => {
                why = format!("what {address} is cannot be seen: the {} {id} is gone", NETWORKS.name);
                continue;
            }
        };
        let Some(firewall) = firewall_in(operation, network, address)? else { continue };
        return match world.firewalls.get(&firewall) {
            Some(Found::Here(value)) if !has(value, address) => continue,
            Some(Found::Here(value)) => found(operation, address, firewall, value, network, world),
            Some(Found::Forbidden(forbidden)) => {
                let why = format!("what {address} lets through is not seen: {}", forbidden.message);
                Ok(Hop::Appliance { address, why })
            }
            Some(Found::Missing) | None => {
                let why = format!("the {} {firewall} is gone meanwhile", FIREWALLS.name);
                Ok(Hop::Appliance { address, why })
            }
        };
    }
    Ok(Hop::Appliance { address, why })
}

/// Whether a firewall has this private address: others of its subnet are its instances'.
fn has(firewall: &Value, address: IpAddr) -> bool {
    items(firewall, "/properties/ipConfigurations").iter().any(|part| {
        text(part, "/properties/privateIPAddress").and_then(|text| text.parse().ok()) == Some(address)
    })
}

fn found(
    operation: &str,
    address: IpAddr,
    id: ArmId,
    value: &Value,
    network: &Value,
    world: &World,
) -> Result<Hop, CloudError> {
    let mut publics = Vec::new();
    let mut instances = Vec::new();
    for part in items(value, "/properties/ipConfigurations") {
        if let Some(public) = reference(operation, part, "/properties/publicIPAddress/id")?
            && let Some(Found::Here(public)) = world.publics.get(&public)
        {
            publics
                .extend(text(public, "/properties/ipAddress").and_then(|text| text.parse::<IpAddr>().ok()));
        }
        if let Some(subnet) = reference(operation, part, "/properties/subnet/id")?
            && let Some(subnet) = super::assemble::subnet_in(network, &subnet)
        {
            let prefixes = subnet.pointer("/properties/addressPrefix").into_iter();
            let prefixes = prefixes.chain(items(subnet, "/properties/addressPrefixes"));
            instances.extend(prefixes.filter_map(|prefix| prefix.as_str()?.trim().parse::<IpNet>().ok()));
        }
    }
    publics.sort();
    publics.dedup();
    let mut policies = Vec::new();
    let mut next = reference(operation, value, "/properties/firewallPolicy/id")?;
    while let Some(policy) = next.take() {
        if policies.contains(&policy) || policies.len() > MAX_PARENTS {
            break;
        }
        match world.policies.get(&policy) {
            Some(Found::Here(read)) => next = reference(operation, read, "/properties/basePolicy/id")?,
            Some(Found::Forbidden(forbidden)) => {
                let why = format!("what {id} lets through is not seen: {}", forbidden.message);
                return Ok(Hop::Appliance { address, why });
            }
            Some(Found::Missing) | None => {
                let why = format!("the {} {policy} is gone meanwhile", POLICIES.name);
                return Ok(Hop::Appliance { address, why });
            }
        }
        policies.push(policy);
    }
    Ok(Hop::Firewall(FirewallHop {
        id: FirewallId(id),
        address,
        publics,
        instances: super::ordered(instances),
        policies,
        provisioning: provisioning(value),
    }))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_widest_route_through_an_appliance_comes_first_and_each_hop_once() {
        let route = |prefix: &str, kind: &str, hop: Value| json!({"properties": {"addressPrefix": prefix, "nextHopType": kind, "nextHopIpAddress": hop}});
        let table = json!({"properties": {"routes": [
            route("203.0.113.0/24", "VirtualAppliance", json!("10.1.0.5")),
            route("10.0.0.0/8", "VnetLocal", json!("10.1.0.6")),
            route("0.0.0.0/0", "virtualappliance", json!("10.1.0.4")),
            route("192.0.2.0/24", "VirtualAppliance", json!("10.1.0.4")),
            route("198.51.100.0/24", "VirtualAppliance", Value::Null),
            route("Storage", "VirtualAppliance", json!("10.1.0.7")),
        ]}});
        let text: Vec<String> = next_hops(&table).iter().map(ToString::to_string).collect();
        assert_eq!(text, ["10.1.0.4", "10.1.0.5", "10.1.0.7"]);
        assert!(next_hops(&json!({})).is_empty());
    }
}
