//! What a gate does while another replica holds the lease: it removes what that one has not removed in time.
//!
//! Only single rules, by their names, which are never used twice: such removals may be sent by several replicas, and in
//! any order. Nothing is read, and nothing is said of the firewall: that is for the holder.

use jiff::{SignedDuration, Timestamp};

use super::round::{Outcome, Round};
use super::{Gate, lock};
use crate::plan::desired::Duty;
use crate::plan::lease::GRACE;
use crate::plan::names;

/// What was due by then, and still stands as far as is known here, is removed now.
pub(in crate::controllers) fn due_by(now: Timestamp) -> Timestamp {
    now.checked_sub(grace()).unwrap_or(Timestamp::MIN)
}

fn grace() -> SignedDuration {
    SignedDuration::try_from(GRACE).unwrap_or_default()
}

/// When the next removal becomes due here, of those that were not yet due by `looked_at`.
pub(super) fn next_due(gate: &Gate, looked_at: Timestamp) -> Option<Timestamp> {
    if gate.firewall.kind().translates() {
        return None;
    }
    let duties = lock(&gate.duties);
    let due = duties.grants.values().filter_map(|grant| match grant.duty {
        Duty::Close { sent: true } => None,
        Duty::Close { sent: false } if grant.replaced => Some(grant.deadline),
        Duty::Close { sent: false } => duties.closing.get(&grant.name).map(|removal| removal.since),
        Duty::Hold | Duty::Open { .. } => Some(grant.deadline),
    });
    due.filter(|since| *since > looked_at).min()?.checked_add(grace()).ok()
}

impl Round<'_> {
    /// Removes what was due by `due_by`, and what a sweep found.
    pub(super) async fn stand_in(&mut self, due_by: Timestamp) -> Outcome {
        if self.inner.settings.dry_run || self.gate.firewall.kind().translates() {
            // For the holder to find again.
            lock(&self.gate.duties).orphans.retain(|name| !self.wanted.orphans.contains(name));
            return Outcome::Done;
        }
        let mut late = self.late(due_by);
        let cluster = &self.wanted.cluster;
        let is_allow =
            |name: &&String| matches!(names::parse_name(cluster, name), Some(names::Mark::Allow { .. }));
        late.extend(self.wanted.orphans.iter().filter(is_allow).cloned());
        for name in &late {
            self.remove(std::slice::from_ref(name)).await;
        }
        // What is not called as ours is read, and judged, by the holder.
        let seen_to = |name: &String| self.wanted.orphans.contains(name) && !self.failed.contains_key(name);
        lock(&self.gate.duties).orphans.retain(|name| !seen_to(name));
        if late.is_empty() || self.error.is_none() {
            return Outcome::Done;
        }
        self.has_failed()
    }

    fn late(&self, due_by: Timestamp) -> Vec<String> {
        let duties = lock(&self.gate.duties);
        let is_late = |name: &str| duties.closing.get(name).is_some_and(|removal| removal.since <= due_by);
        let unsent = self.wanted.grants.iter().filter(|grant| grant.duty == Duty::Close { sent: false });
        // What is only replaced is taken away by whoever puts the new rule there, unless its own time is over.
        let late = unsent
            .filter(|grant| if grant.replaced { grant.deadline <= due_by } else { is_late(&grant.name) });
        late.map(|grant| grant.name.clone()).collect()
    }
}
