//! What is written to a firewall reads back as it was meant, and nothing of anybody else changes.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::classic::differs;
use super::collections::{self, Lists, Ours};
use super::rules::{self, Dialect};
use crate::api::values::{PortRange, Protocol};
use crate::plan::model::{Access, Peer, Provisioning, Rule, RuleProtocol, Translating, Translation};
use crate::providers::Change;

const DIALECTS: [Dialect; 2] = [Dialect::Classic, Dialect::Policy];

fn name(number: usize) -> String {
    format!("portcullis-00c0ffee-allow-0f8fad5bd9cb-20261122T080000Z-{number}")
}

fn a_rule() -> impl Strategy<Value = Rule> {
    (
        0..4usize,
        prop::collection::btree_set(0..200u8, 1..4),
        prop::sample::select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Any]),
        (1..60_000u16, 0..3u16),
        prop::option::of(50_000..63_000u16),
    )
        .prop_map(|(number, sources, protocol, (port, more), led)| Rule {
            name: name(number),
            priority: 0,
            access: Access::Allow,
            protocol: RuleProtocol::Transport(protocol),
            sources: sources.iter().map(|last| Peer::host([203, 0, 113, *last].into())).collect(),
            source_ports: vec![PortRange::ALL],
            destinations: vec![Peer::host([10, 0, 0, 4].into())],
            ports: PortRange::new(port, port + more).into_iter().collect(),
            translation: led.map(|port| Translation { address: [198, 51, 100, 40].into(), port }),
            description: format!("portcullis expires=2026-11-22T08:00:00Z owner=x cluster=00c0ffee {number}"),
            provisioning: Provisioning::Succeeded,
        })
}

/// A collection of somebody else, with what this version does not know.
fn theirs(dialect: Dialect) -> impl Strategy<Value = Value> {
    let of = |number: u16, rules: usize| {
        let rules: Vec<Value> = (0..rules)
            .map(|n| json!({"name": format!("portcullis-look-alike-{n}"), "newInAzure": {"deep": [n, null]}}))
            .collect();
        (number, rules)
    };
    (100..120u16, 0..3usize, any::<bool>()).prop_map(move |(number, rules, nat)| {
        let (number, rules) = of(number, rules);
        let inner = json!({"priority": number, "action": {"type": if nat { "Dnat" } else { "Deny" }}, "rules": rules, "unknown": 1.5});
        match dialect {
            Dialect::Classic => json!({"name": format!("theirs-{number}"), "id": "x", "properties": inner}),
            Dialect::Policy => {
                let mut own = inner;
                own["name"] = json!(format!("theirs-{number}"));
                own
            }
        }
    })
}

/// A rule in a collection of ours that has not the form of ours.
fn guest(dialect: Dialect) -> Value {
    let mut collection = json!({"name": "portcullis-00c0ffee-net"});
    let inner = json!({"priority": 777, "action": {"type": "Allow"}, "rules": [{"name": "guest", "why": "somebody put it here"}]});
    match dialect {
        Dialect::Classic => collection["properties"] = inner,
        Dialect::Policy => {
            for (key, value) in inner.as_object().into_iter().flatten() {
                collection[key] = value.clone();
            }
        }
    }
    collection
}

fn read_back(dialect: Dialect, nat: &[Value], network: &[Value]) -> Vec<Rule> {
    let mut standing = Translating::default();
    for list in [nat, network] {
        let list: Vec<&Value> = list.iter().collect();
        collections::read(&mut standing, &list, dialect, (Ours::Any, None, None), Provisioning::Succeeded);
    }
    rules::assemble(&standing)
}

fn apply(dialect: Dialect, nat: &mut Vec<Value>, network: &mut Vec<Value>, changes: &[Change]) {
    let mut lists = match dialect {
        Dialect::Classic => Lists { dialect, nat, network: Some(network) },
        Dialect::Policy => Lists { dialect, nat, network: None },
    };
    lists.apply(changes).unwrap();
}

