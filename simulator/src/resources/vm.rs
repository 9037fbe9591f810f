//! Virtual machines and their OS disks.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Prepared, default_to, referenced};
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
    let mut prepared = Prepared::default();
    let location = body["location"].clone();
    identity(world, old, &mut body);
    let properties = &mut body["properties"];
    user_data(old, properties);
    let machine_id = old.map(|o| o.properties()["vmId"].clone()).filter(|v| !v.is_null());
    properties["vmId"] = machine_id.unwrap_or_else(|| json!(uuid::Uuid::new_v4().to_string()));
    let created = old.map(|o| o.properties()["timeCreated"].clone()).filter(|v| !v.is_null());
    properties["timeCreated"] = created.unwrap_or_else(|| json!(world.now().to_string()));
    if let Some(map) = properties.as_object_mut() {
        map.remove("instanceView");
        // Clients send it empty, and would find it in every answer as something to take away.
        map.retain(|name, value| {
            name != "additionalCapabilities" || value.as_object().is_some_and(|m| !m.is_empty())
        });
    }
    let nics = properties["networkProfile"]["networkInterfaces"].as_array().cloned().unwrap_or_default();
    if nics.is_empty() {
        return Err(validate::missing("properties.networkProfile", "networkInterfaces"));
    }
    for nic in &nics {
        let found = referenced(world, id, nic, true)?;
        let Some(found) = found else { return Err(validate::missing("networkInterfaces[]", "id")) };
        let mut holders = world.store.referrers(&found.id().key).filter_map(|k| world.store.get(k));
        let other = holders.find(|r| r.id().kind() == "compute/virtualmachines" && r.id().key != id.key);
        if let Some(other) = other {
            return Err(ArmError::bad(
                "NicInUse",
                format!(
                    "Network Interface {} is used by existing resource {}.",
                    found.id().text,
                    other.id().text
                ),
            ));
        }
    }
    let os = os_type(properties);
    let storage = &mut properties["storageProfile"];
    if !storage.is_object() {
        *storage = json!({});
    }
    default_to(storage, "osDisk", json!({}));
    default_to(storage, "dataDisks", json!([]));
    let disk = &mut storage["osDisk"];
    default_to(disk, "name", json!(format!("{}_OsDisk_1", id.name())));
    default_to(disk, "createOption", json!("FromImage"));
    default_to(disk, "caching", json!("ReadWrite"));
    default_to(disk, "deleteOption", json!("Detach"));
    default_to(disk, "diskSizeGB", json!(if os == "Windows" { 127 } else { 30 }));
    disk["osType"] = json!(os);
    let name = disk["name"].as_str().unwrap_or("os").to_owned();
    default_to(disk, "managedDisk", json!({}));
    default_to(&mut disk["managedDisk"], "storageAccountType", json!("Premium_LRS"));
    if let Some(other) = id.sibling("Microsoft.Compute", "disks", &name) {
        disk["managedDisk"]["id"] = json!(other.text);
        if !world.store.has(&other.key) {
            let body = json!({
                "location": location, "managedBy": id.text,
                "sku": {"name": disk["managedDisk"]["storageAccountType"], "tier": "Premium"},
                "properties": {"osType": os, "diskSizeGB": disk["diskSizeGB"],
                    "creationData": {"createOption": "FromImage"}, "diskState": "Attached"}
            });
            prepared.beside.push((other, prepare_disk(None, body)));
        }
    }
    if let Some(profile) = properties["osProfile"].as_object_mut() {
        // Secrets go in and never come out.
        profile.remove("adminPassword");
        profile.remove("customData");
        profile.entry("allowExtensionOperations").or_insert(json!(true));
        profile.entry("requireGuestProvisionSignal").or_insert(json!(true));
        profile.entry("secrets").or_insert(json!([]));
    }
    prepared.body = body;
    Ok(prepared)
}

/// A PUT without `identity` leaves it as it is; the type `None` takes it away.
fn identity(world: &World, old: Option<&Arc<Resource>>, body: &mut Value) {
    let before = old.map_or(Value::Null, |o| o.body()["identity"].clone());
    let Some(map) = body.as_object_mut() else { return };
    if map.get("identity").is_none_or(Value::is_null) {
        map.insert("identity".into(), before.clone());
    }
    let kind = map["identity"]["type"].as_str().unwrap_or("None").to_lowercase();
    if kind == "none" {
        map.remove("identity");
    } else if kind.contains("systemassigned") {
        let known = before["principalId"].as_str().map(str::to_owned);
        let principal = known.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        map["identity"]["principalId"] = json!(principal);
        map["identity"]["tenantId"] = json!(world.principals.tenant);
    }
}

