//! Sets of addresses and of what is let in where: held against plain sets over a universe so small that all of it is
//! looked at.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use portcullis::api::values::{ArmId, Protocol};
use portcullis::plan::desired::{Duty, Lock};
use portcullis::plan::model::{Access, FirewallKind, NetworkView, Peer, Provisioning, Rule, RuleProtocol};
use portcullis::plan::packets::{Cells, Transport, hosts};
use portcullis::plan::sources::{AddressSet, Bounds, Family};

use crate::plan_world::*;

/// The hosts of 10.0.0.0/29 by the bits of a number, as a set and as we have them.
fn hosts_of(bits: u8) -> (BTreeSet<IpAddr>, AddressSet) {
    let there = (0..8).filter(|bit| bits & (1 << bit) != 0);
    let hosts: BTreeSet<IpAddr> = there.map(|bit| IpAddr::V4(Ipv4Addr::new(10, 0, 0, bit))).collect();
    let set = AddressSet::of_hosts(hosts.iter().copied());
    (hosts, set)
}

fn members(set: &AddressSet) -> BTreeSet<IpAddr> {
    (0..=8).map(|bit| IpAddr::V4(Ipv4Addr::new(10, 0, 0, bit))).filter(|host| set.has(*host)).collect()
}

#[test]
fn sets_of_addresses_are_sets() {
    for left in 0..=255 {
        let (a, ours) = hosts_of(left);
        assert_eq!(members(&ours), a);
        assert_eq!(ours.is_empty(), a.is_empty());
        assert_eq!(ours.first(), a.first().copied());
        for right in 0..=255 {
            let (b, theirs) = hosts_of(right);
            assert_eq!(ours.meets(&theirs), !a.is_disjoint(&b), "{a:?} and {b:?}");
            assert_eq!(ours.meets_in(Family::V4, &theirs), !a.is_disjoint(&b));
            assert!(!ours.meets_in(Family::V6, &theirs));
            assert_eq!(ours.contains(&theirs), a.is_superset(&b), "{a:?} and {b:?}");
            assert_eq!(members(&ours.minus(&theirs)), &a - &b);
            assert_eq!(members(&ours.intersection(&theirs)), &a & &b);
            assert_eq!(members(&ours.union(&theirs)), &a | &b);
        }
    }
}

#[test]
fn a_network_that_lies_within_another_hides_nothing_of_it() {
    let (wide, narrow) = (net("10.0.0.0/8"), net("10.1.0.0/16"));
    let both = AddressSet::of_nets([&wide, &narrow]);
    assert!(both.has(ip("10.200.0.1")) && both.has(ip("10.1.0.1")) && !both.has(ip("11.0.0.0")));
    assert_eq!(both, AddressSet::of_nets([&wide]));
    // Halves are the whole.
    let halves = [net("10.0.0.0/9"), net("10.128.0.0/9")];
    assert_eq!(AddressSet::of_nets(&halves), AddressSet::of_nets([&wide]));
}

#[test]
fn the_first_address_is_of_ipv4_where_there_is_one() {
    let first = |nets: &[&str]| {
        let nets: Vec<_> = nets.iter().map(|text| net(text)).collect();
        AddressSet::of_nets(&nets).first()
    };
    assert_eq!(first(&["fd00::/64", "10.2.0.0/16", "10.1.0.0/16"]), Some(ip("10.1.0.0")));
    assert_eq!(first(&["fd00::/64"]), Some(ip("fd00::")));
    assert_eq!(first(&[]), None);
}

