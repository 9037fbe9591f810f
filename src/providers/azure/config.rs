//! Settings: which Azure, and who we are there.

use std::fmt;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use url::{Host, Url};

/// A setting that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct ConfigError {
    /// Which setting, as a path such as `cloud.authority`.
    pub field: String,
    /// What is wrong, and what would be right.
    pub message: String,
}

impl ConfigError {
    pub(super) fn new(field: impl Into<String>, message: impl fmt::Display) -> Self {
        Self { field: field.into(), message: message.to_string() }
    }
}

/// Which Azure. The default is the public one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct CloudConfig {
    /// One of Azure's clouds, or `Custom` with endpoints of its own.
    pub name: CloudName,
    /// Resource Manager's endpoint. Only with `Custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_manager: Option<String>,
    /// Endpoint that gives tokens. Only with `Custom`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// What tokens are for; the scope that is asked for is this and `/.default`. Left out: the endpoint of
    /// Resource Manager.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
    /// PEM file of certificates to trust besides the system's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
}

/// Azure's clouds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum CloudName {
    /// Azure.
    #[default]
    Public,
    /// Azure for the government of the United States.
    USGovernment,
    /// Azure in China.
    China,
    /// Azure Stack, or a simulator.
    Custom,
}

/// Where a cloud is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoints {
    /// Resource Manager.
    pub resource_manager: Url,
    /// Gives tokens.
    pub authority: Url,
    /// What tokens are for.
    pub audience: String,
}

impl CloudConfig {
    /// Where the cloud is.
    ///
    /// # Errors
    /// When an endpoint is missing, not wanted, no URL, or plain http outside this machine.
    pub fn endpoints(&self) -> Result<Endpoints, ConfigError> {
        let known = match self.name {
            CloudName::Public => Some(("https://management.azure.com", "https://login.microsoftonline.com")),
            CloudName::USGovernment => {
                Some(("https://management.usgovcloudapi.net", "https://login.microsoftonline.us"))
            }
            CloudName::China => {
                Some(("https://management.chinacloudapi.cn", "https://login.chinacloudapi.cn"))
            }
            CloudName::Custom => None,
        };
        let endpoint = |field: &str, given: Option<&String>, known: Option<&str>| {
            let field = format!("cloud.{field}");
            match (given, known) {
                (Some(given), None) => custom_endpoint(&field, given),
                (None, Some(known)) => Url::parse(known).map_err(|error| ConfigError::new(field, error)),
                (Some(_), Some(_)) => {
                    Err(ConfigError::new(field, "can be set only where cloud.name is Custom: leave it out"))
                }
                (None, None) => Err(ConfigError::new(
                    field,
                    "is missing: where cloud.name is Custom, give a URL such as https://management.example.com",
                )),
            }
        };
        let resource_manager =
            endpoint("resourceManager", self.resource_manager.as_ref(), known.map(|known| known.0))?;
        let authority = endpoint("authority", self.authority.as_ref(), known.map(|known| known.1))?;
        let audience = match &self.audience {
            Some(audience) if audience.trim().is_empty() => {
                return Err(ConfigError::new("cloud.audience", "is empty: leave it out or give a URI"));
            }
            Some(audience) => audience.trim_end_matches('/').to_owned(),
            None => resource_manager.as_str().trim_end_matches('/').to_owned(),
        };
        Ok(Endpoints { resource_manager, authority, audience })
    }
}

/// The secrets that go to an endpoint must not cross a network in the clear.
fn custom_endpoint(field: &str, text: &str) -> Result<Url, ConfigError> {
    let wrong = |why: &str| {
        ConfigError::new(
            field,
            format!(
                "{text:?} {why}: give a URL such as https://management.example.com, without path or query"
            ),
        )
    };
    let url = Url::parse(text).map_err(|_| wrong("is not a URL"))?;
    if !url.username().is_empty()
        || url.password().is_some()
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(wrong("has more than an address"));
    }
    if url.path() != "/" {
        return Err(wrong("has a path"));
    }
    match url.scheme() {
        "https" if url.host().is_some() => Ok(url),
        "http" if is_loopback(&url) => Ok(url),
        "http" => Err(wrong("is plain http, which is allowed only to this machine (127.0.0.1, localhost)")),
        _ => Err(wrong("is not https")),
    }
}

