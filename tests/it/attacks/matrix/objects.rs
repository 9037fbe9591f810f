//! The objects that are attacked, and what is tried at them.

use reqwest::Method;
use serde_json::{Value, json};

use super::super::people::{Actor, Cast};
use super::change::{Change, pointer};
use super::fields;
use super::model::{Attempt, Expected, Kind, Part, Verb};

/// One object of each kind with everything set, and the changes of its fields.
pub(super) struct Stock {
    namespace: &'static str,
    kinds: Vec<Piece>,
    identities: Vec<(Actor, Value)>,
}

struct Piece {
    object: Value,
    template: Value,
    made: Vec<Change>,
    changed: Vec<Change>,
}

/// An object without what every write changes.
pub(super) fn comparable(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        for key in ["managedFields", "resourceVersion", "generation"] {
            metadata.remove(key);
        }
    }
    if let Some(Value::Array(finalizers)) = object.pointer_mut("/metadata/finalizers") {
        finalizers.sort_by_key(Value::to_string);
    }
    object
}

impl Stock {
    pub(super) async fn new(cast: &Cast) -> Self {
        let identities = cast.people().iter().map(|one| (one.actor, one.identity.clone())).collect();
        let mut stock = Self { namespace: cast.namespace, kinds: Vec::new(), identities };
        let owner = json!({"metadata": {"name": "owner"}});
        let path = format!("/api/v1/namespaces/{}/configmaps", cast.namespace);
        let owner = cast.send(cast.person(Actor::ClusterAdmin), Method::POST, &path, Some(&owner)).await;
        let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "uid": owner.body["metadata"]["uid"]});
        for (kind, author) in [
            (Kind::Policy, Actor::PolicyAdmin),
            (Kind::Request, Actor::Requester),
            (Kind::Review, Actor::Approver),
        ] {
            let template = template(kind);
            let object = create(cast, &stock, kind, author, &template).await;
            let schema = fields::schema(kind);
            let mut written = template.clone();
            if let Some(field) = kind.author() {
                written["spec"][field] = object["spec"][field].clone();
            }
            let changes = |object: &Value| {
                let mut all = fields::changes(&schema, "spec", object);
                all.extend(fields::changes(&schema, "status", object));
                all.extend(fields::metadata(object, &owner));
                all
            };
            stock.kinds.push(Piece { made: changes(&written), changed: changes(&object), object, template });
        }
        stock
    }

    fn piece(&self, kind: Kind) -> &Piece {
        &self.kinds[kind as usize]
    }

    /// The object as the API server holds it.
    pub(super) fn object(&self, kind: Kind) -> &Value {
        &self.piece(kind).object
    }

    /// Changes of an object that is created.
    pub(super) fn made(&self, kind: Kind) -> &[Change] {
        &self.piece(kind).made
    }

    /// Changes of the object that is there.
    pub(super) fn changed(&self, kind: Kind) -> &[Change] {
        &self.piece(kind).changed
    }

    pub(super) fn path(&self, kind: Kind) -> String {
        format!("/apis/jit.portcullis.io/v1alpha1/namespaces/{}/{}", self.namespace, kind.plural())
    }

    /// What somebody would create, who it is written out.
    pub(super) fn template(&self, kind: Kind, actor: Actor) -> Value {
        let mut object = self.piece(kind).template.clone();
        if let Some(field) = kind.author() {
            object["spec"][field] = self.identity(actor).clone();
        }
        object
    }

    fn identity(&self, actor: Actor) -> &Value {
        &self.identities.iter().find(|(one, _)| *one == actor).unwrap().1
    }

    /// The object after an attempt that is done.
    pub(super) fn after(&self, attempt: &Attempt<'_>) -> Value {
        let object = self.object(attempt.kind);
        let change = attempt.change.unwrap();
        let mut after = change.made_to(object);
        let applies = matches!(attempt.verb, Verb::Apply | Verb::ApplyForced);
        if change.at[1..].first().is_some_and(|name| name == "finalizers") {
            let mut all = change.to.as_ref().and_then(Value::as_array).cloned().unwrap_or_default();
            for old in object["metadata"]["finalizers"].as_array().into_iter().flatten() {
                let ours = old.as_str().unwrap().starts_with("jit.portcullis.io/");
                let stays = applies || (ours && attempt.actor != Actor::Controller);
                if stays && !all.contains(old) {
                    all.push(old.clone());
                }
            }
            if all.is_empty() {
                after["metadata"].as_object_mut().unwrap().remove("finalizers");
            } else {
                after["metadata"]["finalizers"] = json!(all);
            }
        }
        // Applied under another key, an item joins the list.
        let keyed =
            [("/status/conditions/0/type", "/status/conditions"), ("/spec/targets/0/name", "/spec/targets")];
        if let Some((_, list)) = keyed.iter().find(|(at, _)| applies && *at == change.pointer()) {
            let new = after.pointer(&format!("{list}/0")).unwrap().clone();
            let mut items = object.pointer(list).and_then(Value::as_array).cloned().unwrap_or_default();
            items.push(new);
            *after.pointer_mut(list).unwrap() = json!(items);
        }
        after
    }

    /// What is wrong with an object that was created.
    pub(super) fn judge_new(
        &self,
        attempt: &Attempt<'_>,
        expected: Expected,
        found: &Value,
    ) -> Option<String> {
        let change = attempt.change.unwrap();
        let wanted = change.made_to(&self.template(attempt.kind, attempt.actor));
        let at = change.pointer();
        if let Some(field) = attempt.kind.author() {
            let (own, stamped) = (self.identity(attempt.actor), &found["spec"][field]);
            if stamped["username"] != own["username"] || stamped["uid"] != own["uid"] {
                return Some(format!("it is stamped {stamped} and not {own}"));
            }
        }
        let status = found["status"]
            .as_object()
            .is_none_or(|status| status.keys().all(|key| key == "observedGeneration"));
        if !status || found["status"].get("observedGeneration").is_some_and(|generation| generation != -1) {
            return Some(format!("it begins with a status: {}", found["status"]));
        }
        let is_new = found["metadata"]["uid"].as_str().is_some_and(|uid| !uid.starts_with("99999999"))
            && found["metadata"]["creationTimestamp"].as_str().is_some_and(|at| !at.starts_with("2021"))
            && found["metadata"]["deletionTimestamp"].is_null();
        if !is_new {
            return Some(format!("it is dated by its author: {}", found["metadata"]));
        }
        let (wanted, got) = (wanted.pointer(&at), found.pointer(&at));
        // A policy's fields come back with their defaults.
        let judged = expected == Expected::Done && (change.to.is_some() || attempt.kind != Kind::Policy);
        (judged && wanted != got).then(|| format!("{at} should be {wanted:?} and is {got:?}"))
    }

    /// Nothing of all that was refused has left a trace.
    pub(super) async fn is_as_it_was(&self, cast: &Cast) {
        for kind in Kind::ALL {
            let list = cast.get(cast.person(Actor::ClusterAdmin), &self.path(kind)).await.body;
            let items = list["items"].as_array().unwrap();
            assert_eq!(items.len(), 1, "{kind:?}: {items:#?}");
            assert_eq!(items[0]["metadata"], self.object(kind)["metadata"], "{kind:?}");
            assert_eq!(comparable(&items[0])["spec"], self.object(kind)["spec"], "{kind:?}");
            assert_eq!(items[0]["status"], self.object(kind)["status"], "{kind:?}");
        }
    }
}

