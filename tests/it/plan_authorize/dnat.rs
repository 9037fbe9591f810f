//! Requests for machines behind a firewall that leads packets on: who comes how, by which port, and what is refused.

use std::collections::BTreeSet;

use portcullis::api::{
    AzureEnforcement, Enforcement, FirewallSource, JitAccessRequestStatus, RuleStatus, TranslationStatus, Via,
};
use portcullis::plan::authorize::{FirewallView, GrantPlan, PlannedRule, PortMapping};
use portcullis::plan::model::{
    Access, DnatRule, FirewallHop, Hop, Observed, Peer, Provisioning, ResourceLock, Route, Rule,
    RuleProtocol, Translating, Translation,
};

use super::*;

mod ports;

const PUBLIC: &str = "198.51.100.40";

fn firewall() -> FirewallId {
    FirewallId(id("Microsoft.Network/azureFirewalls/fw"))
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// A machine behind a firewall of the hub, and behind groups.
fn behind(nsgs: &[&str], routes: &[(&str, bool)]) -> Machine {
    let mut machine = machine("web-1", &["10.0.0.4"], nsgs);
    machine.nics[0].addresses[0].hops = vec![Hop::Firewall(FirewallHop {
        id: firewall(),
        address: "10.2.1.4".parse().unwrap(),
        policies: Vec::new(),
        publics: vec![PUBLIC.parse().unwrap()],
        subnets: vec![net("10.2.1.0/26")],
        routes: routes.iter().map(|(to, by_it)| Route { to: net(to), by_it: *by_it }).collect(),
    })];
    machine
}

fn onward(
    name: &str,
    source: &str,
    ports: PortRange,
    to: &str,
    port: u16,
    part_of: Option<&str>,
) -> DnatRule {
    let rule = Rule {
        name: name.into(),
        priority: 200,
        access: Access::Allow,
        protocol: RuleProtocol::Transport(Protocol::Tcp),
        sources: vec![if source == "*" { Peer::Any } else { Peer::Net(net(source)) }],
        source_ports: vec![PortRange::ALL],
        destinations: vec![Peer::host(PUBLIC.parse().unwrap())],
        ports: vec![ports],
        translation: None,
        description: String::new(),
        provisioning: Provisioning::Succeeded,
    };
    let to = Some((to.parse().unwrap(), PortRange::single(port)));
    DnatRule { rule, to, part_of: part_of.map(str::to_owned) }
}

fn hub(translations: Vec<DnatRule>, led: Vec<PortMapping>) -> FirewallView {
    let observed = Observed {
        firewall: firewall(),
        at: now(),
        provisioning: Provisioning::Succeeded,
        rules: Vec::new(),
        outbound_rules: 0,
        outbound_addresses: 0,
        lock: ResourceLock::None,
        cuts_sessions: None,
        translating: Some(Translating { translations, ..Translating::default() }),
    };
    let ours = led.iter().map(|led| led.name.clone()).chain(["x".to_owned()]).collect();
    FirewallView { observed: Some(Arc::new(observed)), problem: None, mappings: led, ours }
}

const ROUTES: [(&str, bool); 2] = [("0.0.0.0/0", true), ("10.0.0.0/16", false)];

fn view_of(machine: Machine, hub: FirewallView, azure: &AzureEnforcement) -> PolicyView {
    let mut view =
        policy("web", vec![port(22, &["0.0.0.0/0"], "3h"), port(5985, &["0.0.0.0/0"], "3h")], vec![machine]);
    if let Ok(terms) = &mut view.terms {
        (terms.via, terms.firewall_source) = (azure.via, azure.firewall_source);
    }
    view.firewalls = Arc::new([(firewall(), hub)].into());
    view
}

fn usual(hub: FirewallView) -> PolicyView {
    view_of(behind(&["nic"], &ROUTES), hub, &AzureEnforcement::default())
}

fn judged(request: &JitAccessRequest, view: &PolicyView) -> Judgement {
    judge(request, std::slice::from_ref(view), &Pipelines::default(), now())
}

fn plan_of(change: impl FnOnce(&mut Value), view: &PolicyView) -> GrantPlan {
    match judged(&request(change), view) {
        Judgement::Allowed(plan) => *plan,
        other => panic!("{other:?}"),
    }
}

fn from(source: &'static str) -> impl FnOnce(&mut Value) {
    move |spec| spec["ports"][0]["sources"] = json!([{"cidr": source}])
}

fn on<'a>(plan: &'a GrantPlan, kind: &str) -> Vec<&'a PlannedRule> {
    plan.rules.iter().filter(|rule| rule.firewall.as_str().contains(kind)).collect()
}

