//! What people, Argo CD and Flux do to objects every day, on live and on settled ones: nothing comes of it.

use std::collections::BTreeSet;

use jiff::Timestamp;
use portcullis_harness::install::{ARGOCD, NAMESPACE};
use portcullis_harness::{Kubectl, User, eventually};
use serde_json::{Value, json};

use crate::ground::{REQUESTER, STRANGER, Site, on_site, targets};

/// The managers of those who write spec, labels and annotations in this module.
const USERS: [&str; 7] = [
    "kubectl-client-side-apply",
    "kubectl-last-applied",
    "kubectl-replace",
    "kubectl-label",
    "kubectl-annotate",
    "argocd-controller",
    "kustomize-controller",
];

impl Site {
    pub(crate) async fn argo(&self) -> Kubectl {
        let plane = &self.ground.play.stage.plane;
        plane.kubectl_with(&plane.service_account_kubeconfig(ARGOCD.0, ARGOCD.1).await.unwrap())
    }

    /// A request for port 22 of the machine `a` under a policy, as it stands in a repository.
    pub(crate) fn wanted(&self, name: &str, policy: &str, more: &Value) -> Value {
        let mut request = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": self.name(name), "namespace": NAMESPACE, "labels": {"set": self.name("set")}},
            "spec": {
                "policyRef": {"name": self.name(policy)}, "targets": [{"name": "a"}], "duration": "1h",
                "ports": [{"port": 22, "protocol": "TCP", "sources": [{"cidr": format!("{REQUESTER}/32")}]}],
            },
        });
        request["spec"].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        request
    }
}

/// Runs kubectl on a manifest; what it answers.
async fn on(kubectl: &Kubectl, arguments: &[&str], manifest: &Value) -> String {
    let mut all = arguments.to_vec();
    all.extend(["-f", "-"]);
    kubectl.run_with_input(&all, &manifest.to_string()).await.unwrap()
}

/// Applies a manifest in every way that tools have, and asks each whether it sees a difference.
async fn every_habit(site: &Site, owner: &Kubectl, manifest: &Value) {
    let (argo, admin) = (site.argo().await, &site.ground.play.admin);
    let mut tracked = manifest.clone();
    tracked["metadata"]["annotations"] = json!({"argocd.argoproj.io/tracking-id": "team-web:x"});
    let mut flux = manifest.clone();
    flux["metadata"]["labels"]["kustomize.toolkit.fluxcd.io/name"] = json!("team-web");
    let argocd = ["--server-side", "--force-conflicts", "--field-manager=argocd-controller"];
    let kustomize = ["--server-side", "--force-conflicts", "--field-manager=kustomize-controller"];
    // Argo CD compares in the first or in the second way, by its settings.
    for (kubectl, applies, compares, manifest) in [
        (owner, &[][..], vec![&[][..]], manifest),
        (&argo, &argocd, vec![&[], &argocd], &tracked),
        (admin, &kustomize, vec![&kustomize], &flux),
    ] {
        // The first takes out what another tool put in; the second finds nothing to do.
        on(kubectl, &[&["apply"], applies].concat(), manifest).await;
        let before = applied(admin, manifest).await;
        let said = on(kubectl, &[&["apply"], applies].concat(), manifest).await;
        // Server-side, kubectl says the same whether it found something to do or not: the object tells.
        assert!(!applies.is_empty() || said.contains("unchanged"), "{said}");
        assert_eq!(applied(admin, manifest).await, before, "{applies:?}");
        for compares in compares {
            let arguments = [&["diff"], compares, &["-f", "-"]].concat();
            let output = kubectl.output(&arguments, Some(&manifest.to_string())).await.unwrap();
            assert_eq!(output.code, 0, "{arguments:?}: {}{}", output.stdout, output.stderr);
        }
    }
    let (kind, name) = (manifest["kind"].as_str().unwrap(), manifest["metadata"]["name"].as_str().unwrap());
    admin.run(&["-n", NAMESPACE, "label", kind, name, "team=web", "--overwrite"]).await.unwrap();
    admin.run(&["-n", NAMESPACE, "annotate", kind, name, "note=kept", "--overwrite"]).await.unwrap();
    on(owner, &["replace"], manifest).await;
    // What replace took away, tools put back at their next turn.
    on(
        &argo,
        &["apply", "--server-side", "--force-conflicts", "--field-manager=argocd-controller"],
        &tracked,
    )
    .await;
}

