//! From what was typed to the request: pure.

use jiff::Timestamp;
use kube::core::ObjectMeta;

use super::failure::Failure;
use super::values::{Port, When};
use crate::api::values::{PortRange, Protocol, Span};
use crate::api::{
    JitAccessRequest, JitAccessRequestSpec, JitPolicy, NameRef, RequestPort, RequestTarget, Source,
};

/// What was typed.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// The policy.
    pub policy: String,
    /// The machines.
    pub targets: Vec<RequestTarget>,
    /// All of them.
    pub all_targets: bool,
    /// The ports.
    pub ports: Vec<Port>,
    /// For whom.
    pub sources: Vec<Source>,
    /// How long.
    pub duration: Span,
    /// From when on.
    pub not_before: Option<When>,
    /// Until when at most.
    pub not_after: Option<When>,
    /// Why.
    pub justification: Option<String>,
    /// For which person.
    pub on_behalf_of: Option<String>,
    /// The name of the object.
    pub name: String,
}

/// The request, and what was filled in that was not typed.
///
/// # Errors
/// When something was left out that the policy does not settle.
pub fn draft(
    wanted: &Wanted,
    policy: Option<&JitPolicy>,
    namespace: &str,
    now: Timestamp,
) -> Result<(JitAccessRequest, Vec<String>), Failure> {
    let mut notes = Vec::new();
    let targets = if wanted.all_targets || !wanted.targets.is_empty() {
        wanted.targets.clone()
    } else {
        let target = only_target(&wanted.policy, policy)?;
        notes.push(format!("--target {}: the only one of JitPolicy {}", target.name, wanted.policy));
        vec![target]
    };
    let ports = if wanted.ports.is_empty() {
        let port = only_port(&wanted.policy, policy, &targets)?;
        notes.push(format!("--port {}: the only one of JitPolicy {}", port.range, wanted.policy));
        vec![port]
    } else {
        wanted.ports.clone()
    };
    let end = |range: PortRange| (range.last() != range.first()).then(|| i32::from(range.last()));
    let ports = ports.into_iter().map(|port| RequestPort {
        port: i32::from(port.range.first()),
        end_port: end(port.range),
        protocol: port.protocol,
        sources: wanted.sources.clone(),
    });
    let spec = JitAccessRequestSpec {
        policy_ref: NameRef { name: wanted.policy.clone() },
        requester: None,
        on_behalf_of: wanted.on_behalf_of.clone(),
        targets,
        all_targets: wanted.all_targets,
        ports: ports.collect(),
        duration: wanted.duration.clone(),
        not_before: wanted.not_before.as_ref().map(|when| when.from(now)),
        not_after: wanted.not_after.as_ref().map(|when| when.from(now)),
        justification: wanted.justification.clone(),
    };
    let mut request = JitAccessRequest::new(&wanted.name, spec);
    request.metadata = ObjectMeta {
        name: Some(wanted.name.clone()),
        namespace: Some(namespace.to_owned()),
        ..ObjectMeta::default()
    };
    Ok((request, notes))
}

fn only_target(name: &str, policy: Option<&JitPolicy>) -> Result<RequestTarget, Failure> {
    let Some(policy) = policy else {
        return Err(Failure::usage(format!(
            "--target is missing, and JitPolicy {name} cannot be read to see whether it has only one: name the machine, such as --target web-1"
        )));
    };
    match policy.spec.targets.as_slice() {
        // A scope may hold any number of machines: "all" is said, never meant by omission.
        [one] if one.azure_scope.is_none() => {
            Ok(RequestTarget { name: one.name.clone(), ..RequestTarget::default() })
        }
        several => {
            let names: Vec<String> = several
                .iter()
                .map(|target| match &target.azure_scope {
                    Some(_) => format!("{0}/MACHINE or {0} for all in it", target.name),
                    None => target.name.clone(),
                })
                .collect();
            Err(Failure::usage(format!(
                "--target is missing: JitPolicy {name} has {}; --all-targets asks for every machine",
                names.join(", ")
            )))
        }
    }
}

