//! What the API server's own audit log tells: who asked for what, and who said what to it.

use portcullis_harness::install::{NAMESPACE, grant_access, install};
use portcullis_harness::{ControlPlane, Options, User};
use serde_json::{Value, json};

const POLICY: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - level: Metadata
    resources: [{group: jit.portcullis.io}]
  - level: None
"#;

/// What the entry of the log says that tells of the creation of an object.
fn told(log: &str, name: &str) -> Value {
    let entries = log.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut found = entries.filter(|entry| entry["objectRef"]["name"] == name && entry["verb"] == "create");
    let entry = found.next().unwrap_or_else(|| panic!("no entry of {name} in {log}"));
    assert!(found.next().is_none(), "{name} is told of twice");
    entry
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_servers_audit_log_tells_what_was_asked_and_what_was_said_to_it() {
    let folder = tempfile::tempdir().unwrap();
    let (policy, log) = (folder.path().join("policy.yaml"), folder.path().join("audit.log"));
    std::fs::write(&policy, POLICY).unwrap();
    let arguments = vec![
        format!("--audit-policy-file={}", policy.display()),
        format!("--audit-log-path={}", log.display()),
        // Written before the answer is sent.
        "--audit-log-mode=blocking-strict".to_owned(),
    ];
    let plane =
        ControlPlane::start(Options { apiserver_arguments: arguments, ..Options::default() }).await.unwrap();
    install(&plane).await.unwrap();
    grant_access(&plane, NAMESPACE).await.unwrap();
    let object = |kind: &str, name: &str, spec: Value| {
        json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": kind,
            "metadata": {"name": name, "namespace": NAMESPACE}, "spec": spec,
        })
    };
    let create = async |user: User, more: &[&str], object: Value| {
        let kubectl = plane.kubectl(user).unwrap();
        let arguments = [&["create", "-f", "-"], more].concat();
        kubectl.output(&arguments, Some(&object.to_string())).await.unwrap()
    };
    let vm = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web-2";
    let asked = object(
        "JitAccessRequest",
        "several",
        json!({
            "policyRef": {"name": "web"}, "duration": "1h30m",
            "targets": [{"name": "web-1"}, {"name": "fleet", "machine": "web-7"}, {"name": "fleet", "id": vm}],
            "ports": [
                {"port": 22, "sources": [{"cidr": "203.0.113.7/32"}, {"cidr": "2001:db8::/64"}]},
                {"port": 5985, "endPort": 5986, "protocol": "Any", "sources": [{"cidr": "203.0.113.8/32"}]},
            ],
        }),
    );
    assert_eq!(create(User::Developer, &[], asked.clone()).await.code, 0);
    let mut all = asked.clone();
    all["metadata"]["name"] = json!("all");
    all["spec"]["allTargets"] = json!(true);
    all["spec"].as_object_mut().unwrap().remove("targets");
    all["spec"]["onBehalfOf"] = json!("alice@contoso.com");
    all["spec"]["notAfter"] = json!("2031-01-01T00:00:00Z");
    assert_eq!(create(User::Admin, &[], all).await.code, 0);
    let uid = "2ee37974-86eb-4c4f-9a3e-5d7f1c0b2a11";
    let review = |name: &str, verdict: &str| {
        object(
            "JitAccessReview",
            name,
            json!({
                "requestRef": {"name": "several", "uid": uid}, "policyRef": {"name": "web"},
                "planHash": "a".repeat(64), "verdict": verdict,
            }),
        )
    };
    assert_eq!(create(User::Approver, &[], review("fine", "Approved")).await.code, 0);
    let mut ended = review("ended", "Ended");
    ended["spec"].as_object_mut().unwrap().remove("planHash");
    assert_eq!(create(User::Developer, &[], ended).await.code, 0);
    // By whoever may impersonate: both names are in the log, and what is refused is there too.
    let as_approver = ["--as", "approver", "--as-group", "approvers"];
    assert_eq!(create(User::Admin, &as_approver, review("borrowed", "Denied")).await.code, 0);
    assert_ne!(create(User::Developer, &[], review("refused", "Approved")).await.code, 0);

    let log = std::fs::read_to_string(&log).unwrap();
    let annotations = |name: &str, policy: &str| -> Value {
        let entry = told(&log, name);
        let all = entry["annotations"].as_object().unwrap_or_else(|| panic!("no annotations: {entry}"));
        let own = all.iter().filter_map(|(key, value)| Some((key.strip_prefix(policy)?, value)));
        own.map(|(key, value)| (key.trim_start_matches('/').to_owned(), value.clone())).collect()
    };
    assert_eq!(
        annotations("several", "portcullis-requests"),
        json!({
            "policy": "web", "duration": "1h30m", "targets": format!("web-1, fleet/web-7, fleet {vm}"),
            "ports": "22/TCP from 203.0.113.7/32 2001:db8::/64, 5985-5986/Any from 203.0.113.8/32",
        })
    );
    let all = annotations("all", "portcullis-requests");
    assert!(all["targets"] == "all" && all["on-behalf-of"] == "alice@contoso.com", "{all}");
    assert_eq!(
        annotations("fine", "portcullis-reviews"),
        json!({
            "verdict": "Approved", "policy": "web", "request": format!("several {uid}"), "plan": "a".repeat(64),
        })
    );
    let ended = annotations("ended", "portcullis-reviews");
    assert!(ended["verdict"] == "Ended" && ended["plan"].is_null(), "{ended}");
    assert_eq!(told(&log, "several")["user"]["username"], "developer");
    let borrowed = told(&log, "borrowed");
    let names = (&borrowed["user"]["username"], &borrowed["impersonatedUser"]["username"]);
    assert_eq!(names, (&json!("admin"), &json!("approver")), "{borrowed}");
    let refused = told(&log, "refused");
    assert_eq!(refused["responseStatus"]["code"], 403, "{refused}");
}
