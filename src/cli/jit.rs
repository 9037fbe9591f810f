//! `kubectl jit`: a plugin of kubectl for people who ask for access, and for people who decide.
//!
//! It uses the user's own kubeconfig and rights, and does nothing that plain kubectl could not: it makes up requests
//! and reviews, sends them, and says what the controller answers. It needs none of the rooms that touch the cloud.
//!
//! - [`request`], [`approve`], [`decide`], [`list`], [`describe`], [`complete`]: the commands
//! - [`values`], [`draft`], [`word`], [`stamp`]: from what was typed to what is sent
//! - [`cluster`], [`follow`]: the API server, and waiting for it
//! - [`view`], [`table`](super::table), [`output`], [`moments`], [`text`]: what is shown
//! - [`failure`]: what went wrong, and the exit codes

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};

use self::cluster::Access;
use self::failure::{Exit, Failure};
use self::text::plain;
use crate::api::Verdict;
use crate::telemetry;

mod approve;
mod cluster;
mod complete;
mod decide;
mod describe;
mod draft;
mod failure;
mod follow;
mod help;
mod list;
mod moments;
mod output;
mod request;
mod stamp;
pub(super) mod text;
mod values;
mod view;
mod word;

pub use help::reference;

/// Ask for network access to virtual machines, and decide on what others ask for.
#[derive(Debug, Parser)]
#[command(
    name = "kubectl-jit",
    bin_name = "kubectl jit",
    version = telemetry::version(),
    disable_help_subcommand = true,
    arg_required_else_help = true,
    after_help = help::exit_codes()
)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    access: Access,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Ask for access: for a source, to ports of machines, for a time.
    Request(Box<request::Arguments>),
    /// Approve a request: shows what would be opened, asks, and approves exactly that.
    Approve(approve::Arguments),
    /// Refuse a request that has not been granted; a denial is final.
    Deny(decide::Arguments),
    /// Close what a request has opened, as somebody who may approve it.
    Revoke(decide::Arguments),
    /// Withdraw an own request, or end its access early.
    End(decide::Arguments),
    /// List requests.
    List(list::Arguments),
    /// Show everything about a request: the plan, who may approve, why it waits, what to connect to.
    Describe(describe::Arguments),
    /// Print a script that completes kubectl-jit itself in a shell; `kubectl jit` is completed by kubectl's own.
    Completion {
        /// The shell.
        #[arg(value_enum)]
        shell: Shell,
    },
}

/// A shell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
    Powershell,
}

/// Runs the command that the arguments name; the exit code is one of those that the help lists.
#[must_use]
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let arguments: Vec<OsString> = arguments.collect();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ended(Err(Failure::error(format!("failed to start: {error}")))),
    };
    // What is being typed may be anything: no parser may stumble over it.
    if arguments.get(1).is_some_and(|word| word == "__complete") {
        let words: Vec<String> =
            arguments[2..].iter().map(|word| word.to_string_lossy().into_owned()).collect();
        // Nobody is left to be answered where standard output is closed.
        let _ = runtime.block_on(complete::run(&words, &mut std::io::stdout()));
        runtime.shutdown_background();
        return ExitCode::SUCCESS;
    }
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => {
            // The same.
            let _ = error.print();
            return ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(Exit::Usage as u8));
        }
    };
    let result = runtime.block_on(run(&cli, &mut std::io::stdout()));
    runtime.shutdown_background();
    ended(result)
}

async fn run(cli: &Cli, out: &mut dyn Write) -> Result<(), Failure> {
    let access = &cli.access;
    match &cli.command {
        Command::Request(arguments) => request::run(arguments, access, out).await,
        Command::Approve(arguments) => approve::run(arguments, access, out).await,
        Command::Deny(arguments) => decide::run(Verdict::Denied, arguments, access, out).await,
        Command::Revoke(arguments) => decide::run(Verdict::Revoked, arguments, access, out).await,
        Command::End(arguments) => decide::run(Verdict::Ended, arguments, access, out).await,
        Command::List(arguments) => list::run(arguments, access, out).await,
        Command::Describe(arguments) => describe::run(arguments, access, out).await,
        Command::Completion { shell } => {
            completion(*shell, out)?;
            Ok(())
        }
    }
}

