//! What the watches have told so far.

use std::collections::HashMap;

use kube::ResourceExt;
use kube::runtime::watcher;
use tokio::sync::watch;

use crate::api::JitPolicy;

/// Whether a cache has been filled once.
///
/// In place of the store's own `wait_until_ready`, which wakes only the last of several waiters (kube-runtime
/// 5.0): with the controller waiting too, a reconcile that waited could wait for ever.
#[derive(Clone, Debug)]
pub struct Filled(watch::Sender<bool>);

impl Default for Filled {
    fn default() -> Self {
        Self(watch::Sender::new(false))
    }
}

impl Filled {
    pub(super) fn see<K: kube::Resource<DynamicType = ()>>(
        &self,
        event: &Result<watcher::Event<K>, watcher::Error>,
    ) {
        match event {
            Ok(watcher::Event::InitDone) => {
                self.0.send_replace(true);
            }
            // It is tried again, ever more slowly; until then what it would have told is not known.
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), %error, "failed to watch; trying again");
            }
            Ok(_) => {}
        }
    }

    /// Whether it has been filled.
    #[must_use]
    pub fn is_filled(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until it has been filled.
    pub async fn wait(&self) {
        // The sender is ours, so it cannot be gone.
        let _ = self.0.subscribe().wait_for(|filled| *filled).await;
    }
}

/// What requests are judged by of each policy, as last watched: they need no new judgement for a status.
#[derive(Default)]
pub(super) struct Judged(HashMap<(String, String), (String, i64, bool)>);

impl Judged {
    fn key(policy: &JitPolicy) -> (String, String) {
        (policy.namespace().unwrap_or_default(), policy.name_any())
    }

    pub(super) fn is_news(&mut self, policy: &JitPolicy) -> bool {
        let metadata = &policy.metadata;
        let now = (
            metadata.uid.clone().unwrap_or_default(),
            metadata.generation.unwrap_or_default(),
            metadata.deletion_timestamp.is_some(),
        );
        self.0.insert(Self::key(policy), now.clone()) != Some(now)
    }

    pub(super) fn forget(&mut self, policy: &JitPolicy) {
        self.0.remove(&Self::key(policy));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// The store's own `wait_until_ready` wakes one of several waiters; a request that waited beside the
    /// controller was then never reconciled.
    #[tokio::test]
    async fn every_waiter_learns_that_a_cache_was_filled() {
        let filled = Filled::default();
        let waiters: Vec<_> = (0..8)
            .map(|_| {
                let filled = filled.clone();
                tokio::spawn(async move { filled.wait().await })
            })
            .collect();
        tokio::task::yield_now().await;
        filled.see::<JitPolicy>(&Ok(watcher::Event::Init));
        filled.see::<JitPolicy>(&Ok(watcher::Event::InitDone));
        let all = futures::future::join_all(waiters);
        tokio::time::timeout(Duration::from_secs(5), all).await.expect("somebody waits for ever");
        filled.wait().await;
    }

    #[test]
    fn requests_are_judged_anew_for_a_spec_and_a_deletion_and_not_for_a_status() {
        let mut judged = Judged::default();
        let mut policy = JitPolicy::default();
        policy.metadata.name = Some("web".into());
        policy.metadata.uid = Some("1".into());
        policy.metadata.generation = Some(1);
        assert!(judged.is_news(&policy));
        policy.status = Some(crate::api::JitPolicyStatus::default());
        policy.metadata.resource_version = Some("7".into());
        assert!(!judged.is_news(&policy), "a status");
        policy.metadata.generation = Some(2);
        assert!(judged.is_news(&policy), "a spec");
        policy.metadata.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        assert!(judged.is_news(&policy) && !judged.is_news(&policy), "a deletion");
        policy.metadata.deletion_timestamp = None;
        policy.metadata.uid = Some("2".into());
        assert!(judged.is_news(&policy), "another of the same name");
        judged.forget(&policy);
        assert!(judged.is_news(&policy));
    }
}
