//! What is said of reviews whose request is past them.

use super::{Answer, never};
use crate::api::{JitAccessRequest, JitAccessRequestStatus, JitAccessReview, State, Verdict};
use crate::plan::lifecycle::state;

/// The most bytes of a user's name that are shown.
pub(crate) const MAX_NAME: usize = 256;

/// What remains to be said of a review once its request was granted or is over; none while it is not.
///
/// What was answered in time stays as it was answered. A word against a live grant is not past.
pub(super) fn of_the_past(request: &JitAccessRequest, review: &JitAccessReview) -> Option<Answer> {
    let state = state(request);
    let live = matches!(state, State::Opening | State::Active);
    if state.is_waiting() || (live && review.spec.verdict != Verdict::Approved) {
        return None;
    }
    let settled = request.status.as_ref().is_some_and(|status| status.settled);
    Some(match before(review) {
        Some((counted, reason)) => Answer { counted, reason, settled },
        // Granted by it, and not told yet.
        None if counted_at_the_grant(request, review) => {
            let name = &review.spec.policy_ref.name;
            Answer { counted: true, reason: format!("counted under JitPolicy {name}"), settled }
        }
        None if live => never("the request was granted already"),
        None if decided(request, review.spec.verdict) => {
            Answer { counted: true, reason: effect(review.spec.verdict).to_owned(), settled }
        }
        None => {
            let state = if state == State::Closing { outcome(request) } else { state };
            never(format!("the request is over already ({})", state.as_str()))
        }
    })
}

/// What was said of it before: whether it counts, and why.
pub(super) fn before(review: &JitAccessReview) -> Option<(bool, String)> {
    let status = review.status.as_ref()?;
    status.counted.zip(status.reason.clone())
}

fn outcome(request: &JitAccessRequest) -> State {
    let outcome = request.status.as_ref().and_then(|status| status.outcome.as_deref());
    outcome.and_then(State::parse).unwrap_or(State::Closing)
}

fn counted_at_the_grant(request: &JitAccessRequest, review: &JitAccessReview) -> bool {
    let status = request.status.as_ref();
    // What a person said before the grant counted once; what they say again later on has done nothing.
    let created = review.metadata.creation_timestamp.as_ref();
    let in_time = |status: &JitAccessRequestStatus| {
        status.granted_at.as_ref().zip(created).is_some_and(|(granted, created)| created.0 <= granted.0)
    };
    review.spec.verdict == Verdict::Approved
        && status.is_some_and(|status| in_time(status) && status.plan_hash == review.spec.plan_hash)
        && status.into_iter().flat_map(|status| &status.policies).any(|policy| {
            let by = review.spec.reviewer.as_ref().map(|reviewer| cut(&reviewer.username, MAX_NAME));
            policy.name == review.spec.policy_ref.name
                && by.is_some_and(|by| policy.approved_by.contains(&by))
        })
}

/// Whether the request is over by a word such as this.
fn decided(request: &JitAccessRequest, verdict: Verdict) -> bool {
    let over = match state(request) {
        State::Closing => outcome(request),
        other => other,
    };
    match verdict {
        Verdict::Approved => false,
        Verdict::Denied | Verdict::Revoked => matches!(over, State::Denied | State::Revoked),
        Verdict::Ended => over == State::Ended,
    }
}

/// What a word does to the request.
pub(super) const fn effect(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Approved => "approves the request",
        Verdict::Denied | Verdict::Revoked => "refuses the request for good, and closes what it opened",
        Verdict::Ended => "ends the request, and closes what it opened",
    }
}

/// What is said of a review whose request, by name and UID, is not there; `present`: one of its name is.
#[must_use]
pub fn without_request(review: &JitAccessReview, present: bool) -> Answer {
    let (reason, counted) = match review.status.as_ref().and_then(|status| status.counted) {
        Some(true) => (review.status.as_ref().and_then(|status| status.reason.clone()), true),
        Some(false) | None => (None, false),
    };
    let name = &review.spec.request_ref.name;
    let reason = reason.unwrap_or_else(|| {
        if present {
            format!("the JitAccessRequest {name} that is there now is another one: its UID differs from spec.requestRef.uid")
        } else {
            format!("there is no JitAccessRequest {name} with the UID that spec.requestRef gives")
        }
    });
    Answer { counted, reason, settled: true }
}

/// A text of at most so many bytes.
pub(crate) fn cut(text: &str, most: usize) -> String {
    if text.len() <= most {
        return text.to_owned();
    }
    format!("{}...", &text[..text.floor_char_boundary(most - 3)])
}
