//! Starting the programs of the control plane, with certificates, keys and ports of their own.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use base64::Engine;
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair};

use super::{ControlPlane, User, users, write_private};
use crate::assets::Assets;
use crate::process::{Lifetime, Process};
use crate::scratch::Scratch;

/// How long the API server may take to come up: 2 s on an idle machine, much longer on a busy one.
const PATIENCE: Duration = Duration::from_secs(90);
/// The controllers that the product's objects need.
const CONTROLLERS: &str = "namespace-controller,garbage-collector-controller,serviceaccount-controller,\
    clusterrole-aggregation-controller,validatingadmissionpolicy-status-controller,\
    root-ca-certificate-publisher-controller";

/// What to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// With kube-controller-manager: namespaces can be deleted, objects are garbage-collected, roles aggregated.
    pub controller_manager: bool,
    /// Where data, logs and kubeconfig files go; left out: a temporary folder.
    pub folder: Option<PathBuf>,
    /// Does it end with this process?
    pub lifetime: Lifetime,
    /// More arguments for kube-apiserver.
    pub apiserver_arguments: Vec<String>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            controller_manager: false,
            folder: None,
            lifetime: Lifetime::Leashed,
            apiserver_arguments: Vec::new(),
        }
    }
}

/// What a start needs, and a restart needs again.
#[derive(Debug, Clone)]
pub(super) struct Plan {
    pub(super) assets: Assets,
    folder: PathBuf,
    etcd: u16,
    peer: u16,
    secure: u16,
    options: Options,
}

pub(super) async fn start(options: Options) -> anyhow::Result<ControlPlane> {
    let assets = tokio::task::spawn_blocking(|| Assets::find_or_build(say)).await??;
    if options.controller_manager && !assets.has_controller_manager() {
        bail!(
            "{} has no kube-controller-manager (folders of setup-envtest lack it): unset KUBEBUILDER_ASSETS to have \
             it built",
            assets.folder().display()
        );
    }
    // Somebody else may take a port between the choice and the use of it: then others are tried.
    let mut last = None;
    for _ in 0..3 {
        match attempt(&assets, &options).await {
            Ok(running) => return Ok(running),
            Err(error) if format!("{error:#}").contains("address already in use") => last = Some(error),
            Err(error) => return Err(error),
        }
    }
    Err(last.unwrap_or_else(|| anyhow::anyhow!("no free ports")))
}

/// The one line that tests print: building takes minutes, and silence looks like a hang.
#[allow(clippy::print_stderr)]
fn say(line: &str) {
    eprintln!("control plane: {line}");
}

async fn attempt(assets: &Assets, options: &Options) -> anyhow::Result<ControlPlane> {
    let scratch = Scratch::new(options.folder.as_deref())?;
    let folder = scratch.path().to_owned();
    for name in ["etcd", "certs", "logs", "kubeconfig", "home"] {
        std::fs::create_dir_all(folder.join(name))?;
    }
    let tokens: Vec<_> = User::ALL.into_iter().map(|user| (user, random_token())).collect();
    write_private(&folder.join("users.csv"), &users::token_file(&tokens))?;
    let (private, public) = signing_key()?;
    write_private(&folder.join("service-accounts.key"), &private)?;
    write_private(&folder.join("service-accounts.pub"), &public)?;
    let [etcd, peer, secure] = crate::ports::free()?;
    let plan =
        Plan { assets: assets.clone(), folder: folder.clone(), etcd, peer, secure, options: options.clone() };

    let mut processes = vec![start_etcd(&plan)?, start_apiserver(&plan)?];
    let certificate_authority = folder.join("certs/apiserver.crt");
    let server = format!("https://127.0.0.1:{secure}");
    let client = wait_ready(&mut processes, &server, &certificate_authority, admin_token(&tokens)?).await?;
    let mut running = ControlPlane {
        processes,
        plan: plan.clone(),
        folder,
        server,
        certificate_authority,
        tokens,
        client,
        _scratch: scratch,
    };
    if options.controller_manager {
        let kubeconfig = running.kubeconfig(User::Admin)?;
        running.processes.push(start_controller_manager(&plan, &kubeconfig)?);
    }
    Ok(running)
}

/// `meanwhile` hears where etcd's data are, while nobody uses them.
pub(super) async fn restart(
    running: &mut ControlPlane,
    meanwhile: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    // Dropping kills: the controller manager (last) first, etcd last.
    while let Some(mut process) = running.processes.pop() {
        process.kill();
    }
    let plan = running.plan.clone();
    meanwhile(&data(&plan))?;
    running.processes.push(start_etcd(&plan)?);
    running.processes.push(start_apiserver(&plan)?);
    let token = running.token(User::Admin).to_owned();
    wait_ready(&mut running.processes, &running.server, &running.certificate_authority, &token).await?;
    if plan.options.controller_manager {
        let kubeconfig = running.kubeconfig(User::Admin)?;
        running.processes.push(start_controller_manager(&plan, &kubeconfig)?);
    }
    Ok(())
}

fn spawn(plan: &Plan, name: &str, arguments: &[String]) -> anyhow::Result<Process> {
    let mut command = Command::new(plan.assets.path(name));
    // Memory is there, processors are few: collecting less often takes a good part of the load away.
    command.env("GOGC", "400");
    command.args(arguments).env_remove("KUBECONFIG").env("HOME", plan.folder.join("home"));
    Process::spawn(
        name,
        &command,
        &plan.folder.join("logs").join(format!("{name}.log")),
        &plan.options.lifetime,
    )
}

fn data(plan: &Plan) -> PathBuf {
    plan.folder.join("etcd")
}

