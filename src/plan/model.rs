//! Firewalls, rules and machines as the cloud has them, whatever the cloud.

mod machine;
mod rule;

pub use machine::{
    Address, AdminAction, AdminRule, FirewallHop, Hop, Machine, NetworkView, Nic, Os, Unsupported,
};
pub use rule::{
    Access, FirewallId, MAX_PRIORITY, MIN_PRIORITY, Observed, Peer, Provisioning, ResourceLock, Rule,
    RuleProtocol,
};
