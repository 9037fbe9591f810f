//! The life of a request as its laws have it, over generated histories: every interleaving of approvals,
//! refusals, failures, deletions, lost writes, crashes and clock steps that a few hundred random steps find.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::api::{
    FINALIZER, JitAccessRequest, JitAccessRequestSpec, JitAccessRequestStatus, JitAccessReview,
    JitAccessReviewSpec, NameRef, PinnedMachine, Reason, RequestPort, RequestRef, RequestTarget,
    RequestedPolicy, RuleStatus, Source, State, UserInfo, Verdict,
};
use portcullis::plan::admission::Admission;
use portcullis::plan::authorize::{GrantPlan, Judgement, PlannedRule};
use portcullis::plan::desired::{Duty, Grant};
use portcullis::plan::lifecycle::{Finalizer, Ground, Seen, World, duties, state, step};
use portcullis::plan::model::FirewallId;
use portcullis::plan::names::{Cluster, Mark, parse_name};
use portcullis::plan::people::Pipelines;
use portcullis::plan::reviews::{Case, Right, Tally, tally};
use portcullis::plan::terms::Patience;
use proptest::prelude::*;

mod forged;
mod waiting;

const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";
const NSG: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups";

pub(crate) fn start() -> Timestamp {
    "2026-11-22T08:00:00Z".parse().unwrap()
}

pub(crate) fn request(seconds: u64) -> JitAccessRequest {
    let mut request = JitAccessRequest::new(
        "one",
        JitAccessRequestSpec {
            policy_ref: NameRef { name: "web".into() },
            requester: Some(UserInfo { username: "alice".into(), ..UserInfo::default() }),
            targets: vec![RequestTarget { name: "web-1".into(), ..RequestTarget::default() }],
            ports: vec![RequestPort {
                port: 22,
                sources: vec![Source { cidr: "203.0.113.7/32".into() }],
                ..RequestPort::default()
            }],
            duration: format!("{seconds}s").into(),
            ..JitAccessRequestSpec::default()
        },
    );
    request.metadata.uid = Some(UID.into());
    request.metadata.generation = Some(1);
    request.metadata.creation_timestamp = Some(Time(start()));
    request
}

fn firewall(name: &str) -> FirewallId {
    FirewallId(ArmId::parse(&format!("{NSG}/{name}")).unwrap())
}

pub(crate) fn plan(seconds: u64) -> GrantPlan {
    let rule = |name: &str| PlannedRule {
        firewall: firewall(name),
        protocol: Protocol::Tcp,
        sources: vec!["203.0.113.7/32".parse().unwrap()],
        destinations: vec!["10.0.0.4".parse().unwrap()],
        ports: vec![PortRange::single(22)],
        translation: None,
    };
    GrantPlan {
        policies: Vec::new(),
        machines: vec![PinnedMachine {
            id: "vm".into(),
            vm_id: "1".into(),
            nics: vec!["nic".into()],
            addresses: vec!["10.0.0.4".into()],
        }],
        rules: vec![rule("nic"), rule("subnet")],
        connections: Vec::new(),
        duration: std::time::Duration::from_secs(seconds),
        shortened_by: None,
        hash: "a".repeat(64),
        sessions_go_on: true,
        lead: std::time::Duration::ZERO,
        pending_timeout: std::time::Duration::from_secs(3600),
        use_within: std::time::Duration::from_secs(3600),
        self_approval: BTreeSet::new(),
        limits: BTreeMap::new(),
    }
}

/// A cloud that holds the allows of one request, and a gate that works by the duties it was last given.
#[derive(Clone, Default)]
pub(crate) struct Cloud {
    pub(crate) standing: BTreeSet<(String, String)>,
    /// What the gate was told, kept over restarts only as far as status tells it again.
    duties: Vec<(FirewallId, Grant)>,
    /// When the gate first heard of a rule.
    heard: BTreeMap<String, Timestamp>,
    seen: BTreeMap<(String, String), Seen>,
    ever_removed: BTreeSet<(String, String)>,
    /// What this process wrote ahead, or was proved to it; none where it knows nothing of the request.
    vouched: Option<Vec<(FirewallId, Grant)>>,
    /// Since when admission has been in force without a break.
    pub(crate) admitted_since: Timestamp,
    /// Rules whose removal was asked for before they were ever seen.
    unseen: BTreeSet<(String, String)>,
    /// Rules that were written, each time that they were.
    pub(crate) written: Vec<(String, String)>,
}

