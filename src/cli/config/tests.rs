use super::*;

const FULL: &str = include_str!("../../../docs/configuration.example.yaml");
const LEAST: &str = "clusterId: prod-weu-1\n";

/// What is wrong with `text`, as a person sees it.
fn complaint(text: &str) -> String {
    match Config::parse(text) {
        Ok(config) => panic!("accepted: {config:?}"),
        Err(error) => error.to_string(),
    }
}

/// The smallest configuration with something added.
fn with(more: &str) -> String {
    format!("{LEAST}{more}")
}

#[test]
fn the_least_configuration_has_the_defaults_of_the_documentation() {
    let config = Config::parse(LEAST).unwrap();
    assert_eq!(config.drift_interval, Duration::from_secs(300));
    assert_eq!(config.sweep_interval, Duration::from_secs(60));
    assert_eq!(config.address_interval, Duration::from_secs(60));
    assert_eq!(config.inventory_interval, Duration::from_secs(300));
    assert_eq!(config.request_retention, Duration::from_secs(720 * 3600));
    assert_eq!((config.honour_denies_below, config.max_allows_per_firewall), (1000, 200));
    assert_eq!(config.concurrency, 16);
    assert!(!config.dry_run);
    assert_eq!(config.controller_user, "system:serviceaccount:portcullis-system:portcullis");
    assert_eq!(config.metrics_address.to_string(), "0.0.0.0:8080");
    assert_eq!(config.health_address.to_string(), "0.0.0.0:8081");
    assert_eq!(config.cloud_endpoint, "https://management.azure.com/");
    assert_eq!(config.allowed_exempt_sources[0].service_tag.as_deref(), Some("AzureLoadBalancer"));
}

#[test]
fn the_example_of_the_documentation_is_read_as_written() {
    let config = Config::parse(FULL).unwrap();
    assert_eq!(config.credentials.len(), 4);
    assert!(config.credentials[0].workload_identity.is_some());
    assert!(config.credentials[1].client_secret.is_some());
    assert!(config.credentials[2].managed_identity.is_some());
    assert!(config.credentials[3].access_token.is_some());
    assert_eq!(config.namespaces.len(), 2);
    assert_eq!(config.namespaces[0].scopes.len(), 2);
}

#[test]
fn national_clouds_differ_by_their_name_alone() {
    for (name, endpoint) in [
        ("Public", "https://management.azure.com/"),
        ("USGovernment", "https://management.usgovcloudapi.net/"),
        ("China", "https://management.chinacloudapi.cn/"),
    ] {
        let config = Config::parse(&with(&format!("cloud: {{name: {name}}}"))).unwrap();
        assert_eq!(config.cloud_endpoint, endpoint);
        let other = Config { cloud: CloudConfig::default(), ..config.clone() };
        let other = Config { cloud_endpoint: "https://management.azure.com/".to_owned(), ..other };
        assert_eq!(other, Config::parse(LEAST).unwrap());
    }
}

#[test]
fn what_is_wrong_with_the_form_is_said_once() {
    let error = anyhow::Error::from(Config::parse(&with("clusterID: x")).unwrap_err());
    let said = format!("{error:#}");
    assert_eq!(said.matches("unknown field `clusterID`").count(), 1, "{said}");
}

const CREDENTIAL: &str = "credentials: [{name: main, managedIdentity: {}}]\n";
const SUB: &str = "/subscriptions/11111111-2222-3333-4444-555555555555";

