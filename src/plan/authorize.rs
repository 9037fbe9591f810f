//! Whether a request is within its policies' terms, and which rules it would get.
//!
//! A request is judged under the policy that it names and under every other policy of its namespace that
//! locks a port that it asks for. The first "no" is the answer; what is merely not known yet makes it wait.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use super::model::{FirewallId, Machine, Observed, Translation, Unsupported};
use super::people::Pipelines;
use super::terms::{Ask, InvalidSpec, Patience, Terms};
use crate::api::values::{ArmId, PortRange, Protocol, Span};
use crate::api::{
    Connection, JitAccessRequest, JitAccessRequestSpec, JitAccessRequestStatus, Mode, PinnedMachine, Reason,
    RequestedPolicy,
};

mod cover;
mod dnat;
mod grant;
mod paper;
mod rules;
mod targets;

pub use grant::pin;

/// The most machines that one request may name.
pub const MAX_MACHINES: usize = 64;
/// The most rules that one request may have.
pub const MAX_RULES: usize = 128;
/// How long the machines of a live grant may go unread. Then it ends: its addresses may be another machine's by now.
pub const UNREAD_BOUND: Duration = Duration::from_secs(1800);

/// How long a grant must last, beyond the lead, where a firewall is on the way whose writes take minutes.
pub const WORTH_OPENING: Duration = Duration::from_secs(600);

/// A policy, as requests are judged by it.
#[derive(Clone, Debug)]
pub struct PolicyView {
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// Whether it is being deleted.
    pub deleting: bool,
    /// What it says, or what is wrong with it.
    pub terms: Result<Terms, InvalidSpec>,
    /// Why it may not grant anything, whatever it says: tenancy, exemptions, overlap with others.
    pub barred: Option<(Reason, String)>,
    /// Whether its status says that it has locked machines.
    pub has_locked: bool,
    /// The machines of each entry, with why one cannot be locked: as last read, where the policy can no longer be
    /// understood. None: not read yet.
    pub machines: Option<Arc<BTreeMap<String, Vec<Resolved>>>>,
    /// The same as last read, whatever the policy said then.
    pub latest: Option<Arc<BTreeMap<String, Vec<Resolved>>>>,
    /// When they were last read; when reading began, where they never were.
    pub read_at: Timestamp,
    /// What is known of the firewalls on the way that lead packets on.
    pub firewalls: Arc<BTreeMap<FirewallId, FirewallView>>,
}

/// What is known of a firewall that leads packets on.
#[derive(Clone, Debug, Default)]
pub struct FirewallView {
    /// As it was last read; none: not yet.
    pub observed: Option<Arc<Observed>>,
    /// Why it could not be read.
    pub problem: Option<(Reason, String)>,
    /// What rules of grants lead on there, written or about to be: where packets come in, and where they go.
    pub mappings: Vec<PortMapping>,
    /// Names of rules that stand there and are ours.
    pub ours: BTreeSet<String>,
}

/// What a rule of a grant leads on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// Where packets come in.
    pub from: Translation,
    /// The machine's address.
    pub to: IpAddr,
    /// Its ports.
    pub ports: Vec<PortRange>,
    /// The rule's name.
    pub name: String,
    /// Whether it is to be removed.
    pub closing: bool,
}

/// A machine that a policy's entry selects.
pub type Resolved = (ArmId, Result<Machine, Unsupported>);

