//! Where etcd, kube-apiserver, kube-controller-manager and kubectl come from.
//!
//! `KUBEBUILDER_ASSETS` wins (the envtest convention). Else they are built once from the Go module in
//! `tests/controlplane/` into a cache outside the checkout, named after the versions that the module pins.

use std::ffi::OsString;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, bail, ensure};

/// The programs without which there is no control plane.
const REQUIRED: [&str; 3] = ["etcd", "kube-apiserver", "kubectl"];
/// The oldest Go that the published modules compile with.
pub(crate) const OLDEST_GO: (u32, u32) = (1, 26);

/// The folder with the control plane's programs.
#[derive(Debug, Clone)]
pub struct Assets {
    folder: PathBuf,
}

impl Assets {
    /// Finds the programs, or builds them; `say` hears what is being done and how long it takes. Several processes may
    /// ask at once: one builds, the others wait.
    ///
    /// # Errors
    /// When `KUBEBUILDER_ASSETS` lacks a program, Go is missing or too old, or the build fails.
    pub fn find_or_build(say: impl Fn(&str)) -> anyhow::Result<Self> {
        if let Some(folder) = std::env::var_os("KUBEBUILDER_ASSETS").filter(|value| !value.is_empty()) {
            let folder = PathBuf::from(folder);
            for name in REQUIRED {
                ensure!(
                    folder.join(name).is_file(),
                    "KUBEBUILDER_ASSETS is {}, which has no {name}: point it at a folder of setup-envtest, or unset it \
                     to have the programs built",
                    folder.display()
                );
            }
            return Ok(Self { folder });
        }
        let module = crate::checkout().join("tests/controlplane");
        let source = Source::read(&module)?;
        let home = cache()?.join(format!("controlplane-{}-{}", source.version, source.digest));
        let folder = once(&home, &say, |folder| build(&module, &source, &home, folder, &say))?;
        Ok(Self { folder })
    }

    /// The folder, in envtest's layout.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The path of one program.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Can namespaces be deleted and roles aggregated? Folders of setup-envtest have no controller manager.
    #[must_use]
    pub fn has_controller_manager(&self) -> bool {
        self.path("kube-controller-manager").is_file()
    }
}

/// The folder for what is built once a machine: `PORTCULLIS_CACHE`, else `portcullis` in the user's cache folder.
pub(crate) fn cache() -> anyhow::Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("PORTCULLIS_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|folder| folder.join("portcullis")))
        .or_else(|| set("HOME").map(|folder| folder.join(".cache/portcullis")))
        .context("none of PORTCULLIS_CACHE, XDG_CACHE_HOME and HOME is set: there is no place to build into")
}

/// The programs in `home`, which `build` makes where they are not there yet. Several processes may ask at once: one builds,
/// the others wait.
pub(crate) fn once(
    home: &Path,
    say: impl Fn(&str),
    build: impl FnOnce(&Path) -> anyhow::Result<()>,
) -> anyhow::Result<PathBuf> {
    let folder = home.join("bin");
    if !folder.is_dir() {
        fs::create_dir_all(home).with_context(|| format!("failed to create {}", home.display()))?;
        let lock = File::create(home.join("lock"))?;
        if lock.try_lock().is_err() {
            say("another run is building these programs: waiting for it (up to 10 minutes)");
            lock.lock()?;
        }
        // Who held the lock may have finished the work.
        if !folder.is_dir() {
            build(&folder)?;
        }
    }
    Ok(folder)
}

/// A short name for the contents of files.
pub(crate) fn digest(files: &[PathBuf]) -> anyhow::Result<String> {
    let mut hash = ring::digest::Context::new(&ring::digest::SHA256);
    for file in files {
        hash.update(&fs::read(file).with_context(|| format!("failed to read {}", file.display()))?);
    }
    Ok(hash.finish().as_ref().iter().take(6).map(|byte| format!("{byte:02x}")).collect())
}

/// What decides about the outcome of a build.
struct Source {
    version: String,
    digest: String,
}

