//! Machines without public addresses behind an Azure Firewall, as their people see it: with rules of its own and with a
//! policy, with a network security group and without. Packets decide, in both readings of Azure's.

use std::net::Ipv4Addr;
use std::time::Duration;

use portcullis_harness::User;
use serde_json::{Value, json};

use crate::ground::{REQUESTER, STRANGER, Site, Vm, condition, on_site, target, targets};

/// A firewall in the site's network, and what the machines' routes lead to.
struct Hub {
    /// The firewall.
    id: String,
    /// Where rules stand: the firewall, or our group of the policy.
    rules: String,
    public: String,
    subnet: String,
}

impl Site {
    fn network_resource(&self, rest: &str) -> String {
        format!("{}/providers/Microsoft.Network/{rest}", self.group())
    }

    /// Puts a firewall before the machines of the site, which has machines by now.
    async fn hub(&self, with_policy: bool) -> Hub {
        let number = self.number;
        let subnet = format!("10.{}.250.0/26", 100 + number);
        let home = format!("{}/subnets/AzureFirewallSubnet", self.network());
        self.put(&home, json!({"properties": {"addressPrefix": subnet}})).await;
        let public = format!("198.18.{number}.40");
        let address = self.network_resource("publicIPAddresses/fw");
        let properties = json!({"publicIPAllocationMethod": "Static", "ipAddress": public});
        self.put(
            &address,
            json!({"location": "westeurope", "sku": {"name": "Standard"}, "properties": properties}),
        )
        .await;
        let config = json!({"subnet": {"id": home}, "publicIPAddress": {"id": address}});
        let mut properties = json!({"ipConfigurations": [{"name": "public", "properties": config}]});
        let id = self.network_resource("azureFirewalls/fw");
        let mut rules = id.clone();
        if with_policy {
            let policy = self.network_resource("firewallPolicies/hub");
            self.put(&policy, json!({"location": "westeurope"})).await;
            properties["firewallPolicy"] = json!({"id": policy});
            rules = policy;
        } else {
            properties["networkRuleCollections"] = json!([deny_all()]);
        }
        self.put(&id, json!({"location": "westeurope", "properties": properties})).await;
        if with_policy {
            let mut all = deny_all();
            let inner = all["properties"].take();
            let rule = json!({"name": "all", "ruleType": "NetworkRule", "ipProtocols": ["Any"], "sourceAddresses": ["*"],
                "destinationAddresses": ["*"], "destinationPorts": ["*"]});
            let collection = json!({"name": "deny", "priority": inner["priority"], "action": {"type": "Deny"},
                "ruleCollectionType": "FirewallPolicyFilterRuleCollection", "rules": [rule]});
            let group = format!("{rules}/ruleCollectionGroups/theirs");
            self.put(&group, json!({"properties": {"priority": 5000, "ruleCollections": [collection]}}))
                .await;
        }
        let table = self.network_resource("routeTables/by-firewall");
        let hop = format!("10.{}.250.4", 100 + number);
        let route = json!({"name": "out", "properties": {
            "addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance", "nextHopIpAddress": hop}});
        self.put(&table, json!({"location": "westeurope", "properties": {"routes": [route]}})).await;
        let default = format!("{}/subnets/default", self.network());
        let mut subnet_now = self.read(&default).await;
        subnet_now["properties"]["routeTable"] = json!({"id": table});
        self.put(&default, subnet_now).await;
        Hub { id, rules, public, subnet }
    }

    /// A packet to the firewall's public address, in both readings of a network rule that denies.
    async fn led(&self, source: &str, hub: &Hub, port: u16) -> [bool; 2] {
        let mut found = [false; 2];
        for (place, deny_stops) in [false, true].into_iter().enumerate() {
            let probe = json!({"source": source, "destination": hub.public, "port": port, "protocol": "Tcp",
                "networkDenyStopsDnat": deny_stops});
            found[place] = self.control("probe", &probe).await["allowed"].as_bool().unwrap();
        }
        found
    }

