//! Azure Firewalls. Their rules are no resources of their own: each change writes the whole firewall.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Prepared, addresses, default_to, referenced};
use crate::{
    arm::{errors::ArmError, ids::ResourceId, store::Resource, validate},
    world::World,
};

mod collections;
pub(crate) mod policy;
mod rules;

/// The only subnet that a firewall may stand in, and the one of its management traffic.
const SUBNET: &str = "AzureFirewallSubnet";
const MANAGEMENT_SUBNET: &str = "AzureFirewallManagementSubnet";
/// Rules of all kinds on one firewall.
const MAX_RULES: usize = 10_000;
/// Public addresses and unique translated addresses together.
const MAX_NAT: usize = 250;

/// The collections of a classic firewall, and what a rule in each may be.
pub(super) const COLLECTIONS: [&str; 3] =
    ["applicationRuleCollections", "natRuleCollections", "networkRuleCollections"];

pub(crate) fn prepare(
    world: &World,
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
    mut body: Value,
) -> Result<Prepared, ArmError> {
    let properties = &mut body["properties"];
    default_to(properties, "sku", json!({}));
    default_to(&mut properties["sku"], "name", json!("AZFW_VNet"));
    default_to(&mut properties["sku"], "tier", json!("Standard"));
    default_to(properties, "threatIntelMode", json!("Alert"));
    default_to(properties, "additionalProperties", json!({}));
    let hub = properties["sku"]["name"].as_str().is_some_and(|n| n.eq_ignore_ascii_case("AZFW_Hub"));
    if let Some(map) = properties.as_object_mut() {
        map.remove("ipGroups");
    }
    for (name, subnet) in [("ipConfigurations", SUBNET), ("managementIpConfiguration", MANAGEMENT_SUBNET)] {
        stand(world, id, old, properties, name, subnet)?;
    }
    let placed = properties["ipConfigurations"]
        .as_array()
        .is_some_and(|configs| configs.iter().any(|c| !c["properties"]["subnet"].is_null()));
    if !hub && !placed {
        return Err(ArmError::bad(
            "AzureFirewallIpConfigurationSubnetMissing",
            format!("Azure Firewall {} must have an IP configuration with a reference to {SUBNET}.", id.text),
        ));
    }
    let policy = referenced(world, id, &properties["firewallPolicy"].clone(), true)?;
    let mut fails = None;
    let (mut rules, mut targets) = (0, HashSet::new());
    for kind in COLLECTIONS {
        default_to(properties, kind, json!([]));
        let found = collections::check(id, kind, &mut properties[kind])?;
        rules += found.rules;
        targets.extend(found.translated);
        if found.has_v6 {
            fails = Some("AzureFirewallRuleIPv6NotSupported".to_owned());
        }
    }
    if rules > 0 && (policy.is_some() || hub) {
        return Err(ArmError::bad(
            "AzureFirewallPolicyAndRuleCollectionsConflict",
            format!(
                "Azure Firewall {} takes its rules from a firewall policy: it cannot hold rule collections of its own.",
                id.text
            ),
        ));
    }
    let nat = properties["natRuleCollections"].as_array().is_some_and(|list| !list.is_empty());
    if nat && public_count(properties) == 0 {
        return Err(ArmError::bad(
            "AzureFirewallNatRuleForcedTunnelingNotSupported",
            format!("Azure Firewall {} has no public IP address: DNAT is not supported.", id.text),
        ));
    }
    limits(id, rules, targets.len() + public_count(properties))?;
    if let Some(map) = properties.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    Ok(Prepared { body, fails, ..Prepared::default() })
}

fn limits(id: &ResourceId, rules: usize, nat: usize) -> Result<(), ArmError> {
    if rules > MAX_RULES {
        return Err(ArmError::bad(
            "AzureFirewallRuleCountLimitReached",
            format!("{} cannot have more than {MAX_RULES} rules; this one would have {rules}.", id.text),
        ));
    }
    if nat > MAX_NAT {
        return Err(ArmError::bad(
            "AzureFirewallDnatLimitReached",
            format!(
                "{} cannot have more than {MAX_NAT} public IP addresses and translated addresses together; this one would have {nat}.",
                id.text
            ),
        ));
    }
    Ok(())
}

