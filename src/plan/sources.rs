//! Sets of addresses, and what the two ends of a rule mean as such.
//!
//! A set is exact: sorted intervals that do not touch, one list a family. What cannot be read exactly (a
//! service tag whose addresses nobody told us) has two sets: what it surely holds and what it may hold. Who
//! asks takes the side on which an error is harmless.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::LazyLock;

use ipnet::IpNet;

use super::model::{NetworkView, Peer};
use crate::api::values::ArmId;

/// From where Azure probes, in both families.
const PROBE_V4: IpAddr = IpAddr::V4(Ipv4Addr::new(168, 63, 129, 16));
const PROBE_V6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0x1234, 0x5678, 0x9abc));

/// The two address families.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    #[must_use]
    pub const fn of(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }

    /// The family of a network.
    #[must_use]
    pub const fn of_net(network: &IpNet) -> Self {
        match network {
            IpNet::V4(_) => Self::V4,
            IpNet::V6(_) => Self::V6,
        }
    }

    const fn last(self) -> u128 {
        match self {
            Self::V4 => u32::MAX as u128,
            Self::V6 => u128::MAX,
        }
    }
}

type Interval = (u128, u128);

/// A set of addresses of both families.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressSet {
    four: Vec<Interval>,
    six: Vec<Interval>,
}

impl AddressSet {
    /// No address.
    #[must_use]
    pub const fn empty() -> Self {
        Self { four: Vec::new(), six: Vec::new() }
    }

    /// Every address.
    #[must_use]
    pub fn all() -> Self {
        Self { four: vec![(0, Family::V4.last())], six: vec![(0, Family::V6.last())] }
    }

    /// The addresses of these networks.
    pub fn of_nets<'a>(networks: impl IntoIterator<Item = &'a IpNet>) -> Self {
        let mut set = Self::empty();
        for network in networks {
            let interval = (number(network.network()), number(network.broadcast()));
            set.intervals_mut(Family::of_net(network)).push(interval);
        }
        set.normalised()
    }

    /// These addresses.
    pub fn of_hosts(addresses: impl IntoIterator<Item = IpAddr>) -> Self {
        let mut set = Self::empty();
        for address in addresses {
            set.intervals_mut(Family::of(address)).push((number(address), number(address)));
        }
        set.normalised()
    }

    /// Those of one family.
    #[must_use]
    pub fn only(&self, family: Family) -> Self {
        match family {
            Family::V4 => Self { four: self.four.clone(), six: Vec::new() },
            Family::V6 => Self { four: Vec::new(), six: self.six.clone() },
        }
    }

    /// Those in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let joined = |left: &[Interval], right: &[Interval]| [left, right].concat();
        Self { four: joined(&self.four, &other.four), six: joined(&self.six, &other.six) }.normalised()
    }

    /// Those in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        Self { four: intersection(&self.four, &other.four), six: intersection(&self.six, &other.six) }
    }

    /// Those here and not in `other`.
    #[must_use]
    pub fn minus(&self, other: &Self) -> Self {
        Self { four: minus(&self.four, &other.four), six: minus(&self.six, &other.six) }
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.four.is_empty() && self.six.is_empty()
    }

    /// Whether some address is in both.
    #[must_use]
    pub fn meets(&self, other: &Self) -> bool {
        Family::ALL.into_iter().any(|family| self.meets_in(family, other))
    }

    /// Whether some address of the family is in both.
    #[must_use]
    pub fn meets_in(&self, family: Family, other: &Self) -> bool {
        meets(self.intervals(family), other.intervals(family))
    }

    /// Whether all of `other` is here.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.minus(self).is_empty()
    }

    /// Whether the address is here.
    #[must_use]
    pub fn has(&self, address: IpAddr) -> bool {
        let intervals = self.intervals(Family::of(address));
        let wanted = number(address);
        let after = intervals.partition_point(|(first, _)| *first <= wanted);
        after > 0 && intervals[after - 1].1 >= wanted
    }

    /// The lowest address, IPv4 first: an example for a message.
    #[must_use]
    pub fn first(&self) -> Option<IpAddr> {
        let four = self.four.first().and_then(|(first, _)| u32::try_from(*first).ok());
        four.map(|bits| IpAddr::V4(Ipv4Addr::from_bits(bits)))
            .or_else(|| self.six.first().map(|(first, _)| IpAddr::V6(Ipv6Addr::from_bits(*first))))
    }

    fn intervals(&self, family: Family) -> &[Interval] {
        match family {
            Family::V4 => &self.four,
            Family::V6 => &self.six,
        }
    }

    fn intervals_mut(&mut self, family: Family) -> &mut Vec<Interval> {
        match family {
            Family::V4 => &mut self.four,
            Family::V6 => &mut self.six,
        }
    }

    fn normalised(mut self) -> Self {
        for intervals in [&mut self.four, &mut self.six] {
            intervals.sort_unstable();
            let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
            for &(first, last) in intervals.iter() {
                match merged.last_mut() {
                    Some(previous) if first <= previous.1.saturating_add(1) => {
                        previous.1 = previous.1.max(last);
                    }
                    _ => merged.push((first, last)),
                }
            }
            *intervals = merged;
        }
        self
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(four) => u128::from(four.to_bits()),
        IpAddr::V6(six) => six.to_bits(),
    }
}

