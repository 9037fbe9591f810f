//! One machine of a policy's status.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use jiff::Timestamp;

use super::{FirewallReport, Judged, TargetState, World};
use crate::api::values::{ArmId, PortRange, Protocol};
use crate::api::{Mode, PathStatus, Reason, TargetStatus};
use crate::plan::authorize::Resolved;
use crate::plan::exposure::{self, Enforced, Lockdown, Locked, Way};
use crate::plan::foresight;
use crate::plan::model::{
    Address, FirewallHop, FirewallId, FirewallKind, Hop, Machine, Observed, Unsupported,
};

/// Every machine that the policy selects, and those that it is still unlocking.
pub(super) fn judge_all(
    world: &World<'_>,
    machines: &BTreeMap<String, Vec<Resolved>>,
    now: Timestamp,
) -> Vec<Judged> {
    let twins = twins(world, machines);
    let mut judged: Vec<Judged> = machines
        .iter()
        .flat_map(|(name, found)| found.iter().map(move |resolved| (name, resolved)))
        .map(|(name, (id, machine))| match machine {
            Ok(machine) => remember(world, judge(world, name, (machine, &twins), now), false),
            Err(error) => {
                let unread = error.reason != Reason::VirtualMachineNotFound;
                remember(world, unsupported(name, id, error), unread)
            }
        })
        .collect();
    judged.extend(unlocking(world, machines));
    judged
}

/// A port as status writes it: `22`, or `22/TCP` where it is one protocol.
pub(super) fn port(protocol: Protocol, range: PortRange) -> String {
    match protocol {
        Protocol::Any => range.to_string(),
        Protocol::Tcp | Protocol::Udp => format!("{range}/{protocol}"),
    }
}

/// What status can hold of a message: the cloud's own words may be long.
fn short(message: String) -> String {
    short_to(message, 1000)
}

fn short_to(mut message: String, most: usize) -> String {
    if message.len() > most {
        message.truncate(message.floor_char_boundary(most));
        message.push_str("...");
    }
    message
}

fn unsupported(name: &str, id: &ArmId, error: &Unsupported) -> Judged {
    Judged {
        state: TargetState::Unsupported,
        effective: None,
        foreseen: false,
        status: TargetStatus {
            name: name.to_owned(),
            id: id.to_string(),
            state: TargetState::Unsupported.as_str().to_owned(),
            reason: Some(error.reason.as_str().to_owned()),
            message: Some(short(error.message.clone())),
            ..TargetStatus::default()
        },
    }
}

