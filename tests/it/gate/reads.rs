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
