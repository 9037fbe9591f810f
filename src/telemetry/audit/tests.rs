//! Chains as they are written, read back, broken, and held up by whoever reads them.

use std::io::Write;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::event::Event;
use super::record::{Asked, Kind, Request, Started, Text, User, schema};
use super::verify::{Verdict, Verifier};
use super::{Audit, Progress};
use crate::clock::Clock;
use crate::telemetry::Metrics;

/// An output that can be stopped, can fail, and shows what it was given.
#[derive(Clone, Default)]
struct Output {
    text: Arc<Mutex<Vec<u8>>>,
    gate: Option<Arc<Mutex<Receiver<()>>>>,
    failures: Arc<Mutex<u32>>,
    torn: bool,
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Some(gate) = &self.gate {
            let _ = gate.lock().unwrap().recv();
        }
        let mut failures = self.failures.lock().unwrap();
        if *failures > 0 {
            *failures -= 1;
            // The second half of a line is lost.
            if self.torn {
                self.text.lock().unwrap().extend_from_slice(&bytes[..bytes.len() / 2]);
            }
            return Err(std::io::ErrorKind::Other.into());
        }
        drop(failures);
        self.text.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Output {
    fn stopped() -> (Self, Sender<()>) {
        let (sender, receiver) = channel();
        (Self { gate: Some(Arc::new(Mutex::new(receiver))), ..Self::default() }, sender)
    }

    fn text(&self) -> String {
        String::from_utf8(self.text.lock().unwrap().clone()).unwrap()
    }
}

fn start(output: &Output) -> Audit {
    let clock = Clock::manual("2026-11-24T08:00:00Z".parse().unwrap());
    let started = Started { cluster: "test".into(), version: "1".into(), ..Started::default() };
    Audit::start(output.clone(), started, clock, Metrics::new()).unwrap()
}

async fn end(audit: &Audit) {
    audit.end();
    audit.flush(Duration::from_secs(10)).await;
}

fn request(name: &str) -> Event {
    let requester = User::new("alice", None, &(0..70).map(|n| format!("group-{n}")).collect::<Vec<_>>());
    let request = Request { name: name.into(), requester: Some(requester), ..Request::default() };
    Event::request(Kind::Requested, request)
}

fn verify(text: &str) -> Verifier {
    let mut verifier = Verifier::default();
    text.lines().for_each(|line| verifier.line(line));
    verifier
}

async fn four_records() -> Vec<String> {
    let output = Output::default();
    let audit = start(&output);
    audit.record(request("a"));
    audit.record(request("b"));
    end(&audit).await;
    let lines: Vec<String> = output.text().lines().map(str::to_owned).collect();
    assert_eq!(lines.len(), 4);
    lines
}

#[tokio::test]
async fn a_chain_is_whole_and_says_who_writes_it() {
    let lines = four_records().await;
    let first: Value = serde_json::from_str(&lines[0]).unwrap();
    assert_eq!((&first["kind"], &first["started"]["cluster"]), (&"ChainStarted".into(), &"test".into()));
    let second: Value = serde_json::from_str(&lines[1]).unwrap();
    assert_eq!(second["request"]["requester"]["groups"].as_array().unwrap().len(), 64);
    assert_eq!(second["request"]["requester"]["groupsOmitted"], 6);
    assert_eq!(second["ocsf"]["classUid"], 3004);
    let mixed = format!(
        "{{\"level\":\"INFO\"}}\n[pod/x] 2026-11-24T08:00:00Z {}\n{}\nstarted\n{}\n{}\n{}\n",
        lines[0], lines[1], lines[1], lines[2], lines[3]
    );
    let verifier = verify(&mixed);
    assert_eq!(verifier.verdict(), Verdict::Whole, "{verifier:#?}");
    let found = verifier.chains().values().next().unwrap();
    assert_eq!((found.records, found.repeated, found.ended, verifier.others()), (4, 1, true, 2));
}

#[tokio::test]
async fn every_change_to_a_chain_is_found_and_its_place_named() {
    let lines = four_records().await;
    let changed = |change: &dyn Fn(&mut Vec<String>)| {
        let mut lines = lines.clone();
        change(&mut lines);
        let verifier = verify(&lines.join("\n"));
        let breaks = verifier.chains().values().flat_map(|chain| chain.breaks.clone());
        (verifier.verdict(), breaks.map(|found| found.line).next())
    };
    type Change<'a> = &'a dyn Fn(&mut Vec<String>);
    let cases: [(&str, Change<'_>, u64); 7] = [
        ("a field", &|lines| lines[1] = lines[1].replace("alice", "mallory"), 2),
        (
            "a field before the same",
            &|lines| lines[1] = lines[1].replacen("\"name\"", "\"name\":\"x\",\"name\"", 1),
            2,
        ),
        (
            "the record of a number, told otherwise",
            &|lines| lines.insert(3, lines[1].replace("alice", "bob")),
            4,
        ),
        ("one left out", &|lines| drop(lines.remove(1)), 2),
        ("two exchanged", &|lines| lines.swap(1, 2), 2),
        ("one after the end", &|lines| lines.push(after_the_end(lines)), 5),
        ("the start replaced", &|lines| lines[0] = lines[0].replace("ChainStarted", "Alive"), 1),
    ];
    for (what, change, line) in cases {
        assert_eq!(changed(change), (Verdict::Broken, Some(line)), "{what}");
    }
    // Nothing stands against a cut at the beginning or within the last line, but they are told.
    assert_eq!(changed(&|lines| drop(lines.drain(..2))), (Verdict::Partial, None));
    assert_eq!(changed(&|lines| lines[3].truncate(100)), (Verdict::Partial, None));
    assert_eq!(changed(&|lines| lines.clear()), (Verdict::Nothing, None));
    // And these are what a chain by itself does not prove.
    assert_eq!(changed(&|lines| lines.truncate(2)), (Verdict::Whole, None));
    let other = four_records().await;
    assert_eq!(verify(&other.join("\n")).verdict(), Verdict::Whole);
    assert_eq!(verify(&[lines, other].concat().join("\n")).chains().len(), 2);
}

/// A record that would follow the last one, with a hash that fits.
fn after_the_end(lines: &[String]) -> String {
    let last: Value = serde_json::from_str(&lines[3]).unwrap();
    let mut record: Value = serde_json::from_str(&lines[1]).unwrap();
    record["seq"] = 4.into();
    record["previous"] = last["hash"].clone();
    record["hash"] = super::chain::hash(&record).into();
    super::chain::canonical(&record)
}

/// Collectors deliver at least once, and in batches; many read JSON and write it anew.
#[tokio::test]
async fn batches_that_come_twice_and_records_that_were_written_anew_are_no_break() {
    let lines = four_records().await;
    let twice = [&lines[..3], &lines[..3], &lines[1..], &lines[2..]].concat();
    let verifier = verify(&twice.join("\n"));
    assert_eq!(verifier.verdict(), Verdict::Whole, "{verifier:#?}");
    let found = verifier.chains().values().next().unwrap();
    assert_eq!((found.records, found.repeated, found.rewritten, found.ended), (4, 7, 0, true));

    // The marker last, spaces, escapes.
    let anew: Vec<String> = lines
        .iter()
        .map(|line| {
            let rest = line.strip_prefix(r#"{"audit":"portcullis","#).unwrap().strip_suffix('}').unwrap();
            let rest = rest.replace("\":", "\" : ").replace("alice", r"\u0061lice");
            format!(r#"{{{rest}, "audit": "portcullis"}}"#)
        })
        .collect();
    let verifier = verify(&anew.join("\n"));
    assert_eq!(verifier.verdict(), Verdict::Whole, "{verifier:#?}");
    assert_eq!(verifier.chains().values().next().unwrap().rewritten, 4);
    let forged = anew.join("\n").replace("test", "best");
    assert_eq!(verify(&forged).verdict(), Verdict::Broken, "its content is judged all the same");
}

#[tokio::test]
async fn an_output_that_takes_nothing_holds_nobody_up_and_what_is_lost_is_counted() {
    let (output, open) = Output::stopped();
    let audit = start(&output);
    let begun = Instant::now();
    // Seventy groups each: some 700 bytes.
    let receipts: Vec<_> = (0..20_000).map(|n| audit.intend(request(&n.to_string()))).collect();
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    assert_eq!(receipts[0].progress(), Progress::Waiting);
    assert_eq!(receipts[19_999].progress(), Progress::Lost);
    assert_eq!(output.text(), "");
    drop(open);
    end(&audit).await;
    let lost = receipts.iter().filter(|receipt| receipt.progress() == Progress::Lost).count() as u64;
    assert!(lost > 500, "{lost}");
    assert!(receipts.iter().all(|receipt| receipt.progress() != Progress::Waiting));
    let verifier = verify(&output.text());
    assert_eq!(verifier.verdict(), Verdict::Whole, "a loss that is told is no break");
    let found = verifier.chains().values().next().unwrap();
    assert_eq!(found.dropped, lost, "{found:?}");
    assert!(found.ended, "there is always room for the end");
    assert_eq!(found.last_seq + 1, found.records + found.dropped, "every number is accounted for");
}

/// What waits is bounded by what it takes, not by how many there are: records of large requests are some hundred
/// kilobytes each.
#[tokio::test]
async fn large_records_that_wait_take_no_more_room_than_small_ones() {
    let (output, open) = Output::stopped();
    let audit = start(&output);
    let large = |n: usize| {
        let text = "x".repeat(1000);
        let asked = Asked { targets: vec![text.as_str().into(); 200], ..Asked::default() };
        Event::request(
            Kind::Requested,
            Request { name: n.to_string().as_str().into(), asked, ..Request::default() },
        )
    };
    let receipts: Vec<_> = (0..200).map(|n| audit.intend(large(n))).collect();
    let kept = receipts.iter().filter(|receipt| receipt.progress() != Progress::Lost).count();
    assert!((70..90).contains(&kept), "200 kB each, 16 MiB together: {kept}");
    drop(open);
    end(&audit).await;
    assert!(output.text().len() < 18 << 20);
}

/// A write that ends after the chain has its end would make a break where nothing is broken.
#[tokio::test]
async fn nothing_follows_the_end_of_a_chain() {
    let output = Output::default();
    let audit = start(&output);
    audit.record(request("a"));
    end(&audit).await;
    let late = audit.intend(request("late"));
    assert_eq!(late.progress(), Progress::Lost);
    end(&audit).await;
    let verifier = verify(&output.text());
    assert_eq!(verifier.verdict(), Verdict::Whole, "{}", output.text());
    assert!(!output.text().contains("late") && output.text().matches("ChainEnded").count() == 1);
}

#[tokio::test]
async fn what_an_output_refuses_is_counted_and_half_a_line_is_seen_as_such() {
    for torn in [false, true] {
        let output = Output { torn, ..Output::default() };
        let audit = start(&output);
        let first = audit.intend(request("a"));
        while first.progress() == Progress::Waiting {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        *output.failures.lock().unwrap() = 2;
        let lost = [audit.intend(request("b")), audit.intend(request("c"))];
        audit.record(request("d"));
        end(&audit).await;
        assert!(lost.iter().all(|receipt| receipt.progress() == Progress::Lost));
        let verifier = verify(&output.text());
        let found = verifier.chains().values().next().unwrap();
        assert_eq!((found.dropped, found.breaks.len(), found.ended), (2, 0, true), "{}", output.text());
        assert_eq!(verifier.torn().len(), usize::from(torn) * 2, "{}", output.text());
    }
}

#[test]
fn texts_are_bounded() {
    let long = serde_json::to_string(&Text::from("ä".repeat(5000).as_str())).unwrap();
    assert_eq!(long.chars().count(), 1024 + 2);
    assert!(long.ends_with("…\""));
}

/// What is not named cannot be recorded: every object is closed, and no field takes any value.
#[test]
fn the_form_is_closed() {
    let schema = serde_json::to_value(schema()).unwrap();
    let mut objects = 0;
    let mut parts = vec![&schema];
    parts.extend(schema["$defs"].as_object().unwrap().values());
    for part in parts {
        if part["type"] == "object" {
            objects += 1;
            let closed = part["additionalProperties"] == false || part["unevaluatedProperties"] == false;
            assert!(closed, "{part:#}");
            for (name, field) in part["properties"].as_object().unwrap() {
                let typed = ["type", "$ref", "anyOf", "enum"].iter().any(|key| !field[*key].is_null());
                assert!(typed, "{name} takes anything: {field:#}");
            }
        }
    }
    assert!(objects > 10, "{objects}");
}
