//! One machine of a policy's status.

use portcullis::api::PathStatus;
use portcullis::plan::model::{Hop, Os, Route};

use super::*;

fn is(target: &TargetStatus, state: &str, reason: Reason) {
    assert_eq!(
        (target.state.as_str(), target.reason.as_deref()),
        (state, Some(reason.as_str())),
        "{target:?}"
    );
}

fn message(target: &TargetStatus) -> &str {
    target.message.as_deref().unwrap()
}

#[test]
fn a_locked_machine_is_told_with_all_that_is_known_of_it() {
    let target = Scene::locked(&[]).target();
    let group = group_id("nic").to_string();
    let expected = TargetStatus {
        name: "web-1".into(),
        id: web_1().id.to_string(),
        state: "Configured".into(),
        reason: Some("Configured".into()),
        message: Some("locked, and read back".into()),
        os_type: Some("Linux".into()),
        addresses: vec!["10.0.0.4".into()],
        firewalls: vec![group.clone()],
        path: vec![PathStatus {
            id: group,
            kind: "NetworkSecurityGroup".into(),
            enforced: true,
            message: None,
        }],
        locked_ports: vec!["22".into()],
        shadowed_by: vec![],
    };
    assert_eq!(target, expected);
}

#[test]
fn a_machine_that_no_lock_can_hold_says_what_it_lacks() {
    let of = |change: &dyn Fn(&mut Machine)| {
        let mut machine = web_1();
        change(&mut machine);
        let mut scene = Scene::of(vec![machine]);
        scene.know("nic", locked(&[], "10.0.0.4"));
        scene.target()
    };
    let target = of(&|machine| machine.nics.clear());
    is(&target, "Unsupported", Reason::NoAddress);
    assert_eq!(message(&target), "it has no private address");

    let bare = |machine: &mut Machine| machine.nics[0].addresses[0].path.clear();
    let target = of(&bare);
    is(&target, "Unsupported", Reason::NoFirewall);
    let lacks =
        "no network security group filters traffic to it: give one to its subnet or network interface";
    assert_eq!(message(&target), lacks);

    let wan = Hop::Hub { id: web_1().id };
    let connected = |machine: &mut Machine| machine.nics[0].addresses[0].hops = vec![wan.clone()];
    let target = of(&|machine| {
        bare(machine);
        connected(machine);
    });
    is(&target, "Unsupported", Reason::NotSupported);
    assert!(message(&target).contains("(a secured hub) is not supported"), "{}", message(&target));
    is(&of(&connected), "Configured", Reason::Configured);

    let target = of(&|machine| machine.os = Os::Unknown);
    is(&target, "Unsupported", Reason::NoPorts);
    assert_eq!(message(&target), "its operating system is not known: name ports in spec.ports");
    assert_eq!(target.locked_ports, Vec::<String>::new());
}

#[test]
fn an_address_that_nothing_filters_is_open() {
    let mut both = machine("web-1", &["10.0.0.4", "10.0.0.5"], &["nic"]);
    both.nics[0].addresses[1].path.clear();
    let mut scene = Scene::of(vec![both]);
    scene.know("nic", locked(&[], "10.0.0.4"));
    let target = scene.target();
    is(&target, "NotConfigured", Reason::NoFirewall);
    assert_eq!(message(&target), "no network security group filters traffic to 10.0.0.5");
    assert_eq!(scene.status().summary.unwrap().not_effective, 1);
}

