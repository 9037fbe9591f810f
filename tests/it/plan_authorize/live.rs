//! Live grants: a policy that is tightened, deleted or not read ends them, also where no machine can be read.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use portcullis::api::{AzureScope, JitAccessRequestStatus, PinnedMachine, RequestedPolicy};
use portcullis::plan::authorize::{UNREAD_BOUND, patience};
use portcullis::plan::terms::Patience;

use super::*;

/// Granted under `web`, for an hour on port 22 of web-1.
fn granted() -> JitAccessRequest {
    let mut request = request(|_| {});
    request.status = Some(JitAccessRequestStatus {
        granted_at: Some(Time(now())),
        machines: vec![PinnedMachine { id: vm("web-1").to_string(), ..PinnedMachine::default() }],
        policies: vec![RequestedPolicy {
            name: "web".into(),
            uid: "uid-of-web".into(),
            ..RequestedPolicy::default()
        }],
        ..JitAccessRequestStatus::default()
    });
    request
}

fn judged(policies: &[PolicyView], at: Timestamp) -> Judgement {
    judge(&granted(), policies, &Pipelines::default(), at)
}

/// The policy with another spec, whose machines are not read again yet; `latest`: whether they ever were.
fn edited(mut policy: PolicyView, latest: bool, change: impl FnOnce(&mut JitPolicySpec)) -> PolicyView {
    let mut spec = JitPolicySpec {
        targets: vec![PolicyTarget {
            name: "web-1".into(),
            azure_virtual_machine: Some(AzureVirtualMachine { id: vm("web-1").as_str().into() }),
            azure_scope: None,
        }],
        ports: vec![port(22, &["203.0.113.0/24"], "3h")],
        ..JitPolicySpec::default()
    };
    change(&mut spec);
    policy.terms = Terms::parse(&spec);
    policy.generation += 1;
    policy.machines = None;
    if !latest {
        policy.latest = None;
    }
    policy
}

#[test]
fn a_tightened_policy_ends_a_grant_whose_machines_cannot_be_read() {
    type Change = fn(&mut JitPolicySpec);
    let tightened: [(Reason, Change); 5] = [
        (Reason::SourceNotAllowed, |spec| spec.ports = vec![port(22, &["198.51.100.0/24"], "3h")]),
        (Reason::PortNotAllowed, |spec| spec.ports = vec![port(3389, &[], "3h")]),
        (Reason::JustificationRequired, |spec| spec.justification.required = true),
        (Reason::TargetNotAllowed, |spec| spec.targets[0].name = "other".into()),
        (Reason::TargetNotAllowed, |spec| {
            spec.targets[0].azure_virtual_machine =
                Some(AzureVirtualMachine { id: vm("web-2").as_str().into() });
        }),
    ];
    for latest in [true, false] {
        let as_it_was = judged(&[edited(web(), latest, |_| {})], now());
        assert!(matches!(as_it_was, Judgement::Unknown(..)), "goes on: {as_it_was:?}");
        for (reason, change) in &tightened {
            let judgement = judged(&[edited(web(), latest, change)], now());
            assert!(matches!(&judgement, Judgement::Refused(is, _) if is == reason), "{judgement:?}");
        }
    }
    // Less time makes it shorter once the machines are known; what has had its time ends at once.
    let shorter = edited(web(), true, |spec| spec.ports = vec![port(22, &["203.0.113.0/24"], "30m")]);
    let at = |minutes| judged(std::slice::from_ref(&shorter), now() + SignedDuration::from_mins(minutes));
    assert!(matches!(at(29), Judgement::Unknown(..)));
    assert!(matches!(at(30), Judgement::Refused(Reason::DurationTooLong, _)));
    // What is not granted yet waits for its machines.
    let waits = judge(&request(|_| {}), &[edited(web(), true, tightened[0].1)], &Pipelines::default(), now());
    assert!(matches!(waits, Judgement::Unknown(..)), "{waits:?}");
}

#[test]
fn a_scope_that_no_longer_holds_the_machine_ends_the_grant_and_tags_wait_for_the_cloud() {
    let scope = |id: &str, tags: &[(&str, &str)]| {
        let scope = AzureScope {
            id: id.into(),
            tags: tags.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        };
        edited(web(), true, |spec| {
            spec.targets[0].azure_virtual_machine = None;
            spec.targets[0].azure_scope = Some(scope);
        })
    };
    let group = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups";
    for (policy, goes_on) in [
        (scope(&format!("{group}/web"), &[]), true),
        (scope(&format!("{group}/web"), &[("role", "other")]), true),
        (scope(&format!("{group}/web2"), &[]), false),
    ] {
        let judgement = judged(&[policy], now());
        assert_eq!(matches!(judgement, Judgement::Unknown(..)), goes_on, "{judgement:?}");
    }
}

