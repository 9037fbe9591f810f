//! Whether the admission policies are in force: looked at on every change, at least every 15 s, and anew before
//! each grant.
//!
//! What a look means is decided in [`crate::plan::admission::interval`]. The beginning of an interval is written
//! down in a ConfigMap in the controller's own namespace; the API server dates it, and [`Settings::margin`] later is
//! the moment from which what is created counts. Every read is a consistent one: whatever the cache of an API server
//! shows, a change that had been made when a look began is seen by it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll};
use futures::{FutureExt, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ApiResource, DeleteParams, DynamicObject, ListParams, PostParams, Preconditions};
use kube::core::GroupVersionKind;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::{Context, connection};
use crate::api::Tolerant;
use crate::api::admission::{AdmissionKind, AdmissionObject, InvalidUser, objects};
use crate::plan::admission::Admission;
use crate::plan::admission::interval::{Found, Guard, Next, Record, Sight, advice, judge};

pub mod definitions;

use definitions::Definitions;

/// The ConfigMap in which the beginning of an interval is written down.
pub const MARKER: &str = "portcullis-admission";
/// The key in it.
const RECORD: &str = "record";
const ABOUT: &str = "Since the creation of this object, and a margin, the admission policies are in force without a \
    break. Deleted, it is written anew, and every request that is older and not granted becomes Void.";

/// The longest time between two looks.
const POLL: Duration = Duration::from_secs(15);
/// The shortest: many that ask at once are answered by one look.
const GAP: Duration = Duration::from_millis(50);
/// After a look that failed.
const RETRY: Duration = Duration::from_secs(2);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long the last answer of the API server is taken for the present state.
const STALE: Duration = Duration::from_secs(60);

/// What the looks go by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The user whom the policies let through.
    pub controller_user: String,
    /// The controller's own namespace.
    pub namespace: String,
    /// From the writing of the marker to the moment from which objects count: API servers follow their policies with
    /// a delay, and their clocks differ.
    pub margin: Duration,
}

/// What is known of admission. Clones share it.
#[derive(Clone, Debug)]
pub struct Proof(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    known: watch::Sender<Known>,
    definitions: watch::Sender<Definitions>,
    /// How many looks have begun.
    begun: AtomicU64,
    /// Looks up to this one say nothing any more.
    forgotten: AtomicU64,
    wanted: Notify,
}

#[derive(Clone, Debug)]
struct Known {
    /// The number of the last look that ended.
    look: u64,
    /// What the last look that was answered meant.
    admission: Admission,
    /// When that one began.
    at: Option<Instant>,
    /// Why the last look was not answered.
    failure: Option<String>,
}

impl Default for Known {
    fn default() -> Self {
        let why = "the admission policies have not been looked at yet".to_owned();
        Self { look: 0, admission: Admission::NotInForce { why }, at: None, failure: None }
    }
}

impl Default for Proof {
    fn default() -> Self {
        Self(Arc::new(Shared {
            known: watch::Sender::default(),
            definitions: watch::Sender::default(),
            begun: AtomicU64::new(0),
            forgotten: AtomicU64::new(0),
            wanted: Notify::new(),
        }))
    }
}

impl Proof {
    /// What the last look meant. Not in force where the API server has been silent for too long.
    #[must_use]
    pub fn now(&self) -> Admission {
        // Under definitions that lack something the policies vouch for what is created all the same: their interval
        // goes on.
        if let Some(why) = self.0.definitions.borrow().why() {
            return Admission::NotInForce { why };
        }
        let known = self.0.known.borrow();
        match (&known.failure, known.at) {
            (Some(why), at) if at.is_none_or(|at| at.elapsed() > STALE) => {
                Admission::NotInForce { why: why.clone() }
            }
            _ => known.admission.clone(),
        }
    }

    /// What a look means that begins now: to be asked before a grant, since a policy may have been taken away
    /// between the last look and the moment at which the request was made.
    pub async fn confirmed(&self) -> Admission {
        let last = self.0.begun.load(Ordering::SeqCst);
        let mut known = self.0.known.subscribe();
        self.0.wanted.notify_one();
        let ended = tokio::time::timeout(PATIENCE, known.wait_for(|known| known.look > last)).await;
        match ended {
            Ok(Ok(known)) => match &known.failure {
                Some(why) => Admission::NotInForce { why: why.clone() },
                None => self
                    .0
                    .definitions
                    .borrow()
                    .why()
                    .map_or_else(|| known.admission.clone(), |why| Admission::NotInForce { why }),
            },
            // The sender is ours, so it cannot be gone.
            Ok(Err(_)) | Err(_) => Admission::NotInForce { why: "the API server does not answer".to_owned() },
        }
    }

