//! Whose review of a request counts.
//!
//! | verdict | counts, when the reviewer | for what | when |
//! |---|---|---|---|
//! | `Approved` | may `approve` that policy, is not the requester nor who is named in `onBehalfOf`, and is not counted yet | one policy, one plan | in time, vouched for by admission, before the grant |
//! | `Denied`, `Revoked` | may `approve` a policy that covers the request | the request | always |
//! | `Ended` | is the requester, or as above | the request | always |
//!
//! Every review gets an answer. What can never count is settled at once, and stays as it was answered: a plan that
//! comes back finds no approvals.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use super::admission::Admission;
use super::authorize::GrantPlan;
use super::lifecycle::{plus, state};
use super::people::{Pipelines, Trait};
use crate::api::{JitAccessRequest, JitAccessReview, JitAccessReviewStatus, State, UserInfo, Verdict};

mod answers;

pub use answers::without_request;
pub(crate) use answers::{MAX_NAME, cut};

/// How long the word of somebody without the right to it is kept in mind: a right that was just given may not be
/// known everywhere yet.
const GRACE: SignedDuration = SignedDuration::from_secs(60);

/// What the API server says to: may this user `approve` this policy?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Right {
    /// Yes.
    Allowed,
    /// No.
    NotAllowed,
    /// It did not say, and why.
    Unknown(String),
}

/// A request, its reviews, and what they are judged by.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// The request.
    pub request: &'a JitAccessRequest,
    /// What it would get now; none where that cannot be told, or where it gets nothing.
    pub plan: Option<&'a GrantPlan>,
    /// Reviews of this request and no other, by its UID.
    pub reviews: &'a [Arc<JitAccessReview>],
    /// Whether the API server's word can be taken.
    pub admission: &'a Admission,
    /// Who is a program.
    pub pipelines: &'a Pipelines,
    /// What the time is.
    pub now: Timestamp,
}

/// What reviews come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// The policies of the plan, in its order.
    pub quorums: Vec<Quorum>,
    /// The first word of an approver against the request.
    pub against: Option<Word>,
    /// The first word of the requester, or of an approver, that ends it.
    pub ended: Option<Word>,
    /// A word against the request that may count: the API server did not say. Nothing is granted meanwhile.
    pub doubt: Option<String>,
    /// What is said of each review, by its UID.
    pub answers: BTreeMap<String, Answer>,
}

/// The approvals under one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quorum {
    /// The policy.
    pub policy: String,
    /// How many people it asks for.
    pub required: usize,
    /// Who counts, in the order of their reviews.
    pub by: Vec<String>,
    /// When the last of those that were needed approved; none where too few have, or none is needed.
    pub reached_at: Option<Timestamp>,
    /// Approvals that would count if the API server said so, and why it did not.
    pub unasked: Vec<String>,
}

/// Somebody's word that ends a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Word {
    /// Whose, cut where it is very long.
    pub who: String,
    /// What.
    pub verdict: Verdict,
    /// Why.
    pub comment: Option<String>,
}

/// What is said of one review.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Whether it counts.
    pub counted: bool,
    /// Why, or why not.
    pub reason: String,
    /// Whether that is the last word.
    pub settled: bool,
}

impl Tally {
    /// Whether enough people have approved under every policy.
    #[must_use]
    pub fn is_reached(&self) -> bool {
        self.quorums.iter().all(|quorum| quorum.by.len() >= quorum.required)
    }

    /// Why it cannot be told whether enough people have approved, where they may have.
    #[must_use]
    pub fn open_question(&self) -> Option<&str> {
        let possible =
            self.quorums.iter().all(|quorum| quorum.by.len() + quorum.unasked.len() >= quorum.required);
        let mut unasked = self.quorums.iter().flat_map(|quorum| &quorum.unasked);
        if possible { unasked.next().map(String::as_str) } else { None }
    }

    /// When the last approval that was needed was given; none where none was needed.
    #[must_use]
    pub fn reached_at(&self) -> Option<Timestamp> {
        self.quorums.iter().filter_map(|quorum| quorum.reached_at).max()
    }
}

impl Word {
    fn of(review: &JitAccessReview, reviewer: &UserInfo) -> Self {
        let comment = review.spec.comment.clone().filter(|comment| !comment.trim().is_empty());
        Self { who: shown(reviewer), verdict: review.spec.verdict, comment }
    }
}

/// Which rights the tally depends on: users, and policies by name.
#[must_use]
pub fn questions(case: Case<'_>) -> Vec<(UserInfo, String)> {
    let asked = std::cell::RefCell::new(Vec::new());
    let _ = tally(case, &|user, policy| {
        let question = (user.clone(), policy.to_owned());
        let mut asked = asked.borrow_mut();
        if !asked.contains(&question) {
            asked.push(question);
        }
        Right::Unknown(String::new())
    });
    asked.into_inner()
}

