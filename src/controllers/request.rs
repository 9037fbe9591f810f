//! Requests: observe, judge, step, write, tell.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::Context;
use super::retry::WriteError;
use crate::api::values::ArmId;
use crate::api::{JitAccessRequest, RuleStatus, State, Tolerant};
use crate::plan::desired::{Duty, Grant};
use crate::plan::lifecycle::{Finalizer, Seen, Step, duties, gone, may_land, state};
use crate::plan::model::FirewallId;
use crate::plan::reviews::Tally;

mod clocks;
mod counting;
mod look;
mod opens;
mod pace;
mod passage;
pub mod record;
mod rights;
mod rooms;
mod tell;
pub mod told;
mod turns;
mod views;
mod write;

use counting::Counted;
use look::Look;
pub use opens::Opens;
pub use pace::Pace;
pub use rights::Rights;
pub use rooms::Rooms;
use tell::tell;
pub use turns::Turns;
pub use views::ParsedTerms;
use write::{Acted, act, ends_all_the_same};

/// The longest time until a request that is not settled is looked at again.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// When to try again where the API server has said something else than the cache.
const CACHE_LAGS: Duration = Duration::from_secs(1);
/// When to try again while not everything is known.
const NOT_READY: Duration = Duration::from_millis(200);
/// When one that waits for its grant and found no place comes again, on average.
const NO_PLACE: Duration = Duration::from_millis(500);
/// The moves that one reconcile makes at most.
const MOVES: usize = 16;

/// Brings one request as far as it goes now.
///
/// What is not granted waits until everything is known: reviews, because a denial that is not known yet would come too
/// late; other requests, because limits are judged by all that live; admission, because what was not looked at would be
/// said not to be in force. What may have rules in the cloud waits for nothing, and for nobody who waits.
///
/// # Errors
/// As [`reconcile`].
pub async fn reconcile_in_turn(
    request: Arc<JitAccessRequest>,
    context: Arc<Context>,
) -> Result<Action, WriteError> {
    if !context.leadership.is_holder() {
        return Ok(Action::requeue(super::STOOD_BY));
    }
    let state = state(&request);
    let leaves = state.is_last() || request.metadata.deletion_timestamp.is_some();
    let _place = if state.holds_rules() {
        context.rooms.enter_granted().await
    } else if leaves {
        context.rooms.enter_leaving().await
    } else {
        if !context.knows_all() {
            return Ok(Action::requeue(NOT_READY));
        }
        let pipelines = &context.settings.pipelines;
        let Some(place) = context.rooms.enter_waiting(pace::asker(&request, pipelines)) else {
            return Ok(Action::requeue(NO_PLACE.mul_f64(rand::random_range(0.5..1.5))));
        };
        if let Some(wait) = context.pace.wait(&request, pipelines, Instant::now()) {
            return Ok(Action::requeue(wait));
        }
        place
    };
    // What is known by now counts. Gone: the watch has told everybody.
    let Some(request) = context.requests.get(&ObjectRef::from_obj(&*request)) else {
        return Ok(Action::await_change());
    };
    // What a reconcile takes in memory, only those in a room take.
    Box::pin(super::timed("request", reconcile(request, Arc::clone(&context)), context)).await
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
        let (look, next) = if fresh {
            let (look, now_counted) = Look::afresh(context, &request).await?;
            *counted = now_counted;
            let next = look.step(context, &request, &counted.tally);
            (look, next)
        } else {
            let look = Look::at_caches(context, &request);
            let next = match unheard(context, &request, &look) {
                Some(next) => next,
                None => {
                    *counted = look.count(context, &request).await?;
                    look.step(context, &request, &counted.tally)
                }
            };
            (look, next)
        };
        // At the grant everything that it rests on is asked again.
        if !fresh && next.grants {
            fresh = true;
            continue;
        }
        let refused = fresh && !next.grants;
        fresh = false;
        // It may have been lost meanwhile: then this is for another one to write.
        if !context.leadership.is_holder() {
            return Ok(Action::requeue(super::STOOD_BY));
        }
        let now = look.now;
        let rest = rest(&next, now);
        if next.grants && !state(&request).holds_rules() {
            context.opens.grant(request.uid().unwrap_or_default(), context.leadership.tenure());
        }
        let acted = match act(&api, &request, &next).await {
            Err(error) if next.grants && error.may_have_been_done() => {
                look.keep_turn();
                return Err(error);
            }
            Err(error) if ends_all_the_same(&request, &next, &error) => {
                context.gates.end(&request.uid().unwrap_or_default());
                return Err(error);
            }
            acted => acted?,
        };
        if next.grants && !matches!(acted, Acted::Gone) {
            // What was sent, whatever came back.
            let granted = JitAccessRequest { status: Some(next.status.clone()), ..request.clone() };
            context.opens.vouch(&granted);
        }
        match acted {
            Acted::Nothing if next.grants => {}
            Acted::Nothing => {
                answer_late(context, &request, &look, counted).await?;
                return Ok(Action::requeue(rest));
            }
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
                // A cache that lags behind says the same as before.
                if refused {
                    return Ok(Action::requeue(CACHE_LAGS));
                }
            }
        }
    }
    Ok(Action::requeue(Duration::from_secs(1)))
}

