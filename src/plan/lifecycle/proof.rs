//! Whether a status that says that rules are being written is this program's own word.
//!
//! The admission policies keep everybody else from writing a status. Where they are away for a moment, whoever holds
//! a role with `*` on our group can write one: as if granted, with any rules and any deadline. So a status opens nothing
//! by itself:
//!
//! | the rules that it says are being written | |
//! |---|---|
//! | were written ahead by this process | opened |
//! | were found, in an object that was created while admission has been in force without a break, and are what would be written now | opened: a process before this one wrote them ahead |
//! | were found otherwise | closed |
//! | were found, and what that takes is not known | waits, for as long as a gate may first hear of an allow ([`OPEN_BOUND`]); then closed |

use std::time::Duration;

use super::shortening::{not_opened, shorten, shorter, written_ahead_at};
use super::{ASK_AGAIN, Draft, Ground, OPEN_BOUND, Step, World, planned, plus};
use crate::api::{ConditionType, Reason, RuleState, RuleStatus};
use crate::plan::admission::Admission;
use crate::plan::authorize::{GrantPlan, Judgement};
use crate::plan::terms::Ask;

/// Whether rules may be written on the word of a status.
pub(super) enum Word {
    /// It is ours.
    Ours,
    /// Everything has to be asked again first.
    Ask,
    /// It is not known yet, and why.
    NotYet(Reason, String),
    /// It is somebody else's, or as good as that.
    Nobodys,
}

/// Whose word a status is. To be asked after what ends the grant: what differs from the plan has ended by then.
pub(super) fn word(world: &World<'_>) -> Word {
    let created = world.request.metadata.creation_timestamp.as_ref().map(|at| at.0);
    match (world.ground, world.admission, world.judgement) {
        (Ground::Own, ..) => Word::Ours,
        (Ground::Found, ..) => Word::Ask,
        (Ground::Asked, Admission::NotInForce { why }, _) => {
            Word::NotYet(Reason::AdmissionNotEnforced, why.clone())
        }
        (Ground::Asked, admission, _) if !admission.vouches_for(created) => Word::Nobodys,
        (Ground::Asked, _, Judgement::Allowed(_)) => Word::Ours,
        (
            Ground::Asked,
            _,
            Judgement::Unknown(reason, message)
            | Judgement::Refused(reason, message)
            | Judgement::Impossible(reason, message)
            | Judgement::Held(reason, message),
        ) => Word::NotYet(*reason, message.clone()),
    }
}

/// What is said where nobody can have granted it.
pub(super) const NOT_PROVED: &str = "nothing proves that it was granted: the admission policies, which keep others \
    from writing its status, have not been in force without a break since it was created";

/// Goes on where the rules that the status says are being written may be; else what is to be done about it.
pub(super) fn demand(mut draft: Draft<'_>) -> Result<Draft<'_>, Box<Step>> {
    let unwritten =
        |rule: &RuleStatus| matches!(RuleState::parse(&rule.state), RuleState::Planned | RuleState::Opening);
    if draft.world.ground == Ground::Own || !draft.status.rules.iter().any(unwritten) {
        return Ok(draft);
    }
    let heard_by = plus(written_ahead_at(&draft.status), OPEN_BOUND);
    if draft.now > heard_by {
        let message = format!(
            "too late to open: it was not resumed within {}s of the moment at which its rules were to be written",
            OPEN_BOUND.as_secs()
        );
        return Err(Box::new(not_opened(draft, Reason::OpenTimedOut, &message)));
    }
    let (now, again) = (draft.now, plus(draft.now, ASK_AGAIN).min(plus(heard_by, Duration::from_secs(1))));
    let step = match word(draft.world) {
        Word::Ask => Step { grants: true, ..draft.stay(Some(now)) },
        // Never opened for longer than is allowed by now, not even for a moment.
        Word::Ours => match shorter(&draft) {
            Some(shorter) => shorten(draft, shorter),
            None => Step { grants: true, ..draft.stay(Some(again)) },
        },
        Word::Nobodys => not_opened(draft, Reason::NotTrusted, NOT_PROVED),
        Word::NotYet(reason, why) => {
            draft.set(ConditionType::Active, false, reason, &why);
            draft.stay(Some(again))
        }
    };
    Err(Box::new(step))
}

/// What of a live grant is not as it would be written ahead for its machines: somebody else wrote the status.
pub(super) fn altered(draft: &Draft<'_>, plan: &GrantPlan) -> Option<String> {
    if content(&draft.status.rules) != content(&planned(plan)) {
        return Some("its rules are not those that were asked for, or were planned otherwise".to_owned());
    }
    let granted = draft.status.granted_at.as_ref().map(|at| at.0);
    let expires = draft.status.expires_at.as_ref().map(|at| at.0);
    let ask = Ask::parse(&draft.world.request.spec).ok();
    let most = granted.zip(ask.as_ref()).map(|(granted, ask)| plus(granted, ask.duration));
    let hard_end = ask.and_then(|ask| ask.not_after);
    let within = expires.zip(most).is_some_and(|(expires, most)| expires <= most)
        && hard_end.is_none_or(|end| expires.is_some_and(|expires| expires <= end));
    (!within).then(|| "its end is later than what was asked for".to_owned())
}

/// Firewall, protocol, sources, destinations, ports of a rule, and where packets come in.
type Content<'a> = (String, &'a str, &'a [String], &'a [String], &'a [String], Option<(&'a str, i32)>);

/// What rules let through where, without how they are called and how far they are.
fn content(rules: &[RuleStatus]) -> Vec<Content<'_>> {
    fn of(rule: &RuleStatus) -> Content<'_> {
        let from = rule.translation.as_ref().map(|from| (from.address.as_str(), from.port));
        (
            rule.firewall.to_ascii_lowercase(),
            &rule.protocol,
            &rule.sources,
            &rule.destinations,
            &rule.ports,
            from,
        )
    }
    let mut content: Vec<Content<'_>> = rules.iter().map(of).collect();
    content.sort();
    content
}