/// The rules that a request would get, and on what they rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantPlan {
    /// The policies that cover it, the named one first.
    pub policies: Vec<RequestedPolicy>,
    /// The machines, by id.
    pub machines: Vec<PinnedMachine>,
    /// The rules, sorted.
    pub rules: Vec<PlannedRule>,
    /// What to type to connect.
    pub connections: Vec<Connection>,
    /// How long: what is asked for, or what the policies allow of it where it is granted already.
    pub duration: Duration,
    /// Which policy allows no more, where that is less than what was asked for.
    pub shortened_by: Option<String>,
    /// SHA-256 over all that an approval is an approval of, in hexadecimal.
    pub hash: String,
    /// Whether connections that were made before go on when it is closed.
    pub sessions_go_on: bool,
    /// How long before its end its rules begin to be removed: zero where that takes seconds.
    pub lead: Duration,
    /// How long it may wait for approvals.
    pub pending_timeout: Duration,
    /// How long its approval may lie unused.
    pub use_within: Duration,
    /// UIDs of the policies under which the requester's own approval counts.
    pub self_approval: BTreeSet<String>,
    /// Live grants that one requester may hold under each policy, and altogether, by policy UID.
    pub limits: BTreeMap<String, (usize, usize)>,
}

/// A rule before it has a name, a priority and a deadline.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PlannedRule {
    /// Where.
    pub firewall: FirewallId,
    /// Protocol.
    pub protocol: Protocol,
    /// Who may connect; one family.
    pub sources: Vec<IpNet>,
    /// Addresses of the machines; the same family.
    pub destinations: Vec<IpAddr>,
    /// Ports.
    pub ports: Vec<PortRange>,
    /// Where packets come in, on a firewall that leads them on.
    pub translation: Option<Translation>,
}

/// What is to be thought of a request now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Judgement {
    /// It is within the terms.
    Allowed(Box<GrantPlan>),
    /// It is not, and never will be: requests are immutable and a changed policy wants a new request.
    Refused(Reason, String),
    /// It could not work, for a reason that lies in the cloud and not in the policy.
    Impossible(Reason, String),
    /// Something that it stands on is missing or holds it: it waits. A live grant ends.
    Held(Reason, String),
    /// The world is not known well enough. A live grant goes on.
    Unknown(Reason, String),
}

/// Judges a request.
#[must_use]
pub fn judge(
    request: &JitAccessRequest,
    policies: &[PolicyView],
    pipelines: &Pipelines,
    now: Timestamp,
) -> Judgement {
    match weigh(request, policies, pipelines, now) {
        Ok(plan) => Judgement::Allowed(Box::new(plan)),
        // What can be told all the same ends a live grant.
        Err(unknown @ Judgement::Unknown(..)) => {
            paper::judge(request, policies, now).err().unwrap_or(unknown)
        }
        Err(no) => no,
    }
}

/// How long a request may wait by the policy that it names, whether or not that can grant anything now. One that cannot
/// be understood says nothing of times either, so it ends nothing.
#[must_use]
pub fn patience(request: &JitAccessRequest, policies: &[PolicyView]) -> Patience {
    let name = &request.spec.policy_ref.name;
    match policies.iter().find(|policy| policy.name == *name).map(|policy| &policy.terms) {
        Some(Err(_)) => Patience { pending: Duration::MAX, unused: Duration::MAX },
        named => Patience::of(named.and_then(|terms| terms.as_ref().ok())),
    }
}

