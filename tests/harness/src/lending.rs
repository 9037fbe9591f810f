//! Control planes that tests use one after another: starting one, and installing into it, costs more than most tests.
//!
//! A control plane is lent again only where it is as it was: what a test made in namespaces is removed, and where
//! anything of the installation differs, or the test failed, it ends and another one is started.

use std::collections::{BTreeMap, VecDeque};
use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::control_plane::{ControlPlane, Options};
use crate::install;

/// How many there are at most: who comes when all are lent waits. Starting one more takes longer than the wait, and each
/// takes a few per cent of a processor also when nobody asks it anything.
const PLACES: usize = 7;
/// From the end of one test to the next: what its programs had just sent has then been carried out.
const REST: Duration = Duration::from_millis(500);

/// The product's kinds, whose objects only the controller lets go.
const KINDS: [&str; 3] = ["jitaccessreviews", "jitaccessrequests", "jitpolicies"];
/// What a test may add to in namespaces.
const IN_NAMESPACES: [&str; 8] = [
    "api/v1/configmaps",
    "api/v1/secrets",
    "api/v1/serviceaccounts",
    "api/v1/resourcequotas",
    "api/v1/limitranges",
    "apis/rbac.authorization.k8s.io/v1/roles",
    "apis/rbac.authorization.k8s.io/v1/rolebindings",
    "apis/coordination.k8s.io/v1/leases",
];
/// What takes a while to be in force, or to be no longer, and belongs to the installation.
const OF_THE_CLUSTER: [&str; 9] = [
    "apis/apiextensions.k8s.io/v1/customresourcedefinitions",
    "apis/admissionregistration.k8s.io/v1/validatingadmissionpolicies",
    "apis/admissionregistration.k8s.io/v1/validatingadmissionpolicybindings",
    "apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicies",
    "apis/admissionregistration.k8s.io/v1/mutatingadmissionpolicybindings",
    "apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations",
    "apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations",
    "apis/rbac.authorization.k8s.io/v1/clusterroles",
    "apis/rbac.authorization.k8s.io/v1/clusterrolebindings",
];

static FREE: Semaphore = Semaphore::const_new(PLACES);
static WAITERS: Mutex<VecDeque<(Instant, ControlPlane, Installed)>> = Mutex::new(VecDeque::new());

/// The objects of an installation, by path.
type Installed = BTreeMap<String, Value>;

/// A control plane for one test. With controller manager, everything installed, and the access of
/// [`install::NAMESPACE`] granted.
#[derive(Debug)]
pub struct Lent {
    /// None: on its way back.
    plane: Option<ControlPlane>,
    /// None: it is nobody else's.
    installed: Option<Installed>,
    // Dropped last, when the control plane has gone back or ended.
    _place: Option<SemaphorePermit<'static>>,
}

/// From now on so many more may be lent at once, where most of what they are lent for waits.
pub fn lend_more(places: usize) {
    FREE.add_permits(places);
}

/// Lends a control plane that another test has given back, or a new one.
///
/// # Errors
/// When none comes up.
pub async fn lend() -> anyhow::Result<Lent> {
    let place = Some(FREE.acquire().await?);
    while let Some((since, mut plane, installed)) = next() {
        tokio::time::sleep(REST.saturating_sub(since.elapsed())).await;
        // Another runtime than that of the test before, which has taken its connections with it.
        plane.reconnect()?;
        match clean(&plane, &installed).await {
            Ok(()) => return Ok(Lent { plane: Some(plane), installed: Some(installed), _place: place }),
            Err(error) => say(&format!("not lent again: {error:#}")),
        }
    }
    let mut plane = ControlPlane::start(Options { controller_manager: true, ..Options::default() }).await?;
    plane.reconnect()?;
    install::install(&plane).await?;
    install::grant_access(&plane, install::NAMESPACE).await?;
    let installed = look(&plane).await?;
    Ok(Lent { plane: Some(plane), installed: Some(installed), _place: place })
}

/// For whoever wonders where the time of a test goes.
#[allow(clippy::print_stderr)]
fn say(line: &str) {
    eprintln!("control plane: {line}");
}

fn next() -> Option<(Instant, ControlPlane, Installed)> {
    WAITERS.lock().unwrap_or_else(PoisonError::into_inner).pop_front()
}

impl Lent {
    /// One that is nobody else's, before or after.
    #[must_use]
    pub const fn own(plane: ControlPlane) -> Self {
        Self { plane: Some(plane), installed: None, _place: None }
    }

    /// Lets the processes live on. The folder stays.
    ///
    /// # Errors
    /// When one of them has ended already.
    pub fn release(mut self) -> anyhow::Result<()> {
        self.plane.take().context("it is there until it is dropped")?.release()
    }
}

