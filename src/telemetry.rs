//! What the program says of itself: logs, traces, metrics, health, the audit trail.
//!
//! For the controllers and the command line; what the clouds' clients count is asked of them. May use `api` and `clock`.

use std::net::SocketAddr;
use std::sync::LazyLock;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub mod audit;
pub mod health;
pub mod log;
pub mod metrics;
mod pipe;
pub mod traces;

pub use audit::Audit;
pub use health::{Check, Health, Pulse, Warning};
pub use log::{Format, Logging};
pub use metrics::{CloudOutcome, CloudUse, DriftKind, Metrics, ReconcileResult, SweepResult};
pub use traces::Traces;

/// The version that runs.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The commit that it was built from; `unknown` where the build was not told.
pub const COMMIT: &str = match option_env!("PORTCULLIS_COMMIT") {
    Some(commit) => commit,
    None => "unknown",
};

/// The version with the commit, where that is known.
#[must_use]
pub fn version() -> &'static str {
    static WHOLE: LazyLock<String> = LazyLock::new(|| match option_env!("PORTCULLIS_COMMIT") {
        Some(commit) => format!("{VERSION} (commit {commit})"),
        None => VERSION.to_owned(),
    });
    &WHOLE
}

/// What the controllers tell through.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Counts.
    pub metrics: Metrics,
    /// Says whether the program is ready.
    pub health: Health,
    /// Records.
    pub audit: Audit,
}

/// Why telemetry cannot start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter for log lines cannot be read.
    #[error(
        "{filter:?} is no log filter: write a level such as info, or directives such as info,portcullis=debug"
    )]
    Filter {
        /// The filter as written.
        filter: String,
        /// What the parser said.
        source: tracing_subscriber::filter::ParseError,
    },
    /// Logging was set up before.
    #[error("failed to set up logging")]
    Logging(#[from] tracing_subscriber::util::TryInitError),
    /// The thread that writes log lines cannot be started.
    #[error("failed to start the thread that writes log lines")]
    Thread(#[source] std::io::Error),
    /// Traces cannot be sent.
    #[error("failed to set up traces: {0}")]
    Traces(String),
    /// An address cannot be listened on.
    #[error("failed to listen on {name} {address}: choose an address of this machine and a free port")]
    Listen {
        /// Which address of the configuration.
        name: &'static str,
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A server ended by itself.
    #[error("the server for {name} failed")]
    Serve {
        /// Which address of the configuration.
        name: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A bound server that has not begun to answer.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    listener: TcpListener,
    router: axum::Router,
}

impl Server {
    /// Listens on `address`. `name` is the field of the configuration that it comes from.
    ///
    /// # Errors
    /// [`Error::Listen`].
    pub async fn bind(name: &'static str, address: SocketAddr, router: axum::Router) -> Result<Self, Error> {
        let listener =
            TcpListener::bind(address).await.map_err(|source| Error::Listen { name, address, source })?;
        Ok(Self { name, listener, router })
    }

    /// The address listened on, with the port that the system chose where the configuration says 0.
    ///
    /// # Errors
    /// [`Error::Serve`].
    pub fn address(&self) -> Result<SocketAddr, Error> {
        self.listener.local_addr().map_err(|source| Error::Serve { name: self.name, source })
    }

    /// Answers until `shutdown`, then lets requests under way finish.
    ///
    /// # Errors
    /// [`Error::Serve`].
    pub async fn run(self, shutdown: CancellationToken) -> Result<(), Error> {
        let name = self.name;
        axum::serve(self.listener, self.router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
            .map_err(|source| Error::Serve { name, source })
    }
}
