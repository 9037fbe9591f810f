//! Attacks, on the real API server and by real users: what they send is refused or harmless, with a message that a
//! user understands, and no packet gets through that should not.

mod approvals;
mod approvers;
mod audit_log;
mod flood;
mod forged;
mod hands;
mod heavy;
mod identity;
mod matrix;
mod people;
mod scopes;
mod windows;
