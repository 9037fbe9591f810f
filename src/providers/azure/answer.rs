//! What answers and their absence mean: errors, times to wait, ids in headers.

use std::time::Duration;

use rand::Rng;
use reqwest::header::HeaderMap;
use url::Url;

use super::client::Reply;
use super::errors::Said;
use super::token::TokenError;
use crate::clock::http_date;
use crate::providers::{CloudError, CloudErrorKind};

/// The longest wait that `Retry-After` is believed.
const LONGEST_WAIT: Duration = Duration::from_secs(600);

/// The error of what an answer said.
pub(super) fn judged(operation: &str, kind: CloudErrorKind, said: &Said, reply: &Reply) -> CloudError {
    let message = match &said.code {
        Some(code) => format!("{code}: {}", said.message),
        None => format!("{}: {}", reply.status, said.message),
    };
    CloudError {
        code: said.code.clone(),
        retry_after: retry_after(&reply.headers),
        request_id: reply.request_id.clone(),
        ..error(operation, kind, &message)
    }
}

/// An error without an answer.
pub(super) fn error(operation: &str, kind: CloudErrorKind, message: &str) -> CloudError {
    CloudError {
        kind,
        operation: operation.to_owned(),
        message: message.to_owned(),
        code: None,
        retry_after: None,
        request_id: None,
    }
}

/// Without a token nothing was sent.
pub(super) fn no_token(operation: &str, why: &TokenError) -> CloudError {
    let kind = match why {
        TokenError::Unavailable(_) => CloudErrorKind::Retryable,
        TokenError::Refused(_) => CloudErrorKind::Unauthenticated,
    };
    error(operation, kind, &why.to_string())
}

pub(super) fn held_back(operation: &str, wait: Duration) -> CloudError {
    CloudError {
        retry_after: Some(wait),
        ..error(
            operation,
            CloudErrorKind::Retryable,
            "held back to stay below the limits of Resource Manager",
        )
    }
}

/// A random wait below a bound that doubles.
pub(super) fn jitter(attempt: u32) -> Duration {
    let most = Duration::from_millis(250) * 2_u32.saturating_pow(attempt.min(5));
    rand::rng().random_range(Duration::from_millis(20)..most)
}

/// The subscription that an address is about: limits are counted for each.
pub(super) fn subscription(url: &Url) -> String {
    url.path().split('/').nth(2).unwrap_or_default().to_ascii_lowercase()
}

pub(super) fn text(headers: &HeaderMap, name: &str) -> Option<String> {
    let value = headers.get(name)?.to_str().ok()?.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// How long the cloud asks to wait: seconds, or a moment by its own clock.
pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let value = text(headers, "retry-after")?;
    let wait = match value.parse::<f64>() {
        Ok(seconds) => Duration::try_from_secs_f64(seconds).ok()?,
        Err(_) => {
            let date = http_date(&text(headers, "date")?)?;
            Duration::try_from(http_date(&value)?.duration_since(date)).unwrap_or_default()
        }
    };
    Some(wait.min(LONGEST_WAIT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn retry_after_is_seconds_or_a_moment_and_is_bounded() {
        let date = ("date", "Sun, 22 Nov 2026 08:00:00 GMT");
        for (given, seconds) in [
            ("17", Some(17)),
            ("0", Some(0)),
            ("Sun, 22 Nov 2026 08:00:20 GMT", Some(20)),
            ("Sun, 22 Nov 2026 07:00:00 GMT", Some(0)),
            ("99999999", Some(600)),
            ("-1", None),
            ("soon", None),
            ("", None),
        ] {
            let found = retry_after(&headers(&[("retry-after", given), date]));
            assert_eq!(found, seconds.map(Duration::from_secs), "{given}");
        }
        assert_eq!(retry_after(&headers(&[])), None);
    }

    #[test]
    fn waits_grow_and_stay_bounded() {
        for attempt in 1..100 {
            assert!(jitter(attempt) <= Duration::from_secs(8));
        }
    }
}
