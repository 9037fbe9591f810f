//! A gate on the cloud in memory: what it costs, in which order it writes, and what it does when the cloud fails.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::api::{ExistingRules, Reason};
use portcullis::clock::Clock;
use portcullis::controllers::gate::{GateSettings, Gates, News};
use portcullis::plan::desired::{Duty, Grant, Lock, LockedMachine};
use portcullis::plan::lifecycle::Seen;
use portcullis::plan::model::{Access, FirewallId, Observed, ResourceLock, Rule};
use portcullis::plan::names::{Cluster, allow_name};
use portcullis::providers::memory::faults::WriteFault;
use portcullis::providers::memory::{Memory, Write};
use portcullis::providers::{Cloud, CloudError, CloudErrorKind, Firewall, FirewallLimits, Written};
use portcullis::telemetry::audit::record::Started;
use portcullis::telemetry::{Audit, Metrics};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

struct Bench {
    memory: Memory,
    gates: Gates,
    clock: Clock,
    _news: mpsc::UnboundedReceiver<News>,
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
        };
        let gates = Gates::new(settings, clock.clone(), Metrics::new(), audit, sender, shutdown.clone());
        Self { memory, gates, clock, _news: news, shutdown }
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
            duty: duty(now + SignedDuration::from_secs(60)),
            replaced: false,
        };
        (uid, grant)
    }

    fn give(&self, grants: &[(String, Grant)]) {
        for (uid, grant) in grants {
            self.gates.set_grants(uid, "main", &self.memory.cloud(), vec![(nsg(), grant.clone())]);
        }
    }

    fn lock(&self) {
        let lock = Lock {
            policy_uid: "aaaaaaaa-0000-4000-8000-000000000000".into(),
            policy: "web/web".into(),
            existing: ExistingRules::Override,
            machines: vec![LockedMachine {
                addresses: vec!["10.0.0.4".parse().unwrap()],
                ports: vec![(Protocol::Any, PortRange::single(22))],
            }],
            exempt: Vec::new(),
            release: Default::default(),
            keep_others: true,
        };
        let locks = [(nsg(), Some(lock))].into();
        self.gates.set_locks("aaaaaaaa-0000-4000-8000-000000000000", "main", &self.memory.cloud(), locks);
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

/// As the lifecycle says it of a grant that is made now.
const OPEN: fn(Timestamp) -> Duty =
    |heard_by| Duty::Open { heard_by, until: heard_by + SignedDuration::from_secs(540) };

#[tokio::test(start_paused = true)]
async fn ten_requests_due_at_once_cost_one_read_ten_writes_and_one_read_back() {
    let bench = Bench::new();
    bench.lock();
    bench.pass(2).await;
    let grants: Vec<_> = (1..=10).map(|number| bench.grant(number, 120, OPEN)).collect();
    let (reads, writes) = (bench.memory.reads(), bench.memory.writes().len());
    bench.give(&grants);
    bench.pass(2).await;
    assert_eq!(bench.allows(), 10);
    assert_eq!((bench.memory.reads() - reads, bench.memory.writes().len() - writes), (2, 10), "to open");
    bench.pass(110).await;
    let (reads, writes) = (bench.memory.reads(), bench.memory.writes().len());
    bench.pass(12).await;
    assert_eq!(bench.allows(), 0);
    // Closes are sent by their names before anything is read, so that the read is the read-back.
    assert_eq!((bench.memory.reads() - reads, bench.memory.writes().len() - writes), (1, 10), "to close");
    assert_eq!(bench.memory.overlaps(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_was_heard_of_in_time_waits_for_its_turn_and_is_opened() {
    let bench = Bench::new();
    bench.memory.faults(|faults| faults.write_time = Duration::from_secs(8));
    let grants: Vec<_> = (1..=12).map(|number| bench.grant(number, 900, OPEN)).collect();
    bench.give(&grants);
    bench.pass(30).await;
    // The status is told again and again meanwhile.
    bench.give(&grants);
    let seen = |name: &str| matches!(bench.gates.seen(&nsg(), name), Seen::Present { .. });
    assert!(seen(&grants[0].1.name), "the first is read back while the others wait");
    bench.pass(100).await;
    for (_, grant) in &grants {
        assert!(seen(&grant.name), "{}: {:?}", grant.name, bench.gates.seen(&nsg(), &grant.name));
    }
    assert_eq!(bench.memory.overlaps(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_is_heard_of_too_late_is_never_opened() {
    let bench = Bench::new();
    let late = bench.grant(1, 900, OPEN);
    bench.pass(61).await;
    for _ in 0..3 {
        bench.give(std::slice::from_ref(&late));
        bench.pass(5).await;
        let seen = bench.gates.seen(&nsg(), &late.1.name);
        assert!(matches!(seen, Seen::Refused { reason: Reason::OpenTimedOut, .. }), "{seen:?}");
    }
    assert_eq!(bench.memory.writes().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn nobody_overtakes_an_earlier_grant() {
    let bench = Bench::new();
    bench.memory.faults(|faults| faults.write_time = Duration::from_secs(8));
    // By name the later ones come first.
    bench.give(&[bench.grant(9, 900, OPEN), bench.grant(8, 900, OPEN), bench.grant(7, 900, OPEN)]);
    bench.pass(10).await;
    let later: Vec<_> = (1..=4).map(|number| bench.grant(number, 900, OPEN)).collect();
    bench.give(&later);
    bench.pass(60).await;
    let order: Vec<String> = bench.memory.writes().iter().map(|write| write.rule.clone()).collect();
    let of = |number: u64| {
        let uid = &format!("-{number:08x}");
        order.iter().position(|rule| rule.contains(uid.as_str())).unwrap()
    };
    assert!(of(9) < of(1) && of(8) < of(1) && of(7) < of(1), "{order:?}");
    assert_eq!(order.len(), 7);
}

#[tokio::test(start_paused = true)]
async fn closes_are_written_before_locks_and_locks_before_opens() {
    let bench = Bench::new();
    let old = bench.grant(1, 600, OPEN);
    bench.give(std::slice::from_ref(&old));
    bench.pass(2).await;
    let before = bench.memory.writes().len();
    // All at once: a close, a lock and an open.
    let (uid, mut closing) = old;
    closing.duty = Duty::Close { sent: false };
    let new = bench.grant(2, 600, OPEN);
    bench.give(std::slice::from_ref(&new));
    bench.lock();
    bench.give(&[(uid, closing.clone())]);
    bench.pass(3).await;
    let kinds: Vec<String> = bench.memory.writes()[before..].iter().map(describe).collect();
    assert_eq!(kinds[0], format!("delete {}", closing.name), "{kinds:?}");
    let lock = kinds.iter().position(|kind| kind.contains("-deny-")).unwrap();
    let open = kinds.iter().position(|kind| kind.contains(&new.1.name)).unwrap();
    assert!(lock < open, "{kinds:?}");
}

fn describe(write: &Write) -> String {
    format!("{} {}", if write.put.is_some() { "put" } else { "delete" }, write.rule)
}

#[tokio::test(start_paused = true)]
async fn a_rule_whose_deadline_has_passed_is_closed_without_anybody_asking() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 60, OPEN);
    bench.give(&[(uid, grant.clone())]);
    bench.pass(3).await;
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Present { .. }));
    bench.pass(60).await;
    assert_eq!(bench.allows(), 0);
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_name_that_was_closed_is_never_opened_again_whatever_a_stale_cache_says() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 600, OPEN);
    bench.give(&[(uid.clone(), grant.clone())]);
    bench.pass(3).await;
    bench.gates.end(&uid);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 0);
    bench.give(&[(uid.clone(), grant.clone())]);
    bench.pass(3).await;
    bench.give(&[(uid, Grant { duty: Duty::Hold, ..grant })]);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 0);
}

/// A shortening rests on it: what somebody else removed is not written again.
#[tokio::test(start_paused = true)]
async fn a_removal_tells_whether_somebody_else_was_first() {
    let by_us = |bench: &Bench, name: &str| match bench.gates.seen(&nsg(), name) {
        Seen::Absent { by_us, .. } => by_us,
        other => panic!("not removed: {other:?}"),
    };
    let close = |bench: &Bench, uid: &str, grant: &Grant| {
        let closing = Grant { duty: Duty::Close { sent: false }, replaced: true, ..grant.clone() };
        bench.give(&[(uid.to_owned(), closing)]);
    };
    for (seen, removed) in [(false, false), (true, false), (true, true)] {
        let bench = Bench::new();
        let (uid, grant) = bench.grant(1, 600, OPEN);
        bench.give(&[(uid.clone(), grant.clone())]);
        if seen {
            bench.pass(3).await;
            assert_eq!(bench.allows(), 1);
        }
        if removed {
            bench.memory.edit_rules(&nsg(), |rules| rules.clear());
        }
        close(&bench, &uid, &grant);
        bench.pass(3).await;
        assert_eq!(bench.allows(), 0);
        assert_eq!(by_us(&bench, &grant.name), !removed, "seen {seen}, removed {removed}");
    }
    // After a restart the status alone is known: what stands then was not removed by anybody, what does not may have.
    for stands in [true, false] {
        let bench = Bench::new();
        let (uid, grant) = bench.grant(1, 600, OPEN);
        if stands {
            let rule = portcullis::plan::changes::grant_rule(&cluster(), &grant, 100);
            bench.memory.edit_rules(&nsg(), |rules| rules.push(rule.clone()));
        }
        close(&bench, &uid, &grant);
        bench.pass(3).await;
        assert_eq!((bench.allows(), by_us(&bench, &grant.name)), (0, stands));
    }
    // A removal that fails at first is still ours.
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 600, OPEN);
    bench.give(&[(uid.clone(), grant.clone())]);
    bench.pass(3).await;
    bench.memory.faults(|faults| faults.break_write(1, WriteFault::Refused(CloudErrorKind::Retryable)));
    close(&bench, &uid, &grant);
    bench.pass(10).await;
    assert_eq!((bench.allows(), by_us(&bench, &grant.name)), (0, true));
}

#[tokio::test(start_paused = true)]
async fn a_lock_on_the_resource_makes_a_close_a_deny_and_the_rule_goes_when_it_lifts() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 60, OPEN);
    bench.give(&[(uid, grant.clone())]);
    bench.pass(3).await;
    bench.memory.set_lock(&nsg(), ResourceLock::CannotDelete);
    bench.pass(62).await;
    let rules = bench.memory.rules(&nsg());
    assert_eq!(rules.len(), 1, "{rules:#?}");
    assert_eq!(rules[0].access, Access::Deny);
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. }), "closed counts as closed");
    bench.memory.set_lock(&nsg(), ResourceLock::None);
    bench.pass(400).await;
    assert!(bench.memory.rules(&nsg()).is_empty(), "{:#?}", bench.memory.rules(&nsg()));
}

