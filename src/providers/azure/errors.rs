//! What Resource Manager's errors mean: one table, read from above.

use serde_json::Value;

use crate::providers::CloudErrorKind;
use CloudErrorKind::{
    Ambiguous, Full, Invalid, NotFound, NotPermitted, PriorityTaken, RefusedByPolicy, Retryable, ScopeLocked,
    Unanswered, Unauthenticated,
};

/// What was asked: a failed read never leaves doubt over what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Call {
    Read,
    Write,
}

/// A row: answers of this code are of this kind, for a read and for a write.
struct Code {
    code: &'static str,
    read: CloudErrorKind,
    write: CloudErrorKind,
}

const fn code(code: &'static str, kind: CloudErrorKind) -> Code {
    Code { code, read: kind, write: kind }
}

/// The write was begun, and what became of it is not known.
const fn cut_short(code: &'static str) -> Code {
    Code { code, read: Retryable, write: Ambiguous }
}

/// Who answered did not hear the end of the write, which may still come.
const fn not_heard(code: &'static str) -> Code {
    Code { code, read: Retryable, write: Unanswered }
}

/// By code, whatever the status. A code that ends in `*` stands for all that begin so.
const CODES: &[Code] = &[
    // Rights. They take minutes to spread after they were given.
    code("AuthorizationFailed", NotPermitted),
    code("LinkedAuthorizationFailed", NotPermitted),
    code("LinkedInvalidPropertyId", Invalid),
    code("LinkedAccessCheckFailed", NotPermitted),
    code("ReadOnlyDisabledSubscription", NotPermitted),
    code("SubscriptionDisabled", NotPermitted),
    // The token itself.
    code("AuthenticationFailed", Unauthenticated),
    code("ExpiredAuthenticationToken", Unauthenticated),
    code("InvalidAuthenticationToken*", Unauthenticated),
    code("AuthenticationFailedMissingToken", Unauthenticated),
    // Only people can mend these.
    code("RequestDisallowedByPolicy", RefusedByPolicy),
    code("RequestDisallowedByAzure", RefusedByPolicy),
    code("PolicyViolation", RefusedByPolicy),
    code("ScopeLocked", ScopeLocked),
    // Rules.
    code("SecurityRuleConflict", PriorityTaken),
    code("SecurityRuleCountLimitReached", Full),
    code("MaxAddressPrefixesPerNetworkSecurityGroup*", Full),
    code("NetworkSecurityGroupCountLimitReached", Full),
    code("QuotaExceeded", Full),
    code("AzureFirewallRuleCountLimitReached*", Full),
    code("AzureFirewallDnatLimitReached*", Full),
    code("FirewallPolicyRuleCollectionGroupSizeLimitReached*", Full),
    code("FirewallPolicyRuleCollectionGroupCountLimitReached*", Full),
    // One write at a time: nothing was begun.
    code("RetryableError*", Retryable),
    code("AnotherOperationInProgress", Retryable),
    code("ReferencedResourceNotProvisioned", Retryable),
    code("FirewallPolicyRuleCollectionGroupUpdateNotAllowedWhenUpdatingOrDeleting", Retryable),
    code("TooManyRequests", Retryable),
    code("SubscriptionRequestsThrottled", Retryable),
    code("ResourceRequestsThrottled", Retryable),
    code("OperationNotAllowedOnResourceBeingDeleted", Retryable),
    code("PreconditionFailed*", Retryable),
    // A write that was begun and then cut short.
    cut_short("Canceled*"),
    cut_short("OperationCanceled*"),
    cut_short("OperationPreempted*"),
    not_heard("RequestTimeout"),
    not_heard("GatewayTimeout"),
    not_heard("ServerTimeout"),
    cut_short("InternalServerError"),
    cut_short("InternalError"),
    // Gone, or never there.
    code("ResourceNotFound", NotFound),
    code("ResourceGroupNotFound", NotFound),
    code("ParentResourceNotFound", NotFound),
    // This credential does not see it; another may.
    code("SubscriptionNotFound", NotPermitted),
    code("NotFound", NotFound),
];

/// A row: statuses from the first to the second, both included.
struct Status {
    from: u16,
    to: u16,
    read: CloudErrorKind,
    write: CloudErrorKind,
}

const fn status(from: u16, to: u16, kind: CloudErrorKind) -> Status {
    Status { from, to, read: kind, write: kind }
}

