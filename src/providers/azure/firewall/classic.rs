//! Azure Firewalls with rules of their own. They are no resources: each change writes the whole firewall.
//!
//! It is read, changed and written without a pause, and only if nobody has written it meanwhile (`If-Match`); everything
//! else in it goes back as it was read. Whether Azure heeds `If-Match` here is not documented, so it is read once more
//! afterwards, and what of others differs is told.

use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::collections::{self, Lists, Ours};
use super::rules::{self, Dialect};
use super::{ATTEMPTS, Replacement, is_stale, operation};
use crate::api::Reason;
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::plan::model::{FirewallId, Observed, ResourceLock, Translating, Unsupported};
use crate::providers::azure::answer::error;
use crate::providers::azure::api_version;
use crate::providers::azure::client::Arm;
use crate::providers::azure::limiter::Urgency;
use crate::providers::azure::locks::{Locks, strictest};
use crate::providers::azure::nsg::gone_is_removed;
use crate::providers::azure::wire::{self, garbled, items, provisioning, text};
use crate::providers::{Change, CloudError, CloudErrorKind, Written};

const NAT: &str = "natRuleCollections";
const NETWORK: &str = "networkRuleCollections";
const APPLICATION: &str = "applicationRuleCollections";

/// Classic firewalls.
pub(super) struct Classic {
    arm: Arc<Arm>,
    clock: Clock,
    locks: Arc<Locks>,
}

impl Classic {
    pub(super) fn new(arm: Arc<Arm>, clock: Clock, locks: Arc<Locks>) -> Self {
        Self { arm, clock, locks }
    }

    pub(super) async fn all(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
        let at = self.clock.now();
        let operation = format!("list Azure Firewalls of {scope}");
        let path = format!("{scope}/providers/Microsoft.Network/azureFirewalls");
        let listed = self.arm.list_scope(&operation, &path, api_version::NETWORK, Urgency::Lock).await?;
        let has_ours = |body: &&Value| lists_of(body).any(|it| collections::of_ours(it).is_some());
        let found: Vec<&Value> = listed.iter().filter(has_ours).collect();
        let locks = if found.is_empty() { None } else { self.locks.below(scope).await };
        let mut all = Vec::new();
        for body in found {
            let id = wire::id(&operation, body)?;
            let lock = strictest(locks.as_deref().unwrap_or_default(), &id);
            all.push(observed(FirewallId(id), body, at, lock));
        }
        Ok(all)
    }

    pub(super) async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        let at = self.clock.now();
        let operation = format!("read {}", firewall.0.name());
        let (body, lock) = tokio::join!(self.get(&operation, firewall), self.locks.of(firewall));
        Ok(observed(firewall.clone(), &body?, at, lock))
    }

    async fn get(&self, operation: &str, firewall: &FirewallId) -> Result<Value, CloudError> {
        let body = self.arm.get(operation, firewall.as_str(), api_version::NETWORK, Urgency::Lock).await?;
        if wire::id(operation, &body)? != firewall.0 {
            return Err(garbled(operation, "it is about another resource"));
        }
        Ok(body)
    }

    pub(super) async fn write(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let removes_only = changes.iter().all(|change| change.is_removal());
        let written = self.write_whole(firewall, changes, patience).await;
        if removes_only { gone_is_removed(written) } else { written }
    }

    async fn write_whole(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let operation = operation(firewall, changes);
        let begun = Instant::now();
        let closes = changes.iter().any(|change| change.is_removal());
        let mut attempt = 1;
        loop {
            let before = self.get(&operation, firewall).await?;
            if let Some(unfit) = unfit(&before).filter(|_| !closes) {
                return Err(error(&operation, CloudErrorKind::Invalid, &unfit.message));
            }
            let body =
                changed(&before, changes).map_err(|why| error(&operation, CloudErrorKind::Invalid, &why))?;
            let replacement = Replacement {
                operation: &operation,
                path: firewall.as_str(),
                before: Some(&before),
                body,
                closes,
                begun,
                until: begun + patience,
            };
            match super::replace(&self.arm, &self.locks, firewall, replacement).await {
                Ok(written) => {
                    return Ok(self.compared(&operation, firewall, &before, changes, written).await);
                }
                // Somebody else has written it since it was read: nothing of ours was.
                Err(failed) if is_stale(&failed) && attempt < ATTEMPTS => attempt += 1,
                Err(failed) => return Err(failed),
            }
        }
    }

    /// Says what of others is not as it was read before the write.
    async fn compared(
        &self,
        operation: &str,
        firewall: &FirewallId,
        before: &Value,
        changes: &[Change],
        written: Written,
    ) -> Written {
        match self.get(operation, firewall).await {
            Ok(after) => Written { differs: differs(before, &after, changes), ..written },
            Err(error) => {
                tracing::warn!(%firewall, %error, "could not compare what others have after the write");
                written
            }
        }
    }
}

