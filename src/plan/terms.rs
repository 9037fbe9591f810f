//! What a policy and a request say, parsed once: every later judgement is over values that cannot be wrong.

use std::collections::BTreeMap;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use regex::{Regex, RegexBuilder};

use super::model::{Os, Peer};
use crate::api::values::{ArmId, InvalidValue, PortRange, Protocol, Span};
use crate::api::{
    DeletionPolicy, EstablishedSessions, ExistingRules, FirewallSource, JitAccessRequestSpec, JitPolicySpec,
    Mode, PolicyTarget, Reason, Source, Via,
};

const DEFAULT_MAX_DURATION: Duration = Duration::from_secs(3 * 3600);
const DEFAULT_PENDING_TIMEOUT: Duration = Duration::from_secs(3600);
const DEFAULT_USE_WITHIN: Duration = Duration::from_secs(24 * 3600);
const DEFAULT_FIREWALL_LEAD: Duration = Duration::from_secs(300);
const DEFAULT_HORIZON: Duration = Duration::from_secs(168 * 3600);
/// A pattern that compiles to more than this many bytes is refused: it is there to check a ticket number.
const PATTERN_SIZE: usize = 1 << 18;

/// A spec that cannot be: which field, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {message}")]
pub struct InvalidSpec {
    /// Path of the field, such as `spec.ports[0].maxDuration`.
    pub field: String,
    /// What is wrong and what would be right.
    pub message: String,
    /// In one word.
    pub reason: Reason,
}

fn invalid(field: impl Into<String>) -> impl FnOnce(InvalidValue) -> InvalidSpec {
    let field = field.into();
    |error| InvalidSpec { field, message: error.0, reason: Reason::InvalidSpec }
}

/// What a policy says.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whether the lock is written.
    pub mode: Mode,
    /// The stop button.
    pub suspend: bool,
    /// The machines, by the name of the entry.
    pub targets: BTreeMap<String, Selector>,
    /// The ports; empty: by operating system.
    pub ports: Vec<PortTerms>,
    /// Above or below rules that would let traffic in.
    pub existing: ExistingRules,
    /// Sources that the lock does not shut out.
    pub exempt: Vec<Peer>,
    /// Which firewalls on the way are enforced.
    pub via: Via,
    /// What source a machine behind an Azure Firewall sees.
    pub firewall_source: FirewallSource,
    /// How long before a grant's end the rules on firewalls that take minutes begin to be removed.
    pub firewall_lead: Duration,
    /// Whether a close cuts connections that were made before.
    pub cut_sessions: bool,
    /// Approvals asked for.
    pub required: i32,
    /// Whether the requester's own approval counts.
    pub self_approval: bool,
    /// How long a request waits for its approvals.
    pub pending_timeout: Duration,
    /// How long an approval may lie unused.
    pub use_within: Duration,
    /// Whether a justification must be given.
    pub justification_required: bool,
    /// What it must match.
    pub justification: Option<Regex>,
    /// Live grants that one requester may hold.
    pub active_per_requester: usize,
    /// Live grants altogether.
    pub active: usize,
    /// Distinct sources that one request may name.
    pub sources_per_request: usize,
    /// How far ahead `notBefore`, and `notAfter` of delegated requests, may lie.
    pub horizon: Duration,
    /// What becomes of the lock when nobody asks for it any more.
    pub deletion_policy: DeletionPolicy,
}

/// How long a request waits where it cannot be judged, so that nobody knows which policies cover it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For its approvals.
    pub pending: Duration,
    /// For its turn, once it is approved.
    pub unused: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { pending: DEFAULT_PENDING_TIMEOUT, unused: DEFAULT_USE_WITHIN }
    }
}

impl Patience {
    /// By the policy that it names; as the defaults have it where that is not there or cannot be understood.
    #[must_use]
    pub fn of(named: Option<&Terms>) -> Self {
        named.map_or_else(Self::default, |terms| Self {
            pending: terms.pending_timeout,
            unused: terms.use_within,
        })
    }
}

/// Which machines an entry selects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Selector {
    /// One.
    Machine(ArmId),
    /// All below a subscription or resource group that have the tags.
    Scope {
        /// The subscription or resource group.
        scope: ArmId,
        /// The tags.
        tags: BTreeMap<String, String>,
    },
}

impl Selector {
    /// The id that it names: what tenancy is judged by.
    #[must_use]
    pub const fn id(&self) -> &ArmId {
        match self {
            Self::Machine(id) | Self::Scope { scope: id, .. } => id,
        }
    }

    /// Whether a machine may be among those that it names, whatever its tags.
    #[must_use]
    pub fn may_select(&self, machine: &ArmId) -> bool {
        self.id().contains(machine)
    }
}

/// What a policy says of some ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortTerms {
    /// Protocol.
    pub protocol: Protocol,
    /// Ports.
    pub range: PortRange,
    /// Who may be named as source; the fewest networks that cover them.
    pub allowed: Vec<IpNet>,
    /// The longest time.
    pub max_duration: Duration,
}

