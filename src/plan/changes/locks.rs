//! The denies of policies: which are wanted, which stand, and how the one becomes the other without a moment
//! in which something opens.

use std::collections::BTreeMap;

use super::{Draft, Placed, exemptions};
use crate::api::values::PortRange;
use crate::api::{ExistingRules, Reason};
use crate::plan::desired::Lock;
use crate::plan::model::{Access, Peer, Provisioning, Rule, RuleProtocol};
use crate::plan::names::{self, Mark};
use crate::plan::packets::{Cells, Reach, hosts};
use crate::plan::priority::Surroundings;
use crate::plan::sources::Bounds;

mod pairing;

use pairing::{missed, pair, wanted_denies};

/// What the denies cover.
pub(super) struct Shut<'a> {
    /// What each lock wants shut, in the order of their UIDs.
    pub wanted: Vec<(&'a Lock, Cells)>,
    /// What denies of ours that stand keep shut now.
    pub now: Cells,
    /// The same, and what this plan writes.
    pub soon: Cells,
    /// What the denies of policies keep shut that are gone, or have not said yet what they want.
    pub orphaned: Cells,
    /// Of these, what those of the latter do.
    pub unheard: Cells,
    over: Vec<Item<'a>>,
    /// Denies that no lock wants as they are.
    spare: Vec<&'a Rule>,
    /// Allows of this plan that are to be removed: denies under them go later.
    pub leaving: Vec<Cells>,
    /// The exemptions that the locks want, and whose each is.
    pub exempt: Vec<(String, Rule)>,
    /// Allows of ours that are to let nobody in: closed, but not gone yet; nobody's; exemptions that no lock wants;
    /// denies that somebody turned round. What shuts them out stays above them while they stand.
    dead: Vec<Placed<'a>>,
}

/// A deny that a lock wants, and the rule that stands for it.
struct Item<'a> {
    lock: &'a Lock,
    content: Rule,
    standing: Option<&'a Rule>,
    /// Whether the standing rule has the wanted effect.
    exact: bool,
}

impl Item<'_> {
    /// Its deny keeps shut what it should, whatever this plan's writes come to.
    fn holds(&self) -> Option<&Rule> {
        self.standing.filter(|rule| self.exact && rule.provisioning == Provisioning::Succeeded)
    }
}

pub(super) fn plan<'a>(draft: &mut Draft<'a>) -> Shut<'a> {
    let mut locks: Vec<&Lock> = draft.wanted.locks.iter().collect();
    locks.sort_by(|left, right| left.policy_uid.cmp(&right.policy_uid));
    let mut shut = Shut {
        wanted: Vec::new(),
        now: Cells::default(),
        soon: Cells::default(),
        orphaned: Cells::default(),
        unheard: Cells::default(),
        over: Vec::new(),
        spare: Vec::new(),
        leaving: Vec::new(),
        exempt: Vec::new(),
        dead: Vec::new(),
    };
    let mut by_owner: BTreeMap<&str, Vec<(u32, &Rule)>> = BTreeMap::new();
    let own = draft.own.clone();
    for (mark, rule) in &own {
        if let Mark::Deny { owner, number } = mark {
            by_owner.entry(owner).or_default().push((*number, rule));
            shut.now.add_all(&Cells::shut_by(rule));
        }
    }
    by_owner.values_mut().for_each(|rules| rules.sort_by_key(|(number, rule)| (*number, &rule.name)));
    for lock in locks {
        let standing: Vec<&Rule> = by_owner
            .remove(names::uid12(&lock.policy_uid).as_str())
            .unwrap_or_default()
            .into_iter()
            .map(|(_, rule)| rule)
            .collect();
        let contents = wanted_denies(draft, lock, &standing);
        let mut cells = Cells::default();
        contents.iter().for_each(|content| cells.add_all(&Cells::named_by(content)));
        shut.wanted.push((lock, cells));
        pair(draft, lock, contents, standing, &mut shut);
    }
    // Of policies that are gone, or have not said yet what they want.
    for (owner, rules) in by_owner {
        let unheard = draft.wanted.unheard.contains(owner);
        for (_, rule) in rules {
            if unheard {
                shut.unheard.add_all(&Cells::named_by(rule));
            }
            if (unheard || !is_covered(rule, &shut)) && rule.access == Access::Deny {
                shut.orphaned.add_all(&Cells::named_by(rule));
            }
            keep_orphan(draft, owner, rule);
            shut.spare.push(rule);
        }
    }
    shut.exempt = exemptions::wanted(draft, &shut);
    shut.dead = dead(draft, &shut.exempt);
    write(draft, &mut shut);
    shut
}

