//! Completion as a shell asks for it: through kubectl.

use portcullis_harness::{User, install};
use serde_json::json;

use super::{asked, ends, guarded, kubectl};
use crate::ground::{Site, on_site};

/// What kubectl offers, without what it says on standard error.
async fn offered(site: &Site, user: User, words: &[&str]) -> String {
    let mut all = vec!["__complete", "jit"];
    all.extend_from_slice(words);
    let output = kubectl(site, user).output(&all, None).await.unwrap();
    assert_eq!(output.code, 0, "{output:?}");
    output.stdout
}

#[test]
fn kubectl_completes_commands_names_and_values() {
    on_site(|site| async move {
        guarded(&site, 1).await;
        let name = asked(&site, "mine", &[]).await;
        let policy = site.name("web");
        let in_namespace = ["-n", install::NAMESPACE];
        let after = async |words: &[&str]| {
            let mut all = in_namespace.to_vec();
            all.extend_from_slice(words);
            offered(&site, User::Approver, &all).await
        };
        let commands = offered(&site, User::Approver, &[""]).await;
        assert!(commands.contains("approve\t") && commands.contains("request\t"), "{commands}");
        assert!(commands.trim_end().ends_with(":4"), "{commands}");
        assert!(after(&["request", ""]).await.contains(&format!("{policy}\tports 22")));
        let targets = after(&["request", &policy, "--target", ""]).await;
        assert!(targets.contains("a\ta machine"), "{targets}");
        let waiting = after(&["approve", &name[..2]]).await;
        assert!(waiting.contains(&format!("{name}\tPending: developer asks for 22/TCP of a")), "{waiting}");
        assert!(!after(&["revoke", ""]).await.contains(&name), "nothing of it is open");
        assert!(after(&["list", "-o", "y"]).await.starts_with("yaml"));
        ends(&site, User::Approver, &["deny", &name], 0).await;
        site.state("jitreq/mine", "Denied").await;
        assert!(!after(&["approve", ""]).await.contains(&name));
        assert!(after(&["describe", ""]).await.contains(&name));
        // Without rights there is an answer all the same, and it is empty.
        let mut words = in_namespace.to_vec();
        words.extend(["approve", ""]);
        assert_eq!(offered(&site, User::Outsider, &words).await.trim_end(), ":4");
    });
}

#[test]
fn a_scope_is_completed_with_its_machines() {
    on_site(|site| async move {
        site.usual().await;
        let spec = json!({"targets": [{"name": "fleet", "azureScope": {"id": site.group()}}], "ports": [{"port": 22}]});
        site.policy("web", &spec).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        let policy = site.name("web");
        let words = ["-n", install::NAMESPACE, "request", &policy, "--target", "fleet/"];
        let offered = offered(&site, User::Developer, &words).await;
        assert!(offered.contains("fleet/a\t"), "{offered}");
        let missing =
            ends(&site, User::Developer, &["request", &policy, "--source", "192.0.2.1", "--for", "1h"], 2)
                .await;
        assert!(missing.stderr.contains("fleet/MACHINE"), "{missing:?}");
    });
}
