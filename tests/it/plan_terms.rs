//! What the words of a policy and of a request come to, with what holds where nothing is said.

use std::time::Duration;

use portcullis::api::values::{PortRange, Protocol};
use portcullis::api::{ExistingRules, JitAccessRequestSpec, JitPolicySpec};
use portcullis::plan::model::{Os, Peer};
use portcullis::plan::terms::{Ask, InvalidSpec, Terms};
use serde_json::{Value, json};

use crate::plan_world::*;

/// A policy over one machine with these fields beside.
fn policy(fields: &Value) -> Result<Terms, InvalidSpec> {
    let vm = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web-1";
    let mut spec = json!({"targets": [{"name": "web-1", "azureVirtualMachine": {"id": vm}}]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Terms::parse(&serde_json::from_value::<JitPolicySpec>(spec).unwrap())
}

fn terms(fields: &Value) -> Terms {
    policy(fields).unwrap()
}

/// The field that is wrong.
fn wrong(fields: &Value) -> String {
    policy(fields).unwrap_err().field
}

fn request(fields: &Value) -> Result<Ask, InvalidSpec> {
    let mut spec = json!({"policyRef": {"name": "web"}, "duration": "1h", "targets": [{"name": "web-1"}],
        "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}]});
    spec.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    Ask::parse(&serde_json::from_value::<JitAccessRequestSpec>(spec).unwrap())
}

#[test]
fn what_a_policy_does_not_say_has_a_meaning() {
    let terms = terms(&json!({}));
    assert_eq!((terms.existing, terms.cut_sessions), (ExistingRules::Override, false));
    assert_eq!((terms.active_per_requester, terms.active, terms.sources_per_request), (3, 100, 8));
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    assert_eq!((terms.pending_timeout, terms.use_within, terms.horizon), (hours(1), hours(24), hours(168)));
    assert_eq!(terms.firewall_lead, Duration::from_secs(300));
    assert!(terms.exempt.is_empty() && terms.justification.is_none() && !terms.justification_required);
}

#[test]
fn a_machine_without_named_ports_has_that_of_its_system_for_everybody() {
    for (os, port) in [(Os::Linux, Some(22)), (Os::Windows, Some(3389)), (Os::Unknown, None)] {
        let ports = terms(&json!({})).ports_for(os);
        assert_eq!(ports.first().map(|port| port.range), port.map(PortRange::single), "{os:?}");
        for port in ports {
            assert_eq!(port.allowed, [net("0.0.0.0/0"), net("::/0")], "{os:?}");
            assert_eq!((port.protocol, port.max_duration), (Protocol::Any, Duration::from_secs(3 * 3600)));
        }
    }
    let named = terms(&json!({"ports": [{"port": 8000, "endPort": 8003, "maxDuration": "30m"}]}));
    for os in [Os::Linux, Os::Windows, Os::Unknown] {
        let ports = named.ports_for(os);
        assert_eq!((ports.len(), ports[0].range), (1, port("8000-8003")));
        assert_eq!(ports[0].allowed, [net("0.0.0.0/0"), net("::/0")], "whoever asks");
        assert_eq!(ports[0].max_duration, Duration::from_secs(1800));
    }
}

#[test]
fn exemptions_are_networks_or_tags_each_once() {
    let exempt = |sources: Value| policy(&json!({"enforcement": {"exemptSources": sources}}));
    let (cidr, tag) = (json!({"cidr": "10.9.0.0/16"}), json!({"serviceTag": "AzureLoadBalancer"}));
    let expected = [peer("10.9.0.0/16"), Peer::Tag("AzureLoadBalancer".into())];
    let found = exempt(json!([tag, cidr, tag])).unwrap().exempt;
    assert_eq!(found.len(), 2);
    assert!(expected.iter().all(|peer| found.contains(peer)), "{found:?}");
    for bad in [json!({}), json!({"cidr": "10.9.0.0/16", "serviceTag": "AzureLoadBalancer"})] {
        let field = exempt(json!([cidr, bad])).unwrap_err().field;
        assert_eq!(field, "spec.enforcement.exemptSources[1]");
    }
}

#[test]
fn sessions_are_cut_or_kept_as_the_policy_says() {
    let cut =
        |word: &str| terms(&json!({"enforcement": {"azure": {"establishedSessions": word}}})).cut_sessions;
    assert!(cut("Cut") && !cut("Keep"));
}

#[test]
fn the_first_field_that_cannot_be_is_named() {
    let azure = |lead: &str| json!({"enforcement": {"azure": {"firewallLead": lead}}});
    for lead in ["60s", "5m", "1h"] {
        assert!(policy(&azure(lead)).is_ok(), "{lead}");
    }
    for lead in ["59s", "61m"] {
        assert_eq!(wrong(&azure(lead)), "spec.enforcement.azure.firewallLead", "{lead}");
    }
    let ports = |ports: Value| json!({"ports": ports});
    let twice = json!([{"port": 22}, {"port": 20, "endPort": 30}]);
    assert_eq!(wrong(&ports(twice)), "spec.ports[1]");
    for apart in [
        json!([{"port": 22, "protocol": "TCP"}, {"port": 22, "protocol": "UDP"}]),
        json!([{"port": 22}, {"port": 23}]),
    ] {
        assert!(policy(&ports(apart.clone())).is_ok(), "{apart}");
    }
    assert_eq!(wrong(&ports(json!([{"port": 22, "protocol": "TCP"}, {"port": 22}]))), "spec.ports[1]");
    assert_eq!(wrong(&json!({"targets": []})), "spec.targets");
}

#[test]
fn a_request_names_targets_or_asks_for_all_of_them() {
    let field = |fields: Value| request(&fields).map(drop).map_err(|error| error.field);
    assert_eq!(field(json!({})), Ok(()));
    assert_eq!(field(json!({"targets": [], "allTargets": true})), Ok(()));
    assert_eq!(field(json!({"allTargets": true})), Err("spec.targets".to_owned()));
    assert_eq!(field(json!({"targets": []})), Err("spec.targets".to_owned()));
    assert_eq!(field(json!({"ports": []})), Err("spec.ports".to_owned()));
    let nobody = json!({"ports": [{"port": 22, "sources": []}]});
    assert_eq!(field(nobody), Err("spec.ports[0].sources".to_owned()));
}

#[test]
fn a_request_is_for_tcp_unless_it_says_otherwise_and_its_sources_are_the_fewest() {
    let sources = json!([{"cidr": "10.0.1.0/24"}, {"cidr": "10.0.0.0/24"}, {"cidr": "10.0.0.7/32"}]);
    let ask = request(&json!({"ports": [{"port": 22, "sources": sources}]})).unwrap();
    assert_eq!(
        (ask.ports[0].protocol, ask.ports[0].sources.as_slice()),
        (Protocol::Tcp, &[net("10.0.0.0/23")][..])
    );
    assert_eq!(ask.duration, Duration::from_secs(3600));
}
