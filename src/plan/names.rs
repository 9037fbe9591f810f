//! How a rule says who owns it and when it dies.
//!
//! `portcullis-<cluster8>-allow-<uid12>-<deadline>-<n>`, `…-deny-<uid12>-<n>`, `…-exempt-<uid12>-<n>`, with
//! `cluster8` the first 8 hex digits of SHA-256 of the cluster id, `uid12` the first 12 hex digits of the
//! owner's UID, the deadline in UTC as `20261122T080000Z`. Descriptions: `portcullis expires=<RFC 3339>
//! owner=<uid> cluster=<cluster8>`, without `expires` where nothing expires.
//!
//! Both parse back without regard to case. Where deadlines differ, the earlier counts; an unreadable one
//! counts as overdue.

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::model::{Access, Rule};

/// Which cluster's rules are ours: its own mark, and those of ids that it had before.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    mark: String,
    previous: Vec<String>,
}

impl Cluster {
    /// The marks of a cluster id and of those it had before.
    #[must_use]
    pub fn new(id: &str, previous_ids: &[String]) -> Self {
        Self { mark: mark(id), previous: previous_ids.iter().map(|id| mark(id)).collect() }
    }

    /// The mark that new rules carry: 8 hex digits.
    #[must_use]
    pub fn mark(&self) -> &str {
        &self.mark
    }

    /// Whether a mark is this cluster's or one that it had before.
    #[must_use]
    pub fn owns(&self, mark: &str) -> bool {
        std::iter::once(&self.mark).chain(&self.previous).any(|own| own.eq_ignore_ascii_case(mark))
    }
}

fn mark(id: &str) -> String {
    hex(&Sha256::digest(id.as_bytes()))[..8].to_owned()
}

/// Bytes as lower-case hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The first 12 hexadecimal digits of a UID, in lower case.
#[must_use]
pub fn uid12(uid: &str) -> String {
    uid.chars().filter(char::is_ascii_hexdigit).take(12).collect::<String>().to_ascii_lowercase()
}

/// What a rule of ours is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// Opens a port until the deadline. None: the deadline cannot be read, so it counts as overdue.
    Allow {
        /// First 12 hex digits of the request's UID; empty where only the description told.
        owner: String,
        /// The earliest deadline that name or description gives.
        deadline: Option<Timestamp>,
    },
    /// Part of a lock.
    Deny {
        /// First 12 hex digits of the policy's UID.
        owner: String,
        /// Its number.
        number: u32,
    },
    /// Lets an exempt source past a lock.
    Exempt {
        /// First 12 hex digits of the policy's UID.
        owner: String,
        /// Its number.
        number: u32,
    },
}

/// Name of the `n`th allow of a request.
#[must_use]
pub fn allow_name(cluster: &Cluster, request_uid: &str, deadline: Timestamp, n: u32) -> String {
    format!("portcullis-{}-allow-{}-{}-{n}", cluster.mark, uid12(request_uid), compact(deadline))
}

/// The deadline in a name, where it is that of an allow of this request under any cluster id: the beginning of time
/// where it cannot be read.
#[must_use]
pub fn deadline_of(name: &str, request_uid: &str) -> Option<Timestamp> {
    let name = name.to_ascii_lowercase();
    let mut parts = name.strip_prefix("portcullis-")?.split('-').skip(1);
    let (kind, owner, deadline) = (parts.next()?, parts.next()?, parts.next()?);
    let is_its_own = kind == "allow" && owner.len() == 12 && owner == uid12(request_uid);
    is_its_own.then(|| parse_compact(deadline).unwrap_or(Timestamp::UNIX_EPOCH))
}

/// Name of the `n`th deny of a policy.
#[must_use]
pub fn deny_name(cluster: &Cluster, policy_uid: &str, n: u32) -> String {
    format!("portcullis-{}-deny-{}-{n}", cluster.mark, uid12(policy_uid))
}

/// Name of the `n`th exemption of a policy.
#[must_use]
pub fn exempt_name(cluster: &Cluster, policy_uid: &str, n: u32) -> String {
    format!("portcullis-{}-exempt-{}-{n}", cluster.mark, uid12(policy_uid))
}

/// Whether a name of ours bears the mark of an id that the cluster had before.
#[must_use]
pub fn is_of_previous(cluster: &Cluster, name: &str) -> bool {
    parse_name(cluster, name).is_some()
        && name.split('-').nth(1).is_some_and(|mark| !mark.eq_ignore_ascii_case(&cluster.mark))
}

