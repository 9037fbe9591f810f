//! What the firewalls on the way to a machine let through: is a locked port really closed, and does a grant
//! really open?
//!
//! The way to an address: rules of a Virtual Network Manager first, then every firewall of its path, and each
//! of these must let a packet in. Within a firewall the first rule that matches decides.
//!
//! Where a rule cannot be read exactly (a service tag, a security group of other machines), the answer errs to
//! the side of alarm: such an allow lets in everything, such a deny nothing.
//!
//! | the lock | is |
//! |---|---|
//! | nobody but live grants and exempt sources gets in | [`Lockdown::Effective`], whatever does it |
//! | somebody does, past a deny of ours, by a rule above it | [`Lockdown::Shadowed`] by that rule |
//! | the same, where the policy says `Keep` | [`Lockdown::KeptRules`] |
//! | somebody does, and no firewall on the way has our deny | [`Lockdown::Missing`] |
//! | somebody might, because something could not be read or is being written | [`Lockdown::Unknown`] |
//!
//! What a firewall before the path leads on comes from an address of its subnet: it must not get in either, but for what
//! live grants lead on.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::desired::Grant;
use super::model::{Access, Address, FirewallId, Machine, Observed, Peer, Provisioning};
use super::names::Cluster;
use super::packets::Transport;
use super::sources::{AddressSet, Bounds, Family};
use crate::api::ExistingRules;
use crate::api::values::{PortRange, Protocol};

mod dnat;
mod passage;
mod path;

pub(crate) use dnat::is_behind;
pub use passage::{Passage, passage, stopped_by};
use path::{Cell, Does, Path, Trust};

/// A machine and the firewalls before it, as they were read.
#[derive(Clone, Copy, Debug)]
pub struct Way<'a> {
    /// The machine.
    pub machine: &'a Machine,
    /// The firewalls that could be read, by id; those that are missing here could not.
    pub firewalls: &'a BTreeMap<FirewallId, Arc<Observed>>,
    /// Whose rules are ours.
    pub cluster: &'a Cluster,
}

/// What a policy says of a machine.
#[derive(Clone, Copy, Debug)]
pub struct Locked<'a> {
    /// What is locked.
    pub ports: &'a [(Protocol, PortRange)],
    /// Above or below rules of others.
    pub existing: ExistingRules,
    /// Who may pass.
    pub exempt: &'a [Peer],
    /// Grants whose rules may let somebody in; those past their deadline count for nothing.
    pub grants: &'a [Grant],
    /// What locks.
    pub via: Enforced,
}

impl Locked<'_> {
    /// Whether what locks an address is that firewalls lead nothing on to it, and nothing else.
    fn by_firewalls_alone(&self, address: &Address) -> bool {
        let unfiltered = address.path.is_empty() || !self.via.groups;
        self.via.firewalls && unfiltered && dnat::is_behind(address)
    }
}

/// What of a way is enforced. Where it is no group, what locks is that firewalls lead nothing on: the networks around are
/// not locked out then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Enforced {
    /// Network security groups.
    pub groups: bool,
    /// Firewalls that lead packets on.
    pub firewalls: bool,
}

/// A rule that lets packets in, or keeps them out.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Decider {
    /// The firewall that it belongs to; none for a rule of a Virtual Network Manager.
    pub firewall: Option<FirewallId>,
    /// Its name.
    pub rule: String,
}

impl std::fmt::Display for Decider {
    /// `rule allow-ssh of nsg-1`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.firewall {
            Some(firewall) => write!(f, "rule {} of {}", self.rule, firewall.0.name()),
            None => write!(f, "security admin rule {}", self.rule),
        }
    }
}

/// Whether the locked ports of a machine are closed to everybody without a grant or an exemption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lockdown {
    /// They are.
    Effective,
    /// Rules let traffic in past the lock. Sorted.
    Shadowed {
        /// Which.
        by: Vec<Decider>,
    },
    /// Rules let traffic in past the lock, and the policy says that they may. Sorted.
    KeptRules {
        /// Which.
        by: Vec<Decider>,
    },
    /// No firewall on the way has the lock.
    Missing {
        /// The firewalls that should have it. Sorted.
        on: Vec<FirewallId>,
    },
    /// They may be open: something could not be read, or is being written.
    Unknown {
        /// What, in a sentence.
        why: String,
    },
}

/// Whether the locked ports of a machine are closed at `now` to everybody without a grant or an exemption.
///
/// Where rules of a Virtual Network Manager could not be read, there are taken to be none: see
/// [`admin_rules_were_read`].
#[must_use]
pub fn lockdown(way: Way<'_>, locked: Locked<'_>, now: Timestamp) -> Lockdown {
    let mut strict = Findings::default();
    let mut lenient = Findings::default();
    for address in way.machine.addresses() {
        let path = Path::to(address, way);
        let find = |trust, found: &mut Findings| {
            if !locked.by_firewalls_alone(address) {
                find_holes(&path, address, locked, now, trust, found);
            }
            dnat::find_holes(&path, (address, way), locked, now, trust, found);
        };
        find(Trust::Proved, &mut strict);
        if !strict.is_empty() {
            find(Trust::Goal, &mut lenient);
        }
    }
    if strict.is_empty() {
        return Lockdown::Effective;
    }
    let Findings { shadowed, kept, missing, bare, .. } = lenient;
    if !shadowed.is_empty() {
        Lockdown::Shadowed { by: shadowed.into_iter().collect() }
    } else if bare || !missing.is_empty() {
        Lockdown::Missing { on: missing.into_iter().collect() }
    } else if !kept.is_empty() {
        Lockdown::KeptRules { by: kept.into_iter().collect() }
    } else {
        Lockdown::Unknown { why: unknown(way) }
    }
}

