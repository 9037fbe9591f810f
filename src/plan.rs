//! Decisions: what rules a firewall should hold, and where each request stands.
//!
//! Law of the room: no async, no IO, no clock, no logs. Everything is a function of its arguments, `now`
//! among them, and every list that comes out is sorted, so that the same world gives the same plan.
//!
//! - [`desired`]: what is wanted of one firewall, and what to do there.
//! - [`model`]: firewalls, rules and machines as the cloud has them, whatever the cloud.

pub mod desired;
pub mod model;
pub mod names;
