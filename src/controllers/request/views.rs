//! The policies of a namespace, as requests are judged by them.

use kube::ResourceExt;

use crate::controllers::Context;
use crate::plan::authorize::PolicyView;
use crate::plan::terms::Terms;

/// The policies of a namespace, as requests are judged by them.
#[must_use]
pub fn views(context: &Context, namespace: &str) -> Vec<PolicyView> {
    context
        .policies
        .state()
        .iter()
        .filter(|policy| policy.namespace().as_deref() == Some(namespace))
        .map(|policy| {
            let uid = policy.uid().unwrap_or_default();
            let generation = policy.metadata.generation.unwrap_or_default();
            let terms = Terms::parse(&policy.spec);
            let barred = terms
                .as_ref()
                .ok()
                .and_then(|terms| crate::controllers::policy::barred(context, namespace, terms));
            // What can no longer be understood still locks what it locked.
            let found = if terms.is_ok() && barred.is_none() {
                context.resolutions.get(&uid, generation)
            } else {
                context.resolutions.latest(&uid)
            };
            PolicyView {
                name: policy.name_any(),
                generation,
                deleting: policy.metadata.deletion_timestamp.is_some(),
                barred,
                machines: found.map(|found| found.machines),
                has_locked: policy.status.as_ref().is_some_and(|status| !status.targets.is_empty()),
                terms,
                uid,
            }
        })
        .collect()
}
