//! One security rule: which values Azure accepts, and how it writes them back.

use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::{Value, json};

use crate::arm::{errors::ArmError, ids::ResourceId, validate};

const PROTOCOLS: [&str; 6] = ["*", "Tcp", "Udp", "Icmp", "Esp", "Ah"];
const MAX_DESCRIPTION: usize = 140;
const MAX_ASGS: usize = 10;

/// Service tags that are accepted, with or without a region behind a dot.
const TAGS: &[&str] = &[
    "ActionGroup",
    "ApiManagement",
    "AppConfiguration",
    "AppService",
    "AppServiceManagement",
    "AzureActiveDirectory",
    "AzureActiveDirectoryDomainServices",
    "AzureArcInfrastructure",
    "AzureBackup",
    "AzureBotService",
    "AzureCloud",
    "AzureContainerRegistry",
    "AzureCosmosDB",
    "AzureDatabricks",
    "AzureDevOps",
    "AzureEventGrid",
    "AzureFrontDoor.Backend",
    "AzureFrontDoor.Frontend",
    "AzureFrontDoor.FirstParty",
    "AzureKeyVault",
    "AzureLoadBalancer",
    "AzureMachineLearning",
    "AzureMonitor",
    "AzurePlatformDNS",
    "AzurePlatformIMDS",
    "AzurePlatformLKM",
    "AzureResourceManager",
    "AzureSignalR",
    "AzureSiteRecovery",
    "AzureTrafficManager",
    "BatchNodeManagement",
    "CognitiveServicesManagement",
    "DataFactory",
    "EventHub",
    "GatewayManager",
    "GuestAndHybridManagement",
    "HDInsight",
    "Internet",
    "LogicApps",
    "MicrosoftContainerRegistry",
    "PowerBI",
    "ServiceBus",
    "ServiceFabric",
    "Sql",
    "SqlManagement",
    "Storage",
    "VirtualDesktop",
    "VirtualNetwork",
    "WindowsVirtualDesktop",
];

/// Checks a rule's properties and answers them in Azure's spelling.
pub(crate) fn check(id: &ResourceId, properties: &mut Value) -> Result<Value, ArmError> {
    let path = "properties";
    if !properties.is_object() {
        return Err(validate::missing("", "properties"));
    }
    let mut rule = properties.clone();
    for (name, known) in [
        ("protocol", &PROTOCOLS[..]),
        ("access", &["Allow", "Deny"]),
        ("direction", &["Inbound", "Outbound"]),
    ] {
        let given = properties[name].as_str().ok_or_else(|| validate::missing(path, name))?;
        // Old clients write "Any" and "Asterisk" in other places; Resource Manager itself takes these alone.
        let spelled = known.iter().find(|k| k.eq_ignore_ascii_case(given)).ok_or_else(|| {
            validate::unreadable(
                &format!("{path}.{name}"),
                &format!("'{given}' is none of {}.", known.join(", ")),
            )
        })?;
        rule[name] = json!(spelled);
    }
    let priority = &properties["priority"];
    if priority.is_null() {
        return Err(validate::missing(path, "priority"));
    }
    let priority = priority
        .as_i64()
        .ok_or_else(|| validate::unreadable("properties.priority", "An integer is expected."))?;
    if !(100..=4096).contains(&priority) {
        return Err(ArmError::bad(
            "SecurityRuleInvalidPriority",
            format!(
                "Security rule has invalid Priority. Value provided: {priority} Allowed range 100-4096. Rule: {}",
                id.text
            ),
        ));
    }
    let description = properties["description"].as_str().unwrap_or("");
    if description.chars().count() > MAX_DESCRIPTION {
        return Err(ArmError::bad(
            "SecurityRuleInvalidDescription",
            format!(
                "Security rule {} has a description of {} characters. The maximum is {MAX_DESCRIPTION}.",
                id.name(),
                description.chars().count()
            ),
        ));
    }
    for side in ["source", "destination"] {
        addresses(id, side, properties, &mut rule)?;
        ports(id, side, properties, &mut rule)?;
    }
    if let Some(map) = rule.as_object_mut() {
        map.retain(|name, value| !value.is_null() && name != "provisioningState");
    }
    Ok(rule)
}

