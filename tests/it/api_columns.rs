//! What people see of the kinds through kubectl: columns, short names, categories, selectors, explanations.

use std::time::Duration;

use portcullis_harness::{ControlPlane, User, eventually};
use reqwest::Method;
use serde_json::{Value, json};

use crate::cluster;

const VM: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web-1";

/// Creates an object in a namespace of its own, with its status.
async fn create(plane: &ControlPlane, namespace: &str, kind: &str, name: &str, spec: Value, status: Value) {
    let folder = cluster::path(kind).replace("/default/", &format!("/{namespace}/"));
    let object = json!({"kind": kind, "metadata": {"name": name}, "spec": spec});
    let mut created = cluster::send(plane, Method::POST, &folder, &object).await.unwrap();
    created["status"] = status;
    cluster::send(plane, Method::PUT, &format!("{folder}/{name}/status"), &created).await.unwrap();
}

async fn namespace(plane: &ControlPlane, name: &str) {
    let object = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    plane.request(Method::POST, "/api/v1/namespaces", Some(&object)).await.unwrap();
}

fn condition(kind: &str, status: &str, reason: &str) -> Value {
    json!({"type": kind, "status": status, "reason": reason, "message": "", "lastTransitionTime": "2026-11-22T08:00:00Z"})
}

/// The cells of what kubectl prints, split where at least two spaces stand.
fn table(text: &str) -> Vec<Vec<String>> {
    text.lines()
        .map(|line| {
            line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()).map(str::to_owned).collect()
        })
        .collect()
}

async fn world(plane: &ControlPlane, space: &str) {
    namespace(plane, space).await;
    let policy =
        json!({"targets": [{"name": "web-1", "azureVirtualMachine": {"id": VM}}], "ports": [{"port": 22}]});
    let status = json!({
        "conditions": [condition("Ready", "True", "Configured"), condition("LockdownEffective", "False", "Shadowed")],
        "summary": {"targets": 3, "configured": 2, "machines": "2/3", "ports": "22, 5985-5986/TCP"},
    });
    create(plane, space, "JitPolicy", "web-admins", policy, status).await;
    let request = |target: &str| {
        json!({
            "policyRef": {"name": "web-admins"},
            "requester": {"username": "alice"},
            "targets": [{"name": target}, {"name": "web-2"}],
            "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}, {"port": 443, "sources": [{"cidr": "203.0.113.7/32"}]}],
            "duration": "1h",
        })
    };
    let status = json!({"state": "Active", "summary": {"targets": "web-1, web-2", "ports": "22/TCP, 443/TCP"}, "expiresAt": "2031-01-01T10:00:00Z", "settled": false});
    create(plane, space, "JitAccessRequest", "live", request("web-1"), status).await;
    let status = json!({"state": "Expired", "expiresAt": "2030-01-01T10:00:00Z", "settled": true});
    create(plane, space, "JitAccessRequest", "done", request("web-1"), status).await;
    let review = json!({
        "requestRef": {"name": "live", "uid": "11111111-2222-3333-4444-555555555555"},
        "policyRef": {"name": "web-admins"},
        "planHash": "a".repeat(64),
        "verdict": "Approved",
        "reviewer": {"username": "bob"},
    });
    create(plane, space, "JitAccessReview", "yes", review, json!({"counted": true, "settled": true})).await;
}

#[test]
fn kubectl_get_answers_the_question_that_people_have() {
    cluster::with_kinds(|plane| async move {
        world(plane, "columns").await;
        let kubectl = plane.kubectl(User::Admin).unwrap();
        for (short, wide, wanted) in [
            (
                "jitpol",
                false,
                vec![
                    vec!["NAME", "MACHINES", "PORTS", "READY", "LOCKDOWN", "AGE"],
                    vec!["web-admins", "2/3", "22, 5985-5986/TCP", "True", "False"],
                ],
            ),
            (
                "jitreq/live",
                false,
                vec![
                    vec!["NAME", "POLICY", "REQUESTER", "TARGETS", "PORTS", "STATE", "EXPIRES", "AGE"],
                    vec![
                        "live",
                        "web-admins",
                        "alice",
                        "web-1, web-2",
                        "22/TCP, 443/TCP",
                        "Active",
                        "2031-01-01T10:00:00Z",
                    ],
                ],
            ),
            (
                "jitrev",
                false,
                vec![
                    vec!["NAME", "REQUEST", "VERDICT", "REVIEWER", "COUNTED", "AGE"],
                    vec!["yes", "live", "Approved", "bob", "true"],
                ],
            ),
            (
                "jitpol",
                true,
                vec![vec!["NAME", "MACHINES", "PORTS", "READY", "LOCKDOWN", "MODE", "REASON", "AGE"]],
            ),
        ] {
            let mut arguments = vec!["get", short, "-n", "columns"];
            if wide {
                arguments.extend(["-o", "wide"]);
            }
            let found = table(&kubectl.run(&arguments).await.unwrap());
            for (row, cells) in wanted.iter().enumerate() {
                // The age at the end is whatever it is.
                assert_eq!(found[row][..cells.len()], cells[..], "{short}: {found:?}");
            }
        }
    });
}

