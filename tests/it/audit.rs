//! The audit trail: what an auditor can tell from it alone, with the objects gone, held against the packets; and
//! what it never does: hold a secret, or hold up a close.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::{Controller, eventually, install};
use serde_json::{Value, json};

use crate::walk::{Play, moment};

const REQUESTER: &str = "203.0.113.7";
const ANOTHER: &str = "203.0.113.8";
const STRANGER: &str = "198.51.100.23";

/// A span of time, from its beginning to its end.
type Span = (Timestamp, Timestamp);

/// The records of a log in which they stand among other lines.
pub(crate) fn records(log: &str) -> Vec<Value> {
    let records = log.lines().filter(|line| line.starts_with(r#"{"audit":"portcullis""#));
    records.map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub(crate) fn of_kind<'a>(records: &'a [Value], kind: &str) -> Vec<&'a Value> {
    records.iter().filter(|record| record["kind"] == kind).collect()
}

fn time(value: &Value) -> Timestamp {
    value.as_str().unwrap_or_else(|| panic!("no time: {value}")).parse().unwrap()
}

/// Runs `portcullis audit verify` over a text; exit code and output.
fn verify(text: &str) -> (Option<i32>, String) {
    let program = portcullis_harness::program("portcullis", "PORTCULLIS").unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let output = Command::new(program).args(["audit", "verify"]).arg(file.path()).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

/// What the writes that were recorded let through: for each firewall, the spans in which an allow may have stood
/// there for a packet, and those in which it surely did.
#[derive(Default)]
struct Trail {
    may: BTreeMap<String, Vec<Span>>,
    did: BTreeMap<String, Vec<Span>>,
}

impl Trail {
    /// Reads it for one source, destination and port from intents and outcomes, and from nothing else.
    fn read(records: &[Value], source: &str, destination: &str, port: u16) -> Self {
        // Numbers are unique in a chain.
        let key = |record: &Value, part: &str| {
            (record["chain"].as_str().unwrap().to_owned(), record[part]["number"].as_u64().unwrap())
        };
        let ends: BTreeMap<(String, u64), &Value> = of_kind(records, "WriteEnded")
            .into_iter()
            .map(|record| (key(record, "outcome"), record))
            .collect();
        let mut trail = Self::default();
        let writes: Vec<&Value> = of_kind(records, "WriteIntended");
        for open in writes.iter().filter(|record| matches(record, source, destination, port)) {
            let write = &open["write"];
            let end = ends[&key(open, "write")];
            assert_eq!(end["outcome"]["result"], "Succeeded", "{end:#}");
            assert!(!end["outcome"]["requestId"].as_str().unwrap().is_empty());
            let close = writes
                .iter()
                .find(|record| {
                    record["write"]["operation"] == "Close"
                        && record["write"]["rule"] == write["rule"]
                        && record["write"]["firewall"] == write["firewall"]
                })
                .unwrap_or_else(|| panic!("never closed: {open:#}"));
            let closed = ends[&key(close, "write")];
            assert_eq!(closed["outcome"]["result"], "Succeeded", "{closed:#}");
            let firewall = write["firewall"].as_str().unwrap().to_lowercase();
            let may = (time(&open["time"]), time(&closed["time"]));
            let did = (time(&end["time"]), time(&close["time"]));
            trail.may.entry(firewall.clone()).or_default().push(may);
            trail.did.entry(firewall).or_default().push(did);
        }
        trail
    }
}

fn matches(record: &Value, source: &str, destination: &str, port: u16) -> bool {
    let write = &record["write"];
    let has = |field: &str, wanted: &str| {
        write["content"][field].as_array().is_some_and(|all| all.iter().any(|one| one == wanted))
    };
    write["operation"] == "Open"
        && has("sources", &format!("{source}/32"))
        && has("destinations", &format!("{destination}/32"))
        && has("ports", &port.to_string())
}

/// What passes every firewall of a way: packets have to get through each.
fn through(firewalls: &BTreeSet<String>, spans: &BTreeMap<String, Vec<Span>>) -> Vec<Span> {
    let mut passing = vec![(Timestamp::MIN, Timestamp::MAX)];
    for firewall in firewalls {
        let here = spans.get(firewall).cloned().unwrap_or_default();
        passing = passing
            .iter()
            .flat_map(|(from, to)| here.iter().map(move |(begin, end)| (*from.max(begin), *to.min(end))))
            .filter(|(from, to)| from < to)
            .collect();
    }
    passing.sort();
    passing
}

#[tokio::test(flavor = "multi_thread")]
async fn who_could_reach_what_and_when_is_told_by_the_records_alone() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = Timestamp::now();
    // One that runs to its deadline, one that is ended by its requester, one that is refused.
    play.request("one", "web-1", "web-1", 22, REQUESTER, "40s").await;
    play.request("two", "web-1", "web-1", 22, ANOTHER, "1h").await;
    play.request("three", "web-1", "web-1", 8080, STRANGER, "1h").await;
    let one = play.reaches("jitreq/one", "/status/state", "Active").await;
    play.reaches("jitreq/two", "/status/state", "Active").await;
    play.reaches("jitreq/three", "/status/state", "Denied").await;
    // A crash in between: another chain.
    controller.kill();
    controller.restart().await.unwrap();
    play.developer.run(&["-n", install::NAMESPACE, "delete", "jitreq", "two"]).await.unwrap();
    let expired = play.reaches("jitreq/one", "/status/settled", "Some(Bool(true))").await;
    let exposed = |source: &'static str| play.exposed(source, "web-1", 22, locked);
    let (first, second) = (exposed(REQUESTER).await, exposed(ANOTHER).await);
    // The objects are gone.
    play.admin.run(&["delete", "namespace", install::NAMESPACE, "--timeout=60s"]).await.unwrap();
    assert!(controller.stop().await.unwrap().success());

    let log = controller.log_text().unwrap();
    let (code, said) = verify(&log);
    assert_eq!(code, Some(0), "{said}");
    assert_eq!(said.matches(": whole;").count(), 2, "{said}");
    assert_eq!(said.matches("ended by the controller").count(), 1, "one was killed: {said}");
    let records = records(&log);

    // Who and why.
    let granted = of_kind(&records, "Granted");
    assert_eq!(granted.len(), 2);
    let of_one = granted.iter().find(|record| record["request"]["name"] == "one").unwrap();
    let (request, grant) = (&of_one["request"], &of_one["request"]["grant"]);
    assert_eq!(request["requester"]["username"], "developer");
    assert_eq!(request["uid"], one["metadata"]["uid"]);
    assert_eq!(
        request["asked"]["ports"][0],
        json!({"port": "22", "protocol": "TCP", "sources": ["203.0.113.7/32"]})
    );
    assert_eq!(grant["planHash"], one["status"]["planHash"]);
    assert_eq!(grant["policies"][0]["uid"], one["status"]["policies"][0]["uid"]);
    assert_eq!(grant["machines"][0]["vmId"], one["status"]["machines"][0]["vmId"]);
    assert_eq!(time(&grant["expiresAt"]), moment(&one, "/status/expiresAt"));
    let names = |rules: &Value| -> BTreeSet<String> {
        rules.as_array().unwrap().iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names(&grant["rules"]), names(&one["status"]["rules"]));
    let closed = of_kind(&records, "Closed");
    let ends = |name: &str| {
        closed.iter().find(|record| record["request"]["name"] == name).unwrap()["request"].clone()
    };
    assert_eq!((&ends("one")["to"], &ends("two")["to"]), (&json!("Expired"), &json!("Ended")));
    assert_eq!(time(&ends("one")["grant"]["closedAt"]), moment(&expired, "/status/closedAt"));
    let refused = of_kind(&records, "Refused");
    assert_eq!(refused.len(), 1);
    assert_eq!(
        (&refused[0]["request"]["name"], &refused[0]["request"]["reason"]),
        (&json!("three"), &json!("PortNotAllowed"))
    );
    // The second chain says by itself what was live when it began.
    assert_eq!(of_kind(&records, "Resumed").len(), 2);
    assert_eq!(of_kind(&records, "Requested").len(), 3);

    // What and when: the oracle's spans lie between what the records say may have been and what surely was.
    let machine = &play.stage.world.machine("web-1").unwrap().private_address;
    let firewalls: BTreeSet<String> = grant["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["firewall"].as_str().unwrap().to_lowercase())
        .collect();
    assert_eq!(firewalls.len(), 2);
    for (source, oracle) in [(REQUESTER, first), (ANOTHER, second)] {
        let trail = Trail::read(&records, source, machine, 22);
        let (may, did) = (through(&firewalls, &trail.may), through(&firewalls, &trail.did));
        assert_eq!((oracle.len(), may.len(), did.len()), (1, 1, 1), "{source}: {oracle:?} {may:?} {did:?}");
        let (from, to) = (oracle[0].0, oracle[0].1.expect("closed"));
        assert!(may[0].0 <= from && to <= may[0].1, "{source}: {oracle:?} is not within {may:?}");
        assert!(from <= did[0].0 && did[0].1 <= to, "{source}: {oracle:?} does not span {did:?}");
        let loose = may[0].1.duration_since(may[0].0) - did[0].1.duration_since(did[0].0);
        assert!(loose < SignedDuration::from_secs(8), "the records say little: {may:?} {did:?}");
    }
    for stranger in [STRANGER, "10.1.3.4"] {
        assert!(Trail::read(&records, stranger, machine, 22).may.is_empty());
    }

    // And never a secret: neither what signs in nor what it got for it.
    let secret = &play.stage.simulator.announcement().client_secret;
    let lines: String = log.lines().filter(|line| line.contains("portcullis")).collect();
    assert!(!secret.is_empty() && !lines.contains(secret.as_str()));
    for word in ["eyJ", "Bearer", "client_secret", "assertion"] {
        assert!(!serde_json::to_string(&records).unwrap().contains(word), "{word}");
    }
}

/// Fills a pipe until nobody can write to it, and keeps it full until `stop`.
fn fill(pipe: &std::io::PipeWriter, stop: &Arc<AtomicBool>) {
    let (mut pipe, stop) = (pipe.try_clone().unwrap(), Arc::clone(stop));
    let line = format!("{}\n", "#".repeat(511));
    std::thread::spawn(
        move || {
            while !stop.load(Ordering::SeqCst) && pipe.write_all(line.as_bytes()).is_ok() {}
        },
    );
    std::thread::sleep(Duration::from_millis(300));
}

/// Reads a pipe, but while `paused`.
fn drain(mut pipe: std::io::PipeReader, paused: &Arc<AtomicBool>) {
    let paused = Arc::clone(paused);
    std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        while let Ok(1..) = pipe.read(&mut bytes) {
            while paused.load(Ordering::SeqCst) {
                std::thread::sleep(Duration::from_millis(20));
            }
        }
    });
}

