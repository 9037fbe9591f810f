//! Network security groups and their rules: the life of a rule, conflicts, concurrency, ETags, locks.

use std::time::Duration;

use serde_json::json;

use crate::client::{Client, rule};

async fn with_group() -> (Client, String) {
    let client = Client::new().await;
    client.create(&client.group("g"), &json!({"location": "West Europe"})).await;
    let nsg = client.network("g", "networkSecurityGroups/web");
    client.create(&nsg, &json!({"location": "westeurope"})).await;
    (client, nsg)
}

#[tokio::test]
async fn a_rule_is_created_read_listed_and_deleted() {
    let (client, nsg) = with_group().await;
    let path = format!("{nsg}/securityRules/ssh");
    let created = client.put(&path, &rule("Allow", 100, "203.0.113.7", "*", "22")).await;
    assert_eq!(created.status, 201);
    assert_eq!(created.body["properties"]["provisioningState"], "Updating");
    assert!(
        created
            .header("azure-asyncoperation")
            .contains("/Microsoft.Network/locations/westeurope/operations/")
    );
    assert_eq!(client.get(&nsg).await.body["properties"]["provisioningState"], "Updating");
    assert_eq!(client.finish(&created).await, "Succeeded");

    let read = client.get(&path).await;
    assert_eq!(read.body["properties"]["provisioningState"], "Succeeded");
    assert_eq!(read.body["type"], "Microsoft.Network/networkSecurityGroups/securityRules");
    let parent = client.get(&nsg).await.body;
    assert_eq!(parent["properties"]["securityRules"][0]["name"], "ssh");
    assert_eq!(parent["properties"]["defaultSecurityRules"].as_array().unwrap().len(), 6);
    assert_eq!(parent["etag"], read.body["etag"]);
    let upper = client.get(&path.to_uppercase().replace("SUBSCRIPTIONS", "subscriptions")).await;
    assert_eq!(upper.body["id"], read.body["id"]);

    let again = client.put(&path, &rule("Deny", 100, "203.0.113.7", "*", "22")).await;
    assert_eq!(again.status, 200);
    client.finish(&again).await;

    let deleted = client.delete(&path).await;
    assert_eq!(deleted.status, 202);
    assert!(deleted.header("location").contains("/operationResults/"));
    client.finish(&deleted).await;
    assert_eq!((client.get(&path).await.status, client.get(&path).await.code()), (404, "NotFound"));
    assert_eq!(client.delete(&path).await.status, 204);
}

#[tokio::test]
async fn a_second_write_to_a_group_is_refused_while_one_runs() {
    let (client, nsg) = with_group().await;
    client.sim("latency", &json!({"operations": {"securityRules.write": "400ms"}})).await;
    let first = client.put(&format!("{nsg}/securityRules/a"), &rule("Allow", 100, "*", "*", "1")).await;
    let second = client.put(&format!("{nsg}/securityRules/b"), &rule("Allow", 101, "*", "*", "2")).await;
    assert_eq!((second.status, second.code()), (429, "RetryableError"));
    assert_eq!(second.body["error"]["details"][0]["code"], "RetryableErrorDueToAnotherOperation");
    let third = client.delete(&format!("{nsg}/securityRules/a")).await;
    assert_eq!(third.status, 429);
    client.finish(&first).await;
    client.create(&format!("{nsg}/securityRules/b"), &rule("Allow", 101, "*", "*", "2")).await;
}

