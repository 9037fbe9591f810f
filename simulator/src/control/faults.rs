//! Faults on demand: rules that match requests by method, path, caller and count, and say what goes wrong.

use regex::Regex;
use serde::Deserialize;
use serde_json::{Value, json};

use super::clock::Span;
use crate::arm::operations::Bend;

/// One rule of `POST /_sim/faults`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Rule {
    /// For the activity log and for people.
    #[serde(default)]
    name: Option<String>,
    /// Any method when left out.
    #[serde(default)]
    method: Option<String>,
    /// A regular expression searched in the path, without regard to case.
    #[serde(default)]
    path: Option<String>,
    /// The client id of the caller.
    #[serde(default)]
    caller: Option<String>,
    /// The first matching request that it strikes, from 1.
    #[serde(default = "one")]
    nth: u64,
    /// How many it strikes from there; all when left out.
    #[serde(default)]
    count: Option<u64>,
    effect: Effect,
    #[serde(skip)]
    seen: u64,
    #[serde(skip)]
    struck: u64,
}

fn one() -> u64 {
    1
}

/// What goes wrong.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase", deny_unknown_fields)]
pub(crate) enum Effect {
    /// Answered in place of the real answer; nothing is committed.
    Status {
        status: u16,
        #[serde(default)]
        code: Option<String>,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        retry_after: Option<u64>,
    },
    /// Waits (real time) before the request is handled.
    Delay(Span),
    /// Handles the request, then answers only after this long (real time), with 504.
    TimeoutAfterCommit(Span),
    /// Handles the request, then resets the connection.
    ResetAfterCommit,
    /// Resets the connection without handling the request.
    DropBeforeCommit,
    /// Answers at once as `answer` says, and handles the request `after` this long on the simulator's clock.
    LateWrite {
        after: Span,
        #[serde(default)]
        answer: LateAnswer,
    },
    /// Serves a read as of this long ago.
    StaleRead { age: Span },
    /// Bends the long-running operation that the request starts.
    Operation(Bend),
}

/// How the request that will be handled later is answered now.
#[derive(Debug, Clone, Copy, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(crate) enum LateAnswer {
    /// 504 `GatewayTimeout`.
    #[default]
    Timeout,
    /// The connection is reset.
    Reset,
}

/// All that strikes one request.
#[derive(Debug, Default)]
pub(crate) struct Plan {
    pub(crate) names: Vec<String>,
    pub(crate) delay: Option<Span>,
    pub(crate) status: Option<(u16, String, String, Option<u64>)>,
    pub(crate) timeout_after: Option<Span>,
    pub(crate) reset_after: bool,
    pub(crate) drop_before: bool,
    pub(crate) late: Option<(Span, LateAnswer)>,
    pub(crate) stale: Option<Span>,
    pub(crate) bend: Option<Bend>,
}

#[derive(Debug, Default)]
pub(crate) struct Faults {
    rules: Vec<(Rule, Option<Regex>)>,
}

impl Faults {
    /// Adds rules behind those in force.
    pub(crate) fn add(&mut self, rules: Vec<Rule>) -> Result<(), String> {
        let mut compiled = vec![];
        for (index, rule) in rules.into_iter().enumerate() {
            if rule.nth == 0 {
                return Err(format!("faults[{index}].nth: counted from 1"));
            }
            let regex = match &rule.path {
                Some(path) => Some(
                    Regex::new(&format!("(?i){path}")).map_err(|e| format!("faults[{index}].path: {e}"))?,
                ),
                None => None,
            };
            compiled.push((rule, regex));
        }
        self.rules.extend(compiled);
        Ok(())
    }

    pub(crate) fn clear(&mut self) {
        self.rules.clear();
    }

