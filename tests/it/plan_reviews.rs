//! Whose word counts: who may not approve although they hold the right, and words that stand although nobody holds it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portcullis::api::{
    JitAccessRequest, JitAccessRequestSpec, JitAccessReview, JitAccessReviewSpec, JitAccessReviewStatus,
    NameRef, RequestRef, RequestedPolicy, UserInfo, Verdict,
};
use portcullis::plan::admission::Admission;
use portcullis::plan::authorize::GrantPlan;
use portcullis::plan::people::Pipelines;
use portcullis::plan::reviews::{Case, MOST, Quorum, Right, Tally, questions, tally};

mod past;

const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

fn at(second: i64) -> Timestamp {
    "2026-11-22T08:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(second)
}

fn user(name: &str, groups: &[&str]) -> UserInfo {
    UserInfo {
        username: name.into(),
        uid: None,
        groups: groups.iter().map(|group| (*group).to_owned()).collect(),
    }
}

fn request(requester: &str) -> JitAccessRequest {
    let mut request = JitAccessRequest::new(
        "one",
        JitAccessRequestSpec {
            policy_ref: NameRef { name: "web".into() },
            requester: Some(user(requester, &[])),
            ..JitAccessRequestSpec::default()
        },
    );
    request.metadata.namespace = Some("team-web".into());
    request.metadata.uid = Some(UID.into());
    request.metadata.creation_timestamp = Some(Time(at(0)));
    request
}

fn plan(self_approval: bool) -> GrantPlan {
    GrantPlan {
        policies: vec![RequestedPolicy {
            name: "web".into(),
            uid: "uid-of-web".into(),
            required: 1,
            ..RequestedPolicy::default()
        }],
        machines: Vec::new(),
        rules: Vec::new(),
        connections: Vec::new(),
        duration: Duration::from_secs(3600),
        shortened_by: None,
        hash: "a".repeat(64),
        sessions_go_on: true,
        lead: Duration::ZERO,
        pending_timeout: Duration::from_secs(3600),
        use_within: Duration::from_secs(3600),
        self_approval: if self_approval {
            BTreeSet::from(["uid-of-web".to_owned()])
        } else {
            BTreeSet::new()
        },
        limits: BTreeMap::new(),
    }
}

fn review(number: i64, who: &UserInfo, verdict: Verdict) -> JitAccessReview {
    let mut review = JitAccessReview::new(
        &format!("review-{number}"),
        JitAccessReviewSpec {
            request_ref: RequestRef { name: "one".into(), uid: UID.into() },
            policy_ref: NameRef { name: "web".into() },
            plan_hash: Some("a".repeat(64)),
            verdict,
            comment: None,
            reviewer: Some(who.clone()),
        },
    );
    review.metadata.namespace = Some("team-web".into());
    review.metadata.uid = Some(format!("uid-{number}"));
    review.metadata.creation_timestamp = Some(Time(at(number)));
    review
}

/// What reviews come to where `rights` says who may approve, with how many questions.
fn counted(
    request: &JitAccessRequest,
    plan: &GrantPlan,
    reviews: &[Arc<JitAccessReview>],
    since: i64,
    rights: &dyn Fn(&UserInfo, &str) -> Right,
) -> (Tally, usize) {
    let (admission, pipelines) =
        (Admission::InForce { since: at(since) }, Pipelines::new(&["ci".to_owned()]));
    let case = Case {
        request,
        plan: Some(plan),
        reviews,
        admission: &admission,
        pipelines: &pipelines,
        now: at(120),
    };
    // As the controller asks: a few at a time, until nothing is open.
    let mut known: Vec<(UserInfo, String, Right)> = Vec::new();
    let asked = Cell::new(0);
    loop {
        let answer = |who: &UserInfo, policy: &str| {
            let mut known = known.iter();
            known.find(|(user, of, _)| user == who && of == policy).map(|(_, _, right)| right.clone())
        };
        let open = questions(case, &answer);
        if open.is_empty() {
            break;
        }
        for (who, policy) in open.into_iter().take(8) {
            asked.set(asked.get() + 1);
            let right = rights(&who, &policy);
            known.push((who, policy, right));
        }
    }
    let final_answer = |who: &UserInfo, policy: &str| {
        let found = known.iter().find(|(user, of, _)| user == who && of == policy);
        found.map_or_else(|| Right::Unknown("it was not asked".into()), |(_, _, right)| right.clone())
    };
    (tally(case, &final_answer), asked.get())
}

fn all_may(_: &UserInfo, _: &str) -> Right {
    Right::Allowed
}

fn only_in(group: &'static str) -> impl Fn(&UserInfo, &str) -> Right {
    move |user, _| {
        if user.groups.iter().any(|own| own == group) { Right::Allowed } else { Right::NotAllowed }
    }
}

