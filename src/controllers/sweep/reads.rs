//! What the readers of a sweep have read, until it is judged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use super::Error;
use crate::plan::model::{FirewallId, Observed};

/// Firewalls as read, each with the name of the credential that reached it.
pub(super) type Read = Vec<(String, Observed)>;

/// Where readers leave what they read. One place for each scope, so that what was read twice is judged once.
#[derive(Debug)]
pub(super) struct Reads {
    places: usize,
    state: Mutex<State>,
    tried: Notify,
}

#[derive(Debug, Default)]
struct State {
    read: BTreeMap<usize, Read>,
    /// Places that were tried since the last judgement, well or not.
    tried: BTreeSet<usize>,
    failure: Option<Error>,
    apart: Read,
    /// Firewalls that a request names and no scope has shown.
    strays: BTreeSet<FirewallId>,
}

/// What is there to be judged.
#[derive(Debug, Default)]
pub(super) struct Taken {
    pub(super) read: Read,
    /// Whether every place was read.
    pub(super) whole: bool,
    /// Why not, where a reader said so.
    pub(super) failure: Option<Error>,
}

impl Reads {
    pub(super) fn new(places: usize) -> Self {
        Self { places, state: Mutex::default(), tried: Notify::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A reader has tried its place.
    pub(super) fn put(&self, place: usize, result: Result<Read, Error>) {
        let mut state = self.lock();
        state.tried.insert(place);
        match result {
            Ok(read) => {
                state.read.insert(place, read);
            }
            Err(error) => {
                state.failure.get_or_insert(error);
            }
        }
        drop(state);
        self.tried.notify_one();
    }

    /// A firewall that is in no scope was read.
    pub(super) fn put_stray(&self, credential: String, observed: Observed) {
        self.lock().apart.push((credential, observed));
    }

    /// Waits until every place was tried since the last judgement.
    pub(super) async fn all_tried(&self) {
        while self.lock().tried.len() < self.places {
            self.tried.notified().await;
        }
    }

    /// What was read since the last judgement.
    pub(super) fn take(&self) -> Taken {
        let mut state = self.lock();
        let places = std::mem::take(&mut state.read);
        state.tried.clear();
        Taken {
            whole: places.len() == self.places,
            read: places.into_values().flatten().chain(std::mem::take(&mut state.apart)).collect(),
            failure: state.failure.take(),
        }
    }

    /// Firewalls that are to be read though no scope has shown them.
    pub(super) fn set_strays(&self, strays: BTreeSet<FirewallId>) {
        self.lock().strays = strays;
    }

    pub(super) fn strays(&self) -> BTreeSet<FirewallId> {
        self.lock().strays.clone()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::api::values::ArmId;

    fn silent() -> Error {
        Error::Silent { scope: ArmId::parse("/subscriptions/11111111-2222-3333-4444-555555555555").unwrap() }
    }

    async fn waits(reads: &Reads) -> bool {
        tokio::time::timeout(Duration::from_millis(1), reads.all_tried()).await.is_err()
    }

    #[tokio::test]
    async fn all_are_waited_for_and_one_that_failed_or_is_late_leaves_a_sweep_incomplete() {
        let reads = Reads::new(2);
        reads.put(0, Ok(Vec::new()));
        assert!(waits(&reads).await);
        let taken = reads.take();
        assert!(!taken.whole && taken.failure.is_none(), "one is late");
        reads.put(0, Ok(Vec::new()));
        reads.put(0, Ok(Vec::new()));
        assert!(waits(&reads).await, "the same twice is not both");
        reads.put(1, Err(silent()));
        assert!(!waits(&reads).await);
        let taken = reads.take();
        assert!(!taken.whole && matches!(taken.failure, Some(Error::Silent { .. })));
        reads.put(0, Ok(Vec::new()));
        reads.put(1, Ok(Vec::new()));
        assert!(reads.take().whole);
        assert!(!reads.take().whole, "what was judged is not judged again");
        assert!(Reads::new(0).take().whole);
    }
}
