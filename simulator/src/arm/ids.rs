//! Resource ids: parsed from a request path, compared without regard to case, written back with Azure's own
//! spelling of the types.

use super::errors::ArmError;

/// The id of one resource, or of a collection when [`Path::Collection`] holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceId {
    /// As answered to clients.
    pub(crate) text: String,
    /// Lower case: what the store is keyed by.
    pub(crate) key: String,
    pub(crate) subscription: String,
    pub(crate) group: Option<String>,
    /// `Microsoft.Network`; empty for a resource group or a subscription.
    pub(crate) namespace: String,
    pub(crate) types: Vec<String>,
    pub(crate) names: Vec<String>,
    /// The scope of an extension resource, a lock for instance.
    pub(crate) extends: Option<String>,
}

/// What a request path points at.
#[derive(Debug, Clone)]
pub(crate) enum Path {
    Subscription,
    Group(ResourceId),
    Resource(ResourceId),
    /// The members of one type: `id` has one name less than types.
    Collection(ResourceId),
}

/// Types with the spelling that Azure answers.
const TYPES: &[&str] = &[
    "applicationSecurityGroups",
    "availabilitySets",
    "azureFirewalls",
    "disks",
    "firewallPolicies",
    "ipConfigurations",
    "locks",
    "networkInterfaces",
    "networkSecurityGroups",
    "publicIPAddresses",
    "roleAssignments",
    "roleDefinitions",
    "routeTables",
    "routes",
    "ruleCollectionGroups",
    "securityRules",
    "subnets",
    "virtualMachines",
    "virtualNetworkPeerings",
    "virtualNetworks",
];

const NAMESPACES: &[&str] = &[
    "Microsoft.Authorization",
    "Microsoft.ClassicCompute",
    "Microsoft.Compute",
    "Microsoft.Network",
    "Microsoft.ResourceGraph",
    "Microsoft.Resources",
    "Microsoft.Storage",
];

fn spelled(known: &[&str], given: &str) -> String {
    known.iter().find(|k| k.eq_ignore_ascii_case(given)).map_or_else(|| given.to_owned(), |k| (*k).to_owned())
}

impl ResourceId {
    /// The id of a resource group.
    pub(crate) fn of_group(subscription: &str, group: &str) -> Self {
        let text = format!("/subscriptions/{subscription}/resourceGroups/{group}");
        Self {
            key: text.to_lowercase(),
            text,
            subscription: subscription.to_owned(),
            group: Some(group.to_owned()),
            namespace: String::new(),
            types: vec![],
            names: vec![],
            extends: None,
        }
    }

    /// Reads a resource's id; anything else is `None`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        match Path::parse(text) {
            Ok(Path::Resource(id) | Path::Group(id)) => Some(id),
            Ok(Path::Subscription | Path::Collection(_)) | Err(_) => None,
        }
    }

    pub(crate) fn is_group(&self) -> bool {
        self.namespace.is_empty()
    }

    /// `Microsoft.Network/networkSecurityGroups/securityRules`.
    pub(crate) fn full_type(&self) -> String {
        if self.is_group() {
            return "Microsoft.Resources/resourceGroups".to_owned();
        }
        format!("{}/{}", self.namespace, self.types.join("/"))
    }

    /// The type in lower case without the namespace's `microsoft.`: `network/networksecuritygroups`.
    pub(crate) fn kind(&self) -> String {
        if self.is_group() {
            return "resourcegroups".to_owned();
        }
        let namespace = self.namespace.to_lowercase();
        let namespace = namespace.strip_prefix("microsoft.").unwrap_or(&namespace);
        format!("{namespace}/{}", self.types.join("/").to_lowercase())
    }

    pub(crate) fn name(&self) -> &str {
        self.names.last().or(self.group.as_ref()).map_or("", String::as_str)
    }

    /// The resource that this one is nested in, or itself: what Azure serialises writes by.
    pub(crate) fn root(&self) -> Self {
        let mut id = self.clone();
        while let Some(parent) = id.parent() {
            id = parent;
        }
        id
    }

    /// The resource one level up; `None` for a resource that is not nested.
    pub(crate) fn parent(&self) -> Option<Self> {
        if self.types.len() < 2 || self.names.len() != self.types.len() {
            return None;
        }
        let mut up = self.clone();
        for _ in 0..2 {
            up.text.truncate(up.text.rfind('/')?);
        }
        up.key = up.text.to_lowercase();
        up.types.pop();
        up.names.pop();
        Some(up)
    }

    /// A resource nested in this one.
    pub(crate) fn child(&self, kind: &str, name: &str) -> Self {
        let mut id = self.clone();
        let kind = spelled(TYPES, kind);
        id.text = format!("{}/{kind}/{name}", self.text);
        id.key = id.text.to_lowercase();
        id.types.push(kind);
        id.names.push(name.to_owned());
        id
    }

    /// Another resource of the same group.
    pub(crate) fn sibling(&self, namespace: &str, kind: &str, name: &str) -> Option<Self> {
        let group = self.group.as_ref()?;
        Self::parse(&format!(
            "/subscriptions/{}/resourceGroups/{group}/providers/{namespace}/{kind}/{name}",
            self.subscription
        ))
    }

    /// The id of the resource group it is in.
    pub(crate) fn group_id(&self) -> Option<Self> {
        Some(Self::of_group(&self.subscription, self.group.as_ref()?))
    }

    /// The permission that an operation on it needs: `Microsoft.Network/networkSecurityGroups/read`.
    pub(crate) fn action(&self, verb: &str) -> String {
        if self.is_group() {
            return format!("Microsoft.Resources/subscriptions/resourceGroups/{verb}");
        }
        format!("{}/{verb}", self.full_type())
    }
}

