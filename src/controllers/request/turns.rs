//! Whose turn it is: limits are judged by what is granted, not by what a cache shows.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;

use crate::api::JitAccessRequest;
use crate::plan::lifecycle::state;
use crate::plan::people::{Pipelines, Trait};

/// Who holds a grant, so that limits are judged by what is granted and not by what a cache shows.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashMap<String, Holder>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    /// Who asks.
    requester: BTreeSet<Trait>,
    /// For whom: each of those that somebody asks for has places of their own.
    on_behalf_of: Option<String>,
    policies: BTreeSet<String>,
    /// Taken, and not yet in a durable status: neither a cache nor a list can know of it.
    taken: bool,
    /// The first version of the object that may say anything else; API servers count them up.
    version: u64,
}

/// A turn that was taken. Dropped, it is given back, unless the durable status has it by then.
#[derive(Debug)]
pub(super) struct Turn {
    turns: Turns,
    uid: String,
    /// The place that was kept for the same request before: a write without an answer may have used it.
    kept: Option<Holder>,
}

impl Turn {
    /// Keeps the place though no answer came to the write that uses it: until the object says in a later version, or a
    /// consistent list, that nothing came of it.
    pub(super) fn keep(self) {
        if let Some(holder) = self.turns.holders().get_mut(&self.uid).filter(|holder| holder.taken) {
            holder.taken = false;
            holder.version = holder.version.saturating_add(1);
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut holders = self.turns.holders();
        if holders.get(&self.uid).is_some_and(|holder| holder.taken) {
            match self.kept.take() {
                Some(kept) => holders.insert(self.uid.clone(), kept),
                None => holders.remove(&self.uid),
            };
        }
    }
}

impl Turns {
    fn holders(&self) -> MutexGuard<'_, HashMap<String, Holder>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of where a request stands by its durable status.
    pub(super) fn note(&self, request: &JitAccessRequest, pipelines: &Pipelines) {
        let Some(uid) = request.metadata.uid.clone() else { return };
        let mut holders = self.holders();
        let noted = holder(request, pipelines);
        if state(request).holds_rules() {
            holders.insert(uid, noted);
        } else if holders.get(&uid).is_some_and(|known| !known.taken && known.version <= noted.version) {
            // A turn that is used is not lost to an event from before it was taken, nor to a cache that lags behind.
            holders.remove(&uid);
        }
    }

    /// UIDs of those who hold a grant.
    #[must_use]
    pub fn known(&self) -> BTreeSet<String> {
        self.holders().keys().cloned().collect()
    }

    /// Forgets requests that are gone: those that were `known` before the list of those that are `live` was begun. What
    /// was granted since is in no such list.
    pub fn keep_only(&self, live: &BTreeSet<String>, known: &BTreeSet<String>) {
        self.holders().retain(|uid, holder| holder.taken || live.contains(uid) || !known.contains(uid));
    }

    /// Takes a place for one more grant under these limits.
    ///
    /// # Errors
    /// Why there is none.
    pub(super) fn take(
        &self,
        request: &JitAccessRequest,
        limits: &BTreeMap<String, (usize, usize)>,
        pipelines: &Pipelines,
    ) -> Result<Turn, String> {
        let uid = request.metadata.uid.clone().unwrap_or_default();
        let mut holder = holder(request, pipelines);
        holder.policies = limits.keys().cloned().collect();
        holder.taken = true;
        let mut holders = self.holders();
        for (policy, (for_one, altogether)) in limits {
            let under =
                || holders.iter().filter(|(other, held)| **other != uid && held.policies.contains(policy));
            let all = under().count();
            let own = under().filter(|(_, held)| held.shares_places_with(&holder)).count();
            if own >= *for_one {
                let who = request.spec.requester.as_ref().map_or("", |user| &user.username);
                let of_whom = match &request.spec.on_behalf_of {
                    Some(other) => format!("{who} on behalf of {other}"),
                    None => who.to_owned(),
                };
                return Err(format!(
                    "waits: {own} grants of {of_whom} are live (spec.limits.activePerRequester)"
                ));
            }
            if all >= *altogether {
                return Err(format!("waits: {all} grants are live under the policy (spec.limits.active)"));
            }
        }
        let kept = holders.insert(uid.clone(), holder).filter(|known| !known.taken);
        Ok(Turn { turns: self.clone(), uid, kept })
    }

    /// How many grants are live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.holders().len()
    }
}

impl Holder {
    fn shares_places_with(&self, other: &Self) -> bool {
        !self.requester.is_disjoint(&other.requester) && self.on_behalf_of == other.on_behalf_of
    }
}

