//! What every demo has: a stage of its own, commands that are shown with what they answer, and packets.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::ensure;
use portcullis_harness::scratch::Scratch;
use portcullis_harness::stage::StageOptions;
use portcullis_harness::{Lifetime, Stage};
use tokio::process::Command;

use super::Narrator;
use super::environment::Environment;

/// The requester's address; it lies in what the request asks for.
pub(super) const REQUESTER: &str = "203.0.113.7";
/// Somebody else's address.
pub(super) const ELSEWHERE: &str = "198.51.100.23";

/// A demo on its stage.
pub(super) struct Show {
    narrator: Narrator,
    folder: PathBuf,
    environment: Environment,
}

/// Starts everything, then plays. `prepare` adds to the world before the controller starts.
pub(super) async fn show<T>(
    prepare: impl AsyncFnOnce(&Stage) -> anyhow::Result<T>,
    play: impl AsyncFnOnce(&Show, T) -> anyhow::Result<()>,
) -> anyhow::Result<ExitCode> {
    let narrator = Narrator::new();
    let folder = Scratch::new(None)?;
    let options = StageOptions { folder: Some(folder.path().to_owned()), ..StageOptions::default() };
    let stage = Stage::start(options, |line| narrator.say(line)).await?;
    let prepared = prepare(&stage).await?;
    narrator.say("starting the controller as the service account portcullis-system/portcullis");
    let controller = stage.start_controller(Lifetime::Leashed).await?;
    let environment = Environment::write(folder.path(), &stage).await?;
    let set_up = narrator.seconds();
    let show = Show { narrator: Narrator::new(), folder: folder.path().to_owned(), environment };
    if let Err(error) = play(&show, prepared).await {
        // What a person would look at first; the failure is told whether this works or not.
        let _ = show.run("kubectl describe jitpolicies,jitaccessrequests").await;
        anyhow::bail!("the demo failed: {error:#}\n{}", tail(controller.log()));
    }
    narrator.print(&format!(
        "\nDone: {:.0} s for the set-up, {:.0} s for the job. `make up` leaves all of this running for you.",
        set_up,
        show.narrator.seconds()
    ));
    Ok(ExitCode::SUCCESS)
}

impl Show {
    pub(super) fn chapter(&self, line: &str) {
        self.narrator.print("");
        self.narrator.say(line);
    }

    pub(super) fn file(&self, name: &str, text: &str) -> anyhow::Result<()> {
        Ok(std::fs::write(self.folder.join(name), text)?)
    }

    pub(super) async fn probe(
        &self,
        source: &str,
        destination: &str,
        port: u16,
        passes: bool,
    ) -> anyhow::Result<()> {
        let code = self.run(&format!("playground probe {source} {destination} {port}")).await?;
        let expected = if passes { 0 } else { 3 };
        let should = if passes { "should pass" } else { "should be blocked" };
        ensure!(code == expected, "a packet from {source} to {destination}:{port} {should}");
        Ok(())
    }

    /// What a command answers.
    pub(super) async fn answer(&self, line: &str) -> anyhow::Result<String> {
        let output = self.command(line)?.output().await?;
        ensure!(output.status.success(), "`{line}` failed: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs a command that must succeed.
    pub(super) async fn shell(&self, line: &str) -> anyhow::Result<()> {
        let code = self.run(line).await?;
        ensure!(code == 0, "`{line}` failed with {code}");
        Ok(())
    }

    /// Shows a command, runs it, and shows what it answers; its exit code.
    pub(super) async fn run(&self, line: &str) -> anyhow::Result<i32> {
        self.narrator.print(&format!("$ {line}"));
        let output = self.command(line)?.output().await?;
        for text in [&output.stdout, &output.stderr] {
            for line in String::from_utf8_lossy(text).lines() {
                self.narrator.print(&format!("  {line}"));
            }
        }
        Ok(output.status.code().unwrap_or(-1))
    }

    fn command(&self, line: &str) -> anyhow::Result<Command> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let mut folders = vec![self.environment.commands.clone()];
        folders.extend(std::env::split_paths(&path));
        let mut command = Command::new("/bin/sh");
        command
            .args(["-c", line])
            .current_dir(&self.folder)
            .envs(self.environment.variables.iter().map(|(name, value)| (*name, value.as_str())))
            .env("PATH", std::env::join_paths(folders)?)
            .env("HOME", self.folder.join("home"))
            .kill_on_drop(true);
        Ok(command)
    }
}

/// A sample as it is shown: its comments speak to readers of the file.
pub(super) fn without_comments(manifest: &str) -> String {
    manifest
        .lines()
        .filter(|line| !line.trim_start().starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect()
}

fn tail(log: &Path) -> String {
    portcullis_harness::process::tail(log)
}
