//! The protocol of several replicas, explored exhaustively at small size: every schedule of a few faults over two
//! replicas, one network security group and one or two requests.
//!
//! What decides is what decides in production: the life of a request ([`lifecycle::step`], [`duties`], [`may_land`],
//! [`gone`]), who holds the lease ([`Knowledge`]), and what is written to a group ([`changes::plan`]). The model adds what
//! surrounds them: an API server with versions, a lease, a cloud whose writes may land late or not at all, replicas that
//! forget, sleep or are cut off. Time goes in steps; in each, replicas that are awake do what is due, in either order, and
//! at most one thing goes wrong.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portcullis::api::{FINALIZER, JitAccessRequest, RuleStatus, State};
use portcullis::plan::admission::Admission;
use portcullis::plan::authorize::Judgement;
use portcullis::plan::changes::{self, grant_rule};
use portcullis::plan::desired::{Duty, Grant, WRITE_ANSWER};
use portcullis::plan::lease::{GRACE, Knowledge, Moment, Next, Record, Role, Tenure, Times};
use portcullis::plan::lifecycle::{Finalizer, Ground, Seen, World, duties, gone, may_land, state, step};
use portcullis::plan::model::FirewallKind;
use portcullis::plan::names::Cluster;
use portcullis::plan::reviews::Tally;
use portcullis::plan::terms::Patience;
use stateright::{Checker, Model, Property};

use crate::plan_lifecycle::{plan, request, start};
use crate::plan_world::{LIMITS, nsg, wanted};

mod system;

/// Seconds a step.
const STEP: i64 = 5;
/// Steps until everything has to be over: a grant of 30 s, a lease of 15 s, the longest sleep, and what lands late.
const HORIZON: u8 = 24;
/// How long a grant is, in seconds.
const LIFE: u64 = 30;
/// How long a replica sleeps, or is cut off, in steps.
const SLEEP: u8 = 5;
/// When a write that is late lands, in steps; and for how long it is reckoned with, in seconds.
const LATE: u8 = 5;
const UNFINISHED: Duration = Duration::from_secs(30);
/// How long an allow may stand past its deadline, or after it has landed late, while a replica is awake: until another
/// one than the holder acts, and a step.
const BOUND: i64 = 10 + 2 * STEP;

fn at(step: u8) -> Timestamp {
    start() + SignedDuration::from_secs(i64::from(step) * STEP)
}

fn moment(step: u8, born: u8) -> Duration {
    Duration::from_secs(u64::from(step - born) * STEP.unsigned_abs())
}

/// A request as the API server has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Object(String);

impl Object {
    fn new(request: &JitAccessRequest) -> Self {
        Self(serde_json::to_string(request).unwrap())
    }

    fn get(&self) -> JitAccessRequest {
        serde_json::from_str(&self.0).unwrap()
    }
}

/// What a replica knows of one allow.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    request: usize,
    duty: Duty,
    deadline: Timestamp,
    /// Since when it is to be removed.
    closing: Option<Timestamp>,
    /// Until when a write of it that was not answered may land.
    lands: Option<Timestamp>,
    seen: Sight,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sight {
    Nothing,
    Present(Timestamp),
    Absent(Timestamp, bool),
    Lost(Timestamp),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Replica {
    /// In which step this process was started.
    born: u8,
    knowledge: Knowledge,
    /// Steps for which it does nothing.
    sleeps: u8,
    /// Steps for which it does not reach the API server.
    cut_off: u8,
    known: BTreeMap<String, Known>,
    /// Requests whose allows it has written ahead itself, or had proved to it.
    vouched: BTreeSet<usize>,
    /// Requests that it has granted, and in which tenure.
    granted: BTreeMap<usize, Moment>,
}

impl Replica {
    fn new(number: usize, born: u8) -> Self {
        Self {
            born,
            knowledge: Knowledge::new(format!("replica-{number}"), Times::default(), Duration::ZERO),
            sleeps: 0,
            cut_off: 0,
            known: BTreeMap::new(),
            vouched: BTreeSet::new(),
            granted: BTreeMap::new(),
        }
    }
}

/// A write of an allow that the cloud has not carried out yet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Flight {
    name: String,
    lands: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct System {
    step: u8,
    /// How many things may still go wrong.
    faults: u8,
    requests: Vec<Object>,
    /// Its holder, its version and its term.
    lease: Option<(usize, u32, u32)>,
    replicas: Vec<Replica>,
    /// Allows that stand, and since when.
    standing: BTreeMap<String, u8>,
    flights: Vec<Flight>,
    /// Names that were removed while no write of them was under way: none may be written any more.
    removed: BTreeSet<String>,
    /// Since when some replica is awake, without a break.
    awake: Option<u8>,
    wrong: Option<&'static str>,
}

/// What goes wrong in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Fault {
    Nothing,
    /// Forgets everything and starts again.
    Crash(usize),
    Sleep(usize),
    CutOff(usize),
    ApiAway,
    /// Writes of this step land late, unanswered.
    Late,
    /// The same, and whoever sent them dies.
    LateCrash(usize),
    /// The same, and whoever sent them sleeps.
    LateSleep(usize),
    /// No fault: somebody deletes the first request.
    Delete,
    /// No fault: the other replica is first.
    OtherOrder,
}

