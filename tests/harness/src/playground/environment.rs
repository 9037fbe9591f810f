//! What a shell needs to use a running stage: variables, kubeconfig, commands.

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::Context;
use portcullis_harness::install::{ARGOCD, NAMESPACE};
use portcullis_harness::{Stage, User, control_plane, plugin};

/// Variables by name, in the order of the file.
#[derive(Debug, Clone)]
pub(crate) struct Environment {
    pub(crate) variables: Vec<(&'static str, String)>,
    /// The folder with `kubectl`, `kubectl jit` and `playground`.
    pub(crate) commands: PathBuf,
}

impl Environment {
    /// Prepares `folder`: `kubeconfig` with a context for each user, `bin/`, and
    /// `env` to be sourced.
    pub(crate) async fn write(folder: &Path, stage: &Stage) -> anyhow::Result<Self> {
        let cloud = stage.simulator.announcement();
        let argocd = stage.plane.service_account_token(ARGOCD.0, ARGOCD.1, control_plane::LONG).await?;
        let mut contexts: Vec<_> =
            User::ALL.into_iter().map(|user| (user.name(), stage.plane.token(user))).collect();
        contexts.push(("argocd", &argocd));
        let kubeconfig = stage.plane.write_kubeconfig("playground", Some(NAMESPACE), &contexts)?;

        let commands = folder.join("bin");
        std::fs::create_dir_all(&commands)?;
        link(&stage.plane.assets().path("kubectl"), &commands.join("kubectl"))?;
        link(&std::env::current_exe()?, &commands.join("playground"))?;
        plugin::install(&commands)?;

        let variables = vec![
            ("KUBECONFIG", kubeconfig.display().to_string()),
            ("SIMULATOR_URL", cloud.url.clone()),
            ("SIMULATOR_TLS_URL", cloud.tls_url.clone()),
            ("SIMULATOR_CA", cloud.ca_file.display().to_string()),
            ("AZURE_TENANT_ID", cloud.tenant_id.clone()),
            ("AZURE_CLIENT_ID", cloud.client_id.clone()),
            ("AZURE_CLIENT_SECRET", cloud.client_secret.clone()),
            ("AZURE_SUBSCRIPTION_ID", cloud.subscription_id.clone()),
        ];
        let mut text: String =
            variables.iter().map(|(name, value)| format!("export {name}={}\n", quoted(value))).collect();
        text.push_str(&format!("export PATH={}:\"$PATH\"\n", quoted(&commands.display().to_string())));
        std::fs::write(folder.join("env"), text)?;
        Ok(Self { variables, commands })
    }
}

fn link(from: &Path, to: &Path) -> anyhow::Result<()> {
    symlink(from, to).with_context(|| format!("failed to link {} to {}", to.display(), from.display()))
}

/// A word of a POSIX shell.
fn quoted(value: &str) -> String {
    format!("'{}'", value.replace('\'', r"'\''"))
}
