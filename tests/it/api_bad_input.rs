//! Bad input is refused with a message that names the field and says what would be right: by the real API
//! server, and, where a CEL rule judges, by the same rule in process.

use std::collections::BTreeMap;

use kube::core::cel::Validator;
use portcullis::api::crds;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster::{self, Cause};

const SUB: &str = "/subscriptions/11111111-2222-3333-4444-555555555555";

fn vm(name: &str) -> String {
    format!("{SUB}/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/{name}")
}

fn policy() -> Value {
    json!({
        "kind": "JitPolicy",
        "metadata": {"name": "web-admins"},
        "spec": {
            "targets": [{"name": "web-1", "azureVirtualMachine": {"id": vm("web-1")}}],
            "ports": [{"port": 22, "protocol": "TCP", "allowedSources": [{"cidr": "203.0.113.0/24"}], "maxDuration": "3h"}],
        },
    })
}

fn scope() -> Value {
    let mut policy = policy();
    policy["spec"]["targets"] = json!([{"name": "web", "azureScope": {"id": SUB, "tags": {"role": "web"}}}]);
    policy
}

fn request() -> Value {
    json!({
        "kind": "JitAccessRequest",
        "metadata": {"name": "disk-full"},
        "spec": {
            "policyRef": {"name": "web-admins"},
            "targets": [{"name": "web-1"}],
            "ports": [{"port": 22, "protocol": "TCP", "sources": [{"cidr": "203.0.113.7/32"}]}],
            "duration": "1h",
        },
    })
}

fn review() -> Value {
    json!({
        "kind": "JitAccessReview",
        "metadata": {"name": "go"},
        "spec": {
            "requestRef": {"name": "disk-full", "uid": "11111111-2222-3333-4444-555555555555"},
            "policyRef": {"name": "web-admins"},
            "planHash": "a".repeat(64),
            "verdict": "Approved",
        },
    })
}

/// One mistake in an object that is right otherwise.
struct Case {
    /// The object, right.
    base: Value,
    /// Where the mistake goes, as a JSON pointer.
    at: &'static str,
    /// The mistake; null takes the field away.
    value: Value,
    /// The field that the complaint must name.
    field: &'static str,
    /// What the complaint must say.
    says: &'static str,
}

impl Case {
    fn object(&self) -> Value {
        let mut object = self.base.clone();
        let (parent, key) = self.at.rsplit_once('/').unwrap();
        let parent = object.pointer_mut(parent).unwrap_or_else(|| panic!("no {parent}"));
        match parent {
            Value::Array(items) => {
                let index: usize = key.parse().unwrap();
                if index < items.len() {
                    items[index] = self.value.clone();
                } else {
                    items.push(self.value.clone());
                }
            }
            _ if self.value.is_null() => {
                parent.as_object_mut().unwrap().remove(key);
            }
            _ => parent[key] = self.value.clone(),
        }
        object
    }
}

fn case(base: Value, at: &'static str, value: Value, field: &'static str, says: &'static str) -> Case {
    Case { base, at, value, field, says }
}

/// The kinds of refusal that the API server words by itself, without a rule of ours.
const SERVERS_OWN: &[&str] = &[
    "Required value",
    "Too long: may not be more than",
    "Too many: ",
    "supported values: ",
    "should be greater than or equal to",
    "should be less than or equal to",
    "should have at least 1 items",
    "should be at least 1 chars long",
    "must be of type",
    "Duplicate value",
    "must be no more than 253 characters",
    "unknown field",
];

#[test]
fn the_api_server_names_the_field_and_what_would_be_right() {
    cluster::with_kinds(|plane| async move {
        for base in [policy(), request(), review(), scope()] {
            cluster::judge(plane, &base).await.expect("the base of the cases is right");
        }
        for case in cases() {
            let causes = cluster::judge(plane, &case.object()).await.err().unwrap_or_default();
            let named =
                causes.iter().any(|cause| cause.field == case.field && cause.message.contains(case.says));
            assert!(named, "{} = {}: {causes:#?}", case.at, case.value);
        }
    });
}

#[test]
fn the_rules_say_the_same_in_process() {
    for base in [policy(), request(), review(), scope()] {
        assert_eq!(in_process(&base, None), []);
    }
    let mut judged = 0;
    for case in cases().into_iter().filter(|case| !SERVERS_OWN.iter().any(|own| case.says.contains(own))) {
        let field = case.field.trim_start_matches("<nil>");
        let causes = in_process(&case.object(), None);
        // Where a rule cannot be evaluated, the server appends the rule's message and the library does not.
        let named = causes.iter().any(|cause| {
            cause.field == field
                && (cause.message.contains(case.says) || cause.message.contains("rule evaluation error"))
        });
        assert!(named, "{} = {}: {causes:#?}", case.at, case.value);
        judged += 1;
    }
    assert!(judged > 40, "{judged}");
}

