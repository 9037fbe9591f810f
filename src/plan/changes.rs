//! From what a firewall holds and what is wanted of it, to what to do.
//!
//! | the rule is | and | then |
//! |---|---|---|
//! | an allow of ours | past its deadline, unreadable, or to be closed | closed |
//! | an allow of ours | not what its grant says | closed, and its grant is lost |
//! | an allow of ours | nobody's, and not overdue | left: only a sweep may judge it |
//! | an allow of ours by name, but a deny | no grant needs its name | removed once no resource lock forbids it |
//! | a deny of a policy | as wanted, well placed, written well | left |
//! | a deny of a policy | not as wanted | written in its place, as a union while others are not there yet |
//! | a deny of a policy | not wanted | removed, once nothing wanted rests on it |
//! | a deny of no policy | wholly covered by denies that stand | removed (adopted) |
//! | a deny of no policy | else | left; turned back into a deny if somebody made it an allow |
//! | an exemption | as wanted, and its deny is there or on its way | left |
//! | an exemption | else | removed |
//! | anything else | | somebody else's: never written, never removed |
//!
//! A firewall that leads packets on holds allows alone: those lines, and no others, hold for it.
//!
//! Whichever of the changes are made, in order: nothing opens that was closed and is to stay closed.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::desired::{Changes, Drift, Duty, Grant, Limits, Refused, Wanted};
use super::model::{
    Access, MAX_PRIORITY, Observed, Peer, Provisioning, ResourceLock, Rule, RuleProtocol, Translating,
};
use super::names::{self, Cluster, Mark};
use super::packets::Reach;
use super::priority::Slots;
use super::sources::without_overlaps;
use crate::api::Reason;
use crate::api::values::PortRange;

mod closes;
mod dnat;
mod exemptions;
mod locks;
mod opens;

/// What to do on a firewall. Sorted; the same arguments give the same changes, whatever their order.
///
/// Nothing in it touches a rule of somebody else. What cannot be done is in [`Changes::refused`]; a lock that
/// cannot go above every rule that lets traffic in is written all the same, as high as it can go.
#[must_use]
pub fn plan(observed: &Observed, wanted: &Wanted, limits: &Limits, now: Timestamp) -> Changes {
    let mut draft = Draft::new(observed, wanted, *limits, now);
    closes::plan(&mut draft);
    draft.find_live();
    if draft.translating.is_some() {
        // It lets in nothing that no rule leads on: nothing is locked there.
        opens::plan(&mut draft);
        return draft.finish();
    }
    let mut shut = locks::plan(&mut draft);
    exemptions::plan(&mut draft, &mut shut);
    draft.changes.cut_sessions = observed.cuts_sessions == Some(false)
        && wanted.locks.iter().any(|lock| lock.cut_sessions && !lock.machines.is_empty());
    locks::unlock(&mut draft, &shut);
    opens::plan(&mut draft);
    closes::choose_denies(&mut draft);
    draft.finish()
}

/// The rule of a grant, at a priority.
#[must_use]
pub fn grant_rule(cluster: &Cluster, grant: &Grant, priority: u16) -> Rule {
    let mut destinations = grant.destinations.clone();
    destinations.sort_unstable();
    destinations.dedup();
    Rule {
        name: grant.name.clone(),
        priority,
        access: Access::Allow,
        protocol: RuleProtocol::Transport(grant.protocol),
        sources: without_overlaps(&grant.sources).into_iter().map(Peer::Net).collect(),
        source_ports: vec![PortRange::ALL],
        destinations: destinations.into_iter().map(Peer::host).collect(),
        ports: PortRange::merged(grant.ports.clone()),
        translation: grant.translation,
        description: names::description(cluster, &grant.request_uid, Some(grant.deadline)),
        provisioning: Provisioning::Succeeded,
    }
}

