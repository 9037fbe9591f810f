//! Statuses written by others, in the moment in which the binding that keeps them from it is away: packets decide.

use portcullis_harness::{Kubectl, User, install};
use serde_json::{Value, json};

use crate::walk::Play;

const REQUESTER: &str = "203.0.113.7";
const STRANGER: &str = "198.51.100.23";
const BINDING: &str = "validatingadmissionpolicybinding/portcullis-controller-only";

impl Play {
    /// Takes a binding away; what is to be applied to have it back.
    pub(super) async fn take_away(&self, binding: &str) -> String {
        let text = self.admin.run(&["get", binding, "-o", "yaml"]).await.unwrap();
        self.admin.run(&["delete", binding]).await.unwrap();
        text.lines()
            .filter(|line| !line.contains("resourceVersion:"))
            .fold(String::new(), |text, line| text + line + "\n")
    }

    /// Somebody whom their namespace's owner gave every verb on everything of our group.
    pub(super) async fn tenant(&self) -> Kubectl {
        let rbac = "rbac.authorization.k8s.io";
        let metadata = json!({"name": "everything-of-ours", "namespace": install::NAMESPACE});
        let role = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "Role", "metadata": metadata,
            "rules": [{"apiGroups": ["jit.portcullis.io"], "resources": ["*"], "verbs": ["*"]}],
        });
        let binding = json!({
            "apiVersion": format!("{rbac}/v1"), "kind": "RoleBinding", "metadata": metadata,
            "roleRef": {"apiGroup": rbac, "kind": "Role", "name": "everything-of-ours"},
            "subjects": [{"apiGroup": rbac, "kind": "User", "name": User::Outsider.name()}],
        });
        let list = json!({"apiVersion": "v1", "kind": "List", "items": [role, binding]});
        self.admin.apply(&list.to_string()).await.unwrap();
        self.stage.plane.kubectl(User::Outsider).unwrap()
    }
}

/// Writes a status as soon as the API server lets them.
async fn forge(tenant: &Kubectl, request: &str, status: &Value) {
    let patch = json!({"status": status}).to_string();
    let arguments = [
        "-n",
        install::NAMESPACE,
        "patch",
        "jitreq",
        request,
        "--subresource=status",
        "--type=merge",
        "-p",
        &patch,
    ];
    portcullis_harness::eventually("the status is written", std::time::Duration::from_secs(30), || async {
        tenant.run(&arguments).await
    })
    .await
    .unwrap();
}

/// What status would say, had the request been granted at this moment.
fn as_if_granted(request: &Value, rules: &Value, seconds: i64) -> Value {
    let now = jiff::Timestamp::from_second(jiff::Timestamp::now().as_second()).unwrap();
    let end = now + jiff::SignedDuration::from_secs(seconds);
    let uid: String = request["metadata"]["uid"]
        .as_str()
        .unwrap()
        .chars()
        .filter(char::is_ascii_hexdigit)
        .take(12)
        .collect();
    let cluster = portcullis::plan::names::Cluster::new("playground", &[]);
    let mut rules = rules.clone();
    for (number, rule) in rules.as_array_mut().unwrap().iter_mut().enumerate() {
        let name =
            format!("portcullis-{}-allow-{uid}-{}-{number}", cluster.mark(), end.strftime("%Y%m%dT%H%M%SZ"));
        rule["name"] = json!(name);
        rule["state"] = json!("Opening");
    }
    json!({
        "state": "Opening", "grantedAt": now.to_string(), "expiresAt": end.to_string(), "rules": rules,
        "machines": request["status"]["machines"], "policies": request["status"]["policies"],
    })
}

/// The tenant asks and does not wait for the approval: just what was asked for, then all of it, then somebody else's
/// network security group.
#[tokio::test(flavor = "multi_thread")]
async fn a_status_that_a_tenant_forges_opens_nothing() {
    let play = Play::new().await;
    let mut controller = play.controller().await;
    let tenant = play.tenant().await;
    let mut spec = play.one_machine("web-1");
    spec["approval"] = json!({"required": 1});
    play.policy("web-1", &spec).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = jiff::Timestamp::now();
    let names = ["as-asked", "wide", "elsewhere", "while-down"];
    for name in names {
        play.request(name, "web-1", "web-1", 22, REQUESTER, "10m").await;
        play.condition(&format!("jitreq/{name}"), "Approved", "False").await;
    }
    let shipped = play.take_away(BINDING).await;

    let asked = play.get("jitreq/as-asked").await.unwrap();
    let planned = asked["status"]["rules"].clone();
    assert_eq!(planned.as_array().unwrap().len(), 2, "{asked:#}");
    let mut wide = planned.clone();
    for rule in wide.as_array_mut().unwrap() {
        (rule["sources"], rule["ports"], rule["protocol"]) =
            (json!(["0.0.0.0/0"]), json!(["1-65535"]), json!("Any"));
    }
    let mut elsewhere = wide.clone();
    for rule in elsewhere.as_array_mut().unwrap() {
        rule["firewall"] = json!(play.stage.world.nsg("web", "win-1"));
        rule["destinations"] = json!(["10.1.2.4"]);
    }
    for (name, rules) in [("as-asked", &planned), ("wide", &wide), ("elsewhere", &elsewhere)] {
        let request = play.get(&format!("jitreq/{name}")).await.unwrap();
        forge(&tenant, name, &as_if_granted(&request, rules, 300)).await;
    }
    // And one that the controller finds when it starts, with everything back in its place.
    controller.kill();
    let request = play.get("jitreq/while-down").await.unwrap();
    forge(&tenant, "while-down", &as_if_granted(&request, &planned, 300)).await;
    play.admin.apply(&shipped).await.unwrap();
    controller.restart().await.unwrap();
    for name in names {
        let request = play.reaches(&format!("jitreq/{name}"), "/status/settled", "Some(Bool(true))").await;
        assert!(["Failed", "Revoked"].contains(&request["status"]["state"].as_str().unwrap()), "{request:#}");
    }
    for source in [REQUESTER, STRANGER] {
        assert_eq!(play.exposed(source, "web-1", 22, locked).await, [], "{source}");
        assert_eq!(play.exposed(source, "win-1", 5985, locked).await, [], "{source}");
    }
}

/// A grant that goes on while the binding is away is not widened, nor made longer.
#[tokio::test(flavor = "multi_thread")]
async fn a_live_grant_is_not_widened_by_a_forged_status() {
    let play = Play::new().await;
    let _controller = play.controller().await;
    let tenant = play.tenant().await;
    play.policy("web-1", &play.one_machine("web-1")).await;
    play.condition("jitpol/web-1", "Ready", "True").await;
    let locked = jiff::Timestamp::now();
    play.request("mine", "web-1", "web-1", 22, REQUESTER, "10m").await;
    let request = play.reaches("jitreq/mine", "/status/state", "Active").await;
    let shipped = play.take_away(BINDING).await;
    let mut rules = request["status"]["rules"].clone();
    for rule in rules.as_array_mut().unwrap() {
        (rule["sources"], rule["state"]) = (json!(["0.0.0.0/0"]), json!("Opening"));
    }
    forge(&tenant, "mine", &json!({"state": "Opening", "rules": rules})).await;
    play.reaches("jitreq/mine", "/status/state", "Revoked").await;
    assert_eq!(play.exposed(STRANGER, "web-1", 22, locked).await, []);
    assert!(!play.passes(REQUESTER, "web-1", 22).await, "closed, since nobody knows what it was");
    play.admin.apply(&shipped).await.unwrap();
}
