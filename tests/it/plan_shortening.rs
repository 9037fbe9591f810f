//! A policy that is tightened while a grant under it is live: the same grant with an earlier end, over generated
//! histories of crashes, removals by others, lost writes, restored statuses and clock steps.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis::api::{ConditionType, Reason};
use portcullis::api::{
    JitAccessRequest, JitAccessRequestStatus, RequestedPolicy, RuleState, State, find_condition,
};
use portcullis::plan::authorize::{GrantPlan, Judgement};
use portcullis::plan::lifecycle::{OPEN_BOUND, state};
use portcullis::plan::names::{Cluster, Mark, parse_name};
use proptest::prelude::*;

use crate::plan_lifecycle::{Cloud, judgement, plan, reconcile, request, start};

const ASKED: u64 = 3600;

/// The policies allow so many seconds by now.
fn allowed(seconds: u64) -> Judgement {
    let asked = plan(ASKED);
    if seconds >= ASKED {
        return Judgement::Allowed(Box::new(asked));
    }
    let why = format!("JitPolicy web (generation 2) allows {seconds}s for port 22");
    Judgement::Allowed(Box::new(GrantPlan {
        duration: Duration::from_secs(seconds),
        shortened_by: Some(why),
        ..asked
    }))
}

fn status(request: &JitAccessRequest) -> &JitAccessRequestStatus {
    request.status.as_ref().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn expires(request: &JitAccessRequest) -> Timestamp {
    status(request).expires_at.as_ref().unwrap().0
}

fn active(request: &JitAccessRequest) -> (String, String, String) {
    let active = find_condition(&status(request).conditions, ConditionType::Active).unwrap();
    (active.status.clone(), active.reason.clone(), active.message.clone())
}

/// Moves and rounds of the gate at one moment.
fn go_on(request: &mut JitAccessRequest, cloud: &mut Cloud, judged: &Judgement, now: Timestamp) {
    for _ in 0..6 {
        reconcile(request, cloud, judged, now, false);
        cloud.work(now, false);
    }
}

fn live() -> (JitAccessRequest, Cloud) {
    let (mut request, mut cloud) = (request(ASKED), Cloud::default());
    go_on(&mut request, &mut cloud, &allowed(ASKED), start());
    assert_eq!(state(&request), State::Active);
    (request, cloud)
}

fn is_outcome(request: &JitAccessRequest, outcome: State, reason: Reason, words: &str) {
    let (_, found, message) = active(request);
    assert_eq!(status(request).outcome.as_deref(), Some(outcome.as_str()), "{message}");
    assert_eq!(found, reason.as_str(), "{message}");
    assert!(message.contains(words), "{message}");
}

#[test]
fn a_live_grant_gets_an_earlier_end_and_says_who_made_it_so() {
    let (mut request, mut cloud) = live();
    let former = cloud.standing.clone();
    reconcile(&mut request, &mut cloud, &allowed(600), after(60), false);
    // Written ahead: the end is earlier and the former rules are on their way out before anything was sent.
    assert_eq!((state(&request), expires(&request)), (State::Opening, after(600)));
    assert!(status(&request).rules.iter().all(|rule| rule.state == RuleState::Closing.as_str()));
    let (value, reason, message) = active(&request);
    assert_eq!((value.as_str(), reason.as_str()), ("False", "PolicyTightened"));
    assert!(message.contains("JitPolicy web (generation 2) allows 600s for port 22"), "{message}");
    assert!(message.contains(&after(3600).to_string()), "{message}");
    reconcile(&mut request, &mut cloud, &allowed(600), after(61), false);
    assert_eq!(cloud.written.len(), 2, "nothing new is written before the former rules are gone");
    cloud.work(after(62), false);
    assert!(cloud.standing.is_empty());
    reconcile(&mut request, &mut cloud, &allowed(600), after(63), false);
    assert!(status(&request).rules.iter().all(|rule| rule.state == RuleState::Opening.as_str()));
    go_on(&mut request, &mut cloud, &allowed(600), after(64));
    assert_eq!(state(&request), State::Active);
    let (value, _, message) = active(&request);
    assert_eq!(value, "True");
    assert!(message.contains("allows 600s for port 22"), "{message}");
    assert_eq!(cloud.standing.len(), 2);
    assert!(cloud.standing.is_disjoint(&former), "no name is used twice");
    // And that is that: neither looking again nor loosening changes anything.
    let before = request.clone();
    go_on(&mut request, &mut cloud, &allowed(600), after(70));
    go_on(&mut request, &mut cloud, &allowed(ASKED), after(80));
    assert_eq!(request, before);
    go_on(&mut request, &mut cloud, &allowed(ASKED), after(600));
    assert_eq!(state(&request), State::Expired);
    assert!(cloud.standing.is_empty());
}

#[test]
fn a_shortened_grant_says_by_which_generation_of_each_policy_it_is_judged() {
    let under = |generations: [(&str, i64); 2], judged: Judgement| {
        let Judgement::Allowed(mut plan) = judged else { panic!("{judged:?}") };
        let policy = |(name, generation): (&str, i64)| RequestedPolicy {
            name: name.into(),
            uid: name.into(),
            generation,
            ..Default::default()
        };
        plan.policies = generations.map(policy).into();
        Judgement::Allowed(plan)
    };
    let (mut request, mut cloud) = (request(ASKED), Cloud::default());
    go_on(&mut request, &mut cloud, &under([("ops", 5), ("web", 1)], allowed(ASKED)), start());
    let tightened = under([("web", 2), ("ops", 5)], allowed(600));
    reconcile(&mut request, &mut cloud, &tightened, after(60), false);
    assert_eq!((state(&request), expires(&request)), (State::Opening, after(600)));
    let policies = &status(&request).policies;
    let generations: Vec<_> =
        policies.iter().map(|policy| (policy.uid.as_str(), policy.generation)).collect();
    assert_eq!(generations, [("ops", 5), ("web", 2)]);
}

#[test]
fn a_grant_that_has_had_its_time_by_now_is_closed() {
    for (allows, at) in [(60, 90), (60, 60), (89, 60)] {
        let (mut request, mut cloud) = live();
        go_on(&mut request, &mut cloud, &allowed(allows), after(at));
        is_outcome(&request, State::Revoked, Reason::PolicyTightened, "less than 30s are left");
        assert_eq!((state(&request), cloud.standing.len()), (State::Revoked, 0));
    }
    let (mut request, mut cloud) = live();
    go_on(&mut request, &mut cloud, &allowed(90), after(60));
    assert_eq!((state(&request), expires(&request)), (State::Active, after(90)));
}

#[test]
fn a_policy_that_is_tightened_twice_shortens_twice_also_while_it_is_at_it() {
    for rounds_between in 0..4 {
        let (mut request, mut cloud) = live();
        for _ in 0..rounds_between {
            reconcile(&mut request, &mut cloud, &allowed(600), after(60), false);
            cloud.work(after(60), false);
        }
        go_on(&mut request, &mut cloud, &allowed(300), after(61));
        assert_eq!((state(&request), expires(&request)), (State::Active, after(300)));
        let names: BTreeSet<_> = cloud.written.iter().collect();
        assert_eq!(names.len(), cloud.written.len(), "a name was used twice: {:?}", cloud.written);
        assert_eq!(cloud.standing.len(), 2);
    }
}

#[test]
fn a_grant_that_is_still_opening_is_shortened_too() {
    let (mut request, mut cloud) = (request(ASKED), Cloud::default());
    while state(&request) != State::Opening {
        reconcile(&mut request, &mut cloud, &allowed(ASKED), start(), false);
    }
    go_on(&mut request, &mut cloud, &allowed(600), after(5));
    assert_eq!((state(&request), expires(&request)), (State::Active, after(600)));
    assert_eq!(cloud.written.len(), 2, "the longer rules were never written: {:?}", cloud.written);
}

#[test]
fn what_somebody_removed_is_not_written_again_under_another_name() {
    // Before the shortening was noticed, and before its removals were sent.
    for noticed in [false, true] {
        let (mut request, mut cloud) = live();
        if noticed {
            reconcile(&mut request, &mut cloud, &allowed(600), after(60), false);
        }
        cloud.somebody_removes_a_rule().unwrap();
        go_on(&mut request, &mut cloud, &allowed(600), after(61));
        assert!(state(&request).is_last(), "{:?}", state(&request));
        assert_eq!((cloud.standing.len(), cloud.written.len()), (0, 2));
    }
}

#[test]
fn a_crash_between_the_removal_and_its_record_ends_the_grant_and_any_other_does_not() {
    for crash_at in 0..8 {
        let (mut request, mut cloud) = live();
        for step in 0..8 {
            if step % 2 == 0 {
                reconcile(&mut request, &mut cloud, &allowed(600), after(60), false);
            } else {
                cloud.work(after(60), false);
            }
            if step == crash_at {
                cloud.restart(&request, after(60));
            }
        }
        go_on(&mut request, &mut cloud, &allowed(600), after(62));
        let wanted = if crash_at == 1 { State::Revoked } else { State::Active };
        assert_eq!(state(&request), wanted, "crash at {crash_at}");
        let standing = if crash_at == 1 { 0 } else { 2 };
        assert_eq!(cloud.standing.len(), standing, "crash at {crash_at}");
    }
}

#[test]
fn a_shortening_that_is_resumed_too_late_opens_nothing() {
    let late = i64::try_from(OPEN_BOUND.as_secs()).unwrap() + 1;
    for (rounds, words) in [(1, "not gone within"), (2, "was not resumed within")] {
        let (mut request, mut cloud) = live();
        for _ in 0..rounds {
            reconcile(&mut request, &mut cloud, &allowed(600), after(60), false);
            if rounds == 2 {
                cloud.work(after(60), false);
            }
        }
        if rounds == 1 {
            assert!(status(&request).rules.iter().all(|rule| rule.state == "Closing"));
        } else {
            let opening = status(&request).rules.iter().all(|rule| rule.state == "Opening");
            // What the gate wrote in the last round is taken away again: the snapshot is from before.
            assert!(opening);
            cloud.standing.clear();
        }
        cloud.restart(&request, after(60 + late));
        let written = cloud.written.len();
        cloud.work(after(60 + late), true);
        go_on(&mut request, &mut cloud, &allowed(600), after(60 + late));
        is_outcome(&request, State::Revoked, Reason::PolicyTightened, words);
        assert_eq!((cloud.written.len(), cloud.standing.len()), (written, 0));
    }
}

#[test]
fn a_world_that_is_not_known_holds_the_second_half_up_and_not_the_first() {
    let (mut request, mut cloud) = live();
    reconcile(&mut request, &mut cloud, &allowed(600), after(60), false);
    let unknown = judgement(5, ASKED);
    go_on(&mut request, &mut cloud, &unknown, after(62));
    assert_eq!((state(&request), cloud.standing.len(), cloud.written.len()), (State::Opening, 0, 2));
    go_on(&mut request, &mut cloud, &allowed(600), after(70));
    assert_eq!((state(&request), cloud.standing.len()), (State::Active, 2));
}

#[derive(Clone, Debug)]
enum Happening {
    Reconcile { allows: u64, unknown: bool, lost: bool },
    Gate { fails: bool },
    Wait(i64),
    ClockStepsBack(i64),
    SomebodyRemovesARule,
    Restart,
    Snapshot,
    Restore,
}

fn happening() -> impl Strategy<Value = Happening> {
    let allows = prop_oneof![6 => Just(ASKED), 2 => 30u64..ASKED, 2 => 60u64..400];
    prop_oneof![
        9 => (allows, prop::bool::weighted(0.1), prop::bool::weighted(0.1))
            .prop_map(|(allows, unknown, lost)| Happening::Reconcile { allows, unknown, lost }),
        7 => prop::bool::weighted(0.15).prop_map(|fails| Happening::Gate { fails }),
        4 => (1i64..70).prop_map(Happening::Wait),
        1 => (1i64..40).prop_map(Happening::ClockStepsBack),
        1 => Just(Happening::SomebodyRemovesARule),
        2 => Just(Happening::Restart),
        1 => Just(Happening::Snapshot),
        1 => Just(Happening::Restore),
    ]
}

/// Whether a status may still have something written: in time, or all that it says to be there is.
fn may_write(request: &JitAccessRequest, cloud: &Cloud, now: Timestamp) -> bool {
    let status = status(request);
    let at = status.shortened.as_ref().map(|shortened| &shortened.at).or(status.granted_at.as_ref()).unwrap();
    let in_time = now <= at.0 + SignedDuration::try_from(OPEN_BOUND).unwrap();
    let stands = status.rules.iter().all(|rule| {
        cloud.standing.contains(&(rule.firewall.to_ascii_lowercase(), rule.name.clone()))
            || rule.state == RuleState::Absent.as_str()
    });
    match state(request) {
        State::Opening => in_time,
        State::Active => stands,
        _ => false,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1200, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_nothing_is_longer_than_allowed_written_twice_or_opened_by_a_restored_status(
        history in prop::collection::vec(happening(), 1..100),
    ) {
        let (mut now, mut request, mut cloud) = (start(), request(ASKED), Cloud::default());
        let cluster = Cluster::new("test", &[]);
        let mut snapshot: Option<JitAccessRequest> = None;
        // Firewalls on which nothing may be written any more.
        let mut barred = false;
        let mut read_back: BTreeSet<(String, String)> = BTreeSet::new();
        for happening in history {
            let written = cloud.written.len();
            match happening {
                Happening::Reconcile { allows, unknown, lost } => {
                    let judged = if unknown { judgement(5, ASKED) } else { allowed(allows) };
                    let (before, had) = (state(&request), request.status.clone());
                    reconcile(&mut request, &mut cloud, &judged, now, lost);
                    let after = state(&request);
                    prop_assert!(!before.is_last() || before == after, "{before:?} -> {after:?}");
                    prop_assert!(!before.holds_rules() || after.holds_rules() || after.is_last());
                    let earlier = had.and_then(|had| had.expires_at);
                    let later = status_or(&request).expires_at;
                    if let (Some(earlier), Some(later)) = (&earlier, &later) {
                        prop_assert!(later <= earlier, "the end moved from {earlier:?} to {later:?}");
                    }
                    // As soon as it is known, it is durable: the end is within what the policies allow.
                    if let (false, false, true, Some(end)) = (unknown, lost, before.holds_rules(), &later)
                        && matches!(after, State::Opening | State::Active)
                    {
                        let granted = status_or(&request).granted_at.unwrap().0;
                        let most = granted + SignedDuration::from_secs(i64::try_from(allows).unwrap());
                        prop_assert!(end.0 <= most, "{:?} after {most}", end.0);
                    }
                }
                Happening::Gate { fails } => cloud.work(now, fails),
                Happening::Wait(by) => now += SignedDuration::from_secs(by),
                Happening::ClockStepsBack(by) => {
                    now -= SignedDuration::from_secs(by);
                    // A clock that is set back makes late what was in time: the bound is by that clock.
                    snapshot = None;
                    barred = false;
                }
                Happening::SomebodyRemovesARule => {
                    if let Some(rule) = cloud.somebody_removes_a_rule() {
                        barred |= read_back.contains(&rule);
                    }
                }
                Happening::Restart => cloud.restart(&request, now),
                Happening::Snapshot => {
                    if state(&request).holds_rules() {
                        snapshot = Some(request.clone());
                    }
                }
                Happening::Restore => {
                    if let Some(old) = snapshot.take() {
                        request = old;
                        cloud.restart(&request, now);
                        // Within the bound, a restored opening is an opening: what was known since is forgotten.
                        barred = !may_write(&request, &cloud, now);
                        read_back.clear();
                    }
                }
            }
            let wrote = &cloud.written[written..];
            prop_assert!(wrote.is_empty() || !barred, "{wrote:?} was written");
            let names: BTreeSet<_> = cloud.written.iter().collect();
            prop_assert_eq!(names.len(), cloud.written.len(), "a name was used twice");
            let status = status_or(&request);
            for rule in &status.rules {
                if rule.state == RuleState::Present.as_str() {
                    read_back.insert((rule.firewall.to_ascii_lowercase(), rule.name.clone()));
                }
            }
            for (firewall, name) in &cloud.standing {
                let Some(rule) = status.rules.iter().find(|rule| {
                    rule.firewall.eq_ignore_ascii_case(firewall) && rule.name == *name
                }) else {
                    // Of a status that was taken back; the sweep closes it.
                    continue;
                };
                let Some(Mark::Allow { deadline: Some(deadline), .. }) = parse_name(&cluster, name) else {
                    return Err(TestCaseError::fail(format!("{name} does not parse")));
                };
                let end = status.expires_at.as_ref().unwrap().0;
                let going = matches!(RuleState::parse(&rule.state), RuleState::Closing);
                prop_assert!(deadline == end || (deadline > end && going), "{name} of {end} is {}", rule.state);
            }
        }
        // Whatever happened, it comes to an end.
        now = now.max(start()) + SignedDuration::from_secs(100_000);
        for _ in 0..20 {
            reconcile(&mut request, &mut cloud, &allowed(ASKED), now, false);
            cloud.work(now, false);
        }
        prop_assert!(state(&request).is_last(), "{:?}", state(&request));
        let left = status_or(&request).rules.iter().any(|rule| {
            cloud.standing.contains(&(rule.firewall.to_ascii_lowercase(), rule.name.clone()))
        });
        prop_assert!(!left);
    }
}

fn status_or(request: &JitAccessRequest) -> JitAccessRequestStatus {
    request.status.clone().unwrap_or_default()
}