/// A PUT without `userData` leaves it as it is; an empty text takes it away.
fn user_data(old: Option<&Arc<Resource>>, properties: &mut Value) {
    let before = old.map_or(Value::Null, |o| o.properties()["userData"].clone());
    default_to(properties, "userData", before);
    if matches!(properties["userData"].as_str(), None | Some(""))
        && let Some(map) = properties.as_object_mut()
    {
        map.remove("userData");
    }
}

/// The disk says it, or the profile, or the image.
fn os_type(properties: &Value) -> &'static str {
    let disk = properties["storageProfile"]["osDisk"]["osType"].as_str();
    let image = &properties["storageProfile"]["imageReference"];
    let windows_image = ["publisher", "offer", "sku"]
        .iter()
        .any(|f| image[*f].as_str().is_some_and(|t| t.to_lowercase().contains("windows")));
    match disk {
        Some(os) if os.eq_ignore_ascii_case("Windows") => "Windows",
        Some(_) => "Linux",
        None if properties["osProfile"]["windowsConfiguration"].is_object() || windows_image => "Windows",
        None => "Linux",
    }
}

pub(crate) fn prepare_disk(old: Option<&Arc<Resource>>, mut body: Value) -> Value {
    let properties = &mut body["properties"];
    let unique = old.map(|o| o.properties()["uniqueId"].clone()).filter(|v| !v.is_null());
    properties["uniqueId"] = unique.unwrap_or_else(|| json!(uuid::Uuid::new_v4().to_string()));
    default_to(properties, "diskState", json!("Unattached"));
    default_to(properties, "networkAccessPolicy", json!("AllowAll"));
    default_to(properties, "publicNetworkAccess", json!("Enabled"));
    body
}

/// Is the interface the machine's primary one (the only one, or said to be)?
pub(crate) fn is_primary(machine: &Resource, nic: &str) -> bool {
    let nics = machine.properties()["networkProfile"]["networkInterfaces"].as_array();
    let Some(nics) = nics else { return false };
    let own = nics.iter().find(|n| n["id"].as_str().is_some_and(|i| i.eq_ignore_ascii_case(nic)));
    nics.len() == 1 || own.is_some_and(|n| n["properties"]["primary"] == json!(true))
}

/// What goes with the machine because its `deleteOption` says so.
pub(crate) fn deleted_with(store: &Store, machine: &Resource) -> Vec<String> {
    let properties = machine.properties();
    let disk = &properties["storageProfile"]["osDisk"];
    let mut keys = vec![];
    let mut add = |option: &Value, id: &Value| {
        let delete = option.as_str().is_some_and(|o| o.eq_ignore_ascii_case("Delete"));
        if let Some(key) = id.as_str().map(str::to_lowercase).filter(|k| delete && store.has(k)) {
            keys.push(key);
        }
    };
    add(&disk["deleteOption"], &disk["managedDisk"]["id"]);
    for nic in properties["networkProfile"]["networkInterfaces"].as_array().into_iter().flatten() {
        add(&nic["properties"]["deleteOption"], &nic["id"]);
    }
    keys
}

/// Adds what `$expand` asks for, and hides what it must ask for.
pub(crate) fn expand(body: &mut Value, machine: &Resource, expand: &str, now: Timestamp) {
    let asked = |what: &str| expand.split(',').any(|e| e.trim().eq_ignore_ascii_case(what));
    if !asked("userData")
        && let Some(map) = body["properties"].as_object_mut()
    {
        map.remove("userData");
    }
    if let Some(map) = body.as_object_mut() {
        map.remove("powerState");
    }
    if asked("instanceView") {
        body["properties"]["instanceView"] = instance_view(machine, now);
    }
}

pub(crate) fn instance_view(machine: &Resource, now: Timestamp) -> Value {
    let power = machine.body()["powerState"].as_str().unwrap_or("running").to_owned();
    json!({
        "vmAgent": {"vmAgentVersion": "2.9", "statuses": []},
        "statuses": [
            {"code": "ProvisioningState/succeeded", "level": "Info", "displayStatus": "Provisioning succeeded", "time": now.to_string()},
            {"code": format!("PowerState/{power}"), "level": "Info", "displayStatus": format!("VM {power}")},
        ]
    })
}
