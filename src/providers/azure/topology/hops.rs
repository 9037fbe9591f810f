//! What traffic from afar passes before it comes to a machine's network: the virtual appliances that the routes of its
//! subnet lead to, and which of them are Azure Firewalls.
//!
//! A firewall is found by its private address: the subnet that holds it says what has it, in the machine's own network
//! or in one that is peered. Nothing here is an error: what cannot be found out is told, and takes no lock away.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::assemble::{Found, peerings};
use super::{FIREWALLS, NETWORKS, POLICIES, World, here};
use crate::api::values::ArmId;
use crate::plan::model::{FirewallHop, FirewallId, Hop};
use crate::providers::azure::wire::{items, text};

/// The most parents of a policy that are followed: a parent has none of its own today.
const MAX_PARENTS: usize = 4;
/// The most hops of one subnet.
const MAX_HOPS: usize = 4;

/// The id at a pointer, where one is there that can be read.
fn reference(value: &Value, pointer: &str) -> Option<ArmId> {
    ArmId::parse(text(value, pointer)?).ok()
}

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
        if hops.len() < MAX_HOPS && !hops.contains(&address) {
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
fn networks_holding(id: &ArmId, network: &Value, address: IpAddr) -> Vec<ArmId> {
    if holds(items(network, "/properties/addressSpace/addressPrefixes").iter(), address) {
        return vec![id.clone()];
    }
    let spaces = ["remoteVirtualNetworkAddressSpace", "remoteAddressSpace"];
    let near = peerings(network).filter(|peering| {
        let prefixes =
            spaces.iter().flat_map(|space| items(peering, &format!("/properties/{space}/addressPrefixes")));
        holds(prefixes, address)
    });
    near.filter_map(|peering| reference(peering, "/properties/remoteVirtualNetwork/id")).collect()
}

/// The firewall that has this address, by what its subnet says.
fn firewall_in(network: &Value, address: IpAddr) -> Option<ArmId> {
    let around = items(network, "/properties/subnets").iter().filter(|subnet| {
        let one = subnet.pointer("/properties/addressPrefix");
        holds(items(subnet, "/properties/addressPrefixes").iter().chain(one), address)
    });
    let parts = around.flat_map(|subnet| items(subnet, "/properties/ipConfigurations"));
    let holders = parts.filter_map(|part| reference(part, "/id")?.ancestor(2));
    let is_firewall = |id: &ArmId| id.resource_type().as_deref() == Some("microsoft.network/azurefirewalls");
    holders.into_iter().find(is_firewall)
}

/// Every place of a hop: the table's addresses with the networks that may hold them.
fn places(network_id: &ArmId, table: &Value, world: &World) -> Vec<(IpAddr, Vec<ArmId>)> {
    let Some(Found::Here(network)) = world.networks.get(network_id) else { return Vec::new() };
    let hops = next_hops(table).into_iter();
    hops.map(|address| (address, networks_holding(network_id, network, address))).collect()
}

/// The places of all `tables`: networks, each with a route table in it.
fn all_places(tables: &[(ArmId, ArmId)], world: &World) -> Vec<(IpAddr, Vec<ArmId>)> {
    let read = tables.iter().filter_map(|(network, table)| match world.routes.get(table) {
        Some(Found::Here(table)) => Some(places(network, table, world)),
        Some(Found::Missing | Found::Forbidden(_)) | None => None,
    });
    read.flatten().collect()
}

/// The networks that have to be read to find out what the hops are.
pub(super) fn networks(tables: &[(ArmId, ArmId)], world: &World) -> BTreeSet<ArmId> {
    let wanted = all_places(tables, world).into_iter().flat_map(|(_, ids)| ids);
    wanted.filter(|id| !world.networks.contains_key(id)).collect()
}

/// The firewalls that hops lead to.
pub(super) fn firewalls(tables: &[(ArmId, ArmId)], world: &World) -> BTreeSet<ArmId> {
    let places = all_places(tables, world);
    let pairs = places.iter().flat_map(|(address, ids)| ids.iter().map(|id| (*address, id)));
    pairs
        .filter_map(|(address, id)| match world.networks.get(id) {
            Some(Found::Here(network)) => firewall_in(network, address),
            Some(Found::Missing | Found::Forbidden(_)) | None => None,
        })
        .collect()
}

/// Policies of firewalls, and parents of policies, that were not read yet.
pub(super) fn policies(world: &World) -> BTreeSet<ArmId> {
    let own = here(&world.firewalls).filter_map(|it| reference(it, "/properties/firewallPolicy/id"));
    let parents = here(&world.policies).filter_map(|it| reference(it, "/properties/basePolicy/id"));
    own.chain(parents).filter(|id| !world.policies.contains_key(id)).collect()
}

/// How often [`policies`] is worth asking.
pub(super) const POLICY_ROUNDS: usize = MAX_PARENTS + 1;

/// What the routes of a subnet lead through.
pub(super) fn hops(network_id: &ArmId, table: Option<&Value>, world: &World) -> Vec<Hop> {
    let places = table.map(|table| places(network_id, table, world)).unwrap_or_default();
    places.into_iter().map(|(address, networks)| hop(address, &networks, world)).collect()
}

fn hop(address: IpAddr, networks: &[ArmId], world: &World) -> Hop {
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
        let Some(firewall) = firewall_in(network, address) else { continue };
        match world.firewalls.get(&firewall) {
            // Others of its subnet are its instances' own.
            Some(Found::Here(value)) if !has(value, address) => {}
            Some(Found::Here(value)) => return found(address, firewall, value, world),
            Some(Found::Forbidden(forbidden)) => {
                why = format!("what {address} lets through is not seen: {}", forbidden.message);
            }
            Some(Found::Missing) | None => {
                why = format!("the {} {firewall} is gone meanwhile", FIREWALLS.name);
            }
        }
    }
    Hop::Appliance { address, why }
}

fn has(firewall: &Value, address: IpAddr) -> bool {
    items(firewall, "/properties/ipConfigurations").iter().any(|part| {
        text(part, "/properties/privateIPAddress").and_then(|text| text.parse().ok()) == Some(address)
    })
}

fn found(address: IpAddr, id: ArmId, value: &Value, world: &World) -> Hop {
    let mut policies = Vec::new();
    let mut next = reference(value, "/properties/firewallPolicy/id");
    while let Some(policy) = next.take() {
        if policies.contains(&policy) || policies.len() > MAX_PARENTS {
            break;
        }
        match world.policies.get(&policy) {
            Some(Found::Here(read)) => next = reference(read, "/properties/basePolicy/id"),
            Some(Found::Forbidden(forbidden)) => {
                let why = format!("what {id} lets through is not seen: {}", forbidden.message);
                return Hop::Appliance { address, why };
            }
            Some(Found::Missing) | None => {
                let why = format!("the {} {policy} is gone meanwhile", POLICIES.name);
                return Hop::Appliance { address, why };
            }
        }
        policies.push(policy);
    }
    Hop::Firewall(FirewallHop { id: FirewallId(id), address, policies })
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
