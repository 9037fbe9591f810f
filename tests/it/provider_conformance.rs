//! What holds for every cloud. Each behaviour is written once, against the traits and a small door into the
//! world behind them, and runs against every provider.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use portcullis::api::Reason;
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::plan::model::{
    Access, FirewallId, MAX_PRIORITY, Os, Peer, Provisioning, ResourceLock, Rule, RuleProtocol,
};
use portcullis::providers::{Cloud, CloudErrorKind};
use serde_json::Value;

use crate::provider_firewall;

/// A world with one machine behind one firewall, and a door to change it as somebody else.
#[async_trait]
pub trait World: Send + Sync {
    /// The cloud as the controller sees it.
    fn cloud(&self) -> Cloud;
    /// Writes a rule as somebody else does.
    async fn foreign_put(&self, firewall: &FirewallId, rule: &Rule);
    /// Removes a rule as somebody else does.
    async fn foreign_delete(&self, firewall: &FirewallId, name: &str);
    /// Sets the resource lock over the firewall.
    async fn set_lock(&self, firewall: &FirewallId, lock: ResourceLock);
    /// Fills the firewall with harmless rules, up to `count`.
    async fn fill(&self, firewall: &FirewallId, count: usize);
    /// The answer to the next write is lost after it was committed.
    async fn lose_next_answer(&self);
    /// Writes take long enough to overlap.
    async fn slow_writes(&self);
    /// What others have on the firewall, to the letter.
    async fn others(&self) -> Value;
    /// The firewall of the world: on the machine's way, empty.
    fn firewall(&self) -> FirewallId {
        firewall()
    }
    /// One of its kind that is not there.
    fn absent_firewall(&self) -> FirewallId {
        absent_firewall()
    }
    /// A name that a rule of the controller's may have there.
    fn name(&self, short: &str) -> String {
        if self.is_whole() { provider_firewall::named(short) } else { short.to_owned() }
    }
    /// An allow for the machine's port 22 from one address: the `number`th that may stand there beside the others.
    fn rule(&self, short: &str, number: u16) -> Rule {
        if self.is_whole() { provider_firewall::translating(short, number) } else { rule(short, number) }
    }
    /// Rules of all sorts that it can hold.
    fn samples(&self) -> Vec<Rule> {
        if self.is_whole() { provider_firewall::samples() } else { samples() }
    }
    /// Rules that it cannot hold, and why.
    fn wrong(&self) -> Vec<(Rule, &'static str)> {
        if self.is_whole() { provider_firewall::wrong() } else { wrong() }
    }
    /// Whether it is written whole, and holds nothing but allows that lead packets on; else rule by rule, in the order of
    /// their priorities.
    fn is_whole(&self) -> bool {
        self.firewall().kind().translates()
    }
    /// How long a write may take in this world.
    fn patience(&self) -> Duration {
        Duration::from_secs(20)
    }
}

/// The subscription of every world.
pub const SUBSCRIPTION: &str = "11111111-2222-3333-4444-555555555555";

