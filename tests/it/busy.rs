//! A firewall that many want at once, in a cloud that is as slow as Azure.

use std::time::{Duration, Instant};

use portcullis_harness::{eventually, install};
use reqwest::Method;
use serde_json::{Value, json};

use crate::walk::Play;

/// More than can be written in the minute within which a gate must first hear of a grant: 8 s each.
const PEOPLE: u8 = 10;

fn source(number: u8) -> String {
    format!("203.0.113.{number}")
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_grants_on_one_group_all_open_at_the_speed_of_azure_and_a_close_overtakes_them() {
    let play = Play::new().await;
    let _controller = play.controller().await;
    let mut spec = play.one_machine("web-1");
    spec["limits"] = json!({"activePerRequester": PEOPLE});
    play.policy("web-1", &spec).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("early", "web-1", "web-1", 22, "198.51.100.23", "1h").await;
    play.reaches("jitreq/early", "/status/state", "Active").await;

    let slow = json!({"profile": "realistic", "dataPlaneLag": "0s"});
    play.stage.simulator.control(Method::POST, "latency", Some(&slow)).await.unwrap();
    let begun = Instant::now();
    for number in 2..=PEOPLE {
        play.request(&format!("all-{number}"), "web-1", "web-1", 22, &source(number), "1h").await;
    }
    let all = async || -> anyhow::Result<Vec<Value>> {
        let path =
            format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{}/jitaccessrequests", install::NAMESPACE);
        let list = play.stage.plane.request(Method::GET, &path, None).await?;
        let mut items = list["items"].as_array().cloned().unwrap_or_default();
        items.retain(|item| item["metadata"]["name"] != "early");
        Ok(items)
    };
    let count =
        |items: &[Value], state: &str| items.iter().filter(|item| item["status"]["state"] == state).count();
    eventually("the first of them is open", Duration::from_secs(60), || async {
        anyhow::ensure!(count(&all().await?, "Active") > 0);
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    assert!(count(&all().await.unwrap(), "Opening") > 0, "others still wait for their turn");
    // Whoever ends an access does not wait for those who want one.
    play.developer.run(&["-n", install::NAMESPACE, "delete", "jitreq/early", "--wait=false"]).await.unwrap();
    eventually("the early one is closed", Duration::from_secs(60), || async {
        anyhow::ensure!(!play.passes("198.51.100.23", "web-1", 22).await);
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    assert!(count(&all().await.unwrap(), "Opening") > 0, "it was closed before they were all opened");
    eventually("all are open", Duration::from_secs(240), || async {
        let items = all().await?;
        let open = count(&items, "Active");
        let failed = items.iter().find(|item| item["status"]["state"] == "Failed");
        anyhow::ensure!(open == usize::from(PEOPLE - 1), "{open} are open; failed: {failed:#?}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    assert!(
        begun.elapsed() > Duration::from_secs(60),
        "{:?}: faster than this test is about",
        begun.elapsed()
    );
    for number in 2..=PEOPLE {
        assert!(play.passes(&source(number), "web-1", 22).await, "{}", source(number));
    }
}
