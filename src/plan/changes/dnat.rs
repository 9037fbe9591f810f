//! Which allows are to be written to a firewall with DNAT.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::opens::{few_enough, one_cross_product};
use super::{Draft, grant_rule};
use crate::api::Reason;
use crate::api::values::PortRange;
use crate::plan::desired::Grant;
use crate::plan::dnat;
use crate::plan::model::{Access, DnatRule, ResourceLock, Rule, Translating, Translation};
use crate::plan::names;
use crate::plan::packets::{Reach, hosts};
use crate::plan::sources::Family;

type Refusal = (Reason, String);

pub(super) fn open(draft: &mut Draft<'_>, translating: &Translating, grant: &Grant) -> Result<(), Refusal> {
    let standing = draft.observed.rule(&grant.name);
    if draft.is_closing(&grant.name) {
        return Err((Reason::RuleRemoved, format!("rule {} is being removed", grant.name)));
    }
    let rule = grant_rule(&draft.wanted.cluster, grant, 0);
    one_cross_product(grant)?;
    can_hold(grant)?;
    if let Some(unfit) = &translating.unfit {
        return Err((unfit.reason, unfit.message.clone()));
    }
    if draft.observed.lock == ResourceLock::ReadOnly {
        let message = "a ReadOnly lock on the firewall would forbid the rule's removal".to_owned();
        return Err((Reason::ScopeLocked, message));
    }
    nobody_else_leads(draft, translating, grant)?;
    nothing_denies(draft, translating, &rule)?;
    few_enough(draft, standing)?;
    has_room(draft, translating, grant, &rule)?;
    draft.changes.opens.push(rule);
    Ok(())
}

/// One address of IPv4, where packets are led on to it.
fn can_hold(grant: &Grant) -> Result<(), Refusal> {
    let six = grant.destinations.iter().any(|ip| Family::of(*ip) == Family::V6);
    let led = grant.translation.is_none() || (grant.destinations.len() == 1 && grant.ports.len() == 1);
    let anywhere = grant.translation.is_some() && grant.sources.iter().any(|source| source.prefix_len() == 0);
    if six || !led || anywhere {
        let message = "a firewall leads IPv4 packets of named networks on to one row of ports of one address"
            .to_owned();
        return Err((Reason::InvalidSpec, message));
    }
    Ok(())
}

fn is_own(draft: &Draft<'_>, part_of: Option<&String>) -> bool {
    part_of.is_some_and(|name| names::parse_name(&draft.wanted.cluster, name).is_some())
}

/// Whether the ports where packets are to come in are nobody else's.
fn nobody_else_leads(draft: &Draft<'_>, translating: &Translating, grant: &Grant) -> Result<(), Refusal> {
    let Some(from) = grant.translation else { return Ok(()) };
    let count = count(&grant.ports);
    let taken = |name: &str| {
        let message = format!(
            "rule {name} leads packets to {}:{} somewhere else: ask again, for another port",
            from.address, from.port
        );
        Err((Reason::FirewallUnfit, message))
    };
    let shares = |other: &Rule| {
        other.translation == grant.translation
            && other.ports == grant.ports
            && hosts(&other.destinations) == grant.destinations.iter().copied().collect::<BTreeSet<IpAddr>>()
    };
    let meets = |dnat_rule: &&DnatRule| dnat::may_take(dnat_rule, from, count, grant.protocol);
    for dnat_rule in translating.translations.iter().filter(meets) {
        let own = dnat_rule.part_of.as_ref().filter(|_| is_own(draft, dnat_rule.part_of.as_ref()));
        let standing = own.and_then(|name| draft.observed.rule(name));
        if !standing.is_some_and(|rule| rule.name.eq_ignore_ascii_case(&grant.name) || shares(rule)) {
            return taken(&dnat_rule.rule.name);
        }
    }
    let range = |rule: &Rule| {
        let end = |own: Translation| usize::from(own.port) + self::count(&rule.ports);
        rule.translation.map(|own| (own.address, usize::from(own.port), end(own)))
    };
    let mine = (from.address, usize::from(from.port), usize::from(from.port) + count);
    for other in &draft.changes.opens {
        let met = range(other).is_some_and(|other| other.0 == mine.0 && other.1 < mine.2 && mine.1 < other.2);
        if met && !shares(other) {
            return taken(&other.name);
        }
    }
    Ok(())
}

/// Whether no deny of somebody else stops the packets, in that reading of Azure's in which it would: one that is judged
/// before ours, or is deliberate.
fn nothing_denies(draft: &Draft<'_>, translating: &Translating, rule: &Rule) -> Result<(), Refusal> {
    let reach = Reach::of(rule, None);
    let stops = translating.filters.iter().find(|filter| {
        filter.rule.access == Access::Deny
            && !is_own(draft, filter.part_of.as_ref())
            && (filter.comes_first || filter.rule.priority < draft.wanted.honour_denies_below)
            && Reach::of(&filter.rule, None).meets(&reach)
    });
    match stops {
        None => Ok(()),
        Some(filter) => Err((
            Reason::ForeignDeny,
            format!(
                "rule {} at priority {} denies the packets and is judged first, or is below {} and so deliberate",
                filter.rule.name, filter.rule.priority, draft.wanted.honour_denies_below
            ),
        )),
    }
}

fn count(ports: &[PortRange]) -> usize {
    ports.iter().map(|range| usize::from(range.last() - range.first()) + 1).sum()
}

/// How many rules of the firewall one of ours is written as: one for each port where packets come in, and one that lets
/// them through.
fn parts(rule: &Rule) -> usize {
    1 + rule.translation.map_or(0, |_| count(&rule.ports))
}

/// Rules, and public addresses with the addresses that they lead to.
fn has_room(draft: &Draft<'_>, translating: &Translating, grant: &Grant, rule: &Rule) -> Result<(), Refusal> {
    let is_new = |rule: &&Rule| draft.observed.rule(&rule.name).is_none();
    let mut led: BTreeSet<IpAddr> = translating
        .translations
        .iter()
        .filter_map(|dnat_rule| dnat_rule.to.map(|(to, _)| to))
        .chain(draft.changes.opens.iter().flat_map(|rule| hosts(&rule.destinations)))
        .collect();
    let mut publics: BTreeSet<IpAddr> =
        translating.translations.iter().flat_map(|dnat_rule| hosts(&dnat_rule.rule.destinations)).collect();
    if let Some(from) = grant.translation {
        led.extend(&grant.destinations);
        publics.insert(from.address);
    }
    let planned: usize = draft.changes.opens.iter().filter(is_new).map(parts).sum();
    let all = translating.translations.len() + translating.filters.len() + planned;
    let grown = all + Some(rule).filter(is_new).map_or(0, parts);
    if led.len() + publics.len() > draft.limits.addresses || (grown > all && grown > draft.limits.rules) {
        let message = format!(
            "the firewall holds {all} rules and leads {} public addresses on to {}: it holds at most {} rules, and {} \
             addresses of both kinds",
            publics.len(),
            led.len(),
            draft.limits.rules,
            draft.limits.addresses
        );
        return Err((Reason::FirewallFull, message));
    }
    Ok(())
}
