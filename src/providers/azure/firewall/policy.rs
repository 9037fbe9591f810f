//! Firewall policies. Our rules stand in a group of their own, so that no write carries a rule of anybody else.
//!
//! Groups of parent policies are judged before all groups of the policy, whatever their numbers say: they are read, and
//! what they do is told. A policy has one write at a time, for all firewalls that take their rules from it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::time::Instant;

use super::collections::{self, Lists, Ours};
use super::rules::{self, Dialect};
use super::{ATTEMPTS, Replacement, is_stale, operation};
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::plan::model::{FirewallId, Observed, Provisioning, ResourceLock, Translating};
use crate::providers::azure::answer::error;
use crate::providers::azure::api_version;
use crate::providers::azure::client::Arm;
use crate::providers::azure::limiter::Urgency;
use crate::providers::azure::locks::{Locks, strictest};
use crate::providers::azure::nsg::gone_is_removed;
use crate::providers::azure::wire::{self, garbled, items, provisioning, reference, text};
use crate::providers::{Change, CloudError, CloudErrorKind, Written};

/// The most parents that are followed: a parent has none of its own today.
const MAX_PARENTS: usize = 4;

/// Firewall policies.
pub(super) struct Policies {
    arm: Arc<Arm>,
    clock: Clock,
    locks: Arc<Locks>,
}

/// A policy and its groups.
struct Read {
    policy: Value,
    groups: Vec<Value>,
}

impl Policies {
    pub(super) fn new(arm: Arc<Arm>, clock: Clock, locks: Arc<Locks>) -> Self {
        Self { arm, clock, locks }
    }

    pub(super) async fn all(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
        let operation = format!("list firewall policies of {scope}");
        let path = format!("{scope}/providers/Microsoft.Network/firewallPolicies");
        let listed = self.arm.list_scope(&operation, &path, api_version::NETWORK, Urgency::Lock).await?;
        let has_ours = |body: &&Value| {
            let groups = items(body, "/properties/ruleCollectionGroups").iter();
            groups.filter_map(|group| text(group, "/id")).any(|id| {
                let name = id.rsplit('/').next().unwrap_or_default();
                mark_of_group(name).is_some()
            })
        };
        let found: Vec<&Value> = listed.iter().filter(has_ours).collect();
        let locks = if found.is_empty() { None } else { self.locks.below(scope).await };
        let mut all = Vec::new();
        for body in found {
            let id = FirewallId(wire::id(&operation, body)?);
            let lock = strictest(locks.as_deref().unwrap_or_default(), &id.0);
            match self.read(&id, lock).await {
                Ok(read) => all.push(read),
                // One that cannot be read keeps nothing else from being swept. Its gate says what is wrong with it.
                Err(error) => tracing::warn!(firewall = %id, %error, "not swept"),
            }
        }
        Ok(all)
    }