fn only_port(name: &str, policy: Option<&JitPolicy>, targets: &[RequestTarget]) -> Result<Port, Failure> {
    let Some(policy) = policy else {
        return Err(Failure::usage(format!(
            "--port is missing, and JitPolicy {name} cannot be read to see whether it has only one: name it, such as --port 22"
        )));
    };
    let of = |port: i32, end: Option<i32>| PortRange::from_fields(port, end).ok();
    match policy.spec.ports.as_slice() {
        [one] => {
            let range = of(one.port, one.end_port);
            let protocol = one.protocol.filter(|protocol| *protocol == Protocol::Udp);
            range.map(|range| Port { range, protocol }).ok_or_else(|| missing(name, &[]))
        }
        [] => by_system(policy, targets)
            .ok_or_else(|| missing(name, &["22 on Linux", "3389 on Windows"].map(String::from))),
        several => {
            let words: Vec<String> = several
                .iter()
                .map(|port| {
                    let range =
                        of(port.port, port.end_port).map(|range| range.to_string()).unwrap_or_default();
                    format!("{range}/{}", port.protocol.unwrap_or_default())
                })
                .collect();
            Err(missing(name, &words))
        }
    }
}

fn missing(policy: &str, ports: &[String]) -> Failure {
    let ports = if ports.is_empty() {
        String::new()
    } else {
        format!(": JitPolicy {policy} has {}", ports.join(", "))
    };
    Failure::usage(format!("--port is missing{ports}"))
}

/// Where the policy goes by the operating system, and that of every machine asked for is known and the same.
fn by_system(policy: &JitPolicy, targets: &[RequestTarget]) -> Option<Port> {
    let known = &policy.status.as_ref()?.targets;
    let asked = |name: &str| targets.is_empty() || targets.iter().any(|target| target.name == name);
    let mut systems: Vec<&str> = known
        .iter()
        .filter(|machine| asked(&machine.name))
        .map(|machine| machine.os_type.as_deref().unwrap_or_default())
        .collect();
    systems.sort_unstable();
    systems.dedup();
    let port = match systems.as_slice() {
        ["Linux"] => 22,
        ["Windows"] => 3389,
        _ => return None,
    };
    Some(Port { range: PortRange::single(port), protocol: None })
}

