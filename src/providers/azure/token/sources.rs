//! The ways to a token.

use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use reqwest::StatusCode;
use secrecy::{ExposeSecret, SecretString, zeroize::Zeroize};
use serde_json::Value;
use url::Url;

use super::{Fetched, TokenError, TokenSource};
use crate::clock::Clock;
use crate::providers::azure::config::{Credential, Endpoints};
use crate::providers::azure::{errors, http};

/// The source of a credential.
pub(in crate::providers::azure) fn source(
    credential: Credential,
    endpoints: &Endpoints,
    client: &reqwest::Client,
    metadata: reqwest::Client,
    clock: Clock,
) -> Box<dyn TokenSource> {
    let grant = |tenant: &str, client_id: String, proof| {
        let mut endpoint = endpoints.authority.clone();
        endpoint.set_path(&format!("/{tenant}/oauth2/v2.0/token"));
        let scope = format!("{}/.default", endpoints.audience);
        Box::new(Grant { endpoint, client_id, scope, proof, client: client.clone(), clock: clock.clone() })
    };
    match credential {
        Credential::ClientSecret { tenant, client, secret_file } => {
            grant(&tenant, client, Proof::Secret(secret_file))
        }
        Credential::WorkloadIdentity { tenant, client, token_file } => {
            grant(&tenant, client, Proof::Assertion(token_file))
        }
        Credential::ManagedIdentity { client, mut endpoint } => {
            endpoint.set_path("/metadata/identity/oauth2/token");
            Box::new(Metadata {
                endpoint,
                resource: endpoints.audience.clone(),
                client_id: client,
                client: metadata,
                clock,
            })
        }
        Credential::AccessToken { token_file } => Box::new(Given(token_file)),
    }
}

/// How long a token is used that does not say how long it lives, before its file is read anew.
const GIVEN_FOR: Duration = Duration::from_secs(60);

/// A file in which something else leaves a token.
struct Given(PathBuf);

#[async_trait]
impl TokenSource for Given {
    async fn fetch(&self) -> Result<Fetched, TokenError> {
        let secret = read_secret(&self.0).await?;
        if usable(secret.expose_secret()) {
            Ok(Fetched { secret, lifetime: GIVEN_FOR })
        } else {
            Err(TokenError::Refused(format!("{} does not hold a token", self.0.display())))
        }
    }
}

/// What proves who we are: the file that holds it.
enum Proof {
    Secret(PathBuf),
    /// The token of a service account, signed by the cluster.
    Assertion(PathBuf),
}

/// OAuth 2.0 client credentials.
struct Grant {
    endpoint: Url,
    client_id: String,
    scope: String,
    proof: Proof,
    client: reqwest::Client,
    clock: Clock,
}

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";

#[async_trait]
impl TokenSource for Grant {
    async fn fetch(&self) -> Result<Fetched, TokenError> {
        // Read anew each time: both kinds of file are rotated under us.
        let (Proof::Secret(path) | Proof::Assertion(path)) = &self.proof;
        let proof = read_secret(path).await?;
        let mut form = vec![
            ("grant_type", "client_credentials"),
            ("client_id", self.client_id.as_str()),
            ("scope", self.scope.as_str()),
        ];
        match &self.proof {
            Proof::Secret(_) => form.push(("client_secret", proof.expose_secret())),
            Proof::Assertion(_) => {
                form.push(("client_assertion_type", ASSERTION));
                form.push(("client_assertion", proof.expose_secret()));
            }
        }
        let request = self.client.post(self.endpoint.clone()).form(&form);
        answer(request, &self.clock, false).await
    }
}

/// A file without the line end that editors leave.
async fn read_secret(path: &Path) -> Result<SecretString, TokenError> {
    let refused = |why: &dyn std::fmt::Display| {
        TokenError::Refused(format!("failed to read {}: {why}", path.display()))
    };
    let mut text = tokio::fs::read_to_string(path).await.map_err(|error| refused(&error))?;
    let trimmed = text.trim().to_owned();
    text.zeroize();
    if trimmed.is_empty() { Err(refused(&"it is empty")) } else { Ok(trimmed.into()) }
}

/// The metadata service of the machine that this runs on.
struct Metadata {
    endpoint: Url,
    resource: String,
    client_id: Option<String>,
    client: reqwest::Client,
    clock: Clock,
}

