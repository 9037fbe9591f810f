"""Breaks the decisions in one place after another, and sees that the tests notice: main.py SOURCES CACHE FILE...

cargo-mutants says what there is to break, by .cargo/mutants.toml. It compiles every mutant by itself, which takes most
of a minute each; here all are compiled at once (weave.py), and those that cannot be are left to cargo-mutants.
"""

import collections
import concurrent.futures
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

from program import Loom
from trial import Trial


def main(sources: Path, cache: Path, files: list[str]) -> int:
    begun = time.monotonic()
    # The folder that everything else is built in may change meanwhile.
    sources, changing = cache / "mutants/sources", sources
    shutil.rmtree(sources, ignore_errors=True)
    shutil.copytree(changing, sources)
    chosen = [word for file in files for word in ("--file", file)]
    listing = ["cargo", "mutants", "--list", "--json", *chosen]
    mutants = json.loads(subprocess.run(listing, cwd=sources, stdout=subprocess.PIPE, check=True).stdout)
    for number, mutant in enumerate(mutants, start=1):
        mutant["number"] = number
    names = {mutant["number"]: mutant["name"] for mutant in mutants}
    print(f"building a program with {len(mutants)} mutants", flush=True)
    folder = cache / "mutants/woven"
    program = Loom(sources, folder, cache / "mutants/target", mutants).build()
    words = tomllib.loads((sources / ".cargo/mutants.toml").read_text())["additional_cargo_test_args"]
    print(
        f"built after {time.monotonic() - begun:.0f} s: {len(program.woven)} in it, {len(program.unviable)} that do not "
        f"compile, {len(program.left)} left to cargo-mutants",
        flush=True,
    )
    trial = Trial(folder, program.binaries, words[words.index("--") + 1 :])
    counts: collections.Counter[str] = collections.Counter(unviable=len(program.unviable))
    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        trials = {pool.submit(trial.of, number): number for number in sorted(program.woven)}
        for done, finished in enumerate(concurrent.futures.as_completed(trials), start=1):
            verdict = finished.result()
            counts[verdict] += 1
            if verdict != "caught":
                print(f"{verdict}: {names[trials[finished]]}", flush=True)
            if done % 100 == 0:
                print(f"{done} of {len(trials)} after {time.monotonic() - begun:.0f} s", flush=True)
    counts.update(by_themselves(sources, cache, [names[number] for number in sorted(program.left)]))
    told = ", ".join(f"{counts[verdict]} {verdict}" for verdict in ("caught", "missed", "timeout", "unviable"))
    print(f"{len(mutants)} mutants: {told}, in {time.monotonic() - begun:.0f} s")
    return 1 if counts["missed"] else 0


def by_themselves(sources: Path, cache: Path, names: list[str]) -> dict[str, int]:
    if not names:
        return {}
    print(f"trying {len(names)} one by one", flush=True)
    chosen = [word for name in names for word in ("--re", f"^{re.escape(name)}$")]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(cache / "mutants/target")}
    subprocess.run(["cargo", "mutants", *chosen, "--output", str(cache)], cwd=sources, env=environment, check=False)
    outcomes = json.loads((cache / "mutants.out/outcomes.json").read_text())
    return {verdict: outcomes[verdict] for verdict in ("caught", "missed", "timeout", "unviable")}


if __name__ == "__main__":
    if len(sys.argv) < 4:
        sys.exit("usage: main.py SOURCES CACHE FILE...")
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
