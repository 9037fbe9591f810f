//! A machine out of bodies that were never asked for: see [`crate::fuzzing`].

use serde_json::Value;

use super::assemble::{Found, machine};
use super::{FIREWALLS, GROUPS, NETWORKS, NICS, POLICIES, PUBLICS, ROUTES, World, admin, twins};
use crate::api::values::ArmId;

/// `{"machine": body, "parts": {id: body}, "admin": answer}`: a machine, what is on the way to it, and the rules of a
/// Virtual Network Manager over each of its networks.
pub(in crate::providers::azure) fn understand(read: &Value) {
    let mut world = World::default();
    for (id, body) in read.get("parts").and_then(Value::as_object).into_iter().flatten() {
        let Ok(id) = ArmId::parse(id) else { continue };
        let is = |kind: &super::Kind| id.key().contains(&kind.collection.to_ascii_lowercase());
        let place = match () {
            () if is(&NICS) => &mut world.nics,
            () if is(&NETWORKS) => {
                world.admin_rules.insert(id.clone(), read.get("admin").and_then(admin::understand));
                &mut world.networks
            }
            () if is(&ROUTES) => &mut world.routes,
            () if is(&PUBLICS) => &mut world.publics,
            () if is(&GROUPS) => &mut world.groups,
            () if is(&FIREWALLS) => &mut world.firewalls,
            () if is(&POLICIES) => &mut world.policies,
            () => continue,
        };
        place.insert(id, Found::Here(body.clone()));
    }
    let Some(body) = read.get("machine") else { return };
    let id = body.get("id").and_then(Value::as_str).and_then(|id| ArmId::parse(id).ok());
    if let Some(id) = id {
        let _ = twins::unread("fuzz", &world);
        let _ = machine("fuzz", &id, body, &world);
    }
}
