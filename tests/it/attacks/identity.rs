//! Who asks and who reviews: nobody as another, whatever rights they hold in the namespace.

use reqwest::Method;
use serde_json::{Value, json};

use super::people::{Actor, Answer, Cast, with_cast};

fn request(name: &str, more: &[(&str, Value)]) -> Value {
    let mut spec = json!({
        "policyRef": {"name": "absent"}, "targets": [{"name": "web-1"}], "duration": "30m",
        "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}],
    });
    for (key, value) in more {
        spec[*key] = value.clone();
    }
    json!({"apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest", "metadata": {"name": name}, "spec": spec})
}

fn review(name: &str) -> Value {
    json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview", "metadata": {"name": name},
        "spec": {
            "requestRef": {"name": "some", "uid": "11111111-2222-3333-4444-555555555555"}, "policyRef": {"name": "absent"},
            "planHash": "0".repeat(64), "verdict": "Approved",
        },
    })
}

async fn create(cast: &Cast, actor: Actor, object: &Value) -> Answer {
    let plural = if object["kind"] == "JitAccessReview" { "jitaccessreviews" } else { "jitaccessrequests" };
    cast.send(cast.person(actor), Method::POST, &cast.path(plural), Some(object)).await
}

#[track_caller]
fn refused(answer: &Answer, words: &str) {
    assert!(matches!(answer.code, 403 | 422) && answer.message().contains(words), "{words:?}: {answer:?}");
}

#[test]
fn nobody_impersonates_but_who_could_do_anything_and_then_it_is_the_other_who_is_stamped() {
    with_cast("impersonation", |cast| async move {
        let headers = [
            vec![("Impersonate-User", "approver")],
            vec![("Impersonate-User", "developer"), ("Impersonate-Group", "system:masters")],
            vec![("Impersonate-User", "system:serviceaccount:portcullis-system:portcullis")],
        ];
        let path = cast.path("jitaccessreviews");
        for person in cast.people().iter().filter(|person| person.actor != Actor::ClusterAdmin) {
            for headers in &headers {
                let body = review("impersonated");
                let answer =
                    cast.send_as(person, Method::POST, &path, "application/json", Some(&body), headers).await;
                assert!(answer.code == 403 && answer.message().contains("cannot impersonate"), "{answer:?}");
            }
        }
        // Trusted, as the documentation says: but the stamp is of the one whose rights were used.
        let admin = cast.person(Actor::ClusterAdmin);
        let headers = [("Impersonate-User", "approver"), ("Impersonate-Group", "approvers")];
        let body = review("impersonated");
        let answer =
            cast.send_as(admin, Method::POST, &path, "application/json", Some(&body), &headers).await;
        assert_eq!(answer.body["spec"]["reviewer"]["username"], "approver", "{answer:?}");
    });
}

#[test]
fn borrowed_names_groups_and_look_alikes_are_refused() {
    with_cast("borrowed", |cast| async move {
        let own = cast.person(Actor::Both).identity.clone();
        let with = |key: &str, value: Value| {
            let mut identity = own.clone();
            identity[key] = value;
            identity
        };
        let mut groups = own["groups"].as_array().unwrap().clone();
        groups.push(json!("approvers"));
        // The last three look alike: a Cyrillic letter, a zero-width space, another case.
        let stamps = [
            with("username", json!("approver")),
            with("uid", json!("uid-of-approver")),
            with("groups", json!(groups)),
            with("groups", json!(["system:masters"])),
            with("username", json!("d\u{435}veloper2")),
            with("username", json!("developer2\u{200b}")),
            with("username", json!("Developer2")),
        ];
        for stamp in stamps {
            let answer =
                create(&cast, Actor::Both, &request("borrowed", &[("requester", stamp.clone())])).await;
            refused(&answer, "spec.requester must be yourself (developer2)");
            let mut body = review("borrowed");
            body["spec"]["reviewer"] = stamp;
            refused(&create(&cast, Actor::Both, &body).await, "spec.reviewer must be yourself (developer2)");
        }
        for actor in [Actor::Requester, Actor::Pipeline, Actor::Delegate] {
            refused(&create(&cast, actor, &review("own")).await, "that takes the verb approve");
        }
        let claimed = [("onBehalfOf", json!("approver")), ("notAfter", json!("2031-01-01T00:00:00Z"))];
        let answer = create(&cast, Actor::Requester, &request("claimed", &claimed)).await;
        refused(&answer, "that takes the verb delegate");
        let answer = create(&cast, Actor::Delegate, &request("claimed", &claimed[..1])).await;
        refused(&answer, "spec.notAfter is required");
    });
}

