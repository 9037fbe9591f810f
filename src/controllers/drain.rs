//! Before an uninstall: every grant is closed by the controller that is still there, and then the finalizers are taken off,
//! so that nothing waits for one that is gone.
//!
//! Policies are suspended, so that nothing is granted, and stay so, marked by an annotation: a controller that is still there
//! for a while would open what waits, and nobody would close it. [`resume`] is for an installation to come. The lease is
//! taken before the finalizers are, since a holder would put them back. Locks are left as they are.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::Instant;

use super::admission::resource;
use super::connection;
use super::leader::{self, LEASE};
use crate::api::admission::{self, AdmissionKind, CONTROLLER_ONLY, namespace_of};
use crate::api::{FINALIZER, JitAccessRequest, JitPolicy, Tolerant};
use crate::clock::Clock;
use crate::plan::lifecycle::state;

/// How often it is looked whether a grant is still open.
const LOOK: Duration = Duration::from_secs(2);
/// Until a holder of the lease has noticed that it is none any more, or that it has lapsed.
const NOTICED: Duration = Duration::from_secs(15);
/// How long the lease is kept after it was renewed: an uninstall takes the controller away meanwhile, and a new one waits for
/// as long. Replicas respect no lease for longer.
const KEPT: Duration = Duration::from_secs(60);
/// How often it is renewed.
const RENEWED: Duration = Duration::from_secs(15);
/// Objects of one list.
const PAGE: u32 = 500;
/// Marks policies that were suspended by it.
const DRAINED: &str = "jit.portcullis.io/drained";
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
    /// Grants are still open, or policies still being deleted.
    #[error(
        "after {} s these are left: {}. Does the controller run, and can it write to the cloud? `portcullis sweep` closes \
         what is overdue without it",
        .1.as_secs(),
        .0.join(", ")
    )]
    Left(Vec<String>, Duration),
    /// The admission policies let another user write than the one who drains.
    #[error(
        "the admission policies of this cluster let {controller} write, and this is {me}: nothing was suspended or closed. Run it \
         as {controller}, as the chart's hook does, or with its kubeconfig. Where {me} is another installation's: that one is not \
         in charge, and the other would have been drained; to close what it has open, put it in charge first by what \
         `portcullis admission --controller-user {me}` prints, drain again, and apply the other one's admission policies anew"
    )]
    NotInCharge {
        /// Whom the policies let write.
        controller: String,
        /// Who drains.
        me: String,
    },
    /// There is no controller in the namespace that was named.
    #[error(
        "--namespace: the controller is {controller}, so that its lease is in {there}, and not in {named}"
    )]
    NotThere {
        /// Whom the admission policies let write.
        controller: String,
        /// The namespace of that one.
        there: String,
        /// The namespace that was named.
        named: String,
    },
    /// Admission put a finalizer back.
    #[error(
        "the finalizer of {0} was put back: only the controller's own user may take it off. Run it as its service account, as \
         the chart's hook does, or with its kubeconfig"
    )]
    NotTheController(String),
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

/// Drains; `namespace` is the controller's. `say` hears what is going on. Where whoever drains is not the controller that the
/// admission policies let write, nothing is his to drain.
///
/// # Errors
/// [`Error`]. Policies stay suspended: what nobody closes, nobody opens anew. It may be done again.
pub async fn drain(
    client: &Client,
    namespace: &str,
    patience: Duration,
    clock: &Clock,
    say: &mut (dyn FnMut(String) + Send),
) -> Result<Drained, Error> {
    let begun = Instant::now();
    is_ours(client, namespace).await?;
    let mut closed = BTreeSet::new();
    let mut told = String::new();
    loop {
        // Policies and requests may come while it lasts.
        suspend(client, say).await?;
        let open = open(client).await?;
        let left = [&open[..], &leaving(client).await?].concat();
        closed.extend(open);
        if left.is_empty() {
            break;
        }
        if begun.elapsed() > patience {
            return Err(Error::Left(left, begun.elapsed()));
        }
        let now = format!("waiting for {}", left.join(", "));
        if now != told {
            say(now.clone());
            told = now;
        }
        tokio::time::sleep(LOOK).await;
    }
    say("no grant is open; taking the lease".to_owned());
    let mut lease = Held { api: Api::namespaced(client.clone(), namespace), namespace, clock, renewed: None };
    lease.renew().await?;
    tokio::time::sleep(NOTICED).await;
    // One that was being granted when its policy was suspended is still the controller's to close, which it does once this
    // lease has lapsed.
    let late = open(client).await?;
    if !late.is_empty() {
        return Err(Error::Left(late, begun.elapsed()));
    }
    let requests = release::<JitAccessRequest>(client, &mut lease).await?;
    let policies = release::<JitPolicy>(client, &mut lease).await?;
    lease.renew().await?;
    Ok(Drained { closed: closed.len(), released: requests + policies })
}

