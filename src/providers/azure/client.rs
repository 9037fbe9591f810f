//! Resource Manager over HTTP: reads that are tried again, writes that are not, and nothing sent to strangers.
//!
//! - A read is tried again, with full jitter and `Retry-After`, within [`READ_TIME`].
//! - A write is sent again only where it surely was not begun: no connection came about, or the token was
//!   refused. What was sent and not answered is [`CloudErrorKind::Unanswered`].
//! - Every address that an answer gives (next page, operation) must be of Resource Manager itself: the token
//!   goes nowhere else.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::SignedDuration;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::answer::{error, held_back, jitter, judged, no_token, retry_after, subscription};
use super::errors::{self, Call};
use super::limiter::{Class, Limiter, Urgency};
use super::token::{TokenError, Tokens};
use super::usage::Calls;
use crate::clock::{Clock, Server};
use crate::providers::{CloudError, CloudErrorKind, Usage, Written};

mod send;

/// Longest that a read takes, retries included.
pub(super) const READ_TIME: Duration = Duration::from_secs(45);
/// Longest that one attempt of a read takes.
const ATTEMPT_TIME: Duration = Duration::from_secs(15);
const ATTEMPTS: u32 = 5;
/// Longest that a write which opens or locks waits for its turn under the cloud's limits.
const HELD_BACK: Duration = Duration::from_secs(1);
/// Pages of a list: at a thousand a page, more than a subscription holds.
const PAGES: usize = 1000;
/// Bytes of an answer: a full network security group is about one megabyte.
const LARGEST: usize = 32 << 20;
/// Bytes of all pages of a list: a thousand groups of a hundred rules each.
const LARGEST_LIST: usize = 128 << 20;
/// Resource Manager as one credential sees it.
pub(super) struct Arm {
    http: reqwest::Client,
    base: Url,
    tokens: Arc<Tokens>,
    pub(super) limiter: Limiter,
    calls: Calls,
    clock: Clock,
    /// The cloud's own clock, as of the last answer.
    server: Server,
}

/// What was read.
struct Read {
    /// A JSON object.
    value: Value,
    /// How long it was as it came.
    bytes: usize,
}

/// A write to be sent.
pub(super) struct WriteRequest<'a> {
    /// What is done, for messages.
    pub(super) operation: &'a str,
    pub(super) method: Method,
    pub(super) path: &'a str,
    pub(super) api_version: &'a str,
    /// The version that it replaces: refused where that is no longer the present one.
    pub(super) if_match: Option<String>,
    pub(super) body: Option<Value>,
    pub(super) urgency: Urgency,
    /// Bounds the first answer to what is no close, from the beginning of the call: nothing is sent later, and what was
    /// sent and not answered by then may still arrive, but not much later. Of a close it bounds each attempt.
    pub(super) answer: Duration,
    /// Bounds the whole call, with the operation that the answer begins.
    pub(super) patience: Duration,
}

/// An answer of any status.
pub(super) struct Reply {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Vec<u8>,
    /// The cloud's id of the request, or else the one that was sent along.
    pub(super) request_id: Option<String>,
    /// Whether Resource Manager itself answered, by its id.
    pub(super) by_resource_manager: bool,
}

/// No answer.
pub(super) enum Silence {
    /// No connection came about: nothing was sent.
    NotSent(String),
    /// Sent, perhaps in part.
    Broken(String),
    /// There is no token.
    Token(TokenError),
}

impl Arm {
    pub(super) fn new(http: reqwest::Client, base: Url, tokens: Arc<Tokens>, clock: Clock) -> Self {
        let server = clock.server();
        Self { http, base, tokens, limiter: Limiter::default(), calls: Calls::default(), clock, server }
    }

    /// By how much the cloud's clock was ahead of ours when it last answered, to a second or two.
    pub(super) fn ahead(&self) -> Option<SignedDuration> {
        self.clock.ahead(&self.server)
    }

    /// What it has been asked, and what it may be asked.
    pub(super) fn usage(&self) -> Usage {
        Usage { calls: self.calls.all(), ..self.limiter.usage() }
    }

    /// The address of a path of Resource Manager.
    pub(super) fn url(&self, path: &str, api_version: &str, query: &[(&str, &str)]) -> Url {
        let mut url = self.base.clone();
        url.set_path(path);
        url.query_pairs_mut().append_pair("api-version", api_version).extend_pairs(query);
        url
    }

    /// An address that an answer gave, if it is Resource Manager's own.
    pub(super) fn own(&self, address: &str) -> Option<Url> {
        let url = self.base.join(address).ok()?;
        (url.origin() == self.base.origin() && url.username().is_empty() && url.password().is_none())
            .then_some(url)
    }

