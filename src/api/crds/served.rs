//! Definitions as an API server serves them, held against those of this program.

use serde_json::Value;

use crate::api::{GROUP, VERSION};

/// Where an API server publishes what it serves of this group, without any right but that of every user.
pub const PATH: &str = "/openapi/v3/apis/jit.portcullis.io/v1alpha1";

/// The fields of this program's own definitions (`JitAccessRequest.status.rules[].name`) that served ones lack: what the
/// API server does not know it drops from everything that is written. Rules and bounds are not compared, since later
/// versions may have others; what they refuse is an error that is told, and nothing is lost.
///
/// `served` is the document at [`PATH`].
#[must_use]
pub fn lacking(served: &Value) -> Vec<String> {
    let mut lacking = Vec::new();
    for crd in super::all() {
        let kind = &crd.spec.names.kind;
        let schema = crd.spec.versions.iter().find(|version| version.name == VERSION);
        let own = schema.and_then(|version| version.schema.as_ref()?.open_api_v3_schema.as_ref());
        // Their types rule out that they cannot be written.
        let own = own.and_then(|schema| serde_json::to_value(schema).ok()).unwrap_or_default();
        match of_kind(served, kind) {
            Some(served) => compare(kind, &own, served, &mut lacking),
            None => lacking.push(kind.clone()),
        }
    }
    lacking
}

fn of_kind<'a>(served: &'a Value, kind: &str) -> Option<&'a Value> {
    let schemas = served.pointer("/components/schemas")?.as_object()?;
    schemas.values().find(|schema| {
        let kinds = schema["x-kubernetes-group-version-kind"].as_array();
        kinds
            .into_iter()
            .flatten()
            .any(|known| known["group"] == GROUP && known["version"] == VERSION && known["kind"] == kind)
    })
}

fn compare(path: &str, own: &Value, served: &Value, lacking: &mut Vec<String>) {
    for (name, field) in own["properties"].as_object().into_iter().flatten() {
        let path = format!("{path}.{name}");
        match served["properties"].get(name) {
            Some(known) => compare(&path, field, known, lacking),
            None => lacking.push(path),
        }
    }
    for (inner, suffix) in [("items", "[]"), ("additionalProperties", ".*")] {
        if own[inner].is_object() {
            compare(&format!("{path}{suffix}"), &own[inner], &served[inner], lacking);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// As the API server publishes them, but for its own additions.
    fn published() -> Value {
        let mut schemas = serde_json::Map::new();
        for crd in crate::api::crds::all() {
            let schema = crd.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
            let mut schema = serde_json::to_value(schema).unwrap();
            let kind = &crd.spec.names.kind;
            schema["x-kubernetes-group-version-kind"] =
                json!([{"group": GROUP, "version": VERSION, "kind": kind}]);
            schemas.insert(format!("io.portcullis.jit.v1alpha1.{kind}"), schema);
        }
        json!({"components": {"schemas": schemas}})
    }

    fn request(published: &mut Value) -> &mut Value {
        &mut published["components"]["schemas"]["io.portcullis.jit.v1alpha1.JitAccessRequest"]["properties"]
    }

    #[test]
    fn what_an_older_version_lacks_is_named_and_what_a_later_one_adds_is_none_of_it() {
        let mut served = published();
        assert_eq!(lacking(&served), Vec::<String>::new());
        request(&mut served)["spec"]["properties"]["later"] = json!({"type": "string"});
        assert_eq!(lacking(&served), Vec::<String>::new());

        let rules = &mut request(&mut served)["status"]["properties"]["rules"]["items"]["properties"];
        rules.as_object_mut().unwrap().remove("name").unwrap();
        assert_eq!(lacking(&served), ["JitAccessRequest.status.rules[].name"]);

        let mut served = published();
        served["components"]["schemas"]
            .as_object_mut()
            .unwrap()
            .remove("io.portcullis.jit.v1alpha1.JitPolicy");
        assert_eq!(lacking(&served), ["JitPolicy"]);
        assert_eq!(lacking(&json!({})).len(), 3);
    }
}
