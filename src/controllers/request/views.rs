//! The policies of a namespace, as requests are judged by them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::api::JitPolicy;
use crate::controllers::{Context, resolutions};
use crate::plan::authorize::{FirewallView, Judgement, PolicyView, Resolved};
use crate::plan::model::{FirewallId, Machine};
use crate::plan::names::parse_name;
use crate::plan::terms::{InvalidSpec, Terms};

/// The policies of a namespace, as last watched.
pub(super) fn cached(context: &Context, namespace: &str) -> Vec<PolicyView> {
    let mut policies = context.policies.state();
    policies.retain(|policy| policy.namespace().as_deref() == Some(namespace));
    of(context, namespace, &policies)
}

/// Policies of a namespace, with their machines as last read.
pub(super) fn of(context: &Context, namespace: &str, policies: &[Arc<JitPolicy>]) -> Vec<PolicyView> {
    policies
        .iter()
        .map(|policy| {
            let uid = policy.uid().unwrap_or_default();
            let generation = policy.metadata.generation.unwrap_or_default();
            let terms = context.terms.of(policy);
            let barred = terms
                .as_ref()
                .ok()
                .and_then(|terms| crate::controllers::policy::barred(context, namespace, terms));
            let latest = context.resolutions.latest(&uid);
            // What can no longer be understood still locks what it locked.
            let as_it_is =
                |generation_read: i64| terms.is_err() || barred.is_some() || generation_read == generation;
            let machines = latest
                .as_ref()
                .filter(|found| as_it_is(found.generation))
                .map(|found| Arc::clone(&found.machines));
            PolicyView {
                firewalls: Arc::new(
                    machines.as_deref().map(|machines| firewalls(context, machines)).unwrap_or_default(),
                ),
                name: policy.name_any(),
                generation,
                deleting: policy.metadata.deletion_timestamp.is_some(),
                machines,
                read_at: latest.as_ref().map_or(context.started, |found| found.at),
                latest: latest.map(|found| found.machines),
                barred,
                has_locked: policy.status.as_ref().is_some_and(|status| !status.targets.is_empty()),
                terms,
                uid,
            }
        })
        .collect()
}

/// What is known of the firewalls on the way to machines that lead packets on.
fn firewalls(
    context: &Context,
    machines: &BTreeMap<String, Vec<Resolved>>,
) -> BTreeMap<FirewallId, FirewallView> {
    let machines = machines.values().flatten().filter_map(|(_, machine)| machine.as_ref().ok());
    let ids: BTreeSet<FirewallId> = machines.flat_map(Machine::translating_firewalls).collect();
    ids.into_iter()
        .map(|id| {
            let report = context.gates.report(&id).unwrap_or_default();
            let problem = report.error.map(|error| (error.kind.reason(), error.to_string()));
            let rules = report.observed.iter().flat_map(|observed| &observed.rules);
            let cluster = &context.settings.cluster;
            let ours = rules.filter(|rule| parse_name(cluster, &rule.name).is_some());
            let ours = ours.map(|rule| rule.name.clone()).collect();
            let view = FirewallView {
                observed: report.observed,
                problem,
                mappings: context.gates.mappings(&id),
                ours,
            };
            (id, view)
        })
        .collect()
}

/// Why a grant has to wait: the machines of a policy that it rests on were last read too long ago. They are read again
/// at once.
pub(super) fn unread(
    context: &Context,
    judgement: &Judgement,
    policies: &[PolicyView],
    now: Timestamp,
) -> Option<String> {
    let Judgement::Allowed(plan) = judgement else { return None };
    let of_plan: Vec<&PolicyView> = policies
        .iter()
        .filter(|policy| plan.policies.iter().any(|of_plan| of_plan.uid == policy.uid))
        .collect();
    // What is read quickly is there, and waits, while the others are read.
    let took = |policy: &PolicyView| {
        let read = context.resolutions.latest(&policy.uid).filter(|read| read.at == policy.read_at);
        read.map_or(Duration::ZERO, |read| read.took)
    };
    let longest = of_plan.iter().map(|policy| took(policy)).max().unwrap_or_default();
    let bound = resolutions::good_for(context.settings.address_interval, longest);
    let is_old = |policy: &&PolicyView| now.duration_since(policy.read_at).unsigned_abs() > bound;
    let old: Vec<&PolicyView> = of_plan.into_iter().filter(is_old).collect();
    for view in &old {
        context.resolutions.want(&view.uid);
        let policies = context.policies.state();
        if let Some(policy) = policies.iter().find(|policy| policy.uid().as_ref() == Some(&view.uid)) {
            let _ = context.wake_policies.send(ObjectRef::from_obj(&**policy));
        }
    }
    old.first().map(|policy| {
        format!(
            "the machines of JitPolicy {} are read again first: they were last read at {}, and addresses change",
            policy.name, policy.read_at
        )
    })
}

/// What one generation of a policy says.
type Parsed = (i64, Result<Terms, InvalidSpec>);

/// Terms of policies, by UID, parsed once for each generation. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct ParsedTerms(Arc<Mutex<HashMap<String, Parsed>>>);

impl ParsedTerms {
    fn of(&self, policy: &JitPolicy) -> Result<Terms, InvalidSpec> {
        let (uid, generation) = (policy.uid().unwrap_or_default(), policy.metadata.generation);
        let Some(generation) = generation.filter(|_| !uid.is_empty()) else {
            return Terms::parse(&policy.spec);
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, terms)) = known.get(&uid).filter(|(known, _)| *known == generation) {
            return terms.clone();
        }
        let terms = Terms::parse(&policy.spec);
        known.insert(uid, (generation, terms.clone()));
        terms
    }

    /// Forgets a policy that is gone.
    pub(in crate::controllers) fn forget(&self, policy_uid: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(policy_uid);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_parsed_anew_for_another_generation_and_no_other() {
        let known = ParsedTerms::default();
        let mut policy = JitPolicy::default();
        policy.metadata.uid = Some("web".into());
        policy.metadata.generation = Some(1);
        policy.spec = serde_json::from_value(serde_json::json!({
            "targets": [{"name": "a", "azureScope": {"id": "/subscriptions/11111111-2222-3333-4444-555555555555"}}],
            "approval": {"required": 1},
        }))
        .unwrap();
        let required = |policy: &JitPolicy| known.of(policy).map(|terms| terms.required).unwrap();
        assert_eq!(required(&policy), 1);
        policy.spec.approval.required = 2;
        assert_eq!(required(&policy), 1, "the same generation is the same spec");
        policy.metadata.generation = Some(2);
        assert_eq!(required(&policy), 2);
        policy.spec.approval.required = 3;
        known.forget("web");
        assert_eq!(required(&policy), 3);
        // What nobody has numbered is never taken from memory.
        policy.metadata.generation = None;
        policy.spec.approval.required = 4;
        assert_eq!(required(&policy), 4);
    }
}
