//! The main job, with a second person, and what is refused.

use std::time::Duration;

use portcullis_harness::User;
use serde_json::json;

use super::{asked, ends, guarded, jit, json_of, kubectl};
use crate::ground::{REQUESTER, STRANGER, on_site, targets};

#[test]
fn one_asks_another_approves_and_packets_pass_until_it_is_ended() {
    on_site(|site| async move {
        let vm = guarded(&site, 1).await;
        let (policy, name) = (site.name("web"), site.name("mine"));
        let mut asking = kubectl(&site, User::Developer)
            .command(
                &[],
                &[
                    "jit",
                    "request",
                    &policy,
                    "--source",
                    REQUESTER,
                    "--for",
                    "30m",
                    "--name",
                    &name,
                    "-m",
                    "INC-1",
                    "--wait",
                    "--timeout",
                    "2m",
                    "-n",
                    "team-web",
                ],
            )
            .unwrap()
            .spawn()
            .unwrap();
        site.until("has a plan", "jitreq/mine", |found| found["status"]["planHash"].is_string()).await;
        assert!(asking.try_wait().unwrap().is_none(), "it waits for somebody to approve");
        assert!(!site.passes(REQUESTER, &vm.ip, 22).await);

        let waiting = ends(&site, User::Approver, &["list", "--waiting", "-o", "name"], 0).await;
        assert!(
            waiting.stdout.contains(&format!("jitaccessrequest.jit.portcullis.io/{name}\n")),
            "{waiting:?}"
        );
        let approved =
            ends(&site, User::Approver, &["approve", &name, "--yes", "--wait", "-m", "pairing"], 0).await;
        assert!(
            approved.stdout.contains(" created\n") && approved.stdout.contains(" answered: "),
            "{approved:?}"
        );
        assert!(approved.stderr.contains(&format!("{REQUESTER}/32")), "the plan is shown: {approved:?}");
        assert!(site.passes(REQUESTER, &vm.ip, 22).await && !site.passes(STRANGER, &vm.ip, 22).await);

        let asked = asking.wait_with_output().await.unwrap();
        let (stdout, stderr) =
            (String::from_utf8_lossy(&asked.stdout), String::from_utf8_lossy(&asked.stderr));
        assert!(asked.status.success(), "{stderr}");
        assert!(
            stdout.contains("created") && stdout.contains(&format!("connect to {} port 22", vm.ip)),
            "{stdout}"
        );
        assert!(
            stderr.contains("--target a: the only one") && stderr.contains("Pending: 0 of 1"),
            "{stderr}"
        );

        let live = json_of(&site, User::Developer, &["list", "--live", "--mine", "-o", "json"]).await;
        let ours =
            live["items"].as_array().unwrap().iter().find(|item| item["metadata"]["name"] == name.as_str());
        assert_eq!(ours.unwrap()["status"]["state"], "Active");
        let shown = ends(&site, User::Developer, &["describe", &name], 0).await.stdout;
        for part in ["developer (you)", "| INC-1", "Connect to:", &vm.ip, "approver", "Approved", "Present"] {
            assert!(shown.contains(part), "no {part} in:\n{shown}");
        }

        let ended = ends(&site, User::Developer, &["end", &name, "--wait"], 0).await;
        assert!(ended.stderr.contains("Ended: developer ended it"), "{ended:?}");
        assert!(!site.passes(REQUESTER, &vm.ip, 22).await);
        let again = ends(&site, User::Developer, &["end", &name], 3).await;
        assert!(again.stderr.contains("over already"), "{again:?}");
        let late = ends(&site, User::Approver, &["approve", &name, "--yes"], 3).await;
        assert!(late.stderr.contains("is over"), "{late:?}");
    });
}

#[test]
fn a_revocation_closes_and_whoever_waits_is_told() {
    on_site(|site| async move {
        let vm = guarded(&site, 2).await;
        let name = asked(&site, "mine", &[]).await;
        let first = ends(&site, User::Approver, &["approve", &name, "--yes"], 0).await;
        assert!(first.stdout.contains("asks for 2"), "{first:?}");
        // Reviews are counted in the order of their creation, which is known to the second.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let twice = ends(&site, User::Approver, &["approve", &name, "--yes"], 3).await;
        assert!(twice.stderr.contains("everybody counts once"), "{twice:?}");
        let mine = ends(&site, User::Approver, &["list", "--waiting", "-o", "name"], 0).await;
        assert!(!mine.stdout.contains(&name), "it no longer waits for the first: {mine:?}");
        let timed = ends(&site, User::Developer, &["describe", &name], 0).await;
        assert!(timed.stdout.contains("1 of 2 approvals"), "{timed:?}");

        let second =
            ends(&site, User::Approver2, &["approve", &name, "--yes", "--wait", "-o", "json"], 0).await;
        let review: serde_json::Value = serde_json::from_str(&second.stdout).unwrap();
        assert_eq!(review["status"]["counted"], true);
        assert_eq!(review["spec"]["reviewer"]["username"], "approver2");
        assert!(site.passes(REQUESTER, &vm.ip, 22).await);

        let deny = ends(&site, User::Approver, &["deny", &name], 3).await;
        assert!(deny.stderr.contains(&format!("kubectl jit revoke {name}")), "{deny:?}");
        let refused = ends(&site, User::Developer, &["revoke", &name], 3).await;
        assert!(refused.stderr.contains("verb approve on jitpolicies/"), "{refused:?}");
        let revoked =
            ends(&site, User::Approver, &["revoke", &name, "--wait", "-m", "incident over"], 0).await;
        assert!(revoked.stderr.contains("Revoked: approver revoked it: incident over"), "{revoked:?}");
        assert!(!site.passes(REQUESTER, &vm.ip, 22).await);
    });
}

