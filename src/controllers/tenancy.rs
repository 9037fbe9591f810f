//! Which namespace may reach which machines, with which credential: the confused-deputy guard.
//!
//! Namespaces are named, not selected by labels, which tenants may edit. A namespace that is not named may
//! reach nothing.

use std::collections::BTreeMap;

use crate::api::values::ArmId;

/// The mapping of namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tenancy {
    tenants: BTreeMap<String, Tenant>,
}

/// What one namespace may reach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tenant {
    /// Subscriptions, resource groups or machines.
    pub scopes: Vec<ArmId>,
    /// Name of the credential to reach them with.
    pub credential: String,
}

/// Two namespaces would reach the same machines.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("namespaces {first} and {second} both have {scope}: scopes of different namespaces must not overlap")]
pub struct Overlap {
    /// One namespace.
    pub first: String,
    /// The other.
    pub second: String,
    /// The smaller of the two scopes.
    pub scope: ArmId,
}

impl Tenancy {
    /// A mapping of namespaces to what they may reach.
    ///
    /// # Errors
    /// When scopes of two namespaces overlap.
    pub fn new(tenants: BTreeMap<String, Tenant>) -> Result<Self, Overlap> {
        let scopes: Vec<(&String, &ArmId)> = tenants
            .iter()
            .flat_map(|(name, tenant)| tenant.scopes.iter().map(move |scope| (name, scope)))
            .collect();
        for (index, (first, a)) in scopes.iter().enumerate() {
            for (second, b) in &scopes[index + 1..] {
                if first != second && (a.contains(b) || b.contains(a)) {
                    let scope = if a.contains(b) { b } else { a };
                    return Err(Overlap {
                        first: (*first).clone(),
                        second: (*second).clone(),
                        scope: (*scope).clone(),
                    });
                }
            }
        }
        Ok(Self { tenants })
    }

    /// What a namespace may reach.
    #[must_use]
    pub fn tenant(&self, namespace: &str) -> Option<&Tenant> {
        self.tenants.get(namespace)
    }

    /// Every scope with its credential, for the sweep.
    pub fn scopes(&self) -> impl Iterator<Item = (&ArmId, &str)> {
        self.tenants
            .values()
            .flat_map(|tenant| tenant.scopes.iter().map(move |scope| (scope, tenant.credential.as_str())))
    }
}

impl Tenant {
    /// Whether all of `id` is within reach.
    #[must_use]
    pub fn reaches(&self, id: &ArmId) -> bool {
        self.scopes.iter().any(|scope| scope.contains(id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUBSCRIPTION: &str = "/subscriptions/11111111-2222-3333-4444-555555555555";

    fn id(rest: &str) -> ArmId {
        ArmId::parse(&format!("{SUBSCRIPTION}{rest}")).unwrap()
    }

    fn tenant(scopes: &[&str]) -> Tenant {
        Tenant { scopes: scopes.iter().map(|scope| id(scope)).collect(), credential: "default".into() }
    }

    #[test]
    fn overlapping_scopes_are_refused_with_both_namespaces_named() {
        let error = Tenancy::new(BTreeMap::from([
            ("web".into(), tenant(&["/resourceGroups/web"])),
            ("all".into(), tenant(&[""])),
        ]))
        .unwrap_err()
        .to_string();
        assert!(
            error.contains("all") && error.contains("web") && error.contains("/resourceGroups/web"),
            "{error}"
        );
    }

    #[test]
    fn what_is_not_mapped_is_not_reached() {
        let tenancy =
            Tenancy::new(BTreeMap::from([("web".into(), tenant(&["/resourceGroups/web"]))])).unwrap();
        assert!(tenancy.tenant("other").is_none());
        let web = tenancy.tenant("web").unwrap();
        assert!(web.reaches(&id("/resourceGroups/WEB/providers/Microsoft.Compute/virtualMachines/a")));
        assert!(!web.reaches(&id("/resourceGroups/web2/providers/Microsoft.Compute/virtualMachines/a")));
        assert!(!web.reaches(&id("")));
    }
}
