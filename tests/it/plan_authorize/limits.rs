//! How much one request may take, to the last machine, rule, policy, address and source, and what it has to say.

use portcullis::api::PinnedMachine;
use portcullis::plan::authorize::{MAX_MACHINES, MAX_RULES};

use super::*;

fn judged(request: &JitAccessRequest, policies: &[PolicyView]) -> Judgement {
    judge(request, policies, &Pipelines::default(), now())
}

fn is_too_large(judgement: &Judgement) -> bool {
    match judgement {
        Judgement::Allowed(_) => false,
        Judgement::Refused(Reason::TooLarge, _) | Judgement::Impossible(Reason::TooLarge, _) => true,
        other => panic!("{other:?}"),
    }
}

fn ssh(machines: Vec<Machine>) -> PolicyView {
    policy("web", vec![port(22, &["203.0.113.0/24"], "3h")], machines)
}

fn all_targets(spec: &mut Value) {
    spec["targets"] = json!([]);
    spec["allTargets"] = json!(true);
}

#[test]
fn a_request_takes_no_more_machines_and_rules_than_its_status_holds() {
    // Each behind as many groups of its own.
    let machines = |count: usize, groups: usize| {
        let one = |n: usize| {
            let groups: Vec<String> = (0..groups).map(|group| format!("nsg-{n}-{group}")).collect();
            let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
            machine(&format!("web-{n}"), &[&format!("10.0.{n}.4")], &groups)
        };
        judged(&request(all_targets), &[ssh((0..count).map(one).collect())])
    };
    assert!(!is_too_large(&machines(MAX_MACHINES, 1)));
    assert!(is_too_large(&machines(MAX_MACHINES + 1, 1)));
    assert!(!is_too_large(&machines(MAX_RULES / 4, 4)));
    assert!(is_too_large(&machines(MAX_RULES / 4 + 1, 4)));
}

#[test]
fn a_machine_has_no_more_addresses_than_its_status_holds() {
    let with = |count: u8| {
        let addresses: Vec<String> = (1..=count).map(|n| format!("10.0.0.{n}")).collect();
        let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
        judged(&request(|_| {}), &[ssh(vec![machine("web-1", &addresses, &["nic"])])])
    };
    assert!(!is_too_large(&with(64)));
    assert!(is_too_large(&with(65)));
}

#[test]
fn no_more_policies_cover_a_request_than_its_status_holds() {
    let covered_by = |count: usize| {
        let other = |n: usize| {
            let machines = vec![machine("web-1", &["10.0.0.4"], &["nic"])];
            policy(&format!("other-{n}"), vec![port(22, &[], "3h")], machines)
        };
        let policies: Vec<PolicyView> = [web()].into_iter().chain((1..count).map(other)).collect();
        judged(&request(|_| {}), &policies)
    };
    assert!(!is_too_large(&covered_by(16)));
    assert!(is_too_large(&covered_by(17)));
}

#[test]
fn a_request_names_no_more_sources_than_the_policy_allows_each_counted_once() {
    let named = |count: u8, ports: &[u16]| {
        let sources: Vec<Value> =
            (0..count).map(|n| json!({"cidr": format!("203.0.113.{}/32", 2 * n)})).collect();
        let ports: Vec<Value> = ports.iter().map(|port| json!({"port": port, "sources": sources})).collect();
        let ports_of = vec![port(22, &[], "3h"), port(5985, &[], "3h")];
        let view = policy("web", ports_of, vec![machine("web-1", &["10.0.0.4"], &["nic"])]);
        judged(&request(|spec| spec["ports"] = json!(ports)), &[view])
    };
    assert!(!is_too_large(&named(8, &[22])));
    assert!(!is_too_large(&named(8, &[22, 5985])));
    assert!(is_too_large(&named(9, &[22])));
}

#[test]
fn a_request_begins_within_the_horizon() {
    let at = |seconds: i64| {
        let begin = now() + SignedDuration::from_hours(168) + SignedDuration::from_secs(seconds);
        judged(&request(|spec| spec["notBefore"] = json!(begin.to_string())), &[web()])
    };
    assert!(!is_too_large(&at(0)));
    assert!(is_too_large(&at(1)));
}