#[test]
fn ports_that_go_by_the_operating_system_are_judged_where_that_is_known() {
    let by_os = |latest| edited(web(), latest, |spec| spec.ports.clear());
    // Known to be Linux: 22 from anywhere is what such a policy allows.
    assert!(matches!(judged(&[by_os(true)], now()), Judgement::Unknown(..)));
    assert!(matches!(judged(&[by_os(false)], now()), Judgement::Unknown(..)));
    // Known to be Windows: 22 is none of its ports.
    let windows = Machine { os: Os::Windows, ..machine("web-1", &["10.0.0.4"], &["nic"]) };
    let windows = policy("web", vec![port(22, &[], "3h")], vec![windows]);
    let judgement = judged(&[edited(windows, true, |spec| spec.ports.clear())], now());
    assert!(matches!(judgement, Judgement::Refused(Reason::PortNotAllowed, _)), "{judgement:?}");
}

#[test]
fn a_second_policy_that_goes_by_tags_has_a_say_where_it_covered_the_machine() {
    let tagged = |latest| {
        let ops = policy("ops", vec![port(22, &[], "3h")], vec![machine("web-1", &["10.0.0.4"], &["nic"])]);
        edited(ops, latest, |spec| {
            spec.targets[0].azure_virtual_machine = None;
            spec.targets[0].azure_scope = Some(AzureScope {
                id: "/subscriptions/11111111-2222-3333-4444-555555555555".into(),
                tags: [("role".into(), "web".into())].into(),
            });
            spec.ports = vec![port(22, &["198.51.100.0/24"], "3h")];
        })
    };
    for (is_of_the_grant, latest, refused) in
        [(true, false, true), (false, true, true), (true, true, true), (false, false, false)]
    {
        let mut request = granted();
        if is_of_the_grant {
            let ops = RequestedPolicy { name: "ops".into(), uid: "uid-of-ops".into(), ..Default::default() };
            request.status.as_mut().unwrap().policies.push(ops);
        }
        let judgement = judge(&request, &[web(), tagged(latest)], &Pipelines::default(), now());
        let is_refused = matches!(&judgement, Judgement::Refused(_, why) if why.contains("JitPolicy ops"));
        assert_eq!(is_refused, refused, "{is_of_the_grant} {latest}: {judgement:?}");
    }
}

#[test]
fn an_unreadable_second_policy_hides_nothing_of_the_first_and_is_judged_itself() {
    let ops = || {
        let mut ops =
            policy("ops", vec![port(22, &[], "3h")], vec![machine("web-1", &["10.0.0.4"], &["nic"])]);
        ops.machines = None;
        ops
    };
    assert!(matches!(judged(&[web(), ops()], now()), Judgement::Unknown(..)));
    let mut tightened = web();
    tightened.terms =
        edited(web(), true, |spec| spec.ports = vec![port(22, &["198.51.100.0/24"], "3h")]).terms;
    let judgement = judged(&[tightened, ops()], now());
    assert!(matches!(judgement, Judgement::Refused(Reason::SourceNotAllowed, _)), "{judgement:?}");
    let narrow = edited(ops(), true, |spec| spec.ports = vec![port(22, &["198.51.100.0/24"], "3h")]);
    let judgement = judged(&[web(), narrow], now());
    assert!(
        matches!(&judgement, Judgement::Refused(_, why) if why.contains("JitPolicy ops")),
        "{judgement:?}"
    );
    let suspended = edited(ops(), true, |spec| spec.suspend = true);
    let judgement = judged(&[web(), suspended], now());
    assert!(matches!(judgement, Judgement::Held(Reason::Suspended, _)), "{judgement:?}");
    // Another machine's is none of its business.
    let elsewhere = edited(ops(), false, |spec| {
        spec.targets[0].azure_virtual_machine = Some(AzureVirtualMachine { id: vm("web-2").as_str().into() });
        spec.ports = vec![port(22, &["198.51.100.0/24"], "3h")];
    });
    assert!(matches!(judged(&[web(), elsewhere], now()), Judgement::Allowed(_)));
}

