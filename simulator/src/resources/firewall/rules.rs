//! One firewall rule: which values Azure accepts.

use std::collections::HashSet;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::collections::Found;
use crate::{
    arm::{errors::ArmError, validate},
    resources::rule::{network, range},
};

/// The highest port that DNAT takes: those above are the firewall's own.
const MAX_NAT_PORT: u16 = 63_999;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Nat,
    Network,
    Application,
}

/// Checks the rules of one collection and writes them as Azure does. `protocols` is the name of the field.
pub(super) fn check(path: &str, protocols: &str, kind: Kind, list: &mut Value) -> Result<Found, ArmError> {
    let mut found = Found::default();
    let mut names = HashSet::new();
    for (index, rule) in list.as_array_mut().into_iter().flatten().enumerate() {
        let path = format!("{path}.rules[{index}]");
        let name = rule["name"].as_str().ok_or_else(|| validate::missing(&path, "name"))?.to_owned();
        if !names.insert(name.to_lowercase()) {
            return Err(ArmError::bad(
                "AzureFirewallRuleNameConflict",
                format!("More than one rule of {path} is called {name}."),
            ));
        }
        found.rules += 1;
        if kind == Kind::Application {
            continue;
        }
        let known: &[&str] = if kind == Kind::Nat { &["TCP", "UDP"] } else { &["TCP", "UDP", "ICMP", "Any"] };
        let given = strings(&path, rule, protocols)?;
        let mut spelled = vec![];
        for protocol in &given {
            let found = known.iter().find(|k| k.eq_ignore_ascii_case(protocol));
            let why = || format!("'{protocol}' is none of {}.", known.join(", "));
            spelled.push(*found.ok_or_else(|| validate::unreadable(&format!("{path}.{protocols}"), &why()))?);
        }
        if spelled.is_empty() {
            return Err(validate::missing(&path, protocols));
        }
        rule[protocols] = json!(spelled);
        let sources = strings(&path, rule, "sourceAddresses")?;
        let destinations = strings(&path, rule, "destinationAddresses")?;
        for (what, groups, list) in [
            ("sourceAddresses", "sourceIpGroups", &sources),
            ("destinationAddresses", "destinationIpGroups", &destinations),
        ] {
            let named = kind == Kind::Network
                && what == "destinationAddresses"
                && !strings(&path, rule, "destinationFqdns")?.is_empty();
            if list.is_empty() && strings(&path, rule, groups)?.is_empty() && !named {
                return Err(ArmError::bad(
                    "AzureFirewallRuleAddressesMissing",
                    format!("Rule {name} must have {what} or {groups}."),
                ));
            }
            found.has_v6 |= list.iter().any(|text| network(text).is_some_and(|net| net.addr().is_ipv6()));
        }
        let ports = strings(&path, rule, "destinationPorts")?;
        if ports.is_empty() || ports.iter().any(|port| port != "*" && range(port).is_none()) {
            return Err(ArmError::bad(
                "AzureFirewallRuleInvalidPortOrRangeFormat",
                format!("AzureFirewallRule {name}: Invalid port value or range."),
            ));
        }
        if kind == Kind::Nat {
            let (target, v6) = translation(&name, rule, &destinations, &ports)?;
            found.translated.insert(target);
            found.has_v6 |= v6;
        }
    }
    Ok(found)
}

/// Where a NAT rule leads, and whether that is an IPv6 address.
fn translation(
    name: &str,
    rule: &Value,
    destinations: &[String],
    ports: &[String],
) -> Result<(String, bool), ArmError> {
    let port = |text: &str| text.parse::<u16>().ok().filter(|p| (1..=u16::MAX).contains(p));
    let translated = &rule["translatedPort"];
    let shown = translated.as_str().map_or_else(|| translated.to_string(), str::to_owned);
    let in_reach =
        ports.iter().all(|text| range(text).is_some_and(|(low, high)| low >= 1 && high <= MAX_NAT_PORT));
    if port(&shown).is_none() || !in_reach {
        return Err(ArmError::bad(
            "AzureFirewallRuleInvalidDnatPortOrRangeFormat",
            format!(
                "AzureFirewallRule {name}: Invalid DNat port value or range. Multiple values, * and ranges are not supported for DNAT translated port."
            ),
        ));
    }
    if destinations.iter().any(|text| text.parse::<IpAddr>().is_err()) {
        return Err(ArmError::bad(
            "AzureFirewallRuleInvalidDnatDestination",
            format!(
                "AzureFirewallRule {name}: the destination of DNAT must be an IP address of the firewall."
            ),
        ));
    }
    match (rule["translatedAddress"].as_str(), rule["translatedFqdn"].as_str()) {
        (Some(address), None) => match address.parse::<IpAddr>() {
            Ok(parsed) => Ok((address.to_owned(), parsed.is_ipv6())),
            Err(_) => Err(ArmError::bad(
                "AzureFirewallRuleInvalidTranslatedAddress",
                format!("AzureFirewallRule {name}: '{address}' is not an IP address."),
            )),
        },
        (None, Some(named)) => Ok((named.to_owned(), false)),
        (None, None) | (Some(_), Some(_)) => Err(ArmError::bad(
            "AzureFirewallRuleInvalidTranslatedAddress",
            format!(
                "AzureFirewallRule {name}: exactly one of translatedAddress and translatedFqdn is needed."
            ),
        )),
    }
}

fn strings(path: &str, of: &Value, name: &str) -> Result<Vec<String>, ArmError> {
    let value = &of[name];
    if value.is_null() {
        return Ok(vec![]);
    }
    let list = value.as_array().and_then(|l| l.iter().map(|v| v.as_str().map(str::to_owned)).collect());
    list.ok_or_else(|| validate::unreadable(&format!("{path}.{name}"), "An array of strings is expected."))
}
