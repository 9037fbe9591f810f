//! What there is to record, before it has its place in a chain.

use super::record::{
    API_ACTIVITY, Drift, Dropped, Kind, Ocsf, Operation, Outcome, Parts, Request, Review, Started, Write,
    ocsf,
};

/// A kind and what belongs to it, to be recorded.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// What it tells of.
    pub kind: Kind,
    /// What it tells.
    pub parts: Parts,
}

impl Event {
    /// An event without more to say.
    #[must_use]
    pub fn plain(kind: Kind) -> Self {
        Self { kind, parts: Parts::default() }
    }

    /// The start of a chain.
    #[must_use]
    pub fn started(started: Started) -> Self {
        Self { kind: Kind::ChainStarted, parts: Parts { started: Some(started), ..Parts::default() } }
    }

    /// Records were lost.
    #[must_use]
    pub fn dropped(count: u64) -> Self {
        let parts = Parts { dropped: Some(Dropped { count }), ..Parts::default() };
        Self { kind: Kind::RecordsDropped, parts }
    }

    /// A request moved.
    #[must_use]
    pub fn request(kind: Kind, request: Request) -> Self {
        Self { kind, parts: Parts { request: Some(Box::new(request)), ..Parts::default() } }
    }

    /// A review was answered.
    #[must_use]
    pub fn review(review: Review) -> Self {
        Self { kind: Kind::Reviewed, parts: Parts { review: Some(Box::new(review)), ..Parts::default() } }
    }

    /// A write is about to be sent.
    #[must_use]
    pub fn write(write: Write) -> Self {
        Self { kind: Kind::WriteIntended, parts: Parts { write: Some(Box::new(write)), ..Parts::default() } }
    }

    /// A write has ended.
    #[must_use]
    pub fn outcome(outcome: Outcome) -> Self {
        Self { kind: Kind::WriteEnded, parts: Parts { outcome: Some(outcome), ..Parts::default() } }
    }

    /// A lock drifted.
    #[must_use]
    pub fn drift(drift: Drift) -> Self {
        Self { kind: Kind::DriftFound, parts: Parts { drift: Some(drift), ..Parts::default() } }
    }

    /// Class and activity in OCSF. An API activity is a create (1), an update (3) or a delete (4).
    #[must_use]
    pub fn ocsf(&self) -> Option<Ocsf> {
        let operation = self.parts.write.as_ref().map(|write| write.operation);
        let operation = operation.or(self.parts.outcome.as_ref().map(|outcome| outcome.operation));
        match operation {
            Some(Operation::Open | Operation::Lock) => ocsf(API_ACTIVITY, 1),
            Some(Operation::Close | Operation::Unlock) => ocsf(API_ACTIVITY, 4),
            None => Kind::ALL.iter().find(|(kind, ..)| *kind == self.kind).and_then(|(.., ocsf)| *ocsf),
        }
    }
}
