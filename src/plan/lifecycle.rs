//! The life of a request: one pure function, [`step`].
//!
//! | state | entered by | left by | the cloud holds |
//! |---|---|---|---|
//! | Pending | created; plan changed, held or too few approvals left before the grant | within the terms, enough approvals or none asked -> Approved; refused, denied -> Denied; impossible -> Failed; ended, deleted -> Ended; `pendingTimeout`, `notAfter` -> TimedOut; older than the admission interval -> Void | nothing |
//! | Approved | Pending, Scheduled | `notBefore` ahead -> Scheduled; admission in force, room under the limits, finalizer there: write-ahead -> Opening; `useWithin` -> TimedOut; plan changed, held, too few approvals left -> Pending; else as Pending | nothing |
//! | Scheduled | Approved | start -> Approved, judged again; plan changed -> Pending; else as Approved | nothing |
//! | Opening | write-ahead; a shortening | all read back -> Active; shortened -> Opening; not written ahead by this process and not proved, an error that stays, the write bound, the deadline, any end -> Closing | 0 to n allows |
//! | Active | read-back | shortened -> Opening; deadline, deleted, revoked, denied, ended, policy, machine, missing allow, rules other than the plan's -> Closing | n allows |
//! | Closing | its outcome recorded first | all read back as absent -> that outcome | n to 0 |
//! | Expired, Ended, Revoked, Failed | Closing (Ended also from Pending, Failed also before any write) | finalizer off, then `settled`; if deleted, gone | nothing |
//! | Denied, TimedOut, Void | above | the same | nothing |
//!
//! While admission is not in force, nothing is granted: what waits stays where it is, with `Stalled=True`, and can
//! still end. Live grants go on.
//!
//! The function is total: any status, also one that no version of this program would write, leads to a state
//! from which everything is closed. `now` is a parameter. One call makes at most one move; the caller writes
//! the status and calls again.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::admission::Admission;
use super::authorize::{GrantPlan, Judgement};
use super::names::Cluster;
use super::reviews::{Tally, Word};
use super::terms::{Ask, Patience};
use crate::api::{
    ConditionType, FINALIZER, JitAccessRequest, JitAccessRequestStatus, Reason, RequestSummary, RuleState,
    RuleStatus, State, TranslationStatus, condition, find_condition, set_condition,
};

mod approval;
mod duties;
mod landing;
mod live;
mod pending;
mod proof;
mod shortening;

pub(crate) use duties::translation;
use duties::{closes_at, is_slow, its_own};
pub use duties::{duties, gone};
pub use landing::may_land;

/// How long after the grant a gate may first hear of an allow: longer than any restart or change of leader takes, and
/// short enough that a restored backup opens nothing.
pub const OPEN_BOUND: Duration = Duration::from_secs(60);
/// How long after the grant an allow of which a gate heard in time may wait for its turn: the cloud writes the rules of
/// a firewall one by one, at 5 to 11 s each.
pub const TURN_BOUND: Duration = Duration::from_secs(600);
/// How much longer it may take until an allow is read back from a firewall that is written whole: what was begun in time
/// ends within it.
pub const WHOLE_BOUND: Duration = Duration::from_secs(900);
/// A missing allow this shortly before the deadline counts as expired, not as removed by somebody.
pub const NEAR_DEADLINE: Duration = Duration::from_secs(30);
/// By how much our clock and the cloud's may differ where anything is granted: a deadline is late by as much.
pub const CLOCKS_APART: Duration = Duration::from_secs(30);
/// The shortest grant that is worth making.
pub const SHORTEST_GRANT: Duration = Duration::from_secs(30);
/// When to ask again what was not said.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Everything that a request's next move depends on.
pub struct World<'a> {
    /// The request.
    pub request: &'a JitAccessRequest,
    /// What is to be thought of it now.
    pub judgement: &'a Judgement,
    /// What its reviews come to, counted for this judgement.
    pub tally: &'a Tally,
    /// Whether the API server's word can be taken for who asks and who reviews.
    pub admission: &'a Admission,
    /// Whose rules are ours.
    pub cluster: &'a Cluster,
    /// What its gates have seen of each rule, by firewall and name.
    pub seen: &'a (dyn Fn(&RuleStatus) -> Seen + Sync),
    /// What leaves no room for one more grant now, though the terms are met: limits, clocks; none where nothing does.
    pub no_room: Option<(Reason, String)>,
    /// How long it waits where it is not within the terms of policies, or that is not known.
    pub patience: Patience,
    /// What stops packets of the grant on their way, though its rules are in place; none where nothing is known
    /// to.
    pub stopped_by: Option<String>,
    /// Why the status is to be believed where it says that rules are being written.
    pub ground: Ground,
}

