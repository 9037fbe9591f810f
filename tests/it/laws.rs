//! Laws that a walk through the main job does not try: closing without an API server, rules that somebody copies,
//! edits or brings back, and objects that are taken away. Packets decide.

use std::process::Command;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::{Controller, Lifetime, eventually, install};
use reqwest::Method;
use serde_json::{Value, json};

use crate::walk::{Play, moment};

const REQUESTER: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.23";

impl Play {
    /// Takes a request away whole, finalizer and all, with the rights of the controller itself.
    pub(crate) async fn tear_out(&self, request: &str) {
        let (account_namespace, account) = install::CONTROLLER;
        let kubeconfig =
            self.stage.plane.service_account_kubeconfig(account_namespace, account).await.unwrap();
        let patch = r#"{"metadata":{"finalizers":null}}"#;
        let own = self.stage.plane.kubectl_with(&kubeconfig);
        own.run(&["-n", install::NAMESPACE, "patch", "jitreq", request, "--type=merge", "-p", patch])
            .await
            .unwrap();
        self.admin.run(&["-n", install::NAMESPACE, "delete", "jitreq", request]).await.unwrap();
    }

    /// A controller that sweeps and looks as often as the configuration allows.
    async fn quick_controller(&self) -> Controller {
        let mut setup = self.stage.setup().await.unwrap();
        setup.lifetime = Lifetime::Leashed;
        for interval in ["sweepInterval", "driftInterval"] {
            setup.config[interval] = json!("30s");
        }
        Controller::start(setup).await.unwrap()
    }

    /// Locks web-1 and opens it for the requester.
    async fn grant(&self, name: &str, duration: &str) -> Value {
        self.policy("web-1", &self.one_machine("web-1")).await;
        self.condition("jitpol/web-1", "Ready", "True").await;
        self.request(name, "web-1", "web-1", 22, REQUESTER, duration).await;
        let request = self.reaches(&format!("jitreq/{name}"), "/status/state", "Active").await;
        assert!(self.passes(REQUESTER, "web-1", 22).await);
        request
    }

    /// Our allows on a network security group, as ARM reads them.
    pub(crate) async fn our_allows(&self, group: &str, nsg: &str) -> Vec<Value> {
        let read = self.stage.simulator.get(&self.stage.world.nsg(group, nsg)).await.unwrap();
        let mut rules = read["properties"]["securityRules"].as_array().unwrap().clone();
        rules.retain(|rule| {
            rule["name"].as_str().unwrap().contains("-allow-") && rule["properties"]["access"] == "Allow"
        });
        rules.retain(|rule| rule["name"].as_str().unwrap().starts_with("portcullis-"));
        rules
    }

    /// Writes a rule as somebody else.
    pub(crate) async fn write_rule(&self, group: &str, nsg: &str, name: &str, properties: &Value) {
        let id = format!("{}/securityRules/{name}", self.stage.world.nsg(group, nsg));
        self.stage.simulator.put(&id, &json!({"properties": properties})).await.unwrap();
    }

