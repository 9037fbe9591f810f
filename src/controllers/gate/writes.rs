//! The writes of a round, each recorded before it is sent and after it has ended.
//!
//! Recording never waits for anybody, but for one case: an allow is sent only once the record of the intent has
//! left the program, and that wait ends as soon as something is to be closed.

use std::time::Duration;

use jiff::Timestamp;

use super::lock;
use super::round::Round;
use crate::plan::desired::{Close, Drift};
use crate::plan::lifecycle::Seen;
use crate::plan::model::{Access, Peer, Rule, RuleProtocol};
use crate::plan::names::{Mark, parse_name};
use crate::providers::{CloudError, CloudErrorKind, Written};
use crate::telemetry::CloudOutcome;
use crate::telemetry::audit::record::{self, Cause, Content, Ended, Operation, Outcome, Text, Write};
use crate::telemetry::audit::{Event, Progress, Receipt};

/// An open is given up earlier than a close: it holds up others. The cloud takes 5 to 11 s for one.
const OPEN_PATIENCE: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the record of an open may take to leave the program.
const RECORD_PATIENCE: Duration = Duration::from_secs(1);
const RECORD_LOOK: Duration = Duration::from_millis(2);

/// A write that was recorded as intended.
struct Intent {
    number: u64,
    operation: Operation,
    rule: String,
    receipt: Receipt,
}

