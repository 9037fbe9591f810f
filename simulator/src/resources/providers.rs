//! Resource providers: what they offer, and whether a subscription has registered them.

use serde_json::{Value, json};

use crate::{
    arm::{errors::ArmError, ids::ResourceId},
    world::World,
};

const VERSIONS: [&str; 10] = [
    "2025-05-01",
    "2025-01-01",
    "2024-07-01",
    "2024-05-01",
    "2024-03-01",
    "2024-01-01",
    "2023-09-01",
    "2023-04-02",
    "2022-09-01",
    "2021-04-01",
];

/// Namespaces and the types that are more than plain storage here.
const PROVIDERS: &[(&str, &[&str])] = &[
    ("Microsoft.Authorization", &["locks", "roleAssignments", "roleDefinitions"]),
    ("Microsoft.ClassicCompute", &["virtualMachines"]),
    ("Microsoft.Compute", &["virtualMachines", "disks", "availabilitySets", "locations/operations"]),
    (
        "Microsoft.Network",
        &[
            "applicationSecurityGroups",
            "azureFirewalls",
            "firewallPolicies",
            "firewallPolicies/ruleCollectionGroups",
            "ipGroups",
            "networkInterfaces",
            "networkSecurityGroups",
            "networkSecurityGroups/securityRules",
            "publicIPAddresses",
            "routeTables",
            "routeTables/routes",
            "virtualNetworks",
            "virtualNetworks/subnets",
            "virtualNetworks/virtualNetworkPeerings",
            "locations/operations",
            "locations/operationResults",
        ],
    ),
    ("Microsoft.ResourceGraph", &["resources"]),
    ("Microsoft.Resources", &["resourceGroups", "subscriptions", "tenants"]),
    ("Microsoft.Security", &["locations/jitNetworkAccessPolicies"]),
    ("Microsoft.Storage", &["storageAccounts"]),
];

const LOCATIONS: [(&str, &str); 6] = [
    ("eastus", "East US"),
    ("eastus2", "East US 2"),
    ("northeurope", "North Europe"),
    ("uksouth", "UK South"),
    ("westeurope", "West Europe"),
    ("westus2", "West US 2"),
];

pub(crate) fn locations(subscription: &str) -> Value {
    LOCATIONS
        .iter()
        .map(|(name, display)| {
            json!({"id": format!("/subscriptions/{subscription}/locations/{name}"), "name": name,
                   "type": "Region", "displayName": display, "regionalDisplayName": display,
                   "metadata": {"regionType": "Physical", "regionCategory": "Recommended"}})
        })
        .collect()
}

fn show(of: Option<(&World, &str)>, namespace: &str, types: &[&str]) -> Value {
    let registered = of.is_none_or(|(world, subscription)| is_registered(world, subscription, namespace));
    let places: Vec<&str> = LOCATIONS.iter().map(|(_, display)| *display).collect();
    let types: Vec<Value> = types
        .iter()
        .map(|t| json!({"resourceType": t, "locations": places, "apiVersions": VERSIONS, "capabilities": "None"}))
        .collect();
    let id = match of {
        Some((_, subscription)) => format!("/subscriptions/{subscription}/providers/{namespace}"),
        None => format!("/providers/{namespace}"),
    };
    json!({"id": id, "namespace": namespace, "resourceTypes": types, "registrationPolicy": "RegistrationRequired",
           "registrationState": if registered { "Registered" } else { "NotRegistered" }})
}

pub(crate) fn all(of: Option<(&World, &str)>) -> Value {
    PROVIDERS.iter().map(|(namespace, types)| show(of, namespace, types)).collect()
}

pub(crate) fn one(of: Option<(&World, &str)>, namespace: &str) -> Result<Value, ArmError> {
    let (namespace, types) = find(namespace)?;
    Ok(show(of, namespace, types))
}

fn find(namespace: &str) -> Result<(&'static str, &'static [&'static str]), ArmError> {
    PROVIDERS.iter().find(|(n, _)| n.eq_ignore_ascii_case(namespace)).copied().ok_or_else(|| {
        ArmError::not_found(
            "InvalidResourceNamespace",
            format!("The resource namespace '{namespace}' is invalid."),
        )
    })
}

pub(crate) fn is_registered(world: &World, subscription: &str, namespace: &str) -> bool {
    !world.unregistered.contains(&(subscription.to_lowercase(), namespace.to_lowercase()))
}

pub(crate) fn register(
    world: &mut World,
    subscription: &str,
    namespace: &str,
    on: bool,
) -> Result<Value, ArmError> {
    find(namespace)?;
    let key = (subscription.to_lowercase(), namespace.to_lowercase());
    if on {
        world.unregistered.remove(&key);
    } else {
        world.unregistered.insert(key);
    }
    one(Some((&*world, subscription)), namespace)
}

/// Refuses writes of a namespace that the subscription has not registered, or that nobody knows.
pub(crate) fn registered(world: &World, id: &ResourceId) -> Result<(), ArmError> {
    if id.is_group() {
        return Ok(());
    }
    find(&id.namespace)?;
    if is_registered(world, &id.subscription, &id.namespace) {
        return Ok(());
    }
    Err(ArmError::conflict(
        "MissingSubscriptionRegistration",
        format!(
            "The subscription is not registered to use namespace '{}'. See https://aka.ms/rps-not-found for how to register subscriptions.",
            id.namespace
        ),
    ))
}
