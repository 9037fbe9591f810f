//! Log lines on their way to standard error, without ever making anybody wait.
//!
//! Whoever logs may be just about to send a close, and whoever reads may have stopped: lines are queued, one thread
//! of its own writes them, and those that find no room are counted in place of being kept.

use std::collections::VecDeque;
use std::io::Write;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::fmt::MakeWriter;

use crate::telemetry::pipe::write_all;

/// The most that waits to be written, in bytes.
const ROOM: usize = 4 << 20;

#[derive(Default)]
struct State {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    /// Whether a line that was taken out is not written yet.
    writing: bool,
    /// Lines that found no room since this was last said.
    dropped: u64,
}

struct Inner {
    state: Mutex<State>,
    filled: Condvar,
    dropped: Counter,
}

/// Takes log lines. Clones write to the same output.
#[derive(Clone)]
pub struct Lines(Arc<Inner>);

impl std::fmt::Debug for Lines {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Lines")
    }
}

impl Lines {
    /// Starts the thread that writes. `dropped` counts the lines that were not kept.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn start(mut output: impl Write + Send + 'static, dropped: Counter) -> std::io::Result<Self> {
        let lines = Self(Arc::new(Inner { state: Mutex::default(), filled: Condvar::new(), dropped }));
        let taken = lines.clone();
        std::thread::Builder::new().name("log".into()).spawn(move || {
            loop {
                let line = taken.pop();
                if write_all(&mut output, &line).is_err() {
                    taken.0.dropped.inc();
                }
                taken.tell_dropped();
            }
        })?;
        Ok(lines)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, line: &[u8]) {
        let mut state = self.lock();
        if state.bytes + line.len() > ROOM {
            state.dropped += 1;
            self.0.dropped.inc();
            return;
        }
        state.bytes += line.len();
        state.lines.push_back(line.to_vec());
        drop(state);
        self.0.filled.notify_one();
    }

    fn pop(&self) -> Vec<u8> {
        let mut state = self.lock();
        state.writing = false;
        let waited = self.0.filled.wait_while(state, |state| state.lines.is_empty());
        state = waited.unwrap_or_else(PoisonError::into_inner);
        let line = state.lines.pop_front().unwrap_or_default();
        state.bytes -= line.len();
        state.writing = true;
        line
    }

    /// Says in the log itself what is missing from it, once there is room again.
    fn tell_dropped(&self) {
        let mut state = self.lock();
        if state.dropped == 0 || state.bytes > ROOM / 2 {
            return;
        }
        let dropped = std::mem::take(&mut state.dropped);
        drop(state);
        tracing::warn!(dropped.lines = dropped, "log lines were dropped here: nobody read standard error");
    }

    /// Waits until everything is written, but not for ever.
    pub fn finish(&self, patience: Duration) {
        let until = Instant::now() + patience;
        let is_done = || {
            let state = self.lock();
            state.lines.is_empty() && !state.writing
        };
        while !is_done() && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        self.push(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = &'a Self;

    fn make_writer(&'a self) -> Self::Writer {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An output that takes nothing until somebody lets it, and then passes on what it took.
    struct Stuck {
        gate: std::sync::mpsc::Receiver<()>,
        taken: std::sync::mpsc::Sender<Vec<u8>>,
    }

    impl Write for Stuck {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.gate.recv();
            let _ = self.taken.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_output_that_takes_nothing_makes_nobody_wait_and_what_was_not_kept_is_counted() {
        let (open, gate) = std::sync::mpsc::channel();
        let (taken, took) = std::sync::mpsc::channel();
        let counter = Counter::default();
        let lines = Lines::start(Stuck { gate, taken }, counter.clone()).unwrap();
        let line = [b'x'; 1023].into_iter().chain([b'\n']).collect::<Vec<_>>();
        let begun = Instant::now();
        let many = ROOM / line.len() + 100;
        for _ in 0..many {
            (&lines).write_all(&line).unwrap();
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "somebody waited");
        let dropped = usize::try_from(counter.get()).unwrap();
        assert!((99..=100).contains(&dropped), "{dropped}: one may be in the writer's hands");
        // It does not wait for ever for the end either.
        lines.finish(Duration::from_millis(50));
        drop(open);
        lines.finish(Duration::from_secs(20));
        assert_eq!(took.try_iter().filter(|taken| *taken == line).count(), many - dropped);
        assert_eq!(usize::try_from(counter.get()).unwrap(), dropped);
    }
}
