//! Children that end with whoever started them, also when that one is killed.
//!
//! A leashed child is started through `sh`, which leaves a guard behind in the child's process group and then becomes
//! the child. The guard waits for the end of a pipe whose other end only the parent holds: when the parent is gone,
//! for whatever reason, the guard kills the group. While the guard lives, the group's number cannot be given to
//! another process, so nobody else's process is ever hit.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context;
use rustix::process::{Pid, Signal, kill_process, kill_process_group};
use serde::{Deserialize, Serialize};

/// How long a child lives.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifetime {
    /// It ends with the process that started it.
    Leashed,
    /// It outlives the process that started it, once [`Process::release`] is called on it.
    Detached {
        /// The file to which a [`Record`] is appended as soon as it runs, one JSON object a line: so that it is found
        /// again also when the process that started it is killed before it is done.
        register: PathBuf,
    },
}

/// `$0` is the shell's name in messages, `$@` the program and its arguments.
const LEASH: &str = r#"
exec 3<&0 </dev/null
( trap '' HUP INT TERM; read -r _ <&3; kill -KILL "-$$" ) >/dev/null 2>&1 &
exec 3<&-
exec "$@"
"#;

/// One running program, with its output in a file. Dropping it kills it.
#[derive(Debug)]
pub struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    ended: Option<ExitStatus>,
    released: bool,
}

/// Where a process writes; what is left out goes to its log.
#[derive(Debug, Default)]
pub struct Outputs {
    /// Standard output.
    pub stdout: Option<OwnedFd>,
    /// Standard error.
    pub stderr: Option<OwnedFd>,
}

/// What is written down about a process that lives on: enough to know it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What the process is, for people.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When it started, in the words of the operating system: an id alone may have passed to another process.
    pub started: String,
}

impl Process {
    /// Starts `command` in a process group of its own; standard output and error are appended to `log`.
    ///
    /// # Errors
    /// When the log cannot be opened or the program cannot be started.
    pub fn spawn(name: &str, command: &Command, log: &Path, lifetime: &Lifetime) -> anyhow::Result<Self> {
        Self::spawn_with(name, command, log, lifetime, Outputs::default())
    }

