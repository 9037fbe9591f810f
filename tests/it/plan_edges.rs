//! The life of a request one move at a time: what is said on each edge, to whom, and with which outcome.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use portcullis::api::values::{ArmId, Protocol};
use portcullis::api::{
    ConditionType, FINALIZER, JitAccessRequest, JitAccessRequestStatus, PinnedMachine, Reason,
    RequestedPolicy, RuleState, RuleStatus, State, Verdict, find_condition,
};
use portcullis::plan::admission::Admission;
use portcullis::plan::authorize::{GrantPlan, Judgement};
use portcullis::plan::lifecycle::{Ground, SHORTEST_GRANT, Seen, Step, World, state, step};
use portcullis::plan::model::FirewallId;
use portcullis::plan::names::Cluster;
use portcullis::plan::reviews::{Quorum, Tally, Word};
use portcullis::plan::terms::Patience;

use crate::plan_lifecycle::{plan, request, start};

mod live;

const ASKED: u64 = 3600;

fn after(seconds: i64) -> Timestamp {
    start() + SignedDuration::from_secs(seconds)
}

fn seconds(of: std::time::Duration) -> i64 {
    of.as_secs().try_into().unwrap()
}

fn allowed(change: impl FnOnce(&mut GrantPlan)) -> Judgement {
    let mut plan = plan(ASKED);
    change(&mut plan);
    Judgement::Allowed(Box::new(plan))
}

fn in_force() -> Admission {
    Admission::InForce { since: Timestamp::MIN }
}

/// Everything around a request, such that nothing stands in its way.
struct Scene {
    judgement: Judgement,
    tally: Tally,
    admission: Admission,
    /// What gates have seen, by the number of the rule; nothing of the others.
    seen: BTreeMap<usize, Seen>,
}

impl Default for Scene {
    fn default() -> Self {
        Self {
            judgement: allowed(|_| {}),
            tally: Tally::default(),
            admission: in_force(),
            seen: BTreeMap::new(),
        }
    }
}

impl Scene {
    fn judged(judgement: Judgement) -> Self {
        Self { judgement, ..Self::default() }
    }

    fn seeing(seen: impl IntoIterator<Item = (usize, Seen)>) -> Self {
        Self { seen: seen.into_iter().collect(), ..Self::default() }
    }

    fn tallied(tally: Tally) -> Self {
        Self { tally, ..Self::default() }
    }

    fn step(&self, request: &JitAccessRequest, now: Timestamp) -> Step {
        let rules = request.status.clone().unwrap_or_default().rules;
        let seen = |rule: &RuleStatus| {
            let number =
                rules.iter().position(|other| other.name == rule.name && other.firewall == rule.firewall);
            number.and_then(|number| self.seen.get(&number)).cloned().unwrap_or_default()
        };
        let world = World {
            request,
            judgement: &self.judgement,
            tally: &self.tally,
            admission: &self.admission,
            cluster: &Cluster::new("test", &[]),
            seen: &seen,
            no_room: None,
            patience: Patience::default(),
            stopped_by: None,
            ground: Ground::Own,
        };
        step(&world, now)
    }
}

fn present(second: i64) -> Seen {
    Seen::Present { at: after(second), priority: 100, shadowed_by: None }
}

fn absent(second: i64) -> Seen {
    Seen::Absent { at: after(second), by_us: true }
}

fn to(step: &Step) -> State {
    State::parse(step.status.state.as_deref().unwrap()).unwrap()
}

fn said(step: &Step, kind: ConditionType) -> &Condition {
    find_condition(&step.status.conditions, kind).unwrap()
}

/// Value, reason and message of a condition.
fn words(step: &Step, kind: ConditionType) -> (&str, &str, &str) {
    let condition = said(step, kind);
    (&condition.status, &condition.reason, &condition.message)
}

fn status(request: &mut JitAccessRequest) -> &mut JitAccessRequestStatus {
    request.status.as_mut().unwrap()
}

fn in_state(word: State) -> JitAccessRequest {
    let mut request = request(ASKED);
    request.status = Some(JitAccessRequestStatus { state: Some(word.as_str().into()), ..Default::default() });
    request
}

/// Approved, with the plan that is still its plan.
fn approved() -> JitAccessRequest {
    let mut request = request(ASKED);
    request.status = Some(Scene::default().step(&request, start()).status);
    assert_eq!(state(&request), State::Approved);
    request
}

fn opening() -> JitAccessRequest {
    let mut request = approved();
    request.metadata.finalizers = Some(vec![FINALIZER.into()]);
    request.status = Some(Scene::default().step(&request, start()).status);
    assert_eq!(state(&request), State::Opening);
    request
}

/// Live, at the start.
fn live() -> JitAccessRequest {
    let mut request = opening();
    request.status = Some(Scene::seeing([(0, present(0)), (1, present(0))]).step(&request, start()).status);
    assert_eq!(state(&request), State::Active);
    request
}

/// On its way to an outcome, with both rules still there.
fn closing() -> JitAccessRequest {
    let mut request = live();
    request.metadata.deletion_timestamp = Some(Time(start()));
    request.status = Some(Scene::default().step(&request, after(60)).status);
    assert_eq!(state(&request), State::Closing);
    request
}

