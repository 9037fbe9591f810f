//! The inventory of Azure against a server that holds a small world: what is read of it, what is made of what
//! is missing or forbidden, and how many requests it takes.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex};

use portcullis::api::Reason;
use portcullis::api::values::ArmId;
use portcullis::clock::Clock;
use portcullis::plan::model::{AdminAction, Machine, Os};
use portcullis::providers::azure::config::{ClientSecretConfig, CloudName};
use portcullis::providers::azure::{CloudConfig, CredentialConfig, build};
use portcullis::providers::{Cloud, CloudErrorKind};
use serde_json::{Value, json};
use wiremock::matchers::any;
use wiremock::{Mock, MockServer, Request, Respond, ResponseTemplate};

use crate::provider_conformance::{SUBSCRIPTION, id};

/// Resources by path in lower case; lists are made of them.
#[derive(Clone, Default)]
struct Store(Arc<Mutex<BTreeMap<String, (u16, Value)>>>);

impl Store {
    fn set(&self, id: &str, status: u16, body: Value) {
        self.0.lock().unwrap().insert(id.to_ascii_lowercase(), (status, body));
    }

    fn edit(&self, id: &ArmId, edit: impl FnOnce(&mut Value)) {
        edit(&mut self.0.lock().unwrap().get_mut(id.key()).unwrap().1);
    }

    fn forbid(&self, id: &ArmId) {
        let message =
            "The client 'c' does not have authorization to perform action 'Some/thing/read' over scope 's'.";
        self.set(id.as_str(), 403, json!({"error": {"code": "AuthorizationFailed", "message": message}}));
    }

    fn remove(&self, id: &ArmId) {
        self.0.lock().unwrap().remove(id.key());
    }
}

impl Respond for Store {
    fn respond(&self, request: &Request) -> ResponseTemplate {
        let path = request.url.path().to_ascii_lowercase();
        if path.ends_with("/token") {
            return ResponseTemplate::new(200)
                .set_body_json(json!({"access_token": "t", "expires_in": 3599}));
        }
        let store = self.0.lock().unwrap();
        if let Some((status, body)) = store.get(&path) {
            return ResponseTemplate::new(*status).set_body_json(body);
        }
        if let Some((scope, kind)) = path.rsplit_once("/providers/")
            && kind.matches('/').count() == 1
        {
            let marker = format!("/providers/{kind}/");
            let all: Vec<&Value> = store
                .iter()
                .filter(|(id, (status, _))| {
                    id.starts_with(&format!("{scope}/"))
                        && id.split_once(&marker).is_some_and(|(_, name)| !name.contains('/'))
                        && *status == 200
                })
                .map(|(_, (_, body))| body)
                .collect();
            return ResponseTemplate::new(200).set_body_json(json!({"value": all}));
        }
        ResponseTemplate::new(404)
            .set_body_json(json!({"error": {"code": "ResourceNotFound", "message": "Not there."}}))
    }
}

struct World {
    server: MockServer,
    cloud: Cloud,
    store: Store,
    _secret: tempfile::NamedTempFile,
}

fn vm(name: &str) -> ArmId {
    id("Microsoft.Compute/virtualMachines", name)
}

fn network(kind: &str, name: &str) -> ArmId {
    id(&format!("Microsoft.Network/{kind}"), name)
}

fn group() -> ArmId {
    vm("x").ancestor(4).unwrap()
}

impl World {
    /// `web-1` to `web-{machines}` in one subnet that has a group and a route table; each interface has a
    /// group of its own.
    async fn start(machines: usize) -> Self {
        let store = Store::default();
        let server = MockServer::start().await;
        Mock::given(any()).respond_with(store.clone()).mount(&server).await;
        let mut secret = tempfile::NamedTempFile::new().unwrap();
        std::io::Write::write_all(&mut secret, b"s").unwrap();
        let cloud = CloudConfig {
            name: CloudName::Custom,
            resource_manager: Some(server.uri()),
            authority: Some(server.uri()),
            ..CloudConfig::default()
        };
        let credential = CredentialConfig {
            name: "main".into(),
            client_secret: Some(ClientSecretConfig {
                tenant_id: SUBSCRIPTION.into(),
                client_id: SUBSCRIPTION.into(),
                secret_file: secret.path().into(),
            }),
            ..CredentialConfig::default()
        };
        let world = Self {
            cloud: build(&cloud, &credential, Clock::system()).unwrap(),
            server,
            store,
            _secret: secret,
        };
        world.fill(machines);
        world
    }