    /// Whether the first look has ended, well or not.
    #[must_use]
    pub fn has_looked(&self) -> bool {
        self.0.known.borrow().look > 0 && *self.0.definitions.borrow() != Definitions::Unseen
    }

    /// Why admission is not in force, once it was looked at.
    #[must_use]
    pub fn broken(&self) -> Option<String> {
        if !self.has_looked() {
            return None;
        }
        match self.now() {
            Admission::InForce { .. } => None,
            Admission::NotInForce { why } => Some(why),
        }
    }

    /// Nothing is known any more.
    pub(super) fn forget(&self) {
        // Nor what a look that is under way will say.
        self.0.forgotten.store(self.0.begun.load(Ordering::SeqCst), Ordering::SeqCst);
        self.0.known.send_replace(Known::default());
    }

    fn begin(&self) -> u64 {
        self.0.begun.fetch_add(1, Ordering::SeqCst) + 1
    }

    /// Takes note of how a look ended; whether that is news.
    fn end(&self, look: u64, at: Instant, result: Result<Admission, String>) -> bool {
        if look <= self.0.forgotten.load(Ordering::SeqCst) {
            return false;
        }
        let before = self.now();
        let failed = self.0.known.borrow().failure.is_some();
        self.0.known.send_modify(|known| {
            known.look = look;
            match result {
                Ok(admission) => (known.admission, known.at, known.failure) = (admission, Some(at), None),
                Err(why) => known.failure = Some(why),
            }
        });
        look == 1 || before != self.now() || failed != self.0.known.borrow().failure.is_some()
    }
}

/// Why a look was not answered.
#[derive(Debug, thiserror::Error)]
enum LookError {
    #[error("failed to {0}: {1}")]
    Api(String, kube::Error),
    #[error("the API server has not answered within {} s", PATIENCE.as_secs())]
    Silent,
}

/// Looks until shutdown.
pub async fn run(context: &Context) {
    let looker = match Looker::new(context) {
        Ok(looker) => looker,
        Err(error) => {
            // The configuration's check lets none through.
            context.admission.end(1, Instant::now(), Err(error.to_string()));
            return std::future::pending().await;
        }
    };
    let proof = &context.admission;
    let mut watched = None;
    let mut told = Told::default();
    loop {
        // The beginning of an interval is written down by one replica alone.
        if !context.leadership.is_holder() {
            watched = None;
            context.leadership.held().await;
        }
        let changes = watched.get_or_insert_with(|| changes(&context.client));
        let (look, at) = (proof.begin(), Instant::now());
        let result = tokio::time::timeout(PATIENCE, looker.look(&mut told))
            .await
            .unwrap_or(Err(LookError::Silent))
            .map_err(|error| error.to_string());
        let failed = result.is_err();
        let news = proof.end(look, at, result);
        if news {
            tell(context, failed);
        }
        let rest = match (failed, waiting(context)) {
            (true, _) => RETRY,
            (false, Some(still)) => still.clamp(GAP, POLL),
            (false, None) => POLL,
        };
        tokio::select! {
            () = tokio::time::sleep(rest) => {}
            () = proof.0.wanted.notified() => {}
            // Never ends; whatever it says, there is something to look at.
            _ = changes.next() => {}
        }
        tokio::time::sleep(GAP).await;
        while changes.next().now_or_never().flatten().is_some() {}
    }
}

/// Sets the gauge; how long until what is created counts, where that is still to come.
fn waiting(context: &Context) -> Option<Duration> {
    let Admission::InForce { since } = context.admission.now() else {
        context.metrics.admission_in_force(false);
        return None;
    };
    // An object is dated in whole seconds, and counts when its second is past that moment.
    let counts = since.checked_add(jiff::SignedDuration::from_secs(1)).unwrap_or(Timestamp::MAX);
    let still =
        Duration::try_from(counts.duration_since(context.clock.now())).ok().filter(|still| !still.is_zero());
    context.metrics.admission_in_force(still.is_none());
    still
}

/// Logs, and has everything looked at again that waits for it.
fn tell(context: &Context, failed: bool) {
    match context.admission.now() {
        Admission::InForce { since } if failed => {
            tracing::warn!(%since, "the admission policies cannot be looked at; nothing is opened until they can");
        }
        Admission::InForce { since } => tracing::info!(
            %since,
            "the admission policies are in force: requests and reviews that are created from then on count"
        ),
        Admission::NotInForce { why } => {
            tracing::error!(why, "admission is not in force: nothing is opened; closing and locking go on");
        }
    }
    context.wake_all();
}

