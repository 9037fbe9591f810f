//! One serial worker per firewall.
//!
//! A gate owns a firewall: it is told what is wanted there (locks by policies, rules by requests), reads once,
//! plans once, writes one after the other, closes first, reads back once, and reports. It wakes on a change,
//! on the next deadline, after a failure, each minute for an hour after a close, and at the drift interval.
//! Closes need nobody: the deadline is in the duty, so they go on when the API server is gone, and on every replica
//! ([`crate::plan::lease`]).

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::reflector::Store;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::leader::Leadership;
use crate::api::JitPolicy;
use crate::clock::Clock;
use crate::plan::authorize::PortMapping;
use crate::plan::desired::{Drift, Duty, Grant, Lock, Refused};
use crate::plan::lifecycle::Seen;
use crate::plan::model::{FirewallId, Observed};
use crate::plan::names::{Cluster, uid12};
use crate::providers::{Cloud, CloudError};
use crate::telemetry::{Audit, Metrics};

mod closes;
mod duties;
mod heard;
mod pace;
mod placed;
mod records;
mod round;
mod sight;
pub(super) mod standby;
mod unanswered;
mod ways;
mod worker;
mod writes;

use duties::Duties;
use heard::Heard;
use unanswered::Unanswered;

/// How gates work.
#[derive(Clone, Debug)]
pub struct GateSettings {
    /// Whose rules are ours.
    pub cluster: Cluster,
    /// Denies of others below this priority number are deliberate.
    pub honour_denies_below: u16,
    /// The most allows of ours that one firewall may hold.
    pub max_allows: usize,
    /// How often a firewall is read when nothing happens.
    pub drift_interval: Duration,
    /// Plan and report, write nothing.
    pub dry_run: bool,
    /// Close, and write nothing else.
    pub closes_only: bool,
}

/// What a gate tells of.
#[derive(Clone, Debug)]
pub enum News {
    /// What it knows of a firewall has changed. With the UIDs of the policies and requests that it serves.
    Changed(BTreeSet<String>),
    /// Somebody removed or changed a rule of a lock; it is being put right.
    Drift(FirewallId, Drift),
    /// A firewall was written whole, and what others have there is not as it was before. With the UIDs of the policies that
    /// look at it.
    Differs(FirewallId, Vec<String>, BTreeSet<String>),
}

/// What a gate knows of its firewall.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The last read that succeeded.
    pub observed: Option<Arc<Observed>>,
    /// Whether the firewall is gone.
    pub gone: bool,
    /// What failed in the last round.
    pub error: Option<CloudError>,
    /// What cannot be done.
    pub refused: Vec<Refused>,
    /// What has been seen of the rules of requests, by name.
    pub grants: HashMap<String, Seen>,
    /// Locks that stand as wanted, as of `observed`, by the policy's UID.
    pub locked: BTreeMap<String, Lock>,
}

/// All gates.
#[derive(Clone)]
pub struct Gates(Arc<Inner>);

struct Inner {
    settings: GateSettings,
    clock: Clock,
    metrics: Metrics,
    audit: Audit,
    leadership: Leadership,
    news: mpsc::UnboundedSender<News>,
    gates: Mutex<HashMap<FirewallId, Arc<Gate>>>,
    heard: Heard,
    shutdown: CancellationToken,
    tasks: TaskTracker,
}

