//! What a packet meets, now and in the past.

use serde_json::json;

use crate::client::{Client, rule};

const OUTSIDE: &str = "203.0.113.7";

#[tokio::test]
async fn both_groups_must_allow_and_the_answer_names_the_rules() {
    let client = Client::new().await;
    let vm = client
        .world(&json!({"name": "vm", "publicIp": "198.51.100.10", "subnetNsg": "outer", "nicNsg": "inner"}))
        .await;
    let (outer, inner) = (vm["subnetNsg"].as_str().unwrap(), vm["nicNsg"].as_str().unwrap());
    assert!(!client.allowed(OUTSIDE, "198.51.100.10", 22).await);
    client.create(&format!("{outer}/securityRules/ssh"), &rule("Allow", 100, OUTSIDE, "*", "22")).await;
    assert!(!client.allowed(OUTSIDE, "198.51.100.10", 22).await);
    client
        .create(&format!("{inner}/securityRules/ssh"), &rule("Allow", 100, OUTSIDE, "10.0.0.4", "22"))
        .await;
    let probe = json!([
        {"source": OUTSIDE, "destination": "198.51.100.10", "port": 22, "protocol": "Tcp"},
        {"source": OUTSIDE, "destination": "198.51.100.10", "port": 22, "protocol": "Udp"},
        {"source": "203.0.113.8", "destination": "10.0.0.4", "port": 22, "protocol": "Tcp"},
    ]);
    let answers = client.sim("probe", &probe).await;
    assert_eq!(answers[0]["allowed"], true);
    assert_eq!(answers[0]["decidedBy"][0]["resource"], outer);
    assert_eq!(answers[0]["decidedBy"][1]["rule"], "ssh");
    assert_eq!((&answers[1]["allowed"], &answers[2]["allowed"]), (&json!(false), &json!(false)));
    assert_eq!(answers[2]["decidedBy"][0]["rule"], "DenyAllInBound");
}

#[tokio::test]
async fn a_standard_address_without_a_group_is_closed_and_a_basic_one_open() {
    let client = Client::new().await;
    let standard = client.world(&json!({"name": "a", "publicIp": true})).await;
    let basic = client.world(&json!({"name": "b", "publicIp": true, "publicIpSku": "Basic"})).await;
    assert!(!client.allowed(OUTSIDE, standard["publicIp"].as_str().unwrap(), 22).await);
    assert!(client.allowed(OUTSIDE, basic["publicIp"].as_str().unwrap(), 22).await);
    assert!(client.allowed("10.0.0.5", standard["privateIp"].as_str().unwrap(), 22).await);
}

#[tokio::test]
async fn a_default_route_makes_the_internet_part_of_virtual_network() {
    let client = Client::new().await;
    let vm = client.world(&json!({"name": "vm", "subnetNsg": "web", "publicIp": true})).await;
    let address = vm["privateIp"].as_str().unwrap();
    assert!(!client.allowed(OUTSIDE, address, 22).await);
    assert!(client.allowed("10.0.77.1", address, 22).await);
    let table = client.network("world", "routeTables/rt");
    client.create(&table, &json!({"location": "westeurope"})).await;
    let subnet = vm["subnet"].as_str().unwrap();
    let mut body = client.get(subnet).await.body;
    body["properties"]["routeTable"] = json!({"id": table});
    client.create(subnet, &body).await;
    let route = json!({"properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": "10.0.9.9"}});
    client.create(&format!("{table}/routes/all"), &route).await;
    assert!(client.allowed(OUTSIDE, address, 22).await);
    client.remove(&format!("{table}/routes/all")).await;
    assert!(!client.allowed(OUTSIDE, address, 22).await);
}

