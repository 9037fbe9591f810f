//! Exemptions: whom locks let in besides grants, and what becomes of that when they change.

use portcullis::api::Reason;
use portcullis::plan::changes::plan;
use portcullis::plan::desired::{Changes, Lock, Wanted};
use portcullis::plan::model::{Access, Observed, Provisioning, ResourceLock};
use portcullis::plan::names;

use crate::plan_world::*;

fn planned(world: &Observed, wanted: &Wanted) -> Changes {
    plan(world, wanted, &LIMITS, at(0))
}

fn deny(n: u32) -> String {
    names::deny_name(&cluster(), WEB, n)
}

fn exemption(n: u32) -> String {
    names::exempt_name(&cluster(), WEB, n)
}

fn web() -> Lock {
    lock(WEB, &[("10.0.0.4", "22")])
}

fn exempting(from: &[&str], lock: Lock) -> Lock {
    Lock { exempt: from.iter().map(|text| peer(text)).collect(), ..lock }
}

fn settled(rules: &[&str], lock: Lock) -> Observed {
    let mut world = nsg(rules);
    settle(&mut world, &wanted(vec![lock], vec![]), at(0));
    world
}

#[test]
fn a_deny_goes_only_after_the_exemption_above_it_lets_in_less() {
    let of = |from: &str, machines: &[(&str, &str)]| Lock {
        exempt: vec![peer(from)],
        keep_others: false,
        ..lock(WEB, machines)
    };
    let before = of("10.9.0.0/16", &[("10.0.0.4", "TCP/22"), ("10.0.0.5", "TCP/3389")]);
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(vec![before], vec![]), at(0));
    let stranger = packet("198.51.100.1", "10.0.0.4", 22);
    let own = decider(&world, stranger).unwrap().name.clone();
    let wanted = wanted(vec![of("10.8.0.0/16", &[("10.0.0.5", "TCP/3389")])], vec![]);
    let first = planned(&world, &wanted);
    assert!(!first.unlocks.contains(&own), "whether it is written is not known yet: {first:?}");
    for rule in first.locks {
        apply(&mut world, &Write::Put(rule)).unwrap();
    }
    assert!(planned(&world, &wanted).unlocks.contains(&own));
    settle(&mut world, &wanted, at(0));
    assert_eq!(world.rule_count(), 2, "a deny and the exemption from it");
}

#[test]
fn an_exemption_of_another_policy_is_not_rewritten_but_removed() {
    let exempt = vec![peer("10.9.0.0/16")];
    let ops = |exempt| Lock { exempt, ..lock(OPS, &[("10.0.0.5", "22")]) };
    let mut world = nsg(&[]);
    let first = Lock { exempt: exempt.clone(), ..web() };
    settle(&mut world, &wanted(vec![first, ops(vec![])], vec![]), at(0));
    let gone = Lock { machines: vec![], keep_others: false, ..web() };
    let changes = planned(&world, &wanted(vec![gone, ops(exempt)], vec![]));
    let written: Vec<&str> = changes.locks.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!(written, [names::exempt_name(&cluster(), OPS, 0)]);
    assert_eq!(changes.unlocks, [names::exempt_name(&cluster(), WEB, 0)]);
}

#[test]
fn an_exemption_that_cannot_be_narrowed_goes() {
    let exempting =
        |ports: &str| Lock { exempt: vec![peer("203.0.113.7")], ..lock(WEB, &[("10.0.0.4", ports)]) };
    let mut world = nsg(&["corp 300 Allow TCP 198.51.100.0/24 > * : *"]);
    settle(&mut world, &wanted(vec![exempting("TCP/22,TCP/3389")], vec![]), at(0));
    let exempt = packet("203.0.113.7", "10.0.0.4", 22);
    assert!(passes(&world, exempt));
    // Above this one a new exemption may not go.
    apply(&mut world, &Write::Put(rule("stop 500 Deny TCP * > * : 3389"))).unwrap();
    let changes = settle(&mut world, &wanted(vec![exempting("TCP/3389")], vec![]), at(0));
    assert_eq!(changes.refused[0].reason, Reason::ForeignDeny);
    assert!(!passes(&world, exempt), "by {:?}", decider(&world, exempt));
}

#[test]
fn a_retained_exemption_goes_where_another_policy_locks_without_it() {
    let exempt = Lock { exempt: vec![peer("10.9.0.0/16")], ..lock(WEB, &[("10.0.0.4,10.0.0.5", "22")]) };
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(vec![exempt], vec![]), at(0));
    settle(&mut world, &wanted(vec![], vec![]), at(0));
    assert!(passes(&world, packet("10.9.0.1", "10.0.0.4", 22)), "the retained lock keeps its exemption");
    settle(&mut world, &wanted(vec![lock(OPS, &[("10.0.0.4", "22")])], vec![]), at(0));
    assert!(!passes(&world, packet("10.9.0.1", "10.0.0.4", 22)));
}

#[test]
fn a_deny_goes_only_after_the_exemption_above_it_is_gone() {
    let exempt = Lock { exempt: vec![peer("10.9.0.0/16")], ..web() };
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(vec![exempt], vec![]), at(0));
    let unlocked = wanted(vec![Lock { machines: vec![], keep_others: false, ..web() }], vec![]);
    let first = planned(&world, &unlocked).unlocks;
    assert_eq!(first, [names::exempt_name(&cluster(), WEB, 0)]);
    apply(&mut world, &Write::Delete(first[0].clone())).unwrap();
    assert_eq!(planned(&world, &unlocked).unlocks, [deny(0)]);
}

