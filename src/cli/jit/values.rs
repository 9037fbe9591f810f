//! Values of flags. What is wrong is said with what would be right; clap names the flag.

use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use jiff::Timestamp;

use crate::api::values::{Cidr, Moment, PortRange, Protocol, ResourceId, Span};
use crate::api::{RequestTarget, Source};

/// Ports and a protocol, as in `22`, `22/UDP` or `5985-5986/Any`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Which.
    pub range: PortRange,
    /// Which protocol; left out: as the API's default.
    pub protocol: Option<Protocol>,
}

/// A moment, or so long from now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum When {
    /// The moment, as written.
    At(Moment),
    /// So long from now.
    In(Duration),
}

impl When {
    /// The moment, to the second where it is counted from `now`.
    #[must_use]
    pub fn from(&self, now: Timestamp) -> Moment {
        match self {
            Self::At(moment) => moment.clone(),
            Self::In(length) => {
                let at = now.checked_add(*length).unwrap_or(Timestamp::MAX);
                Timestamp::from_second(at.as_second()).unwrap_or(at).into()
            }
        }
    }
}

/// A name of the API: that of a request, where one is chosen.
pub fn name(text: &str) -> Result<String, String> {
    let good = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let fine = !text.is_empty()
        && text.len() <= 253
        && text.chars().all(|c| good(c) || c == '-' || c == '.')
        && text.starts_with(good)
        && text.ends_with(good);
    if fine {
        Ok(text.to_owned())
    } else {
        Err("a name has at most 253 of a-z, 0-9, - and ., and begins and ends with a letter or digit, such as disk-full".to_owned())
    }
}

/// The name of an object, also as `jitreq/NAME` or as `-o name` prints it.
pub fn object(text: &str) -> Result<String, String> {
    let (kind, rest) = text.rsplit_once('/').unwrap_or(("", text));
    let known = ["", "jitreq", "jitaccessrequest", "jitaccessrequests", "jitpol", "jitpolicy", "jitpolicies"];
    let kind = kind.strip_suffix(".jit.portcullis.io").unwrap_or(kind);
    if known.contains(&kind) && name(rest).is_ok() {
        Ok(rest.to_owned())
    } else {
        Err("the name of an object is wanted, such as disk-full or jitreq/disk-full".to_owned())
    }
}

/// `web-1`, a machine in a scope as `web/vm-7`, or by its id as `web//subscriptions/…`.
pub fn target(text: &str) -> Result<RequestTarget, String> {
    let wrong = || {
        "a target of the policy is wanted, such as web-1, or a machine in a scope, such as web/vm-7"
            .to_owned()
    };
    let (entry, machine) = text.split_once('/').map_or((text, None), |(entry, rest)| (entry, Some(rest)));
    let fine = !entry.is_empty()
        && entry.len() <= 63
        && entry.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-');
    if !fine {
        return Err(wrong());
    }
    let mut target = RequestTarget { name: entry.to_owned(), ..RequestTarget::default() };
    match machine {
        None => {}
        Some(id) if id.starts_with('/') => {
            let id = ResourceId::from(id);
            id.parse().map_err(|error| error.to_string())?;
            target.id = Some(id);
        }
        Some(machine) if machine.is_empty() || machine.contains('/') || machine.len() > 80 => {
            return Err(wrong());
        }
        Some(machine) => target.machine = Some(machine.to_owned()),
    }
    Ok(target)
}

/// `22`, `22/TCP`, `5985-5986/Any`.
pub fn port(text: &str) -> Result<Port, String> {
    let (ports, protocol) = text.split_once('/').map_or((text, None), |(ports, rest)| (ports, Some(rest)));
    let range: PortRange =
        ports.parse().map_err(|error| format!("{error}, with /TCP, /UDP or /Any where it matters"))?;
    if range.first() == 0 {
        return Err("port 0 is no port: it must be from 1 to 65535".to_owned());
    }
    let protocol = match protocol.map(str::to_ascii_lowercase).as_deref() {
        None => None,
        Some("tcp") => Some(Protocol::Tcp),
        Some("udp") => Some(Protocol::Udp),
        Some("any") => Some(Protocol::Any),
        Some(_) => return Err("the protocol is TCP, UDP or Any, as in 22/TCP".to_owned()),
    };
    Ok(Port { range, protocol })
}

/// `203.0.113.0/24`, or one address.
pub fn source(text: &str) -> Result<Source, String> {
    let cidr = match text.parse::<IpAddr>() {
        Ok(IpAddr::V6(six)) if six.to_ipv4_mapped().is_some() => {
            return Err("it is an IPv4 address written as IPv6: write it as IPv4".to_owned());
        }
        Ok(address) => Cidr::from(IpNet::from(address)),
        Err(_) => Cidr::from(text),
    };
    cidr.network().map_err(|error| format!("{error}; one address may stand alone, such as 203.0.113.7"))?;
    Ok(Source { cidr })
}

/// `90m`, `3h`, `1h30m`.
pub fn span(text: &str) -> Result<Span, String> {
    let span = Span::from(text);
    span.duration().map_err(|error| error.to_string())?;
    Ok(span)
}

