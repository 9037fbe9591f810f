//! One round: close by name, read once, plan once, write, read back once, report.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use tokio::time::Instant;

use super::duties::{self, Duties};
use super::heard;
use super::pace::Pace;
use super::placed::Placed;
use super::standby;
use super::ways::Ways;
use super::{Gate, Inner, News, lock};
use crate::plan::changes;
use crate::plan::desired::{Changes, Close, Duty, Grant, Limits, WHOLE_WRITE, WRITE_ANSWER, Wanted};
use crate::plan::lease::Role;
use crate::plan::lifecycle::Seen;
use crate::plan::model::{Access, Observed, Provisioning, Rule};
use crate::plan::names;
use crate::providers::{CloudError, CloudErrorKind};
use crate::telemetry::audit::record::Cause;

/// How long a closed rule is looked for: a foreign read-modify-write may bring it back.
const WATCHED: SignedDuration = SignedDuration::from_hours(1);

/// How long allows are written one after the other before they are read back.
const UNSEEN: Duration = Duration::from_secs(15);

/// What a round came to.
pub(super) enum Outcome {
    /// Nothing is left to do.
    Done,
    /// A close became due while other things were written.
    Again,
    /// Something that was written is not read back yet.
    NotReadBack,
    /// What is left to do is for the replica that holds the lease.
    Fenced,
    /// Something failed that may succeed later.
    Failed {
        /// How long the cloud asks to wait.
        retry_after: Option<Duration>,
        /// Whether it may succeed at any moment: the cloud is away.
        passing: bool,
    },
}

/// What a gate remembers between rounds.
#[derive(Default)]
pub(super) struct Memory {
    /// Which of the ways to the firewall to begin with.
    pub(super) way: usize,
    /// Rules that cannot be written for good, and why.
    pub(super) refused: HashMap<String, Seen>,
    /// What could not be written or removed when it was last tried: its turn comes after that of the rest.
    pub(super) failed: HashSet<String>,
    /// Denies and exemptions as they were last read back: what differs was changed by somebody else.
    pub(super) standing: Vec<Rule>,
    /// Denies as they were last seen to stand, or written.
    pub(super) placed: Placed,
    /// Which state of the duties the last round worked on.
    pub(super) version: u64,
    /// In which term of the lease that was.
    term: Option<Timestamp>,
    /// What was due by then was seen to by the last round.
    pub(super) looked_at: Timestamp,
    /// What the last round wrote: writing the same again at once would be a hot loop.
    last: Changes,
    /// Whether something was closed since the worker last asked.
    pub(super) closed: bool,
}

/// What one round does and finds.
pub(super) struct Round<'a> {
    pub(super) inner: &'a Inner,
    pub(super) gate: &'a Gate,
    pub(super) pace: Pace,
    pub(super) ways: Ways,
    /// The credential of each policy, by its UID.
    pub(super) lockers: BTreeMap<String, String>,
    /// The credential that each rule is opened by, by its name.
    pub(super) openers: BTreeMap<String, String>,
    pub(super) memory: &'a mut Memory,
    version: u64,
    pub(super) wanted: Wanted,
    /// Names whose removal ended well in this round or before.
    pub(super) sent: HashSet<String>,
    /// Those of them that ended after the last read: it proves nothing of them.
    pub(super) unread: HashSet<String>,
    /// What failed, by rule.
    pub(super) failed: HashMap<String, CloudError>,
    /// Opens that were not sent, because their records could not be written.
    pub(super) unrecorded: HashSet<String>,
    /// Rules to be held that the first read showed gone or changed.
    pub(super) lost: HashSet<String>,
    /// Credentials by which nothing but closes goes in this round any more: the cloud has asked them to come again later,
    /// or did not answer.
    pub(super) held: HashSet<String>,
    /// Whether what failed before is being tried again.
    pub(super) again: bool,
    /// Whether anything but a close was sent.
    pub(super) tried: bool,
    /// Whether any of that ended well.
    pub(super) written: bool,
    /// Whether an allow did.
    pub(super) opened: bool,
    /// When closes that failed are to be tried again.
    pub(super) close_again: Option<Instant>,
    pub(super) error: Option<CloudError>,
}