/// Whether the rule of a grant stands as it was granted.
#[must_use]
pub fn stands(observed: &Observed, cluster: &Cluster, grant: &Grant) -> bool {
    observed.rule(&grant.name).is_some_and(|rule| {
        rule.provisioning != Provisioning::Failed
            && rule.same_effect(&grant_rule(cluster, grant, rule.priority))
    })
}

/// A rule and the packets that it may match.
struct Placed<'a> {
    rule: &'a Rule,
    reach: Reach,
}

/// A plan in the making.
struct Draft<'a> {
    observed: &'a Observed,
    wanted: &'a Wanted,
    limits: Limits,
    now: Timestamp,
    /// Rules of somebody else that people or programs wrote, by priority.
    foreign: Vec<Placed<'a>>,
    /// Rules of ours, by name.
    own: Vec<(Mark, &'a Rule)>,
    /// Rules of live grants that stand and stay.
    live: Vec<Placed<'a>>,
    slots: Slots,
    /// What stands there, where it leads packets on.
    translating: Option<&'a Translating>,
    /// Rules and addresses, with those of this plan.
    rules: usize,
    addresses: usize,
    /// What our denies shut out, and where they stand or are to stand.
    denies: Vec<(Reach, u16)>,
    /// Names in lower case that are in use, with those of this plan.
    names: BTreeSet<String>,
    changes: Changes,
}

impl<'a> Draft<'a> {
    fn new(observed: &'a Observed, wanted: &'a Wanted, limits: Limits, now: Timestamp) -> Self {
        let (mut foreign, mut own) = (Vec::new(), Vec::new());
        // The cloud's own rules come last, where there are such.
        let written = |rule: &&Rule| rule.priority <= MAX_PRIORITY || observed.translating.is_some();
        for rule in observed.rules.iter().filter(written) {
            match names::parse(&wanted.cluster, rule) {
                Some(mark) => own.push((mark, rule)),
                None => foreign.push(Placed { rule, reach: Reach::of(rule, None) }),
            }
        }
        foreign.sort_by_key(|placed| placed.rule.priority);
        own.sort_by(|(_, left), (_, right)| left.name.cmp(&right.name));
        let denies = own.iter().filter(|(_, rule)| rule.access == Access::Deny);
        let denies = denies.map(|(_, rule)| (Reach::of(rule, None), rule.priority)).collect();
        Self {
            observed,
            wanted,
            limits,
            now,
            foreign,
            own,
            live: Vec::new(),
            slots: Slots::of(observed),
            translating: observed.translating.as_ref(),
            rules: observed.rule_count(),
            addresses: observed.address_count(),
            denies,
            names: observed.rules.iter().map(|rule| rule.name.to_ascii_lowercase()).collect(),
            changes: Changes::default(),
        }
    }

    /// Finds the rules of grants that no close of this plan takes away.
    fn find_live(&mut self) {
        let live = self.wanted.grants.iter().filter(|grant| is_live(grant, self.now));
        let names: BTreeSet<String> = live.map(|grant| grant.name.to_ascii_lowercase()).collect();
        let standing = self.own.iter().filter(|(mark, rule)| {
            matches!(mark, Mark::Allow { .. })
                && rule.access == Access::Allow
                && names.contains(&rule.name.to_ascii_lowercase())
                && !self.is_closing(&rule.name)
        });
        self.live = standing.map(|(_, rule)| Placed { rule, reach: Reach::of(rule, None) }).collect();
    }

    fn refuse(&mut self, owner_uid: &str, rule: Option<&str>, reason: Reason, message: String) {
        let rule = rule.map(ToOwned::to_owned);
        self.changes.refused.push(Refused { owner_uid: owner_uid.to_owned(), rule, reason, message });
    }

    /// Whether the firewall's own limits hold one more rule, or the same rule with other addresses.
    fn has_room(&self, new: &Rule, old: Option<&Rule>, limits: Limits) -> bool {
        let grown = self.rules + usize::from(old.is_none());
        let addresses = self.addresses + size(new) - old.map_or(0, size).min(self.addresses);
        (grown <= limits.rules || old.is_some())
            && (addresses <= limits.addresses || old.is_some_and(|old| size(new) <= size(old)))
    }

