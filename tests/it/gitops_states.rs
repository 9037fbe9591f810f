//! What Flux and Argo CD say of our objects in each state, by their own code: real objects of the real controller.
//!
//! The objects are also the test data of the health scripts (`deploy/argocd`). Where a state's conditions have
//! changed, `PORTCULLIS_RECORD=1` has the tests of this module write them anew, first those of the states, then
//! those of the scripts.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::{Judge, User};
use regex::Regex;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cloud_failures::{FAULTS, here};
use crate::cluster;
use crate::ground::{REQUESTER, Site, condition, on_site, targets};

fn scripts() -> PathBuf {
    portcullis_harness::checkout().join("deploy/argocd/resource_customizations/jit.portcullis.io")
}

fn recording() -> bool {
    std::env::var_os("PORTCULLIS_RECORD").is_some()
}

/// Asks both tools about an object, and compares it with the test data of that name.
fn judged(number: Option<u8>, file: &str, object: &Value, kstatus: &str, health: &str) {
    let judge = Judge::find_or_build().unwrap();
    let one = std::slice::from_ref(object);
    let said = judge.kstatus(one).unwrap().remove(0);
    assert_eq!(said.status, kstatus, "{file}: kstatus says {said:?} of {object:#}");
    let said = judge.health(&scripts(), one).unwrap().remove(0);
    assert_eq!(said.status, health, "{file}: Argo CD says {said:?} of {object:#}");
    assert!(!said.message.is_empty(), "{file}: Argo CD shows no message");

    let kind = object["kind"].as_str().unwrap();
    let path = scripts().join(kind).join("testdata").join(format!("{file}.yaml"));
    if recording() {
        std::fs::write(&path, serde_yaml_ng::to_string(&anonymous(number, object)).unwrap()).unwrap();
    }
    let known = read(&path);
    assert_eq!(essence(&known), essence(object), "{}: see PORTCULLIS_RECORD in this module", path.display());
}

fn read(path: &Path) -> Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_yaml_ng::from_str(&text).unwrap()
}

/// What tools judge by.
fn essence(object: &Value) -> Value {
    let (status, metadata) = (&object["status"], &object["metadata"]);
    let conditions: Vec<Value> = status["conditions"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|condition| json!([condition["type"], condition["status"], condition["reason"]]))
        .collect();
    json!({
        "conditions": conditions, "state": status["state"], "counted": status["counted"], "settled": status["settled"],
        "observed": status["observedGeneration"] == metadata["generation"],
        "terminating": metadata["deletionTimestamp"].is_string(), "suspend": object["spec"]["suspend"],
    })
}

/// The object without what differs from one run to the next.
fn anonymous(number: Option<u8>, object: &Value) -> Value {
    let mut object = object.clone();
    let metadata = object["metadata"].as_object_mut().unwrap();
    metadata.remove("managedFields");
    metadata.remove("annotations");
    let mut text = object.to_string();
    let mut replace = |pattern: &str, by: &str| {
        text = Regex::new(pattern).unwrap().replace_all(&text, by).into_owned();
    };
    if let Some(number) = number {
        replace(&format!("-0000000001{number:02x}\\b"), "-000000000001");
        replace(&format!(r"\b10\.{}\.", 100 + u16::from(number)), "10.1.");
        replace(&format!(r"\bs{number}-"), "");
    }
    replace(
        "[1-9a-f][0-9a-f]{7}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
        "11111111-2222-3333-4444-555555555555",
    );
    replace(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "2026-01-31T12:00:00Z");
    replace(r#""resourceVersion":"\d+""#, r#""resourceVersion":"1""#);
    replace("[0-9a-f]{64}", &"0".repeat(64));
    replace("portcullis-[0-9a-f]{8}-(allow|deny)-[0-9a-f]{12}", "portcullis-01234567-$1-0123456789ab");
    replace(r"-20\d{6}T\d{6}Z-", "-20260131T120000Z-");
    serde_json::from_str(&text).unwrap()
}

impl Site {
    async fn judged(&self, file: &str, object: &Value, kstatus: &str, health: &str) {
        judged(Some(self.number), file, object, kstatus, health);
    }

    /// Waits until a condition has a status and a reason, and gives the object as it is then.
    async fn told(&self, object: &str, kind: &str, status: &str, reason: &str) -> Value {
        self.until(&format!("has {kind}={status} {reason}"), object, |found| {
            let condition = condition(found, kind);
            condition["status"] == status
                && condition["reason"] == reason
                && found["status"]["observedGeneration"] == found["metadata"]["generation"]
        })
        .await
    }

    /// Applies a request as the developer, with more in its spec.
    async fn ask(&self, name: &str, policy: &str, port: u16, more: Value) {
        let mut request = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": self.name(name), "namespace": portcullis_harness::install::NAMESPACE},
            "spec": {
                "policyRef": {"name": self.name(policy)}, "targets": [{"name": "a"}], "duration": "1h",
                "ports": [{"port": port, "sources": [{"cidr": format!("{REQUESTER}/32")}]}],
            },
        });
        for (key, value) in more.as_object().unwrap() {
            request["spec"][key] = value.clone();
        }
        self.ground.play.developer.apply(&request.to_string()).await.unwrap();
    }
}

