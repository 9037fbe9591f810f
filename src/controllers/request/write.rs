//! What a step writes: the finalizer first, then the status.

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::api::{FINALIZER, JitAccessRequest, State, Tolerant};
use crate::controllers::retry::WriteError;
use crate::plan::lifecycle::{Finalizer, Step, state};

pub(super) enum Acted {
    Nothing,
    Gone,
    Wrote(Box<JitAccessRequest>),
}

/// Writes what a step asks for: the finalizer first, then the status, each against the version that was judged.
pub(super) async fn act(
    api: &Api<Tolerant<JitAccessRequest>>,
    request: &JitAccessRequest,
    next: &Step,
) -> Result<Acted, WriteError> {
    let name = request.name_any();
    let finalizers = match next.finalizer {
        Finalizer::Leave => None,
        Finalizer::Add => Some(
            request
                .finalizers()
                .iter()
                .map(String::as_str)
                .chain([FINALIZER])
                .map(str::to_owned)
                .collect::<Vec<_>>(),
        ),
        Finalizer::Remove => {
            Some(request.finalizers().iter().filter(|finalizer| *finalizer != FINALIZER).cloned().collect())
        }
    };
    if let Some(finalizers) = finalizers {
        let patch = json!({"metadata": {
            "finalizers": finalizers,
            "resourceVersion": request.resource_version(),
            "uid": request.uid(),
        }});
        return match api.patch(&name, &PatchParams::default(), &Patch::Merge(&patch)).await {
            Ok(written) => Ok(Acted::Wrote(Box::new(written.0))),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(Acted::Gone),
            Err(source) => Err(WriteError { operation: "write the finalizer of the request", source }),
        };
    }
    if request.status.as_ref() == Some(&next.status) {
        return Ok(Acted::Nothing);
    }
    let mut wanted = request.clone();
    wanted.status = Some(next.status.clone());
    // With resourceVersion and UID: written ahead means written over what was judged, and over nothing else.
    match api.replace_status(&name, &PostParams::default(), &Tolerant(wanted)).await {
        Ok(written) => Ok(Acted::Wrote(Box::new(written.0))),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(Acted::Gone),
        Err(source) => Err(WriteError { operation: "write the status of the request", source }),
    }
}

/// Whether the rules of a grant are to go though it could not be written down that it ends. Somebody else's word ends it, or
/// a change of policy or machine, and no status: whoever may write to the object could keep that from being written, such as
/// by making the object as large as the API server allows.
pub(super) fn ends_all_the_same(request: &JitAccessRequest, next: &Step, error: &WriteError) -> bool {
    let ended = [State::Revoked, State::Ended].map(|outcome| Some(outcome.as_str()));
    let ends = next.status.state.as_deref() == Some(State::Closing.as_str())
        && ended.contains(&next.status.outcome.as_deref());
    match state(request) {
        State::Active => ends,
        // An old read may show an opening that has long since come to its end.
        State::Opening => ends && !error.is_conflict(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;
    use crate::api::{JitAccessRequestSpec, JitAccessRequestStatus};

    #[test]
    fn what_others_end_ends_though_it_cannot_be_written_and_what_an_old_status_says_does_not() {
        let ends = |from: State, to: State, outcome: State, code: u16| {
            let status = |state: State, outcome: Option<State>| JitAccessRequestStatus {
                state: Some(state.as_str().into()),
                outcome: outcome.map(|outcome| outcome.as_str().into()),
                expires_at: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(
                    jiff::Timestamp::UNIX_EPOCH,
                )),
                ..Default::default()
            };
            let mut request = JitAccessRequest::new("one", JitAccessRequestSpec::default());
            request.status = Some(status(from, None));
            let (finalizer, look_again, event, grants) = (Finalizer::Leave, None, None, false);
            let next = Step { status: status(to, Some(outcome)), finalizer, look_again, event, grants };
            let source =
                kube::Error::Api(Box::new(Status::failure("generated", "Generated").with_code(code)));
            ends_all_the_same(&request, &next, &WriteError { operation: "write", source })
        };
        for code in [403, 409, 413, 500] {
            assert!(ends(State::Active, State::Closing, State::Revoked, code), "{code}");
            assert!(ends(State::Active, State::Closing, State::Ended, code), "{code}");
            assert_eq!(ends(State::Opening, State::Closing, State::Revoked, code), code != 409);
            // Its deadline is closed by the gate, and one that failed to open is no word of others.
            assert!(!ends(State::Active, State::Closing, State::Expired, code));
            assert!(!ends(State::Opening, State::Closing, State::Failed, code));
            assert!(!ends(State::Active, State::Opening, State::Revoked, code), "shortened");
            assert!(!ends(State::Pending, State::Ended, State::Ended, code));
        }
    }
}
