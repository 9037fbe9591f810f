//! A second person's word as users give it: kubectl on the one side, packets on the other.

use portcullis_harness::{User, install};
use serde_json::json;

use crate::audit;
use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";

impl Play {
    /// Somebody's word on a request, with the plan that its status shows.
    pub(crate) async fn review(&self, user: User, request: &str, policy: &str, verdict: &str) -> String {
        let found = self.get(&format!("jitreq/{request}")).await.unwrap();
        let name = format!("{request}-{}-{}", user.name(), verdict.to_lowercase());
        let review = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
            "metadata": {"name": name, "namespace": install::NAMESPACE},
            "spec": {
                "requestRef": {"name": request, "uid": found["metadata"]["uid"]},
                "policyRef": {"name": policy}, "planHash": found["status"]["planHash"], "verdict": verdict,
            },
        });
        self.stage.plane.kubectl(user).unwrap().apply(&review.to_string()).await.unwrap();
        name
    }

    /// Approves a request.
    pub(crate) async fn approve(&self, user: User, request: &str, policy: &str) -> String {
        self.review(user, request, policy, "Approved").await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_packet_passes_after_the_second_approval_and_not_after_a_revocation() {
    let play = Play::new().await;
    let controller = play.controller().await;
    let mut spec = play.one_machine("web-1");
    spec["approval"] = json!({"required": 2});
    play.policy("web-1", &spec).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "10m").await;
    assert_eq!(play.condition("jitreq/mine", "Approved", "False").await, "WaitingForApproval");
    let first = play.approve(User::Approver, "mine", "web-1").await;
    play.reaches(&format!("jitrev/{first}"), "/status/counted", "Some(Bool(true))").await;
    play.reaches("jitreq/mine", "/status/policies/0/approved", "Some(Number(1))").await;
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    play.approve(User::Approver2, "mine", "web-1").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    play.review(User::Approver, "mine", "web-1", "Revoked").await;
    play.reaches("jitreq/mine", "/status/state", "Revoked").await;
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    play.reaches(&format!("jitrev/{first}"), "/status/settled", "Some(Bool(true))").await;

    let records = audit::records(&controller.log_text().unwrap());
    let reviewed = audit::of_kind(&records, "Reviewed");
    assert!(
        reviewed
            .iter()
            .any(|record| record["review"]["name"] == first && record["review"]["counted"] == true)
    );
    let granted = audit::of_kind(&records, "Granted");
    let by = &granted[0]["request"]["grant"]["approvers"];
    assert_eq!([&by[0]["username"], &by[1]["username"]], ["approver", "approver2"], "{by}");
}
