//! One instance's whole state, and how it moves in time.
//!
//! Everything sits behind one lock. Nothing runs in the background: whoever looks first lets all that has become
//! due happen, in the order of its due times and dated by them, so that history does not depend on who polls.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use rand::{SeedableRng, rngs::StdRng};
use serde_json::json;
use uuid::Uuid;

use crate::{
    Options,
    arm::{
        errors::ArmError,
        ids::ResourceId,
        operations::{Bend, Operation, Operations, Status},
        store::{Fact, Resource, State, Store},
        throttle::Throttle,
    },
    control::{
        activity::Activity,
        clock::{Clock, Span},
        faults::Faults,
        settings::Settings,
    },
    http::Call,
    identity::principals::{Caller, Principals},
    oracle::{
        plane::{Change, Connection, DataPlane},
        tags::ServiceTags,
    },
    resources::addresses::Pools,
};

/// What happens at a time to come.
#[derive(Debug)]
enum Event {
    OperationEnds(Uuid),
    PlaneChanges(Vec<Change>),
    /// A write whose sender was told something else long ago.
    LateWrite(Box<(Call, Caller)>),
}

#[derive(Debug)]
pub(crate) struct World {
    pub(crate) clock: Clock,
    /// Set while something is handled: all of it happens at one instant.
    instant: Option<Timestamp>,
    pub(crate) store: Store,
    pub(crate) operations: Operations,
    pub(crate) plane: DataPlane,
    pub(crate) settings: Settings,
    pub(crate) faults: Faults,
    pub(crate) activity: Activity,
    pub(crate) principals: Principals,
    pub(crate) throttle: Throttle,
    pub(crate) service_tags: ServiceTags,
    pub(crate) pools: Pools,
    /// Subscription ids and the tenant each trusts.
    pub(crate) subscriptions: BTreeMap<String, String>,
    /// Namespaces that are not registered, per subscription.
    pub(crate) unregistered: HashSet<(String, String)>,
    pub(crate) rng: StdRng,
    events: BTreeMap<(Timestamp, u64), Event>,
    sequence: u64,
    /// When the data plane last changes for each top-level resource: later pushes do not overtake.
    plane_due: BTreeMap<String, Timestamp>,
    /// Ids that the request at hand has created, updated or removed, for the activity log.
    pub(crate) mutations: Vec<(String, &'static str)>,
    /// Connections that were made, by their number less one.
    pub(crate) connections: Vec<Connection>,
}

impl World {
    pub(crate) fn new(options: &Options) -> Self {
        Self {
            clock: Clock::real(),
            instant: None,
            store: Store::default(),
            operations: Operations::default(),
            plane: DataPlane::default(),
            settings: {
                let mut settings = Settings::new(options.latency);
                settings.retry_after = options.retry_after;
                settings
            },
            faults: Faults::default(),
            activity: Activity::default(),
            principals: Principals::new(options),
            throttle: Throttle::default(),
            service_tags: ServiceTags::default(),
            pools: Pools::default(),
            subscriptions: options
                .subscriptions
                .iter()
                .map(|s| (s.to_lowercase(), options.tenant_id.to_lowercase()))
                .collect(),
            unregistered: HashSet::new(),
            rng: StdRng::seed_from_u64(options.seed),
            events: BTreeMap::new(),
            sequence: 0,
            plane_due: BTreeMap::new(),
            mutations: vec![],
            connections: vec![],
        }
    }

    pub(crate) fn now(&self) -> Timestamp {
        self.instant.unwrap_or_else(|| self.clock.now())
    }

    /// Lets everything happen that is due, then holds time still for `act`.
    pub(crate) fn at_once<T>(&mut self, act: impl FnOnce(&mut Self) -> T) -> T {
        self.advance();
        self.instant = Some(self.clock.now());
        let result = act(self);
        self.instant = None;
        result
    }

