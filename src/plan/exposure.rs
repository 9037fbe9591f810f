//! Whether a locked port is closed to everybody without a grant.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::desired::Grant;
use super::model::{FirewallId, Machine, Observed, Peer};
use crate::api::values::{PortRange, Protocol};

/// Whether ports of a machine are closed to everybody without a grant or an exemption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// They are.
    Effective,
    /// Rules of others let traffic in past the lock.
    Shadowed {
        /// Where (a firewall's id, or the network manager) and the rule's name.
        by: Vec<(String, String)>,
    },
    /// The lock is not there, and nothing else closes them.
    Missing,
    /// It cannot be told.
    Unknown {
        /// Why.
        why: String,
    },
}

/// Judges a machine by everything on the way to it. Until the evaluation is written, it cannot be told.
#[must_use]
pub fn lockdown(
    _machine: &Machine,
    _ports: &[(Protocol, PortRange)],
    _observed: &BTreeMap<FirewallId, Arc<Observed>>,
    _exempt: &[Peer],
    _grants: &[Grant],
) -> Lockdown {
    Lockdown::Unknown { why: "whether the lock is effective is not evaluated yet".to_owned() }
}