impl Cloud {
    fn key(firewall: &FirewallId, name: &str) -> (String, String) {
        (firewall.0.key().to_owned(), name.to_owned())
    }

    /// Gives the gate its duties.
    pub(crate) fn told(&mut self, request: &JitAccessRequest, now: Timestamp) {
        let wanted = self.heard(request, now);
        for (firewall, grant) in &self.duties {
            let key = Self::key(firewall, &grant.name);
            let seen = matches!(self.seen.get(&key), Some(Seen::Present { .. }));
            if matches!(grant.duty, Duty::Open { .. }) && !seen {
                self.unseen.insert(key);
            } else if !matches!(grant.duty, Duty::Close { .. }) {
                self.unseen.remove(&key);
            }
        }
        self.duties = wanted;
    }

    /// The duties as the gate takes them on that heard of each when it did: of those that were vouched for.
    fn heard(&mut self, request: &JitAccessRequest, now: Timestamp) -> Vec<(FirewallId, Grant)> {
        if matches!(state(request), State::Closing) || state(request).is_last() {
            self.vouched = None;
        }
        let mut wanted = duties(request);
        wanted.retain(|rule| !opens(rule) || self.vouched.iter().flatten().any(|own| own == rule));
        for (_, grant) in &mut wanted {
            let heard = *self.heard.entry(grant.name.clone()).or_insert(now);
            grant.duty = grant.duty.taken_on(heard);
        }
        wanted
    }

    pub(crate) fn ground(&self, request: &JitAccessRequest, asked: bool) -> Ground {
        let own = |own: &Vec<(FirewallId, Grant)>| {
            duties(request).iter().filter(|rule| opens(rule)).all(|rule| own.contains(rule))
        };
        match (self.vouched.as_ref().is_some_and(own), asked) {
            (true, _) => Ground::Own,
            (false, true) => Ground::Asked,
            (false, false) => Ground::Found,
        }
    }

    /// What the status says is being written may be opened.
    pub(crate) fn vouch(&mut self, request: &JitAccessRequest) {
        self.vouched = Some(duties(request).into_iter().filter(opens).collect());
    }

    /// The sweep: what no live status names is nobody's.
    pub(crate) fn sweep(&mut self, request: &JitAccessRequest) {
        let named: BTreeSet<(String, String)> =
            duties(request).iter().map(|(firewall, grant)| Self::key(firewall, &grant.name)).collect();
        self.standing.retain(|key| named.contains(key));
    }

    /// What the gate says of a rule.
    pub(crate) fn seen(&self, rule: &RuleStatus) -> Seen {
        let firewall = FirewallId(ArmId::parse(&rule.firewall).unwrap());
        self.seen.get(&Self::key(&firewall, &rule.name)).cloned().unwrap_or_default()
    }

    /// Nothing was read back yet.
    pub(crate) fn unread(&mut self) {
        self.seen.clear();
    }

    /// Only the object and the cloud outlive a restart.
    pub(crate) fn restart(&mut self, request: &JitAccessRequest, now: Timestamp) {
        self.vouched = None;
        self.seen.clear();
        self.unseen.clear();
        self.heard.clear();
        self.duties = self.heard(request, now);
    }

    pub(crate) fn somebody_removes_a_rule(&mut self) -> Option<(String, String)> {
        let first = self.standing.pop_first()?;
        self.ever_removed.insert(first.clone());
        Some(first)
    }

