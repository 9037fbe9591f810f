//! One call of Resource Manager: its token, its headers, its span, its answer.

use reqwest::header::HeaderValue;
use reqwest::{Method, StatusCode};
use secrecy::ExposeSecret;
use serde_json::Value;
use tokio::time::Instant;
use tracing::{Instrument, Span};
use url::Url;

use super::super::answer::text;
use super::super::http;
use super::super::token::{Token, TokenError};
use super::{Arm, LARGEST, Reply, Silence};
use crate::clock::http_date;

impl Arm {
    /// Sends one request; where the token is refused, once more with a new one.
    pub(in crate::providers::azure) async fn send(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&Value>,
    ) -> Result<Reply, Silence> {
        self.send_if(method, url, body, None).await
    }

    /// The same, to be refused where what is there is of another version.
    pub(super) async fn send_if(
        &self,
        method: &Method,
        url: &Url,
        body: Option<&Value>,
        if_match: Option<&str>,
    ) -> Result<Reply, Silence> {
        let token = self.tokens.get().await.map_err(Silence::Token)?;
        let reply = self.send_with(method, url, (body, if_match), &token).await?;
        if reply.status != StatusCode::UNAUTHORIZED {
            return Ok(reply);
        }
        match self.tokens.replace(&token).await {
            Ok(token) => self.send_with(method, url, (body, if_match), &token).await,
            Err(TokenError::Refused(_)) => Ok(reply),
            Err(error) => Err(Silence::Token(error)),
        }
    }

    async fn send_with(
        &self,
        method: &Method,
        url: &Url,
        content: (Option<&Value>, Option<&str>),
        token: &Token,
    ) -> Result<Reply, Silence> {
        let span = tracing::debug_span!(
            "call Resource Manager",
            otel.kind = "client",
            otel.name = method.as_str(),
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
            http.request.method = method.as_str(),
            server.address = url.host_str(),
            url.path = url.path(),
            http.response.status_code = tracing::field::Empty,
            arm.request_id = tracing::field::Empty,
        );
        let mut given_up = GivenUp(Some(span.clone()));
        let reply = self.exchange(method, url, content, token).instrument(span.clone()).await;
        given_up.0 = None;
        match &reply {
            Ok(reply) => {
                span.record("http.response.status_code", reply.status.as_u16());
                span.record("arm.request_id", reply.request_id.as_deref());
                if !reply.status.is_success() {
                    span.record("otel.status_code", "ERROR");
                }
            }
            Err(Silence::NotSent(why) | Silence::Broken(why)) => {
                span.record("otel.status_code", "ERROR");
                span.record("otel.status_description", why);
            }
            // There was none to send it with.
            Err(Silence::Token(_)) => {}
        }
        reply
    }

    async fn exchange(
        &self,
        method: &Method,
        url: &Url,
        (body, if_match): (Option<&Value>, Option<&str>),
        token: &Token,
    ) -> Result<Reply, Silence> {
        let client_request_id = uuid::Uuid::new_v4().to_string();
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", token.secret.expose_secret()))
            .map_err(|_| Silence::NotSent("the token cannot stand in a header".into()))?;
        bearer.set_sensitive(true);
        let mut request = self
            .http
            .request(method.clone(), url.clone())
            .header("authorization", bearer)
            .header("accept", "application/json")
            .header("x-ms-client-request-id", &client_request_id)
            .header("x-ms-return-client-request-id", "true");
        if let Some(version) = if_match {
            request = request.header("if-match", version);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let begun = Instant::now();
        let mut counted = self.calls.begin(method);
        let response = request.send().await.map_err(|error| {
            if error.is_connect() || error.is_builder() {
                Silence::NotSent(http::describe(error))
            } else {
                Silence::Broken(http::describe(error))
            }
        })?;
        let (status, headers) = (response.status(), response.headers().clone());
        counted.answered(status);
        if let Some(date) = http_date(text(&headers, "date").as_deref().unwrap_or_default()) {
            self.server.said(date);
        }
        let body = http::bounded(response, LARGEST).await.map_err(Silence::Broken)?;
        let given =
            ["x-ms-request-id", "x-ms-correlation-request-id"].iter().find_map(|name| text(&headers, name));
        let by_resource_manager = given.is_some();
        let request_id = given.unwrap_or(client_request_id);
        tracing::debug!(
            http.method = %method,
            http.path = url.path(),
            http.status = status.as_u16(),
            elapsed.ms = begun.elapsed().as_millis(),
            arm.request_id = request_id,
            arm.correlation_id = text(&headers, "x-ms-correlation-request-id"),
            "called Resource Manager"
        );
        Ok(Reply { status, headers, body, request_id: Some(request_id), by_resource_manager })
    }
}

/// The span of a call that nobody waits for any more ends as one that failed.
struct GivenUp(Option<Span>);

impl Drop for GivenUp {
    fn drop(&mut self) {
        if let Some(span) = &self.0 {
            span.record("otel.status_code", "ERROR");
            span.record("otel.status_description", "given up: no answer in time");
        }
    }
}
