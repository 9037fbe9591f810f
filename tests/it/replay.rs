//! The same manifest once more: after its grant, from a backup, in another namespace, from the past of the whole
//! cluster. Nothing opens that nobody asked for again. Packets decide.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::{Controller, eventually, install};
use serde_json::{Value, json};

use crate::ground::{REQUESTER, STRANGER, WRONG_SECRET, condition, hurry, on_site};
use crate::walk::Play;

fn settled(found: &Value) -> bool {
    found["status"]["settled"] == true
}

#[test]
fn a_pipelines_manifest_opens_nothing_after_its_window_however_often_it_is_applied() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let argo = site.argo().await;
        let apply = async |manifest: &Value| {
            argo.output(&["apply", "-f", "-"], Some(&manifest.to_string())).await.unwrap()
        };
        let refused = apply(&site.wanted("mine", "web", &json!({}))).await;
        assert!(refused.code != 0 && refused.stderr.contains("spec.notAfter is required"), "{refused:?}");

        let end = Timestamp::from_second(Timestamp::now().as_second() + 50).unwrap();
        let manifest = site.wanted("mine", "web", &json!({"notAfter": end.to_string()}));
        assert_eq!(apply(&manifest).await.code, 0);
        let first = site.state("jitreq/mine", "Active").await;
        assert_eq!(first["status"]["expiresAt"], end.to_string(), "notAfter is before duration has passed");

        // Deleted and applied again within its window: another grant, of another object, with the same end.
        site.kubectl_delete("jitreq/mine").await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        if Timestamp::now() + SignedDuration::from_secs(35) < end {
            assert_eq!(apply(&manifest).await.code, 0);
            let second = site
                .until("is open or too late", "jitreq/mine", |found| {
                    found["status"]["state"] == "Active" || settled(found)
                })
                .await;
            assert_ne!(second["metadata"]["uid"], first["metadata"]["uid"]);
            if second["status"]["state"] == "Active" {
                assert_eq!(second["status"]["expiresAt"], end.to_string());
                site.until("is settled", "jitreq/mine", settled).await;
            }
            site.kubectl_delete("jitreq/mine").await;
        }
        tokio::time::sleep(Duration::try_from(end.duration_since(Timestamp::now())).unwrap_or_default())
            .await;
        site.until_passes(REQUESTER, &a.ip, 22, false).await;

        let closed = Timestamp::now();
        for _ in 0..2 {
            assert_eq!(apply(&manifest).await.code, 0);
            let again = site.until("is settled", "jitreq/mine", settled).await;
            assert_eq!(again["status"]["state"], "TimedOut", "{:#}", again["status"]);
            site.kubectl_delete("jitreq/mine").await;
        }
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, []);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_backup_brings_back_no_grant_and_nobody_restores_anothers_request() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let (admin, developer) = (&site.ground.play.admin, &site.ground.play.developer);
        let manifest = site.wanted("mine", "web", &json!({}));
        developer.apply(&manifest.to_string()).await.unwrap();
        let mut backup = site.state("jitreq/mine", "Active").await;
        site.kubectl_delete("jitreq/mine").await;
        site.until_passes(REQUESTER, &a.ip, 22, false).await;
        let closed = Timestamp::now();

        // As tools restore: the whole object, status and finalizer and all, by whom the cluster trusts with it.
        backup["metadata"].as_object_mut().unwrap().remove("resourceVersion");
        for restorer in [admin, &site.argo().await] {
            let said = restorer.output(&["create", "-f", "-"], Some(&backup.to_string())).await.unwrap();
            assert!(said.code != 0 && said.stderr.contains("spec.requester must be yourself"), "{said:?}");
        }
        site.some_rounds().await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, []);

        // Its requester may: that is asking again, by the terms of now.
        site.policy("web", &json!({"targets": crate::ground::targets(&[&a]), "suspend": true})).await;
        site.until("is suspended", "jitpol/web", |found| {
            found["status"]["observedGeneration"] == found["metadata"]["generation"]
        })
        .await;
        developer.run_with_input(&["create", "-f", "-"], &backup.to_string()).await.unwrap();
        let restored = site
            .until("waits", "jitreq/mine", |found| condition(found, "Active")["reason"] == "Suspended")
            .await;
        assert_ne!(restored["metadata"]["uid"], backup["metadata"]["uid"]);
        let status = &restored["status"];
        assert!(
            status["grantedAt"].is_null() && status["expiresAt"].is_null(),
            "nothing of the old status: {status:#}"
        );
        site.some_rounds().await;
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, []);
        site.kubectl_delete("jitreq/mine").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn the_same_manifests_in_another_namespace_reach_nothing() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let locked = Timestamp::now();
        let play = &site.ground.play;
        let request = site.wanted("mine", "web", &json!({}));
        let policy = site.get("jitpol/web").await.unwrap();
        let unmapped = format!("copy-{}", site.number);
        install::grant_access(&play.stage.plane, &unmapped).await.unwrap();
        // One that the configuration does not know, and one that it gives another part of the cloud.
        for namespace in [unmapped.as_str(), WRONG_SECRET.0] {
            let mut copy =
                json!({"apiVersion": policy["apiVersion"], "kind": "JitPolicy", "spec": policy["spec"]});
            copy["metadata"] = json!({"name": site.name("web"), "namespace": namespace});
            play.admin.apply(&copy.to_string()).await.unwrap();
            let mut copy = request.clone();
            copy["metadata"]["namespace"] = json!(namespace);
            play.developer.apply(&copy.to_string()).await.unwrap();
            let name = site.name("web");
            eventually("the copy of the policy is stalled", Duration::from_secs(60), || async {
                let found = play.admin.json(&["-n", namespace, "jitpol", &name]).await?;
                let stalled = condition(&found, "Stalled");
                anyhow::ensure!(stalled["reason"] == "ScopeNotAllowed", "{:#}", found["status"]);
                Ok::<_, anyhow::Error>(())
            })
            .await
            .unwrap();
        }
        site.some_rounds().await;
        for namespace in [unmapped.as_str(), WRONG_SECRET.0] {
            let name = site.name("mine");
            let found = play.admin.json(&["-n", namespace, "jitreq", &name]).await.unwrap();
            assert!(found["status"]["grantedAt"].is_null(), "{namespace}: {:#}", found["status"]);
            play.admin.run(&["-n", namespace, "delete", "jitreq", &name]).await.unwrap();
            play.admin.run(&["-n", namespace, "delete", "jitpol", &site.name("web")]).await.unwrap();
        }
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, locked).await, []);
        assert_eq!(site.ours_that("net", "Deny").await.len(), 1, "nor did a copy take the lock along");
        site.kubectl_delete("jitpol/web").await;
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_restored_to_when_a_grant_was_live_does_not_reopen_what_was_closed_since() {
    let mut play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = Timestamp::now();
    for (name, source) in [("withdrawn", REQUESTER), ("kept", "203.0.113.8")] {
        play.request(name, "web-1", "web-1", 22, source, "1h").await;
        play.reaches(&format!("jitreq/{name}"), "/status/state", "Active").await;
    }
    let backup = play.stage.plane.back_up().await.unwrap();
    assert!(play.passes(REQUESTER, "web-1", 22).await, "grants outlive an API server that is away");
    play.developer
        .run(&["-n", install::NAMESPACE, "delete", "jitreq", "withdrawn", "--timeout=45s"])
        .await
        .unwrap();
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    let closed = Timestamp::now();

    play.stage.plane.restore(&backup).await.unwrap();
    let restored = play.get("jitreq/withdrawn").await.unwrap();
    let as_it_was = ["Active", "Closing", "Ended"].map(|state| json!(state));
    assert!(as_it_was.contains(&restored["status"]["state"]), "{:#}", restored["status"]);
    assert!(
        restored["metadata"]["deletionTimestamp"].is_null(),
        "else the backup holds nothing to be replayed"
    );
    // For the controller that lived through it, and for one that knows only what the API server says.
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
    controller.restart().await.unwrap();
    let ended = play.reaches("jitreq/withdrawn", "/status/state", "Ended").await;
    assert_eq!(condition(&ended, "Active")["reason"], "RuleRemoved", "{:#}", ended["status"]);
    assert_eq!(play.exposed(REQUESTER, "web-1", 22, closed).await, []);
    // What was live then and is live now goes on.
    let kept = play.exposed("203.0.113.8", "web-1", 22, locked).await;
    assert!(kept.len() == 1 && kept[0].1.is_none(), "{kept:?}");
    assert_eq!(play.exposed(STRANGER, "web-1", 22, locked).await, []);
}
