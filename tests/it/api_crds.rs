//! The custom resource definitions: committed as generated, bounded everywhere, described everywhere.

use portcullis::api::crds;
use serde_json::Value;

fn folder() -> std::path::PathBuf {
    portcullis_harness::checkout().join("crds")
}

/// The root schema of each kind, by its plural.
fn schemas() -> Vec<(String, Value)> {
    crds::all()
        .iter()
        .map(|crd| {
            let value = serde_json::to_value(crd).unwrap();
            let schema = value["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
            (crd.spec.names.plural.clone(), schema)
        })
        .collect()
}

/// Calls `visit` with every schema below `schema` and where it stands.
fn walk(path: &str, schema: &Value, visit: &mut impl FnMut(&str, &Value)) {
    visit(path, schema);
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        walk(&format!("{path}.{name}"), child, visit);
    }
    if schema["items"].is_object() {
        walk(&format!("{path}[]"), &schema["items"], visit);
    }
    if schema["additionalProperties"].is_object() {
        walk(&format!("{path}{{}}"), &schema["additionalProperties"], visit);
    }
}

/// Everything that `complaint` has to say about any part of the three schemas.
fn complaints(complaint: impl Fn(&str, &Value) -> Option<String>) -> Vec<String> {
    let mut found = Vec::new();
    for (kind, schema) in schemas() {
        walk(&kind, &schema, &mut |path, part| {
            found.extend(complaint(path, part).map(|what| format!("{path}: {what}")));
        });
    }
    found
}

#[test]
fn committed_definitions_are_what_the_types_generate() {
    let files = crds::files().unwrap();
    for (name, text) in &files {
        let committed = std::fs::read_to_string(folder().join(name)).unwrap_or_default();
        assert!(committed == *text, "crds/{name} is out of date: run `portcullis crds --output-dir crds`");
    }
    let mut there: Vec<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.contains("jit.portcullis.io"))
        .collect();
    there.sort();
    assert_eq!(there, files.into_iter().map(|(name, _)| name).collect::<Vec<_>>());
}

#[test]
fn every_string_list_and_map_has_a_maximum() {
    let found = complaints(|_, part| {
        let bound = match part["type"].as_str()? {
            "string" if part["format"] == "date-time" || part["enum"].is_array() => return None,
            "string" => "maxLength",
            "array" => "maxItems",
            "object" if part["additionalProperties"].is_object() => "maxProperties",
            "integer" if part["format"].is_string() => return None,
            "integer" => "format",
            _ => return None,
        };
        part[bound].is_null().then(|| format!("no {bound}"))
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_field_has_a_description() {
    let found = complaints(|path, part| {
        // What a list or map holds is described by the list or map, unless it has fields of its own.
        let described_above = (path.ends_with("[]") || path.ends_with("{}")) && part["properties"].is_null();
        let text = part["description"].as_str().unwrap_or_default();
        (!described_above && !text.ends_with('.')).then(|| format!("description {text:?} is no sentence"))
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_list_says_how_it_is_merged() {
    let found = complaints(|_, part| {
        (part["type"] == "array" && part["x-kubernetes-list-type"].is_null()).then(|| "no list type".into())
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn nothing_is_nullable_or_titled_or_open_ended() {
    let found = complaints(|_, part| {
        let odd = ["nullable", "title", "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"]
            .into_iter()
            .find(|key| !part[*key].is_null())?;
        Some(format!("has {odd}"))
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn defaults_stand_only_in_the_spec_of_policies_and_never_in_lists() {
    let found = complaints(|path, part| {
        // But for what says that no controller has looked at the object yet.
        let unobserved =
            path.ends_with(".status") && part["default"] == serde_json::json!({"observedGeneration": -1});
        let allowed = unobserved
            || path.starts_with("jitpolicies.spec") && !path.contains("[]") && !path.contains("{}");
        (!part["default"].is_null() && !allowed).then(|| format!("default {}", part["default"]))
    });
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn conditions_are_keyed_by_their_type() {
    for (kind, schema) in schemas() {
        let conditions = &schema["properties"]["status"]["properties"]["conditions"];
        assert_eq!(conditions["x-kubernetes-list-type"], "map", "{kind}");
        assert_eq!(conditions["x-kubernetes-list-map-keys"], serde_json::json!(["type"]), "{kind}");
    }
}
