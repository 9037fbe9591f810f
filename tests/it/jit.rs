//! `kubectl jit` as people type it: the real kubectl with the plugin on PATH, the real API server with real users, the
//! controller, and packets.

mod commands;
mod completion;
mod decisions;
mod terminal;

use portcullis_harness::control_plane::Output;
use portcullis_harness::{Kubectl, User, install};
use serde_json::{Value, json};

use crate::ground::{REQUESTER, Site, Vm, targets};

/// kubectl with the plugin, as somebody.
pub(crate) fn kubectl(site: &Site, user: User) -> Kubectl {
    site.ground.play.stage.plane.kubectl(user).unwrap().with_plugin().unwrap()
}

/// Runs `kubectl jit …` in the namespace of the samples.
pub(crate) async fn jit(site: &Site, user: User, words: &[&str]) -> Output {
    let mut all = vec!["jit"];
    all.extend_from_slice(words);
    all.extend_from_slice(&["-n", install::NAMESPACE]);
    kubectl(site, user).output(&all, None).await.unwrap()
}

/// Runs it, and it must end with a code.
pub(crate) async fn ends(site: &Site, user: User, words: &[&str], code: i32) -> Output {
    let output = jit(site, user, words).await;
    assert_eq!(output.code, code, "kubectl jit {}: {output:#?}", words.join(" "));
    output
}

/// Runs it and reads what it prints as JSON.
pub(crate) async fn json_of(site: &Site, user: User, words: &[&str]) -> Value {
    let output = ends(site, user, words, 0).await;
    serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {}", output.stdout))
}

/// A policy `web` over a machine, that asks for approvals.
pub(crate) async fn guarded(site: &Site, required: i32) -> Vm {
    let vm = site.usual().await;
    let spec = json!({
        "targets": targets(&[&vm]), "ports": [{"port": 22, "maxDuration": "3h"}],
        "approval": {"required": required},
    });
    site.policy("web", &spec).await;
    site.says("jitpol/web", "Ready", "True", "Configured", "").await;
    vm
}

/// Asks as the developer, and waits until there is a plan.
pub(crate) async fn asked(site: &Site, name: &str, more: &[&str]) -> String {
    let (policy, name) = (site.name("web"), site.name(name));
    let mut words = vec!["request", &policy, "--source", REQUESTER, "--for", "30m", "--name", &name];
    words.extend_from_slice(more);
    ends(site, User::Developer, &words, 0).await;
    let short = name.split_once('-').unwrap().1;
    site.until("has a plan", &format!("jitreq/{short}"), |found| found["status"]["planHash"].is_string())
        .await;
    name
}
