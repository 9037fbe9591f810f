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
        let url = format!("{login}/{}/oauth2/v2.0/token", options.tenant_id);
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
    let machine = json!({"location": place, "properties": {
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
