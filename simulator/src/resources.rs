//! What differs between types: checks and defaults on a write, what a read adds, what may be deleted.

pub(crate) mod actions;
pub(crate) mod addresses;
pub(crate) mod firewall;
pub(crate) mod graph;
pub(crate) mod kql;
pub(crate) mod nic;
pub(crate) mod nsg;
pub(crate) mod providers;
pub(crate) mod public_ip;
pub(crate) mod route_table;
pub(crate) mod rule;
pub(crate) mod vm;
pub(crate) mod vnet;

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::{
    arm::{
        errors::ArmError,
        ids::ResourceId,
        locks, shape,
        store::{Resource, Store},
        validate,
    },
    http::Call,
    world::World,
};

/// A checked write.
#[derive(Debug, Default)]
pub(crate) struct Prepared {
    pub(crate) body: Value,
    /// Nested resources that the document carries: they replace all of their type.
    pub(crate) embedded: Vec<(&'static str, Vec<(ResourceId, Value)>)>,
    /// Other resources that come into being with it.
    pub(crate) beside: Vec<(ResourceId, Value)>,
    /// It is accepted and stored, but its operation fails with this code.
    pub(crate) fails: Option<String>,
}

impl From<Value> for Prepared {
    fn from(body: Value) -> Self {
        Self { body, ..Self::default() }
    }
}

/// Nested types that a parent's document embeds.
fn embedded_types(kind: &str) -> &'static [&'static str] {
    match kind {
        "network/networksecuritygroups" => &["securityRules"],
        "network/virtualnetworks" => &["subnets", "virtualNetworkPeerings"],
        "network/routetables" => &["routes"],
        _ => &[],
    }
}

/// Does it have a location of its own?
pub(crate) fn located(id: &ResourceId) -> bool {
    id.types.len() <= 1 && id.extends.is_none()
}

/// Are writes long-running operations?
pub(crate) fn long_running(id: &ResourceId) -> bool {
    matches!(id.namespace.as_str(), "Microsoft.Network" | "Microsoft.Compute")
        && id.kind() != "compute/availabilitysets"
}

/// What a PUT answers that creates. Clients refuse a status that the type does not have.
pub(crate) fn created_status(id: &ResourceId) -> u16 {
    match id.kind().as_str() {
        "compute/availabilitysets" => 200,
        "compute/disks" | "compute/snapshots" => 202,
        _ => 201,
    }
}

/// Does PATCH merge, rather than take tags alone?
pub(crate) fn merges(id: &ResourceId) -> bool {
    id.namespace != "Microsoft.Network"
}

/// Checks a document and fills in what Azure would.
pub(crate) fn prepare(
    world: &mut World,
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
    body: Value,
) -> Result<Prepared, ArmError> {
    let mut body = body;
    if let Some(map) = body.as_object_mut() {
        for read_only in ["id", "name", "type", "etag"] {
            map.remove(read_only);
        }
        if map.get("tags").is_some_and(Value::is_null) {
            map.remove("tags");
        }
        let properties = map.entry("properties").or_insert_with(|| json!({}));
        if properties.is_null() {
            *properties = json!({});
        }
        if !properties.is_object() {
            return Err(validate::unreadable("properties", "An object is expected."));
        }
        if let Some(properties) = properties.as_object_mut() {
            properties.remove("provisioningState");
        }
    }
    if id.namespace == "Microsoft.Network" {
        validate::network_name(id.name())?;
    }
    shape::check(&id.kind(), &body)?;
    match id.kind().as_str() {
        "network/networksecuritygroups" => nsg::prepare(id, old, body),
        "network/networksecuritygroups/securityrules" => nsg::prepare_rule(world, id, body),
        "network/virtualnetworks" => vnet::prepare(world, id, old, body),
        "network/virtualnetworks/subnets" => vnet::prepare_subnet(world, id, &body),
        "network/virtualnetworks/virtualnetworkpeerings" => vnet::prepare_peering(id, &body),
        "network/networkinterfaces" => nic::prepare(world, id, old, body),
        "network/publicipaddresses" => public_ip::prepare(world, id, old, body),
        "network/routetables" => route_table::prepare(id, old, body),
        "network/routetables/routes" => route_table::prepare_route(world, id, &body),
        "network/applicationsecuritygroups" => {
            guid(&mut body, old);
            Ok(body.into())
        }
        "network/azurefirewalls" => firewall::prepare(world, id, old, body),
        "network/firewallpolicies" => firewall::policy::prepare(world, id, body),
        "network/firewallpolicies/rulecollectiongroups" => firewall::policy::prepare_group(world, id, body),
        "compute/virtualmachines" => vm::prepare(world, id, old, body),
        "compute/disks" => Ok(vm::prepare_disk(old, body).into()),
        "authorization/locks" => locks::prepare(&body).map(Prepared::from),
        _ => Ok(body.into()),
    }
}

