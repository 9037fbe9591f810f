//! The states in which the cloud may hold rules, and what comes after: Opening, Active, Closing, the last ones.

use jiff::Timestamp;

use super::proof;
use super::shortening::{is_under_way, not_opened, replace, shorten, shorter, written_ahead_at};
use super::{
    Draft, Finalizer, NEAR_DEADLINE, OPEN_BOUND, Seen, Step, TURN_BOUND, WHOLE_BOUND, World, closes_at,
    is_slow, plus, said, time,
};
use crate::api::{ConditionType, Reason, RuleState, State, find_condition};
use crate::plan::authorize::{GrantPlan, Judgement, PlannedRule};

/// The rules are being written.
pub(super) fn opening(world: &World<'_>, now: Timestamp) -> Step {
    let draft = Draft::new(world, now);
    if let Some((outcome, reason, message)) = end(&draft) {
        return draft.close(outcome, reason, &message);
    }
    let mut draft = match proof::demand(draft) {
        Ok(draft) => draft,
        Err(step) => return *step,
    };
    let replacing = is_under_way(&draft.status);
    let seen = look(&mut draft);
    if let Some((reason, message)) = seen.refused {
        return not_opened(draft, reason, &message);
    }
    if seen.lost {
        return draft.close(
            State::Ended,
            Reason::RuleRemoved,
            "somebody removed or changed a rule of this grant",
        );
    }
    if seen.unsure {
        let why =
            "it is not known whether its rules stood until they were removed, so they are not written again";
        return not_opened(draft, Reason::RuleRemoved, why);
    }
    if !replacing && seen.absent > 0 {
        // By its own gate: after a restart, a write that was begun before it may land too late.
        return not_opened(draft, Reason::OpenTimedOut, "a rule was written too late, and was removed again");
    }
    let opens = !replacing && seen.present == draft.status.rules.len();
    // A gate that heard too late of what is to be opened has refused it long before.
    let turn = if is_slow(&draft.status) { TURN_BOUND + WHOLE_BOUND } else { TURN_BOUND };
    let bound = if replacing { OPEN_BOUND } else { turn };
    let until = plus(written_ahead_at(&draft.status), bound);
    // Before a shortening, which has a bound of its own: what is too late for the old one is too late.
    if !opens && now >= until {
        let why = seen.trying.map(|(_, message)| format!(": {message}")).unwrap_or_default();
        let what = if replacing { "its former rules were not gone" } else { "it could not be opened" };
        let after = if draft.status.shortened.is_some() { "being shortened" } else { "the grant" };
        let message = format!("{what} within {}s of {after}{why}", bound.as_secs());
        return not_opened(draft, Reason::OpenTimedOut, &message);
    }
    if let Some(shorter) = shorter(&draft) {
        // A shortening has a bound of its own, and must not give one to what a gate may have heard of too late.
        if !opens && now >= plus(written_ahead_at(&draft.status), OPEN_BOUND) {
            return draft.close(State::Revoked, Reason::PolicyTightened, &shorter.refused());
        }
        return shorten(draft, shorter);
    }
    if replacing {
        return replace(draft, &seen);
    }
    if opens {
        return opened(draft, seen.shadowed);
    }
    if let Some((reason, message)) = seen.trying {
        draft.set(ConditionType::Active, false, reason, &message);
    }
    draft.stay(Some(until))
}

/// Every allow was read back.
pub(super) fn active(world: &World<'_>, now: Timestamp) -> Step {
    let mut draft = Draft::new(world, now);
    if let Some((outcome, reason, message)) = end(&draft) {
        return draft.close(outcome, reason, &message);
    }
    let seen = look(&mut draft);
    let closes = closes_at(world.request);
    // Seen as gone while it should be there: closed by its own gate or by somebody.
    if seen.lost || seen.absent > 0 {
        return if plus(now, NEAR_DEADLINE) >= closes {
            draft.close(State::Expired, Reason::Expired, "a rule was gone just before the deadline")
        } else {
            let message = "somebody removed or changed a rule of this grant; ask again if it was a mistake";
            draft.close(State::Ended, Reason::RuleRemoved, message)
        };
    }
    if let Some(until) = shorter(&draft) {
        return shorten(draft, until);
    }
    judge_shadow(&mut draft, seen.shadowed);
    draft.stay(Some(closes))
}