#[test]
fn the_category_names_all_three_kinds() {
    cluster::with_kinds(|plane| async move {
        world(plane, "category").await;
        let kubectl = plane.kubectl(User::Admin).unwrap();
        let names = kubectl.run(&["get", "jit", "-n", "category", "-o", "name"]).await.unwrap();
        let mut names: Vec<&str> = names.lines().collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "jitaccessrequest.jit.portcullis.io/done",
                "jitaccessrequest.jit.portcullis.io/live",
                "jitaccessreview.jit.portcullis.io/yes",
                "jitpolicy.jit.portcullis.io/web-admins",
            ]
        );
    });
}

#[test]
fn unsettled_requests_and_the_reviews_of_one_are_selected_by_the_server() {
    cluster::with_kinds(|plane| async move {
        world(plane, "selectors").await;
        let kubectl = plane.kubectl(User::Admin).unwrap();
        for (kind, selector, wanted) in [
            ("jitreq", "status.settled!=true", "live"),
            ("jitreq", "status.settled=true", "done"),
            ("jitreq", "spec.policyRef.name=web-admins,status.settled=true", "done"),
            ("jitrev", "spec.requestRef.name=live", "yes"),
            ("jitrev", "spec.requestRef.name=other", ""),
            ("jitrev", "status.settled!=true", ""),
        ] {
            let arguments = [
                "get",
                kind,
                "-n",
                "selectors",
                "--field-selector",
                selector,
                "-o",
                "jsonpath={.items[*].metadata.name}",
            ];
            assert_eq!(kubectl.run(&arguments).await.unwrap(), wanted, "{kind} {selector}");
        }
    });
}

#[test]
fn kubectl_explain_has_every_level() {
    cluster::with_kinds(|plane| async move {
        let kubectl = plane.kubectl(User::Admin).unwrap();
        // The server publishes the descriptions of a kind some time after it has established it.
        eventually("the kinds are described", Duration::from_secs(60), || {
            kubectl.run(&["explain", "jitrev"])
        })
        .await
        .unwrap();
        for (path, wanted) in [
            ("jitpolicy", "Closes management ports of virtual machines"),
            ("jitpolicy.spec.enforcement.azure.via", "Which firewalls on the path are enforced"),
            ("jitpolicy.spec.ports.maxDuration", "The longest time a grant may last; 3h where left out."),
            ("jitaccessrequest.spec.ports.sources.cidr", "A network in CIDR notation"),
            ("jitaccessrequest.status.rules.name", "owner, deadline and number"),
            ("jitaccessreview.spec.planHash", "Required to approve"),
        ] {
            let text = kubectl.run(&["explain", path]).await.unwrap();
            let flat = text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert!(flat.contains(wanted), "{path}: {text}");
        }
    });
}

#[test]
fn the_largest_objects_that_the_schema_allows_stay_within_the_cost_of_its_rules() {
    cluster::with_kinds(|plane| async move {
        let ports: Vec<Value> = (0..32)
            .map(|port| {
                let sources: Vec<Value> =
                    (0..64).map(|n| json!({"cidr": format!("2001:db8:{port:x}:{n:x}::/64")})).collect();
                json!({"port": 1000 + 2 * port, "endPort": 1001 + 2 * port, "protocol": "TCP", "allowedSources": sources, "maxDuration": "3h"})
            })
            .collect();
        let targets: Vec<Value> = (0..128)
            .map(|n| json!({"name": format!("web-{n}"), "azureVirtualMachine": {"id": format!("{VM}{}", "x".repeat(300))}}))
            .collect();
        let policy = json!({
            "kind": "JitPolicy", "metadata": {"name": "largest"},
            "spec": {"targets": targets, "ports": ports, "justification": {"pattern": format!("({})", "a?".repeat(120))}},
        });
        cluster::judge(plane, &policy).await.unwrap();
        let ports: Vec<Value> = (0..16)
            .map(|port| {
                let sources: Vec<Value> =
                    (0..64).map(|n| json!({"cidr": format!("203.0.{n}.0/24")})).collect();
                json!({"port": 1 + port, "sources": sources})
            })
            .collect();
        let targets: Vec<Value> = (0..64).map(|n| json!({"name": format!("web-{n}"), "id": VM})).collect();
        let request = json!({
            "kind": "JitAccessRequest", "metadata": {"name": "largest"},
            "spec": {"policyRef": {"name": "x"}, "targets": targets, "ports": ports, "duration": "1h",
                "notBefore": "2031-01-01T00:00:00Z", "notAfter": "2031-01-02T00:00:00Z"},
        });
        cluster::judge(plane, &request).await.unwrap();
    });
}
