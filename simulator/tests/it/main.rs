//! The simulator over HTTP and TLS, as a client sees it.
#![allow(clippy::unwrap_used, reason = "helpers of tests, where a panic is the report")]

mod binary;
mod client;
mod faults;
mod firewall;
mod identity;
mod malformed;
mod nsg;
mod oracle;
mod resources;
mod schema;
mod terraform;
