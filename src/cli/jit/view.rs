//! A request as people read it: what it asks for, what would be written, who has agreed and why it waits.

use std::collections::BTreeMap;
use std::io::Write;

use jiff::Timestamp;

use super::moments::absolute;
use super::text::{plain, wrapped};
use crate::api::{
    ConditionType, JitAccessRequest, JitAccessRequestStatus, RequestSummary, RequestedPolicy, State,
    UserInfo, find_condition,
};
use crate::cli::table::Table;
use crate::plan::lifecycle;

/// Columns of text that somebody else wrote.
const WIDTH: usize = 84;

/// What the user may do with a request.
#[derive(Clone, Debug, Default)]
pub struct Me {
    /// Who the API server takes the user for.
    pub user: UserInfo,
    /// Whether they may approve, by policy.
    pub may_approve: BTreeMap<String, bool>,
}

impl Me {
    /// Whether the request is the user's own.
    #[must_use]
    pub fn asked(&self, request: &JitAccessRequest) -> bool {
        request.spec.requester.as_ref().is_some_and(|requester| requester.username == self.user.username)
    }
}

/// What it asks for, as status sums it up or as the spec says.
#[must_use]
pub fn summary(request: &JitAccessRequest) -> RequestSummary {
    let known = request.status.as_ref().and_then(|status| status.summary.clone());
    known.unwrap_or_else(|| RequestSummary::of(&request.spec))
}

/// Where it stands.
#[must_use]
pub fn state(request: &JitAccessRequest) -> State {
    lifecycle::state(request)
}

/// Why it stands there: reason and message of the condition that says so.
#[must_use]
pub fn why(request: &JitAccessRequest) -> Option<(String, String)> {
    let conditions = &request.status.as_ref()?.conditions;
    let kinds: &[ConditionType] = match state(request) {
        State::Pending => &[ConditionType::Stalled, ConditionType::Approved],
        State::Approved | State::Scheduled => &[ConditionType::Stalled, ConditionType::Active],
        State::Denied => &[ConditionType::Denied],
        State::Opening
        | State::Active
        | State::Closing
        | State::Expired
        | State::Ended
        | State::Revoked
        | State::TimedOut
        | State::Failed
        | State::Void => &[ConditionType::Active],
    };
    let found = kinds.iter().find_map(|kind| find_condition(conditions, *kind))?;
    Some((found.reason.clone(), found.message.clone()))
}

/// State and reason on one line.
#[must_use]
pub fn standing(request: &JitAccessRequest) -> String {
    let word = state(request).as_str();
    match why(request) {
        Some((_, message)) => format!("{word}: {}", plain(&message)),
        None => format!("{word}: no controller has looked at it yet"),
    }
}

/// How many approvals there are of those that are needed: `1/2`, over all policies.
#[must_use]
pub fn approvals(request: &JitAccessRequest) -> String {
    let policies = policies(request);
    if policies.is_empty() {
        return String::new();
    }
    let needed: i32 = policies.iter().map(|policy| policy.required).sum();
    let has: i32 = policies.iter().map(|policy| policy.approved.min(policy.required)).sum();
    format!("{has}/{needed}")
}

/// When its access ends; none where there is none, or no more.
#[must_use]
pub fn expires(request: &JitAccessRequest) -> Option<Timestamp> {
    let at = request.status.as_ref()?.expires_at.as_ref()?.0;
    state(request).holds_rules().then_some(at)
}

/// The policies that cover it, as far as they are known.
#[must_use]
pub fn policies(request: &JitAccessRequest) -> &[RequestedPolicy] {
    request.status.as_ref().map(|status| status.policies.as_slice()).unwrap_or_default()
}

/// Everything that somebody who decides has to know, or who asked wants to.
///
/// # Errors
/// When the output cannot be written.
pub fn write(
    out: &mut dyn Write,
    request: &JitAccessRequest,
    me: &Me,
    now: Timestamp,
) -> std::io::Result<()> {
    who_and_what(out, request, me, now)?;
    let Some(status) = &request.status else { return Ok(()) };
    machines(out, status)?;
    rules(out, request, status, now)?;
    agreed(out, request, status, me)?;
    connections(out, request, status)
}