    /// Rules on the firewall that are of the form of ours.
    async fn led_by_us(&self, hub: &Hub) -> Vec<String> {
        let mut bodies = vec![self.read(&hub.rules).await];
        if hub.rules != hub.id {
            for group in
                bodies[0]["properties"]["ruleCollectionGroups"].as_array().cloned().unwrap_or_default()
            {
                bodies.push(self.read(group["id"].as_str().unwrap()).await);
            }
        }
        let text = bodies.iter().map(ToString::to_string).collect::<String>();
        let names = regex::Regex::new("\"portcullis-[0-9a-f]{8}-allow-[^\"]*\"").unwrap();
        names.find_iter(&text).map(|found| found.as_str().to_owned()).collect()
    }
}

/// What a firewall of others has last: it denies everything, so that in one reading only what is allowed before passes.
fn deny_all() -> Value {
    json!({"name": "deny", "properties": {"priority": 5000, "action": {"type": "Deny"}, "rules": [
        {"name": "all", "protocols": ["Any"], "sourceAddresses": ["*"], "destinationAddresses": ["*"], "destinationPorts": ["*"]}]}})
}

/// Where to connect to, as the request says it.
fn connection(request: &Value) -> (String, u16, String) {
    let connection = &request["status"]["connections"][0];
    let text = |field: &str| connection[field].as_str().unwrap_or_default().to_owned();
    (text("address"), text("port").parse().unwrap(), text("via"))
}

async fn opens_and_closes(site: Site, with_policy: bool, nsg: bool) {
    let more = if nsg { json!({}) } else { json!({"subnetNsg": null}) };
    let vm = site.vm("a", 4, more).await;
    let hub = site.hub(with_policy).await;
    site.lock("web", &[&vm]).await;
    let found = site
        .until("shows the firewall as enforced", "jitpol/web", |found| {
            target(found, &vm.id)["path"][0]["enforced"] == true
        })
        .await;
    let shown = target(&found, &vm.id);
    assert_eq!(shown["path"][0]["kind"], "AzureFirewall");
    assert_eq!(shown["path"].as_array().unwrap().len(), if nsg { 2 } else { 1 }, "{shown:#}");
    let open_inside = shown["message"].as_str().unwrap_or_default().contains("networks around it");
    assert_eq!(open_inside, !nsg, "{shown:#}");
    assert_eq!(condition(&found, "LockdownEffective")["status"], "True");

    site.request("mine", "web", "a", 22, REQUESTER, "30m").await;
    let granted = site.state("jitreq/mine", "Active").await;
    let (address, port, via) = connection(&granted);
    assert_eq!(address, hub.public);
    assert!((50_000..64_000).contains(&port), "{port}");
    assert_eq!(via, "fw");
    assert_eq!(site.led(REQUESTER, &hub, port).await, [true, true]);
    assert_eq!(site.led(STRANGER, &hub, port).await, [false, false]);
    if nsg {
        let allows = site.ours_that("net", "Allow").await;
        assert_eq!(allows.len(), 1, "{allows:#?}");
        let source = allows[0]["properties"].to_string();
        assert!(source.contains(&hub.subnet), "the machine sees an address of the firewall: {source}");
    }
    let policy = site.get("jitpol/web").await.unwrap();
    assert_eq!(condition(&policy, "LockdownEffective")["status"], "True", "{policy:#}");

    // The same port for the next one.
    site.request("other", "web", "a", 22, STRANGER, "30m").await;
    let other = site.state("jitreq/other", "Active").await;
    assert_eq!(connection(&other), (address, port, via));
    assert_eq!(site.led(STRANGER, &hub, port).await, [true, true]);

    for request in ["mine", "other"] {
        site.kubectl_delete(&format!("jitreq/{request}")).await;
    }
    for source in [REQUESTER, STRANGER] {
        assert_eq!(site.led(source, &hub, port).await, [false, false]);
    }
    assert_eq!(site.led_by_us(&hub).await, Vec::<String>::new());
    if nsg {
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());
    }
}

#[test]
fn a_grant_behind_a_classic_firewall_opens_by_a_port_of_its_own_and_closes_everywhere() {
    on_site(|site| opens_and_closes(site, false, true));
}

