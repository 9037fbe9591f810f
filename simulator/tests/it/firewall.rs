//! Azure Firewalls and firewall policies: what may be written, and what a packet to a public address meets.

use serde_json::{Value, json};

use crate::client::{Client, rule};

const OUTSIDE: &str = "203.0.113.7";
const PUBLIC: &str = "198.51.100.40";

/// A machine without a public address, and a firewall in front of it.
pub(crate) struct Site {
    pub(crate) client: Client,
    /// Of the machine's subnet.
    nsg: String,
    pub(crate) firewall: String,
    address: String,
}

impl Site {
    pub(crate) async fn new() -> Self {
        let client = Client::new().await;
        let vm = client.world(&json!({"name": "vm", "subnetNsg": "web", "privateIp": "10.0.0.4"})).await;
        let network = vm["network"].as_str().unwrap();
        let subnet = format!("{network}/subnets/AzureFirewallSubnet");
        client.create(&subnet, &json!({"properties": {"addressPrefix": "10.0.1.0/26"}})).await;
        let address = client.network("world", "publicIPAddresses/fw-ip");
        let properties = json!({"publicIPAllocationMethod": "Static", "ipAddress": PUBLIC});
        let body = json!({"location": "westeurope", "sku": {"name": "Standard"}, "properties": properties});
        client.create(&address, &body).await;
        let firewall = client.network("world", "azureFirewalls/fw");
        let site = Self { client, nsg: vm["subnetNsg"].as_str().unwrap().to_owned(), firewall, address };
        site.client.create(&site.firewall, &site.body(&json!({}))).await;
        site
    }

    fn body(&self, properties: &Value) -> Value {
        let subnet = self.client.network("world", "virtualNetworks/main/subnets/AzureFirewallSubnet");
        let config = json!({"subnet": {"id": subnet}, "publicIPAddress": {"id": self.address}});
        let mut body = json!({"location": "westeurope", "properties": {
            "ipConfigurations": [{"name": "public", "properties": config}]}});
        for (name, value) in properties.as_object().unwrap() {
            body["properties"][name] = value.clone();
        }
        body
    }

    pub(crate) async fn set(&self, properties: &Value) -> Value {
        self.client.create(&self.firewall, &self.body(properties)).await
    }

    async fn probe(&self, port: u16, deny_stops_dnat: bool) -> Value {
        let probe = json!({"source": OUTSIDE, "destination": PUBLIC, "port": port,
            "networkDenyStopsDnat": deny_stops_dnat});
        self.client.sim("probe", &probe).await
    }

    async fn allowed(&self, port: u16) -> bool {
        self.client.allowed(OUTSIDE, PUBLIC, port).await
    }

    async fn open_nsg(&self, source: &str) {
        let ssh = format!("{}/securityRules/ssh", self.nsg);
        self.client.create(&ssh, &rule("Allow", 100, source, "10.0.0.4", "22")).await;
    }
}

pub(crate) fn nat(port: &str) -> Value {
    json!({"name": "in", "properties": {"priority": 200, "action": {"type": "Dnat"}, "rules": [nat_rule("protocols", port)]}})
}

fn nat_rule(protocols: &str, port: &str) -> Value {
    json!({"name": "ssh", protocols: ["TCP"], "sourceAddresses": [OUTSIDE], "destinationAddresses": [PUBLIC],
        "destinationPorts": [port], "translatedAddress": "10.0.0.4", "translatedPort": "22"})
}

pub(crate) fn network(access: &str, priority: u16) -> Value {
    let rule = json!({"name": "all", "protocols": ["Any"], "sourceAddresses": ["*"],
        "destinationAddresses": ["10.0.0.0/16"], "destinationPorts": ["*"]});
    json!({"name": format!("net-{access}"), "properties": {"priority": priority, "action": {"type": access}, "rules": [rule]}})
}

#[tokio::test]
async fn a_packet_is_translated_and_the_machine_sees_an_instance_of_the_firewall() {
    let site = Site::new().await;
    assert_eq!(site.probe(50_022, false).await["reason"], "NoNatRule: no DNAT rule of the firewall matches");
    let written = site.set(&json!({"natRuleCollections": [nat("50022")]})).await;
    let own = &written["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"];
    assert_eq!(own, "10.0.1.4");
    assert_eq!(
        written["properties"]["natRuleCollections"][0]["properties"]["provisioningState"],
        "Succeeded"
    );
    // Without a rule that denies, the default rules let the network's own addresses in, the firewall's too.
    let answer = site.probe(50_022, false).await;
    assert_eq!((&answer["allowed"], &answer["decidedBy"][0]["rule"]), (&json!(true), &json!("in/ssh")));
    assert_eq!(answer["decidedBy"][1]["rule"], "AllowVnetInBound");
}

