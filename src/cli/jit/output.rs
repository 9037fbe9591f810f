//! Objects as text: `-o table|wide|json|yaml|name`.
//!
//! JSON and YAML say exactly what the object says. What would not show itself on a terminal is escaped in the way
//! that each of the two has for it, so that programs read what was written and people see that it is there.

use std::collections::BTreeMap;
use std::io::Write;

use serde::Serialize;
use serde_json::Value;

use super::failure::Failure;
use super::text::is_hostile;
use crate::api::GROUP;

/// How results are shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Table,
    /// For people, with more columns.
    Wide,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
    /// The names alone.
    Name,
}

/// What is done before something is changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum DryRun {
    /// It is carried out.
    #[default]
    None,
    /// The API server judges it and carries nothing out.
    Server,
    /// It is made up here and not sent.
    Client,
}

impl DryRun {
    /// What stands behind a result.
    #[must_use]
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Server => " (server dry run)",
            Self::Client => " (dry run)",
        }
    }
}

/// `jitaccessrequest.jit.portcullis.io/disk-full`.
#[must_use]
pub fn full_name(kind: &str, name: &str) -> String {
    format!("{}.{GROUP}/{name}", kind.to_lowercase())
}

/// An object as it is shown: without what tools have written down about its fields.
///
/// # Errors
/// When it cannot be written as JSON, which its types rule out.
pub fn shown(object: &impl Serialize) -> Result<Value, Failure> {
    let mut value = serde_json::to_value(object).map_err(|error| Failure::error(error.to_string()))?;
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    Ok(value)
}

/// One object as it is, several as a list.
#[must_use]
pub fn together(mut objects: Vec<Value>) -> Value {
    if objects.len() == 1 { objects.remove(0) } else { list(&objects) }
}

/// A list, as kubectl makes one.
#[must_use]
pub fn list(objects: &[Value]) -> Value {
    serde_json::json!({"apiVersion": "v1", "items": objects, "kind": "List", "metadata": {"resourceVersion": ""}})
}

/// Writes a value as JSON, indented as kubectl does.
///
/// # Errors
/// When the output cannot be written.
pub fn write_json(out: &mut dyn Write, value: &Value) -> Result<(), Failure> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"    ");
    value
        .serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))
        .map_err(|error| Failure::error(error.to_string()))?;
    let text = String::from_utf8_lossy(&text).into_owned();
    // Hostile characters stand in strings alone, where these escapes mean them; line breaks are the formatter's.
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hostile(c) && c != '\n' {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                escaped.push_str(&format!("\\u{unit:04x}"));
            }
        } else {
            escaped.push(c);
        }
    }
    writeln!(out, "{escaped}")?;
    Ok(())
}

/// Writes a value as YAML.
///
/// # Errors
/// When the output cannot be written.
pub fn write_yaml(out: &mut dyn Write, value: &Value) -> Result<(), Failure> {
    let mut value = value.clone();
    let mut quoted = BTreeMap::new();
    take_hostile(&mut value, &mut quoted);
    let mut text = serde_yaml_ng::to_string(&value).map_err(|error| Failure::error(error.to_string()))?;
    for (place, string) in quoted {
        text = text.replace(&place, &string);
    }
    write!(out, "{text}")?;
    Ok(())
}