/// By status, where no code is known.
const STATUSES: &[Status] = &[
    status(401, 401, Unauthenticated),
    status(403, 403, NotPermitted),
    // Gone is only what says so: a proxy's 404 must not pass for it.
    status(404, 404, Retryable),
    Status { from: 408, to: 408, read: Retryable, write: Unanswered },
    // A conflict with something that is under way.
    status(409, 409, Retryable),
    status(410, 410, Retryable),
    status(412, 412, Retryable),
    status(425, 425, Retryable),
    status(429, 429, Retryable),
    // Redirects and everything else that we got wrong.
    status(300, 499, Invalid),
    Status { from: 504, to: 504, read: Retryable, write: Unanswered },
    Status { from: 500, to: 599, read: Retryable, write: Ambiguous },
];

/// What Resource Manager said was wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Said {
    /// The code that decides: of the details where the outer one says nothing.
    pub(super) code: Option<String>,
    /// In its own words.
    pub(super) message: String,
}

/// The kind by code alone.
pub(super) fn by_code(said: &Said, call: Call) -> Option<CloudErrorKind> {
    let said = said.code.as_deref()?;
    let row = CODES.iter().find(|row| is(row, said))?;
    Some(match call {
        Call::Read => row.read,
        Call::Write => row.write,
    })
}

fn is(row: &Code, code: &str) -> bool {
    match row.code.strip_suffix('*') {
        Some(prefix) => code.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)),
        None => code.eq_ignore_ascii_case(row.code),
    }
}

/// The kind by code, else by status. What is neither is taken for passing on a read, for doubt on a write.
pub(super) fn classify(status: u16, said: &Said, call: Call) -> CloudErrorKind {
    let pick = |read, write| match call {
        Call::Read => read,
        Call::Write => write,
    };
    by_code(said, call)
        .or_else(|| {
            let row = STATUSES.iter().find(|row| (row.from..=row.to).contains(&status))?;
            Some(pick(row.read, row.write))
        })
        .unwrap_or_else(|| pick(Retryable, Ambiguous))
}

/// Longest message that is kept of an answer, in characters.
const LONGEST: usize = 1000;

/// Reads an error out of a body: `{"error": {"code", "message", "details"}}`, or the inside of it alone. The
/// outer code is often general, so the first code of the details that the table knows goes before it.
pub(super) fn parse(body: &[u8]) -> Said {
    let Ok(value) = serde_json::from_slice::<Value>(body) else {
        return Said { code: None, message: shorten(&String::from_utf8_lossy(&body[..body.len().min(200)])) };
    };
    let error = value.get("error").filter(|error| error.is_object()).unwrap_or(&value);
    let mut all = Vec::new();
    gather(error, 0, &mut all);
    let known = |said: &&Said| by_code(said, Call::Write).is_some();
    let Some(first) = all.first() else {
        return Said { code: None, message: "no reason given".into() };
    };
    let decisive = all.iter().find(known).unwrap_or(first);
    let mut message = first.message.clone();
    if decisive != first && !decisive.message.is_empty() && !message.contains(&decisive.message) {
        message = format!("{message} ({})", decisive.message);
    }
    Said { code: decisive.code.clone(), message: shorten(&message) }
}

fn gather(error: &Value, depth: usize, all: &mut Vec<Said>) {
    if depth > 4 || all.len() > 20 {
        return;
    }
    let text = |name: &str| error.get(name).and_then(Value::as_str).map(str::to_owned);
    if text("code").is_some() || text("message").is_some() {
        all.push(Said { code: text("code"), message: text("message").unwrap_or_default() });
    }
    for detail in error.get("details").and_then(Value::as_array).into_iter().flatten() {
        gather(detail, depth + 1, all);
    }
    for inner in ["innererror", "innerError"].iter().filter_map(|name| error.get(*name)) {
        gather(inner, depth + 1, all);
    }
}

