//! Azure Firewalls, classic and with a policy: worlds for the conformance suite, and what only they have.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::clock::Clock;
use portcullis::plan::model::{
    Address, DnatRule, FirewallHop, FirewallId, Hop, Machine, NetworkRule, NetworkView, Nic, Os, Peer,
    Provisioning, ResourceLock, Route, Rule, RuleProtocol, Translation,
};
use portcullis::providers::memory::Memory;
use portcullis::providers::memory::faults::WriteFault;
use portcullis::providers::{Change, Cloud, CloudErrorKind};
use serde_json::{Value, json};

use crate::provider_conformance::{World, id, machine, net, rule};
use crate::provider_simulator::{OTHER_SUBSCRIPTION, SimulatedWorld};

const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 40));
const SUBNET: &str = "10.0.250.0/26";

/// A firewall before the machine, written whole.
pub struct FirewallWorld<W> {
    inner: W,
    firewall: FirewallId,
}

fn named(short: &str) -> String {
    format!("portcullis-00c0ffee-{short}")
}

/// Packets come in at a port that follows from the number.
fn leading(short: &str, number: u16) -> Rule {
    Rule {
        translation: Some(Translation { address: PUBLIC, port: 50_000 + number }),
        ..rule(&named(short), number)
    }
}

fn leading_samples() -> Vec<Rule> {
    vec![
        Rule {
            ports: vec![PortRange::new(5985, 5986).unwrap()],
            sources: vec![net("203.0.113.0/24"), net("198.51.100.7/32")],
            ..leading("range", 101)
        },
        leading("plain", 100),
        Rule {
            destinations: vec![net("10.0.0.4/32"), net("10.0.0.5/32")],
            sources: vec![net("10.9.0.0/16")],
            protocol: RuleProtocol::Transport(Protocol::Any),
            ports: vec![PortRange::single(22), PortRange::new(5985, 5986).unwrap()],
            translation: None,
            ..leading("through", 102)
        },
        Rule { protocol: RuleProtocol::Transport(Protocol::Udp), ..leading("udp", 103) },
    ]
    .into_iter()
    .map(|rule| (rule.name.clone(), rule))
    .collect::<std::collections::BTreeMap<_, _>>()
    .into_values()
    .collect()
}

