//! Whether the definitions (CRDs) in the cluster have every field of this program's.
//!
//! Under older ones the API server would drop fields from what is written, statuses among it: what stands in the cloud
//! would not be written down. So nothing is opened then. They change when somebody installs something, and who may
//! install may do more: this guards against a mistake. So an API server that cannot say what it serves holds nothing up.

use std::time::Duration;

use http::Request;
use kube::Client;
use tokio::sync::watch;

use crate::api::crds::served;
use crate::controllers::Context;

const INTERVAL: Duration = Duration::from_secs(60);
/// While they lack something: somebody is about to mend it.
const SOON: Duration = Duration::from_secs(5);
/// How long a look may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The most that is named.
const MOST: usize = 3;

/// What is known of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) enum Definitions {
    /// Nothing yet.
    #[default]
    Unseen,
    /// They have all that is needed, or cannot be looked at.
    Fit,
    /// They lack this, in a sentence.
    Lacking(String),
}

impl Definitions {
    /// Why nothing may be opened.
    pub(super) fn why(&self) -> Option<String> {
        match self {
            Self::Unseen => Some("the definitions (CRDs) have not been looked at yet".to_owned()),
            Self::Fit => None,
            Self::Lacking(why) => Some(why.clone()),
        }
    }
}

/// Looks until shutdown.
pub async fn run(context: &Context) {
    let known = &context.admission.0.definitions;
    let mut failed = false;
    loop {
        let seen = tokio::time::timeout(PATIENCE, look(&context.client)).await;
        match seen.unwrap_or_else(|_| Err(format!("no answer within {} s", PATIENCE.as_secs()))) {
            Ok(seen) => {
                failed = false;
                note(context, known, seen);
            }
            Err(error) => {
                if !std::mem::replace(&mut failed, true) {
                    tracing::warn!(
                        error,
                        path = served::PATH,
                        "whether the definitions (CRDs) are of this version cannot be told"
                    );
                }
                if *known.borrow() == Definitions::Unseen {
                    note(context, known, Definitions::Fit);
                }
            }
        }
        let lacking = matches!(*known.borrow(), Definitions::Lacking(_));
        tokio::time::sleep(if lacking { SOON } else { INTERVAL }).await;
    }
}

fn note(context: &Context, known: &watch::Sender<Definitions>, seen: Definitions) {
    if known.send_if_modified(|known| std::mem::replace(known, seen.clone()) != seen) {
        if let Definitions::Lacking(why) = seen {
            tracing::error!(why, "nothing is opened; closing and locking go on");
        }
        context.wake_all();
    }
}

async fn look(client: &Client) -> Result<Definitions, String> {
    let request = Request::get(served::PATH).body(Vec::new()).map_err(|error| error.to_string())?;
    // As text: what cannot be read would be logged whole.
    let lacking = match client.request_text(request).await {
        Ok(text) => {
            let document = serde_json::from_str(&text)
                .map_err(|error| format!("what it publishes at {} cannot be read: {error}", served::PATH))?;
            served::lacking(&document)
        }
        // Until somebody installs them there is nothing to open either; the watches say so.
        Err(kube::Error::Api(status)) if status.code == 404 => Vec::new(),
        Err(error) => return Err(error.to_string()),
    };
    Ok(sentence(&lacking).map_or(Definitions::Fit, Definitions::Lacking))
}

fn sentence(lacking: &[String]) -> Option<String> {
    if lacking.is_empty() {
        return None;
    }
    let named = lacking.iter().take(MOST).cloned().collect::<Vec<_>>().join(", ");
    let more = lacking.len().saturating_sub(MOST);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Some(format!(
        "the definitions (CRDs) in the cluster are not those of this program, {}: they lack {named}{more}, which would be \
         lost; apply those of this version (portcullis crds)",
        env!("CARGO_PKG_VERSION")
    ))
}
