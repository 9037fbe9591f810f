//! Token endpoints: client credentials with a secret or an assertion, and the instance metadata service.

use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    keys,
    principals::{Federated, Principal},
    text,
};
use crate::{
    http::{Call, Reply},
    world::World,
};

/// The claims of a token, unverified.
pub(crate) fn unverified(token: &str) -> Option<Value> {
    keys::claims_of(token.rsplit_once('.')?.0)
}

fn refuse(world: &World, status: u16, error: &str, number: u32, description: &str) -> Reply {
    let trace = Uuid::new_v4().to_string();
    Reply::json(
        status,
        json!({
            "error": error,
            "error_description": format!("AADSTS{number}: {description} Trace ID: {trace} Timestamp: {}", world.now()),
            "error_codes": [number], "timestamp": world.now().to_string(), "trace_id": trace,
            "correlation_id": Uuid::new_v4().to_string(), "error_uri": "",
        }),
    )
}

/// `POST /{tenant}/oauth2/v2.0/token` and the older `/oauth2/token`.
pub(crate) fn issue(world: &mut World, call: &Call, tenant: &str) -> Reply {
    let form = call.form();
    let field = |name: &str| form.iter().find(|(k, _)| k == name).map_or("", |(_, v)| v.as_str());
    if field("grant_type") != "client_credentials" {
        return refuse(
            world,
            400,
            "unsupported_grant_type",
            70003,
            "The grant type must be client_credentials.",
        );
    }
    let any = matches!(tenant, "common" | "organizations");
    let known = world.principals.all.iter().any(|p| world.principals.tenant_of(p) == tenant);
    if !any && !known {
        return refuse(
            world,
            400,
            "invalid_request",
            90002,
            &format!("Tenant '{tenant}' not found. Check to make sure you have the correct tenant ID."),
        );
    }
    let client = field("client_id");
    let found = world.principals.find(client).filter(|p| any || world.principals.tenant_of(p) == tenant);
    let Some(principal) = found.cloned() else {
        return refuse(
            world,
            400,
            "unauthorized_client",
            700_016,
            &format!("Application with identifier '{client}' was not found in the directory '{tenant}'."),
        );
    };
    let assertion = field("client_assertion");
    if assertion.is_empty() {
        if !principal.secrets.iter().any(|s| s == field("client_secret")) {
            return refuse(world, 401, "invalid_client", 7_000_215, "Invalid client secret provided.");
        }
    } else if let Err(why) = assertion_fits(world, &principal, assertion) {
        return refuse(world, 401, "invalid_client", 70021, &why);
    }
    let scope = field("scope");
    let audience = if scope.is_empty() {
        field("resource")
    } else {
        scope.split(' ').next().unwrap_or("").trim_end_matches(".default").trim_end_matches('/')
    };
    if audience.is_empty() {
        return refuse(world, 400, "invalid_scope", 70011, "The provided value for 'scope' is not valid.");
    }
    let lifetime = whole_seconds(world);
    let token = sign(world, &principal, audience);
    Reply::ok(json!({"token_type": "Bearer", "expires_in": lifetime, "ext_expires_in": lifetime,
        "expires_on": (world.now().as_second() + lifetime).to_string(), "resource": audience, "access_token": token}))
}

fn assertion_fits(world: &World, principal: &Principal, assertion: &str) -> Result<(), String> {
    let claims = unverified(assertion).ok_or("The client assertion is not a JWT.")?;
    let audiences: Vec<&str> = match claims["aud"].as_array() {
        Some(list) => list.iter().filter_map(Value::as_str).collect(),
        None => vec![text(&claims, "aud")],
    };
    let fits = |f: &&Federated| {
        f.issuer == text(&claims, "iss")
            && f.subject == text(&claims, "sub")
            && audiences.contains(&f.audience.as_str())
    };
    let federated = principal.federated.iter().find(fits).ok_or_else(|| {
        format!(
            "No matching federated identity record found for presented assertion. Assertion Issuer: '{}'. Assertion Subject: '{}'. Assertion Audience: '{}'.",
            text(&claims, "iss"),
            text(&claims, "sub"),
            audiences.join(",")
        )
    })?;
    if claims["exp"].as_i64().is_none_or(|exp| exp <= world.now().as_second()) {
        return Err("The client assertion has expired.".into());
    }
    if federated.jwks.as_ref().is_some_and(|jwks| !keys::signed_by(assertion, jwks)) {
        return Err("The client assertion's signature does not verify with the issuer's keys.".into());
    }
    Ok(())
}

fn whole_seconds(world: &World) -> i64 {
    world.settings.token_lifetime.0.as_secs()
}

fn sign(world: &World, principal: &Principal, audience: &str) -> String {
    let tenant = world.principals.tenant_of(principal);
    let now = world.now().as_second();
    let object = principal.object_id();
    keys::shared().sign(&json!({
        "aud": audience, "iss": format!("https://sts.windows.net/{tenant}/"), "iat": now, "nbf": now,
        "exp": now + whole_seconds(world), "appid": principal.client_id, "appidacr": "1", "idtyp": "app",
        "oid": object, "sub": object, "tid": tenant, "uti": Uuid::new_v4().simple().to_string(), "ver": "1.0",
    }))
}

/// `GET /metadata/identity/oauth2/token`, as on a machine with a managed identity.
pub(crate) fn managed_identity(world: &mut World, call: &Call) -> Reply {
    let bad = |description: &str| {
        Reply::json(400, json!({"error": "invalid_request", "error_description": description}))
    };
    if !call.header("metadata").is_some_and(|v| v.eq_ignore_ascii_case("true")) {
        return bad("Required metadata header not specified");
    }
    if call.query("api-version").is_none() {
        return bad("Required query variable 'api-version' is missing");
    }
    let Some(resource) = call.query("resource") else {
        return bad("Required query variable 'resource' is missing");
    };
    let found = match call.query("client_id") {
        Some(client) => world.principals.find(client).filter(|p| p.managed_identity),
        None => world.principals.all.iter().find(|p| p.managed_identity),
    };
    let Some(principal) = found.cloned() else { return bad("Identity not found") };
    let lifetime = whole_seconds(world);
    let expires = world.now().as_second() + lifetime;
    let token = sign(world, &principal, resource);
    Reply::ok(json!({
        "access_token": token, "client_id": principal.client_id, "expires_in": lifetime.to_string(),
        "expires_on": expires.to_string(), "ext_expires_in": lifetime.to_string(),
        "not_before": world.now().as_second().to_string(), "resource": resource, "token_type": "Bearer",
    }))
}
