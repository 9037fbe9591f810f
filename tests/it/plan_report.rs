//! What a policy's status says of what was seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use portcullis::api::values::ArmId;
use portcullis::api::{
    ConditionType, JitPolicy, JitPolicySpec, JitPolicyStatus, Reason, TargetStatus, find_condition,
};
use portcullis::plan::authorize::Resolved;
use portcullis::plan::desired::Grant;
use portcullis::plan::foresight::without_room;
use portcullis::plan::model::{FirewallHop, FirewallId, Machine, Observed, Unsupported};
use portcullis::plan::report::{FirewallReport, Problem, World, stalled, status};
use portcullis::plan::terms::Terms;
use serde_json::{Value, json};

use crate::plan_authorize::machine;
use crate::plan_world::*;

mod memory;
mod path;
mod target;

/// A policy and all that is known of what it is about.
struct Scene {
    spec: Value,
    before: Option<JitPolicyStatus>,
    machines: Option<BTreeMap<String, Vec<Resolved>>>,
    firewalls: BTreeMap<FirewallId, FirewallReport>,
    problem: Option<Problem>,
    dry_run: bool,
    grants: Vec<Grant>,
    not_admitted: Option<String>,
}

impl Scene {
    /// A policy for these machines, of which nothing is locked yet.
    fn of(machines: Vec<Machine>) -> Self {
        let target = |machine: &Machine| json!({"name": machine.id.name(), "azureVirtualMachine": {"id": machine.id.as_str()}});
        // A policy names something, whatever becomes of it.
        let named = if machines.is_empty() { vec![web_1()] } else { machines.clone() };
        let spec = json!({"targets": named.iter().map(target).collect::<Vec<_>>()});
        let found = machines
            .into_iter()
            .map(|machine| (machine.id.name().to_owned(), vec![(machine.id.clone(), Ok(machine))]));
        Self {
            spec,
            before: None,
            machines: Some(found.collect()),
            firewalls: BTreeMap::new(),
            problem: None,
            dry_run: false,
            grants: vec![],
            not_admitted: None,
        }
    }

    /// One machine behind one group, whose rules are as the lock makes them.
    fn locked(rules: &[&str]) -> Self {
        let mut scene = Self::of(vec![web_1()]);
        scene.know("nic", locked(rules, "10.0.0.4"));
        scene
    }

    /// What is known of a group of `web-1`, or of one of that name.
    fn know(&mut self, group: &str, report: FirewallReport) {
        self.firewalls.insert(group_id(group), report);
    }

    fn of_group(&mut self, group: &str) -> &mut FirewallReport {
        self.firewalls.get_mut(&group_id(group)).unwrap()
    }

    /// What a target's machine is resolved to.
    fn resolve(&mut self, name: &str, found: Vec<Resolved>) {
        self.machines.as_mut().unwrap().insert(name.into(), found);
    }

    /// A machine that cannot be locked.
    fn lose(&mut self, name: &str, reason: Reason, message: &str) {
        let id = machine(name, &[], &[]).id;
        self.resolve(name, vec![(id, Err(Unsupported { reason, message: message.into() }))]);
    }

    fn status(&self) -> JitPolicyStatus {
        let spec: JitPolicySpec = serde_json::from_value(self.spec.clone()).unwrap();
        let terms = Terms::parse(&spec).unwrap();
        let mut policy = JitPolicy::new("web", spec);
        policy.metadata.generation = Some(7);
        policy.status.clone_from(&self.before);
        let cluster = cluster();
        let world = World {
            policy: &policy,
            terms: &terms,
            machines: self.machines.clone().map(Arc::new),
            firewalls: self.firewalls.clone(),
            problem: self.problem.clone(),
            dry_run: self.dry_run,
            cluster: &cluster,
            grants: self.grants.clone(),
            not_admitted: self.not_admitted.clone(),
        };
        status(&world, at(0))
    }

    /// The only target.
    fn target(&self) -> TargetStatus {
        let [target] = <[TargetStatus; 1]>::try_from(self.status().targets).unwrap();
        target
    }
}

fn web_1() -> Machine {
    machine("web-1", &["10.0.0.4"], &["nic"])
}

/// A firewall on the way that leads packets on.
fn hub() -> FirewallHop {
    FirewallHop {
        id: translating("azureFirewalls", "hub"),
        address: ip("10.2.1.4"),
        policies: vec![],
        publics: vec![ip("198.51.100.40")],
        subnets: vec![net("10.2.1.0/26")],
        routes: vec![],
    }
}

