//! Allows that were sent to the cloud without an answer.
//!
//! Nobody knows when such a write lands, or whether it ever does: a removal that overtakes it, and a read that shows
//! nothing, prove nothing until no write can land any more.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

/// By the rule's name.
#[derive(Debug, Default)]
pub(super) struct Unanswered(HashMap<String, Sent>);

#[derive(Debug)]
struct Sent {
    lands_until: Instant,
    writes: usize,
}

impl Unanswered {
    /// An allow was sent, and no answer came: it may land for so long.
    pub(super) fn note(&mut self, name: &str, lands_within: Duration) {
        let lands_until = Instant::now() + lands_within;
        let sent = self.0.entry(name.to_owned()).or_insert(Sent { lands_until, writes: 0 });
        sent.lands_until = sent.lands_until.max(lands_until);
        sent.writes += 1;
    }

    /// An allow went along with a write of everything that was not answered: it stands already, so that to read it proves
    /// nothing of that write.
    pub(super) fn note_carried(&mut self, name: &str, lands_within: Duration) {
        self.note(name, lands_within);
        if let Some(sent) = self.0.get_mut(name) {
            sent.writes += 1;
        }
    }

    /// An allow may have been sent by another replica, which nobody asks any more, and more than once. Noted where nothing is
    /// that may land as late; whether it was. Who says so again says it of the same moment, to a second.
    pub(super) fn note_others(&mut self, name: &str, lands_within: Duration) -> bool {
        let lands_until = Instant::now() + lands_within.saturating_sub(Duration::from_secs(1));
        let is_new = self.0.get(name).is_none_or(|sent| sent.lands_until < lands_until);
        if is_new {
            self.note_carried(name, lands_within);
        } else if let Some(sent) = self.0.get_mut(name) {
            sent.writes = sent.writes.max(2);
        }
        is_new
    }

    /// An allow was sent, and the cloud has ended writing it: what stands is not what was sent before.
    pub(super) fn answered(&mut self, name: &str) {
        if let Some(sent) = self.0.get_mut(name) {
            sent.writes += 1;
        }
    }

    /// The rule was read back as it was sent. Where it was sent once, it was that write.
    pub(super) fn landed(&mut self, name: &str) {
        if self.0.get(name).is_some_and(|sent| sent.writes == 1) {
            self.0.remove(name);
        }
    }

    /// A removal has ended well; once no write can land any more, it was the last word.
    pub(super) fn removed(&mut self, name: &str) {
        if self.0.get(name).is_some_and(|sent| sent.lands_until <= Instant::now()) {
            self.0.remove(name);
        }
    }

    /// Whether the rule may yet come to stand.
    pub(super) fn may_land(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Forgets the rules that nobody asks about any more.
    pub(super) fn keep_only(&mut self, wanted: impl Fn(&str) -> bool) {
        self.0.retain(|name, _| wanted(name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LANDS_WITHIN: Duration = Duration::from_secs(120);

    #[tokio::test(start_paused = true)]
    async fn the_longest_wait_counts_whatever_is_noted_after_it() {
        let mut both = Unanswered::default();
        both.note("one", LANDS_WITHIN);
        assert!(both.note_others("one", 2 * LANDS_WITHIN));
        tokio::time::sleep(Duration::from_secs(30)).await;
        both.note("one", LANDS_WITHIN);
        assert!(
            !both.note_others("one", 2 * LANDS_WITHIN - Duration::from_secs(30)),
            "it is the same moment"
        );
        tokio::time::sleep(2 * LANDS_WITHIN - Duration::from_secs(31)).await;
        both.removed("one");
        assert!(both.may_land("one"));
        tokio::time::sleep(Duration::from_secs(1)).await;
        both.removed("one");
        assert!(!both.may_land("one"));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_read_back_is_the_write_without_an_answer_only_where_it_was_the_only_one() {
        let mut once = Unanswered::default();
        once.note("one", LANDS_WITHIN);
        once.landed("one");
        assert!(!once.may_land("one"));
        for answered in [false, true] {
            let mut twice = Unanswered::default();
            twice.note("one", LANDS_WITHIN);
            if answered {
                twice.answered("one");
            } else {
                twice.note("one", LANDS_WITHIN);
            }
            twice.landed("one");
            assert!(twice.may_land("one"), "what stands may be the second");
            twice.removed("one");
            assert!(twice.may_land("one"), "removed too early to be the last word");
            tokio::time::sleep(LANDS_WITHIN).await;
            assert!(twice.may_land("one"), "nothing was removed since");
            twice.removed("one");
            assert!(!twice.may_land("one"));
        }
    }
}
