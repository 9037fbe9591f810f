//! What Azure Firewalls alone have: packets that are led on, what others write meanwhile, parents of policies.

use std::time::Duration;

use portcullis::api::values::ArmId;
use portcullis::plan::model::{FirewallId, Provisioning, Rule};
use portcullis::providers::{Change, CloudErrorKind};
use serde_json::json;

use super::{FirewallWorld, PUBLIC, SUBNET, Simulated, classic, named, translating, with_policy};
use crate::provider_conformance::{World, id, machine, net, rule};
use crate::provider_simulator::{OTHER_SUBSCRIPTION, SimulatedWorld};

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
        Change::Put(translating("one", 100)),
        Change::Put(Rule { sources: vec![net("203.0.113.8/32")], ..translating("two", 200) }),
    ];
    cloud.firewall.write(&world.firewall(), &changes, world.patience()).await.unwrap();
    assert_eq!(passes(sim, "203.0.113.7", 50_100).await, [true, true]);
    assert_eq!(passes(sim, "203.0.113.8", 50_200).await, [true, true]);
    assert_eq!(passes(sim, "203.0.113.8", 50_100).await, [false, false], "each by its own port alone");
    let changes = [Change::Remove(named("one")), Change::Put(translating("two", 200))];
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
            for change in [Change::Put(translating("busy", round)), Change::Remove(named("busy"))] {
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

/// Somebody else writes between our read and our write; what is left of theirs.
async fn theirs_in_between(if_match: bool) -> (Result<(), CloudErrorKind>, usize) {
    let world = classic().await;
    world.inner.world.control("settings", &json!({"ifMatch": if_match})).await;
    let ours_is_slow =
        json!({"method": "PUT", "path": "/azureFirewalls/", "count": 1, "effect": {"delay": "600ms"}});
    world.inner.world.control("faults", &ours_is_slow).await;
    let cloud = world.cloud();
    let change = [Change::Put(translating("busy", 1))];
    let theirs = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        world.inner.set_foreign(world.inner.nat_rules(&[rule("theirs", 300)])).await;
    };
    let (firewall, patience) = (world.firewall(), world.patience());
    let ours = cloud.firewall.write(&firewall, &change, patience);
    let (written, ()) = tokio::join!(ours, theirs);
    (written.map(|_| ()).map_err(|error| error.kind), world.inner.foreign_rules().await.len())
}

#[tokio::test]
async fn a_write_of_somebody_else_in_flight_is_kept_where_the_cloud_heeds_if_match_and_lost_where_not() {
    // Refused, read and written again.
    assert_eq!(theirs_in_between(true).await, (Ok(()), 1));
    // As docs/azure-firewall.md says: nobody can know of it.
    assert_eq!(theirs_in_between(false).await, (Ok(()), 0));
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
    cloud.firewall.put(&world.firewall(), &translating("one", 100), world.patience()).await.unwrap();
    // What is called like ours in a parent is not ours here: it is written there.
    let parent = FirewallId(ArmId::parse(&base).unwrap());
    cloud.firewall.put(&parent, &translating("parents", 101), world.patience()).await.unwrap();
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
    cloud.firewall.put(&world.firewall(), &translating("live", 99), world.patience()).await.unwrap();
    let mut body = sim.read(&world.inner.foreign).await;
    let before = body["properties"]["networkRuleCollections"].clone();
    body["properties"]["networkRuleCollections"] = json!([before[0].clone(), {"name": "six", "properties": {"priority": 900, "action": {"type": "Allow"},
        "rules": [{"name": "six", "protocols": ["Any"], "sourceAddresses": ["2001:db8::/64"], "destinationAddresses": ["*"], "destinationPorts": ["*"]}]}}]);
    sim.set(&world.inner.foreign, &body);
    let read = cloud.firewall.observe(&world.firewall()).await.unwrap();
    let (failed, done) = (Provisioning::Failed, Provisioning::Succeeded);
    // That says nothing of a rule that stands: no grant ends for it.
    assert_eq!((read.provisioning, read.rule(&named("live")).unwrap().provisioning), (failed, done));
    assert!(read.rule(&named("live")).unwrap().same_effect(&translating("live", 99)));
    let error =
        cloud.firewall.put(&world.firewall(), &translating("one", 100), world.patience()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Ambiguous, "{error}");
    body["properties"]["networkRuleCollections"] = before;
    sim.set(&world.inner.foreign, &body);
    cloud.firewall.put(&world.firewall(), &translating("one", 100), world.patience()).await.unwrap();

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
    world.cloud().firewall.put(&central, &translating("one", 100), Duration::from_secs(20)).await.unwrap();
    assert_eq!(passes(&world, "203.0.113.7", 50_100).await, [true, true]);
    world.cloud().firewall.delete(&central, &named("one"), Duration::from_secs(20)).await.unwrap();
    assert_eq!(passes(&world, "203.0.113.7", 50_100).await, [false, false]);
}