/// Whether what there is to drain is ours, who drain as the controller of `namespace`.
async fn is_ours(client: &Client, namespace: &str) -> Result<(), Error> {
    let Some(controller) = user_let_through(client).await.map_err(failed("read the admission policies"))?
    else {
        return Ok(());
    };
    let me = match connection::whoami(client).await {
        // Whoever this is, he will be refused where it matters.
        Err(kube::Error::Api(status)) if status.code == 403 => return Ok(()),
        user => user.map_err(failed("ask the API server who this is"))?.username,
    };
    if me != controller {
        return Err(Error::NotInCharge { controller, me });
    }
    match namespace_of(&controller) {
        Some(there) if there != namespace => {
            let (there, named) = (there.to_owned(), namespace.to_owned());
            Err(Error::NotThere { controller, there, named })
        }
        _ => Ok(()),
    }
}

/// The user whom the admission policies let through. None: there are none, or not of this form, or who drains may not look,
/// and will be refused where it matters.
async fn user_let_through(client: &Client) -> Result<Option<String>, kube::Error> {
    let api: Api<Tolerant<DynamicObject>> =
        Api::all_with(client.clone(), &resource(AdmissionKind::ValidatingAdmissionPolicy));
    // A list: what this may ask for by its rights.
    let one = ListParams::default().fields(&format!("metadata.name={CONTROLLER_ONLY}"));
    let found = match api.list(&one).await {
        Ok(list) => list.items.into_iter().next(),
        Err(kube::Error::Api(status)) if matches!(status.code, 403 | 404) => None,
        Err(error) => return Err(error),
    };
    Ok(found.and_then(|Tolerant(policy)| {
        admission::user_let_through(policy.data.get("spec")?).map(str::to_owned)
    }))
}

/// Takes policies out of the suspension that [`drain`] put them into; how many.
///
/// # Errors
/// When the API server refuses it.
pub async fn resume(client: &Client) -> Result<usize, Error> {
    let mut resumed = 0;
    for policy in all::<JitPolicy>(client, "policies", ListParams::default()).await? {
        if policy.annotations().contains_key(DRAINED) {
            mark(client, &policy, false).await?;
            resumed += 1;
        }
    }
    Ok(resumed)
}

/// A kind of ours.
trait Kind:
    Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned
{
}

impl Kind for JitPolicy {}
impl Kind for JitAccessRequest {}

async fn all<K: Kind>(client: &Client, what: &str, parameters: ListParams) -> Result<Vec<K>, Error> {
    let api: Api<Tolerant<K>> = Api::all(client.clone());
    let (mut found, mut parameters) = (Vec::new(), parameters.limit(PAGE));
    loop {
        let list = match api.list(&parameters).await {
            Ok(list) => list,
            // There are none, where the definitions are gone.
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(found),
            Err(error) => return Err(failed(format!("list {what}"))(error)),
        };
        found.extend(list.items.into_iter().map(|item| item.0));
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(found),
        }
    }
}

/// Suspends every policy that is not, so that nothing is granted and what is open is closed.
async fn suspend(client: &Client, say: &mut (dyn FnMut(String) + Send)) -> Result<(), Error> {
    for policy in all::<JitPolicy>(client, "policies", ListParams::default()).await? {
        if policy.spec.suspend || policy.metadata.deletion_timestamp.is_some() {
            continue;
        }
        mark(client, &policy, true).await?;
        say(format!("suspended policy {}", named(&policy)));
    }
    Ok(())
}

