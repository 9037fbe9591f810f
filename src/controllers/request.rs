//! Requests: observe, judge, step, write, tell.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};

use super::Context;
use super::retry::WriteError;
use crate::api::values::ArmId;
use crate::api::{JitAccessRequest, Reason, RuleStatus, State, Tolerant};
use crate::plan::authorize::{Judgement, judge};
use crate::plan::desired::{Duty, Grant};
use crate::plan::lifecycle::{Finalizer, Seen, Step, World, duties, state, step};
use crate::plan::model::FirewallId;

mod clocks;
mod counting;
mod opens;
mod passage;
pub mod record;
mod rights;
mod tell;
mod turns;
mod views;
mod write;

use counting::{Counted, count};
pub use opens::Opens;
pub use rights::Rights;
use tell::tell;
pub use turns::Turns;
pub use views::views;
use write::{Acted, act};

/// The longest time until a request that is not settled is looked at again.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// The moves that one reconcile makes at most.
const MOVES: usize = 16;

/// Brings one request as far as it goes, once the policies are known: an empty cache would look as if every
/// policy had been deleted. The gates have learnt from the watch what is to be closed.
///
/// # Errors
/// As [`reconcile`].
pub async fn reconcile_when_ready(
    request: Arc<JitAccessRequest>,
    context: Arc<Context>,
) -> Result<Action, WriteError> {
    context.policies_filled.wait().await;
    // And for the requests: limits are judged by all that live.
    context.requests_filled.wait().await;
    // And for the reviews: a denial that is not known yet would come too late.
    context.reviews_filled.wait().await;
    // And for admission: what was not looked at yet would be said not to be in force.
    context.admission.looked().await;
    reconcile(request, context).await
}

/// Whether a grant under a policy is live.
#[must_use]
pub fn has_live_grants(context: &Context, policy_uid: &str) -> bool {
    context.requests.state().iter().any(|request| {
        let mut policies = request.status.iter().flat_map(|status| &status.policies);
        state(request).holds_rules() && policies.any(|policy| policy.uid == policy_uid)
    })
}

/// The rules of all live grants of a namespace: their packets pass on purpose, under whichever policy. Of no other
/// namespace: its machines may have the same addresses.
#[must_use]
pub fn live_grants(context: &Context, namespace: &str) -> Vec<Grant> {
    let requests = context.requests.state();
    let own = requests.iter().filter(|request| request.namespace().as_deref() == Some(namespace));
    own.flat_map(|request| duties(request)).map(|(_, grant)| grant).collect()
}

/// Brings one request as far as it goes now, and answers its reviews.
///
/// # Errors
/// When the API server refused a write or could not be reached; nothing is lost, it is tried again.
pub async fn reconcile(request: Arc<JitAccessRequest>, context: Arc<Context>) -> Result<Action, WriteError> {
    let mut counted = Counted::default();
    let action = advance((*request).clone(), &context, &mut counted).await?;
    counting::answer(&context, &counted).await?;
    Ok(action)
}

async fn advance(
    mut request: JitAccessRequest,
    context: &Context,
    counted: &mut Counted,
) -> Result<Action, WriteError> {
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<Tolerant<JitAccessRequest>> = Api::namespaced(context.client.clone(), &namespace);
    let mut fresh = false;
    record::sight(context, &request);
    for _ in 0..MOVES {
        give_duties(context, &request);
        let now = context.clock.now();
        let policies = views(context, &namespace);
        let judgement = judge(&request, &policies, &context.settings.pipelines, now);
        let admission = if fresh { context.admission.confirmed().await } else { context.admission.now() };
        *counted = count(context, &request, &judgement, &admission, fresh).await?;
        // Held until what becomes of it is written.
        let turn = match (&judgement, state(&request)) {
            (Judgement::Allowed(plan), State::Approved) => Some(context.turns.take(&request, &plan.limits)),
            _ => None,
        };
        let limit = turn.as_ref().and_then(|turn| turn.as_ref().err());
        let no_room = clocks::apart(context, &namespace)
            .map(|why| (Reason::ClockSkew, why))
            .or_else(|| limit.map(|why| (Reason::LimitReached, why.clone())));
        let seen = |rule: &RuleStatus| seen(context, rule);
        let world = World {
            request: &request,
            judgement: &judgement,
            tally: &counted.tally,
            admission: &admission,
            cluster: &context.settings.cluster,
            seen: &seen,
            no_room,
            stopped_by: match state(&request) {
                State::Opening | State::Active => passage::stopped(context, &request, &policies),
                _ => None,
            },
            ground: context.opens.ground(&request, fresh),
        };
        let next = step(&world, now);
        // At the grant everything that it rests on is asked again, and from then on in this pass.
        if !fresh && next.grants {
            fresh = true;
            continue;
        }
        let rest = rest(&next, now);
        let acted = act(&api, &request, &next).await?;
        if next.grants && !matches!(acted, Acted::Gone) {
            // What was sent, whatever came back.
            let granted = JitAccessRequest { status: Some(next.status.clone()), ..request.clone() };
            context.opens.vouch(&granted);
        }
        match acted {
            Acted::Nothing if next.grants => {}
            Acted::Nothing => return Ok(Action::requeue(rest)),
            Acted::Gone => {
                context.gates.end(&request.uid().unwrap_or_default());
                return Ok(Action::await_change());
            }
            Acted::Wrote(written) => {
                let moved = state(&written) != state(&request);
                record::wrote(context, &request, &written, next.event.as_ref());
                request = *written;
                // Before anybody is told: a slow Event must hold up no close.
                give_duties(context, &request);
                if let Some(transition) = &next.event {
                    tell(context, &request, transition);
                }
                if request.status.as_ref().is_some_and(|status| status.settled) {
                    return Ok(Action::await_change());
                }
                if !moved && next.finalizer == Finalizer::Leave {
                    return Ok(Action::requeue(rest));
                }
            }
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

/// Tells the gates what the durable status says, and nothing else; nor all of it: what nobody vouches for is opened by
/// none.
pub(super) fn give_duties(context: &Context, request: &JitAccessRequest) {
    context.turns.note(request);
    let Some(uid) = request.uid() else { return };
    if state(request).is_last() {
        context.opens.forget(&uid);
    }
    let namespace = request.namespace().unwrap_or_default();
    let mut grants = duties(request);
    context.opens.withhold(&uid, &mut grants);
    match context.settings.tenancy.tenant(&namespace) {
        Some(tenant) => {
            if let Some(cloud) = context.clouds.get(&tenant.credential) {
                context.gates.set_grants(&uid, &tenant.credential, cloud, grants);
            }
        }
        // A namespace that lost its mapping reaches nothing any more, but what it opened has to be closed, by
        // whichever credential can.
        None => {
            for (_, grant) in &mut grants {
                if !matches!(grant.duty, Duty::Close { .. }) {
                    grant.duty = Duty::Close { sent: false };
                }
            }
            for (credential, cloud) in context.clouds.iter() {
                context.gates.set_grants(&uid, credential, cloud, grants.clone());
            }
        }
    }
}

fn seen(context: &Context, rule: &RuleStatus) -> Seen {
    ArmId::parse(&rule.firewall).map(|id| context.gates.seen(&FirewallId(id), &rule.name)).unwrap_or_default()
}

fn rest(next: &Step, now: Timestamp) -> Duration {
    let until = next.look_again.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
    until.unwrap_or(LONGEST_REST).clamp(Duration::from_millis(50), LONGEST_REST)
}
