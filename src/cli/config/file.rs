//! The configuration file as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

use crate::providers::azure::{CloudConfig, CredentialConfig};

/// The configuration file.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct File {
    /// Who this cluster is, in the names of its rules. Never change it while rules stand in the cloud; after
    /// a rebuild under another id, name the old one in `previousClusterIds`.
    pub cluster_id: String,
    /// Ids that this cluster had before, whose rules it may close.
    #[serde(default)]
    pub previous_cluster_ids: Vec<String>,
    /// Which Azure.
    #[serde(default)]
    pub cloud: CloudConfig,
    /// Identities to act with.
    #[serde(default)]
    pub credentials: Vec<CredentialConfig>,
    /// What each namespace may touch. A namespace that is not named may touch nothing.
    #[serde(default)]
    pub namespaces: Vec<NamespaceFile>,
    /// What policies may exempt from their locks.
    #[serde(default = "load_balancer")]
    pub allowed_exempt_sources: Vec<ExemptSourceFile>,
    /// User names that count as pipelines, as every service account does: their requests need `notAfter`, and all
    /// pipelines together count as one person in approvals.
    #[serde(default)]
    pub pipeline_users: Vec<String>,
    /// How often each firewall is looked at when nothing else calls for it.
    #[serde(default = "five_minutes")]
    pub drift_interval: String,
    /// How often overdue and orphaned rules are looked for.
    #[serde(default = "one_minute")]
    pub sweep_interval: String,
    /// How often the addresses of machines with live grants are read again.
    #[serde(default = "one_minute")]
    pub address_interval: String,
    /// How often the machines of a policy are read again.
    #[serde(default = "five_minutes")]
    pub inventory_interval: String,
    /// How long settled requests and their reviews are kept.
    #[serde(default = "thirty_days")]
    pub request_retention: String,
    /// Denies of others below this priority number count as deliberate: no allow goes above one.
    #[serde(default = "thousand")]
    pub honour_denies_below: u16,
    /// The most allows of ours that one firewall may hold.
    #[serde(default = "two_hundred")]
    pub max_allows_per_firewall: u16,
    /// How many objects of a kind are worked on at the same time; as many again of requests that wait for their grant.
    #[serde(default = "sixteen")]
    pub concurrency: u16,
    /// Plan and report, write nothing to the cloud.
    #[serde(default)]
    pub dry_run: bool,
    /// The user name under which this program writes to the API server.
    #[serde(default = "service_account")]
    pub controller_user: String,
    /// How long the admission policies have to have been in force before what is created counts: API servers
    /// follow a change with a delay, and their clocks differ.
    #[serde(default = "thirty_seconds")]
    pub admission_margin: String,
    /// For how long a write that another replica, or this program before it was restarted, had begun to open a port may
    /// still be carried out: until then such a port is closed again and again, and does not count as closed.
    #[serde(default = "quarter_of_an_hour")]
    pub unfinished_writes: String,
    /// Which log lines are written: a level (`error`, `warn`, `info`, `debug`, `trace`), or directives such as
    /// `info,portcullis::controllers=debug`. The one field that is read again while the program runs: a change takes
    /// effect within 10 s. `--log-level` wins.
    #[serde(default = "info")]
    pub log_level: String,
    /// Base URL of an OTLP/HTTP receiver that traces are sent to. Left out: there are none.
    #[serde(default)]
    pub otlp_endpoint: Option<String>,
    /// Where `/metrics` is served.
    #[serde(default = "metrics_address")]
    pub metrics_address: String,
    /// Where `/healthz` and `/readyz` are served.
    #[serde(default = "health_address")]
    pub health_address: String,
}

/// What one namespace may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceFile {
    /// Its name.
    pub name: String,
    /// Ids of subscriptions, resource groups and virtual machines. Those of two namespaces must not overlap.
    pub scopes: Vec<String>,
    /// Name of the credential to act with there.
    pub credential: String,
}

/// A source that policies may exempt. Exactly one of the members.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ExemptSourceFile {
    /// A network in CIDR notation; policies may exempt it or parts of it.
    #[serde(default)]
    pub cidr: Option<String>,
    /// An Azure service tag.
    #[serde(default)]
    pub service_tag: Option<String>,
}

fn load_balancer() -> Vec<ExemptSourceFile> {
    vec![ExemptSourceFile { cidr: None, service_tag: Some("AzureLoadBalancer".to_owned()) }]
}

fn five_minutes() -> String {
    "5m".to_owned()
}

fn thirty_seconds() -> String {
    "30s".to_owned()
}

fn quarter_of_an_hour() -> String {
    "15m".to_owned()
}

fn one_minute() -> String {
    "60s".to_owned()
}

fn thirty_days() -> String {
    "720h".to_owned()
}

const fn thousand() -> u16 {
    1000
}

const fn two_hundred() -> u16 {
    200
}

const fn sixteen() -> u16 {
    16
}

fn service_account() -> String {
    crate::api::admission::CONTROLLER_USER.to_owned()
}

fn info() -> String {
    "info".to_owned()
}

fn metrics_address() -> String {
    "0.0.0.0:8080".to_owned()
}

fn health_address() -> String {
    "0.0.0.0:8081".to_owned()
}
