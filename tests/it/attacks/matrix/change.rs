//! What an attacker writes: one field of an object, as every verb carries it.

use serde_json::{Map, Value, json};

/// A change of one field.
#[derive(Debug, Clone)]
pub(super) struct Change {
    /// Where: the path's segments; indexes of lists are numbers.
    pub(super) at: Vec<String>,
    /// What to; none: the field is taken out.
    pub(super) to: Option<Value>,
    /// What is required beside it, where its parents are not there yet.
    pub(super) beside: Vec<(Vec<String>, Value)>,
}

impl Change {
    pub(super) fn set(pointer: &str, to: Value) -> Self {
        Self { at: segments(pointer), to: Some(to), beside: Vec::new() }
    }

    pub(super) fn remove(pointer: &str) -> Self {
        Self { at: segments(pointer), to: None, beside: Vec::new() }
    }

    /// The path, as in a JSON patch.
    pub(super) fn pointer(&self) -> String {
        pointer(&self.at)
    }

    /// The object with the change.
    pub(super) fn made_to(&self, object: &Value) -> Value {
        let mut changed = object.clone();
        for (at, value) in &self.beside {
            if changed.pointer(&pointer(at)).is_none() {
                put(&mut changed, at, value.clone());
            }
        }
        match &self.to {
            Some(value) => put(&mut changed, &self.at, value.clone()),
            None => take(&mut changed, &self.at),
        }
        changed
    }

    /// The outermost field that differs and can be told apart by every kind of patch: lists go as a whole.
    fn edge(&self, object: &Value) -> usize {
        let mut found = object;
        for (depth, segment) in self.at.iter().enumerate() {
            match found.get(segment) {
                Some(next) if next.is_object() && depth + 1 < self.at.len() => found = next,
                _ => return depth + 1,
            }
        }
        self.at.len()
    }

    /// The field as a JSON patch would name it, and what it becomes.
    fn cut(&self, object: &Value) -> (Vec<String>, Option<Value>) {
        let at = self.at[..self.edge(object)].to_vec();
        let value = self.made_to(object).pointer(&pointer(&at)).cloned();
        (at, value)
    }

    pub(super) fn json_patch(&self, object: &Value) -> Value {
        let (at, value) = self.cut(object);
        match value {
            Some(value) => json!([{"op": "add", "path": pointer(&at), "value": value}]),
            None => json!([{"op": "remove", "path": pointer(&at)}]),
        }
    }

    pub(super) fn merge_patch(&self, object: &Value) -> Value {
        let (at, value) = self.cut(object);
        nested(&at, value.unwrap_or(Value::Null))
    }

    /// What somebody applies who owns nothing yet. A field cannot be taken out so.
    pub(super) fn applied(&self, object: &Value) -> Option<Value> {
        let (at, value) = self.cut(object);
        let mut body = nested(&at, value?);
        for key in ["apiVersion", "kind"] {
            body[key] = object[key].clone();
        }
        if body["metadata"]["name"].is_null() {
            body["metadata"]["name"] = object["metadata"]["name"].clone();
        }
        Some(body)
    }
}

pub(super) fn segments(pointer: &str) -> Vec<String> {
    pointer.split('/').skip(1).map(|segment| segment.replace("~1", "/").replace("~0", "~")).collect()
}

pub(super) fn pointer(at: &[String]) -> String {
    at.iter().map(|segment| format!("/{}", segment.replace('~', "~0").replace('/', "~1"))).collect()
}

fn nested(at: &[String], value: Value) -> Value {
    at.iter().rev().fold(value, |inner, segment| json!({segment: inner}))
}

fn put(object: &mut Value, at: &[String], value: Value) {
    let Some((first, rest)) = at.split_first() else {
        *object = value;
        return;
    };
    if let Ok(index) = first.parse::<usize>() {
        if !object.is_array() {
            *object = json!([]);
        }
        let items = object.as_array_mut().unwrap();
        // Behind the last is the next, however long the list was where it was looked at.
        let index = index.min(items.len());
        if index == items.len() {
            items.push(Value::Null);
        }
        put(&mut items[index], rest, value);
        return;
    }
    if !object.is_object() {
        *object = Value::Object(Map::new());
    }
    put(&mut object[first], rest, value);
}

fn take(object: &mut Value, at: &[String]) {
    let (last, parents) = at.split_last().unwrap();
    match object.pointer_mut(&pointer(parents)) {
        Some(Value::Object(fields)) => {
            fields.remove(last);
        }
        Some(Value::Array(items)) => {
            items.remove(last.parse().unwrap());
        }
        _ => panic!("nothing at {}", pointer(at)),
    }
}

#[test]
fn every_verb_carries_the_same_change() {
    let object = json!({"apiVersion": "v1", "kind": "K", "metadata": {"name": "n"}, "spec": {"a": [{"b": 1, "c": 2}], "d": {}}});
    let change = Change {
        at: segments("/spec/a/0/b"),
        to: Some(json!(3)),
        beside: vec![(segments("/spec/a/0/c"), json!(9))],
    };
    assert_eq!(change.made_to(&object)["spec"]["a"], json!([{"b": 3, "c": 2}]));
    assert_eq!(
        change.json_patch(&object),
        json!([{"op": "add", "path": "/spec/a", "value": [{"b": 3, "c": 2}]}])
    );
    assert_eq!(change.merge_patch(&object), json!({"spec": {"a": [{"b": 3, "c": 2}]}}));
    let change = Change { at: segments("/status/a/0/b"), ..change };
    assert_eq!(change.merge_patch(&object), json!({"status": {"a": [{"b": 3}]}}));
    let change = Change::remove("/spec/a/0/c");
    assert_eq!(change.merge_patch(&object), json!({"spec": {"a": [{"b": 1}]}}));
    let change = Change::remove("/spec");
    assert_eq!(change.merge_patch(&object), json!({"spec": null}));
    assert_eq!(change.json_patch(&object), json!([{"op": "remove", "path": "/spec"}]));
    assert_eq!(change.applied(&object), None);
}
