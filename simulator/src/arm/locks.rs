//! Management locks: `CanNotDelete` refuses deletes, `ReadOnly` refuses every write, both for the scope they are
//! on and everything below it.

use serde_json::Value;

use super::{errors::ArmError, ids::ResourceId, store::Store};

const SUFFIX: &str = "/providers/microsoft.authorization/locks/";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Act {
    Write,
    Delete,
}

/// Refuses what a lock on the resource, or on any scope above, forbids. Deleting a scope is also refused by locks
/// below it.
pub(crate) fn check(store: &Store, id: &ResourceId, act: Act) -> Result<(), ArmError> {
    if id.full_type().eq_ignore_ascii_case("Microsoft.Authorization/locks") {
        return Ok(());
    }
    let mut blocking: Vec<String> = vec![];
    let mut visit = |scope: &str| {
        let prefix = format!("{scope}{SUFFIX}");
        for lock in store.under(&prefix) {
            let read_only = lock.properties()["level"].as_str() == Some("ReadOnly");
            if act == Act::Delete || read_only {
                blocking.push(lock.id().text.clone());
            }
        }
    };
    for scope in scopes(&id.key) {
        visit(scope);
    }
    if act == Act::Delete {
        let below = format!("{}/", id.key);
        let locks = store.under(&below).filter(|r| r.id().key.contains(SUFFIX));
        let own = format!("{}{SUFFIX}", id.key);
        for lock in locks.filter(|l| !l.id().key.starts_with(&own)) {
            blocking.push(lock.id().text.clone());
        }
    }
    if blocking.is_empty() {
        return Ok(());
    }
    let verb = if act == Act::Delete { "delete" } else { "write" };
    Err(ArmError::conflict(
        "ScopeLocked",
        format!(
            "The scope '{}' cannot perform {verb} operation because following scope(s) are locked: '{}'. Please remove the lock and try again.",
            id.text,
            blocking.iter().map(|l| &l[..l.len() - suffix_len(l)]).collect::<Vec<_>>().join(",")
        ),
    ))
}

fn suffix_len(lock: &str) -> usize {
    lock.len() - lock.to_lowercase().rfind("/providers/microsoft.authorization/").unwrap_or(lock.len())
}

/// Every prefix of a key that is a scope: subscription, group, resource, nested resource.
fn scopes(key: &str) -> Vec<&str> {
    let mut ends: Vec<usize> = key.match_indices('/').map(|(i, _)| i).skip(1).collect();
    ends.push(key.len());
    ends.into_iter().map(|end| &key[..end]).collect()
}

/// Locks that a list at `scope` shows: on it, above it and, unless `at_scope`, below it.
pub(crate) fn listed(store: &Store, scope: &str, at_scope: bool) -> Vec<ResourceId> {
    let scope = scope.to_lowercase();
    let subscription: String = scope.split('/').take(3).collect::<Vec<_>>().join("/");
    let prefix = format!("{subscription}/");
    let locks = store.under(&prefix).filter(|r| r.id().key.contains(SUFFIX));
    locks
        .filter(|lock| {
            let on = lock.id().extends.as_deref().unwrap_or("").to_lowercase();
            on == scope
                || scope.starts_with(&format!("{on}/"))
                || (!at_scope && on.starts_with(&format!("{scope}/")))
        })
        .map(|lock| lock.id().clone())
        .collect()
}

/// Checks a lock's document.
pub(crate) fn prepare(body: &Value) -> Result<Value, ArmError> {
    let level = body["properties"]["level"].as_str().unwrap_or("");
    let known = ["CanNotDelete", "ReadOnly"].into_iter().find(|l| l.eq_ignore_ascii_case(level));
    let Some(level) = known else {
        return Err(ArmError::bad(
            "InvalidLockLevel",
            format!("The lock level '{level}' is not valid. It must be CanNotDelete or ReadOnly."),
        ));
    };
    let mut kept = serde_json::json!({"properties": body["properties"]});
    kept["properties"]["level"] = Value::from(level);
    Ok(kept)
}
