//! The cloud in memory: its world for the conformance suite, and the faults that only it has.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use portcullis::api::Reason;
use portcullis::api::values::Protocol;
use portcullis::clock::Clock;
use portcullis::plan::model::{
    Access, Address, FirewallId, Machine, NetworkView, Nic, Os, Provisioning, ResourceLock, Rule,
};
use portcullis::providers::memory::Memory;
use portcullis::providers::memory::faults::WriteFault;
use portcullis::providers::memory::packet::Packet;
use portcullis::providers::{Cloud, CloudErrorKind};
use serde_json::Value;

use crate::provider_conformance::{World, firewall, id, machine, net, rule};

/// The conformance suite's world, in memory.
pub struct MemoryWorld(pub Memory);

impl MemoryWorld {
    /// One machine behind one empty firewall.
    pub fn new() -> Self {
        let memory = Memory::new(Clock::manual("2026-11-22T08:00:00Z".parse::<Timestamp>().unwrap()));
        memory.add_firewall(firewall());
        memory.set_machine(Machine {
            id: machine(),
            vm_id: "b5a1c3f0-0000-4000-8000-000000000001".into(),
            os: Os::Linux,
            tags: [("Role".to_owned(), "web".to_owned())].into(),
            nics: vec![Nic {
                id: id("Microsoft.Network/networkInterfaces", "web-1-nic"),
                addresses: vec![Address {
                    ip: IpAddr::from([10, 0, 0, 4]),
                    public: None,
                    has_public: false,
                    path: vec![firewall()],
                    hops: Vec::new(),
                    groups: vec![],
                    network: NetworkView {
                        virtual_network: vec!["10.0.0.0/16".parse().unwrap()],
                        admin_rules: None,
                        twin: None,
                    },
                }],
            }],
        });
        Self(memory)
    }
}

#[async_trait]
impl World for MemoryWorld {
    fn cloud(&self) -> Cloud {
        self.0.cloud()
    }

    async fn foreign_put(&self, firewall: &FirewallId, rule: &Rule) {
        self.0.edit_rules(firewall, |rules| rules.push(rule.clone()));
    }

    async fn foreign_delete(&self, firewall: &FirewallId, name: &str) {
        self.0.edit_rules(firewall, |rules| rules.retain(|rule| rule.name != name));
    }

    async fn set_lock(&self, firewall: &FirewallId, lock: ResourceLock) {
        self.0.set_lock(firewall, lock);
    }

    async fn fill(&self, firewall: &FirewallId, count: usize) {
        self.0.edit_rules(firewall, |rules| {
            for n in rules.len()..count {
                rules.push(rule(&format!("fill-{n}"), 1000 + u16::try_from(n).unwrap()));
            }
        });
    }

    async fn lose_next_answer(&self) {
        self.0.faults(|faults| faults.break_write(1, WriteFault::AnswerLost));
    }

    async fn slow_writes(&self) {
        self.0.faults(|faults| faults.write_time = Duration::from_secs(1));
    }

    async fn others(&self) -> Value {
        let theirs = self.0.rules(&firewall()).into_iter().filter(|rule| rule.name != "ours");
        theirs.map(|rule| format!("{rule:?}")).collect::<Vec<_>>().into()
    }
}

fn packet() -> Packet {
    Packet {
        source: IpAddr::from([203, 0, 113, 7]),
        destination: IpAddr::from([10, 0, 0, 4]),
        port: 22,
        protocol: Protocol::Tcp,
    }
}

const PATIENCE: Duration = Duration::from_secs(10);

#[tokio::test(start_paused = true)]
async fn a_read_shows_the_goal_while_packets_see_the_old_rules() {
    let MemoryWorld(memory) = MemoryWorld::new();
    memory.faults(|faults| faults.write_time = Duration::from_secs(5));
    let cloud = memory.cloud();
    let (target, open) = (firewall(), rule("open", 200));
    let (_, ()) = tokio::join!(cloud.firewall.put(&target, &open, PATIENCE), async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let observed = cloud.firewall.observe(&target).await.unwrap();
        assert_eq!(observed.provisioning, Provisioning::Updating);
        assert_eq!(observed.rule("open").unwrap().provisioning, Provisioning::Updating);
        assert!(!memory.reaches(packet()), "not yet");
    });
    assert!(memory.reaches(packet()));
}

