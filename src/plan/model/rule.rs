//! A firewall and its rules.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::api::values::{ArmId, PortRange, Protocol};

/// The lowest priority number, which is judged first.
pub const MIN_PRIORITY: u16 = 100;
/// The highest priority number that a written rule may have.
pub const MAX_PRIORITY: u16 = 4096;

/// Which firewall: the id of what its rules are written to.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FirewallId(pub ArmId);

/// What a firewall is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FirewallKind {
    /// A network security group: it filters what goes to addresses.
    NetworkSecurityGroup,
    /// An Azure Firewall with rules of its own: it leads what comes to a public address on to a private one.
    AzureFirewall,
    /// The firewall policy that Azure Firewalls take their rules from.
    FirewallPolicy,
}

impl FirewallKind {
    /// The word in status.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NetworkSecurityGroup => "NetworkSecurityGroup",
            Self::AzureFirewall => "AzureFirewall",
            Self::FirewallPolicy => "FirewallPolicy",
        }
    }

    /// Whether it translates addresses. Such a firewall lets in nothing that no rule leads on, so it holds no denies of
    /// ours; and each write to it is of all its rules and takes minutes.
    #[must_use]
    pub const fn translates(self) -> bool {
        match self {
            Self::NetworkSecurityGroup => false,
            Self::AzureFirewall | Self::FirewallPolicy => true,
        }
    }
}

impl FirewallId {
    /// The id as the cloud writes it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// What it is. What is none of those that are known counts as a network security group: it is filtered by nothing
    /// else that is known.
    #[must_use]
    pub fn kind(&self) -> FirewallKind {
        match self.0.resource_type().as_deref() {
            Some("microsoft.network/azurefirewalls") => FirewallKind::AzureFirewall,
            Some("microsoft.network/firewallpolicies") => FirewallKind::FirewallPolicy,
            Some(_) | None => FirewallKind::NetworkSecurityGroup,
        }
    }
}

impl fmt::Display for FirewallId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a rule does with the packets that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Access {
    /// Lets them in.
    Allow,
    /// Keeps them out.
    Deny,
}

/// The protocol of a rule. `Other` has no ports that concern us: ICMP, ESP, AH.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RuleProtocol {
    /// TCP, UDP, or every protocol.
    Transport(Protocol),
    /// A protocol without ports, as the cloud names it.
    Other(String),
}

impl RuleProtocol {
    /// Whether some packet of `protocol` is of this one.
    #[must_use]
    pub fn intersects(&self, protocol: Protocol) -> bool {
        match self {
            Self::Transport(own) => own.intersects(protocol),
            Self::Other(_) => protocol == Protocol::Any,
        }
    }
}

/// One end of the traffic that a rule matches.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Peer {
    /// Every address.
    Any,
    /// A network.
    Net(IpNet),
    /// A service tag, as the cloud names it, such as `Internet` or `VirtualNetwork`.
    Tag(String),
    /// An application security group, by its id.
    Group(ArmId),
    /// Something that this version cannot read. It may match anything or nothing.
    Unknown(String),
}

impl Peer {
    /// One address.
    #[must_use]
    pub fn host(address: std::net::IpAddr) -> Self {
        Self::Net(IpNet::from(address))
    }
}

impl std::fmt::Display for Peer {
    /// As people write it.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Any => f.write_str("*"),
            Self::Net(net) => net.fmt(f),
            Self::Tag(text) | Self::Unknown(text) => f.write_str(text),
            Self::Group(id) => id.fmt(f),
        }
    }
}

/// How far the cloud is with what was asked of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Provisioning {
    /// Done.
    #[default]
    Succeeded,
    /// Under way: what is read is the goal, not yet what filters packets.
    Updating,
    /// Given up: what filters packets is unknown, so it has to be written again.
    Failed,
}

/// What a lock on the resource forbids.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ResourceLock {
    /// Nothing.
    #[default]
    None,
    /// Removing rules; writing them is allowed.
    CannotDelete,
    /// Every change.
    ReadOnly,
}

