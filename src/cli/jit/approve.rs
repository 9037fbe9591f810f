//! `kubectl jit approve`: shows the plan, asks, and approves exactly that.

use std::io::{BufRead, IsTerminal, Write};

use super::cluster::{Access, Cluster};
use super::describe;
use super::failure::Failure;
use super::follow::{self, Patience};
use super::values;
use super::view::{self, Me};
use super::word::{self, Sending};
use crate::api::{JitAccessRequest, RequestedPolicy, State, Verdict};

/// Arguments of `kubectl jit approve`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The request.
    #[arg(value_name = "REQUEST", value_parser = values::object)]
    name: String,
    /// The policy under which you approve; may be given several times. Left out: every one that covers the request,
    /// lacks approvals, and lets you give them.
    #[arg(long, value_name = "POLICY", value_parser = values::object)]
    policy: Vec<String>,
    /// Do not ask. Without a terminal there is nobody to ask, and this is required.
    #[arg(short, long)]
    yes: bool,
    /// Approve only this plan (status.planHash), for scripts whose person has seen it elsewhere.
    #[arg(long, value_name = "HASH")]
    plan_hash: Option<String>,
    #[command(flatten)]
    sending: Sending,
}

/// Approves.
///
/// # Errors
/// When there is nothing to approve, the user may not or does not want to, the plan changed meanwhile, or the review
/// does not count.
pub async fn run(arguments: &Arguments, access: &Access, out: &mut dyn Write) -> Result<(), Failure> {
    let sending = &arguments.sending;
    let asks = sending.is_real() && !arguments.yes;
    if asks && !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "--yes is missing: standard input is no terminal, so nobody can be asked whether this plan is right",
        ));
    }
    let cluster = Cluster::connect(access, true).await?;
    let request = cluster.request(&arguments.name).await?;
    can_be_approved(&request, arguments.plan_hash.as_deref())?;
    let me = describe::me(&cluster, &request).await?;
    let policies = chosen(&request, &me, &arguments.policy)?;
    if asks {
        ask(&cluster, &request, &me, &policies)?;
        unchanged(&request, &cluster.request(&arguments.name).await?)?;
    } else if sending.is_real() && sending.output.is_none() {
        view::write(&mut std::io::stderr(), &request, &me, cluster.now())?;
    }
    let comment = sending.comment.as_deref();
    let reviews: Vec<_> =
        policies.iter().map(|policy| word::review(&request, policy, Verdict::Approved, comment)).collect();
    if sending.print {
        return word::print(&cluster, reviews, sending, out).await;
    }
    let patience = Patience::new(sending.timeout);
    word::send(&cluster, reviews, sending, patience, out).await?;
    if sending.wait && sending.is_real() {
        follow::request(cluster.requests(), &request, patience, "waiting for access", follow::access).await?;
    }
    Ok(())
}

/// Whether there is something to approve, and it is the plan that is meant.
fn can_be_approved(request: &JitAccessRequest, wanted: Option<&str>) -> Result<(), Failure> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    if request.metadata.deletion_timestamp.is_some() {
        return Err(Failure::refused(format!("{name} is being deleted: there is nothing to approve")));
    }
    let standing = view::standing(request);
    match view::state(request) {
        State::Pending | State::Approved | State::Scheduled => {}
        State::Opening | State::Active | State::Closing => {
            return Err(Failure::refused(format!("{name} was granted already: {standing}")));
        }
        State::Expired
        | State::Ended
        | State::Denied
        | State::Revoked
        | State::TimedOut
        | State::Failed
        | State::Void => {
            return Err(Failure::refused(format!(
                "{name} is over, and needs to be asked for again: {standing}"
            )));
        }
    }
    let hash = request.status.as_ref().and_then(|status| status.plan_hash.as_deref());
    let Some(hash) = hash else {
        return Err(Failure::refused(format!("{name} has no plan yet that could be approved: {standing}")));
    };
    if wanted.is_some_and(|wanted| wanted != hash) {
        return Err(Failure::refused(format!(
            "--plan-hash is of another plan than the present one of {name}, which is {hash}: look at it again"
        )));
    }
    if view::policies(request).iter().all(|policy| policy.required == 0) {
        return Err(Failure::refused(format!("{name} needs no approval: {standing}")));
    }
    Ok(())
}

