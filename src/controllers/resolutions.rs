//! The machines of every policy, as last read from the cloud.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;

use crate::plan::authorize::Resolved;

/// What a policy's entries select.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolution {
    /// Machines of each entry of `spec.targets`.
    pub machines: Arc<BTreeMap<String, Vec<Resolved>>>,
    /// Generation of the spec that was resolved.
    pub generation: i64,
    /// When the read began.
    pub at: Timestamp,
}

/// The machines of every policy, by its UID. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Resolutions(Arc<Mutex<HashMap<String, Resolution>>>);

impl Resolutions {
    /// Keeps what was read; whether the machines differ from those before.
    pub fn put(&self, policy_uid: &str, resolution: Resolution) -> bool {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let same = all.get(policy_uid).is_some_and(|before| {
            before.machines == resolution.machines && before.generation == resolution.generation
        });
        all.insert(policy_uid.to_owned(), resolution);
        !same
    }

    /// What was read for this generation of the policy; none where it was not read yet.
    #[must_use]
    pub fn get(&self, policy_uid: &str, generation: i64) -> Option<Resolution> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.get(policy_uid).filter(|resolution| resolution.generation == generation).cloned()
    }

    /// What was last read for any generation of the policy.
    #[must_use]
    pub fn latest(&self, policy_uid: &str) -> Option<Resolution> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(policy_uid).cloned()
    }

    /// Forgets a policy that is gone.
    pub fn forget(&self, policy_uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(policy_uid);
    }
}
