//! The rules that a request would get, and the hash that an approval is an approval of.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use serde_json::json;
use sha2::{Digest, Sha256};

use super::rules::{connections, rules};
use super::{GrantPlan, Judgement, MAX_RULES, PlannedRule, PolicyView};
use crate::api::values::ArmId;
use crate::api::{JitAccessRequest, PinnedMachine, Reason, RequestedPolicy};
use crate::plan::model::Machine;
use crate::plan::names::hex;
use crate::plan::terms::{Ask, Terms};

/// The most policies that may cover one request, and addresses that one of its machines may have: what its status
/// can hold.
const MAX_POLICIES: usize = 16;
const MAX_ADDRESSES: usize = 64;

pub(super) fn plan(
    request: &JitAccessRequest,
    ask: &Ask,
    covering: &[(&PolicyView, &Terms)],
    machines: &BTreeMap<ArmId, Machine>,
) -> Result<GrantPlan, Judgement> {
    let rules = rules(request, ask, covering, machines)?;
    if rules.len() > MAX_RULES {
        return Err(Judgement::Refused(
            Reason::TooLarge,
            format!("{} rules would be needed; one request may have at most {MAX_RULES}", rules.len()),
        ));
    }
    if covering.len() > MAX_POLICIES {
        let message =
            format!("{} policies cover what is asked for; at most {MAX_POLICIES} may", covering.len());
        return Err(Judgement::Refused(Reason::TooLarge, message));
    }
    if let Some(machine) = machines.values().find(|machine| machine.addresses().count() > MAX_ADDRESSES) {
        let message = format!("{} has more than {MAX_ADDRESSES} addresses", machine.id);
        return Err(Judgement::Impossible(Reason::TooLarge, message));
    }
    let pinned: Vec<PinnedMachine> = machines.values().map(pin).collect();
    let policies: Vec<RequestedPolicy> = covering
        .iter()
        .map(|(policy, terms)| RequestedPolicy {
            name: policy.name.clone(),
            uid: policy.uid.clone(),
            generation: policy.generation,
            required: terms.required,
            approved: 0,
            approved_by: Vec::new(),
        })
        .collect();
    let hash = hash(request, ask, &policies, &pinned, &rules);
    let least =
        |of: fn(&Terms) -> Duration| covering.iter().map(|(_, terms)| of(terms)).min().unwrap_or_default();
    Ok(GrantPlan {
        connections: connections(ask, machines, &rules),
        // A firewall that leads packets on cuts them by itself.
        sessions_go_on: !covering.iter().any(|(_, terms)| terms.cut_sessions)
            && rules.iter().any(|rule| !rule.firewall.kind().translates()),
        lead: lead(covering, &rules),
        machines: pinned,
        rules,
        duration: ask.duration,
        shortened_by: None,
        hash,
        pending_timeout: least(|terms| terms.pending_timeout),
        use_within: least(|terms| terms.use_within),
        self_approval: covering
            .iter()
            .filter(|(_, terms)| terms.self_approval)
            .map(|(policy, _)| policy.uid.clone())
            .collect(),
        limits: covering
            .iter()
            .map(|(policy, terms)| (policy.uid.clone(), (terms.active_per_requester, terms.active)))
            .collect(),
        policies,
    })
}

/// The longest lead of the policies, where a firewall is on the way whose writes take minutes.
fn lead(covering: &[(&PolicyView, &Terms)], rules: &[PlannedRule]) -> Duration {
    if !rules.iter().any(|rule| rule.firewall.kind().translates()) {
        return Duration::ZERO;
    }
    covering.iter().map(|(_, terms)| terms.firewall_lead).max().unwrap_or_default()
}

/// A machine as status pins it.
#[must_use]
pub fn pin(machine: &Machine) -> PinnedMachine {
    let mut nics: Vec<String> = machine.nics.iter().map(|nic| nic.id.to_string()).collect();
    nics.sort_by_key(|id| id.to_ascii_lowercase());
    let mut addresses: Vec<IpAddr> = machine.addresses().map(|address| address.ip).collect();
    addresses.sort_unstable();
    PinnedMachine {
        id: machine.id.to_string(),
        vm_id: machine.vm_id.clone(),
        nics,
        addresses: addresses.iter().map(ToString::to_string).collect(),
    }
}

fn hash(
    request: &JitAccessRequest,
    ask: &Ask,
    policies: &[RequestedPolicy],
    machines: &[PinnedMachine],
    rules: &[PlannedRule],
) -> String {
    let mut uids: Vec<&str> = policies.iter().map(|policy| policy.uid.as_str()).collect();
    uids.sort_unstable();
    // serde_json keeps keys in order, so equal plans are equal bytes.
    let canonical = json!({
        "request": request.metadata.uid,
        "policies": uids,
        "machines": machines.iter().map(|machine| json!({
            "vmId": machine.vm_id.to_ascii_lowercase(),
            "nics": machine.nics.iter().map(|nic| nic.to_ascii_lowercase()).collect::<Vec<_>>(),
            "addresses": machine.addresses,
        })).collect::<Vec<_>>(),
        "rules": rules.iter().map(|rule| {
            let mut shown = json!({
                "firewall": rule.firewall.0.key(),
                "protocol": rule.protocol.to_string(),
                "sources": rule.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "destinations": rule.destinations.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "ports": rule.ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
            });
            if rule.translation.is_some() {
                // Not where: that port may turn out to be taken, and it is the same machine that is opened.
                shown["translated"] = true.into();
            }
            shown
        }).collect::<Vec<_>>(),
        "durationSeconds": ask.duration.as_secs(),
        "notBefore": ask.not_before.map(|at| at.to_string()),
        "notAfter": ask.not_after.map(|at| at.to_string()),
    });
    hex(&Sha256::digest(canonical.to_string().as_bytes()))
}
