//! `portcullis admission`: the admission policies.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

use crate::api::admission;

/// Arguments of `portcullis admission`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The user name under which the controller writes to the API server, `controllerUser` in its configuration.
    #[arg(long, value_name = "USER", default_value = admission::CONTROLLER_USER)]
    controller_user: String,
    /// Write this file instead.
    #[arg(long, value_name = "FILE")]
    output: Option<PathBuf>,
}

/// Prints or writes the policies and their bindings.
///
/// # Errors
/// When the user cannot be one, or the output cannot be written.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let text = admission::text(&arguments.controller_user)?;
    match &arguments.output {
        Some(path) => {
            std::fs::write(path, text).with_context(|| format!("failed to write {}", path.display()))
        }
        None => Ok(out.write_all(text.as_bytes())?),
    }
}
