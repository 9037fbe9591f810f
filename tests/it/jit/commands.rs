//! What is sent, what is shown, and how it ends.

use portcullis_harness::{ControlPlane, Options, User, eventually, install};
use serde_json::Value;
use std::time::Duration;

use super::{asked, ends, guarded, jit, json_of, kubectl};
use crate::ground::{REQUESTER, on_site};

#[test]
fn what_is_printed_is_what_plain_kubectl_sends() {
    on_site(|site| async move {
        let vm = guarded(&site, 1).await;
        let (policy, name) = (site.name("web"), site.name("mine"));
        // Words that are no text to YAML 1.1, and some that would move the cursor.
        for (number, why) in ["no", "1_000", "a: b\n\u{1b}[1m\u{202e}", "'\"\\"].into_iter().enumerate() {
            let name = format!("{name}-{number}");
            let words = [
                "request", &policy, "--source", REQUESTER, "--for", "30m", "--name", &name, "-m", why,
                "--print",
            ];
            let printed = ends(&site, User::Developer, &words, 0).await;
            assert!(!printed.stdout.contains('\u{1b}'), "{printed:?}");
            let object = format!("jitreq/mine-{number}");
            assert!(site.get(&object).await.is_err(), "nothing was sent");
            let developer = kubectl(&site, User::Developer);
            developer.run_with_input(&["create", "-f", "-"], &printed.stdout).await.unwrap();
            let found = site.get(&object).await.unwrap();
            assert_eq!(found["spec"]["justification"], why);
            assert_eq!(found["spec"]["requester"]["username"], "developer");
        }
        let name = format!("{name}-0");
        site.until("has a plan", "jitreq/mine-0", |found| found["status"]["planHash"].is_string()).await;
        let printed = ends(&site, User::Approver, &["approve", &name, "--print"], 0).await;
        kubectl(&site, User::Approver).run_with_input(&["create", "-f", "-"], &printed.stdout).await.unwrap();
        site.state("jitreq/mine-0", "Active").await;
        assert!(site.passes(REQUESTER, &vm.ip, 22).await);
        let printed = ends(&site, User::Developer, &["end", &name, "--print"], 0).await;
        kubectl(&site, User::Developer)
            .run_with_input(&["create", "-f", "-"], &printed.stdout)
            .await
            .unwrap();
        site.state("jitreq/mine-0", "Ended").await;
    });
}

#[test]
fn results_are_shown_as_they_are_asked_for() {
    on_site(|site| async move {
        guarded(&site, 1).await;
        let name = asked(&site, "mine", &["-m", "INC-1\u{202e}\nx"]).await;
        let list = json_of(&site, User::Viewer, &["list", "-o", "json"]).await;
        let found =
            list["items"].as_array().unwrap().iter().find(|item| item["metadata"]["name"] == name.as_str());
        assert_eq!(found.unwrap()["spec"]["justification"], "INC-1\u{202e}\nx");
        assert!(found.unwrap()["metadata"]["managedFields"].is_null());
        let yaml = ends(&site, User::Viewer, &["describe", &name, "-o", "yaml"], 0).await.stdout;
        assert!(!yaml.contains('\u{202e}'), "{yaml:?}");
        let yaml: Value = serde_yaml_ng::from_str(&yaml).unwrap();
        assert_eq!(yaml["spec"]["justification"], "INC-1\u{202e}\nx");
        let wide = ends(&site, User::Viewer, &["list", "-o", "wide"], 0).await.stdout;
        let row = wide.lines().find(|line| line.starts_with(&name)).unwrap();
        assert!(
            row.contains("Pending") && row.contains("0/1") && row.contains("INC-1\\u{202e}\\nx"),
            "{wide}"
        );
        assert!(row.contains("WaitingForApproval"), "{wide}");
        let everywhere =
            kubectl(&site, User::Admin).run(&["jit", "list", "-A", "--no-headers"]).await.unwrap();
        assert!(everywhere.lines().any(|line| line.starts_with(install::NAMESPACE) && line.contains(&name)));
        let shown = ends(&site, User::Approver, &["describe", &name], 0).await.stdout;
        for part in [
            "verb approve on jitpolicies/",
            "may",
            "| INC-1\\u{202e}\\nx",
            "Rules that would be written",
            REQUESTER,
        ] {
            assert!(shown.contains(part), "no {part} in:\n{shown}");
        }
        assert!(shown.contains(&format!("kubectl jit approve {name}")), "it says what would help: {shown}");
        let none = ends(&site, User::Developer2, &["list", "--mine"], 0).await;
        assert!(none.stdout.is_empty() && none.stderr.contains("No resources found in team-web"), "{none:?}");
    });
}

