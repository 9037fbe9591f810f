//! `portcullis run`: the controller.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use anyhow::Context;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::config::Config;
use super::{log_level, settings};
use crate::api::UserInfo;
use crate::clock::Clock;
use crate::controllers;
use crate::controllers::connection::{self, Connection};
use crate::providers::{Cloud, azure};
use crate::telemetry::audit::record::Started;
use crate::telemetry::log::{self, Format, Logging};
use crate::telemetry::traces::{Collector, Traces};
use crate::telemetry::{self, Audit, Health, Metrics, Server, Telemetry, health, metrics};

/// How long a stop may take. Kubernetes kills after 30 s by default.
const PATIENCE: Duration = Duration::from_secs(22);
/// How long the last audit records, and the last log lines, are waited for.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// Arguments of `portcullis run`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The configuration file (docs/configuration.md).
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// How to reach the API server. Left out: KUBECONFIG, the usual file, or the service account of the pod.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Plan and report, write nothing to the cloud. Also `dryRun` in the configuration.
    #[arg(long)]
    dry_run: bool,
    /// Which log lines are written: a level, or directives such as info,portcullis=debug. Wins over `logLevel` in the
    /// configuration, which can be changed while the program runs.
    #[arg(long, value_name = "FILTER", env = "RUST_LOG")]
    log_level: Option<String>,
    /// How log lines look.
    #[arg(long, value_name = "FORMAT", default_value = "json")]
    log_format: Format,
    /// Where /metrics is served, in place of `metricsAddress` in the configuration.
    #[arg(long, value_name = "ADDRESS")]
    metrics_address: Option<SocketAddr>,
    /// Where /healthz and /readyz are served, in place of `healthAddress` in the configuration.
    #[arg(long, value_name = "ADDRESS")]
    health_address: Option<SocketAddr>,
}

/// Runs the controller until it is told to stop (SIGTERM or SIGINT).
///
/// # Errors
/// When the configuration is wrong, an address is taken, or there is no way to the API server. A cloud or an
/// API server that does not answer is no error: it is tried again.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut config = Config::load(&arguments.config)?;
    let file = config.clone();
    config.dry_run |= arguments.dry_run;
    config.metrics_address = arguments.metrics_address.unwrap_or(config.metrics_address);
    config.health_address = arguments.health_address.unwrap_or(config.health_address);
    let measures = Metrics::new();
    let traces = config.otlp_endpoint.as_ref().map(|endpoint| {
        let collector = Collector {
            endpoint: endpoint.clone(),
            instance: instance(),
            cluster: config.cluster_id.clone(),
        };
        Traces::start(&collector)
    });
    let traces = traces.transpose()?;
    let filter = arguments.log_level.as_ref().unwrap_or(&config.log_level).clone();
    let logging = Logging { filter, format: arguments.log_format };
    let (lines, level) = log::init(&logging, traces.as_ref(), measures.log_lines_dropped())?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("failed to start the runtime")?;
    if arguments.log_level.is_none() {
        runtime.spawn(log_level::follow(arguments.config.clone(), file, level));
    }
    let result = runtime.block_on(serve(config, arguments.kubeconfig.as_ref(), measures));
    // Nothing is waited for any more: what should end well has ended in `serve`.
    runtime.shutdown_background();
    if let Some(traces) = traces {
        traces.finish(LAST_WORDS);
    }
    lines.finish(LAST_WORDS);
    result
}

/// The name of this replica.
fn instance() -> String {
    let name = |variable: &str| std::env::var(variable).ok().filter(|name| !name.is_empty());
    name("POD_NAME").or_else(|| name("HOSTNAME")).unwrap_or_default()
}

