//! Policies whose machines are not known yet.

use portcullis::plan::terms::Selector;

use super::*;

#[test]
fn a_policy_whose_machines_are_not_known_yet_holds_up_only_what_it_may_cover() {
    let judged =
        |unread: &PolicyView| judge(&request(|_| {}), &[web(), unread.clone()], &Pipelines::default(), now());
    let unread = |ports, machines: &str| {
        let mut view = policy("other", ports, vec![machine(machines, &["10.0.0.5"], &["nic"])]);
        view.machines = None;
        view
    };
    let over = |scope: &str| {
        let mut view = unread(vec![], "db-1");
        let selector = Selector::Scope { scope: ArmId::parse(scope).unwrap(), tags: BTreeMap::new() };
        view.terms.as_mut().unwrap().targets = [("all".to_owned(), selector)].into();
        view
    };
    let group = GROUP.trim_end_matches("/providers");
    let may = [
        unread(vec![], "web-1"),
        unread(vec![port(22, &[], "3h")], "web-1"),
        over(group),
        over(group.split("/resourceGroups").next().unwrap()),
    ];
    for policy in &may {
        assert!(matches!(judged(policy), Judgement::Unknown(..)), "{policy:?}");
    }
    let audits = {
        let mut view = unread(vec![], "web-1");
        view.terms.as_mut().unwrap().mode = Mode::Audit;
        view
    };
    let cannot = [
        unread(vec![], "db-1"),
        unread(vec![port(3389, &[], "3h")], "web-1"),
        over(&group.replace("/web", "/web-2")),
        over("/subscriptions/99999999-2222-3333-4444-555555555555"),
        audits,
    ];
    for policy in &cannot {
        assert!(matches!(judged(policy), Judgement::Allowed(_)), "{policy:?}");
    }
    // What it is barred from it never reads, but it may have locked it before.
    let mut barred = unread(vec![], "web-1");
    barred.barred = Some((Reason::ScopeNotAllowed, "no".into()));
    assert!(matches!(judged(&barred), Judgement::Allowed(_)));
    barred.has_locked = true;
    assert!(matches!(judged(&barred), Judgement::Unknown(..)));
}
