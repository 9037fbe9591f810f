//! The chart, installed by Helm on a real API server, and the program run as the chart has it run: under its service
//! account and its roles, with its arguments and its configuration. Upgraded, drained and uninstalled.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use portcullis_harness::simulator::SimulatorOptions;
use portcullis_harness::{User, eventually, install};
use serde_json::{Value, json};

use super::{CLUSTER, folder, tools};
use crate::installation::{Installation, PATIENCE};

const NAMESPACE: &str = "jit";
/// A release of another name, in another namespace than `deploy/` has.
const RELEASE: &str = "access";
const FULL_NAME: &str = "access-portcullis";

/// A cluster with everything that the chart has.
struct Installed(Installation);

impl Deref for Installed {
    type Target = Installation;

    fn deref(&self) -> &Installation {
        &self.0
    }
}

impl Installed {
    /// Installs it on a cluster that has nothing of it.
    async fn new() -> Self {
        let installed = Self(Installation::nowhere(NAMESPACE, FULL_NAME, SimulatorOptions::default()).await);
        let cloud = installed.simulator.announcement();
        for namespace in [NAMESPACE, install::NAMESPACE] {
            install::create_namespace(&installed.plane, namespace).await.unwrap();
        }
        let secret = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "azure", "namespace": NAMESPACE},
            "stringData": {"clientSecret": cloud.client_secret}});
        installed.admin.apply(&secret.to_string()).await.unwrap();
        let said = installed.helm(&["install", RELEASE, "."], &installed.values()).unwrap();
        assert!(said.contains("is installed as access in jit"), "{said}");
        install::grant_access(&installed.plane, install::NAMESPACE).await.unwrap();
        installed
    }

    fn values(&self) -> Value {
        let cloud = self.simulator.announcement();
        json!({
            "clusterId": "chart",
            "namespaces": [{"name": install::NAMESPACE, "scopes": [format!("/subscriptions/{}", cloud.subscription_id)]}],
            "azure": {
                "cloud": "Custom", "resourceManager": cloud.tls_url, "authority": cloud.tls_url,
                "caCertificates": std::fs::read_to_string(&cloud.ca_file).unwrap(),
                "workloadIdentity": {"enabled": false},
                "clientSecret": {"enabled": true, "tenantId": cloud.tenant_id, "clientId": cloud.client_id,
                    "existingSecret": "azure"},
            },
            "config": {"admissionMargin": "1s", "unfinishedWrites": "5s", "sweepInterval": "5s", "driftInterval": "2s", "requestRetention": "1m"},
        })
    }

    /// Runs Helm as the administrator, on this cluster. No kubelet runs hooks here.
    fn helm(&self, arguments: &[&str], values: &Value) -> Result<String, String> {
        let (file, config) =
            (self.scratch.path().join("values.json"), self.plane.kubeconfig(User::Admin).unwrap());
        std::fs::write(&file, values.to_string()).unwrap();
        let mut all = arguments.to_vec();
        let (file, config) = (file.display().to_string(), config.display().to_string());
        all.extend(["--namespace", NAMESPACE, "--kubeconfig", &config]);
        if arguments[0] == "uninstall" {
            all.push("--no-hooks");
        } else {
            all.extend(["--values", &file]);
        }
        let output = tools().run(&folder(), "helm", &all).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Takes the lock's deny out of a group, and waits until it is back and told of so many times.
    async fn lose_a_deny(&self, times: u64) {
        let group = self.world.nsg("web", "web-1");
        let deny = async || {
            let read = self.simulator.get(&group).await.unwrap();
            let rules = read["properties"]["securityRules"].as_array().cloned().unwrap_or_default();
            rules.into_iter().find(|rule| rule["name"].as_str().is_some_and(|name| name.contains("-deny-")))
        };
        let gone = deny().await.unwrap();
        // Another write of the group may be on its way.
        eventually("the deny is taken away", PATIENCE, || async {
            self.simulator.delete(gone["id"].as_str().unwrap()).await
        })
        .await
        .unwrap();
        let events = format!("/apis/events.k8s.io/v1/namespaces/{}/events", install::NAMESPACE);
        eventually("the deny is back", PATIENCE, || async {
            anyhow::ensure!(deny().await.is_some(), "it is not");
            let events = self.plane.request(reqwest::Method::GET, &events, None).await?;
            let drift =
                events["items"].as_array().into_iter().flatten().filter(|one| one["reason"] == "Drift");
            let told: u64 = drift.map(|one| one["series"]["count"].as_u64().unwrap_or(1)).sum();
            anyhow::ensure!(told >= times, "told of {told} times");
            anyhow::Ok(())
        })
        .await
        .unwrap();
    }
}

/// Every verb of every rule, by role.
fn granted(objects: &[Value]) -> BTreeMap<(String, String, String), String> {
    let mut granted = BTreeMap::new();
    for role in objects {
        let strings = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().map(|one| one.as_str().unwrap().to_owned()).collect()
        };
        for rule in role["rules"].as_array().into_iter().flatten() {
            for group in strings(&rule["apiGroups"]) {
                for resource in strings(&rule["resources"]) {
                    for verb in strings(&rule["verbs"]) {
                        let name = role["metadata"]["name"].as_str().unwrap().to_owned();
                        granted.insert((verb, group.clone(), resource.clone()), name);
                    }
                }
            }
        }
    }
    granted
}

