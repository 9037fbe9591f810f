//! What a record holds: a closed list of fields of closed types.
//!
//! There is no map, no free-form value and no field that takes "whatever there is": what is not named here
//! cannot be recorded. Every text is bounded. A new field shows in the generated schema, so in every review.

use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

/// The constant word in every record.
pub const MARKER: &str = "portcullis";
/// The version of the form. Fields may be added under the same number; a changed or removed one raises it.
pub const SCHEMA: u32 = 1;

/// The longest text, in characters. Longer ones end in `…`.
const LONGEST: usize = 1024;
/// The most groups of a user.
const GROUPS: usize = 64;

/// A bounded text.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(transparent)]
pub struct Text(#[schemars(length(max = 1024))] String);

impl From<&str> for Text {
    fn from(text: &str) -> Self {
        if text.chars().count() <= LONGEST {
            return Self(text.to_owned());
        }
        Self(text.chars().take(LONGEST - 1).chain(['…']).collect())
    }
}

impl Text {
    /// Several texts.
    pub fn all<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> Vec<Self> {
        texts.into_iter().map(|text| Self::from(text.as_ref())).collect()
    }

    /// A text that may be missing.
    #[must_use]
    pub fn some(text: Option<&str>) -> Option<Self> {
        text.map(Self::from)
    }
}

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $name:ident: $part:literal, $ocsf:expr;)+) => {
        /// What a record tells of.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
        pub enum Kind {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Kind {
            /// Every kind: its word, the part of the record that it fills, its meaning, its class and activity in
            /// OCSF.
            pub const ALL: &'static [(Self, &'static str, &'static str, &'static str, Option<Ocsf>)] =
                &[$((Self::$name, stringify!($name), $part, concat!($($doc),+), $ocsf)),+];
        }
    };
}

const APPLICATION_LIFECYCLE: u32 = 6002;
pub(super) const API_ACTIVITY: u32 = 6003;
const ENTITY_MANAGEMENT: u32 = 3004;
const USER_ACCESS: u32 = 3005;
const DETECTION_FINDING: u32 = 2004;

pub(super) const fn ocsf(class_uid: u32, activity_id: u32) -> Option<Ocsf> {
    Some(Ocsf { class_uid, activity_id })
}

kinds! {
    /// The controller has started, and with it this chain.
    ChainStarted: "started", ocsf(APPLICATION_LIFECYCLE, 3);
    /// The controller stops in good order: nothing of this chain is missing after it.
    ChainEnded: "", ocsf(APPLICATION_LIFECYCLE, 4);
    /// Nothing has happened for a while. Without one for longer, records are missing or the controller was down.
    Alive: "", None;
    /// Records were lost before this one; their numbers are left out.
    RecordsDropped: "dropped", None;
    /// A request was seen for the first time.
    Requested: "request", ocsf(ENTITY_MANAGEMENT, 1);
    /// A review was answered: whether it counts, and why.
    Reviewed: "review", ocsf(ENTITY_MANAGEMENT, 3);
    /// A request may be opened.
    Approved: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// An approved request waits for its start.
    Scheduled: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// A request waits again: its plan has changed.
    Returned: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// Access was granted: from here on the rules named may stand in the cloud.
    Granted: "request", ocsf(USER_ACCESS, 1);
    /// A grant from before this start of the controller is live.
    Resumed: "request", None;
    /// Every rule of the grant was read back as there.
    Opened: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// The grant ends earlier than it was to, or lets in less.
    Shortened: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// The grant is over and its rules are being removed: why, and with which outcome.
    Ending: "request", ocsf(USER_ACCESS, 2);
    /// Every rule of the grant was read back as gone.
    Closed: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// The object of a live grant is gone. Its rules are closed all the same.
    Vanished: "request", ocsf(USER_ACCESS, 2);
    /// A request was refused, could not be granted, or waited too long. Nothing was opened.
    Refused: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// A request was withdrawn before it was granted. Nothing was opened.
    Withdrawn: "request", ocsf(ENTITY_MANAGEMENT, 4);
    /// A request cannot be trusted to be what it says. Nothing was opened.
    Voided: "request", ocsf(ENTITY_MANAGEMENT, 3);
    /// A rule is about to be written or removed in the cloud.
    WriteIntended: "write", ocsf(API_ACTIVITY, 99);
    /// That write has ended, well or not.
    WriteEnded: "outcome", ocsf(API_ACTIVITY, 99);
    /// Somebody else removed or changed a rule of a lock. It is being put right.
    DriftFound: "drift", ocsf(DETECTION_FINDING, 1);
}

/// Class and activity in the Open Cybersecurity Schema Framework, version 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Ocsf {
    /// `class_uid`.
    pub class_uid: u32,
    /// `activity_id`.
    pub activity_id: u32,
}

