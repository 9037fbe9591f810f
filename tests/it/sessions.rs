//! What a close does to connections that are live then: nothing, unless the policy says `Cut`.

use serde_json::{Value, json};

use crate::ground::{REQUESTER, Site, on_site};

impl Site {
    /// Makes a connection, and gives its number.
    async fn connect(&self, destination: &str) -> Value {
        let flow = json!({"source": REQUESTER, "destination": destination, "port": 22, "protocol": "Tcp"});
        let made = self.control("connect", &flow).await;
        assert_eq!(made["allowed"], true, "{made}");
        made["connection"].clone()
    }

    async fn is_alive(&self, connection: &Value) -> bool {
        let simulator = &self.ground.play.stage.simulator;
        let all = simulator.control(reqwest::Method::GET, "connections", None).await.unwrap();
        all.as_array().unwrap().iter().find(|one| one["connection"] == *connection).unwrap()["alive"]
            .as_bool()
            .unwrap()
    }

    /// Opens, connects, ends, and says whether the connection is still alive.
    async fn outlasts(&self, ip: &str) -> bool {
        self.request("mine", "web", "a", 22, REQUESTER, "30m").await;
        self.state("jitreq/mine", "Active").await;
        let connection = self.connect(ip).await;
        self.kubectl_delete("jitreq/mine").await;
        assert!(!self.passes(REQUESTER, ip, 22).await);
        self.is_alive(&connection).await
    }
}

#[test]
fn live_connections_outlast_a_close_and_are_cut_where_the_policy_says_so() {
    on_site(|site| async move {
        let vm = site.usual().await;
        site.lock("web", &[&vm]).await;
        assert!(site.outlasts(&vm.ip).await);
        let before = site.read(&site.nsg("net")).await;
        assert_ne!(before["properties"]["flushConnection"], true);

        let cut = json!({"enforcement": {"azure": {"establishedSessions": "Cut"}}});
        site.terms("web", &vm, cut).await;
        let group = site.until_flushes().await;
        let names = |group: &Value| -> Vec<String> {
            let rules = group["properties"]["securityRules"].as_array().unwrap().iter();
            rules.map(|rule| rule["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(names(&group), names(&before), "every rule is still there");
        assert!(!site.outlasts(&vm.ip).await);
        site.request("next", "web", "a", 22, REQUESTER, "30m").await;
        let next = site.state("jitreq/next", "Active").await;
        assert_eq!(next["status"]["establishedSessions"], "Cut");
        // It stays set: switched off by somebody, it is set again.
        site.change(&site.nsg("net"), |body| body["properties"]["flushConnection"] = json!(false)).await;
        site.until_flushes().await;
    });
}

impl Site {
    async fn until_flushes(&self) -> Value {
        let begun = std::time::Instant::now();
        loop {
            let group = self.read(&self.nsg("net")).await;
            if group["properties"]["flushConnection"] == true {
                return group;
            }
            assert!(begun.elapsed().as_secs() < 45, "flushConnection is not set");
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    }
}
