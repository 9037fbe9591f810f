//! What the audit trail has told of each request.
//!
//! A move is told once its status is written. Where the answer to that write is lost, where the program is killed in
//! between, or where a cache shows again what was before, the next sight of the request sets it right: what was not
//! told is told then, and what was told is not told again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;

use crate::api::{JitAccessRequest, State};
use crate::plan::lifecycle::state;
use crate::telemetry::audit::Kind;

/// What was told of each request that is not settled, by its UID. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Told(Arc<Mutex<HashMap<String, Last>>>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Last {
    /// None: it was seen, and its status said nothing yet.
    state: Option<State>,
    /// The object's version; API servers count them up.
    version: u64,
}

impl Last {
    fn of(request: &JitAccessRequest) -> Self {
        let version = request.resource_version().and_then(|version| version.parse().ok()).unwrap_or_default();
        let said = request.status.as_ref().is_some_and(|status| status.state.is_some());
        let state = Some(state(request)).filter(|state| said || *state != State::Pending);
        Self { state, version }
    }
}

impl Told {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Last>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of a request as it was read: what has not been told of it, in order.
    pub(super) fn sight(&self, request: &JitAccessRequest) -> Vec<Kind> {
        let now = Last::of(request);
        let mut told = self.lock();
        let Some(before) = told.get_mut(&request.uid().unwrap_or_default()) else {
            told.insert(request.uid().unwrap_or_default(), now);
            return first(now.state, is_granted(request));
        };
        // Older than what was told: a cache that lags behind.
        if now.version < before.version {
            return Vec::new();
        }
        let was = std::mem::replace(before, now).state;
        now.state
            .filter(|_| was != now.state)
            .map_or_else(Vec::new, |now| missed(was, now, is_granted(request)))
    }

    /// Takes note of a request as it was written: what became of it is told.
    pub(super) fn wrote(&self, request: &JitAccessRequest) {
        self.lock().insert(request.uid().unwrap_or_default(), Last::of(request));
    }

    pub(super) fn forget(&self, request: &JitAccessRequest) {
        self.lock().remove(&request.uid().unwrap_or_default());
    }
}

fn is_granted(request: &JitAccessRequest) -> bool {
    request.status.as_ref().is_some_and(|status| status.granted_at.is_some())
}

/// What a chain of records that begins anew says of a request that it has not seen before.
fn first(now: Option<State>, granted: bool) -> Vec<Kind> {
    match now {
        Some(state) if state.holds_rules() => vec![Kind::Resumed],
        // Not settled, so the one before may have been killed before it could tell.
        Some(state) if state.is_last() => vec![last(state, granted)],
        Some(_) | None => Vec::new(),
    }
}

/// What has happened between what was told and what is seen now.
fn missed(was: Option<State>, now: State, granted: bool) -> Vec<Kind> {
    let mut kinds = Vec::new();
    if was.is_none() {
        kinds.push(Kind::Requested);
    }
    let was = was.unwrap_or(State::Pending);
    if granted && !was.holds_rules() && (now.holds_rules() || now.is_last()) {
        kinds.push(Kind::Granted);
    }
    match now {
        State::Pending if was == State::Pending => {}
        State::Pending => kinds.push(Kind::Returned),
        State::Approved => kinds.push(Kind::Approved),
        State::Scheduled => kinds.push(Kind::Scheduled),
        State::Opening if was.holds_rules() => kinds.push(Kind::Shortened),
        State::Opening => {}
        State::Active => kinds.push(Kind::Opened),
        State::Closing => kinds.push(Kind::Ending),
        State::Expired
        | State::Ended
        | State::Denied
        | State::Revoked
        | State::TimedOut
        | State::Failed
        | State::Void => {
            if granted && was != State::Closing {
                kinds.push(Kind::Ending);
            }
            kinds.push(last(now, granted));
        }
    }
    kinds
}

