//! What happens in every cell of the matrix: ten scenarios at once, each on a machine of its own, and what is looked at
//! when they are over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::ensure;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::gateway::Gateway;
use crate::scenario::{GONE, GONE_PATH, Scenario};
use crate::verdict::is_over;
use portcullis_harness::control_plane::{User, write_private};
use portcullis_harness::controller::{Controller, Setup};
use portcullis_harness::install::{self, NAMESPACE};
use portcullis_harness::lending::{Lent, lend};
use portcullis_harness::process::Lifetime;
use portcullis_harness::simulator::{Simulator, SimulatorOptions};
use portcullis_harness::wait::eventually;
use portcullis_harness::wall_clock::WallClock;

/// Whoever is never let in.
pub const STRANGER: &str = "198.51.100.23";
/// How long a policy may take to lock, before the story goes on without it; and a request to open, where nothing goes
/// wrong: whatever the machine has to do besides, all of them are to be open then.
pub const PATIENCE: Duration = Duration::from_secs(75);
/// How long a request may take to open where something goes wrong.
pub const OPEN_PATIENCE: Duration = Duration::from_secs(25);
/// How long everything may take to come to its end once nothing goes wrong any more.
const END_PATIENCE: Duration = Duration::from_secs(150);

/// The controller, to the cloud.
pub const CLIENT: &str = "33333333-3333-3333-3333-333333333333";

/// What it may do there.
pub fn may_all() -> Value {
    json!([{"actions": ["*"], "scopes": ["/"]}])
}

/// A machine of the world.
#[derive(Debug, Clone)]
pub struct Machine {
    pub id: String,
    pub address: String,
}

/// Everything that a cell needs.
#[derive(Debug)]
pub struct Story {
    pub plane: Lent,
    pub simulator: Arc<Simulator>,
    pub gateway: Arc<Gateway>,
    setup: Setup,
    pub machines: BTreeMap<Scenario, Machine>,
    pub public: String,
    pub foreign: BTreeMap<String, Value>,
    pub locked: BTreeMap<Scenario, Timestamp>,
    /// When the end of a grant was asked for, by its request.
    pub asked: BTreeMap<String, Timestamp>,
    pub seen: BTreeMap<String, Value>,
    /// Whether a policy will soon be deleted: nobody puts back any more what is taken from its lock then.
    pub ending: Arc<AtomicBool>,
    /// That of the replicas, where it is to be set.
    pub wall_clock: Option<WallClock>,
    /// Where the replicas answer `/metrics`.
    metrics: Vec<String>,
}

impl Story {
    /// A control plane, a cloud, and a way between them and a controller that is not started yet.
    pub async fn prepare() -> anyhow::Result<Self> {
        let plane = lend().await?;
        install::grant_access(&plane, GONE).await?;
        let simulator = Arc::new(Simulator::start(SimulatorOptions::default()).await?);
        let gateway = Arc::new(Gateway::start(plane.server()).await?);
        let mut setup = Setup::new(&plane, &simulator).await?;
        setup.lifetime = Lifetime::Leashed;
        setup.awaits_admission = false;
        let subscription = simulator.announcement().subscription_id.clone();
        let scope = |group: &str| format!("/subscriptions/{subscription}/resourceGroups/{group}");
        setup.config["namespaces"] = json!([
            {"name": NAMESPACE, "credential": "default", "scopes": [scope("matrix"), scope("spoke")]},
            {"name": GONE, "credential": "default", "scopes": [scope("gone")]},
        ]);
        // No shorter: what is read each few seconds is to leave room for what is read for a grant, below the limits of
        // Resource Manager, which are those of a real one.
        for (interval, length) in [
            ("driftInterval", "3s"),
            ("sweepInterval", "3s"),
            ("inventoryInterval", "10s"),
            ("addressInterval", "10s"),
        ] {
            setup.config[interval] = json!(length);
        }
        setup.config["unfinishedWrites"] = json!("30s");
        // Another one than ours: what goes wrong for it is to go well for us.
        let principal = json!({"clientId": CLIENT, "secrets": ["controller"], "permissions": may_all()});
        simulator.control(Method::POST, "principals", Some(&principal)).await?;
        let secret = setup.folder.join("own-secret");
        write_private(&secret, "controller")?;
        setup.config["credentials"][0]["clientSecret"]["clientId"] = json!(CLIENT);
        setup.config["credentials"][0]["clientSecret"]["secretFile"] = json!(secret);
        let copy = setup.folder.join("kubeconfig");
        setup.kubeconfig = gateway.kubeconfig(&setup.kubeconfig, &copy)?;
        let mut story = Self {
            plane,
            simulator,
            gateway,
            setup,
            machines: BTreeMap::new(),
            public: String::new(),
            foreign: BTreeMap::new(),
            locked: BTreeMap::new(),
            asked: BTreeMap::new(),
            seen: BTreeMap::new(),
            ending: Arc::default(),
            wall_clock: None,
            metrics: Vec::new(),
        };
        story.build().await?;
        Ok(story)
    }

