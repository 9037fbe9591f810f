//! An API server that cannot be heard and scopes that answer slowly: neither holds up a close. Packets decide.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis::plan::names::{Cluster, description};
use portcullis_harness::controller::Setup;
use portcullis_harness::{Controller, Proxy, eventually, install};
use reqwest::Method;
use serde_json::json;

use crate::audit::{of_kind, records};
use crate::walk::{Play, moment};

const REQUESTER: &str = "203.0.113.7";

/// A controller's setup with a way to the API server that can fall silent.
async fn through_proxy(play: &Play) -> (Proxy, Setup) {
    let proxy = Proxy::start(play.stage.plane.server().trim_start_matches("https://")).await.unwrap();
    let mut setup = play.stage.setup().await.unwrap();
    setup.kubeconfig = proxy.kubeconfig(&setup.kubeconfig).unwrap();
    setup.config["sweepInterval"] = json!("2s");
    (proxy, setup)
}

impl Play {
    /// Writes an allow of this cluster that no request knows of, and lets SSH in to a machine by it.
    async fn stray_allow(&self, name: &str, machine: &str, deadline: Timestamp) {
        let nsg = machine;
        let machine = self.stage.world.machine(machine).unwrap();
        let cluster = Cluster::new("playground", &[]);
        let owner = "99999999-1111-4222-8333-444444444444";
        let properties = json!({
            "description": description(&cluster, owner, Some(deadline)),
            "direction": "Inbound", "access": "Allow", "priority": 150, "protocol": "Tcp",
            "sourceAddressPrefix": format!("{REQUESTER}/32"), "sourcePortRange": "*",
            "destinationAddressPrefix": machine.private_address, "destinationPortRange": "22",
        });
        self.write_rule("web", nsg, name, &properties).await;
    }

    async fn gets_in(&self, machine: &str) -> bool {
        let address = &self.stage.world.machine(machine).unwrap().private_address;
        self.stage.simulator.probe(REQUESTER, address, 22, "Tcp").await.unwrap().allowed
    }
}