#[tokio::test]
async fn peers_reach_each_other_once_both_sides_agree() {
    let client = Client::new().await;
    let a = client.world(&json!({"name": "a", "network": "one", "nicNsg": "na"})).await;
    let b = client
        .world(&json!({"name": "b", "network": "two", "addressSpace": ["10.1.0.0/16"], "subnetPrefix": "10.1.0.0/24", "nicNsg": "nb"}))
        .await;
    let (from, to) = (a["privateIp"].as_str().unwrap(), b["privateIp"].as_str().unwrap());
    let peer = |x: &serde_json::Value| json!({"properties": {"remoteVirtualNetwork": {"id": x["network"]}}});
    let path = |x: &serde_json::Value| format!("{}/virtualNetworkPeerings/p", x["network"].as_str().unwrap());
    assert!(!client.allowed(from, to, 22).await);
    assert_eq!(client.create(&path(&a), &peer(&b)).await["properties"]["peeringState"], "Initiated");
    assert!(!client.allowed(from, to, 22).await);
    assert_eq!(client.create(&path(&b), &peer(&a)).await["properties"]["peeringState"], "Connected");
    assert!(client.allowed(from, to, 22).await);
}

#[tokio::test]
async fn security_admin_rules_come_first() {
    let client = Client::new().await;
    let vm = client.world(&json!({"name": "vm", "nicNsg": "web"})).await;
    let (network, address) = (vm["network"].as_str().unwrap(), vm["privateIp"].as_str().unwrap());
    let admin = |access: &str| {
        json!({"virtualNetwork": network, "rules": [{"name": "r", "access": access, "direction": "Inbound", "priority": 10,
            "protocol": "Tcp", "sources": [{"addressPrefix": "203.0.113.0/24", "addressPrefixType": "IPPrefix"}],
            "destinationPortRanges": ["22"]}]})
    };
    client.sim("secadmin", &admin("AlwaysAllow")).await;
    assert!(client.allowed(OUTSIDE, address, 22).await);
    client.sim("secadmin", &admin("Allow")).await;
    assert!(!client.allowed(OUTSIDE, address, 22).await);
    let nsg = vm["nicNsg"].as_str().unwrap();
    client.create(&format!("{nsg}/securityRules/ssh"), &rule("Allow", 100, "*", "*", "22")).await;
    assert!(client.allowed(OUTSIDE, address, 22).await);
    client.sim("secadmin", &admin("Deny")).await;
    assert!(!client.allowed(OUTSIDE, address, 22).await);
    let listed =
        client.post(&format!("{network}/listNetworkManagerEffectiveSecurityAdminRules"), &json!({})).await;
    assert_eq!(listed.body["value"][0]["properties"]["access"], "Deny");
}

#[tokio::test]
async fn application_security_groups_stand_for_their_members() {
    let client = Client::new().await;
    let vm = client.world(&json!({"name": "vm", "subnetNsg": "web"})).await;
    let other = client.world(&json!({"name": "other"})).await;
    let asg = client.network("world", "applicationSecurityGroups/servers");
    client.create(&asg, &json!({"location": "westeurope"})).await;
    let nic = vm["nic"].as_str().unwrap();
    let mut body = client.get(nic).await.body;
    body["properties"]["ipConfigurations"][0]["properties"]["applicationSecurityGroups"] =
        json!([{"id": asg}]);
    client.create(nic, &body).await;
    let mut allow = rule("Allow", 100, OUTSIDE, "", "22");
    allow["properties"]["destinationApplicationSecurityGroups"] = json!([{"id": asg}]);
    client.create(&format!("{}/securityRules/ssh", vm["subnetNsg"].as_str().unwrap()), &allow).await;
    assert!(client.allowed(OUTSIDE, vm["privateIp"].as_str().unwrap(), 22).await);
    assert!(!client.allowed(OUTSIDE, other["privateIp"].as_str().unwrap(), 22).await);
}