proptest! {
    #[test]
    fn what_is_written_reads_back_and_what_is_of_others_is_as_it_was(
        history in prop::collection::vec((a_rule(), any::<bool>()), 1..8),
        classic in prop::collection::vec(theirs(Dialect::Classic), 0..3),
        policy in prop::collection::vec(theirs(Dialect::Policy), 0..3),
        with_guest in any::<bool>(),
    ) {
        for dialect in DIALECTS {
            let others = if dialect == Dialect::Classic { &classic } else { &policy };
            let (mut nat, mut network) = (others.clone(), Vec::new());
            if with_guest {
                let list = if dialect == Dialect::Classic { &mut network } else { &mut nat };
                list.push(guest(dialect));
            }
            let all: Vec<Change> = (0..4).map(|number| Change::Remove(name(number))).collect();
            let before = [collections::of_others(&nat, dialect, &all), collections::of_others(&network, dialect, &all)];
            let mut wanted: std::collections::BTreeMap<String, Rule> = std::collections::BTreeMap::new();
            for (rule, put) in &history {
                let change = if *put { Change::Put(rule.clone()) } else { Change::Remove(rule.name.to_uppercase()) };
                apply(dialect, &mut nat, &mut network, &[change]);
                if *put { wanted.insert(rule.name.clone(), rule.clone()) } else { wanted.remove(&rule.name) };
                let read = read_back(dialect, &nat, &network);
                prop_assert_eq!(read.len(), wanted.len());
                for (read, wanted) in read.iter().zip(wanted.values()) {
                    prop_assert_eq!(&read.name, &wanted.name);
                    prop_assert!(read.same_effect(wanted), "{:?} {:?}", read, wanted);
                    prop_assert_eq!(&read.description, &wanted.description);
                }
                let now = [collections::of_others(&nat, dialect, &all), collections::of_others(&network, dialect, &all)];
                prop_assert_eq!(&now, &before);
                let inner = |collection: &Value| collections::priority(dialect.inner(collection));
                for list in [&nat, &network] {
                    let ours: Vec<_> = list.iter().filter(|it| collections::of_ours(it).is_some()).filter_map(inner).collect();
                    let theirs: Vec<_> = list.iter().filter(|it| collections::of_ours(it).is_none()).filter_map(inner).collect();
                    prop_assert!(ours.iter().all(|number| !theirs.contains(number)), "{:?} {:?}", ours, theirs);
                }
            }
            apply(dialect, &mut nat, &mut network, &all);
            prop_assert_eq!(read_back(dialect, &nat, &network), vec![]);
        }
    }

    /// Whatever somebody makes of a part of a rule, it is no longer as it was written.
    #[test]
    fn a_part_that_somebody_changed_reads_as_another_rule(rule in a_rule(), what in 0..6usize, classic in any::<bool>()) {
        let dialect = if classic { Dialect::Classic } else { Dialect::Policy };
        let (mut nat, mut network) = (Vec::new(), Vec::new());
        apply(dialect, &mut nat, &mut network, &[Change::Put(rule.clone())]);
        let list = if dialect == Dialect::Classic { &mut network } else { &mut nat };
        let place = list.len() - 1;
        let inner = dialect.inner_mut(&mut list[place]);
        let part = &mut inner["rules"][0];
        match what {
            0 => part["sourceAddresses"] = json!(["*"]),
            1 => part["destinationPorts"] = json!(["*"]),
            2 => part["destinationAddresses"] = json!(["10.0.0.0/8"]),
            3 => part["sourceIpGroups"] = json!(["/group"]),
            4 => part["name"] = json!("renamed"),
            _ => inner["action"]["type"] = json!("Deny"),
        }
        let read = read_back(dialect, &nat, &network);
        let same = read.iter().any(|read| read.name == rule.name && read.same_effect(&rule));
        prop_assert!(!same, "{:?}", read);
        // Where some of it is left, it is to be seen, and so to be closed.
        prop_assert!(what == 4 || read.iter().any(|read| read.name == rule.name && read.access == Access::Allow));
    }

    #[test]
    fn no_answer_whatsoever_stops_the_controller(strange in super::super::wire::garbage::json_like()) {
        for dialect in DIALECTS {
            let mut standing = Translating::default();
            let wrapped = json!({"name": "portcullis-00c0ffee-nat", "rules": [strange], "properties": {"rules": [strange], "action": {"type": "Dnat"}}});
            collections::read(&mut standing, &[&strange, &wrapped], dialect, (Ours::Any, None, None), Provisioning::Succeeded);
            let _ = rules::assemble(&standing);
            let mut list = vec![strange.clone(), wrapped];
            let _ = Lists { dialect, nat: &mut list, network: None }.apply(&[Change::Remove(name(0))]);
        }
    }
}

#[test]
fn what_of_others_is_not_as_it_was_is_told_and_nothing_else() {
    let collection = |name: &str, number: u16| json!({"name": name, "etag": "1", "properties": {"priority": number, "provisioningState": "Updating", "rules": [{"name": "r"}]}});
    let ours = |rules: Value| json!({"name": "portcullis-00c0ffee-nat", "properties": {"priority": 100, "rules": rules}});
    let body = |nat: Value, more: Value| {
        let mut body = json!({"etag": "1", "tags": {"a": "b"}, "properties": {"provisioningState": "Succeeded", "threatIntelMode": "Alert", "natRuleCollections": nat}});
        for (key, value) in more.as_object().into_iter().flatten() {
            body["properties"][key] = value.clone();
        }
        body
    };
    let before = body(json!([collection("theirs", 200)]), json!({}));
    let changes = [Change::Remove(name(0))];
    let mut same = body(
        json!([ours(json!([{"name": name(0)}])), collection("theirs", 200)]),
        json!({"provisioningState": "Updating"}),
    );
    same["etag"] = json!("2");
    assert_eq!(differs(&before, &same, &changes), Vec::<String>::new());
    for (after, words) in [
        (body(json!([]), json!({})), "collection theirs of natRuleCollections is gone"),
        (
            body(json!([collection("theirs", 201)]), json!({})),
            "collection theirs of natRuleCollections is not as it was",
        ),
        (
            body(json!([collection("theirs", 200), collection("new", 300)]), json!({})),
            "collection new of natRuleCollections is new",
        ),
        (
            body(json!([collection("theirs", 200)]), json!({"threatIntelMode": "Deny"})),
            "properties.threatIntelMode is not as it was",
        ),
        (
            body(json!([ours(json!([{"name": "guest"}])), collection("theirs", 200)]), json!({})),
            "collection portcullis-00c0ffee-nat of natRuleCollections is new",
        ),
    ] {
        assert_eq!(differs(&before, &after, &changes), [words]);
    }
}
