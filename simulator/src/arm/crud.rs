//! GET, PUT, PATCH, DELETE and lists, the same for every type; what differs is in [`crate::resources`].

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::{
    errors::ArmError,
    ids::ResourceId,
    locks::{self, Act},
    operations::Bend,
    paging, poll,
    store::{Resource, State, Store},
    turn::{precondition, take_turn},
    validate,
};
use crate::{
    control::faults::Plan,
    http::{Call, Reply},
    identity::principals::Caller,
    resources::{self, Prepared},
    world::{Start, World},
};

/// Reads the store, or the store of some time ago when a fault says so.
pub(crate) fn view<T>(world: &World, plan: &Plan, read: impl FnOnce(&Store) -> T) -> T {
    match plan.stale {
        Some(age) => {
            let then = world.now().checked_sub(age.0).unwrap_or(jiff::Timestamp::MIN);
            read(&world.store.at(then))
        }
        None => read(&world.store),
    }
}

pub(crate) fn group_exists(world: &World, group: &ResourceId) -> Result<(), ArmError> {
    exists_in(&world.store, group)
}

fn exists_in(store: &Store, group: &ResourceId) -> Result<(), ArmError> {
    if store.has(&group.key) {
        return Ok(());
    }
    Err(ArmError::not_found(
        "ResourceGroupNotFound",
        format!("Resource group '{}' could not be found.", group.name()),
    ))
}

/// The group and the parent of a resource must exist.
fn ancestors(store: &Store, id: &ResourceId) -> Result<(), ArmError> {
    if let Some(group) = id.group_id() {
        exists_in(store, &group)?;
    }
    if let Some(parent) = id.parent().filter(|p| !store.has(&p.key)) {
        return Err(ArmError::not_found(
            "ParentResourceNotFound",
            format!(
                "Can not perform requested operation on nested resource. Parent resource '{}' not found.",
                parent.names.join("/")
            ),
        ));
    }
    if let Some(scope) = id.extends.as_ref().and_then(|s| ResourceId::parse(s))
        && !store.has(&scope.key)
    {
        return Err(absent(&scope));
    }
    Ok(())
}

fn absent(id: &ResourceId) -> ArmError {
    if id.is_group() {
        return ArmError::not_found(
            "ResourceGroupNotFound",
            format!("Resource group '{}' could not be found.", id.name()),
        );
    }
    if id.types.len() > 1 {
        return ArmError::not_found("NotFound", format!("Resource {} not found.", id.text));
    }
    if id.full_type() == "Microsoft.Authorization/locks" {
        return ArmError::not_found("LockNotFound", format!("The lock '{}' could not be found.", id.name()));
    }
    ArmError::not_found(
        "ResourceNotFound",
        format!(
            "The Resource '{}/{}' under resource group '{}' was not found. For more details please go to https://aka.ms/ARMResourceNotFoundFix",
            id.full_type(),
            id.names.join("/"),
            id.group.as_deref().unwrap_or("")
        ),
    )
}

pub(crate) fn get(
    world: &mut World,
    call: &Call,
    caller: &Caller,
    plan: &Plan,
    id: &ResourceId,
) -> Result<Reply, ArmError> {
    caller.require(world, &id.action("read"), &id.text)?;
    let now = world.now();
    view(world, plan, |store| {
        ancestors(store, id)?;
        let resource = store.get(&id.key).ok_or_else(|| absent(id))?;
        let body = resources::expanded(store, &resource, call, now);
        Ok(with_etag(store, &resource, Reply::ok(body)))
    })
}

fn with_etag(store: &Store, resource: &Resource, reply: Reply) -> Reply {
    match resources::etag(store, resource) {
        Some(etag) => reply.with_header("ETag", etag),
        None => reply,
    }
}

