//! What gets through to a machine: examples, and agreement with brute force over small universes.

use std::collections::BTreeMap;
use std::sync::Arc;

use portcullis::api::ExistingRules;
use portcullis::api::values::ArmId;
use portcullis::plan::desired::{Duty, Grant, Lock};
use portcullis::plan::exposure::{
    Decider, Enforced, Lockdown, Locked, Passage, Way, lockdown, passage, stopped_by,
};
use portcullis::plan::model::{
    Access, Address, AdminAction, AdminRule, FirewallId, Machine, NetworkView, Nic, Observed, Os, Peer,
    Provisioning, Rule,
};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use crate::plan_world::*;

mod led;

const GROUP: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web";

fn firewall(name: &str) -> FirewallId {
    FirewallId(
        ArmId::parse(&format!("{GROUP}/providers/Microsoft.Network/networkSecurityGroups/{name}")).unwrap(),
    )
}

fn machine(path: &[&str], virtual_network: &[&str], admin: Vec<AdminRule>) -> Machine {
    let address = Address {
        ip: ip("10.0.0.4"),
        public: None,
        has_public: false,
        path: path.iter().map(|name| firewall(name)).collect(),
        hops: Vec::new(),
        groups: vec![],
        network: NetworkView {
            virtual_network: virtual_network.iter().map(|text| net(text)).collect(),
            admin_rules: Some(admin),
            twin: None,
        },
    };
    let nic = ArmId::parse(&format!("{GROUP}/providers/Microsoft.Network/networkInterfaces/nic")).unwrap();
    Machine {
        id: ArmId::parse(&format!("{GROUP}/providers/Microsoft.Compute/virtualMachines/web-1")).unwrap(),
        vm_id: "1".into(),
        os: Os::Linux,
        tags: BTreeMap::new(),
        nics: vec![Nic { id: nic, addresses: vec![address] }],
    }
}

fn admin(text: &str, action: AdminAction) -> AdminRule {
    let Rule { name, priority, protocol, sources, destinations, ports, .. } = rule(text);
    AdminRule { name, priority, action, protocol, sources, destinations, ports }
}

fn by(firewall_name: &str, rule: &str) -> Decider {
    Decider { firewall: Some(firewall(firewall_name)), rule: rule.into() }
}

#[derive(Debug)]
struct World {
    machine: Machine,
    firewalls: BTreeMap<FirewallId, Arc<Observed>>,
    lock: Lock,
    grants: Vec<Grant>,
}

impl World {
    fn new(firewalls: &[(&str, &[&str])]) -> Self {
        let names: Vec<&str> = firewalls.iter().map(|(name, _)| *name).collect();
        let read = firewalls.iter().map(|(name, rules)| (firewall(name), Arc::new(nsg(rules))));
        Self {
            machine: machine(&names, &["10.0.0.0/8"], vec![]),
            firewalls: read.collect(),
            lock: lock(WEB, &[("10.0.0.4", "22")]),
            grants: vec![],
        }
    }

    /// After the plan for its lock has been carried out on every firewall.
    fn locked(firewalls: &[(&str, &[&str])]) -> Self {
        let mut world = Self::new(firewalls);
        world.settle();
        world
    }

    fn settle(&mut self) {
        for observed in self.firewalls.values_mut() {
            settle(Arc::make_mut(observed), &wanted(vec![self.lock.clone()], self.grants.clone()), at(0));
        }
    }

    fn change(&mut self, name: &str) -> &mut Observed {
        Arc::make_mut(self.firewalls.get_mut(&firewall(name)).unwrap())
    }

    fn lockdown(&self) -> Lockdown {
        let cluster = cluster();
        let way = Way { machine: &self.machine, firewalls: &self.firewalls, cluster: &cluster };
        let ports = &self.lock.machines[0].ports;
        let (existing, exempt) = (self.lock.existing, &self.lock.exempt);
        let via = Enforced { groups: true, firewalls: true };
        lockdown(way, Locked { ports, existing, exempt, grants: &self.grants, via }, at(0))
    }

    fn passage(&self, grant: &Grant) -> Passage {
        let cluster = cluster();
        passage(Way { machine: &self.machine, firewalls: &self.firewalls, cluster: &cluster }, grant)
    }
}

#[test]
fn a_lock_above_everything_is_effective_and_without_it_the_network_gets_in() {
    assert_eq!(World::new(&[("a", &[])]).lockdown(), Lockdown::Missing { on: vec![firewall("a")] });
    let ssh = ["ssh 300 Allow TCP * > * : 22"];
    assert_eq!(World::locked(&[("a", &ssh)]).lockdown(), Lockdown::Effective);
    // Where there is no gate at all, there is none to name.
    assert_eq!(World::new(&[]).lockdown(), Lockdown::Missing { on: vec![] });
    // A closed gate is a closed gate, whoever closed it.
    assert_eq!(World::new(&[("a", &["stop 100 Deny Any * > * : *"])]).lockdown(), Lockdown::Effective);
}

