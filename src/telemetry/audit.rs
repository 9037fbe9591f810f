//! The audit trail: who could reach what, when and why, as records on standard output.
//!
//! One JSON object a line, each with the word `"audit":"portcullis"`, a number, and the hash of the record
//! before it. Log lines go to standard error. `docs/audit.md` says what a record means and what the chain proves.
//!
//! Recording never waits: a close is never held up by whoever reads the output. An open asks for a receipt.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

pub mod chain;
mod event;
pub mod record;
mod sink;
pub mod verify;

pub use event::Event;
pub use record::Kind;
pub use sink::{Progress, Receipt};

use super::Metrics;
use crate::clock::Clock;
use chain::Chain;
use record::Started;
use sink::Queue;

/// Takes records. Clones write to the same chain.
#[derive(Clone)]
pub struct Audit(Option<Arc<Inner>>);

struct Inner {
    queue: Arc<Queue>,
    clock: Clock,
    writes: AtomicU64,
}

impl std::fmt::Debug for Audit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Audit")
    }
}

impl Audit {
    /// Begins a new chain, with its first record in the queue.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(
        output: impl Write + Send + 'static,
        started: Started,
        clock: Clock,
        metrics: Metrics,
    ) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::new(metrics));
        let chain = Chain::new(uuid::Uuid::new_v4().to_string());
        {
            let (queue, clock) = (Arc::clone(&queue), clock.clone());
            std::thread::Builder::new()
                .name("audit".into())
                .spawn(move || sink::run(&queue, output, chain, &clock))?;
        }
        let audit = Self(Some(Arc::new(Inner { queue, clock, writes: AtomicU64::new(0) })));
        audit.record(Event::started(started));
        Ok(audit)
    }

    /// Keeps nothing and says that all is well: for tests of other things.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Records something. Never waits.
    pub fn record(&self, event: Event) {
        self.intend(event);
    }

    /// Records something, and gives a receipt that says whether it has left the program. Never waits.
    pub fn intend(&self, event: Event) -> Receipt {
        match &self.0 {
            Some(inner) => inner.queue.push(event, inner.clock.now()),
            None => Receipt::written(),
        }
    }

    /// A number for a write, unique in this chain.
    #[must_use]
    pub fn next_write(&self) -> u64 {
        self.0.as_ref().map_or(0, |inner| inner.writes.fetch_add(1, Ordering::Relaxed))
    }

    /// Ends the chain: all that belongs to it was recorded, and nothing more is taken.
    pub fn end(&self) {
        if let Some(inner) = &self.0 {
            inner.queue.end(Event::plain(Kind::ChainEnded), inner.clock.now());
        }
    }

    /// Waits until what was recorded is written, but not for ever.
    pub async fn flush(&self, patience: Duration) {
        let Some(inner) = &self.0 else { return };
        let until = tokio::time::Instant::now() + patience;
        while !inner.queue.is_empty() && tokio::time::Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

#[cfg(test)]
mod tests;
