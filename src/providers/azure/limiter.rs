//! Keeps below Resource Manager's own limits, so that a burst of openings never has closings refused.
//!
//! Azure counts per subscription and principal: 250 reads refilled at 25 a second, 200 writes and 200 deletes
//! at 10 a second each; and Microsoft.Network 1,000 writes or deletes in five minutes. The buckets here are
//! smaller. What can wait leaves the last tokens to what cannot.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::providers::Usage;

/// What cannot wait goes first: the share of a bucket that a call leaves to those before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Urgency {
    /// Closes a port. May go as far below zero as the cloud's own limit is above ours; of Microsoft.Network's limit it
    /// is counted and never waits.
    Close,
    /// Locks a port, or reads what a decision needs.
    Lock,
    /// Opens a port.
    Open,
    /// Lists the inventory.
    Background,
}

impl Urgency {
    fn floor(self) -> f64 {
        match self {
            Self::Close => -0.25,
            Self::Lock => 0.1,
            Self::Open | Self::Background => 0.25,
        }
    }
}

/// What is counted apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Class {
    Read,
    Write,
    Delete,
    /// Writes and deletes of Microsoft.Network together.
    Network,
}

impl Class {
    const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Write => "write",
            Self::Delete => "delete",
            Self::Network => "network",
        }
    }

    /// Tokens that a full bucket holds, and how many come back a second.
    fn size(self) -> (f64, f64) {
        match self {
            Self::Read => (200.0, 20.0),
            Self::Write | Self::Delete => (160.0, 8.0),
            Self::Network => (340.0, 1.8),
        }
    }
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: f64,
    at: Instant,
    /// The cloud asked to wait until then. Closings need not: one refused closing costs less than a late one.
    blocked: Instant,
}

impl Bucket {
    /// Adds what has come back since it was last looked at.
    fn refill(&mut self, class: Class, now: Instant) {
        let (capacity, rate) = class.size();
        self.tokens = (self.tokens + (now - self.at).as_secs_f64() * rate).min(capacity);
        self.at = now;
    }

    /// Takes a token. The debt has a bound: it delays what comes after, and must not do so for long.
    fn pay(&mut self) {
        self.tokens = (self.tokens - 1.0).max(-100.0);
    }
}

/// Token buckets of one principal.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    buckets: Mutex<HashMap<(String, Class), Bucket>>,
    waited: Mutex<(u64, Duration)>,
}

impl Limiter {
    /// What is left, and what was waited for. The calls are for others to count.
    pub(super) fn usage(&self) -> Usage {
        let now = Instant::now();
        let mut left = BTreeMap::new();
        let mut throttled_for = Duration::ZERO;
        for ((_, class), bucket) in self.buckets.lock().unwrap_or_else(PoisonError::into_inner).iter_mut() {
            bucket.refill(*class, now);
            let tokens = bucket.tokens.floor() as i64;
            left.entry(class.name())
                .and_modify(|fewest: &mut i64| *fewest = tokens.min(*fewest))
                .or_insert(tokens);
            throttled_for = throttled_for.max(bucket.blocked.saturating_duration_since(now));
        }
        let (waits, waited) = *self.waited.lock().unwrap_or_else(PoisonError::into_inner);
        Usage { calls: Vec::new(), waits, waited, left: left.into_iter().collect(), throttled_for }
    }

    /// Waits for a token of every class. The error is how long it would take, where that is past `until`.
    pub(super) async fn acquire(
        &self,
        subscription: &str,
        classes: &[Class],
        urgency: Urgency,
        until: Instant,
    ) -> Result<(), Duration> {
        let begun = Instant::now();
        let mut waited = false;
        loop {
            let wait = self.take(subscription, classes, urgency);
            if wait.is_zero() {
                if waited {
                    let mut all = self.waited.lock().unwrap_or_else(PoisonError::into_inner);
                    *all = (all.0 + 1, all.1 + begun.elapsed());
                }
                return Ok(());
            }
            if Instant::now() + wait > until {
                return Err(wait);
            }
            waited = true;
            tokio::time::sleep(wait).await;
        }
    }

    /// Takes a token of every class, or says how long to wait and takes none.
    fn take(&self, subscription: &str, classes: &[Class], urgency: Urgency) -> Duration {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let mut wait = Duration::ZERO;
        for class in classes {
            let (capacity, rate) = class.size();
            let bucket = buckets.entry((subscription.to_owned(), *class)).or_insert(Bucket {
                tokens: capacity,
                at: now,
                blocked: now,
            });
            bucket.refill(*class, now);
            let missing = 1.0 + capacity * urgency.floor() - bucket.tokens;
            let counted_only = urgency == Urgency::Close && *class == Class::Network;
            if missing > 0.0 && !counted_only {
                wait = wait.max(Duration::from_secs_f64((missing / rate).max(0.001)));
            }
            if urgency != Urgency::Close && bucket.blocked > now {
                wait = wait.max(bucket.blocked - now);
            }
        }
        if wait.is_zero() {
            for class in classes {
                if let Some(bucket) = buckets.get_mut(&(subscription.to_owned(), *class)) {
                    bucket.pay();
                }
            }
        }
        wait
    }