fn strings(properties: &Value, name: &str) -> Result<Vec<String>, ArmError> {
    let value = &properties[name];
    if value.is_null() {
        return Ok(vec![]);
    }
    let list = value.as_array().and_then(|l| l.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    list.ok_or_else(|| {
        validate::unreadable(&format!("properties.{name}"), "An array of strings is expected.")
    })
}

fn capital(side: &str) -> &'static str {
    if side == "source" { "Source" } else { "Destination" }
}

fn addresses(id: &ResourceId, side: &str, given: &Value, rule: &mut Value) -> Result<(), ArmError> {
    let (one_name, many_name) = (format!("{side}AddressPrefix"), format!("{side}AddressPrefixes"));
    let groups_name = format!("{side}ApplicationSecurityGroups");
    let one = given[&one_name].as_str().unwrap_or("");
    let many = strings(given, &many_name)?;
    let groups = given[&groups_name].as_array().map_or(0, Vec::len);
    if groups > MAX_ASGS {
        return Err(ArmError::bad(
            "NumberOfApplicationSecurityGroupsReferencedInSecurityRuleLimitReached",
            format!(
                "A security rule may have up to {MAX_ASGS} Application Security Group in the source or destination fields. The requested configuration has {groups} in the {}ApplicationSecurityGroups field.",
                capital(side)
            ),
        ));
    }
    let forms = usize::from(!one.is_empty()) + usize::from(!many.is_empty()) + usize::from(groups > 0);
    if forms == 0 {
        return Err(ArmError::bad(
            "SecurityRuleParameterNotSpecified",
            format!("Security rule {} must specify {one_name}, {many_name} or {groups_name}.", id.text),
        ));
    }
    if forms > 1 {
        return Err(ArmError::bad(
            "SecurityRuleConflictingParameters",
            format!(
                "Security rule {} must specify only one of {one_name}, {many_name} and {groups_name}.",
                id.text
            ),
        ));
    }
    let mut nets = vec![];
    if !one.is_empty() {
        match network(one) {
            Some(net) => nets.push(net),
            None if one == "*" || one.eq_ignore_ascii_case("any") || tag(one).is_some() => {
                let spelled = tag(one).unwrap_or_else(|| "*".to_owned());
                rule[&one_name] = json!(spelled);
            }
            None => return Err(invalid_prefix(one)),
        }
    }
    for prefix in &many {
        match network(prefix) {
            Some(net) => nets.push(net),
            None if prefix == "*" || tag(prefix).is_some() => {
                return Err(ArmError::bad(
                    "SecurityRuleParameterContainsUnsupportedValue",
                    format!(
                        "Security rule parameter {}AddressPrefixes for rule with Id {} cannot specify existing VIRTUALNETWORK, INTERNET, AZURELOADBALANCER, '*' or system tags. Unsupported value used: {prefix}.",
                        capital(side),
                        id.text
                    ),
                ));
            }
            None => return Err(invalid_prefix(prefix)),
        }
    }
    families(id, &nets)?;
    overlaps(id, &nets)?;
    rule[&many_name] = json!(many);
    Ok(())
}

fn invalid_prefix(value: &str) -> ArmError {
    ArmError::bad(
        "SecurityRuleInvalidAddressPrefix",
        format!("Security rule has invalid Address prefix. Value provided: {value}"),
    )
}

/// An address or a CIDR.
pub(crate) fn network(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from))
}

fn tag(text: &str) -> Option<String> {
    if let Some(known) = TAGS.iter().find(|t| t.eq_ignore_ascii_case(text)) {
        return Some((*known).to_owned());
    }
    let (name, region) = text.rsplit_once('.')?;
    let known = TAGS.iter().find(|t| t.eq_ignore_ascii_case(name))?;
    let shaped = !region.is_empty() && region.bytes().all(|b| b.is_ascii_alphanumeric());
    let regional = !["Internet", "VirtualNetwork", "AzureLoadBalancer"].contains(known);
    (shaped && regional).then(|| format!("{known}.{region}"))
}

