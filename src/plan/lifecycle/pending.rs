//! The states before a grant: Pending, Approved, Scheduled.

use jiff::Timestamp;

use super::{Draft, Finalizer, SHORTEST_GRANT, Step, World, planned, plus, time, whole_second};
use crate::api::values::Span;
use crate::api::{ConditionType, Reason, RuleState, State, find_condition};
use crate::plan::authorize::{GrantPlan, Judgement};
use crate::plan::names::allow_name;
use crate::plan::terms::Ask;

/// Waits for its policy, for its terms to be judged, for approvals.
pub(super) fn pending(world: &World<'_>, now: Timestamp) -> Step {
    let draft = Draft::new(world, now);
    let draft = match withdrawn(draft) {
        Ok(draft) => draft,
        Err(step) => return *step,
    };
    let timeout = match world.judgement {
        Judgement::Allowed(plan) => plan.pending_timeout,
        _ => super::PENDING_TIMEOUT,
    };
    let give_up = plus(draft.created(), timeout);
    if now >= give_up {
        let message =
            format!("waited {} and was not granted (spec.approval.pendingTimeout)", Span::of(timeout));
        return draft.end_unopened(State::TimedOut, Reason::TooLate, &message);
    }
    match world.judgement {
        Judgement::Refused(reason, message) => draft.end_unopened(State::Denied, *reason, message),
        Judgement::Impossible(reason, message) => draft.end_unopened(State::Failed, *reason, message),
        Judgement::Held(reason, message) | Judgement::Unknown(reason, message) => {
            wait(draft, *reason, message, Some(give_up))
        }
        Judgement::Allowed(plan) if plan.required > 0 => {
            let mut draft = draft;
            show(&mut draft, plan);
            let message = format!(
                "{} approvals are asked for, and this version counts none: nothing is granted under this policy",
                plan.required
            );
            wait(draft, Reason::ApprovalNotSupported, &message, Some(give_up))
        }
        Judgement::Allowed(plan) => {
            let mut draft = draft;
            show(&mut draft, plan);
            let message = "the policy asks for no approval";
            draft.set(ConditionType::Approved, true, Reason::AutomaticApproval, message);
            draft.set(ConditionType::Active, false, Reason::NotOpened, "approved, not opened yet");
            draft.go(State::Approved, Reason::AutomaticApproval, message)
        }
    }
}

/// Waits for its turn, then is written ahead.
pub(super) fn approved(world: &World<'_>, now: Timestamp) -> Step {
    let draft = Draft::new(world, now);
    let draft = match withdrawn(draft) {
        Ok(draft) => draft,
        Err(step) => return *step,
    };
    let plan = match world.judgement {
        Judgement::Allowed(plan) => plan,
        Judgement::Refused(reason, message) => return draft.end_unopened(State::Denied, *reason, message),
        Judgement::Impossible(reason, message) => return draft.end_unopened(State::Failed, *reason, message),
        Judgement::Held(reason, message) | Judgement::Unknown(reason, message) => {
            return back(draft, *reason, message);
        }
    };
    if plan.required > 0 || draft.status.plan_hash.as_ref() != Some(&plan.hash) {
        return back(draft, Reason::Progressing, "the plan changed since it was approved");
    }
    let ask = Ask::parse(&world.request.spec).ok();
    let start = ask.as_ref().and_then(|ask| ask.not_before).filter(|start| *start > now);
    if let Some(start) = start {
        let mut draft = draft;
        let message = format!("opens at {start} (spec.notBefore)");
        draft.set(ConditionType::Active, false, Reason::Scheduled, &message);
        let mut step = draft.go(State::Scheduled, Reason::Scheduled, &message);
        step.look_again = Some(start);
        return step;
    }
    let usable_from = find_condition(&draft.status.conditions, ConditionType::Approved)
        .map_or(now, |condition| condition.last_transition_time.0)
        .max(ask.as_ref().and_then(|ask| ask.not_before).unwrap_or(Timestamp::MIN));
    let unused = plus(usable_from, plan.use_within);
    if now >= unused {
        let message =
            format!("the approval lay unused for {} (spec.approval.useWithin)", Span::of(plan.use_within));
        return draft.end_unopened(State::TimedOut, Reason::TooLate, &message);
    }
    if let Some(why) = &world.no_room {
        let mut draft = draft;
        draft.set(ConditionType::Active, false, Reason::LimitReached, why);
        return draft.stay(Some(unused));
    }
    if !draft.has_finalizer() {
        // Nothing is opened that nobody would have to close.
        let mut step = draft.stay(Some(now));
        step.finalizer = Finalizer::Add;
        return step;
    }
    write_ahead(draft, plan)
}