#[test]
fn a_policy_that_was_deleted_ends_the_grant_also_where_another_has_its_name() {
    assert!(matches!(judged(&[web()], now()), Judgement::Allowed(_)));
    let mut again = web();
    again.uid = "uid-of-another".into();
    let judgement = judged(&[again], now());
    assert!(matches!(&judgement, Judgement::Held(Reason::PolicyDeleted, _)), "{judgement:?}");
    // A second one that covered it.
    let mut request = granted();
    request.status.as_mut().unwrap().policies.push(RequestedPolicy {
        name: "ops".into(),
        uid: "uid-of-ops".into(),
        ..RequestedPolicy::default()
    });
    let ops =
        policy("ops", vec![port(22, &[], "3h")], vec![machine("web-1", &["10.0.0.4"], &["subnet", "nic"])]);
    let judged = |policies: &[PolicyView]| judge(&request, policies, &Pipelines::default(), now());
    assert!(matches!(judged(&[web(), ops.clone()]), Judgement::Allowed(_)));
    assert!(matches!(judged(&[web()]), Judgement::Held(Reason::PolicyDeleted, _)));
    let going = PolicyView { deleting: true, ..ops };
    assert!(matches!(judged(&[web(), going]), Judgement::Held(Reason::PolicyDeleted, _)));
}

#[test]
fn a_grant_whose_machines_nobody_has_read_for_long_ends() {
    let later =
        |more: i64| now() + SignedDuration::try_from(UNREAD_BOUND).unwrap() + SignedDuration::from_secs(more);
    for policy in [web(), edited(web(), false, |_| {})] {
        assert!(!matches!(judged(std::slice::from_ref(&policy), later(0)), Judgement::Impossible(..)));
        let judgement = judged(&[policy], later(1));
        assert!(matches!(&judgement, Judgement::Impossible(Reason::CloudUnavailable, _)), "{judgement:?}");
    }
    // A trial run changes nothing, so it ends nothing either.
    let trial = PolicyView { barred: Some((Reason::DryRun, String::new())), ..web() };
    assert!(matches!(judged(&[trial], later(1)), Judgement::Unknown(Reason::DryRun, _)));
    // What is not granted yet waits.
    let waits = judge(&request(|_| {}), &[web()], &Pipelines::default(), later(1));
    assert!(matches!(waits, Judgement::Allowed(_)), "{waits:?}");
}

#[test]
fn how_long_a_request_waits_is_its_policys_to_say_also_where_that_grants_nothing_now() {
    let mut policy = edited(web(), false, |spec| {
        spec.suspend = true;
        spec.approval.pending_timeout = Some("8h".into());
    });
    let of = |policies: &[PolicyView]| patience(&request(|_| {}), policies);
    assert_eq!(of(std::slice::from_ref(&policy)).pending.as_secs(), 8 * 3600);
    assert_eq!(of(&[]), Patience::default());
    policy.terms = Terms::parse(&JitPolicySpec::default());
    let ever = std::time::Duration::MAX;
    assert_eq!(of(&[policy]), Patience { pending: ever, unused: ever }, "one that cannot be understood");
}

#[test]
fn only_the_policies_of_a_grant_have_to_be_read_again_for_it() {
    let long_ago = now() - SignedDuration::try_from(UNREAD_BOUND).unwrap() - SignedDuration::from_secs(1);
    let ops = |name: &str| {
        let machines = vec![machine("web-1", &["10.0.0.4"], &["subnet", "nic"])];
        PolicyView { read_at: long_ago, ..policy(name, vec![port(22, &[], "3h")], machines) }
    };
    let mut request = granted();
    let known =
        RequestedPolicy { name: "ops".into(), uid: "uid-of-ops".into(), ..RequestedPolicy::default() };
    request.status.as_mut().unwrap().policies.push(known);
    let judged = |policies: &[PolicyView]| judge(&request, policies, &Pipelines::default(), now());
    let read = PolicyView { read_at: now(), ..ops("ops") };
    assert!(matches!(judged(&[web(), read.clone()]), Judgement::Allowed(_)));
    assert!(matches!(judged(&[web(), ops("ops")]), Judgement::Impossible(Reason::CloudUnavailable, _)));
    assert!(matches!(judged(&[web(), read, ops("another")]), Judgement::Allowed(_)), "it came later");
}

#[test]
fn a_live_grant_is_judged_by_its_own_machines() {
    let mut policy = policy("web", vec![port(22, &["203.0.113.0/24"], "3h")], vec![]);
    let unread = Unsupported { reason: Reason::NotPermitted, message: "may not be read".into() };
    let own = machine("web-1", &["10.0.0.4"], &["subnet", "nic"]);
    let entry = vec![(vm("web-1"), Ok(own)), (vm("web-2"), Err(unread))];
    policy.terms = web().terms;
    policy.machines = Some(Arc::new(BTreeMap::from([("web-1".to_owned(), entry)])));
    let judged = |request: &JitAccessRequest| {
        judge(request, std::slice::from_ref(&policy), &Pipelines::default(), now())
    };
    assert!(matches!(judged(&granted()), Judgement::Allowed(_)));
    // Who asks now asks for all of them.
    assert!(matches!(judged(&request(|_| {})), Judgement::Impossible(Reason::NotPermitted, _)));
}
