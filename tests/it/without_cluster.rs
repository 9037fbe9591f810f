//! `portcullis sweep` and `portcullis adopt`: the program and the cloud, and no cluster. Packets decide.

use std::process::{Command, Output};

use jiff::{SignedDuration, Timestamp};
use portcullis::plan::names::{Cluster, allow_name, deny_name, description, exempt_name};
use portcullis_harness::simulator::SimulatorOptions;
use portcullis_harness::{Simulator, World};
use reqwest::Method;
use serde_json::{Value, json};

const OWNER: &str = "99999999-1111-4222-8333-444444444444";
const REQUESTER: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.23";

/// A cloud, and a configuration to reach it by.
struct Cloud {
    simulator: Simulator,
    world: World,
    folder: tempfile::TempDir,
}

impl Cloud {
    async fn new() -> Self {
        let simulator = Simulator::start(SimulatorOptions::default()).await.unwrap();
        let world = World::create(&simulator).await.unwrap();
        let cloud = Self { simulator, world, folder: tempfile::tempdir().unwrap() };
        cloud.configure(|_| {});
        cloud
    }

    fn configure(&self, change: impl FnOnce(&mut Value)) {
        let cloud = self.simulator.announcement();
        let secret = self.folder.path().join("secret");
        std::fs::write(&secret, &cloud.client_secret).unwrap();
        let mut config = json!({
            "clusterId": "gone",
            "cloud": {"name": "Custom", "resourceManager": cloud.tls_url, "authority": cloud.tls_url, "caFile": cloud.ca_file},
            "credentials": [{"name": "default", "clientSecret": {
                "tenantId": cloud.tenant_id, "clientId": cloud.client_id, "secretFile": secret}}],
            "namespaces": [{"name": "team-web", "credential": "default",
                "scopes": [format!("/subscriptions/{}", cloud.subscription_id)]}],
        });
        change(&mut config);
        std::fs::write(self.folder.path().join("config.yaml"), config.to_string()).unwrap();
    }

    fn run(&self, command: &str, arguments: &[&str]) -> Output {
        let program = portcullis_harness::program("portcullis", "PORTCULLIS").unwrap();
        let config = self.folder.path().join("config.yaml");
        let mut run = Command::new(program);
        run.arg(command).arg("--config").arg(config).args(arguments);
        run.env_remove("KUBECONFIG").env_remove("RUST_LOG").output().unwrap()
    }

    async fn control(&self, path: &str, body: &Value) {
        self.simulator.control(Method::POST, path, Some(body)).await.unwrap();
    }

    async fn rule(&self, nsg: &str, name: &str, properties: Value) {
        let mut all = json!({"direction": "Inbound", "sourcePortRange": "*", "protocol": "Tcp",
            "destinationAddressPrefix": "*", "destinationPortRange": "22", "sourceAddressPrefix": "*"});
        for (key, value) in properties.as_object().unwrap() {
            all[key] = value.clone();
        }
        let id = format!("{}/securityRules/{name}", self.world.nsg("web", nsg));
        self.simulator.put(&id, &json!({"properties": all})).await.unwrap();
    }

    /// An allow of the cluster of this id, as its controller has written it.
    async fn allow(&self, cluster: &Cluster, nsg: &str, seconds: i64, priority: u16) -> String {
        let deadline = Timestamp::now() + SignedDuration::from_secs(seconds);
        let name = allow_name(cluster, OWNER, deadline, u32::from(priority));
        let said = description(cluster, OWNER, Some(deadline));
        let source = format!("{REQUESTER}/32");
        self.rule(nsg, &name, json!({"access": "Allow", "priority": priority, "description": said, "sourceAddressPrefix": source}))
            .await;
        name
    }

    /// A lock of the cluster of this id on every group on the way to web-1.
    async fn lock(&self, cluster: &Cluster) {
        let machine = &self.world.machine("web-1").unwrap().private_address;
        for nsg in ["web-1", "web-subnet"] {
            let said = description(cluster, OWNER, None);
            let deny = json!({"access": "Deny", "priority": 190, "description": said,
                "destinationAddressPrefix": machine});
            self.rule(nsg, &deny_name(cluster, OWNER, 0), deny).await;
            let exempt = json!({"access": "Allow", "priority": 189, "description": said,
                "sourceAddressPrefix": "AzureLoadBalancer", "destinationAddressPrefix": machine});
            self.rule(nsg, &exempt_name(cluster, OWNER, 0), exempt).await;
        }
    }

