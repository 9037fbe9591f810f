//! A way to the API server on which everything can go wrong that does on the way to a real one, request by request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::Context;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use serde_json::json;
use tokio::task::JoinHandle;

use portcullis_harness::control_plane::write_private;

/// What goes wrong on the way to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Every third write is answered so, and not passed on.
    Refused(u16),
    /// Every third read or watch is answered so, and not passed on.
    ReadsRefused(u16),
    /// Every third write is passed on, and its answer is lost.
    AnswerLost,
    /// Every call takes so much longer.
    Slow(Duration),
    /// Nothing is passed on, and nothing is answered.
    Away,
    /// Watches tell nothing more.
    Frozen,
    /// Watches break off after so long.
    Dropped(Duration),
    /// Watches are answered with 410 Gone.
    Gone,
    /// Lists are as they were when they were first asked for.
    Rewound,
}

#[derive(Debug, Default)]
struct Shared {
    trouble: Mutex<Option<Trouble>>,
    /// The answer to this write, counted from 1, is not given; 0: to none.
    hold_at: AtomicU64,
    /// Writes but for those of the lease, which come whatever happens, and Events, on which nothing rests.
    writes: AtomicU64,
    calls: AtomicU64,
    reads: AtomicU64,
    /// How often it went wrong.
    struck: AtomicU64,
    held: AtomicBool,
    lists: Mutex<HashMap<String, (StatusCode, Bytes)>>,
}

/// The way. Dropping it closes it.
#[derive(Debug)]
pub struct Gateway {
    address: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Passage {
    server: String,
    client: reqwest::Client,
    shared: Arc<Shared>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gateway {
    /// Listens on a loopback port and passes on to `server`, such as `https://127.0.0.1:6443`.
    ///
    /// # Errors
    /// When it cannot listen.
    pub async fn start(server: &str) -> anyhow::Result<Self> {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let shared = Arc::new(Shared::default());
        // The server's certificate is of a CA of the harness; nothing here is secret.
        let client = reqwest::Client::builder().no_proxy().danger_accept_invalid_certs(true).build()?;
        let passage = Passage { server: server.to_owned(), client, shared: Arc::clone(&shared) };
        let router = axum::Router::new().fallback(pass).with_state(passage);
        let task = tokio::spawn(async move {
            // Ends with the runtime or by being aborted.
            let _ = axum::serve(listener, router).await;
        });
        Ok(Self { address, shared, task })
    }

    /// A copy of a kubeconfig of this harness that goes through it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn kubeconfig(&self, original: &Path, copy: &Path) -> anyhow::Result<PathBuf> {
        let text = std::fs::read_to_string(original)
            .with_context(|| format!("failed to read {}", original.display()))?;
        let mut config: serde_json::Value =
            serde_json::from_str(&text).context("a kubeconfig of this harness is JSON")?;
        let cluster = &mut config["clusters"][0]["cluster"];
        *cluster = json!({"server": format!("http://{}", self.address)});
        write_private(copy, &config.to_string())?;
        Ok(copy.to_owned())
    }

    /// From now on this goes wrong; nothing else does.
    pub fn set(&self, trouble: Option<Trouble>) {
        *lock(&self.shared.trouble) = trouble;
    }

    /// The write of this number, from 1, is passed on, and its answer is kept back for ever.
    pub fn hold(&self, number: u64) {
        self.shared.hold_at.store(number, Ordering::SeqCst);
        self.shared.held.store(false, Ordering::SeqCst);
    }

    /// Whether such an answer is being kept back.
    #[must_use]
    pub fn is_holding(&self) -> bool {
        self.shared.held.load(Ordering::SeqCst)
    }

    /// How many writes came, but for those of the lease and Events.
    #[must_use]
    pub fn writes(&self) -> u64 {
        self.shared.writes.load(Ordering::SeqCst)
    }

    /// How often it went wrong so far.
    #[must_use]
    pub fn struck(&self) -> u64 {
        self.shared.struck.load(Ordering::SeqCst)
    }

    /// How many calls came.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.shared.calls.load(Ordering::SeqCst)
    }
}