#[async_trait]
impl TokenSource for Metadata {
    async fn fetch(&self) -> Result<Fetched, TokenError> {
        let mut query = vec![("api-version", "2018-02-01"), ("resource", self.resource.as_str())];
        if let Some(client_id) = &self.client_id {
            query.push(("client_id", client_id));
        }
        let request = self.client.get(self.endpoint.clone()).header("Metadata", "true").query(&query);
        answer(request, &self.clock, true).await
    }
}

/// Sends a request for a token and reads the answer. Of a refusal only the fields meant for people are told:
/// the rest might echo what was sent.
async fn answer(
    request: reqwest::RequestBuilder,
    clock: &Clock,
    metadata: bool,
) -> Result<Fetched, TokenError> {
    let unavailable = |why: String| TokenError::Unavailable(why);
    let response = request
        .header("accept", "application/json")
        .timeout(Duration::from_secs(15))
        .send()
        .await
        .map_err(|error| unavailable(http::describe(error)))?;
    let status = response.status();
    let body = http::bounded(response, 1 << 20).await.map_err(unavailable)?;
    let value: Value = serde_json::from_slice(&body).unwrap_or_default();
    if status.is_success() {
        let token = value.get("access_token").and_then(Value::as_str).filter(|token| usable(token));
        let lifetime = lifetime(&value, clock.now());
        return match (token, lifetime) {
            (Some(token), Some(lifetime)) => Ok(Fetched { secret: token.to_owned().into(), lifetime }),
            _ => Err(unavailable("the answer holds no token".into())),
        };
    }
    let told = ["error_description", "error"].iter().find_map(|name| value.get(*name)?.as_str());
    let told =
        errors::shorten(told.unwrap_or("no reason given").split("Trace ID:").next().unwrap_or_default());
    let passing = matches!(status, StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS)
        || status.is_server_error()
        // The metadata service answers so while it is being updated, or the identity is on its way.
        || (metadata && matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE));
    Err(if passing {
        TokenError::Unavailable(format!("{status}: {told}"))
    } else {
        TokenError::Refused(told)
    })
}

/// What can stand in a header.
fn usable(token: &str) -> bool {
    !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_graphic())
}