/// Works once through everything that is wanted; while another replica holds the lease, through what that one has not
/// closed in time.
pub(super) async fn round(inner: &Inner, gate: &Gate, memory: &mut Memory) -> Outcome {
    let now = inner.clock.now();
    let stands_by = inner.leadership.role() == Role::Standby;
    let due_by = if stands_by { standby::due_by(now) } else { now };
    let Some(Snapshot { ways, lockers, openers, version, wanted }) = snapshot(inner, gate, memory, due_by)
    else {
        return Outcome::Done;
    };
    (memory.version, memory.looked_at) = (version, due_by);
    let sent = wanted
        .grants
        .iter()
        .filter(|grant| grant.duty == Duty::Close { sent: true })
        .map(|grant| grant.name.clone())
        .collect();
    let is_wanted = |name: &str| wanted.grants.iter().any(|grant| grant.name == name);
    memory.refused.retain(|name, _| is_wanted(name));
    let mut round = Round {
        inner,
        gate,
        pace: Pace::of(gate.firewall.kind()),
        ways,
        lockers,
        openers,
        memory,
        version,
        wanted,
        sent,
        unread: HashSet::new(),
        failed: HashMap::new(),
        unrecorded: HashSet::new(),
        lost: HashSet::new(),
        held: HashSet::new(),
        again: false,
        tried: false,
        written: false,
        opened: false,
        close_again: None,
        error: None,
    };
    let outcome = if stands_by { round.stand_in(due_by).await } else { round.run(now).await };
    round.memory.way = round.ways.first();
    outcome
}

/// The duties at the start of a round.
struct Snapshot {
    ways: Ways,
    lockers: BTreeMap<String, String>,
    openers: BTreeMap<String, String>,
    version: u64,
    wanted: Wanted,
}

/// The duties as they are now, with those whose time is up turned into removals.
fn snapshot(inner: &Inner, gate: &Gate, memory: &mut Memory, now: Timestamp) -> Option<Snapshot> {
    let mut duties = lock(&gate.duties);
    let term = inner.leadership.since();
    if duties.in_term(term) || memory.term != term {
        // What was known of locks is of another term: others may have changed them since.
        memory.term = term;
        memory.standing.clear();
        memory.placed.clear();
        memory.last = Changes::default();
        lock(&gate.report).locked.clear();
    }
    let ways = Ways::new(&duties.clouds, memory.way)?;
    let Duties { grants, closing, .. } = &mut *duties;
    for grant in grants.values_mut().filter(|grant| grant.deadline <= now) {
        duties::close(grant, closing, now);
    }
    // Names stay barred for a day after their rule's removal: longer than any cache is stale.
    let day = SignedDuration::from_hours(24);
    closing.retain(|name, removal| grants.contains_key(name) || now.duration_since(removal.since) < day);
    let role = inner.leadership.role();
    forget_closed(gate, &mut duties, role, now);
    // A name that is not ours by its form (of a cluster id that is no longer configured) is neither written nor
    // removed: it may be anybody's.
    let cluster = &inner.settings.cluster;
    let ours =
        |grant: &&Grant| matches!(names::parse_name(cluster, &grant.name), Some(names::Mark::Allow { .. }));
    let mut grants: Vec<Grant> = duties.grants.values().filter(ours).cloned().collect();
    let mut unanswered = lock(&gate.unanswered);
    unanswered.keep_only(|name| duties.grants.contains_key(name));
    for grant in &mut grants {
        // What may yet come to stand is removed again until it no longer can.
        if grant.duty == (Duty::Close { sent: true }) && unanswered.may_land(&grant.name) {
            grant.duty = Duty::Close { sent: false };
        }
    }
    let unheard = inner.heard.unheard(term);
    duties.waits_for = heard::met(&unheard, lock(&gate.report).observed.as_deref(), cluster);
    let wanted = Wanted {
        cluster: cluster.clone(),
        locks: duties.locks.values().cloned().collect(),
        unheard,
        grants,
        orphans: duties.orphans.clone(),
        honour_denies_below: inner.settings.honour_denies_below,
        max_allows: inner.settings.max_allows,
        standing: memory.standing.clone(),
        placed: memory.placed.rules(),
    };
    let (lockers, openers) = (duties.watchers.clone(), duties.openers.clone());
    Some(Snapshot { ways, lockers, openers, version: duties.version, wanted })
}

