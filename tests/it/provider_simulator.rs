//! Network security groups on the simulator: the world for the conformance suite, and what only a cloud that
//! takes its time can show.

use std::time::Duration;

use async_trait::async_trait;
use azure_simulator::{Options, Running};
use portcullis::clock::Clock;
use portcullis::plan::model::{Access, FirewallId, Peer, ResourceLock, Rule, RuleProtocol};
use portcullis::providers::azure::config::{ClientSecretConfig, CloudName};
use portcullis::providers::azure::{CloudConfig, CredentialConfig, build};
use portcullis::providers::{Cloud, CloudErrorKind};
use serde_json::{Value, json};

use crate::provider_conformance::{SUBSCRIPTION, World, absent_firewall, firewall, id, machine, rule};

/// A subscription where the machine is not.
pub const OTHER_SUBSCRIPTION: &str = "99999999-2222-3333-4444-555555555555";

/// The conformance suite's world, on the simulator.
pub struct SimulatedWorld {
    simulator: Running,
    http: reqwest::Client,
    cloud: Cloud,
    _secret: tempfile::NamedTempFile,
}

impl SimulatedWorld {
    /// One machine behind one empty firewall.
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let options = Options {
            tls: None,
            subscriptions: vec![SUBSCRIPTION.into(), OTHER_SUBSCRIPTION.into()],
            retry_after: Some(0),
            ..Options::default()
        };
        let simulator = azure_simulator::start(options).await.unwrap();
        let world = json!({"machines": [{
            "name": machine().name(), "resourceGroup": "web", "network": "net", "nicNsg": firewall().0.name(),
            "privateIp": "10.0.0.4", "tags": {"Role": "web"},
        }]});
        simulator.build_world(&world.to_string()).unwrap();
        let (secret, credential) = signed_in(&simulator);
        let cloud = CloudConfig {
            name: CloudName::Custom,
            resource_manager: Some(simulator.url.clone()),
            authority: Some(simulator.url.clone()),
            ..CloudConfig::default()
        };
        let cloud = build(&cloud, &credential, Clock::system()).unwrap();
        Self { simulator, http: reqwest::Client::new(), cloud, _secret: secret }
    }

    /// Where the simulator is.
    pub fn url(&self) -> &str {
        &self.simulator.url
    }

    /// How the simulator was started.
    pub fn options(&self) -> &Options {
        &self.simulator.options
    }

    /// Something that the control door does.
    pub async fn control(&self, what: &str, body: &Value) -> Value {
        let url = format!("{}/_sim/{what}", self.simulator.url);
        let response = self.http.post(url).json(body).send().await.unwrap();
        assert!(response.status().is_success(), "{what}: {}", response.text().await.unwrap());
        serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or_default()
    }

    /// A write by somebody else, done at once.
    pub fn set(&self, id: &str, body: &Value) {
        self.try_set(id, body).unwrap();
    }

    /// The same, which another write under way refuses.
    pub fn try_set(&self, id: &str, body: &Value) -> Result<(), String> {
        let mut body = body.clone();
        body["id"] = json!(id);
        let built = self.simulator.build_world(&json!({"resources": [body]}).to_string());
        built.map(drop).map_err(|error| format!("{error:?}"))
    }

    /// What Resource Manager answers to a read, as somebody else sees it.
    pub async fn read(&self, path: &str) -> Value {
        let options = self.options();
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", options.client_id.as_str()),
            ("client_secret", options.client_secret.as_str()),
            ("scope", &format!("{}/.default", self.simulator.url)),
        ];
        let url = format!("{}/{}/oauth2/v2.0/token", self.simulator.url, options.tenant_id);
        let token: Value = self.http.post(url).form(&form).send().await.unwrap().json().await.unwrap();
        let url = format!("{}{path}?api-version=2024-05-01", self.simulator.url);
        let token = token["access_token"].as_str().unwrap_or_default();
        self.http.get(url).bearer_auth(token).send().await.unwrap().json().await.unwrap()
    }

    /// Whether a packet passes now.
    async fn passes(&self, source: &str) -> bool {
        let probe = json!({"source": source, "destination": "10.0.0.4", "port": 22, "protocol": "Tcp"});
        self.control("probe", &probe).await["allowed"].as_bool().unwrap()
    }
}

