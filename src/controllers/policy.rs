//! Policies: read the machines, tell the gates what to lock, say what came of it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt};
use serde_json::json;

use super::Context;
use super::retry::WriteError;
use super::tenancy::Tenant;
use crate::api::values::ArmId;
use crate::api::{DeletionPolicy, FINALIZER, JitPolicy, JitPolicyStatus, Mode, Reason, Tolerant};
use crate::plan::desired::Lock;
use crate::plan::foresight;
use crate::plan::locks;
use crate::plan::model::{FirewallId, Machine, Peer};
use crate::plan::report::{self, FirewallReport, Problem, World};
use crate::plan::terms::{InvalidSpec, Terms};
use crate::providers::Cloud;

mod machines;

pub use machines::Machines;

/// While something is being written or read back.
const SOON: Duration = Duration::from_secs(5);

/// Why a policy may not do anything, whatever it says: tenancy and exemptions are the cluster's to decide.
#[must_use]
pub fn barred(context: &Context, namespace: &str, terms: &Terms) -> Option<(Reason, String)> {
    if context.settings.dry_run {
        return Some((Reason::DryRun, Reason::DryRun.description().trim().to_owned()));
    }
    not_allowed(context, namespace, terms)
}

fn not_allowed(context: &Context, namespace: &str, terms: &Terms) -> Option<(Reason, String)> {
    let Some(tenant) = context.settings.tenancy.tenant(namespace) else {
        return Some((
            Reason::ScopeNotAllowed,
            format!(
                "namespace {namespace} has no scope in the configuration of the controller: ask those who run it to add one"
            ),
        ));
    };
    for (name, selector) in &terms.targets {
        if !tenant.reaches(selector.id()) {
            let scopes: Vec<&str> = tenant.scopes.iter().map(ArmId::as_str).collect();
            return Some((
                Reason::ScopeNotAllowed,
                format!(
                    "target {name:?}: {} is outside what namespace {namespace} may reach: {}",
                    selector.id(),
                    scopes.join(", ")
                ),
            ));
        }
    }
    let allowed = &context.settings.allowed_exempt_sources;
    terms.exempt.iter().find(|peer| !allowed.iter().any(|one| covers(one, peer))).map(|peer| {
        (
            Reason::ExemptSourceNotAllowed,
            format!(
                "spec.enforcement.exemptSources: {peer} is not among the allowedExemptSources of the controller's configuration"
            ),
        )
    })
}

fn covers(allowed: &Peer, peer: &Peer) -> bool {
    match (allowed, peer) {
        (Peer::Net(allowed), Peer::Net(net)) => allowed.contains(net),
        (Peer::Tag(allowed), Peer::Tag(tag)) => allowed.eq_ignore_ascii_case(tag),
        (Peer::Any, _) => true,
        _ => false,
    }
}

/// Brings one policy as far as it goes now.
///
/// # Errors
/// When the API server refused a write or could not be reached; nothing is lost, it is tried again.
pub async fn reconcile(policy: Arc<JitPolicy>, context: Arc<Context>) -> Result<Action, WriteError> {
    let namespace = policy.namespace().unwrap_or_default();
    let terms = Terms::parse(&policy.spec);
    let reach = context.settings.tenancy.tenant(&namespace).and_then(|tenant| {
        context.clouds.get(&tenant.credential).map(|cloud| (tenant.clone(), cloud.clone()))
    });
    if policy.metadata.deletion_timestamp.is_some() {
        return leave(&policy, &context, terms.as_ref().ok(), reach).await;
    }
    if !policy.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        let finalizers: Vec<String> =
            policy.finalizers().iter().cloned().chain([FINALIZER.to_owned()]).collect();
        set_finalizers(&policy, &context, finalizers).await?;
        return Ok(Action::requeue(Duration::from_millis(50)));
    }
    let problem = match &terms {
        Err(InvalidSpec { reason, .. }) => terms.as_ref().err().map(|error| (*reason, error.to_string())),
        Ok(terms) => not_allowed(&context, &namespace, terms),
    };
    if let Some((reason, message)) = problem {
        // What stands, stands: a policy that cannot be understood neither locks nor unlocks.
        let status = report::stalled(&policy, reason, &message, context.clock.now());
        write(&policy, &context, status).await?;
        return Ok(Action::requeue(context.settings.drift_interval));
    }
    let (Ok(terms), Some((tenant, cloud))) = (terms, reach) else {
        return Ok(Action::requeue(context.settings.drift_interval));
    };
    enforce(&policy, &context, &terms, &tenant, &cloud).await
}