#[tokio::test(flavor = "multi_thread")]
async fn an_output_that_nobody_reads_stops_opens_and_never_a_close() {
    let play = Play::new().await;
    // A full disk under the container runtime, or a runtime that hangs, stops both outputs.
    let (mut reader, writer) = std::io::pipe().unwrap();
    let mut setup = play.stage.setup().await.unwrap();
    setup.stdout = Some(Arc::new(writer.try_clone().unwrap().into()));
    let (log, log_writer) = std::io::pipe().unwrap();
    setup.stderr = Some(Arc::new(log_writer.try_clone().unwrap().into()));
    setup.arguments.push("--log-level=debug".into());
    let paused = Arc::new(AtomicBool::new(false));
    drain(log, &paused);
    let mut controller = Controller::start(setup).await.unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "30s").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    let (granted, expires) = (moment(&request, "/status/grantedAt"), moment(&request, "/status/expiresAt"));

    let stop = Arc::new(AtomicBool::new(false));
    fill(&writer, &stop);
    paused.store(true, Ordering::SeqCst);
    fill(&log_writer, &stop);
    play.request("held", "web-1", "web-1", 22, ANOTHER, "5m").await;
    let held = eventually("the second says why it waits", Duration::from_secs(20), || async {
        let request = play.get("jitreq/held").await?;
        anyhow::ensure!(
            request["status"].to_string().contains("AuditUnavailable"),
            "{:#}",
            request["status"]
        );
        Ok::<_, anyhow::Error>(())
    });
    held.await.unwrap_or_else(|error| panic!("{error:#}"));
    // Locks are put right all the same.
    play.policy("win-1", &play.one_machine("win-1")).await;
    play.condition("jitpol/win-1", "Ready", "True").await;
    play.reaches("jitreq/mine", "/status/state", "Expired").await;
    let open = play.exposed(REQUESTER, "web-1", 22, granted).await;
    let closed = open[0].1.unwrap();
    let late = closed.duration_since(expires);
    assert!(late < SignedDuration::from_secs(6), "closed {late:#} late");
    assert_eq!(play.exposed(ANOTHER, "web-1", 22, granted).await, []);

    // Somebody reads again: what waited is there, and what was held back opens.
    stop.store(true, Ordering::SeqCst);
    paused.store(false, Ordering::SeqCst);
    let read = std::thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).map(|_| text)
    });
    play.reaches("jitreq/held", "/status/state", "Active").await;
    assert!(controller.stop().await.unwrap().success());
    // The reader comes to the end when every writer is gone.
    drop((controller, writer));
    let text = read.join().unwrap().unwrap();
    let (code, said) = verify(&text);
    assert_eq!(code, Some(0), "{said}");
    let records = records(&text);
    let of_held = |record: &&&Value| record["write"]["content"].to_string().contains(ANOTHER);
    let intents = of_kind(&records, "WriteIntended");
    assert!(intents.iter().filter(of_held).count() > 2, "each try is recorded");
    let given_up =
        of_kind(&records, "WriteEnded").into_iter().filter(|end| end["outcome"]["result"] == "NotSent");
    assert!(given_up.count() > 0);
}

/// At a stop that does not wait for a write that is under way, nobody knows how that write ends.
#[tokio::test(flavor = "multi_thread")]
async fn a_chain_has_no_end_where_the_stop_did_not_wait_for_a_write() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    play.reaches("jitreq/mine", "/status/state", "Active").await;
    let slow = json!({"operations": {"securityRules.delete": "50s"}});
    play.stage.simulator.control(reqwest::Method::POST, "latency", Some(&slow)).await.unwrap();
    let delete = ["-n", install::NAMESPACE, "delete", "jitreq", "mine", "--wait=false"];
    play.developer.run(&delete).await.unwrap();
    eventually("a close is under way", Duration::from_secs(20), || async {
        let log = controller.log_text()?;
        anyhow::ensure!(log.contains(r#""operation":"Close""#), "none");
        Ok::<_, anyhow::Error>(())
    })
    .await
    .unwrap();
    assert!(controller.stop().await.unwrap().success());
    let log = controller.log_text().unwrap();
    assert!(log.contains("stopping without waiting"), "else the test proves nothing");
    let (code, said) = verify(&log);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("without an end") && of_kind(&records(&log), "ChainEnded").is_empty(), "{said}");
}
