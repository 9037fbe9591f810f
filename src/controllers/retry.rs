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

impl WriteError {
    /// Whether the write may have been done all the same: no answer came, or one that tells of a failure on the way.
    pub(super) fn may_have_been_done(&self) -> bool {
        !matches!(&self.source, kube::Error::Api(status) if (400..500).contains(&status.code))
    }

    /// Whether somebody else wrote first.
    pub(super) fn is_conflict(&self) -> bool {
        matches!(&self.source, kube::Error::Api(status) if status.code == 409)
    }
}

/// When to try again: soon where somebody else wrote the object first, later where the API server is away or
/// refuses, which somebody should hear of.
pub(super) fn later(controller: &'static str, error: &WriteError) -> Action {
    if error.is_conflict() {
        tracing::debug!(controller, %error, "somebody else wrote first; trying again");
        return Action::requeue(Duration::from_millis(500));
    }
    tracing::warn!(controller, %error, "failed to reconcile; trying again");
    Action::requeue(Duration::from_secs(5))
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn only_a_refusal_says_that_nothing_was_written() {
        let answered = |code| WriteError {
            operation: "write",
            source: kube::Error::Api(Box::new(Status::failure("generated", "Generated").with_code(code))),
        };
        for code in [400, 403, 409, 422, 429] {
            assert!(!answered(code).may_have_been_done(), "{code}");
        }
        for code in [500, 503, 504] {
            assert!(answered(code).may_have_been_done(), "{code}");
        }
        let silent = WriteError { operation: "write", source: kube::Error::LinesCodecMaxLineLengthExceeded };
        assert!(silent.may_have_been_done());
    }
}
