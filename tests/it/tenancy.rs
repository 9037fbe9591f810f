//! Which machines a namespace reaches: no others, whatever its neighbours' networks look like.

use std::time::Duration;

use portcullis_harness::controller::Setup;
use portcullis_harness::{Controller, World, eventually, install};
use reqwest::Method;
use serde_json::{Value, json};

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

const THEIRS: &str = "team-data";

/// A second Azure tenant, with an identity of its own that the first refuses and a world of its own; and a controller's
/// setup that knows both.
async fn two_tenants(play: &Play) -> (World, Setup) {
    const TENANT: &str = "22222222-aaaa-bbbb-cccc-000000000002";
    const CLIENT: &str = "22222222-aaaa-bbbb-cccc-00000000000c";
    const SUBSCRIPTION: &str = "22222222-aaaa-bbbb-cccc-0000000000ff";
    let simulator = &play.stage.simulator;
    let add =
        async |what: &str, body: Value| simulator.control(Method::POST, what, Some(&body)).await.unwrap();
    // Built before it is given away: only the other tenant's application reaches it from then on.
    add("subscriptions", json!({"subscriptionId": SUBSCRIPTION})).await;
    let theirs = World::create_in(simulator, SUBSCRIPTION).await.unwrap();
    add("subscriptions", json!({"subscriptionId": SUBSCRIPTION, "tenant": TENANT})).await;
    add("principals", json!({"clientId": CLIENT, "tenant": TENANT, "secrets": ["theirs"]})).await;
    let their_web = theirs.machine("web-1").unwrap();
    assert!(simulator.get(&their_web.id).await.is_err(), "else the credentials prove nothing");

    let mut setup = play.stage.setup().await.unwrap();
    let secret = setup.folder.join("theirs");
    std::fs::write(&secret, "theirs").unwrap();
    let list =
        |config: &mut Value, field: &str, more: Value| config[field].as_array_mut().unwrap().push(more);
    let identity = json!({"tenantId": TENANT, "clientId": CLIENT, "secretFile": secret});
    list(&mut setup.config, "credentials", json!({"name": "theirs", "clientSecret": identity}));
    let scopes = json!([format!("/subscriptions/{SUBSCRIPTION}")]);
    list(&mut setup.config, "namespaces", json!({"name": THEIRS, "scopes": scopes, "credential": "theirs"}));
    (theirs, setup)
}

/// What was opened under the old mapping is closed, by the credential that can, though the namespace has another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_that_is_mapped_elsewhere_leaves_nothing_open_behind() {
    let play = Play::new().await;
    let (_, mut setup) = two_tenants(&play).await;
    setup.config["sweepInterval"] = json!("2s");
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    controller.kill();
    // The namespace gets what was the other's; nothing that is mapped reaches the old subscription any more.
    let namespaces = controller.setup().config["namespaces"].as_array_mut().unwrap();
    namespaces.remove(0);
    namespaces[0]["name"] = json!(install::NAMESPACE);
    controller.restart().await.unwrap();
    eventually("what was open is closed", Duration::from_secs(60), || async {
        let request = play.get("jitreq/mine").await?;
        anyhow::ensure!(!play.passes(REQUESTER, "web-1", 22).await, "open: {:#}", request["status"]);
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}"));
    let request = play.reaches("jitreq/mine", "/status/settled", "Some(Bool(true))").await;
    assert_eq!(request["status"]["state"], "Revoked");
    assert!(controller.stop().await.unwrap().success());
}

/// Two Azure tenants, each with an identity of its own that the other refuses, and machines with equal addresses.
#[tokio::test(flavor = "multi_thread")]
async fn one_cluster_serves_two_tenants_and_neither_reaches_the_others_machines() {
    let play = Play::new().await;
    let simulator = &play.stage.simulator;
    let (theirs, setup) = two_tenants(&play).await;
    let their_web = theirs.machine("web-1").unwrap();
    install::grant_access(&play.stage.plane, THEIRS).await.unwrap();
    let _controller = Controller::start(setup).await.unwrap();

    let policy = |namespace: &str, id: &str| {
        json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy",
            "metadata": {"name": "web-1", "namespace": namespace},
            "spec": {"targets": [{"name": "web-1", "azureVirtualMachine": {"id": id}}]},
        })
    };
    let open = async |world: &World| {
        let address = world.machine("web-1").unwrap().public_address.clone().unwrap();
        simulator.probe(REQUESTER, &address, 22, "Tcp").await.unwrap().allowed
    };
    // Each may ask for the other's machine, in whatever case, and gets neither lock nor grant.
    let stolen = their_web.id.to_uppercase().replace("/SUBSCRIPTIONS", "/subscriptions");
    play.admin.apply(&policy(install::NAMESPACE, &stolen).to_string()).await.unwrap();
    assert_eq!(play.condition("jitpol/web-1", "Stalled", "True").await, "ScopeNotAllowed");
    assert!(open(&theirs).await, "not even locked");

    for (namespace, world) in [(install::NAMESPACE, &play.stage.world), (THEIRS, &theirs)] {
        let own = &world.machine("web-1").unwrap().id;
        play.admin.apply(&policy(namespace, own).to_string()).await.unwrap();
        let wait = ["-n", namespace, "wait", "jitpol/web-1", "--for=condition=Ready", "--timeout=45s"];
        play.admin.run(&wait).await.unwrap();
    }
    assert!(!open(&theirs).await && !open(&play.stage.world).await);
    play.request("ours", "web-1", "web-1", 22, REQUESTER, "10m").await;
    play.reaches("jitreq/ours", "/status/state", "Active").await;
    assert!(open(&play.stage.world).await);
    assert!(!open(&theirs).await, "their machine has the same private address and is another");
}
