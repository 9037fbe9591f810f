//! A cloud that refuses, fails, forgets and is late, as packets and conditions show it.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use portcullis_harness::install::NAMESPACE;
use portcullis_harness::{Controller, Lifetime, eventually};
use reqwest::Method;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Mutex;

use crate::ground::{
    LIMITED, LIMITED_CLIENT, REQUESTER, STRANGER, Site, WRONG_SECRET, WRONG_TENANT, hurry, on_site,
    on_site_of, targets,
};
use crate::walk::Play;

const ANOTHER: &str = "203.0.113.8";

/// Faults are cleared all at once, so one test at a time has any.
pub(crate) static FAULTS: Mutex<()> = Mutex::const_new(());

/// The site's own part of the cloud, as the beginning of a pattern.
pub(crate) fn here(site: &Site, rest: &str) -> String {
    format!("{}{rest}", site.group())
}

#[test]
fn a_wrong_secret_is_said_and_nothing_is_claimed() {
    on_site_of(WRONG_SECRET, |site| async move { signed_out(&site, "secret").await });
}

#[test]
fn a_wrong_tenant_is_said_and_nothing_is_claimed() {
    on_site_of(WRONG_TENANT, |site| async move {
        signed_out(&site, "99999999-9999-9999-9999-999999999999").await;
    });
}

async fn signed_out(site: &Site, message: &str) {
    let a = site.usual().await;
    site.policy("web", &json!({"targets": targets(&[&a])})).await;
    site.says("jitpol/web", "Ready", "False", "Unauthenticated", message).await;
    site.says("jitpol/web", "LockdownEffective", "False", "Unauthenticated", "").await;
    site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
    site.some_rounds().await;
    let request = site.get("jitreq/mine").await.unwrap();
    assert_eq!(request["status"]["state"], "Pending", "{:#}", request["status"]);
    assert_eq!(site.ours("net").await, Vec::<Value>::new());
    let text = request.to_string() + &site.get("jitpol/web").await.unwrap().to_string();
    assert!(!text.contains("not-the-secret"));
    site.kubectl_delete("jitreq/mine").await;
    site.kubectl_delete("jitpol/web").await;
}

#[test]
fn a_right_that_is_missing_is_named_and_its_grant_is_enough_to_go_on() {
    on_site_of(LIMITED, |site| async move {
        let a = site.usual().await;
        let may = async |permissions: Value| {
            let body =
                json!({"clientId": LIMITED_CLIENT, "secrets": ["limited"], "permissions": permissions});
            site.control("principals", &body).await;
        };
        may(json!([{"actions": ["*/read"]}])).await;
        let scope = json!([{"name": "all", "azureScope": {"id": site.group()}}]);
        site.policy("web", &json!({"targets": scope, "deletionPolicy": "Unlock"})).await;
        let action = "Microsoft.Network/networkSecurityGroups/securityRules/write";
        site.says("jitpol/web", "Ready", "False", "NotPermitted", action).await;
        site.says("jitpol/web", "Stalled", "True", "NotPermitted", action).await;
        assert!(site.passes(STRANGER, &a.ip, 22).await);

        may(json!([{"actions": ["*"]}])).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        let locked = Timestamp::now();

        // What can no longer be read has not gone: its lock stands, also where the policy says Unlock.
        may(json!([{"actions": ["*"], "notActions": ["Microsoft.Network/networkInterfaces/read"]}])).await;
        site.until("the interface cannot be read", "jitpol/web", |policy| {
            policy["status"]["conditions"].to_string().contains("Microsoft.Network/networkInterfaces/read")
        })
        .await;
        site.some_rounds().await;
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        may(json!([{"actions": ["*"]}])).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert_eq!(site.exposed(STRANGER, &a.ip, 22, locked).await, []);
        site.kubectl_delete("jitpol/web").await;
        assert_eq!(site.ours("net").await, Vec::<Value>::new(), "Unlock removes exactly ours");
        assert!(site.passes(STRANGER, &a.ip, 22).await);
    });
}

