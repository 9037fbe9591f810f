//! The rules on the way to one address, and which sources they let through.

use super::{Decider, Way};
use crate::api::values::{ArmId, PortRange};
use crate::plan::model::{
    Address, AdminAction, AdminRule, FirewallId, NetworkView, Observed, Peer, Provisioning, Rule,
    RuleProtocol,
};
use crate::plan::names::{self, Cluster, Mark};
use crate::plan::packets::Transport;
use crate::plan::sources::{AddressSet, Bounds, Family};

/// Packets to one address that every rule treats alike but for their source: one transport, and ports between
/// which no rule draws a line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cell {
    pub transport: Transport,
    pub ports: PortRange,
}

/// What counts: what the cloud has ended writing, or what it was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Trust {
    /// A deny that is still being written keeps nobody out, a firewall that could not be read neither.
    Proved,
    /// Everything is as it was asked for, and what could not be read is closed.
    Goal,
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Does {
    Allow,
    Deny,
    /// Lets in past all firewalls.
    Bypass,
}

/// A rule that may match packets to the address.
struct Judge<'a> {
    name: &'a str,
    does: Does,
    settled: bool,
    protocol: &'a RuleProtocol,
    ports: &'a [PortRange],
    sources: &'a [Peer],
    bounds: Bounds,
    /// Whether it surely matches this destination, from every source port.
    certain: bool,
    is_lock: bool,
}

impl Judge<'_> {
    /// Whether it may match packets of the cell, which lies on one side of every edge of its ports.
    fn concerns(&self, cell: Cell) -> bool {
        cell.transport.is_of_rule(self.protocol)
            && (self.ports.is_empty() || self.ports.iter().any(|range| range.intersects(cell.ports)))
    }

    /// What it surely matches of the cell.
    fn surely(&self, trust: Trust) -> Option<&AddressSet> {
        let counts = self.settled || trust == Trust::Goal;
        (self.certain && counts && !self.ports.is_empty()).then_some(&self.bounds.surely)
    }
}

/// One firewall on the way, or the rules before them.
pub(super) struct Gate<'a> {
    pub firewall: &'a FirewallId,
    rules: Vec<Judge<'a>>,
    /// Whether it could be read: where it could not, it has no rules here.
    read: bool,
    /// Whether it could be read, and the cloud has ended writing it.
    settled: bool,
    network: &'a NetworkView,
}

/// Who gets through, by which rule.
#[derive(Default)]
pub(super) struct LetIn {
    by: Vec<(Decider, AddressSet)>,
    /// Those that nobody judged: let in because the gate could not be read.
    unread: AddressSet,
}

impl LetIn {
    pub(super) fn let_in(&self) -> AddressSet {
        self.by.iter().fold(self.unread.clone(), |all, (_, set)| all.union(set))
    }

    /// The rules that let some of these in.
    pub(super) fn deciders(&self, set: &AddressSet) -> Vec<Decider> {
        self.by.iter().filter(|(_, own)| own.meets(set)).map(|(decider, _)| decider.clone()).collect()
    }
}

/// What the rules before the firewalls do.
pub(super) struct Onward {
    pub bypassing: LetIn,
    /// What goes on to the firewalls.
    pub onward: AddressSet,
}

/// The way to one address.
pub(super) struct Path<'a> {
    pub gates: Vec<Gate<'a>>,
    admin: Vec<Judge<'a>>,
    address: &'a Address,
}

impl<'a> Path<'a> {
    pub(super) fn to(address: &'a Address, way: Way<'a>) -> Self {
        let gates = address.path.iter().map(|firewall| {
            gate(address, firewall, way.firewalls.get(firewall).map(AsRef::as_ref), way.cluster)
        });
        let gates = gates.collect();
        let mut admin: Vec<&AdminRule> = address.network.admin_rules.iter().flatten().collect();
        admin.sort_by_key(|rule| rule.priority);
        let admin = admin.into_iter().filter_map(|rule| admin_judge(address, rule)).collect();
        Self { gates, admin, address }
    }

    /// The way through one firewall alone.
    pub(super) fn through(address: &'a Address, observed: &'a Observed, cluster: &Cluster) -> Self {
        let gate = gate(address, &observed.firewall, Some(observed), cluster);
        Self { gates: vec![gate], admin: Vec::new(), address }
    }