impl Deref for Lent {
    type Target = ControlPlane;

    #[allow(clippy::expect_used)]
    fn deref(&self) -> &ControlPlane {
        self.plane.as_ref().expect("it is there until it is dropped")
    }
}

/// What is restarted or restored is not lent again.
impl DerefMut for Lent {
    #[allow(clippy::expect_used)]
    fn deref_mut(&mut self) -> &mut ControlPlane {
        self.installed = None;
        self.plane.as_mut().expect("it is there until it is dropped")
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if let (Some(plane), Some(installed), false) =
            (self.plane.take(), self.installed.take(), std::thread::panicking())
        {
            let mut waiters = WAITERS.lock().unwrap_or_else(PoisonError::into_inner);
            waiters.push_back((Instant::now(), plane, installed));
        }
    }
}

/// Removes what tests have made, and compares the rest with the installation.
async fn clean(plane: &ControlPlane, installed: &Installed) -> anyhow::Result<()> {
    let controller = format!("system:serviceaccount:{}:{}", install::CONTROLLER.0, install::CONTROLLER.1);
    for kind in KINDS {
        for object in list(plane, &format!("apis/jit.portcullis.io/v1alpha1/{kind}")).await? {
            let path = path("apis/jit.portcullis.io/v1alpha1", kind, &object)?;
            if object["metadata"]["finalizers"].is_array() {
                let free = json!({"metadata": {"finalizers": null}});
                plane.request_as(&controller, Method::PATCH, &path, Some(&free)).await?;
            }
            unless_gone(plane.request(Method::DELETE, &path, None).await)?;
        }
    }
    for path in namespaces(plane).await? {
        plane.request(Method::DELETE, &format!("{path}/events"), None).await?;
    }
    for (path, _) in look(plane).await?.iter().filter(|(path, _)| !installed.contains_key(*path)) {
        ensure!(path.contains("/namespaces/"), "{path} is not of the installation");
        unless_gone(plane.request(Method::DELETE, path, None).await)?;
    }
    let now = look(plane).await?;
    let changed: Vec<_> = installed
        .iter()
        .filter(|(path, object)| now.get(*path) != Some(object))
        .map(|(path, _)| path)
        .collect();
    ensure!(changed.is_empty(), "changed or gone: {changed:?}");
    Ok(())
}

/// Everything but the product's own objects, without what changes by itself.
async fn look(plane: &ControlPlane) -> anyhow::Result<Installed> {
    let mut all = Installed::new();
    for collection in IN_NAMESPACES.iter().chain(&OF_THE_CLUSTER) {
        let (base, resource) = collection.rsplit_once('/').context("a collection is a path")?;
        for object in list(plane, collection).await? {
            let path = path(base, resource, &object)?;
            // The API server's and the controller manager's own.
            let by_itself = ["/kube-root-ca.crt", "/serviceaccounts/default"];
            if !path.contains("/namespaces/kube-") && !by_itself.iter().any(|end| path.ends_with(end)) {
                all.insert(path, essence(object));
            }
        }
    }
    Ok(all)
}

fn essence(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        if fields.contains_key("aggregationRule") {
            fields.remove("rules");
        }
    }
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata
            .retain(|name, _| !["resourceVersion", "managedFields", "generation"].contains(&name.as_str()));
    }
    object
}

/// The namespaces, by path, but for Kubernetes' own.
async fn namespaces(plane: &ControlPlane) -> anyhow::Result<Vec<String>> {
    let mut all = Vec::new();
    for namespace in list(plane, "api/v1/namespaces").await? {
        let path = path("api/v1", "namespaces", &namespace)?;
        ensure!(namespace["metadata"]["deletionTimestamp"].is_null(), "{path} is being deleted");
        if !path.contains("/namespaces/kube-") {
            all.push(path);
        }
    }
    Ok(all)
}

async fn list(plane: &ControlPlane, collection: &str) -> anyhow::Result<Vec<Value>> {
    let mut answer = plane.request(Method::GET, &format!("/{collection}"), None).await?;
    match answer["items"].take() {
        Value::Array(items) => Ok(items),
        other => anyhow::bail!("{collection} is no list but {other}"),
    }
}

fn path(base: &str, resource: &str, object: &Value) -> anyhow::Result<String> {
    let metadata = &object["metadata"];
    let name = metadata["name"].as_str().context("an object has a name")?;
    Ok(match metadata["namespace"].as_str() {
        Some(namespace) => format!("/{base}/namespaces/{namespace}/{resource}/{name}"),
        None => format!("/{base}/{resource}/{name}"),
    })
}

fn unless_gone(answer: anyhow::Result<Value>) -> anyhow::Result<()> {
    match answer {
        Err(error) if !format!("{error:#}").contains("404 Not Found") => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}