/// A rule as Azure takes it, by other means than the provider's own.
fn body(rule: &Rule) -> Value {
    let prefix = |peers: &[Peer]| match peers {
        [Peer::Any] => "*".to_owned(),
        [Peer::Net(net)] => net.to_string(),
        [Peer::Tag(tag)] => tag.clone(),
        other => panic!("not needed here: {other:?}"),
    };
    let port = |ports: &[portcullis::api::values::PortRange]| match ports {
        [one] if one.first() == 0 && one.last() == 65535 => "*".to_owned(),
        [one] => one.to_string(),
        other => panic!("not needed here: {other:?}"),
    };
    let protocol = match &rule.protocol {
        RuleProtocol::Transport(protocol) => match protocol.to_string().as_str() {
            "TCP" => "Tcp".to_owned(),
            "UDP" => "Udp".to_owned(),
            _ => "*".to_owned(),
        },
        RuleProtocol::Other(name) => name.clone(),
    };
    json!({"name": rule.name, "properties": {
        "access": if rule.access == Access::Allow { "Allow" } else { "Deny" },
        "direction": "Inbound", "priority": rule.priority, "protocol": protocol,
        "description": rule.description,
        "sourceAddressPrefix": prefix(&rule.sources), "destinationAddressPrefix": prefix(&rule.destinations),
        "sourcePortRange": port(&rule.source_ports), "destinationPortRange": port(&rule.ports),
    }})
}

#[async_trait]
impl World for SimulatedWorld {
    fn cloud(&self) -> Cloud {
        self.cloud.clone()
    }

    async fn foreign_put(&self, firewall: &FirewallId, rule: &Rule) {
        self.set(&format!("{firewall}/securityRules/{}", rule.name), &body(rule));
    }

    async fn foreign_delete(&self, firewall: &FirewallId, name: &str) {
        // Another client of the same Azure, as a portal would be.
        self.cloud.firewall.delete(firewall, name, self.patience()).await.unwrap();
    }

    async fn set_lock(&self, firewall: &FirewallId, lock: ResourceLock) {
        let level = match lock {
            ResourceLock::None => return,
            ResourceLock::CannotDelete => "CanNotDelete",
            ResourceLock::ReadOnly => "ReadOnly",
        };
        let group = firewall.0.ancestor(4).unwrap();
        let lock = format!("{group}/providers/Microsoft.Authorization/locks/keep");
        self.set(&lock, &json!({"properties": {"level": level}}));
    }

    async fn fill(&self, firewall: &FirewallId, count: usize) {
        let rules: Vec<Value> =
            (0..count).map(|n| body(&rule(&format!("fill-{n}"), 1000 + u16::try_from(n).unwrap()))).collect();
        let group = json!({"location": "westeurope", "properties": {"securityRules": rules}});
        self.set(firewall.as_str(), &group);
    }

    async fn lose_next_answer(&self) {
        let fault =
            json!({"method": "PUT", "path": "/securityRules/", "count": 1, "effect": "resetAfterCommit"});
        self.control("faults", &fault).await;
    }

    async fn slow_writes(&self) {
        let operations = json!({"operations": {"securityRules.write": "1s", "securityRules.delete": "1s"}});
        self.control("latency", &operations).await;
    }

    async fn others(&self) -> Value {
        let rules = self.read(&format!("{}/securityRules", firewall())).await;
        let theirs = rules["value"].as_array().unwrap().iter().filter(|rule| rule["name"] != "ours");
        // What the group as a whole changes with each write.
        let bare = theirs.map(|rule| json!([rule["name"], rule["properties"]]));
        bare.collect::<Vec<_>>().into()
    }
}

