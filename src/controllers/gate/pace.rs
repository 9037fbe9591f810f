//! How long the writes of a firewall take, and what follows from it.

use std::time::Duration;

use crate::plan::model::FirewallKind;

/// How a gate goes about its firewall.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// How long a write is waited for.
    pub(super) patience: Duration,
    /// The same for one that opens.
    pub(super) open_patience: Duration,
    /// How long what is under way goes on when something is to be closed. Not given up at once: the cloud refuses a second
    /// write until the first has ended.
    pub(super) grace: Duration,
    /// The same for what closes, when something else is to be closed: longer, since what is given up is sent once more.
    pub(super) close_grace: Duration,
    /// How long a write that was not answered may take to land.
    pub(super) lands_within: Duration,
    /// How long until it is read again while something that was written has not been read back.
    pub(super) read_back: Duration,
    /// How many changes go in one write.
    pub(super) at_once: usize,
}

/// The cloud takes 5 to 11 s for one rule. An open is given up earlier than a close: it holds up others. Azure Resource
/// Manager ends every request within 60 s; as much again for a clock and a network that are late.
const BY_RULE: Pace = Pace {
    patience: Duration::from_secs(60),
    open_patience: Duration::from_secs(30),
    grace: Duration::from_secs(12),
    close_grace: Duration::from_secs(20),
    lands_within: Duration::from_secs(120),
    read_back: Duration::from_secs(1),
    at_once: 1,
};

/// The cloud takes 3 to 5 minutes for all rules together. Nothing under way is given up for a close: the close would be
/// refused until the end of it all the same.
const WHOLE: Pace = Pace {
    patience: Duration::from_secs(15 * 60),
    open_patience: Duration::from_secs(15 * 60),
    grace: Duration::from_secs(15 * 60),
    close_grace: Duration::from_secs(15 * 60),
    lands_within: Duration::from_secs(15 * 60),
    read_back: Duration::from_secs(5),
    at_once: usize::MAX,
};

impl Pace {
    pub(super) const fn of(kind: FirewallKind) -> Self {
        if kind.translates() { WHOLE } else { BY_RULE }
    }
}
