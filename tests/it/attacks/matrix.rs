//! The generated matrix: every field, by every verb, of the object and of its subresources, by everybody; what the API
//! server does, and what the object looks like afterwards, is held against a small model.

mod change;
mod fields;
mod model;
mod objects;

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::StreamExt;
use reqwest::Method;
use serde_json::{Value, json};

use super::people::{Actor, Answer, with_cast};
use change::{Change, pointer};
use model::{Attempt, Expected, Kind, Part, Verb};
use objects::{Stock, comparable};

/// Attempts under way at once.
const AT_ONCE: usize = 24;
const UNKNOWN: [Part; 2] = [Part::Unknown("scale"), Part::Unknown("approve")];

/// Everything that can be tried at one kind by somebody, in the same order for everybody.
fn everything(actor: Actor, kind: Kind, stock: &Stock) -> Vec<Attempt<'_>> {
    use Verb::{
        Apply, ApplyForced, ApplyNew, Create, Delete, DeleteCollection, JsonPatch, MergePatch, Put,
        StrategicPatch,
    };
    let at = |verb, part, change| Attempt { actor, kind, verb, part, change };
    let mut all = Vec::new();
    for change in stock.made(kind) {
        all.extend([Create, ApplyNew].map(|verb| at(verb, Part::Main, Some(change))));
    }
    for change in stock.changed(kind) {
        for part in [Part::Main, Part::Status] {
            let verbs = [Put, JsonPatch, MergePatch, Apply, ApplyForced];
            all.extend(verbs.map(|verb| at(verb, part, Some(change))));
        }
    }
    for part in [Part::Main, Part::Status].into_iter().chain(UNKNOWN) {
        all.push(at(StrategicPatch, part, None));
        all.push(at(Delete, part, None));
    }
    all.push(at(DeleteCollection, Part::Main, None));
    for part in UNKNOWN {
        let change = stock.changed(kind).iter().find(|change| change.pointer() == "/metadata/labels/attack");
        all.extend([Put, JsonPatch, MergePatch, Apply].map(|verb| at(verb, part, change)));
    }
    // A field cannot be taken out by applying, and what is applied has its name in the path.
    all.retain(|attempt| match (attempt.verb, attempt.change) {
        (Apply | ApplyForced, Some(change)) => change.to.is_some(),
        (ApplyNew, Some(change)) => change.pointer() != "/metadata/generateName",
        _ => true,
    });
    all
}

/// One attempt in how many is made. Who lacks the right is refused before anything is read; a status that comes with
/// an object is dropped before it is looked at; and several have the same rights to what is there already.
fn one_in(attempt: &Attempt<'_>) -> usize {
    let Some(change) = attempt.change else { return 1 };
    let new = matches!(attempt.verb, Verb::Create | Verb::ApplyNew);
    let alone = matches!(attempt.actor, Actor::Controller | Actor::PolicyAdmin | Actor::Approver);
    match attempt.missing() {
        Some(_) => 8,
        None if attempt.part == Part::Main && change.at[0] == "status" => 4,
        None if new || alone || change.at[0] == "metadata" => 1,
        None => 2,
    }
}

/// The attempts at one kind: what one leaves out, its equals try.
fn attempts(kind: Kind, stock: &Stock) -> Vec<Attempt<'_>> {
    let all = std::env::var("PORTCULLIS_ATTACKS").is_ok_and(|which| which == "all");
    let of = |actor: Actor| {
        let tried = everything(actor, kind, stock).into_iter().enumerate();
        tried.filter(move |(place, attempt)| all || (place + actor as usize).is_multiple_of(one_in(attempt)))
    };
    Actor::ALL.into_iter().flat_map(of).map(|(_, attempt)| attempt).collect()
}

