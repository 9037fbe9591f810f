//! `JitPolicy`: which machines' ports are closed, and who may have them opened.

use std::collections::BTreeMap;

use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::values::{Cidr, Protocol, ResourceId, Span, port_schema, scope_rule, virtual_machine_rule};

mod status;

pub use status::{JitPolicyStatus, PathStatus, PolicySummary, TargetStatus};

/// Closes management ports of virtual machines and says under which terms one may be opened.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "jit.portcullis.io",
    version = "v1alpha1",
    kind = "JitPolicy",
    plural = "jitpolicies",
    shortname = "jitpol",
    category = "jit",
    namespaced,
    status = "JitPolicyStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Closes management ports of virtual machines and says under which terms one may be opened.",
    printcolumn(
        name = "Machines",
        type_ = "string",
        json_path = ".status.summary.machines",
        description = "Machines locked, of all that the policy selects"
    ),
    printcolumn(
        name = "Ports",
        type_ = "string",
        json_path = ".status.summary.ports",
        description = "Ports that the policy locks"
    ),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(
        name = "Lockdown",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="LockdownEffective")].status"#,
        description = "Whether the ports are closed to everybody without a grant"
    ),
    printcolumn(name = "Mode", type_ = "string", json_path = ".spec.mode", priority = 1),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        priority = 1
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    validation = Rule::new("size(self.metadata.name) <= 63").message("metadata.name must have at most 63 characters")
)]
#[serde(rename_all = "camelCase")]
pub struct JitPolicySpec {
    /// `Enforce` writes the lock; `Audit` says what it would lock and writes nothing.
    #[serde(default)]
    pub mode: Mode,
    /// True closes every live grant and grants nothing: the stop button. Locks stay.
    #[serde(default)]
    pub suspend: bool,
    /// The machines. At least one entry.
    #[schemars(length(min = 1, max = 128), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub targets: Vec<PolicyTarget>,
    /// The ports that are locked and may be requested. Left out: 22 on Linux and 3389 on Windows, from any
    /// source, for 3h at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new(
        "self.all(a, self.filter(b, (has(a.endPort) ? a.endPort : a.port) >= b.port && a.port <= (has(b.endPort) ? b.endPort : b.port) && (!has(a.protocol) || !has(b.protocol) || a.protocol == 'Any' || b.protocol == 'Any' || a.protocol == b.protocol)).size() <= 1)"
    ).message("ports must not overlap: name each port once for a protocol (Any, the default, covers TCP and UDP)"))]
    pub ports: Vec<PolicyPort>,
    /// How the lock is written.
    #[serde(default)]
    pub enforcement: Enforcement,
    /// Whether other people have to agree before a port is opened.
    #[serde(default)]
    pub approval: Approval,
    /// What a request has to say for itself.
    #[serde(default)]
    pub justification: JustificationRule,
    /// Bounds on requests.
    #[serde(default)]
    pub limits: Limits,
    /// What becomes of the lock when the policy is deleted, enters Audit, or a machine leaves a scope.
    #[serde(default)]
    pub deletion_policy: DeletionPolicy,
}

/// Whether a policy writes its lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Mode {
    /// The lock is written and kept.
    #[default]
    Enforce,
    /// What would be locked is said in status; nothing is written.
    Audit,
}

/// What becomes of a lock that its policy no longer asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum DeletionPolicy {
    /// The lock stays in the cloud: a pruned or lost policy opens nothing, and a new policy adopts it.
    #[default]
    Retain,
    /// The lock is removed.
    Unlock,
}

/// One machine, or a scope of machines. Exactly one of the members.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.azureVirtualMachine) != has(self.azureScope)")
    .message("a target has exactly one of azureVirtualMachine and azureScope"))]
pub struct PolicyTarget {
    /// Name by which requests choose this target, unique in the policy.
    #[schemars(length(max = 63))]
    #[x_kube(validation = Rule::new("self.matches('^[a-z0-9]([-a-z0-9]*[a-z0-9])?$')")
        .message("must be a name of at most 63 of a-z, 0-9 and -, beginning and ending with a letter or digit, such as web-1"))]
    pub name: String,
    /// One Azure virtual machine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_virtual_machine: Option<AzureVirtualMachine>,
    /// Every Azure virtual machine below a subscription or resource group that has all of the tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub azure_scope: Option<AzureScope>,
}

/// One Azure virtual machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AzureVirtualMachine {
    /// Its resource id.
    #[x_kube(validation = virtual_machine_rule())]
    pub id: ResourceId,
}

/// The Azure virtual machines below a subscription or resource group.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct AzureScope {
    /// Id of the subscription or resource group.
    #[x_kube(validation = scope_rule())]
    pub id: ResourceId,
    /// Tags that a machine must have, all of them. Names are compared without regard to case, values with.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "tags_schema")]
    pub tags: BTreeMap<String, String>,
}

fn tags_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "description": "Tags that a machine must have, all of them. Names are compared without regard to case, values with.",
        "maxProperties": 15,
        "additionalProperties": {"type": "string", "maxLength": 256}
    })
}