/// Counts the reviews of a request.
#[must_use]
pub fn tally(case: Case<'_>, rights: &dyn Fn(&UserInfo, &str) -> Right) -> Tally {
    let mut reviews: Vec<&JitAccessReview> = case.reviews.iter().map(AsRef::as_ref).collect();
    // Of two of the same second, the one that was told that it counts goes on counting.
    let counted =
        |review: &JitAccessReview| review.status.as_ref().and_then(|status| status.counted) == Some(true);
    reviews.sort_by_key(|review| (created(review), !counted(review), review.metadata.uid.clone()));
    let policies = case.plan.map(|plan| plan.policies.as_slice()).unwrap_or_default();
    let quorum = |policy: &crate::api::RequestedPolicy| Quorum {
        policy: policy.name.clone(),
        required: usize::try_from(policy.required).unwrap_or_default(),
        ..Quorum::default()
    };
    let mut count = Count {
        case,
        rights,
        tally: Tally { quorums: policies.iter().map(quorum).collect(), ..Tally::default() },
        seen: vec![BTreeSet::new(); policies.len()],
    };
    for review in reviews {
        // What was settled without counting stays so, whatever has come back since.
        if review.status.as_ref().is_some_and(|status| status.settled) {
            continue;
        }
        let answer = match review.spec.verdict {
            Verdict::Approved => count.approval(review),
            Verdict::Denied | Verdict::Revoked | Verdict::Ended => count.against(review),
        };
        count.tally.answers.insert(review.metadata.uid.clone().unwrap_or_default(), answer);
    }
    count.tally
}

/// The status that an answer makes; none where it says that already.
#[must_use]
pub fn status(review: &JitAccessReview, answer: &Answer, now: Timestamp) -> Option<JitAccessReviewStatus> {
    let before = review.status.clone().unwrap_or_default();
    let settled_at = answer.settled.then(|| {
        before.settled_at.clone().unwrap_or(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now))
    });
    let after = JitAccessReviewStatus {
        observed_generation: review.metadata.generation,
        conditions: before.conditions,
        counted: Some(answer.counted),
        reason: Some(answers::cut(&answer.reason, 1024)),
        settled: answer.settled,
        settled_at,
    };
    (review.status.as_ref() != Some(&after)).then_some(after)
}

/// A count under way.
struct Count<'a> {
    case: Case<'a>,
    rights: &'a dyn Fn(&UserInfo, &str) -> Right,
    tally: Tally,
    /// Who was counted under each policy.
    seen: Vec<BTreeSet<Trait>>,
}

fn created(review: &JitAccessReview) -> Option<Timestamp> {
    review.metadata.creation_timestamp.as_ref().map(|at| at.0)
}

/// A name as messages show it: one that is very long would leave no room for what is said of it.
fn shown(user: &UserInfo) -> String {
    answers::cut(&user.username, MAX_NAME)
}

fn reviewer(review: &JitAccessReview) -> Option<&UserInfo> {
    review.spec.reviewer.as_ref().filter(|user| !user.username.trim().is_empty())
}

fn never(reason: impl Into<String>) -> Answer {
    Answer { counted: false, reason: reason.into(), settled: true }
}

fn not_now(reason: impl Into<String>) -> Answer {
    Answer { counted: false, reason: reason.into(), settled: false }
}

fn counts(reason: impl Into<String>) -> Answer {
    Answer { counted: true, reason: reason.into(), settled: false }
}

