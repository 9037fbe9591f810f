//! Whether the definitions (CRDs) in the cluster are those of this program, or later ones.
//!
//! Under older ones the API server would drop fields from what is written, statuses among it, and check less than this
//! program counts on. So nothing is opened then. Looked at once a minute: they change when somebody installs something.

use std::time::Duration;

use http::Request;
use kube::Client;
use serde_json::Value;
use tokio::time::Instant;

use super::LookError;
use crate::api::crds::served;

const INTERVAL: Duration = Duration::from_secs(60);
/// While they lack something: somebody is about to mend it.
const SOON: Duration = Duration::from_secs(5);
/// The most that is named.
const MOST: usize = 3;

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Definitions {
    looked: Option<Instant>,
    lacking: Option<String>,
    /// Whether it was said that they cannot be looked at.
    refused: bool,
}

impl Definitions {
    /// What they lack, in a sentence; none: nothing.
    pub(super) async fn lacking(&mut self, client: &Client) -> Result<Option<String>, LookError> {
        let interval = if self.lacking.is_some() { SOON } else { INTERVAL };
        if self.looked.is_some_and(|at| at.elapsed() < interval) {
            return Ok(self.lacking.clone());
        }
        let failed = |error| LookError::Api("read which definitions are served".to_owned(), error);
        let request = Request::get(served::PATH)
            .body(Vec::new())
            .map_err(|error| failed(kube::Error::HttpError(error)))?;
        let lacking = match client.request::<Value>(request).await {
            Ok(document) => served::lacking(&document),
            // Until somebody installs them there is nothing to open either; the watches say so.
            Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
            // Every user may, unless somebody has taken that right away.
            Err(kube::Error::Api(status)) if matches!(status.code, 401 | 403) => {
                if !std::mem::replace(&mut self.refused, true) {
                    tracing::warn!(
                        path = served::PATH,
                        "may not read which definitions are served (ClusterRole system:discovery): whether they are of \
                         this version is not known"
                    );
                }
                Vec::new()
            }
            Err(error) => return Err(failed(error)),
        };
        self.looked = Some(Instant::now());
        self.lacking = sentence(&lacking);
        Ok(self.lacking.clone())
    }
}

fn sentence(lacking: &[String]) -> Option<String> {
    if lacking.is_empty() {
        return None;
    }
    let named = lacking.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    let more = lacking.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!(
        "the definitions (CRDs) in the cluster are older than this program, {}: they lack {named}{more}; apply those of this \
         version (portcullis crds)",
        env!("CARGO_PKG_VERSION")
    ))
}