#[tokio::test(start_paused = true)]
async fn a_foreign_write_that_brings_a_closed_rule_back_is_found_and_undone() {
    let bench = Bench::new();
    // Something to keep the gate, and past the hour in which it rechecks because it is new.
    bench.lock();
    bench.pass(3700).await;
    let reads = bench.memory.reads();
    bench.pass(299).await;
    assert!(bench.memory.reads() - reads <= 1, "else it is found without the close before it");
    let (uid, grant) = bench.grant(1, 60, OPEN);
    bench.give(&[(uid, grant)]);
    bench.pass(3).await;
    let copy: Vec<Rule> =
        bench.memory.rules(&nsg()).into_iter().filter(|rule| rule.access == Access::Allow).collect();
    assert_eq!(copy.len(), 1);
    bench.pass(62).await;
    assert_eq!(bench.allows(), 0);
    bench.memory.edit_rules(&nsg(), |rules| rules.extend(copy));
    bench.pass(65).await;
    assert_eq!(bench.allows(), 0, "looked at again each minute after a close");
}

#[tokio::test(start_paused = true)]
async fn a_closed_rule_is_looked_for_for_an_hour_however_its_closing_round_ended() {
    let bench = Bench::new();
    bench.lock();
    // Long past the hour in which every firewall that was just taken over is looked at.
    bench.pass(3700).await;
    let (uid, grant) = bench.grant(1, 60, OPEN);
    bench.give(&[(uid, grant)]);
    bench.pass(3).await;
    let copy = bench.memory.rules(&nsg());
    assert_eq!(copy.len(), 2);
    bench.memory.faults(|faults| faults.fail_reads(3, CloudErrorKind::Retryable));
    bench.pass(75).await;
    assert_eq!(bench.allows(), 0);
    bench.memory.edit_rules(&nsg(), |rules| *rules = copy);
    bench.pass(65).await;
    assert_eq!(bench.allows(), 0, "looked at again each minute after a close");
}