/// The policies under which the user approves.
fn chosen(request: &JitAccessRequest, me: &Me, named: &[String]) -> Result<Vec<String>, Failure> {
    let all = view::policies(request);
    if let Some(other) = named.iter().find(|name| all.iter().all(|policy| policy.name != **name)) {
        let names: Vec<&str> = all.iter().map(|policy| policy.name.as_str()).collect();
        return Err(Failure::usage(format!(
            "--policy {other} does not cover the request: {}",
            names.join(", ")
        )));
    }
    // Where there are enough, one more would come after the grant and be answered as too late.
    let lacking =
        |policy: &&RequestedPolicy| policy.approved < policy.required || named.contains(&policy.name);
    let lacking: Vec<&str> = all.iter().filter(lacking).map(|policy| policy.name.as_str()).collect();
    if lacking.is_empty() {
        return Err(Failure::refused(format!(
            "it has every approval that it needs: {}",
            view::standing(request)
        )));
    }
    let wanted = |policy: &&str| named.is_empty() || named.iter().any(|name| name == policy);
    let may = |policy: &&str| me.may_approve.get(*policy) == Some(&true);
    let own = if me.asked(request) { "; you asked for it, so somebody else has to approve" } else { "" };
    let refused = |policies: &[&str]| {
        let names: Vec<String> = policies.iter().map(|policy| format!("jitpolicies/{policy}")).collect();
        Failure::refused(format!(
            "{} may not approve: that takes the verb approve on {}, as the ClusterRole portcullis-approver gives{own}",
            me.user.username,
            names.join(" or ")
        ))
    };
    let wanted: Vec<&str> = lacking.into_iter().filter(|policy| wanted(policy)).collect();
    let (may, may_not): (Vec<&str>, Vec<&str>) = wanted.into_iter().partition(|policy| may(policy));
    if may.is_empty() || (!named.is_empty() && !may_not.is_empty()) {
        return Err(refused(&may_not));
    }
    Ok(may.into_iter().map(str::to_owned).collect())
}

/// Shows the plan and asks.
fn ask(cluster: &Cluster, request: &JitAccessRequest, me: &Me, policies: &[String]) -> Result<(), Failure> {
    let mut err = std::io::stderr();
    view::write(&mut err, request, me, cluster.now())?;
    write!(err, "Approve exactly this under {}? [y/N] ", policies.join(", "))?;
    err.flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer).map_err(|error| Failure::error(error.to_string()))?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => Err(Failure::error("not approved: nothing was sent")),
    }
}

