//! Requests: observe, judge, step, write, tell.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::Context;
use super::retry::WriteError;
use crate::api::values::ArmId;
use crate::api::{FINALIZER, JitAccessRequest, Reason, RuleStatus, State, Tolerant};
use crate::plan::authorize::{Judgement, PolicyView, judge};
use crate::plan::desired::{Duty, Grant};
use crate::plan::lifecycle::{Finalizer, Seen, Step, Transition, World, duties, state, step};
use crate::plan::model::FirewallId;
use crate::plan::terms::Terms;

mod passage;

/// The longest time until a request that is not settled is looked at again.
const LONGEST_REST: Duration = Duration::from_secs(30);
/// The moves that one reconcile makes at most.
const MOVES: usize = 16;

/// Who holds a grant, so that limits are judged by what is granted and not by what a cache shows.
#[derive(Clone, Debug, Default)]
pub struct Turns(Arc<Mutex<HashMap<String, Holder>>>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Holder {
    requester: String,
    policies: BTreeSet<String>,
}

impl Turns {
    /// Takes note of where a request stands by its durable status.
    fn note(&self, request: &JitAccessRequest) {
        let Some(uid) = request.metadata.uid.clone() else { return };
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state(request).holds_rules() {
            holders.insert(uid, holder(request));
        } else {
            holders.remove(&uid);
        }
    }

    /// Forgets requests that are gone.
    pub fn keep_only(&self, live: &BTreeSet<String>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|uid, _| live.contains(uid));
    }

    /// Why there is no room for one more grant under these limits; takes the place where there is.
    fn take(&self, request: &JitAccessRequest, limits: &BTreeMap<String, (usize, usize)>) -> Option<String> {
        let uid = request.metadata.uid.clone()?;
        let mut holder = holder(request);
        holder.policies = limits.keys().cloned().collect();
        let mut holders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (policy, (for_one, altogether)) in limits {
            let under =
                || holders.iter().filter(|(other, held)| **other != uid && held.policies.contains(policy));
            let all = under().count();
            let own = under().filter(|(_, held)| held.requester == holder.requester).count();
            if own >= *for_one {
                return Some(format!(
                    "waits: {own} grants of {} are live (spec.limits.activePerRequester)",
                    holder.requester
                ));
            }
            if all >= *altogether {
                return Some(format!("waits: {all} grants are live under the policy (spec.limits.active)"));
            }
        }
        holders.insert(uid, holder);
        None
    }

    /// How many grants are live.
    #[must_use]
    pub fn live(&self) -> usize {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).len()
    }
}

fn holder(request: &JitAccessRequest) -> Holder {
    let status = request.status.as_ref();
    Holder {
        requester: request.spec.requester.as_ref().map(|user| user.username.clone()).unwrap_or_default(),
        policies: status
            .into_iter()
            .flat_map(|status| &status.policies)
            .map(|policy| policy.uid.clone())
            .collect(),
    }
}

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

/// Brings one request as far as it goes now.
///
/// # Errors
/// When the API server refused a write or could not be reached; nothing is lost, it is tried again.
pub async fn reconcile(request: Arc<JitAccessRequest>, context: Arc<Context>) -> Result<Action, WriteError> {
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<Tolerant<JitAccessRequest>> = Api::namespaced(context.client.clone(), &namespace);
    let mut request = (*request).clone();
    for _ in 0..MOVES {
        give_duties(&context, &request);
        let now = context.clock.now();
        let policies = views(&context, &namespace);
        let judgement = judge(&request, &policies, now);
        let no_room = match (&judgement, state(&request)) {
            (Judgement::Allowed(plan), State::Approved) => context.turns.take(&request, &plan.limits),
            _ => None,
        };
        let seen = |rule: &RuleStatus| seen(&context, rule);
        let world = World {
            request: &request,
            judgement: &judgement,
            cluster: &context.settings.cluster,
            seen: &seen,
            no_room,
            stopped_by: match state(&request) {
                State::Opening | State::Active => passage::stopped(&context, &request, &policies),
                _ => None,
            },
        };
        let next = step(&world, now);
        let rest = rest(&next, now);
        match act(&api, &request, &next).await? {
            Acted::Nothing => return Ok(Action::requeue(rest)),
            Acted::Gone => {
                context.gates.end(&request.uid().unwrap_or_default());
                return Ok(Action::await_change());
            }
            Acted::Wrote(written) => {
                let moved = state(&written) != state(&request);
                request = *written;
                // Before anybody is told: a slow Event must hold up no close.
                give_duties(&context, &request);
                if let Some(transition) = &next.event {
                    tell(&context, &request, transition);
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

enum Acted {
    Nothing,
    Gone,
    Wrote(Box<JitAccessRequest>),
}

/// Writes what a step asks for: the finalizer first, then the status, each against the version that was judged.
async fn act(
    api: &Api<Tolerant<JitAccessRequest>>,
    request: &JitAccessRequest,
    next: &Step,
) -> Result<Acted, WriteError> {
    let name = request.name_any();
    let finalizers = match next.finalizer {
        Finalizer::Leave => None,
        Finalizer::Add => Some(
            request
                .finalizers()
                .iter()
                .map(String::as_str)
                .chain([FINALIZER])
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        ),
        Finalizer::Remove => {
            Some(request.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect())
        }
    };
    if let Some(finalizers) = finalizers {
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": request.resource_version(),
            "uid": request.uid(),
        }});
        return match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(written) => Ok(Acted::Wrote(Box::new(written.0))),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Acted::Gone),
            Err(source) => Err(WriteError { operation: "write the finalizer of the request", source }),
        };
    }
    if request.status.as_ref() == Some(&next.status) {
        return Ok(Acted::Nothing);
    }
    let mut wanted = request.clone();
    wanted.status = Some(next.status.clone());
    // With resourceVersion and UID: written ahead means written over what was judged, and over nothing else.
    match api.replace_status(&name, &PostParams::default(), &Tolerant(wanted)).await {
        Ok(written) => Ok(Acted::Wrote(Box::new(written.0))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Acted::Gone),
        Err(source) => Err(WriteError { operation: "write the status of the request", source }),
    }
}

