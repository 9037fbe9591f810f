//! The reviews of a request: counted for its next move, and answered.

use std::sync::Arc;

use futures::future::join_all;
use jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::rights::Answers;
use crate::api::{JitAccessRequest, JitAccessReview, Tolerant};
use crate::controllers::Context;
use crate::controllers::retry::WriteError;
use crate::controllers::review;
use crate::plan::admission::Admission;
use crate::plan::authorize::Judgement;
use crate::plan::reviews::{Case, Tally, questions, tally};

/// Answers written at once.
const AT_ONCE: usize = 8;

/// Reviews, and what they come to.
#[derive(Default)]
pub(super) struct Counted {
    pub(super) reviews: Vec<Arc<JitAccessReview>>,
    pub(super) tally: Tally,
}

/// Reviews of a request, and who may give them.
pub(super) struct Words {
    reviews: Vec<Arc<JitAccessReview>>,
    rights: Answers,
}

/// Gathers the reviews of a request and asks for the rights of their authors. `fresh`: as the API server has them now,
/// with every right asked anew; else as they were last watched, with rights as they were lately.
pub(super) async fn gather(
    context: &Context,
    request: &JitAccessRequest,
    (judgement, admission): (&Judgement, &Admission),
    fresh: bool,
) -> Result<Words, WriteError> {
    let reviews = if fresh { list(context, request).await? } else { context.reviews.of(request) };
    let case = case(context, request, judgement, admission, &reviews, context.clock.now());
    let open = |known: &Answers| questions(case, &|user, policy| known.known(user, policy));
    let namespace = request.namespace().unwrap_or_default();
    let rights = context.rights.ask(&context.client, &namespace, fresh, open).await;
    Ok(Words { reviews, rights })
}

/// Counts what was gathered.
pub(super) fn count(
    context: &Context,
    request: &JitAccessRequest,
    (judgement, admission): (&Judgement, &Admission),
    words: Words,
    now: Timestamp,
) -> Counted {
    let Words { reviews, rights } = words;
    let case = case(context, request, judgement, admission, &reviews, now);
    let tally = tally(case, &|user, policy| rights.right(user, policy));
    Counted { reviews, tally }
}

fn case<'a>(
    context: &'a Context,
    request: &'a JitAccessRequest,
    judgement: &'a Judgement,
    admission: &'a Admission,
    reviews: &'a [Arc<JitAccessReview>],
    now: Timestamp,
) -> Case<'a> {
    let plan = match judgement {
        Judgement::Allowed(plan) => Some(&**plan),
        Judgement::Refused(..) | Judgement::Impossible(..) | Judgement::Held(..) | Judgement::Unknown(..) => {
            None
        }
    };
    Case { request, plan, reviews, admission, pipelines: &context.settings.pipelines, now }
}

/// The reviews of a request as the API server has them now.
async fn list(
    context: &Context,
    request: &JitAccessRequest,
) -> Result<Vec<Arc<JitAccessReview>>, WriteError> {
    let namespace = request.namespace().unwrap_or_default();
    let api: Api<Tolerant<JitAccessReview>> = Api::namespaced(context.client.clone(), &namespace);
    let of_that_name = ListParams::default().fields(&format!("spec.requestRef.name={}", request.name_any()));
    let list = api
        .list(&of_that_name)
        .await
        .map_err(|source| WriteError { operation: "list the reviews of the request", source })?;
    let reviews = list.items.into_iter().map(|review| review.0);
    Ok(reviews.filter(|review| review::is_of(review, request)).map(Arc::new).collect())
}

/// Tells each reviewer what became of their review.
pub(super) async fn answer(context: &Context, counted: &Counted) -> Result<(), WriteError> {
    let now = context.clock.now();
    let answers = counted.reviews.iter().filter_map(|review| {
        let answer = counted.tally.answers.get(&review.uid()?)?;
        crate::plan::reviews::status(review, answer, now).map(|status| (Arc::clone(review), status))
    });
    let answers: Vec<_> = answers.collect();
    for some in answers.chunks(AT_ONCE) {
        let writes = some.iter().map(|(review, status)| review::write(context, review, status.clone()));
        join_all(writes).await.into_iter().collect::<Result<(), WriteError>>()?;
    }
    Ok(())
}
