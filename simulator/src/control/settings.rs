//! Latencies and switches, changed at run time through the control door.

use std::collections::BTreeMap;

use rand::{Rng, rngs::StdRng};
use serde::Deserialize;
use serde_json::{Value, json};

use super::clock::Span;

/// A latency: drawn evenly between two bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) min: Span,
    pub(crate) max: Span,
}

impl Range {
    pub(crate) const fn fixed(span: Span) -> Self {
        Self { min: span, max: span }
    }

    pub(crate) fn draw(&self, rng: &mut StdRng) -> Span {
        let (low, high) = (self.min.0.as_millis(), self.max.0.as_millis());
        let drawn = if low >= high { low } else { rng.random_range(low..=high) };
        Span::millis(i64::try_from(drawn).unwrap_or(i64::MAX))
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: serde::Deserializer<'de>>(de: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct Bounds {
            min: Span,
            max: Span,
        }
        let value = Value::deserialize(de)?;
        if value.is_object() {
            let bounds: Bounds = serde_json::from_value(value).map_err(serde::de::Error::custom)?;
            if bounds.max.0 < bounds.min.0 {
                return Err(serde::de::Error::custom("max must not be below min"));
            }
            return Ok(Self { min: bounds.min, max: bounds.max });
        }
        serde_json::from_value(value).map(Self::fixed).map_err(serde::de::Error::custom)
    }
}

/// A named set of latencies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Profile {
    /// Everything at once, rule writes in 50 ms: for tests.
    #[default]
    Fast,
    /// 5 to 11 s a rule write, 3 to 5 min a firewall's, machines slower still, data plane lagging behind: what users report.
    Realistic,
}

impl std::str::FromStr for Profile {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fast" => Ok(Self::Fast),
            "realistic" => Ok(Self::Realistic),
            other => Err(format!("latency profile {other:?} must be fast or realistic")),
        }
    }
}

#[derive(Debug)]
pub(crate) struct Settings {
    pub(crate) latency: BTreeMap<String, Range>,
    pub(crate) data_plane_lag: Range,
    /// The value of `Retry-After` on operations, in seconds.
    pub(crate) retry_after: Option<u64>,
    pub(crate) if_match: bool,
    pub(crate) throttle: bool,
    pub(crate) page_size: usize,
    pub(crate) token_lifetime: Span,
    /// Whether a network rule of a firewall that denies stops what DNAT has translated.
    pub(crate) network_deny_stops_dnat: bool,
}

impl Settings {
    pub(crate) fn new(profile: Profile) -> Self {
        let mut settings = Self {
            latency: BTreeMap::new(),
            data_plane_lag: Range::fixed(Span::default()),
            retry_after: Some(1),
            if_match: true,
            throttle: false,
            page_size: 1000,
            token_lifetime: Span(jiff::SignedDuration::from_secs(3599)),
            network_deny_stops_dnat: false,
        };
        settings.use_profile(profile);
        settings
    }

    pub(crate) fn use_profile(&mut self, profile: Profile) {
        let between = |a: i64, b: i64| Range { min: Span::millis(a), max: Span::millis(b) };
        let (rule, firewall, other, machine, lag) = match profile {
            Profile::Fast => (between(50, 50), between(50, 50), between(0, 0), between(0, 0), between(0, 0)),
            Profile::Realistic => (
                between(5000, 11_000),
                between(180_000, 300_000),
                between(1000, 3000),
                between(10_000, 40_000),
                between(0, 20_000),
            ),
        };
        self.latency.clear();
        for kind in ["securityRules.write", "securityRules.delete", "networkSecurityGroups.write"] {
            self.latency.insert(kind.to_lowercase(), rule);
        }
        for kind in ["azureFirewalls.write", "ruleCollectionGroups.write", "ruleCollectionGroups.delete"] {
            self.latency.insert(kind.to_lowercase(), firewall);
        }
        for kind in ["virtualMachines.write", "virtualMachines.delete", "resourceGroups.delete"] {
            self.latency.insert(kind.to_lowercase(), machine);
        }
        self.latency.insert("default".into(), other);
        self.data_plane_lag = lag;
    }

    pub(crate) fn latency_of(&self, kind: &str) -> Range {
        let fallback = Range::fixed(Span::default());
        let found = self.latency.get(&kind.to_lowercase()).or_else(|| self.latency.get("default"));
        found.copied().unwrap_or(fallback)
    }

    /// Applies a document of the control door.
    pub(crate) fn change(&mut self, change: Change) -> Result<(), String> {
        if let Some(profile) = change.profile {
            self.use_profile(profile.parse()?);
        }
        for (kind, range) in change.operations {
            self.latency.insert(kind.to_lowercase(), range);
        }
        if let Some(lag) = change.data_plane_lag {
            self.data_plane_lag = lag;
        }
        if let Some(seconds) = change.retry_after {
            self.retry_after = seconds;
        }
        if let Some(size) = change.page_size {
            if size == 0 {
                return Err("pageSize: 0 would never end a list; 1 at least".into());
            }
            self.page_size = size;
        }
        self.if_match = change.if_match.unwrap_or(self.if_match);
        self.throttle = change.throttle.unwrap_or(self.throttle);
        self.token_lifetime = change.token_lifetime.unwrap_or(self.token_lifetime);
        self.network_deny_stops_dnat = change.network_deny_stops_dnat.unwrap_or(self.network_deny_stops_dnat);
        Ok(())
    }

    pub(crate) fn show(&self) -> Value {
        let range = |r: &Range| json!({"min": r.min.seconds(), "max": r.max.seconds()});
        json!({
            "operations": self.latency.iter().map(|(k, r)| (k.clone(), range(r))).collect::<serde_json::Map<_, _>>(),
            "dataPlaneLag": range(&self.data_plane_lag),
            "retryAfter": self.retry_after,
            "ifMatch": self.if_match,
            "throttle": self.throttle,
            "pageSize": self.page_size,
            "tokenLifetime": self.token_lifetime.seconds(),
            "networkDenyStopsDnat": self.network_deny_stops_dnat,
        })
    }
}

/// What `POST /_sim/latency` and `/_sim/settings` take; a field left out stays as it is.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(crate) struct Change {
    profile: Option<String>,
    operations: BTreeMap<String, Range>,
    data_plane_lag: Option<Range>,
    #[serde(deserialize_with = "present")]
    retry_after: Option<Option<u64>>,
    if_match: Option<bool>,
    throttle: Option<bool>,
    page_size: Option<usize>,
    token_lifetime: Option<Span>,
    network_deny_stops_dnat: Option<bool>,
}

/// Tells `null` (no header) from absent (no change).
#[allow(clippy::option_option, reason = "three states are meant")]
fn present<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::<u64>::deserialize(de).map(Some)
}
