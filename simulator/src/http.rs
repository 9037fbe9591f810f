//! A request and an answer, apart from the connection they came over.

use std::collections::BTreeMap;

use bytes::Bytes;
use percent_encoding::percent_decode_str;
use serde_json::Value;

use crate::arm::errors::ArmError;

/// A request, read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: String,
    /// Percent-decoded.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    /// Names in lower case.
    pub(crate) headers: BTreeMap<String, String>,
    pub(crate) body: Bytes,
    /// `https://host:port` as the client called it.
    pub(crate) base: String,
}

impl Call {
    /// Builds a call from its parts; `target` is path and query as sent.
    pub(crate) fn new(
        method: &str,
        target: &str,
        headers: BTreeMap<String, String>,
        body: Bytes,
        secure: bool,
    ) -> Self {
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let host = headers.get("host").map_or("localhost", String::as_str);
        let base = format!("{}://{host}", if secure { "https" } else { "http" });
        Self {
            method: method.to_uppercase(),
            path: percent_decode_str(path).decode_utf8_lossy().into_owned(),
            query: url::form_urlencoded::parse(query.as_bytes())
                .map(|(k, v)| (k.into_owned(), v.into_owned()))
                .collect(),
            headers,
            body,
            base,
        }
    }

    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(String::as_str)
    }

    /// A query parameter, its name compared without regard to case.
    pub(crate) fn query(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
    }

    pub(crate) fn form(&self) -> Vec<(String, String)> {
        url::form_urlencoded::parse(&self.body).map(|(k, v)| (k.into_owned(), v.into_owned())).collect()
    }

    /// The body as a JSON object.
    pub(crate) fn json(&self) -> Result<Value, ArmError> {
        let bad = |why: String| {
            ArmError::bad(
                "InvalidRequestContent",
                format!("The request content was invalid and could not be deserialized: '{why}'."),
            )
        };
        let value: Value = serde_json::from_slice(&self.body).map_err(|e| bad(e.to_string()))?;
        if value.is_object() { Ok(value) } else { Err(bad("a JSON object is expected".into())) }
    }
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Option<Value>,
}

impl Reply {
    pub(crate) fn json(status: u16, body: Value) -> Self {
        Self { status, headers: vec![], body: Some(body) }
    }

    pub(crate) fn ok(body: Value) -> Self {
        Self::json(200, body)
    }

    pub(crate) fn empty(status: u16) -> Self {
        Self { status, headers: vec![], body: None }
    }

    pub(crate) fn with_header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }
}

impl From<ArmError> for Reply {
    fn from(error: ArmError) -> Self {
        Self { status: error.status, body: Some(error.body()), headers: error.headers }
    }
}
