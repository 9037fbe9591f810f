//! Interfaces, networks and routes, read once out of the facts. Rules are not in it: they change far more often.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;

use ipnet::IpNet;
use serde_json::Value;

use super::{firewall, plane::Facts};
use crate::resources::{
    addresses::prefixes,
    firewall::{hub_addresses, public_keys},
    rule::network,
    vnet::is_connected,
};

/// One address of a network interface.
#[derive(Debug, Clone)]
pub(crate) struct Interface {
    pub(crate) address: IpAddr,
    pub(crate) subnet: String,
    pub(crate) network: String,
    /// Key of the group on the interface itself.
    pub(crate) group: Option<String>,
    pub(crate) public: Option<PublicAddress>,
    /// Keys of its application security groups.
    pub(crate) members_of: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct PublicAddress {
    pub(crate) id: String,
    pub(crate) address: Option<IpAddr>,
    pub(crate) standard: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Index {
    interfaces: Vec<Interface>,
    by_address: BTreeMap<IpAddr, Vec<usize>>,
    spaces: BTreeMap<String, Vec<IpNet>>,
    peers: BTreeMap<String, BTreeSet<String>>,
    /// Firewalls, by each of their public addresses.
    firewalls: BTreeMap<IpAddr, firewall::Place>,
    /// Subnet key to group and route table keys.
    subnets: BTreeMap<String, (Option<String>, Option<String>)>,
}

fn key_of(reference: &Value) -> Option<String> {
    reference["id"].as_str().map(str::to_lowercase)
}

fn network_of(subnet: &str) -> String {
    subnet.rsplitn(3, '/').last().unwrap_or(subnet).to_owned()
}

impl Index {
    pub(crate) fn build(facts: &Facts) -> Self {
        let mut index = Self::default();
        let mut peerings: BTreeMap<String, Vec<Value>> = BTreeMap::new();
        for (key, fact) in facts.iter().filter(|(key, _)| key.starts_with('/')) {
            let properties = &fact.body["properties"];
            match fact.id.kind().as_str() {
                "network/virtualnetworks" => {
                    index.spaces.insert(key.clone(), prefixes(properties));
                }
                "network/virtualnetworks/subnets" => {
                    let group = key_of(&properties["networkSecurityGroup"]);
                    index.subnets.insert(key.clone(), (group, key_of(&properties["routeTable"])));
                }
                "network/virtualnetworks/virtualnetworkpeerings" => {
                    peerings.entry(network_of(key)).or_default().push(fact.body.clone());
                }
                "network/networkinterfaces" => index.add_interface(facts, properties),
                "network/azurefirewalls" => index.add_firewall(facts, key, properties),
                _ => {}
            }
        }
        for (own, list) in &peerings {
            for peering in list {
                let properties = &peering["properties"];
                let remote = key_of(&properties["remoteVirtualNetwork"]).unwrap_or_default();
                let none = vec![];
                let theirs = peerings.get(&remote).unwrap_or(&none);
                let access = properties["allowVirtualNetworkAccess"] != Value::Bool(false);
                if access && is_connected(&remote, own, theirs) {
                    index.peers.entry(own.clone()).or_default().insert(remote);
                }
            }
        }
        for (position, interface) in index.interfaces.iter().enumerate() {
            index.by_address.entry(interface.address).or_default().push(position);
            if let Some(public) = interface.public.as_ref().and_then(|p| p.address) {
                index.by_address.entry(public).or_default().push(position);
            }
        }
        index
    }

    fn add_interface(&mut self, facts: &Facts, properties: &Value) {
        let group = key_of(&properties["networkSecurityGroup"]);
        for config in properties["ipConfigurations"].as_array().into_iter().flatten() {
            let config = &config["properties"];
            let address = config["privateIPAddress"].as_str().and_then(|a| a.parse().ok());
            let (Some(address), Some(subnet)) = (address, key_of(&config["subnet"])) else { continue };
            let public = key_of(&config["publicIPAddress"]).and_then(|key| facts.get(&key)).map(|fact| {
                let sku = fact.body["sku"]["name"].as_str().unwrap_or("Basic");
                PublicAddress {
                    id: fact.id.text.clone(),
                    address: fact.body["properties"]["ipAddress"].as_str().and_then(|a| a.parse().ok()),
                    standard: !sku.eq_ignore_ascii_case("Basic"),
                }
            });
            let members_of = config["applicationSecurityGroups"].as_array();
            self.interfaces.push(Interface {
                address,
                network: network_of(&subnet),
                subnet,
                group: group.clone(),
                public,
                members_of: members_of.into_iter().flatten().filter_map(key_of).collect(),
            });
        }
    }

    fn add_firewall(&mut self, facts: &Facts, key: &str, properties: &Value) {
        let configs: Vec<&Value> = properties["ipConfigurations"]
            .as_array()
            .into_iter()
            .flatten()
            .map(|c| &c["properties"])
            .collect();
        let subnet = configs.iter().find_map(|config| key_of(&config["subnet"]));
        let space = subnet.as_ref().and_then(|key| facts.get(key));
        let space = space.map(|fact| prefixes(&fact.body["properties"])).unwrap_or_default();
        // The first address that the subnet gives is the frontend's; instances have those after it.
        let instances = space.iter().find_map(|net| match net {
            IpNet::V4(net) => Some(net.hosts().skip(4).take(2).map(IpAddr::V4).collect()),
            IpNet::V6(_) => None,
        });
        let place = firewall::Place {
            key: key.to_owned(),
            network: subnet.as_deref().map(network_of),
            instances: instances.unwrap_or_default(),
        };
        let public = public_keys(properties).into_iter().filter_map(|key| facts.get(&key));
        let public = public.filter_map(|fact| fact.body["properties"]["ipAddress"].as_str());
        for address in public.chain(hub_addresses(properties)).filter_map(|a| a.parse().ok()) {
            self.firewalls.insert(address, place.clone());
        }
    }

    /// The firewall that has this public address.
    pub(crate) fn firewall(&self, address: IpAddr) -> Option<&firewall::Place> {
        self.firewalls.get(&address)
    }

    /// Interfaces that hold an address, private or public.
    pub(crate) fn holding(&self, address: IpAddr) -> impl Iterator<Item = &Interface> {
        self.by_address.get(&address).into_iter().flatten().map(|position| &self.interfaces[*position])
    }

    pub(crate) fn space(&self, network: &str) -> &[IpNet] {
        self.spaces.get(network).map_or(&[], Vec::as_slice)
    }

    pub(crate) fn peers(&self, network: &str) -> Vec<&String> {
        self.peers.get(network).into_iter().flatten().collect()
    }

    pub(crate) fn subnet_group(&self, subnet: &str) -> Option<&String> {
        self.subnets.get(subnet)?.0.as_ref()
    }

    /// Prefixes of the user-defined routes of a subnet.
    pub(crate) fn routes(&self, facts: &Facts, subnet: &str) -> Vec<IpNet> {
        let Some(table) = self.subnets.get(subnet).and_then(|s| s.1.as_ref()) else { return vec![] };
        let prefix = format!("{table}/routes/");
        let routes = facts
            .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(&prefix));
        routes
            .filter_map(|(_, f)| f.body["properties"]["addressPrefix"].as_str())
            .filter_map(network)
            .collect()
    }
}
