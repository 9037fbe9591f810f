//! `kubectl jit request`.

use std::io::Write;
use std::time::Duration;

use kube::api::PostParams;

use super::cluster::{Access, Cluster};
use super::draft::{Wanted, draft, generated_name};
use super::failure::Failure;
use super::follow::{self, Patience};
use super::output::{DryRun, Format, full_name, shown, write_json, write_yaml};
use super::stamp::{self, Stamp};
use super::text::plain;
use super::values::{self, Port, When};
use super::{list, note};
use crate::api::values::Span;
use crate::api::{JitAccessRequest, JitPolicy, RequestTarget, Source, Tolerant};

/// Arguments of `kubectl jit request`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The policy under whose terms you ask.
    #[arg(value_parser = values::object)]
    policy: String,
    /// A target of the policy (web-1), or one machine in a scope (web/vm-7); several by commas or by giving the flag
    /// again. Left out: the only one of the policy.
    #[arg(short, long, value_name = "TARGET", value_parser = values::target, value_delimiter = ',')]
    target: Vec<RequestTarget>,
    /// Every machine of the policy.
    #[arg(long, conflicts_with = "target")]
    all_targets: bool,
    /// A port or range, with TCP (the default), UDP or Any: 22, 3389/Any, 5985-5986. Left out: the only one of the
    /// policy.
    #[arg(short, long, value_name = "PORT[/PROTOCOL]", value_parser = values::port, value_delimiter = ',')]
    port: Vec<Port>,
    /// The network or address that you connect from, as the machine's firewall sees it. It is never guessed.
    #[arg(short, long, value_name = "CIDR|IP", required = true, value_parser = values::source, value_delimiter = ',')]
    source: Vec<Source>,
    /// How long, from the moment of the grant: 45m, 1h30m.
    #[arg(long = "for", value_name = "DURATION", required = true, value_parser = values::span)]
    duration: Span,
    /// Not to be opened before this moment: 2026-01-31T18:00:00Z, or +2h from now.
    #[arg(long, value_name = "TIME", value_parser = values::when)]
    not_before: Option<When>,
    /// To be closed at this moment whatever else: 2026-01-31T20:00:00Z, or +4h from now.
    #[arg(long, value_name = "TIME", value_parser = values::when)]
    not_after: Option<When>,
    /// Why; the policy may demand it and its form.
    #[arg(short = 'm', long, value_name = "TEXT")]
    justification: Option<String>,
    /// The person for whom you ask; takes the verb delegate on the policy, and --not-after.
    #[arg(long, value_name = "PERSON")]
    on_behalf_of: Option<String>,
    /// The name of the request; left out: that of the policy and five random characters.
    #[arg(long, value_name = "NAME", value_parser = values::name)]
    name: Option<String>,
    /// Print the request as YAML and send nothing.
    #[arg(long, conflicts_with_all = ["dry_run", "wait"])]
    print: bool,
    /// Do not carry it out: let the API server judge it, or only make it up.
    #[arg(long, value_enum, value_name = "WHERE", default_value = "none")]
    dry_run: DryRun,
    /// How to show the result.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    /// Wait until access is open, or will not be, and tell on standard error what happens.
    #[arg(short, long)]
    wait: bool,
    /// How long to wait at most: 10m. Left out: until the request is granted or over, which its policy bounds.
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = values::patience)]
    timeout: Option<Duration>,
}

/// Asks.
///
/// # Errors
/// When something is missing, the API server refuses it, or what was waited for does not come.
pub async fn run(arguments: &Arguments, access: &Access, out: &mut dyn Write) -> Result<(), Failure> {
    let cluster = Cluster::connect(access, true).await?;
    let patience = Patience::new(arguments.timeout);
    let mut request = made_up(arguments, &cluster).await?;
    if arguments.print {
        if let Some((user, why)) = stamp::beforehand(&cluster, Stamp::Requester).await? {
            note(&format!("spec.requester is you ({}): {why}", user.username));
            request.spec.requester = Some(user);
        }
        return print(arguments, &request, out);
    }
    if arguments.dry_run != DryRun::Client {
        request = send(&cluster, request, arguments.dry_run).await?;
    }
    if !arguments.wait || arguments.dry_run != DryRun::None {
        if arguments.dry_run == DryRun::None {
            let name = request.metadata.name.as_deref().unwrap_or_default();
            note(&format!("see what becomes of it: kubectl jit describe {name} -n {}", cluster.namespace));
        }
        return show(arguments, &cluster, &request, out);
    }
    if arguments.output.is_none() {
        created(arguments, &request, out)?;
    }
    let opened =
        follow::request(cluster.requests(), &request, patience, "waiting for access", follow::access).await?;
    match arguments.output {
        None => connect(&opened, out),
        Some(_) => show(arguments, &cluster, &opened, out),
    }
}