impl Round<'_> {
    pub(super) async fn close(&mut self, close: &Close) {
        if self.remove(&close.name).await {
            return;
        }
        // A lock that forbids removal does not forbid to write a deny in the rule's place.
        let locked =
            self.failed.get(&close.name).is_some_and(|error| error.kind == CloudErrorKind::ScopeLocked);
        let stands_closed = match &close.as_deny {
            Some(deny) if locked => {
                let cause = self.why_closed(&close.name);
                let intent = self.intend(&deny.name, Operation::Close, cause, Some(deny));
                self.put(intent, deny, PATIENCE).await
            }
            Some(_) => false,
            // The read shows no allow of this name: the read-back decides.
            None => locked,
        };
        if stands_closed {
            self.closed(&close.name);
        }
    }

    /// Removes an allow by its name alone.
    pub(super) async fn remove(&mut self, name: &str) -> bool {
        let cause = self.why_closed(name);
        let removed = self.delete(name, Operation::Close, cause).await;
        if removed {
            self.closed(name);
        }
        removed
    }

    fn closed(&mut self, name: &str) {
        self.sent.insert(name.to_owned());
        self.unread.insert(name.to_owned());
        self.memory.closed = true;
    }

    /// Writes a deny or an exemption.
    pub(super) async fn lock(&mut self, rule: &Rule, cause: Cause) {
        let intent = self.intend(&rule.name, Operation::Lock, cause, Some(rule));
        self.put(intent, rule, PATIENCE).await;
    }

    /// Removes a deny or an exemption.
    pub(super) async fn unlock(&mut self, name: &str) {
        self.delete(name, Operation::Unlock, Cause::Policy).await;
    }

    /// Writes an allow, if the record that it is about to be has left the program.
    pub(super) async fn open(&mut self, rule: &Rule) {
        let intent = self.intend(&rule.name, Operation::Open, Cause::Granted, Some(rule));
        if self.handed_over(&intent.receipt).await {
            self.put(intent, rule, OPEN_PATIENCE).await;
            return;
        }
        self.unrecorded.insert(rule.name.clone());
        tracing::warn!(firewall = %self.gate.firewall, rule = %rule.name, "not opened: its audit record cannot be written to standard output");
        self.record_end(&intent, Ended::NotSent, None, None);
    }

    async fn handed_over(&self, receipt: &Receipt) -> bool {
        let until = tokio::time::Instant::now() + RECORD_PATIENCE;
        loop {
            match receipt.progress() {
                Progress::Written => return true,
                Progress::Lost => return false,
                Progress::Waiting => {
                    if self.close_is_due() || tokio::time::Instant::now() >= until {
                        return false;
                    }
                    tokio::time::sleep(RECORD_LOOK).await;
                }
            }
        }
    }

    async fn put(&mut self, intent: Intent, rule: &Rule, patience: Duration) -> bool {
        let firewall = self.gate.firewall.clone();
        let result = self.firewall.put(&firewall, rule, patience).await;
        self.count(&intent, &result);
        match result {
            Ok(written) => {
                tracing::info!(%firewall, rule = %rule.name, access = ?rule.access, priority = rule.priority, request_id = written.request_id.as_deref().unwrap_or_default(), "wrote a rule");
                self.failed.remove(&rule.name);
                true
            }
            Err(error) => {
                tracing::warn!(%firewall, rule = %rule.name, %error, "failed to write a rule");
                // Rights take minutes to spread, so a refusal of the credential is tried again.
                let for_good = !error.kind.is_transient()
                    && !matches!(error.kind, CloudErrorKind::NotPermitted | CloudErrorKind::Unauthenticated);
                if rule.access == Access::Allow && for_good {
                    let seen = Seen::Refused { reason: error.kind.reason(), message: error.to_string() };
                    self.memory.refused.insert(rule.name.clone(), seen);
                }
                self.fail(&rule.name, error);
                false
            }
        }
    }

    async fn delete(&mut self, name: &str, operation: Operation, cause: Cause) -> bool {
        let firewall = self.gate.firewall.clone();
        let intent = self.intend(name, operation, cause, None);
        let result = self.firewall.delete(&firewall, name, PATIENCE).await;
        self.count(&intent, &result);
        match result {
            Ok(written) => {
                tracing::info!(%firewall, rule = %name, request_id = written.request_id.as_deref().unwrap_or_default(), "removed a rule");
                self.failed.remove(name);
                true
            }
            Err(error) => {
                tracing::warn!(%firewall, rule = %name, %error, "failed to remove a rule");
                self.fail(name, error);
                false
            }
        }
    }

    pub(super) fn fail(&mut self, rule: &str, error: CloudError) {
        let refused = matches!(error.kind, CloudErrorKind::NotPermitted | CloudErrorKind::Unauthenticated);
        if refused && !self.rotated {
            // Another namespace's credential may reach the same firewall. Once a round: twice may lead back.
            self.rotated = true;
            self.memory.credential = self.memory.credential.wrapping_add(1);
        }
        self.failed.insert(rule.to_owned(), error.clone());
        self.error = Some(error);
    }

    /// Why an allow is closed.
    fn why_closed(&self, name: &str) -> Cause {
        let overdue = deadline(self.mark(name).as_ref()).is_some_and(|at| at <= self.inner.clock.now());
        match lock(&self.gate.duties).grants.contains_key(name) {
            true if overdue => Cause::Deadline,
            true => Cause::Ended,
            false => Cause::Nobodys,
        }
    }

    fn mark(&self, name: &str) -> Option<Mark> {
        parse_name(&self.wanted.cluster, name)
    }

    fn intend(&self, name: &str, operation: Operation, cause: Cause, content: Option<&Rule>) -> Intent {
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

    fn count(&self, intent: &Intent, result: &Result<Written, CloudError>) {
        let (outcome, ended) = match result {
            Ok(_) => (CloudOutcome::Succeeded, Ended::Succeeded),
            Err(error) if error.kind == CloudErrorKind::Ambiguous => {
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

    fn record_end(&self, intent: &Intent, result: Ended, id: Option<&str>, error: Option<&CloudError>) {
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

fn deadline(mark: Option<&Mark>) -> Option<Timestamp> {
    match mark {
        Some(Mark::Allow { deadline, .. }) => *deadline,
        Some(Mark::Deny { .. } | Mark::Exempt { .. }) | None => None,
    }
}

fn owner(mark: &Mark) -> &str {
    match mark {
        Mark::Allow { owner, .. } | Mark::Deny { owner, .. } | Mark::Exempt { owner, .. } => owner,
    }
}

fn content(rule: &Rule) -> Content {
    let peers = |peers: &[Peer]| Text::all(peers.iter().map(peer));
    Content {
        access: match rule.access {
            Access::Allow => "Allow".into(),
            Access::Deny => "Deny".into(),
        },
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

fn peer(peer: &Peer) -> String {
    match peer {
        Peer::Any => "*".to_owned(),
        Peer::Net(net) => net.to_string(),
        Peer::Tag(tag) => tag.clone(),
        Peer::Group(id) => id.to_string(),
        Peer::Unknown(text) => text.clone(),
    }
}
