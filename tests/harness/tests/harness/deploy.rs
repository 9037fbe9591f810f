//! What `deploy/` ships does what its comments say, on a real API server and for real users. [`installed`] runs it.

mod installed;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::Duration;

use portcullis_harness::control_plane::Output;
use portcullis_harness::install::{self, ARGOCD, CONTROLLER, NAMESPACE};
use portcullis_harness::{ControlPlane, Kubectl, User, checkout, eventually};
use serde::Deserialize;
use serde_json::{Value, json};

/// The shared control plane, with a namespace of the test's own.
async fn installed(namespace: &str) -> anyhow::Result<&'static ControlPlane> {
    let plane = install::shared().await?;
    install::grant_access(plane, namespace).await?;
    Ok(plane)
}

fn samples() -> anyhow::Result<Vec<PathBuf>> {
    let mut files: Vec<_> = std::fs::read_dir(checkout().join("deploy/samples"))?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    // A folder is a sample of a whole repository, and has a test of its own.
    files.retain(|file| file.is_file());
    files.sort();
    assert!(files.len() >= 10, "samples are missing: {files:?}");
    Ok(files)
}

fn policy(name: &str, more: &Value) -> Value {
    let mut policy = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy",
        "metadata": {"name": name},
        "spec": {"targets": [{"name": "web-1", "azureVirtualMachine": {"id":
            "/subscriptions/00000000-0000-0000-0000-000000000001/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web-1"}}]},
    });
    merge(&mut policy, more);
    policy
}

fn request(name: &str, policy: &str, more: &Value) -> Value {
    let mut request = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
        "metadata": {"name": name},
        "spec": {
            "policyRef": {"name": policy}, "targets": [{"name": "web-1"}], "duration": "30m",
            "ports": [{"port": 22, "protocol": "TCP", "sources": [{"cidr": "203.0.113.7/32"}]}],
        },
    });
    merge(&mut request, more);
    request
}

fn review(name: &str, policy: &str, verdict: &str) -> Value {
    json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
        "metadata": {"name": name},
        "spec": {
            "requestRef": {"name": "some-request", "uid": "00000000-1111-2222-3333-444444444444"}, "policyRef": {"name": policy},
            "planHash": "0".repeat(64), "verdict": verdict,
        },
    })
}

/// Members of objects are merged, everything else is replaced.
fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

async fn create(kubectl: &Kubectl, object: &Value) -> anyhow::Result<Output> {
    kubectl.output(&["create", "-f", "-"], Some(&object.to_string())).await
}

#[track_caller]
fn refused(output: &Output, message: &str) {
    assert!(output.code != 0 && output.stderr.contains(message), "wanted {message:?}, got {output:?}");
}

#[tokio::test]
async fn every_sample_is_accepted_from_the_user_it_is_for() -> anyhow::Result<()> {
    let plane = installed(NAMESPACE).await?;
    let argocd = plane.kubectl_with(&plane.service_account_kubeconfig(ARGOCD.0, ARGOCD.1).await?);
    for file in samples()? {
        let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
        // Dates of samples are far from now, and a window may not be.
        let soon =
            |hours: i64| (jiff::Timestamp::now() + jiff::SignedDuration::from_hours(hours)).to_string();
        let text = std::fs::read_to_string(&file)?
            .replace("2031-01-31T01:00:00Z", &soon(1))
            .replace("2031-01-31T03:00:00Z", &soon(3));
        let (kubectl, verb) = match name.as_str() {
            "rbac.yaml" | "sweep.yaml" => (plane.kubectl(User::Admin)?, "apply"),
            "request-by-pipeline.yaml" => (argocd.clone(), "apply"),
            "review-approve.yaml" => (plane.kubectl(User::Approver)?, "create"),
            "review-end.yaml" => (plane.kubectl(User::Developer)?, "create"),
            name if name.starts_with("policy-") => (plane.kubectl(User::PolicyAdmin)?, "apply"),
            name if name.starts_with("request") => (plane.kubectl(User::Developer)?, "apply"),
            name => anyhow::bail!("nobody knows whom the sample {name} is for"),
        };
        let accepted = kubectl.output(&[verb, "-f", "-", "--validate=strict"], Some(&text)).await?;
        assert_eq!(accepted.code, 0, "{name}: {}", accepted.stderr);
    }
    // What the comments of the samples say of identity is true.
    let request = plane.kubectl(User::Viewer)?.json(&["jitreq", "disk-full", "-n", NAMESPACE]).await?;
    assert_eq!(request["spec"]["requester"]["username"], User::Developer.name());
    assert_eq!(request["spec"]["requester"]["uid"], User::Developer.uid());
    assert!(
        request["spec"]["requester"]["groups"]
            .as_array()
            .is_some_and(|groups| groups.contains(&json!("developers")))
    );
    Ok(())
}

