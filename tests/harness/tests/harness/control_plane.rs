//! The control plane comes up with distinct users, several at once, and leaves nothing behind.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use portcullis_harness::process::Record;
use portcullis_harness::{ControlPlane, Options, User, eventually};
use serde_json::{Value, json};

/// Names the parent that is to be killed, when this program runs as one.
const PARENT: &str = "PORTCULLIS_HARNESS_PARENT";

fn records(ids: &[u32]) -> anyhow::Result<Vec<Record>> {
    ids.iter().map(|id| Record::of("part", i32::try_from(*id)?)).collect()
}

async fn all_gone(records: &[Record]) -> anyhow::Result<()> {
    eventually("the processes are gone", Duration::from_secs(10), || async {
        match records.iter().find(|record| record.is_running()) {
            Some(record) => Err(format!("{record:?} is running")),
            None => Ok(()),
        }
    })
    .await
}

#[tokio::test]
async fn users_are_distinct_and_a_dropped_control_plane_leaves_nothing() -> anyhow::Result<()> {
    let plane = ControlPlane::start(Options { controller_manager: true, ..Options::default() }).await?;
    let parts = records(&plane.process_ids())?;
    assert_eq!(parts.len(), 3, "etcd, API server, controller manager");
    let folder = plane.folder().to_owned();

    for user in User::ALL {
        let answer: Value =
            serde_json::from_str(&plane.kubectl(user)?.run(&["auth", "whoami", "-o", "json"]).await?)?;
        let info = &answer["status"]["userInfo"];
        assert_eq!(info["username"], user.name());
        assert_eq!(info["uid"], user.uid());
        for group in user.groups() {
            assert!(info["groups"].as_array().unwrap().contains(&json!(group)), "{user:?}: {info}");
        }
    }
    let refused = plane.kubectl(User::Outsider)?.output(&["get", "namespaces"], None).await?;
    assert_ne!(refused.code, 0);
    assert!(refused.stderr.contains("Forbidden") || refused.stderr.contains("forbidden"), "{refused:?}");

    // The controller manager works: a namespace goes away, and its service account works before that.
    let admin = plane.kubectl(User::Admin)?;
    admin.run(&["create", "namespace", "short-lived"]).await?;
    admin.run(&["create", "serviceaccount", "robot", "-n", "short-lived"]).await?;
    let robot = plane.kubectl_with(&plane.service_account_kubeconfig("short-lived", "robot").await?);
    let answer = robot.run(&["auth", "whoami", "-o", "json"]).await?;
    assert!(answer.contains("system:serviceaccount:short-lived:robot"), "{answer}");
    admin.run(&["delete", "namespace", "short-lived", "--timeout=60s"]).await?;

    drop(plane);
    all_gone(&parts).await?;
    assert!(!folder.exists(), "{} is left", folder.display());
    Ok(())
}

#[tokio::test]
async fn two_run_at_once_and_know_nothing_of_each_other() -> anyhow::Result<()> {
    let (left, right) =
        tokio::try_join!(ControlPlane::start(Options::default()), ControlPlane::start(Options::default()))?;
    assert_ne!(left.server(), right.server());
    left.kubectl(User::Admin)?.run(&["create", "namespace", "only-left"]).await?;
    let there = right.kubectl(User::Admin)?.output(&["get", "namespace", "only-left"], None).await?;
    assert!(there.stderr.contains("NotFound"), "{there:?}");
    let crossed = left.write_kubeconfig("crossed", None, &[("crossed", right.token(User::Admin))])?;
    let crossed = left.kubectl_with(&crossed).output(&["get", "namespaces"], None).await?;
    assert_ne!(crossed.code, 0, "the token of one opens the other");
    Ok(())
}

#[tokio::test]
async fn what_was_written_survives_a_crash_of_the_api_server() -> anyhow::Result<()> {
    let mut plane = ControlPlane::start(Options::default()).await?;
    let before = records(&plane.process_ids())?;
    plane.kubectl(User::Admin)?.run(&["create", "namespace", "kept"]).await?;
    plane.crash_and_restart().await?;
    all_gone(&before).await?;
    plane.kubectl(User::Admin)?.run(&["get", "namespace", "kept"]).await?;
    Ok(())
}

/// Not a test of its own: the parent that the next test kills.
#[tokio::test]
async fn parent_that_is_killed() -> anyhow::Result<()> {
    let Some(note) = std::env::var_os(PARENT) else { return Ok(()) };
    let plane = ControlPlane::start(Options { controller_manager: true, ..Options::default() }).await?;
    std::fs::write(note, serde_json::to_string(&records(&plane.process_ids())?)?)?;
    tokio::time::sleep(Duration::from_secs(600)).await;
    Ok(())
}

#[tokio::test]
async fn killing_the_parent_leaves_no_children() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let note = folder.path().join("note");
    let mut parent = Command::new(std::env::current_exe()?)
        .args(["--exact", "control_plane::parent_that_is_killed"])
        .env(PARENT, &note)
        .env("TMPDIR", folder.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let read = |note: &Path| -> anyhow::Result<Vec<Record>> {
        Ok(serde_json::from_str(&std::fs::read_to_string(note)?)?)
    };
    let parts =
        eventually("the parent has started", Duration::from_secs(120), || async { read(&note) }).await?;
    assert!(parts.len() == 3 && parts.iter().all(Record::is_running), "{parts:?}");
    parent.kill()?;
    parent.wait()?;
    all_gone(&parts).await
}
