//! From those who have something to record to standard output, without ever making them wait.
//!
//! Records are queued, and one thread of its own numbers, chains and writes them. Where the queue is full,
//! because whoever reads the output has stopped, records are counted in place of being kept, and the count
//! becomes a record once the output flows again.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;

use super::chain::Chain;
use super::event::Event;
use super::record::Kind;
use crate::clock::Clock;
use crate::telemetry::Metrics;
use crate::telemetry::pipe::write_all;

/// The most that waits to be written, in bytes of JSON; thousands of ordinary records, hours of an ordinary day. A
/// record of the largest request that can be has some hundred kilobytes.
const ROOM: usize = 16 << 20;
/// What a record takes beside what it tells.
const HEAD: usize = 512;
/// After so long without a record, one says that nothing happened.
const ALIVE: Duration = Duration::from_secs(300);

const WAITING: u8 = 0;
const WRITTEN: u8 = 1;
const LOST: u8 = 2;

/// Whether a record was handed over to the output.
#[derive(Clone, Debug)]
pub struct Receipt(Arc<AtomicU8>);

/// How far a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// In the queue.
    Waiting,
    /// The output has taken it.
    Written,
    /// It will not be written.
    Lost,
}

impl Receipt {
    pub(super) fn written() -> Self {
        Self(Arc::new(AtomicU8::new(WRITTEN)))
    }

    fn waiting() -> Self {
        Self(Arc::new(AtomicU8::new(WAITING)))
    }

    fn set(&self, progress: u8) {
        self.0.store(progress, Ordering::Release);
    }

    /// How far it is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        match self.0.load(Ordering::Acquire) {
            WAITING => Progress::Waiting,
            WRITTEN => Progress::Written,
            _ => Progress::Lost,
        }
    }
}

enum Item {
    Record {
        event: Box<Event>,
        time: Timestamp,
        receipt: Receipt,
        size: usize,
    },
    /// So many records found no room here.
    Lost(u64),
}

#[derive(Default)]
struct State {
    items: VecDeque<Item>,
    /// Size of all that waits.
    bytes: usize,
    /// Whether the chain has its end: nothing more is taken.
    ended: bool,
    /// Whether something that was taken out is not written yet.
    writing: bool,
}

/// The queue.
pub(super) struct Queue {
    state: Mutex<State>,
    filled: Condvar,
    metrics: Metrics,
}

impl Queue {
    pub(super) fn new(metrics: Metrics) -> Self {
        Self { state: Mutex::default(), filled: Condvar::new(), metrics }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a record without waiting for anything but a push or a pop of somebody else.
    pub(super) fn push(&self, event: Event, time: Timestamp) -> Receipt {
        let size = size(&event);
        let (receipt, mut state) = (Receipt::waiting(), self.lock());
        if state.ended {
            // Written, it would follow the end of its chain and break it.
            receipt.set(LOST);
            self.metrics.audit_record(false);
            return receipt;
        }
        if state.bytes + size > ROOM {
            receipt.set(LOST);
            match state.items.back_mut() {
                Some(Item::Lost(count)) => *count += 1,
                _ => state.items.push_back(Item::Lost(1)),
            }
            self.metrics.audit_record(false);
        } else {
            state.take(event, time, receipt.clone(), size);
        }
        drop(state);
        self.filled.notify_one();
        receipt
    }

    /// Takes the last record, for which there is always room, and nothing after it.
    pub(super) fn end(&self, event: Event, time: Timestamp) {
        let size = size(&event);
        let mut state = self.lock();
        if !std::mem::replace(&mut state.ended, true) {
            state.take(event, time, Receipt::waiting(), size);
        }
        drop(state);
        self.filled.notify_one();
    }

    /// Whether everything was written or lost.
    pub(super) fn is_empty(&self) -> bool {
        let state = self.lock();
        state.items.is_empty() && !state.writing
    }

    /// The next item; none where nothing came for a while.
    fn pop(&self, patience: Duration) -> Option<Item> {
        let mut state = self.lock();
        state.writing = false;
        let (mut state, _) = self
            .filled
            .wait_timeout_while(state, patience, |state| state.items.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        let item = state.items.pop_front();
        if let Some(Item::Record { size, .. }) = &item {
            state.bytes -= size;
        }
        state.writing = item.is_some();
        item
    }
}

impl State {
    fn take(&mut self, event: Event, time: Timestamp, receipt: Receipt, size: usize) {
        self.bytes += size;
        self.items.push_back(Item::Record { event: Box::new(event), time, receipt, size });
    }
}

/// How much a record takes, about.
fn size(event: &Event) -> usize {
    let mut count = Count(HEAD);
    // Counting cannot fail, and what cannot be written as JSON is lost later.
    let _ = serde_json::to_writer(&mut count, &event.parts);
    count.0
}

struct Count(usize);

impl Write for Count {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes what comes, for ever.
pub(super) fn run(queue: &Queue, mut output: impl Write, mut chain: Chain, clock: &Clock) {
    let mut writer = Writer { output: &mut output, chain: &mut chain, lost: 0, torn: false, failing: false };
    loop {
        match queue.pop(ALIVE) {
            Some(Item::Lost(count)) => {
                writer.lost += count;
                // Told at once: nothing may come after them.
                writer.tell_lost(clock.now());
            }
            Some(Item::Record { event, time, receipt, size: _ }) => {
                let written = writer.record(*event, time);
                queue.metrics.audit_record(written);
                receipt.set(if written { WRITTEN } else { LOST });
            }
            None => {
                writer.record(Event::plain(Kind::Alive), clock.now());
            }
        }
    }
}

struct Writer<'a, W> {
    output: &'a mut W,
    chain: &'a mut Chain,
    /// Records that were lost since the last that was written.
    lost: u64,
    /// Whether the last line was not ended.
    torn: bool,
    /// Whether the last write failed: said once.
    failing: bool,
}

impl<W: Write> Writer<'_, W> {
    /// Writes a record, and before it the count of those that were lost.
    fn record(&mut self, event: Event, time: Timestamp) -> bool {
        self.tell_lost(time);
        let written = self.lost == 0 && self.seal(event, time, 0);
        if !written {
            self.lost += 1;
        }
        written
    }

    /// Writes the count of those that were lost, where some were.
    fn tell_lost(&mut self, time: Timestamp) {
        if self.lost > 0 && self.seal(Event::dropped(self.lost), time, self.lost) {
            self.lost = 0;
        }
    }

    fn seal(&mut self, event: Event, time: Timestamp, skipped: u64) -> bool {
        let sealed = match self.chain.seal(event, time, skipped) {
            Ok(sealed) => sealed,
            Err(error) => {
                tracing::error!(%error, "an audit record cannot be written as JSON");
                return false;
            }
        };
        let start = if self.torn { "\n" } else { "" };
        match write_all(self.output, format!("{start}{}\n", sealed.line).as_bytes()) {
            Ok(()) => {
                self.chain.written(sealed);
                (self.torn, self.failing) = (false, false);
                true
            }
            Err(error) => {
                if !self.failing {
                    tracing::error!(%error, "audit records cannot be written to standard output; nothing is opened without them");
                }
                (self.torn, self.failing) = (true, true);
                false
            }
        }
    }
}