/// A description of ours with the mark of the cluster's present id; one that is not of our form as it is.
#[must_use]
pub fn under_present_id(cluster: &Cluster, description: &str) -> String {
    match description.trim().rsplit_once(" cluster=") {
        Some((rest, mark)) if cluster.owns(mark) => format!("{rest} cluster={}", cluster.mark),
        _ => description.to_owned(),
    }
}

/// Description of a rule.
#[must_use]
pub fn description(cluster: &Cluster, owner_uid: &str, deadline: Option<Timestamp>) -> String {
    let expires = deadline.map(|at| format!("expires={} ", whole_second(at))).unwrap_or_default();
    format!("portcullis {expires}owner={owner_uid} cluster={}", cluster.mark)
}

/// What a rule is by its name and description: none where it is somebody else's. A rule that merely resembles
/// ours in part is somebody else's.
#[must_use]
pub fn parse(cluster: &Cluster, rule: &Rule) -> Option<Mark> {
    let by_description = parse_description(cluster, &rule.description);
    match parse_name(cluster, &rule.name) {
        Some(Mark::Allow { owner, deadline }) => {
            let deadline = match (deadline, by_description) {
                // The earlier counts, so an edited description cannot keep a rule open.
                (Some(name), Some(Some(described))) => Some(name.min(described)),
                (named, _) => named,
            };
            Some(Mark::Allow { owner, deadline })
        }
        Some(other) => Some(other),
        // A renamed copy of an allow is ours to close.
        None if rule.access == Access::Allow => {
            by_description.map(|deadline| Mark::Allow { owner: String::new(), deadline })
        }
        None => None,
    }
}

/// What a name says: none where it is not ours to the letter (case aside).
#[must_use]
pub fn parse_name(cluster: &Cluster, name: &str) -> Option<Mark> {
    let name = name.to_ascii_lowercase();
    let mut parts = name.strip_prefix("portcullis-")?.split('-');
    let (mark, kind, owner) = (parts.next()?, parts.next()?, parts.next()?);
    let rest: Vec<&str> = parts.collect();
    if !cluster.owns(mark) || owner.len() != 12 || !owner.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let owner = owner.to_owned();
    match (kind, rest.as_slice()) {
        ("allow", [deadline, number]) => {
            number.parse::<u32>().ok()?;
            Some(Mark::Allow { owner, deadline: parse_compact(deadline) })
        }
        ("deny", [number]) => Some(Mark::Deny { owner, number: number.parse().ok()? }),
        ("exempt", [number]) => Some(Mark::Exempt { owner, number: number.parse().ok()? }),
        _ => None,
    }
}

/// What a whole description says of an allow: none where it is not of our form; the inner none where its
/// deadline cannot be read.
fn parse_description(cluster: &Cluster, text: &str) -> Option<Option<Timestamp>> {
    let text = text.trim().to_ascii_lowercase();
    let rest = text.strip_prefix("portcullis expires=")?;
    let (expires, rest) = rest.split_once(' ')?;
    let (owner, mark) = rest.strip_prefix("owner=")?.split_once(" cluster=")?;
    if owner.is_empty() || owner.contains(' ') || !cluster.owns(mark) {
        return None;
    }
    Some(expires.to_ascii_uppercase().parse().ok())
}

fn whole_second(at: Timestamp) -> Timestamp {
    Timestamp::from_second(at.as_second()).unwrap_or(at)
}

fn compact(at: Timestamp) -> String {
    whole_second(at).strftime("%Y%m%dT%H%M%SZ").to_string()
}

