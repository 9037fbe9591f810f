//! The client of Azure Resource Manager against a server that answers as told: tokens, long-running
//! operations, throttling, refusals, broken answers, and addresses of strangers.

use std::io::Write as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use portcullis::clock::Clock;
use portcullis::plan::model::{Provisioning, ResourceLock};
use portcullis::providers::azure::config::{ClientSecretConfig, CloudName};
use portcullis::providers::azure::{CloudConfig, CredentialConfig, build};
use portcullis::providers::{Cloud, CloudError, CloudErrorKind};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use wiremock::matchers::{any, body_string_contains, header, method, path, path_regex};
use wiremock::{Mock, MockServer, Request, ResponseTemplate};

use crate::provider_conformance::{SUBSCRIPTION, firewall, id, rule};

mod operations;
mod strangers;
mod tokens;

const SECRET: &str = "the-secret-of-the-application";
const PATIENCE: Duration = Duration::from_secs(10);
const TOKEN_PATH: &str = "/contoso.example/oauth2/v2.0/token";

/// Resource Manager and the endpoint of tokens in one.
struct Azure {
    server: MockServer,
    cloud: Cloud,
    secret: tempfile::NamedTempFile,
}

fn cloud_at(resource_manager: &str, authority: &str, secret: &tempfile::NamedTempFile) -> Cloud {
    let cloud = CloudConfig {
        name: CloudName::Custom,
        resource_manager: Some(resource_manager.to_owned()),
        authority: Some(authority.to_owned()),
        ..CloudConfig::default()
    };
    let credential = CredentialConfig {
        name: "main".into(),
        client_secret: Some(ClientSecretConfig {
            tenant_id: "contoso.example".into(),
            client_id: SUBSCRIPTION.into(),
            secret_file: secret.path().into(),
        }),
        ..CredentialConfig::default()
    };
    build(&cloud, &credential, Clock::system()).unwrap()
}

fn secret_file() -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    writeln!(file, "{SECRET}").unwrap();
    file
}

impl Azure {
    /// Gives the tokens `token-1`, `token-2` and so on, and knows nothing else.
    async fn start() -> Self {
        let server = MockServer::start().await;
        let count = Mutex::new(0);
        Mock::given(method("POST"))
            .and(path(TOKEN_PATH))
            .respond_with(move |_: &Request| {
                let mut count = count.lock().unwrap();
                *count += 1;
                ResponseTemplate::new(200)
                    .set_body_json(json!({"access_token": format!("token-{count}"), "expires_in": 3599}))
            })
            .mount(&server)
            .await;
        Mock::given(path_regex("(?i)/providers/Microsoft.Authorization/locks$"))
            .respond_with(ResponseTemplate::new(200).set_body_json(json!({"value": []})))
            .mount(&server)
            .await;
        let secret = secret_file();
        let cloud = cloud_at(&server.uri(), &server.uri(), &secret);
        Self { server, cloud, secret }
    }

    /// Answers once; answers mounted earlier go first.
    async fn once(&self, verb: &str, at: &str, answer: ResponseTemplate) {
        Mock::given(method(verb))
            .and(path(at))
            .respond_with(answer)
            .up_to_n_times(1)
            .mount(&self.server)
            .await;
    }

    async fn always(&self, verb: &str, at: &str, answer: ResponseTemplate) {
        Mock::given(method(verb)).and(path(at)).respond_with(answer).mount(&self.server).await;
    }

    fn url(&self, rest: &str) -> String {
        format!("{}{rest}", self.server.uri())
    }

    async fn calls(&self, verb: &str, at: &str) -> Vec<Request> {
        let mut all = self.server.received_requests().await.unwrap();
        all.retain(|request| request.method.as_str() == verb && request.url.path() == at);
        all
    }

    async fn put(&self) -> Result<(), CloudError> {
        self.cloud.firewall.put(&firewall(), &rule("ssh", 200), PATIENCE).await.map(drop)
    }

    async fn delete(&self) -> Result<(), CloudError> {
        self.cloud.firewall.delete(&firewall(), "ssh", PATIENCE).await.map(drop)
    }
}

fn nsg_path() -> String {
    firewall().as_str().to_owned()
}

fn rule_path() -> String {
    format!("{}/securityRules/ssh", nsg_path())
}

fn nsg() -> Value {
    json!({"id": nsg_path(), "properties": {"provisioningState": "Succeeded", "securityRules": []}})
}

