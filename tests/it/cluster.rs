//! One real API server for all modules that only ask it about objects.

use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use portcullis_harness::{ControlPlane, Options, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

/// Connections live as long as the runtime that made them, so that there is one for all tests.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static PLANE: OnceCell<ControlPlane> = OnceCell::const_new();

/// Runs a test against the API server, which has the three kinds.
pub fn with_kinds<F: Future<Output = ()>>(test: impl FnOnce(&'static ControlPlane) -> F) {
    RUNTIME.block_on(async {
        let plane = PLANE
            .get_or_init(|| async {
                let plane = ControlPlane::start(Options::default()).await.unwrap();
                let kubectl = plane.kubectl(portcullis_harness::User::Admin).unwrap();
                let folder = portcullis_harness::checkout().join("crds");
                kubectl.run(&["apply", "-k", &folder.display().to_string()]).await.unwrap();
                kubectl
                    .run(&[
                        "wait",
                        "--for=condition=Established",
                        "--timeout=60s",
                        "crd/jitpolicies.jit.portcullis.io",
                        "crd/jitaccessrequests.jit.portcullis.io",
                        "crd/jitaccessreviews.jit.portcullis.io",
                    ])
                    .await
                    .unwrap();
                // What is served is told a moment later by those who are asked what there is.
                eventually("kubectl knows the kinds", Duration::from_secs(60), || {
                    kubectl.run(&["get", "jit,jitpol,jitreq,jitrev", "--all-namespaces"])
                })
                .await
                .unwrap();
                plane
            })
            .await;
        test(plane).await;
    });
}

/// A complaint of the API server about one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cause {
    pub field: String,
    pub message: String,
}

/// Where objects of this kind live in the namespace `default`.
pub fn path(kind: &str) -> String {
    let plural = match kind {
        "JitPolicy" => "jitpolicies",
        "JitAccessRequest" => "jitaccessrequests",
        "JitAccessReview" => "jitaccessreviews",
        _ => panic!("no such kind: {kind}"),
    };
    format!("/apis/jit.portcullis.io/v1alpha1/namespaces/default/{plural}")
}

/// Whether the API server would create the object; if not, what it says to each field.
pub async fn judge(plane: &ControlPlane, object: &Value) -> Result<Value, Vec<Cause>> {
    let path = format!("{}?dryRun=All&fieldValidation=Strict", path(object["kind"].as_str().unwrap()));
    send(plane, Method::POST, &path, object).await
}

/// Sends an object, and takes a refusal apart.
pub async fn send(
    plane: &ControlPlane,
    method: Method,
    path: &str,
    object: &Value,
) -> Result<Value, Vec<Cause>> {
    let mut object = object.clone();
    object["apiVersion"] = json!("jit.portcullis.io/v1alpha1");
    plane.request(method, path, Some(&object)).await.map_err(|error| causes(&error.to_string()))
}

fn causes(error: &str) -> Vec<Cause> {
    let status: Value = error
        .find('{')
        .and_then(|start| serde_json::from_str(&error[start..]).ok())
        .unwrap_or_else(|| panic!("no answer of the API server: {error}"));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let causes: Vec<Cause> = status["details"]["causes"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|cause| Cause { field: text(&cause["field"]), message: text(&cause["message"]) })
        .collect();
    if causes.is_empty() {
        return vec![Cause { field: String::new(), message: text(&status["message"]) }];
    }
    causes
}
