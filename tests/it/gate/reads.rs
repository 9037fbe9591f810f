//! What a read proves, and what it does not.

use super::*;

#[tokio::test(start_paused = true)]
async fn a_firewall_that_is_not_found_argues_no_close_away() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 60, OPEN);
    let hidden = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let read = {
        let hidden = Arc::clone(&hidden);
        move |observed| match hidden.load(std::sync::atomic::Ordering::SeqCst) {
            true => Err(CloudErrorKind::NotFound),
            false => Ok(observed),
        }
    };
    bench.gates.set_grants(&uid, "main", &bench.misread(read), vec![(nsg(), grant)], &[]);
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
    let reads = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let blind = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let read = {
        let (reads, blind) = (Arc::clone(&reads), Arc::clone(&blind));
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
    bench.gates.set_grants(&uid, "main", &bench.misread(read), vec![(nsg(), grant.clone())], &[]);
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

/// It shows neither the lock nor what that stands above.
#[tokio::test(start_paused = true)]
async fn a_read_from_before_a_lock_moves_it_nowhere() {
    let bench = Bench::new();
    bench
        .memory
        .edit_rules(&nsg(), |rules| rules.push(crate::plan_world::rule("ssh 300 Allow TCP * > * : 22")));
    let is_old = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let read = {
        let is_old = Arc::clone(&is_old);
        move |mut observed: Observed| {
            if is_old.load(std::sync::atomic::Ordering::SeqCst) {
                observed.rules.retain(|rule| rule.priority > 4096);
            }
            Ok(observed)
        }
    };
    bench.lock_by("main", &bench.misread(read));
    bench.pass(3).await;
    let denies = || {
        let rules = bench.memory.rules(&nsg());
        let denies = rules.into_iter().filter(|rule| rule.access == Access::Deny && rule.priority <= 4096);
        denies.map(|rule| (rule.name, rule.priority)).collect::<Vec<_>>()
    };
    let locked = denies();
    assert_eq!(locked.iter().map(|(_, priority)| *priority).collect::<Vec<_>>(), [299]);
    let before = bench.memory.writes().len();
    is_old.store(true, std::sync::atomic::Ordering::SeqCst);
    for _ in 0..200 {
        bench.pass(1).await;
        assert_eq!(denies(), locked);
    }
    assert!(bench.memory.writes().len() > before, "it was written again, where it is");
}
