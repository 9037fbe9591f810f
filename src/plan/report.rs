//! What a policy's status says of what was seen.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;

use super::authorize::Resolved;
use super::desired::Grant;
use super::foresight::Crowded;
use super::model::{FirewallId, Observed};
use super::names::Cluster;
use super::terms::Terms;
use crate::api::{
    ConditionType, ExistingRules, JitPolicy, JitPolicyStatus, Mode, PolicySummary, Reason, TargetStatus,
    condition, set_condition,
};

mod target;

/// The most targets that status lists.
const MAX_TARGETS: usize = 256;

/// Something that stands in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word.
    pub reason: Reason,
    /// In a sentence.
    pub message: String,
}

/// What is known of a firewall on the way to a policy's machines.
#[derive(Clone, Debug, Default)]
pub struct FirewallReport {
    /// Whether the policy's lock stands there as wanted.
    pub locked: bool,
    /// Whether the firewall is gone.
    pub gone: bool,
    /// The last read.
    pub observed: Option<Arc<Observed>>,
    /// What failed.
    pub error: Option<Problem>,
    /// Why the lock cannot be written; where nothing is written, why it could not be.
    pub refused: Option<Problem>,
    /// Denies of ours that leave no room for grants, where the lock stands.
    pub crowded: Vec<Crowded>,
}

/// Everything that a policy's status says something about.
#[derive(Debug)]
pub struct World<'a> {
    /// The policy.
    pub policy: &'a JitPolicy,
    /// What it says.
    pub terms: &'a Terms,
    /// Its machines; none: never read.
    pub machines: Option<Arc<BTreeMap<String, Vec<Resolved>>>>,
    /// The firewalls on the way to them, and those where it locked something before.
    pub firewalls: BTreeMap<FirewallId, FirewallReport>,
    /// Why the machines could not be read.
    pub problem: Option<Problem>,
    /// Whether nothing is written.
    pub dry_run: bool,
    /// Whose rules are ours.
    pub cluster: &'a Cluster,
    /// Live grants: their packets pass on purpose.
    pub grants: Vec<Grant>,
    /// Why admission is not in force. It locks all the same.
    pub not_admitted: Option<String>,
}

/// Where a machine's lock stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum TargetState {
    Unsupported,
    NotConfigured,
    Unlocking,
    Configured,
}

impl TargetState {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Unsupported => "Unsupported",
            Self::NotConfigured => "NotConfigured",
            Self::Unlocking => "Unlocking",
            Self::Configured => "Configured",
        }
    }
}

/// One machine, judged.
struct Judged {
    state: TargetState,
    /// Whether the lock closes the ports; none where it is not known or does not matter.
    effective: Option<bool>,
    /// Whether its message says what would be in the way of a lock, where nothing is written.
    foreseen: bool,
    status: TargetStatus,
}

/// The status of a policy that only people can mend.
#[must_use]
pub fn stalled(policy: &JitPolicy, reason: Reason, message: &str, now: Timestamp) -> JitPolicyStatus {
    let mut status = policy.status.clone().unwrap_or_default();
    let generation = policy.metadata.generation;
    status.observed_generation = generation;
    for (kind, value) in [
        (ConditionType::Ready, false),
        (ConditionType::LockdownEffective, false),
        (ConditionType::Stalled, true),
    ] {
        set_condition(&mut status.conditions, condition(kind, value, reason, message, generation, now));
    }
    status
}

/// The status of a policy that is being enforced or audited.
#[must_use]
pub fn status(world: &World<'_>, now: Timestamp) -> JitPolicyStatus {
    let generation = world.policy.metadata.generation;
    let mut status = world.policy.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let mut set = |kind, value, reason, message: &str| {
        set_condition(&mut status.conditions, condition(kind, value, reason, message, generation, now));
    };
    let Some(machines) = &world.machines else {
        let (reason, message) = world
            .problem
            .as_ref()
            .map_or((Reason::Progressing, "the machines are being read".to_owned()), |problem| {
                (problem.reason, problem.message.clone())
            });
        set(ConditionType::Ready, false, reason, &message);
        set(ConditionType::LockdownEffective, false, reason, &message);
        set(ConditionType::Stalled, false, Reason::Progressing, "");
        return status;
    };
    let mut judged = target::judge_all(world, machines, now);
    // Those in trouble first.
    judged.sort_by(|a, b| {
        (a.state, a.effective, &a.status.name, &a.status.id).cmp(&(
            b.state,
            b.effective,
            &b.status.name,
            &b.status.id,
        ))
    });
    let summary = summary(world, machines, &judged);
    for new in conditions(world, &judged, &summary, generation, now) {
        set_condition(&mut status.conditions, new);
    }
    status.summary = Some(summary);
    status.targets = judged.into_iter().map(|judged| judged.status).take(MAX_TARGETS).collect();
    status
}

fn summary(
    world: &World<'_>,
    machines: &BTreeMap<String, Vec<Resolved>>,
    judged: &[Judged],
) -> PolicySummary {
    let empty = machines.values().filter(|found| found.is_empty()).count();
    let present = judged.iter().filter(|one| one.state != TargetState::Unlocking);
    let count = |state| judged.iter().filter(|one| one.state == state).count();
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let (targets, configured) = (present.count() + empty, count(TargetState::Configured));
    let mut ports: Vec<&String> = judged.iter().flat_map(|one| &one.status.locked_ports).collect();
    ports.sort();
    ports.dedup();
    let ports: Vec<&str> = ports.iter().map(|port| port.as_str()).collect();
    let mut ports = if ports.is_empty() {
        world
            .terms
            .ports
            .iter()
            .map(|port| target::port(port.protocol, port.range))
            .collect::<Vec<_>>()
            .join(",")
    } else {
        ports.join(",")
    };
    ports.truncate(512);
    PolicySummary {
        targets: number(targets),
        configured: number(configured),
        unsupported: number(count(TargetState::Unsupported)),
        not_effective: number(judged.iter().filter(|one| one.effective == Some(false)).count()),
        machines: Some(format!("{configured}/{targets}")),
        ports: Some(ports),
    }
}

