//! Attacks, on the real API server and by real users: what they send is refused or harmless, with a message that a
//! user understands, and no packet gets through that should not.

mod approvers;
mod forged;
mod identity;
mod people;