#[test]
fn a_dry_run_changes_nothing_and_the_servers_is_judged() {
    on_site(|site| async move {
        guarded(&site, 1).await;
        let (policy, name) = (site.name("web"), site.name("mine"));
        let words = |duration: &'static str, place: &'static str| {
            let name = name.as_str();
            let policy = policy.as_str();
            ["request", policy, "--source", REQUESTER, "--for", duration, "--name", name, "--dry-run", place]
        };
        let client = ends(&site, User::Developer, &words("1h", "client"), 0).await;
        assert!(client.stdout.ends_with(" created (dry run)\n"), "{client:?}");
        let server = ends(&site, User::Developer, &words("1h", "server"), 0).await;
        assert!(server.stdout.ends_with(" created (server dry run)\n"), "{server:?}");
        let refused = ends(&site, User::Developer, &words("9h", "server"), 3).await;
        assert!(refused.stderr.contains("spec.duration is longer than"), "{refused:?}");
        assert!(site.get("jitreq/mine").await.is_err());
        let name = asked(&site, "mine", &[]).await;
        for place in ["client", "server"] {
            let approved = ends(&site, User::Approver, &["approve", &name, "--dry-run", place], 0).await;
            assert!(approved.stdout.contains("dry run)"), "{approved:?}");
        }
        let reviews = kubectl(&site, User::Viewer)
            .json(&[
                "jitrev",
                "-n",
                install::NAMESPACE,
                "--field-selector",
                &format!("spec.requestRef.name={name}"),
            ])
            .await
            .unwrap();
        assert_eq!(reviews["items"].as_array().unwrap().len(), 0);
    });
}

#[test]
fn every_end_has_its_code() {
    on_site(|site| async move {
        guarded(&site, 1).await;
        let policy = site.name("web");
        let ask = ["request", &policy, "--source", REQUESTER, "--for", "1h"];
        let with = |more: &[&'static str]| -> Vec<String> {
            ask.iter().chain(more).map(ToString::to_string).collect()
        };
        for (words, code, says) in [
            (vec!["describe".to_owned(), "nowhere".to_owned()], 1, "not found"),
            (with(&["--kubeconfig", "/nowhere"]), 1, "--kubeconfig /nowhere"),
            (with(&["--context", "nowhere"]), 1, "nowhere"),
            (
                ["request", "nowhere", "--source", REQUESTER, "--for", "1h"].map(String::from).to_vec(),
                1,
                "--target",
            ),
            (with(&["--port", "ssh"]), 2, "--port"),
            (with(&["--port", "3389"]), 3, "opens only 22"),
            (with(&["--target", "other"]), 3, "has no target named other"),
            (with(&["--on-behalf-of", "alice", "--not-after", "+1h"]), 3, "verb delegate"),
            (with(&["--as", "approver"]), 3, "cannot impersonate"),
        ] {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let output = jit(&site, User::Developer, &words).await;
            assert_eq!(output.code, code, "{words:?}: {output:?}");
            assert!(output.stderr.contains(says), "{words:?}: {output:?}");
            assert!(output.stdout.is_empty(), "{words:?}: {output:?}");
        }
        let outsider = ends(&site, User::Outsider, &["list"], 3).await;
        assert!(outsider.stderr.starts_with("Error from server (Forbidden)"), "{outsider:?}");
        // Whoever may impersonate acts as the other.
        let mut words =
            with(&["--as", "developer", "--as-group", "developers", "-o", "json", "--dry-run", "server"]);
        words.extend(["--name".to_owned(), site.name("as")]);
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let made = json_of(&site, User::Admin, &words).await;
        assert_eq!(made["spec"]["requester"]["username"], "developer");
    });
}