fn dead<'a>(draft: &Draft<'a>, exempt: &[(String, Rule)]) -> Vec<Placed<'a>> {
    let live = |rule: &Rule| draft.live.iter().any(|placed| placed.rule.name == rule.name);
    let is_dead = |mark: &Mark, rule: &Rule| {
        rule.access == Access::Allow
            && match mark {
                Mark::Allow { .. } => !live(rule),
                Mark::Exempt { .. } => {
                    !exempt.iter().any(|(_, wanted)| exemptions::lies_within(rule, wanted))
                }
                Mark::Deny { .. } => true,
            }
    };
    let dead = draft.own.iter().filter(|(mark, rule)| is_dead(mark, rule));
    dead.map(|(_, rule)| Placed { rule, reach: Reach::of(rule, None) }).collect()
}

/// What decides where a deny of this content may stand.
fn surroundings(draft: &Draft<'_>, lock: &Lock, content: &Rule) -> Surroundings {
    let reach = Reach::of(content, None);
    let exempt = Bounds::of(&lock.exempt, None).surely;
    let passes_anyway = |rule: &Rule| {
        rule.sources.iter().all(|source| match source {
            Peer::Tag(tag) => lock
                .exempt
                .iter()
                .any(|exempt| matches!(exempt, Peer::Tag(exempt) if exempt.eq_ignore_ascii_case(tag))),
            Peer::Net(_) | Peer::Any => {
                let source = Bounds::of(std::slice::from_ref(source), None).maybe;
                !lock.exempt.is_empty() && exempt.contains(&source)
            }
            Peer::Group(_) | Peer::Unknown(_) => false,
        }) && !rule.sources.is_empty()
    };
    let allows = draft.foreign.iter().filter(|placed| {
        placed.rule.access == Access::Allow && placed.reach.meets(&reach) && !passes_anyway(placed.rule)
    });
    let grants = draft.live.iter().filter(|placed| placed.reach.meets(&reach));
    Surroundings {
        allows: allows.map(|placed| placed.rule.priority).collect(),
        last_grant: grants.map(|placed| placed.rule.priority).max(),
        keep: lock.existing == ExistingRules::Keep,
    }
}

/// A deny of a policy that is gone stays a deny, whatever somebody made of it.
fn keep_orphan(draft: &mut Draft<'_>, owner: &str, rule: &Rule) {
    let opened = rule.access == Access::Allow;
    if !opened && rule.provisioning != Provisioning::Failed {
        return;
    }
    let mut mended = Rule { access: Access::Deny, provisioning: Provisioning::Succeeded, ..rule.clone() };
    if opened {
        mended.sources = vec![Peer::Any];
        mended.source_ports = vec![PortRange::ALL];
    }
    debug_assert!(draft.policy_uid(owner).is_none());
    if draft.has_room(&mended, Some(rule), draft.limits) {
        draft.book(&mended, Some(rule));
        draft.changes.locks.push(mended);
    }
}

/// Writes what is not as wanted.
fn write<'a>(draft: &mut Draft<'a>, shut: &mut Shut<'a>) {
    shut.soon = shut.now.clone();
    let mut items = std::mem::take(&mut shut.over);
    // Those that go highest choose first.
    items.sort_by_cached_key(|item| {
        let around = surroundings(draft, item.lock, &item.content);
        (around.allows.first().copied().unwrap_or(u16::MAX), item.lock.policy_uid.clone())
    });
    shut.over = items;
    for index in 0..shut.over.len() {
        let item = &shut.over[index];
        let mut content = item.content.clone();
        let mut standing = item.standing;
        if let Some(old) = standing.filter(|_| !item.exact)
            && !rests_on(old, shut, draft).minus(&Cells::named_by(&content)).is_empty()
        {
            match union(old, &content) {
                Some(both) => content = both,
                // Not in its place then, but beside it; the old one goes when the new one stands.
                None => {
                    shut.spare.push(old);
                    standing = None;
                }
            }
        }
        let lock = item.lock;
        shut.over[index].standing = standing;
        if write_one(draft, shut, lock, &mut content, standing) {
            shut.soon.add_all(&Cells::named_by(&content));
        }
    }
}

