//! What a policy's locks become when its machines come, go and cannot be read.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::api::{ExistingRules, JitPolicySpec, Reason, TargetStatus};
use portcullis::plan::changes;
use portcullis::plan::desired::{Limits, Lock, LockedMachine, Wanted};
use portcullis::plan::locks::{self, Departed};
use portcullis::plan::model::{
    Access, FirewallId, Observed, Peer, Provisioning, ResourceLock, Rule, RuleProtocol, Unsupported,
};
use portcullis::plan::names::{self, Cluster};
use portcullis::plan::terms::Terms;
use serde_json::json;

const GROUP: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers";

fn id(text: &str) -> ArmId {
    ArmId::parse(&format!("{GROUP}/{text}")).unwrap()
}

fn nsg() -> FirewallId {
    FirewallId(id("Microsoft.Network/networkSecurityGroups/web"))
}

fn terms(deletion_policy: &str) -> Terms {
    let vm = id("Microsoft.Compute/virtualMachines/web-1");
    let spec: JitPolicySpec = serde_json::from_value(json!({
        "targets": [{"name": "web-1", "azureVirtualMachine": {"id": vm.as_str()}}],
        "deletionPolicy": deletion_policy,
    }))
    .unwrap();
    Terms::parse(&spec).unwrap()
}

fn before() -> TargetStatus {
    TargetStatus {
        name: "web-1".into(),
        id: id("Microsoft.Compute/virtualMachines/web-1").to_string(),
        addresses: vec!["10.0.0.4".into()],
        firewalls: vec![nsg().to_string()],
        ..TargetStatus::default()
    }
}

#[test]
fn a_machine_that_cannot_be_read_keeps_its_lock_and_one_that_is_gone_does_not() {
    for deletion_policy in ["Retain", "Unlock"] {
        for (reason, gone) in [
            (Reason::NotPermitted, false),
            (Reason::NoAddress, false),
            (Reason::CloudUnavailable, false),
            (Reason::VirtualMachineNotFound, true),
        ] {
            let terms = terms(deletion_policy);
            let vm = id("Microsoft.Compute/virtualMachines/web-1");
            let found = (vm.clone(), Err(Unsupported { reason, message: "generated".into() }));
            let departed = locks::departure(&before(), &terms, Some(&found));
            assert_eq!(departed, gone.then_some(Departed::Gone), "{reason:?}");
            let machines = BTreeMap::from([("web-1".to_owned(), vec![found])]);
            let departed: BTreeMap<ArmId, Departed> =
                departed.into_iter().map(|what| (vm.clone(), what)).collect();
            let wanted = locks::wanted("a", "web/a", &terms, &machines, &[before()], &departed);
            let lock = &wanted[&nsg()];
            assert_eq!(
                lock.release.contains(&"10.0.0.4".parse().unwrap()),
                gone,
                "{deletion_policy} {reason:?}"
            );
            assert!(gone || lock.keep_others, "{deletion_policy} {reason:?}: {lock:?}");
        }
    }
}

fn policy(targets: &serde_json::Value, deletion_policy: &str) -> Terms {
    let spec = json!({"targets": targets, "deletionPolicy": deletion_policy});
    Terms::parse(&serde_json::from_value(spec).unwrap()).unwrap()
}

fn named(name: &str) -> serde_json::Value {
    json!({"name": "web-1", "azureVirtualMachine": {"id": id(&format!("Microsoft.Compute/virtualMachines/{name}")).as_str()}})
}

fn ip(text: &str) -> std::net::IpAddr {
    text.parse().unwrap()
}

/// A machine of these addresses behind the group.
fn found(name: &str, addresses: &[&str]) -> (ArmId, Result<portcullis::plan::model::Machine, Unsupported>) {
    let mut machine = crate::plan_authorize::machine(name, addresses, &["web"]);
    machine.id = id(&format!("Microsoft.Compute/virtualMachines/{name}"));
    for address in machine.nics.iter_mut().flat_map(|nic| &mut nic.addresses) {
        address.path = vec![nsg()];
    }
    (machine.id.clone(), Ok(machine))
}

