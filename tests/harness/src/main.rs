//! `playground`: a real API server, an Azure simulator and a controller, to try things with.

mod playground;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use portcullis_harness::assets::Assets;
use portcullis_harness::tools::Tools;

/// A real API server, an Azure simulator and a controller, to try things with.
#[derive(Debug, Parser)]
#[command(name = "playground")]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds etcd, kube-apiserver, kube-controller-manager and kubectl unless they are there, and prints their folder.
    Assets,
    /// Builds Helm and what judges charts and alerts, unless they are there, and prints their folder.
    Tools,
    /// Starts everything and leaves it running; writes `env` into the folder.
    Up(playground::up::Arguments),
    /// Ends exactly what `up` started, and removes the folder.
    Down(playground::up::Arguments),
    /// Shows the main job with real commands, on a playground of its own that ends with it.
    Demo,
    /// Shows the same of a machine behind an Azure Firewall.
    DemoFirewall,
    /// Would a packet pass? Asks the simulator at SIMULATOR_URL, and exits with 3 when it would not.
    Probe(playground::probe::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Task::Assets => assets(),
        Task::Tools => tools(),
        Task::Up(arguments) => run(playground::up::up(arguments)),
        Task::Down(arguments) => playground::up::down(&arguments),
        Task::Demo => run(playground::demo::demo()),
        Task::DemoFirewall => run(playground::demo_firewall::demo_firewall()),
        Task::Probe(arguments) => run(playground::probe::probe(arguments)),
    };
    outcome.unwrap_or_else(|error| {
        // Nothing is left to tell if standard error is closed.
        let _ = writeln!(std::io::stderr(), "playground: {error:#}");
        ExitCode::FAILURE
    })
}

fn run(task: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build()?.block_on(task)
}

fn tools() -> anyhow::Result<ExitCode> {
    let tools = Tools::find_or_build(|line| {
        let _ = writeln!(std::io::stderr(), "{line}");
    })?;
    writeln!(std::io::stdout(), "{}", tools.path("").display())?;
    Ok(ExitCode::SUCCESS)
}

fn assets() -> anyhow::Result<ExitCode> {
    let assets = Assets::find_or_build(|line| {
        let _ = writeln!(std::io::stderr(), "{line}");
    })?;
    writeln!(std::io::stdout(), "{}", assets.folder().display())?;
    Ok(ExitCode::SUCCESS)
}
