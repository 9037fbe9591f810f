//! Reviews: this version counts none, and says so on each, so that nobody waits for what does not come.

use std::sync::Arc;
use std::time::Duration;

use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::Context;
use super::retry::WriteError;
use crate::api::{JitAccessReview, JitAccessReviewStatus, Tolerant, Verdict};

/// Answers one review.
///
/// # Errors
/// When the API server refused the write or could not be reached; it is tried again.
pub async fn reconcile(review: Arc<JitAccessReview>, context: Arc<Context>) -> Result<Action, WriteError> {
    let status = answer(&review);
    if review.status.as_ref() == Some(&status) || review.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let api: Api<Tolerant<JitAccessReview>> =
        Api::namespaced(context.client.clone(), &review.namespace().unwrap_or_default());
    let mut wanted = (*review).clone();
    wanted.status = Some(status);
    match api.replace_status(&review.name_any(), &PostParams::default(), &Tolerant(wanted)).await {
        Ok(_) => Ok(Action::requeue(Duration::from_secs(3600))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Action::await_change()),
        Err(source) => Err(WriteError { operation: "write the status of the review", source }),
    }
}

/// Not settled: a version that counts reviews judges it anew.
fn answer(review: &JitAccessReview) -> JitAccessReviewStatus {
    let instead = match review.spec.verdict {
        Verdict::Approved => "a policy that asks for approvals grants nothing yet",
        Verdict::Denied => "to withdraw a request that waits, delete it",
        Verdict::Revoked => {
            "to close what a policy has granted, set spec.suspend on the policy, or delete the request"
        }
        Verdict::Ended => "to end a grant, delete the request",
    };
    JitAccessReviewStatus {
        observed_generation: review.metadata.generation,
        counted: Some(false),
        reason: Some(format!("this version counts no reviews: {instead}")),
        ..JitAccessReviewStatus::default()
    }
}
