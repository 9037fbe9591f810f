//! What is said of approvals: how many there are, who may give more, and what made them void.

use super::{World, planned};
use crate::api::{JitAccessRequestStatus, PinnedMachine, RequestedPolicy};
use crate::plan::authorize::GrantPlan;
use crate::plan::reviews::{MAX_NAME, Quorum, Tally, cut};

/// The most names that are shown for one policy.
const MAX_NAMES: usize = 10;

/// Puts the approvals that count into the status.
pub(super) fn count(status: &mut JitAccessRequestStatus, tally: &Tally) {
    for (policy, quorum) in status.policies.iter_mut().zip(&tally.quorums) {
        policy.approved = i32::try_from(quorum.by.len()).unwrap_or(i32::MAX);
        policy.approved_by = quorum.by.iter().take(MAX_NAMES).map(|name| cut(name, MAX_NAME)).collect();
    }
}

/// How many approvals there are and who may give those that are missing.
pub(super) fn waiting(world: &World<'_>) -> String {
    let missing = world.tally.quorums.iter().filter(|quorum| quorum.by.len() < quorum.required);
    let mut parts: Vec<String> = missing.map(sum).collect();
    if let Some(why) = world.tally.doubt.as_deref().or_else(|| world.tally.open_question()) {
        parts.push(why.to_owned());
    }
    let metadata = &world.request.metadata;
    let (name, namespace) = (metadata.name.as_deref(), metadata.namespace.as_deref());
    format!(
        "{}; to approve: kubectl jit approve {} -n {}, or create a JitAccessReview of it with its planHash",
        parts.join("; "),
        name.unwrap_or_default(),
        namespace.unwrap_or_default()
    )
}

/// Who approved.
pub(super) fn approved(tally: &Tally) -> String {
    let asked = tally.quorums.iter().filter(|quorum| quorum.required > 0);
    let parts: Vec<String> = asked.map(sum).collect();
    parts.join("; ")
}

fn sum(quorum: &Quorum) -> String {
    let names: Vec<String> = quorum.by.iter().take(MAX_NAMES).map(|name| cut(name, MAX_NAME)).collect();
    let names = if names.is_empty() { String::new() } else { format!(" ({})", names.join(", ")) };
    let Quorum { by, required, policy, .. } = quorum;
    let who = if by.len() < *required {
        format!(", of those with the verb approve on jitpolicies/{policy}")
    } else {
        String::new()
    };
    format!("{} of {required} approvals under JitPolicy {policy}{names}{who}", by.len())
}

/// What has changed of the plan that status shows; none where it is the same.
pub(super) fn changed(status: &JitAccessRequestStatus, plan: &GrantPlan) -> Option<String> {
    if status.plan_hash.as_ref() == Some(&plan.hash) {
        return None;
    }
    let uids = |policies: &[RequestedPolicy]| {
        let mut uids: Vec<String> = policies.iter().map(|policy| policy.uid.clone()).collect();
        uids.sort();
        uids
    };
    let ids = |machines: &[PinnedMachine]| -> Vec<String> {
        machines.iter().map(|machine| machine.id.to_ascii_lowercase()).collect()
    };
    let what = if uids(&status.policies) != uids(&plan.policies) {
        "the policies that cover the request"
    } else if ids(&status.machines) != ids(&plan.machines) {
        "the machines"
    } else if status.machines != plan.machines {
        "a machine, its interfaces or its addresses"
    } else if status.rules != planned(plan) {
        "the rules that would be written"
    } else {
        "the plan"
    };
    Some(format!("{what} changed since it was approved: approvals of what it was do not count any more"))
}
