//! The machines of every policy, as last read from the cloud.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use crate::plan::authorize::Resolved;

/// What took longer to read counts as if it had taken so long: addresses from before may be those of other machines by now.
const LONGEST: Duration = Duration::from_secs(300);
/// How long a grant may take once its machines are read: by then the API server is asked again for all that it rests on.
const GRANT: Duration = Duration::from_secs(15);

/// What a policy's entries select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Machines of each entry of `spec.targets`.
    pub machines: Arc<BTreeMap<String, Vec<Resolved>>>,
    /// Generation of the spec that was resolved.
    pub generation: i64,
    /// When the read began, by the clock that deadlines are judged by: what it says counts for so long.
    pub at: Timestamp,
    /// How long the read took.
    pub took: Duration,
}

/// How old a read may be that a grant rests on: `bound`. Where the longest of those that it rests on took more than half of
/// it, as long as that took and some time for the grant itself: else none could rest on what takes longer than `bound`.
#[must_use]
pub fn good_for(bound: Duration, longest: Duration) -> Duration {
    if longest <= bound / 2 {
        return bound;
    }
    bound.max(longest.min(LONGEST) + (bound / 4).max(GRANT))
}

/// The machines of every policy, by its UID. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Resolutions {
    known: Arc<Mutex<HashMap<String, Resolution>>>,
    /// Policies whose machines a grant waits for.
    wanted: Arc<Mutex<HashSet<String>>>,
}

impl Resolutions {
    /// Keeps what was read; whether the machines differ from those before.
    pub fn put(&self, policy_uid: &str, resolution: Resolution) -> bool {
        let mut all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let same = all.get(policy_uid).is_some_and(|before| {
            before.machines == resolution.machines && before.generation == resolution.generation
        });
        all.insert(policy_uid.to_owned(), resolution);
        !same
    }

    /// What was read for this generation of the policy; none where it was not read yet.
    #[must_use]
    pub fn get(&self, policy_uid: &str, generation: i64) -> Option<Resolution> {
        let all = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(policy_uid).filter(|resolution| resolution.generation == generation).cloned()
    }

    /// What was last read for any generation of the policy.
    #[must_use]
    pub fn latest(&self, policy_uid: &str) -> Option<Resolution> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).get(policy_uid).cloned()
    }

    /// A grant waits for the machines of a policy to be read again.
    pub fn want(&self, policy_uid: &str) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).insert(policy_uid.to_owned());
    }

    /// Whether a grant waits for the machines of a policy.
    #[must_use]
    pub fn is_wanted(&self, policy_uid: &str) -> bool {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).contains(policy_uid)
    }

    /// No grant waits any more: they were read.
    pub fn satisfied(&self, policy_uid: &str) {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner).remove(policy_uid);
    }

    /// Forgets a policy that is gone.
    pub fn forget(&self, policy_uid: &str) {
        self.satisfied(policy_uid);
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(policy_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_may_rest_on_a_read_that_took_long_and_on_none_from_long_ago() {
        let good_for =
            |bound, longest| good_for(Duration::from_secs(bound), Duration::from_secs(longest)).as_secs();
        assert_eq!(
            [0, 45, 46, 90, 300, 3600].map(|longest| good_for(60, longest)),
            [60, 60, 61, 105, 315, 315]
        );
        assert_eq!([0, 5, 6, 30].map(|longest| good_for(10, longest)), [10, 10, 21, 45]);
        assert_eq!([200, 250, 300, 3600].map(|longest| good_for(400, longest)), [400; 4]);
    }
}