    /// Handles all events up to now.
    pub(crate) fn advance(&mut self) {
        // A panic while time stood still must not stop it for good.
        self.instant = None;
        let until = self.clock.now();
        while let Some(entry) = self.events.first_entry() {
            if entry.key().0 > until {
                break;
            }
            let ((at, _), event) = entry.remove_entry();
            self.instant = Some(at);
            match event {
                Event::OperationEnds(id) => self.end_operation(id),
                Event::PlaneChanges(changes) => self.plane.apply(at, changes),
                Event::LateWrite(late) => {
                    let (call, caller) = *late;
                    crate::arm::land(self, &call, &caller);
                }
            }
            self.instant = None;
        }
    }

    fn schedule(&mut self, at: Timestamp, event: Event) {
        self.sequence += 1;
        self.events.insert((at, self.sequence), event);
    }

    fn later(&self, span: Span) -> Timestamp {
        self.now().checked_add(span.0).unwrap_or(Timestamp::MAX)
    }

    pub(crate) fn write_later(&mut self, after: Span, call: Call, caller: Caller) {
        let at = self.later(after);
        self.schedule(at, Event::LateWrite(Box::new((call, caller))));
    }

    pub(crate) fn new_etag(&self) -> String {
        format!("W/\"{}\"", Uuid::new_v4())
    }

    /// Stores a resource's document, and marks it as changing.
    pub(crate) fn store_body(&mut self, id: &ResourceId, body: serde_json::Value, state: State) {
        let change = if self.store.has(&id.key) { "updated" } else { "created" };
        self.mutations.push((id.text.clone(), change));
        let fact = Arc::new(Fact { id: id.clone(), body });
        let etag = self.new_etag();
        self.store.put(self.now(), Resource { fact, etag, state });
    }

    /// Takes a resource and all below it out of the goal state.
    pub(crate) fn remove_tree(&mut self, key: &str) -> Vec<Arc<Resource>> {
        let now = self.now();
        let prefix = format!("{key}/");
        let mut keys: Vec<String> = self.store.under(&prefix).map(|r| r.id().key.clone()).collect();
        keys.push(key.to_owned());
        let removed: Vec<_> = keys.iter().filter_map(|k| self.store.remove(now, k)).collect();
        for resource in &removed {
            self.mutations.push((resource.id().text.clone(), "deleted"));
        }
        removed
    }

    /// Changes a stored resource's state and gives it a new ETag.
    pub(crate) fn mark(&mut self, key: &str, state: State) {
        let Some(old) = self.store.get(key) else { return };
        let etag = self.new_etag();
        self.store.put(self.now(), Resource { fact: old.fact.clone(), etag, state });
    }

    /// Starts the operation of a write that has just been stored.
    pub(crate) fn begin(&mut self, start: Start, bend: Option<Bend>) -> Uuid {
        let bend = bend.unwrap_or_else(|| Bend { applies: true, ..Bend::default() });
        let root = start.target.root();
        let location = self
            .store
            .get(&root.key)
            .and_then(|r| r.body()["location"].as_str().map(str::to_owned))
            .unwrap_or_else(|| "westeurope".to_owned());
        let latency = match bend.duration {
            Some(span) => span,
            None => self.settings.latency_of(&start.kind).draw(&mut self.rng),
        };
        let due = self.later(latency);
        let operation = Operation {
            id: Uuid::new_v4(),
            kind: start.kind,
            target: start.target,
            root: root.key.clone(),
            started: self.now(),
            ended: None,
            status: Status::InProgress,
            shown_from: bend.poll_lag.map(|lag| due.checked_add(lag.0).unwrap_or(Timestamp::MAX)),
            error: None,
            touched: start.touched,
            removes: start.removes,
            undo: start.undo,
            deletes: start.deletes,
            location,
            bend,
        };
        let id = operation.id;
        for key in &operation.touched {
            self.mark(key, if operation.removes.contains(key) { State::Deleting } else { State::Updating });
        }
        // A write that never ends and never applies holds its lock until another supersedes it.
        if operation.bend.applies || !operation.bend.never {
            self.schedule(due, Event::OperationEnds(id));
        }
        self.operations.holders.insert(root.key, id);
        self.operations.all.insert(id, operation);
        id
    }

