//! Which allows are written, where, and what those are told of that are not.

use portcullis::api::Reason;
use portcullis::plan::changes::{grant_rule, plan};
use portcullis::plan::desired::{Changes, Duty, Grant, Lock, Wanted};
use portcullis::plan::model::{Access, Observed, Provisioning, ResourceLock, Rule};

use crate::plan_world::*;

mod dnat;

fn planned(world: &Observed, grants: Vec<Grant>) -> Changes {
    plan(world, &wanted(vec![], grants), &LIMITS, at(0))
}

/// The `n`th grant of the request, from a source of its own.
fn one(n: u32, duty: Duty) -> Grant {
    grant(n, &format!("203.0.113.{n}/32"), "10.0.0.4", "22", 3600, duty)
}

fn refusal(changes: &Changes) -> (Reason, &str) {
    assert!(changes.opens.is_empty(), "{changes:?}");
    assert_eq!(changes.refused.len(), 1, "{changes:?}");
    (changes.refused[0].reason, &changes.refused[0].message)
}

fn priorities(changes: &Changes) -> Vec<u16> {
    changes.opens.iter().map(|rule| rule.priority).collect()
}

fn put(world: &mut Observed, rule: Rule) {
    apply(world, &Write::Put(rule)).unwrap();
}

#[test]
fn nothing_is_opened_by_a_name_that_is_not_ours_or_past_its_deadline() {
    let foreign = Grant { name: "web-allow".into(), ..one(0, open(60)) };
    let changes = planned(&nsg(&[]), vec![foreign]);
    assert_eq!(refusal(&changes).0, Reason::NotTrusted);
    let over = grant(0, "203.0.113.7/32", "10.0.0.4", "22", 0, open(60));
    let changes = planned(&nsg(&[]), vec![over]);
    assert_eq!((changes.closes.len(), changes.opens.len(), changes.refused.len()), (1, 0, 0));
}

#[test]
fn what_is_too_late_to_open_is_refused_where_it_does_not_stand() {
    let mut world = nsg(&[]);
    let late = one(0, open(-1));
    let changes = planned(&world, vec![late.clone()]);
    assert_eq!(refusal(&changes).0, Reason::OpenTimedOut);
    assert_eq!(planned(&world, vec![one(0, open(0))]).opens.len(), 1, "the last moment is in time");
    put(&mut world, grant_rule(&cluster(), &late, 300));
    let changes = planned(&world, vec![late]);
    assert_eq!((changes.closes.len(), changes.refused.len()), (1, 0), "its removal is under way");
}

#[test]
fn a_rule_that_the_cloud_failed_to_write_is_written_again_in_its_place_if_that_is_above_the_denies() {
    let asked = one(0, open(60));
    for (stands_at, written_at) in [(200, 200), (2000, 100)] {
        let mut world = nsg(&["all 999 Deny Any * > * : *"]);
        let failed = Rule { provisioning: Provisioning::Failed, ..grant_rule(&cluster(), &asked, stands_at) };
        put(&mut world, failed);
        let mut wanted = wanted(vec![], vec![asked.clone()]);
        wanted.honour_denies_below = 100;
        assert_eq!(priorities(&plan(&world, &wanted, &LIMITS, at(0))), [written_at]);
    }
}

#[test]
fn grants_may_fill_nine_tenths_of_the_rules_and_seven_eighths_of_the_addresses() {
    let opens = |standing: &[&str], rules: usize, addresses: usize| {
        let mut world = nsg(standing);
        (world.outbound_rules, world.outbound_addresses) = (rules, addresses);
        let changes = planned(&world, vec![one(0, open(60))]);
        changes.refused.first().map(|refused| refused.reason)
    };
    // One rule of two addresses.
    assert_eq!(opens(&[], 899, 3498), None);
    assert_eq!(opens(&[], 900, 0), Some(Reason::FirewallFull));
    assert_eq!(opens(&[], 0, 3499), Some(Reason::FirewallFull));
    // Beside those that let traffic out, one of five addresses; those that every firewall has count for nothing.
    let web = ["web 200 Allow TCP 10.1.0.0/16,10.2.0.0/16 > 10.0.0.7,10.0.0.8,10.0.0.9 : 443"];
    assert_eq!(opens(&web, 898, 3493), None);
    assert_eq!(opens(&web, 899, 0), Some(Reason::FirewallFull));
    assert_eq!(opens(&web, 0, 3494), Some(Reason::FirewallFull));
}