#[test]
fn a_tag_stands_for_what_it_surely_is_and_for_what_it_may_be() {
    let network = NetworkView { virtual_network: vec![net("192.0.2.0/24")], ..NetworkView::default() };
    let of = |tag: &str, known: bool| Bounds::of(&[Peer::Tag(tag.into())], known.then_some(&network));
    let (surely, maybe) = (
        |bounds: &Bounds, text: &str| bounds.surely.has(ip(text)),
        |bounds: &Bounds, text: &str| bounds.maybe.has(ip(text)),
    );
    let inside = of("VirtualNetwork", true);
    assert!(surely(&inside, "192.0.2.1") && maybe(&inside, "10.0.0.1"), "the list may lag behind");
    assert!(!surely(&inside, "10.0.0.1") && !maybe(&inside, "203.0.113.7"));
    let public = of("internet", true);
    assert!(surely(&public, "203.0.113.7") && maybe(&public, "192.0.2.1"));
    for not in ["192.0.2.1", "168.63.129.16", "10.0.0.1", "fd00::1"] {
        assert!(!surely(&public, not), "{not}");
    }
    assert!(!maybe(&public, "10.0.0.1") && !maybe(&public, "fd00::1"));
    // Of a network that is not known nothing is sure.
    for tag in ["VirtualNetwork", "Internet", "Storage"] {
        assert!(of(tag, false).surely.is_empty(), "{tag}");
        assert!(maybe(&of(tag, false), "203.0.113.7"), "{tag}");
    }
    assert!(!maybe(&of("Internet", false), "10.0.0.1"));
}

/// The cells of two addresses, two transports and two ports by the bits of a number.
fn cells_of(bits: u8) -> (BTreeSet<(IpAddr, bool, u16)>, Cells) {
    let (mut plain, mut cells) = (BTreeSet::new(), Cells::default());
    for bit in (0..8).filter(|bit| bits & (1 << bit) != 0) {
        let (address, tcp) = (IpAddr::V4(Ipv4Addr::new(10, 0, 0, bit & 1)), bit & 2 == 0);
        let number = 22 + u16::from(bit >> 2);
        plain.insert((address, tcp, number));
        let protocol = if tcp { Protocol::Tcp } else { Protocol::Udp };
        cells.add(address, protocol, &[port(&number.to_string())]);
    }
    (plain, cells)
}

#[test]
fn cells_are_sets_too() {
    let plain_of = |cells: &Cells| -> BTreeSet<(IpAddr, bool, u16)> {
        let all = cells.addresses().flat_map(|address| {
            Transport::ALL.into_iter().flat_map(move |transport| {
                let ports = cells.ports(address, transport).iter();
                let ports = ports.flat_map(|range| range.first()..=range.last());
                ports.map(move |port| (address, transport.is_of(Protocol::Tcp), port))
            })
        });
        all.collect()
    };
    for left in 0..=255 {
        let (a, ours) = cells_of(left);
        assert_eq!(plain_of(&ours), a);
        assert_eq!(ours.is_empty(), a.is_empty());
        for right in (0..=255).step_by(3) {
            let (b, theirs) = cells_of(right);
            let rest = ours.minus(&theirs);
            assert_eq!(plain_of(&rest), &a - &b);
            // An address of which nothing is left is none of it.
            let addresses: BTreeSet<IpAddr> = (&a - &b).into_iter().map(|(address, ..)| address).collect();
            assert_eq!(rest.addresses().collect::<BTreeSet<_>>(), addresses);
            assert_eq!(plain_of(&ours.intersection(&theirs)), &a & &b);
            assert_eq!(ours.meets(&theirs), !a.is_disjoint(&b));
            assert_eq!(ours.contains(&theirs), a.is_superset(&b));
        }
    }
}

#[test]
fn only_a_deny_for_everybody_that_is_in_force_surely_shuts() {
    let whole = rule("all 300 Deny TCP * > 10.0.0.4 : 22");
    assert!(!Cells::shut_by(&whole).is_empty());
    let less = [
        Rule { access: Access::Allow, ..whole.clone() },
        Rule { provisioning: Provisioning::Updating, ..whole.clone() },
        Rule { provisioning: Provisioning::Failed, ..whole.clone() },
        Rule { sources: vec![peer("203.0.113.0/24")], ..whole.clone() },
        Rule { source_ports: vec![port("1024-65535")], ..whole.clone() },
        Rule { protocol: RuleProtocol::Other("Esp".into()), ..whole.clone() },
        Rule { destinations: vec![peer("10.0.0.0/24")], ..whole },
    ];
    for rule in less {
        assert!(Cells::shut_by(&rule).is_empty(), "{rule:?}");
    }
}

