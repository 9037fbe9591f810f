//! One cell of the matrix: a story, and what goes wrong in it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::another_cluster;
use crate::catalogue::{Fault, What};
use crate::gateway::Gateway;
use crate::scenario::Scenario;
use crate::story::{CLIENT, OPEN_PATIENCE, PATIENCE, Story, may_all};
use crate::verdict::Findings;
use portcullis_harness::control_plane::User;
use portcullis_harness::controller::Controller;
use portcullis_harness::process::signal;
use portcullis_harness::simulator::Simulator;
use portcullis_harness::wall_clock::WallClock;

/// What came of a cell.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub fault: String,
    pub findings: Findings,
    /// Writes to the API server, and to the cloud.
    pub writes: (u64, u64),
    /// Calls to the API server and to the cloud, a minute.
    pub calls_a_minute: (f64, f64),
    /// How often it went wrong as it was to, and how often it was to; a crash after a write that never comes does not.
    pub struck: (usize, usize),
    pub took: Duration,
    /// Scenarios that were left alone.
    pub spared: Vec<Scenario>,
    /// What the replicas logged.
    pub logs: Vec<String>,
}

/// Plays the story with the fault; `expected`: what stands at the end where nothing goes wrong.
pub async fn play(fault: &Fault, expected: Option<&BTreeSet<String>>) -> anyhow::Result<Outcome> {
    let begun = Instant::now();
    let mut story = Story::prepare().await?;
    if matches!(fault.what, What::WallClock(_)) {
        story.set_up_wall_clock()?;
    }
    if let What::Tokens(lifetime, _) = fault.what {
        let settings = json!({"tokenLifetime": lifetime});
        story.simulator.control(Method::POST, "settings", Some(&settings)).await?;
    }
    let (simulator, gateway) = (Arc::clone(&story.simulator), Arc::clone(&story.gateway));
    let group = story.shared_group();
    let before = simulator.get(&group).await?;
    // A crash is waited for from the first write on, everything else begins with the requests.
    if let What::CrashAtApi(numbers) = &fault.what {
        gateway.hold(numbers[0]);
    }
    if let What::CrashAtCloud(numbers) = &fault.what {
        let held = |number: &u64| json!({"name": "held", "path": RULES, "nth": number, "count": 1, "effect": {"timeoutAfterCommit": "90s"}});
        let held: Vec<Value> = numbers.iter().map(held).collect();
        simulator.control(Method::POST, "faults", Some(&json!(held))).await?;
    }
    let mut replicas = Vec::new();
    for _ in 0..fault.replicas {
        let mut replica = story.replica()?;
        // The first of several is to hold the lease.
        if fault.replicas > 1 {
            replica.wait_ready(Duration::from_secs(60)).await?;
        }
        replicas.push(replica);
    }
    let mut trouble = Driver::new(&story, simulator, gateway, replicas, group, before)?;
    let (ready, locked) = tokio::sync::oneshot::channel();
    let fault_of = fault.clone();
    let driving = tokio::spawn(async move {
        let over = trouble.drive(&fault_of, locked).await;
        (trouble, over)
    });
    let calls = story.gateway.calls();
    let playing = Instant::now();
    let locked = story.lock().await;
    let _ = ready.send(());
    locked?;
    let mut driven = None;
    let lived = story
        .live((if expected.is_some() { OPEN_PATIENCE } else { PATIENCE }, Duration::from_secs(6)), async {
            driven = driving.await.ok();
        })
        .await;
    let (trouble, over) = driven.ok_or_else(|| anyhow::anyhow!("what was to go wrong has panicked"))?;
    lived?;
    let over = over?;
    // What lands late, and what is looked at each few seconds, has its time.
    tokio::time::sleep(Duration::from_secs(12)).await;
    story.settle(expected).await?;
    let mut findings = story.judge(over, fault).await?;
    findings.wrong.extend(trouble.wrong.iter().map(|what| (Scenario::Lock, what.clone())));
    let crashes = matches!(fault.what, What::CrashAtApi(_) | What::CrashAtCloud(_));
    if fault.strikes() > 0 && trouble.struck == 0 && !crashes {
        findings.wrong.push((Scenario::Lock, "nothing went wrong".to_owned()));
    }
    let minutes = playing.elapsed().as_secs_f64() / 60.0;
    let (cloud_calls, cloud_writes) = story.cloud_calls().await?;
    let api_calls = story.gateway.calls() - calls;
    Ok(Outcome {
        fault: fault.name.clone(),
        findings,
        writes: (story.gateway.writes(), u64::try_from(cloud_writes)?),
        calls_a_minute: (api_calls as f64 / minutes, cloud_calls as f64 / minutes),
        struck: (trouble.struck, fault.strikes()),
        took: begun.elapsed(),
        spared: Scenario::ALL.into_iter().filter(|scenario| fault.spares(*scenario)).collect(),
        logs: trouble.logs(),
    })
}

const RULES: &str = "/securityRules/portcullis|/ruleCollectionGroups/portcullis";

