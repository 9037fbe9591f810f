//! Where a request and its rules stand.

/// Where a request stands, summed up for people. The conditions are the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waits for its policy or for approvals.
    #[default]
    Pending,
    /// Approved, waits for its turn.
    Approved,
    /// Approved, waits for `notBefore`.
    Scheduled,
    /// Written ahead; the allows are being written.
    Opening,
    /// Every allow was read back.
    Active,
    /// Ending; the allows are being removed.
    Closing,
    /// Ended by its deadline.
    Expired,
    /// Ended by its requester, or by somebody who removed its rule.
    Ended,
    /// Refused.
    Denied,
    /// Ended by an approver or by its policy.
    Revoked,
    /// Waited too long.
    TimedOut,
    /// Could not be opened.
    Failed,
    /// Cannot be trusted to be what it says; to be created again.
    Void,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 13] = [
        Self::Pending,
        Self::Approved,
        Self::Scheduled,
        Self::Opening,
        Self::Active,
        Self::Closing,
        Self::Expired,
        Self::Ended,
        Self::Denied,
        Self::Revoked,
        Self::TimedOut,
        Self::Failed,
        Self::Void,
    ];

    /// The word in `status.state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Approved => "Approved",
            Self::Scheduled => "Scheduled",
            Self::Opening => "Opening",
            Self::Active => "Active",
            Self::Closing => "Closing",
            Self::Expired => "Expired",
            Self::Ended => "Ended",
            Self::Denied => "Denied",
            Self::Revoked => "Revoked",
            Self::TimedOut => "TimedOut",
            Self::Failed => "Failed",
            Self::Void => "Void",
        }
    }

    /// Reads the word; none for a word of another version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_last(self) -> bool {
        match self {
            Self::Pending
            | Self::Approved
            | Self::Scheduled
            | Self::Opening
            | Self::Active
            | Self::Closing => false,
            Self::Expired
            | Self::Ended
            | Self::Denied
            | Self::Revoked
            | Self::TimedOut
            | Self::Failed
            | Self::Void => true,
        }
    }

    /// Whether it may still be granted.
    #[must_use]
    pub const fn is_waiting(self) -> bool {
        !self.holds_rules() && !self.is_last()
    }

    /// Whether the cloud may hold allows for it.
    #[must_use]
    pub const fn holds_rules(self) -> bool {
        match self {
            Self::Opening | Self::Active | Self::Closing => true,
            Self::Pending
            | Self::Approved
            | Self::Scheduled
            | Self::Expired
            | Self::Ended
            | Self::Denied
            | Self::Revoked
            | Self::TimedOut
            | Self::Failed
            | Self::Void => false,
        }
    }
}

/// Where one rule stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleState {
    /// Shown, not written.
    #[default]
    Planned,
    /// To be written, or being written.
    Opening,
    /// Read back as there.
    Present,
    /// To be removed, or being removed.
    Closing,
    /// Read back as gone.
    Absent,
}

impl RuleState {
    /// The word in `status.rules[].state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "Planned",
            Self::Opening => "Opening",
            Self::Present => "Present",
            Self::Closing => "Closing",
            Self::Absent => "Absent",
        }
    }

    /// Reads the word. A word of another version counts as `Closing`: what is not understood is closed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        [Self::Planned, Self::Opening, Self::Present, Self::Closing, Self::Absent]
            .into_iter()
            .find(|state| state.as_str() == text)
            .unwrap_or(Self::Closing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_waits_or_holds_rules_or_is_the_last() {
        let waiting: Vec<State> = State::ALL.into_iter().filter(|state| state.is_waiting()).collect();
        assert_eq!(waiting, [State::Pending, State::Approved, State::Scheduled]);
        assert!(State::ALL.into_iter().all(|state| !(state.holds_rules() && state.is_last())));
    }
}
