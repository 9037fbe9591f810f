//! What to do on one firewall where it comes to the last second, address or number, and where somebody's lock, deny
//! or half-done write is in the way.

use portcullis::api::Reason;
use portcullis::plan::changes::{grant_rule, plan, stands};
use portcullis::plan::desired::{Changes, Drift, Duty, Grant, Lock, Wanted};
use portcullis::plan::model::{Access, Observed, Peer, Provisioning, ResourceLock, Rule};
use portcullis::plan::names;

use crate::plan_world::*;

mod exemptions;

fn planned(world: &Observed, wanted: &Wanted) -> Changes {
    plan(world, wanted, &LIMITS, at(0))
}

fn deny(n: u32) -> String {
    names::deny_name(&cluster(), WEB, n)
}

fn web() -> Lock {
    lock(WEB, &[("10.0.0.4", "22")])
}

/// A grant to the machine that `web` locks.
fn one(n: u32, deadline: i64, duty: Duty) -> Grant {
    grant(n, "203.0.113.7/32", "10.0.0.4", "22", deadline, duty)
}

fn put(world: &mut Observed, rule: Rule) {
    apply(world, &Write::Put(rule)).unwrap();
}

/// A firewall on which the rule of this grant stands.
fn standing(grant: &Grant, priority: u16) -> Observed {
    let mut world = nsg(&[]);
    put(&mut world, grant_rule(&cluster(), grant, priority));
    world
}

fn closed(changes: &Changes) -> Vec<&str> {
    changes.closes.iter().map(|close| close.name.as_str()).collect()
}

#[test]
fn sessions_are_cut_where_a_lock_with_machines_asks_for_it_and_the_firewall_does_not_yet() {
    let cuts = |lock: Lock, now: Option<bool>| {
        let world = Observed { cuts_sessions: now, ..nsg(&[]) };
        planned(&world, &wanted(vec![lock], vec![])).cut_sessions
    };
    let asks = Lock { cut_sessions: true, ..web() };
    assert!(cuts(asks.clone(), Some(false)));
    assert!(!cuts(asks.clone(), Some(true)), "it does already");
    assert!(!cuts(asks.clone(), None), "it cannot");
    assert!(!cuts(web(), Some(false)), "nobody asks for it");
    assert!(!cuts(Lock { machines: vec![], ..asks }, Some(false)), "nothing is locked");
}

#[test]
fn a_grant_stands_where_its_rule_does_just_what_was_granted() {
    let grant = one(0, 3600, Duty::Hold);
    let rule = grant_rule(&cluster(), &grant, 300);
    let with = |rule: Option<Rule>| {
        let mut world = nsg(&[]);
        world.rules.extend(rule);
        stands(&world, &cluster(), &grant)
    };
    assert!(with(Some(rule.clone())));
    assert!(with(Some(Rule { provisioning: Provisioning::Updating, ..rule.clone() })));
    assert!(!with(None));
    assert!(!with(Some(Rule { provisioning: Provisioning::Failed, ..rule.clone() })));
    assert!(!with(Some(Rule { sources: vec![Peer::Any], ..rule })));
}

#[test]
fn a_new_deny_goes_below_a_live_grant_and_heeds_nothing_else_of_ours() {
    let place = |world: &Observed, grants: Vec<Grant>| {
        planned(world, &wanted(vec![web()], grants)).locks.first().map(|rule| rule.priority)
    };
    let held = one(0, 3600, Duty::Hold);
    let world = standing(&held, 1500);
    assert_eq!(place(&world, vec![held.clone()]), Some(4096));
    assert_eq!(place(&world, vec![one(0, 3600, open(60))]), Some(4096), "as yet unread");
    assert_eq!(place(&world, vec![one(0, 3600, Duty::Close { sent: true })]), Some(999), "to be closed");
    assert_eq!(place(&world, vec![]), Some(999), "nobody's");
    let other = Grant { ports: vec![port("23")], ..held.clone() };
    assert_eq!(place(&world, vec![other]), Some(999), "closed, as it is not what was granted");
    let mut denied = nsg(&[]);
    put(&mut denied, Rule { access: Access::Deny, ..grant_rule(&cluster(), &held, 1500) });
    assert_eq!(place(&denied, vec![held]), Some(999), "it lets nothing in");
}