/// An id in the world's resource group.
pub fn id(kind: &str, name: &str) -> ArmId {
    ArmId::parse(&format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/web/providers/{kind}/{name}"))
        .unwrap()
}

/// The firewall of the world: on the machine's interface, empty.
pub fn firewall() -> FirewallId {
    FirewallId(id("Microsoft.Network/networkSecurityGroups", "web-nsg"))
}

/// A firewall that is not there.
pub fn absent_firewall() -> FirewallId {
    FirewallId(id("Microsoft.Network/networkSecurityGroups", "no-such-nsg"))
}

/// The machine of the world: Linux, 10.0.0.4, tag `Role: web`.
pub fn machine() -> ArmId {
    id("Microsoft.Compute/virtualMachines", "web-1")
}

/// An allow from one address to the machine's port 22.
pub fn rule(name: &str, priority: u16) -> Rule {
    Rule {
        name: name.into(),
        priority,
        access: Access::Allow,
        protocol: RuleProtocol::Transport(Protocol::Tcp),
        sources: vec![net("203.0.113.7/32")],
        source_ports: vec![PortRange::ALL],
        destinations: vec![net("10.0.0.4/32")],
        ports: vec![PortRange::single(22)],
        translation: None,
        description: "of the conformance suite".into(),
        provisioning: Provisioning::Succeeded,
    }
}

/// A network.
pub fn net(text: &str) -> Peer {
    Peer::Net(text.parse().unwrap())
}

/// The rules that somebody wrote: the cloud's own are left out. Of a firewall that is written whole, those of our form.
async fn written(world: &dyn World) -> Vec<Rule> {
    let firewall = world.firewall();
    let mut rules = world.cloud().firewall.observe(&firewall).await.unwrap().rules;
    rules.retain(|rule| rule.priority <= MAX_PRIORITY || world.is_whole());
    rules
}

/// As a network security group holds them.
fn samples() -> Vec<Rule> {
    vec![
        rule("plain", 100),
        Rule {
            sources: vec![net("203.0.113.0/24"), net("198.51.100.7/32")],
            destinations: vec![net("10.0.0.4/32"), net("10.0.0.5/32")],
            ports: vec![PortRange::single(22), PortRange::new(5985, 5986).unwrap()],
            ..rule("lists", 101)
        },
        Rule {
            sources: vec![Peer::Tag("AzureLoadBalancer".into())],
            destinations: vec![Peer::Any],
            ports: vec![PortRange::ALL],
            protocol: RuleProtocol::Transport(Protocol::Any),
            ..rule("tag_", 102)
        },
        Rule {
            sources: vec![net("2001:db8::/64")],
            destinations: vec![net("fd00::4/128")],
            protocol: RuleProtocol::Transport(Protocol::Udp),
            source_ports: vec![PortRange::new(1024, 65535).unwrap()],
            ..rule("six", 103)
        },
        Rule {
            access: Access::Deny,
            sources: vec![Peer::Any],
            description: String::new(),
            ..rule("deny.all", 4096)
        },
    ]
}

/// What Azure refuses a network security group.
fn wrong() -> Vec<(Rule, &'static str)> {
    vec![
        (rule("low", 99), "priority 99"),
        (rule("high", 4097), "priority 4097"),
        (Rule { description: "x".repeat(141), ..rule("talkative", 100) }, "description of 141"),
        (rule(&"n".repeat(81), 100), "name of 81"),
        (rule("-dash", 100), "name begins with a dash"),
        (
            Rule { sources: vec![net("2001:db8::1/128"), net("203.0.113.7/32")], ..rule("mixed", 100) },
            "two families",
        ),
        (
            Rule { sources: vec![net("10.0.0.0/8"), net("10.1.0.0/16")], ..rule("overlap", 100) },
            "overlapping networks",
        ),
        (
            Rule {
                sources: vec![Peer::Tag("Internet".into()), net("10.0.0.0/8")],
                ..rule("tag-in-list", 100)
            },
            "a tag in a list",
        ),
        (Rule { sources: vec![], ..rule("nobody", 100) }, "no source"),
        (Rule { ports: vec![], ..rule("no-port", 100) }, "no port"),
        (Rule { sources: vec![Peer::Unknown("?".into())], ..rule("strange", 100) }, "unknown peer"),
    ]
}

async fn a_rule_reads_back_as_it_was_written(world: &dyn World) {
    let cloud = world.cloud();
    let wanted = world.samples();
    for rule in &wanted {
        cloud.firewall.put(&world.firewall(), rule, world.patience()).await.unwrap();
    }
    let read = written(world).await;
    assert_eq!(read.len(), wanted.len());
    for (read, wanted) in read.iter().zip(&wanted) {
        assert_eq!(read.name, wanted.name);
        assert!(read.priority == wanted.priority || world.is_whole(), "{read:?}");
        assert!(read.same_effect(wanted), "read {read:?} wanted {wanted:?}");
        assert_eq!(read.description, wanted.description);
        assert_eq!(read.provisioning, Provisioning::Succeeded);
    }
    assert_eq!(
        cloud.firewall.observe(&world.firewall()).await.unwrap().provisioning,
        Provisioning::Succeeded
    );
}

async fn the_clouds_own_rules_come_last_and_do_not_count(world: &dyn World) {
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &world.rule("one", 200), world.patience()).await.unwrap();
    let observed = cloud.firewall.observe(&world.firewall()).await.unwrap();
    assert_eq!(observed.lock, ResourceLock::None);
    if world.is_whole() {
        // It has none: what no rule leads on stays outside.
        assert_eq!(observed.rules.len(), 1);
        let standing = observed.translating.unwrap();
        assert_eq!((standing.translations.len(), standing.filters.len(), standing.unfit), (1, 1, None));
        return;
    }
    let priorities: Vec<u16> = observed.rules.iter().map(|rule| rule.priority).collect();
    assert_eq!(priorities, [200, 65000, 65001, 65500]);
    assert_eq!(observed.rules[1].sources, [Peer::Tag("VirtualNetwork".into())]);
    assert_eq!(observed.rules[3].access, Access::Deny);
    assert_eq!((observed.rule_count(), observed.address_count()), (1, 2));
}

