//! The machines of a story, and what stands before them.

use std::collections::BTreeMap;

use anyhow::Context;
use reqwest::Method;
use serde_json::{Value, json};

use crate::scenario::Scenario;
use crate::story::{Machine, Story};

impl Story {
    /// Makes the machines, the hub before the last of them, and rules of others.
    pub async fn build(&mut self) -> anyhow::Result<()> {
        for scenario in Scenario::ALL {
            let (group, host) = (scenario.group(), scenario.host());
            let third = match group {
                "matrix" => 150,
                "gone" => 151,
                _ => 152,
            };
            let machine = json!({"name": scenario.name(), "resourceGroup": group, "network": format!("{group}-net"),
                "addressSpace": [format!("10.{third}.0.0/16")], "subnetPrefix": format!("10.{third}.0.0/24"),
                "subnetNsg": "net", "privateIp": format!("10.{third}.0.{host}")});
            let made = self.world(&json!({"machines": [machine]})).await?["machines"][0].clone();
            let text = |field: &str| made[field].as_str().map(str::to_owned).context("no such machine");
            self.machines.insert(scenario, Machine { id: text("id")?, address: text("privateIp")? });
        }
        let subscription = self.simulator.announcement().subscription_id.clone();
        let network = |group: &str, kind: &str, name: &str| {
            format!(
                "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/{kind}/{name}"
            )
        };
        // A hub with a firewall, by whose routes the last machine is reached.
        let (hub, firewall) =
            (network("spoke", "virtualNetworks", "hub"), network("spoke", "azureFirewalls", "hub"));
        let (policy, address) =
            (network("spoke", "firewallPolicies", "rules"), network("spoke", "publicIPAddresses", "hub"));
        let spoke = network("spoke", "virtualNetworks", "spoke-net");
        self.world(&json!({"resources": [
            {"id": hub, "location": "westeurope", "properties": {"addressSpace": {"addressPrefixes": ["10.160.0.0/16"]},
                "subnets": [{"name": "AzureFirewallSubnet", "properties": {"addressPrefix": "10.160.1.0/26"}}]}},
            {"id": format!("{hub}/virtualNetworkPeerings/spoke"), "properties": {"remoteVirtualNetwork": {"id": spoke}}},
            {"id": format!("{spoke}/virtualNetworkPeerings/hub"), "properties": {"remoteVirtualNetwork": {"id": hub}}},
            {"id": address, "location": "westeurope", "sku": {"name": "Standard"}, "properties": {
                "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"}},
            {"id": policy, "location": "westeurope", "properties": {}},
            {"id": firewall, "location": "westeurope", "properties": {"firewallPolicy": {"id": policy},
                "ipConfigurations": [{"name": "public", "properties": {
                    "subnet": {"id": format!("{hub}/subnets/AzureFirewallSubnet")}, "publicIPAddress": {"id": address}}}]}},
        ]})).await?;
        let read =
            |value: Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        self.public =
            read(self.simulator.get(&address).await?, "/properties/ipAddress").context("no address")?;
        let pointer = "/properties/ipConfigurations/0/properties/privateIPAddress";
        let hop = read(self.simulator.get(&firewall).await?, pointer).context("no hop")?;
        let table = network("spoke", "routeTables", "by-firewall");
        let route = json!({"name": "out", "properties": {
            "addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": hop}});
        let subnet = format!("{spoke}/subnets/default");
        self.world(&json!({"resources": [{"id": table, "location": "westeurope", "properties": {"routes": [route]}}]}))
            .await?;
        let subnets = self.simulator.get(&spoke).await?["properties"]["subnets"].clone();
        let subnet = subnets[0]["id"].as_str().map_or(subnet, str::to_owned);
        let mut body = self.simulator.get(&subnet).await?;
        body["properties"]["routeTable"] = json!({"id": table});
        self.simulator.put(&subnet, &body).await?;
        for group in ["matrix", "gone", "spoke"] {
            for (name, priority, port) in [("allow-ssh", 300, "22"), ("allow-web", 310, "443")] {
                let id = format!("{}/securityRules/{name}", network(group, "networkSecurityGroups", "net"));
                let rule = json!({"properties": {"direction": "Inbound", "access": "Allow", "priority": priority,
                    "protocol": "*", "sourceAddressPrefix": "*", "sourcePortRange": "*",
                    "destinationAddressPrefix": "*", "destinationPortRange": port}});
                self.simulator.put(&id, &rule).await?;
            }
        }
        self.foreign = self.foreign_rules().await?;
        Ok(())
    }

    async fn world(&self, document: &Value) -> anyhow::Result<Value> {
        self.simulator.control(Method::POST, "world", Some(document)).await
    }

    /// The id of the network security group that most scenarios share.
    pub fn shared_group(&self) -> String {
        let subscription = &self.simulator.announcement().subscription_id;
        format!(
            "/subscriptions/{subscription}/resourceGroups/matrix/providers/Microsoft.Network/networkSecurityGroups/net"
        )
    }

    fn groups(&self) -> [String; 3] {
        let shared = self.shared_group();
        ["matrix", "gone", "spoke"].map(|group| shared.replace("/matrix/", &format!("/{group}/")))
    }

    pub async fn rules(&self) -> anyhow::Result<Vec<(String, Value)>> {
        let mut rules = Vec::new();
        for group in self.groups() {
            let read = self.simulator.get(&group).await?;
            for rule in read["properties"]["securityRules"].as_array().into_iter().flatten() {
                rules.push((group.clone(), rule.clone()));
            }
        }
        Ok(rules)
    }

    /// Rules of others, as they are.
    pub async fn foreign_rules(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut foreign = BTreeMap::new();
        for (group, mut rule) in self.rules().await? {
            let name = rule["name"].as_str().unwrap_or_default().to_owned();
            if !name.starts_with("portcullis-") && !name.starts_with("copied-") {
                if let Some(fields) = rule.as_object_mut() {
                    fields.remove("etag");
                }
                foreign.insert(format!("{group}/{name}"), rule);
            }
        }
        Ok(foreign)
    }
}
