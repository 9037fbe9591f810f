//! Temporary folders that do not stay behind.
//!
//! A folder is removed when its owner drops it. A test that is killed, and one that shares a control plane with others
//! until its process ends, drop nothing: so each folder says whose it is, and whoever makes the next one removes those
//! whose owner is gone.

use std::path::{Path, PathBuf};

use crate::process::Record;

const PREFIX: &str = "portcullis-";
const OWNER: &str = "owner.json";

/// A temporary folder, or one that the caller has chosen.
#[derive(Debug)]
pub struct Scratch {
    folder: PathBuf,
    _temporary: Option<tempfile::TempDir>,
}

impl Scratch {
    /// The folder `chosen`, which stays; left out: a temporary one, which goes when this is dropped.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn new(chosen: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(chosen) = chosen {
            std::fs::create_dir_all(chosen)?;
            return Ok(Self { folder: std::path::absolute(chosen)?, _temporary: None });
        }
        remove_abandoned(&std::env::temp_dir());
        let temporary = tempfile::Builder::new().prefix(PREFIX).tempdir()?;
        let owner = Record::of("owner", i32::try_from(std::process::id())?)?;
        std::fs::write(temporary.path().join(OWNER), serde_json::to_string(&owner)?)?;
        Ok(Self { folder: temporary.path().to_owned(), _temporary: Some(temporary) })
    }

    /// Its absolute path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.folder
    }
}

/// What cannot be read or removed is left: it may be somebody else's, or be going just now.
fn remove_abandoned(all: &Path) {
    for entry in std::fs::read_dir(all).into_iter().flatten().flatten() {
        if !entry.file_name().to_string_lossy().starts_with(PREFIX) {
            continue;
        }
        let folder = entry.path();
        let owner = std::fs::read_to_string(folder.join(OWNER)).ok();
        let owner = owner.and_then(|text| serde_json::from_str::<Record>(&text).ok());
        if owner.is_some_and(|owner| !owner.is_running()) {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_abandoned_folder_is_removed_and_an_owned_one_stays() -> anyhow::Result<()> {
        let all = tempfile::tempdir()?;
        let own = Record::of("owner", i32::try_from(std::process::id())?)?;
        // The same process id, started at another time: another process.
        let gone = Record { started: "1".to_owned(), ..own.clone() };
        for (name, owner) in [
            ("portcullis-live", Some(&own)),
            ("portcullis-dead", Some(&gone)),
            ("portcullis-unknown", None),
            ("other-dead", Some(&gone)),
        ] {
            std::fs::create_dir(all.path().join(name))?;
            if let Some(owner) = owner {
                std::fs::write(all.path().join(name).join(OWNER), serde_json::to_string(owner)?)?;
            }
        }
        remove_abandoned(all.path());
        let mut left: Vec<_> =
            std::fs::read_dir(all.path())?.flatten().map(|entry| entry.file_name()).collect();
        left.sort();
        assert_eq!(left, ["other-dead", "portcullis-live", "portcullis-unknown"]);
        Ok(())
    }
}