/// One record. Its fields are written in the order of their names.
#[derive(Clone, Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Record {
    /// Always `portcullis`: what tells a record from a log line.
    pub audit: Text,
    /// The chain: a UUID, new with each start of the controller.
    pub chain: Text,
    /// SHA-256, in hexadecimal digits, of this record as canonical JSON (RFC 8785) without this field.
    pub hash: Text,
    /// What it tells of.
    pub kind: Kind,
    /// The same in the words of OCSF, where it has them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ocsf: Option<Ocsf>,
    /// The hash of the record before; zeros in the first.
    pub previous: Text,
    /// The version of this form.
    pub schema: u32,
    /// The number in the chain, from 0, without a gap but where `RecordsDropped` counts it.
    pub seq: u64,
    /// When it happened, by the controller's clock.
    pub time: Timestamp,
    /// What it tells.
    #[serde(flatten)]
    pub parts: Parts,
}

/// The parts of a record; which are there follows from its kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Parts {
    /// What drifted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drift: Option<Drift>,
    /// How many records were lost.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dropped: Option<Dropped>,
    /// How a write ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// The request, and where it stands.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request: Option<Box<Request>>,
    /// The review, and the answer to it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub review: Option<Box<Review>>,
    /// Who writes this chain.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub started: Option<Started>,
    /// What is to be written to the cloud.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub write: Option<Box<Write>>,
}

/// Who writes a chain.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Started {
    /// `clusterId` of the configuration.
    pub cluster: Text,
    /// Whether nothing is written to the cloud.
    pub dry_run: bool,
    /// The pod's name, or the host's.
    pub instance: Text,
    /// The version of the program.
    pub version: Text,
}

/// Records that were lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Dropped {
    /// How many.
    pub count: u64,
}

/// Somebody, by the API server's word.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct User {
    /// Groups; at most 64.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<Text>,
    /// How many more groups there are.
    #[serde(skip_serializing_if = "is_zero")]
    pub groups_omitted: usize,
    /// Unique id, where the authenticator gives one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<Text>,
    /// User name.
    pub username: Text,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "as serde wants it")]
const fn is_zero(number: &usize) -> bool {
    *number == 0
}

impl User {
    /// A user with a bounded number of groups.
    #[must_use]
    pub fn new(username: &str, uid: Option<&str>, groups: &[String]) -> Self {
        Self {
            groups: Text::all(groups.iter().take(GROUPS)),
            groups_omitted: groups.len().saturating_sub(GROUPS),
            uid: Text::some(uid),
            username: username.into(),
        }
    }
}

/// A request, and where it stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Request {
    /// What is asked for.
    pub asked: Asked,
    /// When the object was created, by the API server's clock.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub created_at: Option<Timestamp>,
    /// The state that it leaves; missing at the first sight.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Text>,
    /// The grant, once there is a plan.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<Grant>,
    /// Why, in a sentence.
    pub message: Text,
    /// Name of the object.
    pub name: Text,
    /// Namespace of the object.
    pub namespace: Text,
    /// For whom it was asked; a claim.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_behalf_of: Option<Text>,
    /// Why, in one word.
    pub reason: Text,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requester: Option<User>,
    /// The state that it enters.
    pub to: Text,
    /// UID of the object.
    pub uid: Text,
}

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Asked {
    /// Every machine of the policy.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub all_targets: bool,
    /// For how long.
    pub duration: Text,
    /// The reason that was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub justification: Option<Text>,
    /// The hard end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<Text>,
    /// The earliest start.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_before: Option<Text>,
    /// The policy that the request names.
    pub policy: Text,
    /// Ports and who is to reach them.
    pub ports: Vec<AskedPort>,
    /// Machines, by the policy's entries: `web-1`, `fleet/vm-7`.
    pub targets: Vec<Text>,
}

/// A port that is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AskedPort {
    /// A port or a range.
    pub port: Text,
    /// TCP, UDP or Any.
    pub protocol: Text,
    /// Networks.
    pub sources: Vec<Text>,
}

/// What was planned, and once granted, granted.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Grant {
    /// Who approved, under which policy; nobody where none is asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub approvers: Vec<Approver>,
    /// When every rule was read back as gone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub closed_at: Option<Timestamp>,
    /// The deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// When the grant was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub granted_at: Option<Timestamp>,
    /// The machines, pinned.
    pub machines: Vec<Machine>,
    /// The last state that a closing request is on its way to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Text>,
    /// SHA-256 of the plan: what an approval is an approval of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<Text>,
    /// Every policy that covers the request.
    pub policies: Vec<Policy>,
    /// The rules that the cloud may hold for it.
    pub rules: Vec<Rule>,
}

/// Who approved.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Approver {
    /// Name of the policy under which the approval counts.
    pub policy: Text,
    /// User name.
    pub username: Text,
}

/// A policy as it was judged by.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Policy {
    /// Approvals that counted.
    pub approved: i32,
    /// Generation of its spec.
    pub generation: i64,
    /// Name.
    pub name: Text,
    /// Approvals that it asks for.
    pub required: i32,
    /// UID.
    pub uid: Text,
}

/// A machine as it was at the grant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Machine {
    /// Private addresses.
    pub addresses: Vec<Text>,
    /// Resource id.
    pub id: Text,
    /// Network interfaces.
    pub nics: Vec<Text>,
    /// The UUID that the cloud gave it at its creation.
    pub vm_id: Text,
}

