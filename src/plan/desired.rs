//! What one firewall should hold: the locks of policies and the allows of live grants.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use super::model::{FirewallKind, Peer, Rule, Translation};
use super::names::Cluster;
use crate::api::ExistingRules;
use crate::api::values::{PortRange, Protocol};

/// How long it may take, from its beginning, until the cloud has answered the write of anything but a close; it is not
/// sent later, nor waited for longer. Nothing is opened that has less time left than this: a write that is answered late
/// would stand past its deadline. Nor is anything of it written by a replica whose lease has less time left: it could
/// land when another one is at it.
pub const WRITE_ANSWER: Duration = Duration::from_secs(10);

/// How long the write of a whole firewall usually takes. Nothing is opened by one that has less time left than this.
pub const WHOLE_WRITE: Duration = Duration::from_secs(300);

/// Everything that is wanted of one firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Whose rules are ours.
    pub cluster: Cluster,
    /// Locks, one a policy that has, or lately had, machines behind this firewall. Policies that are not
    /// here may have left denies behind (retained): those stay, unless the locks here cover them wholly.
    pub locks: Vec<Lock>,
    /// By [`uid12`](super::names::uid12), policies that are there and have not said yet what they want locked here: after a
    /// start, or because they cannot be understood. Their denies stay as they are, whatever others want, and exemptions of others
    /// let nobody in past them who did not get in before.
    pub unheard: BTreeSet<String>,
    /// Rules of requests whose rules may stand on this firewall.
    pub grants: Vec<Grant>,
    /// Names of rules that a sweep has found to be ours and nobody's: closed if they are still allows of ours.
    pub orphans: BTreeSet<String>,
    /// Denies of others below this priority number are deliberate: no allow goes above one that matches its
    /// packets.
    pub honour_denies_below: u16,
    /// The most allows of ours that a firewall may hold.
    pub max_allows: usize,
    /// Denies and exemptions of ours as they were last read back, or written since: what differs from these
    /// was changed by somebody else. Empty after a start: then only what we never write counts as drift.
    pub standing: Vec<Rule>,
    /// Denies of ours as they were last seen to stand, or written, however long ago, of the locks that are wanted.
    pub placed: Vec<Rule>,
}

/// What a firewall can hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Rules in both directions.
    pub rules: usize,
    /// Addresses and ranges in all rules.
    pub addresses: usize,
}

/// What a policy locks behind one firewall.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lock {
    /// The policy's UID.
    pub policy_uid: String,
    /// The policy as `namespace/name`, for messages.
    pub policy: String,
    /// Above or below rules of others that would let traffic in.
    pub existing: ExistingRules,
    /// The machines and their ports.
    pub machines: Vec<LockedMachine>,
    /// Sources that the lock does not shut out.
    pub exempt: Vec<Peer>,
    /// Addresses that are to be unlocked: of machines that were taken out of the spec, are gone, or have
    /// other addresses now.
    pub release: BTreeSet<IpAddr>,
    /// Whether addresses that this policy's denies hold on the firewall, and that are neither in `machines`
    /// nor in `release`, stay locked.
    pub keep_others: bool,
    /// Whether connections are to be cut that the rules no longer let in.
    pub cut_sessions: bool,
}

impl Lock {
    /// Whether this lock stands where `standing` does: the same, but for addresses that were released by then
    /// and that nobody asks about any more.
    #[must_use]
    pub fn stands_with(&self, standing: &Self) -> bool {
        self.release.is_subset(&standing.release)
            && *self == Self { release: self.release.clone(), ..standing.clone() }
    }
}

/// The addresses of one machine behind one firewall, and what is locked there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LockedMachine {
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<(Protocol, PortRange)>,
}

impl Grant {
    /// Whether its rule may still be written to a firewall of this kind, if it is not there.
    #[must_use]
    pub fn may_be_opened(&self, now: Timestamp, kind: FirewallKind) -> bool {
        let answer = if kind.translates() { WHOLE_WRITE } else { WRITE_ANSWER };
        match self.duty {
            Duty::Open { until, .. } => {
                now <= until && now.checked_add(answer).is_ok_and(|end| end < self.deadline)
            }
            Duty::Hold | Duty::Close { .. } => false,
        }
    }
}

