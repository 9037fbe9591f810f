//! What reviews are told once their request was granted or is over, and when they came too late.

use portcullis::api::{JitAccessRequestStatus, State};
use portcullis::plan::reviews::Answer;

use super::*;

/// The request with this state, and an outcome where it closes.
fn in_state(state: State, outcome: Option<State>) -> JitAccessRequest {
    let mut request = request("alice");
    request.status = Some(JitAccessRequestStatus {
        state: Some(state.as_str().into()),
        outcome: outcome.map(|outcome| outcome.as_str().into()),
        plan_hash: Some("a".repeat(64)),
        granted_at: Some(Time(at(60))),
        expires_at: Some(Time(at(3600))),
        policies: vec![RequestedPolicy {
            name: "web".into(),
            approved_by: vec!["bob".into()],
            ..RequestedPolicy::default()
        }],
        ..JitAccessRequestStatus::default()
    });
    request
}

/// The answer to a single review, and what it comes to.
fn answered(request: &JitAccessRequest, review: JitAccessReview) -> (Answer, Tally) {
    let (mut tally, _) = counted(request, &plan(false), &[Arc::new(review)], -10, &all_may);
    let (_, answer) = tally.answers.pop_first().unwrap();
    (answer, tally)
}

fn told(request: &JitAccessRequest, review: JitAccessReview) -> (bool, String, bool) {
    let (answer, _) = answered(request, review);
    (answer.counted, answer.reason, answer.settled)
}

fn by(who: &str, verdict: Verdict, second: i64) -> JitAccessReview {
    review(second, &user(who, &[]), verdict)
}

#[test]
fn an_approval_after_the_grant_comes_too_late_and_one_that_granted_it_counted() {
    for state in [State::Opening, State::Active] {
        let live = in_state(state, None);
        let late = (false, "the request was granted already".to_owned(), true);
        assert_eq!(told(&live, by("carol", Verdict::Approved, 30)), late, "it was not among them");
        assert_eq!(told(&live, by("bob", Verdict::Approved, 61)), late);
        let counted = (true, "counted under JitPolicy web".to_owned(), false);
        assert_eq!(told(&live, by("bob", Verdict::Approved, 60)), counted);
        let mut other = by("bob", Verdict::Approved, 60);
        other.spec.plan_hash = Some("b".repeat(64));
        assert_eq!(told(&live, other), late, "of another plan");
        let mut other = by("bob", Verdict::Approved, 60);
        other.spec.policy_ref.name = "other".into();
        assert_eq!(told(&live, other), late, "under another policy");
    }
}

#[test]
fn a_word_against_a_live_grant_is_not_past() {
    for state in [State::Opening, State::Active] {
        let live = in_state(state, None);
        let (answer, tally) = answered(&live, by("carol", Verdict::Denied, 90));
        assert!(tally.against.is_some() && answer.counted, "{answer:?}");
        let (answer, tally) = answered(&live, by("alice", Verdict::Ended, 90));
        assert!(tally.ended.is_some() && answer.counted, "{answer:?}");
    }
}

#[test]
fn what_was_answered_in_time_stays_as_it_was_answered() {
    let answered_before = |counted: Option<bool>, reason: Option<&str>| {
        let mut review = by("carol", Verdict::Approved, 30);
        review.status = Some(JitAccessReviewStatus {
            counted,
            reason: reason.map(Into::into),
            ..JitAccessReviewStatus::default()
        });
        review
    };
    let over = |settled| {
        let mut request = in_state(State::Expired, None);
        request.status.as_mut().unwrap().settled = settled;
        request
    };
    for settled in [false, true] {
        for counted in [false, true] {
            let review = answered_before(Some(counted), Some("as it was"));
            assert_eq!(told(&over(settled), review), (counted, "as it was".to_owned(), settled));
        }
    }
    // What was said by halves was not said.
    for half in [answered_before(Some(true), None), answered_before(None, Some("as it was"))] {
        let (_, reason, _) = told(&over(false), half);
        assert_eq!(reason, "the request is over already (Expired)");
    }
}

#[test]
fn a_word_that_ended_the_request_is_told_so_and_any_other_that_it_is_over() {
    let refuses = "refuses the request for good, and closes what it opened";
    let ends = "ends the request, and closes what it opened";
    for (verdict, over, says) in [
        (Verdict::Denied, State::Denied, Some(refuses)),
        (Verdict::Denied, State::Revoked, Some(refuses)),
        (Verdict::Revoked, State::Revoked, Some(refuses)),
        (Verdict::Ended, State::Ended, Some(ends)),
        (Verdict::Denied, State::Ended, None),
        (Verdict::Denied, State::Expired, None),
        (Verdict::Ended, State::Revoked, None),
        (Verdict::Approved, State::Revoked, None),
        (Verdict::Approved, State::Expired, None),
    ] {
        for request in [in_state(over, None), in_state(State::Closing, Some(over))] {
            let wanted = match says {
                Some(effect) => (true, effect.to_owned()),
                None => (false, format!("the request is over already ({})", over.as_str())),
            };
            let (counted, reason, _) = told(&request, by("carol", verdict, 90));
            assert_eq!((counted, reason), wanted, "{verdict:?} {over:?}");
        }
    }
}