/// The id of what leads packets on before the groups.
fn translating(kind: &str, name: &str) -> FirewallId {
    let group = group_id(name).to_string();
    FirewallId(ArmId::parse(&group.replace("networkSecurityGroups", kind)).unwrap())
}

fn group_id(name: &str) -> FirewallId {
    machine("any", &["10.0.0.1"], &[name]).firewalls().remove(0)
}

/// A group that holds these rules and what the lock of port 22 of an address makes of them.
fn locked(rules: &[&str], address: &str) -> FirewallReport {
    let mut observed = nsg(rules);
    settle(&mut observed, &wanted(vec![lock(WEB, &[(address, "22")])], vec![]), at(0));
    read(observed)
}

fn read(observed: Observed) -> FirewallReport {
    FirewallReport { locked: true, observed: Some(Arc::new(observed)), ..FirewallReport::default() }
}

fn problem(reason: Reason, message: &str) -> Problem {
    Problem { reason, message: message.into() }
}

/// A condition's status, reason and message.
fn said(status: &JitPolicyStatus, kind: ConditionType) -> (bool, Reason, String) {
    let condition = find_condition(&status.conditions, kind).unwrap();
    assert_eq!(condition.observed_generation, Some(7));
    (condition.status == "True", Reason::parse(&condition.reason).unwrap(), condition.message.clone())
}

fn ready(status: &JitPolicyStatus) -> (bool, Reason, String) {
    said(status, ConditionType::Ready)
}

fn effective(status: &JitPolicyStatus) -> (bool, Reason, String) {
    said(status, ConditionType::LockdownEffective)
}

/// Whether people are asked to mend something, and what.
fn asked_of_people(status: &JitPolicyStatus) -> Option<Reason> {
    let (stalled, reason, _) = said(status, ConditionType::Stalled);
    stalled.then_some(reason)
}

#[test]
fn a_lock_that_was_read_back_is_ready_and_effective() {
    let status = Scene::locked(&["ssh 300 Allow TCP * > * : 22"]).status();
    let message = "locked and read back: 1 of 1 machines";
    assert_eq!(ready(&status), (true, Reason::Configured, message.into()));
    let message = "every locked port is closed to everybody without a grant";
    assert_eq!(effective(&status), (true, Reason::Configured, message.into()));
    assert_eq!(asked_of_people(&status), None);
    assert_eq!(status.observed_generation, Some(7));
}

#[test]
fn what_cannot_be_enforced_at_all_is_stalled() {
    let mut policy = JitPolicy::new("web", JitPolicySpec::default());
    policy.metadata.generation = Some(7);
    policy.status = Some(Scene::locked(&[]).status());
    let status = stalled(&policy, Reason::InvalidSpec, "spec.ports: why", at(0));
    let why = "spec.ports: why".to_owned();
    assert_eq!(ready(&status), (false, Reason::InvalidSpec, why.clone()));
    assert_eq!(effective(&status), (false, Reason::InvalidSpec, why.clone()));
    assert_eq!(said(&status, ConditionType::Stalled), (true, Reason::InvalidSpec, why));
    assert_eq!(status.targets.len(), 1, "what may have to be unlocked is not forgotten");
}

#[test]
fn machines_that_were_never_read_are_being_read_unless_something_is_in_the_way() {
    let mut scene = Scene::locked(&[]);
    scene.before = Some(scene.status());
    scene.machines = None;
    let status = scene.status();
    let reading = (false, Reason::Progressing, "the machines are being read".to_owned());
    assert_eq!((ready(&status), effective(&status)), (reading.clone(), reading));
    assert_eq!(asked_of_people(&status), None);
    assert_eq!((status.targets.len(), status.observed_generation), (1, Some(7)));

    scene.problem = Some(problem(Reason::CloudUnavailable, "away"));
    let status = scene.status();
    let away = (false, Reason::CloudUnavailable, "away".to_owned());
    assert_eq!((ready(&status), effective(&status)), (away.clone(), away));
}

