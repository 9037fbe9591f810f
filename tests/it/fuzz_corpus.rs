//! The fuzz targets, over what is kept in `fuzz/corpus`, and over thousands of inputs made of it: what was
//! found once stays found.

use std::path::PathBuf;

use portcullis::fuzzing::TARGETS;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// Inputs made of each one that is kept.
const MADE: usize = 400;

fn kept(target: &str) -> Vec<Vec<u8>> {
    let folder: PathBuf = portcullis_harness::checkout().join("fuzz/corpus").join(target);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.into_iter().map(|file| std::fs::read(file).unwrap()).collect()
}

/// Bytes that matter to what reads them.
const WORDS: [&[u8]; 12] = [
    b"null",
    b"\"\"",
    b"-1",
    b"99999999999999999999",
    b"[]",
    b"{}",
    b"\"\\u0000\"",
    b"65536",
    b"0.0.0.0/0",
    b"::/0",
    b"*",
    b"\xff",
];

fn changed(random: &mut StdRng, all: &[Vec<u8>]) -> Vec<u8> {
    let mut input = all[random.random_range(0..all.len())].clone();
    for _ in 0..random.random_range(1..6) {
        let at = random.random_range(0..=input.len());
        match random.random_range(0..5) {
            0 if at < input.len() => input[at] = random.random(),
            1 => input.truncate(at),
            2 => {
                let word = WORDS[random.random_range(0..WORDS.len())];
                input.splice(at..at, word.iter().copied());
            }
            3 => {
                let other = &all[random.random_range(0..all.len())];
                let from = random.random_range(0..=other.len());
                input.splice(at.., other[from..].iter().copied());
            }
            _ => {
                // A value of JSON in place of another.
                if let Some(colon) = input[at..].iter().position(|byte| *byte == b':') {
                    let (from, word) = (at + colon + 1, WORDS[random.random_range(0..WORDS.len())]);
                    let until = input[from..].iter().position(|byte| matches!(byte, b',' | b'}' | b']'));
                    let until = until.map_or(input.len(), |until| from + until);
                    input.splice(from..until, word.iter().copied());
                }
            }
        }
    }
    input
}

#[test]
fn nothing_that_strangers_send_stops_what_reads_it() {
    for (name, target) in TARGETS {
        let all = kept(name);
        assert!(!all.is_empty(), "{name} has no corpus");
        all.iter().for_each(|input| target(input));
        let mut random = StdRng::seed_from_u64(0x706f_7274);
        for number in 0..MADE * all.len() {
            let input = changed(&mut random, &all);
            let done = std::panic::catch_unwind(|| target(&input));
            assert!(done.is_ok(), "{name}, input {number}: {}", String::from_utf8_lossy(&input));
        }
    }
}

/// Each has a target for `cargo fuzz`.
#[test]
fn every_target_is_built_for_the_fuzzer() {
    let root = portcullis_harness::checkout().join("fuzz");
    let manifest = std::fs::read_to_string(root.join("Cargo.toml")).unwrap();
    for (name, _) in TARGETS {
        assert!(manifest.contains(&format!("name = \"{name}\"")), "{name}");
        let source = std::fs::read_to_string(root.join(format!("fuzz_targets/{name}.rs"))).unwrap();
        assert!(source.contains(&format!("fuzzing::{name}(")), "{name}");
    }
}
