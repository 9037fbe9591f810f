//! Decisions: what rules a firewall should hold, and where each request stands.
//!
//! Law of the room: no async, no IO, no clock, no logs. Everything is a function of its arguments, `now`
//! among them, and every list that comes out is sorted, so that the same world gives the same plan.
//!
//! - [`desired`]: what is wanted of one firewall, and what to do there.
//! - [`changes`]: from what a firewall holds and what is wanted of it, to what to do.
//! - [`priority`]: stable places for rules of ours around those of others.
//! - [`sources`], [`packets`]: exact sets of addresses, ports and packets.
//! - [`names`]: how a rule says who owns it and when it dies.
//! - [`model`]: firewalls, rules and machines as the cloud has them, whatever the cloud.

pub mod changes;
pub mod desired;
pub mod model;
pub mod names;
pub mod packets;
pub mod priority;
pub mod sources;