    pub(crate) fn work(&mut self, now: Timestamp, fails: bool) {
        for (firewall, grant) in self.duties.clone() {
            let key = Self::key(&firewall, &grant.name);
            if grant.deadline <= now || matches!(grant.duty, Duty::Close { .. }) {
                // Closes go through sooner or later; a failing cloud only delays them, so they are not failed here
                // past their deadline: the bound of the law is counted from a cloud that works.
                if !(fails && grant.deadline > now) {
                    let before = match self.seen.get(&key) {
                        Some(Seen::Absent { by_us, .. }) => *by_us,
                        _ => self.unseen.contains(&key),
                    };
                    let by_us = self.standing.remove(&key) || before;
                    self.ever_removed.insert(key.clone());
                    self.seen.insert(key, Seen::Absent { at: now, by_us });
                }
                continue;
            }
            match grant.duty {
                Duty::Open { until, .. } if now <= until && !fails && !self.ever_removed.contains(&key) => {
                    if self.standing.insert(key.clone()) {
                        self.written.push(key.clone());
                    }
                    self.seen.insert(key, Seen::Present { at: now, priority: 100, shadowed_by: None });
                }
                Duty::Hold if !self.standing.contains(&key) => {
                    self.seen.insert(key, Seen::Lost { at: now });
                }
                Duty::Open { until, .. } if now > until && !self.standing.contains(&key) => {
                    let (reason, message) =
                        (Reason::OpenTimedOut, "it is too late to open the rule".to_owned());
                    self.seen.insert(key, Seen::Refused { reason, message });
                }
                Duty::Open { .. } | Duty::Hold | Duty::Close { .. } => {}
            }
        }
    }
}

pub(crate) fn opens((_, grant): &(FirewallId, Grant)) -> bool {
    matches!(grant.duty, Duty::Open { .. })
}

#[derive(Clone, Debug)]
enum Happening {
    Reconcile { judged: u8, write_is_lost: bool },
    Gate { fails: bool },
    Wait(i64),
    ClockStepsBack(i64),
    Delete,
    SomebodyRemovesARule,
    Restart,
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        8 => (prop_oneof![6 => Just(0u8), 1 => 1u8..6], prop::bool::weighted(0.1))
            .prop_map(|(judged, write_is_lost)| Happening::Reconcile { judged, write_is_lost }),
        6 => prop::bool::weighted(0.15).prop_map(|fails| Happening::Gate { fails }),
        4 => (1i64..90).prop_map(Happening::Wait),
        1 => (1i64..60).prop_map(Happening::ClockStepsBack),
        1 => Just(Happening::Delete),
        1 => Just(Happening::SomebodyRemovesARule),
        1 => Just(Happening::Restart),
    ]
}

pub(crate) fn judgement(kind: u8, seconds: u64) -> Judgement {
    let why = || "generated".to_owned();
    match kind {
        0 => Judgement::Allowed(Box::new(plan(seconds))),
        1 => Judgement::Refused(Reason::PortNotAllowed, why()),
        2 => Judgement::Impossible(Reason::VirtualMachineNotFound, why()),
        3 => Judgement::Held(Reason::Suspended, why()),
        4 => Judgement::Held(Reason::PolicyNotFound, why()),
        _ => Judgement::Unknown(Reason::CloudUnavailable, why()),
    }
}

const IN_FORCE: Admission = Admission::InForce { since: Timestamp::MIN };

/// The reviews counted; whoever is not called a stranger may approve.
fn count(
    request: &JitAccessRequest,
    judged: &Judgement,
    reviews: &[Arc<JitAccessReview>],
    now: Timestamp,
) -> Tally {
    let plan = if let Judgement::Allowed(plan) = judged { Some(&**plan) } else { None };
    let case = Case { request, plan, reviews, admission: &IN_FORCE, pipelines: &Pipelines::default(), now };
    tally(case, &|user, _| if user.username == "stranger" { Right::NotAllowed } else { Right::Allowed })
}

/// Somebody's word on the request.
pub(crate) fn review(number: u8, who: &str, verdict: Verdict, hash: &str) -> Arc<JitAccessReview> {
    let mut review = JitAccessReview::new(
        &format!("review-{number}"),
        JitAccessReviewSpec {
            request_ref: RequestRef { name: "one".into(), uid: UID.into() },
            policy_ref: NameRef { name: "web".into() },
            plan_hash: Some(hash.into()),
            verdict,
            comment: None,
            reviewer: Some(UserInfo { username: who.into(), ..UserInfo::default() }),
        },
    );
    review.metadata.uid = Some(format!("uid-of-review-{number}"));
    review.metadata.creation_timestamp = Some(Time(start() + SignedDuration::from_secs(i64::from(number))));
    Arc::new(review)
}

/// One move without reviews. True: the object is gone.
pub(crate) fn reconcile(
    request: &mut JitAccessRequest,
    cloud: &mut Cloud,
    judged: &Judgement,
    now: Timestamp,
    lost: bool,
) -> bool {
    reviewed(request, cloud, judged, &[], now, lost)
}

