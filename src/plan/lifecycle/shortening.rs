//! A live grant whose policy allows less time by now: the same grant with an earlier end.
//!
//! | the status says | the cloud holds | next |
//! |---|---|---|
//! | Opening, `shortened`, every rule Closing or Absent | 0 to n of the former rules | all read back as gone -> the new rules are written ahead |
//! | Opening, `shortened`, rules Opening or Present | 0 to n of the new rules | all read back -> Active |
//!
//! The former rules go first and the new ones, whose names carry the new deadline, come after them, so that no rule
//! outlives what the policy allows. Between the two the port is closed for as long as two writes take.
//!
//! What was open is opened again, and that is what laws 6 and 9 forbid but for the very same grant. So:
//!
//! - a former rule that somebody else removed, or of which that is not known, ends the grant ([`Seen::Absent`]'s
//!   `by_us`);
//! - each of the two steps has [`OPEN_BOUND`] from when it was written ahead, by `shortened.at`, so that a status that
//!   is restored later than that opens nothing. What is late by the bound of one step, or still waits for its turn then,
//!   is closed and not shortened, which would give it another;
//! - the new rules are the former ones to the letter, and `expiresAt` decreases by at least a second, so that no name
//!   is used twice.
//!
//! [`Seen::Absent`]: super::Seen::Absent

use jiff::Timestamp;

use super::live::Sum;
use super::proof::{self, Word};
use super::{Draft, OPEN_BOUND, SHORTEST_GRANT, Step, is_slow, plus, time, whole_second};
use crate::api::{ConditionType, JitAccessRequestStatus, Reason, RuleState, RuleStatus, Shortening, State};
use crate::plan::authorize::Judgement;
use crate::plan::names::allow_name;
use crate::plan::reviews::cut;

/// The most bytes of `shortened.message`.
const MAX_MESSAGE: usize = 1024;

/// An earlier end.
pub(super) struct Shorter {
    until: Timestamp,
    why: String,
}

impl Shorter {
    /// What is said of a grant that is closed instead.
    pub(super) fn refused(&self) -> String {
        format!("{} from the grant on, and its rules were not all open when that was said", self.why)
    }
}

/// When the rules that are to be opened were written ahead: at the grant, or when it was last shortened. The beginning
/// of time where that is not known.
pub(super) fn written_ahead_at(status: &JitAccessRequestStatus) -> Timestamp {
    let shortened = status.shortened.as_ref().map(|shortened| &shortened.at);
    shortened.or(status.granted_at.as_ref()).map_or(Timestamp::UNIX_EPOCH, |at| at.0)
}

/// Whether the former rules of a grant that is being shortened are on their way out.
pub(super) fn is_under_way(status: &JitAccessRequestStatus) -> bool {
    let goes =
        |rule: &RuleStatus| matches!(RuleState::parse(&rule.state), RuleState::Closing | RuleState::Absent);
    status.state.as_deref() == Some(State::Opening.as_str())
        && status.shortened.is_some()
        && status.rules.iter().all(goes)
}

/// The end that the policies allow by now, where it is earlier than the present one. A later one is nobody's business:
/// loosening lengthens nothing.
pub(super) fn shorter(draft: &Draft<'_>) -> Option<Shorter> {
    let Judgement::Allowed(plan) = draft.world.judgement else { return None };
    let why = plan.shortened_by.clone()?;
    let granted = draft.status.granted_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    let expires = draft.status.expires_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    let until = whole_second(plus(granted, plan.duration));
    (until < whole_second(expires)).then_some(Shorter { until, why })
}

