//! Denies of locks: how one becomes another while something rests on it, where they go, and what others made of them.

use portcullis::api::{ExistingRules, Reason};
use portcullis::plan::changes::{grant_rule, plan};
use portcullis::plan::desired::{Changes, Lock, Wanted};
use portcullis::plan::model::{Access, Observed, Peer, Provisioning, ResourceLock, Rule};
use portcullis::plan::names;

use crate::plan_world::*;

fn planned(world: &Observed, locks: &[Lock]) -> Changes {
    plan(world, &wanted(locks.to_vec(), vec![]), &LIMITS, at(0))
}

fn settled(rules: &[&str], locks: &[Lock]) -> Observed {
    let mut world = nsg(rules);
    settle(&mut world, &wanted(locks.to_vec(), vec![]), at(0));
    world
}

fn deny(n: u32) -> String {
    names::deny_name(&cluster(), WEB, n)
}

fn put(world: &mut Observed, rule: Rule) {
    apply(world, &Write::Put(rule)).unwrap();
}

fn written(changes: &Changes) -> Vec<(&str, usize, usize)> {
    let parts = |rule: &'_ Rule| (rule.destinations.len(), rule.ports.len());
    changes.locks.iter().map(|rule| (rule.name.as_str(), parts(rule).0, parts(rule).1)).collect()
}

fn both_kinds() -> [ExistingRules; 2] {
    [ExistingRules::Override, ExistingRules::Keep]
}

/// One machine of two gets a port more: what was one deny becomes two.
#[test]
fn a_deny_keeps_what_rests_on_it_until_that_stands_elsewhere() {
    for existing in both_kinds() {
        let web = |machines: &[(&str, &str)]| Lock { existing, ..lock(WEB, machines) };
        let before = web(&[("10.0.0.4", "22"), ("10.0.0.5", "22")]);
        let after = [web(&[("10.0.0.4", "22"), ("10.0.0.5", "22,80")])];
        let mut world = settled(&[], &[before]);
        let first = planned(&world, &after);
        assert_eq!(written(&first), [(deny(1).as_str(), 1, 2)], "{existing:?}");
        put(&mut world, first.locks[0].clone());
        let second = planned(&world, &after);
        assert_eq!(written(&second), [(deny(0).as_str(), 1, 1)], "{existing:?}");
        put(&mut world, second.locks[0].clone());
        assert!(planned(&world, &after).is_empty());
    }
}

/// The same where a port is locked for less protocols than before.
#[test]
fn a_deny_keeps_the_ports_that_rest_on_it_until_they_stand_elsewhere() {
    for existing in both_kinds() {
        let web = |ports: &str| Lock { existing, ..lock(WEB, &[("10.0.0.4", ports)]) };
        let mut world = settled(&[], &[web("22,80")]);
        let after = [web("22,TCP/80")];
        let first = planned(&world, &after);
        assert_eq!(written(&first), [(deny(1).as_str(), 1, 1)], "{existing:?}");
        put(&mut world, first.locks[0].clone());
        let second = planned(&world, &after);
        assert_eq!(written(&second), [(deny(0).as_str(), 1, 1)], "{existing:?}");
        put(&mut world, second.locks[0].clone());
        assert!(planned(&world, &after).is_empty());
    }
}

/// An allow of ours that is to let nobody in, and is not gone yet: one of nobody, which only a sweep may judge, and an
/// exemption that no lock wants.
#[test]
fn a_deny_comes_down_past_no_allow_of_ours_that_is_to_let_nobody_in() {
    let live = grant(1, "198.51.100.9/32", "10.0.0.5", "22", 3600, open(60));
    let wanted = wanted(vec![lock(WEB, &[("10.0.0.4", "22")])], vec![live]);
    let of_nobody = grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60));
    let of_nobody = grant_rule(&cluster(), &of_nobody, 400);
    let exemption = Rule { name: names::exempt_name(&cluster(), WEB, 7), ..of_nobody.clone() };
    for stray in [of_nobody, exemption] {
        let mut world = nsg(&["first 300 Allow TCP * > * : 22"]);
        settle(&mut world, &wanted, at(0));
        put(&mut world, stray.clone());
        world.rules.retain(|rule| rule.name != "first");
        let from = packet("203.0.113.7", "10.0.0.4", 22);
        while let Some(write) = writes(&plan(&world, &wanted, &LIMITS, at(0)), world.lock).first() {
            apply(&mut world, write).unwrap();
            assert!(!passes(&world, from), "by {:?} after {write:?}", decider(&world, from));
        }
        world.rules.retain(|rule| rule.name != stray.name);
        settle(&mut world, &wanted, at(0));
        assert_eq!(world.rule(&deny(0)).unwrap().priority, 999);
    }
}

