//! Which allows are to be removed.

use super::{Draft, grant_rule, is_live};
use crate::api::Reason;
use crate::plan::desired::{Close, Duty, Grant};
use crate::plan::model::{Access, Provisioning, ResourceLock, Rule};
use crate::plan::names::{self, Mark};

/// What the read shows of the rule of a grant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shown {
    /// Nothing.
    Absent,
    /// The rule as granted.
    AsGranted,
    /// The rule as granted; what filters packets is unknown.
    Failed,
    /// A deny: closed, as far as packets go.
    Deny,
    /// An allow that does something else.
    Other,
}

pub(super) fn shown(draft: &Draft<'_>, grant: &Grant) -> Shown {
    let Some(rule) = draft.observed.rule(&grant.name) else { return Shown::Absent };
    if rule.access == Access::Deny {
        return Shown::Deny;
    }
    match (rule.same_effect(&grant_rule(&draft.wanted.cluster, grant, rule.priority)), rule.provisioning) {
        (false, _) => Shown::Other,
        (true, Provisioning::Failed) => Shown::Failed,
        (true, Provisioning::Succeeded | Provisioning::Updating) => Shown::AsGranted,
    }
}

/// Whether the removal of a grant's rule is due.
fn is_due(draft: &Draft<'_>, grant: &Grant, shown: Shown) -> bool {
    let stands = match shown {
        Shown::AsGranted | Shown::Failed | Shown::Other => true,
        Shown::Absent | Shown::Deny => false,
    };
    match grant.duty {
        Duty::Close { sent } => !sent || stands,
        Duty::Open { .. } | Duty::Hold if draft.now >= grant.deadline => true,
        // Too late to open it: what stands was written late.
        Duty::Open { until, .. } if draft.now > until => stands,
        // It lets in what was never granted, or what is granted to nobody any more.
        Duty::Open { .. } | Duty::Hold => shown == Shown::Other,
    }
}

pub(super) fn plan(draft: &mut Draft<'_>) {
    for grant in &draft.wanted.grants {
        if !matches!(names::parse_name(&draft.wanted.cluster, &grant.name), Some(Mark::Allow { .. })) {
            let message =
                format!("{:?} is no name of an allow of this cluster: it is left alone", grant.name);
            draft.refuse(&grant.request_uid, Some(&grant.name), Reason::NotTrusted, message);
            continue;
        }
        let shown = shown(draft, grant);
        if is_due(draft, grant, shown) {
            let name = draft.observed.rule(&grant.name).map_or(&grant.name, |rule| &rule.name);
            close(draft, name.clone());
        }
        let lost = match shown {
            Shown::Absent | Shown::Failed | Shown::Deny | Shown::Other => true,
            Shown::AsGranted => false,
        };
        if lost && grant.duty == Duty::Hold && is_live(grant, draft.now) {
            draft.changes.lost.push(grant.name.clone());
        }
    }
    for (mark, rule) in draft.own.clone() {
        let Mark::Allow { deadline, .. } = mark else { continue };
        match rule.access {
            Access::Deny => remove_when_unlocked(draft, rule),
            Access::Allow => {
                let overdue = deadline.is_none_or(|deadline| deadline <= draft.now);
                let grant = draft.grant(&rule.name);
                let orphan = grant.is_none()
                    && draft.wanted.orphans.iter().any(|name| name.eq_ignore_ascii_case(&rule.name));
                if overdue || orphan {
                    close(draft, rule.name.clone());
                }
                // Its description says that it died before its grant does.
                if let Some(grant) = grant
                    && overdue
                    && grant.duty == Duty::Hold
                    && is_live(grant, draft.now)
                {
                    draft.changes.lost.push(grant.name.clone());
                }
            }
        }
    }
}

fn close(draft: &mut Draft<'_>, name: String) {
    if !draft.is_closing(&name) {
        draft.changes.closes.push(Close { name, as_deny: None });
    }
}

/// An allow that was closed by rewriting it as a deny goes when nothing forbids it any more.
fn remove_when_unlocked(draft: &mut Draft<'_>, rule: &Rule) {
    let needed = draft.grant(&rule.name).is_some_and(|grant| is_live(grant, draft.now));
    if draft.observed.lock == ResourceLock::None && !needed && !draft.is_closing(&rule.name) {
        draft.changes.unlocks.push(rule.name.clone());
    }
}

/// Chooses what to write where a resource lock forbids a removal: last, so that nothing else has to give way.
pub(super) fn choose_denies(draft: &mut Draft<'_>) {
    let mut closes = std::mem::take(&mut draft.changes.closes);
    closes.sort_by(|left, right| left.name.cmp(&right.name));
    for close in &mut closes {
        let Some(rule) = draft.observed.rule(&close.name).filter(|rule| rule.access == Access::Allow) else {
            continue;
        };
        // With every number taken, its own serves as well: a deny shuts out no less there.
        let priority = draft.slots.highest_below(u16::MAX).unwrap_or(rule.priority);
        draft.slots.take(priority);
        close.as_deny = Some(Rule {
            access: Access::Deny,
            priority,
            provisioning: Provisioning::Succeeded,
            ..rule.clone()
        });
    }
    draft.changes.closes = closes;
}
