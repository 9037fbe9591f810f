//! Which machines a policy selects now, read from the cloud no more often than needed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{self, StreamExt, TryStreamExt};
use kube::ResourceExt;
use tokio::time::Instant;

use crate::api::values::ArmId;
use crate::api::{JitPolicy, TargetStatus};
use crate::controllers::Context;
use crate::controllers::resolutions::{Resolution, Resolutions};
use crate::plan::authorize::Resolved;
use crate::plan::locks::{Departed, departure};
use crate::plan::terms::{Selector, Terms};
use crate::providers::{Cloud, CloudError, Inventory};

/// Entries of one policy that are read at once.
const AT_ONCE: usize = 8;

/// What is known of a policy's machines.
#[derive(Debug, Default)]
pub struct Machines {
    /// The last read that succeeded for this generation, this one or an earlier one.
    pub resolution: Option<Resolution>,
    /// Why this read failed.
    pub problem: Option<CloudError>,
    /// Whether this read found something else than the one before.
    pub changed: bool,
    /// What became of machines that status speaks of and that are no longer selected.
    pub departed: BTreeMap<ArmId, Departed>,
}

impl Resolutions {
    /// Reads the machines of a policy, unless they were read for this generation about an interval ago or less.
    pub async fn machines(
        &self,
        policy: &JitPolicy,
        context: &Context,
        terms: &Terms,
        cloud: &Cloud,
        interval: Duration,
    ) -> Machines {
        let uid = policy.uid().unwrap_or_default();
        let generation = policy.metadata.generation.unwrap_or_default();
        let now = context.deadlines.now();
        let known = self.get(&uid, generation);
        // A reconcile that a gate's news brought about needs no new read of the machines; one that the interval
        // brought about may come a little early.
        let fresh = interval.mul_f64(0.9);
        let mut found = Machines::default();
        let recent = |resolution: &&Resolution| {
            let age = now.duration_since(resolution.at);
            !age.is_negative() && age.unsigned_abs() < fresh
        };
        let resolution = match known.as_ref().filter(recent) {
            Some(recent) => Some(recent.clone()),
            None => {
                let begun = Instant::now();
                match select(terms, cloud).await {
                    Ok(machines) => {
                        let (machines, took) = (Arc::new(machines), begun.elapsed());
                        let resolution = Resolution { machines, generation, at: now, took };
                        found.changed = self.put(&uid, resolution.clone());
                        Some(resolution)
                    }
                    Err(error) => {
                        found.problem = Some(error);
                        known
                    }
                }
            }
        };
        if let Some(resolution) = &resolution {
            let before = policy.status.as_ref().map(|status| status.targets.as_slice()).unwrap_or_default();
            match departed(terms, cloud, &resolution.machines, before).await {
                Ok(departed) => found.departed = departed,
                Err(error) => found.problem = Some(error),
            }
        }
        found.resolution = resolution;
        found
    }
}

async fn select(terms: &Terms, cloud: &Cloud) -> Result<BTreeMap<String, Vec<Resolved>>, CloudError> {
    let mut reads = Vec::new();
    for (name, selector) in terms.targets.clone() {
        reads.push(entry(name, selector, Arc::clone(&cloud.inventory)));
    }
    stream::iter(reads).buffer_unordered(AT_ONCE).try_collect().await
}

async fn entry(
    name: String,
    selector: Selector,
    inventory: Arc<dyn Inventory>,
) -> Result<(String, Vec<Resolved>), CloudError> {
    let machines = match selector {
        Selector::Machine(id) => {
            let machine = inventory.machine(&id).await?;
            vec![(id, machine)]
        }
        Selector::Scope { scope, tags } => inventory.machines(&scope, &tags).await?,
    };
    Ok((name, machines))
}

/// What became of machines that status speaks of and that are no longer selected.
async fn departed(
    terms: &Terms,
    cloud: &Cloud,
    machines: &BTreeMap<String, Vec<Resolved>>,
    before: &[TargetStatus],
) -> Result<BTreeMap<ArmId, Departed>, CloudError> {
    let mut departed = BTreeMap::new();
    for target in before {
        let Ok(id) = ArmId::parse(&target.id) else { continue };
        let found = machines.values().flatten().find(|(selected, _)| *selected == id);
        if found.is_some_and(|(_, machine)| machine.is_ok()) {
            continue;
        }
        let found = match found {
            Some(found) => Some(found.clone()),
            None if terms.targets.contains_key(&target.name) => {
                Some((id.clone(), cloud.inventory.machine(&id).await?))
            }
            None => None,
        };
        if let Some(what) = departure(target, terms, found.as_ref()) {
            departed.insert(id, what);
        }
    }
    Ok(departed)
}