    /// Reads one resource.
    pub(super) async fn get(
        &self,
        operation: &str,
        path: &str,
        api_version: &str,
        urgency: Urgency,
    ) -> Result<Value, CloudError> {
        let read = self.read(operation, Method::GET, self.url(path, api_version, &[]), None, urgency).await?;
        Ok(read.value)
    }

    /// Reads a whole list, page after page; a list that cannot be read to its end is an error.
    pub(super) async fn list(
        &self,
        operation: &str,
        path: &str,
        api_version: &str,
        query: &[(&str, &str)],
        urgency: Urgency,
    ) -> Result<Vec<Value>, CloudError> {
        let (mut items, mut size) = (Vec::new(), 0);
        let mut seen = HashSet::new();
        let mut url = self.url(path, api_version, query);
        loop {
            if !seen.insert(url.clone()) || seen.len() > PAGES {
                return Err(error(operation, CloudErrorKind::Retryable, "the pages of the list do not end"));
            }
            let Read { value: mut page, bytes } =
                self.read(operation, Method::GET, url, None, urgency).await?;
            size += bytes;
            if size > LARGEST_LIST {
                let message = format!("the list is larger than {} MiB", LARGEST_LIST >> 20);
                return Err(error(operation, CloudErrorKind::Invalid, &message));
            }
            let Some(Value::Array(values)) = page.get_mut("value").map(Value::take) else {
                return Err(error(operation, CloudErrorKind::Retryable, "the answer is not a list"));
            };
            items.extend(values);
            match page.get("nextLink") {
                None | Some(Value::Null) => return Ok(items),
                Some(Value::String(next)) if next.is_empty() => return Ok(items),
                Some(next) => {
                    url = next.as_str().and_then(|next| self.own(next)).ok_or_else(|| {
                        let message =
                            "the next page is at an address that is not Resource Manager's: not followed";
                        error(operation, CloudErrorKind::Invalid, message)
                    })?;
                }
            }
        }
    }

    /// Reads a whole list below a scope. A resource group that is gone holds nothing.
    pub(super) async fn list_scope(
        &self,
        operation: &str,
        path: &str,
        api_version: &str,
        urgency: Urgency,
    ) -> Result<Vec<Value>, CloudError> {
        match self.list(operation, path, api_version, &[], urgency).await {
            Err(error) if error.code.as_deref() == Some("ResourceGroupNotFound") => Ok(Vec::new()),
            listed => listed,
        }
    }

    /// Reads with a body, where Azure has it so.
    pub(super) async fn query(
        &self,
        operation: &str,
        path: &str,
        api_version: &str,
        body: &Value,
        urgency: Urgency,
    ) -> Result<Value, CloudError> {
        let read =
            self.read(operation, Method::POST, self.url(path, api_version, &[]), Some(body), urgency).await?;
        Ok(read.value)
    }

    /// Reads, and tries again what may pass. The answer is a JSON object.
    async fn read(
        &self,
        operation: &str,
        method: Method,
        url: Url,
        body: Option<&Value>,
        urgency: Urgency,
    ) -> Result<Read, CloudError> {
        let until = Instant::now() + READ_TIME;
        let mut attempt = 0;
        loop {
            attempt += 1;
            let failed = match self.read_once(operation, &method, &url, body, urgency, until).await {
                Ok(read) => return Ok(read),
                Err(failed) => failed,
            };
            let wait = failed.retry_after.unwrap_or_else(|| jitter(attempt));
            let again = failed.kind == CloudErrorKind::Retryable && attempt < ATTEMPTS;
            if !again || Instant::now() + wait >= until {
                return Err(failed);
            }
            tracing::debug!(error = %failed, attempt, wait.ms = wait.as_millis(), "reading again");
            tokio::time::sleep(wait).await;
        }
    }

    async fn read_once(
        &self,
        operation: &str,
        method: &Method,
        url: &Url,
        body: Option<&Value>,
        urgency: Urgency,
        until: Instant,
    ) -> Result<Read, CloudError> {
        let subscription = subscription(url);
        self.limiter
            .acquire(&subscription, &[Class::Read], urgency, until)
            .await
            .map_err(|wait| held_back(operation, wait))?;
        let deadline = until.min(Instant::now() + ATTEMPT_TIME);
        let reply = tokio::time::timeout_at(deadline, self.send(method, url, body))
            .await
            .unwrap_or_else(|_| Err(Silence::Broken(format!("no answer in {ATTEMPT_TIME:?}"))))
            .map_err(|silence| match silence {
                Silence::NotSent(why) | Silence::Broken(why) => {
                    error(operation, CloudErrorKind::Retryable, &why)
                }
                Silence::Token(why) => no_token(operation, &why),
            })?;
        if !reply.status.is_success() {
            return Err(self.refused(operation, &reply, Call::Read, &subscription, Class::Read));
        }
        match serde_json::from_slice(&reply.body) {
            Ok(value @ Value::Object(_)) => Ok(Read { value, bytes: reply.body.len() }),
            Ok(_) | Err(_) => Err(CloudError {
                request_id: reply.request_id.clone(),
                ..error(operation, CloudErrorKind::Retryable, "the answer is not a JSON object")
            }),
        }
    }