#[tokio::test]
async fn installed_by_helm_it_locks_opens_and_expires_and_is_drained_and_gone() {
    let installed = Installed::new().await;
    let _controller = installed.controller().await;
    installed.lock(json!({})).await;
    // What somebody takes away is put back, and told of, twice.
    for times in 1..=2 {
        installed.lose_a_deny(times).await;
        // What was put back is known to stand once it was read again, every 2 s.
        tokio::time::sleep(Duration::from_secs(8)).await;
    }
    installed.open("short", "60s").await;

    // An upgrade changes what it is to change, and nothing that is open.
    let mut values = installed.values();
    values["replicas"] = json!(3);
    let said = installed.helm(&["upgrade", RELEASE, "."], &values).unwrap();
    assert!(said.contains("is installed as access in jit"), "{said}");
    assert_eq!(installed.get(&format!("deployment/{FULL_NAME}")).await["spec"]["replicas"], 3);
    assert!(installed.passes("web-1").await);
    // A second one in the cluster is refused, with the reason.
    let second = tools()
        .run(
            &folder(),
            "helm",
            &[
                "install",
                "second",
                ".",
                "--namespace",
                "default",
                "--set",
                CLUSTER,
                "--kubeconfig",
                &installed.plane.kubeconfig(User::Admin).unwrap().display().to_string(),
            ],
        )
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("in this cluster already, as release access in namespace jit"), "{said}");

    installed.expire("short").await;

    // One that is open at the end.
    installed.open("long", "1h").await;
    // And one that waits for people, and holds nobody up.
    installed.request("waits", "1h").await;
    // What was settled for long enough is deleted, with its reviews.
    eventually("the settled request is deleted", Duration::from_secs(200), || async {
        for object in ["jitreq/short", "jitrev/short"] {
            anyhow::ensure!(installed.object(object).await.is_none(), "{object} is there");
        }
        anyhow::Ok(())
    })
    .await
    .unwrap();

    // As the hook runs it: as the same service account.
    let kubeconfig =
        installed.plane.service_account_kubeconfig(NAMESPACE, &installed.account().await).await.unwrap();
    let drained = installed.drain(&kubeconfig, &[]);
    assert!(drained.contains("grants closed: 1;"), "{drained}");
    assert!(!installed.passes("web-1").await);
    let policy = installed.object("jitpol/web-1").await.unwrap();
    assert!(policy["metadata"]["finalizers"].as_array().is_none_or(Vec::is_empty), "{policy:#}");
    assert_eq!(policy["spec"]["suspend"], true);
    assert_eq!(installed.object("jitreq/waits").await.unwrap()["status"]["state"], "Pending");

    // Nothing that was granted is unused, and nothing was missing.
    let roles: Value = serde_json::from_str(
        &installed
            .admin
            .run(&[
                "get",
                "clusterroles,roles",
                "-n",
                NAMESPACE,
                "-l",
                "app.kubernetes.io/instance=access",
                "-o",
                "json",
            ])
            .await
            .unwrap(),
    )
    .unwrap();
    let people = ["viewer", "requester", "approver", "delegate", "policy-admin"];
    let roles: Vec<Value> = roles["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|role| {
            !people.iter().any(|people| role["metadata"]["name"] == format!("portcullis-{people}"))
        })
        .cloned()
        .collect();
    let (asked, refused) = installed.asked().await;
    assert_eq!(refused, Vec::<Value>::new());
    let granted = granted(&roles);
    let unused: Vec<_> = granted.iter().filter(|(right, _)| !asked.contains(*right)).collect();
    // Admission that is altered, and an API server that is upgraded, are tests of their own (`it admission::`).
    let elsewhere = [("delete", "configmaps"), ("update", "configmaps")];
    let unused: Vec<_> =
        unused.into_iter().filter(|((verb, _, kind), _)| !elsewhere.contains(&(verb, kind))).collect();
    assert!(unused.is_empty(), "never used: {unused:#?}");

    installed.helm(&["uninstall", RELEASE], &json!({})).unwrap();
    let left = installed
        .admin
        .run(&["get", "deployments,serviceaccounts,roles", "-n", NAMESPACE, "-o", "name"])
        .await
        .unwrap();
    assert!(!left.contains(FULL_NAME), "{left}");
    // Locks stay, and so do the objects, which nothing holds.
    assert!(!installed.passes("web-1").await);
    let admin = installed.plane.kubeconfig(User::Admin).unwrap();
    assert!(installed.drain(&admin, &["--undo"]).contains("1 policies are suspended no more"));
    assert_ne!(installed.object("jitpol/web-1").await.unwrap()["spec"]["suspend"], true);
    installed
        .admin
        .run(&["delete", "jitpol", "web-1", "-n", install::NAMESPACE, "--timeout=20s"])
        .await
        .unwrap();
}