async fn writing_a_name_in_another_case_replaces_the_rule(world: &dyn World) {
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &world.rule("Gate", 200), world.patience()).await.unwrap();
    let other = Rule { sources: vec![net("203.0.113.8/32")], ..world.rule("gATE", 201) };
    cloud.firewall.put(&world.firewall(), &other, world.patience()).await.unwrap();
    let read = written(world).await;
    assert_eq!(read.len(), 1, "{read:?}");
    assert!(read[0].same_effect(&other), "{read:?}");
    assert!(read[0].priority == 201 || world.is_whole());
}

async fn writing_the_same_rule_twice_changes_nothing(world: &dyn World) {
    let cloud = world.cloud();
    for _ in 0..2 {
        cloud.firewall.put(&world.firewall(), &world.rule("twice", 200), world.patience()).await.unwrap();
    }
    assert_eq!(written(world).await.len(), 1);
}

async fn removing_is_done_when_the_rule_is_gone_however_often(world: &dyn World) {
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &world.rule("Gone", 200), world.patience()).await.unwrap();
    for name in ["gone", "gone", "never-was"] {
        cloud.firewall.delete(&world.firewall(), &world.name(name), world.patience()).await.unwrap();
    }
    assert_eq!(written(world).await, []);
    cloud.firewall.delete(&world.absent_firewall(), &world.name("gone"), world.patience()).await.unwrap();
}

async fn a_firewall_that_is_not_there_is_not_found(world: &dyn World) {
    let cloud = world.cloud();
    let error = cloud.firewall.observe(&world.absent_firewall()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::NotFound, "{error}");
    let error = cloud
        .firewall
        .put(&world.absent_firewall(), &world.rule("a", 100), world.patience())
        .await
        .unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::NotFound, "{error}");
    assert!(error.to_string().contains("no-such"), "{error}");
}

async fn a_taken_priority_is_refused_and_nothing_changes(world: &dyn World) {
    if world.is_whole() {
        // Rules there have no priorities of their own.
        return;
    }
    let cloud = world.cloud();
    world.foreign_put(&world.firewall(), &rule("theirs", 200)).await;
    let before = written(world).await;
    let error =
        cloud.firewall.put(&world.firewall(), &world.rule("ours", 200), world.patience()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::PriorityTaken, "{error}");
    assert_eq!(written(world).await, before);
}

async fn rules_that_azure_refuses_are_invalid(world: &dyn World) {
    let cloud = world.cloud();
    for (wrong, why) in world.wrong() {
        let error = cloud.firewall.put(&world.firewall(), &wrong, world.patience()).await.expect_err(why);
        assert_eq!(error.kind, CloudErrorKind::Invalid, "{why}: {error}");
    }
    assert_eq!(written(world).await, []);
}

async fn a_lock_against_removal_lets_rules_be_rewritten(world: &dyn World) {
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &world.rule("open", 200), world.patience()).await.unwrap();
    world.set_lock(&world.firewall(), ResourceLock::CannotDelete).await;
    let removed = cloud.firewall.delete(&world.firewall(), &world.name("open"), world.patience()).await;
    if world.is_whole() {
        // No rule is a resource of its own: the firewall is only written.
        removed.unwrap();
        assert_eq!(written(world).await, []);
        return;
    }
    let error = removed.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::ScopeLocked, "{error}");
    assert_eq!(cloud.firewall.observe(&world.firewall()).await.unwrap().lock, ResourceLock::CannotDelete);
    let closed = Rule { access: Access::Deny, priority: 4096, ..world.rule("open", 200) };
    cloud.firewall.put(&world.firewall(), &closed, world.patience()).await.unwrap();
    assert_eq!(written(world).await[0].access, Access::Deny);
}

async fn a_read_only_lock_forbids_every_change(world: &dyn World) {
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &world.rule("open", 200), world.patience()).await.unwrap();
    world.set_lock(&world.firewall(), ResourceLock::ReadOnly).await;
    let open = world.name("open");
    let error = cloud.firewall.delete(&world.firewall(), &open, world.patience()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::ScopeLocked, "{error}");
    let error =
        cloud.firewall.put(&world.firewall(), &world.rule("more", 201), world.patience()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::ScopeLocked, "{error}");
    assert_eq!(cloud.firewall.observe(&world.firewall()).await.unwrap().lock, ResourceLock::ReadOnly);
}

