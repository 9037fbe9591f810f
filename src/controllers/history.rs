//! What is over is kept for a while, for people to look back at, and then deleted: settled requests, and reviews whose
//! request is settled or gone.
//!
//! Not those that Argo CD or Flux keeps: deleted by us, they would be created again, as new requests.

use std::fmt::Debug;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use super::Context;
use super::review::is_of;
use crate::api::{JitAccessRequest, JitAccessReview, Tolerant};

/// How often history is looked through, where things are kept for longer than that.
const INTERVAL: Duration = Duration::from_secs(3600);

/// What GitOps tools write on objects that they keep.
const LABELS: [&str; 3] =
    ["app.kubernetes.io/instance", "kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name"];
const ANNOTATION: &str = "argocd.argoproj.io/tracking-id";

/// Looks through history until shutdown, or until this replica no longer holds the lease.
pub async fn run(context: &Context) {
    let interval = INTERVAL.min(context.settings.request_retention);
    while context.leadership.is_holder() {
        match prune(context).await {
            Ok(Deleted { requests: 0, reviews: 0 }) => {}
            Ok(Deleted { requests, reviews }) => {
                tracing::info!(requests, reviews, "deleted what was settled and kept long enough");
            }
            Err(error) => tracing::warn!(%error, "failed to look through what is settled"),
        }
        tokio::time::sleep(interval).await;
    }
}

/// How much was deleted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Deleted {
    /// Requests.
    pub requests: usize,
    /// Reviews.
    pub reviews: usize,
}

/// Deletes what was settled longer ago than the retention, page by page. A review is kept for at least as long as its
/// request.
///
/// # Errors
/// When the API server refuses or cannot be reached.
pub async fn prune(context: &Context) -> Result<Deleted, kube::Error> {
    let mut deleted = Deleted::default();
    let mut settled = Settled::<JitAccessRequest>::new(context);
    while let Some(page) = settled.next_page().await? {
        for request in page.iter().filter(|request| !is_tracked(*request)) {
            if is_long_ago(context, request_settled_at(request)) {
                deleted.requests += delete(context, request).await?;
            }
        }
    }
    let mut settled = Settled::<JitAccessReview>::new(context);
    while let Some(page) = settled.next_page().await? {
        for review in page.iter().filter(|review| !is_tracked(*review)) {
            // The request is asked for only where the review could go.
            if is_long_ago(context, review_settled_at(review)) && is_history(context, review).await? {
                deleted.reviews += delete(context, review).await?;
            }
        }
    }
    Ok(deleted)
}

/// The settled objects of a kind, page by page.
struct Settled<K> {
    api: Api<Tolerant<K>>,
    /// What to ask for next; none where there is no more.
    next: Option<ListParams>,
}

impl<K> Settled<K>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    fn new(context: &Context) -> Self {
        let first = ListParams::default().fields("status.settled=true").limit(500);
        Self { api: Api::all(context.client.clone()), next: Some(first) }
    }

    async fn next_page(&mut self) -> Result<Option<Vec<K>>, kube::Error> {
        let Some(parameters) = self.next.take() else { return Ok(None) };
        let list = self.api.list(&parameters).await?;
        let more = list.metadata.continue_.filter(|token| !token.is_empty());
        self.next = more.map(|token| parameters.continue_token(&token));
        Ok(Some(list.items.into_iter().map(|object| object.0).collect()))
    }
}

/// Deletes an object as it was judged, and nothing else of its name; how many that were.
async fn delete<K>(context: &Context, object: &K) -> Result<usize, kube::Error>
where
    K: Resource<Scope = NamespaceResourceScope> + Clone + Debug + DeserializeOwned,
    K::DynamicType: Default,
{
    let api: Api<Tolerant<K>> =
        Api::namespaced(context.client.clone(), &object.namespace().unwrap_or_default());
    let preconditions = Preconditions { uid: object.uid(), resource_version: object.resource_version() };
    let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&object.name_any(), &parameters).await {
        Ok(_) => Ok(1),
        // Gone already, or changed meanwhile: looked at again next time.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(0),
        Err(error) => Err(error),
    }
}

/// Whether a review's request is gone, or settled for long enough to go itself.
async fn is_history(context: &Context, review: &JitAccessReview) -> Result<bool, kube::Error> {
    let api: Api<Tolerant<JitAccessRequest>> =
        Api::namespaced(context.client.clone(), &review.namespace().unwrap_or_default());
    Ok(match api.get_opt(&review.spec.request_ref.name).await? {
        Some(Tolerant(request)) if is_of(review, &request) => {
            request.status.as_ref().is_some_and(|status| status.settled)
                && is_long_ago(context, request_settled_at(&request))
        }
        Some(_) | None => true,
    })
}

fn is_long_ago(context: &Context, at: Option<Timestamp>) -> bool {
    at.is_some_and(|at| {
        let age = Duration::try_from(context.clock.now().duration_since(at)).unwrap_or(Duration::ZERO);
        age >= context.settings.request_retention
    })
}

/// Whether a GitOps tool keeps it.
fn is_tracked(object: &impl ResourceExt) -> bool {
    LABELS.iter().any(|label| object.labels().contains_key(*label))
        || object.annotations().contains_key(ANNOTATION)
}

/// The last time that anything about it changed.
fn request_settled_at(request: &JitAccessRequest) -> Option<Timestamp> {
    let conditions = request.status.iter().flat_map(|status| &status.conditions);
    let created = request.metadata.creation_timestamp.as_ref().map(|at| at.0);
    conditions.map(|condition| condition.last_transition_time.0).chain(created).max()
}

fn review_settled_at(review: &JitAccessReview) -> Option<Timestamp> {
    let settled = review.status.as_ref().and_then(|status| status.settled_at.as_ref());
    settled.or(review.metadata.creation_timestamp.as_ref()).map(|at| at.0)
}
