//! What is found on the way to a machine's network, on the simulator: firewalls of its own network and of a hub,
//! appliances of others, and what may not be read.

use std::collections::BTreeMap;

use portcullis::plan::model::{FirewallHop, Hop, Machine};
use serde_json::{Value, json};

use crate::provider_conformance::{SUBSCRIPTION, World, machine};
use crate::provider_simulator::SimulatedWorld;

fn id(group: &str, rest: &str) -> String {
    format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/{group}/providers/Microsoft.Network/{rest}")
}

impl SimulatedWorld {
    /// A network of its own for a firewall, in a group of the same name.
    pub fn network(&self, name: &str, space: &str) {
        let properties = json!({"addressSpace": {"addressPrefixes": [space]}});
        self.set(
            &id(name, &format!("virtualNetworks/{name}")),
            &json!({"location": "westeurope", "properties": properties}),
        );
    }

    pub fn peer(&self, (from, from_group): (&str, &str), (to, to_group): (&str, &str)) {
        let remote = json!({"id": id(to_group, &format!("virtualNetworks/{to}"))});
        self.set(
            &id(from_group, &format!("virtualNetworks/{from}/virtualNetworkPeerings/{to}")),
            &json!({"properties": {"remoteVirtualNetwork": remote}}),
        );
    }

    /// A firewall in a network of a group: `198.51.100.40`, and the first address of `subnet`.
    pub fn firewall(&self, group: &str, network: &str, subnet: &str, properties: &Value) -> String {
        let home = id(group, &format!("virtualNetworks/{network}/subnets/AzureFirewallSubnet"));
        self.set(&home, &json!({"properties": {"addressPrefix": subnet}}));
        let public = id(group, "publicIPAddresses/fw");
        let address = json!({"publicIPAllocationMethod": "Static", "ipAddress": "198.51.100.40"});
        self.set(
            &public,
            &json!({"location": "westeurope", "sku": {"name": "Standard"}, "properties": address}),
        );
        let config = json!({"subnet": {"id": home}, "publicIPAddress": {"id": public}});
        let mut body = json!({"location": "westeurope", "properties": properties});
        body["properties"]["ipConfigurations"] = json!([{"name": "public", "properties": config}]);
        let firewall = id(group, "azureFirewalls/fw");
        self.set(&firewall, &body);
        firewall
    }

    /// The routes of the machine's subnet, each to an appliance.
    pub fn routes(&self, hops: &[(&str, &str)]) {
        let table = id("web", "routeTables/rt");
        let routes: Vec<Value> = hops
            .iter()
            .enumerate()
            .map(|(n, (prefix, hop))| {
                let properties = json!({"addressPrefix": prefix, "nextHopType": "VirtualAppliance", "nextHopIpAddress": hop});
                json!({"name": format!("r{n}"), "properties": properties})
            })
            .collect();
        self.set(&table, &json!({"location": "westeurope", "properties": {"routes": routes}}));
        let subnet = json!({"properties": {"addressPrefix": "10.0.0.0/24", "routeTable": {"id": table}}});
        self.set(&id("web", "virtualNetworks/net/subnets/default"), &subnet);
    }

    async fn forbid(&self, action: &str) {
        let options = self.options();
        self.control(
            "principals",
            &json!({"clientId": options.client_id, "secrets": [options.client_secret], "permissions": [
                {"actions": ["*"], "notActions": [action], "scopes": ["/"]}]}),
        )
        .await;
    }

    async fn calm(&self) {
        let url = format!("{}/_sim/faults", self.url());
        reqwest::Client::new().delete(url).send().await.unwrap();
    }

    async fn seen(&self) -> Machine {
        let one = self.cloud().inventory.machine(&machine()).await.unwrap().unwrap();
        // A list of the group sees the same.
        let scope = machine().ancestor(4).unwrap();
        let all = self.cloud().inventory.machines(&scope, &BTreeMap::new()).await.unwrap();
        assert_eq!(all, [(machine(), Ok(one.clone()))]);
        one
    }
}

fn why(machine: &Machine) -> String {
    match machine.hops().as_slice() {
        [Hop::Appliance { why, .. } | Hop::Unread { why, .. }] => why.clone(),
        other => panic!("{other:?}"),
    }
}

