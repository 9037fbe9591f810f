//! The life of a request as its people see it, from `kubectl apply` to the last packet: policies that are tightened,
//! windows, limits, extensions, the stop button. Packets decide.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::{Kubectl, User, eventually, install};
use serde_json::{Value, json};

use crate::ground::{REQUESTER, STRANGER, Site, Vm, on_site, targets};
use crate::walk::moment;

impl Site {
    pub(crate) fn kubectl(&self, user: User) -> Kubectl {
        self.ground.play.stage.plane.kubectl(user).unwrap()
    }

    /// Asks for port 22 of the machine `a`, with more in the spec.
    pub(crate) async fn asks(&self, user: User, name: &str, policy: &str, more: Value) {
        self.kubectl(user).apply(&self.wanted(name, policy, &more).to_string()).await.unwrap();
    }

    /// A policy over the machine, with more in the spec. Returns when it is locked.
    pub(crate) async fn terms(&self, name: &str, vm: &Vm, more: Value) {
        let mut spec = json!({"targets": targets(&[vm])});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        self.policy(name, &spec).await;
        self.says(&format!("jitpol/{name}"), "Ready", "True", "Configured", "").await;
    }

    /// Somebody's word on a request, of the plan that its status shows.
    pub(crate) async fn word(&self, user: User, request: &str, policy: &str, verdict: &str) -> String {
        let shown = |found: &Value| found["status"]["planHash"].is_string();
        let found = self.until("shows a plan", &format!("jitreq/{request}"), shown).await;
        let hash = found["status"]["planHash"].as_str().unwrap();
        let name = format!("{request}-{}-{policy}-{}-{}", user.name(), verdict.to_lowercase(), &hash[..6]);
        let review = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
            "metadata": {"name": self.name(&name), "namespace": install::NAMESPACE},
            "spec": {
                "requestRef": {"name": self.name(request), "uid": found["metadata"]["uid"]},
                "policyRef": {"name": self.name(policy)}, "planHash": hash, "verdict": verdict,
            },
        });
        // Rights that were just given take a moment to be known.
        let kubectl = self.kubectl(user);
        let text = review.to_string();
        eventually("the review is taken", Duration::from_secs(20), || kubectl.apply(&text)).await.unwrap();
        name
    }

    pub(crate) async fn approve(&self, user: User, request: &str, policy: &str) -> String {
        self.word(user, request, policy, "Approved").await
    }

    /// Waits until a review is answered so. What is said first may be that the request cannot be judged yet.
    pub(crate) async fn answers(&self, review: &str, counted: bool, words: &str) {
        let what = format!("counts: {counted}, {words:?}");
        self.until(&what, &format!("jitrev/{review}"), |found| {
            found["status"]["counted"] == counted
                && found["status"]["reason"].as_str().is_some_and(|reason| reason.contains(words))
        })
        .await;
    }

    /// Gives a user a verb on a policy, and the right to create reviews.
    pub(crate) async fn allow(&self, user: User, verb: &str, policy: &str) {
        let name = self.right(user, verb, policy);
        let role = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": name, "namespace": install::NAMESPACE},
            "rules": [
                {"apiGroups": ["jit.portcullis.io"], "resources": ["jitpolicies"],
                 "resourceNames": [self.name(policy)], "verbs": [verb]},
                {"apiGroups": ["jit.portcullis.io"], "resources": ["jitaccessreviews"], "verbs": ["get", "create"]},
            ],
        });
        let binding = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
            "metadata": {"name": name, "namespace": install::NAMESPACE},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user.name()}],
        });
        for object in [role, binding] {
            self.kubectl(User::Admin).apply(&object.to_string()).await.unwrap();
        }
    }

    /// The name of the binding that gives it.
    pub(crate) fn right(&self, user: User, verb: &str, policy: &str) -> String {
        self.name(&format!("{}-{verb}-{policy}", user.name()))
    }
}

/// Waits until a moment has come.
pub(crate) async fn until(moment: Timestamp) {
    let left = moment.duration_since(Timestamp::now());
    tokio::time::sleep(Duration::try_from(left).unwrap_or_default()).await;
}

/// A moment so many seconds ahead, as manifests give it.
pub(crate) fn ahead(seconds: i64) -> String {
    let at = Timestamp::now() + SignedDuration::from_secs(seconds);
    Timestamp::from_second(at.as_second()).unwrap().to_string()
}

fn ssh(more: &Value) -> Value {
    let mut port = json!({"port": 22});
    port.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"ports": [port]})
}