/// How long a token lives: numbers come as numbers or as text.
pub(super) fn lifetime(value: &Value, now: Timestamp) -> Option<Duration> {
    let number = |name: &str| match value.get(name)? {
        Value::Number(number) => number.as_i64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let seconds = number("expires_in").or_else(|| Some(number("expires_on")? - now.as_second()))?;
    // A day is the most that Azure gives; anything longer is a mistake that would never be noticed.
    Some(Duration::from_secs(u64::try_from(seconds).ok()?.min(24 * 3600)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use wiremock::matchers::{body_string_contains, header, method, path, query_param};
    use wiremock::{Mock, MockServer, ResponseTemplate};

    use super::*;

    #[test]
    fn lifetimes_are_numbers_or_text_relative_or_absolute() {
        let now = Timestamp::from_second(1_000).unwrap();
        for (value, seconds) in [
            (json!({"expires_in": 3599}), Some(3599)),
            (json!({"expires_in": "86399"}), Some(86_399)),
            (json!({"expires_on": "1600"}), Some(600)),
            (json!({"expires_in": 9_999_999}), Some(86_400)),
            (json!({"expires_on": 900}), None),
            (json!({"expires_in": "soon"}), None),
            (json!({}), None),
        ] {
            assert_eq!(lifetime(&value, now), seconds.map(Duration::from_secs), "{value}");
        }
    }

    const UUID: &str = "11111111-2222-3333-4444-555555555555";

    /// A source of this credential whose authority is `server`.
    fn of(server: &MockServer, credential: Credential) -> Box<dyn TokenSource> {
        let endpoints = Endpoints {
            resource_manager: Url::parse(&server.uri()).unwrap(),
            authority: Url::parse(&server.uri()).unwrap(),
            audience: "https://arm.example".into(),
        };
        let client = http::metadata_client().unwrap();
        source(credential, &endpoints, &client, client.clone(), Clock::system())
    }

    fn token() -> ResponseTemplate {
        ResponseTemplate::new(200).set_body_json(json!({"access_token": "t", "expires_in": "3599"}))
    }

    #[tokio::test]
    async fn workload_identity_sends_the_token_of_the_service_account_as_it_is_now() {
        let server = MockServer::start().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let credential = Credential::WorkloadIdentity {
            tenant: "contoso.example".into(),
            client: UUID.into(),
            token_file: file.path().into(),
        };
        let source = of(&server, credential);
        for assertion in ["first", "rotated"] {
            std::fs::write(file.path(), format!("{assertion}\n")).unwrap();
            Mock::given(method("POST"))
                .and(path("/contoso.example/oauth2/v2.0/token"))
                .and(body_string_contains(format!("client_assertion={assertion}")))
                .and(body_string_contains("scope=https%3A%2F%2Farm.example%2F.default"))
                .and(body_string_contains(format!("client_id={UUID}")))
                .and(body_string_contains("assertion-type%3Ajwt-bearer"))
                .respond_with(token())
                .expect(1)
                .mount(&server)
                .await;
            assert_eq!(source.fetch().await.unwrap().lifetime, Duration::from_secs(3599));
        }
        std::fs::write(file.path(), " \n").unwrap();
        let error = source.fetch().await.unwrap_err();
        assert!(matches!(&error, TokenError::Refused(why) if why.contains("is empty")), "{error}");
        drop(file);
        assert!(matches!(source.fetch().await, Err(TokenError::Refused(_))));
    }

    #[tokio::test]
    async fn a_token_that_is_given_is_read_as_it_is_now() {
        let server = MockServer::start().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        let source = of(&server, Credential::AccessToken { token_file: file.path().into() });
        for token in ["first", "renewed"] {
            std::fs::write(file.path(), format!("{token}\n")).unwrap();
            assert_eq!(source.fetch().await.unwrap().secret.expose_secret(), token);
        }
        std::fs::write(file.path(), "{\"accessToken\": \"t\"}").unwrap();
        let error = source.fetch().await.unwrap_err();
        assert!(
            matches!(&error, TokenError::Refused(why) if why.contains("does not hold a token")),
            "{error}"
        );
    }

    #[tokio::test]
    async fn managed_identity_asks_the_metadata_service() {
        let server = MockServer::start().await;
        Mock::given(method("GET"))
            .and(path("/metadata/identity/oauth2/token"))
            .and(header("metadata", "true"))
            .and(query_param("resource", "https://arm.example"))
            .and(query_param("client_id", UUID))
            .respond_with(token())
            .up_to_n_times(1)
            .mount(&server)
            .await;
        let credential = Credential::ManagedIdentity {
            client: Some(UUID.into()),
            endpoint: Url::parse(&server.uri()).unwrap(),
        };
        let source = of(&server, credential);
        source.fetch().await.unwrap();
        // Nothing answers now: the service says 404 while it starts.
        assert!(matches!(source.fetch().await, Err(TokenError::Unavailable(_))));
        Mock::given(method("GET"))
            .respond_with(ResponseTemplate::new(400).set_body_json(
                json!({"error": "invalid_request", "error_description": "Identity not found"}),
            ))
            .mount(&server)
            .await;
        assert_eq!(source.fetch().await.unwrap_err(), TokenError::Refused("Identity not found".into()));
    }

    #[tokio::test]
    async fn refusals_and_failures_of_the_endpoint_are_told_apart() {
        let server = MockServer::start().await;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "hidden").unwrap();
        let credential = Credential::ClientSecret {
            tenant: UUID.into(),
            client: UUID.into(),
            secret_file: file.path().into(),
        };
        let source = of(&server, credential);
        for (status, body, refused, told) in [
            (
                401,
                json!({"error": "invalid_client", "error_description": "AADSTS7000215: Invalid client secret.\r\nTrace ID: x", "echo": "hidden"}),
                true,
                "AADSTS7000215: Invalid client secret.",
            ),
            (
                400,
                json!({"error": "invalid_request", "error_description": "AADSTS90002: Tenant not found."}),
                true,
                "AADSTS90002",
            ),
            (503, json!({"error": "temporarily_unavailable"}), false, "temporarily_unavailable"),
            (429, json!({}), false, "429"),
            (200, json!({"access_token": "", "expires_in": 1}), false, "no token"),
            (200, json!({"access_token": "hidden"}), false, "no token"),
            (302, json!("hidden"), true, "no reason"),
        ] {
            server.reset().await;
            Mock::given(method("POST"))
                .respond_with(ResponseTemplate::new(status).set_body_json(body))
                .mount(&server)
                .await;
            let error = source.fetch().await.unwrap_err();
            assert_eq!(matches!(error, TokenError::Refused(_)), refused, "{status}: {error}");
            assert!(error.to_string().contains(told), "{error}");
            assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
        }
    }

    #[test]
    fn a_token_that_would_break_a_header_is_none() {
        assert!(usable("eyJ0.e30.x-_"));
        assert!(!usable(""));
        assert!(!usable("a b"));
        assert!(!usable("a\r\nx: y"));
    }
}