fn deleted(mut request: JitAccessRequest) -> JitAccessRequest {
    request.metadata.deletion_timestamp = Some(Time(start()));
    request
}

fn is_outcome(step: &Step, outcome: State, reason: Reason) {
    assert_eq!(to(step), State::Closing);
    assert_eq!(step.status.outcome.as_deref(), Some(outcome.as_str()));
    assert_eq!(said(step, ConditionType::Active).reason, reason.as_str());
}

#[test]
fn what_waits_for_admission_says_that_it_is_stalled_until_it_waits_no_longer() {
    let away = || Scene {
        admission: Admission::NotInForce { why: "the policy is gone".into() },
        ..Scene::default()
    };
    for word in [State::Pending, State::Approved, State::Scheduled] {
        let mut request = in_state(word);
        request.spec.not_before = Some(after(600).into());
        let next = away().step(&request, start());
        let (value, reason, message) = words(&next, ConditionType::Stalled);
        assert_eq!((value, reason), ("True", "AdmissionNotEnforced"), "{word:?}");
        assert!(message.contains("the policy is gone"), "{message}");
        request.status = Some(next.status);
        let next = Scene::default().step(&request, start());
        assert_eq!(find_condition(&next.status.conditions, ConditionType::Stalled), None, "{word:?}");
    }
    // A live grant goes on, and waits for nothing.
    let next = away().step(&live(), after(60));
    assert_eq!(to(&next), State::Active);
    assert_eq!(find_condition(&next.status.conditions, ConditionType::Stalled), None);
}

#[test]
fn a_status_is_read_so_that_whatever_may_stand_is_closed() {
    let with = |word: Option<&str>, rule: RuleState, expires: bool| {
        let mut request = live();
        let status = status(&mut request);
        status.state = word.map(Into::into);
        status.expires_at = status.expires_at.take().filter(|_| expires);
        status.rules.iter_mut().for_each(|rule_status| rule_status.state = rule.as_str().into());
        state(&request)
    };
    for word in [None, Some(""), Some("Splendid"), Some("Pending"), Some("Approved"), Some("Scheduled")] {
        assert_eq!(with(word, RuleState::Present, true), State::Closing, "{word:?}");
        let unwritten = match word {
            Some("Approved") => State::Approved,
            Some("Scheduled") => State::Scheduled,
            _ => State::Pending,
        };
        assert_eq!(with(word, RuleState::Planned, true), unwritten, "{word:?}");
    }
    for word in ["Opening", "Active"] {
        assert_eq!(with(Some(word), RuleState::Present, false), State::Closing, "{word} without an end");
        assert_eq!(with(Some(word), RuleState::Present, true).as_str(), word);
    }
}

#[test]
fn a_deleted_request_ends() {
    for word in [State::Pending, State::Approved, State::Scheduled] {
        let next = Scene::default().step(&deleted(in_state(word)), start());
        assert_eq!(
            (to(&next), words(&next, ConditionType::Active).1),
            (State::Ended, "Withdrawn"),
            "{word:?}"
        );
    }
    for request in [opening(), live()] {
        is_outcome(&Scene::default().step(&deleted(request), after(5)), State::Ended, Reason::Withdrawn);
    }
}

#[test]
fn what_ends_before_the_grant_says_whether_it_had_been_approved() {
    let refused = Judgement::Refused(Reason::PortNotAllowed, "port 23 is not allowed".into());
    for request in [in_state(State::Pending), approved()] {
        let next = Scene::judged(refused.clone()).step(&request, start());
        assert_eq!(to(&next), State::Denied);
        for (kind, value) in [(ConditionType::Denied, "True"), (ConditionType::Approved, "False")] {
            assert_eq!(words(&next, kind), (value, "PortNotAllowed", "port 23 is not allowed"));
        }
    }
    // What was approved stays so in the record, however it ends; what was not is said not to have been.
    let next = Scene::default().step(&deleted(approved()), start());
    assert_eq!(words(&next, ConditionType::Approved).0, "True");
    let next = Scene::default().step(&deleted(request(ASKED)), start());
    assert_eq!(words(&next, ConditionType::Approved).0, "False");
    assert_eq!(find_condition(&next.status.conditions, ConditionType::Denied), None);
}

#[test]
fn whose_word_ended_a_request_is_said_with_what_they_wrote() {
    let word = |verdict, comment: Option<&str>| {
        Some(Word { who: "bob".into(), verdict, comment: comment.map(Into::into) })
    };
    let against = |verdict, comment| Tally { against: word(verdict, comment), ..Tally::default() };
    let ended = |comment| Tally { ended: word(Verdict::Ended, comment), ..Tally::default() };
    for (tally, before, grant) in [
        (against(Verdict::Denied, None), "bob denied it", "bob revoked it"),
        (against(Verdict::Revoked, Some("not now")), "bob revoked it: not now", "bob revoked it: not now"),
        (ended(Some("done")), "bob ended it: done", "bob ended it: done"),
    ] {
        let next = Scene::tallied(tally.clone()).step(&in_state(State::Pending), start());
        assert_eq!(words(&next, ConditionType::Active).2, before);
        let next = Scene::tallied(tally).step(&live(), after(5));
        assert_eq!(words(&next, ConditionType::Active).2, grant);
    }
}

