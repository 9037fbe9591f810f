use serde_json::json;

use super::*;
use crate::api::admission::{CONTROLLER_USER, objects};

/// Everything as it is shipped.
fn shipped() -> (Vec<Guard>, Sight) {
    shipped_to(CONTROLLER_USER)
}

fn shipped_to(user: &str) -> (Vec<Guard>, Sight) {
    let objects = objects(user).unwrap();
    let guards = objects.iter().filter(|object| object.is_guard()).map(Guard::new).collect();
    let found = (0..)
        .zip(&objects)
        .map(|(number, object)| Found {
            kind: object.kind,
            name: object.name.clone(),
            uid: format!("uid-{number}"),
            generation: 1,
            going: false,
            spec: object.spec.clone(),
        })
        .collect();
    (guards, Sight { served: AdmissionKind::ALL.into(), found })
}

fn look(guards: &[Guard], sight: &Sight, written: Option<&Record>) -> Next {
    judge(guards, CONTROLLER_USER, sight, written)
}

/// The record of an interval that has begun.
fn begun(guards: &[Guard], sight: &Sight) -> Record {
    match look(guards, sight, None) {
        Next::Begin(record) => record,
        other => panic!("{other:?}"),
    }
}

fn one<'a>(sight: &'a mut Sight, kind: AdmissionKind, name: &str) -> &'a mut Found {
    sight.found.iter_mut().find(|found| found.kind == kind && found.name == name).unwrap()
}

const BINDING: AdmissionKind = AdmissionKind::ValidatingAdmissionPolicyBinding;
const POLICY: AdmissionKind = AdmissionKind::ValidatingAdmissionPolicy;

#[test]
fn what_is_shipped_begins_an_interval_that_goes_on() {
    let (guards, sight) = shipped();
    let record = begun(&guards, &sight);
    assert_eq!(record.objects.len(), guards.len());
    assert_eq!(look(&guards, &sight, Some(&record)), Next::Continue { rewritten: None });
    let text = serde_json::to_string(&record).unwrap();
    assert_eq!(serde_json::from_str::<Record>(&text).unwrap(), record);
}

/// Whatever anybody takes from or adds to any guard, the interval ends, and the message names the place.
#[test]
fn any_other_spec_of_any_guard_ends_the_interval() {
    let (guards, sight) = shipped();
    let record = begun(&guards, &sight);
    let mut tried = 0;
    for guard in &guards {
        for path in leaves(&one(&mut sight.clone(), guard.kind, &guard.name).spec) {
            let mut changed = sight.clone();
            let found = one(&mut changed, guard.kind, &guard.name);
            let leaf = found.spec.pointer_mut(&path).unwrap();
            *leaf = match leaf {
                Value::String(text) => json!(format!("{text} || true")),
                _ => json!({"kubernetes.io/metadata.name": "elsewhere"}),
            };
            found.generation += 1;
            let Next::Hold { why } = look(&guards, &changed, Some(&record)) else {
                panic!("{} {path}", guard.key());
            };
            assert!(why.contains(&guard.name) && why.contains("is altered (spec."), "{why}");
            tried += 1;
        }
    }
    assert!(tried > 100, "{tried}");
    // And the ways by which a binding is narrowed or made to speak only.
    let narrow = json!({"namespaceSelector": {"matchLabels": {"jit": "yes"}}});
    for (field, value) in [
        ("matchResources", narrow),
        ("validationActions", json!(["Audit"])),
        ("validationActions", json!(["Deny", "Audit"])),
        ("paramRef", json!({"name": "x", "parameterNotFoundAction": "Allow"})),
        ("somethingNew", json!("Off")),
    ] {
        let mut changed = sight.clone();
        one(&mut changed, BINDING, "portcullis-requests").spec[field] = value;
        let Next::Hold { why } = look(&guards, &changed, Some(&record)) else { panic!("{field}") };
        assert!(why.contains(&format!("portcullis-requests is altered (spec.{field}")), "{why}");
        assert!(why.ends_with(&format!("portcullis admission --controller-user {CONTROLLER_USER}")), "{why}");
    }
}

