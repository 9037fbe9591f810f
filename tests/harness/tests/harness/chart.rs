//! The chart: what Helm renders of it, what it refuses, and what others judge of it. [`installed`] has it installed.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod installed;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Output;

use portcullis_harness::{Tools, User, checkout, install};
use serde::Deserialize;
use serde_json::{Value, json};

/// The least that it wants.
const CLUSTER: &str = "clusterId=prod,azure.workloadIdentity.clientId=00000000-0000-0000-0000-000000000000";

fn folder() -> PathBuf {
    checkout().join("charts/portcullis")
}

fn tools() -> Tools {
    Tools::find_or_build(|line| println!("{line}")).unwrap()
}

/// Every document of a YAML text.
fn documents(text: &str) -> Vec<Value> {
    let documents = serde_yaml_ng::Deserializer::from_str(text).map(|one| Value::deserialize(one).unwrap());
    documents.filter(|document| !document.is_null()).collect()
}

/// Rendered as release `portcullis` in `portcullis-system`, for this version of Kubernetes.
fn render(arguments: &[&str]) -> Output {
    let mut all =
        vec!["template", "portcullis", ".", "--namespace", "portcullis-system", "--kube-version", "1.37.2"];
    all.extend(["--api-versions", "admissionregistration.k8s.io/v1/MutatingAdmissionPolicy"]);
    all.extend(arguments);
    tools().run(&folder(), "helm", &all).unwrap()
}

