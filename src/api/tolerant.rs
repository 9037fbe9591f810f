//! Reading objects that somebody has made hard to read.
//!
//! The API server takes timestamps in `metadata.managedFields` that this program's libraries cannot hold (such as
//! `9999-12-31T23:59:59Z`), and anybody who may edit an object may write them. Read strictly, one such object
//! would fail every list and every watch that it comes through, and blind the controller to all others. So what
//! this program has no use for is dropped before the rest is read.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;

/// An object, read without its `managedFields`. Written, it leaves those that the API server has as they are.
#[derive(Clone, Debug)]
pub struct Tolerant<K>(pub K);

impl<'de, K: DeserializeOwned> Deserialize<'de> for Tolerant<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let mut object = Value::deserialize(deserializer)?;
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        serde_json::from_value(object).map(Self).map_err(D::Error::custom)
    }
}

impl<K: Serialize> Serialize for Tolerant<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

impl<K: Resource> Resource for Tolerant<K> {
    type DynamicType = K::DynamicType;
    type Scope = K::Scope;

    fn kind(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::kind(dt)
    }

    fn group(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::group(dt)
    }

    fn version(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::version(dt)
    }

    fn plural(dt: &Self::DynamicType) -> Cow<'_, str> {
        K::plural(dt)
    }

    fn meta(&self) -> &ObjectMeta {
        self.0.meta()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.0.meta_mut()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::JitAccessRequest;

    #[test]
    fn a_timestamp_out_of_range_in_managed_fields_hides_nothing() {
        let object = serde_json::json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": "one", "managedFields": [{"manager": "x", "time": "9999-12-31T23:59:59Z"}]},
            "spec": {"policyRef": {"name": "web"}, "ports": [], "duration": "1h"},
        });
        assert!(
            serde_json::from_value::<JitAccessRequest>(object.clone()).is_err(),
            "else this is no longer needed"
        );
        let read: Tolerant<JitAccessRequest> = serde_json::from_value(object).unwrap();
        assert_eq!(read.meta().name.as_deref(), Some("one"));
        assert!(!serde_json::to_string(&read).unwrap().contains("managedFields"));
    }
}
