//! One packet to a public address of a firewall: its translation, and the network rules on the way.
//!
//! Rules are processed by their kind: DNAT first, then network rules; within a kind those of parent policies first,
//! then by the priority of the group, then by that of the collection. Microsoft says two things of whether a network
//! rule that denies stops what DNAT has translated: the probe says which of the two holds.

use std::net::IpAddr;
use std::ops::Bound;

use serde_json::Value;

use super::plane::Facts;
use crate::resources::rule::{network, range};

/// How far parents are followed.
const MAX_DEPTH: usize = 16;

/// Where a firewall stands.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) key: String,
    /// Key of its virtual network; none in a hub.
    pub(crate) network: Option<String>,
    /// Addresses of its instances: what machines see as the source of what was translated.
    pub(crate) instances: Vec<IpAddr>,
}

/// A packet, or what becomes of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) source: IpAddr,
    pub(crate) source_port: u16,
    pub(crate) destination: IpAddr,
    pub(crate) port: u16,
    pub(crate) protocol: String,
}

/// A rule that decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Decision {
    /// Id of the firewall, or of the policy's group.
    pub(crate) resource: String,
    /// `collection/rule`.
    pub(crate) rule: String,
    pub(crate) access: &'static str,
}

/// What a firewall makes of a packet to one of its public addresses: the packet that the machine sees, if it lets it
/// through, and the rules that decided.
pub(crate) fn through(
    facts: &Facts,
    place: &Place,
    packet: &Packet,
    deny_stops_dnat: bool,
) -> (Option<Packet>, Vec<Decision>) {
    let sets = rule_sets(facts, &place.key);
    let nat = rules(&sets, Kind::Nat);
    // The first that matches decides, also where it leads to a name: which address that is, nobody says here.
    let Some(hit) = nat.iter().find(|rule| matches(facts, rule, packet)) else { return (None, vec![]) };
    let mut decisions = vec![hit.decision("Dnat")];
    let Some(to) = translation(hit) else { return (None, decisions) };
    let translated = Packet { destination: to.0, port: to.1, ..packet.clone() };
    let network_rules = rules(&sets, Kind::Network);
    if deny_stops_dnat && let Some(rule) = network_rules.iter().find(|rule| matches(facts, rule, &translated))
    {
        let access = if rule.denies { "Deny" } else { "Allow" };
        decisions.push(rule.decision(access));
        if rule.denies {
            return (None, decisions);
        }
    }
    // Which instance takes a flow depends on the flow.
    let instance = place.instances.get(usize::from(packet.source_port) % place.instances.len().max(1));
    let source = instance.copied().unwrap_or(packet.source);
    (Some(Packet { source, ..translated }), decisions)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Nat,
    Network,
}

/// The collections of a classic firewall or of one group, in the order in which sets are judged.
struct Set<'a> {
    resource: &'a str,
    collections: Vec<Collection<'a>>,
}

struct Collection<'a> {
    name: &'a str,
    kind: Kind,
    priority: i64,
    denies: bool,
    rules: &'a Value,
    protocols: &'static str,
}

struct Rule<'a> {
    resource: &'a str,
    collection: &'a str,
    denies: bool,
    body: &'a Value,
    protocols: &'static str,
}

impl Rule<'_> {
    fn decision(&self, access: &'static str) -> Decision {
        let name = self.body["name"].as_str().unwrap_or("");
        Decision { resource: self.resource.to_owned(), rule: format!("{}/{name}", self.collection), access }
    }
}

