//! What every loop shares, and how one has others look again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Client, ResourceExt};
use tokio::sync::mpsc;

use super::events::Herald;
use super::gate::Gates;
use super::leader::Leadership;
use super::resolutions::Resolutions;
use super::watched::Filled;
use super::{Settings, admission, request, review};
use crate::api::{JitAccessRequest, JitAccessReview, JitPolicy};
use crate::clock::{Clock, Server};
use crate::plan::lease::Role;
use crate::providers::Cloud;
use crate::telemetry::{Audit, Metrics};

/// What every loop shares.
#[derive(Clone)]
pub struct Context {
    /// The API server.
    pub client: Client,
    /// How the controller works.
    pub settings: Arc<Settings>,
    /// The clouds, by the name of the credential.
    pub clouds: Arc<BTreeMap<String, Cloud>>,
    /// The gates.
    pub gates: Gates,
    /// The machines of every policy.
    pub resolutions: Resolutions,
    /// Policies, as last watched.
    pub policies: Store<JitPolicy>,
    /// Requests, as last watched.
    pub requests: Store<JitAccessRequest>,
    /// Reviews that are not settled, as last watched.
    pub reviews: review::Reviews,
    /// Whether the policies are known.
    pub policies_filled: Filled,
    /// Whether the requests are known.
    pub requests_filled: Filled,
    /// Whether admission is in force.
    pub admission: admission::Proof,
    /// Whether this replica may write.
    pub leadership: Leadership,
    /// Whether the reviews are known.
    pub reviews_filled: Filled,
    /// Who may approve, as the API server said lately.
    pub rights: request::Rights,
    /// Who may be granted next.
    pub turns: request::Turns,
    /// What policies say, parsed.
    pub terms: request::ParsedTerms,
    /// When this process began to know anything.
    pub started: jiff::Timestamp,
    /// What gates may open.
    pub opens: request::Opens,
    /// How often the waiting requests of one requester are looked at.
    pub pace: request::Pace,
    /// How many requests are worked on at the same time.
    pub rooms: request::Rooms,
    /// What the audit trail has told of each request.
    pub told: request::told::Told,
    /// Has a policy looked at again.
    pub wake_policies: mpsc::UnboundedSender<ObjectRef<JitPolicy>>,
    /// Has a request looked at again.
    pub wake_requests: mpsc::UnboundedSender<ObjectRef<JitAccessRequest>>,
    /// Has a review looked at again.
    pub wake_reviews: mpsc::UnboundedSender<ObjectRef<JitAccessReview>>,
    /// Tells people.
    pub herald: Herald,
    /// Counts.
    pub metrics: Metrics,
    /// Records.
    pub audit: Audit,
    /// Tells the time.
    pub clock: Clock,
    /// Tells the time that deadlines are judged by.
    pub deadlines: Clock,
    /// The API server's clock.
    pub api_server: Server,
}

impl Context {
    /// Whether everything is known that a grant rests on.
    pub(super) fn knows_all(&self) -> bool {
        let filled = [&self.policies_filled, &self.requests_filled, &self.reviews_filled];
        filled.into_iter().all(Filled::is_filled) && self.admission.has_looked()
    }

    /// Has the policies and requests of these UIDs looked at again.
    pub(super) fn wake(&self, owners: &BTreeSet<String>) {
        let owned = |uid: Option<String>| uid.is_some_and(|uid| owners.contains(&uid));
        for policy in self.policies.state().into_iter().filter(|policy| owned(policy.uid())) {
            let _ = self.wake_policies.send(ObjectRef::from_obj(&*policy));
        }
        for request in self.requests.state().into_iter().filter(|request| owned(request.uid())) {
            let _ = self.wake_requests.send(ObjectRef::from_obj(&*request));
        }
    }

    /// Has the policies of a request looked at again: with a live grant, machines are read more often.
    pub(super) fn wake_policies_of(&self, request: &JitAccessRequest) {
        let named = request.status.iter().flat_map(|status| &status.policies);
        let uids: BTreeSet<&str> = named.map(|policy| policy.uid.as_str()).collect();
        for policy in self
            .policies
            .state()
            .iter()
            .filter(|policy| policy.uid().is_some_and(|uid| uids.contains(uid.as_str())))
        {
            let _ = self.wake_policies.send(ObjectRef::from_obj(&**policy));
        }
    }

    /// The role of this replica is another one.
    pub(super) fn has_role(&self, role: Role) {
        // What was known is of another term.
        self.admission.forget();
        if role == Role::Holder {
            self.wake_all();
            for review in self.reviews.all() {
                let _ = self.wake_reviews.send(ObjectRef::from_obj(&*review));
            }
        }
    }

    /// Has everything looked at again.
    pub(super) fn wake_all(&self) {
        for policy in self.policies.state() {
            let _ = self.wake_policies.send(ObjectRef::from_obj(&*policy));
        }
        for request in self.requests.state() {
            let _ = self.wake_requests.send(ObjectRef::from_obj(&*request));
        }
    }

    /// Has the reviews of a request looked at again: with the request they are settled.
    pub(super) fn wake_reviews_of(&self, request: &JitAccessRequest) {
        for review in self.reviews.of(request) {
            let _ = self.wake_reviews.send(ObjectRef::from_obj(&*review));
        }
    }

    /// Has every request that a policy may concern looked at again.
    pub(super) fn wake_requests(&self, policy: &JitPolicy) {
        let namespace = policy.namespace();
        for request in self.requests.state().into_iter().filter(|request| request.namespace() == namespace) {
            let _ = self.wake_requests.send(ObjectRef::from_obj(&*request));
        }
    }
}
