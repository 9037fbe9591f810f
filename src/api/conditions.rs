//! Conditions and the reasons in them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use schemars::{Schema, SchemaGenerator, json_schema};

/// The conditions of the three kinds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ConditionType {
    /// Policies: every machine is locked, and the lock is effective.
    Ready,
    /// Policies: the ports are closed to everybody without a grant.
    LockdownEffective,
    /// Policies and requests: only people can mend it.
    Stalled,
    /// Requests: it may be opened.
    Approved,
    /// Requests: it was refused.
    Denied,
    /// Requests: the port is open now.
    Active,
    /// Requests: it was opened and has been closed again.
    Succeeded,
}

impl ConditionType {
    /// The word in `type`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "Ready",
            Self::LockdownEffective => "LockdownEffective",
            Self::Stalled => "Stalled",
            Self::Approved => "Approved",
            Self::Denied => "Denied",
            Self::Active => "Active",
            Self::Succeeded => "Succeeded",
        }
    }
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident),+ $(,)?) => {
        /// Why a condition is as it is. Each is documented in `docs/troubleshooting.md`.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason.
            pub const ALL: &'static [Self] = &[$(Self::$name),+];

            /// The word in `reason`.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($name),)+
                }
            }

            /// What it means, in a sentence.
            #[must_use]
            pub const fn description(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+),)+
                }
            }

            /// Reads the word.
            #[must_use]
            pub fn parse(text: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|reason| reason.as_str() == text)
            }
        }
    };
}

reasons! {
    /// Everything is as it should be.
    Configured,
    /// The lock is being written or read back.
    Progressing,
    /// The policy is in mode Audit: it says what it would lock and writes nothing.
    Audit,
    /// The controller runs with --dry-run: it plans and reports and writes nothing to the cloud.
    DryRun,
    /// The spec says something that cannot be; the message names the field and what would be right.
    InvalidSpec,
    /// The cluster's configuration does not give this namespace the scope that the policy names.
    ScopeNotAllowed,
    /// The cluster's configuration does not allow a source that the policy exempts.
    ExemptSourceNotAllowed,
    /// Two namespaces' policies would lock the same machine.
    OverlapsOtherNamespace,
    /// At least one machine cannot be locked; status.targets says which and why.
    TargetsUnsupported,
    /// No machine is selected.
    NoTargets,
    /// The machine does not exist, or the credential may not know that it does.
    VirtualMachineNotFound,
    /// The machine is of the classic deployment model, which has no network security groups.
    ClassicVirtualMachine,
    /// No network security group filters traffic to the machine.
    NoFirewall,
    /// The machine has no private address.
    NoAddress,
    /// A firewall on the way filters another network with the same address: a rule would open both.
    AddressNotUnique,
    /// The operating system is not known and the policy names no ports.
    NoPorts,
    /// The cloud refuses the credential what this takes; the message names the action.
    NotPermitted,
    /// The cloud does not accept the credential.
    Unauthenticated,
    /// The cloud cannot be reached, or answers with errors of its own.
    CloudUnavailable,
    /// The audit record of what is to be opened cannot be written, and nothing is opened without one.
    AuditUnavailable,
    /// An Azure Policy refuses the rule.
    RefusedByPolicy,
    /// A feature that this version does not enforce; nothing is opened by it.
    NotSupported,
    /// A rule of somebody else lets traffic in past the lock; the message names it.
    Shadowed,
    /// There is no free priority above the rules that would let traffic in.
    NoPriorityRoom,
    /// The firewall holds as many rules or addresses as it can.
    FirewallFull,
    /// A resource lock in the cloud forbids the change.
    ScopeLocked,
    /// Something that is written to the cloud has not been read back yet.
    NotObserved,
    /// The lock is not written yet, or was removed.
    LockMissing,
    /// Rules of others stand above the lock because the policy says Keep.
    KeptRules,
    /// The policy that the request names does not exist (yet).
    PolicyNotFound,
    /// The policy is not ready to grant anything.
    PolicyNotReady,
    /// The policy is suspended.
    Suspended,
    /// The policy asks for approvals.
    WaitingForApproval,
    /// The policy asks for no approval.
    AutomaticApproval,
    /// Enough people approved.
    QuorumReached,
    /// What would be opened is no longer what was approved.
    PlanChanged,
    /// An approver denied the request.
    ReviewDenied,
    /// An approver revoked the grant.
    ReviewRevoked,
    /// The port is not among those of the policy.
    PortNotAllowed,
    /// The source is not within those of the policy.
    SourceNotAllowed,
    /// The duration is longer than the policy allows.
    DurationTooLong,
    /// The grant would be too short for a firewall whose rules take minutes to write.
    DurationTooShort,
    /// The target is not among those of the policy.
    TargetNotAllowed,
    /// The justification is missing, or not of the form that the policy asks for.
    JustificationRequired,
    /// A limit of the policy or of the cluster leaves no room.
    LimitReached,
    /// The clocks of the cloud and of the controller are too far apart for deadlines to mean anything.
    ClockSkew,
    /// The request names too many machines, sources or rules.
    TooLarge,
    /// A window or time-out has run out.
    TooLate,
    /// The moment to open has not come.
    Scheduled,
    /// The requester is not known, or may not ask.
    RequesterNotAllowed,
    /// The rules are being written.
    Opening,
    /// The rules are in place.
    Open,
    /// The rules are being removed.
    Closing,
    /// The grant's time was up.
    Expired,
    /// The request was deleted or withdrawn.
    Withdrawn,
    /// Somebody removed or changed the rule of the grant.
    RuleRemoved,
    /// The policy changed and no longer allows the grant, or not for as long.
    PolicyTightened,
    /// The policy was deleted.
    PolicyDeleted,
    /// The machine, its interface or its address is no longer what it was.
    MachineChanged,
    /// A deny of somebody else that counts as deliberate matches the packets.
    ForeignDeny,
    /// Another rule of somebody else stops the packets of the grant.
    GrantShadowed,
    /// A rule of somebody else leads packets to the machine by way of the firewall: a grant would let them in too.
    ForeignTranslation,
    /// The firewall on the way cannot lead anything on: no public address, no free port, or another set-up.
    FirewallUnfit,
    /// The grant could not be opened in time.
    OpenTimedOut,
    /// The cloud refused the rule.
    RefusedByCloud,
    /// Every rule was read back as gone.
    Closed,
    /// It has not been opened.
    NotOpened,
    /// Admission is not provably in force, so nobody's identity is certain.
    AdmissionNotEnforced,
    /// Not provably created under admission's eyes.
    NotTrusted,
}

