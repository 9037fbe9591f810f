//! A grant behind a firewall whose writes take minutes: it begins to be closed before its end, and may take longer to open.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis::api::{
    ConditionType, JitAccessRequest, JitAccessRequestStatus, Reason, State, find_condition,
};
use portcullis::plan::authorize::{GrantPlan, Judgement};
use portcullis::plan::lifecycle::{TURN_BOUND, WHOLE_BOUND, state};
use portcullis::plan::names::deadline_of;

use crate::plan_lifecycle::{Cloud, plan, reconcile, request, start};

const ASKED: u64 = 3600;
const LEAD: u64 = 300;

fn slow(change: impl FnOnce(&mut GrantPlan)) -> Judgement {
    let mut plan = plan(ASKED);
    plan.lead = Duration::from_secs(LEAD);
    let firewall = plan.rules[0].firewall.as_str().replace("networkSecurityGroups", "azureFirewalls");
    plan.rules[0].firewall.0 = portcullis::api::values::ArmId::parse(&firewall).unwrap();
    change(&mut plan);
    Judgement::Allowed(Box::new(plan))
}

fn status(request: &JitAccessRequest) -> &JitAccessRequestStatus {
    request.status.as_ref().unwrap()
}

fn after(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn message(request: &JitAccessRequest) -> String {
    find_condition(&status(request).conditions, ConditionType::Active).unwrap().message.clone()
}

/// Moves, and rounds of the gate where `works`, at one moment.
fn go_on(request: &mut JitAccessRequest, cloud: &mut Cloud, judged: &Judgement, now: Timestamp, works: bool) {
    for _ in 0..6 {
        reconcile(request, cloud, judged, now, false);
        if works {
            cloud.work(now, false);
        }
    }
}

#[test]
fn every_rule_says_when_its_removal_begins_and_all_are_gone_at_the_end() {
    let (mut request, mut cloud) = (request(ASKED), Cloud::default());
    let judged = slow(|_| {});
    go_on(&mut request, &mut cloud, &judged, start(), false);
    assert_eq!(state(&request), State::Opening);
    assert!(message(&request).contains("3 to 5 minutes"), "{}", message(&request));
    let end = after(ASKED.try_into().unwrap());
    let begins = end - SignedDuration::from_secs(LEAD.try_into().unwrap());
    assert_eq!(status(&request).expires_at.as_ref().unwrap().0, end);
    let uid = request.metadata.uid.clone().unwrap();
    for rule in &status(&request).rules {
        assert_eq!(deadline_of(&rule.name, &uid), Some(begins), "{rule:?}");
    }
    go_on(&mut request, &mut cloud, &judged, after(240), true);
    assert_eq!(state(&request), State::Active);
    go_on(&mut request, &mut cloud, &judged, begins - SignedDuration::from_secs(1), true);
    assert_eq!(state(&request), State::Active);
    // Gates close by the names; or the request moves first.
    for gate_first in [false, true] {
        let (mut request, mut cloud) = (request.clone(), cloud.clone());
        if gate_first {
            cloud.work(begins, false);
        }
        go_on(&mut request, &mut cloud, &judged, begins, true);
        go_on(&mut request, &mut cloud, &judged, begins + SignedDuration::from_secs(1), true);
        assert_eq!(state(&request), State::Expired, "{}", message(&request));
        assert!(cloud.standing.is_empty());
        assert!(status(&request).closed_at.as_ref().unwrap().0 < end);
    }
}

#[test]
fn it_may_take_as_long_to_open_as_a_write_that_was_begun_in_time() {
    let judged = slow(|_| {});
    let bound = i64::try_from((TURN_BOUND + WHOLE_BOUND).as_secs()).unwrap();
    for (seconds, opens) in [(bound - 1, true), (bound, false)] {
        let (mut request, mut cloud) = (request(ASKED), Cloud::default());
        go_on(&mut request, &mut cloud, &judged, start(), false);
        // Written in time, and read back late.
        cloud.work(after(500), false);
        cloud.unread();
        go_on(&mut request, &mut cloud, &judged, after(seconds), false);
        assert_eq!(state(&request) == State::Opening, opens, "{seconds}: {}", message(&request));
    }
}

/// Its rules could not be replaced within the bound of a shortening.
#[test]
fn where_a_policy_allows_less_by_now_it_is_closed_and_not_shortened() {
    let (mut request, mut cloud) = (request(ASKED), Cloud::default());
    go_on(&mut request, &mut cloud, &slow(|_| {}), start(), true);
    assert_eq!(state(&request), State::Active);
    let less = slow(|plan| {
        plan.duration = Duration::from_secs(1800);
        plan.shortened_by = Some("JitPolicy web (generation 2) allows 30m for port 22".into());
    });
    go_on(&mut request, &mut cloud, &less, after(60), true);
    go_on(&mut request, &mut cloud, &less, after(61), true);
    assert_eq!(state(&request), State::Revoked, "{}", message(&request));
    let active = find_condition(&status(&request).conditions, ConditionType::Active).unwrap();
    assert_eq!(active.reason, Reason::PolicyTightened.as_str());
    assert!(active.message.contains("not replaced in time"), "{}", active.message);
    assert!(cloud.standing.is_empty());
}
