//! The program under test, started as users start it: `portcullis run --config FILE --kubeconfig FILE`.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, write_private};
use crate::install::{CONTROLLER, NAMESPACE};
use crate::process::{Lifetime, Outputs, Process};
use crate::simulator::Simulator;
use crate::wait::eventually;

/// How long a graceful stop may take: what the program promises, and a little.
const STOP: Duration = Duration::from_secs(35);

/// What a controller is started with. Change `config` and `arguments` before the start, or between two starts.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The configuration file's content.
    pub config: Value,
    /// More arguments for `portcullis run`.
    pub arguments: Vec<String>,
    /// More environment variables.
    pub environment: Vec<(OsString, OsString)>,
    /// The kubeconfig that it uses.
    pub kubeconfig: PathBuf,
    /// Where configuration, secret and log go. Its name is that of the pod: one that is started again is the same
    /// pod's.
    pub folder: PathBuf,
    /// Where its standard output goes; left out: into the log.
    pub stdout: Option<Arc<OwnedFd>>,
    /// Where its standard error goes; left out: into the log.
    pub stderr: Option<Arc<OwnedFd>>,
    /// Does it end with this process?
    pub lifetime: Lifetime,
    /// Where it answers `/healthz` and `/readyz`.
    pub probes: String,
    /// Where it answers `/metrics`.
    pub metrics: String,
    /// Does a start wait until requests count? Not where admission is not installed.
    pub awaits_admission: bool,
}

impl Setup {
    /// As the service account that `deploy/` ships, against the simulator, with the samples' namespace mapped to the
    /// simulator's subscription.
    ///
    /// # Errors
    /// When the service account is missing or a file cannot be written.
    pub async fn new(plane: &ControlPlane, simulator: &Simulator) -> anyhow::Result<Self> {
        let cloud = simulator.announcement();
        let mut setup = Self::new_for(plane, CONTROLLER, Value::Null).await?;
        let secret = setup.folder.join("client-secret");
        write_private(&secret, &cloud.client_secret)?;
        let config = json!({
            "clusterId": "playground",
            "cloud": {
                "name": "Custom",
                "resourceManager": cloud.tls_url,
                "authority": cloud.tls_url,
                "caFile": cloud.ca_file,
            },
            "credentials": [{"name": "default", "clientSecret": {
                "tenantId": cloud.tenant_id, "clientId": cloud.client_id, "secretFile": secret,
            }}],
            "namespaces": [{
                "name": NAMESPACE,
                "scopes": [format!("/subscriptions/{}", cloud.subscription_id)],
                "credential": "default",
            }],
            // There is one API server, with one clock.
            "admissionMargin": "1s",
            "unfinishedWrites": "5s",
            "healthAddress": setup.probes,
            "metricsAddress": setup.metrics,
        });
        setup.config = config;
        Ok(setup)
    }

    /// As a service account, given as namespace and name, with this configuration; on free loopback ports.
    ///
    /// # Errors
    /// As [`Setup::new`].
    pub async fn new_for(
        plane: &ControlPlane,
        account: (&str, &str),
        mut config: Value,
    ) -> anyhow::Result<Self> {
        let folder = plane.folder().join(format!("controller-{:08x}", rand::random::<u32>()));
        std::fs::create_dir_all(&folder)?;
        let [probes, metrics] = crate::ports::free()?.map(|port| format!("127.0.0.1:{port}"));
        if let Some(config) = config.as_object_mut() {
            config.insert("healthAddress".to_owned(), json!(probes));
            config.insert("metricsAddress".to_owned(), json!(metrics));
        }
        Ok(Self {
            config,
            arguments: Vec::new(),
            environment: Vec::new(),
            kubeconfig: plane.service_account_kubeconfig(account.0, account.1).await?,
            folder,
            stdout: None,
            stderr: None,
            lifetime: Lifetime::Leashed,
            probes,
            metrics,
            awaits_admission: true,
        })
    }
}

/// A running controller. Dropping it kills it.
#[derive(Debug)]
pub struct Controller {
    setup: Setup,
    process: Process,
}

impl Controller {
    /// Starts it and returns when it says that it is ready, and that requests count.
    ///
    /// # Errors
    /// When the program is not built, ends at once, or is not ready within a minute.
    pub async fn start(setup: Setup) -> anyhow::Result<Self> {
        let mut controller = Self::start_unready(setup)?;
        controller.wait_up().await?;
        Ok(controller)
    }

    /// Starts it and returns at once, for tests of starts that fail or hang.
    ///
    /// # Errors
    /// When the program is not built or cannot be started.
    pub fn start_unready(setup: Setup) -> anyhow::Result<Self> {
        let process = spawn(&setup)?;
        Ok(Self { setup, process })
    }

