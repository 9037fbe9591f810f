//! How a gate closes: by itself, for good, and whatever fails or comes back.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

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
    let once: Vec<String> = grants.iter().map(|(_, grant)| format!("close {}", grant.name)).collect();
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
async fn a_gate_that_panics_starts_again_and_closes() {
    let bench = Bench::new();
    // As a bug in a provider would.
    let first = std::sync::atomic::AtomicBool::new(true);
    let cloud = bench.behind(move |call| {
        let first = call == Call::Delete && first.swap(false, std::sync::atomic::Ordering::SeqCst);
        assert!(!first, "generated");
        None
    });
    let (uid, grant) = bench.grant(1, 60, OPEN);
    bench.gates.set_grants(&uid, "main", &cloud, vec![(nsg(), grant)], &[]);
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

/// Each removal costs the cloud a write, and a rule that is closed is watched by reads.
#[tokio::test(start_paused = true)]
async fn a_rule_that_is_proved_closed_is_not_removed_again_and_is_forgotten_within_hours() {
    let bench = Bench::new();
    bench.give(&[bench.grant(1, 60, OPEN)]);
    bench.pass(90).await;
    let removals = || bench.memory.writes().iter().filter(|write| write.change.is_removal()).count();
    assert_eq!((bench.allows(), removals()), (0, 1));
    bench.pass(7400).await;
    assert_eq!(removals(), 1);
    assert!(bench.gates.requests().is_empty(), "nothing is kept of it");
    let reads = bench.memory.reads();
    bench.pass(600).await;
    assert_eq!(bench.memory.reads(), reads, "nor is the firewall read for it");
}

/// Nothing tells that the cloud is back, and what is due by then is due.
#[tokio::test(start_paused = true)]
async fn what_is_due_is_closed_within_seconds_of_the_end_of_an_outage_however_long_that_was() {
    for kind in [CloudErrorKind::Retryable, CloudErrorKind::Ambiguous, CloudErrorKind::Unanswered] {
        let bench = Bench::new();
        let away = Arc::new(AtomicBool::new(false));
        let tried = Arc::new(AtomicUsize::new(0));
        let cloud = {
            let (away, tried) = (Arc::clone(&away), Arc::clone(&tried));
            bench.behind(move |call| {
                let refuses = away.load(Ordering::SeqCst)
                    && (call == Call::Delete || kind == CloudErrorKind::Retryable);
                tried.fetch_add(usize::from(refuses), Ordering::SeqCst);
                refuses.then_some(kind)
            })
        };
        bench.give_by("main", &cloud, &[bench.grant(1, 60, OPEN)]);
        bench.pass(50).await;
        assert_eq!(bench.allows(), 1);
        away.store(true, Ordering::SeqCst);
        bench.pass(600).await;
        assert_eq!(bench.allows(), 1);
        let calls = tried.load(Ordering::SeqCst);
        assert!(calls < 600, "{kind:?}: {calls} calls in ten minutes");
        away.store(false, Ordering::SeqCst);
        bench.pass(6).await;
        assert_eq!(bench.allows(), 0, "{kind:?}");
    }
}

/// A sweep found it: nobody knows its request, and it is as overdue as any.
#[tokio::test(start_paused = true)]
async fn an_allow_of_nobody_counts_as_overdue_until_it_is_gone() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 3000, OPEN);
    bench.give(&[(uid.clone(), grant.clone())]);
    bench.pass(3).await;
    assert_eq!((bench.allows(), bench.gates.overdue()), (1, 0));
    let strays = Bench::new();
    strays.memory.edit_rules(&nsg(), |rules| *rules = bench.memory.rules(&nsg()));
    let refuses = Arc::new(AtomicBool::new(true));
    let cloud = {
        let refuses = Arc::clone(&refuses);
        strays.behind(move |call| {
            (call == Call::Delete && refuses.load(Ordering::SeqCst)).then_some(CloudErrorKind::NotPermitted)
        })
    };
    let found = || strays.gates.close_orphans(&nsg(), "main", &cloud, [grant.name.clone()].into());
    assert_eq!(found(), 1);
    strays.pass(30).await;
    assert_eq!((strays.allows(), strays.gates.overdue()), (1, 1));
    assert_eq!(found(), 0, "the same at the next sweep");
    refuses.store(false, Ordering::SeqCst);
    strays.pass(35).await;
    assert_eq!((strays.allows(), strays.gates.overdue()), (0, 0));
    // What is the gate's own is counted once.
    assert_eq!(bench.gates.close_orphans(&nsg(), "main", &bench.memory.cloud(), [grant.name].into()), 0);
}