#[test]
fn a_deny_comes_down_as_far_as_it_shuts_out_what_it_did() {
    let wanted = wanted(vec![lock(WEB, &[("10.0.0.4", "22")])], vec![]);
    for (machine, stray_at, comes_down) in
        [("10.0.0.4", 400, false), ("10.0.0.4", 1500, true), ("10.0.0.4", 200, true), ("10.0.0.9", 400, true)]
    {
        let mut world = nsg(&["first 300 Allow TCP * > * : 22"]);
        settle(&mut world, &wanted, at(0));
        let stray = grant(0, "203.0.113.7/32", machine, "22", 3600, open(60));
        put(&mut world, grant_rule(&cluster(), &stray, stray_at));
        world.rules.retain(|rule| rule.name != "first");
        settle(&mut world, &wanted, at(0));
        let stands = world.rule(&deny(0)).unwrap().priority;
        assert_eq!(stands, if comes_down { 999 } else { 299 }, "{machine} at {stray_at}");
    }
}

/// Of two locks that find no room above a rule of somebody else, the upper one stands in for the lower.
#[test]
fn a_deny_goes_where_another_stands_above_it_though_no_higher_than_it_could() {
    let both = [WEB, OPS].map(|uid| lock(uid, &[("10.0.0.4", "22")]));
    let world = settled(&["first 100 Allow TCP 203.0.113.0/24 > * : 22"], &both);
    let of = |uid: &str| world.rule(&names::deny_name(&cluster(), uid, 0)).unwrap();
    let (upper, lower) = if of(WEB).priority < of(OPS).priority { (WEB, OPS) } else { (OPS, WEB) };
    let gone = Lock { machines: vec![], keep_others: false, ..lock(lower, &[]) };
    let changes = planned(&world, &[gone, lock(upper, &[("10.0.0.4", "22")])]);
    assert_eq!(changes.unlocks, [of(lower).name.clone()]);
}

/// What lies between lets in nobody whom the other lock shuts out.
#[test]
fn a_deny_steps_back_at_once_where_that_uncovers_nothing() {
    let web = lock(WEB, &[("10.0.0.4", "22")]);
    let world = settled(&["corp 2000 Allow TCP 10.9.0.0/16 > * : 22"], std::slice::from_ref(&web));
    let keeping = Lock { existing: ExistingRules::Keep, ..web };
    for (exempt, priority) in [(vec![peer("10.9.0.0/16")], 4096), (vec![], 999)] {
        let ops = Lock { exempt, ..lock(OPS, &[("10.0.0.4", "22")]) };
        let mut world = world.clone();
        for rule in planned(&world, &[keeping.clone(), ops]).locks {
            if rule.name == deny(0) {
                put(&mut world, rule);
            }
        }
        assert_eq!(world.rule(&deny(0)).unwrap().priority, priority);
    }
}

/// What is wanted instead has other machines and other ports: it is written beside.
#[test]
fn a_deny_that_is_to_be_quite_another_stays_while_something_rests_on_it() {
    let before = lock(WEB, &[("10.0.0.4,10.0.0.5", "TCP/22")]);
    let mut world = settled(&["all 2000 Allow TCP * > * : *"], &[before]);
    let web = Lock { keep_others: false, ..lock(WEB, &[("10.0.0.4", "TCP/3389")]) };
    let wanted = wanted(vec![web, lock(OPS, &[("10.0.0.5", "TCP/22")])], vec![]);
    let stranger = packet("198.51.100.1", "10.0.0.5", 22);
    while let Some(write) = writes(&plan(&world, &wanted, &LIMITS, at(0)), world.lock).first() {
        apply(&mut world, write).unwrap();
        assert!(!passes(&world, stranger), "by {:?} after {write:?}", decider(&world, stranger));
    }
    assert!(passes(&world, packet("198.51.100.1", "10.0.0.4", 22)));
    assert!(!passes(&world, packet("198.51.100.1", "10.0.0.4", 3389)));
}

#[test]
fn on_a_deny_that_was_not_written_nothing_rests() {
    let before = lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "22")]);
    let after = [lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "22,80")])];
    let mut world = settled(&[], &[before]);
    let failed = Rule { provisioning: Provisioning::Failed, ..world.rule(&deny(0)).unwrap().clone() };
    put(&mut world, failed);
    assert_eq!(written(&planned(&world, &after)), [(deny(0).as_str(), 1, 1), (deny(1).as_str(), 1, 2)]);
}

