//! Caches that lag, that never fill, and that have grown old: nothing is opened on their word, and all is closed without
//! them.

use portcullis::providers::CloudErrorKind;

use super::*;

fn reviews_are_never_listed(uri: &axum::http::Uri) -> Option<String> {
    (uri.path() == "/apis/jit.portcullis.io/v1alpha1/jitaccessreviews")
        .then(|| "/apis/none/v1/none".to_owned())
}

/// A new image with the roles of the one before it: it may not watch reviews.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_open_is_closed_while_the_reviews_are_not_known() {
    let on = Arc::new(AtomicBool::new(false));
    let mut bench = Bench::with_detour("blind", reviews_are_never_listed, &on).await;
    bench.apply_policy("web", "").await;
    for (name, source) in [("deleted", "203.0.113.7/32"), ("suspended", "203.0.113.8/32")] {
        bench.request(name, source, "1h").await;
        bench.reaches(&format!("jitreq/{name}"), "/status/state", "Active").await;
    }
    on.store(true, Ordering::SeqCst);
    bench.crash();
    bench.request("new", "203.0.113.9/32", "1h").await;
    bench.developer.run(&["-n", "blind", "delete", "jitreq", "deleted", "--wait=false"]).await.unwrap();
    bench.is_gone("jitreq/deleted").await;
    bench
        .admin
        .run(&["-n", "blind", "patch", "jitpol", "web", "--type=merge", "-p", r#"{"spec":{"suspend":true}}"#])
        .await
        .unwrap();
    bench.reaches("jitreq/suspended", "/status/state", "Revoked").await;
    assert!(bench.rules(Access::Allow).is_empty(), "{:?}", bench.rules(Access::Allow));
    assert_eq!(
        bench.get("jitreq/new", "/status/state").await.unwrap().trim(),
        "",
        "nothing is granted meanwhile"
    );
    // Back again, everything goes on.
    on.store(false, Ordering::SeqCst);
    bench
        .admin
        .run(&[
            "-n",
            "blind",
            "patch",
            "jitpol",
            "web",
            "--type=merge",
            "-p",
            r#"{"spec":{"suspend":false}}"#,
        ])
        .await
        .unwrap();
    bench.reaches("jitreq/new", "/status/state", "Active").await;
}

fn policies_are_watched_and_nothing_comes(uri: &axum::http::Uri) -> Option<String> {
    let watches = uri.path() == "/apis/jit.portcullis.io/v1alpha1/jitpolicies"
        && uri.query().is_some_and(|query| query.contains("watch=true"));
    watches.then(|| format!("{uri}&fieldSelector=metadata.name%3Dnobody"))
}

/// A watch that lags behind: the stop button was pressed, and the cache does not know.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_is_read_anew_before_a_grant_whatever_the_watch_has_told() {
    let on = Arc::new(AtomicBool::new(false));
    let mut bench = Bench::with_detour("lagging", policies_are_watched_and_nothing_comes, &on).await;
    bench.apply_policy("web", "").await;
    bench.reaches("jitpol/web", "/status/targets/0/state", "Configured").await;
    on.store(true, Ordering::SeqCst);
    bench.crash();
    tokio::time::sleep(Duration::from_secs(3)).await;
    let suspend = |suspend: bool| format!(r#"{{"spec":{{"suspend":{suspend}}}}}"#);
    let patch = async |text: String| {
        bench
            .admin
            .run(&["-n", "lagging", "patch", "jitpol", "web", "--type=merge", "-p", &text])
            .await
            .unwrap()
    };
    patch(suspend(true)).await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/conditions/Approved/reason", "Suspended").await;
    for _ in 0..20 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(bench.rules(Access::Allow).is_empty());
    }
    patch(suspend(false)).await;
    // Another generation than the cache has: its machines are not known.
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(200)).await;
        assert!(bench.rules(Access::Allow).is_empty());
    }
    on.store(false, Ordering::SeqCst);
    bench.crash();
    bench.reaches("jitreq/one", "/status/state", "Active").await;
}

/// Machines that cannot be read: a grant waits until they were, because an address may be another's by then.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_opened_on_addresses_that_were_read_long_ago() {
    let bench = Bench::new("old").await;
    bench.apply_policy("web", "").await;
    bench.reaches("jitpol/web", "/status/targets/0/state", "Configured").await;
    bench.cloud.faults(|faults| faults.inventory = Some(CloudErrorKind::Retryable));
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.request("one", "203.0.113.7/32", "1h").await;
    bench.reaches("jitreq/one", "/status/conditions/Active/reason", "Progressing").await;
    let why = bench.get("jitreq/one", "/status/conditions/Active/message").await.unwrap();
    assert!(why.contains("were last read at"), "{why}");
    assert!(bench.rules(Access::Allow).is_empty());
    bench.cloud.faults(|faults| faults.inventory = None);
    bench.reaches("jitreq/one", "/status/state", "Active").await;
}
