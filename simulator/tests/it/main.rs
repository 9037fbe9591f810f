//! The simulator over HTTP and TLS, as a client sees it.

mod client;
mod identity;
mod nsg;
mod oracle;