/// Rules that were closed, proved absent and watched for an hour are history.
fn forget_closed(gate: &Gate, duties: &mut Duties, role: Role, now: Timestamp) {
    let report = lock(&gate.report);
    let Duties { grants, closing, openers, .. } = duties;
    grants.retain(|name, grant| {
        // Where another replica holds the lease, that one reads.
        let absent = role == Role::Standby || matches!(report.grants.get(name), Some(Seen::Absent { .. }));
        let long_ago = closing.get(name).is_some_and(|removal| now.duration_since(removal.since) > WATCHED);
        !(absent && long_ago && grant.duty == Duty::Close { sent: true })
    });
    openers.retain(|name, _| grants.contains_key(name));
}

impl Round<'_> {
    async fn run(&mut self, now: Timestamp) -> Outcome {
        let id = self.gate.firewall.clone();
        if !self.inner.settings.dry_run {
            self.close_by_name().await;
        }
        let observed = match self.read().await {
            Some(Ok(observed)) => observed,
            Some(Err(error)) => return self.blind(error).await,
            None => return Outcome::Again,
        };
        self.unread.clear();
        let limits = self.ways.current().limits(&id);
        let limits = Limits { rules: limits.rules, addresses: limits.addresses };
        let changes = self.plan(&observed, &self.wanted, &limits, now);
        self.lost.extend(changes.lost.iter().cloned());
        for drift in &changes.drift {
            tracing::warn!(firewall = %id, rule = %drift.rule, removed = drift.removed, "a rule of a lock was changed by somebody else; putting it right");
            self.record_drift(drift);
            let _ = self.inner.news.send(News::Drift(id.clone(), drift.clone()));
        }
        if self.inner.settings.dry_run {
            self.report(&observed, &changes);
            return Outcome::Done;
        }
        let mends = !self.inner.settings.closes_only && !self.is_fenced();
        if changes.is_empty() && observed.provisioning == Provisioning::Failed && mends {
            return self.mend(&observed, changes).await;
        }
        if changes.is_empty() {
            self.memory.last = Changes::default();
            self.report(&observed, &changes);
            return self.outcome(&observed, &changes);
        }
        self.note_standing(&observed);
        let repeated = self.memory.last == changes;
        let interrupted = self.write(&changes).await;
        self.memory.last = changes;
        let read_back = match self.read().await {
            Some(Ok(observed)) => {
                self.unread.clear();
                observed
            }
            None => return Outcome::Again,
            Some(Err(error)) => {
                self.fail("", error);
                let written = self.memory.last.clone();
                self.report(&observed, &written);
                return self.outcome(&observed, &written);
            }
        };
        let after = self.plan(&read_back, &self.wanted_after(), &limits, self.inner.clock.now());
        self.report(&read_back, &after);
        // What depends on a write is planned once that write was read back.
        let goes_on = !after.is_empty()
            && !repeated
            && after != self.memory.last
            && self.error.is_none()
            && self.unrecorded.is_empty();
        // Where nothing succeeds, whatever interrupted it, the pauses grow.
        let news = || self.close_is_due() || lock(&self.gate.duties).version != self.version;
        let interrupted = interrupted && (self.written || news());
        if interrupted || goes_on { Outcome::Again } else { self.outcome(&read_back, &after) }
    }

    /// What is to be done; of it, where nothing else is to be, what closes.
    fn plan(&self, observed: &Observed, wanted: &Wanted, limits: &Limits, now: Timestamp) -> Changes {
        let changes = changes::plan(observed, wanted, limits, now);
        if self.inner.settings.closes_only {
            return Changes { closes: changes.closes, ..Changes::default() };
        }
        changes
    }

    /// Writes one after the other. True: stopped early, because a close became due or what was opened is to be read
    /// back.
    async fn write(&mut self, changes: &Changes) -> bool {
        // Just tried by its name, and only a lock makes it worth another way.
        let untried = |round: &Self, close: &&Close| {
            round.failed.get(&close.name).is_none_or(|error| error.kind == CloudErrorKind::ScopeLocked)
        };
        for closes in changes.closes.chunks(self.pace.at_once) {
            let closes: Vec<Close> = closes.iter().filter(|close| untried(self, close)).cloned().collect();
            if !closes.is_empty() {
                self.close(&closes).await;
            }
        }
        let begun = Instant::now();
        let writes =
            changes.locks.iter().chain(&changes.opens).map(|rule| &rule.name).chain(&changes.unlocks);
        let failed_before: HashSet<String> =
            writes.filter(|name| self.memory.failed.contains(*name)).cloned().collect();
        self.memory.failed.clone_from(&failed_before);
        // What failed before may fail again, and long: it keeps nothing else waiting.
        for again in [false, true] {
            self.again = again;
            let its_turn = |name: &str| failed_before.contains(name) == again;
            for rule in changes.locks.iter().filter(|rule| its_turn(&rule.name)) {
                if self.is_to_stop() {
                    return true;
                }
                let drifted = changes.drift.iter().any(|drift| drift.rule == rule.name);
                self.lock(rule, if drifted { Cause::Drift } else { Cause::Policy }).await;
            }
            for rules in self.batches(changes.opens.iter().filter(|rule| its_turn(&rule.name))) {
                if self.is_to_stop() {
                    return true;
                }
                // Nobody hears that a port is open before it was read back: not at the end of a long queue only.
                if self.opened && begun.elapsed() >= UNSEEN {
                    return true;
                }
                // Judged again at the last moment: writes before this one may have taken long.
                let now = self.inner.clock.now();
                let in_time = |rule: &&Rule| {
                    let grant = self.wanted.grants.iter().find(|grant| grant.name == rule.name);
                    grant.is_some_and(|grant| grant.may_be_opened(now, self.gate.firewall.kind()))
                };
                let rules: Vec<&Rule> = rules.into_iter().filter(in_time).collect();
                if !rules.is_empty() && !self.is_to_close_soon() {
                    self.open(&rules).await;
                }
            }
            for name in changes.unlocks.iter().filter(|name| its_turn(name)) {
                if self.is_to_stop() {
                    return true;
                }
                self.unlock(name).await;
            }
        }
        // Last: it is of the whole group, and nothing else waits for it.
        if changes.cut_sessions {
            if self.is_to_stop() {
                return true;
            }
            self.cut_sessions().await;
        }
        false
    }

    /// Whether a removal becomes due before a write that is begun now would end: it could not overtake it.
    fn is_to_close_soon(&self) -> bool {
        if self.pace.at_once == 1 {
            return false;
        }
        let soon = SignedDuration::try_from(WHOLE_WRITE).unwrap_or_default();
        let now = self.inner.clock.now();
        lock(&self.gate.duties)
            .grants
            .values()
            .any(|grant| grant.duty == Duty::Hold && grant.deadline.duration_since(now) < soon)
    }

    /// Rules that are opened by one write: by one credential, and as many as go in one.
    fn batches<'r>(&self, rules: impl Iterator<Item = &'r Rule>) -> Vec<Vec<&'r Rule>> {
        let opener = |rule: &Rule| self.openers.get(&rule.name);
        let mut batches: Vec<Vec<&Rule>> = Vec::new();
        for rule in rules {
            let fits = |batch: &&mut Vec<&Rule>| {
                batch.len() < self.pace.at_once && batch.iter().all(|other| opener(other) == opener(rule))
            };
            match batches.iter_mut().find(fits) {
                Some(batch) => batch.push(rule),
                None => batches.push(vec![rule]),
            }
        }
        batches
    }

    /// Whether nothing but closes may be written: this replica does not hold the lease for as long as a write may take.
    pub(super) fn is_fenced(&self) -> bool {
        !self.inner.leadership.outlasts(WRITE_ANSWER)
    }

    /// Whether nothing else is to be written now: the lease forbids it, something is to be closed, or there is news while only what failed
    /// before is left. A close that failed is not tried again before something else was: it may fail for ever.
    pub(super) fn is_to_stop(&self) -> bool {
        self.is_fenced()
            || self.close_is_due()
            || (self.tried && self.is_to_close())
            || (self.again && lock(&self.gate.duties).version != self.version)
    }

    /// The cloud says that the last write to the firewall failed, and nothing of ours is to be changed. Something of ours
    /// written again as it stands has the whole tried anew: until then no read-back proves anything.
    async fn mend(&mut self, observed: &Observed, changes: Changes) -> Outcome {
        let cluster = &self.wanted.cluster;
        let deny = observed.rules.iter().find(|rule| {
            rule.access == Access::Deny
                && matches!(names::parse(cluster, rule), Some(names::Mark::Deny { .. }))
        });
        if let Some(deny) = deny.cloned() {
            tracing::warn!(firewall = %self.gate.firewall, rule = %deny.name, "the last write to the firewall failed; writing a rule of a lock again as it stands");
            self.lock(&deny, Cause::Mend).await;
        } else if self.gate.firewall.kind().translates() {
            // It holds no denies: what is to be gone is removed once more.
            let going = self.wanted.grants.iter().filter(|grant| matches!(grant.duty, Duty::Close { .. }));
            let going: Vec<String> = going.map(|grant| grant.name.clone()).collect();
            if !going.is_empty() {
                tracing::warn!(firewall = %self.gate.firewall, "the last write to the firewall failed; removing once more what is to be gone");
                self.remove(&going).await;
            }
        }
        self.memory.last = Changes::default();
        self.report(observed, &changes);
        self.has_failed()
    }

    pub(super) fn has_failed(&self) -> Outcome {
        let error = self.error.as_ref();
        let retry_after = match self.close_again {
            Some(at) => Some(at.saturating_duration_since(Instant::now())),
            None => error.and_then(|error| error.retry_after),
        };
        Outcome::Failed { retry_after, passing: error.is_some_and(|error| error.kind.is_transient()) }
    }

    fn outcome(&self, observed: &Observed, after: &Changes) -> Outcome {
        if self.error.is_some() {
            return self.has_failed();
        }
        if !self.unrecorded.is_empty() {
            return Outcome::Failed { retry_after: None, passing: false };
        }
        if lock(&self.gate.duties).version != self.version {
            return Outcome::Again;
        }
        let removed = self.wanted.grants.iter().filter(|grant| matches!(grant.duty, Duty::Close { .. }));
        if removed.into_iter().any(|grant| lock(&self.gate.unanswered).may_land(&grant.name)) {
            return Outcome::Failed { retry_after: None, passing: false };
        }
        if observed.provisioning == Provisioning::Failed {
            return Outcome::Failed { retry_after: None, passing: false };
        }
        if !after.is_empty() && self.is_fenced() {
            return Outcome::Fenced;
        }
        if observed.provisioning != Provisioning::Succeeded || !after.is_empty() {
            return Outcome::NotReadBack;
        }
        Outcome::Done
    }
}