/// Nothing is removed on the strength of a deny that is not in force yet.
#[test]
fn a_deny_goes_only_when_the_one_that_takes_over_is_in_force() {
    let ops = lock(OPS, &[("10.0.0.4", "22")]);
    for existing in both_kinds() {
        let web = Lock { existing, ..lock(WEB, &[("10.0.0.4", "22")]) };
        let world = settled(&[], &[web.clone(), ops.clone()]);
        let going = [Lock { machines: vec![], keep_others: false, ..web }, ops.clone()];
        assert_eq!(planned(&world, &going).unlocks, [deny(0)]);
        for provisioning in [Provisioning::Updating, Provisioning::Failed] {
            let mut world = world.clone();
            let other = world.rule(&names::deny_name(&cluster(), OPS, 0)).unwrap().clone();
            put(&mut world, Rule { provisioning, ..other });
            assert!(planned(&world, &going).unlocks.is_empty(), "{existing:?} {provisioning:?}");
        }
    }
}

#[test]
fn a_deny_need_not_go_above_what_its_lock_lets_in_anyway() {
    let place = |allowed: &str, exempt: &[&str]| {
        let world = nsg(&[&format!("ssh 300 Allow TCP {allowed} > * : 22")]);
        let exempt = exempt.iter().map(|text| peer(text)).collect();
        let locks = [Lock { exempt, ..lock(WEB, &[("10.0.0.4", "22")]) }];
        planned(&world, &locks).locks[0].priority
    };
    assert_eq!(place("10.9.1.0/24", &[]), 299);
    assert_eq!(place("10.9.1.0/24", &["10.9.0.0/16"]), 999);
    assert_eq!(place("10.9.0.0/15", &["10.9.0.0/16"]), 299, "more than is exempt");
    assert_eq!(place("10.9.1.0/24,10.7.0.0/16", &["10.9.0.0/16"]), 299);
    assert_eq!(place("10.9.1.0/24,10.7.0.0/16", &["10.9.0.0/16", "10.7.0.0/16"]), 999);
    assert_eq!(place("*", &["10.9.0.0/16"]), 299);
    assert_eq!(place("AzureLoadBalancer", &["azureloadbalancer"]), 999);
    assert_eq!(place("VirtualNetwork", &["AzureLoadBalancer"]), 299);
}

#[test]
fn the_last_rule_that_leaves_no_number_below_it_is_named() {
    let world = nsg(&["ssh 300 Allow TCP * > * : 22", "all 4096 Allow Any * > * : *"]);
    let keeps = Lock { existing: ExistingRules::Keep, ..lock(WEB, &[("10.0.0.4", "22")]) };
    let changes = planned(&world, &[keeps]);
    assert!(changes.is_empty(), "it would shut out what is to be kept");
    assert_eq!(changes.refused[0].reason, Reason::NoPriorityRoom);
    let message = &changes.refused[0].message;
    assert!(message.contains("below rule all at priority 4096"), "{message}");
}

#[test]
fn a_deny_of_a_policy_that_is_gone_stays_a_deny_for_everybody() {
    let world = settled(&[], &[lock(WEB, &[("10.0.0.4", "22")])]);
    let own = world.rule(&deny(0)).unwrap().clone();
    let mended = |edited: Rule, locks: &[Lock]| {
        let mut world = world.clone();
        put(&mut world, edited);
        planned(&world, locks)
    };
    assert!(mended(own.clone(), &[]).is_empty());
    let opened = Rule {
        access: Access::Allow,
        sources: vec![peer("203.0.113.0/24")],
        source_ports: vec![port("1024-65535")],
        ..own.clone()
    };
    assert_eq!(mended(opened.clone(), &[]).locks, std::slice::from_ref(&own));
    let failed = Rule { provisioning: Provisioning::Failed, ..own.clone() };
    assert_eq!(mended(failed, &[]).locks, std::slice::from_ref(&own));
    assert!(mended(Rule { provisioning: Provisioning::Updating, ..own.clone() }, &[]).is_empty());
    // Where another policy locks all of it, it goes.
    let ops = lock(OPS, &[("10.0.0.4", "22")]);
    let mut world = settled(&[], &[lock(WEB, &[("10.0.0.4", "22")]), ops.clone()]);
    put(&mut world, opened);
    let changes = planned(&world, std::slice::from_ref(&ops));
    assert_eq!((changes.locks.len(), changes.unlocks), (0, vec![deny(0)]));
    // But not where it names more than single addresses: how much that is, nobody knows.
    for destinations in [vec![peer("10.0.0.4"), peer("10.0.1.0/24")], vec![Peer::Any]] {
        put(&mut world, Rule { destinations, ..own.clone() });
        assert!(planned(&world, std::slice::from_ref(&ops)).unlocks.is_empty());
    }
}