fn conditions(
    world: &World<'_>,
    judged: &[Judged],
    summary: &PolicySummary,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    let make = |kind, value, reason, message: &str| condition(kind, value, reason, message, generation, now);
    let idle = if world.terms.mode == Mode::Audit {
        let mut message = format!(
            "would lock {} of {} machines; nothing is written",
            summary.targets - summary.unsupported,
            summary.targets
        );
        if let Some(one) = judged.iter().find(|one| one.foreseen) {
            let why = one.status.message.as_deref().unwrap_or_default();
            message = format!("{message}; in the way: {}: {why}", one.status.name);
        }
        Some((Reason::Audit, message))
    } else if world.dry_run {
        Some((Reason::DryRun, Reason::DryRun.description().trim().to_owned()))
    } else {
        None
    };
    let effective = effectiveness(world, judged, summary);
    if let Some((reason, message)) = idle {
        return vec![
            make(ConditionType::Ready, true, reason, &message),
            make(ConditionType::LockdownEffective, effective.0, effective.1, &effective.2),
            make(ConditionType::Stalled, false, reason, ""),
        ];
    }
    let first = |wanted: &[TargetState]| judged.iter().find(|one| wanted.contains(&one.state));
    let trouble = if let Some(problem) = &world.problem {
        Some((problem.reason, problem.message.clone()))
    } else if summary.targets == 0 || judged.is_empty() {
        Some((Reason::NoTargets, "no machine is selected; check scopes and tags".to_owned()))
    } else if let Some(one) = first(&[TargetState::Unsupported]) {
        let why = one.status.message.clone().unwrap_or_default();
        Some((
            Reason::TargetsUnsupported,
            format!(
                "{} of {} machines cannot be locked: {}: {why}",
                summary.unsupported, summary.targets, one.status.name
            ),
        ))
    } else {
        let crowded = |one: &&Judged| one.status.reason.as_deref() == Some(Reason::NoPriorityRoom.as_str());
        let first = first(&[TargetState::NotConfigured, TargetState::Unlocking]);
        first.or_else(|| judged.iter().find(crowded)).map(|one| {
            let reason = one.status.reason.as_deref().and_then(Reason::parse).unwrap_or(Reason::Progressing);
            (reason, format!("{}: {}", one.status.name, one.status.message.clone().unwrap_or_default()))
        })
    };
    let keep = world.terms.existing == ExistingRules::Keep;
    let stalled = match &trouble {
        Some((reason, message)) if for_people(*reason) => Some((*reason, message.clone())),
        _ => world.not_admitted.as_ref().map(|why| {
            (Reason::AdmissionNotEnforced, format!("locks, and grants nothing until this is mended: {why}"))
        }),
    };
    let ready = match &trouble {
        Some((reason, message)) => make(ConditionType::Ready, false, *reason, message),
        None if effective.0 || keep => make(
            ConditionType::Ready,
            true,
            Reason::Configured,
            &format!("locked and read back: {} of {} machines", summary.configured, summary.targets),
        ),
        None => make(ConditionType::Ready, false, effective.1, &effective.2),
    };
    vec![
        ready,
        make(ConditionType::LockdownEffective, effective.0, effective.1, &effective.2),
        match stalled {
            Some((reason, message)) => make(ConditionType::Stalled, true, reason, &message),
            None => make(ConditionType::Stalled, false, Reason::Configured, ""),
        },
    ]
}

fn effectiveness(world: &World<'_>, judged: &[Judged], summary: &PolicySummary) -> (bool, Reason, String) {
    if judged.is_empty() {
        return (false, Reason::NoTargets, "no machine is selected".to_owned());
    }
    if let Some(hole) = judged.iter().find(|one| one.effective == Some(false)) {
        let reason = if !hole.status.shadowed_by.is_empty() && world.terms.existing == ExistingRules::Keep {
            Reason::KeptRules
        } else if !hole.status.shadowed_by.is_empty() {
            Reason::Shadowed
        } else {
            hole.status.reason.as_deref().and_then(Reason::parse).unwrap_or(Reason::LockMissing)
        };
        let why = if hole.status.shadowed_by.is_empty() {
            hole.status.message.clone().unwrap_or_default()
        } else {
            format!("let in by {}", hole.status.shadowed_by.join(", "))
        };
        return (
            false,
            reason,
            format!(
                "{} of {} machines are not closed: {}: {why}",
                summary.not_effective, summary.targets, hole.status.name
            ),
        );
    }
    if let Some(unknown) = judged.iter().find(|one| one.effective.is_none()) {
        let reason = unknown.status.reason.as_deref().and_then(Reason::parse).unwrap_or(Reason::NotObserved);
        let why = unknown.status.message.clone().unwrap_or_else(|| "not read back yet".to_owned());
        return (false, reason, format!("{}: {why}", unknown.status.name));
    }
    (true, Reason::Configured, "every locked port is closed to everybody without a grant".to_owned())
}

/// Whether only people can mend it.
const fn for_people(reason: Reason) -> bool {
    matches!(
        reason,
        Reason::TargetsUnsupported
            | Reason::NoPriorityRoom
            | Reason::FirewallFull
            | Reason::ScopeLocked
            | Reason::NotPermitted
            | Reason::Unauthenticated
            | Reason::RefusedByPolicy
            | Reason::RefusedByCloud
            | Reason::NoTargets
    )
}
