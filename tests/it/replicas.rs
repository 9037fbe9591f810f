//! Two replicas on a real API server: one holds the lease, and whatever becomes of it, ports close and others open.

use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::wall_clock::WallClock;
use portcullis_harness::{Controller, eventually, install};
use reqwest::Method;
use serde_json::{Value, json};

use crate::walk::{Play, moment};

const REQUESTER: &str = "203.0.113.7";
const ANOTHER: &str = "203.0.113.8";
const STRANGER: &str = "198.51.100.23";

/// From the kill of the holder until another one opens, the cloud's write included.
const FAIL_OVER: Duration = Duration::from_secs(20);

impl Play {
    /// A replica, ready, whether it holds the lease or not.
    async fn replica(&self, configure: impl Fn(&mut Value)) -> Controller {
        self.replica_ahead(0, configure).await
    }

    /// One whose clock is ahead by so many seconds.
    async fn replica_ahead(&self, seconds: i64, configure: impl Fn(&mut Value)) -> Controller {
        let mut setup = self.stage.setup().await.unwrap();
        setup.awaits_admission = false;
        if seconds != 0 {
            let clock = WallClock::new(&setup.folder).unwrap();
            clock.set(seconds).unwrap();
            setup.environment = clock.environment();
        }
        for interval in ["sweepInterval", "driftInterval"] {
            setup.config[interval] = json!("5s");
        }
        configure(&mut setup.config);
        Controller::start(setup).await.unwrap()
    }

    /// Two replicas, the first of which holds the lease.
    async fn pair(&self, configure: impl Fn(&mut Value)) -> (Controller, Controller) {
        self.pair_apart(0, configure).await
    }

    /// Two, the second of which has a clock that is ahead by so many seconds.
    async fn pair_apart(&self, seconds: i64, configure: impl Fn(&mut Value)) -> (Controller, Controller) {
        let first = self.replica(&configure).await;
        until_it_holds(&first, true).await;
        let second = self.replica_ahead(seconds, &configure).await;
        first.wait_admission(Duration::from_secs(60)).await.unwrap();
        self.policy("web-1", &self.one_machine("web-1")).await;
        self.condition("jitpol/web-1", "Ready", "True").await;
        (first, second)
    }

    async fn fault(&self, fault: &Value) {
        self.stage.simulator.control(Method::POST, "faults", Some(fault)).await.unwrap();
    }
}

async fn holds(replica: &Controller) -> anyhow::Result<bool> {
    let metrics = replica.metrics().await?;
    Ok(metrics.lines().any(|line| line.starts_with("leader_election_master_status{") && line.ends_with(" 1")))
}

