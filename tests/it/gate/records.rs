//! Records that cannot be written.

use super::*;

/// An output that takes nothing until somebody lets it.
struct Stuck(std::sync::mpsc::Receiver<()>);

impl std::io::Write for Stuck {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let _ = self.0.recv();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn nothing_is_opened_while_its_record_cannot_be_written_and_closes_and_locks_go_on() {
    let (reader, stuck) = std::sync::mpsc::channel();
    let (clock, started) = (Clock::system(), Started::default());
    let bench = Bench::recorded_by(Audit::start(Stuck(stuck), started, clock, Metrics::new()).unwrap());
    // Rules that stand already, and die.
    let dying: Vec<_> = (1..=5).map(|number| bench.grant(number, 20, |_| Duty::Hold)).collect();
    let before = Bench::new();
    let open: Vec<_> = (1..=5).map(|number| before.grant(number, 20, OPEN)).collect();
    before.give(&open);
    before.pass(2).await;
    bench.memory.edit_rules(&nsg(), |rules| *rules = before.memory.rules(&nsg()));
    assert_eq!(bench.allows(), 5);
    bench.give(&dying);
    let waiting = bench.grant(7, 600, OPEN);
    bench.give(std::slice::from_ref(&waiting));
    bench.lock();
    bench.pass(5).await;
    assert_eq!(bench.allows(), 5, "nothing was opened");
    assert!(bench.memory.rules(&nsg()).iter().any(|rule| rule.access == Access::Deny), "the lock stands");
    let seen = bench.gates.seen(&nsg(), &waiting.1.name);
    assert!(matches!(seen, Seen::Trying { reason: Reason::AuditUnavailable, .. }), "{seen:?}");
    bench.pass(17).await;
    assert_eq!(bench.allows(), 0, "closed within two seconds of the deadline");
    // Somebody reads: the next try opens. The thread that writes lives by the clock on the wall.
    drop(reader);
    for _ in 0..200 {
        if bench.allows() == 1 {
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
        bench.pass(2).await;
    }
    assert_eq!(bench.allows(), 1);
}
