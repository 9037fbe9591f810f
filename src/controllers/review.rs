//! Reviews: each wakes its request, which counts and answers it. Here is answered what has no request any more.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use kube::api::PostParams;
use kube::runtime::controller::Action;
use kube::runtime::reflector::ObjectRef;
use kube::runtime::watcher;
use kube::{Api, ResourceExt};

use super::Context;
use super::retry::WriteError;
use crate::api::{JitAccessRequest, JitAccessReview, JitAccessReviewStatus, Tolerant};
use crate::plan::reviews::{Case, Right, status, tally, without_request};

/// When a review that waits for its request is looked at again.
const REST: Duration = Duration::from_secs(60);

/// Reviews of one request, by their UID.
type OfOne = HashMap<String, Arc<JitAccessReview>>;

/// Reviews that are not settled, by the UID of their request. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Reviews(Arc<Mutex<Index>>);

#[derive(Debug, Default)]
struct Index {
    known: HashMap<String, OfOne>,
    /// What a list under way has brought so far.
    listed: HashMap<String, OfOne>,
}

impl Reviews {
    /// Takes note of what a watch tells.
    pub(super) fn see(&self, event: &Result<watcher::Event<JitAccessReview>, watcher::Error>) {
        let mut index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match event {
            Ok(watcher::Event::Init) => index.listed.clear(),
            Ok(watcher::Event::InitApply(review)) => put(&mut index.listed, review),
            Ok(watcher::Event::InitDone) => index.known = std::mem::take(&mut index.listed),
            Ok(watcher::Event::Apply(review)) => put(&mut index.known, review),
            Ok(watcher::Event::Delete(review)) => {
                let request = &review.spec.request_ref.uid;
                if let Some(of_one) = index.known.get_mut(request) {
                    of_one.remove(&review.uid().unwrap_or_default());
                    if of_one.is_empty() {
                        index.known.remove(request);
                    }
                }
            }
            Err(_) => {}
        }
    }

    /// All of them.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<JitAccessReview>> {
        let index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        index.known.values().flat_map(HashMap::values).cloned().collect()
    }

    /// The reviews of a request.
    #[must_use]
    pub fn of(&self, request: &JitAccessRequest) -> Vec<Arc<JitAccessReview>> {
        let index = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let uid = request.uid().unwrap_or_default();
        let found = index.known.get(&uid).into_iter().flat_map(HashMap::values);
        found.filter(|review| is_of(review, request)).cloned().collect()
    }
}

fn put(index: &mut HashMap<String, OfOne>, review: &JitAccessReview) {
    let of_one = index.entry(review.spec.request_ref.uid.clone()).or_default();
    of_one.insert(review.uid().unwrap_or_default(), Arc::new(review.clone()));
}

/// Whether a review is of this request and no other: by namespace, name and UID.
#[must_use]
pub(super) fn is_of(review: &JitAccessReview, request: &JitAccessRequest) -> bool {
    let reference = &review.spec.request_ref;
    request.uid().is_some_and(|uid| uid == reference.uid && !uid.is_empty())
        && request.name_any() == reference.name
        && request.namespace() == review.namespace()
}

/// Has the request of a review looked at again. False: it is settled, gone, or not watched yet.
pub(super) fn wake_request_of(context: &Context, review: &JitAccessReview) -> bool {
    let namespace = review.namespace().unwrap_or_default();
    let reference = ObjectRef::<JitAccessRequest>::new(&review.spec.request_ref.name).within(&namespace);
    let watched = context.requests.get(&reference).is_some_and(|request| is_of(review, &request));
    if watched {
        let _ = context.wake_requests.send(reference);
    }
    watched
}

/// Sees to it that one review is answered.
///
/// # Errors
/// When the API server refused or could not be reached; it is tried again.
pub async fn reconcile(review: Arc<JitAccessReview>, context: Arc<Context>) -> Result<Action, WriteError> {
    context.requests_filled.wait().await;
    if review.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    if wake_request_of(&context, &review) {
        return Ok(Action::requeue(REST));
    }
    let namespace = review.namespace().unwrap_or_default();
    let name = &review.spec.request_ref.name;
    // The request is settled, gone, or not watched yet: only the API server itself can tell.
    let api: Api<Tolerant<JitAccessRequest>> = Api::namespaced(context.client.clone(), &namespace);
    let found = api
        .get_opt(name)
        .await
        .map_err(|source| WriteError { operation: "read the request of the review", source })?;
    let answer = match found.map(|request| request.0) {
        Some(request) if is_of(&review, &request) => {
            if !request.status.as_ref().is_some_and(|status| status.settled) {
                return Ok(Action::requeue(Duration::from_secs(1)));
            }
            of_settled(&context, &request, &review)
        }
        other => without_request(&review, other.is_some()),
    };
    if let Some(status) = status(&review, &answer, context.clock.now()) {
        write(&context, &review, status).await?;
    }
    Ok(Action::await_change())
}

/// The last word on a review whose request is settled.
fn of_settled(
    context: &Context,
    request: &JitAccessRequest,
    review: &Arc<JitAccessReview>,
) -> crate::plan::reviews::Answer {
    let case = Case {
        request,
        plan: None,
        reviews: std::slice::from_ref(review),
        admission: &context.admission.now(),
        pipelines: &context.settings.pipelines,
        now: context.clock.now(),
    };
    let mut tally = tally(case, &|_, _| Right::NotAllowed);
    let answer = tally.answers.remove(&review.uid().unwrap_or_default());
    let mut answer = answer.unwrap_or_else(|| without_request(review, true));
    answer.settled = true;
    answer
}

/// Writes what is said of a review.
pub(super) async fn write(
    context: &Context,
    review: &JitAccessReview,
    status: JitAccessReviewStatus,
) -> Result<(), WriteError> {
    let api: Api<Tolerant<JitAccessReview>> =
        Api::namespaced(context.client.clone(), &review.namespace().unwrap_or_default());
    let mut wanted = review.clone();
    wanted.status = Some(status);
    match api.replace_status(&review.name_any(), &PostParams::default(), &Tolerant(wanted)).await {
        Ok(written) => {
            super::request::record::reviewed(context, &written.0);
            Ok(())
        }
        // Gone, or changed meanwhile: then it comes again.
        Err(kube::Error::Api(status)) if matches!(status.code, 404 | 409) => Ok(()),
        Err(source) => Err(WriteError { operation: "write the status of the review", source }),
    }
}
