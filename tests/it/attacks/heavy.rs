//! A requester who makes the request as large as the API server takes it, so that nothing more can be written down of it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::{User, eventually, install};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";

fn path(kind: &str) -> String {
    format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{}/{kind}", install::NAMESPACE)
}

/// Adds labels, in steps that get smaller, until the API server refuses one byte more.
async fn fill(play: &Play, name: &str) {
    let path = path(&format!("jitaccessrequests/{name}"));
    let label = |number: usize, length: usize| {
        (format!("{}.example/{number:0>63}", "a".repeat(180)), json!("x".repeat(length)))
    };
    let add = |labels: Map<String, Value>| {
        let (play, path) = (&play, &path);
        async move {
            let body = json!({"metadata": {"labels": labels}});
            play.stage.plane.request_by(User::Developer, Method::PATCH, path, Some(&body)).await.is_ok()
        }
    };
    let mut number = 0;
    for step in [400, 50, 8, 1] {
        while add((number..number + step).map(|number| label(number, 0)).collect()).await {
            number += step;
        }
    }
    assert!(number > 500, "refused for another reason than its size, after {number} labels");
    // Of the last ones, the values.
    for last in (number - 8..number).rev() {
        for length in 1..=63 {
            if !add([label(last, length)].into_iter().collect()).await {
                return;
            }
        }
    }
    panic!("the object can still be made larger");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_is_as_large_as_can_be_is_revoked_all_the_same() {
    let play = Play::new().await;
    let controller = play.controller().await;
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = Timestamp::now();
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    fill(&play, "mine").await;
    // What is written of it is longer than what it was.
    let comment = "This is not the machine that was agreed on, and the change is over. ".repeat(4);
    let review = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview", "metadata": {"name": "no"},
        "spec": {
            "requestRef": {"name": "mine", "uid": request["metadata"]["uid"]},
            "policyRef": {"name": "web-1"}, "verdict": "Revoked", "comment": comment,
        },
    });
    let revoked = Timestamp::now();
    let plane = &play.stage.plane;
    plane.request_by(User::Approver, Method::POST, &path("jitaccessreviews"), Some(&review)).await.unwrap();
    eventually("the packets stop", Duration::from_secs(30), || async {
        anyhow::ensure!(!play.passes(REQUESTER, "web-1", 22).await, "they pass");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap_or_else(|error| panic!("{error:#}\n{}", controller.log_text().unwrap()));
    let open = play.exposed(REQUESTER, "web-1", 22, locked).await;
    let late = open.last().unwrap().1.unwrap().duration_since(revoked);
    assert!(late < SignedDuration::from_secs(20), "{late:#}");
    // It could not be written down, or the test proves nothing.
    let request = play.get("jitreq/mine").await.unwrap();
    assert_eq!(request["status"]["state"], "Active", "{:#}", request["status"]);
}
