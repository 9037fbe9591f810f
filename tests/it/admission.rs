//! Whether admission is in force, on a real API server: what the controller does while somebody takes it away,
//! narrows it, or puts it back, with the packets as witnesses.

use portcullis::api::admission::{CONTROLLER_USER, text};
use portcullis_harness::install;
use serde_json::json;

use crate::walk::Play;

#[test]
fn what_is_shipped_is_what_the_program_counts_on() {
    let path = portcullis_harness::checkout().join("deploy/base/admission.yaml");
    let shipped = std::fs::read_to_string(path).unwrap();
    assert!(
        shipped == text(CONTROLLER_USER).unwrap(),
        "deploy/base/admission.yaml is out of date: run `portcullis admission --output deploy/base/admission.yaml`"
    );
}

const REQUESTER: &str = "203.0.113.7";
const BINDING: &str = "validatingadmissionpolicybinding/portcullis-requests";

/// What admission did not vouch for opens nothing; what is open goes on; an interval outlives the controller, and not
/// its marker.
#[tokio::test(flavor = "multi_thread")]
async fn while_a_guard_is_away_nothing_opens_and_what_was_asked_then_is_void() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("before", "web-1", "web-1", 22, REQUESTER, "10m").await;
    play.reaches("jitreq/before", "/status/state", "Active").await;
    let binding = play.admin.run(&["get", BINDING, "-o", "yaml"]).await.unwrap();
    let shipped: String = binding
        .lines()
        .filter(|line| !line.contains("resourceVersion:"))
        .fold(String::new(), |text, line| text + line + "\n");

    // Deleted, narrowed to some namespaces, or turned into a mere warning: each while the controller looks on.
    for (number, patch) in [
        None,
        Some(r#"{"spec":{"matchResources":{"namespaceSelector":{"matchLabels":{"some":"label"}}}}}"#),
        Some(r#"{"spec":{"validationActions":["Audit"]}}"#),
    ]
    .into_iter()
    .enumerate()
    {
        match patch {
            None => play.admin.run(&["delete", BINDING]).await.unwrap(),
            Some(patch) => play.admin.run(&["patch", BINDING, "--type=merge", "-p", patch]).await.unwrap(),
        };
        let (name, source) = (format!("meanwhile-{number}"), format!("198.51.100.{number}"));
        play.request(&name, "web-1", "web-1", 22, &source, "10m").await;
        let request = format!("jitreq/{name}");
        assert_eq!(play.condition(&request, "Stalled", "True").await, "AdmissionNotEnforced");
        assert!(!play.passes(&source, "web-1", 22).await);
        assert!(play.passes(REQUESTER, "web-1", 22).await, "what is open goes on");
        play.admin.run(&["delete", BINDING, "--ignore-not-found"]).await.unwrap();
        play.admin.apply(&shipped).await.unwrap();
        let request = play.reaches(&request, "/status/state", "Void").await;
        assert!(request["status"]["conditions"].to_string().contains("create the request again"));
    }

    // And while it is down: taken away and put back, with a request in between.
    controller.kill();
    play.admin.run(&["delete", BINDING]).await.unwrap();
    play.request("in-the-dark", "web-1", "web-1", 22, "198.51.100.23", "10m").await;
    play.admin.apply(&shipped).await.unwrap();
    controller.restart().await.unwrap();
    play.reaches("jitreq/in-the-dark", "/status/state", "Void").await;
    assert!(!play.passes("198.51.100.23", "web-1", 22).await);

    // A restart voids nothing by itself; without its marker, the interval is another.
    let mut spec = play.one_machine("win-1");
    spec["approval"] = json!({"required": 1});
    play.policy("win-1", &spec).await;
    play.condition("jitpol/win-1", "Ready", "True").await;
    play.request("waits", "win-1", "win-1", 3389, REQUESTER, "10m").await;
    assert_eq!(play.condition("jitreq/waits", "Approved", "False").await, "WaitingForApproval");
    controller.restart().await.unwrap();
    play.request("after", "web-1", "web-1", 22, "198.51.100.24", "10m").await;
    play.reaches("jitreq/after", "/status/state", "Active").await;
    assert_eq!(play.get("jitreq/waits").await.unwrap()["status"]["state"], "Pending");
    play.admin
        .run(&["-n", install::CONTROLLER.0, "delete", "configmap", "portcullis-admission"])
        .await
        .unwrap();
    play.reaches("jitreq/waits", "/status/state", "Void").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await && play.passes("198.51.100.24", "web-1", 22).await);
}

const REQUESTS: &str = "jitaccessrequests.jit.portcullis.io";

/// What the API server would drop from a status is not written down: nothing may be opened then.
#[tokio::test(flavor = "multi_thread")]
async fn under_definitions_of_an_older_version_ports_are_locked_and_none_is_opened() {
    let play = Play::new().await;
    let shipped = play.admin.json(&["crd", REQUESTS]).await.unwrap();
    let mut older = shipped.clone();
    let status = "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties";
    older.pointer_mut(status).unwrap().as_object_mut().unwrap().remove("rules").unwrap();
    let put = async |definition: &serde_json::Value| {
        let mut definition = definition.clone();
        definition["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        play.admin.output(&["replace", "-f", "-"], Some(&definition.to_string())).await.unwrap()
    };
    let mut controller = play.controller().await;
    controller.kill();
    assert_eq!(put(&older).await.code, 0);
    controller.restart_unready().unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    assert_eq!(play.condition("jitpol/web-1", "LockdownEffective", "True").await, "Configured");
    assert_eq!(play.condition("jitpol/web-1", "Stalled", "True").await, "AdmissionNotEnforced");
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "10m").await;
    assert_eq!(play.condition("jitreq/mine", "Stalled", "True").await, "AdmissionNotEnforced");
    let said = play.get("jitreq/mine").await.unwrap()["status"]["conditions"].to_string();
    assert!(
        said.contains(
            "they lack JitAccessRequest.status.rules, which would be lost; apply those of this version"
        ),
        "{said}"
    );
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    // Nobody has to ask again.
    assert_eq!(put(&shipped).await.code, 0);
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    drop(controller);
}
