//! Firewalls, rules and machines as the cloud has them, whatever the cloud.

mod machine;
mod rule;

pub use machine::{
    Address, AdminAction, AdminRule, FirewallHop, Hop, Machine, NetworkView, Nic, Os, Route, Unsupported,
};
pub use rule::{
    Access, DnatRule, FirewallId, FirewallKind, MAX_PRIORITY, MIN_PRIORITY, NetworkRule, Observed, Peer,
    Provisioning, ResourceLock, Rule, RuleProtocol, Translating, Translation,
};
