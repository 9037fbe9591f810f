//! Who is worked on at the same time. Requests that wait for their grant have a room of their own, so that however many
//! there are, and however slowly the API server answers, none that is to be closed waits behind them; and whoever asks
//! without end has only a part of that room, so that others find a place.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::pace::Asker;

/// One requester's part of the room is one in so many.
const SHARES: usize = 4;
/// The most requesters that are kept before those of whom nobody waits are forgotten.
const MOST: usize = 1000;

/// The rooms of all requests. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Rooms {
    places: usize,
    /// For what may have rules in the cloud, or is over.
    granted: Arc<Semaphore>,
    /// For the rest. Whoever came first goes in first.
    waiting: Arc<Semaphore>,
    /// The part of each requester in the room of those who wait.
    shares: Arc<Mutex<HashMap<Asker, Weak<Semaphore>>>>,
}

/// A place in a room, until it is dropped. None of its parts is ever missing: no room is ever closed.
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
        Self { places, granted: room(), waiting: room(), shares: Arc::default() }
    }

    /// Waits for a place of what is granted, or is over.
    pub(super) async fn enter_granted(&self) -> Place {
        Place { _room: Arc::clone(&self.granted).acquire_owned().await.ok(), _share: None }
    }

    /// Waits for a place of one that waits for its grant.
    pub(super) async fn enter_waiting(&self, asker: Asker) -> Place {
        let share = self.share(asker).acquire_owned().await.ok();
        Place { _room: Arc::clone(&self.waiting).acquire_owned().await.ok(), _share: share }
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
    async fn whoever_waits_for_a_grant_takes_no_place_of_what_is_granted_and_goes_in_by_turn() {
        let rooms = Rooms::new(2);
        let first = rooms.enter_waiting(who("a")).await;
        let second = rooms.enter_waiting(who("b")).await;
        let mut third = Box::pin(rooms.enter_waiting(who("c")));
        assert!(third.as_mut().now_or_never().is_none(), "full");
        let mut fourth = Box::pin(rooms.enter_waiting(who("d")));
        assert!(fourth.as_mut().now_or_never().is_none());
        assert!(rooms.enter_granted().now_or_never().is_some());
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none(), "the third came first");
        assert!(third.as_mut().now_or_never().is_some());
        drop(second);
        assert!(fourth.as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn whoever_asks_without_end_leaves_places_for_others() {
        let rooms = Rooms::new(16);
        let mut inside = Vec::new();
        let mut outside = Vec::new();
        for _ in 0..100 {
            let mut enter = Box::pin(rooms.enter_waiting(who("a")));
            match enter.as_mut().now_or_never() {
                Some(place) => inside.push(place),
                None => outside.push(enter),
            }
        }
        assert_eq!(inside.len(), 4);
        for other in ["b", "c", "d"] {
            assert!(rooms.enter_waiting(who(other)).now_or_never().is_some(), "{other}");
        }
        inside.pop();
        assert!(outside[0].as_mut().now_or_never().is_some());
    }

    #[tokio::test]
    async fn requesters_of_whom_nobody_waits_are_forgotten() {
        let rooms = Rooms::new(16);
        let kept = rooms.enter_waiting(who("kept")).await;
        for number in 0..5 * MOST {
            drop(rooms.enter_waiting(who(&number.to_string())).await);
        }
        let shares = rooms.shares.lock().unwrap();
        assert!(shares.len() <= MOST && shares.contains_key(&who("kept")));
        drop(kept);
    }
}
