//! `portcullis adopt`: locks that a cluster made under an earlier id, under its present one.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use super::run::clouds;
use super::scopes::Scopes;
use super::table::Table;
use crate::clock::Clock;
use crate::controllers::sweep::once::Sweep;
use crate::plan::adoption::{self, Step};
use crate::plan::model::{FirewallId, Provisioning};
use crate::plan::names::Cluster;
use crate::providers::{Change, Cloud};

/// How long one write may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often a write is read back until it is in force.
const LOOKS: usize = 30;
const LOOK: Duration = Duration::from_secs(1);

/// Arguments of `portcullis adopt`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(flatten)]
    scopes: Scopes,
    /// Only say what would be adopted.
    #[arg(long)]
    dry_run: bool,
}

const TO_DO: u8 = 3;
const INCOMPLETE: u8 = 4;

/// Adopts. The exit code says whether anything of a previous id is left.
///
/// # Errors
/// When the configuration is wrong or no scope could be read.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let config = arguments.scopes.config()?;
    if config.previous_cluster_ids.is_empty() {
        bail!("previousClusterIds of the configuration is empty: name the ids whose locks are to be adopted");
    }
    let scopes = arguments.scopes.of(&config)?;
    let runtime = tokio::runtime::Runtime::new().context("failed to start the runtime")?;
    let report = runtime.block_on(async {
        let clock = Clock::system();
        let clouds = clouds(&config, &clock)?;
        let cluster = Cluster::new(&config.cluster_id, &config.previous_cluster_ids);
        let sweep = Sweep { cluster, scopes, clouds: &clouds, clock };
        adopt(&sweep, &clouds, arguments.dry_run).await
    })?;
    runtime.shutdown_background();
    arguments.scopes.show(&report, Report::table, out)?;
    let any = |state: &str| report.rules.iter().any(|rule| rule.state == state);
    Ok(match (!report.errors.is_empty() || any("Left"), any("ToAdopt")) {
        (true, _) => ExitCode::from(INCOMPLETE),
        (false, true) => ExitCode::from(TO_DO),
        (false, false) => ExitCode::SUCCESS,
    })
}

async fn adopt(sweep: &Sweep<'_>, clouds: &BTreeMap<String, Cloud>, dry_run: bool) -> anyhow::Result<Report> {
    let mut report = Report { dry_run, ..Report::default() };
    let (firewalls, errors) = sweep.read().await;
    if firewalls.is_empty()
        && let Some(error) = errors.first()
    {
        bail!("no scope could be read: {error}");
    }
    report.errors = errors.iter().map(ToString::to_string).collect();
    for (credential, observed) in firewalls {
        let Some(cloud) = clouds.get(&credential) else { continue };
        // What leads packets on holds no locks.
        if observed.firewall.kind().translates() {
            continue;
        }
        let most = cloud.firewall.limits(&observed.firewall).rules;
        for adopted in adoption::plan(&observed, &sweep.cluster, most) {
            let mut rule = RuleReport {
                firewall: observed.firewall.to_string(),
                name: adopted.name,
                new_name: None,
                state: if dry_run { "ToAdopt" } else { "Adopted" },
                error: None,
            };
            match adopted.outcome {
                Err(why) => (rule.state, rule.error) = ("Left", Some(why.to_owned())),
                Ok((name, steps)) => {
                    rule.new_name = Some(name);
                    if !dry_run && let Err(error) = take(cloud, &observed.firewall, &steps).await {
                        (rule.state, rule.error) = ("Left", Some(format!("{error:#}")));
                    }
                }
            }
            report.rules.push(rule);
        }
    }
    Ok(report)
}

/// Makes the steps; what was written is read back before what it stands for is removed.
async fn take(cloud: &Cloud, firewall: &FirewallId, steps: &[Step]) -> anyhow::Result<()> {
    for step in steps {
        match step {
            Step::Put(twin) => {
                cloud.firewall.write(firewall, &[Change::Put(twin.clone())], PATIENCE).await?;
                let mut looks = 0;
                loop {
                    let read = cloud.firewall.observe(firewall).await?;
                    let stands = read.provisioning == Provisioning::Succeeded
                        && read.rule(&twin.name).is_some_and(|rule| {
                            rule.same_effect(twin)
                                && rule.priority == twin.priority
                                && rule.provisioning == Provisioning::Succeeded
                        });
                    looks += 1;
                    match stands {
                        true => break,
                        false if looks == LOOKS => bail!("{} was written and is not in force", twin.name),
                        false => tokio::time::sleep(LOOK).await,
                    }
                }
            }
            Step::Remove(name) => {
                cloud.firewall.write(firewall, &[Change::Unlock(name.clone())], PATIENCE).await?;
            }
        }
    }
    Ok(())
}

/// What was done, to be shown.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    dry_run: bool,
    rules: Vec<RuleReport>,
    errors: Vec<String>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct RuleReport {
    firewall: String,
    name: String,
    new_name: Option<String>,
    /// `Adopted`, `ToAdopt` (a dry run) or `Left`.
    state: &'static str,
    error: Option<String>,
}

impl Report {
    fn table(&self, out: &mut dyn Write) -> std::io::Result<()> {
        if !self.rules.is_empty() {
            let mut table = Table::new(vec!["STATE", "RULE", "NOW", "FIREWALL", "WHY"]);
            for rule in &self.rules {
                table.row([
                    rule.state.to_owned(),
                    rule.name.clone(),
                    rule.new_name.clone().unwrap_or_default(),
                    rule.firewall.clone(),
                    rule.error.clone().unwrap_or_default(),
                ]);
            }
            table.write(out, "", true)?;
        }
        for error in &self.errors {
            writeln!(out, "not read: {error}")?;
        }
        let count = |state: &str| self.rules.iter().filter(|rule| rule.state == state).count();
        let to_do = if self.dry_run { format!("{} to adopt, ", count("ToAdopt")) } else { String::new() };
        writeln!(out, "{to_do}{} adopted, {} left", count("Adopted"), count("Left"))
    }
}