#[tokio::test]
async fn roles_give_what_they_say_and_no_more() -> anyhow::Result<()> {
    let namespace = "roles";
    let plane = installed(namespace).await?;
    let admin = plane.kubectl(User::Admin)?.in_namespace(namespace);
    // An editor of the namespace, by the built-in role: may look, and nothing else.
    admin
        .run(&[
            "create",
            "rolebinding",
            "editors",
            "-n",
            namespace,
            "--clusterrole=edit",
            "--group=outsiders",
        ])
        .await?;
    let expected = [
        (User::Developer, "create", "jitaccessrequests", true),
        (User::Developer, "delete", "jitaccessrequests", true),
        (User::Developer, "create", "jitaccessreviews", true),
        (User::Developer, "approve", "jitpolicies", false),
        (User::Developer, "delegate", "jitpolicies", false),
        (User::Developer, "create", "jitpolicies", false),
        (User::Developer, "update", "jitaccessrequests/status", false),
        (User::Approver, "approve", "jitpolicies", true),
        (User::Approver, "create", "jitaccessreviews", true),
        (User::Approver, "create", "jitaccessrequests", false),
        (User::Approver, "delegate", "jitpolicies", false),
        (User::Approver, "delete", "jitaccessreviews", false),
        (User::PolicyAdmin, "create", "jitpolicies", true),
        (User::PolicyAdmin, "approve", "jitpolicies", false),
        (User::PolicyAdmin, "create", "jitaccessrequests", false),
        (User::Viewer, "get", "jitaccessrequests", true),
        (User::Viewer, "create", "jitaccessrequests", false),
        (User::Outsider, "get", "jitpolicies", true),
        (User::Outsider, "create", "jitaccessrequests", false),
        (User::Outsider, "approve", "jitpolicies", false),
        (User::Outsider, "create", "jitpolicies", false),
    ];
    for (user, verb, resource, allowed) in expected {
        let resource = format!("{resource}.jit.portcullis.io");
        let (resource, subresource) = resource
            .split_once("/status")
            .map_or((resource.as_str(), ""), |(resource, _)| (resource, "status"));
        let resource = resource.strip_suffix(".jit.portcullis.io").unwrap_or(resource);
        let kind = format!("{resource}.jit.portcullis.io");
        let subresource = format!("--subresource={subresource}");
        let ask = ["auth", "can-i", verb, &kind, "-n", namespace, &subresource];
        // The aggregation of roles is the controller manager's work, and takes a moment.
        let answered = eventually("the answer is right", Duration::from_secs(20), || async {
            let answer = plane.kubectl(user)?.in_namespace(namespace).output(&ask, None).await?;
            anyhow::ensure!((answer.stdout.trim() == "yes") == allowed, "{user:?} {verb} {kind}: {answer:?}");
            Ok::<_, anyhow::Error>(())
        });
        answered.await?;
    }

    // The controller's own service account: no more than its work takes.
    let controller = plane
        .kubectl_with(&plane.service_account_kubeconfig(CONTROLLER.0, CONTROLLER.1).await?)
        .in_namespace(namespace);
    for (verb, resource, namespace, allowed) in [
        ("patch", "jitaccessrequests", namespace, true),
        ("update", "jitaccessrequests", namespace, false),
        ("create", "jitaccessrequests", namespace, false),
        ("create", "jitaccessreviews", namespace, false),
        ("delete", "jitpolicies", namespace, false),
        ("approve", "jitpolicies", namespace, false),
        ("create", "subjectaccessreviews.authorization.k8s.io", namespace, true),
        ("get", "secrets", "portcullis-system", false),
        ("get", "leases.coordination.k8s.io", "portcullis-system", true),
        ("get", "leases.coordination.k8s.io", "kube-system", false),
        ("list", "validatingadmissionpolicies.admissionregistration.k8s.io", namespace, true),
        ("update", "validatingadmissionpolicies.admissionregistration.k8s.io", namespace, false),
        ("create", "events.events.k8s.io", namespace, true),
        ("impersonate", "users", namespace, false),
    ] {
        let answer = controller.output(&["auth", "can-i", verb, resource, "-n", namespace], None).await?;
        assert_eq!(answer.stdout.trim() == "yes", allowed, "{verb} {resource} in {namespace}: {answer:?}");
    }
    Ok(())
}

