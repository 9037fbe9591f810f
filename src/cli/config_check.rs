//! `portcullis config check`: is the configuration right?

use std::io::Write;
use std::path::PathBuf;

use super::config::Config;

/// Arguments of `portcullis config`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Subcommand)]
enum Command {
    /// Read the configuration, and say what is wrong with it or how it was understood.
    Check {
        /// The configuration file.
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

/// Reads the file and sums it up.
///
/// # Errors
/// When the file cannot be read or says what cannot be.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let Command::Check { config: path } = &arguments.command;
    let config = Config::load(path)?;
    writeln!(out, "{} is right: cluster {}, {}", path.display(), config.cluster_id, config.cloud_endpoint)?;
    for namespace in &config.namespaces {
        writeln!(out, "namespace {} may touch, as {}:", namespace.name, namespace.credential)?;
        for scope in &namespace.scopes {
            writeln!(out, "  {scope}")?;
        }
    }
    if config.namespaces.is_empty() {
        writeln!(out, "no namespace may touch anything: policies will be Stalled with ScopeNotAllowed")?;
    }
    Ok(())
}
