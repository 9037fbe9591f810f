//! Azure, through Resource Manager.
//!
//! [`config`] says which Azure and who we are; [`build`] makes of it a [`Cloud`]. Below: [`token`] gets
//! tokens, `client` and `operation` speak HTTP, `errors` says what errors mean, `limiter` keeps below
//! Resource Manager's limits, `nsg` is the firewall and `topology` the inventory.

use std::sync::Arc;

use crate::clock::Clock;
use crate::providers::Cloud;

mod client;
pub mod config;
mod errors;
mod http;
mod limiter;
mod nsg;
mod operation;
pub mod token;
mod topology;
mod wire;

pub use config::{CloudConfig, ConfigError, CredentialConfig, validate_credentials};

/// Versions of Azure's APIs: not the newest, so that the national clouds have them too.
mod api_version {
    pub(super) const NETWORK: &str = "2024-05-01";
    pub(super) const COMPUTE: &str = "2024-07-01";
    pub(super) const LOCKS: &str = "2020-05-01";
}

/// The cloud as one credential sees it. Nothing is sent yet. Must be called within a Tokio runtime.
///
/// # Errors
/// When a setting is wrong or the file of certificates cannot be read.
pub fn build(cloud: &CloudConfig, credential: &CredentialConfig, clock: Clock) -> Result<Cloud, ConfigError> {
    let endpoints = cloud.endpoints()?;
    let resolved = credential.resolve(&|name| std::env::var(name).ok())?;
    let http = http::client(cloud, &endpoints)?;
    let source = token::sources::source(resolved, &endpoints, &http, http::metadata_client()?, clock.clone());
    let tokens = Arc::new(token::Tokens::new(source));
    let arm = Arc::new(client::Arm::new(http, endpoints.resource_manager, tokens));
    let nsgs = Arc::new(nsg::Nsgs::new(Arc::clone(&arm), clock));
    Ok(Cloud { inventory: Arc::new(topology::Topology::new(arm, Arc::clone(&nsgs))), firewall: nsgs })
}
