//! Network security groups: their rules, default rules and back references.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Prepared, default_to, guid, rule};
use crate::{
    arm::{
        errors::ArmError,
        ids::ResourceId,
        store::{Resource, Store},
        validate,
    },
    world::World,
};

/// Rules in one group.
const MAX_RULES: usize = 1000;
/// Addresses and ranges over all rules of a group.
const MAX_ADDRESSES: usize = 4000;

pub(crate) fn prepare(
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
    mut body: Value,
) -> Result<Prepared, ArmError> {
    guid(&mut body, old);
    let properties = &mut body["properties"];
    for read_only in ["defaultSecurityRules", "networkInterfaces", "subnets", "flowLogs"] {
        if let Some(map) = properties.as_object_mut() {
            map.remove(read_only);
        }
    }
    default_to(properties, "flushConnection", Value::Null);
    if let Some(map) = properties.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    let rules = match properties.as_object_mut().and_then(|m| m.remove("securityRules")) {
        None | Some(Value::Null) => vec![],
        Some(Value::Array(rules)) => rules,
        Some(_) => return Err(validate::unreadable("properties.securityRules", "An array is expected.")),
    };
    let mut items = vec![];
    let mut names = HashSet::new();
    for (index, mut item) in rules.into_iter().enumerate() {
        let path = format!("properties.securityRules[{index}]");
        let name = item["name"].as_str().ok_or_else(|| validate::missing(&path, "name"))?.to_owned();
        validate::network_name(&name)?;
        if !names.insert(name.to_lowercase()) {
            return Err(ArmError::bad(
                "InvalidRequestFormat",
                format!("Cannot parse the request: the name '{name}' is used by more than one rule."),
            ));
        }
        let child = id.child("securityRules", &name);
        let checked = rule::check(&child, &mut item["properties"])?;
        items.push((child, json!({"properties": checked})));
    }
    together(&items.iter().map(|(i, b)| (i.clone(), b.clone())).collect::<Vec<_>>())?;
    Ok(Prepared { body, embedded: vec![("securityRules", items)], ..Prepared::default() })
}

pub(crate) fn prepare_rule(world: &World, id: &ResourceId, mut body: Value) -> Result<Prepared, ArmError> {
    let checked = rule::check(id, &mut body["properties"])?;
    let body = json!({"properties": checked});
    let parent = id.parent().map(|p| p.key).unwrap_or_default();
    let siblings = world.store.children(&parent, "securityRules");
    let mut all: Vec<(ResourceId, Value)> = siblings
        .iter()
        .filter(|r| r.id().key != id.key)
        .map(|r| (r.id().clone(), r.body().clone()))
        .collect();
    all.push((id.clone(), body.clone()));
    together(&all)?;
    Ok(body.into())
}

/// Checks over all rules of a group; the last one given is the newest.
fn together(rules: &[(ResourceId, Value)]) -> Result<(), ArmError> {
    if rules.len() > MAX_RULES {
        return Err(ArmError::bad(
            "SecurityRuleCountLimitReached",
            format!("A security group cannot have more than {MAX_RULES} security rules."),
        ));
    }
    let mut seen: BTreeMap<(String, i64), &str> = BTreeMap::new();
    let mut addresses = 0;
    for (id, body) in rules {
        let properties = &body["properties"];
        addresses += rule::address_count(properties);
        let direction = properties["direction"].as_str().unwrap_or("").to_owned();
        let priority = properties["priority"].as_i64().unwrap_or(0);
        if let Some(other) = seen.insert((direction, priority), id.name()) {
            return Err(ArmError::bad(
                "SecurityRuleConflict",
                format!(
                    "Security rule {} conflicts with rule {other}. Rules cannot have the same Priority and Direction.",
                    id.name()
                ),
            ));
        }
    }
    if addresses > MAX_ADDRESSES {
        return Err(ArmError::bad(
            "MaxAddressPrefixesPerNetworkSecurityGroupExceeded",
            format!(
                "A security group cannot have more than {MAX_ADDRESSES} addresses or ranges in its rules; this one would have {addresses}."
            ),
        ));
    }
    Ok(())
}

/// Name, direction, priority, access, source, destination, description.
type DefaultRule = (&'static str, &'static str, u16, &'static str, &'static str, &'static str, &'static str);

pub(crate) const DEFAULT_RULES: [DefaultRule; 6] = [
    (
        "AllowVnetInBound",
        "Inbound",
        65000,
        "Allow",
        "VirtualNetwork",
        "VirtualNetwork",
        "Allow inbound traffic from all VMs in VNET",
    ),
    (
        "AllowAzureLoadBalancerInBound",
        "Inbound",
        65001,
        "Allow",
        "AzureLoadBalancer",
        "*",
        "Allow inbound traffic from azure load balancer",
    ),
    ("DenyAllInBound", "Inbound", 65500, "Deny", "*", "*", "Deny all inbound traffic"),
    (
        "AllowVnetOutBound",
        "Outbound",
        65000,
        "Allow",
        "VirtualNetwork",
        "VirtualNetwork",
        "Allow outbound traffic from all VMs to all VMs in VNET",
    ),
    (
        "AllowInternetOutBound",
        "Outbound",
        65001,
        "Allow",
        "*",
        "Internet",
        "Allow outbound traffic from all VMs to Internet",
    ),
    ("DenyAllOutBound", "Outbound", 65500, "Deny", "*", "*", "Deny all outbound traffic"),
];

/// Adds what clients may only read.
pub(crate) fn add_read_only(store: &Store, id: &ResourceId, body: &mut Value) {
    let etag = body["etag"].clone();
    let state = body["properties"]["provisioningState"].clone();
    let defaults = DEFAULT_RULES.map(|(name, direction, priority, access, source, destination, text)| {
        json!({
            "name": name,
            "id": format!("{}/defaultSecurityRules/{name}", id.text),
            "etag": etag,
            "type": "Microsoft.Network/networkSecurityGroups/defaultSecurityRules",
            "properties": {
                "provisioningState": state, "description": text, "protocol": "*",
                "sourcePortRange": "*", "destinationPortRange": "*",
                "sourceAddressPrefix": source, "destinationAddressPrefix": destination,
                "access": access, "priority": priority, "direction": direction,
                "sourcePortRanges": [], "destinationPortRanges": [],
                "sourceAddressPrefixes": [], "destinationAddressPrefixes": [],
            }
        })
    });
    body["properties"]["defaultSecurityRules"] = json!(defaults);
    let users = |suffix: &str| -> Vec<Value> {
        store
            .referrers(&id.key)
            .filter_map(|k| store.get(k))
            .filter(|r| r.id().kind().ends_with(suffix))
            .map(|r| json!({"id": r.id().text}))
            .collect()
    };
    for (name, found) in [("subnets", users("/subnets")), ("networkInterfaces", users("/networkinterfaces"))]
    {
        if !found.is_empty() {
            body["properties"][name] = json!(found);
        }
    }
}
