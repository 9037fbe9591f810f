//! Firewalls that lead packets on: what is written of others, and who gets in, whatever is there and whatever is done.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use portcullis::api::Reason;
use portcullis::api::values::{PortRange, Protocol};
use portcullis::plan::changes::plan;
use portcullis::plan::desired::{Close, Duty, Grant, Limits};
use portcullis::plan::exposure::{Enforced, Lockdown, Locked, Way, lockdown};
use portcullis::plan::model::{
    Access, DnatRule, NetworkRule, Peer, Rule, RuleProtocol, Translating, Translation, Unsupported,
};
use portcullis::providers::Change;
use portcullis::providers::memory::Memory;
use portcullis::providers::memory::packet::Packet;
use proptest::prelude::*;

use crate::plan_world::{at, cluster, grant, open, wanted};
use crate::provider_conformance::{firewall as group, net, rule};
use crate::provider_firewall::{behind, memory_firewall};

const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 40));
const MACHINE: &str = "10.0.0.4";
const SOURCES: [&str; 4] = ["203.0.113.7/32", "203.0.113.0/24", "198.51.100.7/32", "192.0.2.0/25"];
const LIMITS: Limits = Limits { rules: 10_000, addresses: 250 };

fn led(n: u32, source: &str, port: u16, deadline: i64) -> Grant {
    let from = Translation { address: PUBLIC, port };
    Grant { translation: Some(from), ..grant(n, source, MACHINE, "22", deadline, open(1000)) }
}

fn peer_of(source: &str) -> Peer {
    if source == "*" { Peer::Any } else { net(source) }
}

/// A rule of somebody else that leads a port on to a machine.
fn theirs() -> impl Strategy<Value = DnatRule> {
    (
        prop::sample::select(vec!["*", "203.0.113.0/24", "192.0.2.0/24"]),
        50_000..50_006u16,
        prop::sample::select(vec![Some((MACHINE, 22)), Some((MACHINE, 80)), Some(("10.0.0.5", 22)), None]),
    )
        .prop_map(|(source, port, to)| DnatRule {
            rule: Rule {
                sources: vec![peer_of(source)],
                destinations: vec![Peer::host(PUBLIC)],
                ports: vec![PortRange::single(port)],
                ..rule("theirs/nat", 200)
            },
            to: to.map(|(ip, port)| (ip.parse().unwrap(), PortRange::single(port))),
            part_of: None,
        })
}

fn filter() -> impl Strategy<Value = NetworkRule> {
    (any::<bool>(), prop::sample::select(vec!["*", "203.0.113.0/24"]), any::<bool>(), 100..3000u16).prop_map(
        |(deny, source, comes_first, priority)| NetworkRule {
            rule: Rule {
                access: if deny { Access::Deny } else { Access::Allow },
                sources: vec![peer_of(source)],
                protocol: RuleProtocol::Transport(Protocol::Any),
                destinations: vec![net("10.0.0.0/16")],
                ports: vec![PortRange::ALL],
                ..rule("theirs/net", priority)
            },
            comes_first,
            part_of: None,
        },
    )
}

/// What a gate does once: closes, then opens, each in one write.
async fn run(memory: &Memory, grants: &[Grant], now: i64) {
    let firewall = memory_firewall();
    let observed = memory.cloud().firewall.observe(&firewall).await.unwrap();
    let changes = plan(&observed, &wanted(vec![], grants.to_vec()), &LIMITS, at(now));
    assert!(changes.locks.is_empty() && changes.unlocks.is_empty(), "nothing is locked there: {changes:?}");
    assert!(changes.closes.iter().all(|close: &Close| close.as_deny.is_none()));
    let patience = std::time::Duration::from_secs(60);
    let closes: Vec<Change> = changes.closes.iter().map(|close| Change::Remove(close.name.clone())).collect();
    let opens: Vec<Change> = changes.opens.iter().cloned().map(Change::Put).collect();
    for write in [closes, opens].into_iter().filter(|write| !write.is_empty()) {
        memory.cloud().firewall.write(&firewall, &write, patience).await.unwrap();
    }
}

