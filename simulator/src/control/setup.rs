//! `/_sim/world`: a world out of one document, through the same writes that a client would make.

use serde::Deserialize;
use serde_json::{Value, json};

use super::read;
use crate::{
    arm::{
        crud,
        errors::ArmError,
        ids::ResourceId,
        operations::{Bend, Status},
        store::State,
    },
    control::{clock::Span, faults::Plan},
    http::{Call, Reply},
    identity::principals::Caller,
    world::World,
};

/// What `POST /_sim/world` takes.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    /// The first subscription when left out.
    #[serde(default)]
    subscription: Option<String>,
    #[serde(default)]
    machines: Vec<Machine>,
    /// Resources as their PUT would have them, with `id`; missing groups are made.
    #[serde(default)]
    resources: Vec<Value>,
}

/// A machine with all that it needs. What exists already is used as it is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Machine {
    name: String,
    #[serde(default = "group")]
    resource_group: String,
    #[serde(default = "linux")]
    os: String,
    #[serde(default = "location")]
    location: String,
    #[serde(default = "network")]
    network: String,
    #[serde(default = "space")]
    address_space: Vec<String>,
    #[serde(default = "subnet")]
    subnet: String,
    #[serde(default = "prefix")]
    subnet_prefix: String,
    /// Name of the group on the subnet; none when left out.
    #[serde(default)]
    subnet_nsg: Option<String>,
    /// Name of the group on the interface; none when left out.
    #[serde(default)]
    nic_nsg: Option<String>,
    #[serde(default)]
    private_ip: Option<String>,
    /// `true` for an address out of the pool, or the address itself.
    #[serde(default)]
    public_ip: Value,
    /// Standard when left out.
    #[serde(default)]
    public_ip_sku: Option<String>,
    #[serde(default)]
    tags: Value,
}

fn group() -> String {
    "world".into()
}
fn linux() -> String {
    "Linux".into()
}
fn location() -> String {
    "westeurope".into()
}
fn network() -> String {
    "main".into()
}
fn space() -> Vec<String> {
    vec!["10.0.0.0/16".into()]
}
fn subnet() -> String {
    "default".into()
}
fn prefix() -> String {
    "10.0.0.0/24".into()
}

/// Builds a world, and answers what was made.
pub(crate) fn build(world: &mut World, call: &Call) -> Result<Reply, String> {
    let document: Document = read(call)?;
    let first = world.subscriptions.keys().next().cloned().unwrap_or_default();
    let subscription = document.subscription.unwrap_or(first);
    let mut machines = vec![];
    for machine in &document.machines {
        machines.push(add_machine(world, &subscription, machine)?);
    }
    let mut made = vec![];
    for resource in document.resources {
        let id = resource["id"].as_str().ok_or("resources[].id: the resource's id is expected")?.to_owned();
        let id =
            ResourceId::parse(&id).ok_or_else(|| format!("resources[].id: {id:?} is not a resource id"))?;
        ensure_group(world, &id)?;
        put(world, &id, &resource)?;
        made.push(id.text);
    }
    Ok(Reply::ok(json!({"machines": machines, "resources": made})))
}

fn ensure_group(world: &mut World, id: &ResourceId) -> Result<(), String> {
    match id.group_id() {
        Some(group) if !id.is_group() && !world.store.has(&group.key) => {
            put(world, &group, &json!({"location": location()}))
        }
        Some(_) | None => Ok(()),
    }
}

/// A PUT by nobody in particular, done at once whatever the latencies say.
fn put(world: &mut World, id: &ResourceId, body: &Value) -> Result<(), String> {
    let client = world.principals.all.iter().find(|p| p.permissions.is_none());
    let client = client.ok_or("a world needs a principal without restrictions")?.client_id.clone();
    let caller = Caller { client_id: client, object_id: String::new(), tenant: String::new() };
    let mut call =
        Call::new("PUT", &id.text, std::collections::BTreeMap::default(), bytes::Bytes::new(), false);
    call.body = body.to_string().into();
    let bend = Bend { duration: Some(Span::default()), applies: true, ..Bend::default() };
    let plan = Plan { bend: Some(bend), ..Plan::default() };
    world
        .at_once(|world| crud::put(world, &call, &caller, &plan, id))
        .map_err(|e: ArmError| format!("{}: {e}", id.text))?;
    world.advance();
    Ok(())
}

fn put_new(world: &mut World, id: &ResourceId, body: &Value) -> Result<(), String> {
    if world.store.has(&id.key) { Ok(()) } else { put(world, id, body) }
}

