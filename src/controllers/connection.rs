//! The connection to the API server: every call over it ends.
//!
//! A NAT, a load balancer or a firewall between us and a healthy API server may forget a connection without a word.
//! A call over it would wait until the kernel gives up, a quarter of an hour later, and a close that somebody has
//! just asked for would wait with it. So every call has [`PATIENCE`], its body and its repetitions included, and of
//! a watch, which is silent for long by its nature, the answer's head has. The rest of a watch ends by itself:
//! the server ends it after [`WATCH`], and the watcher takes it for dead 5 s later. One that is answered with 410 Gone
//! is given to the watcher in a form that has it list anew.

use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Either, Full};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use kube::api::PostParams;
use kube::client::{Body, ClientBuilder};
use kube::core::Status;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;
use tokio::time::Instant;
use tower::{BoxError, Layer, Service};

use crate::api::UserInfo;
use crate::clock::{Clock, Server, http_date};
use crate::telemetry::Metrics;

/// How long a call may take.
pub const PATIENCE: Duration = Duration::from_secs(15);
/// How long a watch lasts before it is begun anew where it stopped.
pub const WATCH: Duration = Duration::from_secs(30);
/// A connection over which nothing has come for so long, a watch's included, is given up. Idle ones too: one that
/// was forgotten on the way would be tried again and again.
const SILENT: Duration = Duration::from_secs(45);
/// The longest pause before a watch that fails is tried again: until then nobody hears of an end that somebody asks for.
const DEAF: Duration = Duration::from_secs(10);
/// The code of an answer, and of an event, that says that the version which is asked for is no longer there.
const GONE: u16 = StatusCode::GONE.as_u16();
/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(10);

/// The API server.
#[derive(Clone)]
pub struct Connection {
    /// Talks to it.
    pub client: Client,
    /// Its clock, as each answer tells it.
    pub server: Server,
}

/// A client whose calls all end.
///
/// # Errors
/// When the configuration cannot be used, such as a certificate that cannot be read.
pub fn connect(
    mut config: kube::Config,
    clock: &Clock,
    metrics: &Metrics,
) -> Result<Connection, kube::Error> {
    config.connect_timeout = Some(CONNECT);
    config.read_timeout = Some(SILENT);
    // Else a call on a connection that was idle for long would have only what is left.
    config.reset_reader_on_write = true;
    let server = clock.server();
    let patient = Patient { patience: PATIENCE, server: server.clone(), metrics: metrics.clone() };
    let client = ClientBuilder::try_from(config)?.with_layer(&patient).build();
    Ok(Connection { client, server })
}

/// The pauses between the tries of a watch that fails.
#[derive(Default)]
pub struct Pauses {
    pauses: watcher::DefaultBackoff,
    failed: Option<Instant>,
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.failed = Some(Instant::now());
        self.pauses.next().map(|pause| pause.min(DEAF))
    }
}

impl Backoff for Pauses {
    /// Something was heard. Not of one that lists well and then fails again and again: it would list each second.
    fn reset(&mut self) {
        if self.failed.is_none_or(|at| at.elapsed() > DEAF) {
            self.pauses.reset();
        }
    }
}

/// Who the API server takes the owner of these credentials for.
///
/// # Errors
/// When it does not say, which it may refuse to.
pub async fn whoami(client: &Client) -> Result<UserInfo, kube::Error> {
    let reviews: Api<SelfSubjectReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    let user = review.status.and_then(|status| status.user_info).unwrap_or_default();
    Ok(UserInfo {
        username: user.username.unwrap_or_default(),
        uid: user.uid.filter(|uid| !uid.is_empty()),
        groups: user.groups.unwrap_or_default(),
    })
}

/// What is watched with: [`watcher::Config`] for watches that are begun anew often enough.
#[must_use]
pub fn watching() -> watcher::Config {
    watcher::Config::default().timeout(u32::try_from(WATCH.as_secs()).unwrap_or(u32::MAX))
}

