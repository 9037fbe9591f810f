//! Clocks that are wrong: nothing is opened by a deadline that nobody shares.

use std::time::Duration;

use jiff::SignedDuration;
use portcullis_harness::wall_clock::WallClock;
use portcullis_harness::{Controller, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use crate::ground::hurry;
use crate::walk::{Play, moment};

const REQUESTER: &str = "203.0.113.7";
const ANOTHER: &str = "203.0.113.8";
/// Less than an hour: the API server's certificate is no older.
const WRONG: i64 = 50 * 60;

/// Approved first, and not opened yet; then it says what it waits for.
async fn waits_for_clocks(play: &Play, request: &str) -> Value {
    let found = eventually("the clocks are said to differ", Duration::from_secs(45), || async {
        let found = play.get(request).await?;
        let conditions = found["status"]["conditions"].as_array().into_iter().flatten();
        let mut active = conditions.filter(|condition| condition["type"] == "Active");
        anyhow::ensure!(active.any(|active| active["reason"] == "ClockSkew"), "{:#}", found["status"]);
        anyhow::Ok(found)
    })
    .await
    .unwrap();
    assert_eq!(found["status"]["state"], "Approved");
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_clouds_clock_is_an_hour_off_nothing_opens_and_what_is_open_is_closed() {
    let play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    let controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    assert_eq!(controller.readiness().await.unwrap().get("warnings"), None);
    play.request("before", "web-1", "web-1", 22, REQUESTER, "30s").await;
    play.request("long", "web-1", "web-1", 22, ANOTHER, "50m").await;
    for request in ["jitreq/before", "jitreq/long"] {
        play.reaches(request, "/status/state", "Active").await;
    }
    let skew = async |by: &str| {
        play.stage.simulator.control(Method::POST, "clock", Some(&json!({"dateSkew": by}))).await.unwrap();
        // Every interval is 2 s: by then the cloud was read.
        tokio::time::sleep(Duration::from_secs(5)).await;
    };
    for (number, (by, words)) in
        [("1h", "s ahead of the controller's"), ("-1h", "s behind the controller's")].into_iter().enumerate()
    {
        skew(by).await;
        let request = format!("jitreq/skewed-{number}");
        play.request(&request[7..], "web-1", "web-1", 22, "198.51.100.23", "10m").await;
        let found = waits_for_clocks(&play, &request).await;
        assert!(found["status"]["conditions"].to_string().contains(words), "{:#}", found["status"]);
        let readiness = controller.readiness().await.unwrap();
        assert_eq!(readiness["warnings"][0]["name"], "clock", "{readiness}");
        assert!(readiness["ready"] == true && readiness.to_string().contains(words), "{readiness}");
        // The cloud may be right.
        assert!(!play.passes(ANOTHER, "web-1", 22).await);
    }
    assert!(!play.passes("198.51.100.23", "web-1", 22).await);
    play.reaches("jitreq/before", "/status/state", "Expired").await;
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    // They agree again, and what waited goes on by itself.
    skew("0s").await;
    play.reaches("jitreq/skewed-0", "/status/state", "Active").await;
    assert!(play.passes("198.51.100.23", "web-1", 22).await);
}

/// As a node's clock is set by somebody, or by a time server that is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_controller_whose_clock_is_set_back_closes_in_time_and_one_that_is_ahead_closes_early() {
    let play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    let clock = WallClock::new(&setup.folder).unwrap();
    setup.environment = clock.environment();
    let controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = jiff::Timestamp::now();
    play.request("behind", "web-1", "web-1", 22, REQUESTER, "30s").await;
    let active = play.reaches("jitreq/behind", "/status/state", "Active").await;
    let expires = moment(&active, "/status/expiresAt");
    let set = async |ahead: i64| {
        clock.set(ahead).unwrap();
        // The program has it a second later at most.
        tokio::time::sleep(Duration::from_secs(3)).await;
    };
    set(-WRONG).await;
    play.request("waits", "web-1", "web-1", 22, ANOTHER, "10m").await;
    let found = waits_for_clocks(&play, "jitreq/waits").await;
    assert!(found["status"]["conditions"].to_string().contains("s ahead of the controller's"), "{found:#}");
    let metrics = controller.metrics().await.unwrap();
    let ahead = metrics
        .lines()
        .find_map(|line| line.strip_prefix("portcullis_api_server_clock_ahead_seconds "))
        .and_then(|value| value.parse::<i64>().ok());
    assert!(ahead.is_some_and(|ahead| (ahead - WRONG).abs() < 5), "{ahead:?}");
    play.reaches("jitreq/behind", "/status/state", "Expired").await;
    let open = play.exposed(REQUESTER, "web-1", 22, locked).await;
    let late = open.last().unwrap().1.unwrap().duration_since(expires);
    assert!(late < SignedDuration::from_secs(10), "{late:#} late");
    // It is set right, and what waited goes on.
    set(0).await;
    play.reaches("jitreq/waits", "/status/state", "Active").await;
    set(WRONG).await;
    // By its clock it is over, or was not looked at for so long that it is another machine by now, whichever is found
    // first: nothing is open any more.
    eventually("the packets stop", Duration::from_secs(20), || async {
        anyhow::ensure!(!play.passes(ANOTHER, "web-1", 22).await, "they pass");
        anyhow::Ok(())
    })
    .await
    .unwrap();
}
