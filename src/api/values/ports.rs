//! Ports and the protocols that have them.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// Transport protocol of a port. RDP speaks UDP too, so `Any` is what a policy locks by default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Protocol {
    /// TCP alone.
    #[serde(rename = "TCP")]
    Tcp,
    /// UDP alone.
    #[serde(rename = "UDP")]
    Udp,
    /// Every protocol.
    #[default]
    Any,
}

// By hand: a derived description would take the place of the field's, which says what its default is.
impl JsonSchema for Protocol {
    fn schema_name() -> Cow<'static, str> {
        "Protocol".into()
    }
    fn inline_schema() -> bool {
        true
    }
    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({"type": "string", "enum": ["TCP", "UDP", "Any"]})
    }
}

impl Protocol {
    /// Whether every packet of `other` is one of `self`.
    #[must_use]
    pub fn contains(self, other: Self) -> bool {
        self == Self::Any || self == other
    }

    /// Whether some packet is of both.
    #[must_use]
    pub fn intersects(self, other: Self) -> bool {
        self.contains(other) || other.contains(self)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Any => "Any",
        })
    }
}

/// An inclusive range of ports, from 0 (which only foreign rules name) to 65535.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// Every port.
    pub const ALL: Self = Self { first: 0, last: u16::MAX };

    /// From `first` to `last`, both included.
    ///
    /// # Errors
    /// When `last` is below `first`.
    pub fn new(first: u16, last: u16) -> Result<Self, InvalidValue> {
        if last < first {
            return Err(InvalidValue(format!(
                "endPort {last} is below port {first}: it must be at least {first}"
            )));
        }
        Ok(Self { first, last })
    }

    /// One port.
    #[must_use]
    pub const fn single(port: u16) -> Self {
        Self { first: port, last: port }
    }

    /// What `port` and `endPort` of an object mean.
    ///
    /// # Errors
    /// When either is outside 1 to 65535, or `endPort` is below `port`.
    pub fn from_fields(port: i32, end_port: Option<i32>) -> Result<Self, InvalidValue> {
        let checked = |field: &str, value: i32| match u16::try_from(value) {
            Ok(value) if value > 0 => Ok(value),
            _ => Err(InvalidValue(format!("{field} {value} is no port: it must be from 1 to 65535"))),
        };
        let first = checked("port", port)?;
        Self::new(first, end_port.map_or(Ok(first), |value| checked("endPort", value))?)
    }

    /// The first port.
    #[must_use]
    pub const fn first(self) -> u16 {
        self.first
    }

    /// The last port.
    #[must_use]
    pub const fn last(self) -> u16 {
        self.last
    }

    /// Whether every port of `other` is one of `self`.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether some port is in both.
    #[must_use]
    pub const fn intersects(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The same set of ports as the fewest ranges, in order.
    #[must_use]
    pub fn merged(mut ranges: Vec<Self>) -> Vec<Self> {
        ranges.sort_unstable();
        let mut merged: Vec<Self> = Vec::with_capacity(ranges.len());
        for range in ranges {
            match merged.last_mut() {
                Some(last) if u32::from(range.first) <= u32::from(last.last) + 1 => {
                    last.last = last.last.max(range.last);
                }
                _ => merged.push(range),
            }
        }
        merged
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

impl std::str::FromStr for PortRange {
    type Err = InvalidValue;

    /// Reads `22` or `5985-5986`.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || InvalidValue(format!("{text:?} is no port or range of ports such as 22 or 5985-5986"));
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let number = |part: &str| part.trim().parse::<u16>().map_err(|_| wrong());
        Self::new(number(first)?, number(last)?)
    }
}

/// Schema of `port` and `endPort`.
pub fn port_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "integer", "format": "int32", "minimum": 1, "maximum": 65535})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_outside_the_ports_there_are_name_what_would_be_right() {
        for (port, end, hint) in [
            (0, None, "port 0 is no port: it must be from 1 to 65535"),
            (65536, None, "port 65536"),
            (22, Some(65536), "endPort 65536"),
            (5986, Some(5985), "it must be at least 5986"),
            (-1, None, "port -1"),
        ] {
            let error = PortRange::from_fields(port, end).expect_err(hint).to_string();
            assert!(error.contains(hint), "{error}");
        }
        assert_eq!(PortRange::from_fields(5985, Some(5986)).unwrap().to_string(), "5985-5986");
    }

    #[test]
    fn merging_keeps_the_set_and_joins_neighbours() {
        let ranges = ["22", "23-25", "80", "24-26", "65535"].map(|text| text.parse().unwrap()).to_vec();
        let merged: Vec<String> = PortRange::merged(ranges).iter().map(ToString::to_string).collect();
        assert_eq!(merged, ["22-26", "80", "65535"]);
    }
}