async fn enforce(
    policy: &JitPolicy,
    context: &Arc<Context>,
    terms: &Terms,
    tenant: &Tenant,
    cloud: &Cloud,
) -> Result<Action, WriteError> {
    let uid = policy.uid().unwrap_or_default();
    let before = policy.status.clone().unwrap_or_default();
    let wanted = context.resolutions.is_wanted(&uid);
    let interval = if wanted || super::request::has_live_grants(context, &uid) {
        context.settings.address_interval
    } else {
        context.settings.inventory_interval
    };
    let read = context.resolutions.machines(policy, context, terms, cloud, interval).await;
    let mut world = World {
        policy,
        terms,
        machines: None,
        firewalls: BTreeMap::new(),
        problem: read
            .problem
            .map(|error| Problem { reason: error.kind.reason(), message: error.to_string() }),
        dry_run: context.settings.dry_run,
        cluster: &context.settings.cluster,
        grants: super::request::live_grants(context, &policy.namespace().unwrap_or_default()),
        not_admitted: context.admission.broken(),
    };
    let mut done = true;
    if let Some(resolution) = read.resolution {
        let satisfied = wanted && world.problem.is_none();
        if satisfied {
            context.resolutions.satisfied(&uid);
        }
        if read.changed || satisfied {
            context.wake_requests(policy);
        }
        let name = format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any());
        let locks = locks::wanted(&uid, &name, terms, &resolution.machines, &before.targets, &read.departed);
        // Where groups are not enforced, what stands there is treated as in Audit.
        let mode = if terms.uses_groups() { terms.mode } else { Mode::Audit };
        let foreseen =
            if mode == Mode::Audit || context.settings.dry_run { locks.clone() } else { BTreeMap::new() };
        let mut wanted: BTreeMap<FirewallId, Option<Lock>> = match (mode, terms.deletion_policy) {
            (Mode::Enforce, _) => locks.into_iter().map(|(firewall, lock)| (firewall, Some(lock))).collect(),
            // Entering Audit treats the locks as deletionPolicy says.
            (Mode::Audit, DeletionPolicy::Retain) => {
                locks.into_keys().map(|firewall| (firewall, None)).collect()
            }
            (Mode::Audit, DeletionPolicy::Unlock) => {
                locks::unlocked(&uid, &name, Some(terms), locks.into_keys().collect())
                    .into_iter()
                    .map(|(firewall, lock)| (firewall, Some(lock)))
                    .collect()
            }
        };
        // What leads packets on is looked at, and never locked.
        let machines =
            resolution.machines.values().flatten().filter_map(|(_, machine)| machine.as_ref().ok());
        wanted.extend(machines.flat_map(Machine::translating_firewalls).map(|hub| (hub, None)));
        context.gates.set_locks(&uid, &tenant.credential, cloud, wanted.clone());
        world.firewalls = wanted
            .into_iter()
            .map(|(firewall, lock)| {
                let known = context.gates.report(&firewall).unwrap_or_default();
                let locked = match (known.locked.get(&uid), &lock) {
                    (Some(standing), Some(lock)) => lock.stands_with(standing),
                    (standing, lock) => standing.is_none() && lock.is_none(),
                };
                done &= locked || known.gone;
                let refused = known.refused.into_iter().find(|refused| refused.owner_uid == uid);
                let refused =
                    refused.map(|refused| Problem { reason: refused.reason, message: refused.message });
                let cluster = &context.settings.cluster;
                let foresee = || {
                    let (lock, observed) = (foreseen.get(&firewall)?, known.observed.as_ref()?);
                    let limits = cloud.firewall.limits(&firewall).into();
                    foresight::obstacle(observed, lock, cluster, limits, context.clock.now())
                };
                let refused = refused.or_else(foresee);
                let crowded = match (&lock, &known.observed) {
                    (Some(_), Some(observed)) if locked => foresight::without_room(observed, cluster),
                    _ => Vec::new(),
                };
                let seen = FirewallReport {
                    locked,
                    gone: known.gone,
                    observed: known.observed,
                    error: known
                        .error
                        .map(|error| Problem { reason: error.kind.reason(), message: error.to_string() }),
                    refused,
                    crowded,
                };
                (firewall, seen)
            })
            .collect();
        world.machines = Some(resolution.machines);
    }
    let status = report::status(&world, context.clock.now());
    context.metrics.lockdown_effective(
        &policy.namespace().unwrap_or_default(),
        &policy.name_any(),
        crate::api::is_true(&status.conditions, crate::api::ConditionType::LockdownEffective),
    );
    tell(policy, context, &status).await;
    write(policy, context, status).await?;
    Ok(Action::requeue(if done && world.problem.is_none() { interval } else { SOON.min(interval) }))
}