    fn fill(&self, machines: usize) {
        let vnet = network("virtualNetworks", "net");
        let reference = |id: &ArmId| json!({"id": id.as_str()});
        self.put(
            &vnet,
            json!({"properties": {
                "addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
                "subnets": [{"id": format!("{vnet}/subnets/web"), "properties": {
                    "networkSecurityGroup": reference(&network("networkSecurityGroups", "subnet-nsg")),
                    "routeTable": reference(&network("routeTables", "routes"))}}],
                "virtualNetworkPeerings": [{"properties": {"peeringState": "Connected",
                    "remoteAddressSpace": {"addressPrefixes": ["10.9.0.0/16"]}}}],
            }}),
        );
        self.put(
            &network("routeTables", "routes"),
            json!({"properties": {"routes": [{"properties": {"addressPrefix": "172.16.0.0/12"}}]}}),
        );
        self.put(
            &network("networkSecurityGroups", "subnet-nsg"),
            json!({"properties": {"subnets": [{"id": format!("{vnet}/subnets/web")}]}}),
        );
        for n in 1..=machines {
            let own = network("networkSecurityGroups", &format!("nsg-{n}"));
            let attached = network("networkInterfaces", &format!("NIC-{n}"));
            self.put(&own, json!({"properties": {"networkInterfaces": [reference(&attached)]}}));
            let nic = network("networkInterfaces", &format!("nic-{n}"));
            let public = network("publicIPAddresses", &format!("ip-{n}"));
            self.put(&public, json!({"properties": {"ipAddress": format!("198.51.100.{n}")}}));
            self.put(
                &nic,
                json!({"properties": {
                    "networkSecurityGroup": reference(&network("networkSecurityGroups", &format!("nsg-{n}"))),
                    "ipConfigurations": [{"properties": {
                        "privateIPAddress": format!("10.0.0.{}", n + 3),
                        "privateIPAddressVersion": "IPv4",
                        "subnet": {"id": format!("{vnet}/subnets/WEB")},
                        "publicIPAddress": reference(&public),
                        "applicationSecurityGroups": [reference(&network("applicationSecurityGroups", "asg"))],
                    }}],
                }}),
            );
            self.put(
                &vm(&format!("web-{n}")),
                json!({"tags": {"Role": "web"}, "properties": {
                    "vmId": format!("vm-{n}"),
                    "storageProfile": {"osDisk": {"osType": "Linux"}},
                    "networkProfile": {"networkInterfaces": [reference(&nic)]},
                }}),
            );
        }
    }

    fn put(&self, id: &ArmId, mut body: Value) {
        body["id"] = json!(id.as_str());
        self.store.set(id.as_str(), 200, body);
    }

    async fn machine(&self) -> Result<Machine, Reason> {
        self.cloud.inventory.machine(&vm("web-1")).await.unwrap().map_err(|why| {
            assert!(why.message.len() > 20, "{why}");
            why.reason
        })
    }

    async fn requests(&self) -> usize {
        self.server.received_requests().await.unwrap().len()
    }
}

#[tokio::test]
async fn a_machine_has_both_groups_in_order_and_all_around_it() {
    let world = World::start(1).await;
    let path = format!("{}/listNetworkManagerEffectiveSecurityAdminRules", network("virtualNetworks", "net"));
    world.store.set(
        &path,
        200,
        json!({"value": [{"id": "/r/always", "properties": {"access": "AlwaysAllow", "direction": "Inbound",
            "priority": 5, "protocol": "Tcp", "sources": [{"addressPrefix": "10.0.0.0/8"}],
            "destinations": [{"addressPrefix": "*"}], "destinationPortRanges": ["22"]}}]}),
    );
    let machine = world.machine().await.unwrap();
    assert_eq!((machine.vm_id.as_str(), machine.os), ("vm-1", Os::Linux));
    let address = &machine.nics[0].addresses[0];
    assert_eq!(address.ip, IpAddr::from([10, 0, 0, 4]));
    assert_eq!(address.public, Some(IpAddr::from([198, 51, 100, 1])));
    let names: Vec<&str> = address.path.iter().map(|firewall| firewall.0.name()).collect();
    assert_eq!(names, ["subnet-nsg", "nsg-1"]);
    assert_eq!(address.groups, [network("applicationSecurityGroups", "asg")]);
    let networks: Vec<String> = address.network.virtual_network.iter().map(ToString::to_string).collect();
    assert_eq!(networks, ["10.0.0.0/16", "10.9.0.0/16", "168.63.129.16/32", "172.16.0.0/12"]);
    let admin = address.network.admin_rules.as_ref().unwrap();
    assert_eq!((admin.len(), admin[0].action), (1, AdminAction::AlwaysAllow));
}

