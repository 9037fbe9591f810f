//! What a step writes: the finalizer first, then the status.

use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::api::{FINALIZER, JitAccessRequest, Tolerant};
use crate::controllers::retry::WriteError;
use crate::plan::lifecycle::{Finalizer, Step};

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