#[test]
fn every_mistake_names_its_field_and_what_would_be_right() {
    let id64 = "x".repeat(64);
    let space = |body: &str| with(&format!("{CREDENTIAL}namespaces:\n{body}"));
    for (text, wanted) in [
        ("{}".to_owned(), vec!["missing field `clusterId`"]),
        ("clusterId: ''".to_owned(), vec!["clusterId: ", "from 1 to 63"]),
        (format!("clusterId: {id64}"), vec!["clusterId: ", "from 1 to 63"]),
        ("clusterId: a b".to_owned(), vec!["clusterId: ", "letters, digits"]),
        ("clusterId: REPLACE-ME-with-a-name".to_owned(), vec!["clusterId: ", "placeholder", "prod-weu-1"]),
        (with("previousClusterIds: [a/b]"), vec!["previousClusterIds[0]: ", "letters, digits"]),
        (with("previousClusterIds: [prod-weu-1]"), vec!["previousClusterIds[0]: ", "once"]),
        (with("clusterID: x"), vec!["unknown field `clusterID`", "clusterId"]),
        (with("concurrency: many"), vec!["concurrency: invalid type"]),
        (with("concurrency: 0"), vec!["concurrency: 0", "from 1 to 256"]),
        (with("honourDeniesBelow: 99"), vec!["honourDeniesBelow: 99", "from 100 to 4097"]),
        (with("maxAllowsPerFirewall: 901"), vec!["maxAllowsPerFirewall: 901", "from 1 to 900"]),
        (with("driftInterval: 3 hours"), vec!["driftInterval: \"3 hours\"", "90m"]),
        (with("sweepInterval: 0s"), vec!["sweepInterval: \"0s\"", "at least 1s"]),
        (with("addressInterval: -1m"), vec!["addressInterval: \"-1m\"", "90m"]),
        (with("inventoryInterval: 25h"), vec!["inventoryInterval: \"25h\"", "at most 24h"]),
        (with("requestRetention: 30d"), vec!["requestRetention: \"30d\"", "3h"]),
        (with("controllerUser: ''"), vec!["controllerUser: ", "system:serviceaccount"]),
        (with("pipelineUsers: [bot, ' ']"), vec!["pipelineUsers[1]: must be the name of a user"]),
        (with("metricsAddress: ':8080'"), vec!["metricsAddress: \":8080\"", "0.0.0.0:8080"]),
        (with("healthAddress: localhost:8081"), vec!["healthAddress: \"localhost:8081\"", "[::1]:8080"]),
        (with("cloud: {name: Germany}"), vec!["cloud.name: unknown variant `Germany`", "USGovernment"]),
        (with("cloud: {name: Custom, authority: 'https://a'}"), vec!["cloud.resourceManager: ", "https://"]),
        (with("cloud: {authority: 'https://evil.example'}"), vec!["cloud.authority: ", "Custom"]),
        (
            with("cloud: {name: Custom, authority: 'ftp://a', resourceManager: 'https://a?b'}"),
            vec!["cloud.resourceManager: \"https://a?b\"", "https://management.example.com"],
        ),
        (with("credentials: [{name: a}]"), vec!["credentials[0]: ", "exactly one of clientSecret"]),
        (
            with("credentials: [{name: a, managedIdentity: {}, workloadIdentity: {}}]"),
            vec!["credentials[0]: ", "exactly one of"],
        ),
        (
            with("credentials: [{name: a, managedIdentity: {}}, {name: a, managedIdentity: {}}]"),
            vec!["credentials[1].name: \"a\" is named before"],
        ),
        (
            with("credentials: [{name: a, clientSecret: {tenantId: t, clientId: ''}}]"),
            vec!["credentials[0].clientSecret: missing field `secretFile`"],
        ),
        (
            with("credentials: [{name: a, clientSecret: {tenantId: t, clientId: '', secretFile: f}}]"),
            vec!["credentials[0].clientSecret.tenantId: \"t\" is not a tenant", "UUID"],
        ),
        (with("allowedExemptSources: [{}]"), vec!["allowedExemptSources[0]: ", "exactly one of"]),
        (
            with("allowedExemptSources: [{cidr: 10.0.0.1/8}]"),
            vec!["allowedExemptSources[0].cidr: ", "write 10.0.0.0/8"],
        ),
        (
            with("allowedExemptSources: [{serviceTag: '*'}]"),
            vec!["allowedExemptSources[0].serviceTag: ", "AzureLoadBalancer"],
        ),
        (space("- {name: Web, scopes: [a], credential: main}"), vec!["namespaces[0].name: \"Web\"", "a-z"]),
        (
            space("- {name: web, scopes: [], credential: main}"),
            vec!["namespaces[0].scopes: ", "at least one"],
        ),
        (
            space("- {name: web, scopes: [web], credential: main}"),
            vec!["namespaces[0].scopes[0]: ", "/subscriptions/<uuid>"],
        ),
        (
            space(&format!(
                "- {{name: web, credential: main, scopes: [{SUB}/resourceGroups/g/providers/Microsoft.Network/networkInterfaces/v]}}"
            )),
            vec!["namespaces[0].scopes[0]: ", "is no scope", "a virtual machine"],
        ),
        (
            space(&format!("- {{name: web, scopes: [{SUB}], credential: other}}")),
            vec!["namespaces[0].credential: \"other\" is none of the names in credentials"],
        ),
        (
            space(&format!(
                "- {{name: web, scopes: [{SUB}], credential: main}}\n- {{name: db, scopes: ['{}/resourceGroups/db'], credential: main}}",
                SUB.replace("/subscriptions", "/Subscriptions")
            )),
            vec![
                "namespaces[1].scopes[0]: ",
                "of namespace db",
                "of namespace web (namespaces[0].scopes[0])",
            ],
        ),
        (
            space(&format!(
                "- {{name: web, scopes: [{SUB}], credential: main}}\n- {{name: web, scopes: [{SUB}], credential: main}}"
            )),
            vec!["namespaces[1].name: \"web\" is named before"],
        ),
    ] {
        let found = complaint(&text);
        for part in wanted {
            assert!(found.contains(part), "{text}\ngave: {found}\nwithout: {part}");
        }
    }
}