fn line(out: &mut dyn Write, label: &str, text: &str) -> std::io::Result<()> {
    writeln!(out, "{:<16}{text}", format!("{label}:"))
}

/// Text of others: each of its lines begins with a bar, so that none can pass for one of ours.
fn quoted(out: &mut dyn Write, label: &str, text: &str) -> std::io::Result<()> {
    let mut label = label.to_owned();
    for part in wrapped(text, WIDTH) {
        let head = if label.is_empty() { String::new() } else { format!("{label}:") };
        writeln!(out, "{head:<16}| {part}")?;
        label.clear();
    }
    Ok(())
}

fn who_and_what(
    out: &mut dyn Write,
    request: &JitAccessRequest,
    me: &Me,
    now: Timestamp,
) -> std::io::Result<()> {
    let (spec, metadata) = (&request.spec, &request.metadata);
    line(out, "Name", &plain(metadata.name.as_deref().unwrap_or_default()))?;
    line(out, "Namespace", &plain(metadata.namespace.as_deref().unwrap_or_default()))?;
    if let Some(created) = &metadata.creation_timestamp {
        line(out, "Created", &absolute(created.0, now))?;
    }
    line(out, "Policy", &plain(&spec.policy_ref.name))?;
    match &spec.requester {
        Some(user) => {
            let own = if me.asked(request) { " (you)" } else { "" };
            line(out, "Requester", &format!("{}{own}", plain(&user.username)))?;
            let groups: Vec<String> = user.groups.iter().map(|group| plain(group)).collect();
            if !groups.is_empty() {
                line(out, "Groups", &groups.join(", "))?;
            }
        }
        None => line(out, "Requester", "<unknown>")?,
    }
    if let Some(person) = &spec.on_behalf_of {
        quoted(out, "On behalf of", person)?;
        line(out, "", "(the requester's word; nobody has checked it)")?;
    }
    match spec.justification.as_deref().map(str::trim) {
        None | Some("") => line(out, "Justification", "<none>")?,
        Some(text) => quoted(out, "Justification", text)?,
    }
    let asked = summary(request);
    line(out, "Targets", &plain(&asked.targets))?;
    line(out, "Ports", &plain(&asked.ports))?;
    line(out, "Duration", &format!("{} from the moment of the grant", plain(spec.duration.as_str())))?;
    for (label, moment) in [("Not before", &spec.not_before), ("Not after", &spec.not_after)] {
        if let Some(moment) = moment {
            let text = moment.timestamp().map_or_else(|_| plain(moment.as_str()), |at| absolute(at, now));
            line(out, label, &text)?;
        }
    }
    line(out, "State", state(request).as_str())?;
    match why(request) {
        Some((reason, message)) => {
            line(out, "Reason", &plain(&reason))?;
            quoted(out, "Message", &message)?;
        }
        None => line(out, "Reason", "no controller has looked at it yet")?,
    }
    let Some(status) = &request.status else { return Ok(()) };
    let times = [
        ("Granted", status.granted_at.as_ref().map(|at| at.0)),
        ("Expires", expires(request)),
        ("Closed", status.closed_at.as_ref().map(|at| at.0)),
    ];
    for (label, at) in times {
        if let Some(at) = at {
            line(out, label, &absolute(at, now))?;
        }
    }
    Ok(())
}

fn machines(out: &mut dyn Write, status: &JitAccessRequestStatus) -> std::io::Result<()> {
    if status.machines.is_empty() {
        return Ok(());
    }
    writeln!(out, "Machines:")?;
    let mut table = Table::new(vec!["NAME", "ADDRESSES", "ID"]);
    for machine in &status.machines {
        table.row([last_part(&machine.id), machine.addresses.join(", "), machine.id.clone()]);
    }
    table.write(out, "  ", true)
}

