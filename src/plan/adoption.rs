//! Locks of an id that the cluster had before, under its present one.
//!
//! A rule's name is its identity, so a rule is not renamed: its twin is written, and then it is removed. The twin's place
//! is chosen so that it decides nothing that its original does not decide already: between the two stands no rule of the
//! opposite access that any packet of theirs may meet. So whichever of the steps are made, in order, every packet fares as
//! before.

use super::model::{Access, MAX_PRIORITY, Observed, Provisioning, ResourceLock, Rule};
use super::names::{self, Cluster, Mark};
use super::packets::Reach;
use super::priority::Slots;

/// One step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Write the twin.
    Put(Rule),
    /// Remove the original, once its twin was read back.
    Remove(String),
}

/// A rule that is to be adopted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Adopted {
    /// What it is called.
    pub name: String,
    /// What it is to be called, and how; or why it cannot be done.
    pub outcome: Result<(String, Vec<Step>), &'static str>,
}

/// What to do on a firewall, in this order, and what cannot be done. `most`: the rules that it may hold.
#[must_use]
pub fn plan(observed: &Observed, cluster: &Cluster, most: usize) -> Vec<Adopted> {
    let mut draft = observed.clone();
    let of_previous = |rule: &&Rule| {
        let mark = names::parse_name(cluster, &rule.name);
        matches!(mark, Some(Mark::Deny { .. } | Mark::Exempt { .. }))
            && names::is_of_previous(cluster, &rule.name)
    };
    let mut originals: Vec<Rule> = observed.rules.iter().filter(of_previous).cloned().collect();
    originals.sort_by_key(|rule| (rule.priority, rule.name.clone()));
    let mut plan = Vec::new();
    // What one leaves may be what another needs.
    loop {
        let before = plan.len();
        originals.retain(|original| {
            let Ok(outcome) = adopt(&draft, cluster, original, most) else { return true };
            outcome.1.iter().for_each(|step| apply(&mut draft, step));
            plan.push(Adopted { name: original.name.clone(), outcome: Ok(outcome) });
            false
        });
        if plan.len() == before {
            break;
        }
    }
    for original in originals {
        let outcome = adopt(&draft, cluster, &original, most);
        plan.push(Adopted { name: original.name, outcome });
    }
    plan
}

/// A rule of a lock with the mark of the present id is expected in place of this one, under this name.
fn adopt(
    draft: &Observed,
    cluster: &Cluster,
    original: &Rule,
    most: usize,
) -> Result<(String, Vec<Step>), &'static str> {
    let mark = names::parse_name(cluster, &original.name).ok_or("it is not called as ours")?;
    let meant = if matches!(mark, Mark::Deny { .. }) { Access::Deny } else { Access::Allow };
    if original.access != meant {
        return Err(
            "somebody has turned it around: a controller with this id in previousClusterIds puts it right",
        );
    }
    match draft.lock {
        ResourceLock::None => {}
        ResourceLock::CannotDelete | ResourceLock::ReadOnly => {
            return Err("a resource lock forbids to remove it: take the lock off, and adopt again");
        }
    }
    let remove = Step::Remove(original.name.clone());
    // Written by an earlier attempt.
    if let Some(twin) = twins(draft, cluster, &mark)
        .find(|twin| twin.same_effect(original) && decides_alike(draft, original, twin.priority))
    {
        let is_in_force =
            twin.provisioning == Provisioning::Succeeded && draft.provisioning == Provisioning::Succeeded;
        // Else it is written once more, and read back, before the other one goes.
        let steps = if is_in_force { vec![remove] } else { vec![Step::Put(twin.clone()), remove] };
        return Ok((twin.name.clone(), steps));
    }
    if draft.rule_count() >= most {
        return Err("there is no room for one more rule");
    }
    let slots = Slots::of(draft);
    let above = slots.free().rev().find(|number| *number < original.priority);
    let below = slots.free().find(|number| *number > original.priority);
    let mut near: Vec<u16> = above.into_iter().chain(below).collect();
    near.sort_by_key(|number| number.abs_diff(original.priority));
    let Some(priority) = near.into_iter().find(|number| decides_alike(draft, original, *number)) else {
        return Err("no priority number is free beside it: free one above or below it, and adopt again");
    };
    let name = free_name(draft, cluster, &mark).ok_or("every name for it is taken")?;
    let description = names::under_present_id(cluster, &original.description);
    let twin = Rule { name: name.clone(), priority, description, ..original.clone() };
    Ok((name, vec![Step::Put(twin), remove]))
}

/// Rules of the present id of the same owner and kind.
fn twins<'a>(draft: &'a Observed, cluster: &'a Cluster, mark: &'a Mark) -> impl Iterator<Item = &'a Rule> {
    draft.rules.iter().filter(move |rule| {
        !names::is_of_previous(cluster, &rule.name)
            && match (names::parse_name(cluster, &rule.name), mark) {
                (Some(Mark::Deny { owner, .. }), Mark::Deny { owner: own, .. })
                | (Some(Mark::Exempt { owner, .. }), Mark::Exempt { owner: own, .. }) => owner == *own,
                _ => false,
            }
    })
}

/// Whether a twin of the rule at this number decides no packet otherwise than the rule does where it stands.
fn decides_alike(draft: &Observed, original: &Rule, number: u16) -> bool {
    let reach = Reach::of(original, None);
    let between = original.priority.min(number)..=original.priority.max(number);
    !draft.rules.iter().any(|other| {
        other.access != original.access
            && between.contains(&other.priority)
            && Reach::of(other, None).meets(&reach)
    })
}

fn free_name(draft: &Observed, cluster: &Cluster, mark: &Mark) -> Option<String> {
    let called = |number: u32| match mark {
        Mark::Deny { owner, .. } => names::deny_name(cluster, owner, number),
        Mark::Exempt { owner, .. } | Mark::Allow { owner, .. } => names::exempt_name(cluster, owner, number),
    };
    let (Mark::Deny { number, .. } | Mark::Exempt { number, .. }) = mark else { return None };
    let taken = |name: &String| draft.rules.iter().any(|rule| rule.name.eq_ignore_ascii_case(name));
    // The same number where it is free.
    std::iter::once(*number).chain(0..=u32::from(MAX_PRIORITY)).map(called).find(|name| !taken(name))
}

fn apply(draft: &mut Observed, step: &Step) {
    match step {
        Step::Put(rule) => {
            draft.rules.retain(|other| !other.name.eq_ignore_ascii_case(&rule.name));
            draft.rules.push(rule.clone());
        }
        Step::Remove(name) => draft.rules.retain(|rule| !rule.name.eq_ignore_ascii_case(name)),
    }
}
