//! Before an uninstall: every grant is closed by the controller that is still there, and then the finalizers are taken off,
//! so that nothing waits for one that is gone.
//!
//! Policies are suspended meanwhile, so that nothing is granted; in the end they are as they were. The lease is taken before
//! the finalizers are, since a holder would put them back. Locks are left as they are.

use std::collections::BTreeSet;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::api::{ListParams, ObjectMeta, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use super::leader::LEASE;
use crate::api::{FINALIZER, JitAccessRequest, JitPolicy, Tolerant};
use crate::clock::Clock;

/// How often it is looked whether a grant is still open.
const LOOK: Duration = Duration::from_secs(2);
/// Until a holder of the lease has noticed that it is none any more, or that it has lapsed.
const NOTICED: Duration = Duration::from_secs(15);
/// How long the lease is kept: an uninstall takes the controller away meanwhile. A new one waits for as long.
const KEPT: Duration = Duration::from_secs(120);
/// Objects of one list.
const PAGE: u32 = 500;
/// Who holds the lease, and has changed the policies.
const NAME: &str = "portcullis-drain";

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Grants that were open and are closed.
    pub closed: usize,
    /// Policies and requests that nothing holds any more.
    pub released: usize,
}

/// Why it was not done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Grants are still open.
    #[error(
        "{} still open after {} s: {}. Does the controller run, and can it write to the cloud? `portcullis sweep` closes \
         what is overdue without it",
        if .0.len() == 1 { "one grant is".to_owned() } else { format!("{} grants are", .0.len()) },
        .1.as_secs(),
        .0.join(", ")
    )]
    Open(Vec<String>, Duration),
    /// The API server refused something, or did not answer.
    #[error("failed to {operation}")]
    Api {
        /// What was being done.
        operation: String,
        /// What it said.
        source: kube::Error,
    },
}

fn failed(operation: impl Into<String>) -> impl FnOnce(kube::Error) -> Error {
    let operation = operation.into();
    |source| Error::Api { operation, source }
}

