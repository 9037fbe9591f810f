//! `portcullis crds`: the custom resource definitions.

use std::io::Write;
use std::path::PathBuf;

use anyhow::Context;

use crate::api::crds;

/// Arguments of `portcullis crds`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Write one file for each definition into this folder instead, named <plural>.<group>.yaml.
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
}

/// Prints or writes the definitions.
///
/// # Errors
/// When the output cannot be written.
pub fn run(arguments: &Arguments, out: &mut impl Write) -> anyhow::Result<()> {
    let Some(dir) = &arguments.output_dir else {
        for (_, yaml) in crds::files()? {
            write!(out, "---\n{yaml}")?;
        }
        return Ok(());
    };
    std::fs::create_dir_all(dir).with_context(|| format!("failed to create {}", dir.display()))?;
    for (name, yaml) in crds::files()? {
        let path = dir.join(name);
        std::fs::write(&path, yaml).with_context(|| format!("failed to write {}", path.display()))?;
    }
    Ok(())
}
