//! POST actions on resources.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    arm::{
        errors::ArmError,
        ids::ResourceId,
        poll,
        store::{Fact, Resource},
    },
    control::faults::Plan,
    http::{Call, Reply},
    identity::principals::Caller,
    oracle::plane,
    resources::vm,
    world::{Start, World},
};

/// Runs `POST {resource}/{action}`; `path` has the action as its last type.
pub(crate) fn run(
    world: &mut World,
    call: &Call,
    caller: &Caller,
    plan: &Plan,
    path: &ResourceId,
) -> Result<Reply, ArmError> {
    let cut = path.text.rfind('/').unwrap_or(0);
    let action = path.text[cut + 1..].to_owned();
    let unknown = || {
        ArmError::not_found(
            "InvalidAction",
            format!("The action '{action}' is not known on '{}'.", &path.text[..cut]),
        )
    };
    let id = ResourceId::parse(&path.text[..cut]).ok_or_else(unknown)?;
    caller.require(world, &format!("{}/{action}/action", id.full_type()), &id.text)?;
    let found = world.store.get(&id.key).ok_or_else(|| {
        ArmError::not_found("ResourceNotFound", format!("The Resource '{}' was not found.", id.text))
    })?;
    match (id.kind().as_str(), action.to_lowercase().as_str()) {
        ("network/virtualnetworks", "listnetworkmanagereffectivesecurityadminrules") => {
            Ok(Reply::ok(json!({"value": plane::admin_rules_as_listed(&world.plane, &id.key)})))
        }
        ("compute/virtualmachines", "start" | "restart") => power(world, call, plan, &found, "running"),
        ("compute/virtualmachines", "poweroff") => power(world, call, plan, &found, "stopped"),
        ("compute/virtualmachines", "deallocate") => power(world, call, plan, &found, "deallocated"),
        ("compute/virtualmachines", "instanceview") => Ok(Reply::ok(vm::instance_view(&found, world.now()))),
        _ => Err(unknown()),
    }
}

fn power(
    world: &mut World,
    call: &Call,
    plan: &Plan,
    machine: &Arc<Resource>,
    state: &str,
) -> Result<Reply, ArmError> {
    let mut body = machine.body().clone();
    body["powerState"] = Value::from(state);
    let fact = Arc::new(Fact { id: machine.id().clone(), body });
    let changed = Resource { fact, etag: world.new_etag(), state: machine.state };
    world.store.put(world.now(), changed);
    let start = Start {
        kind: "virtualMachines.power".into(),
        target: machine.id().clone(),
        touched: vec![machine.id().key.clone()],
        removes: vec![],
        undo: vec![],
        deletes: false,
    };
    let operation = world.begin(start, plan.bend.clone());
    Ok(poll::announce(world, call, operation, Reply::empty(202)))
}
