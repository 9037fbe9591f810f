//! The configuration file as it is written.

use schemars::JsonSchema;
use serde::Deserialize;

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
    pub cloud: CloudFile,
    /// Identities to act with.
    #[serde(default)]
    pub credentials: Vec<CredentialFile>,
    /// What each namespace may touch. A namespace that is not named may touch nothing.
    #[serde(default)]
    pub namespaces: Vec<NamespaceFile>,
    /// What policies may exempt from their locks.
    #[serde(default = "load_balancer")]
    pub allowed_exempt_sources: Vec<ExemptSourceFile>,
    /// User names that count as pipelines, as every service account does: their requests need `notAfter`.
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
    /// How many objects of a kind are worked on at the same time.
    #[serde(default = "sixteen")]
    pub concurrency: u16,
    /// Plan and report, write nothing to the cloud.
    #[serde(default)]
    pub dry_run: bool,
    /// The user name under which this program writes to the API server.
    #[serde(default = "service_account")]
    pub controller_user: String,
    /// Where `/metrics` is served.
    #[serde(default = "metrics_address")]
    pub metrics_address: String,
    /// Where `/healthz` and `/readyz` are served.
    #[serde(default = "health_address")]
    pub health_address: String,
}

/// Which Azure.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CloudFile {
    /// `Public`, `USGovernment`, `China` or `Custom`.
    #[serde(default)]
    pub name: CloudName,
    /// Base URL of Azure Resource Manager; required for `Custom`.
    #[serde(default)]
    pub resource_manager: Option<String>,
    /// Base URL of the token endpoint; required for `Custom`.
    #[serde(default)]
    pub authority: Option<String>,
    /// Audience of the tokens; where left out, the base URL of Azure Resource Manager.
    #[serde(default)]
    pub audience: Option<String>,
    /// File with certificates (PEM) to trust beside the public ones.
    #[serde(default)]
    pub ca_file: Option<String>,
}

/// The clouds of Azure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
pub enum CloudName {
    /// management.azure.com.
    #[default]
    Public,
    /// management.usgovcloudapi.net.
    USGovernment,
    /// management.chinacloudapi.cn.
    China,
    /// Whatever the other fields say.
    Custom,
}

/// An identity to act with. Exactly one of its members beside the name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CredentialFile {
    /// Name by which namespaces choose it.
    pub name: String,
    /// An application with a secret.
    #[serde(default)]
    pub client_secret: Option<ClientSecretFile>,
    /// A federated service account.
    #[serde(default)]
    pub workload_identity: Option<WorkloadIdentityFile>,
    /// The identity of the machine that this program runs on.
    #[serde(default)]
    pub managed_identity: Option<ManagedIdentityFile>,
}

/// An application with a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientSecretFile {
    /// The tenant: a UUID or a domain.
    pub tenant_id: String,
    /// The application's client id.
    pub client_id: String,
    /// File that holds the secret; read again when it changes.
    pub secret_file: String,
}

/// A federated service account. Where a field is left out, the variable that the workload identity webhook
/// sets is used.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadIdentityFile {
    /// The tenant; where left out, `AZURE_TENANT_ID`.
    #[serde(default)]
    pub tenant_id: Option<String>,
    /// The client id; where left out, `AZURE_CLIENT_ID`.
    #[serde(default)]
    pub client_id: Option<String>,
    /// File with the service account's token; where left out, `AZURE_FEDERATED_TOKEN_FILE`.
    #[serde(default)]
    pub token_file: Option<String>,
}

/// The identity of the machine that this program runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ManagedIdentityFile {
    /// Which of several user-assigned identities; where left out, the system-assigned one.
    #[serde(default)]
    pub client_id: Option<String>,
}

/// What one namespace may touch.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct NamespaceFile {
    /// Its name.
    pub name: String,
    /// Ids of subscriptions and resource groups. Those of two namespaces must not overlap.
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
    "system:serviceaccount:portcullis-system:portcullis".to_owned()
}

fn metrics_address() -> String {
    "0.0.0.0:8080".to_owned()
}

fn health_address() -> String {
    "0.0.0.0:8081".to_owned()
}
