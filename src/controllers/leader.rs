//! Who of several replicas may write: a Lease in the controller's own namespace.
//!
//! What a replica may write in which role is decided in [`crate::plan::lease`]. A replica that loses the lease goes on:
//! it watches, and it closes what the holder does not. One that gains it begins with a sweep.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use crate::clock::Clock;
use crate::plan::lease::{Knowledge, Moment, Next, Record, Role, Tenure, Times};
use crate::telemetry::{Check, Health};

/// The name of the Lease.
pub const LEASE: &str = "portcullis";
/// How long one call about the lease may take: less than it is held, so that a call that hangs is not the end of it.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long to wait before the end of the program until it is given back.
const LAST_PATIENCE: Duration = Duration::from_secs(2);

/// Whose lease it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The namespace of the Lease.
    pub namespace: String,
    /// What this replica is called in it. Another one of the same name would take the lease for its own: the name of a
    /// pod, with its UID, is used by one program at a time.
    pub identity: String,
    /// How it is kept.
    pub times: Times,
}

/// The role of this replica. Clones share it.
#[derive(Clone, Debug)]
pub struct Leadership(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// None: there is only one replica, and it may do everything.
    state: Option<Mutex<State>>,
    clock: Clock,
    origin: Instant,
    role: watch::Sender<Role>,
}

#[derive(Debug)]
struct State {
    knowledge: Knowledge,
    /// When the last renewal was sent, by the clock on the wall: a machine that was suspended stops the other one.
    sent_at: Option<Timestamp>,
    /// Since when it is held without a break.
    since: Option<Timestamp>,
}

impl Leadership {
    /// Of a replica that has to hold the lease. Until then it stands by.
    #[must_use]
    pub fn contested(settings: &Settings, clock: Clock) -> Self {
        let knowledge = Knowledge::new(settings.identity.clone(), settings.times, Moment::ZERO);
        Self::new(Some(Mutex::new(State { knowledge, sent_at: None, since: None })), Role::Standby, clock)
    }

    /// Of the only replica.
    #[must_use]
    pub fn alone(clock: Clock) -> Self {
        Self::new(None, Role::Holder, clock)
    }

    fn new(state: Option<Mutex<State>>, role: Role, clock: Clock) -> Self {
        Self(Arc::new(Shared { state, clock, origin: Instant::now(), role: watch::Sender::new(role) }))
    }

    fn now(&self) -> Moment {
        self.0.origin.elapsed()
    }

    fn state(&self) -> Option<MutexGuard<'_, State>> {
        self.0.state.as_ref().map(|state| state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What this replica may write now. Those who wait for a change of it are told where it is another than before.
    pub fn role(&self) -> Role {
        let role = self.state().map_or(Role::Holder, |state| {
            let role = state.knowledge.role(self.now());
            let awake = state.is_recent(&self.0.clock, Duration::ZERO);
            if role == Role::Holder && !awake { Role::Standby } else { role }
        });
        self.0.role.send_if_modified(|known| std::mem::replace(known, role) != role);
        role
    }

    /// Whether this replica holds the lease.
    #[must_use]
    pub fn is_holder(&self) -> bool {
        self.role() == Role::Holder
    }

    /// Whether this replica holds the lease for longer than something takes that is begun now.
    #[must_use]
    pub fn outlasts(&self, takes: Duration) -> bool {
        self.state().is_none_or(|state| {
            state.knowledge.outlasts(takes, self.now()) && state.is_recent(&self.0.clock, takes)
        })
    }

    /// Since when this replica holds the lease without a break; none where it does not. Of the only one: since ever.
    #[must_use]
    pub fn since(&self) -> Option<Timestamp> {
        if !self.is_holder() {
            return None;
        }
        self.state().map_or(Some(Timestamp::MIN), |state| state.since)
    }

    /// Since when no other replica can have held the lease; none where this one does not hold it. Of the only one: ever.
    /// A renewal that was late ends no tenure, as it ends [`Self::since`], where nobody else has taken the lease.
    #[must_use]
    pub fn tenure(&self) -> Option<Tenure> {
        if !self.is_holder() {
            return None;
        }
        let ever = Tenure { begun: Moment::ZERO, lasted: Duration::MAX };
        let now = self.now();
        // One that is not known to have begun begins now.
        Some(self.state().map_or(ever, |state| {
            let begun = state.knowledge.tenure().unwrap_or(now);
            Tenure { begun, lasted: now.saturating_sub(begun) }
        }))
    }

    /// Tells of changes of the role from now on. To be asked for before the role is.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Role> {
        self.0.role.subscribe()
    }

