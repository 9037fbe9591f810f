//! Is the program alive, and is it ready?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde::Serialize;
use tokio::time::Instant;

/// What has to hold before the program counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Every watched kind was listed once.
    Caches,
    /// The first sweep for overdue rules has ended.
    Sweep,
    /// The lease was read or taken once: it is known which replica writes.
    Lease,
}

impl Check {
    /// Every check.
    pub const ALL: [Self; 3] = [Self::Caches, Self::Sweep, Self::Lease];

    const fn name(self) -> &'static str {
        match self {
            Self::Caches => "caches",
            Self::Sweep => "sweep",
            Self::Lease => "lease",
        }
    }

    const fn not_yet(self) -> &'static str {
        match self {
            Self::Caches => "the policies, requests and reviews have not all been listed yet",
            Self::Sweep => "the first sweep for overdue rules has not ended yet",
            Self::Lease => "the lease was neither read nor taken yet",
        }
    }
}

/// A loop without which nothing is kept that this program promises, and which is bound to come round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pulse {
    /// Scopes are read for overdue rules.
    SweepReads,
    /// What was read is judged by the requests.
    SweepJudgement,
}

impl Pulse {
    const fn name(self) -> &'static str {
        match self {
            Self::SweepReads => "sweepReads",
            Self::SweepJudgement => "sweepJudgement",
        }
    }
}

/// When a loop came round last, and how long it may take.
#[derive(Clone, Copy, Debug)]
struct Beat {
    last: Instant,
    within: Duration,
}

/// What does not keep the program from being ready, and keeps it from something else.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Warning {
    /// What it is about.
    pub name: &'static str,
    /// What it is, and what it keeps the program from, in a sentence.
    pub reason: String,
}

type Ask = Arc<dyn Fn() -> Vec<Warning> + Send + Sync>;

struct Known {
    checks: BTreeMap<Check, Option<String>>,
    pulses: BTreeMap<Pulse, Beat>,
    warnings: Option<Ask>,
}

impl std::fmt::Debug for Known {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { checks, pulses, warnings: _ } = self;
        f.debug_struct("Known").field("checks", checks).field("pulses", pulses).finish_non_exhaustive()
    }
}

/// Life and readiness of the program. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<Known>>);

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Nothing holds yet, and nothing is expected to come round.
    #[must_use]
    pub fn new() -> Self {
        let checks = Check::ALL.into_iter().map(|check| (check, Some(check.not_yet().to_owned()))).collect();
        Self(Arc::new(Mutex::new(Known { checks, pulses: BTreeMap::new(), warnings: None })))
    }

    /// `check` holds.
    pub fn pass(&self, check: Check) {
        self.lock().checks.insert(check, None);
    }

    /// `check` does not hold, with the reason in a sentence.
    pub fn fail(&self, check: Check, reason: impl Into<String>) {
        self.lock().checks.insert(check, Some(reason.into()));
    }

    /// From now on a loop is to come round at least every `within`; else the program counts as hung.
    pub fn expect(&self, pulse: Pulse, within: Duration) {
        self.lock().pulses.insert(pulse, Beat { last: Instant::now(), within });
    }

    /// A loop has come round.
    pub fn beat(&self, pulse: Pulse) {
        if let Some(beat) = self.lock().pulses.get_mut(&pulse) {
            beat.last = Instant::now();
        }
    }

    /// Whom to ask, at each probe, what to warn of.
    pub fn warn_by(&self, ask: impl Fn() -> Vec<Warning> + Send + Sync + 'static) {
        self.lock().warnings = Some(Arc::new(ask));
    }

    /// Whether every check holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.report().ready
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn report(&self) -> Report {
        let checks: Vec<CheckReport> = self
            .lock()
            .checks
            .iter()
            .map(|(check, reason)| CheckReport {
                name: check.name(),
                ready: reason.is_none(),
                reason: reason.clone(),
            })
            .collect();
        // Asked without the lock: it is anybody's.
        let ask = self.lock().warnings.clone();
        let warnings = ask.map(|ask| ask()).unwrap_or_default();
        Report { ready: checks.iter().all(|check| check.ready), checks, warnings }
    }

    fn life(&self) -> Life {
        let known = self.lock();
        let hung =
            known.pulses.iter().filter(|(_, beat)| beat.last.elapsed() > beat.within).map(|(pulse, beat)| {
                Hung {
                    name: pulse.name(),
                    silent_seconds: beat.last.elapsed().as_secs(),
                    allowed_seconds: beat.within.as_secs(),
                }
            });
        let hung: Vec<Hung> = hung.collect();
        Life { healthy: hung.is_empty(), hung }
    }
}

