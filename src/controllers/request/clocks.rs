//! Whether a deadline means the same here and in the cloud.

use crate::controllers::Context;
use crate::plan::lifecycle::CLOCKS_APART;

/// How far our clock is apart from that of a namespace's cloud, or of the API server, where that is too far to grant
/// anything. Closing goes on, by whichever of them is ahead.
pub(super) fn apart(context: &Context, namespace: &str) -> Option<String> {
    let tenant = context.settings.tenancy.tenant(namespace)?;
    let cloud = context.clouds.get(&tenant.credential)?.inventory.clock_ahead();
    let others = [("cloud", cloud), ("API server", context.clock.ahead(&context.api_server))];
    others.into_iter().find_map(|(other, ahead)| {
        let ahead = ahead.filter(|ahead| ahead.unsigned_abs() > CLOCKS_APART)?;
        let (length, whose) =
            (ahead.unsigned_abs().as_secs(), if ahead.is_negative() { "behind" } else { "ahead of" });
        Some(format!(
            "the {other}'s clock is {length} s {whose} the controller's: nothing is opened until they are at most {} s \
             apart",
            CLOCKS_APART.as_secs()
        ))
    })
}
