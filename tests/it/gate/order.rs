//! What a gate writes first, what waits for its turn, and what comes too late.

use super::*;

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
    assert_eq!(kinds[0], format!("close {}", closing.name), "{kinds:?}");
    let lock = kinds.iter().position(|kind| kind.contains("-deny-")).unwrap();
    let open = kinds.iter().position(|kind| kind.contains(&new.1.name)).unwrap();
    assert!(lock < open, "{kinds:?}");
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
