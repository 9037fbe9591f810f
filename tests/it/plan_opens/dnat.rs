//! The same where packets are led on: whose port is whose, and what the firewall holds.

use std::net::{IpAddr, Ipv4Addr};

use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::plan::desired::Limits;
use portcullis::plan::model::{
    DnatRule, FirewallId, NetworkRule, Peer, RuleProtocol, Translating, Translation,
};

use super::*;

const PUBLIC: IpAddr = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 40));
const FIREWALL: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Network/azureFirewalls/hub";

/// Packets that come in at `port` are led on to these ports of the machine.
fn led(n: u32, port: u16, to: &str) -> Grant {
    let from = Translation { address: PUBLIC, port };
    Grant { ports: vec![super::port(to)], translation: Some(from), ..one(n, open(1000)) }
}

fn leads(port: u16, part_of: Option<&Rule>) -> DnatRule {
    DnatRule {
        rule: Rule {
            destinations: vec![Peer::host(PUBLIC)],
            ports: vec![PortRange::single(port)],
            ..rule("theirs/nat 200 Allow TCP 203.0.113.0/24 > * : 1")
        },
        to: Some((ip("10.0.0.9"), PortRange::single(22))),
        part_of: part_of.map(|rule| rule.name.clone()),
    }
}

/// A firewall on which these rules stand as ours, and these as others'.
fn firewall(own: &[&Grant], theirs: Vec<DnatRule>) -> Observed {
    let mut world = nsg(&[]);
    world.firewall = FirewallId(ArmId::parse(FIREWALL).unwrap());
    world.rules = own.iter().map(|grant| grant_rule(&cluster(), grant, 100)).collect();
    let mut standing = Translating { translations: theirs, ..Translating::default() };
    for rule in &world.rules {
        let from = rule.translation.unwrap();
        for port in rule.ports.iter().flat_map(|range| range.first()..=range.last()).zip(from.port..) {
            let to = Some((ip("10.0.0.4"), PortRange::single(port.0)));
            standing.translations.push(DnatRule { to, ..leads(port.1, Some(rule)) });
        }
        let (comes_first, part_of) = (false, Some(rule.name.clone()));
        standing.filters.push(NetworkRule { rule: rule.clone(), comes_first, part_of });
    }
    world.translating = Some(standing);
    world
}

fn opened(world: &Observed, grants: &[Grant]) -> Vec<String> {
    let changes = planned(world, grants.to_vec());
    assert!(changes.refused.iter().all(|refused| refused.reason == Reason::FirewallUnfit), "{changes:?}");
    assert_eq!(changes.opens.len() + changes.refused.len(), grants.len());
    changes.opens.into_iter().map(|rule| rule.name).collect()
}

#[test]
fn ports_that_a_plan_opens_are_taken_for_the_rest_of_it() {
    let row = led(0, 50_000, "8000-8003");
    for (port, to, fits) in [
        (49_999, "22", true),
        (50_000, "22", false),
        (50_003, "22", false),
        (50_004, "22", true),
        (49_998, "22-23", true),
        (49_997, "22-25", false),
        (50_000, "9000-9003", false),
    ] {
        let grants = [row.clone(), led(1, port, to)];
        let names = opened(&firewall(&[], vec![]), &grants);
        assert_eq!(names.len() == 2, fits, "{port} to {to}: {names:?}");
    }
    // The same ports of another public address are others.
    let mut other = led(1, 50_000, "22");
    other.translation.as_mut().unwrap().address = IpAddr::V4(Ipv4Addr::new(198, 51, 100, 41));
    assert_eq!(opened(&firewall(&[], vec![]), &[row, other]).len(), 2);
}

/// Two sources that are let in to the same machine by the same port: two rules, whose packets go the same way.
#[test]
fn a_port_is_shared_by_those_whose_packets_go_the_same_way() {
    let first = led(0, 50_000, "22");
    let elsewhere = Grant { destinations: vec![ip("10.0.0.5")], ..led(1, 50_000, "22") };
    let cases = [
        (led(1, 50_000, "22"), true),
        (led(1, 50_000, "23"), false),
        (elsewhere, false),
        (led(1, 50_001, "22"), true),
    ];
    for (second, fits) in cases {
        let both = opened(&firewall(&[], vec![]), &[first.clone(), second.clone()]);
        assert_eq!(both.len() == 2, fits, "in one plan: {second:?}");
        let after = opened(&firewall(&[&first], vec![]), std::slice::from_ref(&second));
        assert_eq!(after.len() == 1, fits, "beside one that stands: {second:?}");
    }
    // What others lead is shared with nobody, and neither is what only says that it is ours.
    assert_eq!(opened(&firewall(&[], vec![leads(50_000, None)]), std::slice::from_ref(&first)).len(), 0);
    let mut forged = leads(50_000, None);
    forged.part_of = Some("web-allow".into());
    assert_eq!(opened(&firewall(&[], vec![forged]), &[first]).len(), 0);
}