/// A rule of a grant.
#[derive(Clone, Debug, Default, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Rule {
    /// Where packets come in that it leads on, as `address:port`: the first port leads to the first of `ports`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comes_in_at: Option<Text>,
    /// Private addresses of the machines.
    pub destinations: Vec<Text>,
    /// Id of the firewall that it stands on.
    pub firewall: Text,
    /// Name; empty before the grant.
    pub name: Text,
    /// When the firewall was last read for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub observed_at: Option<Timestamp>,
    /// Ports.
    pub ports: Vec<Text>,
    /// Priority, once read back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<i32>,
    /// TCP, UDP or Any.
    pub protocol: Text,
    /// Networks.
    pub sources: Vec<Text>,
    /// `Planned`, `Opening`, `Present`, `Closing` or `Absent`.
    pub state: Text,
}

/// A review, and the answer to it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Review {
    /// Why, in the reviewer's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comment: Option<Text>,
    /// Whether it counts.
    pub counted: bool,
    /// Name of the object.
    pub name: Text,
    /// Namespace of the object.
    pub namespace: Text,
    /// The plan that the reviewer saw.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub plan_hash: Option<Text>,
    /// The policy under which the reviewer speaks.
    pub policy: Text,
    /// Why it counts or does not.
    pub reason: Text,
    /// Name of the request.
    pub request: Text,
    /// UID of the request.
    pub request_uid: Text,
    /// Who reviews.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reviewer: Option<User>,
    /// UID of the object.
    pub uid: Text,
    /// `Approved`, `Denied`, `Revoked` or `Ended`.
    pub verdict: Text,
}

/// What a write does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Operation {
    /// Lets somebody in: an allow of a grant.
    Open,
    /// Takes an allow away, or turns it into a deny.
    Close,
    /// Writes a deny, or an exemption from one.
    Lock,
    /// Takes a deny or an exemption away.
    Unlock,
}

impl Operation {
    /// The word in lower case, as metrics have it.
    #[must_use]
    pub const fn label(self) -> &'static str {
        match self {
            Self::Open => "open",
            Self::Close => "close",
            Self::Lock => "lock",
            Self::Unlock => "unlock",
        }
    }
}

/// Why something is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Cause {
    /// A grant begins.
    Granted,
    /// The deadline in the rule's own name has passed.
    Deadline,
    /// The grant has ended before its deadline.
    Ended,
    /// An allow of ours that is in no live request: an orphan, a copy, or one that was brought back.
    Nobodys,
    /// A policy asks for it.
    Policy,
    /// Somebody else removed or changed it.
    Drift,
    /// The cloud says that the last write to the firewall failed: written again as it stands.
    Mend,
}

/// What is to be written to the cloud.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Write {
    /// Why.
    pub cause: Cause,
    /// What the rule is to be; missing where it is to be removed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<Content>,
    /// The deadline in the rule's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline: Option<Timestamp>,
    /// Id of the firewall.
    pub firewall: Text,
    /// The write's number, which its outcome names too; unique in the chain.
    pub number: u64,
    /// What it does.
    pub operation: Operation,
    /// Whose rule it is: the first 12 hexadecimal digits of the UID of a request or policy, as the rule's name has
    /// them.
    pub owner: Text,
    /// The rule's name.
    pub rule: Text,
}

/// What a rule is to be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Content {
    /// Allow or Deny.
    pub access: Text,
    /// Where packets come in that it leads on, as `address:port`: the first port leads to the first of `ports`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub comes_in_at: Option<Text>,
    /// Addresses.
    pub destinations: Vec<Text>,
    /// Ports.
    pub ports: Vec<Text>,
    /// Priority.
    pub priority: u16,
    /// TCP, UDP or Any.
    pub protocol: Text,
    /// Networks and service tags.
    pub sources: Vec<Text>,
}

/// How a write ended, as far as is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, JsonSchema)]
pub enum Ended {
    /// The cloud ended it well.
    Succeeded,
    /// The cloud refused or failed it.
    Failed,
    /// Nobody knows whether it was written; the next read decides.
    Ambiguous,
    /// It was given up before anything was sent.
    NotSent,
}

/// How a write ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Outcome {
    /// The cloud's error code, where it gave one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<Text>,
    /// What sort of failure, in one word.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<Text>,
    /// Id of the firewall.
    pub firewall: Text,
    /// The number of the write that was intended.
    pub number: u64,
    /// What it did.
    pub operation: Operation,
    /// The cloud's id of the request: it finds the same write in the cloud's own log.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub request_id: Option<Text>,
    /// How it ended.
    pub result: Ended,
    /// The rule's name.
    pub rule: Text,
}

/// What somebody else did to a rule of a lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Drift {
    /// Id of the firewall.
    pub firewall: Text,
    /// The policy's UID; its first 12 hexadecimal digits where the policy is gone.
    pub policy_uid: Text,
    /// Removed, or else changed.
    pub removed: bool,
    /// The rule's name.
    pub rule: Text,
}

/// The JSON Schema of a record.
#[must_use]
pub fn schema() -> schemars::Schema {
    schemars::schema_for!(Record)
}