/// All of an object that appliers may change, and who did so when.
async fn applied(admin: &Kubectl, manifest: &Value) -> Value {
    let (kind, name) = (manifest["kind"].as_str().unwrap(), manifest["metadata"]["name"].as_str().unwrap());
    let read = ["-n", NAMESPACE, "get", kind, name, "-o", "json", "--show-managed-fields"];
    let mut object: Value = serde_json::from_str(&admin.run(&read).await.unwrap()).unwrap();
    let metadata = &mut object["metadata"];
    let managers = metadata["managedFields"].as_array_mut().unwrap();
    // What the controller writes meanwhile is its own.
    managers.retain(|entry| {
        USERS.contains(&entry["manager"].as_str().unwrap()) && entry["subresource"].is_null()
    });
    json!({
        "spec": object["spec"], "generation": object["metadata"]["generation"], "labels": object["metadata"]["labels"],
        "annotations": object["metadata"]["annotations"], "managers": object["metadata"]["managedFields"],
    })
}

/// The fields that managers other than [`USERS`] own, and all that anybody owns of status.
fn owned_by_others(object: &Value) -> BTreeSet<String> {
    let mut owned = BTreeSet::new();
    for entry in object["metadata"]["managedFields"].as_array().unwrap() {
        if USERS.contains(&entry["manager"].as_str().unwrap()) && entry["subresource"].is_null() {
            continue;
        }
        for (field, below) in entry["fieldsV1"].as_object().unwrap() {
            if field == "f:metadata" {
                owned.extend(below.as_object().unwrap().keys().map(|name| format!("metadata.{name}")));
            } else {
                owned.insert(field.clone());
            }
        }
    }
    owned
}

impl Site {
    /// Waits for an object whose name has nothing of the site's.
    async fn rereads(&self, object: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let result = eventually(object, std::time::Duration::from_secs(45), || async {
            let found = self.ground.play.get(object).await?;
            anyhow::ensure!(holds(&found), "{:#}", found["status"]);
            Ok::<_, anyhow::Error>(found)
        })
        .await;
        result.unwrap_or_else(|error| panic!("{error:#}"))
    }
}

async fn raw(site: &Site, kind: &str, name: &str) -> Value {
    let name = site.name(name);
    let arguments = ["-n", NAMESPACE, "get", kind, &name, "-o", "json", "--show-managed-fields"];
    serde_json::from_str(&site.ground.play.admin.run(&arguments).await.unwrap()).unwrap()
}