#[tokio::test(start_paused = true)]
async fn a_close_waits_for_no_read() {
    let bench = Bench::new();
    let grants: Vec<_> =
        (1..=2).map(|number| bench.grant(number, 30 * i64::from(number as u32), OPEN)).collect();
    bench.give(&grants);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 2);
    // Each read hangs for longer than both have left.
    bench.memory.faults(|faults| faults.read_time = Duration::from_secs(100));
    bench.pass(30).await;
    assert_eq!(bench.allows(), 1, "the first is closed within seconds of its deadline");
    bench.pass(30).await;
    assert_eq!(bench.allows(), 0, "and the second while the read after the first still hangs");
    assert!(
        !matches!(bench.gates.seen(&nsg(), &grants[0].1.name), Seen::Absent { .. }),
        "nothing was read back yet"
    );
}

#[tokio::test(start_paused = true)]
async fn a_read_that_a_close_interrupts_forgets_none_that_was_sent() {
    let bench = Bench::new();
    let grants: Vec<_> =
        (1..=4).map(|number| bench.grant(number, 20 + 5 * i64::from(number as u32), OPEN)).collect();
    bench.give(&grants);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 4);
    let opened = bench.memory.writes().len();
    bench.memory.faults(|faults| faults.read_time = Duration::from_secs(100));
    bench.pass(45).await;
    let sent: Vec<String> = bench.memory.writes()[opened..].iter().map(describe).collect();
    let once: Vec<String> = grants.iter().map(|(_, grant)| format!("delete {}", grant.name)).collect();
    assert_eq!(sent, once);
    // They are proved by the first read that ends.
    bench.memory.faults(|faults| faults.read_time = Duration::ZERO);
    bench.pass(200).await;
    for (_, grant) in &grants {
        let seen = bench.gates.seen(&nsg(), &grant.name);
        assert!(matches!(seen, Seen::Absent { .. }), "{seen:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_opened_that_has_less_time_left_than_a_write_may_take() {
    let bench = Bench::new();
    let short = bench.grant(1, 9, OPEN);
    bench.give(std::slice::from_ref(&short));
    bench.pass(2).await;
    assert_eq!(bench.memory.writes().len(), 0);
    let seen = bench.gates.seen(&nsg(), &short.1.name);
    assert!(matches!(seen, Seen::Refused { reason: Reason::OpenTimedOut, .. }), "{seen:?}");
}

/// A firewall whose reads are answered by somebody else as long as it says so.
struct Misread {
    memory: Memory,
    read: Box<dyn Fn(Observed) -> Result<Observed, CloudErrorKind> + Send + Sync>,
}

#[async_trait::async_trait]
impl Firewall for Misread {
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        let observed = self.memory.observe(firewall).await?;
        (self.read)(observed).map_err(|kind| CloudError { kind, ..forbidden() })
    }

    async fn put(
        &self,
        firewall: &FirewallId,
        rule: &Rule,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        self.memory.put(firewall, rule, patience).await
    }

    async fn delete(
        &self,
        firewall: &FirewallId,
        rule: &str,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        self.memory.delete(firewall, rule, patience).await
    }

    fn limits(&self) -> FirewallLimits {
        self.memory.limits()
    }
}