/// The rules are being removed.
pub(super) fn closing(world: &World<'_>, now: Timestamp) -> Step {
    let mut draft = Draft::new(world, now);
    let seen = look(&mut draft);
    let (why, reason) = why(&draft);
    if seen.absent < draft.status.rules.len() {
        if let Some((_, message)) = seen.trying {
            draft.set(ConditionType::Active, false, reason, &format!("{why}{NOT_YET}{message}"));
        }
        return draft.stay(None);
    }
    let outcome = draft
        .status
        .outcome
        .as_deref()
        .and_then(State::parse)
        .filter(|state| state.is_last())
        .unwrap_or(State::Failed);
    let closed = draft.status.rules.iter().filter_map(|rule| rule.observed_at.as_ref()).map(|at| at.0).max();
    let closed = closed.unwrap_or(now);
    draft.status.closed_at = Some(time(closed));
    let at = super::whole_second(closed);
    let message = format!("{why}; closed: every rule was read back as gone at {at}");
    let done = matches!(outcome, State::Expired | State::Ended | State::Revoked);
    draft.set(ConditionType::Active, false, reason, &message);
    draft.set(ConditionType::Succeeded, done, if done { Reason::Closed } else { reason }, &message);
    draft.go(outcome, reason, &message)
}

/// What parts the reason of an end from what keeps it from being done.
const NOT_YET: &str = "; not closed yet: ";

/// Why the grant ended: it stands in the condition from then on, whatever else is to be said.
fn why(draft: &Draft<'_>) -> (String, Reason) {
    let active = find_condition(&draft.status.conditions, ConditionType::Active);
    let message = active.map_or("", |condition| condition.message.as_str());
    let why = message.split(NOT_YET).next().unwrap_or_default();
    let reason = active.and_then(|condition| Reason::parse(&condition.reason)).unwrap_or(Reason::Closed);
    (why.to_owned(), reason)
}

/// Nothing is left to do but to let go.
pub(super) fn last(world: &World<'_>) -> Step {
    let mut draft = Draft::new(world, Timestamp::UNIX_EPOCH);
    if draft.has_finalizer() {
        let mut step = draft.stay(None);
        step.finalizer = Finalizer::Remove;
        return step;
    }
    draft.status.settled = true;
    draft.stay(None)
}

/// What the gates have seen, in sum; written into the rules of the status on the way.
#[derive(Default)]
pub(super) struct Sum {
    present: usize,
    pub(super) absent: usize,
    lost: bool,
    /// A rule that was to be replaced is gone, and it is not known whether it stood until it was removed.
    unsure: bool,
    shadowed: Option<String>,
    refused: Option<(Reason, String)>,
    pub(super) trying: Option<(Reason, String)>,
}

fn look(draft: &mut Draft<'_>) -> Sum {
    let mut sum = Sum::default();
    let world = draft.world;
    let closing = super::state(world.request) == State::Closing;
    let replacing = !closing && is_under_way(&draft.status);
    for rule in &mut draft.status.rules {
        // What is called as nothing of this request, or names no firewall, was written by nobody of ours, and no gate
        // looks for it: it would be closing for ever. A rule that stands by that name is its own request's, or nobody's.
        if closing && super::its_own(rule, world.request).is_none() {
            rule.state = RuleState::Absent.as_str().to_owned();
        }
        let known = RuleState::parse(&rule.state);
        if known == RuleState::Absent {
            sum.absent += 1;
            continue;
        }
        match (world.seen)(rule) {
            Seen::Nothing => {
                if known == RuleState::Present {
                    sum.present += 1;
                }
            }
            // From before its removal was asked for.
            Seen::Present { .. } | Seen::Lost { .. } | Seen::Refused { .. } if replacing => {}
            Seen::Present { at, priority, shadowed_by } => {
                rule.priority = Some(i32::from(priority));
                if !closing {
                    // The moment of the first read-back: a status that changed with every read would never rest.
                    if known != RuleState::Present {
                        rule.observed_at = Some(time(at));
                    }
                    rule.state = RuleState::Present.as_str().to_owned();
                    sum.present += 1;
                    sum.shadowed = sum.shadowed.take().or(shadowed_by);
                }
            }
            Seen::Absent { at, by_us } => {
                rule.state = RuleState::Absent.as_str().to_owned();
                rule.observed_at = Some(time(at));
                sum.absent += 1;
                sum.unsure |= replacing && !by_us;
            }
            Seen::Lost { at } => {
                rule.observed_at = Some(time(at));
                sum.lost = true;
            }
            Seen::Refused { reason, message } => sum.refused = Some((reason, message)),
            Seen::Trying { reason, message } => sum.trying = Some((reason, message)),
        }
    }
    sum.shadowed = sum.shadowed.take().or_else(|| world.stopped_by.clone());
    sum
}

fn opened(mut draft: Draft<'_>, shadowed: Option<String>) -> Step {
    let message = open_until(&draft);
    let closes = closes_at(draft.world.request);
    judge_shadow(&mut draft, shadowed);
    let mut step = draft.go(State::Active, Reason::Open, &message);
    step.look_again = Some(closes);
    step
}

