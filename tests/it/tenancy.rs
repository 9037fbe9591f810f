//! Which machines a namespace reaches: no others, whatever its neighbours' networks look like.

use std::time::Duration;

use portcullis_harness::{Controller, eventually};
use serde_json::json;

use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";

#[tokio::test(flavor = "multi_thread")]
async fn a_group_that_also_filters_equal_addresses_of_another_network_opens_neither() {
    let play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    setup.config["addressInterval"] = json!("1s");
    setup.config["inventoryInterval"] = json!("1s");
    let _controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("before", "web-1", "web-1", 22, REQUESTER, "10m").await;
    play.reaches("jitreq/before", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);

    // Another team's network, which knows nothing of this one, is given the same group and has the same addresses.
    let world = &play.stage.world;
    let annex = world.network().replace("/estate", "/annex");
    let body = json!({"location": "westeurope", "properties": {
        "addressSpace": {"addressPrefixes": ["10.1.0.0/16"]},
        "subnets": [{"name": "theirs", "properties": {
            "addressPrefix": "10.1.1.0/24",
            "networkSecurityGroup": {"id": world.nsg("web", "web-subnet")},
        }}],
    }});
    play.stage.simulator.put(&annex, &body).await.unwrap();
    let request = play.reaches("jitreq/before", "/status/state", "Revoked").await;
    let text = request["status"]["conditions"].to_string();
    assert!(text.contains("annex") && text.contains("group of its own"), "{text}");
    assert!(!play.passes(REQUESTER, "web-1", 22).await);

    play.request("after", "web-1", "web-1", 22, REQUESTER, "10m").await;
    play.reaches("jitreq/after", "/status/state", "Failed").await;
    assert_eq!(play.condition("jitreq/after", "Active", "False").await, "AddressNotUnique");
    assert!(!play.passes(REQUESTER, "web-1", 22).await);

    // With the addresses its own again, nothing stands in the way.
    play.stage.simulator.delete(&annex).await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    play.request("again", "web-1", "web-1", 22, REQUESTER, "10m").await;
    play.reaches("jitreq/again", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
}

/// A machine may be a scope of its own: its namespace reaches it and nothing beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_with_one_machine_as_its_scope_reaches_that_machine_alone() {
    let play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    let id = play.stage.world.machine("web-1").unwrap().id.clone();
    setup.config["namespaces"][0]["scopes"] =
        json!([id.to_uppercase().replace("/SUBSCRIPTIONS", "/subscriptions")]);
    setup.config["sweepInterval"] = json!("1s");
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.policy("win-1", &play.one_machine("win-1")).await;
    assert_eq!(play.condition("jitpol/win-1", "Stalled", "True").await, "ScopeNotAllowed");
    let group = play.stage.world.group("web");
    play.policy("group", &json!({"targets": [{"name": "all", "azureScope": {"id": group}}]})).await;
    assert_eq!(play.condition("jitpol/group", "Stalled", "True").await, "ScopeNotAllowed");
    assert!(play.passes(REQUESTER, "win-1", 3389).await, "what is not reached is not locked either");

    // The sweep finds orphans on the way to a machine that is a scope.
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "10m").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    controller.kill();
    play.tear_out("mine").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    controller.restart().await.unwrap();
    eventually("the orphans are closed", Duration::from_secs(30), || async {
        anyhow::ensure!(!play.passes(REQUESTER, "web-1", 22).await, "still open");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
}
