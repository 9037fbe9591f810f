//! Who calls: tokens are issued here and verified here, as Microsoft Entra ID and Resource Manager do it.

pub(crate) mod keys;
pub(crate) mod metadata;
pub(crate) mod principals;
pub(crate) mod token;

use serde_json::Value;

use self::principals::Caller;
use crate::{
    arm::errors::ArmError,
    http::{Call, Reply},
    world::World,
};

/// Audiences that Resource Manager of any cloud goes by.
const AUDIENCES: [&str; 7] = [
    "https://management.azure.com",
    "https://management.core.windows.net",
    "https://management.usgovcloudapi.net",
    "https://management.core.usgovcloudapi.net",
    "https://management.chinacloudapi.cn",
    "https://management.core.chinacloudapi.cn",
    "https://management.local.azurestack.external",
];

/// Answers what needs no token: metadata, openid configuration, token endpoints.
pub(crate) fn route(world: &mut World, call: &Call) -> Option<Reply> {
    let path = call.path.trim_matches('/').to_lowercase();
    let parts: Vec<&str> = path.split('/').collect();
    match (call.method.as_str(), parts.as_slice()) {
        ("GET", ["metadata", "endpoints"]) => Some(metadata::endpoints(call)),
        ("GET", ["metadata", "identity", "oauth2", "token"]) => Some(token::managed_identity(world, call)),
        ("GET", ["common", "discovery", "instance"]) => Some(metadata::instance_discovery(call)),
        ("GET", [tenant, ".well-known", "openid-configuration"])
        | ("GET", [tenant, "v2.0", ".well-known", "openid-configuration"]) => {
            Some(metadata::openid(call, tenant))
        }
        ("GET", [_, "discovery", "v2.0", "keys"]) => Some(Reply::ok(keys::shared().jwks())),
        ("POST", [tenant, "oauth2", "token"]) | ("POST", [tenant, "oauth2", "v2.0", "token"]) => {
            Some(token::issue(world, call, tenant))
        }
        _ => None,
    }
}

/// The client id that a bearer token claims, unverified: for matching faults and for the log.
pub(crate) fn claimed_client(call: &Call) -> Option<String> {
    let token = bearer(call)?;
    let claims = token::unverified(token)?;
    claims["appid"].as_str().map(str::to_owned)
}

fn bearer(call: &Call) -> Option<&str> {
    let header = call.header("authorization")?;
    let (scheme, token) = header.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

fn unauthorized(call: &Call, tenant: &str, code: &str, message: &str) -> ArmError {
    let challenge = format!(
        "Bearer authorization_uri=\"{}/{tenant}\", error=\"invalid_token\", error_description=\"{message}\"",
        call.base
    );
    ArmError::new(401, code, message).with_header("WWW-Authenticate", challenge)
}

/// The token comes from a tenant that the subscription does not trust.
pub(crate) fn wrong_tenant(call: &Call, given: &str, trusted: &str) -> ArmError {
    let message = format!(
        "The access token is from the wrong issuer 'https://sts.windows.net/{given}/'. It must match the tenant 'https://sts.windows.net/{trusted}/' associated with this subscription."
    );
    unauthorized(call, trusted, "InvalidAuthenticationTokenTenant", &message)
}

/// Verifies the bearer token of a call.
///
/// # Errors
/// 401 with `WWW-Authenticate` without a token, or with one that is forged, expired or meant for another.
pub(crate) fn authenticate(world: &World, call: &Call) -> Result<Caller, ArmError> {
    let home = world.principals.tenant.clone();
    let fail = |code: &str, message: &str| Err(unauthorized(call, &home, code, message));
    let Some(token) = bearer(call) else {
        return fail(
            "AuthenticationFailed",
            "Authentication failed. The 'Authorization' header is missing or not in the form 'Bearer token'.",
        );
    };
    let Some(claims) = keys::shared().verify(token) else {
        return fail("InvalidAuthenticationToken", "The access token is invalid.");
    };
    let now = world.now().as_second();
    if claims["exp"].as_i64().is_none_or(|exp| exp <= now) {
        return fail(
            "ExpiredAuthenticationToken",
            &format!(
                "The access token expiry UTC time '{}' is earlier than current UTC time '{}'.",
                claims["exp"],
                world.now()
            ),
        );
    }
    if !audience_fits(call, claims["aud"].as_str().unwrap_or("")) {
        return fail(
            "InvalidAuthenticationTokenAudience",
            &format!(
                "The access token has been obtained for wrong audience or resource '{}'. It should exactly match with one of the allowed audiences '{}'.",
                claims["aud"].as_str().unwrap_or(""),
                AUDIENCES.join(",")
            ),
        );
    }
    let text = |name: &str| claims[name].as_str().unwrap_or("").to_owned();
    Ok(Caller { client_id: text("appid"), object_id: text("oid"), tenant: text("tid") })
}

fn audience_fits(call: &Call, audience: &str) -> bool {
    let audience = audience.trim_end_matches('/');
    let host = |url: &str| url.split_once("://").map(|(_, rest)| rest.to_lowercase());
    AUDIENCES.iter().any(|known| known.eq_ignore_ascii_case(audience))
        || host(audience).is_some_and(|h| host(&call.base).as_deref() == Some(h.as_str()) || is_loopback(&h))
}

/// Another address of this simulator: its other listener, or a proxy before it.
fn is_loopback(host: &str) -> bool {
    let name = host.split(':').next().unwrap_or(host);
    matches!(name, "localhost" | "127.0.0.1" | "[")
}

/// A claim of some document as text.
pub(crate) fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or("")
}
