//! Rules between Azure's JSON and the model.

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::api::values::{PortRange, Protocol};
use crate::plan::model::{Access, FirewallId, Observed, Peer, ResourceLock, Rule, RuleProtocol};
use crate::providers::CloudError;
use crate::providers::azure::wire::{garbled, id, items, one_or_many, peer, provisioning, reference, text};

/// A network security group as read.
///
/// # Errors
/// When its list of rules is missing, or it is another group than was asked for: no rule may pass for absent
/// because an answer was broken.
pub(super) fn observed(
    operation: &str,
    firewall: FirewallId,
    group: &Value,
    at: Timestamp,
    lock: ResourceLock,
) -> Result<Observed, CloudError> {
    if id(operation, group)? != firewall.0 {
        return Err(garbled(operation, "it is about another resource"));
    }
    let written = group
        .pointer("/properties/securityRules")
        .and_then(Value::as_array)
        .ok_or_else(|| garbled(operation, "the rules are missing"))?;
    let mut observed = Observed {
        firewall,
        at,
        provisioning: provisioning(group),
        rules: Vec::new(),
        outbound_rules: 0,
        outbound_addresses: 0,
        lock,
        cuts_sessions: Some(
            group.pointer("/properties/flushConnection").and_then(Value::as_bool) == Some(true),
        ),
        translating: None,
    };
    for rule in written {
        if is_outbound(rule) {
            observed.outbound_rules += 1;
            observed.outbound_addresses += peers(rule, "source").len() + peers(rule, "destination").len();
        } else {
            observed.rules.push(decode(operation, rule)?);
        }
    }
    for rule in items(group, "/properties/defaultSecurityRules").iter().filter(|rule| !is_outbound(rule)) {
        observed.rules.push(decode(operation, rule)?);
    }
    observed.rules.sort_by_key(|rule| rule.priority);
    Ok(observed)
}

fn is_outbound(rule: &Value) -> bool {
    text(rule, "/properties/direction").is_some_and(|direction| direction.eq_ignore_ascii_case("outbound"))
}

/// An inbound rule. What cannot be understood of it becomes [`Peer::Unknown`]: it may let anything in.
fn decode(operation: &str, rule: &Value) -> Result<Rule, CloudError> {
    let name = match text(rule, "/name") {
        Some(name) => name,
        None => text(rule, "/id").and_then(|id| id.rsplit('/').next()).unwrap_or_default(),
    };
    if name.is_empty() {
        return Err(garbled(operation, "a rule has no name"));
    }
    let priority = rule.pointer("/properties/priority").and_then(Value::as_u64);
    let priority = priority
        .and_then(|priority| u16::try_from(priority).ok())
        .ok_or_else(|| garbled(operation, &format!("rule {name} has no priority")))?;
    let mut sources = peers(rule, "source");
    let mut destinations = peers(rule, "destination");
    let source_ports = ports(rule, "source").unwrap_or_else(|strange| {
        sources = vec![strange];
        vec![PortRange::ALL]
    });
    let ports = ports(rule, "destination").unwrap_or_else(|strange| {
        destinations = vec![strange];
        vec![PortRange::ALL]
    });
    let access = match text(rule, "/properties/access").unwrap_or_default() {
        access if access.eq_ignore_ascii_case("deny") => Access::Deny,
        access if access.eq_ignore_ascii_case("allow") => Access::Allow,
        strange => {
            sources = vec![Peer::Unknown(format!("access {strange}"))];
            Access::Allow
        }
    };
    Ok(Rule {
        name: name.to_owned(),
        priority,
        access,
        protocol: protocol(text(rule, "/properties/protocol").unwrap_or("*")),
        sources,
        source_ports,
        destinations,
        ports,
        translation: None,
        description: text(rule, "/properties/description").unwrap_or_default().to_owned(),
        provisioning: provisioning(rule),
    })
}

/// Which rules of a group are no longer there, or no longer as they were.
pub(super) fn lost(before: &Value, after: &Value) -> Vec<String> {
    let essence = |rule: &Value| {
        let mut rule = rule.get("properties").cloned().unwrap_or_default();
        if let Some(map) = rule.as_object_mut() {
            map.remove("provisioningState");
        }
        rule
    };
    let of = |body: &Value| -> std::collections::BTreeMap<String, Value> {
        let rules = items(body, "/properties/securityRules").iter();
        rules.filter_map(|rule| Some((text(rule, "/name")?.to_owned(), essence(rule)))).collect()
    };
    let (was, is) = (of(before), of(after));
    was.iter()
        .filter(|(name, rule)| is.get(*name) != Some(*rule))
        .map(|(name, _)| format!("rule {name} is not as it was"))
        .collect()
}