#[test]
fn requests_and_reviews_are_immutable_and_say_what_to_do_instead() {
    cluster::with_kinds(|plane| async move {
        for (mut base, name, at, says) in [
            (request(), "immutable-request", "/spec/duration", "spec is immutable: create a new request"),
            (review(), "immutable-review", "/spec/verdict", "a review is immutable: create another"),
        ] {
            base["metadata"]["name"] = json!(name);
            let folder = cluster::path(base["kind"].as_str().unwrap());
            let created = cluster::send(plane, Method::POST, &folder, &base).await.unwrap();
            let mut changed = created.clone();
            *changed.pointer_mut(at).unwrap() =
                if name.ends_with("review") { json!("Denied") } else { json!("2h") };
            let path = format!("{folder}/{name}");
            let causes = cluster::send(plane, Method::PUT, &path, &changed).await.unwrap_err();
            assert!(causes.iter().any(|cause| cause.message.contains(says)), "{causes:?}");
            assert!(in_process(&changed, Some(&created)).iter().any(|cause| cause.message.contains(says)));
            let mut without = created.clone();
            without.as_object_mut().unwrap().remove("spec");
            let causes = cluster::send(plane, Method::PUT, &path, &without).await.unwrap_err();
            assert!(causes.iter().any(|cause| cause.field == "spec"), "{causes:?}");
            // What is no change passes: the same manifest may be applied again.
            cluster::send(plane, Method::PUT, &path, &created).await.unwrap();
        }
    });
}

#[test]
fn the_end_of_a_grant_only_ever_comes_nearer() {
    cluster::with_kinds(|plane| async move {
        let mut base = request();
        base["metadata"]["name"] = json!("expiring");
        let folder = cluster::path("JitAccessRequest");
        let mut live = cluster::send(plane, Method::POST, &folder, &base).await.unwrap();
        let path = format!("{folder}/expiring/status");
        for (expires, says) in [
            (json!("2031-01-01T10:00:00Z"), None),
            (json!("2031-01-01T10:00:01Z"), Some("status.expiresAt only ever decreases")),
            (json!("2031-01-01T11:00:00+00:30"), Some("status.expiresAt only ever decreases")),
            (Value::Null, Some("status.expiresAt only ever decreases")),
            (json!("2031-01-01T10:00:00Z"), None),
            (json!("2031-01-01T09:00:00Z"), None),
        ] {
            let mut next = live.clone();
            next["status"] = json!({"state": "Active"});
            if !expires.is_null() {
                next["status"]["expiresAt"] = expires.clone();
            }
            match (cluster::send(plane, Method::PUT, &path, &next).await, says) {
                (Ok(written), None) => live = written,
                (Err(causes), Some(says)) => {
                    assert!(causes.iter().any(|cause| cause.message.contains(says)), "{expires}: {causes:?}");
                }
                (outcome, _) => panic!("{expires}: {outcome:?}"),
            }
        }
    });
}

fn in_process(object: &Value, old: Option<&Value>) -> Vec<Cause> {
    let crd = crds::all().into_iter().find(|crd| object["kind"] == crd.spec.names.kind.as_str()).unwrap();
    let crd = serde_json::to_value(&crd).unwrap();
    let schema = &crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"];
    match Validator::new().validate(schema, object, old) {
        Ok(()) => Vec::new(),
        Err(errors) => errors
            .into_vec()
            .into_iter()
            .map(|error| Cause { field: error.field_path, message: error.message })
            .collect(),
    }
}

const VIRTUAL_MACHINE: &str = "must be the id of a virtual machine: /subscriptions/<uuid>/resourceGroups/<name>/providers/Microsoft.Compute/virtualMachines/<name>";
const DURATION: &str = "must be a duration such as 30s, 90m, 3h or 1h30m, at least 30s";
const NETWORK: &str = "must be a network in CIDR notation without host bits, such as 203.0.113.0/24";

