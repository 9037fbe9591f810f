//! Allows of ours that are overdue or nobody's, in every firewall of every scope.
//!
//! A user who strips a finalizer, deletes a namespace or restores a backup takes the object away, not the
//! duty. Three loops, so that nothing waits for what it does not need:
//!
//! - Each scope is read by a reader of its own, and what is overdue by its own name is closed as soon as it was
//!   read: without the API server, and however slow other scopes are.
//! - What was read is then judged by the requests, which are listed, consistently, only after it was read: what
//!   stands in no live request's status is closed. A list from a cache, or one begun earlier, could miss a grant
//!   that was made in between.
//! - Firewalls that requests name and no scope shows, such as those of a namespace that was mapped elsewhere
//!   since, are read one by one, with whichever credential can.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::StreamExt;
use futures::future::join_all;
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio::sync::{Semaphore, watch};
use tokio::time::Instant;

use super::{Context, gate};
use crate::api::values::ArmId;
use crate::api::{JitAccessRequest, Reason, Tolerant};
use crate::plan::lease::Role;
use crate::plan::lifecycle::{duties, state};
use crate::plan::model::{Access, FirewallId, Observed, Unsupported};
use crate::plan::names::{Mark, parse};
use crate::providers::{Cloud, CloudError, CloudErrorKind};
use crate::telemetry::{Check, Health, Pulse, SweepResult};

pub mod once;
mod reads;

use reads::{Read, Reads, Taken};

/// How long one scope may take to be read. Longer than the cloud's client tries.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the requests may take to be listed.
const LIST_PATIENCE: Duration = Duration::from_secs(60);
/// Scopes that are read at once with one credential.
const AT_ONCE: usize = 8;
/// From the interval and what a step may take at most to the time after which a loop counts as hung.
const SLACK: u32 = 3;

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
    /// A scope was not read in time.
    #[error("{scope}: not read within {} s", PATIENCE.as_secs())]
    Silent {
        /// Which.
        scope: ArmId,
    },
    /// The requests could not be listed.
    #[error("failed to list the requests: {0}")]
    Api(#[from] kube::Error),
    /// The requests were not listed in time.
    #[error("the requests were not listed within {} s", LIST_PATIENCE.as_secs())]
    ApiSilent,
    /// A scope is late: it is swept by itself.
    #[error("not every scope was read in time")]
    Late,
}

/// Sweeps until shutdown: at once, then at the interval.
pub async fn run(context: &Context, health: &Health) {
    let interval = context.settings.sweep_interval;
    let scopes: Vec<(&ArmId, &str, &Cloud)> = context
        .settings
        .tenancy
        .scopes()
        .filter_map(|(scope, credential)| Some((scope, credential, context.clouds.get(credential)?)))
        .collect();
    let reads = Reads::new(scopes.len());
    let turns: BTreeMap<&str, Semaphore> =
        context.clouds.keys().map(|name| (name.as_str(), Semaphore::new(AT_ONCE))).collect();
    // A cloud that does not answer is no hung loop: each step ends in time all the same.
    let hung = (interval + PATIENCE + LIST_PATIENCE) * SLACK;
    if !scopes.is_empty() {
        health.expect(Pulse::SweepReads, hung);
    }
    health.expect(Pulse::SweepJudgement, hung);
    let readers = scopes.iter().enumerate().map(|(place, (scope, credential, cloud))| {
        let (reads, turns) = (&reads, &turns);
        async move {
            loop {
                let turn = turns.get(credential).map(Semaphore::acquire);
                let turn = futures::future::OptionFuture::from(turn).await;
                let (begun, roles) = (Instant::now(), context.leadership.changes());
                let result = read(cloud, scope).await.map(|firewalls| -> Read {
                    firewalls.into_iter().map(|observed| ((*credential).to_owned(), observed)).collect()
                });
                drop(turn);
                if let Ok(read) = &result {
                    close_overdue(context, read);
                }
                reads.put(place, result);
                health.beat(Pulse::SweepReads);
                rest(context, roles, begun, interval).await;
            }
        }
    });
    tokio::join!(join_all(readers), judging(context, &reads, health), strays(context, &reads));
}