    /// The ports, cut where some rule on the way draws a line.
    pub(super) fn cells(&self, transport: Transport, ports: &[PortRange]) -> Vec<Cell> {
        let rules = self.gates.iter().flat_map(|gate| &gate.rules).chain(&self.admin);
        let mut edges: Vec<u32> = rules
            .filter(|rule| transport.is_of_rule(rule.protocol))
            .flat_map(|rule| rule.ports)
            .chain(ports)
            .flat_map(|range| [u32::from(range.first()), u32::from(range.last()) + 1])
            .collect();
        edges.sort_unstable();
        edges.dedup();
        let mut cells = Vec::new();
        for range in PortRange::merged(ports.to_vec()) {
            let first = edges.partition_point(|edge| *edge < u32::from(range.first()));
            for pair in edges[first..].windows(2) {
                if pair[0] > u32::from(range.last()) {
                    break;
                }
                if let (Ok(first), Ok(last)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1))
                    && let Ok(ports) = PortRange::new(first, last)
                {
                    cells.push(Cell { transport, ports });
                }
            }
        }
        cells
    }

    /// What the rules before the firewalls do: an upper bound of what they let on.
    pub(super) fn admin(&self, cell: Cell, exempt: &[Peer], trust: Trust) -> Onward {
        let mut undecided = AddressSet::all().only(Family::of(self.address.ip));
        let (mut bypassing, mut onward) = (LetIn::default(), AddressSet::empty());
        for rule in self.admin.iter().filter(|rule| rule.concerns(cell)) {
            if rule.does != Does::Deny {
                let met = may_match(rule, exempt, &self.address.network).intersection(&undecided);
                match rule.does {
                    Does::Bypass => bypassing.by.push((decider(None, rule), met)),
                    Does::Allow | Does::Deny => onward = onward.union(&met),
                }
            }
            if let Some(surely) = rule.surely(trust) {
                undecided = undecided.minus(surely);
            }
        }
        Onward { bypassing, onward: onward.union(&undecided) }
    }

    /// What the rules before the firewalls surely stop of these sources, and what goes on or past.
    pub(super) fn admin_rules(&self) -> impl Iterator<Item = Verdict<'_>> {
        self.admin.iter().map(|rule| Verdict { rule, firewall: None })
    }
}

impl Gate<'_> {
    /// Who gets through: an upper bound. Sources that are exempt by name are left out where only a rule for
    /// that name lets them in.
    pub(super) fn judge(&self, cell: Cell, exempt: &[Peer], trust: Trust) -> LetIn {
        let mut undecided = AddressSet::all();
        let mut let_in = LetIn::default();
        if trust == Trust::Proved && !self.settled {
            let_in.unread = undecided;
            return let_in;
        }
        for rule in self.rules.iter().filter(|rule| rule.concerns(cell)) {
            if rule.does != Does::Deny {
                let met = may_match(rule, exempt, self.network).intersection(&undecided);
                if !met.is_empty() {
                    let_in.by.push((decider(Some(self.firewall), rule), met));
                }
            }
            if let Some(surely) = rule.surely(trust) {
                undecided = undecided.minus(surely);
            }
            if undecided.is_empty() {
                break;
            }
        }
        let_in
    }

    /// Whether a deny of ours stands here against everybody.
    pub(super) fn has_lock(&self, cell: Cell, trust: Trust) -> bool {
        self.rules.iter().any(|rule| {
            rule.is_lock
                && rule.concerns(cell)
                && rule.surely(trust).is_some_and(|surely| *surely == AddressSet::all())
        })
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = Verdict<'_>> {
        self.rules.iter().map(|rule| Verdict { rule, firewall: Some(self.firewall) })
    }

    pub(super) fn could_be_read(&self) -> bool {
        self.read
    }
}

/// One rule's part in a judgement.
pub(super) struct Verdict<'a> {
    rule: &'a Judge<'a>,
    firewall: Option<&'a FirewallId>,
}