#[tokio::test]
async fn the_group_behind_a_firewall_decides_on_the_address_that_the_machine_sees() {
    let site = Site::new().await;
    site.set(&json!({"natRuleCollections": [nat("50022")]})).await;
    let deny = format!("{}/securityRules/no-ssh", site.nsg);
    site.client.create(&deny, &rule("Deny", 1000, "*", "10.0.0.4", "22")).await;
    assert!(!site.allowed(50_022).await);
    site.open_nsg(OUTSIDE).await;
    assert!(!site.allowed(50_022).await, "the machine never sees the requester");
    site.open_nsg("10.0.1.0/26").await;
    let answer = site.probe(50_022, false).await;
    assert_eq!(answer["allowed"], true, "{answer}");
    let (source, port) = (&answer["translated"]["source"], &answer["translated"]["port"]);
    assert!(source.as_str().is_some_and(|s| s.starts_with("10.0.1.") && s != "10.0.1.4"), "{source}");
    assert_eq!(port, 22);
    for (source, port) in [("203.0.113.8", 50_022), (OUTSIDE, 50_023)] {
        assert!(!site.client.allowed(source, PUBLIC, port).await, "{source} {port}");
    }
    let back = json!({"source": OUTSIDE, "destination": PUBLIC, "port": 50_022, "protocol": "Udp"});
    assert_eq!(site.client.sim("probe", &back).await["allowed"], false);
}

#[tokio::test]
async fn a_network_rule_that_denies_stops_what_was_translated_in_one_of_the_two_readings() {
    let site = Site::new().await;
    site.open_nsg("10.0.1.0/26").await;
    for (rules, both) in [
        (json!([network("Deny", 300)]), false),
        (json!([network("Deny", 300), network("Allow", 200)]), true),
        (json!([network("Deny", 200), network("Allow", 300)]), false),
    ] {
        site.set(&json!({"natRuleCollections": [nat("50022")], "networkRuleCollections": rules})).await;
        assert_eq!(site.probe(50_022, false).await["allowed"], true);
        assert_eq!(site.probe(50_022, true).await["allowed"], both, "{rules}");
        site.client.sim("settings", &json!({"networkDenyStopsDnat": true})).await;
        assert_eq!(site.allowed(50_022).await, both, "the world says it where the probe does not");
        site.client.sim("settings", &json!({"networkDenyStopsDnat": false})).await;
    }
}

fn group(priority: u16, collections: &Value) -> Value {
    json!({"properties": {"priority": priority, "ruleCollections": collections}})
}

pub(crate) fn nat_group(priority: u16, port: &str, to: &str) -> Value {
    let mut rule = nat_rule("ipProtocols", port);
    rule["ruleType"] = json!("NatRule");
    rule["translatedAddress"] = json!(to);
    group(
        priority,
        &json!([{"name": "in", "priority": 200, "ruleCollectionType": "FirewallPolicyNatRuleCollection",
            "action": {"type": "DNAT"}, "rules": [rule]}]),
    )
}

