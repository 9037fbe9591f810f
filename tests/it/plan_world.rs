//! A small world for tests of plans: rules from short texts, a firewall that obeys changes, and an evaluator
//! of packets that shares nothing with the product's own.

use std::net::IpAddr;
use std::sync::LazyLock;

use ipnet::IpNet;
use jiff::Timestamp;
use portcullis::api::ExistingRules;
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::plan::desired::{Changes, Duty, Grant, Limits, Lock, LockedMachine, Wanted};
use portcullis::plan::model::{
    Access, FirewallId, Observed, Peer, Provisioning, ResourceLock, Rule, RuleProtocol,
};
use portcullis::plan::names::{self, Cluster};

pub const LIMITS: Limits = Limits { rules: 1000, addresses: 4000 };
pub const WEB: &str = "aaaaaaaa-bbbb-cccc-dddd-000000000001";
pub const OPS: &str = "aaaaaaaa-bbbc-cccc-dddd-000000000002";
pub const REQUEST: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

pub fn cluster() -> Cluster {
    static CLUSTER: LazyLock<Cluster> = LazyLock::new(|| Cluster::new("test", &["before".into()]));
    CLUSTER.clone()
}

pub fn at(second: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + second).unwrap()
}

pub fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

pub fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

pub fn port(text: &str) -> PortRange {
    text.parse().unwrap()
}

pub fn peer(text: &str) -> Peer {
    match text {
        "*" => Peer::Any,
        text => match (text.parse::<IpNet>(), text.parse::<IpAddr>()) {
            (Ok(network), _) => Peer::Net(network),
            (_, Ok(address)) => Peer::host(address),
            _ => Peer::Tag(text.to_owned()),
        },
    }
}

/// `web 300 Allow TCP 10.0.0.0/8,* > 10.0.0.4 : 22,80`
pub fn rule(text: &str) -> Rule {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [name, priority, access, protocol, sources, ">", destinations, ":", ports] = words[..] else {
        panic!("not a rule: {text}")
    };
    Rule {
        name: name.into(),
        priority: priority.parse().unwrap(),
        access: if access == "Allow" { Access::Allow } else { Access::Deny },
        protocol: match protocol {
            "TCP" => RuleProtocol::Transport(Protocol::Tcp),
            "UDP" => RuleProtocol::Transport(Protocol::Udp),
            "Any" => RuleProtocol::Transport(Protocol::Any),
            other => RuleProtocol::Other(other.into()),
        },
        sources: sources.split(',').map(peer).collect(),
        source_ports: vec![PortRange::ALL],
        destinations: destinations.split(',').map(peer).collect(),
        ports: ports.split(',').map(|text| if text == "*" { PortRange::ALL } else { port(text) }).collect(),
        translation: None,
        description: String::new(),
        provisioning: Provisioning::Succeeded,
    }
}

pub fn nsg(rules: &[&str]) -> Observed {
    let mut rules: Vec<Rule> = rules.iter().map(|text| rule(text)).collect();
    rules.push(rule("AllowVnetInBound 65000 Allow Any VirtualNetwork > VirtualNetwork : *"));
    rules.push(rule("AllowAzureLoadBalancerInBound 65001 Allow Any AzureLoadBalancer > * : *"));
    rules.push(rule("DenyAllInBound 65500 Deny Any * > * : *"));
    rules.sort_by_key(|rule| rule.priority);
    Observed {
        firewall: FirewallId(
            ArmId::parse("/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups/nsg-1").unwrap(),
        ),
        at: at(0),
        provisioning: Provisioning::Succeeded,
        rules,
        outbound_rules: 0,
        outbound_addresses: 0,
        lock: ResourceLock::None,
        cuts_sessions: Some(false),
        translating: None,
    }
}