/// `resourceGuid`, kept for the life of the resource.
pub(crate) fn guid(body: &mut Value, old: Option<&Arc<Resource>>) {
    let kept = old.map(|o| o.properties()["resourceGuid"].clone()).filter(|g| !g.is_null());
    body["properties"]["resourceGuid"] = kept.unwrap_or_else(|| json!(uuid::Uuid::new_v4().to_string()));
}

/// A property that the client may leave out.
pub(crate) fn default_to(properties: &mut Value, name: &str, value: Value) {
    if properties[name].is_null() {
        properties[name] = value;
    }
}

/// The ETag of a resource: a nested network resource shows its top level's.
pub(crate) fn etag(store: &Store, resource: &Resource) -> Option<String> {
    if resource.id().namespace != "Microsoft.Network" {
        return None;
    }
    let root = resource.id().root();
    if root.key == resource.id().key {
        return Some(resource.etag.clone());
    }
    store.get(&root.key).map(|r| r.etag.clone())
}

/// The whole document that a read answers.
pub(crate) fn render(store: &Store, resource: &Resource) -> Value {
    let id = resource.id();
    let mut body = resource.body().clone();
    body["id"] = json!(id.text);
    body["name"] = json!(id.name());
    body["type"] = json!(id.full_type());
    if let Some(etag) = etag(store, resource) {
        body["etag"] = json!(etag);
    }
    let kind = id.kind();
    if id.namespace != "Microsoft.Authorization" {
        body["properties"]["provisioningState"] = json!(resource.state.word());
    }
    for embedded in embedded_types(&kind) {
        let children = store.children(&id.key, embedded);
        let mut children: Vec<Value> = children.iter().map(|c| render(store, c)).collect();
        if *embedded == "securityRules" {
            children.sort_by_key(|r| r["properties"]["priority"].as_i64());
        }
        body["properties"][*embedded] = json!(children);
    }
    match kind.as_str() {
        "network/networksecuritygroups" => nsg::add_read_only(store, id, &mut body),
        "network/virtualnetworks/subnets" => vnet::add_subnet_read_only(store, id, &mut body),
        "network/virtualnetworks/virtualnetworkpeerings" => vnet::add_peering_read_only(store, &mut body),
        "network/networkinterfaces" => nic::add_read_only(store, resource, &mut body),
        "network/publicipaddresses" => public_ip::add_read_only(store, id, &mut body),
        "network/routetables" => route_table::add_read_only(store, id, &mut body),
        "network/azurefirewalls" => firewall::add_read_only(&mut body),
        "network/firewallpolicies" => firewall::policy::add_read_only(store, id, &mut body),
        "network/firewallpolicies/rulecollectiongroups" => firewall::policy::add_group_read_only(&mut body),
        _ => {}
    }
    body
}

/// [`render`] plus what `$expand` asks for.
pub(crate) fn expanded(store: &Store, resource: &Resource, call: &Call, now: Timestamp) -> Value {
    let mut body = render(store, resource);
    if resource.id().kind() == "compute/virtualmachines" {
        vm::expand(&mut body, resource, call.query("$expand").unwrap_or(""), now);
    }
    body
}