impl Drop for Gateway {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn pass(State(passage): State<Passage>, request: Request) -> Response {
    let shared = Arc::clone(&passage.shared);
    shared.calls.fetch_add(1, Ordering::SeqCst);
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let query = request.uri().query().unwrap_or_default().to_owned();
    let watches = query.contains("watch=true") || query.contains("watch=1");
    let writes = !matches!(method, Method::GET | Method::HEAD)
        && !["/leases", "/events", "/subjectaccessreviews", "/selfsubjectreviews"]
            .iter()
            .any(|kind| path.contains(kind));
    let number = if writes { shared.writes.fetch_add(1, Ordering::SeqCst) + 1 } else { 0 };
    let trouble = *lock(&shared.trouble);
    let struck = writes && number % 3 == 0;
    let reads = method == Method::GET;
    let third = reads && shared.reads.fetch_add(1, Ordering::SeqCst).is_multiple_of(3);
    let known = lock(&shared.lists).get(&format!("{path}?{query}")).cloned();
    let goes_wrong = match trouble {
        None => false,
        Some(Trouble::Away | Trouble::Slow(_)) => true,
        Some(Trouble::Refused(_) | Trouble::AnswerLost) => struck,
        Some(Trouble::ReadsRefused(_)) => third,
        Some(Trouble::Gone) => watches,
        // Counted where it is told.
        Some(Trouble::Frozen | Trouble::Dropped(_)) => false,
        Some(Trouble::Rewound) => reads && !watches && known.is_some(),
    };
    shared.struck.fetch_add(u64::from(goes_wrong), Ordering::SeqCst);
    match trouble {
        Some(Trouble::ReadsRefused(code)) if third => return refusal(code),
        Some(Trouble::Away) => std::future::pending::<()>().await,
        Some(Trouble::Slow(by)) => tokio::time::sleep(by).await,
        Some(Trouble::Refused(code)) if struck => return refusal(code),
        Some(Trouble::Gone) if watches => return refusal(410),
        Some(Trouble::Rewound) if reads && !watches => {
            if let Some((status, body)) = known {
                return answer(status, Body::from(body));
            }
        }
        _ => {}
    }
    let answered = match passage.forward(request).await {
        Ok(answered) => answered,
        Err(error) => return (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response(),
    };
    let lost = struck && lock(&shared.trouble).is_some_and(|trouble| trouble == Trouble::AnswerLost);
    if number != 0 && number == shared.hold_at.load(Ordering::SeqCst) {
        shared.held.store(true, Ordering::SeqCst);
        std::future::pending::<()>().await;
    }
    if lost {
        std::future::pending::<()>().await;
    }
    if watches {
        return watch(shared, answered);
    }
    let status = answered.status();
    match answered.bytes().await {
        Ok(body) => {
            if method == Method::GET && path.contains("/apis/jit.portcullis.io/") {
                lock(&shared.lists)
                    .entry(format!("{path}?{query}"))
                    .or_insert_with(|| (status, body.clone()));
            }
            answer(status, Body::from(body))
        }
        Err(error) => (StatusCode::BAD_GATEWAY, error.to_string()).into_response(),
    }
}

impl Passage {
    async fn forward(&self, request: Request) -> anyhow::Result<reqwest::Response> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        let body = axum::body::to_bytes(body, 16 << 20).await?;
        let mut forwarded = self.client.request(parts.method, format!("{}{path}", self.server));
        for name in ["authorization", "accept", "content-type", "user-agent"] {
            if let Some(value) = parts.headers.get(name) {
                forwarded = forwarded.header(name, value);
            }
        }
        Ok(forwarded.body(body).send().await?)
    }
}

/// A watch, told as long as nothing is wrong with watches.
fn watch(shared: Arc<Shared>, answered: reqwest::Response) -> Response {
    let status = answered.status();
    let begun = tokio::time::Instant::now();
    let told = futures::stream::unfold((answered, shared), move |(mut answered, shared)| async move {
        loop {
            let trouble = *lock(&shared.trouble);
            let until = match trouble {
                Some(Trouble::Dropped(after)) if begun.elapsed() >= after => {
                    shared.struck.fetch_add(1, Ordering::SeqCst);
                    return None;
                }
                Some(Trouble::Away | Trouble::Frozen) => {
                    shared.struck.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(Duration::from_millis(200)).await;
                    continue;
                }
                _ => Duration::from_millis(500),
            };
            match tokio::time::timeout(until, answered.chunk()).await {
                // Looked at again: it may have gone wrong meanwhile.
                Err(_) => {}
                Ok(Ok(Some(chunk))) => return Some((Ok::<_, std::io::Error>(chunk), (answered, shared))),
                Ok(_) => return None,
            }
        }
    });
    answer(status, Body::from_stream(told.boxed()))
}

fn answer(status: StatusCode, body: Body) -> Response {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/json"));
    response
}

/// As the API server says it.
fn refusal(code: u16) -> Response {
    let reason = match code {
        409 => "Conflict",
        410 => "Expired",
        429 => "TooManyRequests",
        _ => "InternalError",
    };
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "code": code,
        "reason": reason, "message": "made up on the way"});
    let mut response = answer(
        StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        Body::from(status.to_string()),
    );
    if code == 429 {
        response.headers_mut().insert("retry-after", HeaderValue::from_static("1"));
    }
    response
}
