//! `portcullis drain`: closes every grant, and lets go of all objects, before an uninstall.

use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;

use super::run::connect;
use crate::clock::Clock;
use crate::controllers::drain::{Drained, drain, resume};
use crate::telemetry::Metrics;

/// Arguments of `portcullis drain`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The controller's namespace, where its lease is.
    #[arg(short, long, value_name = "NAMESPACE", default_value = "portcullis-system")]
    namespace: String,
    /// The way to the API server; left out: that of the pod, or of the current context.
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// How long to wait until every grant is closed.
    #[arg(long, value_name = "SECONDS", default_value_t = 540)]
    timeout: u64,
    /// Undo: take policies out of the suspension, for an installation that is there again.
    #[arg(long)]
    undo: bool,
}

/// Drains, and says what it does.
///
/// # Errors
/// When a grant is still open in the end, or the API server refuses something.
pub fn run(arguments: &Arguments, out: &mut (impl Write + Send)) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Runtime::new().context("failed to start the runtime")?;
    let patience = Duration::from_secs(arguments.timeout);
    let clock = Clock::system();
    if arguments.undo {
        let resumed = runtime.block_on(async {
            let connection = connect(arguments.kubeconfig.as_ref(), &clock, &Metrics::new()).await?;
            anyhow::Ok(resume(&connection.client).await?)
        })?;
        writeln!(out, "{resumed} policies are suspended no more")?;
        return Ok(());
    }
    let Drained { closed, released } = runtime.block_on(async {
        let connection = connect(arguments.kubeconfig.as_ref(), &clock, &Metrics::new()).await?;
        let mut say = |line: String| {
            // Nobody may be listening any more; it goes on all the same.
            let _ = writeln!(out, "{line}");
        };
        anyhow::Ok(drain(&connection.client, &arguments.namespace, patience, &clock, &mut say).await?)
    })?;
    writeln!(
        out,
        "grants closed: {closed}; policies and requests that wait for no controller any more: {released}"
    )?;
    Ok(())
}
