//! What happens in every cell of the matrix: ten scenarios at once, each on a machine of its own, and what is looked at
//! when they are over.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::gateway::Gateway;
use portcullis_harness::control_plane::{User, write_private};
use portcullis_harness::controller::{Controller, Setup};
use portcullis_harness::install::{self, NAMESPACE};
use portcullis_harness::lending::{Lent, lend};
use portcullis_harness::process::Lifetime;
use portcullis_harness::simulator::{Simulator, SimulatorOptions};
use portcullis_harness::wait::eventually;

/// What happens to a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    Lock,
    Expire,
    Overlap,
    Ended,
    Revoked,
    Tightened,
    PolicyDeleted,
    MachineDeleted,
    NamespaceDeleted,
    Firewall,
}

use Scenario::{
    Ended, Expire, Firewall, Lock, MachineDeleted, NamespaceDeleted, Overlap, PolicyDeleted, Revoked,
    Tightened,
};

impl Scenario {
    pub const ALL: [Self; 10] = [
        Lock,
        Expire,
        Overlap,
        Ended,
        Revoked,
        Tightened,
        PolicyDeleted,
        MachineDeleted,
        NamespaceDeleted,
        Firewall,
    ];

    /// As it stands in the table, and in the names of its objects.
    pub const fn name(self) -> &'static str {
        match self {
            Lock => "lock",
            Expire => "expire",
            Overlap => "overlap",
            Ended => "ended",
            Revoked => "revoked",
            Tightened => "tightened",
            PolicyDeleted => "policy-deleted",
            MachineDeleted => "machine-deleted",
            NamespaceDeleted => "namespace-deleted",
            Firewall => "firewall",
        }
    }

    const fn namespace(self) -> &'static str {
        if matches!(self, NamespaceDeleted) { GONE } else { NAMESPACE }
    }

    /// The requests: how long, and from where.
    fn requests(self) -> Vec<(String, &'static str, &'static str)> {
        let one = |duration| vec![(self.name().to_owned(), duration, "203.0.113.7")];
        match self {
            Lock => vec![],
            Expire => one("30s"),
            Overlap => vec![
                (format!("{}-a", self.name()), "30s", "203.0.113.7"),
                (format!("{}-b", self.name()), "38s", "203.0.113.8"),
            ],
            _ => one("1h"),
        }
    }
}

/// The namespace that is taken away.
const GONE: &str = "team-gone";
const GONE_PATH: &str = "/api/v1/namespaces/team-gone";
const STRANGER: &str = "198.51.100.23";
/// How long a policy may take to lock, and a request to open, before the story goes on without it.
const PATIENCE: Duration = Duration::from_secs(75);
const OPEN_PATIENCE: Duration = Duration::from_secs(25);
/// How long what stands may take to be as it is to be: a resource lock that was lifted is noticed within a minute.
const SETTLE_PATIENCE: Duration = Duration::from_secs(75);
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
struct Machine {
    id: String,
    address: String,
}

/// Everything that a cell needs.
#[derive(Debug)]
pub struct Story {
    pub plane: Lent,
    pub simulator: Arc<Simulator>,
    pub gateway: Arc<Gateway>,
    setup: Setup,
    machines: BTreeMap<Scenario, Machine>,
    public: String,
    foreign: BTreeMap<String, Value>,
    locked: BTreeMap<Scenario, Timestamp>,
    /// When the end of a grant was asked for, by its request.
    asked: BTreeMap<String, Timestamp>,
    seen: BTreeMap<String, Value>,
    /// Where the replicas answer `/metrics`.
    metrics: Vec<String>,
}

/// What was found wrong, by scenario.
#[derive(Debug, Default, Clone)]
pub struct Findings {
    pub wrong: Vec<(Scenario, String)>,
    /// Seconds that packets passed longer than they should, at most.
    pub late: f64,
    /// Requests that were open at some time.
    pub opened: usize,
    /// Rules that stand at the end, without what differs from run to run.
    pub end: BTreeSet<String>,
}

