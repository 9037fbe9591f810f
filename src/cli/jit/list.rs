//! `kubectl jit list`.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;

use futures::StreamExt;
use jiff::Timestamp;
use kube::api::ListParams;

use super::cluster::{Access, Cluster, every};
use super::failure::Failure;
use super::moments::{age, relative};
use super::note;
use super::output::{self, Format, full_name, shown, write_json, write_yaml};
use super::text::{cut, plain};
use super::view::{self, Me};
use crate::api::{JitAccessRequest, State};
use crate::cli::table::Table;

/// How many questions are asked at once.
const AT_ONCE: usize = 8;

/// Arguments of `kubectl jit list`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// Those that you asked for.
    #[arg(long)]
    mine: bool,
    /// Those that wait for you: others' requests that lack approvals which you may give and have not given.
    #[arg(long)]
    waiting: bool,
    /// Those that are open, or being opened or closed.
    #[arg(long)]
    live: bool,
    /// In all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// How to show them.
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    output: Format,
    /// Leave the header out.
    #[arg(long)]
    no_headers: bool,
}

/// Lists requests, the oldest first.
///
/// # Errors
/// When they may not be read.
pub async fn run(arguments: &Arguments, access: &Access, out: &mut dyn Write) -> Result<(), Failure> {
    let cluster = Cluster::connect(access, true).await?;
    let api = if arguments.all_namespaces { cluster.all_requests() } else { cluster.requests() };
    let mut requests = every(&api, ListParams::default()).await?;
    if arguments.live {
        requests.retain(|request| view::state(request).holds_rules());
    }
    if arguments.mine || arguments.waiting {
        let mut me = Me { user: cluster.whoami().await?, ..Me::default() };
        if arguments.mine {
            requests.retain(|request| me.asked(request));
        }
        if arguments.waiting {
            requests.retain(|request| could_wait_for(&me, request));
            let rights = rights(&cluster, &requests).await?;
            requests.retain(|request| {
                me.may_approve = rights.get(&namespace(request)).cloned().unwrap_or_default();
                waits_for(&me, request)
            });
        }
    }
    requests.sort_by_key(|request| (created(request), namespace(request), request.metadata.name.clone()));
    show(arguments, &cluster, &requests, out)
}

fn created(request: &JitAccessRequest) -> Option<Timestamp> {
    request.metadata.creation_timestamp.as_ref().map(|at| at.0)
}

fn namespace(request: &JitAccessRequest) -> String {
    request.metadata.namespace.clone().unwrap_or_default()
}

/// What can be told without asking about rights.
fn could_wait_for(me: &Me, request: &JitAccessRequest) -> bool {
    view::state(request) == State::Pending && !me.asked(request) && !lacking(me, request).is_empty()
}

/// The policies that lack approvals of which none is the user's.
fn lacking<'a>(me: &Me, request: &'a JitAccessRequest) -> Vec<&'a str> {
    let lacks = view::policies(request).iter().filter(|policy| {
        policy.approved < policy.required && !policy.approved_by.contains(&me.user.username)
    });
    lacks.map(|policy| policy.name.as_str()).collect()
}

fn waits_for(me: &Me, request: &JitAccessRequest) -> bool {
    could_wait_for(me, request)
        && lacking(me, request).iter().any(|policy| me.may_approve.get(*policy) == Some(&true))
}

/// Whether the user may approve, by namespace and policy: each is asked about once.
async fn rights(
    cluster: &Cluster,
    requests: &[JitAccessRequest],
) -> Result<BTreeMap<String, BTreeMap<String, bool>>, Failure> {
    let questions: BTreeSet<(String, String)> = requests
        .iter()
        .flat_map(|request| {
            let namespace = namespace(request);
            view::policies(request).iter().map(move |policy| (namespace.clone(), policy.name.clone()))
        })
        .collect();
    let mut answers = futures::stream::iter(questions)
        .map(|(namespace, policy)| async move {
            let answer = cluster.of(&namespace).may_approve(&policy).await;
            answer.map(|answer| (namespace, policy, answer))
        })
        .buffer_unordered(AT_ONCE);
    let mut rights: BTreeMap<String, BTreeMap<String, bool>> = BTreeMap::new();
    while let Some(answer) = answers.next().await {
        let (namespace, policy, answer) = answer?;
        rights.entry(namespace).or_default().insert(policy, answer);
    }
    Ok(rights)
}

fn show(
    arguments: &Arguments,
    cluster: &Cluster,
    requests: &[JitAccessRequest],
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match arguments.output {
        Format::Json | Format::Yaml => {
            let objects = requests.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
            let list = output::list(&objects);
            if arguments.output == Format::Json { write_json(out, &list) } else { write_yaml(out, &list) }
        }
        Format::Name => names(requests, out),
        Format::Table | Format::Wide => {
            if requests.is_empty() {
                let place = if arguments.all_namespaces {
                    String::new()
                } else {
                    format!(" in {} namespace", cluster.namespace)
                };
                note(&format!("No resources found{place}."));
                return Ok(());
            }
            let wide = arguments.output == Format::Wide;
            let table = table(requests, arguments.all_namespaces, wide, cluster.now());
            Ok(table.write(out, "", !arguments.no_headers)?)
        }
    }
}

