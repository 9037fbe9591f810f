//! What the audit trail says of requests.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::ResourceExt;

use crate::api::values::Protocol;
use crate::api::{
    ConditionType, JitAccessRequest, JitAccessRequestStatus, JitAccessReview, Reason, RequestPort,
    RequestTarget, State, Verdict, find_condition,
};
use crate::controllers::Context;
use crate::plan::lifecycle::{Transition, state};
use crate::telemetry::audit::record::{
    Approver, Asked, AskedPort, Grant, Machine, Policy, Request, Review, Rule, Text, User,
};
use crate::telemetry::audit::{Event, Kind};

/// Tells what was not told of a request as it is seen now.
pub(super) fn sight(context: &Context, request: &JitAccessRequest) {
    for kind in context.told.sight(request) {
        let (reason, message) = match kind {
            Kind::Requested => ("", ""),
            // Each chain of records stands for itself.
            Kind::Resumed => ("", "was granted before this chain of records began"),
            _ => (reason(request), "told late: it was not certain that this had been written, or told"),
        };
        context.audit.record(event(kind, request, None, reason, message));
    }
}

/// Why a request is where it is, by its conditions.
fn reason(request: &JitAccessRequest) -> &str {
    let conditions = request.status.as_ref().map_or(&[][..], |status| &status.conditions);
    let said = [ConditionType::Active, ConditionType::Denied, ConditionType::Approved]
        .into_iter()
        .find_map(|kind| find_condition(conditions, kind));
    said.map_or("", |condition| &condition.reason)
}

/// What a write of the status came to: the first sight, a move, an earlier deadline.
pub(super) fn wrote(
    context: &Context,
    before: &JitAccessRequest,
    after: &JitAccessRequest,
    transition: Option<&Transition>,
) {
    context.told.wrote(after);
    if before.status.as_ref().is_none_or(|status| status.state.is_none()) {
        context.audit.record(event(Kind::Requested, after, None, "", ""));
    }
    let expires = |request: &JitAccessRequest| deadline(request.status.as_ref()?);
    match transition {
        Some(Transition { from, to, reason, message }) => {
            let kind = kind(*from, *to);
            context.audit.record(event(
                kind,
                after,
                Some(*from),
                reason.as_str(),
                own_words(*reason, message),
            ));
        }
        None if expires(after) < expires(before) => {
            context.audit.record(event(Kind::Shortened, after, None, "", ""));
        }
        None => {}
    }
}

/// The message of a move, where it is all ours. What the cloud answered is not taken over: its words may hold
/// anything, and the reason, with the code in the record of the write, says as much.
fn own_words(reason: Reason, message: &str) -> &str {
    let quotes = matches!(
        reason,
        Reason::NotPermitted
            | Reason::Unauthenticated
            | Reason::CloudUnavailable
            | Reason::RefusedByCloud
            | Reason::RefusedByPolicy
            | Reason::OpenTimedOut
            | Reason::ScopeLocked
            | Reason::FirewallFull
            | Reason::NoFirewall
            | Reason::MachineChanged
            | Reason::VirtualMachineNotFound
    );
    if quotes { reason.description().trim() } else { message }
}

/// The object is gone. Where its rules may stand, that is told: they are closed without it.
pub(in crate::controllers) fn gone(context: &Context, request: &JitAccessRequest) {
    if state(request).holds_rules() {
        let message = "the object is gone; its rules are closed all the same";
        context.audit.record(event(Kind::Vanished, request, None, "", message));
    }
    context.told.forget(request);
}

const fn kind(from: State, to: State) -> Kind {
    match (from, to) {
        (_, State::Pending) => Kind::Returned,
        (_, State::Approved) => Kind::Approved,
        (_, State::Scheduled) => Kind::Scheduled,
        (State::Opening | State::Active, State::Opening) => Kind::Shortened,
        (_, State::Opening) => Kind::Granted,
        (_, State::Active) => Kind::Opened,
        (_, State::Closing) => Kind::Ending,
        (State::Closing, _) => Kind::Closed,
        (_, State::Ended) => Kind::Withdrawn,
        (_, State::Void) => Kind::Voided,
        (_, State::Expired | State::Denied | State::Revoked | State::TimedOut | State::Failed) => {
            Kind::Refused
        }
    }
}

/// A review was answered.
pub(in crate::controllers) fn reviewed(context: &Context, review: &JitAccessReview) {
    let spec = &review.spec;
    let status = review.status.clone().unwrap_or_default();
    let user = |user: &crate::api::UserInfo| User::new(&user.username, user.uid.as_deref(), &user.groups);
    let verdict = match spec.verdict {
        Verdict::Approved => "Approved",
        Verdict::Denied => "Denied",
        Verdict::Revoked => "Revoked",
        Verdict::Ended => "Ended",
    };
    context.audit.record(Event::review(Review {
        comment: Text::some(spec.comment.as_deref()),
        counted: status.counted.unwrap_or_default(),
        name: review.name_any().as_str().into(),
        namespace: review.namespace().unwrap_or_default().as_str().into(),
        plan_hash: Text::some(spec.plan_hash.as_deref()),
        policy: spec.policy_ref.name.as_str().into(),
        reason: status.reason.unwrap_or_default().as_str().into(),
        request: spec.request_ref.name.as_str().into(),
        request_uid: spec.request_ref.uid.as_str().into(),
        reviewer: spec.reviewer.as_ref().map(user),
        uid: review.uid().unwrap_or_default().as_str().into(),
        verdict: verdict.into(),
    }));
}

