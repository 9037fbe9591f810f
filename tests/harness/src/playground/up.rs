//! `up` leaves everything running; `down` ends exactly that.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use portcullis_harness::process::Record;
use portcullis_harness::stage::StageOptions;
use portcullis_harness::{Lifetime, Stage, checkout};

use super::Narrator;
use super::environment::Environment;

/// A graceful stop of the controller takes up to 30 s; nothing else takes longer.
const STOP: Duration = Duration::from_secs(35);

/// Which playground.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Where it lives; left out: .playground in the checkout.
    #[arg(long)]
    folder: Option<PathBuf>,
}

impl Arguments {
    fn folder(&self) -> anyhow::Result<PathBuf> {
        let folder = self.folder.clone().unwrap_or_else(|| checkout().join(".playground"));
        Ok(std::path::absolute(folder)?)
    }
}

fn register(folder: &Path) -> PathBuf {
    folder.join("processes.jsonl")
}

pub(crate) async fn up(arguments: Arguments) -> anyhow::Result<ExitCode> {
    let narrator = Narrator::new();
    let folder = arguments.folder()?;
    let known = Record::read_all(&register(&folder))?;
    if !known.is_empty() && known.iter().all(Record::is_running) && folder.join("env").exists() {
        narrator.print("The playground is running already. `make down` ends it.");
        show(narrator, &folder)?;
        return Ok(ExitCode::SUCCESS);
    }
    end(narrator, &folder)?;
    std::fs::create_dir_all(&folder)?;
    let lifetime = Lifetime::Detached { register: register(&folder) };
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
    show(narrator, &folder)?;
    Ok(ExitCode::SUCCESS)
}

fn show(narrator: Narrator, folder: &Path) -> anyhow::Result<()> {
    let records = Record::read_all(&register(folder))?;
    let here = std::env::current_dir().unwrap_or_default();
    let folder = folder.strip_prefix(here).unwrap_or(folder).display();
    let processes: Vec<_> =
        records.iter().map(|record| format!("{} ({})", record.name, record.pid)).collect();
    narrator.print(&format!(
        "Running: {}\n\n\
         . {folder}/env      # KUBECONFIG, SIMULATOR_URL, AZURE_* and the commands kubectl, kubectl jit and playground\n\
         kubectl --context policy-admin apply -f deploy/samples/policy-one-machine.yaml\n\
         kubectl --context developer apply -f deploy/samples/request.yaml\n\
         kubectl get jit -o wide\n\
         kubectl jit describe disk-full --context developer\n\n\
         Contexts: admin (the default), developer, approver, argocd, developer2, approver2, policy-admin, viewer, \
         outsider.",
        processes.join(", ")
    ));
    Ok(())
}

pub(crate) fn down(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let narrator = Narrator::new();
    if !end(narrator, &arguments.folder()?)? {
        narrator.print("Nothing is running.");
    }
    Ok(ExitCode::SUCCESS)
}

/// Ends what a former `up` started, whether it got to its end or not. Says whether there was anything.
fn end(narrator: Narrator, folder: &Path) -> anyhow::Result<bool> {
    let register = register(folder);
    let records = Record::read_all(&register)?;
    let mut any = false;
    // The controller goes first, while there is still an API server to tell of its end.
    for record in records.iter().rev().filter(|record| record.is_running()) {
        record.stop(STOP);
        narrator.say(&format!("ended {} ({})", record.name, record.pid));
        any = true;
    }
    // Only what is known to be a playground is removed.
    if register.exists() || std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none()) {
        std::fs::remove_dir_all(folder)?;
    }
    Ok(any)
}
