//! etcd, kube-apiserver and optionally kube-controller-manager, on free loopback ports, with several real users.

mod kubectl;
mod start;
mod users;

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

pub use kubectl::{Kubectl, Output};
pub use start::Options;
pub use users::User;

use crate::assets::Assets;
use crate::process::Process;
use crate::scratch::Scratch;

/// The validity of tokens in kubeconfig files: nobody renews them, and a playground may stand for weeks.
pub const LONG: Duration = Duration::from_secs(30 * 24 * 3600);

/// A running control plane. Dropping it ends its processes and removes its folder.
#[derive(Debug)]
pub struct ControlPlane {
    // Before the folder: fields are dropped in this order, and the programs must end before their files go.
    processes: Vec<Process>,
    plan: start::Plan,
    folder: PathBuf,
    server: String,
    certificate_authority: PathBuf,
    tokens: Vec<(User, String)>,
    client: reqwest::Client,
    _scratch: Scratch,
}

impl ControlPlane {
    /// Starts it and returns when the API server says that it is ready, in about two seconds.
    ///
    /// # Errors
    /// When a program is missing and cannot be built, or does not come up; the message holds the end of its log.
    pub async fn start(options: Options) -> anyhow::Result<Self> {
        start::start(options).await
    }

    /// The API server's address, `https://127.0.0.1:port`.
    #[must_use]
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The file with the certificate authority of the API server.
    #[must_use]
    pub fn certificate_authority(&self) -> &Path {
        &self.certificate_authority
    }

    /// The programs it was started from.
    #[must_use]
    pub const fn assets(&self) -> &Assets {
        &self.plan.assets
    }

