//! What firewalls with DNAT let in: past the lock, because what they translate comes from their own subnet.

use jiff::Timestamp;

use super::path::{Cell, Path, Trust};
use super::{Decider, Findings, Locked, Way};
use crate::api::values::{PortRange, Protocol};
use crate::plan::desired::WHOLE_WRITE;
use crate::plan::dnat;
use crate::plan::lifecycle::plus;
use crate::plan::model::{Access, Address, DnatRule, FirewallHop, Hop, Observed, Provisioning};
use crate::plan::packets::Transport;
use crate::plan::sources::{AddressSet, Bounds, Family};

/// Whether an address stands behind a firewall that leads packets on, and no public address leads past it.
pub(crate) fn is_behind(address: &Address) -> bool {
    let mut hops = address.hops.iter().filter_map(Hop::firewall);
    // Whoever is on the internet comes by the widest of routes.
    !address.has_public
        && hops.any(|hop| hop.routes.iter().any(|route| route.by_it && route.to.prefix_len() == 0))
}

/// Who is led on to locked ports and gets in, though no live grant and no exemption says so.
pub(super) fn find_holes(
    path: &Path<'_>,
    (address, way): (&Address, Way<'_>),
    locked: Locked<'_>,
    now: Timestamp,
    trust: Trust,
    found: &mut Findings,
) {
    for hop in address.hops.iter().filter_map(Hop::firewall) {
        let observed = way.firewalls.get(&hop.writes_to()).map(AsRef::as_ref);
        let by_it_alone = locked.by_firewalls_alone(address);
        for transport in Transport::ALL {
            let ports = locked.ports.iter().filter(|(protocol, _)| transport.is_of(*protocol));
            let ports: Vec<PortRange> = ports.map(|(_, range)| *range).collect();
            for cell in path.cells(transport, &ports) {
                if by_it_alone || gets_in(path, cell, hop, trust) {
                    find_led(hop, observed, (address, cell), locked, now, trust, found);
                }
                if by_it_alone {
                    find_let_through(hop, observed, (address, cell), locked, now, found);
                }
            }
        }
    }
}

/// Whether something that comes from the firewall's subnet may get in.
fn gets_in(path: &Path<'_>, cell: Cell, hop: &FirewallHop, trust: Trust) -> bool {
    let subnet = AddressSet::of_nets(&hop.subnets);
    // Nothing is exempt by name here: who exempts a tag means those who come as they are.
    let before = path.admin(cell, &[], trust);
    let mut through = before.onward.intersection(&subnet);
    for gate in &path.gates {
        through = through.intersection(&gate.judge(cell, &[], trust).let_in());
    }
    !through.is_empty() || before.bypassing.let_in().meets(&subnet) || subnet.is_empty()
}

fn find_led(
    hop: &FirewallHop,
    observed: Option<&Observed>,
    (address, cell): (&Address, Cell),
    locked: Locked<'_>,
    now: Timestamp,
    trust: Trust,
    found: &mut Findings,
) {
    // What is being written counts as written, or every grant would cast doubt on the lock for minutes; after a write that
    // failed nobody knows.
    let known =
        observed.filter(|observed| observed.provisioning != Provisioning::Failed || trust == Trust::Goal);
    let translating = known.and_then(|observed| observed.translating.as_ref());
    let Some(translating) = translating.filter(|it| it.unread.is_none() || trust == Trust::Goal) else {
        // Only as long as it is not known: what was asked for is taken to be no more than is known.
        found.open |= trust == Trust::Proved;
        return;
    };
    let exempt = Bounds::of(locked.exempt, Some(&address.network)).surely;
    let protocol = match cell.transport {
        Transport::Tcp => Protocol::Tcp,
        Transport::Udp => Protocol::Udp,
    };
    let leads = |dnat_rule: &&DnatRule| dnat::may_lead_to(dnat_rule, address.ip, &[cell.ports], protocol);
    for dnat_rule in translating.translations.iter().filter(leads) {
        let allowed = granted(locked, dnat_rule.part_of.as_ref(), now).union(&exempt);
        if !dnat::only_from(&dnat_rule.rule, &allowed) {
            found.open = true;
            found
                .shadowed
                .insert(Decider { firewall: Some(hop.writes_to()), rule: dnat_rule.rule.name.clone() });
        }
    }
}

/// The sources that a rule of a grant may let in. One that is being removed since its deadline is given the time of a write.
fn granted(locked: Locked<'_>, part_of: Option<&String>, now: Timestamp) -> AddressSet {
    let own = locked.grants.iter().filter(|grant| {
        now < plus(grant.deadline, WHOLE_WRITE)
            && part_of.is_some_and(|name| name.eq_ignore_ascii_case(&grant.name))
    });
    AddressSet::of_nets(own.flat_map(|grant| &grant.sources))
}

/// Who is let through as he is, where nothing but the firewall stands before the address.
fn find_let_through(
    hop: &FirewallHop,
    observed: Option<&Observed>,
    (address, cell): (&Address, Cell),
    locked: Locked<'_>,
    now: Timestamp,
    found: &mut Findings,
) {
    let filters = observed.and_then(|observed| observed.translating.as_ref()).map(|it| it.filters.as_slice());
    let exempt = Bounds::of(locked.exempt, Some(&address.network)).surely;
    let mut undecided = AddressSet::all().only(Family::of(address.ip));
    for filter in filters.unwrap_or_default() {
        let rule = &filter.rule;
        let destinations = Bounds::of(&rule.destinations, None);
        let concerns = cell.transport.is_of_rule(&rule.protocol)
            && rule.ports.iter().any(|range| range.intersects(cell.ports))
            && destinations.maybe.has(address.ip);
        if !concerns {
            continue;
        }
        let bounds = Bounds::of(&rule.sources, None);
        match rule.access {
            Access::Allow => {
                let met = bounds.maybe.intersection(&undecided);
                let allowed = granted(locked, filter.part_of.as_ref(), now).union(&exempt);
                if !met.minus(&allowed).is_empty() {
                    found.open = true;
                    let rule = rule.name.clone();
                    found.shadowed.insert(Decider { firewall: Some(hop.writes_to()), rule });
                }
            }
            Access::Deny => {
                let surely = destinations.surely.has(address.ip)
                    && rule.ports.iter().any(|range| range.contains(cell.ports));
                if surely {
                    undecided = undecided.minus(&bounds.surely);
                }
            }
        }
    }
}