    async fn until_closed(&self, source: &str, within: Duration) {
        eventually("the packets stop", within, || async {
            anyhow::ensure!(!self.passes(source, "web-1", 22).await, "they pass");
            Ok::<_, anyhow::Error>(())
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}"));
    }
}

fn signal(pids: &[u32], signal: &str) {
    for pid in pids {
        assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_grant_is_closed_at_its_deadline_while_the_api_server_does_not_answer() {
    let play = Play::new().await;
    let controller = play.controller().await;
    let request = play.grant("mine", "30s").await;
    let (locked, expires) = (Timestamp::now(), moment(&request, "/status/expiresAt"));
    let pids = play.stage.plane.process_ids();
    signal(&pids, "-STOP");
    let left = Duration::try_from(expires.duration_since(Timestamp::now())).unwrap_or_default();
    tokio::time::sleep(left + Duration::from_secs(6)).await;
    let open = play.exposed(REQUESTER, "web-1", 22, locked).await;
    signal(&pids, "-CONT");
    let closed =
        open.last().unwrap().1.unwrap_or_else(|| panic!("still open; {}", controller.log_text().unwrap()));
    assert!(
        closed.duration_since(expires) < SignedDuration::from_secs(6),
        "closed at {closed}, due at {expires}"
    );
    // When it answers again, the object tells what was done.
    play.reaches("jitreq/mine", "/status/state", "Expired").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_somebody_copies_edits_or_brings_back_does_not_outlive_its_deadline() {
    let play = Play::new().await;
    let mut controller = play.quick_controller().await;
    play.grant("mine", "30s").await;
    let ours = play.our_allows("web", "web-1").await.remove(0);
    let (name, properties) = (ours["name"].as_str().unwrap().to_owned(), ours["properties"].clone());
    let edited = |change: &dyn Fn(&mut Value)| {
        let mut copy = properties.clone();
        change(&mut copy);
        copy
    };
    // A later deadline in the description buys nothing; nor does a copy under another name, or elsewhere.
    let later = properties["description"].as_str().unwrap().replace("expires=20", "expires=21");
    play.write_rule("web", "web-1", &name, &edited(&|copy| copy["description"] = json!(later))).await;
    play.write_rule("web", "web-1", "innocent", &edited(&|copy| copy["priority"] = json!(150))).await;
    play.write_rule("web", "web-subnet", &name, &edited(&|copy| copy["priority"] = json!(151))).await;
    // What merely looks like ours in part is somebody's own.
    let foreign = edited(&|copy| {
        copy["priority"] = json!(152);
        copy["description"] = json!("portcullis please keep");
        copy["destinationPortRange"] = json!("8080");
    });
    play.write_rule("web", "web-1", "portcullis-of-bob", &foreign).await;
    let request = play.reaches("jitreq/mine", "/status/settled", "Some(Bool(true))").await;
    play.until_closed(REQUESTER, Duration::from_secs(50)).await;
    eventually("every copy is gone", Duration::from_secs(50), || async {
        for nsg in ["web-1", "web-subnet"] {
            let left = play.our_allows("web", nsg).await;
            anyhow::ensure!(left.is_empty(), "{left:?}");
        }
        let foreign = play.foreign_rules("web", "web-1").await;
        anyhow::ensure!(!foreign.iter().any(|rule| rule["name"] == "innocent"), "the renamed copy stands");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", controller.log_text().unwrap()));
    let id = format!("{}/securityRules/portcullis-of-bob", play.stage.world.nsg("web", "web-1"));
    let kept = play.stage.simulator.get(&id).await.unwrap();
    assert_eq!(kept["properties"]["description"], "portcullis please keep");

    // A foreign read-modify-write brings the closed rule back, on both firewalls, once everything is settled.
    for nsg in ["web-1", "web-subnet"] {
        play.write_rule("web", nsg, &name, &edited(&|copy| copy["priority"] = json!(101))).await;
    }
    assert!(play.passes(REQUESTER, "web-1", 22).await, "else the test proves nothing");
    play.until_closed(REQUESTER, Duration::from_secs(60)).await;
    assert_eq!(play.exposed(STRANGER, "web-1", 22, moment(&request, "/status/grantedAt")).await, []);
    assert!(controller.stop().await.unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn taking_the_objects_away_takes_nothing_but_time() {
    let play = Play::new().await;
    let mut controller = play.quick_controller().await;
    play.grant("mine", "1h").await;
    // With the namespace goes all that is in it; the finalizers hold it until the rules are gone.
    play.admin.run(&["delete", "namespace", install::NAMESPACE, "--timeout=60s"]).await.unwrap();
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    assert!(!play.passes(STRANGER, "web-1", 22).await, "the lock is retained");

    // And with the rights of the controller itself, while it is down, an object can be torn out whole.
    install::grant_access(&play.stage.plane, install::NAMESPACE).await.unwrap();
    play.grant("again", "1h").await;
    controller.kill();
    play.tear_out("again").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await, "else the test proves nothing");
    controller.restart().await.unwrap();
    play.until_closed(REQUESTER, Duration::from_secs(30)).await;
    let none: Vec<Value> = Vec::new();
    assert_eq!(play.our_allows("web", "web-1").await, none);
    let answer = play.stage.simulator.control(Method::GET, "activity?mutating=true", None).await.unwrap();
    assert!(answer.to_string().contains("DELETE"));
}
