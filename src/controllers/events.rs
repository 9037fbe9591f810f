//! What is told as Kubernetes Events: transitions only, never a repetition.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};

/// Tells people about objects.
#[derive(Clone)]
pub struct Herald {
    client: Client,
    reporter: Reporter,
    /// One for each note. A recorder counts what has the same reason as a repetition and keeps the first note,
    /// though the second may name another rule.
    recorders: Arc<Mutex<HashMap<String, Recorder>>>,
}

/// The most notes that repetitions are counted of.
const MAX_NOTES: usize = 256;

impl Herald {
    /// A herald that writes through this client.
    #[must_use]
    pub fn new(client: Client) -> Self {
        let instance = std::env::var("POD_NAME").ok();
        let reporter = Reporter { controller: "portcullis".into(), instance };
        Self { client, reporter, recorders: Arc::default() }
    }

    fn recorder(&self, note: &str) -> Recorder {
        let mut recorders = self.recorders.lock().unwrap_or_else(PoisonError::into_inner);
        if recorders.len() >= MAX_NOTES && !recorders.contains_key(note) {
            recorders.clear();
        }
        let new = || Recorder::new(self.client.clone(), self.reporter.clone());
        recorders.entry(note.to_owned()).or_insert_with(new).clone()
    }

    /// Tells of something that went as it should.
    pub async fn normal<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &str,
        action: &str,
        note: String,
    ) {
        self.tell(object, EventType::Normal, reason, action, note).await;
    }

    /// Tells of something that somebody should look at.
    pub async fn warning<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        reason: &str,
        action: &str,
        note: String,
    ) {
        self.tell(object, EventType::Warning, reason, action, note).await;
    }

    async fn tell<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        type_: EventType,
        reason: &str,
        action: &str,
        mut note: String,
    ) {
        // The API server refuses notes of more than 1 kB.
        if note.len() > 1000 {
            note.truncate(note.floor_char_boundary(1000));
        }
        let recorder = self.recorder(&note);
        let event =
            Event { type_, reason: reason.into(), note: Some(note), action: action.into(), secondary: None };
        // An Event that is lost loses nothing: conditions say the same.
        if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
            tracing::debug!(%error, reason, "failed to publish an event");
        }
    }
}
