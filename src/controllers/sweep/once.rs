//! One sweep by itself, without an API server: what is overdue by its own word is closed.
//!
//! Without the requests nobody can say whether an allow is somebody's; its deadline can be read by all. So what is not
//! overdue is left, and so is every deny. The clock is the cloud's: whoever sweeps may have a wrong one.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use jiff::{SignedDuration, Timestamp};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{AT_ONCE, Error, read};
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::controllers::gate::{GateSettings, Gates};
use crate::controllers::leader::Leadership;
use crate::plan::lifecycle::CLOCKS_APART;
use crate::plan::model::{Access, FirewallId, Observed, Provisioning};
use crate::plan::names::{Cluster, Mark, parse};
use crate::providers::Cloud;
use crate::telemetry::{Audit, Metrics};

/// How often it is looked whether everything is closed.
const LOOK: Duration = Duration::from_millis(200);

/// What to sweep.
pub struct Sweep<'a> {
    /// Whose rules are ours.
    pub cluster: Cluster,
    /// The scopes, each with the name of its credential.
    pub scopes: Vec<(ArmId, String)>,
    /// The clouds, by the name of the credential.
    pub clouds: &'a BTreeMap<String, Cloud>,
    /// Our own clock.
    pub clock: Clock,
}

/// What was found.
#[derive(Debug)]
pub struct Found {
    /// When, by the cloud's clock.
    pub at: Timestamp,
    /// By how much that is ahead of ours, as of the answer that differs most; none where no cloud says what time it is.
    pub ahead: Option<SignedDuration>,
    /// Each scope, and how many firewalls are in it, or why it could not be read.
    pub scopes: Vec<(ArmId, Result<usize, Error>)>,
    /// Allows of ours, in the order of their firewalls and names.
    pub allows: Vec<Allow>,
}

/// An allow of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allow {
    /// Where it stands.
    pub firewall: FirewallId,
    /// Its name.
    pub name: String,
    /// The first digits of the UID of its request; empty where only its description says whose it is.
    pub owner: String,
    /// When it dies; none where that cannot be read, which counts as overdue.
    pub deadline: Option<Timestamp>,
    /// The credential that it was read by.
    pub credential: String,
}

impl Allow {
    /// Whether it should be gone.
    #[must_use]
    pub fn is_overdue(&self, at: Timestamp) -> bool {
        self.deadline.is_none_or(|deadline| deadline <= at)
    }
}

impl Found {
    /// Whether the clocks are so far apart that one of them must be wrong.
    #[must_use]
    pub fn is_skewed(&self) -> bool {
        self.ahead.is_none_or(|ahead| ahead.unsigned_abs() > CLOCKS_APART)
    }

    /// What should be gone.
    pub fn overdue(&self) -> impl Iterator<Item = &Allow> {
        self.allows.iter().filter(|allow| allow.is_overdue(self.at))
    }
}

