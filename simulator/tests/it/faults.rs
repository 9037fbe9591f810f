//! Faults, the clock, the activity log and throttling.

use serde_json::{Value, json};

use crate::client::{Client, answer, rule};

const OUTSIDE: &str = "203.0.113.7";

async fn with_machine() -> (Client, String, String) {
    let client = Client::new().await;
    let vm = client.world(&json!({"name": "vm", "nicNsg": "web"})).await;
    let rule = format!("{}/securityRules/ssh", vm["nicNsg"].as_str().unwrap());
    let address = vm["privateIp"].as_str().unwrap().to_owned();
    (client, rule, address)
}

fn ssh() -> Value {
    rule("Allow", 100, OUTSIDE, "*", "22")
}

async fn fault(client: &Client, effect: &Value) {
    client
        .sim("faults", &json!({"method": "PUT", "path": "/securityRules/", "count": 1, "effect": effect}))
        .await;
}

#[tokio::test]
async fn an_injected_status_commits_nothing() {
    let (client, path, _) = with_machine().await;
    fault(&client, &json!({"status": {"status": 429, "code": "TooManyRequests", "retryAfter": 7}})).await;
    let struck = client.put(&path, &ssh()).await;
    assert_eq!((struck.status, struck.code(), struck.header("retry-after")), (429, "TooManyRequests", "7"));
    assert_eq!(client.get(&path).await.status, 404);
    client.create(&path, &ssh()).await;
}

#[tokio::test]
async fn a_reset_comes_with_or_without_the_write() {
    for (effect, written) in [("resetAfterCommit", 200), ("dropBeforeCommit", 404)] {
        let (client, path, _) = with_machine().await;
        fault(&client, &json!(effect)).await;
        let request = client.request(reqwest::Method::PUT, &path).json(&ssh());
        assert!(request.send().await.is_err(), "{effect}");
        assert_eq!(client.get(&path).await.status, written, "{effect}");
        let log = client.look("activity?method=PUT&path=securityRules").await;
        assert_eq!(log["value"][0]["status"], 0);
        assert_eq!(log["value"][0]["faults"], json!([effect]));
    }
}

#[tokio::test]
async fn a_time_out_after_commit_has_written() {
    let (client, path, address) = with_machine().await;
    fault(&client, &json!({"timeoutAfterCommit": "200ms"})).await;
    assert_eq!(client.put(&path, &ssh()).await.code(), "GatewayTimeout");
    assert!(client.allowed(OUTSIDE, &address, 22).await);
}

#[tokio::test]
async fn a_late_write_lands_in_the_state_of_then() {
    let (client, path, address) = with_machine().await;
    fault(&client, &json!({"lateWrite": {"after": "5m"}})).await;
    assert_eq!(client.put(&path, &ssh()).await.status, 504);
    assert_eq!(client.delete(&path).await.status, 204, "not there yet");
    client.sim("clock", &json!({"step": "4m"})).await;
    assert!(!client.allowed(OUTSIDE, &address, 22).await);
    client.sim("clock", &json!({"step": "2m"})).await;
    assert!(client.allowed(OUTSIDE, &address, 22).await, "it resurrects the rule");
    let log = client.look("activity?mutating=true&path=securityRules").await;
    let last = log["value"].as_array().unwrap().last().unwrap().clone();
    assert_eq!((&last["late"], &last["status"]), (&json!(true), &json!(201)));
    assert!(last["mutations"][0]["id"].as_str().unwrap().ends_with("/ssh"));
}

#[tokio::test]
async fn a_stale_read_shows_the_past() {
    let (client, path, _) = with_machine().await;
    client.create(&path, &ssh()).await;
    client.sim("clock", &json!({"step": 60})).await;
    client.remove(&path).await;
    client
        .sim("faults", &json!({"method": "GET", "count": 1, "effect": {"staleRead": {"age": "30s"}}}))
        .await;
    assert_eq!(client.get(&path).await.status, 200);
    assert_eq!(client.get(&path).await.status, 404);
}