#[test]
fn every_tool_may_apply_live_and_settled_objects_again_and_sees_no_difference() {
    on_site(|site| async move {
        let play = &site.ground.play;
        let a = site.usual().await;
        let mut policy = site.manifest("web", &json!({"targets": targets(&[&a])}));
        policy["metadata"]["labels"] = json!({"set": site.name("set")});
        let request = site.wanted("mine", "web", &json!({}));
        on(&play.admin, &["apply"], &policy).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        let locked = Timestamp::now();
        on(&play.developer, &["apply"], &request).await;
        let granted = site.state("jitreq/mine", "Active").await;

        every_habit(&site, &play.admin, &policy).await;
        every_habit(&site, &play.developer, &request).await;
        site.some_rounds().await;
        let now = site.get("jitreq/mine").await.unwrap();
        assert_eq!(now["status"], granted["status"], "nothing came of all that");
        for (field, was, is) in ["uid", "generation", "finalizers"]
            .map(|field| (field, &granted["metadata"][field], &now["metadata"][field]))
        {
            assert_eq!(was, is, "{field}");
        }
        assert_eq!(now["spec"], granted["spec"], "still the developer's");
        assert_eq!(site.ours_that("net", "Allow").await.len(), 1);
        let open = site.exposed(REQUESTER, &a.ip, 22, locked).await;
        assert!(open.len() == 1 && open[0].1.is_none(), "opened once, without a gap: {open:?}");
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, [], "the lock never left");

        // The controller owns status and finalizers, and nothing that users write.
        for (kind, name) in [("jitpol", "web"), ("jitreq", "mine")] {
            let object = raw(&site, kind, name).await;
            let owned = owned_by_others(&object);
            // The finalizer that a replace took away is put back at admission, and is the replacing user's from then on.
            let may = BTreeSet::from(["f:status", "metadata.f:finalizers"].map(str::to_owned));
            assert!(owned.contains("f:status"), "else the test proves nothing: {owned:?}");
            assert!(owned.is_subset(&may), "{owned:?}: {:#}", object["metadata"]["managedFields"]);
        }

        // The same on what is settled: it grants once.
        let mut suspended = policy.clone();
        suspended["spec"]["suspend"] = json!(true);
        on(&play.admin, &["apply"], &suspended).await;
        let settled = |found: &Value| found["status"]["settled"] == true;
        let ended = site.until("is settled", "jitreq/mine", settled).await;
        on(&play.admin, &["apply"], &policy).await;
        site.until("grants again", "jitpol/web", |found| found["spec"]["suspend"] == false).await;
        let closed = Timestamp::now();
        every_habit(&site, &play.developer, &request).await;
        site.some_rounds().await;
        let now = site.get("jitreq/mine").await.unwrap();
        assert_eq!(now["status"], ended["status"]);
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, []);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_pruned_request_is_closed_and_a_pruned_policy_keeps_its_lock_for_the_next_to_adopt() {
    on_site(|site| async move {
        let play = &site.ground.play;
        let a = site.usual().await;
        let label = format!("set={}", site.name("set"));
        let mut policy = site.manifest("web", &json!({"targets": targets(&[&a])}));
        policy["metadata"]["labels"] = json!({"set": site.name("set")});
        let request = site.wanted("mine", "web", &json!({}));
        let rest = json!({
            "apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": site.name("rest"), "namespace": NAMESPACE, "labels": {"set": site.name("set")}},
        });
        let apply = async |items: &[&Value]| {
            let list = json!({"apiVersion": "v1", "kind": "List", "items": items});
            let arguments = [
                "-n",
                NAMESPACE,
                "apply",
                "--prune",
                "-l",
                &label,
                "-f",
                "-",
                "--prune-allowlist=jit.portcullis.io/v1alpha1/JitPolicy",
                "--prune-allowlist=jit.portcullis.io/v1alpha1/JitAccessRequest",
            ];
            play.admin.run_with_input(&arguments, &list.to_string()).await.unwrap()
        };
        // People's own requests are applied by people; the tool takes them over with the label.
        on(&play.admin, &["apply"], &policy).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        let locked = Timestamp::now();
        on(&play.developer, &["apply"], &request).await;
        site.state("jitreq/mine", "Active").await;

        let said = apply(&[&policy, &rest]).await;
        assert!(said.contains("pruned"), "{said}");
        site.until_passes(REQUESTER, &a.ip, 22, false).await;
        let closed = Timestamp::now();
        assert!(apply(&[&rest]).await.contains("pruned"));
        site.some_rounds().await;
        assert!(site.get("jitpol/web").await.is_err(), "the policy is gone");
        assert_eq!(site.ours_that("net", "Deny").await.len(), 1, "and its lock is not");

        apply(&[&policy, &rest]).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        site.some_rounds().await;
        assert_eq!(site.ours_that("net", "Deny").await.len(), 1, "the new policy took it over");
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, []);
        site.kubectl_delete("jitpol/web").await;
        play.admin.run(&["-n", NAMESPACE, "delete", "configmap", &site.name("rest")]).await.unwrap();
    });
}

