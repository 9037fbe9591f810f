//! Numbers for Prometheus. Names of what every controller has are those of controller-runtime, so that
//! dashboards made for others work.

use std::sync::Arc;
use std::time::Duration;

use axum::http::header;
use axum::response::IntoResponse;
use axum::routing::get;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};

use crate::api::Reason;

mod clouds;

pub use clouds::CloudUse;
use clouds::Clouds;

/// What a metric is, for its registration and for the reference in the docs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Description {
    /// Its name, without the `_total` that counters get when they are read.
    pub name: &'static str,
    /// `counter`, `gauge`, `histogram` or `info`.
    pub kind: &'static str,
    /// Its labels.
    pub labels: &'static [&'static str],
    /// What it counts, in a sentence.
    pub help: &'static str,
}

macro_rules! descriptions {
    ($($constant:ident: $kind:literal $name:literal [$($label:literal),*] $help:literal;)+) => {
        $(const $constant: Description =
            Description { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)+

        /// Every metric, in the order of the docs.
        pub const ALL: &[Description] = &[$($constant),+];
    };
}

descriptions! {
    BUILD_INFO: "info" "portcullis_build" ["version", "commit"] "The version that runs, and the commit that it was built from";
    RECONCILES: "counter" "controller_runtime_reconcile" ["controller", "result"] "Reconciles, by result: success, requeue_after or error";
    RECONCILE_TIME: "histogram" "controller_runtime_reconcile_time_seconds" ["controller"] "How long a reconcile took";
    ACTIVE_WORKERS: "gauge" "controller_runtime_active_workers" ["controller"] "Reconciles under way";
    REST_REQUESTS: "counter" "rest_client_requests" ["code", "method"] "Calls to the API server, by method and status of the answer; code is error where none came";
    CLOUD_REQUESTS: "counter" "portcullis_cloud_requests" ["credential", "method", "code"] "Calls to the cloud, by method and status of the answer; code is error where none came";
    CLOUD_WAITS: "counter" "portcullis_cloud_waits" ["credential"] "Calls that waited before they were sent, to stay below the cloud's limits or because it had asked to";
    CLOUD_WAITED: "counter" "portcullis_cloud_waited_seconds" ["credential"] "How long those calls have waited, together";
    CLOUD_BUDGET: "gauge" "portcullis_cloud_budget" ["credential", "class"] "Calls left until removals of rules have to wait, in the subscription where they are fewest, by class (read, write, delete, network); of each a quarter is kept from openings and a tenth from locks; below 0 removals alone go on";
    CLOUD_WRITES: "counter" "portcullis_cloud_writes" ["operation", "outcome"] "Writes to the cloud, by operation (open, close, lock, unlock) and outcome";
    EXPIRY_LAG: "histogram" "portcullis_expiry_lag_seconds" [] "Time from the deadline of a rule to the moment it was read back as gone";
    TIME_TO_OPEN: "histogram" "portcullis_time_to_open_seconds" [] "Time from the grant of a request to the moment all its rules were read back";
    OVERDUE_RULES: "gauge" "portcullis_overdue_rules" [] "Allow rules that are past their deadline, or nobody's, and not yet read back as gone";
    OPEN_GRANTS: "gauge" "portcullis_open_grants" [] "Requests whose rules may stand in the cloud";
    DRIFT_REPAIRS: "counter" "portcullis_drift_repairs" ["kind"] "Rules of locks that somebody else removed or changed and that were put back";
    LOCKDOWN_EFFECTIVE: "gauge" "portcullis_lockdown_effective" ["namespace", "policy"] "1 where the ports of the policy are closed to everybody without a grant, else 0";
    REFUSALS: "counter" "portcullis_refusals" ["reason"] "Requests and rules that were refused, by reason";
    SWEEPS: "counter" "portcullis_sweeps" ["result"] "Sweeps for overdue and orphaned rules, by result";
    SWEPT_RULES: "counter" "portcullis_swept_rules" [] "Overdue rules and rules of nobody that a sweep found and had closed";
    ADMISSION_IN_FORCE: "gauge" "portcullis_admission_in_force" [] "1 where requests and reviews that are created now count, 0 where the admission policies are not provably in force and nothing is opened, or another replica holds the lease";
    API_CLOCK_AHEAD: "gauge" "portcullis_api_server_clock_ahead_seconds" [] "By how much the API server's clock was ahead of ours when it last answered; more than 30 s apart, nothing is opened";
    CLOCK_AHEAD: "gauge" "portcullis_cloud_clock_ahead_seconds" ["credential"] "By how much the cloud's clock was ahead of ours when it last answered; more than 30 s apart, nothing is opened";
    THROTTLED: "gauge" "portcullis_cloud_throttled_seconds" ["credential"] "For how long the cloud has asked to wait; closes do not wait";
    LEADER: "gauge" "leader_election_master_status" ["name"] "1 where this replica holds the lease and writes, else 0";
    EVENTS: "counter" "portcullis_events" ["type"] "Events written, by type (Normal, Warning)";
    AUDIT_RECORDS: "counter" "portcullis_audit_records" ["outcome"] "Audit records, by outcome: written to standard output, or dropped";
    LOG_LINES_DROPPED: "counter" "portcullis_log_lines_dropped" [] "Log lines that were dropped because nobody read standard error";
}

/// How a reconcile ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ReconcileResult {
    /// Nothing more to do until something changes.
    Success,
    /// To be looked at again after a time.
    RequeueAfter,
    /// Failed; tried again with growing delays.
    Error,
}

