//! Resource locks, read no more often than needed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::api_version;
use super::client::Arm;
use super::limiter::Urgency;
use super::wire;
use crate::api::values::ArmId;
use crate::plan::model::{FirewallId, ResourceLock};

/// How long a resource lock that was read is believed. A write that it forbids says so.
const LOCKS_LAST: Duration = Duration::from_secs(60);

/// How long reading resource locks may hold up the reading of rules.
const LOCKS_TIME: Duration = Duration::from_secs(5);

/// Locks of firewalls.
pub(super) struct Locks {
    arm: Arc<Arm>,
    known: Mutex<HashMap<FirewallId, (Instant, ResourceLock)>>,
}

impl Locks {
    pub(super) fn new(arm: Arc<Arm>) -> Self {
        Self { arm, known: Mutex::new(HashMap::new()) }
    }

    /// All locks below a scope; none where they are not known.
    pub(super) async fn below(&self, scope: &ArmId) -> Option<Vec<Value>> {
        self.read(scope, &[]).await
    }

    /// There is a lock that was not known: the next read asks anew.
    pub(super) fn forget(&self, firewall: &FirewallId) {
        self.known().remove(firewall);
    }

    /// What locks forbid on a firewall.
    pub(super) async fn of(&self, firewall: &FirewallId) -> ResourceLock {
        let known = self.known().get(firewall).copied();
        if let Some((read, lock)) = known
            && read.elapsed() < LOCKS_LAST
        {
            return lock;
        }
        let query = [("$filter", "atScope()")];
        let lock = match self.read(&firewall.0, &query).await {
            Some(locks) => strictest(&locks, &firewall.0),
            // Where locks cannot be read, what was last known holds, and a write that one forbids will say so.
            None => known.map(|(_, lock)| lock).unwrap_or_default(),
        };
        self.known().insert(firewall.clone(), (Instant::now(), lock));
        lock
    }

    fn known(&self) -> MutexGuard<'_, HashMap<FirewallId, (Instant, ResourceLock)>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn read(&self, scope: &ArmId, query: &[(&str, &str)]) -> Option<Vec<Value>> {
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
}

/// What the locks that hold for a resource forbid together.
pub(super) fn strictest(locks: &[Value], id: &ArmId) -> ResourceLock {
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
}
