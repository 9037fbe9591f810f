//! Before a grant: approved, scheduled, and how long a request waits.

use portcullis::plan::reviews::Quorum;

use super::*;

/// The state that one step leads to.
fn after(
    request: &JitAccessRequest,
    judgement: &Judgement,
    tally: &Tally,
    admission: &Admission,
    patience: Patience,
    now: Timestamp,
) -> State {
    let cluster = Cluster::new("test", &[]);
    let seen = &|_: &RuleStatus| Seen::Nothing;
    let (no_room, stopped_by, ground) = (None, None, Ground::Own);
    let world = World {
        request,
        judgement,
        tally,
        admission,
        cluster: &cluster,
        seen,
        no_room,
        patience,
        stopped_by,
        ground,
    };
    State::parse(&step(&world, now).status.state.unwrap()).unwrap()
}

#[test]
fn a_scheduled_request_opens_at_its_start_and_ends_at_its_hard_end() {
    let (mut request, mut cloud, judged) = (request(7200), Cloud::default(), judgement(0, 7200));
    let (begin, end) = (start() + SignedDuration::from_secs(600), start() + SignedDuration::from_secs(1200));
    request.spec.not_before = Some(begin.into());
    request.spec.not_after = Some(end.into());
    for _ in 0..5 {
        reconcile(&mut request, &mut cloud, &judged, start(), false);
    }
    assert_eq!(state(&request), State::Scheduled);
    for _ in 0..5 {
        reconcile(&mut request, &mut cloud, &judged, begin, false);
    }
    assert_eq!(state(&request), State::Opening);
    assert_eq!(request.status.unwrap().expires_at.unwrap().0, end);
}

#[test]
fn a_scheduled_request_that_lacks_an_approval_says_so_long_before_its_start() {
    let (mut request, judged) = (request(7200), two_of(3600));
    request.spec.not_before = Some((start() + SignedDuration::from_secs(600)).into());
    let hash = "a".repeat(64);
    let both: Vec<_> =
        [(1, "bob"), (2, "carol")].map(|(number, who)| review(number, who, Verdict::Approved, &hash)).into();
    let now = start() + SignedDuration::from_secs(20);
    let mut come = |reviews: &[Arc<JitAccessReview>]| {
        (0..5).for_each(|_| {
            reviewed(&mut request, &mut Cloud::default(), &judged, reviews, now, false);
        });
        state(&request)
    };
    assert_eq!(come(&both), State::Scheduled);
    // One of the two may approve no more, or the policy asks for more than there are.
    assert_eq!(come(&both[..1]), State::Pending);
    assert_eq!(come(&both), State::Scheduled);
}

/// Nobody is asked for an approval that may be there, or that nothing counts yet.
#[test]
fn a_scheduled_request_goes_back_only_where_it_is_known_that_approvals_are_lacking() {
    let mut request = request(7200);
    request.spec.not_before = Some((start() + SignedDuration::from_secs(600)).into());
    request.status = Some(JitAccessRequestStatus {
        state: Some(State::Scheduled.as_str().into()),
        plan_hash: Some("a".repeat(64)),
        approved_at: Some(Time(start())),
        ..Default::default()
    });
    let quorum = |by: &[&str], unasked: &[&str]| Tally {
        quorums: vec![Quorum {
            policy: "web".into(),
            required: 2,
            by: by.iter().map(|name| (*name).into()).collect(),
            reached_at: None,
            unasked: unasked.iter().map(|why| (*why).into()).collect(),
        }],
        ..Tally::default()
    };
    let come = |tally: &Tally, admission: &Admission| {
        let judged = two_of(3600);
        after(
            &request,
            &judged,
            tally,
            admission,
            Patience::default(),
            start() + SignedDuration::from_secs(9),
        )
    };
    assert_eq!(come(&quorum(&["bob"], &[]), &IN_FORCE), State::Pending);
    assert_eq!(come(&quorum(&["bob", "carol"], &[]), &IN_FORCE), State::Scheduled);
    assert_eq!(come(&quorum(&["bob"], &["carol's right"]), &IN_FORCE), State::Scheduled);
    assert_eq!(
        come(&quorum(&[], &["carol's right"]), &IN_FORCE),
        State::Pending,
        "one is lacking either way"
    );
    let doubted = Tally { doubt: Some("a denial".into()), ..quorum(&["bob"], &[]) };
    assert_eq!(come(&doubted, &IN_FORCE), State::Scheduled);
    let away = Admission::NotInForce { why: "the binding is gone".into() };
    assert_eq!(come(&quorum(&["bob"], &[]), &away), State::Scheduled);
}

/// A policy that gives people eight hours does so also while it is suspended or the cloud is away.
#[test]
fn the_time_to_wait_is_the_policys_also_while_it_cannot_be_judged() {
    let hours = |hours: u64| std::time::Duration::from_secs(hours * 3600);
    let patience = Patience { pending: hours(8), unused: hours(48) };
    let at = |hours: i64| start() + SignedDuration::from_hours(hours);
    let come = |before: State, judged: &Judgement, now: Timestamp| {
        let mut request = request(3600);
        request.status = Some(JitAccessRequestStatus {
            state: Some(before.as_str().into()),
            approved_at: Some(Time(start())),
            ..Default::default()
        });
        after(&request, judged, &Tally::default(), &IN_FORCE, patience, now)
    };
    let (suspended, unknown) = (judgement(3, 3600), judgement(5, 3600));
    for judged in [&suspended, &unknown] {
        assert_eq!(come(State::Pending, judged, at(7)), State::Pending, "{judged:?}");
    }
    assert_eq!(come(State::Pending, &suspended, at(9)), State::TimedOut);
    // After a stop that was longer than that: approvals that came in time are counted once it is known.
    assert_eq!(come(State::Pending, &unknown, at(9)), State::Pending);
    assert_eq!(come(State::Approved, &unknown, at(47)), State::Approved);
    assert_eq!(come(State::Approved, &unknown, at(48)), State::TimedOut);
}

#[test]
fn a_plan_that_changed_between_approval_and_grant_is_said_and_approved_anew() {
    for before in [State::Approved, State::Scheduled] {
        let (mut request, judged) = (request(3600), two_of(3600));
        request.status = Some(JitAccessRequestStatus {
            state: Some(before.as_str().into()),
            plan_hash: Some("b".repeat(64)),
            approved_at: Some(Time(start())),
            ..Default::default()
        });
        let now = start() + SignedDuration::from_secs(60);
        reconcile(&mut request, &mut Cloud::default(), &judged, now, false);
        let status = request.status.as_ref().unwrap();
        let approved = status.conditions.iter().find(|condition| condition.type_ == "Approved").unwrap();
        assert_eq!(
            (state(&request), approved.reason.as_str()),
            (State::Pending, "PlanChanged"),
            "{before:?}"
        );
        assert_eq!(status.pending_since, Some(Time(now)), "the wait begins anew");
    }
}
