//! The command line.
//!
//! The highest room: it may use all the others. Each command is a module that reads its arguments, does its
//! work through the rooms below, and says what went wrong in a sentence that a person can act on.

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod admission;
mod adopt;
mod audit;
pub mod config;
mod config_check;
mod crds;
pub mod docs;
mod drain;
pub mod jit;
mod log_level;
mod run;
mod scopes;
mod settings;
mod sweep;
mod table;

use crate::telemetry;

/// Just-in-time network access to virtual machines, as a Kubernetes controller.
#[derive(Debug, Parser)]
#[command(name = "portcullis", version = telemetry::version(), propagate_version = true, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the controller.
    Run(run::Arguments),
    /// Close what is overdue, with cloud credentials only: the cluster may be gone.
    ///
    /// Allows of this cluster whose deadline is past, or cannot be read, are removed and read back as gone; nothing else is
    /// written, and no deny is removed. Exit codes: 0 nothing overdue is left; 1 nothing could be swept; 2 wrong usage;
    /// 3 a dry run found something overdue; 4 something overdue is left, or a scope could not be read.
    Sweep(sweep::Arguments),
    /// Rewrite the locks of previous cluster ids under the present one.
    ///
    /// For a cluster that was built anew under another id. Each rule is written under its new name, beside the old one, read
    /// back, and only then is the old one removed: no packet fares otherwise meanwhile. Exit codes: 0 nothing of a previous
    /// id is left; 1 nothing could be read; 2 wrong usage; 3 a dry run found something to adopt; 4 something is left, or a
    /// scope could not be read.
    Adopt(adopt::Arguments),
    /// Close every grant and let go of all objects, before an uninstall.
    ///
    /// Policies are suspended, and the controller, which has to be running, closes what is open. Then the finalizers are taken
    /// off policies and requests, so that they can be deleted without it. Locks stay. `--undo` takes the policies out of the
    /// suspension again.
    Drain(drain::Arguments),
    /// Print the custom resource definitions, or write them as files.
    Crds(crds::Arguments),
    /// Print the admission policies, or write them to a file.
    Admission(admission::Arguments),
    /// Look at the audit trail.
    Audit(audit::Arguments),
    /// Look at a configuration file.
    Config(config_check::Arguments),
    /// Bring the generated parts of the documentation up to date.
    #[command(hide = true)]
    Docs(docs::Arguments),
}

/// Runs the command; the exit code is 0 where it succeeded and 1 where it did not, with the reason on
/// standard error. `audit verify`, `sweep` and `adopt` have more of them.
#[must_use]
pub fn main(cli: Cli) -> ExitCode {
    // Before anything that may open a connection: the libraries find the provider by this global.
    // An error means that one is installed already, which is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = |()| ExitCode::SUCCESS;
    let result = match cli.command {
        Command::Run(arguments) => run::run(&arguments).map(done),
        Command::Sweep(arguments) => sweep::run(&arguments, &mut std::io::stdout().lock()),
        Command::Adopt(arguments) => adopt::run(&arguments, &mut std::io::stdout().lock()),
        Command::Drain(arguments) => drain::run(&arguments, &mut std::io::stdout()).map(done),
        Command::Crds(arguments) => crds::run(&arguments, &mut std::io::stdout().lock()).map(done),
        Command::Admission(arguments) => admission::run(&arguments, &mut std::io::stdout().lock()).map(done),
        Command::Docs(arguments) => docs::run(&arguments, &mut std::io::stdout().lock()).map(done),
        Command::Audit(arguments) => audit::run(&arguments, &mut std::io::stdout().lock()),
        Command::Config(arguments) => config_check::run(&arguments, &mut std::io::stdout().lock()).map(done),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            // Nothing is left to tell if standard error is closed.
            let _ = writeln!(std::io::stderr(), "portcullis: {error:#}");
            ExitCode::FAILURE
        }
    }
}