impl Sweep<'_> {
    /// Every firewall of every scope, once, each with the name of a credential that reaches it, and what could not be read.
    pub async fn read(&self) -> (Vec<(String, Observed)>, Vec<Error>) {
        let (mut firewalls, mut errors) = (BTreeMap::new(), Vec::new());
        for (_, credential, read) in self.read_scopes().await {
            match read {
                Ok(read) => {
                    for observed in read {
                        firewalls.entry(observed.firewall.clone()).or_insert((credential.clone(), observed));
                    }
                }
                Err(error) => errors.push(error),
            }
        }
        (firewalls.into_values().collect(), errors)
    }

    async fn read_scopes(&self) -> Vec<(ArmId, &String, Result<Vec<Observed>, Error>)> {
        let read = futures::stream::iter(&self.scopes).map(|(scope, credential)| async move {
            // Each credential of the configuration has its cloud.
            let read = match self.clouds.get(credential) {
                Some(cloud) => read(cloud, scope).await,
                None => Ok(Vec::new()),
            };
            (scope.clone(), credential, read)
        });
        read.buffered(AT_ONCE).collect().await
    }

    /// What there is of ours in all scopes.
    pub async fn find(&self) -> Found {
        let read = self.read_scopes().await;
        let ahead = self.clouds.values().filter_map(|cloud| cloud.inventory.clock_ahead());
        let ahead = ahead.max_by_key(|ahead| ahead.abs());
        let at = self.clock.ahead_by(ahead.unwrap_or_default()).now();
        let mut allows: BTreeMap<(FirewallId, String), Allow> = BTreeMap::new();
        let mut scopes = Vec::new();
        for (scope, credential, read) in read {
            let firewalls = read.map(|firewalls| {
                for allow in firewalls.iter().flat_map(|observed| self.ours(observed, credential)) {
                    // Scopes may share a firewall.
                    allows.entry((allow.firewall.clone(), allow.name.clone())).or_insert(allow);
                }
                firewalls.len()
            });
            scopes.push((scope, firewalls));
        }
        Found { at, ahead, scopes, allows: allows.into_values().collect() }
    }

    fn ours(&self, observed: &Observed, credential: &str) -> Vec<Allow> {
        let allows = observed.rules.iter().filter(|rule| rule.access == Access::Allow);
        allows
            .filter_map(|rule| match parse(&self.cluster, rule)? {
                Mark::Allow { owner, deadline } => Some(Allow {
                    firewall: observed.firewall.clone(),
                    name: rule.name.clone(),
                    owner,
                    deadline,
                    credential: credential.to_owned(),
                }),
                Mark::Deny { .. } | Mark::Exempt { .. } => None,
            })
            .collect()
    }

    /// Closes what is overdue, and waits until all of it was read back as gone, or until `patience` is over. What is left,
    /// with the reason.
    pub async fn close(&self, found: &Found, patience: Duration) -> Vec<(Allow, String)> {
        let clock = self.clock.ahead_by(found.ahead.unwrap_or_default());
        let (news, _news) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let settings = GateSettings {
            cluster: self.cluster.clone(),
            // Nothing is opened.
            honour_denies_below: 0,
            max_allows: 0,
            drift_interval: patience,
            dry_run: false,
            closes_only: true,
        };
        let leadership = Leadership::alone(clock.clone());
        let audit = Audit::off();
        let gates = Gates::new(settings, clock, Metrics::new(), audit, leadership, news, shutdown.clone());
        let mut due: BTreeMap<(&FirewallId, &String), BTreeSet<String>> = BTreeMap::new();
        for allow in found.overdue() {
            due.entry((&allow.firewall, &allow.credential)).or_default().insert(allow.name.clone());
        }
        for ((firewall, credential), names) in due {
            if let Some(cloud) = self.clouds.get(credential) {
                gates.close_orphans(firewall, credential, cloud, names);
            }
        }
        let until = Instant::now() + patience;
        let left = loop {
            let left: Vec<(Allow, String)> =
                found.overdue().filter_map(|allow| Some((allow.clone(), still(&gates, allow)?))).collect();
            if left.is_empty() || Instant::now() >= until {
                break left;
            }
            tokio::time::sleep(LOOK).await;
        };
        shutdown.cancel();
        // A write under way is not waited for: who asked has waited long enough.
        let _ = tokio::time::timeout(LOOK, gates.stopped()).await;
        left
    }
}

/// Why an allow does not count as gone yet.
fn still(gates: &Gates, allow: &Allow) -> Option<String> {
    let Some(report) = gates.report(&allow.firewall) else { return Some("not tried yet".to_owned()) };
    if report.gone {
        return None;
    }
    let stands = report.observed.is_none_or(|observed| {
        observed.provisioning != Provisioning::Succeeded
            || observed.rule(&allow.name).is_some_and(|rule| rule.access == Access::Allow)
    });
    match (report.error, stands) {
        (Some(error), true) => Some(error.to_string()),
        (None, true) => Some("it was not read back as gone".to_owned()),
        (_, false) => None,
    }
}
