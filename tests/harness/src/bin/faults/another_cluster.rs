//! Another cluster on the same network security group, with a controller of its own.

use std::time::Duration;

use anyhow::Context;
use jiff::{SignedDuration, Timestamp};
use portcullis_harness::control_plane::User;
use portcullis_harness::controller::{Controller, Setup};
use portcullis_harness::install::NAMESPACE;
use portcullis_harness::lending::lend;
use portcullis_harness::simulator::Simulator;
use portcullis_harness::wait::eventually;
use reqwest::Method;
use serde_json::json;
use tokio::time::Instant;

use crate::story::STRANGER;
use crate::verdict::intervals;

const REQUESTER: &str = "203.0.113.99";
/// Another one than that of the story: each cluster's lock is a deny to the other's grants.
const PORT: u16 = 3389;
const PATIENCE: Duration = Duration::from_secs(75);
/// How much longer than it should a packet may pass.
const BOUND: SignedDuration = SignedDuration::from_secs(20);
const KINDS: &str = "/apis/jit.portcullis.io/v1alpha1/namespaces/team-web";

/// Locks a port of the first machine of the story, opens it for the shortest time there is, again and again until
/// `until`, and unlocks it. What was wrong with that.
pub async fn play(simulator: &Simulator, until: Instant) -> anyhow::Result<Vec<String>> {
    let plane = lend().await?;
    let mut setup = Setup::new(&plane, simulator).await?;
    setup.config["clusterId"] = json!("another");
    let subscription = &simulator.announcement().subscription_id;
    let group = format!("/subscriptions/{subscription}/resourceGroups/matrix");
    setup.config["namespaces"] = json!([{"name": NAMESPACE, "credential": "default", "scopes": [group]}]);
    for interval in ["driftInterval", "sweepInterval"] {
        setup.config[interval] = json!("3s");
    }
    let _controller = Controller::start(setup).await?;
    let machine = format!("{group}/providers/Microsoft.Compute/virtualMachines/lock");
    let policy = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitPolicy", "metadata": {"name": "other"},
        "spec": {
            "targets": [{"name": "it", "azureVirtualMachine": {"id": machine}}], "deletionPolicy": "Unlock",
            "ports": [{"port": PORT, "maxDuration": "1h"}],
        },
    });
    let policies = format!("{KINDS}/jitpolicies");
    plane.request(Method::POST, &policies, Some(&policy)).await?;
    let path = format!("{policies}/other");
    eventually("the other cluster's lock", PATIENCE, || async {
        let policy = plane.request(Method::GET, &path, None).await?;
        let ready = policy["status"]["conditions"].as_array().into_iter().flatten();
        anyhow::ensure!(
            ready.into_iter().any(|one| one["type"] == "Ready" && one["status"] == "True"),
            "{policy:#}"
        );
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    let locked = Timestamp::now();
    let mut wrong = Vec::new();
    let mut open = Vec::new();
    let mut number = 0;
    while number == 0 || Instant::now() < until {
        number += 1;
        let (granted, expires) = grant(&plane, number).await?;
        open.push((granted, expires));
    }
    for (from, to) in exposure(simulator, REQUESTER, locked).await? {
        let to = to.unwrap_or_else(Timestamp::now);
        if !open.iter().any(|(granted, expires)| from >= *granted && to <= *expires + BOUND) {
            wrong.push(format!("the other cluster's port was open from {from} to {to}, and not by {open:?}"));
        }
    }
    if let Some((from, to)) = exposure(simulator, STRANGER, locked).await?.first() {
        wrong.push(format!("a stranger got in by the other cluster's port from {from} to {to:?}"));
    }
    plane.request(Method::DELETE, &path, None).await?;
    eventually("the other cluster's lock is gone", PATIENCE, || async {
        anyhow::ensure!(plane.request(Method::GET, &path, None).await.is_err(), "it is there");
        Ok::<_, anyhow::Error>(())
    })
    .await?;
    Ok(wrong)
}

/// One grant from its request to its end: when it was granted, and until when.
async fn grant(
    plane: &portcullis_harness::ControlPlane,
    number: usize,
) -> anyhow::Result<(Timestamp, Timestamp)> {
    let name = format!("other-{number}");
    let request = json!({
        "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest", "metadata": {"name": name},
        "spec": {"policyRef": {"name": "other"}, "targets": [{"name": "it"}], "duration": "30s",
            "ports": [{"port": PORT, "sources": [{"cidr": format!("{REQUESTER}/32")}]}]},
    });
    plane
        .request_by(User::Developer, Method::POST, &format!("{KINDS}/jitaccessrequests"), Some(&request))
        .await?;
    let over = eventually("the other cluster's grant is over", PATIENCE, || async {
        let read = plane.request(Method::GET, &format!("{KINDS}/jitaccessrequests/{name}"), None).await?;
        anyhow::ensure!(read["status"]["settled"] == true, "{:#}", read["status"]);
        Ok::<_, anyhow::Error>(read)
    })
    .await?;
    let moment = |field: &str| -> anyhow::Result<Timestamp> {
        Ok(over["status"][field].as_str().with_context(|| format!("no {field}: {over:#}"))?.parse()?)
    };
    Ok((moment("grantedAt")?, moment("expiresAt")?))
}

async fn exposure(
    simulator: &Simulator,
    source: &str,
    from: Timestamp,
) -> anyhow::Result<Vec<(Timestamp, Option<Timestamp>)>> {
    let question = json!({"source": source, "destination": "10.150.0.4", "port": PORT, "protocol": "Tcp",
        "from": from.to_string()});
    let answer = simulator.control(Method::POST, "exposure", Some(&question)).await?;
    intervals(&answer)
}