/// How a write to the cloud ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CloudOutcome {
    /// The cloud ended it well.
    Succeeded,
    /// The cloud refused or failed it.
    Failed,
    /// Nobody knows whether it was written.
    Ambiguous,
}

/// What somebody else did to a rule of ours.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum DriftKind {
    /// Took it away.
    Removed,
    /// Changed it.
    Changed,
}

/// How a sweep ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SweepResult {
    /// Every scope was read.
    Complete,
    /// At least one scope could not be read.
    Incomplete,
}

macro_rules! label_value {
    ($kind:ident { $($variant:ident = $text:literal),+ }) => {
        impl EncodeLabelValue for $kind {
            fn encode(
                &self,
                encoder: &mut prometheus_client::encoding::LabelValueEncoder<'_>,
            ) -> Result<(), std::fmt::Error> {
                EncodeLabelValue::encode(&match self { $(Self::$variant => $text),+ }, encoder)
            }
        }
    };
}

label_value!(ReconcileResult { Success = "success", RequeueAfter = "requeue_after", Error = "error" });
label_value!(CloudOutcome { Succeeded = "succeeded", Failed = "failed", Ambiguous = "ambiguous" });
label_value!(DriftKind { Removed = "removed", Changed = "changed" });
label_value!(SweepResult { Complete = "complete", Incomplete = "incomplete" });

