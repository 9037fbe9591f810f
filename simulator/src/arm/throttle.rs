//! Token buckets per subscription and principal, and the headers that tell how much is left.

use std::collections::HashMap;

use jiff::Timestamp;

use super::errors::ArmError;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Kind {
    Reads,
    Writes,
    Deletes,
    NetworkReads,
    NetworkWrites,
}

impl Kind {
    /// Capacity, and refill per second.
    fn limits(self) -> (f64, f64) {
        match self {
            Self::Reads => (250.0, 25.0),
            Self::Writes | Self::Deletes => (200.0, 10.0),
            Self::NetworkReads => (10_000.0, 10_000.0 / 300.0),
            Self::NetworkWrites => (1000.0, 1000.0 / 300.0),
        }
    }

    pub(crate) fn of(method: &str) -> Self {
        match method {
            "GET" | "HEAD" => Self::Reads,
            "DELETE" => Self::Deletes,
            _ => Self::Writes,
        }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Reads | Self::NetworkReads => "reads",
            Self::Writes | Self::NetworkWrites => "writes",
            Self::Deletes => "deletes",
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    tokens: f64,
    at: Timestamp,
}

/// The buckets of one instance.
#[derive(Debug, Default)]
pub(crate) struct Throttle {
    buckets: HashMap<(String, String, Kind), Bucket>,
}

impl Throttle {
    /// Takes a token and answers how many are left; the error says how long to wait, in seconds.
    fn take(&mut self, subscription: &str, principal: &str, kind: Kind, now: Timestamp) -> Result<u64, u64> {
        let (capacity, refill) = kind.limits();
        let key = (subscription.to_owned(), principal.to_owned(), kind);
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: capacity, at: now });
        let elapsed = now.duration_since(bucket.at).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed * refill).min(capacity);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return Err(whole(((1.0 - bucket.tokens) / refill).ceil()).max(1));
        }
        bucket.tokens -= 1.0;
        Ok(whole(bucket.tokens))
    }

    /// Counts a request against all buckets that it falls in.
    ///
    /// # Errors
    /// 429 with `Retry-After` when `enforce` is on and a bucket is empty.
    pub(crate) fn count(
        &mut self,
        (subscription, principal): (&str, &str),
        method: &str,
        network: bool,
        now: Timestamp,
        enforce: bool,
    ) -> Result<(String, String), ArmError> {
        let kind = Kind::of(method);
        let taken = self.take(subscription, principal, kind, now);
        let network_kind = if kind == Kind::Reads { Kind::NetworkReads } else { Kind::NetworkWrites };
        let both = match (network, taken) {
            (true, Ok(left)) => self.take(subscription, "", network_kind, now).map(|_| left),
            (_, taken) => taken,
        };
        let name = format!("x-ms-ratelimit-remaining-subscription-{}", kind.word());
        match both {
            Ok(left) => Ok((name, left.to_string())),
            Err(_) if !enforce => Ok((name, "0".into())),
            Err(wait) => Err(ArmError::new(
                429,
                if taken.is_err() { "SubscriptionRequestsThrottled" } else { "TooManyRequests" },
                format!("Number of '{}' requests for subscription '{subscription}' exceeded the limit. Please try again after '{wait}' seconds.", kind.word()),
            )
            .with_header("Retry-After", wait.to_string())
            .with_header(&name, "0")),
        }
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "small positive numbers")]
fn whole(value: f64) -> u64 {
    value as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_bucket_answers_429_with_a_wait_and_refills() {
        let mut throttle = Throttle::default();
        let t = |ms: i64| Timestamp::from_millisecond(ms).unwrap();
        for _ in 0..200 {
            throttle.count(("s", "p"), "PUT", false, t(0), true).unwrap();
        }
        let error = throttle.count(("s", "p"), "PUT", false, t(0), true).unwrap_err();
        assert_eq!((error.status, error.headers[0].1.as_str()), (429, "1"));
        assert!(throttle.count(("s", "p"), "DELETE", false, t(0), true).is_ok());
        assert!(throttle.count(("s", "p"), "PUT", false, t(1000), true).is_ok());
        assert!(throttle.count(("s", "p"), "PUT", false, t(1000), false).is_ok());
    }
}