/// Whether the request is still what was shown.
fn unchanged(shown: &JitAccessRequest, now: &JitAccessRequest) -> Result<(), Failure> {
    let name = now.metadata.name.as_deref().unwrap_or_default();
    let hash =
        |request: &JitAccessRequest| request.status.as_ref().and_then(|status| status.plan_hash.clone());
    if shown.metadata.uid != now.metadata.uid {
        return Err(Failure::refused(format!(
            "{name} was deleted and created again while you looked: nothing was sent; look at it again"
        )));
    }
    if hash(shown) != hash(now) {
        return Err(Failure::refused(format!(
            "the plan of {name} changed while you looked: nothing was sent; look at it again"
        )));
    }
    can_be_approved(now, None)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::failure::Exit;
    use super::*;
    use crate::api::UserInfo;

    fn request(state: &str, hash: &Value) -> JitAccessRequest {
        serde_json::from_value(json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": "disk-full", "uid": "1"},
            "spec": {"policyRef": {"name": "a"}, "duration": "1h", "ports": [], "requester": {"username": "developer"}},
            "status": {"state": state, "planHash": hash, "expiresAt": "2026-01-31T12:00:00Z", "policies": [
                {"name": "a", "uid": "a", "required": 1}, {"name": "b", "uid": "b", "required": 1}, {"name": "c", "uid": "c", "required": 0},
            ]},
        }))
        .unwrap()
    }

    fn me(name: &str, may: &[&str]) -> Me {
        let may_approve =
            ["a", "b", "c"].map(|policy| (policy.to_owned(), may.contains(&policy))).into_iter().collect();
        Me { user: UserInfo { username: name.into(), ..UserInfo::default() }, may_approve }
    }

    #[test]
    fn only_what_waits_with_a_plan_can_be_approved() {
        let said = |state: &str, hash: Value, wanted: Option<&str>| {
            can_be_approved(&request(state, &hash), wanted).map_err(|failure| {
                assert_eq!(failure.exit, Exit::Refused);
                failure.message
            })
        };
        for state in ["Pending", "Approved", "Scheduled"] {
            assert_eq!(said(state, json!("h"), None), Ok(()));
        }
        assert_eq!(said("Pending", json!("h"), Some("h")), Ok(()));
        assert!(said("Pending", json!("h"), Some("other")).unwrap_err().contains("--plan-hash"));
        assert!(said("Pending", Value::Null, None).unwrap_err().contains("no plan yet"));
        assert!(said("Active", json!("h"), None).unwrap_err().contains("granted already"));
        for state in ["Denied", "Ended", "Void", "TimedOut"] {
            assert!(said(state, json!("h"), None).unwrap_err().contains("is over"), "{state}");
        }
        let mut automatic = request("Approved", &json!("h"));
        automatic.status.as_mut().unwrap().policies.retain(|policy| policy.required == 0);
        assert!(can_be_approved(&automatic, None).unwrap_err().message.contains("needs no approval"));
    }

    #[test]
    fn approvals_go_where_they_are_asked_for_and_may_be_given() {
        let pending = request("Pending", &json!("h"));
        let names = |me: &Me, named: &[&str]| {
            let named: Vec<String> = named.iter().map(ToString::to_string).collect();
            chosen(&pending, me, &named).map_err(|failure| failure.message)
        };
        assert_eq!(names(&me("x", &["a", "b", "c"]), &[]), Ok(vec!["a".into(), "b".into()]));
        assert_eq!(names(&me("x", &["b"]), &[]), Ok(vec!["b".into()]));
        assert_eq!(names(&me("x", &["a", "b", "c"]), &["c"]), Ok(vec!["c".into()]));
        let error = names(&me("x", &["a"]), &["a", "b"]).unwrap_err();
        assert!(error.contains("jitpolicies/b") && !error.contains("jitpolicies/a"), "{error}");
        assert!(names(&me("x", &["a"]), &["other"]).unwrap_err().contains("does not cover"));
        let mut pending = pending.clone();
        let policies = &mut pending.status.as_mut().unwrap().policies;
        policies[0].approved = 1;
        assert_eq!(chosen(&pending, &me("x", &["a", "b"]), &[]), Ok(vec!["b".into()]), "a has enough");
        pending.status.as_mut().unwrap().policies[1].approved = 1;
        let error = chosen(&pending, &me("x", &["a", "b"]), &[]).unwrap_err();
        assert!(error.message.contains("every approval that it needs"), "{error}");
        let error = names(&me("developer", &[]), &[]).unwrap_err();
        assert!(error.contains("somebody else has to approve"), "{error}");
    }

    #[test]
    fn what_changed_meanwhile_is_not_sent() {
        let shown = request("Pending", &json!("h"));
        assert_eq!(unchanged(&shown, &shown), Ok(()));
        let changed = unchanged(&shown, &request("Pending", &json!("other"))).unwrap_err();
        assert!(changed.exit == Exit::Refused && changed.message.contains("changed while you looked"));
        let mut again = shown.clone();
        again.metadata.uid = Some("2".into());
        assert!(unchanged(&shown, &again).unwrap_err().message.contains("created again"));
        assert!(unchanged(&shown, &request("Denied", &json!("h"))).unwrap_err().message.contains("is over"));
    }
}
