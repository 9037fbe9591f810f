//! The control door, `/_sim/`: everything a test needs that Azure does not have. No token is asked for.

pub(crate) mod activity;
pub(crate) mod clock;
pub(crate) mod faults;
pub(crate) mod settings;
pub(crate) mod setup;

use jiff::Timestamp;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{
    Options,
    arm::{ids::ResourceId, paging},
    http::{Call, Reply},
    identity::principals::Principal,
    oracle::{evaluate::Probe, plane::Connection},
    world::World,
};

/// A refusal names the field and what would be right.
fn refuse(status: u16, message: impl Into<String>) -> Reply {
    let message: String = message.into();
    Reply::json(status, json!({"error": {"code": "BadControlRequest", "message": message}}))
}

fn read<T: DeserializeOwned>(call: &Call) -> Result<T, String> {
    let body: &[u8] = if call.body.is_empty() { b"{}" } else { &call.body };
    serde_json::from_slice(body).map_err(|e| format!("{}: {e}", call.path))
}

/// One document or a list of them; says which.
fn read_list<T: DeserializeOwned>(call: &Call) -> Result<(Vec<T>, bool), String> {
    let value: Value = read(call)?;
    // Told apart by hand, for error messages that name the field.
    let convert = |v: Value| serde_json::from_value(v).map_err(|e| format!("{}: {e}", call.path));
    if let Value::Array(list) = value {
        return Ok((list.into_iter().map(convert).collect::<Result<_, _>>()?, true));
    }
    Ok((vec![convert(value)?], false))
}

/// Answers a request to the control door.
pub(crate) fn answer(world: &mut World, options: &Options, call: &Call) -> Reply {
    let path = call.path.trim_end_matches('/').to_lowercase();
    let what = path.strip_prefix("/_sim").unwrap_or("").trim_start_matches('/').to_owned();
    if what == "reset" && call.method == "POST" {
        *world = World::new(options);
        return Reply::empty(204);
    }
    if what == "clock" && call.method == "POST" {
        return clock(world, call).unwrap_or_else(|m| refuse(400, m));
    }
    if what == "world" && call.method == "POST" {
        return setup::build(world, call).unwrap_or_else(|m| refuse(400, m));
    }
    world.at_once(|world| route(world, call, &what)).unwrap_or_else(|m| refuse(400, m))
}