const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_packet_passes_while_a_rule_stands_and_not_before_or_after() {
    let world = SimulatedWorld::start().await;
    let cloud = world.cloud();
    assert!(!world.passes("203.0.113.7").await);
    cloud.firewall.put(&firewall(), &rule("open", 200), PATIENCE).await.unwrap();
    assert!(world.passes("203.0.113.7").await);
    assert!(!world.passes("203.0.113.8").await);
    cloud.firewall.delete(&firewall(), "open", PATIENCE).await.unwrap();
    assert!(!world.passes("203.0.113.7").await);
}

/// The file with the simulator's secret, and who signs in by it.
fn signed_in(simulator: &azure_simulator::Running) -> (tempfile::NamedTempFile, CredentialConfig) {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), &simulator.options.client_secret).unwrap();
    let credential = CredentialConfig {
        name: "main".into(),
        client_secret: Some(ClientSecretConfig {
            tenant_id: simulator.options.tenant_id.clone(),
            client_id: simulator.options.client_id.clone(),
            secret_file: secret.path().into(),
        }),
        ..CredentialConfig::default()
    };
    (secret, credential)
}

/// A simulator that speaks TLS, and how it is reached.
struct OverTls {
    simulator: azure_simulator::Running,
    ca: tempfile::NamedTempFile,
    credential: CredentialConfig,
    _secret: tempfile::NamedTempFile,
}

impl OverTls {
    async fn start() -> Self {
        let options = Options { subscriptions: vec![SUBSCRIPTION.into()], ..Options::default() };
        let simulator = azure_simulator::start(options).await.unwrap();
        let world =
            json!({"machines": [{"name": "web-1", "resourceGroup": "web", "nicNsg": firewall().0.name()}]});
        simulator.build_world(&world.to_string()).unwrap();
        let ca = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(ca.path(), &simulator.ca_pem).unwrap();
        let (secret, credential) = signed_in(&simulator);
        Self { simulator, ca, credential, _secret: secret }
    }

    fn cloud(&self, ca_file: Option<&std::path::Path>) -> CloudConfig {
        CloudConfig {
            name: CloudName::Custom,
            resource_manager: self.simulator.tls_url.clone(),
            authority: self.simulator.tls_url.clone(),
            ca_file: ca_file.map(Into::into),
            ..CloudConfig::default()
        }
    }
}

#[tokio::test]
async fn tls_is_trusted_by_the_certificates_that_are_given_and_by_no_others() {
    let tls = OverTls::start().await;
    let (ca, credential) = (&tls.ca, &tls.credential);
    let trusting = build(&tls.cloud(Some(ca.path())), credential, Clock::system()).unwrap();
    trusting.firewall.observe(&firewall()).await.unwrap();
    let wary = build(&tls.cloud(None), credential, Clock::system()).unwrap();
    let error = wary.firewall.put(&firewall(), &rule("open", 200), Duration::from_secs(2)).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Retryable, "{error}");
    assert!(error.message.to_lowercase().contains("certificate"), "{error}");
    std::fs::write(ca.path(), "no certificate").unwrap();
    let error = build(&tls.cloud(Some(ca.path())), credential, Clock::system()).unwrap_err();
    assert_eq!(error.field, "cloud.caFile");
}

/// As whoever answers in the place of Resource Manager with a certificate that is somebody else's.
#[tokio::test]
async fn a_certificate_of_another_name_is_refused_before_anything_is_sent() {
    let tls = OverTls::start().await;
    let own = url::Url::parse(tls.simulator.tls_url.as_deref().unwrap()).unwrap();
    let behind = ("127.0.0.1", own.port().unwrap());
    let listener = tokio::net::TcpListener::bind("127.0.0.2:0").await.unwrap();
    let other = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut from, _)) = listener.accept().await {
            let mut to = tokio::net::TcpStream::connect(behind).await.unwrap();
            // Whoever finds the certificate wrong hangs up.
            let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
        }
    });
    let cloud = CloudConfig { resource_manager: Some(other), ..tls.cloud(Some(tls.ca.path())) };
    let cloud = build(&cloud, &tls.credential, Clock::system()).unwrap();
    let error =
        cloud.firewall.put(&firewall(), &rule("open", 200), Duration::from_secs(2)).await.unwrap_err();
    assert!(error.message.to_lowercase().contains("certificate"), "{error}");
    let error = cloud.firewall.observe(&firewall()).await.unwrap_err();
    assert!(error.message.to_lowercase().contains("certificate"), "{error}");
}

