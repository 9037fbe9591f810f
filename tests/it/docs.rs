//! The documentation says what the program does.

use std::path::PathBuf;

use portcullis::api::Reason;
use portcullis::cli::docs;

fn folder() -> PathBuf {
    portcullis_harness::checkout().join("docs")
}

#[test]
fn generated_parts_are_up_to_date() {
    for (name, text) in docs::files(&folder()).unwrap() {
        let committed = std::fs::read_to_string(folder().join(name)).unwrap_or_default();
        assert!(committed == text, "docs/{name} is out of date: run `portcullis docs`");
    }
}

#[test]
fn every_reason_says_what_to_do_and_none_is_of_another_version() {
    let text = std::fs::read_to_string(folder().join("troubleshooting.md")).unwrap();
    let rows: Vec<Vec<&str>> = text
        .lines()
        .filter(|line| line.starts_with("| `") && line.split('|').count() == 5)
        .map(|line| line.split('|').map(str::trim).collect())
        .collect();
    let names: Vec<String> = rows.iter().map(|row| row[1].replace('`', "")).collect();
    let all: Vec<&str> = Reason::ALL.iter().map(|reason| reason.as_str()).collect();
    assert_eq!(names, all);
    for row in rows {
        assert!(row[3].ends_with('.'), "docs/troubleshooting.md says nothing to do about {}", row[1]);
    }
}

/// Every relative link in the Markdown of the repository leads somewhere.
#[test]
fn links_lead_somewhere() {
    let root = portcullis_harness::checkout();
    let mut files = vec![root.join("README.md"), root.join("CONTRIBUTING.md")];
    let mut folders = vec![folder()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                files.push(path);
            }
        }
    }
    let mut links = 0;
    for file in files.iter().filter(|file| file.exists()) {
        let text = std::fs::read_to_string(file).unwrap();
        for part in text.split("](").skip(1) {
            let target = part.split([')', '#']).next().unwrap();
            if target.is_empty() || target.contains("://") {
                continue;
            }
            links += 1;
            let there = file.parent().unwrap().join(target);
            assert!(there.exists(), "{}: no {target}", file.display());
        }
    }
    assert!(links > 5, "{links}");
}

/// The role that the documentation ships holds every action that the provider asks for.
#[test]
fn the_role_has_what_the_provider_names() {
    let role: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder().join("azure-role.json")).unwrap()).unwrap();
    let actions: Vec<&str> =
        role["Actions"].as_array().unwrap().iter().map(|action| action.as_str().unwrap()).collect();
    let mut named = 0;
    let mut folders = vec![portcullis_harness::checkout().join("src/providers/azure")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            let text = text.split("#[cfg(test)]").next().unwrap();
            for literal in text.split('"').filter(|literal| literal.starts_with("Microsoft.")) {
                if ["/read", "/write", "/delete", "/action"].iter().any(|end| literal.ends_with(end)) {
                    named += 1;
                    assert!(actions.contains(&literal), "docs/azure-role.json lacks {literal}");
                }
            }
        }
    }
    assert!(named > 3, "{named}: the test reads nothing");
    // Never the whole group: a slip of ours could erase other people's rules.
    assert!(!actions.contains(&"Microsoft.Network/networkSecurityGroups/write"));
    assert!(actions.iter().all(|action| !action.contains('*')));
}

/// The manifests and configurations in the documentation are read by the program itself.
#[test]
fn examples_are_right() {
    let root = portcullis_harness::checkout();
    let mut read = 0;
    for file in [
        "README.md",
        "docs/configuration.md",
        "docs/azure-setup.md",
        "docs/requesters.md",
        "docs/migration.md",
    ] {
        let text = std::fs::read_to_string(root.join(file)).unwrap();
        for block in text.split("```yaml\n").skip(1) {
            let block = block.split("```").next().unwrap();
            read += 1;
            if block.contains("clusterId:") {
                portcullis::cli::config::Config::parse(block)
                    .unwrap_or_else(|error| panic!("{file}: {error}"));
                continue;
            }
            crate::cluster::with_kinds(|plane| async move {
                let kubectl = plane.kubectl(portcullis_harness::User::Admin).unwrap();
                let arguments = ["apply", "--dry-run=server", "-f", "-"];
                let block = block.replace("team-web", "default");
                kubectl
                    .run_with_input(&arguments, &block)
                    .await
                    .unwrap_or_else(|error| panic!("{file}: {error}"));
            });
        }
    }
    assert!(read >= 4, "{read}");
}

/// A reason that no longer exists would wait in a script for something that never comes.
#[test]
fn the_health_scripts_know_no_reason_that_the_program_does_not_have() {
    let scripts = folder().join("../deploy/argocd/resource_customizations/jit.portcullis.io");
    let mut found = 0;
    for kind in ["JitPolicy", "JitAccessRequest", "JitAccessReview"] {
        let text = std::fs::read_to_string(scripts.join(kind).join("health.lua")).unwrap();
        let keys = text.lines().filter_map(|line| line.trim().strip_suffix(" = true,"));
        let compared = text.split("reason == \"").skip(1).filter_map(|rest| rest.split('"').next());
        for reason in keys.chain(compared) {
            found += 1;
            assert!(Reason::parse(reason).is_some(), "{kind}: {reason}");
        }
    }
    assert!(found > 4, "{found}");
}

/// Where the threat model says that something was tried, there is something that tries it.
#[test]
fn what_the_threat_model_names_is_there() {
    let text = std::fs::read_to_string(folder().join("security.md")).unwrap();
    let root = portcullis_harness::checkout();
    let mut named = 0;
    for row in text.lines().filter(|line| line.starts_with("| ") && line.matches(" | ").count() == 3) {
        let last = row.trim_end_matches(" |").rsplit(" | ").next().unwrap();
        for name in last.split('`').skip(1).step_by(2).filter(|name| !name.starts_with("make ")) {
            let path = format!("{}.rs", name.replace("::", "/"));
            named += 1;
            assert!(
                root.join("tests/it").join(&path).exists() || root.join("src").join(&path).exists(),
                "{name}"
            );
        }
    }
    assert!(named > 15, "{named}: the test reads nothing");
}
