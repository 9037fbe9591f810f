//! From a path to what it means.

use serde_json::{Value, json};

use super::{
    crud,
    errors::ArmError,
    ids::{Path, ResourceId},
    paging, poll,
};
use crate::{
    control::faults::Plan,
    http::{Call, Reply},
    identity::principals::Caller,
    resources::{self, graph, providers},
    world::World,
};

/// Answers an authenticated Resource Manager request.
pub(crate) fn route(world: &mut World, call: &Call, caller: &Caller, plan: &Plan) -> Result<Reply, ArmError> {
    let parts: Vec<&str> = call.path.split('/').filter(|p| !p.is_empty()).collect();
    let lower: Vec<String> = parts.iter().map(|p| p.to_lowercase()).collect();
    let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
    match (call.method.as_str(), lower.as_slice()) {
        ("GET", ["tenants"]) => return Ok(Reply::ok(json!({"value": [tenant(&caller.tenant)]}))),
        ("GET", ["subscriptions"]) => {
            let own = world.subscriptions.iter().filter(|(_, tenant)| **tenant == caller.tenant);
            let list: Value = own.map(|(id, tenant)| subscription(id, tenant)).collect();
            return Ok(Reply::ok(json!({"value": list})));
        }
        ("GET", ["providers"]) => return Ok(Reply::ok(json!({"value": providers::all(None)}))),
        ("GET", ["providers", namespace]) => return providers::one(None, namespace).map(Reply::ok),
        ("POST", ["providers", "microsoft.resourcegraph", "resources"]) => {
            return graph::query(world, caller, plan, &call.json()?);
        }
        _ => {}
    }
    let ["subscriptions", id, rest @ ..] = lower.as_slice() else {
        return Err(no_route(call));
    };
    let trusted = world.subscriptions.get(*id).cloned().ok_or_else(|| {
        ArmError::not_found("SubscriptionNotFound", format!("The subscription '{id}' could not be found."))
    })?;
    if trusted != caller.tenant {
        return Err(crate::identity::wrong_tenant(call, &caller.tenant, &trusted));
    }
    let scope = format!("/subscriptions/{id}");
    match (call.method.as_str(), rest) {
        ("GET", []) => Ok(Reply::ok(subscription(id, &trusted))),
        ("GET", ["locations"]) => Ok(Reply::ok(json!({"value": providers::locations(id)}))),
        ("GET", ["resources"]) => {
            caller.require(world, "Microsoft.Resources/subscriptions/resources/read", &scope)?;
            list_resources(world, call, plan, &format!("{scope}/"))
        }
        ("GET", ["resourcegroups", group, "resources"]) => {
            caller.require(world, "Microsoft.Resources/subscriptions/resourceGroups/read", &scope)?;
            let group = ResourceId::of_group(id, group);
            crud::group_exists(world, &group)?;
            list_resources(world, call, plan, &format!("{}/", group.key))
        }
        ("GET", ["providers"]) => Ok(Reply::ok(json!({"value": providers::all(Some((world, id)))}))),
        ("GET", ["providers", namespace]) => providers::one(Some((world, id)), namespace).map(Reply::ok),
        ("POST", ["providers", namespace, verb @ ("register" | "unregister")]) => {
            caller.require(world, &format!("{namespace}/{verb}/action"), &scope)?;
            providers::register(world, id, namespace, *verb == "register").map(Reply::ok)
        }
        ("GET", ["operationresults", operation]) => poll::result(world, call, operation),
        ("GET", ["providers", _, "locations", _, "operations", operation]) => {
            caller.require(world, "Microsoft.Network/locations/operations/read", &scope)?;
            poll::status(world, operation)
        }
        ("GET", ["providers", _, "locations", _, "operationresults", operation]) => {
            caller.require(world, "Microsoft.Network/locations/operationResults/read", &scope)?;
            poll::result(world, call, operation)
        }
        _ => resource(world, call, caller, plan),
    }
}