fn judge(
    world: &World<'_>,
    name: &str,
    (machine, twins): (&Machine, &BTreeMap<FirewallId, String>),
    now: Timestamp,
) -> Judged {
    let ports = world.terms.ports_for(machine.os);
    let firewalls = machine.firewalls();
    let status = TargetStatus {
        name: name.to_owned(),
        id: machine.id.to_string(),
        state: String::new(),
        reason: None,
        message: None,
        os_type: machine.os.as_str().map(str::to_owned),
        addresses: machine.addresses().map(|address| address.ip.to_string()).take(64).collect(),
        firewalls: firewalls.iter().map(ToString::to_string).take(16).collect(),
        path: path(world, machine),
        locked_ports: ports.iter().map(|terms| port(terms.protocol, terms.range)).collect(),
        shadowed_by: Vec::new(),
    };
    let say = |state: TargetState, effective, reason: Reason, message: String| Judged {
        state,
        effective,
        foreseen: false,
        status: TargetStatus {
            state: state.as_str().to_owned(),
            reason: Some(reason.as_str().to_owned()),
            message: Some(short(message)),
            ..status.clone()
        },
    };
    if machine.addresses().next().is_none() {
        return say(TargetState::Unsupported, None, Reason::NoAddress, "it has no private address".into());
    }
    let served = |address: &Address| world.terms.uses_firewalls() && exposure::is_behind(address);
    if firewalls.is_empty()
        && !machine.addresses().any(served)
        && machine.hops().iter().any(|hop| matches!(hop, Hop::Hub { .. }))
    {
        let message = "no network security group filters traffic to it, and what stands in the Virtual WAN hub that its network \
             is connected to (a secured hub) is not supported: give one to its subnet or network interface";
        return say(TargetState::Unsupported, None, Reason::NotSupported, message.into());
    }
    if firewalls.is_empty() && !machine.addresses().any(served) {
        let message =
            "no network security group filters traffic to it: give one to its subnet or network interface";
        return say(TargetState::Unsupported, None, Reason::NoFirewall, message.into());
    }
    if ports.is_empty() {
        let message = "its operating system is not known: name ports in spec.ports";
        return say(TargetState::Unsupported, None, Reason::NoPorts, message.into());
    }
    let unfiltered = |address: &&Address| address.path.is_empty() || !world.terms.uses_groups();
    if let Some(open) = machine.addresses().filter(unfiltered).find(|address| !served(address)) {
        let message = if world.terms.uses_groups() {
            format!("no network security group filters traffic to {}", open.ip)
        } else {
            format!(
                "spec.enforcement.azure.via is AzureFirewall, and no Azure Firewall stands before {}, or a public address \
                 leads past it",
                open.ip
            )
        };
        return say(TargetState::NotConfigured, Some(false), Reason::NoFirewall, message);
    }
    let by_firewall_alone = machine.addresses().any(|address| unfiltered(&address));
    let firewalls = if world.terms.uses_groups() { firewalls } else { Vec::new() };
    let known: Vec<(&FirewallId, FirewallReport)> = firewalls
        .iter()
        .map(|firewall| (firewall, world.firewalls.get(firewall).cloned().unwrap_or_default()))
        .collect();
    let verdict = lockdown(world, machine, &known, now);
    let idle = match (world.terms.mode, world.dry_run) {
        (Mode::Audit, _) => Some(Reason::Audit),
        (Mode::Enforce, dry_run) => dry_run.then_some(Reason::DryRun),
    };
    let locked_ports: Vec<(Protocol, PortRange)> =
        ports.iter().map(|terms| (terms.protocol, terms.range)).collect();
    let mut judged = if let Some(reason) = idle {
        let obstacle = known.iter().find_map(|(firewall, report)| Some((firewall, report.refused.as_ref()?)));
        let message = match obstacle {
            Some((firewall, problem)) => format!("{firewall}: {}", problem.message),
            None => format!("would be locked: {}", status.locked_ports.join(", ")),
        };
        let judged = say(TargetState::NotConfigured, effective(&verdict), reason, message);
        Judged { foreseen: obstacle.is_some(), ..judged }
    } else if let Some(judged) = in_the_way(&known, &say, &verdict) {
        judged
    } else if let Some((firewall, problem)) = known.iter().find_map(|(firewall, report)| {
        let behind = machine.addresses().filter(|address| address.path.contains(*firewall));
        let behind: Vec<IpAddr> = behind.map(|address| address.ip).collect();
        Some((firewall, foresight::first_of(&report.crowded, &behind, &locked_ports)?))
    }) {
        let message = format!("locked, and read back; {firewall}: {}", problem.message);
        say(TargetState::Configured, effective(&verdict), problem.reason, message)
    } else if let Some(twin) = twin(world, machine, twins) {
        say(TargetState::Configured, effective(&verdict), Reason::AddressNotUnique, twin)
    } else {
        let message = if by_firewall_alone {
            "closed at the Azure Firewall, which leads nothing on to it without a grant; no network security group locks it, so \
             the networks around it, peered ones too, reach its ports"
        } else {
            "locked, and read back"
        };
        say(TargetState::Configured, effective(&verdict), Reason::Configured, message.into())
    };
    match verdict {
        Lockdown::Shadowed { by } | Lockdown::KeptRules { by } => {
            judged.status.shadowed_by = by.iter().map(ToString::to_string).take(16).collect();
        }
        Lockdown::Unknown { why } if judged.state == TargetState::Configured => {
            judged.status.reason = Some(Reason::NotObserved.as_str().to_owned());
            judged.status.message = Some(why);
        }
        // Where something else is in the way, that is said.
        Lockdown::Missing { on } if judged.status.reason.as_deref() == Some(Reason::Configured.as_str()) => {
            let on: Vec<&str> = on.iter().map(|firewall| firewall.0.name()).collect();
            judged.status.reason = Some(Reason::LockMissing.as_str().to_owned());
            judged.status.message = Some(short(format!("no deny of its ports stands in {}", on.join(", "))));
        }
        Lockdown::Effective | Lockdown::Missing { .. } | Lockdown::Unknown { .. } => {}
    }
    judged
}

/// The groups behind which an address is not unique, with whose that is.
fn twins(world: &World<'_>, machines: &BTreeMap<String, Vec<Resolved>>) -> BTreeMap<FirewallId, String> {
    let mut twins = BTreeMap::new();
    let machines = machines.values().flatten().filter_map(|(_, machine)| machine.as_ref().ok());
    for machine in machines.filter(|_| world.terms.uses_groups()) {
        for (address, twin) in
            machine.addresses().filter_map(|address| Some((address, address.network.twin.as_ref()?)))
        {
            for group in &address.path {
                twins.insert(group.clone(), format!("{} of {}: {twin}", address.ip, machine.id));
            }
        }
    }
    twins
}

