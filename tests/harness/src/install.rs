//! What `deploy/` ships, applied to a control plane, and in force.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde_json::{Value, json};

use crate::control_plane::{ControlPlane, Options, User};
use crate::wait::eventually;

/// The controller's service account, as namespace and name.
pub const CONTROLLER: (&str, &str) = ("portcullis-system", "portcullis");
/// Argo CD's service account, bound by the samples.
pub const ARGOCD: (&str, &str) = ("argocd", "argocd-application-controller");
/// The namespace of the samples.
pub const NAMESPACE: &str = "team-web";

/// Applies `deploy/without-controller` (kinds, admission, roles, service account) and returns when the API server
/// acts upon all of it.
///
/// # Errors
/// When something is refused, or is not in force within a minute.
pub async fn install(plane: &ControlPlane) -> anyhow::Result<()> {
    apply_folder(plane, &crate::checkout().join("deploy/without-controller")).await?;
    let admin = plane.kubectl(User::Admin)?;
    admin
        .run(&[
            "wait",
            "--for=condition=Established",
            "--timeout=60s",
            "crd/jitpolicies.jit.portcullis.io",
            "crd/jitaccessrequests.jit.portcullis.io",
            "crd/jitaccessreviews.jit.portcullis.io",
        ])
        .await?;
    eventually("admission is in force", Duration::from_secs(60), || admission_is_in_force(plane)).await
}

/// Waits until a controller with `admissionMargin: 1s` has begun to count what is created.
///
/// # Errors
/// When it has not written down within a minute that admission is in force.
pub async fn counted(plane: &ControlPlane) -> anyhow::Result<()> {
    let path = format!("/api/v1/namespaces/{}/configmaps/portcullis-admission", CONTROLLER.0);
    eventually("admission is known to be in force", Duration::from_secs(60), || {
        plane.request(reqwest::Method::GET, &path, None)
    })
    .await?;
    // The margin, and what whole seconds may hide.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    Ok(())
}

/// A control plane that the tests of one program share, with controller manager and everything installed. Each test
/// works in a namespace of its own ([`grant_access`]). It ends with the program.
///
/// # Errors
/// When it does not come up.
pub async fn shared() -> anyhow::Result<&'static ControlPlane> {
    static SHARED: tokio::sync::OnceCell<ControlPlane> = tokio::sync::OnceCell::const_new();
    SHARED
        .get_or_try_init(|| async {
            let plane =
                ControlPlane::start(Options { controller_manager: true, ..Options::default() }).await?;
            install(&plane).await?;
            Ok(plane)
        })
        .await
}

/// Creates `namespace` and Argo CD's service account, and binds the roles there as `deploy/samples` does.
///
/// # Errors
/// When something is refused.
pub async fn grant_access(plane: &ControlPlane, namespace: &str) -> anyhow::Result<()> {
    for namespace in [namespace, ARGOCD.0] {
        create_namespace(plane, namespace).await?;
    }
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": ARGOCD.1}});
    create_unless_there(plane, &format!("/api/v1/namespaces/{}/serviceaccounts", ARGOCD.0), &account).await?;
    let path = crate::checkout().join("deploy/samples/rbac.yaml");
    let bindings =
        std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))?;
    plane
        .kubectl(User::Admin)?
        .apply(&bindings.replace(&format!("namespace: {NAMESPACE}}}"), &format!("namespace: {namespace}}}")))
        .await?;
    Ok(())
}

/// Creates a namespace, unless it is there.
///
/// # Errors
/// When it is refused.
pub async fn create_namespace(plane: &ControlPlane, name: &str) -> anyhow::Result<()> {
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    create_unless_there(plane, "/api/v1/namespaces", &namespace).await
}

/// Tests that run at once want some of the same objects, and `kubectl apply`, which looks first and then creates,
/// fails when another has been faster.
async fn create_unless_there(plane: &ControlPlane, path: &str, object: &Value) -> anyhow::Result<()> {
    match plane.request(reqwest::Method::POST, path, Some(object)).await {
        Err(error) if !format!("{error:#}").contains("AlreadyExists") => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Applies a kustomization by server-side apply, as GitOps tools do.
///
/// # Errors
/// When something in it is refused.
pub async fn apply_folder(plane: &ControlPlane, folder: &Path) -> anyhow::Result<()> {
    let admin = plane.kubectl(User::Admin)?;
    let folder = folder.to_string_lossy();
    // The objects of a kind follow its definition, and discovery may lag behind: so twice before giving up.
    let arguments = ["apply", "--server-side", "--force-conflicts", "-k", &folder];
    if admin.run(&arguments).await.is_err() {
        tokio::time::sleep(Duration::from_secs(1)).await;
        admin.run(&arguments).await.with_context(|| format!("failed to apply {folder}"))?;
    }
    Ok(())
}

/// Asks the API server, by requests that are not carried out: admission takes a second or two to follow its policies.
async fn admission_is_in_force(plane: &ControlPlane) -> anyhow::Result<()> {
    let spec = json!({
        "policyRef": {"name": "no-such-policy"}, "targets": [{"name": "any"}], "duration": "1m",
        "ports": [{"port": 22, "sources": [{"cidr": "192.0.2.1/32"}]}],
    });
    let stamped = dry_run(plane, "jitaccessrequests", "JitAccessRequest", &spec).await?;
    ensure!(
        stamped.pointer("/spec/requester/username").and_then(Value::as_str) == Some(User::Admin.name()),
        "requests are not stamped"
    );
    let mut borrowed = spec.clone();
    borrowed["requester"] = json!({"username": "somebody-else"});
    refused(
        dry_run(plane, "jitaccessrequests", "JitAccessRequest", &borrowed).await,
        "spec.requester must be yourself",
    )?;

    let spec = json!({
        "requestRef": {"name": "none", "uid": "00000000-1111-2222-3333-444444444444"}, "policyRef": {"name": "none"}, "verdict": "Ended",
    });
    let stamped = dry_run(plane, "jitaccessreviews", "JitAccessReview", &spec).await?;
    ensure!(
        stamped.pointer("/spec/reviewer/username").and_then(Value::as_str) == Some(User::Admin.name()),
        "reviews are not stamped"
    );
    let mut borrowed = spec.clone();
    borrowed["reviewer"] = json!({"username": "somebody-else"});
    refused(
        dry_run(plane, "jitaccessreviews", "JitAccessReview", &borrowed).await,
        "spec.reviewer must be yourself",
    )
}

async fn dry_run(plane: &ControlPlane, resource: &str, kind: &str, spec: &Value) -> anyhow::Result<Value> {
    let path = format!("/apis/jit.portcullis.io/v1alpha1/namespaces/default/{resource}?dryRun=All");
    let body = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": kind, "metadata": {"name": "is-admission-in-force"},
        "spec": spec,
    });
    plane.request(reqwest::Method::POST, &path, Some(&body)).await
}

fn refused(answer: anyhow::Result<Value>, message: &str) -> anyhow::Result<()> {
    match answer {
        Ok(_) => anyhow::bail!("not refused yet: {message}"),
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains(message), "refused, but not by {message:?}: {text}");
            Ok(())
        }
    }
}
