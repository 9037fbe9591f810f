//! Hours of it: grants come and go all the time, one thing after another goes wrong, and every grant is judged when it is
//! over. What the program takes of memory and handles must not grow.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::catalogue::{Fault, What, all};
use crate::cell::Driver;
use crate::scenario::Scenario;
use crate::story::{STRANGER, Story};

/// How often somebody asks.
const EACH: Duration = Duration::from_millis(2500);
/// How long one thing goes wrong, and how long nothing does between two.
const TROUBLE: Duration = Duration::from_secs(15);
const CALM: Duration = Duration::from_secs(15);
/// How much later than it should a packet may pass, in time in which nothing goes wrong.
const BOUND: SignedDuration = SignedDuration::from_secs(30);
/// What the program may take more at the end than after its first minutes.
const GROWTH: f64 = 1.5;

/// What the controller takes.
#[derive(Debug, Clone, Copy)]
struct Size {
    kib: u64,
    handles: usize,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Soaked {
    grants: usize,
    late: Vec<f64>,
    wrong: Vec<String>,
}

/// When something went wrong.
#[derive(Debug, Clone)]
struct Window {
    fault: String,
    from: Timestamp,
    /// None: it still does.
    until: Option<Timestamp>,
}

/// All that went wrong so far, by time.
#[derive(Debug, Clone, Default)]
struct Windows(Arc<Mutex<Vec<Window>>>);

impl Windows {
    fn all(&self) -> Vec<Window> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn begin(&self, fault: &str) {
        let window = Window { fault: fault.to_owned(), from: Timestamp::now(), until: None };
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(window);
    }

