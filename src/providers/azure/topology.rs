//! Machines and the way to them: machine, interfaces, subnets, networks, routes, public addresses.
//!
//! What several machines share is read once a call, and lists go before single reads, so that a scope of a
//! thousand machines costs about as many requests as it has networks. Nothing is kept between calls.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, TryStreamExt};
use ipnet::IpNet;
use serde_json::Value;

use super::answer::error;
use super::api_version;
use super::client::Arm;
use super::firewall::Firewalls;
use super::limiter::Urgency;
use super::wire;
use crate::api::Reason;
use crate::api::values::ArmId;
use crate::plan::model::{FirewallHop, FirewallId, Machine, Observed, Unsupported};
use crate::providers::{CloudError, CloudErrorKind, Firewall, Inventory, Usage, has_tags};

mod admin;
mod assemble;
mod hops;
mod twins;
mod understand;

use assemble::Found;
pub(super) use understand::understand;

/// Requests of one call that are under way at once.
const AT_ONCE: usize = 8;
/// From this many on, one list goes before single reads.
const WORTH_A_LIST: usize = 4;

/// How long one look at what no lock rests on may take.
const LOOK_PATIENCE: Duration = Duration::from_secs(5);

/// A kind of resource on the way to a machine.
struct Kind {
    /// In words.
    name: &'static str,
    collection: &'static str,
    /// What the credential needs to read it.
    action: &'static str,
}

const NICS: Kind = Kind {
    name: "network interface",
    collection: "Microsoft.Network/networkInterfaces",
    action: "Microsoft.Network/networkInterfaces/read",
};
const NETWORKS: Kind = Kind {
    name: "virtual network",
    collection: "Microsoft.Network/virtualNetworks",
    action: "Microsoft.Network/virtualNetworks/read",
};
const ROUTES: Kind = Kind {
    name: "route table",
    collection: "Microsoft.Network/routeTables",
    action: "Microsoft.Network/routeTables/read",
};
const PUBLICS: Kind = Kind {
    name: "public address",
    collection: "Microsoft.Network/publicIPAddresses",
    action: "Microsoft.Network/publicIPAddresses/read",
};

const GROUPS: Kind = Kind {
    name: "network security group",
    collection: "Microsoft.Network/networkSecurityGroups",
    action: "Microsoft.Network/networkSecurityGroups/read",
};
const FIREWALLS: Kind = Kind {
    name: "Azure Firewall",
    collection: "Microsoft.Network/azureFirewalls",
    action: "Microsoft.Network/azureFirewalls/read",
};
const POLICIES: Kind = Kind {
    name: "firewall policy",
    collection: "Microsoft.Network/firewallPolicies",
    action: "Microsoft.Network/firewallPolicies/read",
};

/// The inventory.
pub(super) struct Topology {
    arm: Arc<Arm>,
    firewalls: Arc<Firewalls>,
}

/// All that was read for one call.
#[derive(Default)]
struct World {
    nics: HashMap<ArmId, Found>,
    networks: HashMap<ArmId, Found>,
    routes: HashMap<ArmId, Found>,
    publics: HashMap<ArmId, Found>,
    groups: HashMap<ArmId, Found>,
    firewalls: HashMap<ArmId, Found>,
    policies: HashMap<ArmId, Found>,
    /// By network.
    admin_rules: HashMap<ArmId, Option<Vec<crate::plan::model::AdminRule>>>,
}

impl Topology {
    pub(super) fn new(arm: Arc<Arm>, firewalls: Arc<Firewalls>) -> Self {
        Self { arm, firewalls }
    }

