//! A control plane that one test gives back is as good as new to the next one, or is not lent again.

use portcullis_harness::control_plane::User;
use portcullis_harness::{install, lend};
use reqwest::Method;
use serde_json::json;

const REQUESTS: &str = "/apis/jit.portcullis.io/v1alpha1/namespaces/team-web/jitaccessrequests";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_test_leaves_behind_is_gone_and_what_it_spoils_is_not_lent_again() -> anyhow::Result<()> {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let plane = lend().await?;
    let first = plane.process_ids();
    install::grant_access(&plane, "another").await?;
    let request = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
        "metadata": {"name": "left", "finalizers": ["jit.portcullis.io/cloud-rules"]},
        "spec": {
            "policyRef": {"name": "none"}, "targets": [{"name": "any"}], "duration": "1m",
            "ports": [{"port": 22, "sources": [{"cidr": "192.0.2.1/32"}]}],
        },
    });
    let controller = format!("system:serviceaccount:{}:{}", install::CONTROLLER.0, install::CONTROLLER.1);
    plane.request(Method::POST, REQUESTS, Some(&request)).await?;
    let map = json!({"metadata": {"name": "left"}, "data": {"some": "thing"}});
    let maps = format!("/api/v1/namespaces/{}/configmaps", install::CONTROLLER.0);
    plane.request_as(&controller, Method::POST, &maps, Some(&map)).await?;
    drop(plane);

    let plane = lend().await?;
    assert_eq!(plane.process_ids(), first, "it is the same one");
    assert!(plane.object("team-web", "jitreq/left").await?.is_none());
    assert!(plane.request(Method::GET, &format!("{maps}/left"), None).await.is_err());
    let developer = plane.kubectl(User::Developer)?;
    let may = ["auth", "can-i", "create", "jitaccessrequests", "-n"];
    assert_eq!(developer.run(&[&may[..], &[install::NAMESPACE]].concat()).await?.trim(), "yes");
    // Authorization follows its objects with a delay.
    portcullis_harness::eventually("the right is gone", std::time::Duration::from_secs(10), || async {
        let answer = developer.run(&[&may[..], &["another"]].concat()).await;
        anyhow::ensure!(answer.is_err(), "still there");
        anyhow::Ok(())
    })
    .await?;
    plane.kubectl(User::Admin)?.run(&["delete", "clusterrole", "portcullis-viewer"]).await?;
    drop(plane);

    let mut plane = lend().await?;
    let second = plane.process_ids();
    assert_ne!(second, first, "an installation that lacks something is no one's any more");
    plane.reconnect()?;
    drop(plane);
    assert_ne!(lend().await?.process_ids(), second, "nor is what was taken to be changed");
    Ok(())
}
