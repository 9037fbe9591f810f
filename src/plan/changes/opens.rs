//! Which allows are to be written, and why some cannot be.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::closes::{Shown, shown};
use super::{Draft, Placed, dnat, grant_rule, is_live};
use crate::api::Reason;
use crate::plan::desired::{Duty, Grant, Limits};
use crate::plan::model::{Access, ResourceLock, Rule};
use crate::plan::names::{self, Mark};
use crate::plan::packets::Reach;
use crate::plan::sources::Family;

pub(super) fn plan(draft: &mut Draft<'_>) {
    let mut grants: Vec<(Timestamp, &Grant)> = draft
        .wanted
        .grants
        .iter()
        .filter_map(|grant| match grant.duty {
            Duty::Open { until, .. } => Some((until, grant)),
            Duty::Hold | Duty::Close { .. } => None,
        })
        .collect();
    // Who was granted first is served first: with a queue that is always filled anew nobody else would be sure to be.
    grants.sort_by(|left, right| (left.0, &left.1.name).cmp(&(right.0, &right.1.name)));
    for (_, grant) in grants {
        let ours = matches!(names::parse_name(&draft.wanted.cluster, &grant.name), Some(Mark::Allow { .. }));
        if !ours || !is_live(grant, draft.now) {
            continue;
        }
        let shown = shown(draft, grant);
        let refusal = if !grant.may_be_opened(draft.now, draft.observed.firewall.kind()) {
            (shown == Shown::Absent)
                .then(|| (Reason::OpenTimedOut, "it is too late to open the rule".to_owned()))
        } else {
            match shown {
                Shown::AsGranted => None,
                Shown::Deny | Shown::Other => {
                    let message = format!("another rule uses the name {}", grant.name);
                    Some((Reason::RuleRemoved, message))
                }
                Shown::Absent | Shown::Failed => match draft.translating {
                    Some(translating) => dnat::open(draft, translating, grant).err(),
                    None => open(draft, grant).err(),
                },
            }
        };
        if let Some((reason, message)) = refusal {
            draft.refuse(&grant.request_uid, Some(&grant.name), reason, message);
        }
    }
}

fn open(draft: &mut Draft<'_>, grant: &Grant) -> Result<(), (Reason, String)> {
    let standing = draft.observed.rule(&grant.name);
    if draft.is_closing(&grant.name) {
        return Err((Reason::RuleRemoved, format!("rule {} is being removed", grant.name)));
    }
    let mut rule = grant_rule(&draft.wanted.cluster, grant, 0);
    one_cross_product(grant)?;
    if draft.observed.lock == ResourceLock::ReadOnly {
        let message = "a ReadOnly lock on the firewall would forbid the rule's removal".to_owned();
        return Err((Reason::ScopeLocked, message));
    }
    let reach = Reach::of(&rule, None);
    let denies = draft.foreign_denies(&reach);
    if let Some(deny) = denies.iter().find(|deny| deny.priority < draft.wanted.honour_denies_below) {
        return Err((
            Reason::ForeignDeny,
            format!(
                "rule {} at priority {} denies the packets, and denies below {} are honoured",
                deny.name, deny.priority, draft.wanted.honour_denies_below
            ),
        ));
    }
    let ground = denies.first().map(|deny| deny.priority);
    let bound = draft.first_deny(&reach).into_iter().chain(ground).min().unwrap_or(u16::MAX);
    rule.priority = match stays(standing, bound) {
        Some(priority) => priority,
        None => match draft.slots.lowest_below(bound) {
            Some(priority) => priority,
            // Planned anew once that was read back.
            None if makes_room(draft, &reach) => return Ok(()),
            None => return Err(no_room(draft, bound, &reach)),
        },
    };
    few_enough(draft, standing)?;
    // The rest of the firewall is reserved for locks.
    let share = Limits { rules: draft.limits.rules * 9 / 10, addresses: draft.limits.addresses * 7 / 8 };
    if !draft.has_room(&rule, standing, share) {
        let message = format!(
            "the firewall holds {} rules and {} addresses: grants may fill it to {} and {}",
            draft.rules, draft.addresses, share.rules, share.addresses
        );
        return Err((Reason::FirewallFull, message));
    }
    draft.book(&rule, standing);
    draft.changes.opens.push(rule);
    Ok(())
}

/// Where a rule stands, if that is above `bound`.
fn stays(standing: Option<&Rule>, bound: u16) -> Option<u16> {
    standing.map(|standing| standing.priority).filter(|priority| *priority < bound)
}

/// Whether denies of this plan leave room above them where those that they replace do not.
fn makes_room(draft: &Draft<'_>, reach: &Reach) -> bool {
    let rewritten = |rule: &Rule| draft.changes.locks.iter().any(|new| new.name == rule.name);
    let standing = draft.own.iter().map(|(_, rule)| *rule).filter(|rule| !rewritten(rule));
    let denies = standing.chain(&draft.changes.locks).filter(|rule| rule.access == Access::Deny);
    let ours = denies.filter(|rule| Reach::of(rule, None).meets(reach)).map(|rule| rule.priority);
    let others = draft.foreign_denies(reach).into_iter().map(|deny| deny.priority);
    let bound = ours.chain(others).min().unwrap_or(u16::MAX);
    draft.slots.lowest_below(bound).is_some()
}

/// Whether one more allow may stand, or one in place of another.
pub(super) fn few_enough(draft: &Draft<'_>, standing: Option<&Rule>) -> Result<(), (Reason, String)> {
    let allows = draft
        .own
        .iter()
        .filter(|(mark, rule)| matches!(mark, Mark::Allow { .. }) && rule.access == Access::Allow);
    let allows = allows.count() + draft.changes.opens.len();
    if standing.is_none() && allows >= draft.wanted.max_allows {
        let message = format!("{allows} rules of grants stand on the firewall: as many as may");
        return Err((Reason::LimitReached, message));
    }
    Ok(())
}

/// An empty list could be written as everything, and clouds refuse mixed families.
pub(super) fn one_cross_product(grant: &Grant) -> Result<(), (Reason, String)> {
    let sources = grant.sources.iter().map(Family::of_net);
    let mut families = sources.chain(grant.destinations.iter().copied().map(Family::of));
    let first = families.next();
    let mixed = families.any(|family| Some(family) != first);
    if mixed || grant.sources.is_empty() || grant.destinations.is_empty() || grant.ports.is_empty() {
        let message = "a rule needs sources and destinations of one address family, and ports".to_owned();
        return Err((Reason::InvalidSpec, message));
    }
    Ok(())
}

fn no_room(draft: &Draft<'_>, bound: u16, reach: &Reach) -> (Reason, String) {
    let in_the_way = |rule: &&Rule| rule.priority == bound;
    let standing = draft.observed.rules.iter().find(in_the_way);
    let name = standing.map_or("a deny of ours", |rule| &rule.name);
    let mut message = format!("no free priority number is left above rule {name} at priority {bound}");
    let ours = standing.is_none_or(|rule| names::parse(&draft.wanted.cluster, rule).is_some());
    // What pushed the deny up need not be of the packets of this grant.
    let reach = standing.map_or_else(|| reach.clone(), |deny| Reach::of(deny, None));
    let held_up = draft.foreign.iter().find(|placed| {
        placed.rule.priority > bound && placed.rule.access == Access::Allow && placed.reach.meets(&reach)
    });
    if let (true, Some(Placed { rule, .. })) = (ours, held_up) {
        message.push_str(", which has to stand above rule ");
        let _ = write!(message, "{} at priority {}: give that a higher number", rule.name, rule.priority);
    }
    (Reason::NoPriorityRoom, message)
}