    /// What strikes this request; counts it.
    pub(crate) fn strike(&mut self, method: &str, path: &str, caller: Option<&str>) -> Plan {
        let mut plan = Plan::default();
        for (rule, regex) in &mut self.rules {
            let hits = rule.method.as_ref().is_none_or(|m| m.eq_ignore_ascii_case(method))
                && regex.as_ref().is_none_or(|r| r.is_match(path))
                && rule
                    .caller
                    .as_ref()
                    .is_none_or(|wanted| caller.is_some_and(|c| c.eq_ignore_ascii_case(wanted)));
            if !hits {
                continue;
            }
            rule.seen += 1;
            if rule.seen < rule.nth || rule.count.is_some_and(|c| rule.struck >= c) {
                continue;
            }
            rule.struck += 1;
            plan.names.push(rule.name.clone().unwrap_or_else(|| kind(&rule.effect).to_owned()));
            add(&mut plan, &rule.effect);
        }
        plan
    }

    pub(crate) fn show(&self) -> Value {
        let rules = self.rules.iter().map(|(rule, _)| {
            json!({"name": rule.name, "method": rule.method, "path": rule.path, "effect": kind(&rule.effect),
                   "nth": rule.nth, "count": rule.count, "seen": rule.seen, "struck": rule.struck})
        });
        rules.collect()
    }
}

fn add(plan: &mut Plan, effect: &Effect) {
    match effect {
        Effect::Status { status, code, message, retry_after } => {
            plan.status.get_or_insert_with(|| {
                let code = code.clone().unwrap_or_else(|| default_code(*status).to_owned());
                let message = message.clone().unwrap_or_else(|| "Injected by the simulator.".to_owned());
                (*status, code, message, *retry_after)
            });
        }
        Effect::Delay(span) => {
            let before = plan.delay.map_or(jiff::SignedDuration::ZERO, |s| s.0);
            plan.delay = Some(Span(before + span.0));
        }
        Effect::TimeoutAfterCommit(span) => plan.timeout_after = Some(*span),
        Effect::ResetAfterCommit => plan.reset_after = true,
        Effect::DropBeforeCommit => plan.drop_before = true,
        Effect::LateWrite { after, answer } => plan.late = Some((*after, *answer)),
        Effect::StaleRead { age } => plan.stale = Some(*age),
        Effect::Operation(bend) => plan.bend = Some(bend.clone()),
    }
}

fn kind(effect: &Effect) -> &'static str {
    match effect {
        Effect::Status { .. } => "status",
        Effect::Delay(_) => "delay",
        Effect::TimeoutAfterCommit(_) => "timeoutAfterCommit",
        Effect::ResetAfterCommit => "resetAfterCommit",
        Effect::DropBeforeCommit => "dropBeforeCommit",
        Effect::LateWrite { .. } => "lateWrite",
        Effect::StaleRead { .. } => "staleRead",
        Effect::Operation(_) => "operation",
    }
}

fn default_code(status: u16) -> &'static str {
    match status {
        401 => "InvalidAuthenticationToken",
        403 => "AuthorizationFailed",
        404 => "ResourceNotFound",
        409 => "Conflict",
        412 => "PreconditionFailed",
        429 => "TooManyRequests",
        500 => "InternalServerError",
        503 => "ServiceUnavailable",
        504 => "GatewayTimeout",
        _ => "Injected",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_strikes_from_its_nth_match_for_its_count() {
        let mut faults = Faults::default();
        let rule = r#"[{"method": "put", "path": "/securityrules/", "nth": 2, "count": 1, "effect": {"status": {"status": 500}}}]"#;
        faults.add(serde_json::from_str(rule).unwrap()).unwrap();
        let strikes: Vec<bool> =
            (0..4).map(|_| faults.strike("PUT", "/x/securityRules/r", None).status.is_some()).collect();
        assert_eq!(strikes, [false, true, false, false]);
        assert!(faults.strike("GET", "/x/securityRules/r", None).status.is_none());
    }

    #[test]
    fn a_bad_path_names_its_field() {
        let rules = serde_json::from_str(r#"[{"path": "(", "effect": "dropBeforeCommit"}]"#).unwrap();
        assert!(Faults::default().add(rules).unwrap_err().starts_with("faults[0].path"));
    }
}
