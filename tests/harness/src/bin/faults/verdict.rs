//! What is found when a story is over. Packets decide, as the simulator remembers them.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::catalogue::{Fault, HoldsUp};
use crate::scenario::{GONE_PATH, Scenario};
use crate::story::{STRANGER, Story};

/// How long what stands may take to be as it is to be: a resource lock that was lifted is noticed within a minute.
const SETTLE_PATIENCE: Duration = Duration::from_secs(75);

/// What was found wrong, by scenario.
#[derive(Debug, Default, Clone)]
pub struct Findings {
    pub wrong: Vec<(Scenario, String)>,
    /// Seconds that packets passed longer than they should, at most.
    pub late: f64,
    /// Requests that were open at some time.
    pub opened: usize,
    /// What those said at the end that never were.
    pub unopened: Vec<String>,
    /// Rules that stand at the end, without what differs from run to run.
    pub end: BTreeSet<String>,
}

impl Findings {
    fn wrong(&mut self, scenario: Scenario, what: impl Into<String>) {
        self.wrong.push((scenario, what.into()));
    }
}

impl Story {
    /// Waits until what stands at the end is what is expected, where that is known: what others held up may take a while.
    pub async fn settle(&self, expected: Option<&BTreeSet<String>>) -> anyhow::Result<()> {
        let begun = Instant::now();
        while let Some(expected) = expected.filter(|_| begun.elapsed() < SETTLE_PATIENCE) {
            if self.standing().await? == *expected {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        Ok(())
    }

    /// The rules that stand, without what differs from run to run.
    async fn standing(&self) -> anyhow::Result<BTreeSet<String>> {
        // A deny over an address that no machine has any more holds nobody up; whoever brings it back keeps it.
        let gone = self.machines[&Scenario::MachineDeleted].address.as_str();
        let counts = |rule: &Value| {
            rule["properties"]["destinationAddressPrefix"] != gone
                || !rule["name"].as_str().is_some_and(|name| name.contains("-deny-"))
        };
        let rules = self.rules().await?;
        Ok(rules.iter().filter(|(_, rule)| counts(rule)).map(|(group, rule)| essence(group, rule)).collect())
    }

    /// What is to be said of it all. `over`: when what went wrong was over.
    pub async fn judge(&self, over: Timestamp, fault: &Fault) -> anyhow::Result<Findings> {
        let gaps = fault.gaps;
        let mut findings = Findings::default();
        for scenario in Scenario::ALL {
            if !gaps {
                let open = self.exposure(scenario, STRANGER, None, self.locked[&scenario]).await?;
                if !open.is_empty() {
                    findings.wrong(scenario, format!("a stranger got in: {open:?}"));
                }
            }
            for (name, _, source) in scenario.requests() {
                let Some(request) = self.seen.get(&name) else {
                    findings.wrong(scenario, "the request is not there");
                    continue;
                };
                let waits = scenario == Scenario::Firewall && waits_for_a_write(request);
                if !is_over(request) && !waits {
                    findings.wrong(scenario, format!("{name} has not ended: {}", request["status"]["state"]));
                }
                self.judge_grant(&mut findings, scenario, (&name, source), request, (over, fault)).await?;
            }
        }
        if self.foreign != self.foreign_rules().await? && !gaps {
            findings.wrong(Scenario::Lock, "rules of others were changed");
        }
        if self.plane.request(Method::GET, GONE_PATH, None).await.is_ok() {
            findings.wrong(Scenario::NamespaceDeleted, "the namespace is still there");
        }
        for (group, rule) in self.rules().await? {
            let name = rule["name"].as_str().unwrap_or_default();
            if name.starts_with("portcullis-")
                && name.contains("-allow-")
                && rule["properties"]["access"] == "Allow"
            {
                findings.wrong(Scenario::Lock, format!("{name} stands in {group}"));
            }
        }
        findings.end = self.standing().await?;
        Ok(findings)
    }

    async fn judge_grant(
        &self,
        findings: &mut Findings,
        scenario: Scenario,
        (name, source): (&str, &str),
        request: &Value,
        (over, fault): (Timestamp, &Fault),
    ) -> anyhow::Result<()> {
        let moment =
            |pointer: &str| request.pointer(pointer).and_then(Value::as_str)?.parse::<Timestamp>().ok();
        let ports = request["status"]["connections"].as_array().into_iter().flatten();
        let port = ports.filter_map(|one| one["port"].as_str()?.parse::<u16>().ok()).next();
        let by = (scenario == Scenario::Firewall).then_some(port).flatten();
        let since = self.locked[&scenario];
        let mut open = self.exposure(scenario, source, by, since).await?;
        if scenario == Scenario::Firewall {
            // What the machine sees of it, whoever is led on.
            open.extend(self.exposure(scenario, source, None, since).await?);
        }
        let granted = moment("/status/grantedAt");
        let asked = self.asked.get(name).copied().filter(|_| scenario != Scenario::Tightened);
        // When it could be closed at last.
        let later = |end: Timestamp, held_up: bool| if held_up { end.max(over) } else { end };
        let ends = [
            moment("/status/expiresAt").map(|end| later(end, fault.holds_up == HoldsUp::Everything)),
            asked.map(|end| later(end, fault.holds_up != HoldsUp::Nothing)),
        ];
        let due = ends.into_iter().flatten().min();
        if open.is_empty() {
            findings.unopened.push(format!("{name}: {}", request["status"]));
        } else {
            findings.opened += 1;
        }
        for (from, to) in open {
            let (Some(granted), Some(due)) = (granted, due) else {
                // Where locks are taken away, it may have been anybody.
                if !fault.gaps {
                    findings.wrong(scenario, format!("{name} was open and never granted"));
                }
                continue;
            };
            if from < granted && !fault.gaps {
                findings.wrong(scenario, format!("{name} was open before its grant"));
            }
            let late = to.unwrap_or_else(Timestamp::now).duration_since(due);
            findings.late = findings.late.max(late.as_secs_f64());
            if to.is_none() || late > SignedDuration::try_from(fault.bound)? {
                findings
                    .wrong(scenario, format!("{name} was open until {to:?}, due at {due}, {late:#} late"));
            }
        }
        Ok(())
    }

    /// When packets of a source would have got through to the machine of a scenario, or `by` a port of the firewall.
    pub async fn exposure(
        &self,
        scenario: Scenario,
        source: &str,
        by: Option<u16>,
        from: Timestamp,
    ) -> anyhow::Result<Vec<(Timestamp, Option<Timestamp>)>> {
        let destination = by.map_or(&self.machines[&scenario].address, |_| &self.public);
        let question = json!({"source": source, "destination": destination, "port": by.unwrap_or(22), "protocol": "Tcp",
            "from": from.to_string()});
        let answer = match self.simulator.control(Method::POST, "exposure", Some(&question)).await {
            Ok(answer) => answer,
            // The machine is gone with its address.
            Err(_) if scenario == Scenario::MachineDeleted => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut open = intervals(&answer)?;
        // Where there is no machine any more, nobody gets in; its address is unlocked.
        if let Some(gone) =
            self.asked.get(Scenario::MachineDeleted.name()).filter(|_| scenario == Scenario::MachineDeleted)
        {
            open.retain(|(from, _)| from < gone);
            open.iter_mut().for_each(|(_, to)| *to = Some(to.map_or(*gone, |to| to.min(*gone))));
        }
        Ok(open)
    }

    /// Calls to the cloud, and writes of rules of ours among them.
    pub async fn cloud_calls(&self) -> anyhow::Result<(usize, usize)> {
        let all = self.simulator.control(Method::GET, "activity", None).await?;
        let all = all["value"].as_array().context("no activity")?;
        let ours = |call: &&Value| {
            call["method"] != "GET" && call["path"].as_str().is_some_and(|path| path.contains("/portcullis-"))
        };
        Ok((all.len(), all.iter().filter(ours).count()))
    }
}

/// From when until when packets would have got through, as the simulator says it.
pub fn intervals(answer: &Value) -> anyhow::Result<Vec<(Timestamp, Option<Timestamp>)>> {
    let time = |value: &Value| value.as_str().and_then(|text| text.parse::<Timestamp>().ok());
    let intervals = answer["intervals"].as_array().context("no intervals")?;
    Ok(intervals.iter().filter_map(|one| Some((time(&one["from"])?, time(&one["to"])))).collect())
}

/// Whether nothing more will come of a request.
pub fn is_over(request: &Value) -> bool {
    // One whose policy went before it was granted waits for another policy of that name, and in the end for nothing.
    let waits = request["metadata"]["name"] == Scenario::PolicyDeleted.name()
        && request["status"]["state"] == "Pending";
    request["gone"] == true || request["status"]["settled"] == true || waits
}

/// Whether it waits, and says so, until a write of its firewall that was never answered can no longer be carried out:
/// that takes a quarter of an hour, longer than a cell.
fn waits_for_a_write(request: &Value) -> bool {
    let conditions = request["status"]["conditions"].as_array();
    request["status"]["state"] == "Closing"
        && conditions.into_iter().flatten().any(|condition| {
            condition["message"].as_str().is_some_and(|message| message.contains("may yet land"))
        })
}

/// A rule without what differs from run to run: its number, who owns it, when it dies.
fn essence(group: &str, rule: &Value) -> String {
    let name = rule["name"].as_str().unwrap_or_default();
    let kind = match name.split('-').nth(2) {
        Some(kind) if name.starts_with("portcullis-") => kind,
        _ => name,
    };
    let properties = &rule["properties"];
    let group = group.split('/').nth(4).unwrap_or_default();
    let mut to: Vec<String> = properties["destinationAddressPrefixes"]
        .as_array()
        .into_iter()
        .flatten()
        .chain(std::iter::once(&properties["destinationAddressPrefix"]))
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect();
    to.sort();
    format!("{group} {kind} {} {} {}", properties["access"], to.join(","), properties["destinationPortRange"])
}
