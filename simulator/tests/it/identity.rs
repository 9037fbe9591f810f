//! Tokens, tenants and permissions.

use reqwest::Method;
use serde_json::json;

use crate::client::{Client, answer};

#[tokio::test]
async fn without_a_token_or_with_a_bad_one_the_answer_is_401() {
    let client = Client::new().await;
    let path = client.group("g");
    let url = format!("{}{path}?api-version=2021-04-01", client.simulator.url);
    let none = answer(client.http.get(&url).send().await.unwrap()).await;
    assert_eq!(none.status, 401);
    assert!(none.header("www-authenticate").contains("authorization_uri"));
    let forged = answer(client.http.get(&url).bearer_auth("a.b.c").send().await.unwrap()).await;
    assert_eq!((forged.status, forged.code()), (401, "InvalidAuthenticationToken"));
    client.sim("clock", &json!({"step": "2h"})).await;
    let expired = client.get(&path).await;
    assert_eq!((expired.status, expired.code()), (401, "ExpiredAuthenticationToken"));
}

#[tokio::test]
async fn a_wrong_secret_client_or_tenant_gets_no_token() {
    let client = Client::new().await;
    let o = client.simulator.options.clone();
    let wrong_secret = client.token(&o.tenant_id, &o.client_id, "nope").await;
    assert_eq!((wrong_secret.status, wrong_secret.body["error"].as_str()), (401, Some("invalid_client")));
    assert_eq!(client.token(&o.tenant_id, "someone", "x").await.body["error"], "unauthorized_client");
    assert_eq!(client.token("elsewhere", &o.client_id, &o.client_secret).await.status, 400);
}

#[tokio::test]
async fn a_token_of_another_tenant_is_refused_by_the_subscription() {
    let mut client = Client::new().await;
    client.sim("principals", &json!({"clientId": "guest", "tenant": "other", "secrets": ["s"]})).await;
    client.token =
        client.token("other", "guest", "s").await.body["access_token"].as_str().unwrap().to_owned();
    let refused = client.get(&client.group("g")).await;
    assert_eq!((refused.status, refused.code()), (401, "InvalidAuthenticationTokenTenant"));
}

#[tokio::test]
async fn permissions_are_judged_by_action_and_scope() {
    let mut client = Client::new().await;
    client.create(&client.group("g"), &json!({"location": "westeurope"})).await;
    let tenant = client.simulator.options.tenant_id.clone();
    let reader = json!({"clientId": "reader", "secrets": ["s"],
        "permissions": [{"actions": ["Microsoft.Resources/subscriptions/resourceGroups/read"], "scopes": [client.group("g")]}]});
    client.sim("principals", &reader).await;
    client.token =
        client.token(&tenant, "reader", "s").await.body["access_token"].as_str().unwrap().to_owned();
    assert_eq!(client.get(&client.group("g")).await.status, 200);
    let write = client.put(&client.group("g"), &json!({"location": "westeurope"})).await;
    assert_eq!((write.status, write.code()), (403, "AuthorizationFailed"));
    assert_eq!(client.get(&client.group("other")).await.status, 403);
}

#[tokio::test]
async fn a_managed_identity_gets_a_token_that_arm_accepts() {
    let mut client = Client::new().await;
    let url = format!(
        "{}/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://management.azure.com/",
        client.simulator.url
    );
    assert_eq!(answer(client.http.get(&url).send().await.unwrap()).await.status, 400);
    let token = answer(client.http.get(&url).header("Metadata", "true").send().await.unwrap()).await;
    client.token = token.body["access_token"].as_str().unwrap().to_owned();
    assert_eq!(client.get("/subscriptions").await.status, 200);
}

#[tokio::test]
async fn an_assertion_stands_for_a_principal_only_where_its_claims_match() {
    use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
    let client = Client::new().await;
    let tenant = client.simulator.options.tenant_id.clone();
    client
        .sim(
            "principals",
            &json!({"clientId": "workload", "federated": [
            {"issuer": "https://issuer", "subject": "system:serviceaccount:ns:sa"}]}),
        )
        .await;
    let ask = |subject: &str, expires: i64| {
        let claims = json!({"iss": "https://issuer", "sub": subject, "aud": ["api://AzureADTokenExchange"], "exp": expires});
        let assertion = format!("{}.{}.c2ln", BASE64.encode("{}"), BASE64.encode(claims.to_string()));
        let form = vec![
            ("grant_type", "client_credentials".to_owned()),
            ("client_id", "workload".to_owned()),
            ("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer".to_owned()),
            ("client_assertion", assertion),
            ("scope", format!("{}/.default", client.simulator.url)),
        ];
        let url = format!("{}/{tenant}/oauth2/v2.0/token", client.simulator.url);
        client.http.post(url).form(&form).send()
    };
    assert_eq!(ask("system:serviceaccount:ns:sa", i64::MAX).await.unwrap().status(), 200);
    assert_eq!(ask("system:serviceaccount:ns:other", i64::MAX).await.unwrap().status(), 401);
    assert_eq!(ask("system:serviceaccount:ns:sa", 1).await.unwrap().status(), 401);
}

#[tokio::test]
async fn metadata_names_the_host_that_was_called_over_tls() {
    let client = Client::new().await;
    let ca = reqwest::Certificate::from_pem(client.simulator.ca_pem.as_bytes()).unwrap();
    let tls = reqwest::Client::builder().tls_certs_only([ca]).build().unwrap();
    let url = client.simulator.tls_url.clone().unwrap();
    let get = |version: &str| {
        tls.request(Method::GET, format!("{url}/metadata/endpoints?api-version={version}")).send()
    };
    let object = answer(get("2022-09-01").await.unwrap()).await.body;
    assert_eq!(object["resourceManager"], format!("{url}/"));
    assert_eq!(object["authentication"]["loginEndpoint"], format!("{url}/"));
    let list = answer(get("2019-05-01").await.unwrap()).await.body;
    assert_eq!(list[0]["resourceManager"], format!("{url}/"));
    let openid = format!("{url}/common/v2.0/.well-known/openid-configuration");
    let openid = answer(tls.get(openid).send().await.unwrap()).await.body;
    assert_eq!(openid["token_endpoint"], format!("{url}/common/oauth2/v2.0/token"));
}
