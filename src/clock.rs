//! The one place that asks what time it is.
//!
//! Everything else takes the time as a parameter or holds a [`Clock`], so that tests decide what time it is
//! and every deadline is judged by the same clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};

impl Source {
    fn now(&self) -> Timestamp {
        match self {
            Self::System => Timestamp::now(),
            Self::Manual(millis) => {
                Timestamp::from_millisecond(millis.load(Ordering::SeqCst)).unwrap_or(Timestamp::MAX)
            }
            Self::Ahead(other, by) => other.now().checked_add(*by).unwrap_or(Timestamp::MAX),
        }
    }
}

/// Tells the time. Cheap to clone; clones tell the same time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Milliseconds since the epoch.
    Manual(Arc<AtomicI64>),
    /// Another, and by how much this one is ahead of it.
    Ahead(Arc<Source>, SignedDuration),
}

impl Clock {
    /// The machine's wall clock.
    #[must_use]
    pub const fn system() -> Self {
        Self(Source::System)
    }

    /// A clock that stands at `at` until it is moved.
    #[must_use]
    pub fn manual(at: Timestamp) -> Self {
        Self(Source::Manual(Arc::new(AtomicI64::new(at.as_millisecond()))))
    }

    /// A clock that is ahead of this one, or behind it.
    #[must_use]
    pub fn ahead_by(&self, by: SignedDuration) -> Self {
        Self(Source::Ahead(Arc::new(self.0.clone()), by))
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        self.0.now()
    }

    /// Moves a manual clock, backwards too; does nothing to the wall clock.
    pub fn step(&self, by: SignedDuration) {
        if let Source::Manual(millis) = &self.0 {
            let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            millis.fetch_add(by, Ordering::SeqCst);
        }
    }
}