    /// Reads everything on the way to `machines`.
    async fn world(
        &self,
        operation: &str,
        scope: Option<&ArmId>,
        machines: &[&Value],
    ) -> Result<World, CloudError> {
        let mut wanted = BTreeSet::new();
        for machine in machines {
            wanted.extend(assemble::nics_of(operation, machine)?);
        }
        let nics = self.fetch(operation, &NICS, scope, wanted).await?;
        let (mut network_ids, mut public_ids) = (BTreeSet::new(), BTreeSet::new());
        for nic in here(&nics) {
            for part in assemble::ip_configurations(nic) {
                if let Some(subnet) = wire::reference(operation, part, "/properties/subnet/id")? {
                    network_ids.insert(assemble::network_of(operation, &subnet)?);
                }
                public_ids.extend(wire::reference(operation, part, "/properties/publicIPAddress/id")?);
            }
        }
        let (networks, publics, admin_rules) = tokio::join!(
            self.fetch(operation, &NETWORKS, scope, network_ids.clone()),
            self.fetch(operation, &PUBLICS, scope, public_ids),
            self.admin_rules(network_ids),
        );
        let (networks, publics) = (networks?, publics?);
        let (mut route_ids, mut group_ids) = (BTreeSet::new(), BTreeSet::new());
        let mut tables = BTreeSet::new();
        for nic in here(&nics) {
            group_ids.extend(wire::reference(operation, nic, assemble::GROUP)?);
            for part in assemble::ip_configurations(nic) {
                let Some(subnet) = wire::reference(operation, part, "/properties/subnet/id")? else {
                    continue;
                };
                let network_id = assemble::network_of(operation, &subnet)?;
                if let Some(Found::Here(network)) = networks.get(&network_id)
                    && let Some(subnet) = assemble::subnet_in(network, &subnet)
                {
                    if let Some(table) = wire::reference(operation, subnet, "/properties/routeTable/id")? {
                        route_ids.insert(table.clone());
                        tables.insert((network_id, table));
                    }
                    group_ids.extend(wire::reference(operation, subnet, assemble::GROUP)?);
                }
            }
        }
        let (routes, groups) = tokio::join!(
            self.fetch(operation, &ROUTES, scope, route_ids),
            self.fetch(operation, &GROUPS, scope, group_ids),
        );
        let (routes, groups) = (routes?, groups?);
        let mut world = World { nics, networks, routes, publics, groups, admin_rules, ..World::default() };
        let (other_nics, other_networks) = twins::unread(operation, &world)?;
        let (other_nics, other_networks) = tokio::join!(
            self.fetch(operation, &NICS, scope, other_nics),
            self.fetch(operation, &NETWORKS, scope, other_networks),
        );
        world.nics.extend(other_nics?);
        world.networks.extend(other_networks?);
        let tables: Vec<(ArmId, ArmId)> = tables.into_iter().collect();
        self.read_hops(operation, &tables, &mut world).await;
        Ok(world)
    }

    /// Reads what the routes of subnets lead through: `tables` are networks, each with a route table in it.
    async fn read_hops(&self, operation: &str, tables: &[(ArmId, ArmId)], world: &mut World) {
        let networks = hops::networks(tables, world);
        world.networks.extend(self.look_at(operation, &NETWORKS, networks).await);
        let firewalls = hops::firewalls(tables, world);
        world.firewalls = self.look_at(operation, &FIREWALLS, firewalls).await;
        let (publics, policies) = tokio::join!(
            self.look_at(operation, &PUBLICS, hops::publics(world)),
            self.look_at(operation, &POLICIES, hops::policies(world)),
        );
        world.publics.extend(publics);
        world.policies.extend(policies);
        for _ in 0..hops::POLICY_ROUNDS {
            let policies = hops::policies(world);
            if policies.is_empty() {
                break;
            }
            world.policies.extend(self.look_at(operation, &POLICIES, policies).await);
        }
    }