fn not_to_be_led() -> Vec<(Rule, &'static str)> {
    vec![
        (Rule { access: portcullis::plan::model::Access::Deny, ..leading("deny", 100) }, "a deny"),
        (Rule { sources: vec![net("2001:db8::1/128")], ..leading("six", 100) }, "IPv6"),
        (Rule { sources: vec![], ..leading("nobody", 100) }, "no source"),
        (Rule { ports: vec![], ..leading("no-port", 100) }, "no port"),
        (Rule { sources: vec![Peer::Unknown("?".into())], ..leading("strange", 100) }, "unknown peer"),
        (
            Rule { destinations: vec![net("10.0.0.4/32"), net("10.0.0.5/32")], ..leading("two", 100) },
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

    fn name(&self, short: &str) -> String {
        named(short)
    }

    fn rule(&self, short: &str, number: u16) -> Rule {
        leading(short, number)
    }

    fn samples(&self) -> Vec<Rule> {
        leading_samples()
    }

    fn wrong(&self) -> Vec<(Rule, &'static str)> {
        let mut wrong = not_to_be_led();
        wrong.push((
            Rule { translation: Some(Translation { address: PUBLIC, port: 64_000 }), ..leading("high", 100) },
            "a port that DNAT does not have",
        ));
        wrong.push((Rule { name: "somebody".into(), ..leading("x", 100) }, "not the name of a rule of ours"));
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
            rules.extend((0..count).map(|n| leading(&format!("fill-{n}"), 0)));
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

    fn name(&self, short: &str) -> String {
        named(short)
    }

    fn rule(&self, short: &str, number: u16) -> Rule {
        leading(short, number)
    }

    fn samples(&self) -> Vec<Rule> {
        leading_samples()
    }

    fn wrong(&self) -> Vec<(Rule, &'static str)> {
        not_to_be_led()
    }
}

/// What passes, in both of Azure's readings of a network rule that denies.
async fn passes(world: &SimulatedWorld, source: &str, port: u16) -> Vec<bool> {
    let mut found = Vec::new();
    for deny_stops in [false, true] {
        let probe = json!({"source": source, "destination": PUBLIC.to_string(), "port": port, "protocol": "Tcp",
            "networkDenyStopsDnat": deny_stops});
        found.push(world.control("probe", &probe).await["allowed"].as_bool().unwrap());
    }
    found
}

async fn packets_are_led_on_while_a_rule_stands(world: &FirewallWorld<Simulated>) {
    let sim = &world.inner.world;
    let group = json!({"location": "westeurope", "properties": {"securityRules": [{"name": "fw", "properties": {
        "access": "Allow", "direction": "Inbound", "priority": 100, "protocol": "Tcp", "sourceAddressPrefix": SUBNET,
        "destinationAddressPrefix": "10.0.0.4", "sourcePortRange": "*", "destinationPortRange": "22"}}]}});
    sim.set(crate::provider_conformance::firewall().as_str(), &group);
    assert_eq!(passes(sim, "203.0.113.7", 50_100).await, [false, false]);
    let cloud = world.cloud();
    let changes = [
        Change::Put(leading("one", 100)),
        Change::Put(Rule { sources: vec![net("203.0.113.8/32")], ..leading("two", 200) }),
    ];
    cloud.firewall.write(&world.firewall(), &changes, world.patience()).await.unwrap();
    assert_eq!(passes(sim, "203.0.113.7", 50_100).await, [true, true]);
    assert_eq!(passes(sim, "203.0.113.8", 50_200).await, [true, true]);
    assert_eq!(passes(sim, "203.0.113.8", 50_100).await, [false, false], "each by its own port alone");
    let changes = [Change::Remove(named("one")), Change::Put(leading("two", 200))];
    cloud.firewall.write(&world.firewall(), &changes, world.patience()).await.unwrap();
    assert_eq!(passes(sim, "203.0.113.7", 50_100).await, [false, false]);
    assert_eq!(passes(sim, "203.0.113.7", 50_200).await, [true, true]);
}

#[tokio::test]
async fn packets_are_led_on_while_a_rule_of_a_classic_firewall_stands() {
    packets_are_led_on_while_a_rule_stands(&classic().await).await;
}

#[tokio::test]
async fn packets_are_led_on_while_a_rule_of_a_policy_stands() {
    packets_are_led_on_while_a_rule_stands(&with_policy().await).await;
}

/// Somebody else writes the firewall again and again while rules of ours come and go: what he wrote last is there.
#[tokio::test]
async fn what_somebody_else_writes_meanwhile_is_not_lost() {
    let world = classic().await;
    let cloud = world.cloud();
    let ours = async {
        for round in 0..12_u16 {
            for change in [Change::Put(leading("busy", round)), Change::Remove(named("busy"))] {
                // Another write under way is refused; it is sent again, as a gate does.
                let begun = tokio::time::Instant::now();
                while let Err(error) = cloud
                    .firewall
                    .write(&world.firewall(), std::slice::from_ref(&change), world.patience())
                    .await
                {
                    assert_eq!(error.kind, CloudErrorKind::Retryable, "{error}");
                    assert!(begun.elapsed() < world.patience(), "{error}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    };
    let theirs = async {
        for count in 1..=12 {
            let rules: Vec<Rule> = (0..count).map(|n| rule(&format!("their-{n}"), 300)).collect();
            world.inner.set_foreign(world.inner.nat_rules(&rules)).await;
            tokio::time::sleep(Duration::from_millis(60)).await;
        }
    };
    tokio::join!(ours, theirs);
    assert_eq!(world.inner.foreign_rules().await.len(), 12);
    let read = cloud.firewall.observe(&world.firewall()).await.unwrap();
    assert_eq!(read.rules, []);
}

#[tokio::test]
async fn what_parents_of_a_policy_deny_comes_first_and_one_that_may_not_be_read_is_told() {
    let world = with_policy().await;
    let sim = &world.inner.world;
    let base = id("Microsoft.Network/firewallPolicies", "base").to_string();
    sim.set(&base, &json!({"location": "westeurope"}));
    let deny = |name: &str| {
        json!({"name": name, "priority": 60_000, "ruleCollectionType": "FirewallPolicyFilterRuleCollection",
        "action": {"type": "Deny"}, "rules": [{"name": "all", "ruleType": "NetworkRule", "ipProtocols": ["TCP"],
        "sourceAddresses": ["*"], "destinationAddresses": ["10.0.0.0/16"], "destinationPorts": ["22"]}]})
    };
    let group = |name: &str| json!({"properties": {"priority": 60_000, "ruleCollections": [deny(name)]}});
    sim.set(&format!("{base}/ruleCollectionGroups/late"), &group("parents"));
    let own = world.firewall().to_string();
    sim.set(&own, &json!({"location": "westeurope", "properties": {"basePolicy": {"id": base}}}));
    sim.set(&format!("{own}/ruleCollectionGroups/theirs"), &group("own"));
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &leading("one", 100), world.patience()).await.unwrap();
    // What is called like ours in a parent is not ours here: it is written there.
    let parent = FirewallId(ArmId::parse(&base).unwrap());
    cloud.firewall.put(&parent, &leading("parents", 101), world.patience()).await.unwrap();
    let rules = cloud.firewall.observe(&world.firewall()).await.unwrap().rules;
    assert_eq!(rules.iter().map(|rule| rule.name.as_str()).collect::<Vec<_>>(), [named("one")]);
    cloud.firewall.delete(&parent, &named("parents"), world.patience()).await.unwrap();
    let read = cloud.firewall.observe(&world.firewall()).await.unwrap().translating.unwrap();
    let order: Vec<(&str, bool)> =
        read.filters.iter().map(|filter| (filter.rule.name.as_str(), filter.comes_first)).collect();
    let ours = format!("portcullis-00c0ffee-net/{}", named("one"));
    assert_eq!(order, [("parents/all", true), (ours.as_str(), false), ("own/all", false)]);
    assert_eq!(read.unread, None);
    // Microsoft's first reading: what the parent denies does not pass, whatever ours allows.
    assert_eq!(passes(sim, "203.0.113.7", 50_100).await, [true, false]);

    let options = sim.options();
    let permissions = json!([
        {"actions": ["*"], "scopes": [own]},
        {"actions": ["*"], "notActions": ["Microsoft.Network/firewallPolicies/ruleCollectionGroups/read"], "scopes": [base]},
    ]);
    let principal = json!({"clientId": options.client_id, "secrets": [options.client_secret], "permissions": permissions});
    sim.control("principals", &principal).await;
    let read = cloud.firewall.observe(&world.firewall()).await.unwrap().translating.unwrap();
    assert!(read.unread.is_some_and(|why| why.contains("base") && why.contains("ruleCollectionGroups/read")));
}

#[tokio::test]
async fn a_firewall_that_has_failed_says_so_and_who_may_not_write_is_told() {
    let world = classic().await;
    let sim = &world.inner.world;
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &leading("live", 99), world.patience()).await.unwrap();
    let mut body = sim.read(&world.inner.foreign).await;
    let before = body["properties"]["networkRuleCollections"].clone();
    body["properties"]["networkRuleCollections"] = json!([before[0].clone(), {"name": "six", "properties": {"priority": 900, "action": {"type": "Allow"},
        "rules": [{"name": "six", "protocols": ["Any"], "sourceAddresses": ["2001:db8::/64"], "destinationAddresses": ["*"], "destinationPorts": ["*"]}]}}]);
    sim.set(&world.inner.foreign, &body);
    let read = cloud.firewall.observe(&world.firewall()).await.unwrap();
    let (failed, done) = (Provisioning::Failed, Provisioning::Succeeded);
    // That says nothing of a rule that stands: no grant ends for it.
    assert_eq!((read.provisioning, read.rule(&named("live")).unwrap().provisioning), (failed, done));
    assert!(read.rule(&named("live")).unwrap().same_effect(&leading("live", 99)));
    let error =
        cloud.firewall.put(&world.firewall(), &leading("one", 100), world.patience()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Ambiguous, "{error}");
    body["properties"]["networkRuleCollections"] = before;
    sim.set(&world.inner.foreign, &body);
    cloud.firewall.put(&world.firewall(), &leading("one", 100), world.patience()).await.unwrap();

    let options = sim.options();
    let permissions = json!([{"actions": ["*"], "notActions": ["Microsoft.Network/azureFirewalls/write"], "scopes": ["/"]}]);
    let principal = json!({"clientId": options.client_id, "secrets": [options.client_secret], "permissions": permissions});
    sim.control("principals", &principal).await;
    let error = cloud.firewall.delete(&world.firewall(), &named("one"), world.patience()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::NotPermitted, "{error}");
    assert!(error.to_string().contains("azureFirewalls/write"), "{error}");
}

#[tokio::test]
async fn a_policy_of_another_subscription_is_found_and_written() {
    let world = SimulatedWorld::start().await;
    let policy = format!(
        "/subscriptions/{OTHER_SUBSCRIPTION}/resourceGroups/network/providers/Microsoft.Network/firewallPolicies/central"
    );
    world.set(&policy, &json!({"location": "westeurope"}));
    world.firewall("web", "net", SUBNET, &json!({"firewallPolicy": {"id": policy}}));
    world.routes(&[("0.0.0.0/0", "10.0.250.4")]);
    let found = world.cloud().inventory.machine(&machine()).await.unwrap().unwrap();
    let central = FirewallId(ArmId::parse(&policy).unwrap());
    assert_eq!(found.translating_firewalls(), std::slice::from_ref(&central));
    let open = json!({"location": "westeurope", "properties": {"securityRules": [{"name": "fw", "properties": {
        "access": "Allow", "direction": "Inbound", "priority": 100, "protocol": "Tcp", "sourceAddressPrefix": SUBNET,
        "destinationAddressPrefix": "10.0.0.4", "sourcePortRange": "*", "destinationPortRange": "22"}}]}});
    world.set(crate::provider_conformance::firewall().as_str(), &open);
    world.cloud().firewall.put(&central, &leading("one", 100), Duration::from_secs(20)).await.unwrap();
    assert_eq!(passes(&world, "203.0.113.7", 50_100).await, [true, true]);
    world.cloud().firewall.delete(&central, &named("one"), Duration::from_secs(20)).await.unwrap();
    assert_eq!(passes(&world, "203.0.113.7", 50_100).await, [false, false]);
}