#[test]
fn a_deny_that_steps_back_does_so_only_as_far_as_no_other_lock_needs_it() {
    // Kept below what others let in from now on: the number above is given up once nobody else rests on it there.
    let rules = ["ssh 300 Allow TCP 203.0.113.0/24 > * : 22"];
    let web = lock(WEB, &[("10.0.0.4", "22")]);
    let world = settled(&rules, std::slice::from_ref(&web));
    let stepping_back = Lock { existing: ExistingRules::Keep, ..web };
    let moves = |locks: &[Lock]| {
        let found = planned(&world, locks);
        found.locks.iter().find(|rule| rule.name == deny(0)).map(|rule| rule.priority)
    };
    assert_eq!(moves(std::slice::from_ref(&stepping_back)), Some(4096));
    assert_eq!(moves(&[stepping_back.clone(), lock(OPS, &[("10.0.0.9", "22")])]), Some(4096));
    assert_eq!(moves(&[stepping_back.clone(), lock(OPS, &[("10.0.0.4", "80")])]), Some(4096));
    assert_eq!(moves(&[stepping_back.clone(), lock(OPS, &[("10.0.0.4", "22")])]), None, "it needs it above");
    let keeps_too = Lock { existing: ExistingRules::Keep, ..lock(OPS, &[("10.0.0.4", "22")]) };
    assert_eq!(moves(&[stepping_back, keeps_too]), Some(4096));
}

/// What it was before is known while the program runs: it is that rule that is put right, though it resembles nothing any
/// more.
#[test]
fn a_deny_that_somebody_changed_beyond_recognition_is_mended_in_its_own_place() {
    let locks = [Lock { keep_others: false, ..lock(WEB, &[("10.0.0.4", "22")]) }];
    let mut world = settled(&[], &locks);
    let own = world.rule(&deny(0)).unwrap().clone();
    put(&mut world, Rule { destinations: vec![peer("10.0.0.9")], ports: vec![port("99")], ..own.clone() });
    let known = Wanted { standing: vec![own.clone()], ..wanted(locks.to_vec(), vec![]) };
    let changes = plan(&world, &known, &LIMITS, at(0));
    assert_eq!((changes.locks, changes.unlocks), (vec![own], vec![]));
    // After a start nothing tells what it was: it goes once another stands in its place.
    let forgotten = Wanted { standing: vec![], ..known };
    assert_eq!(plan(&world, &forgotten, &LIMITS, at(0)).locks[0].name, deny(1));
}

/// A read that is older than the one before: neither the deny nor what it stands above is in it.
#[test]
fn a_deny_that_is_missed_goes_back_where_it_stood_and_not_below() {
    let locks = [lock(WEB, &[("10.0.0.4", "22")])];
    let ssh = "ssh 300 Allow TCP * > * : 22";
    let world = settled(&[ssh], &locks);
    let own = world.rule(&deny(0)).unwrap().clone();
    assert_eq!(own.priority, 299);
    let known = Wanted { placed: vec![own.clone()], ..wanted(locks.to_vec(), vec![]) };
    let of = |world: &Observed| plan(world, &known, &LIMITS, at(0)).locks;
    assert_eq!(of(&nsg(&[]))[0], own);
    assert_eq!(planned(&nsg(&[]), &locks).locks[0].priority, 999);
    // As it is put back it may go up, and not where somebody else's rule is.
    assert_eq!(of(&nsg(&["ssh 200 Allow TCP * > * : 22"]))[0].priority, 199);
    assert_eq!(of(&nsg(&["theirs 299 Deny TCP 192.0.2.1 > * : 80", ssh]))[0].priority, 298);
    // Where it stands, it comes down when what it stood above is gone.
    let mut gone = nsg(&[]);
    put(&mut gone, own.clone());
    assert_eq!(of(&gone)[0].priority, 999);
    // Nor does it go back below what is to pass it.
    let keep = [Lock { existing: ExistingRules::Keep, ..locks[0].clone() }];
    let known = Wanted { placed: vec![own], ..wanted(keep.to_vec(), vec![]) };
    assert!(plan(&nsg(&[ssh]), &known, &LIMITS, at(0)).locks[0].priority > 300);
}

