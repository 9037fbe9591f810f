//! Exemptions: for whom, above what, and when they come and go.

use super::*;

fn exempt(number: u32) -> String {
    names::exempt_name(&cluster(), WEB, number)
}

fn exempting(uid: &str, from: &[&str], machines: &[(&str, &str)]) -> Lock {
    Lock { exempt: from.iter().map(|text| peer(text)).collect(), ..lock(uid, machines) }
}

/// A firewall on which these locks stand.
fn settled(locks: &[Lock]) -> Observed {
    let mut world = nsg(&[]);
    settle(&mut world, &wanted(locks.to_vec(), vec![]), at(0));
    world
}

fn exemptions(world: &Observed) -> Vec<&Rule> {
    world.rules.iter().filter(|rule| rule.name.contains("-exempt-")).collect()
}

fn is_let_in(world: &Observed, source: &str, destination: &str) -> bool {
    passes(world, packet(source, destination, 22))
}

#[test]
fn denies_are_written_before_exemptions_and_exemptions_removed_before_denies() {
    let machines = [("10.0.0.4", "22")];
    let mut world = settled(&[web()]);
    let both = [exempting(WEB, &["10.9.0.0/16"], &machines), lock(OPS, &[("10.0.0.9", "22")])];
    let written = planned(&world, &wanted(both.to_vec(), vec![])).locks;
    assert_eq!(written.iter().map(|rule| rule.access).collect::<Vec<_>>(), [Access::Deny, Access::Allow]);
    settle(&mut world, &wanted(both.to_vec(), vec![]), at(0));
    let none = both.map(|lock| Lock { machines: vec![], keep_others: false, ..lock });
    let removed = planned(&world, &wanted(none.to_vec(), vec![])).unlocks;
    assert_eq!(removed, [exempt(0), names::deny_name(&cluster(), OPS, 0)]);
}

#[test]
fn each_family_is_exempted_by_a_rule_of_its_own() {
    let world = settled(&[exempting(WEB, &["10.9.0.0/16", "fd09::/16"], &[("10.0.0.4,fd00::4", "22")])]);
    assert_eq!(exemptions(&world).len(), 2);
    for (source, destination) in [("10.9.0.1", "10.0.0.4"), ("fd09::1", "fd00::4")] {
        assert!(is_let_in(&world, source, destination), "{source}");
    }
    for (source, destination) in [("10.8.0.1", "10.0.0.4"), ("fd08::1", "fd00::4")] {
        assert!(!is_let_in(&world, source, destination), "{source}");
    }
}

#[test]
fn two_locks_exempt_what_lies_in_both_of_theirs() {
    type Sources = &'static [&'static str];
    let cases: [(Sources, Sources, Sources, Sources); 8] = [
        // One's, the other's, who gets in, who does not.
        (&["*"], &["10.9.0.0/16"], &["10.9.0.1"], &["10.8.0.1"]),
        (&["10.9.0.0/16"], &["*"], &["10.9.0.1"], &["10.8.0.1"]),
        (&["10.9.0.0/16"], &["10.9.1.0/24"], &["10.9.1.1"], &["10.9.2.1"]),
        (&["10.9.1.0/24"], &["10.9.0.0/16"], &["10.9.1.1"], &["10.9.2.1"]),
        (&["10.9.0.0/16"], &["10.8.0.0/16"], &[], &["10.9.0.1", "10.8.0.1"]),
        (&["AzureLoadBalancer"], &["AzureLoadBalancer"], &["168.63.129.16"], &["10.9.0.1"]),
        (&["AzureLoadBalancer"], &["Internet"], &[], &["168.63.129.16", "203.0.113.7"]),
        (&["AzureLoadBalancer"], &["10.9.0.0/16"], &[], &["168.63.129.16", "10.9.0.1"]),
    ];
    for (ones, others, let_in, shut_out) in cases {
        let machines = [("10.0.0.4", "22")];
        let world = settled(&[exempting(WEB, ones, &machines), exempting(OPS, others, &machines)]);
        let passes = |source: &&&str| is_let_in(&world, source, "10.0.0.4");
        assert!(let_in.iter().all(|source| passes(&source)), "{ones:?} and {others:?}");
        assert!(!shut_out.iter().any(|source| passes(&source)), "{ones:?} and {others:?}");
    }
    // Tags are the same in any case.
    let machines = [("10.0.0.4", "22")];
    let tags = [
        exempting(WEB, &["AzureLoadBalancer"], &machines),
        exempting(OPS, &["azureloadbalancer"], &machines),
    ];
    assert!(is_let_in(&settled(&tags), "168.63.129.16", "10.0.0.4"));
}