/// Places one deny and writes it where it is not as it should be. Whether it stands so, now or after the write.
fn write_one(
    draft: &mut Draft<'_>,
    shut: &Shut<'_>,
    lock: &Lock,
    content: &mut Rule,
    standing: Option<&Rule>,
) -> bool {
    let around = surroundings(draft, lock, content);
    let missed = missed(draft, &around, lock, content, standing);
    let place = around.place(standing.map(|rule| rule.priority), &draft.slots);
    let place = missed.map_or(place, |missed| place.map(|place| place.min(missed.priority)));
    let Some(better) = place else {
        let message = "every priority number of the firewall is taken".to_owned();
        draft.refuse(&lock.policy_uid, None, Reason::NoPriorityRoom, message);
        return false;
    };
    let stays =
        standing.filter(|old| shields(old, better, shut) || is_needed_above(old, better, lock, shut, draft));
    let priority = stays.map_or(better, |old| old.priority);
    let wrong_side = around.cost(priority).wrong_side;
    if wrong_side > 0 && !(around.keep && stays.is_some()) {
        let index = if around.keep { around.allows.len() - 1 } else { 0 };
        let obstacle = draft.foreign.iter().find(|placed| placed.rule.priority == around.allows[index]);
        let name = obstacle.map_or("", |placed| placed.rule.name.as_str());
        let side = if around.keep { "below" } else { "above" };
        let message = format!(
            "no free priority number is left {side} rule {name} at priority {}, which lets traffic in",
            around.allows[index]
        );
        draft.refuse(&lock.policy_uid, None, Reason::NoPriorityRoom, message);
        if around.keep {
            return false;
        }
    }
    content.priority = priority;
    if let Some(old) = standing {
        content.name.clone_from(&old.name);
        let settled = old.provisioning != Provisioning::Failed;
        if old.same_effect(content)
            && old.priority == priority
            && old.description == content.description
            && settled
        {
            return true;
        }
    } else if let Some(missed) = missed {
        content.name.clone_from(&missed.name);
    } else {
        content.name = new_name(draft, |n| names::deny_name(&draft.wanted.cluster, &lock.policy_uid, n));
    }
    if !draft.has_room(content, standing, draft.limits) {
        let message = format!(
            "the firewall holds {} rules and {} addresses of at most {} and {}: no room for a deny of {} addresses",
            draft.rules,
            draft.addresses,
            draft.limits.rules,
            draft.limits.addresses,
            content.destinations.len()
        );
        draft.refuse(&lock.policy_uid, None, Reason::FirewallFull, message);
        return false;
    }
    draft.book(content, standing);
    draft.changes.locks.push(content.clone());
    true
}

/// The first name of a numbered series that no rule has, nor one that is missed.
pub(super) fn new_name(draft: &Draft<'_>, name: impl Fn(u32) -> String) -> String {
    let is_missed =
        |name: &str| draft.wanted.placed.iter().any(|placed| placed.name.eq_ignore_ascii_case(name));
    let is_free = |name: &String| !draft.names.contains(&name.to_ascii_lowercase()) && !is_missed(name);
    (0..).map(name).find(is_free).unwrap_or_default()
}

/// Whether a deny shuts out what is to let nobody in, and at `priority` would no longer do so.
fn shields(deny: &Rule, priority: u16, shut: &Shut<'_>) -> bool {
    let between = |dead: &&Placed<'_>| {
        (deny.priority..priority).contains(&dead.rule.priority) && dead.rule.name != deny.name
    };
    let mut between = shut.dead.iter().filter(between).peekable();
    between.peek().is_some() && {
        let reach = Reach::of(deny, None);
        between.any(|dead| dead.reach.meets(&reach))
    }
}

/// Whether a deny has to stay where it is: other locks want above the rules of others what rests on it there, and
/// at `priority` it would stand below more of them.
fn is_needed_above(old: &Rule, priority: u16, lock: &Lock, shut: &Shut<'_>, draft: &Draft<'_>) -> bool {
    if priority <= old.priority {
        return false;
    }
    let rests = rests_on_above(old, shut, draft);
    shut.wanted.iter().any(|(other, cells)| {
        let worse = || {
            let around = surroundings(draft, other, old);
            around.cost(priority).wrong_side > around.cost(old.priority).wrong_side
        };
        other.policy_uid != lock.policy_uid
            && other.existing == ExistingRules::Override
            && cells.meets(&rests)
            && worse()
    })
}

/// What is wanted shut and rests on this deny alone.
fn rests_on(rule: &Rule, shut: &Shut<'_>, draft: &Draft<'_>) -> Cells {
    let mut rests = rests_on_above(rule, shut, draft);
    rests.add_all(&rests_on_below(rule, shut));
    rests
}

