//! What DNAT rules of firewalls make of packets: where they come in, and where they may be led on to.
//!
//! Where a rule cannot be read exactly, it may match: what is opened keeps clear of it, and what is closed does not rest on
//! it.

use std::net::IpAddr;

use super::model::{DnatRule, Peer, Rule, Translation};
use super::sources::{AddressSet, Bounds};
use crate::api::values::{PortRange, Protocol};

/// The sources that a rule may match.
#[must_use]
pub fn sources(rule: &Rule) -> AddressSet {
    Bounds::of(&rule.sources, None).maybe
}

/// Whether a rule that leads on may match packets that come in at `count` ports from `from` on.
#[must_use]
pub fn may_take(dnat_rule: &DnatRule, from: Translation, count: usize, protocol: Protocol) -> bool {
    let rule = &dnat_rule.rule;
    let last = usize::from(from.port).saturating_add(count.max(1) - 1);
    let Ok(ports) =
        u16::try_from(last).map_err(drop).and_then(|last| PortRange::new(from.port, last).map_err(drop))
    else {
        return true;
    };
    rule.protocol.intersects(protocol)
        && rule.ports.iter().any(|range| range.intersects(ports))
        && Bounds::of(&rule.destinations, None).maybe.has(from.address)
}

/// Whether a rule may lead packets on to these ports of an address. One that leads to a name may lead anywhere.
#[must_use]
pub fn may_lead_to(dnat_rule: &DnatRule, address: IpAddr, ports: &[PortRange], protocol: Protocol) -> bool {
    dnat_rule.rule.protocol.intersects(protocol)
        && dnat_rule
            .to
            .is_none_or(|(to, range)| to == address && ports.iter().any(|own| own.intersects(range)))
}

/// Whether every source that a rule matches is among these.
#[must_use]
pub fn only_from(rule: &Rule, allowed: &AddressSet) -> bool {
    !rule.sources.iter().any(|peer| matches!(peer, Peer::Unknown(_))) && allowed.contains(&sources(rule))
}
