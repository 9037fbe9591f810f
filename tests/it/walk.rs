//! The main job as a user sees it: kubectl on the one side, packets on the other. Real API server, the program
//! itself as its service account, the Azure simulator. What counts is what would have got through, over all the
//! time that the test took, not which calls were made.

use std::time::Duration;

use anyhow::Context;
use portcullis_harness::stage::StageOptions;
use portcullis_harness::{Controller, Kubectl, Lifetime, Stage, User, eventually, install};
use reqwest::Method;
use serde_json::{Value, json};

use jiff::Timestamp;

const REQUESTER: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.23";
/// From a deadline to the moment that packets stop: the write to the simulator and the time until the worker runs.
const BOUND: Duration = Duration::from_secs(8);

/// The stage and those who play on it.
pub(crate) struct Play {
    pub(crate) stage: Stage,
    pub(crate) admin: Kubectl,
    pub(crate) developer: Kubectl,
}

impl Play {
    pub(crate) async fn new() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let stage = Stage::start(StageOptions::default(), |_| {}).await.unwrap();
        let (admin, developer) =
            (stage.plane.kubectl(User::Admin).unwrap(), stage.plane.kubectl(User::Developer).unwrap());
        Self { stage, admin, developer }
    }

    pub(crate) async fn controller(&self) -> Controller {
        self.stage.start_controller(Lifetime::Leashed).await.unwrap()
    }

    /// A policy over targets, given as the YAML of `spec`.
    pub(crate) async fn policy(&self, name: &str, spec: &Value) {
        let policy = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy",
            "metadata": {"name": name, "namespace": install::NAMESPACE}, "spec": spec,
        });
        self.admin.apply(&policy.to_string()).await.unwrap();
    }

    pub(crate) fn one_machine(&self, machine: &str) -> Value {
        let id = &self.stage.world.machine(machine).unwrap().id;
        json!({"targets": [{"name": machine, "azureVirtualMachine": {"id": id}}]})
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
            "metadata": {"name": name, "namespace": install::NAMESPACE},
            "spec": {
                "policyRef": {"name": policy}, "targets": [{"name": target}], "duration": duration,
                "ports": [{"port": port, "sources": [{"cidr": format!("{source}/32")}]}],
            },
        });
        self.developer.apply(&request.to_string()).await.unwrap();
    }

    pub(crate) async fn get(&self, object: &str) -> anyhow::Result<Value> {
        let found = self.stage.plane.object(install::NAMESPACE, object).await?;
        found.with_context(|| format!("{object} is not there"))
    }

    /// Waits until a field has a value, and shows the whole object where it never does.
    pub(crate) async fn reaches(&self, object: &str, pointer: &str, wanted: &str) -> Value {
        let result =
            eventually(&format!("{object}{pointer} is {wanted}"), Duration::from_secs(90), || async {
                let found = self.get(object).await?;
                let value = match found.pointer(pointer) {
                    Some(Value::String(text)) => text.clone(),
                    other => format!("{other:?}"),
                };
                anyhow::ensure!(value == wanted, "it is {value}: {:#}", found["status"]);
                Ok::<_, anyhow::Error>(found)
            })
            .await;
        result.unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Waits until a condition has a status, and gives its reason.
    pub(crate) async fn condition(&self, object: &str, kind: &str, status: &str) -> String {
        let what = format!("{object} has {kind}={status}");
        let result = eventually(&what, Duration::from_secs(90), || async {
            let found = self.get(object).await?;
            let conditions =
                found.pointer("/status/conditions").and_then(Value::as_array).cloned().unwrap_or_default();
            let condition = conditions.iter().find(|condition| condition["type"] == kind);
            anyhow::ensure!(
                condition.is_some_and(|condition| condition["status"] == status),
                "{:#}",
                found["status"]
            );
            Ok::<_, anyhow::Error>(
                condition.map(|condition| condition["reason"].as_str().unwrap_or("").to_owned()),
            )
        })
        .await;
        result.unwrap_or_else(|error| panic!("{error:#}")).unwrap_or_default()
    }

    pub(crate) async fn passes(&self, source: &str, machine: &str, port: u16) -> bool {
        let machine = self.stage.world.machine(machine).unwrap();
        let address = machine.public_address.as_ref().unwrap_or(&machine.private_address);
        self.stage.simulator.probe(source, address, port, "Tcp").await.unwrap().allowed
    }

    /// Waits until SSH from where requests come from no longer gets in to a machine.
    pub(crate) async fn until_shut(&self, machine: &str, within: Duration) {
        eventually(&format!("nothing gets in to {machine}"), within, || async {
            anyhow::ensure!(!self.passes(REQUESTER, machine, 22).await, "packets pass");
            Ok::<_, anyhow::Error>(())
        })
        .await
        .unwrap_or_else(|error| panic!("{error:#}"));
    }

    /// When, since `from`, packets would have got through.
    pub(crate) async fn exposed(
        &self,
        source: &str,
        machine: &str,
        port: u16,
        from: Timestamp,
    ) -> Vec<(Timestamp, Option<Timestamp>)> {
        let address = &self.stage.world.machine(machine).unwrap().private_address;
        let question = json!({
            "source": source, "destination": address, "port": port, "protocol": "Tcp", "from": from.to_string(),
        });
        let answer = self.stage.simulator.control(Method::POST, "exposure", Some(&question)).await.unwrap();
        let time = |value: &Value| value.as_str().map(|text| text.parse().unwrap());
        answer["intervals"]
            .as_array()
            .unwrap()
            .iter()
            .map(|interval| (time(&interval["from"]).unwrap(), time(&interval["to"])))
            .collect()
    }

    /// Names of the denies of ours that stand in a group.
    pub(crate) async fn locks(&self, group: &str) -> Vec<String> {
        let read = self.stage.simulator.get(group).await.unwrap();
        let rules = read["properties"]["securityRules"].as_array().cloned().unwrap_or_default();
        let names = rules.iter().filter_map(|rule| rule["name"].as_str());
        let ours = names.filter(|name| name.starts_with("portcullis-") && name.contains("-deny-"));
        ours.map(str::to_owned).collect()
    }

    /// Every rule of a network security group that is not ours, as ARM reads it.
    pub(crate) async fn foreign_rules(&self, group: &str, nsg: &str) -> Vec<Value> {
        let id = self.stage.world.nsg(group, nsg);
        let read = self.stage.simulator.get(&id).await.unwrap();
        let mut rules = read["properties"]["securityRules"].as_array().unwrap().clone();
        rules.retain(|rule| !rule["name"].as_str().unwrap().starts_with("portcullis-"));
        // The etag of a rule is its group's, which every write to the group changes.
        for rule in &mut rules {
            rule.as_object_mut().unwrap().remove("etag");
        }
        rules
    }
}

