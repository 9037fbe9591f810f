//! Portcullis: just-in-time network access to virtual machines, as a Kubernetes controller.
//!
//! The rooms, from the lowest to the highest. A room may use those before it and none after it; a test reads
//! the imports and holds them to that.
//!
//! - [`clock`]: the one place that asks what time it is.
//! - [`api`]: the kinds that people write and their values, parsed once.
//! - [`plan`]: decisions, pure: no async, no IO, no clock, no logs.
//! - [`providers`]: clouds, behind two traits: what machines there are, and what a firewall holds.
//! - [`controllers`]: the loops that observe, plan, act and report.
//! - [`telemetry`]: logs, traces, metrics, health and the audit trail, for the controllers and the command line.
//! - [`cli`]: the commands, wiring the rooms together.
//! - [`fuzzing`]: ways in for fuzzers, to what reads what strangers send.

pub mod api;
pub mod cli;
pub mod clock;
pub mod controllers;
#[doc(hidden)]
pub mod fuzzing;
pub mod plan;
pub mod providers;
pub mod telemetry;
