//! Network interfaces: addresses from their subnets, and the machine they belong to.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{Prepared, addresses, default_to, guid, public_ip, referenced};
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
    let mut prepared = Prepared::default();
    let properties = &mut body["properties"];
    if let Some(map) = properties.as_object_mut() {
        for read_only in ["virtualMachine", "macAddress", "primary", "hostedWorkloads", "tapConfigurations"] {
            map.remove(read_only);
        }
    }
    let group = properties["networkSecurityGroup"].clone();
    referenced(world, id, &group, true)?;
    if let Some(target) = group["id"].as_str() {
        properties["networkSecurityGroup"] = json!({"id": target});
    }
    let mut configs = properties["ipConfigurations"].as_array().cloned().unwrap_or_default();
    if configs.is_empty() {
        return Err(ArmError::bad(
            "NetworkInterfaceMustHaveAtLeastOneIPConfiguration",
            format!("Network interface {} must have at least one IP configuration.", id.text),
        ));
    }
    let mut given = HashSet::new();
    let only = configs.len() == 1;
    for (index, config) in configs.iter_mut().enumerate() {
        let path = format!("properties.ipConfigurations[{index}]");
        let name = config["name"].as_str().ok_or_else(|| validate::missing(&path, "name"))?.to_owned();
        config["id"] = json!(format!("{}/ipConfigurations/{name}", id.text));
        config["type"] = json!("Microsoft.Network/networkInterfaces/ipConfigurations");
        if !config["properties"].is_object() {
            return Err(validate::missing(&path, "properties"));
        }
        if only {
            config["properties"]["primary"] = json!(true);
        }
        address(world, id, old, &name, &mut config["properties"], &mut given)?;
        attach_public(world, id, config, &mut prepared)?;
        let groups = config["properties"]["applicationSecurityGroups"].as_array().cloned();
        if let Some(groups) = groups {
            for asg in &groups {
                referenced(world, id, asg, true)?;
            }
            let short: Vec<Value> = groups.iter().map(|g| json!({"id": g["id"]})).collect();
            config["properties"]["applicationSecurityGroups"] = json!(short);
        }
    }
    properties["ipConfigurations"] = Value::Array(configs);
    default_to(properties, "dnsSettings", json!({}));
    default_to(&mut properties["dnsSettings"], "dnsServers", json!([]));
    default_to(&mut properties["dnsSettings"], "appliedDnsServers", json!([]));
    default_to(properties, "enableAcceleratedNetworking", json!(false));
    default_to(properties, "enableIPForwarding", json!(false));
    default_to(properties, "disableTcpStateTracking", json!(false));
    properties["nicType"] = json!("Standard");
    if let Some(map) = properties.as_object_mut() {
        map.retain(|_, v| !v.is_null());
    }
    prepared.body = body;
    Ok(prepared)
}