/// One line of bounded length, fit for a condition.
pub(super) fn shorten(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(code: &str) -> Said {
        Said { code: Some(code.to_owned()), message: String::new() }
    }

    #[test]
    fn codes_and_statuses_mean_what_azure_means_by_them() {
        for (status, code, read, write) in [
            (400, "SecurityRuleConflict", PriorityTaken, PriorityTaken),
            (400, "SecurityRuleInvalidPriority", Invalid, Invalid),
            (400, "OverlappingSubnetsNotPermittedInSecurityRule", Invalid, Invalid),
            (400, "ResourceCannotContainAddressPrefixesFromDifferentAddressFamilies", Invalid, Invalid),
            (400, "SecurityRuleParameterContainsUnsupportedValue", Invalid, Invalid),
            (400, "SecurityRuleCountLimitReached", Full, Full),
            (400, "MaxAddressPrefixesPerNetworkSecurityGroupExceeded", Full, Full),
            (401, "ExpiredAuthenticationToken", Unauthenticated, Unauthenticated),
            (401, "InvalidAuthenticationTokenTenant", Unauthenticated, Unauthenticated),
            (403, "AuthorizationFailed", NotPermitted, NotPermitted),
            (403, "RequestDisallowedByPolicy", RefusedByPolicy, RefusedByPolicy),
            (403, "SomethingNew", NotPermitted, NotPermitted),
            (404, "ResourceNotFound", NotFound, NotFound),
            (404, "SomethingNew", Retryable, Retryable),
            (404, "SubscriptionNotFound", NotPermitted, NotPermitted),
            (410, "SomethingNew", Retryable, Retryable),
            (408, "SomethingNew", Retryable, Unanswered),
            (409, "ScopeLocked", ScopeLocked, ScopeLocked),
            (409, "AnotherOperationInProgress", Retryable, Retryable),
            (409, "CanceledAndSupersededDueToAnotherOperation", Retryable, Ambiguous),
            (412, "PreconditionFailed", Retryable, Retryable),
            (429, "RetryableError", Retryable, Retryable),
            (429, "RetryableErrorDueToAnotherOperation", Retryable, Retryable),
            (429, "TooManyRequests", Retryable, Retryable),
            (429, "SomethingNew", Retryable, Retryable),
            (400, "ReferencedResourceNotProvisioned", Retryable, Retryable),
            (500, "InternalServerError", Retryable, Ambiguous),
            (503, "SomethingNew", Retryable, Ambiguous),
            (504, "SomethingNew", Retryable, Unanswered),
            (500, "GatewayTimeout", Retryable, Unanswered),
            (302, "SomethingNew", Invalid, Invalid),
            (200, "Canceled", Retryable, Ambiguous),
            (999, "SomethingNew", Retryable, Ambiguous),
        ] {
            assert_eq!(classify(status, &said(code), Call::Read), read, "read {status} {code}");
            assert_eq!(classify(status, &said(code), Call::Write), write, "write {status} {code}");
            assert_eq!(classify(status, &said(&code.to_uppercase()), Call::Read), read, "{code} in capitals");
        }
    }

    #[test]
    fn every_row_of_the_table_is_reached() {
        for row in CODES {
            let code = row.code.replace('*', "X");
            assert_eq!(by_code(&said(&code), Call::Read), Some(row.read), "{code}");
            assert_eq!(by_code(&said(&code), Call::Write), Some(row.write), "{code}");
        }
    }

    #[test]
    fn a_known_code_among_the_details_decides() {
        let body = br#"{"error": {"code": "InvalidRequest", "message": "Bad.", "details": [
            {"code": "Whatever", "message": "x"}, {"code": "ScopeLocked", "message": "Locked by l."}]}}"#;
        assert_eq!(
            parse(body),
            Said { code: Some("ScopeLocked".into()), message: "Bad. (Locked by l.)".into() }
        );
    }

    #[test]
    fn bodies_that_are_no_errors_are_read_too() {
        assert_eq!(parse(b"<html>\n  Bad gateway</html>").message, "<html> Bad gateway</html>");
        assert_eq!(parse(b"{}").message, "no reason given");
        assert_eq!(parse(br#"{"error": "x"}"#).message, "no reason given");
        assert_eq!(parse(br#"{"code": "A", "message": "b"}"#).code.as_deref(), Some("A"));
        assert_eq!(parse(&[0xff, 0xfe]).code, None);
        let long = format!(r#"{{"message": "{}"}}"#, "é".repeat(5000));
        assert!(parse(long.as_bytes()).message.chars().count() <= LONGEST + 3);
    }

    proptest::proptest! {
        #[test]
        fn any_body_gives_a_bounded_message_on_one_line(
            value in crate::providers::azure::wire::garbage::json_like(),
            bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300),
        ) {
            for body in [value.to_string().into_bytes(), bytes] {
                let said = parse(&body);
                proptest::prop_assert!(said.message.chars().count() <= LONGEST + 3);
                proptest::prop_assert!(!said.message.contains('\n'));
            }
        }
    }
}
