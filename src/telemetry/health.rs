//! Is the program alive, and is it ready?

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::get;
use serde::Serialize;

/// What has to hold before the program counts as ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Check {
    /// Every watched kind was listed once.
    Caches,
    /// The first sweep for overdue rules has ended.
    Sweep,
}

impl Check {
    /// Every check.
    pub const ALL: [Self; 2] = [Self::Caches, Self::Sweep];

    const fn name(self) -> &'static str {
        match self {
            Self::Caches => "caches",
            Self::Sweep => "sweep",
        }
    }

    const fn not_yet(self) -> &'static str {
        match self {
            Self::Caches => "the policies, requests and reviews have not all been listed yet",
            Self::Sweep => "the first sweep for overdue rules has not ended yet",
        }
    }
}

/// Readiness of the program. Clones share it.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<BTreeMap<Check, Option<String>>>>);

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// Nothing holds yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new(
            Check::ALL.into_iter().map(|check| (check, Some(check.not_yet().to_owned()))).collect(),
        )))
    }

    /// `check` holds.
    pub fn pass(&self, check: Check) {
        self.set(check, None);
    }

    /// `check` does not hold, with the reason in a sentence.
    pub fn fail(&self, check: Check, reason: impl Into<String>) {
        self.set(check, Some(reason.into()));
    }

    /// Whether every check holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.report().ready
    }

    fn set(&self, check: Check, reason: Option<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(check, reason);
    }

    fn report(&self) -> Report {
        let checks: Vec<CheckReport> = self
            .0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .map(|(check, reason)| CheckReport {
                name: check.name(),
                ready: reason.is_none(),
                reason: reason.clone(),
            })
            .collect();
        Report { ready: checks.iter().all(|check| check.ready), checks }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    ready: bool,
    checks: Vec<CheckReport>,
}

#[derive(Debug, Serialize)]
struct CheckReport {
    name: &'static str,
    ready: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// `/healthz` answers as long as the program runs its tasks; `/readyz` says which checks hold, with 503 where
/// one does not.
pub fn router(health: Health) -> axum::Router {
    axum::Router::new()
        .route("/healthz", get(|| async { Json(serde_json::json!({"healthy": true})) }))
        .route("/readyz", get(readyz))
        .with_state(health)
}

async fn readyz(State(health): State<Health>) -> (StatusCode, Json<Report>) {
    let report = health.report();
    let code = if report.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (code, Json(report))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_takes_every_check_and_says_which_is_missing() {
        let health = Health::new();
        health.pass(Check::Sweep);
        let report = health.report();
        assert!(!report.ready);
        let reasons: Vec<_> = report.checks.iter().filter_map(|check| check.reason.as_deref()).collect();
        assert_eq!(reasons, [Check::Caches.not_yet()]);
        health.pass(Check::Caches);
        assert!(health.is_ready());
        health.fail(Check::Caches, "the watch ended");
        assert!(!health.is_ready());
    }
}
