//! The oracle against a second, naive evaluation over plain numbers, and exposure against asking at every moment.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Probe, evaluate};
use crate::{
    arm::{ids::ResourceId, store::Fact},
    oracle::{
        index::Index,
        plane::{Change, DataPlane, Facts},
        tags::ServiceTags,
    },
};

const GROUP: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";

/// A rule as numbers: `length` bits of `base` are its source.
#[derive(Debug, Clone)]
struct Simple {
    allow: bool,
    base: u32,
    length: u8,
    low: u16,
    high: u16,
    udp: Option<bool>,
}

fn simple() -> impl Strategy<Value = Simple> {
    let ports = (0u16..6, 0u16..6).prop_map(|(a, b)| (a.min(b), a.max(b)));
    (any::<bool>(), 0u32..8, 29u8..=32, ports, prop::option::of(any::<bool>())).prop_map(
        |(allow, last, length, (low, high), udp)| Simple {
            allow,
            base: 0xCB00_7100 + last,
            length,
            low,
            high,
            udp,
        },
    )
}

impl Simple {
    fn document(&self, priority: usize) -> Value {
        let protocol = match self.udp {
            None => "*",
            Some(true) => "Udp",
            Some(false) => "Tcp",
        };
        json!({"properties": {
            "access": if self.allow { "Allow" } else { "Deny" }, "direction": "Inbound", "priority": priority,
            "protocol": protocol, "sourceAddressPrefix": format!("{}/{}", Ipv4Addr::from(self.base), self.length),
            "sourcePortRange": "*", "destinationAddressPrefix": "10.0.0.4",
            "destinationPortRange": format!("{}-{}", self.low, self.high)}})
    }

    fn hits(&self, source: u32, port: u16, udp: bool) -> bool {
        let shift = 32 - u32::from(self.length);
        source >> shift == self.base >> shift
            && self.low <= port
            && port <= self.high
            && self.udp.is_none_or(|u| u == udp)
    }
}

fn fact(path: &str, body: Value) -> Change {
    let id = ResourceId::parse(&format!("{GROUP}/{path}")).unwrap();
    (id.key.clone(), Some(Arc::new(Fact { id, body })))
}

fn world(outer: &[Simple], inner: &[Simple]) -> Vec<Change> {
    let reference = |path: &str| json!({"id": format!("{GROUP}/{path}")});
    let mut facts = vec![
        fact(
            "virtualNetworks/v",
            json!({"properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}}}),
        ),
        fact(
            "virtualNetworks/v/subnets/s",
            json!({"properties": {"addressPrefix": "10.0.0.0/24", "networkSecurityGroup": reference("networkSecurityGroups/outer")}}),
        ),
        fact(
            "networkInterfaces/n",
            json!({"properties": {"networkSecurityGroup": reference("networkSecurityGroups/inner"), "ipConfigurations": [
                {"properties": {"privateIPAddress": "10.0.0.4", "subnet": reference("virtualNetworks/v/subnets/s")}}]}}),
        ),
    ];
    for (name, rules) in [("outer", outer), ("inner", inner)] {
        facts.push(fact(&format!("networkSecurityGroups/{name}"), json!({"properties": {}})));
        for (index, rule) in rules.iter().enumerate() {
            // Names and priorities run against each other: order must come from priority.
            let path = format!("networkSecurityGroups/{name}/securityRules/r{:03}", 999 - index);
            facts.push(fact(&path, rule.document(100 + index)));
        }
    }
    facts
}

fn probe(source: u32, port: u16, udp: bool) -> Probe {
    Probe {
        source: IpAddr::V4(Ipv4Addr::from(source)),
        destination: IpAddr::from([10, 0, 0, 4]),
        port,
        protocol: if udp { "udp".into() } else { "tcp".into() },
        source_port: 50_000,
        network: None,
        network_deny_stops_dnat: None,
    }
}

/// First in the list that matches, else closed: the internet meets the default deny.
fn naive(rules: &[Simple], source: u32, port: u16, udp: bool) -> bool {
    rules.iter().find(|r| r.hits(source, port, udp)).is_some_and(|r| r.allow)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_first_match_by_priority_decides_in_both_groups(
        outer in prop::collection::vec(simple(), 0..8),
        inner in prop::collection::vec(simple(), 0..8),
    ) {
        let facts: Facts =
            world(&outer, &inner).into_iter().filter_map(|(key, fact)| Some((key, fact?))).collect();
        let index = Index::build(&facts);
        let tags = ServiceTags::default();
        for last in 0..8 {
            for port in 0..6 {
                for udp in [false, true] {
                    let source = 0xCB00_7100 + last;
                    let answer = evaluate(&facts, &index, &tags, &probe(source, port, udp)).unwrap();
                    let wanted = naive(&outer, source, port, udp) && naive(&inner, source, port, udp);
                    prop_assert_eq!(answer.allowed, wanted, "{:?}", answer.decided_by);
                }
            }
        }
    }

    #[test]
    fn exposure_is_what_asking_at_every_moment_would_have_shown(
        steps in prop::collection::vec((1i64..5, prop::option::of(simple())), 1..12),
        from in 0i64..30,
    ) {
        let start = Timestamp::from_second(1000).unwrap();
        let at = |seconds: i64| start + SignedDuration::from_secs(seconds);
        let mut plane = DataPlane::default();
        let open = Simple { allow: true, base: 0xCB00_7100, length: 24, low: 0, high: 9, udp: None };
        plane.apply(start, world(&[open], &[]));
        let mut now = 0;
        let mut states = vec![(0, None)];
        for (wait, rule) in steps {
            now += wait;
            let path = "networkSecurityGroups/inner/securityRules/r";
            let (key, new) = fact(path, rule.as_ref().map_or(Value::Null, |r| r.document(100)));
            plane.apply(at(now), vec![(key, rule.is_some().then_some(new).flatten())]);
            states.push((now, rule));
        }
        let to = now + 3;
        prop_assume!(from <= to);
        let (source, port) = (0xCB00_7103, 3);
        let tags = ServiceTags::default();
        let found = plane.exposure(&tags, &probe(source, port, false), at(from), at(to)).unwrap();
        for second in from..to {
            let rule = states.iter().rev().find(|(when, _)| *when <= second).and_then(|(_, rule)| rule.clone());
            let passed = rule.is_some_and(|r| r.allow && r.hits(source, port, false));
            let within = found.iter().any(|i| i.from <= at(second) && i.to.is_none_or(|end| at(second) < end));
            prop_assert_eq!(within, passed, "at {} in {:?}", second, &found);
        }
    }
}
