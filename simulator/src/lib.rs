//! Azure Resource Manager as a network controller sees it, and a packet oracle beside it.
//!
//! The rooms, from the wire inwards:
//!
//! - `server`, `tls`, `http`: connections, and requests apart from them.
//! - `identity`: tokens issued and verified, metadata, who may do what.
//! - `arm`: what every request and resource shares: ids, store, operations, locks, paging, throttling.
//! - `resources`: what differs between types.
//! - `oracle`: would a packet pass, now or at an earlier time?
//! - `control`: the door for tests, `/_sim/`.
//! - `world`: the state of one instance and how it moves in time.
//!
//! Nothing is shared with the product that is tested against it.

mod arm;
mod control;
mod http;
mod identity;
mod oracle;
mod resources;
mod server;
mod tls;
mod world;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::{sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;
use uuid::Uuid;

pub use control::settings::Profile;
use server::Shared;
use world::World;

/// How an instance starts. The default is right for a test: free ports on loopback, ids of its own.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where plain HTTP listens; port 0 takes a free one.
    pub http: SocketAddr,
    /// Where TLS listens; `None` for no TLS.
    pub tls: Option<SocketAddr>,
    /// More names and addresses that its certificate is for, beside those of loopback.
    pub names: Vec<String>,
    /// The tenant that the subscriptions trust.
    pub tenant_id: String,
    /// The application that exists from the start and may do everything.
    pub client_id: String,
    /// Its secret.
    pub client_secret: String,
    /// Subscription ids.
    pub subscriptions: Vec<String>,
    /// How long operations take.
    pub latency: Profile,
    /// `Retry-After` of long-running operations, in seconds. Zero makes clients that take it literally poll at
    /// once; Microsoft's SDK for Python reads zero as absent and waits 30 s.
    pub retry_after: Option<u64>,
    /// Seed of the latencies that are drawn.
    pub seed: u64,
}

impl Default for Options {
    fn default() -> Self {
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            http: loopback,
            tls: Some(loopback),
            names: Vec::new(),
            tenant_id: Uuid::new_v4().to_string(),
            client_id: Uuid::new_v4().to_string(),
            client_secret: Uuid::new_v4().simple().to_string(),
            subscriptions: vec![Uuid::new_v4().to_string()],
            latency: Profile::Fast,
            retry_after: Some(1),
            seed: 0,
        }
    }
}

/// Why an instance does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("cannot listen on {address}: {source}")]
    Listen {
        /// The address asked for.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// Certificates cannot be made.
    #[error("{0}")]
    Tls(String),
}

/// What is wrong with a world document.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct WorldError(String);

/// A running instance. Dropping it stops it at once; [`Running::stop`] lets requests finish.
#[derive(Debug)]
pub struct Running {
    /// `http://127.0.0.1:port`.
    pub url: String,
    /// `https://localhost:port`, if TLS was asked for.
    pub tls_url: Option<String>,
    /// The certificate authority that TLS clients must trust, as PEM.
    pub ca_pem: String,
    /// What it was started with: tenant, client and subscriptions.
    pub options: Options,
    shared: Arc<Shared>,
    stop: watch::Sender<bool>,
    listeners: Vec<JoinHandle<()>>,
}

impl Running {
    /// Adds machines and resources: a document as `POST /_sim/world` takes it. Answers what was made.
    ///
    /// # Errors
    /// What is wrong with the document, naming the field.
    pub fn build_world(&self, document: &str) -> Result<serde_json::Value, WorldError> {
        let headers = std::collections::BTreeMap::new();
        let body = bytes::Bytes::copy_from_slice(document.as_bytes());
        let call = http::Call::new("POST", "/_sim/world", headers, body, false);
        let reply = control::answer(&mut self.shared.lock(), &self.options, &call);
        let body = reply.body.unwrap_or_default();
        if reply.status == 200 {
            return Ok(body);
        }
        Err(WorldError(body["error"]["message"].as_str().unwrap_or("unknown").to_owned()))
    }

    /// The first subscription.
    #[must_use]
    pub fn subscription(&self) -> &str {
        self.options.subscriptions.first().map_or("", String::as_str)
    }

    /// Accepts no more connections, and gives open ones two seconds to finish.
    pub async fn stop(mut self) {
        let _ = self.stop.send(true);
        for listener in self.listeners.drain(..) {
            let _ = listener.await;
        }
        let patience = tokio::time::timeout(std::time::Duration::from_secs(3), self.stop.closed());
        let _ = patience.await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        for listener in &self.listeners {
            listener.abort();
        }
    }
}

/// Starts an instance inside this process.
///
/// # Errors
/// A listener that cannot be bound, or a certificate that cannot be made.
pub async fn start(options: Options) -> Result<Running, StartError> {
    let bind = |address: SocketAddr| async move {
        server::bind(address).await.map_err(|source| StartError::Listen { address, source })
    };
    let shared = Arc::new(Shared { world: Mutex::new(World::new(&options)), options: options.clone() });
    let (stop, stopped) = watch::channel(false);
    let (listener, address) = bind(options.http).await?;
    let mut listeners = vec![tokio::spawn(server::accept(listener, None, shared.clone(), stopped.clone()))];
    let mut tls_url = None;
    let mut ca_pem = String::new();
    if let Some(wanted) = options.tls {
        let identity = tls::identity(&options.names).map_err(StartError::Tls)?;
        let (listener, address) = bind(wanted).await?;
        let acceptor = TlsAcceptor::from(identity.config);
        listeners.push(tokio::spawn(server::accept(listener, Some(acceptor), shared.clone(), stopped)));
        tls_url = Some(format!("https://localhost:{}", address.port()));
        ca_pem = identity.ca_pem;
    }
    Ok(Running { url: format!("http://{address}"), tls_url, ca_pem, options, shared, stop, listeners })
}