/// The repository that `docs/gitops.md` shows, each part as the service account that applies it there. A person approves
/// what the pipeline asks, and the pipeline carries the approval of what a person asks.
#[test]
fn the_sample_repository_locks_asks_and_approves_with_three_service_accounts() {
    on_site(|site| async move {
        let play = &site.ground.play;
        let folder = portcullis_harness::checkout().join("deploy/samples/gitops");
        let soon = |seconds: i64| {
            Timestamp::from_second(Timestamp::now().as_second() + seconds).unwrap().to_string()
        };
        let times = [("2031-01-31T01:00:00Z", soon(1)), ("2031-01-31T03:00:00Z", soon(600))];
        let built = async |part: &str| {
            let part = folder.join(part).display().to_string();
            let text = play.admin.run(&["kustomize", &part]).await.unwrap();
            times.iter().fold(text, |text, (from, to)| text.replace(from, to))
        };
        let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=gitops", "-f", "-"];
        for part in ["platform/jit-pipelines", "platform/team-web"] {
            play.admin.run_with_input(&apply, &built(part).await).await.unwrap();
        }
        let pipeline = async |account: &str| {
            let plane = &play.stage.plane;
            plane.kubectl_with(&plane.service_account_kubeconfig("jit-pipelines", account).await.unwrap())
        };
        let (policies, requests, reviews) =
            (pipeline("web-policies").await, pipeline("web-requests").await, pipeline("web-reviews").await);

        let wanted = built("teams/web/policies").await;
        for _ in 0..2 {
            policies.run_with_input(&apply, &wanted).await.unwrap();
        }
        play.condition("jitpol/admins", "Ready", "True").await;
        let locked = Timestamp::now();
        let policy = play.get("jitpol/admins").await.unwrap();
        assert_eq!(policy["spec"]["approval"]["required"], 1, "the house rules are in it");
        assert!(!play.passes(STRANGER, "web-1", 22).await);

        // Asked by pull request, approved by a person.
        let wanted = built("teams/web/requests").await;
        for _ in 0..2 {
            requests.run_with_input(&apply, &wanted).await.unwrap();
        }
        let request = site.rereads("jitreq/chg-1042", |found| found["status"]["planHash"].is_string()).await;
        let asked_by = "system:serviceaccount:jit-pipelines:web-requests";
        assert_eq!(request["spec"]["requester"]["username"], asked_by);
        let approve = |name: &str, request: &Value| {
            json!({
                "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
                "metadata": {"name": name, "namespace": NAMESPACE},
                "spec": {
                    "requestRef": {"name": request["metadata"]["name"], "uid": request["metadata"]["uid"]},
                    "policyRef": {"name": "admins"}, "verdict": "Approved",
                    "planHash": request["status"]["planHash"],
                },
            })
            .to_string()
        };
        let said = requests.output(&["create", "-f", "-"], Some(&approve("own", &request))).await.unwrap();
        assert!(
            said.code != 0 && said.stderr.contains("takes the verb approve"),
            "who asks may not approve: {said:?}"
        );
        // A pipeline that may approve does not either, nor does the packet pass.
        reviews.run_with_input(&["create", "-f", "-"], &approve("by-a-pipeline", &request)).await.unwrap();
        let review = play.reaches("jitrev/by-a-pipeline", "/status/counted", "Some(Bool(false))").await;
        assert!(
            review["status"]["reason"].as_str().unwrap().contains("a person has to approve"),
            "{review:#}"
        );
        assert!(!play.passes("203.0.113.64", "web-1", 22).await);
        play.approve(User::Approver, "chg-1042", "admins").await;
        play.reaches("jitreq/chg-1042", "/status/state", "Active").await;
        assert!(play.passes("203.0.113.64", "web-1", 22).await);

        // Asked by a person, approved by pull request.
        let incident = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": "inc-7731", "namespace": NAMESPACE},
            "spec": {
                "policyRef": {"name": "admins"}, "targets": [{"name": "web-1"}], "duration": "30m",
                "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.65/32"}]}], "justification": "INC-7731 disk",
            },
        });
        play.developer.apply(&incident.to_string()).await.unwrap();
        let request = site.rereads("jitreq/inc-7731", |found| found["status"]["planHash"].is_string()).await;
        let seen = |pointer: &str| request.pointer(pointer).and_then(Value::as_str).unwrap().to_owned();
        let wanted = built("teams/web/reviews").await;
        let wanted = wanted
            .replace("00000000-0000-0000-0000-000000000000", &seen("/metadata/uid"))
            .replace(&"0".repeat(64), &seen("/status/planHash"));
        assert!(!play.passes("203.0.113.65", "web-1", 22).await);
        for _ in 0..2 {
            reviews.run_with_input(&apply, &wanted).await.unwrap();
        }
        play.reaches("jitrev/inc-7731", "/status/counted", "Some(Bool(true))").await;
        play.reaches("jitreq/inc-7731", "/status/state", "Active").await;
        assert!(play.passes("203.0.113.65", "web-1", 22).await);
        assert_eq!(play.exposed(STRANGER, "web-1", 22, locked).await, []);
        for object in ["jitreq/chg-1042", "jitreq/inc-7731", "jitpol/admins"] {
            play.admin.run(&["-n", NAMESPACE, "delete", object, "--timeout=45s"]).await.unwrap();
        }
        // Its own alone: others share the namespace.
        play.admin.run(&["-n", NAMESPACE, "delete", "jitrev/inc-7731", "--timeout=45s"]).await.unwrap();
        assert!(!play.passes("203.0.113.64", "web-1", 22).await);
    });
}

