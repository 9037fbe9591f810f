//! What to do on one firewall: one example for each rule of the table.

use portcullis::api::{ExistingRules, Reason};
use portcullis::plan::changes::{grant_rule, plan};
use portcullis::plan::desired::{Changes, Drift, Duty, Lock, Wanted};
use portcullis::plan::model::{Access, Observed, Peer, Provisioning, ResourceLock, Rule};
use portcullis::plan::names;

use crate::plan_world::*;

fn planned(world: &Observed, wanted: &Wanted) -> Changes {
    plan(world, wanted, &LIMITS, at(0))
}

fn names_of(rules: &[Rule]) -> Vec<(&str, u16)> {
    rules.iter().map(|rule| (rule.name.as_str(), rule.priority)).collect()
}

fn deny(n: u32) -> String {
    names::deny_name(&cluster(), WEB, n)
}

fn web() -> Lock {
    lock(WEB, &[("10.0.0.4", "22")])
}

#[test]
fn a_lock_on_an_empty_firewall_is_one_deny_at_999() {
    let mut world = nsg(&[]);
    assert!(passes(&world, packet("10.0.0.9", "10.0.0.4", 22)));
    let changes = planned(&world, &wanted(vec![web()], vec![]));
    assert_eq!(names_of(&changes.locks), [(deny(0).as_str(), 999)]);
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    assert!(!passes(&world, packet("10.0.0.9", "10.0.0.4", 22)));
    assert!(passes(&world, packet("10.0.0.9", "10.0.0.4", 80)));
}

#[test]
fn only_exact_cross_products_fold() {
    let machines = [("10.0.0.4,fd00::4", "22"), ("10.0.0.5", "22"), ("10.0.0.6", "22,TCP/5985-5986")];
    let changes = planned(&nsg(&[]), &wanted(vec![lock(WEB, &machines)], vec![]));
    let said: Vec<String> = changes
        .locks
        .iter()
        .map(|rule| format!("{:?} {:?}", rule.destinations.len(), rule.ports.first().unwrap().to_string()))
        .collect();
    assert_eq!(said, ["1 \"5985-5986\"", "3 \"22\"", "1 \"22\""]);
}

#[test]
fn an_override_goes_above_what_lets_in_and_a_keep_below() {
    let world = nsg(&["ssh 300 Allow TCP * > 10.0.0.0/8 : 22", "other 200 Allow TCP * > 10.0.0.9 : 22"]);
    let over = planned(&world, &wanted(vec![web()], vec![]));
    assert_eq!(over.locks[0].priority, 299);
    let keep = Lock { existing: ExistingRules::Keep, ..web() };
    assert_eq!(planned(&world, &wanted(vec![keep], vec![])).locks[0].priority, 4096);
}

#[test]
fn without_room_the_lock_goes_as_high_as_it_can_and_names_what_is_in_the_way() {
    let mut world = nsg(&["ssh 100 Allow TCP 10.1.0.0/16 > * : 22", "all 200 Allow Any * > * : *"]);
    let wanted = wanted(vec![web()], vec![]);
    let changes = settle(&mut world, &wanted, at(0));
    assert_eq!(changes.refused[0].reason, Reason::NoPriorityRoom);
    assert!(changes.refused[0].message.contains("rule ssh at priority 100"), "{:?}", changes.refused);
    assert!(!passes(&world, packet("203.0.113.7", "10.0.0.4", 22)));
}

#[test]
fn a_lock_that_steps_back_waits_until_what_others_want_above_stands_by_itself() {
    let probe = packet("203.0.113.7", "10.0.0.4", 22);
    let stepping_back = Lock { existing: ExistingRules::Keep, ..web() };
    let other = lock(OPS, &[("10.0.0.4", "22")]);
    for (priority, free) in [(101, false), (102, true)] {
        let mut world = nsg(&[&format!("ssh {priority} Allow TCP * > * : 22")]);
        let first = Rule { priority: 100, ..planned(&world, &wanted(vec![web()], vec![])).locks[0].clone() };
        apply(&mut world, &Write::Put(first)).unwrap();
        let wanted = wanted(vec![stepping_back.clone(), other.clone()], vec![]);
        // Whichever of the writes of a round succeed.
        let changes = planned(&world, &wanted);
        assert!(changes.refused.iter().all(|refused| refused.owner_uid == OPS), "{:?}", changes.refused);
        for write in writes(&changes, ResourceLock::None) {
            let mut alone = world.clone();
            apply(&mut alone, &write).unwrap();
            assert!(!passes(&alone, probe), "{write:?}");
        }
        settle(&mut world, &wanted, at(0));
        assert!(!passes(&world, probe));
        // With a number of its own for the other, it steps back; without one it goes on standing for both.
        assert_eq!(world.rule(&deny(0)).map(|rule| rule.priority), Some(if free { 4096 } else { 100 }));
    }
}