/// An inbound rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Its name, unique on the firewall without regard to case.
    pub name: String,
    /// Lower is judged first; unique on the firewall. From 100 to 4096; the cloud's own defaults lie above.
    pub priority: u16,
    /// Allow or deny.
    pub access: Access,
    /// Its protocol.
    pub protocol: RuleProtocol,
    /// Where the traffic comes from; any of them.
    pub sources: Vec<Peer>,
    /// From which ports; any of them.
    pub source_ports: Vec<PortRange>,
    /// Where the traffic goes: private addresses.
    pub destinations: Vec<Peer>,
    /// To which ports; any of them.
    pub ports: Vec<PortRange>,
    /// Where packets come in that the rule leads on to its destination, which is one address then; none where it only
    /// filters.
    pub translation: Option<Translation>,
    /// Free text.
    pub description: String,
    /// How far the cloud is with it.
    pub provisioning: Provisioning,
}

/// Where packets come in that are led on: the first port leads to the first port of the rule, and so on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Translation {
    /// The public address.
    pub address: IpAddr,
    /// Its first port.
    pub port: u16,
}

impl Rule {
    /// Whether the two match the same packets in the same way, whatever they are called, say of themselves and
    /// wherever they stand. The order of addresses and ports does not matter.
    #[must_use]
    pub fn same_effect(&self, other: &Self) -> bool {
        fn sorted<T: Ord + Clone>(items: &[T]) -> Vec<T> {
            let mut items = items.to_vec();
            items.sort();
            items.dedup();
            items
        }
        self.access == other.access
            && self.protocol == other.protocol
            && self.translation == other.translation
            && sorted(&self.sources) == sorted(&other.sources)
            && sorted(&self.destinations) == sorted(&other.destinations)
            && PortRange::merged(self.ports.clone()) == PortRange::merged(other.ports.clone())
            && PortRange::merged(self.source_ports.clone()) == PortRange::merged(other.source_ports.clone())
    }
}

/// A firewall as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Observed {
    /// Which.
    pub firewall: FirewallId,
    /// When the read began, by our clock.
    pub at: Timestamp,
    /// How far the cloud is with the firewall as a whole.
    pub provisioning: Provisioning,
    /// Inbound rules, the cloud's defaults included, by priority.
    pub rules: Vec<Rule>,
    /// Outbound rules: they count against the limits.
    pub outbound_rules: usize,
    /// Addresses and ranges that the outbound rules hold.
    pub outbound_addresses: usize,
    /// What a lock on it forbids, where that could be read.
    pub lock: ResourceLock,
    /// Whether it cuts connections that its rules no longer let in; none where that is not to be set.
    pub cuts_sessions: Option<bool>,
    /// What stands on a firewall that translates addresses; none for one that does not. `rules` are those of it then that
    /// have the form of ours.
    pub translating: Option<Translating>,
}

/// What stands on a firewall that translates addresses, rule by rule as the cloud has them, ours among them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Translating {
    /// What is led on, in the order in which it is judged.
    pub translations: Vec<DnatRule>,
    /// What is let through or kept out, in the order in which it is judged.
    pub filters: Vec<NetworkRule>,
    /// Why nothing can be opened there; none where something can.
    pub unfit: Option<super::Unsupported>,
    /// What of it could not be read, in a sentence: more may be led on than is known.
    pub unread: Option<String>,
}

/// A rule that leads packets on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnatRule {
    /// What it matches: destinations and ports are those where packets come in. Named as `collection/rule`.
    pub rule: Rule,
    /// Where it leads; none where that cannot be read, such as a name.
    pub to: Option<(IpAddr, PortRange)>,
    /// The rule of [`Observed::rules`] that it is a part of; none where it is of no such form.
    pub part_of: Option<String>,
}

/// A rule that filters, on a firewall that translates addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkRule {
    /// The rule, named as `collection/rule`. Its priority is that of its collection or group.
    pub rule: Rule,
    /// Whether it is judged before all rules of ours.
    pub comes_first: bool,
    /// As [`DnatRule::part_of`].
    pub part_of: Option<String>,
}

impl Observed {
    /// The rule of this name, without regard to case.
    #[must_use]
    pub fn rule(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.name.eq_ignore_ascii_case(name))
    }

    /// Rules that people or programs wrote, in both directions: what the limit counts.
    #[must_use]
    pub fn rule_count(&self) -> usize {
        self.outbound_rules + self.rules.iter().filter(|rule| rule.priority <= MAX_PRIORITY).count()
    }

    /// Addresses and ranges in all rules: what the other limit counts.
    #[must_use]
    pub fn address_count(&self) -> usize {
        let inbound: usize = self
            .rules
            .iter()
            .filter(|rule| rule.priority <= MAX_PRIORITY)
            .map(|rule| rule.sources.len() + rule.destinations.len())
            .sum();
        self.outbound_addresses + inbound
    }
}
