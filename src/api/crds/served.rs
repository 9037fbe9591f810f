//! Definitions as an API server serves them, held against those of this program.

use std::collections::BTreeMap;
use std::sync::LazyLock;

use serde::Deserialize;

use crate::api::{GROUP, VERSION};

/// Where an API server publishes what it serves of this group, without any right but that of every user.
pub const PATH: &str = "/openapi/v3/apis/jit.portcullis.io/v1alpha1";

/// The document at [`PATH`], but for what is not compared: it is read every minute, and is large.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Document {
    components: Components,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Components {
    schemas: BTreeMap<String, Fields>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Kind {
    group: String,
    version: String,
    kind: String,
}

/// The fields of a schema, and what it is the schema of where that is a whole object.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Fields {
    #[serde(rename = "x-kubernetes-group-version-kind")]
    kinds: Vec<Kind>,
    properties: BTreeMap<String, Fields>,
    items: Option<Box<Fields>>,
    additional_properties: Option<Values>,
}

/// What a map holds.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Values {
    Schema(Box<Fields>),
    /// Anything, or nothing.
    Any(#[expect(dead_code, reason = "tells it from a schema")] bool),
}

/// This program's own, by kind.
static OWN: LazyLock<Vec<(String, Fields)>> = LazyLock::new(|| {
    let own = super::all().into_iter().map(|crd| {
        let schema = crd.spec.versions.into_iter().find(|version| version.name == VERSION);
        let schema = schema.and_then(|version| version.schema?.open_api_v3_schema);
        // Their types rule out that they cannot be written or read.
        let fields =
            schema.and_then(|schema| serde_json::from_value(serde_json::to_value(schema).ok()?).ok());
        (crd.spec.names.kind, fields.unwrap_or_default())
    });
    own.collect()
});

/// The fields of this program's own definitions (`JitAccessRequest.status.rules[].name`) that served ones lack: what the
/// API server does not know it drops from everything that is written. Rules and bounds are not compared, since later
/// versions may have others; what they refuse is an error that is told, and nothing is lost.
#[must_use]
pub fn lacking(served: &Document) -> Vec<String> {
    let mut lacking = Vec::new();
    for (kind, own) in &*OWN {
        let of_kind = served.components.schemas.values().find(|schema| {
            schema
                .kinds
                .iter()
                .any(|known| known.group == GROUP && known.version == VERSION && known.kind == *kind)
        });
        match of_kind {
            Some(served) => compare(kind, own, served, &mut lacking),
            None => lacking.push(kind.clone()),
        }
    }
    lacking
}

fn compare(path: &str, own: &Fields, served: &Fields, lacking: &mut Vec<String>) {
    for (name, field) in &own.properties {
        let path = format!("{path}.{name}");
        match served.properties.get(name) {
            Some(known) => compare(&path, field, known, lacking),
            None => lacking.push(path),
        }
    }
    let none = Fields::default();
    for (suffix, inner, known) in
        [("[]", own.items.as_deref(), served.items.as_deref()), (".*", own.values(), served.values())]
    {
        if let Some(inner) = inner {
            compare(&format!("{path}{suffix}"), inner, known.unwrap_or(&none), lacking);
        }
    }
}

impl Fields {
    fn values(&self) -> Option<&Self> {
        match self.additional_properties.as_ref()? {
            Values::Schema(fields) => Some(fields),
            Values::Any(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn lacking(served: &Value) -> Vec<String> {
        super::lacking(&serde_json::from_value(served.clone()).unwrap())
    }

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
