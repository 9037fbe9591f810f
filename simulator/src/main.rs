//! `azure-simulator`: starts one instance and says where it is.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context;
use azure_simulator::{Options, Profile, Running, start};
use clap::Parser;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

/// Azure Resource Manager as a network controller sees it, with a packet oracle.
#[derive(Debug, Parser)]
#[command(version)]
struct Arguments {
    /// Where plain HTTP listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    http: SocketAddr,
    /// Where TLS listens; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    tls: SocketAddr,
    /// A name or address that the certificate is for, beside localhost; may be given several times.
    #[arg(long)]
    name: Vec<String>,
    /// Serve plain HTTP alone.
    #[arg(long)]
    no_tls: bool,
    /// Write the certificate authority here, as PEM. With --announce it goes beside that file when left out.
    #[arg(long)]
    ca_file: Option<PathBuf>,
    /// When ready, write addresses and credentials here as JSON, atomically.
    #[arg(long)]
    announce: Option<PathBuf>,
    /// The tenant's id; a new one when left out.
    #[arg(long)]
    tenant_id: Option<String>,
    /// The client id of the application that may do everything; a new one when left out.
    #[arg(long)]
    client_id: Option<String>,
    /// Its secret; a new one when left out.
    #[arg(long)]
    client_secret: Option<String>,
    /// A subscription; may be given several times, and is new when left out.
    #[arg(long)]
    subscription: Vec<String>,
    /// How long operations take: fast or realistic.
    #[arg(long, default_value = "fast")]
    latency: Profile,
    /// Retry-After of long-running operations in seconds; -1 sends none.
    #[arg(long, default_value_t = 1, allow_negative_numbers = true)]
    retry_after: i64,
    /// Seed of the latencies that are drawn.
    #[arg(long, default_value_t = 0)]
    random_seed: u64,
    /// A world to begin with: a document as `POST /_sim/world` takes it.
    #[arg(long)]
    seed: Option<PathBuf>,
}

impl Arguments {
    fn ca_file(&self) -> Option<PathBuf> {
        if self.no_tls {
            return None;
        }
        self.ca_file.clone().or_else(|| self.announce.as_ref().map(|a| a.with_extension("ca.pem")))
    }

    fn options(&self) -> Options {
        let mut options = Options {
            http: self.http,
            tls: (!self.no_tls).then_some(self.tls),
            names: self.name.clone(),
            latency: self.latency,
            retry_after: u64::try_from(self.retry_after).ok(),
            seed: self.random_seed,
            ..Options::default()
        };
        let set = |to: &mut String, from: &Option<String>| {
            if let Some(value) = from {
                to.clone_from(value);
            }
        };
        set(&mut options.tenant_id, &self.tenant_id);
        set(&mut options.client_id, &self.client_id);
        set(&mut options.client_secret, &self.client_secret);
        if !self.subscription.is_empty() {
            options.subscriptions.clone_from(&self.subscription);
        }
        options
    }
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let seed = match &arguments.seed {
        Some(path) => Some(
            std::fs::read_to_string(path)
                .with_context(|| format!("--seed: cannot read {}", path.display()))?,
        ),
        None => None,
    };
    let mut terminated = signal(SignalKind::terminate())?;
    let running = start(arguments.options()).await?;
    if let Some(seed) = seed {
        running.build_world(&seed).context("--seed")?;
    }
    let ca_file = arguments.ca_file();
    if let Some(path) = &ca_file {
        replace(path, &running.ca_pem)
            .with_context(|| format!("--ca-file: cannot write {}", path.display()))?;
    }
    tracing::info!(http.url = %running.url, tls.url = running.tls_url.as_deref().unwrap_or("none"), "ready");
    if let Some(path) = &arguments.announce {
        replace(path, &announcement(&running, ca_file.as_deref()))
            .with_context(|| format!("--announce: cannot write {}", path.display()))?;
    }
    tokio::select! {
        _ = terminated.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
    }
    tracing::info!("stopping");
    running.stop().await;
    Ok(())
}

fn announcement(running: &Running, ca_file: Option<&Path>) -> String {
    let options = &running.options;
    let ca_file = ca_file.map(|p| std::path::absolute(p).unwrap_or_else(|_| p.to_owned()));
    let document = json!({
        "url": running.url, "tlsUrl": running.tls_url, "caFile": ca_file, "pid": std::process::id(),
        "tenantId": options.tenant_id, "clientId": options.client_id, "clientSecret": options.client_secret,
        "subscriptionId": running.subscription(), "subscriptions": options.subscriptions,
    });
    format!("{document:#}\n")
}

/// Writes a file so that nobody ever sees half of it.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let partial = path.with_file_name(name);
    std::fs::write(&partial, text)?;
    std::fs::rename(&partial, path)
}
