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
        grants: Vec::new(),
        orphans: BTreeSet::new(),
        honour_denies_below: 1000,
        max_allows: 200,
        standing: Vec::new(),
    };
    let plan =
        changes::plan(&observed, &wanted, &Limits { rules: 1000, addresses: 4000 }, Timestamp::UNIX_EPOCH);
    assert!(plan.unlocks.is_empty(), "{plan:#?}");
}
