//! Whether the packets of a grant get through.

use std::collections::BTreeSet;

use super::path::{Cell, Does, Path, Verdict};
use super::{Decider, Way};
use crate::plan::changes::grant_rule;
use crate::plan::desired::Grant;
use crate::plan::model::{Access, Address, NetworkView, Observed, Peer, Translating};
use crate::plan::names::Cluster;
use crate::plan::packets::{Reach, Transport};
use crate::plan::sources::AddressSet;

/// Whether the packets of a grant get through to a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// All of them.
    Open,
    /// Some of them are stopped. Sorted.
    Partly {
        /// By which rules.
        by: Vec<Decider>,
    },
    /// All of them are stopped. Sorted.
    Stopped {
        /// By which rules; empty where nothing lets them in.
        by: Vec<Decider>,
    },
    /// It cannot be told: the rules in their way cannot be read exactly, or a firewall could not be read.
    Unknown {
        /// What may stop them. Sorted.
        by: Vec<Decider>,
    },
}

/// What becomes of packets that are alike but for their source.
#[derive(Default)]
struct Fate {
    /// Surely through everything so far.
    through: AddressSet,
    /// Surely stopped.
    stopped: AddressSet,
}

/// Whether the packets of a grant get through to the addresses of a machine that it names: by the rules as they
/// stand, those still being written included.
#[must_use]
pub fn passage(way: Way<'_>, grant: &Grant) -> Passage {
    let addresses = way.machine.addresses().filter(|address| grant.destinations.contains(&address.ip));
    let mut tally = Tally::default();
    for address in addresses {
        tally.count(&Path::to(address, way), grant);
    }
    tally.verdict()
}

/// The rule that stops all packets of a grant to one of its addresses, as far as one firewall alone can tell
/// without knowing the network around it.
#[must_use]
pub fn stopped_by(observed: &Observed, cluster: &Cluster, grant: &Grant) -> Option<Decider> {
    if let Some(translating) = &observed.translating {
        return led_stopped_by(observed, translating, cluster, grant);
    }
    grant.destinations.iter().find_map(|ip| {
        let path = vec![observed.firewall.clone()];
        let network = NetworkView::default();
        let address = Address {
            ip: *ip,
            public: None,
            has_public: false,
            path,
            hops: Vec::new(),
            groups: Vec::new(),
            network,
        };
        let mut tally = Tally::default();
        tally.count(&Path::through(&address, observed, cluster), grant);
        match tally.verdict() {
            Passage::Stopped { by } => by.into_iter().next(),
            Passage::Open | Passage::Partly { .. } | Passage::Unknown { .. } => None,
        }
    })
}

/// The same of a firewall that leads packets on, in that reading of Azure's in which a deny stops what was led on.
fn led_stopped_by(
    observed: &Observed,
    translating: &Translating,
    cluster: &Cluster,
    grant: &Grant,
) -> Option<Decider> {
    let reach = Reach::of(&grant_rule(cluster, grant, 0), None);
    let filters = translating.filters.iter().filter(|filter| filter.comes_first);
    let stops = filters.map(|filter| &filter.rule).find(|rule| {
        // Whatever it may be, it stops nothing that it does not surely match.
        let surely =
            !rule.sources.iter().chain(&rule.destinations).any(|peer| matches!(peer, Peer::Unknown(_)));
        rule.access == Access::Deny && surely && Reach::of(rule, None).meets(&reach)
    });
    stops.map(|rule| Decider { firewall: Some(observed.firewall.clone()), rule: rule.name.clone() })
}

/// What was found, address by address.
#[derive(Default)]
struct Tally {
    stops: BTreeSet<Decider>,
    doubts: BTreeSet<Decider>,
    open: bool,
    stopped: bool,
    unclear: bool,
}

impl Tally {
    fn count(&mut self, path: &Path<'_>, grant: &Grant) {
        let sources = AddressSet::of_nets(&grant.sources);
        for transport in Transport::ALL.into_iter().filter(|transport| transport.is_of(grant.protocol)) {
            for cell in path.cells(transport, &grant.ports) {
                let fate = fate(path, cell, &sources, &mut self.stops, &mut self.doubts);
                self.open |= !fate.through.is_empty();
                self.stopped |= !fate.stopped.is_empty();
                self.unclear |= !sources.minus(&fate.through).minus(&fate.stopped).is_empty();
            }
        }
    }

    fn verdict(self) -> Passage {
        let sorted = |set: BTreeSet<Decider>| set.into_iter().collect();
        match (self.open, self.stopped, self.unclear) {
            (true, false, false) => Passage::Open,
            // None of its addresses is the machine's: nothing gets anywhere.
            (false, _, false) => Passage::Stopped { by: sorted(self.stops) },
            (_, true, _) => Passage::Partly { by: sorted(self.stops) },
            (_, false, true) => Passage::Unknown { by: sorted(self.doubts) },
        }
    }
}

fn fate(
    path: &Path<'_>,
    cell: Cell,
    sources: &AddressSet,
    stops: &mut BTreeSet<Decider>,
    doubts: &mut BTreeSet<Decider>,
) -> Fate {
    let mut fate = Fate::default();
    let before = first_match(path.admin_rules(), cell, sources, stops, doubts);
    fate.stopped = before.denied;
    // What no rule of a Virtual Network Manager matches goes on to the firewalls.
    let mut onward = before.allowed.union(&before.unmatched);
    for gate in &path.gates {
        if !gate.could_be_read() {
            onward = AddressSet::empty();
            continue;
        }
        let verdict = first_match(gate.rules(), cell, &onward, stops, doubts);
        // A firewall lets in nothing that no rule of it lets in.
        fate.stopped = fate.stopped.union(&verdict.denied).union(&verdict.unmatched);
        onward = verdict.allowed;
    }
    fate.through = before.bypassing.union(&onward);
    fate
}

/// What surely becomes of sources in one list of rules. What may match a rule and need not is in none.
#[derive(Default)]
struct Matched {
    allowed: AddressSet,
    denied: AddressSet,
    bypassing: AddressSet,
    unmatched: AddressSet,
}

fn first_match<'a>(
    rules: impl Iterator<Item = Verdict<'a>>,
    cell: Cell,
    sources: &AddressSet,
    stops: &mut BTreeSet<Decider>,
    doubts: &mut BTreeSet<Decider>,
) -> Matched {
    let mut matched = Matched { unmatched: sources.clone(), ..Matched::default() };
    for rule in rules.filter(|rule| rule.concerns(cell)) {
        if matched.unmatched.is_empty() {
            break;
        }
        let surely = matched.unmatched.intersection(&rule.surely());
        let doubtful = matched.unmatched.intersection(rule.maybe()).minus(&surely);
        match rule.does() {
            Does::Allow => matched.allowed = matched.allowed.union(&surely),
            Does::Bypass => matched.bypassing = matched.bypassing.union(&surely),
            Does::Deny => {
                if !surely.is_empty() {
                    stops.insert(rule.decider());
                }
                if !doubtful.is_empty() {
                    doubts.insert(rule.decider());
                }
                matched.denied = matched.denied.union(&surely);
            }
        }
        matched.unmatched = matched.unmatched.minus(&surely).minus(&doubtful);
    }
    matched
}
