//! Where denies of locks stood last: an old read, which does not show them, has none of them written elsewhere.

use std::collections::{BTreeMap, BTreeSet};

use crate::plan::desired::Lock;
use crate::plan::model::{Access, Observed, Rule};
use crate::plan::names::{self, Cluster, Mark};

/// As many rules as a network security group holds.
const MOST: usize = 1000;

/// Denies as they were last seen to stand, or written, by name.
#[derive(Debug, Default)]
pub(super) struct Placed(BTreeMap<String, Rule>);

impl Placed {
    /// A rule was written, or seen to stand.
    pub(super) fn stands(&mut self, cluster: &Cluster, rule: &Rule) {
        if rule.access == Access::Deny && owner(cluster, &rule.name).is_some() {
            self.0.insert(rule.name.clone(), rule.clone());
        }
    }

    /// A rule was removed by us.
    pub(super) fn removed(&mut self, name: &str) {
        self.0.remove(name);
    }

    /// The firewall was read. What no lock asks about any more is forgotten.
    pub(super) fn saw(&mut self, cluster: &Cluster, observed: &Observed, locks: &[Lock]) {
        observed.rules.iter().for_each(|rule| self.stands(cluster, rule));
        let owners: BTreeSet<String> = locks.iter().map(|lock| names::uid12(&lock.policy_uid)).collect();
        // Somebody may write any number of them, one after the other.
        let too_many = self.0.len() > MOST;
        self.0.retain(|name, _| {
            owner(cluster, name).is_some_and(|owner| owners.contains(&owner))
                && (!too_many || observed.rule(name).is_some())
        });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    pub(super) fn rules(&self) -> Vec<Rule> {
        self.0.values().cloned().collect()
    }
}

/// Whose deny is called so.
fn owner(cluster: &Cluster, name: &str) -> Option<String> {
    match names::parse_name(cluster, name)? {
        Mark::Deny { owner, .. } => Some(owner),
        Mark::Allow { .. } | Mark::Exempt { .. } => None,
    }
}
