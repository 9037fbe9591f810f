//! The Azure simulator: its control door, and Azure Resource Manager as any client of it sees it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Method;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::process::{Lifetime, Process};
use crate::scratch::Scratch;
use crate::wait::eventually;

/// What to start.
#[derive(Debug, Clone)]
pub struct SimulatorOptions {
    /// Where its log and its announcement go; left out: a temporary folder.
    pub folder: Option<PathBuf>,
    /// Does it end with this process?
    pub lifetime: Lifetime,
    /// More arguments for `azure-simulator`.
    pub arguments: Vec<String>,
}

impl Default for SimulatorOptions {
    fn default() -> Self {
        Self { folder: None, lifetime: Lifetime::Leashed, arguments: Vec::new() }
    }
}

/// What the simulator says of itself once it listens.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Announcement {
    /// Its address over plain HTTP, without a slash at the end.
    pub url: String,
    /// Its address over TLS.
    pub tls_url: String,
    /// The certificate authority that its certificate hangs on, as a PEM file.
    pub ca_file: PathBuf,
    /// The directory in which its clients sign in.
    pub tenant_id: String,
    /// A client that may do everything.
    pub client_id: String,
    /// That client's secret.
    pub client_secret: String,
    /// The subscription that is there from the start.
    pub subscription_id: String,
}

/// Would a packet pass, and who says so?
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// It would.
    pub allowed: bool,
    /// The rules that decided, outermost first.
    #[serde(default)]
    pub decided_by: Vec<Value>,
}

/// How long a token is used. It lives for an hour by the simulator's clock, which tests set forward.
const YOUNG: Duration = Duration::from_secs(120);

/// A running simulator. Dropping it ends it.
#[derive(Debug)]
pub struct Simulator {
    process: Process,
    announcement: Announcement,
    client: reqwest::Client,
    /// A token, and when it was given: it is used while it is young.
    token: Mutex<Option<(Instant, String)>>,
    _scratch: Scratch,
}

impl Simulator {
    /// Starts `azure-simulator` on free loopback ports.
    ///
    /// # Errors
    /// When the program is not built or does not announce itself within 30 s.
    pub async fn start(options: SimulatorOptions) -> anyhow::Result<Self> {
        let program = crate::program("azure-simulator", "AZURE_SIMULATOR")?;
        let scratch = Scratch::new(options.folder.as_deref())?;
        let folder = scratch.path().to_owned();
        let announced = folder.join("simulator.json");
        if announced.exists() {
            std::fs::remove_file(&announced)?;
        }
        let mut command = Command::new(program);
        command.arg("--ca-file").arg(folder.join("ca.pem"));
        command.arg("--announce").arg(&announced).args(&options.arguments).current_dir(&folder);
        let mut process =
            Process::spawn("azure-simulator", &command, &folder.join("simulator.log"), &options.lifetime)?;
        let announcement = read_announcement(&mut process, &announced).await?;
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().pool_max_idle_per_host(0).build()?;
        Ok(Self { process, announcement, client, token: Mutex::default(), _scratch: scratch })
    }

    /// Addresses and credentials.
    #[must_use]
    pub const fn announcement(&self) -> &Announcement {
        &self.announcement
    }

    /// The program itself.
    pub const fn process(&mut self) -> &mut Process {
        &mut self.process
    }

    /// Asks the packet oracle: would a packet from `source` to `destination`, any address of the world, pass now?
    ///
    /// # Errors
    /// When the simulator does not answer, or does not know the destination.
    pub async fn probe(
        &self,
        source: &str,
        destination: &str,
        port: u16,
        protocol: &str,
    ) -> anyhow::Result<Verdict> {
        let question =
            json!({"source": source, "destination": destination, "port": port, "protocol": protocol});
        let answer = self.control(Method::POST, "probe", Some(&question)).await?;
        serde_json::from_value(answer.clone()).with_context(|| format!("not a verdict: {answer}"))
    }

    /// One request at the control door, `/_sim/<path>`.
    ///
    /// # Errors
    /// When it is refused.
    pub async fn control(&self, method: Method, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let url = format!("{}/_sim/{path}", self.announcement.url);
        let mut request = self.client.request(method.clone(), &url);
        if let Some(body) = body {
            request = request.json(body);
        }
        let answer = request.send().await?;
        let status = answer.status();
        let text = answer.text().await?;
        ensure!(status.is_success(), "{method} {url}: {status}: {text}");
        Ok(serde_json::from_str(&text).unwrap_or(Value::Null))
    }