impl Findings {
    fn wrong(&mut self, scenario: Scenario, what: impl Into<String>) {
        self.wrong.push((scenario, what.into()));
    }
}

fn letter(scenario: Scenario) -> u8 {
    4 + u8::try_from(Scenario::ALL.iter().position(|one| *one == scenario).unwrap_or_default())
        .unwrap_or_default()
}

fn group(scenario: Scenario) -> &'static str {
    match scenario {
        NamespaceDeleted => "gone",
        Firewall => "spoke",
        _ => "matrix",
    }
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
        for interval in ["driftInterval", "inventoryInterval", "addressInterval", "sweepInterval"] {
            setup.config[interval] = json!("3s");
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
            metrics: Vec::new(),
        };
        story.build().await?;
        Ok(story)
    }

    async fn build(&mut self) -> anyhow::Result<()> {
        for scenario in Scenario::ALL {
            let (group, host) = (group(scenario), letter(scenario));
            let third = match group {
                "matrix" => 150,
                "gone" => 151,
                _ => 152,
            };
            let machine = json!({"name": scenario.name(), "resourceGroup": group, "network": format!("{group}-net"),
                "addressSpace": [format!("10.{third}.0.0/16")], "subnetPrefix": format!("10.{third}.0.0/24"),
                "subnetNsg": "net", "privateIp": format!("10.{third}.0.{host}")});
            let made = self.world(&json!({"machines": [machine]})).await?["machines"][0].clone();
            let text = |field: &str| made[field].as_str().map(str::to_owned).context("no such machine");
            self.machines.insert(scenario, Machine { id: text("id")?, address: text("privateIp")? });
        }
        let subscription = self.simulator.announcement().subscription_id.clone();
        let network = |group: &str, kind: &str, name: &str| {
            format!(
                "/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/{kind}/{name}"
            )
        };
        // A hub with a firewall, by whose routes the last machine is reached.
        let (hub, firewall) =
            (network("spoke", "virtualNetworks", "hub"), network("spoke", "azureFirewalls", "hub"));
        let (policy, address) =
            (network("spoke", "firewallPolicies", "rules"), network("spoke", "publicIPAddresses", "hub"));
        let spoke = network("spoke", "virtualNetworks", "spoke-net");
        self.world(&json!({"resources": [
            {"id": hub, "location": "westeurope", "properties": {"addressSpace": {"addressPrefixes": ["10.160.0.0/16"]},
                "subnets": [{"name": "AzureFirewallSubnet", "properties": {"addressPrefix": "10.160.1.0/26"}}]}},
            {"id": format!("{hub}/virtualNetworkPeerings/spoke"), "properties": {"remoteVirtualNetwork": {"id": spoke}}},
            {"id": format!("{spoke}/virtualNetworkPeerings/hub"), "properties": {"remoteVirtualNetwork": {"id": hub}}},
            {"id": address, "location": "westeurope", "sku": {"name": "Standard"}, "properties": {
                "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"}},
            {"id": policy, "location": "westeurope", "properties": {}},
            {"id": firewall, "location": "westeurope", "properties": {"firewallPolicy": {"id": policy},
                "ipConfigurations": [{"name": "public", "properties": {
                    "subnet": {"id": format!("{hub}/subnets/AzureFirewallSubnet")}, "publicIPAddress": {"id": address}}}]}},
        ]})).await?;
        let read =
            |value: Value, pointer: &str| value.pointer(pointer).and_then(Value::as_str).map(str::to_owned);
        self.public =
            read(self.simulator.get(&address).await?, "/properties/ipAddress").context("no address")?;
        let pointer = "/properties/ipConfigurations/0/properties/privateIPAddress";
        let hop = read(self.simulator.get(&firewall).await?, pointer).context("no hop")?;
        let table = network("spoke", "routeTables", "by-firewall");
        let route = json!({"name": "out", "properties": {
            "addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": hop}});
        let subnet = format!("{spoke}/subnets/default");
        self.world(&json!({"resources": [{"id": table, "location": "westeurope", "properties": {"routes": [route]}}]}))
            .await?;
        let subnets = self.simulator.get(&spoke).await?["properties"]["subnets"].clone();
        let subnet = subnets[0]["id"].as_str().map_or(subnet, str::to_owned);
        let mut body = self.simulator.get(&subnet).await?;
        body["properties"]["routeTable"] = json!({"id": table});
        self.simulator.put(&subnet, &body).await?;
        for group in ["matrix", "gone", "spoke"] {
            for (name, priority, port) in [("allow-ssh", 300, "22"), ("allow-web", 310, "443")] {
                let id = format!("{}/securityRules/{name}", network(group, "networkSecurityGroups", "net"));
                let rule = json!({"properties": {"direction": "Inbound", "access": "Allow", "priority": priority,
                    "protocol": "*", "sourceAddressPrefix": "*", "sourcePortRange": "*",
                    "destinationAddressPrefix": "*", "destinationPortRange": port}});
                self.simulator.put(&id, &rule).await?;
            }
        }
        self.foreign = self.foreign_rules().await?;
        Ok(())
    }

    async fn world(&self, document: &Value) -> anyhow::Result<Value> {
        self.simulator.control(Method::POST, "world", Some(document)).await
    }

    /// The id of the network security group that most scenarios share.
    pub fn shared_group(&self) -> String {
        let subscription = &self.simulator.announcement().subscription_id;
        format!(
            "/subscriptions/{subscription}/resourceGroups/matrix/providers/Microsoft.Network/networkSecurityGroups/net"
        )
    }

    fn groups(&self) -> [String; 3] {
        let shared = self.shared_group();
        ["matrix", "gone", "spoke"].map(|group| shared.replace("/matrix/", &format!("/{group}/")))
    }

    async fn rules(&self) -> anyhow::Result<Vec<(String, Value)>> {
        let mut rules = Vec::new();
        for group in self.groups() {
            let read = self.simulator.get(&group).await?;
            for rule in read["properties"]["securityRules"].as_array().into_iter().flatten() {
                rules.push((group.clone(), rule.clone()));
            }
        }
        Ok(rules)
    }

    /// Rules of others, as they are.
    async fn foreign_rules(&self) -> anyhow::Result<BTreeMap<String, Value>> {
        let mut foreign = BTreeMap::new();
        for (group, mut rule) in self.rules().await? {
            let name = rule["name"].as_str().unwrap_or_default().to_owned();
            if !name.starts_with("portcullis-") && !name.starts_with("copied-") {
                if let Some(fields) = rule.as_object_mut() {
                    fields.remove("etag");
                }
                foreign.insert(format!("{group}/{name}"), rule);
            }
        }
        Ok(foreign)
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

    fn path(scenario: Scenario, kind: &str) -> String {
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

    /// One more request, of a source of its own.
    pub async fn ask_once(&mut self, number: u32) -> anyhow::Result<()> {
        let scenario = [Lock, Expire, Overlap, Ended][number as usize % 4];
        let source = format!("198.18.{}.{}", number / 250 % 250, number % 250 + 1);
        let duration = format!("{}s", 30 + number % 7 * 5);
        self.request(scenario, &format!("soak-{number}"), &duration, &source).await
    }

    /// Requests of [`Story::ask_once`] that are over, each once, with their sources.
    pub async fn over(&mut self) -> anyhow::Result<Vec<(String, Value)>> {
        let path = Self::path(Lock, "jitaccessrequests");
        let list = self
            .plane
            .request(Method::GET, &format!("{path}?fieldSelector=status.settled%3Dtrue"), None)
            .await?;
        let mut over = Vec::new();
        for request in list["items"].as_array().into_iter().flatten() {
            let name = request["metadata"]["name"].as_str().unwrap_or_default();
            let cidr = request["spec"]["ports"][0]["sources"][0]["cidr"].as_str().unwrap_or_default();
            self.plane.request(Method::DELETE, &format!("{path}/{name}"), None).await?;
            over.push((cidr.trim_end_matches("/32").to_owned(), request.clone()));
        }
        Ok(over)
    }

    /// When a source got in to the machine that its request was of.
    pub async fn open(
        &self,
        request: &Value,
        source: &str,
        since: Timestamp,
    ) -> anyhow::Result<Vec<(Timestamp, Option<Timestamp>)>> {
        let policy = request["spec"]["policyRef"]["name"].as_str().unwrap_or_default();
        let scenario = Scenario::ALL.into_iter().find(|one| one.name() == policy).context("whose is it?")?;
        self.exposure(scenario, source, None, since).await
    }

    /// What is not as it should be when nobody has asked for a while.
    pub async fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        let list = self.plane.request(Method::GET, &Self::path(Lock, "jitaccessrequests"), None).await?;
        for request in list["items"].as_array().into_iter().flatten() {
            left.push(format!("{} is still {}", request["metadata"]["name"], request["status"]["state"]));
        }
        for (group, rule) in self.rules().await? {
            if rule["name"]
                .as_str()
                .is_some_and(|name| name.contains("-allow-") && name.starts_with("portcullis-"))
            {
                left.push(format!("{} stands in {group}", rule["name"]));
            }
        }
        for scenario in Scenario::ALL {
            let open = self.exposure(scenario, STRANGER, None, self.locked[&scenario]).await?;
            if !open.is_empty() {
                left.push(format!("{}: a stranger got in: {open:?}", scenario.name()));
            }
        }
        if self.foreign != self.foreign_rules().await? {
            left.push("rules of others were changed".to_owned());
        }
        Ok(left)
    }

    async fn request(
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

    /// Asks, waits a while until it is open, has it end, and waits until all of it is over. `until`: when what goes wrong
    /// is over.
    pub async fn live(&mut self, pause: Duration, until: impl Future<Output = ()>) -> anyhow::Result<()> {
        self.ask().await?;
        let begun = Instant::now();
        while begun.elapsed() < OPEN_PATIENCE {
            self.look().await?;
            if self.seen.values().all(|request| request["status"]["state"] == "Active") {
                break;
            }
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
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
        for scenario in [Ended, Revoked] {
            let name = scenario.name();
            let uid = self.seen.get(name).map(|request| request["metadata"]["uid"].clone());
            let (verdict, user) =
                if scenario == Ended { ("Ended", User::Developer) } else { ("Revoked", User::Approver) };
            let review = json!({
                "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview", "metadata": {"name": name},
                "spec": {"requestRef": {"name": name, "uid": uid}, "policyRef": {"name": name}, "verdict": verdict},
            });
            self.send(user, Method::POST, &Self::path(scenario, "jitaccessreviews"), &review).await?;
            self.asked.insert(name.to_owned(), Timestamp::now());
        }
        let policies = Self::path(Tightened, "jitpolicies");
        let path = format!("{policies}/{}", Tightened.name());
        // Its status moves under us: as kubectl edit does it, again.
        for _ in 0..20 {
            let mut policy = self.plane.request(Method::GET, &path, None).await?;
            policy["spec"]["ports"][0]["maxDuration"] = json!("35s");
            if self.send(User::Admin, Method::PUT, &path, &policy).await.is_ok() {
                self.asked.insert(Tightened.name().to_owned(), Timestamp::now());
                break;
            }
        }
        self.plane.request(Method::DELETE, &format!("{policies}/{}", PolicyDeleted.name()), None).await?;
        self.asked.insert(PolicyDeleted.name().to_owned(), Timestamp::now());
        self.simulator.delete(&self.machines[&MachineDeleted].id).await?;
        self.asked.insert(MachineDeleted.name().to_owned(), Timestamp::now());
        self.plane.request(Method::DELETE, GONE_PATH, None).await?;
        self.asked.insert(NamespaceDeleted.name().to_owned(), Timestamp::now());
        let path = format!("{}/{}", Self::path(Firewall, "jitaccessrequests"), Firewall.name());
        self.plane.request(Method::DELETE, &path, None).await?;
        self.asked.insert(Firewall.name().to_owned(), Timestamp::now());
        Ok(())
    }

    /// Reads every request; one that is gone stays as it was seen last.
    async fn look(&mut self) -> anyhow::Result<()> {
        for (namespace, scenario) in [(NAMESPACE, Lock), (GONE, NamespaceDeleted)] {
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

    /// Waits until what stands at the end is what is expected, where that is known: what others held up may take a while.
    pub async fn settle(&self, expected: Option<&BTreeSet<String>>) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Some(expected) = expected.filter(|_| begun.elapsed() < SETTLE_PATIENCE) {
            if self.standing().await? == *expected {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// The rules that stand, without what differs from run to run.
    async fn standing(&self) -> anyhow::Result<BTreeSet<String>> {
        // A deny over an address that no machine has any more holds nobody up; whoever brings it back keeps it.
        let gone = self.machines[&MachineDeleted].address.as_str();
        let counts = |rule: &Value| {
            rule["properties"]["destinationAddressPrefix"] != gone
                || !rule["name"].as_str().is_some_and(|name| name.contains("-deny-"))
        };
        let rules = self.rules().await?;
        Ok(rules.iter().filter(|(_, rule)| counts(rule)).map(|(group, rule)| essence(group, rule)).collect())
    }

    /// What is to be said of it all. `over`: when what went wrong was over; `bound`: how much later than it should, or than
    /// that, a packet may pass.
    pub async fn judge(&self, over: Timestamp, bound: Duration, gaps: bool) -> anyhow::Result<Findings> {
        let mut findings = Findings::default();
        for scenario in Scenario::ALL {
            if !gaps {
                let open = self.exposure(scenario, STRANGER, None, self.locked[&scenario]).await?;
                if !open.is_empty() {
                    findings.wrong(scenario, format!("a stranger got in: {open:?}"));
                }
            }
            for (name, _, source) in scenario.requests() {
                let Some(request) = self.seen.get(&name) else {
                    findings.wrong(scenario, "the request is not there");
                    continue;
                };
                if !is_over(request) {
                    findings.wrong(scenario, format!("{name} has not ended: {}", request["status"]["state"]));
                }
                self.judge_grant(&mut findings, scenario, (&name, source), request, (over, bound, gaps))
                    .await?;
            }
        }
        if self.foreign != self.foreign_rules().await? && !gaps {
            findings.wrong(Lock, "rules of others were changed");
        }
        if self.plane.request(Method::GET, GONE_PATH, None).await.is_ok() {
            findings.wrong(NamespaceDeleted, "the namespace is still there");
        }
        for (group, rule) in self.rules().await? {
            let name = rule["name"].as_str().unwrap_or_default();
            if name.starts_with("portcullis-")
                && name.contains("-allow-")
                && rule["properties"]["access"] == "Allow"
            {
                findings.wrong(Lock, format!("{name} stands in {group}"));
            }
        }
        findings.end = self.standing().await?;
        Ok(findings)
    }

    async fn judge_grant(
        &self,
        findings: &mut Findings,
        scenario: Scenario,
        (name, source): (&str, &str),
        request: &Value,
        (over, bound, gaps): (Timestamp, Duration, bool),
    ) -> anyhow::Result<()> {
        let moment =
            |pointer: &str| request.pointer(pointer).and_then(Value::as_str)?.parse::<Timestamp>().ok();
        let ports = request["status"]["connections"].as_array().into_iter().flatten();
        let port = ports.filter_map(|one| one["port"].as_str()?.parse::<u16>().ok()).next();
        let by = (scenario == Firewall).then_some(port).flatten();
        let since = self.locked[&scenario];
        let mut open = self.exposure(scenario, source, by, since).await?;
        if scenario == Firewall {
            // What the machine sees of it, whoever is led on.
            open.extend(self.exposure(scenario, source, None, since).await?);
        }
        let granted = moment("/status/grantedAt");
        let ends =
            [moment("/status/expiresAt"), self.asked.get(name).copied().filter(|_| scenario != Tightened)];
        let due = ends.into_iter().flatten().min();
        findings.opened += usize::from(!open.is_empty());
        for (from, to) in open {
            let (Some(granted), Some(due)) = (granted, due) else {
                // Where locks are taken away, it may have been anybody.
                if !gaps {
                    findings.wrong(scenario, format!("{name} was open and never granted"));
                }
                continue;
            };
            if from < granted && !gaps {
                findings.wrong(scenario, format!("{name} was open before its grant"));
            }
            let late = to.unwrap_or_else(Timestamp::now).duration_since(due.max(over));
            findings.late = findings.late.max(late.as_secs_f64());
            if to.is_none() || late > SignedDuration::try_from(bound)? {
                findings
                    .wrong(scenario, format!("{name} was open until {to:?}, due at {due}, {late:#} late"));
            }
        }
        Ok(())
    }

    async fn exposure(
        &self,
        scenario: Scenario,
        source: &str,
        by: Option<u16>,
        from: Timestamp,
    ) -> anyhow::Result<Vec<(Timestamp, Option<Timestamp>)>> {
        let destination = by.map_or(&self.machines[&scenario].address, |_| &self.public);
        let question = json!({"source": source, "destination": destination, "port": by.unwrap_or(22), "protocol": "Tcp",
            "from": from.to_string()});
        let answer = match self.simulator.control(Method::POST, "exposure", Some(&question)).await {
            Ok(answer) => answer,
            // The machine is gone with its address.
            Err(_) if scenario == MachineDeleted => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
        let intervals = answer["intervals"].as_array().context("no intervals")?;
        let mut open: Vec<(Timestamp, Option<Timestamp>)> =
            intervals.iter().filter_map(|one| Some((time(&one["from"])?, time(&one["to"])))).collect();
        // Where there is no machine any more, nobody gets in; its address is unlocked.
        if let Some(gone) = self.asked.get(MachineDeleted.name()).filter(|_| scenario == MachineDeleted) {
            open.retain(|(from, _)| from < gone);
            open.iter_mut().for_each(|(_, to)| *to = Some(to.map_or(*gone, |to| to.min(*gone))));
        }
        Ok(open)
    }

    /// Calls to the cloud, and writes of rules of ours among them.
    pub async fn cloud_calls(&self) -> anyhow::Result<(usize, usize)> {
        let all = self.simulator.control(Method::GET, "activity", None).await?;
        let all = all["value"].as_array().context("no activity")?;
        let ours = |call: &&Value| {
            call["method"] != "GET" && call["path"].as_str().is_some_and(|path| path.contains("/portcullis-"))
        };
        Ok((all.len(), all.iter().filter(ours).count()))
    }
}

fn is_over(request: &Value) -> bool {
    // One whose policy went before it was granted waits for another policy of that name, and in the end for nothing.
    let waits =
        request["metadata"]["name"] == PolicyDeleted.name() && request["status"]["state"] == "Pending";
    request["gone"] == true || request["status"]["settled"] == true || waits
}

/// A rule without what differs from run to run: its number, who owns it, when it dies.
fn essence(group: &str, rule: &Value) -> String {
    let name = rule["name"].as_str().unwrap_or_default();
    let kind = match name.split('-').nth(2) {
        Some(kind) if name.starts_with("portcullis-") => kind,
        _ => name,
    };
    let properties = &rule["properties"];
    let group = group.split('/').nth(4).unwrap_or_default();
    let mut to: Vec<String> = properties["destinationAddressPrefixes"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(std::iter::once(&properties["destinationAddressPrefix"]))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    to.sort();
    format!("{group} {kind} {} {} {}", properties["access"], to.join(","), properties["destinationPortRange"])
}