impl Terms {
    /// Whether network security groups are locked and opened.
    #[must_use]
    pub const fn uses_groups(&self) -> bool {
        matches!(self.via, Via::Auto | Via::NetworkSecurityGroup)
    }

    /// Whether Azure Firewalls are opened.
    #[must_use]
    pub const fn uses_firewalls(&self) -> bool {
        matches!(self.via, Via::Auto | Via::AzureFirewall)
    }

    /// Parses a policy's spec.
    ///
    /// # Errors
    /// The first field that cannot be, with what would be right.
    pub fn parse(spec: &JitPolicySpec) -> Result<Self, InvalidSpec> {
        if spec.targets.is_empty() {
            return Err(invalid("spec.targets")(InvalidValue::new("must name at least one target")));
        }
        let mut targets = BTreeMap::new();
        for (index, target) in spec.targets.iter().enumerate() {
            let field = format!("spec.targets[{index}]");
            let selector = selector(target, &field)?;
            if targets.insert(target.name.clone(), selector).is_some() {
                return Err(invalid(format!("{field}.name"))(InvalidValue(format!(
                    "{:?} is there twice: names must be unique",
                    target.name
                ))));
            }
        }
        let ports = spec
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| {
                let field = format!("spec.ports[{index}]");
                Ok(PortTerms {
                    protocol: port.protocol.unwrap_or_default(),
                    range: PortRange::from_fields(port.port, port.end_port)
                        .map_err(invalid(field.clone()))?,
                    allowed: networks_or_any(&port.allowed_sources, &format!("{field}.allowedSources"))?,
                    max_duration: span(
                        &port.max_duration,
                        &format!("{field}.maxDuration"),
                        DEFAULT_MAX_DURATION,
                    )?,
                })
            })
            .collect::<Result<Vec<_>, InvalidSpec>>()?;
        for (index, a) in ports.iter().enumerate() {
            if ports[..index].iter().any(|b| a.protocol.intersects(b.protocol) && a.range.intersects(b.range))
            {
                return Err(invalid(format!("spec.ports[{index}]"))(InvalidValue(format!(
                    "port {} is there twice: name each port once for a protocol",
                    a.range
                ))));
            }
        }
        let azure = &spec.enforcement.azure;
        let limits = &spec.limits;
        Ok(Self {
            mode: spec.mode,
            suspend: spec.suspend,
            targets,
            ports,
            existing: spec.enforcement.existing_rules,
            exempt: exempt(spec)?,
            via: azure.via,
            firewall_source: azure.firewall_source,
            firewall_lead: lead(&azure.firewall_lead)?,
            cut_sessions: azure.established_sessions == EstablishedSessions::Cut,
            required: spec.approval.required,
            self_approval: spec.approval.allow_self_approval,
            pending_timeout: span(
                &spec.approval.pending_timeout,
                "spec.approval.pendingTimeout",
                DEFAULT_PENDING_TIMEOUT,
            )?,
            use_within: span(&spec.approval.use_within, "spec.approval.useWithin", DEFAULT_USE_WITHIN)?,
            justification_required: spec.justification.required,
            justification: spec.justification.pattern.as_deref().map(pattern).transpose()?,
            active_per_requester: limit(limits.active_per_requester, 3),
            active: limit(limits.active, 100),
            sources_per_request: limit(limits.sources_per_request, 8),
            horizon: span(&limits.delegated_horizon, "spec.limits.delegatedHorizon", DEFAULT_HORIZON)?,
            deletion_policy: spec.deletion_policy,
        })
    }

    /// The ports of a machine with this operating system.
    #[must_use]
    pub fn ports_for(&self, os: Os) -> Vec<PortTerms> {
        if !self.ports.is_empty() {
            return self.ports.clone();
        }
        let port = match os {
            Os::Linux => 22,
            Os::Windows => 3389,
            Os::Unknown => return Vec::new(),
        };
        vec![PortTerms {
            protocol: Protocol::Any,
            range: PortRange::single(port),
            allowed: any(),
            max_duration: DEFAULT_MAX_DURATION,
        }]
    }
}

fn lead(text: &Option<Span>) -> Result<Duration, InvalidSpec> {
    let field = "spec.enforcement.azure.firewallLead";
    let lead = span(text, field, DEFAULT_FIREWALL_LEAD)?;
    if !(Duration::from_secs(60)..=Duration::from_secs(3600)).contains(&lead) {
        return Err(invalid(field)(InvalidValue::new("must be at least 1m and at most 1h, such as 5m")));
    }
    Ok(lead)
}

fn selector(target: &PolicyTarget, field: &str) -> Result<Selector, InvalidSpec> {
    match (&target.azure_virtual_machine, &target.azure_scope) {
        (Some(machine), None) => {
            let field = format!("{field}.azureVirtualMachine.id");
            let id = machine.id.parse().map_err(invalid(field.clone()))?;
            match id.resource_type().as_deref() {
                Some("microsoft.compute/virtualmachines" | "microsoft.classiccompute/virtualmachines") => {
                    Ok(Selector::Machine(id))
                }
                _ => Err(invalid(field)(InvalidValue(format!(
                    "{id} is not the id of a virtual machine: it ends in \
                     /providers/Microsoft.Compute/virtualMachines/<name>"
                )))),
            }
        }
        (None, Some(scope)) => {
            let field = format!("{field}.azureScope.id");
            let id = scope.id.parse().map_err(invalid(field.clone()))?;
            if id.resource_type().is_some() {
                return Err(invalid(field)(InvalidValue(format!(
                    "{id} is not the id of a subscription or resource group"
                ))));
            }
            Ok(Selector::Scope { scope: id, tags: scope.tags.clone() })
        }
        _ => Err(invalid(field)(InvalidValue::new(
            "must have exactly one of azureVirtualMachine and azureScope",
        ))),
    }
}

