//! Clocks that are wrong: nothing is opened by a deadline that nobody shares.

use std::time::Duration;

use portcullis_harness::{Controller, eventually};
use reqwest::Method;
use serde_json::json;

use crate::ground::hurry;
use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";

#[tokio::test(flavor = "multi_thread")]
async fn while_the_clouds_clock_is_an_hour_off_nothing_opens_and_what_is_open_is_closed() {
    let play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    let _controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("before", "web-1", "web-1", 22, REQUESTER, "30s").await;
    play.reaches("jitreq/before", "/status/state", "Active").await;
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
        // Approved first, and not opened yet; then it says what it waits for.
        let found = eventually("the clocks are said to differ", Duration::from_secs(45), || async {
            let found = play.get(&request).await?;
            let conditions = found["status"]["conditions"].as_array().into_iter().flatten();
            let mut active = conditions.filter(|condition| condition["type"] == "Active");
            anyhow::ensure!(active.any(|active| active["reason"] == "ClockSkew"), "{:#}", found["status"]);
            anyhow::Ok(found)
        })
        .await
        .unwrap();
        assert_eq!(found["status"]["state"], "Approved");
        assert!(found["status"]["conditions"].to_string().contains(words), "{:#}", found["status"]);
    }
    assert!(!play.passes("198.51.100.23", "web-1", 22).await);
    play.reaches("jitreq/before", "/status/state", "Expired").await;
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    // They agree again, and what waited goes on by itself.
    skew("0s").await;
    play.reaches("jitreq/skewed-0", "/status/state", "Active").await;
    assert!(play.passes("198.51.100.23", "web-1", 22).await);
}
