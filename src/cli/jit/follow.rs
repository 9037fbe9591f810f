//! Waiting for an object to become something, with a line for each change on standard error.

use std::fmt::Debug;
use std::io::Write;
use std::pin::pin;
use std::time::{Duration, Instant};

use futures::StreamExt;
use kube::core::NamespaceResourceScope;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, watch_object};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

use super::failure::{Failure, chain};
use super::text::plain;
use super::view;
use crate::api::values::Span;
use crate::api::{ConditionType, JitAccessRequest, State, Tolerant, is_true};

/// What the person in front of it is told meanwhile.
pub struct Progress {
    begun: Instant,
    last: String,
}

impl Progress {
    /// Begins now.
    #[must_use]
    pub fn new() -> Self {
        Self { begun: Instant::now(), last: String::new() }
    }

    /// Says a line, unless it is the same as the one before.
    pub fn say(&mut self, line: &str) {
        if self.last != line {
            self.last = line.to_owned();
            let seconds = self.begun.elapsed().as_secs();
            // Nobody is left to be told where standard error is closed.
            let _ = writeln!(std::io::stderr(), "[{seconds:4}s] {}", plain(line));
        }
    }
}

/// Until when to wait.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    length: Option<Duration>,
    begun: Instant,
}

impl Patience {
    /// So long from now; none: for ever.
    #[must_use]
    pub fn new(length: Option<Duration>) -> Self {
        Self { length, begun: Instant::now() }
    }

    /// The same, or so long from now where there is no end.
    #[must_use]
    pub fn or(self, length: Duration) -> Self {
        if self.length.is_some() { self } else { Self::new(Some(length)) }
    }

    /// As long as is left, and so long at most from now.
    #[must_use]
    pub fn at_most(self, length: Duration) -> Self {
        Self::new(Some(self.left().min(length)))
    }

    fn left(self) -> Duration {
        // A year is for ever.
        self.length
            .map_or(Duration::from_secs(365 * 86_400), |length| length.saturating_sub(self.begun.elapsed()))
    }
}

/// Watches an object until it is what it should be, or never will be.
///
/// # Errors
/// What `judge` says of it; when it may not be watched; when patience is at its end.
pub async fn until<K, T>(
    api: Api<Tolerant<K>>,
    name: &str,
    patience: Patience,
    what: &str,
    mut judge: impl FnMut(Option<&K>) -> Option<Result<T, Failure>>,
) -> Result<T, Failure>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>,
    Tolerant<K>: Clone + Debug + Send + DeserializeOwned + 'static,
{
    let mut stream = pin!(watch_object(api, name).default_backoff());
    let mut trouble = String::new();
    let watching = async {
        while let Some(event) = stream.next().await {
            match event {
                Ok(object) => {
                    trouble.clear();
                    if let Some(verdict) = judge(object.as_ref().map(|object| &object.0)) {
                        return verdict;
                    }
                }
                Err(error) if is_final(&error) => return Err(error.into()),
                Err(error) => trouble = format!("; the last try failed: {}", chain(&error)),
            }
        }
        Err(Failure::error(format!("the watch of {name} ended")))
    };
    let timed = tokio::time::timeout(patience.left(), watching).await;
    timed.unwrap_or_else(|_| {
        let length = patience.length.map(Span::of).unwrap_or_default();
        Err(Failure::timed_out(format!("{what}: not within {length}{trouble}")))
    })
}

/// Whether the API server says no, rather than nothing.
fn is_final(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => {
            matches!(status.code, 401 | 403 | 404)
        }
        watcher::Error::WatchError(status) => matches!(status.code, 401 | 403),
        watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchStartFailed(_)
        | watcher::Error::WatchFailed(_)
        | watcher::Error::NoResourceVersion => false,
    }
}

/// The object as it was when it was first seen: a namesake is another one.
fn same<'a>(found: Option<&'a JitAccessRequest>, uid: Option<&str>) -> Option<&'a JitAccessRequest> {
    found.filter(|found| found.metadata.uid.as_deref() == uid)
}

