//! Who counts as whom.
//!
//! Nobody may count twice, and nobody for their own request. So in doubt two users are taken for one person: where
//! their names differ only in case or in space around them, or where they have the same uid. All pipelines (service
//! accounts, and users that the configuration names) are one person, because whoever can run one can run another.
//!
//! Where places are limited that would be too strict: one pipeline would take them from all others. There, the service
//! accounts of one namespace are one, because whoever may edit the namespace can make more of them; a pipeline that the
//! configuration names is itself.

use std::collections::BTreeSet;

use crate::api::UserInfo;

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

/// Users that are programs: every service account, and those that the configuration names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Pipelines(BTreeSet<String>);

impl Pipelines {
    /// Service accounts and users of these names.
    #[must_use]
    pub fn new(users: &[String]) -> Self {
        Self(users.iter().map(|user| fold(user)).collect())
    }

    /// Whether a user of this name is a program.
    #[must_use]
    pub fn has(&self, username: &str) -> bool {
        let name = fold(username);
        name.starts_with(SERVICE_ACCOUNT) || self.0.contains(&name)
    }

    /// What tells a person from others: two users that share one of these are taken for one person.
    #[must_use]
    pub fn traits(&self, user: &UserInfo) -> BTreeSet<Trait> {
        if self.has(&user.username) {
            return BTreeSet::from([Trait::Pipeline]);
        }
        let uid = user.uid.iter().filter(|uid| !uid.is_empty()).map(|uid| Trait::Uid(uid.clone()));
        uid.chain([Trait::Name(fold(&user.username))]).collect()
    }

    /// Who somebody is where places are limited: who shares one of these shares the places.
    #[must_use]
    pub fn claimants(&self, user: &UserInfo) -> BTreeSet<Trait> {
        match namespace_of(&user.username) {
            Some(namespace) => BTreeSet::from([Trait::Namespace(namespace)]),
            None if self.has(&user.username) => BTreeSet::from([Trait::Name(fold(&user.username))]),
            None => self.traits(user),
        }
    }

    /// Whether two users are taken for one person.
    #[must_use]
    pub fn same(&self, one: &UserInfo, other: &UserInfo) -> bool {
        !self.traits(one).is_disjoint(&self.traits(other))
    }

    /// Whether a user may be the one that a request names in `onBehalfOf`: words that somebody chose. An
    /// authenticator's prefix (`oidc:alice@contoso.com`) makes no difference, nor does a domain that only one of the
    /// two has.
    #[must_use]
    pub fn may_be(&self, claim: &str, user: &UserInfo) -> bool {
        if self.has(claim) && self.has(&user.username) {
            return true;
        }
        let uid = user.uid.as_deref().is_some_and(|uid| !uid.is_empty() && uid == claim.trim());
        let (claimed, name) = (fold(claim), fold(&user.username));
        let (claimed, name) = (bare(&claimed), bare(&name));
        let (left, right) = (local(claimed), local(name));
        uid || claimed == name || ((claimed == left || name == right) && left == right)
    }
}

/// Something by which a person is known.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Trait {
    /// Is a program.
    Pipeline,
    /// Has this name, without regard to case.
    Name(String),
    /// Has this uid.
    Uid(String),
    /// Is a service account of this namespace.
    Namespace(String),
}

/// The namespace of a service account; none where the user is something else.
#[must_use]
pub fn namespace_of(username: &str) -> Option<String> {
    let name = fold(username);
    let (namespace, _) = name.strip_prefix(SERVICE_ACCOUNT)?.split_once(':')?;
    Some(namespace.to_owned())
}

/// A name without regard to case and to space around it.
pub(crate) fn fold(name: &str) -> String {
    name.trim().to_lowercase()
}

/// A name without its authenticator's prefix.
fn bare(name: &str) -> &str {
    let rest = name.rsplit([':', '#', '/', '\\']).next().unwrap_or_default();
    if rest.is_empty() { name } else { rest }
}

/// A name without its domain.
fn local(name: &str) -> &str {
    name.split_once('@').map_or(name, |(local, _)| local)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str, uid: &str) -> UserInfo {
        UserInfo { username: name.into(), uid: (!uid.is_empty()).then(|| uid.into()), ..UserInfo::default() }
    }

    fn pipelines() -> Pipelines {
        Pipelines::new(&["ci@contoso.com".into(), "other-ci".into()])
    }

    #[test]
    fn in_doubt_two_users_are_one_person() {
        let same = |one: (&str, &str), other: (&str, &str)| {
            pipelines().same(&user(one.0, one.1), &user(other.0, other.1))
        };
        assert!(same(("alice", "1"), ("alice", "2")));
        assert!(same(("alice", "1"), (" ALICE ", "")));
        assert!(same(("alice", "1"), ("bob", "1")), "renamed");
        assert!(!same(("alice", ""), ("bob", "")), "no uid is nobody's uid");
        assert!(!same(("alice", "1"), ("bob", "2")));
        assert!(same(("system:serviceaccount:a:x", "1"), ("system:serviceaccount:b:y", "2")));
        assert!(same(("CI@contoso.com", "1"), ("system:serviceaccount:b:y", "2")));
        assert!(!same(("ci@contoso.com", "1"), ("alice", "1")), "a program is nobody");
    }

    #[test]
    fn places_are_shared_by_a_person_a_pipeline_or_all_service_accounts_of_a_namespace() {
        let shared = |one: (&str, &str), other: (&str, &str)| {
            let of = |(name, uid)| pipelines().claimants(&user(name, uid));
            !of(one).is_disjoint(&of(other))
        };
        assert!(shared(("alice", "1"), ("ALICE ", "2")) && shared(("alice", "1"), ("bob", "1")));
        assert!(shared(("system:serviceaccount:a:x", "1"), ("system:serviceaccount:a:y", "2")));
        assert!(!shared(("system:serviceaccount:a:x", "1"), ("system:serviceaccount:b:x", "2")));
        assert!(shared(("ci@contoso.com", "1"), ("CI@contoso.com", "2")));
        assert!(!shared(("ci@contoso.com", "1"), ("system:serviceaccount:a:x", "1")));
        assert!(!shared(("ci@contoso.com", "1"), ("other-ci", "1")), "each has places of its own");
    }

    #[test]
    fn who_is_named_is_recognised_by_any_of_their_names() {
        let named = |claim: &str, name: &str| pipelines().may_be(claim, &user(name, "uid-7"));
        for (claim, name) in [
            ("alice@contoso.com", "alice@contoso.com"),
            ("Alice@Contoso.com ", "alice@contoso.com"),
            ("alice@contoso.com", "oidc:alice@contoso.com"),
            ("alice@contoso.com", "https://login.example.com/x#alice@contoso.com"),
            ("contoso\\alice", "alice@contoso.com"),
            ("alice", "alice@contoso.com"),
            ("alice@contoso.com", "alice"),
            ("uid-7", "somebody"),
            ("system:serviceaccount:a:x", "ci@contoso.com"),
        ] {
            assert!(named(claim, name), "{claim} is {name}");
        }
        for (claim, name) in [
            ("alice@contoso.com", "alice@fabrikam.com"),
            ("alice", "malice"),
            ("bob", "alice@contoso.com"),
            (":", "alice"),
            ("ci@contoso.com", "alice"),
            ("alice", "system:serviceaccount:a:x"),
        ] {
            assert!(!named(claim, name), "{claim} is not {name}");
        }
    }
}