#[test]
fn it_is_counted_how_many_machines_there_are_and_how_many_of_them_are_locked() {
    let names = ["a", "b", "c"];
    let machines = names.map(|name| machine(name, &["10.0.0.4"], &[name]));
    let mut scene = Scene::of(machines.into());
    scene.spec["ports"] = json!([{"port": 3389, "protocol": "TCP"}, {"port": 22}]);
    scene.know("a", locked(&[], "10.0.0.4"));
    scene.know("b", read(nsg(&["other 100 Deny Any * > * : *"])));
    scene.know("c", FirewallReport { locked: false, ..read(nsg(&[])) });
    scene.lose("d", Reason::NotSupported, "of another kind");
    scene.resolve("none", vec![]);
    let summary = scene.status().summary.unwrap();
    // `a` is open on 3389, and `c` on both.
    assert_eq!((summary.targets, summary.configured, summary.unsupported), (5, 2, 1));
    assert_eq!(summary.not_effective, 2);
    assert_eq!(summary.machines.as_deref(), Some("2/5"));
    assert_eq!(summary.ports.as_deref(), Some("22,3389/TCP"));

    // Where no machine says which, the policy does.
    let mut scene = Scene::of(vec![]);
    scene.spec["ports"] = json!([{"port": 3389, "protocol": "UDP"}, {"port": 20, "endPort": 22}]);
    scene.lose("d", Reason::NotSupported, "of another kind");
    assert_eq!(scene.status().summary.unwrap().ports.as_deref(), Some("3389/UDP,20-22"));
}

#[test]
fn machines_in_trouble_come_first() {
    let names = ["a", "b", "c", "d"];
    let machines = names.map(|name| machine(name, &["10.0.0.4"], &[name]));
    let mut scene = Scene::of(machines.into());
    scene.know("a", locked(&[], "10.0.0.4"));
    scene.know("b", locked(&["ssh 100 Allow TCP * > * : 22"], "10.0.0.4"));
    scene.know("c", FirewallReport { observed: None, ..locked(&[], "10.0.0.4") });
    scene.know("d", FirewallReport { locked: false, ..locked(&[], "10.0.0.4") });
    scene.lose("e", Reason::NotSupported, "of another kind");
    let names: Vec<String> = scene.status().targets.into_iter().map(|target| target.name).collect();
    assert_eq!(names, ["e", "d", "c", "b", "a"]);
}

#[test]
fn an_audit_says_what_would_be_locked_and_what_would_be_in_the_way() {
    let mut scene = Scene::of(vec![web_1(), machine("web-2", &["10.0.0.5"], &["nic"])]);
    scene.spec["mode"] = json!("Audit");
    scene.lose("web-3", Reason::NotSupported, "of another kind");
    scene.know("nic", read(nsg(&[])));
    let status = scene.status();
    let message = "would lock 2 of 3 machines; nothing is written";
    assert_eq!(ready(&status), (true, Reason::Audit, message.into()));
    let (holds, reason, message) = effective(&status);
    assert_eq!((holds, reason), (false, Reason::Audit));
    assert_eq!(message, "2 of 3 machines are not closed: web-1: would be locked: 22");
    assert_eq!(asked_of_people(&status), None);

    scene.of_group("nic").refused = Some(problem(Reason::FirewallFull, "it is full"));
    let (_, _, message) = ready(&scene.status());
    let why = format!("{}: it is full", group_id("nic"));
    assert_eq!(message, format!("would lock 2 of 3 machines; nothing is written; in the way: web-1: {why}"));
}

#[test]
fn a_program_that_writes_nothing_says_so() {
    let mut scene = Scene::locked(&[]);
    scene.dry_run = true;
    let status = scene.status();
    let message = Reason::DryRun.description().trim().to_owned();
    assert_eq!(ready(&status), (true, Reason::DryRun, message));
    assert!(effective(&status).0, "what others have closed is closed");
    assert_eq!(status.targets[0].reason.as_deref(), Some("DryRun"));
}

#[test]
fn what_only_people_can_mend_is_told_from_what_is_tried_again() {
    let mut scene = Scene::locked(&[]);
    for (reason, people) in [
        (Reason::NotPermitted, true),
        (Reason::NoTargets, true),
        (Reason::CloudUnavailable, false),
        (Reason::Progressing, false),
    ] {
        scene.problem = Some(problem(reason, "why"));
        let status = scene.status();
        assert_eq!(ready(&status), (false, reason, "why".into()));
        assert_eq!(asked_of_people(&status), people.then_some(reason));
        assert!(effective(&status).0, "the lock stands all the same");
    }
    // Also where admission is to be mended, which stands in the way of no lock.
    scene.not_admitted = Some("no policy".into());
    assert_eq!(asked_of_people(&scene.status()), Some(Reason::AdmissionNotEnforced));
    scene.problem = None;
    let status = scene.status();
    assert!(ready(&status).0);
    let message = "locks, and grants nothing until this is mended: no policy";
    let stalled = said(&status, ConditionType::Stalled);
    assert_eq!(stalled, (true, Reason::AdmissionNotEnforced, message.into()));
    scene.problem = Some(problem(Reason::NotPermitted, "why"));
    assert_eq!(asked_of_people(&scene.status()), Some(Reason::NotPermitted));
}

