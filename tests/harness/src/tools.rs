//! Helm, and what judges charts, manifests and alerts: built once from the Go module in `tests/tools/`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::Context;

use crate::assets::{cache, digest, go_build, once};

/// The tools.
#[derive(Debug, Clone)]
pub struct Tools {
    folder: PathBuf,
}

impl Tools {
    /// Finds them, or builds them; `say` hears what is being done and how long it takes.
    ///
    /// # Errors
    /// When Go is missing or too old, or the build fails.
    pub fn find_or_build(say: impl Fn(&str)) -> anyhow::Result<Self> {
        let module = crate::checkout().join("tests/tools");
        let digest = digest(&[module.join("go.mod"), module.join("go.sum")])?;
        let home = cache()?.join(format!("tools-{digest}"));
        let folder = once(&home, &say, |folder| {
            say(&format!(
                "building helm, helm-unittest, helm-docs, kubeconform and promtool once, into {}: 3 to 6 minutes on 2 cores",
                folder.display()
            ));
            go_build(&module, &home, folder, "-s -w", "tool", &say)
        })?;
        Ok(Self { folder })
    }

    /// The path of one of them.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs one of them in a folder.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn run(&self, folder: &Path, name: &str, arguments: &[&str]) -> anyhow::Result<Output> {
        Command::new(self.path(name))
            .current_dir(folder)
            .env_remove("KUBECONFIG")
            .env("HELM_NO_PLUGINS", "1")
            .args(arguments)
            .output()
            .with_context(|| format!("failed to run {name}"))
    }
}