#[tokio::test]
async fn nobody_speaks_in_anothers_name() -> anyhow::Result<()> {
    let namespace = "names";
    let plane = installed(namespace).await?;
    let developer = plane.kubectl(User::Developer)?.in_namespace(namespace);
    let argocd = plane
        .kubectl_with(&plane.service_account_kubeconfig(ARGOCD.0, ARGOCD.1).await?)
        .in_namespace(namespace);

    let borrowed =
        |requester: Value| request("borrowed", "web-1", &json!({"spec": {"requester": requester}}));
    for requester in [
        json!({"username": "developer2", "uid": User::Developer2.uid()}),
        json!({"username": "developer"}),
        json!({"username": "developer", "uid": User::Developer.uid(), "groups": ["approvers"]}),
        // A part of one's groups is a choice of rights.
        json!({"username": "developer", "uid": User::Developer.uid(), "groups": ["developers"]}),
    ] {
        refused(
            &create(&developer, &borrowed(requester)).await?,
            "spec.requester must be yourself (developer)",
        );
    }
    let whoami: Value = serde_json::from_str(&developer.run(&["auth", "whoami", "-o", "json"]).await?)?;
    let myself = &whoami["status"]["userInfo"];
    let own =
        borrowed(json!({"username": myself["username"], "uid": myself["uid"], "groups": myself["groups"]}));
    assert_eq!(create(&developer, &own).await?.code, 0, "one's own name is no borrowed one");

    let delegated = request("for-alice", "web-1", &json!({"spec": {"onBehalfOf": "alice@example.com"}}));
    refused(&create(&developer, &delegated).await?, "that takes the verb delegate on jitpolicies/web-1");
    let admin = plane.kubectl(User::Admin)?.in_namespace(namespace);
    admin
        .run(&[
            "create",
            "rolebinding",
            "d",
            "-n",
            namespace,
            "--clusterrole=portcullis-delegate",
            "--user=developer",
        ])
        .await?;
    refused(&create(&developer, &delegated).await?, "spec.notAfter is required");
    let bounded = request(
        "for-alice",
        "web-1",
        &json!({"spec": {"onBehalfOf": "alice@example.com", "notAfter": "2031-01-01T00:00:00Z"}}),
    );
    assert_eq!(create(&developer, &bounded).await?.code, 0);
    refused(&create(&argocd, &request("by-argocd", "web-1", &json!({}))).await?, "spec.notAfter is required");

    let mut forged = review("forged", "web-1", "Ended");
    forged["spec"]["reviewer"] = json!({"username": "approver", "uid": User::Approver.uid()});
    refused(&create(&developer, &forged).await?, "spec.reviewer must be yourself (developer)");
    for verdict in ["Approved", "Denied", "Revoked"] {
        let review = review("unauthorised", "web-1", verdict);
        refused(&create(&developer, &review).await?, "that takes the verb approve on it");
    }
    assert_eq!(create(&developer, &review("ended", "web-1", "Ended")).await?.code, 0);
    let approver = plane.kubectl(User::Approver)?.in_namespace(namespace);
    assert_eq!(create(&approver, &review("approved", "web-1", "Approved")).await?.code, 0);
    let stamped = approver.json(&["jitrev", "approved", "-n", namespace]).await?;
    assert_eq!(stamped["spec"]["reviewer"]["username"], "approver");
    Ok(())
}