    async fn names(&self, nsg: &str) -> Vec<String> {
        let read = self.simulator.get(&self.world.nsg("web", nsg)).await.unwrap();
        let rules = read["properties"]["securityRules"].as_array().unwrap();
        rules.iter().map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
    }

    async fn passes(&self, source: &str) -> bool {
        let address = &self.world.machine("web-1").unwrap().private_address;
        self.simulator.probe(source, address, 22, "Tcp").await.unwrap().allowed
    }

    async fn writes(&self) -> usize {
        let answer = self.simulator.control(Method::GET, "activity?mutating=true", None).await.unwrap();
        answer["value"].as_array().unwrap().len()
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn report(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", text(output)))
}

fn in_state(report: &Value, state: &str) -> usize {
    report["rules"].as_array().unwrap().iter().filter(|rule| rule["state"] == state).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_overdue_is_closed_with_the_cluster_gone_and_nothing_else_is_touched() {
    let cloud = Cloud::new().await;
    let cluster = Cluster::new("gone", &[]);
    cloud.lock(&cluster).await;
    for nsg in ["web-1", "web-subnet"] {
        cloud.allow(&cluster, nsg, -60, 150).await;
    }
    let live = cloud.allow(&cluster, "web-1", 3600, 151).await;
    let theirs = cloud.allow(&Cluster::new("another", &[]), "web-1", -60, 152).await;
    // A renamed copy, by its description; and what merely resembles it.
    let said = description(&cluster, OWNER, Some(Timestamp::now() - SignedDuration::from_secs(5)));
    cloud.rule("win-1", "innocent", json!({"access": "Allow", "priority": 160, "description": said})).await;
    cloud
        .rule("win-1", "bob", json!({"access": "Allow", "priority": 161, "description": "portcullis keep"}))
        .await;
    // An exemption whose deny somebody has removed: a controller would take it away, a sweep has no business with it.
    let alone = exempt_name(&cluster, OWNER, 7);
    let machine = cloud.world.machine("win-1").unwrap().private_address.clone();
    let exempt = json!({"access": "Allow", "priority": 170, "description": description(&cluster, OWNER, None),
        "sourceAddressPrefix": "AzureLoadBalancer", "destinationAddressPrefix": machine});
    cloud.rule("win-1", &alone, exempt).await;
    assert!(cloud.passes(REQUESTER).await, "else the test proves nothing");

    let before = cloud.writes().await;
    let dry = cloud.run("sweep", &["--dry-run"]);
    assert_eq!((dry.status.code(), cloud.writes().await), (Some(3), before), "{}", text(&dry));
    assert!(
        text(&dry).contains("nothing was written: 3 overdue and left, 0 closed, 1 live"),
        "{}",
        text(&dry)
    );

    let swept = cloud.run("sweep", &["-o", "json"]);
    assert_eq!(swept.status.code(), Some(0), "{}", text(&swept));
    let said = report(&swept);
    assert_eq!((in_state(&said, "Closed"), in_state(&said, "Live")), (3, 1), "{said:#}");
    assert!(!cloud.passes(REQUESTER).await && !cloud.passes(STRANGER).await);
    let left = cloud.names("web-1").await;
    for name in [&live, &theirs, &deny_name(&cluster, OWNER, 0), &exempt_name(&cluster, OWNER, 0)] {
        assert!(left.contains(name), "{name} is gone; {left:?}");
    }
    let left = cloud.names("win-1").await;
    assert!(left.contains(&"bob".to_owned()) && left.contains(&alone), "{left:?}");
    let again = cloud.run("sweep", &[]);
    assert_eq!(again.status.code(), Some(0));
    assert!(text(&again).starts_with("0 overdue and left, 0 closed, 1 live; "), "{}", text(&again));
}

#[tokio::test(flavor = "multi_thread")]
async fn deadlines_are_judged_by_the_clouds_clock_and_a_wrong_one_stops_the_sweep() {
    let cloud = Cloud::new().await;
    let cluster = Cluster::new("gone", &[]);
    cloud.allow(&cluster, "web-1", 60, 150).await;
    cloud.control("clock", &json!({"dateSkew": "90s"})).await;
    let refused = cloud.run("sweep", &[]);
    assert_eq!(refused.status.code(), Some(1));
    let said = text(&refused);
    assert!(said.contains("s ahead of this machine's") && said.contains("--force"), "{said}");
    let forced = cloud.run("sweep", &["--force", "-o", "json"]);
    assert_eq!(
        (forced.status.code(), in_state(&report(&forced), "Closed")),
        (Some(0), 1),
        "{}",
        text(&forced)
    );
    // Behind, nothing is closed before its time.
    let live = cloud.allow(&cluster, "web-1", -30, 150).await;
    cloud.control("clock", &json!({"dateSkew": "-90s"})).await;
    let forced = cloud.run("sweep", &["--force", "-o", "json"]);
    assert_eq!((forced.status.code(), in_state(&report(&forced), "Live")), (Some(0), 1), "{}", text(&forced));
    assert!(cloud.names("web-1").await.contains(&live));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_could_not_be_swept_is_said_and_the_rest_is_closed() {
    let cloud = Cloud::new().await;
    let cluster = Cluster::new("gone", &[]);
    let stuck = cloud.allow(&cluster, "web-1", -60, 150).await;
    cloud.allow(&cluster, "web-subnet", -60, 150).await;
    let refuse = json!({"method": "DELETE", "path": "/networkSecurityGroups/web-1/", "count": 1000,
        "effect": {"status": {"status": 403}}});
    cloud.control("faults", &refuse).await;
    let swept = cloud.run("sweep", &["--timeout", "3", "-o", "json"]);
    assert_eq!(swept.status.code(), Some(4), "{}", text(&swept));
    let said = report(&swept);
    assert_eq!((in_state(&said, "Closed"), in_state(&said, "Overdue")), (1, 1), "{said:#}");
    let error = said["rules"].as_array().unwrap().iter().find(|rule| rule["name"] == stuck.as_str()).unwrap();
    assert!(error["error"].as_str().unwrap().contains("AuthorizationFailed"), "{error}");

    let (subscription, other) =
        (&cloud.simulator.announcement().subscription_id, "11111111-2222-4333-8444-555555555555");
    let scopes =
        [format!("/subscriptions/{subscription}/resourceGroups/web"), format!("/subscriptions/{other}")];
    let arguments = ["--dry-run", "--scope", &scopes[0], "--scope", &scopes[1]];
    let partial = cloud.run("sweep", &arguments);
    assert_eq!(partial.status.code(), Some(4), "{}", text(&partial));
    assert!(text(&partial).contains(&format!("not swept: /subscriptions/{other}")), "{}", text(&partial));
    for (arguments, code, says) in [
        (vec!["--scope", scopes[1].as_str()], 1, "no scope could be read"),
        (vec!["--scope", "web"], 1, "--scope web: "),
        (vec!["--scope", &cloud.world.network()], 1, "give the id of a subscription, a resource group"),
        (
            vec!["--credential", "nobody"],
            1,
            "--credential nobody: the configuration has no such credential; it has default",
        ),
        (vec!["--output", "yaml"], 2, "--output"),
    ] {
        let refused = cloud.run("sweep", &arguments);
        assert_eq!(refused.status.code(), Some(code), "{arguments:?}: {}", text(&refused));
        assert!(text(&refused).contains(says), "{arguments:?}: {}", text(&refused));
    }
}

/// From a workstation: a token that `az` has got, and a configuration that knows no namespace.
#[tokio::test(flavor = "multi_thread")]
async fn a_given_token_and_a_given_scope_are_enough() {
    let cloud = Cloud::new().await;
    let cluster = Cluster::new("gone", &[]);
    cloud.allow(&cluster, "web-1", -60, 150).await;
    let token = cloud.folder.path().join("token");
    std::fs::write(&token, cloud.simulator.token().await.unwrap()).unwrap();
    cloud.configure(|config| {
        config["credentials"] = json!([{"name": "me", "accessToken": {"tokenFile": token}}]);
        config["namespaces"] = json!([]);
    });
    let nothing = cloud.run("sweep", &[]);
    assert_eq!(nothing.status.code(), Some(1));
    assert!(text(&nothing).contains("there is nothing to do"), "{}", text(&nothing));
    let scope = cloud.world.group("web");
    let swept = cloud.run("sweep", &["--scope", &scope]);
    assert_eq!(swept.status.code(), Some(0), "{}", text(&swept));
    assert!(text(&swept).contains("0 overdue and left, 1 closed, 0 live"), "{}", text(&swept));
}

#[tokio::test(flavor = "multi_thread")]
async fn locks_of_a_cluster_that_was_rebuilt_come_under_its_new_id_and_no_packet_notices() {
    let cloud = Cloud::new().await;
    let old = Cluster::new("gone", &[]);
    cloud.lock(&old).await;
    let since = Timestamp::now();
    assert!(!cloud.passes(STRANGER).await);
    let none = cloud.run("adopt", &[]);
    assert_eq!(none.status.code(), Some(1));
    assert!(text(&none).contains("previousClusterIds of the configuration is empty"), "{}", text(&none));

    cloud.configure(|config| {
        config["clusterId"] = json!("rebuilt");
        config["previousClusterIds"] = json!(["gone"]);
    });
    let dry = cloud.run("adopt", &["--dry-run", "-o", "json"]);
    assert_eq!((dry.status.code(), in_state(&report(&dry), "ToAdopt")), (Some(3), 4), "{}", text(&dry));
    let adopted = cloud.run("adopt", &[]);
    assert_eq!(adopted.status.code(), Some(0), "{}", text(&adopted));
    assert!(text(&adopted).ends_with("4 adopted, 0 left\n"), "{}", text(&adopted));
    let new = Cluster::new("rebuilt", &[]);
    for nsg in ["web-1", "web-subnet"] {
        let names = cloud.names(nsg).await;
        assert!(
            names.contains(&deny_name(&new, OWNER, 0)) && names.contains(&exempt_name(&new, OWNER, 0)),
            "{names:?}"
        );
        assert!(!names.iter().any(|name| name.contains(old.mark())), "{names:?}");
    }
    let address = &cloud.world.machine("web-1").unwrap().private_address;
    let question = json!({"source": STRANGER, "destination": address, "port": 22, "protocol": "Tcp", "from": since.to_string()});
    let answer = cloud.simulator.control(Method::POST, "exposure", Some(&question)).await.unwrap();
    assert_eq!(answer["intervals"], json!([]), "open meanwhile");
    assert_eq!(cloud.run("adopt", &[]).status.code(), Some(0));
}

/// An identity of its own, with the role that the documentation ships for it, and no action less.
#[tokio::test(flavor = "multi_thread")]
async fn the_role_of_the_sweep_is_enough_and_nothing_of_it_is_for_nothing() {
    let cloud = Cloud::new().await;
    let cluster = Cluster::new("gone", &[]);
    let path = portcullis_harness::checkout().join("docs/azure-role-sweep.json");
    let role: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let actions: Vec<String> = serde_json::from_value(role["Actions"].clone()).unwrap();
    let client = "22222222-2222-2222-2222-222222222222";
    let secret = cloud.folder.path().join("sweeper");
    std::fs::write(&secret, "sweeper").unwrap();
    cloud.configure(|config| {
        config["credentials"][0]["clientSecret"]["clientId"] = json!(client);
        config["credentials"][0]["clientSecret"]["secretFile"] = json!(secret);
    });
    let may = async |actions: &[String]| {
        let permissions = json!([{"actions": actions, "scopes": ["/"]}]);
        let principal = json!({"clientId": client, "secrets": ["sweeper"], "permissions": permissions});
        cloud.control("principals", &principal).await;
    };
    may(&actions).await;
    cloud.allow(&cluster, "web-1", -60, 150).await;
    let machine = cloud.world.machine("web-1").unwrap().id.clone();
    for scope in [vec![], vec!["--scope", machine.as_str()]] {
        let swept = cloud.run("sweep", &scope);
        assert_eq!(swept.status.code(), Some(0), "{}", text(&swept));
    }
    let reads_and_removes =
        |action: &String| action.contains("networkSecurityGroups") || action.contains("virtualMachines");
    for missing in actions.iter().filter(|action| reads_and_removes(action)) {
        let left: Vec<String> = actions.iter().filter(|action| *action != missing).cloned().collect();
        may(&left).await;
        cloud.allow(&cluster, "web-1", -60, 150).await;
        let swept = cloud.run("sweep", &["--timeout", "2", "--scope", &machine]);
        assert_ne!(swept.status.code(), Some(0), "{missing} is not needed");
        may(&actions).await;
        assert_eq!(cloud.run("sweep", &[]).status.code(), Some(0));
    }
    // As the docs say: under a lock against deletion it is said that the allow is left, until rules may be rewritten.
    let group = cloud.world.nsg("web", "web-1");
    let lock = format!("{group}/providers/Microsoft.Authorization/locks/keep");
    let left = cloud.allow(&cluster, "web-1", -60, 150).await;
    cloud.simulator.put(&lock, &json!({"properties": {"level": "CanNotDelete"}})).await.unwrap();
    let swept = cloud.run("sweep", &["--timeout", "5"]);
    assert_eq!(swept.status.code(), Some(4), "{}", text(&swept));
    assert!(text(&swept).contains(&left), "{}", text(&swept));
    let write = "Microsoft.Network/networkSecurityGroups/securityRules/write".to_owned();
    may(&[actions, vec![write]].concat()).await;
    let swept = cloud.run("sweep", &["--timeout", "20"]);
    assert_eq!(swept.status.code(), Some(0), "{}", text(&swept));
}
