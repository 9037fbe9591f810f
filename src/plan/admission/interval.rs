//! The interval in which admission has been in force without a break.
//!
//! The API server tells of each admission object its UID, which a new one of the same name does not share, and its
//! generation, which grows with every change of its spec. Who knows both from the beginning of an interval sees at
//! any later moment whether anything happened in between, however briefly, and whoever was watching. So the
//! beginning is written down ([`Record`]), and the moment at which the API server says that it was written is the
//! moment from which admission is known to have been in force.
//!
//! | what is seen | what is written down | next |
//! |---|---|---|
//! | something missing, altered, or going | anything | [`Next::Hold`]: the interval has ended, strike the record |
//! | a kind that is in the record is not served | a record | [`Next::Unknown`]: hold, keep the record |
//! | all as it should be | nothing, or nothing that can be read | [`Next::Begin`] |
//! | all as it should be | the same UIDs and generations | [`Next::Continue`] |
//! | all as it should be, one change from one accepted spec to another | the UIDs, the generations before | [`Next::Continue`], with a new record |
//! | all as it should be | anything else | [`Next::Restart`]: strike the record, begin anew |

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::api::admission::{
    AdmissionKind, AdmissionObject, CONTROLLER_ONLY, another_installation, user_let_through,
};

/// An admission object that has to be there, and how it may look.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    /// Its kind.
    pub kind: AdmissionKind,
    /// Its name.
    pub name: String,
    /// Specs that this program counts on, without what the API server may add. The first is the one that it ships;
    /// others are those of versions from which a cluster may be on its way.
    accepted: Vec<Value>,
}

impl Guard {
    /// The guard that this object is.
    #[must_use]
    pub fn new(object: &AdmissionObject) -> Self {
        Self { kind: object.kind, name: object.name.clone(), accepted: vec![normal(&object.spec)] }
    }

    /// And this spec counts too.
    #[must_use]
    pub fn or(mut self, spec: &Value) -> Self {
        self.accepted.push(normal(spec));
        self
    }

    fn key(&self) -> String {
        format!("{}/{}", self.kind.as_str(), self.name)
    }

    fn accepts_digest(&self, wanted: &str) -> bool {
        self.accepted.iter().any(|spec| digest(spec) == wanted)
    }
}

/// An admission object as the API server has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// Its kind.
    pub kind: AdmissionKind,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// How often its spec has changed.
    pub generation: i64,
    /// Whether it is being deleted.
    pub going: bool,
    /// Its spec.
    pub spec: Value,
}

/// One consistent look.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// The kinds that the API server serves.
    pub served: BTreeSet<AdmissionKind>,
    /// The objects that it has, also those of others.
    pub found: Vec<Found>,
}

/// What is written down at the beginning of an interval.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// The user whom the policies let through.
    pub controller_user: String,
    /// The guards, by kind and name.
    pub objects: BTreeMap<String, Identity>,
}

/// What tells one state of an object from every other that it had or will have.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its UID.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// SHA-256 of its spec.
    pub digest: String,
}

/// What a look means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Next {
    /// Not in force. The interval has ended.
    Hold {
        /// What is wrong, and what to do about it.
        why: String,
    },
    /// Not known. The interval may go on.
    Unknown {
        /// Why not.
        why: String,
    },
    /// In force, and nothing is written down: write this.
    Begin(Record),
    /// In force, and what is written down is of another interval: strike it, and begin anew.
    Restart {
        /// What changed meanwhile.
        why: String,
    },
    /// In force without a break since what is written down was written.
    Continue {
        /// What to write in its place, where an upgrade went by.
        rewritten: Option<Record>,
    },
}

