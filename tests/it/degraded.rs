//! What is left of the promise when the ground goes: definitions that are deleted under it, a cloud that lets nobody
//! read or write for a while, or answers slowly.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::{Controller, eventually, install};
use reqwest::Method;
use serde_json::json;

use crate::ground::hurry;
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

/// A controller with short intervals, and a machine that it has locked.
async fn locking(play: &Play) -> Controller {
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    let controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    controller
}

/// Reads and writes are told to come again in half a minute; removals have a budget of their own, as Azure has it.
#[tokio::test(flavor = "multi_thread")]
async fn a_cloud_that_throttles_holds_up_no_close_and_makes_nobody_unready() {
    let play = Play::new().await;
    let mut controller = locking(&play).await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    let throttled = |method: &str| {
        json!({"name": method, "method": method, "path": "/providers/Microsoft", "effect": {"status": {
            "status": 429, "code": "TooManyRequests", "retryAfter": 30}}})
    };
    let faults = json!([throttled("GET"), throttled("PUT")]);
    play.stage.simulator.control(Method::POST, "faults", Some(&faults)).await.unwrap();
    let told = async || {
        let metrics = controller.metrics().await.unwrap();
        let line =
            metrics.lines().find(|line| line.starts_with("portcullis_cloud_throttled_seconds")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    eventually("the gauge shows it", Duration::from_secs(30), || async {
        anyhow::ensure!(told().await > 0.0, "it does not");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    play.request("late", "web-1", "web-1", 22, STRANGER, "1h").await;
    play.developer
        .run(&["-n", install::NAMESPACE, "delete", "jitreq", "mine", "--wait=false"])
        .await
        .unwrap();
    // Less than the 30 s that the cloud asks to wait.
    play.until_shut("web-1", Duration::from_secs(20)).await;
    for _ in 0..10 {
        assert_eq!(
            controller.readiness().await.unwrap()["ready"],
            true,
            "throttled, it is as ready as another"
        );
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    assert!(told().await > 0.0, "else the test proves nothing");
    assert!(!play.passes(STRANGER, "web-1", 22).await, "it waits");
    play.stage.simulator.control(Method::DELETE, "faults", None).await.unwrap();
    play.reaches("jitreq/late", "/status/state", "Active").await;
    assert!(play.passes(STRANGER, "web-1", 22).await);
    assert!(controller.stop().await.unwrap().success());
}

/// What a grant rests on is read again before it, and may take longer than it may be old.
#[tokio::test(flavor = "multi_thread")]
async fn machines_that_take_longer_to_read_than_they_may_be_old_are_granted_all_the_same() {
    let play = Play::new().await;
    let mut controller = locking(&play).await;
    // More than `addressInterval`, which is 2 s here.
    let slow = json!([{"name": "slow", "method": "GET", "path": "/virtualMachines/web-1", "effect": {"delay": "4s"}}]);
    play.stage.simulator.control(Method::POST, "faults", Some(&slow)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    assert!(controller.stop().await.unwrap().success());
}
