//! A user who asks without end: others get their turn, limits hold, memory is bounded, and the stop button works.

use std::time::{Duration, Instant};

use futures::StreamExt;
use jiff::Timestamp;
use portcullis_harness::{Controller, Kubectl, User, eventually, install};
use serde_json::{Value, json};

use crate::ground::condition;
use crate::walk::Play;

/// Requests that are made at once.
const AT_ONCE: usize = 16;
/// Live grants that one person may hold, as the policy says.
const LIMIT: usize = 3;
const OTHERS: &str = "team-fleet";
/// What the controller may take for each request that waits, all told, in bytes.
const EACH: u64 = 64 << 10;

/// How many: a thousand take about half a minute; `PORTCULLIS_FLOOD=10000` takes more.
fn many() -> u32 {
    std::env::var("PORTCULLIS_FLOOD").ok().and_then(|text| text.parse().ok()).unwrap_or(1000)
}

fn source(number: u32) -> String {
    std::net::Ipv4Addr::from(u32::from_be_bytes([100, 64, 0, 0]) + number).to_string()
}

fn request(namespace: &str, name: &str, policy: &str, source: &str) -> Value {
    json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "policyRef": {"name": policy}, "targets": [{"name": policy}], "duration": "1h",
            "ports": [{"port": 22, "sources": [{"cidr": format!("{source}/32")}]}],
        },
    })
}

/// Resident memory of a process in bytes.
fn memory(id: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{id}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

impl Play {
    /// Sends the flood as one user, by plain HTTP.
    async fn flood(&self, numbers: std::ops::Range<u32>) {
        let pem = std::fs::read(self.stage.plane.certificate_authority()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).unwrap())
            .no_proxy()
            .build()
            .unwrap();
        let path = format!(
            "{}/apis/jit.portcullis.io/v1alpha1/namespaces/{}/jitaccessrequests",
            self.stage.plane.server(),
            install::NAMESPACE
        );
        let token = self.stage.plane.token(User::Developer);
        futures::stream::iter(numbers)
            .for_each_concurrent(AT_ONCE, |number| {
                let body = request(install::NAMESPACE, &format!("flood-{number}"), "web-1", &source(number));
                let send = client.post(&path).bearer_auth(token).json(&body).send();
                async move {
                    let answer = send.await.unwrap();
                    // Read to its end: answers that are dropped cost the connection.
                    let (code, said) = (answer.status(), answer.text().await.unwrap());
                    assert_eq!(code, 201, "{said}");
                }
            })
            .await;
    }

    /// The requests of the flood, once some of them are answered: reading ten thousand keeps everybody busy.
    async fn floating(&self, many: u32) -> anyhow::Result<Vec<Value>> {
        let path =
            format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{}/jitaccessrequests", install::NAMESPACE);
        let read = async |path: &str| self.stage.plane.request(reqwest::Method::GET, path, None).await;
        for part in 1..=10 {
            let one = read(&format!("{path}/flood-{}", many * part / 10 - 1)).await?;
            anyhow::ensure!(answered(&one), "flood-{} is not told why it waits", many * part / 10 - 1);
        }
        let mut all = read(&path).await?["items"].as_array().unwrap().clone();
        all.retain(|found| found["metadata"]["name"] != "first");
        Ok(all)
    }
}

/// Whether a request was granted, or is told why it waits.
fn answered(request: &Value) -> bool {
    request["status"]["grantedAt"].is_string() || condition(request, "Active")["reason"] == "LimitReached"
}

