//! The rules that a request would get, and the hash that an approval is an approval of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::{GrantPlan, Judgement, MAX_RULES, PlannedRule, PolicyView};
use crate::api::values::{ArmId, PortRange, Protocol};
use crate::api::{Connection, JitAccessRequest, PinnedMachine, Reason, RequestedPolicy};
use crate::plan::model::{Address, FirewallId, Machine};
use crate::plan::names::hex;
use crate::plan::terms::{Ask, AskedPort, Terms};

/// The most addresses in one rule's destinations.
const MAX_DESTINATIONS: usize = 256;
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
    let rules = rules(ask, machines)?;
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
        connections: connections(ask, machines),
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

/// Exact cross products only: ports with the same protocol and sources fold into one rule, and every machine
/// behind a firewall gets all of them, because a request asks all its ports of all its machines.
fn rules(ask: &Ask, machines: &BTreeMap<ArmId, Machine>) -> Result<Vec<PlannedRule>, Judgement> {
    let mut behind: BTreeMap<(FirewallId, bool), BTreeSet<IpAddr>> = BTreeMap::new();
    for machine in machines.values() {
        if machine.addresses().next().is_none() {
            return Err(Judgement::Impossible(
                Reason::NoAddress,
                format!("{} has no private address", machine.id),
            ));
        }
        for address in machine.addresses() {
            if address.path.is_empty() {
                return Err(Judgement::Impossible(
                    Reason::NoFirewall,
                    format!("no network security group filters traffic to {} of {}", address.ip, machine.id),
                ));
            }
            if let Some(twin) = &address.network.twin {
                let message = format!(
                    "a rule for {} of {} could open another machine: {twin}; give each network a network security \
                     group of its own",
                    address.ip, machine.id
                );
                return Err(Judgement::Impossible(Reason::AddressNotUnique, message));
            }
            for firewall in &address.path {
                behind.entry((firewall.clone(), address.ip.is_ipv4())).or_default().insert(address.ip);
            }
        }
    }
    let mut folded: BTreeMap<(Protocol, bool, Vec<IpNet>), Vec<PortRange>> = BTreeMap::new();
    for AskedPort { protocol, range, sources } in &ask.ports {
        for v4 in [true, false] {
            let family: Vec<IpNet> =
                sources.iter().copied().filter(|net| net.addr().is_ipv4() == v4).collect();
            if !family.is_empty() {
                folded.entry((*protocol, v4, family)).or_default().push(*range);
            }
        }
    }
    let mut rules = Vec::new();
    for ((firewall, v4), destinations) in &behind {
        for ((protocol, family, sources), ports) in &folded {
            if family == v4 {
                let destinations: Vec<IpAddr> = destinations.iter().copied().collect();
                for destinations in destinations.chunks(MAX_DESTINATIONS) {
                    rules.push(PlannedRule {
                        firewall: firewall.clone(),
                        protocol: *protocol,
                        sources: sources.clone(),
                        destinations: destinations.to_vec(),
                        ports: PortRange::merged(ports.clone()),
                    });
                }
            }
        }
    }
    if rules.is_empty() {
        return Err(Judgement::Impossible(
            Reason::NoAddress,
            "no machine has an address of the family (IPv4, IPv6) of the sources".into(),
        ));
    }
    rules.sort();
    Ok(rules)
}

fn connections(ask: &Ask, machines: &BTreeMap<ArmId, Machine>) -> Vec<Connection> {
    let mut connections = Vec::new();
    for machine in machines.values() {
        let mut addresses: Vec<&Address> = machine.addresses().collect();
        addresses.sort_by_key(|address| (address.public.is_none(), address.ip));
        for port in &ask.ports {
            let reachable = addresses.iter().find(|address| {
                port.sources.iter().any(|source| source.addr().is_ipv4() == address.ip.is_ipv4())
            });
            if let Some(address) = reachable {
                connections.push(Connection {
                    target: machine.id.name().to_owned(),
                    address: address.public.unwrap_or(address.ip).to_string(),
                    port: port.range.to_string(),
                    via: "Direct".to_owned(),
                });
            }
        }
    }
    connections.truncate(64);
    connections
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
        "rules": rules.iter().map(|rule| json!({
            "firewall": rule.firewall.0.key(),
            "protocol": rule.protocol.to_string(),
            "sources": rule.sources.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "destinations": rule.destinations.iter().map(ToString::to_string).collect::<Vec<_>>(),
            "ports": rule.ports.iter().map(ToString::to_string).collect::<Vec<_>>(),
        })).collect::<Vec<_>>(),
        "durationSeconds": ask.duration.as_secs(),
        "notBefore": ask.not_before.map(|at| at.to_string()),
        "notAfter": ask.not_after.map(|at| at.to_string()),
    });
    hex(&Sha256::digest(canonical.to_string().as_bytes()))
}