#[test]
fn the_rule_that_shadows_the_lock_is_named_and_one_closed_gate_of_two_is_enough() {
    let early = ["ssh 100 Allow TCP 203.0.113.0/24 > * : 20-30", "web 101 Allow TCP * > * : 80"];
    let shadowed = World::locked(&[("a", &early)]);
    assert_eq!(shadowed.lockdown(), Lockdown::Shadowed { by: vec![by("a", "ssh")] });
    assert_eq!(World::locked(&[("a", &early), ("b", &[])]).lockdown(), Lockdown::Effective);
    let both = World::locked(&[("a", &early), ("b", &["any 100 Allow Any Storage > * : *"])]);
    assert_eq!(both.lockdown(), Lockdown::Shadowed { by: vec![by("a", "ssh"), by("b", "any")] });
    let apart = ["ssh 100 Allow TCP 198.51.100.0/24 > * : 22"];
    assert_eq!(World::locked(&[("a", &early), ("b", &apart)]).lockdown(), Lockdown::Effective);
}

#[test]
fn kept_rules_are_told_apart_from_rules_in_the_way() {
    let mut world = World::new(&[("a", &["ssh 300 Allow TCP * > * : 22"])]);
    world.lock.existing = ExistingRules::Keep;
    world.settle();
    assert_eq!(world.lockdown(), Lockdown::KeptRules { by: vec![by("a", "ssh")] });
}

#[test]
fn a_security_admin_rule_that_always_allows_makes_the_lock_ineffective() {
    let mut world = World::locked(&[("a", &[])]);
    let always = admin("corp 10 Allow TCP 10.9.0.0/16 > * : 22", AdminAction::AlwaysAllow);
    world.machine = machine(&["a"], &["10.0.0.0/8"], vec![always.clone()]);
    let rule = Decider { firewall: None, rule: "corp".into() };
    assert_eq!(world.lockdown(), Lockdown::Shadowed { by: vec![rule] });
    let deny = admin("no 5 Deny Any * > * : 22", AdminAction::Deny);
    world.machine = machine(&["a"], &["10.0.0.0/8"], vec![always, deny]);
    assert_eq!(world.lockdown(), Lockdown::Effective);
}

#[test]
fn what_is_not_proved_is_unknown() {
    let mut world = World::locked(&[("a", &[])]);
    let observed = world.change("a");
    observed.rules[0].provisioning = Provisioning::Updating;
    assert!(matches!(world.lockdown(), Lockdown::Unknown { why } if why.contains("is being written")));
    world.firewalls.clear();
    assert!(matches!(world.lockdown(), Lockdown::Unknown { why } if why.contains("a has not been read")));
}

#[test]
fn live_grants_and_exemptions_are_no_holes_and_overdue_ones_are() {
    let mut world = World::new(&[("a", &[])]);
    world.lock.exempt = vec![peer("AzureLoadBalancer"), peer("10.9.0.0/16"), peer("Storage")];
    world.grants = vec![grant(0, "203.0.113.7/32", "10.0.0.4", "22", 60, open(30))];
    world.settle();
    assert_eq!(world.lockdown(), Lockdown::Effective);
    let name = world.grants[0].name.clone();
    world.grants[0].deadline = at(0);
    assert_eq!(world.lockdown(), Lockdown::Shadowed { by: vec![by("a", &name)] });
}

#[test]
fn a_default_route_to_the_virtual_network_lets_the_internet_in() {
    let mut world = World::new(&[("a", &["internet 200 Deny Any Internet > * : *"])]);
    world.machine = machine(&["a"], &["0.0.0.0/0"], vec![]);
    assert!(matches!(world.lockdown(), Lockdown::Missing { .. }));
}

