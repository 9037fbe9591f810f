//! The loops on the real API server, with the cloud in memory: what people apply, and what the cloud then holds.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use portcullis::api::values::ArmId;
use portcullis::clock::Clock;
use portcullis::controllers::connection::Connection;
use portcullis::controllers::tenancy::{Tenancy, Tenant};
use portcullis::controllers::{self, Settings};
use portcullis::plan::model::{Access, Address, FirewallId, Hop, Machine, NetworkView, Nic, Os, Peer, Rule};
use portcullis::plan::names::Cluster;
use portcullis::plan::people::Pipelines;
use portcullis::providers::memory::Memory;
use portcullis::telemetry::{Audit, Health, Metrics, Telemetry};
use portcullis_harness::{Kubectl, Lent, User, eventually, install};
use serde_json::Value;
use tokio_util::sync::CancellationToken;

mod caches;

const GROUP: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups";

fn machine(group: &str, name: &str, last: u8) -> Machine {
    let network = format!("{GROUP}/{group}/providers/Microsoft.Network");
    let id = |text: String| ArmId::parse(&text).unwrap();
    Machine {
        id: id(format!("{GROUP}/{group}/providers/Microsoft.Compute/virtualMachines/{name}")),
        vm_id: format!("vm-{name}"),
        os: Os::Linux,
        tags: BTreeMap::from([("role".to_owned(), "web".to_owned())]),
        nics: vec![Nic {
            id: id(format!("{network}/networkInterfaces/{name}")),
            addresses: vec![Address {
                ip: std::net::IpAddr::from([10, 0, 0, last]),
                public: None,
                has_public: false,
                path: vec![firewall(group, "subnet"), firewall(group, "nic")],
                hops: vec![Hop::Appliance {
                    address: std::net::IpAddr::from([10, 9, 0, 4]),
                    why: "of somebody else".to_owned(),
                }],
                groups: Vec::new(),
                network: NetworkView::default(),
            }],
        }],
    }
}

fn firewall(group: &str, name: &str) -> FirewallId {
    FirewallId(
        ArmId::parse(&format!("{GROUP}/{group}/providers/Microsoft.Network/networkSecurityGroups/{name}"))
            .unwrap(),
    )
}

/// The loops, a control plane and a cloud of their own.
struct Bench {
    namespace: String,
    plane: Lent,
    cloud: Memory,
    admin: Kubectl,
    developer: Kubectl,
    shutdown: CancellationToken,
    task: Option<tokio::task::JoinHandle<()>>,
    start: Box<dyn Fn(CancellationToken) -> tokio::task::JoinHandle<()> + Send + Sync>,
}

/// Where a call to the API server goes instead; none: where it is meant to go.
type Detour = fn(&axum::http::Uri) -> Option<String>;

impl Bench {
    async fn new(namespace: &str) -> Self {
        Self::with_detour(namespace, |_| None, &Arc::default()).await
    }