/// Whether the rules of a Virtual Network Manager were read for every address of a machine.
#[must_use]
pub fn admin_rules_were_read(machine: &Machine) -> bool {
    machine.addresses().all(|address| address.network.admin_rules.is_some())
}

/// What lets packets in that should stay out.
#[derive(Default)]
struct Findings {
    shadowed: BTreeSet<Decider>,
    kept: BTreeSet<Decider>,
    missing: BTreeSet<FirewallId>,
    /// Something gets in.
    open: bool,
    /// Something gets in where there is no firewall at all.
    bare: bool,
}

impl Findings {
    fn is_empty(&self) -> bool {
        !self.open
    }
}

fn find_holes(
    path: &Path<'_>,
    address: &Address,
    locked: Locked<'_>,
    now: Timestamp,
    trust: Trust,
    found: &mut Findings,
) {
    let family = Family::of(address.ip);
    let exempt = Bounds::of(locked.exempt, Some(&address.network)).surely;
    for transport in Transport::ALL {
        let ports = locked.ports.iter().filter(|(protocol, _)| transport.is_of(*protocol));
        let ports: Vec<PortRange> = ports.map(|(_, range)| *range).collect();
        for cell in path.cells(transport, &ports) {
            let onward = path.admin(cell, locked.exempt, trust);
            let may = expected(locked.grants, address, cell, now);
            let may = if locked.exempt.is_empty() { may } else { may.union(&exempt) };
            let outside = AddressSet::all().only(family).minus(&may);
            let bypassing = onward.bypassing.let_in().intersection(&outside);
            if !bypassing.is_empty() {
                found.open = true;
                found.shadowed.extend(onward.bypassing.deciders(&bypassing));
            }
            let gates: Vec<_> =
                path.gates.iter().map(|gate| gate.judge(cell, locked.exempt, trust)).collect();
            let mut hole = onward.onward.intersection(&outside);
            for gate in &gates {
                hole = hole.intersection(&gate.let_in());
            }
            if hole.is_empty() {
                continue;
            }
            found.open = true;
            found.bare |= path.gates.is_empty();
            let locked_gates: Vec<usize> =
                (0..gates.len()).filter(|index| path.gates[*index].has_lock(cell, trust)).collect();
            for index in &locked_gates {
                let by = gates[*index].deciders(&hole);
                match locked.existing {
                    ExistingRules::Override => found.shadowed.extend(by),
                    ExistingRules::Keep => found.kept.extend(by),
                }
            }
            if locked_gates.is_empty() {
                found.missing.extend(path.gates.iter().map(|gate| gate.firewall.clone()));
            }
        }
    }
}

/// The sources that live grants let in here.
fn expected(grants: &[Grant], address: &Address, cell: Cell, now: Timestamp) -> AddressSet {
    let live = grants.iter().filter(|grant| {
        now < grant.deadline
            // What is led on does not come as it is.
            && grant.translation.is_none()
            && grant.destinations.contains(&address.ip)
            && cell.transport.is_of(grant.protocol)
            && PortRange::merged(grant.ports.clone()).iter().any(|range| range.contains(cell.ports))
    });
    AddressSet::of_nets(live.flat_map(|grant| &grant.sources))
}

/// Why it cannot be told.
fn unknown(way: Way<'_>) -> String {
    let mut reasons: Vec<String> = Vec::new();
    for firewall in way.machine.firewalls().into_iter().chain(way.machine.translating_firewalls()) {
        let name = firewall.0.name();
        match way.firewalls.get(&firewall) {
            None => reasons.push(format!("{name} has not been read")),
            Some(observed) if path::is_settled(observed.provisioning) => {
                let unread = observed.translating.as_ref().and_then(|it| it.unread.clone());
                reasons.extend(unread);
                let pending = observed.rules.iter().filter(|rule| !path::is_settled(rule.provisioning));
                reasons
                    .extend(pending.map(|rule| {
                        format!("rule {} of {name} {}", rule.name, unsettled(rule.provisioning))
                    }));
            }
            Some(observed) => reasons.push(format!("{name} {}", unsettled(observed.provisioning))),
        }
    }
    reasons.truncate(5);
    reasons.join("; ")
}

const fn unsettled(provisioning: Provisioning) -> &'static str {
    match provisioning {
        Provisioning::Failed => "failed to be written",
        Provisioning::Updating | Provisioning::Succeeded => "is being written",
    }
}

impl Does {
    /// What a rule of a firewall does.
    const fn of(access: Access) -> Self {
        match access {
            Access::Allow => Self::Allow,
            Access::Deny => Self::Deny,
        }
    }
}