#[test]
fn a_grant_behind_a_firewall_with_a_policy_opens_by_a_port_of_its_own_and_closes_everywhere() {
    on_site(|site| opens_and_closes(site, true, true));
}

#[test]
fn a_machine_without_a_network_security_group_is_served_by_its_firewall_and_its_status_says_what_stays_open()
{
    on_site(|site| opens_and_closes(site, false, false));
}

/// What `via` leaves alone stays as it is, and the rest of the way is served.
#[test]
fn by_firewalls_alone_the_groups_behind_them_stay_as_they_are() {
    on_site(|site| async move {
        let vm = site.vm("a", 4, json!({})).await;
        let hub = site.hub(false).await;
        let before = site.read(&site.nsg("net")).await["properties"]["securityRules"].clone();
        let by_firewalls = json!({"azure": {"via": "AzureFirewall"}});
        site.policy("web", &json!({"targets": targets(&[&vm]), "enforcement": by_firewalls})).await;
        let found = site
            .until("shows the firewall as enforced", "jitpol/web", |found| {
                target(found, &vm.id)["path"][0]["enforced"] == true
            })
            .await;
        assert_eq!(target(&found, &vm.id)["path"][1]["enforced"], false, "{found:#}");
        site.request("mine", "web", "a", 22, REQUESTER, "30m").await;
        let (_, port, _) = connection(&site.state("jitreq/mine", "Active").await);
        assert_eq!(site.led(REQUESTER, &hub, port).await, [true, true]);
        assert_eq!(site.led(STRANGER, &hub, port).await, [false, false]);
        site.kubectl_delete("jitreq/mine").await;
        assert_eq!(site.led(REQUESTER, &hub, port).await, [false, false]);
        assert_eq!(site.led_by_us(&hub).await, Vec::<String>::new());
        assert_eq!(site.read(&site.nsg("net")).await["properties"]["securityRules"], before);
    });
}

/// What a rule of somebody else that leads to the machine does to the lock, and to grants.
#[test]
fn nobody_else_gets_in_by_what_a_grant_opens_for_the_firewall() {
    on_site(|site| async move {
        let vm = site.vm("a", 4, json!({})).await;
        let hub = site.hub(false).await;
        site.lock("web", &[&vm]).await;
        let theirs = json!({"name": "theirs", "properties": {"priority": 200, "action": {"type": "Dnat"}, "rules": [{
            "name": "ssh", "protocols": ["TCP"], "sourceAddresses": ["*"], "destinationAddresses": [hub.public],
            "destinationPorts": ["2222"], "translatedAddress": vm.ip, "translatedPort": "22"}]}});
        site.change(&hub.id, |body| {
            body["properties"]["natRuleCollections"] = json!([theirs]);
        })
        .await;
        // The group behind it keeps it out, until something is opened for the firewall's subnet.
        assert_eq!(site.led(STRANGER, &hub, 2222).await, [false, false]);
        site.some_rounds().await;
        site.says("jitpol/web", "LockdownEffective", "True", "Configured", "").await;
        site.request("mine", "web", "a", 22, REQUESTER, "30m").await;
        let refused = site.state("jitreq/mine", "Failed").await;
        let said = condition(&refused, "Active").to_string();
        assert!(said.contains("ForeignTranslation") && said.contains("theirs/ssh"), "{said}");
        assert_eq!(site.led(STRANGER, &hub, 2222).await, [false, false]);

        // Without it a grant is made; when it comes back, the grant ends.
        site.change(&hub.id, |body| body["properties"]["natRuleCollections"] = json!([])).await;
        site.some_rounds().await;
        site.request("again", "web", "a", 22, REQUESTER, "30m").await;
        site.state("jitreq/again", "Active").await;
        site.change(&hub.id, |body| {
            let mut list = body["properties"]["natRuleCollections"].as_array().cloned().unwrap_or_default();
            list.push(theirs.clone());
            body["properties"]["natRuleCollections"] = json!(list);
        })
        .await;
        let ended = site.state("jitreq/again", "Revoked").await;
        assert!(condition(&ended, "Active").to_string().contains("theirs/ssh"), "{ended:#}");
        assert_eq!(site.led(STRANGER, &hub, 2222).await, [false, false]);
        assert_eq!(site.led_by_us(&hub).await, Vec::<String>::new());
        let left = site.read(&hub.id).await["properties"]["natRuleCollections"].to_string();
        assert!(left.contains("theirs"), "what is of others stays: {left}");
    });
}