fn answer(status: u16, body: Value) -> ResponseTemplate {
    ResponseTemplate::new(status).set_body_json(body)
}

fn failure(status: u16, code: &str) -> ResponseTemplate {
    answer(status, json!({"error": {"code": code, "message": format!("Because of {code}.")}}))
        .insert_header("x-ms-request-id", "request-7")
}

// Tokens.

#[tokio::test]
async fn a_throttled_read_comes_again_after_the_time_it_was_told() {
    let azure = Azure::start().await;
    azure.once("GET", &nsg_path(), failure(429, "TooManyRequests").insert_header("retry-after", "1")).await;
    azure.once("GET", &nsg_path(), failure(503, "ServerBusy").insert_header("retry-after", "0")).await;
    azure.once("GET", &nsg_path(), ResponseTemplate::new(200).set_body_string("<html>proxy</html>")).await;
    azure.always("GET", &nsg_path(), answer(200, nsg())).await;
    let begun = Instant::now();
    let observed = azure.cloud.firewall.observe(&firewall()).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!((observed.rules.len(), observed.provisioning), (0, Provisioning::Succeeded));
    assert_eq!(azure.calls("GET", &nsg_path()).await.len(), 4);
}

/// Whoever answers without Resource Manager's id does not know what becomes of the write.
#[tokio::test]
async fn a_gateways_error_is_no_answer() {
    for status in [500, 502, 503, 504] {
        let azure = Azure::start().await;
        let page = ResponseTemplate::new(status).set_body_string("<html>Bad gateway</html>");
        azure.always("PUT", &rule_path(), page).await;
        let error = azure.put().await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Unanswered, "{error}");
        assert!(error.request_id.is_some(), "the id that was sent along is what support can go by");
    }
}

#[tokio::test]
async fn a_write_is_sent_once_whatever_comes_back() {
    for (status, code, kind) in [
        (429, "RetryableError", CloudErrorKind::Retryable),
        (429, "TooManyRequests", CloudErrorKind::Retryable),
        (409, "AnotherOperationInProgress", CloudErrorKind::Retryable),
        (500, "InternalServerError", CloudErrorKind::Ambiguous),
        (503, "ServerBusy", CloudErrorKind::Ambiguous),
        (504, "GatewayTimeout", CloudErrorKind::Unanswered),
        (503, "ServerTimeout", CloudErrorKind::Unanswered),
        (409, "CanceledAndSupersededDueToAnotherOperation", CloudErrorKind::Ambiguous),
        (403, "AuthorizationFailed", CloudErrorKind::NotPermitted),
        (403, "RequestDisallowedByPolicy", CloudErrorKind::RefusedByPolicy),
        (409, "ScopeLocked", CloudErrorKind::ScopeLocked),
        (404, "ResourceNotFound", CloudErrorKind::NotFound),
        (404, "ResourceGroupNotFound", CloudErrorKind::NotFound),
        (400, "SecurityRuleConflict", CloudErrorKind::PriorityTaken),
        (400, "SecurityRuleCountLimitReached", CloudErrorKind::Full),
        (400, "InvalidRequestFormat", CloudErrorKind::Invalid),
        (307, "Elsewhere", CloudErrorKind::Invalid),
    ] {
        let azure = Azure::start().await;
        let refusal = failure(status, code)
            .insert_header("retry-after", "17")
            .insert_header("location", azure.url("/elsewhere"));
        azure.always("PUT", &rule_path(), refusal).await;
        let error = azure.put().await.unwrap_err();
        assert_eq!(error.kind, kind, "{error}");
        assert_eq!(error.code.as_deref(), Some(code));
        assert_eq!(error.retry_after, Some(Duration::from_secs(17)));
        assert_eq!(error.request_id.as_deref(), Some("request-7"));
        assert!(error.to_string().contains("write rule ssh of web-nsg"), "{error}");
        assert!(error.to_string().contains("request-7"), "{error}");
        assert_eq!(azure.calls("PUT", &rule_path()).await.len(), 1, "{code}");
        assert_eq!(azure.calls("PUT", "/elsewhere").await.len(), 0, "no redirect is followed");
    }
}

