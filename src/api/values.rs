//! Values that people write: networks, durations, instants, ports, resource ids.
//!
//! Each is a newtype over the text as written, with its schema beside its parser. Deserialising never fails
//! on content: one object that the API server lets through and we do not understand must not blind the watch
//! that every other object comes through. What a value means is asked for with its parsing method, whose
//! error names what would be right.

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;
use std::sync::LazyLock;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;
use kube::core::Rule;
use regex::Regex;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

mod arm_id;
mod ports;

pub use arm_id::ArmId;
pub use ports::{PortRange, Protocol, port_schema};

/// A value that cannot be what its field says. The message names what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct InvalidValue(pub String);

impl InvalidValue {
    /// An error with this message.
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }
}

macro_rules! text {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub String);

        impl $name {
            /// The text as written.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.to_owned())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text)
            }
        }
    };
}

text! {
    /// A network in CIDR notation, without host bits: `203.0.113.0/24`, `2001:db8::/32`.
    Cidr
}

impl Cidr {
    /// The network.
    ///
    /// # Errors
    /// When the text is no CIDR, has host bits set, or is an IPv4-mapped IPv6 network: those would
    /// match differently in different places.
    pub fn network(&self) -> Result<IpNet, InvalidValue> {
        let network = strict(&self.0).ok_or_else(|| {
            let hint = match self.0.parse::<IpAddr>() {
                Ok(IpAddr::V4(_)) => format!(": for one address write {}/32", self.0),
                Ok(IpAddr::V6(_)) => format!(": for one address write {}/128", self.0),
                Err(_) => ", such as 203.0.113.0/24 or 2001:db8::/32 (without leading zeros)".to_owned(),
            };
            InvalidValue(format!("{:?} is not a network in CIDR notation{hint}", self.0))
        })?;
        if network.trunc() != network {
            return Err(InvalidValue(format!(
                "{network} has host bits set: write {} for the network, or {}/{} for the one address",
                network.trunc(),
                network.addr(),
                network.max_prefix_len()
            )));
        }
        if let IpNet::V6(six) = network
            && six.addr().to_ipv4_mapped().is_some()
        {
            return Err(InvalidValue(format!("{network} is an IPv4-mapped IPv6 network: write it as IPv4")));
        }
        Ok(network)
    }
}

/// A network whose numbers have no leading zeros: some read `010` as 8, some as 10, and `ipnet` is among those
/// that accept it.
fn strict(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let network = IpNet::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    (network.prefix_len().to_string() == length).then_some(network)
}

impl From<IpNet> for Cidr {
    fn from(network: IpNet) -> Self {
        Self(network.trunc().to_string())
    }
}

impl JsonSchema for Cidr {
    fn schema_name() -> Cow<'static, str> {
        "Cidr".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A network in CIDR notation without host bits.",
            "maxLength": 43,
            // Refuses IPv4-mapped IPv6 too.
            "x-kubernetes-validations": [{
                "rule": "isCIDR(self) && cidr(self) == cidr(self).masked()",
                "message": "must be a network in CIDR notation without host bits, such as 203.0.113.0/24, 203.0.113.7/32 or 2001:db8::/32; IPv4-mapped networks are written as IPv4"
            }]
        })
    }
}

text! {
    /// A duration as Kubernetes writes it (GEP-2257): `90m`, `3h`, `1h30m`.
    Span
}

/// The pattern of GEP-2257: `format: duration` lets `3 hours` and `-1h` through.
pub const SPAN_PATTERN: &str = "^([0-9]{1,5}(h|m|s|ms)){1,4}$";

impl Span {
    /// The length of time.
    ///
    /// # Errors
    /// When the text does not follow GEP-2257, or the result is shorter than 30 seconds.
    pub fn duration(&self) -> Result<Duration, InvalidValue> {
        self.at_least(Duration::from_secs(30))
    }

    /// The length of time, where another minimum holds.
    ///
    /// # Errors
    /// When the text does not follow GEP-2257, or the result is shorter than `minimum`.
    pub fn at_least(&self, minimum: Duration) -> Result<Duration, InvalidValue> {
        let wrong = || InvalidValue(format!("{:?} is not a duration such as 30s, 90m, 3h or 1h30m", self.0));
        let mut rest = self.0.as_str();
        let mut total = Duration::ZERO;
        let mut parts = 0;
        while !rest.is_empty() {
            let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
            if digits == 0 || digits > 5 {
                return Err(wrong());
            }
            let number: u64 = rest[..digits].parse().map_err(|_| wrong())?;
            rest = &rest[digits..];
            // `ms` before `m`: the longer unit wins.
            let (unit, millis) = [("ms", 1), ("h", 3_600_000), ("m", 60_000), ("s", 1_000)]
                .into_iter()
                .find(|(unit, _)| rest.starts_with(unit))
                .ok_or_else(wrong)?;
            rest = &rest[unit.len()..];
            total += Duration::from_millis(number * millis);
            parts += 1;
        }
        if parts == 0 || parts > 4 {
            return Err(wrong());
        }
        if total < minimum {
            return Err(InvalidValue(format!("{:?} is too short: at least {}", self.0, Self::of(minimum))));
        }
        Ok(total)
    }

    /// Writes a length of time, in whole seconds, the way people do: `1h30m`.
    #[must_use]
    pub fn of(duration: Duration) -> Self {
        let seconds = duration.as_secs();
        let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        let mut text = String::new();
        for (number, unit) in [(hours, 'h'), (minutes, 'm'), (seconds, 's')] {
            if number > 0 {
                text.push_str(&format!("{number}{unit}"));
            }
        }
        if text.is_empty() {
            text.push_str("0s");
        }
        Self(text)
    }
}

