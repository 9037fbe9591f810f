//! What traffic passes on its way to a machine, and what of it a policy enforces.

use portcullis::api::PathStatus;
use portcullis::plan::model::{Hop, Os, Translating};

use super::*;

const RULES: &str = "it has rules of its own";

/// A locked machine with this on the way.
fn behind(hops: Vec<Hop>) -> Scene {
    let mut machine = web_1();
    machine.nics[0].addresses[0].hops = hops;
    let mut scene = Scene::of(vec![machine]);
    scene.know("nic", locked(&[], "10.0.0.4"));
    scene
}

fn of_hub() -> FirewallReport {
    read(Observed { firewall: hub().id, translating: Some(Translating::default()), ..nsg(&[]) })
}

/// The first thing on the way: whether it is opened by grants, and what is said of it.
fn first(scene: &Scene) -> (bool, String) {
    let path = scene.target().path;
    assert_eq!((path[0].id.clone(), path[0].kind.as_str()), (hub().id.to_string(), "AzureFirewall"));
    (path[0].enforced, path[0].message.clone().unwrap())
}

#[test]
fn a_firewall_is_opened_by_grants_once_it_was_read_and_leads_packets_on() {
    let mut scene = behind(vec![Hop::Firewall(hub())]);
    assert_eq!(first(&scene), (false, format!("{RULES}; it has not been read yet")));

    scene.firewalls.insert(hub().id, of_hub());
    assert_eq!(first(&scene), (true, RULES.into()));

    scene
        .firewalls
        .insert(hub().id, FirewallReport { error: Some(problem(Reason::NotPermitted, "no")), ..of_hub() });
    assert_eq!(first(&scene), (false, "no".into()));

    let mut report = of_hub();
    let unfit = Unsupported { reason: Reason::NotSupported, message: "of the Basic tier".into() };
    Arc::make_mut(report.observed.as_mut().unwrap()).translating.as_mut().unwrap().unfit = Some(unfit);
    scene.firewalls.insert(hub().id, report);
    assert_eq!(first(&scene), (false, "of the Basic tier".into()));

    let mut scene = behind(vec![Hop::Firewall(FirewallHop { publics: vec![], ..hub() })]);
    scene.firewalls.insert(hub().id, of_hub());
    let lacks = format!("{RULES}; it has no public IPv4 address, so it leads nothing on");
    assert_eq!(first(&scene), (false, lacks));
}

#[test]
fn a_firewall_is_opened_where_its_rules_are_kept() {
    let policies = ["base", "parent"].map(|name| translating("firewallPolicies", name).0);
    let mut scene = behind(vec![Hop::Firewall(FirewallHop { policies: policies.to_vec(), ..hub() })]);
    let rules = "its rules are those of the policies base, parent";
    assert_eq!(first(&scene), (false, format!("{rules}; it has not been read yet")));
    scene.firewalls.insert(FirewallId(policies[0].clone()), of_hub());
    assert_eq!(first(&scene), (true, rules.into()));
}

#[test]
fn nothing_is_enforced_where_nothing_is_written() {
    let mut scene = behind(vec![Hop::Firewall(hub())]);
    scene.firewalls.insert(hub().id, of_hub());
    let enforced = |scene: &Scene| {
        let path = scene.target().path;
        [path[0].enforced, path[1].enforced]
    };
    assert_eq!(enforced(&scene), [true, true]);
    scene.dry_run = true;
    assert_eq!(enforced(&scene), [false, false]);
    scene.dry_run = false;
    scene.spec["mode"] = json!("Audit");
    assert_eq!(enforced(&scene), [false, false]);
    scene.spec["mode"] = json!("Enforce");

    scene.spec["enforcement"] = json!({"azure": {"via": "NetworkSecurityGroup"}});
    assert_eq!(enforced(&scene), [false, true]);
    assert_eq!(first(&scene).1, format!("{RULES}; not enforced (spec.enforcement.azure.via)"));
    scene.spec["enforcement"] = json!({"azure": {"via": "AzureFirewall"}});
    assert_eq!(enforced(&scene), [true, false]);
    scene.spec["enforcement"] = json!({});

    for (locked, gone) in [(false, false), (true, true)] {
        (scene.of_group("nic").locked, scene.of_group("nic").gone) = (locked, gone);
        assert_eq!(enforced(&scene), [true, false]);
    }
}

#[test]
fn a_machine_without_ports_to_lock_is_locked_nowhere() {
    let mut machine = web_1();
    machine.os = Os::Unknown;
    let mut scene = Scene::of(vec![machine]);
    scene.know("nic", locked(&[], "10.0.0.4"));
    assert!(!scene.target().path[0].enforced);
}

#[test]
fn whatever_else_stands_on_the_way_is_told_and_never_enforced() {
    let appliance = Hop::Appliance { address: ip("10.2.1.9"), why: "y".repeat(251) };
    let unread = Hop::Unread { address: ip("10.2.1.8"), why: "it may not be read".into() };
    let wan = Hop::Hub { id: hub().id.0 };
    let path = behind(vec![appliance, unread, wan]).target().path;
    let is = |index: usize, id: &str, kind: &str| {
        let PathStatus { id: of, kind: a, enforced, .. } = &path[index];
        assert_eq!((of.as_str(), a.as_str(), *enforced), (id, kind, false));
        path[index].message.clone().unwrap()
    };
    assert_eq!(is(0, "10.2.1.9", "VirtualAppliance"), format!("{}...", "y".repeat(250)));
    assert_eq!(is(1, "10.2.1.8", "VirtualAppliance"), "it may not be read");
    let message = is(2, &hub().id.to_string(), "VirtualHub");
    assert!(message.contains("(a secured hub) is not supported"), "{message}");
    assert_eq!(path[3].kind, "NetworkSecurityGroup");
}

#[test]
fn what_stands_before_the_groups_leaves_them_room() {
    let hops = (0..9).map(|n| Hop::Unread { address: ip(&format!("10.2.1.{n}")), why: String::new() });
    let path = behind(hops.collect()).target().path;
    assert_eq!((path.len(), path[4].kind.as_str(), path[4].enforced), (5, "NetworkSecurityGroup", true));
}