#[test]
fn an_exemption_that_changes_is_written_in_its_place() {
    let machines = [("10.0.0.4", "22")];
    let mut world = settled(&[exempting(WEB, &["10.9.0.0/16"], &machines)]);
    settle(&mut world, &wanted(vec![exempting(WEB, &["10.8.0.0/16"], &machines)], vec![]), at(0));
    assert_eq!(exemptions(&world).iter().map(|rule| &rule.name).collect::<Vec<_>>(), [&exempt(0)]);
    assert!(is_let_in(&world, "10.8.0.1", "10.0.0.4") && !is_let_in(&world, "10.9.0.1", "10.0.0.4"));
    // One of another protocol, family or owner is another one.
    let other_protocol = exempting(WEB, &["10.8.0.0/16"], &[("10.0.0.4", "TCP/22")]);
    let other_family = exempting(WEB, &["fd09::/16"], &[("10.0.0.4,fd00::4", "22")]);
    let other_owner = exempting(OPS, &["10.7.0.0/16"], &[("10.0.0.4", "22")]);
    for next in [other_protocol, other_family, other_owner] {
        let mut world = world.clone();
        let leaving = Lock { machines: vec![], keep_others: false, ..web() };
        let locks = if next.policy_uid == WEB { vec![next] } else { vec![next, leaving] };
        let locks: Vec<Lock> = locks.into_iter().map(|lock| Lock { keep_others: false, ..lock }).collect();
        settle(&mut world, &wanted(locks.clone(), vec![]), at(0));
        let mut anew = nsg(&[]);
        settle(&mut anew, &wanted(locks, vec![]), at(0));
        let content = |world: &Observed| -> Vec<(Vec<Peer>, Vec<Peer>)> {
            exemptions(world).iter().map(|rule| (rule.sources.clone(), rule.destinations.clone())).collect()
        };
        assert_eq!(content(&world), content(&anew));
    }
}

#[test]
fn a_standing_exemption_goes_on_while_its_lock_grows() {
    let mut world = settled(&[exempting(WEB, &["10.9.0.0/16"], &[("10.0.0.4", "22")])]);
    let grown = exempting(WEB, &["10.9.0.0/16"], &[("10.0.0.4", "22"), ("10.0.0.5", "22")]);
    let wanted = wanted(vec![grown], vec![]);
    for _ in 0..4 {
        for write in writes(&planned(&world, &wanted), ResourceLock::None) {
            apply(&mut world, &write).unwrap();
            assert!(is_let_in(&world, "10.9.0.1", "10.0.0.4"), "{write:?}");
            assert!(!is_let_in(&world, "10.8.0.1", "10.0.0.4"), "{write:?}");
        }
    }
    assert!(planned(&world, &wanted).is_empty());
    assert!(is_let_in(&world, "10.9.0.1", "10.0.0.5"));
    assert_eq!(exemptions(&world).len(), 1);
}

#[test]
fn no_exemption_goes_above_a_deliberate_deny_of_somebody_else() {
    let asks = exempting(WEB, &["10.9.0.0/16"], &[("10.0.0.4", "22")]);
    // Our deny has to go above what lets in at 301, and the exemption above that.
    let stop = |priority: u16, from: &str| {
        let mut world = nsg(&[
            "ssh 301 Allow TCP * > * : 22",
            &format!("stop {priority} Deny Any {from} > 10.0.0.4 : *"),
        ]);
        let changes = settle(&mut world, &wanted(vec![asks.clone()], vec![]), at(0));
        (is_let_in(&world, "10.9.0.1", "10.0.0.4"), changes.refused)
    };
    let (passes, refused) = stop(500, "10.9.0.0/16");
    assert_eq!((passes, refused[0].reason), (false, Reason::ForeignDeny));
    assert!(refused[0].message.contains("stop") && refused[0].message.contains("500"), "{refused:?}");
    // What is not below the number is no deliberate deny; what denies others is in nobody's way; and what stands
    // above the exemption is obeyed without a word.
    assert_eq!(stop(1000, "10.9.0.0/16"), (true, vec![]));
    assert_eq!(stop(999, "10.9.0.0/16").1[0].reason, Reason::ForeignDeny);
    assert_eq!(stop(500, "10.8.0.0/16"), (true, vec![]));
    assert_eq!(stop(200, "10.9.0.0/16"), (false, vec![]));
}