fn packets() -> impl Iterator<Item = Packet> {
    let sources = ["203.0.113.7", "203.0.113.8", "198.51.100.7", "192.0.2.9", "192.0.2.200", "8.8.8.8"];
    sources.into_iter().flat_map(|source| {
        (50_000..50_006).map(move |port| Packet {
            source: source.parse().unwrap(),
            destination: PUBLIC,
            port,
            protocol: Protocol::Tcp,
        })
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases.max(300), ..ProptestConfig::default() })]

    /// No packet passes firewall and group together but those of live grants, unless a rule of somebody else is why, and
    /// then the lock says so by its name. In both readings of a network rule that denies.
    #[test]
    fn nobody_passes_firewall_and_group_but_live_grants_unless_it_is_said(
        translations in prop::collection::vec(theirs(), 0..3),
        filters in prop::collection::vec(filter(), 0..3),
        asked in prop::collection::vec((prop::sample::select(SOURCES.to_vec()), 50_000..50_006u16, 400..2000i64), 0..4),
        ended in prop::collection::vec(any::<bool>(), 4),
        later in 0..2500i64,
        filtered in any::<bool>(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(async move {
            let memory = Memory::new(portcullis::clock::Clock::manual(at(0)));
            let firewall = memory_firewall();
            memory.edit_others(&firewall, |others| {
                others.translations = translations;
                others.filters = filters;
            });
            let machine = behind(if filtered { vec![group()] } else { Vec::new() });
            memory.set_machine(machine.clone());
            let mut grants: Vec<Grant> = (0..)
                .zip(&asked)
                .map(|(n, (source, port, deadline))| led(n, source, *port, *deadline))
                .collect();
            run(&memory, &grants, 0).await;
            for (grant, ended) in grants.iter_mut().zip(&ended) {
                if *ended {
                    grant.duty = Duty::Close { sent: false };
                }
            }
            run(&memory, &grants, later).await;
            let live = |grant: &&Grant| at(later) < grant.deadline && !matches!(grant.duty, Duty::Close { .. });
            // Behind it, the group is locked, and lets the firewall's subnet in while a grant is live.
            memory.edit_rules(&group(), |rules| {
                rules.push(Rule { access: Access::Deny, sources: vec![Peer::Any], ..rule("portcullis-9f86d081-deny-aaaaaaaabbbb-0", 200) });
                if grants.iter().any(|grant| live(&grant)) {
                    rules.push(Rule { sources: vec![net("10.0.250.0/26")], ..rule("allow", 150) });
                }
            });
            let mut read = BTreeMap::new();
            for id in [firewall.clone(), group()] {
                read.insert(id.clone(), Arc::new(memory.cloud().firewall.observe(&id).await.unwrap()));
            }
            let of_group = grants.iter().filter(live).map(|own| Grant {
                sources: vec!["10.0.250.0/26".parse().unwrap()],
                translation: None,
                ..own.clone()
            });
            let known: Vec<Grant> = grants.iter().filter(live).cloned().chain(of_group).collect();
            let ports = [(Protocol::Any, PortRange::single(22))];
            let verdict = lockdown(
                Way { machine: &machine, firewalls: &read, cluster: &cluster() },
                Locked {
                    ports: &ports,
                    existing: portcullis::api::ExistingRules::Override,
                    exempt: &[],
                    grants: &known,
                    via: Enforced { groups: true, firewalls: true },
                },
                at(later),
            );
            for deny_stops in [false, true] {
                for packet in packets() {
                    let led = memory.led_on(&firewall, packet, deny_stops);
                    let to_lock = led.is_some_and(|led| led.port == 22 && led.destination.to_string() == MACHINE);
                    if !to_lock || !memory.reaches_through(&firewall, packet, deny_stops) {
                        continue;
                    }
                    let granted = grants.iter().filter(live).any(|grant| {
                        grant.sources.iter().any(|net| net.contains(&packet.source))
                            && grant.translation.is_some_and(|from| from.port == packet.port)
                    });
                    let said = matches!(&verdict, Lockdown::Shadowed { by } if by.iter().any(|by| by.rule == "theirs/nat"));
                    assert!(granted || said, "{packet:?} passes, and the lock is {verdict:?}");
                }
            }
            // What of grants stands, and nothing else of our form, and of others all.
            let after = &read[&firewall];
            for rule in &after.rules {
                assert!(grants.iter().filter(live).any(|grant| grant.name == rule.name), "{rule:?}");
            }
        });
    }
}

