//! Several replicas before one cloud: who opens and locks, and that a close waits for none of them.

use portcullis::plan::changes::grant_rule;
use portcullis::plan::lease::{GRACE, Record, Role, Times};
use portcullis::providers::memory::faults::WriteFault;

use super::*;
use crate::provider_firewall::{behind, memory_firewall};

const HOLD: fn(Timestamp) -> Duty = |_| Duty::Hold;
const ANOTHER: &str = "another";
const ME: &str = "me";

/// One replica; what the lease says is up to the test.
struct Replica {
    bench: Bench,
    leadership: Leadership,
}

impl Replica {
    fn new() -> Self {
        let clock = Clock::manual("2026-11-22T08:00:00Z".parse().unwrap());
        let settings = portcullis::controllers::leader::Settings {
            namespace: "portcullis-system".into(),
            identity: ME.into(),
            times: Times::default(),
        };
        let leadership = Leadership::contested(&settings, clock.clone());
        Self { bench: Bench::led_by(leadership.clone(), clock, Audit::off()), leadership }
    }

    /// One that holds the lease, and has locked what a policy wants locked.
    async fn locked() -> Self {
        let replica = Self::new();
        replica.hold(1).await;
        replica.bench.lock();
        replica.hold(3).await;
        assert_eq!(replica.bench.denies(), 1);
        replica
    }

    fn record(&self, holder: &str) -> Record {
        let version = self.bench.clock.now().to_string();
        Record {
            holder: Some(holder.into()),
            duration: Times::default().duration,
            version,
            term: String::new(),
        }
    }

    /// Somebody else renews the lease each second.
    async fn stand_by(&self, seconds: i64) {
        for _ in 0..seconds {
            self.leadership.saw(Some(self.record(ANOTHER)));
            self.bench.pass(1).await;
        }
    }

    /// It renews the lease each second.
    async fn hold(&self, seconds: i64) {
        for _ in 0..seconds {
            self.leadership.wrote(self.record(ME), self.leadership.attempt());
            self.bench.pass(1).await;
        }
    }

    /// Nobody renews it.
    async fn lapse(&self, seconds: i64) {
        for _ in 0..seconds {
            self.bench.pass(1).await;
            self.leadership.role();
        }
    }

    /// What another replica has written.
    fn stands(&self, grant: &Grant) {
        let rule = grant_rule(&cluster(), grant, 1000);
        self.bench.memory.edit_rules(&nsg(), |rules| rules.push(rule.clone()));
    }

    fn writes(&self) -> usize {
        self.bench.memory.writes().len()
    }
}