fn families(id: &ResourceId, nets: &[IpNet]) -> Result<(), ArmError> {
    let v6 = |n: &IpNet| matches!(n, IpNet::V6(_));
    if nets.iter().any(v6) && !nets.iter().all(v6) {
        return Err(ArmError::bad(
            "ResourceCannotContainAddressPrefixesFromDifferentAddressFamilies",
            format!("Resource {} cannot contain address prefixes from different address families.", id.text),
        ));
    }
    Ok(())
}

fn overlaps(id: &ResourceId, nets: &[IpNet]) -> Result<(), ArmError> {
    // Sorted by first address and then length, an overlap always shows between neighbours by containment.
    let mut sorted: Vec<IpNet> = nets.iter().map(IpNet::trunc).collect();
    sorted.sort_unstable_by_key(|n| (n.network(), n.prefix_len()));
    let mut widest: Option<IpNet> = None;
    for net in sorted {
        if let Some(outer) = widest.filter(|w| w.contains(&net)) {
            return Err(ArmError::bad(
                "OverlappingSubnetsNotPermittedInSecurityRule",
                format!(
                    "Security rule {} cannot have overlapping address prefixes: {outer} and {net}.",
                    id.text
                ),
            ));
        }
        widest = Some(net);
    }
    Ok(())
}

fn ports(id: &ResourceId, side: &str, given: &Value, rule: &mut Value) -> Result<(), ArmError> {
    let (one_name, many_name) = (format!("{side}PortRange"), format!("{side}PortRanges"));
    let one = match &given[&one_name] {
        Value::Number(n) => n.to_string(),
        other => other.as_str().unwrap_or("").to_owned(),
    };
    let many = strings(given, &many_name)?;
    let parameter = format!("{}PortRange", capital(side));
    if one.is_empty() && many.is_empty() {
        return Err(ArmError::bad(
            "SecurityRuleParameterNotSpecified",
            format!("Security rule {} must specify {one_name} or {many_name}.", id.text),
        ));
    }
    if !one.is_empty() && !many.is_empty() {
        return Err(ArmError::bad(
            "SecurityRuleConflictingParameters",
            format!("Security rule {} must specify only one of {one_name} and {many_name}.", id.text),
        ));
    }
    if !one.is_empty() {
        range(&one).ok_or_else(|| invalid_port(&one))?;
        rule[&one_name] = json!(one);
    }
    for text in &many {
        if text == "*" {
            return Err(ArmError::bad(
                "SecurityRuleParameterContainsUnsupportedValue",
                format!(
                    "Security rule parameter {parameter}s for rule with Id {} cannot specify '*'.",
                    id.text
                ),
            ));
        }
        range(text).ok_or_else(|| invalid_port(text))?;
    }
    let mut ranges: Vec<(u16, u16)> = many.iter().filter_map(|t| range(t)).collect();
    ranges.sort_unstable();
    if ranges.windows(2).any(|w| w[0].1 >= w[1].0) {
        return Err(ArmError::bad(
            "SecurityRuleInvalidPortRange",
            format!("Security rule {} cannot have overlapping port ranges in {parameter}s.", id.text),
        ));
    }
    rule[&many_name] = json!(many);
    Ok(())
}

fn invalid_port(value: &str) -> ArmError {
    ArmError::bad(
        "SecurityRuleInvalidPortRange",
        format!(
            "Security rule has invalid Port range. Value provided: {value}. Value should be an integer OR integer range with '-' delimiter. Valid range 0-65535."
        ),
    )
}

/// `*`, `22` or `5985-5986`, bounds included.
pub(crate) fn range(text: &str) -> Option<(u16, u16)> {
    if text == "*" {
        return Some((0, u16::MAX));
    }
    let (low, high) = text.split_once('-').unwrap_or((text, text));
    let digits = |t: &str| t.bytes().all(|b| b.is_ascii_digit()).then(|| t.parse::<u16>().ok()).flatten();
    let (low, high) = (digits(low.trim())?, digits(high.trim())?);
    (low <= high).then_some((low, high))
}