/// Drains; `namespace` is the controller's. `say` hears what is going on.
///
/// # Errors
/// [`Error`]. Policies that were suspended stay so where grants are still open: what nobody closes, nobody opens anew.
pub async fn drain(
    client: &Client,
    namespace: &str,
    patience: Duration,
    clock: &Clock,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<Drained, Error> {
    let begun = Instant::now();
    let (mut suspended, mut open) = (BTreeSet::new(), BTreeSet::new());
    let mut told = String::new();
    loop {
        // Policies and requests may come while it lasts.
        suspend(client, &mut suspended, say).await?;
        let live: Vec<String> = live(client).await?;
        open.extend(live.iter().cloned());
        if live.is_empty() {
            break;
        }
        if begun.elapsed() > patience {
            return Err(Error::Open(live, patience));
        }
        let now = format!("waiting for {} to be closed", live.join(", "));
        if now != told {
            say(now.clone());
            told = now;
        }
        tokio::time::sleep(LOOK).await;
    }
    say("no grant is open; taking the lease".to_owned());
    take_lease(client, namespace, clock.now()).await?;
    tokio::time::sleep(NOTICED).await;
    // One that was granted in between is still the controller's to close.
    let late = live(client).await?;
    if !late.is_empty() {
        return Err(Error::Open(late, patience));
    }
    let released = release::<JitAccessRequest>(client).await? + release::<JitPolicy>(client).await?;
    for (namespace, name) in &suspended {
        let what = format!("set spec.suspend of policy {namespace}/{name} back");
        set_suspend(client, namespace, name, false).await.map_err(failed(what))?;
    }
    Ok(Drained { closed: open.len(), released })
}

async fn all<K>(client: &Client, what: &str, parameters: ListParams) -> Result<Vec<K>, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
    Tolerant<K>: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let api: Api<Tolerant<K>> = Api::all(client.clone());
    let (mut found, mut parameters) = (Vec::new(), parameters.limit(PAGE));
    loop {
        let list = api.list(&parameters).await.map_err(failed(format!("list {what}")))?;
        found.extend(list.items.into_iter().map(|item| item.0));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// Suspends every policy that is not, so that nothing is granted and what is open is closed.
async fn suspend(
    client: &Client,
    suspended: &mut BTreeSet<(String, String)>,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<(), Error> {
    for policy in all::<JitPolicy>(client, "policies", ListParams::default()).await? {
        if policy.spec.suspend || policy.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let (namespace, name) = (policy.namespace().unwrap_or_default(), policy.name_any());
        let what = format!("suspend policy {namespace}/{name}");
        set_suspend(client, &namespace, &name, true).await.map_err(failed(what))?;
        if suspended.insert((namespace.clone(), name.clone())) {
            say(format!("suspended policy {namespace}/{name}"));
        }
    }
    Ok(())
}

async fn set_suspend(client: &Client, namespace: &str, name: &str, suspend: bool) -> Result<(), kube::Error> {
    let api: Api<Tolerant<JitPolicy>> = Api::namespaced(client.clone(), namespace);
    let patch = json!({"spec": {"suspend": suspend}});
    match api.patch(name, &PatchParams::apply(NAME), &Patch::Merge(&patch)).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(|_| ()),
    }
}

/// Requests whose rules may stand.
async fn live(client: &Client) -> Result<Vec<String>, Error> {
    let unsettled = ListParams::default().fields("status.settled!=true");
    let requests = all::<JitAccessRequest>(client, "requests", unsettled).await?;
    let live = requests.iter().filter(|request| {
        request.status.as_ref().is_some_and(|status| status.rules.iter().any(|rule| rule.state != "Absent"))
    });
    Ok(live
        .map(|request| format!("{}/{}", request.namespace().unwrap_or_default(), request.name_any()))
        .collect())
}

/// Takes the lease from whoever holds it.
async fn take_lease(client: &Client, namespace: &str, now: Timestamp) -> Result<(), Error> {
    let api: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let what = || format!("take the lease {namespace}/{LEASE}");
    loop {
        let before = api.get_opt(LEASE).await.map_err(failed(what()))?;
        let now = Some(MicroTime(now));
        let spec = LeaseSpec {
            holder_identity: Some(NAME.to_owned()),
            lease_duration_seconds: i32::try_from(KEPT.as_secs()).ok(),
            acquire_time: now.clone(),
            renew_time: now,
            ..before.as_ref().and_then(|lease| lease.spec.clone()).unwrap_or_default()
        };
        let metadata = before.as_ref().map_or_else(
            || ObjectMeta { name: Some(LEASE.to_owned()), ..ObjectMeta::default() },
            |lease| lease.metadata.clone(),
        );
        let lease = Lease { metadata, spec: Some(spec) };
        let written = match before {
            Some(_) => api.replace(LEASE, &PostParams::default(), &lease).await,
            None => api.create(&PostParams::default(), &lease).await,
        };
        match written {
            Ok(_) => return Ok(()),
            // Its holder was faster.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(failed(what())(error)),
        }
    }
}

/// Takes our finalizer off every object of a kind; off how many.
async fn release<K>(client: &Client) -> Result<usize, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
    Tolerant<K>: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let kind = K::kind(&());
    let mut released = 0;
    for object in all::<K>(client, &format!("every {kind}"), ListParams::default()).await? {
        let finalizers = object.finalizers();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            continue;
        }
        let left: Vec<&String> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api: Api<Tolerant<K>> = Api::namespaced(client.clone(), &namespace);
        let patch = json!({"metadata": {"finalizers": left, "uid": object.uid()}});
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(_) => released += 1,
            // Gone, or another one of this name.
            Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
            Err(error) => {
                return Err(failed(format!("take the finalizer off {kind} {namespace}/{name}"))(error));
            }
        }
    }
    Ok(released)
}
