//! What can be told of a lock from a read of its firewall, before it or anything under it is written.

use std::net::IpAddr;

use jiff::Timestamp;

use super::changes;
use super::desired::{Limits, Lock, Wanted};
use super::model::{Access, MAX_PRIORITY, MIN_PRIORITY, Observed, Peer, Provisioning, Rule, RuleProtocol};
use super::names::{self, Cluster, Mark};
use super::packets::Reach;
use super::priority::Slots;
use super::report::Problem;
use crate::api::Reason;
use crate::api::values::{PortRange, Protocol};

/// What a policy that only looks, or only says what it would do, would come up against if it locked.
#[must_use]
pub fn obstacle(
    observed: &Observed,
    lock: &Lock,
    cluster: &Cluster,
    limits: Limits,
    now: Timestamp,
) -> Option<Problem> {
    let wanted = Wanted {
        cluster: cluster.clone(),
        locks: vec![lock.clone()],
        unheard: std::collections::BTreeSet::new(),
        grants: Vec::new(),
        orphans: std::collections::BTreeSet::new(),
        honour_denies_below: 0,
        max_allows: 0,
        standing: Vec::new(),
        placed: Vec::new(),
    };
    let changes = changes::plan(observed, &wanted, &limits, now);
    let refused = changes.refused.into_iter().find(|refused| refused.owner_uid == lock.policy_uid);
    if let Some(refused) = refused {
        return Some(Problem { reason: refused.reason, message: refused.message });
    }
    let mut locked = observed.clone();
    locked.rules.retain(|rule| !changes.locks.iter().any(|new| new.name == rule.name));
    locked.rules.extend(changes.locks);
    let crowded = without_room(&locked, cluster);
    let mut machines = lock.machines.iter();
    machines.find_map(|machine| first_of(&crowded, &machine.addresses, &machine.ports))
}

/// A deny of ours above which there is no priority number for a grant.
#[derive(Clone, Debug)]
pub struct Crowded {
    reach: Reach,
    why: String,
}

/// The denies of ours that leave grants no number. Where a grant has one now, that is one for the next.
#[must_use]
pub fn without_room(observed: &Observed, cluster: &Cluster) -> Vec<Crowded> {
    let slots = Slots::of(observed);
    let Some(free) = slots.free().next() else { return Vec::new() };
    let below = observed.rules.iter().filter(|rule| rule.priority < free && rule.priority <= MAX_PRIORITY);
    let (mut denies, mut others, mut for_grants) = (Vec::new(), Vec::new(), u16::MAX);
    for rule in below {
        match (names::parse(cluster, rule), rule.access) {
            (Some(Mark::Deny { .. }), Access::Deny) => denies.push(rule),
            (Some(Mark::Allow { .. }), _) => for_grants = for_grants.min(rule.priority),
            (Some(_), _) => {}
            (None, _) => others.push(rule.priority),
        }
    }
    let crowded = denies.into_iter().filter(|deny| for_grants > deny.priority);
    crowded.map(|deny| crowded_by(observed, cluster, deny, &others)).collect()
}

/// Why no number is left above a deny.
fn crowded_by(observed: &Observed, cluster: &Cluster, deny: &Rule, others: &[u16]) -> Crowded {
    let reach = Reach::of(deny, None);
    let pushes = |rule: &&Rule| {
        (deny.priority..=MAX_PRIORITY).contains(&rule.priority)
            && rule.access == Access::Allow
            && names::parse(cluster, rule).is_none()
            && Reach::of(rule, None).meets(&reach)
    };
    let cause = match observed.rules.iter().filter(pushes).min_by_key(|rule| rule.priority) {
        Some(rule) => {
            format!(
                "has to stand above rule {} at priority {}: give that a higher number",
                rule.name, rule.priority
            )
        }
        None => match others.iter().filter(|other| **other < deny.priority).max() {
            Some(other) => format!(
                "has rules of others up to priority {other} above it: give one of them a higher number"
            ),
            None => "has other rules of ours above it at every number".to_owned(),
        },
    };
    let why = format!("no priority number is left above the deny at {}, which {cause}", deny.priority);
    Crowded { reach, why }
}

/// What is to be said of machines' addresses and ports: the first port without room for grants, and why.
#[must_use]
pub fn first_of(
    crowded: &[Crowded],
    addresses: &[IpAddr],
    ports: &[(Protocol, PortRange)],
) -> Option<Problem> {
    if crowded.is_empty() {
        return None;
    }
    ports.iter().find_map(|(protocol, ports)| {
        let packets = Reach::of(&probe(addresses, *protocol, *ports), None);
        let deny = crowded.iter().find(|one| one.reach.meets(&packets))?;
        let message = format!("no grant of port {ports} can be opened: {}", deny.why);
        Some(Problem { reason: Reason::NoPriorityRoom, message })
    })
}

/// A rule for everything that is locked of a machine's port.
fn probe(addresses: &[IpAddr], protocol: Protocol, ports: PortRange) -> Rule {
    Rule {
        name: String::new(),
        priority: MIN_PRIORITY,
        access: Access::Allow,
        protocol: RuleProtocol::Transport(protocol),
        sources: vec![Peer::Any],
        source_ports: vec![PortRange::ALL],
        destinations: addresses.iter().copied().map(Peer::host).collect(),
        ports: vec![ports],
        translation: None,
        description: String::new(),
        provisioning: Provisioning::Succeeded,
    }
}
