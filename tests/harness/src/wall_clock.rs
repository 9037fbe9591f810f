//! A wall clock that can be set, for a program under test: libfaketime, by its Python package.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Context;

use crate::control_plane::write_private;

/// The wall clock of the programs that are started with its environment; at first it is right. Their lengths of time are
/// measured by another one, which is always right, as on a machine whose clock is set.
#[derive(Debug, Clone)]
pub struct WallClock {
    library: PathBuf,
    file: PathBuf,
}

impl WallClock {
    /// `folder` is where it is kept how wrong it is. The first one on a machine takes minutes to set up.
    ///
    /// # Errors
    /// When the virtual environment of the tests' Python packages cannot be set up.
    pub fn new(folder: &Path) -> anyhow::Result<Self> {
        let tests = crate::checkout().join("tests");
        let python = stdout(Command::new(tests.join("venv.sh")).arg(tests.join("clients")))?;
        let find = "import libfaketime, pathlib; print(pathlib.Path(libfaketime.__file__).parent)";
        let package = stdout(Command::new(python).args(["-c", find]))?;
        let library = Path::new(&package).join("vendor/libfaketime/src/libfaketime.so.1");
        anyhow::ensure!(library.is_file(), "{} is missing", library.display());
        let clock = Self { library, file: folder.join("wall-clock") };
        clock.set(0)?;
        Ok(clock)
    }

    /// From now on it is ahead by so many seconds, or behind.
    ///
    /// # Errors
    /// When it cannot be written down.
    pub fn set(&self, ahead: i64) -> anyhow::Result<()> {
        write_private(&self.file, &format!("{ahead:+}s\n"))
    }

    /// What a program is started with to have it.
    #[must_use]
    pub fn environment(&self) -> Vec<(OsString, OsString)> {
        [
            ("LD_PRELOAD", self.library.as_os_str()),
            ("FAKETIME_TIMESTAMP_FILE", self.file.as_os_str()),
            ("FAKETIME_CACHE_DURATION", "1".as_ref()),
            ("FAKETIME_DONT_FAKE_MONOTONIC", "1".as_ref()),
        ]
        .map(|(name, value)| (OsString::from(name), value.to_owned()))
        .into()
    }
}

fn stdout(command: &mut Command) -> anyhow::Result<String> {
    let what = format!("{command:?}");
    let output = command.output().with_context(|| what.clone())?;
    anyhow::ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