    /// Writes, and waits until the cloud has ended it.
    pub(super) async fn write(&self, request: WriteRequest<'_>) -> Result<Written, CloudError> {
        let sent = AtomicBool::new(false);
        let until = Instant::now() + request.patience;
        match tokio::time::timeout_at(until, self.write_within(&request, until, &sent)).await {
            Ok(ended) => ended,
            Err(_) => {
                let message = format!("it had not ended after {:?}", request.patience);
                let kind = if sent.load(Ordering::SeqCst) {
                    CloudErrorKind::Unanswered
                } else {
                    CloudErrorKind::Retryable
                };
                Err(error(request.operation, kind, &message))
            }
        }
    }

    async fn write_within(
        &self,
        request: &WriteRequest<'_>,
        until: Instant,
        sent: &AtomicBool,
    ) -> Result<Written, CloudError> {
        let operation = request.operation;
        let url = self.url(request.path, request.api_version, &[]);
        let subscription = subscription(&url);
        let own = if request.method == Method::DELETE { Class::Delete } else { Class::Write };
        let answered_by = Instant::now() + request.answer;
        // Who waits here holds up the closes of the same firewall: better told to come again.
        let patient = match request.urgency {
            Urgency::Close => until,
            Urgency::Lock | Urgency::Open | Urgency::Background => until.min(Instant::now() + HELD_BACK),
        };
        self.limiter
            .acquire(&subscription, &[own, Class::Network], request.urgency, patient)
            .await
            .map_err(|wait| held_back(operation, wait))?;
        // Ahead of the sending, so that who waits for a token in vain knows that nothing was sent.
        self.tokens.get().await.map_err(|why| no_token(operation, &why))?;
        let mut attempt = 0;
        let reply = loop {
            attempt += 1;
            let left = match request.urgency {
                Urgency::Close => request.answer,
                Urgency::Lock | Urgency::Open | Urgency::Background => {
                    answered_by.saturating_duration_since(Instant::now())
                }
            };
            if left.is_zero() {
                let message = format!("it could not be sent within {:?}", request.answer);
                return Err(error(operation, CloudErrorKind::Retryable, &message));
            }
            sent.store(true, Ordering::SeqCst);
            let (body, if_match) = (request.body.as_ref(), request.if_match.as_deref());
            let send = self.send_if(&request.method, &url, body, if_match);
            let answer = tokio::time::timeout(left, send)
                .await
                .unwrap_or_else(|_| Err(Silence::Broken(format!("no answer in {left:?}"))));
            match answer {
                Ok(reply) => break reply,
                Err(Silence::NotSent(why)) => {
                    sent.store(false, Ordering::SeqCst);
                    let wait = jitter(attempt);
                    if attempt >= ATTEMPTS || Instant::now() + wait >= until {
                        return Err(error(operation, CloudErrorKind::Retryable, &why));
                    }
                    tokio::time::sleep(wait).await;
                }
                Err(Silence::Broken(why)) => return Err(error(operation, CloudErrorKind::Unanswered, &why)),
                Err(Silence::Token(why)) => return Err(no_token(operation, &why)),
            }
        };
        if !reply.status.is_success() {
            return Err(self.refused(operation, &reply, Call::Write, &subscription, own));
        }
        self.wait(request, &url, reply, until).await
    }

    /// The error that an answer stands for.
    pub(super) fn refused(
        &self,
        operation: &str,
        reply: &Reply,
        call: Call,
        subscription: &str,
        class: Class,
    ) -> CloudError {
        let said = errors::parse(&reply.body);
        let retry_after = retry_after(&reply.headers);
        let locked = said.code.as_deref().is_some_and(|code| code.starts_with("RetryableError"));
        if reply.status == StatusCode::TOO_MANY_REQUESTS && !locked {
            let wait = retry_after.unwrap_or(Duration::from_secs(5));
            self.limiter.block(subscription, class, wait);
        }
        let kind = match errors::classify(reply.status.as_u16(), &said, call) {
            // A gateway on the way speaks for nobody: what it was given may still be carried out.
            CloudErrorKind::Ambiguous if !reply.by_resource_manager => CloudErrorKind::Unanswered,
            kind => kind,
        };
        judged(operation, kind, &said, reply)
    }
}