#[test]
fn a_lock_with_a_new_exemption_goes_below_no_rule_that_another_lock_still_wants_it_above() {
    let probe = packet("203.0.113.7", "10.0.0.4", 22);
    let mut world = nsg(&["ssh 200 Allow TCP 203.0.113.0/24 > * : 22"]);
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    assert!(!passes(&world, probe));
    let exempting = Lock { exempt: vec![peer("203.0.113.0/24")], ..web() };
    let wanted = wanted(vec![exempting, lock(OPS, &[("10.0.0.4", "22")])], vec![]);
    for write in writes(&planned(&world, &wanted), ResourceLock::None) {
        let mut alone = world.clone();
        apply(&mut alone, &write).unwrap();
        assert!(!passes(&alone, probe), "{write:?}");
    }
    settle(&mut world, &wanted, at(0));
    assert!(!passes(&world, probe));
}

#[test]
fn a_lock_that_leaves_waits_where_it_alone_stands_above_what_another_does_not_exempt() {
    const THIRD: &str = "cccccccc-bbbc-cccc-dddd-000000000003";
    let probe = packet("203.0.113.7", "10.0.0.4", 22);
    let mut world = nsg(&["ssh 101 Allow TCP 203.0.113.7/32 > * : 22"]);
    let first = Rule { priority: 100, ..planned(&world, &wanted(vec![web()], vec![])).locks[0].clone() };
    apply(&mut world, &Write::Put(first)).unwrap();
    // One of the others lets the source in, so for its part its deny is well placed below the rule.
    let exempting = Lock { exempt: vec![peer("203.0.113.7/32")], ..lock(OPS, &[("10.0.0.4", "22")]) };
    let others = vec![exempting, lock(THIRD, &[("10.0.0.4", "22")])];
    settle(&mut world, &wanted([vec![web()], others.clone()].concat(), vec![]), at(0));
    assert!(!passes(&world, probe));
    let leaving = Lock { machines: vec![], keep_others: false, ..web() };
    let wanted = wanted([vec![leaving], others].concat(), vec![]);
    for write in writes(&planned(&world, &wanted), ResourceLock::None) {
        let mut alone = world.clone();
        apply(&mut alone, &write).unwrap();
        assert!(!passes(&alone, probe), "{write:?}");
    }
    settle(&mut world, &wanted, at(0));
    assert!(!passes(&world, probe));
}

#[test]
fn a_single_free_number_goes_to_the_lock() {
    let world = nsg(&["ssh 101 Allow TCP * > * : 22"]);
    let grants = vec![grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60))];
    let changes = planned(&world, &wanted(vec![web()], grants));
    assert_eq!(changes.locks[0].priority, 100);
    assert!(changes.opens.is_empty());
    assert_eq!(changes.refused[0].reason, Reason::NoPriorityRoom);
}

#[test]
fn a_grant_is_written_above_the_lock_and_opens_its_packets_alone() {
    let mut world = nsg(&["DenyAll 4096 Deny Any * > * : *"]);
    let grants = vec![grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60))];
    let wanted = wanted(vec![web()], grants);
    let changes = planned(&world, &wanted);
    assert_eq!(changes.opens[0].priority, 100);
    settle(&mut world, &wanted, at(0));
    assert!(passes(&world, packet("203.0.113.7", "10.0.0.4", 22)));
    assert!(!passes(&world, packet("203.0.113.8", "10.0.0.4", 22)));
    let again = plan(&world, &wanted, &LIMITS, at(3600));
    assert_eq!(again.closes.len(), 1);
    assert!(again.opens.is_empty() && again.locks.is_empty());
}

#[test]
fn a_close_is_sent_though_the_read_does_not_show_the_rule_and_once_sent_only_if_shown() {
    let one = |duty| grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, duty);
    let mut world = nsg(&[]);
    let close =
        |world: &Observed, sent| planned(world, &wanted(vec![], vec![one(Duty::Close { sent })])).closes;
    assert_eq!(close(&world, false).len(), 1);
    assert_eq!(close(&world, false)[0].as_deny, None);
    assert!(close(&world, true).is_empty());
    apply(&mut world, &Write::Put(grant_rule(&cluster(), &one(Duty::Hold), 100))).unwrap();
    let shown = close(&world, true);
    let deny = shown[0].as_deny.as_ref().unwrap();
    assert_eq!((deny.access, deny.priority), (Access::Deny, 4096));
}

