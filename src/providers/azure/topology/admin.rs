//! Rules of Virtual Network Managers that hold for a network.

use serde_json::{Value, json};

use crate::api::values::ArmId;
use crate::plan::model::{AdminAction, AdminRule, Peer};
use crate::providers::azure::api_version;
use crate::providers::azure::client::Arm;
use crate::providers::azure::limiter::Urgency;
use crate::providers::azure::nsg::{port_range, protocol};
use crate::providers::azure::wire::{items, peer, text};

/// Pages of rules that are read at most.
const PAGES: usize = 50;

/// The inbound rules, by priority; none where they cannot be read or understood.
pub(super) async fn read(arm: &Arm, network: &ArmId) -> Option<Vec<AdminRule>> {
    let operation = format!("read admin rules of {}", network.name());
    let path = format!("{network}/listNetworkManagerEffectiveSecurityAdminRules");
    let mut rules = Vec::new();
    let mut body = json!({});
    for _ in 0..PAGES {
        let page = match arm.query(&operation, &path, api_version::NETWORK, &body, Urgency::Background).await
        {
            Ok(page) => page,
            Err(error) => {
                tracing::debug!(%error, "admin rules are not known");
                return None;
            }
        };
        rules.extend(understand(&page)?);
        match text(&page, "/skipToken") {
            Some(token) => body = json!({"skipToken": token}),
            None => {
                rules.sort_by_key(|rule| rule.priority);
                return Some(rules);
            }
        }
    }
    None
}

/// The inbound rules of a page; none where one of them cannot be understood.
pub(super) fn understand(page: &Value) -> Option<Vec<AdminRule>> {
    let rules = page.get("value")?.as_array()?.iter().map(decode).collect::<Option<Vec<_>>>()?;
    Some(rules.into_iter().flatten().collect())
}

/// The inner none: an outbound rule. The outer: one that cannot be understood, so that nothing can be said of
/// what they do together.
#[expect(clippy::option_option, reason = "the two are told apart by every caller")]
fn decode(rule: &Value) -> Option<Option<AdminRule>> {
    if text(rule, "/properties/direction")?.eq_ignore_ascii_case("outbound") {
        return Some(None);
    }
    let action = match text(rule, "/properties/access")?.to_ascii_lowercase().as_str() {
        "allow" => AdminAction::Allow,
        "alwaysallow" => AdminAction::AlwaysAllow,
        "deny" => AdminAction::Deny,
        _ => return None,
    };
    let name = text(rule, "/id").and_then(|id| id.rsplit('/').next());
    let ports = items(rule, "/properties/destinationPortRanges").iter();
    let ports = ports.map(|port| port_range(port.as_str()?).ok()).collect::<Option<Vec<_>>>()?;
    Some(Some(AdminRule {
        name: name.or_else(|| text(rule, "/properties/flag")).unwrap_or("unnamed").to_owned(),
        priority: u16::try_from(rule.pointer("/properties/priority")?.as_u64()?).ok()?,
        action,
        protocol: protocol(text(rule, "/properties/protocol").unwrap_or("Any")),
        sources: peers(rule, "/properties/sources"),
        destinations: peers(rule, "/properties/destinations"),
        ports: if ports.is_empty() { vec![crate::api::values::PortRange::ALL] } else { ports },
    }))
}

fn peers(rule: &Value, pointer: &str) -> Vec<Peer> {
    let peers: Vec<Peer> = items(rule, pointer)
        .iter()
        .map(|item| match text(item, "/addressPrefix") {
            Some(prefix) => peer(prefix),
            None => Peer::Unknown(item.to_string()),
        })
        .collect();
    if peers.is_empty() { vec![Peer::Any] } else { peers }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn admin_rules_are_read_or_nothing_is_said() {
        let rule = |access: &str, direction: &str| {
            json!({"id": "/x/rules/allow-ops", "kind": "Custom", "properties": {
                "access": access, "direction": direction, "priority": 7, "protocol": "Tcp",
                "sources": [{"addressPrefix": "10.0.0.0/8", "addressPrefixType": "IPPrefix"}],
                "destinations": [{"addressPrefix": "*", "addressPrefixType": "IPPrefix"}],
                "sourcePortRanges": ["0-65535"], "destinationPortRanges": ["22", "3389"]}})
        };
        let read = decode(&rule("AlwaysAllow", "Inbound")).unwrap().unwrap();
        assert_eq!(
            (read.name.as_str(), read.priority, read.action),
            ("allow-ops", 7, AdminAction::AlwaysAllow)
        );
        assert_eq!((read.sources.len(), read.destinations, read.ports.len()), (1, vec![Peer::Any], 2));
        assert_eq!(decode(&rule("Deny", "Outbound")), Some(None));
        assert_eq!(decode(&rule("Perhaps", "Inbound")), None);
        assert_eq!(decode(&json!({})), None);
    }
}
