//! A small estate to protect, made by requests to Azure Resource Manager as `az` or Terraform would make it.
//!
//! | machine | group | system | address | filtered by |
//! |---|---|---|---|---|
//! | `web-1` | `web` | Linux | 10.1.1.4 and a public one | the NSG of its subnet and that of its NIC |
//! | `win-1` | `web` | Windows | 10.1.2.4 and a public one | the NSG of its NIC |
//! | `db-1` | `web` | Linux | 10.1.3.4 | nothing |
//! | `fleet-1`, `fleet-2` | `fleet` | Linux, tag `role=web` | 10.1.4.4, 10.1.4.5 | the NSG of their subnet |
//! | `fleet-3` | `fleet` | Linux, tag `role=batch` | 10.1.4.6 | the NSG of their subnet |
//!
//! Before any lock, rules of others let SSH and RDP in from the Internet wherever there is an NSG.

use anyhow::Context;
use serde_json::{Value, json};

use crate::simulator::Simulator;

/// The region of everything.
const LOCATION: &str = "westeurope";
/// The rule of others that lets SSH in from the Internet.
pub const FOREIGN_SSH: &str = "allow-ssh-from-internet";
/// The rule of others that lets RDP in from the Internet.
pub const FOREIGN_RDP: &str = "allow-rdp-from-internet";

/// A machine of the world.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its name.
    pub name: &'static str,
    /// Its resource id.
    pub id: String,
    /// Its private address.
    pub private_address: String,
    /// Its public address, where it has one.
    pub public_address: Option<String>,
}

/// The sample world.
#[derive(Debug, Clone)]
pub struct World {
    subscription: String,
    machines: Vec<Machine>,
}

/// What is asked for when a machine is made.
struct Order {
    name: &'static str,
    group: &'static str,
    subnet: &'static str,
    address: &'static str,
    windows: bool,
    public: bool,
    nsg: Option<&'static str>,
    tags: Value,
}

impl World {
    /// Makes the sample world in the simulator's subscription. Once: made again, its whole-resource writes would wipe
    /// out the rules that were added since.
    ///
    /// # Errors
    /// When a request is refused.
    pub async fn create(simulator: &Simulator) -> anyhow::Result<Self> {
        Self::create_in(simulator, &simulator.announcement().subscription_id).await
    }

    /// Makes the same world in another subscription, which the simulator's own application must reach.
    ///
    /// # Errors
    /// When a request is refused.
    pub async fn create_in(simulator: &Simulator, subscription: &str) -> anyhow::Result<Self> {
        let mut world = Self { subscription: subscription.to_owned(), machines: Vec::new() };
        for group in ["web", "fleet"] {
            simulator.put(&world.group(group), &json!({"location": LOCATION})).await?;
        }
        for (group, name, rules) in [
            (
                "web",
                "web-subnet",
                vec![inbound(FOREIGN_SSH, 300, "22", "Internet"), inbound("allow-web", 310, "443", "*")],
            ),
            (
                "web",
                "web-1",
                vec![inbound(FOREIGN_SSH, 200, "22", "Internet"), inbound("allow-web", 210, "443", "*")],
            ),
            ("web", "win-1", vec![inbound(FOREIGN_RDP, 300, "3389", "Internet")]),
            ("fleet", "fleet-subnet", vec![inbound(FOREIGN_SSH, 1000, "22", "Internet")]),
        ] {
            let body = json!({"location": LOCATION, "properties": {"securityRules": rules}});
            simulator.put(&world.nsg(group, name), &body).await?;
        }
        let subnet = |name: &str, prefix: &str, nsg: Option<String>| {
            let mut properties = json!({"addressPrefix": prefix});
            if let Some(id) = nsg {
                properties["networkSecurityGroup"] = json!({"id": id});
            }
            json!({"name": name, "properties": properties})
        };
        let subnets = [
            subnet("web", "10.1.1.0/24", Some(world.nsg("web", "web-subnet"))),
            subnet("win", "10.1.2.0/24", None),
            subnet("db", "10.1.3.0/24", None),
            subnet("fleet", "10.1.4.0/24", Some(world.nsg("fleet", "fleet-subnet"))),
        ];
        let network = json!({"location": LOCATION, "properties": {
            "addressSpace": {"addressPrefixes": ["10.1.0.0/16"]}, "subnets": subnets,
        }});
        simulator.put(&world.network(), &network).await?;
        for order in orders() {
            let machine = world.create_machine(simulator, &order).await?;
            world.machines.push(machine);
        }
        Ok(world)
    }