    /// Reads the firewalls that the routes of networks below `scope` lead to, wherever those are: what stands there may be
    /// all that is left of a grant. One that cannot be read keeps nothing else from being swept.
    async fn add_led_to(&self, scope: &ArmId, known: &mut Vec<Observed>) {
        let operation = format!("find firewalls on the way to {scope}");
        let found = match self.led_to(&operation, scope).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "firewalls outside the scope are not swept");
                return;
            }
        };
        for firewall in found {
            if known.iter().any(|observed| observed.firewall == firewall) {
                continue;
            }
            match self.firewalls.observe(&firewall).await {
                Ok(observed) => known.push(observed),
                Err(error) => tracing::debug!(%firewall, %error, "not swept"),
            }
        }
    }

    async fn led_to(&self, operation: &str, scope: &ArmId) -> Result<BTreeSet<FirewallId>, CloudError> {
        let path = format!("{scope}/providers/{}", NETWORKS.collection);
        let listed = self.arm.list_scope(operation, &path, api_version::NETWORK, Urgency::Background).await?;
        let mut world = World::default();
        let mut tables = BTreeSet::new();
        for network in listed {
            let id = wire::id(operation, &network)?;
            for subnet in wire::items(&network, "/properties/subnets") {
                let table = wire::reference(operation, subnet, "/properties/routeTable/id")?;
                tables.extend(table.map(|table| (id.clone(), table)));
            }
            world.networks.insert(id, Found::Here(network));
        }
        let ids = tables.iter().map(|(_, table)| table.clone()).collect();
        world.routes = self.fetch(operation, &ROUTES, Some(scope), ids).await?;
        let tables: Vec<(ArmId, ArmId)> = tables.into_iter().collect();
        self.read_hops(operation, &tables, &mut world).await;
        let led = tables.iter().flat_map(|(network, table)| match world.routes.get(table) {
            Some(Found::Here(table)) => hops::hops(network, Some(table), &[], &world),
            Some(Found::Missing | Found::Forbidden(_)) | None => Vec::new(),
        });
        Ok(led.filter_map(|hop| hop.firewall().map(FirewallHop::writes_to)).collect())
    }

    /// Reads what no lock rests on, often in a subscription of somebody else: no failure counts, and none holds up the
    /// rest for long.
    async fn look_at(&self, operation: &str, kind: &Kind, ids: BTreeSet<ArmId>) -> HashMap<ArmId, Found> {
        futures::stream::iter(ids)
            .map(|id| async move {
                let operation = format!("{operation}: read {} {}", kind.name, id.name());
                let read = self.arm.get(&operation, id.as_str(), api_version::NETWORK, Urgency::Background);
                let read = tokio::time::timeout(LOOK_PATIENCE, read).await;
                let found = match read.map(|read| Found::of(read, kind, &id)) {
                    Ok(Ok(found)) => found,
                    // What does not pass by itself, such as a hub of another tenant, is not waited for.
                    Ok(Err(error)) => Found::Forbidden(could_not(kind, &id, error.kind.is_transient())),
                    Err(_) => Found::Forbidden(could_not(kind, &id, true)),
                };
                (id, found)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }

    /// Reads resources by id: by a list of the scope where many of them are there, else one by one.
    async fn fetch(
        &self,
        operation: &str,
        kind: &Kind,
        scope: Option<&ArmId>,
        ids: BTreeSet<ArmId>,
    ) -> Result<HashMap<ArmId, Found>, CloudError> {
        let mut found = HashMap::new();
        let within = |scope: &&ArmId| ids.iter().filter(|id| scope.contains(id)).count() >= WORTH_A_LIST;
        if let Some(scope) = scope.filter(within) {
            let path = format!("{scope}/providers/{}", kind.collection);
            match self.arm.list(operation, &path, api_version::NETWORK, &[], Urgency::Background).await {
                Ok(all) => {
                    for resource in all {
                        let id = wire::id(operation, &resource)?;
                        if ids.contains(&id) {
                            found.insert(id, Found::Here(resource));
                        }
                    }
                }
                // Rights may be given on single resources alone.
                Err(error) if error.kind == CloudErrorKind::NotPermitted => {}
                Err(error) => return Err(error),
            }
        }
        let missing: Vec<ArmId> = ids.into_iter().filter(|id| !found.contains_key(id)).collect();
        let single: Vec<(ArmId, Found)> = futures::stream::iter(missing)
            .map(|id| async move {
                let operation = format!("{operation}: read {} {}", kind.name, id.name());
                let read =
                    self.arm.get(&operation, id.as_str(), api_version::NETWORK, Urgency::Background).await;
                Ok::<_, CloudError>((id.clone(), Found::of(read, kind, &id)?))
            })
            .buffer_unordered(AT_ONCE)
            .try_collect()
            .await?;
        found.extend(single);
        Ok(found)
    }

    async fn admin_rules(
        &self,
        networks: BTreeSet<ArmId>,
    ) -> HashMap<ArmId, Option<Vec<crate::plan::model::AdminRule>>> {
        futures::stream::iter(networks)
            .map(|network| async move {
                let rules = admin::read(&self.arm, &network).await;
                (network, rules)
            })
            .buffer_unordered(AT_ONCE)
            .collect()
            .await
    }
}

fn here(found: &HashMap<ArmId, Found>) -> impl Iterator<Item = &Value> {
    found.values().filter_map(|found| if let Found::Here(value) = found { Some(value) } else { None })
}

/// What the tag `VirtualNetwork` covers even where nothing is written of it: the host.
const HOST: [u8; 4] = [168, 63, 129, 16];

/// Networks in order, each once.
fn ordered(mut networks: Vec<IpNet>) -> Vec<IpNet> {
    networks.sort();
    networks.dedup();
    networks
}

fn could_not(kind: &Kind, id: &ArmId, passes: bool) -> Unsupported {
    let reason = if passes { Reason::CloudUnavailable } else { Reason::NotPermitted };
    unsupported(reason, format!("the {} {id} could not be read", kind.name))
}

fn unsupported(reason: Reason, message: String) -> Unsupported {
    Unsupported { reason, message }
}

#[async_trait]
impl Inventory for Topology {
    async fn machine(&self, id: &ArmId) -> Result<Result<Machine, Unsupported>, CloudError> {
        let kind = id.resource_type().unwrap_or_default();
        if kind == "microsoft.classiccompute/virtualmachines" {
            return Ok(Err(unsupported(
                Reason::ClassicVirtualMachine,
                format!(
                    "{id} is a machine of the classic deployment model: move it to Azure Resource Manager, \
                     whose machines have network security groups"
                ),
            )));
        }
        if !id.is_virtual_machine() {
            return Ok(Err(unsupported(
                Reason::VirtualMachineNotFound,
                format!(
                    "{id} is not the id of a virtual machine: it looks like \
                     /subscriptions/<uuid>/resourceGroups/<name>/providers/Microsoft.Compute/virtualMachines/<name>"
                ),
            )));
        }
        let operation = format!("read machine {}", id.name());
        let machine = match self.arm.get(&operation, id.as_str(), api_version::COMPUTE, Urgency::Lock).await {
            Ok(machine) => machine,
            Err(error) if error.kind == CloudErrorKind::NotFound => {
                return Ok(Err(unsupported(
                    Reason::VirtualMachineNotFound,
                    format!("machine {id} does not exist, or the credential may not see it"),
                )));
            }
            Err(error) if error.kind == CloudErrorKind::NotPermitted => {
                let action = "Microsoft.Compute/virtualMachines/read";
                return Ok(Err(assemble::not_permitted("machine", id, action, &error.message)));
            }
            Err(error) => return Err(error),
        };
        if wire::id(&operation, &machine)? != *id {
            return Err(wire::garbled(&operation, "it is about another machine"));
        }
        let world = self.world(&operation, None, &[&machine]).await?;
        assemble::machine(&operation, id, &machine, &world)
    }

    async fn machines(
        &self,
        scope: &ArmId,
        tags: &BTreeMap<String, String>,
    ) -> Result<Vec<(ArmId, Result<Machine, Unsupported>)>, CloudError> {
        let operation = format!("list machines of {scope}");
        is_scope(&operation, scope)?;
        let path = format!("{scope}/providers/Microsoft.Compute/virtualMachines");
        let all = self.arm.list_scope(&operation, &path, api_version::COMPUTE, Urgency::Background).await?;
        let chosen: Vec<&Value> = all.iter().filter(|it| has_tags(&assemble::tags(it), tags)).collect();
        let world = self.world(&operation, Some(scope), &chosen).await?;
        let mut machines = BTreeMap::new();
        for value in chosen {
            let id = wire::id(&operation, value)?;
            let machine = assemble::machine(&operation, &id, value, &world)?;
            machines.insert(id, machine);
        }
        Ok(machines.into_iter().collect())
    }

    async fn firewalls(&self, scope: &ArmId) -> Result<Vec<Observed>, CloudError> {
        is_scope("list network security groups", scope)?;
        let mut all = self.firewalls.all(scope).await?;
        self.add_led_to(scope, &mut all).await;
        Ok(all)
    }

    fn clock_ahead(&self) -> Option<jiff::SignedDuration> {
        self.arm.ahead()
    }

    fn usage(&self) -> Usage {
        self.arm.usage()
    }
}

fn is_scope(operation: &str, scope: &ArmId) -> Result<(), CloudError> {
    if scope.resource_type().is_none() {
        return Ok(());
    }
    let message = format!("{scope} is not the id of a subscription or resource group");
    Err(error(operation, CloudErrorKind::Invalid, &message))
}