/// What was said already.
#[derive(Debug, Default)]
struct Told {
    no_stamping: bool,
    advice: Vec<String>,
}

struct Looker {
    client: Client,
    markers: Api<Tolerant<ConfigMap>>,
    settings: Settings,
    objects: Vec<AdmissionObject>,
    guards: Vec<Guard>,
}

/// The marker as it was read.
struct Marker {
    uid: Option<String>,
    version: Option<String>,
    created: Option<Timestamp>,
    /// None where it cannot be read.
    record: Option<Record>,
}

impl Looker {
    fn new(context: &Context) -> Result<Self, InvalidUser> {
        let settings = context.settings.admission.clone();
        let objects = objects(&settings.controller_user)?;
        Ok(Self {
            client: context.client.clone(),
            markers: Api::namespaced(context.client.clone(), &settings.namespace),
            guards: objects.iter().filter(|object| object.is_guard()).map(Guard::new).collect(),
            objects,
            settings,
        })
    }

    /// One look, and what follows from it for the marker.
    async fn look(&self, told: &mut Told) -> Result<Admission, LookError> {
        let (sight, marker) = tokio::try_join!(self.sight(), self.marker())?;
        self.advise(&sight, told);
        let user = &self.settings.controller_user;
        let written = marker.as_ref().and_then(|marker| marker.record.as_ref());
        let next = match judge(&self.guards, user, &sight, written) {
            Next::Restart { why } => {
                tracing::warn!(
                    why,
                    "the admission policies were not in force all the time: a new interval begins"
                );
                self.strike(marker.as_ref()).await?;
                judge(&self.guards, user, &sight, None)
            }
            Next::Begin(record) => {
                // One that cannot be read.
                self.strike(marker.as_ref()).await?;
                Next::Begin(record)
            }
            next @ (Next::Hold { .. } | Next::Unknown { .. } | Next::Continue { .. }) => next,
        };
        let created = match next {
            Next::Hold { why } | Next::Restart { why } => {
                self.strike(marker.as_ref()).await?;
                return Ok(Admission::NotInForce { why });
            }
            Next::Unknown { why } => return Ok(Admission::NotInForce { why }),
            Next::Begin(record) => self.write(&record, None).await?,
            Next::Continue { rewritten: None } => marker.and_then(|marker| marker.created),
            Next::Continue { rewritten: Some(record) } => self.write(&record, marker.as_ref()).await?,
        };
        let since = created.and_then(|at| at.checked_add(self.settings.margin).ok());
        Ok(since.map_or_else(
            || Admission::NotInForce { why: format!("the ConfigMap {MARKER} has no date") },
            |since| Admission::InForce { since },
        ))
    }

    async fn sight(&self) -> Result<Sight, LookError> {
        let lists = AdmissionKind::ALL.map(|kind| async move {
            let api: Api<Tolerant<DynamicObject>> = Api::all_with(self.client.clone(), &resource(kind));
            // Without a version: what is true when the request arrives.
            match api.list(&ListParams::default()).await {
                Ok(list) => Ok((kind, Some(list.items))),
                Err(kube::Error::Api(status)) if status.code == 404 => Ok((kind, None)),
                Err(error) => Err(LookError::Api(format!("read the {}s", kind.as_str()), error)),
            }
        });
        let mut sight = Sight::default();
        for (kind, items) in futures::future::try_join_all(lists).await? {
            let Some(items) = items else { continue };
            sight.served.insert(kind);
            let own =
                |name: &str| self.objects.iter().any(|object| object.kind == kind && object.name == name);
            sight.found.extend(items.into_iter().filter(|item| own(&item.name_any())).map(
                |Tolerant(mut item)| Found {
                    kind,
                    name: item.name_any(),
                    uid: item.uid().unwrap_or_default(),
                    generation: item.metadata.generation.unwrap_or_default(),
                    going: item.metadata.deletion_timestamp.is_some(),
                    spec: item.data.get_mut("spec").map(serde_json::Value::take).unwrap_or_default(),
                },
            ));
        }
        Ok(sight)
    }

    async fn marker(&self) -> Result<Option<Marker>, LookError> {
        let read = self.markers.get_opt(MARKER).await;
        let read = read.map_err(|error| LookError::Api(format!("read the ConfigMap {MARKER}"), error))?;
        Ok(read.map(|Tolerant(map)| {
            let text = map.data.as_ref().and_then(|data| data.get(RECORD));
            Marker {
                uid: map.uid(),
                version: map.resource_version(),
                created: map.metadata.creation_timestamp.as_ref().map(|at| at.0),
                record: text.and_then(|text| serde_json::from_str(text).ok()),
            }
        }))
    }