#[test]
fn a_shorter_maximum_shortens_a_live_grant_and_a_longer_one_does_not_lengthen_it() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, ssh(&json!({"maxDuration": "1h"}))).await;
        let locked = Timestamp::now();
        site.request("mine", "web", "a", 22, REQUESTER, "30m").await;
        let granted = site.state("jitreq/mine", "Active").await;
        let former = moment(&granted, "/status/expiresAt");
        site.terms("web", &a, ssh(&json!({"maxDuration": "75s"}))).await;
        let end = moment(&granted, "/status/grantedAt") + SignedDuration::from_secs(75);
        let shorter = site
            .until("is open with an earlier end", "jitreq/mine", |found| {
                found["status"]["state"] == "Active" && found["status"]["expiresAt"] != former.to_string()
            })
            .await;
        assert_eq!(moment(&shorter, "/status/expiresAt"), end);
        let web = site.name("web");
        let why = format!("JitPolicy {web} (generation 2) allows 1m15s for port 22");
        site.says("jitreq/mine", "Active", "True", "Open", &why).await;
        site.event("Shortened", &format!("the grant ends at {end} instead of {former}")).await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        // The rule in the cloud says when it dies, too: a sweeper that knows nothing else closes it in time.
        let rules = site.ours_that("net", "Allow").await;
        assert_eq!(rules.len(), 1, "{rules:#?}");
        let stamp = end.strftime("%Y%m%dT%H%M%SZ").to_string();
        assert!(
            rules[0]["name"].as_str().unwrap().contains(&stamp),
            "{} does not say {stamp}",
            rules[0]["name"]
        );
        let description = rules[0]["properties"]["description"].as_str().unwrap();
        assert!(description.contains(&format!("expires={end}")), "{description}");

        site.terms("web", &a, ssh(&json!({"maxDuration": "3h"}))).await;
        site.some_rounds().await;
        let found = site.get("jitreq/mine").await.unwrap();
        assert_eq!(moment(&found, "/status/expiresAt"), end, "loosening lengthens nothing");
        let left = Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default();
        tokio::time::sleep(left).await;
        site.state("jitreq/mine", "Expired").await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        let open = site.exposed(REQUESTER, &a.ip, 22, locked).await;
        assert_eq!(open.len(), 2, "open, closed while the rule was replaced, open: {open:?}");
        let closed = open[1].1.unwrap();
        assert!(closed.duration_since(end).unsigned_abs() < Duration::from_secs(10), "{closed} for {end}");
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn what_a_policy_no_longer_allows_is_closed_within_seconds_and_says_so() {
    on_site(|site| async move {
        let a = site.usual().await;
        let both = |source: &str, rdp: bool, most: &str| {
            let mut ports =
                vec![json!({"port": 22, "maxDuration": most, "allowedSources": [{"cidr": source}]})];
            if rdp {
                ports.push(json!({"port": 3389}));
            }
            json!({"ports": ports})
        };
        for (number, tightened, words) in [
            (1, both("198.51.100.0/24", true, "1h"), "is not within the sources"),
            (2, both("203.0.113.0/24", false, "1h"), "port 3389/TCP is not among those"),
            (3, both("203.0.113.0/24", true, "30s"), "less than 30s are left"),
        ] {
            site.terms("web", &a, both("203.0.113.0/24", true, "1h")).await;
            let name = format!("mine-{number}");
            let port = |port: u16| json!({"port": port, "sources": [{"cidr": format!("{REQUESTER}/32")}]});
            site.asks(User::Developer, &name, "web", json!({"ports": [port(22), port(3389)]})).await;
            site.state(&format!("jitreq/{name}"), "Active").await;
            assert!(site.passes(REQUESTER, &a.ip, 3389).await);
            // So that some of the time has been used.
            tokio::time::sleep(Duration::from_secs(1)).await;
            site.terms("web", &a, tightened).await;
            site.state(&format!("jitreq/{name}"), "Revoked").await;
            site.says(&format!("jitreq/{name}"), "Active", "False", "PolicyTightened", words).await;
            assert!(!site.passes(REQUESTER, &a.ip, 22).await && !site.passes(REQUESTER, &a.ip, 3389).await);
            assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());
        }
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_removed_rule_is_not_brought_back_by_a_tightening() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, ssh(&json!({"maxDuration": "1h"}))).await;
        site.request("mine", "web", "a", 22, REQUESTER, "30m").await;
        site.state("jitreq/mine", "Active").await;
        let rules = site.ours_that("net", "Allow").await;
        let spec = ssh(&json!({"maxDuration": "10m"}));
        let spec = json!({"targets": targets(&[&a]), "ports": spec["ports"]});
        // Tightened before anybody can have noticed that it is gone.
        site.delete(rules[0]["id"].as_str().unwrap()).await;
        site.until_passes(REQUESTER, &a.ip, 22, false).await;
        let removed = Timestamp::now();
        site.policy("web", &spec).await;
        let ended = site.until("is over", "jitreq/mine", |found| found["status"]["settled"] == true).await;
        let state = ended["status"]["state"].as_str().unwrap();
        assert!(["Ended", "Revoked"].contains(&state), "{:#}", ended["status"]);
        site.some_rounds().await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, removed).await, []);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_scheduled_request_opens_at_its_start_is_judged_again_and_not_before() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, json!({"approval": {"required": 1}})).await;
        let locked = Timestamp::now();
        let start = ahead(14);
        site.asks(User::Developer, "later", "web", json!({"notBefore": start})).await;
        site.asks(User::Developer, "never", "web", json!({"notBefore": ahead(600), "duration": "2h"})).await;
        for name in ["later", "never"] {
            site.approve(User::Approver, name, "web").await;
            site.says(&format!("jitreq/{name}"), "Active", "False", "Scheduled", "opens at").await;
        }
        let found = site.state("jitreq/later", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        let start: Timestamp = start.parse().unwrap();
        assert!(moment(&found, "/status/grantedAt") >= start);
        let open = site.exposed(REQUESTER, &a.ip, 22, locked).await;
        assert!(open.len() == 1 && open[0].0 >= start, "{open:?} before {start}");
        // What lacks an approval now waits for it at once, and not only from its start on.
        site.terms("web", &a, json!({"approval": {"required": 2}})).await;
        site.state("jitreq/never", "Pending").await;
        site.says("jitreq/never", "Approved", "False", "WaitingForApproval", "1 of 2 approvals").await;
        // What the policy does not allow any more is refused without waiting for the start.
        let spec = json!({"targets": targets(&[&a]), "approval": {"required": 1},
            "ports": [{"port": 22, "maxDuration": "1h"}]});
        site.policy("web", &spec).await;
        site.state("jitreq/never", "Denied").await;
        site.says("jitreq/never", "Denied", "True", "DurationTooLong", "longer than the 1h").await;
        site.kubectl_delete("jitreq/later").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn an_approval_that_lies_unused_runs_out_while_others_hold_the_places() {
    on_site(|site| async move {
        let a = site.usual().await;
        let terms = json!({"approval": {"required": 1, "useWithin": "30s"}, "limits": {"active": 1}});
        site.terms("web", &a, terms).await;
        let locked = Timestamp::now();
        site.asks(User::Developer, "first", "web", json!({"duration": "10m"})).await;
        site.approve(User::Approver, "first", "web").await;
        site.state("jitreq/first", "Active").await;
        let second = json!({"ports": [{"port": 22, "sources": [{"cidr": format!("{STRANGER}/32")}]}]});
        site.asks(User::Developer2, "second", "web", second).await;
        site.approve(User::Approver, "second", "web").await;
        site.says("jitreq/second", "Active", "False", "LimitReached", "spec.limits.active").await;
        let over = site.state("jitreq/second", "TimedOut").await;
        site.says("jitreq/second", "Active", "False", "TooLate", "spec.approval.useWithin").await;
        let waited = Timestamp::now().duration_since(moment(&over, "/status/approvedAt"));
        assert!(waited.as_secs() >= 30, "it gave up after {waited}");
        // The place that comes free is none of its business any more.
        site.kubectl_delete("jitreq/first").await;
        site.some_rounds().await;
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_second_request_extends_the_first_without_a_gap() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, json!({})).await;
        let locked = Timestamp::now();
        site.request("first", "web", "a", 22, REQUESTER, "35s").await;
        site.state("jitreq/first", "Active").await;
        site.request("second", "web", "a", 22, REQUESTER, "75s").await;
        let second = site.state("jitreq/second", "Active").await;
        let first = site.state("jitreq/first", "Expired").await;
        assert!(moment(&first, "/status/closedAt") < moment(&second, "/status/expiresAt"));
        assert!(site.passes(REQUESTER, &a.ip, 22).await, "the end of one never closes the other");
        assert_eq!(site.ours_that("net", "Allow").await.len(), 1);
        site.state("jitreq/second", "Expired").await;
        let open = site.exposed(REQUESTER, &a.ip, 22, locked).await;
        assert_eq!(open.len(), 1, "one stretch without a gap: {open:?}");
        assert!(open[0].1.unwrap() >= moment(&second, "/status/expiresAt"));
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn the_stop_button_closes_all_and_holds_all() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.terms("web", &a, json!({})).await;
        for (name, source) in [("one", REQUESTER), ("two", "203.0.113.8")] {
            site.request(name, "web", "a", 22, source, "1h").await;
            site.state(&format!("jitreq/{name}"), "Active").await;
            assert!(site.passes(source, &a.ip, 22).await);
        }
        let spec = json!({"targets": targets(&[&a]), "suspend": true});
        site.policy("web", &spec).await;
        for name in ["one", "two"] {
            site.state(&format!("jitreq/{name}"), "Revoked").await;
            site.says(&format!("jitreq/{name}"), "Active", "False", "Suspended", "spec.suspend").await;
        }
        let stopped = Timestamp::now();
        site.request("three", "web", "a", 22, REQUESTER, "1h").await;
        site.says("jitreq/three", "Approved", "False", "Suspended", "spec.suspend").await;
        site.some_rounds().await;
        for source in [REQUESTER, "203.0.113.8", STRANGER] {
            assert_eq!(site.exposed(source, &a.ip, 22, stopped).await, [], "the lock stays");
        }
        site.policy("web", &json!({"targets": targets(&[&a])})).await;
        site.state("jitreq/three", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await && !site.passes("203.0.113.8", &a.ip, 22).await);
        site.kubectl_delete("jitreq/three").await;
        site.kubectl_delete("jitpol/web").await;
    });
}
