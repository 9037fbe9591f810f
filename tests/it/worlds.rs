//! Policies over a cloud that changes under them, as a user with kubectl sees it and as packets meet it.

use serde_json::{Value, json};

use jiff::Timestamp;

use crate::ground::{REQUESTER, STRANGER, Site, Vm, on_site, target, targets};

/// Three machines, `a` and `b` with the tag that the policy asks for, `c` without.
async fn tagged(site: &Site, deletion_policy: &str) -> [Vm; 3] {
    let mut machines = Vec::new();
    for (name, host, role) in [("a", 4, "web"), ("b", 5, "web"), ("c", 6, "batch")] {
        machines.push(site.vm(name, host, json!({"tags": {"role": role}})).await);
    }
    site.rule("net", "allow-ssh", "Allow", 300, "22", "Internet").await;
    let scope = json!([{"name": "web", "azureScope": {"id": site.group(), "tags": {"role": "web"}}}]);
    site.policy("web", &json!({"targets": scope, "deletionPolicy": deletion_policy})).await;
    site.says("jitpol/web", "Ready", "True", "Configured", "2 of 2 machines").await;
    machines.try_into().unwrap()
}

fn machines_are(wanted: &'static str) -> impl Fn(&Value) -> bool {
    move |policy| policy["status"]["summary"]["machines"] == wanted
}

fn tag(role: &'static str) -> impl Fn(&mut Value) {
    move |machine| machine["tags"] = json!({"role": role})
}