#[test]
fn a_policy_that_selects_nothing_is_not_ready() {
    for targets in [&[][..], &["none"]] {
        let mut scene = Scene::of(vec![]);
        targets.iter().for_each(|name| scene.resolve(name, vec![]));
        let status = scene.status();
        let message = "no machine is selected; check scopes and tags";
        assert_eq!(ready(&status), (false, Reason::NoTargets, message.into()));
        assert_eq!(effective(&status), (false, Reason::NoTargets, "no machine is selected".into()));
        assert_eq!(asked_of_people(&status), Some(Reason::NoTargets));
    }
}

#[test]
fn the_first_machine_in_trouble_is_named() {
    let mut scene = Scene::of(vec![web_1(), machine("web-2", &["10.0.0.5"], &["other"])]);
    scene.know("nic", locked(&[], "10.0.0.4"));
    scene.know("other", FirewallReport { locked: false, ..read(nsg(&[])) });
    let status = scene.status();
    let message = format!("web-2: the lock is being written to {}", group_id("other"));
    assert_eq!(ready(&status), (false, Reason::Progressing, message.clone()));
    let message = format!("1 of 2 machines are not closed: {message}");
    assert_eq!(effective(&status), (false, Reason::Progressing, message));

    scene.lose("web-3", Reason::NotSupported, "of another kind");
    let status = scene.status();
    let message = "1 of 3 machines cannot be locked: web-3: of another kind";
    assert_eq!(ready(&status), (false, Reason::TargetsUnsupported, message.into()));
    assert_eq!(asked_of_people(&status), Some(Reason::TargetsUnsupported));
}

#[test]
fn rules_of_others_that_let_in_past_the_lock_are_named() {
    let early = ["ssh 100 Allow TCP 203.0.113.0/24 > * : 22", "all 101 Allow Any Storage > * : *"];
    let mut scene = Scene::locked(&early);
    let by = "rule all of nic, rule ssh of nic";
    let status = scene.status();
    assert_eq!(status.targets[0].shadowed_by.join(", "), by);
    let message = format!("1 of 1 machines are not closed: web-1: let in by {by}");
    let shadowed = (false, Reason::Shadowed, message.clone());
    assert_eq!((ready(&status), effective(&status)), (shadowed.clone(), shadowed));

    // Where the policy keeps them, it is ready as it was meant.
    scene.spec["enforcement"] = json!({"existingRules": "Keep"});
    let status = scene.status();
    assert!(ready(&status).0);
    let (holds, reason, said) = effective(&status);
    assert_eq!((holds, reason), (false, Reason::KeptRules));
    assert_eq!(said, message);
}

#[test]
fn what_is_not_proved_is_not_called_effective() {
    let mut scene = Scene::locked(&[]);
    scene.of_group("nic").observed = None;
    let status = scene.status();
    let unread = (false, Reason::NotObserved, "web-1: nic has not been read".to_owned());
    assert_eq!((ready(&status), effective(&status)), (unread.clone(), unread));
    assert_eq!(asked_of_people(&status), None);
}

#[test]
fn a_lock_that_leaves_grants_no_number_asks_for_one() {
    let mut scene = Scene::locked(&["ssh 101 Allow TCP * > * : 22"]);
    let observed = scene.of_group("nic").observed.clone().unwrap();
    scene.of_group("nic").crowded = without_room(&observed, &cluster());
    let status = scene.status();
    let (is_ready, reason, message) = ready(&status);
    assert_eq!((is_ready, reason), (false, Reason::NoPriorityRoom));
    assert!(message.starts_with("web-1: locked, and read back; "), "{message}");
    assert!(message.contains("no grant of port 22 can be opened"), "{message}");
    assert!(effective(&status).0);
    assert_eq!(asked_of_people(&status), Some(Reason::NoPriorityRoom));
}