/// A name for a request under a policy; `random` makes it one that is not taken.
#[must_use]
pub fn generated_name(policy: &str, random: u32) -> String {
    const ALPHABET: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut rest = u64::from(random);
    let mut suffix = String::new();
    for _ in 0..5 {
        suffix.push(char::from(ALPHABET[usize::try_from(rest % 27).unwrap_or_default()]));
        rest /= 27;
    }
    format!("{policy}-{suffix}")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::values::{port, source, span, target, when};
    use super::*;

    const ID: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web";

    fn policy(targets: &serde_json::Value, ports: &serde_json::Value) -> JitPolicy {
        serde_json::from_value(json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy", "metadata": {"name": "web"},
            "spec": {"targets": targets, "ports": ports},
        }))
        .unwrap()
    }

    fn machine(name: &str) -> serde_json::Value {
        json!({"name": name, "azureVirtualMachine": {"id": format!("{ID}/providers/Microsoft.Compute/virtualMachines/{name}")}})
    }

    fn wanted() -> Wanted {
        Wanted {
            policy: "web".into(),
            sources: vec![source("203.0.113.7").unwrap()],
            duration: span("1h").unwrap(),
            name: "web-x".into(),
            ..Wanted::default()
        }
    }

    fn spec(wanted: &Wanted, policy: Option<&JitPolicy>) -> Result<(serde_json::Value, Vec<String>), String> {
        let now = "2026-01-31T12:00:00Z".parse().unwrap();
        let (request, notes) = draft(wanted, policy, "team-web", now).map_err(|failure| {
            assert_eq!(failure.exit, super::super::failure::Exit::Usage);
            failure.message
        })?;
        Ok((serde_json::to_value(&request).unwrap()["spec"].clone(), notes))
    }

    #[test]
    fn what_was_typed_is_what_is_asked_for() {
        let wanted = Wanted {
            targets: vec![target("a").unwrap(), target("web/vm-7").unwrap()],
            ports: vec![port("22/tcp").unwrap(), port("5985-5986").unwrap()],
            not_after: Some(when("+2h").unwrap()),
            justification: Some("INC-1".into()),
            ..wanted()
        };
        let (spec, notes) = spec(&wanted, None).unwrap();
        assert_eq!(
            spec,
            json!({
                "policyRef": {"name": "web"}, "duration": "1h", "justification": "INC-1",
                "notAfter": "2026-01-31T14:00:00Z", "targets": [{"name": "a"}, {"name": "web", "machine": "vm-7"}],
                "ports": [
                    {"port": 22, "protocol": "TCP", "sources": [{"cidr": "203.0.113.7/32"}]},
                    {"port": 5985, "endPort": 5986, "sources": [{"cidr": "203.0.113.7/32"}]},
                ],
            })
        );
        assert!(notes.is_empty());
    }

    #[test]
    fn the_only_target_and_port_may_be_left_out_and_are_said() {
        let policy = policy(&json!([machine("a")]), &json!([{"port": 53, "protocol": "UDP"}]));
        let (spec, notes) = spec(&wanted(), Some(&policy)).unwrap();
        assert_eq!(spec["targets"], json!([{"name": "a"}]));
        assert_eq!(spec["ports"][0]["port"], 53);
        assert_eq!(spec["ports"][0]["protocol"], "UDP");
        assert!(notes[0].starts_with("--target a") && notes[1].starts_with("--port 53"), "{notes:?}");
    }

    #[test]
    fn what_is_not_settled_is_asked_for() {
        let scope = json!({"name": "fleet", "azureScope": {"id": ID}});
        let several =
            policy(&json!([machine("a"), scope]), &json!([{"port": 22}, {"port": 80, "protocol": "TCP"}]));
        let error = spec(&wanted(), Some(&several)).unwrap_err();
        assert!(error.contains("--target is missing") && error.contains("a, fleet/MACHINE"), "{error}");
        let targets = Wanted { targets: vec![target("a").unwrap()], ..wanted() };
        let error = spec(&targets, Some(&several)).unwrap_err();
        assert!(error.contains("--port is missing: JitPolicy web has 22/Any, 80/TCP"), "{error}");
        // A scope alone is not one machine.
        let scoped = policy(&json!([scope]), &json!([{"port": 22}]));
        assert!(spec(&wanted(), Some(&scoped)).unwrap_err().contains("fleet/MACHINE"));
        assert!(spec(&wanted(), None).unwrap_err().contains("cannot be read"));
        assert!(spec(&targets, None).unwrap_err().contains("--port is missing"));
    }

    #[test]
    fn without_ports_the_operating_system_decides_where_it_is_known() {
        let mut policy = policy(&json!([machine("a"), machine("b")]), &json!([]));
        let status = |a: &str, b: &str| json!({"targets": [{"name": "a", "id": "a", "state": "", "osType": a}, {"name": "b", "id": "b", "state": "", "osType": b}]});
        let all = Wanted { all_targets: true, ..wanted() };
        let one = Wanted { targets: vec![target("b").unwrap()], ..wanted() };
        assert!(spec(&all, Some(&policy)).is_err(), "nothing is known");
        policy.status = serde_json::from_value(status("Linux", "Windows")).unwrap();
        assert!(spec(&all, Some(&policy)).unwrap_err().contains("3389 on Windows"));
        assert_eq!(spec(&one, Some(&policy)).unwrap().0["ports"][0]["port"], 3389);
        policy.status = serde_json::from_value(status("Linux", "Linux")).unwrap();
        assert_eq!(spec(&all, Some(&policy)).unwrap().0["ports"][0]["port"], 22);
    }

    #[test]
    fn generated_names_are_names() {
        for random in [0, 1, u32::MAX] {
            let name = generated_name("web-1", random);
            assert_eq!(super::super::values::name(&name).unwrap().len(), "web-1-".len() + 5);
        }
        assert_ne!(generated_name("web", 1), generated_name("web", 2));
    }
}
