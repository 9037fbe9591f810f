//! Exemptions: allows above the denies of locks, for what every policy over a port exempts.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Draft;
use super::locks::{Shut, new_name};
use crate::api::Reason;
use crate::api::values::{PortRange, Protocol};
use crate::plan::desired::Lock;
use crate::plan::model::{Access, Peer, Provisioning, ResourceLock, Rule, RuleProtocol};
use crate::plan::names::{self, Mark};
use crate::plan::packets::{Cells, Reach, Transport, hosts, ports_in_both, ports_minus};
use crate::plan::sources::{Bounds, Family, without_overlaps};

/// How one lock covers a machine: its TCP and its UDP ports.
type Cover = [Vec<PortRange>; 2];
/// Whose, from where, which protocol, family and ports.
type Key = (String, Vec<Peer>, Protocol, Family, Vec<PortRange>);

pub(super) fn plan(draft: &mut Draft<'_>, shut: &mut Shut<'_>) {
    let mut standing: Vec<(String, u32, &Rule)> = Vec::new();
    for (mark, rule) in &draft.own {
        if let Mark::Exempt { owner, number } = mark {
            standing.push((owner.clone(), *number, rule));
        }
    }
    standing.sort_by_key(|(owner, number, rule)| (owner.clone(), *number, rule.name.clone()));
    let mut waiting: Vec<Rule> = Vec::new();
    let mut alone: Vec<(String, Rule)> = Vec::new();
    let contents = std::mem::take(&mut shut.exempt);
    let (kept, mut standing): (Vec<_>, Vec<_>) =
        standing.into_iter().partition(|(_, _, rule)| goes_on(shut, &contents, rule));
    for (owner, content, unheard) in contents.into_iter().flat_map(|(owner, rule)| parts(shut, &owner, &rule))
    {
        let is_within =
            |(_, _, rule): &(String, u32, &Rule)| rule.access == Access::Allow && lies_within(&content, rule);
        if kept.iter().any(is_within) || !shut.soon.contains(&Cells::named_by(&content)) {
            continue;
        }
        if unheard && !standing.iter().any(is_within) {
            let message = "an exemption waits for another policy that locks the same: what that one exempts is not known yet";
            draft.refuse(&owner, None, Reason::Progressing, message.to_owned());
            waiting.push(content);
            continue;
        }
        let found = standing
            .iter()
            .position(|(own, _, rule)| *own == names::uid12(&owner) && rule.same_effect(&content));
        match found {
            Some(index) => {
                let (_, _, rule) = standing.remove(index);
                write(draft, &owner, content, Some(rule));
            }
            None => alone.push((owner, content)),
        }
    }
    for (owner, content) in alone {
        if !shut.now.contains(&Cells::named_by(&content)) {
            waiting.push(content);
            continue;
        }
        let found = standing.iter().position(|(own, _, rule)| {
            *own == names::uid12(&owner)
                && rule.protocol == content.protocol
                && family(rule) == family(&content)
        });
        let rule = found.map(|index| standing.remove(index).2);
        let narrowed = rule.filter(|rule| !lies_within(rule, &content));
        let stands = write(draft, &owner, content, rule);
        if let Some(rule) = narrowed {
            // It lets in what no lock exempts any more, until it is written, or gone where it cannot be.
            if !stands {
                leave(draft, shut, rule);
            }
            shut.leaving.push(Cells::named_by(rule));
        }
    }
    for (owner, _, rule) in standing {
        // Part of one that waits for its deny: it goes on meanwhile.
        let serves = rule.access == Access::Allow
            && shut.soon.contains(&Cells::named_by(rule))
            && waiting.iter().any(|wider| lies_within(rule, wider));
        if serves || is_retained(draft, shut, &owner, rule) {
            continue;
        }
        leave(draft, shut, rule);
        shut.leaving.push(Cells::named_by(rule));
    }
    for content in &waiting {
        // Keeps its place, so that no grant takes it meanwhile.
        let reach = Reach::of(content, None);
        if let Some(priority) = draft.slots.highest_below(draft.first_deny(&reach).unwrap_or(u16::MAX)) {
            draft.slots.take(priority);
        }
    }
}

