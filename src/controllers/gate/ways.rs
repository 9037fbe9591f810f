//! The ways to a firewall: one for each credential that was given duties there.
//!
//! Reads and removals of allows go by any of them, in turn, whatever the failure: a token that cannot be had holds up a
//! close as well as a right that is missing. What opens, locks or unlocks goes by the credential of the namespace that
//! asked for it, and by no other: else a namespace could have written what its own credential may not.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::providers::{Cloud, CloudError, CloudErrorKind, Firewall};

/// All ways to one firewall, as they are in one round.
pub(super) struct Ways {
    all: Vec<(String, Arc<dyn Firewall>)>,
    /// The one that is tried first.
    first: usize,
    /// Whether a close has failed on each of them: what fails after it is not tried on all again.
    exhausted: bool,
}

/// What is left of one attempt after another.
#[derive(Default)]
pub(super) struct Attempts(Option<(usize, CloudError)>);

impl Ways {
    /// None where there is no way. `first` is where the last round left off.
    pub(super) fn new(clouds: &BTreeMap<String, Cloud>, first: usize) -> Option<Self> {
        let way = |(name, cloud): (&String, &Cloud)| (name.clone(), Arc::clone(&cloud.firewall));
        let all: Vec<_> = clouds.iter().map(way).collect();
        let first = first.checked_rem(all.len())?;
        Some(Self { all, first, exhausted: false })
    }

    /// The way that reads and closes go by at first.
    pub(super) fn current(&self) -> &Arc<dyn Firewall> {
        &self.all[self.first].1
    }

    /// The way of one credential.
    pub(super) fn of(&self, credential: &str) -> Option<(usize, Arc<dyn Firewall>)> {
        let place = self.all.iter().position(|(name, _)| name == credential)?;
        Some((place, Arc::clone(&self.all[place].1)))
    }

    /// The credential of a way.
    pub(super) fn credential(&self, place: usize) -> &str {
        self.all.get(place).map_or("", |(name, _)| name)
    }

    /// All ways, the current one first.
    pub(super) fn in_turn(&self) -> Vec<(usize, Arc<dyn Firewall>)> {
        let count = self.all.len();
        let place = |step| (self.first + step) % count;
        (0..count).map(|step| (place(step), Arc::clone(&self.all[place(step)].1))).collect()
    }

    /// As [`Ways::in_turn`], for the removal of an allow: the current one alone where each has failed in this round.
    pub(super) fn to_remove_by(&self) -> Vec<(usize, Arc<dyn Firewall>)> {
        let mut ways = self.in_turn();
        ways.truncate(if self.exhausted { 1 } else { ways.len() });
        ways
    }

    /// Where to begin from now on.
    pub(super) fn begin_with(&mut self, place: usize) {
        self.first = place;
    }

    /// Every way has failed a close.
    pub(super) fn exhaust(&mut self) {
        self.exhausted = true;
    }

    /// Where the next round begins.
    pub(super) fn first(&self) -> usize {
        self.first
    }
}

impl Attempts {
    /// Takes note of a failure; whether the next way is worth trying.
    pub(super) fn failed(&mut self, place: usize, error: CloudError) -> bool {
        let of_the_firewall = error.kind.is_of_the_firewall();
        if self.0.as_ref().is_none_or(|(_, known)| weight(&error) > weight(known)) {
            self.0 = Some((place, error));
        }
        !of_the_firewall
    }

    /// The failure to tell of, and the way that it is of: one that may yet be mended, where there is one.
    pub(super) fn left(self) -> Option<(usize, CloudError)> {
        self.0
    }
}

/// What says something of the firewall rather than of the way to it outweighs the rest; a way that answers, one that does
/// not; and one that may yet be mended, one that is barred.
fn weight(error: &CloudError) -> u8 {
    match error.kind {
        kind if kind.is_of_the_firewall() => 3,
        CloudErrorKind::Unanswered => 1,
        _ if is_refusal(error) => 0,
        _ => 2,
    }
}

/// Whether the way itself is barred, until somebody changes rights.
pub(super) fn is_refusal(error: &CloudError) -> bool {
    matches!(error.kind, CloudErrorKind::NotPermitted | CloudErrorKind::Unauthenticated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_way_that_answers_goes_before_one_that_does_not_and_that_before_one_that_is_barred() {
        use CloudErrorKind::{NotPermitted, Retryable, ScopeLocked, Unanswered};
        let error = |kind| CloudError {
            kind,
            operation: String::new(),
            message: String::new(),
            code: None,
            retry_after: None,
            request_id: None,
        };
        for (kinds, best) in [
            (&[Unanswered, Retryable, NotPermitted][..], 1),
            (&[Retryable, Unanswered, NotPermitted], 0),
            (&[NotPermitted, Unanswered], 1),
            (&[NotPermitted, NotPermitted], 0),
            (&[Retryable, Retryable], 0),
            (&[Retryable, ScopeLocked], 1),
        ] {
            let mut attempts = Attempts::default();
            for (place, kind) in kinds.iter().enumerate() {
                assert_eq!(attempts.failed(place, error(*kind)), *kind != ScopeLocked);
            }
            assert_eq!(attempts.left().unwrap().0, best, "{kinds:?}");
        }
    }
}
