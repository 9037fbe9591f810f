//! Laws 6, 7 and 9 over generated histories of people: who approves, denies, ends, takes a word back; policies that
//! are edited, deleted and made again; machines that move; admission that is broken and mended; rights that come and
//! go; clocks that differ; statuses that are restored.
//!
//! Each grant is judged by an account of its own of who said what to what, which shares nothing with the product's
//! count but the objects.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portcullis::api::{
    FINALIZER, JitAccessRequest, JitAccessReview, JitAccessReviewSpec, NameRef, RequestRef, State, UserInfo,
    Verdict,
};
use portcullis::plan::admission::Admission;
use portcullis::plan::authorize::{Judgement, PolicyView, judge};
use portcullis::plan::lifecycle::{Finalizer, World, state, step};
use portcullis::plan::names::Cluster;
use portcullis::plan::people::Pipelines;
use portcullis::plan::reviews::{Case, Right, Tally, status as answer_status, tally};
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::test_runner::TestRunner;

use crate::plan_authorize::{machine, policy, port};
use crate::plan_lifecycle::{Cloud, request, start};

const PEOPLE: [&str; 10] = [
    "alice",
    "Alice ",
    "bob",
    "BOB",
    "carol",
    "dave",
    "system:serviceaccount:a:x",
    "system:serviceaccount:b:y",
    "ci",
    "oidc:erin@contoso.com",
];
const POLICIES: [&str; 2] = ["strict", "web"];

/// Who a name is, in the words of the design: programs are one person, and case is no difference.
fn person(name: &str) -> String {
    let name = name.trim().to_lowercase();
    if name.starts_with("system:serviceaccount:") || name == "ci" { "a program".to_owned() } else { name }
}

