//! Several credentials that reach one firewall: closes go by any of them, and the rest by its own.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn what_one_credential_may_not_close_another_closes() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 600, OPEN);
    bench.give(&[(uid.clone(), grant.clone())]);
    bench.pass(3).await;
    assert_eq!(bench.allows(), 1);
    let forbidden = bench.behind(|_| Some(CloudErrorKind::NotPermitted));
    let closing = Grant { duty: Duty::Close { sent: false }, ..grant };
    // In the order of the names, the one that may not comes first.
    bench.gates.set_grants(&uid, "another", &forbidden, vec![(nsg(), closing)], &[]);
    bench.pass(2).await;
    assert_eq!(bench.allows(), 0);
}

/// Of a credential whose tokens cannot be had, say, no answer tells anything of its rights.
#[tokio::test(start_paused = true)]
async fn a_credential_that_fails_for_whatever_reason_holds_up_no_close_of_another() {
    use CloudErrorKind::{Ambiguous, Full, Invalid, NotPermitted, Retryable, Unauthenticated};
    for kind in [Ambiguous, Full, Invalid, NotPermitted, Retryable, Unauthenticated] {
        let bench = Bench::new();
        let fails = Arc::new(AtomicBool::new(false));
        let broken = {
            let fails = Arc::clone(&fails);
            bench.behind(move |_| fails.load(Ordering::SeqCst).then_some(kind))
        };
        bench.lock_by("another", &broken);
        let grants: Vec<_> = (1..=3).map(|number| bench.grant(number, 60, OPEN)).collect();
        bench.give(&grants);
        bench.pass(55).await;
        assert_eq!(bench.allows(), 3);
        fails.store(true, Ordering::SeqCst);
        bench.pass(7).await;
        assert_eq!(bench.allows(), 0, "{kind:?}");
        for (_, grant) in &grants {
            let seen = bench.gates.seen(&nsg(), &grant.name);
            assert!(matches!(seen, Seen::Absent { .. }), "{kind:?}: {seen:?}");
        }
        let tries = bench.memory.writes().iter().filter(|write| write.change.is_removal()).count();
        assert_eq!(tries, 3, "each removal was sent once by the one that works");
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_opens_locks_or_unlocks_by_the_credential_of_somebody_else() {
    let bench = Bench::new();
    // A grant and a lock of a namespace whose own credential may read and nothing else.
    let reader = || bench.behind(|call| (call != Call::Read).then_some(CloudErrorKind::NotPermitted));
    let (uid, theirs) = bench.grant(1, 600, OPEN);
    bench.gates.set_grants(&uid, "another", &reader(), vec![(nsg(), theirs.clone())], &[]);
    bench.lock_by("another", &reader());
    // Of one that may write.
    let (owner, own) = bench.grant(2, 600, OPEN);
    bench.give(&[(owner.clone(), own.clone())]);
    for _ in 0..3 {
        bench.pass(40).await;
        // What is closed meanwhile goes by the one that may, and leaves nothing behind for the others.
        let (uid, closing) = bench.grant(3, 600, |_| Duty::Close { sent: false });
        bench.give(&[(uid, closing)]);
    }
    let written: Vec<String> = bench
        .memory
        .writes()
        .iter()
        .filter(|write| matches!(write.change, Change::Put(_)))
        .map(describe)
        .collect();
    assert_eq!(written, [format!("put {}", own.name)]);
    let seen = bench.gates.seen(&nsg(), &theirs.name);
    assert!(matches!(seen, Seen::Trying { reason: Reason::NotPermitted, .. }), "{seen:?}");
    // The policy's own lock is taken away by nobody else either.
    let bench = Bench::new();
    let may = Arc::new(AtomicBool::new(true));
    let cloud = {
        let may = Arc::clone(&may);
        bench.behind(move |call| {
            (call != Call::Read && !may.load(Ordering::SeqCst)).then_some(CloudErrorKind::NotPermitted)
        })
    };
    bench.lock_by("another", &cloud);
    bench.pass(3).await;
    assert_eq!(bench.denies(), 1);
    may.store(false, Ordering::SeqCst);
    bench.give(&[(owner, own)]);
    bench.release_by("another", &cloud);
    bench.pass(60).await;
    assert_eq!(bench.denies(), 1);
    may.store(true, Ordering::SeqCst);
    bench.pass(60).await;
    assert_eq!(bench.denies(), 0);
    // And in its turn: it is a removal, but what is due to close does not wait for it.
    let removals: Vec<String> =
        bench.memory.writes().iter().filter(|write| write.change.is_removal()).map(describe).collect();
    assert!(removals.iter().any(|removal| removal.starts_with("unlock")), "{removals:?}");
    let locks = |removal: &&String| removal.contains("-deny-") && !removal.starts_with("unlock");
    assert_eq!(removals.iter().find(locks), None, "{removals:?}");
}

/// A deny that an allow was closed by, under a lock that has been lifted since.
#[tokio::test(start_paused = true)]
async fn what_is_nobodys_is_cleared_away_by_whichever_credential_can() {
    let bench = Bench::new();
    bench.give(&[bench.grant(1, 60, OPEN)]);
    bench.pass(3).await;
    bench.memory.set_lock(&nsg(), ResourceLock::CannotDelete);
    bench.pass(62).await;
    assert_eq!((bench.allows(), bench.memory.rules(&nsg()).len()), (0, 1));
    // In the order of the names, the one that may only read comes first.
    let reader = bench.behind(|call| (call != Call::Read).then_some(CloudErrorKind::NotPermitted));
    bench.gates.set_locks("bbbbbbbb-0000-4000-8000-000000000000", "another", &reader, [(nsg(), None)].into());
    bench.memory.set_lock(&nsg(), ResourceLock::None);
    bench.pass(400).await;
    assert!(bench.memory.rules(&nsg()).is_empty(), "{:#?}", bench.memory.rules(&nsg()));
}

/// The cloud counts the calls of each credential apart.
#[tokio::test(start_paused = true)]
async fn a_credential_that_is_throttled_or_not_answered_holds_up_no_lock_or_open_of_another() {
    for kind in [CloudErrorKind::Retryable, CloudErrorKind::Unanswered] {
        let bench = Bench::new();
        let slow = || {
            let refuse = move |call| (call != Call::Read).then_some(kind);
            let wait = (kind == CloudErrorKind::Retryable).then_some(Duration::from_secs(300));
            Behind { refuse: Box::new(refuse), wait, ..Behind::of(&bench.memory) }.cloud()
        };
        // Its locks and opens come first, by their names and in time.
        bench.lock_of('a', "another", &slow());
        bench.give_by("another", &slow(), &[bench.grant(1, 600, OPEN)]);
        bench.pass(1).await;
        bench.lock_of('b', "main", &bench.memory.cloud());
        bench.give(&[bench.grant(2, 600, OPEN)]);
        bench.pass(3).await;
        assert_eq!((bench.denies(), bench.allows()), (1, 1), "{kind:?}");
    }
}

/// Rules whose writes never end well keep no other rule of the same credential waiting for ever.
#[tokio::test(start_paused = true)]
async fn what_failed_before_comes_last() {
    let bench = Bench::new();
    // The first that is not answered ends a round for its credential.
    let stuck = Arc::new(Mutex::new(["a", "b", "d"].map(|policy| policy.repeat(8)).into()));
    let cloud = Behind { stuck: Arc::clone(&stuck), ..Behind::of(&bench.memory) }.cloud();
    for policy in ['a', 'b', 'c', 'd'] {
        bench.lock_of(policy, "main", &cloud);
    }
    bench.give_by("main", &cloud, &[bench.grant(1, 600, OPEN)]);
    bench.pass(20).await;
    assert_eq!((bench.denies(), bench.allows()), (1, 1), "c, and the grant");
    // Nor those that failed each other.
    stuck.lock().unwrap().pop();
    bench.pass(35).await;
    assert_eq!(bench.denies(), 2, "and d");
}

/// Each of them may take a minute.
#[tokio::test(start_paused = true)]
async fn news_do_not_wait_for_all_that_failed_before() {
    let bench = Bench::new();
    let hangs = Behind { late: Some(Duration::from_secs(10_000)), ..Behind::of(&bench.memory) }.cloud();
    for policy in ['a', 'b', 'c', 'd'] {
        bench.lock_of(policy, "another", &hangs);
    }
    // A round for each, and then all of them in one.
    bench.pass(4 * 70).await;
    bench.lock_of('e', "main", &bench.memory.cloud());
    bench.pass(90).await;
    assert_eq!(bench.denies(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_throttled_or_not_answered_sends_one_write_a_round() {
    for kind in [CloudErrorKind::Retryable, CloudErrorKind::Unanswered] {
        let bench = Bench::new();
        let writes = Arc::new(AtomicUsize::new(0));
        let refuses = {
            let writes = Arc::clone(&writes);
            let refuse = move |call| {
                writes.fetch_add(usize::from(call == Call::Put), Ordering::SeqCst);
                (call == Call::Put).then_some(kind)
            };
            let wait = (kind == CloudErrorKind::Retryable).then_some(Duration::from_secs(300));
            Behind { refuse: Box::new(refuse), wait, ..Behind::of(&bench.memory) }.cloud()
        };
        for policy in ['a', 'b', 'c'] {
            bench.lock_of(policy, "main", &refuses);
        }
        bench.give_by("main", &refuses, &[bench.grant(1, 600, OPEN)]);
        tokio::time::sleep(Duration::from_millis(400)).await;
        assert_eq!(writes.load(Ordering::SeqCst), 1, "{kind:?}");
    }
}

/// The reconciler of a request offers every way each time it hears of a close that fails.
#[tokio::test(start_paused = true)]
async fn a_way_that_is_known_is_no_reason_to_try_again_at_once() {
    let bench = Bench::new();
    let forbidden = || bench.behind(|call| (call == Call::Delete).then_some(CloudErrorKind::NotPermitted));
    let deletes = Arc::new(AtomicUsize::new(0));
    let counted = {
        let deletes = Arc::clone(&deletes);
        bench.behind(move |call| {
            (call == Call::Delete).then(|| {
                deletes.fetch_add(1, Ordering::SeqCst);
                CloudErrorKind::NotPermitted
            })
        })
    };
    bench.give_by("main", &counted, &[bench.grant(1, 600, |_| Duty::Close { sent: false })]);
    for _ in 0..300 {
        bench.gates.offer_way(&nsg(), "another", &forbidden());
        bench.pass(1).await;
    }
    let tried = deletes.load(Ordering::SeqCst);
    assert!((20..45).contains(&tried), "tried {tried} times in 5 minutes");
}

impl Bench {
    /// The machine was taken out of the policy: its ports are unlocked.
    fn release_by(&self, credential: &str, cloud: &Cloud) {
        let lock = Lock {
            policy_uid: "aaaaaaaa-0000-4000-8000-000000000000".into(),
            policy: "web/web".into(),
            existing: ExistingRules::Override,
            machines: Vec::new(),
            exempt: Vec::new(),
            release: ["10.0.0.4".parse().unwrap()].into(),
            keep_others: true,
            cut_sessions: false,
        };
        let locks = [(nsg(), Some(lock))].into();
        self.gates.set_locks("aaaaaaaa-0000-4000-8000-000000000000", credential, cloud, locks);
    }
}
