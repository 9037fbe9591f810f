//! `up` leaves everything running; `down` ends exactly that.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use portcullis_harness::process::Record;
use portcullis_harness::stage::StageOptions;
use portcullis_harness::{Lifetime, Stage, checkout};

use super::Narrator;
use super::environment::Environment;

/// A graceful stop of the controller takes up to 30 s; nothing else takes longer.
const STOP: Duration = Duration::from_secs(35);

fn folder() -> anyhow::Result<PathBuf> {
    Ok(std::path::absolute(checkout())?.join(".playground"))
}

fn register() -> anyhow::Result<PathBuf> {
    Ok(folder()?.join("processes.jsonl"))
}

pub(crate) async fn up() -> anyhow::Result<ExitCode> {
    let narrator = Narrator::new();
    let folder = folder()?;
    let known = Record::read_all(&register()?)?;
    if !known.is_empty() && known.iter().all(Record::is_running) && folder.join("env").exists() {
        narrator.print("The playground is running already. `make down` ends it.");
        show(narrator)?;
        return Ok(ExitCode::SUCCESS);
    }
    end(narrator)?;
    std::fs::create_dir_all(&folder)?;
    let lifetime = Lifetime::Detached { register: register()? };
    let options =
        StageOptions { folder: Some(folder.clone()), lifetime: lifetime.clone(), ..StageOptions::default() };
    let stage = Stage::start(options, |line| narrator.say(line)).await?;
    narrator.say("starting the controller as the service account portcullis-system/portcullis");
    let controller = stage.start_controller(lifetime).await?;
    Environment::write(&folder, &stage).await?;
    controller.release()?;
    stage.simulator.release()?;
    stage.plane.release()?;
    narrator.say("ready");
    show(narrator)?;
    Ok(ExitCode::SUCCESS)
}

fn show(narrator: Narrator) -> anyhow::Result<()> {
    let records = Record::read_all(&register()?)?;
    let processes: Vec<_> =
        records.iter().map(|record| format!("{} ({})", record.name, record.pid)).collect();
    narrator.print(&format!(
        "Running: {}\n\n\
         . .playground/env                                     # KUBECONFIG, SIMULATOR_URL, AZURE_* and kubectl\n\
         kubectl --context policy-admin apply -f .playground/samples/policy-one-machine.yaml\n\
         kubectl --context developer apply -f .playground/samples/request.yaml\n\
         kubectl get jit -o wide\n\n\
         Contexts: admin (the default), developer, approver, argocd, developer2, approver2, policy-admin, viewer, \
         outsider.",
        processes.join(", ")
    ));
    Ok(())
}

pub(crate) fn down() -> anyhow::Result<ExitCode> {
    let narrator = Narrator::new();
    if !end(narrator)? {
        narrator.print("Nothing is running.");
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends what a former `up` started, whether it got to its end or not. Says whether there was anything.
fn end(narrator: Narrator) -> anyhow::Result<bool> {
    let records = Record::read_all(&register()?)?;
    let mut any = false;
    // The controller goes first, while there is still an API server to tell of its end.
    for record in records.iter().rev().filter(|record| record.is_running()) {
        record.stop(STOP);
        narrator.say(&format!("ended {} ({})", record.name, record.pid));
        any = true;
    }
    let folder = folder()?;
    if folder.exists() {
        std::fs::remove_dir_all(&folder)?;
    }
    Ok(any)
}