pub fn lock(uid: &str, machines: &[(&str, &str)]) -> Lock {
    let machines = machines.iter().map(|(addresses, ports)| LockedMachine {
        addresses: addresses.split(',').map(ip).collect(),
        ports: ports
            .split(',')
            .map(|text| match text.split_once('/') {
                Some(("TCP", range)) => (Protocol::Tcp, port(range)),
                Some(("UDP", range)) => (Protocol::Udp, port(range)),
                _ => (Protocol::Any, port(text)),
            })
            .collect(),
    });
    Lock {
        policy_uid: uid.into(),
        policy: "team/policy".into(),
        existing: ExistingRules::Override,
        machines: machines.collect(),
        exempt: vec![],
        release: std::collections::BTreeSet::new(),
        keep_others: true,
        cut_sessions: false,
    }
}

pub fn wanted(locks: Vec<Lock>, grants: Vec<Grant>) -> Wanted {
    Wanted {
        cluster: cluster(),
        locks,
        unheard: std::collections::BTreeSet::new(),
        grants,
        orphans: std::collections::BTreeSet::new(),
        honour_denies_below: 1000,
        max_allows: 200,
        standing: vec![],
        placed: vec![],
    }
}

pub fn grant(n: u32, source: &str, destination: &str, ports: &str, deadline: i64, duty: Duty) -> Grant {
    Grant {
        request_uid: REQUEST.into(),
        name: names::allow_name(&cluster(), REQUEST, at(deadline), n),
        deadline: at(deadline),
        protocol: Protocol::Tcp,
        sources: source.split(',').map(net).collect(),
        destinations: destination.split(',').map(ip).collect(),
        ports: ports.split(',').map(port).collect(),
        translation: None,
        duty,
        replaced: false,
    }
}

pub fn open(until: i64) -> Duty {
    Duty::Open { heard_by: at(until), until: at(until) }
}

/// One write to a firewall.
#[derive(Clone, Debug)]
pub enum Write {
    Put(Rule),
    Delete(String),
}

/// The writes of a plan, in order.
pub fn writes(changes: &Changes, lock: ResourceLock) -> Vec<Write> {
    let mut writes = Vec::new();
    for close in &changes.closes {
        match (&close.as_deny, lock) {
            (Some(deny), ResourceLock::CannotDelete) => writes.push(Write::Put(deny.clone())),
            _ => writes.push(Write::Delete(close.name.clone())),
        }
    }
    writes.extend(changes.locks.iter().chain(&changes.opens).cloned().map(Write::Put));
    writes.extend(changes.unlocks.iter().cloned().map(Write::Delete));
    writes
}

/// Does a write as the cloud would, which refuses what is not valid.
pub fn apply(world: &mut Observed, write: &Write) -> Result<(), String> {
    match write {
        Write::Delete(name) => {
            if world.lock != ResourceLock::None {
                return Err("ScopeLocked".into());
            }
            world.rules.retain(|rule| !rule.name.eq_ignore_ascii_case(name));
        }
        Write::Put(new) => {
            if world.lock == ResourceLock::ReadOnly {
                return Err("ScopeLocked".into());
            }
            validate(world, new)?;
            world.rules.retain(|rule| !rule.name.eq_ignore_ascii_case(&new.name));
            world.rules.push(new.clone());
            world.rules.sort_by_key(|rule| rule.priority);
            if world.rule_count() > LIMITS.rules || world.address_count() > LIMITS.addresses {
                return Err("limits".into());
            }
        }
    }
    Ok(())
}