/// Why a status is to be believed where it says that rules are being written: a status is only as good as the
/// admission policies that keep others from writing it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ground {
    /// This process wrote them ahead, or they were proved to it.
    Own,
    /// It was found like that: by a start in the middle of a grant, or written by somebody.
    Found,
    /// It was found like that, and everything that a grant rests on was asked again for this very step.
    Asked,
}

/// What the gate of a rule's firewall has seen of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Seen {
    /// Nothing since the duty was given.
    #[default]
    Nothing,
    /// Read back as there.
    Present {
        /// When the firewall was read.
        at: Timestamp,
        /// At which priority.
        priority: u16,
        /// The rule of somebody else that stops its packets all the same, if one does.
        shadowed_by: Option<String>,
    },
    /// Read back as gone, after the removal was sent and ended.
    Absent {
        /// When the firewall was read.
        at: Timestamp,
        /// Whether nobody else removed it before: it stood as granted when its removal was sent, or it had never
        /// been seen. Where that is not known, as after a restart, it counts as not.
        by_us: bool,
    },
    /// Was there, and somebody removed or changed it.
    Lost {
        /// When the firewall was read.
        at: Timestamp,
    },
    /// Cannot be written, for good.
    Refused {
        /// Why, in one word.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
    },
    /// Is being tried; the last try failed.
    Trying {
        /// Why, in one word.
        reason: Reason,
        /// Why, in a sentence.
        message: String,
    },
}

/// What to do now.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The status as it should be.
    pub status: JitAccessRequestStatus,
    /// What to do about the finalizer, before the status is written.
    pub finalizer: Finalizer,
    /// When to look again if nothing else happens; none: never.
    pub look_again: Option<Timestamp>,
    /// What to tell, where this is a transition.
    pub event: Option<Transition>,
    /// Whether rules are opened by it that this process had not written ahead before. To be taken only after
    /// everything that a grant rests on was asked again; once the status is written, gates may be told of them.
    pub grants: bool,
}

/// What to do about the finalizer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finalizer {
    /// Leave it as it is.
    Leave,
    /// Put it on, and only then go on: nothing is opened without it.
    Add,
    /// Take it off, and only then write the status.
    Remove,
}

/// A move from one state to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// From.
    pub from: State,
    /// To.
    pub to: State,
    /// Why, in one word.
    pub reason: Reason,
    /// Why, in a sentence.
    pub message: String,
}

/// The next move of a request.
#[must_use]
pub fn step(world: &World<'_>, now: Timestamp) -> Step {
    let mut next = moved(world, now);
    heed_admission(&mut next, world, now);
    next
}

fn moved(world: &World<'_>, now: Timestamp) -> Step {
    match state(world.request) {
        State::Pending => pending::pending(world, now),
        State::Approved => pending::approved(world, now),
        State::Scheduled => pending::scheduled(world, now),
        State::Opening => live::opening(world, now),
        State::Active => live::active(world, now),
        State::Closing => live::closing(world, now),
        State::Expired
        | State::Ended
        | State::Denied
        | State::Revoked
        | State::TimedOut
        | State::Failed
        | State::Void => live::last(world),
    }
}

/// What waits for admission says so; what does not, or no longer, is not stalled.
fn heed_admission(next: &mut Step, world: &World<'_>, now: Timestamp) {
    let waits = next.status.state.as_deref().and_then(State::parse).is_some_and(State::is_waiting);
    match world.admission {
        Admission::NotInForce { why } if waits => {
            let message = format!("nothing is granted while the admission policies are not in force: {why}");
            let generation = world.request.metadata.generation;
            let reason = Reason::AdmissionNotEnforced;
            let stalled = condition(ConditionType::Stalled, true, reason, message, generation, now);
            set_condition(&mut next.status.conditions, stalled);
        }
        Admission::NotInForce { .. } | Admission::InForce { .. } => {
            next.status.conditions.retain(|condition| condition.type_ != ConditionType::Stalled.as_str());
        }
    }
}

/// Where a request stands by its status. A word that is not ours counts as closing where there are rules, as
/// pending where there are none.
#[must_use]
pub fn state(request: &JitAccessRequest) -> State {
    let Some(status) = &request.status else {
        return State::Pending;
    };
    let written = status.rules.iter().any(|rule| RuleState::parse(&rule.state) != RuleState::Planned);
    match status.state.as_deref() {
        None | Some("") if written => State::Closing,
        None | Some("") => State::Pending,
        Some(text) => match State::parse(text) {
            // What says that it is not open and yet has written rules is closed first.
            Some(State::Pending | State::Approved | State::Scheduled) if written => State::Closing,
            // A grant without a deadline cannot be.
            Some(State::Opening | State::Active) if status.expires_at.is_none() => State::Closing,
            Some(state) => state,
            None if written => State::Closing,
            None => State::Pending,
        },
    }
}