#[test]
fn an_address_may_be_locked_by_a_firewall_alone() {
    let anywhere = vec![Route { to: net("0.0.0.0/0"), by_it: true }];
    let mut bare = machine("web-1", &["10.0.0.4"], &[]);
    bare.nics[0].addresses[0].hops = vec![Hop::Firewall(FirewallHop { routes: anywhere, ..hub() })];
    let mut scene = Scene::of(vec![bare.clone()]);
    let target = scene.target();
    is(&target, "Configured", Reason::NotObserved);
    assert_eq!(message(&target), "hub has not been read");

    let hub = bare.translating_firewalls().remove(0);
    let mut observed = nsg(&[]);
    observed.rules.clear();
    observed.firewall = hub.clone();
    observed.translating = Some(portcullis::plan::model::Translating::default());
    scene.firewalls.insert(hub, read(observed));
    let target = scene.target();
    is(&target, "Configured", Reason::Configured);
    assert!(message(&target).contains("closed at the Azure Firewall"), "{}", message(&target));
    assert!(effective(&scene.status()).0);

    // What is not behind it, or reached by an address of its own, is not locked by it.
    for past_it in [false, true] {
        let mut machine = bare.clone();
        if past_it {
            machine.nics[0].addresses[0].has_public = true;
        } else {
            machine.nics[0].addresses[0].hops.clear();
        }
        is(&Scene::of(vec![machine.clone()]).target(), "Unsupported", Reason::NoFirewall);
        machine.nics[0].addresses[0].path = vec![group_id("nic")];
        let mut scene = Scene::of(vec![machine]);
        scene.spec["enforcement"] = json!({"azure": {"via": "AzureFirewall"}});
        let target = scene.target();
        is(&target, "NotConfigured", Reason::NoFirewall);
        let lacks = "no Azure Firewall stands before 10.0.0.4, or a public address leads past it";
        assert!(message(&target).contains(lacks), "{}", message(&target));
    }
    // A group is not written to where the policy names the firewall.
    bare.nics[0].addresses[0].path = vec![group_id("nic")];
    scene.resolve("web-1", vec![(bare.id.clone(), Ok(bare))]);
    scene.spec["enforcement"] = json!({"azure": {"via": "AzureFirewall"}});
    is(&scene.target(), "Configured", Reason::Configured);
    scene.spec["enforcement"] = json!({"azure": {"via": "NetworkSecurityGroup"}});
    is(&scene.target(), "NotConfigured", Reason::Progressing);
}

#[test]
fn what_keeps_a_lock_from_standing_is_said_and_where() {
    let group = group_id("nic");
    let mut scene = Scene::locked(&[]);
    scene.of_group("nic").locked = false;
    let target = scene.target();
    is(&target, "NotConfigured", Reason::Progressing);
    assert_eq!(message(&target), format!("the lock is being written to {group}"));
    assert!(effective(&scene.status()).0, "its deny stands, whatever else is to be written");

    scene.of_group("nic").error = Some(problem(Reason::CloudUnavailable, "away"));
    let target = scene.target();
    is(&target, "NotConfigured", Reason::CloudUnavailable);
    assert_eq!(message(&target), "away");

    scene.of_group("nic").gone = true;
    let target = scene.target();
    is(&target, "NotConfigured", Reason::Progressing);
    assert_eq!(message(&target), format!("{group} is gone; the machine is being read again"));
    assert!(!effective(&scene.status()).0);

    scene.of_group("nic").refused = Some(problem(Reason::FirewallFull, "it is full"));
    let target = scene.target();
    is(&target, "NotConfigured", Reason::FirewallFull);
    assert_eq!(message(&target), format!("{group}: it is full"));
}

#[test]
fn a_deny_that_is_not_there_is_said_to_be_missing() {
    let mut scene = Scene::locked(&[]);
    scene.know("nic", read(nsg(&[])));
    let target = scene.target();
    is(&target, "Configured", Reason::LockMissing);
    assert_eq!(message(&target), "no deny of its ports stands in nic");
    let (holds, reason, _) = effective(&scene.status());
    assert_eq!((holds, reason), (false, Reason::LockMissing));
}

#[test]
fn live_grants_are_no_holes() {
    let mut scene = Scene::locked(&[]);
    scene.grants = vec![grant(0, "203.0.113.7/32", "10.0.0.4", "22", 60, open(30))];
    let wanted = wanted(vec![lock(WEB, &[("10.0.0.4", "22")])], scene.grants.clone());
    let mut observed = nsg(&[]);
    settle(&mut observed, &wanted, at(0));
    scene.know("nic", read(observed));
    assert!(effective(&scene.status()).0);
    scene.grants.clear();
    assert!(!effective(&scene.status()).0);
}

