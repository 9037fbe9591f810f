//! Tokens: one for all, replaced once, never told, and never waited for too long.

use portcullis::plan::model::{Access, Rule};
use portcullis::providers::Change;

use super::*;

#[tokio::test]
async fn many_calls_share_one_token() {
    let azure = Azure::start().await;
    azure.always("GET", &nsg_path(), answer(200, nsg())).await;
    let target = firewall();
    let reads = futures::future::join_all((0..20).map(|_| azure.cloud.firewall.observe(&target))).await;
    assert!(reads.iter().all(Result::is_ok), "{reads:?}");
    assert_eq!(azure.calls("POST", TOKEN_PATH).await.len(), 1);
    for call in azure.calls("GET", &nsg_path()).await {
        assert_eq!(call.headers["authorization"], "Bearer token-1");
        assert!(call.headers.contains_key("x-ms-client-request-id"));
        assert!(call.url.query().unwrap().contains("api-version=20"));
    }
}

#[tokio::test]
async fn a_refused_token_is_replaced_once_and_the_write_is_sent_again() {
    let azure = Azure::start().await;
    Mock::given(method("PUT"))
        .and(header("authorization", "Bearer token-1"))
        .respond_with(failure(401, "ExpiredAuthenticationToken"))
        .mount(&azure.server)
        .await;
    azure.always("PUT", &rule_path(), answer(201, json!({}))).await;
    std::fs::write(azure.secret.path(), "rotated").unwrap();
    azure.put().await.unwrap();
    assert_eq!(azure.calls("PUT", &rule_path()).await.len(), 2);
    azure.put().await.unwrap();
    let asked = azure.calls("POST", TOKEN_PATH).await;
    assert_eq!(asked.len(), 2);
    assert!(String::from_utf8_lossy(&asked[1].body).contains("client_secret=rotated"));
}

#[tokio::test]
async fn a_credential_that_is_refused_for_good_fetches_no_token_for_each_call() {
    let azure = Azure::start().await;
    azure.always("PUT", &rule_path(), failure(401, "InvalidAuthenticationTokenTenant")).await;
    for _ in 0..5 {
        let error = azure.put().await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Unauthenticated);
        assert!(error.message.contains("InvalidAuthenticationTokenTenant"), "{error}");
    }
    assert_eq!(azure.calls("POST", TOKEN_PATH).await.len(), 2);
}

#[tokio::test]
async fn without_a_token_nothing_is_sent() {
    let azure = Azure::start().await;
    for (status, kind) in [(401, CloudErrorKind::Unauthenticated), (503, CloudErrorKind::Retryable)] {
        azure.server.reset().await;
        let body =
            json!({"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret."});
        azure.always("POST", TOKEN_PATH, answer(status, body)).await;
        let error = azure.put().await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert!(error.message.contains("AADSTS7000215"), "{error}");
        assert_eq!(azure.calls("PUT", &rule_path()).await.len(), 0);
    }
}

/// Collects everything that is logged.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl std::io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test]
async fn secrets_and_tokens_are_in_no_log_and_no_error() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::TRACE)
        .with_writer(move || writer.clone())
        .finish();
    let guard = tracing::subscriber::set_default(subscriber);
    let calls = async || {
        let azure = Azure::start().await;
        azure.always("GET", &nsg_path(), answer(200, nsg())).await;
        azure.always("PUT", &rule_path(), failure(401, "ExpiredAuthenticationToken")).await;
        azure.cloud.firewall.observe(&firewall()).await.unwrap();
        (azure.put().await.unwrap_err(), format!("{:?}", azure.cloud))
    };
    // Once to have every place that logs known, from whichever thread, and then switched on for this one.
    calls().await;
    tracing::callsite::rebuild_interest_cache();
    log.0.lock().unwrap().clear();
    let (error, cloud) = calls().await;
    drop(guard);
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    assert!(log.contains("called Resource Manager"), "the log was collected");
    assert!(log.contains("request-7"), "ids of requests are logged");
    for secret in [SECRET, "token-1", "token-2"] {
        assert!(!log.contains(secret), "{secret} is in the log");
        assert!(!format!("{error} {error:?} {cloud}").contains(secret));
    }
}

// Long-running operations.

/// A token that is long in coming: what opens or locks by it would be sent when the lease, or the grant, may be over.
#[tokio::test]
async fn what_waited_too_long_for_its_token_is_not_sent_and_a_close_is() {
    let (server, secret) = (MockServer::start().await, secret_file());
    let late = json!({"access_token": "late", "expires_in": 3599});
    let late = ResponseTemplate::new(200).set_body_json(late).set_delay(Duration::from_secs(11));
    Mock::given(method("POST")).and(path(TOKEN_PATH)).respond_with(late).mount(&server).await;
    Mock::given(method("DELETE")).respond_with(answer(204, json!({}))).mount(&server).await;
    let cloud = cloud_at(&server.uri(), &server.uri(), &secret);
    let (patience, firewall) = (Duration::from_secs(60), firewall());
    let (open, lock) = (rule("open", 200), Rule { access: Access::Deny, ..rule("lock", 400) });
    let unlock = [Change::Unlock("gone".to_owned())];
    let (opened, locked, unlocked, closed) = tokio::join!(
        cloud.firewall.put(&firewall, &open, patience),
        cloud.firewall.put(&firewall, &lock, patience),
        cloud.firewall.write(&firewall, &unlock, patience),
        cloud.firewall.delete(&firewall, "close", patience),
    );
    for refused in [opened, locked, unlocked] {
        let error = refused.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Retryable, "{error}");
        assert!(error.to_string().contains("could not be sent within 10s"), "{error}");
    }
    closed.unwrap();
    let sent = server.received_requests().await.unwrap();
    let sent: Vec<&Request> = sent.iter().filter(|request| request.url.path() != TOKEN_PATH).collect();
    assert!(matches!(sent.as_slice(), [one] if one.url.path().ends_with("/close")), "{sent:?}");
}