fn parse_compact(text: &str) -> Option<Timestamp> {
    let text = text.to_ascii_uppercase();
    let civil = text.strip_suffix('Z').filter(|civil| civil.len() == 15)?;
    let civil = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S", civil).ok()?;
    Some(civil.to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::values::Protocol;
    use crate::plan::model::{Provisioning, RuleProtocol};

    const UID: &str = "0F8FAD5B-d9cb-469f-a165-70867728950e";

    fn rule(name: &str, description: &str, access: Access) -> Rule {
        Rule {
            name: name.into(),
            priority: 100,
            access,
            protocol: RuleProtocol::Transport(Protocol::Tcp),
            sources: vec![],
            source_ports: vec![],
            destinations: vec![],
            ports: vec![],
            translation: None,
            description: description.into(),
            provisioning: Provisioning::Succeeded,
        }
    }

    fn at(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    #[test]
    fn names_and_descriptions_fit_and_read_back_in_any_case() {
        let cluster = Cluster::new("prod", &["old".into()]);
        let deadline = at("2026-11-22T08:00:00Z");
        let name = allow_name(&cluster, UID, deadline, 127);
        let text = description(&cluster, UID, Some(deadline));
        assert!(name.len() <= 80, "{name}");
        assert!(text.len() <= 140, "{text}");
        let expected = Some(Mark::Allow { owner: "0f8fad5bd9cb".into(), deadline: Some(deadline) });
        assert_eq!(
            parse(&cluster, &rule(&name.to_uppercase(), &text.to_uppercase(), Access::Allow)),
            expected
        );
        assert_eq!(parse(&cluster, &rule(&name, "", Access::Allow)), expected);
        let renamed = parse(&cluster, &rule("innocent", &text, Access::Allow));
        assert_eq!(renamed, Some(Mark::Allow { owner: String::new(), deadline: Some(deadline) }));
        assert_eq!(
            parse_name(&cluster, &deny_name(&cluster, UID, 3)),
            Some(Mark::Deny { owner: "0f8fad5bd9cb".into(), number: 3 })
        );
    }

    #[test]
    fn the_earlier_deadline_counts_and_an_unreadable_one_is_overdue() {
        let cluster = Cluster::new("prod", &[]);
        let (early, late) = (at("2026-11-22T08:00:00Z"), at("2026-11-22T09:00:00Z"));
        for (named, described) in [(early, late), (late, early)] {
            let rule = rule(
                &allow_name(&cluster, UID, named, 0),
                &description(&cluster, UID, Some(described)),
                Access::Allow,
            );
            assert!(
                matches!(parse(&cluster, &rule), Some(Mark::Allow { deadline: Some(at), .. }) if at == early)
            );
        }
        let broken = allow_name(&cluster, UID, early, 0).replace("20261122T", "2026XX22T");
        assert!(matches!(
            parse(&cluster, &rule(&broken, &description(&cluster, UID, Some(late)), Access::Allow)),
            Some(Mark::Allow { deadline: None, .. })
        ));
    }

    #[test]
    fn what_resembles_ours_in_part_is_somebody_elses() {
        let cluster = Cluster::new("prod", &["old".into()]);
        let own = allow_name(&cluster, UID, at("2026-11-22T08:00:00Z"), 0);
        for name in [
            format!("{own}-x"),
            format!("x{own}"),
            own.replace("-allow-", "-allowed-"),
            own.replace("0f8fad5bd9cb", "0f8fad5bd9c"),
            own.replace("0f8fad5bd9cb", "0f8fad5bd9cg"),
            allow_name(&Cluster::new("other", &[]), UID, at("2026-11-22T08:00:00Z"), 0),
            "portcullis".into(),
            "portcullis-allow-ssh".into(),
        ] {
            assert_eq!(parse(&cluster, &rule(&name, "portcullis", Access::Allow)), None, "{name}");
        }
        // A deny lets nobody in, whatever its description says; and one with no owner, or with words, is not of our form.
        let ours = description(&cluster, UID, Some(at("2026-11-22T08:00:00Z")));
        assert_eq!(parse(&cluster, &rule("innocent", &ours, Access::Deny)), None);
        for text in [
            ours.replace(UID, ""),
            ours.replace(UID, "some one"),
            ours.replace(&cluster.mark, "00000000"),
            format!("{ours} and more"),
        ] {
            assert_eq!(parse(&cluster, &rule("innocent", &text, Access::Allow)), None, "{text}");
        }
        let of_old = allow_name(&Cluster::new("old", &[]), UID, at("2026-11-22T08:00:00Z"), 0);
        assert!(parse_name(&cluster, &of_old).is_some());
    }
    #[test]
    fn a_description_comes_under_the_present_id_from_none_but_a_previous_one() {
        let (old, present) = (Cluster::new("old", &[]), Cluster::new("prod", &["old".into()]));
        assert_eq!(
            under_present_id(&present, &description(&old, UID, None)),
            description(&present, UID, None)
        );
        for text in [description(&Cluster::new("other", &[]), UID, None), "mine cluster=big".to_owned()] {
            assert_eq!(under_present_id(&present, &text), text);
        }
    }
}