#[test]
fn an_address_that_another_machine_has_too_is_locked_and_said_to_be_for_nobody() {
    let mut twin = web_1();
    twin.nics[0].addresses[0].network.twin = Some("the network spoke-2 has it too".into());
    let beside = machine("web-2", &["10.0.0.5"], &["nic"]);
    let mut scene = Scene::of(vec![twin, beside]);
    let both = [lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "22")])];
    let mut observed = nsg(&[]);
    settle(&mut observed, &wanted(both.to_vec(), vec![]), at(0));
    scene.know("nic", read(observed));
    let targets = |scene: &Scene| {
        let mut targets = scene.status().targets;
        targets.sort_by_key(|target| target.id.clone());
        targets
    };
    let found = targets(&scene);
    is(&found[0], "Configured", Reason::AddressNotUnique);
    let said = message(&found[0]);
    assert!(said.contains("10.0.0.4 of ") && said.contains("the network spoke-2 has it too"), "{said}");
    is(&found[1], "Configured", Reason::Configured);
    // What is exempt is so by the group, and nobody is behind that one.
    scene.spec["enforcement"] = json!({"exemptSources": [{"serviceTag": "AzureLoadBalancer"}]});
    let found = targets(&scene);
    is(&found[1], "Configured", Reason::AddressNotUnique);
    assert!(message(&found[1]).contains("behind nic nobody of spec.enforcement.exemptSources"));
    scene.spec["enforcement"] = json!({"azure": {"via": "AzureFirewall"}});
    assert!(targets(&scene).iter().all(|one| one.reason.as_deref() != Some("AddressNotUnique")));
}

#[test]
fn no_room_for_grants_is_said_of_the_machines_behind_that_group_alone() {
    let mut scene = Scene::locked(&["ssh 101 Allow TCP * > * : 22"]);
    let observed = scene.of_group("nic").observed.clone().unwrap();
    let crowded = without_room(&observed, &cluster());
    scene.know("other", locked(&[], "10.0.0.5"));
    scene.of_group("nic").crowded.clone_from(&crowded);
    // Both addresses are one machine's, each behind a group of its own.
    let mut both = machine("web-1", &["10.0.0.4", "10.0.0.5"], &["nic"]);
    both.nics[0].addresses[1].path = vec![group_id("other")];
    scene.resolve("web-1", vec![(both.id.clone(), Ok(both.clone()))]);
    is(&scene.target(), "Configured", Reason::NoPriorityRoom);
    // The deny that is crowded is about the other group's address.
    both.nics[0].addresses[0].path = vec![group_id("other")];
    both.nics[0].addresses[1].path = vec![group_id("nic")];
    scene.know("other", locked(&[], "10.0.0.4"));
    scene.know("nic", FirewallReport { crowded, ..locked(&[], "10.0.0.5") });
    scene.resolve("web-1", vec![(both.id.clone(), Ok(both))]);
    is(&scene.target(), "Configured", Reason::Configured);
}

#[test]
fn the_words_of_others_are_cut_where_status_has_no_room() {
    for (length, cut) in [(1000, false), (1001, true)] {
        let mut scene = Scene::of(vec![]);
        scene.lose("web-1", Reason::NotSupported, &"x".repeat(length));
        let target = scene.target();
        assert_eq!(message(&target).len(), if cut { 1003 } else { 1000 });
        assert_eq!(message(&target).ends_with("..."), cut);
    }
    let mut scene = Scene::of(vec![]);
    scene.lose("web-1", Reason::NotSupported, &"\u{e4}".repeat(501));
    assert_eq!(message(&scene.target()), format!("{}...", "\u{e4}".repeat(500)));
    scene.lose("web-1", Reason::NotSupported, &format!("x{}", "\u{e4}".repeat(501)));
    assert_eq!(message(&scene.target()), format!("x{}...", "\u{e4}".repeat(499)));
}