fn add_machine(world: &mut World, subscription: &str, machine: &Machine) -> Result<Value, String> {
    let group = ResourceId::of_group(subscription, &machine.resource_group);
    let place = &machine.location;
    put_new(world, &group, &json!({"location": place}))?;
    let in_group = |namespace: &str, kind: &str, name: &str| {
        ResourceId::parse(&format!("{}/providers/{namespace}/{kind}/{name}", group.text))
            .ok_or_else(|| format!("{name:?} is not a name"))
    };
    let mut groups = vec![];
    for name in [&machine.subnet_nsg, &machine.nic_nsg] {
        let id =
            name.as_ref().map(|n| in_group("Microsoft.Network", "networkSecurityGroups", n)).transpose()?;
        if let Some(id) = &id {
            put_new(world, id, &json!({"location": place}))?;
        }
        groups.push(id);
    }
    let network = in_group("Microsoft.Network", "virtualNetworks", &machine.network)?;
    let space = json!({"addressSpace": {"addressPrefixes": machine.address_space}});
    put_new(world, &network, &json!({"location": place, "properties": space}))?;
    let subnet = network.child("subnets", &machine.subnet);
    let mut properties = json!({"addressPrefix": machine.subnet_prefix});
    if let Some(nsg) = &groups[0] {
        properties["networkSecurityGroup"] = json!({"id": nsg.text});
    }
    put_new(world, &subnet, &json!({"properties": properties}))?;
    let mut config = json!({"subnet": {"id": subnet.text}, "privateIPAllocationMethod": "Dynamic"});
    if let Some(address) = &machine.private_ip {
        config["privateIPAddress"] = json!(address);
        config["privateIPAllocationMethod"] = json!("Static");
    }
    let public = if machine.public_ip.is_null() || machine.public_ip == json!(false) {
        None
    } else {
        let id = in_group("Microsoft.Network", "publicIPAddresses", &format!("{}-ip", machine.name))?;
        let sku = machine.public_ip_sku.as_deref().unwrap_or("Standard");
        let mut properties = json!({"publicIPAllocationMethod": "Static"});
        if machine.public_ip.is_string() {
            properties["ipAddress"] = machine.public_ip.clone();
        }
        put_new(world, &id, &json!({"location": place, "sku": {"name": sku}, "properties": properties}))?;
        config["publicIPAddress"] = json!({"id": id.text});
        Some(id)
    };
    let nic = in_group("Microsoft.Network", "networkInterfaces", &format!("{}-nic", machine.name))?;
    let mut properties = json!({"ipConfigurations": [{"name": "primary", "properties": config}]});
    if let Some(nsg) = &groups[1] {
        properties["networkSecurityGroup"] = json!({"id": nsg.text});
    }
    put(world, &nic, &json!({"location": place, "properties": properties}))?;
    let vm = in_group("Microsoft.Compute", "virtualMachines", &machine.name)?;
    put(
        world,
        &vm,
        &json!({"location": place, "tags": machine.tags, "properties": {
            "hardwareProfile": {"vmSize": "Standard_B2s"},
            "storageProfile": {"osDisk": {"osType": machine.os, "createOption": "FromImage"}},
            "osProfile": {"computerName": machine.name, "adminUsername": "azureuser"},
            "networkProfile": {"networkInterfaces": [{"id": nic.text, "properties": {"primary": true}}]}}}),
    )?;
    let read = |key: &str, pointer: &str| {
        world.store.get(key).and_then(|r| r.body().pointer(pointer).cloned()).unwrap_or(Value::Null)
    };
    Ok(json!({
        "id": vm.text, "vmId": read(&vm.key, "/properties/vmId"), "nic": nic.text,
        "privateIp": read(&nic.key, "/properties/ipConfigurations/0/properties/privateIPAddress"),
        "publicIp": public.map(|p| read(&p.key, "/properties/ipAddress")),
        "subnet": subnet.text, "network": network.text,
        "subnetNsg": groups[0].as_ref().map(|g| &g.text), "nicNsg": groups[1].as_ref().map(|g| &g.text),
    }))
}

/// Everything, for people who debug.
pub(crate) fn dump(world: &World) -> Value {
    let goal: Vec<Value> = world
        .store
        .all()
        .map(|r| json!({"id": r.id().text, "state": r.state.word(), "etag": r.etag, "body": r.body()}))
        .collect();
    let running: Vec<Value> = world
        .operations
        .all
        .values()
        .filter(|o| o.status == Status::InProgress)
        .map(|o| json!({"id": o.id.to_string(), "kind": o.kind, "target": o.target.text}))
        .collect();
    let settled = world.store.all().all(|r| r.state == State::Succeeded);
    json!({"goal": goal, "dataPlane": world.plane.dump(), "running": running, "settled": settled})
}