fn validate(world: &Observed, new: &Rule) -> Result<(), String> {
    if !(100..=4096).contains(&new.priority) {
        return Err(format!("priority {} of {}", new.priority, new.name));
    }
    let clash = world
        .rules
        .iter()
        .find(|rule| rule.priority == new.priority && !rule.name.eq_ignore_ascii_case(&new.name));
    if let Some(clash) = clash {
        return Err(format!("SecurityRuleConflict: {} and {} at {}", clash.name, new.name, new.priority));
    }
    for peers in [&new.sources, &new.destinations] {
        if peers.is_empty() || new.ports.is_empty() || new.source_ports.is_empty() {
            return Err(format!("an empty list in {}", new.name));
        }
        if peers.len() > 1 && peers.iter().any(|peer| !matches!(peer, Peer::Net(_) | Peer::Group(_))) {
            return Err(format!("SecurityRuleParameterContainsUnsupportedValue in {}", new.name));
        }
        let nets: Vec<&IpNet> = peers
            .iter()
            .filter_map(|peer| if let Peer::Net(net) = peer { Some(net) } else { None })
            .collect();
        for (index, one) in nets.iter().enumerate() {
            for other in &nets[index + 1..] {
                if one.contains(*other) || other.contains(*one) {
                    return Err(format!("OverlappingSubnetsNotPermittedInSecurityRule in {}", new.name));
                }
                if one.addr().is_ipv4() != other.addr().is_ipv4() {
                    return Err(format!("mixed families in {}", new.name));
                }
            }
        }
    }
    if new.name.len() > 80 || new.description.len() > 140 {
        return Err(format!("too long: {}", new.name));
    }
    Ok(())
}

/// Plans and does everything until nothing is left to do; panics when it does not come to an end.
pub fn settle(world: &mut Observed, wanted: &Wanted, now: Timestamp) -> Changes {
    for _ in 0..8 {
        let changes = portcullis::plan::changes::plan(world, wanted, &LIMITS, now);
        if changes.is_empty() {
            return changes;
        }
        for write in writes(&changes, world.lock) {
            apply(world, &write).unwrap_or_else(|error| panic!("{error}: {write:#?}\n{world:#?}"));
        }
    }
    panic!("no end: {:#?}", portcullis::plan::changes::plan(world, wanted, &LIMITS, now));
}

/// A packet.
#[derive(Clone, Copy, Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub port: u16,
    pub tcp: bool,
}

pub fn packet(source: &str, destination: &str, port: u16) -> Packet {
    Packet { source: ip(source), destination: ip(destination), port, tcp: true }
}

/// Whether a rule matches a packet, in a network of 10.0.0.0/8 and fd00::/8.
pub fn matches(rule: &Rule, packet: Packet) -> bool {
    let protocol = match &rule.protocol {
        RuleProtocol::Transport(Protocol::Any) => true,
        RuleProtocol::Transport(Protocol::Tcp) => packet.tcp,
        RuleProtocol::Transport(Protocol::Udp) => !packet.tcp,
        RuleProtocol::Other(_) => false,
    };
    protocol
        && rule.ports.iter().any(|range| range.first() <= packet.port && packet.port <= range.last())
        && rule.sources.iter().any(|peer| peer_matches(peer, packet.source))
        && rule.destinations.iter().any(|peer| peer_matches(peer, packet.destination))
}

fn peer_matches(peer: &Peer, address: IpAddr) -> bool {
    let inside = match address {
        IpAddr::V4(four) => four.octets()[0] == 10,
        IpAddr::V6(six) => six.octets()[0] == 0xfd,
    };
    let probe = address == IpAddr::from([168, 63, 129, 16]);
    match peer {
        Peer::Any => true,
        Peer::Net(network) => network.contains(&address),
        Peer::Tag(tag) => match tag.as_str() {
            "VirtualNetwork" => inside,
            "AzureLoadBalancer" => probe,
            "Internet" => !inside && !probe,
            // Whatever an unknown tag may hold.
            "Storage" => address == IpAddr::from([203, 0, 113, 8]),
            _ => false,
        },
        Peer::Group(_) | Peer::Unknown(_) => false,
    }
}

/// The rule that decides over a packet: the first that matches.
pub fn decider(world: &Observed, packet: Packet) -> Option<&Rule> {
    world.rules.iter().filter(|rule| matches(rule, packet)).min_by_key(|rule| rule.priority)
}

pub fn passes(world: &Observed, packet: Packet) -> bool {
    decider(world, packet).is_some_and(|rule| rule.access == Access::Allow)
}
