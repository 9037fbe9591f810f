//! More than one may have: other machines by tag, case, id and look-alike, addresses that move, and more sources or
//! ports than the policy allows. Packets decide.

use jiff::Timestamp;
use portcullis_harness::User;
use serde_json::{Value, json};

use crate::ground::{REQUESTER, Site, Vm, condition, on_site, targets};

impl Site {
    /// Asks, and expects kubectl to hear these words.
    async fn refused_in(&self, name: &str, more: &Value, words: &str) {
        let manifest = self.wanted(name, "web", more);
        let said = self.send(&self.kubectl(User::Developer), &[], &manifest).await;
        assert!(said.code != 0 && said.stderr.contains(words), "{more}: {words:?} is not in {said:?}");
    }

    /// Asks, and expects the controller to deny it for this reason, in these words.
    async fn denied_in(&self, name: &str, more: &Value, reason: &str, words: &str) {
        self.asks_as(&self.kubectl(User::Developer), name, "web", more).await;
        let object = format!("jitreq/{name}");
        let denied = self.state(&object, "Denied").await;
        let told = condition(&denied, "Denied");
        assert_eq!(told["reason"], reason, "{more}: {told}");
        assert!(told["message"].as_str().unwrap().contains(words), "{more}: {told}");
        assert!(denied["status"]["grantedAt"].is_null());
    }
}

#[test]
fn a_machine_outside_of_the_scope_is_reached_by_no_tag_case_id_or_look_alike() {
    on_site(|site| async move {
        let mut machines = Vec::new();
        // In Azure, names of tags have no case and their values have. The last value has a Cyrillic letter.
        let tags = [
            json!({"ROLE": "web"}),
            json!({"role": "WEB"}),
            json!({"roles": "web"}),
            json!({"role": "w\u{435}b"}),
        ];
        for ((name, host), tags) in [("a", 4), ("b", 5), ("c", 6), ("d", 7)].into_iter().zip(tags) {
            machines.push(site.vm(name, host, json!({"tags": tags})).await);
        }
        site.rule("net", "allow-ssh", "Allow", 300, "22", "198.51.100.0/24").await;
        let scope = json!([{"name": "web", "azureScope": {"id": site.group(), "tags": {"role": "web"}}}]);
        site.guarded_by("web", &json!({"targets": scope})).await;
        let begun = Timestamp::now();

        let target = |more: Value| {
            let mut target = json!({"name": "web"});
            target.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            json!({"targets": [target]})
        };
        let shouted = |id: &str| id.to_uppercase().replace("/SUBSCRIPTIONS", "/subscriptions");
        for (number, machine) in machines[1..].iter().enumerate() {
            let ways = [
                json!({"machine": machine.name}),
                json!({"id": machine.id}),
                json!({"id": shouted(&machine.id)}),
            ];
            for (way, more) in ways.into_iter().enumerate() {
                let name = format!("other-{number}-{way}");
                site.denied_in(&name, &target(more), "TargetNotAllowed", "has no such machine").await;
            }
        }
        let alike = ["\u{430}", "\u{ff41}", "a\u{200b}", "a/../b", "%61"];
        for (number, name) in alike.into_iter().enumerate() {
            let more = target(json!({"machine": name}));
            site.denied_in(&format!("alike-{number}"), &more, "TargetNotAllowed", "has no such machine")
                .await;
        }
        let theirs = machines[0].id.replace("/00000000-0000-0000-0000-", "/00000000-0000-0000-9999-");
        site.refused_in("theirs", &target(json!({"id": theirs})), "has no machine /subscriptions/").await;
        let up = format!("{}/../site/providers/Microsoft.Compute/virtualMachines/b", site.group());
        site.refused_in("up", &target(json!({"id": up})), "must be the id of a virtual machine").await;
        site.refused_in("target", &json!({"targets": [{"name": "w\u{435}b"}]}), "has no target named").await;
        let mut named = site.wanted("policy", "web", &json!({}));
        named["spec"]["policyRef"]["name"] = json!(site.name("w\u{435}b"));
        let sent = site.send(&site.kubectl(User::Developer), &[], &named).await;
        assert_eq!(sent.code, 0, "{sent:?}");
        site.says("jitreq/policy", "Approved", "False", "PolicyNotFound", "there is no JitPolicy").await;
        named["metadata"]["name"] = json!(site.name("w\u{435}b"));
        let sent = site.send(&site.kubectl(User::Developer), &[], &named).await;
        assert!(sent.code != 0 && sent.stderr.contains("RFC 1123"), "{sent:?}");

        site.some_rounds().await;
        for machine in &machines {
            assert_eq!(site.exposed(REQUESTER, &machine.ip, 22, begun).await, [], "{}", machine.name);
        }
        // The one that is meant is reached, in whatever case.
        let more = target(json!({"machine": "A"}));
        site.asks_as(&site.kubectl(User::Developer), "own", "web", &more).await;
        site.state("jitreq/own", "Active").await;
        for machine in &machines {
            assert_eq!(
                site.passes(REQUESTER, &machine.ip, 22).await,
                machine.name == "a",
                "{}",
                machine.name
            );
        }
        site.kubectl_delete("jitreq/own").await;
        site.kubectl_delete("jitreq/policy").await;
        site.kubectl_delete("jitpol/web").await;
    });
}

