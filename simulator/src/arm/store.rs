//! The goal state: what Resource Manager has accepted, keyed by resource id without regard to case. Nested
//! resources are entries of their own and are embedded in their parents only when read.
//!
//! Every change is also kept in a journal, so that a stale read can be served as of any earlier time.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    ops::Bound,
    sync::Arc,
};

use jiff::Timestamp;
use serde_json::Value;

use super::ids::ResourceId;

/// The provisioning state, as far as clients can tell the difference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Succeeded,
    Updating,
    Deleting,
    Failed,
}

impl State {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "Succeeded",
            Self::Updating => "Updating",
            Self::Deleting => "Deleting",
            Self::Failed => "Failed",
        }
    }
}

/// What a resource says, apart from how far its provisioning is.
#[derive(Debug)]
pub(crate) struct Fact {
    pub(crate) id: ResourceId,
    /// The document without `id`, `name`, `type`, `etag` and without embedded children.
    pub(crate) body: Value,
}

#[derive(Debug, Clone)]
pub(crate) struct Resource {
    pub(crate) fact: Arc<Fact>,
    pub(crate) etag: String,
    pub(crate) state: State,
}

impl Resource {
    pub(crate) fn id(&self) -> &ResourceId {
        &self.fact.id
    }

    pub(crate) fn body(&self) -> &Value {
        &self.fact.body
    }

    pub(crate) fn properties(&self) -> &Value {
        &self.fact.body["properties"]
    }
}

type Entry = (Timestamp, String, Option<Arc<Resource>>);

#[derive(Debug, Default)]
pub(crate) struct Store {
    resources: BTreeMap<String, Arc<Resource>>,
    referrers: HashMap<String, BTreeSet<String>>,
    journal: Vec<Entry>,
}

impl Store {
    pub(crate) fn get(&self, key: &str) -> Option<Arc<Resource>> {
        self.resources.get(key).cloned()
    }

    pub(crate) fn has(&self, key: &str) -> bool {
        self.resources.contains_key(key)
    }

    pub(crate) fn put(&mut self, now: Timestamp, resource: Resource) -> Arc<Resource> {
        let resource = Arc::new(resource);
        self.journal.push((now, resource.id().key.clone(), Some(resource.clone())));
        self.insert(resource.clone());
        resource
    }

    pub(crate) fn remove(&mut self, now: Timestamp, key: &str) -> Option<Arc<Resource>> {
        let old = self.take(key)?;
        self.journal.push((now, key.to_owned(), None));
        Some(old)
    }

    fn insert(&mut self, resource: Arc<Resource>) {
        let key = resource.id().key.clone();
        let same = self.resources.get(&key).is_some_and(|old| Arc::ptr_eq(&old.fact, &resource.fact));
        if !same {
            self.take(&key);
            for target in references(&resource) {
                self.referrers.entry(target).or_default().insert(key.clone());
            }
        }
        self.resources.insert(key, resource);
    }

    fn take(&mut self, key: &str) -> Option<Arc<Resource>> {
        let old = self.resources.remove(key)?;
        for target in references(&old) {
            if let Some(set) = self.referrers.get_mut(&target) {
                set.remove(key);
            }
        }
        Some(old)
    }

    /// Keys of the resources whose documents name this id.
    pub(crate) fn referrers(&self, key: &str) -> impl Iterator<Item = &str> {
        self.referrers.get(key).into_iter().flatten().map(String::as_str)
    }

    /// All resources whose key starts with `prefix`.
    pub(crate) fn under<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.resources
            .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(prefix))
            .map(|(_, resource)| resource)
    }

    /// The children of one type, in the order of their keys.
    pub(crate) fn children(&self, parent: &str, kind: &str) -> Vec<Arc<Resource>> {
        let prefix = format!("{parent}/{}/", kind.to_lowercase());
        self.under(&prefix).filter(|r| !r.id().key[prefix.len()..].contains('/')).cloned().collect()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.resources.values()
    }

    /// The store as it was at an earlier time.
    pub(crate) fn at(&self, time: Timestamp) -> Self {
        let mut past = Self::default();
        for (when, key, resource) in &self.journal {
            if *when > time {
                break;
            }
            match resource {
                Some(resource) => past.insert(resource.clone()),
                None => {
                    past.take(key);
                }
            }
        }
        past
    }
}

/// Ids that a document names, without those below itself.
fn references(resource: &Resource) -> BTreeSet<String> {
    fn walk(value: &Value, own: &str, found: &mut BTreeSet<String>) {
        if let Some(map) = value.as_object() {
            for (name, inner) in map {
                match inner.as_str() {
                    Some(text) if name == "id" && text.starts_with('/') => {
                        let key = text.to_lowercase();
                        if !key.starts_with(own) {
                            found.insert(key);
                        }
                    }
                    Some(_) | None => walk(inner, own, found),
                }
            }
        } else if let Some(list) = value.as_array() {
            for inner in list {
                walk(inner, own, found);
            }
        }
    }
    let mut found = BTreeSet::new();
    walk(resource.body(), &resource.id().key, &mut found);
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resource(path: &str, body: Value) -> Resource {
        let id = ResourceId::parse(path).unwrap();
        Resource { fact: Arc::new(Fact { id, body }), etag: "1".into(), state: State::Succeeded }
    }

    #[test]
    fn the_past_can_be_read_back() {
        let mut store = Store::default();
        let path = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/n";
        let nsg = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network/networkSecurityGroups/w";
        let t = |s: i64| Timestamp::from_second(s).unwrap();
        store.put(t(1), resource(path, json!({"properties": {"networkSecurityGroup": {"id": nsg}}})));
        store.put(t(5), resource(path, json!({"properties": {}})));
        store.remove(t(9), &path.to_lowercase());
        assert!(store.at(t(0)).get(&path.to_lowercase()).is_none());
        assert_eq!(store.at(t(4)).referrers(&nsg.to_lowercase()).count(), 1);
        assert_eq!(store.at(t(6)).referrers(&nsg.to_lowercase()).count(), 0);
        assert!(store.at(t(6)).has(&path.to_lowercase()));
        assert!(!store.has(&path.to_lowercase()));
    }
}
