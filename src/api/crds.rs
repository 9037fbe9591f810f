//! The custom resource definitions, as `portcullis crds` prints them and `crds/` holds them.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

use super::{JitAccessRequest, JitAccessReview, JitPolicy};

/// The definitions of the three kinds, in the order of their names.
#[must_use]
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![JitAccessRequest::crd(), JitAccessReview::crd(), JitPolicy::crd()]
}

/// A definition as a YAML document.
///
/// # Errors
/// When the definition cannot be written as YAML, which its types rule out.
pub fn to_yaml(crd: &CustomResourceDefinition) -> Result<String, serde_yaml_ng::Error> {
    serde_yaml_ng::to_string(crd)
}
