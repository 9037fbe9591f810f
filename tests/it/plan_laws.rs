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

/// What happens next.
#[derive(Clone, Debug)]
enum Step {
    Lock(Lock),
    Forget(&'static str),
    Grant {
        source: &'static str,
        machine: &'static str,
        port: u16,
        seconds: i64,
    },
    End(Index),
    Wait(i64),
    Foreign(Rule),
    /// Somebody removes a rule of his own.
    ForeignGone(Index),
    Erase(Index),
    /// Somebody opens a rule of ours wide, or flips it.
    Edit(Index, bool),
    /// Somebody copies a rule of ours under another name.
    Copy(Index, u16),
    ResourceLock(ResourceLock),
    Run(Vec<bool>, Index),
}

fn step() -> impl Strategy<Value = Step> {
    let sources = ["203.0.113.7/32", "203.0.113.0/24", "10.9.1.1/32", "2001:db8::7/128"];
    prop_oneof![
        3 => a_lock().prop_map(Step::Lock),
        1 => select(&POLICIES[..]).prop_map(Step::Forget),
        4 => (select(sources.to_vec()), select(&MACHINES[..]), select(&PORTS[..]), 30..200i64)
            .prop_map(|(source, machine, port, seconds)| Step::Grant { source, machine, port, seconds }),
        1 => any::<Index>().prop_map(Step::End),
        2 => (1..120i64).prop_map(Step::Wait),
        3 => foreign_rule().prop_map(Step::Foreign),
        2 => any::<Index>().prop_map(Step::ForeignGone),
        2 => any::<Index>().prop_map(Step::Erase),
        1 => (any::<Index>(), any::<bool>()).prop_map(|(index, flip)| Step::Edit(index, flip)),
        1 => (any::<Index>(), 100..=4096u16).prop_map(|(index, priority)| Step::Copy(index, priority)),
        1 => select(&[ResourceLock::None, ResourceLock::None, ResourceLock::CannotDelete][..])
            .prop_map(Step::ResourceLock),
        6 => (prop::collection::vec(prop::bool::weighted(0.8), 0..8), any::<Index>())
            .prop_map(|(outcomes, stop)| Step::Run(outcomes, stop)),
    ]
}

/// The world and what the controllers want of it.
struct History {
    world: Observed,
    wanted: Wanted,
    second: i64,
    granted: u32,
}

impl History {
    fn new(foreign: &[Rule]) -> Self {
        let mut world = nsg(&[]);
        for rule in foreign {
            insert(&mut world, rule.clone());
        }
        Self { world, wanted: wanted(vec![], vec![]), second: 0, granted: 0 }
    }

    fn now(&self) -> Timestamp {
        at(self.second)
    }

    fn plan(&self) -> Changes {
        plan(&self.world, &self.wanted, &LIMITS, self.now())
    }

    fn take(&mut self, step: Step) {
        let own = |index: Index, world: &Observed| {
            let own: Vec<Rule> =
                world.rules.iter().filter(|rule| names::parse(&cluster(), rule).is_some()).cloned().collect();
            (!own.is_empty()).then(|| index.get(&own).clone())
        };
        match step {
            Step::Lock(lock) => {
                self.wanted.locks.retain(|other| other.policy_uid != lock.policy_uid);
                self.wanted.locks.push(lock);
            }
            Step::Forget(uid) => self.wanted.locks.retain(|lock| lock.policy_uid != uid),
            Step::Grant { source, machine, port, seconds } => {
                if source.contains(':') == machine.contains(':') {
                    let deadline = self.second + seconds;
                    let until = open(self.second + 20);
                    self.wanted.grants.push(grant(
                        self.granted,
                        source,
                        machine,
                        &port.to_string(),
                        deadline,
                        until,
                    ));
                    self.granted += 1;
                }
            }
            Step::End(index) => {
                if !self.wanted.grants.is_empty() {
                    let index = index.index(self.wanted.grants.len());
                    self.wanted.grants[index].duty = Duty::Close { sent: false };
                }
            }
            Step::Wait(seconds) => self.second += seconds,
            Step::Foreign(rule) => insert(&mut self.world, rule),
            Step::ForeignGone(index) => {
                let foreign = foreign(&self.world);
                if !foreign.is_empty() {
                    let name = index.get(&foreign).name.clone();
                    self.world.rules.retain(|rule| rule.name != name || rule.priority > 4096);
                }
            }
            Step::Erase(index) => {
                if let Some(rule) = own(index, &self.world) {
                    self.world.rules.retain(|other| other.name != rule.name);
                }
            }
            Step::Edit(index, flip) => {
                if let Some(rule) = own(index, &self.world) {
                    let place = self.world.rules.iter_mut().find(|other| other.name == rule.name).unwrap();
                    if flip {
                        place.access = Access::Allow;
                    } else {
                        place.sources = vec![Peer::Any];
                    }
                }
            }
            Step::Copy(index, priority) => {
                if let Some(rule) = own(index, &self.world) {
                    insert(&mut self.world, Rule { name: "a_copy".into(), priority, ..rule });
                }
            }
            Step::ResourceLock(lock) => self.world.lock = lock,
            Step::Run(outcomes, stop) => self.run(&outcomes, stop),
        }
    }

