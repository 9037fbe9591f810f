//! A policy that has not said yet what it wants locked, after a start: its lock stands as it stood. Packets decide.

use std::time::Duration;

use jiff::Timestamp;
use portcullis_harness::Controller;
use reqwest::Method;
use serde_json::{Value, json};

use crate::ground::hurry;
use crate::walk::Play;

const OFFICE: &str = "198.51.100.23";

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_past_the_lock_of_a_policy_that_cannot_be_read_after_a_start() {
    let play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    setup.config["allowedExemptSources"] = json!([{"cidr": "198.51.100.0/24"}]);
    let mut controller = Controller::start(setup).await.unwrap();
    let entry = |machine: &str| play.one_machine(machine)["targets"][0].clone();
    play.policy("strict", &json!({"targets": [entry("web-1"), entry("fleet-1")]})).await;
    play.condition("jitpol/strict", "Ready", "True").await;
    let exempts = json!([{"cidr": "198.51.100.0/24"}]);
    let open: Value =
        json!({"targets": [entry("web-1"), entry("win-1")], "enforcement": {"exemptSources": exempts}});
    play.policy("open", &open).await;
    play.condition("jitpol/open", "Ready", "True").await;
    assert!(!play.passes(OFFICE, "web-1", 22).await, "one of two exempts it");
    assert!(play.passes(OFFICE, "win-1", 3389).await, "else the test proves nothing");

    let locked = Timestamp::now();
    controller.kill();
    let unread = json!([{"name": "unread", "method": "GET", "path": "/virtualMachines/fleet-1",
        "effect": {"status": {"status": 503}}}]);
    play.stage.simulator.control(Method::POST, "faults", Some(&unread)).await.unwrap();
    controller.restart().await.unwrap();
    assert_eq!(play.condition("jitpol/strict", "Ready", "False").await, "CloudUnavailable");
    // The other one has been heard: what is looked at each few seconds has been looked at, and its grants open.
    tokio::time::sleep(Duration::from_secs(10)).await;
    play.request("mine", "open", "win-1", 3389, "203.0.113.7", "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert_eq!(play.exposed(OFFICE, "web-1", 22, locked).await, []);
    let faults = play.stage.simulator.control(Method::GET, "faults", None).await.unwrap();
    assert_ne!(faults[0]["struck"], 0, "else the test proves nothing");

    play.stage.simulator.control(Method::DELETE, "faults", None).await.unwrap();
    for policy in ["jitpol/strict", "jitpol/open"] {
        play.condition(policy, "Ready", "True").await;
    }
    assert_eq!(play.exposed(OFFICE, "web-1", 22, locked).await, []);
    assert!(play.passes(OFFICE, "win-1", 3389).await, "as before");
    // Once it is gone, its lock holds up nobody.
    play.admin
        .run(&["-n", portcullis_harness::install::NAMESPACE, "delete", "jitpol", "strict"])
        .await
        .unwrap();
    portcullis_harness::eventually("the other one's exemption holds", Duration::from_secs(60), || async {
        anyhow::ensure!(play.passes(OFFICE, "web-1", 22).await, "it does not");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
}
