//! Words that end a request: by those who might approve it, and by the requester.

use jiff::SignedDuration;

use super::{
    Answer, Count, Right, Weight, Word, answers, counts, created, is_settled, never, not_now, reviewer, shown,
};
use crate::api::{JitAccessReview, UserInfo, Verdict};

/// How long the word of somebody without the right to it is kept in mind: a right that was just given may not be
/// known everywhere yet.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

impl Word {
    fn of(review: &JitAccessReview, reviewer: &UserInfo) -> Self {
        let comment = review.spec.comment.clone().filter(|comment| !comment.trim().is_empty());
        Self { who: shown(reviewer), verdict: review.spec.verdict, comment }
    }
}

impl Count<'_> {
    pub(super) fn against(&mut self, review: &JitAccessReview) -> Answer {
        let Some(who) = reviewer(review) else {
            return never("admission did not say who reviews: create the review again");
        };
        let verdict = review.spec.verdict;
        let past = answers::of_the_past(self.case.request, review);
        if let (Some(past), Some(_)) = (&past, answers::before(review)) {
            return past.clone();
        }
        if past.is_none()
            && let Some(over) = self.decided()
        {
            return not_now(over);
        }
        let right = if verdict == Verdict::Ended && self.is_requester(who) || self.was_asked(review) {
            Ok(())
        } else {
            self.may_decide(who)
        };
        match right {
            Ok(()) => {
                let word = Word::of(review, who);
                let place =
                    if verdict == Verdict::Ended { &mut self.tally.ended } else { &mut self.tally.against };
                place.get_or_insert(word);
                past.unwrap_or_else(|| counts(answers::effect(verdict)))
            }
            Err(_) if past.is_some() => never("the request is over already"),
            Err(Right::Unknown(why)) => {
                let why =
                    format!("whether {} may decide on the request could not be asked: {why}", shown(who));
                self.tally.doubt.get_or_insert_with(|| why.clone());
                not_now(why)
            }
            Err(Right::Allowed | Right::NotAllowed) => {
                let names: Vec<&str> = self.covering.iter().map(String::as_str).collect();
                let or_requester = if verdict == Verdict::Ended { "is not the requester and " } else { "" };
                let reason = format!(
                    "{} {or_requester}may not approve under any policy that covers the request ({})",
                    shown(who),
                    names.join(", ")
                );
                // Admission has asked for the right to all verdicts but this one.
                let late = created(review).is_none_or(|at| self.case.now.duration_since(at) > GRACE);
                if verdict == Verdict::Ended && late { never(reason) } else { not_now(reason) }
            }
        }
    }

    /// By username and uid: a namesake is somebody else.
    fn is_requester(&self, who: &UserInfo) -> bool {
        let uid = |user: &UserInfo| user.uid.clone().unwrap_or_default();
        let requester = self.case.request.spec.requester.as_ref();
        requester.is_some_and(|own| own.username == who.username && uid(own) == uid(who))
    }

    /// Whether somebody may approve under a policy that covers the request.
    fn may_decide(&self, who: &UserInfo) -> Result<(), Right> {
        let mut answer = Right::NotAllowed;
        for name in &self.covering {
            match (self.rights)(who, name) {
                Right::Allowed => return Ok(()),
                Right::NotAllowed => {}
                unknown @ Right::Unknown(_) => answer = unknown,
            }
        }
        Err(answer)
    }

    /// Whether admission has asked for the right, when it let the review in: then the word stands, also where its author
    /// has lost the right since.
    fn was_asked(&self, review: &JitAccessReview) -> bool {
        matches!(review.spec.verdict, Verdict::Denied | Verdict::Revoked)
            && self.case.admission.vouches_for(created(review))
            && self.covering.contains(&review.spec.policy_ref.name)
    }

    /// Whose word has decided, where nothing else matters any more.
    pub(super) fn decided(&self) -> Option<String> {
        let word = self.tally.against.as_ref().or(self.tally.ended.as_ref())?;
        Some(format!("the request is over by the word of {}", word.who))
    }

    /// How early a review is looked at; none where it was settled and nothing of it can count.
    pub(super) fn weight(&self, review: &JitAccessReview) -> Option<Weight> {
        let settled = is_settled(review);
        match review.spec.verdict {
            Verdict::Denied | Verdict::Revoked if self.was_asked(review) => Some(Weight::Denial),
            Verdict::Denied | Verdict::Revoked => Some(Weight::Elsewhere),
            Verdict::Ended if reviewer(review).is_some_and(|who| self.is_requester(who)) => {
                Some(Weight::Withdrawal)
            }
            Verdict::Approved => (!settled).then_some(Weight::Approval),
            Verdict::Ended => (!settled).then_some(Weight::Ended),
        }
    }
}
