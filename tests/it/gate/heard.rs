//! Policies that are there and have not said what they want, and those that have.

use kube::runtime::{reflector, watcher};
use portcullis::api::{JitPolicy, JitPolicySpec};

use super::*;

fn uid(policy: char) -> String {
    format!("{}-0000-4000-8000-000000000000", policy.to_string().repeat(8))
}

fn object(policy: char) -> JitPolicy {
    let mut object = JitPolicy::new(&policy.to_string(), JitPolicySpec::default());
    object.metadata.namespace = Some("web".into());
    object.metadata.uid = Some(uid(policy));
    object
}

/// These are there, and who can say that they are no more.
fn there_for_now(policies: &[char]) -> (reflector::Store<JitPolicy>, reflector::store::Writer<JitPolicy>) {
    let (store, mut writer) = reflector::store();
    writer.apply_watcher_event(&watcher::Event::Init);
    for policy in policies {
        writer.apply_watcher_event(&watcher::Event::InitApply(object(*policy)));
    }
    writer.apply_watcher_event(&watcher::Event::InitDone);
    (store, writer)
}

/// These are there.
pub(super) fn there(policies: &[char]) -> reflector::Store<JitPolicy> {
    there_for_now(policies).0
}

/// A program that starts where the locks of both stand, which lock the same.
async fn restarted(policies: reflector::Store<JitPolicy>) -> Bench {
    let before = Bench::new();
    before.lock();
    before.lock_of('b', "main", &before.memory.cloud());
    before.pass(5).await;
    assert_eq!(before.denies(), 2);
    let bench = Bench::new();
    bench.memory.edit_rules(&nsg(), |rules| *rules = before.memory.rules(&nsg()));
    bench.gates.know(policies);
    bench
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_taken_over_once_its_policy_has_said_that_it_wants_none_here() {
    let bench = restarted(there(&['a', 'b'])).await;
    bench.lock();
    bench.pass(400).await;
    assert_eq!(bench.denies(), 2, "the other one's machines may still be read");
    bench.gates.set_locks(&uid('b'), "main", &bench.memory.cloud(), Default::default());
    bench.pass(5).await;
    assert_eq!(bench.denies(), 1, "and nobody waits for the next look at drift");
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_taken_over_from_a_policy_that_is_gone() {
    let bench = restarted(there(&['a'])).await;
    bench.lock();
    bench.pass(5).await;
    assert_eq!(bench.denies(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lock_is_taken_over_as_soon_as_its_policy_is_gone_though_it_was_never_heard() {
    let (policies, mut writer) = there_for_now(&['a', 'b']);
    let bench = restarted(policies).await;
    bench.lock();
    bench.pass(5).await;
    assert_eq!(bench.denies(), 2);
    writer.apply_watcher_event(&watcher::Event::Delete(object('b')));
    bench.gates.policy_is_gone(&uid('b'));
    bench.pass(5).await;
    assert_eq!(bench.denies(), 1);
}
