//! What the simulator answers, held against the official shapes where they are at hand: names, types, constants and
//! known values. The checker knows the keywords that those schemas use, and nothing else.

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::{
    client::{Client, rule},
    firewall::{Site, nat, nat_group, network},
};

fn folder() -> PathBuf {
    // Builds may happen in a copy of the checkout.
    let root = std::env::var_os("PORTCULLIS_ROOT");
    let root = root.map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(".."), PathBuf::from);
    root.join("../shared/azure-schema")
}

/// Faults of `value`, each with its path.
fn check(root: &Value, schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    if let Some(reference) = schema["$ref"].as_str() {
        let target = root.pointer(reference.trim_start_matches('#')).unwrap_or(&Value::Null);
        assert!(target.is_object(), "{reference} leads nowhere");
        check(root, target, value, at, faults);
    }
    let mut fault = |why: String| faults.push(format!("{at}: {why}"));
    if let Some(kind) = schema["type"].as_str() {
        let fits = match kind {
            "object" => value.is_object(),
            "array" => value.is_array(),
            "string" => value.is_string(),
            "integer" => value.is_i64() || value.is_u64(),
            "number" => value.is_number(),
            "boolean" => value.is_boolean(),
            "null" => value.is_null(),
            other => panic!("the checker does not know the type {other}"),
        };
        if !fits {
            fault(format!("{value} is no {kind}"));
            return;
        }
    }
    if schema.get("const").is_some_and(|c| c != value) {
        fault(format!("{value} must be {}", schema["const"]));
    }
    for list in ["enum", "x-known-values"] {
        if schema[list].as_array().is_some_and(|known| !known.contains(value)) {
            fault(format!("{value} is none of {}", schema[list]));
        }
    }
    for (bound, wrong) in [("minimum", -1.0), ("maximum", 1.0)] {
        if let (Some(limit), Some(number)) = (schema[bound].as_f64(), value.as_f64())
            && (number - limit) * wrong > 0.0
        {
            fault(format!("{number} is beyond the {bound} {limit}"));
        }
    }
    if let Some(options) = schema["oneOf"].as_array() {
        let fits = options.iter().any(|option| {
            let mut inner = vec![];
            check(root, option, value, at, &mut inner);
            inner.is_empty()
        });
        if !fits {
            fault("fits none of the choices".into());
        }
    }
    if let Some(map) = value.as_object() {
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if !map.contains_key(name) {
                fault(format!("{name} is missing"));
            }
        }
        for (name, inner) in map {
            let path = format!("{at}.{name}");
            if let Some(known) = schema["properties"].get(name) {
                check(root, known, inner, &path, faults);
            } else if schema["additionalProperties"] == json!(false) {
                faults.push(format!("{path}: not a property of {}", schema["title"]));
            } else if schema["additionalProperties"].is_object() {
                check(root, &schema["additionalProperties"], inner, &path, faults);
            }
        }
    }
    if let Some(list) = value.as_array() {
        for (index, inner) in list.iter().enumerate() {
            check(root, &schema["items"], inner, &format!("{at}[{index}]"), faults);
        }
    }
}

fn faults_of(name: &str, value: &Value) -> Vec<String> {
    let file = folder().join(format!("{name}.json"));
    let schema: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
    let mut faults = vec![];
    check(&schema, &schema, value, name, &mut faults);
    faults
}

#[tokio::test]
async fn answers_have_the_official_shapes() {
    if !folder().exists() {
        eprintln!(
            "skipped: ../shared/azure-schema is absent, so there are no official shapes to hold answers against"
        );
        return;
    }
    let client = Client::new().await;
    let vm = client
        .world(&json!({"name": "vm", "subnetNsg": "outer", "nicNsg": "inner", "publicIp": true, "tags": {"a": "b"}}))
        .await;
    let text = |name: &str| vm[name].as_str().unwrap().to_owned();
    let ssh = format!("{}/securityRules/ssh", text("nicNsg"));
    client.create(&ssh, &rule("Allow", 100, "203.0.113.7", "*", "22")).await;
    let table = client.network("world", "routeTables/rt");
    let route = json!({"name": "r", "properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.9.9"}});
    client.create(&table, &json!({"location": "westeurope", "properties": {"routes": [route]}})).await;
    let mut subnet = client.get(&text("subnet")).await.body;
    subnet["properties"]["routeTable"] = json!({"id": table});
    client.create(&text("subnet"), &subnet).await;
    let address = client.network("world", "publicIPAddresses/vm-ip");
    let network = "Microsoft.Network";
    for (schema, path) in [
        (format!("{network}.networkSecurityGroups@2025-05-01"), text("nicNsg")),
        (format!("{network}.networkSecurityGroups@2025-05-01"), text("subnetNsg")),
        (format!("{network}.networkSecurityGroups.securityRules@2025-05-01"), ssh),
        (format!("{network}.networkInterfaces@2025-05-01"), text("nic")),
        (format!("{network}.virtualNetworks@2025-05-01"), text("network")),
        (format!("{network}.virtualNetworks.subnets@2025-05-01"), text("subnet")),
        (format!("{network}.routeTables@2025-05-01"), table),
        (format!("{network}.publicIPAddresses@2025-05-01"), address),
        ("Microsoft.Compute.virtualMachines@2026-04-01".to_owned(), text("id")),
        (
            "Microsoft.Compute.virtualMachines@2026-04-01".to_owned(),
            format!("{}?$expand=instanceView", text("id")),
        ),
    ] {
        let answer = client.get(&path).await;
        assert_eq!(answer.status, 200, "{path}");
        assert_eq!(faults_of(&schema, &answer.body), Vec::<String>::new(), "{path}");
    }
    let mut wrong = client.get(&text("nicNsg")).await.body;
    wrong["properties"]["securityRules"][0]["properties"]["priority"] = json!("high");
    wrong["properties"]["surprise"] = json!(1);
    let faults = faults_of("Microsoft.Network.networkSecurityGroups@2025-05-01", &wrong);
    assert_eq!(faults.len(), 2, "the checker must see what is wrong: {faults:?}");
}

#[tokio::test]
async fn firewalls_have_the_official_shapes() {
    if !folder().exists() {
        eprintln!("skipped: ../shared/azure-schema is absent");
        return;
    }
    let site = Site::new().await;
    let classic = site
        .set(&json!({"natRuleCollections": [nat("50022")], "networkRuleCollections": [network("Deny", 300)]}))
        .await;
    let policy = site.client.network("world", "firewallPolicies/own");
    site.client.create(&policy, &json!({"location": "westeurope"})).await;
    let group = format!("{policy}/ruleCollectionGroups/jit");
    let group = site.client.create(&group, &nat_group(200, "50022", "10.0.0.4")).await;
    let managed = site.set(&json!({"firewallPolicy": {"id": policy}})).await;
    let policy = site.client.get(&policy).await.body;
    for (schema, answer) in [
        ("azureFirewalls", classic),
        ("azureFirewalls", managed),
        ("firewallPolicies", policy),
        ("firewallPolicies.ruleCollectionGroups", group),
    ] {
        let faults = faults_of(&format!("Microsoft.Network.{schema}@2025-05-01"), &answer);
        assert_eq!(faults, Vec::<String>::new(), "{schema}");
    }
}
