//! The record of a round's writes: what is intended, before it is sent, and what became of it.

use jiff::Timestamp;

use super::round::Round;
use crate::plan::desired::Drift;
use crate::plan::model::{Access, Peer, Rule, RuleProtocol};
use crate::plan::names::{Mark, parse_name};
use crate::plan::report;
use crate::providers::{CloudError, CloudErrorKind, Written};
use crate::telemetry::CloudOutcome;
use crate::telemetry::audit::record::{self, Cause, Content, Ended, Operation, Outcome, Text, Write};
use crate::telemetry::audit::{Event, Receipt};

/// A write that was recorded as intended.
pub(super) struct Intent {
    number: u64,
    operation: Operation,
    rule: String,
    pub(super) receipt: Receipt,
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
        Intent { number, operation, rule: name.to_owned(), receipt }
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
        let id = match result {
            Ok(written) => written.request_id.as_deref(),
            Err(error) => error.request_id.as_deref(),
        };
        self.record_end(intent, ended, id, result.as_ref().err());
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
    let peers = |peers: &[Peer]| Text::all(peers.iter().map(report::peer));
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
