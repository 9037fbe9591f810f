//! From the write-ahead on: what is opened, what ends it, what is left to watch for.

use std::time::Duration;

use portcullis::plan::desired::Duty;
use portcullis::plan::lease::{Moment, Tenure};
use portcullis::plan::lifecycle::{CLOCKS_APART, NEAR_DEADLINE, OPEN_BOUND, duties, gone, may_land};

use super::*;

/// The rules of a request by what gates are to do with each.
fn duty_of(request: &JitAccessRequest) -> Vec<(String, Duty)> {
    duties(request).into_iter().map(|(_, grant)| (grant.name, grant.duty)).collect()
}

#[test]
fn what_was_read_back_as_gone_is_no_gates_business_any_more() {
    let mut request = closing();
    let names: Vec<String> = status(&mut request).rules.iter().map(|rule| rule.name.clone()).collect();
    assert_eq!(duty_of(&request).len(), 2);
    assert_eq!(gone(&request), []);
    status(&mut request).rules[0].state = RuleState::Absent.as_str().into();
    assert_eq!(duty_of(&request), [(names[1].clone(), Duty::Close { sent: false })]);
    let firewall = FirewallId(ArmId::parse(&status(&mut request).rules[0].firewall).unwrap());
    assert_eq!(gone(&request), [(firewall, names[0].clone())]);
}

#[test]
fn a_grant_opens_the_protocol_that_was_asked_for() {
    for (word, protocol) in [("TCP", Protocol::Tcp), ("UDP", Protocol::Udp), ("Any", Protocol::Any)] {
        let mut request = opening();
        status(&mut request).rules[0].protocol = word.into();
        assert_eq!(duties(&request)[0].1.protocol, protocol);
    }
}

#[test]
fn what_a_former_holder_may_have_begun_to_write_is_watched_for_until_it_can_land_no_more() {
    let apart = 2 * seconds(CLOCKS_APART);
    let (now, within) = (7200, Duration::from_secs(24 * 3600));
    let unseen = |request: &JitAccessRequest, since: i64| {
        let tenure =
            Tenure { begun: Moment::ZERO, lasted: Duration::from_secs((now - since).try_into().unwrap()) };
        let landing = may_land(request, None, tenure, within, after(now));
        landing.into_iter().map(|(firewall, name, _)| (firewall, name)).collect::<Vec<_>>()
    };
    let mut request = opening();
    let rule = status(&mut request).rules[0].clone();
    let firewall = FirewallId(ArmId::parse(&rule.firewall).unwrap());
    assert_eq!(unseen(&request, 0)[0], (firewall, rule.name));
    // Written ahead by this holder itself, as far as two clocks can tell.
    assert_eq!(unseen(&request, -apart), []);
    assert_eq!(unseen(&request, 1 - apart).len(), 2);
    // What was read back has landed.
    status(&mut request).rules[0].observed_at = Some(Time(start()));
    assert_eq!(unseen(&request, 0).len(), 1);
    status(&mut request).rules[1].state = RuleState::Present.as_str().into();
    assert_eq!(unseen(&request, 0), []);
    // Closing before it was ever seen: the write may land behind the removal.
    let mut request = opening();
    request.status = Some(Scene::default().step(&deleted(request.clone()), after(5)).status);
    assert_eq!(unseen(&request, 0).len(), 2);
    // Over, or not begun: nothing can be under way.
    assert_eq!(unseen(&in_state(State::Expired), 0), []);
    assert_eq!(unseen(&approved(), 0), []);
}

#[test]
fn it_is_watched_for_only_where_another_may_have_begun_it_and_only_while_it_may_land() {
    let second = Duration::from_secs;
    let (begun, request) = (second(3), opening());
    let left = |granted: Option<Moment>, lasted: Duration| {
        let landing = may_land(&request, granted, Tenure { begun, lasted }, second(30), after(0));
        landing.first().map(|(_, _, left)| *left)
    };
    assert_eq!(left(None, second(10)), Some(second(20)));
    // Whoever has granted it before another held the lease is not alone with it.
    assert_eq!(left(Some(second(2)), second(10)), Some(second(20)));
    assert_eq!(left(Some(begun), second(10)), None);
    assert_eq!(left(None, second(29)), Some(second(1)));
    assert_eq!([second(30), second(31), Duration::MAX].map(|lasted| left(None, lasted)), [None; 3]);
}

#[test]
fn an_opening_of_which_a_rule_was_removed_again_fails() {
    let next = Scene::seeing([(0, present(5)), (1, absent(5))]).step(&opening(), after(6));
    is_outcome(&next, State::Failed, Reason::OpenTimedOut);
}

#[test]
fn a_restart_forgets_no_rule_that_was_read_back_before() {
    let half = Scene::seeing([(0, present(5))]).step(&opening(), after(6));
    assert_eq!((to(&half), half.status.rules[0].state.as_str()), (State::Opening, "Present"));
    let mut request = opening();
    request.status = Some(half.status);
    let whole = Scene::seeing([(1, present(7))]).step(&request, after(8));
    assert_eq!(to(&whole), State::Active);
    // The moment is that of the first read-back: a status that changed with every read would never rest.
    let again = Scene::seeing([(0, present(9)), (1, present(9))]);
    request.status = Some(whole.status);
    let next = again.step(&request, after(10));
    assert_eq!(Some(&next.status), request.status.as_ref());
    let moments: Vec<_> = next.status.rules.iter().map(|rule| rule.observed_at.as_ref().unwrap().0).collect();
    assert_eq!(moments, [after(5), after(7)]);
}

