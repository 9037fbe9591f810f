//! kubectl, the one built with the control plane, as one user.

use std::path::PathBuf;
use std::process::Stdio;

use anyhow::Context;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;

/// kubectl with a kubeconfig of its own: neither the environment nor the home folder of the caller play a part.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    home: PathBuf,
    namespace: Option<String>,
    plugins: Option<PathBuf>,
}

/// What a kubectl command answered.
#[derive(Debug, Clone)]
pub struct Output {
    /// The exit code; -1 when it was killed.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Kubectl {
    pub(super) const fn new(program: PathBuf, kubeconfig: PathBuf, home: PathBuf) -> Self {
        Self { program, kubeconfig, home, namespace: None, plugins: None }
    }

    /// The same, for a namespace: commands that name none are about it.
    #[must_use]
    pub fn in_namespace(mut self, namespace: &str) -> Self {
        self.namespace = Some(namespace.to_owned());
        self
    }

    /// The same, with `kubectl jit` on PATH. Flags go after the plugin's name.
    ///
    /// # Errors
    /// When the plugin is not built.
    pub fn with_plugin(mut self) -> anyhow::Result<Self> {
        let folder = self.home.with_file_name("plugins");
        crate::plugin::install(&folder)?;
        self.plugins = Some(folder);
        Ok(self)
    }

    /// Runs kubectl and returns its standard output.
    ///
    /// # Errors
    /// When it cannot be run or fails; the message is kubectl's own.
    pub async fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.succeed(arguments, None).await
    }

    /// Runs kubectl with `input` on its standard input, as for `apply -f -`.
    ///
    /// # Errors
    /// When it cannot be run or fails; the message is kubectl's own.
    pub async fn run_with_input(&self, arguments: &[&str], input: &str) -> anyhow::Result<String> {
        self.succeed(arguments, Some(input)).await
    }

    /// Applies a manifest.
    ///
    /// # Errors
    /// When the server refuses it.
    pub async fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.run_with_input(&["apply", "-f", "-"], manifest).await
    }

    /// Reads one thing as JSON: `get` with the arguments given and `-o json`.
    ///
    /// # Errors
    /// When it does not exist or may not be read.
    pub async fn json(&self, arguments: &[&str]) -> anyhow::Result<serde_json::Value> {
        let mut all = vec!["get", "-o", "json"];
        all.extend_from_slice(arguments);
        Ok(serde_json::from_str(&self.run(&all).await?)?)
    }

    /// Runs kubectl and returns what it answered, failed or not.
    ///
    /// # Errors
    /// When it cannot be run at all.
    pub async fn output(&self, arguments: &[&str], input: Option<&str>) -> anyhow::Result<Output> {
        let mut command = self.command(&[], arguments)?;
        command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
        let mut child =
            command.spawn().with_context(|| format!("failed to start {}", self.program.display()))?;
        if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
            // kubectl may refuse its arguments without reading: its message says more than a broken pipe.
            let _ = pipe.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await?;
        Ok(Output {
            code: output.status.code().unwrap_or(-1),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        })
    }

    /// The command, not yet started, its output to be read: for those who talk with it. A `wrapper` is a program that
    /// runs it, as one that gives it a terminal.
    ///
    /// # Errors
    /// When its home folder cannot be made.
    pub fn command(&self, wrapper: &[&str], arguments: &[&str]) -> anyhow::Result<Command> {
        std::fs::create_dir_all(&self.home)?;
        let mut command = match wrapper {
            [] => Command::new(&self.program),
            [wrapper, rest @ ..] => {
                let mut command = Command::new(wrapper);
                command.args(rest).arg(&self.program);
                command
            }
        };
        if let Some(namespace) = &self.namespace {
            command.args(["--namespace", namespace]);
        }
        if let Some(folder) = &self.plugins {
            command.env("PATH", crate::plugin::path_with(folder)?);
        }
        command
            .args(arguments)
            .env("KUBECONFIG", &self.kubeconfig)
            .env("HOME", &self.home)
            .env("KUBERC", "off")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        Ok(command)
    }

    async fn succeed(&self, arguments: &[&str], input: Option<&str>) -> anyhow::Result<String> {
        let output = self.output(arguments, input).await?;
        anyhow::ensure!(
            output.code == 0,
            "kubectl {} failed with {}: {}",
            arguments.join(" "),
            output.code,
            output.stderr.trim_end()
        );
        Ok(output.stdout)
    }
}
