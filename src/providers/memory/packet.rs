//! What the cloud in memory lets in: a plain evaluation that shares nothing with the planner's.

use std::net::IpAddr;

use super::{Memory, default_rules};
use crate::api::values::Protocol;
use crate::plan::model::{Access, FirewallId, Machine, Peer, Rule, RuleProtocol};

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
