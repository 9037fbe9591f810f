//! A machine out of the parts that were read. No requests are made here.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use super::{HOST, Kind, NETWORKS, NICS, ROUTES, World, hops, ordered, twins, unsupported};
use crate::api::Reason;
use crate::api::values::ArmId;
use crate::plan::model::{Address, FirewallId, Machine, NetworkView, Nic, Os, Unsupported};
use crate::providers::azure::wire::{garbled, items, reference, text};
use crate::providers::{CloudError, CloudErrorKind};

/// Where an interface and a subnet name their group.
pub(super) const GROUP: &str = "/properties/networkSecurityGroup/id";

/// A resource that was asked for.
pub(super) enum Found {
    Here(Value),
    Missing,
    /// The credential may not read it.
    Forbidden(Unsupported),
}

impl Found {
    pub(super) fn of(read: Result<Value, CloudError>, kind: &Kind, id: &ArmId) -> Result<Self, CloudError> {
        match read {
            Ok(value) => Ok(Self::Here(value)),
            Err(error) if error.kind == CloudErrorKind::NotFound => Ok(Self::Missing),
            Err(error) if error.kind == CloudErrorKind::NotPermitted => {
                Ok(Self::Forbidden(not_permitted(kind.name, id, kind.action, &error.message)))
            }
            Err(error) => Err(error),
        }
    }
}

/// Names the action that the credential lacks: the one that Azure names, else the one that is known.
pub(super) fn not_permitted(what: &str, id: &ArmId, action: &str, message: &str) -> Unsupported {
    let named = message.split_once("perform action '").and_then(|(_, rest)| rest.split_once('\''));
    let action = named.map_or(action, |(action, _)| action);
    unsupported(
        Reason::NotPermitted,
        format!("the credential may not read {what} {id}: give it the action {action}"),
    )
}

/// Failing this way stops a machine (`Ok(Err(..))` of the inventory) or the whole call.
enum Stop {
    Machine(Unsupported),
    Call(CloudError),
}

impl From<CloudError> for Stop {
    fn from(error: CloudError) -> Self {
        Self::Call(error)
    }
}

/// The machine that a body describes, with everything on the way to it.
pub(super) fn machine(
    operation: &str,
    id: &ArmId,
    value: &Value,
    world: &World,
) -> Result<Result<Machine, Unsupported>, CloudError> {
    match assemble(operation, id, value, world) {
        Ok(machine) => Ok(Ok(machine)),
        Err(Stop::Machine(why)) => Ok(Err(why)),
        Err(Stop::Call(error)) => Err(error),
    }
}

fn assemble(operation: &str, id: &ArmId, value: &Value, world: &World) -> Result<Machine, Stop> {
    let no_address = |why: &str| Stop::Machine(unsupported(Reason::NoAddress, format!("machine {id} {why}")));
    let vm_id =
        text(value, "/properties/vmId").ok_or_else(|| no_address("is still being made: it has no vmId"))?;
    let mut nics = Vec::new();
    for nic_id in nics_of(operation, value)? {
        let nic = match world.nics.get(&nic_id) {
            Some(Found::Here(nic)) => nic,
            Some(Found::Forbidden(why)) => return Err(Stop::Machine(why.clone())),
            Some(Found::Missing) | None => {
                return Err(no_address(&format!("has the {} {nic_id}, which does not exist", NICS.name)));
            }
        };
        let mut addresses = Vec::new();
        for part in ip_configurations(nic) {
            addresses.extend(address(operation, nic, part, world)?);
        }
        addresses.sort_by_key(|address: &Address| address.ip);
        nics.push(Nic { id: nic_id, addresses });
    }
    nics.sort_by(|a, b| a.id.cmp(&b.id));
    if nics.iter().all(|nic| nic.addresses.is_empty()) {
        return Err(no_address("has no private address: attach a network interface that has one"));
    }
    Ok(Machine { id: id.clone(), vm_id: vm_id.to_owned(), os: os(value), tags: tags(value), nics })
}

