//! The collections that rules of ours stand in, and what is changed in them.
//!
//! They are called `portcullis-<cluster8>-nat` and `portcullis-<cluster8>-net`, and take the lowest priority number that is
//! free. Every other collection is somebody else's and is carried as it was read, and so is every rule in ours that has not
//! the form of ours.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use super::rules::{self, Around, Dialect, base};
use crate::plan::model::{MIN_PRIORITY, Provisioning, Translating};
use crate::providers::Change;
use crate::providers::azure::wire::{items, text};

/// What the two kinds of collections of ours end in.
const NAT: &str = "nat";
const NETWORK: &str = "net";
/// The highest priority number of a collection or group.
const MAX_PRIORITY: u16 = 65_000;

/// The mark of a cluster that a rule of ours carries in its name; none where it is no rule of ours.
pub(super) fn mark(rule: &str) -> Option<String> {
    let rule = rule.to_ascii_lowercase();
    let mark = rule.strip_prefix("portcullis-")?.split('-').next()?;
    is_mark(mark).then(|| mark.to_owned())
}

fn is_mark(text: &str) -> bool {
    text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The mark of a collection of ours.
pub(super) fn of_ours(collection: &Value) -> Option<String> {
    let name = text(collection, "/name")?.to_ascii_lowercase();
    let (mark, kind) = name.strip_prefix("portcullis-")?.split_once('-')?;
    (is_mark(mark) && (kind == NAT || kind == NETWORK)).then(|| mark.to_owned())
}

/// Lists of collections: one where both kinds stand together, two where each has its own.
pub(super) struct Lists<'a> {
    pub(super) dialect: Dialect,
    pub(super) nat: &'a mut Vec<Value>,
    /// None: the same.
    pub(super) network: Option<&'a mut Vec<Value>>,
}

impl Lists<'_> {
    /// Makes changes to rules of ours.
    ///
    /// # Errors
    /// A rule that such a firewall cannot hold, or where no priority number is free.
    pub(super) fn apply(&mut self, changes: &[Change]) -> Result<(), String> {
        for change in changes {
            if *change == Change::CutSessions {
                return Err("an Azure Firewall has no flushConnection".to_owned());
            }
            self.remove(change.rule());
            if let Change::Put(rule) = change {
                let mark = mark(&rule.name)
                    .ok_or_else(|| format!("{:?} is not the name of a rule of ours", rule.name))?;
                let parts = rules::encode(rule, self.dialect)?;
                for part in parts.nat {
                    self.collection(&mark, NAT)?.push(part);
                }
                self.collection(&mark, NETWORK)?.push(parts.network);
            }
        }
        let dialect = self.dialect;
        let is_left = |collection: &Value| {
            of_ours(collection).is_none() || !items(dialect.inner(collection), "/rules").is_empty()
        };
        self.nat.retain(is_left);
        if let Some(network) = &mut self.network {
            network.retain(is_left);
        }
        Ok(())
    }

    fn remove(&mut self, name: &str) {
        let dialect = self.dialect;
        let lists = std::iter::once(&mut *self.nat).chain(self.network.as_deref_mut());
        for collection in lists.flatten().filter(|collection| of_ours(collection).is_some()) {
            if let Some(rules) = dialect.inner_mut(collection).get_mut("rules").and_then(Value::as_array_mut)
            {
                rules.retain(|rule| {
                    !text(rule, "/name").is_some_and(|own| base(own).eq_ignore_ascii_case(name))
                });
            }
        }
    }

    /// The rules of a collection of ours, which is made where there is none, and moved where a lower number is free.
    fn collection(&mut self, mark: &str, kind: &str) -> Result<&mut Vec<Value>, String> {
        let dialect = self.dialect;
        let name = format!("portcullis-{mark}-{kind}");
        let list = match (kind, &mut self.network) {
            (NETWORK, Some(network)) => &mut **network,
            _ => &mut *self.nat,
        };
        let is_it =
            |collection: &Value| text(collection, "/name").is_some_and(|own| own.eq_ignore_ascii_case(&name));
        let place = match list.iter().position(is_it) {
            Some(place) => place,
            None => {
                list.push(empty(&name, kind, dialect));
                list.len() - 1
            }
        };
        let taken: BTreeSet<u16> = list
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != place)
            .filter_map(|(_, other)| priority(dialect.inner(other)))
            .collect();
        let free = lowest_free(&taken).ok_or("no priority number is free for a collection")?;
        let inner = dialect.inner_mut(&mut list[place]);
        inner["priority"] = json!(free);
        if !inner.get("rules").is_some_and(Value::is_array) {
            inner["rules"] = json!([]);
        }
        inner["rules"].as_array_mut().ok_or_else(|| "a collection has no list of rules".to_owned())
    }
}