/// Has it go wrong.
pub struct Driver {
    simulator: Arc<Simulator>,
    gateway: Arc<Gateway>,
    replicas: Vec<Controller>,
    group: String,
    before: Value,
    admin: Admin,
    wall_clock: Option<WallClock>,
    /// Whether locks are soon left to themselves.
    ending: Arc<AtomicBool>,
    struck: usize,
    /// What was found wrong while it went wrong.
    wrong: Vec<String>,
}

/// Whoever may do everything to the API server.
struct Admin {
    server: String,
    token: String,
    client: reqwest::Client,
}

impl Admin {
    fn of(story: &Story) -> anyhow::Result<Self> {
        let client = reqwest::Client::builder().no_proxy().danger_accept_invalid_certs(true).build()?;
        let token = story.plane.token(User::Admin).to_owned();
        Ok(Self { server: story.plane.server().to_owned(), token, client })
    }
}

impl Driver {
    /// What the replicas logged.
    pub fn logs(&self) -> Vec<String> {
        self.replicas.iter().filter_map(|replica| replica.log_text().ok()).collect()
    }

    /// Of the replicas of a story. `before`: the group that most scenarios share, before anything of ours was there.
    pub fn new(
        story: &Story,
        simulator: Arc<Simulator>,
        gateway: Arc<Gateway>,
        replicas: Vec<Controller>,
        group: String,
        before: Value,
    ) -> anyhow::Result<Self> {
        let (admin, wall_clock) = (Admin::of(story)?, story.wall_clock.clone());
        Ok(Self {
            simulator,
            gateway,
            replicas,
            group,
            before,
            admin,
            wall_clock,
            ending: Arc::clone(&story.ending),
            struck: 0,
            wrong: Vec::new(),
        })
    }

    /// Until nothing goes wrong any more; when that was.
    async fn drive(
        &mut self,
        fault: &Fault,
        locked: tokio::sync::oneshot::Receiver<()>,
    ) -> anyhow::Result<Timestamp> {
        if let What::CrashAtApi(numbers) | What::CrashAtCloud(numbers) = &fault.what {
            return self.crash(fault, numbers, locked).await;
        }
        locked.await?;
        tokio::time::sleep(Duration::from_secs(fault.from)).await;
        self.go_wrong(fault).await?;
        Ok(Timestamp::now())
    }

