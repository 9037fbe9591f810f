//! Whose turn it is: limits are judged by what is granted, not by what a cache shows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};

use crate::api::JitAccessRequest;
use crate::plan::lifecycle::state;

/// Who holds a grant, so that limits are judged by what is granted and not by what a cache shows.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashMap<String, Holder>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    requester: String,
    policies: BTreeSet<String>,
}

impl Turns {
    /// Takes note of where a request stands by its durable status.
    pub(super) fn note(&self, request: &JitAccessRequest) {
        let Some(uid) = request.metadata.uid.clone() else { return };
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state(request).holds_rules() {
            holders.insert(uid, holder(request));
        } else {
            holders.remove(&uid);
        }
    }

    /// Forgets requests that are gone.
    pub fn keep_only(&self, live: &BTreeSet<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| live.contains(uid));
    }

    /// Why there is no room for one more grant under these limits; takes the place where there is.
    pub(super) fn take(
        &self,
        request: &JitAccessRequest,
        limits: &BTreeMap<String, (usize, usize)>,
    ) -> Option<String> {
        let uid = request.metadata.uid.clone()?;
        let mut holder = holder(request);
        holder.policies = limits.keys().cloned().collect();
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (policy, (for_one, altogether)) in limits {
            let under =
                || holders.iter().filter(|(other, held)| **other != uid && held.policies.contains(policy));
            let all = under().count();
            let own = under().filter(|(_, held)| held.requester == holder.requester).count();
            if own >= *for_one {
                return Some(format!(
                    "waits: {own} grants of {} are live (spec.limits.activePerRequester)",
                    holder.requester
                ));
            }
            if all >= *altogether {
                return Some(format!("waits: {all} grants are live under the policy (spec.limits.active)"));
            }
        }
        holders.insert(uid, holder);
        None
    }

    /// How many grants are live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn holder(request: &JitAccessRequest) -> Holder {
    let status = request.status.as_ref();
    Holder {
        requester: request.spec.requester.as_ref().map(|user| user.username.clone()).unwrap_or_default(),
        policies: status
            .into_iter()
            .flat_map(|status| &status.policies)
            .map(|policy| policy.uid.clone())
            .collect(),
    }
}
