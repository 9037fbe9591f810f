//! What the rules in a request's status ask of gates, and when.

use jiff::Timestamp;

use super::{OPEN_BOUND, TURN_BOUND, plus, shortening, state};
use crate::api::values::{ArmId, PortRange, Protocol};
use crate::api::{JitAccessRequest, JitAccessRequestStatus, RuleState, RuleStatus, State, TranslationStatus};
use crate::plan::desired::{Duty, Grant, WHOLE_WRITE};
use crate::plan::model::{FirewallId, FirewallKind, Translation};
use crate::plan::names::deadline_of;

/// The rules of a request as its gates are to treat them: what is in status, and nothing else.
///
/// A rule that cannot be read, or whose name is not that of an allow of this request, is left out: an allow of its name
/// is its own request's, or closed by the sweep as nobody's. Where name and status differ in the deadline, the earlier
/// counts.
#[must_use]
pub fn duties(request: &JitAccessRequest) -> Vec<(FirewallId, Grant)> {
    let (Some(status), Some(uid)) = (&request.status, &request.metadata.uid) else {
        return Vec::new();
    };
    let state = state(request);
    if !state.holds_rules() {
        return Vec::new();
    }
    // Without a deadline nothing may be open: the beginning of time is long past.
    let deadline = status.expires_at.as_ref().map_or(Timestamp::UNIX_EPOCH, |at| at.0);
    let written = shortening::written_ahead_at(status);
    // Where everything is written at once, a turn is longer: a removal that is due within a write's time goes first.
    let turn = if is_slow(status) { TURN_BOUND + 2 * WHOLE_WRITE } else { TURN_BOUND };
    let (heard_by, until) = (plus(written, OPEN_BOUND), plus(written, turn));
    let replaced = shortening::is_under_way(status);
    status
        .rules
        .iter()
        .filter_map(|rule| {
            let duty = match (state, RuleState::parse(&rule.state)) {
                (_, RuleState::Absent) => return None,
                (State::Opening, RuleState::Planned | RuleState::Opening) => Duty::Open { heard_by, until },
                (State::Opening | State::Active, RuleState::Present) => Duty::Hold,
                _ => Duty::Close { sent: false },
            };
            let (firewall, named) = its_own(rule, request)?;
            let translation = match (&rule.translation, duty) {
                (None, _) => None,
                // Nothing is opened that is not what was said; closing takes no more than the name.
                (Some(said), Duty::Open { .. }) => Some(translation(said)?),
                (Some(said), Duty::Hold | Duty::Close { .. }) => translation(said),
            };
            Some((
                firewall,
                Grant {
                    request_uid: uid.clone(),
                    name: rule.name.clone(),
                    deadline: deadline.min(named),
                    protocol: match rule.protocol.as_str() {
                        "TCP" => Protocol::Tcp,
                        "UDP" => Protocol::Udp,
                        _ => Protocol::Any,
                    },
                    sources: rule.sources.iter().filter_map(|text| text.parse().ok()).collect(),
                    destinations: rule.destinations.iter().filter_map(|text| text.parse().ok()).collect(),
                    ports: rule.ports.iter().filter_map(|text| text.parse::<PortRange>().ok()).collect(),
                    translation,
                    duty,
                    replaced,
                },
            ))
        })
        .collect()
}

/// Allows of a request that its status says were read back as gone.
#[must_use]
pub fn gone(request: &JitAccessRequest) -> Vec<(FirewallId, String)> {
    let rules = request.status.iter().flat_map(|status| &status.rules);
    let gone = rules.filter(|rule| RuleState::parse(&rule.state) == RuleState::Absent);
    gone.filter_map(|rule| Some((its_own(rule, request)?.0, rule.name.clone()))).collect()
}

/// What a status says of where packets come in; none where it cannot be read.
pub(crate) fn translation(status: &TranslationStatus) -> Option<Translation> {
    Some(Translation { address: status.address.parse().ok()?, port: u16::try_from(status.port).ok()? })
}

/// When the rules of a grant begin to be removed: at its end, or earlier where their names say so, because a firewall
/// takes minutes for it.
pub(super) fn closes_at(request: &JitAccessRequest) -> Timestamp {
    let Some(status) = &request.status else { return Timestamp::MIN };
    let end = status.expires_at.as_ref().map_or(Timestamp::MIN, |at| at.0);
    let named = status.rules.iter().filter_map(|rule| its_own(rule, request)).map(|(_, deadline)| deadline);
    named.min().map_or(end, |named| end.min(named))
}

/// Whether a firewall whose writes take minutes is on the way of a grant.
pub(super) fn is_slow(status: &JitAccessRequestStatus) -> bool {
    let kind = |rule: &RuleStatus| ArmId::parse(&rule.firewall).ok().map(|id| FirewallId(id).kind());
    status.rules.iter().filter_map(kind).any(FirewallKind::translates)
}

/// The firewall of a rule and the deadline in its name; none where it cannot be read, or its name is not that of an
/// allow of this request.
pub(super) fn its_own(rule: &RuleStatus, request: &JitAccessRequest) -> Option<(FirewallId, Timestamp)> {
    let deadline = deadline_of(&rule.name, request.metadata.uid.as_ref()?)?;
    Some((FirewallId(ArmId::parse(&rule.firewall).ok()?), deadline))
}