    pub(super) async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        let lock = self.locks.of(firewall).await;
        self.read(firewall, lock).await
    }

    async fn read(&self, firewall: &FirewallId, lock: ResourceLock) -> Result<Observed, CloudError> {
        let at = self.clock.now();
        let operation = format!("read {}", firewall.0.name());
        let own = self.with_groups(&operation, &firewall.0).await?;
        let mut standing = Translating::default();
        // From the farthest parent to the nearest: in this order they are judged.
        let mut parents = Vec::new();
        let mut next = reference(&operation, &own.policy, "/properties/basePolicy/id")?;
        let mut seen = BTreeSet::from([firewall.0.clone()]);
        while let Some(id) = next.take() {
            if parents.len() >= MAX_PARENTS || !seen.insert(id.clone()) {
                standing.unread = Some(format!("the parents of {} do not end at {id}", firewall.0.name()));
                break;
            }
            match self.with_groups(&operation, &id).await {
                Ok(parent) => {
                    next = reference(&operation, &parent.policy, "/properties/basePolicy/id")?;
                    parents.push(parent);
                }
                // A parent that is gone is not the policy that is: it is read again as it changes.
                Err(failed)
                    if matches!(failed.kind, CloudErrorKind::NotPermitted | CloudErrorKind::NotFound) =>
                {
                    standing.unread = Some(format!(
                        "the parent policy {id} cannot be read, and its rules go before all others: {failed}"
                    ));
                }
                Err(failed) => return Err(failed),
            }
        }
        let mut state = worst(&own);
        for firewall in items(&own.policy, "/properties/firewalls") {
            if let Some(id) = reference(&operation, firewall, "/id")? {
                state = state.max(self.state_of(&id).await);
            }
        }
        for parent in parents.iter().rev() {
            for group in by_priority(&parent.groups) {
                let list: Vec<&Value> = items(group, "/properties/ruleCollections").iter().collect();
                let number = collections::priority(properties(group));
                collections::read(
                    &mut standing,
                    &list,
                    Dialect::Policy,
                    (Ours::None, Some(true), number),
                    state,
                );
            }
        }
        let place = place_of_ours(&own.groups);
        for group in by_priority(&own.groups) {
            let list: Vec<&Value> = items(group, "/properties/ruleCollections").iter().collect();
            let number = collections::priority(properties(group)).unwrap_or(u16::MAX);
            let mark = text(group, "/name").and_then(mark_of_group);
            let how = match &mark {
                Some(mark) => (Ours::Of(mark), None, Some(number)),
                None => (Ours::None, Some(number < place), Some(number)),
            };
            collections::read(&mut standing, &list, Dialect::Policy, how, state);
        }
        Ok(Observed {
            firewall: firewall.clone(),
            at,
            provisioning: state,
            rules: rules::assemble(&standing),
            outbound_rules: 0,
            outbound_addresses: 0,
            lock,
            cuts_sessions: None,
            translating: Some(standing),
        })
    }

    async fn with_groups(&self, operation: &str, id: &ArmId) -> Result<Read, CloudError> {
        let path = format!("{id}/ruleCollectionGroups");
        let (policy, groups) = tokio::join!(
            self.arm.get(operation, id.as_str(), api_version::NETWORK, Urgency::Lock),
            self.arm.list(operation, &path, api_version::NETWORK, &[], Urgency::Lock),
        );
        let policy = policy?;
        if wire::id(operation, &policy)? != *id {
            return Err(garbled(operation, "it is about another resource"));
        }
        Ok(Read { policy, groups: groups? })
    }

    /// How far the cloud is with a firewall that takes its rules from the policy. One that cannot be read, or is gone, says
    /// nothing.
    async fn state_of(&self, id: &ArmId) -> Provisioning {
        let operation = format!("read {}", id.name());
        match self.arm.get(&operation, id.as_str(), api_version::NETWORK, Urgency::Lock).await {
            Ok(body) => provisioning(&body),
            // Of what may not be seen, or is gone, nothing can be waited for.
            Err(error) if matches!(error.kind, CloudErrorKind::NotPermitted | CloudErrorKind::NotFound) => {
                tracing::debug!(%error, "how far a firewall is with its policy is not known");
                Provisioning::Succeeded
            }
            Err(error) => {
                tracing::debug!(%error, "how far a firewall is with its policy could not be read");
                Provisioning::Updating
            }
        }
    }

    pub(super) async fn write(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let until = Instant::now() + patience;
        let mut by_group: BTreeMap<String, Vec<Change>> = BTreeMap::new();
        for change in changes {
            let operation = operation(firewall, changes);
            let mark = collections::mark(change.rule()).ok_or_else(|| {
                let message = format!("{:?} is not the name of a rule of ours", change.rule());
                error(&operation, CloudErrorKind::Invalid, &message)
            })?;
            by_group.entry(mark).or_default().push(change.clone());
        }
        // One, but where rules of a previous cluster id are left.
        let mut written = Written::default();
        for (mark, changes) in by_group {
            let removes_only = changes.iter().all(|change| change.is_removal());
            let ended = self.write_group(firewall, &mark, &changes, until).await;
            written = if removes_only { gone_is_removed(ended)? } else { ended? };
        }
        Ok(written)
    }

    async fn write_group(
        &self,
        firewall: &FirewallId,
        mark: &str,
        changes: &[Change],
        until: Instant,
    ) -> Result<Written, CloudError> {
        let operation = operation(firewall, changes);
        let path = format!("{firewall}/ruleCollectionGroups/portcullis-{mark}");
        let begun = Instant::now();
        let closes = changes.iter().any(|change| change.is_removal());
        let mut attempt = 1;
        loop {
            let before = match self.arm.get(&operation, &path, api_version::NETWORK, Urgency::Lock).await {
                Ok(group) => Some(group),
                Err(failed) if failed.kind == CloudErrorKind::NotFound => {
                    if changes.iter().all(|change| change.is_removal()) {
                        return Ok(Written { request_id: failed.request_id, ..Written::default() });
                    }
                    None
                }
                Err(failed) => return Err(failed),
            };
            let body = match &before {
                Some(group) => group.clone(),
                None => self.new_group(&operation, firewall).await?,
            };
            let body =
                changed(body, changes).map_err(|why| error(&operation, CloudErrorKind::Invalid, &why))?;
            let replacement = Replacement {
                operation: &operation,
                path: &path,
                before: before.as_ref(),
                body,
                closes,
                begun,
                until,
            };
            match super::replace(&self.arm, &self.locks, firewall, replacement).await {
                Err(failed) if is_stale(&failed) && attempt < ATTEMPTS => attempt += 1,
                ended => return ended,
            }
        }
    }

    /// A group as it is before its first rule: at the lowest number that none of the policy's has.
    async fn new_group(&self, operation: &str, firewall: &FirewallId) -> Result<Value, CloudError> {
        let groups = self.with_groups(operation, &firewall.0).await?.groups;
        let taken = groups.iter().filter_map(|group| collections::priority(properties(group))).collect();
        let free = collections::lowest_free(&taken).ok_or_else(|| {
            error(operation, CloudErrorKind::Full, "no priority number is free for a group of the policy")
        })?;
        Ok(json!({"properties": {"priority": free, "ruleCollections": []}}))
    }
}