    /// Has it go wrong, as long as it is to.
    pub async fn go_wrong(&mut self, fault: &Fault) -> anyhow::Result<()> {
        let until = Instant::now() + Duration::from_secs(fault.until - fault.from);
        let mut struck = fault.strikes() > 0;
        match fault.what.clone() {
            What::Nothing | What::CrashAtApi(_) | What::CrashAtCloud(_) => {}
            What::Api(trouble) => {
                let before = self.gateway.struck();
                self.gateway.set(Some(trouble));
                tokio::time::sleep_until(until).await;
                self.gateway.set(None);
                struck = self.gateway.struck() > before;
            }
            What::Cloud(rules) | What::Tokens(_, rules) => {
                self.simulator.control(Method::POST, "faults", Some(&json!(rules))).await?;
                tokio::time::sleep_until(until).await;
                struck = self.end_faults().await?;
            }
            What::KillHolderUnder(after, rules) => {
                self.simulator.control(Method::POST, "faults", Some(&json!(rules))).await?;
                tokio::time::sleep(after).await;
                self.replicas[0].kill();
                struck = self.end_faults().await?;
            }
            What::CloudClock(skew) => {
                self.simulator.control(Method::POST, "clock", Some(&json!({"dateSkew": skew}))).await?;
                tokio::time::sleep_until(until).await;
                self.simulator.control(Method::POST, "clock", Some(&json!({"dateSkew": "0s"}))).await?;
            }
            What::WallClock(ahead) => {
                let clock = self.wall_clock.as_ref().context("no wall clock was set up")?;
                clock.set(ahead)?;
                tokio::time::sleep_until(until).await;
                clock.set(0)?;
            }
            What::AnotherCluster => self.wrong = another_cluster::play(&self.simulator, until).await?,
            What::KillHolder => {
                self.replicas[0].kill();
            }
            What::PauseHolder => {
                signal(self.replicas[0].id(), "STOP")?;
                tokio::time::sleep_until(until).await;
                signal(self.replicas[0].id(), "CONT")?;
            }
            What::LoseLease => {
                struck = false;
                while Instant::now() < until {
                    struck |= self.lose_lease().await;
                    tokio::time::sleep(Duration::from_secs(3)).await;
                }
            }
            What::ResourceLock => {
                let lock = format!("{}/providers/Microsoft.Authorization/locks/keep", self.group);
                let body = json!({"properties": {"level": "CanNotDelete"}});
                self.simulator.put(&lock, &body).await?;
                tokio::time::sleep_until(until).await;
                self.simulator.delete(&lock).await?;
            }
            What::BringBack => {
                let early = self.simulator.get(&self.group).await?;
                tokio::time::sleep_until(until).await;
                struck = self.write_group(&early).await;
            }
            What::Rewrite => {
                struck = false;
                while Instant::now() < until {
                    if let Ok(now) = self.simulator.get(&self.group).await {
                        struck |= self.write_group(&now).await;
                    }
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
            What::Erase => {
                struck = false;
                while Instant::now() < until && !self.ending.load(Ordering::SeqCst) {
                    struck |= self.write_group(&self.before.clone()).await;
                    tokio::time::sleep(Duration::from_secs(10)).await;
                }
            }
            What::Meddle => {
                struck = self.meddle().await?;
                tokio::time::sleep_until(until).await;
            }
            What::Revoke => {
                let principal = |permissions: Value| json!({"clientId": CLIENT, "secrets": ["controller"], "permissions": permissions});
                let none =
                    json!([{"actions": ["*"], "notActions": ["*/write", "*/delete"], "scopes": ["/"]}]);
                self.simulator.control(Method::POST, "principals", Some(&principal(none))).await?;
                tokio::time::sleep_until(until).await;
                self.simulator.control(Method::POST, "principals", Some(&principal(may_all()))).await?;
            }
        }
        self.struck = usize::from(struck);
        Ok(())
    }

    /// Whether any of them struck.
    async fn end_faults(&self) -> anyhow::Result<bool> {
        let faults = self.simulator.control(Method::GET, "faults", None).await?;
        self.simulator.control(Method::DELETE, "faults", None).await?;
        Ok(faults.as_array().is_some_and(|all| all.iter().any(|one| one["struck"] != 0)))
    }

    /// Kills the controller when a write of it was done, and starts it again; and that one at the next.
    async fn crash(
        &mut self,
        fault: &Fault,
        numbers: &[u64],
        locked: tokio::sync::oneshot::Receiver<()>,
    ) -> anyhow::Result<Timestamp> {
        let mut locked = std::pin::pin!(locked);
        let mut until = None;
        loop {
            let held = match fault.what {
                What::CrashAtApi(_) => self.gateway.is_holding(),
                _ => {
                    let faults = self.simulator.control(Method::GET, "faults", None).await?;
                    faults
                        .as_array()
                        .is_some_and(|all| all.iter().filter(|one| one["struck"] == 1).count() > self.struck)
                }
            };
            if held {
                self.replicas[0].kill();
                self.replicas[0].restart_unready()?;
                self.struck += 1;
                let Some(next) = numbers.get(self.struck) else { return Ok(Timestamp::now()) };
                if matches!(fault.what, What::CrashAtApi(_)) {
                    self.gateway.hold(*next);
                }
            }
            if until.is_none() && futures::FutureExt::now_or_never(&mut locked).is_some() {
                until = Some(Instant::now() + Duration::from_secs(fault.until));
            }
            if until.is_some_and(|until| Instant::now() >= until) {
                return Ok(Timestamp::now());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    async fn lose_lease(&self) -> bool {
        let path = "/apis/coordination.k8s.io/v1/namespaces/portcullis-system/leases/portcullis";
        let Admin { server, token, client } = &self.admin;
        // It may not be there.
        let answer = client.delete(format!("{server}{path}")).bearer_auth(token).send().await;
        answer.is_ok_and(|answer| answer.status().is_success())
    }

    /// As Terraform or a portal would; a group that is busy refuses it.
    async fn write_group(&self, body: &Value) -> bool {
        let mut body = body.clone();
        for rule in body["properties"]["securityRules"].as_array_mut().into_iter().flatten() {
            if let Some(fields) = rule.as_object_mut() {
                fields.remove("etag");
            }
        }
        for _ in 0..20 {
            if self.simulator.put(&self.group, &body).await.is_ok() {
                return true;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        false
    }

    /// Copies an allow under another name, makes another live longer by its description, and widens a third.
    async fn meddle(&self) -> anyhow::Result<bool> {
        let mut done = false;
        let group = self.simulator.get(&self.group).await?;
        let ours: Vec<Value> = group["properties"]["securityRules"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|rule| {
                rule["name"]
                    .as_str()
                    .is_some_and(|name| name.contains("-allow-") && name.starts_with("portcullis-"))
            })
            .cloned()
            .collect();
        for (place, rule) in ours.iter().enumerate() {
            let name = rule["name"].as_str().unwrap_or_default();
            let mut properties = rule["properties"].clone();
            let id = match place % 3 {
                0 => {
                    properties["priority"] = json!(3000 + place);
                    format!("{}/securityRules/copied-{place}", self.group)
                }
                1 => {
                    let said = properties["description"]
                        .as_str()
                        .unwrap_or_default()
                        .replace("expires=20", "expires=21");
                    properties["description"] = json!(said);
                    format!("{}/securityRules/{name}", self.group)
                }
                _ => {
                    properties["sourceAddressPrefix"] = json!("*");
                    properties["sourceAddressPrefixes"] = json!([]);
                    format!("{}/securityRules/{name}", self.group)
                }
            };
            // It may be busy, or closed by now.
            done |= self.simulator.put(&id, &json!({"properties": properties})).await.is_ok();
        }
        Ok(done)
    }
}