fn start_etcd(plan: &Plan) -> anyhow::Result<Process> {
    let client = format!("http://127.0.0.1:{}", plan.etcd);
    let peer = format!("http://127.0.0.1:{}", plan.peer);
    let data = data(plan);
    spawn(
        plan,
        "etcd",
        &[
            format!("--data-dir={}", data.display()),
            format!("--listen-client-urls={client}"),
            format!("--advertise-client-urls={client}"),
            format!("--listen-peer-urls={peer}"),
            format!("--initial-advertise-peer-urls={peer}"),
            format!("--initial-cluster=default={peer}"),
            "--unsafe-no-fsync".to_owned(),
            "--log-level=warn".to_owned(),
        ],
    )
}

fn start_apiserver(plan: &Plan) -> anyhow::Result<Process> {
    let folder = plan.folder.display();
    let mut arguments = vec![
        format!("--etcd-servers=http://127.0.0.1:{}", plan.etcd),
        format!("--secure-port={}", plan.secure),
        "--bind-address=127.0.0.1".to_owned(),
        "--advertise-address=127.0.0.1".to_owned(),
        // Nothing reaches the API server through a Service here, and loopback is no address for one.
        "--endpoint-reconciler-type=none".to_owned(),
        format!("--cert-dir={folder}/certs"),
        "--service-account-issuer=https://kubernetes.default.svc".to_owned(),
        format!("--service-account-key-file={folder}/service-accounts.pub"),
        format!("--service-account-signing-key-file={folder}/service-accounts.key"),
        "--authorization-mode=RBAC".to_owned(),
        format!("--token-auth-file={folder}/users.csv"),
        "--service-cluster-ip-range=10.0.0.0/24".to_owned(),
    ];
    arguments.extend(plan.options.apiserver_arguments.iter().cloned());
    spawn(plan, "kube-apiserver", &arguments)
}

fn start_controller_manager(plan: &Plan, kubeconfig: &Path) -> anyhow::Result<Process> {
    let folder = plan.folder.display();
    spawn(
        plan,
        "kube-controller-manager",
        &[
            format!("--kubeconfig={}", kubeconfig.display()),
            format!("--service-account-private-key-file={folder}/service-accounts.key"),
            format!("--root-ca-file={folder}/certs/apiserver.crt"),
            format!("--controllers={CONTROLLERS}"),
            "--use-service-account-credentials=true".to_owned(),
            "--leader-elect=false".to_owned(),
            // 0: it serves nothing itself.
            "--secure-port=0".to_owned(),
        ],
    )
}

/// Waits until the API server is ready, and returns a client that trusts it.
async fn wait_ready(
    processes: &mut [Process],
    server: &str,
    certificate_authority: &Path,
    token: &str,
) -> anyhow::Result<reqwest::Client> {
    let begun = Instant::now();
    let mut client = None;
    loop {
        for process in processes.iter_mut() {
            if let Some(status) = process.ended()? {
                bail!("the control plane did not start ({status})\n{}", process.log_tail());
            }
        }
        if client.is_none() {
            client = std::fs::read(certificate_authority).ok().and_then(|pem| trusting(&pem, 0).ok());
        }
        let ready = match &client {
            Some(client) => client
                .get(format!("{server}/readyz"))
                .bearer_auth(token)
                .timeout(Duration::from_secs(5))
                .send()
                .await
                .is_ok_and(|answer| answer.status().is_success()),
            None => false,
        };
        if let (true, Some(client)) = (ready, client.take_if(|_| ready)) {
            return Ok(client);
        }
        if begun.elapsed() > PATIENCE {
            let tails: Vec<_> = processes.iter().map(Process::log_tail).collect();
            bail!("the API server was not ready within {PATIENCE:?}\n{}", tails.join("\n"));
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

/// An HTTP client that trusts the given certificate authority and no other, and keeps so many idle connections: 0 where
/// several runtimes use it, since a connection ends with the runtime that opened it.
pub(crate) fn trusting(pem: &[u8], idle: usize) -> anyhow::Result<reqwest::Client> {
    // Fails when another part of the program has installed it: the same one, then.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let roots = reqwest::Certificate::from_pem_bundle(pem)?;
    anyhow::ensure!(!roots.is_empty(), "no certificate in the file");
    Ok(reqwest::Client::builder().tls_certs_only(roots).no_proxy().pool_max_idle_per_host(idle).build()?)
}

fn admin_token(tokens: &[(User, String)]) -> anyhow::Result<&str> {
    tokens.iter().find(|(user, _)| *user == User::Admin).map(|(_, token)| token.as_str()).context("no admin")
}

fn random_token() -> String {
    rand::random::<[u8; 16]>().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A key pair for service account tokens, as PEM: the private and the public half.
fn signing_key() -> anyhow::Result<(String, String)> {
    /// What stands before the point in the public key of a P-256 pair (RFC 5480).
    const PUBLIC_KEY_HEADER: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    let random = ring::rand::SystemRandom::new();
    let failed = |what: &str| anyhow::anyhow!("failed to make a key: {what}");
    let private = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)
        .map_err(|error| failed(&error.to_string()))?;
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, private.as_ref(), &random)
        .map_err(|error| failed(&error.to_string()))?;
    let public = [&PUBLIC_KEY_HEADER, pair.public_key().as_ref()].concat();
    Ok((pem("PRIVATE KEY", private.as_ref()), pem("PUBLIC KEY", &public)))
}

fn pem(label: &str, bytes: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(bytes);
    let mut lines = String::new();
    for (index, character) in text.chars().enumerate() {
        if index % 64 == 0 {
            lines.push('\n');
        }
        lines.push(character);
    }
    format!("-----BEGIN {label}-----{lines}\n-----END {label}-----\n")
}