fn rendered(arguments: &[&str]) -> Vec<Value> {
    let output = render(arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    documents(&String::from_utf8(output.stdout).unwrap())
}

#[track_caller]
fn refused(arguments: &[&str], words: &[&str]) {
    let output = render(arguments);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{arguments:?} was rendered");
    for word in words {
        assert!(said.contains(word), "{arguments:?}: {word:?} is missing in: {said}");
    }
}

/// What one tool names otherwise than the other, and what the one has by its nature.
fn plain(mut object: Value) -> (String, Value) {
    fn strip(value: &mut Value) {
        match value {
            Value::Object(members) => {
                for label in ["instance", "version", "managed-by", "part-of", "name"] {
                    members.remove(&format!("app.kubernetes.io/{label}"));
                }
                for key in
                    ["helm.sh/chart", "helm.sh/resource-policy", "checksum/config", "creationTimestamp"]
                {
                    members.remove(key);
                }
                members.values_mut().for_each(strip);
                members.retain(|key, value| {
                    !(["labels", "annotations"].contains(&key.as_str())
                        && value.as_object().is_some_and(serde_json::Map::is_empty))
                });
            }
            Value::Array(items) => items.iter_mut().for_each(strip),
            _ => {}
        }
    }
    strip(&mut object);
    let name = object["metadata"]["name"].as_str().unwrap().to_owned();
    (format!("{} {name}", object["kind"].as_str().unwrap()), object)
}

#[test]
fn a_changed_configuration_restarts_the_controller_and_a_changed_log_level_does_not() {
    let checksum = |value: &str| {
        let objects = rendered(&["--set", CLUSTER, "--set", value]);
        let deployment = objects.iter().find(|object| object["kind"] == "Deployment").unwrap();
        deployment["spec"]["template"]["metadata"]["annotations"]["checksum/config"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    assert_eq!(checksum("log.level=info"), checksum("log.level=warn\\,portcullis=debug"));
    assert_ne!(checksum("log.level=info"), checksum("config.driftInterval=2m"));
    assert_ne!(checksum("config.driftInterval=3m"), checksum("config.driftInterval=2m"));
}

#[tokio::test]
async fn the_chart_and_deploy_hold_the_same_objects() {
    let assets = portcullis_harness::assets::Assets::find_or_build(|line| println!("{line}")).unwrap();
    // With workload identity, as the chart has it unless told otherwise.
    let overlay = checkout().join("deploy/overlays/workload-identity");
    let built =
        std::process::Command::new(assets.path("kubectl")).arg("kustomize").arg(overlay).output().unwrap();
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    // The name of the configuration carries a hash there, and the namespace is Helm's to create.
    let text = String::from_utf8(built.stdout).unwrap();
    let hash =
        text.split("name: portcullis-config-").nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    let deployed = documents(&text.replace(&format!("portcullis-config-{hash}"), "portcullis-config"));
    let wanted = ["ConfigMap", "Namespace"];
    let deployed: Vec<_> = deployed
        .into_iter()
        .filter(|object| !wanted.contains(&object["kind"].as_str().unwrap()))
        .map(plain)
        .collect();
    let chart: Vec<_> = rendered(&["--set", CLUSTER])
        .into_iter()
        .filter(|object| object["kind"] != "ConfigMap" && object["kind"] != "Job")
        .map(plain)
        .collect();
    let names =
        |objects: &[(String, Value)]| objects.iter().map(|(name, _)| name.clone()).collect::<BTreeSet<_>>();
    assert_eq!(names(&chart), names(&deployed));
    for (name, object) in &chart {
        let (_, other) = deployed.iter().find(|(other, _)| other == name).unwrap();
        assert_eq!(object, other, "{name}");
    }
}

/// What the chart carries is a copy, since a chart is one folder.
#[test]
fn what_the_chart_carries_is_what_deploy_has() {
    let (files, root) = (folder().join("files"), checkout());
    let mut pairs: Vec<(PathBuf, PathBuf)> = ["admission.yaml", "controller-roles.yaml", "user-roles.yaml"]
        .map(|name| (files.join(name), root.join("deploy/base").join(name)))
        .into();
    for entry in std::fs::read_dir(root.join("crds")).unwrap() {
        let path = entry.unwrap().path();
        if path.file_name().unwrap() != "kustomization.yaml" {
            pairs.push((files.join("crds").join(path.file_name().unwrap()), path));
        }
    }
    for (copy, original) in pairs {
        let read = |path: &PathBuf| {
            std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
        };
        assert!(read(&copy) == read(&original), "{} is out of date: run `make crds`", copy.display());
    }
}

#[test]
fn what_is_wrong_in_the_values_is_named() {
    refused(&[], &["clusterId is needed", "prod-weu-1"]);
    refused(&["--set", CLUSTER, "--set", "replica=3"], &["replica", "not allowed"]);
    refused(&["--set", CLUSTER, "--set-string", "replicas=two"], &["/replicas", "want integer"]);
    refused(
        &["--set", CLUSTER, "--set", "config.driftIntervall=2m"],
        &["config.driftIntervall", "driftInterval,"],
    );
    refused(&["--set", "clusterId=prod"], &["azure.workloadIdentity.clientId is needed"]);
    refused(&["--set", CLUSTER, "--set", "azure.cloud=Custom"], &["azure.resourceManager is needed"]);
    refused(&["--set", CLUSTER, "--set", "azure.cloud=Germany"], &["/azure/cloud", "USGovernment"]);
    refused(
        &["--set", CLUSTER, "--set", "azure.managedIdentity.enabled=true"],
        &["azure.workloadIdentity and azure.managedIdentity are enabled together", "enable one of"],
    );
    refused(
        &["--set", CLUSTER, "--set", "azure.workloadIdentity.enabled=false"],
        &["no credential: enable one of"],
    );
    let secret =
        ["--set", CLUSTER, "--set", "azure.workloadIdentity.enabled=false,azure.clientSecret.enabled=true"];
    refused(&secret, &["azure.clientSecret.tenantId is needed"]);
    refused(
        &["--set", CLUSTER, "--set-json", r#"namespaces=[{"name":"team-web"}]"#],
        &["/namespaces/0", "scopes"],
    );
    refused(
        &["--set", CLUSTER, "--set-json", r#"namespaces=[{"name":"team-web","scopes":["web"]}]"#],
        &["/namespaces/0/scopes/0", "subscriptions"],
    );
    refused(&["--set", CLUSTER, "--set", "config.clusterId=other"], &["config.clusterId is not for here"]);
    refused(
        &["--set", CLUSTER, "--set", "metrics.serviceMonitor.enabled=true,metrics.podMonitor.enabled=true"],
        &["counted twice"],
    );
    refused(&["--set", CLUSTER, "--kube-version", "1.32.0"], &["1.33"]);
}

/// Every field of the configuration file has a value, or may stand under `config`, and nothing else may.
#[test]
fn what_may_stand_under_config_is_what_the_program_reads() {
    let read = |path: &str| std::fs::read_to_string(checkout().join(path)).unwrap();
    let example: Value = serde_yaml_ng::from_str(&read("docs/configuration.example.yaml")).unwrap();
    let keys = |value: &Value| value.as_object().unwrap().keys().cloned().collect::<BTreeSet<_>>();
    let own = "clusterId previousClusterIds controllerUser cloud credentials namespaces dryRun logLevel";
    let own: BTreeSet<String> = own.split(' ').map(str::to_owned).collect();
    let further: BTreeSet<String> = keys(&example).difference(&own).cloned().collect();
    let schema: Value = serde_json::from_str(&read("charts/portcullis/values.schema.json")).unwrap();
    assert_eq!(keys(&schema["properties"]["config"]["properties"]), further, "values.schema.json");
    for field in &further {
        let value = serde_json::to_string(&example[field]).unwrap();
        let objects = rendered(&["--set", CLUSTER, "--set-json", &format!("config.{field}={value}")]);
        let map = objects.iter().find(|object| object["kind"] == "ConfigMap").unwrap();
        let config: Value = serde_yaml_ng::from_str(map["data"]["config.yaml"].as_str().unwrap()).unwrap();
        assert_eq!(config[field], example[field], "{field}");
    }
    for field in own {
        refused(
            &["--set", CLUSTER, "--set", &format!("config.{field}=x")],
            &[&format!("config.{field} is not for here")],
        );
    }
}

#[test]
fn what_is_not_served_is_not_rendered() {
    let kinds = |objects: &[Value]| {
        objects.iter().map(|one| one["kind"].as_str().unwrap().to_owned()).collect::<BTreeSet<_>>()
    };
    let old = tools()
        .run(
            &folder(),
            "helm",
            &["template", "portcullis", ".", "--kube-version", "1.33.0", "--set", CLUSTER],
        )
        .unwrap();
    let old = documents(&String::from_utf8(old.stdout).unwrap());
    assert!(
        !kinds(&old).contains("MutatingAdmissionPolicy") && kinds(&old).contains("ValidatingAdmissionPolicy")
    );
    assert!(kinds(&rendered(&["--set", CLUSTER])).contains("MutatingAdmissionPolicy"));
    let without = rendered(&["--set", CLUSTER, "--set", "crds.enabled=false,admission.enabled=false"]);
    let without = kinds(&without);
    assert!(!without.contains("CustomResourceDefinition") && !without.contains("ValidatingAdmissionPolicy"));
}

#[test]
fn others_find_nothing_wrong_with_it() {
    let (tools, folder) = (tools(), folder());
    let judged = |name: &str, arguments: &[&str]| {
        let output = tools.run(&folder, name, arguments).unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name} {arguments:?}\n{said}");
        said
    };
    judged("helm", &["lint", ".", "--strict", "--set", CLUSTER]);
    let said = judged("helm-unittest", &["--strict", "."]);
    assert!(said.contains("Test Suites:") && !said.contains("Test Suites: 0 passed"), "{said}");
    judged("promtool", &["check", "rules", "files/alerts.yaml"]);
    let said = judged("promtool", &["test", "rules", "tests/alerts.promtool.yaml"]);
    assert!(said.contains("SUCCESS"), "{said}");
}

#[test]
fn its_readme_says_what_its_values_are() {
    let scratch = tempfile::tempdir().unwrap();
    let copy = scratch.path().join("portcullis");
    let copied = std::process::Command::new("cp").arg("-r").arg(folder()).arg(&copy).status().unwrap();
    assert!(copied.success());
    let output = tools().run(&copy, "helm-docs", &["--log-level", "error"]).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let read = |folder: &std::path::Path| std::fs::read_to_string(folder.join("README.md")).unwrap();
    assert!(read(&copy) == read(&folder()), "charts/portcullis/README.md is out of date: run `make chart`");
}

/// Every name in the alerts and in the dashboard is one that the program has.
#[test]
fn alerts_and_dashboard_ask_for_metrics_that_there_are() {
    let known = std::fs::read_to_string(checkout().join("docs/reference/metrics.md")).unwrap();
    let known: BTreeSet<&str> =
        known.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let alerts = std::fs::read_to_string(folder().join("files/alerts.yaml")).unwrap();
    let dashboard = std::fs::read_to_string(folder().join("files/dashboard.json")).unwrap();
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let ours = ["portcullis_", "controller_runtime_", "leader_election_", "rest_client_"];
        words.filter(|word| ours.iter().any(|prefix| word.starts_with(prefix))).map(str::to_owned).collect()
    };
    let mut asked = 0;
    for word in words(&alerts).union(&words(&dashboard)) {
        let name =
            ["_bucket", "_sum", "_count"].iter().find_map(|end| word.strip_suffix(end)).unwrap_or(word);
        assert!(known.contains(name), "{word} is no metric of the program");
        asked += 1;
    }
    assert!(asked > 10, "{asked}");
    // And each alert has its place in the runbook.
    let runbook = std::fs::read_to_string(checkout().join("docs/runbook.md")).unwrap();
    for alert in alerts.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(runbook.contains(&format!("\n## {alert}\n")), "{alert} is not in docs/runbook.md");
        assert!(alerts.contains(&format!("runbook.md#{}\n", alert.to_lowercase())), "{alert}");
    }
}

/// A misspelt label is no mistake to Prometheus: the panel would be empty.
#[test]
fn every_query_is_one_that_prometheus_takes_and_names_labels_that_its_metrics_have() {
    let reference = std::fs::read_to_string(checkout().join("docs/reference/metrics.md")).unwrap();
    let mut labels: Vec<(String, BTreeSet<String>)> = Vec::new();
    for line in reference.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let names = cells[3].split(", ").map(|label| label.trim_matches('`').to_owned());
        labels.push((cells[1].trim_matches('`').to_owned(), names.filter(|name| !name.is_empty()).collect()));
    }
    let read = |name: &str| std::fs::read_to_string(folder().join("files").join(name)).unwrap();
    let dashboard: Value = serde_json::from_str(&read("dashboard.json")).unwrap();
    let alerts: Value = serde_yaml_ng::from_str(&read("alerts.yaml")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap();
    let targets = panels.iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let mut queries: Vec<(String, String)> = targets
        .map(|target| {
            let (query, legend) =
                (target["expr"].as_str().unwrap(), target["legendFormat"].as_str().unwrap_or_default());
            (query.replace("$__rate_interval", "5m"), legend.to_owned())
        })
        .collect();
    for rule in alerts["groups"][0]["rules"].as_array().unwrap() {
        let text: String =
            ["summary", "description"].iter().filter_map(|name| rule["annotations"][name].as_str()).collect();
        queries.push((rule["expr"].as_str().unwrap().to_owned(), text.replace("$labels.", "")));
    }
    let rules: Vec<Value> = queries
        .iter()
        .enumerate()
        .map(|(number, (query, _))| json!({"record": format!("query{number}"), "expr": query}))
        .collect();
    let scratch = tempfile::tempdir().unwrap();
    let all = json!({"groups": [{"name": "queries", "rules": rules}]});
    std::fs::write(scratch.path().join("queries.yaml"), all.to_string()).unwrap();
    let judged = tools().run(scratch.path(), "promtool", &["check", "rules", "queries.yaml"]).unwrap();
    assert!(judged.status.success(), "{}", String::from_utf8_lossy(&judged.stderr));

    let mut asked = 0;
    for (query, text) in &queries {
        let known: BTreeSet<&str> = labels
            .iter()
            .filter(|(metric, _)| query.contains(metric))
            .flat_map(|(_, labels)| labels.iter().map(String::as_str))
            // Of a bucket, and of what was scraped: the namespace that this runs in.
            .chain(["le", "namespace"])
            .collect();
        let within = |open: &'static str, close: &'static str, text: &str| -> Vec<String> {
            text.split(open).skip(1).map(|rest| rest.split(close).next().unwrap().to_owned()).collect()
        };
        let grouped = within("by (", ")", query).join(",");
        let matched = within("{", "}", query).join(",");
        let matched = matched.split(',').map(|one| one.split(['=', '!']).next().unwrap());
        let told = within("{{", "}}", text);
        let told = told.iter().map(String::as_str).filter(|name| !name.trim().starts_with("$value"));
        for label in
            grouped.split(',').chain(matched).chain(told).map(str::trim).filter(|name| !name.is_empty())
        {
            assert!(known.contains(label), "{query} or its legend names {label}; there are {known:?}");
            asked += 1;
        }
    }
    assert!(asked > 40, "{asked}");
}

/// Where kustomize has installed it, Helm does not do so again.
#[tokio::test]
async fn where_it_is_by_other_means_it_is_not_installed_again() {
    let plane = install::shared().await.unwrap();
    let config = plane.kubeconfig(User::Admin).unwrap().display().to_string();
    let again =
        ["install", "again", ".", "--namespace", "default", "--set", CLUSTER, "--kubeconfig", &config];
    let output = tools().run(&folder(), "helm", &again).unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains("in this cluster already, and not by Helm"), "{said}");
}

/// The API server itself, strictly, and the schemas that it publishes, by kubeconform.
#[tokio::test]
async fn the_api_server_and_its_schemas_accept_all_of_it() {
    let plane = install::shared().await.unwrap();
    let all = [
        "--set",
        CLUSTER,
        "--set",
        "crds.enabled=false",
        "--set-json",
        r#"namespaces=[{"name":"team-web","scopes":["/subscriptions/00000000-0000-0000-0000-000000000001"]}]"#,
        "--set",
        "azure.caCertificates=none,networkPolicy.extraEgressPorts={3128}",
        "--set-json",
        r#"networkPolicy.metricsFrom=[{"namespaceSelector":{}}]"#,
        "--set",
        "metrics.dashboard.enabled=true",
        "--set",
        "imagePullSecrets={registry}",
        "--set-json",
        r#"extraEnv=[{"name":"HTTPS_PROXY","value":"http://proxy:3128"}]"#,
        "--set-json",
        r#"extraObjects=[{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"{{ .Release.Name }}-more"}}]"#,
    ];
    let objects = rendered(&all);
    assert!(objects.iter().any(|object| object["metadata"]["name"] == "portcullis-more"));
    let schemas = tempfile::tempdir().unwrap();
    let published = plane.request(reqwest::Method::GET, "/openapi/v2", None).await.unwrap();
    let definitions = published["definitions"].as_object().unwrap();
    for definition in definitions.values() {
        for kind in definition["x-kubernetes-group-version-kind"].as_array().into_iter().flatten() {
            if !objects.iter().any(|object| object["kind"] == kind["kind"]) {
                continue;
            }
            let text = |field: &str| kind[field].as_str().unwrap_or_default().to_lowercase();
            // The core group has its version for a name there.
            let group = if text("group").is_empty() { text("version") } else { text("group") };
            let name = format!("{}-{group}-{}.json", text("kind"), text("version"));
            let mut schema = definition.clone();
            schema["definitions"] = json!(definitions);
            // What OpenAPI calls a string of the format int-or-string.
            let text = schema
                .to_string()
                .replace(r#""format":"int-or-string","type":"string""#, r#""type":["integer","string"]"#);
            std::fs::write(schemas.path().join(name), text).unwrap();
        }
    }
    let manifest = schemas.path().join("all.yaml");
    let text: Vec<String> = objects.iter().map(Value::to_string).collect();
    std::fs::write(&manifest, text.join("\n---\n")).unwrap();
    let location = format!(
        "{}/{{{{.ResourceKind}}}}-{{{{.Group}}}}-{{{{.ResourceAPIVersion}}}}.json",
        schemas.path().display()
    );
    let judged = tools()
        .run(
            schemas.path(),
            "kubeconform",
            &["-strict", "-summary", "-schema-location", &location, "all.yaml"],
        )
        .unwrap();
    let said =
        format!("{}{}", String::from_utf8_lossy(&judged.stdout), String::from_utf8_lossy(&judged.stderr));
    assert!(judged.status.success() && said.contains(&format!("Valid: {}", objects.len())), "{said}");
    let admin = plane.kubectl(User::Admin).unwrap();
    let dry = ["apply", "--server-side", "--force-conflicts", "--dry-run=server", "--validate=strict", "-f"];
    admin.run(&[&dry[..], &[&manifest.display().to_string()]].concat()).await.unwrap();
}