#[tokio::test]
async fn what_the_controller_owns_nobody_else_changes() -> anyhow::Result<()> {
    let namespace = "controller";
    let plane = installed(namespace).await?;
    let admin = plane.kubectl(User::Admin)?.in_namespace(namespace);
    let developer = plane.kubectl(User::Developer)?.in_namespace(namespace);
    let controller = plane
        .kubectl_with(&plane.service_account_kubeconfig(CONTROLLER.0, CONTROLLER.1).await?)
        .in_namespace(namespace);
    let manifest = request("mine", "web-1", &json!({}));
    developer.apply(&manifest.to_string()).await?;
    let patch = |kubectl: Kubectl, status: bool, patch: Value| async move {
        let patch = patch.to_string();
        let mut arguments = vec!["patch", "jitreq", "mine", "-n", namespace, "--type=merge", "-p", &patch];
        if status {
            arguments.push("--subresource=status");
        }
        kubectl.output(&arguments, None).await
    };
    let finalizer = json!({"metadata": {"finalizers": ["jit.portcullis.io/rules"]}});
    assert_eq!(patch(controller.clone(), false, finalizer).await?.code, 0);

    // Status is the controller's, cluster administrators included.
    let active = json!({"status": {"state": "Active"}});
    refused(&patch(admin.clone(), true, active).await?, "status belongs to the controller");
    let mut written = admin.json(&["jitreq", "mine", "-n", namespace]).await?;
    written["status"]["state"] = json!("Active");
    let replace = ["replace", "--subresource=status", "-f", "-"];
    assert_eq!(controller.output(&replace, Some(&written.to_string())).await?.code, 0);

    // The spec cannot be changed, and a manifest without requester can be applied again, in each way there is.
    let edited = request("mine", "web-1", &json!({"spec": {"duration": "2h"}}));
    let edit = developer.output(&["apply", "-f", "-"], Some(&edited.to_string())).await?;
    refused(&edit, "spec is immutable: create a new request");
    let removed = json!([{"op": "remove", "path": "/spec"}]).to_string();
    let removal = ["patch", "jitreq", "mine", "-n", namespace, "--type=json", "-p", &removed];
    assert_ne!(admin.output(&removal, None).await?.code, 0);
    developer.apply(&manifest.to_string()).await?;
    let forced = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
    admin.run_with_input(&forced, &manifest.to_string()).await?;
    developer.run_with_input(&["replace", "-f", "-"], &manifest.to_string()).await?;
    let kept = admin.json(&["jitreq", "mine", "-n", namespace]).await?;
    assert_eq!(kept["spec"]["requester"]["username"], "developer", "another's apply takes nothing over");
    assert_eq!(
        kept["metadata"]["finalizers"],
        json!(["jit.portcullis.io/rules"]),
        "replace drops no finalizer"
    );

    // Not by garbage collection either.
    let owned = json!({"metadata": {"ownerReferences": [
        {"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "11111111-1111-1111-1111-111111111111"}]}});
    refused(&patch(developer.clone(), false, owned).await?, "ownerReferences may not be added");

    // A deleted object stays until the controller lets go, whatever others try.
    developer.run(&["delete", "jitreq", "mine", "-n", namespace, "--wait=false"]).await?;
    for attempt in [json!({"metadata": {"finalizers": null}}), json!({"metadata": {"finalizers": []}})] {
        let _ = patch(admin.clone(), false, attempt).await?;
        let kept = admin.json(&["jitreq", "mine", "-n", namespace]).await?;
        assert_eq!(kept["metadata"]["finalizers"], json!(["jit.portcullis.io/rules"]));
    }
    assert_eq!(patch(controller, false, json!({"metadata": {"finalizers": null}})).await?.code, 0);
    assert!(
        admin.output(&["get", "jitreq", "mine", "-n", namespace], None).await?.stderr.contains("NotFound")
    );
    Ok(())
}

#[tokio::test]
async fn a_request_hears_at_once_what_is_wrong_by_its_policy() -> anyhow::Result<()> {
    let namespace = "early";
    let plane = installed(namespace).await?;
    let developer = plane.kubectl(User::Developer)?.in_namespace(namespace);
    let author = plane.kubectl(User::PolicyAdmin)?.in_namespace(namespace);
    let strict = policy(
        "strict",
        &json!({"spec": {
            "ports": [
                {"port": 22, "protocol": "TCP", "allowedSources": [{"cidr": "203.0.113.0/24"}], "maxDuration": "1h"},
                {"port": 5985, "endPort": 5986, "maxDuration": "30m"},
            ],
            "justification": {"required": true, "pattern": "^INC-[0-9]+"},
        }}),
    );
    author.apply(&strict.to_string()).await?;
    author.apply(&policy("defaults", &json!({})).to_string()).await?;

    let good = json!({"spec": {"justification": "INC-4711", "duration": "1h"}});
    let with = |more: Value| {
        let mut all = good.clone();
        merge(&mut all, &more);
        request("judged", "strict", &all)
    };
    let port = |port: Value| json!({"spec": {"ports": [port]}});
    let sources = json!([{"cidr": "203.0.113.7/32"}]);
    let wrong = [
        (json!({"spec": {"justification": ""}}), "spec.justification is required by jitpolicies/strict"),
        (json!({"spec": {"justification": "please"}}), "spec.justification must match ^INC-[0-9]+"),
        (json!({"spec": {"targets": [{"name": "web-2"}]}}), "has no target named web-2; it has web-1"),
        (
            port(json!({"port": 80, "sources": sources})),
            "jitpolicies/strict opens only 22/TCP, 5985-5986/Any",
        ),
        (port(json!({"port": 22, "protocol": "UDP", "sources": sources})), "opens only 22/TCP"),
        (port(json!({"port": 5985, "endPort": 5987, "sources": sources})), "opens only 22/TCP"),
        (
            port(json!({"port": 22, "sources": [{"cidr": "198.51.100.1/32"}]})),
            "allows only 22 from 203.0.113.0/24",
        ),
        (
            port(json!({"port": 22, "sources": [{"cidr": "203.0.112.0/23"}]})),
            "allows only 22 from 203.0.113.0/24",
        ),
        (
            port(json!({"port": 22, "sources": [{"cidr": "2001:db8::1/128"}]})),
            "allows only 22 from 203.0.113.0/24",
        ),
        (
            json!({"spec": {"duration": "61m"}}),
            "spec.duration is longer than jitpolicies/strict allows: 1h for 22",
        ),
    ];
    // Admission follows its parameters with a little delay: the first refusal is waited for.
    eventually("the policy has a say", Duration::from_secs(20), || async {
        let (change, message) = &wrong[0];
        let answer = developer
            .output(&["create", "--dry-run=server", "-f", "-"], Some(&with(change.clone()).to_string()))
            .await?;
        anyhow::ensure!(answer.stderr.contains(message), "{answer:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    for (change, message) in wrong {
        refused(&create(&developer, &with(change)).await?, message);
    }
    let by_default =
        |name: &str, duration: &str| request(name, "defaults", &json!({"spec": {"duration": duration}}));
    refused(&create(&developer, &by_default("long", "3h1m")).await?, "allows: 3h");

    for accepted in [
        with(json!({})),
        with(json!({"metadata": {"name": "range"}, "spec": {"duration": "30m", "ports":
            [{"port": 5985, "endPort": 5986, "protocol": "Any", "sources": [{"cidr": "2001:db8::/64"}]}]}})),
        by_default("within-defaults", "3h"),
        request("early", "no-policy-yet", &json!({})),
    ] {
        let answer = create(&developer, &accepted).await?;
        assert_eq!(answer.code, 0, "{accepted}: {}", answer.stderr);
    }
    Ok(())
}

/// What somebody may apply: the base, and each overlay of it.
fn kustomizations() -> anyhow::Result<Vec<PathBuf>> {
    let overlays = std::fs::read_dir(checkout().join("deploy/overlays"))?;
    let mut folders: Vec<_> =
        overlays.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    assert!(folders.len() >= 4, "overlays are missing: {folders:?}");
    folders.push(checkout().join("deploy/base"));
    folders.sort();
    Ok(folders)
}

#[tokio::test]
async fn base_and_overlays_are_accepted_and_keep_to_restricted_pod_security() -> anyhow::Result<()> {
    let plane = install::shared().await?;
    let admin = plane.kubectl(User::Admin)?;
    for folder in kustomizations()? {
        let folder = folder.display().to_string();
        // Not carried out: there is nothing here to run it.
        let arguments = [
            "apply",
            "--server-side",
            "--force-conflicts",
            "--dry-run=server",
            "--validate=strict",
            "-k",
            &folder,
        ];
        let answer = admin.output(&arguments, None).await?;
        assert_eq!(answer.code, 0, "{folder}: {}", answer.stderr);
        let said = &answer.stdout;
        assert!(said.contains("deployment.apps/portcullis serverside-applied"), "{folder}: {said}");
        assert_eq!(answer.stderr, "", "{folder}: warnings, as of pods that restricted namespaces refuse");
    }
    Ok(())
}

/// What an overlay changes is the configuration, and what that needs.
#[tokio::test]
async fn overlays_hold_what_the_base_holds_and_a_configuration_that_the_program_takes() -> anyhow::Result<()>
{
    let plane = install::shared().await?;
    let admin = plane.kubectl(User::Admin)?;
    let program = portcullis_harness::program("portcullis", "PORTCULLIS")?;
    let mut names: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for folder in kustomizations()? {
        let overlay = folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let text = admin.run(&["kustomize", &folder.display().to_string()]).await?;
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let object = Value::deserialize(document)?;
            let (kind, name) = (&object["kind"], object["metadata"]["name"].as_str().unwrap_or_default());
            // Generated names end in a hash of what is in them.
            let generated = ["ConfigMap", "Secret"].iter().any(|generated| kind == generated);
            let name = if generated { name.rsplit_once('-').map_or(name, |(name, _)| name) } else { name };
            names.entry(overlay.clone()).or_default().insert(format!("{kind} {name}"));
            let Some(config) = object["data"]["config.yaml"].as_str() else { continue };
            let file = tempfile::NamedTempFile::new()?;
            std::fs::write(file.path(), config)?;
            let check = std::process::Command::new(&program)
                .args(["config", "check", "--config"])
                .arg(file.path())
                .output()?;
            let said = String::from_utf8_lossy(&check.stderr).into_owned();
            // Whoever applies the base as it is hears of it.
            assert_eq!(check.status.success(), overlay != "base", "{overlay}: {said}");
            assert!(overlay != "base" || said.contains("clusterId"), "{said}");
        }
    }
    let base = names.remove("base").unwrap_or_default();
    for (overlay, mut names) in names {
        assert_eq!(names.remove("\"Secret\" azure"), overlay == "playground", "{overlay}");
        assert_eq!(names, base, "{overlay}");
    }
    Ok(())
}

#[tokio::test]
async fn admission_policies_fit_the_kinds_they_judge() -> anyhow::Result<()> {
    let plane = install::shared().await?;
    let admin = plane.kubectl(User::Admin)?;
    // The API server checks types only where a policy names versions, so unbound copies do.
    let shipped =
        admin.json(&["validatingadmissionpolicies", "-l", "app.kubernetes.io/name=portcullis"]).await?;
    let shipped = shipped["items"].as_array().cloned().unwrap_or_default();
    assert!(shipped.len() >= 4, "only {} policies", shipped.len());
    let copy = |policy: &Value, name: &str| {
        let spec =
            policy["spec"].to_string().replace(r#""apiVersions":["*"]"#, r#""apiVersions":["v1alpha1"]"#);
        let spec: Value = serde_json::from_str(&spec)?;
        Ok::<_, serde_json::Error>(json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name, "labels": {"checked": "true"}}, "spec": spec,
        }))
    };
    for policy in &shipped {
        let name = policy["metadata"]["name"].as_str().unwrap_or_default();
        admin.apply(&copy(policy, &format!("checked-{name}"))?.to_string()).await?;
    }
    // One that does not fit, so that silence means something.
    let requests = shipped.iter().find(|policy| policy["metadata"]["name"] == "portcullis-requests");
    let mut misfit = copy(requests.unwrap_or(&Value::Null), "checked-misfit")?;
    misfit["spec"]["validations"] = json!([{"expression": "object.spec.nobody == 'x'"}]);
    admin.apply(&misfit.to_string()).await?;

    let checked = eventually("the policies have been checked", Duration::from_secs(60), || async {
        let policies = admin.json(&["validatingadmissionpolicies", "-l", "checked=true"]).await?;
        let policies = policies["items"].as_array().cloned().unwrap_or_default();
        anyhow::ensure!(policies.len() == shipped.len() + 1, "{} policies", policies.len());
        for policy in &policies {
            let generation = &policy["metadata"]["generation"];
            anyhow::ensure!(
                &policy["status"]["observedGeneration"] == generation,
                "{}",
                policy["metadata"]["name"]
            );
        }
        Ok::<_, anyhow::Error>(policies)
    })
    .await?;
    for policy in checked {
        let warnings = &policy["status"]["typeChecking"]["expressionWarnings"];
        let misfit = policy["metadata"]["name"] == "checked-misfit";
        assert_eq!(!warnings.is_null(), misfit, "{}: {warnings:#}", policy["metadata"]["name"]);
    }
    Ok(())
}