/// One request in the format that is asked for.
///
/// # Errors
/// When the output cannot be written.
pub fn one(
    format: Format,
    request: &JitAccessRequest,
    now: Timestamp,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match format {
        Format::Json => write_json(out, &shown(request)?),
        Format::Yaml => write_yaml(out, &shown(request)?),
        Format::Name => names(std::slice::from_ref(request), out),
        Format::Table | Format::Wide => {
            let table = table(std::slice::from_ref(request), false, format == Format::Wide, now);
            Ok(table.write(out, "", true)?)
        }
    }
}

fn names(requests: &[JitAccessRequest], out: &mut dyn Write) -> Result<(), Failure> {
    for request in requests {
        let name = full_name("JitAccessRequest", request.metadata.name.as_deref().unwrap_or_default());
        writeln!(out, "{}", plain(&name))?;
    }
    Ok(())
}

fn table(requests: &[JitAccessRequest], namespaces: bool, wide: bool, now: Timestamp) -> Table {
    let mut header =
        vec!["NAME", "POLICY", "REQUESTER", "TARGETS", "PORTS", "STATE", "APPROVALS", "EXPIRES", "AGE"];
    if namespaces {
        header.insert(0, "NAMESPACE");
    }
    if wide {
        header.extend(["REASON", "CONNECT", "JUSTIFICATION"]);
    }
    let mut table = Table::new(header);
    for request in requests {
        let mut row = cells(request, now);
        if namespaces {
            row.insert(0, namespace(request));
        }
        if wide {
            row.extend(more(request));
        }
        table.row(row);
    }
    table
}

fn cells(request: &JitAccessRequest, now: Timestamp) -> Vec<String> {
    let asked = view::summary(request);
    let state = view::state(request);
    let requester = request.spec.requester.as_ref().map(|user| cut(&user.username, 40)).unwrap_or_default();
    vec![
        request.metadata.name.clone().unwrap_or_default(),
        request.spec.policy_ref.name.clone(),
        requester,
        asked.targets,
        asked.ports,
        state.as_str().to_owned(),
        view::approvals(request),
        view::expires(request).map(|at| relative(at, now)).unwrap_or_default(),
        age(created(request), now),
    ]
}

fn more(request: &JitAccessRequest) -> Vec<String> {
    let connections = request.status.as_ref().map(|status| status.connections.as_slice()).unwrap_or_default();
    let connect: Vec<String> =
        connections.iter().map(|connection| format!("{}:{}", connection.address, connection.port)).collect();
    vec![
        view::why(request).map(|(reason, _)| reason).unwrap_or_default(),
        cut(&connect.join(","), 60),
        cut(request.spec.justification.as_deref().unwrap_or_default(), 60),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::UserInfo;

    fn request(requester: &str, state: &str, policies: &serde_json::Value) -> JitAccessRequest {
        serde_json::from_value(json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": "a", "namespace": "team-web", "creationTimestamp": "2026-01-31T12:00:00Z"},
            "spec": {"policyRef": {"name": "p"}, "duration": "1h", "requester": {"username": requester},
                "targets": [{"name": "web-1"}], "justification": "why\u{202e}",
                "ports": [{"port": 22, "sources": [{"cidr": "203.0.113.7/32"}]}]},
            "status": {"state": state, "policies": policies},
        }))
        .unwrap()
    }

    fn policy(name: &str, required: i32, by: &[&str]) -> serde_json::Value {
        json!({"name": name, "uid": "u", "required": required, "approved": by.len(), "approvedBy": by})
    }

    #[test]
    fn what_waits_for_me_is_what_lacks_my_word() {
        let me = |may: &[(&str, bool)]| Me {
            user: UserInfo { username: "me".into(), ..UserInfo::default() },
            may_approve: may.iter().map(|(name, may)| ((*name).to_owned(), *may)).collect(),
        };
        let may = me(&[("p", true), ("q", false)]);
        let p = json!([policy("p", 2, &["other"])]);
        assert!(waits_for(&may, &request("you", "Pending", &p)));
        assert!(!waits_for(&may, &request("me", "Pending", &p)), "my own");
        assert!(!waits_for(&may, &request("you", "Approved", &p)), "does not wait");
        assert!(!waits_for(&me(&[("p", false)]), &request("you", "Pending", &p)), "not mine to give");
        assert!(!waits_for(&may, &request("you", "Pending", &json!([policy("p", 2, &["me"])]))), "given");
        assert!(!waits_for(
            &may,
            &request("you", "Pending", &json!([policy("p", 1, &["x"]), policy("q", 1, &[])]))
        ));
        assert!(!waits_for(&may, &request("you", "Pending", &json!([]))), "not planned yet");
    }

    #[test]
    fn a_request_is_one_row() {
        let requests = [request("you", "Pending", &json!([policy("p", 2, &["x"])]))];
        let mut out = Vec::new();
        let now = "2026-01-31T12:05:00Z".parse().unwrap();
        table(&requests, true, true, now).write(&mut out, "", true).unwrap();
        let text = String::from_utf8(out).unwrap();
        let mut lines = text.lines();
        let columns: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(columns.len(), 13);
        let row: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
        assert_eq!(
            row,
            [
                "team-web",
                "a",
                "p",
                "you",
                "web-1",
                "22/TCP",
                "Pending",
                "1/2",
                "<none>",
                "5m",
                "<none>",
                "<none>",
                "why\\u{202e}"
            ]
        );
        assert_eq!(lines.next(), None);
    }
}
