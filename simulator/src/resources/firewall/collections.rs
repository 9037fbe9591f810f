//! The rule collections of a classic firewall, and those of a policy's group.

use std::collections::HashSet;

use serde_json::{Value, json};

use super::rules;
use crate::arm::{errors::ArmError, ids::ResourceId, validate};

/// What a list of collections holds.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) rules: usize,
    pub(super) translated: HashSet<String>,
    pub(super) has_v6: bool,
}

impl Found {
    fn add(&mut self, other: Self) {
        self.rules += other.rules;
        self.translated.extend(other.translated);
        self.has_v6 |= other.has_v6;
    }
}

/// Checks one list of a classic firewall and writes it as Azure does.
pub(super) fn check(id: &ResourceId, kind: &str, list: &mut Value) -> Result<Found, ArmError> {
    let mut found = Found::default();
    let (mut names, mut priorities) = (HashSet::new(), HashSet::new());
    for (index, item) in list.as_array_mut().into_iter().flatten().enumerate() {
        let path = format!("properties.{kind}[{index}]");
        let name = own_name(&path, item)?;
        if let Some(map) = item.as_object_mut() {
            for read_only in ["id", "etag", "type"] {
                map.remove(read_only);
            }
        }
        let properties = &mut item["properties"];
        if let Some(map) = properties.as_object_mut() {
            map.remove("provisioningState");
        }
        let priority = priority(id, &path, &name, properties)?;
        if !names.insert(name.to_lowercase()) {
            return Err(twice(id, &name, "name"));
        }
        if !priorities.insert(priority) {
            return Err(twice(id, &name, "priority"));
        }
        let action = action(
            &path,
            properties,
            if kind == "natRuleCollections" { &["Dnat"] } else { &["Allow", "Deny"] },
        )?;
        properties["action"]["type"] = json!(action);
        let rule_kind = match kind {
            "natRuleCollections" => rules::Kind::Nat,
            "networkRuleCollections" => rules::Kind::Network,
            _ => rules::Kind::Application,
        };
        found.add(rules::check(&path, "protocols", rule_kind, &mut properties["rules"])?);
    }
    Ok(found)
}

/// Checks the collections of a policy's group and writes them as Azure does.
pub(super) fn check_group(id: &ResourceId, list: &mut Value) -> Result<Found, ArmError> {
    let mut found = Found::default();
    let (mut names, mut priorities) = (HashSet::new(), HashSet::new());
    for (index, item) in list.as_array_mut().into_iter().flatten().enumerate() {
        let path = format!("properties.ruleCollections[{index}]");
        let name = own_name(&path, item)?;
        let kinds = ["FirewallPolicyNatRuleCollection", "FirewallPolicyFilterRuleCollection"];
        let given = item["ruleCollectionType"].as_str().unwrap_or("").to_owned();
        let Some(kind) = kinds.into_iter().find(|k| k.eq_ignore_ascii_case(&given)) else {
            return Err(validate::missing(&path, "ruleCollectionType"));
        };
        item["ruleCollectionType"] = json!(kind);
        let priority = priority(id, &path, &name, item)?;
        if !names.insert(name.to_lowercase()) {
            return Err(twice(id, &name, "name"));
        }
        if !priorities.insert(priority) {
            return Err(twice(id, &name, "priority"));
        }
        let nat = kind == kinds[0];
        let action = action(&path, item, if nat { &["DNAT"] } else { &["Allow", "Deny"] })?;
        item["action"]["type"] = json!(action);
        for (index, rule) in item["rules"].as_array_mut().into_iter().flatten().enumerate() {
            let path = format!("{path}.rules[{index}]");
            let kind = match (rule["ruleType"].as_str().unwrap_or(""), nat) {
                ("NatRule", true) => rules::Kind::Nat,
                ("NetworkRule", false) => rules::Kind::Network,
                ("ApplicationRule", false) => rules::Kind::Application,
                _ => {
                    return Err(validate::unreadable(
                        &format!("{path}.ruleType"),
                        &format!("A rule of this type is not expected in a {given}."),
                    ));
                }
            };
            let mut one = json!([rule.take()]);
            found.add(rules::check(&path, "ipProtocols", kind, &mut one)?);
            *rule = one[0].take();
        }
    }
    Ok(found)
}

fn own_name(path: &str, item: &Value) -> Result<String, ArmError> {
    let name = item["name"].as_str().ok_or_else(|| validate::missing(path, "name"))?;
    validate::network_name(name)?;
    Ok(name.to_owned())
}

pub(super) fn priority(id: &ResourceId, path: &str, name: &str, of: &Value) -> Result<i64, ArmError> {
    let priority = of["priority"].as_i64().ok_or_else(|| validate::missing(path, "priority"))?;
    if (100..=65_000).contains(&priority) {
        return Ok(priority);
    }
    Err(ArmError::bad(
        "AzureFirewallInvalidRuleCollectionPriority",
        format!("{name} of {} has priority {priority}. The allowed range is 100-65000.", id.text),
    ))
}

fn action(path: &str, of: &Value, known: &[&'static str]) -> Result<&'static str, ArmError> {
    let given = of["action"]["type"].as_str().unwrap_or("");
    known.iter().copied().find(|k| k.eq_ignore_ascii_case(given)).ok_or_else(|| {
        validate::unreadable(
            &format!("{path}.action.type"),
            &format!("'{given}' is none of {}.", known.join(", ")),
        )
    })
}

fn twice(id: &ResourceId, name: &str, what: &str) -> ArmError {
    ArmError::bad(
        "AzureFirewallRuleCollectionConflict",
        format!("Rule collection {name} of {} conflicts with another: both have the same {what}.", id.text),
    )
}
