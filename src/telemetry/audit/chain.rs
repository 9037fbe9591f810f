//! Records made into a chain: each holds the hash of the one before.

use jiff::Timestamp;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::event::Event;
use super::record::{MARKER, Record, SCHEMA};

/// What stands in place of a hash before the first record.
pub const GENESIS: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The end of a chain, where the next record goes.
#[derive(Clone, Debug)]
pub struct Chain {
    id: String,
    next: u64,
    previous: String,
}

/// A record as it is written, and what follows from its having been written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// The line, without its end.
    pub line: String,
    seq: u64,
    hash: String,
}

impl Chain {
    /// A new chain of this id.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self { id, next: 0, previous: GENESIS.to_owned() }
    }

    /// The next record, after leaving out `skipped` numbers. The chain goes on from it once it is
    /// [written](Self::written).
    ///
    /// # Errors
    /// When it cannot be written as JSON, which its types rule out.
    pub fn seal(&self, event: Event, time: Timestamp, skipped: u64) -> Result<Sealed, serde_json::Error> {
        let seq = self.next + skipped;
        let record = Record {
            audit: MARKER.into(),
            chain: self.id.as_str().into(),
            hash: "".into(),
            kind: event.kind,
            ocsf: event.ocsf(),
            previous: self.previous.as_str().into(),
            schema: SCHEMA,
            seq,
            time,
            parts: event.parts,
        };
        let mut value = serde_json::to_value(record)?;
        let hash = hash(&value);
        value["hash"] = hash.clone().into();
        Ok(Sealed { line: canonical(&value), seq, hash })
    }

    /// Goes on from a record that was written.
    pub fn written(&mut self, sealed: Sealed) {
        self.next = sealed.seq + 1;
        self.previous = sealed.hash;
    }
}

/// The hash of a record: of its canonical form without the field `hash`.
#[must_use]
pub fn hash(record: &Value) -> String {
    let mut record = record.clone();
    if let Some(fields) = record.as_object_mut() {
        fields.remove("hash");
    }
    Sha256::digest(canonical(&record).as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

/// JSON in the one form that is hashed (RFC 8785, for values without fractions): no spaces, keys in order.
#[must_use]
pub fn canonical(value: &Value) -> String {
    let mut text = String::new();
    write(value, &mut text);
    text
}

fn write(value: &Value, text: &mut String) {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            text.push_str(&value.to_string());
        }
        Value::Array(items) => {
            text.push('[');
            for (number, item) in items.iter().enumerate() {
                if number > 0 {
                    text.push(',');
                }
                write(item, text);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            // Whatever order the map keeps: it is a matter of how the JSON library was built.
            let mut keys: Vec<&String> = fields.keys().collect();
            keys.sort();
            text.push('{');
            for (number, key) in keys.into_iter().enumerate() {
                if number > 0 {
                    text.push(',');
                }
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push(':');
                write(&fields[key], text);
            }
            text.push('}');
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::telemetry::audit::record::Kind;

    #[test]
    fn the_form_that_is_hashed_has_its_keys_in_order_and_no_spaces() {
        let value = json!({"b": [1, {"z": null, "a": "ä\n\"\u{7f}\u{1}"}], "a": true, "B": {}});
        let wanted = "{\"B\":{},\"a\":true,\"b\":[1,{\"a\":\"ä\\n\\\"\u{7f}\\u0001\",\"z\":null}]}";
        assert_eq!(canonical(&value), wanted);
    }

    #[test]
    fn each_record_holds_the_hash_of_the_one_before() {
        let mut chain = Chain::new("c".into());
        let mut previous = GENESIS.to_owned();
        for (seq, skipped) in [(0, 0), (1, 0), (4, 2), (5, 0)] {
            let sealed = chain.seal(Event::plain(Kind::Alive), Timestamp::UNIX_EPOCH, skipped).unwrap();
            let value: Value = serde_json::from_str(&sealed.line).unwrap();
            assert_eq!((value["seq"].as_u64(), value["previous"].as_str()), (Some(seq), Some(&*previous)));
            assert_eq!(value["hash"], hash(&value));
            assert!(
                sealed.line.starts_with(r#"{"audit":"portcullis","chain":"c","hash":""#),
                "{}",
                sealed.line
            );
            previous = value["hash"].as_str().unwrap().to_owned();
            chain.written(sealed);
        }
        let again = chain.seal(Event::plain(Kind::Alive), Timestamp::UNIX_EPOCH, 0).unwrap();
        let other = chain.seal(Event::plain(Kind::Alive), Timestamp::UNIX_EPOCH, 0).unwrap();
        assert_eq!(again, other, "what was not written leaves no trace in the chain");
    }
}
