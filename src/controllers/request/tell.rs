//! What is told of a move: a log line, an Event, the counts.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;

use crate::api::{JitAccessRequest, Reason, State};
use crate::controllers::Context;
use crate::plan::lifecycle::Transition;

pub(super) fn tell(context: &Context, request: &JitAccessRequest, transition: &Transition) {
    let Transition { from, to, reason, message } = transition;
    tracing::info!(
        request = %request.name_any(), namespace = request.namespace().unwrap_or_default(),
        uid = request.uid().unwrap_or_default(), from = from.as_str(), to = to.as_str(), reason = reason.as_str(),
        message, "request moved"
    );
    let note = format!("{} -> {}: {message}", from.as_str(), to.as_str());
    let bad = matches!(to, State::Denied | State::Failed | State::TimedOut | State::Revoked | State::Void)
        || *reason == Reason::RuleRemoved;
    // The same grant, with less time.
    let shortened = *to == State::Opening && from.holds_rules();
    let word = if shortened { "Shortened" } else { to.as_str() };
    let (herald, object) = (context.herald.clone(), request.clone());
    if bad {
        context.metrics.refusal(*reason);
    }
    tokio::spawn(async move {
        if bad || shortened {
            herald.warning(&object, word, "Step", note).await;
        } else {
            herald.normal(&object, word, "Step", note).await;
        }
    });
    let status = request.status.as_ref();
    let since = |from: Option<Timestamp>, to: Option<Timestamp>| {
        from.zip(to).map(|(from, to)| Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO))
    };
    let granted = status.and_then(|status| status.granted_at.as_ref()).map(|at| at.0);
    if *to == State::Active
        && status.is_some_and(|status| status.shortened.is_none())
        && let Some(seconds) = since(granted, Some(context.clock.now()))
    {
        context.metrics.time_to_open(seconds);
    }
    let closed = status.and_then(|status| status.closed_at.as_ref()).map(|at| at.0);
    let expires = status.and_then(|status| status.expires_at.as_ref()).map(|at| at.0);
    if *to == State::Expired
        && let Some(seconds) = since(expires, closed)
    {
        context.metrics.expiry_lag(seconds);
    }
    context.metrics.open_grants(context.turns.live());
    if to.holds_rules() != from.holds_rules() {
        context.wake_policies_of(request);
    }
}
