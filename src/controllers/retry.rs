//! What becomes of a reconcile that could not write.

use std::time::Duration;

use kube::runtime::controller::Action;

/// The API server refused a write or could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation}: {source}")]
pub struct WriteError {
    /// What was asked, such as `write the status of the request`.
    pub operation: &'static str,
    /// Its answer.
    pub source: kube::Error,
}

/// When to try again: soon where somebody else wrote the object first, later where the API server is away or
/// refuses, which somebody should hear of.
pub(super) fn later(controller: &'static str, error: &WriteError) -> Action {
    if matches!(&error.source, kube::Error::Api(status) if status.code == 409) {
        tracing::debug!(controller, %error, "somebody else wrote first; trying again");
        return Action::requeue(Duration::from_millis(500));
    }
    tracing::warn!(controller, %error, "failed to reconcile; trying again");
    Action::requeue(Duration::from_secs(5))
}
