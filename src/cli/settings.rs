//! The configuration as the controllers take it.

use std::collections::BTreeMap;

use super::config::Config;
use crate::api::admission::{CONTROLLER_USER, namespace_of};
use crate::api::values::InvalidValue;
use crate::controllers::tenancy::{Tenancy, Tenant};
use crate::controllers::{Settings, admission, leader};
use crate::plan::lease::Times;
use crate::plan::model::Peer;
use crate::plan::names::Cluster;
use crate::plan::people::Pipelines;

/// What the controllers need of the configuration.
///
/// # Errors
/// When a value does not hold what the configuration's own check has let through.
pub fn settings(config: &Config) -> anyhow::Result<Settings> {
    let tenants: BTreeMap<String, Tenant> = config
        .namespaces
        .iter()
        .map(|namespace| {
            let tenant =
                Tenant { scopes: namespace.scopes.clone(), credential: namespace.credential.clone() };
            (namespace.name.clone(), tenant)
        })
        .collect();
    let exempt: Result<Vec<Peer>, InvalidValue> = config
        .allowed_exempt_sources
        .iter()
        .filter_map(|source| match (&source.cidr, &source.service_tag) {
            (Some(cidr), _) => Some(cidr.network().map(Peer::Net)),
            (None, Some(tag)) => Some(Ok(Peer::Tag(tag.clone()))),
            (None, None) => None,
        })
        .collect();
    Ok(Settings {
        cluster: Cluster::new(&config.cluster_id, &config.previous_cluster_ids),
        tenancy: Tenancy::new(tenants)?,
        pipelines: Pipelines::new(&config.pipeline_users),
        allowed_exempt_sources: exempt?,
        drift_interval: config.drift_interval,
        inventory_interval: config.inventory_interval,
        request_retention: config.request_retention,
        sweep_interval: config.sweep_interval,
        address_interval: config.address_interval,
        honour_denies_below: config.honour_denies_below,
        max_allows_per_firewall: config.max_allows_per_firewall,
        concurrency: config.concurrency,
        dry_run: config.dry_run,
        admission: admission::Settings {
            controller_user: config.controller_user.clone(),
            namespace: own_namespace(&config.controller_user),
            margin: config.admission_margin,
        },
        leader: leader::Settings {
            namespace: own_namespace(&config.controller_user),
            identity: identity(),
            times: Times::default(),
        },
        unfinished_writes: config.unfinished_writes,
    })
}

/// What this replica is called in the lease. A pod runs one program at a time, so that one that starts again in the same
/// pod need not wait until the lease of the one before lapses. Anything else is called like nothing before.
fn identity() -> String {
    let given = |variable: &str| std::env::var(variable).ok().filter(|value| !value.is_empty());
    let name = given("POD_NAME").or_else(|| given("HOSTNAME")).unwrap_or_else(|| "portcullis".to_owned());
    let unique = given("POD_NAME").and_then(|_| given("POD_UID"));
    format!("{name}_{}", unique.unwrap_or_else(|| uuid::Uuid::new_v4().to_string()))
}

/// Where the controller keeps what is its own: the namespace of its service account, which is also the pod's. Run as
/// anybody else, what the pod says, or the namespace of `deploy/`.
fn own_namespace(user: &str) -> String {
    namespace_of(user)
        .map(str::to_owned)
        .or_else(|| std::env::var("POD_NAMESPACE").ok())
        .or_else(|| namespace_of(CONTROLLER_USER).map(str::to_owned))
        .unwrap_or_default()
}