#[test]
fn addresses_are_counted_to_the_last_one() {
    // One source and two destinations.
    let two = lock(WEB, &[("10.0.0.4", "22"), ("10.0.0.5", "22")]);
    let planned_with = |spare: usize, locks: Vec<Lock>, world: &Observed| {
        let mut world = world.clone();
        world.outbound_addresses += LIMITS.addresses - world.address_count() - spare;
        planned(&world, &wanted(locks, vec![]))
    };
    let empty = nsg(&[]);
    assert_eq!(planned_with(3, vec![two.clone()], &empty).locks.len(), 1);
    let refused = planned_with(2, vec![two.clone()], &empty);
    assert_eq!((refused.locks.len(), refused.refused[0].reason), (0, Reason::FirewallFull));
    // What the first takes is gone for the second.
    let both = || vec![two.clone(), lock(OPS, &[("10.0.0.6", "22")])];
    assert_eq!(planned_with(5, both(), &empty).locks.len(), 2);
    let refused = planned_with(4, both(), &empty);
    assert_eq!((refused.locks.len(), refused.refused[0].owner_uid.as_str()), (1, OPS));
    // A rule that grows in its place takes no more than it grows by.
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    assert_eq!(planned_with(1, vec![two.clone()], &world).locks.len(), 1);
    assert_eq!(planned_with(0, vec![two.clone()], &world).refused[0].reason, Reason::FirewallFull);
    assert_eq!(planned_with(3, both(), &world).locks.len(), 2);
    assert_eq!(planned_with(2, both(), &world).locks.len(), 1);
    // And what gets no larger is put right though the firewall is fuller than it may be.
    let edited = Rule { sources: vec![peer("203.0.113.0/24")], ..world.rule(&deny(0)).unwrap().clone() };
    put(&mut world, edited);
    world.outbound_addresses = LIMITS.addresses;
    world.outbound_rules = LIMITS.rules;
    assert_eq!(planned(&world, &wanted(vec![web()], vec![])).locks.len(), 1);
}

#[test]
fn a_deny_in_the_place_of_an_allow_goes_unless_a_live_grant_needs_the_name() {
    let now_deny = |access: Access, lock: ResourceLock| {
        let mut world = nsg(&[]);
        put(&mut world, Rule { access, ..grant_rule(&cluster(), &one(0, 3600, Duty::Hold), 300) });
        Observed { lock, ..world }
    };
    let name = one(0, 3600, Duty::Hold).name;
    let unlocks = |lock: ResourceLock, grants: Vec<Grant>| {
        let changes = planned(&now_deny(Access::Deny, lock), &wanted(vec![], grants));
        assert!(changes.opens.is_empty(), "the name is taken");
        (changes.unlocks == [name.clone()], closed(&changes) == [name.as_str()])
    };
    let close = |sent| vec![one(0, 3600, Duty::Close { sent })];
    assert_eq!(unlocks(ResourceLock::None, vec![]), (true, false));
    assert_eq!(unlocks(ResourceLock::None, close(true)), (true, false));
    assert_eq!(unlocks(ResourceLock::None, close(false)), (false, true), "it goes by the close");
    assert_eq!(unlocks(ResourceLock::CannotDelete, vec![]), (false, false));
    assert_eq!(unlocks(ResourceLock::None, vec![one(0, 3600, open(60))]), (false, false));
    assert_eq!(unlocks(ResourceLock::None, vec![one(0, 3600, Duty::Hold)]), (false, false));
    // What a sweep took for nobody's is left alone if it is somebody's by now.
    let mut wanted = wanted(vec![], vec![one(0, 3600, Duty::Hold)]);
    wanted.orphans.insert(name.clone());
    let world = now_deny(Access::Allow, ResourceLock::None);
    assert_eq!(planned(&world, &wanted), Changes::default());
    wanted.grants.clear();
    assert_eq!(closed(&planned(&world, &wanted)), [name.as_str()]);
}

