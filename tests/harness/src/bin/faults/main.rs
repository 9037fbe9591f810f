//! `faults`: the matrix of faults. Every scenario, with everything that can go wrong, on a real API server and the
//! simulator, judged by the packets that got through. Prints a table; ends with 1 where anything is wrong.
//!
//! - [`scenario`]: what happens to grants
//! - [`story`]: all of it at once, on the machines of [`estate`], and what is found when it is over ([`verdict`])
//! - [`catalogue`]: what can go wrong
//! - [`gateway`]: the way to the API server, on which it goes wrong; the simulator has faults of its own
//! - [`cell`]: one story with one fault; [`another_cluster`]: what that one does that takes a cluster of its own
//! - [`soak`]: one story for hours, with one fault after another
#![allow(clippy::print_stdout)]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use catalogue::{Fault, all, crashes};
use cell::{Outcome, play};
use clap::Parser;
use portcullis_harness::lending::lend_more;
use scenario::Scenario;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

mod another_cluster;
mod catalogue;
mod cell;
mod estate;
mod gateway;
mod scenario;
mod soak;
mod story;
mod verdict;

/// Calls a minute that a cell may make at most, to the API server and to the cloud: more would be a hot loop.
const CALLS: (f64, f64) = (1500.0, 3000.0);

#[derive(Debug, Parser)]
struct Arguments {
    /// Only faults whose name holds this; may be given again.
    #[arg(long)]
    only: Vec<String>,
    /// One in so many of the faults, beginning with this one: `3/10`.
    #[arg(long)]
    part: Option<String>,
    /// How many cells run at once.
    #[arg(long, default_value_t = 9)]
    at_once: usize,
    /// Leave out the crashes after each write.
    #[arg(long)]
    no_crashes: bool,
    /// Keep what the replicas log in this folder, where something is wrong; of a soak, `soak.log`.
    #[arg(long)]
    logs: Option<std::path::PathBuf>,
    /// In place of the matrix: grants all the time, and one fault after another, for so many minutes.
    #[arg(long, value_name = "MINUTES")]
    soak: Option<u64>,
    /// What goes wrong in a soak, and in which order, as in the one that named this.
    #[arg(long, requires = "soak")]
    seed: Option<u64>,
    /// Write the table into this file, between the lines that mark it.
    #[arg(long)]
    write: Option<std::path::PathBuf>,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => {
            println!("failed to start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let done = match arguments.soak {
        Some(minutes) => {
            let (length, seed) =
                (Duration::from_secs(minutes * 60), arguments.seed.unwrap_or_else(rand::random));
            runtime.block_on(soak::soak(length, seed, arguments.logs.as_deref()))
        }
        None => runtime.block_on(run(arguments)),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("{error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let begun = Instant::now();
    // As many control planes as tests have at most, and more.
    lend_more(arguments.at_once.saturating_sub(7));
    let mut faults = all();
    let none = faults.remove(0);
    // How many writes there are, and what stands at the end, is known from a run in which nothing goes wrong.
    let calm = play(&none, None).await?;
    report(&calm, &calm);
    let asked: usize = Scenario::ALL.into_iter().map(|scenario| scenario.requests().len()).sum();
    let (opened, unopened) = (calm.findings.opened, calm.findings.unopened.join("\n"));
    anyhow::ensure!(
        opened == asked,
        "only {opened} of {asked} requests were open where nothing goes wrong:\n{unopened}\n{}",
        calm.logs.join("\n")
    );
    if !arguments.no_crashes {
        faults.extend(crashes(calm.writes.0, calm.writes.1));
    }
    if !arguments.only.is_empty() {
        faults.retain(|fault| arguments.only.iter().any(|part| fault.name.contains(part.as_str())));
    }
    if let Some((first, of)) = arguments.part.as_deref().and_then(|part| part.split_once('/')) {
        let (first, of): (usize, usize) = (first.parse()?, of.parse()?);
        faults = faults
            .into_iter()
            .enumerate()
            .filter(|(n, _)| n % of == first % of)
            .map(|(_, fault)| fault)
            .collect();
    }
    let places = Arc::new(Semaphore::new(arguments.at_once));
    let mut cells: JoinSet<(Fault, anyhow::Result<Outcome>)> = JoinSet::new();
    for fault in faults {
        let places = Arc::clone(&places);
        let expected = calm.findings.end.clone();
        cells.spawn(async move {
            let _place = places.acquire_owned().await;
            let outcome = play(&fault, Some(&expected)).await;
            (fault, outcome)
        });
    }
    let mut outcomes = vec![calm.clone()];
    let mut broken = Vec::new();
    while let Some(ended) = cells.join_next().await {
        match ended? {
            (_, Ok(outcome)) => {
                report(&calm, &outcome);
                if let Some(folder) = arguments.logs.as_ref().filter(|_| !wrong(&calm, &outcome).is_empty()) {
                    std::fs::create_dir_all(folder)?;
                    let name = outcome.fault.replace(|c: char| !c.is_ascii_alphanumeric(), "-");
                    std::fs::write(folder.join(format!("{name}.log")), outcome.logs.join("\n"))?;
                }
                outcomes.push(outcome);
            }
            (fault, Err(error)) => {
                println!("BROKEN  {}: {error:#}", fault.name);
                broken.push(fault.name);
            }
        }
    }
    let table = table(&calm, (&outcomes, asked), &broken, begun.elapsed());
    println!("{table}");
    for outcome in outcomes.iter().filter(|outcome| !wrong(&calm, outcome).is_empty()) {
        println!("to play it again: make faults ONLY='{}'", outcome.fault);
    }
    if let Some(path) = arguments.write {
        let text = std::fs::read_to_string(&path)?;
        let (begin, end) = ("<!-- begin faults -->\n", "<!-- end faults -->");
        let (head, rest) = text.split_once(begin).ok_or_else(|| anyhow::anyhow!("{begin} is missing"))?;
        let (_, tail) = rest.split_once(end).ok_or_else(|| anyhow::anyhow!("{end} is missing"))?;
        std::fs::write(&path, format!("{head}{begin}{table}{end}{tail}"))?;
    }
    Ok(broken.is_empty() && outcomes.iter().all(|outcome| wrong(&calm, outcome).is_empty()))
}

/// Everything that is wrong with a cell.
fn wrong(calm: &Outcome, outcome: &Outcome) -> Vec<(Scenario, String)> {
    let mut wrong = outcome.findings.wrong.clone();
    for rule in calm.findings.end.symmetric_difference(&outcome.findings.end) {
        wrong.push((Scenario::Lock, format!("the end is another: {rule}")));
    }
    let (api, cloud) = outcome.calls_a_minute;
    if api > CALLS.0 || cloud > CALLS.1 {
        wrong.push((Scenario::Lock, format!("a hot loop: {api:.0} and {cloud:.0} calls a minute")));
    }
    wrong
}

fn report(calm: &Outcome, outcome: &Outcome) {
    let wrong = wrong(calm, outcome);
    let verdict = match (wrong.is_empty(), outcome.struck) {
        (false, _) => "WRONG".to_owned(),
        (true, (struck, strikes)) if struck < strikes => format!("ok, struck {struck} of {strikes} times"),
        (true, _) => "ok".to_owned(),
    };
    println!(
        "{verdict:7} {}: {} opened, {:.1} s late at most, {} and {} writes, {:.0} and {:.0} calls a minute, {:.0} s",
        outcome.fault,
        outcome.findings.opened,
        outcome.findings.late.max(0.0),
        outcome.writes.0,
        outcome.writes.1,
        outcome.calls_a_minute.0,
        outcome.calls_a_minute.1,
        outcome.took.as_secs_f64()
    );
    for (scenario, what) in wrong {
        println!("        {}: {what}", scenario.name());
    }
}

/// A row a fault; the crashes after each write in two. `asked`: requests in each.
fn table(
    calm: &Outcome,
    (outcomes, asked): (&[Outcome], usize),
    broken: &[String],
    took: Duration,
) -> String {
    let mut rows: BTreeMap<String, Vec<&Outcome>> = BTreeMap::new();
    for outcome in outcomes {
        let name = ["crash after API write", "crash after cloud write"]
            .into_iter()
            .find(|series| outcome.fault.starts_with(series))
            .map_or_else(|| outcome.fault.clone(), |series| series.replace("after", "after each"));
        rows.entry(name).or_default().push(outcome);
    }
    let mut table = String::from("| fault | cells | violations | went wrong | opened | latest close | ");
    let _ = writeln!(table, "{} |", Scenario::ALL.map(Scenario::name).join(" | "));
    let _ = writeln!(table, "|---|---|---|---|---|---|{}", "---|".repeat(Scenario::ALL.len()));
    let (mut cells, mut violations) = (0, 0);
    for (name, outcomes) in rows {
        let all: Vec<(Scenario, String)> = outcomes.iter().flat_map(|outcome| wrong(calm, outcome)).collect();
        let late = outcomes.iter().map(|outcome| outcome.findings.late).fold(0.0, f64::max);
        let by = Scenario::ALL.map(|scenario| {
            let wrong = all.iter().filter(|(one, _)| *one == scenario).count();
            match wrong {
                0 if outcomes.iter().all(|outcome| outcome.spared.contains(&scenario)) => "-".to_owned(),
                0 => "ok".to_owned(),
                wrong => format!("**{wrong}**"),
            }
        });
        let played: usize = outcomes.iter().map(|outcome| Scenario::ALL.len() - outcome.spared.len()).sum();
        let (struck, strikes) = outcomes.iter().fold((0, 0), |(struck, strikes), outcome| {
            (struck + outcome.struck.0, strikes + outcome.struck.1)
        });
        let opened: usize = outcomes.iter().map(|outcome| outcome.findings.opened).sum();
        (cells, violations) = (cells + played, violations + all.len());
        let _ = writeln!(
            table,
            "| {name} | {played} | {} | {struck} of {strikes} | {opened} of {} | {late:.1} s | {} |",
            all.len(),
            asked * outcomes.len(),
            by.join(" | ")
        );
    }
    let _ = writeln!(
        table,
        "\n{cells} cells, {violations} violations, {} that could not be played, in {:.0} minutes.",
        broken.len(),
        took.as_secs_f64() / 60.0
    );
    table
}