/// Gives what was `a`'s to `b`, as an administrator of the cloud can.
async fn gives_away(site: &Site, what: &str, a: &Vm, b: &Vm) {
    let address = |to: String| {
        move |nic: &mut Value| {
            nic["properties"]["ipConfigurations"][0]["properties"]["privateIPAddress"] = json!(to);
        }
    };
    if what == "address" {
        site.change(&a.nic, address(site.address(9))).await;
        site.change(&b.nic, address(a.ip.clone())).await;
        return;
    }
    let spare = site.vm("spare", 9, json!({})).await;
    site.delete(&spare.id).await;
    let interfaces = |nics: Vec<Value>| {
        move |vm: &mut Value| vm["properties"]["networkProfile"]["networkInterfaces"] = json!(nics)
    };
    let nic = |id: &str, primary: bool| json!({"id": id, "properties": {"primary": primary}});
    site.change(&a.id, interfaces(vec![nic(&spare.nic, true)])).await;
    site.change(&b.id, interfaces(vec![nic(&b.nic, true), nic(&a.nic, false)])).await;
}

/// One request lives and one waits, and what they were planned for becomes another machine's.
async fn moved(site: Site, what: &str) {
    let a = site.usual().await;
    let b = site.vm("b", 5, json!({})).await;
    site.guarded("web", &a, 1).await;
    site.lock("other", &[&b]).await;
    let (developer, approver) = (site.kubectl(User::Developer), site.kubectl(User::Approver));
    site.asks_as(&developer, "live", "web", &json!({})).await;
    let live = site.planned("jitreq/live").await;
    site.approves(&approver, ("live", "web"), &live, true, "under JitPolicy").await;
    site.state("jitreq/live", "Active").await;
    assert!(site.passes(REQUESTER, &a.ip, 22).await);
    site.asks_as(&developer, "waits", "web", &json!({})).await;
    let waits = site.planned("jitreq/waits").await;

    gives_away(&site, what, &a, &b).await;
    let revoked = site.state("jitreq/live", "Revoked").await;
    assert_eq!(condition(&revoked, "Active")["reason"], "MachineChanged", "{:#}", revoked["status"]);
    let anew = site
        .until("is planned anew", "jitreq/waits", |found| {
            found["status"]["planHash"] != waits["status"]["planHash"]
        })
        .await;
    assert!(!anew["status"]["rules"].to_string().contains(&a.ip), "{:#}", anew["status"]["rules"]);
    site.approves(&approver, ("stale", "web"), &waits, false, "approves another plan").await;
    // The lock has followed both of them.
    for ip in [&a.ip, &site.address(9)] {
        site.until_passes("198.51.100.23", ip, 22, false).await;
        site.until_passes(REQUESTER, ip, 22, false).await;
    }
    let closed = Timestamp::now();
    site.approves(&approver, ("fresh", "web"), &anew, true, "under JitPolicy").await;
    site.state("jitreq/waits", "Active").await;
    assert!(site.passes(REQUESTER, &site.address(9), 22).await, "where a is now");
    site.some_rounds().await;
    assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, [], "what is b's now");
    for object in ["jitreq/live", "jitreq/waits", "jitpol/web", "jitpol/other"] {
        site.kubectl_delete(object).await;
    }
}

