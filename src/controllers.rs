//! The loops that observe, plan, act and report.
//!
//! May use everything below it. What is decided here is only when to look and what to write first; what to
//! write is decided in [`crate::plan`].
//!
//! - [`leader`]: which of several replicas may write.
//! - [`connection`]: calls to the API server that all end.
//! - [`admission`]: whether the admission policies are in force.
//! - [`tenancy`]: which namespace may reach which machines, with which credential.
//! - [`gate`]: one serial worker per firewall.
//! - [`policy`], [`request`], [`review`]: one reconcile loop per kind.
//! - [`watched`]: what the watches have told so far.
//! - [`retry`]: what becomes of a reconcile that could not write.
//! - [`sweep`]: allows of ours that are nobody's.
//! - [`history`]: settled requests and reviews, deleted in time.
//! - [`events`]: what is told as Kubernetes Events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{self, ObjectRef};
use kube::runtime::{Controller, WatchStreamExt, watcher};
use kube::{Api, ResourceExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, Span};

use crate::api::{JitAccessRequest, JitAccessReview, JitPolicy, Tolerant};
use crate::clock::Clock;
use crate::controllers::connection::Connection;
use crate::plan::lifecycle::CLOCKS_APART;
use crate::plan::model::Peer;
use crate::plan::names::Cluster;
use crate::plan::people::Pipelines;
use crate::providers::{Cloud, Usage};
use crate::telemetry::{Check, CloudUse, ReconcileResult, Telemetry, traces};

pub mod admission;
pub mod connection;
mod context;
pub mod drain;
pub mod events;
pub mod gate;
pub mod history;
pub mod leader;
mod news;
pub mod policy;
pub mod request;
pub mod resolutions;
pub mod retry;
pub mod review;
pub mod sweep;
pub mod tenancy;
mod warnings;
mod watched;

pub use context::Context;
use events::Herald;
use gate::{GateSettings, Gates};
use leader::Leadership;
use resolutions::Resolutions;
use tenancy::Tenancy;
pub use watched::Filled;
use watched::Judged;

/// How the controller works; the configuration file, checked.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Whose rules are ours.
    pub cluster: Cluster,
    /// Which namespace may reach which machines.
    pub tenancy: Tenancy,
    /// Users that are programs, beside every service account.
    pub pipelines: Pipelines,
    /// Sources that a policy may exempt.
    pub allowed_exempt_sources: Vec<Peer>,
    /// How often a firewall is read when nothing happens.
    pub drift_interval: Duration,
    /// How often the machines of a policy are read when nothing happens.
    pub inventory_interval: Duration,
    /// How often all firewalls are swept.
    pub sweep_interval: Duration,
    /// How often machines with live grants are read.
    pub address_interval: Duration,
    /// How long settled requests and their reviews are kept.
    pub request_retention: Duration,
    /// Denies of others below this priority number are deliberate.
    pub honour_denies_below: u16,
    /// The most allows of ours that one firewall may hold.
    pub max_allows_per_firewall: usize,
    /// Reconciles at once, for each kind.
    pub concurrency: u16,
    /// Plan and report, write nothing to the cloud.
    pub dry_run: bool,
    /// How it is known that admission is in force.
    pub admission: admission::Settings,
    /// How it is known which replica writes.
    pub leader: leader::Settings,
    /// For how long a write that a former holder of the lease had begun may still land.
    pub unfinished_writes: Duration,
}

