//! Entry point of the kubectl plugin: everything is in the room `cli`.

use std::process::ExitCode;

fn main() -> ExitCode {
    portcullis::cli::jit::main(std::env::args_os())
}