/// The exemptions that the locks want, and whose each is: of the policies over a port, the first.
pub(super) fn wanted(draft: &Draft<'_>, shut: &Shut<'_>) -> Vec<(String, Rule)> {
    if shut.wanted.iter().all(|(lock, _)| lock.exempt.is_empty()) {
        return Vec::new();
    }
    // Most machines are covered alike: each sort is worked out once.
    let mut alike: BTreeMap<(Family, Vec<Cover>), Vec<IpAddr>> = BTreeMap::new();
    let mut all = Cells::default();
    shut.wanted.iter().for_each(|(_, cells)| all.add_all(cells));
    for address in all.addresses() {
        let covers = shut
            .wanted
            .iter()
            .map(|(_, cells)| Transport::ALL.map(|transport| cells.ports(address, transport).to_vec()));
        alike.entry((Family::of(address), covers.collect())).or_default().push(address);
    }
    let mut products: BTreeMap<Key, Vec<IpAddr>> = BTreeMap::new();
    for ((family, covers), addresses) in alike {
        for ((owner, peers), [tcp, udp]) in exempt_ports(shut, family, &covers) {
            let both = ports_in_both(&tcp, &udp);
            let rest = |ports: &[PortRange]| ports_minus(ports, &both);
            let by_protocol =
                [(Protocol::Tcp, rest(&tcp)), (Protocol::Udp, rest(&udp)), (Protocol::Any, both.clone())];
            for (protocol, ports) in by_protocol.into_iter().filter(|(_, ports)| !ports.is_empty()) {
                let key = (owner.clone(), peers.clone(), protocol, family, ports);
                products.entry(key).or_default().extend(&addresses);
            }
        }
    }
    let rule = |((owner, sources, protocol, _, ports), mut addresses): (Key, Vec<IpAddr>)| {
        addresses.sort_unstable();
        let rule = Rule {
            name: String::new(),
            priority: 0,
            access: Access::Allow,
            protocol: RuleProtocol::Transport(protocol),
            sources,
            source_ports: vec![PortRange::ALL],
            destinations: addresses.into_iter().map(Peer::host).collect(),
            ports,
            translation: None,
            description: names::description(&draft.wanted.cluster, &owner, None),
            provisioning: Provisioning::Succeeded,
        };
        (owner, rule)
    };
    products.into_iter().map(rule).collect()
}

/// For machines that the locks cover so: from where which ports are exempt in every lock over them.
fn exempt_ports(shut: &Shut<'_>, family: Family, covers: &[Cover]) -> BTreeMap<(String, Vec<Peer>), Cover> {
    let mut found: BTreeMap<(String, Vec<Peer>), Cover> = BTreeMap::new();
    for (index, transport) in Transport::ALL.into_iter().enumerate() {
        // Between two neighbouring edges the same locks cover every port.
        let ranges = covers.iter().flat_map(|ports| &ports[index]);
        let mut edges: Vec<u32> =
            ranges.flat_map(|range| [u32::from(range.first()), u32::from(range.last()) + 1]).collect();
        edges.sort_unstable();
        edges.dedup();
        for pair in edges.windows(2) {
            let (Ok(first), Ok(last)) = (u16::try_from(pair[0]), u16::try_from(pair[1] - 1)) else {
                continue;
            };
            let Ok(segment) = PortRange::new(first, last) else { continue };
            let over: Vec<&Lock> = shut
                .wanted
                .iter()
                .zip(covers)
                .filter(|(_, ports)| ports[index].iter().any(|range| range.contains(segment)))
                .map(|((lock, _), _)| *lock)
                .collect();
            let Some(owner) = over.first() else { continue };
            for peers in exempt_in_all(&over, family) {
                let ports = found.entry((owner.policy_uid.clone(), peers)).or_default();
                ports[index].push(segment);
            }
        }
        debug_assert_eq!(transport.is_of(Protocol::Tcp), index == 0);
    }
    for ports in found.values_mut() {
        *ports = std::mem::take(ports).map(PortRange::merged);
    }
    found
}

