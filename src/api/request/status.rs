//! What the controller says of a request.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

use super::{JitAccessRequestSpec, RequestPort, RequestTarget};
use crate::api::conditions::conditions_schema;
use crate::api::values::{Protocol, port_schema};

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
    /// What is asked for, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub summary: Option<RequestSummary>,
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
    /// When the request came back to wait for approvals; left out: it has waited since its creation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pending_since: Option<Time>,
    /// When the last approval that was needed was given; where none is needed, when that was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approved_at: Option<Time>,
    /// When the grant was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub granted_at: Option<Time>,
    /// When the grant ends. Only ever decreases.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Time>,
    /// That the grant ends earlier than it was made for, because a policy was tightened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shortened: Option<Shortening>,
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
    /// What the close does to connections that are live then: `Keep`: they go on. `Cut`: they are cut.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 8))]
    pub established_sessions: Option<String>,
}

/// What a request asks for, for people.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestSummary {
    /// The targets, such as `web-1, fleet/vm-7`, or `all`.
    #[schemars(length(max = 256))]
    pub targets: String,
    /// The ports, such as `22/TCP, 5985-5986`.
    #[schemars(length(max = 256))]
    pub ports: String,
}

impl RequestSummary {
    /// Sums up what a request asks for. What is too long for a column ends with `...`.
    #[must_use]
    pub fn of(spec: &JitAccessRequestSpec) -> Self {
        let target = |target: &RequestTarget| match (&target.machine, &target.id) {
            (Some(machine), _) => format!("{}/{machine}", target.name),
            (None, Some(id)) => {
                format!("{}/{}", target.name, id.as_str().rsplit('/').next().unwrap_or_default())
            }
            (None, None) => target.name.clone(),
        };
        let port = |port: &RequestPort| {
            let last = port.end_port.map(|last| format!("-{last}")).unwrap_or_default();
            format!("{}{last}/{}", port.port, port.protocol.unwrap_or(Protocol::Tcp))
        };
        let targets =
            if spec.all_targets { vec!["all".to_owned()] } else { spec.targets.iter().map(target).collect() };
        Self { targets: cell(&targets), ports: cell(&spec.ports.iter().map(port).collect::<Vec<_>>()) }
    }
}

/// As many whole entries as fit into a column.
fn cell(entries: &[String]) -> String {
    const WIDTH: usize = 60;
    let mut text = String::new();
    for entry in entries {
        if !text.is_empty() && text.len() + entry.len() > WIDTH {
            text.push_str(", ...");
            break;
        }
        if !text.is_empty() {
            text.push_str(", ");
        }
        text.push_str(entry);
    }
    text
}

/// A policy that covers a request.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
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
    /// Whose they are, as many as fit.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 10), inner(length(max = 256)), extend("x-kubernetes-list-type" = "atomic"))]
    pub approved_by: Vec<String>,
}

/// What made a live grant shorter.
#[derive(KubeSchema, Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Shortening {
    /// When its last step was written ahead: no rule of it is written long after.
    pub at: Time,
    /// Which policy allows how long now.
    #[schemars(length(max = 1024))]
    pub message: String,
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
    /// Where packets come in that the rule leads on, where the firewall translates addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub translation: Option<TranslationStatus>,
    /// `Planned`, `Opening`, `Present`, `Closing` or `Absent`.
    #[schemars(length(max = 16))]
    pub state: String,
    /// When the firewall was last read for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Time>,
}

/// Where packets come in that a rule leads on to the machine.
#[derive(KubeSchema, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TranslationStatus {
    /// A public address of the firewall.
    #[schemars(length(max = 45))]
    pub address: String,
    /// The first port there: it leads to the first of the rule's ports, the next to the next.
    #[schemars(schema_with = "port_schema")]
    pub port: i32,
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

#[cfg(test)]
mod tests {
    use super::*;

    fn summary(spec: serde_json::Value) -> (String, String) {
        let summary = RequestSummary::of(&serde_json::from_value(spec).unwrap());
        (summary.targets, summary.ports)
    }

    #[test]
    fn a_summary_names_targets_and_ports() {
        let mut spec = serde_json::json!({
            "policyRef": {"name": "p"}, "duration": "1h",
            "targets": [{"name": "web-1"}, {"name": "fleet", "machine": "vm-7"}, {"name": "fleet", "id": "/subscriptions/x/vm-8"}],
            "ports": [{"port": 22, "sources": []}, {"port": 5985, "endPort": 5986, "protocol": "Any", "sources": []}],
        });
        assert_eq!(
            summary(spec.clone()),
            ("web-1, fleet/vm-7, fleet/vm-8".into(), "22/TCP, 5985-5986/Any".into())
        );
        spec["targets"] = (0..64).map(|n| serde_json::json!({"name": format!("machine-{n}")})).collect();
        let (targets, _) = summary(spec.clone());
        assert!(targets.ends_with(", ...") && targets.len() < 80, "{targets}");
        spec["targets"] = serde_json::json!([]);
        spec["allTargets"] = true.into();
        assert_eq!(summary(spec).0, "all");
    }
}
