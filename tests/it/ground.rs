//! A stage that many tests share: API server, the program itself, the simulator. Each test has a site of its own
//! there: a subscription with networks and machines, so that tests do not meet.

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use portcullis_harness::{Controller, Kubectl, eventually, install};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::OnceCell;

use crate::walk::Play;

pub(crate) const REQUESTER: &str = "203.0.113.7";
pub(crate) const STRANGER: &str = "198.51.100.23";
/// How long anything may take: the stage is shared, and so is the machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Sites that the configuration maps.
const SITES: u8 = 96;

/// Clients of the simulator that are not the one that may do everything.
pub(crate) const LIMITED_CLIENT: &str = "22222222-2222-2222-2222-222222222222";
/// Namespaces that sign in as somebody else, and the number of their subscription.
pub(crate) const WRONG_SECRET: (&str, u8) = ("team-secret", 100);
pub(crate) const WRONG_TENANT: (&str, u8) = ("team-tenant", 101);
pub(crate) const LIMITED: (&str, u8) = ("team-limited", 102);

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());
static GROUND: OnceCell<Ground> = OnceCell::const_new();
static NEXT: AtomicU8 = AtomicU8::new(0);

/// The stage, and the program on it with short intervals.
pub(crate) struct Ground {
    pub(crate) play: Play,
    pub(crate) controller: Controller,
}

/// Runs a test on a site of its own.
pub(crate) fn on_site<F: Future<Output = ()>>(test: impl FnOnce(Site) -> F) {
    with_ground(async |ground| {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        assert!(number < SITES, "map more sites");
        test(Site { ground, number, namespace: install::NAMESPACE }).await;
        Site { ground, number, namespace: install::NAMESPACE }.leave().await;
    });
}