impl Verdict<'_> {
    pub(super) fn concerns(&self, cell: Cell) -> bool {
        self.rule.concerns(cell)
    }

    pub(super) fn does(&self) -> Does {
        self.rule.does
    }

    /// The sources that it surely matches.
    pub(super) fn surely(&self) -> AddressSet {
        self.rule.surely(Trust::Goal).cloned().unwrap_or_default()
    }

    /// The sources that it may match.
    pub(super) fn maybe(&self) -> &AddressSet {
        &self.rule.bounds.maybe
    }

    pub(super) fn decider(&self) -> Decider {
        decider(self.firewall, self.rule)
    }
}

/// Whether the cloud has ended writing it.
pub(super) const fn is_settled(provisioning: Provisioning) -> bool {
    matches!(provisioning, Provisioning::Succeeded)
}

fn decider(firewall: Option<&FirewallId>, rule: &Judge<'_>) -> Decider {
    Decider { firewall: firewall.cloned(), rule: rule.name.to_owned() }
}

/// What an allow may let in, but for tags that are exempt as such.
fn may_match(rule: &Judge<'_>, exempt: &[Peer], network: &NetworkView) -> AddressSet {
    let is_exempt = |peer: &Peer| match peer {
        Peer::Tag(tag) => {
            exempt.iter().any(|own| matches!(own, Peer::Tag(own) if own.eq_ignore_ascii_case(tag)))
        }
        Peer::Any | Peer::Net(_) | Peer::Group(_) | Peer::Unknown(_) => false,
    };
    if !rule.sources.iter().any(is_exempt) {
        return rule.bounds.maybe.clone();
    }
    let rest: Vec<Peer> = rule.sources.iter().filter(|peer| !is_exempt(peer)).cloned().collect();
    if rest.is_empty() { AddressSet::empty() } else { Bounds::of(&rest, Some(network)).maybe }
}

fn gate<'a>(
    address: &'a Address,
    firewall: &'a FirewallId,
    observed: Option<&'a Observed>,
    cluster: &Cluster,
) -> Gate<'a> {
    let mut rules: Vec<&Rule> = observed.iter().flat_map(|observed| &observed.rules).collect();
    rules.sort_by_key(|rule| rule.priority);
    let judge = |rule: &'a Rule| {
        let destination = destination(address, &rule.destinations)?;
        let from_every_port = PortRange::merged(rule.source_ports.clone()) == [PortRange::ALL];
        Some(Judge {
            name: &rule.name,
            does: Does::of(rule.access),
            settled: is_settled(rule.provisioning),
            protocol: &rule.protocol,
            ports: &rule.ports,
            sources: &rule.sources,
            bounds: Bounds::of(&rule.sources, Some(&address.network)),
            certain: destination == Certainty::Surely && from_every_port,
            is_lock: matches!(names::parse_name(cluster, &rule.name), Some(Mark::Deny { .. }))
                && Does::of(rule.access) == Does::Deny,
        })
    };
    Gate {
        firewall,
        rules: rules.into_iter().filter_map(judge).collect(),
        read: observed.is_some(),
        settled: observed.is_some_and(|observed| is_settled(observed.provisioning)),
        network: &address.network,
    }
}

fn admin_judge<'a>(address: &'a Address, rule: &'a AdminRule) -> Option<Judge<'a>> {
    let destination = destination(address, &rule.destinations)?;
    Some(Judge {
        name: &rule.name,
        does: match rule.action {
            AdminAction::Allow => Does::Allow,
            AdminAction::AlwaysAllow => Does::Bypass,
            AdminAction::Deny => Does::Deny,
        },
        settled: true,
        protocol: &rule.protocol,
        ports: &rule.ports,
        sources: &rule.sources,
        bounds: Bounds::of(&rule.sources, Some(&address.network)),
        certain: destination == Certainty::Surely,
        is_lock: false,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Certainty {
    Surely,
    Maybe,
}

/// Whether a list of destinations matches the address: none for certainly not.
fn destination(address: &Address, peers: &[Peer]) -> Option<Certainty> {
    let member = |id: &ArmId| {
        let set = if address.groups.contains(id) {
            AddressSet::of_hosts([address.ip])
        } else {
            AddressSet::empty()
        };
        Bounds { surely: set.clone(), maybe: set }
    };
    let bounds = Bounds::with_groups(peers, Some(&address.network), member);
    if bounds.surely.has(address.ip) {
        Some(Certainty::Surely)
    } else {
        bounds.maybe.has(address.ip).then_some(Certainty::Maybe)
    }
}
