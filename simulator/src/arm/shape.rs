//! Where a document must hold objects and lists. What is checked here may be taken apart afterwards without asking.

use serde_json::Value;

use super::{errors::ArmError, validate};

/// Paths per type, with `[]` for every element of a list. What is absent or null is left to the type's own checks.
fn paths(kind: &str) -> &'static [&'static str] {
    match kind {
        "network/networksecuritygroups" => &["properties.securityRules[].properties"],
        "network/virtualnetworks" => &[
            "properties.addressSpace.addressPrefixes[]=",
            "properties.subnets[].properties.networkSecurityGroup.",
            "properties.subnets[].properties.routeTable.",
            "properties.virtualNetworkPeerings[].properties.remoteVirtualNetwork.",
        ],
        "network/virtualnetworks/subnets" => {
            &["properties.addressPrefixes[]=", "properties.networkSecurityGroup.", "properties.routeTable."]
        }
        "network/virtualnetworks/virtualnetworkpeerings" => &["properties.remoteVirtualNetwork."],
        "network/networkinterfaces" => &[
            "properties.dnsSettings.",
            "properties.networkSecurityGroup.",
            "properties.ipConfigurations[].properties.subnet.",
            "properties.ipConfigurations[].properties.publicIPAddress.",
            "properties.ipConfigurations[].properties.applicationSecurityGroups[].",
        ],
        "network/publicipaddresses" => &["sku."],
        "network/routetables" => &["properties.routes[].properties."],
        "network/azurefirewalls" => &[
            "properties.sku.",
            "properties.ipConfigurations[].properties.subnet.",
            "properties.ipConfigurations[].properties.publicIPAddress.",
            "properties.firewallPolicy.",
            "properties.virtualHub.",
            "properties.hubIPAddresses.publicIPs.addresses[].",
            "properties.natRuleCollections[].properties.rules[].",
            "properties.natRuleCollections[].properties.action.",
            "properties.networkRuleCollections[].properties.rules[].",
            "properties.networkRuleCollections[].properties.action.",
            "properties.applicationRuleCollections[].properties.rules[].",
            "properties.applicationRuleCollections[].properties.action.",
        ],
        "network/firewallpolicies" => &["properties.sku.", "properties.basePolicy."],
        "network/firewallpolicies/rulecollectiongroups" => {
            &["properties.ruleCollections[].rules[].", "properties.ruleCollections[].action."]
        }
        "network/ipgroups" => &["properties.ipAddresses[]="],
        "compute/virtualmachines" => &[
            "properties.hardwareProfile.",
            "properties.osProfile.windowsConfiguration.",
            "properties.osProfile.linuxConfiguration.",
            "properties.storageProfile.imageReference.",
            "properties.storageProfile.osDisk.managedDisk.",
            "properties.storageProfile.dataDisks[].",
            "properties.networkProfile.networkInterfaces[].properties.",
        ],
        "compute/disks" => &["sku."],
        _ => &[],
    }
}

/// Checks a document's shape.
pub(crate) fn check(kind: &str, body: &Value) -> Result<(), ArmError> {
    paths(kind).iter().try_for_each(|path| walk(body, path.trim_end_matches('.'), ""))
}

fn walk(value: &Value, path: &str, at: &str) -> Result<(), ArmError> {
    if value.is_null() {
        return Ok(());
    }
    if path == "=" {
        return if value.is_string() { Ok(()) } else { Err(wrong(at, "A string")) };
    }
    if let Some(rest) = path.strip_prefix("[]") {
        let list = value.as_array().ok_or_else(|| wrong(at, "An array"))?;
        let rest = rest.trim_start_matches('.');
        return list.iter().enumerate().try_for_each(|(index, inner)| {
            let at = format!("{at}[{index}]");
            if inner.is_null() { Err(wrong(&at, "A value")) } else { walk(inner, rest, &at) }
        });
    }
    if !value.is_object() {
        return Err(wrong(at, "An object"));
    }
    if path.is_empty() {
        return Ok(());
    }
    let end = path.find(['.', '[']).unwrap_or(path.len());
    let (name, rest) = path.split_at(end);
    let inner = if at.is_empty() { name.to_owned() } else { format!("{at}.{name}") };
    walk(&value[name], rest.trim_start_matches('.'), &inner)
}

fn wrong(at: &str, expected: &str) -> ArmError {
    validate::unreadable(at, &format!("{expected} is expected."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_of_another_shape_is_named_by_its_path() {
        let kind = "network/networkinterfaces";
        assert!(check(kind, &json!({"properties": {}})).is_ok());
        for (body, at) in [
            (json!({"properties": {"dnsSettings": 1}}), "properties.dnsSettings"),
            (json!({"properties": {"ipConfigurations": {}}}), "properties.ipConfigurations"),
            (json!({"properties": {"ipConfigurations": [{}, 5]}}), "properties.ipConfigurations[1]"),
            (
                json!({"properties": {"ipConfigurations": [{"properties": {"subnet": "s"}}]}}),
                "properties.ipConfigurations[0].properties.subnet",
            ),
        ] {
            assert_eq!(check(kind, &body).unwrap_err().details[0]["target"], at);
        }
        let prefixes = json!({"properties": {"addressSpace": {"addressPrefixes": [1]}}});
        let error = check("network/virtualnetworks", &prefixes).unwrap_err();
        assert_eq!(error.details[0]["target"], "properties.addressSpace.addressPrefixes[0]");
    }
}