/// Where nothing but the firewall stands before a machine, a rule of somebody else opens it: by name.
#[test]
fn a_rule_of_somebody_else_with_no_group_behind_it_is_named() {
    on_site(|site| async move {
        let vm = site.vm("a", 4, json!({"subnetNsg": null})).await;
        let hub = site.hub(true).await;
        site.lock("web", &[&vm]).await;
        let rule = json!({"name": "ssh", "ruleType": "NatRule", "ipProtocols": ["TCP"], "sourceAddresses": ["*"],
            "destinationAddresses": [hub.public], "destinationPorts": ["2222"], "translatedAddress": vm.ip, "translatedPort": "22"});
        let collection = json!({"name": "nat", "priority": 200, "action": {"type": "DNAT"},
            "ruleCollectionType": "FirewallPolicyNatRuleCollection", "rules": [rule]});
        let group = format!("{}/ruleCollectionGroups/nat", hub.rules);
        site.put(&group, json!({"properties": {"priority": 300, "ruleCollections": [collection]}})).await;
        assert!(site.led(STRANGER, &hub, 2222).await[0]);
        site.says("jitpol/web", "LockdownEffective", "False", "Shadowed", "rule nat/ssh of hub").await;
        site.delete(&group).await;
        site.says("jitpol/web", "LockdownEffective", "True", "Configured", "").await;
    });
}

#[test]
fn what_a_firewall_cannot_do_is_refused_in_words() {
    on_site(|site| async move {
        let vm = site.vm("a", 4, json!({})).await;
        let hub = site.hub(false).await;
        site.lock("web", &[&vm]).await;
        for (name, source, duration, reason, words) in [
            ("short", format!("{REQUESTER}/32"), "10m", "DurationTooShort", "at least 15m"),
            ("everybody", "0.0.0.0/0".to_owned(), "30m", "SourceNotAllowed", "name networks such as"),
        ] {
            let request = json!({
                "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
                "metadata": {"name": site.name(name), "namespace": portcullis_harness::install::NAMESPACE},
                "spec": {"policyRef": {"name": site.name("web")}, "targets": [{"name": "a"}], "duration": duration,
                    "ports": [{"port": 22, "sources": [{"cidr": source}]}]},
            });
            site.kubectl(User::Developer).apply(&request.to_string()).await.unwrap();
            let denied = site.state(&format!("jitreq/{name}"), "Denied").await;
            let said = denied["status"]["conditions"].to_string();
            assert!(said.contains(reason) && said.contains(words), "{said}");
        }
        // Forced tunnelling: a firewall without a public address leads nothing on.
        site.change(&hub.id, |body| {
            let config = &mut body["properties"]["ipConfigurations"][0]["properties"];
            config.as_object_mut().unwrap().remove("publicIPAddress");
        })
        .await;
        site.some_rounds().await;
        site.request("tunnel", "web", "a", 22, REQUESTER, "30m").await;
        let failed = site.state("jitreq/tunnel", "Failed").await;
        let said = failed["status"]["conditions"].to_string();
        assert!(said.contains("FirewallUnfit") && said.contains("public"), "{said}");
        assert_eq!(site.led_by_us(&hub).await, Vec::<String>::new());
    });
}