/// Runs every loop until `shutdown`, then waits for the gates to end their rounds. The health is told when the
/// caches are filled and the first sweep was made.
///
/// Startup does not depend on the cloud: while it cannot be reached, policies and requests say so.
///
/// # Errors
/// When a loop ended without the shutdown.
pub async fn run(
    api_server: Connection,
    settings: Settings,
    clouds: BTreeMap<String, Cloud>,
    telemetry: Telemetry,
    clock: Clock,
    shutdown: CancellationToken,
) -> Result<(), Ended> {
    let Telemetry { metrics, health, audit } = telemetry;
    let Connection { client, server } = api_server;
    let clouds = Arc::new(clouds);
    metrics.ask_clouds({
        let clouds = Arc::clone(&clouds);
        move || clouds.iter().map(|(credential, cloud)| use_of(credential, cloud)).collect()
    });
    let deadlines = clock.latest(CLOCKS_APART);
    let (news_in, news) = mpsc::unbounded_channel();
    let leadership = Leadership::contested(&settings.leader, clock.clone());
    let gates = Gates::new(
        GateSettings {
            cluster: settings.cluster.clone(),
            honour_denies_below: settings.honour_denies_below,
            max_allows: settings.max_allows_per_firewall,
            drift_interval: settings.drift_interval,
            dry_run: settings.dry_run,
            closes_only: false,
        },
        deadlines.clone(),
        metrics.clone(),
        audit.clone(),
        leadership.clone(),
        news_in,
        shutdown.clone(),
    );
    let (policies, policy_writer) = reflector::store::<JitPolicy>();
    gates.know(policies.clone());
    let (requests, request_writer) = reflector::store::<JitAccessRequest>();
    let (wake_policies, policy_triggers) = mpsc::unbounded_channel();
    let (wake_requests, request_triggers) = mpsc::unbounded_channel();
    let (wake_reviews, review_triggers) = mpsc::unbounded_channel();
    let concurrency = settings.concurrency.max(1);
    let context = Arc::new(Context {
        herald: Herald::new(client.clone()),
        client: client.clone(),
        settings: Arc::new(settings),
        clouds,
        gates: gates.clone(),
        resolutions: Resolutions::default(),
        policies: policies.clone(),
        requests: requests.clone(),
        reviews: review::Reviews::default(),
        policies_filled: Filled::default(),
        requests_filled: Filled::default(),
        admission: admission::Proof::default(),
        leadership: leadership.clone(),
        reviews_filled: Filled::default(),
        rights: request::Rights::default(),
        turns: request::Turns::default(),
        terms: request::ParsedTerms::default(),
        started: deadlines.now(),
        opens: request::Opens::default(),
        pace: request::Pace::default(),
        rooms: request::Rooms::new(concurrency),
        told: request::told::Told::default(),
        wake_policies,
        wake_requests,
        wake_reviews,
        metrics,
        audit,
        clock,
        deadlines,
        api_server: server,
    });
    health.warn_by(warnings::ask(&context));

    let policy_stream = {
        let context = Arc::clone(&context);
        let mut judged = Judged::default();
        watcher(Api::<Tolerant<JitPolicy>>::all(client.clone()), connection::watching())
            .map_ok(untold)
            .backoff(connection::Pauses::default())
            .reflect(policy_writer)
            .inspect(move |event| {
                context.policies_filled.see(event);
                match event {
                    Ok(watcher::Event::Apply(policy) | watcher::Event::InitApply(policy)) => {
                        if judged.is_news(policy) {
                            context.wake_requests(policy);
                        }
                    }
                    Ok(watcher::Event::Delete(policy)) => {
                        judged.forget(policy);
                        context.gates.policy_is_gone(&policy.uid().unwrap_or_default());
                        context.terms.forget(&policy.uid().unwrap_or_default());
                        context.wake_requests(policy);
                    }
                    // What was looked at while a long list came was looked at as it was before.
                    Ok(watcher::Event::InitDone) => context.wake_all(),
                    Ok(watcher::Event::Init) | Err(_) => {}
                }
            })
            .touched_objects()
    };
    // What is settled is history: it is neither watched nor held in memory.
    let unsettled = connection::watching().fields("status.settled!=true");
    let request_stream = {
        let context = Arc::clone(&context);
        watcher(Api::<Tolerant<JitAccessRequest>>::all(client.clone()), unsettled.clone())
            .map_ok(untold)
            .backoff(connection::Pauses::default())
            .reflect(request_writer)
            .inspect(move |event| {
                context.requests_filled.see(event);
                match event {
                    // Gates learn of their duties here, whatever else the reconciles wait for.
                    Ok(watcher::Event::Apply(request) | watcher::Event::InitApply(request)) => {
                        request::give_duties(&context, request);
                    }
                    // Gone, or settled: either way nothing of it may stand.
                    Ok(watcher::Event::Delete(request)) => {
                        if context.leadership.is_holder() {
                            request::record::gone(&context, request);
                        }
                        context.gates.end(&request.uid().unwrap_or_default());
                        context.opens.gone(&request.uid().unwrap_or_default());
                        context.wake_reviews_of(request);
                    }
                    // What was looked at while a long list came was looked at as it was before.
                    Ok(watcher::Event::InitDone) => context.wake_all(),
                    Ok(watcher::Event::Init) | Err(_) => {}
                }
            })
            .touched_objects()
    };
    let config = controller::Config::default().concurrency(concurrency).debounce(Duration::from_millis(10));
    let policy_loop = Controller::for_stream(policy_stream, policies.clone())
        .with_config(config.clone())
        .reconcile_on(UnboundedReceiverStream::new(policy_triggers))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            |policy, context| {
                let span = pass_over("policy", &*policy, &context);
                if_holder("policy", policy::reconcile(policy, Arc::clone(&context)), context).instrument(span)
            },
            |_, error, _| retry::later("policy", error),
            Arc::clone(&context),
        )
        .for_each(|_| async {});
    let (reviews, review_writer) = reflector::store::<JitAccessReview>();
    let review_stream = {
        let (context, known) = (Arc::clone(&context), reviews.clone());
        watcher(Api::<Tolerant<JitAccessReview>>::all(client), unsettled)
            .map_ok(untold)
            .backoff(connection::Pauses::default())
            .reflect(review_writer)
            .inspect(move |event| {
                context.reviews.see(event);
                context.reviews_filled.see(event);
                match event {
                    // Here, and not in its turn among the reviews: it may be a word that closes.
                    Ok(watcher::Event::Apply(review)) => {
                        review::wake_request_of(&context, review);
                    }
                    Ok(watcher::Event::InitDone) => {
                        context.wake_all();
                        for review in known.state() {
                            let _ = context.wake_reviews.send(ObjectRef::from_obj(&*review));
                        }
                    }
                    _ => {}
                }
            })
            .touched_objects()
    };
    let review_loop = Controller::for_stream(review_stream, reviews)
        .with_config(config.clone())
        .reconcile_on(UnboundedReceiverStream::new(review_triggers))
        .graceful_shutdown_on(shutdown.clone().cancelled_owned())
        .run(
            |review, context| {
                let span = pass_over("review", &*review, &context);
                if_holder("review", review::reconcile(review, Arc::clone(&context)), context).instrument(span)
            },
            |_, error, _| retry::later("review", error),
            Arc::clone(&context),
        )
        .for_each(|_| async {});
    let request_loop = {
        let context = Arc::clone(&context);
        let shutdown = shutdown.clone();
        async move {
            let request_loop = Controller::for_stream(request_stream, requests.clone())
                // Rooms bound them: this loop would take them in no order, and leave some waiting for ever.
                .with_config(config.concurrency(0))
                .reconcile_on(UnboundedReceiverStream::new(request_triggers))
                .graceful_shutdown_on(shutdown.cancelled_owned())
                .run(
                    |request, context| {
                        let span = pass_over("request", &*request, &context);
                        let span = traces::of_object(&request.uid().unwrap_or_default(), span);
                        request::reconcile_in_turn(request, context).instrument(span)
                    },
                    |_, error, _| retry::later("request", error),
                    context,
                );
            request_loop.for_each(|_| async {}).await;
        }
    };
    let sweeping = {
        let (context, health) = (Arc::clone(&context), health.clone());
        async move {
            let filled = async {
                context.policies_filled.wait().await;
                context.requests_filled.wait().await;
                context.reviews_filled.wait().await;
                health.pass(Check::Caches);
                loop {
                    context.leadership.held().await;
                    history::run(&context).await;
                }
            };
            // The sweep waits for nothing: what is overdue by its own name is closed without the API server.
            tokio::join!(sweep::run(&context, &health), filled);
        }
    };
    // None of them ends by itself; if one does, a program that goes on without it would promise what it does not
    // keep.
    let ended = tokio::select! {
        () = shutdown.cancelled() => None,
        () = policy_loop => Some("policies"),
        () = request_loop => Some("requests"),
        () = review_loop => Some("reviews"),
        () = news::spread(Arc::clone(&context), news) => Some("news"),
        () = sweeping => Some("sweep"),
        () = admission::run(&context) => Some("admission"),
        () = admission::definitions::run(&context) => Some("definitions"),
        () = leader::run(&context, &health) => Some("leader election"),
    };
    let asked = shutdown.is_cancelled();
    shutdown.cancel();
    // Renewed as long as a write is under way.
    tokio::select! {
        () = gates.stopped() => {}
        () = leader::run(&context, &health) => {}
    }
    leader::give_back(&context).await;
    match ended {
        Some(which) if !asked => Err(Ended(which)),
        _ => Ok(()),
    }
}

