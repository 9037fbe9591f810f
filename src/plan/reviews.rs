//! Whose review of a request counts.
//!
//! | verdict | counts, when the reviewer | for what | when |
//! |---|---|---|---|
//! | `Approved` | may `approve` that policy, is not the requester nor who is named in `onBehalfOf`, and is not counted yet; a pipeline only for a person's request, and from another namespace | one policy, one plan | in time, vouched for by admission, before the grant |
//! | `Denied`, `Revoked` | might `approve` a policy that covers the request when admission asked, or may now | the request | always |
//! | `Ended` | is the requester, or as above | the request | always |
//!
//! Every review gets an answer. What can never count is settled at once, and stays as it was answered: a plan that
//! comes back finds no approvals. Words against a request are read all the same: a `settled` that somebody else wrote
//! hides no denial.
//!
//! Of one request at most [`MOST`] reviews are looked at at once, and nobody is asked about any more once a word has
//! decided: whoever may create reviews could otherwise keep the controller busy with one request.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;

use super::admission::Admission;
use super::authorize::GrantPlan;
use super::people::{Pipelines, Trait};
use crate::api::{JitAccessRequest, JitAccessReview, JitAccessReviewStatus, UserInfo, Verdict};

mod answers;
mod approvals;
mod words;

pub use answers::without_request;
pub(crate) use answers::{MAX_NAME, cut};

/// The most reviews of one request that are looked at at once.
pub const MOST: usize = 256;
/// What is said of an approval whose request cannot be judged now: nothing about the approval.
pub const NOT_NOW: &str = "the request cannot be granted now (its status says why); judged again when it can";

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

/// Which rights the tally depends on beside those that are known: users, and policies by name. None where the rest
/// changes nothing, because a word that is known to count has decided it.
#[must_use]
pub fn questions(
    case: Case<'_>,
    known: &dyn Fn(&UserInfo, &str) -> Option<Right>,
) -> Vec<(UserInfo, String)> {
    let open = std::cell::RefCell::new((HashSet::new(), Vec::new()));
    let _ = tally(case, &|user, policy| {
        known(user, policy).unwrap_or_else(|| {
            let question = (user.clone(), policy.to_owned());
            let (seen, open) = &mut *open.borrow_mut();
            if seen.insert(question.clone()) {
                open.push(question);
            }
            Right::Unknown(String::new())
        })
    });
    open.into_inner().1
}

/// Counts the reviews of a request.
#[must_use]
pub fn tally(case: Case<'_>, rights: &dyn Fn(&UserInfo, &str) -> Right) -> Tally {
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
        covering: covering(case),
    };
    let mut reviews: Vec<(Weight, &JitAccessReview)> =
        case.reviews.iter().filter_map(|review| Some((count.weight(review)?, &**review))).collect();
    // Of two of the same second, the one that was told that it counts goes on counting.
    let counted =
        |review: &JitAccessReview| review.status.as_ref().and_then(|status| status.counted) == Some(true);
    reviews.sort_by_key(|(weight, review)| {
        (*weight, created(review), !counted(review), review.metadata.uid.clone())
    });
    if reviews.get(MOST).is_some_and(|(weight, _)| matches!(weight, Weight::Denial | Weight::Elsewhere)) {
        count.tally.doubt =
            Some(format!("more than {MOST} reviews, denials among them: no more are looked at"));
    }
    for (_, review) in reviews.into_iter().take(MOST) {
        let answer = match review.spec.verdict {
            Verdict::Approved => count.approval(review),
            Verdict::Denied | Verdict::Revoked | Verdict::Ended => count.against(review),
        };
        if !is_settled(review) {
            count.tally.answers.insert(review.metadata.uid.clone().unwrap_or_default(), answer);
        }
    }
    count.tally
}

/// In which order reviews are looked at: what ends a request first, and last what anybody may write.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Weight {
    /// By somebody who may approve, as admission has asked.
    Denial,
    /// By the requester.
    Withdrawal,
    /// A denial by somebody who may approve something else, as far as admission has asked: any number of them are not to
    /// hide one that counts.
    Elsewhere,
    Approval,
    /// By whoever may create reviews.
    Ended,
}

fn is_settled(review: &JitAccessReview) -> bool {
    review.status.as_ref().is_some_and(|status| status.settled)
}

/// The policies that cover the request now, did at the last judgement, and the one that it names.
fn covering(case: Case<'_>) -> BTreeSet<String> {
    let planned = case.plan.into_iter().flat_map(|plan| &plan.policies);
    let known = case.request.status.iter().flat_map(|status| &status.policies);
    let named = std::iter::once(case.request.spec.policy_ref.name.clone());
    planned.chain(known).map(|policy| policy.name.clone()).chain(named).collect()
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
    /// Names of the policies that cover the request now, did at the last judgement, and of the one that it names.
    covering: BTreeSet<String>,
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

/// Since when a request has waited for its approvals.
#[must_use]
pub fn waiting_since(request: &JitAccessRequest, now: Timestamp) -> Timestamp {
    let back = request.status.as_ref().and_then(|status| status.pending_since.as_ref());
    back.or(request.metadata.creation_timestamp.as_ref()).map_or(now, |at| at.0)
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
            sessions_go_on: true,
            lead: std::time::Duration::ZERO,
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
