//! Network security groups as firewalls.
//!
//! Rules are written one by one, as children: a write of the whole group would delete what it does not name.
//! A read is one request, for the group with its rules in it, and one a minute for resource locks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::answer::error;
use super::api_version;
use super::client::{Arm, WriteRequest};
use super::limiter::Urgency;
use super::wire;
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::plan::desired::OPEN_ANSWER;
use crate::plan::model::{Access, FirewallId, Observed, ResourceLock, Rule};
use crate::providers::{CloudError, CloudErrorKind, Firewall, FirewallLimits, Written};

mod rules;

pub(super) use rules::{port_range, protocol};

/// How long a resource lock that was read is believed. A write that it forbids says so.
const LOCKS_LAST: Duration = Duration::from_secs(60);

/// How long reading resource locks may hold up the reading of rules.
const LOCKS_TIME: Duration = Duration::from_secs(5);

/// What a network security group can hold.
const LIMITS: FirewallLimits = FirewallLimits { rules: 1000, addresses: 4000, name: 80, description: 140 };

/// Network security groups.
pub(super) struct Nsgs {
    arm: Arc<Arm>,
    clock: Clock,
    locks: Mutex<HashMap<FirewallId, (Instant, ResourceLock)>>,
}

impl Nsgs {
    pub(super) fn new(arm: Arc<Arm>, clock: Clock) -> Self {
        Self { arm, clock, locks: Mutex::new(HashMap::new()) }
    }

    /// Every group below `scope`.
    pub(super) async fn all(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
        let at = self.clock.now();
        let operation = format!("list network security groups of {scope}");
        let path = format!("{scope}/providers/Microsoft.Network/networkSecurityGroups");
        let (groups, locks) = tokio::join!(
            self.arm.list_scope(&operation, &path, api_version::NETWORK, Urgency::Lock),
            self.read_locks(scope, &[]),
        );
        let mut all = Vec::new();
        for group in groups? {
            let id = wire::id(&operation, &group)?;
            let lock = strictest(locks.as_deref().unwrap_or_default(), &id);
            all.push(rules::observed(&operation, FirewallId(id), &group, at, lock)?);
        }
        all.sort_by(|a, b| a.firewall.cmp(&b.firewall));
        Ok(all)
    }

    async fn lock(&self, firewall: &FirewallId) -> ResourceLock {
        let known = self.known_locks().get(firewall).copied();
        if let Some((read, lock)) = known
            && read.elapsed() < LOCKS_LAST
        {
            return lock;
        }
        let query = [("$filter", "atScope()")];
        let lock = match self.read_locks(&firewall.0, &query).await {
            Some(locks) => strictest(&locks, &firewall.0),
            // Where locks cannot be read, what was last known holds, and a write that one forbids will say so.
            None => known.map(|(_, lock)| lock).unwrap_or_default(),
        };
        self.known_locks().insert(firewall.clone(), (Instant::now(), lock));
        lock
    }

    fn known_locks(&self) -> std::sync::MutexGuard<'_, HashMap<FirewallId, (Instant, ResourceLock)>> {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read_locks(&self, scope: &ArmId, query: &[(&str, &str)]) -> Option<Vec<Value>> {
        let operation = format!("read locks of {}", scope.name());
        let path = format!("{scope}/providers/Microsoft.Authorization/locks");
        let read = self.arm.list(&operation, &path, api_version::LOCKS, query, Urgency::Lock);
        match tokio::time::timeout(LOCKS_TIME, read).await {
            Ok(Ok(locks)) => Some(locks),
            Ok(Err(error)) => {
                tracing::debug!(%error, "resource locks are not known");
                None
            }
            Err(_) => {
                tracing::debug!(operation, "resource locks are not known in time");
                None
            }
        }
    }

    async fn write(
        &self,
        operation: &str,
        firewall: &FirewallId,
        name: &str,
        change: Change,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        // The name becomes part of an address.
        if !is_name(name) {
            let message = format!("{name:?} is not a name of a rule");
            return Err(error(operation, CloudErrorKind::Invalid, &message));
        }
        let (method, body, urgency, answer) = match change {
            Change::Put(body, Access::Deny) => (Method::PUT, Some(body), Urgency::Lock, patience),
            // What was answered in time may take longer to end.
            Change::Put(body, Access::Allow) => {
                (Method::PUT, Some(body), Urgency::Open, patience.min(OPEN_ANSWER))
            }
            Change::Delete => (Method::DELETE, None, Urgency::Close, patience),
        };
        let path = format!("{firewall}/securityRules/{name}");
        let request = WriteRequest {
            operation,
            method,
            path: &path,
            api_version: api_version::NETWORK,
            body,
            urgency,
            answer,
            patience,
        };
        let ended = self.arm.write(request).await;
        if ended.as_ref().is_err_and(|error| error.kind == CloudErrorKind::ScopeLocked) {
            // There is a lock that was not known: the next read asks anew.
            self.known_locks().remove(firewall);
        }
        ended
    }
}