impl JsonSchema for Span {
    fn schema_name() -> Cow<'static, str> {
        "Span".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A duration such as 90m, 3h or 1h30m (GEP-2257), at least 30s.",
            "maxLength": 32,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{SPAN_PATTERN}') && duration(self) >= duration('30s')"),
                "message": "must be a duration such as 30s, 90m, 3h or 1h30m, at least 30s"
            }]
        })
    }
}

text! {
    /// A moment in time as RFC 3339 writes it: `2026-11-22T08:00:00Z`.
    Moment
}

/// The form of RFC 3339 that everybody reads alike: no leap seconds, no lower case, years from 2000 on.
pub const MOMENT_PATTERN: &str = "^2[0-9]{3}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]([.][0-9]{1,9})?(Z|[+-]([01][0-9]|2[0-3]):[0-5][0-9])$";

static MOMENT: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(MOMENT_PATTERN).ok());

impl Moment {
    /// The moment.
    ///
    /// # Errors
    /// When the text is not RFC 3339 with a zone.
    pub fn timestamp(&self) -> Result<Timestamp, InvalidValue> {
        let wrong = || InvalidValue(format!("{:?} is not a moment such as 2026-11-22T08:00:00Z", self.0));
        if !MOMENT.as_ref().is_some_and(|pattern| pattern.is_match(&self.0)) {
            return Err(wrong());
        }
        self.0.parse().map_err(|_| wrong())
    }
}

impl From<Timestamp> for Moment {
    fn from(at: Timestamp) -> Self {
        Self(at.to_string())
    }
}

impl JsonSchema for Moment {
    fn schema_name() -> Cow<'static, str> {
        "Moment".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            // No format date-time: its refusal does not say what would be right.
            "description": "A moment in time (RFC 3339), such as 2026-11-22T08:00:00Z.",
            "maxLength": 40,
            "x-kubernetes-validations": [{
                "rule": format!("self.matches('{MOMENT_PATTERN}') && timestamp(self) > timestamp('2000-01-01T00:00:00Z')"),
                "message": "must be a moment in time such as 2026-11-22T08:00:00Z or 2026-11-22T09:00:00+01:00"
            }]
        })
    }
}

text! {
    /// The id of an Azure resource, as written. Compared without regard to case.
    ResourceId
}

impl ResourceId {
    /// The id, taken apart.
    ///
    /// # Errors
    /// When the text is not an id of the form `/subscriptions/{id}[/resourceGroups/{name}[/providers/…]]`.
    pub fn parse(&self) -> Result<ArmId, InvalidValue> {
        ArmId::parse(&self.0)
    }
}

impl JsonSchema for ResourceId {
    fn schema_name() -> Cow<'static, str> {
        "ResourceId".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        // What kind of resource it is, each field says with one of the two rules below.
        json_schema!({
            "type": "string",
            "description": "The id of an Azure resource, beginning with /subscriptions/. Compared without regard to case.",
            "maxLength": 512
        })
    }
}

/// Validation of a field that holds the id of a virtual machine, of today's or of the classic kind (which
/// status then calls unsupported).
pub fn virtual_machine_rule() -> Rule {
    id_rule(
        &format!(
            "/resourcegroups/{NAME}/providers/microsoft[.](compute|classiccompute)/virtualmachines/{NAME}"
        ),
        "must be the id of a virtual machine: /subscriptions/<uuid>/resourceGroups/<name>/providers/Microsoft.Compute/virtualMachines/<name>",
    )
}

/// Validation of a field that holds the id of a subscription or a resource group.
pub fn scope_rule() -> Rule {
    id_rule(
        &format!("(/resourcegroups/{NAME})?"),
        "must be the id of a subscription or a resource group: /subscriptions/<uuid>[/resourceGroups/<name>]",
    )
}

/// One part of an id, in lower case. A dot at the end is no name, and two are a way out of the scope.
const NAME: &str = "[a-z0-9._()-]*[a-z0-9_()-]";

fn id_rule(rest: &str, message: &str) -> Rule {
    let uuid = "[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}";
    Rule::new(format!("self.lowerAscii().matches('^/subscriptions/{uuid}{rest}/*$')")).message(message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_follow_gep_2257_and_nothing_else() {
        for (text, seconds) in [("30s", 30), ("90m", 5400), ("3h", 10800), ("1h30m", 5400), ("30000ms", 30)] {
            assert_eq!(Span::from(text).duration().unwrap(), Duration::from_secs(seconds), "{text}");
        }
        for text in
            ["", "0s", "-1h", "1y", "3 hours", "29s", "1.5h", "h", "1h1m1s1ms1h", "100000s", "+1h", "1H"]
        {
            let error = Span::from(text).duration().expect_err(text).to_string();
            assert!(error.contains("30s"), "{text}: {error}");
        }
    }

    #[test]
    fn a_written_duration_reads_back() {
        for seconds in [30, 60, 90, 3600, 5400, 86_400, 93_784] {
            let duration = Duration::from_secs(seconds);
            assert_eq!(Span::of(duration).duration().unwrap(), duration);
        }
    }

    #[test]
    fn networks_are_canonical_or_refused_with_the_right_form() {
        assert_eq!(Cidr::from("203.0.113.0/24").network().unwrap().to_string(), "203.0.113.0/24");
        for (text, hint) in [
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("203.0.113.7", "203.0.113.7/32"),
            ("2001:db8::1", "2001:db8::1/128"),
            ("::ffff:203.0.113.7/128", "IPv4"),
            ("web", "CIDR"),
            ("203.0.113.0/33", "CIDR"),
            ("203.0.113.0/024", "leading zeros"),
            ("010.0.0.0/8", "leading zeros"),
            ("10.0.0.0/+8", "CIDR"),
        ] {
            let error = Cidr::from(text).network().expect_err(text).to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
