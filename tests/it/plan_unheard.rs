//! Policies that are there and have not said yet what they want: after a start, in another term of the lease, or because
//! they cannot be understood. Others are not to take them for gone.

use portcullis::api::Reason;
use portcullis::plan::changes::plan;
use portcullis::plan::desired::{Lock, Wanted};
use portcullis::plan::model::{Access, Observed, Rule};
use portcullis::plan::names::uid12;

use crate::plan_world::*;

fn of(uid: &str, exempt: &[&str]) -> Lock {
    Lock { exempt: exempt.iter().map(|text| peer(text)).collect(), ..lock(uid, &[("10.0.0.4", "22")]) }
}

/// Both policies' locks stand.
fn both(web: &Lock, ops: &Lock, rules: &[&str]) -> Observed {
    let mut world = nsg(rules);
    settle(&mut world, &wanted(vec![web.clone(), ops.clone()], vec![]), at(0));
    world
}

/// What the one wants while the other has not been heard.
fn alone(lock: &Lock, unheard: &str) -> Wanted {
    Wanted { unheard: [uid12(unheard)].into(), ..wanted(vec![lock.clone()], vec![]) }
}

fn gets_in(world: &Observed, source: &str) -> bool {
    passes(world, packet(source, "10.0.0.4", 22))
}

#[test]
fn nobody_is_exempt_from_a_lock_whose_policy_has_not_been_heard() {
    for (first, second) in [(WEB, OPS), (OPS, WEB)] {
        let (exempts, strict) = (of(first, &["10.9.0.0/16"]), of(second, &[]));
        let mut world = both(&exempts, &strict, &[]);
        assert!(!gets_in(&world, "10.9.1.1"));
        let wanted_now = alone(&exempts, second);
        settle(&mut world, &wanted_now, at(0));
        assert!(!gets_in(&world, "10.9.1.1"));
        let refused = plan(&world, &wanted_now, &LIMITS, at(0)).refused;
        assert_eq!(refused.len(), 1);
        assert_eq!((refused[0].owner_uid.as_str(), refused[0].reason), (first, Reason::Progressing));
        // It is gone, and its lock is taken over.
        settle(&mut world, &wanted(vec![exempts], vec![]), at(0));
        assert!(gets_in(&world, "10.9.1.1") && !gets_in(&world, "10.8.1.1"));
    }
}

#[test]
fn whom_both_exempt_gets_in_all_the_while() {
    for (first, second) in [(WEB, OPS), (OPS, WEB)] {
        let (wide, narrow) = (of(first, &["10.8.0.0/16", "10.9.0.0/16"]), of(second, &["10.9.0.0/16"]));
        let mut world = both(&wide, &narrow, &[]);
        let before = world.clone();
        for (heard, unheard) in [(&wide, second), (&narrow, first)] {
            settle(&mut world, &alone(heard, unheard), at(0));
            assert_eq!(world, before, "nothing is written meanwhile");
        }
        assert!(gets_in(&world, "10.9.1.1") && !gets_in(&world, "10.8.1.1"));
    }
}

/// The rules of exemptions are made of what all policies want, and named after the first of them.
#[test]
fn an_exemption_over_what_others_lock_too_goes_on_whoever_is_heard_first() {
    let over = |uid: &str, addresses: &str| Lock {
        exempt: vec![peer("10.9.0.0/16")],
        ..lock(uid, &[(addresses, "22")])
    };
    for (first, second) in [(WEB, OPS), (OPS, WEB)] {
        let (left, right) = (over(first, "10.0.0.4,10.0.0.5"), over(second, "10.0.0.4,10.0.0.6"));
        let mut world = both(&left, &right, &[]);
        let before = world.clone();
        for (heard, unheard) in [(&left, second), (&right, first)] {
            settle(&mut world, &alone(heard, unheard), at(0));
            assert_eq!(world, before, "nothing is written meanwhile");
        }
        // What the other one does not lock waits for nobody, and one that lets in less is written at once.
        let wider = over(first, "10.0.0.4,10.0.0.5,10.0.0.7");
        settle(&mut world, &alone(&wider, second), at(0));
        let enters = |world: &Observed, to: &str, from: &str| passes(world, packet(from, to, 22));
        for to in ["10.0.0.4", "10.0.0.5", "10.0.0.6", "10.0.0.7"] {
            assert!(enters(&world, to, "10.9.1.1") && !enters(&world, to, "10.8.1.1"), "{to}");
        }
        let narrower = Lock { exempt: vec![peer("10.9.1.0/24")], ..left.clone() };
        settle(&mut world, &alone(&narrower, second), at(0));
        for to in ["10.0.0.4", "10.0.0.5"] {
            assert!(enters(&world, to, "10.9.1.1") && !enters(&world, to, "10.9.2.1"), "{to}");
        }
    }
}

#[test]
fn an_exemption_that_somebody_changed_does_not_go_on() {
    let exempts = |uid: &str| of(uid, &["203.0.113.0/24"]);
    let before = both(&exempts(WEB), &exempts(OPS), &[]);
    let changed = |change: &dyn Fn(&mut Rule)| {
        let mut world = before.clone();
        let own = world.rules.iter_mut().find(|rule| rule.name.contains("-exempt-")).unwrap();
        change(own);
        settle(&mut world, &alone(&exempts(WEB), OPS), at(0));
        world
    };
    let enters = |world: &Observed, to: &str| passes(world, packet("203.0.113.7", to, 22));
    assert!(enters(&before, "10.0.0.4") && !enters(&before, "10.0.0.5"));
    let widened = changed(&|rule| rule.destinations = vec![peer("10.0.0.0/24")]);
    assert!(!enters(&widened, "10.0.0.5"));
    let turned = changed(&|rule| rule.access = Access::Deny);
    assert!(turned.rules.iter().all(|rule| !rule.name.contains("-exempt-") || rule.access == Access::Allow));
}

#[test]
fn a_lock_is_taken_over_from_no_policy_that_has_not_been_heard() {
    let (web, ops) = (of(WEB, &[]), of(OPS, &[]));
    let ssh = ["ssh 1000 Allow TCP * > * : 22"];
    let mut world = both(&web, &ops, &ssh);
    let denies = |world: &Observed| {
        world.rules.iter().filter(|rule| rule.access == Access::Deny && rule.priority < 4097).count()
    };
    settle(&mut world, &alone(&web, OPS), at(0));
    assert_eq!(denies(&world), 2);
    // The one that covered it goes, and takes its lock along.
    let goes = Lock { machines: vec![], keep_others: false, ..web.clone() };
    settle(&mut world, &alone(&goes, OPS), at(0));
    assert!(denies(&world) == 1 && !gets_in(&world, "198.51.100.23"));
    // One that is gone is another matter.
    let mut world = both(&web, &ops, &ssh);
    settle(&mut world, &wanted(vec![web], vec![]), at(0));
    assert_eq!(denies(&world), 1);
}
