//! Polling, with an answer worth reading when it fails.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// Calls `probe` until it succeeds, every 100 ms at first and every second later on; less often where it takes long
/// itself, so that waiting leaves others the machine.
///
/// # Errors
/// When `timeout` has passed: with `what`, the number of attempts and the last failure that came in time.
pub async fn eventually<T, E, F, Fut>(what: &str, timeout: Duration, mut probe: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let begun = Instant::now();
    let mut attempts = 0_u32;
    let mut failure = "no attempt returned in time".to_owned();
    loop {
        attempts += 1;
        let this = Instant::now();
        // A probe that hangs must not hang the test with it.
        let remaining = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(100));
        match tokio::time::timeout(remaining, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(error)) => failure = format!("{error:#}"),
            Err(_) => {}
        }
        if begun.elapsed() >= timeout {
            anyhow::bail!("{what}: not within {timeout:?} ({attempts} attempts); the last one: {failure}");
        }
        let pause = if begun.elapsed() < Duration::from_secs(10) { 100 } else { 1000 };
        tokio::time::sleep(Duration::from_millis(pause).max(this.elapsed())).await;
    }
}
