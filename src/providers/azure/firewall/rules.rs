//! One rule of ours as Azure Firewalls have it, and back; and rules of others as far as they can be read.
//!
//! `<name>` is the network rule, `<name>.0`, `<name>.1` and so on are those that lead on, port by port.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::collections::mark;
use crate::api::values::{PortRange, Protocol};
use crate::plan::model::{
    Access, DnatRule, NetworkRule, Peer, Provisioning, Rule, RuleProtocol, Translating, Translation,
};
use crate::providers::azure::nsg::{port_range, protocol};
use crate::providers::azure::wire::{items, peer, text};

/// The two ways in which Azure writes the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `azureFirewalls`.
    Classic,
    /// `ruleCollectionGroups` of `firewallPolicies`.
    Policy,
}

impl Dialect {
    const fn protocols(self) -> &'static str {
        match self {
            Self::Classic => "protocols",
            Self::Policy => "ipProtocols",
        }
    }

    /// Where the members of a collection are.
    pub(super) fn inner(self, collection: &Value) -> &Value {
        match self {
            Self::Classic => collection.get("properties").unwrap_or(&Value::Null),
            Self::Policy => collection,
        }
    }

    /// The same, to be changed.
    pub(super) fn inner_mut(self, collection: &mut Value) -> &mut Value {
        match self {
            Self::Classic => &mut collection["properties"],
            Self::Policy => collection,
        }
    }
}

/// A rule of ours: what leads on, and what lets through.
#[derive(Debug, PartialEq)]
pub(super) struct Parts {
    pub(super) nat: Vec<Value>,
    pub(super) network: Value,
}

/// The rule of ours that a rule of Azure's is a part of, by its name.
pub(super) fn base(name: &str) -> &str {
    match name.rsplit_once('.') {
        Some((base, number)) if !number.is_empty() && number.bytes().all(|byte| byte.is_ascii_digit()) => {
            base
        }
        _ => name,
    }
}

