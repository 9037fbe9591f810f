//! Who asks and who reviews is the API server's to write. Where it does not, the user has to.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::APIResource;
use kube::api::{Api, DynamicObject};
use kube::core::{ApiResource, GroupVersionKind};

use super::cluster::Cluster;
use super::failure::{Exit, Failure};
use crate::api::UserInfo;

/// Whose name a policy of admission stamps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stamp {
    /// `spec.requester` of requests.
    Requester,
    /// `spec.reviewer` of reviews.
    Reviewer,
}

impl Stamp {
    /// The field.
    #[must_use]
    pub const fn field(self) -> &'static str {
        match self {
            Self::Requester => "spec.requester",
            Self::Reviewer => "spec.reviewer",
        }
    }

    const fn policy(self) -> &'static str {
        match self {
            Self::Requester => "portcullis-requester",
            Self::Reviewer => "portcullis-reviewer",
        }
    }

    /// Whether the API server refused something because nobody had filled the field in.
    #[must_use]
    pub fn is_missed_by(self, failure: &Failure) -> bool {
        failure.exit == Exit::Refused && failure.message.contains(&format!("{} is missing", self.field()))
    }
}

/// Who is to be written into the field before anything is sent, and why; none where the API server fills it in, as
/// far as one may see.
///
/// # Errors
/// When the API server does not say what it has, or who the user is.
pub async fn beforehand(cluster: &Cluster, stamp: Stamp) -> Result<Option<(UserInfo, String)>, Failure> {
    let Some(why) = absent(cluster, stamp).await? else { return Ok(None) };
    Ok(Some((cluster.whoami().await?, why)))
}

/// Why the field is not filled in by the API server.
async fn absent(cluster: &Cluster, stamp: Stamp) -> Result<Option<String>, Failure> {
    let kinds = cluster.client().list_api_group_resources("admissionregistration.k8s.io/v1").await?;
    let mutating = |kind: &APIResource| kind.name == "mutatingadmissionpolicies";
    if !kinds.resources.iter().any(mutating) {
        return Ok(Some(
            "this API server has no MutatingAdmissionPolicy (before Kubernetes 1.36)".to_owned(),
        ));
    }
    let kind = GroupVersionKind::gvk("admissionregistration.k8s.io", "v1", "MutatingAdmissionPolicy");
    let resource = ApiResource::from_gvk_with_plural(&kind, "mutatingadmissionpolicies");
    let policies: Api<DynamicObject> = Api::all_with(cluster.client().clone(), &resource);
    match policies.get_metadata(stamp.policy()).await {
        Err(kube::Error::Api(status)) if status.code == 404 => {
            Ok(Some(format!("there is no MutatingAdmissionPolicy {}", stamp.policy())))
        }
        // Most users may not see it; then the server says so itself when something is sent.
        Ok(_) | Err(_) => Ok(None),
    }
}