/// A firewall's duties and what is known of it.
struct Gate {
    firewall: FirewallId,
    duties: Mutex<Duties>,
    report: Mutex<Report>,
    /// Allows that may yet come to stand, though they were removed. Here and not in the worker, which may fail.
    unanswered: Mutex<Unanswered>,
    wake: Notify,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is behind these locks is replaced whole, so a panic elsewhere leaves nothing half done.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gates {
    /// Gates that write as far as `leadership` lets them, tell of what they see through `news`, and stop at `shutdown`.
    #[must_use]
    pub fn new(
        settings: GateSettings,
        clock: Clock,
        metrics: Metrics,
        audit: Audit,
        leadership: Leadership,
        news: mpsc::UnboundedSender<News>,
        shutdown: CancellationToken,
    ) -> Self {
        Self(Arc::new(Inner {
            settings,
            clock,
            metrics,
            audit,
            leadership,
            news,
            gates: Mutex::default(),
            heard: Heard::default(),
            shutdown,
            tasks: TaskTracker::new(),
        }))
    }

    /// Where to see which policies are there. To be called before any of them says what it wants.
    pub fn know(&self, policies: Store<JitPolicy>) {
        self.0.heard.know(policies);
    }

    /// Waits until every worker has ended its round. To be called after the shutdown was asked for.
    pub async fn stopped(&self) {
        self.0.tasks.close();
        self.0.tasks.wait().await;
    }

    /// What is known of a firewall.
    #[must_use]
    pub fn report(&self, firewall: &FirewallId) -> Option<Report> {
        let gate = lock(&self.0.gates).get(firewall).cloned()?;
        let is_of_term = lock(&gate.duties).term == self.0.leadership.since();
        let mut report = lock(&gate.report).clone();
        if !is_of_term {
            report.locked.clear();
        }
        Some(report)
    }

    /// What has been seen of a rule of a request.
    #[must_use]
    pub fn seen(&self, firewall: &FirewallId, rule: &str) -> Seen {
        let Some(gate) = lock(&self.0.gates).get(firewall).cloned() else {
            return Seen::Nothing;
        };
        let report = lock(&gate.report);
        report.grants.get(rule).cloned().unwrap_or_default()
    }

    /// The locks of a policy, on every firewall where it has, or lately had, machines. On firewalls that are
    /// not named, nothing of the policy is wanted any more and what stands there is left alone.
    pub fn set_locks(
        &self,
        policy_uid: &str,
        credential: &str,
        cloud: &Cloud,
        locks: BTreeMap<FirewallId, Option<Lock>>,
    ) {
        for gate in self.all().iter().filter(|gate| !locks.contains_key(&gate.firewall)) {
            gate.change(|duties| duties.forget(policy_uid));
        }
        let term = self.0.leadership.since();
        for (firewall, wanted) in locks {
            self.give(&firewall, credential, cloud, |gate| {
                gate.change(|duties| {
                    let other_term = duties.in_term(term);
                    duties.set_lock(policy_uid, credential, wanted) || other_term
                });
            });
        }
        self.has_said(policy_uid, term);
    }

    /// Every gate knows by now what a policy wants; those that waited for that go on.
    fn has_said(&self, policy_uid: &str, term: Option<Timestamp>) {
        if self.0.heard.note(policy_uid, term) {
            let owner = uid12(policy_uid);
            for gate in self.all() {
                gate.change(|duties| duties.waits_for.remove(&owner));
            }
        }
    }

    /// A policy is gone, whatever it has said: those that waited for its word go on.
    pub fn policy_is_gone(&self, policy_uid: &str) {
        self.has_said(policy_uid, self.0.leadership.since());
    }

    /// Nothing of a policy is wanted any more, and what stands of its locks is left alone.
    pub fn forget(&self, policy_uid: &str) {
        let term = self.0.leadership.since();
        for gate in self.all() {
            gate.change(|duties| duties.forget(policy_uid));
        }
        self.has_said(policy_uid, term);
    }

    /// The rules of a request, as its status says. Rules of it that are not named stay as they are: a cache
    /// that lags behind does not name them yet. The sweep, which lists, ends those that are nobody's.
    ///
    /// `unfinished` are those that may come to stand for so long by a write of another replica.
    pub fn set_grants(
        &self,
        request_uid: &str,
        credential: &str,
        cloud: &Cloud,
        grants: Vec<(FirewallId, Grant)>,
        unfinished: &[(FirewallId, String, Duration)],
    ) {
        let mut by_firewall: HashMap<FirewallId, Vec<Grant>> = HashMap::new();
        for (firewall, grant) in grants {
            by_firewall.entry(firewall).or_default().push(grant);
        }
        for gate in self.all().iter().filter(|gate| !by_firewall.contains_key(&gate.firewall)) {
            gate.set_grants(request_uid, credential, Vec::new(), Vec::new(), self.0.clock.now());
        }
        for (firewall, wanted) in by_firewall {
            let now = self.0.clock.now();
            self.give(&firewall, credential, cloud, |gate| {
                let here = unfinished.iter().filter(|(of, _, _)| *of == firewall);
                let left = here.map(|(_, name, left)| (name.as_str(), *left));
                gate.set_grants(request_uid, credential, wanted, left.collect(), now);
            });
        }
    }

    /// What rules of requests lead on at a firewall, written or about to be.
    #[must_use]
    pub fn mappings(&self, firewall: &FirewallId) -> Vec<PortMapping> {
        let Some(gate) = lock(&self.0.gates).get(firewall).cloned() else { return Vec::new() };
        let duties = lock(&gate.duties);
        let mappings = duties.grants.values().filter_map(|grant| {
            Some(PortMapping {
                from: grant.translation?,
                to: *grant.destinations.first()?,
                ports: grant.ports.clone(),
                name: grant.name.clone(),
                closing: matches!(grant.duty, Duty::Close { .. }),
            })
        });
        mappings.collect()
    }

    /// UIDs of the requests that rules are kept or closed for.
    #[must_use]
    pub fn requests(&self) -> BTreeSet<String> {
        let uids = |gate: &Arc<Gate>| -> Vec<String> {
            lock(&gate.duties).grants.values().map(|grant| grant.request_uid.clone()).collect()
        };
        self.all().iter().flat_map(uids).collect()
    }

    /// Closes the rules of one request whose object is gone.
    pub fn end(&self, request_uid: &str) {
        let now = self.0.clock.now();
        for gate in self.all() {
            gate.change(|duties| duties.end(request_uid, now));
        }
    }

    /// Allows that the holder of the lease has read back as gone: nothing is left to do for them here.
    pub fn are_gone(&self, allows: Vec<(FirewallId, String)>) {
        let now = self.0.clock.now();
        for (firewall, name) in allows {
            if let Some(gate) = lock(&self.0.gates).get(&firewall) {
                gate.change(|duties| duties.is_gone(&name, now));
            }
        }
    }

    /// The last read of every firewall, with the name of a credential that reaches it.
    #[must_use]
    pub fn observed(&self) -> Vec<(String, Observed)> {
        let of = |gate: &Arc<Gate>| {
            let credential = lock(&gate.duties).clouds.keys().next().cloned()?;
            let observed = lock(&gate.report).observed.clone()?;
            Some((credential, (*observed).clone()))
        };
        self.all().iter().filter_map(of).collect()
    }

    /// Closes allows of ours that a sweep found to be nobody's; how many of them nobody was closing yet.
    pub fn close_orphans(
        &self,
        firewall: &FirewallId,
        credential: &str,
        cloud: &Cloud,
        names: BTreeSet<String>,
    ) -> usize {
        let mut news = 0;
        self.give(firewall, credential, cloud, |gate| {
            gate.change(|duties| {
                let before = duties.orphans.len();
                for name in names {
                    news += usize::from(!duties.orphans.contains(&name) && !duties.has_grant(&name));
                    duties.orphans.insert(name);
                }
                duties.orphans.len() != before
            });
        });
        news
    }

    /// Shows a gate, where there is one, another way to its firewall, for the closes that it has.
    pub fn offer_way(&self, firewall: &FirewallId, credential: &str, cloud: &Cloud) {
        if let Some(gate) = lock(&self.0.gates).get(firewall) {
            // Known before: no news, and no reason to try again sooner.
            gate.change(|duties| duties.clouds.insert(credential.to_owned(), cloud.clone()).is_none());
        }
    }

    /// How many rules are past their deadline, or nobody's, and not read back as gone.
    #[must_use]
    pub fn overdue(&self) -> usize {
        let now = self.0.clock.now();
        let of = |gate: &Arc<Gate>| {
            let duties = lock(&gate.duties);
            let report = lock(&gate.report);
            let late = duties.grants.values().filter(|grant| grant.deadline <= now);
            let late =
                late.filter(|grant| !matches!(report.grants.get(&grant.name), Some(Seen::Absent { .. })));
            late.count() + duties.orphans.iter().filter(|name| !duties.has_grant(name)).count()
        };
        self.all().iter().map(of).sum()
    }

    fn all(&self) -> Vec<Arc<Gate>> {
        lock(&self.0.gates).values().cloned().collect()
    }

    /// Gives duties to the gate of a firewall, which is made where there is none.
    ///
    /// Under the lock of all gates: a gate that goes because nothing is wanted of it goes under the same lock, so
    /// none goes with a duty just given.
    fn give(&self, firewall: &FirewallId, credential: &str, cloud: &Cloud, duty: impl FnOnce(&Gate)) {
        let mut gates = lock(&self.0.gates);
        let gate = gates.entry(firewall.clone()).or_insert_with(|| {
            let gate = Arc::new(Gate {
                firewall: firewall.clone(),
                duties: Mutex::default(),
                report: Mutex::default(),
                unanswered: Mutex::default(),
                wake: Notify::new(),
            });
            self.0.tasks.spawn(worker::keep_running(Arc::clone(&self.0), Arc::clone(&gate)));
            gate
        });
        lock(&gate.duties).clouds.insert(credential.to_owned(), cloud.clone());
        duty(gate);
    }
}

impl Gate {
    /// Changes the duties and, if the change says that it was one, wakes the worker.
    fn change(&self, change: impl FnOnce(&mut Duties) -> bool) {
        let mut duties = lock(&self.duties);
        if change(&mut duties) {
            duties.version += 1;
            drop(duties);
            self.wake.notify_one();
        }
    }

    fn set_grants(
        &self,
        request_uid: &str,
        credential: &str,
        wanted: Vec<Grant>,
        unfinished: Vec<(&str, Duration)>,
        now: Timestamp,
    ) {
        self.change(|duties| {
            let mut unanswered = lock(&self.unanswered);
            let mut noted = false;
            for (name, left) in unfinished {
                if unanswered.note_others(name, left) {
                    // That it was read back as gone proves nothing any more.
                    lock(&self.report).grants.remove(name);
                    noted = true;
                }
            }
            duties.set_grants(request_uid, credential, wanted, &unanswered, now) || noted
        });
    }
}
