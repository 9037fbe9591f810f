//! What is wanted of one firewall, and how it changes.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::unanswered::Unanswered;
use crate::plan::desired::{Duty, Grant, Lock};
use crate::providers::Cloud;

/// What is wanted of a firewall.
#[derive(Default)]
pub(super) struct Duties {
    /// Ways to reach it, by the name of the credential.
    pub(super) clouds: BTreeMap<String, Cloud>,
    pub(super) locks: BTreeMap<String, Lock>,
    /// Policies that want to know of it, whether or not they lock anything, and the credential of each.
    pub(super) watchers: BTreeMap<String, String>,
    /// By the rule's name.
    pub(super) grants: BTreeMap<String, Grant>,
    /// The credential that a rule is to be opened by, by the rule's name.
    pub(super) openers: BTreeMap<String, String>,
    /// Names whose removal has begun. They are never opened again, whatever a stale cache says.
    pub(super) closing: BTreeMap<String, Removal>,
    pub(super) orphans: BTreeSet<String>,
    /// Policies with denies here, as far as that is known, that have not said yet what they want.
    pub(super) waits_for: BTreeSet<String>,
    /// Counts changes, so that a report can say what it is about.
    pub(super) version: u64,
    /// Since when the lease was held when the locks were given. In another term, others may have changed them.
    pub(super) term: Option<Timestamp>,
}

/// A removal of a rule of ours.
#[derive(Clone, Copy)]
pub(super) struct Removal {
    /// Since when it is wanted.
    pub(super) since: Timestamp,
    /// Whether nobody else removed it before: it stood as granted when the removal was first sent, or had never been
    /// seen.
    pub(super) by_us: bool,
}

impl Duties {
    /// The lease is held since then, or not: locks of another term are nobody's word any more. True: there were some.
    pub(super) fn in_term(&mut self, term: Option<Timestamp>) -> bool {
        if self.term == term {
            return false;
        }
        self.term = term;
        self.locks.clear();
        self.watchers.clear();
        true
    }

    /// Whether a rule of this name is one of a request that is known.
    pub(super) fn has_grant(&self, name: &str) -> bool {
        self.grants.keys().any(|own| own.eq_ignore_ascii_case(name))
    }

    /// The lock of a policy, and the credential to see to it by. True: something has changed.
    pub(super) fn set_lock(&mut self, policy_uid: &str, credential: &str, wanted: Option<Lock>) -> bool {
        let before = self.watchers.insert(policy_uid.to_owned(), credential.to_owned());
        let watched = before.as_deref() != Some(credential);
        if self.locks.get(policy_uid) == wanted.as_ref() {
            return watched;
        }
        match wanted {
            Some(lock) => self.locks.insert(policy_uid.to_owned(), lock),
            None => self.locks.remove(policy_uid),
        };
        true
    }

    /// Nothing of a policy is wanted any more.
    pub(super) fn forget(&mut self, policy_uid: &str) -> bool {
        let watched = self.watchers.remove(policy_uid).is_some();
        self.locks.remove(policy_uid).is_some() || watched
    }

    /// The rules of a request, and the credential to open them by.
    pub(super) fn set_grants(
        &mut self,
        request_uid: &str,
        credential: &str,
        wanted: Vec<Grant>,
        unanswered: &Unanswered,
        now: Timestamp,
    ) -> bool {
        let mut changed = false;
        let named: BTreeSet<String> = wanted.iter().map(|grant| grant.name.clone()).collect();
        // A request that has closed and read back its rules no longer names them.
        self.grants.retain(|name, grant| {
            let settled = grant.request_uid == request_uid
                && !named.contains(name)
                && grant.duty == (Duty::Close { sent: true })
                && !unanswered.may_land(name);
            changed |= settled;
            !settled
        });
        for grant in wanted {
            changed |= self.set_grant(credential, grant, now);
        }
        changed
    }

    fn set_grant(&mut self, credential: &str, mut grant: Grant, now: Timestamp) -> bool {
        let mut changed = false;
        if matches!(grant.duty, Duty::Open { .. }) {
            let before = self.openers.insert(grant.name.clone(), credential.to_owned());
            changed |= before.as_deref() != Some(credential);
        }
        if self.closing.contains_key(&grant.name) {
            grant.duty = Duty::Close { sent: false };
        }
        let Some(known) = self.grants.get_mut(&grant.name) else {
            grant.duty = grant.duty.taken_on(now);
            if matches!(grant.duty, Duty::Close { .. }) {
                let removal = Removal { since: now, by_us: false };
                self.closing.entry(grant.name.clone()).or_insert(removal);
            }
            self.grants.insert(grant.name.clone(), grant);
            return true;
        };
        // What was sent stays sent, and what was seen as there is no longer to be opened.
        match (known.duty, grant.duty) {
            (Duty::Close { .. }, _) => {
                // What has ended by now is no longer only replaced.
                changed |= known.replaced && !grant.replaced;
                known.replaced &= grant.replaced;
            }
            (Duty::Hold, Duty::Open { .. }) => {}
            (_, Duty::Close { .. }) => {
                changed |= close(known, &mut self.closing, now);
                known.replaced = grant.replaced;
            }
            (Duty::Open { .. } | Duty::Hold, Duty::Open { .. } | Duty::Hold) => {
                // Heard of before: in time, or too late, as it was then.
                if matches!(grant.duty, Duty::Open { .. }) {
                    grant.duty = known.duty;
                }
                changed |= *known != grant;
                *known = grant;
            }
        }
        changed
    }

    /// Closes the rules of a request.
    pub(super) fn end(&mut self, request_uid: &str, now: Timestamp) -> bool {
        let mut changed = false;
        for grant in self.grants.values_mut().filter(|grant| grant.request_uid == request_uid) {
            changed |= close(grant, &mut self.closing, now);
        }
        changed
    }

    /// A rule of a request was read back as gone by another replica. True: that is news.
    pub(super) fn is_gone(&mut self, name: &str, now: Timestamp) -> bool {
        self.closing.entry(name.to_owned()).or_insert(Removal { since: now, by_us: false });
        self.openers.remove(name);
        self.grants.remove(name).is_some()
    }

    /// UIDs of the policies and requests that something is wanted for.
    pub(super) fn owners(&self) -> BTreeSet<String> {
        self.watchers
            .keys()
            .chain(self.locks.keys())
            .chain(self.grants.values().map(|grant| &grant.request_uid))
            .cloned()
            .collect()
    }
}

/// Turns a duty into a removal; whether that is a change.
pub(super) fn close(grant: &mut Grant, closing: &mut BTreeMap<String, Removal>, now: Timestamp) -> bool {
    let by_us = match grant.duty {
        // What was seen as there is held: so it was not seen.
        Duty::Open { .. } => true,
        Duty::Hold => false,
        Duty::Close { .. } => return false,
    };
    (grant.duty, grant.replaced) = (Duty::Close { sent: false }, false);
    closing.insert(grant.name.clone(), Removal { since: now, by_us });
    true
}
