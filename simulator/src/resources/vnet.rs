//! Virtual networks, subnets and peerings.

use std::collections::HashSet;
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

use super::{Prepared, addresses, default_to, guid, referenced};
use crate::{
    arm::{
        errors::ArmError,
        ids::ResourceId,
        store::{Resource, Store},
        validate,
    },
    world::World,
};

pub(crate) fn prepare(
    world: &mut World,
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
    mut body: Value,
) -> Result<Prepared, ArmError> {
    guid(&mut body, old);
    let properties = &mut body["properties"];
    let space = strict_prefixes(&properties["addressSpace"]["addressPrefixes"], id)?;
    if space.is_empty() {
        return Err(validate::missing("properties.addressSpace", "addressPrefixes"));
    }
    default_to(properties, "enableDdosProtection", json!(false));
    let mut embedded = vec![];
    for kind in ["subnets", "virtualNetworkPeerings"] {
        let given = properties.as_object_mut().and_then(|m| m.remove(kind)).unwrap_or(Value::Null);
        // Left out, the children stay as they are.
        let Some(list) = given.as_array() else { continue };
        let mut items = vec![];
        let mut names = HashSet::new();
        for (index, item) in list.iter().enumerate() {
            let path = format!("properties.{kind}[{index}]");
            let name = item["name"].as_str().ok_or_else(|| validate::missing(&path, "name"))?;
            validate::network_name(name)?;
            if !names.insert(name.to_lowercase()) {
                return Err(ArmError::bad(
                    "InvalidRequestFormat",
                    format!("Cannot parse the request: the name '{name}' is used twice in {kind}."),
                ));
            }
            let child = id.child(kind, name);
            let body = clean(item);
            let body = match kind {
                "subnets" => checked_subnet(world, &child, body, &space)?,
                _ => prepare_peering(&child, &body)?.body,
            };
            items.push((child, body));
        }
        if kind == "subnets" {
            apart(&items)?;
            for gone in world.store.children(&id.key, kind) {
                if !names.contains(&gone.id().name().to_lowercase()) {
                    super::deletable(world, &gone)?;
                }
            }
        }
        embedded.push((kind, items));
    }
    Ok(Prepared { body, embedded, ..Prepared::default() })
}

/// An embedded child's own document.
fn clean(item: &Value) -> Value {
    let mut properties = item["properties"].clone();
    if let Some(map) = properties.as_object_mut() {
        map.remove("provisioningState");
    } else {
        properties = json!({});
    }
    json!({"properties": properties})
}

fn strict_prefixes(list: &Value, id: &ResourceId) -> Result<Vec<IpNet>, ArmError> {
    let texts = list.as_array().into_iter().flatten().map(|v| v.as_str().unwrap_or(""));
    texts.map(|text| strict(text, id)).collect()
}

fn strict(text: &str, id: &ResourceId) -> Result<IpNet, ArmError> {
    let net: IpNet = text.parse().map_err(|_| {
        ArmError::bad(
            "InvalidAddressPrefixFormat",
            format!("Address prefix {text} for resource {} is not formatted correctly. It should follow CIDR notation, for example 10.0.0.0/24.", id.text),
        )
    })?;
    if net != net.trunc() {
        return Err(ArmError::bad(
            "InvalidCIDRNotation",
            format!(
                "The address prefix {text} in resource {} has an invalid CIDR notation. For the given prefix length, the address prefix should be {}.",
                id.text,
                net.trunc()
            ),
        ));
    }
    Ok(net)
}

pub(crate) fn prepare_subnet(world: &mut World, id: &ResourceId, body: &Value) -> Result<Prepared, ArmError> {
    let parent = id.parent().and_then(|p| world.store.get(&p.key));
    let space = parent.map(|p| addresses::prefixes(p.properties())).unwrap_or_default();
    let body = checked_subnet(world, id, clean(body), &space)?;
    let parent = id.parent().map(|p| p.key).unwrap_or_default();
    let mut all: Vec<(ResourceId, Value)> = world
        .store
        .children(&parent, "subnets")
        .iter()
        .filter(|s| s.id().key != id.key)
        .map(|s| (s.id().clone(), s.body().clone()))
        .collect();
    all.push((id.clone(), body.clone()));
    apart(&all)?;
    Ok(body.into())
}