#[test]
fn what_was_all_open_is_shortened_and_what_was_not_in_time_is_closed() {
    let less = || {
        allowed(|plan| {
            plan.duration = std::time::Duration::from_secs(1800);
            plan.shortened_by = Some("JitPolicy web (generation 2) allows 30m for port 22".into());
        })
    };
    let late = seconds(OPEN_BOUND);
    for (rules, at, wanted) in [
        (2, late, Ok(())),
        (1, late, Err("its rules were not all open when that was said")),
        (1, late - 1, Ok(())),
    ] {
        let seen = (0..rules).map(|number| (number, present(5))).collect();
        let next = Scene { seen, ..Scene::judged(less()) }.step(&opening(), after(at));
        match wanted {
            Ok(()) => {
                assert_eq!(to(&next), State::Opening, "{rules} at {at}");
                assert_eq!(next.status.expires_at.as_ref().unwrap().0, after(1800));
            }
            Err(words_) => {
                is_outcome(&next, State::Revoked, Reason::PolicyTightened);
                assert!(said(&next, ConditionType::Active).message.contains(words_));
            }
        }
    }
}

#[test]
fn a_rule_that_is_gone_ends_a_live_grant_and_shortly_before_its_end_has_expired() {
    let near = i64::try_from(ASKED).unwrap() - seconds(NEAR_DEADLINE);
    for seen in [absent(60), Seen::Lost { at: after(60) }] {
        let scene = Scene::seeing([(0, present(60)), (1, seen)]);
        is_outcome(&scene.step(&live(), after(61)), State::Ended, Reason::RuleRemoved);
        is_outcome(&scene.step(&live(), after(near - 1)), State::Ended, Reason::RuleRemoved);
        is_outcome(&scene.step(&live(), after(near)), State::Expired, Reason::Expired);
    }
}

#[test]
fn a_close_is_done_when_every_rule_is_gone_whenever_each_of_them_went() {
    let mut request = closing();
    let half = Scene::seeing([(0, absent(61))]).step(&request, after(62));
    assert_eq!(to(&half), State::Closing);
    request.status = Some(half.status);
    // Gates say nothing any more of what was recorded as gone.
    let whole = Scene::seeing([(1, absent(63))]).step(&request, after(64));
    assert_eq!(to(&whole), State::Ended);
    assert_eq!(whole.status.closed_at.as_ref().unwrap().0, after(63));
}

#[test]
fn a_grant_that_ends_by_what_is_thought_of_it_says_why() {
    use Judgement::{Held, Impossible, Refused};
    let why = || "so it is".to_owned();
    for (judged, reason) in [
        (Impossible(Reason::CloudUnavailable, why()), Reason::CloudUnavailable),
        (Impossible(Reason::VirtualMachineNotFound, why()), Reason::MachineChanged),
        (Held(Reason::PolicyNotFound, why()), Reason::PolicyDeleted),
        (Held(Reason::PolicyDeleted, why()), Reason::PolicyDeleted),
        (Held(Reason::Suspended, why()), Reason::Suspended),
        (Held(Reason::InvalidSpec, why()), Reason::PolicyTightened),
        (Refused(Reason::PortNotAllowed, why()), Reason::PolicyTightened),
    ] {
        let next = Scene::judged(judged.clone()).step(&live(), after(60));
        is_outcome(&next, State::Revoked, reason);
        assert!(said(&next, ConditionType::Active).message.ends_with("so it is"), "{judged:?}");
    }
}

#[test]
fn a_machine_that_is_no_longer_what_it_was_at_the_grant_ends_it() {
    type Change = fn(&mut GrantPlan);
    let changes: [(&str, Change); 7] = [
        ("vm is no longer among the machines", |plan| plan.machines[0].id = "other".into()),
        ("vm was made anew", |plan| plan.machines[0].vm_id = "2".into()),
        ("has 10.0.0.5 now", |plan| plan.machines[0].addresses = vec!["10.0.0.5".into()]),
        ("other network interfaces", |plan| plan.machines[0].nics = vec!["another".into()]),
        ("other network interfaces", |plan| plan.machines[0].nics.push("another".into())),
        ("other network interfaces", |plan| plan.machines[0].nics.clear()),
        ("other firewalls filter the traffic", |plan| drop(plan.rules.pop())),
    ];
    for (what, change) in changes {
        let next = Scene::judged(allowed(change)).step(&live(), after(60));
        is_outcome(&next, State::Revoked, Reason::MachineChanged);
        let message = &said(&next, ConditionType::Active).message;
        assert!(message.contains(what), "{message}");
    }
    // Ids and interfaces are the same in any case, and a machine that came later is none of the grant's.
    let same = allowed(|plan| {
        plan.machines.push(PinnedMachine { id: "later".into(), ..plan.machines[0].clone() });
        plan.machines[0].id = "VM".into();
        plan.machines[0].nics = vec!["NIC".into()];
    });
    assert_eq!(to(&Scene::judged(same).step(&live(), after(60))), State::Active);
}

#[test]
fn a_close_leaves_alone_what_was_read_back_as_gone() {
    let mut request = live();
    status(&mut request).rules[0].state = RuleState::Absent.as_str().into();
    let next = Scene::default().step(&deleted(request), after(5));
    let states: Vec<&str> = next.status.rules.iter().map(|rule| rule.state.as_str()).collect();
    assert_eq!(states, ["Absent", "Closing"]);
}
