//! `JitAccessRequest`: one port, for one source, for a bounded time.

use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::policy::Source;
use super::values::{Moment, Protocol, ResourceId, Span, port_schema, virtual_machine_rule};

mod state;
mod status;

pub use state::{RuleState, State};
pub use status::{
    Connection, JitAccessRequestStatus, PinnedMachine, RequestSummary, RequestedPolicy, RuleStatus,
    Shortening, TranslationStatus,
};

/// Asks for ports of machines to be opened for named sources and a bounded time.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "jit.portcullis.io",
    version = "v1alpha1",
    kind = "JitAccessRequest",
    plural = "jitaccessrequests",
    shortname = "jitreq",
    category = "jit",
    namespaced,
    status = "JitAccessRequestStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Asks for ports of machines to be opened for named sources and a bounded time. Grants once.",
    selectable = ".status.settled",
    selectable = ".spec.policyRef.name",
    printcolumn(name = "Policy", type_ = "string", json_path = ".spec.policyRef.name"),
    printcolumn(name = "Requester", type_ = "string", json_path = ".spec.requester.username"),
    printcolumn(name = "Targets", type_ = "string", json_path = ".status.summary.targets"),
    printcolumn(name = "Ports", type_ = "string", json_path = ".status.summary.ports"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.state"),
    printcolumn(
        name = "Expires",
        type_ = "string",
        json_path = ".status.expiresAt",
        description = "When the grant ends"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Active")].reason"#,
        priority = 1
    ),
    printcolumn(name = "Connect", type_ = "string", json_path = ".status.connections[0].address", priority = 1),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    // At the root: a transition rule on spec vanishes when spec is removed in one patch and put back in the next.
    validation = Rule::new("self.spec == oldSelf.spec").message("spec is immutable: create a new request"),
    validation = Rule::new("!has(oldSelf.status) || !has(oldSelf.status.expiresAt) || (has(self.status) && has(self.status.expiresAt) && self.status.expiresAt <= oldSelf.status.expiresAt)")
        .message("status.expiresAt only ever decreases")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("(has(self.allTargets) && self.allTargets) != (has(self.targets) && size(self.targets) > 0)")
    .message("name targets, or set allTargets: true, and not both"))]
#[x_kube(validation = Rule::new("!has(self.notBefore) || !has(self.notAfter) || timestamp(self.notBefore) < timestamp(self.notAfter)")
    .message("notBefore must be before notAfter"))]
pub struct JitAccessRequestSpec {
    /// The policy, in the same namespace, under whose terms this is asked.
    pub policy_ref: NameRef,
    /// Who asks. Stamped at admission; leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requester: Option<UserInfo>,
    /// For whom, where somebody asks on another's behalf. A claim, not an identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 1024))]
    pub on_behalf_of: Option<String>,
    /// The machines.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub targets: Vec<RequestTarget>,
    /// Every machine of the policy. "All" is said, never meant by omission.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub all_targets: bool,
    /// The ports and who may reach them.
    #[schemars(length(min = 1, max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub ports: Vec<RequestPort>,
    /// How long, from the moment of the grant. Longer than the policy allows is refused, never capped.
    pub duration: Span,
    /// Not to be opened before this moment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Moment>,
    /// To be closed at this moment whatever else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Moment>,
    /// Why. The policy may demand it and its form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub justification: Option<String>,
}

/// The name of another object in the same namespace.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NameRef {
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// Who somebody is, by the API server's word.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct UserInfo {
    /// User name.
    #[schemars(length(min = 1, max = 1024))]
    pub username: String,
    /// Unique id, where the authenticator gives one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub uid: Option<String>,
    /// Groups.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 1024)), extend("x-kubernetes-list-type" = "set"))]
    pub groups: Vec<String>,
}

/// An entry of the policy, or one machine inside a scope.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[x_kube(validation = Rule::new("!(has(self.machine) && has(self.id))").message("name the machine by machine or by id, not both"))]
pub struct RequestTarget {
    /// Name of the entry in the policy's `spec.targets`.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// Name of one machine inside a scope.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 80))]
    pub machine: Option<String>,
    /// Resource id of one machine inside a scope, where its name is not enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = virtual_machine_rule())]
    pub id: Option<ResourceId>,
}

/// A port to open, and for whom.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.endPort) || self.endPort >= self.port").message("endPort must not be below port"))]
pub struct RequestPort {
    /// The port, or the first of a range.
    #[schemars(schema_with = "port_schema")]
    pub port: i32,
    /// The last port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "port_schema")]
    pub end_port: Option<i32>,
    /// TCP, UDP or Any; TCP where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// The networks to open it for. At least one.
    #[schemars(length(min = 1, max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub sources: Vec<Source>,
}
