//! The rules, once more and in few words: who may do what to which field, by which verb. What the API server does is
//! held against this. It knows nothing of how `deploy/` brings the rules about.

use serde_json::Value;

use super::super::people::Actor;
use super::change::{Change, pointer};

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Policy,
    Request,
    Review,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Policy, Self::Request, Self::Review];

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Policy => "JitPolicy",
            Self::Request => "JitAccessRequest",
            Self::Review => "JitAccessReview",
        }
    }

    pub(super) const fn plural(self) -> &'static str {
        match self {
            Self::Policy => "jitpolicies",
            Self::Request => "jitaccessrequests",
            Self::Review => "jitaccessreviews",
        }
    }

    /// The field that says who wrote it.
    pub(super) const fn author(self) -> Option<&'static str> {
        match self {
            Self::Policy => None,
            Self::Request => Some("requester"),
            Self::Review => Some("reviewer"),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Verb {
    Create,
    /// A server-side apply of what is not there.
    ApplyNew,
    Put,
    JsonPatch,
    MergePatch,
    StrategicPatch,
    Apply,
    /// A server-side apply that takes fields over from their managers.
    ApplyForced,
    Delete,
    DeleteCollection,
}

/// The object, or a subresource of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Main,
    Status,
    /// Subresources that these kinds do not have.
    Unknown(&'static str),
}

/// What has to come of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Expected {
    /// Done, and the field is as it was asked to be.
    Done,
    /// Answered well, and nothing comes of it.
    NoEffect,
    /// Refused or ignored, whichever the API server likes: nothing that counts becomes another.
    Harmless,
    /// Refused, in one of these words.
    Refused(&'static [&'static str]),
}

use Expected::{Done, Harmless, NoEffect, Refused};

/// One attempt.
#[derive(Debug, Clone, Copy)]
pub(super) struct Attempt<'a> {
    pub(super) actor: Actor,
    pub(super) kind: Kind,
    pub(super) verb: Verb,
    pub(super) part: Part,
    /// None for those that write nothing.
    pub(super) change: Option<&'a Change>,
}

const CONFLICT: &str = "conflict";
const REQUIRED: &str = "Required value";
const THEIRS: &str = "status belongs to the controller";
const ONLY_LESS: &str = "status.expiresAt only ever decreases";