/// What a cloud has been asked, as metrics have it.
fn use_of(credential: &str, cloud: &Cloud) -> CloudUse {
    let Usage { calls, waits, waited, left, throttled_for } = cloud.inventory.usage();
    CloudUse {
        credential: credential.to_owned(),
        requests: calls,
        waits,
        waited,
        budget: left,
        throttled: throttled_for,
        clock_ahead: cloud.inventory.clock_ahead().map(|ahead| ahead.as_secs()),
    }
}

/// A loop ended that should have gone on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the loop over {0} ended by itself")]
pub struct Ended(&'static str);

/// What a watch tells of, as what it is.
fn untold<K>(event: watcher::Event<Tolerant<K>>) -> watcher::Event<K> {
    match event {
        watcher::Event::Apply(object) => watcher::Event::Apply(object.0),
        watcher::Event::Delete(object) => watcher::Event::Delete(object.0),
        watcher::Event::Init => watcher::Event::Init,
        watcher::Event::InitApply(object) => watcher::Event::InitApply(object.0),
        watcher::Event::InitDone => watcher::Event::InitDone,
    }
}

/// How soon what was not reconciled for want of the lease comes again: the lease may have been there again at once.
const STOOD_BY: Duration = Duration::from_secs(30);

/// Reconciles where this replica holds the lease. One that gains it looks at everything.
async fn if_holder<E: std::error::Error>(
    controller: &'static str,
    reconcile: impl Future<Output = Result<Action, E>>,
    context: Arc<Context>,
) -> Result<Action, E> {
    if context.leadership.is_holder() {
        timed(controller, reconcile, context).await
    } else {
        Ok(Action::requeue(STOOD_BY))
    }
}

/// One pass over an object; none where another replica does that.
fn pass_over(controller: &'static str, object: &impl ResourceExt, context: &Context) -> Span {
    if !context.leadership.is_holder() {
        return Span::none();
    }
    tracing::debug_span!(
        "reconcile",
        otel.name = %format_args!("reconcile {controller}"),
        k8s.namespace.name = object.namespace(),
        object.name = object.name_any(),
        object.uid = object.uid(),
    )
}

async fn timed<E: std::error::Error>(
    controller: &'static str,
    reconcile: impl Future<Output = Result<Action, E>>,
    context: Arc<Context>,
) -> Result<Action, E> {
    let started = tokio::time::Instant::now();
    let _at_work = context.metrics.at_work(controller);
    let result = reconcile.await;
    let outcome = if result.is_ok() { ReconcileResult::Success } else { ReconcileResult::Error };
    context.metrics.reconcile(controller, outcome, started.elapsed());
    result
}