/// Runs a test in a namespace that signs in as somebody else.
pub(crate) fn on_site_of<F: Future<Output = ()>>(
    (namespace, number): (&'static str, u8),
    test: impl FnOnce(Site) -> F,
) {
    with_ground(async |ground| test(Site { ground, number, namespace }).await);
}

fn with_ground(test: impl AsyncFnOnce(&'static Ground)) {
    RUNTIME.block_on(async { test(GROUND.get_or_init(Ground::new).await).await });
}

/// Short intervals, for a controller on any stage.
pub(crate) fn hurry(config: &mut Value) {
    for interval in ["driftInterval", "inventoryInterval", "addressInterval", "sweepInterval"] {
        config[interval] = json!("2s");
    }
}

fn subscription(number: u8) -> String {
    format!("00000000-0000-0000-0000-0000000001{number:02x}")
}

impl Ground {
    async fn new() -> Self {
        let play = Play::new().await;
        let simulator = &play.stage.simulator;
        let mapped = (0..SITES).chain([WRONG_SECRET.1, WRONG_TENANT.1, LIMITED.1]);
        for number in mapped {
            let body = json!({"subscriptionId": subscription(number)});
            simulator.control(Method::POST, "subscriptions", Some(&body)).await.unwrap();
        }
        let limited = json!({"clientId": LIMITED_CLIENT, "secrets": ["limited"], "permissions": []});
        simulator.control(Method::POST, "principals", Some(&limited)).await.unwrap();
        for (namespace, _) in [WRONG_SECRET, WRONG_TENANT, LIMITED] {
            install::grant_access(&play.stage.plane, namespace).await.unwrap();
        }
        let mut setup = play.stage.setup().await.unwrap();
        let known = simulator.announcement();
        let secret = |name: &str, text: &str| {
            let path = setup.folder.join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let credential = |name: &str, tenant: &str, client: &str, file: std::path::PathBuf| json!({"name": name, "clientSecret": {"tenantId": tenant, "clientId": client, "secretFile": file}});
        let more = [
            credential(WRONG_SECRET.0, &known.tenant_id, &known.client_id, secret("wrong", "not-the-secret")),
            credential(
                WRONG_TENANT.0,
                "99999999-9999-9999-9999-999999999999",
                &known.client_id,
                secret("right", &known.client_secret),
            ),
            credential(LIMITED.0, &known.tenant_id, LIMITED_CLIENT, secret("limited", "limited")),
        ];
        let scope = |number: u8| format!("/subscriptions/{}", subscription(number));
        let config = &mut setup.config;
        hurry(config);
        // Each reads every site: more often, and the machine would do little else.
        config["sweepInterval"] = json!("10s");
        // Users that are programs, for the tests of who counts.
        config["pipelineUsers"] = json!(["viewer", "outsider"]);
        config["credentials"].as_array_mut().unwrap().extend(more);
        config["namespaces"][0]["scopes"].as_array_mut().unwrap().extend((0..SITES).map(|n| json!(scope(n))));
        config["namespaces"].as_array_mut().unwrap().extend(
            [WRONG_SECRET, WRONG_TENANT, LIMITED]
                .map(|(name, number)| json!({"name": name, "scopes": [scope(number)], "credential": name})),
        );
        let controller = Controller::start(setup).await.unwrap();
        Self { play, controller }
    }
}

/// A machine as the simulator made it.
#[derive(Debug, Clone)]
pub(crate) struct Vm {
    pub(crate) name: String,
    pub(crate) id: String,
    pub(crate) nic: String,
    pub(crate) ip: String,
}

/// One test's part of the stage.
pub(crate) struct Site {
    pub(crate) ground: &'static Ground,
    pub(crate) number: u8,
    namespace: &'static str,
}

impl Site {
    /// The id of the resource group where everything is.
    pub(crate) fn group(&self) -> String {
        format!("/subscriptions/{}/resourceGroups/site", subscription(self.number))
    }

    pub(crate) fn nsg(&self, name: &str) -> String {
        format!("{}/providers/Microsoft.Network/networkSecurityGroups/{name}", self.group())
    }

    pub(crate) fn network(&self) -> String {
        format!("{}/providers/Microsoft.Network/virtualNetworks/main", self.group())
    }

    pub(crate) fn address(&self, host: u8) -> String {
        format!("10.{}.0.{host}", 100 + self.number)
    }

    /// A name that no other test gives to an object.
    pub(crate) fn name(&self, name: &str) -> String {
        format!("s{}-{name}", self.number)
    }

    pub(crate) async fn control(&self, path: &str, body: &Value) -> Value {
        self.ground.play.stage.simulator.control(Method::POST, path, Some(body)).await.unwrap()
    }

    /// Makes a machine behind the group `net` of the site's subnet, unless `more` says otherwise.
    pub(crate) async fn vm(&self, name: &str, host: u8, more: Value) -> Vm {
        let mut machine = json!({
            "name": name, "resourceGroup": "site", "addressSpace": [format!("10.{}.0.0/16", 100 + self.number)],
            "subnetPrefix": format!("10.{}.0.0/24", 100 + self.number), "subnetNsg": "net",
            "privateIp": self.address(host),
        });
        for (key, value) in more.as_object().unwrap() {
            machine[key] = value.clone();
        }
        let document = json!({"subscription": subscription(self.number), "machines": [machine]});
        let made = self.control("world", &document).await["machines"][0].clone();
        let text = |field: &str| made[field].as_str().unwrap().to_owned();
        Vm { name: name.to_owned(), id: text("id"), nic: text("nic"), ip: text("privateIp") }
    }

    /// A rule of others, written at once however busy the group is.
    pub(crate) async fn rule(
        &self,
        nsg: &str,
        name: &str,
        access: &str,
        priority: u16,
        port: &str,
        source: &str,
    ) {
        let properties = json!({
            "direction": "Inbound", "access": access, "priority": priority, "protocol": "*",
            "sourceAddressPrefix": source, "sourcePortRange": "*",
            "destinationAddressPrefix": "*", "destinationPortRange": port,
        });
        self.put(&format!("{}/securityRules/{name}", self.nsg(nsg)), json!({"properties": properties})).await;
    }

    /// Writes a resource; waits for the turn of a network security group that is being written to.
    pub(crate) async fn put(&self, id: &str, mut body: Value) {
        body["id"] = json!(id);
        let document = json!({"subscription": subscription(self.number), "resources": [body]});
        let simulator = &self.ground.play.stage.simulator;
        eventually("the resource is written", PATIENCE, || {
            simulator.control(Method::POST, "world", Some(&document))
        })
        .await
        .unwrap();
    }

    pub(crate) async fn read(&self, id: &str) -> Value {
        self.ground.play.stage.simulator.get(id).await.unwrap()
    }

    /// Deletes a resource as an administrator of the cloud would.
    pub(crate) async fn delete(&self, id: &str) {
        let simulator = &self.ground.play.stage.simulator;
        eventually("the resource is deleted", PATIENCE, || simulator.delete(id)).await.unwrap();
    }

    /// Changes a resource: reads, changes, writes, as a portal would.
    pub(crate) async fn change(&self, id: &str, change: impl Fn(&mut Value)) {
        let mut body = self.read(id).await;
        change(&mut body);
        let simulator = &self.ground.play.stage.simulator;
        eventually("the resource is changed", PATIENCE, || simulator.put(id, &body)).await.unwrap();
    }

    /// The usual site: `a`, and SSH from the Internet to it.
    pub(crate) async fn usual(&self) -> Vm {
        let vm = self.vm("a", 4, json!({})).await;
        self.rule("net", "allow-ssh", "Allow", 300, "22", "Internet").await;
        vm
    }

    /// The rules of ours in a group: those that a request or a lock owns.
    pub(crate) async fn ours(&self, nsg: &str) -> Vec<Value> {
        let read = self.read(&self.nsg(nsg)).await;
        let rules = read["properties"]["securityRules"].as_array().unwrap();
        rules
            .iter()
            .filter(|rule| rule["name"].as_str().unwrap().starts_with("portcullis-"))
            .cloned()
            .collect()
    }

    pub(crate) async fn ours_that(&self, nsg: &str, access: &str) -> Vec<Value> {
        let mut rules = self.ours(nsg).await;
        rules.retain(|rule| rule["properties"]["access"] == access);
        rules
    }

    /// Takes away what a test that has passed leaves: the controller would look at it as long as the others run.
    async fn leave(&self) {
        let plane = &self.ground.play.stage.plane;
        let own = self.name("");
        for kind in ["jitaccessrequests", "jitpolicies"] {
            let all = format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{}/{kind}", self.namespace);
            let found = plane.request(Method::GET, &all, None).await.unwrap();
            let names = found["items"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["metadata"]["name"].as_str().unwrap());
            for name in names.filter(|name| name.starts_with(&own)) {
                // Some are about to go by themselves.
                let _ = plane.request(Method::DELETE, &format!("{all}/{name}"), None).await;
            }
        }
    }

    fn admin(&self) -> &Kubectl {
        &self.ground.play.admin
    }

    /// Applies a policy as the users who write policies do.
    pub(crate) async fn policy(&self, name: &str, spec: &Value) {
        self.admin().apply(&self.manifest(name, spec).to_string()).await.unwrap();
    }

    pub(crate) fn manifest(&self, name: &str, spec: &Value) -> Value {
        json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy",
            "metadata": {"name": self.name(name), "namespace": self.namespace}, "spec": spec,
        })
    }

    /// What kubectl says to a manifest.
    pub(crate) async fn refused(&self, manifest: &Value) -> String {
        let output = self.admin().output(&["apply", "-f", "-"], Some(&manifest.to_string())).await.unwrap();
        assert_ne!(output.code, 0, "{manifest} was taken");
        output.stderr
    }

    /// A policy over one machine or more, each an entry of its own.
    pub(crate) async fn lock(&self, name: &str, machines: &[&Vm]) {
        self.policy(name, &json!({"targets": targets(machines)})).await;
        self.says(&format!("jitpol/{name}"), "Ready", "True", "Configured", "").await;
    }

    pub(crate) async fn request(
        &self,
        name: &str,
        policy: &str,
        target: &str,
        port: u16,
        source: &str,
        duration: &str,
    ) {
        let request = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": self.name(name), "namespace": self.namespace},
            "spec": {
                "policyRef": {"name": self.name(policy)}, "targets": [{"name": target}], "duration": duration,
                "ports": [{"port": port, "sources": [{"cidr": format!("{source}/32")}]}],
            },
        });
        self.ground.play.developer.apply(&request.to_string()).await.unwrap();
    }

    /// Deletes an object, `jitpol/web`, and waits until it is gone.
    pub(crate) async fn kubectl_delete(&self, object: &str) {
        let (kind, name) = object.split_once('/').unwrap();
        let name = self.name(name);
        self.admin().run(&["-n", self.namespace, "delete", kind, &name, "--timeout=120s"]).await.unwrap();
    }

    pub(crate) async fn get(&self, object: &str) -> anyhow::Result<Value> {
        let (kind, name) = object.split_once('/').unwrap();
        let object = format!("{kind}/{}", self.name(name));
        let found = self.ground.play.stage.plane.object(self.namespace, &object).await?;
        found.with_context(|| format!("{object} is not there"))
    }

    /// Waits until the object is as a closure says; the failure shows its status.
    pub(crate) async fn until(&self, what: &str, object: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let result = eventually(&format!("{object}: {what}"), PATIENCE, || async {
            let found = self.get(object).await?;
            anyhow::ensure!(holds(&found), "{:#}", found["status"]);
            Ok::<_, anyhow::Error>(found)
        })
        .await;
        result.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until a request is in a state.
    pub(crate) async fn state(&self, object: &str, state: &str) -> Value {
        self.until(&format!("is {state}"), object, |found| found["status"]["state"] == state).await
    }

    /// Waits until a condition has a status, a reason, and a message that has a text in it.
    pub(crate) async fn says(&self, object: &str, kind: &str, status: &str, reason: &str, message: &str) {
        self.until(&format!("has {kind}={status} {reason} {message:?}"), object, |found| {
            let condition = condition(found, kind);
            condition["status"] == status
                && condition["reason"] == reason
                && condition["message"].as_str().is_some_and(|text| text.contains(message))
        })
        .await;
    }

    /// Waits until `status.targets` has an entry for a machine with this state and reason, and gives it.
    pub(crate) async fn target(&self, policy: &str, id: &str, state: &str, reason: &str) -> Value {
        let found = self
            .until(&format!("has {id} {state} {reason}"), policy, |found| {
                let target = target(found, id);
                target["state"] == state && target["reason"] == reason
            })
            .await;
        target(&found, id)
    }

    pub(crate) async fn passes(&self, source: &str, destination: &str, port: u16) -> bool {
        self.ground.play.stage.simulator.probe(source, destination, port, "Tcp").await.unwrap().allowed
    }

    /// Waits until packets pass, or no longer do.
    pub(crate) async fn until_passes(&self, source: &str, destination: &str, port: u16, wanted: bool) {
        let what = format!("packets from {source} to {destination}:{port} pass: {wanted}");
        let result = eventually(&what, PATIENCE, || async {
            let verdict = self.ground.play.stage.simulator.probe(source, destination, port, "Tcp").await?;
            anyhow::ensure!(verdict.allowed == wanted, "{:?}", verdict.decided_by);
            Ok::<_, anyhow::Error>(())
        })
        .await;
        result.unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// When, since `from`, packets would have got through.
    pub(crate) async fn exposed(
        &self,
        source: &str,
        destination: &str,
        port: u16,
        from: Timestamp,
    ) -> Vec<(Timestamp, Option<Timestamp>)> {
        let question = json!({
            "source": source, "destination": destination, "port": port, "protocol": "Tcp",
            "from": from.to_string(),
        });
        let answer = self.control("exposure", &question).await;
        let time = |value: &Value| value.as_str().map(|text| text.parse().unwrap());
        let intervals = answer["intervals"].as_array().unwrap();
        intervals.iter().map(|interval| (time(&interval["from"]).unwrap(), time(&interval["to"]))).collect()
    }

    /// Waits until an Event tells of something.
    pub(crate) async fn event(&self, reason: &str, note: &str) {
        let heard = std::sync::Mutex::new(Vec::new());
        let told = eventually(&format!("an event {reason} that says {note:?}"), PATIENCE, || async {
            let events = self.admin().json(&["-n", self.namespace, "events.events.k8s.io"]).await?;
            let told: Vec<String> = events["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter(|event| event["reason"] == reason)
                .map(|event| event["note"].as_str().unwrap_or_default().to_owned())
                .collect();
            let found = told.iter().any(|told| told.contains(note));
            *heard.lock().unwrap() = told;
            anyhow::ensure!(found, "no such event");
            Ok::<_, anyhow::Error>(())
        })
        .await;
        told.unwrap_or_else(|error| panic!("{error:#}: {:#?}", heard.lock().unwrap()));
    }

    /// The PUTs to paths like this, answered or refused, in their order.
    pub(crate) async fn tries(&self, path: &str) -> Vec<Value> {
        let log = self.ground.play.stage.simulator.control(Method::GET, "activity?method=PUT", None).await;
        let pattern = regex::RegexBuilder::new(path).case_insensitive(true).build().unwrap();
        let mut entries = log.unwrap()["value"].as_array().unwrap().clone();
        entries.retain(|entry| pattern.is_match(entry["path"].as_str().unwrap()));
        entries
    }

    /// Rounds of drift check and inventory, so that what would be undone is undone by then.
    pub(crate) async fn some_rounds(&self) {
        tokio::time::sleep(Duration::from_secs(4)).await;
    }
}

/// Entries for machines, each under its own name.
pub(crate) fn targets(machines: &[&Vm]) -> Value {
    machines.iter().map(|vm| json!({"name": vm.name, "azureVirtualMachine": {"id": vm.id}})).collect()
}

pub(crate) fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    conditions.into_iter().flatten().find(|found| found["type"] == kind).cloned().unwrap_or_default()
}

pub(crate) fn target(policy: &Value, id: &str) -> Value {
    let targets = policy.pointer("/status/targets").and_then(Value::as_array);
    let same = |found: &&Value| found["id"].as_str().is_some_and(|text| text.eq_ignore_ascii_case(id));
    targets.into_iter().flatten().find(same).cloned().unwrap_or_default()
}
