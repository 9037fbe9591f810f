//! The requests that Terraform's azurerm provider makes, in its order and with its api-versions, and what it needs to
//! find in the answers. Recorded from the provider, replayed here.

use reqwest::Method;
use serde_json::{Value, json};

use crate::client::{Answer, Client, answer};

const NETWORK: &str = "2025-01-01";
const COMPUTE: &str = "2024-03-01";

/// Everything at its own api-version.
fn at(path: &str, version: &str) -> String {
    let glue = if path.contains('?') { '&' } else { '?' };
    format!("{path}{glue}api-version={version}")
}

/// GET (404), PUT, poll, GET: how the provider creates.
async fn create(client: &Client, path: &str, version: &str, body: &Value) -> Value {
    let path = at(path, version);
    assert_eq!(client.get(&path).await.status, 404, "{path}");
    let put = client.put(&path, body).await;
    assert_eq!(put.status, 201, "{path}: {}", put.body);
    poll(client, &put).await;
    let read = client.get(&path).await;
    assert_eq!(read.status, 200, "{path}");
    let state = &read.body["properties"]["provisioningState"];
    assert_eq!(state, "Succeeded", "{path}");
    read.body
}

/// The provider takes absolute addresses only, `Azure-AsyncOperation` first.
async fn poll(client: &Client, write: &Answer) {
    let url = write.header("azure-asyncoperation");
    if !url.is_empty() {
        assert!(url.starts_with(&client.simulator.url), "{url} must be absolute");
    }
    assert_eq!(client.finish(write).await, "Succeeded");
}

async fn destroy(client: &Client, path: &str, version: &str) {
    let path = at(path, version);
    let deleted = client.delete(&path).await;
    assert!(matches!(deleted.status, 200 | 202 | 204), "{path}: {}", deleted.body);
    poll(client, &deleted).await;
    assert_eq!(client.get(&path).await.status, 404, "{path}");
}

#[tokio::test]
async fn the_provider_configures_itself() {
    let client = Client::new().await;
    let options = client.simulator.options.clone();
    let ca = reqwest::Certificate::from_pem(client.simulator.ca_pem.as_bytes()).unwrap();
    let tls = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let base = client.simulator.tls_url.clone().unwrap();
    let metadata = format!("{base}/metadata/endpoints?api-version=2022-09-01");
    let metadata = answer(tls.get(metadata).send().await.unwrap()).await.body;
    // Anything else, and the provider takes it for an Azure Stack and refuses.
    assert_eq!(metadata["authentication"]["identityProvider"], "AAD");
    assert_eq!(metadata["authentication"]["tenant"], "common");
    let login =
        metadata["authentication"]["loginEndpoint"].as_str().unwrap().trim_end_matches('/').to_owned();
    let manager = metadata["resourceManager"].as_str().unwrap().to_owned();
    let mut token = String::new();
    for resource in [metadata["microsoftGraphResourceId"].as_str().unwrap(), &manager] {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", &options.client_id),
            ("client_secret", &options.client_secret),
            ("scope", &format!("{}/.default", resource.trim_end_matches('/'))),
        ];
        let url = format!("{login}//{}/oauth2/v2.0/token", options.tenant_id);
        let issued = answer(tls.post(url).form(&form).send().await.unwrap()).await;
        assert_eq!(issued.status, 200, "{}", issued.body);
        token = issued.body["access_token"].as_str().unwrap().to_owned();
        let claims = {
            use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
            let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1).unwrap()).unwrap();
            serde_json::from_slice::<Value>(&payload).unwrap()
        };
        for claim in ["oid", "appid", "tid"] {
            assert!(claims[claim].is_string(), "{claim}");
        }
    }
    let providers = format!(
        "{}/subscriptions/{}/providers?api-version=2022-09-01",
        manager.trim_end_matches('/'),
        options.subscriptions[0]
    );
    let listed = answer(tls.get(&providers).bearer_auth(&token).send().await.unwrap()).await.body;
    let names: Vec<&str> =
        listed["value"].as_array().unwrap().iter().map(|p| p["namespace"].as_str().unwrap()).collect();
    assert!(names.contains(&"Microsoft.Network") && names.contains(&"Microsoft.Compute"));
    let register = providers.replace("/providers?", "/providers/Microsoft.Network/register?");
    let registered = answer(tls.post(register).bearer_auth(&token).send().await.unwrap()).await;
    assert_eq!(registered.body["registrationState"], "Registered");
}

