//! Malformed documents: every node of a good document in turn is replaced by something of another type. Whatever the
//! answer is, it is the client's fault or accepted, never a fault of the server.

use serde_json::{Value, json};

use crate::client::Client;

/// Paths of all nodes below the root.
fn nodes(value: &Value, at: &str, found: &mut Vec<String>) {
    if let Some(map) = value.as_object() {
        for (name, inner) in map {
            let path = format!("{at}/{name}");
            found.push(path.clone());
            nodes(inner, &path, found);
        }
    } else if let Some(list) = value.as_array() {
        for (index, inner) in list.iter().enumerate() {
            let path = format!("{at}/{index}");
            found.push(path.clone());
            nodes(inner, &path, found);
        }
    }
}

#[tokio::test]
async fn a_node_of_a_wrong_type_is_never_a_fault_of_the_server() {
    let client = Client::new().await;
    client
        .sim("latency", &json!({"operations": {"networkSecurityGroups.write": 0, "securityRules.write": 0}}))
        .await;
    let vm = client
        .world(&json!({"name": "vm", "subnetNsg": "outer", "nicNsg": "inner", "publicIp": true, "tags": {"a": "b"}}))
        .await;
    let text = |name: &str| vm[name].as_str().unwrap().to_owned();
    let rule = crate::client::rule("Allow", 100, "203.0.113.7", "*", "22");
    let ssh = format!("{}/securityRules/ssh", text("nicNsg"));
    client.create(&ssh, &rule).await;
    let table = client.network("world", "routeTables/rt");
    let route = json!({"name": "r", "properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "None"}});
    client.create(&table, &json!({"location": "westeurope", "properties": {"routes": [route]}})).await;
    let peering = format!("{}/virtualNetworkPeerings/p", text("network"));
    client.create(&peering, &json!({"properties": {"remoteVirtualNetwork": {"id": text("network")}}})).await;
    let lock = format!("{}/providers/Microsoft.Authorization/locks/l", client.group("world"));
    client.create(&lock, &json!({"properties": {"level": "CanNotDelete"}})).await;
    let paths = [
        client.group("world"),
        text("nicNsg"),
        ssh,
        text("network"),
        text("subnet"),
        peering,
        table,
        client.network("world", "publicIPAddresses/vm-ip"),
        text("nic"),
        text("id"),
        lock,
    ];
    let mut tried = 0;
    let mut broken = vec![];
    for path in &paths {
        let good = client.get(path).await.body;
        let mut found = vec![String::new()];
        nodes(&good, "", &mut found);
        found.retain(|node| !node.contains("defaultSecurityRules") && !node.ends_with("/etag"));
        for node in &found {
            for wrong in [
                json!("text"),
                json!(7),
                json!([1]),
                json!({"x": 1}),
                json!(null),
                json!([{"properties": []}]),
            ] {
                let mut bad = good.clone();
                *bad.pointer_mut(node).unwrap() = wrong.clone();
                let answer = client.put(path, &bad).await;
                if answer.status == 500 {
                    broken.push(format!("{path} with {node} = {wrong}"));
                }
                let patched = client.patch(path, &json!({"tags": wrong})).await;
                assert_ne!(patched.status, 500, "PATCH {path} with tags {wrong}");
                tried += 1;
            }
            // What was accepted may have spoilt the resource: read it, and put the good one back.
            assert_ne!(client.get(path).await.status, 500, "{path} after {node}");
            client.put(path, &good).await;
        }
    }
    assert_eq!(broken, Vec::<String>::new());
    let probe = json!({"source": "203.0.113.7", "destination": "10.0.0.4", "port": 22});
    assert!(client.sim("probe", &probe).await["allowed"].is_boolean());
    assert!(tried > 1000, "only {tried} documents were tried");
}