#[test]
fn a_grant_is_closed_from_its_deadline_on_and_an_opening_after_its_last_moment() {
    let close_at = |world: &Observed, duty: Duty, second: i64| {
        let wanted = wanted(vec![], vec![one(0, 100, duty)]);
        !plan(world, &wanted, &LIMITS, at(second)).closes.is_empty()
    };
    let (empty, there) = (nsg(&[]), standing(&one(0, 100, Duty::Hold), 300));
    for duty in [Duty::Hold, open(40)] {
        // Though the read does not show it: a write may be under way.
        assert!(!close_at(&empty, duty, 99) && close_at(&empty, duty, 100), "{duty:?}");
        assert!(close_at(&there, duty, 100), "{duty:?}");
    }
    assert!(!close_at(&there, Duty::Hold, 99));
    // What stands after the last moment to open it was written late.
    assert!(!close_at(&there, open(40), 40) && close_at(&there, open(40), 41));
    assert!(!close_at(&empty, open(40), 41), "nothing stands");
}

#[test]
fn a_held_rule_that_is_missing_is_lost_before_its_deadline_alone() {
    let lost = |duty: Duty, second: i64| {
        let wanted = wanted(vec![], vec![one(0, 100, duty)]);
        plan(&nsg(&[]), &wanted, &LIMITS, at(second)).lost.len()
    };
    assert_eq!((lost(Duty::Hold, 99), lost(Duty::Hold, 100)), (1, 0));
    assert_eq!((lost(open(60), 50), lost(Duty::Close { sent: true }, 50)), (0, 0));
}

#[test]
fn a_rule_whose_description_says_that_it_died_earlier_is_closed_and_its_grant_lost() {
    for (duty, lost) in [(Duty::Hold, 1), (open(60), 0)] {
        let held = one(0, 3600, duty);
        let mut world = nsg(&[]);
        let description = names::description(&cluster(), REQUEST, Some(at(0)));
        put(&mut world, Rule { description, ..grant_rule(&cluster(), &held, 300) });
        let changes = planned(&world, &wanted(vec![], vec![held.clone()]));
        assert_eq!((closed(&changes), changes.lost.len()), (vec![held.name.as_str()], lost), "{duty:?}");
        assert!(changes.opens.is_empty());
    }
}

#[test]
fn a_failed_rule_is_closed_by_a_deny_like_any_other() {
    let close = one(0, 3600, Duty::Close { sent: true });
    let mut world = nsg(&[]);
    put(&mut world, Rule { provisioning: Provisioning::Failed, ..grant_rule(&cluster(), &close, 300) });
    let as_deny = planned(&world, &wanted(vec![], vec![close])).closes[0].as_deny.clone().unwrap();
    assert_eq!((as_deny.access, as_deny.provisioning), (Access::Deny, Provisioning::Succeeded));
}

#[test]
fn what_the_cloud_is_still_writing_is_waited_for_unless_it_is_written_or_removed_anyway() {
    let updating = |rule: &Rule| Rule { provisioning: Provisioning::Updating, ..rule.clone() };
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    let own = updating(world.rule(&deny(0)).unwrap());
    put(&mut world, own);
    let unsettled = |lock: Lock| planned(&world, &wanted(vec![lock], vec![])).unsettled;
    assert_eq!(unsettled(web()), [deny(0)]);
    assert_eq!(unsettled(lock(WEB, &[("10.0.0.4", "22,80")])).len(), 0, "it is written again");
    assert_eq!(unsettled(Lock { machines: vec![], keep_others: false, ..web() }).len(), 0, "it is removed");
    // The rules of grants: of those that are wanted here.
    let held = one(0, 3600, Duty::Hold);
    let mut world = nsg(&[]);
    put(&mut world, updating(&grant_rule(&cluster(), &held, 300)));
    let unsettled = |grants: Vec<Grant>| planned(&world, &wanted(vec![], grants)).unsettled;
    let name = held.name.clone();
    assert_eq!(unsettled(vec![held]), [name]);
    assert_eq!(unsettled(vec![one(0, 3600, Duty::Close { sent: true })]).len(), 0, "it is closed");
    assert_eq!(unsettled(vec![]).len(), 0, "nobody asks for it");
}

