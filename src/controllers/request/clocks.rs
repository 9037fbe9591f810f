//! What clocks that differ mean for requests: what is not opened.

use crate::controllers::Context;
use crate::controllers::warnings::too_far_apart;

/// How far our clock is apart from that of a namespace's cloud, or of the API server, where that is too far to grant
/// anything. Closing goes on, by whichever of them is ahead.
pub(super) fn apart(context: &Context, namespace: &str) -> Option<String> {
    let tenant = context.settings.tenancy.tenant(namespace)?;
    let cloud = context.clouds.get(&tenant.credential)?.inventory.clock_ahead();
    let others = [("cloud", cloud), ("API server", context.clock.ahead(&context.api_server))];
    others.into_iter().find_map(|(whose, ahead)| too_far_apart(whose, ahead))
}