/// What every one of the locks exempts, as the source lists of rules: networks together, each tag alone,
/// because clouds take no tags in lists.
fn exempt_in_all(locks: &[&Lock], family: Family) -> Vec<Vec<Peer>> {
    let Some((first, others)) = locks.split_first() else { return Vec::new() };
    let mut common = first.exempt.clone();
    for lock in others {
        common = common
            .iter()
            .flat_map(|own| lock.exempt.iter().filter_map(|other| in_both(own, other)))
            .collect();
    }
    let mut networks: Vec<IpNet> = Vec::new();
    let mut lists: Vec<Vec<Peer>> = Vec::new();
    for peer in common {
        match peer {
            Peer::Net(network) if Family::of_net(&network) == family => networks.push(network),
            Peer::Any | Peer::Tag(_) => lists.push(vec![peer]),
            // What cannot be read exempts nobody; groups are not for exemptions.
            Peer::Net(_) | Peer::Group(_) | Peer::Unknown(_) => {}
        }
    }
    let networks = without_overlaps(&networks);
    if !networks.is_empty() {
        lists.push(networks.into_iter().map(Peer::Net).collect());
    }
    lists.sort();
    lists.dedup();
    lists
}

/// What is in both of two peers, as far as it can be told.
fn in_both(left: &Peer, right: &Peer) -> Option<Peer> {
    match (left, right) {
        (Peer::Any, other) | (other, Peer::Any) => Some(other.clone()),
        (Peer::Net(left), Peer::Net(right)) if left.contains(right) => Some(Peer::Net(*right)),
        (Peer::Net(left), Peer::Net(right)) if right.contains(left) => Some(Peer::Net(*left)),
        (Peer::Tag(left), Peer::Tag(right)) if left.eq_ignore_ascii_case(right) => {
            Some(Peer::Tag(left.clone().min(right.clone())))
        }
        _ => None,
    }
}

/// Places an exemption above every deny of ours that would shut it out, and writes it where it is not as it
/// should be. Whether it stands so, now or after the write.
fn write(draft: &mut Draft<'_>, owner: &str, mut content: Rule, standing: Option<&Rule>) -> bool {
    let reach = Reach::of(&content, None);
    let bound = draft.first_deny(&reach).unwrap_or(u16::MAX);
    let place = standing.map(|rule| rule.priority).filter(|priority| *priority < bound);
    let Some(priority) = place.or_else(|| draft.slots.highest_below(bound)) else {
        let message = format!("no free priority number is left above the deny at {bound} for an exemption");
        draft.refuse(owner, None, Reason::NoPriorityRoom, message);
        return false;
    };
    content.priority = priority;
    if let Some(old) = standing
        && old.same_effect(&content)
        && old.priority == priority
        && old.description == content.description
        && old.provisioning != Provisioning::Failed
    {
        return true;
    }
    // A deliberate deny of somebody else is not passed by an exemption either.
    let deliberate = draft.foreign_denies(&reach).into_iter().find(|deny| {
        deny.priority < draft.wanted.honour_denies_below
            && deny.priority > priority
            && standing.is_none_or(|old| old.priority > deny.priority || !old.same_effect(&content))
    });
    if let Some(deny) = deliberate {
        let message = format!(
            "an exemption would stand above rule {} at priority {}, which denies the packets",
            deny.name, deny.priority
        );
        draft.refuse(owner, None, Reason::ForeignDeny, message);
        return false;
    }
    if !draft.has_room(&content, standing, draft.limits) {
        let message = "the firewall is full: no room for an exemption".to_owned();
        draft.refuse(owner, None, Reason::FirewallFull, message);
        return false;
    }
    content.name = match standing {
        Some(old) => old.name.clone(),
        None => new_name(draft, |n| names::exempt_name(&draft.wanted.cluster, owner, n)),
    };
    draft.book(&content, standing);
    draft.changes.locks.push(content);
    true
}

