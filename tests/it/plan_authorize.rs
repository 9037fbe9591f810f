//! Requests against the terms of policies: what is refused, in which words, and which rules the rest would get.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv4Net};
use jiff::{SignedDuration, Timestamp};
use portcullis::api::values::{ArmId, PortRange, Protocol};
use portcullis::api::{
    AzureVirtualMachine, JitAccessRequest, JitAccessRequestStatus, JitPolicySpec, Mode, PolicyPort,
    PolicyTarget, Reason, Source, UserInfo,
};
use portcullis::plan::authorize::{Judgement, PolicyView, judge};
use portcullis::plan::model::{Address, FirewallId, Machine, NetworkView, Nic, Os, Unsupported};
use portcullis::plan::people::Pipelines;
use portcullis::plan::terms::Terms;
use proptest::prelude::*;
use serde_json::{Value, json};

mod dnat;
mod limits;
mod live;
mod unread;

const GROUP: &str = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web/providers";

fn id(text: &str) -> ArmId {
    ArmId::parse(&format!("{GROUP}/{text}")).unwrap()
}

fn vm(name: &str) -> ArmId {
    id(&format!("Microsoft.Compute/virtualMachines/{name}"))
}

pub(crate) fn machine(name: &str, addresses: &[&str], nsgs: &[&str]) -> Machine {
    let path: Vec<FirewallId> = nsgs
        .iter()
        .map(|nsg| FirewallId(id(&format!("Microsoft.Network/networkSecurityGroups/{nsg}"))))
        .collect();
    let address = |text: &&str| Address {
        ip: text.parse().unwrap(),
        public: None,
        has_public: false,
        path: path.clone(),
        hops: Vec::new(),
        groups: Vec::new(),
        network: NetworkView::default(),
    };
    Machine {
        id: vm(name),
        vm_id: format!("id-of-{name}"),
        os: Os::Linux,
        tags: BTreeMap::new(),
        nics: vec![Nic {
            id: id(&format!("Microsoft.Network/networkInterfaces/{name}")),
            addresses: addresses.iter().map(address).collect(),
        }],
    }
}

pub(crate) fn port(port: i32, sources: &[&str], max: &str) -> PolicyPort {
    PolicyPort {
        port,
        allowed_sources: sources.iter().map(|cidr| Source { cidr: (*cidr).into() }).collect(),
        max_duration: Some(max.into()),
        ..PolicyPort::default()
    }
}

pub(crate) fn policy(name: &str, ports: Vec<PolicyPort>, machines: Vec<Machine>) -> PolicyView {
    let spec = JitPolicySpec {
        targets: machines
            .iter()
            .map(|machine| PolicyTarget {
                name: machine.id.name().to_owned(),
                azure_virtual_machine: Some(AzureVirtualMachine { id: machine.id.as_str().into() }),
                azure_scope: None,
            })
            .collect(),
        ports,
        ..JitPolicySpec::default()
    };
    let machines: Arc<BTreeMap<String, Vec<_>>> = Arc::new(
        machines
            .into_iter()
            .map(|machine| (machine.id.name().to_owned(), vec![(machine.id.clone(), Ok(machine))]))
            .collect(),
    );
    PolicyView {
        name: name.into(),
        uid: format!("uid-of-{name}"),
        generation: 1,
        deleting: false,
        terms: Terms::parse(&spec),
        barred: None,
        has_locked: false,
        latest: Some(Arc::clone(&machines)),
        machines: Some(machines),
        read_at: now(),
        firewalls: std::sync::Arc::default(),
    }
}

fn web() -> PolicyView {
    policy(
        "web",
        vec![port(22, &["203.0.113.0/24"], "3h")],
        vec![machine("web-1", &["10.0.0.4"], &["subnet", "nic"])],
    )
}

fn request(change: impl FnOnce(&mut Value)) -> JitAccessRequest {
    let mut spec = json!({
        "policyRef": {"name": "web"}, "targets": [{"name": "web-1"}], "duration": "1h",
        "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}],
    });
    change(&mut spec);
    let mut request = JitAccessRequest::new("one", serde_json::from_value(spec).unwrap());
    request.metadata.uid = Some("uid-of-one".into());
    request.spec.requester.get_or_insert(UserInfo { username: "alice".into(), ..UserInfo::default() });
    request
}