pub(crate) fn list(
    world: &mut World,
    call: &Call,
    caller: &Caller,
    plan: &Plan,
    id: &ResourceId,
) -> Result<Reply, ArmError> {
    let scope = id.text.split("/providers/").next().unwrap_or(&id.text).to_owned();
    // The right to list children is one on their parent.
    let parent = id.text.rsplit_once('/').map(|(parent, _)| parent).filter(|_| !id.names.is_empty());
    caller.require(world, &id.action("read"), parent.unwrap_or(&scope))?;
    let now = world.now();
    let items = view(world, plan, |store| -> Result<Vec<Value>, ArmError> {
        if id.full_type() == "Microsoft.Authorization/locks" {
            let scope = id.extends.clone().unwrap_or_default();
            let at_scope = call.query("$filter").is_some_and(|f| f.contains("atScope()"));
            let found = locks::listed(store, &scope, at_scope);
            let found = found.iter().filter_map(|l| store.get(&l.key));
            return Ok(found.map(|l| resources::render(store, &l)).collect());
        }
        let mut items = vec![];
        if id.is_group() {
            let prefix = format!("{}/resourcegroups/", id.key);
            for group in store.under(&prefix).filter(|r| r.id().is_group()) {
                items.push(resources::render(store, group));
            }
            return Ok(items);
        }
        if let Some(group) = id.group_id() {
            exists_in(store, &group)?;
        }
        if id.names.is_empty() {
            let prefix = format!("{scope}/").to_lowercase();
            let wanted = id.full_type();
            for found in store.under(&prefix).filter(|r| r.id().full_type() == wanted) {
                items.push(resources::expanded(store, found, call, now));
            }
        } else {
            let cut = id.text.rfind('/').unwrap_or(0);
            let parent = ResourceId::parse(&id.text[..cut]);
            let parent = parent.ok_or_else(|| absent(id))?;
            ancestors(store, &parent)?;
            if !store.has(&parent.key) {
                return Err(absent(&parent));
            }
            let kind = id.types.last().cloned().unwrap_or_default();
            for child in store.children(&parent.key, &kind) {
                items.push(resources::render(store, &child));
            }
        }
        Ok(items)
    })?;
    paging::page(call, world.settings.page_size, items)
}

pub(crate) fn put(
    world: &mut World,
    call: &Call,
    caller: &Caller,
    plan: &Plan,
    id: &ResourceId,
) -> Result<Reply, ArmError> {
    caller.require(world, &id.action("write"), &id.text)?;
    resources::providers::registered(world, id)?;
    if !id.is_group() {
        ancestors(&world.store, id)?;
    }
    locks::check(&world.store, id, Act::Write)?;
    let old = world.store.get(&id.key);
    // What exists keeps the spelling that it was created with.
    let id = &old.as_ref().map_or_else(|| id.clone(), |o| o.id().clone());
    precondition(world, call, id, old.as_ref())?;
    let mut body = call.json()?;
    validate::tags(&body)?;
    if resources::located(id) {
        validate::keep_location(id, &mut body, old.as_ref().map(|r| r.body()))?;
    }
    let prepared = resources::prepare(world, id, old.as_ref(), body)?;
    take_turn(world, call, id, false)?;
    commit(world, call, plan, id, old.is_none(), prepared)
}

/// Stores what has been checked, and starts its operation.
fn commit(
    world: &mut World,
    call: &Call,
    plan: &Plan,
    id: &ResourceId,
    created: bool,
    prepared: Prepared,
) -> Result<Reply, ArmError> {
    let status = if created { resources::created_status(id) } else { 200 };
    let background = resources::long_running(id);
    let state = if background { State::Updating } else { State::Succeeded };
    let mut touched = vec![id.key.clone(), id.root().key];
    touched.dedup();
    for (kind, items) in prepared.embedded {
        let wanted: BTreeMap<String, (ResourceId, Value)> =
            items.into_iter().map(|(i, body)| (i.key.clone(), (i, body))).collect();
        for child in world.store.children(&id.key, kind) {
            if !wanted.contains_key(&child.id().key) {
                world.remove_tree(&child.id().key.clone());
            }
        }
        for (key, (child, body)) in wanted {
            let same =
                world.store.get(&key).is_some_and(|old| *old.body() == body && old.state == State::Succeeded);
            if !same {
                world.store_body(&child, body, state);
                touched.push(key);
            }
        }
    }
    for (other, body) in prepared.beside {
        world.store_body(&other, body, State::Succeeded);
        world.push(&other.root().key);
    }
    if id.parent().is_none() {
        // Children that a superseded write left unfinished are finished by this one.
        let below = format!("{}/", id.key);
        let unfinished = world.store.under(&below).filter(|r| r.state != State::Succeeded);
        touched.extend(unfinished.map(|r| r.id().key.clone()));
    }
    world.store_body(id, prepared.body, state);
    if !background {
        world.push(&id.root().key);
        return Ok(written(world, call, status, id));
    }
    let start = Start {
        kind: format!("{}.write", id.types.last().map_or("resourceGroups", String::as_str)),
        target: id.clone(),
        touched,
        removes: vec![],
        undo: vec![],
        deletes: false,
    };
    let bend = match prepared.fails {
        Some(code) => {
            Some(Bend { fails: Some(code), applies: true, ..plan.bend.clone().unwrap_or_default() })
        }
        None => plan.bend.clone(),
    };
    let operation = world.begin(start, bend);
    let reply = written(world, call, status, id);
    Ok(poll::announce(world, call, operation, reply))
}

