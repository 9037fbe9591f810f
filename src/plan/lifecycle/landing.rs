//! What another replica may yet have written: its writes land after it has lost the lease, or is no more.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use super::{CLOCKS_APART, its_own, plus, shortening, state};
use crate::api::{JitAccessRequest, RuleState};
use crate::plan::lease::{Moment, Tenure};
use crate::plan::model::FirewallId;

/// Allows of a request that may come to stand by a write of a former holder of the lease, and for how long yet; such a write
/// lands `within` of its begin or never. `granted`: the begin of the tenure in which this process has granted the request.
///
/// In that tenure it has begun itself whatever was begun. Of another one's request, whatever was begun was so before this
/// tenure. That is known by the clock that is never set; `now` is by the one on the wall, which may be wrong.
#[must_use]
pub fn may_land(
    request: &JitAccessRequest,
    granted: Option<Moment>,
    tenure: Tenure,
    within: Duration,
    now: Timestamp,
) -> Vec<(FirewallId, String, Duration)> {
    let left = within.saturating_sub(tenure.lasted);
    if granted == Some(tenure.begun) || left.is_zero() {
        return Vec::new();
    }
    let lasted = SignedDuration::try_from(tenure.lasted).unwrap_or(SignedDuration::MAX);
    let since = now.checked_sub(lasted).unwrap_or(Timestamp::MAX);
    let unfinished = unfinished(request, since);
    unfinished.into_iter().map(|(firewall, name)| (firewall, name, left)).collect()
}

/// Allows of a request that a former holder of the lease may have begun to write, and nobody has seen: those that were
/// written ahead before `since` and not read back. One that failed is tried again, and there may have been several holders: the
/// last of such writes may be as young as this term.
fn unfinished(request: &JitAccessRequest, since: Timestamp) -> Vec<(FirewallId, String)> {
    let Some(status) = request.status.as_ref().filter(|_| state(request).holds_rules()) else {
        return Vec::new();
    };
    let written = shortening::written_ahead_at(status);
    // By the clocks of two replicas, each of which may be wrong by as much as the cloud's may differ from it.
    if written >= plus(since, 2 * CLOCKS_APART) {
        return Vec::new();
    }
    let unseen = status.rules.iter().filter(|rule| {
        rule.observed_at.is_none()
            && matches!(
                RuleState::parse(&rule.state),
                RuleState::Planned | RuleState::Opening | RuleState::Closing
            )
    });
    unseen.filter_map(|rule| Some((its_own(rule, request)?.0, rule.name.clone()))).collect()
}
