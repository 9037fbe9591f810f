//! Which allows gates may open: those that this process wrote ahead, and those that were proved to it.
//!
//! A status alone opens nothing ([`Ground`]): the watch brings it here, whoever wrote it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kube::ResourceExt;

use crate::api::{JitAccessRequest, RuleState, RuleStatus, State};
use crate::plan::desired::{Duty, Grant};
use crate::plan::lease::{Moment, Tenure};
use crate::plan::lifecycle::{Ground, duties, state};
use crate::plan::model::FirewallId;

type Rules = Vec<(FirewallId, Grant)>;

/// Allows that gates may open, by the UID of the request. Cheap to clone; clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Opens {
    known: Arc<Mutex<HashMap<String, Rules>>>,
    /// Requests that this process has granted, or is about to, and the beginning of the tenure in which it did: until that has
    /// ended, nobody else has begun to open anything of them.
    granted: Arc<Mutex<HashMap<String, Moment>>>,
}

impl Opens {
    fn known(&self) -> MutexGuard<'_, HashMap<String, Rules>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn granted(&self) -> MutexGuard<'_, HashMap<String, Moment>> {
        self.granted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A grant is about to be written ahead, by this process and for the first time.
    pub(super) fn grant(&self, request_uid: String, tenure: Option<Tenure>) {
        if let Some(tenure) = tenure {
            self.granted().insert(request_uid, tenure.begun);
        }
    }

    /// The begin of the tenure in which this process has granted it.
    pub(super) fn granted_in(&self, request_uid: &str) -> Option<Moment> {
        self.granted().get(request_uid).copied()
    }

    /// A request is gone, or settled.
    pub(in crate::controllers) fn gone(&self, request_uid: &str) {
        self.forget(request_uid);
        self.granted().remove(request_uid);
    }

    /// The allows that this status says are being written may be opened, to the letter and in place of all before.
    pub(super) fn vouch(&self, request: &JitAccessRequest) {
        let mut rules = duties(request);
        rules.retain(is_open);
        self.known().insert(request.uid().unwrap_or_default(), rules);
    }

    /// Why the status is to be believed. `asked`: whether everything that a grant rests on was just asked again.
    pub(super) fn ground(&self, request: &JitAccessRequest, asked: bool) -> Ground {
        let mut opens = duties(request);
        opens.retain(is_open);
        // What cannot be read, or is called as nothing of this request, was written by nobody of ours.
        let being_written = |rule: &&RuleStatus| {
            matches!(RuleState::parse(&rule.state), RuleState::Planned | RuleState::Opening)
        };
        let rules = request.status.iter().flat_map(|status| &status.rules);
        let all = state(request) != State::Opening || rules.filter(being_written).count() == opens.len();
        let known = self.known();
        let own = known.get(&request.uid().unwrap_or_default());
        if all && own.is_some_and(|own| opens.iter().all(|rule| own.contains(rule))) {
            return Ground::Own;
        }
        if asked { Ground::Asked } else { Ground::Found }
    }

    /// Leaves out what may not be opened.
    pub(super) fn withhold(&self, request_uid: &str, rules: &mut Rules) {
        let known = self.known();
        let own = known.get(request_uid);
        rules.retain(|rule| !is_open(rule) || own.is_some_and(|own| own.contains(rule)));
    }

    /// Forgets a request that is over.
    pub(super) fn forget(&self, request_uid: &str) {
        self.known().remove(request_uid);
    }
}

fn is_open((_, grant): &(FirewallId, Grant)) -> bool {
    matches!(grant.duty, Duty::Open { .. })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::JitAccessRequestStatus;
    use crate::plan::names::{Cluster, allow_name};
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    const UID: &str = "0f8fad5b-d9cb-469f-a165-70867728950e";

    fn opening(change: impl Fn(&mut RuleStatus, &mut JitAccessRequestStatus)) -> JitAccessRequest {
        let at = |second| jiff::Timestamp::from_second(second).unwrap();
        let mut rule = RuleStatus {
            firewall: "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups/web".into(),
            name: allow_name(&Cluster::new("test", &[]), UID, at(1_790_000_000), 0),
            protocol: "TCP".into(),
            sources: vec!["203.0.113.7/32".into()],
            destinations: vec!["10.0.0.4".into()],
            ports: vec!["22".into()],
            state: "Opening".into(),
            ..RuleStatus::default()
        };
        let mut status = JitAccessRequestStatus {
            state: Some(State::Opening.as_str().into()),
            granted_at: Some(Time(at(1_789_999_000))),
            expires_at: Some(Time(at(1_790_000_000))),
            ..JitAccessRequestStatus::default()
        };
        change(&mut rule, &mut status);
        status.rules = vec![rule];
        let mut request = JitAccessRequest { status: Some(status), ..JitAccessRequest::default() };
        request.metadata.uid = Some(UID.into());
        request
    }

    fn given(opens: &Opens, request: &JitAccessRequest) -> Vec<Duty> {
        let mut rules = duties(request);
        opens.withhold(UID, &mut rules);
        rules.into_iter().map(|(_, grant)| grant.duty).collect()
    }

    #[test]
    fn in_which_tenure_it_was_granted_is_known_until_it_is_gone() {
        let opens = Opens::default();
        let begun = Moment::from_secs(3);
        opens.grant(UID.into(), Some(Tenure { begun, lasted: Moment::from_secs(1) }));
        assert_eq!(opens.granted_in(UID), Some(begun));
        opens.grant("lost".into(), None);
        assert_eq!(opens.granted_in("lost"), None);
        opens.gone(UID);
        assert_eq!(opens.granted_in(UID), None);
    }

    #[test]
    fn only_what_was_written_ahead_to_the_letter_is_given_to_gates() {
        let opens = Opens::default();
        let own = opening(|_, _| {});
        assert_eq!((given(&opens, &own), opens.ground(&own, false)), (vec![], Ground::Found));
        opens.vouch(&own);
        assert!(matches!(given(&opens, &own)[..], [Duty::Open { .. }]));
        assert_eq!(opens.ground(&own, false), Ground::Own);
        let wider = [
            opening(|rule, _| rule.sources = vec!["0.0.0.0/0".into()]),
            opening(|rule, _| rule.ports = vec!["1-65535".into()]),
            opening(|rule, _| rule.destinations = vec!["10.0.0.5".into()]),
            opening(|rule, _| rule.protocol = "Any".into()),
            opening(|rule, _| rule.firewall = rule.firewall.replace("/web", "/theirs")),
            opening(|rule, _| rule.name = rule.name.replace("Z-0", "Z-1")),
            opening(|rule, _| rule.name = rule.name.replace("-0f8f", "-1f8f")),
            opening(|rule, _| rule.firewall = "not an id".into()),
            opening(|_, status| {
                status.granted_at = Some(Time(jiff::Timestamp::from_second(1_789_999_500).unwrap()));
            }),
        ];
        for forged in wider {
            assert_eq!(
                (given(&opens, &forged), opens.ground(&forged, true)),
                (vec![], Ground::Asked),
                "{forged:?}"
            );
        }
        // Closing and holding write nothing, so nothing of them is withheld.
        for state in ["Present", "Closing"] {
            assert_eq!(given(&opens, &opening(|rule, _| rule.state = state.into())).len(), 1);
        }
        opens.gone(UID);
        assert_eq!(given(&opens, &own), vec![]);
    }
}
