//! Those who attack: users of the API server with the roles that `deploy/` ships and those that clusters bring, each
//! with a token of its own, over plain HTTP.

use std::future::Future;
use std::sync::LazyLock;
use std::time::Duration;

use portcullis_harness::{ControlPlane, User, eventually, install};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// Connections live as long as the runtime that made them.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Runtime::new().unwrap());

/// Somebody who writes to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Actor {
    Requester,
    Approver,
    /// Requester and approver.
    Both,
    /// Requester who may ask on behalf of others.
    Delegate,
    /// A service account that may request.
    Pipeline,
    Viewer,
    PolicyAdmin,
    /// Holds the built-in ClusterRole `admin` in the namespace.
    NamespaceAdmin,
    /// A service account with every verb on everything of our group, in the namespace.
    Wildcard,
    /// `system:masters`.
    ClusterAdmin,
    /// Authenticated, and no more.
    Outsider,
    /// A service account named as the controller's is, in a namespace named almost as the controller's.
    Namesake,
    /// The controller itself: what it may shows that refusals to the others are no accident.
    Controller,
}

impl Actor {
    pub(super) const ALL: [Self; 13] = [
        Self::Requester,
        Self::Approver,
        Self::Both,
        Self::Delegate,
        Self::Pipeline,
        Self::Viewer,
        Self::PolicyAdmin,
        Self::NamespaceAdmin,
        Self::Wildcard,
        Self::ClusterAdmin,
        Self::Outsider,
        Self::Namesake,
        Self::Controller,
    ];

    /// The user of the harness, or the service account as namespace and name.
    fn account(self, namespace: &str) -> Result<User, (String, &'static str)> {
        match self {
            Self::Requester => Ok(User::Developer),
            Self::Approver => Ok(User::Approver),
            Self::Both => Ok(User::Developer2),
            Self::Delegate => Ok(User::Approver2),
            Self::PolicyAdmin => Ok(User::PolicyAdmin),
            Self::NamespaceAdmin => Ok(User::Viewer),
            Self::ClusterAdmin => Ok(User::Admin),
            Self::Outsider => Ok(User::Outsider),
            Self::Pipeline => Err((namespace.to_owned(), "pipeline")),
            Self::Viewer => Err((namespace.to_owned(), "viewer")),
            Self::Wildcard => Err((namespace.to_owned(), "wildcard")),
            Self::Namesake => Err((format!("{}-", install::CONTROLLER.0) + namespace, install::CONTROLLER.1)),
            Self::Controller => Err((install::CONTROLLER.0.to_owned(), install::CONTROLLER.1)),
        }
    }

    /// The ClusterRoles bound in the namespace.
    fn roles(self) -> &'static [&'static str] {
        match self {
            Self::Requester | Self::Pipeline => &["portcullis-requester"],
            Self::Approver => &["portcullis-approver"],
            Self::Both => &["portcullis-requester", "portcullis-approver"],
            Self::Delegate => &["portcullis-requester", "portcullis-delegate"],
            Self::Viewer => &["portcullis-viewer"],
            Self::PolicyAdmin => &["portcullis-policy-admin"],
            Self::NamespaceAdmin => &["admin"],
            // As an owner of its own namespace gives it what the controller has.
            Self::Namesake => &["portcullis-controller"],
            Self::Wildcard | Self::ClusterAdmin | Self::Outsider | Self::Controller => &[],
        }
    }
}

/// Somebody, signed in.
#[derive(Debug, Clone)]
pub(super) struct Person {
    pub(super) actor: Actor,
    pub(super) username: String,
    /// What the API server says of who it is: username, uid and groups.
    pub(super) identity: Value,
    token: String,
}

/// An API server with everybody signed in, in a namespace of the test's own.
pub(super) struct Cast {
    pub(super) plane: &'static ControlPlane,
    pub(super) namespace: &'static str,
    people: Vec<Person>,
    client: reqwest::Client,
}

/// What the API server answered.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) code: u16,
    pub(super) body: Value,
}

impl Answer {
    /// The words of a refusal.
    pub(super) fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }
}

/// Runs a test in a namespace of its own, with everybody signed in.
pub(super) fn with_cast<F: Future<Output = ()>>(namespace: &'static str, test: impl FnOnce(Cast) -> F) {
    RUNTIME.block_on(async { test(Cast::new(namespace).await).await });
}