/// Writes a rule.
///
/// # Errors
/// What such a firewall cannot hold.
pub(super) fn encode(rule: &Rule, dialect: Dialect) -> Result<Parts, String> {
    if rule.access != Access::Allow {
        return Err(format!(
            "rule {} is no allow: a firewall lets in nothing that no rule leads on",
            rule.name
        ));
    }
    if PortRange::merged(rule.source_ports.clone()) != [PortRange::ALL] {
        return Err(format!("rule {} names source ports", rule.name));
    }
    let addresses = |what: &str, peers: &[Peer]| -> Result<Vec<String>, String> {
        if peers.is_empty() {
            return Err(format!("rule {} has no {what}", rule.name));
        }
        let net = |peer: &Peer| match peer {
            Peer::Net(net) if net.addr().is_ipv4() && net.prefix_len() > 0 => Ok(address(*net)),
            other => {
                Err(format!("rule {}: {other:?} is no {what} that a firewall is to be given", rule.name))
            }
        };
        peers.iter().map(net).collect()
    };
    let (sources, destinations) =
        (addresses("source", &rule.sources)?, addresses("destination", &rule.destinations)?);
    let protocols = match &rule.protocol {
        RuleProtocol::Transport(Protocol::Tcp) => json!(["TCP"]),
        RuleProtocol::Transport(Protocol::Udp) => json!(["UDP"]),
        RuleProtocol::Transport(Protocol::Any) => json!(["TCP", "UDP"]),
        RuleProtocol::Other(name) => return Err(format!("rule {}: protocol {name} has no ports", rule.name)),
    };
    if rule.ports.is_empty() {
        return Err(format!("rule {} has no port", rule.name));
    }
    let make = |name: String, kind: &str| {
        let mut value = json!({
            "name": name,
            "description": rule.description,
            "sourceAddresses": sources,
            "destinationAddresses": destinations,
            "destinationPorts": rule.ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        value[dialect.protocols()] = protocols.clone();
        if dialect == Dialect::Policy {
            value["ruleType"] = json!(kind);
        }
        value
    };
    let mut nat = Vec::new();
    if let Some(from) = rule.translation {
        let [to] = destinations.as_slice() else {
            return Err(format!("rule {} leads on to more than one address", rule.name));
        };
        if to.contains('/') {
            return Err(format!("rule {} leads on to a network", rule.name));
        }
        for (index, port) in rule.ports.iter().flat_map(|range| range.first()..=range.last()).enumerate() {
            let comes_in = usize::from(from.port) + index;
            if !(1..64_000).contains(&comes_in) {
                return Err(format!("rule {}: packets come in at ports from 1 to 63999", rule.name));
            }
            let mut value = make(format!("{}.{index}", rule.name), "NatRule");
            value["destinationAddresses"] = json!([from.address.to_string()]);
            value["destinationPorts"] = json!([comes_in.to_string()]);
            value["translatedAddress"] = json!(to);
            value["translatedPort"] = json!(port.to_string());
            nat.push(value);
        }
    }
    Ok(Parts { nat, network: make(rule.name.clone(), "NetworkRule") })
}

fn address(net: IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() { net.addr().to_string() } else { net.to_string() }
}

/// What is around a rule that is read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Around<'a> {
    pub(super) dialect: Dialect,
    pub(super) collection: &'a str,
    /// The mark of rules of ours that are looked for in the collection; none where none are.
    pub(super) mark: Option<&'a str>,
    pub(super) priority: u16,
    pub(super) denies: bool,
    /// Whether it is judged before the network rules of ours.
    pub(super) comes_first: bool,
    pub(super) provisioning: Provisioning,
}

/// Reads a rule that leads on.
pub(super) fn onward(rule: &Value, around: Around<'_>) -> DnatRule {
    let to = text(rule, "/translatedAddress").and_then(|text| text.parse::<IpAddr>().ok());
    let port = rule.get("translatedPort").and_then(|port| match port {
        Value::String(text) => text.trim().parse::<u16>().ok(),
        other => other.as_u64().and_then(|port| u16::try_from(port).ok()),
    });
    DnatRule {
        to: to.zip(port.map(PortRange::single)),
        part_of: part_of(rule, around),
        rule: Rule { access: Access::Allow, ..decode(rule, around) },
    }
}

/// Reads a network rule.
pub(super) fn filter(rule: &Value, around: Around<'_>) -> NetworkRule {
    NetworkRule {
        rule: decode(rule, around),
        comes_first: around.comes_first,
        part_of: part_of(rule, around),
    }
}

fn part_of(rule: &Value, around: Around<'_>) -> Option<String> {
    let name = base(text(rule, "/name")?);
    // Of the collection's own mark: any other name was given by somebody else.
    let own = around.mark.is_some_and(|wanted| mark(name).as_deref() == Some(wanted));
    own.then(|| name.to_owned())
}

/// What cannot be read may match anything.
fn decode(rule: &Value, around: Around<'_>) -> Rule {
    let mut sources = peers(rule, "sourceAddresses", "sourceIpGroups");
    let mut destinations = peers(rule, "destinationAddresses", "destinationIpGroups");
    let fqdns = items(rule, "/destinationFqdns").iter().filter_map(Value::as_str);
    destinations.extend(fqdns.map(|name| Peer::Unknown(name.to_owned())));
    let mut ports = Vec::new();
    for given in items(rule, "/destinationPorts") {
        match given.as_str().and_then(|text| port_range(text).ok()) {
            Some(range) => ports.push(range),
            None => {
                ports = vec![PortRange::ALL];
                sources = vec![Peer::Unknown(format!("port {given}"))];
                break;
            }
        }
    }
    Rule {
        name: format!("{}/{}", around.collection, text(rule, "/name").unwrap_or_default()),
        priority: around.priority,
        access: if around.denies { Access::Deny } else { Access::Allow },
        protocol: protocols(rule, around.dialect),
        sources,
        source_ports: vec![PortRange::ALL],
        destinations,
        ports,
        translation: None,
        description: text(rule, "/description").unwrap_or_default().to_owned(),
        provisioning: around.provisioning,
    }
}

fn protocols(rule: &Value, dialect: Dialect) -> RuleProtocol {
    let given = items(rule, &format!("/{}", dialect.protocols()));
    let words: Vec<RuleProtocol> = given.iter().filter_map(Value::as_str).map(protocol).collect();
    let (mut tcp, mut udp) = (false, false);
    for word in &words {
        if let RuleProtocol::Transport(one) = word {
            tcp |= one.intersects(Protocol::Tcp);
            udp |= one.intersects(Protocol::Udp);
        }
    }
    match (tcp, udp, words.into_iter().next()) {
        (true, true, _) | (_, _, None) => RuleProtocol::Transport(Protocol::Any),
        (true, false, _) => RuleProtocol::Transport(Protocol::Tcp),
        (false, true, _) => RuleProtocol::Transport(Protocol::Udp),
        (false, false, Some(other)) => other,
    }
}

fn peers(rule: &Value, addresses: &str, groups: &str) -> Vec<Peer> {
    let of =
        |name: &str| items(rule, &format!("/{name}")).iter().filter_map(Value::as_str).collect::<Vec<_>>();
    let mut peers: Vec<Peer> = of(addresses).into_iter().map(peer).collect();
    // What a group holds was not read.
    peers.extend(of(groups).into_iter().map(|group| Peer::Unknown(group.to_owned())));
    peers
}

/// The rules of the form of ours, put together from their parts. Where the parts do not fit together, the rule matches
/// something that cannot be read: it is not as it was written.
pub(super) fn assemble(standing: &Translating) -> Vec<Rule> {
    let mut names: BTreeMap<String, (String, Vec<&DnatRule>, Vec<&NetworkRule>)> = BTreeMap::new();
    for dnat in &standing.translations {
        if let Some(name) = &dnat.part_of {
            let entry =
                names.entry(name.to_ascii_lowercase()).or_insert_with(|| (name.clone(), vec![], vec![]));
            entry.1.push(dnat);
        }
    }
    for filter in &standing.filters {
        if let Some(name) = &filter.part_of {
            let entry =
                names.entry(name.to_ascii_lowercase()).or_insert_with(|| (name.clone(), vec![], vec![]));
            entry.2.push(filter);
        }
    }
    names.into_values().map(|(name, dnat, filters)| whole(&name, dnat, &filters)).collect()
}

fn whole(name: &str, mut dnat: Vec<&DnatRule>, filters: &[&NetworkRule]) -> Rule {
    dnat.sort_by_key(|part| (part.to, part.rule.name.clone()));
    let broken = |rule: &Rule, why: &str| Rule {
        name: name.to_owned(),
        access: Access::Allow,
        sources: vec![Peer::Unknown(why.to_owned())],
        ..rule.clone()
    };
    let first = dnat.first().map(|part| &part.rule);
    let [filter] = filters else {
        // There is a part of either kind, or there would be no name.
        let rule = filters.first().map(|filter| &filter.rule).or(first);
        return rule
            .map_or_else(|| empty(name), |rule| broken(rule, "it has no network rule, or more than one"));
    };
    let mut rule = Rule { name: name.to_owned(), ..filter.rule.clone() };
    if rule.access != Access::Allow {
        return broken(&rule, "its collection denies");
    }
    let Some(first) = first else { return rule };
    let from = match first.destinations.as_slice() {
        [Peer::Net(net)] if net.prefix_len() == net.max_prefix_len() => net.addr(),
        _ => return broken(&rule, "packets come in at more than one address"),
    };
    let [start] = first.ports.as_slice() else { return broken(&rule, "packets come in at other ports") };
    let wanted: Vec<u16> = rule.ports.iter().flat_map(|range| range.first()..=range.last()).collect();
    let fits = dnat.len() == wanted.len()
        && dnat.iter().zip(&wanted).enumerate().all(|(index, (part, port))| {
            let comes_in = u16::try_from(usize::from(start.first()) + index).map(PortRange::single);
            let alike = Rule {
                destinations: rule.destinations.clone(),
                ports: rule.ports.clone(),
                ..part.rule.clone()
            };
            comes_in.is_ok_and(|comes_in| part.rule.ports == [comes_in])
                && part.rule.destinations == first.destinations
                && part.to.is_some_and(|(to, range)| {
                    range == PortRange::single(*port) && rule.destinations == [Peer::host(to)]
                })
                && alike.same_effect(&rule)
        });
    if !fits {
        return broken(&rule, "what leads on and what lets through differ");
    }
    // What a description says counts, wherever it stands: the earlier deadline.
    if dnat.iter().any(|part| part.rule.description != rule.description) {
        rule.description = dnat.iter().map(|part| &part.rule.description).min().cloned().unwrap_or_default();
    }
    rule.translation = Some(Translation { address: from, port: start.first() });
    rule
}

fn empty(name: &str) -> Rule {
    Rule {
        name: name.to_owned(),
        priority: 0,
        access: Access::Allow,
        protocol: RuleProtocol::Transport(Protocol::Any),
        sources: vec![Peer::Unknown("nothing of it could be read".to_owned())],
        source_ports: vec![PortRange::ALL],
        destinations: Vec::new(),
        ports: Vec::new(),
        translation: None,
        description: String::new(),
        provisioning: Provisioning::Succeeded,
    }
}