type Labels<const N: usize> = [(&'static str, &'static str); N];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reconcile {
    controller: &'static str,
    result: ReconcileResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct CloudWrite {
    operation: &'static str,
    outcome: CloudOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DriftRepair {
    kind: DriftKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Policy {
    namespace: String,
    policy: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Sweep {
    result: SweepResult,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RestRequest {
    code: String,
    method: String,
}

/// A reconcile that is under way.
#[derive(Debug)]
pub struct AtWork(Gauge);

impl Drop for AtWork {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The metrics of the program. Clones share them.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Family<Reconcile, Counter>,
    reconcile_time: Family<Labels<1>, Histogram, fn() -> Histogram>,
    cloud_writes: Family<CloudWrite, Counter>,
    expiry_lag: Histogram,
    time_to_open: Histogram,
    overdue_rules: Gauge,
    open_grants: Gauge,
    drift_repairs: Family<DriftRepair, Counter>,
    lockdown_effective: Family<Policy, Gauge>,
    refusals: Family<Labels<1>, Counter>,
    sweeps: Family<Sweep, Counter>,
    swept_rules: Counter,
    admission_in_force: Gauge,
    api_clock_ahead: Gauge,
    active_workers: Family<Labels<1>, Gauge>,
    rest_requests: Family<RestRequest, Counter>,
    clouds: Clouds,
    leader: Family<Labels<1>, Gauge>,
    events: Family<Labels<1>, Counter>,
    audit_records: Family<Labels<1>, Counter>,
    log_lines_dropped: Counter,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

/// A call to the API server under way. Counts when it is dropped: without an answer, as one that failed.
#[derive(Debug)]
pub struct RestCall {
    calls: Family<RestRequest, Counter>,
    method: String,
    status: Option<u16>,
}

impl RestCall {
    /// It was answered.
    pub const fn answered(&mut self, status: u16) {
        self.status = Some(status);
    }
}

impl Drop for RestCall {
    fn drop(&mut self) {
        let labels = RestRequest { code: code(self.status), method: std::mem::take(&mut self.method) };
        self.calls.get_or_create(&labels).inc();
    }
}

impl Metrics {
    /// Metrics at zero.
    #[must_use]
    pub fn new() -> Self {
        let mut registry = Registry::default();
        registry.register(
            BUILD_INFO.name,
            BUILD_INFO.help,
            Info::new([("version", super::VERSION), ("commit", super::COMMIT)]),
        );
        let clouds = Clouds::default();
        registry.register_collector(Box::new(clouds.clone()));
        // From 1 s, the least that a cloud takes, to over two hours, which is an outage.
        let lag = || Histogram::new(exponential_buckets(1.0, 2.0, 14));
        Self {
            reconciles: add(&mut registry, RECONCILES, Family::default()),
            reconcile_time: add(
                &mut registry,
                RECONCILE_TIME,
                Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.001, 2.0, 16))),
            ),
            cloud_writes: add(&mut registry, CLOUD_WRITES, Family::default()),
            expiry_lag: add(&mut registry, EXPIRY_LAG, lag()),
            time_to_open: add(&mut registry, TIME_TO_OPEN, lag()),
            overdue_rules: add(&mut registry, OVERDUE_RULES, Gauge::default()),
            open_grants: add(&mut registry, OPEN_GRANTS, Gauge::default()),
            drift_repairs: add(&mut registry, DRIFT_REPAIRS, Family::default()),
            lockdown_effective: add(&mut registry, LOCKDOWN_EFFECTIVE, Family::default()),
            refusals: add(&mut registry, REFUSALS, Family::default()),
            sweeps: add(&mut registry, SWEEPS, Family::default()),
            swept_rules: add(&mut registry, SWEPT_RULES, Counter::default()),
            admission_in_force: add(&mut registry, ADMISSION_IN_FORCE, Gauge::default()),
            api_clock_ahead: add(&mut registry, API_CLOCK_AHEAD, Gauge::default()),
            active_workers: add(&mut registry, ACTIVE_WORKERS, Family::default()),
            rest_requests: add(&mut registry, REST_REQUESTS, Family::default()),
            leader: add(&mut registry, LEADER, Family::default()),
            events: add(&mut registry, EVENTS, Family::default()),
            audit_records: add(&mut registry, AUDIT_RECORDS, Family::default()),
            log_lines_dropped: add(&mut registry, LOG_LINES_DROPPED, Counter::default()),
            clouds,
            registry: Arc::new(registry),
        }
    }

    /// A reconcile ended. `controller` is `policy`, `request`, `review` or `gate`.
    pub fn reconcile(&self, controller: &'static str, result: ReconcileResult, took: Duration) {
        self.reconciles.get_or_create(&Reconcile { controller, result }).inc();
        self.reconcile_time.get_or_create(&[("controller", controller)]).observe(took.as_secs_f64());
    }

    /// A write to the cloud ended. `operation` is `open`, `close`, `lock` or `unlock`.
    pub fn cloud_write(&self, operation: &'static str, outcome: CloudOutcome) {
        self.cloud_writes.get_or_create(&CloudWrite { operation, outcome }).inc();
    }

    /// A rule was read back as gone, this long after its deadline; zero for one that was gone before it.
    pub fn expiry_lag(&self, lag: Duration) {
        self.expiry_lag.observe(lag.as_secs_f64());
    }

    /// Every rule of a request was read back, this long after its grant.
    pub fn time_to_open(&self, took: Duration) {
        self.time_to_open.observe(took.as_secs_f64());
    }

    /// How many allow rules are past their deadline and not yet read back as gone.
    pub fn overdue_rules(&self, count: usize) {
        self.overdue_rules.set(whole(count));
    }

    /// How many requests may have rules in the cloud.
    pub fn open_grants(&self, count: usize) {
        self.open_grants.set(whole(count));
    }

    /// A rule of a lock was put back.
    pub fn drift_repair(&self, kind: DriftKind) {
        self.drift_repairs.get_or_create(&DriftRepair { kind }).inc();
    }

    /// Whether the lock of a policy is effective.
    pub fn lockdown_effective(&self, namespace: &str, policy: &str, effective: bool) {
        let labels = Policy { namespace: namespace.to_owned(), policy: policy.to_owned() };
        self.lockdown_effective.get_or_create(&labels).set(i64::from(effective));
    }

    /// A policy is gone: so is its series.
    pub fn forget_policy(&self, namespace: &str, policy: &str) {
        let labels = Policy { namespace: namespace.to_owned(), policy: policy.to_owned() };
        self.lockdown_effective.remove(&labels);
    }

    /// A request or a rule was refused.
    pub fn refusal(&self, reason: Reason) {
        self.refusals.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// A sweep ended.
    pub fn sweep(&self, result: SweepResult) {
        self.sweeps.get_or_create(&Sweep { result }).inc();
    }

    /// A sweep found so many rules that are to be closed, and that nobody was closing.
    pub fn swept(&self, rules: u64) {
        self.swept_rules.inc_by(rules);
    }

    /// Whether what is created now counts.
    pub fn admission_in_force(&self, counts: bool) {
        self.admission_in_force.set(i64::from(counts));
    }

    /// A reconcile is under way for as long as the guard is held.
    #[must_use]
    pub fn at_work(&self, controller: &'static str) -> AtWork {
        let workers = self.active_workers.get_or_create(&[("controller", controller)]).clone();
        workers.inc();
        AtWork(workers)
    }

    /// A call to the API server is sent.
    #[must_use]
    pub fn rest_request(&self, method: &str) -> RestCall {
        RestCall { calls: self.rest_requests.clone(), method: method.to_owned(), status: None }
    }

    /// From now on the clouds are asked for what they count whenever metrics are read.
    pub fn ask_clouds(&self, ask: impl Fn() -> Vec<CloudUse> + Send + Sync + 'static) {
        self.clouds.ask(ask);
    }

    /// By how many seconds the API server's clock is ahead of ours.
    pub fn api_server_clock(&self, ahead: i64) {
        self.api_clock_ahead.set(ahead);
    }

    /// Whether this replica holds the lease. One that does not says nothing of what only the holder knows.
    pub fn leader(&self, holds: bool) {
        self.leader.get_or_create(&[("name", "portcullis")]).set(i64::from(holds));
        if !holds {
            self.admission_in_force.set(0);
            self.open_grants.set(0);
            self.lockdown_effective.clear();
        }
    }

    /// An Event was written; `kind` is `Normal` or `Warning`.
    pub fn event(&self, kind: &'static str) {
        self.events.get_or_create(&[("type", kind)]).inc();
    }

    /// An audit record was written, or dropped.
    pub fn audit_record(&self, written: bool) {
        self.audit_records.get_or_create(&[("outcome", if written { "written" } else { "dropped" })]).inc();
    }

    /// Counts log lines that were dropped.
    #[must_use]
    pub fn log_lines_dropped(&self) -> Counter {
        self.log_lines_dropped.clone()
    }

    /// Everything in the OpenMetrics text format.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing into a string cannot fail.
        let _ = text::encode(&mut out, &self.registry);
        out
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, what: Description, metric: M) -> M {
    registry.register(what.name, what.help, metric.clone());
    metric
}

/// A status as a label.
fn code(status: Option<u16>) -> String {
    status.map_or_else(|| "error".to_owned(), |status| status.to_string())
}

fn whole(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

/// `/metrics`.
pub fn router(metrics: Metrics) -> axum::Router {
    axum::Router::new().route(
        "/metrics",
        get(move || async move {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], metrics.render()).into_response()
        }),
    )
}

#[cfg(test)]
mod tests;