#[test]
fn a_justification_has_to_be_there_and_to_match_as_the_policy_asks() {
    let judged = |text: Option<&str>, required: bool, pattern: Option<&str>| {
        let mut view = web();
        let terms = view.terms.as_mut().unwrap();
        terms.justification_required = required;
        terms.justification = pattern.map(|pattern| {
            let spec = json!({"targets": [{"name": "web-1", "azureVirtualMachine": {"id": vm("web-1").as_str()}}],
                "justification": {"pattern": pattern}});
            Terms::parse(&serde_json::from_value(spec).unwrap()).unwrap().justification.unwrap()
        });
        let request = request(|spec| spec["justification"] = json!(text));
        match judged(&request, &[view]) {
            Judgement::Allowed(_) => true,
            Judgement::Refused(Reason::JustificationRequired, _) => false,
            other => panic!("{other:?}"),
        }
    };
    let ticket = Some("^INC-[0-9]+$");
    for (text, required, pattern, allowed) in [
        (None, false, None, true),
        (None, true, None, false),
        (Some("  "), true, None, false),
        (Some("because"), true, None, true),
        (Some("because"), false, ticket, false),
        (Some("INC-7"), false, ticket, true),
        (Some("INC-7"), true, ticket, true),
        (None, false, ticket, true),
    ] {
        assert_eq!(judged(text, required, pattern), allowed, "{text:?} {required} {pattern:?}");
    }
}

#[test]
fn whether_connections_go_on_after_the_end_is_said() {
    let goes_on = |cut: &[bool]| {
        let view = |(n, cut): (usize, &bool)| {
            let mut view = if n == 0 {
                web()
            } else {
                let machines = vec![machine("web-1", &["10.0.0.4"], &["nic"])];
                policy("ops", vec![port(22, &[], "3h")], machines)
            };
            view.terms.as_mut().unwrap().cut_sessions = *cut;
            view
        };
        let policies: Vec<PolicyView> = cut.iter().enumerate().map(view).collect();
        match judged(&request(|_| {}), &policies) {
            Judgement::Allowed(plan) => plan.sessions_go_on,
            other => panic!("{other:?}"),
        }
    };
    assert!(goes_on(&[false]) && !goes_on(&[true]));
    assert!(!goes_on(&[false, true]), "one of the policies cuts them");
}

#[test]
fn a_policy_that_cannot_be_understood_has_a_say_over_its_own_machines_alone() {
    let broken = |name: &str| {
        let mut view = policy("broken", vec![], vec![machine(name, &["10.0.0.5"], &["nic"])]);
        view.terms = Terms::parse(&JitPolicySpec::default());
        judged(&request(|_| {}), &[web(), view])
    };
    assert!(matches!(broken("web-1"), Judgement::Held(Reason::InvalidSpec, _)));
    assert!(matches!(broken("web-2"), Judgement::Allowed(_)));
}

#[test]
fn a_machine_of_a_scope_is_named_by_its_name_or_its_id() {
    let mut view = web();
    let other = id("Microsoft.Compute/virtualMachines/web-1").as_str().replace("/web/", "/web2/");
    let other = ArmId::parse(&other).unwrap();
    let entry: Vec<_> = [vm("web-1"), vm("web-2"), other.clone()]
        .into_iter()
        .map(|id| {
            let machine = Machine { id: id.clone(), ..machine("web-1", &["10.0.0.4"], &["nic"]) };
            (id, Ok(machine))
        })
        .collect();
    view.machines = Some(Arc::new(BTreeMap::from([("web-1".to_owned(), entry)])));
    let chosen = |fields: Value| {
        let request = request(|spec| {
            spec["targets"][0].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        });
        match judged(&request, std::slice::from_ref(&view)) {
            Judgement::Allowed(plan) => {
                let ids = plan.machines.into_iter().map(|PinnedMachine { id, .. }| id.to_ascii_lowercase());
                Ok(ids.collect::<Vec<_>>())
            }
            Judgement::Refused(Reason::TargetNotAllowed, why) => Err(why),
            other => panic!("{other:?}"),
        }
    };
    let key = |id: &ArmId| id.as_str().to_ascii_lowercase();
    assert_eq!(chosen(json!({})).map(|ids| ids.len()), Ok(3));
    assert_eq!(chosen(json!({"machine": "WEB-2"})), Ok(vec![key(&vm("web-2"))]));
    assert_eq!(chosen(json!({"id": other.as_str()})), Ok(vec![key(&other)]));
    assert!(chosen(json!({"machine": "web-1"})).unwrap_err().contains("by its id instead"));
    let both = json!({"machine": "web-1", "id": vm("web-1").as_str()});
    assert_eq!(chosen(both), Ok(vec![key(&vm("web-1"))]));
    for nobody in [json!({"machine": "web-3"}), json!({"id": vm("web-3").as_str()})] {
        assert!(chosen(nobody).unwrap_err().contains("has no such machine"));
    }
    // A scope that holds nothing is no machine that is missing.
    view.machines = Some(Arc::new(BTreeMap::from([("web-1".to_owned(), vec![])])));
    let nothing = judged(&request(|_| {}), std::slice::from_ref(&view));
    assert!(matches!(nothing, Judgement::Impossible(Reason::NoTargets, _)), "{nothing:?}");
}
