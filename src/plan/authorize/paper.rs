//! What can be told of a live grant without the cloud.
//!
//! A policy that is tightened has its machines read anew, and one machine that cannot be read makes all of them unknown.
//! Targets, ports, sources, duration and justification are words on both sides: where they no longer agree, the grant
//! ends, whatever the cloud says. What takes the cloud to tell (whether a machine still has the tags of a scope, which
//! operating system it has) is taken to be as it was.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::{Judgement, PolicyView, Resolved, cover, justification, sources, usable};
use crate::api::values::ArmId;
use crate::api::{JitAccessRequest, JitAccessRequestStatus, Reason};
use crate::plan::lifecycle::plus;
use crate::plan::model::{Machine, Os};
use crate::plan::terms::{Ask, Selector, Terms};

/// The machines of a live grant, by id.
type Machines = BTreeMap<ArmId, Machine>;

/// Whether a live grant is within the terms as far as that takes no cloud.
pub(super) fn judge(
    request: &JitAccessRequest,
    policies: &[PolicyView],
    now: Timestamp,
) -> Result<(), Judgement> {
    let spec = &request.spec;
    let Some(status) = request.status.as_ref().filter(|status| status.granted_at.is_some()) else {
        return Ok(());
    };
    let ask = Ask::parse(spec).map_err(|error| Judgement::Refused(error.reason, error.to_string()))?;
    let Some(named) = policies.iter().find(|policy| policy.name == spec.policy_ref.name) else {
        return Ok(());
    };
    let terms = usable(named)?;
    let machines = machines(status, policies);
    for (index, target) in spec.targets.iter().enumerate() {
        if !terms.targets.contains_key(&target.name) {
            return refused(format!(
                "spec.targets[{index}].name: JitPolicy {} has no target {:?} any more",
                named.name, target.name
            ));
        }
    }
    let asked = |name: &String| spec.all_targets || spec.targets.iter().any(|target| target.name == *name);
    for id in machines.keys() {
        let mut entries = terms.targets.iter().filter(|(name, _)| asked(name));
        if !entries.any(|(_, selector)| may_select(selector, id)) {
            return refused(format!("spec.targets: JitPolicy {} does not name {id} any more", named.name));
        }
    }
    for policy in policies {
        let is_named = policy.uid == named.uid;
        let view = on_paper(policy, is_named, status, &machines);
        if is_named || cover::locks_any(&view, &machines, &ask) {
            let terms = usable(policy)?;
            let less = cover::within(&view, terms, (is_named, true), &machines, &ask)?;
            had_its_time(status, less.as_ref(), now)?;
            justification(spec, policy, terms)?;
            sources(&ask, policy, terms)?;
        }
    }
    Ok(())
}

/// A grant is made shorter once its machines are known again; one that has had its time by then ends now.
fn had_its_time(
    status: &JitAccessRequestStatus,
    less: Option<&cover::Less>,
    now: Timestamp,
) -> Result<(), Judgement> {
    let granted = status.granted_at.as_ref().map_or(now, |at| at.0);
    match less {
        Some(less) if plus(granted, less.duration) <= now => {
            Err(Judgement::Refused(Reason::DurationTooLong, less.why.clone()))
        }
        Some(_) | None => Ok(()),
    }
}

fn refused(message: String) -> Result<(), Judgement> {
    Err(Judgement::Refused(Reason::TargetNotAllowed, message))
}

/// As they were last read under whichever policy, else as no more than their ids.
fn machines(status: &JitAccessRequestStatus, policies: &[PolicyView]) -> Machines {
    let known = |id: &ArmId| {
        let entries = policies.iter().flat_map(|policy| policy.machines.iter().chain(&policy.latest));
        let mut found = entries.flat_map(|entries| entries.values().flatten());
        found.find_map(|(other, machine)| machine.as_ref().ok().filter(|_| other == id).cloned())
    };
    let ids = status.machines.iter().filter_map(|pinned| ArmId::parse(&pinned.id).ok());
    ids.map(|id| {
        let machine = known(&id).unwrap_or_else(|| Machine {
            id: id.clone(),
            vm_id: String::new(),
            os: Os::Unknown,
            tags: BTreeMap::new(),
            nics: Vec::new(),
        });
        (id, machine)
    })
    .collect()
}

/// Whether an entry selects a machine, taking it to have the tags.
fn may_select(selector: &Selector, id: &ArmId) -> bool {
    match selector {
        Selector::Machine(machine) => machine == id,
        Selector::Scope { scope, .. } => scope.contains(id),
    }
}

/// A policy with those machines of the grant that it has, as far as that can be told.
fn on_paper(
    policy: &PolicyView,
    is_named: bool,
    status: &JitAccessRequestStatus,
    machines: &Machines,
) -> PolicyView {
    if policy.machines.is_some() {
        return policy.clone();
    }
    let covered = is_named || status.policies.iter().any(|known| known.uid == policy.uid);
    let had = |id: &ArmId| {
        let entries = policy.latest.iter().flat_map(|entries| entries.values().flatten());
        covered || entries.into_iter().any(|(other, _)| other == id)
    };
    let has = |id: &ArmId, terms: &Terms| {
        terms.targets.values().any(|selector| {
            let certain = !matches!(selector, Selector::Scope { tags, .. } if !tags.is_empty());
            may_select(selector, id) && (certain || had(id))
        })
    };
    // Without ports of its own a policy goes by the operating system.
    let told = |machine: &Machine, terms: &Terms| !terms.ports.is_empty() || machine.os != Os::Unknown;
    let own: Vec<Resolved> = machines
        .iter()
        .filter(|(id, machine)| match &policy.terms {
            Ok(terms) => has(id, terms) && told(machine, terms),
            Err(_) => had(id),
        })
        .map(|(id, machine)| (id.clone(), Ok(machine.clone())))
        .collect();
    PolicyView { machines: Some(Arc::new(BTreeMap::from([(String::new(), own)]))), ..policy.clone() }
}