#[tokio::test(start_paused = true)]
async fn one_that_does_not_hold_the_lease_opens_and_locks_nothing_until_it_does() {
    let replica = Replica::new();
    let bench = &replica.bench;
    bench.lock();
    bench.give(&[bench.grant(1, 600, OPEN)]);
    replica.stand_by(30).await;
    assert_eq!((bench.denies(), bench.allows()), (0, 0));
    // Nor where nobody holds it.
    replica.lapse(25).await;
    assert_eq!(replica.leadership.role(), Role::Nobody);
    assert_eq!((bench.denies(), bench.allows(), replica.writes()), (0, 0, 0));
    replica.hold(1).await;
    // Policies are looked at again by whoever holds it.
    bench.lock();
    replica.hold(2).await;
    assert_eq!((bench.denies(), bench.allows()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_begun_that_the_lease_may_not_outlast() {
    let replica = Replica::locked().await;
    let bench = &replica.bench;
    // The last renewal was sent a second ago: after five more, what takes ten seconds would end too late.
    bench.pass(5).await;
    bench.give(&[bench.grant(1, 600, OPEN)]);
    bench.memory.edit_rules(&nsg(), |rules| rules.retain(|rule| rule.access == Access::Allow));
    bench.pass(2).await;
    assert_eq!((bench.denies(), bench.allows(), replica.leadership.role()), (0, 0, Role::Holder));
    replica.hold(2).await;
    assert_eq!((bench.denies(), bench.allows()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_the_holder_does_not_close_in_time_another_closes() {
    let replica = Replica::new();
    let bench = &replica.bench;
    let grace = i64::try_from(GRACE.as_secs()).unwrap();
    let (by_time, by_word) = (bench.grant(1, 20, HOLD), bench.grant(2, 3600, HOLD));
    for (_, grant) in [&by_time, &by_word] {
        replica.stands(grant);
    }
    bench.give(&[by_time.clone(), by_word.clone()]);
    replica.stand_by(19 + grace).await;
    assert_eq!((bench.allows(), replica.writes()), (2, 0));
    replica.stand_by(3).await;
    assert_eq!((bench.allows(), replica.writes()), (1, 1), "past its deadline and the grace");
    // The request was ended, and the holder has said so before it hung.
    let (uid, grant) = &by_word;
    bench.give(&[(uid.clone(), Grant { duty: Duty::Close { sent: false }, ..grant.clone() })]);
    replica.stand_by(grace - 1).await;
    assert_eq!(bench.allows(), 1);
    replica.stand_by(3).await;
    assert_eq!((bench.allows(), replica.writes()), (0, 2));
    replica.stand_by(120).await;
    assert_eq!(replica.writes(), 2, "once");
}

#[tokio::test(start_paused = true)]
async fn what_the_holder_has_closed_is_not_closed_again() {
    let replica = Replica::new();
    let bench = &replica.bench;
    let (uid, grant) = bench.grant(1, 20, HOLD);
    bench.give(&[(uid.clone(), grant.clone())]);
    replica.stand_by(25).await;
    bench.gates.are_gone(vec![(nsg(), grant.name.clone())]);
    // Settled: the watch tells that it is gone.
    bench.gates.end(&uid);
    replica.stand_by(60).await;
    assert_eq!(replica.writes(), 0);
    // And a cache that is behind opens it nowhere.
    bench.give(&[(uid, Grant { duty: OPEN(bench.clock.now()), ..grant })]);
    replica.hold(5).await;
    assert_eq!(bench.allows(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_close_that_fails_is_tried_again_without_a_hot_loop_by_whoever_stands_by() {
    let replica = Replica::new();
    let bench = &replica.bench;
    let (uid, grant) = bench.grant(1, 5, HOLD);
    replica.stands(&grant);
    bench.give(&[(uid, grant)]);
    let refused = WriteFault::Refused(CloudErrorKind::Retryable);
    bench.memory.faults(|faults| faults.break_all_writes(Some(refused)));
    replica.stand_by(120).await;
    let tried = replica.writes();
    assert!((15..=50).contains(&tried), "{tried}");
    bench.memory.faults(|faults| faults.break_all_writes(None));
    replica.stand_by(6).await;
    assert_eq!(bench.allows(), 0);
}

/// A sweep finds each of them once an interval: until then nobody else would try again.
#[tokio::test(start_paused = true)]
async fn what_a_sweep_found_and_could_not_be_removed_is_tried_again_by_whoever_stands_by() {
    let replica = Replica::new();
    let bench = &replica.bench;
    let (_, grant) = bench.grant(1, 5, HOLD);
    replica.stands(&grant);
    replica.stand_by(20).await;
    bench.memory.faults(|faults| faults.break_write(1, WriteFault::Refused(CloudErrorKind::Retryable)));
    bench.gates.close_orphans(&nsg(), "main", &bench.memory.cloud(), [grant.name.clone()].into());
    replica.stand_by(10).await;
    assert_eq!((bench.allows(), replica.writes()), (0, 2));
    replica.stand_by(120).await;
    assert_eq!(replica.writes(), 2, "once it has gone well");
}

#[tokio::test(start_paused = true)]
async fn once_the_lease_has_lapsed_everything_is_closed_at_once_and_nothing_else_is_done() {
    let replica = Replica::new();
    let bench = &replica.bench;
    let (uid, grant) = bench.grant(1, 60, HOLD);
    replica.stands(&grant);
    bench.lock();
    bench.give(&[(uid, grant.clone())]);
    replica.lapse(59).await;
    assert_eq!((replica.leadership.role(), bench.allows()), (Role::Nobody, 1));
    bench.pass(3).await;
    assert_eq!((bench.allows(), bench.denies()), (0, 0));
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. }));
    let before = replica.writes();
    bench.pass(600).await;
    assert_eq!(replica.writes(), before);
}

#[tokio::test(start_paused = true)]
async fn a_firewall_that_is_written_whole_is_written_by_the_holder_alone_while_there_is_one() {
    let replica = Replica::new();
    let bench = &replica.bench;
    bench.memory.add_firewall(memory_firewall());
    bench.memory.set_machine(behind(Vec::new()));
    let (uid, grant) = bench.grant(1, 30, HOLD);
    let rule = grant_rule(&cluster(), &grant, 1000);
    bench.memory.edit_rules(&memory_firewall(), |rules| rules.push(rule.clone()));
    bench.gates.set_grants(&uid, "main", &bench.memory.cloud(), vec![(memory_firewall(), grant)], &[]);
    replica.stand_by(90).await;
    assert_eq!(bench.memory.rules(&memory_firewall()).len(), 1);
    replica.lapse(20).await;
    assert_eq!(replica.leadership.role(), Role::Nobody);
    assert_eq!(bench.memory.rules(&memory_firewall()).len(), 0);
}

/// What the holder before had begun to write, and nobody has seen, may land when it is long closed.
#[tokio::test(start_paused = true)]
async fn an_allow_that_a_former_holder_may_still_write_counts_as_closed_only_when_it_no_longer_can() {
    let replica = Replica::new();
    let bench = &replica.bench;
    replica.hold(1).await;
    let (uid, grant) = bench.grant(1, 3600, |_| Duty::Close { sent: false });
    let lands = [(nsg(), grant.name.clone(), Duration::from_secs(300))];
    bench.gates.set_grants(&uid, "main", &bench.memory.cloud(), vec![(nsg(), grant.clone())], &lands);
    replica.hold(100).await;
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Trying { .. }));
    replica.stands(&grant);
    replica.hold(35).await;
    assert_eq!(bench.allows(), 0, "removed as long as it may come");
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Trying { .. }));
    replica.hold(200).await;
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. }));
}

