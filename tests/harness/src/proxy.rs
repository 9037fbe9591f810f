//! A way to a server that falls silent, as a NAT that forgets its connections: nothing is refused, nothing comes.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::Context;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

use crate::control_plane::write_private;

/// A TCP proxy in front of one server. Dropping it closes every connection.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the next connection.
    next: AtomicU64,
    /// Connections of lower numbers are silent.
    silent_below: AtomicU64,
    /// On connections of lower numbers, answers are lost.
    unanswered_below: AtomicU64,
}

impl Proxy {
    /// Listens on a loopback port and passes on to `server`, such as `127.0.0.1:6443`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(server: &str) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let (state, server) = (Arc::new(State::default()), server.to_owned());
        let shared = Arc::clone(&state);
        let task = tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let number = shared.next.fetch_add(1, Ordering::SeqCst);
                connections.spawn(pass(client, server.clone(), Arc::clone(&shared), number));
                while connections.try_join_next().is_some() {}
            }
        });
        Ok(Self { address, state, task })
    }

    /// A copy of a kubeconfig of this harness that goes through the proxy.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn kubeconfig(&self, original: &Path) -> anyhow::Result<PathBuf> {
        let text = std::fs::read_to_string(original)
            .with_context(|| format!("failed to read {}", original.display()))?;
        let mut config: serde_json::Value = serde_json::from_str(&text)?;
        config["clusters"][0]["cluster"]["server"] = format!("https://{}", self.address).into();
        let path = original.with_extension("through-proxy.yaml");
        write_private(&path, &serde_json::to_string_pretty(&config)?)?;
        Ok(path)
    }

    /// Everything that is connected falls silent. New connections work.
    pub fn forget(&self) {
        self.state.silent_below.store(self.state.next.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// On everything that is connected, requests arrive and their answers are lost. New connections work.
    pub fn lose_answers(&self) {
        self.state.unanswered_below.store(self.state.next.load(Ordering::SeqCst), Ordering::SeqCst);
    }

    /// Everything falls silent, new connections too: they are accepted and hear nothing.
    pub fn silence(&self) {
        self.state.silent_below.store(u64::MAX, Ordering::SeqCst);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(client: TcpStream, server: String, state: Arc<State>, number: u64) {
    let Ok(server) = TcpStream::connect(server).await else { return };
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    let is_silent = || number < state.silent_below.load(Ordering::SeqCst);
    let is_unanswered = || is_silent() || number < state.unanswered_below.load(Ordering::SeqCst);
    tokio::join!(copy(from_client, to_server, is_silent), copy(from_server, to_client, is_unanswered));
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    is_silent: impl Fn() -> bool,
) {
    let mut bytes = vec![0; 16 * 1024];
    while let Ok(count @ 1..) = from.read(&mut bytes).await {
        // Swallowed, as by a way that forgot where it leads.
        if !is_silent() && to.write_all(&bytes[..count]).await.is_err() {
            break;
        }
    }
    if is_silent() {
        // Nor is the end passed on.
        std::future::pending::<()>().await;
    }
}