    /// As [`Process::spawn`], with standard output or error going elsewhere than to the log.
    ///
    /// # Errors
    /// As [`Process::spawn`].
    pub fn spawn_with(
        name: &str,
        command: &Command,
        log: &Path,
        lifetime: &Lifetime,
        outputs: Outputs,
    ) -> anyhow::Result<Self> {
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("failed to open the log {}", log.display()))?;
        let mut actual = match lifetime {
            Lifetime::Detached { .. } => {
                let mut direct = Command::new(command.get_program());
                direct.args(command.get_args()).stdin(Stdio::null());
                direct
            }
            Lifetime::Leashed => {
                let mut shell = Command::new("/bin/sh");
                shell.args(["-c", LEASH, "leash"]).arg(command.get_program()).args(command.get_args());
                shell.stdin(Stdio::piped());
                shell
            }
        };
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => actual.env(key, value),
                None => actual.env_remove(key),
            };
        }
        if let Some(folder) = command.get_current_dir() {
            actual.current_dir(folder);
        }
        match outputs.stdout {
            Some(stdout) => actual.stdout(stdout),
            None => actual.stdout(output.try_clone()?),
        };
        match outputs.stderr {
            Some(stderr) => actual.stderr(stderr),
            None => actual.stderr(output),
        };
        actual.process_group(0);
        let child = actual
            .spawn()
            .with_context(|| format!("failed to start {name} ({})", command.get_program().display()))?;
        let process =
            Self { name: name.to_owned(), child, log: log.to_owned(), ended: None, released: false };
        if let Lifetime::Detached { register } = lifetime {
            Record::of(name, i32::try_from(process.id())?)?.append(register)?;
        }
        Ok(process)
    }

    /// The process id; also the id of its process group.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The file with its standard output and error.
    #[must_use]
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its exit status, once it has ended.
    ///
    /// # Errors
    /// When the operating system does not answer.
    pub fn ended(&mut self) -> anyhow::Result<Option<ExitStatus>> {
        if self.ended.is_none() {
            self.ended = self.child.try_wait()?;
            if self.ended.is_some() {
                // The guard is still in the group, and nothing else should be.
                self.kill_group();
            }
        }
        Ok(self.ended)
    }

    /// Kills it at once (SIGKILL) and waits until it is gone.
    pub fn kill(&mut self) {
        if self.ended.is_none() {
            self.kill_group();
            self.ended = self.child.wait().ok();
        }
    }

    /// Asks it to stop (SIGTERM) and waits.
    ///
    /// # Errors
    /// When it is still running after `patience`; it is killed then.
    pub async fn stop(&mut self, patience: Duration) -> anyhow::Result<ExitStatus> {
        let asked = Instant::now();
        if let (None, Some(pid)) = (self.ended()?, self.pid()) {
            // It may have ended between the question and the signal: the wait below finds out.
            let _ = kill_process(pid, Signal::TERM);
        }
        loop {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            if asked.elapsed() > patience {
                self.kill();
                anyhow::bail!(
                    "{} did not stop within {patience:?} of SIGTERM and was killed\n{}",
                    self.name,
                    self.log_tail()
                );
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Lets a detached process live on.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn release(mut self) -> anyhow::Result<()> {
        if let Some(status) = self.ended()? {
            anyhow::bail!("{} has ended already ({status})\n{}", self.name, self.log_tail());
        }
        self.released = true;
        Ok(())
    }

    /// The last lines of its log, for messages.
    #[must_use]
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }

    fn pid(&self) -> Option<Pid> {
        Pid::from_raw(i32::try_from(self.child.id()).ok()?)
    }

    fn kill_group(&self) {
        if let Some(pid) = self.pid() {
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.released {
            self.kill();
        }
    }
}

impl Record {
    /// Notes the process `pid` under `name`.
    ///
    /// # Errors
    /// When there is no such process.
    pub fn of(name: &str, pid: i32) -> anyhow::Result<Self> {
        let started = started(pid).with_context(|| format!("{name} (process {pid}) is not running"))?;
        Ok(Self { name: name.to_owned(), pid, started })
    }

    /// Every record of a register, in the order of the starts; none when there is no such file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn read_all(register: &Path) -> anyhow::Result<Vec<Self>> {
        match std::fs::read_to_string(register) {
            // A line that was cut short belongs to a start that did not get far enough to be found again.
            Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error).with_context(|| format!("failed to read {}", register.display())),
        }
    }

    fn append(&self, register: &Path) -> anyhow::Result<()> {
        let mut line = serde_json::to_string(self)?;
        line.push('\n');
        let mut file = File::options().create(true).append(true).open(register)?;
        file.write_all(line.as_bytes())?;
        Ok(())
    }

    /// Is that very process still running? Another one with the same id does not count.
    #[must_use]
    pub fn is_running(&self) -> bool {
        started(self.pid).is_some_and(|started| started == self.started)
    }

    /// Asks it to stop (SIGTERM), kills it after `patience`, and returns when it is gone. Nothing happens when that
    /// very process is not running.
    pub fn stop(&self, patience: Duration) {
        let asked = Instant::now();
        let Some(pid) = Pid::from_raw(self.pid) else { return };
        let mut signal = Signal::TERM;
        while self.is_running() {
            let _ = kill_process(pid, signal);
            let until = Instant::now() + Duration::from_secs(1);
            while self.is_running() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(20));
            }
            if asked.elapsed() > patience {
                signal = Signal::KILL;
            }
        }
    }
}

/// When process `pid` started; none when there is none, or only its unreaped remains.
fn started(pid: i32) -> Option<String> {
    if Path::new("/proc/self/stat").exists() {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The command's name may hold blanks and parentheses: the fields begin after the last one.
        let (_, rest) = stat.rsplit_once(')')?;
        let fields: Vec<_> = rest.split_whitespace().collect();
        return match fields.first() {
            Some(&"Z" | &"X") | None => None,
            Some(_) => fields.get(19).map(|ticks| (*ticks).to_owned()),
        };
    }
    let output = Command::new("ps").args(["-o", "stat=,lstart=", "-p", &pid.to_string()]).output().ok()?;
    let line = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let (state, since) = line.split_once(' ')?;
    (!state.starts_with('Z')).then(|| since.trim().to_owned())
}

/// Sends a signal, such as `STOP`, to a process of ours.
///
/// # Errors
/// When it is gone.
pub fn signal(pid: u32, signal: &str) -> anyhow::Result<()> {
    let sent = Command::new("kill").arg(format!("-{signal}")).arg(pid.to_string()).status()?;
    anyhow::ensure!(sent.success(), "{signal} did not reach {pid}");
    Ok(())
}

/// The last 4 KiB of a file, headed by its path.
#[must_use]
pub fn tail(path: &Path) -> String {
    let read = || -> std::io::Result<String> {
        let mut file = File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(4096)))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    };
    match read() {
        Ok(text) => format!("--- end of {}\n{}", path.display(), text.trim_end()),
        Err(error) => format!("--- {} cannot be read: {error}", path.display()),
    }
}
