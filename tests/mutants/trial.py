"""Whether the tests notice a mutant."""

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

# A mutant that fills memory in a loop is to end by itself, before the machine's other processes do.
MEMORY = 6 << 30
# One whose parent is gone ends by itself too, in seconds of a processor.
WORK = 600
# Up to this many seconds, tests are run together: starting each takes longer.
QUICK = 0.5
# How much longer than with nothing broken a test may take, and by how many seconds.
SLOWER, AND = 10, 15
ENVIRONMENT = {
    # What one mutant breaks is no seed for the next one, and the smallest case is of no interest.
    "PROPTEST_DISABLE_FAILURE_PERSISTENCE": "1",
    "PROPTEST_MAX_SHRINK_ITERS": "0",
}


@dataclass
class Batch:
    """Tests of one binary that are run together."""

    binary: Path
    names: list[str]
    # With nothing broken.
    seconds: float = 0.0


class Trial:
    def __init__(self, folder: Path, binaries: list[Path], filters: list[str]) -> None:
        self.folder = folder
        self.running: set[subprocess.Popen] = set()
        self.batches = self.arrange([(binary, name) for binary in binaries for name in self.names(binary, filters)])

    def names(self, binary: Path, filters: list[str]) -> list[str]:
        listing = [binary, "--list", *filters]
        listed = subprocess.run(listing, cwd=self.folder, stdout=subprocess.PIPE, text=True, check=True).stdout
        return [line.removesuffix(": test") for line in listed.splitlines() if line.endswith(": test")]

    def arrange(self, tests: list[tuple[Path, str]]) -> list[Batch]:
        """The quick ones of a binary together, then the others, the quickest first."""
        alone = [Batch(binary, [name]) for binary, name in tests]
        for batch in alone:
            verdict, batch.seconds = self.run(batch, 0)
            if verdict != "passed":
                raise SystemExit(f"mutants: {batch.names[0]} fails with nothing broken: run it by cargo test")
        quick: dict[Path, Batch] = {}
        for batch in alone:
            if batch.seconds <= QUICK:
                together = quick.setdefault(batch.binary, Batch(batch.binary, []))
                together.names += batch.names
                together.seconds += batch.seconds
        slow = [batch for batch in alone if batch.seconds > QUICK]
        return sorted(quick.values(), key=lambda batch: batch.seconds) + sorted(slow, key=lambda batch: batch.seconds)

    def of(self, number: int) -> str:
        """`caught`, `timeout` or `missed`."""
        for batch in self.batches:
            verdict, _ = self.run(batch, number)
            if verdict != "passed":
                return verdict
        return "missed"

    def stop(self) -> None:
        """Ends what runs."""
        for process in list(self.running):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)

    def run(self, batch: Batch, number: int) -> tuple[str, float]:
        begun = time.monotonic()
        limits = ["prlimit", f"--as={MEMORY}", f"--cpu={WORK}", "--"]
        process = subprocess.Popen(
            [*limits, batch.binary, "--exact", "--test-threads=1", *batch.names],
            cwd=self.folder,
            env={**os.environ, **ENVIRONMENT, "MUTANT": str(number)},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            process_group=0,
        )
        self.running.add(process)
        try:
            status = process.wait(batch.seconds * SLOWER + AND if number else None)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return "timeout", time.monotonic() - begun
        finally:
            self.running.discard(process)
        return "passed" if status == 0 else "caught", time.monotonic() - begun
