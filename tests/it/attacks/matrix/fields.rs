//! Every field of the three kinds, from the definitions that the API server has, and for each of them values that are
//! others and right by themselves: what refuses them has to be a guard and not a typing error.

use portcullis::api::crds;
use serde_json::{Value, json};

use super::change::{Change, pointer, segments};
use super::model::Kind;

/// The schema of a kind.
pub(super) fn schema(kind: Kind) -> Value {
    let crd = crds::all().into_iter().find(|crd| crd.spec.names.kind == kind.name()).unwrap();
    let crd = serde_json::to_value(&crd).unwrap();
    crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone()
}

/// Changes of every field below `part` (`spec` or `status`) of an object: to every other value where those can be
/// told, to another one else; one more item for each list, and each field that is there taken out.
pub(super) fn changes(schema: &Value, part: &str, object: &Value) -> Vec<Change> {
    let mut found = Vec::new();
    let at = vec![part.to_owned()];
    walk(&schema["properties"][part], schema, &at, object, &mut found);
    found
}

fn walk(here: &Value, root: &Value, at: &[String], object: &Value, found: &mut Vec<Change>) {
    let present = object.pointer(&pointer(at));
    if present.is_some() {
        found.push(Change { at: at.to_vec(), to: None, beside: Vec::new() });
    }
    if let Some(fields) = here["properties"].as_object() {
        for (name, below) in fields {
            walk(below, root, &with(at, name), object, found);
        }
    } else if here["type"] == "array" {
        walk(&here["items"], root, &with(at, "0"), object, found);
        if let Some(items) = present.and_then(Value::as_array) {
            let at = with(at, &items.len().to_string());
            let item = least(&here["items"], &at);
            found.push(Change { at, to: Some(item), beside: Vec::new() });
        }
    } else if here["additionalProperties"].is_object() {
        found.push(change(root, with(at, "attack"), json!("attack")));
    } else {
        for value in others(here, at, present) {
            found.push(change(root, at.to_vec(), value));
        }
    }
}

fn with(at: &[String], segment: &str) -> Vec<String> {
    let mut longer = at.to_vec();
    longer.push(segment.to_owned());
    longer
}

/// A change, and beside it whatever the schema requires of its parents.
fn change(root: &Value, at: Vec<String>, to: Value) -> Change {
    let mut beside = Vec::new();
    let mut here = root;
    for depth in 0..at.len() {
        if depth > 1 {
            for name in required(here) {
                let place = with(&at[..depth], name);
                if !at.starts_with(&place) {
                    let value = least(&here["properties"][name], &place);
                    beside.push((place, value));
                }
            }
        }
        here = if here["items"].is_object() { &here["items"] } else { &here["properties"][&at[depth]] };
    }
    Change { at, to: Some(to), beside }
}

fn required(schema: &Value) -> impl Iterator<Item = &str> {
    schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str)
}

/// The least value that a schema takes.
fn least(schema: &Value, at: &[String]) -> Value {
    match schema["type"].as_str() {
        Some("object") => {
            let required = required(schema);
            required
                .map(|name| (name.to_owned(), least(&schema["properties"][name], &with(at, name))))
                .collect()
        }
        Some("array") => json!([least(&schema["items"], &with(at, "0"))]),
        _ => others(schema, at, None).remove(0),
    }
}

/// Values that are right and not the present one.
fn others(schema: &Value, at: &[String], present: Option<&Value>) -> Vec<Value> {
    if let Some(values) = schema["enum"].as_array() {
        return values.iter().filter(|value| Some(*value) != present).cloned().collect();
    }
    match schema["type"].as_str() {
        Some("boolean") => vec![json!(!present.and_then(Value::as_bool).unwrap_or(false))],
        Some("integer") if at.last().unwrap() == "endPort" => vec![json!(65535)],
        Some("integer") => {
            let least = schema["minimum"].as_f64().unwrap_or(0.0);
            let one = present.and_then(Value::as_f64).unwrap_or(least) + 1.0;
            #[allow(clippy::cast_possible_truncation, reason = "small numbers")]
            let one = one as i64;
            vec![json!(one)]
        }
        Some("string") => {
            let text = text(schema, at);
            assert!(Some(&json!(text)) != present, "{} has {text:?} already", pointer(at));
            vec![json!(text)]
        }
        other => panic!("{}: nothing is known of the type {other:?}", pointer(at)),
    }
}

