//! The playground starts, is there, and ends, also when its start was cut short.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use portcullis_harness::eventually;
use portcullis_harness::process::Record;

fn playground(task: &str, folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_playground"));
    command.arg(task).arg("--folder").arg(folder);
    command
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

#[tokio::test]
async fn down_ends_what_a_killed_up_had_started() -> anyhow::Result<()> {
    let all = tempfile::tempdir()?;
    let folder = all.path().join("playground");
    let register = folder.join("processes.jsonl");
    let mut up =
        playground("up", &folder).stdout(Stdio::null()).stderr(Stdio::null()).stdin(Stdio::null()).spawn()?;
    let started = eventually("something is started", Duration::from_secs(120), || async {
        let records = Record::read_all(&register)?;
        anyhow::ensure!(records.len() >= 2, "{} records", records.len());
        Ok::<_, anyhow::Error>(records)
    })
    .await?;
    up.kill()?;
    up.wait()?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(started.iter().all(Record::is_running), "they were to outlive the command: {started:?}");

    let down = playground("down", &folder).output()?;
    assert!(down.status.success(), "{}", text(&down));
    for record in Record::read_all(&register)?.iter().chain(&started) {
        assert!(!record.is_running(), "{record:?}\n{}", text(&down));
    }
    assert!(!folder.exists());

    let again = playground("down", &folder).output()?;
    assert!(again.status.success() && text(&again).contains("Nothing is running"), "{}", text(&again));
    Ok(())
}

#[tokio::test]
async fn down_leaves_alone_what_up_did_not_start() -> anyhow::Result<()> {
    let all = tempfile::tempdir()?;
    let folder = all.path().join("playground");
    std::fs::create_dir(&folder)?;
    let mut bystander = Command::new("sleep").arg("60").spawn()?;
    let id = i32::try_from(bystander.id())?;
    // The id of a process of the playground has passed to another one since.
    let stale = Record { started: "1".to_owned(), ..Record::of("etcd", id)? };
    std::fs::write(folder.join("processes.jsonl"), format!("{}\n", serde_json::to_string(&stale)?))?;
    let down = playground("down", &folder).output()?;
    let alive = bystander.try_wait()?.is_none();
    bystander.kill()?;
    bystander.wait()?;
    assert!(alive && down.status.success(), "{}", text(&down));

    // Nor is a folder removed that is no playground.
    std::fs::create_dir_all(&folder)?;
    std::fs::write(folder.join("precious"), "data")?;
    assert!(playground("down", &folder).output()?.status.success());
    assert!(folder.join("precious").exists());
    Ok(())
}

#[tokio::test]
async fn the_demo_shows_the_main_job_within_90_seconds() -> anyhow::Result<()> {
    let output = tokio::process::Command::new(env!("CARGO_BIN_EXE_playground")).arg("demo").output().await?;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    // It judges each probe itself; here, that none was left out: two before, two locked, one unapproved, two
    // open, two after.
    assert_eq!(text.matches("PASSES").count(), 3, "{text}");
    assert_eq!(text.matches("BLOCKED").count(), 6, "{text}");
    assert!(text.contains("Rules that would be written:"), "kubectl jit is on PATH: {text}");
    assert!(text.contains("developer may not review"), "nobody approves their own request: {text}");
    assert!(text.contains("condition met") && text.contains("Expired"), "{text}");
    let job = text.lines().rev().find_map(|line| {
        let (_, rest) = line.strip_prefix("Done:")?.split_once("set-up, ")?;
        rest.split_whitespace().next()?.parse::<u32>().ok()
    });
    assert!(job.is_some_and(|seconds| seconds < 90), "{job:?}\n{text}");
    Ok(())
}

#[tokio::test]
async fn the_demo_of_a_firewall_shows_the_port_that_is_led_on() -> anyhow::Result<()> {
    let output =
        tokio::process::Command::new(env!("CARGO_BIN_EXE_playground")).arg("demo-firewall").output().await?;
    let text = text(&output);
    assert!(output.status.success(), "{text}");
    assert_eq!((text.matches("PASSES").count(), text.matches("BLOCKED").count()), (1, 3), "{text}");
    assert!(text.contains(", by hub-firewall") && text.contains("Ended"), "{text}");
    Ok(())
}