    /// Counts a call that must not wait.
    pub(super) fn count(&self, subscription: &str, class: Class) {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(bucket) = buckets.get_mut(&(subscription.to_owned(), class)) {
            bucket.pay();
        }
    }

    /// The cloud is throttling: all but closings wait.
    pub(super) fn block(&self, subscription: &str, class: Class, wait: Duration) {
        let now = Instant::now();
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let (capacity, _) = class.size();
        let bucket = buckets.entry((subscription.to_owned(), class)).or_insert(Bucket {
            tokens: capacity,
            at: now,
            blocked: now,
        });
        bucket.blocked = bucket.blocked.max(now + wait);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WRITE: &[Class] = &[Class::Write, Class::Network];
    const DELETE: &[Class] = &[Class::Delete, Class::Network];

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(1)
    }

    #[tokio::test(start_paused = true)]
    async fn a_storm_of_openings_stays_below_the_limits_and_leaves_room_to_close() {
        let limiter = Limiter::default();
        let end = Instant::now() + Duration::from_secs(300);
        let mut writes = 0;
        while limiter.acquire("s", WRITE, Urgency::Open, end).await.is_ok() {
            writes += 1;
        }
        let mut closes = 0;
        while limiter.take("s", DELETE, Urgency::Close).is_zero() {
            closes += 1;
        }
        assert!(closes >= 100, "{closes} closes after {writes} opens");
        assert!(
            writes + 200 <= 1000,
            "{writes} in five minutes leave no room for as many closes as Azure takes at once"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn hundreds_of_closings_go_out_as_fast_as_azure_takes_deletes() {
        let limiter = Limiter::default();
        while limiter.take("s", WRITE, Urgency::Open).is_zero() {}
        let begun = Instant::now();
        for _ in 0..500 {
            limiter.acquire("s", DELETE, Urgency::Close, begun + Duration::from_secs(120)).await.unwrap();
        }
        // 200 at once, the rest at eight a second.
        assert!(begun.elapsed() < Duration::from_secs(40), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn openings_wait_where_closings_and_locks_pass() {
        let limiter = Limiter::default();
        while limiter.take("s", WRITE, Urgency::Open).is_zero() {}
        assert!(limiter.acquire("s", WRITE, Urgency::Open, Instant::now()).await.is_err());
        assert_eq!(limiter.acquire("s", WRITE, Urgency::Lock, soon()).await, Ok(()));
        assert_eq!(limiter.acquire("s", DELETE, Urgency::Close, soon()).await, Ok(()));
        assert_eq!(limiter.acquire("other", WRITE, Urgency::Open, soon()).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn when_the_cloud_throttles_all_but_closings_wait() {
        let limiter = Limiter::default();
        limiter.block("s", Class::Delete, Duration::from_secs(30));
        let wait = limiter.acquire("s", DELETE, Urgency::Lock, soon()).await.unwrap_err();
        assert_eq!(wait, Duration::from_secs(30));
        assert_eq!(limiter.acquire("s", DELETE, Urgency::Close, soon()).await, Ok(()));
        tokio::time::sleep(Duration::from_secs(30)).await;
        assert_eq!(limiter.acquire("s", DELETE, Urgency::Lock, soon()).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_is_told_of_the_subscription_that_has_fewest_as_of_now() {
        let limiter = Limiter::default();
        assert_eq!(limiter.usage(), Usage::default());
        let far = Instant::now() + Duration::from_secs(60);
        for _ in 0..100 {
            limiter.acquire("busy", WRITE, Urgency::Open, far).await.unwrap();
        }
        limiter.acquire("idle", WRITE, Urgency::Open, far).await.unwrap();
        assert_eq!(limiter.usage().left, [("network", 240), ("write", 60)]);
        tokio::time::sleep(Duration::from_secs(5)).await;
        assert_eq!(limiter.usage().left, [("network", 249), ("write", 100)]);
        limiter.block("idle", Class::Read, Duration::from_secs(30));
        assert_eq!(limiter.usage().throttled_for, Duration::from_secs(30));
        assert_eq!(limiter.usage().waits, 0);
        let begun = Instant::now();
        limiter.acquire("idle", &[Class::Read], Urgency::Open, far).await.unwrap();
        assert_eq!((limiter.usage().waits, limiter.usage().waited), (1, begun.elapsed()));
    }
}