fn text(schema: &Value, at: &[String]) -> &'static str {
    // The name of the list for its items.
    let name = at.iter().rev().find(|segment| segment.parse::<usize>().is_err()).unwrap();
    match name.as_str() {
        "expiresAt" => "2029-01-01T00:00:00Z",
        _ if schema["format"] == "date-time" => "2032-01-01T00:00:00Z",
        "notBefore" => "2030-06-01T00:00:00Z",
        "notAfter" => "2031-06-01T00:00:00Z",
        "cidr" => "0.0.0.0/0",
        "duration" | "maxDuration" | "pendingTimeout" | "useWithin" | "delegatedHorizon" | "firewallLead" => {
            "45m"
        }
        "planHash" => "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb",
        "serviceTag" => "Internet",
        "pattern" => "^.*$",
        "uid" => "99999999-2222-3333-4444-555555555555",
        "id" if at.iter().any(|segment| segment == "azureScope") => {
            "/subscriptions/99999999-2222-3333-4444-555555555555"
        }
        "id" => {
            "/subscriptions/99999999-2222-3333-4444-555555555555/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v"
        }
        _ => "attack",
    }
}

/// Changes of what stands in `metadata`; `owner` is an object that exists.
pub(super) fn metadata(object: &Value, owner: &Value) -> Vec<Change> {
    let finalizers: Vec<Value> =
        object["metadata"]["finalizers"].as_array().into_iter().flatten().cloned().collect();
    let more = |finalizer: &str| {
        let mut all = finalizers.clone();
        all.push(json!(finalizer));
        Change::set("/metadata/finalizers", json!(all))
    };
    let mut changes = vec![
        Change::set("/metadata/labels/attack", json!("x")),
        Change::set("/metadata/annotations/attack", json!("x")),
        more("example.com/hold"),
        more("jit.portcullis.io/attack"),
        Change::set("/metadata/ownerReferences", json!([owner])),
        Change::set("/metadata/generateName", json!("attack-")),
        Change::set("/metadata/uid", json!("99999999-2222-3333-4444-555555555555")),
        Change::set("/metadata/creationTimestamp", json!("2021-01-01T00:00:00Z")),
        Change::set("/metadata/deletionTimestamp", json!("2021-01-01T00:00:00Z")),
        Change::set("/metadata/deletionGracePeriodSeconds", json!(0)),
        Change::set("/metadata/generation", json!(77)),
        Change::set("/metadata/selfLink", json!("/attack")),
    ];
    if finalizers.is_empty() {
        changes.push(more("jit.portcullis.io/cloud-rules"));
    } else {
        changes.extend([
            Change::remove("/metadata/finalizers"),
            Change::set("/metadata/finalizers", json!([])),
            Change::set("/metadata/finalizers", json!(["example.com/hold"])),
            Change::set("/metadata/name", json!("attack")),
            Change::set("/metadata/namespace", json!("default")),
            Change::remove("/metadata/labels"),
        ]);
    }
    changes
}

#[test]
fn every_field_is_found_and_other_values_are_right() {
    let request =
        json!({"spec": {"duration": "1h", "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}]}});
    let changes = changes(&schema(Kind::Request), "spec", &request);
    let named: Vec<String> = changes.iter().map(Change::pointer).collect();
    for field in ["/spec/requester/groups/0", "/spec/targets/0/machine", "/spec/ports/0/sources/1", "/spec"] {
        assert!(named.iter().any(|name| name == field), "{field}: {named:#?}");
    }
    let machine = changes.iter().find(|change| change.at == segments("/spec/targets/0/machine")).unwrap();
    assert_eq!(
        machine.made_to(&request)["spec"]["targets"],
        json!([{"name": "attack", "machine": "attack"}])
    );
}
