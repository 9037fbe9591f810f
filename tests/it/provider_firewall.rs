//! Azure Firewalls, classic and with a policy: worlds for the conformance suite, and what only they have.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::clock::Clock;
use portcullis::plan::model::{
    Address, DnatRule, FirewallHop, FirewallId, Hop, Machine, NetworkRule, NetworkView, Nic, Os, Peer,
    ResourceLock, Route, Rule, RuleProtocol, Translation,
};
use portcullis::providers::Cloud;
use portcullis::providers::memory::Memory;
use portcullis::providers::memory::faults::WriteFault;
use serde_json::{Value, json};

use crate::provider_conformance::{World, id, machine, net, rule};
use crate::provider_simulator::SimulatedWorld;

mod rules;

const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 40));
const SUBNET: &str = "10.0.250.0/26";

/// A firewall before the machine, written whole.
pub struct FirewallWorld<W> {
    inner: W,
    firewall: FirewallId,
}

pub fn named(short: &str) -> String {
    format!("portcullis-00c0ffee-{short}")
}

/// Packets come in at a port that follows from the number.
pub fn translating(short: &str, number: u16) -> Rule {
    Rule {
        translation: Some(Translation { address: PUBLIC, port: 50_000 + number }),
        ..rule(&named(short), number)
    }
}

pub fn samples() -> Vec<Rule> {
    vec![
        Rule {
            ports: vec![PortRange::new(5985, 5986).unwrap()],
            sources: vec![net("203.0.113.0/24"), net("198.51.100.7/32")],
            ..translating("range", 101)
        },
        translating("plain", 100),
        Rule {
            destinations: vec![net("10.0.0.4/32"), net("10.0.0.5/32")],
            sources: vec![net("10.9.0.0/16")],
            protocol: RuleProtocol::Transport(Protocol::Any),
            ports: vec![PortRange::single(22), PortRange::new(5985, 5986).unwrap()],
            translation: None,
            ..translating("through", 102)
        },
        Rule { protocol: RuleProtocol::Transport(Protocol::Udp), ..translating("udp", 103) },
    ]
    .into_iter()
    .map(|rule| (rule.name.clone(), rule))
    .collect::<std::collections::BTreeMap<_, _>>()
    .into_values()
    .collect()
}

pub fn wrong() -> Vec<(Rule, &'static str)> {
    vec![
        (Rule { access: portcullis::plan::model::Access::Deny, ..translating("deny", 100) }, "a deny"),
        (Rule { sources: vec![net("2001:db8::1/128")], ..translating("six", 100) }, "IPv6"),
        (Rule { sources: vec![], ..translating("nobody", 100) }, "no source"),
        (Rule { ports: vec![], ..translating("no-port", 100) }, "no port"),
        (Rule { sources: vec![Peer::Unknown("?".into())], ..translating("strange", 100) }, "unknown peer"),
        (
            Rule { destinations: vec![net("10.0.0.4/32"), net("10.0.0.5/32")], ..translating("two", 100) },
            "led on to two addresses",
        ),
    ]
}

/// The simulator's, by the ids of what holds the collections.
pub struct Simulated {
    world: SimulatedWorld,
    /// The classic firewall, or the group of others in the policy.
    foreign: String,
    policy: bool,
}

impl Simulated {
    fn nat_rules(&self, rules: &[Rule]) -> Vec<Value> {
        let protocols = if self.policy { "ipProtocols" } else { "protocols" };
        let one = |(n, rule): (usize, &Rule)| {
            let mut value = json!({
                "name": rule.name, "sourceAddresses": ["203.0.113.9"], "destinationAddresses": [PUBLIC.to_string()],
                "destinationPorts": [(1000 + n).to_string()], "translatedAddress": format!("10.1.{}.{}", n / 200, n % 200 + 1),
                "translatedPort": "22",
            });
            value[protocols] = json!(["TCP"]);
            if self.policy {
                value["ruleType"] = json!("NatRule");
            }
            value
        };
        rules.iter().enumerate().map(one).collect()
    }