/// What of others keeps a rule of ours from being written, and what does not.
#[tokio::test]
async fn what_would_not_get_through_or_is_somebody_elses_is_not_written() {
    let leads = |port: u16| DnatRule {
        rule: Rule {
            sources: vec![Peer::Any],
            destinations: vec![Peer::host(PUBLIC)],
            ports: vec![PortRange::single(port)],
            ..rule("theirs/nat", 200)
        },
        to: Some(("10.0.0.9".parse().unwrap(), PortRange::single(80))),
        part_of: None,
    };
    let filter = |access, comes_first, priority, destination: &str| NetworkRule {
        rule: Rule {
            access,
            sources: vec![Peer::Any],
            destinations: vec![net(destination)],
            ports: vec![PortRange::ALL],
            ..rule("theirs/net", priority)
        },
        comes_first,
        part_of: None,
    };
    let unfit = Unsupported { reason: Reason::FirewallUnfit, message: "it has no public address".into() };
    type Case = (&'static str, Translating, Option<(Reason, &'static str)>);
    let of = |translations, filters| Translating { translations, filters, ..Translating::default() };
    let cases: Vec<Case> = vec![
        ("nothing", of(vec![], vec![]), None),
        ("the port", of(vec![leads(50_001)], vec![]), Some((Reason::FirewallUnfit, "theirs/nat"))),
        ("another port", of(vec![leads(50_002)], vec![]), None),
        (
            "a deny before ours",
            of(vec![], vec![filter(Access::Deny, true, 5000, "10.0.0.0/16")]),
            Some((Reason::ForeignDeny, "theirs/net at priority 5000")),
        ),
        (
            "a deliberate deny",
            of(vec![], vec![filter(Access::Deny, false, 999, "10.0.0.0/16")]),
            Some((Reason::ForeignDeny, "below 1000")),
        ),
        ("a deny after ours", of(vec![], vec![filter(Access::Deny, false, 1000, "10.0.0.0/16")]), None),
        ("a deny of others", of(vec![], vec![filter(Access::Deny, true, 100, "10.7.0.0/16")]), None),
        ("an allow", of(vec![], vec![filter(Access::Allow, true, 100, "10.0.0.0/16")]), None),
        (
            "an unfit one",
            Translating { unfit: Some(unfit), ..Translating::default() },
            Some((Reason::FirewallUnfit, "no public address")),
        ),
    ];
    for (what, standing, refused) in cases {
        let memory = Memory::new(portcullis::clock::Clock::manual(at(0)));
        memory.edit_others(&memory_firewall(), |others| *others = standing);
        let observed = memory.cloud().firewall.observe(&memory_firewall()).await.unwrap();
        let grants = vec![led(0, SOURCES[0], 50_001, 2000)];
        let changes = plan(&observed, &wanted(vec![], grants), &LIMITS, at(0));
        let found = changes.refused.first().map(|refused| (refused.reason, refused.message.clone()));
        match (refused, found) {
            (None, None) => assert_eq!(changes.opens.len(), 1, "{what}"),
            (Some((reason, words)), Some((found, message))) => {
                assert!(reason == found && message.contains(words), "{what}: {found:?} {message}");
                assert!(changes.opens.is_empty(), "{what}");
            }
            (wanted, found) => panic!("{what}: {wanted:?} {found:?}"),
        }
    }
    // As many as it can hold: public addresses and those that they lead to.
    let memory = Memory::new(portcullis::clock::Clock::manual(at(0)));
    memory.edit_others(&memory_firewall(), |others| others.translations = vec![leads(50_002)]);
    let observed = memory.cloud().firewall.observe(&memory_firewall()).await.unwrap();
    for (addresses, fits) in [(2, false), (3, true)] {
        let limits = Limits { addresses, ..LIMITS };
        let changes =
            plan(&observed, &wanted(vec![], vec![led(0, SOURCES[0], 50_001, 2000)]), &limits, at(0));
        assert_eq!(changes.opens.len() == 1, fits, "{:?}", changes.refused);
    }
    for (what, grant) in [
        (
            "everybody",
            Grant { sources: vec!["0.0.0.0/0".parse().unwrap()], ..led(0, SOURCES[0], 50_001, 2000) },
        ),
        (
            "two machines",
            Grant {
                destinations: vec![MACHINE.parse().unwrap(), "10.0.0.5".parse().unwrap()],
                ..led(0, SOURCES[0], 50_001, 2000)
            },
        ),
    ] {
        let changes = plan(&observed, &wanted(vec![], vec![grant]), &LIMITS, at(0));
        assert!(changes.opens.is_empty() && changes.refused[0].reason == Reason::InvalidSpec, "{what}");
    }
}

