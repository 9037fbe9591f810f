//! Lists in pages: `nextLink` with a `$skiptoken` until all is told.

use serde_json::{Value, json};

use super::errors::ArmError;
use crate::http::{Call, Reply};

/// One page of `items`.
pub(crate) fn page(call: &Call, size: usize, items: Vec<Value>) -> Result<Reply, ArmError> {
    let number = |name: &str| -> Result<Option<usize>, ArmError> {
        call.query(name)
            .map(|text| {
                text.parse().map_err(|_| {
                    ArmError::bad(
                        "InvalidQueryParameter",
                        format!("The query parameter '{name}' is not valid: '{text}'."),
                    )
                })
            })
            .transpose()
    };
    let start = number("$skiptoken")?.unwrap_or(0);
    let size = number("$top")?.map_or(size, |top| top.min(size)).max(1);
    let total = items.len();
    let value: Vec<Value> = items.into_iter().skip(start).take(size).collect();
    let next = start + value.len();
    let mut body = json!({"value": value});
    if next < total {
        let mut query = url::form_urlencoded::Serializer::new(String::new());
        for (name, value) in call.query.iter().filter(|(n, _)| !n.eq_ignore_ascii_case("$skiptoken")) {
            query.append_pair(name, value);
        }
        query.append_pair("$skiptoken", &next.to_string());
        body["nextLink"] = Value::from(format!("{}{}?{}", call.base, call.path, query.finish()));
    }
    Ok(Reply::ok(body))
}