/// One move, as the controller makes it. True: the object is gone.
pub(crate) fn reviewed(
    request: &mut JitAccessRequest,
    cloud: &mut Cloud,
    judged: &Judgement,
    reviews: &[Arc<JitAccessReview>],
    now: Timestamp,
    lost: bool,
) -> bool {
    let cluster = Cluster::new("test", &[]);
    cloud.told(request, now);
    let seen = |rule: &RuleStatus| cloud.seen(rule);
    let tally = count(request, judged, reviews, now);
    let admission = Admission::InForce { since: cloud.admitted_since };
    let mut world = World {
        request,
        judgement: judged,
        tally: &tally,
        admission: &admission,
        cluster: &cluster,
        seen: &seen,
        no_room: None,
        patience: Patience::default(),
        stopped_by: None,
        ground: cloud.ground(request, false),
    };
    let mut next = step(&world, now);
    if next.grants {
        world.ground = cloud.ground(request, true);
        next = step(&world, now);
    }
    if lost {
        return false;
    }
    match next.finalizer {
        Finalizer::Leave => {
            request.status = Some(next.status);
            if next.grants {
                cloud.vouch(request);
            }
        }
        Finalizer::Add => request.metadata.finalizers.get_or_insert_default().push(FINALIZER.into()),
        Finalizer::Remove => {
            request.metadata.finalizers = None;
            return request.metadata.deletion_timestamp.is_some();
        }
    }
    cloud.told(request, now);
    false
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn no_allow_stands_without_a_live_request_or_past_its_deadline(
        history in prop::collection::vec(happening(), 1..120),
        seconds in 30u64..300,
    ) {
        let (mut now, mut request, mut cloud) = (start(), request(seconds), Cloud::default());
        let mut latest_expiry: Option<Timestamp> = None;
        let mut ended = None;
        for happening in history {
            match happening {
                Happening::Reconcile { judged, write_is_lost } => {
                    let before = state(&request);
                    let judged = judgement(judged, seconds);
                    if reconcile(&mut request, &mut cloud, &judged, now, write_is_lost) {
                        ended = Some(request.clone());
                        break;
                    }
                    let after = state(&request);
                    // What is over stays over.
                    prop_assert!(!before.is_last() || before == after, "{before:?} -> {after:?}");
                    // One use: nothing leads back from a grant to where it could be granted again.
                    let granted = before.holds_rules();
                    prop_assert!(!granted || after.holds_rules() || after.is_last(), "{before:?} -> {after:?}");
                    if !write_is_lost && matches!(judged, Judgement::Refused(..) | Judgement::Held(..)) {
                        prop_assert!(!matches!(after, State::Opening | State::Active), "open under {judged:?}");
                    }
                }
                Happening::Gate { fails } => cloud.work(now, fails),
                Happening::Wait(by) => now += SignedDuration::from_secs(by),
                Happening::ClockStepsBack(by) => now -= SignedDuration::from_secs(by),
                Happening::Delete => {
                    request.metadata.deletion_timestamp.get_or_insert(Time(now));
                    // Without our finalizer the API server deletes at once.
                    if request.metadata.finalizers.is_none() {
                        ended = Some(request.clone());
                        break;
                    }
                }
                Happening::SomebodyRemovesARule => {
                    cloud.somebody_removes_a_rule();
                }
                Happening::Restart => cloud.restart(&request, now),
            }
            // Written ahead: whatever stands in the cloud is named by the durable status of a request that says so.
            let status = request.status.clone().unwrap_or_default();
            let named: BTreeSet<(String, String)> = status
                .rules
                .iter()
                .map(|rule| (rule.firewall.to_ascii_lowercase(), rule.name.clone()))
                .collect();
            for (firewall, name) in &cloud.standing {
                prop_assert!(named.contains(&(firewall.clone(), name.clone())), "{name} is in no status");
                prop_assert!(state(&request).holds_rules(), "{name} stands in {:?}", state(&request));
                prop_assert!(request.metadata.finalizers.is_some(), "{name} stands without a finalizer");
                // The name says when it dies, and it says what status says.
                let cluster = Cluster::new("test", &[]);
                let Some(Mark::Allow { deadline, .. }) = parse_name(&cluster, name) else {
                    return Err(TestCaseError::fail(format!("{name} does not parse")));
                };
                prop_assert_eq!(deadline, status.expires_at.as_ref().map(|at| at.0));
            }
            prop_assert!(!status.settled || cloud.standing.is_empty());
            // The deadline never moves out.
            let expiry = status.expires_at.map(|at| at.0);
            if let (Some(before), Some(after)) = (latest_expiry, expiry) {
                prop_assert!(after <= before);
            }
            latest_expiry = expiry.or(latest_expiry);
        }
        if let Some(gone) = ended {
            prop_assert!(cloud.standing.is_empty(), "{:?} went and left {:?}", state(&gone), cloud.standing);
            return Ok(());
        }
        // Whatever happened: once the deadline has passed and the gate has worked, nothing stands.
        now = now.max(start()) + SignedDuration::from_secs(100_000);
        for _ in 0..20 {
            let judged = judgement(0, seconds);
            if reconcile(&mut request, &mut cloud, &judged, now, false) {
                break;
            }
            cloud.work(now, false);
        }
        prop_assert!(cloud.standing.is_empty());
        prop_assert!(state(&request).is_last(), "{:?}", state(&request));
        prop_assert!(request.metadata.finalizers.is_none());
    }
}

