//! What strangers send, as bytes: each function reads one sort of it as the program does. None may panic or hang,
//! whatever the bytes are. For the fuzz targets in `fuzz/`, and for a test that goes through what those have found.

use crate::api::values::{ArmId, Cidr, PortRange, Span};
use crate::api::{JitAccessRequest, JitAccessReview, JitPolicy, Tolerant};
use crate::plan::lifecycle::{duties, gone, state};
use crate::plan::names::{Cluster, deadline_of, parse_name, under_present_id};
use crate::plan::terms::{Ask, Terms};
pub use crate::providers::azure::fuzzing::{
    azure_firewall, error_answer, headers, machine, network_security_group, rule_collection_group,
    token_answer,
};

/// Reads bytes of one sort.
pub type Target = fn(&[u8]);

/// Every target, by its name.
pub const TARGETS: [(&str, Target); 10] = [
    ("network_security_group", network_security_group),
    ("azure_firewall", azure_firewall),
    ("rule_collection_group", rule_collection_group),
    ("machine", machine),
    ("error_answer", error_answer),
    ("headers", headers),
    ("token_answer", token_answer),
    ("values", values),
    ("names", names),
    ("objects", objects),
];

/// Ids, networks, ports, durations, as people write them.
pub fn values(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(id) = ArmId::parse(&text) {
        assert!(id.contains(&id) && ArmId::parse(id.as_str()).is_ok_and(|again| again == id));
    }
    if let Ok(ports) = text.parse::<PortRange>() {
        assert!(ports.first() <= ports.last());
    }
    let _ = Cidr::from(text.as_ref()).network();
    let _ = Span::from(text.as_ref()).duration();
}

/// Names and descriptions of rules.
pub fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let cluster = Cluster::new("fuzz", &["before".to_owned()]);
    let (name, description) = text.split_once('\n').unwrap_or((&text, ""));
    let _ = parse_name(&cluster, name);
    let _ = deadline_of(name, description);
    let _ = under_present_id(&cluster, description);
}

/// Policies, requests and reviews, whatever their statuses say.
pub fn objects(bytes: &[u8]) {
    if let Ok(policy) = serde_json::from_slice::<Tolerant<JitPolicy>>(bytes) {
        let _ = Terms::parse(&policy.0.spec);
    }
    if let Ok(request) = serde_json::from_slice::<Tolerant<JitAccessRequest>>(bytes) {
        let _ = Ask::parse(&request.0.spec);
        let held = state(&request.0).holds_rules();
        assert!(held || duties(&request.0).is_empty());
        let _ = gone(&request.0);
    }
    let _ = serde_json::from_slice::<Tolerant<JitAccessReview>>(bytes);
}
