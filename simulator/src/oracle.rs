//! Would a packet pass? Answered from the data plane alone, with rules of its own: nothing here is shared with the
//! product that the simulator tests.
//!
//! The oracle says what filters decide. Whether a route leads from source to destination is not its question: a
//! private destination may be reached through a gateway, a load balancer or a firewall.

pub(crate) mod evaluate;
pub(crate) mod firewall;
pub(crate) mod index;
pub(crate) mod plane;
pub(crate) mod tags;
