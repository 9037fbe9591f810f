//! Whether a deadline means the same here and in the cloud.

use crate::controllers::Context;
use crate::plan::lifecycle::CLOCKS_APART;

/// How far our clock and that of a namespace's cloud are apart, where that is too far to grant anything. Closing goes
/// on: it rests on our clock alone, and on the gates' sweep.
pub(super) fn apart(context: &Context, namespace: &str) -> Option<String> {
    let tenant = context.settings.tenancy.tenant(namespace)?;
    let ahead = context.clouds.get(&tenant.credential)?.inventory.clock_ahead()?;
    (ahead.unsigned_abs() > CLOCKS_APART).then(|| {
        let (length, whose) = (ahead.unsigned_abs().as_secs(), if ahead.is_negative() { "behind" } else { "ahead of" });
        format!(
            "the cloud's clock is {length} s {whose} the controller's: nothing is opened until they are at most {} s \
             apart",
            CLOCKS_APART.as_secs()
        )
    })
}