fn intersection(left: &[Interval], right: &[Interval]) -> Vec<Interval> {
    let (mut i, mut j, mut both) = (0, 0, Vec::new());
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        let (first, last) = (a.0.max(b.0), a.1.min(b.1));
        if first <= last {
            both.push((first, last));
        }
        if a.1 < b.1 {
            i += 1;
        } else {
            j += 1;
        }
    }
    both
}

fn meets(left: &[Interval], right: &[Interval]) -> bool {
    let (mut i, mut j) = (0, 0);
    while let (Some(a), Some(b)) = (left.get(i), right.get(j)) {
        if a.0.max(b.0) <= a.1.min(b.1) {
            return true;
        }
        if a.1 < b.1 {
            i += 1;
        } else {
            j += 1;
        }
    }
    false
}

fn minus(left: &[Interval], right: &[Interval]) -> Vec<Interval> {
    let mut rest = Vec::new();
    let mut j = 0;
    for &(first, last) in left {
        let mut from = first;
        let mut spent = false;
        while let Some(&(cut_first, cut_last)) = right.get(j) {
            if cut_last < from {
                j += 1;
                continue;
            }
            if cut_first > last {
                break;
            }
            if cut_first > from {
                rest.push((from, cut_first - 1));
            }
            if cut_last >= last {
                spent = true;
                break;
            }
            from = cut_last + 1;
        }
        if !spent {
            rest.push((from, last));
        }
    }
    rest
}

/// What one end of a rule surely matches, and what it may match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Matches these for certain.
    pub surely: AddressSet,
    /// Matches none but these.
    pub maybe: AddressSet,
}

impl Bounds {
    fn exact(set: AddressSet) -> Self {
        Self { surely: set.clone(), maybe: set }
    }

    /// Anything or nothing.
    fn unknown() -> Self {
        Self { surely: AddressSet::empty(), maybe: AddressSet::all() }
    }

    /// What a list of peers matches. `network` is what is known of the network around the firewall, if
    /// anything. Application security groups are unknown; an empty list too, since no cloud has such rules.
    #[must_use]
    pub fn of(peers: &[Peer], network: Option<&NetworkView>) -> Self {
        Self::with_groups(peers, network, |_| Self::unknown())
    }

    /// The same, where a question answers for application security groups.
    pub fn with_groups(
        peers: &[Peer],
        network: Option<&NetworkView>,
        group: impl Fn(&ArmId) -> Self,
    ) -> Self {
        if peers.is_empty() {
            return Self::unknown();
        }
        // Plain networks at once: their lists may be long.
        let nets = peers.iter().filter_map(|peer| match peer {
            Peer::Net(network) => Some(network),
            _ => None,
        });
        let mut bounds = Self::exact(AddressSet::of_nets(nets));
        for peer in peers {
            let more = match peer {
                Peer::Net(_) => continue,
                Peer::Any => Self::exact(AddressSet::all()),
                Peer::Tag(tag) => tag_bounds(tag, network),
                Peer::Group(id) => group(id),
                Peer::Unknown(_) => Self::unknown(),
            };
            bounds.surely = bounds.surely.union(&more.surely);
            bounds.maybe = bounds.maybe.union(&more.maybe);
        }
        bounds
    }
}

fn tag_bounds(tag: &str, network: Option<&NetworkView>) -> Bounds {
    let known = network.map(|view| AddressSet::of_nets(&view.virtual_network));
    match tag.to_ascii_lowercase().as_str() {
        "azureloadbalancer" => Bounds {
            surely: AddressSet::of_hosts([PROBE_V4]),
            maybe: AddressSet::of_hosts([PROBE_V4, PROBE_V6]),
        },
        // The list may lag behind new peerings, so what it does not hold may still be meant.
        "virtualnetwork" => match known {
            Some(inside) => Bounds { maybe: inside.union(&NEVER_INTERNET), surely: inside },
            None => Bounds::unknown(),
        },
        // Private addresses are never the internet.
        "internet" => {
            let public = AddressSet::all().minus(&NEVER_INTERNET);
            let surely = known.map_or_else(AddressSet::empty, |inside| {
                public.minus(&inside).minus(&AddressSet::of_hosts([PROBE_V4]))
            });
            Bounds { surely, maybe: public }
        }
        _ => Bounds::unknown(),
    }
}

/// Private, shared and link-local networks, and the machine's own.
static NEVER_INTERNET: LazyLock<AddressSet> = LazyLock::new(|| {
    const NETWORKS: [&str; 8] = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "100.64.0.0/10",
        "169.254.0.0/16",
        "127.0.0.0/8",
        "fc00::/7",
        "fe80::/10",
    ];
    let networks: Vec<IpNet> = NETWORKS.iter().filter_map(|text| text.parse().ok()).collect();
    AddressSet::of_nets(&networks)
});

/// The same addresses without networks that lie inside others of the list, in order: clouds refuse overlaps.
#[must_use]
pub fn without_overlaps(networks: &[IpNet]) -> Vec<IpNet> {
    let mut networks: Vec<IpNet> = networks.iter().map(IpNet::trunc).collect();
    // Wider ones first where they begin at the same address.
    networks.sort_unstable_by_key(|network| (network.network(), network.prefix_len()));
    let mut kept: Vec<IpNet> = Vec::with_capacity(networks.len());
    for network in networks {
        if !kept.last().is_some_and(|wider| wider.contains(&network)) {
            kept.push(network);
        }
    }
    kept
}
