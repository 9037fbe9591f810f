//! The rules that a request takes on the way to its machines, and what to type to connect.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use super::dnat::{self, By};
use super::{Judgement, PlannedRule, PolicyView};
use crate::api::values::{ArmId, PortRange, Protocol};
use crate::api::{Connection, FirewallSource, JitAccessRequest, Reason};
use crate::plan::model::{Address, FirewallHop, FirewallId, Hop, Machine};
use crate::plan::sources::AddressSet;
use crate::plan::terms::{Ask, AskedPort, Terms};

/// The most addresses in one rule's destinations.
const MAX_DESTINATIONS: usize = 256;

/// Rules that differ in nothing but their ports, or else in nothing but their addresses.
type Where = (FirewallId, Protocol, Vec<IpNet>);

/// What the policies that cover a request have opened.
#[derive(Clone, Copy)]
struct Enforced {
    /// Network security groups.
    groups: bool,
    /// Firewalls that translate.
    firewalls: bool,
    source: FirewallSource,
}

/// Rules in the making.
struct Draft<'a> {
    enforced: Enforced,
    ports: dnat::Ports<'a>,
    /// What is filtered and not translated: ports by address.
    filtered: BTreeMap<(Where, IpAddr), Vec<PortRange>>,
    translated: Vec<PlannedRule>,
}

/// Exact cross products only: ports with the same protocol and sources fold into one rule, and so do machines behind a
/// firewall that get the same ports for the same sources.
pub(super) fn rules(
    request: &JitAccessRequest,
    ask: &Ask,
    covering: &[(&PolicyView, &Terms)],
    machines: &BTreeMap<ArmId, Machine>,
) -> Result<Vec<PlannedRule>, Judgement> {
    let Some((named, terms)) = covering.first() else { return Ok(Vec::new()) };
    let enforced = Enforced {
        groups: covering.iter().any(|(_, terms)| terms.uses_groups()),
        firewalls: covering.iter().any(|(_, terms)| terms.uses_firewalls()),
        source: terms.firewall_source,
    };
    let ports = dnat::Ports::new(request, named);
    let mut draft = Draft { enforced, ports, filtered: BTreeMap::new(), translated: Vec::new() };
    for machine in machines.values() {
        if machine.addresses().next().is_none() {
            let message = format!("{} has no private address", machine.id);
            return Err(Judgement::Impossible(Reason::NoAddress, message));
        }
        for address in machine.addresses() {
            if enforced.firewalls {
                dnat::unread(address)?;
            }
            can_be_filtered(machine, address, ask, enforced)?;
            for port in &ask.ports {
                draft.add(address, port)?;
            }
        }
    }
    let rules = draft.folded();
    if rules.is_empty() {
        return Err(Judgement::Impossible(
            Reason::NoAddress,
            "no machine has an address of the family (IPv4, IPv6) of the sources".into(),
        ));
    }
    Ok(rules)
}

impl Draft<'_> {
    /// What one port of one address takes.
    fn add(&mut self, address: &Address, port: &AskedPort) -> Result<(), Judgement> {
        let by_group = self.enforced.groups && !address.path.is_empty();
        let mut seen: BTreeSet<IpNet> = BTreeSet::new();
        let mut on_the_way: BTreeMap<(FirewallId, bool), (&FirewallHop, Vec<IpNet>)> = BTreeMap::new();
        for source in port.sources.iter().filter(|source| source.addr().is_ipv4() == address.ip.is_ipv4()) {
            let by = if self.enforced.firewalls { dnat::by(address, *source) } else { By::Direct };
            seen.extend(dnat::seen_as(by, *source, self.enforced.source));
            let (hop, translated) = match by {
                By::Direct => continue,
                By::Translated(_) if source.prefix_len() == 0 => return Err(from_anywhere(address)),
                By::Translated(hop) => (hop, true),
                By::Routed(hop) => (hop, false),
            };
            let entry = on_the_way.entry((hop.writes_to(), translated));
            entry.or_insert_with(|| (hop, Vec::new())).1.push(*source);
        }
        if by_group && !seen.is_empty() {
            for group in &address.path {
                self.filter(group.clone(), address, port, seen.iter().copied().collect());
            }
        }
        for ((firewall, translated), (hop, sources)) in on_the_way {
            // Where a group lets in the firewall's subnet, it lets in whoever else is translated there.
            if by_group && hop.subnets.iter().any(|subnet| seen.contains(subnet)) {
                let what = (&[port.range][..], port.protocol);
                self.ports.alone(hop, address.ip, what, &AddressSet::of_nets(&port.sources))?;
            }
            if !translated {
                self.ports.ready(&firewall)?;
                self.filter(firewall, address, port, sources);
                continue;
            }
            let from = self.ports.find(hop, address.ip, port.range, port.protocol)?;
            self.translated.push(PlannedRule {
                firewall,
                protocol: port.protocol,
                sources,
                destinations: vec![address.ip],
                ports: vec![port.range],
                translation: Some(from),
            });
        }
        Ok(())
    }

    fn filter(&mut self, firewall: FirewallId, address: &Address, port: &AskedPort, sources: Vec<IpNet>) {
        let at = (firewall, port.protocol, sources);
        self.filtered.entry((at, address.ip)).or_default().push(port.range);
    }

    fn folded(self) -> Vec<PlannedRule> {
        let mut folded: BTreeMap<(Where, Vec<PortRange>), Vec<IpAddr>> = BTreeMap::new();
        for ((at, address), ranges) in self.filtered {
            folded.entry((at, PortRange::merged(ranges))).or_default().push(address);
        }
        let mut rules = self.translated;
        for (((firewall, protocol, sources), ports), destinations) in folded {
            for destinations in destinations.chunks(MAX_DESTINATIONS) {
                rules.push(PlannedRule {
                    firewall: firewall.clone(),
                    protocol,
                    sources: sources.clone(),
                    destinations: destinations.to_vec(),
                    ports: ports.clone(),
                    translation: None,
                });
            }
        }
        rules.sort();
        rules
    }
}

