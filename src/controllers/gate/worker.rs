//! When a gate works.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::Instrument;

use super::pace::Pace;
use super::round::{self, Memory, Outcome};
use super::{Gate, Inner, lock, standby};
use crate::plan::desired::{Duty, Grant};
use crate::plan::lease::Role;

/// No single sleep is longer: a clock that was set, or a machine that was suspended, is noticed.
const LONGEST_SLEEP: Duration = Duration::from_secs(30);
/// What arrives together is planned together.
const COALESCE: Duration = Duration::from_millis(20);
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// The same where something is to be closed: nothing tells that the credential may do it again, or that the cloud is back.
const LAST_RETRY_OF_CLOSES: Duration = Duration::from_secs(15);
const LAST_RETRY_WHILE_AWAY: Duration = Duration::from_secs(5);
/// After a close the firewall is looked at again: a foreign read-modify-write may bring the rule back.
const RECHECK: Duration = Duration::from_secs(60);
/// By the clock that is never set, as every length of time here that is no deadline.
const RECHECK_FOR: Duration = Duration::from_secs(3600);

/// Works, and works again where a round panics: a firewall without its worker would keep what should be closed.
pub(super) async fn keep_running(inner: Arc<Inner>, gate: Arc<Gate>) {
    loop {
        match tokio::spawn(run(Arc::clone(&inner), Arc::clone(&gate))).await {
            Ok(()) => return,
            Err(error) => {
                tracing::error!(firewall = %gate.firewall, %error, "a gate failed; it starts again");
                tokio::time::sleep(FIRST_RETRY).await;
            }
        }
    }
}

/// Works until shutdown, or until nothing is wanted of the firewall any more.
async fn run(inner: Arc<Inner>, gate: Arc<Gate>) {
    let mut memory = Memory::default();
    let mut failures: u32 = 0;
    // A firewall that was just taken over counts as just closed.
    let mut recheck_until = Instant::now() + RECHECK_FOR;
    loop {
        // From before the round: a role that changes in it is not missed.
        let roles = inner.leadership.changes();
        let span = tracing::debug_span!("round", firewall = gate.firewall.as_str());
        let outcome = round::round(&inner, &gate, &mut memory).instrument(span).await;
        // However the round ended: the read-back that ends it well is often of a later one.
        if std::mem::take(&mut memory.closed) {
            recheck_until = Instant::now() + RECHECK_FOR;
        }
        let pause = match outcome {
            Outcome::Done => {
                failures = 0;
                if Instant::now() < recheck_until || watches(&gate) {
                    RECHECK.min(inner.settings.drift_interval)
                } else {
                    inner.settings.drift_interval
                }
            }
            Outcome::Again => {
                failures = 0;
                COALESCE
            }
            Outcome::NotReadBack => {
                failures = 0;
                Pace::of(gate.firewall.kind()).read_back
            }
            Outcome::Fenced => {
                failures = 0;
                if inner.leadership.is_holder() { FIRST_RETRY } else { RECHECK }
            }
            Outcome::Failed { retry_after, passing } => {
                failures = failures.saturating_add(1);
                let backoff = FIRST_RETRY.saturating_mul(1 << failures.min(6).saturating_sub(1));
                let last = match (closes(&inner, &gate), passing) {
                    (true, true) => LAST_RETRY_WHILE_AWAY,
                    (true, false) => LAST_RETRY_OF_CLOSES,
                    (false, _) => LAST_RETRY,
                };
                retry_after.unwrap_or(Duration::ZERO).max(jitter(backoff.min(last))).min(LAST_RETRY)
            }
        };
        if inner.shutdown.is_cancelled() {
            return;
        }
        if idle(&inner, &gate, recheck_until) {
            return;
        }
        rest(&inner, &gate, roles, pause, &memory).await;
        if inner.shutdown.is_cancelled() {
            return;
        }
    }
}

/// Whether something is to be closed now.
fn closes(inner: &Inner, gate: &Gate) -> bool {
    let (duties, now) = (lock(&gate.duties), inner.clock.now());
    let is_due = |grant: &Grant| matches!(grant.duty, Duty::Close { .. }) || grant.deadline <= now;
    !duties.orphans.is_empty() || duties.grants.values().any(is_due)
}

/// Whether somebody else's rule would let him in by what is open now: then it is to be noticed soon.
fn watches(gate: &Gate) -> bool {
    gate.firewall.kind().translates()
        && lock(&gate.duties).grants.values().any(|grant| !matches!(grant.duty, Duty::Close { .. }))
}

/// Sleeps until the duties are no longer those of the last round, until `pause` is over, until a deadline, or until this
/// replica has another role.
async fn rest(
    inner: &Inner,
    gate: &Gate,
    mut roles: watch::Receiver<Role>,
    pause: Duration,
    memory: &Memory,
) {
    // The pause goes by the clock that is never set; deadlines by the one on the wall.
    let wake_at = Instant::now() + pause;
    let stands_by = inner.leadership.role() == Role::Standby;
    loop {
        let next = if stands_by { standby::next_due(gate, memory.looked_at) } else { next_deadline(gate) };
        let deadline = next.map(|at| at.duration_since(inner.clock.now()));
        let until_deadline =
            deadline.map_or(Duration::MAX, |left| Duration::try_from(left).unwrap_or(Duration::ZERO));
        let left = until_deadline.min(wake_at.saturating_duration_since(Instant::now()));
        if left.is_zero() {
            return;
        }
        tokio::select! {
            () = inner.shutdown.cancelled() => return,
            _ = roles.changed() => return,
            () = gate.wake.notified() => {
                // The call may be for something that the last round has already taken in.
                if lock(&gate.duties).version != memory.version {
                    tokio::time::sleep(COALESCE).await;
                    return;
                }
            }
            () = tokio::time::sleep(left.min(LONGEST_SLEEP)) => {}
        }
    }
}

/// The next deadline of a rule that is not being closed yet.
fn next_deadline(gate: &Gate) -> Option<Timestamp> {
    lock(&gate.duties)
        .grants
        .values()
        .filter(|grant| !matches!(grant.duty, Duty::Close { .. }))
        .map(|grant| grant.deadline)
        .min()
}

/// Whether nothing is wanted any more; then the gate is gone.
fn idle(inner: &Inner, gate: &Gate, recheck_until: Instant) -> bool {
    // Both locks, in this order everywhere: nobody can give a duty to a gate that is going.
    let mut gates = lock(&inner.gates);
    let duties = lock(&gate.duties);
    let nothing = duties.locks.is_empty()
        && duties.watchers.is_empty()
        && duties.grants.is_empty()
        && duties.orphans.is_empty()
        && Instant::now() >= recheck_until;
    if nothing {
        gates.remove(&gate.firewall);
    }
    nothing
}

fn jitter(most: Duration) -> Duration {
    most.mul_f64(rand::random_range(0.5..1.0))
}
