//! What status remembers of what it said before: what it forgets is never unlocked.

use super::*;

/// What status says of a machine that was locked behind these groups.
fn old(name: &str, id: &str, addresses: &[&str], groups: &[&str]) -> TargetStatus {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    TargetStatus {
        name: name.into(),
        id: id.into(),
        state: "Configured".into(),
        addresses: texts(addresses),
        firewalls: groups.iter().map(|group| group_id(group).to_string()).collect(),
        path: Scene::locked(&[]).target().path,
        ..TargetStatus::default()
    }
}

fn remembers(scene: &mut Scene, targets: Vec<TargetStatus>) {
    scene.before = Some(JitPolicyStatus { targets, ..JitPolicyStatus::default() });
}

fn groups(target: &TargetStatus) -> Vec<&str> {
    target.firewalls.iter().map(|id| id.rsplit('/').next().unwrap()).collect()
}

/// Whether the group is still to be written to, and whether it is gone.
fn group(scene: &mut Scene, name: &str, to_write: bool, gone: bool) {
    scene.know(name, FirewallReport { locked: !to_write, gone, ..read(nsg(&[])) });
}

#[test]
fn a_machine_that_moved_is_remembered_where_it_was_until_that_is_unlocked() {
    let id = web_1().id.to_string();
    let mut scene = Scene::locked(&[]);
    // Whose letters Azure writes in another case does not matter.
    remembers(&mut scene, vec![old("web-1", &id.to_uppercase(), &["10.0.0.4", "10.0.9.9"], &["nic", "old"])]);
    for (to_write, gone, kept) in [(true, false, true), (true, true, false), (false, false, false)] {
        group(&mut scene, "old", to_write, gone);
        let target = scene.target();
        assert_eq!(groups(&target).contains(&"old"), kept);
        assert_eq!(groups(&target)[0], "nic");
        let addresses: &[&str] = if kept { &["10.0.0.4", "10.0.9.9"] } else { &["10.0.0.4"] };
        assert_eq!(target.addresses, addresses);
        assert_eq!(target.state, "Configured");
    }
    // Nor is what was said of another target, or of another machine.
    group(&mut scene, "old", true, false);
    let other = machine("web-2", &[], &[]).id.to_string();
    for (name, id) in [("web-2", &id), ("web-1", &other)] {
        remembers(&mut scene, vec![old(name, id, &["10.0.9.9"], &["old"])]);
        let targets = scene.status().targets;
        let target = targets.iter().find(|target| target.id == web_1().id.as_str()).unwrap();
        assert_eq!((groups(target), target.addresses.len()), (vec!["nic"], 1));
    }
}

#[test]
fn a_machine_that_cannot_be_read_is_remembered_with_all_that_stands() {
    let id = web_1().id.to_string();
    for (reason, kept) in [(Reason::CloudUnavailable, true), (Reason::VirtualMachineNotFound, false)] {
        let mut scene = Scene::of(vec![]);
        scene.lose("web-1", reason, "why");
        group(&mut scene, "nic", false, false);
        remembers(&mut scene, vec![old("web-1", &id, &["10.0.0.4"], &["nic"])]);
        let target = scene.target();
        assert_eq!((target.state.as_str(), target.reason.as_deref()), ("Unsupported", Some(reason.as_str())));
        assert_eq!((groups(&target).len(), target.addresses.len()), if kept { (1, 1) } else { (0, 0) });
    }
    // One that can be read and has no firewall any more is not one of those.
    let mut scene = Scene::of(vec![machine("web-1", &["10.0.0.4"], &[])]);
    remembers(&mut scene, vec![old("web-1", &id, &["10.0.0.4"], &["nic"])]);
    for (to_write, kept) in [(true, &["nic"][..]), (false, &[])] {
        group(&mut scene, "nic", to_write, false);
        assert_eq!(groups(&scene.target()), kept);
    }
}

#[test]
fn what_is_remembered_is_there_once_and_no_more_than_status_holds() {
    let id = web_1().id.to_string();
    let mut scene = Scene::locked(&[]);
    group(&mut scene, "old", true, false);
    let mut one = old("web-1", &id, &["10.0.0.4", "10.0.9.9"], &["NIC", "old", "OLD"]);
    one.firewalls[0] = group_id("nic").to_string().to_uppercase();
    remembers(&mut scene, vec![one]);
    group(&mut scene, "nic", true, false);
    let target = scene.target();
    assert_eq!((groups(&target), target.addresses.len()), (vec!["nic", "old"], 2));

    let addresses: Vec<String> = (0..100).map(|n| format!("10.0.8.{n}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let names: Vec<String> = (0..30).map(|n| format!("old-{n}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    names.iter().for_each(|name| group(&mut scene, name, true, false));
    remembers(&mut scene, vec![old("web-1", &id, &addresses, &names)]);
    let target = scene.target();
    assert_eq!((target.addresses.len(), target.firewalls.len()), (64, 16));
}

#[test]
fn a_machine_that_is_selected_no_more_is_named_until_it_is_unlocked() {
    let gone = machine("web-2", &[], &[]).id.to_string();
    let mut scene = Scene::locked(&[]);
    let before = old("web-2", &gone, &["10.0.0.5"], &["old"]);
    remembers(&mut scene, vec![before.clone()]);
    group(&mut scene, "old", true, false);
    let status = scene.status();
    let message = "no longer selected; what is no longer to be locked is being removed";
    let expected = TargetStatus {
        state: "Unlocking".into(),
        reason: Some("Progressing".into()),
        message: Some(message.into()),
        path: vec![],
        ..before
    };
    assert_eq!(status.targets[0], expected);
    assert_eq!(ready(&status), (false, Reason::Progressing, format!("web-2: {message}")));
    assert_eq!(effective(&status).1, Reason::Progressing);
    let summary = status.summary.unwrap();
    assert_eq!(
        (summary.targets, summary.machines.as_deref()),
        (1, Some("1/1")),
        "it is none of the policy's"
    );

    // It is done, or nothing is written.
    for (to_write, mode, dry_run) in
        [(false, "Enforce", false), (true, "Audit", false), (true, "Enforce", true)]
    {
        group(&mut scene, "old", to_write, false);
        scene.spec["mode"] = json!(mode);
        scene.dry_run = dry_run;
        assert_eq!(scene.status().targets.len(), 1, "{to_write} {mode} {dry_run}");
    }
    // It is selected, whichever case its id is written in.
    let mut scene = Scene::locked(&[]);
    group(&mut scene, "old", true, false);
    let id = web_1().id.to_string().to_uppercase();
    remembers(&mut scene, vec![old("another name", &id, &["10.0.0.4"], &["old"])]);
    assert_eq!(scene.status().targets.len(), 1);
}