/// A machine that was suspended: the clock that is never set has not moved, the one on the wall has.
#[tokio::test(start_paused = true)]
async fn one_that_was_asleep_does_not_take_an_old_lease_for_its_own() {
    let replica = Replica::new();
    let bench = &replica.bench;
    replica.hold(3).await;
    assert!(replica.leadership.is_holder());
    bench.clock.step(SignedDuration::from_secs(60));
    assert!(!replica.leadership.is_holder() && !replica.leadership.outlasts(Duration::ZERO));
    bench.give(&[bench.grant(1, 600, OPEN)]);
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(bench.allows(), 0);
    replica.hold(2).await;
    assert_eq!(bench.allows(), 1);
}

/// Another replica had the lease, and policies may have changed meanwhile: what was wanted before it is nobody's word.
#[tokio::test(start_paused = true)]
async fn locks_of_a_former_term_are_not_written_again() {
    let replica = Replica::locked().await;
    let bench = &replica.bench;
    replica.stand_by(20).await;
    // The other one unlocks it, and locks another port.
    bench.memory.edit_rules(&nsg(), |rules| {
        for rule in rules.iter_mut().filter(|rule| rule.access == Access::Deny && rule.priority < 4096) {
            rule.ports = vec![PortRange::single(3389)];
        }
    });
    let (before, rules) = (replica.writes(), bench.memory.rules(&nsg()));
    replica.hold(90).await;
    assert_eq!((replica.writes(), bench.memory.rules(&nsg())), (before, rules));
    assert!(bench.gates.report(&nsg()).unwrap().locked.is_empty());
    bench.lock();
    replica.hold(5).await;
    assert!(replica.writes() > before, "told again, it locks");
    assert!(!bench.gates.report(&nsg()).unwrap().locked.is_empty());
}

/// It was read back as gone while nobody held the lease; then it turns out that a write of it may still be under way.
#[tokio::test(start_paused = true)]
async fn what_was_read_back_as_gone_before_the_lease_was_held_proves_nothing_of_a_write_of_the_holder_before()
{
    let replica = Replica::new();
    let bench = &replica.bench;
    let (uid, grant) = bench.grant(1, 3600, |_| Duty::Close { sent: false });
    bench.give(&[(uid.clone(), grant.clone())]);
    replica.stand_by(15).await;
    replica.lapse(20).await;
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. }));
    replica.hold(1).await;
    let lands = [(nsg(), grant.name.clone(), Duration::from_secs(300))];
    bench.gates.set_grants(&uid, "main", &bench.memory.cloud(), vec![(nsg(), grant.clone())], &lands);
    assert!(!matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. }));
    replica.hold(10).await;
    assert!(matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Trying { .. }));
}

#[tokio::test(start_paused = true)]
async fn a_tenure_outlasts_a_late_renewal_and_no_other_holder() {
    let replica = Replica::new();
    assert!(replica.leadership.tenure().is_none());
    replica.hold(1).await;
    let first = replica.leadership.tenure().unwrap();
    replica.lapse(20).await;
    assert!(replica.leadership.tenure().is_none());
    replica.hold(1).await;
    let same = replica.leadership.tenure().unwrap();
    assert_eq!(same.begun, first.begun);
    assert!(same.lasted >= Duration::from_secs(21), "{same:?}");
    replica.stand_by(1).await;
    replica.lapse(20).await;
    replica.hold(1).await;
    let next = replica.leadership.tenure().unwrap();
    assert!(next.begun > first.begun && next.lasted <= Duration::from_secs(2), "{next:?}");
}

/// Others may have changed its machines and its locks in between.
#[tokio::test(start_paused = true)]
async fn what_a_policy_has_said_in_a_former_term_does_not_count() {
    let replica = Replica::new();
    let bench = &replica.bench;
    bench.gates.know(super::heard::there(&['a', 'b']));
    replica.hold(1).await;
    bench.lock();
    bench.lock_of('b', "main", &bench.memory.cloud());
    replica.hold(5).await;
    assert_eq!(bench.denies(), 2);
    replica.stand_by(30).await;
    replica.lapse(20).await;
    replica.hold(1).await;
    bench.lock();
    replica.hold(100).await;
    assert_eq!(bench.denies(), 2, "the other one has not been heard in this one");
    bench.gates.forget("bbbbbbbb-0000-4000-8000-000000000000");
    replica.hold(5).await;
    assert_eq!(bench.denies(), 1);
}