#[test]
fn tags_select_machines_and_retain_keeps_the_lock_of_one_that_leaves() {
    on_site(|site| async move {
        let [a, b, c] = tagged(&site, "Retain").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await && !site.passes(STRANGER, &b.ip, 22).await);
        assert!(site.passes(STRANGER, &c.ip, 22).await, "it has another tag");
        let locked = Timestamp::now();

        site.change(&b.id, tag("batch")).await;
        let policy = site.until("b has left", "jitpol/web", machines_are("1/1")).await;
        assert_eq!(target(&policy, &b.id), Value::Null, "{:#}", policy["status"]);
        site.some_rounds().await;
        assert_eq!(site.exposed(STRANGER, &b.ip, 22, locked).await, [], "Retain keeps it locked");

        // A machine that is new, and one that gets its tag.
        let d = site.vm("d", 7, json!({"tags": {"role": "web"}})).await;
        site.change(&c.id, tag("web")).await;
        site.until("c and d have come", "jitpol/web", machines_are("3/3")).await;
        for machine in [&c, &d] {
            assert!(!site.passes(STRANGER, &machine.ip, 22).await, "{}", machine.name);
        }
        assert_eq!(
            site.exposed(STRANGER, &a.ip, 22, locked).await,
            [],
            "nothing of this opened a for a moment"
        );
        assert_eq!(site.exposed(STRANGER, &b.ip, 22, locked).await, []);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_machine_that_loses_its_tag_is_unlocked_where_the_policy_says_unlock() {
    on_site(|site| async move {
        let [a, b, _] = tagged(&site, "Unlock").await;
        let locked = Timestamp::now();
        site.change(&b.id, tag("batch")).await;
        site.until_passes(STRANGER, &b.ip, 22, true).await;
        site.until("b has left", "jitpol/web", machines_are("1/1")).await;
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        site.kubectl_delete("jitpol/web").await;
        assert!(site.passes(STRANGER, &a.ip, 22).await);
        assert_eq!(site.ours("net").await, Vec::<Value>::new());
    });
}

#[test]
fn a_new_address_is_locked_the_old_one_released_and_a_live_grant_revoked() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);

        let moved = site.address(9);
        site.change(&a.nic, |nic| {
            nic["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"] = json!(moved);
        })
        .await;
        let request = site.state("jitreq/mine", "Revoked").await;
        site.says("jitreq/mine", "Succeeded", "True", "Closed", "").await;
        site.says("jitreq/mine", "Active", "False", "MachineChanged", "").await;
        assert!(request["status"]["closedAt"].is_string(), "{:#}", request["status"]);
        site.until("follows", "jitpol/web", |policy| {
            target(policy, &a.id)["addresses"] == json!([moved])
                && target(policy, &a.id)["state"] == "Configured"
        })
        .await;
        assert!(!site.passes(STRANGER, &moved, 22).await && !site.passes(REQUESTER, &moved, 22).await);
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());
        // Whoever has the old address now is no business of the policy's.
        let heir = site.vm("heir", 4, json!({})).await;
        assert_eq!(heir.ip, a.ip);
        site.until_passes(STRANGER, &heir.ip, 22, true).await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_machine_that_is_deleted_ends_its_grant_and_never_blocks_the_policy() {
    on_site(|site| async move {
        let a = site.usual().await;
        let b = site.vm("b", 5, json!({})).await;
        site.lock("web", &[&a, &b]).await;
        site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/mine", "Active").await;
        site.delete(&a.id).await;
        site.state("jitreq/mine", "Revoked").await;
        site.says("jitreq/mine", "Active", "False", "MachineChanged", "").await;
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());
        assert!(!site.passes(REQUESTER, &b.ip, 22).await, "the other one stays locked");
        site.target("jitpol/web", &a.id, "Unsupported", "VirtualMachineNotFound").await;
        site.says("jitpol/web", "Ready", "False", "TargetsUnsupported", "a: ").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_target_taken_out_of_the_spec_is_unlocked_and_the_others_are_not() {
    on_site(|site| async move {
        let (a, b) = (site.usual().await, site.vm("b", 5, json!({})).await);
        site.lock("web", &[&a, &b]).await;
        let locked = Timestamp::now();
        site.policy("web", &json!({"targets": targets(&[&a])})).await;
        site.until_passes(STRANGER, &b.ip, 22, true).await;
        site.until("b is out", "jitpol/web", machines_are("1/1")).await;
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        site.kubectl_delete("jitpol/web").await;
        site.some_rounds().await;
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, [], "Retain is the default");
    });
}

#[test]
fn audit_says_what_it_would_lock_writes_nothing_and_ends_grants_when_entered() {
    on_site(|site| async move {
        let (a, b) = (site.usual().await, site.vm("b", 5, json!({"subnet": "two", "subnetPrefix": format!("10.{}.1.0/24", 100 + site.number), "subnetNsg": "two", "privateIp": format!("10.{}.1.4", 100 + site.number)})).await);
        site.rule("two", "allow-ssh", "Allow", 300, "22", "Internet").await;
        let audit = json!({"mode": "Audit", "targets": targets(&[&a])});
        site.policy("web", &audit).await;
        site.says("jitpol/web", "Ready", "True", "Audit", "would lock 1 of 1 machines; nothing is written")
            .await;
        site.says("jitpol/web", "LockdownEffective", "False", "Audit", "1 of 1 machines are not closed: a")
            .await;
        let found = site.target("jitpol/web", &a.id, "NotConfigured", "Audit").await;
        let path = found["path"].as_array().unwrap();
        assert!(!path.is_empty() && path.iter().all(|passed| passed["enforced"] == false), "{path:?}");
        assert_eq!(found["message"], "would be locked: 22");
        site.some_rounds().await;
        assert!(site.passes(STRANGER, &a.ip, 22).await);
        assert_eq!(site.ours("net").await, Vec::<Value>::new());

        // Entered with a live grant: the grant ends, the lock stays as deletionPolicy says.
        site.lock("two", &[&b]).await;
        site.request("mine", "two", "b", 22, REQUESTER, "1h").await;
        site.state("jitreq/mine", "Active").await;
        let locked = Timestamp::now();
        site.policy("two", &json!({"mode": "Audit", "targets": targets(&[&b])})).await;
        site.state("jitreq/mine", "Revoked").await;
        site.says("jitreq/mine", "Active", "False", "PolicyTightened", "").await;
        assert!(!site.passes(REQUESTER, &b.ip, 22).await);
        site.some_rounds().await;
        assert_eq!(site.exposed(STRANGER, &b.ip, 22, locked).await, [], "Retain keeps the lock");
        site.policy("two", &json!({"mode": "Audit", "targets": targets(&[&b]), "deletionPolicy": "Unlock"}))
            .await;
        site.until_passes(STRANGER, &b.ip, 22, true).await;
        assert_eq!(site.ours("two").await, Vec::<Value>::new());
        for name in ["jitpol/web", "jitpol/two"] {
            site.kubectl_delete(name).await;
        }
    });
}

#[test]
fn keep_goes_below_rules_that_are_there_and_override_above_them() {
    on_site(|site| async move {
        let a = site.usual().await;
        let spec =
            |existing: &str| json!({"targets": targets(&[&a]), "enforcement": {"existingRules": existing}});
        site.policy("web", &spec("Keep")).await;
        site.says("jitpol/web", "LockdownEffective", "False", "KeptRules", "rule allow-ssh of net").await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(site.passes(STRANGER, &a.ip, 22).await);
        // What the rule of others does not let in is closed by ours: a peer in the network, by Azure's defaults.
        assert!(!site.passes(&site.address(77), &a.ip, 22).await);
        site.policy("web", &spec("Override")).await;
        site.says("jitpol/web", "LockdownEffective", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await && !site.passes(&site.address(77), &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn exempt_sources_pass_where_the_cluster_allows_them() {
    on_site(|site| async move {
        const LOAD_BALANCER: &str = "168.63.129.16";
        let a = site.usual().await;
        let spec =
            |exempt: Value| json!({"targets": targets(&[&a]), "enforcement": {"exemptSources": exempt}});
        site.policy("web", &spec(json!([]))).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(LOAD_BALANCER, &a.ip, 22).await);
        site.policy("web", &spec(json!([{"serviceTag": "AzureLoadBalancer"}]))).await;
        site.until_passes(LOAD_BALANCER, &a.ip, 22, true).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        let locked = Timestamp::now();
        site.policy("web", &spec(json!([{"cidr": "198.51.100.0/24"}]))).await;
        let message = "spec.enforcement.exemptSources: 198.51.100.0/24 is not among the allowedExemptSources";
        site.says("jitpol/web", "Stalled", "True", "ExemptSourceNotAllowed", message).await;
        site.some_rounds().await;
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn windows_is_locked_at_3389_by_default() {
    on_site(|site| async move {
        let a = site.vm("a", 4, json!({"os": "Windows"})).await;
        site.rule("net", "allow-rdp", "Allow", 300, "3389", "Internet").await;
        site.rule("net", "allow-ssh", "Allow", 310, "22", "Internet").await;
        site.lock("win", &[&a]).await;
        assert!(!site.passes(STRANGER, &a.ip, 3389).await);
        assert!(site.passes(STRANGER, &a.ip, 22).await, "nobody said so");
        let policy = site.get("jitpol/win").await.unwrap();
        assert_eq!(target(&policy, &a.id)["lockedPorts"], json!(["3389"]));
        assert_eq!(target(&policy, &a.id)["osType"], "Windows");
        site.kubectl_delete("jitpol/win").await;
    });
}

#[test]
fn machines_that_cannot_be_locked_are_named_with_the_reason_and_others_are_locked() {
    on_site(|site| async move {
        let a = site.usual().await;
        let bare = site.vm("bare", 4, json!({
            "subnet": "bare", "subnetNsg": null, "subnetPrefix": format!("10.{}.1.0/24", 100 + site.number),
            "privateIp": format!("10.{}.1.4", 100 + site.number),
        }))
        .await;
        let compute =
            |kind: &str, name: &str| format!("{}/providers/{kind}/virtualMachines/{name}", site.group());
        let classic = compute("Microsoft.ClassicCompute", "old");
        site.put(&classic, json!({"location": "westeurope", "properties": {}})).await;
        let missing = compute("Microsoft.Compute", "missing");
        let mut all = targets(&[&a, &bare]);
        for (name, id) in [("old", &classic), ("missing", &missing)] {
            all.as_array_mut().unwrap().push(json!({"name": name, "azureVirtualMachine": {"id": id}}));
        }
        site.policy("web", &json!({"targets": all})).await;
        site.target("jitpol/web", &a.id, "Configured", "Configured").await;
        for (id, reason, message) in [
            (&bare.id, "NoFirewall", "give one to its subnet or network interface"),
            (&classic, "ClassicVirtualMachine", "move it to Azure Resource Manager"),
            (&missing, "VirtualMachineNotFound", "missing"),
        ] {
            let found = site.target("jitpol/web", id, "Unsupported", reason).await;
            assert!(found["message"].as_str().unwrap().contains(message), "{found:#}");
        }
        site.says("jitpol/web", "Ready", "False", "TargetsUnsupported", "3 of 4 machines cannot be locked")
            .await;
        site.says("jitpol/web", "Stalled", "True", "TargetsUnsupported", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        for (target, reason) in
            [("bare", "NoFirewall"), ("old", "ClassicVirtualMachine"), ("missing", "VirtualMachineNotFound")]
        {
            site.request(target, "web", target, 22, REQUESTER, "1h").await;
            let request = site.state(&format!("jitreq/{target}"), "Failed").await;
            let text = request["status"]["conditions"].to_string();
            assert!(text.contains(reason), "{target}: {text}");
        }
        // Those that can be opened are.
        site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/mine", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitreq/mine").await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn ids_that_are_none_are_refused_at_apply_and_foreign_ones_stall() {
    on_site(|site| async move {
        let a = site.usual().await;
        for id in [
            "web-1".to_owned(),
            "/subscriptions/not-a-guid/resourceGroups/x/providers/Microsoft.Compute/virtualMachines/y"
                .to_owned(),
            a.nic.clone(),
            format!("{}/extensions/x", a.id),
        ] {
            let spec = json!({"targets": [{"name": "a", "azureVirtualMachine": {"id": id}}]});
            let said = site.refused(&site.manifest("bad", &spec)).await;
            assert!(said.contains("spec.targets[0].azureVirtualMachine.id"), "{id}: {said}");
            assert!(said.contains("/subscriptions/"), "it says what would be right: {said}");
        }
        let foreign = a.id.replace("00000000-0000-0000-0000-00000000", "00000000-0000-0000-0000-99999999");
        assert_ne!(foreign, a.id);
        let spec = json!({"targets": [{"name": "a", "azureVirtualMachine": {"id": foreign}}]});
        site.policy("web", &spec).await;
        site.says("jitpol/web", "Stalled", "True", "ScopeNotAllowed", "target \"a\": ").await;
        site.kubectl_delete("jitpol/web").await;
    });
}
