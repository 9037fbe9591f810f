//! The data plane: what filters packets now, and what did at every earlier time.

use std::collections::BTreeMap;
use std::ops::{Bound, ControlFlow};
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{
    evaluate::{Probe, Verdict, evaluate},
    firewall::Packet,
    index::Index,
    tags::ServiceTags,
};
use crate::{
    arm::{ids::ResourceId, store::Fact},
    resources::firewall::{hub_addresses, public_keys},
};

/// What becomes of a key: another fact, or none.
pub(crate) type Change = (String, Option<Arc<Fact>>);

/// The facts in force, by key.
pub(crate) type Facts = BTreeMap<String, Arc<Fact>>;

#[derive(Debug, Default)]
pub(crate) struct DataPlane {
    current: Facts,
    index: Option<Arc<Index>>,
    history: Vec<(Timestamp, Vec<Change>)>,
    /// What holds for probes that do not say it.
    pub(crate) network_deny_stops_dnat: bool,
}

/// A time during which a packet would have passed; `to` is open while it still would.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Interval {
    pub(crate) from: Timestamp,
    pub(crate) to: Option<Timestamp>,
}

/// A connection that was made.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) since: Timestamp,
    /// Its first packet.
    pub(crate) probe: Probe,
    /// What the machine saw of it, where a firewall translated it.
    pub(crate) translated: Option<Packet>,
}

/// Does this change leave interfaces, networks and addresses as they were?
fn only_rules(key: &str) -> bool {
    let indexed = ["/virtualnetworks/", "/networkinterfaces/", "/publicipaddresses/", "/azurefirewalls/"];
    key.starts_with(ADMIN) || !indexed.iter().any(|part| key.contains(part))
}

const ADMIN: &str = "secadmin:";

impl DataPlane {
    pub(crate) fn apply(&mut self, at: Timestamp, changes: Vec<Change>) {
        let differs = |(key, new): &Change| match (self.current.get(key), new) {
            (Some(old), Some(new)) => !Arc::ptr_eq(old, new),
            (None, None) => false,
            (Some(_), None) | (None, Some(_)) => true,
        };
        let real: Vec<_> = changes.into_iter().filter(differs).collect();
        if real.is_empty() {
            return;
        }
        if real.iter().any(|(key, _)| !only_rules(key)) {
            self.index = None;
        }
        change(&mut self.current, &real);
        self.history.push((at, real));
    }

    /// Keys of a top-level resource and all below it.
    pub(crate) fn keys_under<'a>(&'a self, root: &'a str) -> impl Iterator<Item = &'a String> {
        self.current
            .range::<str, _>((Bound::Included(root), Bound::Unbounded))
            .take_while(move |(key, _)| key.starts_with(root))
            .map(|(key, _)| key)
            .filter(move |key| key.len() == root.len() || key[root.len()..].starts_with('/'))
    }

    pub(crate) fn set_admin_rules(&mut self, at: Timestamp, network: &ResourceId, rules: Value) {
        let fact = Arc::new(Fact { id: network.clone(), body: rules });
        self.apply(at, vec![(format!("{ADMIN}{}", network.key), Some(fact))]);
    }

    pub(crate) fn probe(&mut self, tags: &ServiceTags, probe: &Probe) -> Result<Verdict, String> {
        let index = self.index.get_or_insert_with(|| Arc::new(Index::build(&self.current))).clone();
        evaluate(&self.current, &index, tags, &self.settled(probe))
    }

    /// The probe with everything said.
    fn settled(&self, probe: &Probe) -> Probe {
        let said = probe.network_deny_stops_dnat.unwrap_or(self.network_deny_stops_dnat);
        Probe { network_deny_stops_dnat: Some(said), ..probe.clone() }
    }

