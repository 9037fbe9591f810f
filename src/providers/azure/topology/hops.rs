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
use crate::api::Reason;
use crate::api::values::ArmId;
use crate::plan::model::{FirewallHop, FirewallId, Hop, Route, Unsupported};
use crate::providers::azure::wire::{items, one_or_many, text};

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

/// The public addresses of firewalls.
pub(super) fn publics(world: &World) -> BTreeSet<ArmId> {
    let parts = here(&world.firewalls).flat_map(|it| items(it, "/properties/ipConfigurations"));
    let ids = parts.filter_map(|part| reference(part, "/properties/publicIPAddress/id"));
    ids.filter(|id| !world.publics.contains_key(id)).collect()
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
pub(super) fn hops(network_id: &ArmId, table: Option<&Value>, near: &[IpNet], world: &World) -> Vec<Hop> {
    let places = table.map(|table| places(network_id, table, world)).unwrap_or_default();
    let mut hops: Vec<Hop> = places
        .into_iter()
        .map(|(address, networks)| {
            let routes = table.map(|table| routes(table, near, address)).unwrap_or_default();
            hop(address, &networks, routes, world)
        })
        .collect();
    if let Some(Found::Here(network)) = world.networks.get(network_id) {
        hops.extend(hub(network));
    }
    hops
}

/// The hub of a Virtual WAN that a network is connected to, by the peering that Azure makes for it.
fn hub(network: &Value) -> Option<Hop> {
    let made_for_it = |peering: &&Value| {
        text(peering, "/name").is_some_and(|name| {
            name.get(..23).is_some_and(|start| start.eq_ignore_ascii_case("RemoteVnetToHubPeering_"))
        })
    };
    let peering = items(network, "/properties/virtualNetworkPeerings").iter().find(made_for_it)?;
    reference(peering, "/properties/remoteVirtualNetwork/id").map(|id| Hop::Hub { id })
}

/// Where a machine's answers go: by the routes of its subnet's table, else by those that every network has. `near` are
/// the prefixes of the network and its peers.
fn routes(table: &Value, near: &[IpNet], address: IpAddr) -> Vec<Route> {
    let mut routes = Vec::new();
    for route in items(table, "/properties/routes") {
        let to = text(route, "/properties/addressPrefix").and_then(|text| text.parse::<IpNet>().ok());
        let next = text(route, "/properties/nextHopIpAddress").and_then(|text| text.parse().ok());
        routes.extend(to.map(|to| Route { to: to.trunc(), by_it: next == Some(address) }));
    }
    // A route of the table goes before the network's own of the same prefix.
    let own = near.iter().filter(|net| !routes.iter().any(|route| route.to == **net));
    let own: Vec<Route> = own.map(|net| Route { to: *net, by_it: false }).collect();
    routes.extend(own);
    routes
}

fn hop(address: IpAddr, networks: &[ArmId], routes: Vec<Route>, world: &World) -> Hop {
    let mut why = format!(
        "{address} is no Azure Firewall of the network or of a peered one: what it lets through is not seen"
    );
    let mut passing = false;
    for id in networks {
        let network = match world.networks.get(id) {
            Some(Found::Here(network)) => network,
            Some(Found::Forbidden(forbidden)) => {
                passing |= passes(forbidden);
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
            Some(Found::Here(value)) => return found(address, firewall, value, (network, routes), world),
            Some(Found::Forbidden(forbidden)) => {
                passing |= passes(forbidden);
                why = format!("what {address} lets through is not seen: {}", forbidden.message);
            }
            Some(Found::Missing) | None => {
                why = format!("the {} {firewall} is gone meanwhile", FIREWALLS.name);
            }
        }
    }
    if passing { Hop::Unread { address, why } } else { Hop::Appliance { address, why } }
}

/// Whether what could not be read may be read soon without anybody's doing.
fn passes(forbidden: &Unsupported) -> bool {
    forbidden.reason != Reason::NotPermitted
}

fn has(firewall: &Value, address: IpAddr) -> bool {
    items(firewall, "/properties/ipConfigurations").iter().any(|part| {
        text(part, "/properties/privateIPAddress").and_then(|text| text.parse().ok()) == Some(address)
    })
}

fn found(
    address: IpAddr,
    id: ArmId,
    value: &Value,
    (network, routes): (&Value, Vec<Route>),
    world: &World,
) -> Hop {
    let unseen = |forbidden: &Unsupported| {
        let why = format!("what {id} lets through is not seen: {}", forbidden.message);
        if passes(forbidden) { Hop::Unread { address, why } } else { Hop::Appliance { address, why } }
    };
    let mut policies = Vec::new();
    let mut next = reference(value, "/properties/firewallPolicy/id");
    while let Some(policy) = next.take() {
        if policies.contains(&policy) || policies.len() > MAX_PARENTS {
            break;
        }
        match world.policies.get(&policy) {
            Some(Found::Here(read)) => next = reference(read, "/properties/basePolicy/id"),
            Some(Found::Forbidden(forbidden)) => return unseen(forbidden),
            Some(Found::Missing) | None => {
                let why = format!("the {} {policy} is gone meanwhile", POLICIES.name);
                return Hop::Appliance { address, why };
            }
        }
        policies.push(policy);
    }
    let mut publics = Vec::new();
    for part in items(value, "/properties/ipConfigurations") {
        let Some(public) = reference(part, "/properties/publicIPAddress/id") else { continue };
        match world.publics.get(&public) {
            Some(Found::Here(read)) => {
                let ip = text(read, "/properties/ipAddress").and_then(|text| text.parse::<IpAddr>().ok());
                publics.extend(ip.filter(IpAddr::is_ipv4));
            }
            Some(Found::Forbidden(forbidden)) => return unseen(forbidden),
            Some(Found::Missing) | None => {}
        }
    }
    let around = items(network, "/properties/subnets").iter().filter(|subnet| {
        prefixes(subnet).any(|prefix| prefix.parse::<IpNet>().is_ok_and(|net| net.contains(&address)))
    });
    let subnets = around.flat_map(prefixes).filter_map(|prefix| prefix.parse::<IpNet>().ok());
    let subnets = subnets.map(|net| net.trunc()).filter(|net| net.addr().is_ipv4()).collect();
    Hop::Firewall(FirewallHop { id: FirewallId(id), address, policies, publics, subnets, routes })
}

/// The prefixes of a subnet.
fn prefixes(subnet: &Value) -> impl Iterator<Item = &str> {
    one_or_many(subnet, "/properties/addressPrefix", "/properties/addressPrefixes").into_iter()
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
