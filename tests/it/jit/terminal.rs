//! On a terminal: the plan is shown, the person is asked, and what changed meanwhile is not sent.

use std::process::Stdio;
use std::time::Duration;

use portcullis_harness::User;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Child;

use super::{asked, ends, guarded, kubectl};
use crate::ground::{REQUESTER, Site, on_site};

/// Gives a program a terminal, and ends as it ended.
const TERMINAL: &str = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";

/// `kubectl jit approve` at a terminal.
struct Person {
    child: Child,
    seen: String,
}

impl Person {
    fn at(site: &Site, user: User, name: &str) -> Self {
        let words = ["jit", "approve", name, "-n", "team-web"];
        let mut command = kubectl(site, user).command(&["python3", "-c", TERMINAL], &words).unwrap();
        let child = command.stdin(Stdio::piped()).spawn().unwrap();
        Self { child, seen: String::new() }
    }

    /// Reads until the question is there.
    async fn sees(&mut self, wanted: &str) {
        let stdout = self.child.stdout.as_mut().unwrap();
        let reading = async {
            let mut buffer = [0; 4096];
            while !self.seen.contains(wanted) {
                let read = stdout.read(&mut buffer).await.unwrap();
                assert_ne!(read, 0, "it ended: {}", self.seen);
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..read]));
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap();
    }

    /// Types an answer; the exit code, and all that was seen.
    async fn answers(mut self, answer: &str) -> (Option<i32>, String) {
        self.child.stdin.as_mut().unwrap().write_all(format!("{answer}\n").as_bytes()).await.unwrap();
        let mut rest = Vec::new();
        self.child.stdout.as_mut().unwrap().read_to_end(&mut rest).await.unwrap();
        self.seen.push_str(&String::from_utf8_lossy(&rest));
        (self.child.wait().await.unwrap().code(), self.seen)
    }
}

#[test]
fn a_person_sees_the_plan_and_says_yes_or_no() {
    on_site(|site| async move {
        let vm = guarded(&site, 1).await;
        let evil = "INC-1\u{1b}[2J\nRequester:      boss \u{202e}drow";
        let name = asked(&site, "mine", &["-m", evil]).await;
        let mut person = Person::at(&site, User::Approver, &name);
        person.sees("[y/N]").await;
        let (code, seen) = person.answers("").await;
        assert_eq!(code, Some(1), "{seen}");
        assert!(seen.contains("not approved: nothing was sent"), "{seen}");
        assert!(!seen.contains('\u{202e}') && !seen.contains("\u{1b}[2J"), "{seen:?}");
        assert!(seen.contains("\\u{1b}[2J\\nRequester:"), "{seen}");
        assert_eq!(seen.lines().filter(|line| line.starts_with("Requester:")).count(), 1, "{seen}");

        let mut person = Person::at(&site, User::Approver, &name);
        person.sees("[y/N]").await;
        for part in ["developer", &vm.ip, &format!("{REQUESTER}/32"), "30m from the moment", "Plan:"] {
            assert!(person.seen.contains(part), "no {part} in: {}", person.seen);
        }
        let (code, seen) = person.answers("y").await;
        assert_eq!(code, Some(0), "{seen}");
        assert!(seen.contains(" answered: "), "{seen}");
        site.until_passes(REQUESTER, &vm.ip, 22, true).await;

        let without = ends(&site, User::Approver, &["approve", &name], 2).await;
        assert!(without.stderr.contains("--yes is missing"), "{without:?}");
    });
}

#[test]
fn what_changed_while_the_person_was_reading_is_not_approved() {
    on_site(|site| async move {
        let vm = guarded(&site, 1).await;
        let name = asked(&site, "mine", &[]).await;
        let before = site.get("jitreq/mine").await.unwrap()["status"]["planHash"].clone();
        let mut person = Person::at(&site, User::Approver, &name);
        person.sees("[y/N]").await;
        // The machine gets another address, and with it another plan.
        let moved = site.address(9);
        site.change(&vm.nic, |nic| {
            nic["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"] = moved.clone().into();
        })
        .await;
        site.until("has another plan", "jitreq/mine", |found| found["status"]["planHash"] != before).await;
        let (code, seen) = person.answers("y").await;
        assert_eq!(code, Some(3), "{seen}");
        assert!(seen.contains("changed while you looked: nothing was sent"), "{seen}");

        let old = before.as_str().unwrap();
        let stale = ends(&site, User::Approver, &["approve", &name, "--yes", "--plan-hash", old], 3).await;
        assert!(stale.stderr.contains("--plan-hash is of another plan"), "{stale:?}");

        // The same name, created again, is another request.
        let mut person = Person::at(&site, User::Approver, &name);
        person.sees("[y/N]").await;
        site.kubectl_delete("jitreq/mine").await;
        asked(&site, "mine", &[]).await;
        let (code, seen) = person.answers("y").await;
        assert_eq!(code, Some(3), "{seen}");
        assert!(seen.contains("created again while you looked"), "{seen}");
        assert!(!site.passes(REQUESTER, &moved, 22).await);
    });
}
