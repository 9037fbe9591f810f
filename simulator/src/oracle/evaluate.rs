//! One packet through the filters on its way.
//!
//! Outbound at a source that is a machine of the world: security admin rules, interface group, subnet group.
//! Inbound at the destination: security admin rules, subnet group, interface group. Every group on the way must
//! allow; in a group the first matching rule by priority decides.

use std::net::IpAddr;
use std::ops::Bound;

use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    firewall::{self, Packet},
    index::{Index, Interface},
    plane::{Facts, admin_rules},
    tags::{Place, ServiceTags},
};
use crate::resources::{
    nsg::DEFAULT_RULES,
    rule::{network, range},
};

/// A packet to ask about.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Probe {
    pub(crate) source: IpAddr,
    pub(crate) destination: IpAddr,
    /// Destination port; 0 for protocols without ports.
    #[serde(default)]
    pub(crate) port: u16,
    #[serde(default = "tcp")]
    pub(crate) protocol: String,
    /// An ephemeral port when left out.
    #[serde(default = "ephemeral")]
    pub(crate) source_port: u16,
    /// The id of the virtual network, where several hold the destination address.
    #[serde(default)]
    pub(crate) network: Option<String>,
    /// Whether a network rule of a firewall that denies stops what DNAT has translated; as the world's settings say
    /// when left out.
    #[serde(default)]
    pub(crate) network_deny_stops_dnat: Option<bool>,
}

fn tcp() -> String {
    "Tcp".into()
}

fn ephemeral() -> u16 {
    50_000
}

/// The answer, and who gave it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    pub(crate) allowed: bool,
    pub(crate) decided_by: Vec<Value>,
    pub(crate) reason: Option<String>,
    /// What the machine sees, where a firewall has translated the packet.
    pub(crate) translated: Option<Packet>,
}

impl Verdict {
    pub(crate) fn show(&self) -> Value {
        let mut shown = json!({"allowed": self.allowed, "decidedBy": self.decided_by});
        if let Some(reason) = &self.reason {
            shown["reason"] = json!(reason);
        }
        if let Some(packet) = &self.translated {
            shown["translated"] = json!({"source": packet.source.to_string(),
                "destination": packet.destination.to_string(), "port": packet.port});
        }
        shown
    }
}

enum Admin {
    /// No rule, or one that lets the groups decide.
    GoOn,
    Allowed,
    Denied,
}