fn checked_subnet(
    world: &World,
    id: &ResourceId,
    mut body: Value,
    space: &[IpNet],
) -> Result<Value, ArmError> {
    let properties = &mut body["properties"];
    for read_only in ["ipConfigurations", "purpose", "privateEndpoints"] {
        if let Some(map) = properties.as_object_mut() {
            map.remove(read_only);
        }
    }
    if let Some(one) = properties["addressPrefix"].as_str() {
        strict(one, id)?;
    }
    strict_prefixes(&properties["addressPrefixes"], id)?;
    let nets = addresses::prefixes(properties);
    if nets.is_empty() {
        return Err(validate::missing("properties", "addressPrefix"));
    }
    if let Some(outside) = nets.iter().find(|n| !space.iter().any(|s| s.contains(*n))) {
        return Err(ArmError::bad(
            "NetcfgInvalidSubnet",
            format!(
                "Subnet '{}' is not valid because its IP address range {outside} is outside the IP address range of virtual network '{}'.",
                id.name(),
                id.root().name()
            ),
        ));
    }
    let old = world.store.get(&id.key);
    for field in ["networkSecurityGroup", "routeTable"] {
        let before = old.as_ref().and_then(|o| o.properties()[field]["id"].as_str()).map(str::to_lowercase);
        let now = properties[field]["id"].as_str().map(str::to_lowercase);
        // A VNet write that carries its subnets along does not wait for their unchanged groups.
        referenced(world, id, &properties[field], before != now)?;
        if let Some(target) = properties[field]["id"].as_str() {
            properties[field] = json!({"id": target});
        }
    }
    default_to(properties, "delegations", json!([]));
    default_to(properties, "privateEndpointNetworkPolicies", json!("Disabled"));
    default_to(properties, "privateLinkServiceNetworkPolicies", json!("Enabled"));
    if let Some(map) = properties.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    Ok(body)
}

/// Subnets of one network must not overlap.
fn apart(subnets: &[(ResourceId, Value)]) -> Result<(), ArmError> {
    for (index, (id, body)) in subnets.iter().enumerate() {
        for (other, theirs) in &subnets[..index] {
            let theirs = addresses::prefixes(&theirs["properties"]);
            for net in addresses::prefixes(&body["properties"]) {
                if theirs.iter().any(|t| t.contains(&net) || net.contains(t)) {
                    return Err(ArmError::bad(
                        "NetcfgSubnetRangesOverlap",
                        format!(
                            "Subnet '{}' is not valid because its IP address range overlaps with that of an existing subnet '{}' in virtual network '{}'.",
                            id.name(),
                            other.name(),
                            id.root().name()
                        ),
                    ));
                }
            }
        }
    }
    Ok(())
}

pub(crate) fn prepare_peering(id: &ResourceId, body: &Value) -> Result<Prepared, ArmError> {
    let mut body = clean(body);
    let properties = &mut body["properties"];
    if properties["remoteVirtualNetwork"]["id"].as_str().is_none() {
        return Err(validate::missing(&format!("{}.properties", id.name()), "remoteVirtualNetwork"));
    }
    default_to(properties, "allowVirtualNetworkAccess", json!(true));
    default_to(properties, "allowForwardedTraffic", json!(false));
    default_to(properties, "allowGatewayTransit", json!(false));
    default_to(properties, "useRemoteGateways", json!(false));
    if let Some(map) = properties.as_object_mut() {
        for read_only in ["peeringState", "peeringSyncLevel", "remoteAddressSpace"] {
            map.remove(read_only);
        }
    }
    Ok(body.into())
}

/// A peering works once both sides have theirs.
pub(crate) fn is_connected(remote: &str, own: &str, theirs: &[Value]) -> bool {
    !remote.is_empty()
        && theirs.iter().any(|t| {
            t["properties"]["remoteVirtualNetwork"]["id"]
                .as_str()
                .is_some_and(|r| r.eq_ignore_ascii_case(own))
        })
}

pub(crate) fn add_peering_read_only(store: &Store, body: &mut Value) {
    let remote = body["properties"]["remoteVirtualNetwork"]["id"].as_str().unwrap_or("").to_lowercase();
    let own = body["id"].as_str().and_then(ResourceId::parse).and_then(|i| i.parent()).map(|p| p.key);
    let theirs: Vec<Value> =
        store.children(&remote, "virtualNetworkPeerings").iter().map(|p| p.body().clone()).collect();
    let connected = is_connected(&remote, own.as_deref().unwrap_or(""), &theirs);
    body["properties"]["peeringState"] = json!(if connected { "Connected" } else { "Initiated" });
    body["properties"]["peeringSyncLevel"] = json!("FullyInSync");
    if let Some(network) = store.get(&remote) {
        let space = network.properties()["addressSpace"].clone();
        body["properties"]["remoteAddressSpace"] = space.clone();
        body["properties"]["remoteVirtualNetworkAddressSpace"] = space;
    }
}

pub(crate) fn add_subnet_read_only(store: &Store, id: &ResourceId, body: &mut Value) {
    let mut configs = vec![];
    for nic in store.referrers(&id.key).filter_map(|k| store.get(k)) {
        for config in nic.properties()["ipConfigurations"].as_array().into_iter().flatten() {
            let here = config["properties"]["subnet"]["id"].as_str();
            if here.is_some_and(|s| s.eq_ignore_ascii_case(&id.text)) {
                configs.push(json!({"id": config["id"]}));
            }
        }
    }
    if !configs.is_empty() {
        body["properties"]["ipConfigurations"] = json!(configs);
    }
}
