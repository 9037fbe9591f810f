//! Resource Manager: every request goes through the same steps here. Faults, then who calls, api-version,
//! throttling, permission, and only then the resource.

pub(crate) mod crud;
pub(crate) mod errors;
pub(crate) mod ids;
pub(crate) mod locks;
pub(crate) mod operations;
pub(crate) mod paging;
pub(crate) mod poll;
pub(crate) mod router;
pub(crate) mod shape;
pub(crate) mod store;
pub(crate) mod throttle;
mod turn;
pub(crate) mod validate;

use serde_json::Value;
use uuid::Uuid;

use self::errors::ArmError;
use crate::{
    control::{
        activity::Entry,
        clock::Span,
        faults::{LateAnswer, Plan},
    },
    http::{Call, Reply},
    identity::{self, principals::Caller},
    world::World,
};

/// What the connection is to do.
#[derive(Debug)]
pub(crate) enum Outcome {
    Answer(Reply),
    /// Answer after this long.
    Slow(Reply, Span),
    /// Reset the connection.
    Reset,
}

/// Handles a request at this instant, bent by the faults that strike it.
pub(crate) fn answer(world: &mut World, call: &Call, plan: &Plan) -> Outcome {
    world.at_once(|world| {
        world.mutations.clear();
        let request_id = Uuid::new_v4().to_string();
        let correlation_id =
            call.header("x-ms-correlation-request-id").map_or_else(|| request_id.clone(), str::to_owned);
        let outcome = if plan.drop_before {
            Outcome::Reset
        } else if let Some((status, code, message, retry_after)) = &plan.status {
            let mut error = ArmError::new(*status, code, message.clone());
            if let Some(seconds) = retry_after {
                error = error.with_header("Retry-After", seconds.to_string());
            }
            Outcome::Answer(error.into())
        } else if let Some((after, kind)) = plan.late {
            postpone(world, call, after, kind)
        } else {
            let reply = serve(world, call, plan).unwrap_or_else(Reply::from);
            match (plan.reset_after, plan.timeout_after) {
                (true, _) => Outcome::Reset,
                (false, Some(span)) => Outcome::Slow(gateway_timeout(), span),
                (false, None) => Outcome::Answer(reply),
            }
        };
        record(world, call, &outcome, plan, (&request_id, &correlation_id));
        finish(world, call, outcome, &request_id, &correlation_id)
    })
}

fn gateway_timeout() -> Reply {
    let message = "The gateway did not receive a response from the resource provider in time.";
    ArmError::new(504, "GatewayTimeout", message).into()
}

fn postpone(world: &mut World, call: &Call, after: Span, kind: LateAnswer) -> Outcome {
    match identity::authenticate(world, call) {
        Err(error) => Outcome::Answer(error.into()),
        Ok(caller) => {
            world.write_later(after, call.clone(), caller);
            match kind {
                LateAnswer::Timeout => Outcome::Answer(gateway_timeout()),
                LateAnswer::Reset => Outcome::Reset,
            }
        }
    }
}

/// Handles a write whose time has come long after its sender was answered.
pub(crate) fn land(world: &mut World, call: &Call, caller: &Caller) {
    world.mutations.clear();
    let plan = Plan::default();
    let reply = router::route(world, call, caller, &plan).unwrap_or_else(Reply::from);
    let mut entry = entry(world, call, &Outcome::Answer(reply), &plan, ("", ""));
    entry.late = true;
    world.activity.record(entry);
}

fn serve(world: &mut World, call: &Call, plan: &Plan) -> Result<Reply, ArmError> {
    if let Some(reply) = identity::route(world, call) {
        return Ok(reply);
    }
    let caller = identity::authenticate(world, call)?;
    let version = call.query("api-version").ok_or_else(|| {
        ArmError::bad(
            "MissingApiVersionParameter",
            "The api-version query parameter (?api-version=) is required for all requests.",
        )
    })?;
    validate::api_version(version)?;
    let subscription = subscription_of(&call.path);
    let counted = world.throttle.count(
        (&subscription, &caller.object_id),
        &call.method,
        call.path.to_lowercase().contains("/providers/microsoft.network/"),
        world.now(),
        world.settings.throttle,
    )?;
    let mut reply = router::route(world, call, &caller, plan).unwrap_or_else(Reply::from);
    reply.headers.push(counted);
    Ok(reply)
}

fn subscription_of(path: &str) -> String {
    let mut parts = path.split('/').filter(|p| !p.is_empty());
    match (parts.next(), parts.next()) {
        (Some(first), Some(id)) if first.eq_ignore_ascii_case("subscriptions") => id.to_lowercase(),
        _ => String::new(),
    }
}

fn entry(world: &World, call: &Call, outcome: &Outcome, plan: &Plan, ids: (&str, &str)) -> Entry {
    let reply = match outcome {
        Outcome::Answer(reply) | Outcome::Slow(reply, _) => Some(reply),
        Outcome::Reset => None,
    };
    let code = reply
        .filter(|r| r.status >= 400)
        .and_then(|r| r.body.as_ref())
        .and_then(|b| b["error"]["code"].as_str().or(b["error"].as_str()))
        .map(str::to_owned);
    // Bodies of token requests hold secrets.
    let secret = call.path.to_lowercase().contains("/oauth2/");
    let body: Option<Value> =
        if secret || call.body.is_empty() { None } else { serde_json::from_slice(&call.body).ok() };
    let digest = ring::digest::digest(&ring::digest::SHA256, &call.body);
    let hex = digest.as_ref().iter().map(|b| format!("{b:02x}")).collect::<String>();
    Entry {
        time: world.now(),
        method: call.method.clone(),
        path: call.path.clone(),
        api_version: call.query("api-version").map(str::to_owned),
        caller: identity::claimed_client(call),
        status: reply.map_or(0, |r| r.status),
        code,
        request_id: ids.0.to_owned(),
        correlation_id: ids.1.to_owned(),
        body_sha256: (!call.body.is_empty()).then_some(hex),
        body,
        mutations: world.mutations.clone(),
        faults: plan.names.clone(),
        late: false,
    }
}

fn record(world: &mut World, call: &Call, outcome: &Outcome, plan: &Plan, ids: (&str, &str)) {
    let entry = entry(world, call, outcome, plan, ids);
    world.activity.record(entry);
}

fn finish(world: &World, call: &Call, outcome: Outcome, request_id: &str, correlation_id: &str) -> Outcome {
    let date = world.now().checked_add(world.clock.date_skew).unwrap_or_else(|_| world.now());
    let add = |mut reply: Reply| {
        reply.headers.push(("Date".into(), date.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string()));
        reply.headers.push(("x-ms-request-id".into(), request_id.to_owned()));
        reply.headers.push(("x-ms-correlation-request-id".into(), correlation_id.to_owned()));
        if let Some(id) = call.header("x-ms-client-request-id") {
            reply.headers.push(("x-ms-client-request-id".into(), id.to_owned()));
        }
        reply.headers.push(("Cache-Control".into(), "no-cache".into()));
        reply
    };
    match outcome {
        Outcome::Answer(reply) => Outcome::Answer(add(reply)),
        Outcome::Slow(reply, span) => Outcome::Slow(add(reply), span),
        Outcome::Reset => Outcome::Reset,
    }
}