#[test]
fn an_author_dates_nothing_and_a_spec_that_is_removed_cannot_be_put_back_wider() {
    with_cast("dates", |cast| async move {
        let begun = jiff::Timestamp::now();
        let mut body = review("dated");
        body["metadata"]["creationTimestamp"] = json!("2021-01-01T00:00:00Z");
        body["metadata"]["uid"] = json!("11111111-2222-3333-4444-555555555555");
        body["metadata"]["managedFields"] = json!([{
            "manager": "portcullis", "operation": "Update", "apiVersion": "jit.portcullis.io/v1alpha1",
            "time": "2021-01-01T00:00:00Z", "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {}},
        }]);
        let made = create(&cast, Actor::Approver, &body).await;
        assert_eq!(made.code, 201, "{made:?}");
        let created: jiff::Timestamp =
            made.body["metadata"]["creationTimestamp"].as_str().unwrap().parse().unwrap();
        assert!(created.as_second() >= begun.as_second(), "{created}");
        assert_ne!(made.body["metadata"]["uid"], body["metadata"]["uid"]);

        let made = create(&cast, Actor::Requester, &request("narrow", &[])).await;
        assert_eq!(made.code, 201, "{made:?}");
        let path = format!("{}/narrow", cast.path("jitaccessrequests"));
        let wide = json!([{"port": 1, "endPort": 65535, "sources": [{"cidr": "0.0.0.0/0"}]}]);
        for (kind, patch) in [
            ("application/json-patch+json", json!([{"op": "remove", "path": "/spec"}])),
            ("application/merge-patch+json", json!({"spec": null})),
            ("application/merge-patch+json", json!({"spec": {"ports": wide}})),
            (
                "application/json-patch+json",
                json!([
                    {"op": "remove", "path": "/spec"},
                    {"op": "add", "path": "/spec", "value": request("narrow", &[("ports", wide.clone())])["spec"]},
                ]),
            ),
        ] {
            for actor in [Actor::Requester, Actor::Wildcard, Actor::ClusterAdmin, Actor::Controller] {
                let person = cast.person(actor);
                let answer = cast.send_as(person, Method::PATCH, &path, kind, Some(&patch), &[]).await;
                assert_eq!(answer.code, 422, "{actor:?} {patch}: {answer:?}");
            }
        }
        let after = cast.get(cast.person(Actor::Requester), &path).await;
        assert_eq!(after.body, made.body);
    });
}

#[test]
fn who_runs_a_namespace_cannot_give_there_what_it_does_not_have() {
    with_cast("owners", |cast| async move {
        let owner = cast.person(Actor::NamespaceAdmin);
        let rbac = format!("/apis/rbac.authorization.k8s.io/v1/namespaces/{}", cast.namespace);
        let subject =
            json!({"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": owner.username});
        for role in
            ["portcullis-approver", "portcullis-delegate", "portcullis-requester", "portcullis-controller"]
        {
            let binding = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding", "metadata": {"name": "mine"},
                "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
                "subjects": [subject],
            });
            let path = format!("{rbac}/rolebindings");
            let answer = cast.send(owner, Method::POST, &path, Some(&binding)).await;
            assert_eq!(answer.code, 403, "{role}: {answer:?}");
        }
        for (resource, verb) in [("jitpolicies", "approve"), ("jitpolicies", "*"), ("*", "*")] {
            let role = json!({
                "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role", "metadata": {"name": "mine"},
                "rules": [{"apiGroups": ["jit.portcullis.io"], "resources": [resource], "verbs": [verb]}],
            });
            let answer = cast.send(owner, Method::POST, &format!("{rbac}/roles"), Some(&role)).await;
            assert_eq!(answer.code, 403, "{verb} {resource}: {answer:?}");
        }
    });
}

