//! What happens to a group, step by step, and what of it is judged on the way: no write opens in between what is shut before
//! and after, nor removes a deny under an exemption from it, nor touches a rule of somebody else.

use super::*;

/// What happens next.
#[derive(Clone, Debug)]
pub(super) enum Step {
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

pub(super) fn step() -> impl Strategy<Value = Step> {
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
pub(super) struct History {
    pub(super) world: Observed,
    pub(super) wanted: Wanted,
    pub(super) second: i64,
    pub(super) granted: u32,
}

impl History {
    pub(super) fn new(foreign: &[Rule]) -> Self {
        let mut world = nsg(&[]);
        for rule in foreign {
            insert(&mut world, rule.clone());
        }
        Self { world, wanted: wanted(vec![], vec![]), second: 0, granted: 0 }
    }

    pub(super) fn now(&self) -> Timestamp {
        at(self.second)
    }

    pub(super) fn plan(&self) -> Changes {
        plan(&self.world, &self.wanted, &LIMITS, self.now())
    }

    pub(super) fn take(&mut self, step: Step) {
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
    pub(super) fn settle(&mut self) -> Changes {
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
    pub(super) fn sweep(&mut self) {
        let own = self
            .world
            .rules
            .iter()
            .filter(|rule| matches!(names::parse(&cluster(), rule), Some(Mark::Allow { .. })));
        let known: BTreeSet<&String> = self.wanted.grants.iter().map(|grant| &grant.name).collect();
        self.wanted.orphans =
            own.map(|rule| rule.name.clone()).filter(|name| !known.contains(name)).collect();
    }

    pub(super) fn in_live_grant(&self, packet: Packet) -> bool {
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
    pub(super) fn must_be_shut(&self, packet: Packet, changes: &Changes) -> bool {
        let above = self.wanted.locks.iter().filter(|lock| lock.existing == ExistingRules::Override);
        is_kept_out(above, packet, changes)
    }
}

/// Whether one of these locks is to keep the packet out, and has not said that it cannot.
pub(super) fn is_kept_out<'a>(
    mut locks: impl Iterator<Item = &'a Lock>,
    packet: Packet,
    changes: &Changes,
) -> bool {
    locks.any(|lock| !is_excused(lock, changes) && !is_exempt(lock, packet.source) && covers(lock, packet))
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
pub(super) fn lonely_exemptions(world: &Observed) -> BTreeSet<String> {
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
