//! The two addresses of a long-running operation.

use serde_json::json;
use uuid::Uuid;

use super::{
    errors::ArmError,
    operations::{Operation, Status},
};
use crate::{
    http::{Call, Reply},
    resources,
    world::World,
};

/// Adds the polling headers to the answer of a write.
pub(crate) fn announce(world: &World, call: &Call, id: Uuid, reply: Reply) -> Reply {
    let Some(operation) = world.operations.all.get(&id) else { return reply };
    let version = call.query("api-version").unwrap_or("2025-01-01");
    let mut reply = reply;
    if !operation.target.is_group() {
        reply = reply.with_header("Azure-AsyncOperation", operation.path(&call.base, "operations", version));
    }
    if operation.deletes {
        reply = reply.with_header("Location", operation.path(&call.base, "operationResults", version));
    }
    with_wait(world, reply)
}

fn with_wait(world: &World, reply: Reply) -> Reply {
    match world.settings.retry_after {
        Some(seconds) => reply.with_header("Retry-After", seconds.to_string()),
        None => reply,
    }
}

fn find<'a>(world: &'a World, id: &str) -> Result<&'a Operation, ArmError> {
    id.parse::<Uuid>().ok().and_then(|id| world.operations.all.get(&id)).ok_or_else(|| {
        ArmError::not_found("OperationNotFound", format!("The operation '{id}' was not found."))
    })
}

/// `…/operations/{id}`: 200 with a status.
pub(crate) fn status(world: &World, id: &str) -> Result<Reply, ArmError> {
    let operation = find(world, id)?;
    let now = world.now();
    let reply = Reply::ok(operation.body(now));
    Ok(if operation.shown(now) == Status::InProgress { with_wait(world, reply) } else { reply })
}

/// `…/operationResults/{id}`: 202 while it runs, then what the write would have answered at once.
pub(crate) fn result(world: &World, call: &Call, id: &str) -> Result<Reply, ArmError> {
    let operation = find(world, id)?;
    match operation.shown(world.now()) {
        Status::InProgress => {
            let reply =
                Reply::empty(202).with_header("Location", format!("{}{}", call.base, with_query(call)));
            Ok(with_wait(world, reply))
        }
        Status::Succeeded if operation.deletes => {
            Ok(if operation.target.is_group() { Reply::empty(200) } else { Reply::empty(204) })
        }
        Status::Succeeded => match world.store.get(&operation.target.key) {
            Some(resource) => Ok(Reply::ok(resources::render(&world.store, &resource))),
            None => Ok(Reply::empty(204)),
        },
        Status::Failed | Status::Canceled => {
            let error = operation.error.clone().unwrap_or_default();
            Ok(Reply::json(409, json!({"error": error})))
        }
    }
}

fn with_query(call: &Call) -> String {
    format!("{}?api-version={}", call.path, call.query("api-version").unwrap_or(""))
}
