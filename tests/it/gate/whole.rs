//! A firewall that is written whole, and takes minutes for it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use portcullis::plan::model::{Machine, Translation};
use portcullis::providers::memory::packet::Packet;

use super::*;
use crate::provider_firewall::{behind, memory_firewall};

const PUBLIC: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(198, 51, 100, 40));
/// As the cloud takes for a write.
const WRITE: i64 = 240;

struct Hub(Bench);

impl Hub {
    fn new() -> Self {
        let bench = Bench::new();
        bench.memory.add_firewall(memory_firewall());
        let machine: Machine = behind(Vec::new());
        bench.memory.set_machine(machine);
        bench.memory.faults(|faults| faults.write_time = Duration::from_secs(WRITE.unsigned_abs()));
        Self(bench)
    }

    /// A grant of the `number`th source, by the `number`th port.
    fn grant(&self, number: u64, seconds: i64, duty: impl Fn(Timestamp) -> Duty) -> (String, Grant) {
        let (uid, grant) = self.0.grant(number, seconds, duty);
        let port = 50_000 + u16::try_from(number).unwrap();
        (uid, Grant { translation: Some(Translation { address: PUBLIC, port }), ..grant })
    }

    fn give(&self, grants: &[(String, Grant)]) {
        for (uid, grant) in grants {
            let rules = vec![(memory_firewall(), grant.clone())];
            self.0.gates.set_grants(uid, "main", &self.0.memory.cloud(), rules, &[]);
        }
    }

    fn passes(&self, number: u64) -> bool {
        let packet = Packet {
            source: format!("203.0.113.{number}").parse().unwrap(),
            destination: PUBLIC,
            port: 50_000 + u16::try_from(number).unwrap(),
            protocol: Protocol::Tcp,
        };
        let both = [false, true].map(|deny| self.0.memory.reaches_through(&memory_firewall(), packet, deny));
        assert_eq!(both[0], both[1]);
        both[0]
    }

    fn seen(&self, grant: &Grant) -> Seen {
        self.0.gates.seen(&memory_firewall(), &grant.name)
    }

    /// When writes came in, each once, and of how many rules they were.
    fn writes(&self) -> Vec<usize> {
        let mut at: Vec<(Timestamp, usize)> = Vec::new();
        for write in self.0.memory.writes().iter().filter(|write| write.accepted) {
            match at.last_mut() {
                Some((last, count)) if *last == write.at => *count += 1,
                _ => at.push((write.at, 1)),
            }
        }
        at.into_iter().map(|(_, count)| count).collect()
    }
}

/// As the lifecycle says it of a grant behind such a firewall.
const SLOW: fn(Timestamp) -> Duty =
    |heard_by| Duty::Open { heard_by, until: heard_by + SignedDuration::from_secs(540) };

#[tokio::test(start_paused = true)]
async fn what_is_due_together_goes_in_one_write_and_the_end_of_it_is_waited_for() {
    let hub = Hub::new();
    let grants: Vec<_> = (1..=5).map(|number| hub.grant(number, 3000, SLOW)).collect();
    hub.give(&grants);
    hub.0.pass(10).await;
    assert!(!hub.passes(1), "it is being written");
    hub.0.pass(WRITE + 10).await;
    for (number, (_, grant)) in (1..).zip(&grants) {
        assert!(hub.passes(number));
        assert!(matches!(hub.seen(grant), Seen::Present { shadowed_by: None, .. }), "{:?}", hub.seen(grant));
    }
    assert_eq!(hub.writes(), [5]);
    for (uid, _) in &grants {
        hub.0.gates.end(uid);
    }
    hub.0.pass(WRITE + 10).await;
    for (number, (_, grant)) in (1..).zip(&grants) {
        assert!(!hub.passes(number));
        assert!(matches!(hub.seen(grant), Seen::Absent { .. }), "{:?}", hub.seen(grant));
    }
    assert_eq!(hub.writes(), [5, 5]);
    assert_eq!(hub.0.memory.overlaps(), 0);
}

/// A write that was sent before may not be there yet when it is looked for: one without the rule goes out all the same.
#[tokio::test(start_paused = true)]
async fn what_is_to_be_closed_is_written_once_though_nothing_of_it_is_there() {
    let hub = Hub::new();
    let (uid, grant) = hub.grant(1, 3000, |_| Duty::Close { sent: false });
    hub.give(&[(uid, grant.clone())]);
    hub.0.pass(3 * WRITE).await;
    let written: Vec<String> = hub.0.memory.writes().iter().map(describe).collect();
    assert_eq!(written, [format!("close {}", grant.name)]);
    assert!(matches!(hub.seen(&grant), Seen::Absent { .. }), "{:?}", hub.seen(&grant));
}