#[tokio::test]
async fn a_whole_put_supersedes_a_running_write_and_deletes_what_it_omits() {
    let (client, nsg) = with_group().await;
    client.create(&format!("{nsg}/securityRules/keep"), &rule("Allow", 100, "*", "*", "1")).await;
    client.sim("latency", &json!({"operations": {"securityRules.write": "10s"}})).await;
    let running = client.put(&format!("{nsg}/securityRules/gone"), &rule("Allow", 101, "*", "*", "2")).await;
    let mut kept = rule("Allow", 100, "*", "*", "1");
    kept["name"] = json!("keep");
    let whole = json!({"location": "westeurope", "properties": {"securityRules": [kept]}});
    let whole = client.put(&nsg, &whole).await;
    assert_eq!(whole.status, 200, "{}", whole.body);
    assert_eq!(client.finish(&running).await, "Canceled");
    assert_eq!(client.finish(&whole).await, "Succeeded");
    let rules = client.get(&nsg).await.body["properties"]["securityRules"].clone();
    assert_eq!(rules.as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn clashing_priorities_are_refused_per_direction() {
    let (client, nsg) = with_group().await;
    client.create(&format!("{nsg}/securityRules/a"), &rule("Allow", 100, "*", "*", "1")).await;
    let clash = client.put(&format!("{nsg}/securityRules/b"), &rule("Deny", 100, "*", "*", "2")).await;
    assert_eq!((clash.status, clash.code()), (400, "SecurityRuleConflict"));
    let mut out = rule("Deny", 100, "*", "*", "2");
    out["properties"]["direction"] = json!("Outbound");
    client.create(&format!("{nsg}/securityRules/b"), &out).await;
}

#[tokio::test]
async fn if_match_is_honoured_or_ignored_by_switch() {
    let (client, nsg) = with_group().await;
    let body = json!({"location": "westeurope"});
    let put =
        |etag: String| client.request(reqwest::Method::PUT, &nsg).header("If-Match", etag).json(&body).send();
    let stale = client.get(&nsg).await;
    assert_eq!(stale.header("etag"), stale.body["etag"].as_str().unwrap());
    client.create(&format!("{nsg}/securityRules/a"), &rule("Allow", 100, "*", "*", "1")).await;
    let etag = stale.header("etag").to_owned();
    assert_eq!(put(etag.clone()).await.unwrap().status(), 412);
    let fresh = client.get(&nsg).await.header("etag").to_owned();
    assert_eq!(put(fresh).await.unwrap().status(), 200);
    client.sim("settings", &json!({"ifMatch": false})).await;
    assert_eq!(put(etag).await.unwrap().status(), 200);
}

#[tokio::test]
async fn an_inherited_lock_refuses_a_delete_and_lets_a_put_pass() {
    let (client, nsg) = with_group().await;
    let path = format!("{nsg}/securityRules/a");
    client.create(&path, &rule("Allow", 100, "*", "*", "1")).await;
    let lock = format!("{}/providers/Microsoft.Authorization/locks/keep", client.group("g"));
    client.create(&lock, &json!({"properties": {"level": "CanNotDelete"}})).await;
    let refused = client.delete(&path).await;
    assert_eq!((refused.status, refused.code()), (409, "ScopeLocked"));
    client.create(&path, &rule("Deny", 100, "*", "*", "1")).await;
    client.create(&lock, &json!({"properties": {"level": "ReadOnly"}})).await;
    assert_eq!(client.put(&path, &rule("Allow", 100, "*", "*", "1")).await.code(), "ScopeLocked");
    let listed = client.get(&format!("{nsg}/providers/Microsoft.Authorization/locks")).await.body;
    assert_eq!(listed["value"][0]["properties"]["level"], "ReadOnly");
    client.remove(&lock).await;
    client.remove(&path).await;
}

#[tokio::test]
async fn a_group_holds_a_thousand_rules_and_no_more() {
    let (client, nsg) = with_group().await;
    let rules = |count: u16| {
        let rules: Vec<_> = (0..count)
            .map(|i| {
                let mut rule = rule("Allow", 100 + i, "*", "*", "1");
                rule["name"] = json!(format!("r{i}"));
                rule
            })
            .collect();
        json!({"location": "westeurope", "properties": {"securityRules": rules}})
    };
    client.create(&nsg, &rules(1000)).await;
    let full = client.put(&format!("{nsg}/securityRules/more"), &rule("Allow", 4000, "*", "*", "1")).await;
    assert_eq!((full.status, full.code()), (400, "SecurityRuleCountLimitReached"));
}

#[tokio::test]
async fn what_is_missing_has_its_own_code() {
    let client = Client::new().await;
    let nsg = client.network("none", "networkSecurityGroups/x");
    assert_eq!(client.get(&nsg).await.code(), "ResourceGroupNotFound");
    client.create(&client.group("none"), &json!({"location": "westeurope"})).await;
    assert_eq!(client.get(&nsg).await.code(), "ResourceNotFound");
    let child = client.put(&format!("{nsg}/securityRules/r"), &rule("Allow", 100, "*", "*", "1")).await;
    assert_eq!((child.status, child.code()), (404, "ParentResourceNotFound"));
    let no_version = client.http.get(format!("{}{nsg}", client.simulator.url)).bearer_auth(&client.token);
    let answer = crate::client::answer(no_version.send().await.unwrap()).await;
    assert_eq!((answer.status, answer.code()), (400, "MissingApiVersionParameter"));
}

#[tokio::test]
async fn an_interface_write_fails_while_its_group_changes() {
    let client = Client::new().await;
    let machine = client.world(&json!({"name": "vm", "nicNsg": "web"})).await;
    let (nsg, nic) = (machine["nicNsg"].as_str().unwrap(), machine["nic"].as_str().unwrap());
    client.sim("latency", &json!({"operations": {"securityRules.write": "300ms"}})).await;
    let running = client.put(&format!("{nsg}/securityRules/a"), &rule("Allow", 100, "*", "*", "1")).await;
    let mut body = client.get(nic).await.body;
    body["tags"] = json!({"a": "b"});
    assert_eq!(client.put(nic, &body).await.code(), "ReferencedResourceNotProvisioned");
    client.finish(&running).await;
    tokio::time::sleep(Duration::from_millis(1)).await;
    assert_eq!(client.create(nic, &body).await["tags"]["a"], "b");
}