#[test]
fn exemptions_stand_above_the_deny_and_only_for_what_every_policy_exempts() {
    let exempt = |texts: &[&str]| texts.iter().map(|text| peer(text)).collect();
    let one = Lock { exempt: exempt(&["AzureLoadBalancer", "10.9.0.0/16"]), ..web() };
    let two = Lock { exempt: exempt(&["10.9.1.0/24"]), ..lock(OPS, &[("10.0.0.4", "TCP/22")]) };
    let mut world = nsg(&[]);
    let first = planned(&world, &wanted(vec![one.clone()], vec![]));
    assert!(first.locks.iter().all(|rule| rule.access == Access::Deny), "the deny first: {first:?}");
    settle(&mut world, &wanted(vec![one.clone()], vec![]), at(0));
    assert!(passes(&world, packet("168.63.129.16", "10.0.0.4", 22)));
    settle(&mut world, &wanted(vec![two, one], vec![]), at(0));
    assert!(!passes(&world, packet("168.63.129.16", "10.0.0.4", 22)));
    assert!(!passes(&world, packet("10.9.2.1", "10.0.0.4", 22)));
    assert!(passes(&world, packet("10.9.1.1", "10.0.0.4", 22)));
    let udp = Packet { tcp: false, ..packet("10.9.2.1", "10.0.0.4", 22) };
    assert!(passes(&world, udp));
    settle(
        &mut world,
        &wanted(vec![Lock { keep_others: false, ..lock(WEB, &[]) }, lock(OPS, &[])], vec![]),
        at(0),
    );
    assert!(world.rules.iter().all(|rule| !rule.name.contains("exempt")));
}

#[test]
fn an_exemption_that_has_to_go_up_goes_above_no_deliberate_deny() {
    let exempt = || exempting(&["203.0.113.7"], web());
    let mut world = settled(&["stop 500 Deny TCP 203.0.113.0/24 > * : 22"], exempt());
    let from = packet("203.0.113.7", "10.0.0.4", 22);
    assert!(!passes(&world, from) && world.rule(&exemption(0)).is_some());
    // The deny goes above this, and the exemption would have to follow.
    apply(&mut world, &Write::Put(rule("corp 300 Allow TCP 198.51.100.0/24 > * : 22"))).unwrap();
    let changes = settle(&mut world, &wanted(vec![exempt()], vec![]), at(0));
    assert_eq!(changes.refused.first().map(|refused| refused.reason), Some(Reason::ForeignDeny));
    assert!(!passes(&world, from), "by {:?}", decider(&world, from));
}

/// Of two families, each has its own.
#[test]
fn an_exemption_is_rewritten_within_its_family() {
    let both = lock(WEB, &[("10.0.0.4,fd00::4", "22")]);
    let mut world = settled(&[], exempting(&["10.9.0.0/16", "fd09::/16"], both.clone()));
    let of_v6 = |number| world.rule(&exemption(number)).unwrap().sources.contains(&peer("fd09::/16"));
    let (v4, v6) = if of_v6(0) { (1, 0) } else { (0, 1) };
    let wanted = wanted(vec![exempting(&["fd08::/16"], both)], vec![]);
    let changes = planned(&world, &wanted);
    let written: Vec<&str> = changes.locks.iter().map(|rule| rule.name.as_str()).collect();
    assert_eq!((written, changes.unlocks), (vec![exemption(v6).as_str()], vec![exemption(v4)]));
    settle(&mut world, &wanted, at(0));
    assert!(
        passes(&world, packet("fd08::1", "fd00::4", 22)) && !passes(&world, packet("fd09::1", "fd00::4", 22))
    );
}

/// Where it may not be removed, it becomes a deny, whatever became of its last write.
#[test]
fn an_exemption_that_may_not_be_removed_shuts_out() {
    let mut world = settled(&[], exempting(&["10.9.0.0/16"], web()));
    world.lock = ResourceLock::CannotDelete;
    world.rules.iter_mut().find(|rule| rule.name == exemption(0)).unwrap().provisioning =
        Provisioning::Failed;
    let changes = planned(&world, &wanted(vec![web()], vec![]));
    let [turned] = &changes.locks[..] else { panic!("{changes:?}") };
    assert_eq!((turned.name.clone(), turned.access), (exemption(0), Access::Deny));
    assert_eq!(turned.provisioning, Provisioning::Succeeded, "what is asked for is that it be written");
}

/// What somebody has turned into an allow keeps nobody out, and needs no exemption.
#[test]
fn a_retained_exemption_goes_with_a_deny_that_somebody_opened() {
    let mut world = settled(&[], exempting(&["10.9.0.0/16"], web()));
    let retained = wanted(vec![], vec![]);
    assert!(planned(&world, &retained).is_empty());
    world.rules.iter_mut().find(|rule| rule.name == deny(0)).unwrap().access = Access::Allow;
    let changes = planned(&world, &retained);
    assert_eq!(changes.unlocks, [exemption(0)]);
    settle(&mut world, &retained, at(0));
    assert!(!passes(&world, packet("198.51.100.1", "10.0.0.4", 22)));
}
