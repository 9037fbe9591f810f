//! The API: what people write and what the controller answers.
//!
//! The lowest room: it may use nothing of the others. Three kinds in the group `jit.portcullis.io`, version
//! `v1alpha1`; the values their fields hold; the conditions and reasons of their status; the custom
//! resource definitions generated from them; and the admission policies that guard them.

pub mod admission;
mod conditions;
pub mod crds;
mod policy;
mod request;
mod review;
mod tolerant;
pub mod values;

pub use conditions::{ConditionType, Reason, condition, find_condition, is_true, set_condition};
pub use policy::{
    Approval, AzureEnforcement, AzureScope, AzureVirtualMachine, DeletionPolicy, Enforcement,
    EstablishedSessions, ExemptSource, ExistingRules, FirewallSource, JitPolicy, JitPolicySpec,
    JitPolicyStatus, JustificationRule, Limits, Mode, PathStatus, PolicyPort, PolicySummary, PolicyTarget,
    Source, TargetStatus, Via,
};
pub use request::{
    Connection, JitAccessRequest, JitAccessRequestSpec, JitAccessRequestStatus, NameRef, PinnedMachine,
    RequestPort, RequestSummary, RequestTarget, RequestedPolicy, RuleState, RuleStatus, Shortening, State,
    TranslationStatus, UserInfo,
};
pub use review::{JitAccessReview, JitAccessReviewSpec, JitAccessReviewStatus, RequestRef, Verdict};
pub use tolerant::Tolerant;

/// The API group.
pub const GROUP: &str = "jit.portcullis.io";
/// Version of every kind.
pub const VERSION: &str = "v1alpha1";
/// The finalizer that holds a policy or request until the cloud is as its going requires.
pub const FINALIZER: &str = "jit.portcullis.io/cloud-rules";