/// What the sample says to Flux and Argo CD holds together: each part is applied from a folder that is there, by a
/// service account that the platform gives, and no wave of Argo CD stands behind the requests.
#[test]
fn the_sample_says_to_flux_and_argo_cd_what_the_repository_has() {
    let root = portcullis_harness::checkout().join("deploy/samples/gitops");
    let documents = |file: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        serde_yaml_ng::Deserializer::from_str(&text)
            .map(|document| serde::Deserialize::deserialize(document).unwrap())
            .collect()
    };
    let accounts: BTreeSet<String> = documents("platform/jit-pipelines/team-web.yaml")
        .iter()
        .filter(|object| object["kind"] == "ServiceAccount")
        .map(|object| object["metadata"]["name"].as_str().unwrap().to_owned())
        .collect();
    let mut used = BTreeSet::new();
    for flux in documents("clusters/flux/team-web.yaml") {
        assert!(
            root.join(flux["spec"]["path"].as_str().unwrap()).join("kustomization.yaml").is_file(),
            "{flux:#}"
        );
        assert_eq!(flux["metadata"]["namespace"], "jit-pipelines", "where the service account is");
        used.insert(flux["spec"]["serviceAccountName"].as_str().unwrap().to_owned());
    }
    assert_eq!(used, accounts);
    let used: BTreeSet<String> = documents("clusters/argocd/projects.yaml")
        .iter()
        .map(|project| {
            let account = &project["spec"]["destinationServiceAccounts"][0]["defaultServiceAccount"];
            account.as_str().unwrap().strip_prefix("jit-pipelines:").unwrap().to_owned()
        })
        .collect();
    assert_eq!(used, accounts);
    let applications = documents("clusters/argocd/team-web.yaml");
    let objects = ["requests/chg-1042.yaml", "reviews/inc-7731.yaml"]
        .map(|part| documents(&format!("teams/web/{part}"))[0].clone());
    let wave = |object: &Value| -> i64 {
        object["metadata"]["annotations"]["argocd.argoproj.io/sync-wave"].as_str().unwrap().parse().unwrap()
    };
    for waves in [applications[1..].iter().map(wave).collect::<Vec<_>>(), objects.iter().map(wave).collect()]
    {
        assert_eq!(
            waves[0], waves[1],
            "a wave that waits for a person holds up reviews that stand behind it"
        );
    }
    for application in &applications {
        assert!(
            root.join(application["spec"]["source"]["path"].as_str().unwrap())
                .join("kustomization.yaml")
                .is_file()
        );
        assert!(wave(application) <= wave(&applications[1]));
    }
}

/// Whoever may edit a namespace can act as its service accounts: none of the team's own may approve or write policies.
#[test]
fn the_samples_give_no_service_account_of_a_team_more_than_to_ask() {
    let root = portcullis_harness::checkout().join("deploy/samples");
    let mut bound = 0;
    for file in
        ["rbac.yaml", "gitops/platform/team-web/pipelines.yaml", "gitops/platform/team-web/people.yaml"]
    {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        for document in serde_yaml_ng::Deserializer::from_str(&text) {
            let binding: Value = serde::Deserialize::deserialize(document).unwrap();
            if !["portcullis-approver", "portcullis-policy-admin"]
                .contains(&binding["roleRef"]["name"].as_str().unwrap_or_default())
            {
                continue;
            }
            for subject in binding["subjects"].as_array().unwrap() {
                bound += 1;
                let home = subject["namespace"].as_str();
                let the_platforms = home.is_some_and(|home| ["jit-pipelines", "argocd"].contains(&home));
                assert!(subject["kind"] != "ServiceAccount" || the_platforms, "{file}: {subject}");
            }
        }
    }
    assert!(bound > 2, "else the test proves nothing");
}
