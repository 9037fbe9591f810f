//! `kubectl jit describe`.

use std::collections::BTreeSet;
use std::io::Write;

use kube::api::ListParams;

use super::cluster::{Access, Cluster, every};
use super::failure::Failure;
use super::moments::age;
use super::output::Format;
use super::text::cut;
use super::values;
use super::view::{self, Me};
use super::{list, word};
use crate::api::{JitAccessRequest, JitAccessReview};
use crate::cli::table::Table;

/// Arguments of `kubectl jit describe`.
#[derive(Debug, clap::Args)]
pub struct Arguments {
    /// The request.
    #[arg(value_name = "REQUEST", value_parser = values::object)]
    name: String,
    /// The object itself, or one row.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
}

/// Shows everything about a request.
///
/// # Errors
/// When it may not be read.
pub async fn run(arguments: &Arguments, access: &Access, out: &mut dyn Write) -> Result<(), Failure> {
    let cluster = Cluster::connect(access, true).await?;
    let request = cluster.request(&arguments.name).await?;
    if let Some(format) = arguments.output {
        return list::one(format, &request, cluster.now(), out);
    }
    let me = me(&cluster, &request).await?;
    view::write(out, &request, &me, cluster.now())?;
    reviews(&cluster, &request, out).await
}

/// Who the user is, and what they may do with a request.
///
/// # Errors
/// When the API server does not say.
pub async fn me(cluster: &Cluster, request: &JitAccessRequest) -> Result<Me, Failure> {
    let mut me = Me { user: cluster.whoami().await?, ..Me::default() };
    for policy in covering(request) {
        let may = cluster.may_approve(&policy).await?;
        me.may_approve.insert(policy, may);
    }
    Ok(me)
}

/// The policies that cover a request, and the one that it names.
#[must_use]
pub fn covering(request: &JitAccessRequest) -> BTreeSet<String> {
    let known = view::policies(request).iter().map(|policy| policy.name.clone());
    known.chain([request.spec.policy_ref.name.clone()]).collect()
}

/// What was said of it, and whether it counts.
async fn reviews(cluster: &Cluster, request: &JitAccessRequest, out: &mut dyn Write) -> Result<(), Failure> {
    let name = request.metadata.name.as_deref().unwrap_or_default();
    let selected = ListParams::default().fields(&format!("spec.requestRef.name={name}"));
    let mut found = match every::<JitAccessReview>(&cluster.reviews(), selected).await {
        Ok(found) => found,
        Err(failure) => {
            writeln!(out, "Reviews:        not to be seen: {failure}")?;
            return Ok(());
        }
    };
    found.retain(|review| Some(&review.spec.request_ref.uid) == request.metadata.uid.as_ref());
    found.sort_by_key(|review| review.metadata.creation_timestamp.as_ref().map(|at| at.0));
    if found.is_empty() {
        return Ok(());
    }
    writeln!(out, "Reviews:")?;
    let mut table =
        Table::new(vec!["NAME", "VERDICT", "REVIEWER", "POLICY", "COUNTED", "AGE", "REASON", "COMMENT"]);
    for review in &found {
        let status = review.status.clone().unwrap_or_default();
        let counted = status.counted.map_or("", |counted| if counted { "true" } else { "false" });
        table.row([
            review.metadata.name.clone().unwrap_or_default(),
            word::verdict(review.spec.verdict).to_owned(),
            review.spec.reviewer.as_ref().map(|user| cut(&user.username, 40)).unwrap_or_default(),
            review.spec.policy_ref.name.clone(),
            counted.to_owned(),
            age(review.metadata.creation_timestamp.as_ref().map(|at| at.0), cluster.now()),
            status.reason.unwrap_or_default(),
            cut(review.spec.comment.as_deref().unwrap_or_default(), 60),
        ]);
    }
    Ok(table.write(out, "  ", true)?)
}