#[tokio::test(start_paused = true)]
async fn a_write_goes_on_when_its_caller_is_gone() {
    let MemoryWorld(memory) = MemoryWorld::new();
    memory.faults(|faults| faults.write_time = Duration::from_secs(5));
    let cloud = memory.cloud();
    let caller =
        tokio::spawn(async move { cloud.firewall.put(&firewall(), &rule("open", 200), PATIENCE).await });
    tokio::time::sleep(Duration::from_secs(1)).await;
    caller.abort();
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(memory.reaches(packet()));
}

#[tokio::test(start_paused = true)]
async fn the_kth_write_breaks_as_told_and_no_other() {
    let MemoryWorld(memory) = MemoryWorld::new();
    memory.faults(|faults| {
        faults.break_write(2, WriteFault::Refused(CloudErrorKind::Retryable));
        faults.break_write(3, WriteFault::RequestLost);
        faults.break_write(4, WriteFault::Late(Duration::from_secs(60)));
    });
    let cloud = memory.cloud();
    let mut kinds = Vec::new();
    for n in 0..5 {
        let written = cloud.firewall.put(&firewall(), &rule(&format!("r{n}"), 200 + n), PATIENCE).await;
        kinds.push(written.err().map(|error| error.kind));
    }
    assert_eq!(
        kinds,
        [
            None,
            Some(CloudErrorKind::Retryable),
            Some(CloudErrorKind::Unanswered),
            Some(CloudErrorKind::Unanswered),
            // The late write is still under way.
            Some(CloudErrorKind::Retryable),
        ]
    );
    let names =
        |memory: &Memory| memory.rules(&firewall()).iter().map(|it| it.name.clone()).collect::<Vec<_>>();
    assert_eq!(names(&memory), ["r0"]);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(names(&memory), ["r0", "r3"]);
    assert_eq!(memory.writes().iter().filter(|write| write.accepted).count(), 2);
    assert_eq!(memory.overlaps(), 1);
}

#[tokio::test(start_paused = true)]
async fn stale_reads_show_the_time_before_the_last_change() {
    let MemoryWorld(memory) = MemoryWorld::new();
    let cloud = memory.cloud();
    cloud.firewall.put(&firewall(), &rule("open", 200), PATIENCE).await.unwrap();
    memory.faults(|faults| faults.make_reads_stale(1));
    assert!(cloud.firewall.observe(&firewall()).await.unwrap().rule("open").is_none());
    assert!(cloud.firewall.observe(&firewall()).await.unwrap().rule("open").is_some());
}

#[tokio::test(start_paused = true)]
async fn reads_and_inventory_fail_on_demand() {
    let MemoryWorld(memory) = MemoryWorld::new();
    let cloud = memory.cloud();
    memory.faults(|faults| {
        faults.fail_reads(1, CloudErrorKind::NotPermitted);
        faults.inventory = Some(CloudErrorKind::Retryable);
    });
    assert_eq!(cloud.firewall.observe(&firewall()).await.unwrap_err().kind, CloudErrorKind::NotPermitted);
    assert!(cloud.firewall.observe(&firewall()).await.is_ok());
    assert_eq!(cloud.inventory.machine(&machine()).await.unwrap_err().kind, CloudErrorKind::Retryable);
    assert_eq!(memory.reads(), 2);
}

#[tokio::test(start_paused = true)]
async fn packets_are_judged_by_the_first_rule_that_matches() {
    let MemoryWorld(memory) = MemoryWorld::new();
    assert!(!memory.reaches(packet()), "the default denies the internet");
    let neighbour = Packet { source: IpAddr::from([10, 0, 9, 9]), ..packet() };
    assert!(memory.reaches(neighbour), "and lets the virtual network in");
    memory.edit_rules(&firewall(), |rules| {
        rules.push(Rule { access: Access::Deny, sources: vec![net("0.0.0.0/0")], ..rule("lock", 300) });
        rules.push(rule("open", 200));
    });
    assert!(memory.reaches(packet()));
    assert!(!memory.reaches(neighbour));
    assert!(!memory.reaches(Packet { port: 23, ..packet() }));
    memory.remove_machine(&machine());
    assert!(!memory.reaches(packet()));
    let why = memory.cloud().inventory.machine(&machine()).await.unwrap().unwrap_err();
    assert_eq!(why.reason, Reason::VirtualMachineNotFound);
}
