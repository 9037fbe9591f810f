//! The commands of `playground`.

pub(crate) mod demo;
pub(crate) mod demo_firewall;
mod environment;

pub(crate) mod probe;
mod show;
pub(crate) mod up;

use std::io::Write;
use std::time::Instant;

/// Tells the person in front of it what is happening, with the seconds since the start.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Narrator {
    begun: Instant,
}

impl Narrator {
    pub(crate) fn new() -> Self {
        Self { begun: Instant::now() }
    }

    /// Seconds since the start.
    pub(crate) fn seconds(self) -> f64 {
        self.begun.elapsed().as_secs_f64()
    }

    /// A step that begins.
    pub(crate) fn say(self, line: &str) {
        self.print(&format!("[{:5.1} s] {line}", self.seconds()));
    }

    /// A line as it is. A closed standard output ends nothing that is running.
    #[allow(clippy::unused_self)]
    pub(crate) fn print(self, line: &str) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{line}");
        let _ = out.flush();
    }
}
