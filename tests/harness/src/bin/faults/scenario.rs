//! What happens to grants: one scenario a machine.

use portcullis_harness::install::NAMESPACE;

/// The namespace that is taken away.
pub const GONE: &str = "team-gone";
pub const GONE_PATH: &str = "/api/v1/namespaces/team-gone";

/// What happens to a grant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Scenario {
    Lock,
    Expire,
    Overlap,
    Ended,
    Revoked,
    Tightened,
    PolicyDeleted,
    MachineDeleted,
    NamespaceDeleted,
    Firewall,
}

impl Scenario {
    pub const ALL: [Self; 10] = [
        Self::Lock,
        Self::Expire,
        Self::Overlap,
        Self::Ended,
        Self::Revoked,
        Self::Tightened,
        Self::PolicyDeleted,
        Self::MachineDeleted,
        Self::NamespaceDeleted,
        Self::Firewall,
    ];

    /// As it stands in the table, and in the names of its objects.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lock => "lock",
            Self::Expire => "expire",
            Self::Overlap => "overlap",
            Self::Ended => "ended",
            Self::Revoked => "revoked",
            Self::Tightened => "tightened",
            Self::PolicyDeleted => "policy-deleted",
            Self::MachineDeleted => "machine-deleted",
            Self::NamespaceDeleted => "namespace-deleted",
            Self::Firewall => "firewall",
        }
    }

    pub const fn namespace(self) -> &'static str {
        if matches!(self, Self::NamespaceDeleted) { GONE } else { NAMESPACE }
    }

    /// The requests: how long, and from where.
    pub fn requests(self) -> Vec<(String, &'static str, &'static str)> {
        let one = |duration| vec![(self.name().to_owned(), duration, "203.0.113.7")];
        match self {
            Self::Lock => vec![],
            Self::Expire => one("30s"),
            Self::Overlap => vec![
                (format!("{}-a", self.name()), "30s", "203.0.113.7"),
                (format!("{}-b", self.name()), "38s", "203.0.113.8"),
            ],
            _ => one("1h"),
        }
    }

    /// The resource group of its machine. Most share one, and its network security group.
    pub const fn group(self) -> &'static str {
        match self {
            Self::NamespaceDeleted => "gone",
            Self::Firewall => "spoke",
            _ => "matrix",
        }
    }

    /// The last number of its machine's address.
    pub fn host(self) -> usize {
        4 + Self::ALL.iter().position(|one| *one == self).unwrap_or_default()
    }
}
