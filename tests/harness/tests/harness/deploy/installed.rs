//! `deploy/`, applied by kubectl on a real API server, and the program run as its manifests have it run.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};

use portcullis_harness::simulator::{Announcement, SimulatorOptions};
use portcullis_harness::{User, checkout, install};
use serde_json::json;

use crate::installation::Installation;

/// Where the overlay says that the simulator is.
const SIMULATOR: &str = "https://host.docker.internal:8443";

/// The overlay as somebody has it who has filled it in: with the address of this simulator, and nothing else. Its authority
/// is where the simulator writes it.
fn filled_in(folder: &Path, simulator: &Announcement) -> PathBuf {
    for part in ["deploy", "crds"] {
        let copied =
            std::process::Command::new("cp").arg("-r").arg(checkout().join(part)).arg(folder).status();
        assert!(copied.unwrap().success());
    }
    let overlay = folder.join("deploy/overlays/playground");
    let config = overlay.join("config.yaml");
    let text = std::fs::read_to_string(&config).unwrap();
    assert_eq!(text.matches(SIMULATOR).count(), 2, "{text}");
    std::fs::write(&config, text.replace(SIMULATOR, &simulator.tls_url)).unwrap();
    std::fs::copy(&simulator.ca_file, overlay.join("ca.pem")).unwrap();
    overlay
}

/// The simulator as the overlay's own words start it, on a free port.
fn simulator() -> SimulatorOptions {
    let overlay = checkout().join("deploy/overlays/playground/kustomization.yaml");
    let text = std::fs::read_to_string(overlay).unwrap();
    let words: Vec<&str> = text
        .lines()
        .skip_while(|line| !line.contains("azure-simulator --tls"))
        .take_while(|line| line.contains(" --"))
        .flat_map(|line| line.split_whitespace().filter(|word| !["#", "\\"].contains(word)))
        .collect();
    let taken = ["--name", "--tenant-id", "--client-id", "--client-secret", "--subscription"];
    let pairs = words.windows(2).filter(|pair| taken.contains(&pair[0])).flatten();
    let arguments: Vec<String> = pairs.map(|word| (*word).to_owned()).collect();
    assert_eq!(arguments.len(), 2 * taken.len(), "{arguments:?}");
    SimulatorOptions { arguments, ..SimulatorOptions::default() }
}

#[tokio::test]
async fn applied_by_kubectl_it_locks_opens_and_expires_and_is_drained_and_gone() {
    let (namespace, account) = install::CONTROLLER;
    let installed = Installation::nowhere(namespace, "portcullis", simulator()).await;
    let overlay = filled_in(installed.scratch.path(), installed.simulator.announcement());
    install::apply_folder(&installed.plane, &overlay).await.unwrap();
    install::grant_access(&installed.plane, install::NAMESPACE).await.unwrap();
    assert_eq!(installed.account().await, account);

    let mut controller = installed.controller().await;
    installed.lock(json!({"deletionPolicy": "Unlock"})).await;
    installed.open("short", "60s").await;
    // Applied again, as GitOps tools do every few minutes, it changes nothing that is open.
    install::apply_folder(&installed.plane, &overlay).await.unwrap();
    assert!(installed.passes("web-1").await);
    installed.expire("short").await;

    // A policy that goes takes its lock along, where it says so.
    let delete = ["delete", "jitpol/web-1", "jitreq/short", "-n", install::NAMESPACE, "--timeout=60s"];
    installed.admin.run(&delete).await.unwrap();
    assert!(installed.passes("web-1").await, "it is as it was before");
    let (_, refused) = installed.asked().await;
    assert_eq!(refused, Vec::<serde_json::Value>::new());

    // As docs/operations.md takes it away without Helm.
    let kubeconfig = installed.plane.service_account_kubeconfig(namespace, account).await.unwrap();
    installed.drain(&kubeconfig, &[]);
    assert!(controller.stop().await.unwrap().success());
    let overlay = overlay.display().to_string();
    installed.admin.run(&["delete", "-k", &overlay, "--timeout=60s"]).await.unwrap();
    let admin = installed.plane.kubectl(User::Admin).unwrap();
    let left = admin
        .run(&[
            "get",
            "crds,clusterroles,clusterrolebindings,validatingadmissionpolicies,mutatingadmissionpolicies",
            "-l",
            "app.kubernetes.io/part-of=portcullis",
            "-o",
            "name",
        ])
        .await
        .unwrap();
    assert_eq!(left.trim(), "");
}
