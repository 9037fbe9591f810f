//! Polling, with an answer worth reading when it fails.

use std::fmt::Display;
use std::future::Future;
use std::time::{Duration, Instant};

/// Calls `probe` until it succeeds, every 100 ms at first and every second later on.
///
/// # Errors
/// When `timeout` has passed: with `what`, the number of attempts and the last failure.
pub async fn eventually<T, E, F, Fut>(what: &str, timeout: Duration, mut probe: F) -> anyhow::Result<T>
where
    E: Display,
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, E>>,
{
    let begun = Instant::now();
    let mut attempts = 0_u32;
    loop {
        attempts += 1;
        // A probe that hangs must not hang the test with it.
        let remaining = timeout.saturating_sub(begun.elapsed()).max(Duration::from_millis(100));
        let failure = match tokio::time::timeout(remaining, probe()).await {
            Ok(Ok(value)) => return Ok(value),
            Ok(Err(failure)) => format!("{failure:#}"),
            Err(_) => "the attempt did not return in time".to_owned(),
        };
        if begun.elapsed() >= timeout {
            anyhow::bail!("{what}: not within {timeout:?} ({attempts} attempts); the last one: {failure}");
        }
        let pause = if begun.elapsed() < Duration::from_secs(10) { 100 } else { 1000 };
        tokio::time::sleep(Duration::from_millis(pause)).await;
    }
}
