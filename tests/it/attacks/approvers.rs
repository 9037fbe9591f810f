//! Approving one's own request by way of somebody else: a service account that one can act as, groups that one leaves out.

use portcullis_harness::{User, install};
use reqwest::Method;
use serde_json::{Value, json};

use super::people::{Actor, Answer, Cast, with_cast};
use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";

/// The built-in `edit` may act as every service account of its namespace, and make tokens for it. One of them holds
/// `approve` there.
#[tokio::test(flavor = "multi_thread")]
async fn an_editor_of_the_namespace_approves_nothing_as_its_service_account() {
    let play = Play::new().await;
    let _controller = play.controller().await;
    let mut spec = play.one_machine("web-1");
    spec["approval"] = json!({"required": 1});
    play.policy("web-1", &spec).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = jiff::Timestamp::now();
    let account = json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": "jit-reviews", "namespace": install::NAMESPACE},
    });
    let rbac = "rbac.authorization.k8s.io";
    let bind = |role: &str, subject: Value| {
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding",
            "metadata": {"name": format!("attack-{role}"), "namespace": install::NAMESPACE},
            "roleRef": {"apiGroup": rbac, "kind": "ClusterRole", "name": role}, "subjects": [subject],
        })
    };
    let editor = json!({"apiGroup": rbac, "kind": "User", "name": User::Developer.name()});
    let reviews = json!({"kind": "ServiceAccount", "name": "jit-reviews", "namespace": install::NAMESPACE});
    let list = json!({
        "apiVersion": "v1", "kind": "List",
        "items": [account, bind("edit", editor), bind("portcullis-approver", reviews)],
    });
    play.admin.apply(&list.to_string()).await.unwrap();

    play.request("mine", "web-1", "web-1", 22, REQUESTER, "10m").await;
    play.condition("jitreq/mine", "Approved", "False").await;
    let request = play.get("jitreq/mine").await.unwrap();
    let review = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
        "metadata": {"name": "own", "namespace": install::NAMESPACE},
        "spec": {
            "requestRef": {"name": "mine", "uid": request["metadata"]["uid"]}, "policyRef": {"name": "web-1"},
            "planHash": request["status"]["planHash"], "verdict": "Approved",
        },
    })
    .to_string();
    let as_it = ["--as=system:serviceaccount:team-web:jit-reviews", "create", "-f", "-"];
    portcullis_harness::eventually("the review is let in", std::time::Duration::from_secs(30), || async {
        let said = play.developer.output(&as_it, Some(&review)).await?;
        anyhow::ensure!(said.code == 0, "{said:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    let review = play.reaches("jitrev/own", "/status/counted", "Some(Bool(false))").await;
    let why = review["status"]["reason"].as_str().unwrap();
    assert_eq!(review["spec"]["reviewer"]["username"], "system:serviceaccount:team-web:jit-reviews");
    assert!(why.contains("the request's own namespace"), "{why}");
    assert_eq!(play.get("jitreq/mine").await.unwrap()["status"]["state"], "Pending");
    assert_eq!(play.exposed(REQUESTER, "web-1", 22, locked).await, []);
    // Somebody else's approval opens it: the test proves something.
    play.approve(User::Approver, "mine", "web-1").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
}

/// Written by hand, as before Kubernetes 1.36: the name alone would lose the right that the groups give, and with it a
/// denial.
#[test]
fn who_writes_who_they_are_writes_all_of_it() {
    with_cast("stamps", |cast| async move {
        for (actor, field) in [(Actor::Approver, "reviewer"), (Actor::Both, "requester")] {
            let own = cast.person(actor).identity.clone();
            let groups = own["groups"].as_array().unwrap().clone();
            assert!(groups.len() > 1, "{own}");
            let with = |groups: Value| {
                let mut identity = own.clone();
                identity["groups"] = groups;
                identity
            };
            let mut nameless = own.clone();
            nameless.as_object_mut().unwrap().remove("groups");
            for stamp in [nameless, with(json!([])), with(json!(groups[..1])), with(json!(groups[1..]))] {
                let answer = create(&cast, actor, field, "part", &stamp).await;
                let words = format!("spec.{field} must be yourself");
                assert!(answer.code == 403 && answer.message().contains(&words), "{stamp}: {answer:?}");
                // With the line to write, in which nothing is missing.
                let (_, line) = answer.message().split_once(&format!("to add to spec:  {field}: ")).unwrap();
                let line = line.split(" - to ask for another").next().unwrap();
                let told: Value = serde_yaml_ng::from_str(line).unwrap();
                assert_eq!(told, own, "{}", answer.message());
            }
            let mut turned = groups.clone();
            turned.reverse();
            for (name, stamp) in [("whole", own.clone()), ("turned", with(json!(turned)))] {
                let answer = create(&cast, actor, field, name, &stamp).await;
                assert_eq!(answer.code, 201, "{stamp}: {answer:?}");
            }
        }
    });
}

async fn create(cast: &Cast, actor: Actor, field: &str, name: &str, stamp: &Value) -> Answer {
    let (plural, kind, mut spec) = if field == "reviewer" {
        let spec = json!({
            "requestRef": {"name": "some", "uid": "11111111-2222-3333-4444-555555555555"},
            "policyRef": {"name": "absent"}, "planHash": "0".repeat(64), "verdict": "Denied",
        });
        ("jitaccessreviews", "JitAccessReview", spec)
    } else {
        let spec = json!({
            "policyRef": {"name": "absent"}, "targets": [{"name": "web-1"}], "duration": "30m",
            "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}],
        });
        ("jitaccessrequests", "JitAccessRequest", spec)
    };
    spec[field] = stamp.clone();
    let body = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": kind, "metadata": {"name": name}, "spec": spec,
    });
    cast.send(cast.person(actor), Method::POST, &cast.path(plural), Some(&body)).await
}
