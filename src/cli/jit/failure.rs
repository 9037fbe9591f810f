//! What went wrong, in words and as an exit code.

use kube::core::Status;
use kube::runtime::watcher;

use super::text::plain;

/// How a command ends. The numbers are promised to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// Done.
    Ok = 0,
    /// It could not be done: no way to the cluster, nothing of that name.
    Error = 1,
    /// The command was given wrongly.
    Usage = 2,
    /// The server, the policy or a person says no.
    Refused = 3,
    /// What was waited for did not come in time.
    TimedOut = 4,
    /// The request ended without access.
    NoAccess = 5,
}

impl Exit {
    /// Every code, with what it means.
    pub const ALL: [(Self, &'static str); 6] = [
        (Self::Ok, "done; where it waits: access is open (request, approve), or closed (end, revoke)"),
        (Self::Error, "an error: no way to the cluster, nothing of that name"),
        (Self::Usage, "the command was given wrongly; nothing was sent"),
        (
            Self::Refused,
            "refused: by the API server, by the policy, by a denial, or a review that does not count",
        ),
        (Self::TimedOut, "what was waited for did not come within --timeout; it may still come"),
        (
            Self::NoAccess,
            "the request that was waited for ended without access: timed out, failed, void or withdrawn",
        ),
    ];
}

/// Why a command failed. The message is safe to show.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// How the command ends.
    pub exit: Exit,
    /// What to say; lines are separated by line breaks.
    pub message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl AsRef<str>) -> Self {
        Self { exit, message: format!("error: {}", plain(message.as_ref())) }
    }

    /// It could not be done.
    pub fn error(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Error, message)
    }

    /// The command was given wrongly.
    pub fn usage(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Usage, message)
    }

    /// Somebody says no.
    pub fn refused(message: impl AsRef<str>) -> Self {
        Self::new(Exit::Refused, message)
    }

    /// It did not come in time.
    pub fn timed_out(message: impl AsRef<str>) -> Self {
        Self::new(Exit::TimedOut, message)
    }

    /// The request ended without access.
    pub fn no_access(message: impl AsRef<str>) -> Self {
        Self::new(Exit::NoAccess, message)
    }

    /// What the API server answered, in kubectl's form.
    pub fn answered(status: &Status) -> Self {
        let exit = match status.code {
            403 | 422 => Exit::Refused,
            _ => Exit::Error,
        };
        let details = status.details.as_ref();
        let causes = details.map(|details| details.causes.as_slice()).unwrap_or_default();
        let message = match details {
            Some(details) if status.reason == "Invalid" && causes.len() > 1 => {
                let lines: Vec<String> = causes
                    .iter()
                    .map(|cause| format!("* {}: {}", plain(&cause.field), plain(&cause.message)))
                    .collect();
                format!(
                    "The {} \"{}\" is invalid:\n{}",
                    plain(&details.kind),
                    plain(&details.name),
                    lines.join("\n")
                )
            }
            _ => format!("Error from server ({}): {}", plain(&status.reason), plain(&status.message)),
        };
        Self { exit, message }
    }
}

impl From<kube::Error> for Failure {
    fn from(error: kube::Error) -> Self {
        match &error {
            kube::Error::Api(status) => Self::answered(status),
            _ => Self::error(format!("the API server did not answer as it should: {}", chain(&error))),
        }
    }
}

impl From<watcher::Error> for Failure {
    fn from(error: watcher::Error) -> Self {
        match error {
            watcher::Error::InitialListFailed(error)
            | watcher::Error::WatchStartFailed(error)
            | watcher::Error::WatchFailed(error) => error.into(),
            watcher::Error::WatchError(status) => Self::answered(&status),
            watcher::Error::NoResourceVersion => Self::error(chain(&error)),
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        // Whoever reads has seen enough, as in `kubectl jit list | head -1`.
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return Self { exit: Exit::Error, message: String::new() };
        }
        Self::error(format!("failed to write: {error}"))
    }
}

/// An error with what caused it, each said once.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let said = cause.to_string();
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_that_has_seen_enough_is_told_nothing() {
        let closed = Failure::from(std::io::Error::from(std::io::ErrorKind::BrokenPipe));
        assert_eq!((closed.exit, closed.message.as_str()), (Exit::Error, ""));
        let full = Failure::from(std::io::Error::from(std::io::ErrorKind::StorageFull));
        assert!(full.message.contains("failed to write"), "{full}");
    }

    fn status(value: serde_json::Value) -> Status {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn a_refusal_is_told_from_an_error_and_shown_as_kubectl_does() {
        let forbidden = Failure::answered(&status(serde_json::json!({
            "code": 403, "reason": "Forbidden", "message": "no\u{1b}[2J\nError: none"
        })));
        assert_eq!(forbidden.exit, Exit::Refused);
        assert_eq!(forbidden.message, "Error from server (Forbidden): no\\u{1b}[2J\\nError: none");
        let invalid = Failure::answered(&status(serde_json::json!({
            "code": 422, "reason": "Invalid", "message": "long", "details": {"kind": "JitAccessRequest", "name": "a",
            "causes": [{"field": "spec.a", "message": "must be b"}, {"field": "spec.c", "message": "must be d"}]},
        })));
        assert_eq!(
            invalid.message,
            "The JitAccessRequest \"a\" is invalid:\n* spec.a: must be b\n* spec.c: must be d"
        );
        let missing = serde_json::json!({"code": 404, "reason": "NotFound", "message": "not found"});
        assert_eq!(Failure::answered(&status(missing)).exit, Exit::Error);
    }
}