#[tokio::test]
async fn exposure_tells_when_a_packet_would_have_passed() {
    let client = Client::new().await;
    let vm = client.world(&json!({"name": "vm", "nicNsg": "web"})).await;
    client.sim("clock", &json!({"scale": 0})).await;
    let (nsg, address) = (vm["nicNsg"].as_str().unwrap(), vm["privateIp"].as_str().unwrap());
    let path = format!("{nsg}/securityRules/ssh");
    client
        .sim(
            "latency",
            &json!({"operations": {"securityRules.write": 5, "securityRules.delete": 7}, "dataPlaneLag": 2}),
        )
        .await;
    let start = client.look("clock").await["now"].as_str().unwrap().to_owned();
    client.put(&path, &rule("Allow", 100, OUTSIDE, "*", "22")).await;
    client.sim("clock", &json!({"step": 60})).await;
    client.delete(&path).await;
    assert_eq!(client.get(&path).await.status, 404, "a read shows the goal state");
    assert!(client.allowed(OUTSIDE, address, 22).await, "the data plane follows when the operation ends");
    client.sim("clock", &json!({"step": 60})).await;
    assert!(!client.allowed(OUTSIDE, address, 22).await);
    let ask = json!({"source": OUTSIDE, "destination": address, "port": 22, "from": start});
    let found = client.sim("exposure", &ask).await;
    let intervals = found["intervals"].as_array().unwrap();
    assert_eq!(intervals.len(), 1, "{found}");
    let at = |v: &serde_json::Value| v.as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let start: jiff::Timestamp = start.parse().unwrap();
    assert_eq!(at(&intervals[0]["from"]).duration_since(start).as_secs(), 7);
    assert_eq!(at(&intervals[0]["to"]).duration_since(start).as_secs(), 69);
    let late = json!({"source": OUTSIDE, "destination": address, "port": 22, "from": start.checked_add(jiff::SignedDuration::from_secs(70)).unwrap().to_string()});
    assert_eq!(client.sim("exposure", &late).await["intervals"], json!([]));
}

#[tokio::test]
async fn an_address_that_nobody_holds_is_not_reached() {
    let client = Client::new().await;
    let answer =
        client.sim("probe", &json!({"source": OUTSIDE, "destination": "10.9.9.9", "port": 22})).await;
    assert_eq!(answer["allowed"], false);
    assert!(answer["reason"].as_str().unwrap().starts_with("NoSuchDestination"));
    let bad =
        client.try_sim("probe", &json!({"source": "nowhere", "destination": "10.9.9.9", "port": 22})).await;
    assert_eq!(bad.status, 400);
}

#[tokio::test]
async fn exposure_follows_an_address_that_moves_and_a_group_that_is_taken_off() {
    let client = Client::new().await;
    client.sim("clock", &json!({"scale": 0})).await;
    let start = client.look("clock").await["now"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap();
    let step = || async { client.sim("clock", &json!({"step": 10})).await };
    let put = |path: String, body: serde_json::Value| {
        let client = &client;
        async move {
            assert!(client.put(&path, &body).await.status < 300, "{path}");
            client.sim("clock", &json!({"step": 1})).await;
        }
    };
    client.sim("latency", &json!({"operations": {"securityRules.write": 0}})).await;
    let a = client.world(&json!({"name": "a", "nicNsg": "open", "publicIp": "198.51.100.9"})).await;
    let b = client.world(&json!({"name": "b", "nicNsg": "shut"})).await;
    let open = format!("{}/securityRules/ssh", a["nicNsg"].as_str().unwrap());
    put(open, rule("Allow", 100, OUTSIDE, "*", "22")).await;
    step().await;
    // From 1 s on a is reached; the address then goes from a to b, which is shut, and b's group is replaced at last.
    let mut bare = client.get(a["nic"].as_str().unwrap()).await.body;
    let public = bare["properties"]["ipConfigurations"][0]["properties"]["publicIPAddress"].take();
    put(a["nic"].as_str().unwrap().to_owned(), bare).await;
    step().await;
    let mut other = client.get(b["nic"].as_str().unwrap()).await.body;
    other["properties"]["ipConfigurations"][0]["properties"]["publicIPAddress"] = public;
    put(b["nic"].as_str().unwrap().to_owned(), other.clone()).await;
    step().await;
    client.world(&json!({"name": "bystander"})).await;
    other["properties"]["networkSecurityGroup"] = json!({"id": a["nicNsg"]});
    put(b["nic"].as_str().unwrap().to_owned(), other).await;
    let ask = json!({"source": OUTSIDE, "destination": "198.51.100.9", "port": 22});
    let found = client.sim("exposure", &ask).await;
    let since = |v: &serde_json::Value| {
        v.as_str().map(|t| t.parse::<jiff::Timestamp>().unwrap().duration_since(start).as_secs())
    };
    let intervals: Vec<_> =
        found["intervals"].as_array().unwrap().iter().map(|i| (since(&i["from"]), since(&i["to"]))).collect();
    assert_eq!(intervals, [(Some(0), Some(11)), (Some(33), None)]);
}