#[tokio::test]
async fn a_removal_from_what_is_gone_is_done_unless_it_may_only_be_hidden() {
    for (status, code, done) in [
        (204, "", true),
        (404, "ResourceNotFound", true),
        (404, "ResourceGroupNotFound", true),
        (404, "SubscriptionNotFound", false),
        (409, "ScopeLocked", false),
        (403, "AuthorizationFailed", false),
    ] {
        let azure = Azure::start().await;
        let refusal = if code.is_empty() { ResponseTemplate::new(status) } else { failure(status, code) };
        azure.always("DELETE", &rule_path(), refusal).await;
        assert_eq!(azure.delete().await.is_ok(), done, "{status} {code}");
    }
}

/// A server that reads a request and then hangs up, every time; says how many it read.
async fn hangs_up() -> (String, Arc<Mutex<usize>>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let count = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&count);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut buffer = [0; 8192];
            if stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {
                *counter.lock().unwrap() += 1;
            }
            let _ = stream.shutdown().await;
        }
    });
    (address, count)
}

#[tokio::test]
async fn a_connection_that_breaks_after_the_sending_leaves_doubt() {
    let azure = Azure::start().await;
    let (address, count) = hangs_up().await;
    let cloud = cloud_at(&address, &azure.server.uri(), &azure.secret);
    let error = cloud.firewall.put(&firewall(), &rule("ssh", 200), PATIENCE).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unanswered, "{error}");
    assert_eq!(*count.lock().unwrap(), 1, "sent once");
}

#[tokio::test]
async fn where_no_connection_comes_about_nothing_was_written() {
    let azure = Azure::start().await;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let cloud = cloud_at(&address, &azure.server.uri(), &azure.secret);
    let patience = Duration::from_secs(2);
    let error = cloud.firewall.put(&firewall(), &rule("ssh", 200), patience).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Retryable, "{error}");
}

// Strangers.

#[tokio::test]
async fn locks_are_read_once_a_minute_and_anew_when_a_write_meets_one() {
    let azure = Azure::start().await;
    azure.always("GET", &nsg_path(), answer(200, nsg())).await;
    let locks = format!("{}/providers/Microsoft.Authorization/locks", nsg_path());
    for _ in 0..3 {
        assert_eq!(azure.cloud.firewall.observe(&firewall()).await.unwrap().lock, ResourceLock::None);
    }
    assert_eq!(azure.calls("GET", &locks).await.len(), 1);
    azure.always("DELETE", &rule_path(), failure(409, "ScopeLocked")).await;
    azure.delete().await.unwrap_err();
    azure.cloud.firewall.observe(&firewall()).await.unwrap();
    assert_eq!(azure.calls("GET", &locks).await.len(), 2);
}

#[tokio::test]
async fn locks_that_must_not_be_read_do_not_stop_a_read() {
    let azure = Azure::start().await;
    azure.server.reset().await;
    azure.always("POST", TOKEN_PATH, answer(200, json!({"access_token": "t", "expires_in": 3599}))).await;
    azure.always("GET", &nsg_path(), answer(200, nsg())).await;
    let locks = format!("{}/providers/Microsoft.Authorization/locks", nsg_path());
    azure.always("GET", &locks, failure(403, "AuthorizationFailed")).await;
    assert_eq!(azure.cloud.firewall.observe(&firewall()).await.unwrap().lock, ResourceLock::None);
}

#[tokio::test]
async fn a_group_that_answers_for_another_is_not_believed() {
    let azure = Azure::start().await;
    let mut other = nsg();
    other["id"] = json!(format!("{}-2", nsg_path()));
    azure.always("GET", &nsg_path(), answer(200, other)).await;
    let error = azure.cloud.firewall.observe(&firewall()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Retryable, "{error}");
}

#[tokio::test]
async fn a_rule_is_written_as_a_child_and_nothing_else_is() {
    let azure = Azure::start().await;
    Mock::given(method("PUT"))
        .and(path(rule_path()))
        .and(body_string_contains("\"sourceAddressPrefix\":\"203.0.113.7\""))
        .respond_with(answer(200, json!({})))
        .mount(&azure.server)
        .await;
    azure.put().await.unwrap();
    let mut writes = azure.server.received_requests().await.unwrap();
    writes.retain(|request| request.method.as_str() != "GET" && request.url.path() != TOKEN_PATH);
    assert_eq!(writes.len(), 1);
    for name in ["../x", "a/b", "a?b", ""] {
        let error = azure.cloud.firewall.delete(&firewall(), name, PATIENCE).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Invalid, "{name}");
    }
}