fn quorum(policy: &str, required: usize, by: &[&str]) -> Quorum {
    Quorum {
        policy: policy.into(),
        required,
        by: by.iter().map(|name| (*name).into()).collect(),
        reached_at: (required > 0 && by.len() >= required).then(start),
        unasked: Vec::new(),
    }
}

#[test]
fn only_the_approvals_that_are_missing_are_asked_for() {
    let quorums = vec![quorum("web", 1, &["bob"]), quorum("ops", 2, &["carol"]), quorum("free", 0, &[])];
    let next = Scene::tallied(Tally { quorums, ..Tally::default() }).step(&in_state(State::Pending), start());
    let (value, reason, message) = words(&next, ConditionType::Approved);
    assert_eq!((value, reason), ("False", "WaitingForApproval"));
    assert!(
        message.starts_with(
            "1 of 2 approvals under JitPolicy ops (carol), of those with the verb approve on jitpolicies/ops; to approve: "
        ),
        "{message}"
    );
}

#[test]
fn who_approved_is_said_of_the_policies_that_asked_for_it() {
    let quorums =
        vec![quorum("web", 1, &["bob"]), quorum("ops", 2, &["bob", "carol"]), quorum("free", 0, &[])];
    let next = Scene::tallied(Tally { quorums, ..Tally::default() }).step(&in_state(State::Pending), start());
    assert_eq!(to(&next), State::Approved);
    assert_eq!(
        words(&next, ConditionType::Approved),
        (
            "True",
            "QuorumReached",
            "1 of 1 approvals under JitPolicy web (bob); 2 of 2 approvals under JitPolicy ops (bob, carol)"
        )
    );
}

#[test]
fn what_changed_between_approval_and_grant_is_named() {
    type Change = fn(&mut GrantPlan);
    let changes: [(&str, Change); 6] = [
        ("the policies that cover the request changed", |plan| {
            plan.policies.push(RequestedPolicy { uid: "new".into(), ..RequestedPolicy::default() });
        }),
        ("the machines changed", |plan| plan.machines[0].id = "other".into()),
        ("a machine, its interfaces or its addresses changed", |plan| plan.machines[0].vm_id = "2".into()),
        ("the rules that would be written changed", |plan| plan.rules[0].protocol = Protocol::Udp),
        ("the plan changed", |_| {}),
        // Who writes an id in which case says nothing.
        ("a machine, its interfaces or its addresses changed", |plan| plan.machines[0].id = "VM".into()),
    ];
    for (what, change) in changes {
        let other = allowed(|plan| {
            plan.hash = "b".repeat(64);
            change(plan);
        });
        let next = Scene::judged(other).step(&approved(), start());
        let (_, reason, message) = words(&next, ConditionType::Approved);
        assert_eq!((to(&next), reason), (State::Pending, "PlanChanged"), "{what}");
        assert!(message.starts_with(what), "{message}");
    }
}

#[test]
fn a_request_waits_for_as_long_as_its_policy_says_and_not_a_moment_longer() {
    let limit = 3600;
    let next = Scene::default().step(&in_state(State::Pending), after(limit - 1));
    assert_eq!(to(&next), State::Approved);
    let next = Scene::default().step(&in_state(State::Pending), after(limit));
    assert_eq!(to(&next), State::TimedOut);
}

#[test]
fn what_the_api_server_did_not_say_is_asked_again_soon() {
    let missing = quorum("web", 1, &[]);
    let open = Quorum { unasked: vec!["the API server did not answer".into()], ..missing.clone() };
    let soon = after(5);
    for (tally, again) in [
        (Tally { quorums: vec![missing.clone()], ..Tally::default() }, after(3600)),
        (Tally { quorums: vec![open], ..Tally::default() }, soon),
        (Tally { quorums: vec![missing], doubt: Some("bob may deny it".into()), ..Tally::default() }, soon),
    ] {
        let next = Scene::tallied(tally.clone()).step(&in_state(State::Pending), start());
        assert_eq!((to(&next), next.look_again), (State::Pending, Some(again)), "{tally:?}");
        if let Some(doubt) = tally.doubt {
            assert!(words(&next, ConditionType::Approved).2.contains(&doubt));
        }
    }
}

#[test]
fn what_could_be_open_for_no_time_worth_while_is_not_opened() {
    let least = seconds(SHORTEST_GRANT);
    for word in [State::Pending, State::Approved, State::Scheduled] {
        for (left, ends) in [(least + 1, false), (least, false), (least - 1, true), (-600, true)] {
            let mut request = in_state(word);
            request.spec.not_after = Some(after(left).into());
            let next = Scene::default().step(&request, start());
            assert_eq!(to(&next) == State::TimedOut, ends, "{word:?} with {left} s left: {:?}", to(&next));
        }
    }
}
