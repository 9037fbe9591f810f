//! The laws of the cloud side, over generated histories: policies come and go, grants open and run out, others
//! write, rename, copy and erase rules, writes fail and the controller stops between any two of them.
//!
//! The judge is the evaluator of packets in `plan_world`, asked about every packet of a small universe.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::LazyLock;

use jiff::Timestamp;
use portcullis::api::{ExistingRules, Reason};
use portcullis::plan::changes::plan;
use portcullis::plan::desired::{Changes, Duty, Lock, Wanted};
use portcullis::plan::model::{Access, Observed, Peer, ResourceLock, Rule, RuleProtocol};
use portcullis::plan::names::{self, Mark};
use portcullis::plan::packets::Cells;
use proptest::prelude::*;
use proptest::sample::{Index, select, subsequence};

use crate::plan_world::*;

mod history;

use history::{History, Step, is_kept_out, lonely_exemptions, step};

const SOURCES: [&str; 8] = [
    "203.0.113.7",
    "203.0.113.8",
    "198.51.100.1",
    "10.0.0.9",
    "10.9.1.1",
    "168.63.129.16",
    "2001:db8::7",
    "fd00::9",
];
const MACHINES: [&str; 4] = ["10.0.0.4", "10.0.0.5", "fd00::4", "10.0.0.6"];
const PORTS: [u16; 4] = [22, 80, 3389, 5985];
const POLICIES: [&str; 3] = [WEB, OPS, "cccccccc-bbbc-cccc-dddd-000000000003"];

/// Every packet there is.
pub(crate) fn universe() -> impl Iterator<Item = Packet> {
    static ALL: LazyLock<Vec<Packet>> = LazyLock::new(|| {
        let mut all = Vec::new();
        for source in SOURCES {
            for machine in MACHINES.iter().filter(|machine| machine.contains(':') == source.contains(':')) {
                for port in PORTS {
                    all.extend([true, false].map(|tcp| Packet { tcp, ..packet(source, machine, port) }));
                }
            }
        }
        all
    });
    ALL.iter().copied()
}

/// A rule of somebody else.
pub(crate) fn foreign_rule() -> impl Strategy<Value = Rule> {
    let names = [
        "ssh",
        "DenyAll",
        "web.allow_1",
        "portcullis-allow-ssh",
        "portcullis-12345678-deny-aaaaaaaabbbb-0",
        "ssh2",
        "rdp",
        "lb",
        "any",
        "z",
    ];
    let priorities = prop_oneof![100..=106u16, 300..=302u16, 996..=1002u16, 4090..=4096u16, 100..=4096u16];
    let sources = [
        "*",
        "203.0.113.0/24",
        "203.0.113.7",
        "10.0.0.0/8",
        "Internet",
        "VirtualNetwork",
        "AzureLoadBalancer",
        "Storage",
        "10.9.0.0/16",
    ];
    let destinations = ["*", "10.0.0.4", "10.0.0.0/24", "VirtualNetwork", "10.0.0.5,10.0.0.6", "fd00::4"];
    let ports = ["*", "22", "20-30", "80", "3389,5985", "5000-6000"];
    (
        select(names.to_vec()),
        priorities,
        prop::bool::weighted(0.7),
        select(&["TCP", "UDP", "Any", "Icmp"][..]),
        select(sources.to_vec()),
        select(destinations.to_vec()),
        select(ports.to_vec()),
    )
        .prop_map(|(name, priority, allow, protocol, from, to, ports)| {
            let access = if allow { "Allow" } else { "Deny" };
            rule(&format!("{name} {priority} {access} {protocol} {from} > {to} : {ports}"))
        })
}

pub(crate) fn a_lock() -> impl Strategy<Value = Lock> {
    let machine = (
        subsequence(&MACHINES[..3], 1..=2),
        subsequence(&["22", "TCP/22", "3389", "UDP/3389", "TCP/5000-6000"][..], 0..=3),
    );
    (
        select(&POLICIES[..]),
        prop::collection::vec(machine, 0..=3),
        prop::bool::weighted(0.8),
        subsequence(&["AzureLoadBalancer", "10.9.0.0/16", "203.0.113.7"][..], 0..=2),
        subsequence(&MACHINES[..3], 0..=1),
        prop::bool::weighted(0.7),
    )
        .prop_map(|(uid, machines, over, exempt, release, keep_others)| {
            let machines: Vec<(String, String)> = machines
                .into_iter()
                .map(|(addresses, ports)| (addresses.join(","), ports.join(",")))
                .collect();
            let machines: Vec<(&str, &str)> = machines
                .iter()
                .filter(|(_, ports)| !ports.is_empty())
                .map(|(addresses, ports)| (addresses.as_str(), ports.as_str()))
                .collect();
            Lock {
                existing: if over { ExistingRules::Override } else { ExistingRules::Keep },
                exempt: exempt.into_iter().map(peer).collect(),
                release: release.into_iter().map(ip).collect(),
                keep_others,
                cut_sessions: false,
                ..lock(uid, &machines)
            }
        })
}

fn histories() -> impl Strategy<Value = (Vec<Rule>, Vec<Step>)> {
    (prop::collection::vec(foreign_rule(), 0..8), prop::collection::vec(step(), 1..14))
}