fn lists_of(body: &Value) -> impl Iterator<Item = &Value> {
    let list = |name: &str| items(body, &format!("/properties/{name}"));
    list(NAT).iter().chain(list(NETWORK))
}

/// Why nothing can be opened on a firewall.
fn unfit(body: &Value) -> Option<Unsupported> {
    let name = text(body, "/name").unwrap_or_default();
    let no = |message: String| Some(Unsupported { reason: Reason::FirewallUnfit, message });
    if let Some(policy) = text(body, "/properties/firewallPolicy/id") {
        return no(format!("{name} takes its rules from the policy {policy} by now"));
    }
    if text(body, "/properties/sku/name").is_some_and(|sku| sku.eq_ignore_ascii_case("AZFW_Hub")) {
        return no(format!("{name} stands in a Virtual WAN hub: secured hubs are not supported"));
    }
    None
}

pub(super) fn observed(
    firewall: FirewallId,
    body: &Value,
    at: jiff::Timestamp,
    lock: ResourceLock,
) -> Observed {
    let provisioning = provisioning(body);
    let mut standing = Translating { unfit: unfit(body), ..Translating::default() };
    for list in [NAT, NETWORK] {
        let list: Vec<&Value> = items(body, &format!("/properties/{list}")).iter().collect();
        collections::read(&mut standing, &list, Dialect::Classic, (Ours::Any, None, None), provisioning);
    }
    Observed {
        firewall,
        at,
        provisioning,
        rules: rules::assemble(&standing),
        outbound_rules: 0,
        outbound_addresses: 0,
        lock,
        cuts_sessions: None,
        translating: Some(standing),
    }
}

/// The firewall with changes made to rules of ours.
pub(super) fn changed(before: &Value, changes: &[Change]) -> Result<Value, String> {
    let mut body = before.clone();
    let properties = body
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .ok_or("the firewall that was read has no properties")?;
    let mut take = |name: &str| match properties.remove(name) {
        Some(Value::Array(list)) => Ok(list),
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(_) => Err(format!("{name} of the firewall that was read is no list")),
    };
    let (mut nat, mut network) = (take(NAT)?, take(NETWORK)?);
    Lists { dialect: Dialect::Classic, nat: &mut nat, network: Some(&mut network) }.apply(changes)?;
    properties.insert(NAT.to_owned(), Value::Array(nat));
    properties.insert(NETWORK.to_owned(), Value::Array(network));
    Ok(body)
}

/// What of others is not as it was.
pub(super) fn differs(before: &Value, after: &Value, changes: &[Change]) -> Vec<String> {
    let mut found = Vec::new();
    for list in [APPLICATION, NAT, NETWORK] {
        let of = |body: &Value| {
            collections::of_others(items(body, &format!("/properties/{list}")), Dialect::Classic, changes)
        };
        let (was, is) = (of(before), of(after));
        for name in was.keys().filter(|name| was.get(*name) != is.get(*name)) {
            let how = if is.contains_key(name) { "is not as it was" } else { "is gone" };
            found.push(format!("collection {name} of {list} {how}"));
        }
        found.extend(
            is.keys()
                .filter(|name| !was.contains_key(*name))
                .map(|name| format!("collection {name} of {list} is new")),
        );
    }
    let rest = |body: &Value| {
        let mut properties = body.get("properties").cloned().unwrap_or_default();
        if let Some(map) = properties.as_object_mut() {
            for name in [
                APPLICATION,
                NAT,
                NETWORK,
                "provisioningState",
                "ipConfigurations",
                "managementIpConfiguration",
            ] {
                map.remove(name);
            }
        }
        (properties, body.get("tags").cloned())
    };
    let ((was, was_tags), (is, is_tags)) = (rest(before), rest(after));
    let names = was.as_object().into_iter().chain(is.as_object()).flat_map(|map| map.keys());
    let mut names: Vec<&String> = names.filter(|name| was.get(*name) != is.get(*name)).collect();
    names.sort();
    names.dedup();
    found.extend(names.into_iter().map(|name| format!("properties.{name} is not as it was")));
    if was_tags != is_tags {
        found.push("tags are not as they were".to_owned());
    }
    found
}
