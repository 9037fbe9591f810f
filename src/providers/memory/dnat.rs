//! What stands on a firewall with DNAT, rule by rule.

use crate::api::values::PortRange;
use crate::plan::model::{DnatRule, NetworkRule, Peer, Rule, Translating};

/// The rules of ours, as parts, and those of others.
pub(super) fn standing(rules: &[Rule], others: &Translating) -> Translating {
    let mut standing = others.clone();
    for rule in rules {
        let part_of = Some(rule.name.clone());
        standing.filters.push(NetworkRule {
            rule: rule.clone(),
            comes_first: false,
            part_of: part_of.clone(),
        });
        let Some(from) = rule.translation else { continue };
        let to = rule.destinations.first().and_then(|peer| match peer {
            Peer::Net(net) => Some(net.addr()),
            Peer::Any | Peer::Tag(_) | Peer::Group(_) | Peer::Unknown(_) => None,
        });
        for (port, comes_in) in
            rule.ports.iter().flat_map(|range| range.first()..=range.last()).zip(from.port..)
        {
            let matched = Rule {
                destinations: vec![Peer::host(from.address)],
                ports: vec![PortRange::single(comes_in)],
                translation: None,
                ..rule.clone()
            };
            let to = to.map(|address| (address, PortRange::single(port)));
            standing.translations.push(DnatRule { rule: matched, to, part_of: part_of.clone() });
        }
    }
    standing
}
