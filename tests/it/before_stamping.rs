//! An API server without MutatingAdmissionPolicy, as Kubernetes 1.33 to 1.35 are: nobody is stamped, everybody is
//! checked. With what `deploy/before-1.36` ships.

use std::time::Duration;

use portcullis_harness::control_plane::Options;
use portcullis_harness::simulator::{Simulator, SimulatorOptions};
use portcullis_harness::world::World;
use portcullis_harness::{ControlPlane, Lent, Stage, User, eventually, install};
use serde_json::{Value, json};

use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";

/// As a person writes it.
const SPEC: &str = "\
apiVersion: jit.portcullis.io/v1alpha1
kind: JitAccessRequest
metadata: {name: mine, namespace: team-web}
spec:
  policyRef: {name: web-1}
  targets: [{name: web-1}]
  duration: 10m
  ports: [{port: 22, sources: [{cidr: ADDRESS/32}]}]";

async fn old_server() -> Play {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let kinds = ["mutatingadmissionpolicies", "mutatingadmissionpolicybindings"];
    let off: Vec<String> =
        kinds.iter().map(|kind| format!("admissionregistration.k8s.io/v1/{kind}=false")).collect();
    let arguments = vec![
        format!("--runtime-config={}", off.join(",")),
        "--disable-admission-plugins=MutatingAdmissionPolicy".to_owned(),
    ];
    let options = Options { controller_manager: true, apiserver_arguments: arguments, ..Options::default() };
    let plane = ControlPlane::start(options).await.unwrap();
    let folder = portcullis_harness::checkout().join("deploy/before-1.36");
    install::apply_folder(&plane, &folder).await.unwrap();
    install::grant_access(&plane, install::NAMESPACE).await.unwrap();
    let subscription = ["--subscription", "00000000-0000-0000-0000-000000000001"].map(str::to_owned);
    let options = SimulatorOptions { arguments: subscription.into(), ..SimulatorOptions::default() };
    let simulator = Simulator::start(options).await.unwrap();
    let world = World::create(&simulator).await.unwrap();
    let (admin, developer) = (plane.kubectl(User::Admin).unwrap(), plane.kubectl(User::Developer).unwrap());
    Play { stage: Stage { plane: Lent::own(plane), simulator, world }, admin, developer }
}

fn request(name: &str, requester: Option<&Value>) -> Value {
    let mut request = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
        "metadata": {"name": name, "namespace": install::NAMESPACE},
        "spec": {
            "policyRef": {"name": "web-1"}, "targets": [{"name": "web-1"}], "duration": "10m",
            "ports": [{"port": 22, "sources": [{"cidr": format!("{REQUESTER}/32")}]}],
        },
    });
    if let Some(requester) = requester {
        request["spec"]["requester"] = requester.clone();
    }
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_server_that_stamps_nobody_people_write_who_they_are_and_nobody_writes_another() {
    let play = old_server().await;
    let create = async |request: &Value| {
        play.developer.output(&["create", "-f", "-"], Some(&request.to_string())).await.unwrap()
    };
    let nameless = request("nameless", None);
    eventually("admission is in force", Duration::from_secs(60), async || {
        let arguments = ["create", "--dry-run=server", "-f", "-"];
        let answer = play.developer.output(&arguments, Some(&nameless.to_string())).await?;
        anyhow::ensure!(answer.code != 0 && answer.stderr.contains("spec.requester"), "{answer:?}");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    let controller = play.controller().await;
    let log = controller.log_text().unwrap();
    assert!(log.contains("this API server has no MutatingAdmissionPolicy"), "it is said at the start: {log}");
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;

    let answer = create(&nameless).await;
    let another = create(&request("borrowed", Some(&json!({"username": "approver"})))).await;
    assert!(another.code != 0 && another.stderr.contains("spec.requester must be yourself"), "{another:?}");

    // The refusal has the line to add, and it is right.
    let line = answer.stderr.split_once("Add this line to spec:").expect("the line is told").1.trim();
    let line = &line[..=line.find('}').unwrap()];
    let mine = format!("{}\n  {line}\n", SPEC.replace("ADDRESS", REQUESTER));
    let made = play.developer.output(&["create", "-f", "-"], Some(&mine)).await.unwrap();
    assert_eq!(made.code, 0, "{mine}: {made:?}");
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    assert!(play.passes(REQUESTER, "web-1", 22).await);
    // Nobody puts the finalizer back there, so taking it away is refused.
    let replaced = play.developer.output(&["replace", "-f", "-"], Some(&mine)).await.unwrap();
    assert!(replaced.code != 0 && replaced.stderr.contains("finalizer"), "{replaced:?}");
    play.developer.run(&["-n", install::NAMESPACE, "delete", "jitreq/mine", "--timeout=60s"]).await.unwrap();
    assert!(!play.passes(REQUESTER, "web-1", 22).await);
}