/// Whether access is open, or will never be.
#[must_use]
pub fn access(
    found: Option<&JitAccessRequest>,
    uid: Option<&str>,
) -> Option<Result<JitAccessRequest, Failure>> {
    let Some(found) = same(found, uid) else {
        return Some(Err(Failure::no_access("the request was deleted")));
    };
    let conditions = found.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    let standing = view::standing(found);
    match view::state(found) {
        State::Active if is_true(conditions, ConditionType::Active) => Some(Ok(found.clone())),
        State::Denied => Some(Err(Failure::refused(standing))),
        State::Pending | State::Approved | State::Scheduled | State::Opening | State::Active => None,
        State::Closing
        | State::Expired
        | State::Ended
        | State::Revoked
        | State::TimedOut
        | State::Failed
        | State::Void => Some(Err(Failure::no_access(standing))),
    }
}

/// Whether it is over, with nothing of it left in the cloud.
#[must_use]
pub fn closed(
    found: Option<&JitAccessRequest>,
    uid: Option<&str>,
) -> Option<Result<Option<JitAccessRequest>, Failure>> {
    match same(found, uid) {
        // Its finalizer holds it until every rule is read back as gone.
        None => Some(Ok(None)),
        Some(found) if view::state(found).is_last() => Some(Ok(Some(found.clone()))),
        Some(_) => None,
    }
}

/// Follows a request until `judge` is content, and tells of each change.
///
/// # Errors
/// As [`until`].
pub async fn request<T>(
    api: Api<Tolerant<JitAccessRequest>>,
    request: &JitAccessRequest,
    patience: Patience,
    what: &str,
    judge: impl Fn(Option<&JitAccessRequest>, Option<&str>) -> Option<Result<T, Failure>>,
) -> Result<T, Failure> {
    let name = request.metadata.name.clone().unwrap_or_default();
    let mut progress = Progress::new();
    until(api, &name, patience, what, |found| {
        if let Some(found) = same(found, request.metadata.uid.as_deref()) {
            progress.say(&view::standing(found));
        }
        judge(found, request.metadata.uid.as_deref())
    })
    .await
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::failure::Exit;
    use super::*;

    fn request(state: &str, active: &str) -> JitAccessRequest {
        serde_json::from_value(json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": "a", "uid": "1"},
            "spec": {"policyRef": {"name": "p"}, "duration": "1h", "ports": []},
            "status": {"state": state, "expiresAt": "2026-01-31T12:00:00Z", "conditions": [{
                "type": "Active", "status": active, "reason": "R", "message": "m", "lastTransitionTime": "2026-01-31T12:00:00Z"}]},
        }))
        .unwrap()
    }

    #[test]
    fn waiting_for_access_ends_in_one_of_three_ways() {
        let exit = |state: &str, active: &str| {
            access(Some(&request(state, active)), Some("1"))
                .map(|verdict| verdict.map_or_else(|failure| failure.exit, |_| Exit::Ok))
        };
        for state in ["Pending", "Approved", "Scheduled", "Opening"] {
            assert_eq!(exit(state, "False"), None, "{state}");
        }
        assert_eq!(exit("Active", "True"), Some(Exit::Ok));
        assert_eq!(exit("Active", "False"), None, "another rule stops its packets");
        assert_eq!(exit("Denied", "False"), Some(Exit::Refused));
        for state in ["Closing", "Expired", "Ended", "Revoked", "TimedOut", "Failed", "Void"] {
            assert_eq!(exit(state, "False"), Some(Exit::NoAccess), "{state}");
        }
        assert_eq!(access(None, Some("1")).unwrap().unwrap_err().exit, Exit::NoAccess);
        let other = access(Some(&request("Active", "True")), Some("2"));
        assert_eq!(other.unwrap().unwrap_err().exit, Exit::NoAccess, "a namesake is another request");
    }

    #[test]
    fn waiting_for_the_end_ends_when_nothing_is_left() {
        assert!(closed(Some(&request("Closing", "False")), Some("1")).is_none());
        assert!(closed(Some(&request("Active", "True")), Some("1")).is_none());
        for state in ["Expired", "Ended", "Revoked", "Denied", "Failed"] {
            assert!(closed(Some(&request(state, "False")), Some("1")).unwrap().unwrap().is_some());
        }
        assert!(closed(None, Some("1")).unwrap().unwrap().is_none());
    }
}
