//! Reading Azure's JSON without minding what is new in it.
//!
//! Bodies are walked, not decoded: an unknown field, an unknown word of an enum or a null where nothing is
//! needed spoils nothing. What a decision rests on is asked for, and an error where it is missing.

use serde_json::Value;

use super::answer::error;
use crate::api::values::ArmId;
use crate::plan::model::{Peer, Provisioning};
use crate::providers::{CloudError, CloudErrorKind};

/// Text at a JSON pointer; none where it is missing, empty or something else.
pub(super) fn text<'a>(value: &'a Value, pointer: &str) -> Option<&'a str> {
    value.pointer(pointer)?.as_str().map(str::trim).filter(|text| !text.is_empty())
}

/// The items at a JSON pointer; none where there is no list.
pub(super) fn items<'a>(value: &'a Value, pointer: &str) -> &'a [Value] {
    value.pointer(pointer).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// All text at a pointer and in the list at another: Azure has both for most things.
pub(super) fn one_or_many<'a>(value: &'a Value, one: &str, many: &str) -> Vec<&'a str> {
    let many =
        items(value, many).iter().filter_map(Value::as_str).map(str::trim).filter(|text| !text.is_empty());
    text(value, one).into_iter().chain(many).collect()
}

/// The id of the resource that a body is.
///
/// # Errors
/// When it has none that can be read: nothing can be decided on it.
pub(super) fn id(operation: &str, value: &Value) -> Result<ArmId, CloudError> {
    reference(operation, value, "/id")?.ok_or_else(|| garbled(operation, "a resource has no id"))
}

/// The id at a pointer; none where nothing is there.
///
/// # Errors
/// When something is there that is no id: a firewall must not be overlooked for its strange name.
pub(super) fn reference(operation: &str, value: &Value, pointer: &str) -> Result<Option<ArmId>, CloudError> {
    match value.pointer(pointer) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => match ArmId::parse(text) {
            Ok(id) => Ok(Some(id)),
            Err(why) => Err(garbled(operation, &format!("{pointer}: {why}"))),
        },
        Some(_) => Err(garbled(operation, &format!("{pointer} is not text"))),
    }
}

/// An answer that cannot be read. It may be better the next time.
pub(super) fn garbled(operation: &str, why: &str) -> CloudError {
    error(operation, CloudErrorKind::Retryable, &format!("the answer cannot be read: {why}"))
}

/// How far the cloud is with a resource. A state that this version does not know is not an end.
pub(super) fn provisioning(value: &Value) -> Provisioning {
    match text(value, "/properties/provisioningState").map(str::to_ascii_lowercase).as_deref() {
        None | Some("succeeded") => Provisioning::Succeeded,
        Some("failed" | "canceled" | "cancelled") => Provisioning::Failed,
        Some(_) => Provisioning::Updating,
    }
}

/// An address, network, `*` or service tag.
pub(super) fn peer(text: &str) -> Peer {
    if text == "*" || text.eq_ignore_ascii_case("any") {
        return Peer::Any;
    }
    if let Ok(network) = text.parse::<ipnet::IpNet>() {
        return Peer::Net(network.trunc());
    }
    if let Ok(address) = text.parse::<std::net::IpAddr>() {
        return Peer::host(address);
    }
    let tag = text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '_');
    if tag { Peer::Tag(text.to_owned()) } else { Peer::Unknown(text.to_owned()) }
}

/// Answers as nobody would expect them, for tests.
#[cfg(test)]
pub(super) mod garbage {
    use proptest::prelude::*;
    use serde_json::Value;

    /// JSON with the names that are looked for, holding anything.
    pub(in crate::providers::azure) fn json_like() -> impl Strategy<Value = Value> {
        let words = prop::sample::select(vec![
            "",
            "Allow",
            "Inbound",
            "*",
            "10.0.0.0/8",
            "22-",
            "é-\u{0}",
            "Canceled",
            "/subscriptions/11111111-2222-3333-4444-555555555555",
        ]);
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            words.prop_map(Value::from),
            ".{0,12}".prop_map(Value::from),
        ];
        let names = prop::sample::select(vec![
            "id",
            "name",
            "properties",
            "access",
            "direction",
            "priority",
            "protocol",
            "sourceAddressPrefix",
            "sourceAddressPrefixes",
            "destinationPortRange",
            "destinationPortRanges",
            "destinationApplicationSecurityGroups",
            "provisioningState",
            "securityRules",
            "defaultSecurityRules",
            "sources",
            "error",
            "code",
            "message",
            "details",
            "innererror",
            "level",
        ]);
        leaf.prop_recursive(5, 64, 6, move |inner| {
            let object = prop::collection::vec((names.clone(), inner.clone()), 0..6).prop_map(|pairs| {
                Value::Object(pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
            });
            prop_oneof![prop::collection::vec(inner, 0..6).prop_map(Value::from), object]
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn peers_are_read_for_what_they_are() {
        for (text, wanted) in [
            ("*", Peer::Any),
            ("Any", Peer::Any),
            ("0.0.0.0/0", Peer::Net("0.0.0.0/0".parse().unwrap())),
            ("10.0.0.4", Peer::Net("10.0.0.4/32".parse().unwrap())),
            ("10.0.0.4/24", Peer::Net("10.0.0.0/24".parse().unwrap())),
            ("2001:db8::1", Peer::Net("2001:db8::1/128".parse().unwrap())),
            ("Storage.WestEurope", Peer::Tag("Storage.WestEurope".into())),
            ("10.0.0.1-10.0.0.9", Peer::Unknown("10.0.0.1-10.0.0.9".into())),
            ("10.0.0.0/33", Peer::Unknown("10.0.0.0/33".into())),
        ] {
            assert_eq!(peer(text), wanted, "{text}");
        }
    }

    #[test]
    fn states_that_are_new_are_not_an_end() {
        for (state, wanted) in [
            (json!("Succeeded"), Provisioning::Succeeded),
            (json!(null), Provisioning::Succeeded),
            (json!("Updating"), Provisioning::Updating),
            (json!("Deleting"), Provisioning::Updating),
            (json!("Rebalancing"), Provisioning::Updating),
            (json!("FAILED"), Provisioning::Failed),
            (json!("Canceled"), Provisioning::Failed),
        ] {
            assert_eq!(provisioning(&json!({"properties": {"provisioningState": state}})), wanted);
        }
    }
}