async fn until_it_holds(replica: &Controller, wanted: bool) {
    eventually("the role", Duration::from_secs(30), || async {
        anyhow::ensure!(holds(replica).await? == wanted, "not so yet");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", replica.log_text().unwrap()));
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_holder_dies_another_one_opens_within_20_seconds_and_a_close_waits_for_neither() {
    let play = Play::new().await;
    let (mut first, second) = play.pair(|_| {}).await;
    let locked = Timestamp::now();
    assert!(!holds(&second).await.unwrap());
    play.request("due", "web-1", "web-1", 22, ANOTHER, "30s").await;
    let due = play.reaches("jitreq/due", "/status/state", "Active").await;
    let expires = moment(&due, "/status/expiresAt");
    // So that its deadline falls into the time in which nobody is known to hold the lease.
    let left = Duration::try_from(expires.duration_since(Timestamp::now())).unwrap();
    tokio::time::sleep(left.saturating_sub(Duration::from_secs(2))).await;
    first.kill();
    let killed = Instant::now();
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    let took = killed.elapsed();
    println!("opened {took:?} after the holder was killed");
    assert!(took < FAIL_OVER, "{took:?}; {}", second.log_text().unwrap());
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    play.reaches("jitreq/due", "/status/state", "Expired").await;
    let open = play.exposed(ANOTHER, "web-1", 22, locked).await;
    let late = open.last().unwrap().1.unwrap().duration_since(expires);
    println!("closed {late:#} after its deadline");
    assert!(late < SignedDuration::from_secs(15), "{late:#}");
    assert_eq!(play.exposed(STRANGER, "web-1", 22, locked).await, []);
}

/// What the one before has left is nobody's to look for: no other sweep is due for an hour.
#[tokio::test(flavor = "multi_thread")]
async fn the_first_act_of_a_new_holder_is_a_sweep() {
    let play = Play::new().await;
    let (mut first, second) = play.pair(|config| config["sweepInterval"] = json!("1h")).await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    let mine = play.reaches("jitreq/mine", "/status/state", "Active").await;
    // The same, of a request that is not there.
    let (group, name) = (&mine["status"]["rules"][0]["firewall"], &mine["status"]["rules"][0]["name"]);
    let (group, name) = (group.as_str().unwrap(), name.as_str().unwrap());
    let mut rule = play.stage.simulator.get(&format!("{group}/securityRules/{name}")).await.unwrap();
    let own: Vec<&str> = name.split('-').collect();
    let stray = name.replacen(own[3], "0123456789ab", 1);
    assert_ne!(stray, name);
    rule["properties"]["priority"] = json!(rule["properties"]["priority"].as_u64().unwrap() + 1);
    let body = json!({"properties": rule["properties"]});
    let stray = format!("{group}/securityRules/{stray}");
    play.stage.simulator.put(&stray, &body).await.unwrap();
    first.kill();
    eventually("what is nobody's is gone", FAIL_OVER + Duration::from_secs(10), || async {
        let left = play.stage.simulator.get(&stray).await;
        anyhow::ensure!(left.is_err(), "it is still there");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", second.log_text().unwrap()));
    assert!(play.passes(REQUESTER, "web-1", 22).await, "what is somebody's stays");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_stopped_gives_the_lease_to_another_at_once() {
    let play = Play::new().await;
    let (mut first, second) = play.pair(|_| {}).await;
    assert!(first.stop().await.unwrap().success());
    let begun = Instant::now();
    until_it_holds(&second, true).await;
    assert!(begun.elapsed() < Duration::from_secs(6), "{:?}", begun.elapsed());
    let lease = play
        .admin
        .run(&["-n", "portcullis-system", "get", "lease", "portcullis", "-o", "json"])
        .await
        .unwrap();
    let lease: Value = serde_json::from_str(&lease).unwrap();
    assert_eq!(lease["spec"]["leaseTransitions"], 1, "{lease:#}");
}

/// As a node does it that hangs and comes back: what it goes on with is no longer its own to do.
#[tokio::test(flavor = "multi_thread")]
async fn a_holder_that_was_asleep_past_its_lease_finds_another_one_and_stands_by() {
    let play = Play::new().await;
    let (first, second) = play.pair(|_| {}).await;
    let locked = Timestamp::now();
    let signal = |signal: &str| {
        let done =
            std::process::Command::new("kill").args([signal, &first.id().to_string()]).status().unwrap();
        assert!(done.success());
    };
    // It is approved, and on the way to be opened, when the holder falls asleep.
    play.fault(&json!({"method": "PUT", "path": "-allow-", "count": 1, "effect": {"delay": "1s"}})).await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Opening").await;
    signal("-STOP");
    until_it_holds(&second, true).await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    play.developer
        .run(&["-n", install::NAMESPACE, "delete", "jitreq", "mine", "--wait=false"])
        .await
        .unwrap();
    play.until_shut("web-1", Duration::from_secs(20)).await;
    signal("-CONT");
    until_it_holds(&first, false).await;
    assert!(holds(&second).await.unwrap(), "{}", second.log_text().unwrap());
    // Whatever it still had in hand: nothing is open for long.
    tokio::time::sleep(Duration::from_secs(12)).await;
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    play.request("again", "web-1", "web-1", 22, ANOTHER, "30s").await;
    play.reaches("jitreq/again", "/status/state", "Expired").await;
    assert!(!play.passes(ANOTHER, "web-1", 22).await);
    assert_eq!(play.exposed(STRANGER, "web-1", 22, locked).await, []);
}

/// A write of the holder that died: it is carried out when another has long closed what it was to open.
#[tokio::test(flavor = "multi_thread")]
async fn a_write_of_a_dead_holder_that_lands_late_is_undone_and_its_request_waits_for_it() {
    a_late_write_is_undone(0).await;
}

/// By its own clock it holds the lease for longer than the write is old.
#[tokio::test(flavor = "multi_thread")]
async fn one_whose_clock_is_behind_waits_for_the_write_of_a_dead_holder_too() {
    a_late_write_is_undone(-50 * 60).await;
}

/// After the holder has died, by one whose clock is ahead by so many seconds.
async fn a_late_write_is_undone(seconds: i64) {
    let play = Play::new().await;
    let (mut first, second) =
        play.pair_apart(seconds, |config| config["unfinishedWrites"] = json!("60s")).await;
    let late = json!({"method": "PUT", "path": "-allow-", "count": 20,
        "effect": {"lateWrite": {"after": "35s", "answer": "reset"}}});
    play.fault(&late).await;
    // One group alone filters this machine: with two, each write could land and be undone before the other lands,
    // and no packet would ever tell.
    play.policy("win-1", &play.one_machine("win-1")).await;
    play.condition("jitpol/win-1", "Ready", "True").await;
    let locked = Timestamp::now();
    play.request("mine", "win-1", "win-1", 3389, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Opening").await;
    eventually("the write is sent", Duration::from_secs(20), || async {
        let faults = play.stage.simulator.control(Method::GET, "faults", None).await?;
        anyhow::ensure!(faults[0]["struck"].as_u64() >= Some(1), "{faults}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    first.kill();
    play.developer
        .run(&["-n", install::NAMESPACE, "delete", "jitreq", "mine", "--wait=false"])
        .await
        .unwrap();
    until_it_holds(&second, true).await;
    let landed = eventually("it lands", Duration::from_secs(60), || async {
        play.exposed(REQUESTER, "win-1", 3389, locked)
            .await
            .first()
            .copied()
            .ok_or_else(|| anyhow::anyhow!("not yet"))
    });
    let (landed, _) =
        landed.await.unwrap_or_else(|error| panic!("{error:#}\n{}", second.log_text().unwrap()));
    let request = play.get("jitreq/mine").await.unwrap();
    assert_eq!(request["status"]["state"], "Closing", "{request:#}");
    let closed = eventually("the packets stop", Duration::from_secs(40), || async {
        let to = play.exposed(REQUESTER, "win-1", 3389, locked).await.last().and_then(|(_, to)| *to);
        to.ok_or_else(|| anyhow::anyhow!("they pass"))
    });
    let closed = closed.await.unwrap_or_else(|error| panic!("{error:#}\n{}", second.log_text().unwrap()));
    let open = closed.duration_since(landed);
    assert!(open < SignedDuration::from_secs(45), "{open:#} after it landed");
    eventually("the request is gone", Duration::from_secs(120), || async {
        anyhow::ensure!(play.get("jitreq/mine").await.is_err(), "it is there");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", second.log_text().unwrap()));
    assert_eq!(play.our_allows("web", "win-1").await, Vec::<Value>::new());
}

/// What it has granted itself it knows the end of, however short a time ago it was started.
#[tokio::test(flavor = "multi_thread")]
async fn one_that_has_just_started_does_not_wait_for_writes_of_its_own() {
    let play = Play::new().await;
    let first = play.replica(|config| config["unfinishedWrites"] = json!("15m")).await;
    first.wait_admission(Duration::from_secs(60)).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    play.developer
        .run(&["-n", install::NAMESPACE, "delete", "jitreq", "mine", "--timeout=30s"])
        .await
        .unwrap();
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
}
