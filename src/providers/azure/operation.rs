//! Long-running operations: a write is answered at once and ends later.
//!
//! `Azure-AsyncOperation` is preferred, else `Location`; where neither is given, or is an address of somebody
//! else, the resource itself is watched. Whatever keeps the end from being seen is ambiguous: the write was
//! begun.

use std::time::Duration;

use reqwest::{Method, StatusCode};
use serde_json::Value;
use tokio::time::Instant;
use url::Url;

use super::answer::{error, judged, retry_after, subscription, text};
use super::client::{Arm, Reply, Silence, WriteRequest};
use super::errors::{self, Call, Said};
use super::limiter::Class;
use crate::providers::{CloudError, CloudErrorKind, Written};

/// Waits between polls where the cloud says nothing: the first, and the longest.
const FIRST_WAIT: Duration = Duration::from_millis(500);
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// No less, whatever the cloud says.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);

/// Where the end of a write can be seen.
enum Watch {
    Operation(Url),
    Result(Url),
    Resource(Url),
}

enum Seen {
    Under,
    Ended,
    Failed(Said),
    /// It goes on where nobody can see it.
    Unseen(Said),
}

impl Arm {
    /// Waits until a write that was answered well has ended.
    pub(super) async fn wait(
        &self,
        request: &WriteRequest<'_>,
        resource: &Url,
        reply: Reply,
        until: Instant,
    ) -> Result<Written, CloudError> {
        let written = Written { request_id: reply.request_id.clone(), ..Written::default() };
        let Some(watch) = self.watch(request, resource, &reply) else { return Ok(written) };
        let mut last = reply;
        let mut patient = FIRST_WAIT;
        loop {
            let asked = retry_after(&last.headers).unwrap_or(patient).max(SHORTEST_WAIT);
            patient = (patient * 2).min(LONGEST_WAIT);
            // A last look just before patience ends, where the cloud would have us come later.
            let left = until.saturating_duration_since(Instant::now());
            tokio::time::sleep(asked.min(left - left / 4)).await;
            let (Watch::Operation(url) | Watch::Result(url) | Watch::Resource(url)) = &watch;
            // Counted, but not held back: this is how an ending is noticed.
            self.limiter.count(&subscription(url), Class::Read);
            let polled = match self.send(&Method::GET, url, None).await {
                Ok(polled) => polled,
                Err(Silence::NotSent(why) | Silence::Broken(why)) => {
                    tracing::debug!(operation = request.operation, why, "polling again");
                    last.headers.clear();
                    continue;
                }
                Err(Silence::Token(why)) => {
                    let message = format!("begun, but its end cannot be seen: {why}");
                    return Err(error(request.operation, CloudErrorKind::Unanswered, &message));
                }
            };
            last = polled;
            match see(&watch, request, &last) {
                Seen::Under => {}
                Seen::Ended => return Ok(written),
                Seen::Failed(said) => {
                    // The goal may have changed in part: what elsewhere means `try again` is doubt here.
                    let kind = match errors::by_code(&said, Call::Write) {
                        None | Some(CloudErrorKind::Retryable) => CloudErrorKind::Ambiguous,
                        Some(kind) => kind,
                    };
                    return Err(CloudError {
                        request_id: written.request_id,
                        ..judged(request.operation, kind, &said, &last)
                    });
                }
                Seen::Unseen(said) => {
                    return Err(CloudError {
                        request_id: written.request_id,
                        ..judged(request.operation, CloudErrorKind::Unanswered, &said, &last)
                    });
                }
            }
        }
    }

    /// Where to see the end; none where it has ended already.
    fn watch(&self, request: &WriteRequest<'_>, resource: &Url, reply: &Reply) -> Option<Watch> {
        if reply.status == StatusCode::NO_CONTENT {
            return None;
        }
        let own = |name: &str| {
            let address = text(&reply.headers, name)?;
            let own = self.own(&address);
            if own.is_none() {
                tracing::warn!(
                    operation = request.operation,
                    header = name,
                    "an answer points to an address that is not Resource Manager's; it is not followed"
                );
            }
            own
        };
        if let Some(url) = own("azure-asyncoperation") {
            return Some(Watch::Operation(url));
        }
        if reply.status == StatusCode::ACCEPTED
            && let Some(url) = own("location")
        {
            return Some(Watch::Result(url));
        }
        let ended = match (&request.method, reply.status) {
            (_, StatusCode::ACCEPTED) => false,
            (&Method::DELETE, _) => true,
            _ => terminal(&state(&reply.body)),
        };
        (!ended).then(|| Watch::Resource(resource.clone()))
    }
}

/// What one poll shows.
fn see(watch: &Watch, request: &WriteRequest<'_>, reply: &Reply) -> Seen {
    let passing = matches!(reply.status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || reply.status.is_server_error();
    if passing {
        return Seen::Under;
    }
    let failed = || Seen::Failed(errors::parse(&reply.body));
    match watch {
        Watch::Operation(_) if reply.status.is_success() => {
            let body: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
            match body.get("status").and_then(Value::as_str).map(str::to_ascii_lowercase).as_deref() {
                Some("succeeded") => Seen::Ended,
                Some("failed") => failed(),
                Some("canceled" | "cancelled") => Seen::Failed(canceled(errors::parse(&reply.body))),
                // A state that this version does not know is not an end.
                Some(_) | None => Seen::Under,
            }
        }
        Watch::Result(_) if reply.status.is_success() => {
            if reply.status == StatusCode::ACCEPTED {
                Seen::Under
            } else {
                Seen::Ended
            }
        }
        Watch::Resource(_) if request.method == Method::DELETE => match reply.status {
            StatusCode::NOT_FOUND => Seen::Ended,
            status if status.is_success() => Seen::Under,
            _ => failed(),
        },
        Watch::Resource(_) if reply.status.is_success() => match state(&reply.body).as_str() {
            "failed" => failed(),
            "canceled" | "cancelled" => Seen::Failed(canceled(errors::parse(&reply.body))),
            state if terminal(state) => Seen::Ended,
            _ => Seen::Under,
        },
        Watch::Operation(_) | Watch::Result(_) | Watch::Resource(_) => unseen(reply),
    }
}

/// The place to look is gone or refused to us: that says nothing of the write itself.
fn unseen(reply: &Reply) -> Seen {
    let said = errors::parse(&reply.body);
    let about_the_poll =
        matches!(
            reply.status,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE
        ) && !matches!(errors::by_code(&said, Call::Write), Some(CloudErrorKind::RefusedByPolicy));
    if about_the_poll {
        let message = format!("begun, but its end cannot be seen: {}: {}", reply.status, said.message);
        return Seen::Unseen(Said { code: None, message });
    }
    Seen::Failed(said)
}

/// A cancelled operation is doubtful whatever code comes with it.
fn canceled(said: Said) -> Said {
    Said {
        code: Some("Canceled".into()),
        message: format!("{} {}", said.code.unwrap_or_default(), said.message),
    }
}

/// The state of a resource, in lower case; empty where it has none.
fn state(body: &[u8]) -> String {
    let body: Value = serde_json::from_slice(body).unwrap_or_default();
    let state = body.pointer("/properties/provisioningState").and_then(Value::as_str);
    state.unwrap_or_default().to_ascii_lowercase()
}

/// A resource without a state has ended: it is only written.
fn terminal(state: &str) -> bool {
    matches!(state, "" | "succeeded")
}
