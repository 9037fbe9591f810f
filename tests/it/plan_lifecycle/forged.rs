//! Statuses that somebody else wrote, in a moment without admission policies: they open nothing, and what they say is
//! closed. What a process before this one wrote ahead goes on.

use portcullis::plan::names::allow_name;
use proptest::sample::select;

use super::*;

/// The request as it stands after the write-ahead, in a process that has just been started.
fn found(seconds: u64) -> (JitAccessRequest, Cloud) {
    let (mut request, mut cloud) = (request(seconds), Cloud::default());
    while state(&request) != State::Opening {
        reconcile(&mut request, &mut cloud, &judgement(0, seconds), start(), false);
    }
    (request, Cloud::default())
}

fn after(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn outcome(request: &JitAccessRequest) -> (State, Option<String>, String) {
    let status = request.status.clone().unwrap();
    let active = status.conditions.into_iter().find(|condition| condition.type_ == "Active");
    (state(request), status.outcome, active.map(|active| active.reason).unwrap_or_default())
}

#[test]
fn a_restart_within_the_bound_goes_on_with_what_was_written_ahead() {
    let (mut request, mut cloud) = found(3600);
    // The machines are not read yet, and the policy is not judged: nothing is written, nothing is lost.
    for _ in 0..3 {
        reconcile(&mut request, &mut cloud, &judgement(5, 3600), after(20), false);
        cloud.work(after(20), false);
        assert!(cloud.standing.is_empty());
    }
    assert_eq!(state(&request), State::Opening);
    for _ in 0..3 {
        reconcile(&mut request, &mut cloud, &judgement(0, 3600), after(40), false);
        cloud.work(after(40), false);
    }
    assert_eq!(state(&request), State::Active);
    assert_eq!(cloud.standing.len(), 2);
}

#[test]
fn what_cannot_be_proved_within_the_bound_is_closed() {
    let (mut request, mut cloud) = found(3600);
    reconcile(&mut request, &mut cloud, &judgement(5, 3600), after(60), false);
    assert_eq!(state(&request), State::Opening);
    reconcile(&mut request, &mut cloud, &judgement(5, 3600), after(61), false);
    assert_eq!(outcome(&request), (State::Closing, Some("Failed".to_owned()), "OpenTimedOut".to_owned()));
}

#[test]
fn what_was_created_before_admission_was_in_force_is_not_resumed() {
    let (mut request, mut cloud) = found(3600);
    cloud.admitted_since = after(5);
    reconcile(&mut request, &mut cloud, &judgement(0, 3600), after(10), false);
    assert_eq!(outcome(&request), (State::Closing, Some("Failed".to_owned()), "NotTrusted".to_owned()));
}

/// What somebody may write into a live grant to have more of it.
#[test]
fn a_live_grant_with_other_rules_or_a_later_end_than_was_asked_for_is_closed() {
    type Change = fn(&mut portcullis::api::JitAccessRequestStatus);
    let changes: [(&str, Change); 8] = [
        ("sources", |status| status.rules[0].sources = vec!["0.0.0.0/0".into()]),
        ("ports", |status| status.rules[0].ports = vec!["1-65535".into()]),
        ("protocol", |status| status.rules[1].protocol = "Any".into()),
        ("destinations", |status| status.rules[1].destinations.push("10.0.0.5".into())),
        ("one more rule", |status| {
            let mut more = status.rules[0].clone();
            more.ports = vec!["3389".into()];
            status.rules.push(more);
        }),
        ("one rule less", |status| drop(status.rules.pop())),
        ("a later end", |status| {
            let end = status.expires_at.as_ref().unwrap().0;
            status.expires_at = Some(Time(end + SignedDuration::from_secs(1)));
        }),
        ("no beginning", |status| status.granted_at = None),
    ];
    for (what, change) in changes {
        let (mut request, mut cloud, judged) = (request(3600), Cloud::default(), judgement(0, 3600));
        for _ in 0..8 {
            reconcile(&mut request, &mut cloud, &judged, start(), false);
            cloud.work(start(), false);
        }
        assert_eq!(state(&request), State::Active);
        reconcile(&mut request, &mut cloud, &judged, after(60), false);
        assert_eq!(state(&request), State::Active, "else the test proves nothing");
        change(request.status.as_mut().unwrap());
        reconcile(&mut request, &mut cloud, &judged, after(60), false);
        assert_eq!(
            (state(&request), request.status.as_ref().unwrap().outcome.as_deref()),
            (State::Closing, Some("Revoked")),
            "{what}"
        );
    }
    // And one whose hard end is earlier than its duration.
    let (mut request, mut cloud, judged) = (request(3600), Cloud::default(), judgement(0, 3600));
    request.spec.not_after = Some(after(1800).into());
    for _ in 0..8 {
        reconcile(&mut request, &mut cloud, &judged, start(), false);
        cloud.work(start(), false);
    }
    assert_eq!(state(&request), State::Active);
    request.status.as_mut().unwrap().expires_at = Some(Time(after(1801)));
    reconcile(&mut request, &mut cloud, &judged, after(60), false);
    assert_eq!(state(&request), State::Closing);
}

#[test]
fn a_rule_in_a_status_that_is_another_requests_is_left_alone() {
    let (mut request, _) = found(3600);
    let rules = &mut request.status.as_mut().unwrap().rules;
    let other =
        allow_name(&Cluster::new("test", &[]), "99999999-d9cb-469f-a165-70867728950e", after(3600), 0);
    rules[0].name = other;
    rules[1].name = rules[1].name.replace("-allow-", "-deny-");
    for state in ["Opening", "Active", "Closing"] {
        request.status.as_mut().unwrap().state = Some(state.into());
        assert_eq!(duties(&request), [], "{state}");
    }
}

#[test]
fn what_no_gate_can_close_keeps_nothing_closing() {
    let (mut request, mut cloud) = found(3600);
    let status = request.status.as_mut().unwrap();
    status.state = Some("Closing".into());
    status.rules[0].name =
        allow_name(&Cluster::new("test", &[]), "99999999-d9cb-469f-a165-70867728950e", after(3600), 0);
    status.rules[1].firewall = "not an id".into();
    for _ in 0..4 {
        reconcile(&mut request, &mut cloud, &judgement(0, 3600), after(5), false);
        cloud.work(after(5), false);
    }
    assert!(state(&request).is_last(), "{:?}", request.status);
    // What may be ours, of a cluster id that is no longer configured, is waited for.
    let (mut request, mut cloud) = found(3600);
    let status = request.status.as_mut().unwrap();
    status.state = Some("Closing".into());
    status.rules[0].name = allow_name(&Cluster::new("before", &[]), UID, after(3600), 0);
    reconcile(&mut request, &mut cloud, &judgement(0, 3600), after(5), false);
    assert_eq!(state(&request), State::Closing);
}

/// Any status: what its author would have opened, and in which state the object is said to be.
fn forged() -> impl Strategy<Value = portcullis::api::JitAccessRequestStatus> {
    let rule = (
        select(&["nic", "subnet", "theirs"][..]),
        select(&["203.0.113.7/32", "0.0.0.0/0", "198.51.100.23/32"][..]),
        select(&["22", "1-65535"][..]),
        select(&["TCP", "Any"][..]),
        select(&["Planned", "Opening", "Present", "Closing", "Absent", "Splendid"][..]),
        0u32..4,
    );
    (
        select(
            &["Pending", "Approved", "Scheduled", "Opening", "Opening", "Active", "Closing", "Splendid"][..],
        ),
        prop::collection::vec(rule, 1..4),
        -120i64..120,
        0i64..100_000,
        any::<bool>(),
    )
        .prop_map(|(word, rules, granted, length, as_asked)| {
            let end = start() + SignedDuration::from_secs(granted + length);
            let mut status = portcullis::api::JitAccessRequestStatus {
                state: Some(word.into()),
                granted_at: Some(Time(start() + SignedDuration::from_secs(granted))),
                expires_at: Some(Time(end)),
                machines: plan(3600).machines,
                plan_hash: Some("a".repeat(64)),
                ..Default::default()
            };
            status.rules = rules
                .into_iter()
                .map(|(place, source, ports, protocol, state, number)| RuleStatus {
                    firewall: firewall(place).to_string(),
                    name: allow_name(&Cluster::new("test", &[]), UID, end, number),
                    protocol: protocol.into(),
                    sources: vec![source.into()],
                    destinations: vec!["10.0.0.4".into()],
                    ports: vec![ports.into()],
                    state: state.into(),
                    ..RuleStatus::default()
                })
                .collect();
            if as_asked {
                // Just as the controller would have written it, without asking anybody.
                let (granted, _) = found(3600);
                let own = granted.status.unwrap();
                (status.rules, status.expires_at, status.granted_at) =
                    (own.rules, own.expires_at, own.granted_at);
            }
            status
        })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_forged_status_opens_nothing(
        status in forged(),
        happenings in prop::collection::vec((0u8..6, 0i64..40, any::<bool>()), 1..20),
    ) {
        let (mut now, mut request, mut cloud) = (start(), request(3600), Cloud::default());
        request.status = Some(status);
        request.metadata.finalizers = Some(vec![FINALIZER.into()]);
        // Written while the policies were away: the present interval is younger than the object.
        cloud.admitted_since = start() + SignedDuration::from_secs(1);
        for (judged, wait, restart) in happenings {
            now += SignedDuration::from_secs(wait);
            reconcile(&mut request, &mut cloud, &judgement(judged, 3600), now, false);
            cloud.work(now, false);
            prop_assert!(cloud.standing.is_empty(), "{:?}", request.status);
            if restart {
                cloud = Cloud { admitted_since: cloud.admitted_since, ..Cloud::default() };
            }
        }
    }
}