#[tokio::test]
async fn a_world_is_applied_read_back_without_a_difference_and_destroyed() {
    let client = Client::new().await;
    let place = "westeurope";
    let group = client.group("tf");
    assert_eq!(client.get(&at(&group, "2023-07-01")).await.code(), "ResourceGroupNotFound");
    assert_eq!(
        client.put(&at(&group, "2023-07-01"), &json!({"location": place, "tags": {}})).await.status,
        201
    );
    assert_eq!(client.get(&at(&group, "2023-07-01")).await.status, 200);

    let vnet = client.network("tf", "virtualNetworks/v");
    let space = json!({"location": place, "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]}, "subnets": []}});
    create(&client, &vnet, NETWORK, &space).await;
    let subnet = format!("{vnet}/subnets/s");
    create(&client, &subnet, NETWORK, &json!({"properties": {"addressPrefixes": ["10.0.1.0/24"]}})).await;
    assert_eq!(client.get(&at(&vnet, NETWORK)).await.body["properties"]["subnets"][0]["name"], "s");
    let rule = |name: &str, priority: u16| {
        json!({"name": name, "properties": {"protocol": "Tcp", "sourcePortRange": "*", "destinationPortRange": "22",
            "sourceAddressPrefix": "*", "destinationAddressPrefix": "*", "access": "Allow", "priority": priority, "direction": "Inbound"}})
    };
    let nsg = client.network("tf", "networkSecurityGroups/n");
    let inline = json!({"location": place, "properties": {"securityRules": [rule("inline", 100)], "flushConnection": false}});
    let group_read = create(&client, &nsg, NETWORK, &inline).await;
    assert_eq!(group_read["properties"]["securityRules"][0]["name"], "inline");
    create(&client, &format!("{nsg}/securityRules/separate"), NETWORK, &rule("separate", 200)).await;

    // The association: GET subnet and network, PUT subnet, GET both until they have succeeded.
    let mut associated = client.get(&at(&subnet, NETWORK)).await.body;
    associated["properties"]["networkSecurityGroup"] = json!({"id": nsg});
    let put = client.put(&at(&subnet, NETWORK), &associated).await;
    poll(&client, &put).await;
    for path in [&subnet, &vnet] {
        assert_eq!(client.get(&at(path, NETWORK)).await.body["properties"]["provisioningState"], "Succeeded");
    }
    let ip = client.network("tf", "publicIPAddresses/ip");
    let address = json!({"location": place, "sku": {"name": "Standard", "tier": "Regional"}, "properties": {
        "publicIPAllocationMethod": "Static", "publicIPAddressVersion": "IPv4", "idleTimeoutInMinutes": 4}});
    create(&client, &ip, NETWORK, &address).await;
    let nic = client.network("tf", "networkInterfaces/nic");
    let interface = json!({"location": place, "properties": {"ipConfigurations": [{"name": "internal", "properties": {
        "primary": true, "privateIPAddressVersion": "IPv4", "privateIPAllocationMethod": "Dynamic", "subnet": {"id": subnet}, "publicIPAddress": {"id": ip}}}]}});
    create(&client, &nic, NETWORK, &interface).await;

    let vm = format!("{group}/providers/Microsoft.Compute/virtualMachines/vm");
    let machine = json!({"location": place, "name": "vm", "tags": {},
        "identity": {"type": "None", "userAssignedIdentities": null}, "properties": {
        "additionalCapabilities": {}, "applicationProfile": {"galleryApplications": []}, "priority": "Regular",
        "diagnosticsProfile": {"bootDiagnostics": {"enabled": false, "storageUri": ""}}, "extensionsTimeBudget": "PT1H30M",
        "hardwareProfile": {"vmSize": "Standard_B2s"},
        "storageProfile": {"imageReference": {"publisher": "Canonical", "offer": "ubuntu-24_04-lts", "sku": "server", "version": "latest"},
            "osDisk": {"caching": "ReadWrite", "createOption": "FromImage", "managedDisk": {"storageAccountType": "Standard_LRS"}, "osType": "Linux"}, "dataDisks": []},
        "osProfile": {"computerName": "vm", "adminUsername": "azureuser", "linuxConfiguration": {"disablePasswordAuthentication": true}},
        "networkProfile": {"networkInterfaces": [{"id": nic, "properties": {"primary": true}}]}}});
    create(&client, &vm, COMPUTE, &machine).await;
    let read = client.get(&at(&format!("{vm}?$expand=userData"), COMPUTE)).await.body;
    assert!(
        read["properties"].get("additionalCapabilities").is_none(),
        "an empty one is a difference in the next plan"
    );
    assert!(read.get("identity").is_none(), "the type None is no identity");
    let disk =
        read["properties"]["storageProfile"]["osDisk"]["managedDisk"]["id"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&at(&disk, "2023-04-02")).await.status, 200);
    assert_eq!(client.get(&at(&nic, "2023-09-01")).await.body["properties"]["virtualMachine"]["id"], vm);
    let tagged = client
        .request(Method::PATCH, &at(&vm, COMPUTE))
        .json(&json!({"tags": {"role": "web"}}))
        .send()
        .await
        .unwrap();
    poll(&client, &answer(tagged).await).await;

    // A second plan reads twice the same.
    for path in [&vnet, &subnet, &nsg, &ip, &nic] {
        let first = client.get(&at(path, NETWORK)).await.body;
        assert_eq!(first, client.get(&at(path, NETWORK)).await.body, "{path}");
    }

    destroy(&client, &vm, COMPUTE).await;
    destroy(&client, &disk, "2023-04-02").await;
    destroy(&client, &nic, NETWORK).await;
    destroy(&client, &ip, NETWORK).await;
    destroy(&client, &format!("{nsg}/securityRules/separate"), NETWORK).await;
    destroy(&client, &subnet, NETWORK).await;
    destroy(&client, &nsg, NETWORK).await;
    destroy(&client, &vnet, NETWORK).await;
    let left =
        client.get(&at(&format!("{group}/resources?$expand=provisioningState&$top=10"), "2023-07-01")).await;
    assert_eq!(left.body["value"], json!([]));
    let deleted = client.delete(&at(&group, "2023-07-01")).await;
    assert_eq!(deleted.status, 202);
    poll(&client, &deleted).await;
    assert_eq!(client.get(&at(&group, "2023-07-01")).await.status, 404);
}

/// A group, a network, a subnet and an interface, for what stands behind them.
async fn interface(client: &Client) -> String {
    client.put(&at(&client.group("tf"), "2023-07-01"), &json!({"location": "westeurope"})).await;
    let vnet = client.network("tf", "virtualNetworks/v");
    let body = json!({"location": "westeurope", "properties": {"addressSpace": {"addressPrefixes": ["10.0.0.0/16"]},
        "subnets": [{"name": "s", "properties": {"addressPrefixes": ["10.0.1.0/24"]}}]}});
    create(client, &vnet, NETWORK, &body).await;
    let nic = client.network("tf", "networkInterfaces/nic");
    let body = json!({"location": "westeurope", "properties": {"ipConfigurations": [{"name": "internal", "properties": {
        "privateIPAllocationMethod": "Dynamic", "subnet": {"id": format!("{vnet}/subnets/s")}}}]}});
    create(client, &nic, NETWORK, &body).await;
    nic
}

/// The provider fails at a status that the type's specification does not have.
#[tokio::test]
async fn disks_are_accepted_and_availability_sets_are_there_at_once() {
    let client = Client::new().await;
    client.put(&at(&client.group("tf"), "2023-07-01"), &json!({"location": "westeurope"})).await;
    let compute = format!("{}/providers/Microsoft.Compute", client.group("tf"));

    let set = at(&format!("{compute}/availabilitySets/set"), COMPUTE);
    let body = json!({"location": "westeurope", "name": "set", "sku": {"name": "Aligned"},
        "properties": {"platformFaultDomainCount": 3, "platformUpdateDomainCount": 5}});
    for _ in 0..2 {
        let put = client.put(&set, &body).await;
        assert_eq!((put.status, put.header("azure-asyncoperation")), (200, ""), "{}", put.body);
    }
    assert_eq!(client.get(&set).await.status, 200);

    let disk = at(&format!("{compute}/disks/data"), "2023-04-02");
    let body = json!({"location": "westeurope", "name": "data", "sku": {"name": "Standard_LRS"},
        "properties": {"creationData": {"createOption": "Empty"}, "diskSizeGB": 16}});
    let put = client.put(&disk, &body).await;
    assert_eq!(put.status, 202, "{}", put.body);
    poll(&client, &put).await;
    assert_eq!(client.get(&disk).await.body["properties"]["provisioningState"], "Succeeded");
    assert_eq!(client.put(&disk, &body).await.status, 200);
    assert_eq!(client.delete(&set).await.status, 200);
}

/// `azurerm_virtual_machine_data_disk_attachment` sends the machine back as it read it: without the user data, which
/// a plain read does not show, and without the identity.
#[tokio::test]
async fn attaching_a_disk_takes_neither_identity_nor_user_data_away() {
    let client = Client::new().await;
    let nic = interface(&client).await;
    let vm = format!("{}/providers/Microsoft.Compute/virtualMachines/win", client.group("tf"));
    let machine = json!({"location": "westeurope", "name": "win", "identity": {"type": "SystemAssigned", "userAssignedIdentities": null},
        "properties": {"hardwareProfile": {"vmSize": "Standard_B2s"}, "userData": "d29ybGQ=",
            "storageProfile": {"dataDisks": [], "osDisk": {"createOption": "FromImage", "osType": "Windows"}},
            "networkProfile": {"networkInterfaces": [{"id": nic, "properties": {"primary": true}}]}}});
    let created = create(&client, &vm, COMPUTE, &machine).await;
    let principal = created["identity"]["principalId"].as_str().unwrap().to_owned();
    assert_eq!(created["identity"]["tenantId"], client.simulator.options.tenant_id.as_str());

    let with_data = at(&format!("{vm}?$expand=userData"), COMPUTE);
    let mut read = client.get(&at(&vm, COMPUTE)).await.body;
    assert!(read["properties"].get("userData").is_none());
    read.as_object_mut().unwrap().remove("identity");
    read["properties"]["storageProfile"]["dataDisks"] =
        json!([{"lun": 10, "name": "data", "createOption": "Empty", "diskSizeGB": 16}]);
    poll(&client, &client.put(&at(&vm, COMPUTE), &read).await).await;
    let after = client.get(&with_data).await.body;
    assert_eq!(after["properties"]["userData"], "d29ybGQ=");
    assert_eq!(after["identity"]["principalId"], principal.as_str());
    assert_eq!(after["properties"]["storageProfile"]["dataDisks"][0]["lun"], 10);

    // Taken away when it is said.
    read["identity"] = json!({"type": "None"});
    read["properties"]["userData"] = json!("");
    poll(&client, &client.put(&at(&vm, COMPUTE), &read).await).await;
    let after = client.get(&with_data).await.body;
    assert!(after["properties"].get("userData").is_none() && after.get("identity").is_none(), "{after}");
}

/// A changed tag makes the provider send the whole group as it read it, read-only fields and foreign rules included.
#[tokio::test]
async fn a_group_sent_back_as_it_was_read_keeps_the_rules_of_others() {
    let client = Client::new().await;
    client.put(&at(&client.group("tf"), "2023-07-01"), &json!({"location": "westeurope"})).await;
    let nsg = client.network("tf", "networkSecurityGroups/n");
    let rule = |name: &str, priority: u16| {
        json!({"name": name, "properties": {"protocol": "Tcp", "sourcePortRange": "*", "destinationPortRange": "",
            "destinationPortRanges": ["22"], "sourceAddressPrefix": "", "sourceAddressPrefixes": ["203.0.113.7"],
            "destinationAddressPrefix": "*", "access": "Allow", "priority": priority, "direction": "Inbound"}})
    };
    let body = json!({"location": "westeurope", "name": "n", "tags": {}, "properties": {"securityRules": [rule("own", 200)]}});
    create(&client, &nsg, NETWORK, &body).await;
    create(&client, &format!("{nsg}/securityRules/foreign"), NETWORK, &rule("foreign", 100)).await;

    let mut read = client.get(&at(&nsg, NETWORK)).await.body;
    let rules = read["properties"]["securityRules"].clone();
    read["tags"] = json!({"a": "b"});
    poll(&client, &client.put(&at(&nsg, NETWORK), &read).await).await;
    let after = client.get(&at(&nsg, NETWORK)).await.body;
    assert_eq!(after["tags"]["a"], "b");
    let shown = |rules: &Value| -> Vec<(String, Value)> {
        let each = rules.as_array().unwrap().iter();
        each.map(|r| (r["name"].as_str().unwrap().to_owned(), r["properties"].clone())).collect()
    };
    assert_eq!(shown(&after["properties"]["securityRules"]), shown(&rules));

    // Inline rules are the whole truth: what the document does not name goes.
    poll(&client, &client.put(&at(&nsg, NETWORK), &body).await).await;
    let after = client.get(&at(&nsg, NETWORK)).await.body;
    assert_eq!(shown(&after["properties"]["securityRules"]).len(), 1);
}