fn weigh(
    request: &JitAccessRequest,
    policies: &[PolicyView],
    pipelines: &Pipelines,
    now: Timestamp,
) -> Result<GrantPlan, Judgement> {
    let spec = &request.spec;
    let ask = Ask::parse(spec).map_err(|error| Judgement::Refused(error.reason, error.to_string()))?;
    let name = &spec.policy_ref.name;
    let Some(named) = policies.iter().find(|policy| &policy.name == name) else {
        return Err(Judgement::Held(
            Reason::PolicyNotFound,
            format!(
                "spec.policyRef: there is no JitPolicy {name:?} in this namespace; the request waits for it"
            ),
        ));
    };
    let terms = usable(named)?;
    requester(spec, &ask, terms, pipelines, now)?;
    // A live grant is judged by its own machines: one that joined the scope since, or cannot be read, is none of
    // its business.
    let status = request.status.as_ref().filter(|status| status.granted_at.is_some());
    if let Some(status) = status {
        still_there(status, policies)?;
        still_known(status, named, policies, now)?;
    }
    let machines = targets::machines(spec, named, status.map(|status| status.machines.as_slice()))?;
    let mut covering: Vec<(&PolicyView, &Terms)> = vec![(named, terms)];
    for policy in policies.iter().filter(|policy| policy.uid != named.uid) {
        if policy.machines.is_none() && !policy.deleting && cover::may_lock(policy, &machines, &ask) {
            return Err(Judgement::Unknown(
                Reason::Progressing,
                format!(
                    "the machines of JitPolicy {} are not known yet, and it may cover what is asked for",
                    policy.name
                ),
            ));
        }
        if cover::locks_any(policy, &machines, &ask) {
            covering.push((policy, usable(policy)?));
        }
    }
    covering[1..].sort_by(|a, b| a.0.name.cmp(&b.0.name));
    let mut less = Vec::new();
    for (policy, terms) in &covering {
        let (named, granted) = (policy.uid == named.uid, status.is_some());
        less.extend(cover::within(policy, terms, (named, granted), &machines, &ask)?);
        justification(spec, policy, terms)?;
        sources(&ask, policy, terms)?;
    }
    let mut plan = grant::plan(request, &ask, &covering, &machines)?;
    if status.is_none() {
        worth_it(&ask, &plan, now)?;
    }
    if let Some(least) = less.into_iter().min_by_key(|less| less.duration) {
        plan.duration = least.duration;
        plan.shortened_by = Some(least.why);
    }
    Ok(plan)
}

/// A firewall whose writes take minutes would hardly have opened what it has to begin to close.
fn worth_it(ask: &Ask, plan: &GrantPlan, now: Timestamp) -> Result<(), Judgement> {
    if plan.lead.is_zero() {
        return Ok(());
    }
    let begin = ask.not_before.map_or(now, |start| start.max(now));
    let left = ask
        .not_after
        .map_or(Duration::MAX, |end| Duration::try_from(end.duration_since(begin)).unwrap_or_default());
    let least = plan.lead + WORTH_OPENING;
    if ask.duration.min(left) >= least {
        return Ok(());
    }
    Err(Judgement::Refused(
        Reason::DurationTooShort,
        format!(
            "an Azure Firewall is on the way, whose rules take minutes to write and begin to be removed {} before the end: \
             at least {} must be left of spec.duration, and until spec.notAfter",
            Span::of(plan.lead),
            Span::of(least)
        ),
    ))
}

/// A grant is of policies by their UID: one that was deleted ends it, also where another has its name by now.
fn still_there(status: &JitAccessRequestStatus, policies: &[PolicyView]) -> Result<(), Judgement> {
    let there = |uid: &str| policies.iter().any(|policy| policy.uid == uid && !policy.deleting);
    match status.policies.iter().find(|policy| !there(&policy.uid)) {
        None => Ok(()),
        Some(gone) => Err(Judgement::Held(
            Reason::PolicyDeleted,
            format!("JitPolicy {} of the grant was deleted (its uid was {})", gone.name, gone.uid),
        )),
    }
}

/// A grant whose machines nobody has seen for long is not known to be one of theirs.
fn still_known(
    status: &JitAccessRequestStatus,
    named: &PolicyView,
    policies: &[PolicyView],
    now: Timestamp,
) -> Result<(), Judgement> {
    let of_grant = |policy: &&PolicyView| {
        policy.uid == named.uid || status.policies.iter().any(|known| known.uid == policy.uid)
    };
    let unread = |policy: &&PolicyView| {
        Duration::try_from(now.duration_since(policy.read_at)).is_ok_and(|age| age > UNREAD_BOUND)
    };
    match policies.iter().filter(of_grant).find(unread) {
        None => Ok(()),
        Some(policy) => Err(Judgement::Impossible(
            Reason::CloudUnavailable,
            format!(
                "the machines of JitPolicy {} could not be read for {} and may have changed: ask again when they can",
                policy.name,
                Span::of(UNREAD_BOUND)
            ),
        )),
    }
}

