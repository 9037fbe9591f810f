//! The chart, installed by Helm on a real API server, and the program run as the chart has it run: under its service
//! account and its roles, with its arguments and its configuration. Upgraded, drained and uninstalled.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use portcullis_harness::control_plane::Options;
use portcullis_harness::controller::{Controller, Setup};
use portcullis_harness::process::Lifetime;
use portcullis_harness::simulator::SimulatorOptions;
use portcullis_harness::{ControlPlane, Kubectl, Simulator, User, World, eventually, install};
use serde_json::{Value, json};

use super::{folder, tools};

const NAMESPACE: &str = "jit";
const PATIENCE: Duration = Duration::from_secs(60);
const REQUESTER: &str = "203.0.113.7";
/// A release of another name, in another namespace than `deploy/` has.
const RELEASE: &str = "access";
const FULL_NAME: &str = "access-portcullis";

/// A cluster with everything that the chart has.
struct Installed {
    plane: ControlPlane,
    simulator: Simulator,
    world: World,
    admin: Kubectl,
    scratch: tempfile::TempDir,
}

impl Installed {
    /// Installs it on a cluster that has nothing of it.
    async fn new() -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let (policy, log) = (scratch.path().join("audit.yaml"), scratch.path().join("audit.log"));
        let rule = json!({"apiVersion": "audit.k8s.io/v1", "kind": "Policy", "rules": [{"level": "Metadata",
            "omitStages": ["RequestReceived"]}]});
        std::fs::write(&policy, rule.to_string()).unwrap();
        let plane = ControlPlane::start(Options {
            controller_manager: true,
            apiserver_arguments: vec![
                format!("--audit-policy-file={}", policy.display()),
                format!("--audit-log-path={}", log.display()),
            ],
            ..Options::default()
        })
        .await
        .unwrap();
        let simulator = Simulator::start(SimulatorOptions::default()).await.unwrap();
        let world = World::create(&simulator).await.unwrap();
        let admin = plane.kubectl(User::Admin).unwrap();
        let installed = Self { plane, simulator, world, admin, scratch };
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

    async fn get(&self, what: &str) -> Value {
        serde_json::from_str(&self.admin.run(&["get", what, "-n", NAMESPACE, "-o", "json"]).await.unwrap())
            .unwrap()
    }

    /// What the Deployment runs: its container's arguments, and its files where it has them.
    async fn setup(&self) -> Setup {
        let deployment = self.get(&format!("deployment/{FULL_NAME}")).await;
        let pod = &deployment["spec"]["template"]["spec"];
        let container = &pod["containers"][0];
        let mut text = String::new();
        for mount in container["volumeMounts"].as_array().unwrap() {
            let volume =
                pod["volumes"].as_array().unwrap().iter().find(|one| one["name"] == mount["name"]).unwrap();
            let place =
                self.scratch.path().join(mount["mountPath"].as_str().unwrap().trim_start_matches('/'));
            std::fs::create_dir_all(&place).unwrap();
            if let Some(name) = volume["configMap"]["name"].as_str() {
                for (file, content) in
                    self.get(&format!("configmap/{name}")).await["data"].as_object().unwrap()
                {
                    std::fs::write(place.join(file), content.as_str().unwrap()).unwrap();
                }
                text = std::fs::read_to_string(place.join("config.yaml")).unwrap();
            } else {
                let secret =
                    self.get(&format!("secret/{}", volume["secret"]["secretName"].as_str().unwrap())).await;
                for item in volume["secret"]["items"].as_array().unwrap() {
                    let content = secret["data"][item["key"].as_str().unwrap()].as_str().unwrap();
                    std::fs::write(place.join(item["path"].as_str().unwrap()), decoded(content)).unwrap();
                }
            }
        }
        let root = self.scratch.path().join("etc/portcullis").display().to_string();
        let config: Value = serde_yaml_ng::from_str(&text.replace("/etc/portcullis", &root)).unwrap();
        let arguments: Vec<String> = container["args"]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| one.as_str().unwrap().to_owned())
            .collect();
        assert_eq!(arguments[..3], ["run", "--config", "/etc/portcullis/config/config.yaml"]);
        let account = pod["serviceAccountName"].as_str().unwrap();
        let mut setup = Setup::new_for(&self.plane, (NAMESPACE, account), config).await.unwrap();
        setup.arguments = arguments[3..].to_vec();
        setup
    }

    async fn passes(&self, machine: &str) -> bool {
        let machine = self.world.machine(machine).unwrap();
        let address = machine.public_address.as_ref().unwrap_or(&machine.private_address);
        self.simulator.probe(REQUESTER, address, 22, "Tcp").await.unwrap().allowed
    }

    async fn object(&self, object: &str) -> Option<Value> {
        self.plane.object(install::NAMESPACE, object).await.unwrap()
    }

    async fn reaches(&self, request: &str, state: &str) {
        eventually(&format!("{request} is {state}"), PATIENCE, || async {
            let found = self.object(request).await.unwrap_or_default();
            anyhow::ensure!(found["status"]["state"] == state, "{:#}", found["status"]);
            anyhow::Ok(())
        })
        .await
        .unwrap();
    }

    async fn request(&self, name: &str, duration: &str) {
        let request = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": name, "namespace": install::NAMESPACE},
            "spec": {"policyRef": {"name": "web-1"}, "targets": [{"name": "web-1"}], "duration": duration,
                "ports": [{"port": 22, "sources": [{"cidr": format!("{REQUESTER}/32")}]}]},
        });
        let developer = self.plane.kubectl(User::Developer).unwrap();
        developer.apply(&request.to_string()).await.unwrap();
    }

    /// As somebody approves it who has read its plan.
    async fn approve(&self, name: &str) {
        let hash = eventually("the plan", PATIENCE, || async {
            let found = self.object(&format!("jitreq/{name}")).await.unwrap_or_default();
            anyhow::ensure!(found["status"]["planHash"].is_string(), "{:#}", found["status"]);
            anyhow::Ok(found)
        });
        let found = hash.await.unwrap();
        let review = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
            "metadata": {"name": name, "namespace": install::NAMESPACE},
            "spec": {"requestRef": {"name": name, "uid": found["metadata"]["uid"]}, "policyRef": {"name": "web-1"},
                "planHash": found["status"]["planHash"], "verdict": "Approved"},
        });
        let approver = self.plane.kubectl(User::Approver).unwrap();
        approver.output(&["create", "-f", "-"], Some(&review.to_string())).await.unwrap();
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

    /// What the API server was asked by the controller: verb, group, resource with its part. And what it refused.
    fn asked(&self, account: &str) -> (BTreeSet<(String, String, String)>, Vec<Value>) {
        let user = format!("system:serviceaccount:{NAMESPACE}:{account}");
        let log = std::fs::read_to_string(self.scratch.path().join("audit.log")).unwrap();
        let (mut asked, mut refused) = (BTreeSet::new(), Vec::new());
        for line in log.lines() {
            let Ok(event) = serde_json::from_str::<Value>(line) else { continue };
            if event["user"]["username"] != user.as_str() || event["objectRef"].is_null() {
                continue;
            }
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let reference = &event["objectRef"];
            let mut resource = text(&reference["resource"]);
            if let Some(part) = reference["subresource"].as_str() {
                resource = format!("{resource}/{part}");
            }
            if event["annotations"]["authorization.k8s.io/decision"] == "forbid" {
                refused.push(event.clone());
            }
            asked.insert((text(&event["verb"]), text(&reference["apiGroup"]), resource));
        }
        (asked, refused)
    }
}

