//! Reviews: made up, sent, and answered by the controller.

use std::io::Write;
use std::time::Duration;

use kube::api::PostParams;
use kube::core::ObjectMeta;

use super::cluster::Cluster;
use super::failure::{Exit, Failure};
use super::follow::{self, Patience, Progress};
use super::note;
use super::output::{DryRun, Format, full_name, shown, together, write_json, write_yaml};
use super::stamp::{self, Stamp};
use super::text::plain;
use super::values;
use crate::api::{
    JitAccessRequest, JitAccessReview, JitAccessReviewSpec, NameRef, RequestRef, Tolerant, UserInfo, Verdict,
};
use crate::plan::reviews;

/// How long the controller's answer is waited for where nothing else is said.
const ANSWER: Duration = Duration::from_secs(30);
/// How long an answer that is not the last may still change: what is said while the controller reads machines again,
/// or before a new right is known everywhere, is not what it comes to.
const SECOND_THOUGHTS: Duration = Duration::from_secs(10);

/// What the commands that send reviews have in common.
#[derive(Debug, clap::Args)]
pub struct Sending {
    /// What you have to say about it; everybody who may read reviews sees it.
    #[arg(short = 'm', long, value_name = "TEXT")]
    pub comment: Option<String>,
    /// Print the review as YAML and send nothing.
    #[arg(long, conflicts_with_all = ["dry_run", "wait"])]
    pub print: bool,
    /// Do not carry it out: let the API server judge it, or only make it up.
    #[arg(long, value_enum, value_name = "WHERE", default_value = "none")]
    pub dry_run: DryRun,
    /// How to show the review.
    #[arg(short, long, value_enum, value_name = "FORMAT")]
    pub output: Option<Format>,
    /// Wait for what becomes of the request, and tell on standard error what happens.
    #[arg(short, long)]
    pub wait: bool,
    /// How long to wait at most: 10m. Left out: 30s for the controller's answer, and with --wait as long as it takes.
    #[arg(long, value_name = "DURATION", value_parser = values::patience)]
    pub timeout: Option<Duration>,
}

impl Sending {
    /// Whether it changes anything.
    #[must_use]
    pub fn is_real(&self) -> bool {
        !self.print && self.dry_run == DryRun::None
    }
}

/// The word of a verdict.
#[must_use]
pub const fn verdict(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Approved => "Approved",
        Verdict::Denied => "Denied",
        Verdict::Revoked => "Revoked",
        Verdict::Ended => "Ended",
    }
}

/// A review of exactly this request, and where it approves, of exactly this plan.
#[must_use]
pub fn review(
    request: &JitAccessRequest,
    policy: &str,
    verdict: Verdict,
    comment: Option<&str>,
) -> JitAccessReview {
    let name = request.metadata.name.clone().unwrap_or_default();
    let plan = request.status.as_ref().and_then(|status| status.plan_hash.clone());
    let spec = JitAccessReviewSpec {
        request_ref: RequestRef { name: name.clone(), uid: request.metadata.uid.clone().unwrap_or_default() },
        policy_ref: NameRef { name: policy.to_owned() },
        plan_hash: plan.filter(|_| verdict == Verdict::Approved),
        verdict,
        comment: comment.map(str::to_owned),
        reviewer: None,
    };
    let mut review = JitAccessReview::new("", spec);
    review.metadata = ObjectMeta {
        generate_name: Some(format!("{name}-")),
        namespace: request.metadata.namespace.clone(),
        ..ObjectMeta::default()
    };
    review
}

/// Prints the reviews instead of sending them.
///
/// # Errors
/// When the output cannot be written, or the API server does not say what has to stand in them.
pub async fn print(
    cluster: &Cluster,
    mut reviews: Vec<JitAccessReview>,
    sending: &Sending,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    if let Some((user, why)) = stamp::beforehand(cluster, Stamp::Reviewer).await? {
        note(&format!("spec.reviewer is you ({}): {why}", user.username));
        for review in &mut reviews {
            review.spec.reviewer = Some(user.clone());
        }
    }
    let values = reviews.iter().map(shown).collect::<Result<Vec<_>, _>>()?;
    if sending.output == Some(Format::Json) {
        return write_json(out, &together(values));
    }
    for (number, value) in values.iter().enumerate() {
        if number > 0 {
            writeln!(out, "---")?;
        }
        write_yaml(out, value)?;
    }
    Ok(())
}

