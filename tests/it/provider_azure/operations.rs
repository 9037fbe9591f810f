//! Writes that go on after their answer.

use super::*;

#[tokio::test]
async fn a_write_ends_with_its_operation() {
    let azure = Azure::start().await;
    let started = answer(201, json!({"properties": {"provisioningState": "Updating"}}))
        .insert_header("azure-asyncoperation", azure.url("/operations/1?api-version=x"))
        .insert_header("location", azure.url("/never"))
        .insert_header("retry-after", "0");
    azure.always("PUT", &rule_path(), started).await;
    let under = |state: &str| answer(200, json!({"status": state})).insert_header("retry-after", "0");
    azure.once("GET", "/operations/1", under("InProgress")).await;
    azure.once("GET", "/operations/1", ResponseTemplate::new(503)).await;
    azure.once("GET", "/operations/1", under("SomethingNew")).await;
    azure.once("GET", "/operations/1", under("Succeeded")).await;
    azure.put().await.unwrap();
    assert_eq!(azure.calls("GET", "/operations/1").await.len(), 4);
    assert_eq!(azure.calls("GET", "/never").await.len(), 0);
}

#[tokio::test]
async fn a_removal_ends_with_its_location() {
    let azure = Azure::start().await;
    let started = ResponseTemplate::new(202)
        .insert_header("location", "/results/1?api-version=x")
        .insert_header("retry-after", "0");
    azure.always("DELETE", &rule_path(), started).await;
    azure.once("GET", "/results/1", ResponseTemplate::new(202).insert_header("retry-after", "0")).await;
    azure.once("GET", "/results/1", ResponseTemplate::new(204)).await;
    azure.delete().await.unwrap();
    assert_eq!(azure.calls("GET", "/results/1").await.len(), 2);
}

#[tokio::test]
async fn where_no_operation_is_named_the_resource_is_watched() {
    let azure = Azure::start().await;
    let state = |state: &str| {
        answer(200, json!({"properties": {"provisioningState": state}})).insert_header("retry-after", "0")
    };
    azure.always("PUT", &rule_path(), state("Updating")).await;
    azure.once("GET", &rule_path(), state("Updating")).await;
    azure.once("GET", &rule_path(), state("Succeeded")).await;
    azure.put().await.unwrap();
    assert_eq!(azure.calls("GET", &rule_path()).await.len(), 2);
    azure.always("DELETE", &rule_path(), ResponseTemplate::new(202).insert_header("retry-after", "0")).await;
    azure.once("GET", &rule_path(), state("Deleting")).await;
    azure.delete().await.unwrap();
    assert_eq!(azure.calls("GET", &rule_path()).await.len(), 4);
}

#[tokio::test]
async fn an_operation_that_fails_says_why_or_leaves_doubt() {
    for (body, kind) in [
        (
            json!({"status": "Failed", "error": {"code": "SecurityRuleConflict"}}),
            CloudErrorKind::PriorityTaken,
        ),
        (
            json!({"status": "Failed", "error": {"code": "RequestDisallowedByPolicy"}}),
            CloudErrorKind::RefusedByPolicy,
        ),
        (json!({"status": "Failed", "error": {"code": "SomethingNew"}}), CloudErrorKind::Ambiguous),
        (json!({"status": "Failed", "error": {"code": "RetryableError"}}), CloudErrorKind::Ambiguous),
        (json!({"status": "Failed"}), CloudErrorKind::Ambiguous),
        (json!({"status": "Canceled"}), CloudErrorKind::Ambiguous),
        (
            json!({"status": "Canceled", "error": {"code": "CanceledAndSupersededDueToAnotherOperation"}}),
            CloudErrorKind::Ambiguous,
        ),
        (json!({"status": "Canceled", "error": {"code": "ScopeLocked"}}), CloudErrorKind::Ambiguous),
    ] {
        let azure = Azure::start().await;
        let started = answer(201, json!({}))
            .insert_header("azure-asyncoperation", azure.url("/operations/1"))
            .insert_header("x-ms-request-id", "request-1")
            .insert_header("retry-after", "0");
        azure.always("PUT", &rule_path(), started).await;
        azure.always("GET", "/operations/1", answer(200, body.clone())).await;
        let error = azure.put().await.unwrap_err();
        assert_eq!(error.kind, kind, "{body}: {error}");
        assert_eq!(error.request_id.as_deref(), Some("request-1"));
        assert_eq!(azure.calls("PUT", &rule_path()).await.len(), 1, "a write is never sent again");
    }
}

#[tokio::test]
async fn an_operation_whose_end_cannot_be_seen_leaves_doubt() {
    for status in [403, 404] {
        let azure = Azure::start().await;
        let started = answer(201, json!({}))
            .insert_header("azure-asyncoperation", azure.url("/operations/1"))
            .insert_header("retry-after", "0");
        azure.always("PUT", &rule_path(), started).await;
        azure.always("GET", "/operations/1", failure(status, "AuthorizationFailed")).await;
        let error = azure.put().await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Unanswered, "{error}");
        assert!(error.message.contains("its end cannot be seen"), "{error}");
    }
}

#[tokio::test]
async fn patience_bounds_the_whole_call() {
    let azure = Azure::start().await;
    let started = answer(201, json!({}))
        .insert_header("azure-asyncoperation", azure.url("/operations/1"))
        .insert_header("retry-after", "0");
    azure.always("PUT", &rule_path(), started).await;
    azure.always("GET", "/operations/1", answer(200, json!({"status": "InProgress"}))).await;
    let begun = Instant::now();
    let patience = Duration::from_secs(1);
    let error = azure.cloud.firewall.put(&firewall(), &rule("ssh", 200), patience).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unanswered);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_long_retry_after_leaves_time_for_a_last_look() {
    let azure = Azure::start().await;
    let started = answer(201, json!({}))
        .insert_header("azure-asyncoperation", azure.url("/operations/1"))
        .insert_header("retry-after", "600");
    azure.always("PUT", &rule_path(), started).await;
    azure.always("GET", "/operations/1", answer(200, json!({"status": "Succeeded"}))).await;
    let patience = Duration::from_secs(1);
    azure.cloud.firewall.put(&firewall(), &rule("ssh", 200), patience).await.unwrap();
}

// Throttling and broken connections.