struct Protocol {
    requests: usize,
    faults: u8,
}

impl Model for Protocol {
    type State = System;
    type Action = Fault;

    fn init_states(&self) -> Vec<System> {
        let one = |number: usize| {
            let mut one = request(LIFE + 10 * number as u64);
            one.metadata.uid = Some(format!("{number}f8fad5b-d9cb-469f-a165-70867728950e"));
            Object::new(&one)
        };
        vec![System {
            step: 0,
            faults: self.faults,
            requests: (0..self.requests).map(one).collect(),
            lease: None,
            replicas: (0..2).map(|number| Replica::new(number, 0)).collect(),
            standing: BTreeMap::new(),
            flights: Vec::new(),
            removed: BTreeSet::new(),
            awake: Some(0),
            wrong: None,
        }]
    }

    fn actions(&self, state: &System, actions: &mut Vec<Fault>) {
        if state.step >= HORIZON || state.wrong.is_some() {
            return;
        }
        actions.push(Fault::Nothing);
        if state.faults == 0 {
            return;
        }
        actions.extend([Fault::OtherOrder, Fault::ApiAway, Fault::Late, Fault::Delete]);
        for replica in 0..2 {
            actions.extend([
                Fault::Crash(replica),
                Fault::Sleep(replica),
                Fault::CutOff(replica),
                Fault::LateCrash(replica),
                Fault::LateSleep(replica),
            ]);
        }
    }

    fn next_state(&self, last: &System, fault: Fault) -> Option<System> {
        let mut next = last.clone();
        if fault != Fault::Nothing {
            next.faults -= 1;
        }
        next.pass(fault);
        Some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("nothing is wrong", |_, state: &System| state.wrong.is_none()),
            Property::always("in the end nothing stands and every request is over", |_, state: &System| {
                let over = |object: &Object| {
                    let request = object.get();
                    portcullis::plan::lifecycle::state(&request).is_last()
                        && request.metadata.finalizers.is_none()
                };
                state.step < HORIZON || (state.standing.is_empty() && state.requests.iter().all(over))
            }),
            // Else the model would prove nothing.
            Property::sometimes("a grant is open", |_, state: &System| !state.standing.is_empty()),
            Property::sometimes(
                "a grant is open that the second replica has written",
                |_, state: &System| {
                    state.lease.is_some_and(|(holder, ..)| holder == 1)
                        && state.replicas[1]
                            .known
                            .values()
                            .any(|known| matches!(known.seen, Sight::Present(_)))
                },
            ),
            Property::sometimes("a write is under way for long", |_, state: &System| {
                !state.flights.is_empty()
            }),
        ]
    }
}

#[allow(clippy::print_stdout)]
fn explore(requests: usize, faults: u8) {
    let checker = Protocol { requests, faults }.checker().threads(2).spawn_bfs().join();
    println!("{requests} requests, {faults} faults: {} states", checker.unique_state_count());
    checker.assert_properties();
}

#[test]
fn one_request_and_two_with_any_fault() {
    explore(1, 1);
    explore(2, 1);
}

/// Two holders have begun to write the same allow, and nobody knows of either write. Found with two faults in a schedule.
#[test]
fn a_write_that_was_begun_twice_is_waited_for_to_the_end_of_the_second() {
    let protocol = Protocol { requests: 1, faults: 2 };
    let mut state = protocol.init_states().remove(0);
    let schedule = [Fault::LateSleep(0), Fault::Nothing, Fault::Nothing, Fault::LateCrash(1)];
    for fault in schedule.into_iter().chain(std::iter::repeat(Fault::Nothing)).take(HORIZON.into()) {
        state = protocol.next_state(&state, fault).unwrap();
        assert_eq!(state.wrong, None, "in step {}: {state:#?}", state.step);
    }
    assert!(state.standing.is_empty() && state.requests[0].get().metadata.finalizers.is_none());
}

/// As many faults in one schedule as `PORTCULLIS_MODEL_FAULTS` says: with two, it takes minutes.
#[test]
fn one_request_and_two_with_as_many_faults_as_are_asked_for() {
    if let Some(faults) = std::env::var("PORTCULLIS_MODEL_FAULTS").ok().and_then(|text| text.parse().ok()) {
        explore(1, faults);
        explore(2, faults);
    }
}