fn written(world: &World, call: &Call, status: u16, id: &ResourceId) -> Reply {
    let Some(resource) = world.store.get(&id.key) else { return Reply::empty(status) };
    let body = resources::expanded(&world.store, &resource, call, world.now());
    with_etag(&world.store, &resource, Reply::json(status, body))
}

pub(crate) fn patch(
    world: &mut World,
    call: &Call,
    caller: &Caller,
    plan: &Plan,
    id: &ResourceId,
) -> Result<Reply, ArmError> {
    caller.require(world, &id.action("write"), &id.text)?;
    ancestors(&world.store, id)?;
    let old = world.store.get(&id.key).ok_or_else(|| absent(id))?;
    locks::check(&world.store, id, Act::Write)?;
    precondition(world, call, id, Some(&old))?;
    let change = call.json()?;
    validate::tags(&change)?;
    let mut body = old.body().clone();
    if resources::merges(id) {
        merge(&mut body, &change);
        let id = old.id().clone();
        let prepared = resources::prepare(world, &id, Some(&old), body)?;
        take_turn(world, call, &id, false)?;
        return commit(world, call, plan, &id, false, prepared);
    }
    if change.as_object().is_some_and(|m| m.keys().any(|k| k != "tags")) {
        return Err(ArmError::bad(
            "InvalidRequestContent",
            "A PATCH of this type takes 'tags' alone; use PUT for the other properties.",
        ));
    }
    body["tags"] = change["tags"].clone();
    let etag = world.new_etag();
    let fact = Arc::new(super::store::Fact { id: old.id().clone(), body });
    world.mutations.push((id.text.clone(), "updated"));
    world.store.put(world.now(), Resource { fact, etag, state: old.state });
    Ok(written(world, call, 200, id))
}

/// RFC 7386.
pub(crate) fn merge(into: &mut Value, change: &Value) {
    let Some(change) = change.as_object() else {
        *into = change.clone();
        return;
    };
    if !into.is_object() {
        *into = json!({});
    }
    for (name, value) in change {
        if value.is_null() {
            if let Some(map) = into.as_object_mut() {
                map.remove(name);
            }
        } else {
            merge(&mut into[name.as_str()], value);
        }
    }
}

pub(crate) fn delete(
    world: &mut World,
    call: &Call,
    caller: &Caller,
    plan: &Plan,
    id: &ResourceId,
) -> Result<Reply, ArmError> {
    caller.require(world, &id.action("delete"), &id.text)?;
    if id.is_group() {
        group_exists(world, id)?;
    }
    ancestors(&world.store, id)?;
    let Some(old) = world.store.get(&id.key) else { return Ok(Reply::empty(204)) };
    let id = &old.id().clone();
    locks::check(&world.store, id, Act::Delete)?;
    precondition(world, call, id, Some(&old))?;
    resources::deletable(world, &old)?;
    take_turn(world, call, id, true)?;
    if !resources::long_running(id) && !id.is_group() {
        world.remove_tree(&id.key);
        world.push(&id.root().key);
        return Ok(Reply::empty(200));
    }
    let root = id.root();
    let nested = root.key != id.key;
    let mut start = Start {
        kind: format!("{}.delete", id.types.last().map_or("resourceGroups", String::as_str)),
        target: id.clone(),
        touched: vec![root.key],
        removes: vec![],
        undo: vec![],
        deletes: true,
    };
    if nested {
        // The goal state is without it from now on; the data plane follows when the operation succeeds.
        start.undo = world.remove_tree(&id.key);
    } else {
        start.removes = vec![id.key.clone()];
        start.removes.extend(resources::deleted_with(world, &old));
        world.mutations.push((id.text.clone(), "deleted"));
    }
    let operation = world.begin(start, plan.bend.clone());
    Ok(poll::announce(world, call, operation, Reply::empty(202)))
}
