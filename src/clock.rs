//! The one place that asks what time it is.
//!
//! Everything else takes the time as a parameter or holds a [`Clock`], so that tests decide what time it is
//! and every deadline is judged by the same clock.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};

/// Tells the time. Cheap to clone; clones tell the same time.
#[derive(Clone, Debug)]
pub struct Clock {
    source: Source,
    servers: Arc<Mutex<Vec<Server>>>,
}

#[derive(Clone, Debug)]
enum Source {
    System,
    /// Milliseconds since the epoch.
    Manual(Arc<AtomicI64>),
    /// Another, and by how much this one is ahead of it.
    Ahead(Box<Clock>, SignedDuration),
    /// Another, and by how much the servers that it knows must be ahead of it to be believed.
    Latest(Box<Clock>, Duration),
}

impl Clock {
    const fn of(source: Source, servers: Arc<Mutex<Vec<Server>>>) -> Self {
        Self { source, servers }
    }

    /// The machine's wall clock.
    #[must_use]
    pub fn system() -> Self {
        Self::of(Source::System, Arc::default())
    }

    /// A clock that stands at `at` until it is moved.
    #[must_use]
    pub fn manual(at: Timestamp) -> Self {
        Self::of(Source::Manual(Arc::new(AtomicI64::new(at.as_millisecond()))), Arc::default())
    }

    /// A clock that is ahead of this one, or behind it.
    #[must_use]
    pub fn ahead_by(&self, by: SignedDuration) -> Self {
        Self::of(Source::Ahead(Box::new(self.clone()), by), Arc::clone(&self.servers))
    }

    /// The clock by which things end: this one, or that of the server that is furthest ahead of it where those are more
    /// than `apart`. Which of them is right nobody knows; what ends too early is no port that stays open. A server is
    /// believed once two of its answers agree: one alone may be anybody's on the way.
    #[must_use]
    pub fn latest(&self, apart: Duration) -> Self {
        Self::of(Source::Latest(Box::new(self.clone()), apart), Arc::clone(&self.servers))
    }

    /// A server that will say what time it is.
    #[must_use]
    pub fn server(&self) -> Server {
        let server = Server::default();
        lock(&self.servers).push(server.clone());
        server
    }

    /// By how much a server is ahead of this clock by its last answer, to a second or two; none before it has answered.
    #[must_use]
    pub fn ahead(&self, server: &Server) -> Option<SignedDuration> {
        Some(lock(&server.0).last?.now()?.duration_since(self.now()))
    }

    /// The present moment.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        match &self.source {
            Source::System => Timestamp::now(),
            Source::Manual(millis) => {
                Timestamp::from_millisecond(millis.load(Ordering::SeqCst)).unwrap_or(Timestamp::MAX)
            }
            Source::Ahead(other, by) => other.now().checked_add(*by).unwrap_or(Timestamp::MAX),
            Source::Latest(other, apart) => {
                let own = other.now();
                let latest = lock(&self.servers).iter().filter_map(Server::believed).max();
                latest
                    .filter(|at| at.duration_since(own).unsigned_abs() > *apart)
                    .map_or(own, |at| at.max(own))
            }
        }
    }

    /// Moves a manual clock, backwards too; does nothing to the wall clock.
    pub fn step(&self, by: SignedDuration) {
        if let Source::Manual(millis) = &self.source {
            let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
            millis.fetch_add(by, Ordering::SeqCst);
        }
    }
}

/// A server that says with each answer what time it is (`Date`). Clones are the same server.
#[derive(Clone, Debug, Default)]
pub struct Server(Arc<Mutex<Told>>);

#[derive(Debug, Default)]
struct Told {
    last: Option<Word>,
    /// The last one that another agreed with.
    believed: Option<Word>,
}

/// What a server said that it is, and when it was heard.
#[derive(Clone, Copy, Debug)]
struct Word(Timestamp, Instant);

/// Two answers of a server that are no further apart than this, but for the time between them, agree.
const AGREE: Duration = Duration::from_secs(30);

impl Server {
    /// It has just said that it is `at`.
    pub fn said(&self, at: Timestamp) {
        let word = Word(at, Instant::now());
        let mut told = lock(&self.0);
        if [told.last, told.believed].into_iter().flatten().any(|before| before.agrees(at)) {
            told.believed = Some(word);
        }
        told.last = Some(word);
    }

    fn believed(&self) -> Option<Timestamp> {
        lock(&self.0).believed?.now()
    }
}

impl Word {
    /// What time it is there now, as it goes on from what was said: however our own clock was set since.
    fn now(self) -> Option<Timestamp> {
        self.0.checked_add(SignedDuration::try_from(self.1.elapsed()).ok()?).ok()
    }

    fn agrees(self, at: Timestamp) -> bool {
        self.now().is_some_and(|now| now.duration_since(at).unsigned_abs() <= AGREE)
    }
}

/// A moment as headers write it (RFC 9110).
#[must_use]
pub fn http_date(text: &str) -> Option<Timestamp> {
    Some(jiff::fmt::rfc2822::DateTimeParser::new().parse_zoned(text).ok()?.timestamp())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    const APART: Duration = Duration::from_secs(30);

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + seconds).unwrap()
    }

    /// By how much the latest clock is ahead of where the manual one was at first, but for what a slow machine adds.
    #[track_caller]
    fn is_ahead(clock: &Clock, seconds: i64) {
        let found = clock.latest(APART).now().duration_since(at(0)).as_secs();
        assert!((seconds..seconds + 10).contains(&found), "{found} for {seconds}");
    }

    fn says(server: &Server, seconds: i64) {
        server.said(at(seconds));
        server.said(at(seconds));
    }

    #[test]
    fn things_end_by_the_clock_that_is_furthest_ahead() {
        let clock = Clock::manual(at(0));
        let (cloud, cluster) = (clock.server(), clock.server());
        is_ahead(&clock, 0);
        assert_eq!(clock.ahead(&cloud), None);
        says(&cloud, 90);
        says(&cluster, 60);
        is_ahead(&clock, 90);
        // Its own time is as it was: nothing is granted by that of others.
        assert_eq!(clock.now(), at(0));
        assert!((90..100).contains(&clock.ahead(&cloud).unwrap().as_secs()));
        // The one that was ahead is set right.
        says(&cloud, 2);
        is_ahead(&clock, 60);
        says(&cluster, 10);
        is_ahead(&clock, 0);
        // Whoever is behind delays nothing.
        says(&cluster, -90);
        is_ahead(&clock, 0);
    }

    #[test]
    fn one_answer_that_no_other_agrees_with_ends_nothing() {
        let clock = Clock::manual(at(0));
        let cloud = clock.server();
        says(&cloud, 0);
        for _ in 0..3 {
            cloud.said(at(3600));
            is_ahead(&clock, 0);
            // It is a reason to open nothing all the same.
            assert!(clock.ahead(&cloud).unwrap().as_secs() >= 3600);
            cloud.said(at(0));
        }
        says(&cloud, 3600);
        is_ahead(&clock, 3600);
    }

    #[test]
    fn a_clock_that_is_set_back_delays_no_end() {
        let clock = Clock::manual(at(0));
        says(&clock.server(), 0);
        clock.step(SignedDuration::from_secs(-3600));
        is_ahead(&clock, 0);
        clock.step(SignedDuration::from_secs(2 * 3600));
        is_ahead(&clock, 3600);
    }
}
