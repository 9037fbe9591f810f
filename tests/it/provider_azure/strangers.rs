//! Addresses of strangers, lists without an end, and clocks that differ.

use super::*;

/// A server that must never hear from us.
async fn stranger() -> MockServer {
    let server = MockServer::start().await;
    Mock::given(any())
        .respond_with(answer(200, json!({"value": [], "status": "Succeeded"})))
        .expect(0)
        .mount(&server)
        .await;
    server
}

#[tokio::test]
async fn a_next_page_at_a_stranger_is_refused_and_the_list_with_it() {
    let azure = Azure::start().await;
    let stranger = stranger().await;
    let group = id("Microsoft.Network/networkSecurityGroups", "x").ancestor(4).unwrap();
    let at = format!("{group}/providers/Microsoft.Network/networkSecurityGroups");
    for next in
        [format!("{}/next", stranger.uri()), "//stranger.example/next".into(), "http://u@127.0.0.1/".into()]
    {
        azure.once("GET", &at, answer(200, json!({"value": [nsg()], "nextLink": next}))).await;
        let error = azure.cloud.inventory.firewalls(&group).await.unwrap_err();
        assert_eq!(error.kind, CloudErrorKind::Invalid, "{error}");
    }
    stranger.verify().await;
}

#[tokio::test]
async fn a_list_is_read_to_its_end_or_not_at_all() {
    let azure = Azure::start().await;
    let group = id("Microsoft.Network/networkSecurityGroups", "x").ancestor(4).unwrap();
    let at = format!("{group}/providers/Microsoft.Network/networkSecurityGroups");
    for other in ["azureFirewalls", "firewallPolicies", "virtualNetworks"] {
        let at = format!("{group}/providers/Microsoft.Network/{other}");
        azure.once("GET", &at, answer(200, json!({"value": []}))).await;
    }
    azure.once("GET", &at, answer(200, json!({"value": [nsg()], "nextLink": azure.url("/page/2")}))).await;
    azure.once("GET", "/page/2", answer(200, json!({"value": [], "nextLink": "/page/3"}))).await;
    azure.once("GET", "/page/3", answer(200, json!({"value": [], "nextLink": null}))).await;
    assert_eq!(azure.cloud.inventory.firewalls(&group).await.unwrap().len(), 1);
    for broken in [
        json!({"value": [nsg()], "nextLink": azure.url(&format!("{at}?api-version=2024-05-01"))}),
        json!({"value": [nsg()], "nextLink": 7}),
        json!({"value": [nsg()], "nextLink": "/forbidden"}),
        json!({"value": null}),
        json!({}),
        json!({"value": [{}]}),
    ] {
        azure.server.reset().await;
        azure.always("POST", TOKEN_PATH, answer(200, json!({"access_token": "t", "expires_in": 99}))).await;
        azure.always("GET", &at, answer(200, broken.clone())).await;
        azure.always("GET", "/forbidden", failure(403, "AuthorizationFailed")).await;
        for other in ["azureFirewalls", "firewallPolicies", "virtualNetworks"] {
            let at = format!("{group}/providers/Microsoft.Network/{other}");
            azure.always("GET", &at, answer(200, json!({"value": []}))).await;
        }
        assert!(azure.cloud.inventory.firewalls(&group).await.is_err(), "{broken}");
    }
}

/// A page of this size, and each time another address for the next one.
async fn endless(azure: &Azure, at: &str, size: usize) {
    let base = azure.url(at);
    let pages = std::sync::atomic::AtomicUsize::new(0);
    let page = move |_: &Request| {
        let next = pages.fetch_add(1, std::sync::atomic::Ordering::SeqCst) + 1;
        answer(200, json!({"value": ["x".repeat(size)], "nextLink": format!("{base}?page={next}")}))
    };
    Mock::given(method("GET")).and(path(at)).respond_with(page).mount(&azure.server).await;
}

#[tokio::test]
async fn pages_without_an_end_are_read_up_to_a_number_and_a_size() {
    let group = id("Microsoft.Network/networkSecurityGroups", "x").ancestor(4).unwrap();
    let at = format!("{group}/providers/Microsoft.Network/networkSecurityGroups");
    for (size, says, pages) in
        [(1, "the pages of the list do not end", 1000), (4 << 20, "the list is larger than 128 MiB", 32)]
    {
        let azure = Azure::start().await;
        for other in ["azureFirewalls", "firewallPolicies", "virtualNetworks"] {
            let at = format!("{group}/providers/Microsoft.Network/{other}");
            azure.always("GET", &at, answer(200, json!({"value": []}))).await;
        }
        endless(&azure, &at, size).await;
        let error = azure.cloud.inventory.firewalls(&group).await.unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
        assert_eq!(azure.calls("GET", &at).await.len(), pages);
    }
}

#[tokio::test]
async fn an_answer_that_is_larger_than_any_is_not_taken_in() {
    let azure = Azure::start().await;
    azure.always("GET", &nsg_path(), answer(200, json!({"properties": "x".repeat(33 << 20)}))).await;
    let error = azure.cloud.firewall.observe(&firewall()).await.unwrap_err();
    assert!(error.to_string().contains("longer than 33554432 bytes"), "{error}");
}

#[tokio::test]
async fn an_operation_at_a_stranger_is_not_followed_and_the_resource_is_watched() {
    let azure = Azure::start().await;
    let stranger = stranger().await;
    let started = answer(201, json!({"properties": {"provisioningState": "Updating"}}))
        .insert_header("azure-asyncoperation", format!("{}/operations/1", stranger.uri()))
        .insert_header("retry-after", "0");
    azure.always("PUT", &rule_path(), started).await;
    azure
        .always("GET", &rule_path(), answer(200, json!({"properties": {"provisioningState": "Succeeded"}})))
        .await;
    azure.put().await.unwrap();
    assert_eq!(azure.calls("GET", &rule_path()).await.len(), 1);
    stranger.verify().await;
}

#[tokio::test]
async fn a_read_that_is_redirected_is_refused() {
    let azure = Azure::start().await;
    let stranger = stranger().await;
    let redirect = ResponseTemplate::new(302).insert_header("location", stranger.uri());
    azure.always("GET", &nsg_path(), redirect).await;
    let error = azure.cloud.firewall.observe(&firewall()).await.unwrap_err();
    assert_eq!(error.kind, CloudErrorKind::Invalid, "{error}");
    stranger.verify().await;
}

#[tokio::test]
async fn the_clouds_clock_is_compared_with_ours() {
    let azure = Azure::start().await;
    assert_eq!(azure.cloud.inventory.clock_ahead(), None);
    let date = |ahead: i64| {
        let at = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(ahead);
        jiff::fmt::rfc2822::DateTimePrinter::new().timestamp_to_rfc9110_string(&at).unwrap()
    };
    for ahead in [0, 120, -120] {
        azure.once("GET", &nsg_path(), answer(200, nsg()).insert_header("date", date(ahead))).await;
        let locks = format!("{}/providers/Microsoft.Authorization/locks", nsg_path());
        assert!(azure.calls("GET", &locks).await.len() <= 1, "locks are read once, in the first round");
        azure.cloud.firewall.observe(&firewall()).await.unwrap();
        let found = azure.cloud.inventory.clock_ahead().unwrap().as_secs();
        // In the first round the locks may have answered last, by the true clock.
        assert!((found - ahead).abs() <= 3, "{found} for {ahead}");
    }
}

// Network security groups.