/// A protocol as Azure names it.
pub(in crate::providers::azure) fn protocol(text: &str) -> RuleProtocol {
    match text.to_ascii_lowercase().as_str() {
        "*" | "any" => RuleProtocol::Transport(Protocol::Any),
        "tcp" => RuleProtocol::Transport(Protocol::Tcp),
        "udp" => RuleProtocol::Transport(Protocol::Udp),
        "icmp" | "esp" | "ah" => RuleProtocol::Other(text.to_owned()),
        // One that is new may carry our ports for all we know.
        _ => RuleProtocol::Transport(Protocol::Any),
    }
}

fn peers(rule: &Value, side: &str) -> Vec<Peer> {
    let one = format!("/properties/{side}AddressPrefix");
    let many = format!("/properties/{side}AddressPrefixes");
    let groups = format!("/properties/{side}ApplicationSecurityGroups");
    let mut peers: Vec<Peer> = one_or_many(rule, &one, &many).into_iter().map(peer).collect();
    for group in items(rule, &groups) {
        peers.push(match reference("", group, "/id") {
            Ok(Some(id)) => Peer::Group(id),
            Ok(None) | Err(_) => Peer::Unknown(group.to_string()),
        });
    }
    if peers.is_empty() {
        peers.push(Peer::Unknown(format!("no {side}")));
    }
    peers
}

/// The error is a peer that stands for ports which cannot be read.
fn ports(rule: &Value, side: &str) -> Result<Vec<PortRange>, Peer> {
    let one = format!("/properties/{side}PortRange");
    let many = format!("/properties/{side}PortRanges");
    let ranges = one_or_many(rule, &one, &many);
    if ranges.is_empty() {
        return Err(Peer::Unknown(format!("no {side} port")));
    }
    ranges.into_iter().map(port_range).collect()
}

/// One port, a range or `*`.
pub(in crate::providers::azure) fn port_range(text: &str) -> Result<PortRange, Peer> {
    if text == "*" {
        return Ok(PortRange::ALL);
    }
    text.parse().map_err(|_| Peer::Unknown(format!("port {text}")))
}

/// The body that writes a rule.
///
/// # Errors
/// When Azure has no words for it.
pub(super) fn encode(rule: &Rule) -> Result<Value, String> {
    let protocol = match &rule.protocol {
        RuleProtocol::Transport(Protocol::Any) => "*",
        RuleProtocol::Transport(Protocol::Tcp) => "Tcp",
        RuleProtocol::Transport(Protocol::Udp) => "Udp",
        RuleProtocol::Other(name) => name,
    };
    let access = match rule.access {
        Access::Allow => "Allow",
        Access::Deny => "Deny",
    };
    let mut properties = Map::new();
    properties.insert("access".into(), json!(access));
    properties.insert("direction".into(), json!("Inbound"));
    properties.insert("priority".into(), json!(rule.priority));
    properties.insert("protocol".into(), json!(protocol));
    if !rule.description.is_empty() {
        properties.insert("description".into(), json!(rule.description));
    }
    encode_peers(&mut properties, "source", &rule.sources)?;
    encode_peers(&mut properties, "destination", &rule.destinations)?;
    encode_ports(&mut properties, "source", &rule.source_ports)?;
    encode_ports(&mut properties, "destination", &rule.ports)?;
    Ok(json!({ "properties": properties }))
}

/// One in the singular field, which alone takes `*` and tags; several in the plural one.
fn encode_peers(properties: &mut Map<String, Value>, side: &str, peers: &[Peer]) -> Result<(), String> {
    let mut prefixes = Vec::new();
    let mut groups = Vec::new();
    for peer in peers {
        match peer {
            Peer::Any => prefixes.push("*".to_owned()),
            Peer::Net(network) if network.prefix_len() == network.max_prefix_len() => {
                prefixes.push(network.addr().to_string());
            }
            Peer::Net(network) => prefixes.push(network.to_string()),
            Peer::Tag(tag) => prefixes.push(tag.clone()),
            Peer::Group(id) => groups.push(json!({"id": id.as_str()})),
            Peer::Unknown(text) => return Err(format!("the {side} {text:?} cannot be written")),
        }
    }
    let single = |peer: &Peer| matches!(peer, Peer::Any | Peer::Tag(_));
    match (prefixes.as_slice(), groups.is_empty()) {
        ([], true) => return Err(format!("the {side} is missing")),
        ([], false) => {
            properties.insert(format!("{side}ApplicationSecurityGroups"), json!(groups));
        }
        (_, false) => return Err(format!("the {side}s mix application security groups with addresses")),
        ([one], true) => {
            properties.insert(format!("{side}AddressPrefix"), json!(one));
        }
        (_, true) if peers.iter().any(single) => {
            return Err(format!(
                "the {side}s hold * or a service tag besides others: each needs a rule of its own"
            ));
        }
        (many, true) => {
            properties.insert(format!("{side}AddressPrefixes"), json!(many));
        }
    }
    Ok(())
}