fn now() -> Timestamp {
    "2026-11-22T08:00:00Z".parse().unwrap()
}

fn refusal(change: impl FnOnce(&mut Value), policies: &[PolicyView]) -> (Reason, String) {
    match judge(&request(change), policies, &Pipelines::default(), now()) {
        Judgement::Refused(reason, message) => (reason, message),
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn what_a_policy_does_not_allow_is_refused_in_words_that_say_what_would_be_right() {
    type Case = (Box<dyn FnOnce(&mut Value)>, Reason, &'static str);
    let set = |pointer: &'static str, value: Value| -> Box<dyn FnOnce(&mut Value)> {
        Box::new(move |spec: &mut Value| *spec.pointer_mut(pointer).unwrap() = value)
    };
    let add = |key: &'static str, value: Value| -> Box<dyn FnOnce(&mut Value)> {
        Box::new(move |spec: &mut Value| spec[key] = value)
    };
    let cases: Vec<Case> = vec![
        (set("/ports/0/port", json!(3389)), Reason::PortNotAllowed, "22/Any"),
        (set("/ports/0/port", json!(0)), Reason::InvalidSpec, "from 1 to 65535"),
        (set("/ports/0/port", json!(65536)), Reason::InvalidSpec, "from 1 to 65535"),
        (
            set("/ports/0/sources/0/cidr", json!("198.51.100.0/24")),
            Reason::SourceNotAllowed,
            "203.0.113.0/24",
        ),
        (set("/ports/0/sources/0/cidr", json!("203.0.0.0/16")), Reason::SourceNotAllowed, "203.0.113.0/24"),
        (set("/ports/0/sources/0/cidr", json!("203.0.113.7/24")), Reason::InvalidSpec, "203.0.113.7/32"),
        (set("/duration", json!("4h")), Reason::DurationTooLong, "3h"),
        (set("/duration", json!("29s")), Reason::InvalidSpec, "at least 30s"),
        (set("/duration", json!("3 hours")), Reason::InvalidSpec, "1h30m"),
        (set("/targets/0/name", json!("db-1")), Reason::TargetNotAllowed, "web-1"),
        (add("allTargets", json!(true)), Reason::InvalidSpec, "not both"),
        (add("onBehalfOf", json!("bob")), Reason::RequesterNotAllowed, "spec.notAfter is required"),
        (add("notAfter", json!("soon")), Reason::InvalidSpec, "2026-11-22T08:00:00Z"),
        (add("requester", json!({"username": ""})), Reason::RequesterNotAllowed, "spec.requester is missing"),
        (
            add("requester", json!({"username": "system:serviceaccount:ci:deployer"})),
            Reason::RequesterNotAllowed,
            "spec.notAfter is required",
        ),
        (
            set("/targets/0", json!({"name": "web-1", "machine": "web-2"})),
            Reason::TargetNotAllowed,
            "has no such machine",
        ),
    ];
    for (change, reason, words) in cases {
        let (found, message) = refusal(change, &[web()]);
        assert_eq!(found, reason, "{message}");
        assert!(message.contains(words), "{message:?} does not say {words:?}");
    }
}

#[test]
fn both_firewalls_of_the_path_get_a_rule_and_only_exact_cross_products_fold() {
    let mut view = web();
    view.terms = policy(
        "web",
        vec![port(22, &[], "3h"), port(5985, &[], "3h")],
        vec![machine("web-1", &["10.0.0.4"], &[])],
    )
    .terms;
    let request = request(|spec| {
        spec["ports"] = json!([
            {"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]},
            {"port": 5985, "sources": [{"cidr": "198.51.100.1/32"}]},
        ]);
    });
    let Judgement::Allowed(plan) = judge(&request, &[view], &Pipelines::default(), now()) else {
        panic!("not allowed")
    };
    assert_eq!(plan.rules.len(), 4, "two ports for two sources on two firewalls");
    for rule in &plan.rules {
        let wanted = if rule.ports == [PortRange::single(22)] { "203.0.113.7/32" } else { "198.51.100.1/32" };
        assert_eq!(rule.sources, [wanted.parse::<IpNet>().unwrap()]);
        assert_eq!(rule.protocol, Protocol::Tcp);
    }
}

#[test]
fn every_policy_that_locks_the_port_has_to_agree() {
    let strict = policy(
        "strict",
        vec![port(22, &["203.0.113.7/32"], "30m")],
        vec![machine("web-1", &["10.0.0.4"], &["subnet"])],
    );
    let (reason, message) = refusal(|_| {}, &[web(), strict.clone()]);
    assert_eq!(reason, Reason::DurationTooLong);
    assert!(message.contains("strict"), "{message}");
    let judged = judge(
        &request(|spec| spec["duration"] = json!("30m")),
        &[web(), strict.clone()],
        &Pipelines::default(),
        now(),
    );
    let Judgement::Allowed(plan) = judged else { panic!("{judged:?}") };
    assert_eq!(plan.policies.len(), 2);
    // One that only audits, or locks another port, has no say.
    let mut audit = strict;
    audit.terms.as_mut().unwrap().mode = Mode::Audit;
    let other =
        policy("other", vec![port(3389, &[], "30m")], vec![machine("web-1", &["10.0.0.4"], &["subnet"])]);
    assert!(matches!(
        judge(&request(|_| {}), &[web(), audit, other], &Pipelines::default(), now()),
        Judgement::Allowed(_)
    ));
}

#[test]
fn what_is_granted_goes_on_for_as_long_as_the_strictest_policy_allows() {
    let mut request = request(|spec| {
        spec["ports"] = json!([
            {"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]},
            {"port": 5985, "sources": [{"cidr": "203.0.113.7/32"}]},
        ]);
    });
    let machines = || vec![machine("web-1", &["10.0.0.4"], &["subnet"])];
    let named =
        |one: &str, other: &str| policy("web", vec![port(22, &[], one), port(5985, &[], other)], machines());
    let strict = |most: &str| policy("strict", vec![port(22, &[], most)], machines());
    let judged = |request: &JitAccessRequest, policies: &[PolicyView]| {
        judge(request, policies, &Pipelines::default(), now())
    };
    assert!(matches!(
        judged(&request, &[named("3h", "30m")]),
        Judgement::Refused(Reason::DurationTooLong, _)
    ));
    let Judgement::Allowed(plan) = judged(&request, &[named("3h", "2h")]) else { panic!() };
    let hash = plan.hash;
    let mut status = JitAccessRequestStatus { machines: plan.machines, ..Default::default() };
    status.granted_at = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now()));
    request.status = Some(status);
    for (policies, minutes, by) in [
        (vec![named("3h", "2h")], 60, None),
        (vec![named("1h", "1h")], 60, None),
        (vec![named("3h", "30m")], 30, Some("JitPolicy web (generation 1) allows 30m for port 5985")),
        (vec![named("20m", "30m")], 20, Some("JitPolicy web (generation 1) allows 20m for port 22")),
        (vec![named("30m", "20m")], 20, Some("JitPolicy web (generation 1) allows 20m for port 5985")),
        (vec![named("30m", "30m")], 30, Some("JitPolicy web (generation 1) allows 30m for port 22")),
        (
            vec![named("3h", "30m"), strict("10m")],
            10,
            Some("JitPolicy strict (generation 1) allows 10m for port 22"),
        ),
    ] {
        let Judgement::Allowed(plan) = judged(&request, &policies) else { panic!("{minutes}") };
        assert_eq!(plan.duration, std::time::Duration::from_secs(minutes * 60));
        assert_eq!(plan.shortened_by.as_deref(), by);
        assert!(policies.len() > 1 || plan.hash == hash, "it is the same plan");
    }
    // What is no longer allowed at all is closed as before.
    let narrower =
        policy("web", vec![port(22, &["198.51.100.0/24"], "3h"), port(5985, &[], "3h")], machines());
    assert!(matches!(judged(&request, &[narrower]), Judgement::Refused(Reason::SourceNotAllowed, _)));
    let fewer = policy("web", vec![port(22, &[], "3h")], machines());
    assert!(matches!(judged(&request, &[fewer]), Judgement::Refused(Reason::PortNotAllowed, _)));
}

#[test]
fn what_is_missing_or_held_makes_it_wait() {
    let judged = |policies: &[PolicyView]| judge(&request(|_| {}), policies, &Pipelines::default(), now());
    assert!(matches!(judged(&[]), Judgement::Held(Reason::PolicyNotFound, _)));
    let change = |change: fn(&mut PolicyView)| {
        let mut view = web();
        change(&mut view);
        [view]
    };
    assert!(matches!(judged(&change(|p| p.deleting = true)), Judgement::Held(Reason::PolicyDeleted, _)));
    assert!(matches!(
        judged(&change(|p| p.terms.as_mut().unwrap().suspend = true)),
        Judgement::Held(Reason::Suspended, _)
    ));
    assert!(matches!(judged(&change(|p| p.machines = None)), Judgement::Unknown(..)));
    let barred = change(|p| p.barred = Some((Reason::ScopeNotAllowed, "no".into())));
    assert!(matches!(judged(&barred), Judgement::Held(Reason::ScopeNotAllowed, _)));
    // One that was edited to be invalid still has its say over what it locks.
    let mut broken =
        policy("broken", vec![port(22, &[], "3h")], vec![machine("web-1", &["10.0.0.4"], &["nic"])]);
    broken.terms = Terms::parse(&JitPolicySpec::default());
    assert!(matches!(judged(&[web(), broken.clone()]), Judgement::Held(Reason::InvalidSpec, _)));
    broken.machines = None;
    assert!(matches!(judged(&[web(), broken.clone()]), Judgement::Allowed(_)), "it never locked anything");
    broken.has_locked = true;
    assert!(matches!(judged(&[web(), broken]), Judgement::Unknown(..)));
}

#[test]
fn a_machine_that_cannot_be_reached_or_locked_makes_it_impossible() {
    let with = |machine: Machine| {
        judge(&request(|_| {}), &[policy("web", vec![], vec![machine])], &Pipelines::default(), now())
    };
    assert!(matches!(with(machine("web-1", &[], &["nic"])), Judgement::Impossible(Reason::NoAddress, _)));
    assert!(matches!(
        with(machine("web-1", &["10.0.0.4"], &[])),
        Judgement::Impossible(Reason::NoFirewall, _)
    ));
    assert!(matches!(
        with(machine("web-1", &["fd00::4"], &["nic"])),
        Judgement::Impossible(Reason::NoAddress, _)
    ));
    let mut gone = web();
    let why = Unsupported { reason: Reason::VirtualMachineNotFound, message: "gone".into() };
    gone.machines = Some(Arc::new(BTreeMap::from([("web-1".to_owned(), vec![(vm("web-1"), Err(why))])])));
    assert!(matches!(
        judge(&request(|_| {}), &[gone], &Pipelines::default(), now()),
        Judgement::Impossible(Reason::VirtualMachineNotFound, _)
    ));
}

#[test]
fn the_hash_changes_with_all_that_an_approval_is_an_approval_of() {
    let hash = |request: &JitAccessRequest, policy: PolicyView| match judge(
        request,
        &[policy],
        &Pipelines::default(),
        now(),
    ) {
        Judgement::Allowed(plan) => plan.hash,
        other => panic!("{other:?}"),
    };
    let base = hash(&request(|_| {}), web());
    assert_eq!(base.len(), 64);
    assert_eq!(base, hash(&request(|_| {}), web()));
    let mut others = vec![
        hash(&request(|spec| spec["duration"] = json!("2h")), web()),
        hash(&request(|spec| spec["ports"][0]["sources"][0]["cidr"] = json!("203.0.113.8/32")), web()),
        hash(&request(|spec| spec["notAfter"] = json!("2026-11-22T10:00:00Z")), web()),
    ];
    let mut other = request(|_| {});
    other.metadata.uid = Some("another".into());
    others.push(hash(&other, web()));
    for (addresses, nsgs) in [(["10.0.0.5"], ["subnet", "nic"]), (["10.0.0.4"], ["subnet", "other"])] {
        let view = policy(
            "web",
            vec![port(22, &["203.0.113.0/24"], "3h")],
            vec![machine("web-1", &addresses, &nsgs)],
        );
        others.push(hash(&request(|_| {}), view));
    }
    let mut again = web();
    again.uid = "made-again".into();
    others.push(hash(&request(|_| {}), again));
    others.push(base);
    let count = others.len();
    others.sort();
    others.dedup();
    assert_eq!(others.len(), count, "two different plans have one hash");
}

#[test]
fn a_hard_end_within_the_horizon_lets_a_pipeline_ask() {
    let ask = |seconds: i64| {
        request(move |spec| {
            spec["requester"] = json!({"username": "system:serviceaccount:ci:deployer"});
            spec["notAfter"] = json!((now() + SignedDuration::from_secs(seconds)).to_string());
        })
    };
    let horizon = 168 * 3600;
    for within in [2 * 3600, horizon] {
        let judged = judge(&ask(within), &[web()], &Pipelines::default(), now());
        assert!(matches!(judged, Judgement::Allowed(_)), "{within}: {judged:?}");
    }
    assert!(matches!(
        judge(&ask(horizon + 1), &[web()], &Pipelines::default(), now()),
        Judgement::Refused(Reason::TooLarge, _)
    ));
}

fn net() -> impl Strategy<Value = Ipv4Net> {
    // A small corner of the address space, so that networks meet.
    (0u32..64, 24u8..=32).prop_map(|(low, prefix)| {
        Ipv4Net::new(Ipv4Addr::from(0xCB00_7100 + low * 4), prefix).unwrap().trunc()
    })
}

#[test]
fn an_address_that_is_not_the_machines_alone_is_never_opened() {
    let mut policies = [web()];
    let machines = Arc::make_mut(policies[0].machines.as_mut().unwrap());
    for (_, machine) in machines.get_mut("web-1").unwrap() {
        let address = &mut machine.as_mut().unwrap().nics[0].addresses[0];
        address.network.twin = Some("subnet filters theirs as well".into());
    }
    match judge(&request(|_| {}), &policies, &Pipelines::default(), now()) {
        Judgement::Impossible(Reason::AddressNotUnique, message) => {
            assert!(message.contains("10.0.0.4") && message.contains("theirs"), "{message}");
        }
        other => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn a_source_is_allowed_just_when_every_address_of_it_is(
        allowed in prop::collection::vec(net(), 1..5),
        asked in prop::collection::vec(net(), 1..4),
    ) {
        let ports = vec![port(22, &allowed.iter().map(ToString::to_string).collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>(), "3h")];
        let view = policy("web", ports, vec![machine("web-1", &["10.0.0.4"], &["nic"])]);
        let request = request(|spec| {
            spec["ports"][0]["sources"] =
                asked.iter().map(|net| json!({"cidr": net.to_string()})).collect();
        });
        let expected = asked.iter().all(|net| net.hosts_all().all(|host| allowed.iter().any(|net| net.contains(&host))));
        let judged = judge(&request, &[view], &Pipelines::default(), now());
        match &judged {
            Judgement::Allowed(plan) => {
                prop_assert!(expected);
                // And what is granted is what was asked for, address by address.
                let granted: Vec<&IpNet> = plan.rules.iter().flat_map(|rule| &rule.sources).collect();
                for host in (0u32..256).map(|low| Ipv4Addr::from(0xCB00_7100 + low)) {
                    let in_grant = granted.iter().any(|net| net.contains(&IpAddr::V4(host)));
                    prop_assert_eq!(in_grant, asked.iter().any(|net| net.contains(&host)), "{}", host);
                }
            }
            Judgement::Refused(Reason::SourceNotAllowed, _) => prop_assert!(!expected),
            other => prop_assert!(false, "{other:?}"),
        }
    }
}

/// Every address of a network, the first and last included.
trait AllHosts {
    fn hosts_all(&self) -> Box<dyn Iterator<Item = Ipv4Addr>>;
}

impl AllHosts for Ipv4Net {
    fn hosts_all(&self) -> Box<dyn Iterator<Item = Ipv4Addr>> {
        let (first, last) = (u32::from(self.network()), u32::from(self.broadcast()));
        Box::new((first..=last).map(Ipv4Addr::from))
    }
}