#[test]
fn a_port_that_others_lead_is_taken_for_what_their_protocol_may_be() {
    for (theirs, asked, taken) in [
        (RuleProtocol::Transport(Protocol::Tcp), Protocol::Tcp, true),
        (RuleProtocol::Transport(Protocol::Udp), Protocol::Tcp, false),
        (RuleProtocol::Transport(Protocol::Udp), Protocol::Any, true),
        (RuleProtocol::Transport(Protocol::Any), Protocol::Udp, true),
        (RuleProtocol::Other("ICMP".into()), Protocol::Tcp, false),
        (RuleProtocol::Other("ICMP".into()), Protocol::Any, true),
    ] {
        let mut nat = leads(50_000, None);
        nat.rule.protocol = theirs.clone();
        let grant = Grant { protocol: asked, ..led(0, 50_000, "22") };
        assert_eq!(opened(&firewall(&[], vec![nat]), &[grant]).is_empty(), taken, "{theirs:?} {asked:?}");
    }
}

#[test]
fn a_rule_that_the_cloud_failed_to_write_is_not_in_its_own_way() {
    let grant = led(0, 50_000, "22");
    let mut world = firewall(&[&grant], vec![]);
    world.rules[0].provisioning = Provisioning::Failed;
    assert_eq!(opened(&world, std::slice::from_ref(&grant)), [grant.name]);
}

#[test]
fn a_row_of_ports_meets_every_port_that_others_lead() {
    for (theirs, fits) in [(49_999, true), (50_000, false), (50_003, false), (50_004, true)] {
        let names = opened(&firewall(&[], vec![leads(theirs, None)]), &[led(0, 50_000, "8000-8003")]);
        assert_eq!(names.len() == 1, fits, "{theirs}");
    }
    let udp = Grant { protocol: Protocol::Udp, ..led(0, 50_000, "22") };
    assert_eq!(opened(&firewall(&[], vec![leads(50_000, None)]), &[udp]).len(), 1);
}

#[test]
fn a_firewall_that_leads_on_is_filled_to_the_last_rule_and_address() {
    let full = |world: &Observed, grants: &[Grant], limits: Limits| {
        let changes = plan(world, &wanted(vec![], grants.to_vec()), &limits, at(0));
        assert!(changes.refused.iter().all(|refused| refused.reason == Reason::FirewallFull), "{changes:?}");
        changes.opens.len()
    };
    let wide = Limits { rules: 1000, addresses: 1000 };
    // A grant takes a rule for each port where packets come in and one that lets them through, and those of one plan
    // count together.
    let grants = [led(0, 50_000, "22"), led(1, 50_001, "22")];
    for (rules, fit) in [(1, 0), (2, 1), (3, 1), (4, 2)] {
        assert_eq!(full(&firewall(&[], vec![]), &grants, Limits { rules, ..wide }), fit, "{rules}");
    }
    let row = [led(0, 50_000, "8000-8003")];
    for (rules, fit) in [(4, 0), (5, 1)] {
        assert_eq!(full(&firewall(&[], vec![]), &row, Limits { rules, ..wide }), fit, "{rules}");
    }
    let world = firewall(&[], vec![leads(50_009, None)]);
    assert_eq!(full(&world, &grants[..1], Limits { rules: 2, ..wide }), 0);
    assert_eq!(full(&world, &grants[..1], Limits { rules: 3, ..wide }), 1);
    // The public address and both machines: the one that others lead to, and ours.
    assert_eq!(full(&world, &grants[..1], Limits { addresses: 2, ..wide }), 0);
    assert_eq!(full(&world, &grants[..1], Limits { addresses: 3, ..wide }), 1);
    // One that is written again takes no more.
    let mut world = firewall(&[&grants[0]], vec![]);
    world.rules[0].provisioning = Provisioning::Failed;
    assert_eq!(full(&world, &grants[..1], Limits { rules: 2, ..wide }), 1);
    assert_eq!(full(&world, &grants[..1], Limits { rules: 1, ..wide }), 1, "fuller than it may be");
    assert_eq!(full(&world, &grants, Limits { rules: 3, ..wide }), 1);
    assert_eq!(full(&world, &grants, Limits { rules: 4, ..wide }), 2);
}
