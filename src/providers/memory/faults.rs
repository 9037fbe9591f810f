//! What can go wrong in the cloud in memory.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::SignedDuration;

use crate::providers::{CloudError, CloudErrorKind};

/// What happens to one write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WriteFault {
    /// The cloud answers with an error and writes nothing.
    Refused(CloudErrorKind),
    /// It is written, but no answer comes: ambiguous once patience is at an end.
    AnswerLost,
    /// It is not written, and no answer comes: ambiguous once patience is at an end.
    RequestLost,
    /// No answer comes, and it is written after this time. Meanwhile other writes are refused.
    Late(Duration),
}

/// What goes wrong from now on. The default is nothing.
#[derive(Clone, Debug, Default)]
pub struct Faults {
    /// How long a write takes from being taken to filtering packets.
    pub write_time: Duration,
    /// How long a read of a firewall takes.
    pub read_time: Duration,
    /// Every call to the inventory fails so, until it is taken away.
    pub inventory: Option<CloudErrorKind>,
    /// By how much the cloud's clock is ahead of ours, where it says.
    pub clock_ahead: Option<SignedDuration>,
    writes_seen: usize,
    writes: BTreeMap<usize, WriteFault>,
    all_writes: Option<WriteFault>,
    reads: Option<(usize, CloudErrorKind)>,
    stale: usize,
}

impl Faults {
    /// Breaks the `nth` write from now, counted from 1.
    pub fn break_write(&mut self, nth: usize, fault: WriteFault) {
        self.writes.insert(self.writes_seen + nth, fault);
    }

    /// Breaks every write that [`Faults::break_write`] does not name; none mends it.
    pub fn break_all_writes(&mut self, fault: Option<WriteFault>) {
        self.all_writes = fault;
    }

    /// Fails the next `count` reads of firewalls.
    pub fn fail_reads(&mut self, count: usize, kind: CloudErrorKind) {
        self.reads = (count > 0).then_some((count, kind));
    }

    /// The next `count` reads of firewalls show each as it was before its last change.
    pub fn make_reads_stale(&mut self, count: usize) {
        self.stale = count;
    }

    pub(super) fn next_write(&mut self) -> Option<WriteFault> {
        self.writes_seen += 1;
        self.writes.remove(&self.writes_seen).or(self.all_writes)
    }

    pub(super) fn next_read(&mut self) -> Option<CloudErrorKind> {
        let (left, kind) = self.reads?;
        self.reads = (left > 1).then_some((left - 1, kind));
        Some(kind)
    }

    pub(super) fn next_is_stale(&mut self) -> bool {
        let stale = self.stale > 0;
        self.stale = self.stale.saturating_sub(1);
        stale
    }

    pub(super) fn inventory(&self, operation: &str) -> Result<(), CloudError> {
        match self.inventory {
            None => Ok(()),
            Some(kind) => Err(CloudError {
                kind,
                operation: operation.to_owned(),
                message: "a fault refused it".into(),
                code: None,
                retry_after: None,
                request_id: None,
            }),
        }
    }
}
