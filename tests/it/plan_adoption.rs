//! Locks of a previous id come under the present one, and no packet notices.

use portcullis::plan::adoption::{Adopted, Step, plan};
use portcullis::plan::model::{Observed, Provisioning, ResourceLock, Rule};
use portcullis::plan::names::{self, Cluster};
use proptest::prelude::*;

use crate::plan_laws::{a_lock, foreign_rule, universe};
use crate::plan_world::*;

/// The cluster when it had the id that it had before.
fn before() -> Cluster {
    Cluster::new("before", &[])
}

fn old_rules(world: &Observed) -> Vec<&Rule> {
    world.rules.iter().filter(|rule| names::parse_name(&before(), &rule.name).is_some()).collect()
}

fn fates(world: &Observed) -> Vec<bool> {
    universe().map(|packet| passes(world, packet)).collect()
}

/// Makes every step, and looks at every packet after each.
fn adopt(world: &mut Observed, adopted: &[Adopted]) -> Result<(), TestCaseError> {
    let expected = fates(world);
    for (_, steps) in adopted.iter().filter_map(|adopted| adopted.outcome.as_ref().ok()) {
        for step in steps {
            let write = match step {
                Step::Put(rule) => Write::Put(rule.clone()),
                Step::Remove(name) => Write::Delete(name.clone()),
            };
            apply(world, &write).map_err(TestCaseError::fail)?;
            prop_assert_eq!(&fates(world), &expected, "after {:?}", step);
        }
    }
    Ok(())
}

proptest! {
    #[test]
    fn every_packet_fares_as_before_after_each_step(
        foreign in prop::collection::vec(foreign_rule(), 0..6),
        locks in prop::collection::vec(a_lock(), 1..3),
    ) {
        let mut world = nsg(&[]);
        for rule in foreign {
            // Two of one name, or at one place, are not there.
            let _ = apply(&mut world, &Write::Put(rule));
        }
        let mut locks = locks;
        locks.sort_by(|a, b| a.policy_uid.cmp(&b.policy_uid));
        locks.dedup_by(|a, b| a.policy_uid == b.policy_uid);
        let mut wanted = wanted(locks, vec![]);
        wanted.cluster = before();
        let had_room = settle(&mut world, &wanted, at(0)).refused.is_empty();
        let adopted = plan(&world, &cluster(), LIMITS.rules);
        prop_assert_eq!(adopted.len(), old_rules(&world).len());
        adopt(&mut world, &adopted)?;
        let left: Vec<&String> =
            adopted.iter().filter(|adopted| adopted.outcome.is_err()).map(|adopted| &adopted.name).collect();
        let old: Vec<&String> = old_rules(&world).into_iter().map(|rule| &rule.name).collect();
        prop_assert_eq!(left.len(), old.len());
        // Said again, there is nothing more to do than what could not be done.
        prop_assert!(plan(&world, &cluster(), LIMITS.rules).iter().all(|adopted| adopted.outcome.is_err()));
        if left.is_empty() {
            // For the cluster as it is called now alone, the policies want nothing else: at most another place.
            wanted.cluster = Cluster::new("test", &[]);
            let adopted = fates(&world);
            let has_room = settle(&mut world, &wanted, at(0)).refused.is_empty();
            // What found no room on one side may find it on the other.
            prop_assert!(!(had_room && has_room) || fates(&world) == adopted);
        }
    }
}

fn locked(rules: &[&str]) -> Observed {
    let mut world = nsg(rules);
    let mut wanted = wanted(vec![lock(WEB, &[("10.0.0.4", "22")])], vec![]);
    wanted.cluster = before();
    settle(&mut world, &wanted, at(0));
    world
}