async fn rules_of_others_stay_as_they_are(world: &dyn World) {
    let cloud = world.cloud();
    let theirs = [
        rule("portcullis-look-alike", 300),
        Rule {
            protocol: RuleProtocol::Other("Icmp".into()),
            sources: vec![Peer::Tag("Internet".into())],
            ports: vec![PortRange::ALL],
            ..rule("ping", 301)
        },
    ];
    for rule in &theirs {
        world.foreign_put(&world.firewall(), rule).await;
    }
    let before = world.others().await;
    assert!(before.to_string().contains("portcullis-look-alike"), "{before}");
    cloud.firewall.put(&world.firewall(), &world.rule("ours", 200), world.patience()).await.unwrap();
    assert_eq!(world.others().await, before);
    cloud.firewall.delete(&world.firewall(), &world.name("ours"), world.patience()).await.unwrap();
    assert_eq!(world.others().await, before);
    if !world.is_whole() {
        let read = written(world).await;
        assert!(read.len() == 2 && read[1].same_effect(&theirs[1]), "{read:?}");
    }
    world.foreign_delete(&world.firewall(), "ping").await;
    assert!(!world.others().await.to_string().contains("ping"));
}

async fn a_full_firewall_takes_no_more(world: &dyn World) {
    let cloud = world.cloud();
    let limits = cloud.firewall.limits(&world.firewall());
    world.fill(&world.firewall(), limits.rules).await;
    let error =
        cloud.firewall.put(&world.firewall(), &world.rule("more", 4096), world.patience()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Full, "{error}");
    if !world.is_whole() {
        let read = cloud.firewall.observe(&world.firewall()).await.unwrap();
        assert_eq!(read.rule_count(), limits.rules);
    }
}

async fn a_lost_answer_is_unanswered_and_a_read_tells(world: &dyn World) {
    let cloud = world.cloud();
    world.lose_next_answer().await;
    let error = cloud
        .firewall
        .put(&world.firewall(), &world.rule("lost", 200), Duration::from_secs(5))
        .await
        .unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unanswered, "{error}");
    assert_eq!(written(world).await.len(), 1);
}

async fn a_second_write_meanwhile_is_retryable(world: &dyn World) {
    let cloud = world.cloud();
    world.slow_writes().await;
    let (one, two) = (world.rule("one", 200), world.rule("two", 201));
    let (target, patience) = (world.firewall(), world.patience());
    let (one, two) = tokio::join!(
        cloud.firewall.put(&target, &one, patience),
        cloud.firewall.put(&target, &two, patience)
    );
    let errors: Vec<_> = [one, two].into_iter().filter_map(Result::err).collect();
    assert_eq!(errors.len(), 1, "one of the two is refused: {errors:?}");
    assert_eq!(errors[0].kind, CloudErrorKind::Retryable, "{}", errors[0]);
    assert_eq!(written(world).await.len(), 1);
}

