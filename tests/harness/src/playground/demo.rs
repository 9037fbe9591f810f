//! `demo`: the main job, with the very commands that a user would type.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use portcullis_harness::Stage;

use super::show::{ELSEWHERE, REQUESTER, Show, show, without_comments};

/// How long the port is asked to be open: the shortest that the API takes.
const DURATION: &str = "30s";

/// A review of exactly this object and this plan, as `kubectl jit approve` makes it.
const REVIEW: &str = r#"kubectl get jitreq disk-full -o jsonpath='apiVersion: jit.portcullis.io/v1alpha1
kind: JitAccessReview
metadata:
  generateName: disk-full-
  namespace: team-web
spec:
  requestRef:
    name: disk-full
    uid: {.metadata.uid}
  policyRef:
    name: web-1
  planHash: "{.status.planHash}"
  verdict: Approved
  comment: pairing on it
' > review.yaml"#;

pub(crate) async fn demo() -> anyhow::Result<ExitCode> {
    let address = async |stage: &Stage| {
        let web = stage.world.machine("web-1")?;
        web.public_address.clone().context("web-1 has no public address")
    };
    show(address, play).await
}

async fn play(show: &Show, address: String) -> anyhow::Result<()> {
    let address = address.as_str();
    show.chapter(
        "web-1 is a Linux machine with a public address, and somebody's rules let SSH in from the Internet.",
    );
    show.probe(REQUESTER, address, 22, true).await?;
    show.probe(ELSEWHERE, address, 22, true).await?;

    show.chapter(
        "A policy lowers the gate: SSH to web-1 is closed to everybody, and opens when a second person agrees.",
    );
    let policy = without_comments(&Stage::sample("policy-one-machine.yaml")?);
    show.file("policy.yaml", &format!("{policy}  approval: {{required: 1}}\n"))?;
    show.shell("cat policy.yaml").await?;
    show.shell("kubectl --context policy-admin apply -f policy.yaml").await?;
    show.shell("kubectl wait jitpolicy/web-1 --for=condition=Ready --timeout=60s").await?;
    show.shell("kubectl get jitpolicies").await?;
    show.probe(REQUESTER, address, 22, false).await?;
    show.probe(ELSEWHERE, address, 22, false).await?;

    show.chapter(
        "A developer asks for SSH, for one address and 30 seconds, and waits for somebody to agree.",
    );
    let request = without_comments(&Stage::sample("request.yaml")?)
        .replace("duration: 30m", &format!("duration: {DURATION}"));
    ensure!(request.contains(DURATION), "the sample request has no duration of 30m");
    show.file("request.yaml", &request)?;
    show.shell("cat request.yaml").await?;
    show.shell("kubectl --context developer apply -f request.yaml").await?;
    show.shell("kubectl wait jitreq/disk-full --for=jsonpath='{.status.planHash}' --timeout=30s").await?;
    show.shell("kubectl get jitaccessrequests").await?;
    show.probe(REQUESTER, address, 22, false).await?;

    show.chapter(
        "What would be written stands in the request before anybody agrees. Not to be agreed to by oneself:",
    );
    show.shell("kubectl jit describe disk-full --context approver").await?;
    show.shell(REVIEW).await?;
    show.shell("cat review.yaml").await?;
    let code = show.run("kubectl --context developer create -f review.yaml").await?;
    ensure!(code != 0, "the developer approved the own request");
    show.shell("kubectl --context approver create -f review.yaml").await?;
    show.shell("kubectl wait jitaccessrequest/disk-full --for=condition=Active --timeout=30s").await?;
    show.shell("kubectl get jitaccessrequests").await?;
    show.shell(
        "kubectl get jitreq disk-full -o jsonpath='{range .status.connections[*]}connect to {.address} port {.port}{\"\\n\"}{end}'",
    )
    .await?;

    show.shell("kubectl get jitaccessreviews").await?;

    show.chapter("The gate is open for that address, and for no other.");
    show.probe(REQUESTER, address, 22, true).await?;
    show.probe(ELSEWHERE, address, 22, false).await?;

    show.chapter("At its deadline the rule is deleted and read back as gone.");
    show.shell("kubectl wait jitaccessrequest/disk-full --for=condition=Succeeded --timeout=60s").await?;
    show.shell("kubectl get jitaccessrequests").await?;
    show.shell(
        "kubectl get jitreq disk-full -o jsonpath='expired {.status.expiresAt}, closed {.status.closedAt}{\"\\n\"}{range .status.rules[*]}{.name} {.state}, observed at {.observedAt}{\"\\n\"}{end}'",
    )
    .await?;
    show.probe(REQUESTER, address, 22, false).await?;
    show.probe(ELSEWHERE, address, 22, false).await?;
    show.shell("kubectl get events --sort-by=.metadata.creationTimestamp").await?;
    Ok(())
}