/// Waits for its start, then is judged again.
pub(super) fn scheduled(world: &World<'_>, now: Timestamp) -> Step {
    let draft = Draft::new(world, now);
    let draft = match withdrawn(draft) {
        Ok(draft) => draft,
        Err(step) => return *step,
    };
    let start = Ask::parse(&world.request.spec).ok().and_then(|ask| ask.not_before);
    match (world.judgement, start) {
        (Judgement::Refused(reason, message), _) => draft.end_unopened(State::Denied, *reason, message),
        (Judgement::Impossible(reason, message), _) => draft.end_unopened(State::Failed, *reason, message),
        (_, Some(start)) if start > now => draft.stay(Some(start)),
        _ => draft.go(State::Approved, Reason::Progressing, "the start has come; judged again"),
    }
}

/// What ends every state before a grant.
fn withdrawn(draft: Draft<'_>) -> Result<Draft<'_>, Box<Step>> {
    if draft.deleted() {
        let message = "the request was deleted before it was granted";
        return Err(Box::new(draft.end_unopened(State::Ended, Reason::Withdrawn, message)));
    }
    match draft.not_after() {
        Some(end) if plus(draft.now, SHORTEST_GRANT) > end => {
            let message = format!("less than 30s are left until spec.notAfter, {end}");
            Err(Box::new(draft.end_unopened(State::TimedOut, Reason::TooLate, &message)))
        }
        _ => Ok(draft),
    }
}

fn wait(mut draft: Draft<'_>, reason: Reason, message: &str, look_again: Option<Timestamp>) -> Step {
    draft.set(ConditionType::Approved, false, reason, message);
    draft.set(ConditionType::Active, false, reason, message);
    draft.stay(look_again)
}

fn back(mut draft: Draft<'_>, reason: Reason, message: &str) -> Step {
    draft.set(ConditionType::Approved, false, reason, message);
    draft.set(ConditionType::Active, false, reason, message);
    draft.go(State::Pending, reason, message)
}

/// Shows what would be written, before anybody approves.
fn show(draft: &mut Draft<'_>, plan: &GrantPlan) {
    draft.status.plan_hash = Some(plan.hash.clone());
    draft.status.policies.clone_from(&plan.policies);
    draft.status.machines.clone_from(&plan.machines);
    draft.status.connections.clone_from(&plan.connections);
    draft.status.rules = planned(plan);
}

/// Everything that a restart needs to go on or to close is in status before the first cloud write.
fn write_ahead(mut draft: Draft<'_>, plan: &GrantPlan) -> Step {
    let granted = whole_second(draft.now);
    let mut deadline = plus(granted, plan.duration);
    if let Some(end) = draft.not_after() {
        deadline = deadline.min(whole_second(end));
    }
    show(&mut draft, plan);
    let uid = draft.world.request.metadata.uid.clone().unwrap_or_default();
    for (number, rule) in (0..).zip(&mut draft.status.rules) {
        rule.name = allow_name(draft.world.cluster, &uid, deadline, number);
        rule.state = RuleState::Opening.as_str().to_owned();
    }
    draft.status.granted_at = Some(time(granted));
    draft.status.expires_at = Some(time(deadline));
    let message = format!("granted until {deadline}; the rules are being written");
    draft.set(ConditionType::Active, false, Reason::Opening, &message);
    draft.go(State::Opening, Reason::Opening, &message)
}