/// Creates an object as its author and has the controller write finalizer and status.
async fn create(cast: &Cast, stock: &Stock, kind: Kind, author: Actor, template: &Value) -> Value {
    let path = stock.path(kind);
    let mut body = template.clone();
    body["metadata"]["name"] = json!("stock");
    let made = cast.send(cast.person(author), Method::POST, &path, Some(&body)).await;
    assert_eq!(made.code, 201, "{kind:?}: {made:?}");
    let controller = cast.person(Actor::Controller);
    let path = format!("{path}/stock");
    let mut body = made.body;
    body["metadata"]["finalizers"] = json!(["jit.portcullis.io/cloud-rules"]);
    if kind == Kind::Review {
        body["metadata"].as_object_mut().unwrap().remove("finalizers");
    }
    let held = cast.send(controller, Method::PUT, &path, Some(&body)).await;
    assert_eq!(held.code, 200, "{kind:?}: {held:?}");
    let mut body = held.body;
    body["status"] = status(kind);
    let told = cast.send(controller, Method::PUT, &format!("{path}/status"), Some(&body)).await;
    assert_eq!(told.code, 200, "{kind:?}: {told:?}");
    let object = cast.get(cast.person(Actor::ClusterAdmin), &path).await.body;
    for (at, value) in
        [("/status", &body["status"]), ("/metadata/finalizers", &body["metadata"]["finalizers"])]
    {
        assert_eq!(object.pointer(at).unwrap_or(&Value::Null), value, "the controller may: {kind:?}");
    }
    object
}