async fn serve(config: Config, kubeconfig: Option<&PathBuf>, measures: Metrics) -> anyhow::Result<()> {
    let clock = Clock::system();
    let shutdown = CancellationToken::new();
    stop_on_signals(&shutdown)?;
    let settings = settings::settings(&config)?;
    let clouds = clouds(&config, &clock)?;
    let api_server = connect(kubeconfig, &clock, &measures).await?;
    let ready = Health::new();
    let mut servers = JoinSet::new();
    for (name, address, router) in [
        ("metricsAddress", config.metrics_address, metrics::router(measures.clone())),
        ("healthAddress", config.health_address, health::router(ready.clone())),
    ] {
        servers.spawn(Server::bind(name, address, router).await?.run(shutdown.clone()));
    }
    tracing::info!(
        version = telemetry::VERSION,
        commit = telemetry::COMMIT,
        cluster.id = config.cluster_id,
        cloud.resource_manager = %config.cloud_endpoint,
        namespaces = config.namespaces.len(),
        dry_run = config.dry_run,
        "started"
    );
    tokio::spawn(check_user(api_server.client.clone(), config.controller_user.clone()));

    let audit = begin_audit(&config, &clock, &measures)?;
    let telemetry = Telemetry { metrics: measures, health: ready, audit: audit.clone() };
    let controller = controllers::run(api_server, settings, clouds, telemetry, clock, shutdown.clone());
    let late = async {
        shutdown.cancelled().await;
        tokio::time::sleep(PATIENCE).await;
    };
    let (mut controller, mut late) = (pin!(controller), pin!(late));
    let in_good_order = loop {
        tokio::select! {
            ended = &mut controller => {
                ended?;
                break true;
            }
            () = &mut late => {
                tracing::warn!(patience.seconds = PATIENCE.as_secs(), "stopping without waiting for what is under way");
                break false;
            }
            // At a stop the servers end first; writes under way are waited for all the same.
            Some(ended) = servers.join_next() => {
                ended.context("a server panicked")??;
                // A program that nobody can watch had better start again.
                anyhow::ensure!(shutdown.is_cancelled(), "a server ended by itself");
            }
        }
    };
    shutdown.cancel();
    // Writes that are still under way have an end that nobody records: then the chain has none either.
    if in_good_order {
        audit.end();
    }
    audit.flush(LAST_WORDS).await;
    tracing::info!("stopped");
    Ok(())
}

/// Begins the audit trail, on a handle of standard output that nothing else writes to and nothing buffers.
fn begin_audit(config: &Config, clock: &Clock, metrics: &Metrics) -> anyhow::Result<Audit> {
    let output = std::io::stdout().as_fd().try_clone_to_owned().context("failed to use standard output")?;
    let started = Started {
        cluster: config.cluster_id.as_str().into(),
        dry_run: config.dry_run,
        instance: instance().as_str().into(),
        version: telemetry::VERSION.into(),
    };
    Audit::start(File::from(output), started, clock.clone(), metrics.clone())
        .context("failed to start the audit trail")
}

/// Ends the program well on SIGTERM, which Kubernetes sends, and SIGINT, which a terminal sends.
fn stop_on_signals(shutdown: &CancellationToken) -> anyhow::Result<()> {
    for (kind, name) in [(SignalKind::terminate(), "SIGTERM"), (SignalKind::interrupt(), "SIGINT")] {
        let mut signals = signal(kind).with_context(|| format!("failed to listen for {name}"))?;
        let shutdown = shutdown.clone();
        tokio::spawn(async move {
            if signals.recv().await.is_some() {
                tracing::info!(signal = name, "stopping");
                shutdown.cancel();
            }
        });
    }
    Ok(())
}

/// A cloud for each credential.
pub(super) fn clouds(config: &Config, clock: &Clock) -> anyhow::Result<BTreeMap<String, Cloud>> {
    config
        .credentials
        .iter()
        .map(|credential| {
            let cloud = azure::build(&config.cloud, credential, clock.clone())?;
            Ok((credential.name.clone(), cloud))
        })
        .collect()
}

pub(super) async fn connect(
    kubeconfig: Option<&PathBuf>,
    clock: &Clock,
    metrics: &Metrics,
) -> anyhow::Result<Connection> {
    let config = match kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path)
                .with_context(|| format!("failed to read --kubeconfig {}", path.display()))?;
            kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
                .await
                .with_context(|| format!("--kubeconfig {} cannot be used", path.display()))?
        }
        None => kube::Config::infer()
            .await
            .context("found no way to the API server: give --kubeconfig FILE, or run as a pod")?,
    };
    connection::connect(config, clock, metrics).context("failed to set up the connection to the API server")
}

/// The admission policies let `controllerUser` alone write status. Whoever runs under another name had better
/// learn it here than from a thousand refused writes.
async fn check_user(client: Client, expected: String) {
    if let Ok(UserInfo { username: actual, .. }) = connection::whoami(&client).await
        && actual != expected
    {
        tracing::error!(
            user = actual,
            controller_user = expected,
            "this program is not the user that controllerUser names: the admission policies will refuse its \
             statuses; run it as that service account, or set controllerUser and the admission policies alike"
        );
    }
}
