//! Allows of ours that are nobody's, in every firewall of every scope.
//!
//! A user who strips a finalizer, deletes a namespace or restores a backup takes the object away, not the
//! duty. So every firewall is read, and only then the requests are listed, consistently: what stands in no
//! live request's status is closed. A list from a cache, or one begun earlier, could miss a grant that was
//! made in between.

use std::collections::BTreeSet;
use std::time::Duration;

use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::Context;
use crate::api::values::ArmId;
use crate::api::{JitAccessRequest, Tolerant};
use crate::plan::lifecycle::{duties, state};
use crate::plan::model::{Access, FirewallId, Observed};
use crate::plan::names::{Mark, parse};
use crate::providers::{Cloud, CloudError, CloudErrorKind};
use crate::telemetry::{Check, Health, SweepResult};

/// Why a sweep is not complete.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A scope could not be read.
    #[error("{scope}: {source}")]
    Cloud {
        /// Which.
        scope: ArmId,
        /// Why.
        source: CloudError,
    },
    /// The requests could not be listed.
    #[error("failed to list the requests: {0}")]
    Api(#[from] kube::Error),
}

/// What a sweep found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Firewalls read.
    pub firewalls: usize,
    /// Allows of ours that are nobody's.
    pub orphans: usize,
}

/// Sweeps until shutdown: at once, then at the interval.
pub async fn run(context: &Context, health: &Health) {
    let mut pause = Duration::ZERO;
    loop {
        tokio::time::sleep(pause).await;
        pause = context.settings.sweep_interval;
        match sweep(context).await {
            Ok(found) => {
                context.metrics.sweep(SweepResult::Complete, found.orphans as u64);
                if found.orphans > 0 {
                    tracing::warn!(
                        firewalls = found.firewalls,
                        orphans = found.orphans,
                        "closing allows that are nobody's"
                    );
                }
            }
            Err(error) => {
                context.metrics.sweep(SweepResult::Incomplete, 0);
                tracing::warn!(%error, "the sweep is not complete");
            }
        }
        // Tried is enough: whether the cloud answers is no reason to restart.
        health.pass(Check::Sweep);
    }
}

/// Sweeps once. A scope that cannot be read does not keep the others from being swept.
///
/// # Errors
/// The first failure, after everything that could be done was done.
pub async fn sweep(context: &Context) -> Result<Found, Error> {
    let mut failure = None;
    let mut read: Vec<(String, Observed)> = Vec::new();
    for (scope, credential) in context.settings.tenancy.scopes() {
        let Some(cloud) = context.clouds.get(credential) else { continue };
        match firewalls(cloud, scope).await {
            Ok(firewalls) => {
                read.extend(firewalls.into_iter().map(|observed| (credential.to_owned(), observed)));
            }
            Err(source) => {
                failure.get_or_insert(Error::Cloud { scope: scope.clone(), source });
            }
        }
    }
    // Firewalls may lie outside every scope, such as a subnet's group in the network team's own: what gates have
    // read of them was read before the list, too.
    for (credential, observed) in context.gates.observed() {
        if !read.iter().any(|(_, known)| known.firewall == observed.firewall) {
            read.push((credential, observed));
        }
    }
    // What is overdue by its own word needs no list: the API server may be away.
    let now = context.clock.now();
    close(
        context,
        &read,
        |_, mark| matches!(mark, Mark::Allow { deadline, .. } if deadline.is_none_or(|at| at <= now)),
    );
    // Known before the list is begun: a grant made while it runs is no reason to end it.
    let served = context.gates.requests();
    let known = context.turns.known();
    // Begun after the firewalls were read, and without a resource version, so the answer is consistent.
    let api: Api<Tolerant<JitAccessRequest>> = Api::all(context.client.clone());
    let mut requests = Vec::new();
    let mut page = ListParams::default().fields("status.settled!=true").limit(500);
    loop {
        let list = api.list(&page).await?;
        requests.extend(list.items.into_iter().map(|request| request.0));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => break,
        }
    }
    let live: BTreeSet<String> =
        requests.iter().filter(|request| state(request).holds_rules()).filter_map(ResourceExt::uid).collect();
    let named: BTreeSet<(FirewallId, String)> = requests
        .iter()
        .flat_map(duties)
        .map(|(firewall, grant)| (firewall, grant.name.to_ascii_lowercase()))
        .collect();
    context.turns.keep_only(&live, &known);
    for gone in served.difference(&live) {
        context.gates.end(gone);
    }
    let firewalls = read.len();
    let orphans = close(context, &read, |key, _| !named.contains(key));
    failure.map_or(Ok(Found { firewalls, orphans }), Err)
}

/// Every firewall of a scope; where the scope is one machine, those on the way to it.
async fn firewalls(cloud: &Cloud, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
    if !scope.is_virtual_machine() {
        return cloud.inventory.firewalls(scope).await;
    }
    // A machine that is gone or cannot be locked has no way to it that could be known.
    let Ok(machine) = cloud.inventory.machine(scope).await? else { return Ok(Vec::new()) };
    let mut read = Vec::new();
    for firewall in machine.firewalls() {
        match cloud.firewall.observe(&firewall).await {
            Ok(observed) => read.push(observed),
            Err(error) if error.kind == CloudErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Has those allows of ours closed that `ended` says are to be; how many.
fn close(
    context: &Context,
    read: &[(String, Observed)],
    ended: impl Fn(&(FirewallId, String), &Mark) -> bool,
) -> usize {
    let mut count = 0;
    for (credential, observed) in read {
        let names: BTreeSet<String> = observed
            .rules
            .iter()
            .filter(|rule| rule.access == Access::Allow)
            .filter(|rule| {
                let key = (observed.firewall.clone(), rule.name.to_ascii_lowercase());
                let mark = parse(&context.settings.cluster, rule);
                mark.is_some_and(|mark| matches!(mark, Mark::Allow { .. }) && ended(&key, &mark))
            })
            .map(|rule| rule.name.clone())
            .collect();
        count += names.len();
        if let (false, Some(cloud)) = (names.is_empty(), context.clouds.get(credential)) {
            context.gates.close_orphans(&observed.firewall, credential, cloud, names);
        }
    }
    count
}