    /// Ends the running operation on a top-level resource because a whole write replaces it.
    pub(crate) fn supersede(&mut self, root: &str) {
        let now = self.now();
        let Some(id) = self.operations.holders.remove(root) else { return };
        if let Some(operation) = self.operations.all.get_mut(&id) {
            operation.status = Status::Canceled;
            operation.ended = Some(now);
            let error = ArmError::conflict(
                "CanceledAndSupersededDueToAnotherOperation",
                format!("Operation {} was canceled and superseded by another operation.", operation.kind),
            );
            let inner =
                json!({"code": "CanceledAndSupersededDueToAnotherOperation", "message": error.message});
            operation.error =
                Some(json!({"code": "Canceled", "message": "Operation was canceled.", "details": [inner]}));
        }
    }

    fn end_operation(&mut self, id: Uuid) {
        let now = self.now();
        let Some(operation) = self.operations.all.get_mut(&id) else { return };
        if operation.status != Status::InProgress {
            return;
        }
        let code = match (&operation.bend.fails, operation.bend.canceled) {
            (Some(code), _) => Some(code.clone()),
            (None, true) => Some("Canceled".to_owned()),
            (None, false) => None,
        };
        operation.ended = Some(now);
        operation.status = match (&code, operation.bend.canceled) {
            (None, _) => Status::Succeeded,
            (Some(_), true) => Status::Canceled,
            (Some(_), false) => Status::Failed,
        };
        operation.error =
            code.map(|code| json!({"code": code, "message": "An error occurred.", "details": []}));
        let failed = operation.error.is_some();
        let (root, touched, removes) =
            (operation.root.clone(), operation.touched.clone(), operation.removes.clone());
        let undo = std::mem::take(&mut operation.undo);
        if self.operations.holders.get(&root) == Some(&id) {
            self.operations.holders.remove(&root);
        }
        let state = if failed { State::Failed } else { State::Succeeded };
        if failed {
            for resource in undo {
                self.store.put(now, Resource { state: State::Failed, ..(*resource).clone() });
            }
        } else {
            for key in &removes {
                self.remove_tree(key);
            }
            self.mutations.clear();
        }
        for key in &touched {
            self.mark(key, state);
        }
        if !failed {
            let roots: BTreeSet<String> = removes.into_iter().chain([root]).collect();
            for root in roots {
                self.push(&root);
            }
        }
    }

    /// Sends the goal state of a top-level resource and all below it to the data plane, after its lag.
    pub(crate) fn push(&mut self, root: &str) {
        let lag = self.settings.data_plane_lag.draw(&mut self.rng);
        let mut due = self.later(lag);
        if let Some(last) = self.plane_due.get(root) {
            due = due.max(*last);
        }
        let below = format!("{root}/");
        let mut changes: Vec<Change> = self
            .store
            .get(root)
            .iter()
            .chain(self.store.under(&below))
            .map(|r| (r.id().key.clone(), Some(r.fact.clone())))
            .collect();
        let here: HashSet<&String> = changes.iter().map(|(key, _)| key).collect();
        let gone: Vec<_> = self
            .plane
            .keys_under(root)
            .filter(|key| !here.contains(key))
            .map(|key| (key.clone(), None))
            .collect();
        changes.extend(gone);
        if due <= self.now() {
            let now = self.now();
            self.plane.apply(now, changes);
            return;
        }
        self.plane_due.insert(root.to_owned(), due);
        self.schedule(due, Event::PlaneChanges(changes));
    }

    /// What is still to come, for the control door.
    pub(crate) fn pending_events(&self) -> usize {
        self.events.len()
    }
}

/// What an operation is about.
pub(crate) struct Start {
    pub(crate) kind: String,
    pub(crate) target: ResourceId,
    pub(crate) touched: Vec<String>,
    pub(crate) removes: Vec<String>,
    pub(crate) undo: Vec<Arc<Resource>>,
    pub(crate) deletes: bool,
}