/// Routes decide who comes by the firewall: with none, nothing is written there, and a live grant ends.
#[test]
fn a_route_that_bypasses_the_firewall_ends_a_live_grant() {
    on_site(|site| async move {
        let vm = site.vm("a", 4, json!({})).await;
        let hub = site.hub(false).await;
        site.lock("web", &[&vm]).await;
        site.request("mine", "web", "a", 22, REQUESTER, "30m").await;
        let granted = site.state("jitreq/mine", "Active").await;
        let (_, port, _) = connection(&granted);
        assert_eq!(site.led(REQUESTER, &hub, port).await, [true, true]);
        let table = site.network_resource("routeTables/by-firewall");
        site.put(&table, json!({"location": "westeurope", "properties": {"routes": []}})).await;
        site.state("jitreq/mine", "Revoked").await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(site.led(REQUESTER, &hub, port).await, [false, false]);
        assert_eq!(site.led_by_us(&hub).await, Vec::<String>::new());
    });
}

/// What is to be closed on one firewall goes in one write, and what is to be opened in another.
#[test]
fn what_is_due_on_one_firewall_goes_in_one_write() {
    on_site(|site| async move {
        let machines: Vec<Vm> = {
            let mut made = Vec::new();
            for (name, host) in [("a", 4), ("b", 5), ("c", 6)] {
                made.push(site.vm(name, host, json!({})).await);
            }
            made
        };
        let hub = site.hub(false).await;
        let all: Vec<&Vm> = machines.iter().collect();
        site.policy("web", &json!({"targets": targets(&all), "limits": {"activePerRequester": 10}})).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        let ids: Vec<&str> = vec!["a", "b", "c"];
        let before = site.tries(&format!("{}$", regex::escape(&hub.id))).await.len();
        let request = json!({
            "apiVersion": "jit.portcullis.io/v1alpha1", "kind": "JitAccessRequest",
            "metadata": {"name": site.name("all"), "namespace": portcullis_harness::install::NAMESPACE},
            "spec": {"policyRef": {"name": site.name("web")}, "targets": ids.iter().map(|name| json!({"name": name})).collect::<Vec<_>>(),
                "duration": "30m", "ports": [{"port": 22, "sources": [{"cidr": format!("{REQUESTER}/32")}]}]},
        });
        site.kubectl(User::Developer).apply(&request.to_string()).await.unwrap();
        let granted = site.state("jitreq/all", "Active").await;
        let connections = granted["status"]["connections"].as_array().unwrap();
        let ports: std::collections::BTreeSet<&str> =
            connections.iter().map(|it| it["port"].as_str().unwrap()).collect();
        assert_eq!(ports.len(), 3, "{connections:#?}");
        for port in &ports {
            assert_eq!(site.led(REQUESTER, &hub, port.parse().unwrap()).await, [true, true]);
        }
        assert_eq!(site.tries(&format!("{}$", regex::escape(&hub.id))).await.len() - before, 1);
        site.kubectl_delete("jitreq/all").await;
        assert_eq!(site.tries(&format!("{}$", regex::escape(&hub.id))).await.len() - before, 2);
        assert_eq!(site.led_by_us(&hub).await, Vec::<String>::new());
        assert!(hub.public.parse::<Ipv4Addr>().is_ok());
    });
}

#[test]
fn a_firewall_that_is_removed_ends_what_it_led_on() {
    on_site(|site| async move {
        let vm = site.vm("a", 4, json!({})).await;
        let hub = site.hub(false).await;
        site.lock("web", &[&vm]).await;
        site.request("mine", "web", "a", 22, REQUESTER, "30m").await;
        site.state("jitreq/mine", "Active").await;
        site.delete(&hub.id).await;
        site.until("is over", "jitreq/mine", |found| {
            ["Revoked", "Ended"].contains(&found["status"]["state"].as_str().unwrap_or_default())
        })
        .await;
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());
        site.kubectl_delete("jitreq/mine").await;
    });
}