/// What is wanted shut above the rules of others and rests on this deny alone.
fn rests_on_above(rule: &Rule, shut: &Shut<'_>, draft: &Draft<'_>) -> Cells {
    let mut rests = Cells::default();
    for (lock, wanted) in &shut.wanted {
        if lock.existing != ExistingRules::Override {
            continue;
        }
        // By what this lock shuts out, and not by what those of the other deny do: they may exempt more. A deny that
        // keeps existing rules does not hold what another lock wants above them.
        let holds = |item: &Item<'_>, other: &Rule| {
            item.lock.existing == ExistingRules::Override
                && (other.priority < rule.priority
                    || surroundings(draft, lock, other).cost(other.priority).wrong_side == 0)
        };
        rests.add_all(&rests_where(rule, shut, wanted, holds));
    }
    rests
}

/// What is wanted shut below the rules of others and rests on this deny alone.
fn rests_on_below(rule: &Rule, shut: &Shut<'_>) -> Cells {
    let mut wanted = Cells::default();
    for (_, cells) in shut.wanted.iter().filter(|(lock, _)| lock.existing == ExistingRules::Keep) {
        wanted.add_all(cells);
    }
    rests_where(rule, shut, &wanted, |_, _| true)
}

/// What of the cells rests on this deny alone: none of the others that `holds` shuts it too.
fn rests_where(
    rule: &Rule,
    shut: &Shut<'_>,
    wanted: &Cells,
    holds: impl Fn(&Item<'_>, &Rule) -> bool,
) -> Cells {
    if rule.access == Access::Allow || rule.provisioning == Provisioning::Failed {
        return Cells::default();
    }
    let wanted = within(wanted, rule);
    let mut held = Cells::default();
    if wanted.is_empty() {
        return wanted;
    }
    for item in &shut.over {
        let Some(other) = item.holds().filter(|other| other.name != rule.name) else { continue };
        let named = Cells::named_by(other);
        if named.meets(&wanted) && holds(item, other) {
            held.add_all(&named);
        }
    }
    wanted.minus(&held)
}

/// Those of the cells that a rule names, by whatever networks.
fn within(cells: &Cells, rule: &Rule) -> Cells {
    let RuleProtocol::Transport(protocol) = rule.protocol else { return Cells::default() };
    let destinations = Bounds::of(&rule.destinations, None).maybe;
    let mut named = Cells::default();
    for address in cells.addresses().filter(|address| destinations.has(*address)) {
        named.add(address, protocol, &rule.ports);
    }
    named.intersection(cells)
}

/// Both denies in one, where that is a cross product.
fn union(old: &Rule, new: &Rule) -> Option<Rule> {
    if old.protocol != new.protocol {
        return None;
    }
    let (left, right) = (hosts(&old.destinations), hosts(&new.destinations));
    let plain = left.len() == old.destinations.len();
    let ports = PortRange::merged(old.ports.clone());
    if plain && ports == new.ports {
        let destinations = left.union(&right).copied().map(Peer::host).collect();
        return Some(Rule { destinations, ..new.clone() });
    }
    if plain && left == right {
        let ports = PortRange::merged([ports, new.ports.clone()].concat());
        return Some(Rule { ports, ..new.clone() });
    }
    None
}

/// Whether a deny of a policy that is gone is wholly wanted by locks that are here.
fn is_covered(rule: &Rule, shut: &Shut<'_>) -> bool {
    let own = Cells::named_by(rule);
    let mut wanted = Cells::default();
    // A lock below rules of others closes less than one above them.
    let above = shut.wanted.iter().filter(|(lock, _)| lock.existing == ExistingRules::Override);
    above.for_each(|(_, cells)| wanted.add_all(cells));
    !own.is_empty() && hosts(&rule.destinations).len() == rule.destinations.len() && wanted.contains(&own)
}

/// Removes denies that nothing wanted rests on any more. Under an exemption that is leaving, they go after it.
pub(super) fn unlock(draft: &mut Draft<'_>, shut: &Shut<'_>) {
    for rule in &shut.spare {
        let Some(Mark::Deny { owner, .. }) = names::parse_name(&draft.wanted.cluster, &rule.name) else {
            continue;
        };
        let unheard = draft.wanted.unheard.contains(&owner);
        if draft.policy_uid(&owner).is_none() && (unheard || !is_covered(rule, shut)) {
            continue;
        }
        let named = Cells::named_by(rule);
        // Where all of it is to be open, nothing has to be shielded.
        let wanted_shut = shut.wanted.iter().any(|(_, cells)| cells.meets(&named));
        if wanted_shut && shields(rule, u16::MAX, shut) {
            continue;
        }
        if rests_on(rule, shut, draft).is_empty() && !shut.leaving.iter().any(|cells| cells.meets(&named)) {
            draft.changes.unlocks.push(rule.name.clone());
            draft.changes.locks.retain(|mended| mended.name != rule.name);
        }
    }
}
