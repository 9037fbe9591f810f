//! How the source is laid out: rooms that depend one way, files of a readable size, one clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each room may use beside itself.
fn allowed() -> BTreeMap<&'static str, BTreeSet<&'static str>> {
    [
        ("clock", vec![]),
        ("api", vec![]),
        ("plan", vec!["api"]),
        ("telemetry", vec!["api", "clock"]),
        ("providers", vec!["api", "plan", "clock"]),
        ("controllers", vec!["api", "plan", "providers", "clock", "telemetry"]),
        ("cli", vec!["api", "plan", "providers", "controllers", "clock", "telemetry"]),
        ("fuzzing", vec!["api", "plan", "providers"]),
        ("main", vec!["cli"]),
        ("bin", vec!["cli"]),
        ("lib", vec!["api", "plan", "providers", "controllers", "clock", "telemetry", "cli", "fuzzing"]),
    ]
    .into_iter()
    .map(|(room, others)| (room, others.into_iter().collect()))
    .collect()
}

fn source() -> PathBuf {
    portcullis_harness::checkout().join("src")
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// `src/plan/names.rs` as `plan/names.rs`.
fn name(path: &Path) -> String {
    path.strip_prefix(source()).unwrap().display().to_string()
}

/// The room that a file belongs to.
fn room(path: &Path) -> String {
    let name = name(path);
    name.split(['/', '.']).next().unwrap().to_owned()
}

/// Whether a file holds tests alone.
fn is_tests(path: &Path) -> bool {
    let name = name(path);
    name.ends_with("/tests.rs") || name.contains("/tests/")
}

/// What stands before the tests of a file, without its comments, each line with its number.
fn code(text: &str) -> Vec<(usize, &str)> {
    text.lines()
        .enumerate()
        .take_while(|(_, line)| line.trim() != "#[cfg(test)]")
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or_default()))
        .collect()
}

/// The rooms that a line names, by `crate::room` or within `use crate::{room, …}`.
fn rooms_named(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    for (start, matched) in text.match_indices("crate::").chain(text.match_indices("portcullis::")) {
        // `$crate::` and names that only end like it.
        if text[..start].chars().next_back().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &text[start + matched.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            found.push(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut part = String::new();
        for c in group.chars() {
            match c {
                '}' if depth == 0 => break,
                ',' if depth == 0 => found.push(word(std::mem::take(&mut part).trim())),
                '{' => depth += 1,
                '}' => depth -= 1,
                _ if depth == 0 => part.push(c),
                _ => {}
            }
        }
        found.push(word(part.trim()));
    }
    found.retain(|word| !word.is_empty());
    found
}

#[test]
fn rooms_depend_one_way() {
    let allowed = allowed();
    let mut wrong = Vec::new();
    let mut named = 0;
    for path in files(&source()) {
        let own = room(&path);
        let text = std::fs::read_to_string(&path).unwrap();
        let code: Vec<&str> = code(&text).into_iter().map(|(_, line)| line).collect();
        let rooms = allowed.get(own.as_str()).unwrap_or_else(|| panic!("src/{} is in no room", name(&path)));
        for other in rooms_named(&code.join("\n")) {
            // What is not a room is an item at the root, of which there are none.
            assert!(allowed.contains_key(other.as_str()), "{}: crate::{other} is no room", name(&path));
            named += 1;
            if other != own && !rooms.contains(other.as_str()) {
                wrong.push(format!("{} uses {other}", name(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(named > 50, "{named}: the test reads nothing");
}

#[test]
fn rooms_are_read_from_every_form_of_path() {
    for (text, rooms) in [
        ("use crate::plan::names::Cluster;", vec!["plan"]),
        (
            "use crate::{\n    api::{self, values::{Cidr, Span}},\n    clock::Clock,\n    telemetry,\n};",
            vec!["api", "clock", "telemetry"],
        ),
        ("fn f(x: &crate::api::Reason) -> crate::plan::X {", vec!["api", "plan"]),
        ("pub(crate) fn f()", vec![]),
        ("use portcullis::cli::Cli;", vec!["cli"]),
        ("use other_crate::thing;", vec![]),
    ] {
        assert_eq!(rooms_named(text), rooms, "{text}");
    }
}

/// Files that have grown past the limit and are still to be split, with what they may not grow past. A file
/// that no longer needs its place here must leave it.
const TO_BE_SPLIT: [(&str, usize); 0] = [];

#[test]
fn files_stay_readable() {
    let mut long = Vec::new();
    for path in files(&source()).into_iter().filter(|path| !is_tests(path)) {
        let text = std::fs::read_to_string(&path).unwrap();
        let lines = code(&text).iter().filter(|(_, line)| !line.trim().is_empty()).count();
        let exception = TO_BE_SPLIT.iter().find(|(file, _)| *file == name(&path));
        assert!(exception.is_none() || lines > 400, "{} is split: take it off the list", name(&path));
        if lines > exception.map_or(400, |(_, most)| *most) {
            long.push(format!("{}: {lines} lines of code before its tests, at most 400", name(&path)));
        }
        assert!(path.file_name().unwrap() != "mod.rs", "{}: write room.rs beside room/", name(&path));
    }
    assert!(long.is_empty(), "{long:#?}");
}

#[test]
fn every_file_says_what_it_is_for() {
    for path in files(&source()).into_iter().filter(|path| !is_tests(path)) {
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.starts_with("//! "), "{} begins with no word about itself", name(&path));
    }
}

/// Deadlines are judged by one clock, which tests can set; lengths of time may be measured by another.
#[test]
fn only_the_clock_asks_what_time_it_is() {
    let wall =
        ["Timestamp::now", "SystemTime::now", "Zoned::now", "Utc::now", "Local::now", "UNIX_EPOCH.elapsed"];
    let mut wrong = Vec::new();
    for path in files(&source()).into_iter().filter(|path| !is_tests(path)) {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in code(&text) {
            let asks = wall.iter().any(|call| line.contains(call)) && name(&path) != "clock.rs";
            let pure = ["api", "plan"].contains(&room(&path).as_str());
            if asks || (pure && line.contains("Instant::now")) {
                wrong.push(format!("{}:{number}: {}", name(&path), line.trim()));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Law of the room: no async, no IO, no clock, no logs.
#[test]
fn plans_are_pure() {
    let words = [
        "async ",
        ".await",
        "tokio",
        "tracing::",
        "std::fs",
        "std::net::Tcp",
        "reqwest",
        "kube::Client",
        "Clock",
        "rand::",
    ];
    let mut wrong = Vec::new();
    for path in files(&source()).into_iter().filter(|path| room(path) == "plan") {
        let text = std::fs::read_to_string(&path).unwrap();
        for (number, line) in code(&text) {
            for word in words.iter().filter(|word| line.contains(**word)) {
                wrong.push(format!("{}:{number}: {word}", name(&path)));
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The repository is about the product: nothing of the machine that it was written on.
#[test]
fn no_path_of_somebodys_machine_is_left() {
    let root = portcullis_harness::checkout();
    let mut wrong = Vec::new();
    for folder in ["src", "docs", "crds", "deploy", "tests/it"] {
        let mut folders = vec![root.join(folder)];
        while let Some(folder) = folders.pop() {
            for entry in std::fs::read_dir(&folder).into_iter().flatten() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    folders.push(path);
                } else if let Ok(text) = std::fs::read_to_string(&path) {
                    let root = root.display().to_string();
                    let homes = ["/root", "/home"].map(|home| format!("{home}/"));
                    if homes.iter().chain([&root]).any(|part| text.contains(part.as_str())) {
                        wrong.push(path);
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:?}");
}
