//! Behind a firewall that leads packets on: whose packets get in, who stops them, and what is said where it is not known.

use portcullis::api::values::{PortRange, Protocol};
use portcullis::plan::exposure::admin_rules_were_read;
use portcullis::plan::model::{
    DnatRule, FirewallHop, Hop, NetworkRule, Route, RuleProtocol, Translating, Translation,
};

use super::*;

const PUBLIC: &str = "198.51.100.40";

fn hub() -> FirewallId {
    FirewallId(ArmId::parse(&format!("{GROUP}/providers/Microsoft.Network/azureFirewalls/hub")).unwrap())
}

/// A grant whose packets the firewall leads on to port 22.
fn led(deadline: i64) -> Grant {
    let from = Translation { address: ip(PUBLIC), port: 50_022 };
    Grant { translation: Some(from), ..grant(0, "203.0.113.7/32", "10.0.0.4", "22", deadline, Duty::Hold) }
}

fn onward(protocol: Protocol, to: (&str, &str), part_of: Option<&str>) -> DnatRule {
    DnatRule {
        rule: Rule {
            name: "theirs/nat".into(),
            sources: vec![peer("203.0.113.7/32")],
            destinations: vec![peer(PUBLIC)],
            ports: vec![PortRange::single(50_022)],
            protocol: RuleProtocol::Transport(protocol),
            ..rule("x 200 Allow TCP * > * : 1")
        },
        to: Some((ip(to.0), port(to.1))),
        part_of: part_of.map(Into::into),
    }
}

fn filter(text: &str, part_of: Option<&str>) -> NetworkRule {
    NetworkRule { rule: rule(text), comes_first: true, part_of: part_of.map(Into::into) }
}

/// A machine behind the firewall, and behind a group whose deny is in force.
fn behind(translations: Vec<DnatRule>, filters: Vec<NetworkRule>) -> World {
    let mut world = World::locked(&[("a", &[])]);
    let observed = Observed {
        firewall: hub(),
        rules: vec![],
        translating: Some(Translating { translations, filters, ..Translating::default() }),
        ..nsg(&[])
    };
    world.firewalls.insert(hub(), Arc::new(observed));
    world.machine.nics[0].addresses[0].hops = vec![Hop::Firewall(FirewallHop {
        id: hub(),
        address: ip("10.2.1.4"),
        policies: vec![],
        publics: vec![ip(PUBLIC)],
        subnets: vec![net("10.2.1.0/26")],
        routes: vec![Route { to: net("0.0.0.0/0"), by_it: true }],
    })];
    world
}

fn hop(world: &mut World) -> &mut FirewallHop {
    let Hop::Firewall(hop) = &mut world.machine.nics[0].addresses[0].hops[0] else { panic!() };
    hop
}

/// The same with an allow in the group for what comes from the firewall's subnet.
fn let_in_from_the_subnet(mut world: World) -> World {
    let allow = rule("hub 100 Allow TCP 10.2.1.0/26 > 10.0.0.4 : 22");
    world.grants.push(grant(1, "10.2.1.0/26", "10.0.0.4", "22", 3600, Duty::Hold));
    apply(world.change("a"), &Write::Put(allow)).unwrap();
    world
}

