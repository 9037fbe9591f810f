//! `playground`: the control plane and the world to try the product in.

use clap::{Parser, Subcommand};
use portcullis_harness::assets::Assets;

/// A real API server, an Azure simulator and a controller to try things with.
#[derive(Debug, Parser)]
struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Builds etcd, kube-apiserver, kube-controller-manager and kubectl unless they are there, and prints their folder.
    Assets,
}

#[allow(clippy::print_stdout, clippy::print_stderr)]
fn main() -> anyhow::Result<()> {
    match Arguments::parse().command {
        Task::Assets => {
            let assets = Assets::find_or_build(|line| eprintln!("{line}"))?;
            println!("{}", assets.folder().display());
        }
    }
    Ok(())
}
