//! The simulator's own time: real by default, and it can be stepped, set forward, scaled or stopped. All that
//! Resource Manager does in time (operations, tokens, throttling, history) reads it.

use std::time::Instant;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Deserializer, de::Error as _};

/// A clock that never runs backwards.
#[derive(Debug)]
pub(crate) struct Clock {
    base: Timestamp,
    read_at: Instant,
    scale: f64,
    /// Added to the `Date` header alone: a cloud whose clock is off.
    pub(crate) date_skew: SignedDuration,
}

impl Clock {
    pub(crate) fn real() -> Self {
        Self { base: Timestamp::now(), read_at: Instant::now(), scale: 1.0, date_skew: SignedDuration::ZERO }
    }

    pub(crate) fn now(&self) -> Timestamp {
        let elapsed = self.read_at.elapsed().as_secs_f64() * self.scale;
        let elapsed = SignedDuration::try_from_secs_f64(elapsed).unwrap_or(SignedDuration::ZERO);
        self.base.checked_add(elapsed).unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn scale(&self) -> f64 {
        self.scale
    }

    fn rebase(&mut self, to: Timestamp) {
        self.base = to;
        self.read_at = Instant::now();
    }

    /// Jumps forward.
    pub(crate) fn step(&mut self, by: SignedDuration) -> Result<(), String> {
        if by.is_negative() {
            return Err(format!("step: {by} is negative; the clock only moves forward"));
        }
        let to = self.now().checked_add(by).map_err(|e| format!("step: {e}"))?;
        self.rebase(to);
        Ok(())
    }

    /// Jumps to a time not before now.
    pub(crate) fn set(&mut self, to: Timestamp) -> Result<(), String> {
        let now = self.now();
        if to < now {
            return Err(format!(
                "set: {to} is before the simulator's now, {now}; the clock only moves forward"
            ));
        }
        self.rebase(to);
        Ok(())
    }

    /// Runs `factor` times as fast as real time; 0 stops the clock.
    pub(crate) fn run_at(&mut self, factor: f64) -> Result<(), String> {
        if !(0.0..=100_000.0).contains(&factor) {
            return Err(format!("scale: {factor} must be from 0 (stopped) to 100000"));
        }
        let now = self.now();
        self.rebase(now);
        self.scale = factor;
        Ok(())
    }
}

/// A duration in a control document: a number of seconds, or text such as `250ms`, `5s`, `1h30m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Span(pub(crate) SignedDuration);

impl Span {
    pub(crate) fn seconds(self) -> f64 {
        self.0.as_secs_f64()
    }

    pub(crate) fn real(self) -> std::time::Duration {
        self.0.unsigned_abs()
    }

    pub(crate) fn millis(ms: i64) -> Self {
        Self(SignedDuration::from_millis(ms))
    }
}

impl<'de> Deserialize<'de> for Span {
    fn deserialize<D: Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(f64),
            Text(String),
        }
        let form = Form::deserialize(de).map_err(|_| {
            D::Error::custom("a duration is a number of seconds or text like 250ms, 5s, 1h30m")
        })?;
        let span = match form {
            Form::Number(n) => {
                SignedDuration::try_from_secs_f64(n).map_err(|e| D::Error::custom(format!("{n}: {e}")))?
            }
            Form::Text(t) => {
                t.parse::<SignedDuration>().map_err(|e| D::Error::custom(format!("{t:?}: {e}")))?
            }
        };
        Ok(Self(span))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stopped_clock_moves_only_by_steps() {
        let mut clock = Clock::real();
        clock.run_at(0.0).unwrap();
        let before = clock.now();
        assert_eq!(clock.now(), before);
        clock.step(SignedDuration::from_secs(60)).unwrap();
        assert_eq!(clock.now(), before + SignedDuration::from_secs(60));
        assert!(clock.set(before).unwrap_err().contains("only moves forward"));
    }

    #[test]
    fn spans_are_seconds_or_text() {
        let parse = |t: &str| serde_json::from_str::<Span>(t);
        assert_eq!(parse("2.5").unwrap().0, SignedDuration::from_millis(2500));
        assert_eq!(parse("\"250ms\"").unwrap().0, SignedDuration::from_millis(250));
        assert_eq!(parse("\"1h30m\"").unwrap().0, SignedDuration::from_mins(90));
        assert!(parse("\"soon\"").is_err());
    }
}
