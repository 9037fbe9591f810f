//! Network security groups as firewalls.
//!
//! Rules are written one by one, as children: a write of the whole group would delete what it does not name. The only write
//! of a whole group is that of `flushConnection`, which only the group has.
//! A read is one request, for the group with its rules in it, and one a minute for resource locks.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::answer::error;
use super::api_version;
use super::client::{Arm, WriteRequest};
use super::limiter::Urgency;
use super::locks::{Locks, strictest};
use super::wire;
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::plan::desired::WRITE_ANSWER;
use crate::plan::model::{Access, FirewallId, Observed, ResourceLock, Rule};
use crate::providers::{Change, CloudError, CloudErrorKind, Firewall, FirewallLimits, Written};

mod rules;

pub(in crate::providers::azure) use rules::{port_range, protocol};

/// What a network security group can hold.
const LIMITS: FirewallLimits = FirewallLimits { rules: 1000, addresses: 4000, name: 80, description: 140 };

/// Network security groups.
pub(super) struct Nsgs {
    arm: Arc<Arm>,
    clock: Clock,
    locks: Arc<Locks>,
}

impl Nsgs {
    pub(super) fn new(arm: Arc<Arm>, clock: Clock, locks: Arc<Locks>) -> Self {
        Self { arm, clock, locks }
    }

    /// Every group below `scope`.
    pub(super) async fn all(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
        let at = self.clock.now();
        let operation = format!("list network security groups of {scope}");
        let path = format!("{scope}/providers/Microsoft.Network/networkSecurityGroups");
        let (groups, locks) = tokio::join!(
            self.arm.list_scope(&operation, &path, api_version::NETWORK, Urgency::Lock),
            self.locks.below(scope),
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

    async fn put_rule(
        &self,
        firewall: &FirewallId,
        rule: &Rule,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let operation = format!("write rule {} of {}", rule.name, firewall.0.name());
        let body = rules::encode(rule).map_err(|why| error(&operation, CloudErrorKind::Invalid, &why))?;
        self.send(&operation, firewall, &rule.name, Send::Put(body, rule.access), patience).await
    }

    async fn remove_rule(
        &self,
        firewall: &FirewallId,
        rule: &str,
        removal: Send,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let operation = format!("remove rule {rule} of {}", firewall.0.name());
        gone_is_removed(self.send(&operation, firewall, rule, removal, patience).await)
    }

    /// The one write of a whole group: only the group has the setting. As it was read, and only if nobody has written it
    /// meanwhile; what of others differs afterwards is told.
    async fn cut_sessions(&self, firewall: &FirewallId, patience: Duration) -> Result<Written, CloudError> {
        let operation = format!("set flushConnection of {}", firewall.0.name());
        let read = || self.arm.get(&operation, firewall.as_str(), api_version::NETWORK, Urgency::Lock);
        let begun = Instant::now();
        let before = read().await?;
        let mut body = before.clone();
        body["properties"]["flushConnection"] = true.into();
        let request = WriteRequest {
            operation: &operation,
            method: Method::PUT,
            path: firewall.as_str(),
            api_version: api_version::NETWORK,
            if_match: wire::text(&before, "/etag").map(str::to_owned),
            body: Some(body),
            urgency: Urgency::Lock,
            answer: patience.min(WRITE_ANSWER).saturating_sub(begun.elapsed()),
            patience,
        };
        let written = self.arm.write(request).await?;
        let differs = match read().await {
            Ok(after) => rules::lost(&before, &after),
            Err(error) => {
                tracing::warn!(%firewall, %error, "could not compare the rules after the write");
                Vec::new()
            }
        };
        Ok(Written { differs, ..written })
    }

    async fn send(
        &self,
        operation: &str,
        firewall: &FirewallId,
        name: &str,
        change: Send,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        // The name becomes part of an address.
        if !is_name(name) {
            let message = format!("{name:?} is not a name of a rule");
            return Err(error(operation, CloudErrorKind::Invalid, &message));
        }
        let (method, body, urgency, answer) = match change {
            // What was answered in time may take longer to end.
            Send::Put(body, Access::Deny) => (Method::PUT, Some(body), Urgency::Lock, WRITE_ANSWER),
            Send::Put(body, Access::Allow) => (Method::PUT, Some(body), Urgency::Open, WRITE_ANSWER),
            Send::Unlock => (Method::DELETE, None, Urgency::Lock, WRITE_ANSWER),
            Send::Close => (Method::DELETE, None, Urgency::Close, patience),
        };
        let path = format!("{firewall}/securityRules/{name}");
        let request = WriteRequest {
            operation,
            method,
            path: &path,
            api_version: api_version::NETWORK,
            if_match: None,
            body,
            urgency,
            answer: answer.min(patience),
            patience,
        };
        let ended = self.arm.write(request).await;
        if ended.as_ref().is_err_and(|error| error.kind == CloudErrorKind::ScopeLocked) {
            // There is a lock that was not known: the next read asks anew.
            self.locks.forget(firewall);
        }
        ended
    }
}

/// Gone with its group. A subscription that is not found may as well be one that we must not see.
pub(super) fn gone_is_removed(ended: Result<Written, CloudError>) -> Result<Written, CloudError> {
    match ended {
        Err(error)
            if error.kind == CloudErrorKind::NotFound
                && error.code.as_deref() != Some("SubscriptionNotFound") =>
        {
            Ok(Written { request_id: error.request_id, ..Written::default() })
        }
        ended => ended,
    }
}

/// Reads a group, and writes what was read of its rules.
pub(super) fn understand(group: &Value) {
    let Ok(id) = wire::id("read", group) else { return };
    let read =
        rules::observed("read", FirewallId(id), group, jiff::Timestamp::UNIX_EPOCH, ResourceLock::None);
    for rule in read.iter().flat_map(|observed| &observed.rules) {
        let _ = rules::encode(rule);
    }
}

enum Send {
    Put(Value, Access),
    Close,
    Unlock,
}

/// What Azure lets a rule be called.
fn is_name(name: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.len() <= LIMITS.name
        && name.starts_with(word)
        && name.ends_with(word)
        && name.chars().all(|c| word(c) || c == '.' || c == '-')
}

#[async_trait]
impl Firewall for Nsgs {
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        let at = self.clock.now();
        let operation = format!("read {}", firewall.0.name());
        let (group, lock) = tokio::join!(
            self.arm.get(&operation, firewall.as_str(), api_version::NETWORK, Urgency::Lock),
            self.locks.of(firewall),
        );
        rules::observed(&operation, firewall.clone(), &group?, at, lock)
    }

    async fn write(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let until = Instant::now() + patience;
        let mut written = Written::default();
        for change in changes {
            let left = until.saturating_duration_since(Instant::now());
            written = match change {
                Change::Put(rule) => self.put_rule(firewall, rule, left).await?,
                Change::Remove(name) => self.remove_rule(firewall, name, Send::Close, left).await?,
                Change::Unlock(name) => self.remove_rule(firewall, name, Send::Unlock, left).await?,
                Change::CutSessions => self.cut_sessions(firewall, left).await?,
            };
        }
        Ok(written)
    }

    fn limits(&self, _: &FirewallId) -> FirewallLimits {
        LIMITS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

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