/// As a NAT does it: what is connected hears nothing any more, and nothing says so.
#[tokio::test(flavor = "multi_thread")]
async fn connections_that_were_forgotten_on_the_way_hold_up_no_close() {
    let play = Play::new().await;
    let (proxy, setup) = through_proxy(&play).await;
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    proxy.forget();
    play.developer
        .run(&["-n", install::NAMESPACE, "delete", "jitreq", "mine", "--wait=false"])
        .await
        .unwrap();
    // Watches are given up after 35 s, idle connections after 45 s, calls after 15 s.
    play.until_shut("web-1", Duration::from_secs(120)).await;
    // And everything works as before.
    eventually("the object is gone", Duration::from_secs(60), || async {
        let left = ["-n", install::NAMESPACE, "get", "jitreq", "mine", "--ignore-not-found"];
        let left = play.admin.run(&left).await?;
        anyhow::ensure!(left.trim().is_empty(), "{left}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", controller.log_text().unwrap()));
    play.request("again", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/again", "/status/state", "Active").await;
    assert!(controller.stop().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_controller_that_starts_without_an_api_server_sweeps_again_and_again() {
    let play = Play::new().await;
    let (proxy, setup) = through_proxy(&play).await;
    let probes = setup.probes.clone();
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "30s").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    // Taken away between the grant and its deadline: nobody has told the next one of it.
    controller.kill();
    proxy.silence();
    controller.restart_unready().unwrap();
    let left = moment(&request, "/status/expiresAt").duration_since(Timestamp::now());
    assert!(play.passes(REQUESTER, "web-1", 22).await, "else the test proves nothing");
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
    play.until_shut("web-1", Duration::from_secs(20)).await;
    // By now the first list of the requests hangs. On a firewall that no gate has, only a sweep finds anything.
    for name in ["innocent", "harmless"] {
        play.stray_allow(name, "win-1", Timestamp::now() - SignedDuration::from_secs(1)).await;
        assert!(play.gets_in("win-1").await, "else the test proves nothing");
        play.until_shut("win-1", Duration::from_secs(20)).await;
    }
    let url = format!("http://{probes}/healthz");
    let answer = reqwest::Client::builder().no_proxy().build().unwrap().get(url).send().await.unwrap();
    assert_eq!(answer.status(), 200, "an API server that is away is no reason to start again");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_answers_slowly_holds_up_no_other() {
    let play = Play::new().await;
    let world = &play.stage.world;
    let mut setup = play.stage.setup().await.unwrap();
    setup.config["sweepInterval"] = json!("2s");
    // In the order of the names the slow one comes first.
    setup.config["namespaces"] = json!([
        {"name": "a-slow-team", "scopes": [world.group("fleet")], "credential": "default"},
        {"name": install::NAMESPACE, "scopes": [world.group("web")], "credential": "default"},
    ]);
    let slow = json!([{"name": "slow", "method": "GET", "path": "/resourceGroups/fleet/.*/networkSecurityGroups$",
        "effect": {"delay": "300s"}}]);
    play.stage.simulator.control(Method::POST, "faults", Some(&slow)).await.unwrap();
    play.stray_allow("innocent", "win-1", Timestamp::now() - SignedDuration::from_secs(1)).await;
    assert!(play.gets_in("win-1").await, "else the test proves nothing");
    let controller = Controller::start_unready(setup).unwrap();
    // The slow scope is given up after 45 s and tried again.
    let soon = Duration::from_secs(30);
    play.until_shut("win-1", soon).await;
    // What is not overdue is judged by the requests, and that waits for no slow scope either.
    play.stray_allow("harmless", "win-1", Timestamp::now() + SignedDuration::from_hours(1)).await;
    assert!(play.gets_in("win-1").await, "else the test proves nothing");
    play.until_shut("win-1", soon).await;
    let faults = play.stage.simulator.control(Method::GET, "faults", None).await.unwrap().to_string();
    assert!(faults.contains(r#""struck":"#) && !faults.contains(r#""struck":0"#), "{faults}");
    let metrics = controller.metrics().await.unwrap();
    assert!(
        !metrics.contains(r#"sweeps_total{result="complete"}"#),
        "the slow one was never read: {metrics}"
    );
}

/// A status write that was committed and whose answer was lost is told all the same, once, and nothing untrue.
#[tokio::test(flavor = "multi_thread")]
async fn what_became_of_a_grant_is_told_though_the_answer_to_its_status_was_lost() {
    let play = Play::new().await;
    let (proxy, setup) = through_proxy(&play).await;
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "30s").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    let left = moment(&request, "/status/expiresAt").duration_since(Timestamp::now());
    let left = Duration::try_from(left).unwrap_or_default();
    tokio::time::sleep(left.saturating_sub(Duration::from_millis(300))).await;
    proxy.lose_answers();
    play.until_shut("web-1", Duration::from_secs(20)).await;
    eventually("it is settled", Duration::from_secs(150), || async {
        let request = play.get("jitreq/mine").await?;
        anyhow::ensure!(request["status"]["settled"] == true, "{:#}", request["status"]);
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}"));
    assert!(controller.stop().await.unwrap().success());
    let log = controller.log_text().unwrap();
    assert!(log.contains("did not answer within 15 s"), "else the test proves nothing");
    let records = records(&log);
    let kinds: Vec<&str> = records
        .iter()
        .filter(|record| record["request"]["name"] == "mine")
        .map(|record| record["kind"].as_str().unwrap())
        .collect();
    assert_eq!(kinds, ["Requested", "Approved", "Granted", "Opened", "Ending", "Closed"], "{kinds:?}");
    let ending = of_kind(&records, "Ending")[0];
    assert_eq!(ending["request"]["reason"], "Expired");
    assert!(ending["request"]["message"].as_str().unwrap().contains("told late"), "{ending:#}");
}
