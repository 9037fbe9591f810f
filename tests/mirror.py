#!/usr/bin/env python3
"""Brings a folder to the state of this checkout: mirror.py CHECKOUT FOLDER.

The Rust compiler reuses its work only in the folder where it was done. So all clones are built in one folder beside the
target folder: what a clone has in common with the last one built is not compiled again. Only files that differ are
written, since cargo tells by their age what to compile.
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


def main(checkout: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    wanted = files(checkout)
    for path in files(folder) - wanted:
        (folder / path).unlink()
    for path in wanted:
        source, copy = checkout / path, folder / path
        if copy.is_file() and filecmp.cmp(source, copy, shallow=False):
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        # Not its age: what was written before the last build has to count as new.
        shutil.copyfile(source, copy)
        shutil.copymode(source, copy)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("usage: mirror.py CHECKOUT FOLDER")
    main(Path(sys.argv[1]), Path(sys.argv[2]))