#[test]
fn a_group_that_is_deleted_under_its_lock_is_said_and_blocks_nothing() {
    on_site(|site| async move {
        let a = site.vm("a", 4, json!({"subnetNsg": null, "nicNsg": "own"})).await;
        site.rule("own", "allow-ssh", "Allow", 300, "22", "Internet").await;
        site.policy("web", &json!({"targets": targets(&[&a]), "deletionPolicy": "Unlock"})).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/mine", "Active").await;
        site.change(&a.nic, |nic| {
            nic["properties"].as_object_mut().unwrap().remove("networkSecurityGroup");
        })
        .await;
        site.delete(&site.nsg("own")).await;
        site.target("jitpol/web", &a.id, "Unsupported", "NoFirewall").await;
        site.until("settled", "jitreq/mine", |found| found["status"]["settled"] == true).await;
        // Ended where the gate saw the group gone first, revoked where the inventory saw the machine without it.
        site.until("ended", "jitreq/mine", |found| {
            matches!(found["status"]["state"].as_str(), Some("Ended" | "Revoked"))
        })
        .await;
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn under_a_resource_lock_a_close_turns_the_rule_into_a_deny_that_goes_when_the_lock_does() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        site.request("mine", "web", "a", 22, REQUESTER, "30s").await;
        site.state("jitreq/mine", "Active").await;
        let allow = site.ours_that("net", "Allow").await.remove(0)["name"].clone();
        let lock = format!("{}/providers/Microsoft.Authorization/locks/keep", site.nsg("net"));
        site.put(&lock, json!({"properties": {"level": "CanNotDelete"}})).await;
        let request = site.state("jitreq/mine", "Expired").await;
        assert!(request["status"]["closedAt"].is_string());
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        let denies = site.ours_that("net", "Deny").await;
        assert!(denies.iter().any(|rule| rule["name"] == allow), "{denies:#?}");
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());
        let closed = Timestamp::now();
        site.delete(&lock).await;
        // What locks there are is remembered for a minute.
        eventually("the rest is deleted", Duration::from_secs(90), || async {
            let ours = site.ours("net").await;
            anyhow::ensure!(ours.iter().all(|rule| rule["name"] != allow), "{ours:#?}");
            Ok::<_, anyhow::Error>(())
        })
        .await
        .unwrap();
        assert_eq!(site.exposed(REQUESTER, &a.ip, 22, closed).await, []);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_throttled_open_waits_as_long_as_it_is_told_and_one_cut_short_is_not_doubled() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let _turn = FAULTS.lock().await;
        let path = here(&site, "/.*/securityRules/portcullis-.*-allow-");
        site.control(
            "faults",
            &json!([{"name": "throttle", "method": "PUT", "path": path, "count": 1, "effect": {
                "status": {"status": 429, "code": "TooManyRequests", "retryAfter": 3}}}]),
        )
        .await;
        site.request("throttled", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/throttled", "Active").await;
        let puts = site.tries(&path).await;
        assert_eq!(puts.len(), 2, "{puts:#?}");
        assert_eq!(puts[0]["status"], 429);
        let at = |entry: &Value| entry["time"].as_str().unwrap().parse::<Timestamp>().unwrap();
        let waited = at(&puts[1]).duration_since(at(&puts[0]));
        assert!(waited >= SignedDuration::from_secs(3), "{waited:#}");
        site.kubectl_delete("jitreq/throttled").await;

        let before = site.tries(&path).await.len();
        site.control(
            "faults",
            &json!([{"name": "cut", "method": "PUT", "path": path, "count": 1, "effect": {
                "timeoutAfterCommit": "1s"}}]),
        )
        .await;
        site.request("cut", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/cut", "Active").await;
        assert_eq!(site.ours_that("net", "Allow").await.len(), 1);
        let names: std::collections::BTreeSet<String> =
            site.tries(&path).await[before..].iter().map(|put| put["path"].to_string()).collect();
        assert_eq!(names.len(), 1, "one rule, one name: {names:?}");
        site.kubectl_delete("jitreq/cut").await;
        assert_eq!(site.ours_that("net", "Allow").await, Vec::<Value>::new());
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_cloud_that_fails_across_a_deadline_is_closed_soon_after_it_recovers() {
    on_site(|site| async move {
        let a = site.usual().await;
        site.lock("web", &[&a]).await;
        let _turn = FAULTS.lock().await;
        site.request("mine", "web", "a", 22, REQUESTER, "30s").await;
        let request = site.state("jitreq/mine", "Active").await;
        let expires: Timestamp = request["status"]["expiresAt"].as_str().unwrap().parse().unwrap();
        let until = |at: Timestamp| {
            tokio::time::sleep(Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default())
        };
        until(expires - SignedDuration::from_secs(3)).await;
        site.control(
            "faults",
            &json!([{"name": "storm", "path": here(&site, ""), "effect": {"status": {"status": 503}}}]),
        )
        .await;
        until(expires + SignedDuration::from_secs(4)).await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await, "nobody could close it");
        let request = site.get("jitreq/mine").await.unwrap();
        assert_eq!(
            request["status"]["state"], "Closing",
            "success is never claimed: {:#}",
            request["status"]
        );
        site.says("jitreq/mine", "Active", "False", "Expired", "not closed yet").await;
        let recovered = Timestamp::now();
        site.ground.play.stage.simulator.control(Method::DELETE, "faults", None).await.unwrap();
        site.until_passes(REQUESTER, &a.ip, 22, false).await;
        let late = Timestamp::now().duration_since(recovered);
        // Tries are at most 5 s apart, however long the storm was.
        assert!(late < SignedDuration::from_secs(10), "{late:#}");
        let request = site.state("jitreq/mine", "Expired").await;
        assert!(request["status"]["closedAt"].is_string());
        site.kubectl_delete("jitpol/web").await;
    });
}

/// Rules of others at these priorities, that let nothing in to the locked port.
fn fillers(priorities: std::ops::Range<u16>) -> impl Iterator<Item = Value> {
    priorities.map(|priority| {
        json!({"name": format!("filler-{priority}"), "properties": {
            "direction": "Inbound", "access": "Allow", "priority": priority, "protocol": "Tcp",
            "sourceAddressPrefix": "*", "sourcePortRange": "*", "destinationAddressPrefix": "*",
            "destinationPortRange": "443",
        }})
    })
}

async fn with_rules(site: &Site, rules: Vec<Value>) {
    let body = json!({"location": "westeurope", "properties": {"securityRules": rules}});
    site.put(&site.nsg("net"), body).await;
}

fn allow_ssh(priority: u16) -> Value {
    let mut rule = fillers(priority..priority + 1).next().unwrap();
    rule["name"] = json!("allow-ssh");
    rule["properties"]["destinationPortRange"] = json!("22");
    rule
}

#[test]
fn a_group_without_room_is_said_and_the_first_free_place_is_the_locks() {
    on_site(|site| async move {
        let a = site.vm("a", 4, json!({})).await;
        with_rules(&site, fillers(1000..1999).chain([allow_ssh(300)]).collect()).await;
        site.policy("web", &json!({"targets": targets(&[&a])})).await;
        site.says("jitpol/web", "Ready", "False", "FirewallFull", "holds 1000 rules").await;
        site.says("jitpol/web", "Stalled", "True", "FirewallFull", "").await;
        assert!(site.passes(STRANGER, &a.ip, 22).await);
        let filler = |priority: u16| format!("{}/securityRules/filler-{priority}", site.nsg("net"));
        site.delete(&filler(1000)).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        // Grants leave room for locks.
        site.delete(&filler(1001)).await;
        site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
        let request = site.state("jitreq/mine", "Failed").await;
        assert!(request["status"]["conditions"].to_string().contains("FirewallFull"), "{request:#}");
        site.kubectl_delete("jitpol/web").await;
    });
}

#[test]
fn a_full_priority_band_is_said_and_the_first_free_number_is_the_locks() {
    on_site(|site| async move {
        let a = site.vm("a", 4, json!({})).await;
        with_rules(&site, fillers(100..200).chain([allow_ssh(200)]).collect()).await;
        site.policy("web", &json!({"targets": targets(&[&a])})).await;
        site.says("jitpol/web", "Ready", "False", "NoPriorityRoom", "above rule allow-ssh at priority 200")
            .await;
        assert!(site.passes(STRANGER, &a.ip, 22).await);
        site.delete(&format!("{}/securityRules/filler-150", site.nsg("net"))).await;
        site.says("jitpol/web", "LockdownEffective", "True", "Configured", "").await;
        assert!(!site.passes(STRANGER, &a.ip, 22).await);
        // The lock has the only number; a grant would need one too.
        let why = "no priority number is left above the deny at 150, which has to stand above rule allow-ssh";
        site.says("jitpol/web", "Ready", "False", "NoPriorityRoom", why).await;
        site.request("mine", "web", "a", 22, REQUESTER, "1h").await;
        let request = site.state("jitreq/mine", "Failed").await;
        assert!(request["status"]["conditions"].to_string().contains("NoPriorityRoom"), "{request:#}");
        assert!(!site.passes(REQUESTER, &a.ip, 22).await);
        site.delete(&format!("{}/securityRules/filler-120", site.nsg("net"))).await;
        site.says("jitpol/web", "Ready", "True", "Configured", "").await;
        site.request("again", "web", "a", 22, REQUESTER, "1h").await;
        site.state("jitreq/again", "Active").await;
        assert!(site.passes(REQUESTER, &a.ip, 22).await);
        site.kubectl_delete("jitpol/web").await;
    });
}

/// An address at which the cloud is not, until somebody lets it be.
struct Absent {
    address: std::net::SocketAddr,
    cloud: String,
}

impl Absent {
    async fn before(cloud: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        Self {
            address: listener.local_addr().unwrap(),
            cloud: cloud.trim_start_matches("https://").to_owned(),
        }
    }

    async fn appear(self) {
        let listener = TcpListener::bind(self.address).await.unwrap();
        tokio::spawn(async move {
            while let Ok((mut near, _)) = listener.accept().await {
                let cloud = self.cloud.clone();
                tokio::spawn(async move {
                    let mut far = TcpStream::connect(cloud).await?;
                    tokio::io::copy_bidirectional(&mut near, &mut far).await
                });
            }
        });
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_a_cloud_a_dry_run_and_a_stop_in_the_middle_of_a_write() {
    let play = Play::new().await;
    let simulator = &play.stage.simulator;
    let cloud = Absent::before(&simulator.announcement().tls_url).await;
    let mut setup = play.stage.setup().await.unwrap();
    hurry(&mut setup.config);
    for field in ["resourceManager", "authority"] {
        setup.config["cloud"][field] = json!(format!("https://{}", cloud.address));
    }
    setup.lifetime = Lifetime::Leashed;
    let mut controller = Controller::start_unready(setup).unwrap();
    play.policy("web-1", &play.one_machine("web-1")).await;
    assert_eq!(play.condition("jitpol/web-1", "Ready", "False").await, "CloudUnavailable");
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(controller.ended().unwrap(), None, "no crash loop");
    cloud.appear().await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    assert!(!play.passes(STRANGER, "web-1", 22).await);
    assert!(controller.stop().await.unwrap().success());

    // A dry run says what it would do to a new policy, and does nothing, not even for a request.
    controller.setup().arguments.push("--dry-run".to_owned());
    controller.restart().await.unwrap();
    let before = ours_written(&play).await;
    play.policy("win-1", &play.one_machine("win-1")).await;
    assert_eq!(play.condition("jitpol/win-1", "LockdownEffective", "False").await, "DryRun");
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "1h").await;
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(play.passes(STRANGER, "win-1", 3389).await && !play.passes(REQUESTER, "web-1", 22).await);
    assert_eq!(ours_written(&play).await, before, "nothing is written");
    assert!(controller.stop().await.unwrap().success());

    // Told to stop while the request's rules are being written, it stops in time, and goes on where it was.
    controller.setup().arguments.clear();
    controller.restart().await.unwrap();
    play.condition("jitpol/win-1", "Ready", "True").await;
    let slow = json!({"operations": {"securityRules.write": "6s"}});
    simulator.control(Method::POST, "latency", Some(&slow)).await.unwrap();
    // The dry run's request is out of the way, and this one has a source of its own: no packet of one is one of the
    // other.
    play.developer.run(&["-n", NAMESPACE, "delete", "jitreq", "mine", "--timeout=60s"]).await.unwrap();
    play.request("slow", "web-1", "web-1", 22, ANOTHER, "1h").await;
    play.reaches("jitreq/slow", "/status/state", "Opening").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(controller.stop().await.unwrap().success(), "{}", controller.log_text().unwrap());
    controller.restart().await.unwrap();
    controller.restart().await.unwrap();
    play.reaches("jitreq/slow", "/status/state", "Active").await;
    assert!(play.passes(ANOTHER, "web-1", 22).await && !play.passes(REQUESTER, "web-1", 22).await);
    assert!(controller.stop().await.unwrap().success());
}

/// How many writes of rules of ours there were.
async fn ours_written(play: &Play) -> usize {
    let path = "activity?mutating=true&path=portcullis-";
    let answer = play.stage.simulator.control(Method::GET, path, None).await.unwrap();
    answer["value"].as_array().unwrap().len()
}