    /// With an API server that serves something else in place of some calls, while `on`.
    async fn with_detour(namespace: &str, detour: Detour, on: &Arc<AtomicBool>) -> Self {
        let _ = tracing_subscriber::fmt()
            .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
            .with_test_writer()
            .try_init();
        let _ = rustls::crypto::ring::default_provider().install_default();
        // A control plane for itself: there is one controller to a cluster.
        let plane = portcullis_harness::lend().await.unwrap();
        install::grant_access(&plane, namespace).await.unwrap();
        let cloud = Memory::new(Clock::system());
        for name in ["subnet", "nic"] {
            cloud.add_firewall(firewall(namespace, name));
        }
        cloud.set_machine(machine(namespace, "web-1", 4));
        let kubeconfig =
            plane.service_account_kubeconfig(install::CONTROLLER.0, install::CONTROLLER.1).await.unwrap();
        let kubeconfig = kube::config::Kubeconfig::read_from(kubeconfig).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &Default::default()).await.unwrap();
        let on = Arc::clone(on);
        let layer =
            tower::util::MapRequestLayer::new(move |mut call: axum::http::Request<kube::client::Body>| {
                if on.load(Ordering::SeqCst)
                    && let Some(instead) = detour(call.uri())
                {
                    *call.uri_mut() = instead.parse().unwrap();
                }
                call
            });
        let client = kube::client::ClientBuilder::try_from(config).unwrap().with_layer(&layer).build();
        let tenancy = Tenancy::new(BTreeMap::from([(
            namespace.to_owned(),
            Tenant {
                scopes: vec![ArmId::parse(&format!("{GROUP}/{namespace}")).unwrap()],
                credential: "main".into(),
            },
        )]))
        .unwrap();
        let settings = Settings {
            cluster: Cluster::new(namespace, &[]),
            tenancy,
            pipelines: Pipelines::default(),
            allowed_exempt_sources: vec![Peer::Tag("AzureLoadBalancer".into())],
            drift_interval: Duration::from_secs(2),
            inventory_interval: Duration::from_secs(2),
            request_retention: Duration::from_secs(8),
            sweep_interval: Duration::from_secs(2),
            address_interval: Duration::from_secs(2),
            honour_denies_below: 1000,
            max_allows_per_firewall: 200,
            concurrency: 8,
            dry_run: false,
            admission: controllers::admission::Settings {
                controller_user: portcullis::api::admission::CONTROLLER_USER.to_owned(),
                namespace: install::CONTROLLER.0.to_owned(),
                margin: Duration::from_secs(1),
            },
            leader: controllers::leader::Settings {
                namespace: install::CONTROLLER.0.to_owned(),
                identity: namespace.to_owned(),
                times: portcullis::plan::lease::Times::default(),
            },
            unfinished_writes: Duration::from_secs(5),
        };
        let memory = cloud.clone();
        let start = move |shutdown: CancellationToken| {
            let clouds = BTreeMap::from([("main".to_owned(), memory.cloud())]);
            let (client, settings) = (client.clone(), settings.clone());
            tokio::spawn(async move {
                let clock = Clock::system();
                let api_server = Connection { client, server: clock.server() };
                let telemetry =
                    Telemetry { metrics: Metrics::new(), health: Health::new(), audit: Audit::off() };
                controllers::run(api_server, settings, clouds, telemetry, clock, shutdown).await.unwrap();
            })
        };
        let shutdown = CancellationToken::new();
        let task = Some(start(shutdown.clone()));
        install::counted(&plane).await.unwrap();
        Self {
            namespace: namespace.to_owned(),
            cloud,
            admin: plane.kubectl(User::Admin).unwrap(),
            developer: plane.kubectl(User::Developer).unwrap(),
            task,
            shutdown,
            start: Box::new(start),
            plane,
        }
    }

    /// Ends the loops at once, as a crash would, and starts new ones.
    fn crash(&mut self) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.shutdown.cancel();
        self.shutdown = CancellationToken::new();
        self.task = Some((self.start)(self.shutdown.clone()));
    }

    async fn apply_policy(&self, name: &str, more: &str) {
        let (namespace, group) = (&self.namespace, &self.namespace);
        let policy = format!(
            "apiVersion: jit.portcullis.io/v1alpha1\nkind: JitPolicy\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  targets:\n    - name: web-1\n      azureVirtualMachine: {{id: {GROUP}/{group}/providers/Microsoft.Compute/virtualMachines/web-1}}\n{more}"
        );
        self.admin.apply(&policy).await.unwrap();
    }

    async fn request(&self, name: &str, source: &str, duration: &str) {
        let namespace = &self.namespace;
        let request = format!(
            "apiVersion: jit.portcullis.io/v1alpha1\nkind: JitAccessRequest\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n  policyRef: {{name: web}}\n  targets: [{{name: web-1}}]\n  ports: [{{port: 22, sources: [{{cidr: {source}}}]}}]\n  duration: {duration}\n"
        );
        self.developer.apply(&request).await.unwrap();
    }

    /// A field of an object, by its JSON pointer, as text; empty where it is not there. Conditions go by their types.
    async fn get(&self, object: &str, pointer: &str) -> anyhow::Result<String> {
        let found = self.plane.object(&self.namespace, object).await?;
        let mut found = found.with_context(|| format!("{object} is not there"))?;
        if let Some(conditions) = found.pointer_mut("/status/conditions") {
            let by_type =
                |condition: &Value| Some((condition["type"].as_str()?.to_owned(), condition.clone()));
            let list = conditions.as_array().into_iter().flatten();
            *conditions = list.filter_map(by_type).collect::<serde_json::Map<_, _>>().into();
        }
        Ok(match found.pointer(pointer) {
            None => String::new(),
            Some(Value::String(text)) => text.clone(),
            Some(other) => other.to_string(),
        })
    }

    async fn reaches(&self, object: &str, path: &str, wanted: &str) {
        let within = Duration::from_secs(20);
        let result = eventually(&format!("{object} {path} is {wanted}"), within, || async {
            let value = self.get(object, path).await?;
            anyhow::ensure!(value.trim() == wanted, "it is {value:?}");
            Ok::<_, anyhow::Error>(())
        })
        .await;
        if let Err(error) = result {
            let all = self.admin.run(&["-n", &self.namespace, "get", object, "-o", "yaml"]).await;
            panic!(
                "{error:#}\n{}\nrules: {:#?}",
                all.unwrap_or_default(),
                self.cloud.rules(&firewall(&self.namespace, "nic"))
            );
        }
    }

    async fn is_gone(&self, object: &str) {
        let within = Duration::from_secs(20);
        let result = eventually(&format!("{object} is gone"), within, || async {
            let left = self.plane.object(&self.namespace, object).await?;
            anyhow::ensure!(left.is_none(), "{:#}", left.unwrap_or_default());
            Ok::<_, anyhow::Error>(())
        })
        .await;
        if let Err(error) = result {
            panic!("{error:#}");
        }
    }

    fn rules(&self, access: Access) -> Vec<Rule> {
        ["subnet", "nic"]
            .iter()
            .flat_map(|name| self.cloud.rules(&firewall(&self.namespace, name)))
            .filter(|rule| rule.access == access)
            .collect()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        // Before the control plane goes to another test.
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.shutdown.cancel();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_policy_locks_a_request_opens_and_expiry_closes() {
    let bench = Bench::new("walk").await;
    bench.apply_policy("web", "").await;
    bench.reaches("jitpol/web", "/status/targets/0/state", "Configured").await;
    assert_eq!(bench.rules(Access::Deny).len(), 2, "one deny on each firewall of the path");
    for (place, kind, id, enforced) in [
        (0, "VirtualAppliance", "10.9.0.4".to_owned(), "false"),
        (1, "NetworkSecurityGroup", firewall("walk", "nic").to_string(), "true"),
        (2, "NetworkSecurityGroup", firewall("walk", "subnet").to_string(), "true"),
    ] {
        let at = format!("/status/targets/0/path/{place}");
        for (field, wanted) in [("kind", kind), ("id", &id), ("enforced", enforced)] {
            assert_eq!(bench.get("jitpol/web", &format!("{at}/{field}")).await.unwrap().trim(), wanted);
        }
    }
    bench.request("one", "203.0.113.7/32", "30s").await;
    bench.reaches("jitreq/one", "/status/state", "Active").await;
    let allows = bench.rules(Access::Allow);
    assert_eq!(allows.len(), 2);
    assert!(allows.iter().all(|rule| rule.sources == [Peer::Net("203.0.113.7/32".parse().unwrap())]));
    assert_eq!(bench.get("jitreq/one", "/spec/requester/username").await.unwrap().trim(), "developer");
    tokio::time::sleep(Duration::from_secs(25)).await;
    bench.reaches("jitreq/one", "/status/state", "Expired").await;
    bench.reaches("jitreq/one", "/status/settled", "true").await;
    assert!(bench.rules(Access::Allow).is_empty());
    assert_eq!(bench.rules(Access::Deny).len(), 2);
    assert_eq!(bench.cloud.overlaps(), 0, "writes of one firewall are serial");
}

#[tokio::test(flavor = "multi_thread")]
async fn deleting_a_request_closes_at_once_and_a_crash_in_between_does_not_matter() {
    let mut bench = Bench::new("deleted").await;
    bench.apply_policy("web", "").await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/state", "Active").await;
    bench.crash();
    bench.developer.run(&["-n", "deleted", "delete", "jitreq", "one", "--wait=false"]).await.unwrap();
    bench.is_gone("jitreq/one").await;
    assert!(bench.rules(Access::Allow).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stripped_finalizer_takes_the_object_away_and_not_the_duty() {
    let mut bench = Bench::new("stripped").await;
    bench.apply_policy("web", "").await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/state", "Active").await;
    // While the controller is down, somebody with the controller's own rights takes the object away.
    bench.shutdown.cancel();
    if let Some(task) = bench.task.take() {
        let _ = task.await;
    }
    let plane = &bench.plane;
    let own = plane.service_account_kubeconfig(install::CONTROLLER.0, install::CONTROLLER.1).await.unwrap();
    let own = plane.kubectl_with(&own);
    own.run(&[
        "-n",
        "stripped",
        "patch",
        "jitreq",
        "one",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ])
    .await
    .unwrap();
    bench.admin.run(&["-n", "stripped", "delete", "jitreq", "one"]).await.unwrap();
    assert_eq!(bench.rules(Access::Allow).len(), 2);
    bench.crash();
    eventually("the orphans are closed", Duration::from_secs(20), || async {
        let left = bench.rules(Access::Allow).len();
        anyhow::ensure!(left == 0, "{left} allows are left");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_allow_ends_its_grant_and_a_removed_deny_is_put_back() {
    let bench = Bench::new("drift").await;
    bench.apply_policy("web", "").await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/state", "Active").await;
    bench.cloud.edit_rules(&firewall("drift", "nic"), |rules| rules.clear());
    bench.reaches("jitreq/one", "/status/state", "Ended").await;
    assert!(bench.rules(Access::Allow).is_empty(), "the other firewall's allow is gone too");
    eventually("the deny is back", Duration::from_secs(20), || async {
        let denies = bench.rules(Access::Deny).len();
        anyhow::ensure!(denies == 2, "{denies} denies");
        let events = bench
            .admin
            .run(&["-n", "drift", "get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"])
            .await?;
        anyhow::ensure!(events.contains("Drift"), "no event tells of it: {events}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn suspending_a_policy_closes_its_grants_and_keeps_its_locks() {
    let bench = Bench::new("suspended").await;
    bench.apply_policy("web", "").await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/state", "Active").await;
    bench.apply_policy("web", "  suspend: true\n").await;
    bench.reaches("jitreq/one", "/status/state", "Revoked").await;
    assert!(bench.rules(Access::Allow).is_empty());
    assert_eq!(bench.rules(Access::Deny).len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_policy_keeps_its_lock_or_takes_it_along_as_it_says() {
    let bench = Bench::new("gone").await;
    bench.apply_policy("web", "").await;
    bench.reaches("jitpol/web", "/status/targets/0/state", "Configured").await;
    bench.admin.run(&["-n", "gone", "delete", "jitpol", "web", "--timeout=20s"]).await.unwrap();
    assert_eq!(bench.rules(Access::Deny).len(), 2, "Retain is the default");
    bench.apply_policy("web", "  deletionPolicy: Unlock\n").await;
    bench.reaches("jitpol/web", "/status/targets/0/state", "Configured").await;
    eventually("the retained lock is adopted", Duration::from_secs(20), || async {
        let denies = bench.rules(Access::Deny).len();
        anyhow::ensure!(denies == 2, "{denies} denies");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    bench.admin.run(&["-n", "gone", "delete", "jitpol", "web", "--timeout=20s"]).await.unwrap();
    assert!(bench.rules(Access::Deny).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_its_policy_waits_says_so_and_goes_on() {
    let bench = Bench::new("early").await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/conditions/Approved/reason", "PolicyNotFound").await;
    bench.apply_policy("web", "").await;
    bench.reaches("jitreq/one", "/status/state", "Active").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_without_a_scope_reaches_nothing() {
    let bench = Bench::new("mapped").await;
    install::grant_access(&bench.plane, "unmapped").await.unwrap();
    let policy = format!(
        "apiVersion: jit.portcullis.io/v1alpha1\nkind: JitPolicy\nmetadata: {{name: web, namespace: unmapped}}\nspec:\n  targets:\n    - name: web-1\n      azureVirtualMachine: {{id: {GROUP}/mapped/providers/Microsoft.Compute/virtualMachines/web-1}}\n"
    );
    bench.admin.apply(&policy).await.unwrap();
    eventually("the policy is stalled", Duration::from_secs(20), || async {
        let path = r#"jsonpath={.status.conditions[?(@.type=="Stalled")].reason}"#;
        let reason = bench.admin.run(&["-n", "unmapped", "get", "jitpol", "web", "-o", path]).await?;
        anyhow::ensure!(reason.trim() == "ScopeNotAllowed", "{reason}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    assert!(bench.rules(Access::Deny).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_review_is_answered_and_history_goes_in_time_but_for_what_others_keep() {
    let bench = Bench::new("history").await;
    bench.apply_policy("web", "").await;
    for (name, duration) in [("one", "30s"), ("kept", "30s"), ("open", "1h")] {
        bench.request(name, "203.0.113.7/32", duration).await;
        bench.reaches(&format!("jitreq/{name}"), "/status/state", "Active").await;
    }
    let review = async |name: &str, request: &str, verdict: &str| {
        let uid = match bench.get(&format!("jitreq/{request}"), "/metadata/uid").await {
            Ok(uid) => uid.trim().to_owned(),
            Err(_) => "00000000-1111-4222-8333-444444444444".to_owned(),
        };
        let review = format!(
            "apiVersion: jit.portcullis.io/v1alpha1\nkind: JitAccessReview\nmetadata: {{name: {name}, namespace: history}}\nspec:\n  requestRef: {{name: {request}, uid: {uid}}}\n  policyRef: {{name: web}}\n  planHash: {}\n  verdict: {verdict}\n",
            "a".repeat(64)
        );
        bench.admin.apply(&review).await.unwrap();
    };
    for (name, request, verdict) in [
        ("done", "one", "Ended"),
        ("of-kept", "kept", "Ended"),
        ("tracked", "one", "Ended"),
        ("of-nothing", "never-was", "Ended"),
        ("of-open", "open", "Approved"),
    ] {
        review(name, request, verdict).await;
    }
    bench.reaches("jitrev/done", "/status/counted", "true").await;
    let reason = bench.get("jitrev/done", "/status/reason").await.unwrap();
    assert!(reason.contains("ends the request"), "{reason}");
    // Settled, though its request is not.
    bench.reaches("jitrev/of-open", "/status/settled", "true").await;

    let argo = "argocd.argoproj.io/tracking-id=app:jit/JitAccessRequest:history/kept";
    bench.admin.run(&["-n", "history", "annotate", "jitreq", "kept", argo]).await.unwrap();
    let flux = "kustomize.toolkit.fluxcd.io/name=team";
    bench.admin.run(&["-n", "history", "label", "jitrev", "tracked", flux]).await.unwrap();
    // What is marked right now may have been settled and looked at already: the retention of the bench is 8 s.
    bench.get("jitrev/tracked", "/metadata/name").await.unwrap();
    for gone in ["jitreq/one", "jitrev/done", "jitrev/of-kept", "jitrev/of-nothing"] {
        bench.is_gone(gone).await;
    }
    tokio::time::sleep(Duration::from_secs(12)).await;
    for kept in ["jitreq/kept", "jitrev/tracked", "jitreq/open", "jitrev/of-open"] {
        bench.get(kept, "/metadata/name").await.unwrap();
    }
    // And with its request it goes.
    bench.developer.run(&["-n", "history", "delete", "jitreq", "open"]).await.unwrap();
    bench.is_gone("jitrev/of-open").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_that_is_hard_to_read_hides_no_other() {
    let mut bench = Bench::new("poison").await;
    bench.apply_policy("web", "").await;
    bench.request("one", "203.0.113.7/32", "30s").await;
    bench.request("two", "203.0.113.8/32", "1h").await;
    for name in ["one", "two"] {
        bench.reaches(&format!("jitreq/{name}"), "/status/state", "Active").await;
    }
    // The API server takes it; a timestamp of ours ends a day before.
    let patch = r#"[{"op": "replace", "path": "/metadata/managedFields/0/time", "value": "9999-12-31T23:59:59Z"},
                    {"op": "add", "path": "/metadata/labels", "value": {"x": "y"}}]"#;
    bench
        .developer
        .run(&["-n", "poison", "patch", "jitreq", "two", "--type=json", "-p", patch])
        .await
        .unwrap();
    let times = ["-n", "poison", "get", "jitreq", "two", "--show-managed-fields", "-o", "yaml"];
    assert!(bench.admin.run(&times).await.unwrap().contains("9999-12-31"), "else the test proves nothing");
    bench.crash();
    tokio::time::sleep(Duration::from_secs(25)).await;
    bench.reaches("jitreq/one", "/status/state", "Expired").await;
    // And that object itself can be ended.
    bench.developer.run(&["-n", "poison", "delete", "jitreq", "two", "--wait=false"]).await.unwrap();
    bench.is_gone("jitreq/two").await;
    assert!(bench.rules(Access::Allow).is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_else_puts_a_finalizer_of_ours_on() {
    let bench = Bench::new("finalizers").await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/state", "Pending").await;
    let patch = r#"{"metadata": {"finalizers": ["jit.portcullis.io/for-ever"]}}"#;
    let refused = bench
        .developer
        .run(&["-n", "finalizers", "patch", "jitreq", "one", "--type=merge", "-p", patch])
        .await;
    let error = format!("{:#}", refused.unwrap_err());
    assert!(error.contains("are the controller's"), "{error}");
    bench.developer.run(&["-n", "finalizers", "delete", "jitreq", "one", "--wait=false"]).await.unwrap();
    bench.is_gone("jitreq/one").await;
}