#[tokio::test]
async fn a_machine_without_groups_is_no_error_here() {
    let world = World::start(1).await;
    world.store.edit(&network("networkInterfaces", "nic-1"), |nic| {
        nic["properties"]["networkSecurityGroup"] = Value::Null;
    });
    world.store.edit(&network("virtualNetworks", "net"), |net| {
        net["properties"]["subnets"][0]["properties"] = json!({});
    });
    let machine = world.machine().await.unwrap();
    assert_eq!(machine.firewalls(), []);
    assert_eq!(machine.nics[0].addresses[0].network.admin_rules, None, "they could not be read");
}

#[tokio::test]
async fn what_is_missing_or_forbidden_makes_a_machine_unsupported_with_the_reason() {
    let nic = network("networkInterfaces", "nic-1");
    for forbidden in
        [vm("web-1"), nic.clone(), network("virtualNetworks", "net"), network("routeTables", "routes")]
    {
        let world = World::start(1).await;
        world.store.forbid(&forbidden);
        let why = world.cloud.inventory.machine(&vm("web-1")).await.unwrap().unwrap_err();
        assert_eq!(why.reason, Reason::NotPermitted, "{forbidden}");
        assert!(why.message.contains("Some/thing/read") && why.message.contains(forbidden.name()), "{why}");
    }
    let world = World::start(1).await;
    world.store.forbid(&network("publicIPAddresses", "ip-1"));
    assert_eq!(world.machine().await.unwrap().nics[0].addresses[0].public, None, "only shown to people");
    world.store.edit(&nic, |nic| nic["properties"]["ipConfigurations"] = json!([{"properties": {}}]));
    assert_eq!(world.machine().await.unwrap_err(), Reason::NoAddress);
    world.store.remove(&nic);
    assert_eq!(world.machine().await.unwrap_err(), Reason::NoAddress);
    world.store.remove(&vm("web-1"));
    assert_eq!(world.machine().await.unwrap_err(), Reason::VirtualMachineNotFound);
}

#[tokio::test]
async fn what_is_no_machine_of_today_is_told_without_asking() {
    let world = World::start(0).await;
    for (kind, reason) in [
        ("Microsoft.ClassicCompute/virtualMachines", Reason::ClassicVirtualMachine),
        ("Microsoft.Compute/disks", Reason::VirtualMachineNotFound),
    ] {
        let why = world.cloud.inventory.machine(&id(kind, "old")).await.unwrap().unwrap_err();
        assert_eq!(why.reason, reason, "{why}");
    }
    assert_eq!(world.requests().await, 0);
}

#[tokio::test]
async fn a_world_that_changes_as_it_is_read_is_asked_again() {
    for gone in [network("virtualNetworks", "net"), network("routeTables", "routes")] {
        let world = World::start(1).await;
        world.store.remove(&gone);
        let error = world.cloud.inventory.machine(&vm("web-1")).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Retryable, "{gone}: {error}");
    }
    let world = World::start(1).await;
    world.store.edit(&network("networkInterfaces", "nic-1"), |nic| {
        nic["properties"]["networkSecurityGroup"] = json!({"id": "/strange"});
    });
    let error = world.cloud.inventory.machine(&vm("web-1")).await.unwrap_err();
    assert!(error.message.contains("networkSecurityGroup"), "a group must not be overlooked: {error}");
}