#[test]
fn a_resource_lock_on_the_firewall_is_said_to_the_policies_whose_changes_it_forbids() {
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    let going = wanted(vec![Lock { machines: vec![], keep_others: false, ..web() }], vec![]);
    let growing = wanted(
        vec![Lock { cut_sessions: true, ..lock(WEB, &[("10.0.0.4", "22,80")]) }, lock(OPS, &[])],
        vec![],
    );
    let under = |lock, wanted: &Wanted| planned(&Observed { lock, ..world.clone() }, wanted);
    let said = |changes: &Changes| -> Vec<String> {
        assert!(
            changes.refused.iter().all(|it| (it.reason, it.owner_uid.as_str()) == (Reason::ScopeLocked, WEB))
        );
        changes.refused.iter().map(|refused| refused.message.clone()).collect()
    };
    assert_eq!(under(ResourceLock::None, &going).unlocks, [deny(0)]);
    let kept = under(ResourceLock::CannotDelete, &going);
    assert!(kept.is_empty());
    assert_eq!(
        said(&kept),
        [format!("a CanNotDelete lock on the firewall forbids the removal of rule {}", deny(0))]
    );
    // It does not forbid to write.
    let written = under(ResourceLock::CannotDelete, &growing);
    assert_eq!((written.locks.len(), written.cut_sessions, written.refused.len()), (1, true, 0));
    let kept = under(ResourceLock::ReadOnly, &growing);
    assert!(kept.is_empty());
    assert_eq!(
        said(&kept),
        [
            "a ReadOnly lock on the firewall forbids the change of rule ".to_owned() + &deny(0),
            "a ReadOnly lock on the firewall forbids to set flushConnection".to_owned(),
        ]
    );
    assert!(under(ResourceLock::ReadOnly, &going).is_empty());
}

/// What was last read back, or written since, is ours: what differs from it is somebody else's doing.
#[test]
fn drift_is_what_somebody_else_changed_and_not_what_we_change_ourselves() {
    let mut world = nsg(&["ssh 300 Allow TCP * > * : 22"]);
    settle(&mut world, &wanted(vec![web()], vec![]), at(0));
    let own = world.rule(&deny(0)).unwrap().clone();
    assert_eq!(own.priority, 299);
    let known = |lock: Lock| Wanted { standing: vec![own.clone()], ..wanted(vec![lock], vec![]) };
    let drift = [Drift { policy_uid: WEB.into(), rule: deny(0), removed: false }];
    // The lock grows, or goes: our own doing.
    assert_eq!(planned(&world, &known(lock(WEB, &[("10.0.0.4", "22,80")]))).drift, []);
    let going = known(Lock { machines: vec![], keep_others: false, ..web() });
    assert_eq!(planned(&world, &going).unlocks, [deny(0)]);
    assert_eq!(planned(&world, &going).drift, []);
    for edited in [
        Rule { priority: 2000, ..own.clone() },
        Rule { description: "mine now".into(), ..own.clone() },
        Rule { sources: vec![peer("203.0.113.0/24")], ..own.clone() },
    ] {
        let mut world = world.clone();
        put(&mut world, edited.clone());
        let changes = planned(&world, &known(web()));
        assert_eq!((changes.locks.clone(), changes.drift), (vec![own.clone()], drift.to_vec()), "{edited:?}");
    }
    // Also where it is removed rather than mended.
    put(&mut world, Rule { sources: vec![peer("203.0.113.0/24")], ..own.clone() });
    let changes = planned(&world, &going);
    assert_eq!((changes.unlocks, changes.drift), (vec![deny(0)], drift.to_vec()));
}