fn encode_ports(properties: &mut Map<String, Value>, side: &str, ports: &[PortRange]) -> Result<(), String> {
    let text = |range: &PortRange| if *range == PortRange::ALL { "*".to_owned() } else { range.to_string() };
    match PortRange::merged(ports.to_vec()).as_slice() {
        [] => return Err(format!("the {side} port is missing")),
        [one] => {
            properties.insert(format!("{side}PortRange"), json!(text(one)));
        }
        many => {
            let many: Vec<String> = many.iter().map(text).collect();
            properties.insert(format!("{side}PortRanges"), json!(many));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::values::ArmId;
    use crate::plan::model::Provisioning;
    use crate::providers::azure::wire::garbage::json_like;

    const NSG: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Network/networkSecurityGroups/nsg";

    fn rule(properties: &Value) -> Rule {
        let mut base = json!({
            "access": "Allow", "direction": "Inbound", "priority": 100, "protocol": "Tcp",
            "sourceAddressPrefix": "*", "destinationAddressPrefix": "*",
            "sourcePortRange": "*", "destinationPortRange": "22",
        });
        for (name, value) in properties.as_object().unwrap() {
            base[name] = value.clone();
        }
        decode("read", &json!({"name": "r", "properties": base})).unwrap()
    }

    fn read(group: &Value) -> Result<Observed, CloudError> {
        let firewall = FirewallId(ArmId::parse(NSG).unwrap());
        observed("read nsg", firewall, group, Timestamp::UNIX_EPOCH, ResourceLock::None)
    }

    #[test]
    fn what_cannot_be_understood_may_let_anything_in() {
        for (properties, side) in [
            (json!({"access": "Maybe"}), "source"),
            (json!({"access": null}), "source"),
            (json!({"sourceAddressPrefix": "10.0.0.1-10.0.0.9"}), "source"),
            (json!({"sourceAddressPrefix": null}), "source"),
            (json!({"sourcePortRange": "http"}), "source"),
            (json!({"destinationPortRange": "22,23"}), "destination"),
            (json!({"destinationPortRange": null}), "destination"),
            (json!({"destinationAddressPrefix": {"new": "form"}}), "destination"),
        ] {
            let rule = rule(&properties);
            let peers = if side == "source" { &rule.sources } else { &rule.destinations };
            assert!(matches!(peers.as_slice(), [Peer::Unknown(_)]), "{properties}: {rule:?}");
            assert_eq!(rule.access, Access::Allow);
        }
        assert_eq!(rule(&json!({"protocol": "Sctp"})).protocol, RuleProtocol::Transport(Protocol::Any));
        assert_eq!(rule(&json!({"protocol": "Icmp"})).protocol, RuleProtocol::Other("Icmp".into()));
    }

    #[test]
    fn both_forms_of_a_field_count() {
        let read = rule(&json!({
            "sourceAddressPrefix": "10.0.0.4", "sourceAddressPrefixes": ["10.1.0.0/16", "10.2.0.0/16"],
            "destinationPortRange": "22", "destinationPortRanges": ["5985-5986", "*"],
            "destinationAddressPrefix": "", "destinationApplicationSecurityGroups": [{"id": NSG}, {"id": 7}],
        }));
        assert_eq!(read.sources.len(), 3);
        assert_eq!(read.ports.len(), 3);
        assert!(matches!(read.destinations.as_slice(), [Peer::Group(_), Peer::Unknown(_)]));
    }

    #[test]
    fn an_answer_without_rules_is_not_an_empty_firewall() {
        let rules = |rules: Value| json!({"id": NSG, "properties": {"securityRules": rules}});
        assert!(read(&rules(json!([]))).unwrap().rules.is_empty());
        for broken in [
            rules(json!(null)),
            rules(json!({})),
            rules(json!([{"name": "r"}])),
            rules(json!([{"properties": {"priority": 100}}])),
            rules(json!([7])),
            json!({"id": NSG}),
            json!({"properties": {"securityRules": []}}),
            json!({"id": format!("{NSG}-2"), "properties": {"securityRules": []}}),
        ] {
            assert!(read(&broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn outbound_rules_only_count() {
        let group = json!({"id": NSG.to_uppercase().replace("/SUBSCRIPTIONS", "/subscriptions"), "properties": {
            "provisioningState": "Updating",
            "securityRules": [{"name": "out", "properties": {"direction": "Outbound",
                "sourceAddressPrefix": "*", "destinationAddressPrefixes": ["10.0.0.0/8", "1.1.1.1"]}}],
            "defaultSecurityRules": [{"name": "DenyAllOutBound", "properties": {"direction": "Outbound"}}],
        }});
        let observed = read(&group).unwrap();
        assert_eq!((observed.outbound_rules, observed.outbound_addresses), (1, 3));
        assert_eq!((observed.rules.len(), observed.rule_count(), observed.address_count()), (0, 1, 3));
        assert_eq!(observed.provisioning, Provisioning::Updating);
    }

    #[test]
    fn a_rule_is_written_in_the_fields_that_azure_takes_it_in() {
        let mut wanted = rule(&json!({}));
        wanted.description = "d".into();
        assert_eq!(
            encode(&wanted).unwrap(),
            json!({"properties": {
                "access": "Allow", "direction": "Inbound", "priority": 100, "protocol": "Tcp", "description": "d",
                "sourceAddressPrefix": "*", "destinationAddressPrefix": "*",
                "sourcePortRange": "*", "destinationPortRange": "22",
            }})
        );
        wanted.sources = vec![peer("10.0.0.4"), peer("10.1.0.0/16")];
        wanted.destinations = vec![Peer::Group(ArmId::parse(NSG).unwrap())];
        wanted.ports = ["22", "5985-5986"].map(|text| port_range(text).unwrap()).to_vec();
        wanted.protocol = RuleProtocol::Transport(Protocol::Any);
        let written = encode(&wanted).unwrap();
        assert_eq!(written["properties"]["sourceAddressPrefixes"], json!(["10.0.0.4", "10.1.0.0/16"]));
        assert_eq!(written["properties"]["destinationApplicationSecurityGroups"], json!([{"id": NSG}]));
        assert_eq!(written["properties"]["destinationPortRanges"], json!(["22", "5985-5986"]));
        assert_eq!(written["properties"]["protocol"], "*");
        let mut back = decode("read", &json!({"name": "r", "properties": written["properties"]})).unwrap();
        back.provisioning = wanted.provisioning;
        assert_eq!(back, wanted);
    }

    #[test]
    fn a_rule_that_azure_has_no_words_for_is_not_sent() {
        let base = rule(&json!({}));
        for (sources, hint) in [
            (vec![], "missing"),
            (vec![Peer::Unknown("?".into())], "cannot be written"),
            (vec![Peer::Any, peer("10.0.0.4")], "a rule of its own"),
            (vec![Peer::Tag("Internet".into()), Peer::Tag("VirtualNetwork".into())], "a rule of its own"),
            (vec![Peer::Group(ArmId::parse(NSG).unwrap()), peer("10.0.0.4")], "mix"),
        ] {
            let error = encode(&Rule { sources, ..base.clone() }).unwrap_err();
            assert!(error.contains(hint), "{error}");
        }
        assert!(encode(&Rule { ports: vec![], ..base }).is_err());
    }

    proptest::proptest! {
        #[test]
        fn whatever_is_read_no_rule_is_lost(anything in json_like(), rules in json_like()) {
            let _ = read(&anything);
            let group = json!({"id": NSG, "properties": {"securityRules": rules}});
            let written = rules.as_array();
            match read(&group) {
                Ok(observed) => {
                    let count = observed.rules.len() + observed.outbound_rules;
                    proptest::prop_assert_eq!(Some(count), written.map(Vec::len));
                }
                Err(error) => proptest::prop_assert!(error.kind.is_transient()),
            }
        }

        #[test]
        fn a_rule_that_can_be_written_reads_back_the_same(
            strange in json_like(),
            field in proptest::sample::select(vec![
                "sourceAddressPrefix", "sourceAddressPrefixes", "destinationAddressPrefix",
                "destinationApplicationSecurityGroups", "destinationPortRange", "sourcePortRanges", "protocol",
            ]),
        ) {
            let rule = rule(&json!({ field: strange }));
            match encode(&rule) {
                Ok(written) => {
                    let back = decode("read", &json!({"name": "r", "properties": written["properties"]})).unwrap();
                    proptest::prop_assert!(back.same_effect(&rule), "{:?} came back as {:?}", rule, back);
                }
                Err(_) => {
                    // Refused only for what has no words, or no field that takes it beside the others.
                    let peers = rule.sources.len() > 1 || rule.destinations.len() > 1
                        || rule.sources.iter().chain(&rule.destinations).any(|it| matches!(it, Peer::Unknown(_)));
                    proptest::prop_assert!(peers, "{:?}", rule);
                }
            }
        }
    }
}
