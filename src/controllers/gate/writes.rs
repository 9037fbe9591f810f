//! The writes of a round, each recorded before it is sent and after it has ended.
//!
//! Recording never waits for anybody, but for one case: an allow is sent only once the record of the intent has
//! left the program, and that wait ends as soon as something is to be closed.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{Instrument, Span};

use super::records::{Intent, deadline, owner};
use super::round::Round;
use super::ways::{Attempts, is_refusal};
use super::{News, lock};
use crate::plan::desired::{Close, Duty};
use crate::plan::lease::Role;
use crate::plan::lifecycle::Seen;
use crate::plan::model::{Access, Rule};
use crate::plan::names;
use crate::providers::{Change, CloudError, CloudErrorKind, Firewall, Written};
use crate::telemetry::audit::record::{Cause, Ended, Operation};

/// What takes less holds up no close.
const QUICK: Duration = Duration::from_secs(1);

impl Round<'_> {
    /// Closes what goes in one write.
    pub(super) async fn close(&mut self, closes: &[Close]) {
        let names: Vec<String> = closes.iter().map(|close| close.name.clone()).collect();
        if self.remove(&names).await {
            return;
        }
        for close in closes {
            self.close_by_deny(close).await;
        }
    }

    /// A lock that forbids removal does not forbid to write a deny in the rule's place.
    async fn close_by_deny(&mut self, close: &Close) {
        let locked =
            self.failed.get(&close.name).is_some_and(|error| error.kind == CloudErrorKind::ScopeLocked);
        let stands_closed = match &close.as_deny {
            Some(deny) if locked => {
                let cause = self.why_closed(&close.name);
                let intent = self.intend(&deny.name, Operation::Close, cause, Some(deny));
                let way = Arc::clone(self.ways.current());
                let firewall = self.gate.firewall.clone();
                let written =
                    way.put(&firewall, deny, self.pace.patience).instrument(intent.span.clone()).await;
                self.wrote(&intent, deny, written)
            }
            Some(_) => false,
            // The read shows no allow of this name: the read-back decides.
            None => locked && !self.gate.firewall.kind().translates(),
        };
        if stands_closed {
            self.closed(&close.name);
        } else if let Some(error) = self.failed.get(&close.name).cloned() {
            self.close_failed(&error);
        }
    }

    /// Removes allows by their names alone, in one write, by whichever way there is.
    pub(super) async fn remove(&mut self, names: &[String]) -> bool {
        // Whole firewalls are written by one replica alone, as long as there is one.
        if self.gate.firewall.kind().translates() && self.inner.leadership.role() == Role::Standby {
            return false;
        }
        let mut attempts = Attempts::default();
        for (place, way) in self.ways.to_remove_by() {
            match self.delete(&way, names, Operation::Close).await {
                Ok(()) => {
                    self.ways.begin_with(place);
                    for name in names {
                        self.closed(name);
                    }
                    return true;
                }
                Err(error) => {
                    // Not where it is only unanswered: closes come first in each round, and one that never is answered
                    // would keep what follows waiting for ever.
                    if error.retry_after.is_some() {
                        self.hold_back(place, &error);
                    }
                    if !attempts.failed(place, error) {
                        break;
                    }
                }
            }
        }
        if let Some((place, error)) = attempts.left() {
            self.ways.begin_with(place);
            // That one is mended by another write, or tried again after it.
            if error.kind != CloudErrorKind::ScopeLocked {
                self.ways.exhaust();
                self.close_failed(&error);
            }
            for name in names {
                self.fail(name, error.clone());
            }
        }
        false
    }

    /// A removal has ended well. Remembered at once, however the round goes on: else it would be sent again each time.
    fn closed(&mut self, name: &str) {
        if let Some(grant) = lock(&self.gate.duties).grants.get_mut(name) {
            grant.duty = Duty::Close { sent: true };
        }
        self.sent.insert(name.to_owned());
        self.unread.insert(name.to_owned());
        lock(&self.gate.unanswered).removed(name);
        self.memory.closed = true;
    }

    /// Writes a deny or an exemption.
    pub(super) async fn lock(&mut self, rule: &Rule, cause: Cause) {
        let firewall = self.gate.firewall.clone();
        for (place, way) in self.ways_of_lock(&rule.name) {
            // The way before may have taken long.
            if self.is_fenced() {
                return;
            }
            let begun = Instant::now();
            self.tried = true;
            let intent = self.intend(&rule.name, Operation::Lock, cause, Some(rule));
            let write = way.put(&firewall, rule, self.pace.patience).instrument(intent.span.clone());
            let written = self.unless_due(write).await;
            self.hold_back_if(place, &written);
            if self.wrote(&intent, rule, written) || self.gives_way(begun) {
                return;
            }
        }
    }

    /// Has the firewall cut connections that its rules no longer let in, by the credential of a policy that asks for it.
    pub(super) async fn cut_sessions(&mut self) {
        let asking = self.wanted.locks.iter().filter(|lock| lock.cut_sessions);
        let credentials: Vec<String> =
            asking.filter_map(|lock| self.lockers.get(&lock.policy_uid).cloned()).collect();
        let ways: Vec<_> = credentials.iter().filter_map(|credential| self.ways.of(credential)).collect();
        let Some((_, way)) = ways.into_iter().find(|(place, _)| !self.is_held(*place)) else { return };
        self.tried = true;
        let (firewall, change) = (self.gate.firewall.clone(), Change::CutSessions);
        let intent = self.intend(change.rule(), Operation::Lock, Cause::Policy, None);
        let write = way
            .write(&firewall, std::slice::from_ref(&change), self.pace.patience)
            .instrument(intent.span.clone());
        let written = self.unless_due(write).await;
        self.count(&intent, &written);
        match written {
            Ok(written) => {
                tracing::info!(%firewall, "told to cut connections that its rules no longer let in");
                self.succeeded(change.rule());
                self.tell_of_others(&written);
            }
            Err(error) => {
                tracing::warn!(%firewall, %error, "failed to have it cut connections that its rules no longer let in");
                if error.kind == CloudErrorKind::Unanswered {
                    self.note_all_standing();
                }
                self.fail(change.rule(), error);
            }
        }
    }

    /// Removes a deny or an exemption, or an allow that was closed by being rewritten as a deny.
    pub(super) async fn unlock(&mut self, name: &str) {
        for (place, way) in self.ways_of_lock(name) {
            if self.is_fenced() {
                return;
            }
            let begun = Instant::now();
            self.tried = true;
            match self.delete(&way, &[name.to_owned()], Operation::Unlock).await {
                Ok(()) => {
                    self.memory.placed.removed(name);
                    return;
                }
                Err(error) => {
                    self.hold_back(place, &error);
                    self.fail(name, error);
                }
            }
            if self.gives_way(begun) {
                return;
            }
        }
    }

    /// Whether the next way is left for another round: something is to be closed. Where that failed before and may fail
    /// for ever, only after an attempt that took long.
    fn gives_way(&self, begun: Instant) -> bool {
        self.close_is_due() || (self.is_to_close() && begun.elapsed() >= QUICK)
    }

    /// Writes allows, in one write by the credential of their requests' namespace: those of which the record that it is
    /// about to be has left the program.
    pub(super) async fn open(&mut self, rules: &[&Rule]) {
        let opener = rules.first().and_then(|rule| self.openers.get(&rule.name));
        let Some((place, way)) = opener.and_then(|name| self.ways.of(name)) else {
            return;
        };
        if self.is_held(place) {
            return;
        }
        let mut recorded = Vec::new();
        for rule in rules {
            let intent = self.intend(&rule.name, Operation::Open, Cause::Granted, Some(rule));
            if self.handed_over(&intent.receipt).await {
                recorded.push((intent, *rule));
                continue;
            }
            self.unrecorded.insert(rule.name.clone());
            tracing::warn!(firewall = %self.gate.firewall, rule = %rule.name, "not opened: its audit record cannot be written to standard output");
            self.record_end(&intent, Ended::NotSent, None, None);
        }
        // Records may have been waited for, each for a while.
        if self.is_fenced() {
            for (intent, _) in &recorded {
                self.record_end(intent, Ended::NotSent, None, None);
            }
            return;
        }
        if recorded.is_empty() {
            return;
        }
        self.tried = true;
        let firewall = self.gate.firewall.clone();
        let changes: Vec<Change> = recorded.iter().map(|(_, rule)| Change::Put((*rule).clone())).collect();
        let left = recorded.iter().map(|(_, rule)| self.open_patience(&rule.name)).min();
        let patience = left.unwrap_or_default();
        // One write of several rules is shown in the trace of the first.
        let span = recorded.first().map_or_else(Span::none, |(intent, _)| intent.span.clone());
        let written = self.unless_due(way.write(&firewall, &changes, patience).instrument(span)).await;
        self.hold_back_if(place, &written);
        if let Ok(written) = &written {
            self.tell_of_others(written);
        }
        for (intent, rule) in &recorded {
            self.wrote(intent, rule, written.clone());
        }
        if let [_, _, ..] = recorded.as_slice()
            && written.is_err_and(|error| is_for_good(&error))
        {
            // Which of them it is about, nobody says: it is not to be the end of the others.
            for (_, rule) in &recorded {
                self.memory.refused.remove(&rule.name);
                if self.is_to_stop() {
                    continue;
                }
                Box::pin(self.open(&[*rule])).await;
            }
        }
    }

    /// No answer to an open is waited for past its deadline: its removal is due then.
    fn open_patience(&self, name: &str) -> Duration {
        let now = self.inner.clock.now();
        let grant = self.wanted.grants.iter().find(|grant| grant.name == name);
        let left = grant.and_then(|grant| Duration::try_from(grant.deadline.duration_since(now)).ok());
        // Where all rules go in one write, its end is waited for: what is removed meanwhile would be refused until then.
        if self.pace.at_once > 1 {
            return self.pace.open_patience;
        }
        self.pace.open_patience.min(left.unwrap_or_default())
    }

    /// What a write that closes nothing comes to. Nothing that hangs holds up a close for long.
    async fn unless_due(
        &self,
        write: impl Future<Output = Result<Written, CloudError>> + Send,
    ) -> Result<Written, CloudError> {
        self.unless(self.until_to_close(), self.pace.grace, write).await
    }

    /// What a write comes to, unless it is still under way this long after something was to be closed.
    async fn unless(
        &self,
        to_close: impl Future<Output = ()> + Send,
        grace: Duration,
        write: impl Future<Output = Result<Written, CloudError>> + Send,
    ) -> Result<Written, CloudError> {
        let due = async {
            to_close.await;
            tokio::time::sleep(grace).await;
        };
        tokio::select! {
            biased;
            written = write => written,
            () = due => Err(CloudError {
                kind: CloudErrorKind::Unanswered,
                operation: format!("wait for a write to {}", self.gate.firewall.0.name()),
                message: format!("given up {} s after something was to be closed", grace.as_secs()),
                code: None,
                retry_after: None,
                request_id: None,
            }),
        }
    }

    /// The way of the credential of the policy's namespace that a rule is of. All of them where no policy asks for it any
    /// more: only what stands is written again then, and only what other locks cover, or what lets nobody in, is removed.
    fn ways_of_lock(&self, name: &str) -> Vec<(usize, Arc<dyn Firewall>)> {
        let mark = self.mark(name);
        let owner = mark.as_ref().map(owner).unwrap_or_default();
        let own = self.lockers.iter().find(|(policy_uid, _)| names::uid12(policy_uid) == owner);
        let mut ways = match own {
            Some((_, credential)) => self.ways.of(credential).into_iter().collect(),
            None => self.ways.in_turn(),
        };
        ways.retain(|(place, _)| !self.is_held(*place));
        ways
    }

    /// Whether nothing but closes goes by this way any more.
    fn is_held(&self, place: usize) -> bool {
        self.held.contains(self.ways.credential(place))
    }

    fn hold_back_if(&mut self, place: usize, written: &Result<Written, CloudError>) {
        if let Err(error) = written {
            self.hold_back(place, error);
        }
    }

    /// The cloud that asks one credential to wait, or leaves it without an answer, does the same to what comes next; other
    /// credentials do not wait for that.
    fn hold_back(&mut self, place: usize, error: &CloudError) {
        // Nor does what failed before, and is tried last, keep what comes after it waiting once more.
        if error.retry_after.is_some() || (error.kind == CloudErrorKind::Unanswered && !self.again) {
            self.held.insert(self.ways.credential(place).to_owned());
        }
    }

    fn wrote(&mut self, intent: &Intent, rule: &Rule, result: Result<Written, CloudError>) -> bool {
        let firewall = &self.gate.firewall;
        self.count(intent, &result);
        match result {
            Ok(written) => {
                tracing::info!(%firewall, rule = %rule.name, access = ?rule.access, priority = rule.priority, request_id = written.request_id.as_deref().unwrap_or_default(), "wrote a rule");
                self.succeeded(&rule.name);
                self.opened |= rule.access == Access::Allow;
                lock(&self.gate.unanswered).answered(&rule.name);
                self.memory.placed.stands(&self.wanted.cluster, rule);
                true
            }
            Err(error) => {
                tracing::warn!(%firewall, rule = %rule.name, %error, "failed to write a rule");
                self.note_carried(&error);
                if rule.access == Access::Allow && error.kind == CloudErrorKind::Unanswered {
                    lock(&self.gate.unanswered).note(&rule.name, self.pace.lands_within);
                }
                if rule.access == Access::Allow && is_for_good(&error) {
                    let seen = Seen::Refused { reason: error.kind.reason(), message: error.to_string() };
                    self.memory.refused.insert(rule.name.clone(), seen);
                }
                self.fail(&rule.name, error);
                false
            }
        }
    }

    async fn delete(
        &mut self,
        way: &Arc<dyn Firewall>,
        names: &[String],
        operation: Operation,
    ) -> Result<(), CloudError> {
        let firewall = self.gate.firewall.clone();
        let cause = |name: &str| match operation {
            Operation::Close => self.why_closed(name),
            Operation::Lock | Operation::Open | Operation::Unlock => Cause::Policy,
        };
        let intents: Vec<Intent> =
            names.iter().map(|name| self.intend(name, operation, cause(name), None)).collect();
        let change = match operation {
            Operation::Close => Change::Remove,
            Operation::Lock | Operation::Open | Operation::Unlock => Change::Unlock,
        };
        let changes: Vec<Change> = names.iter().cloned().map(change).collect();
        let span = intents.first().map_or_else(Span::none, |intent| intent.span.clone());
        let removal = way.write(&firewall, &changes, self.pace.patience).instrument(span);
        let result = match operation {
            Operation::Close => {
                let others = self.until_due(|grant| !names.contains(&grant.name));
                self.unless(others, self.pace.close_grace, removal).await
            }
            Operation::Lock | Operation::Open | Operation::Unlock => self.unless_due(removal).await,
        };
        for intent in &intents {
            self.count(intent, &result);
        }
        match result {
            Ok(written) => {
                for name in names {
                    tracing::info!(%firewall, rule = %name, request_id = written.request_id.as_deref().unwrap_or_default(), "removed a rule");
                    self.succeeded(name);
                }
                self.tell_of_others(&written);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(%firewall, rules = ?names, %error, "failed to remove");
                self.note_carried(&error);
                Err(error)
            }
        }
    }

    /// A whole firewall was written, and what others have there differs from before: theirs may be lost.
    fn tell_of_others(&self, written: &Written) {
        if written.differs.is_empty() {
            return;
        }
        let firewall = self.gate.firewall.clone();
        let differs = written.differs.join("; ");
        tracing::warn!(%firewall, differs, "rules of others are not as they were before this firewall was written");
        let watchers = lock(&self.gate.duties).watchers.keys().cloned().collect();
        let _ = self.inner.news.send(News::Differs(firewall, written.differs.clone(), watchers));
    }

    /// A write of everything was not answered: whatever stood when it was sent may come to stand again by it.
    fn note_carried(&self, error: &CloudError) {
        if error.kind == CloudErrorKind::Unanswered && self.gate.firewall.kind().translates() {
            self.note_all_standing();
        }
    }

    fn note_all_standing(&self) {
        let Some(observed) = lock(&self.gate.report).observed.clone() else { return };
        let mut unanswered = lock(&self.gate.unanswered);
        for rule in observed.rules.iter().filter(|rule| rule.access == Access::Allow) {
            unanswered.note_carried(&rule.name, self.pace.lands_within);
        }
    }

    fn succeeded(&mut self, rule: &str) {
        self.failed.remove(rule);
        self.memory.failed.remove(rule);
        self.written |= self.tried;
    }

    pub(super) fn fail(&mut self, rule: &str, error: CloudError) {
        self.memory.failed.insert(rule.to_owned());
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
}

/// Whether the same write will not succeed later. Rights take minutes to spread, so a refusal of the credential may pass.
fn is_for_good(error: &CloudError) -> bool {
    !error.kind.is_transient() && !is_refusal(error)
}
