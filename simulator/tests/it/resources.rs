//! Groups, networks, interfaces, machines, lists and Resource Graph.

use serde_json::{Value, json};

use crate::client::{Client, rule};

fn names(list: &Value) -> Vec<&str> {
    list["value"].as_array().unwrap().iter().map(|v| v["name"].as_str().unwrap()).collect()
}

#[tokio::test]
async fn a_group_is_deleted_with_all_that_is_in_it() {
    let client = Client::new().await;
    let vm = client.world(&json!({"name": "vm", "nicNsg": "web", "publicIp": "198.51.100.1"})).await;
    let lock = format!("{}/providers/Microsoft.Authorization/locks/l", vm["nicNsg"].as_str().unwrap());
    client.create(&lock, &json!({"properties": {"level": "CanNotDelete"}})).await;
    let group = client.group("WORLD");
    assert_eq!(client.delete(&group).await.code(), "ScopeLocked");
    client.remove(&lock).await;
    client.sim("latency", &json!({"operations": {"resourceGroups.delete": "100ms"}})).await;
    let deleted = client.delete(&group).await;
    assert_eq!(deleted.status, 202);
    assert_eq!(client.get(&group).await.body["properties"]["provisioningState"], "Deleting");
    client.finish(&deleted).await;
    assert_eq!(client.get(&group).await.code(), "ResourceGroupNotFound");
    assert_eq!(client.get(vm["id"].as_str().unwrap()).await.code(), "ResourceGroupNotFound");
    let probe = json!({"source": "203.0.113.7", "destination": "198.51.100.1", "port": 22});
    assert!(client.sim("probe", &probe).await["reason"].as_str().unwrap().starts_with("NoSuchDestination"));
}

#[tokio::test]
async fn a_machine_has_an_id_of_its_own_that_a_new_one_does_not_inherit() {
    let client = Client::new().await;
    let made = client.world(&json!({"name": "vm", "os": "Windows", "tags": {"role": "web"}})).await;
    let path = made["id"].as_str().unwrap();
    let machine = client.get(path).await.body;
    assert_eq!(machine["properties"]["vmId"], made["vmId"]);
    assert_eq!(machine["properties"]["storageProfile"]["osDisk"]["osType"], "Windows");
    assert!(machine["properties"]["instanceView"].is_null());
    let expanded = client.get(&format!("{path}?$expand=instanceView")).await.body;
    assert_eq!(expanded["properties"]["instanceView"]["statuses"][1]["code"], "PowerState/running");
    let stopped = client.post(&format!("{path}/deallocate"), &json!({})).await;
    client.finish(&stopped).await;
    let view = client.get(&format!("{path}/?$expand=instanceView")).await.body;
    assert_eq!(view["properties"]["instanceView"]["statuses"][1]["code"], "PowerState/deallocated");
    let patched = client.patch(path, &json!({"tags": {"role": "db"}})).await;
    client.finish(&patched).await;
    assert_eq!(client.get(path).await.body["tags"], json!({"role": "db"}));
    let disk =
        machine["properties"]["storageProfile"]["osDisk"]["managedDisk"]["id"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&disk).await.body["properties"]["osType"], "Windows");
    assert_eq!(
        client.get(made["nic"].as_str().unwrap()).await.body["properties"]["virtualMachine"]["id"],
        path
    );
    assert_eq!(client.delete(made["nic"].as_str().unwrap()).await.code(), "NicInUse");

    client.remove(path).await;
    assert_eq!(client.get(&disk).await.status, 200, "the disk stays unless its deleteOption says otherwise");
    let again = client.world(&json!({"name": "vm", "os": "Windows"})).await;
    assert_ne!(again["vmId"], made["vmId"]);
    assert_eq!(again["privateIp"], made["privateIp"]);
}

#[tokio::test]
async fn secrets_of_a_machine_are_not_read_back() {
    let client = Client::new().await;
    let made = client.world(&json!({"name": "vm"})).await;
    let path = made["id"].as_str().unwrap();
    let mut body = client.get(path).await.body;
    body["properties"]["osProfile"]["adminPassword"] = json!("hunter2");
    client.create(path, &body).await;
    assert!(!client.get(path).await.body.to_string().contains("hunter2"));
}