#[test]
fn policies_that_let_another_user_through_are_those_of_another_installation() {
    let theirs = "system:serviceaccount:jit:portcullis";
    let (guards, ours) = shipped();
    let record = begun(&guards, &ours);
    let (_, sight) = shipped_to(theirs);
    let Next::Hold { why } = look(&guards, &sight, Some(&record)) else { panic!("it is in force") };
    assert!(why.contains(&format!("let {theirs} write, and this one is {CONTROLLER_USER}")), "{why}");
    assert!(why.ends_with(&format!("portcullis admission --controller-user {CONTROLLER_USER}")), "{why}");
    assert!(!why.contains("altered"), "{why}");
}

/// The places of a spec that say something.
fn leaves(value: &Value) -> Vec<String> {
    let below = |key: String, value: &Value| {
        leaves(value).into_iter().map(move |rest| format!("/{key}{rest}")).collect::<Vec<_>>()
    };
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            fields.iter().flat_map(|(key, value)| below(key.clone(), value)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().flat_map(|(index, value)| below(index.to_string(), value)).collect()
        }
        _ => vec![String::new()],
    }
}

#[test]
fn what_is_missing_or_going_ends_the_interval() {
    let (guards, sight) = shipped();
    let record = begun(&guards, &sight);
    for guard in &guards {
        let mut without = sight.clone();
        without.found.retain(|found| (found.kind, &found.name) != (guard.kind, &guard.name));
        let Next::Hold { why } = look(&guards, &without, Some(&record)) else { panic!("{}", guard.name) };
        assert!(why.contains(&format!("{} {} is missing", guard.kind.as_str(), guard.name)), "{why}");
        let mut going = sight.clone();
        one(&mut going, guard.kind, &guard.name).going = true;
        let Next::Hold { why } = look(&guards, &going, Some(&record)) else { panic!("{}", guard.name) };
        assert!(why.contains("is being deleted"), "{why}");
    }
}

/// Restored a moment later, everything looks as before, but for what the API server counts.
#[test]
fn what_was_gone_or_altered_for_a_moment_begins_a_new_interval() {
    let (guards, sight) = shipped();
    let record = begun(&guards, &sight);
    for guard in &guards {
        let mut restored = sight.clone();
        one(&mut restored, guard.kind, &guard.name).uid = "another".to_owned();
        let Next::Restart { why } = look(&guards, &restored, Some(&record)) else { panic!("{}", guard.name) };
        assert!(why.contains("was deleted meanwhile"), "{why}");
        let mut altered = sight.clone();
        one(&mut altered, guard.kind, &guard.name).generation += 2;
        let Next::Restart { why } = look(&guards, &altered, Some(&record)) else { panic!("{}", guard.name) };
        assert!(why.contains("was altered meanwhile"), "{why}");
        // A generation that went back is not one that grew.
        one(&mut altered, guard.kind, &guard.name).generation = 0;
        assert!(matches!(look(&guards, &altered, Some(&record)), Next::Restart { .. }));
    }
    let other = Record { controller_user: "system:serviceaccount:x:y".to_owned(), ..record.clone() };
    assert!(matches!(look(&guards, &sight, Some(&other)), Next::Restart { .. }));
    let mut less = record;
    less.objects.pop_first();
    assert!(matches!(look(&guards, &sight, Some(&less)), Next::Restart { .. }));
}

#[test]
fn an_upgrade_from_one_accepted_spec_to_another_is_no_break_and_a_detour_is_one() {
    let (_, sight) = shipped();
    let objects = objects(CONTROLLER_USER).unwrap();
    let old = json!({"policyName": "portcullis-requests", "validationActions": ["Deny", "Warn"]});
    let guards: Vec<Guard> = objects
        .iter()
        .filter(|object| object.is_guard())
        .map(|object| {
            let guard = Guard::new(object);
            let both = object.kind == BINDING && object.name == "portcullis-requests";
            if both { guard.or(&old) } else { guard }
        })
        .collect();
    let mut before = sight.clone();
    one(&mut before, BINDING, "portcullis-requests").spec = old;
    let record = begun(&guards, &before);
    assert_eq!(look(&guards, &before, Some(&record)), Next::Continue { rewritten: None });
    let mut after = sight;
    one(&mut after, BINDING, "portcullis-requests").generation = 2;
    let Next::Continue { rewritten: Some(rewritten) } = look(&guards, &after, Some(&record)) else {
        panic!("an upgrade is no break");
    };
    assert_eq!(look(&guards, &after, Some(&rewritten)), Next::Continue { rewritten: None });
    // From one that this program does not count on, it is.
    let (present_alone, _) = shipped();
    assert!(matches!(look(&present_alone, &after, Some(&record)), Next::Restart { .. }));
    one(&mut after, BINDING, "portcullis-requests").generation = 3;
    assert!(matches!(look(&guards, &after, Some(&record)), Next::Restart { .. }));
}