impl Bench {
    /// The cloud in memory, whose firewalls are read so.
    fn misread(
        &self,
        read: impl Fn(Observed) -> Result<Observed, CloudErrorKind> + Send + Sync + 'static,
    ) -> Cloud {
        let firewall = Misread { memory: self.memory.clone(), read: Box::new(read) };
        Cloud { inventory: std::sync::Arc::new(self.memory.clone()), firewall: std::sync::Arc::new(firewall) }
    }
}

#[tokio::test(start_paused = true)]
async fn a_firewall_that_is_not_found_argues_no_close_away() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 60, OPEN);
    let hidden = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let read = {
        let hidden = std::sync::Arc::clone(&hidden);
        move |observed| match hidden.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(CloudErrorKind::NotFound),
            false => Ok(observed),
        }
    };
    bench.gates.set_grants(&uid, "main", &bench.misread(read), vec![(nsg(), grant)]);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 1);
    hidden.store(true, std::sync::atomic::Ordering::SeqCst);
    bench.pass(60).await;
    assert_eq!(bench.allows(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_read_from_before_a_close_proves_nothing_of_it() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 60, OPEN);
    // Under a lock, and with a first read that does not show the rule, only the second one could prove the close.
    let reads = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let blind = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let read = {
        let (reads, blind) = (std::sync::Arc::clone(&reads), std::sync::Arc::clone(&blind));
        move |mut observed: Observed| {
            let nth = reads.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            if blind.load(std::sync::atomic::Ordering::SeqCst) {
                if nth > 0 {
                    return Err(CloudErrorKind::Retryable);
                }
                observed.rules.retain(|rule| rule.access == Access::Deny);
            }
            Ok(observed)
        }
    };
    bench.memory.set_lock(&nsg(), ResourceLock::CannotDelete);
    bench.gates.set_grants(&uid, "main", &bench.misread(read), vec![(nsg(), grant.clone())]);
    bench.pass(53).await;
    assert_eq!(bench.allows(), 1);
    reads.store(0, std::sync::atomic::Ordering::SeqCst);
    blind.store(true, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..160 {
        bench.clock.step(SignedDuration::from_millis(50));
        tokio::time::sleep(Duration::from_millis(50)).await;
        let seen = bench.gates.seen(&nsg(), &grant.name);
        assert!(!matches!(seen, Seen::Absent { .. }), "{seen:?}");
    }
    assert!(reads.load(std::sync::atomic::Ordering::SeqCst) > 1, "the read-back was tried");
    assert_eq!(bench.allows(), 1, "nothing could be done yet");
    blind.store(false, std::sync::atomic::Ordering::SeqCst);
    bench.pass(40).await;
    assert_eq!(bench.allows(), 0, "rewritten as a deny");
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. }));
}