#[test]
fn a_grant_that_cannot_get_through_names_what_stops_it() {
    let mut world = World::new(&[("a", &[]), ("b", &[])]);
    world.grants = vec![grant(0, "203.0.113.0/24", "10.0.0.4", "22", 60, open(30))];
    world.settle();
    let grant = world.grants[0].clone();
    assert_eq!(world.passage(&grant), Passage::Open);
    let observed = world.change("b");
    let own = observed.rules.iter_mut().find(|rule| rule.name == grant.name).unwrap();
    own.priority = 102;
    apply(observed, &Write::Put(rule("stop 101 Deny Any 203.0.113.7 > * : *"))).unwrap();
    assert_eq!(world.passage(&grant), Passage::Partly { by: vec![by("b", "stop")] });
    let observed = world.change("b");
    apply(observed, &Write::Put(rule("stop 101 Deny Any * > * : *"))).unwrap();
    assert_eq!(world.passage(&grant), Passage::Stopped { by: vec![by("b", "stop")] });
    let stopped = |name: &str| stopped_by(&world.firewalls[&firewall(name)], &cluster(), &grant);
    assert_eq!((stopped("a"), stopped("b").map(|rule| rule.rule)), (None, Some("stop".to_owned())));
    let observed = world.change("b");
    apply(observed, &Write::Put(rule("stop 101 Deny Any Storage > * : *"))).unwrap();
    assert_eq!(world.passage(&grant), Passage::Unknown { by: vec![by("b", "stop")] });
    // Nothing is said of what a firewall stops that could not be read.
    world.firewalls.remove(&firewall("b"));
    assert_eq!(world.passage(&grant), Passage::Unknown { by: vec![] });
    let no = admin("no 5 Deny Any * > * : 22", AdminAction::Deny);
    world.machine = machine(&["a", "b"], &["10.0.0.0/8"], vec![no]);
    let rule = Decider { firewall: None, rule: "no".into() };
    assert_eq!(world.passage(&grant), Passage::Stopped { by: vec![rule] });
}

/// One source of each kind that the generated rules tell apart.
const SOURCES: [&str; 6] =
    ["203.0.113.7", "203.0.113.8", "198.51.100.1", "10.0.0.9", "10.9.1.1", "168.63.129.16"];

fn some_rules(sources: &'static [&'static str]) -> impl Strategy<Value = Vec<Rule>> {
    let parts = (
        prop_oneof![100..104u16, 100..1200u16],
        any::<bool>(),
        select(&["TCP", "UDP", "Any"][..]),
        select(sources),
        select(&["*", "10.0.0.4", "10.0.0.5", "10.0.0.0/24"][..]),
        select(&["*", "22", "20-30", "23", "25-3000"][..]),
    );
    let rules = parts.prop_map(|(priority, allow, protocol, from, to, ports)| {
        let access = if allow { "Allow" } else { "Deny" };
        rule(&format!("r{priority} {priority} {access} {protocol} {from} > {to} : {ports}"))
    });
    prop::collection::vec(rules, 0..7).prop_map(|mut rules| {
        rules.sort_by_key(|rule| rule.priority);
        rules.dedup_by_key(|rule| rule.priority);
        rules
    })
}

fn some_world(sources: &'static [&'static str]) -> impl Strategy<Value = World> {
    let action = select(&[AdminAction::Allow, AdminAction::AlwaysAllow, AdminAction::Deny][..]);
    (
        prop::collection::vec(some_rules(sources), 0..=2),
        some_rules(sources),
        prop::collection::vec(action, 8),
        prop::bool::weighted(0.3),
        any::<bool>(),
        subsequence(&["10.9.0.0/16", "203.0.113.7", "AzureLoadBalancer"][..], 0..=2),
        prop::option::of(select(&["203.0.113.0/24", "203.0.113.7/32", "10.0.0.0/8"][..])),
    )
        .prop_map(|(gates, before, actions, with_admin, locked, exempt, source)| {
            let names = ["a", "b"];
            let lists: Vec<(&str, &[&str])> =
                names.iter().zip(&gates).map(|(name, _)| (*name, &[][..])).collect();
            let mut world = World::new(&lists);
            for (observed, rules) in world.firewalls.values_mut().map(Arc::make_mut).zip(gates) {
                observed.rules.extend(rules);
                observed.rules.sort_by_key(|rule| rule.priority);
            }
            if with_admin {
                let rules = before.into_iter().zip(actions).map(|(rule, action)| {
                    let Rule { name, priority, protocol, sources, destinations, ports, .. } = rule;
                    AdminRule { name, priority, action, protocol, sources, destinations, ports }
                });
                let path = &names[..world.firewalls.len()];
                world.machine = machine(path, &["10.0.0.0/8"], rules.collect());
            }
            world.lock = Lock {
                exempt: exempt.into_iter().map(peer).collect(),
                ..lock(WEB, &[("10.0.0.4", "20-24")])
            };
            world.grants = source
                .map(|source| grant(0, source, "10.0.0.4", "22-23", 60, open(30)))
                .into_iter()
                .collect();
            if locked {
                world.settle();
            }
            world
        })
}