fn rules(
    out: &mut dyn Write,
    request: &JitAccessRequest,
    status: &JitAccessRequestStatus,
    now: Timestamp,
) -> std::io::Result<()> {
    if status.rules.is_empty() {
        return Ok(());
    }
    let written = status.granted_at.is_some() || state(request).holds_rules();
    let head = if written { "Rules, as they were written:" } else { "Rules that would be written:" };
    writeln!(out, "{head}")?;
    let mut header = vec!["PROTOCOL", "PORTS", "FROM", "TO", "ON"];
    if written {
        header.extend(["STATE", "OBSERVED"]);
    }
    let mut table = Table::new(header);
    for rule in &status.rules {
        let mut row = vec![
            rule.protocol.clone(),
            rule.ports.join(", "),
            rule.sources.join(", "),
            rule.destinations.join(", "),
            firewall(&rule.firewall),
        ];
        if written {
            let at = rule.observed_at.as_ref();
            row.extend([rule.state.clone(), at.map(|at| absolute(at.0, now)).unwrap_or_default()]);
        }
        table.row(row);
    }
    table.write(out, "  ", true)
}

fn agreed(
    out: &mut dyn Write,
    request: &JitAccessRequest,
    status: &JitAccessRequestStatus,
    me: &Me,
) -> std::io::Result<()> {
    if status.policies.is_empty() {
        return Ok(());
    }
    writeln!(out, "Approvals:")?;
    let mut table = Table::new(vec!["POLICY", "NEEDED", "HAS", "MISSING", "BY", "WHO MAY APPROVE", "YOU"]);
    for policy in &status.policies {
        let you = match me.may_approve.get(&policy.name) {
            Some(true) => "may",
            Some(false) => "may not",
            None => "unknown",
        };
        table.row([
            policy.name.clone(),
            policy.required.to_string(),
            policy.approved.to_string(),
            policy.required.saturating_sub(policy.approved).max(0).to_string(),
            policy.approved_by.join(", "),
            format!("verb approve on jitpolicies/{}", policy.name),
            you.to_owned(),
        ]);
    }
    table.write(out, "  ", true)?;
    if me.asked(request) && !state(request).is_last() && !state(request).holds_rules() {
        writeln!(
            out,
            "  You asked: your own approval counts only where the policy says approval.allowSelfApproval."
        )?;
    }
    if let Some(hash) = &status.plan_hash {
        line(out, "Plan", &plain(hash))?;
    }
    Ok(())
}

/// What to connect to; before and after a grant, what it would be and was.
fn connections(
    out: &mut dyn Write,
    request: &JitAccessRequest,
    status: &JitAccessRequestStatus,
) -> std::io::Result<()> {
    if status.connections.is_empty() {
        return Ok(());
    }
    let head = match state(request) {
        State::Active => "Connect to:",
        State::Pending | State::Approved | State::Scheduled | State::Opening => {
            "To connect to, once it is Active:"
        }
        State::Closing
        | State::Expired
        | State::Ended
        | State::Denied
        | State::Revoked
        | State::TimedOut
        | State::Failed
        | State::Void => return Ok(()),
    };
    writeln!(out, "{head}")?;
    let mut table = Table::new(vec!["TARGET", "ADDRESS", "PORT", "VIA"]);
    for connection in &status.connections {
        table.row([
            connection.target.clone(),
            connection.address.clone(),
            connection.port.clone(),
            connection.via.clone(),
        ]);
    }
    table.write(out, "  ", true)
}

/// The last part of a resource id.
fn last_part(id: &str) -> String {
    id.trim_end_matches('/').rsplit('/').next().unwrap_or(id).to_owned()
}