/// Two firewalls take their rules from one policy: each grant comes in by the address of the one that is on the way.
#[test]
fn several_firewalls_of_one_policy_are_served_by_one_group() {
    on_site(|site| async move {
        let near = site.vm("a", 4, json!({})).await;
        let hub = site.hub(true).await;
        // Another network with a firewall of its own, and a machine.
        let number = site.number;
        let far = site.network_resource("virtualNetworks/far");
        let more = json!({"network": "far", "addressSpace": [format!("172.{}.0.0/16", number)], "subnet": "far",
            "subnetPrefix": format!("172.{number}.0.0/24"), "subnetNsg": "far", "privateIp": format!("172.{number}.0.4")});
        let vm = site.vm("b", 4, more).await;
        let home = format!("{far}/subnets/AzureFirewallSubnet");
        site.put(&home, json!({"properties": {"addressPrefix": format!("172.{number}.250.0/26")}})).await;
        let address = site.network_resource("publicIPAddresses/far");
        let public = format!("198.18.{number}.41");
        let properties = json!({"publicIPAllocationMethod": "Static", "ipAddress": public});
        site.put(
            &address,
            json!({"location": "westeurope", "sku": {"name": "Standard"}, "properties": properties}),
        )
        .await;
        let config = json!({"subnet": {"id": home}, "publicIPAddress": {"id": address}});
        let properties = json!({"firewallPolicy": {"id": hub.rules}, "ipConfigurations": [{"name": "public", "properties": config}]});
        site.put(
            &site.network_resource("azureFirewalls/far"),
            json!({"location": "westeurope", "properties": properties}),
        )
        .await;
        let table = site.network_resource("routeTables/by-far");
        let route = json!({"name": "out", "properties": {"addressPrefix": "0.0.0.0/0", "nextHopType": "VirtualAppliance",
            "nextHopIpAddress": format!("172.{number}.250.4")}});
        site.put(&table, json!({"location": "westeurope", "properties": {"routes": [route]}})).await;
        let subnet = format!("{far}/subnets/far");
        let mut body = site.read(&subnet).await;
        body["properties"]["routeTable"] = json!({"id": table});
        site.put(&subnet, body).await;

        site.lock("web", &[&near, &vm]).await;
        for (name, target) in [("near", "a"), ("far", "b")] {
            site.request(name, "web", target, 22, REQUESTER, "30m").await;
        }
        let (near, far) =
            (site.state("jitreq/near", "Active").await, site.state("jitreq/far", "Active").await);
        let ((by_hub, port, via), (by_far, far_port, far_via)) = (connection(&near), connection(&far));
        assert_eq!((by_hub, via), (hub.public.clone(), "fw".to_owned()));
        assert_eq!((by_far, far_via), (public.clone(), "far".to_owned()));
        assert!(site.passes(REQUESTER, &hub.public, port).await);
        assert!(site.passes(REQUESTER, &public, far_port).await);
        if port != far_port {
            assert!(!site.passes(REQUESTER, &public, port).await);
        }
        for request in ["near", "far"] {
            site.kubectl_delete(&format!("jitreq/{request}")).await;
        }
        assert!(!site.passes(REQUESTER, &public, far_port).await);
        assert_eq!(site.led_by_us(&hub).await, Vec::<String>::new());
    });
}

/// What stands in a Virtual WAN hub is not seen: a machine that nothing else filters is not served, and says why.
#[test]
fn a_machine_behind_a_secured_hub_alone_is_unsupported_with_that_reason() {
    on_site(|site| async move {
        let vm = site.vm("a", 4, json!({"subnetNsg": null})).await;
        let hub = site.network_resource("virtualNetworks/HV_hub_1234");
        let space = json!({"addressSpace": {"addressPrefixes": [format!("172.{}.0.0/16", site.number)]}});
        site.put(&hub, json!({"location": "westeurope", "properties": space})).await;
        let peering = format!("{}/virtualNetworkPeerings/RemoteVnetToHubPeering_0f8fad5b", site.network());
        site.put(&peering, json!({"properties": {"remoteVirtualNetwork": {"id": hub}}})).await;
        site.policy("web", &json!({"targets": targets(&[&vm])})).await;
        let shown = site.target("jitpol/web", &vm.id, "Unsupported", "NotSupported").await;
        assert!(shown["message"].as_str().unwrap().contains("secured hub"), "{shown:#}");
        assert_eq!(shown["path"][0]["kind"], "VirtualHub");
    });
}
