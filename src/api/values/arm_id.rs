//! Ids of Azure resources.

use std::fmt;
use std::hash::{Hash, Hasher};

use super::InvalidValue;

/// The id of an Azure resource, resource group or subscription. Equal without regard to case, as Azure has it.
#[derive(Clone, Debug)]
pub struct ArmId {
    text: String,
    /// Lower case: what is compared.
    key: String,
}

impl ArmId {
    /// Takes an id apart and puts it in order.
    ///
    /// # Errors
    /// When the text is not `/subscriptions/{uuid}`, optionally followed by `/resourceGroups/{name}` and then
    /// `/providers/{namespace}/{type}/{name}[/{type}/{name}…]`.
    pub fn parse(text: &str) -> Result<Self, InvalidValue> {
        let wrong = |why: &str| {
            InvalidValue(format!(
                "{text:?} is not the id of an Azure resource ({why}): it looks like \
                 /subscriptions/<uuid>/resourceGroups/<name>/providers/Microsoft.Compute/virtualMachines/<name>"
            ))
        };
        let trimmed = text.trim_end_matches('/');
        let key = trimmed.to_ascii_lowercase();
        let mut parts = key.split('/');
        if parts.next() != Some("") || parts.next() != Some("subscriptions") {
            return Err(wrong("it must begin with /subscriptions/"));
        }
        let parts: Vec<&str> = parts.collect();
        // A part that ends with a dot is no name; `.` and `..` would be resolved away in a URL.
        let misshapen = |part: &&str| part.is_empty() || part.ends_with('.') || !part.chars().all(is_id_char);
        if parts.iter().any(misshapen) {
            return Err(wrong("a part is empty, ends with a dot or has a character that ids do not have"));
        }
        if !parts.first().is_some_and(|part| part.len() == 36 && uuid::Uuid::try_parse(part).is_ok()) {
            return Err(wrong("the subscription must be a UUID"));
        }
        match parts.get(1..) {
            Some([] | ["resourcegroups", _]) => {}
            Some(["resourcegroups", _, "providers", rest @ ..]) if rest.len() >= 3 && rest.len() % 2 == 1 => {
            }
            _ => return Err(wrong("a part is missing or out of place")),
        }
        Ok(Self { text: trimmed.to_owned(), key })
    }

    /// The id as Azure or a person wrote it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The id in lower case: what is compared.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The last part: the resource's own name, as written.
    #[must_use]
    pub fn name(&self) -> &str {
        self.text.rsplit('/').next().unwrap_or_default()
    }

    /// The subscription's UUID, in lower case.
    #[must_use]
    pub fn subscription(&self) -> &str {
        self.part(2).unwrap_or_default()
    }

    /// The resource group's name, in lower case; none for a subscription.
    #[must_use]
    pub fn resource_group(&self) -> Option<&str> {
        self.part(4)
    }

    /// Namespace and types in lower case, such as `microsoft.compute/virtualmachines`; none for a resource
    /// group or a subscription.
    #[must_use]
    pub fn resource_type(&self) -> Option<String> {
        let parts: Vec<&str> = self.key.split('/').skip(6).collect();
        let (namespace, rest) = parts.split_first()?;
        let types: Vec<&str> = rest.iter().step_by(2).copied().collect();
        Some(format!("{namespace}/{}", types.join("/")))
    }

    /// Whether this is the id of a virtual machine of today's kind.
    #[must_use]
    pub fn is_virtual_machine(&self) -> bool {
        self.resource_type().as_deref() == Some("microsoft.compute/virtualmachines")
    }

    /// Whether `other` is this resource or lies below it.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        other.key.strip_prefix(&self.key).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    }

    /// The id without its last `count` parts.
    #[must_use]
    pub fn ancestor(&self, count: usize) -> Option<Self> {
        let mut text = self.text.as_str();
        for _ in 0..count {
            text = &text[..text.rfind('/')?];
        }
        Self::parse(text).ok()
    }

    fn part(&self, index: usize) -> Option<&str> {
        self.key.split('/').nth(index)
    }
}

/// Names of resource groups may hold parentheses; letters of other scripts are refused, because look-alikes
/// have no place in what decides over access.
fn is_id_char(c: char) -> bool {
    c.is_ascii_alphanumeric() || "._-()".contains(c)
}

impl PartialEq for ArmId {
    fn eq(&self, other: &Self) -> bool {
        self.key == other.key
    }
}

impl Eq for ArmId {}

impl PartialOrd for ArmId {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for ArmId {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.key.cmp(&other.key)
    }
}

impl Hash for ArmId {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.key.hash(state);
    }
}

impl fmt::Display for ArmId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VM: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/Web/providers/Microsoft.Compute/virtualMachines/web-1";

    #[test]
    fn an_id_is_the_same_in_any_case() {
        let id = ArmId::parse(VM).unwrap();
        assert_eq!(id, ArmId::parse(&VM.to_uppercase().replace("/SUBSCRIPTIONS", "/subscriptions")).unwrap());
        assert_eq!(id.name(), "web-1");
        assert_eq!(id.resource_group(), Some("web"));
        assert!(id.is_virtual_machine());
    }

    #[test]
    fn a_scope_contains_what_lies_below_it_and_no_namesake() {
        let group =
            ArmId::parse("/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/WEB").unwrap();
        let other = ArmId::parse(&VM.replace("/Web/", "/Web-2/")).unwrap();
        assert!(group.contains(&ArmId::parse(VM).unwrap()));
        assert!(!group.contains(&other));
        assert_eq!(ArmId::parse(VM).unwrap().ancestor(4).unwrap(), group);
    }

    #[test]
    fn malformed_ids_are_refused_with_an_example() {
        for text in [
            "",
            "web-1",
            "/subscriptions/not-a-uuid",
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups",
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/a/../b",
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/.",
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/a/providers/Microsoft.Compute/virtualMachines",
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/a b",
            "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/wеb",
        ] {
            let error = ArmId::parse(text).expect_err(text).to_string();
            assert!(error.contains("/subscriptions/"), "{error}");
        }
    }
}
