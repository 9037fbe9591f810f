//! The HTTP clients, and what all answers have in common.

use std::path::Path;
use std::time::Duration;

use super::config::{CloudConfig, ConfigError, Endpoints, is_loopback};

/// A client for Resource Manager and the endpoint of tokens. It follows no redirect: that would carry a token
/// or a secret to wherever the answer says.
pub(super) fn client(cloud: &CloudConfig, endpoints: &Endpoints) -> Result<reqwest::Client, ConfigError> {
    let mut builder = plain();
    if let Some(path) = &cloud.ca_file {
        builder = builder.tls_certs_merge(certificates(path)?);
    }
    let plain_http =
        [&endpoints.resource_manager, &endpoints.authority].iter().any(|url| url.scheme() == "http");
    if !plain_http {
        builder = builder.https_only(true);
    }
    if is_loopback(&endpoints.resource_manager) {
        builder = builder.no_proxy();
    }
    builder.build().map_err(|error| ConfigError::new("cloud", describe(error)))
}

/// A client for the metadata service, which is never behind a proxy.
pub(super) fn metadata_client() -> Result<reqwest::Client, ConfigError> {
    plain().no_proxy().build().map_err(|error| ConfigError::new("cloud", describe(error)))
}

fn plain() -> reqwest::ClientBuilder {
    // Installed by whoever comes first; a second time changes nothing.
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder()
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(Duration::from_secs(5))
        .pool_idle_timeout(Duration::from_secs(60))
        .tcp_keepalive(Duration::from_secs(30))
}

fn certificates(path: &Path) -> Result<Vec<reqwest::Certificate>, ConfigError> {
    let wrong = |why: String| ConfigError::new("cloud.caFile", format!("{}: {why}", path.display()));
    let pem = std::fs::read(path).map_err(|error| wrong(error.to_string()))?;
    let found = reqwest::Certificate::from_pem_bundle(&pem).map_err(|error| wrong(describe(error)))?;
    if found.is_empty() {
        return Err(wrong("holds no certificate in PEM".into()));
    }
    Ok(found)
}

/// A transport error with its causes, on one line.
pub(super) fn describe(error: reqwest::Error) -> String {
    let error = error.without_url();
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    super::errors::shorten(&text)
}

/// The whole body, as long as it is no longer than `most` bytes.
pub(super) async fn bounded(mut response: reqwest::Response, most: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(describe)? {
        if body.len() + chunk.len() > most {
            return Err(format!("the answer is longer than {most} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}