#[test]
fn an_opening_that_is_resumed_too_late_writes_nothing_and_closes() {
    let (mut request, mut cloud, judged) = (request(3600), Cloud::default(), judgement(0, 3600));
    let mut now = start();
    while state(&request) != State::Opening {
        reconcile(&mut request, &mut cloud, &judged, now, false);
    }
    // The snapshot is restored two minutes later: whoever hears of it now hears of it for the first time.
    now += SignedDuration::from_secs(120);
    cloud.restart(&request, now);
    cloud.work(now, false);
    assert!(cloud.standing.is_empty());
    reconcile(&mut request, &mut cloud, &judged, now, false);
    assert_eq!(state(&request), State::Closing);
    assert_eq!(request.status.as_ref().unwrap().outcome.as_deref(), Some("Failed"));
}

#[test]
fn a_status_that_nobody_of_ours_wrote_is_closed() {
    let (mut request, mut cloud, judged) = (request(3600), Cloud::default(), judgement(0, 3600));
    while state(&request) != State::Opening {
        reconcile(&mut request, &mut cloud, &judged, start(), false);
    }
    let status = request.status.as_mut().unwrap();
    status.state = Some("Splendid".into());
    assert_eq!(state(&request), State::Closing);
    request.status.as_mut().unwrap().state = Some("Active".into());
    request.status.as_mut().unwrap().expires_at = None;
    assert!(duties(&request).iter().all(|(_, grant)| matches!(grant.duty, Duty::Close { .. })));
}

/// A plan under a policy that asks for two approvals.
fn two_of(seconds: u64) -> Judgement {
    let policy = RequestedPolicy { name: "web".into(), uid: "web".into(), required: 2, ..Default::default() };
    Judgement::Allowed(Box::new(GrantPlan { policies: vec![policy], ..plan(seconds) }))
}

/// Where a request under a policy that asks for two approvals comes to with these reviews.
fn comes_to(words: &[(&str, Verdict)]) -> (State, JitAccessRequest) {
    let (mut request, mut cloud, judged) = (request(3600), Cloud::default(), two_of(3600));
    let hash = "a".repeat(64);
    let reviews: Vec<_> =
        (1..).zip(words).map(|(number, (who, verdict))| review(number, who, *verdict, &hash)).collect();
    for _ in 0..8 {
        reviewed(&mut request, &mut cloud, &judged, &reviews, start() + SignedDuration::from_secs(20), false);
        cloud.work(start() + SignedDuration::from_secs(20), false);
    }
    assert!(state(&request).holds_rules() || cloud.standing.is_empty());
    (state(&request), request)
}