/// Whether something on the way to an address can be opened for the sources, and for them alone.
fn can_be_filtered(
    machine: &Machine,
    address: &Address,
    ask: &Ask,
    Enforced { groups, firewalls, .. }: Enforced,
) -> Result<(), Judgement> {
    let filtered = groups && !address.path.is_empty();
    let sources = ask.ports.iter().flat_map(|port| &port.sources);
    let mut own = sources.filter(|source| source.addr().is_ipv4() == address.ip.is_ipv4());
    let direct = |source: &IpNet| !firewalls || matches!(dnat::by(address, *source), By::Direct);
    if !filtered && let Some(source) = own.find(|source| direct(source)) {
        let message = if groups {
            format!("no network security group filters traffic to {} of {}", address.ip, machine.id)
        } else {
            format!(
                "spec.enforcement.azure.via is AzureFirewall, and no Azure Firewall is on the way from {source} to {} of {}",
                address.ip, machine.id
            )
        };
        return Err(Judgement::Impossible(Reason::NoFirewall, message));
    }
    if filtered && let Some(twin) = &address.network.twin {
        let message = format!(
            "a rule for {} of {} could open another machine: {twin}; give each network a network security group of its \
             own",
            address.ip, machine.id
        );
        return Err(Judgement::Impossible(Reason::AddressNotUnique, message));
    }
    Ok(())
}

fn from_anywhere(address: &Address) -> Judgement {
    Judgement::Refused(
        Reason::SourceNotAllowed,
        format!(
            "spec.ports: an Azure Firewall leads packets on to {}, and everybody as source would have it let virtual \
             networks in to each other: name networks such as 203.0.113.0/24",
            address.ip
        ),
    )
}

/// What to type to connect.
pub(super) fn connections(
    ask: &Ask,
    machines: &BTreeMap<ArmId, Machine>,
    rules: &[PlannedRule],
) -> Vec<Connection> {
    let mut connections = Vec::new();
    for machine in machines.values() {
        let mut addresses: Vec<&Address> = machine.addresses().collect();
        addresses.sort_by_key(|address| (address.public.is_none(), address.ip));
        for port in &ask.ports {
            let connection = |address: String, port: String, via: String| Connection {
                target: machine.id.name().to_owned(),
                address,
                port,
                via,
            };
            let led = rules.iter().filter_map(|rule| Some((rule, rule.translation?))).find(|(rule, _)| {
                rule.ports == [port.range]
                    && rule.protocol == port.protocol
                    && addresses.iter().any(|address| rule.destinations == [address.ip])
            });
            if let Some((rule, from)) = led {
                let last = from.port.saturating_add(port.range.last() - port.range.first());
                let range = PortRange::new(from.port, last).unwrap_or(port.range);
                let hops = addresses.iter().flat_map(|address| &address.hops).filter_map(Hop::firewall);
                let through = |hop: &&FirewallHop| {
                    hop.writes_to() == rule.firewall && hop.publics.contains(&from.address)
                };
                let hop = hops.into_iter().find(through).map_or(&rule.firewall, |hop| &hop.id);
                let address = from.address.to_string();
                connections.push(connection(address, range.to_string(), hop.0.name().to_owned()));
            }
            let is_direct = |address: &&&Address| {
                let own =
                    port.sources.iter().filter(|source| source.addr().is_ipv4() == address.ip.is_ipv4());
                own.into_iter()
                    .any(|source| led.is_none() || !matches!(dnat::by(address, *source), By::Translated(_)))
            };
            if let Some(address) = addresses.iter().find(is_direct) {
                let ip = address.public.unwrap_or(address.ip).to_string();
                connections.push(connection(ip, port.range.to_string(), "Direct".to_owned()));
            }
        }
    }
    connections.truncate(64);
    connections
}