    /// Waits until this replica holds the lease.
    pub async fn held(&self) {
        let mut changes = self.changes();
        // The sender is ours, so it cannot be gone.
        while !self.is_holder() && changes.changed().await.is_ok() {}
    }

    /// The lease was read.
    pub fn saw(&self, record: Option<Record>) {
        if let Some(mut state) = self.state() {
            state.knowledge.saw(record, self.now());
        }
        self.role();
    }

    /// The lease is about to be written.
    #[must_use]
    pub fn attempt(&self) -> Attempt {
        Attempt { sent: self.now(), sent_at: self.0.clock.now() }
    }

    /// It was written, with this replica as its holder.
    pub fn wrote(&self, record: Record, attempt: Attempt) {
        let held = self.is_holder();
        if let Some(mut state) = self.state() {
            state.knowledge.wrote(record, attempt.sent);
            state.sent_at = Some(attempt.sent_at);
            state.since = state.since.filter(|_| held).or(Some(attempt.sent_at));
        }
        self.role();
    }

    fn gave_back(&self) {
        if let Some(mut state) = self.state() {
            state.knowledge.gave_back();
        }
        self.role();
    }

    fn next(&self) -> Next {
        self.state().map_or(Next::Wait, |state| state.knowledge.next(self.now()))
    }
}

/// A write of the lease that is under way.
#[derive(Clone, Copy, Debug)]
pub struct Attempt {
    sent: Moment,
    sent_at: Timestamp,
}

impl State {
    /// Whether, by the clock on the wall, the lease is not older than it may be, something that takes so long included.
    /// A clock that was set forward has it renewed first.
    fn is_recent(&self, clock: &Clock, takes: Duration) -> bool {
        let held = self.knowledge.duration().saturating_sub(takes);
        self.sent_at.is_some_and(|sent| {
            clock.now().duration_since(sent) <= SignedDuration::try_from(held).unwrap_or(SignedDuration::MAX)
        })
    }
}

/// Keeps the lease, or tries to get it, until the program ends.
pub async fn run(context: &Context, health: &Health) {
    let leadership = &context.leadership;
    let keeper = Keeper::new(context);
    let times = keeper.settings.times;
    let mut known = None;
    let mut roles = leadership.changes();
    let mut ready = false;
    loop {
        let begun = Instant::now();
        match tokio::time::timeout(PATIENCE, keeper.step(&mut known)).await {
            Ok(Ok(())) => {
                ready = true;
                health.pass(Check::Lease);
            }
            Ok(Err(error)) => {
                known = None;
                tracing::warn!(%error, "could not keep the lease");
                // Later it is no reason: what is due is closed without it.
                if !ready {
                    let lease = format!("{}/{LEASE}", keeper.settings.namespace);
                    health.fail(
                        Check::Lease,
                        format!("the lease {lease} was neither read nor taken yet: {error}"),
                    );
                }
            }
            Err(_) => {
                known = None;
                let patience = PATIENCE.as_secs();
                tracing::warn!(patience.seconds = patience, "the API server did not answer about the lease");
            }
        }
        let role = leadership.role();
        context.metrics.leader(role == Role::Holder);
        context.metrics.overdue_rules(context.gates.overdue());
        if let Some(ahead) = context.clock.ahead(&context.api_server) {
            context.metrics.api_server_clock(ahead.as_secs());
        }
        // Also one that is as it was, and was another in between.
        if roles.has_changed().unwrap_or_default() {
            roles.mark_unchanged();
            let identity = &keeper.settings.identity;
            tracing::info!(?role, identity, "the role of this replica has changed");
            context.has_role(role);
        }
        // Those who wait for it do not all come at once.
        let pause = match role {
            Role::Holder => times.retry_period,
            Role::Standby | Role::Nobody => times.retry_period.mul_f64(rand::random_range(0.8..1.2)),
        };
        keeper.rest((begun + pause).max(Instant::now() + pause / 4)).await;
    }
}

/// Gives the lease back, so that another replica need not wait until it lapses. Nothing may be written after it.
pub async fn give_back(context: &Context) {
    if !context.leadership.is_holder() {
        return;
    }
    match tokio::time::timeout(LAST_PATIENCE, Keeper::new(context).give_back()).await {
        Ok(Ok(())) => tracing::info!("gave the lease back"),
        Ok(Err(error)) => tracing::warn!(%error, "could not give the lease back: it lapses"),
        Err(_) => tracing::warn!("could not give the lease back in time: it lapses"),
    }
}

