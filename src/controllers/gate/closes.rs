//! How a round closes: by name, before it reads, and also where nothing can be read.

use std::time::Duration;

use tokio::time::Instant;

use super::Report;
use super::lock;
use super::round::{Outcome, Round};
use super::ways::Attempts;
use crate::plan::desired::{Duty, Grant, Wanted};
use crate::plan::lifecycle::Seen;
use crate::plan::model::Observed;
use crate::plan::names;
use crate::providers::{CloudError, CloudErrorKind};

/// How often it is looked, while something is under way, whether a close has become due.
const LOOK: Duration = Duration::from_millis(250);
/// When a close that failed is tried again while other things are written: not before, and not after, whatever the cloud
/// asks for.
const CLOSE_AGAIN: Duration = Duration::from_secs(1);
const CLOSE_AGAIN_AT_LAST: Duration = Duration::from_secs(30);

impl Round<'_> {
    /// Sends every removal that is due before anything is read: no read, late or stale, holds one up or argues it
    /// away. But for rules that are only replaced, of which it has to be known whether they stood until then.
    pub(super) async fn close_by_name(&mut self) {
        let due = self
            .wanted
            .grants
            .iter()
            .filter(|grant| !grant.replaced && grant.duty == Duty::Close { sent: false });
        let due: Vec<String> = due.map(|grant| grant.name.clone()).collect();
        self.remove_all(&due).await;
        self.wanted = self.wanted_after();
        if !self.failed.is_empty() {
            // Said before the read, which may take long to fail as well.
            self.say_tried();
            self.tell();
        }
    }

    /// Removes allows by their names alone.
    async fn remove_all(&mut self, names: &[String]) {
        for names in names.chunks(self.pace.at_once) {
            self.remove(names).await;
        }
    }

    /// Reads the firewall, by the first way that it can be read by; none where a close became due meanwhile: no read,
    /// however slow, holds it up.
    pub(super) async fn read(&mut self) -> Option<Result<Observed, CloudError>> {
        let (place, read) = tokio::select! {
            read = self.read_by_any() => read?,
            () = self.until_due(|grant| !grant.replaced), if !self.inner.settings.dry_run => return None,
        };
        self.ways.begin_with(place);
        Some(read)
    }

    async fn read_by_any(&self) -> Option<(usize, Result<Observed, CloudError>)> {
        let mut attempts = Attempts::default();
        for (place, way) in self.ways.in_turn() {
            match way.observe(&self.gate.firewall).await {
                Ok(observed) => return Some((place, Ok(observed))),
                Err(error) => {
                    if !attempts.failed(place, error) {
                        break;
                    }
                }
            }
        }
        attempts.left().map(|(place, error)| (place, Err(error)))
    }

    /// The firewall cannot be read. What is due was sent all the same.
    pub(super) async fn blind(&mut self, error: CloudError) -> Outcome {
        let id = self.gate.firewall.clone();
        if error.kind == CloudErrorKind::NotFound {
            self.gone();
            if self.error.is_some() {
                return self.has_failed();
            }
            return Outcome::Done;
        }
        tracing::warn!(firewall = %id, error = %error, "failed to read the firewall");
        if !self.inner.settings.dry_run {
            let replaced = |grant: &&Grant| grant.replaced && grant.duty == Duty::Close { sent: false };
            let replaced: Vec<String> =
                self.wanted.grants.iter().filter(replaced).map(|grant| grant.name.clone()).collect();
            self.remove_all(&replaced).await;
            // What a sweep found, as far as its name alone says that it is an allow of ours.
            let cluster = &self.wanted.cluster;
            let ours =
                |name: &&String| matches!(names::parse_name(cluster, name), Some(names::Mark::Allow { .. }));
            let orphans: Vec<String> = self.wanted.orphans.iter().filter(ours).cloned().collect();
            self.remove_all(&orphans).await;
        }
        self.fail("", error);
        self.say_tried();
        self.tell();
        self.has_failed()
    }

    /// What failed, of each rule that it failed for; of all of them where the firewall cannot be read.
    fn say_tried(&self) {
        let blind = self.failed.get("");
        let mut report = lock(&self.gate.report);
        report.error.clone_from(&self.error);
        for grant in &self.wanted.grants {
            if let Some(error) = blind.or_else(|| self.failed.get(&grant.name)) {
                let trying = Seen::Trying { reason: error.kind.reason(), message: error.to_string() };
                report.grants.insert(grant.name.clone(), trying);
            }
        }
    }

    /// A firewall that is gone holds nothing.
    fn gone(&mut self) {
        let at = self.inner.clock.now();
        let grants = self.wanted.grants.iter().map(|grant| {
            let seen = match grant.duty {
                Duty::Close { sent: true } => Seen::Absent { at, by_us: false },
                // Its removal was not answered: a firewall that is not found may only be one that is not seen now.
                Duty::Close { sent: false } => Seen::Nothing,
                Duty::Hold => Seen::Lost { at },
                Duty::Open { .. } => Seen::Refused {
                    reason: crate::api::Reason::NoFirewall,
                    message: format!("{} is gone", self.gate.firewall),
                },
            };
            (grant.name.clone(), seen)
        });
        *lock(&self.gate.report) = Report { gone: true, grants: grants.collect(), ..Report::default() };
        lock(&self.gate.duties).orphans.clear();
        self.tell();
    }

    /// Whether a removal of ours has become due that this round does not know of.
    pub(super) fn close_is_due(&self) -> bool {
        self.is_due(|_| true)
    }

    /// Whether something is to be closed before anything else is written: a removal has become due that this round does
    /// not know of, or one that failed is to be tried again.
    pub(super) fn is_to_close(&self) -> bool {
        self.close_is_due() || self.close_again.is_some_and(|at| at <= Instant::now())
    }

    /// Waits until [`Round::is_to_close`].
    pub(super) async fn until_to_close(&self) {
        while !self.is_to_close() {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// A removal has failed, and is tried again before long, whatever else there is to write.
    pub(super) fn close_failed(&mut self, error: &CloudError) {
        let at =
            Instant::now() + error.retry_after.unwrap_or_default().clamp(CLOSE_AGAIN, CLOSE_AGAIN_AT_LAST);
        self.close_again = Some(self.close_again.map_or(at, |known| known.min(at)));
    }

    /// Waits until a removal of ours has become due that this round does not know of.
    pub(super) async fn until_due(&self, which: impl Fn(&Grant) -> bool) {
        while !self.is_due(&which) {
            tokio::time::sleep(LOOK).await;
        }
    }

    fn is_due(&self, which: impl Fn(&Grant) -> bool) -> bool {
        let now = self.inner.clock.now();
        let cluster = &self.wanted.cluster;
        lock(&self.gate.duties).grants.values().any(|grant| {
            if names::parse_name(cluster, &grant.name).is_none() || !which(grant) {
                return false;
            }
            (grant.duty == Duty::Close { sent: false }
                && !self.sent.contains(&grant.name)
                && !self.failed.contains_key(&grant.name))
                || (grant.deadline <= now && !matches!(grant.duty, Duty::Close { .. }))
        })
    }

    /// What was wanted at the start of the round, with the removals that were sent.
    pub(super) fn wanted_after(&self) -> Wanted {
        let mut wanted = self.wanted.clone();
        wanted.placed = self.memory.placed.rules();
        for grant in &mut wanted.grants {
            if self.sent.contains(&grant.name) {
                grant.duty = Duty::Close { sent: true };
            }
        }
        wanted
    }
}
