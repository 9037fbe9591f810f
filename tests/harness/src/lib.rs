//! Real etcd, kube-apiserver, kube-controller-manager, Azure simulator and controller, for tests and the playground.
//!
//! The harness starts programs and talks to them as any user would: by kubectl, by kubeconfig, by HTTP. It shares no
//! code with the controller, so that a test cannot agree with a mistake of the program it tests.
//!
//! - [`assets`]: where the control plane's programs come from, built once when nobody provides them
//! - [`proxy`]: a way to a server that falls silent
//! - [`plugin`]: `kubectl jit`, as users install it
//! - [`process`]: children that end with the test, also when it is killed
//! - [`control_plane`]: etcd, API server and optionally controller manager, with several real users
//! - [`install`]: what `deploy/` ships, applied and waited for
//! - [`lending`]: control planes that tests use one after another
//! - [`judge`]: what Flux and Argo CD would say of an object
//! - [`scratch`]: temporary folders that do not stay behind
//! - [`simulator`]: the Azure simulator and its control door
//! - [`world`]: virtual machines to protect, made by ARM requests
//! - [`controller`]: the program under test
//! - [`stage`]: all of that together, as the playground and the end-to-end tests use it
//! - [`wait`]: polling with an answer worth reading when it fails

pub mod assets;
pub mod control_plane;
pub mod controller;
pub mod install;
pub mod judge;
pub mod lending;
pub mod plugin;
pub mod ports;
pub mod process;
pub mod proxy;
pub mod scratch;
pub mod simulator;
pub mod stage;
pub mod tools;
pub mod wait;
pub mod wall_clock;
pub mod world;

use std::path::PathBuf;

pub use control_plane::{ControlPlane, Kubectl, Options, User};
pub use controller::Controller;
pub use judge::Judge;
pub use lending::{Lent, lend};
pub use process::Lifetime;
pub use proxy::Proxy;
pub use simulator::Simulator;
pub use stage::Stage;
pub use tools::Tools;
pub use wait::eventually;
pub use world::World;

/// The root of the checkout: `PORTCULLIS_ROOT`, else two folders above this package.
///
/// Cargo's variable is read when the program runs, since clones may share one target folder.
#[must_use]
pub fn checkout() -> PathBuf {
    if let Some(root) = std::env::var_os("PORTCULLIS_ROOT") {
        return PathBuf::from(root);
    }
    let here = std::env::current_dir().unwrap_or_default();
    here.ancestors()
        .find(|folder| folder.join("tests/controlplane/go.mod").is_file())
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../.."), PathBuf::from)
}

/// A program of this workspace: the path in the environment variable `variable`, else the one beside the running
/// program (tests run in `deps/` below it).
///
/// # Errors
/// When it stands in neither place; the message says how to build it.
pub fn program(name: &str, variable: &str) -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os(variable) {
        let path = PathBuf::from(path);
        anyhow::ensure!(path.is_file(), "{variable} names {}, which is not a file", path.display());
        return Ok(path);
    }
    let own = std::env::current_exe()?;
    own.ancestors().skip(1).take(2).map(|folder| folder.join(name)).find(|path| path.is_file()).ok_or_else(|| {
        anyhow::anyhow!(
            "{name} is not built (looked beside {}): run `cargo build --workspace --bins`, or set {variable}",
            own.display()
        )
    })
}