fn exempt(spec: &JitPolicySpec) -> Result<Vec<Peer>, InvalidSpec> {
    let mut peers = spec
        .enforcement
        .exempt_sources
        .iter()
        .enumerate()
        .map(|(index, source)| {
            let field = format!("spec.enforcement.exemptSources[{index}]");
            match (&source.cidr, &source.service_tag) {
                (Some(cidr), None) => {
                    Ok(Peer::Net(cidr.network().map_err(invalid(format!("{field}.cidr")))?))
                }
                (None, Some(tag)) => Ok(Peer::Tag(tag.clone())),
                _ => Err(invalid(field)(InvalidValue::new("must have exactly one of cidr and serviceTag"))),
            }
        })
        .collect::<Result<Vec<_>, _>>()?;
    peers.sort();
    peers.dedup();
    Ok(peers)
}

fn pattern(text: &str) -> Result<Regex, InvalidSpec> {
    RegexBuilder::new(text).size_limit(PATTERN_SIZE).build().map_err(|error| {
        invalid("spec.justification.pattern")(InvalidValue(format!(
            "{text:?} is not a regular expression that can be used: {error}"
        )))
    })
}

fn limit(value: Option<i32>, default: usize) -> usize {
    value.and_then(|value| usize::try_from(value).ok()).unwrap_or(default)
}

fn span(value: &Option<Span>, field: &str, default: Duration) -> Result<Duration, InvalidSpec> {
    value.as_ref().map_or(Ok(default), |span| span.duration().map_err(invalid(field)))
}

fn any() -> Vec<IpNet> {
    vec![IpNet::V4(ipnet::Ipv4Net::default()), IpNet::V6(ipnet::Ipv6Net::default())]
}

fn networks(sources: &[Source], field: &str) -> Result<Vec<IpNet>, InvalidSpec> {
    let networks = sources
        .iter()
        .enumerate()
        .map(|(index, source)| source.cidr.network().map_err(invalid(format!("{field}[{index}].cidr"))))
        .collect::<Result<Vec<_>, _>>()?;
    let mut networks = IpNet::aggregate(&networks);
    networks.sort();
    Ok(networks)
}

fn networks_or_any(sources: &[Source], field: &str) -> Result<Vec<IpNet>, InvalidSpec> {
    if sources.is_empty() { Ok(any()) } else { networks(sources, field) }
}

/// What a request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The ports and for whom.
    pub ports: Vec<AskedPort>,
    /// How long.
    pub duration: Duration,
    /// Not before.
    pub not_before: Option<Timestamp>,
    /// Not after.
    pub not_after: Option<Timestamp>,
}

/// Ports and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AskedPort {
    /// Protocol.
    pub protocol: Protocol,
    /// Ports.
    pub range: PortRange,
    /// Networks; the fewest that cover them.
    pub sources: Vec<IpNet>,
}

impl Ask {
    /// Parses a request's spec.
    ///
    /// # Errors
    /// The first field that cannot be, with what would be right.
    pub fn parse(spec: &JitAccessRequestSpec) -> Result<Self, InvalidSpec> {
        if spec.ports.is_empty() {
            return Err(invalid("spec.ports")(InvalidValue::new("must name at least one port")));
        }
        if spec.all_targets != spec.targets.is_empty() {
            return Err(invalid("spec.targets")(InvalidValue::new(
                "name targets, or set allTargets: true, and not both",
            )));
        }
        let ports = spec
            .ports
            .iter()
            .enumerate()
            .map(|(index, port)| {
                let field = format!("spec.ports[{index}]");
                if port.sources.is_empty() {
                    return Err(invalid(format!("{field}.sources"))(InvalidValue::new(
                        "must name at least one source",
                    )));
                }
                Ok(AskedPort {
                    protocol: port.protocol.unwrap_or(Protocol::Tcp),
                    range: PortRange::from_fields(port.port, port.end_port)
                        .map_err(invalid(field.clone()))?,
                    sources: networks(&port.sources, &format!("{field}.sources"))?,
                })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let moment = |value: &Option<crate::api::values::Moment>, field: &str| {
            value.as_ref().map(|moment| moment.timestamp().map_err(invalid(field))).transpose()
        };
        Ok(Self {
            ports,
            duration: spec.duration.duration().map_err(invalid("spec.duration"))?,
            not_before: moment(&spec.not_before, "spec.notBefore")?,
            not_after: moment(&spec.not_after, "spec.notAfter")?,
        })
    }
}
