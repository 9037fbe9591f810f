//! Decisions: what rules a firewall should hold, and where each request stands.
//!
//! Law of the room: no async, no IO, no clock, no logs. Everything is a function of its arguments, `now`
//! among them, and every list that comes out is sorted, so that the same world gives the same plan.
//!
//! What specs say:
//! - [`terms`]: what a policy and a request say, parsed once.
//! - [`admission`]: whether the API server's word can be taken for who asks and who reviews.
//! - [`people`]: who counts as whom.
//! - [`reviews`]: whose review of a request counts.
//! - [`authorize`]: whether a request is within its policies' terms, and which rules it would get.
//! - [`lifecycle`]: the life of a request, one move at a time.
//! - [`lease`]: which of several replicas may write what.
//! - [`locks`]: which locks a policy wants on which firewalls.
//! - [`report`]: what a policy's status says of what was seen.
//!
//! What firewalls hold:
//! - [`model`]: firewalls, rules and machines as the cloud has them, whatever the cloud.
//! - [`names`]: how a rule says who owns it and when it dies.
//! - [`desired`]: what is wanted of one firewall, and what to do there.
//! - [`changes`]: from what a firewall holds and what is wanted of it, to what to do.
//! - [`adoption`]: locks of an id that the cluster had before, under its present one.
//! - [`foresight`]: what can be told of a lock before it is written.
//! - [`exposure`]: what gets through to a machine, whatever rules say.
//! - [`priority`]: stable places for rules of ours around those of others.
//! - [`sources`], [`packets`]: exact sets of addresses, ports and packets.

pub mod admission;
pub mod adoption;
pub mod authorize;
pub mod changes;
pub mod desired;
pub mod dnat;
pub mod exposure;
pub mod foresight;
pub mod lease;
pub mod lifecycle;
pub mod locks;
pub mod model;
pub mod names;
pub mod packets;
pub mod people;
pub mod priority;
pub mod report;
pub mod reviews;
pub mod sources;
pub mod terms;