/// A grant whose packets somebody else's rule stops says so, and stays: its rules are there to be closed.
fn judge_shadow(draft: &mut Draft<'_>, shadowed: Option<String>) {
    match shadowed {
        Some(by) => {
            let message = format!("the rules are in place, but {by} stops the packets");
            draft.set(ConditionType::Active, false, Reason::GrantShadowed, &message);
        }
        None => {
            let message = open_until(draft);
            draft.set(ConditionType::Active, true, Reason::Open, &message);
        }
    }
}

fn open_until(draft: &Draft<'_>) -> String {
    let expires = draft.status.expires_at.as_ref().map(|at| at.0.to_string()).unwrap_or_default();
    let shortened = draft.status.shortened.as_ref().map(|shortened| format!("; {}", shortened.message));
    format!("open until {expires}; every rule was read back{}", shortened.unwrap_or_default())
}

/// What ends a grant, the most certain first.
fn end(draft: &Draft<'_>) -> Option<(State, Reason, String)> {
    let expires = draft.status.expires_at.as_ref().map_or(Timestamp::MIN, |at| at.0);
    if draft.now >= expires {
        return Some((State::Expired, Reason::Expired, format!("the grant ended at {expires}")));
    }
    if draft.now >= closes_at(draft.world.request) {
        let message = format!("the grant ends at {expires}, and its rules take minutes to remove");
        return Some((State::Expired, Reason::Expired, message));
    }
    if draft.deleted() {
        return Some((State::Ended, Reason::Withdrawn, "the request was deleted".to_owned()));
    }
    let tally = draft.world.tally;
    if let Some(word) = &tally.against {
        return Some((State::Revoked, Reason::ReviewRevoked, said(word, "revoked it")));
    }
    if let Some(word) = &tally.ended {
        return Some((State::Ended, Reason::Withdrawn, said(word, "ended it")));
    }
    match draft.world.judgement {
        Judgement::Unknown(..) => None,
        Judgement::Allowed(plan) => changed(draft, plan)
            .map(|message| (State::Revoked, Reason::MachineChanged, message))
            .or_else(|| proof::altered(draft, plan).map(|what| (State::Revoked, Reason::PlanChanged, what))),
        Judgement::Refused(_, message) => Some((
            State::Revoked,
            Reason::PolicyTightened,
            format!("the policy no longer allows it: {message}"),
        )),
        Judgement::Impossible(reason, message) => {
            let reason = match reason {
                Reason::CloudUnavailable => Reason::CloudUnavailable,
                _ => Reason::MachineChanged,
            };
            Some((State::Revoked, reason, message.clone()))
        }
        Judgement::Held(reason, message) => {
            let reason = match reason {
                Reason::PolicyNotFound | Reason::PolicyDeleted => Reason::PolicyDeleted,
                Reason::Suspended => Reason::Suspended,
                _ => Reason::PolicyTightened,
            };
            Some((State::Revoked, reason, message.clone()))
        }
    }
}

/// How the machines or the way to them differ from what was granted.
fn changed(draft: &Draft<'_>, plan: &GrantPlan) -> Option<String> {
    let same = |a: &str, b: &str| a.eq_ignore_ascii_case(b);
    for pinned in &draft.status.machines {
        let Some(machine) = plan.machines.iter().find(|machine| same(&machine.id, &pinned.id)) else {
            return Some(format!("{} is no longer among the machines of the policy", pinned.id));
        };
        if !same(&machine.vm_id, &pinned.vm_id) {
            return Some(format!("{} was made anew: it is another machine now", pinned.id));
        }
        if machine.addresses != pinned.addresses {
            return Some(format!(
                "{} had the addresses {} at the grant and has {} now",
                pinned.id,
                pinned.addresses.join(", "),
                machine.addresses.join(", ")
            ));
        }
        if machine.nics.len() != pinned.nics.len()
            || !machine.nics.iter().zip(&pinned.nics).all(|(a, b)| same(a, b))
        {
            return Some(format!("{} has other network interfaces than at the grant", pinned.id));
        }
    }
    let mut standing: Vec<String> =
        draft.status.rules.iter().map(|rule| rule.firewall.to_ascii_lowercase()).collect();
    // A plan over all of a scope may by now have machines that this grant never had.
    let pinned: Vec<&String> = draft.status.machines.iter().flat_map(|machine| &machine.addresses).collect();
    let ours = |rule: &&PlannedRule| rule.destinations.iter().any(|ip| pinned.contains(&&ip.to_string()));
    let mut needed: Vec<String> =
        plan.rules.iter().filter(ours).map(|rule| rule.firewall.0.key().to_owned()).collect();
    standing.sort();
    standing.dedup();
    needed.sort();
    needed.dedup();
    (standing != needed).then(|| "other firewalls filter the traffic than at the grant".to_owned())
}
