//! What is left of the promise when the ground goes: definitions that are deleted under it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::eventually;

use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.23";

/// With the definition go the objects, and each of them ends its grant; the locks stay.
#[tokio::test(flavor = "multi_thread")]
async fn definitions_that_are_deleted_close_what_is_open_and_unlock_nothing() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    let locked = Timestamp::now();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    let deleted = Timestamp::now();
    let definitions = ["jitpolicies", "jitaccessrequests", "jitaccessreviews"]
        .map(|kind| format!("{kind}.jit.portcullis.io"));
    let mut arguments = vec!["delete", "crd", "--wait=false"];
    arguments.extend(definitions.iter().map(String::as_str));
    play.admin.run(&arguments).await.unwrap();
    eventually("the packets stop", Duration::from_secs(30), || async {
        anyhow::ensure!(!play.passes(REQUESTER, "web-1", 22).await, "they pass");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", controller.log_text().unwrap()));
    eventually("the definitions are gone", Duration::from_secs(60), || async {
        let left = play.admin.run(&["get", "crd", "-o", "name"]).await?;
        anyhow::ensure!(!left.contains("jit.portcullis.io"), "{left}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", controller.log_text().unwrap()));
    let open = play.exposed(REQUESTER, "web-1", 22, locked).await;
    let late = open.last().unwrap().1.unwrap().duration_since(deleted);
    assert!(late < SignedDuration::from_secs(20), "{late:#}");
    // Nobody asked for the lock to go. And the program lives.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(
        play.exposed(STRANGER, "web-1", 22, Timestamp::now() - SignedDuration::from_secs(5)).await,
        []
    );
    assert!(controller.ended().unwrap().is_none(), "{}", controller.log_text().unwrap());
    let metrics = controller.metrics().await.unwrap();
    let told = |line: &str| line.starts_with("rest_client_requests_total{code=\"404\"");
    assert!(metrics.lines().any(told), "{metrics}");
    // It goes on with those that come back, and is not started again.
    let crds = portcullis_harness::checkout().join("crds");
    portcullis_harness::install::apply_folder(&play.stage.plane, &crds).await.unwrap();
    eventually("the definitions are established", Duration::from_secs(60), || async {
        play.admin.run(&["get", "jitpol,jitreq,jitrev", "-A"]).await
    })
    .await
    .unwrap();
    play.policy("again", &play.one_machine("web-1")).await;
    play.condition("jitpol/again", "Ready", "True").await;
    play.request("again", "again", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/again", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    assert!(controller.stop().await.unwrap().success());
}