#[test]
fn a_request_opens_by_two_different_people_who_are_not_its_own_and_by_nobody_less() {
    use Verdict::{Approved, Denied, Ended, Revoked};
    for (words, wanted) in [
        (vec![], State::Pending),
        (vec![("bob", Approved)], State::Pending),
        (vec![("bob", Approved), ("carol", Approved)], State::Active),
        (vec![("bob", Approved), ("bob", Approved)], State::Pending),
        (vec![("bob", Approved), ("BOB ", Approved)], State::Pending),
        (vec![("bob", Approved), ("alice", Approved)], State::Pending),
        (vec![("bob", Approved), ("stranger", Approved)], State::Pending),
        (
            vec![("system:serviceaccount:a:x", Approved), ("system:serviceaccount:b:y", Approved)],
            State::Pending,
        ),
        (vec![("bob", Approved), ("system:serviceaccount:b:y", Approved)], State::Active),
        (vec![("bob", Denied), ("carol", Approved), ("dave", Approved)], State::Denied),
        (vec![("carol", Approved), ("dave", Approved), ("bob", Revoked)], State::Denied),
        // Admission lets no stranger deny: whoever did had the right then.
        (vec![("stranger", Denied), ("carol", Approved), ("dave", Approved)], State::Denied),
        (vec![("carol", Approved), ("dave", Approved), ("alice", Ended)], State::Ended),
        (vec![("carol", Approved), ("dave", Approved), ("stranger", Ended)], State::Active),
    ] {
        assert_eq!(comes_to(&words).0, wanted, "{words:?}");
    }
}

#[test]
fn who_approved_is_shown_and_what_is_missing_is_said() {
    let (_, request) = comes_to(&[("bob", Verdict::Approved)]);
    let status = request.status.unwrap();
    assert_eq!(status.rules.len(), 2, "the plan is shown before anybody approves");
    assert_eq!(
        (status.policies[0].approved, status.policies[0].approved_by.as_slice()),
        (1, &["bob".to_owned()][..])
    );
    let approved = status.conditions.iter().find(|c| c.type_ == "Approved").unwrap();
    assert_eq!(approved.reason, "WaitingForApproval");
    assert!(approved.message.contains("1 of 2 approvals under JitPolicy web (bob)"), "{}", approved.message);
}

#[test]
fn a_live_grant_is_revoked_by_an_approver_and_waiting_too_long_ends() {
    let (state_before, mut request) = comes_to(&[("bob", Verdict::Approved), ("carol", Verdict::Approved)]);
    assert_eq!(state_before, State::Active);
    let revoked = [review(30, "bob", Verdict::Denied, "")];
    let now = start() + SignedDuration::from_secs(60);
    reviewed(&mut request, &mut Cloud::default(), &two_of(3600), &revoked, now, false);
    assert_eq!(state(&request), State::Closing);
    assert_eq!(request.status.unwrap().outcome.as_deref(), Some("Revoked"));

    let (_, mut request) = comes_to(&[("bob", Verdict::Approved)]);
    let late = start() + SignedDuration::from_secs(3600);
    reviewed(&mut request, &mut Cloud::default(), &two_of(3600), &[], late, false);
    assert_eq!(state(&request), State::TimedOut);
}

#[test]
fn a_grant_whose_packets_somebody_stops_says_so_and_stays_to_be_closed() {
    let (mut request, mut cloud, judged) = (request(3600), Cloud::default(), judgement(0, 3600));
    for _ in 0..8 {
        reconcile(&mut request, &mut cloud, &judged, start(), false);
        cloud.work(start(), false);
    }
    assert_eq!(state(&request), State::Active);
    let active = |request: &JitAccessRequest, stopped_by: Option<String>| {
        let seen = |_: &RuleStatus| Seen::Present { at: start(), priority: 100, shadowed_by: None };
        let cluster = Cluster::new("test", &[]);
        let world = World {
            request,
            judgement: &judged,
            tally: &Tally::default(),
            admission: &IN_FORCE,
            cluster: &cluster,
            seen: &seen,
            no_room: None,
            patience: Patience::default(),
            stopped_by,
            ground: Ground::Own,
        };
        let next = step(&world, start());
        let conditions = next.status.conditions.clone();
        let active = conditions.into_iter().find(|condition| condition.type_ == "Active").unwrap();
        (next.status.state.unwrap(), active)
    };
    let (kept, condition) = active(&request, Some("rule deny-all of hub".into()));
    assert_eq!((kept.as_str(), condition.status.as_str()), ("Active", "False"));
    assert!(condition.message.contains("rule deny-all of hub"), "{}", condition.message);
    let (kept, condition) = active(&request, None);
    assert_eq!((kept.as_str(), condition.status.as_str()), ("Active", "True"));
}