fn empty(name: &str, kind: &str, dialect: Dialect) -> Value {
    let nat = kind == NAT;
    match dialect {
        Dialect::Classic => json!({
            "name": name,
            "properties": {"action": {"type": if nat { "Dnat" } else { "Allow" }}, "rules": []},
        }),
        Dialect::Policy => json!({
            "name": name,
            "ruleCollectionType":
                if nat { "FirewallPolicyNatRuleCollection" } else { "FirewallPolicyFilterRuleCollection" },
            "action": {"type": if nat { "DNAT" } else { "Allow" }},
            "rules": [],
        }),
    }
}

/// The lowest number that a collection or group may have and none of these has.
pub(super) fn lowest_free(taken: &BTreeSet<u16>) -> Option<u16> {
    (MIN_PRIORITY..=MAX_PRIORITY).find(|number| !taken.contains(number))
}

/// The priority number of a collection or group.
pub(super) fn priority(of: &Value) -> Option<u16> {
    of.get("priority").and_then(Value::as_u64).and_then(|number| u16::try_from(number).ok())
}

/// Which collections are looked into for rules of ours.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ours<'a> {
    /// None: they are somebody else's, whatever they are called.
    None,
    /// All that are called so.
    Any,
    /// Those of one mark.
    Of(&'a str),
}

/// Collections that are judged one after the other, and whether network rules in them come before ours. `number` is that of
/// the group that they are in, where there is one.
pub(super) fn read(
    standing: &mut Translating,
    collections: &[&Value],
    dialect: Dialect,
    (ours, before_ours, number): (Ours<'_>, Option<bool>, Option<u16>),
    provisioning: Provisioning,
) {
    // That the last write of the whole failed says nothing of a rule that stands: it is no reason to end its grant.
    let provisioning = match provisioning {
        Provisioning::Failed => Provisioning::Succeeded,
        Provisioning::Succeeded | Provisioning::Updating => provisioning,
    };
    let mut collections: Vec<&Value> = collections.to_vec();
    collections.sort_by_key(|collection| priority(dialect.inner(collection)).unwrap_or(u16::MAX));
    // Where ours stands; where there is none, it would go to the lowest number that is free.
    let mark_in = |collection: &Value| match (ours, of_ours(collection)) {
        (Ours::None, _) | (_, None) => None,
        (Ours::Any, mark) => mark,
        (Ours::Of(wanted), Some(mark)) => (mark == wanted).then_some(mark),
    };
    let is_ours = |collection: &&&Value| {
        mark_in(collection).is_some()
            && text(collection, "/name").is_some_and(|name| name.to_ascii_lowercase().ends_with(NETWORK))
    };
    let ours = collections.iter().find(is_ours);
    let ours = ours.and_then(|collection| priority(dialect.inner(collection)));
    let taken: BTreeSet<u16> =
        collections.iter().filter_map(|collection| priority(dialect.inner(collection))).collect();
    let place = ours.into_iter().chain(lowest_free(&taken)).min().unwrap_or(u16::MAX);
    for collection in collections {
        let inner = dialect.inner(collection);
        let action = text(inner, "/action/type").unwrap_or_default();
        let priority = priority(inner).unwrap_or(u16::MAX);
        let mark = mark_in(collection);
        let around = Around {
            dialect,
            collection: text(collection, "/name").unwrap_or_default(),
            mark: mark.as_deref(),
            priority: before_ours.map_or(priority, |_| number.unwrap_or(priority)),
            denies: action.eq_ignore_ascii_case("deny"),
            comes_first: before_ours.unwrap_or(priority < place),
            provisioning,
        };
        for rule in items(inner, "/rules") {
            match text(rule, "/ruleType") {
                Some("ApplicationRule") => {}
                _ if action.eq_ignore_ascii_case("dnat") => {
                    standing.translations.push(rules::onward(rule, around));
                }
                _ => standing.filters.push(rules::filter(rule, around)),
            }
        }
    }
}

/// What others have in lists of collections, by name, without what changes by itself: to be compared.
pub(super) fn of_others(list: &[Value], dialect: Dialect, changes: &[Change]) -> BTreeMap<String, Value> {
    let touched = |rule: &Value| {
        let name = text(rule, "/name").map(base);
        changes.iter().any(|change| name.is_some_and(|name| change.rule().eq_ignore_ascii_case(name)))
    };
    let mut others = BTreeMap::new();
    for collection in list {
        let mut own = collection.clone();
        for member in ["etag", "id", "type"] {
            if let Some(map) = own.as_object_mut() {
                map.remove(member);
            }
        }
        let is_ours = of_ours(collection).is_some();
        let inner = dialect.inner_mut(&mut own);
        if let Some(map) = inner.as_object_mut() {
            map.remove("provisioningState");
            if is_ours {
                map.remove("priority");
            }
        }
        if let (true, Some(rules)) = (is_ours, inner.get_mut("rules").and_then(Value::as_array_mut)) {
            rules.retain(|rule| !touched(rule));
            if rules.is_empty() {
                continue;
            }
        }
        others.insert(text(collection, "/name").unwrap_or_default().to_owned(), own);
    }
    others
}
