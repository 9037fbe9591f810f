//! What keeps a program that is ready from opening ports. Closing goes on.

use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use jiff::SignedDuration;

use super::Context;
use crate::plan::lifecycle::CLOCKS_APART;
use crate::telemetry::Warning;

/// Why a clock that is ahead of ours by so much is too far apart from it to grant anything.
pub(super) fn too_far_apart(whose: &str, ahead: Option<SignedDuration>) -> Option<String> {
    let ahead = ahead.filter(|ahead| ahead.unsigned_abs() > CLOCKS_APART)?;
    let (length, direction) =
        (ahead.unsigned_abs().as_secs(), if ahead.is_negative() { "behind" } else { "ahead of" });
    Some(format!(
        "the {whose}'s clock is {length} s {direction} the controller's: nothing is opened until they are at most {} s apart",
        CLOCKS_APART.as_secs()
    ))
}

/// What `/readyz` warns of, at the moment of each probe.
pub(super) fn ask(context: &Arc<Context>) -> impl Fn() -> Vec<Warning> + Send + Sync + use<> {
    // The probes' server may be there for longer.
    let context: Weak<Context> = Arc::downgrade(context);
    move || context.upgrade().map(|context| warnings(&context)).unwrap_or_default()
}

fn warnings(context: &Context) -> Vec<Warning> {
    let api_server = too_far_apart("API server", context.clock.ahead(&context.api_server));
    // Several credentials of one cloud have one clock.
    let clouds: BTreeSet<String> = context
        .clouds
        .values()
        .filter_map(|cloud| too_far_apart("cloud", cloud.inventory.clock_ahead()))
        .collect();
    let clocks = api_server.into_iter().chain(clouds).map(|reason| Warning { name: "clock", reason });
    let admission = context.admission.broken().map(|reason| Warning { name: "admission", reason });
    clocks.chain(admission).collect()
}