/// The terms of a policy that may grant something now.
fn usable(policy: &PolicyView) -> Result<&Terms, Judgement> {
    let held = |reason, message: String| Err(Judgement::Held(reason, message));
    let name = &policy.name;
    if policy.deleting {
        return held(Reason::PolicyDeleted, format!("JitPolicy {name} is being deleted"));
    }
    let terms = match &policy.terms {
        Ok(terms) => terms,
        Err(error) => return held(error.reason, format!("JitPolicy {name}: {error}")),
    };
    match &policy.barred {
        // A trial run changes nothing, so it ends nothing either.
        Some((Reason::DryRun, message)) => return Err(Judgement::Unknown(Reason::DryRun, message.clone())),
        Some((reason, message)) => return held(*reason, format!("JitPolicy {name}: {message}")),
        None => {}
    }
    if terms.suspend {
        return held(Reason::Suspended, format!("JitPolicy {name} is suspended (spec.suspend)"));
    }
    if terms.mode == Mode::Audit {
        return held(
            Reason::Audit,
            format!("JitPolicy {name} is in mode Audit and grants nothing (spec.mode)"),
        );
    }
    Ok(terms)
}

fn requester(
    spec: &JitAccessRequestSpec,
    ask: &Ask,
    terms: &Terms,
    pipelines: &Pipelines,
    now: Timestamp,
) -> Result<(), Judgement> {
    let refused = |reason, message: String| Err(Judgement::Refused(reason, message));
    let Some(requester) = spec.requester.as_ref().filter(|user| !user.username.is_empty()) else {
        return refused(
            Reason::RequesterNotAllowed,
            "spec.requester is missing: admission did not say who asks, so nothing can be granted".into(),
        );
    };
    let delegated = spec.on_behalf_of.is_some() || pipelines.has(&requester.username);
    let Some(horizon) = now.checked_add(terms.horizon).ok() else {
        return Ok(());
    };
    match ask.not_after {
        None if delegated => {
            return refused(
                Reason::RequesterNotAllowed,
                "spec.notAfter is required when a pipeline (a service account, or a user that the configuration names) \
                 asks or a request is on another's behalf, so that applying it again later opens nothing"
                    .into(),
            );
        }
        Some(end) if delegated && end > horizon => {
            return refused(
                Reason::TooLarge,
                format!("spec.notAfter may lie at most {} ahead", Span::of(terms.horizon)),
            );
        }
        _ => {}
    }
    if ask.not_before.is_some_and(|start| start > horizon) {
        return refused(
            Reason::TooLarge,
            format!("spec.notBefore may lie at most {} ahead", Span::of(terms.horizon)),
        );
    }
    Ok(())
}

fn justification(spec: &JitAccessRequestSpec, policy: &PolicyView, terms: &Terms) -> Result<(), Judgement> {
    let text = spec.justification.as_deref().unwrap_or_default().trim();
    if text.is_empty() {
        return if terms.justification_required {
            Err(Judgement::Refused(
                Reason::JustificationRequired,
                format!("spec.justification is required by JitPolicy {}", policy.name),
            ))
        } else {
            Ok(())
        };
    }
    match &terms.justification {
        Some(pattern) if !pattern.is_match(text) => Err(Judgement::Refused(
            Reason::JustificationRequired,
            format!(
                "spec.justification must match {:?}, as JitPolicy {} asks",
                pattern.as_str(),
                policy.name
            ),
        )),
        _ => Ok(()),
    }
}

fn sources(ask: &Ask, policy: &PolicyView, terms: &Terms) -> Result<(), Judgement> {
    let distinct: BTreeSet<&IpNet> = ask.ports.iter().flat_map(|port| &port.sources).collect();
    if distinct.len() > terms.sources_per_request {
        return Err(Judgement::Refused(
            Reason::TooLarge,
            format!(
                "{} sources are named; JitPolicy {} allows {} in one request (spec.limits.sourcesPerRequest)",
                distinct.len(),
                policy.name,
                terms.sources_per_request
            ),
        ));
    }
    Ok(())
}
