//! `JitAccessReview`: somebody's word on a request.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::conditions::conditions_schema;
use super::request::{NameRef, UserInfo};

/// Approves, denies, revokes or ends a request.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "jit.portcullis.io",
    version = "v1alpha1",
    kind = "JitAccessReview",
    plural = "jitaccessreviews",
    shortname = "jitrev",
    category = "jit",
    namespaced,
    status = "JitAccessReviewStatus",
    derive = "PartialEq",
    doc = "Approves, denies, revokes or ends a request. Created by people, immutable.",
    selectable = ".spec.requestRef.name",
    selectable = ".status.settled",
    printcolumn(name = "Request", type_ = "string", json_path = ".spec.requestRef.name"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".spec.verdict"),
    printcolumn(name = "Reviewer", type_ = "string", json_path = ".spec.reviewer.username"),
    printcolumn(name = "Counted", type_ = "string", json_path = ".status.counted"),
    printcolumn(name = "Reason", type_ = "string", json_path = ".status.reason", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("self.spec == oldSelf.spec").message("a review is immutable: create another")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.verdict != 'Approved' || has(self.planHash)")
    .message("planHash is required to approve: copy status.planHash of the request, so that what was seen is what is approved"))]
pub struct JitAccessReviewSpec {
    /// The request, by name and UID: a namesake is another request.
    pub request_ref: RequestRef,
    /// The policy under which the reviewer speaks.
    pub policy_ref: NameRef,
    /// `status.planHash` of the request as the reviewer saw it. Required to approve.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{64}$')")
        .message("must be status.planHash of the request: 64 of 0-9 and a-f"))]
    pub plan_hash: Option<String>,
    /// The word itself.
    pub verdict: Verdict,
    /// Why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub comment: Option<String>,
    /// Who reviews. Stamped at admission; leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reviewer: Option<UserInfo>,
}

/// One request, and no other of its name.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its UID.
    #[schemars(length(min = 1, max = 64))]
    pub uid: String,
}

/// What a reviewer says of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Verdict {
    /// May be opened.
    Approved,
    /// May not be opened.
    Denied,
    /// Is to be closed.
    Revoked,
    /// Is no longer needed: withdraws a pending request, ends a live one.
    Ended,
}

/// The controller's answer to a review.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JitAccessReviewStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Whether the review counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub counted: Option<bool>,
    /// Why it counts or does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub reason: Option<String>,
    /// True when nothing more will be said.
    #[serde(default)]
    pub settled: bool,
    /// Since when.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub settled_at: Option<Time>,
}