/// The same of a policy whose denies an old read does not show, and that has changed since.
#[test]
fn no_other_deny_takes_the_name_or_the_place_of_one_that_is_missed() {
    let ssh = "ssh 300 Allow TCP * > * : 22";
    let before = [lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "80")])];
    let world = settled(&[ssh], &before);
    let placed: Vec<Rule> = world.rules.iter().filter(|rule| rule.access == Access::Deny).cloned().collect();
    let placed: Vec<Rule> = placed.into_iter().filter(|rule| rule.name.starts_with("portcullis-")).collect();
    assert_eq!(placed.len(), 2);
    let first = placed.iter().find(|rule| rule.priority < 300).unwrap().clone();
    let since = [lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "10,80")])];
    let known = Wanted { placed: placed.clone(), ..wanted(since.to_vec(), vec![]) };
    let written = plan(&nsg(&[]), &known, &LIMITS, at(0)).locks;
    assert!(written.contains(&first), "{written:#?}");
    assert!(
        written
            .iter()
            .filter(|rule| **rule != first)
            .all(|rule| placed.iter().all(|old| old.name != rule.name))
    );
    // It is there as it was before it got its ports, and its place.
    let wider = Rule { ports: vec![port("22"), port("80")], ..first.clone() };
    let wide = [lock(WEB, &[("10.0.0.4", "22,80")])];
    let mut old = nsg(&[]);
    put(&mut old, Rule { priority: 999, ..first });
    let known = Wanted { placed: vec![wider.clone()], ..wanted(wide.to_vec(), vec![]) };
    assert_eq!(plan(&old, &known, &LIMITS, at(0)).locks, [wider]);
}

/// One of another name is written as it is wanted, and where that is best by what is seen.
#[test]
fn no_deny_is_moved_to_where_another_one_is_missed() {
    let locks = [Lock { keep_others: false, ..lock(WEB, &[("10.0.0.4", "22")]) }];
    let stood = settled(&[], &locks).rule(&deny(0)).unwrap().clone();
    let missed = Rule { priority: 299, ..stood.clone() };
    let mut old = nsg(&[]);
    put(&mut old, Rule { name: deny(1), destinations: vec![peer("10.0.0.4"), peer("10.0.0.5")], ..stood });
    let known = Wanted { placed: vec![missed], ..wanted(locks.to_vec(), vec![]) };
    let written = plan(&old, &known, &LIMITS, at(0)).locks;
    assert_eq!(written.len(), 1);
    assert_eq!((written[0].name.as_str(), written[0].priority), (deny(1).as_str(), 999));
}

/// Of two that could become what is wanted, the one that shuts the same ports is widened: the other one could not be without
/// a deny beside it.
#[test]
fn a_deny_keeps_to_its_ports() {
    let before = [lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5,10.0.0.6", "3389")])];
    let world = settled(&[], &before);
    let name = world.rules.iter().find(|rule| rule.ports == [port("22")]).unwrap().name.clone();
    let since = [lock(WEB, &[("10.0.0.4,10.0.0.5,10.0.0.6", "22"), ("10.0.0.7", "3389")])];
    let written = planned(&world, &since).locks;
    let widened = written.iter().find(|rule| rule.name == name).unwrap();
    assert_eq!((&widened.ports, widened.destinations.len()), (&vec![port("22")], 3), "{written:#?}");
}

/// Somebody turned it to what another policy wants shut, and has no deny of its own for yet.
#[test]
fn a_deny_is_not_mended_before_what_rests_on_it_has_its_own() {
    let of = |uid, on| Lock { keep_others: false, ..lock(uid, &[on]) };
    let (web, ops) = (of(WEB, ("10.0.0.4", "22")), of(OPS, ("10.0.0.5", "3389")));
    let open = ["ssh 300 Allow TCP * > * : 22", "rdp 310 Allow TCP * > * : 3389"];
    let mut world = settled(&open, std::slice::from_ref(&web));
    let own = world.rule(&deny(0)).unwrap().clone();
    put(&mut world, Rule { destinations: vec![peer("10.0.0.5")], ports: vec![port("3389")], ..own.clone() });
    let known = Wanted { standing: vec![own], ..wanted(vec![web, ops], vec![]) };
    let changes = plan(&world, &known, &LIMITS, at(0));

    for write in writes(&changes, ResourceLock::None) {
        apply(&mut world, &write).unwrap();
        let enters = |machine| passes(&world, packet("203.0.113.7", machine, 3389));
        assert!(!enters("10.0.0.5") && enters("10.0.0.4"), "{write:#?}");
    }
    assert!(!passes(&world, packet("203.0.113.7", "10.0.0.4", 22)));
}
