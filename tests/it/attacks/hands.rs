//! What those do who ask and who review, on a site of the shared stage.

use portcullis_harness::control_plane::Output;
use portcullis_harness::install::{ARGOCD, NAMESPACE};
use portcullis_harness::{Kubectl, User};
use serde_json::{Value, json};

use crate::ground::{Site, Vm, targets};

/// A user of the API server, as subject of a binding.
pub(super) fn user(name: &str) -> Value {
    json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name})
}

impl Site {
    /// A policy over a machine that asks for approvals, once its lock stands.
    pub(super) async fn guarded(&self, name: &str, machine: &Vm, required: u8) {
        let spec = json!({"targets": targets(&[machine]), "approval": {"required": required}});
        self.guarded_by(name, &spec).await;
    }

    pub(super) async fn guarded_by(&self, name: &str, spec: &Value) {
        self.policy(name, spec).await;
        self.says(&format!("jitpol/{name}"), "Ready", "True", "Configured", "").await;
    }

    /// Binds a role to somebody in the namespace; the binding's name.
    pub(super) async fn bind(&self, name: &str, role: &str, subject: &Value) -> String {
        let name = self.name(name);
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": NAMESPACE}, "subjects": [subject],
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        });
        self.kubectl(User::Admin).apply(&binding.to_string()).await.unwrap();
        name
    }

    /// A service account of another namespace that may approve, and the name of its binding.
    pub(super) async fn approving_account(&self, name: &str) -> (Kubectl, String) {
        let account = json!({
            "apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": self.name(name), "namespace": ARGOCD.0},
        });
        self.kubectl(User::Admin).apply(&account.to_string()).await.unwrap();
        let subject = json!({"kind": "ServiceAccount", "name": self.name(name), "namespace": ARGOCD.0});
        let binding = self.bind(name, "portcullis-approver", &subject).await;
        let plane = &self.ground.play.stage.plane;
        let config = plane.service_account_kubeconfig(ARGOCD.0, &self.name(name)).await.unwrap();
        (plane.kubectl_with(&config), binding)
    }

    /// The request, once its status shows a plan.
    pub(super) async fn planned(&self, request: &str) -> Value {
        self.until("shows a plan", request, |found| found["status"]["planHash"].is_string()).await
    }

    /// A review of a request as it was read, with the plan that it showed.
    pub(super) fn review_of(&self, name: &str, request: &Value, policy: &str, verdict: &str) -> Value {
        let mut spec = json!({
            "requestRef": {"name": request["metadata"]["name"], "uid": request["metadata"]["uid"]},
            "policyRef": {"name": self.name(policy)}, "verdict": verdict,
        });
        if request["status"]["planHash"].is_string() {
            spec["planHash"] = request["status"]["planHash"].clone();
        }
        json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
            "metadata": {"name": self.name(name), "namespace": NAMESPACE}, "spec": spec,
        })
    }

    /// Sends a review; what kubectl says.
    pub(super) async fn send(&self, by: &Kubectl, more: &[&str], word: &Value) -> Output {
        let arguments = [&["create", "-f", "-"], more].concat();
        by.output(&arguments, Some(&word.to_string())).await.unwrap()
    }

    /// Approves a request as it was read, and waits for the answer.
    pub(super) async fn approves(
        &self,
        by: &Kubectl,
        (name, policy): (&str, &str),
        request: &Value,
        counted: bool,
        says: &str,
    ) {
        let word = self.review_of(name, request, policy, "Approved");
        let sent = self.send(by, &[], &word).await;
        assert_eq!(sent.code, 0, "{sent:?}");
        self.answered(name, counted, says).await;
    }

    /// Waits until a review is answered so.
    pub(super) async fn answered(&self, name: &str, counted: bool, says: &str) {
        let what = format!("counted is {counted}, because {says:?}");
        self.until(&what, &format!("jitrev/{name}"), |found| {
            let reason = found["status"]["reason"].as_str().unwrap_or_default();
            found["status"]["counted"] == counted && reason.contains(says)
        })
        .await;
    }

    /// What the requester asks for: port 22 of the machine `a`, for an hour.
    pub(super) async fn asks_as(&self, by: &Kubectl, name: &str, policy: &str, more: &Value) {
        let manifest = self.wanted(name, policy, more);
        by.run_with_input(&["create", "-f", "-"], &manifest.to_string()).await.unwrap();
    }
}