    /// Gives replicas that are still to come a wall clock that can be set.
    pub fn set_up_wall_clock(&mut self) -> anyhow::Result<()> {
        let clock = WallClock::new(&self.setup.folder)?;
        self.setup.environment = clock.environment();
        self.wall_clock = Some(clock);
        Ok(())
    }

    /// One more controller, as a pod of its own.
    pub fn replica(&mut self) -> anyhow::Result<Controller> {
        let mut setup = self.setup.clone();
        setup.folder = setup.folder.with_file_name(format!("replica-{:08x}", rand::random::<u32>()));
        std::fs::create_dir_all(&setup.folder)?;
        let [probes, metrics] = portcullis_harness::ports::free()?.map(|port| format!("127.0.0.1:{port}"));
        setup.config["healthAddress"] = json!(probes);
        setup.config["metricsAddress"] = json!(metrics);
        self.metrics.push(metrics.clone());
        (setup.probes, setup.metrics) = (probes, metrics);
        Controller::start_unready(setup)
    }

    async fn send(&self, user: User, method: Method, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.plane.request_by(user, method, path, Some(body)).await
    }

    pub fn path(scenario: Scenario, kind: &str) -> String {
        format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{}/{kind}", scenario.namespace())
    }

    /// Locks every machine, and waits until they are locked.
    pub async fn lock(&mut self) -> anyhow::Result<()> {
        for scenario in Scenario::ALL {
            let machine = &self.machines[&scenario];
            let policy = json!({
                "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy", "metadata": {"name": scenario.name()},
                "spec": {
                    "targets": [{"name": "it", "azureVirtualMachine": {"id": machine.id}}],
                    "ports": [{"port": 22, "maxDuration": "1h"}], "limits": {"activePerRequester": 100},
                },
            });
            self.send(User::Admin, Method::POST, &Self::path(scenario, "jitpolicies"), &policy).await?;
        }
        let begun = Instant::now();
        while self.locked.len() < Scenario::ALL.len() && begun.elapsed() < PATIENCE {
            for scenario in
                Scenario::ALL.into_iter().filter(|one| !self.locked.contains_key(one)).collect::<Vec<_>>()
            {
                let path = format!("{}/{}", Self::path(scenario, "jitpolicies"), scenario.name());
                let policy = self.plane.request(Method::GET, &path, None).await?;
                let ready = policy["status"]["conditions"].as_array().is_some_and(|all| {
                    all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True")
                });
                if ready {
                    self.locked.insert(scenario, Timestamp::now());
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let missing: Vec<_> =
            Scenario::ALL.into_iter().filter(|one| !self.locked.contains_key(one)).collect();
        ensure!(missing.is_empty(), "not locked: {missing:?}");
        Ok(())
    }

    /// Waits until what is created counts.
    pub async fn counts(&self) -> anyhow::Result<()> {
        let client = reqwest::Client::builder().no_proxy().build()?;
        let counts = || async {
            for address in &self.metrics {
                let said = client.get(format!("http://{address}/metrics")).send().await?.text().await?;
                if said.lines().any(|line| line == "portcullis_admission_in_force 1") {
                    return Ok(());
                }
            }
            anyhow::bail!("no replica says so")
        };
        eventually("requests count", PATIENCE, counts).await
    }

    pub async fn request(
        &self,
        scenario: Scenario,
        name: &str,
        duration: &str,
        source: &str,
    ) -> anyhow::Result<()> {
        let request = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest", "metadata": {"name": name},
            "spec": {"policyRef": {"name": scenario.name()}, "targets": [{"name": "it"}], "duration": duration,
                "ports": [{"port": 22, "sources": [{"cidr": format!("{source}/32")}]}]},
        });
        self.send(User::Developer, Method::POST, &Self::path(scenario, "jitaccessrequests"), &request)
            .await?;
        Ok(())
    }

    /// Makes the requests, once they count.
    async fn ask(&self) -> anyhow::Result<()> {
        self.counts().await?;
        for scenario in Scenario::ALL {
            for (name, duration, source) in scenario.requests() {
                self.request(scenario, &name, duration, source).await?;
            }
        }
        Ok(())
    }

    /// Asks, waits until it is open, or for `patience`, then a while longer, has it end, and waits until all of it is
    /// over. `until`: when what goes wrong is over.
    pub async fn live(
        &mut self,
        (patience, pause): (Duration, Duration),
        until: impl Future<Output = ()>,
    ) -> anyhow::Result<()> {
        self.ask().await?;
        let begun = Instant::now();
        while begun.elapsed() < patience {
            self.look().await?;
            // The shortest may have ended before the last is open.
            let done = |request: &Value| {
                let status = &request["status"];
                status["state"] == "Active" || status["settled"] == true
            };
            if self.seen.values().all(done) {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
        self.ending.store(true, Ordering::SeqCst);
        tokio::time::sleep(pause).await;
        self.look().await?;
        self.end().await?;
        until.await;
        let begun = Instant::now();
        while begun.elapsed() < END_PATIENCE {
            self.look().await?;
            if self.seen.values().all(is_over)
                && self.plane.request(Method::GET, GONE_PATH, None).await.is_err()
            {
                break;
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        Ok(())
    }

    /// Asks for the end of what does not end by itself.
    async fn end(&mut self) -> anyhow::Result<()> {
        for scenario in [Scenario::Ended, Scenario::Revoked] {
            let name = scenario.name();
            let uid = self.seen.get(name).map(|request| request["metadata"]["uid"].clone());
            let (verdict, user) = if scenario == Scenario::Ended {
                ("Ended", User::Developer)
            } else {
                ("Revoked", User::Approver)
            };
            let review = json!({
                "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview", "metadata": {"name": name},
                "spec": {"requestRef": {"name": name, "uid": uid}, "policyRef": {"name": name}, "verdict": verdict},
            });
            self.send(user, Method::POST, &Self::path(scenario, "jitaccessreviews"), &review).await?;
            self.asked.insert(name.to_owned(), Timestamp::now());
        }
        let policies = Self::path(Scenario::Tightened, "jitpolicies");
        let path = format!("{policies}/{}", Scenario::Tightened.name());
        // Its status moves under us: as kubectl edit does it, again.
        for _ in 0..20 {
            let mut policy = self.plane.request(Method::GET, &path, None).await?;
            policy["spec"]["ports"][0]["maxDuration"] = json!("35s");
            if self.send(User::Admin, Method::PUT, &path, &policy).await.is_ok() {
                self.asked.insert(Scenario::Tightened.name().to_owned(), Timestamp::now());
                break;
            }
        }
        self.plane
            .request(Method::DELETE, &format!("{policies}/{}", Scenario::PolicyDeleted.name()), None)
            .await?;
        self.asked.insert(Scenario::PolicyDeleted.name().to_owned(), Timestamp::now());
        // Before: it is gone, and its address unlocked, before the answer comes.
        self.asked.insert(Scenario::MachineDeleted.name().to_owned(), Timestamp::now());
        self.simulator.delete(&self.machines[&Scenario::MachineDeleted].id).await?;
        self.plane.request(Method::DELETE, GONE_PATH, None).await?;
        self.asked.insert(Scenario::NamespaceDeleted.name().to_owned(), Timestamp::now());
        let path =
            format!("{}/{}", Self::path(Scenario::Firewall, "jitaccessrequests"), Scenario::Firewall.name());
        self.plane.request(Method::DELETE, &path, None).await?;
        self.asked.insert(Scenario::Firewall.name().to_owned(), Timestamp::now());
        Ok(())
    }

    /// Reads every request; one that is gone stays as it was seen last.
    async fn look(&mut self) -> anyhow::Result<()> {
        for (namespace, scenario) in [(NAMESPACE, Scenario::Lock), (GONE, Scenario::NamespaceDeleted)] {
            let list =
                self.plane.request(Method::GET, &Self::path(scenario, "jitaccessrequests"), None).await?;
            let mut present = BTreeSet::new();
            for item in list["items"].as_array().into_iter().flatten() {
                let name = item["metadata"]["name"].as_str().unwrap_or_default().to_owned();
                present.insert(name.clone());
                self.seen.insert(name, item.clone());
            }
            for (name, request) in &mut self.seen {
                if request["metadata"]["namespace"] == namespace && !present.contains(name) {
                    request["gone"] = json!(true);
                }
            }
        }
        Ok(())
    }
}
