//! Who is worked on at the same time. Requests that wait for their grant have a room of their own, and so have those that
//! are over or are deleted before they were granted: however many there are, and however slowly the API server answers, none
//! that is to be closed waits behind them; and whoever asks without end has only a part of the first, so that others find a
//! place.
//!
//! Nobody stands in line for the first: whoever finds no place comes again, and is judged anew. One that was granted
//! meanwhile would wait in a line that its revocation could not overtake.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pace::Asker;

/// One requester's part of the room is one in so many.
const SHARES: usize = 4;
/// The most requesters that are kept before those of whom nobody is inside are forgotten.
const MOST: usize = 1000;

/// The rooms of all requests. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Rooms {
    places: usize,
    /// For what may have rules in the cloud.
    granted: Arc<Semaphore>,
    /// For what has none, and is over or is being deleted.
    leaving: Arc<Semaphore>,
    /// For the rest.
    waiting: Arc<Semaphore>,
    /// The part of each requester in the room of those who wait.
    shares: Arc<Mutex<HashMap<Asker, Weak<Semaphore>>>>,
}

/// A place in a room, until it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _room: Option<OwnedSemaphorePermit>,
    _share: Option<OwnedSemaphorePermit>,
}

impl Rooms {
    /// So many places in each.
    #[must_use]
    pub fn new(places: u16) -> Self {
        let places = usize::from(places.max(1));
        let room = || Arc::new(Semaphore::new(places));
        Self { places, granted: room(), leaving: room(), waiting: room(), shares: Arc::default() }
    }

    /// Waits for a place of what may have rules in the cloud, by turn.
    pub(super) async fn enter_granted(&self) -> Place {
        Self::enter(&self.granted).await
    }

    /// Waits for a place of what has none and waits for no grant, by turn.
    pub(super) async fn enter_leaving(&self) -> Place {
        Self::enter(&self.leaving).await
    }

    async fn enter(room: &Arc<Semaphore>) -> Place {
        // No room is ever closed.
        Place { _room: Arc::clone(room).acquire_owned().await.ok(), _share: None }
    }

    /// A place of one that waits for its grant, if there is one.
    pub(super) fn enter_waiting(&self, asker: Asker) -> Option<Place> {
        let share = self.share(asker).try_acquire_owned().ok()?;
        let room = Arc::clone(&self.waiting).try_acquire_owned().ok()?;
        Some(Place { _room: Some(room), _share: Some(share) })
    }

    fn share(&self, asker: Asker) -> Arc<Semaphore> {
        let mut shares = self.shares.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = shares.get(&asker).and_then(Weak::upgrade) {
            return known;
        }
        if shares.len() >= MOST {
            shares.retain(|_, share| share.strong_count() > 0);
        }
        let share = Arc::new(Semaphore::new((self.places / SHARES).max(1)));
        shares.insert(asker, Arc::downgrade(&share));
        share
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    fn who(name: &str) -> Asker {
        ("web".to_owned(), name.to_owned())
    }

    #[tokio::test]
    async fn whoever_waits_for_a_grant_takes_no_place_of_what_is_granted() {
        let rooms = Rooms::new(2);
        let first = rooms.enter_waiting(who("a"));
        let second = rooms.enter_waiting(who("b"));
        assert!(first.is_some() && second.is_some());
        assert!(rooms.enter_waiting(who("c")).is_none(), "full");
        assert!(rooms.enter_granted().now_or_never().is_some());
        drop(first);
        assert!(rooms.enter_waiting(who("c")).is_some());
    }

    #[tokio::test]
    async fn what_is_over_takes_no_place_of_what_is_granted_or_waits() {
        let rooms = Rooms::new(2);
        let _inside = [rooms.enter_leaving().await, rooms.enter_leaving().await];
        assert!(rooms.enter_leaving().now_or_never().is_none(), "full");
        assert!(rooms.enter_granted().now_or_never().is_some());
        assert!(rooms.enter_waiting(who("a")).is_some());
    }

    #[test]
    fn whoever_asks_without_end_leaves_places_for_others() {
        let rooms = Rooms::new(16);
        let mut inside: Vec<Place> = (0..100).filter_map(|_| rooms.enter_waiting(who("a"))).collect();
        assert_eq!(inside.len(), 4);
        for other in ["b", "c", "d"] {
            assert!(rooms.enter_waiting(who(other)).is_some(), "{other}");
        }
        inside.pop();
        assert!(rooms.enter_waiting(who("a")).is_some());
    }

    #[test]
    fn requesters_of_whom_nobody_is_inside_are_forgotten() {
        let rooms = Rooms::new(16);
        let kept = rooms.enter_waiting(who("kept"));
        for number in 0..5 * MOST {
            drop(rooms.enter_waiting(who(&number.to_string())));
        }
        let shares = rooms.shares.lock().unwrap();
        assert!(shares.len() <= MOST && shares.contains_key(&who("kept")));
        drop(kept);
    }
}
