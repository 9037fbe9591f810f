//! What gates tell of, passed on: to the loops, to people, to the counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use kube::ResourceExt;
use tokio::sync::mpsc;

use super::Context;
use super::gate::News;
use crate::plan::desired::Drift;
use crate::plan::model::FirewallId;
use crate::plan::names::uid12;
use crate::telemetry::DriftKind;

/// Passes on until nobody tells of anything any more.
pub(super) async fn spread(context: Arc<Context>, mut news: mpsc::UnboundedReceiver<News>) {
    while let Some(news) = news.recv().await {
        match news {
            News::Changed(owners) => {
                context.metrics.overdue_rules(context.gates.overdue());
                context.wake(&owners);
            }
            News::Drift(firewall, drift) => drifted(&context, &firewall, &drift),
            News::Differs(firewall, differs, watchers) => differ(&context, &firewall, &differs, &watchers),
        }
    }
}

fn drifted(context: &Context, firewall: &FirewallId, drift: &Drift) {
    let (what, kind) =
        if drift.removed { ("removed", DriftKind::Removed) } else { ("changed", DriftKind::Changed) };
    context.metrics.drift_repair(kind);
    let note =
        format!("rule {} of {firewall} was {what} by somebody else; it is being put right", drift.rule);
    let owner = |uid: String| uid == drift.policy_uid || uid12(&uid) == drift.policy_uid;
    warn(context, owner, ("Drift", "Repair"), &note);
}

fn differ(context: &Context, firewall: &FirewallId, differs: &[String], watchers: &BTreeSet<String>) {
    let note = format!(
        "rules of others on {firewall} are not as they were before it was written whole; unless somebody has just changed \
         them, put them right: {}",
        differs.join("; ")
    );
    warn(context, |uid| watchers.contains(&uid), ("ForeignRulesDiffer", "Write"), &note);
}

/// An Event on every policy that it concerns.
fn warn(
    context: &Context,
    concerns: impl Fn(String) -> bool,
    (reason, action): (&'static str, &'static str),
    note: &str,
) {
    for policy in context.policies.state().into_iter().filter(|policy| policy.uid().is_some_and(&concerns)) {
        let (herald, note) = (context.herald.clone(), note.to_owned());
        tokio::spawn(async move { herald.warning(&*policy, reason, action, note).await });
    }
}
