//! A small client: gets a token, adds the api-version, polls operations to their end.

use std::time::Duration;

use azure_simulator::{Options, Running, start};
use reqwest::{Method, header::HeaderMap};
use serde_json::{Value, json};

pub(crate) const VERSION: &str = "2025-01-01";

pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Value,
}

impl Answer {
    pub(crate) fn code(&self) -> &str {
        self.body["error"]["code"].as_str().unwrap_or("")
    }

    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or("")
    }
}

pub(crate) struct Client {
    pub(crate) simulator: Running,
    pub(crate) http: reqwest::Client,
    pub(crate) token: String,
}

impl Client {
    pub(crate) async fn new() -> Self {
        Self::with(Options { retry_after: Some(0), ..Options::default() }).await
    }

    pub(crate) async fn with(options: Options) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let simulator = start(options).await.unwrap();
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build().unwrap();
        let mut client = Self { simulator, http, token: String::new() };
        client.token = client.sign_in().await;
        client
    }

    async fn sign_in(&self) -> String {
        let options = &self.simulator.options;
        let answer = self.token(&options.tenant_id, &options.client_id, &options.client_secret).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        answer.body["access_token"].as_str().unwrap().to_owned()
    }

    pub(crate) async fn token(&self, tenant: &str, client: &str, secret: &str) -> Answer {
        let form = [
            ("grant_type", "client_credentials"),
            ("client_id", client),
            ("client_secret", secret),
            ("scope", "https://management.azure.com/.default"),
        ];
        let url = format!("{}/{tenant}/oauth2/v2.0/token", self.simulator.url);
        answer(self.http.post(url).form(&form).send().await.unwrap()).await
    }

    /// An ARM id in the first subscription: `group/kind/name/...` under Microsoft.Network.
    pub(crate) fn network(&self, group: &str, rest: &str) -> String {
        let subscription = self.simulator.subscription();
        format!("/subscriptions/{subscription}/resourceGroups/{group}/providers/Microsoft.Network/{rest}")
    }

    pub(crate) fn group(&self, name: &str) -> String {
        format!("/subscriptions/{}/resourceGroups/{name}", self.simulator.subscription())
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let glue = if path.contains('?') { '&' } else { '?' };
        let url = if path.contains("api-version=") {
            format!("{}{path}", self.simulator.url)
        } else {
            format!("{}{path}{glue}api-version={VERSION}", self.simulator.url)
        };
        self.http.request(method, url).bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        answer(self.request(Method::GET, path).send().await.unwrap()).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Answer {
        answer(self.request(Method::PUT, path).json(body).send().await.unwrap()).await
    }

    pub(crate) async fn patch(&self, path: &str, body: &Value) -> Answer {
        answer(self.request(Method::PATCH, path).json(body).send().await.unwrap()).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        answer(self.request(Method::POST, path).json(body).send().await.unwrap()).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Answer {
        answer(self.request(Method::DELETE, path).send().await.unwrap()).await
    }

    /// A PUT that must succeed, with its operation.
    pub(crate) async fn create(&self, path: &str, body: &Value) -> Value {
        let answer = self.put(path, body).await;
        assert!(matches!(answer.status, 200 | 201), "{path}: {} {}", answer.status, answer.body);
        self.finish(&answer).await;
        self.get(path).await.body
    }

    /// A DELETE that must succeed, with its operation.
    pub(crate) async fn remove(&self, path: &str) {
        let answer = self.delete(path).await;
        assert!(matches!(answer.status, 200 | 202 | 204), "{path}: {} {}", answer.status, answer.body);
        self.finish(&answer).await;
    }

    /// Polls an operation to its end; answers its last status.
    pub(crate) async fn finish(&self, write: &Answer) -> String {
        let url = write.header("azure-asyncoperation").to_owned();
        if url.is_empty() {
            let location = write.header("location").to_owned();
            while !location.is_empty() {
                let poll =
                    answer(self.http.get(&location).bearer_auth(&self.token).send().await.unwrap()).await;
                if poll.status != 202 {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            return "Succeeded".into();
        }
        for _ in 0..400 {
            let poll = answer(self.http.get(&url).bearer_auth(&self.token).send().await.unwrap()).await;
            let status = poll.body["status"].as_str().unwrap_or("").to_owned();
            if status != "InProgress" {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the operation at {url} does not end");
    }

    /// The control door.
    pub(crate) async fn sim(&self, path: &str, body: &Value) -> Value {
        let answer = self.try_sim(path, body).await;
        assert!(answer.status < 300, "{path}: {}", answer.body);
        answer.body
    }

    pub(crate) async fn try_sim(&self, path: &str, body: &Value) -> Answer {
        let url = format!("{}/_sim/{path}", self.simulator.url);
        answer(self.http.post(url).json(body).send().await.unwrap()).await
    }

    pub(crate) async fn look(&self, path: &str) -> Value {
        let url = format!("{}/_sim/{path}", self.simulator.url);
        answer(self.http.get(url).send().await.unwrap()).await.body
    }

    pub(crate) async fn world(&self, machine: &Value) -> Value {
        let made = self.sim("world", &json!({"machines": [machine]})).await;
        made["machines"][0].clone()
    }

    pub(crate) async fn allowed(&self, source: &str, destination: &str, port: u16) -> bool {
        let probe = json!({"source": source, "destination": destination, "port": port, "protocol": "Tcp"});
        self.sim("probe", &probe).await["allowed"].as_bool().unwrap()
    }
}

pub(crate) async fn answer(response: reqwest::Response) -> Answer {
    let status = response.status();
    let headers = response.headers().clone();
    let bytes = response.bytes().await.unwrap();
    let body = if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).unwrap() };
    Answer { status: status.as_u16(), headers, body }
}

/// An inbound rule for TCP.
pub(crate) fn rule(access: &str, priority: u16, source: &str, destination: &str, port: &str) -> Value {
    json!({"properties": {
        "access": access, "direction": "Inbound", "priority": priority, "protocol": "Tcp",
        "sourceAddressPrefix": source, "sourcePortRange": "*",
        "destinationAddressPrefix": destination, "destinationPortRange": port}})
}