/// Whether one approval is enough for the request, and what is said of it.
fn approved(requester: &str, reviewer: &str, self_approval: bool) -> (bool, String) {
    let reviews = [Arc::new(review(1, &user(reviewer, &[]), Verdict::Approved))];
    let (tally, _) = counted(&request(requester), &plan(self_approval), &reviews, -10, &all_may);
    (tally.is_reached(), tally.answers["uid-1"].reason.clone())
}

#[test]
fn pipelines_approve_what_people_ask_and_nothing_that_pipelines_ask() {
    let (one, other) = ("system:serviceaccount:jit-pipelines:a", "system:serviceaccount:ops:b");
    for reviewer in [one, other, "ci"] {
        let (reached, why) = approved("alice", reviewer, false);
        assert!(reached, "{reviewer}: {why}");
        for requester in [one, other, "ci", "CI "] {
            for self_approval in [false, true] {
                let (reached, why) = approved(requester, reviewer, self_approval);
                assert!(
                    !reached && why.contains("a person has to approve"),
                    "{requester}, {reviewer}: {why}"
                );
            }
        }
    }
    let (reached, why) = approved(one, "bob", false);
    assert!(reached, "{why}");
}

#[test]
fn a_service_account_of_the_requests_own_namespace_never_approves() {
    for own in ["system:serviceaccount:team-web:jit-reviews", " System:ServiceAccount:team-web:x"] {
        for self_approval in [false, true] {
            let (reached, why) = approved("alice", own, self_approval);
            assert!(!reached && why.contains("the request's own namespace"), "{own}: {why}");
        }
    }
    let (reached, why) = approved("alice", "system:serviceaccount:team-web2:jit-reviews", false);
    assert!(reached, "{why}");
    // To refuse and to end takes nothing away that its editors could not take away themselves.
    let own = user("system:serviceaccount:team-web:jit-reviews", &[]);
    let reviews = [Arc::new(review(1, &own, Verdict::Denied))];
    let (tally, _) = counted(&request("alice"), &plan(false), &reviews, -10, &all_may);
    assert!(tally.against.is_some());
}

#[test]
fn of_two_reviews_by_one_person_each_is_asked_about_in_its_own_groups() {
    for (first, second) in
        [(&[][..], &["approvers"][..]), (&["approvers"][..], &[][..]), (&["left"][..], &["approvers"][..])]
    {
        let reviews = [
            Arc::new(review(1, &user("bob", first), Verdict::Approved)),
            Arc::new(review(2, &user("bob", second), Verdict::Approved)),
        ];
        let (tally, _) = counted(&request("alice"), &plan(false), &reviews, -10, &only_in("approvers"));
        assert_eq!(tally.quorums[0].by, ["bob"], "{first:?}, {second:?}: {:?}", tally.answers);
        assert!(tally.quorums[0].unasked.is_empty(), "{:?}", tally.answers);
    }
}

#[test]
fn a_denial_outlives_the_right_of_its_author_where_admission_has_asked_for_it() {
    let nobody = |_: &UserInfo, _: &str| Right::NotAllowed;
    let denied = |verdict, policy: &str, since| {
        let mut review = review(5, &user("bob", &[]), verdict);
        review.spec.policy_ref.name = policy.into();
        counted(&request("alice"), &plan(false), &[Arc::new(review)], since, &nobody).0.against.is_some()
    };
    assert!(denied(Verdict::Denied, "web", -10) && denied(Verdict::Revoked, "web", -10));
    assert!(!denied(Verdict::Denied, "other", -10), "of a policy that has no say");
    assert!(!denied(Verdict::Denied, "web", 5), "not provably under admission's eyes");
    // Ended is open to requesters, so admission has not asked.
    let reviews = [Arc::new(review(5, &user("bob", &[]), Verdict::Ended))];
    let (tally, _) = counted(&request("alice"), &plan(false), &reviews, -10, &nobody);
    assert!(tally.ended.is_none());
}

#[test]
fn a_requester_withdraws_by_their_whole_name_however_long_and_nobody_else_does() {
    let nobody = |_: &UserInfo, _: &str| Right::NotAllowed;
    let long = |last: &str| format!("CN={}{last}", "a".repeat(300));
    // As an answer shows it to people.
    let shown = |name: &str| format!("{}...", &name[..253]);
    for (requester, reviewer, ends) in [
        (long("x"), long("x"), true),
        (long("x"), long("y"), false),
        (long("x"), shown(&long("x")), false),
        (shown(&long("x")), long("x"), false),
    ] {
        let reviews = [Arc::new(review(5, &user(&reviewer, &[]), Verdict::Ended))];
        let (tally, _) = counted(&request(&requester), &plan(false), &reviews, -10, &nobody);
        assert_eq!(tally.ended.is_some(), ends, "{reviewer} of {requester}");
    }
}

