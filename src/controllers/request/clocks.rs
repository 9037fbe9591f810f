//! What clocks that differ mean for requests: what is not opened, and what is waited for longer.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};

use crate::api::JitAccessRequest;
use crate::controllers::Context;
use crate::controllers::leader::Tenure;
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

/// What a former holder of the lease may yet have written, and for how long it may land: whatever it was, it was begun before
/// this tenure. That is known by the clock that is never set; the one on the wall may be wrong.
pub(super) fn unfinished(
    context: &Context,
    request: &JitAccessRequest,
    tenure: Tenure,
) -> Vec<(FirewallId, String, Duration)> {
    let left = context.settings.unfinished_writes.saturating_sub(tenure.lasted);
    if left.is_zero() {
        return Vec::new();
    }
    let since = SignedDuration::try_from(tenure.lasted)
        .ok()
        .and_then(|lasted| context.deadlines.now().checked_sub(lasted).ok());
    let unfinished = lifecycle::unfinished(request, since.unwrap_or(Timestamp::MAX));
    unfinished.into_iter().map(|(firewall, name)| (firewall, name, left)).collect()
}