fn sources(rule: &PlannedRule) -> Vec<String> {
    rule.sources.iter().map(ToString::to_string).collect()
}

#[test]
fn from_the_internet_packets_are_led_on_and_the_machine_sees_the_firewall() {
    let plan = plan_of(|_| {}, &usual(hub(vec![], vec![])));
    let (led, filtered) = (on(&plan, "azureFirewalls"), on(&plan, "networkSecurityGroups"));
    assert_eq!((led.len(), filtered.len()), (1, 1), "{plan:#?}");
    let comes_in = led[0].translation.unwrap();
    assert_eq!(comes_in.address.to_string(), PUBLIC);
    assert!((50_000..64_000).contains(&comes_in.port));
    assert_eq!(
        (sources(led[0]), sources(filtered[0])),
        (vec!["203.0.113.7/32".into()], vec!["10.2.1.0/26".into()])
    );
    assert_eq!(plan.connections.len(), 1);
    let shown = &plan.connections[0];
    assert_eq!(
        (shown.address.as_str(), shown.port.as_str(), shown.via.as_str()),
        (PUBLIC, comes_in.port.to_string().as_str(), "fw")
    );
    assert_eq!(plan.lead.as_secs(), 300);
}

#[test]
fn routes_say_who_comes_by_the_firewall() {
    let routes =
        [("0.0.0.0/0", true), ("203.0.113.0/24", false), ("10.0.0.0/16", false), ("10.9.0.0/16", true)];
    let view = view_of(behind(&["nic"], &routes), hub(vec![], vec![]), &AzureEnforcement::default());
    for (source, on_firewall, led, seen) in [
        ("203.0.113.7/32", 0, false, "203.0.113.7/32"),
        ("198.51.100.7/32", 1, true, "10.2.1.0/26"),
        ("10.0.7.7/32", 0, false, "10.0.7.7/32"),
        ("10.9.7.7/32", 1, false, "10.9.7.7/32"),
    ] {
        let plan = plan_of(from(source), &view);
        let hub_rules = on(&plan, "azureFirewalls");
        assert_eq!(hub_rules.len(), on_firewall, "{source}");
        assert_eq!(hub_rules.first().is_some_and(|rule| rule.translation.is_some()), led, "{source}");
        assert_eq!(sources(on(&plan, "networkSecurityGroups")[0]), [seen], "{source}");
    }
}

#[test]
fn what_is_enforced_and_what_the_machine_sees_is_as_the_policy_says() {
    let azure = |via, firewall_source| Enforcement {
        azure: AzureEnforcement { via, firewall_source, ..AzureEnforcement::default() },
        ..Enforcement::default()
    };
    for (via, model, on_hub, seen) in [
        (Via::Auto, FirewallSource::Auto, 1, Some("10.2.1.0/26")),
        (Via::Auto, FirewallSource::Translated, 1, Some("10.2.1.0/26")),
        (Via::Auto, FirewallSource::Original, 1, Some("203.0.113.7/32")),
        (Via::NetworkSecurityGroup, FirewallSource::Auto, 0, Some("203.0.113.7/32")),
        (Via::AzureFirewall, FirewallSource::Auto, 1, None),
    ] {
        let view = view_of(behind(&["nic"], &ROUTES), hub(vec![], vec![]), &azure(via, model).azure);
        let plan = plan_of(|_| {}, &view);
        assert_eq!(on(&plan, "azureFirewalls").len(), on_hub, "{via:?} {model:?}");
        let group = on(&plan, "networkSecurityGroups");
        assert_eq!(
            group.first().map(|rule| sources(rule)),
            seen.map(|seen| vec![seen.to_owned()]),
            "{via:?} {model:?}"
        );
    }
}