    /// Waits until it says that it is ready.
    ///
    /// # Errors
    /// When it ends, or is not ready within `timeout`; the message holds the end of its log.
    pub async fn wait_ready(&mut self, timeout: Duration) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let url = format!("http://{}/readyz", self.setup.probes);
        let begun = std::time::Instant::now();
        loop {
            if let Some(status) = self.process.ended()? {
                anyhow::bail!("the controller ended ({status})\n{}", self.process.log_tail());
            }
            let answer = client.get(&url).timeout(Duration::from_secs(2)).send().await;
            if answer.as_ref().is_ok_and(|answer| answer.status().is_success()) {
                return Ok(());
            }
            if begun.elapsed() > timeout {
                let last =
                    answer.map_or_else(|error| error.to_string(), |answer| answer.status().to_string());
                anyhow::bail!("not ready within {timeout:?} ({last})\n{}", self.process.log_tail());
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// What `/readyz` says.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn readiness(&self) -> anyhow::Result<Value> {
        let url = format!("http://{}/readyz", self.setup.probes);
        Ok(reqwest::Client::builder().no_proxy().build()?.get(url).send().await?.json().await?)
    }

    /// Its configuration file and arguments, to be changed before [`Controller::restart`].
    pub const fn setup(&mut self) -> &mut Setup {
        &mut self.setup
    }

    /// Writes its configuration file anew while it runs.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_config(&self) -> anyhow::Result<()> {
        write_config(&self.setup).map(drop)
    }

    /// Its process id.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// The file with its log.
    #[must_use]
    pub fn log(&self) -> &Path {
        self.process.log()
    }

    /// Its whole log so far, over all its starts.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn log_text(&self) -> anyhow::Result<String> {
        Ok(std::fs::read_to_string(self.log())?)
    }

    /// Its metrics, in Prometheus' text format.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn metrics(&self) -> anyhow::Result<String> {
        let url = format!("http://{}/metrics", self.setup.metrics);
        let client = reqwest::Client::builder().no_proxy().build()?;
        Ok(client.get(url).send().await?.error_for_status()?.text().await?)
    }

    /// Its exit status, once it has ended.
    ///
    /// # Errors
    /// When the operating system does not answer.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        self.process.ended()
    }

    /// Waits for it to end by itself.
    ///
    /// # Errors
    /// When it is still running after `timeout`.
    pub async fn wait_ended(&mut self, timeout: Duration) -> anyhow::Result<ExitStatus> {
        let process = std::sync::Mutex::new(&mut self.process);
        eventually("the controller ends", timeout, || async {
            let mut process = process.lock().map_err(|_| anyhow::anyhow!("poisoned"))?;
            process.ended()?.ok_or_else(|| anyhow::anyhow!("it is running"))
        })
        .await
    }

    /// Kills it (SIGKILL), as a node that goes away would.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Asks it to stop (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it takes longer than the 30 s it promises.
    pub async fn stop(&mut self) -> anyhow::Result<ExitStatus> {
        self.process.stop(STOP).await
    }

    /// Starts it again, with its present setup, and waits until it is ready. A running one is killed first.
    ///
    /// # Errors
    /// As [`Controller::start`].
    pub async fn restart(&mut self) -> anyhow::Result<()> {
        self.restart_unready()?;
        self.wait_up().await
    }

    async fn wait_up(&mut self) -> anyhow::Result<()> {
        self.wait_ready(Duration::from_secs(60)).await?;
        if self.setup.awaits_admission { self.wait_admission(Duration::from_secs(60)).await } else { Ok(()) }
    }

    /// Waits until it says that what is created now counts.
    ///
    /// # Errors
    /// When it does not within `timeout`; the message holds the end of its log.
    pub async fn wait_admission(&self, timeout: Duration) -> anyhow::Result<()> {
        let said = eventually("requests count", timeout, || async {
            let metrics = self.metrics().await?;
            anyhow::ensure!(
                metrics.lines().any(|line| line == "portcullis_admission_in_force 1"),
                "admission is not in force"
            );
            Ok::<_, anyhow::Error>(())
        });
        said.await.with_context(|| self.process.log_tail())
    }

    /// Starts it again and returns at once. A running one is killed first.
    ///
    /// # Errors
    /// As [`Controller::start_unready`].
    pub fn restart_unready(&mut self) -> anyhow::Result<()> {
        self.process.kill();
        self.process = spawn(&self.setup)?;
        Ok(())
    }

    /// Lets it live on.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn release(self) -> anyhow::Result<()> {
        self.process.release()
    }
}

fn write_config(setup: &Setup) -> anyhow::Result<PathBuf> {
    let config = setup.folder.join("config.yaml");
    // JSON is YAML.
    std::fs::write(&config, serde_json::to_string_pretty(&setup.config)?)?;
    Ok(config)
}

fn spawn(setup: &Setup) -> anyhow::Result<Process> {
    let program = crate::program("portcullis", "PORTCULLIS")?;
    let config = write_config(setup)?;
    let mut command = Command::new(program);
    command
        .arg("run")
        .arg("--config")
        .arg(&config)
        .arg("--kubeconfig")
        .arg(&setup.kubeconfig)
        .args(&setup.arguments)
        .env_remove("KUBECONFIG")
        .envs(setup.environment.iter().map(|(name, value)| (name, value)))
        .env("HOME", &setup.folder)
        .env("POD_NAME", setup.folder.file_name().unwrap_or_default())
        .env("POD_UID", "the-same");
    let own = |given: &Option<Arc<OwnedFd>>| given.as_ref().map(|given| given.try_clone()).transpose();
    let outputs = Outputs { stdout: own(&setup.stdout)?, stderr: own(&setup.stderr)? };
    Process::spawn_with(
        "portcullis",
        &command,
        &setup.folder.join("portcullis.log"),
        &setup.lifetime,
        outputs,
    )
}
