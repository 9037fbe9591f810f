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
