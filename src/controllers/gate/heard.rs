//! Which policies have said what they want locked. One that is there and has not, after a start or because it cannot be
//! understood, is not gone: its denies are nobody's to take over.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock};

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::Store;

use super::lock;
use crate::api::JitPolicy;
use crate::plan::model::Observed;
use crate::plan::names::{self, Cluster, Mark, uid12};

#[derive(Default)]
pub(super) struct Heard {
    /// Every policy that is there.
    policies: OnceLock<Store<JitPolicy>>,
    said: Mutex<Said>,
}

/// UIDs, and since when the lease was held meanwhile. In another term, others may have changed what stands.
#[derive(Default)]
struct Said {
    term: Option<Timestamp>,
    by: BTreeSet<String>,
}

impl Heard {
    pub(super) fn know(&self, policies: Store<JitPolicy>) {
        let _ = self.policies.set(policies);
    }

    /// A policy has said it, and every gate knows. True: for the first time in this term.
    pub(super) fn note(&self, policy_uid: &str, term: Option<Timestamp>) -> bool {
        let mut said = lock(&self.said);
        if term > said.term {
            *said = Said { term, by: BTreeSet::new() };
        }
        // What was said in a former term is nobody's word any more.
        term == said.term && said.by.insert(policy_uid.to_owned())
    }

    /// By [`uid12`], the policies that are there and have not said it in this term.
    pub(super) fn unheard(&self, term: Option<Timestamp>) -> BTreeSet<String> {
        let Some(policies) = self.policies.get() else { return BTreeSet::new() };
        let said = lock(&self.said);
        let has_said = |uid: &String| term == said.term && said.by.contains(uid);
        let uids = policies.state().into_iter().filter_map(|policy| policy.uid());
        uids.filter(|uid| !has_said(uid)).map(|uid| uid12(&uid)).collect()
    }
}

/// Which of these have denies on a firewall, as it was last read; all of them where it was not.
pub(super) fn met(
    unheard: &BTreeSet<String>,
    observed: Option<&Observed>,
    cluster: &Cluster,
) -> BTreeSet<String> {
    let Some(observed) = observed else { return unheard.clone() };
    let owners = observed.rules.iter().filter_map(|rule| match names::parse(cluster, rule)? {
        Mark::Deny { owner, .. } => Some(owner),
        Mark::Allow { .. } | Mark::Exempt { .. } => None,
    });
    owners.filter(|owner| unheard.contains(owner)).collect()
}