/// What a look means.
#[must_use]
pub fn judge(guards: &[Guard], user: &str, sight: &Sight, written: Option<&Record>) -> Next {
    let recorded = |kind: AdmissionKind| {
        let prefix = format!("{}/", kind.as_str());
        written.is_some_and(|record| record.objects.keys().any(|key| key.starts_with(&prefix)))
    };
    for kind in AdmissionKind::ALL.into_iter().filter(|kind| !sight.served.contains(kind)) {
        let name = kind.as_str();
        if recorded(kind) {
            return Next::Unknown {
                why: format!("the API server that answered does not serve {name}, as it did before"),
            };
        }
        if kind.always_served() {
            return Next::Hold { why: format!("the API server does not serve {name}: Kubernetes 1.33 does") };
        }
    }
    let mut seen = Record { controller_user: user.to_owned(), objects: BTreeMap::new() };
    let mut wrong = Vec::new();
    for guard in guards.iter().filter(|guard| sight.served.contains(&guard.kind)) {
        match identify(guard, sight) {
            Ok(identity) => {
                seen.objects.insert(guard.key(), identity);
            }
            Err(what) => wrong.push(what),
        }
    }
    if let Some(theirs) = another_user(user, sight).filter(|_| !wrong.is_empty()) {
        let why = another_installation(theirs, user);
        return Next::Hold { why: format!("{why}. To put this one in charge, {REMEDY} {user}") };
    }
    if !wrong.is_empty() {
        return Next::Hold { why: format!("{}: {REMEDY} {user}", wrong.join(", ")) };
    }
    let Some(written) = written else {
        return Next::Begin(seen);
    };
    if written.controller_user != seen.controller_user {
        return Next::Restart { why: format!("controllerUser was {}", written.controller_user) };
    }
    let mut upgraded = false;
    for guard in guards {
        let key = guard.key();
        match (written.objects.get(&key), seen.objects.get(&key)) {
            (Some(before), Some(now)) if (&before.uid, before.generation) == (&now.uid, now.generation) => {
                upgraded |= before.digest != now.digest;
            }
            // One change, from what was counted on to what is counted on, leaves no room for another in between.
            (Some(before), Some(now))
                if before.uid == now.uid
                    && before.generation.checked_add(1) == Some(now.generation)
                    && guard.accepts_digest(&before.digest) =>
            {
                upgraded = true;
            }
            (Some(before), Some(now)) if before.uid == now.uid => {
                return Next::Restart { why: format!("{key} was altered meanwhile") };
            }
            (Some(_), Some(_)) => return Next::Restart { why: format!("{key} was deleted meanwhile") },
            (None, Some(_)) => return Next::Restart { why: format!("{key} was not looked at before") },
            // Not served, and not recorded.
            (None | Some(_), None) => {}
        }
    }
    Next::Continue { rewritten: upgraded.then_some(seen) }
}

const REMEDY: &str = "apply what this prints:  portcullis admission --controller-user";

/// Objects that only speak to people and are not as this program ships them, in a sentence each.
#[must_use]
pub fn advice(objects: &[AdmissionObject], sight: &Sight) -> Vec<String> {
    let advice = objects.iter().filter(|object| !object.is_guard() && sight.served.contains(&object.kind));
    advice.filter_map(|object| identify(&Guard::new(object), sight).err()).collect()
}

/// The user of another installation, whose policies have taken the place of this one's.
fn another_user<'a>(user: &str, sight: &'a Sight) -> Option<&'a str> {
    let found = sight.found.iter().find(|found| {
        found.kind == AdmissionKind::ValidatingAdmissionPolicy
            && found.name == CONTROLLER_ONLY
            && !found.going
    })?;
    user_let_through(&found.spec).filter(|theirs| *theirs != user)
}

fn identify(guard: &Guard, sight: &Sight) -> Result<Identity, String> {
    let (kind, name) = (guard.kind.as_str(), &guard.name);
    let found = sight.found.iter().find(|found| found.kind == guard.kind && found.name == guard.name);
    let Some(found) = found else {
        return Err(format!("{kind} {name} is missing"));
    };
    if found.going {
        return Err(format!("{kind} {name} is being deleted"));
    }
    let spec = normal(&found.spec);
    if !guard.accepted.contains(&spec) {
        let shipped = guard.accepted.first().unwrap_or(&Value::Null);
        let at = difference("spec", shipped, &spec).unwrap_or_else(|| "spec".to_owned());
        return Err(format!("{kind} {name} is altered ({at})"));
    }
    Ok(Identity { uid: found.uid.clone(), generation: found.generation, digest: digest(&spec) })
}

/// The path of the first difference.
fn difference(path: &str, a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => a.keys().chain(b.keys()).find_map(|key| {
            let none = Value::Null;
            let (a, b) = (a.get(key).unwrap_or(&none), b.get(key).unwrap_or(&none));
            difference(&format!("{path}.{key}"), a, b)
        }),
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => {
            let mut pairs = a.iter().zip(b).enumerate();
            pairs.find_map(|(index, (a, b))| difference(&format!("{path}[{index}]"), a, b))
        }
        _ => (a != b).then(|| path.to_owned()),
    }
}

/// What the API server writes where nothing is written, by the name of the field.
const DEFAULTS: [(&str, &str); 3] =
    [("failurePolicy", "Fail"), ("matchPolicy", "Equivalent"), ("scope", "*")];

/// A spec without what says nothing: empty values, and the defaults of the API server. Left out or written out,
/// they mean the same, so that a server that fills in more of them has changed nothing.
fn normal(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let mut kept: Vec<(&String, Value)> = fields
                .iter()
                .filter(|(name, value)| {
                    !DEFAULTS.iter().any(|(field, default)| field == name && *value == default)
                })
                .map(|(name, value)| (name, normal(value)))
                .filter(|(_, value)| !is_empty(value))
                .collect();
            // In one order, whatever the map keeps to: it is digested.
            kept.sort_by(|a, b| a.0.cmp(b.0));
            Value::Object(Map::from_iter(kept.into_iter().map(|(name, value)| (name.clone(), value))))
        }
        Value::Array(items) => Value::Array(items.iter().map(normal).collect()),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => value.clone(),
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

fn digest(spec: &Value) -> String {
    Sha256::digest(spec.to_string().as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