#[test]
fn a_firewall_holds_no_more_allows_of_grants_than_it_may() {
    let refused = |world: &Observed, grants: Vec<Grant>| {
        let lock = Lock { exempt: vec![peer("10.9.0.0/16")], ..lock(WEB, &[("10.0.0.4", "22")]) };
        let wanted = Wanted { max_allows: 2, ..wanted(vec![lock], grants) };
        let changes = plan(world, &wanted, &LIMITS, at(0));
        changes.refused.iter().map(|refused| refused.reason).collect::<Vec<_>>()
    };
    let mut world = nsg(&[]);
    let lock = Lock { exempt: vec![peer("10.9.0.0/16")], ..lock(WEB, &[("10.0.0.4", "22")]) };
    settle(&mut world, &wanted(vec![lock], vec![]), at(0));
    let asked = |n: u32| one(n, open(60));
    // Exemptions are none of grants', and those of one plan count together.
    assert_eq!(refused(&world, vec![asked(0), asked(1)]), []);
    assert_eq!(refused(&world, vec![asked(0), asked(1), asked(2)]), [Reason::LimitReached]);
    for n in 0..2 {
        put(&mut world, grant_rule(&cluster(), &asked(n), 200 + u16::try_from(n).unwrap()));
    }
    assert_eq!(refused(&world, vec![asked(0), asked(1)]), []);
    assert_eq!(refused(&world, vec![asked(0), asked(1), asked(2)]), [Reason::LimitReached]);
    // One in the place of another is not one more.
    let failed = Rule { provisioning: Provisioning::Failed, ..grant_rule(&cluster(), &asked(1), 201) };
    put(&mut world, failed);
    assert_eq!(refused(&world, vec![asked(0), asked(1)]), []);
    // A deny by the name of an allow lets nobody in.
    put(&mut world, Rule { access: Access::Deny, ..grant_rule(&cluster(), &asked(1), 201) });
    assert_eq!(refused(&world, vec![asked(0), asked(2)]), []);
}

#[test]
fn a_grant_that_is_no_one_cross_product_is_not_written() {
    let whole = || grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, open(60));
    let broken = [
        Grant { sources: vec![], ..whole() },
        Grant { destinations: vec![], ..whole() },
        Grant { ports: vec![], ..whole() },
        Grant { sources: vec![net("2001:db8::/64")], ..whole() },
        Grant { destinations: vec![ip("10.0.0.4"), ip("fd00::4")], ..whole() },
    ];
    for grant in broken {
        let changes = planned(&nsg(&[]), vec![grant.clone()]);
        assert_eq!(refusal(&changes).0, Reason::InvalidSpec, "{grant:?}");
    }
    let six = Grant { sources: vec![net("2001:db8::/64")], destinations: vec![ip("fd00::4")], ..whole() };
    assert_eq!(planned(&nsg(&[]), vec![six]).opens.len(), 1);
}

#[test]
fn nothing_is_opened_that_could_not_be_removed_again() {
    let world = Observed { lock: ResourceLock::ReadOnly, ..nsg(&[]) };
    assert_eq!(refusal(&planned(&world, vec![one(0, open(60))])).0, Reason::ScopeLocked);
    let world = Observed { lock: ResourceLock::CannotDelete, ..nsg(&[]) };
    assert_eq!(planned(&world, vec![one(0, open(60))]).opens.len(), 1, "it can become a deny");
}

#[test]
fn the_rule_that_leaves_no_number_is_named() {
    let world = nsg(&["other 200 Deny TCP * > 10.0.0.5 : 22", "stop 100 Deny Any 203.0.113.0/24 > * : *"]);
    let mut wanted = wanted(vec![], vec![one(7, open(60))]);
    wanted.honour_denies_below = 100;
    let changes = plan(&world, &wanted, &LIMITS, at(0));
    let (reason, message) = refusal(&changes);
    assert_eq!(reason, Reason::NoPriorityRoom);
    assert!(message.contains("rule stop at priority 100"), "{message}");
}

#[test]
fn of_the_rules_that_hold_up_a_deny_of_ours_the_first_that_lets_its_packets_in_is_named() {
    let rules = [
        "stop 101 Deny TCP * > * : 22",
        "web 102 Allow TCP * > 10.9.9.9 : 443",
        "ssh 103 Allow TCP * > * : 22",
        "rdp 104 Allow TCP * > * : *",
    ];
    let mut world = nsg(&rules);
    let mut deny = rule("x 100 Deny Any * > 10.0.0.4 : 22");
    deny.name = portcullis::plan::names::deny_name(&cluster(), WEB, 0);
    put(&mut world, deny);
    let mut wanted = wanted(vec![lock(WEB, &[("10.0.0.4", "22")])], vec![one(7, open(60))]);
    wanted.honour_denies_below = 100;
    let changes = plan(&world, &wanted, &LIMITS, at(0));
    let (reason, message) = refusal(&changes);
    assert_eq!(reason, Reason::NoPriorityRoom);
    assert!(message.contains("has to stand above rule ssh at priority 103"), "{message}");
}
