//! What can be told of a lock from a read of its firewall, before it or anything under it is written.

use super::changes;
use super::desired::{Limits, Lock, Wanted};
use super::model::{Access, MIN_PRIORITY, Observed, Peer, Provisioning, Rule, RuleProtocol};
use super::names::{self, Cluster, Mark};
use super::packets::Reach;
use super::priority::Slots;
use super::report::Problem;
use crate::api::Reason;
use crate::api::values::PortRange;
use jiff::Timestamp;

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
        grants: Vec::new(),
        orphans: std::collections::BTreeSet::new(),
        honour_denies_below: 0,
        max_allows: 0,
        standing: Vec::new(),
    };
    let changes = changes::plan(observed, &wanted, &limits, now);
    let refused = changes.refused.into_iter().find(|refused| refused.owner_uid == lock.policy_uid);
    if let Some(refused) = refused {
        return Some(Problem { reason: refused.reason, message: refused.message });
    }
    let mut locked = observed.clone();
    locked.rules.retain(|rule| !changes.locks.iter().any(|new| new.name == rule.name));
    locked.rules.extend(changes.locks);
    without_room(&locked, lock, cluster)
}

/// Why no grant can be opened under a lock that stands: there is no priority number above its denies.
#[must_use]
pub fn without_room(observed: &Observed, lock: &Lock, cluster: &Cluster) -> Option<Problem> {
    let slots = Slots::of(observed);
    let ours = |rule: &Rule| names::parse(cluster, rule);
    lock.machines.iter().find_map(|machine| {
        machine.ports.iter().find_map(|(protocol, ports)| {
            let packets = Reach::of(&probe(machine, RuleProtocol::Transport(*protocol), *ports), None);
            let denies = observed.rules.iter().filter(|rule| {
                matches!(ours(rule), Some(Mark::Deny { .. }))
                    && rule.access == Access::Deny
                    && Reach::of(rule, None).meets(&packets)
            });
            let first = denies.map(|deny| deny.priority).min()?;
            // One that a grant has now is one for the next.
            let a_grants = |rule: &Rule| {
                rule.priority < first && matches!(ours(rule), Some(Mark::Allow { .. }))
            };
            if slots.lowest_below(first).is_some() || observed.rules.iter().any(a_grants) {
                return None;
            }
            let below = observed.rules.iter().filter(|rule| {
                rule.priority > first
                    && rule.access == Access::Allow
                    && ours(rule).is_none()
                    && Reach::of(rule, None).meets(&packets)
            });
            let cause = match below.min_by_key(|rule| rule.priority) {
                Some(rule) if first == MIN_PRIORITY => format!(
                    "has to stand above rule {} at priority {}: give that a higher number",
                    rule.name, rule.priority
                ),
                _ => format!("has rules of others above it at every number from {MIN_PRIORITY} on: give one a higher number"),
            };
            let message = format!("no grant can be opened: no priority number is left above the deny at {first}, which {cause}");
            Some(Problem { reason: Reason::NoPriorityRoom, message })
        })
    })
}

/// A rule for everything that is locked of a machine's port.
fn probe(machine: &super::desired::LockedMachine, protocol: RuleProtocol, ports: PortRange) -> Rule {
    Rule {
        name: String::new(),
        priority: MIN_PRIORITY,
        access: Access::Allow,
        protocol,
        sources: vec![Peer::Any],
        source_ports: vec![PortRange::ALL],
        destinations: machine.addresses.iter().copied().map(Peer::host).collect(),
        ports: vec![ports],
        translation: None,
        description: String::new(),
        provisioning: Provisioning::Succeeded,
    }
}
