//! Addresses that the rules of a network security group cannot tell apart.
//!
//! A rule names addresses. A group may be attached to subnets and interfaces of several networks, and networks that
//! are not peered may have equal addresses: a rule for the one would then open the other as well.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::assemble::{Found, ip_configurations, network_of, subnet_in};
use super::{World, here};
use crate::api::values::ArmId;
use crate::plan::model::FirewallId;
use crate::providers::CloudError;
use crate::providers::azure::wire::{items, reference, text};

/// The interfaces and networks that groups on the way are attached to and that were not read yet.
pub(super) fn unread(
    operation: &str,
    world: &World,
) -> Result<(BTreeSet<ArmId>, BTreeSet<ArmId>), CloudError> {
    let (mut nics, mut networks) = (BTreeSet::new(), BTreeSet::new());
    for group in here(&world.groups) {
        for subnet in attached(operation, group, "/properties/subnets")? {
            networks.insert(network_of(operation, &subnet)?);
        }
        nics.extend(attached(operation, group, "/properties/networkInterfaces")?);
    }
    nics.retain(|id| !world.nics.contains_key(id));
    networks.retain(|id| !world.networks.contains_key(id));
    Ok((nics, networks))
}

/// What else has the address `ip` of `network` behind one of the groups on its way, in words; none where nothing
/// has. What may not be read counts: nobody can say that it has not.
pub(super) fn twin(
    operation: &str,
    ip: IpAddr,
    network: &ArmId,
    path: &[FirewallId],
    world: &World,
) -> Result<Option<String>, CloudError> {
    for firewall in path {
        let group = match world.groups.get(&firewall.0) {
            Some(Found::Here(group)) => group,
            Some(Found::Forbidden(why)) => return Ok(Some(why.message.clone())),
            // Gone meanwhile: no rule of it opens anything.
            Some(Found::Missing) | None => continue,
        };
        for subnet in attached(operation, group, "/properties/subnets")? {
            // Within one network, addresses are unique.
            let other = network_of(operation, &subnet)?;
            if other == *network {
                continue;
            }
            match world.networks.get(&other) {
                Some(Found::Here(other)) if lies_outside(other, &subnet, ip) => {}
                Some(Found::Here(_)) => {
                    return Ok(Some(format!(
                        "{firewall} also filters {subnet}, which has the same addresses"
                    )));
                }
                Some(Found::Forbidden(why)) => return Ok(Some(also(firewall, &subnet, &why.message))),
                Some(Found::Missing) | None => {}
            }
        }
        for nic in attached(operation, group, "/properties/networkInterfaces")? {
            match world.nics.get(&nic) {
                Some(Found::Here(body)) if has(operation, body, ip, network)? => {
                    return Ok(Some(format!("{firewall} also filters {nic}, which has the same address")));
                }
                Some(Found::Forbidden(why)) => return Ok(Some(also(firewall, &nic, &why.message))),
                Some(Found::Here(_) | Found::Missing) | None => {}
            }
        }
    }
    Ok(None)
}

fn also(firewall: &FirewallId, other: &ArmId, why: &str) -> String {
    format!("{firewall} also filters {other}, which may have the same address: {why}")
}

fn attached(operation: &str, group: &Value, pointer: &str) -> Result<Vec<ArmId>, CloudError> {
    let ids = items(group, pointer).iter().map(|item| reference(operation, item, "/id"));
    Ok(ids.collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// Whether a subnet provably does not have an address.
fn lies_outside(network: &Value, subnet: &ArmId, ip: IpAddr) -> bool {
    // Detached and removed meanwhile.
    let Some(subnet) = subnet_in(network, subnet) else { return true };
    let one = text(subnet, "/properties/addressPrefix");
    let several = items(subnet, "/properties/addressPrefixes").iter().filter_map(Value::as_str);
    let prefixes: Vec<_> = one.into_iter().chain(several).map(|text| text.trim().parse::<IpNet>()).collect();
    !prefixes.is_empty() && prefixes.iter().all(|net| net.as_ref().is_ok_and(|net| !net.contains(&ip)))
}

/// Whether an interface has an address in another network than `network`.
fn has(operation: &str, nic: &Value, ip: IpAddr, network: &ArmId) -> Result<bool, CloudError> {
    for part in ip_configurations(nic) {
        let same = text(part, "/properties/privateIPAddress").and_then(|text| text.parse().ok()) == Some(ip);
        if same
            && let Some(subnet) = reference(operation, part, "/properties/subnet/id")?
            && network_of(operation, &subnet)? != *network
        {
            return Ok(true);
        }
    }
    Ok(false)
}
