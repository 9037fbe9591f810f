//! The program as people start it: exit codes, messages, a start without a cloud, a graceful stop.

use std::process::{Command, Output};
use std::time::{Duration, Instant};

use portcullis_harness::controller::{Controller, Setup};
use portcullis_harness::{ControlPlane, Lifetime, Options, User};
use serde_json::json;

fn portcullis(arguments: &[&str]) -> Output {
    let program = portcullis_harness::program("portcullis", "PORTCULLIS").unwrap();
    Command::new(program).args(arguments).env_remove("KUBECONFIG").env_remove("RUST_LOG").output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn the_definitions_are_printed_or_written() {
    let printed = portcullis(&["crds"]);
    assert!(printed.status.success());
    let text = String::from_utf8(printed.stdout).unwrap();
    assert_eq!(text.matches("kind: CustomResourceDefinition").count(), 3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new");
    assert!(portcullis(&["crds", "--output-dir", &path.display().to_string()]).status.success());
    assert_eq!(std::fs::read_dir(path).unwrap().count(), 3);
}

#[test]
fn a_configuration_is_judged_without_starting_anything() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let check = |text: &str| {
        std::fs::write(&path, text).unwrap();
        portcullis(&["config", "check", "--config", &path.display().to_string()])
    };
    let good = check("clusterId: prod-weu-1\n");
    assert!(good.status.success(), "{}", stderr(&good));
    assert!(String::from_utf8_lossy(&good.stdout).contains("is right: cluster prod-weu-1"));
    let bad = check("clusterId: ''\nsweepInterval: 3 hours\n");
    assert_eq!(bad.status.code(), Some(1));
    let text = stderr(&bad);
    assert!(text.contains("clusterId: ") && text.contains("sweepInterval: \"3 hours\""), "{text}");
}

#[test]
fn what_stops_a_start_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("config.yaml");
    let config = path.display().to_string();
    std::fs::write(&path, "clusterId: test\n").unwrap();
    for (arguments, code, says) in [
        (vec!["run"], 2, "--config <FILE>"),
        (vec!["run", "--config", "/nowhere/config.yaml"], 1, "/nowhere/config.yaml"),
        (
            vec!["run", "--config", &config, "--kubeconfig", "/nowhere/kubeconfig"],
            1,
            "--kubeconfig /nowhere/kubeconfig",
        ),
        (vec!["run", "--config", &config, "--log-level", "portcullis=loud"], 1, "info,portcullis=debug"),
        (vec!["run", "--config", &config, "--metrics-address", ":8080"], 2, "--metrics-address"),
    ] {
        let output = portcullis(&arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}");
        assert!(stderr(&output).contains(says), "{arguments:?}: {}", stderr(&output));
    }
}

fn setup(plane: &ControlPlane) -> Setup {
    let [probes, metrics, nobody] = [0; 3].map(|_| {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.local_addr().unwrap().to_string()
    });
    let folder = plane.folder().join("controller");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("secret"), "secret").unwrap();
    Setup {
        config: json!({
            "clusterId": "test",
            // Nobody listens there.
            "cloud": {"name": "Custom", "resourceManager": format!("http://{nobody}"), "authority": format!("http://{nobody}")},
            "credentials": [{"name": "default", "clientSecret": {
                "tenantId": "11111111-2222-3333-4444-555555555555",
                "clientId": "11111111-2222-3333-4444-555555555555",
                "secretFile": folder.join("secret"),
            }}],
            "namespaces": [{"name": "default", "credential": "default",
                "scopes": ["/subscriptions/11111111-2222-3333-4444-555555555555"]}],
            "controllerUser": "admin",
            "healthAddress": probes,
            "metricsAddress": metrics,
        }),
        arguments: Vec::new(),
        environment: Vec::new(),
        kubeconfig: plane.kubeconfig(User::Admin).unwrap(),
        folder,
        stdout: None,
        stderr: None,
        lifetime: Lifetime::Leashed,
        probes,
        metrics,
        awaits_admission: false,
    }
}

#[tokio::test]
async fn a_cloud_that_does_not_answer_is_no_crash_and_a_stop_is_graceful() {
    let plane = ControlPlane::start(Options::default()).await.unwrap();
    let folder = portcullis_harness::checkout().join("crds").display().to_string();
    let kubectl = plane.kubectl(User::Admin).unwrap();
    kubectl.run(&["apply", "-k", &folder]).await.unwrap();
    // Without the namespace that the lease is kept in, it is not ready, and says why.
    let mut early = Controller::start_unready(setup(&plane)).unwrap();
    let why = early.wait_ready(Duration::from_secs(3)).await.unwrap_err();
    assert!(format!("{why:#}").contains("portcullis-system"), "{why:#}");
    early.kill();
    kubectl.run(&["create", "namespace", "portcullis-system"]).await.unwrap();
    let mut controller = Controller::start(setup(&plane)).await.unwrap();

    let policy = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy", "metadata": {"name": "web", "namespace": "default"},
        "spec": {"targets": [{"name": "web", "azureVirtualMachine": {
            "id": "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Compute/virtualMachines/web"}}]},
    });
    kubectl.apply(&policy.to_string()).await.unwrap();
    kubectl
        .run(&[
            "wait",
            "--for=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=False",
            "--timeout=60s",
            "jitpol/web",
        ])
        .await
        .unwrap();
    let metrics = controller.metrics().await.unwrap();
    for name in
        ["portcullis_build_info{", "controller_runtime_reconcile_total{controller=\"policy\"", "# EOF"]
    {
        assert!(metrics.contains(name), "no {name} in {metrics}");
    }
    // Neither is it told that it runs as somebody else.
    assert!(!controller.log_text().unwrap().contains("controllerUser"));
    assert!(controller.ended().unwrap().is_none());

    let begun = Instant::now();
    let status = controller.stop().await.unwrap();
    assert!(status.success(), "{status}: {}", controller.log_text().unwrap());
    assert!(begun.elapsed() < Duration::from_secs(30));

    // An address that is taken stops the next start, by name.
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let mut second = setup(&plane);
    second.config["metricsAddress"] = json!(taken.local_addr().unwrap().to_string());
    second.config["controllerUser"] = json!("somebody-else");
    let mut controller = Controller::start_unready(second).unwrap();
    let status = controller.wait_ended(Duration::from_secs(30)).await.unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(controller.log_text().unwrap().contains("metricsAddress"), "{}", controller.log_text().unwrap());
}