/// Before Kubernetes 1.36, and where somebody took the policy away.
#[tokio::test(flavor = "multi_thread")]
async fn who_asks_is_filled_in_where_the_server_does_not() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    install::install(&plane).await.unwrap();
    install::grant_access(&plane, install::NAMESPACE).await.unwrap();
    let developer = plane.kubectl(User::Developer).unwrap().with_plugin().unwrap();
    let words = |more: &[&'static str]| -> Vec<&'static str> {
        let mut words = vec![
            "jit",
            "request",
            "web",
            "--source",
            REQUESTER,
            "--for",
            "1h",
            "--target",
            "a",
            "--port",
            "22",
            "-n",
            install::NAMESPACE,
            "--name",
            "mine",
        ];
        words.extend_from_slice(more);
        words
    };
    let stamped = developer.output(&words(&["--print"]), None).await.unwrap();
    assert!(stamped.code == 0 && !stamped.stdout.contains("requester"), "{stamped:?}");
    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        plane.kubectl(User::Admin).unwrap().run(&["delete", kind, "portcullis-requester"]).await.unwrap();
    }
    // The API server follows within seconds.
    let sent = eventually("the API server asks for it", Duration::from_secs(60), || async {
        let output = developer.output(&words(&["-o", "json", "--dry-run", "server"]), None).await?;
        anyhow::ensure!(output.stderr.contains("the API server asked for it"), "{output:?}");
        Ok::<_, anyhow::Error>(output)
    })
    .await
    .unwrap();
    assert_eq!(sent.code, 0, "{sent:?}");
    let made: Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!(made["spec"]["requester"]["username"], "developer");
    assert_eq!(made["spec"]["requester"]["uid"], "uid-of-developer");
    // Somebody who may look sees that it is not there, and prints what the server will ask for.
    let admin = plane.kubectl(User::Admin).unwrap().with_plugin().unwrap();
    let printed = admin.output(&words(&["--print"]), None).await.unwrap();
    assert!(printed.stdout.contains("username: admin"), "{printed:?}");
    assert!(
        printed.stderr.contains("there is no MutatingAdmissionPolicy portcullis-requester"),
        "{printed:?}"
    );
    admin.run_with_input(&["create", "-f", "-"], &printed.stdout).await.unwrap();

    for kind in ["mutatingadmissionpolicybinding", "mutatingadmissionpolicy"] {
        plane.kubectl(User::Admin).unwrap().run(&["delete", kind, "portcullis-reviewer"]).await.unwrap();
    }
    let ending = ["jit", "end", "mine", "-n", install::NAMESPACE, "-o", "json", "--dry-run", "server"];
    let sent = eventually("the API server asks for it", Duration::from_secs(60), || async {
        let output = developer.output(&ending, None).await?;
        anyhow::ensure!(output.stderr.contains("spec.reviewer is you (developer)"), "{output:?}");
        Ok::<_, anyhow::Error>(output)
    })
    .await
    .unwrap();
    let made: Value = serde_json::from_str(&sent.stdout).unwrap();
    assert_eq!(made["spec"]["reviewer"]["username"], "developer");
}

/// The controller is down, or has never been there.
#[tokio::test(flavor = "multi_thread")]
async fn without_a_controller_nothing_is_approved_and_nobody_waits_for_ever() {
    let plane = install::shared().await.unwrap();
    let namespace = "jit-unattended";
    install::grant_access(plane, namespace).await.unwrap();
    let run = async |user: User, words: &[&str]| {
        let mut all = vec!["jit"];
        all.extend_from_slice(words);
        all.extend_from_slice(&["-n", namespace]);
        plane.kubectl(user).unwrap().with_plugin().unwrap().output(&all, None).await.unwrap()
    };
    let ask = [
        "request", "web", "--source", REQUESTER, "--for", "1h", "--target", "a", "--port", "22", "--name",
        "mine",
    ];
    let waits = [&ask[..], &["--wait", "--timeout", "5s"]].concat();
    let asked = run(User::Developer, &waits).await;
    assert_eq!(asked.code, 4, "{asked:?}");
    assert!(asked.stderr.contains("no controller has looked at it yet"), "{asked:?}");
    let again = run(User::Developer, &ask).await;
    assert!(again.code == 1 && again.stderr.contains("already exists"), "{again:?}");
    let approved = run(User::Approver, &["approve", "mine", "--yes"]).await;
    assert_eq!(approved.code, 3, "{approved:?}");
    assert!(approved.stderr.contains("no plan yet"), "{approved:?}");
    let ended = run(User::Developer, &["end", "mine", "--timeout", "1s"]).await;
    assert_eq!(ended.code, 4, "{ended:?}");
    assert!(ended.stdout.contains(" created\n") && ended.stderr.contains("may still count"), "{ended:?}");
}
