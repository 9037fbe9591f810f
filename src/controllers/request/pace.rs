//! How often one requester's waiting requests are looked at: whoever asks without end keeps nobody else waiting, and
//! no grant of theirs from being closed.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::JitAccessRequest;
use crate::plan::lifecycle::state;
use crate::plan::people::Pipelines;

/// Looks at one requester's requests that come at once, after a pause.
const BURST: u32 = 50;
/// From then on, one in so much time.
const INTERVAL: Duration = Duration::from_millis(40);
/// The most places that are kept before those that nobody came back for are forgotten.
const MOST: usize = 50_000;

/// Somebody who asks: a namespace, and who asks there.
pub(super) type Asker = (String, String);

/// Who asks.
pub(super) fn asker(request: &JitAccessRequest, pipelines: &Pipelines) -> Asker {
    let who = request.spec.requester.as_ref().map(|user| user.username.as_str()).unwrap_or_default();
    // Whoever has one service account can have a thousand.
    let who = if pipelines.has(who) { "system:serviceaccount:" } else { who };
    (request.namespace().unwrap_or_default(), who.trim().to_lowercase())
}

/// The pace of each requester in each namespace. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Pace(Arc<Mutex<Places>>);

#[derive(Debug, Default)]
struct Places {
    /// When the next place of a requester would be.
    next: HashMap<Asker, Instant>,
    /// The places that were given, by the request's UID.
    given: HashMap<String, Instant>,
}

impl Pace {
    /// How long a request has to wait until it is looked at; none: it is its turn. What holds rules, is over or is
    /// being deleted never waits.
    pub(super) fn wait(
        &self,
        request: &JitAccessRequest,
        pipelines: &Pipelines,
        now: Instant,
    ) -> Option<Duration> {
        if !state(request).is_waiting() || request.metadata.deletion_timestamp.is_some() {
            return None;
        }
        self.place(asker(request, pipelines), request.uid().unwrap_or_default(), now)
    }

    fn place(&self, requester: Asker, uid: String, now: Instant) -> Option<Duration> {
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(at) = places.given.get(&uid).copied() {
            // Woken before its time, it keeps the place that it has.
            if at > now {
                return Some(at - now);
            }
            places.given.remove(&uid);
            return None;
        }
        places.forget(now);
        // Time that was not used is given back, up to a burst.
        let since = now.checked_sub(INTERVAL * BURST).unwrap_or(now);
        let next = places.next.entry(requester).or_insert(since);
        *next = (*next).max(since) + INTERVAL;
        let at = *next;
        if at <= now {
            return None;
        }
        places.given.insert(uid, at);
        Some(at - now)
    }
}

impl Places {
    /// Requests that are gone, and requesters that have long had nothing to wait for.
    fn forget(&mut self, now: Instant) {
        if self.given.len() > MOST {
            self.given.retain(|_, at| *at > now);
        }
        if self.next.len() > MOST {
            self.next.retain(|_, at| *at + INTERVAL * BURST > now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{JitAccessRequestStatus, UserInfo};

    fn request(namespace: &str, who: &str, uid: u32) -> JitAccessRequest {
        let mut request = JitAccessRequest::default();
        request.metadata.namespace = Some(namespace.to_owned());
        request.metadata.uid = Some(format!("{who}-{uid}"));
        request.spec.requester = Some(UserInfo { username: who.to_owned(), ..UserInfo::default() });
        request
    }

    fn wait(pace: &Pace, request: &JitAccessRequest, now: Instant) -> Option<Duration> {
        pace.wait(request, &Pipelines::default(), now)
    }

    /// A requester who has used up the burst at `now`.
    fn flooded(now: Instant) -> Pace {
        let pace = Pace::default();
        let held = (0..BURST * 2).filter(|uid| wait(&pace, &request("a", "mallory", *uid), now).is_some());
        assert!(held.count() >= BURST as usize);
        pace
    }

    #[tokio::test]
    async fn many_of_one_requester_are_spread_over_time_and_nobody_elses_wait() {
        let now = Instant::now();
        let pace = flooded(now);
        let late = wait(&pace, &request("a", "mallory", 1000), now).unwrap();
        assert!(late >= INTERVAL * (BURST - 1), "{late:?}");
        assert_eq!(wait(&pace, &request("a", "Mallory ", 1001), now), Some(late + INTERVAL), "one person");
        assert_eq!(wait(&pace, &request("a", "alice", 1), now), None);
        assert_eq!(wait(&pace, &request("b", "mallory", 2), now), None, "another namespace");
        let later = now + INTERVAL * BURST * 4;
        assert_eq!(wait(&pace, &request("a", "mallory", 1002), later), None, "who has waited long enough");
    }

    #[tokio::test]
    async fn who_is_woken_early_keeps_its_place_and_gets_its_turn() {
        let now = Instant::now();
        let pace = flooded(now);
        let one = request("a", "mallory", 1000);
        let first = wait(&pace, &one, now).unwrap();
        let half = first / 2;
        assert_eq!(wait(&pace, &one, now + half), Some(first - half));
        assert_eq!(wait(&pace, &one, now + first), None);
        let next = wait(&pace, &request("a", "mallory", 1001), now + first);
        assert!(next.is_some_and(|next| next <= INTERVAL), "being woken cost no places: {next:?}");
    }

    #[tokio::test]
    async fn what_is_to_be_closed_or_is_being_deleted_never_waits() {
        let now = Instant::now();
        let pace = flooded(now);
        let mut live = request("a", "mallory", 1000);
        live.status =
            Some(JitAccessRequestStatus { state: Some("Closing".to_owned()), ..Default::default() });
        assert_eq!(wait(&pace, &live, now), None);
        let mut deleted = request("a", "mallory", 1001);
        deleted.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert_eq!(wait(&pace, &deleted, now), None);
    }

    #[tokio::test]
    async fn a_thousand_service_accounts_have_the_pace_of_one() {
        let now = Instant::now();
        let pace = Pace::default();
        let account = |number: u32| request("a", &format!("system:serviceaccount:a:bot-{number}"), number);
        let held = (0..1000).filter(|number| wait(&pace, &account(*number), now).is_some()).count();
        assert!(held >= 1000 - BURST as usize - 1, "{held}");
    }
}