/// The name says when removal begins: with a lead of one write, packets stop before the end.
#[tokio::test(start_paused = true)]
async fn a_rule_begins_to_be_removed_when_its_name_says_and_nobody_has_to_ask() {
    let hub = Hub::new();
    let (uid, grant) = hub.grant(1, 1000, SLOW);
    hub.give(&[(uid, grant.clone())]);
    hub.0.pass(999).await;
    assert!(hub.passes(1));
    hub.0.pass(2 + WRITE).await;
    assert!(!hub.passes(1));
    assert!(matches!(hub.0.memory.writes().last().unwrap().change, Change::Remove(_)));
    hub.0.pass(10).await;
    assert!(matches!(hub.seen(&grant), Seen::Absent { .. }), "{:?}", hub.seen(&grant));
}

/// A close that becomes due while something is being opened cannot overtake it: the cloud would refuse it. It follows at
/// once, and nothing is given up for it.
#[tokio::test(start_paused = true)]
async fn a_close_follows_the_write_that_is_under_way() {
    let hub = Hub::new();
    let first = hub.grant(1, 3000, SLOW);
    hub.give(std::slice::from_ref(&first));
    hub.0.pass(WRITE + 10).await;
    let second = hub.grant(2, 3000, SLOW);
    hub.give(std::slice::from_ref(&second));
    hub.0.pass(30).await;
    hub.0.gates.end(&first.0);
    hub.0.pass(WRITE - 20).await;
    assert!(hub.passes(2), "it was not given up");
    hub.0.pass(WRITE + 10).await;
    assert!(!hub.passes(1));
    assert!(hub.passes(2));
    assert_eq!(hub.0.memory.overlaps(), 0);
}

/// An open that was never answered may land for a quarter of an hour: its removal is sent again until it no longer can.
#[tokio::test(start_paused = true)]
async fn an_open_that_lands_late_is_closed() {
    let hub = Hub::new();
    let late = Duration::from_secs(1500);
    let cloud = Behind { late: Some(late), ..Behind::of(&hub.0.memory) }.cloud();
    let (uid, grant) = hub.grant(1, 3000, SLOW);
    hub.0.gates.set_grants(&uid, "main", &cloud, vec![(memory_firewall(), grant.clone())], &[]);
    hub.0.pass(905).await;
    hub.0.gates.end(&uid);
    hub.0.pass(500).await;
    assert!(!matches!(hub.seen(&grant), Seen::Absent { .. }), "{:?}", hub.seen(&grant));
    hub.0.pass(2500).await;
    assert!(!hub.passes(1));
    assert!(matches!(hub.seen(&grant), Seen::Absent { .. }), "{:?}", hub.seen(&grant));
    assert!(hub.0.memory.rules(&memory_firewall()).is_empty());
}

/// The cloud says that the last write failed: some instances may run the old rules. What is to be gone is removed again.
#[tokio::test(start_paused = true)]
async fn after_a_failed_write_what_is_to_be_gone_is_removed_once_more() {
    let hub = Hub::new();
    hub.0.memory.faults(|faults| faults.write_time = Duration::ZERO);
    let (uid, grant) = hub.grant(1, 3000, SLOW);
    hub.give(&[(uid.clone(), grant.clone())]);
    hub.0.pass(5).await;
    hub.0.gates.end(&uid);
    hub.0.pass(5).await;
    let before = hub.0.memory.writes().len();
    hub.0.memory.set_provisioning(&memory_firewall(), Provisioning::Failed);
    hub.0.pass(120).await;
    assert!(hub.0.memory.writes().len() > before, "nothing was written again");
    assert!(matches!(hub.seen(&grant), Seen::Absent { .. }), "{:?}", hub.seen(&grant));
}

/// A port that another grant's rule has is not written over it, and the words say what to do.
#[tokio::test(start_paused = true)]
async fn two_that_would_come_in_by_one_port_to_different_machines_are_not_both_opened() {
    let hub = Hub::new();
    hub.0.memory.faults(|faults| faults.write_time = Duration::ZERO);
    let (one_uid, one) = hub.grant(1, 3000, SLOW);
    let (two_uid, mut two) = hub.grant(2, 3000, SLOW);
    two.translation = one.translation;
    two.destinations = vec!["10.0.0.5".parse().unwrap()];
    hub.give(&[(one_uid, one.clone()), (two_uid, two.clone())]);
    hub.0.pass(5).await;
    let states = [hub.seen(&one), hub.seen(&two)];
    assert!(states.iter().any(|seen| matches!(seen, Seen::Present { .. })), "{states:?}");
    let refused = states.iter().find_map(|seen| match seen {
        Seen::Refused { reason, message } => Some((*reason, message.clone())),
        _ => None,
    });
    let (reason, message) = refused.unwrap();
    assert!(reason == Reason::FirewallUnfit && message.contains("ask again"), "{message}");
    let names: BTreeSet<String> =
        hub.0.memory.rules(&memory_firewall()).into_iter().map(|rule| rule.name).collect();
    assert_eq!(names.len(), 1);
}