/// Until `interval` after `begun`; a little while also where that is over. Not longer than until this replica gets the
/// lease: what the holder before has left is found at once.
async fn rest(context: &Context, mut roles: watch::Receiver<Role>, begun: Instant, interval: Duration) {
    let pause = interval.saturating_sub(begun.elapsed()).max(interval / 4);
    let elected = async {
        // The sender outlives this loop.
        while roles.changed().await.is_ok() && !context.leadership.is_holder() {}
    };
    let _ = tokio::time::timeout(pause, elected).await;
}

/// Every firewall of a scope, in time.
async fn read(cloud: &Cloud, scope: &ArmId) -> Result<Vec<Observed>, Error> {
    match tokio::time::timeout(PATIENCE, firewalls(cloud, scope)).await {
        Ok(result) => result.map_err(|source| Error::Cloud { scope: scope.clone(), source }),
        Err(_) => Err(Error::Silent { scope: scope.clone() }),
    }
}

/// Every firewall of a scope; where the scope is one machine, those on the way to it.
async fn firewalls(cloud: &Cloud, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
    if !scope.is_virtual_machine() {
        return cloud.inventory.firewalls(scope).await;
    }
    let machine = match cloud.inventory.machine(scope).await? {
        Ok(machine) => machine,
        // What may not be read may well have something overdue on its way.
        Err(Unsupported { reason: Reason::NotPermitted, message }) => {
            return Err(CloudError {
                kind: CloudErrorKind::NotPermitted,
                operation: format!("find the way to {scope}"),
                message,
                code: None,
                retry_after: None,
                request_id: None,
            });
        }
        // A machine that is gone or cannot be locked has no way to it that could be known.
        Err(_) => return Ok(Vec::new()),
    };
    let mut read = Vec::new();
    for firewall in machine.firewalls().into_iter().chain(machine.translating_firewalls()) {
        match cloud.firewall.observe(&firewall).await {
            Ok(observed) => read.push(observed),
            Err(error) if error.kind == CloudErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(read)
}

/// Judges what was read: as soon as every scope was tried, but nobody waits for a slow one for longer than the
/// interval.
async fn judging(context: &Context, reads: &Reads, health: &Health) {
    let interval = context.settings.sweep_interval;
    loop {
        let (begun, roles) = (Instant::now(), context.leadership.changes());
        let _ = tokio::time::timeout(interval, reads.all_tried()).await;
        if !context.leadership.is_holder() {
            // What is nobody's by the requests is for the holder to close. Ready to become that one.
            health.pass(Check::Sweep);
            health.beat(Pulse::SweepJudgement);
            drop(reads.take());
            rest(context, roles, begun, interval).await;
            continue;
        }
        let Taken { read, whole, failure } = reads.take();
        let judged = match tokio::time::timeout(LIST_PATIENCE, judge(context, read, reads)).await {
            Ok(judged) => judged.map_err(Error::from),
            Err(_) => Err(Error::ApiSilent),
        };
        let error = judged.err().or(failure).or_else(|| (!whole).then_some(Error::Late));
        match error {
            None => context.metrics.sweep(SweepResult::Complete),
            Some(error) => {
                context.metrics.sweep(SweepResult::Incomplete);
                tracing::warn!(%error, "the sweep is not complete");
            }
        }
        // Tried is enough: whether the cloud answers is no reason to restart.
        health.pass(Check::Sweep);
        health.beat(Pulse::SweepJudgement);
        rest(context, roles, begun, interval).await;
    }
}

/// Has closed what is nobody's of what was read.
async fn judge(context: &Context, mut read: Read, reads: &Reads) -> Result<(), kube::Error> {
    // Firewalls may lie outside every scope, such as a subnet's group in the network team's own: what gates have
    // read of them was read before the list, too.
    for (credential, observed) in context.gates.observed() {
        if !read.iter().any(|(_, known)| known.firewall == observed.firewall) {
            read.push((credential, observed));
        }
    }
    close_overdue(context, &read);
    // Known before the list is begun: a grant made while it runs is no reason to end it.
    let served = context.gates.requests();
    let granted = context.turns.known();
    let requests = unsettled(context).await?;
    let live: BTreeSet<String> =
        requests.iter().filter(|request| state(request).holds_rules()).filter_map(ResourceExt::uid).collect();
    let named: BTreeSet<(FirewallId, String)> = requests
        .iter()
        .flat_map(duties)
        .map(|(firewall, grant)| (firewall, grant.name.to_ascii_lowercase()))
        .collect();
    context.turns.keep_only(&live, &granted);
    for gone in served.difference(&live) {
        context.gates.end(gone);
    }
    let known: BTreeSet<&FirewallId> = read.iter().map(|(_, observed)| &observed.firewall).collect();
    let strays = named.iter().map(|(firewall, _)| firewall).filter(|firewall| !known.contains(firewall));
    reads.set_strays(strays.cloned().collect());
    let orphans = close(context, &read, |key, _| !named.contains(key));
    if orphans > 0 {
        tracing::warn!(firewalls = read.len(), orphans, "closing allows that are nobody's");
    }
    Ok(())
}

/// Every request that is not settled. Without a resource version, so that the answer is consistent.
async fn unsettled(context: &Context) -> Result<Vec<JitAccessRequest>, kube::Error> {
    let api: Api<Tolerant<JitAccessRequest>> = Api::all(context.client.clone());
    let mut requests = Vec::new();
    let mut page = ListParams::default().fields("status.settled!=true").limit(500);
    loop {
        let list = api.list(&page).await?;
        requests.extend(list.items.into_iter().map(|request| request.0));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(requests),
        }
    }
}

/// Reads what requests name and no scope shows.
async fn strays(context: &Context, reads: &Reads) {
    loop {
        let begun = Instant::now();
        let read = futures::stream::iter(reads.strays())
            .map(|firewall| stray(context, firewall))
            .buffer_unordered(AT_ONCE)
            .filter_map(std::future::ready);
        let mut read = std::pin::pin!(read);
        while let Some(found) = read.next().await {
            close_overdue(context, std::slice::from_ref(&found));
            reads.put_stray(found.0, found.1);
        }
        rest(context, context.leadership.changes(), begun, context.settings.sweep_interval).await;
    }
}

/// One firewall, by the first credential that can read it.
async fn stray(context: &Context, firewall: FirewallId) -> Option<(String, Observed)> {
    let tries = async {
        for (credential, cloud) in context.clouds.iter() {
            if let Ok(observed) = cloud.firewall.observe(&firewall).await {
                return Some((credential.clone(), observed));
            }
        }
        None
    };
    tokio::time::timeout(PATIENCE, tries).await.unwrap_or_default()
}

/// Has closed what is overdue by its own word. That needs no list: the API server may be away.
fn close_overdue(context: &Context, read: &[(String, Observed)]) {
    let now = context.deadlines.now();
    // While another replica holds the lease, that one closes it first.
    let now = if context.leadership.role() == Role::Standby { gate::standby::due_by(now) } else { now };
    close(
        context,
        read,
        |_, mark| matches!(mark, Mark::Allow { deadline, .. } if deadline.is_none_or(|at| at <= now)),
    );
}

/// Has those allows of ours closed that `ended` says are to be; how many there are.
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
            // One that is still there at the next sweep is no other one.
            let news = context.gates.close_orphans(&observed.firewall, credential, cloud, names);
            // Who stands by leaves some of them to the holder, and finds those again.
            if context.leadership.is_holder() {
                context.metrics.swept(news as u64);
            }
        }
    }
    count
}