#[test]
fn a_peer_is_written_as_people_write_it() {
    let group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers/Microsoft.Network/applicationSecurityGroups/a";
    let peers = [
        Peer::Any,
        peer("10.0.0.0/8"),
        peer("Storage.WestEurope"),
        Peer::Group(ArmId::parse(group).unwrap()),
        Peer::Unknown("10.0.0.1-10.0.0.9".into()),
    ];
    let written = ["*", "10.0.0.0/8", "Storage.WestEurope", group, "10.0.0.1-10.0.0.9"];
    assert_eq!(peers.map(|peer| peer.to_string()), written);
}

#[test]
fn a_network_is_no_host() {
    let peers = [peer("10.0.0.4"), peer("10.0.0.0/31"), peer("fd00::4"), peer("fd00::/127"), Peer::Any];
    assert_eq!(hosts(&peers), [ip("10.0.0.4"), ip("fd00::4")].into());
}

#[test]
fn a_lock_stands_with_the_same_and_with_what_it_has_released_since() {
    let lock = |release: &[&str]| Lock {
        release: release.iter().map(|text| ip(text)).collect(),
        ..lock(WEB, &[("10.0.0.4", "22")])
    };
    assert!(lock(&[]).stands_with(&lock(&[])));
    assert!(lock(&[]).stands_with(&lock(&["10.0.0.5"])), "nobody asks about it any more");
    assert!(lock(&["10.0.0.5"]).stands_with(&lock(&["10.0.0.5", "10.0.0.6"])));
    assert!(!lock(&["10.0.0.5"]).stands_with(&lock(&[])), "not released yet");
    assert!(!lock(&[]).stands_with(&Lock { cut_sessions: true, ..lock(&[]) }));
    assert!(!lock(&[]).stands_with(&Lock { machines: vec![], ..lock(&["10.0.0.5"]) }));
}

#[test]
fn a_write_is_begun_only_if_its_answer_comes_before_the_deadline() {
    for (text, answer) in [("networkSecurityGroups", 10), ("azureFirewalls", 300)] {
        let id = format!("{}/x", nsg(&[]).firewall.as_str().replace("networkSecurityGroups/nsg-1", text));
        let kind = portcullis::plan::model::FirewallId(ArmId::parse(&id).unwrap()).kind();
        assert_eq!(kind.translates(), text == "azureFirewalls");
        let may = |kind: FirewallKind, duty: Duty, now: i64| {
            grant(0, "203.0.113.7/32", "10.0.0.4", "22", 3600, duty).may_be_opened(at(now), kind)
        };
        let last = 3600 - answer - 1;
        assert!(may(kind, open(3600), last) && !may(kind, open(3600), last + 1), "{text}");
        // And not after the last moment at which one may begin, however much time is left.
        assert!(may(kind, open(60), 60) && !may(kind, open(60), 61), "{text}");
        assert!(!may(kind, Duty::Hold, 0) && !may(kind, Duty::Close { sent: false }, 0));
    }
}

#[test]
fn what_a_gate_first_hears_of_too_late_it_never_opens() {
    let duty = Duty::Open { heard_by: at(60), until: at(600) };
    assert_eq!(duty.taken_on(at(59)), duty);
    assert_eq!(duty.taken_on(at(60)), duty);
    assert_eq!(duty.taken_on(at(61)), Duty::Open { heard_by: at(60), until: at(60) });
    let close = Duty::Close { sent: false };
    assert_eq!((Duty::Hold.taken_on(at(61)), close.taken_on(at(61))), (Duty::Hold, close));
}