#[test]
fn whoever_else_is_led_on_to_the_machine_keeps_it_from_being_opened() {
    let theirs =
        |source: &str, port| onward("theirs/ssh", source, PortRange::single(2222), "10.0.0.4", port, None);
    for (source, port, refused) in
        [("*", 22, true), ("198.51.100.0/24", 22, true), ("203.0.113.7/32", 22, false), ("*", 80, false)]
    {
        let judgement = judged(&request(|_| {}), &usual(hub(vec![theirs(source, port)], vec![])));
        let was = matches!(&judgement, Judgement::Impossible(Reason::ForeignTranslation, why) if why.contains("theirs/ssh"));
        assert_eq!(was, refused, "{source} {port}: {judgement:?}");
        if let Judgement::Impossible(_, why) = judgement {
            assert!(!why.contains(['\\', '\n']) && why.contains("the same subnet"), "{why}");
        }
    }
    // Without a group behind it, nothing is opened for the firewall's subnet.
    let view =
        view_of(behind(&[], &ROUTES), hub(vec![theirs("*", 22)], vec![]), &AzureEnforcement::default());
    assert_eq!(plan_of(|_| {}, &view).rules.len(), 1);
    // What is only called like ours is not.
    let called = onward(
        "portcullis-deadbeef-nat/y",
        "192.0.2.0/24",
        PortRange::single(50_001),
        "10.0.0.4",
        22,
        Some("y"),
    );
    let judgement = judged(&request(|_| {}), &usual(hub(vec![called], vec![])));
    assert!(matches!(judgement, Judgement::Impossible(Reason::ForeignTranslation, _)), "{judgement:?}");
    // A rule of a grant that has ended is waited for.
    let ended = onward(
        "portcullis-00c0ffee-nat/x",
        "192.0.2.0/24",
        PortRange::single(50_001),
        "10.0.0.4",
        22,
        Some("x"),
    );
    assert!(matches!(
        judged(&request(|_| {}), &usual(hub(vec![ended], vec![]))),
        Judgement::Unknown(Reason::Progressing, _)
    ));
}

#[test]
fn what_a_firewall_does_not_do_is_said_by_field() {
    let view = usual(hub(vec![], vec![]));
    let refused = |change: Box<dyn FnOnce(&mut Value)>| match judged(&request(change), &view) {
        Judgement::Refused(reason, why) => (reason, why),
        other => panic!("{other:?}"),
    };
    let (reason, why) = refused(Box::new(from("0.0.0.0/0")));
    assert!(reason == Reason::SourceNotAllowed && why.contains("spec.ports"), "{why}");
    let (reason, why) = refused(Box::new(|spec| spec["duration"] = json!("14m")));
    assert!(reason == Reason::DurationTooShort && why.contains("at least 15m"), "{why}");
    let (reason, why) = refused(Box::new(|spec| spec["notAfter"] = json!("2026-11-22T08:10:00Z")));
    assert!(reason == Reason::DurationTooShort && why.contains("spec.notAfter"), "{why}");
    for (hub, words) in [
        (FirewallView { observed: None, ..FirewallView::default() }, "has not been read yet"),
        (
            FirewallView {
                problem: Some((Reason::CloudUnavailable, "is away".into())),
                ..FirewallView::default()
            },
            "is away",
        ),
    ] {
        let waits = judged(&request(|_| {}), &usual(hub));
        assert!(matches!(&waits, Judgement::Unknown(_, why) if why.contains(words)), "{waits:?}");
    }
    let barred =
        FirewallView { problem: Some((Reason::NotPermitted, "may not".into())), ..FirewallView::default() };
    let fails = judged(&request(|_| {}), &usual(barred));
    assert!(matches!(&fails, Judgement::Impossible(Reason::NotPermitted, _)), "{fails:?}");
    let mut away = behind(&["nic"], &ROUTES);
    away.nics[0].addresses[0].hops =
        vec![Hop::Unread { address: "10.2.1.4".parse().unwrap(), why: "it did not answer".into() }];
    let waits =
        judged(&request(|_| {}), &view_of(away, FirewallView::default(), &AzureEnforcement::default()));
    assert!(matches!(waits, Judgement::Unknown(Reason::CloudUnavailable, _)), "{waits:?}");
}