/// Puts an unlikely word in the place of each string that holds hostile characters, or that kubectl would take for
/// something else: the writer of YAML would write most of them as they are. Line breaks are left to it where nothing
/// else is amiss.
fn take_hostile(value: &mut Value, quoted: &mut BTreeMap<String, String>) {
    let amiss = |text: &str| text.chars().any(|c| is_hostile(c) && c != '\n') || is_ambiguous(text);
    let mut place = |text: &str| {
        let word = format!("q{}q", uuid::Uuid::new_v4().simple());
        quoted.insert(word.clone(), in_quotes(text));
        word
    };
    match value {
        Value::String(text) if amiss(text) => *text = place(text),
        Value::Array(items) => items.iter_mut().for_each(|item| take_hostile(item, quoted)),
        Value::Object(fields) => {
            let keys: Vec<String> = fields.keys().filter(|key| amiss(key)).cloned().collect();
            for key in keys {
                if let Some(field) = fields.remove(&key) {
                    fields.insert(place(&key), field);
                }
            }
            fields.values_mut().for_each(|field| take_hostile(field, quoted));
        }
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

/// Whether readers of YAML 1.1, kubectl among them, may take a plain word for a truth value, a number or a time.
fn is_ambiguous(text: &str) -> bool {
    let words = ["y", "n", "yes", "no", "on", "off", "true", "false", "null"];
    let number = |c: char| c.is_ascii_hexdigit() || "_.,:+-xXoOtTzZ ".contains(c);
    words.contains(&text.to_ascii_lowercase().as_str())
        || (text.starts_with(|c: char| c.is_ascii_digit() || "+-.".contains(c)) && text.chars().all(number))
}

/// A double-quoted scalar of YAML.
fn in_quotes(text: &str) -> String {
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => out.extend(['\\', c]),
            '\n' => out.push_str("\\n"),
            c if is_hostile(c) => match u32::from(c) {
                code @ 0..=0xff => out.push_str(&format!("\\x{code:02x}")),
                code @ 0x100..=0xffff => out.push_str(&format!("\\u{code:04x}")),
                code => out.push_str(&format!("\\U{code:08x}")),
            },
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn text(write: impl Fn(&mut dyn Write, &Value) -> Result<(), Failure>, value: &Value) -> String {
        let mut out = Vec::new();
        write(&mut out, value).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn yaml_is_plain_where_the_text_is() {
        let value = json!({"spec": {
            "for": "1h", "from": "203.0.113.7/32", "n": 1, "name": "web-1", "why": "a: \"b\"",
        }});
        assert_eq!(
            text(write_yaml, &value),
            "spec:\n  for: 1h\n  from: 203.0.113.7/32\n  name: web-1\n  \"n\": 1\n  why: 'a: \"b\"'\n"
        );
    }

    /// kubectl reads YAML 1.1, in which these would not be text.
    #[test]
    fn words_that_kubectl_would_take_for_something_else_are_quoted() {
        for word in
            ["no", "Yes", "on", "OFF", "y", "null", "1_000", "0o17", "1:30", "2026-01-31T12:00:00Z", "-.5"]
        {
            assert_eq!(text(write_yaml, &json!({"why": word})), format!("why: \"{word}\"\n"));
        }
    }

    #[test]
    fn hostile_text_is_escaped_in_the_way_of_the_format() {
        let value = json!({"why": "a\u{202e}b\u{1b}[31m\u{e0041}"});
        assert_eq!(text(write_yaml, &value), "why: \"a\\u202eb\\x1b[31m\\U000e0041\"\n");
        assert_eq!(text(write_json, &value), "{\n    \"why\": \"a\\u202eb\\u001b[31m\\udb40\\udc41\"\n}\n");
    }

    #[test]
    fn an_object_is_shown_without_what_tools_wrote_down() {
        let value = shown(&json!({"metadata": {"name": "a", "managedFields": []}})).unwrap();
        assert_eq!(value, json!({"metadata": {"name": "a"}}));
        assert_eq!(together(vec![value.clone()]), value);
        assert_eq!(together(vec![])["kind"], "List");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back_and_shows_nothing_hostile(
            strings in prop::collection::vec(any::<String>(), 0..6), key in any::<String>(),
        ) {
            let value = json!({"list": strings, "map": {key: strings.first()}});
            let (json, yaml) = (text(write_json, &value), text(write_yaml, &value));
            for text in [&json, &yaml] {
                prop_assert!(!text.chars().any(|c| is_hostile(c) && c != '\n'), "{text:?}");
            }
            prop_assert_eq!(&serde_json::from_str::<Value>(&json).unwrap(), &value);
            prop_assert_eq!(&serde_yaml_ng::from_str::<Value>(&yaml).unwrap(), &value);
        }
    }
}