#[test]
fn empty_values_and_defaults_are_no_difference() {
    let (guards, sight) = shipped();
    let mut filled = sight.clone();
    for found in &mut filled.found {
        found.spec["somethingNew"] = json!({});
        found.spec["another"] = json!([]);
        found.spec["third"] = Value::Null;
        found.spec["fourth"] = json!({"selector": {"matchLabels": {}}});
    }
    let record = begun(&guards, &sight);
    assert_eq!(look(&guards, &filled, Some(&record)), Next::Continue { rewritten: None });
    let mut bare = sight;
    for found in &mut bare.found {
        found.spec.as_object_mut().unwrap().remove("failurePolicy");
        if let Some(constraints) = found.spec.get_mut("matchConstraints").and_then(Value::as_object_mut) {
            for field in ["matchPolicy", "namespaceSelector", "objectSelector"] {
                constraints.remove(field);
            }
        }
    }
    // The advice is Ignore where it says something, so that its default would be another.
    assert_eq!(look(&guards, &bare, Some(&record)), Next::Continue { rewritten: None });
    one(&mut bare, POLICY, "portcullis-requests").spec["failurePolicy"] = json!("Ignore");
    assert!(matches!(look(&guards, &bare, Some(&record)), Next::Hold { .. }));
}

#[test]
fn a_server_without_stamping_holds_nothing_up_and_one_that_lost_it_is_not_believed() {
    let (guards, mut sight) = shipped();
    let with = begun(&guards, &sight);
    sight.served.retain(|kind| kind.always_served());
    sight.found.retain(|found| found.kind.always_served());
    let without = begun(&guards, &sight);
    assert_eq!(without.objects.len(), 8);
    assert_eq!(look(&guards, &sight, Some(&without)), Next::Continue { rewritten: None });
    let Next::Unknown { why } = look(&guards, &sight, Some(&with)) else { panic!("believed") };
    assert!(why.contains("does not serve MutatingAdmissionPolicy"), "{why}");
    let (_, whole) = shipped();
    assert!(matches!(look(&guards, &whole, Some(&without)), Next::Restart { .. }));
    sight.served.clear();
    assert!(matches!(look(&guards, &sight, None), Next::Hold { .. }));
}

#[test]
fn what_only_speaks_to_people_is_told_of_and_holds_nothing() {
    let (guards, sight) = shipped();
    let objects = objects(CONTROLLER_USER).unwrap();
    let record = begun(&guards, &sight);
    assert_eq!(advice(&objects, &sight), Vec::<String>::new());
    let mut changed = sight;
    one(&mut changed, BINDING, "portcullis-early-word").spec["validationActions"] = json!(["Warn"]);
    changed.found.retain(|found| found.name != "portcullis-warnings");
    assert_eq!(look(&guards, &changed, Some(&record)), Next::Continue { rewritten: None });
    let told = advice(&objects, &changed);
    assert_eq!(told.len(), 3, "{told:?}");
    assert!(told[0].contains("portcullis-early-word is altered (spec.validationActions[0]"), "{told:?}");
    // A guard is judged, and what is not served cannot be looked at.
    one(&mut changed, POLICY, "portcullis-requests").spec["failurePolicy"] = json!("Ignore");
    assert_eq!(advice(&objects, &changed).len(), 3);
    changed.served.clear();
    assert_eq!(advice(&objects, &changed), Vec::<String>::new());
}
