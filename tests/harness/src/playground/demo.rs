//! `demo`: the main job, with the very commands that a user would type.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use portcullis_harness::scratch::Scratch;
use portcullis_harness::stage::StageOptions;
use portcullis_harness::{Lifetime, Stage};
use tokio::process::Command;

use super::Narrator;
use super::environment::Environment;

/// The requester's address; it lies in what the request asks for.
const REQUESTER: &str = "203.0.113.7";
/// Somebody else's address.
const ELSEWHERE: &str = "198.51.100.23";
/// How long the port is asked to be open: the shortest that the API takes.
const DURATION: &str = "30s";

/// A review of exactly this object and this plan, as `kubectl jit approve` makes it.
const REVIEW: &str = r#"kubectl get jitreq disk-full -o jsonpath='apiVersion: jit.portcullis.io/v1alpha1
kind: JitAccessReview
metadata:
  generateName: disk-full-
  namespace: team-web
spec:
  requestRef:
    name: disk-full
    uid: {.metadata.uid}
  policyRef:
    name: web-1
  planHash: "{.status.planHash}"
  verdict: Approved
  comment: pairing on it
' > review.yaml"#;

struct Demo {
    narrator: Narrator,
    folder: PathBuf,
    environment: Environment,
}

pub(crate) async fn demo() -> anyhow::Result<ExitCode> {
    let narrator = Narrator::new();
    let folder = Scratch::new(None)?;
    let options = StageOptions { folder: Some(folder.path().to_owned()), ..StageOptions::default() };
    let stage = Stage::start(options, |line| narrator.say(line)).await?;
    narrator.say("starting the controller as the service account portcullis-system/portcullis");
    let controller = stage.start_controller(Lifetime::Leashed).await?;
    let environment = Environment::write(folder.path(), &stage).await?;
    let set_up = narrator.seconds();
    let web = stage.world.machine("web-1")?;
    let address = web.public_address.as_deref().context("web-1 has no public address")?;

    let demo = Demo { narrator: Narrator::new(), folder: folder.path().to_owned(), environment };
    if let Err(error) = demo.play(address).await {
        // What a person would look at first; the failure is told whether this works or not.
        let _ = demo.run("kubectl describe jitpolicies,jitaccessrequests").await;
        anyhow::bail!("the demo failed: {error:#}\n{}", tail(controller.log()));
    }
    narrator.print(&format!(
        "\nDone: {:.0} s for the set-up, {:.0} s for the job. `make up` leaves all of this running for you.",
        set_up,
        demo.narrator.seconds()
    ));
    Ok(ExitCode::SUCCESS)
}