    /// When, between two times, such a packet would have passed.
    pub(crate) fn exposure(
        &self,
        tags: &ServiceTags,
        probe: &Probe,
        from: Timestamp,
        to: Timestamp,
    ) -> Result<Vec<Interval>, String> {
        let mut open: Option<Timestamp> = None;
        let mut intervals = vec![];
        self.replay(tags, probe, from, to, |at, verdict, _| {
            let allowed = match verdict {
                Ok(verdict) => verdict.allowed,
                // Before the destination was there, nothing could reach it.
                Err(_) if at < to => false,
                Err(problem) => return Err(problem),
            };
            match (allowed, open) {
                (true, None) => open = Some(at),
                (false, Some(since)) => {
                    if since < at {
                        intervals.push(Interval { from: since, to: Some(at) });
                    }
                    open = None;
                }
                (true, Some(_)) | (false, None) => {}
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if let Some(since) = open {
            intervals.push(Interval { from: since, to: None });
        }
        Ok(intervals)
    }

    /// When a connection that was made at a time was cut, and by what; none while it lives.
    pub(crate) fn cut(
        &self,
        tags: &ServiceTags,
        made: &Connection,
        now: Timestamp,
    ) -> Result<Option<(Timestamp, Verdict)>, String> {
        let mut cut = None;
        self.replay(tags, &made.probe, made.since, now, |at, verdict, facts| {
            let verdict = verdict?;
            let elsewhere = verdict.allowed && verdict.translated != made.translated;
            if elsewhere || (!verdict.allowed && cuts(&verdict, facts)) {
                cut = Some((at, verdict));
                return Ok(ControlFlow::Break(()));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(cut)
    }

    /// Shows `look` every state between two times that may matter to a packet, until it has seen enough.
    fn replay(
        &self,
        tags: &ServiceTags,
        probe: &Probe,
        from: Timestamp,
        to: Timestamp,
        mut look: impl FnMut(Timestamp, Result<Verdict, String>, &Facts) -> Result<ControlFlow<()>, String>,
    ) -> Result<(), String> {
        let probe = &self.settled(probe);
        let mut facts = Facts::new();
        let mut index: Option<Index> = None;
        let mut steps = self.history.iter().peekable();
        while let Some((at, changes)) = steps.next_if(|(at, _)| *at <= from) {
            let _ = at;
            change(&mut facts, changes);
        }
        let watch = Watch::new(&self.history, probe);
        let mut at = from;
        loop {
            let now = index.get_or_insert_with(|| Index::build(&facts));
            let verdict = evaluate(&facts, now, tags, probe);
            if look(at, verdict, &facts)?.is_break() {
                return Ok(());
            }
            // On to the next instant that changes anything for this packet; all changes of an instant count as one.
            let mut seen = Effect::None;
            while let Some((next, changes)) =
                steps.next_if(|(next, _)| *next <= to && (seen == Effect::None || *next == at))
            {
                at = *next;
                for one in changes {
                    seen = seen.max(watch.effect(&facts, one));
                }
                change(&mut facts, changes);
            }
            match seen {
                Effect::None => return Ok(()),
                Effect::Rules => {}
                Effect::Places => index = None,
            }
        }
    }

    /// The facts, for the control door.
    pub(crate) fn dump(&self) -> Value {
        self.current.values().map(|f| json!({"id": f.id.text, "body": f.body})).collect()
    }
}

/// Whether what keeps new packets out also ends a connection that is there. A network security group does not, unless it
/// flushes; a firewall does, and so does a destination that is gone.
fn cuts(verdict: &Verdict, facts: &Facts) -> bool {
    let Some(last) = verdict.decided_by.last() else { return true };
    match last["stage"].as_str() {
        Some("subnet" | "networkInterface") => {
            let group = last["resource"].as_str().unwrap_or("").to_lowercase();
            facts
                .get(&group)
                .is_some_and(|fact| fact.body["properties"]["flushConnection"] == Value::Bool(true))
        }
        Some("securityAdminRule") => false,
        Some(_) | None => true,
    }
}

/// What a change may do to one packet's way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Effect {
    None,
    Rules,
    /// Interfaces, networks or addresses.
    Places,
}

/// The two addresses of a packet, and the public addresses that ever stood for them: in a large world most changes
/// are about others.
struct Watch {
    addresses: [String; 2],
    public: Vec<String>,
    /// A firewall has had one of them: behind it may be any machine.
    through_firewall: bool,
}

impl Watch {
    fn new(history: &[(Timestamp, Vec<Change>)], probe: &Probe) -> Self {
        let addresses = [probe.source.to_string(), probe.destination.to_string()];
        let facts = || history.iter().flat_map(|(_, changes)| changes).filter_map(|(_, fact)| fact.as_ref());
        let holds = |fact: &&Arc<Fact>| {
            let address = fact.body["properties"]["ipAddress"].as_str();
            address.is_some_and(|a| addresses.iter().any(|w| w == a))
        };
        let public: Vec<String> = facts().filter(holds).map(|fact| fact.id.key.clone()).collect();
        let firewalls = || facts().filter(|fact| fact.id.kind() == "network/azurefirewalls");
        let through_firewall = firewalls().any(|fact| {
            let properties = &fact.body["properties"];
            public_keys(properties).iter().any(|key| public.contains(key))
                || hub_addresses(properties).iter().any(|address| addresses.iter().any(|a| a == address))
        });
        Self { addresses, public, through_firewall }
    }

    fn effect(&self, facts: &Facts, (key, new): &Change) -> Effect {
        if key.contains("/microsoft.compute/") {
            return Effect::None;
        }
        if only_rules(key) {
            return Effect::Rules;
        }
        if key.contains("/publicipaddresses/") {
            return if self.public.contains(key) { Effect::Places } else { Effect::None };
        }
        if key.contains("/networkinterfaces/") && !self.through_firewall {
            let touched = [facts.get(key), new.as_ref()].into_iter().flatten().any(|f| self.is_held_by(f));
            return if touched { Effect::Places } else { Effect::None };
        }
        Effect::Places
    }

    fn is_held_by(&self, interface: &Fact) -> bool {
        let configs = interface.body["properties"]["ipConfigurations"].as_array();
        configs.into_iter().flatten().any(|config| {
            let config = &config["properties"];
            let private = config["privateIPAddress"].as_str();
            let public = config["publicIPAddress"]["id"].as_str().map(str::to_lowercase);
            private.is_some_and(|a| self.addresses.iter().any(|w| w == a))
                || public.is_some_and(|p| self.public.contains(&p))
        })
    }
}

fn change(facts: &mut Facts, changes: &[Change]) {
    for (key, new) in changes {
        match new {
            Some(fact) => facts.insert(key.clone(), fact.clone()),
            None => facts.remove(key),
        };
    }
}

/// The security admin rules of a virtual network, in the shape that they were set in.
pub(crate) fn admin_rules(facts: &Facts, network: &str) -> Vec<Value> {
    let found = facts.get(&format!("{ADMIN}{network}"));
    found.and_then(|f| f.body.as_array().cloned()).unwrap_or_default()
}

/// The same as `listNetworkManagerEffectiveSecurityAdminRules` answers them.
pub(crate) fn admin_rules_as_listed(plane: &DataPlane, network: &str) -> Value {
    admin_rules(&plane.current, network)
        .into_iter()
        .map(|rule| {
            let name = rule["name"].as_str().unwrap_or("rule").to_owned();
            let mut properties = rule;
            if let Some(map) = properties.as_object_mut() {
                map.remove("name");
            }
            properties["provisioningState"] = json!("Succeeded");
            json!({
                "id": format!("/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/network-manager/providers/Microsoft.Network/networkManagers/manager/securityAdminConfigurations/configuration/ruleCollections/collection/rules/{name}"),
                "kind": "Custom", "configurationDescription": "", "ruleCollectionDescription": "",
                "ruleCollectionAppliesToGroups": [], "ruleGroups": [], "properties": properties,
            })
        })
        .collect()
}