#[tokio::test]
async fn parents_and_groups_of_a_policy_go_in_their_order() {
    let site = Site::new().await;
    let (parent, own) = (
        site.client.network("world", "firewallPolicies/parent"),
        site.client.network("world", "firewallPolicies/own"),
    );
    site.client.create(&parent, &json!({"location": "westeurope"})).await;
    let child = json!({"location": "westeurope", "properties": {"basePolicy": {"id": parent}}});
    site.client.create(&own, &child).await;
    site.set(&json!({"firewallPolicy": {"id": own}})).await;
    site.open_nsg("10.0.1.0/26").await;
    assert!(!site.allowed(50_022).await);
    let to = |name: &str| format!("{own}/ruleCollectionGroups/{name}");
    let made = site.client.create(&to("late"), &nat_group(300, "50022", "10.0.0.4")).await;
    assert!(made["properties"]["size"].as_str().is_some_and(|size| size.ends_with(" MB")), "{made}");
    assert!(site.allowed(50_022).await);
    // Elsewhere, by a group that goes first.
    site.client.create(&to("early"), &nat_group(200, "50022", "10.0.0.9")).await;
    assert!(!site.allowed(50_022).await);
    // The parent's goes before both, whatever its number.
    let above = format!("{parent}/ruleCollectionGroups/above");
    site.client.create(&above, &nat_group(60_000, "50022", "10.0.0.4")).await;
    let answer = site.probe(50_022, false).await;
    assert_eq!((&answer["allowed"], &answer["decidedBy"][0]["resource"]), (&json!(true), &json!(above)));
    site.client.remove(&above).await;
    assert!(!site.allowed(50_022).await);
    let seen = site.client.get(&own).await.body;
    assert_eq!(seen["properties"]["ruleCollectionGroups"].as_array().map(Vec::len), Some(2));
    assert_eq!(seen["properties"]["firewalls"][0]["id"], site.firewall);
    assert_eq!(site.client.get(&parent).await.body["properties"]["childPolicies"][0]["id"], own);
    assert_eq!(site.client.delete(&own).await.code(), "FirewallPolicyInUse");
}

#[tokio::test]
async fn one_write_at_a_time_and_it_counts_once_it_has_ended() {
    let site = Site::new().await;
    site.open_nsg("10.0.1.0/26").await;
    site.client.sim("clock", &json!({"scale": 0})).await;
    site.client.sim("latency", &json!({"operations": {"azureFirewalls.write": 240}})).await;
    let body = site.body(&json!({"natRuleCollections": [nat("50022")]}));
    let first = site.client.put(&site.firewall, &body).await;
    assert_eq!((first.status, &first.body["properties"]["provisioningState"]), (200, &json!("Updating")));
    let second = site.client.put(&site.firewall, &site.body(&json!({}))).await;
    assert_eq!((second.status, second.code()), (409, "AnotherOperationInProgress"));
    assert!(!site.allowed(50_022).await);
    site.client.sim("clock", &json!({"step": 241})).await;
    assert!(site.allowed(50_022).await);
    let etag = site.client.get(&site.firewall).await.header("etag").to_owned();
    let stale = site.client.request(reqwest::Method::PUT, &site.firewall).header("If-Match", "W/\"old\"");
    let stale = stale.json(&body).send().await.unwrap();
    assert_eq!(stale.status().as_u16(), 412);
    let fresh = site.client.request(reqwest::Method::PUT, &site.firewall).header("If-Match", etag);
    let fresh = fresh.json(&site.body(&json!({}))).send().await.unwrap();
    assert_eq!(fresh.status().as_u16(), 200);
    site.client.sim("clock", &json!({"step": 241})).await;
    let probe = json!({"source": OUTSIDE, "destination": PUBLIC, "port": 50_022});
    let exposed = site.client.sim("exposure", &probe).await;
    assert_eq!(exposed["intervals"].as_array().map(Vec::len), Some(1), "{exposed}");
    assert!(exposed["intervals"][0]["to"].is_string(), "{exposed}");
}

#[tokio::test]
async fn an_ipv6_address_in_a_rule_fails_the_firewall_which_goes_on_with_the_rules_it_had() {
    let site = Site::new().await;
    site.open_nsg("10.0.1.0/26").await;
    site.set(&json!({"natRuleCollections": [nat("50022")]})).await;
    let mut broken = nat("50023");
    broken["properties"]["rules"][0]["sourceAddresses"] = json!(["2001:db8::7"]);
    let write = site.client.put(&site.firewall, &site.body(&json!({"natRuleCollections": [broken]}))).await;
    assert_eq!(write.status, 200, "{}", write.body);
    assert_eq!(site.client.finish(&write).await, "Failed");
    let seen = site.client.get(&site.firewall).await.body;
    assert_eq!(seen["properties"]["provisioningState"], "Failed");
    assert!(site.allowed(50_022).await);
    site.set(&json!({})).await;
    assert!(!site.allowed(50_022).await);
}

