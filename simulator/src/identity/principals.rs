//! Applications that may ask for tokens, and what each may do.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::{Options, arm::errors::ArmError, world::World};

/// The sender of a request, as its token says.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub(crate) client_id: String,
    pub(crate) object_id: String,
    pub(crate) tenant: String,
}

/// One document of `PUT /_sim/principals`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Principal {
    pub(crate) client_id: String,
    #[serde(default)]
    pub(crate) object_id: Option<String>,
    /// The home tenant when left out.
    #[serde(default)]
    pub(crate) tenant: Option<String>,
    #[serde(default)]
    pub(crate) secrets: Vec<String>,
    #[serde(default)]
    pub(crate) federated: Vec<Federated>,
    /// May it be asked for at the instance metadata endpoint?
    #[serde(default)]
    pub(crate) managed_identity: bool,
    /// Left out, it may do everything.
    #[serde(default)]
    pub(crate) permissions: Option<Vec<Permission>>,
}

/// A federated credential: whose assertions stand for the principal.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Federated {
    pub(crate) issuer: String,
    pub(crate) subject: String,
    #[serde(default = "exchange")]
    pub(crate) audience: String,
    /// The issuer's keys. Without them the claims are checked and the signature is not.
    #[serde(default)]
    pub(crate) jwks: Option<Value>,
}

fn exchange() -> String {
    "api://AzureADTokenExchange".into()
}

/// Actions allowed at scopes.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Permission {
    /// `Microsoft.Network/*/read`; `*` stands for anything.
    actions: Vec<String>,
    #[serde(default)]
    not_actions: Vec<String>,
    /// Everywhere when left out.
    #[serde(default = "everywhere")]
    scopes: Vec<String>,
}

fn everywhere() -> Vec<String> {
    vec!["/".into()]
}

#[derive(Debug, Default)]
pub(crate) struct Principals {
    pub(crate) tenant: String,
    pub(crate) all: Vec<Principal>,
}

impl Principals {
    pub(crate) fn new(options: &Options) -> Self {
        let first = Principal {
            client_id: options.client_id.to_lowercase(),
            object_id: None,
            tenant: None,
            secrets: vec![options.client_secret.clone()],
            federated: vec![],
            managed_identity: true,
            permissions: None,
        };
        Self { tenant: options.tenant_id.to_lowercase(), all: vec![first] }
    }

    /// Adds a principal, or replaces the one with its client id.
    pub(crate) fn set(&mut self, mut principal: Principal) {
        principal.client_id = principal.client_id.to_lowercase();
        principal.tenant = principal.tenant.map(|t| t.to_lowercase());
        self.all.retain(|p| p.client_id != principal.client_id);
        self.all.push(principal);
    }

    pub(crate) fn find(&self, client_id: &str) -> Option<&Principal> {
        self.all.iter().find(|p| p.client_id.eq_ignore_ascii_case(client_id))
    }

    pub(crate) fn tenant_of<'a>(&'a self, principal: &'a Principal) -> &'a str {
        principal.tenant.as_deref().unwrap_or(&self.tenant)
    }

    pub(crate) fn show(&self) -> Value {
        self.all
            .iter()
            .map(|p| {
                json!({"clientId": p.client_id, "objectId": p.object_id(), "tenant": self.tenant_of(p),
                       "restricted": p.permissions.is_some(), "managedIdentity": p.managed_identity})
            })
            .collect()
    }
}

impl Principal {
    /// The one given, or one derived from the client id, so that it stays the same.
    pub(crate) fn object_id(&self) -> String {
        self.object_id.clone().unwrap_or_else(|| {
            uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_OID, self.client_id.as_bytes()).to_string()
        })
    }

    fn may(&self, action: &str, scope: &str) -> bool {
        let Some(permissions) = &self.permissions else { return true };
        let scope = scope.to_lowercase();
        permissions.iter().any(|p| {
            p.scopes.iter().any(|s| {
                let s = s.trim_end_matches('/').to_lowercase();
                scope == s || scope.starts_with(&format!("{s}/"))
            }) && p.actions.iter().any(|a| glob(a, action))
                && !p.not_actions.iter().any(|a| glob(a, action))
        })
    }
}

/// Matches `*` against any text, the rest without regard to case.
fn glob(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.to_lowercase(), text.to_lowercase());
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let mut last: Option<&str> = None;
    for part in parts {
        if let Some(middle) = last.replace(part) {
            let Some(at) = rest.find(middle) else { return false };
            rest = &rest[at + middle.len()..];
        }
    }
    last.map_or(rest.is_empty(), |end| rest.ends_with(end))
}

impl Caller {
    /// Refuses what the caller's permissions do not cover.
    pub(crate) fn require(&self, world: &World, action: &str, scope: &str) -> Result<(), ArmError> {
        if world.principals.find(&self.client_id).is_some_and(|p| p.may(action, scope)) {
            return Ok(());
        }
        Err(ArmError::new(
            403,
            "AuthorizationFailed",
            format!(
                "The client '{}' with object id '{}' does not have authorization to perform action '{action}' over scope '{scope}' or the scope is invalid. If access was recently granted, please refresh your credentials.",
                self.client_id, self.object_id
            ),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn actions_match_with_stars_anywhere() {
        let action = "Microsoft.Network/networkSecurityGroups/securityRules/write";
        for yes in ["*", "microsoft.network/*", "*/write", "Microsoft.Network/*/write", action] {
            assert!(glob(yes, action), "{yes}");
        }
        for no in ["*/read", "Microsoft.Network", "Microsoft.Compute/*", "Microsoft.Network/*/writes", ""] {
            assert!(!glob(no, action), "{no}");
        }
    }
}
