//! What the cloud in memory lets in: a plain evaluation that shares nothing with the planner's.

use std::net::IpAddr;

use super::{Memory, default_rules};
use crate::api::values::Protocol;
use crate::plan::model::{Access, FirewallId, Hop, Machine, Peer, Rule, RuleProtocol};

/// The first packet of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// Who connects.
    pub source: IpAddr,
    /// The private address that is connected to.
    pub destination: IpAddr,
    /// The port that is connected to.
    pub port: u16,
    /// TCP or UDP.
    pub protocol: Protocol,
}

impl Memory {
    /// Whether a firewall lets a packet in now. A firewall that is not there lets nothing in.
    #[must_use]
    pub fn admits(&self, firewall: &FirewallId, packet: Packet) -> bool {
        let Some(mut rules) = self.lock().firewalls.get(firewall).map(|it| it.effective.clone()) else {
            return false;
        };
        rules.extend(default_rules());
        rules.sort_by_key(|rule| rule.priority);
        rules.iter().find(|rule| matches(rule, packet)).is_some_and(|rule| rule.access == Access::Allow)
    }

    /// Whether every firewall on the way to the packet's destination lets it in now. An address of no machine
    /// lets nothing in; one without firewalls everything.
    #[must_use]
    pub fn reaches(&self, packet: Packet) -> bool {
        let path = {
            let state = self.lock();
            let machines = state.machines.values().filter_map(|entry| entry.machine.as_ref().ok());
            machines
                .flat_map(Machine::addresses)
                .find(|address| address.ip == packet.destination)
                .map(|address| address.path.clone())
        };
        path.is_some_and(|path| path.iter().all(|firewall| self.admits(firewall, packet)))
    }
}

impl Memory {
    /// What a firewall that translates makes of a packet to one of its public addresses: none where it keeps it out.
    /// `deny_stops` says which of Azure's two readings holds: whether a network rule that denies stops what was led on.
    #[must_use]
    pub fn led_on(&self, firewall: &FirewallId, packet: Packet, deny_stops: bool) -> Option<Packet> {
        let state = self.lock();
        let stored = state.firewalls.get(firewall)?;
        let own = stored.effective.iter().filter_map(|rule| Some((rule, rule.translation?)));
        let own = own.filter_map(|(rule, from)| {
            let offset = packet.port.checked_sub(from.port)?;
            let port = rule.ports.iter().flat_map(|range| range.first()..=range.last()).nth(offset.into())?;
            let comes_in = from.address == packet.destination
                && rule.sources.iter().any(|peer| covers(peer, packet.source));
            let Peer::Net(to) = rule.destinations.first()? else { return None };
            let led = Packet { destination: to.addr(), port, ..packet };
            (comes_in && matches(rule, Packet { source: packet.source, ..led })).then_some(led)
        });
        let others = stored.others.translations.iter().filter(|dnat| matches(&dnat.rule, packet));
        let others = others.filter_map(|dnat| {
            let (to, ports) = dnat.to?;
            Some(Packet { destination: to, port: ports.first(), ..packet })
        });
        let led = own.chain(others).next()?;
        let stopped = || {
            let first =
                stored.others.filters.iter().filter(|filter| filter.comes_first).map(|filter| &filter.rule);
            let last =
                stored.others.filters.iter().filter(|filter| !filter.comes_first).map(|filter| &filter.rule);
            let rule = first.chain(&stored.effective).chain(last).find(|rule| matches(rule, led));
            rule.is_some_and(|rule| rule.access == Access::Deny)
        };
        (!(deny_stops && stopped())).then_some(led)
    }

    /// Whether a packet to a public address of a firewall comes to a machine: led on, with an address of the firewall's
    /// subnet as its source, and let in by every network security group on the way.
    #[must_use]
    pub fn reaches_through(&self, firewall: &FirewallId, packet: Packet, deny_stops: bool) -> bool {
        let Some(led) = self.led_on(firewall, packet, deny_stops) else { return false };
        let found = {
            let state = self.lock();
            let machines = state.machines.values().filter_map(|entry| entry.machine.as_ref().ok());
            let mut addresses = machines.flat_map(Machine::addresses);
            addresses.find(|address| address.ip == led.destination).map(|address| {
                let hops = address.hops.iter().filter_map(Hop::firewall);
                let subnet = hops.into_iter().find(|hop| hop.writes_to() == *firewall);
                (address.path.clone(), subnet.and_then(|hop| hop.subnets.first().copied()))
            })
        };
        let Some((path, Some(subnet))) = found else { return false };
        let source = subnet.hosts().nth(3).unwrap_or(subnet.addr());
        path.iter().all(|group| self.admits(group, Packet { source, ..led }))
    }
}

fn matches(rule: &Rule, packet: Packet) -> bool {
    let protocol = match &rule.protocol {
        RuleProtocol::Transport(protocol) => *protocol == Protocol::Any || *protocol == packet.protocol,
        RuleProtocol::Other(_) => false,
    };
    protocol
        && rule.ports.iter().any(|range| range.first() <= packet.port && packet.port <= range.last())
        && rule.sources.iter().any(|peer| covers(peer, packet.source))
        && rule.destinations.iter().any(|peer| covers(peer, packet.destination))
}

/// The world in memory is simple: what is private is the virtual network, the rest is the internet.
fn covers(peer: &Peer, address: IpAddr) -> bool {
    let private = match address {
        IpAddr::V4(four) => four.is_private(),
        IpAddr::V6(six) => six.is_unique_local(),
    };
    match peer {
        Peer::Any => true,
        Peer::Net(net) => net.contains(&address),
        Peer::Tag(tag) if tag.eq_ignore_ascii_case("VirtualNetwork") => private,
        Peer::Tag(tag) if tag.eq_ignore_ascii_case("Internet") => !private,
        Peer::Tag(tag) if tag.eq_ignore_ascii_case("AzureLoadBalancer") => {
            address == IpAddr::from([168, 63, 129, 16])
        }
        Peer::Tag(_) | Peer::Group(_) | Peer::Unknown(_) => false,
    }
}