    /// One round of the gate, of which some writes fail and which stops somewhere.
    fn run(&mut self, outcomes: &[bool], stop: Index) {
        let changes = self.plan();
        let before = self.world.clone();
        let mut after = Self { wanted: self.wanted.clone(), world: before.clone(), ..*self };
        after.settle();
        let all = writes(&changes, self.world.lock);
        let stop = stop.index(all.len() + 1);
        for (index, write) in all.iter().take(stop).enumerate() {
            if outcomes.get(index) == Some(&false) {
                continue;
            }
            let exempt = lonely_exemptions(&self.world);
            self.write(write);
            if matches!(write, Write::Delete(_)) {
                let lonely = lonely_exemptions(&self.world);
                assert!(
                    lonely.iter().all(|name| exempt.contains(name)),
                    "a deny went before {lonely:?}: {write:?}\nbefore {before:#?}"
                );
            }
            for packet in universe().filter(|packet| passes(&self.world, *packet)) {
                let live = self.in_live_grant(packet)
                    || self.would_be_exempt(packet, &changes) && !self.must_be_shut(packet, &changes);
                assert!(
                    live || passes(&before, packet) || passes(&after.world, packet),
                    "opened in between: {packet:?} by {:?} after {write:?}\nbefore {before:#?}\nchanges {changes:#?}",
                    decider(&self.world, packet),
                );
            }
        }
        assert_eq!(foreign(&before), foreign(&self.world));
        self.learn(&changes);
    }

    fn write(&mut self, write: &Write) {
        let done = apply(&mut self.world, write);
        match (&done, self.world.lock) {
            (Ok(()), _) => {}
            (Err(error), ResourceLock::CannotDelete) if error == "ScopeLocked" => {}
            (Err(error), _) => panic!("refused: {error}: {write:#?}"),
        }
        let ended = done.is_ok() || self.world.lock == ResourceLock::CannotDelete;
        let now = self.now();
        if let (Write::Delete(name), true) = (write, ended) {
            for grant in self.wanted.grants.iter_mut().filter(|grant| grant.name == *name) {
                if now >= grant.deadline || matches!(grant.duty, Duty::Close { .. }) {
                    grant.duty = Duty::Close { sent: true };
                }
            }
        }
    }

    /// What the lifecycle makes of a round.
    fn learn(&mut self, changes: &Changes) {
        let now = self.now();
        let world = &self.world;
        let stands = |name: &str| world.rule(name).is_some_and(|rule| rule.access == Access::Allow);
        for grant in &mut self.wanted.grants {
            let refused = changes.refused.iter().any(|refused| refused.rule.as_ref() == Some(&grant.name));
            grant.duty = match grant.duty {
                Duty::Close { sent } => Duty::Close { sent },
                _ if now >= grant.deadline => Duty::Close { sent: false },
                _ if refused || changes.lost.contains(&grant.name) => Duty::Close { sent: false },
                Duty::Open { .. } if stands(&grant.name) => Duty::Hold,
                other => other,
            };
        }
        self.wanted.grants.retain(|grant| grant.duty != Duty::Close { sent: true } || stands(&grant.name));
        self.wanted.standing = world
            .rules
            .iter()
            .filter(|rule| {
                matches!(
                    names::parse_name(&cluster(), &rule.name),
                    Some(Mark::Deny { .. } | Mark::Exempt { .. })
                )
            })
            .cloned()
            .collect();
    }