impl Cast {
    async fn new(namespace: &'static str) -> Self {
        let plane = install::shared().await.unwrap();
        let pem = std::fs::read(plane.certificate_authority()).unwrap();
        let client = reqwest::Client::builder()
            .tls_certs_only(reqwest::Certificate::from_pem_bundle(&pem).unwrap())
            .no_proxy()
            .build()
            .unwrap();
        let mut cast = Self { plane, namespace, people: Vec::new(), client };
        let mut manifests =
            vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}})];
        for actor in Actor::ALL {
            manifests.extend(bindings(actor, namespace));
        }
        let list = json!({"apiVersion": "v1", "kind": "List", "items": manifests});
        plane.kubectl(User::Admin).unwrap().apply(&list.to_string()).await.unwrap();
        for actor in Actor::ALL {
            let token = match actor.account(namespace) {
                Ok(user) => plane.token(user).to_owned(),
                Err((namespace, name)) => {
                    let hour = Duration::from_secs(3600);
                    plane.service_account_token(&namespace, name, hour).await.unwrap()
                }
            };
            let mut person = Person { actor, token, username: String::new(), identity: Value::Null };
            let question = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
            let path = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
            let answer = cast.send(&person, Method::POST, path, Some(&question)).await;
            let known = &answer.body["status"]["userInfo"];
            let mut identity = json!({"username": known["username"], "groups": known["groups"]});
            if !known["uid"].is_null() {
                identity["uid"] = known["uid"].clone();
            }
            person.username = known["username"].as_str().unwrap().to_owned();
            person.identity = identity;
            cast.people.push(person);
        }
        cast.wait_for_roles().await;
        cast
    }

    /// Bindings, and the roles that clusters aggregate, take a moment.
    async fn wait_for_roles(&self) {
        eventually("every role is in force", Duration::from_secs(60), || async {
            for person in self.people.iter().filter(|person| person.actor != Actor::Outsider) {
                let list = self.get(person, &self.path("jitaccessrequests")).await;
                anyhow::ensure!(list.code == 200, "{}: {}", person.username, list.message());
            }
            Ok::<_, anyhow::Error>(())
        })
        .await
        .unwrap();
    }

    pub(super) fn people(&self) -> &[Person] {
        &self.people
    }

    pub(super) fn person(&self, actor: Actor) -> &Person {
        self.people.iter().find(|person| person.actor == actor).unwrap()
    }

    /// Where the objects of a kind live.
    pub(super) fn path(&self, plural: &str) -> String {
        format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{}/{plural}", self.namespace)
    }

    pub(super) async fn get(&self, person: &Person, path: &str) -> Answer {
        self.send(person, Method::GET, path, None).await
    }

    pub(super) async fn send(
        &self,
        person: &Person,
        method: Method,
        path: &str,
        body: Option<&Value>,
    ) -> Answer {
        self.send_as(person, method, path, "application/json", body, &[]).await
    }

    /// One request, again where the API server asks for patience.
    pub(super) async fn send_as(
        &self,
        person: &Person,
        method: Method,
        path: &str,
        content_type: &str,
        body: Option<&Value>,
        headers: &[(&str, &str)],
    ) -> Answer {
        for pause in [100, 400, 1600, 6400] {
            let mut request = self
                .client
                .request(method.clone(), format!("{}{path}", self.plane.server()))
                .bearer_auth(&person.token);
            for (name, value) in headers {
                request = request.header(*name, *value);
            }
            if let Some(body) = body {
                request = request.header("content-type", content_type).body(body.to_string());
            }
            let answer = request.send().await.unwrap();
            let code = answer.status().as_u16();
            let text = answer.text().await.unwrap();
            if code == 429 {
                tokio::time::sleep(Duration::from_millis(pause)).await;
                continue;
            }
            return Answer { code, body: serde_json::from_str(&text).unwrap_or(Value::String(text)) };
        }
        panic!("the API server has no time");
    }
}

/// What gives somebody its roles.
fn bindings(actor: Actor, namespace: &str) -> Vec<Value> {
    let metadata = |name: &str| json!({"name": name, "namespace": namespace});
    let rbac = "rbac.authorization.k8s.io";
    let mut made = Vec::new();
    let subject = match actor.account(namespace) {
        Ok(user) => json!({"apiGroup": rbac, "kind": "User", "name": user.name()}),
        Err((home, name)) => {
            if actor == Actor::Namesake {
                made.push(json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": home}}));
            }
            if actor != Actor::Controller {
                let account = json!({"name": name, "namespace": home});
                made.push(json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": account}));
            }
            json!({"kind": "ServiceAccount", "name": name, "namespace": home})
        }
    };
    let bind = |name: String, role: Value| {
        json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata(&name),
            "roleRef": role, "subjects": [subject],
        })
    };
    for role in actor.roles() {
        let reference = json!({"apiGroup": rbac, "kind": "ClusterRole", "name": role});
        made.push(bind(format!("{actor:?}-{role}").to_lowercase(), reference));
    }
    let kinds = ["jitpolicies", "jitaccessrequests", "jitaccessreviews"];
    let statuses = kinds.map(|kind| format!("{kind}/status"));
    let resources = if actor == Actor::Wildcard {
        json!(["*"])
    } else {
        json!([&kinds[..], &statuses.each_ref().map(String::as_str)[..]].concat())
    };
    let more: Option<(&str, &[&str])> = match actor {
        Actor::Wildcard => Some(("everything-of-ours", &["*"])),
        // Its own role lets it write less: what admission says of it is tried by every verb.
        Actor::Controller | Actor::Namesake => Some(("more-than-its-own", &["get", "update", "patch"])),
        _ => None,
    };
    if let Some((name, verbs)) = more {
        made.push(json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata(name),
            "rules": [{"apiGroups": ["jit.portcullis.io"], "resources": resources, "verbs": verbs}],
        }));
        let reference = json!({"apiGroup": rbac, "kind": "Role", "name": name});
        made.push(bind(format!("{actor:?}-more").to_lowercase(), reference));
    }
    made
}
