//! A gate on the cloud in memory: what it costs, in which order it writes, and what it does when the cloud fails.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::api::{ExistingRules, Reason};
use portcullis::clock::Clock;
use portcullis::controllers::gate::{GateSettings, Gates, News};
use portcullis::controllers::leader::Leadership;
use portcullis::plan::desired::{Duty, Grant, Lock, LockedMachine};
use portcullis::plan::lifecycle::Seen;
use portcullis::plan::model::{Access, FirewallId, Observed, Peer, Provisioning, ResourceLock, Rule};
use portcullis::plan::names::{Cluster, allow_name};
use portcullis::providers::memory::faults::WriteFault;
use portcullis::providers::memory::{Memory, Write};
use portcullis::providers::{Change, Cloud, CloudError, CloudErrorKind, Firewall, FirewallLimits, Written};
use portcullis::telemetry::audit::record::Started;
use portcullis::telemetry::{Audit, Metrics};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

mod closes;
mod heard;
mod late;
mod order;
mod reads;
mod records;
mod replicas;
mod ways;
mod whole;

struct Bench {
    memory: Memory,
    gates: Gates,
    clock: Clock,
    news: mpsc::UnboundedReceiver<News>,
    shutdown: CancellationToken,
}

fn cluster() -> Cluster {
    Cluster::new("test", &[])
}

fn nsg() -> FirewallId {
    let id = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups/web";
    FirewallId(ArmId::parse(id).unwrap())
}

impl Bench {
    fn new() -> Self {
        Self::recorded_by(Audit::off())
    }

    fn recorded_by(audit: Audit) -> Self {
        let clock = Clock::manual("2026-11-22T08:00:00Z".parse().unwrap());
        Self::led_by(Leadership::alone(clock.clone()), clock, audit)
    }

    fn led_by(leadership: Leadership, clock: Clock, audit: Audit) -> Self {
        let memory = Memory::new(clock.clone());
        memory.add_firewall(nsg());
        let (sender, news) = mpsc::unbounded_channel();
        let shutdown = CancellationToken::new();
        let settings = GateSettings {
            cluster: cluster(),
            honour_denies_below: 1000,
            max_allows: 200,
            drift_interval: Duration::from_secs(300),
            dry_run: false,
            closes_only: false,
        };
        let gates =
            Gates::new(settings, clock.clone(), Metrics::new(), audit, leadership, sender, shutdown.clone());
        Self { memory, gates, clock, news, shutdown }
    }