#[test]
fn windows_and_networks_that_make_no_sense_are_refused_in_words() {
    with_cast("windows", |cast| async move {
        let ports = |cidr: &str| json!([{"port": 22, "sources": [{"cidr": cidr}]}]);
        let (early, late) = ("2030-01-01T00:00:00Z", "2031-01-01T00:00:00Z");
        for (more, words) in [
            (
                vec![("notBefore", json!(late)), ("notAfter", json!(early))],
                "notBefore must be before notAfter",
            ),
            (
                vec![("notBefore", json!(early)), ("notAfter", json!(early))],
                "notBefore must be before notAfter",
            ),
            (vec![("ports", ports("::ffff:198.51.100.23/128"))], "IPv4-mapped networks are written as IPv4"),
            (vec![("ports", ports("203.0.113.7/24"))], "without host bits"),
            (vec![("ports", ports("\u{662}03.0.113.7/32"))], "must be a network in CIDR notation"),
            (vec![("duration", json!("-1h"))], "must be a duration"),
            (vec![("allTargets", json!(true))], "name targets, or set allTargets: true, and not both"),
        ] {
            refused(&create(&cast, Actor::Requester, &request("bad", &more)).await, words);
        }
    });
}

#[test]
fn a_deleted_object_stays_until_the_controller_lets_it_go_whoever_else_takes_its_finalizer_off() {
    with_cast("deleted", |cast| async move {
        let path = format!("{}/held", cast.path("jitaccessrequests"));
        let asker = cast.person(Actor::Requester);
        assert_eq!(create(&cast, Actor::Requester, &request("held", &[])).await.code, 201);
        let patch = async |actor: Actor, kind: &str, patch: &Value| {
            cast.send_as(cast.person(actor), Method::PATCH, &path, kind, Some(patch), &[]).await
        };
        let merge = "application/merge-patch+json";
        let ours = json!({"metadata": {"finalizers": ["jit.portcullis.io/cloud-rules"]}});
        let none = json!({"metadata": {"finalizers": null}});
        assert_eq!(patch(Actor::Controller, merge, &ours).await.code, 200);
        assert_eq!(cast.send(asker, Method::DELETE, &path, None).await.code, 200);

        let json_patch = "application/json-patch+json";
        let first = json!([{"op": "remove", "path": "/metadata/finalizers/0"}]);
        let all = json!([{"op": "replace", "path": "/metadata/finalizers", "value": []}]);
        for actor in [Actor::Requester, Actor::Wildcard, Actor::ClusterAdmin, Actor::Namesake] {
            for (kind, body) in [(merge, &none), (json_patch, &first), (json_patch, &all)] {
                let answer = patch(actor, kind, body).await;
                assert_eq!(answer.code, 200, "{actor:?} {body}: {answer:?}");
            }
            let mut whole = cast.get(asker, &path).await.body;
            whole["metadata"].as_object_mut().unwrap().remove("finalizers");
            let answer = cast.send(cast.person(actor), Method::PUT, &path, Some(&whole)).await;
            assert_eq!(answer.code, 200, "{actor:?}: {answer:?}");
            let left = cast.get(asker, &path).await;
            assert_eq!(
                left.body["metadata"]["finalizers"], ours["metadata"]["finalizers"],
                "{actor:?}: {left:?}"
            );
            assert!(left.body["metadata"]["deletionTimestamp"].is_string());
        }
        assert_eq!(patch(Actor::Controller, merge, &none).await.code, 200);
        assert_eq!(cast.get(asker, &path).await.code, 404);
    });
}
