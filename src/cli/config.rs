//! The configuration file of `portcullis run`: read strictly, judged whole, every complaint with the path of
//! its field and what would be right.

use std::fmt;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use url::Url;

use crate::api::values::{ArmId, Cidr, Span};
use crate::api::{ExemptSource, admission};
use crate::providers::azure::{CloudConfig, CredentialConfig};
use crate::telemetry::log;

mod file;

pub use file::File;

/// What the file says, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Who this cluster is, in the names of its rules.
    pub cluster_id: String,
    /// Ids that it had before.
    pub previous_cluster_ids: Vec<String>,
    /// Which Azure.
    pub cloud: CloudConfig,
    /// Where that is, for messages.
    pub cloud_endpoint: String,
    /// Identities to act with.
    pub credentials: Vec<CredentialConfig>,
    /// What each namespace may touch, and with which identity.
    pub namespaces: Vec<Namespace>,
    /// What policies may exempt from their locks.
    pub allowed_exempt_sources: Vec<ExemptSource>,
    /// Users that count as pipelines, beside every service account.
    pub pipeline_users: Vec<String>,
    /// How often each firewall is looked at when nothing else calls for it.
    pub drift_interval: Duration,
    /// How often overdue and orphaned rules are looked for.
    pub sweep_interval: Duration,
    /// How often the addresses of machines with live grants are read again.
    pub address_interval: Duration,
    /// How often the machines of a policy are read again.
    pub inventory_interval: Duration,
    /// How long settled requests and their reviews are kept.
    pub request_retention: Duration,
    /// Denies of others below this priority number count as deliberate.
    pub honour_denies_below: u16,
    /// The most allows of ours that a firewall may hold.
    pub max_allows_per_firewall: usize,
    /// Reconciles at the same time, for each kind.
    pub concurrency: u16,
    /// Plan and report, write nothing to the cloud.
    pub dry_run: bool,
    /// The user name under which this program writes to the API server.
    pub controller_user: String,
    /// How long the admission policies have to have been in force before what is created counts.
    pub admission_margin: Duration,
    /// For how long a write that was begun before a restart or take-over may still land.
    pub unfinished_writes: Duration,
    /// Which log lines are written.
    pub log_level: String,
    /// Where traces are sent to.
    pub otlp_endpoint: Option<Url>,
    /// Where `/metrics` is served.
    pub metrics_address: SocketAddr,
    /// Where `/healthz` and `/readyz` are served.
    pub health_address: SocketAddr,
}

/// What one namespace may touch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespace {
    /// Its name.
    pub name: String,
    /// Subscriptions, resource groups and virtual machines.
    pub scopes: Vec<ArmId>,
    /// Name of the credential to act with there.
    pub credential: String,
}

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("failed to read the configuration {path}")]
    Read {
        /// Its path.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// It is not YAML of this shape.
    #[error("the configuration does not have the right form: {0}")]
    Form(String),
    /// Fields say what cannot be.
    #[error("the configuration has {}:{}", count(.0.len()), lines(.0))]
    Content(Vec<Problem>),
}

/// What is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field, such as `namespaces[0].scopes[1]`.
    pub path: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.path, self.message)
    }
}

fn count(problems: usize) -> String {
    if problems == 1 { "a mistake".to_owned() } else { format!("{problems} mistakes") }
}

fn lines(problems: &[Problem]) -> String {
    problems.iter().map(|problem| format!("\n  {problem}")).collect()
}