/// How long to wait: `10s`, `5m`.
pub fn patience(text: &str) -> Result<Duration, String> {
    Span::from(text).at_least(Duration::from_secs(1)).map_err(|error| error.to_string())
}

/// A moment, or `+2h`: so long from now.
pub fn when(text: &str) -> Result<When, String> {
    if let Some(length) = text.strip_prefix('+') {
        let length =
            Span::from(length).at_least(Duration::from_secs(1)).map_err(|error| error.to_string())?;
        return Ok(When::In(length));
    }
    let moment = Moment::from(text.to_owned());
    moment.timestamp().map_err(|error| format!("{error}, or so long from now, such as +2h"))?;
    Ok(When::At(moment))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn one_address_becomes_a_network_of_one() {
        for (text, cidr) in [
            ("203.0.113.7", "203.0.113.7/32"),
            ("2001:db8::7", "2001:db8::7/128"),
            ("203.0.113.0/24", "203.0.113.0/24"),
        ] {
            assert_eq!(source(text).unwrap().cidr.as_str(), cidr);
        }
        for (text, hint) in [
            ("203.0.113.7/24", "203.0.113.0/24"),
            ("::ffff:203.0.113.7", "as IPv4"),
            ("me", "such as 203.0.113.7"),
            ("", "such as 203.0.113.7"),
        ] {
            let error = source(text).expect_err(text);
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn targets_name_an_entry_and_perhaps_a_machine() {
        let parts = |text: &str| {
            let target = target(text).unwrap();
            (target.name, target.machine, target.id.map(|id| id.0))
        };
        assert_eq!(parts("web-1"), ("web-1".into(), None, None));
        assert_eq!(parts("web/vm-7"), ("web".into(), Some("vm-7".into()), None));
        let id = "/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/g/providers/Microsoft.Compute/virtualMachines/v";
        assert_eq!(parts(&format!("web/{id}")), ("web".into(), None, Some(id.into())));
        for text in ["", "Web", "web/", "web/a/b", "/vm", "web_1"] {
            assert!(target(text).expect_err(text).contains("web/vm-7"), "{text}");
        }
        assert!(target("web//nowhere").is_err());
    }

    #[test]
    fn ports_may_be_ranges_and_have_a_protocol() {
        let shown = |text: &str| {
            let port = port(text).unwrap();
            (port.range.to_string(), port.protocol)
        };
        assert_eq!(shown("22"), ("22".into(), None));
        assert_eq!(shown("22/tcp"), ("22".into(), Some(Protocol::Tcp)));
        assert_eq!(shown("5985-5986/Any"), ("5985-5986".into(), Some(Protocol::Any)));
        for (text, hint) in [
            ("ssh", "such as 22"),
            ("0", "from 1 to 65535"),
            ("22/ssh", "TCP, UDP or Any"),
            ("5986-5985", "at least 5986"),
            ("70000", "such as 22"),
        ] {
            let error = port(text).expect_err(text);
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn moments_are_written_out_or_counted_from_now() {
        let now: Timestamp = "2026-01-31T12:00:00.5Z".parse().unwrap();
        assert_eq!(when("+2h").unwrap().from(now).as_str(), "2026-01-31T14:00:00Z");
        let text = "2026-01-31T18:00:00+01:00";
        assert_eq!(when(text).unwrap().from(now).as_str(), text);
        for text in ["tomorrow", "2026-01-31", "+soon", "2h"] {
            assert!(when(text).is_err(), "{text}");
        }
        assert!(when("18:00").expect_err("18:00").contains("+2h"));
    }

    #[test]
    fn objects_are_named_as_they_are_printed() {
        for text in ["disk-full", "jitreq/disk-full", "jitaccessrequest.jit.portcullis.io/disk-full"] {
            assert_eq!(object(text).unwrap(), "disk-full");
        }
        for text in ["pod/disk-full", "", "A", "jitreq/", "../x"] {
            assert!(object(text).is_err(), "{text}");
        }
    }

    proptest! {
        /// Whatever is typed is refused or understood as what the API takes.
        #[test]
        fn what_is_accepted_is_what_the_api_accepts(text in "[-a-z0-9./:+ ]{0,24}") {
            if let Ok(source) = source(&text) {
                prop_assert!(source.cidr.network().is_ok());
            }
            if let Ok(span) = span(&text) {
                prop_assert!(span.duration().is_ok());
            }
            if let Ok(port) = port(&text) {
                prop_assert!(port.range.first() > 0);
            }
            if let Ok(when) = when(&text) {
                prop_assert!(when.from(Timestamp::UNIX_EPOCH + Duration::from_secs(1 << 31)).timestamp().is_ok());
            }
        }

        #[test]
        fn every_address_is_a_source(address in any::<u32>()) {
            let address = std::net::Ipv4Addr::from(address);
            let source = source(&address.to_string()).unwrap();
            prop_assert_eq!(source.cidr.as_str(), format!("{address}/32"));
        }
    }
}