/// Tells the gates what the durable status says, and nothing else.
pub(super) fn give_duties(context: &Context, request: &JitAccessRequest) {
    context.turns.note(request);
    let Some(uid) = request.uid() else { return };
    let namespace = request.namespace().unwrap_or_default();
    let mut grants = duties(request);
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

/// The policies of a namespace, as requests are judged by them.
#[must_use]
pub fn views(context: &Context, namespace: &str) -> Vec<PolicyView> {
    context
        .policies
        .state()
        .iter()
        .filter(|policy| policy.namespace().as_deref() == Some(namespace))
        .map(|policy| {
            let uid = policy.uid().unwrap_or_default();
            let generation = policy.metadata.generation.unwrap_or_default();
            let terms = Terms::parse(&policy.spec);
            let barred =
                terms.as_ref().ok().and_then(|terms| super::policy::barred(context, namespace, terms));
            // What can no longer be understood still locks what it locked.
            let found = if terms.is_ok() && barred.is_none() {
                context.resolutions.get(&uid, generation)
            } else {
                context.resolutions.latest(&uid)
            };
            PolicyView {
                name: policy.name_any(),
                generation,
                deleting: policy.metadata.deletion_timestamp.is_some(),
                barred,
                machines: found.map(|found| (*found.machines).clone()),
                has_locked: policy.status.as_ref().is_some_and(|status| !status.targets.is_empty()),
                terms,
                uid,
            }
        })
        .collect()
}

fn tell(context: &Context, request: &JitAccessRequest, transition: &Transition) {
    let Transition { from, to, reason, message } = transition;
    tracing::info!(
        request = %request.name_any(), namespace = request.namespace().unwrap_or_default(),
        uid = request.uid().unwrap_or_default(), from = from.as_str(), to = to.as_str(), reason = reason.as_str(),
        message, "request moved"
    );
    let note = format!("{} -> {}: {message}", from.as_str(), to.as_str());
    let bad = matches!(to, State::Denied | State::Failed | State::TimedOut | State::Revoked | State::Void)
        || *reason == Reason::RuleRemoved;
    let (herald, object, word) = (context.herald.clone(), request.clone(), to.as_str());
    if bad {
        context.metrics.refusal(*reason);
    }
    tokio::spawn(async move {
        if bad {
            herald.warning(&object, word, "Step", note).await;
        } else {
            herald.normal(&object, word, "Step", note).await;
        }
    });
    let status = request.status.as_ref();
    let since = |from: Option<Timestamp>, to: Option<Timestamp>| {
        from.zip(to).map(|(from, to)| Duration::try_from(to.duration_since(from)).unwrap_or(Duration::ZERO))
    };
    let granted = status.and_then(|status| status.granted_at.as_ref()).map(|at| at.0);
    if *to == State::Active
        && let Some(seconds) = since(granted, Some(context.clock.now()))
    {
        context.metrics.time_to_open(seconds);
    }
    let closed = status.and_then(|status| status.closed_at.as_ref()).map(|at| at.0);
    let expires = status.and_then(|status| status.expires_at.as_ref()).map(|at| at.0);
    if *to == State::Expired
        && let Some(seconds) = since(expires, closed)
    {
        context.metrics.expiry_lag(seconds);
    }
    context.metrics.open_grants(context.turns.live());
    if to.holds_rules() != from.holds_rules() {
        context.wake_policies_of(request);
    }
}

fn rest(next: &Step, now: Timestamp) -> Duration {
    let until = next.look_again.and_then(|at| Duration::try_from(at.duration_since(now)).ok());
    until.unwrap_or(LONGEST_REST).clamp(Duration::from_millis(50), LONGEST_REST)
}