impl Source {
    fn read(module: &Path) -> anyhow::Result<Self> {
        let mut files = vec![module.join("go.mod"), module.join("go.sum")];
        let commands = module.join("cmd");
        for entry in
            fs::read_dir(&commands).with_context(|| format!("failed to read {}", commands.display()))?
        {
            files.push(entry?.path().join("main.go"));
        }
        files.sort();
        let mut version = None;
        for file in &files {
            let text =
                fs::read_to_string(file).with_context(|| format!("failed to read {}", file.display()))?;
            version = version.or_else(|| {
                text.lines()
                    .find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes ").map(str::to_owned))
            });
        }
        let digest = digest(&files)?;
        Ok(Self { version: version.context("go.mod does not require k8s.io/kubernetes")?, digest })
    }
}

fn build(
    module: &Path,
    source: &Source,
    home: &Path,
    folder: &Path,
    say: impl Fn(&str),
) -> anyhow::Result<()> {
    say(&format!(
        "building etcd, kube-apiserver, kube-controller-manager and kubectl {} once, into {}: 5 to 10 minutes on 2 cores",
        source.version,
        folder.display()
    ));
    let mut numbers = source.version.trim_start_matches('v').split('.');
    let mut number = || numbers.next().unwrap_or_default();
    let of = "k8s.io/component-base/version";
    let flags = format!(
        "-s -w -X {of}.gitVersion={} -X {of}.gitMajor={} -X {of}.gitMinor={}",
        source.version,
        number(),
        number()
    );
    go_build(module, home, folder, &flags, "./cmd/...", say)
}

/// Builds commands of a Go module into `folder`, which is in `home` and not there yet.
pub(crate) fn go_build(
    module: &Path,
    home: &Path,
    folder: &Path,
    flags: &str,
    commands: &str,
    say: impl Fn(&str),
) -> anyhow::Result<()> {
    let go = go_version(module)?;
    ensure!(
        go >= OLDEST_GO,
        "Go {}.{} is too old: install Go {}.{} or later from https://go.dev/dl",
        go.0,
        go.1,
        OLDEST_GO.0,
        OLDEST_GO.1
    );
    let begun = Instant::now();
    // A half-finished folder must never look like a finished one: built aside, then renamed.
    let aside = tempfile::Builder::new().prefix("building-").tempdir_in(home)?;
    let mut output = OsString::from(aside.path());
    output.push("/");
    let built = Command::new("go")
        .current_dir(module)
        .env("CGO_ENABLED", "0")
        // A quarter less time: the compiler collects its garbage less often, and nothing is written for debuggers.
        .env("GOGC", "400")
        .args(["build", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", flags, "-o"])
        .arg(&output)
        .arg(commands)
        .output()
        .context("failed to run go")?;
    if !built.status.success() {
        bail!("go build failed ({})\n{}", built.status, String::from_utf8_lossy(&built.stderr).trim_end());
    }
    fs::rename(aside.keep(), folder)
        .with_context(|| format!("failed to move the programs to {}", folder.display()))?;
    say(&format!("built in {} s", begun.elapsed().as_secs()));
    Ok(())
}

/// Major and minor version of the Go that would build `module`: an older one may fetch a newer one by itself.
pub(crate) fn go_version(module: &Path) -> anyhow::Result<(u32, u32)> {
    let output = Command::new("go").arg("version").current_dir(module).output().map_err(|error| {
        anyhow::anyhow!(
            "cannot run go ({error}): install Go {}.{} or later from https://go.dev/dl, or set KUBEBUILDER_ASSETS to a \
             folder with etcd, kube-apiserver and kubectl",
            OLDEST_GO.0,
            OLDEST_GO.1
        )
    })?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.split_whitespace()
        .find_map(|word| {
            let mut numbers = word.strip_prefix("go")?.split('.').map(str::parse);
            Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
        })
        .with_context(|| {
            format!("go version failed: {text}{}", String::from_utf8_lossy(&output.stderr).trim_end())
        })
}
