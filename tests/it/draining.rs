//! `portcullis drain` where the cloud holds up what it waits for.

use std::process::{Command, Output};

use portcullis_harness::{Controller, install};
use serde_json::json;

use crate::walk::Play;

fn drain(controller: &mut Controller, seconds: u32) -> (Output, String) {
    drain_in("portcullis-system", controller, seconds)
}

fn drain_in(namespace: &str, controller: &mut Controller, seconds: u32) -> (Output, String) {
    let program = portcullis_harness::program("portcullis", "PORTCULLIS").unwrap();
    let drained = Command::new(program)
        .args(["drain", "--namespace", namespace, "--timeout", &seconds.to_string(), "--kubeconfig"])
        .arg(&controller.setup().kubeconfig)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&drained.stderr).into_owned();
    (drained, said)
}

/// After it nobody is left to unlock.
#[tokio::test(flavor = "multi_thread")]
async fn a_policy_that_is_being_deleted_is_waited_for_until_its_ports_are_unlocked() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    let mut spec = play.one_machine("web-1");
    spec["deletionPolicy"] = json!("Unlock");
    play.policy("web-1", &spec).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let group = play.stage.world.nsg("web", "web-1");
    assert!(!play.locks(&group).await.is_empty());

    let keep = format!("{group}/providers/Microsoft.Authorization/locks/keep");
    play.stage.simulator.put(&keep, &json!({"properties": {"level": "CanNotDelete"}})).await.unwrap();
    play.admin.run(&["-n", install::NAMESPACE, "delete", "jitpol/web-1", "--wait=false"]).await.unwrap();
    let (drained, said) = drain_in("elsewhere", &mut controller, 10);
    assert!(
        !drained.status.success() && said.contains("is in portcullis-system, and not in elsewhere"),
        "{said}"
    );
    assert_ne!(play.get("jitpol/web-1").await.unwrap()["spec"]["suspend"], true);
    let (drained, said) = drain(&mut controller, 10);
    assert!(!drained.status.success(), "{said}");
    assert!(said.contains(&format!("policy {}/web-1", install::NAMESPACE)), "{said}");
    let finalizers = &play.get("jitpol/web-1").await.unwrap()["metadata"]["finalizers"];
    assert!(!finalizers.as_array().unwrap().is_empty());
    assert!(!play.locks(&group).await.is_empty());

    play.stage.simulator.delete(&keep).await.unwrap();
    // What locks there are is remembered for a minute.
    let (drained, said) = drain(&mut controller, 120);
    assert!(drained.status.success(), "{said}");
    assert!(play.get("jitpol/web-1").await.is_err(), "{said}");
    assert_eq!(play.locks(&group).await, Vec::<String>::new());
}