/// `PROPTEST_CASES` asks for more.
fn config() -> ProptestConfig {
    let cases = ProptestConfig::default().cases.max(800);
    ProptestConfig { cases, failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn nothing_passes_a_lock_but_live_grants_and_exemptions_whatever_happened_before(
        (foreign, steps) in histories()
    ) {
        let mut history = History::new(&foreign);
        for step in steps {
            history.take(step);
        }
        history.world.lock = ResourceLock::None;
        history.sweep();
        let changes = history.settle();
        for packet in universe() {
            prop_assert!(
                !(passes(&history.world, packet) && history.must_be_shut(packet, &changes))
                    || history.in_live_grant(packet),
                "{packet:?} by {:?}\n{:#?}\n{:#?}\n{changes:#?}",
                decider(&history.world, packet), history.world, history.wanted,
            );
        }
        let lonely = lonely_exemptions(&history.world);
        prop_assert!(lonely.is_empty(), "{lonely:?} in {:#?}", history.world);
        // No deny of ours is in the way of a live grant, but where others left no room.
        let crowded = history.world.rules.iter().any(|rule| {
            rule.priority < 400 && names::parse(&cluster(), rule).is_none()
        });
        for packet in universe().filter(|packet| !crowded && history.in_live_grant(*packet)) {
            let decider = decider(&history.world, packet);
            let own = decider.is_some_and(|rule| {
                rule.access == Access::Deny && names::parse(&cluster(), rule).is_some()
            });
            prop_assert!(!own, "{packet:?} by {decider:?}\n{:#?}", history.world);
        }
        // Every allow of ours has its live grant.
        for rule in &history.world.rules {
            match names::parse(&cluster(), rule) {
                Some(Mark::Allow { .. }) => {
                    let grant = history.wanted.grants.iter().find(|grant| grant.name == rule.name);
                    prop_assert!(grant.is_some_and(|grant| grant.deadline > history.now()), "{rule:?}");
                }
                Some(Mark::Exempt { .. }) => {}
                Some(Mark::Deny { .. }) => prop_assert_eq!(rule.access, Access::Deny),
                None => {}
            }
        }
    }

    #[test]
    fn at_the_deadline_every_allow_is_closed_whatever_else_is_to_do((foreign, steps) in histories()) {
        let mut history = History::new(&foreign);
        for step in steps {
            history.take(step);
        }
        history.second += 1000;
        let changes = history.plan();
        let closed: BTreeSet<&str> = changes.closes.iter().map(|close| close.name.as_str()).collect();
        for rule in &history.world.rules {
            if rule.access == Access::Allow
                && matches!(names::parse(&cluster(), rule), Some(Mark::Allow { .. }))
            {
                prop_assert!(closed.contains(rule.name.as_str()));
            }
        }
        // The first writes of all, and no less so where locks and grants want something too.
        let first = writes(&changes, ResourceLock::None);
        for write in &first[..changes.closes.len()] {
            prop_assert!(matches!(write, Write::Delete(name) if closed.contains(name.as_str())));
        }
        let alone = Wanted { locks: vec![], ..history.wanted.clone() };
        let names = |changes: &Changes| -> Vec<String> {
            changes.closes.iter().map(|close| close.name.clone()).collect()
        };
        prop_assert_eq!(names(&plan(&history.world, &alone, &LIMITS, history.now())), names(&changes));
        prop_assert!(changes.opens.is_empty());
    }

    #[test]
    fn the_order_of_what_is_asked_does_not_matter((foreign, steps) in histories()) {
        let mut history = History::new(&foreign);
        for step in steps {
            history.take(step);
        }
        let (mut world, mut wanted) = (history.world.clone(), history.wanted.clone());
        world.rules.reverse();
        for rule in &mut world.rules {
            rule.destinations.reverse();
            rule.ports.reverse();
        }
        wanted.locks.reverse();
        wanted.grants.reverse();
        for lock in &mut wanted.locks {
            lock.machines.reverse();
            lock.exempt.reverse();
            for machine in &mut lock.machines {
                machine.addresses.reverse();
                machine.ports.reverse();
            }
        }
        let turned = plan(&world, &wanted, &LIMITS, history.now());
        let mut expected = history.plan();
        // A deny in place of an allow is that allow, in whatever order its lists were read.
        for close in &mut expected.closes {
            if let Some(deny) = &mut close.as_deny {
                deny.destinations.reverse();
                deny.ports.reverse();
            }
        }
        for rule in &mut expected.locks {
            let gone = history.wanted.locks.iter().all(|lock| {
                !rule.name.contains(&names::uid12(&lock.policy_uid))
            });
            if gone || rule.name.contains("exempt") && rule.access == Access::Deny {
                rule.destinations.reverse();
                rule.ports.reverse();
            }
        }
        prop_assert_eq!(turned, expected);
    }

    /// As after a start: policies say one after another what they want, and until the last has, nobody gets in whom
    /// one of their locks kept out before.
    #[test]
    fn nothing_opens_while_policies_have_not_been_heard(
        (foreign, steps) in histories(),
        order in Just(POLICIES.to_vec()).prop_shuffle(),
    ) {
        let mut history = History::new(&foreign);
        for step in steps {
            history.take(step);
        }
        history.world.lock = ResourceLock::None;
        history.sweep();
        let settled = history.settle();
        let (before, all) = (history.world.clone(), history.wanted.locks.clone());
        for heard in 0..=order.len() {
            let (mut heard, unheard): (Vec<Lock>, Vec<Lock>) =
                all.iter().cloned().partition(|lock| order[..heard].contains(&lock.policy_uid.as_str()));
            std::mem::swap(&mut history.wanted.locks, &mut heard);
            history.wanted.unheard = unheard.iter().map(|lock| names::uid12(&lock.policy_uid)).collect();
            let changes = history.settle();
            for packet in universe().filter(|packet| is_kept_out(all.iter(), *packet, &settled)) {
                prop_assert!(
                    !passes(&history.world, packet)
                        || passes(&before, packet)
                        || history.in_live_grant(packet),
                    "{packet:?} by {:?}\nbefore {before:#?}\nafter {:#?}\n{:#?}\n{changes:#?}",
                    decider(&history.world, packet), history.world, history.wanted,
                );
            }
        }
    }
}
