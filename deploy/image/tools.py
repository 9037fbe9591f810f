"""What the image is made and tried with: built or fetched once, pinned, kept in PORTCULLIS_CACHE."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
CHECKOUT = HERE.parents[1]
# Rust programs, installed with the lock files that they were published with.
CARGO_TOOLS = {"cargo-auditable": "0.7.7", "cargo-cyclonedx": "0.5.9"}


def cache() -> Path:
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PORTCULLIS_CACHE") or Path(home) / "portcullis")


def say(text: str) -> None:
    print(text, flush=True)


def run(*words: object, **options: object) -> str:
    """What a program says; ends with what it complains of where it fails."""
    try:
        done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    except FileNotFoundError as error:
        sys.exit(f"{error.filename} is missing: CONTRIBUTING.md says what is needed")
    if done.returncode:
        sys.exit(f"{' '.join(map(str, words))} failed ({done.returncode})\n{done.stdout}{done.stderr}".rstrip())
    return done.stdout


def once(name: str, of: list[object], what: str, make) -> Path:
    """The folder that `make` fills, under a name of what decides about its contents."""
    hashed = hashlib.sha256()
    for part in of:
        hashed.update(part.read_bytes() if isinstance(part, Path) else str(part).encode())
    folder = cache() / f"{name}-{hashed.hexdigest()[:12]}"
    if not folder.is_dir():
        say(f"{what} once, into {folder}")
        begun = time.monotonic()
        cache().mkdir(parents=True, exist_ok=True)
        # A half-finished folder must never look like a finished one: made aside, then renamed.
        aside = Path(tempfile.mkdtemp(prefix="making-", dir=cache()))
        make(aside)
        try:
            aside.rename(folder)
        except OSError:
            # Another run was faster.
            shutil.rmtree(aside)
        say(f"done in {time.monotonic() - begun:.0f} s")
    return folder


def go_tools() -> Path:
    """The folder with regctl and runc, and the probe, which is static: it is run in an image that holds no library."""
    module = HERE / "tools"

    def make(folder: Path) -> None:
        build = ["go", "build", "-trimpath", "-gcflags=all=-dwarf=false", "-ldflags", "-s -w", "-o", f"{folder}/"]
        # runc enters namespaces before Go starts threads, in C.
        run(*build, "tool", cwd=module, env=os.environ | {"CGO_ENABLED": "1", "GOGC": "400"})
        run(*build, "./probe", cwd=module, env=os.environ | {"CGO_ENABLED": "0"})

    of = [module / "go.mod", module / "go.sum", module / "probe/main.go"]
    return once("image-tools", of, "building regctl, runc and the probe (1 minute on 2 cores)", make)


def cargo_tool(name: str) -> Path:
    """The folder with one of CARGO_TOOLS."""
    version = CARGO_TOOLS[name]

    def make(folder: Path) -> None:
        # Not into the target folder of the checkout, nor with what makes its builds special.
        left_out = ("CARGO_TARGET_DIR", "RUSTFLAGS", "CARGO_ENCODED_RUSTFLAGS")
        plain = {name: value for name, value in os.environ.items() if name not in left_out}
        run("cargo", "install", "--quiet", "--locked", "--no-track", "--root", folder, "--version", version, name, env=plain)

    return once(f"image-{name}", [version], f"building {name} {version} (1 to 4 minutes on 2 cores)", make) / "bin"


def wheels() -> list[Path]:
    """The files of requirements.txt, each of the hash that stands there."""
    requirements = HERE / "requirements.txt"

    def make(folder: Path) -> None:
        fetch = ["download", "--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "--dest", folder, "-r", requirements]
        run(sys.executable, "-m", "pip", *fetch)

    return sorted(once("image-wheels", [requirements], "fetching certificates and time zones", make).glob("*.whl"))
