//! Help, on the terminal and in the documentation.

use std::fmt::Write as _;

use clap::CommandFactory;

use super::Cli;
use super::failure::Exit;

/// The exit codes, as the help shows them.
#[must_use]
pub fn exit_codes() -> String {
    let lines: Vec<String> =
        Exit::ALL.iter().map(|(code, meaning)| format!("  {}  {meaning}", *code as u8)).collect();
    format!("Exit codes:\n{}", lines.join("\n"))
}

/// The generated part of `docs/kubectl-jit.md`: the exit codes, and the help of every command.
#[must_use]
pub fn reference() -> String {
    let mut text = String::from("## Exit codes\n\n| code | meaning |\n|---|---|\n");
    for (code, meaning) in Exit::ALL {
        // A String takes all.
        let _ = writeln!(text, "| {} | {meaning} |", code as u8);
    }
    let mut root = Cli::command();
    root.build();
    let names: Vec<String> = root.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    for name in names {
        if let Some(command) = root.find_subcommand_mut(&name) {
            let help = command.render_help().to_string();
            let help: Vec<&str> = help.lines().map(str::trim_end).collect();
            let _ = write!(text, "\n## kubectl jit {name}\n\n```text\n{}\n```\n", help.join("\n").trim_end());
        }
    }
    text
}