/// The address of one configuration of an interface; none where it has none (yet).
fn address(operation: &str, nic: &Value, part: &Value, world: &World) -> Result<Option<Address>, Stop> {
    let Some(ip) = text(part, "/properties/privateIPAddress") else { return Ok(None) };
    let ip: IpAddr =
        ip.parse().map_err(|_| garbled(operation, &format!("{ip:?} is not a private address")))?;
    let subnet_id = reference(operation, part, "/properties/subnet/id")?
        .ok_or_else(|| garbled(operation, "an address has no subnet"))?;
    let network_id = network_of(operation, &subnet_id)?;
    let network = here(operation, &NETWORKS, &network_id, world.networks.get(&network_id))?;
    let subnet = subnet_in(network, &subnet_id)
        .ok_or_else(|| garbled(operation, &format!("subnet {subnet_id} is not in its network")))?;
    let table = match reference(operation, subnet, "/properties/routeTable/id")? {
        Some(table_id) => Some(here(operation, &ROUTES, &table_id, world.routes.get(&table_id))?),
        None => None,
    };
    // Inbound, the subnet's group is judged before the interface's.
    let mut path = Vec::new();
    for holder in [subnet, nic] {
        let group = reference(operation, holder, GROUP)?.map(FirewallId);
        path.extend(group.filter(|group| !path.contains(group)));
    }
    let mut groups = Vec::new();
    for group in items(part, "/properties/applicationSecurityGroups") {
        groups.extend(reference(operation, group, "/id")?);
    }
    groups.sort();
    let public_id = reference(operation, part, "/properties/publicIPAddress/id")?;
    let has_public = public_id.is_some();
    let public = match public_id {
        // Only shown to people: what cannot be read is left out.
        Some(public_id) => match world.publics.get(&public_id) {
            Some(Found::Here(public)) => {
                text(public, "/properties/ipAddress").and_then(|address| address.parse().ok())
            }
            Some(Found::Missing | Found::Forbidden(_)) | None => None,
        },
        None => None,
    };
    let twin = twins::twin(operation, ip, &network_id, &path, world)?;
    Ok(Some(Address {
        ip,
        public,
        has_public,
        path,
        hops: hops::hops(&network_id, table, &virtual_network(network, None), world),
        groups,
        network: NetworkView {
            virtual_network: virtual_network(network, table),
            admin_rules: world.admin_rules.get(&network_id).cloned().flatten(),
            twin,
        },
    }))
}

fn here<'a>(operation: &str, kind: &Kind, id: &ArmId, found: Option<&'a Found>) -> Result<&'a Value, Stop> {
    match found {
        Some(Found::Here(value)) => Ok(value),
        Some(Found::Forbidden(why)) => Err(Stop::Machine(why.clone())),
        // It is referred to, so the world is changing as we look.
        Some(Found::Missing) | None => {
            Err(Stop::Call(garbled(operation, &format!("the {} {id} is gone meanwhile", kind.name))))
        }
    }
}

/// What the tag `VirtualNetwork` covers: the network, its peers, the host, and the prefixes of user-defined
/// routes. What comes over gateways (on-premises) is not written here.
fn virtual_network(network: &Value, table: Option<&Value>) -> Vec<IpNet> {
    let mut prefixes: Vec<&Value> =
        items(network, "/properties/addressSpace/addressPrefixes").iter().collect();
    for peering in peerings(network) {
        for space in ["remoteVirtualNetworkAddressSpace", "remoteAddressSpace"] {
            prefixes.extend(items(peering, &format!("/properties/{space}/addressPrefixes")));
        }
    }
    for route in table.map(|table| items(table, "/properties/routes")).unwrap_or_default() {
        prefixes.extend(route.pointer("/properties/addressPrefix"));
    }
    let networks = prefixes.into_iter().filter_map(|prefix| prefix.as_str()?.trim().parse::<IpNet>().ok());
    ordered(networks.map(|network| network.trunc()).chain([IpNet::from(IpAddr::from(HOST))]).collect())
}

/// The peerings that traffic passes by.
pub(super) fn peerings(network: &Value) -> impl Iterator<Item = &Value> {
    items(network, "/properties/virtualNetworkPeerings").iter().filter(|peering| {
        let shut =
            peering.pointer("/properties/allowVirtualNetworkAccess").and_then(Value::as_bool) == Some(false);
        let connected =
            text(peering, "/properties/peeringState").is_none_or(|it| it.eq_ignore_ascii_case("connected"));
        connected && !shut
    })
}

/// Ids of a machine's interfaces.
pub(super) fn nics_of(operation: &str, machine: &Value) -> Result<Vec<ArmId>, CloudError> {
    let mut nics = Vec::new();
    for nic in items(machine, "/properties/networkProfile/networkInterfaces") {
        nics.extend(reference(operation, nic, "/id")?);
    }
    Ok(nics)
}

pub(super) fn ip_configurations(nic: &Value) -> &[Value] {
    items(nic, "/properties/ipConfigurations")
}

/// The network that a subnet is in.
pub(super) fn network_of(operation: &str, subnet: &ArmId) -> Result<ArmId, CloudError> {
    let is_subnet = subnet.resource_type().as_deref() == Some("microsoft.network/virtualnetworks/subnets");
    subnet
        .ancestor(2)
        .filter(|_| is_subnet)
        .ok_or_else(|| garbled(operation, &format!("{subnet} is not the id of a subnet")))
}

