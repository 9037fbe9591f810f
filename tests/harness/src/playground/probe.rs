//! `probe`: would a packet pass?

use std::process::ExitCode;

use anyhow::Context;
use portcullis_harness::simulator::Verdict;
use serde_json::{Value, json};

use super::Narrator;

/// What to ask.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where the packet comes from.
    source: String,
    /// Any address of the world, public or private.
    destination: String,
    /// The port it goes to.
    port: u16,
    /// Tcp or Udp.
    #[arg(long, default_value = "Tcp")]
    protocol: String,
    /// The simulator.
    #[arg(long, env = "SIMULATOR_URL")]
    simulator: String,
}

/// The exit code when the packet would not pass.
const BLOCKED: u8 = 3;

pub(crate) async fn probe(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let Arguments { source, destination, port, protocol, simulator } = arguments;
    let _ = rustls::crypto::ring::default_provider().install_default();
    let url = format!("{}/_sim/probe", simulator.trim_end_matches('/'));
    let question = json!({"source": source, "destination": destination, "port": port, "protocol": protocol});
    let client = reqwest::Client::builder().no_proxy().build()?;
    let answer = client.post(&url).json(&question).send().await.with_context(|| format!("POST {url}"))?;
    let status = answer.status();
    let text = answer.text().await?;
    anyhow::ensure!(status.is_success(), "POST {url}: {status}: {text}");
    let verdict: Verdict = serde_json::from_str(&text).with_context(|| format!("not a verdict: {text}"))?;
    let word = if verdict.allowed { "PASSES" } else { "BLOCKED" };
    let deciders: Vec<_> = verdict.decided_by.iter().map(decider).collect();
    Narrator::new().print(&format!(
        "{source} -> {destination}:{port}/{protocol}: {word}, by {}",
        if deciders.is_empty() { "default".to_owned() } else { deciders.join(", then ") }
    ));
    Ok(if verdict.allowed { ExitCode::SUCCESS } else { ExitCode::from(BLOCKED) })
}

/// `web-1/allow-ssh-from-internet`: the last part of the resource's id, and the rule.
fn decider(entry: &Value) -> String {
    let part = |name: &str| entry.get(name).and_then(Value::as_str).unwrap_or("?");
    let resource = part("resource");
    format!("{}/{}", resource.rsplit('/').next().unwrap_or(resource), part("rule"))
}