/// A status under construction.
struct Draft<'a> {
    world: &'a World<'a>,
    now: Timestamp,
    status: JitAccessRequestStatus,
}

impl<'a> Draft<'a> {
    fn new(world: &'a World<'a>, now: Timestamp) -> Self {
        let mut status = world.request.status.clone().unwrap_or_default();
        status.observed_generation = world.request.metadata.generation;
        status.summary = Some(RequestSummary::of(&world.request.spec));
        if status.state.is_none() {
            status.state = Some(State::Pending.as_str().to_owned());
        }
        Self { world, now, status }
    }

    fn set(&mut self, kind: ConditionType, value: bool, reason: Reason, message: &str) {
        let generation = self.world.request.metadata.generation;
        set_condition(
            &mut self.status.conditions,
            condition(kind, value, reason, message, generation, self.now),
        );
    }

    fn deleted(&self) -> bool {
        self.world.request.metadata.deletion_timestamp.is_some()
    }

    fn has_finalizer(&self) -> bool {
        self.world.request.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
    }

    fn not_after(&self) -> Option<Timestamp> {
        Ask::parse(&self.world.request.spec).ok()?.not_after
    }

    /// Stays where it is.
    fn stay(self, look_again: Option<Timestamp>) -> Step {
        Step { status: self.status, finalizer: Finalizer::Leave, look_again, event: None, grants: false }
    }

    /// Moves.
    fn go(mut self, to: State, reason: Reason, message: &str) -> Step {
        let from = state(self.world.request);
        self.status.state = Some(to.as_str().to_owned());
        Step {
            status: self.status,
            finalizer: Finalizer::Leave,
            look_again: Some(self.now),
            event: Some(Transition { from, to, reason, message: message.to_owned() }),
            grants: false,
        }
    }

    /// Ends without ever having written a rule.
    fn end_unopened(mut self, to: State, reason: Reason, message: &str) -> Step {
        match to {
            State::Denied => {
                self.set(ConditionType::Denied, true, reason, message);
                self.set(ConditionType::Approved, false, reason, message);
            }
            _ if find_condition(&self.status.conditions, ConditionType::Approved).is_none() => {
                self.set(ConditionType::Approved, false, reason, message);
            }
            _ => {}
        }
        self.set(ConditionType::Active, false, reason, message);
        self.set(ConditionType::Succeeded, false, reason, message);
        self.status.rules.clear();
        self.go(to, reason, message)
    }

    /// Begins to close, with the outcome recorded first.
    fn close(mut self, outcome: State, reason: Reason, message: &str) -> Step {
        self.status.outcome = Some(outcome.as_str().to_owned());
        for rule in &mut self.status.rules {
            if RuleState::parse(&rule.state) != RuleState::Absent {
                rule.state = RuleState::Closing.as_str().to_owned();
            }
        }
        self.set(ConditionType::Active, false, reason, message);
        self.go(State::Closing, reason, message)
    }
}

/// The rules of a plan as status shows them before the grant: without name, priority and deadline.
fn planned(plan: &GrantPlan) -> Vec<RuleStatus> {
    plan.rules
        .iter()
        .map(|rule| RuleStatus {
            firewall: rule.firewall.to_string(),
            name: String::new(),
            priority: None,
            protocol: rule.protocol.to_string(),
            sources: rule.sources.iter().map(ToString::to_string).collect(),
            destinations: rule.destinations.iter().map(ToString::to_string).collect(),
            ports: rule.ports.iter().map(ToString::to_string).collect(),
            translation: rule
                .translation
                .map(|from| TranslationStatus { address: from.address.to_string(), port: from.port.into() }),
            state: RuleState::Planned.as_str().to_owned(),
            observed_at: None,
        })
        .collect()
}

/// Whose word ended it, and in which words.
fn said(word: &Word, what: &str) -> String {
    let comment = word.comment.as_ref().map(|comment| format!(": {comment}")).unwrap_or_default();
    format!("{} {what}{comment}", word.who)
}

/// `at` plus a length of time; the end of time where that is out of reach.
pub(crate) fn plus(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_add(by).ok()).unwrap_or(Timestamp::MAX)
}

/// `at` less a length of time; the beginning of time where that is out of reach.
fn minus(at: Timestamp, by: Duration) -> Timestamp {
    SignedDuration::try_from(by).ok().and_then(|by| at.checked_sub(by).ok()).unwrap_or(Timestamp::MIN)
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn time(at: Timestamp) -> Time {
    Time(at)
}