/// A condition with `lastTransitionTime` at `now`; [`set_condition`] keeps the old time where the status stays.
#[must_use]
pub fn condition(
    kind: ConditionType,
    status: bool,
    reason: Reason,
    message: impl Into<String>,
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let mut message: String = message.into();
    if message.len() > MAX_MESSAGE {
        let cut = message.floor_char_boundary(MAX_MESSAGE - 3);
        message.truncate(cut);
        message.push_str("...");
    }
    Condition {
        type_: kind.as_str().to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    }
}

const MAX_MESSAGE: usize = 4096;

/// Puts a condition into the list, in place of one of its type, keeping `lastTransitionTime` where the status
/// stays the same.
pub fn set_condition(conditions: &mut Vec<Condition>, mut new: Condition) {
    match conditions.iter_mut().find(|old| old.type_ == new.type_) {
        Some(old) => {
            if old.status == new.status {
                new.last_transition_time = old.last_transition_time.clone();
            }
            *old = new;
        }
        None => conditions.push(new),
    }
}

/// The condition of this type.
#[must_use]
pub fn find_condition(conditions: &[Condition], kind: ConditionType) -> Option<&Condition> {
    conditions.iter().find(|condition| condition.type_ == kind.as_str())
}

/// Whether the condition of this type is there and `True`.
#[must_use]
pub fn is_true(conditions: &[Condition], kind: ConditionType) -> bool {
    find_condition(conditions, kind).is_some_and(|condition| condition.status == "True")
}

/// Schema of `status.conditions`, as the Kubernetes API conventions have it.
pub(super) fn conditions_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "description": "Conditions, one of a type.",
        "maxItems": 16,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "type": "object",
            "description": "One condition.",
            "required": ["lastTransitionTime", "message", "reason", "status", "type"],
            "properties": {
                "type": {"type": "string", "maxLength": 316, "description": "What the condition is about."},
                "status": {"type": "string", "enum": ["True", "False", "Unknown"], "description": "Whether it holds."},
                "reason": {"type": "string", "minLength": 1, "maxLength": 1024, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$", "description": "Why, in one word."},
                "message": {"type": "string", "maxLength": 32768, "description": "Why, in a sentence."},
                "lastTransitionTime": {"type": "string", "format": "date-time", "description": "When status last changed."},
                "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0, "description": "The generation that this is about."}
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_transition_time_moves_only_with_the_status() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut conditions = Vec::new();
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, false, Reason::Progressing, "", None, at(1)),
        );
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, false, Reason::Shadowed, "x", None, at(2)),
        );
        assert_eq!(conditions[0].last_transition_time.0, at(1));
        assert_eq!(conditions[0].reason, "Shadowed");
        set_condition(
            &mut conditions,
            condition(ConditionType::Ready, true, Reason::Configured, "", None, at(3)),
        );
        assert_eq!(conditions[0].last_transition_time.0, at(3));
        assert_eq!(conditions.len(), 1);
    }

    #[test]
    fn every_reason_reads_back_and_explains_itself() {
        for reason in Reason::ALL {
            assert_eq!(Reason::parse(reason.as_str()), Some(*reason));
            assert!(reason.description().trim().ends_with('.'), "{reason:?}");
        }
    }
}