fn rule_sets<'a>(facts: &'a Facts, firewall: &str) -> Vec<Set<'a>> {
    let Some(fact) = facts.get(firewall) else { return vec![] };
    let properties = &fact.body["properties"];
    let Some(policy) = properties["firewallPolicy"]["id"].as_str() else {
        let of = |field: &str, kind: Kind| {
            let list = properties[field].as_array().into_iter().flatten();
            list.map(move |item| collection(item, &item["properties"], kind, "protocols")).collect::<Vec<_>>()
        };
        let mut collections = of("natRuleCollections", Kind::Nat);
        collections.extend(of("networkRuleCollections", Kind::Network));
        return vec![Set { resource: &fact.id.text, collections }];
    };
    let mut chain = vec![policy.to_lowercase()];
    while chain.len() < MAX_DEPTH
        && let Some(found) = chain.last().and_then(|key| facts.get(key))
        && let Some(base) = found.body["properties"]["basePolicy"]["id"].as_str()
    {
        chain.push(base.to_lowercase());
    }
    let mut sets = vec![];
    for policy in chain.iter().rev() {
        let prefix = format!("{policy}/rulecollectiongroups/");
        let groups = facts.range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        let mut groups: Vec<_> =
            groups.take_while(|(key, _)| key.starts_with(&prefix)).map(|(_, group)| group).collect();
        groups.sort_by_key(|group| group.body["properties"]["priority"].as_i64());
        for group in groups {
            let list = group.body["properties"]["ruleCollections"].as_array().into_iter().flatten();
            let collections = list.map(|item| {
                let nat = item["ruleCollectionType"].as_str() == Some("FirewallPolicyNatRuleCollection");
                collection(item, item, if nat { Kind::Nat } else { Kind::Network }, "ipProtocols")
            });
            sets.push(Set { resource: &group.id.text, collections: collections.collect() });
        }
    }
    sets
}

fn collection<'a>(
    item: &'a Value,
    properties: &'a Value,
    kind: Kind,
    protocols: &'static str,
) -> Collection<'a> {
    Collection {
        name: item["name"].as_str().unwrap_or(""),
        kind,
        priority: properties["priority"].as_i64().unwrap_or(i64::MAX),
        denies: properties["action"]["type"].as_str().is_some_and(|a| a.eq_ignore_ascii_case("Deny")),
        rules: &properties["rules"],
        protocols,
    }
}

/// All rules of a kind, in the order in which they are judged.
fn rules<'a>(sets: &[Set<'a>], kind: Kind) -> Vec<Rule<'a>> {
    let mut found = vec![];
    for set in sets {
        let mut collections: Vec<&Collection<'a>> =
            set.collections.iter().filter(|c| c.kind == kind).collect();
        collections.sort_by_key(|collection| collection.priority);
        for collection in collections {
            // Application rules stand in filter collections too: they are about names, not about addresses.
            let rules = collection.rules.as_array().into_iter().flatten();
            let rules = rules.filter(|rule| rule["ruleType"].as_str() != Some("ApplicationRule"));
            found.extend(rules.map(|body| Rule {
                resource: set.resource,
                collection: collection.name,
                denies: collection.denies,
                body,
                protocols: collection.protocols,
            }));
        }
    }
    found
}

fn translation(rule: &Rule<'_>) -> Option<(IpAddr, u16)> {
    let address = rule.body["translatedAddress"].as_str()?.parse().ok()?;
    let port = &rule.body["translatedPort"];
    let port = port.as_str().map_or_else(|| port.to_string(), str::to_owned).parse().ok()?;
    Some((address, port))
}

fn matches(facts: &Facts, rule: &Rule<'_>, packet: &Packet) -> bool {
    let texts = |name: &str| rule.body[name].as_array().into_iter().flatten().filter_map(Value::as_str);
    let protocol = texts(rule.protocols)
        .any(|known| known.eq_ignore_ascii_case("any") || known.eq_ignore_ascii_case(&packet.protocol));
    let port = texts("destinationPorts").any(|text| {
        text == "*" || range(text).is_some_and(|(low, high)| (low..=high).contains(&packet.port))
    });
    let side = |addresses: &str, groups: &str, address: IpAddr| {
        let named = rule.body[groups].as_array().into_iter().flatten().filter_map(Value::as_str);
        let members = named.filter_map(|id| facts.get(&id.to_lowercase())).flat_map(|group| {
            group.body["properties"]["ipAddresses"].as_array().into_iter().flatten().filter_map(Value::as_str)
        });
        texts(addresses).chain(members).any(|text| holds(text, address))
    };
    protocol
        && port
        && side("sourceAddresses", "sourceIpGroups", packet.source)
        && side("destinationAddresses", "destinationIpGroups", packet.destination)
}

/// An address, a network, a range, or everything.
fn holds(text: &str, address: IpAddr) -> bool {
    if text == "*" {
        return true;
    }
    if let Some((low, high)) = text.split_once('-') {
        let bounds = (low.trim().parse::<IpAddr>(), high.trim().parse::<IpAddr>());
        return matches!(bounds, (Ok(low), Ok(high)) if (low..=high).contains(&address));
    }
    network(text).is_some_and(|net| net.contains(&address))
}
