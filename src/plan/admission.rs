//! Whether the API server's word can be taken for who asks and who reviews.

use jiff::Timestamp;

pub mod interval;

/// Whether the admission policies are in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Admission {
    /// Without a break since this moment of the API server's clock.
    InForce {
        /// What was created later went through them.
        since: Timestamp,
    },
    /// Not, or it is not known.
    NotInForce {
        /// What is missing or altered, and what to do about it.
        why: String,
    },
}

impl Admission {
    /// Whether an object that was created at this moment provably went through them. Never, where the moment is not
    /// known.
    #[must_use]
    pub fn vouches_for(&self, created: Option<Timestamp>) -> bool {
        match (self, created) {
            (Self::InForce { since }, Some(created)) => created > *since,
            (Self::InForce { .. }, None) | (Self::NotInForce { .. }, _) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_provably_newer_is_vouched_for() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let in_force = Admission::InForce { since: at(10) };
        assert!(in_force.vouches_for(Some(at(11))));
        assert!(!in_force.vouches_for(Some(at(10))), "the same second may have been before");
        assert!(!in_force.vouches_for(None));
        assert!(!Admission::NotInForce { why: String::new() }.vouches_for(Some(at(11))));
    }
}