enum Change {
    Put(Value, Access),
    Delete,
}

/// What Azure lets a rule be called.
fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.len() <= LIMITS.name
        && name.starts_with(word)
        && name.ends_with(word)
        && name.chars().all(|c| word(c) || c == '.' || c == '-')
}

/// What the locks that hold for a resource forbid together.
fn strictest(locks: &[Value], id: &ArmId) -> ResourceLock {
    let holds = |lock: &&Value| {
        let lock_id = wire::text(lock, "/id").unwrap_or_default().to_ascii_lowercase();
        lock_id
            .rfind("/providers/microsoft.authorization/locks/")
            .and_then(|end| id.key().strip_prefix(&lock_id[..end]))
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut strictest = ResourceLock::None;
    for lock in locks.iter().filter(holds) {
        let level = wire::text(lock, "/properties/level").unwrap_or_default().to_ascii_lowercase();
        match (level.as_str(), strictest) {
            ("readonly", _) => strictest = ResourceLock::ReadOnly,
            ("cannotdelete", ResourceLock::None) => strictest = ResourceLock::CannotDelete,
            _ => {}
        }
    }
    strictest
}

#[async_trait]
impl Firewall for Nsgs {
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        let at = self.clock.now();
        let operation = format!("read {}", firewall.0.name());
        let (group, lock) = tokio::join!(
            self.arm.get(&operation, firewall.as_str(), api_version::NETWORK, Urgency::Lock),
            self.lock(firewall),
        );
        rules::observed(&operation, firewall.clone(), &group?, at, lock)
    }

    async fn put(
        &self,
        firewall: &FirewallId,
        rule: &Rule,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let operation = format!("write rule {} of {}", rule.name, firewall.0.name());
        let body = rules::encode(rule).map_err(|why| error(&operation, CloudErrorKind::Invalid, &why))?;
        self.write(&operation, firewall, &rule.name, Change::Put(body, rule.access), patience).await
    }

    async fn delete(
        &self,
        firewall: &FirewallId,
        rule: &str,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let operation = format!("remove rule {rule} of {}", firewall.0.name());
        match self.write(&operation, firewall, rule, Change::Delete, patience).await {
            // Gone with its group. A subscription that is not found may as well be one that we must not see.
            Err(error)
                if error.kind == CloudErrorKind::NotFound
                    && error.code.as_deref() != Some("SubscriptionNotFound") =>
            {
                Ok(Written { request_id: error.request_id })
            }
            ended => ended,
        }
    }

    fn limits(&self) -> FirewallLimits {
        LIMITS
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_strictest_lock_at_or_above_counts_and_others_do_not() {
        let group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/Web";
        let id = format!("{group}/providers/Microsoft.Network/networkSecurityGroups/nsg");
        let id = ArmId::parse(&id).unwrap();
        let lock = |scope: &str, level: &str| json!({"id": format!("{scope}/providers/Microsoft.Authorization/locks/l"), "properties": {"level": level}});
        let subscription = "/SUBSCRIPTIONS/11111111-2222-3333-4444-555555555555";
        for (locks, wanted) in [
            (vec![], ResourceLock::None),
            (vec![lock(group, "CanNotDelete")], ResourceLock::CannotDelete),
            (vec![lock(group, "ReadOnly"), lock(id.as_str(), "CanNotDelete")], ResourceLock::ReadOnly),
            (vec![lock(subscription, "CanNotDelete")], ResourceLock::CannotDelete),
            (vec![lock(&format!("{group}-2"), "ReadOnly")], ResourceLock::None),
            (vec![lock(&format!("{id}/securityRules/x"), "ReadOnly")], ResourceLock::None),
            (vec![lock(group, "NotSpecified"), json!({}), json!(7)], ResourceLock::None),
        ] {
            assert_eq!(strictest(&locks, &id), wanted, "{locks:?}");
        }
    }

    #[test]
    fn names_that_would_lead_elsewhere_are_refused() {
        for name in ["a", "a.b-c_", "_a", "9", &"n".repeat(80)] {
            assert!(is_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "..", "a/b", "a?b", "a b", "ä", "a%2f", &"n".repeat(81)] {
            assert!(!is_name(name), "{name}");
        }
    }
}