fn route(world: &mut World, call: &Call, what: &str) -> Result<Reply, String> {
    match (call.method.as_str(), what) {
        ("GET", "" | "health") => Ok(Reply::ok(json!({"status": "ready"}))),
        ("GET", "clock") => Ok(Reply::ok(show_clock(world))),
        ("POST", "probe") => {
            let (probes, many) = read_list::<Probe>(call)?;
            let tags = &world.service_tags;
            let plane = &mut world.plane;
            let answers: Result<Vec<Value>, String> =
                probes.iter().map(|p| plane.probe(tags, p).map(|v| v.show())).collect();
            let mut answers = answers?;
            Ok(Reply::ok(if many { json!(answers) } else { answers.swap_remove(0) }))
        }
        ("POST", "exposure") => exposure(world, call),
        ("POST", "connect") => connect(world, &read(call)?),
        ("GET", "connections") => Ok(Reply::ok(connections(world))),
        ("GET", "faults") => Ok(Reply::ok(world.faults.show())),
        ("POST", "faults") => {
            let (rules, _) = read_list(call)?;
            world.faults.add(rules)?;
            Ok(Reply::ok(world.faults.show()))
        }
        ("DELETE", "faults") => {
            world.faults.clear();
            Ok(Reply::empty(204))
        }
        ("GET", "latency" | "settings") => Ok(Reply::ok(world.settings.show())),
        ("POST", "latency" | "settings") => {
            world.settings.change(read(call)?)?;
            world.plane.network_deny_stops_dnat = world.settings.network_deny_stops_dnat;
            Ok(Reply::ok(world.settings.show()))
        }
        ("GET", "activity") => activity(world, call),
        ("DELETE", "activity") => {
            world.activity.clear();
            Ok(Reply::empty(204))
        }
        ("GET", "principals") => Ok(Reply::ok(world.principals.show())),
        ("POST" | "PUT", "principals") => {
            let (principals, _) = read_list::<Principal>(call)?;
            for principal in principals {
                world.principals.set(principal);
            }
            Ok(Reply::ok(world.principals.show()))
        }
        ("POST", "subscriptions") => {
            let new: Subscription = read(call)?;
            let tenant = new.tenant.unwrap_or_else(|| world.principals.tenant.clone());
            world.subscriptions.insert(new.subscription_id.to_lowercase(), tenant.to_lowercase());
            Ok(Reply::ok(json!(world.subscriptions)))
        }
        ("GET", "subscriptions") => Ok(Reply::ok(json!(world.subscriptions))),
        ("POST", "secadmin") => {
            let new: AdminRules = read(call)?;
            let network = ResourceId::parse(&new.virtual_network)
                .filter(|id| id.kind() == "network/virtualnetworks")
                .ok_or("virtualNetwork: the id of a virtual network is expected")?;
            let rules = new.rules.into_iter().enumerate().map(|(i, r)| admin_rule(i, r));
            let rules: Value = rules.collect::<Result<Vec<Value>, String>>()?.into();
            world.plane.set_admin_rules(world.now(), &network, rules);
            Ok(Reply::empty(204))
        }
        ("POST", "service-tags") => {
            let tags: std::collections::BTreeMap<String, Vec<String>> = read(call)?;
            for (tag, prefixes) in &tags {
                world.service_tags.set(tag, prefixes)?;
            }
            Ok(Reply::empty(204))
        }
        ("GET", "world") => Ok(Reply::ok(setup::dump(world))),
        (method, other) => Ok(refuse(404, format!("{method} /_sim/{other} is not known; see README.md"))),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Subscription {
    subscription_id: String,
    #[serde(default)]
    tenant: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct AdminRules {
    virtual_network: String,
    rules: Vec<Value>,
}

fn admin_rule(index: usize, mut rule: Value) -> Result<Value, String> {
    let choose =
        |name: &str, known: &[&str]| {
            let given = rule[name].as_str().unwrap_or("");
            known.iter().find(|k| k.eq_ignore_ascii_case(given)).map(|k| (*k).to_owned()).ok_or_else(|| {
                format!("rules[{index}].{name}: {given:?} must be one of {}", known.join(", "))
            })
        };
    let access = choose("access", &["Allow", "Deny", "AlwaysAllow"])?;
    let direction = choose("direction", &["Inbound", "Outbound"])?;
    let protocol = choose("protocol", &["Any", "Tcp", "Udp", "Icmp", "Esp", "Ah"])?;
    if !rule["priority"].as_i64().is_some_and(|p| (1..=4096).contains(&p)) {
        return Err(format!("rules[{index}].priority: an integer from 1 to 4096 is expected"));
    }
    rule["access"] = json!(access);
    rule["direction"] = json!(direction);
    rule["protocol"] = json!(protocol);
    if rule["name"].as_str().is_none() {
        rule["name"] = json!(format!("rule-{index}"));
    }
    Ok(rule)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ClockChange {
    #[serde(default)]
    step: Option<clock::Span>,
    #[serde(default)]
    set: Option<Timestamp>,
    #[serde(default)]
    scale: Option<f64>,
    #[serde(default)]
    date_skew: Option<clock::Span>,
}

fn clock(world: &mut World, call: &Call) -> Result<Reply, String> {
    let change: ClockChange = read(call)?;
    // What is due before the jump happens first.
    world.advance();
    if let Some(skew) = change.date_skew {
        world.clock.date_skew = skew.0;
    }
    if let Some(scale) = change.scale {
        world.clock.run_at(scale)?;
    }
    if let Some(to) = change.set {
        world.clock.set(to)?;
    }
    if let Some(by) = change.step {
        world.clock.step(by.0)?;
    }
    world.advance();
    Ok(Reply::ok(show_clock(world)))
}

fn show_clock(world: &World) -> Value {
    json!({"now": world.now().to_string(), "scale": world.clock.scale(),
           "dateSkew": world.clock.date_skew.as_secs_f64(), "pendingEvents": world.pending_events()})
}

fn exposure(world: &mut World, call: &Call) -> Result<Reply, String> {
    let mut document: Value = read(call)?;
    let mut time =
        |name: &str, default: Timestamp| match document.as_object_mut().and_then(|m| m.remove(name)) {
            None | Some(Value::Null) => Ok(default),
            Some(value) => serde_json::from_value(value).map_err(|e| format!("{name}: {e}")),
        };
    let now = world.now();
    let from = time("from", Timestamp::MIN)?;
    let to = time("to", now)?;
    if to < from {
        return Err(format!("to: {to} is before from, {from}"));
    }
    let probe: Probe = serde_json::from_value(document).map_err(|e| format!("{}: {e}", call.path))?;
    let found = world.plane.exposure(&world.service_tags, &probe, from, to)?;
    let intervals: Vec<Value> = found
        .iter()
        .map(|i| json!({"from": i.from.to_string(), "to": i.to.map(|t| t.to_string())}))
        .collect();
    Ok(Reply::ok(json!({"intervals": intervals, "observedUntil": to.min(now).to_string()})))
}

/// Sends the first packet of a connection, which lives on its own from then on.
fn connect(world: &mut World, probe: &Probe) -> Result<Reply, String> {
    let verdict = world.plane.probe(&world.service_tags, probe)?;
    let mut shown = verdict.show();
    if verdict.allowed {
        let (since, translated) = (world.now(), verdict.translated);
        world.connections.push(Connection { since, probe: probe.clone(), translated });
        shown["connection"] = json!(world.connections.len());
    }
    Ok(Reply::ok(shown))
}

fn connections(world: &World) -> Value {
    let show = |(index, connection): (usize, &Connection)| {
        let probe = &connection.probe;
        let mut shown = json!({"connection": index + 1, "source": probe.source, "destination": probe.destination,
            "port": probe.port, "since": connection.since.to_string()});
        match world.plane.cut(&world.service_tags, connection, world.now()) {
            Ok(None) => shown["alive"] = json!(true),
            Ok(Some((at, verdict))) => {
                shown["alive"] = json!(false);
                shown["cutAt"] = json!(at.to_string());
                shown["cutBy"] = verdict.show();
            }
            Err(problem) => shown["problem"] = json!(problem),
        }
        shown
    };
    world.connections.iter().enumerate().map(show).collect()
}

fn activity(world: &mut World, call: &Call) -> Result<Reply, String> {
    let filter = activity::Filter {
        since: call.query("since").map(str::parse).transpose().map_err(|e| format!("since: {e}"))?,
        after: call.query("after").map(str::parse).transpose().map_err(|e| format!("after: {e}"))?,
        method: call.query("method").map(str::to_owned),
        path: call
            .query("path")
            .map(|p| regex::Regex::new(&format!("(?i){p}")))
            .transpose()
            .map_err(|e| format!("path: {e}"))?,
        mutating: call.query("mutating") == Some("true"),
    };
    let entries = world.activity.list(&filter).as_array().cloned().unwrap_or_default();
    paging::page(call, usize::MAX, entries).map_err(|e| e.message)
}