fn the_firewall(machine: &Machine) -> FirewallHop {
    match machine.hops().as_slice() {
        [Hop::Firewall(firewall)] => firewall.clone(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_firewall_of_the_same_network_is_found_by_its_private_address() {
    let world = SimulatedWorld::start().await;
    assert_eq!(world.seen().await.hops(), Vec::<&Hop>::new());
    let firewall = world.firewall("web", "net", "10.0.250.0/26", &json!({}));
    assert_eq!(world.seen().await.hops(), Vec::<&Hop>::new(), "no route leads there");
    world.routes(&[("203.0.113.0/24", "10.0.250.4"), ("0.0.0.0/0", "10.0.250.4")]);
    let found = the_firewall(&world.seen().await);
    assert_eq!(found.id.as_str(), firewall);
    assert_eq!(found.address.to_string(), "10.0.250.4");
    assert!(found.policies.is_empty());
}

#[tokio::test]
async fn a_firewall_of_a_hub_is_found_with_its_policy_and_the_parents_of_that() {
    let world = SimulatedWorld::start().await;
    world.network("hub", "10.8.0.0/16");
    world.peer(("net", "web"), ("hub", "hub"));
    world.peer(("hub", "hub"), ("net", "web"));
    let policy = |name: &str| id("hub", &format!("firewallPolicies/{name}"));
    world.set(&policy("base"), &json!({"location": "westeurope"}));
    let base = json!({"basePolicy": {"id": policy("base")}});
    world.set(&policy("own"), &json!({"location": "westeurope", "properties": base}));
    let own = json!({"firewallPolicy": {"id": policy("own")}});
    let firewall = world.firewall("hub", "hub", "10.8.1.0/26", &own);
    world.routes(&[("0.0.0.0/0", "10.8.1.4")]);
    let found = the_firewall(&world.seen().await);
    assert_eq!(found.id.as_str(), firewall);
    let policies: Vec<&str> = found.policies.iter().map(portcullis::api::values::ArmId::as_str).collect();
    assert_eq!(policies, [policy("own"), policy("base")]);

    // Whatever the hub answers, the machine is read and locked.
    for (path, status) in [("virtualNetworks/hub", 401), ("azureFirewalls", 500), ("firewallPolicies", 401)] {
        let fault = json!({"method": "GET", "path": path, "effect": {"status": {"status": status, "code": "Refused"}}});
        world.control("faults", &fault).await;
        let machine = world.seen().await;
        let said = why(&machine);
        assert!(said.contains("could not be read"), "{path}: {said}");
        // What passes is waited for; what does not leaves machines to their groups.
        let passes = matches!(machine.hops().as_slice(), [Hop::Unread { .. }]);
        assert_eq!(passes, status == 500, "{path}: {said}");
        world.calm().await;
    }
    the_firewall(&world.seen().await);

    for action in ["azureFirewalls", "firewallPolicies"] {
        world.forbid(&format!("Microsoft.Network/{action}/read")).await;
        let said = why(&world.seen().await);
        assert!(said.contains(&format!("Microsoft.Network/{action}/read")), "{said}");
    }
}

#[tokio::test]
async fn what_is_no_firewall_is_told_and_not_overlooked() {
    let world = SimulatedWorld::start().await;
    world.firewall("web", "net", "10.0.250.0/26", &json!({}));
    for hop in ["10.0.0.99", "192.168.7.7", "10.0.250.9"] {
        world.routes(&[("0.0.0.0/0", hop)]);
        let said = why(&world.seen().await);
        assert!(said.starts_with(&format!("{hop} is no Azure Firewall")), "{said}");
    }
    world.routes(&[("0.0.0.0/0", "10.0.250.4"), ("198.51.100.0/24", "10.0.0.99")]);
    let machine = world.seen().await;
    let hops = machine.hops();
    assert!(matches!(hops.as_slice(), [Hop::Firewall(_), Hop::Appliance { .. }]), "{hops:?}");
}

#[tokio::test]
async fn a_network_that_is_connected_to_a_hub_of_a_virtual_wan_is_told() {
    let world = SimulatedWorld::start().await;
    world.network("HV_hub_1234", "10.8.0.0/16");
    let remote = json!({"id": id("HV_hub_1234", "virtualNetworks/HV_hub_1234")});
    world.set(
        &id("web", "virtualNetworks/net/virtualNetworkPeerings/RemoteVnetToHubPeering_0f8fad5b"),
        &json!({"properties": {"remoteVirtualNetwork": remote}}),
    );
    let machine = world.seen().await;
    let hops = machine.hops();
    assert!(matches!(hops.as_slice(), [Hop::Hub { id }] if id.name() == "HV_hub_1234"), "{hops:?}");
}

#[tokio::test]
async fn a_firewall_comes_with_what_leads_to_it_and_what_it_has() {
    let world = SimulatedWorld::start().await;
    world.firewall("web", "net", "10.0.250.0/26", &json!({}));
    world.routes(&[("0.0.0.0/0", "10.0.250.4"), ("203.0.113.0/24", "10.0.0.99")]);
    let machine = world.seen().await;
    let hops = machine.hops();
    let found = hops.iter().find_map(|hop| hop.firewall()).unwrap();
    assert_eq!(found.publics, ["198.51.100.40".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(found.subnets, ["10.0.250.0/26".parse::<ipnet::IpNet>().unwrap()]);
    for (source, by_it) in [
        ("198.51.100.7/32", true),
        ("0.0.0.0/0", true),
        // Led elsewhere, and of the network itself.
        ("203.0.113.7/32", false),
        ("10.0.7.7/32", false),
        ("2001:db8::1/128", false),
    ] {
        assert_eq!(found.carries(source.parse().unwrap()), by_it, "{source}");
    }
    assert_eq!(machine.translating_firewalls(), [found.writes_to()]);
}

/// The sweep comes by what routes lead to, also where no policy and no request name it any more.
#[tokio::test]
async fn a_scope_is_swept_with_the_firewalls_of_hubs_that_its_routes_lead_to() {
    let world = SimulatedWorld::start().await;
    world.network("hub", "10.8.0.0/16");
    world.peer(("net", "web"), ("hub", "hub"));
    world.peer(("hub", "hub"), ("net", "web"));
    let policy = id("hub", "firewallPolicies/own");
    world.set(&policy, &json!({"location": "westeurope"}));
    world.firewall("hub", "hub", "10.8.1.0/26", &json!({"firewallPolicy": {"id": policy}}));
    let scope = machine().ancestor(4).unwrap();
    let firewalls = async || -> Vec<String> {
        let all = world.cloud().inventory.firewalls(&scope).await.unwrap();
        all.iter().map(|observed| observed.firewall.to_string()).collect()
    };
    assert!(!firewalls().await.contains(&policy), "nothing leads there");
    world.routes(&[("0.0.0.0/0", "10.8.1.4")]);
    assert!(firewalls().await.contains(&policy));
    world.forbid("Microsoft.Network/firewallPolicies/ruleCollectionGroups/read").await;
    let rest = firewalls().await;
    assert!(
        !rest.contains(&policy) && !rest.is_empty(),
        "what cannot be read keeps nothing else from it: {rest:?}"
    );
}