#[tokio::test]
async fn an_address_that_a_shared_group_cannot_tell_apart_is_said_to_have_a_twin() {
    let twin = |machine: Machine| machine.nics[0].addresses[0].network.twin.clone();
    let world = World::start(1).await;
    assert_eq!(twin(world.machine().await.unwrap()), None);
    let other = network("virtualNetworks", "other");
    let subnet = json!({"id": format!("{other}/subnets/theirs")});
    let put = |prefixes: Value| {
        let subnet = json!({"id": subnet["id"], "properties": prefixes});
        world.put(&other, json!({"properties": {"subnets": [subnet]}}));
    };
    world.store.edit(&network("networkSecurityGroups", "subnet-nsg"), |group| {
        group["properties"]["subnets"].as_array_mut().unwrap().push(subnet.clone());
    });
    put(json!({"addressPrefix": "10.1.0.0/24"}));
    assert_eq!(twin(world.machine().await.unwrap()), None, "their addresses are others");
    // In its own network a second subnet can have no equal addresses, whatever is written.
    for same in [
        json!({"addressPrefix": "10.0.0.0/24"}),
        json!({"addressPrefixes": ["10.1.0.0/24", "10.0.0.4/32"]}),
        json!({"addressPrefix": "garbage"}),
        json!({}),
    ] {
        put(same.clone());
        let twin = twin(world.machine().await.unwrap()).unwrap_or_else(|| panic!("{same}"));
        assert!(twin.contains("subnet-nsg") && twin.contains("subnets/theirs"), "{twin}");
    }
    world.store.forbid(&other);
    let why = twin(world.machine().await.unwrap()).unwrap();
    assert!(
        why.contains("Some/thing/read") && why.contains("subnet-nsg"),
        "what may not be read counts: {why}"
    );
    world.store.remove(&other);
    assert_eq!(twin(world.machine().await.unwrap()), None, "gone");

    // The same by a group that two interfaces share.
    let stranger = network("networkInterfaces", "stranger");
    world.store.edit(&network("networkSecurityGroups", "nsg-1"), |group| {
        let nics = group["properties"]["networkInterfaces"].as_array_mut().unwrap();
        nics.push(json!({"id": stranger.as_str()}));
    });
    for (address, network, wanted) in
        [("10.0.0.4", "other", true), ("10.0.0.5", "other", false), ("10.0.0.4", "net", false)]
    {
        let subnet = json!({"id": format!("{}/subnets/x", network_id(network))});
        world.put(
            &stranger,
            json!({"properties": {"ipConfigurations": [
                {"properties": {"privateIPAddress": address, "subnet": subnet}},
            ]}}),
        );
        assert_eq!(twin(world.machine().await.unwrap()).is_some(), wanted, "{address} in {network}");
    }
}

fn network_id(name: &str) -> ArmId {
    network("virtualNetworks", name)
}

#[tokio::test]
async fn a_scope_costs_lists_and_not_a_request_for_each_machine() {
    let world = World::start(60).await;
    world.store.edit(&vm("web-7"), |vm| vm["tags"] = json!({"role": "db"}));
    world.store.forbid(&network("routeTables", "routes"));
    let tags = BTreeMap::from([("ROLE".to_owned(), "web".to_owned())]);
    let found = world.cloud.inventory.machines(&group(), &tags).await.unwrap();
    assert_eq!(found.len(), 59);
    assert!(found.windows(2).all(|pair| pair[0].0 < pair[1].0), "sorted");
    assert!(
        found.iter().all(|(_, machine)| machine.as_ref().is_err_and(|it| it.reason == Reason::NotPermitted))
    );
    // Token, machines, interfaces, network, its admin rules, public addresses, route table, groups.
    assert_eq!(world.requests().await, 8);
    let subscription = group().ancestor(2).unwrap();
    world.put(&network("routeTables", "routes"), json!({"properties": {}}));
    let found = world.cloud.inventory.machines(&subscription, &BTreeMap::new()).await.unwrap();
    assert_eq!(found.iter().filter(|(_, machine)| machine.is_ok()).count(), 60);
}

#[tokio::test]
async fn a_scope_that_cannot_be_read_in_full_is_an_error() {
    let world = World::start(6).await;
    let none = BTreeMap::new();
    let list = format!("{}/providers/Microsoft.Compute/virtualMachines", group());
    world.store.set(&list, 403, json!({"error": {"code": "AuthorizationFailed", "message": "no"}}));
    let error = world.cloud.inventory.machines(&group(), &none).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::NotPermitted, "{error}");
    let error = world.cloud.inventory.machines(&vm("web-1"), &none).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Invalid, "{error}");
    // Where the list of interfaces is forbidden, they are read one by one.
    let world = World::start(6).await;
    let list = format!("{}/providers/Microsoft.Network/networkInterfaces", group());
    world.store.set(&list, 403, json!({"error": {"code": "AuthorizationFailed", "message": "no"}}));
    let found = world.cloud.inventory.machines(&group(), &none).await.unwrap();
    assert!(found.len() == 6 && found.iter().all(|(_, machine)| machine.is_ok()), "{found:?}");
}