struct Keeper<'a> {
    api: Api<Lease>,
    settings: &'a Settings,
    leadership: &'a Leadership,
}

impl<'a> Keeper<'a> {
    fn new(context: &'a Context) -> Self {
        let settings = &context.settings.leader;
        let api = Api::namespaced(context.client.clone(), &settings.namespace);
        Self { api, settings, leadership: &context.leadership }
    }

    /// Looks at the lease, where what is there is not known, and writes it where it is ours to write.
    async fn step(&self, known: &mut Option<Lease>) -> Result<(), kube::Error> {
        let is_ours =
            |lease: &Lease| record(lease).holder.as_deref() == Some(self.settings.identity.as_str());
        // What was written last by ourselves need not be read again: whoever has written since is told by the refusal.
        if known.as_ref().is_none_or(|lease| !is_ours(lease)) {
            *known = self.api.get_opt(LEASE).await?;
            self.leadership.saw(known.as_ref().map(record));
        }
        if self.leadership.next() == Next::Wait {
            return Ok(());
        }
        let attempt = self.leadership.attempt();
        let settings = self.settings;
        let wanted = lease(&settings.identity, settings.times.duration, known.as_ref(), attempt.sent_at);
        let written = match known {
            Some(_) => self.api.replace(LEASE, &PostParams::default(), &wanted).await,
            None => self.api.create(&PostParams::default(), &wanted).await,
        };
        match written {
            Ok(lease) => {
                self.leadership.wrote(record(&lease), attempt);
                *known = Some(lease);
                Ok(())
            }
            // Somebody was faster: what he wrote is read next.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) && known.is_some() => {
                *known = None;
                self.leadership.saw(self.api.get_opt(LEASE).await?.as_ref().map(record));
                Ok(())
            }
            Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn give_back(&self) -> Result<(), kube::Error> {
        let mut lease = self.api.get(LEASE).await?;
        if record(&lease).holder.as_deref() != Some(self.settings.identity.as_str()) {
            return Ok(());
        }
        if let Some(spec) = &mut lease.spec {
            // As client-go gives it back.
            (spec.holder_identity, spec.lease_duration_seconds) = (Some(String::new()), Some(1));
        }
        self.leadership.gave_back();
        self.api.replace(LEASE, &PostParams::default(), &lease).await?;
        Ok(())
    }

    /// Until `until`; those who wait are told of a role that has ended meanwhile.
    async fn rest(&self, until: Instant) {
        let ends = self.leadership.state().map_or(Moment::MAX, |state| state.knowledge.changes_at());
        let ends = self.leadership.0.origin.checked_add(ends).unwrap_or(until);
        if ends < until && ends > Instant::now() {
            tokio::time::sleep_until(ends).await;
            self.leadership.role();
        }
        tokio::time::sleep_until(until).await;
    }
}

/// The lease with `holder` as its holder for so long, as of `now`.
pub(super) fn lease(holder: &str, duration: Duration, before: Option<&Lease>, now: Timestamp) -> Lease {
    let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let same = spec.holder_identity.as_deref() == Some(holder);
    let transitions = spec.lease_transitions.unwrap_or_default();
    Lease {
        metadata: before.map_or_else(
            || ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        ),
        spec: Some(LeaseSpec {
            acquire_time: spec.acquire_time.clone().filter(|_| same).or(Some(MicroTime(now))),
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: i32::try_from(duration.as_secs()).ok(),
            lease_transitions: Some(if same || before.is_none() { transitions } else { transitions + 1 }),
            renew_time: Some(MicroTime(now)),
            ..spec
        }),
    }
}

/// What a Lease says.
fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        // One that does not say so is not held.
        duration: Duration::from_secs(u64::try_from(spec.lease_duration_seconds.unwrap_or(0)).unwrap_or(0)),
        version: format!(
            "{}/{}",
            lease.uid().unwrap_or_default(),
            lease.resource_version().unwrap_or_default()
        ),
        // As `lease` writes them, and client-go does.
        term: format!(
            "{}/{}/{:?}",
            lease.uid().unwrap_or_default(),
            spec.lease_transitions.unwrap_or_default(),
            spec.acquire_time.map(|at| at.0)
        ),
    }
}