/// Evaluates a packet.
///
/// # Errors
/// A destination that several networks hold, when `network` does not say which.
pub(crate) fn evaluate(
    facts: &Facts,
    index: &Index,
    tags: &ServiceTags,
    probe: &Probe,
) -> Result<Verdict, String> {
    let mut verdict = Verdict { allowed: false, decided_by: vec![], reason: None, translated: None };
    let mut packet = Packet {
        source: probe.source,
        source_port: probe.source_port,
        destination: probe.destination,
        port: probe.port,
        protocol: probe.protocol.to_lowercase(),
    };
    let mut reached: Option<Vec<&String>> = None;
    if let Some(place) = index.firewall(probe.destination) {
        let deny_stops_dnat = probe.network_deny_stops_dnat.unwrap_or(false);
        let (through, decisions) = firewall::through(facts, place, &packet, deny_stops_dnat);
        verdict.decided_by.extend(decisions.iter().map(|d| {
            json!({"stage": "firewall", "direction": "Inbound", "resource": d.resource, "rule": d.rule, "access": d.access})
        }));
        let Some(through) = through else {
            if verdict.decided_by.is_empty() {
                verdict.reason = Some("NoNatRule: no DNAT rule of the firewall matches".into());
            }
            return Ok(verdict);
        };
        packet = through;
        verdict.translated = Some(packet.clone());
        reached = place.network.as_ref().map(|own| index.peers(own).into_iter().chain([own]).collect());
    }
    let wanted = probe.network.as_ref().map(|n| n.to_lowercase());
    let holders: Vec<&Interface> = index
        .holding(packet.destination)
        .filter(|i| wanted.as_ref().is_none_or(|n| i.network == *n))
        .filter(|i| reached.as_ref().is_none_or(|networks| networks.contains(&&i.network)))
        .collect();
    let target = match holders.as_slice() {
        [] => {
            verdict.reason = Some("NoSuchDestination: no network interface holds this address".into());
            return Ok(verdict);
        }
        [one] => *one,
        [..] => {
            return Err(format!(
                "destination: {} is held in {} networks; say which in 'network'",
                packet.destination,
                holders.len()
            ));
        }
    };
    // Public addresses are translated before any filter sees the packet.
    packet.destination = target.address;
    let sender = sender(index, target, packet.source);
    if let Some(sender) = sender {
        let place = place(facts, index, tags, sender);
        if !pass(&place, sender, &packet, "Outbound", &mut verdict) {
            return Ok(verdict);
        }
    }
    let place = place(facts, index, tags, target);
    if !pass(&place, target, &packet, "Inbound", &mut verdict) {
        return Ok(verdict);
    }
    let filtered = index.subnet_group(&target.subnet).is_some() || target.group.is_some();
    let bypassed =
        verdict.decided_by.iter().any(|d| d["access"] == "AlwaysAllow" && d["direction"] == "Inbound");
    let from_outside = !place.tag_contains("VirtualNetwork", packet.source);
    if !filtered
        && !bypassed
        && let Some(public) = &target.public
        && public.standard
        && (from_outside || public.address == Some(probe.destination))
    {
        verdict.decided_by.push(json!({"stage": "publicIPAddress", "direction": "Inbound",
            "resource": public.id, "rule": null, "access": "Deny"}));
        verdict.reason =
            Some("StandardPublicIPWithoutNetworkSecurityGroup: closed until a group allows".into());
        return Ok(verdict);
    }
    if verdict.decided_by.is_empty() {
        verdict.reason = Some("NoFilter: no network security group is on the way".into());
    }
    verdict.allowed = true;
    Ok(verdict)
}

fn place<'a>(facts: &'a Facts, index: &'a Index, tags: &'a ServiceTags, at: &'a Interface) -> Place<'a> {
    Place { facts, index, tags, network: &at.network, subnet: &at.subnet }
}

/// The machine of the same or a peered network that a private source belongs to.
fn sender<'a>(index: &'a Index, target: &Interface, source: IpAddr) -> Option<&'a Interface> {
    let peers = index.peers(&target.network);
    index
        .holding(source)
        .find(|i| i.address == source && (i.network == target.network || peers.contains(&&i.network)))
}

fn pass(place: &Place<'_>, at: &Interface, packet: &Packet, direction: &str, verdict: &mut Verdict) -> bool {
    match admin(place, packet, direction, verdict) {
        Admin::Allowed => return true,
        Admin::Denied => return false,
        Admin::GoOn => {}
    }
    let subnet = place.index.subnet_group(&at.subnet).map(|g| ("subnet", g));
    let interface = at.group.as_ref().map(|g| ("networkInterface", g));
    let order = if direction == "Inbound" { [subnet, interface] } else { [interface, subnet] };
    for (stage, group) in order.into_iter().flatten() {
        if !group_allows(place, stage, group, packet, direction, verdict) {
            return false;
        }
    }
    true
}

fn admin(place: &Place<'_>, packet: &Packet, direction: &str, verdict: &mut Verdict) -> Admin {
    let mut rules = admin_rules(place.facts, place.network);
    rules.retain(|r| r["direction"].as_str() == Some(direction));
    rules.sort_by_key(|r| r["priority"].as_i64());
    for rule in rules {
        let list = |name: &str| rule[name].as_array().cloned().unwrap_or_default();
        let side = |name: &str, address: IpAddr| {
            let items = list(name);
            items.is_empty()
                || items
                    .iter()
                    .any(|i| prefix_contains(place, i["addressPrefix"].as_str().unwrap_or(""), address))
        };
        let port = |name: &str, port: u16| {
            let items = list(name);
            items.is_empty() || items.iter().filter_map(Value::as_str).any(|t| in_range(t, port))
        };
        let protocol = rule["protocol"].as_str().unwrap_or("Any").to_lowercase();
        let hit = (protocol == "any" || protocol == "*" || protocol == packet.protocol)
            && side("sources", packet.source)
            && side("destinations", packet.destination)
            && port("sourcePortRanges", packet.source_port)
            && port("destinationPortRanges", packet.port);
        if !hit {
            continue;
        }
        let access = rule["access"].as_str().unwrap_or("");
        verdict.decided_by.push(json!({"stage": "securityAdminRule", "direction": direction,
            "resource": place.network, "rule": rule["name"], "access": access}));
        return match access {
            "AlwaysAllow" => Admin::Allowed,
            "Deny" => Admin::Denied,
            _ => Admin::GoOn,
        };
    }
    Admin::GoOn
}