    fn end(&self) {
        if let Some(last) = self.0.lock().unwrap_or_else(PoisonError::into_inner).last_mut() {
            last.until = Some(Timestamp::now());
        }
    }
}

/// Soaks for so long; whether nothing was wrong. Where something was, `logs` is a folder for what the program logged.
#[allow(clippy::print_stdout)]
pub async fn soak(length: Duration, seed: u64, logs: Option<&Path>) -> anyhow::Result<bool> {
    println!("what goes wrong is that of SEED={seed}");
    let mut story = Story::prepare().await?;
    // So short that the one that is there ends where there are no new ones.
    story.simulator.control(Method::POST, "settings", Some(&json!({"tokenLifetime": "60s"}))).await?;
    story.set_up_wall_clock()?;
    let replica = story.replica()?;
    let pid = replica.id();
    story.lock().await?;
    story.counts().await?;
    let group = story.shared_group();
    let before = story.simulator.get(&group).await?;
    let (simulator, gateway) = (Arc::clone(&story.simulator), Arc::clone(&story.gateway));
    let driver = Driver::new(&story, simulator, gateway, vec![replica], group, before)?;
    let begun = Instant::now();
    let (ended, windows) = (begun + length, Windows::default());
    let troubles = tokio::spawn(trouble(driver, StdRng::seed_from_u64(seed), ended, windows.clone()));
    let mut soaked = Soaked::default();
    let (mut number, mut next) = (0_u32, Instant::now());
    let mut start = None;
    let mut judged = Instant::now();
    while Instant::now() < ended {
        tokio::time::sleep_until(next).await;
        next += EACH;
        number += 1;
        // Its controller may not hear of it just now; the API server does.
        story.ask_once(number).await?;
        if start.is_none() && begun.elapsed() > (length / 5).min(Duration::from_secs(300)) {
            start = Some(size(pid)?);
        }
        if judged.elapsed() > Duration::from_secs(10) {
            judged = Instant::now();
            judge(&mut story, &windows.all(), &mut soaked).await?;
        }
    }
    let driver = troubles.await??;
    tokio::time::sleep(Duration::from_secs(90)).await;
    judge(&mut story, &windows.all(), &mut soaked).await?;
    let (start, end) = (start.context("it was too short to be measured")?, size(pid)?);
    soaked.wrong.extend(story.left().await?);
    if let Some(folder) = logs.filter(|_| !soaked.wrong.is_empty()) {
        std::fs::create_dir_all(folder)?;
        std::fs::write(folder.join("soak.log"), driver.logs().join("\n"))?;
    }
    drop::<Driver>(driver);
    soaked.late.sort_by(f64::total_cmp);
    let quantile = |part: f64| {
        // In range: a part of the length.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
        let place = (part * soaked.late.len().saturating_sub(1) as f64) as usize;
        soaked.late.get(place).copied().unwrap_or_default().max(0.0)
    };
    println!(
        "{} grants in {:.0} minutes, {} violations",
        soaked.grants,
        begun.elapsed().as_secs_f64() / 60.0,
        soaked.wrong.len()
    );
    println!(
        "closed after the deadline, in time in which nothing went wrong: p50 {:.1} s, p95 {:.1} s, p99 {:.1} s, latest {:.1} s",
        quantile(0.5),
        quantile(0.95),
        quantile(0.99),
        quantile(1.0)
    );
    println!(
        "memory {} MiB at the start, {} MiB at the end; handles {} and {}",
        start.kib / 1024,
        end.kib / 1024,
        start.handles,
        end.handles
    );
    let mut faults: BTreeMap<String, usize> = BTreeMap::new();
    windows.all().into_iter().for_each(|window| *faults.entry(window.fault).or_default() += 1);
    for (name, times) in faults {
        println!("  {times} times {name}");
    }
    soaked.wrong.iter().for_each(|wrong| println!("WRONG {wrong}"));
    #[allow(clippy::cast_precision_loss)]
    let grown = end.kib as f64 > start.kib as f64 * GROWTH || end.handles > start.handles + 50;
    if grown {
        println!("WRONG it has grown");
    }
    Ok(soaked.wrong.is_empty() && !grown && soaked.grants > 0)
}

/// One thing after another goes wrong.
async fn trouble(
    mut driver: Driver,
    mut random: StdRng,
    ended: Instant,
    windows: Windows,
) -> anyhow::Result<Driver> {
    // What changes who holds the rules, or needs a second replica, is for the matrix.
    let fits = |fault: &&Fault| {
        !fault.gaps
            && fault.replicas == 1
            && !matches!(
                fault.what,
                What::Nothing | What::BringBack | What::ResourceLock | What::LoseLease | What::AnotherCluster
            )
    };
    let faults: Vec<Fault> = all().iter().filter(fits).cloned().collect();
    while Instant::now() + TROUBLE + CALM < ended {
        tokio::time::sleep(CALM).await;
        let mut fault = faults.choose(&mut random).context("no faults")?.clone();
        (fault.from, fault.until) = (0, TROUBLE.as_secs());
        windows.begin(&fault.name);
        driver.go_wrong(&fault).await?;
        windows.end();
    }
    Ok(driver)
}

/// Judges what is over, and forgets it.
async fn judge(story: &mut Story, windows: &[Window], soaked: &mut Soaked) -> anyhow::Result<()> {
    for (source, request) in story.over().await? {
        let moment =
            |pointer: &str| request.pointer(pointer).and_then(Value::as_str)?.parse::<Timestamp>().ok();
        let (name, granted) = (request["metadata"]["name"].to_string(), moment("/status/grantedAt"));
        let open = story
            .open(&request, &source, moment("/metadata/creationTimestamp").unwrap_or(Timestamp::MIN))
            .await?;
        let (Some(granted), Some(due)) = (granted, moment("/status/expiresAt")) else {
            if !open.is_empty() {
                soaked.wrong.push(format!("{name} was open and never granted"));
            }
            continue;
        };
        soaked.grants += usize::from(!open.is_empty());
        for (from, to) in open {
            let late = undisturbed(windows, due, to.unwrap_or_else(Timestamp::now));
            soaked.late.push(late.as_secs_f64());
            if from < granted || to.is_none() || late > BOUND {
                soaked.wrong.push(format!(
                    "{name} was open from {from} to {to:?}; granted {granted}, due {due}, {late:#} late{}",
                    meanwhile(windows, due, to)
                ));
            }
        }
    }
    Ok(())
}

/// How much of the time between two moments nothing went wrong: removals go one by one, so that what goes wrong while some
/// still wait for theirs holds up those.
fn undisturbed(windows: &[Window], due: Timestamp, closed: Timestamp) -> SignedDuration {
    let disturbed = windows.iter().map(|window| {
        let (from, until) = (window.from.max(due), window.until.unwrap_or(closed).min(closed));
        until.duration_since(from).max(SignedDuration::ZERO)
    });
    disturbed.fold(closed.duration_since(due), |left, disturbed| left - disturbed)
}

/// What went wrong from a minute before it was due until it was closed.
fn meanwhile(windows: &[Window], due: Timestamp, closed: Option<Timestamp>) -> String {
    let (since, until) = (due - SignedDuration::from_mins(1), closed.unwrap_or_else(Timestamp::now));
    let mut said = String::new();
    for window in windows {
        if window.from <= until && window.until.is_none_or(|end| end >= since) {
            let end = window.until.map_or_else(|| "now".to_owned(), |end| end.to_string());
            let _ = write!(said, "; {} from {} until {end}", window.fault, window.from);
        }
    }
    said
}

/// What a process takes, as the kernel says.
fn size(pid: u32) -> anyhow::Result<Size> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).context("the controller is gone")?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
    let kib = line.split_whitespace().nth(1).context("no VmRSS")?.parse()?;
    Ok(Size { kib, handles: std::fs::read_dir(format!("/proc/{pid}/fd"))?.count() })
}

