//! Clouds, behind two traits: [`Inventory`] says what machines there are, [`Firewall`] reads and changes one
//! firewall. One conformance suite holds for every implementation.
//!
//! May use `api` and `plan`; nothing here decides anything.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use jiff::SignedDuration;

use crate::api::Reason;
use crate::api::values::ArmId;
use crate::plan::model::{FirewallId, Machine, Observed, Rule, Unsupported};

pub mod azure;
pub mod memory;

/// What machines there are.
#[async_trait]
pub trait Inventory: Send + Sync {
    /// The machine of this id, with everything on the way to it. The inner error says why a machine that may
    /// well exist cannot be locked (not found, classic, no address, not permitted).
    ///
    /// # Errors
    /// When the cloud could not answer.
    async fn machine(&self, id: &ArmId) -> Result<Result<Machine, Unsupported>, CloudError>;

    /// Every machine below `scope` (a subscription or resource group) that has all of `tags`: tag names
    /// compared without regard to case, values with it. A resource group that is gone holds none. Sorted by
    /// id. The ids of machines that cannot be
    /// locked come with the reason.
    ///
    /// # Errors
    /// When the cloud could not answer in full: a partial list is never returned, because a machine that is
    /// missing from it would lose its lock.
    async fn machines(
        &self,
        scope: &ArmId,
        tags: &BTreeMap<String, String>,
    ) -> Result<Vec<(ArmId, Result<Machine, Unsupported>)>, CloudError>;

    /// Every firewall below `scope`, as read, and those elsewhere that routes of its networks lead through: for the sweep.
    /// A resource group that is gone holds none.
    ///
    /// # Errors
    /// When the cloud could not answer in full.
    async fn firewalls(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError>;

    /// By how much the cloud's clock was ahead of ours when it last answered, to a second or two; none where
    /// it has not answered yet or does not say. Far apart, deadlines mean little: nothing should be opened.
    fn clock_ahead(&self) -> Option<SignedDuration> {
        None
    }

    /// What the cloud has been asked, and what it may be asked, through this credential.
    fn usage(&self) -> Usage {
        Usage::default()
    }
}

/// What a cloud has been asked, and what it may be asked, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Calls by method and by the status of the answer, none where no answer came.
    pub calls: Vec<(&'static str, Option<u16>, u64)>,
    /// Calls that waited before they were sent.
    pub waits: u64,
    /// How long those have waited, together.
    pub waited: Duration,
    /// Calls that can be made at once before the next has to wait, by class (`read`, `write`, `delete`, `network`), where
    /// they are fewest. A class that was never used is left out.
    pub left: Vec<(&'static str, i64)>,
    /// For how long the cloud has asked to wait, at most; zero where it does not throttle. Closes do not wait for it.
    pub throttled_for: Duration,
}

/// Reads and changes firewalls. Calls for one firewall must be made one after the other; the gate sees to it.
#[async_trait]
pub trait Firewall: Send + Sync {
    /// The firewall as it is.
    ///
    /// # Errors
    /// [`CloudError`]; a firewall that is gone is [`CloudErrorKind::NotFound`].
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError>;

    /// Makes changes, and waits until the cloud has ended the write. Not retried inside: where the outcome is
    /// [`CloudErrorKind::Ambiguous`] or [`CloudErrorKind::Unanswered`], observe before the next write.
    ///
    /// Where a firewall is written whole, all of them are one write: all are made, or none. Else they are made one after
    /// the other, up to the first that fails: give one at a time where it matters which.
    ///
    /// `patience` bounds the whole call.
    ///
    /// # Errors
    /// [`CloudError`]; a resource lock that forbids it is [`CloudErrorKind::ScopeLocked`].
    async fn write(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError>;

    /// Writes one rule, as [`Firewall::write`] does.
    ///
    /// # Errors
    /// [`CloudError`].
    async fn put(
        &self,
        firewall: &FirewallId,
        rule: &Rule,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        self.write(firewall, &[Change::Put(rule.clone())], patience).await
    }

    /// Removes one rule by its name, as [`Firewall::write`] does.
    ///
    /// # Errors
    /// [`CloudError`].
    async fn delete(
        &self,
        firewall: &FirewallId,
        rule: &str,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        self.write(firewall, &[Change::Remove(rule.to_owned())], patience).await
    }

    /// What the firewall can hold.
    fn limits(&self, firewall: &FirewallId) -> FirewallLimits;
}

/// A change to one rule of a firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// Writes it, new or in place of the one of its name.
    Put(Rule),
    /// Removes an allow by its name, before everything else that waits for the cloud. One that is not there, or whose firewall is not, is removed; but where a firewall is written
    /// whole, it is written all the same: what the read does not show may still be under way.
    Remove(String),
    /// Removes a rule of a lock by its name, in its turn, and only while [`WRITE_ANSWER`](crate::plan::desired::WRITE_ANSWER)
    /// is not over, as what is put.
    Unlock(String),
    /// Has the firewall cut connections that its rules no longer let in, from now on. Whether that was never asked of it
    /// says [`Observed::cuts_sessions`].
    CutSessions,
}

impl Change {
    /// The name of the rule; that of the setting where it is none.
    #[must_use]
    pub fn rule(&self) -> &str {
        match self {
            Self::Put(rule) => &rule.name,
            Self::Remove(name) | Self::Unlock(name) => name,
            Self::CutSessions => "flushConnection",
        }
    }

    /// Whether it removes a rule.
    #[must_use]
    pub const fn is_removal(&self) -> bool {
        matches!(self, Self::Remove(_) | Self::Unlock(_))
    }
}

/// A write that the cloud has ended well.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Written {
    /// The cloud's id of the request, for its support and logs.
    pub request_id: Option<String>,
    /// What of others differs from before, where the whole firewall was written: theirs may have been lost. In words.
    pub differs: Vec<String>,
}

/// What a firewall can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FirewallLimits {
    /// Rules in both directions.
    pub rules: usize,
    /// Addresses and ranges in all rules; where it translates addresses, public addresses and those that it leads to.
    pub addresses: usize,
    /// Longest name of a rule.
    pub name: usize,
    /// Longest description of a rule.
    pub description: usize,
}