#[rustfmt::skip]
fn cases() -> Vec<Case> {
    let id = "/spec/targets/0/azureVirtualMachine/id";
    let scope = || {
        let mut policy = policy();
        policy["spec"]["targets"] =
            json!([{"name": "web", "azureScope": {"id": SUB, "tags": {"role": "web"}}}]);
        policy
    };
    vec![
        case(policy(), id, json!("web-1"), "spec.targets[0].azureVirtualMachine.id", VIRTUAL_MACHINE),
        case(policy(), id, json!(""), "spec.targets[0].azureVirtualMachine.id", VIRTUAL_MACHINE),
        case(policy(), id, json!("arn:aws:ec2:eu-west-1:123456789012:instance/i-0123456789abcdef0"), "spec.targets[0].azureVirtualMachine.id", VIRTUAL_MACHINE),
        case(policy(), id, json!(SUB), "spec.targets[0].azureVirtualMachine.id", VIRTUAL_MACHINE),
        case(policy(), id, json!(format!("{SUB}/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups/nsg")), "spec.targets[0].azureVirtualMachine.id", VIRTUAL_MACHINE),
        case(policy(), id, json!(format!("{SUB}/resourceGroups/w\u{435}b/providers/Microsoft.Compute/virtualMachines/a")), "spec.targets[0].azureVirtualMachine.id", VIRTUAL_MACHINE),
        case(policy(), id, json!(vm("a").replace("11111111-", "1-")), "spec.targets[0].azureVirtualMachine.id", VIRTUAL_MACHINE),
        case(policy(), id, json!(vm(&"a".repeat(600))), "spec.targets[0].azureVirtualMachine.id", "Too long: may not be more than 512"),
        case(scope(), "/spec/targets/0/azureScope/id", json!(vm("a")), "spec.targets[0].azureScope.id", "must be the id of a subscription or a resource group: /subscriptions/<uuid>[/resourceGroups/<name>]"),
        case(scope(), "/spec/targets/0/azureScope/id", json!("web"), "spec.targets[0].azureScope.id", "must be the id of a subscription or a resource group: /subscriptions/<uuid>[/resourceGroups/<name>]"),
        case(scope(), "/spec/targets/0/azureScope/tags", json!((0..16).map(|n| (n.to_string(), "x")).collect::<BTreeMap<_, _>>()), "spec.targets[0].azureScope.tags", "Too many: 16: must have at most 15"),
        case(scope(), "/spec/targets/0/azureScope/tags/role", json!("x".repeat(257)), "spec.targets[0].azureScope.tags.role", "Too long: may not be more than 256"),
        case(policy(), "/spec/targets", json!([]), "spec.targets", "should have at least 1 items"),
        case(policy(), "/spec/targets", Value::Null, "spec.targets", "Required value"),
        case(policy(), "/spec/targets/0/azureVirtualMachine", Value::Null, "spec.targets[0]", "exactly one of azureVirtualMachine and azureScope"),
        case(policy(), "/spec/targets/0/azureScope", json!({"id": SUB}), "spec.targets[0]", "exactly one of azureVirtualMachine and azureScope"),
        case(policy(), "/spec/targets/0/name", json!("Web_1"), "spec.targets[0].name", "at most 63 of a-z, 0-9 and -"),
        case(policy(), "/spec/targets/0/name", json!("w".repeat(64)), "spec.targets[0].name", "Too long: may not be more than 63"),
        case(policy(), "/spec/targets/1", json!({"name": "web-1", "azureVirtualMachine": {"id": vm("web-2")}}), "spec.targets[1]", "Duplicate value: {\"name\":\"web-1\"}"),
        case(policy(), "/metadata/name", json!("p".repeat(64)), "<nil>", "metadata.name must have at most 63 characters"),
        case(policy(), "/spec/ports/0/port", json!(0), "spec.ports[0].port", "should be greater than or equal to 1"),
        case(policy(), "/spec/ports/0/port", json!(65536), "spec.ports[0].port", "should be less than or equal to 65535"),
        case(policy(), "/spec/ports/0/port", json!("22"), "spec.ports[0].port", "must be of type integer"),
        case(policy(), "/spec/ports/0/port", Value::Null, "spec.ports[0].port", "Required value"),
        case(policy(), "/spec/ports/0/endPort", json!(21), "spec.ports[0]", "endPort must not be below port"),
        case(policy(), "/spec/ports/0/endPort", json!(65536), "spec.ports[0].endPort", "should be less than or equal to 65535"),
        case(policy(), "/spec/ports/0/protocol", json!("ICMP"), "spec.ports[0].protocol", "supported values: \"TCP\", \"UDP\", \"Any\""),
        case(policy(), "/spec/ports/0/protocol", json!("tcp"), "spec.ports[0].protocol", "supported values: \"TCP\", \"UDP\", \"Any\""),
        case(policy(), "/spec/ports/1", json!({"port": 22, "protocol": "TCP"}), "spec.ports", "ports must not overlap: name each port once for a protocol"),
        case(policy(), "/spec/ports/1", json!({"port": 20, "endPort": 25}), "spec.ports", "ports must not overlap: name each port once for a protocol"),
        case(policy(), "/spec/ports/0/allowedSources/0/cidr", json!("203.0.113.7/24"), "spec.ports[0].allowedSources[0].cidr", NETWORK),
        case(policy(), "/spec/ports/0/allowedSources/0/cidr", json!("203.0.113.7"), "spec.ports[0].allowedSources[0].cidr", NETWORK),
        case(policy(), "/spec/ports/0/allowedSources/0/cidr", json!("::ffff:203.0.113.0/120"), "spec.ports[0].allowedSources[0].cidr", "IPv4-mapped networks are written as IPv4"),
        case(policy(), "/spec/ports/0/allowedSources/0/cidr", json!("2001:db8::1/32"), "spec.ports[0].allowedSources[0].cidr", NETWORK),
        case(policy(), "/spec/ports/0/allowedSources/0/cidr", json!("Internet"), "spec.ports[0].allowedSources[0].cidr", NETWORK),
        case(policy(), "/spec/ports/0/allowedSources/0/cidr", json!("*"), "spec.ports[0].allowedSources[0].cidr", NETWORK),
        case(policy(), "/spec/ports/0/allowedSources/0", json!({}), "spec.ports[0].allowedSources[0].cidr", "Required value"),
        case(policy(), "/spec/enforcement", json!({"azure": {"firewallLead": "30s"}}), "spec.enforcement.azure.firewallLead", "at least 1m and at most 1h"),
        case(policy(), "/spec/enforcement", json!({"azure": {"firewallLead": "2h"}}), "spec.enforcement.azure.firewallLead", "at least 1m and at most 1h"),
        case(policy(), "/spec/ports/0/maxDuration", json!("0s"), "spec.ports[0].maxDuration", DURATION),
        case(policy(), "/spec/ports/0/maxDuration", json!("-1h"), "spec.ports[0].maxDuration", DURATION),
        case(policy(), "/spec/ports/0/maxDuration", json!("1y"), "spec.ports[0].maxDuration", DURATION),
        case(policy(), "/spec/ports/0/maxDuration", json!("3 hours"), "spec.ports[0].maxDuration", DURATION),
        case(policy(), "/spec/ports/0/maxDuration", json!("29s"), "spec.ports[0].maxDuration", DURATION),
        case(policy(), "/spec/ports/0/maxDuration", json!(3600), "spec.ports[0].maxDuration", "must be of type string"),
        case(policy(), "/spec/mode", json!("enforce"), "spec.mode", "supported values: \"Enforce\", \"Audit\""),
        case(policy(), "/spec/deletionPolicy", json!("Delete"), "spec.deletionPolicy", "supported values: \"Retain\", \"Unlock\""),
        case(policy(), "/spec/enforcement", json!({"exemptSources": [{}]}), "spec.enforcement.exemptSources[0]", "exactly one of cidr and serviceTag"),
        case(policy(), "/spec/enforcement", json!({"exemptSources": [{"cidr": "10.0.0.0/8", "serviceTag": "AzureLoadBalancer"}]}), "spec.enforcement.exemptSources[0]", "exactly one of cidr and serviceTag"),
        case(policy(), "/spec/enforcement", json!({"exemptSources": [{"serviceTag": "*"}]}), "spec.enforcement.exemptSources[0].serviceTag", "must be a service tag such as AzureLoadBalancer"),
        case(policy(), "/spec/enforcement", json!({"azure": {"via": "Nsg"}}), "spec.enforcement.azure.via", "supported values: \"Auto\", \"NetworkSecurityGroup\""),
        case(policy(), "/spec/approval", json!({"required": -1}), "spec.approval.required", "should be greater than or equal to 0"),
        case(policy(), "/spec/approval", json!({"required": 11}), "spec.approval.required", "should be less than or equal to 10"),
        case(policy(), "/spec/approval", json!({"pendingTimeout": "1d"}), "spec.approval.pendingTimeout", DURATION),
        case(policy(), "/spec/justification", json!({"pattern": "("}), "spec.justification.pattern", "must be a regular expression (RE2 syntax) such as ^(INC|CHG)-[0-9]+"),
        case(policy(), "/spec/limits", json!({"active": 0}), "spec.limits.active", "should be greater than or equal to 1"),
        case(policy(), "/spec/port", json!(22), "", "unknown field \"spec.port\""),
        case(request(), "/spec/policyRef", Value::Null, "spec.policyRef", "Required value"),
        case(request(), "/spec/policyRef/name", json!(""), "spec.policyRef.name", "should be at least 1 chars long"),
        case(request(), "/spec/policyRef/name", json!("p".repeat(254)), "spec.policyRef.name", "Too long: may not be more than 253"),
        case(request(), "/spec/targets", json!([]), "spec", "name targets, or set allTargets: true, and not both"),
        case(request(), "/spec/allTargets", json!(true), "spec", "name targets, or set allTargets: true, and not both"),
        case(request(), "/spec/targets/0", json!({"name": "web", "machine": "a", "id": vm("a")}), "spec.targets[0]", "name the machine by machine or by id, not both"),
        case(request(), "/spec/targets/0/id", json!("web-7"), "spec.targets[0].id", VIRTUAL_MACHINE),
        case(request(), "/spec/ports", json!([]), "spec.ports", "should have at least 1 items"),
        case(request(), "/spec/ports/0/sources", json!([]), "spec.ports[0].sources", "should have at least 1 items"),
        case(request(), "/spec/ports/0/sources", Value::Null, "spec.ports[0].sources", "Required value"),
        case(request(), "/spec/ports/0/port", json!(65536), "spec.ports[0].port", "should be less than or equal to 65535"),
        case(request(), "/spec/ports/0/endPort", json!(21), "spec.ports[0]", "endPort must not be below port"),
        case(request(), "/spec/ports/0/sources/0/cidr", json!("203.0.113.7/24"), "spec.ports[0].sources[0].cidr", NETWORK),
        case(request(), "/spec/duration", Value::Null, "spec.duration", "Required value"),
        case(request(), "/spec/duration", json!("29s"), "spec.duration", DURATION),
        case(request(), "/spec/notAfter", json!("tomorrow"), "spec.notAfter", "must be a moment in time such as 2026-11-22T08:00:00Z"),
        case(request(), "/spec/notAfter", json!("2026-11-22T08:00:00"), "spec.notAfter", "must be a moment in time such as 2026-11-22T08:00:00Z"),
        case(request(), "/spec/notAfter", json!("2026-02-30T08:00:00Z"), "spec.notAfter", "must be a moment in time such as 2026-11-22T08:00:00Z"),
        case(request(), "/spec/notAfter", json!("2026-11-22T08:00:00|01:00"), "spec.notAfter", "must be a moment in time such as 2026-11-22T08:00:00Z"),
        case(request(), "/spec/notAfter", json!("2026-11-22T24:00:00Z"), "spec.notAfter", "must be a moment in time such as 2026-11-22T08:00:00Z"),
        case(request(), "/spec/notAfter", json!("2026-11-22T23:59:60Z"), "spec.notAfter", "must be a moment in time such as 2026-11-22T08:00:00Z"),
        case(request(), "/spec/justification", json!("x".repeat(1025)), "spec.justification", "Too long: may not be more than 1024"),
        case(request(), "/metadata/name", json!("r".repeat(254)), "metadata.name", "must be no more than 253 characters"),
        case(request(), "/spec/targets/0/id", json!(SUB), "spec.targets[0].id", VIRTUAL_MACHINE),
        case(request(), "/spec/targets/1", json!({"name": ""}), "spec.targets[1].name", "should be at least 1 chars long"),
        case(request(), "/spec/ports/0/protocol", json!("SCTP"), "spec.ports[0].protocol", "supported values: \"TCP\", \"UDP\", \"Any\""),
        case(request(), "/spec/onBehalfOf", json!(""), "spec.onBehalfOf", "should be at least 1 chars long"),
        case(review(), "/spec/verdict", json!("Yes"), "spec.verdict", "supported values: \"Approved\", \"Denied\", \"Revoked\", \"Ended\""),
        case(review(), "/spec/planHash", Value::Null, "spec", "planHash is required to approve: copy status.planHash"),
        case(review(), "/spec/planHash", json!("abc"), "spec.planHash", "must be status.planHash of the request"),
        case(review(), "/spec/planHash", json!("A".repeat(64)), "spec.planHash", "must be status.planHash of the request"),
        case(review(), "/spec/requestRef/uid", Value::Null, "spec.requestRef.uid", "Required value"),
        case(review(), "/spec/requestRef", Value::Null, "spec.requestRef", "Required value"),
    ]
}
