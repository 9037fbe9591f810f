#!/usr/bin/env python3
"""Brings a folder to the state of this checkout: mirror.py [--back] CHECKOUT FOLDER.

The Rust compiler reuses its work only in the folder where it was done. So all clones are built in one folder beside the
target folder: what a clone has in common with the last one built is not compiled again. Only files that differ are
written, since cargo tells by their age what to compile.

With --back, after the tests: the seeds of failures that proptest has written there are brought to the checkout, and it
is an error if another clone was built there meanwhile.
"""

import filecmp
import os
import shutil
import sys
from pathlib import Path

LEFT_OUT = {".git", ".playground", "target", "__pycache__"}


def files(root: Path) -> set[Path]:
    found = set()
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        found.update((Path(folder) / name).relative_to(root) for name in names)
    return found


def is_seeds(path: Path) -> bool:
    return any("proptest-regressions" in part for part in path.parts)


def same(one: Path, other: Path) -> bool:
    return one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not its age: what was written before the last build has to count as new.
    shutil.copyfile(source, target)
    shutil.copymode(source, target)


def forth(checkout: Path, folder: Path) -> None:
    wanted = files(checkout)
    for path in files(folder) - wanted:
        (folder / path).unlink()
        for parent in path.parents[:-1]:
            if not any((folder / parent).iterdir()):
                (folder / parent).rmdir()
    for path in wanted:
        if not same(checkout / path, folder / path):
            copy(checkout / path, folder / path)


def back(checkout: Path, folder: Path) -> None:
    for path in sorted(filter(is_seeds, files(folder))):
        if not same(checkout / path, folder / path):
            copy(folder / path, checkout / path)
            print(f"a failure was found; its seed is in {path}: commit it with the mend")
    changed = sorted(path for path in files(checkout) if not same(checkout / path, folder / path))
    if changed:
        sys.exit(f"{folder} was changed while the tests ran ({changed[0]}): run them again")


def main(words: list[str]) -> None:
    work = back if words[:1] == ["--back"] else forth
    places = [Path(word).resolve() for word in words if word != "--back"]
    if len(places) != 2:
        sys.exit("usage: mirror.py [--back] CHECKOUT FOLDER")
    checkout, folder = places
    if folder.is_relative_to(checkout):
        sys.exit(f"{folder} lies in the checkout: set PORTCULLIS_CACHE to a folder elsewhere")
    folder.mkdir(parents=True, exist_ok=True)
    work(checkout, folder)


if __name__ == "__main__":
    main(sys.argv[1:])