fn template(kind: Kind) -> Value {
    let vm = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web-1";
    let spec = match kind {
        Kind::Policy => json!({
            "targets": [{"name": "web-1", "azureVirtualMachine": {"id": vm}}],
            "ports": [{"port": 22, "protocol": "TCP", "allowedSources": [{"cidr": "203.0.113.0/24"}], "maxDuration": "3h"}],
            "enforcement": {"exemptSources": [{"cidr": "192.0.2.7/32"}]},
            "approval": {"required": 2}, "justification": {"required": true, "pattern": "^INC"},
            "limits": {"active": 7},
        }),
        Kind::Request => json!({
            "policyRef": {"name": "absent"}, "targets": [{"name": "web-1"}], "duration": "30m",
            "ports": [{"port": 22, "protocol": "TCP", "sources": [{"cidr": "203.0.113.7/32"}]}],
            "notBefore": "2030-01-01T00:00:00Z", "notAfter": "2031-01-01T00:00:00Z", "justification": "INC-1",
        }),
        Kind::Review => json!({
            "requestRef": {"name": "some", "uid": "11111111-2222-3333-4444-555555555555"},
            "policyRef": {"name": "absent"}, "planHash": "a".repeat(64), "verdict": "Approved", "comment": "fine",
        }),
    };
    json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": kind.name(),
        "metadata": {"name": "some", "labels": {"team": "web"}, "annotations": {"note": "kept"}}, "spec": spec,
    })
}

fn status(kind: Kind) -> Value {
    let moment = "2030-01-01T00:00:00Z";
    let condition = json!([{
        "type": "Approved", "status": "False", "reason": "WaitingForApproval", "message": "waits",
        "lastTransitionTime": moment, "observedGeneration": 1,
    }]);
    match kind {
        Kind::Policy => json!({
            "observedGeneration": 1, "conditions": condition, "summary": {"targets": 1, "configured": 1},
            "targets": [{"id": "x", "name": "web-1", "state": "Configured", "addresses": ["10.0.0.4"]}],
        }),
        Kind::Request => json!({
            "observedGeneration": 1, "conditions": condition, "state": "Active", "planHash": "a".repeat(64),
            "grantedAt": moment, "expiresAt": "2030-01-01T01:00:00Z",
            "policies": [{"name": "absent", "uid": "u", "required": 1, "approved": 0, "approvedBy": ["x"]}],
            "rules": [{
                "firewall": "f", "name": "n", "protocol": "TCP", "sources": ["203.0.113.7/32"],
                "destinations": ["10.0.0.4"], "ports": ["22"], "state": "Present", "priority": 100,
            }],
        }),
        Kind::Review => {
            json!({"observedGeneration": 1, "counted": true, "reason": "counts", "settled": false})
        }
    }
}

#[test]
fn the_objects_are_found_by_their_kind() {
    for (place, kind) in Kind::ALL.into_iter().enumerate() {
        assert_eq!(kind as usize, place);
        assert!(template(kind)["kind"] == kind.name() && status(kind).is_object());
    }
    let attempt =
        |part| Attempt { actor: Actor::Outsider, kind: Kind::Policy, verb: Verb::Put, part, change: None };
    assert_ne!(attempt(Part::Main).part, attempt(Part::Status).part);
    assert_eq!(pointer(&["a".to_owned(), "b/c".to_owned()]), "/a/b~1c");
}