/// How long somebody else's request takes from its creation to a packet that passes.
async fn turn(play: &Play, other: &Kubectl, name: &str, source: &str) -> Duration {
    let begun = Instant::now();
    other.apply(&request(OTHERS, name, "fleet-1", source).to_string()).await.unwrap();
    eventually(&format!("{name} has its turn"), Duration::from_secs(60), || async {
        anyhow::ensure!(play.passes(source, "fleet-1", 22).await, "not yet");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    begun.elapsed()
}

/// How long it takes from an approver's word against a live grant until its packets stop.
async fn revocation(play: &Play) -> Duration {
    let begun = Instant::now();
    play.review(User::Approver, "first", "web-1", "Revoked").await;
    eventually("what was revoked is closed", Duration::from_secs(60), || async {
        anyhow::ensure!(!play.passes("203.0.113.7", "web-1", 22).await, "still open");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    begun.elapsed()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_who_asks_without_end_gets_no_more_than_the_limit_and_keeps_nobody_waiting() {
    let play = Play::new().await;
    let world = &play.stage.world;
    let mut setup = play.stage.setup().await.unwrap();
    let mine = json!({"name": install::NAMESPACE, "scopes": [world.group("web")], "credential": "default"});
    let theirs = json!({"name": OTHERS, "scopes": [world.group("fleet")], "credential": "default"});
    setup.config["namespaces"] = json!([mine, theirs]);
    install::grant_access(&play.stage.plane, OTHERS).await.unwrap();
    let controller = Controller::start(setup).await.unwrap();
    for (namespace, machine) in [(install::NAMESPACE, "web-1"), (OTHERS, "fleet-1")] {
        let mut spec = play.one_machine(machine);
        spec["limits"] = json!({"activePerRequester": LIMIT});
        let policy = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy",
            "metadata": {"name": machine, "namespace": namespace}, "spec": spec,
        });
        play.admin.apply(&policy.to_string()).await.unwrap();
        let object = format!("jitpol/{machine}");
        let wait = ["-n", namespace, "wait", &object, "--for=condition=Ready", "--timeout=60s"];
        play.admin.run(&wait).await.unwrap();
    }
    let locked = Timestamp::now();
    let (many, before) = (many(), memory(controller.id()));
    let other = play.stage.plane.kubectl(User::Developer2).unwrap();

    play.request("first", "web-1", "web-1", 22, "203.0.113.7", "1h").await;
    play.reaches("jitreq/first", "/status/state", "Active").await;

    let begun = Instant::now();
    play.flood(0..many / 2).await;
    let (during, revoked, ()) = tokio::join!(
        turn(&play, &other, "during", "203.0.113.8"),
        revocation(&play),
        play.flood(many / 2..many)
    );
    let flooded = begun.elapsed();
    let after = turn(&play, &other, "after", "203.0.113.9").await;
    // Every one is answered: granted, or told why it waits.
    let patience = Duration::from_secs(60 + u64::from(many) / 15);
    let answered = eventually("every request is answered", patience, || async {
        let all = play.floating(many).await?;
        let live: Vec<_> = all.iter().filter(|found| found["status"]["grantedAt"].is_string()).collect();
        anyhow::ensure!(all.len() == many as usize && live.len() <= LIMIT, "{} live", live.len());
        let untold = all.iter().filter(|found| !answered(found)).count();
        anyhow::ensure!(untold == 0, "{untold} are not told why they wait");
        anyhow::ensure!(live.iter().all(|found| found["status"]["state"] == "Active"), "not all are open");
        Ok::<_, anyhow::Error>(begun.elapsed())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}"));
    let mut open = 0;
    for number in 0..many {
        open += usize::from(play.passes(&source(number), "web-1", 22).await);
    }
    assert_eq!(open, LIMIT);
    assert!(!play.passes("198.51.100.23", "web-1", 22).await);
    let grown = memory(controller.id()).saturating_sub(before);
    println!(
        "{many} requests in {flooded:.1?}, all answered after {answered:.1?}; another user had a turn in {during:.1?} and \
         {after:.1?}; a grant was revoked in {revoked:.1?}; the controller grew by {} kB from {} kB",
        grown >> 10,
        before >> 10
    );
    // Not faster than the pace, or others would have waited for it on a slower machine.
    let least = Duration::from_millis(40) * many.saturating_sub(60);
    assert!(answered >= least, "{answered:?}: one user had the controller for themselves");
    assert!(grown < (64 << 20) + u64::from(many) * EACH, "{grown} bytes for {many} requests");

    // The stop button works at once, however many wait.
    play.admin
        .run(&[
            "-n",
            install::NAMESPACE,
            "patch",
            "jitpol",
            "web-1",
            "--type=merge",
            "-p",
            r#"{"spec":{"suspend":true}}"#,
        ])
        .await
        .unwrap();
    let pressed = Instant::now();
    eventually("nothing is open", Duration::from_secs(60), || async {
        let id = world.nsg("web", "web-1");
        let read = play.stage.simulator.get(&id).await?;
        let rules = read["properties"]["securityRules"].as_array().unwrap();
        let ours = |rule: &&Value| {
            rule["name"].as_str().unwrap().contains("-allow-") && rule["properties"]["access"] == "Allow"
        };
        let allows = rules.iter().filter(|rule| rule["name"].as_str().unwrap().starts_with("portcullis-"));
        anyhow::ensure!(allows.filter(ours).count() == 0, "still open");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    println!("closed {:.1?} after the stop button", pressed.elapsed());
    assert!(play.passes("203.0.113.8", "fleet-1", 22).await, "the other team goes on");
    assert_eq!(play.exposed("198.51.100.23", "web-1", 22, locked).await, []);
}