/// Where nothing but the firewall stands before a machine, what it lets through is let in.
#[tokio::test]
async fn with_no_group_behind_it_an_allow_of_somebody_else_is_named() {
    let filter = |access, source: &str, destination: &str| NetworkRule {
        rule: Rule {
            access,
            sources: vec![peer_of(source)],
            destinations: vec![net(destination)],
            ports: vec![PortRange::ALL],
            ..rule("theirs/net", 200)
        },
        comes_first: true,
        part_of: None,
    };
    let (allow, deny) = (Access::Allow, Access::Deny);
    for (filters, has_public, filtered, wanted) in [
        (vec![], false, false, true),
        (vec![filter(allow, "10.9.0.0/16", "10.0.0.0/16")], false, false, false),
        (
            vec![filter(deny, "*", "10.0.0.0/16"), filter(allow, "10.9.0.0/16", "10.0.0.0/16")],
            false,
            false,
            true,
        ),
        (vec![filter(allow, "10.9.0.0/16", "10.7.0.0/16")], false, false, true),
        // A public address leads past the firewall, whether or not it could be read.
        (vec![], true, false, false),
        // Behind a group it is the group that lets nobody in.
        (vec![filter(allow, "10.9.0.0/16", "10.0.0.0/16")], false, true, true),
    ] {
        let memory = Memory::new(portcullis::clock::Clock::manual(at(0)));
        let what = format!("{filters:?} {has_public} {filtered}");
        memory.edit_others(&memory_firewall(), |others| others.filters = filters);
        memory.edit_rules(&group(), |rules| {
            let deny = rule("portcullis-9f86d081-deny-aaaaaaaabbbb-0", 200);
            rules.push(Rule { access: Access::Deny, sources: vec![Peer::Any], ..deny });
        });
        let mut machine = behind(if filtered { vec![group()] } else { Vec::new() });
        machine.nics[0].addresses[0].has_public = has_public;
        let mut read = BTreeMap::new();
        for id in [memory_firewall(), group()] {
            read.insert(id.clone(), Arc::new(memory.cloud().firewall.observe(&id).await.unwrap()));
        }
        let ports = [(Protocol::Tcp, PortRange::single(22))];
        let verdict = lockdown(
            Way { machine: &machine, firewalls: &read, cluster: &cluster() },
            Locked {
                ports: &ports,
                existing: portcullis::api::ExistingRules::Override,
                exempt: &[],
                grants: &[],
                via: Enforced { groups: true, firewalls: true },
            },
            at(0),
        );
        assert_eq!(verdict == Lockdown::Effective, wanted, "{what}: {verdict:?}");
        if let Lockdown::Shadowed { by } = verdict {
            assert_eq!(by[0].rule, "theirs/net");
        }
    }
}