#[test]
fn an_address_that_moves_to_another_machine_takes_no_grant_along() {
    on_site(|site| moved(site, "address"));
}

#[test]
fn an_interface_that_moves_to_another_machine_takes_no_grant_along() {
    on_site(|site| moved(site, "interface"));
}

#[test]
fn parts_that_are_allowed_do_not_add_up_to_what_is_not() {
    on_site(|site| async move {
        let a = site.usual().await;
        let cidrs = |all: &[&str]| all.iter().map(|cidr| json!({"cidr": cidr})).collect::<Value>();
        let port = |port: u16, allowed: &[&str]| json!({"port": port, "allowedSources": cidrs(allowed)});
        // Three quarters of everything, one half of something in two pieces, and two ports with one between them.
        let spec = json!({"targets": targets(&[&a]), "ports": [
            port(22, &["0.0.0.0/1", "192.0.0.0/2"]), port(24, &["0.0.0.0/1", "192.0.0.0/2"]),
        ]});
        site.guarded_by("web", &spec).await;
        let locked = Timestamp::now();
        let ask = |port: Value, sources: &[&str]| {
            let mut port = port;
            port["sources"] = cidrs(sources);
            json!({"ports": [port]})
        };
        let ssh = || json!({"port": 22});
        let only = "allows only 22 from 0.0.0.0/1, 192.0.0.0/2";
        site.refused_in("half", &ask(ssh(), &["128.0.0.0/1", "0.0.0.0/1"]), only).await;
        site.refused_in("rest", &ask(ssh(), &["128.0.0.0/2"]), only).await;
        site.refused_in("six", &ask(ssh(), &["::/0"]), only).await;
        let mapped = "IPv4-mapped networks are written as IPv4";
        site.refused_in("mapped", &ask(ssh(), &["::ffff:0:0/96"]), mapped).await;
        site.refused_in("mapped", &ask(ssh(), &["::ffff:203.0.113.7/128"]), mapped).await;
        site.refused_in("digits", &ask(ssh(), &["\u{662}03.0.113.7/32"]), "must be a network in CIDR").await;
        site.refused_in("octal", &ask(ssh(), &["0313.0.113.7/32"]), "must be a network in CIDR").await;
        // What only the controller can add up.
        site.denied_in("all", &ask(ssh(), &["0.0.0.0/0"]), "SourceNotAllowed", "0.0.0.0/0").await;
        let through = json!({"port": 22, "endPort": 24});
        site.denied_in("between", &ask(through, &["203.0.113.7/32"]), "PortNotAllowed", "22-24").await;
        site.some_rounds().await;
        for source in [REQUESTER, "130.1.2.3", "198.51.100.23", "2001:db8::7"] {
            for port in [22, 23, 24] {
                if port != 23 && !source.contains(':') {
                    assert_eq!(site.exposed(source, &a.ip, port, locked).await, [], "{source} {port}");
                }
            }
        }

        // The same half twice is that half once.
        site.asks_as(
            &site.kubectl(User::Developer),
            "twice",
            "web",
            &ask(ssh(), &["0.0.0.0/1", "0.0.0.0/1"]),
        )
        .await;
        site.state("jitreq/twice", "Active").await;
        assert!(site.passes("1.2.3.4", &a.ip, 22).await);
        for source in ["130.1.2.3", "203.0.113.7"] {
            assert!(!site.passes(source, &a.ip, 22).await, "{source}");
        }
        site.kubectl_delete("jitreq/twice").await;
        site.kubectl_delete("jitpol/web").await;
    });
}