#[test]
fn what_cannot_be_adopted_is_left_with_the_reason() {
    let reason = |world: &Observed, most: usize| match plan(world, &cluster(), most).as_slice() {
        [Adopted { outcome: Err(why), .. }] => *why,
        other => panic!("{other:?}"),
    };
    let mut forbidden = locked(&[]);
    forbidden.lock = ResourceLock::CannotDelete;
    assert!(reason(&forbidden, 1000).contains("resource lock"));
    let mut turned = locked(&[]);
    for rule in turned.rules.iter_mut().filter(|rule| rule.name.contains("-deny-")) {
        rule.access = portcullis::plan::model::Access::Allow;
    }
    assert!(reason(&turned, 1000).contains("turned it around"));
    let full = locked(&[]);
    assert!(reason(&full, full.rule_count()).contains("no room"));
    // Shut in between rules of others, all of which let its packets in.
    let mut shut_in = locked(&[]);
    let place = shut_in.rules.iter().find(|rule| rule.name.contains("-deny-")).unwrap().priority;
    for (name, priority) in [("a", place - 1), ("b", place + 1)] {
        let text = format!("{name} {priority} Allow TCP * > 10.0.0.4 : 22");
        apply(&mut shut_in, &Write::Put(rule(&text))).unwrap();
    }
    assert!(reason(&shut_in, 1000).contains("priority number"));
}

/// It was interrupted after the twin was written.
#[test]
fn what_was_begun_is_ended() {
    let mut world = locked(&[]);
    let adopted = plan(&world, &cluster(), 1000);
    let [Adopted { outcome: Ok((name, steps)), .. }] = adopted.as_slice() else { panic!("{adopted:?}") };
    let [Step::Put(twin), Step::Remove(original)] = steps.as_slice() else { panic!("{steps:?}") };
    apply(&mut world, &Write::Put(twin.clone())).unwrap();
    let again = plan(&world, &cluster(), 1000);
    let rest = Ok((name.clone(), vec![Step::Remove(original.clone())]));
    assert_eq!(again, [Adopted { name: original.clone(), outcome: rest }]);
    assert!(twin.description.ends_with(&format!("cluster={}", cluster().mark())), "{}", twin.description);
}

/// What is not in force is written once more, and read back, before the rule that is goes.
#[test]
fn a_twin_that_is_not_in_force_is_written_again() {
    let mut world = locked(&[]);
    let adopted = plan(&world, &cluster(), 1000);
    let [Adopted { outcome: Ok((_, steps)), .. }] = adopted.as_slice() else { panic!("{adopted:?}") };
    let [Step::Put(twin), Step::Remove(_)] = steps.as_slice() else { panic!("{steps:?}") };
    apply(&mut world, &Write::Put(twin.clone())).unwrap();
    let whole = |world: &mut Observed, state| world.provisioning = state;
    let rule = |world: &mut Observed, state| {
        world.rules.iter_mut().find(|rule| rule.name == twin.name).unwrap().provisioning = state;
    };
    for state in [Provisioning::Failed, Provisioning::Updating] {
        for set in [&whole as &dyn Fn(&mut Observed, Provisioning), &rule] {
            let mut world = world.clone();
            set(&mut world, state);
            let again = plan(&world, &cluster(), 1000);
            let [Adopted { outcome: Ok((_, steps)), .. }] = again.as_slice() else { panic!("{again:?}") };
            assert!(
                matches!(steps.as_slice(), [Step::Put(put), Step::Remove(_)] if put.name == twin.name),
                "{steps:?}"
            );
        }
    }
}

#[test]
fn a_twin_stands_right_beside_the_rule_on_the_side_where_it_decides_alike() {
    for (neighbours, beside) in [
        (vec![], -1_i32),
        // One of others that lets the packets in is not to come between.
        (vec![-1], 1),
        (vec![1], -1),
    ] {
        let mut world = locked(&[]);
        let place = i32::from(old_rules(&world)[0].priority);
        for neighbour in neighbours {
            let text = format!("theirs {} Allow TCP * > 10.0.0.4 : 22", place + neighbour);
            apply(&mut world, &Write::Put(rule(&text))).unwrap();
        }
        let adopted = plan(&world, &cluster(), 1000);
        let [Adopted { outcome: Ok((_, steps)), .. }] = adopted.as_slice() else { panic!("{adopted:?}") };
        let Step::Put(twin) = &steps[0] else { panic!("{steps:?}") };
        assert_eq!(i32::from(twin.priority), place + beside);
    }
}
