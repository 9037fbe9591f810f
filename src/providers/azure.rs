//! Azure, through Resource Manager.
//!
//! [`config`] says which Azure and who we are; [`build`] makes of it a [`Cloud`]. Below: [`token`] gets
//! tokens, `client` and `operation` speak HTTP, `errors` says what errors mean, `limiter` keeps below
//! Resource Manager's limits, `nsg` and `firewall` are the firewalls and `topology` the inventory.

use std::sync::Arc;

use crate::clock::Clock;
use crate::plan::lifecycle::CLOCKS_APART;
use crate::providers::Cloud;

mod answer;
mod client;
pub mod config;
mod errors;
mod firewall;
#[doc(hidden)]
pub mod fuzzing;
mod http;
mod limiter;
mod locks;
mod nsg;
mod operation;
pub mod token;
mod topology;
mod usage;
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
    let deadlines = clock.latest(CLOCKS_APART);
    let arm = Arc::new(client::Arm::new(http, endpoints.resource_manager, tokens, clock));
    // What is seen is dated by the clock that deadlines are judged by: a rule that was proved closed after its deadline says so.
    let firewalls = Arc::new(firewall::Firewalls::new(&arm, deadlines));
    Ok(Cloud {
        inventory: Arc::new(topology::Topology::new(arm, Arc::clone(&firewalls))),
        firewall: firewalls,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::CloudName;

    struct NoTokens;

    #[async_trait::async_trait]
    impl token::TokenSource for NoTokens {
        async fn fetch(&self) -> Result<token::Fetched, token::TokenError> {
            Err(token::TokenError::Unavailable("none".into()))
        }
    }

    #[tokio::test]
    async fn clouds_differ_by_their_endpoints_and_by_nothing_else() {
        let custom = CloudConfig {
            name: CloudName::Custom,
            resource_manager: Some("https://arm.example".into()),
            authority: Some("https://login.example".into()),
            ..CloudConfig::default()
        };
        let named = |name| CloudConfig { name, ..CloudConfig::default() };
        let clouds =
            [named(CloudName::Public), named(CloudName::USGovernment), named(CloudName::China), custom];
        let path =
            "/subscriptions/s/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups/nsg";
        let mut rests = Vec::new();
        for cloud in clouds {
            let endpoints = cloud.endpoints().unwrap();
            let tokens = Arc::new(token::Tokens::new(Box::new(NoTokens)));
            let http = http::client(&cloud, &endpoints).unwrap();
            let arm = client::Arm::new(http, endpoints.resource_manager.clone(), tokens, Clock::system());
            let url = arm.url(path, api_version::NETWORK, &[]);
            assert!(arm.own(url.as_str()).is_some());
            let other = "https://management.azure.example/next";
            assert!(arm.own(other).is_none(), "{other} is not of {}", endpoints.resource_manager);
            let rest = url.as_str().strip_prefix(endpoints.resource_manager.as_str()).map(str::to_owned);
            let audience = endpoints.resource_manager.as_str().strip_suffix('/') == Some(&endpoints.audience);
            rests.push((rest, audience, endpoints.authority.path().to_owned(), cloud.endpoints().is_ok()));
            assert!(
                build(
                    &cloud,
                    &CredentialConfig {
                        name: "main".into(),
                        managed_identity: Some(config::ManagedIdentityConfig::default()),
                        ..CredentialConfig::default()
                    },
                    Clock::system()
                )
                .is_ok()
            );
        }
        assert!(rests[0].0.is_some() && rests[0].1);
        assert!(rests.iter().all(|rest| *rest == rests[0]), "{rests:?}");
    }
}
