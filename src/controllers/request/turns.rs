//! Whose turn it is: limits are judged by what is granted, not by what a cache shows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::api::JitAccessRequest;
use crate::plan::lifecycle::state;

/// Who holds a grant, so that limits are judged by what is granted and not by what a cache shows.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashMap<String, Holder>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    requester: String,
    policies: BTreeSet<String>,
    /// Taken, and not yet in a durable status: neither a cache nor a list can know of it.
    taken: bool,
}

/// A turn that was taken. Dropped, it is given back, unless the durable status has it by then.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    uid: String,
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut holders = self.turns.holders();
        if holders.get(&self.uid).is_some_and(|holder| holder.taken) {
            holders.remove(&self.uid);
        }
    }
}

impl Turns {
    fn holders(&self) -> MutexGuard<'_, HashMap<String, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of where a request stands by its durable status.
    pub(super) fn note(&self, request: &JitAccessRequest) {
        let Some(uid) = request.metadata.uid.clone() else { return };
        let mut holders = self.holders();
        if state(request).holds_rules() {
            holders.insert(uid, holder(request));
        } else if holders.get(&uid).is_some_and(|holder| !holder.taken) {
            // A turn that is being used is not lost to an event from before it was taken.
            holders.remove(&uid);
        }
    }

    /// Forgets requests that are gone.
    pub fn keep_only(&self, live: &BTreeSet<String>) {
        self.holders().retain(|uid, holder| holder.taken || live.contains(uid));
    }

    /// Takes a place for one more grant under these limits.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn take(
        &self,
        request: &JitAccessRequest,
        limits: &BTreeMap<String, (usize, usize)>,
    ) -> Result<Turn, String> {
        let uid = request.metadata.uid.clone().unwrap_or_default();
        let mut holder = holder(request);
        holder.policies = limits.keys().cloned().collect();
        holder.taken = true;
        let mut holders = self.holders();
        for (policy, (for_one, altogether)) in limits {
            let under =
                || holders.iter().filter(|(other, held)| **other != uid && held.policies.contains(policy));
            let all = under().count();
            let own = under().filter(|(_, held)| held.requester == holder.requester).count();
            if own >= *for_one {
                return Err(format!(
                    "waits: {own} grants of {} are live (spec.limits.activePerRequester)",
                    holder.requester
                ));
            }
            if all >= *altogether {
                return Err(format!("waits: {all} grants are live under the policy (spec.limits.active)"));
            }
        }
        holders.insert(uid.clone(), holder);
        Ok(Turn { turns: self.clone(), uid })
    }

    /// How many grants are live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.holders().len()
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
        taken: false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{JitAccessRequestStatus, RequestedPolicy, State, UserInfo};

    fn request(uid: &str, state: State) -> JitAccessRequest {
        let mut request = JitAccessRequest::default();
        request.metadata.uid = Some(uid.to_owned());
        request.spec.requester = Some(UserInfo { username: "alice".into(), ..UserInfo::default() });
        request.status = Some(JitAccessRequestStatus {
            state: Some(state.as_str().into()),
            expires_at: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::MAX)),
            policies: vec![RequestedPolicy { uid: "policy".into(), ..RequestedPolicy::default() }],
            ..JitAccessRequestStatus::default()
        });
        request
    }

    fn one() -> BTreeMap<String, (usize, usize)> {
        BTreeMap::from([("policy".to_owned(), (1, 10))])
    }

    #[test]
    fn a_turn_is_held_while_it_is_used_whatever_lists_and_events_from_before_say() {
        let turns = Turns::default();
        let turn = turns.take(&request("a", State::Approved), &one()).unwrap();
        turns.keep_only(&BTreeSet::new());
        turns.note(&request("a", State::Approved));
        assert!(turns.take(&request("b", State::Approved), &one()).is_err(), "a has it");
        // Written ahead: from then on the durable status holds it.
        turns.note(&request("a", State::Opening));
        drop(turn);
        assert!(turns.take(&request("b", State::Approved), &one()).unwrap_err().contains("alice"));
        turns.note(&request("a", State::Expired));
        assert!(turns.take(&request("b", State::Approved), &one()).is_ok());
    }

    #[test]
    fn a_turn_that_came_to_nothing_is_given_back() {
        let turns = Turns::default();
        drop(turns.take(&request("a", State::Approved), &one()).unwrap());
        assert_eq!(turns.live(), 0);
        let _b = turns.take(&request("b", State::Approved), &one()).unwrap();
        turns.note(&request("c", State::Active));
        turns.keep_only(&BTreeSet::new());
        assert_eq!(turns.live(), 1, "c is gone, b is being used");
    }
}
