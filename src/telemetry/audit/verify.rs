//! Whether chains of records are whole, and where one is not.

use std::collections::{BTreeMap, HashSet};

use serde_json::Value;

use super::chain::{GENESIS, canonical, hash};
use super::record::MARKER;
use strict::Strict;

mod strict;

/// How each record begins as the controller writes it: the marker is its first field.
const BEGIN: &str = r#"{"audit":"portcullis""#;

/// Reads lines and keeps what it needs of each chain.
#[derive(Clone, Debug, Default)]
pub struct Verifier {
    lines: u64,
    others: u64,
    torn: Vec<u64>,
    chains: BTreeMap<String, Found>,
}

/// What was found of one chain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// Records of it.
    pub records: u64,
    /// Lines that repeat a record that stands before them, as logs that deliver at least once do.
    pub repeated: u64,
    /// Records that somebody on the way wrote anew, with the same content: other spaces, another order of fields.
    pub rewritten: u64,
    /// Records that the chain itself says were lost.
    pub dropped: u64,
    /// The number of its first record here; 0 where its beginning is here.
    pub first_seq: u64,
    /// The number of its last record here.
    pub last_seq: u64,
    /// When its first record here was made.
    pub first_time: String,
    /// When its last record here was made.
    pub last_time: String,
    /// Whether the controller ended it.
    pub ended: bool,
    /// Where it is broken, and how; nothing after the first break is judged by what came before it.
    pub breaks: Vec<Break>,
    last_hash: String,
    /// Number and hash of every record so far.
    seen: HashSet<(u64, String)>,
}

/// A place where a chain is broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// The line, from 1.
    pub line: u64,
    /// The number that the record gives itself.
    pub seq: u64,
    /// What is wrong.
    pub what: String,
}

/// What a verification came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Every chain is whole from its first record on.
    Whole,
    /// No record was found.
    Nothing,
    /// At least one chain is broken.
    Broken,
    /// Nothing is broken, but the beginning of a chain is not here, or a line was cut off.
    Partial,
}

impl Verifier {
    /// Takes one line. What is not a record is counted and passed over; a prefix before one, such as
    /// `kubectl logs --prefix --timestamps` writes, is too.
    pub fn line(&mut self, line: &str) {
        self.lines += 1;
        let as_written = line.find(BEGIN);
        // Else it may have been written anew by a collector, its fields in any order.
        let Some(start) = as_written.or_else(|| line.find('{').filter(|_| line.contains(MARKER))) else {
            self.others += 1;
            return;
        };
        let text = line[start..].trim_end();
        let record = match serde_json::from_str::<Strict>(text) {
            Ok(record) if record.value["audit"] == MARKER => record,
            Err(_) if as_written.is_some() => {
                self.torn.push(self.lines);
                return;
            }
            Ok(_) | Err(_) => {
                self.others += 1;
                return;
            }
        };
        let chain = record.value["chain"].as_str().unwrap_or_default();
        let found = self.chains.entry(chain.to_owned()).or_default();
        found.judge(self.lines, text, &record);
    }

    /// The chains, by their ids.
    #[must_use]
    pub const fn chains(&self) -> &BTreeMap<String, Found> {
        &self.chains
    }

    /// How many lines were no records.
    #[must_use]
    pub const fn others(&self) -> u64 {
        self.others
    }

    /// Lines that begin as a record and do not end as one.
    #[must_use]
    pub fn torn(&self) -> &[u64] {
        &self.torn
    }

    /// What it all came to.
    #[must_use]
    pub fn verdict(&self) -> Verdict {
        if self.chains.values().any(|chain| !chain.breaks.is_empty()) {
            Verdict::Broken
        } else if self.chains.is_empty() && self.torn.is_empty() {
            Verdict::Nothing
        } else if !self.torn.is_empty() || self.chains.values().any(|chain| chain.first_seq > 0) {
            Verdict::Partial
        } else {
            Verdict::Whole
        }
    }
}

impl Found {
    fn judge(&mut self, line: u64, text: &str, Strict { value: record, repeats }: &Strict) {
        let word = |field: &str| record[field].as_str().unwrap_or_default();
        let (seq, kind, own) = (record["seq"].as_u64().unwrap_or(u64::MAX), word("kind"), word("hash"));
        let dropped = record.pointer("/dropped/count").and_then(Value::as_u64).unwrap_or(0);
        let mut wrong = Vec::new();
        if let Some(field) = repeats {
            wrong.push(format!("the record has the field {field} twice: who reads it may see either"));
        } else if own != hash(record) {
            wrong.push("the record was changed: its hash does not fit".to_owned());
        }
        if wrong.is_empty() && self.seen.contains(&(seq, own.to_owned())) {
            self.repeated += 1;
            return;
        }
        let first = self.records == 0;
        if first && seq == 0 && (word("previous") != GENESIS || kind != "ChainStarted") {
            wrong.push("the first record of a chain has to be ChainStarted and to follow none".to_owned());
        }
        if !first {
            let wanted = self.last_seq.saturating_add(1).saturating_add(dropped);
            if seq != wanted {
                wrong.push(format!("record {wanted} was to follow record {}", self.last_seq));
            } else if word("previous") != self.last_hash {
                wrong.push(format!("it does not follow record {} that stands before it", self.last_seq));
            }
            if self.ended {
                wrong.push("it follows the end of its chain".to_owned());
            }
        }
        self.breaks.extend(wrong.into_iter().map(|what| Break { line, seq, what }));
        if first {
            (self.first_seq, self.first_time) = (seq, word("time").to_owned());
        }
        self.records += 1;
        self.rewritten += u64::from(text != canonical(record));
        self.dropped += dropped;
        self.ended |= kind == "ChainEnded";
        (self.last_seq, self.last_time) = (seq, word("time").to_owned());
        own.clone_into(&mut self.last_hash);
        self.seen.insert((seq, own.to_owned()));
    }
}
