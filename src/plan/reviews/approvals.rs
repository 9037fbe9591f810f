//! Approvals: of one policy and one plan, by somebody else.

use super::{Answer, Right};
use super::{Case, Count, NOT_NOW, answers, counts, created, never, not_now, reviewer, shown, waiting_since};
use crate::api::{JitAccessReview, UserInfo};
use crate::plan::admission::Admission;
use crate::plan::lifecycle::plus;
use crate::plan::people::namespace_of;

impl Count<'_> {
    pub(super) fn approval(&mut self, review: &JitAccessReview) -> Answer {
        let Some(who) = reviewer(review) else {
            return never("admission did not say who reviews: create the review again");
        };
        if let Some(answer) = answers::of_the_past(self.case.request, review) {
            return answer;
        }
        match self.case.admission {
            Admission::NotInForce { why } => {
                return not_now(format!(
                    "the admission policies are not in force, so nobody's identity is certain: {why}"
                ));
            }
            Admission::InForce { since } if !self.case.admission.vouches_for(created(review)) => {
                return never(format!(
                    "not provably created while the admission policies were in force (since {since}): create the review again"
                ));
            }
            Admission::InForce { .. } => {}
        }
        let Some(plan) = self.case.plan else {
            return not_now(NOT_NOW);
        };
        if review.spec.plan_hash.as_deref() != Some(plan.hash.as_str()) {
            return never(
                "it approves another plan than the present one: look at status.rules of the request and approve again",
            );
        }
        let name = &review.spec.policy_ref.name;
        let Some(place) = plan.policies.iter().position(|policy| policy.name == *name) else {
            let known: Vec<&str> = plan.policies.iter().map(|policy| policy.name.as_str()).collect();
            return never(format!("JitPolicy {name} does not cover the request: {} does", known.join(", ")));
        };
        let waits_until = plus(waiting_since(self.case.request, self.case.now), plan.pending_timeout);
        if created(review).is_none_or(|at| at > waits_until) {
            return never(format!(
                "it came after {waits_until}, when the request had waited long enough (spec.approval.pendingTimeout)"
            ));
        }
        if let Some(why) = self.own(who, &plan.policies[place].uid) {
            return not_now(why);
        }
        if let Some(over) = self.decided() {
            return not_now(over);
        }
        // Asked before it is seen who counts already: of two reviews by one person, the groups of the one may have the
        // right and those of the other not.
        let right = (self.rights)(who, name);
        let traits = self.case.pipelines.traits(who);
        if !traits.is_disjoint(&self.seen[place]) {
            self.seen[place].extend(traits);
            return not_now(format!(
                "{} counts already under JitPolicy {name}: everybody counts once",
                shown(who)
            ));
        }
        match right {
            Right::Allowed => {}
            Right::NotAllowed => {
                return not_now(format!(
                    "{} may not approve under JitPolicy {name} (verb approve on jitpolicies/{name})",
                    shown(who)
                ));
            }
            Right::Unknown(why) => {
                self.seen[place].extend(traits);
                let why = format!(
                    "whether {} may approve under JitPolicy {name} could not be asked: {why}",
                    shown(who)
                );
                self.tally.quorums[place].unasked.push(why.clone());
                return not_now(why);
            }
        }
        self.seen[place].extend(traits);
        let quorum = &mut self.tally.quorums[place];
        quorum.by.push(who.username.clone());
        if quorum.by.len() == quorum.required {
            quorum.reached_at = created(review);
        }
        counts(format!("counts under JitPolicy {name}, which asks for {}", quorum.required))
    }

    /// Why somebody's approval would be of their own request.
    ///
    /// A delegated request has two people behind it, of whom the one is certain and the other claimed. With
    /// `allowSelfApproval` either could approve what the other is named for, so there it does not apply.
    fn own(&self, who: &UserInfo, policy_uid: &str) -> Option<String> {
        let spec = &self.case.request.spec;
        let people = self.case.pipelines;
        if let Some(why) = self.pipeline(who) {
            return Some(why);
        }
        let claimed = spec.on_behalf_of.as_deref();
        if claimed.is_some_and(|claim| people.may_be(claim, who)) {
            return Some(format!("{} is whom the request is on behalf of, who never counts", shown(who)));
        }
        let own = spec.requester.as_ref().is_none_or(|requester| people.same(requester, who));
        if !own {
            return None;
        }
        if claimed.is_some() {
            return Some(format!(
                "{} asked, on another's behalf, and so never counts (allowSelfApproval does not apply)",
                shown(who)
            ));
        }
        let allowed = self.case.plan.is_some_and(|plan| plan.self_approval.contains(policy_uid));
        (!allowed).then(|| format!("{} asked: somebody else has to approve", shown(who)))
    }

    /// Why the approval of a pipeline would be somebody's own.
    fn pipeline(&self, who: &UserInfo) -> Option<String> {
        let Case { request, pipelines, .. } = self.case;
        if !pipelines.has(&who.username) {
            return None;
        }
        let home = namespace_of(&who.username);
        if home.is_some() && home == request.metadata.namespace {
            return Some(format!(
                "{} is a service account of the request's own namespace, whose editors can act as it: a person has to \
                 approve, or a pipeline of another namespace",
                shown(who)
            ));
        }
        let asked = request.spec.requester.as_ref().is_none_or(|user| pipelines.has(&user.username));
        asked.then(|| format!("{} is a pipeline, and so is who asked: a person has to approve", shown(who)))
    }
}
