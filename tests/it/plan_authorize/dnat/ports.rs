//! By which port of the firewall a machine is reached, and whose it is.

use super::*;

/// Where packets for port 22 of the machine come in.
fn comes_in(view: &PolicyView) -> Translation {
    on(&plan_of(|_| {}, view), "azureFirewalls")[0].translation.unwrap()
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