impl Story {
    /// One more request, of a source of its own.
    async fn ask_once(&mut self, number: u32) -> anyhow::Result<()> {
        let scenario =
            [Scenario::Lock, Scenario::Expire, Scenario::Overlap, Scenario::Ended][number as usize % 4];
        let source = format!("198.18.{}.{}", number / 250 % 250, number % 250 + 1);
        let duration = format!("{}s", 30 + number % 7 * 5);
        self.request(scenario, &format!("soak-{number}"), &duration, &source).await
    }

    /// Requests of [`Story::ask_once`] that are over, each once, with their sources.
    async fn over(&mut self) -> anyhow::Result<Vec<(String, Value)>> {
        let path = Self::path(Scenario::Lock, "jitaccessrequests");
        let list = self
            .plane
            .request(Method::GET, &format!("{path}?fieldSelector=status.settled%3Dtrue"), None)
            .await?;
        let mut over = Vec::new();
        for request in list["items"].as_array().into_iter().flatten() {
            let name = request["metadata"]["name"].as_str().unwrap_or_default();
            let cidr = request["spec"]["ports"][0]["sources"][0]["cidr"].as_str().unwrap_or_default();
            self.plane.request(Method::DELETE, &format!("{path}/{name}"), None).await?;
            over.push((cidr.trim_end_matches("/32").to_owned(), request.clone()));
        }
        Ok(over)
    }

    /// When a source got in to the machine that its request was of.
    async fn open(
        &self,
        request: &Value,
        source: &str,
        since: Timestamp,
    ) -> anyhow::Result<Vec<(Timestamp, Option<Timestamp>)>> {
        let policy = request["spec"]["policyRef"]["name"].as_str().unwrap_or_default();
        let scenario = Scenario::ALL.into_iter().find(|one| one.name() == policy).context("whose is it?")?;
        self.exposure(scenario, source, None, since).await
    }

    /// What is not as it should be when nobody has asked for a while.
    async fn left(&self) -> anyhow::Result<Vec<String>> {
        let mut left = Vec::new();
        let list =
            self.plane.request(Method::GET, &Self::path(Scenario::Lock, "jitaccessrequests"), None).await?;
        for request in list["items"].as_array().into_iter().flatten() {
            left.push(format!("{} is still {}", request["metadata"]["name"], request["status"]["state"]));
        }
        for (group, rule) in self.rules().await? {
            if rule["name"]
                .as_str()
                .is_some_and(|name| name.contains("-allow-") && name.starts_with("portcullis-"))
            {
                left.push(format!("{} stands in {group}", rule["name"]));
            }
        }
        for scenario in Scenario::ALL {
            let open = self.exposure(scenario, STRANGER, None, self.locked[&scenario]).await?;
            if !open.is_empty() {
                left.push(format!("{}: a stranger got in: {open:?}", scenario.name()));
            }
        }
        if self.foreign != self.foreign_rules().await? {
            left.push("rules of others were changed".to_owned());
        }
        Ok(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_790_000_000 + second).unwrap_or_default()
    }

    #[test]
    fn time_in_which_something_goes_wrong_is_none_in_which_it_could_be_closed() {
        let window =
            |from, until: Option<i64>| Window { fault: String::new(), from: at(from), until: until.map(at) };
        let late = |windows: &[Window], closed| undisturbed(windows, at(100), at(closed)).as_secs();
        assert_eq!(late(&[], 107), 7);
        assert_eq!(late(&[window(10, Some(90)), window(200, Some(215))], 107), 7);
        assert_eq!(late(&[window(95, Some(110))], 112), 2);
        assert_eq!(late(&[window(95, Some(110)), window(125, Some(140))], 145), 20);
        assert_eq!(late(&[window(105, None)], 120), 5);
        // What was closed before it was due is not late.
        assert!(late(&[window(50, Some(300))], 90) <= 0);
    }
}
