//! Rules that others write beside ours, over ours and instead of ours.

use std::time::Duration;

use jiff::Timestamp;
use portcullis_harness::eventually;
use reqwest::Method;
use serde_json::{Value, json};

use crate::cloud_failures::FAULTS;
use crate::ground::{REQUESTER, STRANGER, Site, on_site, targets};

/// The name of the one deny of ours in the group `net`.
async fn deny(site: &Site) -> (String, Value) {
    let mut denies = site.ours_that("net", "Deny").await;
    assert_eq!(denies.len(), 1, "{denies:#?}");
    let deny = denies.remove(0);
    (deny["name"].as_str().unwrap().to_owned(), deny)
}

/// What somebody does to the properties of a rule.
type Edit = fn(&mut Value);

fn child(site: &Site, rule: &str) -> String {
    format!("{}/securityRules/{rule}", site.nsg("net"))
}

#[test]
fn a_deny_that_others_delete_edit_or_move_is_put_back_and_an_event_names_it() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let (name, before) = deny(&site).await;

        site.delete(&child(&site, &name)).await;
        site.until_passes(STRANGER, &a.ip, 22, false).await;
        site.event("Drift", &format!("rule {name} of {} was removed", site.nsg("net"))).await;

        let (name, _) = deny(&site).await;
        let edits: [(&str, Edit); 3] = [
            ("access", |rule| rule["access"] = json!("Allow")),
            ("priority", |rule| rule["priority"] = json!(4000)),
            ("port", |rule| {
                rule["destinationPortRange"] = json!("2222");
                rule["destinationPortRanges"] = json!([]);
            }),
        ];
        for (what, edit) in edits {
            // An edit right after a write of ours is repaired too, but nobody could tell it from a write gone wrong.
            site.some_rounds().await;
            let (name, rule) = deny(&site).await;
            let mut properties = rule["properties"].clone();
            edit(&mut properties);
            site.put(&child(&site, &name), json!({"properties": properties})).await;
            assert!(site.passes(STRANGER, &a.ip, 22).await, "the edit of the {what} opened it");
            site.until_passes(STRANGER, &a.ip, 22, false).await;
        }
        site.event("Drift", &format!("rule {name} of {} was changed", site.nsg("net"))).await;
        let (_, after) = deny(&site).await;
        for field in ["access", "destinationAddressPrefix", "destinationAddressPrefixes", "protocol"] {
            assert_eq!(after["properties"][field], before["properties"][field], "{field}");
        }
        let metrics = site.ground.controller.metrics().await.unwrap();
        for kind in ["removed", "changed"] {
            let counted = metrics.lines().find(|line| {
                line.starts_with("portcullis_drift_repairs_total") && line.contains(&format!("\"{kind}\""))
            });
            assert!(counted.is_some_and(|line| !line.ends_with(" 0")), "{kind}: {metrics}");
        }
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_foreign_allow_above_the_lock_is_overtaken_or_named_where_there_is_no_room() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        // Room is left above this one.
        site.rule("net", "sneaky", "Allow", 150, "22", "Internet").await;
        site.until_passes(STRANGER, &a.ip, 22, false).await;
        site.says("jitpol/web", "LockdownEffective", "True", "Configured", "").await;
        let rules = site.read(&site.nsg("net")).await;
        let sneaky = rules["properties"]["securityRules"].as_array().unwrap();
        assert!(sneaky.iter().any(|rule| rule["name"] == "sneaky" && rule["properties"]["priority"] == 150));

        // None above this one.
        site.rule("net", "topmost", "Allow", 100, "22", "198.51.100.0/24").await;
        site.says("jitpol/web", "LockdownEffective", "False", "Shadowed", "rule topmost of net").await;
        site.says("jitpol/web", "Ready", "False", "NoPriorityRoom", "above rule topmost at priority 100")
            .await;
        site.says("jitpol/web", "Stalled", "True", "NoPriorityRoom", "topmost").await;
        assert!(site.passes(STRANGER, &a.ip, 22).await, "the status tells the truth");
        assert!(!site.passes(REQUESTER, &a.ip, 22).await, "everybody else is still shut out");
        site.delete(&child(&site, "topmost")).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_lock_that_was_pushed_up_to_the_first_number_comes_down_again_and_grants_open() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.rule("net", "jit", "Allow", 101, "22", "198.51.100.0/24").await;
        let (looks, locks) =
            (json!({"targets": targets(&[&a]), "mode": "Audit"}), json!({"targets": targets(&[&a])}));
        site.policy("web", &looks).await;
        site.says("jitpol/web", "Ready", "True", "Audit", "has to stand above rule jit at priority 101")
            .await;
        site.policy("web", &locks).await;
        site.says("jitpol/web", "LockdownEffective", "True", "Configured", "").await;
        site.says("jitpol/web", "Ready", "False", "NoPriorityRoom", "above rule jit at priority 101").await;
        site.says("jitpol/web", "Stalled", "True", "NoPriorityRoom", "no grant of port 22 can be opened")
            .await;
        let locked = Timestamp::now();
        site.request("early", "web", "a", 22, REQUESTER, "1h").await;
        let request = site.state("jitreq/early", "Failed").await;
        assert!(
            request["status"]["conditions"].to_string().contains("rule jit at priority 101"),
            "{request:#}"
        );

        site.delete(&child(&site, "jit")).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        site.request("late", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/late", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, [], "it stood all the time");
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_deliberate_deny_of_others_is_honoured_and_a_later_one_shadows_the_grant() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.rule("net", "no-ssh", "Deny", 500, "22", "203.0.113.0/24").await;
        site.lock("web", &[&a]).await;
        site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
        let request = site.state("jitreq/mine", "Failed").await;
        let text = request["status"]["conditions"].to_string();
        assert!(text.contains("ForeignDeny") && text.contains("rule no-ssh at priority 500"), "{text}");
        site.until("settled", "jitreq/mine", |found| found["status"]["settled"] == true).await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());

        // Those from 1000 on are the ground that a grant stands on.
        site.delete(&child(&site, "no-ssh")).await;
        site.rule("net", "deny-all", "Deny", 4096, "*", "*").await;
        site.rule("net", "topmost", "Allow", 100, "443", "*").await;
        site.request("again", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/again", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);

        // One that becomes a deny above a live grant: said, not fought.
        site.rule("net", "topmost", "Deny", 100, "22", "203.0.113.0/24").await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        site.says("jitreq/again", "Active", "False", "GrantShadowed", "rule topmost of net").await;
        let request = site.get("jitreq/again").await.unwrap();
        assert_eq!(request["status"]["state"], "Active");
        site.some_rounds().await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitreq/again").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_network_managers_always_allow_makes_the_lock_ineffective_by_name() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let admin = |rules: Value| json!({"virtualNetwork": site.network(), "rules": rules});
        let rule = json!([{
            "name": "corp-ssh", "access": "AlwaysAllow", "direction": "Inbound", "priority": 10, "protocol": "Tcp",
            "sources": [{"addressPrefix": "198.51.100.0/24", "addressPrefixType": "IPPrefix"}],
            "destinations": [], "sourcePortRanges": [], "destinationPortRanges": ["22"],
        }]);
        site.control("secadmin", &admin(rule)).await;
        assert!(site.passes(STRANGER, &a.ip, 22).await);
        site.says("jitpol/web", "LockdownEffective", "False", "Shadowed", "security admin rule corp-ssh")
            .await;
        site.says("jitpol/web", "Ready", "False", "Shadowed", "").await;
        site.control("secadmin", &admin(json!([]))).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn requests_over_one_port_end_apart_and_two_policies_lock_their_union() {
    on_site(|site| async move {
        const OTHER: &str = "203.0.113.8";
        let a = site.usual().await;
        site.rule("net", "allow-web", "Allow", 310, "8080", "Internet").await;
        site.lock("ssh", &[&a]).await;
        site.request("short", "ssh", "a", 22, REQUESTER, "30s").await;
        site.request("long", "ssh", "a", 22, REQUESTER, "1h").await;
        site.request("other", "ssh", "a", 22, OTHER, "1h").await;
        for name in ["jitreq/short", "jitreq/long", "jitreq/other"] {
            site.state(name, "Active").await;
        }
        let open = jiff::Timestamp::now();
        site.kubectl_delete("jitreq/other").await;
        assert!(!site.passes(OTHER, &a.ip, 22).await && site.passes(REQUESTER, &a.ip, 22).await);

        let spec = json!({
            "targets": targets(&[&a]), "deletionPolicy": "Unlock", "ports": [{"port": 8080, "protocol": "TCP"}],
        });
        site.policy("web", &spec).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 8080).await && !site.passes(STRANGER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
        assert!(site.passes(STRANGER, &a.ip, 8080).await, "exactly its own lock goes");
        assert!(!site.passes(STRANGER, &a.ip, 22).await);

        site.state("jitreq/short", "Expired").await;
        let intervals = site.exposed(REQUESTER, &a.ip, 22, open).await;
        assert!(matches!(intervals[..], [(_, None)]), "the longer grant was open throughout: {intervals:?}");
        site.kubectl_delete("jitreq/long").await;
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        let foreign = site.read(&site.nsg("net")).await["properties"]["securityRules"].clone();
        for name in ["allow-ssh", "allow-web"] {
            assert!(foreign.as_array().unwrap().iter().any(|rule| rule["name"] == name), "{foreign:#}");
        }
        site.kubectl_delete("jitpol/ssh").await;
    });
}

#[test]
fn a_group_that_somebody_elses_failed_write_left_failed_is_mended() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let _turn = FAULTS.lock().await;
        let foreign = format!("{}/securityRules/theirs", site.nsg("net"));
        let fault = json!([{"name": "theirs", "method": "PUT", "path": foreign,
            "effect": {"operation": {"fails": "InternalServerError"}}}]);
        site.control("faults", &fault).await;
        let body = json!({"properties": {
            "direction": "Inbound", "access": "Allow", "priority": 2000, "protocol": "Tcp", "sourcePortRange": "*",
            "sourceAddressPrefix": "198.51.100.0/24", "destinationAddressPrefix": "*", "destinationPortRange": "443",
        }});
        let simulator = &site.ground.play.stage.simulator;
        eventually("they have their turn", Duration::from_secs(30), || async {
            let (status, answer) = simulator.arm(Method::PUT, &foreign, Some(&body)).await?;
            anyhow::ensure!(status.is_success(), "{answer}");
            Ok::<_, anyhow::Error>(())
        })
        .await
        .unwrap();
        let state = async || site.read(&site.nsg("net")).await["properties"]["provisioningState"].clone();
        eventually("their write has failed", Duration::from_secs(30), async || match state().await {
            state if state == "Failed" => Ok(()),
            state => Err(format!("{state}")),
        })
        .await
        .unwrap();
        simulator.control(Method::DELETE, "faults", None).await.unwrap();
        eventually("the group is mended", Duration::from_secs(60), async || match state().await {
            state if state == "Succeeded" => Ok(()),
            state => Err(format!("{state}")),
        })
        .await
        .unwrap();
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
    });
}