fn holder(request: &JitAccessRequest, pipelines: &Pipelines) -> Holder {
    let status = request.status.as_ref();
    Holder {
        requester: request.spec.requester.as_ref().map(|user| pipelines.claimants(user)).unwrap_or_default(),
        on_behalf_of: request.spec.on_behalf_of.as_deref().map(|claim| claim.trim().to_lowercase()),
        policies: status
            .into_iter()
            .flat_map(|status| &status.policies)
            .map(|policy| policy.uid.clone())
            .collect(),
        taken: false,
        version: request.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{JitAccessRequestStatus, RequestedPolicy, State, UserInfo};

    fn asked(uid: &str, who: &str, on_behalf_of: Option<&str>, state: State) -> JitAccessRequest {
        let mut request = request(uid, state);
        request.spec.requester = Some(UserInfo { username: who.into(), ..UserInfo::default() });
        request.spec.on_behalf_of = on_behalf_of.map(str::to_owned);
        request
    }

    fn people() -> Pipelines {
        Pipelines::new(&["portal".to_owned()])
    }

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
        let turn = turns.take(&request("a", State::Approved), &one(), &people()).unwrap();
        turns.keep_only(&BTreeSet::new(), &turns.known());
        turns.note(&request("a", State::Approved), &people());
        assert!(turns.take(&request("b", State::Approved), &one(), &people()).is_err(), "a has it");
        // Written ahead: from then on the durable status holds it.
        turns.note(&request("a", State::Opening), &people());
        drop(turn);
        assert!(turns.take(&request("b", State::Approved), &one(), &people()).unwrap_err().contains("alice"));
        turns.note(&request("a", State::Expired), &people());
        assert!(turns.take(&request("b", State::Approved), &one(), &people()).is_ok());
    }

    fn of_version(version: u64, request: JitAccessRequest) -> JitAccessRequest {
        let resource_version = Some(version.to_string());
        JitAccessRequest {
            metadata: kube::api::ObjectMeta { resource_version, ..request.metadata },
            ..request
        }
    }

    #[test]
    fn a_place_that_is_held_is_not_given_back_by_an_older_event() {
        let turns = Turns::default();
        turns.note(&of_version(9, request("a", State::Opening)), &people());
        turns.note(&of_version(8, request("a", State::Approved)), &people());
        assert!(turns.take(&request("b", State::Approved), &one(), &people()).is_err(), "a has it");
        turns.note(&of_version(12, request("a", State::Expired)), &people());
        assert!(turns.take(&request("b", State::Approved), &one(), &people()).is_ok());
    }

    #[test]
    fn a_place_is_kept_while_nobody_knows_whether_its_grant_was_written() {
        let approved = of_version(8, request("a", State::Approved));
        let kept = || {
            let turns = Turns::default();
            turns.take(&approved, &one(), &people()).unwrap().keep();
            turns.note(&approved, &people());
            assert!(turns.take(&request("b", State::Approved), &one(), &people()).is_err(), "a may have it");
            assert!(turns.take(&approved, &one(), &people()).is_ok(), "and a itself tries again");
            assert!(
                turns.take(&request("b", State::Approved), &one(), &people()).is_err(),
                "a still may have it"
            );
            turns
        };
        // It came to nothing: the next version says so, or a list does.
        let turns = kept();
        turns.note(&of_version(9, request("a", State::Approved)), &people());
        assert_eq!(turns.live(), 0);
        let turns = kept();
        turns.keep_only(&BTreeSet::new(), &turns.known());
        assert_eq!(turns.live(), 0);
    }

    #[test]
    fn a_turn_that_came_to_nothing_is_given_back() {
        let turns = Turns::default();
        drop(turns.take(&request("a", State::Approved), &one(), &people()).unwrap());
        assert_eq!(turns.live(), 0);
        let _b = turns.take(&request("b", State::Approved), &one(), &people()).unwrap();
        turns.note(&request("c", State::Active), &people());
        turns.keep_only(&BTreeSet::new(), &turns.known());
        assert_eq!(turns.live(), 1, "c is gone, b is being used");
    }

    #[test]
    fn what_was_granted_while_requests_were_listed_keeps_its_place() {
        let turns = Turns::default();
        turns.note(&request("old", State::Active), &people());
        let known = turns.known();
        turns.note(&request("new", State::Active), &people());
        turns.keep_only(&BTreeSet::new(), &known);
        assert_eq!(turns.known(), BTreeSet::from(["new".to_owned()]));
        assert!(turns.take(&request("next", State::Approved), &one(), &people()).is_err());
    }

    #[test]
    fn places_are_a_persons_however_they_are_called_and_for_each_whom_somebody_asks_for() {
        let free = |held: (&str, Option<&str>), next: (&str, Option<&str>)| {
            let turns = Turns::default();
            turns.note(&asked("held", held.0, held.1, State::Active), &people());
            turns.take(&asked("next", next.0, next.1, State::Approved), &one(), &people()).map(|_| ())
        };
        assert!(free(("alice", None), ("Alice ", None)).is_err());
        assert!(free(("alice", None), ("bob", None)).is_ok());
        let (one_of_web, other_of_web) = ("system:serviceaccount:web:a", "system:serviceaccount:web:b");
        assert!(free((one_of_web, None), (other_of_web, None)).is_err(), "whoever edits web makes another");
        assert!(free((one_of_web, None), ("system:serviceaccount:ops:a", None)).is_ok());
        assert!(free((one_of_web, None), ("portal", None)).is_ok());
        assert!(free(("portal", Some("alice")), ("portal", Some("bob"))).is_ok());
        let why = free(("portal", Some("alice")), ("portal", Some("ALICE"))).unwrap_err();
        assert!(why.contains("portal on behalf of ALICE"), "{why}");
    }
}