#[test]
fn a_policy_locks_every_machine_once_behind_every_firewall_on_its_way() {
    let terms = policy(&json!([named("web-1")]), "Retain");
    let entry = || vec![found("web-1", &["10.0.0.5", "10.0.0.4"])];
    let machines = BTreeMap::from([
        ("web-1".to_owned(), entry()),
        ("twice".to_owned(), entry()),
        ("other".to_owned(), vec![found("web-2", &["10.0.0.6"])]),
    ]);
    let wanted = locks::wanted("a", "web/a", &terms, &machines, &[], &BTreeMap::new());
    let ssh = vec![(Protocol::Any, PortRange::single(22))];
    let locked = |addresses: &[&str]| LockedMachine {
        addresses: addresses.iter().map(|text| ip(text)).collect(),
        ports: ssh.clone(),
    };
    assert_eq!(wanted.keys().collect::<Vec<_>>(), [&nsg()]);
    assert_eq!(wanted[&nsg()].machines, [locked(&["10.0.0.4", "10.0.0.5"]), locked(&["10.0.0.6"])]);
    assert!(wanted[&nsg()].keep_others && wanted[&nsg()].release.is_empty());
    let unlocking = policy(&json!([named("web-1")]), "Unlock");
    assert!(!locks::wanted("a", "web/a", &unlocking, &machines, &[], &BTreeMap::new())[&nsg()].keep_others);
    // An address that it had and has no more is released; one that another machine has now is not.
    let moved = BTreeMap::from([(
        "web-1".to_owned(),
        vec![found("web-1", &["10.0.0.7"]), found("web-2", &["10.0.0.8"])],
    )]);
    let before = TargetStatus { addresses: vec!["10.0.0.4".into(), "10.0.0.8".into()], ..before() };
    let lock =
        locks::wanted("a", "web/a", &terms, &moved, &[before], &BTreeMap::new()).remove(&nsg()).unwrap();
    assert_eq!(lock.release, [ip("10.0.0.4")].into());
}

/// Status names as many machines as it has room for. One that it does not name may have been locked all the same.
#[test]
fn nothing_is_unlocked_because_status_has_no_room_for_it() {
    let terms = terms("Unlock");
    let keeps = |machine: (ArmId, Result<_, Unsupported>), before: &[TargetStatus]| {
        let machines = BTreeMap::from([("all".to_owned(), vec![found("web-1", &["10.0.0.4"]), machine])]);
        locks::wanted("a", "web/a", &terms, &machines, before, &BTreeMap::new())[&nsg()].keep_others
    };
    let unread = |reason| {
        let id = id("Microsoft.Compute/virtualMachines/web-300");
        (id, Err(Unsupported { reason, message: "generated".into() }))
    };
    let there = || found("web-300", &["10.0.0.5"]);
    assert!(!keeps(there(), &[before()]));
    assert!(keeps(unread(Reason::NotPermitted), &[before()]));
    assert!(keeps(unread(Reason::NoAddress), &[before()]));
    assert!(!keeps(unread(Reason::VirtualMachineNotFound), &[before()]));
    assert!(!keeps(unread(Reason::ClassicVirtualMachine), &[before()]));
    // Those in trouble come first in status: from the next look on it is there, without its firewalls.
    let told = |firewalls: Vec<String>| TargetStatus {
        id: id("Microsoft.Compute/virtualMachines/web-300").to_string(),
        firewalls,
        ..before()
    };
    assert!(keeps(unread(Reason::NotPermitted), &[told(vec![]), before()]));
    // One that status tells of is kept at its own addresses, and nothing else is.
    let elsewhere = id("Microsoft.Network/networkSecurityGroups/other").to_string();
    assert!(!keeps(unread(Reason::NotPermitted), &[told(vec![elsewhere]), before()]));
}

#[test]
fn nobody_is_exempt_from_a_lock_whose_address_another_machine_has_behind_the_same_group() {
    let spec =
        json!({"targets": [named("web-1")], "enforcement": {"exemptSources": [{"cidr": "203.0.113.7/32"}]}});
    let terms = Terms::parse(&serde_json::from_value(spec).unwrap()).unwrap();
    let exempt = |twin: Option<&str>| {
        let (id, machine) = found("web-1", &["10.0.0.4"]);
        let mut machine = machine.unwrap();
        machine.nics[0].addresses[0].network.twin = twin.map(Into::into);
        let machines = BTreeMap::from([("web-1".to_owned(), vec![(id, Ok(machine))])]);
        let wanted = locks::wanted("a", "web/a", &terms, &machines, &[], &BTreeMap::new());
        assert_eq!(wanted[&nsg()].machines.len(), 1, "it is locked all the same");
        wanted[&nsg()].exempt.len()
    };
    assert_eq!((exempt(None), exempt(Some("the network spoke-2"))), (1, 0));
}