/// What is sent, and to where.
fn message(
    stock: &Stock,
    attempt: &Attempt<'_>,
    number: usize,
) -> (Method, String, &'static str, Option<Value>) {
    let kind = attempt.kind;
    let folder = stock.path(kind);
    let object = stock.object(kind);
    let subresource = match attempt.part {
        Part::Main => String::new(),
        Part::Status => "/status".to_owned(),
        Part::Unknown(name) => format!("/{name}"),
    };
    let path = format!("{folder}/{}{subresource}", object["metadata"]["name"].as_str().unwrap());
    let new = || {
        let mut body = attempt.change.unwrap().made_to(&stock.template(kind, attempt.actor));
        let name = format!("new-{number}");
        if body["metadata"]["generateName"].is_null() {
            body["metadata"]["name"] = json!(name);
        } else {
            body["metadata"].as_object_mut().unwrap().remove("name");
        }
        (body, format!("{folder}/{name}"))
    };
    let json = "application/json";
    let applied = "application/apply-patch+yaml";
    match (attempt.verb, attempt.change) {
        (Verb::Create, Some(_)) => (Method::POST, folder.clone(), json, Some(new().0)),
        (Verb::ApplyNew, Some(_)) => {
            let (body, path) = new();
            (Method::PATCH, path, applied, Some(body))
        }
        (Verb::Put, Some(change)) => (Method::PUT, path, json, Some(change.made_to(object))),
        (Verb::JsonPatch, Some(change)) => {
            (Method::PATCH, path, "application/json-patch+json", Some(change.json_patch(object)))
        }
        (Verb::MergePatch, Some(change)) => {
            (Method::PATCH, path, "application/merge-patch+json", Some(change.merge_patch(object)))
        }
        (Verb::Apply | Verb::ApplyForced, Some(change)) => {
            (Method::PATCH, path, applied, Some(change.applied(object).unwrap()))
        }
        (Verb::StrategicPatch, _) => {
            let body = json!({"metadata": {"labels": {"attack": "x"}}});
            (Method::PATCH, path, "application/strategic-merge-patch+json", Some(body))
        }
        (Verb::Delete, _) => (Method::DELETE, path, json, None),
        (Verb::DeleteCollection, _) => (Method::DELETE, folder.clone(), json, None),
        (verb, None) => panic!("{verb:?} writes something"),
    }
}

/// Whether a field stands there already and is somebody else's: applying another value without force is a conflict.
fn present(schema: &Value, object: &Value, at: &[String]) -> bool {
    let (mut here, mut keys) = (schema, &Value::Null);
    for depth in 0..at.len() {
        let found = object.pointer(&pointer(&at[..=depth])).is_some();
        if here["items"].is_object() {
            keys = &here["x-kubernetes-list-map-keys"];
            here = &here["items"];
            continue;
        }
        // The key of a list tells which item is meant: another key is another item.
        if keys.as_array().is_some_and(|keys| keys.contains(&json!(at[depth]))) {
            return false;
        }
        here = &here["properties"][&at[depth]];
        keys = &Value::Null;
        let whole = here["type"] == "array" && here["x-kubernetes-list-type"] != "map";
        if found && (whole || depth + 1 == at.len()) {
            return true;
        }
    }
    false
}

/// What is wrong with an answer, in words.
fn judge(stock: &Stock, attempt: &Attempt<'_>, expected: Expected, answer: &Answer) -> Option<String> {
    let well = (200..300).contains(&answer.code);
    let object = stock.object(attempt.kind);
    let said = answer.message();
    match expected {
        Expected::Refused(words) => {
            // An item without its key is an error of the API server's own when it is applied.
            let known = (400..500).contains(&answer.code) || said.contains("failed to create typed patch");
            let refused = known && words.iter().any(|word| said.contains(word));
            return (!refused).then(|| format!("should be refused with {words:?}"));
        }
        Expected::Harmless if !well => {
            return (answer.code >= 500).then(|| "should be refused or ignored".to_owned());
        }
        Expected::Done | Expected::NoEffect if !well => return Some("should be done".to_owned()),
        Expected::Done | Expected::NoEffect | Expected::Harmless => {}
    }
    let change = attempt.change?;
    if matches!(attempt.verb, Verb::Create | Verb::ApplyNew) {
        return stock.judge_new(attempt, expected, &answer.body);
    }
    let wanted = match expected {
        Expected::Done => stock.after(attempt),
        _ => object.clone(),
    };
    let (mut wanted, mut found) = (comparable(&wanted), comparable(&answer.body));
    // What the API server has its own mind about, or fills in again.
    let own = match expected {
        Expected::Harmless if attempt.part == Part::Status && change.at[0] == "status" => vec!["status"],
        Expected::Harmless => vec!["metadata"],
        Expected::Done if attempt.kind == Kind::Policy && change.to.is_none() => vec!["spec"],
        _ => vec![],
    };
    for key in own {
        wanted.as_object_mut().unwrap().remove(key);
        found.as_object_mut().unwrap().remove(key);
    }
    (wanted != found).then(|| format!("{expected:?}: should look like {wanted} and looks like {found}"))
}