/// The next move of what may have rules in the cloud, where it takes nobody's word: it ends, it closes, or the reviews
/// are not known yet. Closing waits for no review.
fn unheard(context: &Context, request: &JitAccessRequest, look: &Look) -> Option<Step> {
    if !state(request).holds_rules() {
        return None;
    }
    let next = look.step(context, request, &Tally::default());
    let closes = next.status.state.as_deref() != Some(State::Opening.as_str())
        && next.status.state.as_deref() != Some(State::Active.as_str());
    (closes || !context.reviews_filled.is_filled()).then_some(next)
}

/// Counts for the answers alone, where the move took nobody's word.
async fn answer_late(
    context: &Context,
    request: &JitAccessRequest,
    look: &Look,
    counted: &mut Counted,
) -> Result<(), WriteError> {
    if state(request) == State::Closing && context.reviews_filled.is_filled() {
        *counted = look.count(context, request).await?;
    }
    Ok(())
}

/// Tells the gates what the durable status says, and nothing else; nor all of it: what nobody vouches for is opened by
/// none.
pub(super) fn give_duties(context: &Context, request: &JitAccessRequest) {
    context.turns.note(request, &context.settings.pipelines);
    let Some(uid) = request.uid() else { return };
    if state(request) == State::Closing || state(request).is_last() {
        context.opens.forget(&uid);
    }
    let namespace = request.namespace().unwrap_or_default();
    let mut grants = duties(request);
    context.opens.withhold(&uid, &mut grants);
    let tenure = context.leadership.tenure();
    if tenure.is_none() {
        // The holder of the lease has read them.
        context.gates.are_gone(gone(request));
    }
    let (granted, within) = (context.opens.granted_in(&uid), context.settings.unfinished_writes);
    let unfinished = tenure
        .map(|tenure| may_land(request, granted, tenure, within, context.deadlines.now()))
        .unwrap_or_default();
    match context.settings.tenancy.tenant(&namespace) {
        Some(tenant) => {
            if let Some(cloud) = context.clouds.get(&tenant.credential) {
                context.gates.set_grants(&uid, &tenant.credential, cloud, grants.clone(), &unfinished);
            }
            call_others(context, &tenant.credential, &grants);
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
                context.gates.set_grants(&uid, credential, cloud, grants.clone(), &unfinished);
            }
        }
    }
}

/// What the tenant's own credential does not close, for whatever reason, is closed by whichever can: the namespace may
/// have been mapped to another one since the grant, or no token may be had.
fn call_others(context: &Context, own: &str, grants: &[(FirewallId, Grant)]) {
    let fails = |firewall: &FirewallId| {
        let error = context.gates.report(firewall).and_then(|report| report.error);
        error.is_some_and(|error| !error.kind.is_of_the_firewall())
    };
    let now = context.deadlines.now();
    let due = |grant: &Grant| matches!(grant.duty, Duty::Close { .. }) || grant.deadline <= now;
    for (firewall, _) in grants.iter().filter(|(firewall, grant)| due(grant) && fails(firewall)) {
        for (credential, cloud) in context.clouds.iter().filter(|(credential, _)| *credential != own) {
            context.gates.offer_way(firewall, credential, cloud);
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
