//! Settled requests are kept for a while, for people to look back at, and then deleted.
//!
//! Not those that Argo CD or Flux keeps: deleted by us, they would be created again, as new requests.

use std::time::Duration;

use jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Preconditions};
use kube::{Api, ResourceExt};

use super::Context;
use crate::api::{JitAccessRequest, Tolerant};

/// How often history is looked through.
const INTERVAL: Duration = Duration::from_secs(3600);

/// What GitOps tools write on objects that they keep.
const LABELS: [&str; 3] =
    ["app.kubernetes.io/instance", "kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name"];
const ANNOTATION: &str = "argocd.argoproj.io/tracking-id";

/// Looks through history until shutdown.
pub async fn run(context: &Context) {
    loop {
        match prune(context).await {
            Ok(0) => {}
            Ok(deleted) => tracing::info!(deleted, "deleted settled requests that were kept long enough"),
            Err(error) => tracing::warn!(%error, "failed to look through settled requests"),
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

/// Deletes what was settled longer ago than the retention, page by page; how many.
///
/// # Errors
/// When the API server refuses or cannot be reached.
pub async fn prune(context: &Context) -> Result<usize, kube::Error> {
    let all: Api<Tolerant<JitAccessRequest>> = Api::all(context.client.clone());
    let mut page = ListParams::default().fields("status.settled=true").limit(500);
    let mut deleted = 0;
    loop {
        let list = all.list(&page).await?;
        for Tolerant(request) in list.items.iter().filter(|request| is_due(&request.0, context)) {
            let api: Api<Tolerant<JitAccessRequest>> =
                Api::namespaced(context.client.clone(), &request.namespace().unwrap_or_default());
            let preconditions =
                Preconditions { uid: request.uid(), resource_version: request.resource_version() };
            let parameters = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
            match api.delete(&request.name_any(), &parameters).await {
                Ok(_) => deleted += 1,
                // Gone already, or changed meanwhile: looked at again in an hour.
                Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => {}
                Err(error) => return Err(error),
            }
        }
        match list.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(deleted),
        }
    }
}

fn is_due(request: &JitAccessRequest, context: &Context) -> bool {
    !is_tracked(request)
        && settled_at(request).is_some_and(|at| {
            let age = Duration::try_from(context.clock.now().duration_since(at)).unwrap_or(Duration::ZERO);
            age >= context.settings.request_retention
        })
}

/// Whether a GitOps tool keeps it.
fn is_tracked(request: &JitAccessRequest) -> bool {
    LABELS.iter().any(|label| request.labels().contains_key(*label))
        || request.annotations().contains_key(ANNOTATION)
}

/// The last time that anything about it changed.
fn settled_at(request: &JitAccessRequest) -> Option<Timestamp> {
    let conditions = request.status.iter().flat_map(|status| &status.conditions);
    let created = request.metadata.creation_timestamp.as_ref().map(|at| at.0);
    conditions.map(|condition| condition.last_transition_time.0).chain(created).max()
}
