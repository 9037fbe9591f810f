//! The record of a round's writes: what is intended, before it is sent, and what became of it.

use std::time::Duration;

use jiff::Timestamp;
use tokio::time::Instant;
use tracing::Span;

use super::round::Round;
use crate::plan::desired::Drift;
use crate::plan::model::{Access, Peer, Rule, RuleProtocol};
use crate::plan::names::{self, Mark, parse_name};
use crate::providers::{CloudError, CloudErrorKind, Written};
use crate::telemetry::audit::record::{self, Cause, Content, Ended, Operation, Outcome, Text, Write};
use crate::telemetry::audit::{Event, Progress, Receipt};
use crate::telemetry::{CloudOutcome, traces};

/// How long the record of an open may take to leave the program.
const RECORD_PATIENCE: Duration = Duration::from_secs(1);
const RECORD_LOOK: Duration = Duration::from_millis(2);

/// A write that was recorded as intended.
pub(super) struct Intent {
    number: u64,
    operation: Operation,
    rule: String,
    pub(super) receipt: Receipt,
    /// In the trace of the request or policy that the rule is of; it ends with this.
    pub(super) span: Span,
}

impl Round<'_> {
    pub(super) fn mark(&self, name: &str) -> Option<Mark> {
        parse_name(&self.wanted.cluster, name)
    }

    pub(super) fn intend(
        &self,
        name: &str,
        operation: Operation,
        cause: Cause,
        content: Option<&Rule>,
    ) -> Intent {
        let audit = &self.inner.audit;
        let mark = self.mark(name);
        let number = audit.next_write();
        let receipt = audit.intend(Event::write(Write {
            cause,
            content: content.map(self::content),
            deadline: deadline(mark.as_ref()),
            firewall: self.gate.firewall.as_str().into(),
            number,
            operation,
            owner: mark.as_ref().map(owner).unwrap_or_default().into(),
            rule: name.into(),
        }));
        let owner = mark.as_ref().map(owner).unwrap_or_default();
        let span = tracing::debug_span!(
            "write a rule",
            otel.name = operation.label(),
            otel.status_code = tracing::field::Empty,
            otel.status_description = tracing::field::Empty,
            firewall = self.gate.firewall.as_str(),
            rule = name,
            audit.write = number,
            object.uid = self.uid(owner),
        );
        // A policy lives for years, and no trace may: its locks are in that of the round.
        let request = self.wanted.grants.iter().find(|grant| names::uid12(&grant.request_uid) == owner);
        let span = request.map_or(span.clone(), |grant| traces::of_object(&grant.request_uid, span));
        Intent { number, operation, rule: name.to_owned(), receipt, span }
    }

    /// The whole UID of the request or policy that a rule's name has the beginning of.
    fn uid(&self, owner: &str) -> Option<&str> {
        let requests = self.wanted.grants.iter().map(|grant| &grant.request_uid);
        let policies = self.lockers.keys();
        requests.chain(policies).map(String::as_str).find(|uid| names::uid12(uid) == owner)
    }

    pub(super) fn count(&self, intent: &Intent, result: &Result<Written, CloudError>) {
        let (outcome, ended) = match result {
            Ok(_) => (CloudOutcome::Succeeded, Ended::Succeeded),
            Err(error) if matches!(error.kind, CloudErrorKind::Ambiguous | CloudErrorKind::Unanswered) => {
                (CloudOutcome::Ambiguous, Ended::Ambiguous)
            }
            Err(_) => (CloudOutcome::Failed, Ended::Failed),
        };
        self.inner.metrics.cloud_write(intent.operation.label(), outcome);
        if let Err(error) = result {
            intent.span.record("otel.status_code", "ERROR");
            intent.span.record("otel.status_description", &error.message);
        }
        let id = match result {
            Ok(written) => written.request_id.as_deref(),
            Err(error) => error.request_id.as_deref(),
        };
        self.record_end(intent, ended, id, result.as_ref().err());
    }

    /// Whether the record of what is intended has left the program. Not waited for where something is to be closed.
    pub(super) async fn handed_over(&self, receipt: &Receipt) -> bool {
        let until = Instant::now() + RECORD_PATIENCE;
        loop {
            match receipt.progress() {
                Progress::Written => return true,
                Progress::Lost => return false,
                Progress::Waiting => {
                    if self.close_is_due() || Instant::now() >= until {
                        return false;
                    }
                    tokio::time::sleep(RECORD_LOOK).await;
                }
            }
        }
    }

    pub(super) fn record_end(
        &self,
        intent: &Intent,
        result: Ended,
        id: Option<&str>,
        error: Option<&CloudError>,
    ) {
        self.inner.audit.record(Event::outcome(Outcome {
            code: error.and_then(|error| Text::some(error.code.as_deref())),
            failure: error.map(|error| error.kind.reason().as_str().into()),
            firewall: self.gate.firewall.as_str().into(),
            number: intent.number,
            operation: intent.operation,
            request_id: Text::some(id),
            result,
            rule: intent.rule.as_str().into(),
        }));
    }

    pub(super) fn record_drift(&self, drift: &Drift) {
        self.inner.audit.record(Event::drift(record::Drift {
            firewall: self.gate.firewall.as_str().into(),
            policy_uid: drift.policy_uid.as_str().into(),
            removed: drift.removed,
            rule: drift.rule.as_str().into(),
        }));
    }
}

pub(super) fn deadline(mark: Option<&Mark>) -> Option<Timestamp> {
    match mark {
        Some(Mark::Allow { deadline, .. }) => *deadline,
        Some(Mark::Deny { .. } | Mark::Exempt { .. }) | None => None,
    }
}

pub(super) fn owner(mark: &Mark) -> &str {
    match mark {
        Mark::Allow { owner, .. } | Mark::Deny { owner, .. } | Mark::Exempt { owner, .. } => owner,
    }
}

fn content(rule: &Rule) -> Content {
    let peers = |peers: &[Peer]| Text::all(peers.iter().map(Peer::to_string));
    Content {
        access: match rule.access {
            Access::Allow => "Allow".into(),
            Access::Deny => "Deny".into(),
        },
        comes_in_at: rule.translation.map(|from| format!("{}:{}", from.address, from.port).as_str().into()),
        destinations: peers(&rule.destinations),
        ports: Text::all(rule.ports.iter().map(ToString::to_string)),
        priority: rule.priority,
        protocol: match &rule.protocol {
            RuleProtocol::Transport(protocol) => protocol.to_string().as_str().into(),
            RuleProtocol::Other(name) => name.as_str().into(),
        },
        sources: peers(&rule.sources),
    }
}
