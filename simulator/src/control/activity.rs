//! The activity log: every request outside the control door, with what it changed.

use jiff::Timestamp;
use serde_json::{Value, json};

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) time: Timestamp,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) api_version: Option<String>,
    pub(crate) caller: Option<String>,
    pub(crate) status: u16,
    pub(crate) code: Option<String>,
    pub(crate) request_id: String,
    pub(crate) correlation_id: String,
    pub(crate) body_sha256: Option<String>,
    pub(crate) body: Option<Value>,
    pub(crate) mutations: Vec<(String, &'static str)>,
    pub(crate) faults: Vec<String>,
    /// A late-landing write: its sender is not there to hear the status.
    pub(crate) late: bool,
}

impl Entry {
    fn show(&self, sequence: usize) -> Value {
        let mutations: Value =
            self.mutations.iter().map(|(id, change)| json!({"id": id, "change": change})).collect();
        json!({
            "sequence": sequence, "time": self.time.to_string(), "method": self.method, "path": self.path,
            "apiVersion": self.api_version, "caller": self.caller, "status": self.status, "code": self.code,
            "requestId": self.request_id, "correlationId": self.correlation_id,
            "bodySha256": self.body_sha256, "body": self.body, "mutations": mutations,
            "faults": self.faults, "late": self.late,
        })
    }
}

/// What to list.
#[derive(Debug, Default)]
pub(crate) struct Filter {
    pub(crate) since: Option<Timestamp>,
    /// Entries with a sequence number above this.
    pub(crate) after: Option<usize>,
    pub(crate) method: Option<String>,
    pub(crate) path: Option<regex::Regex>,
    pub(crate) mutating: bool,
}

#[derive(Debug, Default)]
pub(crate) struct Activity {
    entries: Vec<Entry>,
}

impl Activity {
    pub(crate) fn record(&mut self, entry: Entry) {
        self.entries.push(entry);
    }

    pub(crate) fn clear(&mut self) {
        self.entries.clear();
    }

    pub(crate) fn list(&self, filter: &Filter) -> Value {
        let matching = self.entries.iter().enumerate().filter(|(index, entry)| {
            filter.since.is_none_or(|t| entry.time >= t)
                && filter.after.is_none_or(|n| index + 1 > n)
                && filter.method.as_ref().is_none_or(|m| m.eq_ignore_ascii_case(&entry.method))
                && filter.path.as_ref().is_none_or(|p| p.is_match(&entry.path))
                && (!filter.mutating || !entry.mutations.is_empty())
        });
        matching.map(|(index, entry)| entry.show(index + 1)).collect()
    }
}