/// A port that is locked and may be requested.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!has(self.endPort) || self.endPort >= self.port").message("endPort must not be below port"))]
pub struct PolicyPort {
    /// The port, or the first of a range.
    #[schemars(schema_with = "port_schema")]
    pub port: i32,
    /// The last port of a range.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "port_schema")]
    pub end_port: Option<i32>,
    /// TCP, UDP or Any; Any where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Protocol>,
    /// Networks that a request may name as sources, whole or in part. Left out: any.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub allowed_sources: Vec<Source>,
    /// The longest time a grant may last; 3h where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_duration: Option<Span>,
}

/// A source of traffic.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Source {
    /// A network in CIDR notation; `/32` or `/128` for one address.
    pub cidr: Cidr,
}

/// How a lock is written.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Enforcement {
    /// `Override` puts the lock above rules that would let traffic in; `Keep` below them.
    #[serde(default)]
    pub existing_rules: ExistingRules,
    /// Sources that the lock does not shut out: probes, Bastion, jump hosts. The cluster's configuration
    /// bounds what may stand here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), extend("x-kubernetes-list-type" = "atomic"))]
    pub exempt_sources: Vec<ExemptSource>,
    /// What concerns Azure alone.
    #[serde(default)]
    pub azure: AzureEnforcement,
}

/// What happens to rules of others that let traffic in to a locked port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExistingRules {
    /// The lock goes above them.
    #[default]
    Override,
    /// The lock goes below them, as Defender for Cloud does.
    Keep,
}

/// A source that a lock does not shut out. Exactly one of the members.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.cidr) != has(self.serviceTag)")
    .message("an exempt source has exactly one of cidr and serviceTag"))]
pub struct ExemptSource {
    /// A network in CIDR notation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cidr: Option<Cidr>,
    /// An Azure service tag, such as `AzureLoadBalancer`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 80))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z][A-Za-z0-9.]*$')")
        .message("must be a service tag such as AzureLoadBalancer or Storage.WestEurope"))]
    pub service_tag: Option<String>,
}

/// Settings that concern Azure alone.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AzureEnforcement {
    /// Which firewalls on the path are enforced: `Auto` is every one.
    #[serde(default)]
    pub via: Via,
    /// What source the machine sees after a firewall's DNAT.
    #[serde(default)]
    pub firewall_source: FirewallSource,
    /// How long before a grant's end its rules begin to be removed where an Azure Firewall is on the way, whose writes take
    /// minutes: 5m where left out, at least 1m and at most 1h.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("duration(self) >= duration('1m') && duration(self) <= duration('1h')")
        .message("must be at least 1m and at most 1h, such as 5m"))]
    pub firewall_lead: Option<Span>,
    /// `Keep`: a close stops new connections only. `Cut`: live ones too.
    #[serde(default)]
    pub established_sessions: EstablishedSessions,
}

/// Which firewalls on a machine's path are enforced.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Via {
    /// Every NSG and firewall on the path.
    #[default]
    Auto,
    /// Network security groups alone.
    NetworkSecurityGroup,
    /// Azure Firewall alone.
    AzureFirewall,
}

/// What source a machine behind an Azure Firewall sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum FirewallSource {
    /// As the firewall's set-up tells: an Azure Firewall shows an address of its own.
    #[default]
    Auto,
    /// An address of the firewall's subnet.
    Translated,
    /// The requester's own address.
    Original,
}

/// What a close does to connections that are already established.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EstablishedSessions {
    /// They go on.
    #[default]
    Keep,
    /// They are cut.
    Cut,
}

/// Whether others have to agree before a port is opened.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Approval {
    /// How many distinct people must approve. 0: none, requests within the policy are granted at once.
    #[serde(default)]
    #[schemars(schema_with = "required_schema")]
    pub required: i32,
    /// Whether the requester's own approval counts.
    #[serde(default)]
    pub allow_self_approval: bool,
    /// How long a request waits for its approvals; 1h where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_timeout: Option<Span>,
    /// How long an approval may lie unused; 24h where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_within: Option<Span>,
}

fn required_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "integer", "format": "int32", "minimum": 0, "maximum": 10, "default": 0,
        "description": "How many distinct people must approve. 0: none, requests within the policy are granted at once."
    })
}

/// What a request has to say for itself.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct JustificationRule {
    /// Whether a justification must be given.
    #[serde(default)]
    pub required: bool,
    /// A regular expression (RE2 syntax) that the justification must match.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    #[x_kube(validation = Rule::new("self != '' && ''.matches(self) in [true, false]")
        .message("must be a regular expression (RE2 syntax) such as ^(INC|CHG)-[0-9]+"))]
    pub pattern: Option<String>,
}

/// Bounds on the requests under a policy.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Limits {
    /// Live grants that one requester may hold; 3 where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub active_per_requester: Option<i32>,
    /// Live grants altogether; 100 where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10_000))]
    pub active: Option<i32>,
    /// Distinct sources that one request may name; 8 where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub sources_per_request: Option<i32>,
    /// How far ahead `notBefore`, and the `notAfter` of delegated requests, may lie; 168h where left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub delegated_horizon: Option<Span>,
}