/// A policy that is being deleted: its grants end by themselves, its locks go as `deletionPolicy` says.
async fn leave(
    policy: &JitPolicy,
    context: &Context,
    terms: Option<&Terms>,
    reach: Option<(Tenant, Cloud)>,
) -> Result<Action, WriteError> {
    let uid = policy.uid().unwrap_or_default();
    if !policy.finalizers().iter().any(|finalizer| finalizer == FINALIZER) {
        // It stays for somebody else's finalizer, and wants nothing more.
        context.gates.forget(&uid);
        context.resolutions.forget(&uid);
        return Ok(Action::await_change());
    }
    let targets = policy.status.as_ref().map(|status| status.targets.as_slice()).unwrap_or_default();
    let mut firewalls = locks::firewalls(targets);
    if let Some(found) = context.resolutions.get(&uid, policy.metadata.generation.unwrap_or_default()) {
        let machines = found.machines.values().flatten().filter_map(|(_, machine)| machine.as_ref().ok());
        firewalls.extend(machines.flat_map(Machine::firewalls));
    }
    if let (DeletionPolicy::Unlock, Some((tenant, cloud)), false) =
        (policy.spec.deletion_policy, reach, context.settings.dry_run)
    {
        let name = format!("{}/{}", policy.namespace().unwrap_or_default(), policy.name_any());
        let wanted = locks::unlocked(&uid, &name, terms, firewalls);
        let asked = wanted.iter().map(|(firewall, lock)| (firewall.clone(), Some(lock.clone()))).collect();
        context.gates.set_locks(&uid, &tenant.credential, &cloud, asked);
        let waiting = wanted.iter().any(|(firewall, lock)| {
            let known = context.gates.report(firewall).unwrap_or_default();
            !(known.gone || known.locked.get(&uid) == Some(lock))
        });
        if waiting {
            return Ok(Action::requeue(SOON));
        }
    }
    context.gates.forget(&uid);
    context.resolutions.forget(&uid);
    let finalizers =
        policy.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect();
    set_finalizers(policy, context, finalizers).await?;
    Ok(Action::await_change())
}

async fn set_finalizers(
    policy: &JitPolicy,
    context: &Context,
    finalizers: Vec<String>,
) -> Result<(), WriteError> {
    let api: Api<Tolerant<JitPolicy>> =
        Api::namespaced(context.client.clone(), &policy.namespace().unwrap_or_default());
    let patch = json!({"metadata": {
        "finalizers": finalizers,
        "resourceVersion": policy.resource_version(),
        "uid": policy.uid(),
    }});
    match api.patch(&policy.name_any(), &PatchParams::default(), &Patch::Merge(&patch)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(WriteError { operation: "write the finalizer of the policy", source }),
    }
}

async fn write(policy: &JitPolicy, context: &Context, status: JitPolicyStatus) -> Result<(), WriteError> {
    if policy.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<Tolerant<JitPolicy>> =
        Api::namespaced(context.client.clone(), &policy.namespace().unwrap_or_default());
    let mut wanted = policy.clone();
    wanted.status = Some(status);
    match api.replace_status(&policy.name_any(), &PostParams::default(), &Tolerant(wanted)).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(WriteError { operation: "write the status of the policy", source }),
    }
}

/// An Event for every condition that changed its status.
async fn tell(policy: &JitPolicy, context: &Context, status: &JitPolicyStatus) {
    let before = policy.status.as_ref().map(|status| status.conditions.as_slice()).unwrap_or_default();
    for condition in &status.conditions {
        let known = before.iter().find(|known| known.type_ == condition.type_);
        if known.map(|known| (&known.status, &known.reason)) == Some((&condition.status, &condition.reason)) {
            continue;
        }
        if condition.type_ == "Stalled" && condition.status == "False" {
            // Nothing that people have to mend is no news.
            continue;
        }
        let note = format!("{}={}: {}", condition.type_, condition.status, condition.message);
        let good = (condition.status == "True") != (condition.type_ == "Stalled");
        if good || condition.reason == Reason::Progressing.as_str() {
            context.herald.normal(policy, &condition.reason, "Reconcile", note).await;
        } else {
            context.herald.warning(policy, &condition.reason, "Reconcile", note).await;
        }
    }
}