impl Path {
    /// Reads a request path.
    ///
    /// # Errors
    /// 404 `InvalidResourceType`-like answers when the path is not Resource Manager's.
    pub(crate) fn parse(path: &str) -> Result<Self, ArmError> {
        let bad = || ArmError::not_found("NotFound", format!("The requested path '{path}' is not known."));
        let parts: Vec<&str> = path.split('/').filter(|p| !p.is_empty()).collect();
        let is = |index: usize, word: &str| parts.get(index).is_some_and(|p| p.eq_ignore_ascii_case(word));
        if !is(0, "subscriptions") || parts.len() < 2 {
            return Err(bad());
        }
        let subscription = parts[1].to_lowercase();
        if parts.len() == 2 {
            return Ok(Self::Subscription);
        }
        let mut scope_end = 2;
        let mut group = None;
        let mut text = format!("/subscriptions/{subscription}");
        if is(2, "resourceGroups") {
            let Some(name) = parts.get(3) else {
                return Ok(Self::Collection(ResourceId {
                    key: text.to_lowercase(),
                    text,
                    subscription,
                    group: None,
                    namespace: String::new(),
                    types: vec![],
                    names: vec![],
                    extends: None,
                }));
            };
            group = Some((*name).to_owned());
            text = format!("{text}/resourceGroups/{name}");
            scope_end = 4;
        }
        if parts.len() == scope_end {
            return group.map(|g| Self::Group(ResourceId::of_group(&subscription, &g))).ok_or_else(bad);
        }
        if !is(scope_end, "providers") {
            return Err(bad());
        }
        let last = parts.iter().rposition(|p| p.eq_ignore_ascii_case("providers")).ok_or_else(bad)?;
        let mut extends = None;
        if last > scope_end {
            let scope = Self::parse(&parts[..last].join("/"))?;
            let Self::Resource(scope) = scope else { return Err(bad()) };
            text = scope.text;
            extends = Some(text.clone());
        }
        let namespace = spelled(NAMESPACES, parts.get(last + 1).ok_or_else(bad)?);
        if extends.is_none() && namespace == "Microsoft.Authorization" {
            extends = Some(text.clone());
        }
        let rest = &parts[last + 2..];
        if rest.is_empty() {
            return Err(bad());
        }
        text = format!("{text}/providers/{namespace}");
        let mut types = vec![];
        let mut names = vec![];
        for (index, part) in rest.iter().enumerate() {
            let part = if index % 2 == 0 { spelled(TYPES, part) } else { (*part).to_owned() };
            text = format!("{text}/{part}");
            if index % 2 == 0 { types.push(part) } else { names.push(part) }
        }
        let whole = types.len() == names.len();
        let id = ResourceId {
            key: text.to_lowercase(),
            text,
            subscription,
            group,
            namespace,
            types,
            names,
            extends,
        };
        Ok(if whole { Self::Resource(id) } else { Self::Collection(id) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nested_id_knows_its_parent_and_root() {
        let id = ResourceId::parse(
            "/SUBSCRIPTIONS/S1/resourcegroups/Rg/providers/microsoft.network/NETWORKSECURITYGROUPS/Web/securityrules/R1",
        )
        .unwrap();
        assert_eq!(
            id.text,
            "/subscriptions/s1/resourceGroups/Rg/providers/Microsoft.Network/networkSecurityGroups/Web/securityRules/R1"
        );
        assert_eq!(id.full_type(), "Microsoft.Network/networkSecurityGroups/securityRules");
        assert_eq!(id.root().name(), "Web");
        assert_eq!(id.parent().unwrap().key, id.root().key);
        assert!(id.root().parent().is_none());
    }

    #[test]
    fn a_lock_extends_what_it_is_on() {
        let lock = ResourceId::parse(
            "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkSecurityGroups/n/providers/Microsoft.Authorization/locks/l",
        )
        .unwrap();
        assert_eq!(lock.full_type(), "Microsoft.Authorization/locks");
        assert!(lock.extends.unwrap().ends_with("/networkSecurityGroups/n"));
        let lock = ResourceId::parse("/subscriptions/s/providers/Microsoft.Authorization/locks/l").unwrap();
        assert_eq!(lock.extends.unwrap(), "/subscriptions/s");
    }

    #[test]
    fn collections_are_told_from_resources() {
        let path = "/subscriptions/s/providers/Microsoft.Network/networkInterfaces";
        assert!(matches!(Path::parse(path), Ok(Path::Collection(id)) if id.group.is_none()));
        assert!(matches!(Path::parse("/subscriptions/s/resourceGroups"), Ok(Path::Collection(_))));
        assert!(Path::parse("/nonsense").is_err());
    }
}
