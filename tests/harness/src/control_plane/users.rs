//! The people of the tests: distinct users of the API server, each with a uid and groups.

/// A user of the API server, authenticated by a token of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum User {
    /// A cluster administrator (`system:masters`).
    Admin,
    /// Asks for access; in `developers`.
    Developer,
    /// Another one who asks; in `developers`.
    Developer2,
    /// Decides on requests; in `approvers`.
    Approver,
    /// Another one who decides; in `approvers`.
    Approver2,
    /// Writes policies; in `platform`.
    PolicyAdmin,
    /// Only looks; in `viewers`.
    Viewer,
    /// Authenticated, and allowed nothing.
    Outsider,
}

impl User {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Admin,
        Self::Developer,
        Self::Developer2,
        Self::Approver,
        Self::Approver2,
        Self::PolicyAdmin,
        Self::Viewer,
        Self::Outsider,
    ];

    /// The user's name, as the API server knows it; also the name of the kubeconfig context.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Admin => "admin",
            Self::Developer => "developer",
            Self::Developer2 => "developer2",
            Self::Approver => "approver",
            Self::Approver2 => "approver2",
            Self::PolicyAdmin => "policy-admin",
            Self::Viewer => "viewer",
            Self::Outsider => "outsider",
        }
    }

    /// The user's groups; the API server adds `system:authenticated`.
    #[must_use]
    pub const fn groups(self) -> &'static [&'static str] {
        match self {
            Self::Admin => &["system:masters"],
            Self::Developer => &["developers", "team-web"],
            Self::Developer2 => &["developers"],
            Self::Approver | Self::Approver2 => &["approvers"],
            Self::PolicyAdmin => &["platform"],
            Self::Viewer => &["viewers"],
            Self::Outsider => &["outsiders"],
        }
    }

    /// The user's unchanging id.
    #[must_use]
    pub fn uid(self) -> String {
        format!("uid-of-{}", self.name())
    }
}

/// The API server's `--token-auth-file`, and the tokens in it.
pub(super) fn token_file(tokens: &[(User, String)]) -> String {
    tokens
        .iter()
        .map(|(user, token)| {
            format!("{token},{},{},\"{}\"\n", user.name(), user.uid(), user.groups().join(","))
        })
        .collect()
}