/// Whether an exemption that stands goes on as it is because it is over what a policy locks that has not been heard: every
/// policy over it exempted these sources when it was written, and those that have been heard still do.
fn goes_on(shut: &Shut<'_>, contents: &[(String, Rule)], rule: &Rule) -> bool {
    let cells = Cells::named_by(rule);
    if rule.access != Access::Allow
        || hosts(&rule.destinations).len() != rule.destinations.len()
        || !shut.unheard.meets(&cells)
    {
        return false;
    }
    let (mut wanted, mut exempt) = (Cells::default(), Cells::default());
    shut.wanted.iter().for_each(|(_, own)| wanted.add_all(own));
    let same = contents.iter().filter(|(_, content)| comes_from(rule, content));
    same.for_each(|(_, content)| exempt.add_all(&Cells::named_by(content)));
    let heard = cells.intersection(&wanted);
    exempt.contains(&heard) && shut.unheard.contains(&cells.minus(&heard))
}

/// An exemption, apart from its addresses that a policy locks too which has not been heard; true: those.
fn parts(shut: &Shut<'_>, owner: &str, content: &Rule) -> Vec<(String, Rule, bool)> {
    let to = |destinations: Vec<Peer>| Rule { destinations, ..content.clone() };
    let is_unheard = |peer: &Peer| shut.unheard.meets(&Cells::named_by(&to(vec![peer.clone()])));
    let (unheard, clear): (Vec<Peer>, Vec<Peer>) = content.destinations.iter().cloned().partition(is_unheard);
    let parts = [(clear, false), (unheard, true)].into_iter().filter(|(peers, _)| !peers.is_empty());
    parts.map(|(peers, unheard)| (owner.to_owned(), to(peers), unheard)).collect()
}

/// Whether an exemption of a policy that is gone belongs to denies that stay: wholly over them, and over
/// nothing that a lock here wants shut.
fn is_retained(draft: &Draft<'_>, shut: &Shut<'_>, owner: &str, rule: &Rule) -> bool {
    let cells = Cells::named_by(rule);
    rule.access == Access::Allow
        && draft.policy_uid(owner).is_none()
        && !cells.is_empty()
        && hosts(&rule.destinations).len() == rule.destinations.len()
        && shut.orphaned.contains(&cells)
        && !shut.wanted.iter().any(|(_, wanted)| wanted.meets(&cells))
}

/// Removes an exemption, or makes it a deny where it may not be removed and its ports are to be shut.
fn leave(draft: &mut Draft<'_>, shut: &Shut<'_>, rule: &Rule) {
    let locked = || shut.wanted.iter().any(|(_, wanted)| wanted.meets(&Cells::named_by(rule)));
    if draft.observed.lock == ResourceLock::CannotDelete && rule.access == Access::Allow && locked() {
        let priority = draft.slots.highest_below(u16::MAX).unwrap_or(rule.priority);
        let deny =
            Rule { access: Access::Deny, priority, provisioning: Provisioning::Succeeded, ..rule.clone() };
        draft.book(&deny, Some(rule));
        draft.changes.locks.push(deny);
    } else {
        draft.changes.unlocks.push(rule.name.clone());
    }
}

/// Whether an exemption is from no other sources than another.
fn comes_from(rule: &Rule, wider: &Rule) -> bool {
    let sources = Bounds::of(&rule.sources, None).maybe;
    // A tag is within itself, whatever it stands for.
    rule.sources == wider.sources || Bounds::of(&wider.sources, None).surely.contains(&sources)
}

/// Whether an exemption lets in nothing that another does not.
pub(super) fn lies_within(rule: &Rule, wider: &Rule) -> bool {
    comes_from(rule, wider)
        && hosts(&rule.destinations).len() == rule.destinations.len()
        && Cells::named_by(wider).contains(&Cells::named_by(rule))
}

/// The family of the addresses that a rule names.
fn family(rule: &Rule) -> Option<Family> {
    hosts(&rule.destinations).first().copied().map(Family::of)
}
