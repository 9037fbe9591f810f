//! Counts what Resource Manager is asked.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use reqwest::{Method, StatusCode};

/// Calls that have ended, by method and by the status of the answer, none where no answer came.
#[derive(Debug, Default)]
pub(super) struct Calls(Mutex<BTreeMap<(&'static str, Option<u16>), u64>>);

/// A call under way. One that is dropped without an answer counts as one without.
pub(super) struct Call<'a> {
    calls: &'a Calls,
    method: &'static str,
    status: Option<u16>,
}

impl Calls {
    /// A call is sent.
    pub(super) fn begin(&self, method: &Method) -> Call<'_> {
        let method = match *method {
            Method::GET => "GET",
            Method::PUT => "PUT",
            Method::POST => "POST",
            Method::PATCH => "PATCH",
            Method::DELETE => "DELETE",
            _ => "other",
        };
        Call { calls: self, method, status: None }
    }

    /// All of them so far.
    pub(super) fn all(&self) -> Vec<(&'static str, Option<u16>, u64)> {
        self.lock().iter().map(|(&(method, status), &count)| (method, status, count)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<(&'static str, Option<u16>), u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Call<'_> {
    /// It was answered.
    pub(super) fn answered(&mut self, status: StatusCode) {
        self.status = Some(status.as_u16());
    }
}

impl Drop for Call<'_> {
    fn drop(&mut self) {
        *self.calls.lock().entry((self.method, self.status)).or_default() += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_counts_when_it_ends_by_its_answer_or_without_one() {
        let calls = Calls::default();
        let mut answered = calls.begin(&Method::PUT);
        answered.answered(StatusCode::CREATED);
        let given_up = calls.begin(&Method::DELETE);
        assert_eq!(calls.all(), []);
        drop((answered, given_up));
        assert_eq!(calls.all(), [("DELETE", None, 1), ("PUT", Some(201), 1)]);
    }
}