fn event(kind: Kind, request: &JitAccessRequest, from: Option<State>, reason: &str, message: &str) -> Event {
    let spec = &request.spec;
    let user = |user: &crate::api::UserInfo| User::new(&user.username, user.uid.as_deref(), &user.groups);
    let request = Request {
        asked: Asked {
            all_targets: spec.all_targets,
            duration: spec.duration.as_str().into(),
            justification: Text::some(spec.justification.as_deref()),
            not_after: spec.not_after.as_ref().map(|at| at.as_str().into()),
            not_before: spec.not_before.as_ref().map(|at| at.as_str().into()),
            policy: spec.policy_ref.name.as_str().into(),
            ports: spec.ports.iter().map(port).collect(),
            targets: spec.targets.iter().map(target).collect(),
        },
        created_at: request.metadata.creation_timestamp.as_ref().map(|at| at.0),
        from: from.map(|from| from.as_str().into()),
        grant: request.status.as_ref().filter(|status| status.plan_hash.is_some()).map(grant),
        message: message.into(),
        name: request.name_any().as_str().into(),
        namespace: request.namespace().unwrap_or_default().as_str().into(),
        on_behalf_of: Text::some(spec.on_behalf_of.as_deref()),
        reason: reason.into(),
        requester: spec.requester.as_ref().map(user),
        to: state(request).as_str().into(),
        uid: request.uid().unwrap_or_default().as_str().into(),
    };
    Event::request(kind, request)
}

fn target(target: &RequestTarget) -> Text {
    match (&target.machine, &target.id) {
        (Some(machine), _) => format!("{}/{machine}", target.name).as_str().into(),
        (None, Some(id)) => format!("{}/{}", target.name, id.as_str()).as_str().into(),
        (None, None) => target.name.as_str().into(),
    }
}

fn port(port: &RequestPort) -> AskedPort {
    let last = port.end_port.map(|last| format!("-{last}")).unwrap_or_default();
    AskedPort {
        port: format!("{}{last}", port.port).as_str().into(),
        protocol: port.protocol.unwrap_or(Protocol::Tcp).to_string().as_str().into(),
        sources: Text::all(port.sources.iter().map(|source| source.cidr.as_str())),
    }
}

fn deadline(status: &JitAccessRequestStatus) -> Option<Timestamp> {
    at(status.expires_at.as_ref())
}

fn at(time: Option<&Time>) -> Option<Timestamp> {
    time.map(|time| time.0)
}

fn grant(status: &JitAccessRequestStatus) -> Grant {
    Grant {
        approvers: status
            .policies
            .iter()
            .flat_map(|policy| {
                let approver = |name: &String| Approver {
                    policy: policy.name.as_str().into(),
                    username: name.as_str().into(),
                };
                policy.approved_by.iter().map(approver)
            })
            .collect(),
        closed_at: at(status.closed_at.as_ref()),
        expires_at: deadline(status),
        granted_at: at(status.granted_at.as_ref()),
        machines: status
            .machines
            .iter()
            .map(|machine| Machine {
                addresses: Text::all(&machine.addresses),
                id: machine.id.as_str().into(),
                nics: Text::all(&machine.nics),
                vm_id: machine.vm_id.as_str().into(),
            })
            .collect(),
        outcome: Text::some(status.outcome.as_deref()),
        plan_hash: Text::some(status.plan_hash.as_deref()),
        policies: status
            .policies
            .iter()
            .map(|policy| Policy {
                approved: policy.approved,
                generation: policy.generation,
                name: policy.name.as_str().into(),
                required: policy.required,
                uid: policy.uid.as_str().into(),
            })
            .collect(),
        rules: status
            .rules
            .iter()
            .map(|rule| Rule {
                comes_in_at: rule
                    .translation
                    .as_ref()
                    .map(|from| format!("{}:{}", from.address, from.port).as_str().into()),
                destinations: Text::all(&rule.destinations),
                firewall: rule.firewall.as_str().into(),
                name: rule.name.as_str().into(),
                observed_at: at(rule.observed_at.as_ref()),
                ports: Text::all(&rule.ports),
                priority: rule.priority,
                protocol: rule.protocol.as_str().into(),
                sources: Text::all(&rule.sources),
                state: rule.state.as_str().into(),
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::providers::CloudErrorKind;

    #[test]
    fn what_the_cloud_answered_is_no_part_of_a_record() {
        let kinds = [
            CloudErrorKind::Retryable,
            CloudErrorKind::Ambiguous,
            CloudErrorKind::Unanswered,
            CloudErrorKind::PriorityTaken,
            CloudErrorKind::NotPermitted,
            CloudErrorKind::Unauthenticated,
            CloudErrorKind::RefusedByPolicy,
            CloudErrorKind::NotFound,
            CloudErrorKind::ScopeLocked,
            CloudErrorKind::Full,
            CloudErrorKind::Invalid,
        ];
        for reason in kinds.map(CloudErrorKind::reason).into_iter().chain([Reason::OpenTimedOut]) {
            let said = own_words(reason, "could not be opened: <html>a proxy's token");
            assert!(!said.contains("token") && said.ends_with('.'), "{reason:?}: {said}");
        }
        assert_eq!(own_words(Reason::PortNotAllowed, "port 23"), "port 23");
    }
}
