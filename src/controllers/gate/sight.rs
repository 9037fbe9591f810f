//! What a round says of what it read.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use super::round::Round;
use super::{News, Report, lock};
use crate::api::Reason;
use crate::plan::changes;
use crate::plan::desired::{Changes, Duty, Grant};
use crate::plan::exposure;
use crate::plan::lifecycle::Seen;
use crate::plan::model::{Access, Observed, Provisioning, Rule};
use crate::plan::names;

impl Round<'_> {
    /// Says what was seen. `after` is what would be left to do.
    pub(super) fn report(&mut self, observed: &Observed, after: &Changes) {
        let cluster = &self.wanted.cluster;
        let of_a_lock = |rule: &&Rule| {
            matches!(names::parse(cluster, rule), Some(names::Mark::Deny { .. } | names::Mark::Exempt { .. }))
        };
        self.memory.standing = observed.rules.iter().filter(of_a_lock).cloned().collect();
        self.memory.placed.saw(cluster, observed, &self.wanted.locks);
        let settled = observed.provisioning == Provisioning::Succeeded;
        let mut grants = HashMap::new();
        for grant in &self.wanted.grants {
            let seen = self.seen(grant, observed, after, settled);
            if matches!(seen, Seen::Present { .. }) {
                self.hold(grant);
                lock(&self.gate.unanswered).landed(&grant.name);
            }
            grants.insert(grant.name.clone(), seen);
        }
        for name in lock(&self.gate.duties).grants.keys() {
            if names::parse_name(cluster, name).is_none() {
                let message = format!(
                    "rule {name} is not of this cluster: put the id that it was made under into previousClusterIds"
                );
                grants.insert(name.clone(), Seen::Trying { reason: Reason::NotTrusted, message });
            }
        }
        let mut unfinished: BTreeSet<&str> =
            after.refused.iter().map(|refused| refused.owner_uid.as_str()).collect();
        let cluster = &self.wanted.cluster;
        let lock_names = after
            .locks
            .iter()
            .map(|rule| rule.name.as_str())
            .chain(after.unlocks.iter().chain(&after.unsettled).map(String::as_str));
        let pending: Vec<String> = lock_names
            .filter_map(|name| match names::parse_name(cluster, name)? {
                names::Mark::Deny { owner, .. } | names::Mark::Exempt { owner, .. } => Some(owner),
                names::Mark::Allow { .. } => None,
            })
            .collect();
        for lock in &self.wanted.locks {
            let to_cut = lock.cut_sessions && after.cut_sessions;
            if !settled || to_cut || pending.contains(&names::uid12(&lock.policy_uid)) {
                unfinished.insert(&lock.policy_uid);
            }
        }
        let locked = self
            .wanted
            .locks
            .iter()
            .filter(|lock| !unfinished.contains(lock.policy_uid.as_str()))
            .map(|lock| (lock.policy_uid.clone(), lock.clone()))
            .collect();
        {
            let mut duties = lock(&self.gate.duties);
            duties
                .orphans
                .retain(|name| observed.rule(name).is_some_and(|rule| rule.access == Access::Allow));
        }
        *lock(&self.gate.report) = Report {
            observed: Some(Arc::new(observed.clone())),
            gone: false,
            error: self.error.clone(),
            refused: after.refused.clone(),
            grants,
            locked,
        };
        self.tell();
    }

    fn seen(&self, grant: &Grant, observed: &Observed, after: &Changes, settled: bool) -> Seen {
        let at = observed.at;
        let standing = observed.rule(&grant.name);
        if self.unrecorded.contains(&grant.name) {
            let message = "its audit record cannot be written to standard output".to_owned();
            return Seen::Trying { reason: Reason::AuditUnavailable, message };
        }
        let trying = || match self.failed.get(&grant.name).or(self.failed.get("")) {
            Some(error) => Seen::Trying { reason: error.kind.reason(), message: error.to_string() },
            None if observed.provisioning == Provisioning::Failed => Seen::Trying {
                reason: Reason::CloudUnavailable,
                message: format!("the cloud says that its last write to {} failed", observed.firewall),
            },
            None => Seen::Nothing,
        };
        match grant.duty {
            Duty::Close { .. } => {
                let lets_in = standing.is_some_and(|rule| rule.access == Access::Allow);
                // A deny in the rule's place, under a lock that forbids its removal, has to be in force.
                let in_force = standing.is_none_or(|rule| rule.provisioning == Provisioning::Succeeded);
                let proved = self.sent.contains(&grant.name) && !self.unread.contains(&grant.name);
                if proved && lock(&self.gate.unanswered).may_land(&grant.name) {
                    return Seen::Trying {
                        reason: Reason::CloudUnavailable,
                        message: format!(
                            "a write of rule {} was never answered and may yet land: it is removed until it no longer can",
                            grant.name
                        ),
                    };
                }
                if proved && settled && in_force && !lets_in {
                    let removal = lock(&self.gate.duties).closing.get(&grant.name).copied();
                    Seen::Absent { at, by_us: removal.is_some_and(|removal| removal.by_us) }
                } else {
                    trying()
                }
            }
            Duty::Hold | Duty::Open { .. } => {
                if after.lost.contains(&grant.name) || self.lost.contains(&grant.name) {
                    return Seen::Lost { at };
                }
                if let Some(refused) =
                    after.refused.iter().find(|refused| refused.rule.as_deref() == Some(grant.name.as_str()))
                {
                    return Seen::Refused { reason: refused.reason, message: refused.message.clone() };
                }
                let waits = after.opens.iter().any(|rule| rule.name == grant.name);
                match standing {
                    Some(rule) if settled && rule.provisioning == Provisioning::Succeeded && !waits => {
                        let stopped = exposure::stopped_by(observed, &self.wanted.cluster, grant);
                        let shadowed_by = stopped.map(|rule| rule.to_string());
                        Seen::Present { at, priority: rule.priority, shadowed_by }
                    }
                    _ => self.memory.refused.get(&grant.name).cloned().unwrap_or_else(trying),
                }
            }
        }
    }

    /// Remembers of the rules that are about to be removed which still stand as granted.
    pub(super) fn note_standing(&self, observed: &Observed) {
        let about_to_go = self.wanted.grants.iter().filter(|grant| grant.duty == Duty::Close { sent: false });
        let mut duties = lock(&self.gate.duties);
        for grant in about_to_go.filter(|grant| changes::stands(observed, &self.wanted.cluster, grant)) {
            if let Some(removal) = duties.closing.get_mut(&grant.name) {
                removal.by_us = true;
            }
        }
    }

    /// What was seen as there is held from now on: if it goes missing, somebody closed it.
    fn hold(&self, grant: &Grant) {
        if let Some(known) = lock(&self.gate.duties).grants.get_mut(&grant.name)
            && matches!(known.duty, Duty::Open { .. })
        {
            known.duty = Duty::Hold;
        }
    }

    pub(super) fn tell(&self) {
        let owners = lock(&self.gate.duties).owners();
        let _ = self.inner.news.send(News::Changed(owners));
    }
}
