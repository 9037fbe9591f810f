//! Entry point of the one binary: parse, dispatch, exit code.

use std::process::ExitCode;

use clap::Parser;
use portcullis::cli::Cli;

fn main() -> ExitCode {
    portcullis::cli::main(Cli::parse())
}
