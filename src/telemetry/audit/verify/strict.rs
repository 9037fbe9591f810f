//! JSON that remembers whether an object named a field twice. Readers differ in which of the two they take, so such a
//! record would not say the same to everybody, whatever its hash.

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

/// A value, and the first field that stands twice in an object of it.
pub(super) struct Strict {
    pub(super) value: Value,
    pub(super) repeats: Option<String>,
}

impl From<Value> for Strict {
    fn from(value: Value) -> Self {
        Self { value, repeats: None }
    }
}

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Any)
    }
}

struct Any;

impl<'de> Visitor<'de> for Any {
    type Value = Strict;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Strict, E> {
        Ok(Value::Bool(value).into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Strict, E> {
        Ok(Value::from(value).into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Strict, E> {
        Ok(Value::from(value).into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Strict, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number).into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Strict, E> {
        Ok(Value::from(value).into())
    }

    fn visit_unit<E>(self) -> Result<Strict, E> {
        Ok(Value::Null.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Strict, A::Error> {
        let (mut values, mut repeats) = (Vec::new(), None);
        while let Some(item) = items.next_element::<Strict>()? {
            repeats = repeats.or(item.repeats);
            values.push(item.value);
        }
        Ok(Strict { value: Value::Array(values), repeats })
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Strict, A::Error> {
        let (mut values, mut repeats) = (Map::new(), None);
        while let Some((name, field)) = fields.next_entry::<String, Strict>()? {
            repeats = repeats.or(field.repeats);
            if values.insert(name.clone(), field.value).is_some() {
                repeats.get_or_insert(name);
            }
        }
        Ok(Strict { value: Value::Object(values), repeats })
    }
}