    /// Time goes by, for the clock on the wall and for sleeping tasks alike.
    async fn pass(&self, seconds: i64) {
        for _ in 0..seconds {
            self.clock.step(SignedDuration::from_secs(1));
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn grant(&self, number: u64, seconds: i64, duty: impl Fn(Timestamp) -> Duty) -> (String, Grant) {
        let now = self.clock.now();
        let deadline = now + SignedDuration::from_secs(seconds);
        let uid = format!("{number:08x}-0000-4000-8000-000000000000");
        let grant = Grant {
            name: allow_name(&cluster(), &uid, deadline, 0),
            request_uid: uid.clone(),
            deadline,
            protocol: Protocol::Tcp,
            sources: vec![format!("203.0.113.{number}/32").parse().unwrap()],
            destinations: vec!["10.0.0.4".parse().unwrap()],
            ports: vec![PortRange::single(22)],
            translation: None,
            duty: duty(now + SignedDuration::from_secs(60)),
            replaced: false,
        };
        (uid, grant)
    }

    fn give(&self, grants: &[(String, Grant)]) {
        self.give_by("main", &self.memory.cloud(), grants);
    }

    fn give_by(&self, credential: &str, cloud: &Cloud, grants: &[(String, Grant)]) {
        for (uid, grant) in grants {
            self.gates.set_grants(uid, credential, cloud, vec![(nsg(), grant.clone())], &[]);
        }
    }

    fn lock(&self) {
        self.lock_by("main", &self.memory.cloud());
    }

    fn lock_by(&self, credential: &str, cloud: &Cloud) {
        self.lock_of('a', credential, cloud);
    }

    /// The policy whose UID begins with this, a hexadecimal digit.
    fn lock_of(&self, policy: char, credential: &str, cloud: &Cloud) {
        let policy_uid = format!("{}-0000-4000-8000-000000000000", policy.to_string().repeat(8));
        let lock = Lock {
            policy_uid: policy_uid.clone(),
            policy: format!("web/{policy}"),
            existing: ExistingRules::Override,
            machines: vec![LockedMachine {
                addresses: vec!["10.0.0.4".parse().unwrap()],
                ports: vec![(Protocol::Any, PortRange::single(22))],
            }],
            exempt: Vec::new(),
            release: Default::default(),
            keep_others: true,
            cut_sessions: false,
        };
        let locks = [(nsg(), Some(lock))].into();
        self.gates.set_locks(&policy_uid, credential, cloud, locks);
    }

    fn denies(&self) -> usize {
        self.memory.rules(&nsg()).iter().filter(|rule| rule.access == Access::Deny).count()
    }

    fn allows(&self) -> usize {
        self.memory.rules(&nsg()).iter().filter(|rule| rule.access == Access::Allow).count()
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

/// What is asked of a firewall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Read,
    Put,
    Delete,
}

/// The cloud in memory as one credential sees it: what it says to a call before the cloud hears of it, what it makes of a
/// read, and how much later than it is sent a write of a rule is done, unanswered.
struct Behind {
    memory: Memory,
    refuse: Box<dyn Fn(Call) -> Option<CloudErrorKind> + Send + Sync>,
    read: Box<dyn Fn(Observed) -> Result<Observed, CloudErrorKind> + Send + Sync>,
    late: Option<Duration>,
    /// How long it asks to wait where it refuses.
    wait: Option<Duration>,
    /// Writes and removals of rules whose names hold this are not answered.
    stuck: Arc<Mutex<Vec<String>>>,
    /// How long one waits for those at most.
    silence: Duration,
    /// How long each call takes first.
    pause: Duration,
    /// What of others differs after each write.
    differs: Vec<String>,
}

impl Behind {
    fn of(memory: &Memory) -> Self {
        Self {
            memory: memory.clone(),
            refuse: Box::new(|_| None),
            read: Box::new(Ok),
            late: None,
            wait: None,
            stuck: Arc::default(),
            silence: Duration::ZERO,
            pause: Duration::ZERO,
            differs: Vec::new(),
        }
    }

    fn cloud(self) -> Cloud {
        Cloud { inventory: Arc::new(self.memory.clone()), firewall: Arc::new(self) }
    }

    async fn ask(&self, call: Call) -> Result<(), CloudError> {
        tokio::time::sleep(self.pause).await;
        (self.refuse)(call)
            .map_or(Ok(()), |kind| Err(CloudError { retry_after: self.wait, ..generated(kind) }))
    }

    async fn answers(&self, rule: &str, patience: Duration) -> Result<(), CloudError> {
        if self.stuck.lock().unwrap().iter().any(|stuck| rule.contains(stuck)) {
            tokio::time::sleep(self.silence.min(patience)).await;
            return Err(generated(CloudErrorKind::Unanswered));
        }
        Ok(())
    }
}

#[async_trait::async_trait]
impl Firewall for Behind {
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        self.ask(Call::Read).await?;
        (self.read)(self.memory.observe(firewall).await?).map_err(generated)
    }

    async fn write(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let put = changes.iter().any(|change| matches!(change, Change::Put(_)));
        self.ask(if put { Call::Put } else { Call::Delete }).await?;
        for change in changes {
            self.answers(change.rule(), patience).await?;
        }
        let Some(late) = self.late.filter(|_| put) else {
            let written = self.memory.write(firewall, changes, patience).await?;
            return Ok(Written { differs: self.differs.clone(), ..written });
        };
        let (memory, firewall, changes) = (self.memory.clone(), firewall.clone(), changes.to_vec());
        tokio::spawn(async move {
            tokio::time::sleep(late).await;
            memory.write(&firewall, &changes, Duration::from_secs(60)).await
        });
        tokio::time::sleep(patience).await;
        Err(generated(CloudErrorKind::Unanswered))
    }

    fn limits(&self, firewall: &FirewallId) -> FirewallLimits {
        self.memory.limits(firewall)
    }
}

impl Bench {
    fn behind(&self, refuse: impl Fn(Call) -> Option<CloudErrorKind> + Send + Sync + 'static) -> Cloud {
        Behind { refuse: Box::new(refuse), ..Behind::of(&self.memory) }.cloud()
    }

    fn misread(
        &self,
        read: impl Fn(Observed) -> Result<Observed, CloudErrorKind> + Send + Sync + 'static,
    ) -> Cloud {
        Behind { read: Box::new(read), ..Behind::of(&self.memory) }.cloud()
    }
}

fn generated(kind: CloudErrorKind) -> CloudError {
    CloudError {
        kind,
        operation: "generated".into(),
        message: "generated".into(),
        code: None,
        retry_after: None,
        request_id: None,
    }
}

/// As the lifecycle says it of a grant that is made now.
const OPEN: fn(Timestamp) -> Duty =
    |heard_by| Duty::Open { heard_by, until: heard_by + SignedDuration::from_secs(540) };

fn describe(write: &Write) -> String {
    let verb = match write.change {
        Change::Put(_) => "put",
        Change::Remove(_) => "close",
        Change::Unlock(_) => "unlock",
        Change::CutSessions => "set",
    };
    format!("{verb} {}", write.rule)
}