impl Attempt<'_> {
    /// What has to come of it: `object` is what it is made to, `present` whether the field stands there already and
    /// belongs to somebody else.
    pub(super) fn expected(&self, object: &Value, present: bool) -> Expected {
        if let Some(word) = self.missing() {
            // Applying asks for the right to create only once all else is right.
            return Refused(match (self.verb, word) {
                (Verb::ApplyNew, "create") => {
                    &["cannot create resource", "is invalid", "uid mismatch", "failed to create typed patch"]
                }
                (_, "create") => &["cannot create resource"],
                (_, "update") => &["cannot update resource"],
                (_, "patch") => &["cannot patch resource"],
                (_, "delete") => &["cannot delete resource"],
                _ => &["cannot deletecollection resource"],
            });
        }
        if matches!(self.part, Part::Unknown(_)) {
            return Refused(&["could not find the requested resource", "not found"]);
        }
        let Some(change) = self.change else {
            return match (self.verb, self.part) {
                (Verb::StrategicPatch, _) => Refused(&["media type"]),
                (_, Part::Status) => Refused(&["not support", "not allowed", "could not find"]),
                _ => Done,
            };
        };
        let top = change.at[0].as_str();
        match (self.verb, self.part, top) {
            // A status that comes with the object is dropped, whoever sends it.
            (Verb::Create | Verb::ApplyNew, _, "status") => self.unless_unheard(NoEffect),
            (_, Part::Main, "status") => NoEffect,
            (Verb::Create | Verb::ApplyNew, _, "metadata") => self.created_metadata(change),
            (Verb::Create | Verb::ApplyNew, _, _) => self.created(change, object),
            (_, Part::Main, "metadata") => self.updated_metadata(change, object),
            (_, Part::Main, _) => self.updated(change, object, present),
            // Nobody but the controller writes there, not even what would be dropped.
            (_, Part::Status, _) if self.actor != Actor::Controller => Refused(match (top, &change.to) {
                // The API server reads an object before anybody judges it.
                ("metadata", _) => &[THEIRS, CONFLICT, "does not match", "Precondition failed"],
                (_, None) => &[THEIRS, REQUIRED, ONLY_LESS],
                (_, Some(_)) => &[THEIRS, CONFLICT],
            }),
            (_, Part::Status, "status") => self.status(change, present),
            (_, Part::Status, _) => Harmless,
            (_, Part::Unknown(_), _) => unreachable!(),
        }
    }

    /// The first verb that it takes and no role gives.
    pub(super) fn missing(&self) -> Option<&'static str> {
        self.words().iter().find(|word| !self.may(word)).copied()
    }

    /// The verbs of RBAC that it takes.
    fn words(&self) -> &'static [&'static str] {
        match self.verb {
            Verb::Create => &["create"],
            Verb::ApplyNew => &["patch", "create"],
            Verb::Put => &["update"],
            Verb::JsonPatch | Verb::MergePatch | Verb::StrategicPatch | Verb::Apply | Verb::ApplyForced => {
                &["patch"]
            }
            Verb::Delete => &["delete"],
            Verb::DeleteCollection => &["deletecollection"],
        }
    }

    /// What the roles give.
    fn may(&self, word: &str) -> bool {
        let main = self.part == Part::Main;
        match self.actor {
            Actor::Wildcard | Actor::ClusterAdmin => true,
            // The controller's role, in the hands of the one and of a namesake.
            Actor::Controller | Actor::Namesake => match word {
                "update" | "patch" => !matches!(self.part, Part::Unknown(_)),
                "delete" => main && self.kind != Kind::Policy,
                _ => false,
            },
            Actor::Requester | Actor::Pipeline | Actor::Delegate | Actor::Both => match self.kind {
                Kind::Policy => false,
                Kind::Request => main && word != "deletecollection",
                Kind::Review => main && word == "create",
            },
            Actor::Approver => main && self.kind == Kind::Review && word == "create",
            Actor::PolicyAdmin => main && self.kind == Kind::Policy && word != "deletecollection",
            Actor::Viewer | Actor::NamespaceAdmin | Actor::Outsider => false,
        }
    }

    fn is_service_account(&self) -> bool {
        matches!(self.actor, Actor::Pipeline | Actor::Wildcard | Actor::Namesake | Actor::Controller)
    }

    fn may_approve(&self) -> bool {
        matches!(self.actor, Actor::Approver | Actor::Both | Actor::Wildcard | Actor::ClusterAdmin)
    }

    fn may_delegate(&self) -> bool {
        matches!(self.actor, Actor::Delegate | Actor::Wildcard | Actor::ClusterAdmin)
    }

    /// What no object may be like, whoever writes it.
    fn malformed(&self, change: &Change) -> Option<Expected> {
        let at = change.pointer();
        let removed = change.to.is_none();
        let is = |pointers: &[&str]| pointers.contains(&at.as_str());
        match self.kind {
            Kind::Policy if removed && is(&["/spec", "/spec/targets", "/spec/targets/0/name"]) => {
                // Of a list's item without its key the API server says so.
                Some(Refused(&[REQUIRED, "omits all key fields"]))
            }
            Kind::Policy if removed && is(&["/spec/targets/0"]) => Some(Refused(&["at least 1 items"])),
            Kind::Policy
                if removed
                    && is(&[
                        "/spec/targets/0/azureVirtualMachine/id",
                        "/spec/ports/0/port",
                        "/spec/ports/0/allowedSources/0/cidr",
                    ]) =>
            {
                Some(Refused(&[REQUIRED]))
            }
            Kind::Policy
                if removed
                    && is(&[
                        "/spec/targets/0/azureVirtualMachine",
                        "/spec/enforcement/exemptSources/0/cidr",
                    ]) =>
            {
                Some(Refused(&["exactly one of", REQUIRED]))
            }
            Kind::Policy
                if is(&[
                    "/spec/targets/1",
                    "/spec/targets/0/azureScope/id",
                    "/spec/targets/0/azureScope/tags/attack",
                    "/spec/enforcement/exemptSources/1",
                    "/spec/enforcement/exemptSources/0/serviceTag",
                ]) =>
            {
                Some(Refused(&["exactly one of"]))
            }
            Kind::Request
                if removed
                    && is(&[
                        "/spec",
                        "/spec/duration",
                        "/spec/policyRef",
                        "/spec/policyRef/name",
                        "/spec/ports",
                        "/spec/ports/0/port",
                        "/spec/ports/0/sources",
                        "/spec/ports/0/sources/0/cidr",
                        "/spec/targets/0/name",
                        "/spec/requester/username",
                    ]) =>
            {
                Some(Refused(&[REQUIRED]))
            }
            Kind::Request if removed && is(&["/spec/ports/0", "/spec/ports/0/sources/0"]) => {
                Some(Refused(&["at least 1 items"]))
            }
            Kind::Request
                if is(&["/spec/allTargets"]) || removed && is(&["/spec/targets", "/spec/targets/0"]) =>
            {
                Some(Refused(&["name targets, or set allTargets: true, and not both"]))
            }
            Kind::Review
                if removed
                    && is(&[
                        "/spec",
                        "/spec/requestRef",
                        "/spec/requestRef/name",
                        "/spec/requestRef/uid",
                        "/spec/policyRef",
                        "/spec/policyRef/name",
                        "/spec/verdict",
                        "/spec/reviewer/username",
                    ]) =>
            {
                Some(Refused(&[REQUIRED]))
            }
            Kind::Review if removed && is(&["/spec/planHash"]) => {
                Some(Refused(&["planHash is required to approve"]))
            }
            Kind::Policy | Kind::Request | Kind::Review => None,
        }
    }

    fn created(&self, change: &Change, object: &Value) -> Expected {
        if let Some(malformed) = self.malformed(change) {
            return malformed;
        }
        let field = change.at.get(1).map_or("", String::as_str);
        if Some(field) == self.kind.author() {
            return match (change.at.get(2).map(String::as_str), &change.to) {
                // Left out, it is filled in.
                (None, None) => self.otherwise(change, object, NoEffect),
                _ if self.kind == Kind::Request => Refused(&["spec.requester must be yourself"]),
                _ => Refused(&["spec.reviewer must be yourself"]),
            };
        }
        self.otherwise(change, object, Done)
    }

    /// Of what is right by itself: who may create it.
    fn otherwise(&self, change: &Change, object: &Value, well: Expected) -> Expected {
        let made = change.made_to(object);
        match self.kind {
            Kind::Policy => well,
            Kind::Request if !made["spec"]["onBehalfOf"].is_null() && !self.may_delegate() => {
                Refused(&["that takes the verb delegate on"])
            }
            Kind::Request if made["spec"]["notAfter"].is_null() && self.is_service_account() => {
                Refused(&["spec.notAfter is required when a service account asks"])
            }
            Kind::Request => well,
            Kind::Review if made["spec"]["verdict"] != "Ended" && !self.may_approve() => {
                Refused(&["that takes the verb approve on it"])
            }
            Kind::Review => well,
        }
    }

    fn created_metadata(&self, change: &Change) -> Expected {
        let well = match change.at[1].as_str() {
            "labels" | "annotations" | "ownerReferences" | "generateName" => Done,
            "finalizers" => {
                let text = change.to.as_ref().unwrap().to_string();
                let backup = text.contains("cloud-rules") && self.kind != Kind::Review;
                if text.contains("jit.portcullis.io/") && !backup {
                    return self.unless_unheard(Refused(&[
                        "finalizers that begin with jit.portcullis.io/ are the controller's",
                        "that takes the verb approve on it",
                    ]));
                }
                Done
            }
            _ => Harmless,
        };
        self.unless_unheard(well)
    }

    /// Who may not create such an object at all is refused whatever else is in it.
    fn unless_unheard(&self, well: Expected) -> Expected {
        if self.kind == Kind::Review && !self.may_approve() {
            Refused(&[
                "that takes the verb approve on it",
                "finalizers that begin with jit.portcullis.io/ are the controller's",
            ])
        } else {
            well
        }
    }

    fn updated(&self, change: &Change, object: &Value, present: bool) -> Expected {
        let stamped = change.at.len() == 2 && self.kind.author() == change.at.get(1).map(String::as_str);
        if stamped && change.to.is_none() {
            return NoEffect;
        }
        match self.kind {
            Kind::Policy => match self.malformed(change) {
                Some(malformed) if self.verb == Verb::Apply && present => {
                    let Refused(_) = malformed else { return malformed };
                    Refused(&[CONFLICT, "exactly one of"])
                }
                Some(malformed) => malformed,
                None if self.verb == Verb::Apply && present => Refused(&[CONFLICT]),
                None => Done,
            },
            Kind::Request | Kind::Review if object.pointer(&pointer(&change.at[..1])).is_none() => Harmless,
            Kind::Request => {
                Refused(&["spec is immutable: create a new request", REQUIRED, CONFLICT, "at least 1"])
            }
            Kind::Review => Refused(&["a review is immutable: create another", REQUIRED, CONFLICT]),
        }
    }

    fn updated_metadata(&self, change: &Change, object: &Value) -> Expected {
        let controller = self.actor == Actor::Controller;
        let applies = matches!(self.verb, Verb::Apply | Verb::ApplyForced);
        let there = |finalizer: &Value| {
            object["metadata"]["finalizers"].as_array().is_some_and(|all| all.contains(finalizer))
        };
        let ours = |finalizer: &Value| finalizer.as_str().unwrap().starts_with("jit.portcullis.io/");
        let adds = |to: &Value| to.as_array().unwrap().iter().any(|one| ours(one) && !there(one));
        match (change.at[1].as_str(), &change.to) {
            ("labels" | "annotations", _) => Done,
            ("ownerReferences", _) if controller => Done,
            ("ownerReferences", _) => Refused(&["ownerReferences may not be added"]),
            ("finalizers", Some(to)) if adds(to) && !controller => {
                Refused(&["finalizers that begin with jit.portcullis.io/ are the controller's"])
            }
            ("finalizers", None) if !controller => NoEffect,
            // What one does not own, one does not take away by applying.
            ("finalizers", Some(to)) if to == &serde_json::json!([]) && (applies || !controller) => NoEffect,
            ("finalizers", _) => Done,
            _ => Harmless,
        }
    }

    /// The controller's own writes.
    fn status(&self, change: &Change, present: bool) -> Expected {
        if self.verb == Verb::Apply && present {
            return Refused(&[CONFLICT]);
        }
        let at = change.pointer();
        let takes_the_end_away =
            change.to.is_none() && ["/status", "/status/expiresAt"].contains(&at.as_str());
        if self.kind == Kind::Request && takes_the_end_away {
            return Refused(&[ONLY_LESS]);
        }
        if change.to.is_none() {
            // Some fields are required, some have a default.
            return Harmless;
        }
        Done
    }
}
