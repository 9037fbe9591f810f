//! What Azure, or whoever answers in its place, sends: see [`crate::fuzzing`].

use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use serde_json::Value;

use super::{answer, errors, firewall, nsg, token, topology};

fn json(bytes: &[u8]) -> Option<Value> {
    serde_json::from_slice(bytes).ok()
}

/// A network security group.
pub fn network_security_group(bytes: &[u8]) {
    if let Some(group) = json(bytes) {
        nsg::understand(&group);
    }
}

/// A classic firewall.
pub fn azure_firewall(bytes: &[u8]) {
    if let Some(body) = json(bytes) {
        firewall::understand_classic(&body);
    }
}

/// A group of rules of a firewall policy.
pub fn rule_collection_group(bytes: &[u8]) {
    if let Some(group) = json(bytes) {
        firewall::understand_group(&group);
    }
}

/// A machine and what is on the way to it.
pub fn machine(bytes: &[u8]) {
    if let Some(read) = json(bytes) {
        topology::understand(&read);
    }
}

/// The body of a refusal; the first byte stands for the status.
pub fn error_answer(bytes: &[u8]) {
    let Some((status, body)) = bytes.split_first() else { return };
    let said = errors::parse(body);
    for call in [errors::Call::Read, errors::Call::Write] {
        let _ = errors::classify(300 + u16::from(*status), &said, call);
    }
}

/// Headers, a line each.
pub fn headers(bytes: &[u8]) {
    let mut map = HeaderMap::new();
    for line in bytes.split(|byte| *byte == b'\n') {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        if let (Some(name), Some(value)) = (parts.next(), parts.next())
            && let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value))
        {
            map.append(name, value);
        }
    }
    let _ = answer::retry_after(&map);
    let _ = answer::text(&map, "date").and_then(|date| crate::clock::http_date(&date));
}

/// What a token endpoint answers.
pub fn token_answer(bytes: &[u8]) {
    if let Some(value) = json(bytes) {
        token::understand(&value);
    }
}
