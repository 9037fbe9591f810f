//! Checks that every resource shares.

use serde_json::Value;

use super::{errors::ArmError, ids::ResourceId};

/// Accepts `2025-01-01` and `2025-01-01-preview`.
pub(crate) fn api_version(version: &str) -> Result<(), ArmError> {
    let date = version.get(..10).unwrap_or("");
    let digits = |range: std::ops::Range<usize>| {
        date.get(range).is_some_and(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit()))
    };
    let shaped = digits(0..4) && digits(5..7) && digits(8..10) && date.matches('-').count() == 2;
    let rest = version.get(10..).unwrap_or("x");
    if shaped && (rest.is_empty() || rest.starts_with('-')) {
        return Ok(());
    }
    Err(ArmError::bad(
        "InvalidApiVersionParameter",
        format!(
            "The api-version '{version}' is invalid. The supported versions are dates such as '2025-01-01'."
        ),
    ))
}

/// Names of network resources: up to 80 characters, `.`, `-` and `_` inside.
pub(crate) fn network_name(name: &str) -> Result<(), ArmError> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let inner = name.chars().all(|c| word(c) || c == '.' || c == '-');
    let first = name.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let last = name.chars().next_back().is_some_and(word);
    if inner && first && last && name.len() <= 80 {
        return Ok(());
    }
    Err(ArmError::bad(
        "InvalidResourceName",
        format!(
            "Resource name {name} is invalid. The name can be up to 80 characters long. It must begin with a word character, and it must end with a word character or with '_'. The name may contain word characters or '.', '-', '_'."
        ),
    ))
}

/// `westeurope` from `West Europe`.
pub(crate) fn location(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect::<String>().to_lowercase()
}

/// A top-level resource's location: needed at creation, never changed.
pub(crate) fn keep_location(id: &ResourceId, body: &mut Value, old: Option<&Value>) -> Result<(), ArmError> {
    let given = body["location"].as_str().map(location);
    let before = old.and_then(|o| o["location"].as_str()).map(str::to_owned);
    let kept = match (given, before) {
        (Some(new), Some(old)) if new != old => {
            return Err(ArmError::conflict(
                "InvalidResourceLocation",
                format!(
                    "The resource '{}' already exists in location '{old}' in resource group '{}'. A resource with the same name cannot be created in location '{new}'. Please select a new resource name.",
                    id.name(),
                    id.group.as_deref().unwrap_or("")
                ),
            ));
        }
        (Some(location), _) | (None, Some(location)) => location,
        (None, None) => {
            return Err(ArmError::bad(
                "LocationRequired",
                "The location property is required for this definition.",
            ));
        }
    };
    body["location"] = Value::from(kept);
    Ok(())
}

/// Tags: an object of strings, at most 50.
pub(crate) fn tags(body: &Value) -> Result<(), ArmError> {
    let tags = &body["tags"];
    if tags.is_null() {
        return Ok(());
    }
    let bad = |why: &str| Err(ArmError::bad("InvalidTags", format!("The tags are invalid: {why}.")));
    let Some(map) = tags.as_object() else { return bad("an object is expected") };
    if map.len() > 50 {
        return bad("at most 50 tags are allowed");
    }
    if map.values().any(|v| !v.is_string()) {
        return bad("every value must be a string");
    }
    Ok(())
}

/// A required property is missing or has the wrong form, as Azure's parser puts it.
pub(crate) fn unreadable(path: &str, why: &str) -> ArmError {
    let mut error = ArmError::bad("InvalidRequestFormat", "Cannot parse the request.");
    error.details.push(serde_json::json!({
        "code": "InvalidJson", "message": format!("{why} Path '{path}'."), "target": path}));
    error
}

/// A required property is absent.
pub(crate) fn missing(path: &str, name: &str) -> ArmError {
    let mut error = ArmError::bad("InvalidRequestFormat", "Cannot parse the request.");
    error.details.push(serde_json::json!({
        "code": "MissingJsonProperty",
        "message": format!("Required property '{name}' not found in JSON. Path '{path}'."), "target": path}));
    error
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn api_versions_are_dates() {
        assert!(api_version("2025-01-01").is_ok());
        assert!(api_version("2024-05-01-preview").is_ok());
        for bad in ["", "latest", "2025-1-1", "2025-01-01x", "20250101"] {
            assert_eq!(api_version(bad).unwrap_err().code, "InvalidApiVersionParameter", "{bad}");
        }
    }

    #[test]
    fn network_names_follow_the_pattern() {
        for good in ["a", "Web-1", "a_", "1.b-c_d", &"x".repeat(80)] {
            assert!(network_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a.", "a b", "a/b", "_a", &"x".repeat(81)] {
            assert!(network_name(bad).is_err(), "{bad}");
        }
    }
}