fn decoded(base64: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
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
    let mut setup = installed.setup().await;
    setup.lifetime = Lifetime::Leashed;
    let account = installed.get(&format!("deployment/{FULL_NAME}")).await["spec"]["template"]["spec"]["serviceAccountName"]
        .as_str()
        .unwrap()
        .to_owned();
    let _controller = Controller::start(setup).await.unwrap();
    let id = &installed.world.machine("web-1").unwrap().id;
    let policy = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy",
        "metadata": {"name": "web-1", "namespace": install::NAMESPACE},
        "spec": {"targets": [{"name": "web-1", "azureVirtualMachine": {"id": id}}],
            "ports": [{"port": 22, "maxDuration": "2h"}], "approval": {"required": 1}},
    });
    installed.admin.apply(&policy.to_string()).await.unwrap();
    eventually("the lock", PATIENCE, || async {
        anyhow::ensure!(!installed.passes("web-1").await, "it is open");
        anyhow::Ok(())
    })
    .await
    .unwrap();
    eventually("the policy is ready", PATIENCE, || async {
        let policy = installed.object("jitpol/web-1").await.unwrap_or_default();
        let mut conditions = policy["status"]["conditions"].as_array().into_iter().flatten();
        anyhow::ensure!(
            conditions.any(|one| one["type"] == "Ready" && one["status"] == "True"),
            "{policy:#}"
        );
        anyhow::Ok(())
    })
    .await
    .unwrap();
    // What somebody takes away is put back, and told of, twice.
    for times in 1..=2 {
        installed.lose_a_deny(times).await;
        // What was put back is known to stand once it was read again, every 2 s.
        tokio::time::sleep(Duration::from_secs(8)).await;
    }
    installed.request("short", "60s").await;
    installed.approve("short").await;
    installed.reaches("jitreq/short", "Active").await;
    assert!(installed.passes("web-1").await);

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
                "clusterId=second",
                "--kubeconfig",
                &installed.plane.kubeconfig(User::Admin).unwrap().display().to_string(),
            ],
        )
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr);
    assert!(said.contains("in this cluster already, as release access in namespace jit"), "{said}");

    installed.reaches("jitreq/short", "Expired").await;
    assert!(!installed.passes("web-1").await);

    // One that is open at the end.
    installed.request("long", "1h").await;
    installed.approve("long").await;
    installed.reaches("jitreq/long", "Active").await;
    assert!(installed.passes("web-1").await);
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
    let kubeconfig = installed.plane.service_account_kubeconfig(NAMESPACE, &account).await.unwrap();
    let drained = drain(&kubeconfig, &[]);
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
    let (asked, refused) = installed.asked(&account);
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
    assert!(drain(&admin, &["--undo"]).contains("1 policies are suspended no more"));
    assert_ne!(installed.object("jitpol/web-1").await.unwrap()["spec"]["suspend"], true);
    installed
        .admin
        .run(&["delete", "jitpol", "web-1", "-n", install::NAMESPACE, "--timeout=20s"])
        .await
        .unwrap();
}

/// `portcullis drain`, as the hook runs it.
fn drain(kubeconfig: &Path, more: &[&str]) -> String {
    let program = portcullis_harness::program("portcullis", "PORTCULLIS").unwrap();
    let output = std::process::Command::new(program)
        .args(["drain", "--namespace", NAMESPACE, "--timeout", "60", "--kubeconfig"])
        .arg(kubeconfig)
        .args(more)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}
