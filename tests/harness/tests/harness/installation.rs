//! An installation on a cluster of its own, however its objects got there: the program is run as its Deployment says,
//! under its service account and its roles, with its arguments and its configuration, and its users go from a policy to
//! a port that is open and closed again.

#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use portcullis_harness::control_plane::Options;
use portcullis_harness::controller::{Controller, Setup};
use portcullis_harness::simulator::SimulatorOptions;
use portcullis_harness::{ControlPlane, Kubectl, Simulator, User, World, eventually, install};
use serde_json::{Value, json};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const REQUESTER: &str = "203.0.113.7";

/// A cluster and a cloud that have nothing of it yet.
pub(crate) struct Installation {
    pub(crate) plane: ControlPlane,
    pub(crate) simulator: Simulator,
    pub(crate) world: World,
    pub(crate) admin: Kubectl,
    pub(crate) scratch: tempfile::TempDir,
    /// Where it is going to be installed.
    pub(crate) namespace: &'static str,
    /// The name of its Deployment.
    pub(crate) deployment: &'static str,
}

impl Installation {
    pub(crate) async fn nowhere(
        namespace: &'static str,
        deployment: &'static str,
        simulator: SimulatorOptions,
    ) -> Self {
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
        let simulator = Simulator::start(simulator).await.unwrap();
        let world = World::create(&simulator).await.unwrap();
        let admin = plane.kubectl(User::Admin).unwrap();
        Self { plane, simulator, world, admin, scratch, namespace, deployment }
    }

    pub(crate) async fn get(&self, what: &str) -> Value {
        let read = self.admin.run(&["get", what, "-n", self.namespace, "-o", "json"]).await.unwrap();
        serde_json::from_str(&read).unwrap()
    }

    async fn pod(&self) -> Value {
        self.get(&format!("deployment/{}", self.deployment)).await["spec"]["template"]["spec"].take()
    }

    /// The service account that its pods run as.
    pub(crate) async fn account(&self) -> String {
        self.pod().await["serviceAccountName"].as_str().unwrap().to_owned()
    }

    /// What the Deployment runs: its container's arguments, and its files where it has them.
    pub(crate) async fn setup(&self) -> Setup {
        let pod = self.pod().await;
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
                let name = volume["secret"]["secretName"].as_str().unwrap();
                let secret = self.get(&format!("secret/{name}")).await;
                for (key, content) in secret["data"].as_object().unwrap() {
                    // All of its keys are files, or those that are listed.
                    let file = match volume["secret"]["items"].as_array() {
                        None => key,
                        Some(items) => match items.iter().find(|item| item["key"] == key.as_str()) {
                            None => continue,
                            Some(item) => item["path"].as_str().unwrap(),
                        },
                    };
                    std::fs::write(place.join(file), decoded(content.as_str().unwrap())).unwrap();
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
        let mut setup = Setup::new_for(&self.plane, (self.namespace, account), config).await.unwrap();
        setup.arguments = arguments[3..].to_vec();
        setup
    }

    /// One of its replicas, ready.
    pub(crate) async fn controller(&self) -> Controller {
        Controller::start(self.setup().await).await.unwrap()
    }

    /// Whether a packet of the requester's passes now.
    pub(crate) async fn passes(&self, machine: &str) -> bool {
        let machine = self.world.machine(machine).unwrap();
        let address = machine.public_address.as_ref().unwrap_or(&machine.private_address);
        self.simulator.probe(REQUESTER, address, 22, "Tcp").await.unwrap().allowed
    }

    pub(crate) async fn object(&self, object: &str) -> Option<Value> {
        self.plane.object(install::NAMESPACE, object).await.unwrap()
    }

    /// A policy for the machine `web-1`, with `more` in its spec, and its lock in the cloud.
    pub(crate) async fn lock(&self, more: Value) {
        let id = &self.world.machine("web-1").unwrap().id;
        let mut policy = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy",
            "metadata": {"name": "web-1", "namespace": install::NAMESPACE},
            "spec": {"targets": [{"name": "web-1", "azureVirtualMachine": {"id": id}}],
                "ports": [{"port": 22, "maxDuration": "2h"}], "approval": {"required": 1}},
        });
        policy["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        assert!(self.passes("web-1").await, "it is closed before there is a lock");
        self.admin.apply(&policy.to_string()).await.unwrap();
        eventually("the lock", PATIENCE, || async {
            anyhow::ensure!(!self.passes("web-1").await, "it is open");
            anyhow::Ok(())
        })
        .await
        .unwrap();
        eventually("the policy is ready", PATIENCE, || async {
            let policy = self.object("jitpol/web-1").await.unwrap_or_default();
            let mut conditions = policy["status"]["conditions"].as_array().into_iter().flatten();
            anyhow::ensure!(
                conditions.any(|one| one["type"] == "Ready" && one["status"] == "True"),
                "{policy:#}"
            );
            anyhow::Ok(())
        })
        .await
        .unwrap();
    }

    /// A request that is approved, and whose port is open.
    pub(crate) async fn open(&self, name: &str, duration: &str) {
        self.request(name, duration).await;
        self.approve(name).await;
        self.reaches(name, "Active").await;
        assert!(self.passes("web-1").await);
    }

    /// Waits until it has ended, and its port is closed.
    pub(crate) async fn expire(&self, name: &str) {
        self.reaches(name, "Expired").await;
        assert!(!self.passes("web-1").await);
    }

    async fn reaches(&self, request: &str, state: &str) {
        // A grant of a minute, and what comes before and after it.
        eventually(&format!("{request} is {state}"), PATIENCE * 2, || async {
            let found = self.object(&format!("jitreq/{request}")).await.unwrap_or_default();
            anyhow::ensure!(found["status"]["state"] == state, "{:#}", found["status"]);
            anyhow::Ok(())
        })
        .await
        .unwrap();
    }

    pub(crate) async fn request(&self, name: &str, duration: &str) {
        let request = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": name, "namespace": install::NAMESPACE},
            "spec": {"policyRef": {"name": "web-1"}, "targets": [{"name": "web-1"}], "duration": duration,
                "ports": [{"port": 22, "sources": [{"cidr": format!("{REQUESTER}/32")}]}]},
        });
        let developer = self.plane.kubectl(User::Developer).unwrap();
        let request = request.to_string();
        // Definitions that were just created may be unknown to mutating policies for a while yet (503).
        eventually(&format!("{name} is asked"), PATIENCE, || developer.apply(&request)).await.unwrap();
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

    /// What the API server was asked by the controller: verb, group, resource with its part. And what it refused.
    pub(crate) async fn asked(&self) -> (BTreeSet<(String, String, String)>, Vec<Value>) {
        let user = format!("system:serviceaccount:{}:{}", self.namespace, self.account().await);
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

    /// `portcullis drain`, as the chart's hook runs it.
    pub(crate) fn drain(&self, kubeconfig: &Path, more: &[&str]) -> String {
        let program = portcullis_harness::program("portcullis", "PORTCULLIS").unwrap();
        let output = std::process::Command::new(program)
            .args(["drain", "--namespace", self.namespace, "--timeout", "60", "--kubeconfig"])
            .arg(kubeconfig)
            .args(more)
            .env_remove("KUBECONFIG")
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
        text(&output.stdout)
    }
}

fn decoded(base64: &str) -> Vec<u8> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(base64).unwrap()
}
