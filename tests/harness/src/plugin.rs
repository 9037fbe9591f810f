//! `kubectl jit`, as users install it: both of its files in a folder on PATH.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;

/// Puts the plugin and what completes it into a folder.
///
/// # Errors
/// When the plugin is not built, or the folder cannot be written.
pub fn install(folder: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(folder)?;
    let script = crate::checkout().join("deploy/kubectl-jit/kubectl_complete-jit");
    link(&crate::program("kubectl-jit", "KUBECTL_JIT")?, &folder.join("kubectl-jit"))?;
    link(&script, &folder.join("kubectl_complete-jit"))
}

/// The value of PATH with a folder before everything else.
///
/// # Errors
/// When the folder's name cannot stand in PATH.
pub fn path_with(folder: &Path) -> anyhow::Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path)).collect();
    Ok(std::env::join_paths(folders)?)
}

fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    match symlink(from, to) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(error).with_context(|| format!("failed to link {} to {}", to.display(), from.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}