#[test]
fn nobody_approves_alone_and_a_denial_is_final() {
    on_site(|site| async move {
        let vm = guarded(&site, 1).await;
        let name = asked(&site, "mine", &[]).await;
        let own = ends(&site, User::Developer, &["approve", &name, "--yes"], 3).await;
        assert!(own.stderr.contains("verb approve on jitpolicies/"), "{own:?}");
        assert!(own.stderr.contains("somebody else has to approve"), "{own:?}");
        // Somebody who holds every right is refused by the controller, in its own words.
        let policy = site.name("web");
        let admins = site.name("admins");
        let words = ["request", &policy, "--source", REQUESTER, "--for", "30m", "--name", &admins];
        ends(&site, User::Admin, &words, 0).await;
        site.until("has a plan", "jitreq/admins", |found| found["status"]["planHash"].is_string()).await;
        let own = ends(&site, User::Admin, &["approve", &admins, "--yes"], 3).await;
        assert!(own.stderr.contains("does not count: admin asked: somebody else has to approve"), "{own:?}");

        let denied = ends(&site, User::Approver, &["deny", &name, "-m", "no ticket"], 0).await;
        assert!(denied.stdout.contains("answered: refuses the request for good"), "{denied:?}");
        site.state("jitreq/mine", "Denied").await;
        let late = ends(&site, User::Approver2, &["approve", &name, "--yes"], 3).await;
        assert!(late.stderr.contains("approver denied it: no ticket"), "{late:?}");
        assert!(!site.passes(REQUESTER, &vm.ip, 22).await);
    });
}

#[test]
fn waiting_says_how_it_ended() {
    on_site(|site| async move {
        guarded(&site, 1).await;
        let policy = site.name("web");
        let waits = async |name: &str, timeout: &str| {
            let name = site.name(name);
            let words = [
                "request",
                &policy,
                "--source",
                REQUESTER,
                "--for",
                "30m",
                "--name",
                &name,
                "--wait",
                "--timeout",
                timeout,
            ];
            jit(&site, User::Developer, &words).await
        };
        let nobody = waits("nobody", "2s").await;
        assert_eq!(nobody.code, 4, "{nobody:?}");
        assert!(nobody.stderr.contains("waiting for access: not within 2s"), "{nobody:?}");

        let says = async |name: &str, verb: &str, user: User| {
            site.until("has a plan", &format!("jitreq/{name}"), |found| {
                found["status"]["planHash"].is_string()
            })
            .await;
            ends(&site, user, &[verb, &site.name(name)], 0).await;
        };
        let (denied, ()) = tokio::join!(waits("denied", "2m"), says("denied", "deny", User::Approver));
        assert_eq!(denied.code, 3, "{denied:?}");
        assert!(denied.stderr.contains("Denied: approver denied it"), "{denied:?}");
        let (ended, ()) = tokio::join!(waits("ended", "2m"), says("ended", "end", User::Developer));
        assert_eq!(ended.code, 5, "{ended:?}");
        assert!(ended.stderr.contains("Ended: developer ended it"), "{ended:?}");
    });
}

#[test]
fn every_covering_policy_is_approved_where_one_may() {
    on_site(|site| async move {
        let vm = guarded(&site, 1).await;
        let spec = json!({"targets": targets(&[&vm]), "ports": [{"port": 22}], "approval": {"required": 1}});
        site.policy("broad", &spec).await;
        site.says("jitpol/broad", "Ready", "True", "Configured", "").await;
        let name = asked(&site, "mine", &[]).await;
        site.until("is covered twice", "jitreq/mine", |found| {
            found["status"]["policies"].as_array().is_some_and(|policies| policies.len() == 2)
        })
        .await;
        let one =
            ends(&site, User::Approver, &["approve", &name, "--yes", "--policy", &site.name("broad")], 0)
                .await;
        assert_eq!(one.stdout.matches(" created").count(), 1, "{one:?}");
        assert!(!site.passes(REQUESTER, &vm.ip, 22).await, "each policy asks for its own");
        let wrong = ends(&site, User::Approver, &["approve", &name, "--yes", "--policy", "other"], 2).await;
        assert!(wrong.stderr.contains("--policy other does not cover"), "{wrong:?}");
        let other = ends(&site, User::Approver2, &["approve", &name, "--yes", "--wait"], 0).await;
        assert_eq!(other.stdout.matches(" created").count(), 1, "broad has enough: {other:?}");
        assert!(site.passes(REQUESTER, &vm.ip, 22).await);

        let name = asked(&site, "both", &[]).await;
        let both = ends(&site, User::Approver, &["approve", &name, "--yes", "--wait", "-o", "json"], 0).await;
        let reviews: serde_json::Value = serde_json::from_str(&both.stdout).unwrap();
        let counted: Vec<_> =
            reviews["items"].as_array().unwrap().iter().map(|item| &item["status"]["counted"]).collect();
        assert_eq!(counted, [true, true], "{both:?}");
        site.state("jitreq/both", "Active").await;
    });
}
