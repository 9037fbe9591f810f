//! Log lines on standard error. Logging never waits: a close is never held up by whoever reads the log.

use std::str::FromStr;

use prometheus_client::metrics::counter::Counter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, reload};

use super::{Error, Traces};

mod writer;

pub use writer::Lines;

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// One JSON object a line.
    #[default]
    Json,
    /// For people.
    Text,
}

/// Which lines are written, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Logging {
    /// Directives as `RUST_LOG` has them: a level, or `target=level` pairs separated by commas.
    pub filter: String,
    /// How lines look.
    pub format: Format,
}

/// Sets which lines are written, while the program runs.
#[derive(Clone, Debug)]
pub struct Level(reload::Handle<EnvFilter, Registry>);

impl Level {
    /// From now on lines are written that this filter lets through.
    ///
    /// # Errors
    /// [`Error::Filter`] when it cannot be read; the one before stays.
    pub fn set(&self, text: &str) -> Result<(), Error> {
        // An error says that there is no log any more to set.
        let _ = self.0.reload(filter(text)?);
        Ok(())
    }
}

/// Starts logging for the whole program, panics included, and hands spans to `traces`. `dropped` counts the lines that
/// nobody took.
///
/// # Errors
/// [`Error::Filter`] when the filter cannot be read, [`Error::Logging`] when logging was started before,
/// [`Error::Thread`] when its thread cannot be started.
pub fn init(logging: &Logging, traces: Option<&Traces>, dropped: Counter) -> Result<(Lines, Level), Error> {
    let (filter, level) = reload::Layer::new(filter(&logging.filter)?);
    let lines = Lines::start(std::io::stderr(), dropped).map_err(Error::Thread)?;
    let written = match logging.format {
        Format::Json => tracing_subscriber::fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(lines.clone())
            .with_filter(filter)
            .boxed(),
        Format::Text => {
            tracing_subscriber::fmt::layer().with_writer(lines.clone()).with_filter(filter).boxed()
        }
    };
    tracing_subscriber::registry().with(written).with(traces.map(Traces::layer)).try_init()?;
    // The usual hook writes to standard error itself, and waits.
    std::panic::set_hook(Box::new(|panic| {
        let backtrace = std::backtrace::Backtrace::capture();
        tracing::error!(%panic, %backtrace, "a part of the program panicked");
    }));
    Ok((lines, Level(level)))
}

/// Reads the directives. Every one must parse: a typing error should not switch logging off in silence.
///
/// # Errors
/// [`Error::Filter`].
pub fn filter(text: &str) -> Result<EnvFilter, Error> {
    EnvFilter::from_str(text).map_err(|source| Error::Filter { filter: text.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_that_cannot_be_read_are_refused_with_an_example() {
        for text in ["info", "warn,portcullis=debug", "portcullis::controllers=trace"] {
            filter(text).unwrap();
        }
        for text in ["portcullis=loud", "info,=", "a=b=c"] {
            let error = filter(text).expect_err(text).to_string();
            assert!(error.contains("info,portcullis=debug"), "{error}");
        }
    }
}