/// Whether an address is this very machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        None => false,
    }
}

/// Who we are. One of the four ways is given.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CredentialConfig {
    /// The name by which namespaces refer to it.
    pub name: String,
    /// An application with a secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_secret: Option<ClientSecretConfig>,
    /// An application or managed identity that trusts tokens of a Kubernetes service account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_identity: Option<WorkloadIdentityConfig>,
    /// The identity of the machine that this runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_identity: Option<ManagedIdentityConfig>,
    /// A token that something else has got, such as `az account get-access-token`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access_token: Option<AccessTokenConfig>,
}

/// A token that something else gets, and renews where it is to be used for longer than it lives.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessTokenConfig {
    /// File that holds it. Read anew every minute, and where the token is refused.
    pub token_file: PathBuf,
}

/// An application with a secret.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ClientSecretConfig {
    /// The tenant's UUID or domain.
    pub tenant_id: String,
    /// The application's UUID.
    pub client_id: String,
    /// File that holds the secret. Read anew for every token, so a rotated secret needs no restart.
    pub secret_file: PathBuf,
}

/// Workload identity. What is left out is taken from what its webhook sets in the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct WorkloadIdentityConfig {
    /// The tenant's UUID or domain; else `AZURE_TENANT_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_id: Option<String>,
    /// The application's or managed identity's UUID; else `AZURE_CLIENT_ID`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// File that holds the service account's token; else `AZURE_FEDERATED_TOKEN_FILE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
}

/// The identity of the machine that this runs on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ManagedIdentityConfig {
    /// The UUID of a user-assigned identity. Left out: the system-assigned one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
}

/// A credential with everything that it needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Credential {
    ClientSecret { tenant: String, client: String, secret_file: PathBuf },
    WorkloadIdentity { tenant: String, client: String, token_file: PathBuf },
    ManagedIdentity { client: Option<String>, endpoint: Url },
    AccessToken { token_file: PathBuf },
}

/// Where a machine asks for its own tokens. A proxy of the cluster may stand in for it.
const IDENTITY_ENDPOINT: &str = "http://169.254.169.254";

impl CredentialConfig {
    /// Whether it is complete, with what `environment` has for the variables that it leaves to it. Files are
    /// not opened.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self, environment: &dyn Fn(&str) -> Option<String>) -> Result<(), ConfigError> {
        self.resolve(environment).map(|_| ())
    }

    /// Fills in what is left out from the environment.
    pub(super) fn resolve(
        &self,
        environment: &dyn Fn(&str) -> Option<String>,
    ) -> Result<Credential, ConfigError> {
        if self.name.is_empty() {
            return Err(ConfigError::new("credentials[].name", "is empty: give the credential a name"));
        }
        let field = |rest: &str| format!("credentials[{}]{rest}", self.name);
        let from_environment = |path: &str, given: Option<&str>, variable: &str| {
            given
                .map(str::to_owned)
                .or_else(|| environment(variable).filter(|value| !value.is_empty()))
                .ok_or_else(|| {
                    ConfigError::new(
                        field(path),
                        format!("is missing and the environment has no {variable}: set one of the two"),
                    )
                })
        };
        let ways = (&self.client_secret, &self.workload_identity, &self.managed_identity, &self.access_token);
        let credential = match ways {
            (Some(secret), None, None, None) => Credential::ClientSecret {
                tenant: tenant(&field(".clientSecret.tenantId"), &secret.tenant_id)?,
                client: client(&field(".clientSecret.clientId"), &secret.client_id)?,
                secret_file: file(&field(".clientSecret.secretFile"), secret.secret_file.clone())?,
            },
            (None, Some(workload), None, None) => {
                let path = ".workloadIdentity.tenantId";
                let tenant_id = from_environment(path, workload.tenant_id.as_deref(), "AZURE_TENANT_ID")?;
                let tenant = tenant(&field(path), &tenant_id)?;
                let path = ".workloadIdentity.clientId";
                let client_id = from_environment(path, workload.client_id.as_deref(), "AZURE_CLIENT_ID")?;
                let client = client(&field(path), &client_id)?;
                let path = ".workloadIdentity.tokenFile";
                let token_file = match &workload.token_file {
                    Some(token_file) => token_file.clone(),
                    None => from_environment(path, None, "AZURE_FEDERATED_TOKEN_FILE")?.into(),
                };
                Credential::WorkloadIdentity { tenant, client, token_file: file(&field(path), token_file)? }
            }
            (None, None, None, Some(token)) => Credential::AccessToken {
                token_file: file(&field(".accessToken.tokenFile"), token.token_file.clone())?,
            },
            (None, None, Some(managed), None) => {
                let variable = "AZURE_POD_IDENTITY_AUTHORITY_HOST";
                let endpoint = environment(variable).unwrap_or_else(|| IDENTITY_ENDPOINT.to_owned());
                Credential::ManagedIdentity {
                    client: match &managed.client_id {
                        Some(id) => Some(client(&field(".managedIdentity.clientId"), id)?),
                        None => None,
                    },
                    endpoint: Url::parse(&endpoint).map_err(|_| {
                        ConfigError::new(
                            variable,
                            format!("{endpoint:?} is not a URL such as http://169.254.169.254"),
                        )
                    })?,
                }
            }
            _ => {
                return Err(ConfigError::new(
                    field(""),
                    "must have exactly one of clientSecret, workloadIdentity, managedIdentity and accessToken",
                ));
            }
        };
        Ok(credential)
    }
}