#[test]
fn an_approval_counts_up_to_the_last_second_of_the_wait_and_from_the_first_under_admission() {
    let counts = |second: i64, since: i64| {
        let reviews = [Arc::new(by("bob", Verdict::Approved, second))];
        let (tally, _) = counted(&request("alice"), &plan(false), &reviews, since, &all_may);
        (tally.is_reached(), tally.answers[&format!("uid-{second}")].reason.clone())
    };
    assert!(counts(3600, -10).0);
    let (reached, why) = counts(3601, -10);
    assert!(!reached && why.contains("spec.approval.pendingTimeout"), "{why}");
    assert!(counts(31, 30).0);
    let (reached, why) = counts(30, 30);
    assert!(!reached && why.contains("not provably created"), "{why}");
}

#[test]
fn a_comment_is_passed_on_unless_it_is_blank() {
    for (comment, passed_on) in [(Some("not now"), true), (Some("  "), false), (None, false)] {
        let mut denied = by("bob", Verdict::Denied, 30);
        denied.spec.comment = comment.map(Into::into);
        let (_, tally) = answered(&request("alice"), denied);
        assert_eq!(tally.against.unwrap().comment.as_deref(), comment.filter(|_| passed_on));
    }
}

/// A right that was just given may not be known everywhere yet, so a stranger's word is kept in mind for a minute.
#[test]
fn the_word_of_somebody_without_the_right_counts_for_nothing_and_says_so() {
    let of_nobody = |request: &JitAccessRequest, mut review: JitAccessReview, right: Right| {
        // Of a policy that has no say, so that admission has not asked for the right.
        review.spec.policy_ref.name = "other".into();
        let (tally, _) = counted(request, &plan(false), &[Arc::new(review)], -10, &|_, _| right.clone());
        assert!(tally.against.is_none() && tally.ended.is_none());
        let Answer { counted, reason, settled } = tally.answers.into_values().next().unwrap();
        assert!(!counted);
        (reason, settled)
    };
    let open = request("alice");
    // It is judged at second 120.
    for (verdict, second, settled) in [
        (Verdict::Ended, 60, false),
        (Verdict::Ended, 59, true),
        (Verdict::Denied, 60, false),
        (Verdict::Denied, 59, false),
    ] {
        let (reason, found) = of_nobody(&open, by("mallory", verdict, second), Right::NotAllowed);
        assert_eq!(found, settled, "{verdict:?} at {second}: {reason}");
        let ends = reason.contains("is not the requester and may not approve");
        assert_eq!(ends, verdict == Verdict::Ended, "{reason}");
    }
    let over = in_state(State::Expired, None);
    for right in [Right::NotAllowed, Right::Unknown("no answer".into())] {
        let told = of_nobody(&over, by("mallory", Verdict::Ended, 119), right);
        assert_eq!(told, ("the request is over already".to_owned(), true));
    }
    let (reason, settled) =
        of_nobody(&open, by("bob", Verdict::Denied, 119), Right::Unknown("no answer".into()));
    assert!(!settled && reason.contains("could not be asked: no answer"), "{reason}");
}

/// Whoever may approve under another policy writes as many words under that as he likes.
#[test]
fn words_under_other_policies_hide_none_of_those_who_may_revoke() {
    let elsewhere = |number: usize| {
        let mut review = review(1, &user("mallory", &[]), Verdict::Denied);
        review.metadata.uid = Some(format!("elsewhere-{number}"));
        review.spec.policy_ref.name = "other".into();
        Arc::new(review)
    };
    let mut words: Vec<_> = (0..=MOST).map(elsewhere).collect();
    words.push(Arc::new(review(60, &user("bob", &["approvers"]), Verdict::Revoked)));
    let live = in_state(State::Active, None);
    for since in [-10, 30] {
        let (tally, _) = counted(&live, &plan(false), &words, since, &only_in("approvers"));
        assert_eq!(tally.against.unwrap().who, "bob");
    }
    // And nothing is granted while there are more of them than are looked at.
    words.pop();
    let (tally, _) = counted(&request("alice"), &plan(false), &words, -10, &only_in("approvers"));
    assert!(tally.against.is_none() && tally.doubt.is_some());
}
