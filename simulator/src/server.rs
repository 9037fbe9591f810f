//! Connections: HTTP and TLS on loopback or wherever it is told, one handler for both. Resetting a connection is
//! part of the service.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;

use crate::{
    Options,
    arm::{self, Outcome, errors::ArmError},
    control,
    http::{Call, Reply},
    identity,
    world::World,
};

/// Larger bodies are refused.
const MAX_BODY: usize = 16 << 20;

/// What all connections share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) world: Mutex<World>,
    pub(crate) options: Options,
}

impl Shared {
    pub(crate) fn lock(&self) -> MutexGuard<'_, World> {
        // A panic in one request is no reason to fail all others.
        self.world.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts connections until told to stop.
pub(crate) async fn accept(
    listener: TcpListener,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    mut stop: watch::Receiver<bool>,
) {
    loop {
        let stream = tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                    continue;
                }
            },
            _ = stop.changed() => return,
        };
        let (tls, shared, stop) = (tls.clone(), shared.clone(), stop.clone());
        tokio::spawn(async move { connection(stream, tls, shared, stop).await });
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    shared: Arc<Shared>,
    stop: watch::Receiver<bool>,
) {
    let _ = stream.set_nodelay(true);
    match tls {
        None => exchange(stream, false, shared, stop).await,
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => exchange(stream, true, shared, stop).await,
            Err(error) => tracing::debug!(%error, "TLS handshake failed"),
        },
    }
}

async fn exchange<S>(stream: S, secure: bool, shared: Arc<Shared>, mut stop: watch::Receiver<bool>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (reset, mut reset_asked) = watch::channel(false);
    let service = service_fn(move |request: Request<Incoming>| {
        let (shared, reset) = (shared.clone(), reset.clone());
        async move { Ok::<_, Infallible>(handle(request, secure, &shared, &reset).await) }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        result = serving.as_mut() => {
            if let Err(error) = result {
                tracing::debug!(%error, "connection ended");
            }
        }
        // Dropping the connection without an answer is the fault that was asked for.
        _ = reset_asked.changed() => {}
        _ = stop.changed() => {
            serving.as_mut().graceful_shutdown();
            let _ = tokio::time::timeout(std::time::Duration::from_secs(2), serving).await;
        }
    }
}

async fn handle(
    request: Request<Incoming>,
    secure: bool,
    shared: &Shared,
    reset: &watch::Sender<bool>,
) -> Response<Full<Bytes>> {
    let (parts, body) = request.into_parts();
    let mut headers: BTreeMap<String, String> = parts
        .headers
        .iter()
        .map(|(k, v)| (k.as_str().to_owned(), String::from_utf8_lossy(v.as_bytes()).into_owned()))
        .collect();
    // HTTP/2 has the host in the request line.
    if let Some(authority) = parts.uri.authority() {
        headers.entry("host".into()).or_insert_with(|| authority.to_string());
    }
    let body = match Limited::new(body, MAX_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return respond(&Reply::empty(413)),
    };
    let target = parts.uri.path_and_query().map_or("/", |p| p.as_str());
    let call = Call::new(parts.method.as_str(), target, headers, body, secure);
    if call.path.to_lowercase().starts_with("/_sim") {
        let reply = guarded(|| control::answer(&mut shared.lock(), &shared.options, &call));
        return respond(&reply.unwrap_or_else(broken));
    }
    let client = identity::claimed_client(&call);
    let plan = {
        let mut world = shared.lock();
        // Lets what is due happen before the fault's delay, so that a delayed request sees its own later time.
        world.advance();
        world.faults.strike(&call.method, &call.path, client.as_deref())
    };
    if let Some(delay) = plan.delay {
        tokio::time::sleep(delay.real()).await;
    }
    let outcome = guarded(|| arm::answer(&mut shared.lock(), &call, &plan));
    let outcome = outcome.unwrap_or_else(|| Outcome::Answer(broken()));
    match outcome {
        Outcome::Answer(reply) => {
            tracing::debug!(http.method = %call.method, http.path = %call.path, http.status = reply.status);
            respond(&reply)
        }
        Outcome::Slow(reply, span) => {
            tokio::time::sleep(span.real()).await;
            respond(&reply)
        }
        Outcome::Reset => {
            let _ = reset.send(true);
            // The connection goes away under this handler.
            std::future::pending().await
        }
    }
}

/// A panic is a fault of the simulator's: it must show as one, and not as a reset connection.
fn guarded<T>(act: impl FnOnce() -> T) -> Option<T> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(act)).ok()
}

fn broken() -> Reply {
    ArmError::new(500, "InternalServerError", "The simulator has a fault; its log says where.").into()
}

fn respond(reply: &Reply) -> Response<Full<Bytes>> {
    let mut builder = Response::builder().status(reply.status);
    for (name, value) in &reply.headers {
        builder = builder.header(name.as_str(), value.as_str());
    }
    let bytes = match &reply.body {
        Some(body) => {
            builder = builder.header("Content-Type", "application/json; charset=utf-8");
            Bytes::from(body.to_string())
        }
        None => Bytes::new(),
    };
    builder.body(Full::new(bytes)).unwrap_or_else(|error| {
        let mut response = Response::new(Full::new(Bytes::from(error.to_string())));
        *response.status_mut() = hyper::StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

/// Binds an address; port 0 takes a free one.
pub(crate) async fn bind(address: SocketAddr) -> std::io::Result<(TcpListener, SocketAddr)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    Ok((listener, bound))
}
