//! Whether a request is within its policies' terms, and which rules it would get.
//!
//! A request is judged under the policy that it names and under every other policy of its namespace that
//! locks a port that it asks for. The first "no" is the answer; what is merely not known yet makes it wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::model::{FirewallId, Machine, Unsupported};
use super::names::hex;
use super::terms::{Ask, AskedPort, InvalidSpec, Terms};
use crate::api::values::{ArmId, PortRange, Protocol, Span};
use crate::api::{
    Connection, JitAccessRequest, JitAccessRequestSpec, Mode, PinnedMachine, Reason, RequestTarget,
    RequestedPolicy,
};

mod cover;

/// The most machines that one request may name.
pub const MAX_MACHINES: usize = 64;
/// The most rules that one request may have.
pub const MAX_RULES: usize = 128;
/// The most addresses in one rule's destinations.
const MAX_DESTINATIONS: usize = 256;

/// A policy, as requests are judged by it.
#[derive(Clone, Debug)]
pub struct PolicyView {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// What it says, or what is wrong with it.
    pub terms: Result<Terms, InvalidSpec>,
    /// Why it may not grant anything, whatever it says: tenancy, exemptions, overlap with others.
    pub barred: Option<(Reason, String)>,
    /// The machines of each entry, with why one cannot be locked. None: not resolved yet.
    pub machines: Option<BTreeMap<String, Vec<Resolved>>>,
}

/// A machine that a policy's entry selects.
pub type Resolved = (ArmId, Result<Machine, Unsupported>);

/// The rules that a request would get, and on what they rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantPlan {
    /// The policies that cover it, the named one first.
    pub policies: Vec<RequestedPolicy>,
    /// The machines, by id.
    pub machines: Vec<PinnedMachine>,
    /// The rules, sorted.
    pub rules: Vec<PlannedRule>,
    /// What to type to connect.
    pub connections: Vec<Connection>,
    /// How long.
    pub duration: Duration,
    /// SHA-256 over all that an approval is an approval of, in hexadecimal.
    pub hash: String,
    /// How long it may wait for approvals.
    pub pending_timeout: Duration,
    /// How long its approval may lie unused.
    pub use_within: Duration,
    /// Approvals asked for: the most that any policy asks.
    pub required: i32,
    /// Live grants that one requester may hold under each policy, and altogether, by policy UID.
    pub limits: BTreeMap<String, (usize, usize)>,
}

/// A rule before it has a name, a priority and a deadline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedRule {
    /// Where.
    pub firewall: FirewallId,
    /// Protocol.
    pub protocol: Protocol,
    /// Who may connect; one family.
    pub sources: Vec<IpNet>,
    /// Addresses of the machines; the same family.
    pub destinations: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<PortRange>,
}

/// What is to be thought of a request now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is within the terms.
    Allowed(Box<GrantPlan>),
    /// It is not, and never will be: requests are immutable and a changed policy wants a new request.
    Refused(Reason, String),
    /// It could not work, for a reason that lies in the cloud and not in the policy.
    Impossible(Reason, String),
    /// Something that it stands on is missing or holds it: it waits. A live grant ends.
    Held(Reason, String),
    /// The world is not known well enough. A live grant goes on.
    Unknown(Reason, String),
}

/// Judges a request.
#[must_use]
pub fn judge(request: &JitAccessRequest, policies: &[PolicyView], now: Timestamp) -> Judgement {
    match weigh(request, policies, now) {
        Ok(plan) => Judgement::Allowed(Box::new(plan)),
        Err(no) => no,
    }
}

fn weigh(
    request: &JitAccessRequest,
    policies: &[PolicyView],
    now: Timestamp,
) -> Result<GrantPlan, Judgement> {
    let spec = &request.spec;
    let ask = Ask::parse(spec).map_err(|error| Judgement::Refused(error.reason, error.to_string()))?;
    let name = &spec.policy_ref.name;
    let Some(named) = policies.iter().find(|policy| &policy.name == name) else {
        return Err(Judgement::Held(
            Reason::PolicyNotFound,
            format!(
                "spec.policyRef: there is no JitPolicy {name:?} in this namespace; the request waits for it"
            ),
        ));
    };
    let terms = usable(named)?;
    requester(spec, &ask, terms, now)?;
    let machines = machines(spec, named)?;
    let mut covering: Vec<(&PolicyView, &Terms)> = vec![(named, terms)];
    for policy in policies.iter().filter(|policy| policy.uid != named.uid) {
        if policy.machines.is_none() && !policy.deleting && policy.barred.is_none() && policy.terms.is_ok() {
            return Err(Judgement::Unknown(
                Reason::Progressing,
                format!(
                    "the machines of JitPolicy {} are not known yet, and it may cover what is asked for",
                    policy.name
                ),
            ));
        }
        if cover::locks_any(policy, &machines, &ask) {
            covering.push((policy, usable(policy)?));
        }
    }
    covering[1..].sort_by(|a, b| a.0.name.cmp(&b.0.name));
    for (policy, terms) in &covering {
        cover::within(policy, terms, policy.uid == named.uid, &machines, &ask)?;
        justification(spec, policy, terms)?;
        sources(&ask, policy, terms)?;
    }
    plan(request, &ask, &covering, &machines)
}

