//! The states before a grant: Pending, Approved, Scheduled.

use std::time::Duration;

use jiff::Timestamp;

use super::approval::{count, waiting};
use super::{
    ASK_AGAIN, Draft, Finalizer, SHORTEST_GRANT, Step, World, minus, planned, plus, said, time, whole_second,
};
use crate::api::values::Span;
use crate::api::{ConditionType, Reason, RuleState, State, Verdict};
use crate::plan::admission::Admission;
use crate::plan::authorize::{GrantPlan, Judgement};
use crate::plan::names::allow_name;
use crate::plan::reviews::waiting_since;
use crate::plan::terms::Ask;

/// Waits for its policy, for its terms to be judged, for approvals.
pub(super) fn pending(world: &World<'_>, now: Timestamp) -> Step {
    let mut draft = match over(Draft::new(world, now)) {
        Ok(draft) => draft,
        Err(step) => return *step,
    };
    let since = waiting_since(world.request, now);
    let timeout = match world.judgement {
        Judgement::Allowed(plan) => plan.pending_timeout,
        Judgement::Refused(..) | Judgement::Impossible(..) | Judgement::Held(..) => world.patience.pending,
        // After a start, and after every change of a policy, the machines are read first. Approvals that came in time
        // are counted then, and what has waited too long ends then.
        Judgement::Unknown(..) => Duration::MAX,
    };
    let give_up = plus(since, timeout);
    if let Judgement::Allowed(plan) = world.judgement {
        show(&mut draft, plan);
        count(&mut draft.status, world.tally);
        let admitted = matches!(world.admission, Admission::InForce { .. });
        // Approvals that came in time count also where they are noticed late.
        let in_time = world.tally.reached_at().is_some() || now < give_up;
        if admitted && in_time && world.tally.doubt.is_none() && world.tally.is_reached() {
            return approve(draft);
        }
    }
    if now >= give_up {
        let message =
            format!("waited {} and was not granted (spec.approval.pendingTimeout)", Span::of(timeout));
        return draft.end_unopened(State::TimedOut, Reason::TooLate, &message);
    }
    match world.judgement {
        Judgement::Refused(reason, message) => draft.end_unopened(State::Denied, *reason, message),
        Judgement::Impossible(reason, message) => draft.end_unopened(State::Failed, *reason, message),
        Judgement::Held(reason, message) | Judgement::Unknown(reason, message) => {
            wait(draft, *reason, message, give_up)
        }
        Judgement::Allowed(_) => {
            if let Admission::NotInForce { why } = world.admission {
                return wait(draft, Reason::AdmissionNotEnforced, why, give_up);
            }
            let message = waiting(world);
            let asks = world.tally.doubt.is_some() || world.tally.open_question().is_some();
            let again = if asks { plus(now, ASK_AGAIN).min(give_up) } else { give_up };
            wait(draft, Reason::WaitingForApproval, &message, again)
        }
    }
}

fn approve(mut draft: Draft<'_>) -> Step {
    let at = draft.world.tally.reached_at();
    let (reason, message) = match at {
        Some(_) => (Reason::QuorumReached, super::approval::approved(draft.world.tally)),
        None => (Reason::AutomaticApproval, "the policy asks for no approval".to_owned()),
    };
    draft.status.approved_at = Some(time(at.unwrap_or(draft.now)));
    draft.set(ConditionType::Approved, true, reason, &message);
    draft.set(ConditionType::Active, false, Reason::NotOpened, "approved, not opened yet");
    draft.go(State::Approved, reason, &message)
}

