//! The rules that a request would get, and the hash that an approval is an approval of.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::json;
use sha2::{Digest, Sha256};

use super::dnat::{self, By};
use super::{GrantPlan, Judgement, MAX_RULES, PlannedRule, PolicyView};
use crate::api::values::{ArmId, PortRange, Protocol};
use crate::api::{Connection, FirewallSource, JitAccessRequest, PinnedMachine, Reason, RequestedPolicy};
use crate::plan::model::{Address, FirewallHop, FirewallId, Hop, Machine};
use crate::plan::names::hex;
use crate::plan::sources::AddressSet;
use crate::plan::terms::{Ask, Terms};

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

/// Rules that differ in nothing but their ports, or else in nothing but their addresses.
type Where = (FirewallId, Protocol, Vec<IpNet>);

/// Exact cross products only: ports with the same protocol and sources fold into one rule, and so do machines behind a
/// firewall that get the same ports for the same sources.
fn rules(
    request: &JitAccessRequest,
    ask: &Ask,
    covering: &[(&PolicyView, &Terms)],
    machines: &BTreeMap<ArmId, Machine>,
) -> Result<Vec<PlannedRule>, Judgement> {
    let Some((named, terms)) = covering.first() else { return Ok(Vec::new()) };
    let groups = covering.iter().any(|(_, terms)| terms.uses_groups());
    let firewalls = covering.iter().any(|(_, terms)| terms.uses_firewalls());
    let mut ports = dnat::Ports::new(request, named);
    let mut filtered: BTreeMap<(Where, IpAddr), Vec<PortRange>> = BTreeMap::new();
    let mut rules = Vec::new();
    for machine in machines.values() {
        if machine.addresses().next().is_none() {
            let message = format!("{} has no private address", machine.id);
            return Err(Judgement::Impossible(Reason::NoAddress, message));
        }
        for address in machine.addresses() {
            if firewalls {
                dnat::unread(address)?;
            }
            can_be_filtered(machine, address, ask, (groups, firewalls))?;
            for port in &ask.ports {
                let mut seen: BTreeSet<IpNet> = BTreeSet::new();
                let (mut led, mut through) = (BTreeMap::new(), BTreeMap::new());
                let family =
                    port.sources.iter().filter(|source| source.addr().is_ipv4() == address.ip.is_ipv4());
                for source in family {
                    let by = if firewalls { dnat::by(address, *source) } else { By::Direct };
                    seen.extend(dnat::seen_as(by, *source, terms.firewall_source));
                    let (hop, list) = match by {
                        By::Direct => continue,
                        By::Translated(_) if source.prefix_len() == 0 => return Err(from_anywhere(address)),
                        By::Translated(hop) => (hop, &mut led),
                        By::Routed(hop) => (hop, &mut through),
                    };
                    let entry = list.entry(hop.writes_to()).or_insert_with(|| (hop, Vec::new()));
                    entry.1.push(*source);
                }
                if groups && !seen.is_empty() {
                    let sources: Vec<IpNet> = seen.into_iter().collect();
                    for group in &address.path {
                        let at = (group.clone(), port.protocol, sources.clone());
                        filtered.entry((at, address.ip)).or_default().push(port.range);
                    }
                }
                for (firewall, (hop, sources)) in through {
                    ports.ready(&firewall)?;
                    if groups
                        && !address.path.is_empty()
                        && terms.firewall_source == FirewallSource::Translated
                    {
                        let what = (&[port.range][..], port.protocol);
                        ports.alone(hop, address.ip, what, &AddressSet::of_nets(&sources))?;
                    }
                    let at = (firewall, port.protocol, sources);
                    filtered.entry((at, address.ip)).or_default().push(port.range);
                }
                for (firewall, (hop, sources)) in led {
                    if groups && !address.path.is_empty() && terms.firewall_source != FirewallSource::Original
                    {
                        let what = (&[port.range][..], port.protocol);
                        ports.alone(hop, address.ip, what, &AddressSet::of_nets(&sources))?;
                    }
                    let from = ports.find(hop, address.ip, port.range, port.protocol)?;
                    rules.push(PlannedRule {
                        firewall,
                        protocol: port.protocol,
                        sources,
                        destinations: vec![address.ip],
                        ports: vec![port.range],
                        translation: Some(from),
                    });
                }
            }
        }
    }
    let mut folded: BTreeMap<(Where, Vec<PortRange>), Vec<IpAddr>> = BTreeMap::new();
    for ((at, address), ranges) in filtered {
        folded.entry((at, PortRange::merged(ranges))).or_default().push(address);
    }
    for (((firewall, protocol, sources), ports), destinations) in folded {
        for destinations in destinations.chunks(MAX_DESTINATIONS) {
            rules.push(PlannedRule {
                firewall: firewall.clone(),
                protocol,
                sources: sources.clone(),
                destinations: destinations.to_vec(),
                ports: ports.clone(),
                translation: None,
            });
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

/// Whether something on the way to an address can be opened for the sources, and for them alone.
fn can_be_filtered(
    machine: &Machine,
    address: &Address,
    ask: &Ask,
    (groups, firewalls): (bool, bool),
) -> Result<(), Judgement> {
    let filtered = groups && !address.path.is_empty();
    let sources = ask.ports.iter().flat_map(|port| &port.sources);
    let mut own = sources.filter(|source| source.addr().is_ipv4() == address.ip.is_ipv4());
    let direct = |source: &IpNet| !firewalls || matches!(dnat::by(address, *source), By::Direct);
    if !filtered && let Some(source) = own.find(|source| direct(source)) {
        let message = if groups {
            format!("no network security group filters traffic to {} of {}", address.ip, machine.id)
        } else {
            format!(
                "spec.enforcement.azure.via is AzureFirewall, and no Azure Firewall is on the way from {source} to {} of {}",
                address.ip, machine.id
            )
        };
        return Err(Judgement::Impossible(Reason::NoFirewall, message));
    }
    if filtered && let Some(twin) = &address.network.twin {
        let message = format!(
            "a rule for {} of {} could open another machine: {twin}; give each network a network security group of its \
             own",
            address.ip, machine.id
        );
        return Err(Judgement::Impossible(Reason::AddressNotUnique, message));
    }
    Ok(())
}

fn from_anywhere(address: &Address) -> Judgement {
    Judgement::Refused(
        Reason::SourceNotAllowed,
        format!(
            "spec.ports: an Azure Firewall leads packets on to {}, and everybody as source would have it let virtual \
             networks in to each other: name networks such as 203.0.113.0/24",
            address.ip
        ),
    )
}

fn connections(ask: &Ask, machines: &BTreeMap<ArmId, Machine>, rules: &[PlannedRule]) -> Vec<Connection> {
    let mut connections = Vec::new();
    for machine in machines.values() {
        let mut addresses: Vec<&Address> = machine.addresses().collect();
        addresses.sort_by_key(|address| (address.public.is_none(), address.ip));
        for port in &ask.ports {
            let connection = |address: String, port: String, via: String| Connection {
                target: machine.id.name().to_owned(),
                address,
                port,
                via,
            };
            let led = rules.iter().filter_map(|rule| Some((rule, rule.translation?))).find(|(rule, _)| {
                rule.ports == [port.range]
                    && rule.protocol == port.protocol
                    && addresses.iter().any(|address| rule.destinations == [address.ip])
            });
            if let Some((rule, from)) = led {
                let last = from.port.saturating_add(port.range.last() - port.range.first());
                let range = PortRange::new(from.port, last).unwrap_or(port.range);
                let hops = addresses.iter().flat_map(|address| &address.hops).filter_map(Hop::firewall);
                let through = |hop: &&FirewallHop| {
                    hop.writes_to() == rule.firewall && hop.publics.contains(&from.address)
                };
                let hop = hops.into_iter().find(through).map_or(&rule.firewall, |hop| &hop.id);
                let address = from.address.to_string();
                connections.push(connection(address, range.to_string(), hop.0.name().to_owned()));
            }
            let is_direct = |address: &&&Address| {
                let own =
                    port.sources.iter().filter(|source| source.addr().is_ipv4() == address.ip.is_ipv4());
                own.into_iter()
                    .any(|source| led.is_none() || !matches!(dnat::by(address, *source), By::Translated(_)))
            };
            if let Some(address) = addresses.iter().find(is_direct) {
                let ip = address.public.unwrap_or(address.ip).to_string();
                connections.push(connection(ip, port.range.to_string(), "Direct".to_owned()));
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
