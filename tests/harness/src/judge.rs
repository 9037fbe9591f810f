//! What GitOps tools would say of an object: Flux's own library, and Argo CD's health scripts in the Lua that Argo CD
//! runs them with. Both are Go, so a small program of `tests/gitops/` is built once into the cache and asked.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, bail, ensure};
use serde::Deserialize;
use serde_json::Value;

use crate::assets::{OLDEST_GO, cache, digest, go_version};

/// What a tool says of an object.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Judgement {
    /// In one word: `Current`, `InProgress`, `Healthy`, `Degraded`…
    pub status: String,
    /// In a sentence; may be empty.
    #[serde(default)]
    pub message: String,
}

/// The program that judges.
#[derive(Debug, Clone)]
pub struct Judge {
    program: PathBuf,
}

impl Judge {
    /// Finds the program, or builds it, which takes half a minute the first time. Several processes may ask at once.
    ///
    /// # Errors
    /// When Go is missing or too old, or the build fails.
    pub fn find_or_build() -> anyhow::Result<Self> {
        static FOUND: OnceLock<Result<PathBuf, String>> = OnceLock::new();
        let found = FOUND.get_or_init(|| find_or_build().map_err(|error| format!("{error:#}")));
        match found {
            Ok(program) => Ok(Self { program: program.clone() }),
            Err(error) => bail!("{error}"),
        }
    }

    /// What Flux, `kubectl wait` for kstatus and their kin say of each object.
    ///
    /// # Errors
    /// When the library takes an object for malformed.
    pub fn kstatus(&self, objects: &[Value]) -> anyhow::Result<Vec<Judgement>> {
        self.ask(&["kstatus".as_ref()], objects)
    }

    /// What Argo CD says of each object by the scripts `KIND/health.lua` in a folder.
    ///
    /// # Errors
    /// When there is no script for a kind, or it fails, runs too long, or answers with what Argo CD does not know.
    pub fn health(&self, scripts: &Path, objects: &[Value]) -> anyhow::Result<Vec<Judgement>> {
        self.ask(&["health".as_ref(), scripts.as_os_str()], objects)
    }

    fn ask(&self, arguments: &[&std::ffi::OsStr], objects: &[Value]) -> anyhow::Result<Vec<Judgement>> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("failed to start {}", self.program.display()))?;
        let input: String = objects.iter().map(|object| format!("{object}\n")).collect();
        let mut pipe = child.stdin.take().context("no standard input")?;
        // It answers each object at once: reading has to go on while writing does.
        let writer = std::thread::spawn(move || pipe.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
        let written = writer.join();
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim_end());
        written.map_err(|_| anyhow::anyhow!("the writer panicked"))??;
        let answers: Vec<Judgement> = String::from_utf8(output.stdout)?
            .lines()
            .map(serde_json::from_str)
            .collect::<Result<_, _>>()
            .context("the judge answered with something else than judgements")?;
        ensure!(answers.len() == objects.len(), "{} answers to {} objects", answers.len(), objects.len());
        Ok(answers)
    }
}

fn find_or_build() -> anyhow::Result<PathBuf> {
    let module = crate::checkout().join("tests/gitops");
    let home = cache()?
        .join(format!("judge-{}", digest(&["go.mod", "go.sum", "main.go"].map(|name| module.join(name)))?));
    let program = home.join("judge");
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&home).with_context(|| format!("failed to create {}", home.display()))?;
    let lock = File::create(home.join("lock"))?;
    lock.lock()?;
    // Who held the lock may have finished the work.
    if program.is_file() {
        return Ok(program);
    }
    let what = "the tests that ask Flux's and Argo CD's own code what they say of our objects";
    let found = go_version(&module).with_context(|| format!("Go is needed for {what}"))?;
    ensure!(
        found >= OLDEST_GO,
        "Go {}.{} is too old for {what}: {}.{} or later",
        found.0,
        found.1,
        OLDEST_GO.0,
        OLDEST_GO.1
    );
    // A half-written program must never look like a finished one: built aside, then renamed.
    let aside = tempfile::Builder::new().prefix("building-").tempdir_in(&home)?;
    let built = Command::new("go")
        .current_dir(&module)
        .env("CGO_ENABLED", "0")
        .args(["build", "-trimpath", "-ldflags", "-s -w", "-o"])
        .arg(aside.path().join("judge"))
        .arg(".")
        .output()
        .context("failed to run go")?;
    if !built.status.success() {
        bail!("go build failed ({})\n{}", built.status, String::from_utf8_lossy(&built.stderr).trim_end());
    }
    fs::rename(aside.path().join("judge"), &program)
        .with_context(|| format!("failed to move the program to {}", program.display()))?;
    Ok(program)
}
