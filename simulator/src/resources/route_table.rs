//! Route tables and their routes.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Prepared, default_to, guid, rule::network};
use crate::{
    arm::{
        errors::ArmError,
        ids::ResourceId,
        store::{Resource, Store},
        validate,
    },
    world::World,
};

const HOPS: [&str; 5] = ["VirtualNetworkGateway", "VnetLocal", "Internet", "VirtualAppliance", "None"];

pub(crate) fn prepare(
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
    mut body: Value,
) -> Result<Prepared, ArmError> {
    guid(&mut body, old);
    let properties = &mut body["properties"];
    default_to(properties, "disableBgpRoutePropagation", json!(false));
    let mut given = Value::Null;
    if let Some(map) = properties.as_object_mut() {
        map.remove("subnets");
        given = map.remove("routes").unwrap_or(Value::Null);
    }
    let mut items = vec![];
    for (index, item) in given.as_array().into_iter().flatten().enumerate() {
        let path = format!("properties.routes[{index}]");
        let name = item["name"].as_str().ok_or_else(|| validate::missing(&path, "name"))?;
        let child = id.child("routes", name);
        items.push((child, check(item)?));
    }
    apart(&items)?;
    Ok(Prepared { body, embedded: vec![("routes", items)], ..Prepared::default() })
}

pub(crate) fn prepare_route(world: &World, id: &ResourceId, body: &Value) -> Result<Prepared, ArmError> {
    let body = check(body)?;
    let parent = id.parent().map(|p| p.key).unwrap_or_default();
    let siblings = world.store.children(&parent, "routes");
    let others = siblings.iter().filter(|r| r.id().key != id.key);
    let mut all: Vec<(ResourceId, Value)> = others.map(|r| (r.id().clone(), r.body().clone())).collect();
    all.push((id.clone(), body.clone()));
    apart(&all)?;
    Ok(body.into())
}

fn check(item: &Value) -> Result<Value, ArmError> {
    let mut properties = item["properties"].clone();
    let prefix = properties["addressPrefix"].as_str().unwrap_or("").to_owned();
    let tag = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.');
    if network(&prefix).is_none() && (!tag || prefix.starts_with(|c: char| c.is_ascii_digit())) {
        return Err(ArmError::bad(
            "InvalidAddressPrefixFormat",
            format!("Address prefix '{prefix}' of a route is not formatted correctly."),
        ));
    }
    let hop = properties["nextHopType"].as_str().unwrap_or("");
    let Some(hop) = HOPS.iter().find(|h| h.eq_ignore_ascii_case(hop)) else {
        return Err(validate::missing("properties", "nextHopType"));
    };
    if *hop == "VirtualAppliance" && properties["nextHopIpAddress"].as_str().is_none() {
        return Err(ArmError::bad(
            "RouteWithVirtualApplianceNextHopTypeMustHaveNextHopIpAddress",
            "A route to a VirtualAppliance must have a nextHopIpAddress.",
        ));
    }
    properties["nextHopType"] = json!(hop);
    default_to(&mut properties, "hasBgpOverride", json!(false));
    if let Some(map) = properties.as_object_mut() {
        map.remove("provisioningState");
    }
    Ok(json!({"properties": properties}))
}

fn apart(routes: &[(ResourceId, Value)]) -> Result<(), ArmError> {
    for (index, (id, body)) in routes.iter().enumerate() {
        let same = |other: &&(ResourceId, Value)| {
            other.1["properties"]["addressPrefix"] == body["properties"]["addressPrefix"]
        };
        if let Some((other, _)) = routes[..index].iter().find(same) {
            return Err(ArmError::bad(
                "RouteConflict",
                format!(
                    "Route {} conflicts with route {}. Routes cannot have the same address prefix.",
                    id.name(),
                    other.name()
                ),
            ));
        }
    }
    Ok(())
}

pub(crate) fn add_read_only(store: &Store, id: &ResourceId, body: &mut Value) {
    let subnets: Vec<Value> = store
        .referrers(&id.key)
        .filter_map(|k| store.get(k))
        .filter(|r| r.id().kind().ends_with("/subnets"))
        .map(|r| json!({"id": r.id().text}))
        .collect();
    if !subnets.is_empty() {
        body["properties"]["subnets"] = json!(subnets);
    }
}