async fn made_up(arguments: &Arguments, cluster: &Cluster) -> Result<JitAccessRequest, Failure> {
    let wanted = Wanted {
        policy: arguments.policy.clone(),
        targets: arguments.target.clone(),
        all_targets: arguments.all_targets,
        ports: arguments.port.clone(),
        sources: arguments.source.clone(),
        duration: arguments.duration.clone(),
        not_before: arguments.not_before.clone(),
        not_after: arguments.not_after.clone(),
        justification: arguments.justification.clone(),
        on_behalf_of: arguments.on_behalf_of.clone(),
        name: arguments.name.clone().unwrap_or_else(|| generated_name(&arguments.policy, rand::random())),
    };
    let complete = (wanted.all_targets || !wanted.targets.is_empty()) && !wanted.ports.is_empty();
    // What needs nothing of the policy is sent as it is: a request may come before its policy.
    let policy = if complete { None } else { Some(policy(cluster, &arguments.policy).await?) };
    let (request, notes) = draft(&wanted, policy.as_ref(), &cluster.namespace, cluster.now())?;
    for line in notes {
        note(&line);
    }
    Ok(request)
}

/// The policy, to fill in what was left out.
async fn policy(cluster: &Cluster, name: &str) -> Result<JitPolicy, Failure> {
    let found = cluster.policies().get(name).await.map_err(Failure::from);
    found.map(|policy| policy.0).map_err(|failure| Failure {
        message: format!("{}\nwith --target and --port the policy need not be read", failure.message),
        ..failure
    })
}

/// Sends it; where nobody has filled in who asks and the API server wants it, once more with that.
async fn send(
    cluster: &Cluster,
    mut request: JitAccessRequest,
    dry_run: DryRun,
) -> Result<JitAccessRequest, Failure> {
    let parameters = PostParams { dry_run: dry_run == DryRun::Server, ..PostParams::default() };
    let api = cluster.requests();
    let first = api.create(&parameters, &Tolerant(request.clone())).await.map_err(Failure::from);
    match first {
        Err(failure) if Stamp::Requester.is_missed_by(&failure) => {
            let user = cluster.whoami().await?;
            note(&format!("spec.requester is you ({}): the API server asked for it", user.username));
            request.spec.requester = Some(user);
            Ok(api.create(&parameters, &Tolerant(request)).await?.0)
        }
        answer => Ok(answer?.0),
    }
}

fn print(arguments: &Arguments, request: &JitAccessRequest, out: &mut dyn Write) -> Result<(), Failure> {
    let value = shown(request)?;
    match arguments.output {
        Some(Format::Json) => write_json(out, &value),
        _ => write_yaml(out, &value),
    }
}

fn created(arguments: &Arguments, request: &JitAccessRequest, out: &mut dyn Write) -> Result<(), Failure> {
    let name = full_name("JitAccessRequest", request.metadata.name.as_deref().unwrap_or_default());
    writeln!(out, "{} created{}", plain(&name), arguments.dry_run.suffix())?;
    out.flush()?;
    Ok(())
}

fn show(
    arguments: &Arguments,
    cluster: &Cluster,
    request: &JitAccessRequest,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    match arguments.output {
        None => created(arguments, request, out),
        Some(format) => list::one(format, request, cluster.now(), out),
    }
}

/// What to type now.
fn connect(request: &JitAccessRequest, out: &mut dyn Write) -> Result<(), Failure> {
    let status = request.status.clone().unwrap_or_default();
    let until = status.expires_at.map(|at| format!(", until {}", at.0)).unwrap_or_default();
    for connection in &status.connections {
        writeln!(
            out,
            "{}: connect to {} port {}{until}",
            plain(&connection.target),
            plain(&connection.address),
            plain(&connection.port)
        )?;
    }
    Ok(())
}