    /// A machine by its name.
    ///
    /// # Errors
    /// When the world has none of that name.
    pub fn machine(&self, name: &str) -> anyhow::Result<&Machine> {
        self.machines
            .iter()
            .find(|machine| machine.name == name)
            .with_context(|| format!("no machine {name}"))
    }

    /// Every machine.
    #[must_use]
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The id of a resource group.
    #[must_use]
    pub fn group(&self, name: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{name}", self.subscription)
    }

    /// The id of a network security group: `web-subnet`, `web-1`, `win-1` in `web`; `fleet-subnet` in `fleet`.
    #[must_use]
    pub fn nsg(&self, group: &str, name: &str) -> String {
        self.network_resource(group, "networkSecurityGroups", name)
    }

    /// The id of the virtual network.
    #[must_use]
    pub fn network(&self) -> String {
        self.network_resource("web", "virtualNetworks", "estate")
    }

    /// The id of a network interface, named after its machine.
    #[must_use]
    pub fn nic(&self, group: &str, machine: &str) -> String {
        self.network_resource(group, "networkInterfaces", machine)
    }

    fn network_resource(&self, group: &str, kind: &str, name: &str) -> String {
        format!("{}/providers/Microsoft.Network/{kind}/{name}", self.group(group))
    }

    /// Puts an Azure Firewall with a policy into a hub network that is peered with the estate, and leads the fleet's routes
    /// through it. Its public address.
    ///
    /// # Errors
    /// When a request is refused.
    pub async fn put_firewall(&self, simulator: &Simulator) -> anyhow::Result<String> {
        let hub = self.network_resource("web", "virtualNetworks", "hub");
        let subnets =
            [json!({"name": "AzureFirewallSubnet", "properties": {"addressPrefix": "10.2.1.0/26"}})];
        let network = json!({"location": LOCATION, "properties": {
            "addressSpace": {"addressPrefixes": ["10.2.0.0/16"]}, "subnets": subnets}});
        simulator.put(&hub, &network).await?;
        for (from, to, name) in [(&self.network(), &hub, "hub"), (&hub, &self.network(), "estate")] {
            let peering = json!({"properties": {"remoteVirtualNetwork": {"id": to}}});
            simulator.put(&format!("{from}/virtualNetworkPeerings/{name}"), &peering).await?;
        }
        let address = self.network_resource("web", "publicIPAddresses", "hub-firewall");
        let body = json!({"location": LOCATION, "sku": {"name": "Standard"}, "properties": {
            "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4"}});
        let made = simulator.put(&address, &body).await?;
        let public = made.pointer("/properties/ipAddress").and_then(Value::as_str);
        let public = public.with_context(|| format!("no address in {made}"))?.to_owned();
        let policy = self.network_resource("web", "firewallPolicies", "hub-rules");
        simulator.put(&policy, &json!({"location": LOCATION})).await?;
        let config = json!({"subnet": {"id": format!("{hub}/subnets/AzureFirewallSubnet")}, "publicIPAddress": {"id": address}});
        let body = json!({"location": LOCATION, "properties": {"firewallPolicy": {"id": policy},
            "ipConfigurations": [{"name": "public", "properties": config}]}});
        let firewall =
            simulator.put(&self.network_resource("web", "azureFirewalls", "hub-firewall"), &body).await?;
        let hop = firewall.pointer("/properties/ipConfigurations/0/properties/privateIPAddress");
        let table = self.network_resource("fleet", "routeTables", "by-firewall");
        let route = json!({"name": "out", "properties": {
            "addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": hop}});
        simulator.put(&table, &json!({"location": LOCATION, "properties": {"routes": [route]}})).await?;
        let subnet = format!("{}/subnets/fleet", self.network());
        let mut body = simulator.get(&subnet).await?;
        body["properties"]["routeTable"] = json!({"id": table});
        simulator.put(&subnet, &body).await?;
        Ok(public)
    }