/// Gives an ip configuration its private address: the one asked for, the one it had, or the next free one.
fn address(
    world: &World,
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
    name: &str,
    properties: &mut Value,
    given: &mut HashSet<IpAddr>,
) -> Result<(), ArmError> {
    let v6 = properties["privateIPAddressVersion"].as_str().is_some_and(|v| v.eq_ignore_ascii_case("IPv6"));
    properties["privateIPAddressVersion"] = json!(if v6 { "IPv6" } else { "IPv4" });
    let fixed =
        properties["privateIPAllocationMethod"].as_str().is_some_and(|m| m.eq_ignore_ascii_case("Static"));
    properties["privateIPAllocationMethod"] = json!(if fixed { "Static" } else { "Dynamic" });
    let Some(subnet) = referenced(world, id, &properties["subnet"].clone(), false)? else {
        return Err(ArmError::bad(
            "SubnetIsRequired",
            format!("Subnet must be specified in IP configuration {name} of {}.", id.text),
        ));
    };
    properties["subnet"] = json!({"id": subnet.id().text});
    let prefixes = addresses::prefixes(subnet.properties());
    let mut used = addresses::used_in(&world.store, &subnet.id().key, &id.key);
    used.extend(given.iter().copied());
    let in_prefix = |a: &IpAddr| prefixes.iter().any(|p| p.contains(a));
    let asked = properties["privateIPAddress"].as_str().map(str::to_owned);
    let before = old.and_then(|o| {
        let configs = o.properties()["ipConfigurations"].as_array()?;
        let same = configs.iter().find(|c| c["name"].as_str() == Some(name))?;
        same["properties"]["privateIPAddress"].as_str().map(str::to_owned)
    });
    let chosen = if fixed {
        let text = asked.ok_or_else(|| validate::missing("properties", "privateIPAddress"))?;
        let wanted: IpAddr = text.parse().map_err(|_| {
            ArmError::bad(
                "InvalidIPAddressFormat",
                format!("The IP address {text} is not formatted correctly."),
            )
        })?;
        if !in_prefix(&wanted) {
            return Err(ArmError::bad(
                "PrivateIPAddressNotInSubnet",
                format!(
                    "Private static IP address {text} does not belong to the range of subnet {}.",
                    subnet.id().text
                ),
            ));
        }
        if used.contains(&wanted) {
            return Err(ArmError::bad(
                "PrivateIPAddressInUse",
                format!(
                    "IP configuration {name} of {} is using the private IP address {text} which is already allocated to another resource.",
                    id.text
                ),
            ));
        }
        wanted
    } else {
        let kept = before.or(asked).and_then(|t| t.parse::<IpAddr>().ok());
        let kept = kept.filter(|a| in_prefix(a) && !used.contains(a) && a.is_ipv6() == v6);
        let mut families = prefixes.iter().filter(|p| matches!(p, ipnet::IpNet::V6(_)) == v6);
        kept.or_else(|| families.find_map(|p| addresses::free_in(p, &used))).ok_or_else(|| {
            ArmError::bad(
                "SubnetIsFull",
                format!("Subnet {} does not have enough capacity.", subnet.id().text),
            )
        })?
    };
    given.insert(chosen);
    properties["privateIPAddress"] = json!(chosen.to_string());
    Ok(())
}

fn attach_public(
    world: &mut World,
    id: &ResourceId,
    config: &mut Value,
    prepared: &mut Prepared,
) -> Result<(), ArmError> {
    let reference = config["properties"]["publicIPAddress"].clone();
    let Some(address) = referenced(world, id, &reference, true)? else { return Ok(()) };
    config["properties"]["publicIPAddress"] = json!({"id": address.id().text});
    let holder = world.store.referrers(&address.id().key).find(|k| *k != id.key).map(str::to_owned);
    if let Some(holder) = holder.and_then(|k| world.store.get(&k)) {
        return Err(ArmError::bad(
            "PublicIPAddressInUse",
            format!(
                "Resource {} is referencing public IP address {} that is already allocated to resource {}.",
                id.text,
                address.id().text,
                holder.id().text
            ),
        ));
    }
    // A dynamic address comes into being when it is attached.
    if let Some(body) = public_ip::allocate(world, address.body()) {
        prepared.beside.push((address.id().clone(), body));
    }
    Ok(())
}

pub(crate) fn add_read_only(store: &Store, resource: &Resource, body: &mut Value) {
    let id = resource.id();
    let (etag, state) = (body["etag"].clone(), body["properties"]["provisioningState"].clone());
    if let Some(configs) = body["properties"]["ipConfigurations"].as_array_mut() {
        for config in configs {
            config["etag"] = etag.clone();
            config["properties"]["provisioningState"] = state.clone();
        }
    }
    let properties = &mut body["properties"];
    properties["hostedWorkloads"] = json!([]);
    properties["tapConfigurations"] = json!([]);
    let machine = store
        .referrers(&id.key)
        .filter_map(|k| store.get(k))
        .find(|r| r.id().kind() == "compute/virtualmachines");
    if let Some(machine) = machine {
        properties["virtualMachine"] = json!({"id": machine.id().text});
        properties["primary"] = json!(super::vm::is_primary(&machine, &id.key));
        let guid = properties["resourceGuid"].as_str().unwrap_or("").replace('-', "").to_uppercase();
        if let Some(tail) = guid.get(..6) {
            properties["macAddress"] =
                json!(format!("00-0D-3A-{}-{}-{}", &tail[..2], &tail[2..4], &tail[4..]));
        }
    }
}
