//! The reference: a cloud in memory that holds rules to what Azure holds them to.
//!
//! It has no network and no threads of its own, so that tests with a paused clock run years in milliseconds.
//! As on Azure, a write goes on when its caller is gone, a read shows the goal of a write that is under way,
//! and a second write meanwhile is refused. [`faults`] breaks it on demand, [`packet`] says what it lets in.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use tokio::sync::oneshot;

use super::{Change, Cloud, CloudError, CloudErrorKind, Firewall, FirewallLimits, Inventory, Written};
use crate::api::Reason;
use crate::api::values::ArmId;
use crate::clock::Clock;
use crate::plan::model::{
    Access, FirewallId, Machine, Observed, Peer, Provisioning, ResourceLock, Rule, RuleProtocol, Translating,
    Unsupported,
};

mod dnat;
pub mod faults;
pub mod packet;
mod validate;
mod world;

use faults::{Faults, WriteFault};

/// A cloud in memory. Cheap to clone; clones are the same cloud.
#[derive(Clone)]
pub struct Memory {
    state: Arc<Mutex<State>>,
    clock: Clock,
}

impl std::fmt::Debug for Memory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Memory")
    }
}

struct State {
    machines: BTreeMap<ArmId, Entry>,
    firewalls: BTreeMap<FirewallId, Stored>,
    faults: Faults,
    limits: FirewallLimits,
    writes: Vec<Write>,
    reads: usize,
    overlaps: usize,
}

struct Entry {
    tags: BTreeMap<String, String>,
    machine: Result<Machine, Unsupported>,
}

/// A firewall as stored.
#[derive(Clone)]
struct Stored {
    /// What a read shows: the goal.
    rules: Vec<Rule>,
    /// What filters packets.
    effective: Vec<Rule>,
    /// What a stale read shows: the goal before the last change.
    before: Vec<Rule>,
    provisioning: Provisioning,
    lock: ResourceLock,
    outbound_rules: usize,
    outbound_addresses: usize,
    /// What others have written, where it translates addresses.
    others: Translating,
    cuts_sessions: bool,
    busy: bool,
}

/// A write that reached the cloud.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// When it came in, by the clock of the cloud.
    pub at: Timestamp,
    /// Which firewall.
    pub firewall: FirewallId,
    /// The rule's name.
    pub rule: String,
    /// What was to be written, in full.
    pub change: Change,
    /// Whether the cloud took it. A write that was taken may still be reported as failed.
    pub accepted: bool,
}

fn describe(changes: &[Change], firewall: &FirewallId) -> String {
    let one = |change: &Change| match change {
        Change::Put(rule) => format!("write rule {}", rule.name),
        Change::Remove(name) | Change::Unlock(name) => format!("remove rule {name}"),
        Change::CutSessions => "set flushConnection".to_owned(),
    };
    format!("{} of {}", changes.iter().map(one).collect::<Vec<_>>().join(", "), firewall.0.name())
}

impl Memory {
    /// An empty cloud that tells the time by `clock`, takes no time to answer and has Azure's limits.
    #[must_use]
    pub fn new(clock: Clock) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                machines: BTreeMap::new(),
                firewalls: BTreeMap::new(),
                faults: Faults::default(),
                limits: FirewallLimits { rules: 1000, addresses: 4000, name: 80, description: 140 },
                writes: Vec::new(),
                reads: 0,
                overlaps: 0,
            })),
            clock,
        }
    }

    /// The cloud behind the traits.
    #[must_use]
    pub fn cloud(&self) -> Cloud {
        Cloud { inventory: Arc::new(self.clone()), firewall: Arc::new(self.clone()) }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A test that panicked while it held the lock has failed already.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One write, of all `changes`.
    async fn write_once(
        &self,
        firewall: &FirewallId,
        changes: Vec<Change>,
        patience: Duration,
    ) -> Result<Written, CloudError> {
        let operation = describe(&changes, firewall);
        let error = |kind, message: &str| CloudError {
            kind,
            operation: operation.clone(),
            message: message.to_owned(),
            code: None,
            retry_after: None,
            request_id: None,
        };
        let (end, ended) = oneshot::channel();
        {
            let mut state = self.lock();
            let fault = state.faults.next_write();
            let taken = match fault {
                Some(WriteFault::Refused(kind)) => Err(error(kind, "a fault refused it")),
                Some(WriteFault::RequestLost) => Ok(false),
                Some(WriteFault::AnswerLost | WriteFault::Late(_)) | None => {
                    state.accept(firewall, &changes).map_err(|(kind, message)| error(kind, &message))
                }
            };
            let accepted = matches!(taken, Ok(true)) && !matches!(fault, Some(WriteFault::RequestLost));
            let at = self.clock.now();
            state.writes.extend(changes.iter().map(|change| Write {
                at,
                firewall: firewall.clone(),
                rule: change.rule().to_owned(),
                change: change.clone(),
                accepted,
            }));
            if matches!(fault, Some(WriteFault::RequestLost)) {
                // The caller hears nothing until its patience is at an end.
            } else if !taken? {
                return Ok(Written::default());
            } else {
                let late = if let Some(WriteFault::Late(late)) = fault { Some(late) } else { None };
                if late.is_none() {
                    state.show_goal(firewall, &changes);
                }
                let time = late.unwrap_or(state.faults.write_time);
                let answer = fault.is_none();
                let cloud = self.clone();
                let firewall = firewall.clone();
                // Spawned: a write that was taken goes on when whoever asked for it is gone.
                tokio::spawn(async move {
                    if !time.is_zero() {
                        tokio::time::sleep(time).await;
                    }
                    cloud.lock().commit(&firewall, &changes);
                    if answer {
                        let _ = end.send(());
                    } else {
                        std::future::pending::<()>().await;
                        drop(end);
                    }
                });
            }
        }
        match tokio::time::timeout(patience, ended).await {
            Ok(Ok(())) => Ok(Written::default()),
            Ok(Err(_)) | Err(_) => Err(error(CloudErrorKind::Unanswered, "no answer in time")),
        }
    }
}

