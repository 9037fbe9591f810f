//! Policies that are there and have not said what they want, and those that have.

use kube::runtime::{reflector, watcher};
use portcullis::api::{JitPolicy, JitPolicySpec};

use super::*;

fn uid(policy: char) -> String {
    format!("{}-0000-4000-8000-000000000000", policy.to_string().repeat(8))
}

/// These are there.
pub(super) fn there(policies: &[char]) -> reflector::Store<JitPolicy> {
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for policy in policies {
        let mut object = JitPolicy::new(&policy.to_string(), JitPolicySpec::default());
        object.metadata.namespace = Some("web".into());
        object.metadata.uid = Some(uid(*policy));
        writer.apply_watcher_event(&watcher::Event::InitApply(object));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    store
}

/// A program that starts where the locks of both stand, which lock the same.
async fn restarted(policies: &[char]) -> Bench {
    let before = Bench::new();
    before.lock();
    before.lock_of('b', "main", &before.memory.cloud());
    before.pass(5).await;
    assert_eq!(before.denies(), 2);
    let bench = Bench::new();
    bench.memory.edit_rules(&nsg(), |rules| *rules = before.memory.rules(&nsg()));
    bench.gates.know(there(policies));
    bench
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_taken_over_once_its_policy_has_said_that_it_wants_none_here() {
    let bench = restarted(&['a', 'b']).await;
    bench.lock();
    bench.pass(400).await;
    assert_eq!(bench.denies(), 2, "the other one's machines may still be read");
    bench.gates.set_locks(&uid('b'), "main", &bench.memory.cloud(), Default::default());
    bench.pass(5).await;
    assert_eq!(bench.denies(), 1, "and nobody waits for the next look at drift");
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_taken_over_from_a_policy_that_is_gone() {
    let bench = restarted(&['a']).await;
    bench.lock();
    bench.pass(5).await;
    assert_eq!(bench.denies(), 1);
}