    /// Rounds without failures until there is nothing left to do.
    fn settle(&mut self) -> Changes {
        for _ in 0..10 {
            let changes = self.plan();
            for write in writes(&changes, self.world.lock) {
                self.write(&write);
            }
            self.learn(&changes);
            if changes.is_empty() {
                return changes;
            }
        }
        panic!("no end: {:#?}\nof {:#?}\n{:#?}", self.plan(), self.world, self.wanted);
    }

    /// A sweep with a consistent list of grants.
    fn sweep(&mut self) {
        let own = self
            .world
            .rules
            .iter()
            .filter(|rule| matches!(names::parse(&cluster(), rule), Some(Mark::Allow { .. })));
        let known: BTreeSet<&String> = self.wanted.grants.iter().map(|grant| &grant.name).collect();
        self.wanted.orphans =
            own.map(|rule| rule.name.clone()).filter(|name| !known.contains(name)).collect();
    }

    fn in_live_grant(&self, packet: Packet) -> bool {
        self.wanted.grants.iter().any(|grant| {
            grant.deadline > self.now()
                && !matches!(grant.duty, Duty::Close { .. })
                && packet.tcp
                && grant.destinations.contains(&packet.destination)
                && grant.sources.iter().any(|net| net.contains(&packet.source))
                && grant.ports.iter().any(|range| range.first() <= packet.port && packet.port <= range.last())
        })
    }

    /// Whether a lock exempts the packet, and has said that there is no room for that: its deny shuts out what it should not.
    fn would_be_exempt(&self, packet: Packet, changes: &Changes) -> bool {
        self.wanted
            .locks
            .iter()
            .any(|lock| is_exempt(lock, packet.source) && covers(lock, packet) && is_excused(lock, changes))
    }

    /// Whether a lock that covers the packet must keep it out, and has not said that it cannot.
    fn must_be_shut(&self, packet: Packet, changes: &Changes) -> bool {
        self.wanted.locks.iter().any(|lock| {
            lock.existing == ExistingRules::Override
                && !is_excused(lock, changes)
                && !is_exempt(lock, packet.source)
                && covers(lock, packet)
        })
    }
}

/// Whether something of the lock finds no room, which was said.
fn is_excused(lock: &Lock, changes: &Changes) -> bool {
    changes.refused.iter().any(|refused| {
        refused.owner_uid == lock.policy_uid
            && [Reason::NoPriorityRoom, Reason::FirewallFull].contains(&refused.reason)
    })
}

fn covers(lock: &Lock, packet: Packet) -> bool {
    lock.machines.iter().any(|machine| {
        machine.addresses.contains(&packet.destination)
            && machine.ports.iter().any(|(protocol, range)| {
                let probe = Rule {
                    protocol: RuleProtocol::Transport(*protocol),
                    ports: vec![*range],
                    ..rule("x 100 Deny Any * > * : *")
                };
                matches(&probe, packet)
            })
    })
}

/// The names of exemptions from what no denies of ours shut.
fn lonely_exemptions(world: &Observed) -> BTreeSet<String> {
    let mut shut = Cells::default();
    for rule in &world.rules {
        if let (Some(Mark::Deny { .. }), Access::Deny) = (names::parse(&cluster(), rule), rule.access) {
            shut.add_all(&Cells::named_by(rule));
        }
    }
    let exempt = world.rules.iter().filter(|rule| {
        rule.access == Access::Allow
            && matches!(names::parse_name(&cluster(), &rule.name), Some(Mark::Exempt { .. }))
    });
    exempt.filter(|rule| !shut.contains(&Cells::named_by(rule))).map(|rule| rule.name.clone()).collect()
}

fn is_exempt(lock: &Lock, source: IpAddr) -> bool {
    lock.exempt.iter().any(|peer| match peer {
        Peer::Net(network) => network.contains(&source),
        Peer::Tag(_) => source == ip("168.63.129.16"),
        _ => false,
    })
}

/// Somebody else's write: never where a rule stands, never under a name of ours.
fn insert(world: &mut Observed, rule: Rule) {
    if world
        .rules
        .iter()
        .all(|other| other.priority != rule.priority && !other.name.eq_ignore_ascii_case(&rule.name))
    {
        world.rules.push(rule);
        world.rules.sort_by_key(|rule| rule.priority);
    }
}

fn foreign(world: &Observed) -> Vec<Rule> {
    let denies_once = |rule: &&Rule| names::parse(&cluster(), rule).is_none() && rule.name != "a_copy";
    world.rules.iter().filter(denies_once).cloned().collect()
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
}