/// A firewall whose first removal panics, as a bug in a provider would.
struct Panics {
    memory: Memory,
    first: std::sync::atomic::AtomicBool,
}

#[async_trait::async_trait]
impl Firewall for Panics {
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        self.memory.observe(firewall).await
    }

    async fn put(
        &self,
        firewall: &FirewallId,
        rule: &Rule,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        self.memory.put(firewall, rule, patience).await
    }

    async fn delete(
        &self,
        firewall: &FirewallId,
        rule: &str,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        assert!(!self.first.swap(false, std::sync::atomic::Ordering::SeqCst), "generated");
        self.memory.delete(firewall, rule, patience).await
    }

    fn limits(&self) -> FirewallLimits {
        self.memory.limits()
    }
}

#[tokio::test(start_paused = true)]
async fn a_gate_that_panics_starts_again_and_closes() {
    let bench = Bench::new();
    let firewall = Panics { memory: bench.memory.clone(), first: true.into() };
    let cloud = Cloud {
        inventory: std::sync::Arc::new(bench.memory.clone()),
        firewall: std::sync::Arc::new(firewall),
    };
    let (uid, grant) = bench.grant(1, 60, OPEN);
    bench.gates.set_grants(&uid, "main", &cloud, vec![(nsg(), grant)]);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 1);
    bench.pass(65).await;
    assert_eq!(bench.allows(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_name_of_another_cluster_is_neither_removed_nor_in_the_way() {
    let bench = Bench::new();
    let (uid, mut grant) = bench.grant(1, 300, |_| Duty::Close { sent: false });
    grant.name = allow_name(&Cluster::new("an id of before", &[]), &uid, grant.deadline, 0);
    bench.give(&[(uid, grant.clone())]);
    bench.lock();
    bench.pass(2).await;
    let writes: Vec<String> = bench.memory.writes().iter().map(describe).collect();
    assert_eq!(writes.len(), 1, "the lock and nothing else: {writes:?}");
    assert!(writes[0].contains("-deny-"), "{writes:?}");
    let Seen::Trying { message, .. } = bench.gates.seen(&nsg(), &grant.name) else {
        panic!("nobody says why")
    };
    assert!(message.contains("previousClusterIds"), "{message}");
}

/// A firewall that one credential may not touch.
struct Forbidden(Memory);

#[async_trait::async_trait]
impl Firewall for Forbidden {
    async fn observe(&self, _: &FirewallId) -> Result<Observed, CloudError> {
        Err(forbidden())
    }

    async fn put(&self, _: &FirewallId, _: &Rule, _: Duration) -> Result<Written, CloudError> {
        Err(forbidden())
    }

    async fn delete(&self, _: &FirewallId, _: &str, _: Duration) -> Result<Written, CloudError> {
        Err(forbidden())
    }

    fn limits(&self) -> FirewallLimits {
        self.0.limits()
    }
}

fn forbidden() -> CloudError {
    CloudError {
        kind: CloudErrorKind::NotPermitted,
        operation: "generated".into(),
        message: "403".into(),
        code: None,
        retry_after: None,
        request_id: None,
    }
}

#[tokio::test(start_paused = true)]
async fn what_one_credential_may_not_close_another_closes() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 600, OPEN);
    bench.give(&[(uid.clone(), grant.clone())]);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 1);
    let forbidden = std::sync::Arc::new(Forbidden(bench.memory.clone()));
    let cloud = Cloud { inventory: std::sync::Arc::new(bench.memory.clone()), firewall: forbidden };
    let closing = Grant { duty: Duty::Close { sent: false }, ..grant };
    // In the order of the names, the one that may not comes first.
    bench.gates.set_grants(&uid, "another", &cloud, vec![(nsg(), closing)]);
    bench.pass(30).await;
    assert_eq!(bench.allows(), 0);
}

