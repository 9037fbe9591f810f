//! `demo-firewall`: a machine without a public address, behind an Azure Firewall.

use std::process::ExitCode;

use anyhow::{Context, ensure};
use portcullis_harness::Stage;

use super::show::{ELSEWHERE, REQUESTER, Show, show, without_comments};

pub(crate) async fn demo_firewall() -> anyhow::Result<ExitCode> {
    show(async |stage: &Stage| stage.world.put_firewall(&stage.simulator).await, play).await
}

async fn play(show: &Show, firewall: String) -> anyhow::Result<()> {
    show.chapter(
        "fleet-1 has no public address: the routes of its subnet lead through the Azure Firewall of the hub.",
    );
    show.file("policy.yaml", &without_comments(&Stage::sample("policy-firewall.yaml")?))?;
    show.shell("cat policy.yaml").await?;
    show.shell("kubectl --context policy-admin apply -f policy.yaml").await?;
    show.shell("kubectl wait jitpolicy/behind-firewall --for=condition=Ready --timeout=60s").await?;
    show.shell(
        "kubectl get jitpol behind-firewall -o jsonpath='{range .status.targets[0].path[*]}{.kind} {.id} enforced: {.enforced}{\"\\n\"}{end}'",
    )
    .await?;

    show.chapter(
        "A developer asks for SSH. The grant opens a port of the firewall, and the group behind it.",
    );
    show.file("request.yaml", &without_comments(&Stage::sample("request-firewall.yaml")?))?;
    show.shell("cat request.yaml").await?;
    show.shell("kubectl --context developer apply -f request.yaml").await?;
    show.shell("kubectl wait jitaccessrequest/look-inside --for=condition=Active --timeout=60s").await?;
    show.shell("kubectl get jitaccessrequests").await?;
    let port = "kubectl get jitreq look-inside -o jsonpath='{.status.connections[0].port}'";
    let said = show.answer(port).await?;
    let port: u16 = said.parse().with_context(|| format!("not a port: {said:?}"))?;
    ensure!((50_000..64_000).contains(&port), "{port} is no port of the firewall's");
    show.shell(
        "kubectl get jitreq look-inside -o jsonpath='{range .status.connections[*]}connect to {.address} port {.port}, by {.via}{\"\\n\"}{end}'",
    )
    .await?;

    show.chapter("That port is open for the requester, and for nobody else.");
    show.probe(REQUESTER, &firewall, port, true).await?;
    show.probe(ELSEWHERE, &firewall, port, false).await?;
    show.shell(
        "kubectl get jitreq look-inside -o jsonpath='{range .status.rules[*]}{.firewall}: {.sources} to {.destinations} {.ports} {.state}{\"\\n\"}{end}'",
    )
    .await?;

    show.chapter("The developer is done early. Everything is removed again, and read back as gone.");
    show.shell("kubectl jit end look-inside --context developer --wait").await?;
    show.shell("kubectl get jitaccessrequests").await?;
    show.probe(REQUESTER, &firewall, port, false).await?;
    show.probe(ELSEWHERE, &firewall, port, false).await
}