pub(crate) fn moment(object: &Value, pointer: &str) -> Timestamp {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn lock_request_open_expire_closed_and_no_packet_too_many() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    assert!(play.passes(REQUESTER, "web-1", 22).await && play.passes(STRANGER, "web-1", 22).await);
    let foreign = (play.foreign_rules("web", "web-subnet").await, play.foreign_rules("web", "web-1").await);

    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let policy = play.get("jitpol/web-1").await.unwrap();
    assert_eq!(policy["status"]["summary"]["machines"], "1/1");
    play.condition("jitpol/web-1", "LockdownEffective", "True").await;
    let locked = Timestamp::now();
    assert!(!play.passes(REQUESTER, "web-1", 22).await && !play.passes(STRANGER, "web-1", 22).await);
    // Peers inside the virtual network are shut out too, where the cloud's defaults would let them in.
    assert!(!play.passes("10.1.3.4", "web-1", 22).await);
    assert!(play.passes(STRANGER, "web-1", 443).await, "other ports are none of our business");

    play.request("mine", "web-1", "web-1", 22, REQUESTER, "30s").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    assert!(!play.passes(STRANGER, "web-1", 22).await);
    assert_eq!(request["spec"]["requester"]["username"], "developer");
    let machine = play.stage.world.machine("web-1").unwrap();
    assert_eq!(request["status"]["connections"][0]["address"], machine.public_address.clone().unwrap());
    assert_eq!(request["status"]["connections"][0]["port"], "22");
    assert_eq!(
        request["status"]["rules"].as_array().unwrap().len(),
        2,
        "both firewalls of the path are opened"
    );

    let request = play.reaches("jitreq/mine", "/status/state", "Expired").await;
    let request = if request["status"]["settled"] == true {
        request
    } else {
        play.reaches("jitreq/mine", "/status/settled", "Some(Bool(true))").await
    };
    assert!(!play.passes(REQUESTER, "web-1", 22).await);

    // Over all that time: nobody else, and the requester within the grant and the bound.
    assert_eq!(play.exposed(STRANGER, "web-1", 22, locked).await, []);
    let open = play.exposed(REQUESTER, "web-1", 22, locked).await;
    assert_eq!(open.len(), 1, "{open:?}");
    let (granted, expires) = (moment(&request, "/status/grantedAt"), moment(&request, "/status/expiresAt"));
    assert!(open[0].0 >= granted, "opened at {}, granted at {granted}", open[0].0);
    let closed = open[0].1.unwrap();
    assert!(
        closed.duration_since(expires).unsigned_abs() < BOUND,
        "closed at {closed}, the deadline was {expires}"
    );
    assert!(
        moment(&request, "/status/closedAt") >= closed,
        "success is a read-back after the packets stopped"
    );

    assert_eq!(
        foreign,
        (play.foreign_rules("web", "web-subnet").await, play.foreign_rules("web", "web-1").await),
        "rules of others are as they were, to the byte"
    );
    assert!(controller.stop().await.unwrap().success(), "{}", controller.log_text().unwrap());
}