impl State {
    /// Judges a write as the cloud does before it takes it. False: there is nothing to do.
    fn accept(
        &mut self,
        firewall: &FirewallId,
        changes: &[Change],
    ) -> Result<bool, (CloudErrorKind, String)> {
        let Some(stored) = self.firewalls.get_mut(firewall) else {
            return match changes.iter().all(|change| change.is_removal()) {
                false => Err((CloudErrorKind::NotFound, "the firewall is not there".into())),
                true => Ok(false),
            };
        };
        let whole = firewall.kind().translates();
        let removes = changes.iter().any(|change| change.is_removal());
        let locked = || Err((CloudErrorKind::ScopeLocked, "a resource lock forbids it".to_owned()));
        match stored.lock {
            ResourceLock::ReadOnly => return locked(),
            // Of a firewall that is written whole, no rule is a resource of its own.
            ResourceLock::CannotDelete if removes && !whole => return locked(),
            ResourceLock::CannotDelete | ResourceLock::None => {}
        }
        if stored.busy {
            self.overlaps += 1;
            return Err((CloudErrorKind::Retryable, "another operation is under way".into()));
        }
        let mut rules = stored.rules.clone();
        let mut differs = whole;
        for change in changes {
            match change {
                Change::Put(rule) => {
                    let outbound = (stored.outbound_rules, stored.outbound_addresses);
                    validate::rule(rule, &rules, outbound, self.limits, whole)?;
                    differs = true;
                }
                Change::CutSessions => differs |= !stored.cuts_sessions,
                Change::Remove(name) | Change::Unlock(name) => {
                    differs |= rules.iter().any(|rule| rule.name.eq_ignore_ascii_case(name));
                }
            }
            apply(&mut rules, change, Provisioning::Updating);
        }
        stored.busy |= differs;
        Ok(differs)
    }

    /// What a read shows from now on.
    fn show_goal(&mut self, firewall: &FirewallId, changes: &[Change]) {
        if let Some(stored) = self.firewalls.get_mut(firewall) {
            stored.before = stored.rules.clone();
            stored.provisioning = Provisioning::Updating;
            for change in changes {
                apply(&mut stored.rules, change, Provisioning::Updating);
            }
        }
    }

    /// The write has ended: it filters packets.
    fn commit(&mut self, firewall: &FirewallId, changes: &[Change]) {
        if let Some(stored) = self.firewalls.get_mut(firewall) {
            for change in changes {
                apply(&mut stored.rules, change, Provisioning::Succeeded);
                stored.cuts_sessions |= *change == Change::CutSessions;
            }
            stored.effective = stored.rules.clone();
            stored.provisioning = Provisioning::Succeeded;
            stored.busy = false;
        }
    }

    fn observed(&self, firewall: &FirewallId, stale: bool, at: Timestamp) -> Option<Observed> {
        let stored = self.firewalls.get(firewall)?;
        let mut rules = if stale { stored.before.clone() } else { stored.rules.clone() };
        if !firewall.kind().translates() {
            rules.extend(default_rules());
        }
        rules.sort_by_key(|rule| rule.priority);
        if firewall.kind().translates() {
            rules.sort_by_key(|rule| rule.name.clone());
        }
        let translating = firewall.kind().translates().then(|| dnat::standing(&rules, &stored.others));
        Some(Observed {
            firewall: firewall.clone(),
            at,
            provisioning: if stale { Provisioning::Succeeded } else { stored.provisioning },
            rules,
            outbound_rules: stored.outbound_rules,
            outbound_addresses: stored.outbound_addresses,
            lock: stored.lock,
            cuts_sessions: (!firewall.kind().translates()).then_some(stored.cuts_sessions),
            translating,
        })
    }
}