/// Makes the end earlier, durably and before anything else. The former rules are to go.
pub(super) fn shorten(mut draft: Draft<'_>, Shorter { until, why }: Shorter) -> Step {
    if plus(draft.now, SHORTEST_GRANT) > until {
        let message =
            format!("{why} from the grant on, of which less than {}s are left", SHORTEST_GRANT.as_secs());
        return draft.close(State::Revoked, Reason::PolicyTightened, &message);
    }
    if is_slow(&draft.status) {
        // The former rules would take minutes to go and the new ones to come: longer than such a status may open anything.
        let message = format!(
            "{why} from the grant on, and an Azure Firewall is on the way, whose rules are not replaced in time: ask again"
        );
        return draft.close(State::Revoked, Reason::PolicyTightened, &message);
    }
    let former = draft.status.expires_at.as_ref().map(|at| at.0.to_string()).unwrap_or_default();
    let message = cut(&format!("{why}: the grant ends at {until} instead of {former}"), MAX_MESSAGE);
    draft.status.expires_at = Some(time(until));
    draft.status.shortened = Some(Shortening { at: time(whole_second(draft.now)), message: message.clone() });
    note_generations(&mut draft);
    for rule in &mut draft.status.rules {
        if RuleState::parse(&rule.state) != RuleState::Absent {
            rule.state = RuleState::Closing.as_str().to_owned();
        }
    }
    let said = format!("{message}; its rules are being replaced");
    draft.set(ConditionType::Active, false, Reason::PolicyTightened, &said);
    draft.go(State::Opening, Reason::PolicyTightened, &message)
}

/// Waits until the former rules are gone, then writes the new ones ahead.
pub(super) fn replace(mut draft: Draft<'_>, seen: &Sum) -> Step {
    let until = plus(written_ahead_at(&draft.status), OPEN_BOUND);
    let known = matches!(draft.world.judgement, Judgement::Allowed(_));
    if seen.absent < draft.status.rules.len() || !known {
        if let Some((_, what)) = &seen.trying {
            let why = draft.status.shortened.as_ref().map(|shortened| shortened.message.clone());
            let said = format!("{}; its former rules are not gone yet: {what}", why.unwrap_or_default());
            draft.set(ConditionType::Active, false, Reason::PolicyTightened, &said);
        }
        return draft.stay(Some(until));
    }
    // What is written again is opened anew: a status alone is not enough for that.
    match proof::word(draft.world) {
        Word::Ours => {}
        Word::Ask => {
            let now = draft.now;
            return Step { grants: true, ..draft.stay(Some(now)) };
        }
        Word::NotYet(..) => return draft.stay(Some(until)),
        Word::Nobodys => return not_opened(draft, Reason::NotTrusted, proof::NOT_PROVED),
    }
    let deadline = draft.status.expires_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    let uid = draft.world.request.metadata.uid.clone().unwrap_or_default();
    for (number, rule) in (0..).zip(&mut draft.status.rules) {
        rule.name = allow_name(draft.world.cluster, &uid, deadline, number);
        rule.state = RuleState::Opening.as_str().to_owned();
        (rule.priority, rule.observed_at) = (None, None);
    }
    let now = time(whole_second(draft.now));
    if let Some(shortened) = &mut draft.status.shortened {
        shortened.at = now;
    }
    let again = draft.now;
    Step { grants: true, ..draft.stay(Some(again)) }
}

/// Ends a grant that could not be opened, for a reason, or not again: then it is the tightening that ended it.
pub(super) fn not_opened(draft: Draft<'_>, reason: Reason, message: &str) -> Step {
    match draft.status.shortened.as_ref().map(|shortened| shortened.message.clone()) {
        Some(why) => {
            let message = format!("{why}; closed altogether: {message}");
            draft.close(State::Revoked, Reason::PolicyTightened, &message)
        }
        None => draft.close(State::Failed, reason, message),
    }
}

/// By which generation of its policies the grant is judged from now on.
fn note_generations(draft: &mut Draft<'_>) {
    let Judgement::Allowed(plan) = draft.world.judgement else { return };
    for policy in &mut draft.status.policies {
        if let Some(now) = plan.policies.iter().find(|now| now.uid == policy.uid) {
            policy.generation = now.generation;
        }
    }
}