#[derive(Debug, Serialize)]
struct Life {
    healthy: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    hung: Vec<Hung>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Hung {
    name: &'static str,
    silent_seconds: u64,
    allowed_seconds: u64,
}

#[derive(Debug, Serialize)]
struct Report {
    ready: bool,
    checks: Vec<CheckReport>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<Warning>,
}

#[derive(Debug, Serialize)]
struct CheckReport {
    name: &'static str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `/healthz` says which loops are hung, `/readyz` which checks hold, each with 503 where something is not as it
/// should be.
pub fn router(health: Health) -> axum::Router {
    axum::Router::new().route("/healthz", get(healthz)).route("/readyz", get(readyz)).with_state(health)
}

async fn healthz(State(health): State<Health>) -> (StatusCode, Json<Life>) {
    let life = health.life();
    (code(life.healthy), Json(life))
}

const fn code(good: bool) -> StatusCode {
    if good { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn readyz(State(health): State<Health>) -> (StatusCode, Json<Report>) {
    let report = health.report();
    (code(report.ready), Json(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_takes_every_check_and_says_which_is_missing() {
        let health = Health::new();
        health.pass(Check::Sweep);
        health.pass(Check::Lease);
        let report = health.report();
        assert!(!report.ready);
        let reasons: Vec<_> = report.checks.iter().filter_map(|check| check.reason.as_deref()).collect();
        assert_eq!(reasons, [Check::Caches.not_yet()]);
        health.pass(Check::Caches);
        assert!(health.is_ready());
        health.fail(Check::Caches, "the watch ended");
        assert!(!health.is_ready());
    }

    #[test]
    fn a_warning_is_told_at_each_probe_and_leaves_it_ready() {
        let health = Health::new();
        Check::ALL.into_iter().for_each(|check| health.pass(check));
        assert_eq!(serde_json::to_value(health.report()).unwrap().get("warnings"), None);
        let wrong = Arc::new(std::sync::atomic::AtomicBool::new(true));
        health.warn_by({
            let wrong = Arc::clone(&wrong);
            move || {
                let warning = Warning { name: "clock", reason: "it is an hour behind".to_owned() };
                wrong.load(std::sync::atomic::Ordering::SeqCst).then_some(warning).into_iter().collect()
            }
        });
        let report = serde_json::to_value(health.report()).unwrap();
        assert_eq!(report["ready"], true);
        assert_eq!(report["warnings"][0]["reason"], "it is an hour behind");
        wrong.store(false, std::sync::atomic::Ordering::SeqCst);
        assert!(health.report().warnings.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_loop_that_does_not_come_round_in_time_is_hung_and_one_that_does_is_not() {
        let health = Health::new();
        health.beat(Pulse::SweepReads);
        assert!(health.life().healthy, "what nobody expects is no hung loop");
        health.expect(Pulse::SweepReads, Duration::from_secs(10));
        health.expect(Pulse::SweepJudgement, Duration::from_secs(10));
        for _ in 0..5 {
            tokio::time::advance(Duration::from_secs(9)).await;
            health.beat(Pulse::SweepReads);
            health.beat(Pulse::SweepJudgement);
            assert!(health.life().healthy);
        }
        tokio::time::advance(Duration::from_secs(6)).await;
        health.beat(Pulse::SweepReads);
        tokio::time::advance(Duration::from_secs(6)).await;
        let life = serde_json::to_value(health.life()).unwrap();
        assert_eq!(life["healthy"], false);
        assert_eq!(life["hung"][0]["name"], "sweepJudgement");
        assert_eq!(life["hung"].as_array().map(Vec::len), Some(1), "{life}");
        health.beat(Pulse::SweepJudgement);
        assert!(health.life().healthy);
    }
}