/// The terms of a policy that may grant something now.
fn usable(policy: &PolicyView) -> Result<&Terms, Judgement> {
    let held = |reason, message: String| Err(Judgement::Held(reason, message));
    let name = &policy.name;
    if policy.deleting {
        return held(Reason::PolicyDeleted, format!("JitPolicy {name} is being deleted"));
    }
    let terms = match &policy.terms {
        Ok(terms) => terms,
        Err(error) => return held(error.reason, format!("JitPolicy {name}: {error}")),
    };
    match &policy.barred {
        // A trial run changes nothing, so it ends nothing either.
        Some((Reason::DryRun, message)) => return Err(Judgement::Unknown(Reason::DryRun, message.clone())),
        Some((reason, message)) => return held(*reason, format!("JitPolicy {name}: {message}")),
        None => {}
    }
    if terms.suspend {
        return held(Reason::Suspended, format!("JitPolicy {name} is suspended (spec.suspend)"));
    }
    if terms.mode == Mode::Audit {
        return held(
            Reason::Audit,
            format!("JitPolicy {name} is in mode Audit and grants nothing (spec.mode)"),
        );
    }
    Ok(terms)
}

fn requester(spec: &JitAccessRequestSpec, ask: &Ask, terms: &Terms, now: Timestamp) -> Result<(), Judgement> {
    let refused = |reason, message: String| Err(Judgement::Refused(reason, message));
    let Some(requester) = spec.requester.as_ref().filter(|user| !user.username.is_empty()) else {
        return refused(
            Reason::RequesterNotAllowed,
            "spec.requester is missing: admission did not say who asks, so nothing can be granted".into(),
        );
    };
    let delegated = spec.on_behalf_of.is_some() || requester.username.starts_with("system:serviceaccount:");
    let Some(horizon) = now.checked_add(terms.horizon).ok() else {
        return Ok(());
    };
    match ask.not_after {
        None if delegated => {
            return refused(
                Reason::RequesterNotAllowed,
                "spec.notAfter is required when a service account asks or a request is on another's behalf, so that \
                 applying it again later opens nothing"
                    .into(),
            );
        }
        Some(end) if delegated && end > horizon => {
            return refused(
                Reason::TooLarge,
                format!("spec.notAfter may lie at most {} ahead", Span::of(terms.horizon)),
            );
        }
        _ => {}
    }
    if ask.not_before.is_some_and(|start| start > horizon) {
        return refused(
            Reason::TooLarge,
            format!("spec.notBefore may lie at most {} ahead", Span::of(terms.horizon)),
        );
    }
    Ok(())
}

/// The machines that a request names, by id.
fn machines(spec: &JitAccessRequestSpec, policy: &PolicyView) -> Result<BTreeMap<ArmId, Machine>, Judgement> {
    let Some(entries) = &policy.machines else {
        return Err(Judgement::Unknown(
            Reason::Progressing,
            format!("the machines of JitPolicy {} are not known yet", policy.name),
        ));
    };
    let mut chosen: BTreeMap<ArmId, Machine> = BTreeMap::new();
    let mut take = |id: &ArmId, machine: &Result<Machine, Unsupported>| match machine {
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

fn justification(spec: &JitAccessRequestSpec, policy: &PolicyView, terms: &Terms) -> Result<(), Judgement> {
    let text = spec.justification.as_deref().unwrap_or_default().trim();
    if text.is_empty() {
        return if terms.justification_required {
            Err(Judgement::Refused(
                Reason::JustificationRequired,
                format!("spec.justification is required by JitPolicy {}", policy.name),
            ))
        } else {
            Ok(())
        };
    }
    match &terms.justification {
        Some(pattern) if !pattern.is_match(text) => Err(Judgement::Refused(
            Reason::JustificationRequired,
            format!(
                "spec.justification must match {:?}, as JitPolicy {} asks",
                pattern.as_str(),
                policy.name
            ),
        )),
        _ => Ok(()),
    }
}

fn sources(ask: &Ask, policy: &PolicyView, terms: &Terms) -> Result<(), Judgement> {
    let distinct: BTreeSet<&IpNet> = ask.ports.iter().flat_map(|port| &port.sources).collect();
    if distinct.len() > terms.sources_per_request {
        return Err(Judgement::Refused(
            Reason::TooLarge,
            format!(
                "{} sources are named; JitPolicy {} allows {} in one request (spec.limits.sourcesPerRequest)",
                distinct.len(),
                policy.name,
                terms.sources_per_request
            ),
        ));
    }
    Ok(())
}

fn plan(
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
    let pinned: Vec<PinnedMachine> = machines.values().map(pin).collect();
    let policies: Vec<RequestedPolicy> = covering
        .iter()
        .map(|(policy, terms)| RequestedPolicy {
            name: policy.name.clone(),
            uid: policy.uid.clone(),
            generation: policy.generation,
            required: terms.required,
            approved: 0,
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
        hash,
        pending_timeout: least(|terms| terms.pending_timeout),
        use_within: least(|terms| terms.use_within),
        required: covering.iter().map(|(_, terms)| terms.required).max().unwrap_or_default(),
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
        let mut addresses: Vec<&super::model::Address> = machine.addresses().collect();
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