/// How many addresses and ranges the rule counts for.
pub(crate) fn address_count(properties: &Value) -> usize {
    ["source", "destination"]
        .iter()
        .map(|side| {
            let many = properties[format!("{side}AddressPrefixes")].as_array().map_or(0, Vec::len);
            let one = properties[format!("{side}AddressPrefix")].as_str().unwrap_or("");
            many + usize::from(network(one).is_some())
        })
        .sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id() -> ResourceId {
        ResourceId::parse("/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkSecurityGroups/n/securityRules/r").unwrap()
    }

    fn rule() -> Value {
        json!({"protocol": "tcp", "access": "allow", "direction": "inbound", "priority": 100,
               "sourceAddressPrefix": "203.0.113.7", "sourcePortRange": "*",
               "destinationAddressPrefix": "*", "destinationPortRange": "22"})
    }

    fn code_with(change: &Value) -> String {
        let mut rule = rule();
        crate::arm::crud::merge(&mut rule, change);
        check(&id(), &mut rule).map_or_else(|e| e.code, |_| "accepted".into())
    }

    #[test]
    fn values_are_written_back_in_azures_spelling() {
        let checked = check(&id(), &mut rule()).unwrap();
        assert_eq!((&checked["protocol"], &checked["access"]), (&json!("Tcp"), &json!("Allow")));
        assert_eq!(checked["sourceAddressPrefixes"], json!([]));
    }

    #[test]
    fn each_fault_has_its_code() {
        let cases = [
            (json!({"priority": 99}), "SecurityRuleInvalidPriority"),
            (json!({"priority": 4097}), "SecurityRuleInvalidPriority"),
            (json!({"priority": null}), "InvalidRequestFormat"),
            (json!({"access": null}), "InvalidRequestFormat"),
            (json!({"protocol": "Sctp"}), "InvalidRequestFormat"),
            (json!({"description": "x".repeat(141)}), "SecurityRuleInvalidDescription"),
            (json!({"sourceAddressPrefix": "Internetz"}), "SecurityRuleInvalidAddressPrefix"),
            (json!({"sourceAddressPrefix": null}), "SecurityRuleParameterNotSpecified"),
            (json!({"sourceAddressPrefixes": ["10.0.0.0/8"]}), "SecurityRuleConflictingParameters"),
            (
                json!({"sourceAddressPrefix": null, "sourceAddressPrefixes": ["*"]}),
                "SecurityRuleParameterContainsUnsupportedValue",
            ),
            (
                json!({"sourceAddressPrefix": null, "sourceAddressPrefixes": ["Internet"]}),
                "SecurityRuleParameterContainsUnsupportedValue",
            ),
            (
                json!({"sourceAddressPrefix": null, "sourceAddressPrefixes": ["10.0.0.0/8", "fd00::/8"]}),
                "ResourceCannotContainAddressPrefixesFromDifferentAddressFamilies",
            ),
            (
                json!({"sourceAddressPrefix": null, "sourceAddressPrefixes": ["10.0.0.0/8", "10.1.0.0/16"]}),
                "OverlappingSubnetsNotPermittedInSecurityRule",
            ),
            (json!({"destinationPortRange": "65536"}), "SecurityRuleInvalidPortRange"),
            (json!({"destinationPortRange": "20-10"}), "SecurityRuleInvalidPortRange"),
            (
                json!({"destinationPortRange": null, "destinationPortRanges": ["1-10", "5"]}),
                "SecurityRuleInvalidPortRange",
            ),
            (json!({"sourceAddressPrefix": "azurecloud.westeurope"}), "accepted"),
            (json!({"description": "x".repeat(140), "priority": 4096}), "accepted"),
        ];
        for (change, code) in cases {
            assert_eq!(code_with(&change), code, "{change}");
        }
    }
}
