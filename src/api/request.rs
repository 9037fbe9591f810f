//! `JitAccessRequest`: one port, for one source, for a bounded time.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};

use super::conditions::conditions_schema;
use super::policy::Source;
use super::values::{Moment, Protocol, ResourceId, Span, port_schema, virtual_machine_rule};

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
    printcolumn(name = "Targets", type_ = "string", json_path = ".spec.targets[*].name"),
    printcolumn(name = "Ports", type_ = "string", json_path = ".spec.ports[*].port"),
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
    printcolumn(name = "Connect", type_ = "string", json_path = ".status.connections[*].address", priority = 1),
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
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// Where a request stands, summed up for people. The conditions are the API.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum State {
    /// Waits for its policy or for approvals.
    #[default]
    Pending,
    /// Approved, waits for its turn.
    Approved,
    /// Approved, waits for `notBefore`.
    Scheduled,
    /// Written ahead; the allows are being written.
    Opening,
    /// Every allow was read back.
    Active,
    /// Ending; the allows are being removed.
    Closing,
    /// Ended by its deadline.
    Expired,
    /// Ended by its requester, or by somebody who removed its rule.
    Ended,
    /// Refused.
    Denied,
    /// Ended by an approver or by its policy.
    Revoked,
    /// Waited too long.
    TimedOut,
    /// Could not be opened.
    Failed,
    /// Cannot be trusted to be what it says; to be created again.
    Void,
}

impl State {
    /// Every state, in the order of a life.
    pub const ALL: [Self; 13] = [
        Self::Pending,
        Self::Approved,
        Self::Scheduled,
        Self::Opening,
        Self::Active,
        Self::Closing,
        Self::Expired,
        Self::Ended,
        Self::Denied,
        Self::Revoked,
        Self::TimedOut,
        Self::Failed,
        Self::Void,
    ];

    /// The word in `status.state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Approved => "Approved",
            Self::Scheduled => "Scheduled",
            Self::Opening => "Opening",
            Self::Active => "Active",
            Self::Closing => "Closing",
            Self::Expired => "Expired",
            Self::Ended => "Ended",
            Self::Denied => "Denied",
            Self::Revoked => "Revoked",
            Self::TimedOut => "TimedOut",
            Self::Failed => "Failed",
            Self::Void => "Void",
        }
    }

    /// Reads the word; none for a word of another version.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == text)
    }

    /// Whether nothing comes after it.
    #[must_use]
    pub const fn is_last(self) -> bool {
        match self {
            Self::Pending
            | Self::Approved
            | Self::Scheduled
            | Self::Opening
            | Self::Active
            | Self::Closing => false,
            Self::Expired
            | Self::Ended
            | Self::Denied
            | Self::Revoked
            | Self::TimedOut
            | Self::Failed
            | Self::Void => true,
        }
    }

    /// Whether the cloud may hold allows for it.
    #[must_use]
    pub const fn holds_rules(self) -> bool {
        match self {
            Self::Opening | Self::Active | Self::Closing => true,
            Self::Pending
            | Self::Approved
            | Self::Scheduled
            | Self::Expired
            | Self::Ended
            | Self::Denied
            | Self::Revoked
            | Self::TimedOut
            | Self::Failed
            | Self::Void => false,
        }
    }
}

/// Where one rule stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleState {
    /// Shown, not written.
    #[default]
    Planned,
    /// To be written, or being written.
    Opening,
    /// Read back as there.
    Present,
    /// To be removed, or being removed.
    Closing,
    /// Read back as gone.
    Absent,
}

impl RuleState {
    /// The word in `status.rules[].state`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Planned => "Planned",
            Self::Opening => "Opening",
            Self::Present => "Present",
            Self::Closing => "Closing",
            Self::Absent => "Absent",
        }
    }

    /// Reads the word. A word of another version counts as `Closing`: what is not understood is closed.
    #[must_use]
    pub fn parse(text: &str) -> Self {
        [Self::Planned, Self::Opening, Self::Present, Self::Closing, Self::Absent]
            .into_iter()
            .find(|state| state.as_str() == text)
            .unwrap_or(Self::Closing)
    }
}

