//! What the controller says of a policy.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use crate::api::conditions::conditions_schema;

/// What the controller has seen and done for a policy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JitPolicyStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`, `LockdownEffective`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Numbers over all targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<PolicySummary>,
    /// The targets, those in trouble first; at most 256, the rest are only counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), extend("x-kubernetes-list-type" = "atomic"))]
    pub targets: Vec<TargetStatus>,
}

/// Numbers over all targets of a policy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicySummary {
    /// Machines that the policy selects, and entries that select none.
    #[serde(default)]
    pub targets: i32,
    /// Machines whose lock is in place.
    #[serde(default)]
    pub configured: i32,
    /// Machines that cannot be locked.
    #[serde(default)]
    pub unsupported: i32,
    /// Machines whose lock is in place and does not close the port.
    #[serde(default)]
    pub not_effective: i32,
    /// `configured/targets`, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub machines: Option<String>,
    /// The locked ports, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub ports: Option<String>,
}

/// What the controller has seen and done for one machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TargetStatus {
    /// The entry of `spec.targets`.
    #[schemars(length(max = 63))]
    pub name: String,
    /// The machine's resource id.
    #[schemars(length(max = 512))]
    pub id: String,
    /// `Configured`, `NotConfigured`, `Unlocking` or `Unsupported`.
    #[schemars(length(max = 32))]
    pub state: String,
    /// Why, in one word.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub reason: Option<String>,
    /// Why, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
    /// `Linux` or `Windows`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 16))]
    pub os_type: Option<String>,
    /// Private addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 45)), extend("x-kubernetes-list-type" = "atomic"))]
    pub addresses: Vec<String>,
    /// Ids of the firewalls on the path.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 512)), extend("x-kubernetes-list-type" = "atomic"))]
    pub firewalls: Vec<String>,
    /// What traffic passes on its way to the machine, from afar to near, and which of it this policy enforces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub path: Vec<PathStatus>,
    /// The locked ports, such as `22` or `5985-5986/TCP`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(max = 32)), extend("x-kubernetes-list-type" = "atomic"))]
    pub locked_ports: Vec<String>,
    /// Rules of others that let traffic in past the lock, as `rule NAME of FIREWALL` or
    /// `security admin rule NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 640)), extend("x-kubernetes-list-type" = "atomic"))]
    pub shadowed_by: Vec<String>,
}

/// Something that traffic passes on its way to a machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PathStatus {
    /// The resource id; the address of what is not known by an id.
    #[schemars(length(max = 512))]
    pub id: String,
    /// `NetworkSecurityGroup`, `AzureFirewall`, `VirtualAppliance` or `VirtualHub`.
    #[schemars(length(max = 32))]
    pub kind: String,
    /// Whether the policy's lock stands on it.
    pub enforced: bool,
    /// Why not, in a sentence.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1024))]
    pub message: Option<String>,
}