#[test]
fn what_the_environment_has_is_judged_where_the_program_runs() {
    let config = Config::parse(&with("credentials: [{name: a, workloadIdentity: {}}]")).unwrap();
    let error = config.credentials[0].check(&|_| None).unwrap_err();
    assert!(error.to_string().contains("AZURE_TENANT_ID"), "{error}");
}

#[test]
fn all_mistakes_are_told_at_once() {
    let found = complaint("clusterId: a b\nsweepInterval: 0s\nconcurrency: 0\n");
    assert!(found.contains("3 mistakes"), "{found}");
    assert_eq!(found.lines().count(), 4, "{found}");
}

#[test]
fn neighbouring_scopes_do_not_overlap() {
    let text = with(&format!(
        "{CREDENTIAL}namespaces:\n- {{name: web, scopes: [{SUB}/resourceGroups/web], credential: main}}\n- {{name: web-2, scopes: [{SUB}/resourceGroups/web-2], credential: main}}"
    ));
    assert_eq!(Config::parse(&text).unwrap().namespaces.len(), 2);
}

/// Paths of every field, such as `cloud.name` and `namespaces[].scopes`.
fn fields(schema: &serde_json::Value, root: &serde_json::Value, path: &str, found: &mut Vec<String>) {
    let target = |schema: &serde_json::Value| -> serde_json::Value {
        let own = schema["anyOf"].as_array().and_then(|any| any.first()).unwrap_or(schema);
        match own["$ref"].as_str() {
            Some(name) => root["$defs"][name.trim_start_matches("#/$defs/")].clone(),
            None => own.clone(),
        }
    };
    for (name, child) in schema["properties"].as_object().into_iter().flatten() {
        let mut path = if path.is_empty() { name.clone() } else { format!("{path}.{name}") };
        let mut child = target(child);
        if child["items"].is_object() {
            path.push_str("[]");
            child = target(&child["items"]);
        }
        found.push(path.clone());
        fields(&child, root, &path, found);
    }
}

#[test]
fn every_field_is_documented() {
    let text = include_str!("../../../docs/configuration.md");
    let schema = serde_json::to_value(schemars::schema_for!(File)).unwrap();
    let mut found = Vec::new();
    fields(&schema, &schema, "", &mut found);
    assert!(found.len() > 30, "{found:?}");
    for field in &found {
        let name = field.replace("[]", "");
        assert!(text.contains(&format!("| `{name}` |")), "docs/configuration.md lacks a row for `{name}`");
    }
    let rows = text.lines().filter(|line| line.starts_with("| `")).count();
    assert_eq!(rows, found.len(), "docs/configuration.md has rows for fields that do not exist");
    // The example shows every field, so that there is one to copy.
    for field in &found {
        let name = field.trim_end_matches("[]").rsplit('.').next().unwrap_or_default();
        assert!(FULL.contains(&format!("{name}:")), "docs/configuration.example.yaml lacks {name}");
    }
}
