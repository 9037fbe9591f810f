#!/usr/bin/env python3
"""Builds the image of OUTPUT once more, from a clone in another folder, into another target folder, with the tools in another
place, and compares: reproduce.py OUTPUT."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import CHECKOUT, cache, run, say


def main(words: list[str]) -> None:
    if len(words) != 1:
        sys.exit("usage: reproduce.py OUTPUT")
    output = Path(words[0]).resolve()
    if not (output / "SHA256SUMS").is_file():
        sys.exit(f"{output} holds no image: make image")
    cache().mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="again-", dir=cache()) as folder:
        clone, again = Path(folder) / "checkout", Path(folder) / "image"
        # What is not committed is not in the clone, and would be told by the digest.
        run("git", "clone", "--quiet", "--no-hardlinks", CHECKOUT, clone)
        run("git", "-C", clone, "checkout", "--quiet", "--detach", run("git", "-C", CHECKOUT, "rev-parse", "HEAD").strip())
        # Its tools, as they are: to build them takes as long as all the rest.
        for made in cache().glob("image-*-*"):
            shutil.copytree(made, Path(folder) / "cache" / made.name)
        environment = os.environ | {"PORTCULLIS_CACHE": f"{folder}/cache", "CARGO_TARGET_DIR": f"{folder}/target", "PYTHONDONTWRITEBYTECODE": "1"}
        for given in ("PORTCULLIS_COMMIT", "SOURCE_DATE_EPOCH"):
            environment.pop(given, None)
        build = [sys.executable, clone / "deploy/image/build.py", clone, again]
        if subprocess.run(build, env=environment).returncode:
            sys.exit("the second build failed")
        differ = [name for name in ("SHA256SUMS", "digest") if (output / name).read_text() != (again / name).read_text()]
        say(f"{output}: {(output / 'digest').read_text().strip()}\n{again}: {(again / 'digest').read_text().strip()}")
        if differ:
            sys.exit(f"{' and '.join(differ)} differ: the first was built from other sources or with other tools, or a build depends on its folder")
        say("two builds from two folders are one image")


if __name__ == "__main__":
    main(sys.argv[1:])