/// Waits for its turn, then is written ahead.
pub(super) fn approved(world: &World<'_>, now: Timestamp) -> Step {
    let draft = match over(Draft::new(world, now)) {
        Ok(draft) => draft,
        Err(step) => return *step,
    };
    let ask = Ask::parse(&world.request.spec).ok();
    let start = ask.as_ref().and_then(|ask| ask.not_before);
    // From the last approval that was needed, by the reviews as they count now.
    let approved_at = draft.status.approved_at.as_ref().map(|at| at.0);
    let approved_at = world.tally.reached_at().or(approved_at).unwrap_or(now);
    let usable_from = approved_at.max(start.unwrap_or(Timestamp::MIN));
    let plan = match world.judgement {
        Judgement::Allowed(plan) => plan,
        Judgement::Refused(reason, message) => return draft.end_unopened(State::Denied, *reason, message),
        Judgement::Impossible(reason, message) => return draft.end_unopened(State::Failed, *reason, message),
        Judgement::Held(reason, message) => return back(draft, *reason, message),
        Judgement::Unknown(reason, message) => {
            let unused = plus(usable_from, world.patience.unused);
            return if now >= unused {
                unused_for(draft, world.patience.unused)
            } else {
                hold(draft, *reason, message, unused)
            };
        }
    };
    if let Some(what) = super::approval::changed(&draft.status, plan) {
        return back(draft, Reason::PlanChanged, &what);
    }
    let mut draft = draft;
    show(&mut draft, plan);
    count(&mut draft.status, world.tally);
    draft.status.approved_at = Some(time(approved_at));
    let unused = plus(usable_from, plan.use_within);
    if now >= unused {
        return unused_for(draft, plan.use_within);
    }
    let again = plus(now, ASK_AGAIN).min(unused);
    if let Some(why) = &world.tally.doubt {
        return hold(draft, Reason::WaitingForApproval, why, again);
    }
    if !world.tally.is_reached() && matches!(world.admission, Admission::InForce { .. }) {
        if let Some(why) = world.tally.open_question() {
            return hold(draft, Reason::WaitingForApproval, why, again);
        }
        return back(draft, Reason::WaitingForApproval, &waiting(world));
    }
    if let Some(start) = start.filter(|start| *start > now) {
        let message = format!("opens at {start} (spec.notBefore)");
        draft.set(ConditionType::Active, false, Reason::Scheduled, &message);
        let mut step = draft.go(State::Scheduled, Reason::Scheduled, &message);
        step.look_again = Some(start);
        return step;
    }
    if let Admission::NotInForce { why } = world.admission {
        return hold(draft, Reason::AdmissionNotEnforced, why, unused);
    }
    if let Some((reason, why)) = &world.no_room {
        return hold(draft, *reason, why, unused);
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
    let draft = match over(Draft::new(world, now)) {
        Ok(draft) => draft,
        Err(step) => return *step,
    };
    let start = Ask::parse(&world.request.spec).ok().and_then(|ask| ask.not_before);
    // Said at once, so that there is time to approve what it is now.
    match world.judgement {
        Judgement::Refused(reason, message) => return draft.end_unopened(State::Denied, *reason, message),
        Judgement::Impossible(reason, message) => return draft.end_unopened(State::Failed, *reason, message),
        Judgement::Allowed(plan) => {
            if let Some(what) = super::approval::changed(&draft.status, plan) {
                return back(draft, Reason::PlanChanged, &what);
            }
            if is_short_of_approvals(world) {
                return back(draft, Reason::WaitingForApproval, &waiting(world));
            }
        }
        Judgement::Held(..) | Judgement::Unknown(..) => {}
    }
    match start {
        Some(start) if start > now => draft.stay(Some(start)),
        _ => draft.go(State::Approved, Reason::Progressing, "the start has come; judged again"),
    }
}

/// Whether it is known that approvals are lacking.
fn is_short_of_approvals(world: &World<'_>) -> bool {
    let tally = world.tally;
    !tally.is_reached()
        && tally.doubt.is_none()
        && tally.open_question().is_none()
        && matches!(world.admission, Admission::InForce { .. })
}

/// What ends every state before a grant.
fn over(draft: Draft<'_>) -> Result<Draft<'_>, Box<Step>> {
    let end =
        |draft: Draft<'_>, to, reason, message: &str| Err(Box::new(draft.end_unopened(to, reason, message)));
    let tally = draft.world.tally;
    if draft.deleted() {
        return end(draft, State::Ended, Reason::Withdrawn, "the request was deleted before it was granted");
    }
    if let Some(word) = &tally.against {
        let what = if word.verdict == Verdict::Revoked { "revoked it" } else { "denied it" };
        return end(draft, State::Denied, Reason::ReviewDenied, &said(word, what));
    }
    if let Some(word) = &tally.ended {
        return end(draft, State::Ended, Reason::Withdrawn, &said(word, "ended it"));
    }
    if let Some(not_after) = draft.not_after().filter(|at| plus(draft.now, SHORTEST_GRANT) > *at) {
        let message = format!("less than 30s are left until spec.notAfter, {not_after}");
        return end(draft, State::TimedOut, Reason::TooLate, &message);
    }
    let created = draft.world.request.metadata.creation_timestamp.as_ref().map(|at| at.0);
    match draft.world.admission {
        Admission::InForce { since } if !draft.world.admission.vouches_for(created) => {
            let message = format!(
                "not provably created while the admission policies were in force (since {since}): create the request again"
            );
            end(draft, State::Void, Reason::NotTrusted, &message)
        }
        Admission::InForce { .. } | Admission::NotInForce { .. } => Ok(draft),
    }
}

fn unused_for(draft: Draft<'_>, within: Duration) -> Step {
    let message = format!("the approval lay unused for {} (spec.approval.useWithin)", Span::of(within));
    draft.end_unopened(State::TimedOut, Reason::TooLate, &message)
}

/// Waits, and is not approved.
fn wait(mut draft: Draft<'_>, reason: Reason, message: &str, look_again: Timestamp) -> Step {
    draft.set(ConditionType::Approved, false, reason, message);
    draft.set(ConditionType::Active, false, reason, message);
    draft.stay(Some(look_again))
}

/// Waits, approved as it is.
fn hold(mut draft: Draft<'_>, reason: Reason, message: &str, look_again: Timestamp) -> Step {
    draft.set(ConditionType::Active, false, reason, message);
    draft.stay(Some(look_again))
}

/// Back to where approvals are waited for; the wait begins anew.
fn back(mut draft: Draft<'_>, reason: Reason, message: &str) -> Step {
    draft.status.pending_since = Some(time(draft.now));
    draft.status.approved_at = None;
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
    let sessions = if plan.sessions_go_on { "Keep" } else { "Cut" };
    draft.status.established_sessions = Some(sessions.to_owned());
    draft.status.rules = planned(plan);
}

/// Everything that a restart needs to go on or to close is in status before the first cloud write.
fn write_ahead(mut draft: Draft<'_>, plan: &GrantPlan) -> Step {
    let granted = whole_second(draft.now);
    let mut deadline = plus(granted, plan.duration);
    if let Some(end) = draft.not_after() {
        deadline = deadline.min(whole_second(end));
    }
    let uid = draft.world.request.metadata.uid.clone().unwrap_or_default();
    // What a rule's name says is when its removal begins: also for those who know no more than the name.
    let removal = minus(deadline, plan.lead);
    for (number, rule) in (0..).zip(&mut draft.status.rules) {
        rule.name = allow_name(draft.world.cluster, &uid, removal, number);
        rule.state = RuleState::Opening.as_str().to_owned();
    }
    draft.status.granted_at = Some(time(granted));
    draft.status.expires_at = Some(time(deadline));
    let slow = if plan.lead.is_zero() {
        String::new()
    } else {
        format!(
            ", which takes an Azure Firewall 3 to 5 minutes as a rule; from {removal} on they are removed, so that they are \
             gone in time"
        )
    };
    let message = format!("granted until {deadline}; the rules are being written{slow}");
    draft.set(ConditionType::Active, false, Reason::Opening, &message);
    Step { grants: true, ..draft.go(State::Opening, Reason::Opening, &message) }
}