fn is_shadowed(world: &World) -> bool {
    match world.lockdown() {
        Lockdown::Effective => false,
        Lockdown::Shadowed { by } => {
            assert!(by.iter().any(|by| by.firewall == Some(hub())), "{by:?}");
            true
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_others_lead_to_a_locked_port_is_a_hole_where_the_group_lets_the_subnet_in() {
    for (protocol, to, hole) in [
        (Protocol::Tcp, ("10.0.0.4", "22"), true),
        (Protocol::Any, ("10.0.0.4", "22"), true),
        (Protocol::Udp, ("10.0.0.4", "22"), false),
        (Protocol::Tcp, ("10.0.0.4", "23"), false),
        (Protocol::Tcp, ("10.0.0.5", "22"), false),
    ] {
        let world = behind(vec![onward(protocol, to, None)], vec![]);
        assert!(!is_shadowed(&world), "the group keeps the firewall's subnet out");
        assert_eq!(is_shadowed(&let_in_from_the_subnet(world)), hole, "{protocol:?} {to:?}");
    }
}

/// One that is being removed since its deadline is given the time of a write.
#[test]
fn what_a_live_grant_leads_on_is_no_hole_until_a_write_after_its_deadline() {
    let at_deadline = |deadline: i64, name: Option<&str>| {
        let grant = led(deadline);
        let name = name.map_or_else(|| grant.name.to_uppercase(), Into::into);
        let mut world = let_in_from_the_subnet(behind(
            vec![onward(Protocol::Tcp, ("10.0.0.4", "22"), Some(&name))],
            vec![],
        ));
        world.grants.push(grant);
        is_shadowed(&world)
    };
    assert!(!at_deadline(3600, None) && !at_deadline(0, None) && !at_deadline(-299, None));
    assert!(at_deadline(-300, None));
    assert!(at_deadline(3600, Some("portcullis-other")), "it is another's");
}

/// Where the subnets of the firewall are not known, nobody says that a group keeps them out.
#[test]
fn what_is_led_on_is_a_hole_too_where_it_goes_past_the_group() {
    let led_on = || behind(vec![onward(Protocol::Tcp, ("10.0.0.4", "22"), None)], vec![]);
    let bypass = |sources: &str, destination: &str| {
        let mut world = led_on();
        let text = format!("in 100 Allow TCP {sources} > {destination} : 22");
        let first = admin(&text, AdminAction::AlwaysAllow);
        world.machine.nics[0].addresses[0].network.admin_rules = Some(vec![first]);
        // What is let in for all to see is no grant's: only the firewall is of interest here.
        world.grants.push(grant(1, sources, "10.0.0.4", "22", 3600, Duty::Hold));
        is_shadowed(&world)
    };
    assert!(bypass("10.2.1.0/26", "10.0.0.4"));
    assert!(!bypass("10.2.2.0/26", "10.0.0.4") && !bypass("10.2.1.0/26", "10.0.0.5"));
    let mut world = led_on();
    hop(&mut world).subnets.clear();
    assert!(is_shadowed(&world));
}

/// A machine that nothing but the firewall stands before, with these of its rules.
fn bare(filters: Vec<NetworkRule>) -> World {
    let mut world = behind(vec![], filters);
    world.machine.nics[0].addresses[0].path.clear();
    world.lock = lock(WEB, &[("10.0.0.4", "TCP/20-30")]);
    world
}

#[test]
fn who_a_firewall_lets_through_as_he_is_gets_in_where_nothing_else_stands_there() {
    let deny = "stop 100 Deny TCP * > 10.0.0.4 : 20-30";
    for (rules, hole) in [
        (vec![], false),
        (vec!["in 200 Allow TCP 198.51.100.0/24 > 10.0.0.4 : 22"], true),
        (vec!["in 200 Allow Any * > * : *"], true),
        (vec!["in 200 Allow UDP 198.51.100.0/24 > 10.0.0.4 : 22"], false),
        (vec!["in 200 Allow TCP 198.51.100.0/24 > 10.0.0.4 : 31"], false),
        (vec!["in 200 Allow TCP 198.51.100.0/24 > 10.0.0.5 : 22"], false),
        (vec![deny, "in 200 Allow TCP * > * : *"], false),
        (vec!["in 100 Allow TCP * > * : *", "stop 200 Deny TCP * > 10.0.0.4 : 20-30"], true),
        (vec!["stop 100 Deny TCP * > 10.0.0.4 : 22", "in 200 Allow TCP * > * : *"], true),
        (vec!["stop 100 Deny TCP * > 10.0.0.5 : 20-30", "in 200 Allow TCP * > * : *"], true),
        (vec!["stop 100 Deny UDP * > 10.0.0.4 : 20-30", "in 200 Allow TCP * > * : *"], true),
        (vec!["stop 100 Deny TCP * > Somewhere : 20-30", "in 200 Allow TCP * > * : *"], true),
        (vec!["stop 100 Deny TCP 10.0.0.0/8 > * : *", "in 200 Allow TCP * > * : *"], true),
        (vec!["stop 100 Deny TCP 10.0.0.0/8 > * : *", "in 200 Allow TCP 10.9.0.0/16 > * : *"], false),
    ] {
        let filters = rules.iter().map(|text| filter(text, None)).collect();
        assert_eq!(is_shadowed(&bare(filters)), hole, "{rules:?}");
    }
    // Nobody is let through where a group keeps him out.
    let open = || filter("in 200 Allow TCP * > 10.0.0.4 : 22", None);
    assert!(is_shadowed(&bare(vec![open()])) && !is_shadowed(&behind(vec![], vec![open()])));
}

#[test]
fn who_is_exempt_or_has_a_grant_is_let_through_and_that_is_no_hole() {
    let name = led(3600).name;
    let from = |source: &str, part_of: Option<&str>, deadline: i64| {
        let mut world = bare(vec![filter(&format!("in 200 Allow TCP {source} > 10.0.0.4 : 22"), part_of)]);
        world.grants.push(Grant { name: name.clone(), ..led(deadline) });
        world.lock.exempt = vec![peer("192.0.2.0/24")];
        is_shadowed(&world)
    };
    assert!(!from("203.0.113.7", Some(&name), 3600) && !from("203.0.113.7", Some(&name), -299));
    assert!(from("203.0.113.7", Some(&name), -300), "it is over");
    assert!(from("203.0.113.0/24", Some(&name), 3600), "more than was granted");
    assert!(from("203.0.113.7", Some("portcullis-other"), 3600) && from("203.0.113.7", None, 3600));
    assert!(!from("192.0.2.5", None, 3600) && from("192.0.0.0/16", None, 3600));
}

/// Whoever is on the internet comes by the widest of routes, and there by the firewall or not.
#[test]
fn a_firewall_locks_alone_only_what_it_stands_before() {
    let lockdown = |routes: &[(&str, bool)], has_public: bool| {
        let mut world = bare(vec![]);
        let routes = routes.iter().map(|(to, by_it)| Route { to: net(to), by_it: *by_it });
        hop(&mut world).routes = routes.collect();
        world.machine.nics[0].addresses[0].has_public = has_public;
        world.lockdown()
    };
    let open = Lockdown::Missing { on: vec![] };
    assert_eq!(lockdown(&[("0.0.0.0/0", true)], false), Lockdown::Effective);
    assert_eq!(lockdown(&[("0.0.0.0/0", true)], true), open);
    assert_eq!(lockdown(&[("0.0.0.0/0", false), ("10.0.0.0/8", true)], false), open);
    assert_eq!(lockdown(&[("0.0.0.0/1", true), ("128.0.0.0/1", true)], false), open);
    assert_eq!(lockdown(&[], false), open);
}

#[test]
fn what_was_not_read_of_the_firewall_is_said() {
    let world = || let_in_from_the_subnet(behind(vec![], vec![]));
    assert_eq!(world().lockdown(), Lockdown::Effective);
    let why = |change: &dyn Fn(&mut World)| {
        let mut world = world();
        change(&mut world);
        match world.lockdown() {
            Lockdown::Unknown { why } => why,
            other => panic!("{other:?}"),
        }
    };
    let change_hub = |change: fn(&mut Observed)| {
        move |world: &mut World| change(Arc::make_mut(world.firewalls.get_mut(&hub()).unwrap()))
    };
    assert_eq!(why(&|world| drop(world.firewalls.remove(&hub()))), "hub has not been read");
    let failed = change_hub(|hub| hub.provisioning = Provisioning::Failed);
    assert_eq!(why(&failed), "hub failed to be written");
    let partly = change_hub(|hub| {
        hub.translating.as_mut().unwrap().unread = Some("a parent policy may not be read".into());
    });
    assert_eq!(why(&partly), "a parent policy may not be read");
    // A group that is being written, and one with a rule that is.
    for (provisioning, why) in
        [(Provisioning::Updating, "a is being written"), (Provisioning::Failed, "a failed to be written")]
    {
        let mut world = World::locked(&[("a", &[])]);
        world.change("a").provisioning = provisioning;
        assert_eq!(world.lockdown(), Lockdown::Unknown { why: why.into() });
    }
    let mut world = World::locked(&[("a", &[])]);
    for rule in &mut world.change("a").rules {
        if rule.name.contains("-deny-") {
            rule.provisioning = Provisioning::Updating;
        }
    }
    match world.lockdown() {
        Lockdown::Unknown { why } => {
            assert!(why.starts_with("rule portcullis-") && why.ends_with(" of a is being written"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deny_before_all_others_stops_what_is_led_on() {
    let stopped = |text: &str, first: bool| {
        let filter = NetworkRule { comes_first: first, ..filter(text, None) };
        let world = behind(vec![], vec![filter]);
        stopped_by(&world.firewalls[&hub()], &cluster(), &led(3600)).map(|by| by.to_string())
    };
    let stop = Some("rule stop of hub".to_owned());
    assert_eq!(stopped("stop 200 Deny TCP 203.0.113.0/24 > 10.0.0.4 : 22", true), stop);
    assert_eq!(stopped("stop 200 Deny Any * > * : *", true), stop);
    assert_eq!(stopped("stop 200 Deny TCP 203.0.113.0/24 > 10.0.0.4 : 22", false), None, "it comes later");
    assert_eq!(stopped("stop 200 Allow TCP 203.0.113.0/24 > 10.0.0.4 : 22", true), None);
    assert_eq!(stopped("stop 200 Deny UDP 203.0.113.0/24 > 10.0.0.4 : 22", true), None);
    assert_eq!(stopped("stop 200 Deny TCP 198.51.100.0/24 > 10.0.0.4 : 22", true), None);
    assert_eq!(stopped("stop 200 Deny TCP 203.0.113.0/24 > 10.0.0.5 : 22", true), None);
    // What it may match nobody knows, so nobody says that it stops anything.
    let mut unread = filter("stop 200 Deny TCP * > * : 22", None);
    unread.rule.sources = vec![Peer::Unknown("?".into())];
    let world = behind(vec![], vec![unread]);
    assert_eq!(stopped_by(&world.firewalls[&hub()], &cluster(), &led(3600)), None);
}

#[test]
fn a_rule_is_named_with_where_it_stands() {
    assert_eq!(by("a", "ssh").to_string(), "rule ssh of a");
    assert_eq!(Decider { firewall: None, rule: "ssh".into() }.to_string(), "security admin rule ssh");
}

#[test]
fn the_rules_before_all_firewalls_were_read_where_they_were_for_every_address() {
    let mut machine = machine(&["a"], &[], vec![]);
    assert!(admin_rules_were_read(&machine));
    let mut second = machine.nics[0].addresses[0].clone();
    second.network.admin_rules = None;
    machine.nics[0].addresses.push(second);
    assert!(!admin_rules_were_read(&machine));
}

#[test]
fn every_firewall_on_the_way_is_there_once() {
    let mut world = behind(vec![], vec![]);
    let again = world.machine.nics[0].addresses[0].clone();
    world.machine.nics[0].addresses.push(again);
    assert_eq!(world.machine.hops().len(), 1);
    assert_eq!(world.machine.translating_firewalls(), [hub()]);
    assert_eq!(world.machine.firewalls(), [firewall("a")]);
    // Of two routes as long, one that is not by way of it counts: answers would go another way.
    let hop = hop(&mut world);
    assert!(hop.carries(net("203.0.113.7/32")));
    hop.routes.push(Route { to: net("0.0.0.0/0"), by_it: false });
    assert!(!hop.carries(net("203.0.113.7/32")));
    hop.routes.push(Route { to: net("203.0.113.0/24"), by_it: true });
    assert!(hop.carries(net("203.0.113.7/32")) && !hop.carries(net("203.0.112.0/23")));
}