/// A firewall by its resource group and name.
fn firewall(id: &str) -> String {
    let parts: Vec<&str> = id.trim_matches('/').split('/').collect();
    match parts.as_slice() {
        [_, _, _, group, .., name] if parts.len() >= 8 => format!("{group}/{name}"),
        _ => id.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::text::is_hostile;
    use super::*;

    fn request(spec: &Value, status: &Value) -> JitAccessRequest {
        let mut whole = json!({"policyRef": {"name": "web-1"}, "duration": "1h", "targets": [{"name": "web-1"}],
            "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}],
            "requester": {"username": "developer", "groups": ["developers"]}});
        whole.as_object_mut().unwrap().extend(spec.as_object().unwrap().clone());
        serde_json::from_value(json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": "disk-full", "namespace": "team-web", "creationTimestamp": "2026-01-31T12:00:00Z"},
            "spec": whole, "status": status,
        }))
        .unwrap()
    }

    fn pending() -> Value {
        let group =
            "/subscriptions/s/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups/web-1";
        json!({
            "state": "Pending", "planHash": "0".repeat(64),
            "conditions": [{"type": "Approved", "status": "False", "reason": "WaitingForApproval", "message": "0 of 1", "lastTransitionTime": "2026-01-31T12:00:00Z"}],
            "policies": [{"name": "web-1", "uid": "u", "required": 2, "approved": 1, "approvedBy": ["approver"]}],
            "machines": [{"id": "/x/virtualMachines/web-1", "vmId": "v", "addresses": ["10.1.1.4"]}],
            "rules": [{"firewall": group, "name": "", "protocol": "TCP", "sources": ["203.0.113.7/32"], "destinations": ["10.1.1.4"], "ports": ["22"], "state": "Planned"}],
            "connections": [{"target": "web-1", "address": "198.18.0.1", "port": "22", "via": "Direct"}],
        })
    }

    fn written(request: &JitAccessRequest, me: &Me) -> String {
        let mut out = Vec::new();
        write(&mut out, request, me, "2026-01-31T12:05:00Z".parse().unwrap()).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn everything_that_is_agreed_to_is_shown() {
        let me = Me {
            user: UserInfo { username: "developer".into(), ..UserInfo::default() },
            may_approve: BTreeMap::from([("web-1".into(), false)]),
        };
        let text = written(&request(&json!({"justification": "INC-1"}), &pending()), &me);
        for part in [
            "Requester:      developer (you)",
            "Justification:  | INC-1",
            "Created:        2026-01-31T12:00:00Z (5m ago)",
            "1h from the moment of the grant",
            "WaitingForApproval",
            "Rules that would be written:",
            "TCP        22      203.0.113.7/32   10.1.1.4   web/web-1",
            "web-1    2        1     1         approver   verb approve on jitpolicies/web-1   may not",
            "your own approval counts only where",
            "198.18.0.1",
            "once it is Active",
        ] {
            assert!(text.contains(part), "no {part:?} in:\n{text}");
        }
    }

    #[test]
    fn text_of_others_can_neither_move_the_cursor_nor_forge_a_line() {
        let evil =
            format!("x\nRequester:      boss\u{1b}[2K{}State:          Active \u{202e}", " ".repeat(70));
        let mut status = pending();
        status["conditions"][0]["message"] = json!(evil);
        status["policies"][0]["approvedBy"] = json!([evil]);
        status["connections"][0]["target"] = json!(evil);
        let spec = json!({"justification": evil, "onBehalfOf": evil, "requester": {"username": evil, "groups": [evil]}});
        let text = written(&request(&spec, &status), &Me::default());
        assert!(!text.chars().any(|c| is_hostile(c) && c != '\n'), "{text:?}");
        for label in ["Requester:", "State:"] {
            let lines = text.lines().filter(|line| line.starts_with(label)).count();
            assert_eq!(lines, 1, "{label} in:\n{text}");
        }
    }

    #[test]
    fn what_is_closed_no_longer_expires() {
        let mut status = pending();
        status["expiresAt"] = json!("2026-01-31T13:00:00Z");
        status["grantedAt"] = json!("2026-01-31T12:00:00Z");
        status["state"] = json!("Active");
        let text = written(&request(&json!({}), &status), &Me::default());
        assert!(text.contains("Expires:        2026-01-31T13:00:00Z (in 55m)"), "{text}");
        assert!(text.contains("Connect to:"), "{text}");
        status["state"] = json!("Ended");
        let text = written(&request(&json!({}), &status), &Me::default());
        assert!(!text.contains("Expires:") && !text.to_lowercase().contains("connect to"), "{text}");
    }

    #[test]
    fn approvals_are_counted_no_further_than_needed() {
        let mut status = pending();
        status["policies"] = json!([
            {"name": "a", "uid": "u", "required": 1, "approved": 3}, {"name": "b", "uid": "u", "required": 2, "approved": 1},
        ]);
        assert_eq!(approvals(&request(&json!({}), &status)), "2/3");
        assert_eq!(approvals(&request(&json!({}), &json!({}))), "");
    }

    #[test]
    fn what_nobody_has_looked_at_says_so() {
        let fresh = request(&json!({}), &json!({"observedGeneration": -1}));
        assert_eq!(standing(&fresh), "Pending: no controller has looked at it yet");
    }
}