fn group_allows(
    place: &Place<'_>,
    stage: &str,
    group: &str,
    packet: &Packet,
    direction: &str,
    verdict: &mut Verdict,
) -> bool {
    let prefix = format!("{group}/securityrules/");
    let own = place
        .facts
        .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
        .take_while(|(key, _)| key.starts_with(&prefix));
    let mut rules: Vec<(i64, &str, &Value)> = own
        .map(|(_, fact)| {
            let properties = &fact.body["properties"];
            (properties["priority"].as_i64().unwrap_or(i64::MAX), fact.id.name(), properties)
        })
        .filter(|(_, _, p)| p["direction"].as_str() == Some(direction))
        .collect();
    rules.sort_unstable_by_key(|(priority, ..)| *priority);
    let resource = place.facts.get(group).map_or(group, |f| f.id.text.as_str());
    let mut note = |rule: &str, access: &str| {
        verdict.decided_by.push(json!({"stage": stage, "direction": direction, "resource": resource,
            "rule": rule, "access": access}));
        access == "Allow"
    };
    for (_, name, rule) in rules {
        if rule_matches(place, rule, packet) {
            return note(name, rule["access"].as_str().unwrap_or("Deny"));
        }
    }
    for (name, way, _, access, source, destination, _) in DEFAULT_RULES {
        if way == direction
            && place.tag_contains(source, packet.source)
            && place.tag_contains(destination, packet.destination)
        {
            return note(name, access);
        }
    }
    note("none", "Deny")
}

fn rule_matches(place: &Place<'_>, rule: &Value, packet: &Packet) -> bool {
    let protocol = rule["protocol"].as_str().unwrap_or("*");
    (protocol == "*" || protocol.eq_ignore_ascii_case(&packet.protocol))
        && ports_match(rule, "sourcePortRange", packet.source_port)
        && ports_match(rule, "destinationPortRange", packet.port)
        && side_matches(place, rule, "source", packet.source)
        && side_matches(place, rule, "destination", packet.destination)
}

fn in_range(text: &str, port: u16) -> bool {
    range(text).is_some_and(|(low, high)| (low..=high).contains(&port))
}

fn ports_match(rule: &Value, field: &str, port: u16) -> bool {
    let one = rule[field].as_str().into_iter();
    let many = rule[format!("{field}s")].as_array().into_iter().flatten().filter_map(Value::as_str);
    one.chain(many).any(|text| in_range(text, port))
}

fn side_matches(place: &Place<'_>, rule: &Value, side: &str, address: IpAddr) -> bool {
    let one = rule[format!("{side}AddressPrefix")].as_str().into_iter();
    let many = rule[format!("{side}AddressPrefixes")].as_array().into_iter().flatten();
    if one.chain(many.filter_map(Value::as_str)).any(|text| prefix_contains(place, text, address)) {
        return true;
    }
    let groups = rule[format!("{side}ApplicationSecurityGroups")].as_array();
    let wanted: Vec<String> =
        groups.into_iter().flatten().filter_map(|g| g["id"].as_str().map(str::to_lowercase)).collect();
    !wanted.is_empty()
        && place.index.holding(address).any(|i| {
            i.address == address
                && i.network == place.network
                && i.members_of.iter().any(|m| wanted.contains(m))
        })
}

fn prefix_contains(place: &Place<'_>, text: &str, address: IpAddr) -> bool {
    if text.is_empty() {
        return false;
    }
    match network(text) {
        Some(net) => net.contains(&address),
        None => place.tag_contains(text, address),
    }
}

#[cfg(test)]
mod properties;