/// What goes into the path of the token endpoint is a UUID or a domain and nothing else.
fn tenant(field: &str, text: &str) -> Result<String, ConfigError> {
    let domain = text.contains('.')
        && !text.starts_with('.')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-');
    if domain || uuid::Uuid::try_parse(text).is_ok() {
        Ok(text.to_owned())
    } else {
        Err(ConfigError::new(
            field,
            format!("{text:?} is not a tenant: give its UUID or a domain such as contoso.onmicrosoft.com"),
        ))
    }
}

fn client(field: &str, text: &str) -> Result<String, ConfigError> {
    match uuid::Uuid::try_parse(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(ConfigError::new(field, format!("{text:?} is not the UUID of an application"))),
    }
}

fn file(field: &str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    if path.as_os_str().is_empty() {
        return Err(ConfigError::new(field, "is empty: give the path of a file"));
    }
    Ok(path)
}

/// Judges a list of credentials as a whole: each complete, names unique. Files are not opened.
///
/// # Errors
/// The first that is wrong.
pub fn validate_credentials(credentials: &[CredentialConfig]) -> Result<(), ConfigError> {
    for (index, credential) in credentials.iter().enumerate() {
        if credential.name.is_empty() {
            return Err(ConfigError::new(
                format!("credentials[{index}].name"),
                "is empty: give the credential a name",
            ));
        }
        if credentials[..index].iter().any(|other| other.name == credential.name) {
            return Err(ConfigError::new(
                format!("credentials[{index}].name"),
                format!(
                    "{:?} is the name of an earlier credential too: names must be unique",
                    credential.name
                ),
            ));
        }
        credential.resolve(&|name| std::env::var(name).ok())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const UUID: &str = "11111111-2222-3333-4444-555555555555";

    fn cloud(yaml: &str) -> Result<Endpoints, ConfigError> {
        serde_yaml_ng::from_str::<CloudConfig>(yaml).unwrap().endpoints()
    }

    fn credential(yaml: &str) -> Result<Credential, ConfigError> {
        let environment =
            |name: &str| (name == "AZURE_TENANT_ID").then(|| "contoso.onmicrosoft.com".to_owned());
        serde_yaml_ng::from_str::<CredentialConfig>(yaml).unwrap().resolve(&environment)
    }

    #[test]
    fn national_clouds_have_their_own_endpoints_and_audience() {
        for (name, management, login) in [
            ("Public", "https://management.azure.com", "https://login.microsoftonline.com"),
            ("USGovernment", "https://management.usgovcloudapi.net", "https://login.microsoftonline.us"),
            ("China", "https://management.chinacloudapi.cn", "https://login.chinacloudapi.cn"),
        ] {
            let endpoints = cloud(&format!("name: {name}")).unwrap();
            assert_eq!(endpoints.resource_manager, Url::parse(management).unwrap());
            assert_eq!(endpoints.authority, Url::parse(login).unwrap());
            assert_eq!(endpoints.audience, management);
        }
        assert_eq!(cloud("{}").unwrap(), cloud("name: Public").unwrap());
        assert_eq!(
            cloud("{name: China, audience: 'https://core.example/'}").unwrap().audience,
            "https://core.example"
        );
    }

    #[test]
    fn endpoints_that_cannot_be_used_are_refused_by_name() {
        for (yaml, field, hint) in [
            ("name: Custom", "cloud.resourceManager", "https://"),
            ("{name: Custom, resourceManager: 'https://arm.example'}", "cloud.authority", "https://"),
            ("{name: Public, authority: 'https://login.example'}", "cloud.authority", "Custom"),
            ("{name: Custom, resourceManager: arm, authority: x}", "cloud.resourceManager", "not a URL"),
            (
                "{name: Custom, resourceManager: 'http://arm.example', authority: x}",
                "cloud.resourceManager",
                "plain http",
            ),
            (
                "{name: Custom, resourceManager: 'http://127.0.0.1.example', authority: x}",
                "cloud.resourceManager",
                "plain http",
            ),
            (
                "{name: Custom, resourceManager: 'https://arm.example/x', authority: x}",
                "cloud.resourceManager",
                "path",
            ),
            (
                "{name: Custom, resourceManager: 'https://u:p@arm.example', authority: x}",
                "cloud.resourceManager",
                "more than",
            ),
            (
                "{name: Custom, resourceManager: 'ftp://arm.example', authority: x}",
                "cloud.resourceManager",
                "not https",
            ),
            ("{audience: ''}", "cloud.audience", "empty"),
        ] {
            let error = cloud(yaml).expect_err(yaml);
            assert_eq!(error.field, field, "{yaml}");
            assert!(error.message.contains(hint), "{yaml}: {error}");
        }
        for host in ["127.0.0.1:8080", "localhost:1", "[::1]:9"] {
            let endpoints = cloud(&format!(
                "{{name: Custom, resourceManager: 'http://{host}', authority: 'http://{host}/'}}"
            ));
            assert_eq!(endpoints.unwrap().audience, format!("http://{host}"));
        }
        assert!(serde_yaml_ng::from_str::<CloudConfig>("{nmae: Public}").is_err());
    }

    #[test]
    fn credentials_are_complete_or_refused_by_name() {
        for (yaml, field) in [
            ("{name: main}", "credentials[main]"),
            ("{name: ''}", "credentials[].name"),
            ("{name: main, managedIdentity: {}, workloadIdentity: {}}", "credentials[main]"),
            ("{name: main, workloadIdentity: {}}", "credentials[main].workloadIdentity.clientId"),
            ("{name: main, managedIdentity: {clientId: web}}", "credentials[main].managedIdentity.clientId"),
            (
                "{name: main, clientSecret: {tenantId: '../common', clientId: x, secretFile: /s}}",
                "credentials[main].clientSecret.tenantId",
            ),
        ] {
            let error = credential(yaml).expect_err(yaml);
            assert_eq!(error.field, field, "{yaml}: {error}");
        }
        let found =
            credential(&format!("{{name: main, workloadIdentity: {{clientId: {UUID}, tokenFile: /token}}}}"));
        assert_eq!(
            found.unwrap(),
            Credential::WorkloadIdentity {
                tenant: "contoso.onmicrosoft.com".into(),
                client: UUID.into(),
                token_file: "/token".into()
            }
        );
    }

    #[test]
    fn two_credentials_of_one_name_are_refused() {
        let one = CredentialConfig {
            name: "main".into(),
            managed_identity: Some(ManagedIdentityConfig::default()),
            ..CredentialConfig::default()
        };
        assert_eq!(validate_credentials(std::slice::from_ref(&one)), Ok(()));
        let error = validate_credentials(&[one.clone(), one]).unwrap_err();
        assert_eq!(error.field, "credentials[1].name");
    }
}