impl From<FirewallLimits> for crate::plan::desired::Limits {
    fn from(limits: FirewallLimits) -> Self {
        Self { rules: limits.rules, addresses: limits.addresses }
    }
}

/// Why the cloud did not do what was asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("failed to {operation}: {message}{}", self.request_id.as_ref().map(|id| format!(" (request id {id})")).unwrap_or_default())]
pub struct CloudError {
    /// What sort of failure, which decides what to do next.
    pub kind: CloudErrorKind,
    /// What was asked, such as `write rule web-allow of nsg-1`.
    pub operation: String,
    /// The cloud's own words and code.
    pub message: String,
    /// The cloud's error code, where it gave one.
    pub code: Option<String>,
    /// How long the cloud asks to wait.
    pub retry_after: Option<Duration>,
    /// The cloud's id of the request.
    pub request_id: Option<String>,
}

/// What sort of failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloudErrorKind {
    /// Passing: throttled, unreachable, another write under way, and for reads 408 and 5xx. Nothing was
    /// written. Try again.
    Retryable,
    /// Nobody knows whether it was written: 5xx of the cloud itself, failed, cancelled. It has ended: observe, then
    /// decide.
    Ambiguous,
    /// It was sent, and nobody who knows says that it has ended: time-out, broken connection, 5xx of a gateway. It may
    /// be written yet: what is observed proves nothing for a while.
    Unanswered,
    /// The credential may not do it (yet: rights take minutes to spread). Try again slowly.
    NotPermitted,
    /// The credential itself is refused.
    Unauthenticated,
    /// An Azure Policy forbids the rule. Only people can mend it.
    RefusedByPolicy,
    /// It is not there.
    NotFound,
    /// A resource lock forbids it.
    ScopeLocked,
    /// The priority is taken by another rule: read again and plan again.
    PriorityTaken,
    /// No more room for rules or addresses.
    Full,
    /// The cloud calls the request wrong. Only a change of spec or world can mend it.
    Invalid,
}

impl CloudErrorKind {
    /// Whether the same call may succeed later without anybody's doing.
    #[must_use]
    pub const fn is_transient(self) -> bool {
        match self {
            Self::Retryable | Self::Ambiguous | Self::Unanswered | Self::PriorityTaken => true,
            Self::NotPermitted
            | Self::Unauthenticated
            | Self::RefusedByPolicy
            | Self::NotFound
            | Self::ScopeLocked
            | Self::Full
            | Self::Invalid => false,
        }
    }

    /// Whether it says something of the firewall, whichever credential asks.
    #[must_use]
    pub const fn is_of_the_firewall(self) -> bool {
        matches!(self, Self::ScopeLocked | Self::NotFound)
    }

    /// The reason that a condition gives for it.
    #[must_use]
    pub const fn reason(self) -> Reason {
        match self {
            Self::Retryable | Self::Ambiguous | Self::Unanswered | Self::PriorityTaken => {
                Reason::CloudUnavailable
            }
            Self::NotPermitted => Reason::NotPermitted,
            Self::Unauthenticated => Reason::Unauthenticated,
            Self::RefusedByPolicy => Reason::RefusedByPolicy,
            Self::NotFound => Reason::NoFirewall,
            Self::ScopeLocked => Reason::ScopeLocked,
            Self::Full => Reason::FirewallFull,
            Self::Invalid => Reason::RefusedByCloud,
        }
    }
}

/// A cloud as one credential sees it.
#[derive(Clone)]
pub struct Cloud {
    /// What machines there are.
    pub inventory: Arc<dyn Inventory>,
    /// Its firewalls.
    pub firewall: Arc<dyn Firewall>,
}

impl std::fmt::Debug for Cloud {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Cloud")
    }
}

/// Whether `tags` holds all of `wanted`: names compared without regard to case, values with it.
fn has_tags(tags: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(name, value)| {
        tags.iter().any(|(own, own_value)| own.eq_ignore_ascii_case(name) && own_value == value)
    })
}