    /// Takes the marker away, and no other of its name.
    async fn strike(&self, marker: Option<&Marker>) -> Result<(), LookError> {
        let Some(marker) = marker else { return Ok(()) };
        let preconditions = Preconditions { uid: marker.uid.clone(), resource_version: None };
        let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.markers.delete(MARKER, &parameters).await {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(LookError::Api(format!("delete the ConfigMap {MARKER}"), error)),
        }
    }

    /// Writes a new marker, or another record into the one that was read; when that was created.
    async fn write(&self, record: &Record, over: Option<&Marker>) -> Result<Option<Timestamp>, LookError> {
        let failed = |error| LookError::Api(format!("write the ConfigMap {MARKER}"), error);
        // Its types rule out that it cannot be written.
        let text = serde_json::to_string(record).unwrap_or_default();
        let mut map = ConfigMap {
            data: Some(BTreeMap::from([("about".into(), ABOUT.into()), (RECORD.into(), text)])),
            ..ConfigMap::default()
        };
        map.metadata.name = Some(MARKER.to_owned());
        let written = if let Some(marker) = over {
            map.metadata.uid.clone_from(&marker.uid);
            map.metadata.resource_version.clone_from(&marker.version);
            self.markers.replace(MARKER, &PostParams::default(), &Tolerant(map)).await.map_err(failed)?
        } else {
            self.markers.create(&PostParams::default(), &Tolerant(map)).await.map_err(failed)?
        };
        Ok(written.0.metadata.creation_timestamp.map(|at| at.0))
    }

    /// What holds nothing up and yet should be known.
    fn advise(&self, sight: &Sight, told: &mut Told) {
        if !told.no_stamping && !sight.served.contains(&AdmissionKind::MutatingAdmissionPolicy) {
            told.no_stamping = true;
            tracing::warn!(
                "this API server has no MutatingAdmissionPolicy (Kubernetes 1.36): users have to write \
                 spec.requester and spec.reviewer themselves, which admission checks, and kubectl replace without \
                 our finalizer is refused"
            );
        }
        let advice = advice(&self.objects, sight);
        if advice != told.advice {
            if !advice.is_empty() {
                let what = advice.join(", ");
                tracing::warn!(what, "what tells users early of their mistakes is not as it was shipped");
            }
            told.advice = advice;
        }
    }
}

pub(super) fn resource(kind: AdmissionKind) -> ApiResource {
    let gvk = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", kind.as_str());
    let plural = match kind {
        AdmissionKind::MutatingAdmissionPolicy => "mutatingadmissionpolicies",
        AdmissionKind::MutatingAdmissionPolicyBinding => "mutatingadmissionpolicybindings",
        AdmissionKind::ValidatingAdmissionPolicy => "validatingadmissionpolicies",
        AdmissionKind::ValidatingAdmissionPolicyBinding => "validatingadmissionpolicybindings",
    };
    ApiResource::from_gvk_with_plural(&gvk, plural)
}

/// Says whenever something about an admission object of anybody may have changed.
fn changes(client: &Client) -> SelectAll<BoxStream<'static, ()>> {
    AdmissionKind::ALL
        .into_iter()
        .map(|kind| {
            let api: Api<Tolerant<DynamicObject>> = Api::all_with(client.clone(), &resource(kind));
            watcher(api, connection::watching())
                .backoff(connection::Pauses::default())
                // What cannot be watched is polled.
                .filter_map(|event| std::future::ready(event.is_ok().then_some(())))
                .boxed()
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Another replica has had the lease meanwhile: what was looked at before is nobody's word.
    #[tokio::test]
    async fn what_a_look_says_that_began_before_all_was_forgotten_is_not_heard() {
        let proof = Proof::default();
        assert!(!proof.has_looked());
        proof.0.definitions.send_replace(Definitions::Fit);
        let in_force = || Ok(Admission::InForce { since: Timestamp::MIN });
        let first = proof.begin();
        assert!(proof.end(first, Instant::now(), in_force()));
        assert!(proof.has_looked() && proof.broken().is_none());
        let late = proof.begin();
        proof.forget();
        assert!(!proof.has_looked());
        assert!(!proof.end(late, Instant::now(), in_force()));
        assert!(!proof.has_looked() && matches!(proof.now(), Admission::NotInForce { .. }));
        let next = proof.begin();
        proof.end(next, Instant::now(), in_force());
        assert!(proof.has_looked() && matches!(proof.now(), Admission::InForce { .. }));
        proof.0.definitions.send_replace(Definitions::Lacking("a field".to_owned()));
        assert_eq!(proof.now(), Admission::NotInForce { why: "a field".to_owned() });
    }
}
