//! What is told of a lock before anything is written.

use portcullis::api::Reason;
use portcullis::api::values::Protocol;
use portcullis::plan::desired::{Duty, Limits, Lock};
use portcullis::plan::foresight::{first_of, obstacle, without_room};
use portcullis::plan::model::{Observed, ResourceLock};
use portcullis::plan::names;
use portcullis::plan::report::Problem;

use crate::plan_world::*;

fn web() -> Lock {
    lock(WEB, &[("10.0.0.4", "22")])
}

fn foreseen(world: &Observed) -> Option<(Reason, String)> {
    let Problem { reason, message } = obstacle(world, &web(), &cluster(), LIMITS, at(0))?;
    Some((reason, message))
}

fn crowded(world: &Observed) -> Option<String> {
    let (addresses, ports) = ([ip("10.0.0.4")], [(Protocol::Any, port("22"))]);
    first_of(&without_room(world, &cluster()), &addresses, &ports).map(|problem| problem.message)
}

#[test]
fn what_an_enforcing_policy_would_come_up_against_is_told_before() {
    assert_eq!(foreseen(&nsg(&[])), None);
    assert_eq!(foreseen(&nsg(&["ssh 102 Allow TCP * > * : 22"])), None);

    let (reason, message) = foreseen(&nsg(&["ssh 100 Allow TCP * > * : 22"])).unwrap();
    assert_eq!(reason, Reason::NoPriorityRoom);
    assert!(message.contains("above rule ssh at priority 100"), "{message}");

    let mut full = nsg(&["ssh 300 Allow TCP * > * : 22"]);
    let limits = Limits { rules: 1, addresses: 4000 };
    let problem = obstacle(&full, &web(), &cluster(), limits, at(0)).unwrap();
    assert_eq!(problem.reason, Reason::FirewallFull);

    full.lock = ResourceLock::ReadOnly;
    assert_eq!(foreseen(&full).unwrap().0, Reason::ScopeLocked);
}

#[test]
fn a_lock_that_would_leave_grants_no_number_is_told_before_with_the_rule_that_is_to_move() {
    let world = nsg(&["ssh 101 Allow TCP * > * : 22"]);
    let (reason, message) = foreseen(&world).unwrap();
    assert_eq!(reason, Reason::NoPriorityRoom);
    assert!(message.contains("the deny at 100") && message.contains("rule ssh at priority 101"), "{message}");
    // Its rules are all there, but for those at one number.
    let mut taken: Vec<String> =
        (100..150).map(|n| format!("other-{n} {n} Allow TCP * > 10.9.9.9 : 443")).collect();
    taken.push("ssh 151 Allow TCP * > * : 22".to_owned());
    let texts: Vec<&str> = taken.iter().map(String::as_str).collect();
    let (reason, message) = foreseen(&nsg(&texts)).unwrap();
    assert_eq!(reason, Reason::NoPriorityRoom);
    assert!(message.contains("the deny at 150") && message.contains("rule ssh at priority 151"), "{message}");
}

#[test]
fn what_stands_above_a_lock_for_good_is_told_from_what_only_stands_there() {
    let deny = |priority: u16| {
        format!("{} {priority} Deny Any * > 10.0.0.4 : 22", names::deny_name(&cluster(), WEB, 0))
    };
    let at_102 = deny(102);
    // Below it: what lets in other packets, and what lets in none.
    let mut rules = vec![
        "a 100 Deny TCP * > 10.9.9.9 : 443",
        "b 101 Deny TCP * > 10.9.9.9 : 443",
        &at_102,
        "c 103 Allow TCP * > 10.9.9.9 : 443",
        "d 104 Deny TCP * > * : 22",
    ];
    let said = crowded(&nsg(&rules)).unwrap();
    assert!(
        said.contains("the deny at 102, which has rules of others up to priority 101 above it"),
        "{said}"
    );
    rules.push("e 110 Allow TCP * > * : 22");
    let said = crowded(&nsg(&rules)).unwrap();
    assert!(said.contains("has to stand above rule e at priority 110"), "{said}");

    let exempt = names::exempt_name(&cluster(), WEB, 0);
    let ours = [format!("{exempt} 100 Allow Any 10.8.0.0/16 > 10.0.0.4 : 22"), deny(101)];
    let said = crowded(&nsg(&ours.each_ref().map(String::as_str))).unwrap();
    assert!(said.contains("the deny at 101, which has other rules of ours above it"), "{said}");
}

#[test]
fn a_standing_lock_says_that_it_leaves_grants_no_number_and_is_right_about_it() {
    for (priority, room) in [(101, false), (102, true), (103, true)] {
        // Of others than the grant lets in.
        let text = format!("ssh {priority} Allow TCP 198.51.100.0/24 > * : 22");
        let mut world = nsg(&[&text, "all 300 Allow TCP * > * : 22"]);
        settle(&mut world, &wanted(vec![web()], vec![]), at(0));
        let said = crowded(&world);
        assert_eq!(said.is_none(), room, "{priority}: {said:?}");
        let grant = grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60));
        let changes = settle(&mut world, &wanted(vec![web()], vec![grant]), at(0));
        let mine = packet("203.0.113.7", "10.0.0.4", 22);
        assert_eq!(passes(&world, mine), room);
        let refused = changes.refused.iter().find(|refused| refused.owner_uid == REQUEST);
        assert_eq!(refused.is_none(), room);
        if let Some(refused) = refused {
            assert!(refused.message.contains("rule ssh at priority 101"), "{}", refused.message);
        }
        // A number that a grant has now is one for the next.
        assert_eq!(crowded(&world).is_none(), room);
    }
    // Where nothing of ours stands, there is nothing to be said.
    assert_eq!(crowded(&nsg(&["ssh 101 Allow TCP * > * : 22"])), None);
}

#[test]
fn a_lock_that_a_rule_pushed_up_comes_down_when_that_is_gone_and_grants_open_again() {
    let mut world = nsg(&["first 101 Allow TCP * > * : 22", "ssh 300 Allow TCP * > * : 22"]);
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    assert!(crowded(&world).is_some());
    world.rules.retain(|rule| rule.name != "first");
    // A grant waits for the number that this plan frees, and is not refused.
    let waits = grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60));
    let wanted_both = wanted(vec![web()], vec![waits]);
    let changes = portcullis::plan::changes::plan(&world, &wanted_both, &LIMITS, at(0));
    assert_eq!((changes.refused, changes.opens), (vec![], vec![]));
    let stranger = packet("198.51.100.23", "10.0.0.4", 22);
    for write in writes(
        &portcullis::plan::changes::plan(&world, &wanted(vec![web()], vec![]), &LIMITS, at(0)),
        world.lock,
    ) {
        apply(&mut world, &write).unwrap();
        assert!(!passes(&world, stranger), "{write:?}");
    }
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    assert_eq!(crowded(&world), None);
    let grant =
        grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, Duty::Open { heard_by: at(60), until: at(60) });
    settle(&mut world, &wanted(vec![web()], vec![grant]), at(0));
    assert!(passes(&world, packet("203.0.113.7", "10.0.0.4", 22)) && !passes(&world, stranger));
}
