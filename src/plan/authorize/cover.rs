//! Whether a policy locks what is asked for, and whether its terms allow it.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;

use super::{Judgement, PolicyView};
use crate::api::values::{ArmId, PortRange, Span};
use crate::api::{Mode, Reason};
use crate::plan::model::Machine;
use crate::plan::terms::{Ask, AskedPort, PortTerms, Terms};

/// Whether a policy, other than the one that is named, locks some port that is asked for. A policy that
/// cannot be understood locks whatever its machines are: in doubt its terms have to be met.
pub(super) fn locks_any(policy: &PolicyView, machines: &BTreeMap<ArmId, Machine>, ask: &Ask) -> bool {
    let Some(entries) = &policy.machines else {
        return false;
    };
    let shared = entries.values().flatten().filter(|(id, _)| machines.contains_key(id));
    match &policy.terms {
        Err(_) => shared.count() > 0,
        Ok(terms) if policy.deleting || terms.mode == Mode::Audit => false,
        Ok(terms) => shared.filter_map(|(id, _)| machines.get(id)).any(|machine| {
            terms.ports_for(machine.os).iter().any(|port| ask.ports.iter().any(|asked| meets(port, asked)))
        }),
    }
}

/// Whether a policy, other than the one that is named, may turn out to lock some port that is asked for once its machines
/// are known: as far as its entries and ports say. One that cannot be understood may lock anything.
pub(super) fn may_lock(policy: &PolicyView, machines: &BTreeMap<ArmId, Machine>, ask: &Ask) -> bool {
    let Ok(terms) = &policy.terms else { return policy.has_locked };
    // What it is barred from it will not read, but what it locked before may be what is asked for.
    let locks = terms.mode != Mode::Audit && (policy.barred.is_none() || policy.has_locked);
    locks
        && machines.values().any(|machine| {
            terms.targets.values().any(|selector| selector.may_select(&machine.id))
                && terms
                    .ports_for(machine.os)
                    .iter()
                    .any(|port| ask.ports.iter().any(|asked| meets(port, asked)))
        })
}

fn meets(port: &PortTerms, asked: &AskedPort) -> bool {
    port.protocol.intersects(asked.protocol) && port.range.intersects(asked.range)
}

/// How long a policy allows what is asked for, where that is less than what is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Less {
    /// How long.
    pub(super) duration: Duration,
    /// Who says so, and for which port.
    pub(super) why: String,
}

/// Whether all that is asked for is within a policy's terms. Only the policy that is named has to have every
/// port; another has to agree to those that it locks.
///
/// A duration that is longer than a policy allows is refused. What is granted already goes on for as long as the
/// policy allows by now: so much is the answer.
pub(super) fn within(
    policy: &PolicyView,
    terms: &Terms,
    (named, granted): (bool, bool),
    machines: &BTreeMap<ArmId, Machine>,
    ask: &Ask,
) -> Result<Option<Less>, Judgement> {
    let mut least: Option<Less> = None;
    let selected: Vec<&Machine> = match &policy.machines {
        Some(entries) => machines
            .values()
            .filter(|machine| entries.values().flatten().any(|(id, _)| *id == machine.id))
            .collect(),
        None => Vec::new(),
    };
    for machine in selected {
        let ports = terms.ports_for(machine.os);
        for (index, asked) in ask.ports.iter().enumerate() {
            let field = format!("spec.ports[{index}]");
            if named {
                offered(policy, &ports, asked, machine, &field)?;
            }
            for port in ports.iter().filter(|port| meets(port, asked)) {
                source(policy, port, asked, &field)?;
                if ask.duration <= port.max_duration {
                    continue;
                }
                let most = Span::of(port.max_duration);
                if !granted {
                    let message = format!(
                        "spec.duration: {} is longer than the {most} that JitPolicy {} allows for port {}",
                        Span::of(ask.duration),
                        policy.name,
                        port.range
                    );
                    return Err(Judgement::Refused(Reason::DurationTooLong, message));
                }
                if least.as_ref().is_none_or(|least| port.max_duration < least.duration) {
                    let why = format!(
                        "JitPolicy {} (generation {}) allows {most} for port {}",
                        policy.name, policy.generation, port.range
                    );
                    least = Some(Less { duration: port.max_duration, why });
                }
            }
        }
    }
    Ok(least)
}

/// Whether a policy has all of a range, whole or in pieces.
fn offered(
    policy: &PolicyView,
    ports: &[PortTerms],
    asked: &AskedPort,
    machine: &Machine,
    field: &str,
) -> Result<(), Judgement> {
    let pieces: Vec<PortRange> =
        ports.iter().filter(|port| port.protocol.contains(asked.protocol)).map(|port| port.range).collect();
    if PortRange::merged(pieces).iter().any(|whole| whole.contains(asked.range)) {
        return Ok(());
    }
    let known: Vec<String> = ports.iter().map(|port| format!("{}/{}", port.range, port.protocol)).collect();
    let known = if known.is_empty() {
        "none (its operating system is not known, so name ports in the policy)".to_owned()
    } else {
        known.join(", ")
    };
    Err(Judgement::Refused(
        Reason::PortNotAllowed,
        format!(
            "{field}: port {}/{} is not among those of JitPolicy {} for {}: {known}",
            asked.range,
            asked.protocol,
            policy.name,
            machine.id.name()
        ),
    ))
}

fn source(policy: &PolicyView, port: &PortTerms, asked: &AskedPort, field: &str) -> Result<(), Judgement> {
    // Both lists are the fewest networks that cover what they cover, so a network of the one lies within a
    // network of the other or reaches outside.
    let within = |source: &IpNet| port.allowed.iter().any(|allowed| allowed.contains(source));
    match asked.sources.iter().find(|source| !within(source)) {
        None => Ok(()),
        Some(source) => {
            let allowed: Vec<String> = port.allowed.iter().map(ToString::to_string).collect();
            Err(Judgement::Refused(
                Reason::SourceNotAllowed,
                format!(
                    "{field}.sources: {source} is not within the sources that JitPolicy {} allows for port {}: {}",
                    policy.name,
                    port.range,
                    allowed.join(", ")
                ),
            ))
        }
    }
}