/// What the controller has decided, seen and done for a request.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct JitAccessRequestStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Approved`, `Denied`, `Active`, `Succeeded`, `Stalled`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Where the request stands, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub state: Option<String>,
    /// The last state that a closing request is on its way to, recorded before the first delete.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub outcome: Option<String>,
    /// True, written last, when every rule is proved absent and the finalizer is gone.
    #[serde(default)]
    pub settled: bool,
    /// SHA-256 of the plan: what an approval is an approval of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub plan_hash: Option<String>,
    /// The policies that cover this request. Every one must be satisfied.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub policies: Vec<RequestedPolicy>,
    /// The machines, pinned at the grant.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub machines: Vec<PinnedMachine>,
    /// When the grant was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_at: Option<Time>,
    /// When the grant ends. Only ever decreases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// When every rule was read back as gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Time>,
    /// The rules, shown before they are written.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), extend("x-kubernetes-list-type" = "atomic"))]
    pub rules: Vec<RuleStatus>,
    /// What to type to connect.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "atomic"))]
    pub connections: Vec<Connection>,
}

/// A policy that covers a request.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestedPolicy {
    /// Its name.
    #[schemars(length(max = 253))]
    pub name: String,
    /// Its UID.
    #[schemars(length(max = 64))]
    pub uid: String,
    /// Its generation when it was judged.
    #[serde(default)]
    pub generation: i64,
    /// Approvals that it asks for.
    #[serde(default)]
    pub required: i32,
    /// Approvals that count.
    #[serde(default)]
    pub approved: i32,
}

/// A machine as it was at the grant.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PinnedMachine {
    /// Its resource id.
    #[schemars(length(max = 512))]
    pub id: String,
    /// The UUID that Azure gives a machine at its creation, so that a namesake is another machine.
    #[schemars(length(max = 64))]
    pub vm_id: String,
    /// Its network interfaces.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8), inner(length(max = 512)), extend("x-kubernetes-list-type" = "atomic"))]
    pub nics: Vec<String>,
    /// Its private addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(max = 45)), extend("x-kubernetes-list-type" = "atomic"))]
    pub addresses: Vec<String>,
}

/// A rule of a request.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleStatus {
    /// Id of the firewall it stands on.
    #[schemars(length(max = 512))]
    pub firewall: String,
    /// Its name there: owner, deadline and number. Never used twice.
    #[schemars(length(max = 80))]
    pub name: String,
    /// Its priority, once written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// TCP, UDP or Any.
    #[schemars(length(max = 8))]
    pub protocol: String,
    /// Who may connect.
    #[schemars(length(max = 64), inner(length(max = 43)), extend("x-kubernetes-list-type" = "atomic"))]
    pub sources: Vec<String>,
    /// Addresses of the machines.
    #[schemars(length(max = 256), inner(length(max = 45)), extend("x-kubernetes-list-type" = "atomic"))]
    pub destinations: Vec<String>,
    /// Ports of the machines.
    #[schemars(length(max = 32), inner(length(max = 11)), extend("x-kubernetes-list-type" = "atomic"))]
    pub ports: Vec<String>,
    /// `Planned`, `Opening`, `Present`, `Closing` or `Absent`.
    #[schemars(length(max = 16))]
    pub state: String,
    /// When the firewall was last read for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// What to type to connect.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Connection {
    /// The machine's name.
    #[schemars(length(max = 80))]
    pub target: String,
    /// The address to connect to.
    #[schemars(length(max = 45))]
    pub address: String,
    /// The port to connect to.
    #[schemars(length(max = 11))]
    pub port: String,
    /// `Direct`, or the firewall that translates.
    #[schemars(length(max = 512))]
    pub via: String,
}
