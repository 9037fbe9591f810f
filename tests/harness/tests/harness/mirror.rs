//! The folder that `make` builds in is the checkout to the letter, and touched no more than that takes.

use std::path::Path;
use std::process::{Command, Output};

use anyhow::{Context, Result};
use tempfile::TempDir;

fn mirror(words: &[&str], checkout: &Path, folder: &Path) -> Result<Output> {
    let script = portcullis_harness::checkout().join("tests/mirror.py");
    Command::new("python3").arg(script).args(words).args([checkout, folder]).output().context("python3")
}

fn write(root: &Path, path: &str, text: &str) -> Result<()> {
    let path = root.join(path);
    std::fs::create_dir_all(path.parent().context("no folder")?)?;
    Ok(std::fs::write(path, text)?)
}

fn read(root: &Path, path: &str) -> Option<String> {
    std::fs::read_to_string(root.join(path)).ok()
}

fn checkout_and_folder() -> Result<(TempDir, TempDir)> {
    let (checkout, folder) = (TempDir::new()?, TempDir::new()?);
    write(checkout.path(), "src/lib.rs", "one")?;
    write(checkout.path(), "src/same.rs", "same")?;
    write(checkout.path(), ".git/config", "not to be built")?;
    assert!(mirror(&[], checkout.path(), folder.path())?.status.success());
    Ok((checkout, folder))
}

#[test]
fn what_differs_is_written_what_is_gone_is_removed_and_the_rest_keeps_its_age() -> Result<()> {
    let (checkout, folder) = checkout_and_folder()?;
    let (checkout, folder) = (checkout.path(), folder.path());
    assert_eq!(read(folder, "src/lib.rs").as_deref(), Some("one"));
    assert_eq!(read(folder, ".git/config"), None);
    let age = || std::fs::metadata(folder.join("src/same.rs"))?.modified();
    let before = age()?;
    // As old as can be, and different all the same; and a folder in place of a file, and the other way round.
    write(checkout, "src/lib.rs", "two")?;
    let old = std::fs::File::options().write(true).open(checkout.join("src/lib.rs"))?;
    old.set_modified(std::time::UNIX_EPOCH)?;
    write(folder, "src/gone/mod.rs", "of another clone")?;
    write(checkout, "src/gone", "a file now")?;
    assert!(mirror(&[], checkout, folder)?.status.success());
    assert_eq!(read(folder, "src/lib.rs").as_deref(), Some("two"));
    let written = std::fs::metadata(folder.join("src/lib.rs"))?.modified()?;
    assert!(written >= before, "it counts as new, whatever its age in the checkout");
    assert_eq!(read(folder, "src/gone").as_deref(), Some("a file now"));
    assert_eq!(age()?, before);
    Ok(())
}

#[test]
fn seeds_of_failures_come_back_and_what_another_clone_wrote_is_an_error() -> Result<()> {
    let (checkout, folder) = checkout_and_folder()?;
    let (checkout, folder) = (checkout.path(), folder.path());
    assert!(mirror(&["--back"], checkout, folder)?.status.success());
    write(folder, "tests/proptest-regressions/laws.txt", "cc 1")?;
    let back = mirror(&["--back"], checkout, folder)?;
    assert!(back.status.success(), "{back:?}");
    assert!(
        String::from_utf8_lossy(&back.stdout).contains("tests/proptest-regressions/laws.txt"),
        "{back:?}"
    );
    assert_eq!(read(checkout, "tests/proptest-regressions/laws.txt").as_deref(), Some("cc 1"));
    write(folder, "src/lib.rs", "of another clone")?;
    let back = mirror(&["--back"], checkout, folder)?;
    assert!(!back.status.success());
    assert!(String::from_utf8_lossy(&back.stderr).contains("src/lib.rs"), "{back:?}");
    Ok(())
}

#[test]
fn a_folder_in_the_checkout_is_refused() -> Result<()> {
    let checkout = TempDir::new()?;
    let refused = mirror(&[], checkout.path(), &checkout.path().join(".cache/sources"))?;
    assert!(!refused.status.success());
    assert!(String::from_utf8_lossy(&refused.stderr).contains("PORTCULLIS_CACHE"), "{refused:?}");
    Ok(())
}