#[test]
fn under_a_lock_against_removal_an_allow_becomes_a_deny_that_goes_when_the_lock_lifts() {
    let mut world = nsg(&[]);
    let mut wanted =
        wanted(vec![], vec![grant(0, "10.0.0.9/32", "10.0.0.4", "22", 3600, Duty::Close { sent: true })]);
    let rule = grant_rule(&cluster(), &wanted.grants[0], 100);
    apply(&mut world, &Write::Put(rule)).unwrap();
    world.lock = ResourceLock::CannotDelete;
    settle(&mut world, &wanted, at(0));
    assert!(!passes(&world, packet("10.0.0.9", "10.0.0.4", 22)));
    world.lock = ResourceLock::None;
    wanted.grants.clear();
    assert_eq!(planned(&world, &wanted).unlocks.len(), 1);
    settle(&mut world, &wanted, at(0));
    assert_eq!(world.rule_count(), 0);
}

#[test]
fn overdue_allows_orphans_and_renamed_copies_are_closed_and_others_left() {
    let mut world = nsg(&[]);
    let one = |n, deadline| {
        grant_rule(
            &cluster(),
            &grant(n, "10.0.0.9/32", "10.0.0.4", "22", deadline, Duty::Hold),
            100 + u16::try_from(n).unwrap(),
        )
    };
    let copy = Rule { name: "innocent".into(), ..one(2, -1) };
    let foreign =
        Rule { description: "portcullis".into(), ..rule("portcullis-allow-ssh 150 Allow TCP * > * : 22") };
    for rule in [one(0, -1), one(1, 50), copy, one(3, 50), foreign] {
        apply(&mut world, &Write::Put(rule)).unwrap();
    }
    let mut wanted = wanted(vec![], vec![]);
    wanted.orphans.insert(one(3, 50).name.to_uppercase());
    wanted.orphans.insert("portcullis-allow-ssh".into());
    let mut closed: Vec<String> =
        planned(&world, &wanted).closes.into_iter().map(|close| close.name).collect();
    closed.sort();
    let mut expected = vec!["innocent".to_owned(), one(0, -1).name, one(3, 50).name];
    expected.sort();
    assert_eq!(closed, expected);
}

#[test]
fn a_changed_allow_is_closed_and_its_grant_is_lost() {
    let held = grant(0, "10.0.0.9/32", "10.0.0.4", "22", 3600, Duty::Hold);
    let mut world = nsg(&[]);
    let wanted = wanted(vec![], vec![held.clone()]);
    assert_eq!(planned(&world, &wanted).lost, vec![held.name.clone()]);
    let rule = grant_rule(&cluster(), &held, 100);
    apply(&mut world, &Write::Put(rule.clone())).unwrap();
    assert_eq!(planned(&world, &wanted), Changes::default());
    apply(&mut world, &Write::Put(Rule { sources: vec![Peer::Any], ..rule })).unwrap();
    let changes = planned(&world, &wanted);
    assert_eq!((changes.lost.len(), changes.closes.len()), (1, 1));
}

#[test]
fn a_deliberate_deny_refuses_the_grant_and_the_ground_does_not() {
    let grants = vec![grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60))];
    let refused = |text: &str| planned(&nsg(&[text]), &wanted(vec![], grants.clone())).refused;
    let deny = refused("stop 999 Deny Any 203.0.113.0/24 > * : *");
    assert_eq!(deny[0].reason, Reason::ForeignDeny);
    assert!(deny[0].message.contains("stop"), "{deny:?}");
    assert!(refused("stop 1000 Deny Any 203.0.113.0/24 > * : *").is_empty());
    assert!(refused("stop 500 Deny Any 203.0.114.0/24 > * : *").is_empty());
    assert!(refused("stop 500 Deny UDP * > * : *").is_empty());
}

#[test]
fn an_edited_deny_is_put_right_in_its_place_and_reported() {
    let wanted = wanted(vec![web()], vec![]);
    let mut world = nsg(&[]);
    settle(&mut world, &wanted, at(0));
    let own = world.rule(&deny(0)).unwrap().clone();
    let edits = [
        Rule { access: Access::Allow, ..own.clone() },
        Rule { sources: vec![peer("203.0.113.0/24")], ..own.clone() },
        Rule { description: "mine now".into(), ..own.clone() },
    ];
    for edited in edits {
        let mut world = world.clone();
        apply(&mut world, &Write::Put(edited.clone())).unwrap();
        let changes = planned(&world, &wanted);
        let drift = Drift { policy_uid: WEB.into(), rule: deny(0), removed: false };
        assert_eq!(changes.drift, [drift], "{edited:?}");
        assert_eq!(changes.locks, vec![own.clone()]);
    }
    let failed = Rule { provisioning: Provisioning::Failed, ..own.clone() };
    apply(&mut world, &Write::Put(failed)).unwrap();
    let changes = planned(&world, &wanted);
    assert_eq!((changes.locks.len(), changes.drift.len()), (1, 0));
    apply(&mut world, &Write::Put(Rule { provisioning: Provisioning::Updating, ..own })).unwrap();
    let changes = planned(&world, &wanted);
    assert!(changes.is_empty());
    assert_eq!(changes.unsettled, [deny(0)]);
}

