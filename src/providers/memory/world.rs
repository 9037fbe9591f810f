//! The door into the cloud in memory: what tests set up, change as somebody else, and look at.

use std::collections::BTreeMap;

use super::faults::Faults;
use super::{Entry, Memory, Stored, Write};
use crate::api::values::ArmId;
use crate::plan::model::{FirewallId, Machine, Provisioning, ResourceLock, Rule, Translating, Unsupported};
use crate::providers::FirewallLimits;

impl Memory {
    /// Adds a machine, or puts it in place of the one of its id.
    pub fn set_machine(&self, machine: Machine) {
        let (id, tags) = (machine.id.clone(), machine.tags.clone());
        self.lock().machines.insert(id, Entry { tags, machine: Ok(machine) });
    }

    /// Adds a machine that cannot be locked.
    pub fn set_unsupported(&self, id: ArmId, tags: BTreeMap<String, String>, why: Unsupported) {
        self.lock().machines.insert(id, Entry { tags, machine: Err(why) });
    }

    /// Takes a machine away.
    pub fn remove_machine(&self, id: &ArmId) {
        self.lock().machines.remove(id);
    }

    /// Adds a firewall without rules but the cloud's defaults. One that is there stays as it is.
    pub fn add_firewall(&self, firewall: FirewallId) {
        self.lock().firewalls.entry(firewall).or_insert_with(|| Stored {
            rules: Vec::new(),
            effective: Vec::new(),
            before: Vec::new(),
            provisioning: Provisioning::Succeeded,
            lock: ResourceLock::None,
            outbound_rules: 0,
            outbound_addresses: 0,
            others: Translating::default(),
            cuts_sessions: false,
            busy: false,
        });
    }

    /// Takes a firewall away, with its rules.
    pub fn remove_firewall(&self, firewall: &FirewallId) {
        self.lock().firewalls.remove(firewall);
    }

    /// Changes rules as somebody else: at once, unchecked, not in [`Memory::writes`]. A firewall that is not
    /// there is added.
    pub fn edit_rules(&self, firewall: &FirewallId, edit: impl FnOnce(&mut Vec<Rule>)) {
        self.add_firewall(firewall.clone());
        if let Some(stored) = self.lock().firewalls.get_mut(firewall) {
            stored.before = stored.rules.clone();
            edit(&mut stored.rules);
            stored.effective = stored.rules.clone();
        }
    }

    /// Changes what others have written to a firewall that translates addresses: at once, unchecked.
    pub fn edit_others(&self, firewall: &FirewallId, edit: impl FnOnce(&mut Translating)) {
        self.add_firewall(firewall.clone());
        if let Some(stored) = self.lock().firewalls.get_mut(firewall) {
            edit(&mut stored.others);
        }
    }

    /// The rules that people and programs wrote, by priority, whatever faults do to reads.
    #[must_use]
    pub fn rules(&self, firewall: &FirewallId) -> Vec<Rule> {
        let mut rules = self.lock().firewalls.get(firewall).map(|it| it.rules.clone()).unwrap_or_default();
        rules.sort_by_key(|rule| rule.priority);
        rules
    }

    /// Sets what a resource lock forbids on a firewall.
    pub fn set_lock(&self, firewall: &FirewallId, lock: ResourceLock) {
        if let Some(stored) = self.lock().firewalls.get_mut(firewall) {
            stored.lock = lock;
        }
    }

    /// Sets how far the cloud is with a firewall as a whole, until the next write ends.
    pub fn set_provisioning(&self, firewall: &FirewallId, provisioning: Provisioning) {
        if let Some(stored) = self.lock().firewalls.get_mut(firewall) {
            stored.provisioning = provisioning;
        }
    }

    /// Sets how many rules and addresses the outbound side of a firewall holds.
    pub fn set_outbound(&self, firewall: &FirewallId, rules: usize, addresses: usize) {
        if let Some(stored) = self.lock().firewalls.get_mut(firewall) {
            stored.outbound_rules = rules;
            stored.outbound_addresses = addresses;
        }
    }

    /// Sets what every firewall can hold.
    pub fn set_limits(&self, limits: FirewallLimits) {
        self.lock().limits = limits;
    }

    /// Breaks things: see [`Faults`].
    pub fn faults(&self, set: impl FnOnce(&mut Faults)) {
        set(&mut self.lock().faults);
    }

    /// Every write that reached the cloud, in order.
    #[must_use]
    pub fn writes(&self) -> Vec<Write> {
        self.lock().writes.clone()
    }

    /// How many reads of firewalls reached the cloud.
    #[must_use]
    pub fn reads(&self) -> usize {
        self.lock().reads
    }

    /// How often a write came while another of the same firewall was under way: a gate lets none through.
    #[must_use]
    pub fn overlaps(&self) -> usize {
        self.lock().overlaps
    }
}