/// May it be deleted now, or does another resource use it?
pub(crate) fn deletable(world: &World, resource: &Resource) -> Result<(), ArmError> {
    let id = resource.id();
    let store = &world.store;
    let users = |suffix: &str| -> Option<String> {
        store
            .referrers(&id.key)
            .filter_map(|k| store.get(k))
            .find(|r| r.id().kind().ends_with(suffix))
            .map(|r| r.id().text.clone())
    };
    let refuse = |code: &str, what: &str, user: String| {
        Err(ArmError::bad(
            code,
            format!("{what} {} cannot be deleted because it is in use by {user}.", id.text),
        ))
    };
    match id.kind().as_str() {
        "network/networksecuritygroups" => match users("networkinterfaces").or_else(|| users("/subnets")) {
            Some(user) => refuse("InUseNetworkSecurityGroupCannotBeDeleted", "Network security group", user),
            None => Ok(()),
        },
        "network/virtualnetworks/subnets" => {
            match users("networkinterfaces").or_else(|| users("azurefirewalls")) {
                Some(user) => refuse("InUseSubnetCannotBeDeleted", "Subnet", user),
                None => Ok(()),
            }
        }
        "network/virtualnetworks" => {
            for subnet in store.children(&id.key, "subnets") {
                deletable(world, &subnet)?;
            }
            Ok(())
        }
        "network/publicipaddresses" => match users("networkinterfaces").or_else(|| users("azurefirewalls")) {
            Some(user) => refuse("PublicIPAddressCannotBeDeleted", "Public IP address", user),
            None => Ok(()),
        },
        "network/routetables" => match users("/subnets") {
            Some(user) => refuse("InUseRouteTableCannotBeDeleted", "Route table", user),
            None => Ok(()),
        },
        "network/applicationsecuritygroups" => {
            match users("networkinterfaces").or_else(|| users("/securityrules")) {
                Some(user) => {
                    refuse("InUseApplicationSecurityGroupCannotBeDeleted", "Application security group", user)
                }
                None => Ok(()),
            }
        }
        "network/firewallpolicies" => match users("azurefirewalls").or_else(|| users("firewallpolicies")) {
            Some(user) => refuse("FirewallPolicyInUse", "Firewall policy", user),
            None => Ok(()),
        },
        "network/networkinterfaces" => match users("virtualmachines") {
            Some(user) => refuse("NicInUse", "Network Interface", user),
            None => Ok(()),
        },
        _ => Ok(()),
    }
}

/// Keys of other resources that go away with it (`deleteOption: Delete`).
pub(crate) fn deleted_with(world: &World, resource: &Resource) -> Vec<String> {
    if resource.id().kind() == "compute/virtualmachines" {
        return vm::deleted_with(&world.store, resource);
    }
    vec![]
}

/// A resource that a document refers to must exist, and not be changing where Azure minds.
pub(crate) fn referenced(
    world: &World,
    from: &ResourceId,
    reference: &Value,
    settled: bool,
) -> Result<Option<Arc<Resource>>, ArmError> {
    let Some(target) = reference["id"].as_str() else {
        return if reference.is_null() {
            Ok(None)
        } else {
            Err(validate::unreadable("id", "A reference is an object with a string 'id'."))
        };
    };
    let key = target.to_lowercase();
    let Some(found) = world.store.get(&key) else {
        return Err(ArmError::bad(
            "InvalidResourceReference",
            format!(
                "Resource {target} referenced by resource {} was not found. Please make sure that the referenced resource exists, and that both resources are in the same region.",
                from.text
            ),
        ));
    };
    if settled && let Some(running) = world.operations.running(&found.id().root().key) {
        return Err(ArmError::new(
            429,
            "ReferencedResourceNotProvisioned",
            format!(
                "Cannot proceed with operation because resource {target} used by resource {} is not in Succeeded state. Resource is in {} state and the last operation that updated/is updating the resource is {}.",
                from.text,
                found.state.word(),
                running.kind
            ),
        ));
    }
    Ok(Some(found))
}
