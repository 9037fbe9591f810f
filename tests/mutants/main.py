"""Breaks the decisions in one place after another, and sees that the tests notice: main.py SOURCES CACHE FILE...

cargo-mutants says what there is to break, by .cargo/mutants.toml. It compiles every mutant by itself, which takes most
of a minute each; here all are compiled at once (weave.py), and only those that cannot be are built one by one.
"""

import collections
import concurrent.futures
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from program import Loom
from trial import Trial


def main(sources: Path, cache: Path, files: list[str]) -> int:
    begun = time.monotonic()
    # Whoever ends this ends the tests too.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # The folder that everything else is built in may change meanwhile.
    sources, changing = cache / "mutants/sources", sources
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(changing, sources)
    chosen = [word for file in files for word in ("--file", file)]
    listing = ["cargo", "mutants", "--list", "--json", *chosen]
    mutants = json.loads(subprocess.run(listing, cwd=sources, stdout=subprocess.PIPE, check=True).stdout)
    if not mutants:
        sys.exit(f"mutants: nothing to break in {' '.join(files)}: name files such as src/plan/lease.rs")
    for number, mutant in enumerate(mutants, start=1):
        mutant["number"] = number
    names = {mutant["number"]: mutant["name"] for mutant in mutants}
    print(f"building a program with {len(mutants)} mutants", flush=True)
    folder = cache / "mutants/woven"
    loom = Loom(sources, folder, cache / "mutants/target", mutants)
    program = loom.build()
    words = tomllib.loads((sources / ".cargo/mutants.toml").read_text())["additional_cargo_test_args"]
    print(
        f"built after {time.monotonic() - begun:.0f} s: {len(program.woven)} in it, "
        f"{len(program.unviable)} that do not compile, {len(program.left)} to be tried one by one",
        flush=True,
    )
    trial = Trial(folder, program.binaries, words[words.index("--") + 1 :])
    counts: collections.Counter[str] = collections.Counter(unviable=len(program.unviable))
    pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())
    trials = {pool.submit(trial.of, number): number for number in sorted(program.woven)}
    try:
        for done, finished in enumerate(concurrent.futures.as_completed(trials), start=1):
            verdict = finished.result()
            counts[verdict] += 1
            if verdict != "caught":
                print(f"{verdict}: {names[trials[finished]]}", flush=True)
            if done % 100 == 0:
                print(f"{done} of {len(trials)} after {time.monotonic() - begun:.0f} s", flush=True)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        trial.stop()
    print(f"trying {len(program.left)} one by one", flush=True)
    loom.copy()
    for mutant in mutants:
        if mutant["number"] in program.left:
            verdict = trial.of(mutant["number"]) if loom.build_alone(mutant) else "unviable"
            counts[verdict] += 1
            if verdict in ("missed", "timeout"):
                print(f"{verdict}: {mutant['name']}", flush=True)
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("caught", "missed", "timeout", "unviable"))
    print(f"{len(mutants)} mutants: {told}, in {time.monotonic() - begun:.0f} s")
    return 1 if counts["missed"] else 0


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: main.py SOURCES CACHE FILE...")
    folder = Path(sys.argv[2]) / "mutants"
    folder.mkdir(parents=True, exist_ok=True)
    # Two at once would take each other's program for their own.
    with open(folder / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"mutants: another run is under way in {folder}")
        try:
            sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
        except KeyboardInterrupt:
            sys.exit("mutants: interrupted")