#[tokio::test]
async fn interfaces_take_free_addresses_of_both_families() {
    let client = Client::new().await;
    client.create(&client.group("g"), &json!({"location": "westeurope"})).await;
    let network = client.network("g", "virtualNetworks/v");
    let made = client
        .create(
            &network,
            &json!({"location": "westeurope", "properties": {
            "addressSpace": {"addressPrefixes": ["10.0.0.0/24", "fd00::/48"]},
            "subnets": [{"name": "s", "properties": {"addressPrefixes": ["10.0.0.0/28", "fd00::/64"]}}]}}),
        )
        .await;
    let subnet = made["properties"]["subnets"][0]["id"].as_str().unwrap();
    let config = |name: &str, version: &str| json!({"name": name, "properties": {"subnet": {"id": subnet}, "privateIPAddressVersion": version, "primary": version == "IPv4"}});
    let body = json!({"location": "westeurope", "properties": {"ipConfigurations": [config("a", "IPv4"), config("b", "IPv6")]}});
    let nic = client.create(&client.network("g", "networkInterfaces/n"), &body).await;
    let address =
        |i: usize| nic["properties"]["ipConfigurations"][i]["properties"]["privateIPAddress"].clone();
    assert_eq!((address(0), address(1)), (json!("10.0.0.4"), json!("fd00::4")));
    let mut fixed = body.clone();
    fixed["properties"]["ipConfigurations"][0]["properties"]["privateIPAllocationMethod"] = json!("Static");
    fixed["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"] = json!("10.0.0.4");
    let taken = client.put(&client.network("g", "networkInterfaces/m"), &fixed).await;
    assert_eq!(taken.code(), "PrivateIPAddressInUse");
    assert_eq!(client.delete(subnet).await.code(), "InUseSubnetCannotBeDeleted");
    let shown = client.get(subnet).await.body;
    assert_eq!(shown["properties"]["ipConfigurations"].as_array().unwrap().len(), 2);
    let gone = client
        .put(
            &network,
            &json!({"location": "westeurope", "properties": {
        "addressSpace": {"addressPrefixes": ["10.0.0.0/24"]}, "subnets": []}}),
        )
        .await;
    assert_eq!(gone.code(), "InUseSubnetCannotBeDeleted");
}

