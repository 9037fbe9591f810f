//! The program itself: it announces itself, begins with a world, serves TLS, and stops when told.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::client::answer;

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_azure-simulator"));
    command.stderr(Stdio::piped()).stdout(Stdio::piped());
    command
}

#[tokio::test]
async fn it_announces_itself_with_its_world_and_ends_on_sigterm() {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let folder = tempfile::tempdir().unwrap();
    let announced = folder.path().join("sim.json");
    let seed = folder.path().join("world.json");
    std::fs::write(&seed, r#"{"machines": [{"name": "vm", "nicNsg": "web"}]}"#).unwrap();
    let subscription = "11111111-2222-3333-4444-555555555555";
    let mut child = program()
        .arg("--announce")
        .arg(&announced)
        .arg("--seed")
        .arg(&seed)
        .args(["--subscription", subscription, "--client-secret", "s3cret", "--retry-after", "-1"])
        .args(["--name", "simulator.example", "--name", "192.0.2.1"])
        .spawn()
        .unwrap();
    let begun = Instant::now();
    while !announced.exists() {
        assert!(begun.elapsed() < Duration::from_secs(20) && child.try_wait().unwrap().is_none());
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let document: Value = serde_json::from_slice(&std::fs::read(&announced).unwrap()).unwrap();
    assert_eq!((&document["pid"], &document["subscriptionId"]), (&json!(child.id()), &json!(subscription)));
    assert_eq!(document["clientSecret"], "s3cret");
    let ca = std::fs::read(document["caFile"].as_str().unwrap()).unwrap();
    let http = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
        .build()
        .unwrap();
    let url = document["tlsUrl"].as_str().unwrap();
    let dump = answer(http.get(format!("{url}/_sim/world")).send().await.unwrap()).await.body;
    assert_eq!(dump["settled"], true);
    // And by the name that others know its machine by.
    let port = url.rsplit(':').next().unwrap();
    let there = std::net::SocketAddr::from(([127, 0, 0, 1], port.parse().unwrap()));
    let http = reqwest::Client::builder()
        .tls_certs_only([reqwest::Certificate::from_pem(&ca).unwrap()])
        .resolve("simulator.example", there)
        .build()
        .unwrap();
    let by_name =
        answer(http.get(format!("https://simulator.example:{port}/_sim/world")).send().await.unwrap()).await;
    assert_eq!(by_name.body["settled"], true);
    assert!(dump["goal"].to_string().contains(&format!("{subscription}/resourceGroups/world/")));

    let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
    assert!(told.success());
    let ended = tokio::task::spawn_blocking(move || child.wait()).await.unwrap().unwrap();
    assert_eq!(ended.code(), Some(0));
}

#[test]
fn bad_arguments_are_refused_in_words() {
    let folder = tempfile::tempdir().unwrap();
    let seed = folder.path().join("world.json");
    std::fs::write(&seed, r#"{"machines": [{"nam": "vm"}]}"#).unwrap();
    let seed = seed.to_str().unwrap().to_owned();
    for (arguments, words) in [
        (vec!["--latency", "slow"], "must be fast or realistic"),
        (vec!["--http", "localhost"], "--http"),
        (vec!["--seed", "/nowhere/at/all.json"], "--seed: cannot read"),
        (vec!["--seed", &seed], "unknown field `nam`"),
        (vec!["--http", "192.0.2.1:1"], "cannot listen on 192.0.2.1:1"),
    ] {
        let done = program().args(&arguments).output().unwrap();
        let said = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(!done.status.success() && said.contains(words), "{arguments:?}: {said}");
    }
}

#[tokio::test]
async fn an_instance_in_a_test_starts_at_once() {
    let start = || azure_simulator::start(azure_simulator::Options::default());
    let first = start().await.unwrap();
    let begun = Instant::now();
    let second = start().await.unwrap();
    assert!(begun.elapsed() < Duration::from_millis(50), "{:?}", begun.elapsed());
    assert_ne!(first.url, second.url);
    assert_ne!(first.subscription(), second.subscription());
    second.stop().await;
    let mut running = first;
    // The port of a stopped instance may be another's at once, since other tests start instances too: not five times.
    for _ in 0..5 {
        let address = running.url.trim_start_matches("http://").to_owned();
        running.stop().await;
        if std::net::TcpStream::connect(address).is_err() {
            return;
        }
        running = start().await.unwrap();
    }
    panic!("a stopped instance listens no more");
}
