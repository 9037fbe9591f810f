//! Writes that hang, and writes that land after everybody has given them up.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::*;

#[tokio::test(start_paused = true)]
async fn no_answer_to_an_open_is_waited_for_past_its_deadline() {
    let bench = Bench::new();
    let (uid, grant) = bench.grant(1, 12, OPEN);
    bench.memory.faults(|faults| faults.break_write(1, WriteFault::AnswerLost));
    bench.give(&[(uid, grant)]);
    bench.pass(2).await;
    assert_eq!(bench.allows(), 1, "written, though no answer came");
    bench.pass(12).await;
    assert_eq!(bench.allows(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_write_that_hangs_holds_up_no_close_for_long() {
    // A lock, and an open of somebody else.
    for open in [false, true] {
        let bench = Bench::new();
        let (uid, dying) = bench.grant(1, 60, OPEN);
        bench.give(&[(uid, dying)]);
        bench.pass(55).await;
        assert_eq!(bench.allows(), 1);
        bench.memory.faults(|faults| faults.break_write(1, WriteFault::AnswerLost));
        if open {
            bench.give(&[bench.grant(2, 600, OPEN)]);
        } else {
            bench.lock();
        }
        bench.pass(5 + 14).await;
        let left: Vec<String> = bench.memory.rules(&nsg()).iter().map(|rule| rule.name.clone()).collect();
        assert!(!left.iter().any(|name| name.contains("00000001")), "{left:?}");
        // What was given up is found where it was written, and done where it was not.
        bench.pass(60).await;
        let rules = bench.memory.rules(&nsg());
        let access = if open { Access::Allow } else { Access::Deny };
        assert!(rules.len() == 1 && rules[0].access == access, "{rules:#?}");
    }
}

/// Its operation never comes to an end, as Azure has it: the other is closed long before its patience does.
#[tokio::test(start_paused = true)]
async fn a_close_that_hangs_holds_up_no_other_for_long() {
    let bench = Bench::new();
    bench.give(&[bench.grant(1, 30, OPEN), bench.grant(2, 32, OPEN), bench.grant(3, 32, OPEN)]);
    bench.pass(25).await;
    assert_eq!(bench.allows(), 3);
    bench.memory.faults(|faults| faults.break_write(1, WriteFault::RequestLost));
    bench.pass(7 + 20 + 2).await;
    let left: Vec<String> = bench.memory.rules(&nsg()).iter().map(|rule| rule.name.clone()).collect();
    assert!(left.len() <= 1 && left.iter().all(|name| name.contains("00000001")), "{left:?}");
    bench.pass(20).await;
    assert_eq!(bench.allows(), 0, "nor is it itself forgotten");
}

#[tokio::test(start_paused = true)]
async fn a_close_that_takes_twice_as_long_as_azure_takes_is_not_given_up_for_another() {
    let bench = Bench::new();
    bench.give(&[bench.grant(1, 60, OPEN), bench.grant(2, 60, OPEN)]);
    bench.pass(30).await;
    bench.memory.faults(|faults| faults.write_time = Duration::from_secs(19));
    bench.pass(30 + 2 * 19 + 3).await;
    assert_eq!((bench.allows(), bench.memory.overlaps()), (0, 0), "no write was refused because of another");
}

#[tokio::test(start_paused = true)]
async fn a_write_that_takes_as_long_as_azure_takes_is_not_given_up_for_a_close() {
    let bench = Bench::new();
    let (uid, dying) = bench.grant(1, 60, OPEN);
    bench.give(&[(uid, dying)]);
    bench.pass(55).await;
    bench.memory.faults(|faults| faults.write_time = Duration::from_secs(11));
    bench.lock();
    bench.pass(30).await;
    assert_eq!((bench.allows(), bench.memory.overlaps()), (0, 0), "no write was refused because of another");
}

/// Law 5: every write of ours has ended before anybody hears that a rule is gone.
#[tokio::test(start_paused = true)]
async fn a_rule_is_not_proved_gone_while_a_write_of_it_may_still_land() {
    // The last one never lands, as far as anybody looks: that is proved as well.
    for by in [5, 20, 50, 80, 3600] {
        let bench = Bench::new();
        let late = Some(Duration::from_secs(by));
        let cloud = Behind { late, ..Behind::of(&bench.memory) }.cloud();
        let (uid, grant) = bench.grant(1, 30, OPEN);
        bench.gates.set_grants(&uid, "main", &cloud, vec![(nsg(), grant.clone())], &[]);
        let mut proved = false;
        let mut open_past_deadline = 0;
        for second in 0..300 {
            bench.pass(1).await;
            proved |= matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. });
            assert!(!(proved && bench.allows() > 0), "{by}: open after it was proved closed, at {second} s");
            open_past_deadline += usize::from(second > 30 && bench.allows() > 0);
        }
        assert!(proved, "{by}: {:?}", bench.gates.seen(&nsg(), &grant.name));
        assert!(open_past_deadline <= 31, "{by}: removed again within a retry: {open_past_deadline} s");
    }
}

#[tokio::test(start_paused = true)]
async fn a_rule_that_was_changed_and_closed_is_told_as_lost_at_once() {
    let bench = Bench::new();
    // Past the quick looks of the first hour.
    let (uid, grant) = bench.grant(1, 7200, OPEN);
    bench.give(&[(uid, grant.clone())]);
    bench.pass(3).await;
    bench.memory.edit_rules(&nsg(), |rules| rules[0].sources = vec![Peer::Any]);
    // The next look finds it.
    let mut closed = None;
    for second in 0..400 {
        bench.pass(1).await;
        if bench.allows() == 0 {
            closed = Some(second);
            break;
        }
    }
    assert!(closed.is_some(), "what was widened is closed");
    bench.pass(2).await;
    let seen = bench.gates.seen(&nsg(), &grant.name);
    assert!(matches!(seen, Seen::Lost { .. } | Seen::Absent { .. }), "{seen:?}");
}

/// A close that failed is not left for all that is to be written first.
#[tokio::test(start_paused = true)]
async fn a_close_that_failed_once_is_tried_again_before_the_rest_of_a_queue() {
    let bench = Bench::new();
    let busy = AtomicBool::new(true);
    let cloud = bench.behind(move |call| {
        (call == Call::Delete && busy.swap(false, Ordering::SeqCst)).then_some(CloudErrorKind::Retryable)
    });
    bench.give_by("main", &cloud, &[bench.grant(1, 60, OPEN)]);
    bench.pass(55).await;
    assert_eq!(bench.allows(), 1);
    bench.memory.faults(|faults| faults.write_time = Duration::from_secs(8));
    for policy in "123456789ab".chars() {
        bench.lock_of(policy, "main", &cloud);
    }
    // One write under way, one that is begun after the removal failed, the removal, and looks in between.
    bench.pass(5 + 3 * 8 + 3).await;
    let names: Vec<String> = bench.memory.rules(&nsg()).iter().map(|rule| rule.name.clone()).collect();
    assert!(!names.iter().any(|name| name.contains("00000001")), "{names:?}");
    bench.pass(200).await;
    assert_eq!(bench.denies(), 11, "the queue goes on");
}

/// Closes come first in each round.
#[tokio::test(start_paused = true)]
async fn a_close_that_is_never_answered_keeps_no_lock_and_no_open_waiting_for_ever() {
    let bench = Bench::new();
    let cloud = bench.behind(|call| (call == Call::Delete).then_some(CloudErrorKind::Unanswered));
    bench.give_by("main", &cloud, &[bench.grant(1, 30, OPEN)]);
    bench.pass(31).await;
    assert_eq!(bench.allows(), 1, "its removal is not answered");
    bench.lock_by("main", &cloud);
    bench.give_by("main", &cloud, &[bench.grant(2, 600, OPEN)]);
    bench.pass(10).await;
    assert_eq!((bench.denies(), bench.allows()), (1, 2));
}

/// Reads and refusals take their time.
#[tokio::test(start_paused = true)]
async fn closes_that_fail_and_reads_that_are_slow_keep_no_lock_waiting_for_ever() {
    let bench = Bench::new();
    let cloud = bench.behind(|call| (call == Call::Delete).then_some(CloudErrorKind::Retryable));
    for number in 1..4 {
        bench.give_by("main", &cloud, &[bench.grant(number, 30, OPEN)]);
    }
    bench.pass(31).await;
    assert_eq!(bench.allows(), 3, "their removals fail");
    bench.memory.faults(|faults| faults.read_time = Duration::from_secs(3));
    bench.lock_by("main", &cloud);
    bench.pass(40).await;
    assert_eq!(bench.denies(), 1);
}

/// What fails at once fails often.
#[tokio::test(start_paused = true)]
async fn where_nothing_succeeds_the_pauses_grow() {
    let bench = Bench::new();
    let calls = Arc::new(AtomicUsize::new(0));
    let slow = {
        let calls = Arc::clone(&calls);
        let refuse = move |call| {
            if call == Call::Read {
                return None;
            }
            calls.fetch_add(1, Ordering::SeqCst);
            Some(CloudErrorKind::NotPermitted)
        };
        Behind { refuse: Box::new(refuse), pause: Duration::from_millis(400), ..Behind::of(&bench.memory) }
            .cloud()
    };
    for number in 1..10 {
        bench.give_by("main", &slow, &[bench.grant(number, 900, OPEN)]);
    }
    bench.give_by("main", &slow, &[bench.grant(10, 900, |_| Duty::Close { sent: false })]);
    bench.pass(300).await;
    let tried = calls.load(Ordering::SeqCst);
    assert!(tried < 200, "{tried} calls in 5 minutes");
}

/// Reads are counted as well.
#[tokio::test(start_paused = true)]
async fn while_a_credential_is_throttled_the_firewall_is_not_read_again_and_again() {
    let bench = Bench::new();
    let reads = Arc::new(AtomicUsize::new(0));
    let throttled = {
        let reads = Arc::clone(&reads);
        let refuse = move |call| {
            reads.fetch_add(usize::from(call == Call::Read), Ordering::SeqCst);
            (call == Call::Put).then_some(CloudErrorKind::Retryable)
        };
        let wait = Some(Duration::from_secs(300));
        Behind { refuse: Box::new(refuse), wait, ..Behind::of(&bench.memory) }.cloud()
    };
    bench.lock_by("main", &throttled);
    bench.pass(290).await;
    let read = reads.load(Ordering::SeqCst);
    assert!(read < 40, "{read} reads in 290 s");
}

/// A watch that lags behind, or was begun anew, tells of a time before the grant.
#[tokio::test(start_paused = true)]
async fn a_late_event_takes_nothing_away_that_may_yet_land() {
    let bench = Bench::new();
    let late = Some(Duration::from_secs(80));
    let cloud = Behind { late, ..Behind::of(&bench.memory) }.cloud();
    let (uid, grant) = bench.grant(1, 30, OPEN);
    let is_proved = || matches!(bench.gates.seen(&nsg(), &grant.name), Seen::Absent { .. });
    bench.give_by("main", &cloud, &[(uid.clone(), grant.clone())]);
    bench.pass(45).await;
    bench.gates.set_grants(&uid, "main", &cloud, Vec::new(), &[]);
    bench.pass(10).await;
    bench.give_by("main", &cloud, &[(uid, Grant { duty: Duty::Close { sent: false }, ..grant.clone() })]);
    let landed = || bench.memory.writes().iter().any(|write| matches!(write.change, Change::Put(_)));
    for _ in 0..100 {
        bench.pass(1).await;
        assert!(landed() || !is_proved());
    }
    assert!(landed());
    bench.pass(60).await;
    assert_eq!(bench.allows(), 0);
    assert!(is_proved());
}

/// What is nobody's goes by any credential, one after the other.
#[tokio::test(start_paused = true)]
async fn several_credentials_that_hang_hold_up_a_close_no_longer_than_one() {
    // A deny that is to be removed, and one that is to be written again.
    for mend in [false, true] {
        let bench = Bench::new();
        let stuck = Arc::<Mutex<Vec<String>>>::default();
        let silence = Duration::from_secs(3600);
        let cloud = || Behind { stuck: Arc::clone(&stuck), silence, ..Behind::of(&bench.memory) }.cloud();
        for (policy, credential) in [('a', "one"), ('b', "two"), ('c', "three"), ('d', "four")] {
            bench.lock_of(policy, credential, &cloud());
        }
        bench.give_by("one", &cloud(), &[bench.grant(1, 60, OPEN)]);
        bench.pass(20).await;
        assert_eq!((bench.denies(), bench.allows()), (4, 1));
        for policy in ["a", "b", "c", "d"] {
            stuck.lock().unwrap().push(policy.repeat(8));
        }
        bench.pass(35).await;
        if mend {
            for policy in ["a", "b", "c", "d"] {
                bench.gates.forget(&format!("{}-0000-4000-8000-000000000000", policy.repeat(8)));
            }
            bench.memory.set_provisioning(&nsg(), Provisioning::Failed);
        } else {
            bench.memory.edit_rules(&nsg(), |rules| {
                let deny = rules.iter().find(|rule| rule.access == Access::Deny).unwrap().clone();
                let name = bench.grant(2, 60, OPEN).1.name;
                stuck.lock().unwrap().push(name.clone());
                rules.push(Rule { name, priority: deny.priority - 10, ..deny });
            });
        }
        bench.gates.offer_way(&nsg(), "five", &cloud());
        bench.pass(5 + 14).await;
        assert_eq!(bench.allows(), 0, "mend: {mend}");
    }
}
