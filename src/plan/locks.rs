//! Which locks a policy wants on which firewalls, and what is released.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::authorize::Resolved;
use super::desired::{Lock, LockedMachine};
use super::model::{FirewallId, Machine, Unsupported};
use super::terms::Terms;
use crate::api::values::{ArmId, PortRange, Protocol};
use crate::api::{DeletionPolicy, Reason, TargetStatus};

/// A machine that status speaks of and the policy's entries no longer select.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departed {
    /// Its entry was taken out of the spec: unlocked.
    TakenOut,
    /// It is gone from the cloud: unlocked, because its address may be another's by now.
    Gone,
    /// It left its scope by its tags: follows `deletionPolicy`.
    LeftScope,
}

/// The locks that a policy wants, by firewall: those on the way to its machines, and those where status says
/// that it locked something before.
///
/// `departed` says of each machine in `before` that is no longer selected what became of it. `before` may name fewer machines
/// than were locked: while one that it does not name cannot be read, nothing is unlocked by not being named.
#[must_use]
pub fn wanted(
    policy_uid: &str,
    policy: &str,
    terms: &Terms,
    machines: &BTreeMap<String, Vec<Resolved>>,
    before: &[TargetStatus],
    departed: &BTreeMap<ArmId, Departed>,
) -> BTreeMap<FirewallId, Lock> {
    let retain = terms.deletion_policy == DeletionPolicy::Retain;
    let keep_others = retain || unread(machines, before);
    let empty = || Lock {
        policy_uid: policy_uid.to_owned(),
        policy: policy.to_owned(),
        existing: terms.existing,
        machines: Vec::new(),
        exempt: terms.exempt.clone(),
        release: BTreeSet::new(),
        keep_others,
        cut_sessions: terms.cut_sessions,
    };
    let mut locks: BTreeMap<FirewallId, Lock> = BTreeMap::new();
    let mut current: BTreeMap<ArmId, BTreeMap<FirewallId, Vec<IpAddr>>> = BTreeMap::new();
    for (id, machine) in machines.values().flatten() {
        let Ok(machine) = machine else { continue };
        let ports: Vec<(Protocol, PortRange)> =
            terms.ports_for(machine.os).iter().map(|port| (port.protocol, port.range)).collect();
        if ports.is_empty() {
            continue;
        }
        let behind = current.entry(id.clone()).or_default();
        if !behind.is_empty() {
            // Selected by two entries.
            continue;
        }
        for address in machine.addresses() {
            for firewall in &address.path {
                behind.entry(firewall.clone()).or_default().push(address.ip);
            }
        }
        for (firewall, addresses) in behind {
            addresses.sort_unstable();
            let lock = locks.entry(firewall.clone()).or_insert_with(empty);
            lock.machines.push(LockedMachine { addresses: addresses.clone(), ports: ports.clone() });
        }
    }
    for target in before {
        let Ok(id) = ArmId::parse(&target.id) else { continue };
        let stays = departed.get(&id) == Some(&Departed::LeftScope) && retain;
        for firewall in target.firewalls.iter().filter_map(|text| ArmId::parse(text).ok()).map(FirewallId) {
            let lock = locks.entry(firewall.clone()).or_insert_with(empty);
            let locked = current.get(&id).and_then(|behind| behind.get(&firewall));
            // A machine that cannot be read now has not departed: what stands, stands.
            let known = current.contains_key(&id) || departed.contains_key(&id);
            lock.keep_others |= !known;
            for address in target.addresses.iter().filter_map(|text| text.parse::<IpAddr>().ok()) {
                let still = locked.is_some_and(|addresses| addresses.contains(&address));
                if known && !still && !stays {
                    lock.release.insert(address);
                }
            }
        }
    }
    let twins = machines.values().flatten().filter_map(|(_, machine)| machine.as_ref().ok());
    for address in twins.flat_map(Machine::addresses).filter(|address| address.network.twin.is_some()) {
        for firewall in &address.path {
            // An exemption there would let somebody in to another machine.
            locks.entry(firewall.clone()).and_modify(|lock| lock.exempt.clear());
        }
    }
    for lock in locks.values_mut() {
        lock.machines.sort();
        for machine in &lock.machines {
            for address in &machine.addresses {
                lock.release.remove(address);
            }
        }
    }
    locks
}

/// Whether a machine that may have been locked cannot be read, and status does not say where it was.
fn unread(machines: &BTreeMap<String, Vec<Resolved>>, before: &[TargetStatus]) -> bool {
    let is_unread = |error: &Unsupported| {
        !matches!(error.reason, Reason::VirtualMachineNotFound | Reason::ClassicVirtualMachine)
    };
    // Told of since it cannot be read, and not before: then its firewalls are not told.
    let says_where = |target: &&TargetStatus| !target.firewalls.is_empty();
    let is_known = |id: &ArmId| {
        before.iter().filter(says_where).any(|target| ArmId::parse(&target.id).is_ok_and(|own| own == *id))
    };
    machines.values().flatten().any(|(id, machine)| machine.as_ref().is_err_and(is_unread) && !is_known(id))
}

/// The locks of a policy that is going and takes its locks along.
#[must_use]
pub fn unlocked(
    policy_uid: &str,
    policy: &str,
    terms: Option<&Terms>,
    firewalls: BTreeSet<FirewallId>,
) -> BTreeMap<FirewallId, Lock> {
    firewalls
        .into_iter()
        .map(|firewall| {
            let lock = Lock {
                policy_uid: policy_uid.to_owned(),
                policy: policy.to_owned(),
                existing: terms.map(|terms| terms.existing).unwrap_or_default(),
                machines: Vec::new(),
                exempt: Vec::new(),
                release: BTreeSet::new(),
                keep_others: false,
                cut_sessions: false,
            };
            (firewall, lock)
        })
        .collect()
}

/// The firewalls that a status says its policy has locked.
#[must_use]
pub fn firewalls(targets: &[TargetStatus]) -> BTreeSet<FirewallId> {
    targets
        .iter()
        .flat_map(|target| &target.firewalls)
        .filter_map(|text| ArmId::parse(text).ok())
        .map(FirewallId)
        .collect()
}

/// What became of a machine that status speaks of.
///
/// `found` is what the cloud says of it now: none where it was not asked or could not answer.
#[must_use]
pub fn departure(target: &TargetStatus, terms: &Terms, found: Option<&Resolved>) -> Option<Departed> {
    if !terms.targets.contains_key(&target.name) {
        return Some(Departed::TakenOut);
    }
    match found {
        Some((_, Err(error))) if error.reason == Reason::VirtualMachineNotFound => Some(Departed::Gone),
        // That it cannot be read now says nothing of where it is.
        Some((_, Err(error))) if error.reason != Reason::ClassicVirtualMachine => None,
        Some((id, _)) => {
            // An entry that names another machine now has taken the old one out.
            match terms.targets.get(&target.name) {
                Some(super::terms::Selector::Machine(named)) if named != id => Some(Departed::TakenOut),
                Some(super::terms::Selector::Scope { scope, .. }) if !scope.contains(id) => {
                    Some(Departed::TakenOut)
                }
                _ => Some(Departed::LeftScope),
            }
        }
        None => None,
    }
}
