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
fn the_port_is_the_same_for_every_grant_and_another_where_somebody_has_it() {
    let first = on(&plan_of(|_| {}, &usual(hub(vec![], vec![]))), "azureFirewalls")[0].translation.unwrap();
    let again =
        on(&plan_of(from("198.51.100.7/32"), &usual(hub(vec![], vec![]))), "azureFirewalls")[0].translation;
    assert_eq!(again, Some(first));
    let taken = |to: &str, part_of| onward("theirs/web", "*", PortRange::single(first.port), to, 80, part_of);
    let next = plan_of(|_| {}, &usual(hub(vec![taken("10.0.0.9", None)], vec![])));
    let next = on(&next, "azureFirewalls")[0].translation.unwrap();
    assert_ne!(next, first);
    // Of another grant that leads to the same port of the same machine it is shared.
    let led = PortMapping {
        from: first,
        to: "10.0.0.4".parse().unwrap(),
        ports: vec![PortRange::single(22)],
        name: "portcullis-other".into(),
        closing: false,
    };
    let own = DnatRule {
        to: Some(("10.0.0.4".parse().unwrap(), PortRange::single(22))),
        ..taken("10.0.0.4", Some("portcullis-other"))
    };
    let shared = plan_of(|_| {}, &usual(hub(vec![own], vec![led.clone()])));
    assert_eq!(on(&shared, "azureFirewalls")[0].translation, Some(first));
    // About to be written to another machine, it is taken, too.
    let elsewhere = PortMapping { to: "10.0.0.9".parse().unwrap(), ..led };
    let moved = plan_of(|_| {}, &usual(hub(vec![], vec![elsewhere])));
    assert_ne!(on(&moved, "azureFirewalls")[0].translation, Some(first));
    let all = PortRange::new(50_000, 63_999).unwrap();
    let full = usual(hub(vec![onward("theirs/all", "*", all, "10.0.0.9", 80, None)], vec![]));
    match judged(&request(|_| {}), &full) {
        Judgement::Impossible(Reason::FirewallUnfit, why) => {
            assert!(why.contains("no port from 50000 to 63999 is free"), "{why}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_row_of_ports_comes_in_by_a_row_of_ports() {
    let wanted = |spec: &mut Value| {
        spec["ports"][0] = json!({"port": 5985, "endPort": 5986, "sources": [{"cidr": "203.0.113.7/32"}]});
    };
    let mut view = usual(hub(vec![], vec![]));
    if let Ok(terms) = &mut view.terms {
        terms.ports[1].range = PortRange::new(5985, 5990).unwrap();
    }
    let plan = plan_of(wanted, &view);
    let led = on(&plan, "azureFirewalls")[0];
    let first = led.translation.unwrap().port;
    assert_eq!(plan.connections[0].port, format!("{first}-{}", first + 1));
    assert_eq!(led.ports, [PortRange::new(5985, 5986).unwrap()]);
}

/// Where packets for port 22 of the machine come in.
fn comes_in(view: &PolicyView) -> Translation {
    on(&plan_of(|_| {}, view), "azureFirewalls")[0].translation.unwrap()
}

#[test]
fn machines_begin_to_look_for_a_port_far_from_each_other() {
    let ports: BTreeSet<u16> = (1..=40)
        .map(|last| {
            let mut machine = behind(&["nic"], &ROUTES);
            machine.nics[0].addresses[0].ip = format!("10.0.0.{last}").parse().unwrap();
            comes_in(&view_of(machine, hub(vec![], vec![]), &AzureEnforcement::default())).port
        })
        .collect();
    assert!(ports.len() > 35, "{ports:?}");
    assert!(ports.last().unwrap() - ports.first().unwrap() > 7_000, "{ports:?}");
}

/// Grants that are about to be written take their ports, each of a row and no other.
#[test]
fn a_port_that_another_grant_takes_is_not_given_twice() {
    let free = comes_in(&usual(hub(vec![], vec![])));
    for (begins, ports, address, taken) in [
        (0, "80", PUBLIC, true),
        (-1, "80", PUBLIC, false),
        (-1, "80-81", PUBLIC, true),
        (-3, "80-82", PUBLIC, false),
        (-2, "80-82", PUBLIC, true),
        (1, "80", PUBLIC, false),
        (1, "80-81", PUBLIC, false),
        (0, "80", "198.51.100.41", false),
    ] {
        let other = PortMapping {
            from: Translation {
                address: address.parse().unwrap(),
                port: free.port.checked_add_signed(begins).unwrap(),
            },
            to: "10.0.0.9".parse().unwrap(),
            ports: vec![ports.parse().unwrap()],
            name: "portcullis-other".into(),
            closing: false,
        };
        let found = comes_in(&usual(hub(vec![], vec![other])));
        assert_eq!(found != free, taken, "{ports} from {begins} on");
    }
}

#[test]
fn a_row_of_ports_ends_before_the_last_port_that_azure_takes() {
    // Everything is taken but the last two.
    let others = PortRange::new(50_000, 63_997).unwrap();
    let mut view = usual(hub(vec![onward("theirs/all", "*", others, "10.0.0.9", 80, None)], vec![]));
    view.terms.as_mut().unwrap().ports[1].range = PortRange::new(5985, 6100).unwrap();
    let row = |last: i32| {
        move |spec: &mut Value| {
            let sources = json!([{"cidr": "203.0.113.7/32"}]);
            spec["ports"][0] = json!({"port": 5985, "endPort": last, "sources": sources});
        }
    };
    let two = plan_of(row(5986), &view);
    assert_eq!(on(&two, "azureFirewalls")[0].translation.unwrap().port, 63_998);
    let three = judged(&request(row(5987)), &view);
    assert!(matches!(three, Judgement::Impossible(Reason::FirewallUnfit, _)), "{three:?}");
    // A firewall leads on port by port: there is a limit to that, too.
    let mut free = usual(hub(vec![], vec![]));
    free.terms.as_mut().unwrap().ports[1].range = PortRange::new(5985, 6100).unwrap();
    assert_eq!(on(&plan_of(row(5985 + 31), &free), "azureFirewalls").len(), 1);
    let many = judged(&request(row(5985 + 32)), &free);
    assert!(matches!(many, Judgement::Refused(Reason::TooLarge, _)), "{many:?}");
}

#[test]
fn machines_of_one_request_take_no_port_twice() {
    // Everything is taken but the last two.
    let others = PortRange::new(50_000, 63_997).unwrap();
    let hub = hub(vec![onward("theirs/all", "*", others, "10.0.0.9", 80, None)], vec![]);
    let also = |n: u8| {
        let mut other = machine(&format!("web-{n}"), &[&format!("10.0.0.{}", 3 + n)], &["nic"]);
        other.nics[0].addresses[0].hops = behind(&[], &ROUTES).nics[0].addresses[0].hops.clone();
        other
    };
    let machines = vec![behind(&["nic"], &ROUTES), also(2), also(3)];
    let mut view = policy("web", vec![port(22, &["0.0.0.0/0"], "3h")], machines);
    view.firewalls = Arc::new([(firewall(), hub)].into());
    let of = |names: &[&str]| {
        let targets: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        move |spec: &mut Value| spec["targets"] = json!(targets)
    };
    let plan = plan_of(of(&["web-1", "web-2"]), &view);
    let ports: BTreeSet<u16> =
        on(&plan, "azureFirewalls").iter().map(|rule| rule.translation.unwrap().port).collect();
    assert_eq!(ports, [63_998, 63_999].into());
    let three = judged(&request(of(&["web-1", "web-2", "web-3"])), &view);
    assert!(matches!(three, Judgement::Impossible(Reason::FirewallUnfit, _)), "{three:?}");
}

/// Its own rule keeps nobody out where it leads the same way, by what this program knows of it under that name.
#[test]
fn a_rule_that_only_resembles_one_of_a_grant_keeps_its_port() {
    let free = comes_in(&usual(hub(vec![], vec![])));
    let mapping = |name: &str, from: u16, to: &str| PortMapping {
        from: Translation { address: PUBLIC.parse().unwrap(), port: from },
        to: to.parse().unwrap(),
        ports: vec![PortRange::single(22)],
        name: name.into(),
        closing: false,
    };
    let rule = |part_of| {
        onward(part_of, "192.0.2.0/24", PortRange::single(free.port), "10.0.0.9", 22, Some(part_of))
    };
    for (mappings, taken) in [
        // Moved by somebody to the port that is looked for.
        (vec![mapping("portcullis-a", free.port + 99, "10.0.0.9")], true),
        // Beside one of another name that leads that way.
        (vec![mapping("portcullis-b", free.port, "10.0.0.4")], true),
        (vec![mapping("portcullis-a", free.port, "10.0.0.4")], false),
    ] {
        let found = comes_in(&usual(hub(vec![rule("portcullis-a")], mappings.clone())));
        assert_eq!(found != free, taken, "{mappings:?}");
    }
}

#[test]
fn a_rule_of_a_grant_that_goes_on_keeps_nobody_out() {
    let part_of = "portcullis-00c0ffee-nat/x";
    let live = |closing| PortMapping {
        from: Translation { address: PUBLIC.parse().unwrap(), port: 50_001 },
        to: "10.0.0.4".parse().unwrap(),
        ports: vec![PortRange::single(22)],
        name: part_of.into(),
        closing,
    };
    let standing =
        || onward(part_of, "192.0.2.0/24", PortRange::single(50_001), "10.0.0.4", 22, Some(part_of));
    let judgement = |closing| judged(&request(|_| {}), &usual(hub(vec![standing()], vec![live(closing)])));
    assert!(matches!(judgement(false), Judgement::Allowed(_)));
    assert!(matches!(judgement(true), Judgement::Unknown(Reason::Progressing, _)));
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

/// A live grant keeps the port that its status says, also where another would be chosen by now.
#[test]
fn a_live_grant_keeps_its_port() {
    let view =
        usual(hub(vec![onward("theirs/web", "*", PortRange::single(51_234), "10.0.0.9", 80, None)], vec![]));
    let mut request = request(|_| {});
    let plan = match judged(&request, &view) {
        Judgement::Allowed(plan) => plan,
        other => panic!("{other:?}"),
    };
    request.status = Some(JitAccessRequestStatus {
        granted_at: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(now())),
        machines: plan.machines.clone(),
        rules: vec![RuleStatus {
            firewall: firewall().to_string(),
            protocol: "TCP".into(),
            destinations: vec!["10.0.0.4".into()],
            ports: vec!["22".into()],
            translation: Some(TranslationStatus { address: PUBLIC.into(), port: 51_234 }),
            ..RuleStatus::default()
        }],
        ..JitAccessRequestStatus::default()
    });
    let kept = |request: &JitAccessRequest| match judged(request, &view) {
        Judgement::Allowed(plan) => on(&plan, "azureFirewalls")[0].translation.unwrap(),
        other => panic!("{other:?}"),
    };
    let own = Translation { address: PUBLIC.parse().unwrap(), port: 51_234 };
    assert_eq!(kept(&request), own);
    // What it says of another firewall, machine, port or protocol is not of this one.
    type Change = fn(&mut RuleStatus);
    let changes: [Change; 4] = [
        |rule| rule.firewall = id("Microsoft.Network/azureFirewalls/other").to_string(),
        |rule| rule.destinations = vec!["10.0.0.5".into()],
        |rule| rule.ports = vec!["23".into()],
        |rule| rule.protocol = "UDP".into(),
    ];
    for change in changes {
        let mut other = request.clone();
        change(&mut other.status.as_mut().unwrap().rules[0]);
        assert_ne!(kept(&other), own, "{other:?}");
    }
}
