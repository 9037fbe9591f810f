"""One program with all the mutants in it: a copy of the sources, woven and built. And those with one alone."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from weave import CHOICE, CONST_FN, Weaver, Woven

# An operator or a trait that a type does not have: nobody could have written this.
NO_SUCH_TRAIT = {"E0277", "E0369", "E0600", "E0614"}
CONST_CALL = "E0015"
BINARIES = (("--lib",), ("--test", "it"))


@dataclass
class Program:
    """What was built, and what was not."""

    binaries: list[Path]
    woven: set[int]
    # Numbers of those that no compiler would take.
    unviable: set[int] = field(default_factory=set)
    # Numbers of those that have to be tried one by one.
    left: set[int] = field(default_factory=set)


class Loom:
    def __init__(self, sources: Path, folder: Path, target: Path, mutants: list[dict]) -> None:
        self.sources, self.folder = sources, folder
        self.environment = {**os.environ, "CARGO_TARGET_DIR": str(target)}
        self.by_file: dict[str, list[dict]] = {}
        for mutant in mutants:
            self.by_file.setdefault(mutant["file"], []).append(mutant)
        self.woven: dict[str, Woven] = {}

    def build(self) -> Program:
        self.copy()
        unviable: set[int] = set()
        left: set[int] = set()
        while True:
            out = unviable | left
            for path, mutants in self.by_file.items():
                rest = [mutant for mutant in mutants if mutant["number"] not in out]
                woven = Weaver((self.sources / path).read_bytes()).weave(rest)
                (self.folder / path).write_bytes(woven.text)
                self.woven[path] = woven
                left |= woven.left
            errors = self.errors()
            if not errors:
                break
            for error in errors:
                found = self.at_fault(error, primary=True)
                certain = found and (error.get("code") or {}).get("code") in NO_SUCH_TRAIT
                found = found or self.at_fault(error, primary=False) or self.beside(error)
                if not found and not self.unfixed(error):
                    sys.exit(f"mutants: what was woven is not understood:\n{error['rendered']}")
                (unviable if certain else left).update(found)
            left -= unviable
        woven = {number for found in self.woven.values() for _, _, number in found.places}
        program = Program(self.binaries(), woven, unviable, left)
        if not program.binaries:
            sys.exit("mutants: the tests cannot be built; run make test")
        return program

    def copy(self) -> None:
        """The sources, without what only reads well when people write it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.sources, self.folder)
        for manifest in self.folder.rglob("Cargo.toml"):
            blocks = manifest.read_text().split("\n[")
            kept = [block for block in blocks if not block.split("]")[0].removeprefix("workspace.").startswith("lints")]
            manifest.write_text("\n[".join(kept))
        library = self.folder / "src/lib.rs"
        text = library.read_text()
        library.write_text(text.replace("pub mod api;", "#[doc(hidden)]\npub mod mutant;\npub mod api;", 1))
        (self.folder / "src/mutant.rs").write_text(CHOICE)

    def errors(self) -> list[dict]:
        return errors_in(self.cargo("check", "--lib"))

    def at_fault(self, error: dict, primary: bool) -> set[int]:
        """Whose text the compiler points at: at the cause, or at what it comes to elsewhere."""
        return {
            number
            for span in error["spans"]
            if span["is_primary"] == primary
            for begin, end, number in self.places(span["file_name"])
            if begin <= span["byte_start"] and span["byte_end"] <= end
        }

    def beside(self, error: dict) -> set[int]:
        """Who is in the lines that the compiler points at."""
        found = set()
        for span in error["spans"]:
            path = span["file_name"]
            if path in self.woven and span["is_primary"]:
                text = self.woven[path].text
                begins = text.rfind(b"\n", 0, span["byte_start"])
                ends = text.find(b"\n", span["byte_end"])
                found |= {number for begin, end, number in self.places(path) if begin < ends and end > begins}
        return found

    def places(self, path: str) -> list[tuple[int, int, int]]:
        return self.woven[path].places if path in self.woven else []

    def unfixed(self, error: dict) -> bool:
        """A constant function that calls what is not constant any more is itself no longer."""
        span = error["spans"][0]
        path = self.folder / span["file_name"]
        text = path.read_bytes()
        begins = text.rfind(CONST_FN, 0, span["byte_start"])
        if (error.get("code") or {}).get("code") != CONST_CALL or begins < 0:
            return False
        path.write_bytes(text[:begins] + text[begins:].replace(CONST_FN, b"      fn ", 1))
        return True

    def build_alone(self, mutant: dict) -> bool:
        """Builds a program with this mutant in place of the one with all; false where it does not compile."""
        path = mutant["file"]
        (self.folder / path).write_bytes(Weaver((self.sources / path).read_bytes()).replace(mutant))
        built = bool(self.binaries())
        shutil.copyfile(self.sources / path, self.folder / path)
        return built

    def binaries(self) -> list[Path]:
        """None where it does not compile."""
        told = self.cargo("test", *(word for words in BINARIES for word in words), "--no-run")
        artifacts = [line for line in told if line["reason"] == "compiler-artifact" and line["profile"]["test"]]
        binaries = [Path(artifact["executable"]) for artifact in artifacts if artifact["executable"]]
        if len(binaries) == len(BINARIES):
            return binaries
        if not errors_in(told):
            sys.exit("mutants: cargo failed, and not because of what it compiled: is there room on the disk?")
        return []

    def cargo(self, command: str, *words: str) -> list[dict]:
        line = ["cargo", command, "--locked", "--message-format=json", *words]
        told = subprocess.run(
            line,
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            check=False,
        )
        return [json.loads(text) for text in told.stdout.splitlines() if text.startswith("{")]


def errors_in(told: list[dict]) -> list[dict]:
    messages = [line["message"] for line in told if line["reason"] == "compiler-message"]
    return [message for message in messages if message["level"] == "error" and message["spans"]]
