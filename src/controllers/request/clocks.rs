//! What clocks that differ mean for requests: what is not opened, and what is waited for longer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::api::JitAccessRequest;
use crate::controllers::Context;
use crate::controllers::warnings::too_far_apart;
use crate::plan::lifecycle;
use crate::plan::model::FirewallId;

/// How far our clock is apart from that of a namespace's cloud, or of the API server, where that is too far to grant
/// anything. Closing goes on, by whichever of them is ahead.
pub(super) fn apart(context: &Context, namespace: &str) -> Option<String> {
    let tenant = context.settings.tenancy.tenant(namespace)?;
    let cloud = context.clouds.get(&tenant.credential)?.inventory.clock_ahead();
    let others = [("cloud", cloud), ("API server", context.clock.ahead(&context.api_server))];
    others.into_iter().find_map(|(whose, ahead)| too_far_apart(whose, ahead))
}

/// What a former holder of the lease may yet have written, and until when, by the clock that deadlines are judged by.
pub(super) fn unfinished(
    context: &Context,
    request: &JitAccessRequest,
    since: Timestamp,
) -> Vec<(FirewallId, String, Timestamp)> {
    let (own, latest) = (context.clock.now(), context.deadlines.now());
    let within = context.settings.unfinished_writes;
    // Of a clock that is behind, what it took the lease at is too.
    let since = since.checked_add(latest.duration_since(own)).unwrap_or(Timestamp::MAX);
    let unfinished = lifecycle::unfinished(request, since, within);
    let lands = |until| lands(until, own, latest, within);
    unfinished
        .into_iter()
        .filter_map(|(firewall, name, until)| Some((firewall, name, lands(until)?)))
        .collect()
}

/// Until when something may land that, by the clock of whoever wrote it, may do so until `until`: by our own clock, which is
/// never ahead of the latest and so waits longer, and no longer than if it were begun now.
fn lands(until: Timestamp, own: Timestamp, latest: Timestamp, within: Duration) -> Option<Timestamp> {
    let longest = SignedDuration::try_from(within).unwrap_or(SignedDuration::MAX);
    let left = until.duration_since(own).min(longest);
    left.is_positive().then(|| latest.checked_add(left).unwrap_or(Timestamp::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_write_is_waited_for_by_the_slower_clock() {
        let at = |minutes: i64| Timestamp::from_second(1_800_000_000 + 60 * minutes).unwrap();
        let within = Duration::from_secs(15 * 60);
        for (until, own, latest, wanted) in [
            (15, 0, 0, Some(15)),
            (15, 10, 10, Some(15)),
            (15, 20, 20, None),
            // The cloud's clock is ahead: by our own it may land for 5 minutes more.
            (15, 10, 40, Some(45)),
            // Ours is behind that of whoever wrote it.
            (65, 0, 50, Some(65)),
            (65, 0, 0, Some(15)),
        ] {
            assert_eq!(
                lands(at(until), at(own), at(latest), within),
                wanted.map(at),
                "{until} {own} {latest}"
            );
        }
    }
}
