//! Whether the packets of a live grant get through all the way: every firewall on the path, and the rules of a
//! Virtual Network Manager before them.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::api::JitAccessRequest;
use crate::controllers::Context;
use crate::plan::authorize::PolicyView;
use crate::plan::desired::Duty;
use crate::plan::exposure::{self, Passage, Way};
use crate::plan::lifecycle::duties;
use crate::plan::model::{FirewallId, Machine, Observed};

/// What stops packets of a grant, though its rules are in place; none where all get through or it cannot be
/// told.
pub(super) fn stopped(
    context: &Context,
    request: &JitAccessRequest,
    policies: &[PolicyView],
) -> Option<String> {
    // What is being removed has no packets to let through.
    let mut grants = duties(request);
    // What is led on comes from elsewhere, and is told by the firewall's own gate.
    grants.retain(|(firewall, grant)| {
        !matches!(grant.duty, Duty::Close { .. }) && !firewall.kind().translates()
    });
    let known = policies.iter().filter_map(|policy| policy.machines.as_ref());
    let machines =
        known.flat_map(|entries| entries.values().flatten()).filter_map(|(_, machine)| machine.as_ref().ok());
    for machine in machines {
        let pinned = request.status.iter().flat_map(|status| &status.machines);
        if !pinned.into_iter().any(|pinned| pinned.id.eq_ignore_ascii_case(machine.id.as_str())) {
            continue;
        }
        let Some(firewalls) = observed(context, machine) else { continue };
        let way = Way { machine, firewalls: &firewalls, cluster: &context.settings.cluster };
        for (_, grant) in &grants {
            match exposure::passage(way, grant) {
                Passage::Open | Passage::Unknown { .. } => {}
                Passage::Partly { by } | Passage::Stopped { by } => {
                    let by: Vec<String> = by.iter().map(ToString::to_string).collect();
                    let by =
                        if by.is_empty() { "no rule that lets them in".to_owned() } else { by.join(", ") };
                    return Some(by);
                }
            }
        }
    }
    None
}

type Observations = BTreeMap<FirewallId, Arc<Observed>>;

/// The firewalls on the way to a machine; none where one was not read yet.
fn observed(context: &Context, machine: &Machine) -> Option<Observations> {
    machine
        .firewalls()
        .into_iter()
        .map(|firewall| {
            let observed = context.gates.report(&firewall)?.observed?;
            Some((firewall, observed))
        })
        .collect()
}
