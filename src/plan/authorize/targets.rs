//! Which machines a request names.

use std::collections::BTreeMap;

use super::{Judgement, MAX_MACHINES, PolicyView, Resolved};
use crate::api::values::ArmId;
use crate::api::{JitAccessRequestSpec, PinnedMachine, Reason, RequestTarget};
use crate::plan::model::{Machine, Unsupported};

/// The machines that a request names, by id.
pub(super) fn machines(
    spec: &JitAccessRequestSpec,
    policy: &PolicyView,
    pinned: Option<&[PinnedMachine]>,
) -> Result<BTreeMap<ArmId, Machine>, Judgement> {
    let Some(entries) = &policy.machines else {
        return Err(Judgement::Unknown(
            Reason::Progressing,
            format!("the machines of JitPolicy {} are not known yet", policy.name),
        ));
    };
    let mut chosen: BTreeMap<ArmId, Machine> = BTreeMap::new();
    let granted = |id: &ArmId| {
        pinned.is_none_or(|pinned| pinned.iter().any(|machine| machine.id.eq_ignore_ascii_case(id.as_str())))
    };
    let mut take = |id: &ArmId, machine: &Result<Machine, Unsupported>| match machine {
        _ if !granted(id) => Ok(()),
        Ok(machine) => {
            chosen.insert(id.clone(), machine.clone());
            Ok(())
        }
        Err(error) => Err(Judgement::Impossible(error.reason, format!("{id}: {error}"))),
    };
    if spec.all_targets {
        for (id, machine) in entries.values().flatten() {
            take(id, machine)?;
        }
    }
    for (index, target) in spec.targets.iter().enumerate() {
        for (id, machine) in select(index, target, policy, entries)? {
            take(id, machine)?;
        }
    }
    if chosen.is_empty() {
        return Err(Judgement::Impossible(Reason::NoTargets, "no machine is selected".into()));
    }
    if chosen.len() > MAX_MACHINES {
        return Err(Judgement::Refused(
            Reason::TooLarge,
            format!("{} machines are selected; one request may have at most {MAX_MACHINES}", chosen.len()),
        ));
    }
    Ok(chosen)
}

fn select<'a>(
    index: usize,
    target: &RequestTarget,
    policy: &PolicyView,
    entries: &'a BTreeMap<String, Vec<Resolved>>,
) -> Result<Vec<&'a Resolved>, Judgement> {
    let refused = |message: String| Err(Judgement::Refused(Reason::TargetNotAllowed, message));
    let field = format!("spec.targets[{index}]");
    let Some(found) = entries.get(&target.name) else {
        let known: Vec<&str> = entries.keys().map(String::as_str).collect();
        return refused(format!(
            "{field}.name: JitPolicy {} has no target {:?}; it has {}",
            policy.name,
            target.name,
            known.join(", ")
        ));
    };
    let wanted_id = target
        .id
        .as_ref()
        .map(|id| {
            id.parse()
                .map_err(|error| Judgement::Refused(Reason::InvalidSpec, format!("{field}.id: {error}")))
        })
        .transpose()?;
    let matching: Vec<&Resolved> = found
        .iter()
        .filter(|(id, _)| wanted_id.as_ref().is_none_or(|wanted| wanted == id))
        .filter(|(id, _)| target.machine.as_ref().is_none_or(|name| name.eq_ignore_ascii_case(id.name())))
        .collect();
    match (&target.machine, matching.len()) {
        (_, 0) if target.machine.is_some() || wanted_id.is_some() => refused(format!(
            "{field}: target {:?} of JitPolicy {} has no such machine",
            target.name, policy.name
        )),
        (Some(name), 2..) => refused(format!(
            "{field}.machine: several machines are called {name:?}: name one by its id instead"
        )),
        _ => Ok(matching),
    }
}