async fn mark(client: &Client, policy: &JitPolicy, drained: bool) -> Result<(), Error> {
    let api: Api<Tolerant<JitPolicy>> =
        Api::namespaced(client.clone(), &policy.namespace().unwrap_or_default());
    let annotation = drained.then_some("true");
    let patch = json!({"metadata": {"annotations": {DRAINED: annotation}}, "spec": {"suspend": drained}});
    match api.patch(&policy.name_any(), &PatchParams::apply(NAME), &Patch::Merge(&patch)).await {
        // Gone meanwhile.
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(failed(format!("set spec.suspend of policy {}", named(policy)))(error)),
        Ok(_) => Ok(()),
    }
}

fn named(object: &impl ResourceExt) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Requests whose rules may stand.
async fn open(client: &Client) -> Result<Vec<String>, Error> {
    let unsettled = ListParams::default().fields("status.settled!=true");
    let requests = all::<JitAccessRequest>(client, "requests", unsettled).await?;
    let open = requests.iter().filter(|request| state(request).holds_rules());
    Ok(open.map(|request| format!("request {}", named(request))).collect())
}

/// Policies that are being deleted, and may have to be unlocked.
async fn leaving(client: &Client) -> Result<Vec<String>, Error> {
    let policies = all::<JitPolicy>(client, "policies", ListParams::default()).await?;
    let leaving = policies.iter().filter(|policy| {
        policy.metadata.deletion_timestamp.is_some() && policy.finalizers().iter().any(|one| one == FINALIZER)
    });
    Ok(leaving.map(|policy| format!("policy {}", named(policy))).collect())
}

/// The lease, held against the controller.
struct Held<'a> {
    api: Api<Lease>,
    namespace: &'a str,
    clock: &'a Clock,
    renewed: Option<Instant>,
}

impl Held<'_> {
    /// Renews it, where that is due: replicas take it for lapsed after a minute.
    async fn keep(&mut self) -> Result<(), Error> {
        if self.renewed.is_some_and(|at| at.elapsed() < RENEWED) { Ok(()) } else { self.renew().await }
    }

    async fn renew(&mut self) -> Result<(), Error> {
        let what = || format!("take the lease {}/{LEASE}", self.namespace);
        loop {
            let before = self.api.get_opt(LEASE).await.map_err(failed(what()))?;
            let lease = leader::lease(NAME, KEPT, before.as_ref(), self.clock.now());
            let written = match before {
                Some(_) => self.api.replace(LEASE, &PostParams::default(), &lease).await,
                None => self.api.create(&PostParams::default(), &lease).await,
            };
            match written {
                Ok(_) => {
                    self.renewed = Some(Instant::now());
                    return Ok(());
                }
                // Its holder was faster.
                Err(kube::Error::Api(status)) if status.code == 409 => {}
                Err(error) => return Err(failed(what())(error)),
            }
        }
    }
}

/// Takes our finalizer off every object of a kind; off how many.
async fn release<K: Kind>(client: &Client, lease: &mut Held<'_>) -> Result<usize, Error> {
    let kind = K::kind(&());
    let mut released = 0;
    for object in all::<K>(client, &format!("every {kind}"), ListParams::default()).await? {
        let finalizers = object.finalizers();
        if !finalizers.iter().any(|finalizer| finalizer == FINALIZER) {
            continue;
        }
        let left: Vec<&String> = finalizers.iter().filter(|finalizer| *finalizer != FINALIZER).collect();
        lease.keep().await?;
        let (namespace, name) = (object.namespace().unwrap_or_default(), object.name_any());
        let api: Api<Tolerant<K>> = Api::namespaced(client.clone(), &namespace);
        let patch = json!({"metadata": {"finalizers": left, "uid": object.uid()}});
        match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(written) if written.finalizers().iter().any(|finalizer| finalizer == FINALIZER) => {
                return Err(Error::NotTheController(format!("{kind} {namespace}/{name}")));
            }
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