/// What a group does not let through to a machine, because it would to another one too.
fn twin(world: &World<'_>, machine: &Machine, twins: &BTreeMap<FirewallId, String>) -> Option<String> {
    let own = machine.addresses().any(|address| address.network.twin.is_some());
    let (group, whose) = machine.firewalls().iter().find_map(|group| twins.get_key_value(group))?;
    (own || !world.terms.exempt.is_empty()).then(|| {
        format!(
            "locked, and read back; behind {} nobody of spec.enforcement.exemptSources gets in, and grants for an address that is \
             not unique are refused, because a rule could open another machine than that of {whose}; give each network a \
             network security group of its own",
            group.0.name()
        )
    })
}

/// What traffic passes on its way to a machine, from afar to near.
fn path(world: &World<'_>, machine: &Machine) -> Vec<PathStatus> {
    // The groups are the lock: whatever stands before them leaves them room in the list.
    const MOST_HOPS: usize = 4;
    let acts = world.terms.mode == Mode::Enforce && !world.dry_run;
    let hops = machine.hops().into_iter().take(MOST_HOPS).map(|hop| match hop {
        Hop::Firewall(firewall) => {
            let known = world.firewalls.get(&firewall.writes_to());
            let (usable, message) = of_firewall(world, firewall, known);
            PathStatus {
                id: firewall.id.to_string(),
                kind: FirewallKind::AzureFirewall.as_str().to_owned(),
                enforced: acts && usable,
                message: Some(short_to(message, 250)),
            }
        }
        Hop::Appliance { address, why } | Hop::Unread { address, why } => PathStatus {
            id: address.to_string(),
            kind: "VirtualAppliance".to_owned(),
            enforced: false,
            message: Some(short_to(why.clone(), 250)),
        },
        Hop::Hub { id } => PathStatus {
            id: id.to_string(),
            kind: "VirtualHub".to_owned(),
            enforced: false,
            message: Some(
                "the network is connected to a Virtual WAN hub: a firewall in there (a secured hub) is not supported, and what \
                 it lets through is not seen"
                    .to_owned(),
            ),
        },
    });
    let locks = acts && world.terms.uses_groups() && !world.terms.ports_for(machine.os).is_empty();
    let firewalls = machine.firewalls();
    let groups = firewalls.iter().map(|firewall| PathStatus {
        id: firewall.to_string(),
        kind: firewall.kind().as_str().to_owned(),
        enforced: locks && world.firewalls.get(firewall).is_some_and(|report| report.locked && !report.gone),
        message: None,
    });
    hops.chain(groups).take(16).collect()
}

/// Whether grants open a firewall, and what is to be said of it.
fn of_firewall(world: &World<'_>, firewall: &FirewallHop, known: Option<&FirewallReport>) -> (bool, String) {
    let policies: Vec<&str> = firewall.policies.iter().map(ArmId::name).collect();
    let rules = if policies.is_empty() {
        "it has rules of its own".to_owned()
    } else {
        format!("its rules are those of the policies {}", policies.join(", "))
    };
    if !world.terms.uses_firewalls() {
        return (false, format!("{rules}; not enforced (spec.enforcement.azure.via)"));
    }
    let observed = known.and_then(|known| known.observed.as_ref());
    let unfit = observed.and_then(|observed| observed.translating.as_ref()?.unfit.as_ref());
    let error = known.and_then(|known| known.error.as_ref());
    match (unfit, error, observed) {
        (Some(unfit), _, _) => (false, unfit.message.clone()),
        (None, Some(error), _) => (false, error.message.clone()),
        (None, None, None) => (false, format!("{rules}; it has not been read yet")),
        (None, None, Some(_)) if firewall.publics.is_empty() => {
            (false, format!("{rules}; it has no public IPv4 address, so it leads nothing on"))
        }
        (None, None, Some(_)) => (true, rules),
    }
}

/// What keeps a lock from standing, if something does.
fn in_the_way(
    known: &[(&FirewallId, FirewallReport)],
    say: &impl Fn(TargetState, Option<bool>, Reason, String) -> Judged,
    verdict: &Lockdown,
) -> Option<Judged> {
    for (firewall, report) in known {
        if let Some(refused) = &report.refused {
            let message = format!("{firewall}: {}", refused.message);
            return Some(say(TargetState::NotConfigured, effective(verdict), refused.reason, message));
        }
        if report.gone {
            let message = format!("{firewall} is gone; the machine is being read again");
            return Some(say(TargetState::NotConfigured, None, Reason::Progressing, message));
        }
        if !report.locked {
            let (reason, message) = report.error.as_ref().map_or_else(
                || (Reason::Progressing, format!("the lock is being written to {firewall}")),
                |error| (error.reason, error.message.clone()),
            );
            return Some(say(TargetState::NotConfigured, effective(verdict), reason, message));
        }
    }
    None
}