impl Demo {
    async fn play(&self, address: &str) -> anyhow::Result<()> {
        self.chapter("web-1 is a Linux machine with a public address, and somebody's rules let SSH in from the Internet.");
        self.probe(REQUESTER, address, true).await?;
        self.probe(ELSEWHERE, address, true).await?;

        self.chapter(
            "A policy lowers the gate: SSH to web-1 is closed to everybody, and opens when a second person agrees.",
        );
        let policy = without_comments(&Stage::sample("policy-one-machine.yaml")?);
        self.file("policy.yaml", &format!("{policy}  approval: {{required: 1}}\n"))?;
        self.shell("cat policy.yaml").await?;
        self.shell("kubectl --context policy-admin apply -f policy.yaml").await?;
        self.shell("kubectl wait jitpolicy/web-1 --for=condition=Ready --timeout=60s").await?;
        self.shell("kubectl get jitpolicies").await?;
        self.probe(REQUESTER, address, false).await?;
        self.probe(ELSEWHERE, address, false).await?;

        self.chapter(
            "A developer asks for SSH, for one address and 30 seconds, and waits for somebody to agree.",
        );
        let request = without_comments(&Stage::sample("request.yaml")?)
            .replace("duration: 30m", &format!("duration: {DURATION}"));
        ensure!(request.contains(DURATION), "the sample request has no duration of 30m");
        self.file("request.yaml", &request)?;
        self.shell("cat request.yaml").await?;
        self.shell("kubectl --context developer apply -f request.yaml").await?;
        self.shell("kubectl wait jitreq/disk-full --for=jsonpath='{.status.planHash}' --timeout=30s").await?;
        self.shell("kubectl get jitaccessrequests").await?;
        self.probe(REQUESTER, address, false).await?;

        self.chapter("What would be written stands in the request before anybody agrees. Not to be agreed to by oneself:");
        self.shell("kubectl jit describe disk-full --context approver").await?;
        self.shell(REVIEW).await?;
        self.shell("cat review.yaml").await?;
        let code = self.run("kubectl --context developer create -f review.yaml").await?;
        ensure!(code != 0, "the developer approved the own request");
        self.shell("kubectl --context approver create -f review.yaml").await?;
        self.shell("kubectl wait jitaccessrequest/disk-full --for=condition=Active --timeout=30s").await?;
        self.shell("kubectl get jitaccessrequests").await?;
        self.shell(
            "kubectl get jitreq disk-full -o jsonpath='{range .status.connections[*]}connect to {.address} port {.port}{\"\\n\"}{end}'",
        )
        .await?;

        self.shell("kubectl get jitaccessreviews").await?;

        self.chapter("The gate is open for that address, and for no other.");
        self.probe(REQUESTER, address, true).await?;
        self.probe(ELSEWHERE, address, false).await?;

        self.chapter("At its deadline the rule is deleted and read back as gone.");
        self.shell("kubectl wait jitaccessrequest/disk-full --for=condition=Succeeded --timeout=60s").await?;
        self.shell("kubectl get jitaccessrequests").await?;
        self.shell(
            "kubectl get jitreq disk-full -o jsonpath='expired {.status.expiresAt}, closed {.status.closedAt}{\"\\n\"}{range .status.rules[*]}{.name} {.state}, observed at {.observedAt}{\"\\n\"}{end}'",
        )
        .await?;
        self.probe(REQUESTER, address, false).await?;
        self.probe(ELSEWHERE, address, false).await?;
        self.shell("kubectl get events --sort-by=.metadata.creationTimestamp").await?;
        Ok(())
    }

    fn chapter(&self, line: &str) {
        self.narrator.print("");
        self.narrator.say(line);
    }

    fn file(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.folder.join(name), text)?)
    }

    async fn probe(&self, source: &str, destination: &str, passes: bool) -> anyhow::Result<()> {
        let code = self.run(&format!("playground probe {source} {destination} 22")).await?;
        let expected = if passes { 0 } else { 3 };
        let should = if passes { "should pass" } else { "should be blocked" };
        ensure!(code == expected, "a packet from {source} to {destination}:22 {should}");
        Ok(())
    }

    /// Runs a command that must succeed.
    async fn shell(&self, line: &str) -> anyhow::Result<()> {
        let code = self.run(line).await?;
        ensure!(code == 0, "`{line}` failed with {code}");
        Ok(())
    }

    /// Shows a command, runs it, and shows what it answers; its exit code.
    async fn run(&self, line: &str) -> anyhow::Result<i32> {
        self.narrator.print(&format!("$ {line}"));
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = vec![self.environment.commands.clone()];
        folders.extend(std::env::split_paths(&path));
        let output = Command::new("/bin/sh")
            .args(["-c", line])
            .current_dir(&self.folder)
            .envs(self.environment.variables.iter().map(|(name, value)| (*name, value.as_str())))
            .env("PATH", std::env::join_paths(folders)?)
            .env("HOME", self.folder.join("home"))
            .kill_on_drop(true)
            .output()
            .await?;
        for text in [&output.stdout, &output.stderr] {
            for line in String::from_utf8_lossy(text).lines() {
                self.narrator.print(&format!("  {line}"));
            }
        }
        Ok(output.status.code().unwrap_or(-1))
    }
}

/// A sample as it is shown: its comments speak to readers of the file.
fn without_comments(manifest: &str) -> String {
    manifest
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn tail(log: &Path) -> String {
    portcullis_harness::process::tail(log)
}