/// The record of a last state.
const fn last(state: State, granted: bool) -> Kind {
    match (granted, state) {
        (true, _) => Kind::Closed,
        (false, State::Ended) => Kind::Withdrawn,
        (false, State::Void) => Kind::Voided,
        (false, _) => Kind::Refused,
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::JitAccessRequestStatus;

    fn request(version: u64, state: Option<State>, granted: bool) -> JitAccessRequest {
        let mut request = JitAccessRequest::default();
        request.metadata.uid = Some("one".into());
        request.metadata.resource_version = Some(version.to_string());
        request.status = state.map(|state| JitAccessRequestStatus {
            state: Some(state.as_str().into()),
            granted_at: granted.then_some(Time(Timestamp::UNIX_EPOCH)),
            expires_at: granted.then_some(Time(Timestamp::UNIX_EPOCH)),
            ..JitAccessRequestStatus::default()
        });
        request
    }

    #[test]
    fn what_a_lost_answer_kept_from_being_told_is_told_at_the_next_sight_and_once() {
        use State::{Active, Approved, Closing, Denied, Ended, Expired, Opening, Pending, Void};
        type Case<'a> = (Option<State>, State, bool, &'a [Kind]);
        let cases: &[Case<'_>] = &[
            (None, Pending, false, &[Kind::Requested]),
            (None, Denied, false, &[Kind::Requested, Kind::Refused]),
            (Some(Pending), Approved, false, &[Kind::Approved]),
            (Some(Approved), Pending, false, &[Kind::Returned]),
            (Some(Approved), Opening, true, &[Kind::Granted]),
            (Some(Approved), Active, true, &[Kind::Granted, Kind::Opened]),
            (Some(Opening), Active, true, &[Kind::Opened]),
            (Some(Active), Opening, true, &[Kind::Shortened]),
            (Some(Active), Closing, true, &[Kind::Ending]),
            (Some(Active), Expired, true, &[Kind::Ending, Kind::Closed]),
            (Some(Closing), Expired, true, &[Kind::Closed]),
            (Some(Approved), Ended, true, &[Kind::Granted, Kind::Ending, Kind::Closed]),
            (Some(Pending), Ended, false, &[Kind::Withdrawn]),
            (Some(Approved), Void, false, &[Kind::Voided]),
        ];
        for (was, now, granted, wanted) in cases {
            let told = Told::default();
            let before = was.is_some_and(State::holds_rules);
            told.wrote(&request(7, *was, before));
            assert_eq!(told.sight(&request(8, Some(*now), *granted)), *wanted, "{was:?} -> {now:?}");
            assert_eq!(told.sight(&request(8, Some(*now), *granted)), [], "{was:?} -> {now:?}, again");
        }
    }

    #[test]
    fn what_a_cache_shows_of_before_is_not_told_again() {
        let told = Told::default();
        assert_eq!(told.sight(&request(5, Some(State::Active), true)), [Kind::Resumed]);
        told.wrote(&request(6, Some(State::Closing), true));
        told.wrote(&request(9, Some(State::Expired), true));
        assert_eq!(told.sight(&request(5, Some(State::Active), true)), []);
        assert_eq!(told.sight(&request(6, Some(State::Closing), true)), []);
        assert_eq!(told.sight(&request(9, Some(State::Expired), true)), []);
    }

    #[test]
    fn a_new_chain_tells_what_lives_and_what_may_never_have_been_told() {
        let first = |state, granted| Told::default().sight(&request(5, Some(state), granted));
        assert_eq!(first(State::Active, true), [Kind::Resumed]);
        assert_eq!(first(State::Expired, true), [Kind::Closed]);
        assert_eq!(first(State::Failed, false), [Kind::Refused]);
        assert_eq!(first(State::Ended, false), [Kind::Withdrawn]);
        assert_eq!(first(State::Approved, false), []);
        assert_eq!(Told::default().sight(&request(5, None, false)), []);
    }
}