/// Sends the reviews, waits for the controller's answer to each, and shows both.
///
/// # Errors
/// When one is refused, does not count, or is not answered in time; the others are sent all the same.
pub async fn send(
    cluster: &Cluster,
    reviews: Vec<JitAccessReview>,
    sending: &Sending,
    patience: Patience,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let mut stamped = None;
    let mut shown_at_the_end = Vec::new();
    let mut failures = Vec::new();
    for review in reviews {
        let created = match create(cluster, review, sending.dry_run, &mut stamped).await {
            Ok(created) => created,
            Err(failure) => {
                failures.push(failure);
                continue;
            }
        };
        tell_created(&created, sending, out)?;
        if sending.dry_run != DryRun::None {
            shown_at_the_end.push(shown(&created)?);
            continue;
        }
        match answer(cluster, &created, sending.wait, patience).await {
            Ok(answered) => {
                failures.extend(tell_answer(&answered, sending, out)?);
                shown_at_the_end.push(shown(&answered)?);
            }
            Err(failure) => {
                failures.push(failure);
                shown_at_the_end.push(shown(&created)?);
            }
        }
    }
    match sending.output {
        _ if shown_at_the_end.is_empty() => {}
        Some(Format::Json) => write_json(out, &together(shown_at_the_end))?,
        Some(Format::Yaml) => write_yaml(out, &together(shown_at_the_end))?,
        None | Some(Format::Name | Format::Table | Format::Wide) => {}
    }
    together_or_ok(failures)
}

/// The first failure says how the command ends; all are told.
fn together_or_ok(failures: Vec<Failure>) -> Result<(), Failure> {
    let mut failures = failures.into_iter();
    let Some(mut first) = failures.next() else { return Ok(()) };
    for failure in failures {
        first.message.push('\n');
        first.message.push_str(&failure.message);
    }
    Err(first)
}

async fn create(
    cluster: &Cluster,
    mut review: JitAccessReview,
    dry_run: DryRun,
    stamped: &mut Option<UserInfo>,
) -> Result<JitAccessReview, Failure> {
    if dry_run == DryRun::Client {
        return Ok(review);
    }
    let parameters = PostParams { dry_run: dry_run == DryRun::Server, ..PostParams::default() };
    review.spec.reviewer.clone_from(stamped);
    let api = cluster.reviews();
    let first = api.create(&parameters, &Tolerant(review.clone())).await.map_err(Failure::from);
    match first {
        Err(failure) if stamped.is_none() && Stamp::Reviewer.is_missed_by(&failure) => {
            let user = cluster.whoami().await?;
            note(&format!("spec.reviewer is you ({}): the API server asked for it", user.username));
            review.spec.reviewer = Some(user.clone());
            *stamped = Some(user);
            Ok(api.create(&parameters, &Tolerant(review)).await?.0)
        }
        answer => Ok(answer?.0),
    }
}

/// Waits until the controller has said whether the review counts. What it may still think better of is given some
/// seconds more; where it says that it cannot judge the request now, as long as answers are waited for, and with
/// `waits` as long as the request is.
async fn answer(
    cluster: &Cluster,
    review: &JitAccessReview,
    waits: bool,
    patience: Patience,
) -> Result<JitAccessReview, Failure> {
    let name = review.metadata.name.clone().unwrap_or_default();
    let what =
        format!("waiting for the controller's answer to {name}, which was created and may still count");
    let bounded = patience.or(ANSWER);
    let mut latest =
        follow::until(cluster.reviews(), &name, bounded, &what, |found| answered(found, &name)).await?;
    let mut progress = Progress::new();
    while !is_final(&latest) {
        let held = is_held(&latest);
        let patience = match (held, waits) {
            (true, true) => patience,
            (true, false) => bounded,
            (false, _) => bounded.at_most(SECOND_THOUGHTS),
        };
        if held {
            progress.say(&format!("{name}: {}", reviews::NOT_NOW));
        }
        let said = latest.status.clone();
        let next = follow::until(cluster.reviews(), &name, patience, &what, |found| {
            let answer = answered(found, &name)?;
            let news = answer.as_ref().map_or(true, |found| found.status != said);
            news.then_some(answer)
        });
        match next.await {
            Err(failure) if failure.exit == Exit::TimedOut && !held => break,
            next => latest = next?,
        }
    }
    Ok(latest)
}

/// The review, once something was said of it.
fn answered(found: Option<&JitAccessReview>, name: &str) -> Option<Result<JitAccessReview, Failure>> {
    let Some(found) = found else {
        return Some(Err(Failure::error(format!("{name} was deleted before it was answered"))));
    };
    let counted = found.status.as_ref().and_then(|status| status.counted);
    counted.is_some().then(|| Ok(found.clone()))
}