/// The API server did not answer.
#[derive(Debug, thiserror::Error)]
#[error("the API server did not answer within {} s", .0.as_secs())]
struct Silent(Duration);

#[derive(Clone, Debug)]
struct Patient {
    patience: Duration,
    server: Server,
    metrics: Metrics,
}

impl<S> Layer<S> for Patient {
    type Service = Bounded<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Bounded { inner, bounds: self.clone() }
    }
}

/// Bounds and counts every call of the service in it.
#[derive(Clone, Debug)]
struct Bounded<S> {
    inner: S,
    bounds: Patient,
}

impl<S, B> Service<Request<Body>> for Bounded<S>
where
    S: Service<Request<Body>, Response = Response<B>>,
    S::Future: Send + 'static,
    S::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Response = Response<Either<Full<Bytes>, B>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let streams = is_watch(request.uri());
        let method = request.method().clone();
        let answer = self.inner.call(request);
        let Patient { patience, server, metrics } = self.bounds.clone();
        let whole = async move {
            let (head, body) = answer.await.map_err(Into::into)?.into_parts();
            if let Some(at) =
                head.headers.get(http::header::DATE).and_then(|date| http_date(date.to_str().ok()?))
            {
                server.said(at);
            }
            let status = head.status;
            if streams && status != StatusCode::GONE {
                return Ok((status, Response::from_parts(head, Either::Right(body))));
            }
            let bytes = body.collect().await.map(http_body_util::Collected::to_bytes);
            if streams {
                let event = expired(&bytes.unwrap_or_default());
                return Ok((status, Response::new(Either::Left(Full::new(event)))));
            }
            let bytes = bytes.map_err(Into::into)?;
            Ok((status, Response::from_parts(head, Either::Left(Full::new(bytes)))))
        };
        Box::pin(async move {
            // Counted also where whoever asked waits for it no longer.
            let mut call = metrics.rest_request(method.as_str());
            let ended = tokio::time::timeout(patience, whole);
            let answer = ended.await.unwrap_or_else(|_| Err(Silent(patience).into()));
            answer.map(|(status, answer)| {
                call.answered(status.as_u16());
                answer
            })
        })
    }
}

/// An answer of 410 to a watch, as the event that API servers send of the same in one that they have begun: only then does
/// [`watcher`] list anew. To an answer it would come back with the version that is gone, and hear nothing ever after.
fn expired(body: &[u8]) -> Bytes {
    let said = serde_json::from_slice::<Status>(body).ok().filter(|said| said.code == GONE);
    let status = said.unwrap_or_else(|| {
        Status::failure("the API server has answered the watch with 410 Gone", "Expired").with_code(GONE)
    });
    let mut line = json!({"type": "ERROR", "object": status}).to_string();
    line.push('\n');
    Bytes::from(line)
}