#[test]
fn an_exemption_that_may_not_be_removed_becomes_a_deny_where_its_port_is_locked() {
    let mut world = settled(&[exempting(WEB, &["10.9.0.0/16"], &[("10.0.0.4", "22")])]);
    world.lock = ResourceLock::CannotDelete;
    let probe = packet("10.9.0.1", "10.0.0.4", 22);
    assert!(passes(&world, probe));
    let mut shut = world.clone();
    for write in writes(&planned(&shut, &wanted(vec![web()], vec![])), world.lock) {
        apply(&mut shut, &write).unwrap();
    }
    assert!(!passes(&shut, probe), "nobody is exempt any more");
    let written = shut.rule(&exempt(0)).unwrap();
    assert_eq!((written.access, written.priority), (Access::Deny, 4096));
    // Where nothing is locked any more it stays as it is, and that is said.
    let going = wanted(vec![Lock { machines: vec![], keep_others: false, ..web() }], vec![]);
    let changes = planned(&world, &going);
    assert!(changes.is_empty());
    assert!(changes.refused.iter().any(|refused| refused.message.contains(&exempt(0))), "{changes:?}");
    // And without such a lock it simply goes.
    world.lock = ResourceLock::None;
    assert_eq!(planned(&world, &wanted(vec![web()], vec![])).unlocks, [exempt(0)]);
}

#[test]
fn an_exemption_of_a_policy_that_is_gone_stays_only_over_denies_that_stay() {
    let world = settled(&[exempting(WEB, &["10.9.0.0/16"], &[("10.0.0.4,10.0.0.5", "22")])]);
    let left = |change: &dyn Fn(&mut Rule), locks: Vec<Lock>| {
        let mut world = world.clone();
        let mut rule = world.rule(&exempt(0)).unwrap().clone();
        change(&mut rule);
        put(&mut world, rule);
        settle(&mut world, &wanted(locks, vec![]), at(0));
        world.rule(&exempt(0)).is_some()
    };
    assert!(left(&|_| {}, vec![]));
    assert!(left(&|_| {}, vec![lock(OPS, &[("10.0.0.6", "22")])]), "another machine is no matter");
    assert!(!left(&|_| {}, vec![lock(OPS, &[("10.0.0.4", "22")])]));
    assert!(!left(&|rule| rule.destinations.push(peer("10.0.0.6")), vec![]), "nothing is locked there");
    assert!(!left(&|rule| rule.destinations = vec![Peer::Any], vec![]));
    assert!(!left(&|rule| rule.access = Access::Deny, vec![]), "it exempts nobody");
    assert!(
        !left(&|_| {}, vec![Lock { machines: vec![], keep_others: false, ..web() }]),
        "the policy is here"
    );
}

/// While its lock grows an exemption waits for the new deny: what stands goes on if it lets in no more than that.
#[test]
fn what_an_exemption_no_longer_lets_in_is_shut_out_at_once() {
    let small = [("10.0.0.4", "22")];
    let grown = [("10.0.0.4", "22"), ("10.0.0.5", "22")];
    for (stands, waits, goes_on) in [
        (&["10.9.0.0/16"][..], &["10.9.0.0/16"][..], true),
        (&["10.9.1.0/24"], &["10.9.0.0/16"], true),
        (&["10.9.0.0/16"], &["10.9.1.0/24"], false),
        (&["10.9.0.0/16"], &["10.8.0.0/16"], false),
        (&["AzureLoadBalancer"], &["AzureLoadBalancer"], true),
        (&["AzureLoadBalancer"], &["Internet"], false),
        (&["AzureLoadBalancer"], &["10.9.0.0/16"], false),
        (&["10.9.0.0/16"], &["AzureLoadBalancer"], false),
    ] {
        let mut world = settled(&[exempting(WEB, stands, &small)]);
        let wanted = wanted(vec![exempting(WEB, waits, &grown)], vec![]);
        let first = planned(&world, &wanted);
        let leaves = first.unlocks.contains(&exempt(0));
        let changes = first.locks.iter().any(|rule| rule.name == exempt(0));
        assert_eq!(!leaves && !changes, goes_on, "{stands:?} for {waits:?}: {first:?}");
        settle(&mut world, &wanted, at(0));
    }
    // For a machine less, it is less.
    let world = settled(&[exempting(WEB, &["10.9.0.0/16"], &[("10.0.0.4,10.0.0.5", "22")])]);
    let other =
        Lock { keep_others: false, ..exempting(WEB, &["10.9.0.0/16"], &[("10.0.0.4,10.0.0.6", "22")]) };
    let first = planned(&world, &wanted(vec![other], vec![]));
    assert!(first.unlocks.contains(&exempt(0)) || first.locks.iter().any(|rule| rule.name == exempt(0)));
}