#[test]
fn a_removed_deny_is_drift_where_it_stood_before() {
    let mut wanted = wanted(vec![web()], vec![]);
    assert!(planned(&nsg(&[]), &wanted).drift.is_empty());
    wanted.standing = planned(&nsg(&[]), &wanted).locks;
    let drift = planned(&nsg(&[]), &wanted).drift;
    assert_eq!(drift, [Drift { policy_uid: WEB.into(), rule: deny(0), removed: true }]);
}

#[test]
fn a_growing_lock_is_written_in_place_and_a_port_that_moves_stays_shut_meanwhile() {
    let mut world = nsg(&[]);
    let before = lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "22,80")]);
    settle(&mut world, &wanted(vec![before], vec![]), at(0));
    let after = wanted(vec![lock(WEB, &[("10.0.0.4", "22,80"), ("10.0.0.5", "22")])], vec![]);
    for _ in 0..5 {
        for write in writes(&planned(&world, &after), ResourceLock::None) {
            apply(&mut world, &write).unwrap();
            for address in ["10.0.0.4", "10.0.0.5"] {
                assert!(!passes(&world, packet("10.0.0.9", address, 22)));
            }
        }
    }
    assert!(planned(&world, &after).is_empty());
    assert!(passes(&world, packet("10.0.0.9", "10.0.0.5", 80)));
    assert!(!passes(&world, packet("10.0.0.9", "10.0.0.4", 80)));
    assert_eq!(world.rule_count(), 2);
}

#[test]
fn a_retained_lock_stays_until_another_policy_covers_it_wholly() {
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(vec![lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "22")])], vec![]), at(0));
    settle(&mut world, &wanted(vec![], vec![]), at(0));
    assert_eq!(world.rule_count(), 1);
    settle(&mut world, &wanted(vec![lock(OPS, &[("10.0.0.4", "22")])], vec![]), at(0));
    assert_eq!(world.rule_count(), 2);
    settle(&mut world, &wanted(vec![lock(OPS, &[("10.0.0.4", "22"), ("10.0.0.5", "20-30")])], vec![]), at(0));
    assert!(world.rule(&deny(0)).is_none());
    assert!(!passes(&world, packet("10.0.0.9", "10.0.0.5", 22)));
}

#[test]
fn addresses_stay_locked_unless_released() {
    let mut world = nsg(&[]);
    let both = lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "22")]);
    settle(&mut world, &wanted(vec![both], vec![]), at(0));
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    assert!(!passes(&world, packet("10.0.0.9", "10.0.0.5", 22)));
    let released = Lock { release: [ip("10.0.0.5")].into(), ..web() };
    settle(&mut world, &wanted(vec![released], vec![]), at(0));
    assert!(passes(&world, packet("10.0.0.9", "10.0.0.5", 22)));
    let unlocked = Lock { machines: vec![], keep_others: false, ..web() };
    settle(&mut world, &wanted(vec![unlocked], vec![]), at(0));
    assert_eq!(world.rule_count(), 0);
}

#[test]
fn opens_stop_before_locks_do() {
    let mut world = nsg(&[]);
    world.outbound_rules = 899;
    let grants = vec![
        grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60)),
        grant(1, "203.0.113.8/32", "10.0.0.4", "22", 3600, open(60)),
    ];
    let wanted = wanted(vec![], grants);
    let changes = planned(&world, &wanted);
    assert_eq!((changes.opens.len(), changes.refused[0].reason), (1, Reason::FirewallFull));
    world.outbound_rules = 1000;
    let lock = Wanted { locks: vec![web()], grants: vec![], ..wanted };
    assert_eq!(planned(&world, &lock).refused[0].reason, Reason::FirewallFull);
    world.outbound_rules = 999;
    assert_eq!(planned(&world, &lock).locks.len(), 1);
}

#[test]
fn a_name_that_is_not_ours_is_never_removed() {
    let mut world = nsg(&["web-allow 300 Allow TCP * > * : 22"]);
    let mut foreign = grant(0, "203.0.113.7/32", "10.0.0.4", "22", -5, Duty::Close { sent: false });
    foreign.name = "web-allow".into();
    let before = world.clone();
    let changes = settle(&mut world, &wanted(vec![], vec![foreign]), at(0));
    assert_eq!(changes.refused[0].reason, Reason::NotTrusted);
    assert_eq!(world, before);
}