impl Config {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error`].
    pub fn load(path: &Path) -> Result<Self, Error> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Read { path: path.display().to_string(), source })?;
        Self::parse(&text)
    }

    /// Reads a text.
    ///
    /// # Errors
    /// [`Error::Form`] and [`Error::Content`].
    pub fn parse(text: &str) -> Result<Self, Error> {
        Self::check(serde_yaml_ng::from_str(text).map_err(|error| Error::Form(error.to_string()))?)
    }

    /// Judges every field and gives all complaints at once.
    ///
    /// # Errors
    /// [`Error::Content`].
    pub fn check(file: File) -> Result<Self, Error> {
        let mut judge = Judge::default();
        let intervals = Intervals::check(&file, &mut judge);
        judge.cluster_ids(&file);
        judge.credentials(&file);
        let cloud_endpoint = judge.cloud(&file);
        let namespaces = judge.namespaces(&file);
        let allowed_exempt_sources = judge.exempt_sources(&file);
        for (index, user) in file.pipeline_users.iter().enumerate() {
            judge.require(
                !user.trim().is_empty(),
                format!("pipelineUsers[{index}]"),
                "must be the name of a user, as the API server knows it",
            );
        }
        judge.range("honourDeniesBelow", file.honour_denies_below, 100, 4097);
        judge.range("maxAllowsPerFirewall", file.max_allows_per_firewall, 1, 900);
        judge.range("concurrency", file.concurrency, 1, 256);
        if let Err(error) = admission::text(&file.controller_user) {
            judge.complain("controllerUser", error.to_string());
        }
        if let Err(error) = log::filter(&file.log_level) {
            judge.complain("logLevel", error.to_string());
        }
        let otlp_endpoint =
            file.otlp_endpoint.as_deref().and_then(|text| judge.web_address("otlpEndpoint", text));
        let metrics_address = judge.address("metricsAddress", &file.metrics_address);
        let health_address = judge.address("healthAddress", &file.health_address);
        judge.finish()?;
        Ok(Self {
            cluster_id: file.cluster_id,
            previous_cluster_ids: file.previous_cluster_ids,
            cloud: file.cloud,
            cloud_endpoint,
            credentials: file.credentials,
            namespaces,
            allowed_exempt_sources,
            pipeline_users: file.pipeline_users,
            drift_interval: intervals.drift,
            sweep_interval: intervals.sweep,
            address_interval: intervals.address,
            inventory_interval: intervals.inventory,
            request_retention: intervals.retention,
            honour_denies_below: file.honour_denies_below,
            max_allows_per_firewall: usize::from(file.max_allows_per_firewall),
            concurrency: file.concurrency,
            dry_run: file.dry_run,
            controller_user: file.controller_user,
            admission_margin: intervals.margin,
            unfinished_writes: intervals.unfinished,
            log_level: file.log_level,
            otlp_endpoint,
            metrics_address,
            health_address,
        })
    }
}

/// The lengths of time.
struct Intervals {
    drift: Duration,
    sweep: Duration,
    address: Duration,
    inventory: Duration,
    retention: Duration,
    margin: Duration,
    unfinished: Duration,
}

impl Intervals {
    fn check(file: &File, judge: &mut Judge) -> Self {
        Self {
            drift: judge.interval("driftInterval", &file.drift_interval),
            // The sweep is what closes a rule that nobody remembers: its period is part of the bound that
            // the docs state.
            sweep: judge.interval("sweepInterval", &file.sweep_interval),
            address: judge.interval("addressInterval", &file.address_interval),
            inventory: judge.interval("inventoryInterval", &file.inventory_interval),
            retention: judge.duration(
                "requestRetention",
                &file.request_retention,
                Duration::from_secs(60),
                Duration::from_secs(10 * 366 * 86_400),
            ),
            // Objects are dated in whole seconds: with less, one could be older than its date says.
            margin: judge.duration(
                "admissionMargin",
                &file.admission_margin,
                Duration::from_secs(1),
                Duration::from_secs(600),
            ),
            unfinished: judge.duration(
                "unfinishedWrites",
                &file.unfinished_writes,
                Duration::from_secs(1),
                Duration::from_secs(3600),
            ),
        }
    }
}

/// Collects complaints.
#[derive(Default)]
struct Judge(Vec<Problem>);

impl Judge {
    fn complain(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(Problem { path: path.into(), message: message.into() });
    }

    fn require(&mut self, holds: bool, path: impl Into<String>, message: impl Into<String>) {
        if !holds {
            self.complain(path, message);
        }
    }

    fn finish(self) -> Result<(), Error> {
        if self.0.is_empty() { Ok(()) } else { Err(Error::Content(self.0)) }
    }

    fn range(&mut self, path: &str, value: u16, least: u16, most: u16) {
        self.require(
            (least..=most).contains(&value),
            path,
            format!("{value} is out of range: it must be from {least} to {most}"),
        );
    }

    fn interval(&mut self, path: &str, text: &str) -> Duration {
        self.duration(path, text, Duration::from_secs(1), Duration::from_secs(86_400))
    }

    fn duration(&mut self, path: &str, text: &str, least: Duration, most: Duration) -> Duration {
        match Span::from(text).at_least(least) {
            Ok(duration) if duration <= most => return duration,
            Ok(_) => self.complain(path, format!("{text:?} is too long: at most {}", Span::of(most))),
            Err(error) => self.complain(path, error.to_string()),
        }
        least
    }

    fn address(&mut self, path: &str, text: &str) -> SocketAddr {
        text.parse().unwrap_or_else(|_| {
            self.complain(
                path,
                format!("{text:?} is no address and port such as 0.0.0.0:8080 or [::1]:8080"),
            );
            SocketAddr::from(([127, 0, 0, 1], 0))
        })
    }

    fn web_address(&mut self, path: &str, text: &str) -> Option<Url> {
        let url =
            Url::parse(text).ok().filter(|url| matches!(url.scheme(), "http" | "https") && url.has_host());
        if url.is_none() {
            self.complain(path, format!("{text:?} is no URL such as http://collector.observability:4318"));
        }
        url
    }

    fn cluster_ids(&mut self, file: &File) {
        let form = "must have from 1 to 63 letters, digits, dots, underscores or hyphens, such as prod-weu-1";
        let ids = std::iter::once(("clusterId".to_owned(), &file.cluster_id)).chain(
            file.previous_cluster_ids
                .iter()
                .enumerate()
                .map(|(index, id)| (format!("previousClusterIds[{index}]"), id)),
        );
        let mut seen: Vec<&str> = Vec::new();
        for (path, id) in ids {
            let fits = (1..=63).contains(&id.len())
                && id.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c));
            self.require(fits, path.clone(), format!("{id:?} {form}"));
            self.require(
                !seen.contains(&id.as_str()),
                path.clone(),
                format!("{id:?} is named before: name each id once"),
            );
            // What deploy/base says until somebody chooses: two clusters that kept it would close each other's rules.
            self.require(
                !id.starts_with("REPLACE-ME"),
                path,
                "is still the placeholder: choose a name that no other cluster has, such as prod-weu-1",
            );
            seen.push(id);
        }
    }

    fn cloud(&mut self, file: &File) -> String {
        match file.cloud.endpoints() {
            Ok(endpoints) => return endpoints.resource_manager.to_string(),
            Err(error) => self.complain(error.field, error.message),
        }
        String::new()
    }

    fn credentials(&mut self, file: &File) {
        // What the environment has where the program runs is judged there: a file may be checked elsewhere.
        let environment = |name: &str| match name {
            "AZURE_TENANT_ID" | "AZURE_CLIENT_ID" => Some("11111111-2222-3333-4444-555555555555".to_owned()),
            "AZURE_FEDERATED_TOKEN_FILE" => Some("token".to_owned()),
            _ => None,
        };
        for (index, credential) in file.credentials.iter().enumerate() {
            if let Err(error) = credential.check(&environment) {
                let own = format!("credentials[{}]", credential.name);
                self.complain(error.field.replacen(&own, &format!("credentials[{index}]"), 1), error.message);
            }
            self.require(
                file.credentials[..index].iter().all(|other| other.name != credential.name),
                format!("credentials[{index}].name"),
                format!("{:?} is named before: give each credential a name of its own", credential.name),
            );
        }
    }

    fn exempt_sources(&mut self, file: &File) -> Vec<ExemptSource> {
        let mut sources = Vec::new();
        for (index, source) in file.allowed_exempt_sources.iter().enumerate() {
            let path = format!("allowedExemptSources[{index}]");
            match (&source.cidr, &source.service_tag) {
                (Some(cidr), None) => {
                    if let Err(error) = Cidr::from(cidr.as_str()).network() {
                        self.complain(format!("{path}.cidr"), error.to_string());
                    }
                }
                (None, Some(tag)) => self.require(
                    tag.starts_with(|c: char| c.is_ascii_alphabetic())
                        && tag.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'.'),
                    format!("{path}.serviceTag"),
                    format!("{tag:?} is no service tag such as AzureLoadBalancer or Storage.WestEurope"),
                ),
                (None, None) | (Some(_), Some(_)) => {
                    self.complain(path, "must have exactly one of cidr and serviceTag");
                }
            }
            sources.push(ExemptSource {
                cidr: source.cidr.as_deref().map(Cidr::from),
                service_tag: source.service_tag.clone(),
            });
        }
        sources
    }

    fn namespaces(&mut self, file: &File) -> Vec<Namespace> {
        let mut found: Vec<Namespace> = Vec::new();
        // Every scope so far: its path in the file, whose it is, and the scope.
        let mut taken: Vec<(String, String, ArmId)> = Vec::new();
        for (index, namespace) in file.namespaces.iter().enumerate() {
            let path = format!("namespaces[{index}]");
            self.require(
                is_label(&namespace.name),
                format!("{path}.name"),
                format!("{:?} is no name of a namespace: at most 63 of a-z, 0-9 and -", namespace.name),
            );
            self.require(
                found.iter().all(|other| other.name != namespace.name),
                format!("{path}.name"),
                format!("{:?} is named before: put all its scopes into one entry", namespace.name),
            );
            self.require(
                file.credentials.iter().any(|credential| credential.name == namespace.credential),
                format!("{path}.credential"),
                format!("{:?} is none of the names in credentials", namespace.credential),
            );
            self.require(
                !namespace.scopes.is_empty(),
                format!("{path}.scopes"),
                "must name at least one subscription, resource group or virtual machine",
            );
            let mut scopes = Vec::new();
            for (index, text) in namespace.scopes.iter().enumerate() {
                let path = format!("{path}.scopes[{index}]");
                match ArmId::parse(text) {
                    Ok(id) if id.resource_type().is_some() && !id.is_virtual_machine() => self.complain(
                        path,
                        format!(
                            "{text:?} is no scope: it must be the id of a subscription, a resource group or a \
                             virtual machine"
                        ),
                    ),
                    Ok(id) => {
                        self.overlap(&path, &namespace.name, &id, &taken);
                        taken.push((path, namespace.name.clone(), id.clone()));
                        scopes.push(id);
                    }
                    Err(error) => self.complain(path, error.to_string()),
                }
            }
            found.push(Namespace {
                name: namespace.name.clone(),
                scopes,
                credential: namespace.credential.clone(),
            });
        }
        found
    }

    /// Two namespaces that may touch the same machine would undo each other's locks.
    fn overlap(&mut self, path: &str, namespace: &str, id: &ArmId, taken: &[(String, String, ArmId)]) {
        for (other_path, other, other_id) in taken {
            if id.contains(other_id) || other_id.contains(id) {
                self.complain(
                    path,
                    format!(
                        "{id} of namespace {namespace} overlaps {other_id} of namespace {other} ({other_path}): \
                         a machine must belong to one namespace, and each scope be named once"
                    ),
                );
            }
        }
    }
}

fn is_label(name: &str) -> bool {
    (1..=63).contains(&name.len())
        && name.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-')
}

#[cfg(test)]
mod tests;