/// Whether nothing better will be said of it.
fn is_final(review: &JitAccessReview) -> bool {
    review.status.as_ref().is_some_and(|status| status.counted == Some(true) || status.settled)
}

/// Whether nothing was said of it but that its request cannot be judged now.
fn is_held(review: &JitAccessReview) -> bool {
    let reason = review.status.as_ref().and_then(|status| status.reason.as_deref());
    !is_final(review) && reason == Some(reviews::NOT_NOW)
}

fn tell_created(review: &JitAccessReview, sending: &Sending, out: &mut dyn Write) -> Result<(), Failure> {
    let metadata = &review.metadata;
    let name = metadata.name.as_deref().filter(|name| !name.is_empty());
    let name = name.or(metadata.generate_name.as_deref()).unwrap_or_default();
    let name = plain(&full_name("JitAccessReview", name));
    match sending.output {
        None | Some(Format::Table | Format::Wide) => {
            writeln!(out, "{name} created{}", sending.dry_run.suffix())?;
        }
        Some(Format::Name) => writeln!(out, "{name}")?,
        Some(Format::Json | Format::Yaml) => {}
    }
    out.flush()?;
    Ok(())
}

/// Tells the controller's answer; what does not count is a failure.
fn tell_answer(
    review: &JitAccessReview,
    sending: &Sending,
    out: &mut dyn Write,
) -> Result<Option<Failure>, Failure> {
    let status = review.status.clone().unwrap_or_default();
    let name = full_name("JitAccessReview", review.metadata.name.as_deref().unwrap_or_default());
    let reason = status.reason.unwrap_or_default();
    if status.counted != Some(true) {
        return Ok(Some(Failure::refused(format!("{name} does not count: {reason}"))));
    }
    if matches!(sending.output, None | Some(Format::Table | Format::Wide)) {
        writeln!(out, "{} answered: {}", plain(&name), plain(&reason))?;
        out.flush()?;
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_review_names_exactly_what_was_seen() {
        let request: JitAccessRequest = serde_json::from_value(json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": "disk-full", "namespace": "team-web", "uid": "1-2"},
            "spec": {"policyRef": {"name": "web-1"}, "duration": "1h", "ports": []},
            "status": {"planHash": "abc"},
        }))
        .unwrap();
        let made = |verdict| serde_json::to_value(review(&request, "web-1", verdict, Some("ok"))).unwrap();
        assert_eq!(
            made(Verdict::Approved),
            json!({
                "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessReview",
                "metadata": {"generateName": "disk-full-", "namespace": "team-web"},
                "spec": {
                    "requestRef": {"name": "disk-full", "uid": "1-2"}, "policyRef": {"name": "web-1"},
                    "planHash": "abc", "verdict": "Approved", "comment": "ok",
                },
            })
        );
        assert_eq!(made(Verdict::Denied)["spec"]["planHash"], json!(null), "a denial is of any plan");
    }

    #[test]
    fn an_answer_is_final_when_it_counts_or_is_settled() {
        let review = |status: serde_json::Value| -> JitAccessReview {
            let mut review = JitAccessReview::new(
                "a",
                serde_json::from_value(json!({
                    "requestRef": {"name": "r", "uid": "u"}, "policyRef": {"name": "p"}, "verdict": "Denied",
                }))
                .unwrap(),
            );
            review.status = serde_json::from_value(status).unwrap();
            review
        };
        let silent = review(json!({"observedGeneration": -1}));
        assert!(answered(Some(&silent), "a").is_none() && !is_final(&silent));
        for (status, last) in [
            (json!({"counted": true}), true),
            (json!({"counted": false, "reason": "asked"}), false),
            (json!({"counted": false, "reason": reviews::NOT_NOW}), false),
            (json!({"counted": false, "settled": true}), true),
        ] {
            let held = status["reason"] == reviews::NOT_NOW;
            let review = review(status);
            assert!(answered(Some(&review), "a").unwrap().is_ok());
            assert_eq!(is_held(&review), held);
            assert_eq!(is_final(&review), last);
        }
        assert!(answered(None, "a").unwrap().is_err());
    }

    #[test]
    fn all_failures_are_told_and_the_first_decides() {
        assert!(together_or_ok(vec![]).is_ok());
        let both = together_or_ok(vec![Failure::refused("a"), Failure::error("b")]).unwrap_err();
        assert_eq!((both.exit, both.message.as_str()), (Exit::Refused, "error: a\nerror: b"));
    }
}