#[tokio::test]
async fn operations_fail_are_canceled_or_never_end() {
    let (client, path, address) = with_machine().await;
    fault(&client, &json!({"operation": {"fails": "InternalServerError"}})).await;
    let failed = client.put(&path, &ssh()).await;
    assert_eq!(client.finish(&failed).await, "Failed");
    assert_eq!(client.get(&path).await.body["properties"]["provisioningState"], "Failed");
    assert!(!client.allowed(OUTSIDE, &address, 22).await);

    fault(&client, &json!({"operation": {"canceled": true}})).await;
    let canceled = client.put(&path, &ssh()).await;
    assert_eq!(client.finish(&canceled).await, "Canceled");

    fault(&client, &json!({"operation": {"never": true}})).await;
    let endless = client.put(&path, &ssh()).await;
    client.sim("clock", &json!({"step": "10m"})).await;
    let poll = client.http.get(endless.header("azure-asyncoperation")).bearer_auth(&client.token);
    assert_eq!(answer(poll.send().await.unwrap()).await.body["status"], "InProgress");
    assert!(client.allowed(OUTSIDE, &address, 22).await, "it took effect all the same");

    client
        .sim("faults", &json!({"method": "DELETE", "count": 1, "effect": {"operation": {"fails": "X"}}}))
        .await;
    let failed = client.delete(&path).await;
    assert_eq!(client.finish(&failed).await, "Failed");
    assert_eq!(client.get(&path).await.status, 200, "a rule whose delete failed is back");
    client.remove(&path).await;
    assert!(!client.allowed(OUTSIDE, &address, 22).await);
}

#[tokio::test]
async fn polls_by_location_answer_202_until_the_end() {
    let (client, path, _) = with_machine().await;
    client.create(&path, &ssh()).await;
    client.sim("latency", &json!({"operations": {"securityRules.delete": "10s"}, "retryAfter": 3})).await;
    let deleted = client.delete(&path).await;
    assert_eq!(deleted.header("retry-after"), "3");
    let poll = || client.http.get(deleted.header("location")).bearer_auth(&client.token).send();
    assert_eq!(poll().await.unwrap().status(), 202);
    client.sim("clock", &json!({"step": 11})).await;
    assert_eq!(poll().await.unwrap().status(), 204);
}

#[tokio::test]
async fn throttling_is_told_in_headers_and_enforced_by_switch() {
    let (client, path, _) = with_machine().await;
    client.sim("clock", &json!({"scale": 0})).await;
    let first = client.get(&path).await;
    let left: u32 = first.header("x-ms-ratelimit-remaining-subscription-reads").parse().unwrap();
    client.sim("settings", &json!({"throttle": true})).await;
    for _ in 0..left {
        assert_eq!(client.get(&path).await.status, 404);
    }
    let throttled = client.get(&path).await;
    assert_eq!((throttled.status, throttled.code()), (429, "SubscriptionRequestsThrottled"));
    assert_eq!(throttled.header("retry-after"), "1");
    client.sim("clock", &json!({"step": 1})).await;
    assert_eq!(client.get(&path).await.status, 404);
}

#[tokio::test]
async fn request_ids_and_the_date_are_in_every_answer() {
    let (client, path, _) = with_machine().await;
    client.sim("clock", &json!({"set": "2040-01-02T03:04:05Z", "dateSkew": "55s", "scale": 0})).await;
    let request = client.request(reqwest::Method::GET, &path);
    let answer = answer(
        request
            .header("x-ms-client-request-id", "mine")
            .header("x-ms-correlation-request-id", "ours")
            .send()
            .await
            .unwrap(),
    )
    .await;
    assert_eq!(answer.header("x-ms-client-request-id"), "mine");
    assert_eq!(answer.header("x-ms-correlation-request-id"), "ours");
    assert!(!answer.header("x-ms-request-id").is_empty());
    assert_eq!(answer.header("date"), "Mon, 02 Jan 2040 03:05:00 GMT");
}

#[tokio::test]
async fn bad_control_requests_name_the_field() {
    let client = Client::new().await;
    for (path, body, field) in [
        ("clock", json!({"step": "-5s"}), "step"),
        ("clock", json!({"scale": -1}), "scale"),
        ("clock", json!({"hop": 1}), "hop"),
        ("faults", json!({"effect": {"explode": 1}}), "explode"),
        ("latency", json!({"operations": {"a": {"min": 2, "max": 1}}}), "max"),
        ("probe", json!({"source": "x", "destination": "10.0.0.4"}), "IP address"),
        ("world", json!({"resources": [{"id": "nonsense"}]}), "resources[].id"),
        ("world", json!({"machines": [{"name": "a b"}]}), "a b"),
        ("secadmin", json!({"virtualNetwork": "x", "rules": []}), "virtualNetwork"),
        ("settings", json!({"pageSize": 0}), "pageSize"),
    ] {
        let answer = client.try_sim(path, &body).await;
        let message = answer.body["error"]["message"].as_str().unwrap_or("").to_owned();
        assert!(
            answer.status == 400 && message.contains(field),
            "{path} {body}: {} {message}",
            answer.status
        );
    }
}

#[tokio::test]
async fn a_reset_leaves_nothing() {
    let (client, path, address) = with_machine().await;
    client.create(&path, &ssh()).await;
    client.try_sim("reset", &json!({})).await;
    assert!(!client.allowed(OUTSIDE, &address, 22).await);
    assert_eq!(client.get(&path).await.code(), "ResourceGroupNotFound");
}
