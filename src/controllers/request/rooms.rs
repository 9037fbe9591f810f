//! Who is worked on at the same time. Requests that wait for their grant have a room of their own, so that however many
//! there are, and however slowly the API server answers, none that is to be closed waits behind them.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The rooms of all requests. Cheap to clone; clones are the same.
#[derive(Clone, Debug)]
pub struct Rooms {
    /// For what may have rules in the cloud, or is over.
    granted: Arc<Semaphore>,
    /// For the rest. Whoever came first goes in first.
    waiting: Arc<Semaphore>,
}

impl Rooms {
    /// So many places in each.
    #[must_use]
    pub fn new(places: u16) -> Self {
        let room = || Arc::new(Semaphore::new(places.max(1).into()));
        Self { granted: room(), waiting: room() }
    }

    /// Waits for a place, which is held until what is returned is dropped. None never happens: no room is ever closed.
    pub(super) async fn enter(&self, waits_for_grant: bool) -> Option<OwnedSemaphorePermit> {
        let room = if waits_for_grant { &self.waiting } else { &self.granted };
        Arc::clone(room).acquire_owned().await.ok()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn whoever_waits_for_a_grant_takes_no_place_of_what_is_granted_and_goes_in_by_turn() {
        let rooms = Rooms::new(2);
        let first = rooms.enter(true).await;
        let second = rooms.enter(true).await;
        let mut third = Box::pin(rooms.enter(true));
        assert!(third.as_mut().now_or_never().is_none(), "full");
        let mut fourth = Box::pin(rooms.enter(true));
        assert!(fourth.as_mut().now_or_never().is_none());
        let granted = rooms.enter(false).now_or_never();
        assert!(granted.is_some_and(|place| place.is_some()));
        drop(first);
        assert!(fourth.as_mut().now_or_never().is_none(), "the third came first");
        assert!(third.as_mut().now_or_never().is_some());
        drop(second);
        assert!(fourth.as_mut().now_or_never().is_some());
    }
}
