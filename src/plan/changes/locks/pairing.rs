//! Which denies a lock wants, and which standing rule is which of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Draft, Item, Shut, surroundings};
use crate::api::values::{PortRange, Protocol};
use crate::plan::desired::Lock;
use crate::plan::model::{Access, Peer, Provisioning, Rule, RuleProtocol};
use crate::plan::names::{self, Mark};
use crate::plan::packets::{hosts, ports_minus};
use crate::plan::priority::Surroundings;
use crate::plan::sources::Family;

/// The denies that a lock wants: one for each protocol, family and set of ports.
pub(super) fn wanted_denies(draft: &Draft<'_>, lock: &Lock, standing: &[&Rule]) -> Vec<Rule> {
    let mut machines: BTreeSet<IpAddr> = BTreeSet::new();
    let mut ports: BTreeMap<IpAddr, BTreeMap<Protocol, Vec<PortRange>>> = BTreeMap::new();
    for machine in &lock.machines {
        for address in &machine.addresses {
            machines.insert(*address);
            for (protocol, range) in &machine.ports {
                ports.entry(*address).or_default().entry(*protocol).or_default().push(*range);
            }
        }
    }
    if lock.keep_others {
        for rule in standing {
            let RuleProtocol::Transport(protocol) = rule.protocol else { continue };
            for address in hosts(&rule.destinations) {
                if !machines.contains(&address) && !lock.release.contains(&address) {
                    let own = ports.entry(address).or_default().entry(protocol).or_default();
                    own.extend_from_slice(&rule.ports);
                }
            }
        }
    }
    let mut products: BTreeMap<(Protocol, Family, Vec<PortRange>), BTreeSet<IpAddr>> = BTreeMap::new();
    for (address, by_protocol) in ports {
        let any = by_protocol.get(&Protocol::Any).cloned().unwrap_or_default();
        for (protocol, ranges) in by_protocol {
            // What is locked for every protocol needs no lock for one.
            let ranges = match protocol {
                Protocol::Any => PortRange::merged(ranges),
                Protocol::Tcp | Protocol::Udp => ports_minus(&ranges, &any),
            };
            if !ranges.is_empty() {
                products.entry((protocol, Family::of(address), ranges)).or_default().insert(address);
            }
        }
    }
    let description = names::description(&draft.wanted.cluster, &lock.policy_uid, None);
    let rule =
        |((protocol, _, ports), addresses): ((Protocol, Family, Vec<PortRange>), BTreeSet<IpAddr>)| Rule {
            name: String::new(),
            priority: 0,
            access: Access::Deny,
            protocol: RuleProtocol::Transport(protocol),
            sources: vec![Peer::Any],
            source_ports: vec![PortRange::ALL],
            destinations: addresses.into_iter().map(Peer::host).collect(),
            ports,
            translation: None,
            description: description.clone(),
            provisioning: Provisioning::Succeeded,
        };
    products.into_iter().map(rule).collect()
}

/// Finds for each wanted deny the rule that stands for it: the same one, the one that was it, or one that
/// shares its ports or its addresses.
pub(super) fn pair<'a>(
    draft: &Draft<'a>,
    lock: &'a Lock,
    contents: Vec<Rule>,
    mut standing: Vec<&'a Rule>,
    shut: &mut Shut<'a>,
) {
    let mut items: Vec<Item<'a>> =
        contents.into_iter().map(|content| Item { lock, content, standing: None, exact: false }).collect();
    for item in &mut items {
        let around = surroundings(draft, lock, &item.content);
        let exact = standing.iter().enumerate().filter(|(_, rule)| rule.same_effect(&item.content));
        let best = exact.min_by_key(|(index, rule)| (around.cost(rule.priority), *index));
        if let Some((index, _)) = best {
            item.standing = Some(standing.remove(index));
            item.exact = true;
        }
    }
    let known =
        |rule: &Rule| draft.wanted.standing.iter().find(|known| known.name.eq_ignore_ascii_case(&rule.name));
    let was =
        |item: &Item<'_>, rule: &Rule| known(rule).is_some_and(|known| known.same_effect(&item.content));
    take(&mut items, &mut standing, |item, rule| usize::from(was(item, rule)));
    take(&mut items, &mut standing, |item, rule| {
        if rule.protocol == item.content.protocol
            && PortRange::merged(rule.ports.clone()) == item.content.ports
        {
            hosts(&rule.destinations).intersection(&hosts(&item.content.destinations)).count()
        } else {
            0
        }
    });
    take(&mut items, &mut standing, |item, rule| {
        usize::from(
            rule.protocol == item.content.protocol
                && hosts(&rule.destinations) == hosts(&item.content.destinations),
        )
    });
    shut.over.extend(items);
    shut.spare.extend(standing);
}

/// Pairs what is still alone, best score first; none where the score is nothing.
fn take<'a>(items: &mut [Item<'a>], standing: &mut Vec<&'a Rule>, score: impl Fn(&Item<'a>, &Rule) -> usize) {
    for item in items.iter_mut().filter(|item| item.standing.is_none()) {
        let best = standing
            .iter()
            .enumerate()
            .map(|(index, rule)| (score(item, rule), index))
            .filter(|(score, _)| *score > 0)
            .min_by_key(|(score, index)| (std::cmp::Reverse(*score), *index));
        if let Some((_, index)) = best {
            item.standing = Some(standing.remove(index));
        }
    }
}

/// The deny of this content as it stood once, where it is not there, or not as it was then. A read that is older than the last
/// one shows neither it nor rules of others that it stood above: it is put back under its name and where it was, or higher, so
/// that nothing changes where it stands yet.
pub(super) fn missed<'a>(
    draft: &Draft<'a>,
    around: &Surroundings,
    lock: &Lock,
    content: &Rule,
    standing: Option<&Rule>,
) -> Option<&'a Rule> {
    let owner = names::uid12(&lock.policy_uid);
    let is_of_lock = |rule: &Rule| {
        let mark = names::parse_name(&draft.wanted.cluster, &rule.name);
        matches!(mark, Some(Mark::Deny { owner: of, .. }) if of == owner)
    };
    let is_away = |rule: &Rule| match standing {
        Some(old) => old.name.eq_ignore_ascii_case(&rule.name) && !old.same_effect(content),
        None => !draft.names.contains(&rule.name.to_ascii_lowercase()),
    };
    let best = around.cost(around.best(&draft.slots)?);
    let may_return = |rule: &Rule| {
        let cost = around.cost(rule.priority);
        draft.slots.is_free(rule.priority)
            && cost.wrong_side <= best.wrong_side
            && cost.shuts_out_grant <= best.shuts_out_grant
    };
    let placed = draft.wanted.placed.iter();
    placed
        .filter(|rule| rule.same_effect(content) && is_of_lock(rule) && is_away(rule) && may_return(rule))
        .min_by_key(|rule| (rule.priority, &rule.name))
}