#[tokio::test]
async fn what_a_firewall_cannot_be_is_refused_by_name() {
    let site = Site::new().await;
    let with = |change: &Value| {
        let mut collection = nat("50022");
        for (name, value) in change.as_object().unwrap() {
            collection["properties"]["rules"][0][name] = value.clone();
        }
        json!({"natRuleCollections": [collection]})
    };
    let mut low = nat("50022");
    low["properties"]["priority"] = json!(99);
    let mut same = nat("50023");
    same["name"] = json!("other");
    for (properties, code) in [
        (with(&json!({"destinationPorts": ["64000"]})), "AzureFirewallRuleInvalidDnatPortOrRangeFormat"),
        (with(&json!({"translatedPort": "22-23"})), "AzureFirewallRuleInvalidDnatPortOrRangeFormat"),
        (with(&json!({"translatedAddress": "vm"})), "AzureFirewallRuleInvalidTranslatedAddress"),
        (with(&json!({"sourceAddresses": []})), "AzureFirewallRuleAddressesMissing"),
        (with(&json!({"protocols": ["ICMP"]})), "InvalidRequestFormat"),
        (json!({"natRuleCollections": [low]}), "AzureFirewallInvalidRuleCollectionPriority"),
        (json!({"natRuleCollections": [nat("50022"), same]}), "AzureFirewallRuleCollectionConflict"),
        (
            json!({"natRuleCollections": [nat("50022")], "ipConfigurations": []}),
            "AzureFirewallIpConfigurationSubnetMissing",
        ),
        (json!({"natRuleCollections": [{"name": "in", "properties": 5}]}), "InvalidRequestFormat"),
        (
            json!({"firewallPolicy": {"id": "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/firewallPolicies/none"}}),
            "InvalidResourceReference",
        ),
    ] {
        let answer = site.client.put(&site.firewall, &site.body(&properties)).await;
        assert_eq!((answer.status, answer.code()), (400, code), "{properties}: {}", answer.body);
    }
    // Forced tunnelling: the public address is that of the management traffic alone.
    let subnet = site.client.network("world", "virtualNetworks/main/subnets/AzureFirewallSubnet");
    let config = json!([{"name": "inner", "properties": {"subnet": {"id": subnet}}}]);
    let tunnelled = json!({"ipConfigurations": config, "natRuleCollections": [nat("50022")]});
    let answer = site.client.put(&site.firewall, &site.body(&tunnelled)).await;
    assert_eq!(answer.code(), "AzureFirewallNatRuleForcedTunnelingNotSupported");
    assert_eq!(site.client.delete(&site.address).await.code(), "PublicIPAddressCannotBeDeleted");
}

#[tokio::test]
async fn a_connection_outlives_the_rule_that_let_it_in_unless_the_group_flushes_or_a_firewall_shuts() {
    let site = Site::new().await;
    let first = json!({"source": OUTSIDE, "destination": PUBLIC, "port": 50_022});
    assert!(site.client.sim("connect", &first).await["connection"].is_null());
    site.open_nsg("10.0.1.0/26").await;
    let deny = format!("{}/securityRules/no-ssh", site.nsg);
    site.client.create(&deny, &rule("Deny", 1000, "*", "10.0.0.4", "22")).await;
    let alive = async || {
        let all = site.client.look("connections").await;
        all.as_array().unwrap().iter().map(|one| one["alive"].as_bool().unwrap()).collect::<Vec<_>>()
    };
    site.set(&json!({"natRuleCollections": [nat("50022")]})).await;
    assert_eq!(site.client.sim("connect", &first).await["connection"], 1);
    // Another rule leaves it alone.
    site.set(
        &json!({"natRuleCollections": [nat("50022")], "networkRuleCollections": [network("Deny", 300)]}),
    )
    .await;
    assert_eq!(alive().await, [true]);
    site.client.remove(&format!("{}/securityRules/ssh", site.nsg)).await;
    assert!(!site.allowed(50_022).await);
    assert_eq!(alive().await, [true], "a group does not cut");
    // Switching it on cuts what is no longer let in.
    let mut group = site.client.get(&site.nsg).await.body;
    group["properties"]["flushConnection"] = json!(true);
    site.client.create(&site.nsg, &group).await;
    assert_eq!(alive().await, [false]);
    site.open_nsg("10.0.1.0/26").await;
    assert_eq!(alive().await, [false], "what was cut stays cut");
    assert_eq!(site.client.sim("connect", &first).await["connection"], 2);
    site.set(&json!({})).await;
    assert_eq!(alive().await, [false, false]);
    let cut = site.client.look("connections").await;
    assert_eq!(cut[1]["cutBy"]["reason"], "NoNatRule: no DNAT rule of the firewall matches");
}
