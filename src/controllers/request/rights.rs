//! Who may approve: asked of the API server, in the groups that admission stamped.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::join_all;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec, SubjectAccessReviewStatus,
};
use kube::api::PostParams;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::api::{GROUP, UserInfo};
use crate::plan::reviews::Right;

/// How long an answer holds while a request waits. At the grant it is asked again.
const HOLDS: Duration = Duration::from_secs(10);
/// How long an answer is waited for: what has to be closed must not wait for it.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long all questions of one request together are asked. What is not answered by then counts as not known.
const PATIENCE_FOR_ALL: Duration = Duration::from_secs(5);
/// Questions asked at once.
const AT_ONCE: usize = 8;
/// The most answers that are remembered.
const MOST: usize = 4096;

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Question {
    namespace: String,
    policy: String,
    username: String,
    uid: Option<String>,
    groups: Vec<String>,
}

/// What the API server said lately. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Rights(Arc<Mutex<HashMap<Question, (Right, Instant)>>>);

/// Answers to a few questions of one namespace.
#[derive(Debug, Default)]
pub(super) struct Answers {
    namespace: String,
    rights: HashMap<Question, Right>,
}

impl Answers {
    /// The answer to a question, where it was asked.
    pub(super) fn known(&self, user: &UserInfo, policy: &str) -> Option<Right> {
        self.rights.get(&Question::new(&self.namespace, user, policy)).cloned()
    }

    /// The answer to a question.
    pub(super) fn right(&self, user: &UserInfo, policy: &str) -> Right {
        self.known(user, policy).unwrap_or_else(|| Right::Unknown("it was not asked in time".to_owned()))
    }
}

impl Question {
    fn new(namespace: &str, user: &UserInfo, policy: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            policy: policy.to_owned(),
            username: user.username.clone(),
            uid: user.uid.clone(),
            groups: user.groups.clone(),
        }
    }
}

impl Rights {
    /// Asks which users may `approve` which policies of a namespace, until `open` names no more questions or time is up.
    /// `fresh`: whatever was said before.
    pub(super) async fn ask(
        &self,
        client: &Client,
        namespace: &str,
        fresh: bool,
        open: impl Fn(&Answers) -> Vec<(UserInfo, String)>,
    ) -> Answers {
        let begun = Instant::now();
        let mut answers = Answers { namespace: namespace.to_owned(), rights: HashMap::new() };
        while begun.elapsed() < PATIENCE_FOR_ALL {
            let questions = open(&answers);
            if questions.is_empty() {
                break;
            }
            let some = questions.iter().take(AT_ONCE);
            let some = some.map(|(user, policy)| Question::new(namespace, user, policy));
            let asked = some.map(|question| self.ask_one(client, question, fresh));
            answers.rights.extend(join_all(asked).await);
        }
        answers
    }

    fn known(&self, question: &Question) -> Option<Right> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.get(question).filter(|(_, at)| at.elapsed() < HOLDS).map(|(right, _)| right.clone())
    }

    async fn ask_one(&self, client: &Client, question: Question, fresh: bool) -> (Question, Right) {
        if let Some(right) = self.known(&question).filter(|_| !fresh) {
            return (question, right);
        }
        let api: Api<SubjectAccessReview> = Api::all(client.clone());
        let review = review(&question);
        let right = match tokio::time::timeout(PATIENCE, api.create(&PostParams::default(), &review)).await {
            Ok(Ok(answer)) => read(answer.status),
            Ok(Err(error)) => Right::Unknown(format!("the API server did not answer: {error}")),
            Err(_) => Right::Unknown(format!("the API server did not answer within {}s", PATIENCE.as_secs())),
        };
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= MOST {
            known.retain(|_, (_, at)| at.elapsed() < HOLDS);
        }
        match &right {
            Right::Allowed | Right::NotAllowed if known.len() < MOST => {
                known.insert(question.clone(), (right.clone(), Instant::now()));
            }
            Right::Allowed | Right::NotAllowed | Right::Unknown(_) => {
                known.remove(&question);
            }
        }
        drop(known);
        (question, right)
    }
}

fn review(question: &Question) -> SubjectAccessReview {
    let Question { namespace, policy, username, uid, groups } = question.clone();
    SubjectAccessReview {
        spec: SubjectAccessReviewSpec {
            user: Some(username),
            uid,
            groups: Some(groups),
            resource_attributes: Some(ResourceAttributes {
                group: Some(GROUP.to_owned()),
                resource: Some("jitpolicies".to_owned()),
                verb: Some("approve".to_owned()),
                namespace: Some(namespace),
                name: Some(policy),
                ..ResourceAttributes::default()
            }),
            ..SubjectAccessReviewSpec::default()
        },
        ..SubjectAccessReview::default()
    }
}

/// A "no" that came about by an error is no answer.
fn read(status: Option<SubjectAccessReviewStatus>) -> Right {
    let Some(status) = status else { return Right::Unknown("the API server said nothing".to_owned()) };
    let denied = status.denied.unwrap_or(false);
    match status.evaluation_error.filter(|error| !error.is_empty()) {
        _ if status.allowed && !denied => Right::Allowed,
        Some(error) if !denied => Right::Unknown(error),
        Some(_) | None => Right::NotAllowed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_plain_yes_is_a_yes() {
        let status = |allowed, denied, error: &str| SubjectAccessReviewStatus {
            allowed,
            denied: Some(denied),
            evaluation_error: Some(error.to_owned()),
            ..SubjectAccessReviewStatus::default()
        };
        assert_eq!(read(Some(status(true, false, ""))), Right::Allowed);
        assert_eq!(read(Some(status(true, false, "a role is missing"))), Right::Allowed);
        assert_eq!(read(Some(status(true, true, ""))), Right::NotAllowed);
        assert_eq!(read(Some(status(false, false, ""))), Right::NotAllowed);
        assert_eq!(read(Some(status(false, false, "webhook"))), Right::Unknown("webhook".into()));
        assert!(matches!(read(None), Right::Unknown(_)));
    }

    /// What many reviews ask for must not hold up what others want.
    #[tokio::test(start_paused = true)]
    async fn a_slow_api_server_is_asked_for_ten_seconds_at_most() {
        let slow = tower::service_fn(|_: http::Request<kube::client::Body>| async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            let body = br#"{"apiVersion":"authorization.k8s.io/v1","kind":"SubjectAccessReview","spec":{},"status":{"allowed":true}}"#;
            Ok::<_, std::convert::Infallible>(http::Response::new(kube::client::Body::from(body.to_vec())))
        });
        let client = Client::new(slow, "default");
        let users: Vec<UserInfo> =
            (0..256).map(|n| UserInfo { username: format!("user-{n}"), ..UserInfo::default() }).collect();
        let open = |answers: &Answers| -> Vec<(UserInfo, String)> {
            let all = users.iter().map(|user| (user.clone(), "web".to_owned()));
            all.filter(|(user, policy)| answers.known(user, policy).is_none()).collect()
        };
        let begun = Instant::now();
        let answers = Rights::default().ask(&client, "web", true, open).await;
        assert!(begun.elapsed() <= Duration::from_secs(10), "{:?}", begun.elapsed());
        assert_eq!(answers.right(&users[0], "web"), Right::Allowed);
        assert!(matches!(answers.right(&users[255], "web"), Right::Unknown(_)));
    }
}