impl World {
    /// Whether a packet gets through, judged packet by packet.
    fn passes(&self, packet: Packet) -> bool {
        let address = self.machine.addresses().next().unwrap();
        let gates = || address.path.iter().all(|firewall| passes(&self.firewalls[firewall], packet));
        let mut before = address.network.admin_rules.clone().unwrap();
        before.sort_by_key(|rule| rule.priority);
        let first = before.iter().find(|rule| {
            let as_rule = Rule {
                protocol: rule.protocol.clone(),
                sources: rule.sources.clone(),
                destinations: rule.destinations.clone(),
                ports: rule.ports.clone(),
                access: Access::Allow,
                ..crate::plan_world::rule("x 100 Allow Any * > * : *")
            };
            matches(&as_rule, packet)
        });
        match first.map(|rule| rule.action) {
            Some(AdminAction::AlwaysAllow) => true,
            Some(AdminAction::Deny) => false,
            Some(AdminAction::Allow) | None => gates(),
        }
    }

    fn packets(ports: std::ops::RangeInclusive<u16>) -> impl Iterator<Item = Packet> {
        ports.flat_map(|port| {
            SOURCES.iter().flat_map(move |source| {
                [true, false].map(|tcp| Packet { tcp, ..packet(source, "10.0.0.4", port) })
            })
        })
    }

    /// Packets that get in and should not.
    fn holes(&self) -> Vec<Packet> {
        let exempt = |packet: &Packet| {
            self.lock.exempt.iter().any(|peer| match peer {
                Peer::Net(network) => network.contains(&packet.source),
                _ => packet.source == ip("168.63.129.16"),
            })
        };
        let granted = |packet: &Packet| {
            packet.tcp
                && (22..=23).contains(&packet.port)
                && self.grants.iter().any(|grant| grant.sources[0].contains(&packet.source))
        };
        Self::packets(20..=24)
            .filter(|packet| self.passes(*packet) && !exempt(packet) && !granted(packet))
            .collect()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn the_lock_is_effective_exactly_where_no_packet_gets_in(
        world in some_world(&["*", "203.0.113.0/24", "203.0.113.7", "10.0.0.0/8", "10.9.0.0/16"])
    ) {
        // The cloud's own rules speak in tags: those of the network are left to the other test.
        let mut world = world;
        for observed in world.firewalls.values_mut().map(Arc::make_mut) {
            observed.rules.retain(|rule| rule.priority < 65000 || rule.priority == 65500);
        }
        let holes = world.holes();
        let verdict = world.lockdown();
        prop_assert_eq!(verdict == Lockdown::Effective, holes.is_empty(), "{:?} {:?}", verdict, holes);
        if let Lockdown::Shadowed { by } = &verdict {
            prop_assert!(!by.is_empty());
        }
    }

    #[test]
    fn the_lock_is_never_called_effective_where_a_packet_gets_in(
        world in some_world(&["*", "Internet", "VirtualNetwork", "AzureLoadBalancer", "Storage", "203.0.113.7"])
    ) {
        let holes = world.holes();
        let verdict = world.lockdown();
        prop_assert!(verdict != Lockdown::Effective || holes.is_empty(), "{holes:?}");
    }

    #[test]
    fn a_grant_gets_through_exactly_as_its_packets_do(
        world in some_world(&["*", "203.0.113.0/24", "203.0.113.7", "10.0.0.0/8", "10.9.0.0/16"]),
        source in select(&["203.0.113.0/24", "203.0.113.7/32", "10.0.0.0/8"][..]),
    ) {
        let mut world = world;
        for observed in world.firewalls.values_mut().map(Arc::make_mut) {
            observed.rules.retain(|rule| rule.priority < 65000 || rule.priority == 65500);
        }
        let grant = grant(9, source, "10.0.0.4", "22-23", 60, Duty::Hold);
        let packets: Vec<Packet> = World::packets(22..=23)
            .filter(|packet| packet.tcp && net(source).contains(&packet.source))
            .collect();
        let through = packets.iter().filter(|packet| world.passes(**packet)).count();
        match world.passage(&grant) {
            Passage::Open => prop_assert_eq!(through, packets.len()),
            Passage::Stopped { by } => {
                prop_assert_eq!(through, 0);
                prop_assert!(!by.is_empty());
            }
            Passage::Partly { by } => {
                prop_assert!(0 < through && through < packets.len());
                prop_assert!(!by.is_empty());
            }
            Passage::Unknown { by } => prop_assert!(false, "{by:?}"),
        }
    }
}

#[test]
fn a_deny_that_need_not_match_closes_nothing() {
    let stops = "stop 100 Deny Any * > * : *";
    let edits: [fn(&mut Rule); 4] = [
        |rule| rule.source_ports = vec![port("1024-65535")],
        |rule| rule.destinations = vec![peer("Storage")],
        |rule| rule.sources = vec![peer("Storage")],
        |rule| rule.provisioning = Provisioning::Failed,
    ];
    for edit in edits {
        let mut world = World::new(&[("a", &[stops])]);
        assert_eq!(world.lockdown(), Lockdown::Effective);
        edit(&mut world.change("a").rules[0]);
        assert_ne!(world.lockdown(), Lockdown::Effective);
    }
}