#[test]
fn what_became_of_a_machine_follows_from_its_entry_and_from_the_cloud() {
    use Departed::{Gone, LeftScope, TakenOut};
    let scope = |id: &str| json!([{"name": "web-1", "azureScope": {"id": id, "tags": {"jit": "yes"}}}]);
    let group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups";
    let unread = |reason| {
        let (id, _) = found("web-1", &[]);
        (id, Err(Unsupported { reason, message: "generated".into() }))
    };
    let there = || found("web-1", &["10.0.0.4"]);
    for (what, targets, cloud, became) in [
        (
            "its entry is gone",
            json!([{"name": "other", "azureScope": {"id": format!("{group}/web")}}]),
            Some(there()),
            Some(TakenOut),
        ),
        ("its entry names another", json!([named("web-2")]), Some(there()), Some(TakenOut)),
        ("its entry names it", json!([named("web-1")]), Some(there()), Some(LeftScope)),
        ("it is below the scope", scope(&format!("{group}/web")), Some(there()), Some(LeftScope)),
        ("the scope is another", scope(&format!("{group}/db")), Some(there()), Some(TakenOut)),
        ("it is gone", json!([named("web-1")]), Some(unread(Reason::VirtualMachineNotFound)), Some(Gone)),
        (
            "it became a classic one",
            json!([named("web-1")]),
            Some(unread(Reason::ClassicVirtualMachine)),
            Some(LeftScope),
        ),
        ("it cannot be read", json!([named("web-1")]), Some(unread(Reason::NotPermitted)), None),
        ("nobody asked", json!([named("web-1")]), None, None),
    ] {
        let departed = locks::departure(&before(), &policy(&targets, "Retain"), cloud.as_ref());
        assert_eq!(departed, became, "{what}");
    }
}

#[test]
fn a_policy_that_goes_leaves_no_lock_where_its_status_says_that_it_had_one() {
    let other = FirewallId(id("Microsoft.Network/networkSecurityGroups/db"));
    let targets = [
        before(),
        TargetStatus { firewalls: vec![other.to_string(), "not an id".into()], ..before() },
        before(),
    ];
    let firewalls = locks::firewalls(&targets);
    assert_eq!(firewalls, [nsg(), other.clone()].into());
    let unlocked = locks::unlocked("a", "web/a", None, firewalls);
    assert_eq!(unlocked.keys().collect::<BTreeSet<_>>(), [&nsg(), &other].into());
    for lock in unlocked.values() {
        assert!(lock.machines.is_empty() && lock.exempt.is_empty() && !lock.keep_others, "{lock:?}");
        assert_eq!((lock.policy_uid.as_str(), lock.policy.as_str()), ("a", "web/a"));
    }
}

#[test]
fn a_lock_below_rules_of_others_takes_over_none_that_stands_above_them() {
    let cluster = Cluster::new("test", &[]);
    let (a, b) = ("aaaaaaaa-0000-4000-8000-000000000000", "bbbbbbbb-0000-4000-8000-000000000000");
    let deny = |uid: &str, priority| Rule {
        name: names::deny_name(&cluster, uid, 0),
        priority,
        access: Access::Deny,
        protocol: RuleProtocol::Transport(Protocol::Any),
        sources: vec![Peer::Any],
        source_ports: vec![PortRange::ALL],
        destinations: vec![Peer::host("10.0.0.4".parse().unwrap())],
        ports: vec![PortRange::single(22)],
        translation: None,
        description: names::description(&cluster, uid, None),
        provisioning: Provisioning::Succeeded,
    };
    let foreign = Rule {
        name: "allow-ssh".into(),
        access: Access::Allow,
        description: String::new(),
        destinations: vec![Peer::Any],
        ..deny(a, 1000)
    };
    let observed = Observed {
        firewall: nsg(),
        at: Timestamp::UNIX_EPOCH,
        provisioning: Provisioning::Succeeded,
        rules: vec![deny(a, 999), foreign, deny(b, 4096)],
        outbound_rules: 0,
        outbound_addresses: 0,
        lock: ResourceLock::None,
        cuts_sessions: Some(false),
        translating: None,
    };
    let lock = |existing| Lock {
        policy_uid: b.into(),
        policy: "web/b".into(),
        existing,
        machines: vec![LockedMachine {
            addresses: vec!["10.0.0.4".parse().unwrap()],
            ports: vec![(Protocol::Any, PortRange::single(22))],
        }],
        exempt: Vec::new(),
        release: BTreeSet::new(),
        keep_others: true,
        cut_sessions: false,
    };
    // Policy A has not handed in its lock: it is gone, or its machines are still being read after a restart.
    let wanted = Wanted {
        cluster: cluster.clone(),
        locks: vec![lock(ExistingRules::Keep)],
        unheard: BTreeSet::new(),
        grants: Vec::new(),
        orphans: BTreeSet::new(),
        honour_denies_below: 1000,
        max_allows: 200,
        standing: Vec::new(),
        placed: Vec::new(),
    };
    let plan =
        changes::plan(&observed, &wanted, &Limits { rules: 1000, addresses: 4000 }, Timestamp::UNIX_EPOCH);
    assert!(plan.unlocks.is_empty(), "{plan:#?}");
}
