//! Long-running operations: started by a write, ended when the clock reaches their due time, polled at two
//! addresses (`operations` answers a status, `operationResults` answers 202 until the end).

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{ids::ResourceId, store::Resource};
use crate::control::clock::Span;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Status {
    InProgress,
    Succeeded,
    Failed,
    Canceled,
}

impl Status {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::InProgress => "InProgress",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
            Self::Canceled => "Canceled",
        }
    }
}

/// How a fault bends an operation.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Bend {
    /// Replaces the configured latency.
    pub(crate) duration: Option<Span>,
    /// Polls go on saying `InProgress` this long after the write has taken effect.
    pub(crate) poll_lag: Option<Span>,
    /// Polls never end. The write still takes effect at its usual time, unless `applies` is false.
    #[serde(default)]
    pub(crate) never: bool,
    #[serde(default = "yes")]
    pub(crate) applies: bool,
    /// Ends as `Failed` with this code.
    pub(crate) fails: Option<String>,
    /// Ends as `Canceled`.
    #[serde(default)]
    pub(crate) canceled: bool,
}

fn yes() -> bool {
    true
}

#[derive(Debug)]
pub(crate) struct Operation {
    pub(crate) id: Uuid,
    /// `securityRules.write`: the name that latencies are configured by.
    pub(crate) kind: String,
    pub(crate) target: ResourceId,
    /// Key of the top-level resource that it holds the write lock of.
    pub(crate) root: String,
    pub(crate) started: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    /// The truth; what pollers see may lag behind.
    pub(crate) status: Status,
    pub(crate) shown_from: Option<Timestamp>,
    pub(crate) error: Option<Value>,
    pub(crate) bend: Bend,
    /// Keys that are `Updating` while it runs.
    pub(crate) touched: Vec<String>,
    /// Keys that go away when it succeeds.
    pub(crate) removes: Vec<String>,
    /// What comes back when a delete fails.
    pub(crate) undo: Vec<Arc<Resource>>,
    pub(crate) deletes: bool,
    pub(crate) location: String,
}

impl Operation {
    pub(crate) fn shown(&self, now: Timestamp) -> Status {
        let hidden = self.bend.never || self.shown_from.is_some_and(|t| now < t);
        if hidden { Status::InProgress } else { self.status }
    }

    pub(crate) fn path(&self, base: &str, style: &str, api_version: &str) -> String {
        let namespace =
            if self.target.is_group() { "Microsoft.Resources" } else { self.target.namespace.as_str() };
        if self.target.is_group() {
            return format!(
                "{base}/subscriptions/{}/operationresults/{}?api-version={api_version}",
                self.target.subscription, self.id
            );
        }
        format!(
            "{base}/subscriptions/{}/providers/{namespace}/locations/{}/{style}/{}?api-version={api_version}",
            self.target.subscription, self.location, self.id
        )
    }

    /// What `Azure-AsyncOperation` answers.
    pub(crate) fn body(&self, now: Timestamp) -> Value {
        let status = self.shown(now);
        let mut body = json!({"name": self.id.to_string(), "status": status.word(), "startTime": self.started.to_string()});
        if status == Status::InProgress {
            return body;
        }
        if let Some(ended) = self.ended {
            body["endTime"] = json!(ended.to_string());
        }
        if let Some(error) = &self.error {
            body["error"] = error.clone();
        }
        body
    }
}

/// All operations of an instance, and which one holds each resource.
#[derive(Debug, Default)]
pub(crate) struct Operations {
    pub(crate) all: HashMap<Uuid, Operation>,
    pub(crate) holders: HashMap<String, Uuid>,
}

impl Operations {
    /// The running operation on a top-level resource.
    pub(crate) fn running(&self, root: &str) -> Option<&Operation> {
        self.all.get(self.holders.get(root)?)
    }
}

impl Operation {
    /// Is it a delete of the whole top-level resource?
    pub(crate) fn deletes_whole(&self) -> bool {
        self.deletes && !self.removes.is_empty()
    }
}
