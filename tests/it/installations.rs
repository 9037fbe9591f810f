//! Two installations in one cluster, as tools make them that only render manifests: the admission policies of the one that was
//! applied last replace those of the first.

use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use portcullis::api::admission::{CONTROLLER_USER, text};
use portcullis_harness::{Controller, eventually};

use crate::ground::hurry;
use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";
const ANOTHER: &str = "203.0.113.8";
const SECOND_USER: &str = "system:serviceaccount:second:portcullis";

async fn logs(controller: &Controller, what: &str) {
    let said = eventually(what, Duration::from_secs(60), || async {
        let log = controller.log_text()?;
        anyhow::ensure!(log.contains(what), "its log ends: {}", &log[log.len().saturating_sub(2000)..]);
        Ok::<_, anyhow::Error>(())
    });
    said.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_installation_whose_admission_is_another_ones_says_so_opens_nothing_and_closes_what_is_open() {
    let play = Play::new().await;
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = Timestamp::now();
    play.request("before", "web-1", "web-1", 22, REQUESTER, "60s").await;
    play.reaches("jitreq/before", "/status/state", "Active").await;

    play.admin.apply(&text(SECOND_USER).unwrap()).await.unwrap();
    let why = format!(
        "another installation is in charge of this cluster: its admission policies let {SECOND_USER} write, and this one is \
         {CONTROLLER_USER}"
    );
    logs(&controller, &why).await;
    let readiness = controller.readiness().await.unwrap();
    assert!(readiness["ready"] == true && readiness["warnings"].to_string().contains(&why), "{readiness}");
    play.request("after", "web-1", "web-1", 22, ANOTHER, "60s").await;

    // A drain would close what the other one has open.
    let program = portcullis_harness::program("portcullis", "PORTCULLIS").unwrap();
    let kubeconfig = controller.setup().kubeconfig.clone();
    let drain = Command::new(program)
        .args(["drain", "--timeout", "60", "--kubeconfig"])
        .arg(kubeconfig)
        .env_remove("KUBECONFIG")
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&drain.stderr);
    let why =
        format!("let {SECOND_USER} write, and this is {CONTROLLER_USER}: nothing was suspended or closed");
    assert!(!drain.status.success() && said.contains(&why), "{said}");
    assert_ne!(play.get("jitpol/web-1").await.unwrap()["spec"]["suspend"], true);
    // What is open is not closed before its time, and what is locked stays so, whoever unlocks it.
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    let group = play.stage.world.nsg("web", "web-1");
    let deny = play.locks(&group).await.remove(0);
    play.stage.simulator.delete(&format!("{group}/securityRules/{deny}")).await.unwrap();
    let back = eventually("the lock is put back", Duration::from_secs(30), || async {
        anyhow::ensure!(play.locks(&group).await.contains(&deny), "{deny} is gone");
        Ok::<_, anyhow::Error>(())
    });
    back.await.unwrap();

    let closed = eventually("its grant ends", Duration::from_secs(90), || async {
        anyhow::ensure!(!play.passes(REQUESTER, "web-1", 22).await, "it is open");
        Ok::<_, anyhow::Error>(())
    });
    closed.await.unwrap();
    let open = play.exposed(REQUESTER, "web-1", 22, locked).await;
    let (from, to) = *open.last().unwrap();
    assert!((50..68).contains(&to.unwrap().duration_since(from).as_secs()), "{open:?}");
    assert_eq!(play.exposed(ANOTHER, "web-1", 22, locked).await, []);

    // Applied again, its own policies put it in charge.
    play.admin.apply(&text(CONTROLLER_USER).unwrap()).await.unwrap();
    controller.wait_admission(Duration::from_secs(60)).await.unwrap();
    play.reaches("jitreq/before", "/status/state", "Expired").await;
    // Nobody vouches for what came meanwhile.
    play.reaches("jitreq/after", "/status/state", "Void").await;
    assert_eq!(play.exposed(ANOTHER, "web-1", 22, locked).await, []);
}