async fn impatience_is_unanswered_and_the_write_goes_on(world: &dyn World) {
    let cloud = world.cloud();
    world.slow_writes().await;
    let error = cloud
        .firewall
        .put(&world.firewall(), &world.rule("slow", 200), Duration::from_millis(200))
        .await
        .unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Unanswered, "{error}");
    let begun = tokio::time::Instant::now();
    loop {
        let observed = cloud.firewall.observe(&world.firewall()).await.unwrap();
        if observed.rule(&world.name("slow")).is_some_and(|it| it.provisioning == Provisioning::Succeeded)
            && observed.provisioning == Provisioning::Succeeded
        {
            break;
        }
        assert!(begun.elapsed() < world.patience(), "the write was lost");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn a_machine_comes_with_its_way(world: &dyn World) {
    let found = world.cloud().inventory.machine(&machine()).await.unwrap().unwrap();
    assert_eq!(found.id, machine());
    assert_eq!(found.os, Os::Linux);
    assert!(!found.vm_id.is_empty());
    assert_eq!(found.tags.get("Role").map(String::as_str), Some("web"));
    let on_the_way: Vec<FirewallId> =
        found.firewalls().into_iter().chain(found.translating_firewalls()).collect();
    assert!(on_the_way.contains(&world.firewall()), "{on_the_way:?}");
    let addresses: Vec<IpAddr> = found.addresses().map(|address| address.ip).collect();
    assert_eq!(addresses, ["10.0.0.4".parse::<IpAddr>().unwrap()]);
    let network = &found.nics[0].addresses[0].network.virtual_network;
    assert!(network.iter().any(|net| net.contains(&addresses[0])), "{network:?}");
}

async fn a_machine_that_is_not_there_is_unsupported(world: &dyn World) {
    let missing = id("Microsoft.Compute/virtualMachines", "no-such-vm");
    let why = world.cloud().inventory.machine(&missing).await.unwrap().unwrap_err();
    assert_eq!(why.reason, Reason::VirtualMachineNotFound);
    assert!(why.message.contains("no-such-vm"), "{why}");
}

async fn a_scope_lists_the_machines_that_have_every_tag(world: &dyn World) {
    let cloud = world.cloud();
    let group = machine().ancestor(4).unwrap();
    let subscription = group.ancestor(2).unwrap();
    let tags = |pairs: &[(&str, &str)]| -> BTreeMap<String, String> {
        pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
    };
    for (scope, wanted, count) in [
        (&group, tags(&[("role", "web")]), 1),
        (&subscription, tags(&[("ROLE", "web")]), 1),
        (&group, tags(&[]), 1),
        (&group, tags(&[("role", "WEB")]), 0),
        (&group, tags(&[("role", "web"), ("env", "prod")]), 0),
    ] {
        let found = cloud.inventory.machines(scope, &wanted).await.unwrap();
        assert_eq!(found.len(), count, "{scope} {wanted:?}");
        if let Some((found_id, found)) = found.first() {
            assert_eq!(*found_id, machine());
            assert_eq!(*found, cloud.inventory.machine(&machine()).await.unwrap());
        }
    }
}

async fn a_resource_group_that_is_gone_holds_nothing(world: &dyn World) {
    let cloud = world.cloud();
    let gone = format!("/subscriptions/{SUBSCRIPTION}/resourceGroups/no-such-group");
    let gone = ArmId::parse(&gone).unwrap();
    assert_eq!(cloud.inventory.machines(&gone, &BTreeMap::new()).await.unwrap(), []);
    assert_eq!(cloud.inventory.firewalls(&gone).await.unwrap(), []);
}

async fn a_scope_lists_its_firewalls_as_read(world: &dyn World) {
    let cloud = world.cloud();
    cloud.firewall.put(&world.firewall(), &world.rule("one", 200), world.patience()).await.unwrap();
    world.set_lock(&world.firewall(), ResourceLock::CannotDelete).await;
    let group = machine().ancestor(4).unwrap();
    let found = cloud.inventory.firewalls(&group).await.unwrap();
    let mut found: Vec<_> = found.into_iter().filter(|it| it.firewall == world.firewall()).collect();
    assert_eq!(found.len(), 1);
    let mut read = cloud.firewall.observe(&world.firewall()).await.unwrap();
    read.at = found[0].at;
    assert_eq!(found.remove(0), read);
}

/// Runs every behaviour against one world.
macro_rules! conformance {
    (#$attribute:tt $provider:ident, $world:expr; $($behaviour:ident),+ $(,)?) => {
        mod $provider {
            $(
                #$attribute
                async fn $behaviour() {
                    let world = $world.await;
                    super::$behaviour(&world).await;
                }
            )+
        }
    };
}

macro_rules! all {
    (#$attribute:tt $provider:ident, $world:expr) => {
        conformance! {
            #$attribute $provider, $world;
            a_rule_reads_back_as_it_was_written,
            the_clouds_own_rules_come_last_and_do_not_count,
            writing_a_name_in_another_case_replaces_the_rule,
            writing_the_same_rule_twice_changes_nothing,
            removing_is_done_when_the_rule_is_gone_however_often,
            a_firewall_that_is_not_there_is_not_found,
            a_taken_priority_is_refused_and_nothing_changes,
            rules_that_azure_refuses_are_invalid,
            a_lock_against_removal_lets_rules_be_rewritten,
            a_read_only_lock_forbids_every_change,
            rules_of_others_stay_as_they_are,
            a_full_firewall_takes_no_more,
            a_lost_answer_is_unanswered_and_a_read_tells,
            a_second_write_meanwhile_is_retryable,
            impatience_is_unanswered_and_the_write_goes_on,
            a_machine_comes_with_its_way,
            a_machine_that_is_not_there_is_unsupported,
            a_scope_lists_the_machines_that_have_every_tag,
            a_resource_group_that_is_gone_holds_nothing,
            a_scope_lists_its_firewalls_as_read,
        }
    };
}

all! {
    #[tokio::test(start_paused = true)]
    memory, async { crate::provider_memory::MemoryWorld::new() }
}

all! {
    #[tokio::test]
    simulator, crate::provider_simulator::SimulatedWorld::start()
}

all! {
    #[tokio::test(start_paused = true)]
    firewall_in_memory, async { crate::provider_firewall::in_memory() }
}

all! {
    #[tokio::test]
    classic_firewall, crate::provider_firewall::classic()
}

all! {
    #[tokio::test]
    firewall_policy, crate::provider_firewall::with_policy()
}