fn no_route(call: &Call) -> ArmError {
    ArmError::not_found(
        "NotFound",
        format!("The request '{} {}' is not known to this Resource Manager.", call.method, call.path),
    )
}

fn resource(world: &mut World, call: &Call, caller: &Caller, plan: &Plan) -> Result<Reply, ArmError> {
    match (call.method.as_str(), Path::parse(&call.path)?) {
        ("GET", Path::Resource(id) | Path::Group(id)) => crud::get(world, call, caller, plan, &id),
        ("HEAD", Path::Resource(id) | Path::Group(id)) => {
            caller.require(world, &id.action("read"), &id.text)?;
            Ok(Reply::empty(if world.store.has(&id.key) { 204 } else { 404 }))
        }
        ("PUT", Path::Resource(id) | Path::Group(id)) => crud::put(world, call, caller, plan, &id),
        ("PATCH", Path::Resource(id) | Path::Group(id)) => crud::patch(world, call, caller, plan, &id),
        ("DELETE", Path::Resource(id) | Path::Group(id)) => crud::delete(world, call, caller, plan, &id),
        ("GET", Path::Collection(id)) => crud::list(world, call, caller, plan, &id),
        ("POST", Path::Collection(id)) => resources::actions::run(world, call, caller, plan, &id),
        _ => Err(ArmError::new(
            405,
            "MethodNotAllowed",
            format!("The method '{}' is not allowed on '{}'.", call.method, call.path),
        )),
    }
}

fn tenant(id: &str) -> Value {
    json!({"id": format!("/tenants/{id}"), "tenantId": id, "countryCode": "NL", "displayName": "Simulated",
           "domains": [], "defaultDomain": "simulated.example", "tenantType": "AAD", "tenantCategory": "Home"})
}

fn subscription(id: &str, tenant: &str) -> Value {
    json!({
        "id": format!("/subscriptions/{id}"), "authorizationSource": "RoleBased", "managedByTenants": [],
        "subscriptionId": id, "tenantId": tenant, "displayName": "Simulated", "state": "Enabled",
        "subscriptionPolicies": {"locationPlacementId": "Public_2014-09-01", "quotaId": "PayAsYouGo_2014-09-01", "spendingLimit": "Off"},
    })
}

/// All top-level resources of a scope, in the short form of such lists.
fn list_resources(world: &World, call: &Call, plan: &Plan, prefix: &str) -> Result<Reply, ArmError> {
    let filter = match call.query("$filter") {
        Some(text) => Some(resource_type_filter(text)?),
        None => None,
    };
    let items = crud::view(world, plan, |store| {
        let top = store.under(prefix).filter(|r| r.id().types.len() == 1 && r.id().extends.is_none());
        top.filter(|r| filter.as_ref().is_none_or(|t| r.id().full_type().eq_ignore_ascii_case(t)))
            .map(|r| {
                let mut item = json!({"id": r.id().text, "name": r.id().name(), "type": r.id().full_type()});
                for field in ["location", "tags", "sku"] {
                    if !r.body()[field].is_null() {
                        item[field] = r.body()[field].clone();
                    }
                }
                if call.query("$expand").is_some_and(|e| e.contains("provisioningState")) {
                    item["provisioningState"] = Value::from(r.state.word());
                }
                item
            })
            .collect()
    });
    paging::page(call, world.settings.page_size, items)
}

/// Reads `resourceType eq 'Microsoft.Network/virtualNetworks'`, the one filter that is known here.
fn resource_type_filter(text: &str) -> Result<String, ArmError> {
    let words: Vec<&str> = text.split_whitespace().collect();
    match words.as_slice() {
        [field, eq, value] if field.eq_ignore_ascii_case("resourceType") && eq.eq_ignore_ascii_case("eq") => {
            Ok(value.trim_matches('\'').to_owned())
        }
        _ => Err(ArmError::bad(
            "InvalidFilterInQueryString",
            format!(
                "Invalid $filter '{text}' specified in the query string. Known here: resourceType eq '…'."
            ),
        )),
    }
}