fn lockdown(
    world: &World<'_>,
    machine: &Machine,
    known: &[(&FirewallId, FirewallReport)],
    now: Timestamp,
) -> Lockdown {
    let read = known.iter().filter_map(|(firewall, report)| {
        report.observed.as_ref().map(|observed| ((*firewall).clone(), Arc::clone(observed)))
    });
    let hubs = machine.translating_firewalls().into_iter().filter_map(|hub| {
        let observed = world.firewalls.get(&hub)?.observed.clone()?;
        Some((hub, observed))
    });
    let firewalls: BTreeMap<FirewallId, Arc<Observed>> = read.chain(hubs).collect();
    let ports: Vec<(Protocol, PortRange)> =
        world.terms.ports_for(machine.os).iter().map(|terms| (terms.protocol, terms.range)).collect();
    let way = Way { machine, firewalls: &firewalls, cluster: world.cluster };
    let locked = Locked {
        ports: &ports,
        existing: world.terms.existing,
        exempt: &world.terms.exempt,
        grants: &world.grants,
        via: Enforced { groups: world.terms.uses_groups(), firewalls: world.terms.uses_firewalls() },
    };
    exposure::lockdown(way, locked, now)
}

const fn effective(verdict: &Lockdown) -> Option<bool> {
    match verdict {
        Lockdown::Effective => Some(true),
        Lockdown::Shadowed { .. } | Lockdown::KeptRules { .. } | Lockdown::Missing { .. } => Some(false),
        Lockdown::Unknown { .. } => None,
    }
}

/// Whether what the policy wants of a firewall is not read back yet.
fn waits(world: &World<'_>, firewall: &str) -> bool {
    let id = ArmId::parse(firewall).ok().map(FirewallId);
    id.and_then(|id| world.firewalls.get(&id)).is_some_and(|report| !report.locked && !report.gone)
}

/// Keeps in status what the machine had before: addresses and firewalls that are still to be unlocked, and those
/// of a machine that cannot be read, because what stands there stays. What status forgets is never unlocked.
fn remember(world: &World<'_>, mut judged: Judged, unread: bool) -> Judged {
    let before = world.policy.status.as_ref().map(|status| status.targets.as_slice()).unwrap_or_default();
    let now = &mut judged.status;
    for old in before.iter().filter(|old| old.id.eq_ignore_ascii_case(&now.id) && old.name == now.name) {
        let kept: Vec<&String> =
            old.firewalls.iter().filter(|firewall| unread || waits(world, firewall)).collect();
        if kept.is_empty() {
            continue;
        }
        let new = |known: &[String], text: &str| !known.iter().any(|one| one.eq_ignore_ascii_case(text));
        for address in &old.addresses {
            if now.addresses.len() < 64 && new(&now.addresses, address) {
                now.addresses.push(address.clone());
            }
        }
        for firewall in kept {
            if now.firewalls.len() < 16 && new(&now.firewalls, firewall) {
                now.firewalls.push(firewall.clone());
            }
        }
    }
    judged
}

/// Machines that status speaks of, that are no longer selected, and whose unlocking is not read back yet:
/// status may not forget them before.
fn unlocking(world: &World<'_>, machines: &BTreeMap<String, Vec<Resolved>>) -> Vec<Judged> {
    let before = world.policy.status.as_ref().map(|status| status.targets.as_slice()).unwrap_or_default();
    before
        .iter()
        .filter(|target| {
            let selected =
                machines.values().flatten().any(|(id, _)| id.as_str().eq_ignore_ascii_case(&target.id));
            let waits = target.firewalls.iter().any(|firewall| waits(world, firewall));
            !selected && waits && world.terms.mode == Mode::Enforce && !world.dry_run
        })
        .map(|target| {
            let state = TargetState::Unlocking;
            let status = TargetStatus {
                state: state.as_str().to_owned(),
                reason: Some(Reason::Progressing.as_str().to_owned()),
                message: Some(
                    "no longer selected; what is no longer to be locked is being removed".to_owned(),
                ),
                path: Vec::new(),
                ..target.clone()
            };
            Judged { state, effective: None, foreseen: false, status }
        })
        .collect()
}