/// Nothing is begun that a removal would have to wait for.
#[tokio::test(start_paused = true)]
async fn nothing_is_opened_right_before_something_is_to_be_closed() {
    let hub = Hub::new();
    let first = hub.grant(1, 1000, SLOW);
    hub.give(std::slice::from_ref(&first));
    hub.0.pass(900).await;
    let second = hub.grant(2, 3000, SLOW);
    hub.give(std::slice::from_ref(&second));
    hub.0.pass(101 + WRITE).await;
    assert!(!hub.passes(1), "it was closed as soon as it was due");
    assert!(!hub.passes(2));
    hub.0.pass(WRITE + 20).await;
    assert!(hub.passes(2));
}

/// A write of everything that was not answered has in it what stood by then: that is not proved gone before the write can
/// no longer land.
#[tokio::test(start_paused = true)]
async fn what_went_along_with_a_write_that_was_not_answered_may_come_back() {
    let hub = Hub::new();
    let (uid, first) = hub.grant(1, 6000, SLOW);
    hub.give(&[(uid.clone(), first.clone())]);
    hub.0.pass(WRITE + 10).await;
    let never = Behind { late: Some(Duration::from_secs(100_000)), ..Behind::of(&hub.0.memory) }.cloud();
    let (other, second) = hub.grant(2, 6000, SLOW);
    hub.0.gates.set_grants(&other, "other", &never, vec![(memory_firewall(), second)], &[]);
    hub.0.pass(910).await;
    hub.0.gates.end(&uid);
    hub.0.pass(WRITE + 100).await;
    assert!(!hub.passes(1));
    assert!(!matches!(hub.seen(&first), Seen::Absent { .. }), "{:?}", hub.seen(&first));
    hub.0.pass(1500).await;
    assert!(matches!(hub.seen(&first), Seen::Absent { .. }), "{:?}", hub.seen(&first));
}

/// The cloud refuses a write without saying which of its rules it is about: that is the end of none but that one.
#[tokio::test(start_paused = true)]
async fn what_the_cloud_refuses_of_one_is_not_the_end_of_the_others() {
    let hub = Hub::new();
    hub.0.memory.faults(|faults| faults.break_write(1, WriteFault::Refused(CloudErrorKind::Invalid)));
    let grants: Vec<_> = (1..=3).map(|number| hub.grant(number, 3000, SLOW)).collect();
    hub.give(&grants);
    for _ in 0..=3 * WRITE / 10 {
        hub.0.pass(10).await;
        for (_, grant) in &grants {
            assert!(!matches!(hub.seen(grant), Seen::Refused { .. }), "{:?}", hub.seen(grant));
        }
    }
    assert!(grants.iter().all(|(_, grant)| matches!(hub.seen(grant), Seen::Present { .. })));
    assert_eq!(hub.writes(), [1, 1, 1], "each by itself, as it is not known which it was");
}

/// What of others differs after a write is told once, with whom it concerns.
#[tokio::test(start_paused = true)]
async fn what_of_others_differs_is_told_once_for_each_write() {
    let mut hub = Hub::new();
    hub.0.memory.faults(|faults| faults.write_time = Duration::ZERO);
    let lossy =
        Behind { differs: vec!["collection theirs is gone".into()], ..Behind::of(&hub.0.memory) }.cloud();
    hub.0.gates.set_locks("watcher", "main", &lossy, [(memory_firewall(), None)].into());
    for (uid, grant) in [hub.grant(1, 3000, SLOW), hub.grant(2, 3000, SLOW)] {
        hub.0.gates.set_grants(&uid, "main", &lossy, vec![(memory_firewall(), grant)], &[]);
    }
    hub.0.pass(5).await;
    let mut told = Vec::new();
    while let Ok(news) = hub.0.news.try_recv() {
        if let News::Differs(firewall, differs, watchers) = news {
            told.push((firewall, differs, watchers));
        }
    }
    let expected =
        (memory_firewall(), vec!["collection theirs is gone".to_owned()], ["watcher".to_owned()].into());
    assert_eq!(told, [expected]);
}