#[test]
fn policies_are_current_when_locked_in_progress_while_at_it_and_failed_when_stalled() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let told = site.told("jitpol/web", "Ready", "True", "Configured").await;
        site.judged("healthy_locked", &told, "Current", "Healthy").await;

        let spec = |more: Value| {
            let mut spec = json!({"targets": targets(&[&a])});
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        site.policy("web", &spec(json!({"suspend": true}))).await;
        let told = site.told("jitpol/web", "Ready", "True", "Configured").await;
        site.judged("healthy_suspended", &told, "Current", "Healthy").await;
        site.policy("web", &spec(json!({"mode": "Audit"}))).await;
        let told = site.told("jitpol/web", "Ready", "True", "Audit").await;
        site.judged("healthy_audit", &told, "Current", "Healthy").await;
        site.policy("web", &spec(json!({}))).await;
        site.told("jitpol/web", "Ready", "True", "Configured").await;

        let rule = json!([{
            "name": "corp-ssh", "access": "AlwaysAllow", "direction": "Inbound", "priority": 10, "protocol": "Tcp",
            "sources": [{"addressPrefix": "198.51.100.0/24", "addressPrefixType": "IPPrefix"}],
            "destinations": [], "sourcePortRanges": [], "destinationPortRanges": ["22"],
        }]);
        site.control("secadmin", &json!({"virtualNetwork": site.network(), "rules": rule})).await;
        let told = site.told("jitpol/web", "Ready", "False", "Shadowed").await;
        site.judged("degraded_shadowed", &told, "InProgress", "Degraded").await;
        site.control("secadmin", &json!({"virtualNetwork": site.network(), "rules": []})).await;

        let elsewhere = json!({"targets": [{"name": "a", "azureVirtualMachine": {"id": format!("{}-gone", a.id)}}], "ports": [{"port": 22}]});
        site.policy("elsewhere", &elsewhere).await;
        let told = site.told("jitpol/elsewhere", "Stalled", "True", "TargetsUnsupported").await;
        site.judged("degraded_stalled", &told, "Failed", "Degraded").await;
        site.kubectl_delete("jitpol/elsewhere").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn what_is_being_written_is_in_progress_to_argo_and_a_request_never_holds_up_flux() {
    on_site(|site| async move {
        let a = site.usual().await;
        let _turn = FAULTS.lock().await;
        let storm = |method: &str, rule: &str| {
            let path = here(&site, &format!("/.*/securityRules/portcullis-.*-{rule}-"));
            json!([{"name": "storm", "method": method, "path": path, "effect": {"status": {"status": 503}}}])
        };
        let simulator = &site.ground.play.stage.simulator;
        let calm = || simulator.control(Method::DELETE, "faults", None);
        site.control("faults", &storm("PUT", "deny")).await;
        site.policy("web", &json!({"targets": targets(&[&a])})).await;
        let told = site.told("jitpol/web", "Ready", "False", "CloudUnavailable").await;
        site.judged("progressing_cloud_unavailable", &told, "InProgress", "Progressing").await;
        calm().await.unwrap();
        site.told("jitpol/web", "Ready", "True", "Configured").await;

        site.control("faults", &storm("PUT", "allow")).await;
        site.ask("mine", "web", 22, json!({})).await;
        let told = site.told("jitreq/mine", "Active", "False", "CloudUnavailable").await;
        assert_eq!(told["status"]["state"], "Opening");
        site.judged("progressing_opening", &told, "Current", "Progressing").await;
        calm().await.unwrap();
        site.state("jitreq/mine", "Active").await;

        site.control("faults", &storm("DELETE", "allow")).await;
        site.policy("web", &json!({"targets": targets(&[&a]), "suspend": true})).await;
        let told = site.state("jitreq/mine", "Closing").await;
        site.judged("progressing_closing", &told, "Current", "Progressing").await;
        calm().await.unwrap();
        site.state("jitreq/mine", "Revoked").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_request_is_current_in_every_state_and_argo_says_which() {
    on_site(|site| async move {
        let a = site.usual().await;
        let after = |seconds: i64| {
            let at = Timestamp::now() + SignedDuration::from_secs(seconds);
            Timestamp::from_second(at.as_second()).unwrap().to_string()
        };
        let policy = |port: u16, more: Value| {
            let mut spec = json!({
                "targets": targets(&[&a]), "ports": [{"port": port, "protocol": "TCP", "maxDuration": "1h"}],
            });
            spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            spec
        };
        // Before its policy, so that nobody refuses at once what the policy will not allow.
        site.ask("refused", "strict", 8081, json!({"duration": "2h"})).await;
        let told = site.told("jitreq/refused", "Active", "False", "PolicyNotFound").await;
        site.judged("progressing_no_policy", &told, "Current", "Progressing").await;
        site.policy("web", &policy(22, json!({"limits": {"active": 2, "activePerRequester": 2}}))).await;
        site.policy("reviewed", &policy(8080, json!({"approval": {"required": 1}}))).await;
        site.policy("strict", &policy(8081, json!({}))).await;
        site.policy("paused", &policy(8082, json!({"suspend": true}))).await;
        let gone = format!("{}-gone", a.id);
        let nowhere = json!({
            "targets": [{"name": "a", "azureVirtualMachine": {"id": gone}}], "ports": [{"port": 22}],
        });
        site.policy("nowhere", &nowhere).await;
        for name in ["web", "reviewed", "strict", "paused"] {
            site.told(&format!("jitpol/{name}"), "Ready", "True", "Configured").await;
        }

        site.ask("short", "web", 22, json!({"duration": "50s"})).await;
        site.ask("mine", "web", 22, json!({})).await;
        let told = site.told("jitreq/mine", "Active", "True", "Open").await;
        site.judged("healthy_active", &told, "Current", "Healthy").await;
        site.state("jitreq/short", "Active").await;
        site.ask("third", "web", 22, json!({})).await;
        let told = site.told("jitreq/third", "Active", "False", "LimitReached").await;
        site.judged("suspended_waits_for_its_turn", &told, "Current", "Suspended").await;
        site.kubectl_delete("jitreq/third").await;

        site.ask("pending", "reviewed", 8080, json!({})).await;
        let told = site.until("waits", "jitreq/pending", waits_for_approval).await;
        site.judged("suspended_waits_for_approval", &told, "Current", "Suspended").await;
        site.ask("later", "strict", 8081, json!({"notBefore": after(3600)})).await;
        let told = site.told("jitreq/later", "Active", "False", "Scheduled").await;
        site.judged("suspended_scheduled", &told, "Current", "Suspended").await;
        site.ask("paused", "paused", 8082, json!({})).await;
        let told = site.told("jitreq/paused", "Active", "False", "Suspended").await;
        site.judged("suspended_policy_suspended", &told, "Current", "Suspended").await;

        let settled = async |name: &str, state: &str| {
            site.until(&format!("is {state} and settled"), name, |found| {
                found["status"]["state"] == state && found["status"]["settled"] == true
            })
            .await
        };
        let told = settled("jitreq/refused", "Denied").await;
        site.judged("degraded_denied", &told, "Current", "Degraded").await;
        site.ask("late", "strict", 8081, json!({"notAfter": after(20)})).await;
        let told = settled("jitreq/late", "TimedOut").await;
        site.judged("degraded_timed_out", &told, "Current", "Degraded").await;
        site.ask("nowhere", "nowhere", 22, json!({})).await;
        let told = settled("jitreq/nowhere", "Failed").await;
        site.judged("degraded_failed", &told, "Current", "Degraded").await;

        let told = settled("jitreq/short", "Expired").await;
        site.judged("healthy_expired", &told, "Current", "Healthy").await;
        site.policy("web", &policy(22, json!({"suspend": true}))).await;
        let told = settled("jitreq/mine", "Revoked").await;
        site.judged("healthy_revoked", &told, "Current", "Healthy").await;
        for name in ["pending", "later", "paused"] {
            site.kubectl_delete(&format!("jitreq/{name}")).await;
        }
        for name in ["web", "reviewed", "strict", "paused", "nowhere"] {
            site.kubectl_delete(&format!("jitpol/{name}")).await;
        }
    });
}

fn waits_for_approval(found: &Value) -> bool {
    condition(found, "Active")["reason"] == "WaitingForApproval"
}

#[test]
fn a_grant_whose_packets_somebody_stops_is_degraded_to_argo() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.rule("net", "topmost", "Allow", 100, "443", "*").await;
        site.lock("web", &[&a]).await;
        site.ask("mine", "web", 22, json!({})).await;
        site.state("jitreq/mine", "Active").await;
        site.rule("net", "topmost", "Deny", 100, "22", "203.0.113.0/24").await;
        let told = site.told("jitreq/mine", "Active", "False", "GrantShadowed").await;
        site.judged("degraded_grant_shadowed", &told, "Current", "Degraded").await;
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

/// Where no controller runs.
#[test]
fn what_nobody_has_looked_at_is_in_progress_and_what_is_deleted_is_terminating() {
    cluster::with_kinds(|plane| async move {
        let id = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web-1";
        let user = json!({"username": "alice"});
        let specs = [
            ("JitPolicy", json!({"targets": [{"name": "web-1", "azureVirtualMachine": {"id": id}}]})),
            (
                "JitAccessRequest",
                json!({
                    "policyRef": {"name": "web"}, "targets": [{"name": "web-1"}], "duration": "1h", "requester": user,
                    "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}],
                }),
            ),
            (
                "JitAccessReview",
                json!({
                    "requestRef": {"name": "disk-full", "uid": "x"}, "policyRef": {"name": "web"},
                    "verdict": "Ended", "reviewer": user,
                }),
            ),
        ];
        for (kind, spec) in specs {
            let metadata = json!({"name": "never-seen", "finalizers": ["jit.portcullis.io/cloud-rules"]});
            let object = json!({"kind": kind, "metadata": metadata, "spec": spec});
            let path = cluster::path(kind);
            let created = cluster::send(plane, Method::POST, &path, &object).await.unwrap();
            let path = format!("{path}/never-seen");
            let read = plane.request(Method::GET, &path, None).await.unwrap();
            assert_eq!(created["status"], read["status"]);
            judged(None, "progressing_unobserved", &read, "InProgress", "Progressing");
            if kind == "JitAccessReview" {
                for (file, counted, health) in
                    [("healthy_counts", true, "Healthy"), ("degraded_does_not_count", false, "Degraded")]
                {
                    let reason = if counted { "counts" } else { "it is for another plan" };
                    let mut answered = plane.request(Method::GET, &path, None).await.unwrap();
                    answered["status"] =
                        json!({"observedGeneration": 1, "counted": counted, "reason": reason});
                    let answered =
                        plane.request(Method::PUT, &format!("{path}/status"), Some(&answered)).await.unwrap();
                    judged(None, file, &answered, "Current", health);
                }
            }
            plane.request(Method::DELETE, &path, None).await.unwrap();
            let read = plane.request(Method::GET, &path, None).await.unwrap();
            judged(None, "progressing_terminating", &read, "Terminating", "Progressing");
            let patch = json!([{"op": "remove", "path": "/metadata/finalizers"}]).to_string();
            let plural = path.split('/').nth(6).unwrap();
            let admin = plane.kubectl(User::Admin).unwrap();
            admin.run(&["patch", plural, "never-seen", "--type=json", "-p", &patch]).await.unwrap();
        }
    });
}

/// The folders of scripts, each with the kind it is for.
fn kinds() -> Vec<(String, PathBuf)> {
    let mut kinds: Vec<_> = std::fs::read_dir(scripts())
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| (entry.file_name().into_string().unwrap(), entry.path()))
        .collect();
    kinds.sort();
    kinds
}

/// As Argo CD's own repository tests the scripts that it ships.
#[test]
fn health_scripts_say_of_their_test_data_what_is_expected() {
    assert_eq!(kinds().len(), 3);
    for (kind, folder) in kinds() {
        let mut files: Vec<String> = std::fs::read_dir(folder.join("testdata"))
            .unwrap()
            .map(|entry| format!("testdata/{}", entry.unwrap().file_name().to_string_lossy()))
            .collect();
        files.sort();
        let objects: Vec<Value> = files.iter().map(|file| read(&folder.join(file))).collect();
        let said = Judge::find_or_build().unwrap().health(&scripts(), &objects).unwrap();
        let tests: Vec<Value> = files
            .iter()
            .zip(&said)
            .map(|(file, said)| json!({"healthStatus": {"status": said.status, "message": said.message}, "inputPath": file}))
            .collect();
        let path = folder.join("health_test.yaml");
        if recording() {
            std::fs::write(&path, serde_yaml_ng::to_string(&json!({"tests": tests})).unwrap()).unwrap();
        }
        assert_eq!(read(&path)["tests"], json!(tests), "{kind}");
        for (file, (object, said)) in files.iter().zip(objects.iter().zip(&said)) {
            assert_eq!(object["kind"], kind, "{file}");
            let begins = format!("testdata/{}_", said.status.to_lowercase());
            assert!(file.starts_with(&begins), "{kind}: {file} is {}", said.status);
        }
        // Each thing that the script can say is said of some test data.
        let script = std::fs::read_to_string(folder.join("health.lua")).unwrap();
        let can: BTreeSet<&str> =
            script.split("status = \"").skip(1).filter_map(|rest| rest.split('"').next()).collect();
        let does: BTreeSet<&str> = said.iter().map(|said| said.status.as_str()).collect();
        assert_eq!(can, does, "{kind}");
    }
}

/// What people add to Argo CD's configuration holds the same scripts.
#[test]
fn the_patch_of_argocd_cm_holds_the_scripts() {
    let mut data = serde_json::Map::new();
    for (kind, folder) in kinds() {
        let script = std::fs::read_to_string(folder.join("health.lua")).unwrap();
        data.insert(format!("resource.customizations.health.jit.portcullis.io_{kind}"), json!(script));
    }
    let patch = json!({"data": data});
    let path = portcullis_harness::checkout().join("deploy/argocd/argocd-cm.yaml");
    if recording() {
        let text = serde_yaml_ng::to_string(&patch).unwrap();
        let head = "# Generated from resource_customizations/ (PORTCULLIS_RECORD=1 in the tests); do not edit.\n\
            #\n#   kubectl -n argocd patch configmap argocd-cm --type merge --patch-file argocd-cm.yaml\n";
        std::fs::write(&path, format!("{head}{text}")).unwrap();
    }
    assert!(read(&path) == patch, "{} is out of date: see PORTCULLIS_RECORD in this module", path.display());
    cluster::with_kinds(|plane| async move {
        let admin = plane.kubectl(User::Admin).unwrap().in_namespace("default");
        admin
            .run(&["create", "configmap", "argocd-cm", "--from-literal=url=https://argo.example.com"])
            .await
            .unwrap();
        let file = path.display().to_string();
        admin.run(&["patch", "configmap", "argocd-cm", "--type=merge", "--patch-file", &file]).await.unwrap();
        let patched = admin.json(&["configmap", "argocd-cm"]).await.unwrap();
        assert_eq!(patched["data"]["url"], "https://argo.example.com");
        assert_eq!(patched["data"].as_object().unwrap().len(), 4);
    });
}
