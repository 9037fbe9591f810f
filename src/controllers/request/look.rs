//! What a request's next move depends on: as the caches have it, or asked afresh for a grant.

use std::sync::Arc;

use jiff::Timestamp;
use kube::api::ListParams;
use kube::{Api, ResourceExt};

use super::counting::{Counted, count, gather};
use super::turns::Turn;
use super::{clocks, passage, seen, views};
use crate::api::{JitAccessRequest, JitPolicy, Reason, RuleStatus, State, Tolerant};
use crate::controllers::Context;
use crate::controllers::retry::WriteError;
use crate::plan::admission::Admission;
use crate::plan::authorize::{Judgement, PolicyView, judge, patience};
use crate::plan::lifecycle::{Ground, Step, World, state, step};
use crate::plan::reviews::Tally;
use crate::plan::terms::Patience;

/// One look at what a request depends on, without its reviews.
pub(super) struct Look {
    pub(super) now: Timestamp,
    judgement: Judgement,
    admission: Admission,
    patience: Patience,
    ground: Ground,
    no_room: Option<(Reason, String)>,
    stopped_by: Option<String>,
    /// Held until what becomes of it is written.
    turn: Option<Turn>,
}

impl Look {
    /// What the caches have. Waits for nothing, so that what has to be closed is.
    pub(super) fn at_caches(context: &Context, request: &JitAccessRequest) -> Self {
        let namespace = request.namespace().unwrap_or_default();
        let views = context.policies_filled.is_filled().then(|| views::cached(context, &namespace));
        Self::new(context, request, views, context.admission.now(), false)
    }

    /// What the API server has now, its reviews counted. In this order, so that nothing that was asked early is
    /// outdated by what took long: policies, reviews, rights, admission, the time.
    pub(super) async fn afresh(
        context: &Context,
        request: &JitAccessRequest,
    ) -> Result<(Self, Counted), WriteError> {
        let namespace = request.namespace().unwrap_or_default();
        let policies = list(context, &namespace).await?;
        let about = Self::new(
            context,
            request,
            Some(views::of(context, &namespace, &policies)),
            context.admission.now(),
            true,
        );
        let words = gather(context, request, (&about.judgement, &about.admission), true).await?;
        drop(about);
        let admission = context.admission.confirmed().await;
        // The machines may have been read again meanwhile.
        let views = views::of(context, &namespace, &policies);
        let look = Self::new(context, request, Some(views), admission, true);
        let counted = count(context, request, (&look.judgement, &look.admission), words, look.now);
        Ok((look, counted))
    }

    /// The reviews as they were last watched, counted for this look.
    pub(super) async fn count(
        &self,
        context: &Context,
        request: &JitAccessRequest,
    ) -> Result<Counted, WriteError> {
        let by = (&self.judgement, &self.admission);
        let words = gather(context, request, by, false).await?;
        Ok(count(context, request, by, words, self.now))
    }

    fn new(
        context: &Context,
        request: &JitAccessRequest,
        policies: Option<Vec<PolicyView>>,
        admission: Admission,
        asked: bool,
    ) -> Self {
        let clock = if state(request).holds_rules() { &context.deadlines } else { &context.clock };
        let now = clock.now();
        let namespace = request.namespace().unwrap_or_default();
        let judgement = match &policies {
            Some(policies) => judge(request, policies, &context.settings.pipelines, now),
            // None known would look as if every policy had been deleted.
            None => Judgement::Unknown(Reason::Progressing, "the policies are not known yet".to_owned()),
        };
        let policies = policies.unwrap_or_default();
        let turn = match (&judgement, state(request)) {
            (Judgement::Allowed(plan), State::Approved) => {
                let pipelines = &context.settings.pipelines;
                Some(context.turns.take(request, &plan.limits, pipelines))
            }
            _ => None,
        };
        let limit = turn.as_ref().and_then(|turn| turn.as_ref().err());
        let no_room = clocks::apart(context, &namespace)
            .map(|why| (Reason::ClockSkew, why))
            .or_else(|| limit.map(|why| (Reason::LimitReached, why.clone())))
            .or_else(|| {
                let waits = turn.as_ref().is_some_and(Result::is_ok);
                let why = waits.then(|| views::unread(context, &judgement, &policies, now)).flatten();
                why.map(|why| (Reason::Progressing, why))
            });
        let stopped_by = match state(request) {
            State::Opening | State::Active => passage::stopped(context, request, &policies),
            _ => None,
        };
        Self {
            now,
            patience: patience(request, &policies),
            ground: context.opens.ground(request, asked),
            judgement,
            admission,
            no_room,
            stopped_by,
            turn: turn.and_then(Result::ok),
        }
    }

    /// Keeps the place that was taken: nobody knows whether the grant that uses it was written.
    pub(super) fn keep_turn(self) {
        if let Some(turn) = self.turn {
            turn.keep();
        }
    }

    /// The next move.
    pub(super) fn step(&self, context: &Context, request: &JitAccessRequest, tally: &Tally) -> Step {
        let seen = |rule: &RuleStatus| seen(context, rule);
        let world = World {
            request,
            judgement: &self.judgement,
            tally,
            admission: &self.admission,
            patience: self.patience,
            cluster: &context.settings.cluster,
            seen: &seen,
            no_room: self.no_room.clone(),
            stopped_by: self.stopped_by.clone(),
            ground: self.ground,
        };
        step(&world, self.now)
    }
}

/// The policies of a namespace as the API server has them now: a stop button that was pressed a moment ago stops.
async fn list(context: &Context, namespace: &str) -> Result<Vec<Arc<JitPolicy>>, WriteError> {
    let api: Api<Tolerant<JitPolicy>> = Api::namespaced(context.client.clone(), namespace);
    let list = api.list(&ListParams::default()).await;
    let list = list.map_err(|source| WriteError { operation: "list the policies of the request", source })?;
    Ok(list.items.into_iter().map(|policy| Arc::new(policy.0)).collect())
}