fn is_watch(uri: &http::Uri) -> bool {
    uri.query().unwrap_or_default().split('&').any(|part| matches!(part, "watch=true" | "watch=1"))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures::StreamExt;
    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::api::{ListParams, WatchParams};
    use kube::runtime::WatchStreamExt;
    use kube::{Api, ResourceExt};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    const SHORT: Duration = Duration::from_millis(300);

    /// A server that has one object, and answers every watch with 410 and this; how often it was listed.
    async fn server_of(gone: &'static str) -> (Client, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let lists = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&lists);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let read = stream.read(&mut request).await.unwrap_or_default();
                let watches = String::from_utf8_lossy(&request[..read]).contains("watch=true");
                let (status, body) = if watches {
                    ("410 Gone", gone.to_owned())
                } else {
                    let number = counted.fetch_add(1, Ordering::SeqCst);
                    let item = json!({"metadata": {"name": format!("listed-{number}"), "namespace": "a"}});
                    ("200 OK", json!({"metadata": {"resourceVersion": "7"}, "items": [item]}).to_string())
                };
                let length = body.len();
                let head =
                    format!("HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close");
                let answer = format!("{head}\r\ncontent-length: {length}\r\n\r\n{body}");
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let patient = Patient { patience: PATIENCE, server: Server::default(), metrics: Metrics::new() };
        (ClientBuilder::try_from(config).unwrap().with_layer(&patient).build(), lists)
    }

    /// What began at a version that the API server no longer has hears of what came since, whatever it says with it.
    #[tokio::test]
    async fn a_watch_that_is_answered_with_410_is_listed_anew() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let status =
            r#"{"kind":"Status","status":"Failure","message":"too old","reason":"Expired","code":410}"#;
        let strange = r#"{"kind":"Status","status":"error","message":null,"code":410}"#;
        for gone in [status, strange, "gone", ""] {
            let (client, lists) = server_of(gone).await;
            let events = watcher(Api::<ConfigMap>::all(client), watching()).backoff(Pauses::default());
            let mut events = std::pin::pin!(events);
            let again = async {
                while let Some(event) = events.next().await {
                    if matches!(&event, Ok(watcher::Event::InitApply(map)) if map.name_any() == "listed-1") {
                        return;
                    }
                }
            };
            let heard = tokio::time::timeout(Duration::from_secs(20), again).await;
            assert!(heard.is_ok(), "{gone:?}: listed {} times", lists.load(Ordering::SeqCst));
        }
    }

    /// A server that says this and then nothing more, and a client that waits for it a little while.
    async fn client_of(head: &'static str) -> Client {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let mut kept = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                let _ = stream.write_all(head.as_bytes()).await;
                kept.push(stream);
            }
        });
        let config = kube::Config::new(format!("http://{address}").parse().unwrap());
        let patient = Patient { patience: SHORT, server: Server::default(), metrics: Metrics::new() };
        ClientBuilder::try_from(config).unwrap().with_layer(&patient).build()
    }

    const HEAD: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";

    #[tokio::test(start_paused = true)]
    async fn a_watch_that_fails_for_long_is_tried_each_ten_seconds_and_at_first_sooner() {
        let mut pauses = Pauses::default();
        let first = pauses.next().unwrap();
        let later: Vec<Duration> = pauses.by_ref().take(20).collect();
        assert!(first < Duration::from_secs(3), "{first:?}");
        assert_eq!(later.last(), Some(&DEAF), "{later:?}");
        assert!(later.iter().all(|pause| *pause <= DEAF));
        // It listed, and fails again at once.
        pauses.reset();
        assert_eq!(pauses.next(), Some(DEAF));
        tokio::time::sleep(DEAF + Duration::from_secs(1)).await;
        pauses.reset();
        assert!(pauses.next().unwrap() < Duration::from_secs(3));
    }

    #[tokio::test]
    async fn a_call_ends_whether_nothing_comes_or_only_a_beginning() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        for head in ["", HEAD] {
            let api: Api<ConfigMap> = Api::all(client_of(head).await);
            let listed = tokio::time::timeout(SHORT * 20, api.list(&ListParams::default())).await;
            let error = listed.expect("the call hangs").unwrap_err();
            assert!(format!("{error:?}").contains("Silent"), "{head:?}: {error:?}");
        }
    }

    #[tokio::test]
    async fn a_watch_is_bounded_until_it_is_answered_and_may_then_be_silent() {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let api: Api<ConfigMap> = Api::all(client_of("").await);
        let watched = tokio::time::timeout(SHORT * 20, api.watch(&WatchParams::default(), "0")).await;
        assert!(watched.expect("the watch hangs").is_err());
        let api: Api<ConfigMap> = Api::all(client_of(HEAD).await);
        let watched = api.watch(&WatchParams::default(), "0").await;
        let mut events = std::pin::pin!(watched.unwrap());
        let next = tokio::time::timeout(SHORT * 3, futures::StreamExt::next(&mut events)).await;
        assert!(next.is_err(), "silence ended the watch");
    }
}