    async fn create_machine(&self, simulator: &Simulator, order: &Order) -> anyhow::Result<Machine> {
        let mut configuration = json!({
            "privateIPAllocationMethod": "Static", "privateIPAddress": order.address,
            "privateIPAddressVersion": "IPv4", "primary": true,
            "subnet": {"id": format!("{}/subnets/{}", self.network(), order.subnet)},
        });
        let mut public_address = None;
        if order.public {
            let id = self.network_resource(order.group, "publicIPAddresses", order.name);
            let body = json!({"location": LOCATION, "sku": {"name": "Standard"}, "properties": {
                "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4",
            }});
            let made = simulator.put(&id, &body).await?;
            let address = made.pointer("/properties/ipAddress").and_then(Value::as_str);
            public_address = Some(address.with_context(|| format!("no address in {made}"))?.to_owned());
            configuration["publicIPAddress"] = json!({"id": id});
        }
        let nic = self.nic(order.group, order.name);
        let mut properties = json!({"ipConfigurations": [{"name": "ipconfig", "properties": configuration}]});
        if let Some(nsg) = order.nsg {
            properties["networkSecurityGroup"] = json!({"id": self.nsg(order.group, nsg)});
        }
        simulator.put(&nic, &json!({"location": LOCATION, "properties": properties})).await?;

        let id =
            format!("{}/providers/Microsoft.Compute/virtualMachines/{}", self.group(order.group), order.name);
        let system = if order.windows { "Windows" } else { "Linux" };
        let mut profile = json!({"computerName": order.name, "adminUsername": "azureuser", "adminPassword": "N0t-a-secret!"});
        let image = if order.windows {
            profile["windowsConfiguration"] = json!({"provisionVMAgent": true});
            json!({"publisher": "MicrosoftWindowsServer", "offer": "WindowsServer", "sku": "2022-datacenter", "version": "latest"})
        } else {
            profile["linuxConfiguration"] = json!({"disablePasswordAuthentication": false});
            json!({"publisher": "Canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"})
        };
        let body = json!({"location": LOCATION, "tags": order.tags, "properties": {
            "hardwareProfile": {"vmSize": "Standard_B2s"},
            "storageProfile": {
                "imageReference": image,
                "osDisk": {"name": format!("{}-os", order.name), "osType": system, "createOption": "FromImage"},
            },
            "osProfile": profile,
            "networkProfile": {"networkInterfaces": [{"id": nic, "properties": {"primary": true}}]},
        }});
        simulator.put(&id, &body).await?;
        Ok(Machine { name: order.name, id, private_address: order.address.to_owned(), public_address })
    }
}

/// An inbound allow of others.
fn inbound(name: &str, priority: i32, port: &str, source: &str) -> Value {
    json!({"name": name, "properties": {
        "direction": "Inbound", "access": "Allow", "priority": priority, "protocol": "*",
        "sourceAddressPrefix": source, "sourcePortRange": "*",
        "destinationAddressPrefix": "*", "destinationPortRange": port,
    }})
}

fn orders() -> [Order; 6] {
    let fleet = |name, address, role: &str| Order {
        name,
        group: "fleet",
        subnet: "fleet",
        address,
        windows: false,
        public: false,
        nsg: None,
        tags: json!({"role": role}),
    };
    [
        Order {
            name: "web-1",
            group: "web",
            subnet: "web",
            address: "10.1.1.4",
            windows: false,
            public: true,
            nsg: Some("web-1"),
            tags: json!({"role": "web"}),
        },
        Order {
            name: "win-1",
            group: "web",
            subnet: "win",
            address: "10.1.2.4",
            windows: true,
            public: true,
            nsg: Some("win-1"),
            tags: json!({}),
        },
        Order {
            name: "db-1",
            group: "web",
            subnet: "db",
            address: "10.1.3.4",
            windows: false,
            public: false,
            nsg: None,
            tags: json!({"role": "db"}),
        },
        fleet("fleet-1", "10.1.4.4", "web"),
        fleet("fleet-2", "10.1.4.5", "web"),
        fleet("fleet-3", "10.1.4.6", "batch"),
    ]
}