/// Puts a firewall into its subnet: gives each configuration its id, and the one with the subnet a private address.
fn stand(
    world: &World,
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
    properties: &mut Value,
    name: &str,
    wanted: &str,
) -> Result<(), ArmError> {
    let mut configs = match &properties[name] {
        Value::Null => return Ok(()),
        Value::Array(list) => list.clone(),
        one => vec![one.clone()],
    };
    for (index, config) in configs.iter_mut().enumerate() {
        let path = format!("properties.{name}[{index}]");
        let own = config["name"].as_str().ok_or_else(|| validate::missing(&path, "name"))?.to_owned();
        config["id"] = json!(format!("{}/azureFirewallIpConfigurations/{own}", id.text));
        config["type"] = json!("Microsoft.Network/azureFirewalls/azureFirewallIpConfigurations");
        default_to(config, "properties", json!({}));
        let inner = &mut config["properties"];
        if let Some(address) = referenced(world, id, &inner["publicIPAddress"].clone(), true)? {
            let standard = address.body()["sku"]["name"].as_str() != Some("Basic");
            if !standard {
                return Err(ArmError::bad(
                    "AzureFirewallPublicIPAddressMustBeStandardSku",
                    format!(
                        "Public IP {} of Azure Firewall {} must be of Standard SKU.",
                        address.id().text,
                        id.text
                    ),
                ));
            }
            inner["publicIPAddress"] = json!({"id": address.id().text});
        }
        if let Some(map) = inner.as_object_mut() {
            map.remove("privateIPAddress");
            map.remove("provisioningState");
        }
        let Some(subnet) = referenced(world, id, &inner["subnet"].clone(), false)? else { continue };
        if subnet.id().name() != wanted {
            return Err(ArmError::bad(
                "AzureFirewallInvalidSubnetName",
                format!(
                    "Azure Firewall {} must stand in a subnet named {wanted}; {} is not.",
                    id.text,
                    subnet.id().text
                ),
            ));
        }
        inner["subnet"] = json!({"id": subnet.id().text});
        let used = addresses::used_in(&world.store, &subnet.id().key, &id.key);
        let kept = old.and_then(|o| held(o.properties(), name, &own)).filter(|a| !used.contains(a));
        let free =
            || addresses::prefixes(subnet.properties()).iter().find_map(|p| addresses::free_in(p, &used));
        let address = kept.or_else(free).ok_or_else(|| {
            ArmError::bad(
                "SubnetIsFull",
                format!("Subnet {} does not have enough capacity.", subnet.id().text),
            )
        })?;
        inner["privateIPAddress"] = json!(address.to_string());
    }
    properties[name] = if properties[name].is_array() { json!(configs) } else { configs.swap_remove(0) };
    Ok(())
}

/// The private address that a configuration has.
fn held(properties: &Value, name: &str, own: &str) -> Option<IpAddr> {
    let configs = &properties[name];
    let mut all = configs.as_array().map_or_else(|| vec![configs], |list| list.iter().collect());
    all.retain(|config| config["name"].as_str() == Some(own));
    all.first()?["properties"]["privateIPAddress"].as_str()?.parse().ok()
}

/// Keys of the public addresses that a firewall refers to.
pub(crate) fn public_keys(properties: &Value) -> Vec<String> {
    let configs = properties["ipConfigurations"].as_array().into_iter().flatten();
    configs.filter_map(|c| c["properties"]["publicIPAddress"]["id"].as_str()).map(str::to_lowercase).collect()
}

/// Public addresses that the firewall of a hub has been given.
pub(crate) fn hub_addresses(properties: &Value) -> Vec<&str> {
    let given = properties["hubIPAddresses"]["publicIPs"]["addresses"].as_array().into_iter().flatten();
    given.filter_map(|address| address["address"].as_str()).collect()
}

/// How many public addresses traffic may come in by.
fn public_count(properties: &Value) -> usize {
    public_keys(properties).len() + hub_addresses(properties).len()
}

/// Adds what clients may only read.
pub(crate) fn add_read_only(body: &mut Value) {
    let (etag, state, id) =
        (body["etag"].clone(), body["properties"]["provisioningState"].clone(), body["id"].clone());
    let id = id.as_str().unwrap_or("").to_owned();
    let properties = &mut body["properties"];
    let show = |item: &mut Value| {
        item["etag"] = etag.clone();
        item["properties"]["provisioningState"] = state.clone();
    };
    if properties["managementIpConfiguration"].is_object() {
        show(&mut properties["managementIpConfiguration"]);
    }
    for kind in COLLECTIONS.into_iter().chain(["ipConfigurations"]) {
        for item in properties[kind].as_array_mut().into_iter().flatten() {
            show(item);
            if kind != "ipConfigurations" {
                let name = item["name"].as_str().unwrap_or("").to_owned();
                item["id"] = json!(format!("{id}/{kind}/{name}"));
            }
        }
    }
}