/// One rule of a request, as its status says it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The request's UID.
    pub request_uid: String,
    /// The rule's name.
    pub name: String,
    /// When it dies.
    pub deadline: Timestamp,
    /// TCP, UDP or Any.
    pub protocol: Protocol,
    /// Who may connect; one address family.
    pub sources: Vec<IpNet>,
    /// Addresses of the machines; the same family.
    pub destinations: Vec<IpAddr>,
    /// Ports of the machines.
    pub ports: Vec<PortRange>,
    /// Where packets come in, on a firewall that leads them on.
    pub translation: Option<Translation>,
    /// What is to be done with it. After `deadline`, whatever stands here, it is closed.
    pub duty: Duty,
    /// Whether it is removed only to be written anew with an earlier deadline. Then it is looked at first: what somebody
    /// else has closed is not to be opened again.
    pub replaced: bool,
}

/// What is to be done with the rule of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Duty {
    /// To be written if it is not there, by a gate that hears of it in time ([`Duty::taken_on`]).
    Open {
        /// The last moment at which a gate may first hear of it: an opening that is resumed later closes instead.
        heard_by: Timestamp,
        /// The last moment at which a write may begin, however many others are written before it.
        until: Timestamp,
    },
    /// It was read back as there. If it is missing or changed, that is reported and not repaired.
    Hold,
    /// To be removed. The removal is sent at least once, even where the read does not show the rule.
    Close {
        /// Whether a removal was already sent and ended well: then the read-back decides.
        sent: bool,
    },
}

impl Duty {
    /// The duty as a gate takes it on that first hears of it now: what it hears of too late it never opens.
    #[must_use]
    pub fn taken_on(self, now: Timestamp) -> Self {
        match self {
            Self::Open { heard_by, until } if now > heard_by => {
                Self::Open { heard_by, until: until.min(heard_by) }
            }
            Self::Open { .. } | Self::Hold | Self::Close { .. } => self,
        }
    }
}

/// What to do on one firewall, in this order.
///
/// Each write is safe and valid on its own, whichever of the others of the same plan fail: what depends on
/// another write (an exemption on its deny, a removal on the deny that replaces it) is planned once that one
/// was read back. So a plan is complete only when the next, made after a read, is empty.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// First: allows to be removed.
    pub closes: Vec<Close>,
    /// Then: whether the firewall is to be told to cut connections that its rules no longer let in.
    pub cut_sessions: bool,
    /// Then: denies to be written, then exemptions.
    pub locks: Vec<Rule>,
    /// Then: allows to be written, those of the earliest grant first.
    pub opens: Vec<Rule>,
    /// Last: denies and exemptions to be removed by name, exemptions first, and allows that were closed by being
    /// rewritten as denies.
    pub unlocks: Vec<String>,
    /// What cannot be done, and why.
    pub refused: Vec<Refused>,
    /// Names of grants with [`Duty::Hold`] whose rule is missing or no longer does what it did.
    pub lost: Vec<String>,
    /// Rules of locks that somebody else removed or changed, and that `locks` puts right.
    pub drift: Vec<Drift>,
    /// Names of rules of ours that stand as they should, but that the cloud has not ended writing.
    pub unsettled: Vec<String>,
}

impl Changes {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.closes.is_empty()
            && !self.cut_sessions
            && self.locks.is_empty()
            && self.opens.is_empty()
            && self.unlocks.is_empty()
    }
}

/// How an allow is closed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Close {
    /// The rule's name.
    pub name: String,
    /// What to write in its place where a resource lock forbids its removal: the same rule as a deny, at the
    /// highest free priority number. None where the read did not show the rule, or shows it as a deny already.
    pub as_deny: Option<Rule>,
}

/// Something that cannot be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused {
    /// Whose: the UID of a request or of a policy.
    pub owner_uid: String,
    /// The rule's name, for a request.
    pub rule: Option<String>,
    /// Why, in one word.
    pub reason: crate::api::Reason,
    /// Why, in a sentence that names what is in the way.
    pub message: String,
}

/// A rule of a lock that somebody else removed or changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Drift {
    /// The policy's UID; its first 12 hex digits where the policy is gone.
    pub policy_uid: String,
    /// The rule's name.
    pub rule: String,
    /// Removed, or else changed.
    pub removed: bool,
}
