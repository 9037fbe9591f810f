//! Public IP addresses.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Prepared, default_to, guid};
use crate::{
    arm::{
        errors::ArmError,
        ids::ResourceId,
        store::{Resource, Store},
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
    default_to(&mut body, "sku", json!({}));
    default_to(&mut body["sku"], "name", json!("Basic"));
    default_to(&mut body["sku"], "tier", json!("Regional"));
    let standard = body["sku"]["name"].as_str().is_some_and(|n| !n.eq_ignore_ascii_case("Basic"));
    let properties = &mut body["properties"];
    if let Some(map) = properties.as_object_mut() {
        map.remove("ipConfiguration");
    }
    default_to(properties, "publicIPAddressVersion", json!("IPv4"));
    default_to(properties, "publicIPAllocationMethod", json!(if standard { "Static" } else { "Dynamic" }));
    default_to(properties, "idleTimeoutInMinutes", json!(4));
    default_to(properties, "ipTags", json!([]));
    let fixed =
        properties["publicIPAllocationMethod"].as_str().is_some_and(|m| m.eq_ignore_ascii_case("Static"));
    if standard && !fixed {
        return Err(ArmError::bad(
            "StandardAndBasicSkuPublicIPAllocationMethodMismatch",
            format!("Public IP {} is of Standard SKU and must be of Static allocation.", id.text),
        ));
    }
    if let Some(before) = old.map(|o| o.properties()["ipAddress"].clone()).filter(|a| !a.is_null()) {
        properties["ipAddress"] = before;
    } else if let Some(wanted) = properties["ipAddress"].as_str().map(str::to_owned) {
        // Azure picks the address; a world may name a free one, so that tests can speak of it.
        let address = wanted.parse::<IpAddr>().ok().filter(|a| !taken(&world.store).contains(a));
        let Some(address) = address else {
            return Err(ArmError::bad(
                "PublicIPAddressInUse",
                format!("The address '{wanted}' is not an address or is held by another public IP."),
            ));
        };
        world.pools.name(address);
    } else if fixed {
        body = allocate(world, &body).unwrap_or(body);
    }
    Ok(body.into())
}

fn taken(store: &Store) -> HashSet<IpAddr> {
    let all = store.all().filter(|r| r.id().kind() == "network/publicipaddresses");
    all.filter_map(|r| r.properties()["ipAddress"].as_str().and_then(|a| a.parse().ok())).collect()
}

/// The document with an address, unless it has one.
pub(crate) fn allocate(world: &mut World, body: &Value) -> Option<Value> {
    if !body["properties"]["ipAddress"].is_null() {
        return None;
    }
    let v6 = body["properties"]["publicIPAddressVersion"].as_str() == Some("IPv6");
    let address = world.pools.public(v6);
    let mut body = body.clone();
    body["properties"]["ipAddress"] = json!(address.to_string());
    Some(body)
}

pub(crate) fn add_read_only(store: &Store, id: &ResourceId, body: &mut Value) {
    for nic in store.referrers(&id.key).filter_map(|k| store.get(k)) {
        for config in nic.properties()["ipConfigurations"].as_array().into_iter().flatten() {
            let here = config["properties"]["publicIPAddress"]["id"].as_str();
            if here.is_some_and(|p| p.eq_ignore_ascii_case(&id.text)) {
                body["properties"]["ipConfiguration"] = json!({"id": config["id"]});
            }
        }
    }
}