#[test]
fn each_port_is_shown_as_it_is_reached() {
    let both = |spec: &mut Value| {
        let port = |port: u16, from: &str| json!({"port": port, "sources": [{"cidr": from}]});
        spec["ports"] = json!([port(22, "203.0.113.7/32"), port(5985, "203.0.113.7/32")]);
    };
    let plan = plan_of(both, &usual(hub(vec![], vec![])));
    let shown: Vec<(&str, &str)> =
        plan.connections.iter().map(|it| (it.via.as_str(), it.port.as_str())).collect();
    let led: BTreeMap<u16, String> = on(&plan, "azureFirewalls")
        .into_iter()
        .map(|rule| (rule.ports[0].first(), rule.translation.unwrap().port.to_string()))
        .collect();
    assert_eq!(shown, [("fw", led[&22].as_str()), ("fw", led[&5985].as_str())]);
    // Who is near is answered past the firewall, who is far by way of it: both ways are shown.
    let mixed = |spec: &mut Value| {
        spec["ports"][0]["sources"] = json!([{"cidr": "203.0.113.7/32"}, {"cidr": "10.0.7.7/32"}]);
    };
    let plan = plan_of(mixed, &usual(hub(vec![], vec![])));
    let shown: Vec<(&str, &str)> =
        plan.connections.iter().map(|it| (it.via.as_str(), it.address.as_str())).collect();
    assert_eq!(shown, [("fw", PUBLIC), ("Direct", "10.0.0.4")]);
}

/// Rules of both are written to the policy; whoever connects sees the firewall that leads on.
#[test]
fn of_two_firewalls_with_one_policy_the_one_that_leads_on_is_shown() {
    let shared = id("Microsoft.Network/firewallPolicies/shared");
    let mut machine = behind(&["nic"], &ROUTES);
    let hops = &mut machine.nics[0].addresses[0].hops;
    let Hop::Firewall(mut leads) = hops.remove(0) else { panic!("no firewall") };
    leads.policies = vec![shared.clone()];
    let mut other = leads.clone();
    other.id = FirewallId(id("Microsoft.Network/azureFirewalls/other"));
    other.address = "10.2.1.5".parse().unwrap();
    other.publics = vec!["198.51.100.41".parse().unwrap()];
    other.routes = vec![Route { to: net("10.9.0.0/16"), by_it: true }];
    hops.extend([Hop::Firewall(other), Hop::Firewall(leads)]);
    let mut view = view_of(machine, FirewallView::default(), &AzureEnforcement::default());
    view.firewalls = Arc::new([(FirewallId(shared), hub(vec![], vec![]))].into());
    let plan = plan_of(|_| {}, &view);
    assert_eq!(on(&plan, "firewallPolicies").len(), 1, "{plan:#?}");
    let shown: Vec<(&str, &str)> =
        plan.connections.iter().map(|it| (it.via.as_str(), it.address.as_str())).collect();
    assert_eq!(shown, [("fw", PUBLIC)]);
}
