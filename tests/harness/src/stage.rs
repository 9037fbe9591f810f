//! Everything together: control plane, what `deploy/` ships, simulator, world and controller.

use std::path::PathBuf;

use anyhow::Context;

use crate::control_plane::{ControlPlane, Options};
use crate::controller::{Controller, Setup};
use crate::install;
use crate::lending::{Lent, lend};
use crate::process::Lifetime;
use crate::simulator::{Simulator, SimulatorOptions};
use crate::world::World;

/// The subscription that the samples in `deploy/samples` name.
const SAMPLE_SUBSCRIPTION: &str = "00000000-0000-0000-0000-000000000001";

/// What to start.
#[derive(Debug, Clone)]
pub struct StageOptions {
    /// Where everything goes; left out: temporary folders.
    pub folder: Option<PathBuf>,
    /// Does it all end with this process?
    pub lifetime: Lifetime,
    /// More arguments for `azure-simulator`.
    pub simulator_arguments: Vec<String>,
}

impl Default for StageOptions {
    fn default() -> Self {
        Self { folder: None, lifetime: Lifetime::Leashed, simulator_arguments: Vec::new() }
    }
}

/// A running stage without its actor: the controller is started by [`Stage::start_controller`].
#[derive(Debug)]
pub struct Stage {
    /// The API server and its users.
    pub plane: Lent,
    /// The cloud.
    pub simulator: Simulator,
    /// The machines in it.
    pub world: World,
}

impl Stage {
    /// Starts control plane and simulator, applies what `deploy/` ships, and makes the sample world and namespace.
    /// `say` hears of each step when it begins.
    ///
    /// # Errors
    /// When a program is not built or does not come up, or something is refused.
    pub async fn start(options: StageOptions, say: impl Fn(&str)) -> anyhow::Result<Self> {
        say("starting etcd, kube-apiserver and kube-controller-manager, and the Azure simulator");
        let (plane, (simulator, world)) =
            tokio::try_join!(control_plane(&options, &say), sample_world(&options))?;
        Ok(Self { plane, simulator, world })
    }

    /// Starts the controller as the service account that `deploy/` ships.
    ///
    /// # Errors
    /// When it is not built or does not become ready.
    pub async fn start_controller(&self, lifetime: Lifetime) -> anyhow::Result<Controller> {
        let setup = Setup { lifetime, ..self.setup().await? };
        Controller::start(setup).await
    }

    /// What [`Stage::start_controller`] starts, to be changed first.
    ///
    /// # Errors
    /// When the service account is missing.
    pub async fn setup(&self) -> anyhow::Result<Setup> {
        Setup::new(&self.plane, &self.simulator).await
    }

    /// A manifest of `deploy/samples`, which name the simulator's subscription.
    ///
    /// # Errors
    /// When there is no such sample.
    pub fn sample(name: &str) -> anyhow::Result<String> {
        let path = crate::checkout().join("deploy/samples").join(name);
        std::fs::read_to_string(&path).with_context(|| format!("failed to read {}", path.display()))
    }
}

/// One that has been used before, unless it is to stay when this process ends.
async fn control_plane(options: &StageOptions, say: impl Fn(&str)) -> anyhow::Result<Lent> {
    if options.folder.is_none() && options.lifetime == Lifetime::Leashed {
        return lend().await;
    }
    let plane = ControlPlane::start(Options {
        controller_manager: true,
        folder: options.folder.as_ref().map(|folder| folder.join("control-plane")),
        lifetime: options.lifetime.clone(),
        ..Options::default()
    })
    .await?;
    say("applying deploy/without-controller and the role bindings of deploy/samples");
    install::install(&plane).await?;
    install::grant_access(&plane, install::NAMESPACE).await?;
    Ok(Lent::own(plane))
}

async fn sample_world(options: &StageOptions) -> anyhow::Result<(Simulator, World)> {
    let subscription = ["--subscription".to_owned(), SAMPLE_SUBSCRIPTION.to_owned()];
    let simulator = Simulator::start(SimulatorOptions {
        folder: options.folder.as_ref().map(|folder| folder.join("simulator")),
        lifetime: options.lifetime.clone(),
        arguments: subscription.into_iter().chain(options.simulator_arguments.iter().cloned()).collect(),
    })
    .await?;
    let world = World::create(&simulator).await?;
    Ok((simulator, world))
}