    /// The folder with logs, certificates and kubeconfig files.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A kubeconfig file for `user` with one context of the user's name.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn kubeconfig(&self, user: User) -> anyhow::Result<PathBuf> {
        self.write_kubeconfig(user.name(), None, &[(user.name(), self.token(user))])
    }

    /// A kubeconfig file named `name`, with one context for each pair of context name and bearer token; the first one
    /// is current. Commands that name no namespace are about `namespace`, or else about `default`.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn write_kubeconfig(
        &self,
        name: &str,
        namespace: Option<&str>,
        contexts: &[(&str, &str)],
    ) -> anyhow::Result<PathBuf> {
        let first = contexts.first().context("a kubeconfig needs at least one context")?.0;
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "portcullis", "cluster": {
                "server": self.server, "certificate-authority": self.certificate_authority,
            }}],
            "users": contexts.iter().map(|(name, token)| json!({"name": name, "user": {"token": token}}))
                .collect::<Vec<_>>(),
            "contexts": contexts.iter().map(|(name, _)| json!({"name": name, "context": {
                "cluster": "portcullis", "user": name, "namespace": namespace.unwrap_or("default"),
            }})).collect::<Vec<_>>(),
            "current-context": first,
        });
        let path = self.folder.join("kubeconfig").join(format!("{name}.yaml"));
        // JSON is YAML, and needs no other writer.
        write_private(&path, &serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }

    /// The bearer token of `user`.
    #[must_use]
    pub fn token(&self, user: User) -> &str {
        self.tokens.iter().find(|(known, _)| *known == user).map_or("", |(_, token)| token)
    }

    /// A bearer token of a service account by TokenRequest, valid for `validity` (at least 10 minutes).
    ///
    /// # Errors
    /// When the service account does not exist.
    pub async fn service_account_token(
        &self,
        namespace: &str,
        name: &str,
        validity: Duration,
    ) -> anyhow::Result<String> {
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{name}/token");
        let body = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": [], "expirationSeconds": validity.as_secs()},
        });
        let answer = self.request(reqwest::Method::POST, &path, Some(&body)).await?;
        answer
            .pointer("/status/token")
            .and_then(Value::as_str)
            .map(str::to_owned)
            .with_context(|| format!("no token for service account {namespace}/{name}: {answer}"))
    }

    /// A kubeconfig file for a service account, with a token of 30 days.
    ///
    /// # Errors
    /// When the service account does not exist or the file cannot be written.
    pub async fn service_account_kubeconfig(&self, namespace: &str, name: &str) -> anyhow::Result<PathBuf> {
        let token = self.service_account_token(namespace, name, LONG).await?;
        self.write_kubeconfig(&format!("{namespace}-{name}"), None, &[(name, &token)])
    }

    /// kubectl as `user`.
    ///
    /// # Errors
    /// When the kubeconfig file cannot be written.
    pub fn kubectl(&self, user: User) -> anyhow::Result<Kubectl> {
        Ok(self.kubectl_with(&self.kubeconfig(user)?))
    }

    /// kubectl with a kubeconfig file.
    #[must_use]
    pub fn kubectl_with(&self, kubeconfig: &Path) -> Kubectl {
        Kubectl::new(self.plan.assets.path("kubectl"), kubeconfig.to_owned(), self.folder.join("home"))
    }

    /// One request to the API server as `system:masters`, without kubectl's start-up time.
    ///
    /// # Errors
    /// When the server cannot be reached or answers with an error; the message is the server's own.
    pub async fn request(
        &self,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        self.send(self.call(method, path), body).await
    }

    /// As [`ControlPlane::request`], as somebody whom `system:masters` impersonates.
    ///
    /// # Errors
    /// As there.
    pub async fn request_as(
        &self,
        username: &str,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let request = self.call(method, path);
        self.send(request.header("Impersonate-User", username), body).await
    }

    /// As [`ControlPlane::request`], by one of the users.
    ///
    /// # Errors
    /// As there.
    pub async fn request_by(
        &self,
        user: User,
        method: reqwest::Method,
        path: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        self.send_by(user, self.call(method, path), body).await
    }

    fn call(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        let merges = method == reqwest::Method::PATCH;
        let request = self.client.request(method, format!("{}{path}", self.server));
        if merges { request.header("content-type", "application/merge-patch+json") } else { request }
    }

    async fn send(&self, request: reqwest::RequestBuilder, body: Option<&Value>) -> anyhow::Result<Value> {
        self.send_by(User::Admin, request, body).await
    }

    async fn send_by(
        &self,
        user: User,
        request: reqwest::RequestBuilder,
        body: Option<&Value>,
    ) -> anyhow::Result<Value> {
        let mut request = request.bearer_auth(self.token(user));
        if let Some(body) = body {
            request = request.json(body);
        }
        let request = request.build()?;
        let what =
            format!("{} {}", request.method(), request.url().as_str().trim_start_matches(&self.server));
        let answer = self.client.execute(request).await.with_context(|| what.clone())?;
        let status = answer.status();
        let text = answer.text().await?;
        anyhow::ensure!(status.is_success(), "{what}: {status}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Forgets the connections of [`ControlPlane::request`] and keeps those to come, which is faster, and of use to one
    /// runtime only: a connection ends with the runtime that opened it.
    ///
    /// # Errors
    /// When the certificate authority cannot be read.
    pub fn reconnect(&mut self) -> anyhow::Result<()> {
        self.client = start::trusting(&std::fs::read(&self.certificate_authority)?, 1)?;
        Ok(())
    }

    /// One object of the product's kinds, by kubectl's name of it (`jitreq/mine`), as `system:masters`; none where it is
    /// not there. For polling: a kubectl a time costs more than what is waited for.
    ///
    /// # Errors
    /// When the kind is not one of the product's, the server cannot be reached or answers with another error.
    pub async fn object(&self, namespace: &str, object: &str) -> anyhow::Result<Option<Value>> {
        let (kind, name) = object.split_once('/').context("an object is kind/name")?;
        let plural = match kind {
            "jitpol" | "jitpolicy" => "jitpolicies",
            "jitreq" | "jitaccessrequest" => "jitaccessrequests",
            "jitrev" | "jitaccessreview" => "jitaccessreviews",
            other => anyhow::bail!("{other} is no kind of the product"),
        };
        let path = format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{namespace}/{plural}/{name}");
        match self.request(reqwest::Method::GET, &path, None).await {
            Ok(found) => Ok(Some(found)),
            Err(error) if error.to_string().contains(": 404 Not Found: ") => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Process ids of the running parts, by name.
    #[must_use]
    pub fn process_ids(&self) -> Vec<u32> {
        self.processes.iter().map(Process::id).collect()
    }

    /// Kills the API server and etcd at once, as a power cut would, and starts them again on the same data and ports.
    ///
    /// # Errors
    /// When they do not come up again.
    pub async fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        start::restart(self, |_| Ok(())).await
    }

    /// Keeps a copy of all that etcd holds now. Everything is down for as long as that takes.
    ///
    /// # Errors
    /// When the copy cannot be made, or they do not come up again.
    pub async fn back_up(&mut self) -> anyhow::Result<Backup> {
        let folder = self.folder.join(format!("backup-{:08x}", rand::random::<u32>()));
        let backup = Backup { folder };
        start::restart(self, |data| copy_folder(data, &backup.folder)).await?;
        Ok(backup)
    }

    /// Puts a copy back, as an administrator restores a cluster: what was written since then never happened.
    ///
    /// # Errors
    /// When the copy cannot be put back, or they do not come up again.
    pub async fn restore(&mut self, backup: &Backup) -> anyhow::Result<()> {
        start::restart(self, |data| {
            std::fs::remove_dir_all(data)?;
            copy_folder(&backup.folder, data)
        })
        .await
    }

    /// Lets the processes live on. The folder stays.
    ///
    /// # Errors
    /// When one of them has ended already.
    pub fn release(self) -> anyhow::Result<()> {
        self.processes.into_iter().try_for_each(Process::release)
    }
}

/// What etcd held at some moment. It goes with the control plane's folder.
#[derive(Debug, Clone)]
pub struct Backup {
    folder: PathBuf,
}

fn copy_folder(from: &Path, to: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // etcd wants its folders to itself.
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(to)
        .with_context(|| format!("failed to create {}", to.display()))?;
    for entry in std::fs::read_dir(from)? {
        let (entry, to) = entry.map(|entry| (entry.path(), to.join(entry.file_name())))?;
        if entry.is_dir() {
            copy_folder(&entry, &to)?;
        } else {
            std::fs::copy(&entry, &to).with_context(|| format!("failed to copy {}", entry.display()))?;
        }
    }
    Ok(())
}

/// Writes a file that only its owner can read.
///
/// # Errors
/// When it cannot be written.
pub fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    use std::io::Write;
    use std::os::unix::fs::OpenOptionsExt;
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    // Aside and renamed: a program that is just reading it sees one whole file.
    let aside = path.with_extension(format!("{:08x}", rand::random::<u32>()));
    let mut file = std::fs::File::options().create_new(true).write(true).mode(0o600).open(&aside)?;
    file.write_all(text.as_bytes())?;
    std::fs::rename(&aside, path).with_context(|| format!("failed to write {}", path.display()))
}
