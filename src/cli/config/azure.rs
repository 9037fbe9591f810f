//! Clouds and identities of the configuration file, checked.

use std::path::PathBuf;

use url::Url;

use super::Judge;
use super::file::{CloudFile, CloudName, CredentialFile};

/// Which Azure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cloud {
    /// Base URL of Azure Resource Manager, without a slash at the end.
    pub resource_manager: String,
    /// Base URL of the token endpoint, without a slash at the end.
    pub authority: String,
    /// Audience of the tokens.
    pub audience: String,
    /// File with certificates (PEM) to trust beside the public ones.
    pub ca_file: Option<PathBuf>,
}

/// An identity to act with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credential {
    /// Name by which namespaces choose it.
    pub name: String,
    /// Who that is.
    pub identity: Identity,
}

/// How a token is got.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Identity {
    /// An application with a secret.
    ClientSecret {
        /// The tenant.
        tenant_id: String,
        /// The application.
        client_id: String,
        /// File that holds the secret.
        secret_file: PathBuf,
    },
    /// A federated service account. What is none comes from the environment.
    WorkloadIdentity {
        /// The tenant.
        tenant_id: Option<String>,
        /// The application.
        client_id: Option<String>,
        /// File with the service account's token.
        token_file: Option<PathBuf>,
    },
    /// The identity of the machine that this program runs on.
    ManagedIdentity {
        /// Which of several.
        client_id: Option<String>,
    },
}

/// The endpoints of the cloud. Those of the named clouds are fixed: a token must not be sent elsewhere by a
/// slip of the pen.
pub(super) fn cloud(file: &CloudFile, judge: &mut Judge) -> Cloud {
    let (resource_manager, authority) = match file.name {
        CloudName::Public => ("https://management.azure.com", "https://login.microsoftonline.com"),
        CloudName::USGovernment => {
            ("https://management.usgovcloudapi.net", "https://login.microsoftonline.us")
        }
        CloudName::China => ("https://management.chinacloudapi.cn", "https://login.chinacloudapi.cn"),
        CloudName::Custom => ("", ""),
    };
    let custom = file.name == CloudName::Custom;
    let mut endpoint = |field: &str, written: Option<&String>, fixed: &str| match (written, custom) {
        (Some(text), true) => base_url(&format!("cloud.{field}"), text, judge),
        (None, true) => {
            judge.complain(
                format!("cloud.{field}"),
                "is required where cloud.name is Custom, such as https://azure.example",
            );
            String::new()
        }
        (Some(_), false) => {
            judge.complain(
                format!("cloud.{field}"),
                format!("is {fixed} in this cloud: leave it out, or set cloud.name: Custom"),
            );
            String::new()
        }
        (None, false) => fixed.to_owned(),
    };
    let resource_manager = endpoint("resourceManager", file.resource_manager.as_ref(), resource_manager);
    let authority = endpoint("authority", file.authority.as_ref(), authority);
    let audience = file.audience.clone().unwrap_or_else(|| resource_manager.clone());
    judge.require(!audience.is_empty() || custom, "cloud.audience", "must not be empty");
    Cloud { resource_manager, authority, audience, ca_file: file.ca_file.as_ref().map(PathBuf::from) }
}

fn base_url(path: &str, text: &str, judge: &mut Judge) -> String {
    let fits = Url::parse(text).is_ok_and(|url| {
        matches!(url.scheme(), "http" | "https")
            && url.has_host()
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
    });
    judge.require(fits, path, format!("{text:?} is no base URL such as https://azure.example"));
    text.trim_end_matches('/').to_owned()
}

pub(super) fn credentials(files: &[CredentialFile], judge: &mut Judge) -> Vec<Credential> {
    let mut found: Vec<Credential> = Vec::new();
    for (index, file) in files.iter().enumerate() {
        let path = format!("credentials[{index}]");
        judge.require(
            !file.name.is_empty() && file.name.len() <= 63,
            format!("{path}.name"),
            "must have from 1 to 63 characters",
        );
        judge.require(
            files[..index].iter().all(|other| other.name != file.name),
            format!("{path}.name"),
            format!("{:?} is named before: give each credential a name of its own", file.name),
        );
        let identity = match (&file.client_secret, &file.workload_identity, &file.managed_identity) {
            (Some(secret), None, None) => {
                for (field, text) in [
                    ("tenantId", &secret.tenant_id),
                    ("clientId", &secret.client_id),
                    ("secretFile", &secret.secret_file),
                ] {
                    judge.require(
                        !text.is_empty(),
                        format!("{path}.clientSecret.{field}"),
                        "must not be empty",
                    );
                }
                Identity::ClientSecret {
                    tenant_id: secret.tenant_id.clone(),
                    client_id: secret.client_id.clone(),
                    secret_file: PathBuf::from(&secret.secret_file),
                }
            }
            (None, Some(workload), None) => Identity::WorkloadIdentity {
                tenant_id: workload.tenant_id.clone(),
                client_id: workload.client_id.clone(),
                token_file: workload.token_file.as_ref().map(PathBuf::from),
            },
            (None, None, Some(managed)) => Identity::ManagedIdentity { client_id: managed.client_id.clone() },
            _ => {
                judge.complain(
                    path,
                    "must have exactly one of clientSecret, workloadIdentity and managedIdentity",
                );
                continue;
            }
        };
        found.push(Credential { name: file.name.clone(), identity });
    }
    found
}
