//! `kubectl jit deny`, `revoke` and `end`: words that close.

use std::io::Write;

use super::cluster::{Access, Cluster};
use super::describe::covering;
use super::failure::Failure;
use super::follow::{self, Patience};
use super::note;
use super::values;
use super::view;
use super::word::{self, Sending};
use crate::api::{JitAccessRequest, Verdict};

/// Arguments of `kubectl jit deny`, `revoke` and `end`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The request.
    #[arg(value_name = "REQUEST", value_parser = values::object)]
    name: String,
    /// The policy under which you speak. Left out: one that covers the request and lets you.
    #[arg(long, value_name = "POLICY", value_parser = values::object)]
    policy: Option<String>,
    #[command(flatten)]
    sending: Sending,
}

/// Denies, revokes or ends.
///
/// # Errors
/// When the request is over already, the user may not, or the review does not count.
pub async fn run(
    verdict: Verdict,
    arguments: &Arguments,
    access: &Access,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let sending = &arguments.sending;
    let cluster = Cluster::connect(access, true).await?;
    let request = cluster.request(&arguments.name).await?;
    is_not_over(&request, verdict)?;
    let policy = match (&arguments.policy, verdict) {
        (Some(policy), _) => policy.clone(),
        // Whose it is to end is the controller's to judge, whatever the policy.
        (None, Verdict::Ended) => request.spec.policy_ref.name.clone(),
        (None, Verdict::Approved | Verdict::Denied | Verdict::Revoked) => allowed(&cluster, &request).await?,
    };
    let review = word::review(&request, &policy, verdict, sending.comment.as_deref());
    if sending.print {
        return word::print(&cluster, vec![review], sending, out).await;
    }
    let patience = Patience::new(sending.timeout);
    word::send(&cluster, vec![review], sending, patience, out).await?;
    if sending.wait && sending.is_real() {
        let closed = follow::request(
            cluster.requests(),
            &request,
            patience,
            "waiting until nothing of it is left in the cloud",
            follow::closed,
        )
        .await?;
        if closed.is_none() {
            note("the request was deleted, and is gone");
        }
    }
    Ok(())
}

fn is_not_over(request: &JitAccessRequest, verdict: Verdict) -> Result<(), Failure> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let (state, standing) = (view::state(request), view::standing(request));
    if state.is_last() {
        return Err(Failure::refused(format!("{name} is over already: {standing}")));
    }
    if verdict == Verdict::Denied && state.holds_rules() {
        return Err(Failure::refused(format!(
            "{name} was granted already ({}): to close it, kubectl jit revoke {name}",
            state.as_str()
        )));
    }
    Ok(())
}

/// A policy that covers the request and that the user may approve.
async fn allowed(cluster: &Cluster, request: &JitAccessRequest) -> Result<String, Failure> {
    let policies = covering(request);
    for policy in &policies {
        if cluster.may_approve(policy).await? {
            return Ok(policy.clone());
        }
    }
    let names: Vec<String> = policies.iter().map(|policy| format!("jitpolicies/{policy}")).collect();
    Err(Failure::refused(format!(
        "that takes the verb approve on {}, as the ClusterRole portcullis-approver gives; the requester ends an own request with kubectl jit end",
        names.join(" or ")
    )))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_over_needs_no_word_and_what_is_open_is_revoked() {
        let said = |state: &str, verdict| {
            let request: JitAccessRequest = serde_json::from_value(json!({
                "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest", "metadata": {"name": "a"},
                "spec": {"policyRef": {"name": "p"}, "duration": "1h", "ports": []},
                "status": {"state": state, "expiresAt": "2026-01-31T12:00:00Z"},
            }))
            .unwrap();
            is_not_over(&request, verdict).map_err(|failure| failure.message)
        };
        for verdict in [Verdict::Denied, Verdict::Revoked, Verdict::Ended] {
            assert_eq!(said("Pending", verdict), Ok(()));
            assert!(said("Expired", verdict).unwrap_err().contains("over already"));
        }
        assert!(said("Active", Verdict::Denied).unwrap_err().contains("kubectl jit revoke a"));
        assert_eq!(said("Active", Verdict::Revoked), Ok(()));
        assert_eq!(said("Active", Verdict::Ended), Ok(()));
    }
}
