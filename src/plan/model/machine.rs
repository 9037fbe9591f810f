//! A machine and the way that traffic takes to it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::{FirewallId, Peer, RuleProtocol};
use crate::api::Reason;
use crate::api::values::{ArmId, PortRange};

/// Operating system of a machine: it decides which ports are management ports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Os {
    /// SSH on 22.
    Linux,
    /// RDP on 3389.
    Windows,
    /// The cloud does not say.
    #[default]
    Unknown,
}

impl Os {
    /// The word in status; none where unknown.
    #[must_use]
    pub const fn as_str(self) -> Option<&'static str> {
        match self {
            Self::Linux => Some("Linux"),
            Self::Windows => Some("Windows"),
            Self::Unknown => None,
        }
    }
}

/// A virtual machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Its resource id.
    pub id: ArmId,
    /// The UUID given at its creation: a machine made anew under the same id is another.
    pub vm_id: String,
    /// Its operating system.
    pub os: Os,
    /// Its tags.
    pub tags: BTreeMap<String, String>,
    /// Its network interfaces, by id.
    pub nics: Vec<Nic>,
}

impl Machine {
    /// All addresses over all interfaces, in order.
    pub fn addresses(&self) -> impl Iterator<Item = &Address> {
        self.nics.iter().flat_map(|nic| &nic.addresses)
    }

    /// What traffic from afar passes on the way to any of its addresses, each once.
    #[must_use]
    pub fn hops(&self) -> Vec<&Hop> {
        let mut hops: Vec<&Hop> = Vec::new();
        for hop in self.addresses().flat_map(|address| &address.hops) {
            if !hops.contains(&hop) {
                hops.push(hop);
            }
        }
        hops
    }

    /// What the rules are written to of every firewall on the way that leads packets on, each once, in order.
    #[must_use]
    pub fn translating_firewalls(&self) -> Vec<FirewallId> {
        let mut firewalls: Vec<FirewallId> =
            self.hops().into_iter().filter_map(Hop::firewall).map(FirewallHop::writes_to).collect();
        firewalls.sort();
        firewalls.dedup();
        firewalls
    }

    /// Every firewall that filters traffic to any of its addresses, each once, in order: those on the way that lead packets
    /// on are [`Machine::translating_firewalls`].
    #[must_use]
    pub fn firewalls(&self) -> Vec<FirewallId> {
        let mut firewalls: Vec<FirewallId> =
            self.addresses().flat_map(|address| address.path.iter().cloned()).collect();
        firewalls.sort();
        firewalls.dedup();
        firewalls
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its resource id.
    pub id: ArmId,
    /// Its private addresses.
    pub addresses: Vec<Address>,
}

/// A private address of a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address.
    pub ip: IpAddr,
    /// The public address that leads to it, if one does and could be read.
    pub public: Option<IpAddr>,
    /// Whether a public address leads to it, whichever.
    pub has_public: bool,
    /// The firewalls that traffic passes, in order: every one must let it in.
    pub path: Vec<FirewallId>,
    /// What traffic from afar passes before them, as the routes of the subnet say.
    pub hops: Vec<Hop>,
    /// Application security groups that the address belongs to.
    pub groups: Vec<ArmId>,
    /// The network around it: what service tags mean here.
    pub network: NetworkView,
}

/// What routes lead through on the way to a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hop {
    /// A firewall that translates addresses.
    Firewall(FirewallHop),
    /// Something else, or something that may not be read.
    Appliance {
        /// Its address.
        address: IpAddr,
        /// What it is not, or why it may not be read, in a sentence.
        why: String,
    },
    /// Something that could not be read now: what it is may be known again soon.
    Unread {
        /// Its address.
        address: IpAddr,
        /// Why, in a sentence.
        why: String,
    },
    /// A hub of a Virtual WAN that the network is connected to.
    Hub {
        /// The network that stands for it.
        id: ArmId,
    },
}

impl Hop {
    /// The firewall, where it is one that can be written to.
    #[must_use]
    pub const fn firewall(&self) -> Option<&FirewallHop> {
        match self {
            Self::Firewall(hop) => Some(hop),
            Self::Appliance { .. } | Self::Unread { .. } | Self::Hub { .. } => None,
        }
    }
}

/// A firewall that translates addresses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FirewallHop {
    /// Which.
    pub id: FirewallId,
    /// The private address that routes lead to.
    pub address: IpAddr,
    /// The policies that its rules are taken from, its own first, then their parents; none where it has rules of its own.
    pub policies: Vec<ArmId>,
    /// Its public addresses, of IPv4, in the order of its configuration.
    pub publics: Vec<IpAddr>,
    /// The networks of its subnet: what it leads on comes from an address in there.
    pub subnets: Vec<IpNet>,
    /// To what the machine's routes go, and whether by way of it.
    pub routes: Vec<Route>,
}

/// Where traffic to a network goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// The network.
    pub to: IpNet,
    /// Whether it goes by way of the firewall.
    pub by_it: bool,
}

impl FirewallHop {
    /// What its rules are written to: the firewall itself, or its policy.
    #[must_use]
    pub fn writes_to(&self) -> FirewallId {
        self.policies.first().map_or_else(|| self.id.clone(), |policy| FirewallId(policy.clone()))
    }

    /// Whether what comes from all of `source` comes by way of it: what the machine answers goes there, by the longest
    /// route. Of two as long, one that is not by way of it counts: where answers go another way, no connection comes about.
    #[must_use]
    pub fn carries(&self, source: IpNet) -> bool {
        let longest = self.routes.iter().filter(|route| route.to.contains(&source));
        longest.max_by_key(|route| (route.to.prefix_len(), !route.by_it)).is_some_and(|route| route.by_it)
    }
}

/// What is known of the network around an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkView {
    /// What the service tag `VirtualNetwork` covers here: the network, its peers, prefixes of user-defined routes.
    pub virtual_network: Vec<IpNet>,
    /// Rules of a Virtual Network Manager, judged before the firewalls, by priority; none where they could not
    /// be read.
    pub admin_rules: Option<Vec<AdminRule>>,
    /// What else has this address behind a firewall on the way, or may have: a rule there would open both. In
    /// words; none where the address is this machine's alone.
    pub twin: Option<String>,
}

/// A rule of a Virtual Network Manager.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminRule {
    /// Its name.
    pub name: String,
    /// Lower is judged first.
    pub priority: u16,
    /// What it does.
    pub action: AdminAction,
    /// Its protocol.
    pub protocol: RuleProtocol,
    /// Where the traffic comes from.
    pub sources: Vec<Peer>,
    /// Where it goes.
    pub destinations: Vec<Peer>,
    /// To which ports.
    pub ports: Vec<PortRange>,
}

/// What an admin rule does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminAction {
    /// Goes on to the firewalls.
    Allow,
    /// Lets traffic in past every firewall.
    AlwaysAllow,
    /// Keeps it out.
    Deny,
}

/// Why a machine cannot be locked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Unsupported {
    /// In one word.
    pub reason: Reason,
    /// In a sentence that says what would help.
    pub message: String,
}
