//! `portcullis sweep`: closes what is overdue, with cloud credentials only.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use jiff::SignedDuration;
use serde::Serialize;

use super::config::Config;
use super::run::clouds;
use super::scopes::Scopes;
use super::table::Table;
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::controllers::sweep::once::{Allow, Found, Sweep};
use crate::plan::names::Cluster;
use crate::providers::Cloud;

/// Arguments of `portcullis sweep`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scopes: Scopes,
    /// Only say what is overdue.
    #[arg(long)]
    dry_run: bool,
    /// Go on though the clock of this machine and that of the cloud are more than 30 s apart. Deadlines are judged by the
    /// cloud's all the same.
    #[arg(long)]
    force: bool,
    /// How long to wait until everything is read back as gone. Writes of firewalls take minutes.
    #[arg(long, value_name = "SECONDS", default_value_t = 1200)]
    timeout: u64,
}

/// Exit codes, besides 1 and 2.
const OVERDUE: u8 = 3;
const INCOMPLETE: u8 = 4;

/// Sweeps. The exit code says whether anything overdue is left.
///
/// # Errors
/// When nothing could be swept: the configuration is wrong, no scope could be read, or the clocks are apart.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let config = arguments.scopes.config()?;
    let scopes = arguments.scopes.of(&config)?;
    let runtime = tokio::runtime::Runtime::new().context("failed to start the runtime")?;
    let (found, left) = runtime.block_on(async {
        let clock = Clock::system();
        let clouds = clouds(&config, &clock)?;
        sweep(arguments, &config, scopes, &clouds, clock).await
    })?;
    runtime.shutdown_background();
    let report = Report::new(&found, &left, arguments.dry_run);
    arguments.scopes.show(&report, Report::table, out)?;
    let unread = found.scopes.iter().any(|(_, read)| read.is_err());
    Ok(match (unread || !left.is_empty(), arguments.dry_run && found.overdue().next().is_some()) {
        (true, _) => ExitCode::from(INCOMPLETE),
        (false, true) => ExitCode::from(OVERDUE),
        (false, false) => ExitCode::SUCCESS,
    })
}

async fn sweep(
    arguments: &Arguments,
    config: &Config,
    scopes: Vec<(ArmId, String)>,
    clouds: &BTreeMap<String, Cloud>,
    clock: Clock,
) -> anyhow::Result<(Found, Vec<(Allow, String)>)> {
    let cluster = Cluster::new(&config.cluster_id, &config.previous_cluster_ids);
    let sweep = Sweep { cluster, scopes, clouds, clock };
    let found = sweep.find().await;
    if let Some((_, Err(error))) = found.scopes.iter().find(|(_, read)| read.is_err())
        && found.scopes.iter().all(|(_, read)| read.is_err())
    {
        bail!("no scope could be read: {error}");
    }
    if found.is_skewed() && !arguments.force {
        let apart = found.ahead.map_or_else(
            || "the cloud does not say what time it is".to_owned(),
            |ahead| format!("the cloud's clock is {} this machine's", apart(ahead)),
        );
        bail!("{apart}: set the clock of this machine, or give --force to go by the cloud's");
    }
    let patience = Duration::from_secs(arguments.timeout);
    let left = if arguments.dry_run { Vec::new() } else { sweep.close(&found, patience).await };
    Ok((found, left))
}

/// `95 s ahead of`, `95 s behind`.
fn apart(ahead: SignedDuration) -> String {
    let seconds = ahead.abs().as_secs();
    if ahead.is_negative() { format!("{seconds} s behind") } else { format!("{seconds} s ahead of") }
}

/// What was found and done, to be shown.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// By the cloud's clock.
    at: String,
    /// Seconds by which that is ahead of this machine's.
    cloud_ahead_seconds: Option<i64>,
    dry_run: bool,
    scopes: Vec<ScopeReport>,
    rules: Vec<RuleReport>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct ScopeReport {
    id: String,
    firewalls: Option<usize>,
    error: Option<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleReport {
    firewall: String,
    name: String,
    owner: String,
    deadline: Option<String>,
    /// `Live`, `Overdue` (and not closed), `Closed`.
    state: &'static str,
    error: Option<String>,
}

impl Report {
    fn new(found: &Found, left: &[(Allow, String)], dry_run: bool) -> Self {
        let rule = |allow: &Allow| {
            let error = left.iter().find(|(other, _)| other == allow).map(|(_, why)| why.clone());
            let state = match (allow.is_overdue(found.at), dry_run || error.is_some()) {
                (false, _) => "Live",
                (true, true) => "Overdue",
                (true, false) => "Closed",
            };
            RuleReport {
                firewall: allow.firewall.to_string(),
                name: allow.name.clone(),
                owner: allow.owner.clone(),
                deadline: allow.deadline.map(|at| at.to_string()),
                state,
                error,
            }
        };
        let scope = |(id, read): &(ArmId, Result<usize, crate::controllers::sweep::Error>)| ScopeReport {
            id: id.to_string(),
            firewalls: read.as_ref().ok().copied(),
            error: read.as_ref().err().map(ToString::to_string),
        };
        Self {
            at: found.at.to_string(),
            cloud_ahead_seconds: found.ahead.map(|ahead| ahead.as_secs()),
            dry_run,
            scopes: found.scopes.iter().map(scope).collect(),
            rules: found.allows.iter().map(rule).collect(),
        }
    }

    fn table(&self, out: &mut dyn Write) -> std::io::Result<()> {
        let shown: Vec<&RuleReport> = self.rules.iter().filter(|rule| rule.state != "Live").collect();
        if !shown.is_empty() {
            let mut table = Table::new(vec!["STATE", "DEADLINE", "RULE", "FIREWALL", "WHY"]);
            for rule in shown {
                let deadline = rule.deadline.clone().unwrap_or_else(|| "unreadable".to_owned());
                let why = rule.error.clone().unwrap_or_default();
                table.row([rule.state.to_owned(), deadline, rule.name.clone(), rule.firewall.clone(), why]);
            }
            table.write(out, "", true)?;
        }
        for scope in self.scopes.iter().filter(|scope| scope.error.is_some()) {
            writeln!(out, "not swept: {}", scope.error.as_deref().unwrap_or_default())?;
        }
        let count = |state: &str| self.rules.iter().filter(|rule| rule.state == state).count();
        let firewalls: usize = self.scopes.iter().filter_map(|scope| scope.firewalls).sum();
        let done = if self.dry_run { "nothing was written: " } else { "" };
        writeln!(
            out,
            "{done}{} overdue and left, {} closed, {} live; {firewalls} firewalls in {} scopes at {}",
            count("Overdue"),
            count("Closed"),
            count("Live"),
            self.scopes.len(),
            self.at
        )
    }
}