#[test]
fn every_field_by_every_verb_by_everybody_is_as_the_model_says() {
    with_cast("matrix", |cast| async move {
        let stock = Stock::new(&cast).await;
        let all: Vec<Attempt<'_>> = Kind::ALL.into_iter().flat_map(|kind| attempts(kind, &stock)).collect();
        let schemas: BTreeMap<Kind, Value> =
            Kind::ALL.into_iter().map(|kind| (kind, fields::schema(kind))).collect();
        let wrong: Mutex<BTreeMap<String, (String, Vec<Actor>)>> = Mutex::new(BTreeMap::new());
        let tally: [AtomicUsize; 4] = Default::default();
        let begun = std::time::Instant::now();
        futures::stream::iter(all.iter().enumerate())
            .for_each_concurrent(AT_ONCE, |(number, attempt)| {
                let (cast, stock, schemas, wrong, tally) = (&cast, &stock, &schemas, &wrong, &tally);
                async move {
                    let kind = attempt.kind;
                    let new = matches!(attempt.verb, Verb::Create | Verb::ApplyNew);
                    let template = stock.template(kind, attempt.actor);
                    let object = if new { &template } else { stock.object(kind) };
                    let present = attempt
                        .change
                        .is_some_and(|change| present(&schemas[&kind], stock.object(kind), &change.at));
                    let expected = attempt.expected(object, present);
                    let (method, mut path, content, body) = message(stock, attempt, number);
                    path += "?fieldManager=attacker";
                    if attempt.verb == Verb::ApplyForced {
                        path += "&force=true";
                    }
                    // What is to be refused is meant in earnest.
                    if !matches!(expected, Expected::Refused(_)) {
                        path += "&dryRun=All";
                    }
                    let person = cast.person(attempt.actor);
                    let answer = cast.send_as(person, method, &path, content, body.as_ref(), &[]).await;
                    let place = match expected {
                        Expected::Done => 0,
                        Expected::NoEffect => 1,
                        Expected::Harmless => 2,
                        Expected::Refused(_) => 3,
                    };
                    tally[place].fetch_add(1, Ordering::Relaxed);
                    if let Some(why) = judge(stock, attempt, expected, &answer) {
                        let what = format!(
                            "{:?} {:?} {:?} {} to {}",
                            attempt.verb,
                            kind,
                            attempt.part,
                            attempt.change.map_or(String::new(), Change::pointer),
                            attempt
                                .change
                                .and_then(|change| change.to.clone())
                                .map_or("nothing".to_owned(), |to| to.to_string()),
                        );
                        let said = format!("{why}; the server said {} {}", answer.code, answer.message());
                        let mut wrong = wrong.lock().unwrap();
                        wrong.entry(what).or_insert((said, Vec::new())).1.push(attempt.actor);
                    }
                }
            })
            .await;
        let took = begun.elapsed();
        let [done, none, harmless, refused] = tally.map(AtomicUsize::into_inner);
        println!(
            "{} attempts in {took:.1?}: {done} done, {none} without effect, {harmless} harmless, {refused} refused",
            all.len()
        );
        let wrong = wrong.into_inner().unwrap();
        for (what, (said, actors)) in &wrong {
            println!("{what}\n    by {actors:?}: {said}");
        }
        assert!(wrong.is_empty(), "{} kinds of attempt are not as the model says", wrong.len());
        assert!(done > 500 && none > 500 && refused > 5000, "the matrix has lost its attempts");
        stock.is_as_it_was(&cast).await;
    });
}