#[tokio::test]
async fn a_token_that_the_tenant_refuses_is_told_as_such() {
    let world = SimulatedWorld::start().await;
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), &world.simulator.options.client_secret).unwrap();
    let cloud = CloudConfig {
        name: CloudName::Custom,
        resource_manager: Some(world.simulator.url.clone()),
        authority: Some(world.simulator.url.clone()),
        ..CloudConfig::default()
    };
    let credential = |tenant: &str, client: &str| CredentialConfig {
        name: "main".into(),
        client_secret: Some(ClientSecretConfig {
            tenant_id: tenant.to_owned(),
            client_id: client.to_owned(),
            secret_file: secret.path().into(),
        }),
        ..CredentialConfig::default()
    };
    let (tenant, client) = (&world.simulator.options.tenant_id, &world.simulator.options.client_id);
    for (tenant, client) in [(SUBSCRIPTION, client.as_str()), (tenant.as_str(), SUBSCRIPTION)] {
        let cloud = build(&cloud, &credential(tenant, client), Clock::system()).unwrap();
        let error = cloud.firewall.observe(&firewall()).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Unauthenticated, "{error}");
    }
}

#[tokio::test]
async fn an_operation_that_ends_badly_leaves_doubt_and_is_not_sent_again() {
    for (effect, kind) in [
        (json!({"operation": {"canceled": true}}), CloudErrorKind::Ambiguous),
        (json!({"operation": {"fails": "InternalServerError"}}), CloudErrorKind::Ambiguous),
        (json!({"timeoutAfterCommit": "100ms"}), CloudErrorKind::Unanswered),
        (json!({"lateWrite": {"after": "1s", "answer": "timeout"}}), CloudErrorKind::Unanswered),
        (json!("dropBeforeCommit"), CloudErrorKind::Unanswered),
    ] {
        let world = SimulatedWorld::start().await;
        let fault = json!({"method": "PUT", "path": "/securityRules/", "count": 1, "effect": effect});
        world.control("faults", &fault).await;
        let cloud = world.cloud();
        let error = cloud.firewall.put(&firewall(), &rule("open", 200), PATIENCE).await.unwrap_err();
        assert_eq!(error.kind, kind, "{effect}: {error}");
        cloud.firewall.put(&firewall(), &rule("open", 200), PATIENCE).await.unwrap();
        assert!(world.passes("203.0.113.7").await, "{effect}");
    }
}

#[tokio::test]
async fn throttled_reads_come_through() {
    let world = SimulatedWorld::start().await;
    let fault = json!({"method": "GET", "count": 2,
        "effect": {"status": {"status": 429, "code": "TooManyRequests", "retryAfter": 1}}});
    world.control("faults", &fault).await;
    let observed = world.cloud().firewall.observe(&firewall()).await.unwrap();
    assert_eq!(observed.firewall, firewall());
}

#[tokio::test]
async fn pages_of_a_list_are_all_read() {
    let world = SimulatedWorld::start().await;
    for n in 0..7 {
        let nsg = id("Microsoft.Network/networkSecurityGroups", &format!("more-{n}"));
        world.set(nsg.as_str(), &json!({"location": "westeurope", "properties": {}}));
    }
    world.control("settings", &json!({"pageSize": 2})).await;
    let group = machine().ancestor(4).unwrap();
    let found = world.cloud().inventory.firewalls(&group).await.unwrap();
    assert_eq!(found.len(), 8);
    assert!(found.iter().all(|it| it.firewall != absent_firewall()));
    let found = world.cloud().inventory.firewalls(&group.ancestor(2).unwrap()).await.unwrap();
    assert_eq!(found.len(), 8);
}