fn properties(group: &Value) -> &Value {
    group.get("properties").unwrap_or(&Value::Null)
}

/// The mark in the name of a group of ours.
fn mark_of_group(name: &str) -> Option<String> {
    let mark = collections::mark(name)?;
    name.eq_ignore_ascii_case(&format!("portcullis-{mark}")).then_some(mark)
}

fn by_priority(groups: &[Value]) -> Vec<&Value> {
    let mut groups: Vec<&Value> = groups.iter().collect();
    groups.sort_by_key(|group| collections::priority(properties(group)).unwrap_or(u16::MAX));
    groups
}

/// Where our group stands, or would be made.
fn place_of_ours(groups: &[Value]) -> u16 {
    let ours = groups.iter().find(|group| text(group, "/name").and_then(mark_of_group).is_some());
    let taken: BTreeSet<u16> =
        groups.iter().filter_map(|group| collections::priority(properties(group))).collect();
    let number = ours
        .map_or_else(|| collections::lowest_free(&taken), |group| collections::priority(properties(group)));
    number.unwrap_or(u16::MAX)
}

/// How far the cloud is with a policy and all its groups.
fn worst(read: &Read) -> Provisioning {
    let groups = read.groups.iter().map(provisioning);
    groups.fold(provisioning(&read.policy), Ord::max)
}

fn changed(mut group: Value, changes: &[Change]) -> Result<Value, String> {
    let properties = group
        .get_mut("properties")
        .and_then(Value::as_object_mut)
        .ok_or("the group that was read has no properties")?;
    let mut list = match properties.remove("ruleCollections") {
        Some(Value::Array(list)) => list,
        None | Some(Value::Null) => Vec::new(),
        Some(_) => return Err("ruleCollections of the group that was read is no list".to_owned()),
    };
    Lists { dialect: Dialect::Policy, nat: &mut list, network: None }.apply(changes)?;
    properties.insert("ruleCollections".to_owned(), Value::Array(list));
    Ok(group)
}
