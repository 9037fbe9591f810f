//! May a write start now? Preconditions on the ETag, and one write at a time.

use std::sync::Arc;

use serde_json::json;

use super::{errors::ArmError, ids::ResourceId, store::Resource};
use crate::{http::Call, resources, world::World};

/// `If-Match` and `If-None-Match` against the ETag that a read would show.
pub(super) fn precondition(
    world: &World,
    call: &Call,
    id: &ResourceId,
    old: Option<&Arc<Resource>>,
) -> Result<(), ArmError> {
    if !world.settings.if_match {
        return Ok(());
    }
    let etag = old.and_then(|r| resources::etag(&world.store, r));
    let fails = |code: &str, message: String| {
        let mut error = ArmError::new(412, "PreconditionFailed", "Precondition failed.");
        error.details.push(json!({"code": code, "message": message}));
        Err(error)
    };
    if let Some(wanted) = call.header("if-match").filter(|w| *w != "*" || old.is_none())
        && etag.as_deref() != Some(wanted)
    {
        return fails(
            "PreconditionFailedEtagMismatch",
            format!(
                "Etag provided in if-match header {wanted} does not match etag {} of resource {} in NRP data store.",
                etag.unwrap_or_default(),
                id.text
            ),
        );
    }
    if call.header("if-none-match") == Some("*") && old.is_some() {
        return fails("PreconditionFailedResourceExists", format!("Resource {} exists.", id.text));
    }
    Ok(())
}

/// Who holds the write lock of the resource's top level decides whether this write may start.
pub(super) fn take_turn(
    world: &mut World,
    call: &Call,
    id: &ResourceId,
    deletes: bool,
) -> Result<(), ArmError> {
    let root = id.root();
    let Some(running) = world.operations.running(&root.key) else { return Ok(()) };
    // A firewall refuses what comes too early, where other types let a whole write replace the one under way.
    let whole = root.key == id.key
        && !matches!(root.kind().as_str(), "network/azurefirewalls" | "network/firewallpolicies");
    if whole && !deletes && !running.deletes_whole() {
        world.supersede(&root.key);
        return Ok(());
    }
    let version = call.query("api-version").unwrap_or("2025-01-01");
    let uri = running.path(&call.base, "operations", version);
    let message = format!(
        "Another operation on this or dependent resource is in progress. To retrieve status of the operation use uri: {uri}."
    );
    if root.kind() == "network/networksecuritygroups" {
        let mut error = ArmError::new(429, "RetryableError", "A retryable error occurred.");
        error.details.push(json!({
            "code": "RetryableErrorDueToAnotherOperation",
            "message": format!("Operation {} on resource {} is in progress. {message}", running.kind, running.target.text)}));
        if let Some(seconds) = world.settings.retry_after {
            error = error.with_header("Retry-After", seconds.to_string());
        }
        return Err(error);
    }
    Err(ArmError::conflict("AnotherOperationInProgress", message))
}