pub(super) fn subnet_in<'a>(network: &'a Value, id: &ArmId) -> Option<&'a Value> {
    items(network, "/properties/subnets")
        .iter()
        .find(|subnet| text(subnet, "/id").and_then(|text| ArmId::parse(text).ok()).as_ref() == Some(id))
}

pub(super) fn tags(value: &Value) -> BTreeMap<String, String> {
    let tags = value.pointer("/tags").and_then(Value::as_object);
    tags.into_iter()
        .flatten()
        .filter_map(|(name, value)| Some((name.clone(), value.as_str()?.to_owned())))
        .collect()
}

fn os(machine: &Value) -> Os {
    let disk = text(machine, "/properties/storageProfile/osDisk/osType").unwrap_or_default();
    let has =
        |name: &str| machine.pointer(&format!("/properties/osProfile/{name}")).is_some_and(Value::is_object);
    match disk.to_ascii_lowercase().as_str() {
        "linux" => Os::Linux,
        "windows" => Os::Windows,
        _ if has("linuxConfiguration") => Os::Linux,
        _ if has("windowsConfiguration") => Os::Windows,
        _ => Os::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_virtual_network_is_more_than_the_network() {
        let network = json!({"properties": {
            "addressSpace": {"addressPrefixes": ["10.0.0.0/16", "fd00::/48", "garbage", null]},
            "virtualNetworkPeerings": [
                {"properties": {"peeringState": "Connected", "remoteAddressSpace": {"addressPrefixes": ["10.1.0.0/16"]}}},
                {"properties": {"peeringState": "Disconnected", "remoteAddressSpace": {"addressPrefixes": ["10.2.0.0/16"]}}},
                {"properties": {"allowVirtualNetworkAccess": false, "remoteAddressSpace": {"addressPrefixes": ["10.3.0.0/16"]}}},
                {"properties": {"remoteVirtualNetworkAddressSpace": {"addressPrefixes": ["10.4.0.0/16", "10.1.0.0/16"]}}},
            ],
        }});
        let table = json!({"properties": {"routes": [
            {"properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance"}},
            {"properties": {"addressPrefix": "Storage", "nextHopType": "Internet"}},
        ]}});
        let text: Vec<String> =
            virtual_network(&network, Some(&table)).iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            ["0.0.0.0/0", "10.0.0.0/16", "10.1.0.0/16", "10.4.0.0/16", "168.63.129.16/32", "fd00::/48"]
        );
    }

    #[test]
    fn the_operating_system_is_that_of_the_disk_else_of_the_profile() {
        for (properties, wanted) in [
            (json!({"storageProfile": {"osDisk": {"osType": "Linux"}}}), Os::Linux),
            (json!({"storageProfile": {"osDisk": {"osType": "WINDOWS"}}}), Os::Windows),
            (json!({"osProfile": {"windowsConfiguration": {}}}), Os::Windows),
            (json!({"osProfile": {"linuxConfiguration": {}, "windowsConfiguration": null}}), Os::Linux),
            (json!({"storageProfile": {"osDisk": {"osType": "Plan9"}}}), Os::Unknown),
            (json!({}), Os::Unknown),
        ] {
            assert_eq!(os(&json!({"properties": properties})), wanted, "{properties}");
        }
    }

    #[test]
    fn a_refusal_names_the_action() {
        let id = ArmId::parse("/subscriptions/11111111-2222-3333-4444-555555555555").unwrap();
        let said = "AuthorizationFailed: The client 'x' does not have authorization to perform action 'A/b/read' over scope 's'.";
        assert!(not_permitted("thing", &id, "C/d/read", said).message.ends_with("A/b/read"));
        assert!(not_permitted("thing", &id, "C/d/read", "no").message.ends_with("C/d/read"));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_whatsoever_stops_the_controller(
            machine_like in crate::providers::azure::wire::garbage::json_like(),
            nic in crate::providers::azure::wire::garbage::json_like(),
        ) {
            let id = ArmId::parse("/subscriptions/11111111-2222-3333-4444-555555555555").unwrap();
            let nics = [(id.clone(), Found::Here(nic))].into();
            let world = World { nics, ..World::default() };
            let _ = machine("read", &id, &machine_like, &world);
            let machine_like = serde_json::json!({"properties": {
                "vmId": "v", "networkProfile": {"networkInterfaces": [{"id": id.as_str()}]},
                "osProfile": machine_like,
            }});
            let found = machine("read", &id, &machine_like, &world);
            proptest::prop_assert!(!matches!(found, Ok(Ok(machine)) if machine.addresses().next().is_none()));
        }
    }
}