#[tokio::test]
async fn bad_networks_are_refused_with_azures_codes() {
    let client = Client::new().await;
    client.create(&client.group("g"), &json!({"location": "westeurope"})).await;
    let network = client.network("g", "virtualNetworks/v");
    let put = |space: &str, subnets: &[&str]| {
        let subnets: Vec<Value> = subnets
            .iter()
            .enumerate()
            .map(|(i, p)| json!({"name": format!("s{i}"), "properties": {"addressPrefix": p}}))
            .collect();
        json!({"location": "westeurope", "properties": {"addressSpace": {"addressPrefixes": [space]}, "subnets": subnets}})
    };
    let cases = [
        (put("10.0.0.1/16", &[]), "InvalidCIDRNotation"),
        (put("ten", &[]), "InvalidAddressPrefixFormat"),
        (put("10.0.0.0/16", &["10.1.0.0/24"]), "NetcfgInvalidSubnet"),
        (put("10.0.0.0/16", &["10.0.0.0/24", "10.0.0.128/25"]), "NetcfgSubnetRangesOverlap"),
        (json!({"properties": {}}), "LocationRequired"),
    ];
    for (body, code) in cases {
        assert_eq!(client.put(&network, &body).await.code(), code, "{body}");
    }
    client.create(&network, &put("10.0.0.0/16", &["10.0.0.0/24"])).await;
    let mut moved = put("10.0.0.0/16", &[]);
    moved["location"] = json!("East US");
    assert_eq!(client.put(&network, &moved).await.code(), "InvalidResourceLocation");
    let kept = json!({"location": "westeurope", "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}}});
    assert_eq!(client.create(&network, &kept).await["properties"]["subnets"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn references_in_use_and_references_to_nothing_are_refused() {
    let client = Client::new().await;
    let vm = client.world(&json!({"name": "vm", "nicNsg": "web", "publicIp": true})).await;
    assert_eq!(
        client.delete(vm["nicNsg"].as_str().unwrap()).await.code(),
        "InUseNetworkSecurityGroupCannotBeDeleted"
    );
    let ip = client.network("world", "publicIPAddresses/vm-ip");
    assert_eq!(client.delete(&ip).await.code(), "PublicIPAddressCannotBeDeleted");
    let shown = client.get(vm["nicNsg"].as_str().unwrap()).await.body;
    assert_eq!(shown["properties"]["networkInterfaces"][0]["id"], vm["nic"]);
    let mut nic = client.get(vm["nic"].as_str().unwrap()).await.body;
    nic["properties"]["networkSecurityGroup"] =
        json!({"id": client.network("world", "networkSecurityGroups/none")});
    assert_eq!(client.put(vm["nic"].as_str().unwrap(), &nic).await.code(), "InvalidResourceReference");
}

#[tokio::test]
async fn lists_come_in_pages_by_group_and_by_subscription() {
    let client = Client::new().await;
    for name in ["a", "b", "c"] {
        client
            .world(&json!({"name": name, "resourceGroup": if name == "c" { "other" } else { "world" }}))
            .await;
    }
    let subscription = client.simulator.subscription().to_owned();
    let all = format!("/subscriptions/{subscription}/providers/Microsoft.Compute/virtualMachines");
    let in_group = format!("{}/providers/Microsoft.Compute/virtualMachines", client.group("world"));
    assert_eq!(names(&client.get(&in_group).await.body), ["a", "b"]);
    client.sim("settings", &json!({"pageSize": 2})).await;
    let first = client.get(&all).await.body;
    assert_eq!(first["value"].as_array().unwrap().len(), 2);
    let next = first["nextLink"].as_str().unwrap().strip_prefix(&client.simulator.url).unwrap().to_owned();
    let second = client.get(&next).await.body;
    assert_eq!(second["value"].as_array().unwrap().len(), 1);
    assert!(second["nextLink"].is_null());
    client.sim("settings", &json!({"pageSize": 1000})).await;
    let groups = client.get(&format!("/subscriptions/{subscription}/resourceGroups")).await.body;
    assert_eq!(names(&groups), ["other", "world"]);
    let expand = format!("{}/resources?$expand=provisioningState&$top=10", client.group("other"));
    assert!(names(&client.get(&expand).await.body).contains(&"c"));
    let missing = format!("{}/providers/Microsoft.Compute/virtualMachines", client.group("nowhere"));
    assert_eq!(client.get(&missing).await.code(), "ResourceGroupNotFound");
}

#[tokio::test]
async fn resource_graph_finds_machines_by_tag() {
    let client = Client::new().await;
    client.world(&json!({"name": "a", "tags": {"role": "web"}})).await;
    client.world(&json!({"name": "b", "tags": {"role": "db"}})).await;
    let path = "/providers/Microsoft.ResourceGraph/resources?api-version=2022-10-01";
    let ask = |query: &str, options: Value| json!({"subscriptions": [client.simulator.subscription()], "query": query, "options": options});
    let query = "Resources | where type =~ 'Microsoft.Compute/virtualMachines' and tags['role'] =~ 'WEB' | project id, name";
    let found = client.post(path, &ask(query, json!({}))).await.body;
    assert_eq!((&found["totalRecords"], &found["data"][0]["name"]), (&json!(1), &json!("a")));
    let page = ask("resources | order by id asc", json!({"$top": 2}));
    let first = client.post(path, &page).await.body;
    let next = ask("resources | order by id asc", json!({"$top": 1000, "$skipToken": first["$skipToken"]}));
    let second = client.post(path, &next).await.body;
    assert_eq!(first["totalRecords"].as_u64().unwrap(), 2 + second["data"].as_array().unwrap().len() as u64);
    let refused = client.post(path, &ask("resources | summarize count() by type", json!({}))).await;
    assert_eq!((refused.status, &refused.body["error"]["details"][0]["code"]), (400, &json!("InvalidQuery")));
    let other = json!({"subscriptions": ["somebody-elses"], "query": "resources"});
    assert_eq!(client.post(path, &other).await.body["totalRecords"], 0);
}

#[tokio::test]
async fn providers_must_be_registered_before_their_resources_are_written() {
    let client = Client::new().await;
    client.create(&client.group("g"), &json!({"location": "westeurope"})).await;
    let base = format!("/subscriptions/{}/providers/Microsoft.Network", client.simulator.subscription());
    client.post(&format!("{base}/unregister"), &json!({})).await;
    let nsg = client.network("g", "networkSecurityGroups/n");
    let body = json!({"location": "westeurope"});
    assert_eq!(client.put(&nsg, &body).await.code(), "MissingSubscriptionRegistration");
    assert_eq!(
        client.post(&format!("{base}/register"), &json!({})).await.body["registrationState"],
        "Registered"
    );
    client.create(&nsg, &body).await;
}

#[tokio::test]
async fn classic_machines_and_unknown_properties_are_kept_as_they_are() {
    let client = Client::new().await;
    client.create(&client.group("g"), &json!({"location": "westeurope"})).await;
    let classic = format!("{}/providers/Microsoft.ClassicCompute/virtualMachines/old", client.group("g"));
    let made =
        client.create(&classic, &json!({"location": "westeurope", "properties": {"x": {"y": [1]}}})).await;
    assert_eq!(made["type"], "Microsoft.ClassicCompute/virtualMachines");
    assert_eq!(made["properties"]["x"]["y"][0], 1);
    let nsg = client.network("g", "networkSecurityGroups/n");
    let mut odd = rule("Allow", 100, "*", "*", "22");
    odd["properties"]["fromTheFuture"] = json!(true);
    client
        .create(&nsg, &json!({"location": "westeurope", "properties": {"flushConnection": true, "new": 1}}))
        .await;
    assert_eq!(client.get(&nsg).await.body["properties"]["new"], 1);
    let kept = client.create(&format!("{nsg}/securityRules/r"), &odd).await;
    assert_eq!(kept["properties"]["fromTheFuture"], true);
}
