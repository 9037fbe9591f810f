//! Azure Firewalls: those with rules of their own ([`classic`]), and the policies that others take theirs from
//! ([`policy`]). What they have in common is how rules are written ([`rules`]) and where ([`collections`]).
//!
//! One rule of ours is, there, a rule that leads on for each of its ports, and a network rule that lets through what was
//! led on: it goes before denies of others in that reading of Azure's in which they would stop it.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use reqwest::Method;
use serde_json::Value;
use tokio::time::Instant;

use super::api_version;
use super::client::{Arm, WriteRequest};
use super::limiter::Urgency;
use super::locks::Locks;
use super::nsg::Nsgs;
use super::wire;
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::plan::desired::WRITE_ANSWER;
use crate::plan::model::{FirewallId, FirewallKind, Observed, ResourceLock, Translating};
use crate::providers::{Change, CloudError, CloudErrorKind, Firewall, FirewallLimits, Written};

mod classic;
mod collections;
mod policy;
mod rules;
#[cfg(test)]
mod tests;

use classic::Classic;
use policy::Policies;

/// What an Azure Firewall can hold. Addresses are public ones and those that they lead to.
const LIMITS: FirewallLimits = FirewallLimits { rules: 10_000, addresses: 250, name: 80, description: 1024 };
/// How often somebody else may be faster before the gate is told to come again.
const ATTEMPTS: usize = 3;
/// Longest that the first answer to a write that closes may take. Azure Resource Manager ends every request within 60 s.
const CLOSE_ANSWER: Duration = Duration::from_secs(60);

/// Firewalls of every kind.
pub(super) struct Firewalls {
    nsgs: Nsgs,
    classic: Classic,
    policies: Policies,
}

impl Firewalls {
    pub(super) fn new(arm: &Arc<Arm>, clock: Clock) -> Self {
        let locks = Arc::new(Locks::new(Arc::clone(arm)));
        Self {
            nsgs: Nsgs::new(Arc::clone(arm), clock.clone(), Arc::clone(&locks)),
            classic: Classic::new(Arc::clone(arm), clock.clone(), Arc::clone(&locks)),
            policies: Policies::new(Arc::clone(arm), clock, locks),
        }
    }

    /// Every firewall below `scope`: of those that lead packets on, those where something of the form of ours stands.
    pub(super) async fn all(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
        let (groups, classic, policies) =
            tokio::join!(self.nsgs.all(scope), self.classic.all(scope), self.policies.all(scope));
        let mut all = groups?;
        all.extend(unless_forbidden(classic)?);
        all.extend(unless_forbidden(policies)?);
        Ok(all)
    }
}

/// A credential that may not read a kind of firewall at all has written nothing there.
fn unless_forbidden(read: Result<Vec<Observed>, CloudError>) -> Result<Vec<Observed>, CloudError> {
    match read {
        Err(error)
            if error.kind == CloudErrorKind::NotPermitted
                || error.code.as_deref().is_some_and(|code| code.contains("SubscriptionRegistration")) =>
        {
            tracing::debug!(%error, "not swept");
            Ok(Vec::new())
        }
        read => read,
    }
}

/// A write of something whole: in place of what was read, and of nothing newer.
struct Replacement<'a> {
    operation: &'a str,
    path: &'a str,
    /// As it was read; none where it is new.
    before: Option<&'a Value>,
    body: Value,
    /// Whether something is removed by it.
    closes: bool,
    /// When the change was begun, the read before it included.
    begun: Instant,
    until: Instant,
}

/// Sends it; what a resource lock forbids has the locks of `firewall` read anew.
async fn replace(
    arm: &Arm,
    locks: &Locks,
    firewall: &FirewallId,
    replacement: Replacement<'_>,
) -> Result<Written, CloudError> {
    let Replacement { operation, path, before, body, closes, begun, until } = replacement;
    let request = WriteRequest {
        operation,
        method: Method::PUT,
        path,
        api_version: api_version::NETWORK,
        if_match: before.and_then(|before| wire::text(before, "/etag")).map(str::to_owned),
        body: Some(body),
        urgency: if closes { Urgency::Close } else { Urgency::Open },
        answer: if closes { CLOSE_ANSWER } else { WRITE_ANSWER.saturating_sub(begun.elapsed()) },
        patience: until.saturating_duration_since(Instant::now()),
    };
    let ended = arm.write(request).await;
    if ended.as_ref().is_err_and(|failed| failed.kind == CloudErrorKind::ScopeLocked) {
        locks.forget(firewall);
    }
    ended
}

/// Reads a classic firewall, and removes a rule of ours from it.
pub(super) fn understand_classic(body: &Value) {
    let Ok(id) = wire::id("read", body) else { return };
    let observed = classic::observed(FirewallId(id), body, jiff::Timestamp::UNIX_EPOCH, ResourceLock::None);
    let name = observed.rules.first().map_or("portcullis-00000000-allow-000000000000-x-0", |rule| &rule.name);
    let _ = classic::changed(body, &[Change::Remove(name.to_owned())]);
}

/// Reads a group of a policy's rules.
pub(super) fn understand_group(group: &Value) {
    let list: Vec<&Value> = wire::items(group, "/properties/ruleCollections").iter().collect();
    let mut standing = Translating::default();
    let how = (collections::Ours::Any, None, collections::priority(group));
    collections::read(&mut standing, &list, rules::Dialect::Policy, how, wire::provisioning(group));
    let _ = rules::assemble(&standing);
}

/// Whether a write was refused because what it rests on has changed.
fn is_stale(error: &CloudError) -> bool {
    error.code.as_deref().is_some_and(|code| code.starts_with("PreconditionFailed"))
}

/// What is being done, for messages.
fn operation(firewall: &FirewallId, changes: &[Change]) -> String {
    let one = |change: &Change| match change {
        Change::Put(rule) => format!("write rule {}", rule.name),
        Change::Remove(name) | Change::Unlock(name) => format!("remove rule {name}"),
        Change::CutSessions => "set flushConnection".to_owned(),
    };
    let what = match changes {
        [] => "write again".to_owned(),
        [only] => one(only),
        [first, rest @ ..] => format!("{} and {} more", one(first), rest.len()),
    };
    format!("{what} of {}", firewall.0.name())
}

#[async_trait]
impl Firewall for Firewalls {
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        match firewall.kind() {
            FirewallKind::NetworkSecurityGroup => self.nsgs.observe(firewall).await,
            FirewallKind::AzureFirewall => self.classic.observe(firewall).await,
            FirewallKind::FirewallPolicy => self.policies.observe(firewall).await,
        }
    }

    async fn write(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError> {
        match firewall.kind() {
            FirewallKind::NetworkSecurityGroup => self.nsgs.write(firewall, changes, patience).await,
            FirewallKind::AzureFirewall => self.classic.write(firewall, changes, patience).await,
            FirewallKind::FirewallPolicy => self.policies.write(firewall, changes, patience).await,
        }
    }

    fn limits(&self, firewall: &FirewallId) -> FirewallLimits {
        match firewall.kind() {
            FirewallKind::NetworkSecurityGroup => self.nsgs.limits(firewall),
            FirewallKind::AzureFirewall | FirewallKind::FirewallPolicy => LIMITS,
        }
    }
}