    async fn set_foreign(&self, rules: Vec<Value>) {
        let mut body = self.world.read(&self.foreign).await;
        let collection = if self.policy {
            json!({"name": "theirs", "priority": 300, "ruleCollectionType": "FirewallPolicyNatRuleCollection",
                "action": {"type": "DNAT"}, "rules": rules})
        } else {
            json!({"name": "theirs", "properties": {"priority": 300, "action": {"type": "Dnat"}, "rules": rules}})
        };
        let list = if self.policy { "ruleCollections" } else { "natRuleCollections" };
        let mut kept: Vec<Value> = body["properties"][list].as_array().cloned().unwrap_or_default();
        kept.retain(|collection| collection["name"] != "theirs");
        if !collection["rules"]
            .as_array()
            .or(collection["properties"]["rules"].as_array())
            .unwrap()
            .is_empty()
        {
            kept.push(collection);
        }
        body["properties"][list] = json!(kept);
        // Another write under way refuses it.
        let begun = std::time::Instant::now();
        while let Err(why) = self.world.try_set(&self.foreign, &body) {
            assert!(why.contains("AnotherOperationInProgress") && begun.elapsed().as_secs() < 20, "{why}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn foreign_rules(&self) -> Vec<Value> {
        let body = self.world.read(&self.foreign).await;
        let list = if self.policy { "ruleCollections" } else { "natRuleCollections" };
        let theirs =
            body["properties"][list].as_array().into_iter().flatten().find(|it| it["name"] == "theirs");
        let rules = theirs.map(|it| if self.policy { &it["rules"] } else { &it["properties"]["rules"] });
        rules.and_then(Value::as_array).cloned().unwrap_or_default()
    }
}

/// A classic firewall in the machine's own network.
pub async fn classic() -> FirewallWorld<Simulated> {
    let world = SimulatedWorld::start().await;
    let foreign = world.firewall("web", "net", SUBNET, &json!({}));
    world.routes(&[("0.0.0.0/0", "10.0.250.4")]);
    let firewall = FirewallId(ArmId::parse(&foreign).unwrap());
    FirewallWorld { inner: Simulated { world, foreign, policy: false }, firewall }
}

/// The same with a policy, in which others have a group.
pub async fn with_policy() -> FirewallWorld<Simulated> {
    let world = SimulatedWorld::start().await;
    let policy = id("Microsoft.Network/firewallPolicies", "rules").to_string();
    world.set(&policy, &json!({"location": "westeurope"}));
    let foreign = format!("{policy}/ruleCollectionGroups/theirs");
    world.set(&foreign, &json!({"properties": {"priority": 200, "ruleCollections": []}}));
    world.firewall("web", "net", SUBNET, &json!({"firewallPolicy": {"id": policy}}));
    world.routes(&[("0.0.0.0/0", "10.0.250.4")]);
    let firewall = FirewallId(ArmId::parse(&policy).unwrap());
    FirewallWorld { inner: Simulated { world, foreign, policy: true }, firewall }
}

#[async_trait]
impl World for FirewallWorld<Simulated> {
    fn cloud(&self) -> Cloud {
        self.inner.world.cloud()
    }

    async fn foreign_put(&self, _: &FirewallId, rule: &Rule) {
        let mut rules = self.inner.foreign_rules().await;
        let mut one = self.inner.nat_rules(std::slice::from_ref(rule));
        one[0]["destinationPorts"] = json!([(1000 + rules.len()).to_string()]);
        rules.append(&mut one);
        self.inner.set_foreign(rules).await;
    }

    async fn foreign_delete(&self, _: &FirewallId, name: &str) {
        let mut rules = self.inner.foreign_rules().await;
        rules.retain(|rule| rule["name"] != name);
        self.inner.set_foreign(rules).await;
    }

    async fn set_lock(&self, firewall: &FirewallId, lock: ResourceLock) {
        self.inner.world.set_lock(firewall, lock).await;
    }

    async fn fill(&self, firewall: &FirewallId, _: usize) {
        // Public addresses and those that they lead to: that limit is met first.
        let most = self.cloud().firewall.limits(firewall).addresses;
        let rules: Vec<Rule> = (1..most).map(|n| rule(&format!("fill-{n}"), 1000)).collect();
        self.inner.set_foreign(self.inner.nat_rules(&rules)).await;
    }

    async fn lose_next_answer(&self) {
        let path = if self.inner.policy { "/ruleCollectionGroups/" } else { "/azureFirewalls/" };
        let fault = json!({"method": "PUT", "path": path, "count": 1, "effect": "resetAfterCommit"});
        self.inner.world.control("faults", &fault).await;
    }

    async fn slow_writes(&self) {
        let operations =
            json!({"operations": {"azureFirewalls.write": "1s", "ruleCollectionGroups.write": "1s"}});
        self.inner.world.control("latency", &operations).await;
    }

    async fn others(&self) -> Value {
        let mut body = self.inner.world.read(&self.inner.foreign).await;
        let list = if self.inner.policy { "ruleCollections" } else { "natRuleCollections" };
        let mut theirs = body["properties"][list].take();
        for collection in theirs.as_array_mut().unwrap() {
            collection.as_object_mut().unwrap().remove("etag");
        }
        let theirs: Vec<Value> =
            theirs.as_array().unwrap().iter().filter(|it| it["name"] == "theirs").cloned().collect();
        json!(theirs)
    }

    fn firewall(&self) -> FirewallId {
        self.firewall.clone()
    }

    fn absent_firewall(&self) -> FirewallId {
        let kind = if self.inner.policy { "firewallPolicies" } else { "azureFirewalls" };
        FirewallId(id(&format!("Microsoft.Network/{kind}"), "no-such"))
    }

    fn wrong(&self) -> Vec<(Rule, &'static str)> {
        let mut wrong = wrong();
        wrong.push((
            Rule {
                translation: Some(Translation { address: PUBLIC, port: 64_000 }),
                ..translating("high", 100)
            },
            "a port that DNAT does not have",
        ));
        wrong.push((
            Rule { name: "somebody".into(), ..translating("x", 100) },
            "not the name of a rule of ours",
        ));
        wrong
    }
}

/// The firewall that leads packets on, in memory.
pub fn memory_firewall() -> FirewallId {
    FirewallId(id("Microsoft.Network/azureFirewalls", "fw"))
}

/// A machine behind it.
pub fn behind(path: Vec<FirewallId>) -> Machine {
    let hop = FirewallHop {
        id: memory_firewall(),
        address: IpAddr::from([10, 0, 250, 4]),
        policies: Vec::new(),
        publics: vec![PUBLIC],
        subnets: vec![SUBNET.parse().unwrap()],
        routes: vec![
            Route { to: "0.0.0.0/0".parse().unwrap(), by_it: true },
            Route { to: "10.0.0.0/16".parse().unwrap(), by_it: false },
        ],
    };
    Machine {
        id: machine(),
        vm_id: "b5a1c3f0-0000-4000-8000-000000000001".into(),
        os: Os::Linux,
        tags: [("Role".to_owned(), "web".to_owned())].into(),
        nics: vec![Nic {
            id: id("Microsoft.Network/networkInterfaces", "web-1-nic"),
            addresses: vec![Address {
                ip: IpAddr::from([10, 0, 0, 4]),
                public: None,
                has_public: false,
                path,
                hops: vec![Hop::Firewall(hop)],
                groups: vec![],
                network: NetworkView {
                    virtual_network: vec!["10.0.0.0/16".parse().unwrap()],
                    admin_rules: None,
                    twin: None,
                },
            }],
        }],
    }
}

pub fn in_memory() -> FirewallWorld<Memory> {
    let memory = Memory::new(Clock::manual("2026-11-22T08:00:00Z".parse().unwrap()));
    memory.add_firewall(memory_firewall());
    memory.set_machine(behind(Vec::new()));
    FirewallWorld { inner: memory, firewall: memory_firewall() }
}

#[async_trait]
impl World for FirewallWorld<Memory> {
    fn cloud(&self) -> Cloud {
        self.inner.cloud()
    }

    async fn foreign_put(&self, firewall: &FirewallId, rule: &Rule) {
        self.inner.edit_others(firewall, |others| {
            let to = Some((IpAddr::from([10, 1, 0, 1]), PortRange::single(22)));
            others.translations.push(DnatRule { rule: rule.clone(), to, part_of: None });
            others.filters.push(NetworkRule { rule: rule.clone(), comes_first: false, part_of: None });
        });
    }

    async fn foreign_delete(&self, firewall: &FirewallId, name: &str) {
        self.inner.edit_others(firewall, |others| {
            others.translations.retain(|dnat| dnat.rule.name != name);
            others.filters.retain(|filter| filter.rule.name != name);
        });
    }

    async fn set_lock(&self, firewall: &FirewallId, lock: ResourceLock) {
        self.inner.set_lock(firewall, lock);
    }

    async fn fill(&self, firewall: &FirewallId, count: usize) {
        self.inner.edit_rules(firewall, |rules| {
            rules.extend((0..count).map(|n| translating(&format!("fill-{n}"), 0)));
        });
    }

    async fn lose_next_answer(&self) {
        self.inner.faults(|faults| faults.break_write(1, WriteFault::AnswerLost));
    }

    async fn slow_writes(&self) {
        self.inner.faults(|faults| faults.write_time = Duration::from_secs(1));
    }

    async fn others(&self) -> Value {
        let observed = self.inner.cloud().firewall.observe(&self.firewall).await.unwrap();
        let mut standing = observed.translating.unwrap();
        standing.translations.retain(|dnat| dnat.part_of.is_none());
        standing.filters.retain(|filter| filter.part_of.is_none());
        format!("{standing:?}").into()
    }

    fn firewall(&self) -> FirewallId {
        self.firewall.clone()
    }

    fn absent_firewall(&self) -> FirewallId {
        FirewallId(id("Microsoft.Network/azureFirewalls", "no-such"))
    }
}
