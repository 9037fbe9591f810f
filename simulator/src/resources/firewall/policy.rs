//! Firewall policies: groups of rule collections that firewalls and child policies take over.

use serde_json::{Value, json};

use super::collections;
use crate::{
    arm::{
        errors::ArmError,
        ids::ResourceId,
        store::{Resource, State, Store},
    },
    resources::{Prepared, default_to, referenced},
    world::World,
};

/// Bytes of one group.
const MAX_GROUP: usize = 2 << 20;
/// Groups of one policy.
const MAX_GROUPS: usize = 90;
/// How far parents are followed.
const MAX_DEPTH: usize = 16;

pub(crate) fn prepare(world: &World, id: &ResourceId, mut body: Value) -> Result<Prepared, ArmError> {
    let properties = &mut body["properties"];
    default_to(properties, "sku", json!({}));
    default_to(&mut properties["sku"], "tier", json!("Standard"));
    default_to(properties, "threatIntelMode", json!("Alert"));
    if let Some(map) = properties.as_object_mut() {
        for read_only in ["childPolicies", "firewalls", "ruleCollectionGroups", "size"] {
            map.remove(read_only);
        }
    }
    if let Some(base) = referenced(world, id, &properties["basePolicy"].clone(), true)? {
        if base.id().key == id.key || parents(&world.store, &base.id().key).contains(&id.key) {
            return Err(ArmError::bad(
                "FirewallPolicyBasePolicyInvalid",
                format!("Firewall policy {} cannot be its own parent.", id.text),
            ));
        }
        properties["basePolicy"] = json!({"id": base.id().text});
    }
    let fails = faulted(&world.store, &id.key);
    Ok(Prepared { body, fails, ..Prepared::default() })
}

pub(crate) fn prepare_group(world: &World, id: &ResourceId, mut body: Value) -> Result<Prepared, ArmError> {
    let properties = &mut body["properties"];
    collections::priority(id, "properties", id.name(), properties)?;
    default_to(properties, "ruleCollections", json!([]));
    let found = collections::check_group(id, &mut properties["ruleCollections"])?;
    let size = properties["ruleCollections"].to_string().len();
    if size > MAX_GROUP {
        return Err(ArmError::bad(
            "FirewallPolicyRuleCollectionGroupSizeLimitReached",
            format!("Rule collection group {} would have {size} bytes; {MAX_GROUP} at most.", id.text),
        ));
    }
    let parent = id.parent().map(|p| p.key).unwrap_or_default();
    let siblings = world.store.children(&parent, "ruleCollectionGroups");
    let others = siblings.iter().filter(|group| group.id().key != id.key).count();
    if others >= MAX_GROUPS {
        return Err(ArmError::bad(
            "FirewallPolicyRuleCollectionGroupCountLimitReached",
            format!("A firewall policy cannot have more than {MAX_GROUPS} rule collection groups."),
        ));
    }
    // What holds for a firewall holds for all groups together.
    let mut translated = found.translated.clone();
    let mut rules = found.rules;
    for group in siblings.iter().filter(|group| group.id().key != id.key) {
        for rule in group.properties()["ruleCollections"]
            .as_array()
            .into_iter()
            .flatten()
            .flat_map(|collection| collection["rules"].as_array().into_iter().flatten())
        {
            rules += 1;
            translated.extend(rule["translatedAddress"].as_str().map(str::to_owned));
        }
    }
    let publics: usize = firewalls(&world.store, &parent)
        .iter()
        .map(|firewall| super::public_count(firewall.properties()))
        .max()
        .unwrap_or(0);
    super::limits(id, rules, translated.len() + publics)?;
    let fails = if found.has_v6 {
        Some("FirewallPolicyRuleIPv6NotSupported".to_owned())
    } else {
        faulted(&world.store, &parent)
    };
    Ok(Prepared { body, fails, ..Prepared::default() })
}

/// A policy cannot be pushed to a firewall that has failed: the whole write fails then.
fn faulted(store: &Store, policy: &str) -> Option<String> {
    let failed = firewalls(store, policy).iter().any(|firewall| firewall.state == State::Failed);
    failed.then(|| "FirewallPolicyUpdateFailed".to_owned())
}

/// Keys of a policy and its parents, its own first.
pub(crate) fn parents(store: &Store, policy: &str) -> Vec<String> {
    let mut chain = vec![policy.to_owned()];
    while chain.len() < MAX_DEPTH
        && let Some(found) = chain.last().and_then(|key| store.get(key))
        && let Some(base) = found.properties()["basePolicy"]["id"].as_str()
    {
        chain.push(base.to_lowercase());
    }
    chain
}

/// The firewalls that a policy reaches, through its children too.
fn firewalls(store: &Store, policy: &str) -> Vec<std::sync::Arc<Resource>> {
    let all = store.all().filter(|r| r.id().kind() == "network/azurefirewalls");
    let uses = |r: &&std::sync::Arc<Resource>| {
        r.properties()["firewallPolicy"]["id"]
            .as_str()
            .is_some_and(|own| parents(store, &own.to_lowercase()).iter().any(|key| key == policy))
    };
    all.filter(uses).cloned().collect()
}

/// Adds what clients may only read.
pub(crate) fn add_read_only(store: &Store, id: &ResourceId, body: &mut Value) {
    let users = |kind: &str| -> Vec<Value> {
        let found = store.referrers(&id.key).filter_map(|key| store.get(key));
        found.filter(|r| r.id().kind() == kind).map(|r| json!({"id": r.id().text})).collect()
    };
    body["properties"]["childPolicies"] = json!(users("network/firewallpolicies"));
    body["properties"]["firewalls"] = json!(users("network/azurefirewalls"));
    let groups = store.children(&id.key, "ruleCollectionGroups");
    let groups: Vec<Value> = groups.iter().map(|g| json!({"id": g.id().text})).collect();
    body["properties"]["ruleCollectionGroups"] = json!(groups);
}

/// Adds what clients may only read to a group.
pub(crate) fn add_group_read_only(body: &mut Value) {
    let bytes = u32::try_from(body["properties"]["ruleCollections"].to_string().len()).unwrap_or(u32::MAX);
    body["properties"]["size"] = json!(format!("{:.6} MB", f64::from(bytes) / f64::from(1 << 20)));
}