#[derive(Clone, Copy, Debug)]
enum Happening {
    Reconcile { lost: bool },
    Gate { fails: bool },
    Wait(i64),
    Skew(i64),
    Review { who: &'static str, verdict: Verdict, policy: &'static str, hash: u8 },
    TakeBack(Index),
    Edit { policy: &'static str, required: i32, own: bool, suspend: bool },
    Delete { policy: &'static str },
    Create { policy: &'static str },
    Move(u8),
    Rights { who: &'static str, policy: &'static str, right: u8 },
    BreakAdmission,
    MendAdmission,
    DeleteRequest,
    CreateRequest { on_behalf: bool, later: bool },
    SomebodyRemovesARule,
    Restart,
    Snapshot,
    Restore,
}

fn happening() -> impl Strategy<Value = Happening> {
    let verdict = prop_oneof![
        40 => Just(Verdict::Approved), 1 => Just(Verdict::Denied), 1 => Just(Verdict::Revoked), 1 => Just(Verdict::Ended),
    ];
    let policy = || select(&["web", "web", "strict"][..]);
    prop_oneof![
        22 => prop::bool::weighted(0.08).prop_map(|lost| Happening::Reconcile { lost }),
        6 => prop::bool::weighted(0.1).prop_map(|fails| Happening::Gate { fails }),
        4 => prop_oneof![8 => 1i64..60, 1 => 60i64..4000].prop_map(Happening::Wait),
        1 => (-40i64..40).prop_map(Happening::Skew),
        20 => (select(&PEOPLE[..]), verdict, policy(), prop_oneof![6 => Just(0u8), 1 => 1u8..3])
            .prop_map(|(who, verdict, policy, hash)| Happening::Review { who, verdict, policy, hash }),
        1 => any::<Index>().prop_map(Happening::TakeBack),
        2 => (policy(), prop_oneof![1 => Just(0i32), 6 => 1..3i32, 1 => Just(3i32)], any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(policy, required, own, suspend)| Happening::Edit { policy, required, own, suspend }),
        1 => policy().prop_map(|policy| Happening::Delete { policy }),
        2 => policy().prop_map(|policy| Happening::Create { policy }),
        1 => (4u8..7).prop_map(Happening::Move),
        2 => (select(&PEOPLE[..]), policy(), prop_oneof![4 => Just(0u8), 1 => 1u8..3])
            .prop_map(|(who, policy, right)| Happening::Rights { who, policy, right }),
        1 => Just(Happening::BreakAdmission),
        4 => Just(Happening::MendAdmission),
        1 => Just(Happening::DeleteRequest),
        5 => (prop::bool::weighted(0.2), prop::bool::weighted(0.3))
            .prop_map(|(on_behalf, later)| Happening::CreateRequest { on_behalf, later }),
        1 => Just(Happening::SomebodyRemovesARule),
        1 => Just(Happening::Restart),
        1 => Just(Happening::Snapshot),
        1 => Just(Happening::Restore),
    ]
}

#[derive(Clone, Debug)]
struct Policy {
    uid: String,
    generation: i64,
    required: i32,
    own: bool,
    suspend: bool,
}

/// What somebody saw when they approved: all that their word is about, in the test's own words.
type Shown = (String, Vec<String>, u8);

#[derive(Clone)]
struct Word {
    review: JitAccessReview,
    shown: Option<Shown>,
    /// Written by somebody else in the name of who it names, while admission was out of force.
    forged: bool,
}

#[derive(Clone)]
struct Etcd {
    request: Option<JitAccessRequest>,
    forged: bool,
    words: Vec<Word>,
    policies: BTreeMap<&'static str, Policy>,
}

struct Play {
    etcd: Etcd,
    snapshot: Option<Etcd>,
    cloud: Cloud,
    /// The API server's clock, and how far the controller's is off.
    clock: Timestamp,
    skew: i64,
    /// Since when admission is in force.
    since: Option<Timestamp>,
    address: u8,
    rights: BTreeMap<(&'static str, &'static str), u8>,
    made: u32,
    grants: BTreeMap<String, usize>,
    /// Requests that an approver refused, or the requester ended.
    over: BTreeSet<String>,
    read_back: BTreeSet<(String, String)>,
    /// What each plan that was on display was a plan of.
    displayed: BTreeMap<String, Shown>,
    /// No more writes: somebody removed an allow of the present request.
    removed: bool,
}

impl Play {
    fn new() -> Self {
        let clock = start();
        let etcd = Etcd { request: None, forged: false, words: Vec::new(), policies: BTreeMap::new() };
        let mut play = Self {
            etcd,
            snapshot: None,
            cloud: Cloud::default(),
            clock,
            skew: 0,
            since: Some(clock - SignedDuration::from_secs(60)),
            address: 4,
            rights: BTreeMap::new(),
            made: 0,
            grants: BTreeMap::new(),
            over: BTreeSet::new(),
            read_back: BTreeSet::new(),
            displayed: BTreeMap::new(),
            removed: false,
        };
        play.create_policy("web", 2);
        play.create_request(false, false);
        play
    }

    fn now(&self) -> Timestamp {
        self.clock + SignedDuration::from_secs(self.skew)
    }

    fn fresh(&mut self, what: &str) -> String {
        self.made += 1;
        format!("{:08x}-0000-4000-8000-{what:0>12}", self.made)
    }

    fn create_policy(&mut self, name: &'static str, required: i32) {
        if !self.etcd.policies.contains_key(name) {
            let uid = self.fresh("aa");
            self.etcd
                .policies
                .insert(name, Policy { uid, generation: 1, required, own: false, suspend: false });
        }
    }

    fn create_request(&mut self, on_behalf: bool, later: bool) {
        let free =
            |request: &JitAccessRequest| state(request).is_last() && request.metadata.finalizers.is_none();
        if !self.etcd.request.as_ref().is_none_or(free) {
            return;
        }
        let mut made = request(600);
        made.metadata.uid = Some(self.fresh("bb"));
        made.metadata.creation_timestamp = Some(Time(self.clock));
        if on_behalf {
            made.spec.on_behalf_of = Some("Erin@contoso.com".into());
            made.spec.not_after = Some((self.clock + SignedDuration::from_secs(7200)).into());
        }
        if later {
            made.spec.not_before = Some((self.clock + SignedDuration::from_secs(120)).into());
        }
        self.etcd.request = Some(made);
        self.etcd.forged = self.since.is_none();
        self.start_anew();
    }

    fn start_anew(&mut self) {
        self.cloud = Cloud::default();
        self.read_back.clear();
        self.removed = false;
    }

    fn views(&self) -> Vec<PolicyView> {
        let view = |(name, own): (&&'static str, &Policy)| {
            let address = format!("10.0.0.{}", self.address);
            let mut view = policy(
                name,
                vec![port(22, &[], "3h")],
                vec![machine("web-1", &[&address], &["subnet", "nic"])],
            );
            view.uid.clone_from(&own.uid);
            view.generation = own.generation;
            let terms = view.terms.as_mut().unwrap();
            (terms.required, terms.self_approval, terms.suspend) = (own.required, own.own, own.suspend);
            view
        };
        self.etcd.policies.iter().map(view).collect()
    }

    /// All that an approval is about, as things are.
    fn shown(&self) -> Option<Shown> {
        let uid = self.etcd.request.as_ref()?.metadata.uid.clone()?;
        let mut uids: Vec<String> = self.etcd.policies.values().map(|policy| policy.uid.clone()).collect();
        uids.sort();
        Some((uid, uids, self.address))
    }

    fn right(&self, who: &str, policy: &str) -> Right {
        let key = PEOPLE.iter().find(|name| **name == who).zip(POLICIES.iter().find(|name| **name == policy));
        match key.and_then(|(who, policy)| self.rights.get(&(*who, *policy))) {
            None | Some(0) => Right::Allowed,
            Some(1) => Right::NotAllowed,
            Some(_) => Right::Unknown("no answer".into()),
        }
    }

    fn write_review(&mut self, who: &str, verdict: Verdict, policy: &'static str, hash: u8) {
        let Some(request) = &self.etcd.request else { return };
        let on_display = request.status.as_ref().and_then(|status| status.plan_hash.clone());
        let hash = match hash {
            0 => on_display,
            1 => self.etcd.words.iter().find_map(|word| word.review.spec.plan_hash.clone()),
            _ => Some("f".repeat(64)),
        };
        let uid = request.metadata.uid.clone().unwrap_or_default();
        let shown = hash.as_ref().and_then(|hash| self.displayed.get(hash)).cloned();
        let mut review = JitAccessReview::new(
            "word",
            JitAccessReviewSpec {
                request_ref: RequestRef { name: "one".into(), uid },
                policy_ref: NameRef { name: policy.into() },
                plan_hash: hash,
                verdict,
                comment: None,
                reviewer: Some(UserInfo { username: who.into(), ..UserInfo::default() }),
            },
        );
        review.metadata.uid = Some(self.fresh("cc"));
        review.metadata.creation_timestamp = Some(Time(self.clock));
        self.etcd.words.push(Word { review, shown, forged: self.since.is_none() });
    }
}

impl Play {
    /// One move of the controller. False: it is not as the laws have it.
    fn reconcile(&mut self, lost: bool) -> Result<(), TestCaseError> {
        let Some(mut request) = self.etcd.request.clone() else { return Ok(()) };
        let now = self.now();
        let admission = match self.since {
            Some(since) => Admission::InForce { since },
            None => Admission::NotInForce { why: "broken".into() },
        };
        let pipelines = Pipelines::new(&["ci".into()]);
        let judgement = judge(&request, &self.views(), &pipelines, now);
        let plan = if let Judgement::Allowed(plan) = &judgement { Some(&**plan) } else { None };
        let uid = request.metadata.uid.clone().unwrap_or_default();
        let reviews: Vec<Arc<JitAccessReview>> = self
            .etcd
            .words
            .iter()
            .filter(|word| word.review.spec.request_ref.uid == uid)
            .map(|word| Arc::new(word.review.clone()))
            .collect();
        let case = Case {
            request: &request,
            plan,
            reviews: &reviews,
            admission: &admission,
            pipelines: &pipelines,
            now,
        };
        let tally: Tally = tally(case, &|user, policy| self.right(&user.username, policy));
        let cluster = Cluster::new("test", &[]);
        self.cloud.told(&request, now);
        let (cloud, before) = (&self.cloud, request.clone());
        let seen = |rule: &portcullis::api::RuleStatus| cloud.seen(rule);
        let mut world = World {
            request: &before,
            judgement: &judgement,
            tally: &tally,
            admission: &admission,
            cluster: &cluster,
            seen: &seen,
            no_room: None,
            patience: portcullis::plan::terms::Patience::default(),
            stopped_by: None,
            ground: cloud.ground(&before, false),
        };
        let mut next = step(&world, now);
        if next.grants {
            world.ground = cloud.ground(&before, true);
            next = step(&world, now);
        }
        if lost {
            return Ok(());
        }
        match next.finalizer {
            Finalizer::Leave => {
                request.status = Some(next.status);
                if next.grants {
                    self.cloud.vouch(&request);
                }
            }
            Finalizer::Add => request.metadata.finalizers.get_or_insert_default().push(FINALIZER.into()),
            Finalizer::Remove => request.metadata.finalizers = None,
        }
        for word in &mut self.etcd.words {
            let answer = tally.answers.get(&word.review.metadata.uid.clone().unwrap_or_default());
            if let Some(status) = answer.and_then(|answer| answer_status(&word.review, answer, now)) {
                word.review.status = Some(status);
            }
        }
        self.check_move(&before, &request, &uid)?;
        if let (Some(hash), Some(shown)) =
            (request.status.as_ref().and_then(|status| status.plan_hash.clone()), self.shown())
            && plan.is_some_and(|plan| plan.hash == hash)
        {
            let known = self.displayed.entry(hash).or_insert_with(|| shown.clone());
            prop_assert_eq!(&*known, &shown, "two plans have one hash");
        }
        self.cloud.told(&request, now);
        let gone = request.metadata.deletion_timestamp.is_some() && request.metadata.finalizers.is_none();
        self.etcd.request = (!gone).then_some(request);
        Ok(())
    }

    fn check_move(
        &mut self,
        before: &JitAccessRequest,
        after: &JitAccessRequest,
        uid: &str,
    ) -> Result<(), TestCaseError> {
        let (from, to) = (state(before), state(after));
        prop_assert!(!from.is_last() || from == to, "{from:?} -> {to:?}");
        prop_assert!(!from.holds_rules() || to.holds_rules() || to.is_last(), "{from:?} -> {to:?}");
        if !from.holds_rules() && to.holds_rules() {
            self.check_grant(before, uid)?;
            *self.grants.entry(uid.to_owned()).or_default() += 1;
            prop_assert_eq!(self.grants[uid], 1, "a request was granted twice");
        }
        // An approver's no, and the requester's end, are obeyed at once and for good.
        let no = self.etcd.words.iter().any(|word| {
            let spec = &word.review.spec;
            let who = spec.reviewer.as_ref().map_or("", |user| user.username.as_str());
            let decides = match spec.verdict {
                Verdict::Approved => false,
                Verdict::Denied | Verdict::Revoked => self.right(who, "web") == Right::Allowed,
                Verdict::Ended => who == "alice",
            };
            spec.request_ref.uid == uid && decides
        });
        if no && before.metadata.finalizers == after.metadata.finalizers {
            prop_assert!(!matches!(to, State::Opening | State::Active), "{to:?} after a no");
            self.over.insert(uid.to_owned());
        }
        Ok(())
    }

    /// What laws 6 and 7 ask of a grant.
    fn check_grant(&self, request: &JitAccessRequest, uid: &str) -> Result<(), TestCaseError> {
        let Some(since) = self.since else {
            return Err(TestCaseError::fail("granted while admission was not in force"));
        };
        let created = |at: &Option<Time>| at.as_ref().unwrap().0;
        prop_assert!(
            !self.etcd.forged && created(&request.metadata.creation_timestamp) > since,
            "not trusted"
        );
        prop_assert!(!self.over.contains(uid), "granted after a denial");
        let start = request.spec.not_before.as_ref().map(|at| at.timestamp().unwrap());
        prop_assert!(start.is_none_or(|start| start <= self.now()), "granted before its time");
        prop_assert!(self.etcd.policies.contains_key("web"), "granted without its policy");
        let back = request.status.as_ref().and_then(|status| status.pending_since.clone());
        let waits = back.or(request.metadata.creation_timestamp.clone()).unwrap().0;
        let in_time = waits + SignedDuration::from_secs(3600);
        for (name, policy) in &self.etcd.policies {
            prop_assert!(!policy.suspend, "granted under {name}, which is suspended");
            let people: BTreeSet<String> = self
                .etcd
                .words
                .iter()
                .filter(|word| {
                    let spec = &word.review.spec;
                    let who = spec.reviewer.as_ref().unwrap().username.as_str();
                    let at = created(&word.review.metadata.creation_timestamp);
                    let own = person(who) == "alice" && !(policy.own && request.spec.on_behalf_of.is_none());
                    let named = request.spec.on_behalf_of.is_some() && who.contains("erin");
                    spec.verdict == Verdict::Approved
                        && spec.request_ref.uid == uid
                        && spec.policy_ref.name == **name
                        && word.shown.is_some()
                        && word.shown == self.shown()
                        && !word.forged
                        && at > since
                        && at <= in_time
                        && self.right(who, name) == Right::Allowed
                        && !own
                        && !named
                })
                .map(|word| person(&word.review.spec.reviewer.as_ref().unwrap().username))
                .collect();
            let required = usize::try_from(policy.required).unwrap();
            prop_assert!(people.len() >= required, "{required} under {name}, by {people:?}");
        }
        Ok(())
    }

    fn take(&mut self, happening: Happening) -> Result<(), TestCaseError> {
        match happening {
            Happening::Reconcile { lost } => self.reconcile(lost)?,
            Happening::Gate { fails } => self.cloud.work(self.now(), fails),
            Happening::Wait(by) => self.clock += SignedDuration::from_secs(by),
            Happening::Skew(by) => self.skew = by,
            Happening::Review { who, verdict, policy, hash } => self.write_review(who, verdict, policy, hash),
            Happening::TakeBack(index) => {
                if !self.etcd.words.is_empty() {
                    self.etcd.words.remove(index.index(self.etcd.words.len()));
                }
            }
            Happening::Edit { policy, required, own, suspend } => {
                if let Some(known) = self.etcd.policies.get_mut(policy) {
                    *known = Policy {
                        generation: known.generation + 1,
                        uid: known.uid.clone(),
                        required,
                        own,
                        suspend,
                    };
                }
            }
            Happening::Delete { policy } => {
                self.etcd.policies.remove(policy);
            }
            Happening::Create { policy } => self.create_policy(policy, 1),
            Happening::Move(address) => self.address = address,
            Happening::Rights { who, policy, right } => {
                self.rights.insert((who, policy), right);
            }
            Happening::BreakAdmission => self.since = None,
            Happening::MendAdmission => {
                self.since.get_or_insert(self.clock);
            }
            Happening::DeleteRequest => {
                if let Some(request) = &mut self.etcd.request {
                    request.metadata.deletion_timestamp.get_or_insert(Time(self.clock));
                    if request.metadata.finalizers.is_none() {
                        self.etcd.request = None;
                    }
                }
            }
            Happening::CreateRequest { on_behalf, later } => self.create_request(on_behalf, later),
            Happening::SomebodyRemovesARule => {
                if let Some(rule) = self.cloud.somebody_removes_a_rule() {
                    self.removed |= self.read_back.contains(&rule);
                }
            }
            Happening::Restart => {
                let now = self.now();
                if let Some(request) = &self.etcd.request {
                    self.cloud.restart(request, now);
                }
            }
            Happening::Snapshot => self.snapshot = Some(self.etcd.clone()),
            Happening::Restore => self.restore(),
        }
        Ok(())
    }

    /// As the runbook has it: the marker is deleted with it, so that admission is in force since now.
    fn restore(&mut self) {
        let Some(old) = self.snapshot.take() else { return };
        let uid = |etcd: &Etcd| etcd.request.as_ref().and_then(|request| request.metadata.uid.clone());
        let same = uid(&old) == uid(&self.etcd);
        self.etcd = old;
        self.since = Some(self.clock);
        if !same {
            self.start_anew();
        }
        let now = self.now();
        if let Some(request) = &self.etcd.request {
            self.cloud.restart(request, now);
            self.cloud.sweep(request);
        }
    }

    fn check_cloud(&mut self, written: usize) -> Result<(), TestCaseError> {
        let status =
            self.etcd.request.as_ref().and_then(|request| request.status.clone()).unwrap_or_default();
        for rule in status.rules.iter().filter(|rule| rule.state == "Present") {
            self.read_back.insert((rule.firewall.to_ascii_lowercase(), rule.name.clone()));
        }
        let wrote = &self.cloud.written[written.min(self.cloud.written.len())..];
        prop_assert!(wrote.is_empty() || !self.removed, "{wrote:?} was written after somebody removed it");
        let names: BTreeSet<_> = self.cloud.written.iter().collect();
        prop_assert_eq!(names.len(), self.cloud.written.len(), "a rule was written twice");
        if let Some(request) = &self.etcd.request
            && !state(request).holds_rules()
        {
            prop_assert!(self.cloud.standing.is_empty(), "open in {:?}", state(request));
        }
        Ok(())
    }
}

#[test]
fn nothing_is_granted_but_by_enough_people_for_just_that_and_once() {
    let mut runner = TestRunner::new(ProptestConfig { cases: 2500, ..ProptestConfig::default() });
    let (granted, by_people) = (std::cell::Cell::new(0usize), std::cell::Cell::new(0usize));
    let histories = prop::collection::vec(happening(), 1..150);
    runner
        .run(&histories, |history| {
            let mut play = Play::new();
            for happening in history {
                let written = play.cloud.written.len();
                let before = play.grants.len();
                play.take(happening)?;
                play.check_cloud(written)?;
                if play.grants.len() > before {
                    granted.set(granted.get() + 1);
                    let asked: i32 = play.etcd.policies.values().map(|policy| policy.required).sum();
                    by_people.set(by_people.get() + usize::from(asked > 0));
                }
            }
            Ok(())
        })
        .unwrap();
    // Else it would prove nothing.
    assert!(by_people.get() > 200 && granted.get() > 250, "{} of {}", by_people.get(), granted.get());
}