impl Count<'_> {
    fn approval(&mut self, review: &JitAccessReview) -> Answer {
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
            return not_now(
                "the request cannot be granted now (its status says why); judged again when it can",
            );
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
        let traits = self.case.pipelines.traits(who);
        if !traits.is_disjoint(&self.seen[place]) {
            self.seen[place].extend(traits);
            return not_now(format!(
                "{} counts already under JitPolicy {name}: everybody counts once",
                shown(who)
            ));
        }
        match (self.rights)(who, name) {
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

    fn against(&mut self, review: &JitAccessReview) -> Answer {
        let Some(who) = reviewer(review) else {
            return never("admission did not say who reviews: create the review again");
        };
        let verdict = review.spec.verdict;
        let past = answers::of_the_past(self.case.request, review);
        if let (Some(past), true) = (&past, answers::is_answered(review)) {
            return past.clone();
        }
        let right =
            if verdict == Verdict::Ended && self.is_requester(who) { Ok(()) } else { self.may_decide(who) };
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
                let names: Vec<String> = self.covering().into_iter().collect();
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
        for name in self.covering() {
            match (self.rights)(who, &name) {
                Right::Allowed => return Ok(()),
                Right::NotAllowed => {}
                unknown @ Right::Unknown(_) => answer = unknown,
            }
        }
        Err(answer)
    }

    /// The policies that cover the request now, did at the last judgement, and the one that it names.
    fn covering(&self) -> BTreeSet<String> {
        let request = self.case.request;
        let planned = self.case.plan.into_iter().flat_map(|plan| &plan.policies);
        let known = request.status.iter().flat_map(|status| &status.policies);
        let named = std::iter::once(request.spec.policy_ref.name.clone());
        planned.chain(known).map(|policy| policy.name.clone()).chain(named).collect()
    }
}

/// Since when a request has waited for its approvals.
#[must_use]
pub fn waiting_since(request: &JitAccessRequest, now: Timestamp) -> Timestamp {
    let back = request.status.as_ref().and_then(|status| status.pending_since.as_ref());
    back.or(request.metadata.creation_timestamp.as_ref()).map_or(now, |at| at.0)
}

/// Whether a request can still be granted.
fn is_open(request: &JitAccessRequest) -> bool {
    match state(request) {
        State::Pending | State::Approved | State::Scheduled => true,
        State::Opening
        | State::Active
        | State::Closing
        | State::Expired
        | State::Ended
        | State::Denied
        | State::Revoked
        | State::TimedOut
        | State::Failed
        | State::Void => false,
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;
    use crate::api::{JitAccessRequestStatus, JitAccessReviewSpec, NameRef, RequestRef, RequestedPolicy};

    fn at(second: i64) -> Time {
        Time(Timestamp::from_second(second).unwrap())
    }

    fn approval(uid: &str, who: &str, second: i64) -> JitAccessReview {
        let mut review = JitAccessReview::new(
            uid,
            JitAccessReviewSpec {
                request_ref: RequestRef { name: "one".into(), uid: "uid".into() },
                policy_ref: NameRef { name: "web".into() },
                plan_hash: Some("hash".into()),
                verdict: Verdict::Approved,
                comment: None,
                reviewer: Some(UserInfo { username: who.into(), ..UserInfo::default() }),
            },
        );
        review.metadata.uid = Some(uid.into());
        review.metadata.creation_timestamp = Some(at(second));
        review
    }

    fn request() -> JitAccessRequest {
        let mut request = JitAccessRequest::default();
        request.metadata.creation_timestamp = Some(at(100));
        request.spec.policy_ref = NameRef { name: "web".into() };
        request.spec.requester = Some(UserInfo { username: "alice".into(), ..UserInfo::default() });
        request
    }

    fn answers(request: &JitAccessRequest, reviews: Vec<JitAccessReview>) -> BTreeMap<String, Answer> {
        let policy =
            RequestedPolicy { name: "web".into(), uid: "web".into(), required: 2, ..Default::default() };
        let plan = GrantPlan {
            policies: vec![policy],
            machines: Vec::new(),
            rules: Vec::new(),
            connections: Vec::new(),
            duration: std::time::Duration::from_secs(60),
            shortened_by: None,
            hash: "hash".into(),
            pending_timeout: std::time::Duration::from_secs(3600),
            use_within: std::time::Duration::from_secs(3600),
            self_approval: BTreeSet::new(),
            limits: BTreeMap::new(),
        };
        let reviews: Vec<_> = reviews.into_iter().map(Arc::new).collect();
        let case = Case {
            request,
            plan: Some(&plan),
            reviews: &reviews,
            admission: &Admission::InForce { since: Timestamp::MIN },
            pipelines: &Pipelines::default(),
            now: at(200).0,
        };
        tally(case, &|_, _| Right::Allowed).answers
    }

    #[test]
    fn of_two_reviews_of_the_same_second_the_one_that_counted_goes_on_counting() {
        let mut first = approval("z", "bob", 110);
        first.status = Some(JitAccessReviewStatus { counted: Some(true), ..Default::default() });
        let answers = answers(&request(), vec![approval("a", "bob", 110), first]);
        assert!(answers["z"].counted && !answers["a"].counted, "{answers:?}");
    }

    #[test]
    fn an_approval_after_the_grant_is_not_said_to_have_counted() {
        let mut request = request();
        let policy = RequestedPolicy {
            name: "web".into(),
            approved_by: vec!["bob".into()],
            ..RequestedPolicy::default()
        };
        request.status = Some(JitAccessRequestStatus {
            state: Some("Revoked".into()),
            plan_hash: Some("hash".into()),
            granted_at: Some(at(120)),
            policies: vec![policy],
            ..Default::default()
        });
        let answers = answers(&request, vec![approval("in-time", "bob", 120), approval("late", "bob", 121)]);
        assert!(answers["in-time"].counted && !answers["late"].counted, "{answers:?}");
        assert_eq!(answers["late"].reason, "the request is over already (Revoked)");
    }

    #[test]
    fn a_name_that_is_very_long_leaves_room_for_what_is_said_of_it() {
        let mut request = request();
        let long = "x".repeat(1024);
        request.spec.requester = Some(UserInfo { username: long.clone(), ..UserInfo::default() });
        let review = approval("own", &long, 110);
        let answer = answers(&request, vec![review.clone()]).remove("own").unwrap();
        let told = status(&review, &answer, at(200).0).unwrap().reason.unwrap();
        assert!(told.ends_with("... asked: somebody else has to approve"), "{told}");
    }
}