#[test]
fn a_settled_that_somebody_wrote_hides_no_word_against_the_request() {
    let settled = |mut review: JitAccessReview| {
        let status = JitAccessReviewStatus {
            counted: Some(false),
            reason: Some("no".into()),
            settled: true,
            ..JitAccessReviewStatus::default()
        };
        review.status = Some(status);
        Arc::new(review)
    };
    for (who, verdict) in [("bob", Verdict::Denied), ("bob", Verdict::Revoked), ("alice", Verdict::Ended)] {
        let reviews = [
            settled(review(1, &user(who, &[]), verdict)),
            Arc::new(review(2, &user("carol", &[]), Verdict::Approved)),
        ];
        let (tally, _) = counted(&request("alice"), &plan(false), &reviews, -10, &all_may);
        assert!(tally.against.is_some() || tally.ended.is_some(), "{verdict:?}");
        assert!(!tally.answers.contains_key("uid-1"), "it is not answered again");
    }
    // An approval that was settled without counting stays so.
    let reviews = [settled(review(1, &user("carol", &[]), Verdict::Approved))];
    assert!(!counted(&request("alice"), &plan(false), &reviews, -10, &all_may).0.is_reached());
}

#[test]
fn thousands_of_reviews_by_a_requester_cost_a_bounded_number_of_questions_and_hide_no_denial() {
    let flood = |number: i64| Arc::new(review(1, &user(&format!("mallory-{number}"), &[]), Verdict::Ended));
    let flood: Vec<_> = (0..5000)
        .map(|number| {
            let mut review = (*flood(number)).clone();
            review.metadata.uid = Some(format!("flood-{number}"));
            Arc::new(review)
        })
        .collect();
    let (tally, asked) = counted(&request("alice"), &plan(false), &flood, -10, &only_in("approvers"));
    assert!(asked <= MOST, "{asked}");
    assert_eq!(tally.answers.len(), MOST, "the rest is answered when these are settled");
    let mut words = flood;
    words.push(Arc::new(review(60, &user("carol", &["approvers"]), Verdict::Approved)));
    let (tally, _) = counted(&request("alice"), &plan(false), &words, -10, &only_in("approvers"));
    assert!(tally.is_reached(), "approvals come first");
    words.push(Arc::new(review(61, &user("bob", &["approvers"]), Verdict::Denied)));
    let (tally, asked) = counted(&request("alice"), &plan(false), &words, -10, &only_in("approvers"));
    assert!(tally.against.is_some());
    assert_eq!(asked, 0, "once it is decided, nobody is asked about any more");
}

#[test]
fn more_denials_than_are_looked_at_hold_everything() {
    let stranger = |number: usize| {
        let mut review = review(1, &user(&format!("mallory-{number}"), &[]), Verdict::Denied);
        review.metadata.uid = Some(format!("flood-{number}"));
        Arc::new(review)
    };
    let mut words: Vec<_> = (0..=MOST).map(stranger).collect();
    words.push(Arc::new(review(60, &user("carol", &["approvers"]), Verdict::Approved)));
    let (tally, _) = counted(&request("alice"), &plan(false), &words, 30, &only_in("approvers"));
    assert!(tally.against.is_none());
    assert!(tally.doubt.unwrap().contains("no more are looked at"));
}

#[test]
fn a_quorum_is_reached_by_the_last_approval_that_was_needed_and_not_by_later_ones() {
    let mut plan = plan(false);
    plan.policies[0].required = 2;
    let by = |people: &[&str]| {
        let approvals = (1..).zip(people);
        let approvals = approvals.map(|(n, who)| Arc::new(review(n, &user(who, &[]), Verdict::Approved)));
        counted(&request("alice"), &plan, &approvals.collect::<Vec<_>>(), -10, &all_may).0.reached_at()
    };
    assert_eq!(by(&["bob"]), None);
    assert_eq!(by(&["bob", "carol"]), Some(at(2)));
    assert_eq!(by(&["bob", "carol", "dave"]), Some(at(2)));
}

#[test]
fn a_question_is_open_only_while_its_answer_could_be_enough() {
    let asks = |required: usize, by: &[&str], unasked: &[&str]| Quorum {
        required,
        by: by.iter().map(|who| (*who).to_owned()).collect(),
        unasked: unasked.iter().map(|who| format!("{who} was not asked about")).collect(),
        ..Quorum::default()
    };
    let open = |quorums: Vec<Quorum>| {
        let tally = Tally { quorums, ..Tally::default() };
        tally.open_question().map(ToOwned::to_owned)
    };
    let bob = Some("bob was not asked about".to_owned());
    assert_eq!(open(vec![asks(1, &[], &["bob"])]), bob);
    assert_eq!(open(vec![asks(2, &["carol"], &["bob"])]), bob);
    assert_eq!(open(vec![asks(3, &["carol"], &["bob"])]), None);
    assert_eq!(open(vec![asks(1, &[], &["bob"]), asks(1, &[], &[])]), None, "the other one is missing");
    assert_eq!(open(vec![asks(1, &["carol"], &[])]), None);
}