    /// A new access token for Azure Resource Manager.
    ///
    /// # Errors
    /// When the simulator refuses the credentials it announced.
    pub async fn token(&self) -> anyhow::Result<String> {
        let young = |known: &Option<(Instant, String)>| {
            known.as_ref().filter(|(since, _)| since.elapsed() < YOUNG).map(|(_, token)| token.clone())
        };
        if let Some(token) = young(&self.token.lock().unwrap_or_else(PoisonError::into_inner)) {
            return Ok(token);
        }
        let known = &self.announcement;
        let scope = format!("{}/.default", known.url);
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &known.client_id),
            ("client_secret", &known.client_secret),
            ("scope", &scope),
        ];
        let url = format!("{}/{}/oauth2/v2.0/token", known.url, known.tenant_id);
        let answer = self.client.post(&url).form(&form).send().await?;
        let status = answer.status();
        let body: Value = answer.json().await?;
        let token = body["access_token"].as_str().with_context(|| format!("{url}: {status}: {body}"))?;
        let known = Some((Instant::now(), token.to_owned()));
        *self.token.lock().unwrap_or_else(PoisonError::into_inner) = known;
        Ok(token.to_owned())
    }

    /// One request to Azure Resource Manager for a resource id: status and body, whatever they are.
    ///
    /// # Errors
    /// When no token is had or the connection fails.
    pub async fn arm(
        &self,
        method: Method,
        id: &str,
        body: Option<&Value>,
    ) -> anyhow::Result<(reqwest::StatusCode, Value)> {
        let version = api_version(id);
        let url = format!("{}{id}?api-version={version}", self.announcement.url);
        let send = async || {
            let mut request = self.client.request(method.clone(), &url).bearer_auth(self.token().await?);
            if let Some(body) = body {
                request = request.json(body);
            }
            Ok::<_, anyhow::Error>(request.send().await?)
        };
        let mut answer = send().await?;
        if answer.status() == reqwest::StatusCode::UNAUTHORIZED {
            // The simulator's clock may have been set forward.
            *self.token.lock().unwrap_or_else(PoisonError::into_inner) = None;
            answer = send().await?;
        }
        let status = answer.status();
        let text = answer.text().await?;
        Ok((status, serde_json::from_str(&text).unwrap_or(Value::Null)))
    }

    /// Writes a resource and returns it as it is read once its provisioning has succeeded.
    ///
    /// # Errors
    /// When it is refused, fails, or is not done within a minute.
    pub async fn put(&self, id: &str, body: &Value) -> anyhow::Result<Value> {
        let (status, answer) = self.arm(Method::PUT, id, Some(body)).await?;
        ensure!(status.is_success(), "PUT {id}: {status}: {answer}");
        eventually(&format!("{id} is provisioned"), Duration::from_secs(60), || async {
            let read = self.get(id).await?;
            // Resources without the property, such as tags, are done at once.
            let state = read.pointer("/properties/provisioningState").and_then(Value::as_str);
            ensure!(state.is_none_or(|state| state == "Succeeded"), "provisioningState is {state:?}");
            Ok::<_, anyhow::Error>(read)
        })
        .await
    }

    /// Reads a resource.
    ///
    /// # Errors
    /// When it is not there.
    pub async fn get(&self, id: &str) -> anyhow::Result<Value> {
        let (status, answer) = self.arm(Method::GET, id, None).await?;
        ensure!(status.is_success(), "GET {id}: {status}: {answer}");
        Ok(answer)
    }

    /// Deletes a resource, and returns when it is gone.
    ///
    /// # Errors
    /// When it is refused, or is still there after a minute.
    pub async fn delete(&self, id: &str) -> anyhow::Result<()> {
        let (status, answer) = self.arm(Method::DELETE, id, None).await?;
        ensure!(status.is_success(), "DELETE {id}: {status}: {answer}");
        eventually(&format!("{id} is deleted"), Duration::from_secs(60), || async {
            let (status, answer) = self.arm(Method::GET, id, None).await?;
            ensure!(status == reqwest::StatusCode::NOT_FOUND, "{status}: {answer}");
            Ok::<_, anyhow::Error>(())
        })
        .await
    }

    /// Lets it live on.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn release(self) -> anyhow::Result<()> {
        self.process.release()
    }
}

/// The api-version that the harness speaks for a resource id: unlike the controller's, so that both are served.
fn api_version(id: &str) -> &'static str {
    let lower = id.to_lowercase();
    if lower.contains("/providers/microsoft.compute/") {
        "2024-07-01"
    } else if lower.contains("/providers/microsoft.network/") {
        "2024-05-01"
    } else {
        "2021-04-01"
    }
}

async fn read_announcement(process: &mut Process, file: &Path) -> anyhow::Result<Announcement> {
    let begun = std::time::Instant::now();
    loop {
        if let Some(status) = process.ended()? {
            anyhow::bail!("azure-simulator ended at its start ({status})\n{}", process.log_tail());
        }
        // It may be read while it is being written: then it is read again.
        let read = std::fs::read_to_string(file).ok();
        let parsed = read.as_deref().map(serde_json::from_str::<Announcement>);
        if let Some(Ok(mut announcement)) = parsed {
            for url in [&mut announcement.url, &mut announcement.tls_url] {
                url.truncate(url.trim_end_matches('/').len());
            }
            return Ok(announcement);
        }
        if begun.elapsed() > Duration::from_secs(30) {
            let problem =
                parsed.and_then(Result::err).map_or("no announcement".to_owned(), |error| error.to_string());
            anyhow::bail!(
                "azure-simulator did not announce itself within 30 s: {problem}\n{}",
                process.log_tail()
            );
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