fn completion(shell: Shell, out: &mut dyn Write) -> std::io::Result<()> {
    use clap_complete::shells::{Bash, Fish, PowerShell, Zsh};
    let mut command = Cli::command().bin_name("kubectl-jit");
    let mut script = Vec::new();
    match shell {
        Shell::Bash => clap_complete::generate(Bash, &mut command, "kubectl-jit", &mut script),
        Shell::Zsh => clap_complete::generate(Zsh, &mut command, "kubectl-jit", &mut script),
        Shell::Fish => clap_complete::generate(Fish, &mut command, "kubectl-jit", &mut script),
        Shell::Powershell => clap_complete::generate(PowerShell, &mut command, "kubectl-jit", &mut script),
    }
    out.write_all(&script)
}

fn ended(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::from(Exit::Ok as u8),
        Err(failure) => {
            if !failure.message.is_empty() {
                // Nothing is left to tell where standard error is closed.
                let _ = writeln!(std::io::stderr(), "{}", failure.message);
            }
            ExitCode::from(failure.exit as u8)
        }
    }
}

/// Tells the person in front of it something that is no result.
fn note(line: &str) {
    // The same.
    let _ = writeln!(std::io::stderr(), "{}", plain(line));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_of_the_command_line_holds() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_speaks_of_kubectl_jit_and_lists_the_exit_codes() {
        let mut command = Cli::command();
        command.build();
        let help = command.render_long_help().to_string();
        assert!(help.contains("Usage: kubectl jit"), "{help}");
        for (code, meaning) in Exit::ALL {
            assert!(help.contains(&format!("{}  {meaning}", code as u8)), "{meaning}: {help}");
        }
        let request = command.find_subcommand_mut("request").unwrap().render_help().to_string();
        assert!(request.contains("Usage: kubectl jit request [OPTIONS]"), "{request}");
    }

    #[test]
    fn what_is_typed_wrongly_names_its_flag() {
        let said = |line: &str| {
            let words = std::iter::once("kubectl-jit").chain(line.split_whitespace());
            let error = Cli::try_parse_from(words).expect_err(line);
            assert_eq!(error.exit_code(), Exit::Usage as i32, "{line}");
            error.to_string()
        };
        for (line, flag, hint) in [
            ("request web --for 1h --source me", "--source", "such as 203.0.113.7"),
            ("request web --for 1h", "--source", "required"),
            ("request web --source 192.0.2.1", "--for", "required"),
            ("request web --source 192.0.2.1 --for 3hours", "--for", "1h30m"),
            ("request web --source 192.0.2.1 --for 1h --port ssh", "--port", "such as 22"),
            ("request web --source 192.0.2.1 --for 1h --target A", "--target", "web/vm-7"),
            ("request web --source 192.0.2.1 --for 1h --not-before 18:00", "--not-before", "+2h"),
            (
                "request web --source 192.0.2.1 --for 1h --all-targets --target a",
                "--all-targets",
                "cannot be used",
            ),
            ("request web --source 192.0.2.1 --for 1h --timeout 5m", "--wait", "required"),
            ("approve", "<REQUEST>", "required"),
            ("approve A", "<REQUEST>", "disk-full"),
            ("list -A -n x", "--namespace", "cannot be used"),
            ("list --as-group x", "--as", "required"),
        ] {
            let error = said(line);
            assert!(error.contains(flag) && error.contains(hint), "{line}: {error}");
        }
    }

    #[test]
    fn every_shell_gets_a_script() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish, Shell::Powershell] {
            let mut out = Vec::new();
            completion(shell, &mut out).unwrap();
            let text = String::from_utf8(out).unwrap();
            assert!(text.contains("kubectl-jit") && text.contains("revoke"), "{shell:?}");
        }
    }
}