    /// Books a write: its place, its name and its share of the limits.
    fn book(&mut self, new: &Rule, old: Option<&Rule>) {
        self.rules += usize::from(old.is_none());
        self.addresses = self.addresses + size(new) - old.map_or(0, size).min(self.addresses);
        self.slots.take(new.priority);
        self.names.insert(new.name.to_ascii_lowercase());
        if new.access == Access::Deny {
            self.denies.push((Reach::of(new, None), new.priority));
        }
    }

    /// The lowest priority number at which a deny of ours shuts out some of these packets.
    fn first_deny(&self, reach: &Reach) -> Option<u16> {
        self.denies.iter().filter(|(deny, _)| deny.meets(reach)).map(|(_, priority)| *priority).min()
    }

    /// Denies of others that may match some of these packets, by priority.
    fn foreign_denies(&self, reach: &Reach) -> Vec<&'a Rule> {
        let meeting = self
            .foreign
            .iter()
            .filter(|placed| placed.rule.access == Access::Deny && placed.reach.meets(reach));
        meeting.map(|placed| placed.rule).collect()
    }

    /// The grant whose rule has this name.
    fn grant(&self, name: &str) -> Option<&'a Grant> {
        self.wanted.grants.iter().find(|grant| grant.name.eq_ignore_ascii_case(name))
    }

    fn is_closing(&self, name: &str) -> bool {
        self.changes.closes.iter().any(|close| close.name.eq_ignore_ascii_case(name))
    }

    fn policy_uid(&self, owner: &str) -> Option<&'a str> {
        let lock = self.wanted.locks.iter().find(|lock| names::uid12(&lock.policy_uid) == owner);
        lock.map(|lock| lock.policy_uid.as_str())
    }

    fn finish(mut self) -> Changes {
        self.heed_resource_lock();
        self.find_drift();
        let own: BTreeSet<&str> = self.wanted.grants.iter().map(|grant| grant.name.as_str()).collect();
        let unsettled = self.own.iter().filter(|(mark, rule)| {
            rule.provisioning == Provisioning::Updating
                && (!matches!(mark, Mark::Allow { .. }) || own.contains(rule.name.as_str()))
                && !self.is_closing(&rule.name)
        });
        let mut unsettled: Vec<String> = unsettled.map(|(_, rule)| rule.name.clone()).collect();
        let mut changes = self.changes;
        unsettled.retain(|name| {
            !changes.unlocks.contains(name)
                && !changes.locks.iter().chain(&changes.opens).any(|rule| rule.name == *name)
        });
        changes.unsettled = unsettled;
        changes.unsettled.sort();
        changes.closes.sort_by(|left, right| left.name.cmp(&right.name));
        changes.locks.sort_by_key(|rule| (rule.access == Access::Allow, rule.name.clone()));
        // Exemptions before denies.
        let cluster = &self.wanted.cluster;
        changes.unlocks.sort_by_key(|name| {
            (!matches!(names::parse_name(cluster, name), Some(Mark::Exempt { .. })), name.clone())
        });
        changes.unlocks.dedup();
        changes.lost.sort();
        changes.lost.dedup();
        changes.drift.sort_by(|left, right| left.rule.cmp(&right.rule));
        let key = |refused: &Refused| {
            (refused.owner_uid.clone(), refused.rule.clone(), refused.reason, refused.message.clone())
        };
        changes.refused.sort_by_key(key);
        changes.refused.dedup();
        changes
    }

    /// Takes out what a resource lock is known to refuse, and says so. Closes are always sent.
    fn heed_resource_lock(&mut self) {
        let (stopped, message) = match self.observed.lock {
            ResourceLock::None => return,
            ResourceLock::CannotDelete => (
                std::mem::take(&mut self.changes.unlocks),
                "a CanNotDelete lock on the firewall forbids the removal of",
            ),
            ResourceLock::ReadOnly => {
                let mut names = std::mem::take(&mut self.changes.unlocks);
                names.extend(std::mem::take(&mut self.changes.locks).into_iter().map(|rule| rule.name));
                self.refuse_to_cut();
                (names, "a ReadOnly lock on the firewall forbids the change of")
            }
        };
        for name in stopped {
            let owner = match names::parse_name(&self.wanted.cluster, &name) {
                Some(Mark::Deny { owner, .. } | Mark::Exempt { owner, .. }) => owner,
                Some(Mark::Allow { .. }) | None => continue,
            };
            if let Some(uid) = self.policy_uid(&owner) {
                self.refuse(uid, None, Reason::ScopeLocked, format!("{message} rule {name}"));
            }
        }
    }

    fn refuse_to_cut(&mut self) {
        if std::mem::take(&mut self.changes.cut_sessions) {
            let wanted = self.wanted;
            for lock in wanted.locks.iter().filter(|lock| lock.cut_sessions) {
                let message = "a ReadOnly lock on the firewall forbids to set flushConnection".to_owned();
                self.refuse(&lock.policy_uid, None, Reason::ScopeLocked, message);
            }
        }
    }

    /// What somebody else did to rules of locks, as far as this plan repairs it.
    fn find_drift(&mut self) {
        let mut drift = Vec::new();
        for (mark, rule) in &self.own {
            let (Mark::Deny { owner, .. } | Mark::Exempt { owner, .. }) = mark else { continue };
            let repaired = self.changes.locks.iter().any(|new| new.name == rule.name);
            if !repaired && !self.changes.unlocks.contains(&rule.name) {
                continue;
            }
            let uid = self.policy_uid(owner).unwrap_or(owner);
            let known = self.wanted.standing.iter().find(|known| known.name.eq_ignore_ascii_case(&rule.name));
            let changed = known.map_or_else(
                || self.never_ours(mark, rule, uid),
                |known| {
                    !known.same_effect(rule)
                        || known.priority != rule.priority
                        || known.description != rule.description
                },
            );
            if changed {
                drift.push(Drift { policy_uid: uid.to_owned(), rule: rule.name.clone(), removed: false });
            }
        }
        for known in &self.wanted.standing {
            let (Some(Mark::Deny { owner, .. } | Mark::Exempt { owner, .. }), None) =
                (names::parse_name(&self.wanted.cluster, &known.name), self.observed.rule(&known.name))
            else {
                continue;
            };
            let repaired = self.changes.locks.iter().any(|new| new.same_effect(known));
            if let (true, Some(uid)) = (repaired, self.policy_uid(&owner)) {
                drift.push(Drift { policy_uid: uid.to_owned(), rule: known.name.clone(), removed: true });
            }
        }
        self.changes.drift = drift;
    }

    /// Whether a rule of a lock has something that we never write.
    fn never_ours(&self, mark: &Mark, rule: &Rule, uid: &str) -> bool {
        let is_deny = matches!(mark, Mark::Deny { .. });
        let access = if is_deny { Access::Deny } else { Access::Allow };
        rule.access != access
            || (is_deny && rule.sources != [Peer::Any])
            || rule.source_ports != [PortRange::ALL]
            || (self.policy_uid(&names::uid12(uid)).is_some()
                && rule.description != names::description(&self.wanted.cluster, uid, None))
    }
}

/// What a rule counts against the limit of addresses.
fn size(rule: &Rule) -> usize {
    rule.sources.len() + rule.destinations.len()
}

/// Whether the live rule of a grant: to be opened or held, and not past its deadline.
fn is_live(grant: &Grant, now: Timestamp) -> bool {
    now < grant.deadline
        && match grant.duty {
            Duty::Open { .. } | Duty::Hold => true,
            Duty::Close { .. } => false,
        }
}
