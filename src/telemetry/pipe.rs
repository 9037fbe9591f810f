//! Writing to what somebody else reads, or has stopped reading.

use std::io::{ErrorKind, Write};
use std::time::Duration;

/// How long to wait before a pipe that takes nothing more is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// Writes everything, however slowly it is taken.
pub(super) fn write_all(output: &mut impl Write, mut bytes: &[u8]) -> std::io::Result<()> {
    while !bytes.is_empty() {
        match output.write(bytes) {
            Ok(0) => return Err(ErrorKind::WriteZero.into()),
            Ok(count) => bytes = &bytes[count..],
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // Somebody who shares the pipe has made it so that it refuses instead of waiting.
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(AGAIN),
            Err(error) => return Err(error),
        }
    }
    output.flush()
}