fn apply(rules: &mut Vec<Rule>, change: &Change, provisioning: Provisioning) {
    if *change == Change::CutSessions {
        return;
    }
    rules.retain(|rule| !rule.name.eq_ignore_ascii_case(change.rule()));
    if let Change::Put(rule) = change {
        rules.push(Rule { provisioning, ..rule.clone() });
    }
}

/// The inbound rules that every network security group has.
#[must_use]
pub fn default_rules() -> Vec<Rule> {
    let tag = |name: &str| Peer::Tag(name.to_owned());
    let rule = |name: &str, priority, access, source, destination| Rule {
        name: name.to_owned(),
        priority,
        access,
        protocol: RuleProtocol::Transport(crate::api::values::Protocol::Any),
        sources: vec![source],
        source_ports: vec![crate::api::values::PortRange::ALL],
        destinations: vec![destination],
        ports: vec![crate::api::values::PortRange::ALL],
        translation: None,
        description: String::new(),
        provisioning: Provisioning::Succeeded,
    };
    vec![
        rule("AllowVnetInBound", 65000, Access::Allow, tag("VirtualNetwork"), tag("VirtualNetwork")),
        rule("AllowAzureLoadBalancerInBound", 65001, Access::Allow, tag("AzureLoadBalancer"), Peer::Any),
        rule("DenyAllInBound", 65500, Access::Deny, Peer::Any, Peer::Any),
    ]
}

#[async_trait]
impl Firewall for Memory {
    async fn observe(&self, firewall: &FirewallId) -> Result<Observed, CloudError> {
        let error = |kind, message: &str| CloudError {
            kind,
            operation: format!("read {}", firewall.0.name()),
            message: message.to_owned(),
            code: None,
            retry_after: None,
            request_id: None,
        };
        let at = self.clock.now();
        let time = self.lock().faults.read_time;
        if !time.is_zero() {
            tokio::time::sleep(time).await;
        }
        let mut state = self.lock();
        state.reads += 1;
        if let Some(kind) = state.faults.next_read() {
            return Err(error(kind, "a fault refused it"));
        }
        let stale = state.faults.next_is_stale();
        state
            .observed(firewall, stale, at)
            .ok_or_else(|| error(CloudErrorKind::NotFound, "the firewall is not there"))
    }

    async fn write(
        &self,
        firewall: &FirewallId,
        changes: &[Change],
        patience: Duration,
    ) -> Result<Written, CloudError> {
        if firewall.kind().translates() {
            return self.write_once(firewall, changes.to_vec(), patience).await;
        }
        let mut written = Written::default();
        for change in changes {
            written = self.write_once(firewall, vec![change.clone()], patience).await?;
        }
        Ok(written)
    }

    fn limits(&self, _: &FirewallId) -> FirewallLimits {
        self.lock().limits
    }
}

#[async_trait]
impl Inventory for Memory {
    async fn machine(&self, id: &ArmId) -> Result<Result<Machine, Unsupported>, CloudError> {
        let state = self.lock();
        state.faults.inventory(&format!("read machine {}", id.name()))?;
        Ok(match state.machines.get(id) {
            Some(entry) => entry.machine.clone(),
            None => Err(Unsupported {
                reason: Reason::VirtualMachineNotFound,
                message: format!("machine {id} does not exist"),
            }),
        })
    }

    async fn machines(
        &self,
        scope: &ArmId,
        tags: &BTreeMap<String, String>,
    ) -> Result<Vec<(ArmId, Result<Machine, Unsupported>)>, CloudError> {
        let state = self.lock();
        state.faults.inventory(&format!("list machines of {scope}"))?;
        Ok(state
            .machines
            .iter()
            .filter(|(id, entry)| scope.contains(id) && super::has_tags(&entry.tags, tags))
            .map(|(id, entry)| (id.clone(), entry.machine.clone()))
            .collect())
    }

    async fn firewalls(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
        let at = self.clock.now();
        let mut state = self.lock();
        state.faults.inventory(&format!("list firewalls of {scope}"))?;
        let ids: Vec<FirewallId> =
            state.firewalls.keys().filter(|firewall| scope.contains(&firewall.0)).cloned().collect();
        let mut all = VecDeque::with_capacity(ids.len());
        for id in ids {
            let stale = state.faults.next_is_stale();
            all.extend(state.observed(&id, stale, at));
        }
        Ok(all.into())
    }

    fn clock_ahead(&self) -> Option<jiff::SignedDuration> {
        self.lock().faults.clock_ahead
    }
}
