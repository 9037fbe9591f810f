//! Packets as rules see them: reaches of rules, and cells (address, protocol, port) that locks cover.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::model::{Access, NetworkView, Peer, Provisioning, Rule, RuleProtocol};
use super::sources::{AddressSet, Bounds, Family};
use crate::api::values::{PortRange, Protocol};

/// The protocols that have ports. `Any` is both: packets of other protocols go to no port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Tcp, Self::Udp];

    /// Whether packets of this one are of `protocol`.
    #[must_use]
    pub const fn is_of(self, protocol: Protocol) -> bool {
        match protocol {
            Protocol::Any => true,
            Protocol::Tcp => matches!(self, Self::Tcp),
            Protocol::Udp => matches!(self, Self::Udp),
        }
    }

    /// Whether packets of this one are matched by the protocol of a rule.
    #[must_use]
    pub const fn is_of_rule(self, protocol: &RuleProtocol) -> bool {
        match protocol {
            RuleProtocol::Transport(protocol) => self.is_of(*protocol),
            RuleProtocol::Other(_) => false,
        }
    }

    const fn index(self) -> usize {
        match self {
            Self::Tcp => 0,
            Self::Udp => 1,
        }
    }
}

/// The packets that a rule may match: one cross product.
#[derive(Clone, Debug)]
pub struct Reach {
    protocol: RuleProtocol,
    /// Where they come from.
    pub sources: AddressSet,
    destinations: AddressSet,
    ports: Vec<PortRange>,
}

impl Reach {
    /// The packets that a rule may match.
    #[must_use]
    pub fn of(rule: &Rule, network: Option<&NetworkView>) -> Self {
        Self {
            protocol: rule.protocol.clone(),
            sources: Bounds::of(&rule.sources, network).maybe,
            destinations: Bounds::of(&rule.destinations, network).maybe,
            ports: if rule.ports.is_empty() { vec![PortRange::ALL] } else { rule.ports.clone() },
        }
    }

    /// Whether some packet may be of both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        Transport::ALL
            .into_iter()
            .any(|transport| transport.is_of_rule(&self.protocol) && transport.is_of_rule(&other.protocol))
            && self.ports.iter().any(|own| other.ports.iter().any(|port| own.intersects(*port)))
            && Family::ALL.into_iter().any(|family| {
                self.sources.meets_in(family, &other.sources)
                    && self.destinations.meets_in(family, &other.destinations)
            })
    }
}

/// The ports of `left` that are not in `right`, merged.
#[must_use]
pub fn ports_minus(left: &[PortRange], right: &[PortRange]) -> Vec<PortRange> {
    let right = PortRange::merged(right.to_vec());
    let mut rest = Vec::new();
    for range in PortRange::merged(left.to_vec()) {
        let (mut from, last) = (u32::from(range.first()), u32::from(range.last()));
        for cut in right.iter().filter(|cut| cut.intersects(range)) {
            push_ports(&mut rest, from, u32::from(cut.first()).wrapping_sub(1));
            from = u32::from(cut.last()) + 1;
        }
        push_ports(&mut rest, from, last);
    }
    rest
}

fn push_ports(ranges: &mut Vec<PortRange>, first: u32, last: u32) {
    if let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last))
        && let Ok(range) = PortRange::new(first, last)
    {
        ranges.push(range);
    }
}

/// The ports in both, merged.
#[must_use]
pub fn ports_in_both(left: &[PortRange], right: &[PortRange]) -> Vec<PortRange> {
    ports_minus(left, &ports_minus(left, right))
}

/// A set of (address, transport, port): what locks cover.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cells(BTreeMap<IpAddr, [Vec<PortRange>; 2]>);

impl Cells {
    /// Adds ports of an address.
    pub fn add(&mut self, address: IpAddr, protocol: Protocol, ports: &[PortRange]) {
        let entry = self.0.entry(address).or_default();
        for transport in Transport::ALL.into_iter().filter(|transport| transport.is_of(protocol)) {
            let own = &mut entry[transport.index()];
            own.extend_from_slice(ports);
            *own = PortRange::merged(std::mem::take(own));
        }
    }

    /// Adds what another set has.
    pub fn add_all(&mut self, other: &Self) {
        for (address, [tcp, udp]) in &other.0 {
            self.add(*address, Protocol::Tcp, tcp);
            self.add(*address, Protocol::Udp, udp);
        }
    }

    /// What a rule names as single addresses, whatever it does there.
    #[must_use]
    pub fn named_by(rule: &Rule) -> Self {
        let mut cells = Self::default();
        if let RuleProtocol::Transport(protocol) = rule.protocol {
            for address in hosts(&rule.destinations) {
                cells.add(address, protocol, &rule.ports);
            }
        }
        cells
    }

    /// What a rule surely keeps everybody out of, as far as it names single addresses.
    #[must_use]
    pub fn shut_by(rule: &Rule) -> Self {
        let from_everywhere = rule.sources.contains(&Peer::Any)
            && PortRange::merged(rule.source_ports.clone()) == [PortRange::ALL];
        if rule.access == Access::Deny && rule.provisioning == Provisioning::Succeeded && from_everywhere {
            Self::named_by(rule)
        } else {
            Self::default()
        }
    }

    /// Those that are here and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        let rest = self.0.iter().filter_map(|(address, own)| {
            let rest = match other.0.get(address) {
                Some(cut) => [ports_minus(&own[0], &cut[0]), ports_minus(&own[1], &cut[1])],
                None => own.clone(),
            };
            (!rest[0].is_empty() || !rest[1].is_empty()).then_some((*address, rest))
        });
        Self(rest.collect())
    }

    /// Those in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        self.minus(&self.minus(other))
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.values().all(|[tcp, udp]| tcp.is_empty() && udp.is_empty())
    }

    /// Whether all of `other` is here.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.minus(self).is_empty()
    }

    /// Whether some cell is in both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        !self.intersection(other).is_empty()
    }

    /// The ports of an address and a transport.
    #[must_use]
    pub fn ports(&self, address: IpAddr, transport: Transport) -> &[PortRange] {
        self.0.get(&address).map_or(&[], |ports| &ports[transport.index()])
    }

    /// The addresses, in order.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.0.keys().copied()
    }
}

/// The single addresses among peers.
#[must_use]
pub fn hosts(peers: &[Peer]) -> BTreeSet<IpAddr> {
    let hosts = peers.iter().filter_map(|peer| match peer {
        Peer::Net(network) if network.prefix_len() == network.max_prefix_len() => Some(network.addr()),
        Peer::Net(_) | Peer::Any | Peer::Tag(_) | Peer::Group(_) | Peer::Unknown(_) => None,
    });
    hosts.collect()
}