/// An output that takes nothing until somebody lets it.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl std::io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_opened_while_its_record_cannot_be_written_and_closes_and_locks_go_on() {
    let (reader, stuck) = std::sync::mpsc::channel();
    let (clock, started) = (Clock::system(), Started::default());
    let bench = Bench::recorded_by(Audit::start(Stuck(stuck), started, clock, Metrics::new()).unwrap());
    // Rules that stand already, and die.
    let dying: Vec<_> = (1..=5).map(|number| bench.grant(number, 20, |_| Duty::Hold)).collect();
    let before = Bench::new();
    let open: Vec<_> = (1..=5).map(|number| before.grant(number, 20, OPEN)).collect();
    before.give(&open);
    before.pass(2).await;
    bench.memory.edit_rules(&nsg(), |rules| *rules = before.memory.rules(&nsg()));
    assert_eq!(bench.allows(), 5);
    bench.give(&dying);
    let waiting = bench.grant(7, 600, OPEN);
    bench.give(std::slice::from_ref(&waiting));
    bench.lock();
    bench.pass(5).await;
    assert_eq!(bench.allows(), 5, "nothing was opened");
    assert!(bench.memory.rules(&nsg()).iter().any(|rule| rule.access == Access::Deny), "the lock stands");
    let seen = bench.gates.seen(&nsg(), &waiting.1.name);
    assert!(matches!(seen, Seen::Trying { reason: Reason::AuditUnavailable, .. }), "{seen:?}");
    bench.pass(17).await;
    assert_eq!(bench.allows(), 0, "closed within two seconds of the deadline");
    // Somebody reads: the next try opens. The thread that writes lives by the clock on the wall.
    drop(reader);
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(20));
        bench.pass(2).await;
    }
    assert_eq!(bench.allows(), 1);
}
