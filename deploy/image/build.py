#!/usr/bin/env python3
"""Builds the container image without a container engine: build.py SOURCES OUTPUT, or build.py --root SOURCES OUTPUT.

SOURCES is the state of this checkout in a folder that may be written to (tests/mirror.py). What is written to OUTPUT:

  oci/                                 the image: an OCI layout with one index for all platforms, and SBOMs as referrers
  digest                               the digest of that index
  portcullis-VERSION-PLATFORM          the program that is in it
  portcullis-VERSION-PLATFORM.cdx.json its SBOM
  SHA256SUMS                           of the files above, without the layout: there each name is a checksum

With --root OUTPUT is the image's root for the machine's own platform, as a folder: the Dockerfile copies it.

Whoever builds one commit with one toolchain gets one digest, in whatever folder. PORTCULLIS_COMMIT and SOURCE_DATE_EPOCH
are the commit's where they are not given.
"""

import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import time
import zipfile
from datetime import datetime, timezone
from pathlib import Path

from tools import CHECKOUT, cargo_tool, go_tools, run, say, wheels

# Of each platform: the target, the compiler where it is not the machine's own, and the Debian package that has it.
PLATFORMS = {
    "linux/amd64": ("x86_64-unknown-linux-gnu", "x86_64-linux-gnu-gcc", "gcc-x86-64-linux-gnu"),
    "linux/arm64": ("aarch64-unknown-linux-gnu", "aarch64-linux-gnu-gcc", "gcc-aarch64-linux-gnu"),
}
# As the Deployment has it, so that runAsNonRoot is content with the image alone.
USER = "65532:65532"
PROGRAM = "usr/local/bin/portcullis"
ETC = {
    "passwd": "root:x:0:0:root:/:/sbin/nologin\nnonroot:x:65532:65532:nonroot:/:/sbin/nologin\n",
    "group": "root:x:0:\nnonroot:x:65532:\n",
    # As the C library would have it anyway: /etc/hosts, which the kubelet writes, before DNS.
    "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}


def commit() -> str:
    """The full commit, `-dirty` where the tree is not what was committed."""
    if given := os.environ.get("PORTCULLIS_COMMIT"):
        return given
    dirty = run("git", "-C", CHECKOUT, "status", "--porcelain")
    return run("git", "-C", CHECKOUT, "rev-parse", "HEAD").strip() + ("-dirty" if dirty else "")


def moment() -> int:
    return int(os.environ.get("SOURCE_DATE_EPOCH") or run("git", "-C", CHECKOUT, "log", "-1", "--format=%ct"))


def compiler(platform: str, host: str) -> str | None:
    """The C compiler that links for a platform, or nothing, with a line that says what to install."""
    target, cross, package = PLATFORMS[platform]
    missing = []
    if not Path(run("rustc", "--print", "target-libdir", "--target", target).strip()).is_dir():
        missing.append(f"rustup target add {target}")
    found = "cc" if target == host else cross
    # A compiler that does not find the file says its bare name.
    if not shutil.which(found) or not Path(run(found, "-print-file-name=libc.a").strip()).is_absolute():
        missing.append(f"a C compiler with a static C library for it ({found}; on Debian apt-get install {package})")
    if missing:
        say(f"{platform} is left out, for want of: {'; '.join(missing)}")
        return None
    return found


class Build:
    def __init__(self, sources: Path, output: Path, aside: Path):
        self.sources, self.output, self.aside = sources, output, aside
        self.target_folder = Path(os.environ.get("CARGO_TARGET_DIR") or sources / "target").resolve()
        self.cargo_home = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo").resolve()
        self.commit, self.moment = commit(), moment()
        self.created = datetime.fromtimestamp(self.moment, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        # What a user has set for other builds does not decide about this one.
        own = {"RUSTFLAGS", "CFLAGS", "LDFLAGS"}
        left = {name: value for name, value in os.environ.items() if name not in own and not name.startswith("CARGO_PROFILE_")}
        self.environment = left | {
            "PATH": f"{cargo_tool('cargo-auditable')}{os.pathsep}{os.environ['PATH']}",
            "CARGO_TARGET_DIR": str(self.target_folder),
            "CARGO_INCREMENTAL": "0",
            "PORTCULLIS_COMMIT": self.commit,
            "SOURCE_DATE_EPOCH": str(self.moment),
            "LC_ALL": "C",
            "TZ": "UTC",
        }
        self.cargo("fetch", "--quiet", "--locked")
        packages = json.loads(self.cargo("metadata", "--format-version=1", "--no-deps", "--locked"))["packages"]
        self.package = next(package for package in packages if package["name"] == "portcullis")
        self.version = self.package["version"]

    def cargo(self, *words: str, **more: str) -> str:
        return run("cargo", *words, cwd=self.sources, env=self.environment | more)

    def renamed(self) -> dict[str, str]:
        """Folders of this machine, and what the program may know them as; the later ones win."""
        sysroot = run("rustc", "--print", "sysroot").strip()
        version = dict(line.split(": ", 1) for line in run("rustc", "-vV").splitlines() if ": " in line)
        names = {str(self.sources): "/portcullis", str(self.target_folder): "/target", str(self.cargo_home): "/cargo"}
        names |= {str(folder): "/crates" for folder in sorted((self.cargo_home / "registry/src").glob("*"))}
        # The standard library says this by itself, but not where its sources are installed.
        return names | {f"{sysroot}/lib/rustlib/src/rust": f"/rustc/{version['commit-hash']}"}

    def program(self, platform: str, cc: str) -> Path:
        """The program for a platform: static, with the list of its dependencies in it (cargo audit bin reads it)."""
        target = PLATFORMS[platform][0]
        renamed = sorted(self.renamed().items(), key=lambda pair: len(pair[0]))
        flags = ["-C", "target-feature=+crt-static", "-C", f"linker={cc}", "-C", "link-arg=-Wl,--build-id=none"]
        flags += [f"--remap-path-prefix={folder}={name}" for folder, name in renamed]
        begun = time.monotonic()
        say(f"building portcullis {self.version} ({self.commit}) for {platform}, into {self.target_folder}")
        self.cargo(
            *["build", "--quiet", "--locked", "--release", "--target", target, "--bin", "portcullis"],
            CARGO_ENCODED_RUSTFLAGS="\x1f".join(flags),
            # What `cargo auditable` does, but for the path: cargo hashes it into the names of symbols, and so the place of
            # the cache would be in the program.
            RUSTC_WORKSPACE_WRAPPER="cargo-auditable",
            CARGO_AUDITABLE_ORIG_ARGS=json.dumps({"offline": False, "locked": True, "frozen": False, "config": []}),
            **{
                f"CC_{target.replace('-', '_')}": cc,
                f"CFLAGS_{target.replace('-', '_')}": " ".join(f"-ffile-prefix-map={folder}={name}" for folder, name in renamed),
            },
        )
        program = self.output / f"portcullis-{self.version}-{platform.replace('/', '-')}"
        shutil.copy(self.target_folder / target / "release/portcullis", program)
        contents = program.read_bytes()
        for folder in [*self.renamed(), str(Path.home())]:
            if len(folder) > 1 and f"{folder}/".encode() in contents:
                sys.exit(f"{program} names {folder}: it would be another one in another folder")
        say(f"built in {time.monotonic() - begun:.0f} s: {len(contents):,} bytes")
        return program

    def sbom(self, platform: str, cc: str, program: Path) -> Path:
        """What is in the image for a platform, as CycloneDX: crates, and what is there beside them."""
        target, name = PLATFORMS[platform][0], "portcullis-sbom"
        tool = f"{cargo_tool('cargo-cyclonedx')}{os.pathsep}{self.environment['PATH']}"
        how = ["--quiet", "--format", "json", "--spec-version", "1.5", "--target", target, "--override-filename", name]
        self.cargo("cyclonedx", *how, PATH=tool)
        text = (self.sources / f"{name}.json").read_text()
        # It writes one for each member of the workspace.
        for path in self.sources.rglob(f"{name}.json"):
            path.unlink()
        sbom = json.loads(text.replace(str(self.sources), "/portcullis"))
        own = sbom["metadata"]["component"]
        own["components"] = [part for part in own["components"] if part["purl"].endswith("#src/main.rs")]
        own["hashes"] = [{"alg": "SHA-256", "content": checksum(program)}]
        # Whoever builds it again needs the same ones.
        for words in (["rustc", "--version"], [cc, "--version"], ["ld", "--version"], ["go", "version"]):
            said = run(*words).splitlines()[0]
            sbom["metadata"]["tools"].append({"name": words[0], "version": said})
        glibc = dict(line.split()[1:3] for line in run(cc, "-dM", "-E", "-include", "features.h", "-x", "c", "/dev/null").splitlines() if "__GLIBC_" in line)
        beside = [("glibc", f"{glibc['__GLIBC__']}.{glibc['__GLIBC_MINOR__']}", "generic", "LGPL-2.1-or-later", "the C library, linked statically")]
        for wheel in wheels():
            name, version = wheel.name.split("-")[:2]
            licence, about = {"certifi": ("MPL-2.0", "/etc/ssl/certs/ca-certificates.crt"), "tzdata": ("Apache-2.0", "/usr/share/zoneinfo")}[name]
            beside.append((name, version, "pypi", licence, about))
        for name, version, kind, licence, about in beside:
            url = f"pkg:{kind}/{name}@{version}"
            component = {"type": "library", "bom-ref": url, "name": name, "version": version, "description": about}
            sbom["components"].append(component | {"licenses": [{"license": {"id": licence}}], "purl": url})
            next(part for part in sbom["dependencies"] if part["ref"] == own["bom-ref"])["dependsOn"].append(url)
        path = program.with_name(f"{program.name}.cdx.json")
        path.write_text(json.dumps(sbom, indent=1, sort_keys=True) + "\n")
        return path

    def base(self) -> dict[str, bytes]:
        """What there is beside the program."""
        files = {f"etc/{name}": text.encode() for name, text in ETC.items()}
        files["usr/share/licenses/portcullis/LICENSE"] = (self.sources / "LICENSE").read_bytes()
        for wheel in wheels():
            with zipfile.ZipFile(wheel) as archive:
                for name in archive.namelist():
                    if name == "certifi/cacert.pem":
                        files["etc/ssl/certs/ca-certificates.crt"] = archive.read(name)
                    elif name.startswith("tzdata/zoneinfo/") and not name.endswith(("/", ".py")):
                        files[f"usr/share/{name.removeprefix('tzdata/')}"] = archive.read(name)
        return files

    def root(self, program: Path) -> None:
        """The root as a folder."""
        for name, contents in (self.base() | {PROGRAM: program.read_bytes()}).items():
            path = self.output / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(contents)
            path.chmod(0o755 if name == PROGRAM else 0o644)
        program.unlink()
        for folder in [self.output, *self.output.rglob("*")]:
            if folder.is_dir():
                folder.chmod(0o755)

    def image(self, programs: dict[str, Path], sboms: dict[str, Path]) -> str:
        """The layout; the digest of its index."""
        regctl = go_tools() / "regctl"
        layout = f"ocidir://{self.output / 'oci'}"
        whole = f"{layout}:{self.version}"
        told = {
            "title": "portcullis",
            "description": self.package["description"],
            "version": self.version,
            "revision": self.commit,
            "created": self.created,
            "source": self.package["repository"],
            "documentation": f"{self.package['repository']}/tree/main/docs",
            "licenses": self.package["license"],
        }
        words = [f"org.opencontainers.image.{name}={value}" for name, value in told.items()]
        annotations = [word for text in words for word in ("--annotation", text)]
        labels = [word for text in words for word in ("--label", text)]
        # Dated by nothing, so that it is one layer for as long as certificates and time zones are the same.
        base = layer(self.aside / "base.tar", self.base(), 0o644, 0)
        for platform, program in programs.items():
            part = f"{layout}:{platform.replace('/', '-')}"
            own = layer(self.aside / "program.tar", {PROGRAM: program.read_bytes()}, 0o755, self.moment)
            run(regctl, "image", "create", part, "--platform", platform, "--created", self.created, *labels, *annotations)
            run(
                *[regctl, "image", "mod", part, "--replace", "--layer-add", f"tar={base}"],
                # For kubectl exec, and for runtimes that set none of their own.
                *["--env", f"PATH=/{Path(PROGRAM).parent}", "--user", USER, "--workdir", "/"],
                *["--config-entrypoint", json.dumps([f"/{PROGRAM}"])],
            )
            run(regctl, "image", "mod", part, "--replace", "--layer-add", f"tar={own}")
        refs = [word for platform in programs for word in ("--ref", f"{layout}:{platform.replace('/', '-')}", "--platform", platform)]
        run(regctl, "index", "create", whole, *refs, *annotations)
        kind = "application/vnd.cyclonedx+json"
        for platform, sbom in sboms.items():
            run(
                *[regctl, "artifact", "put", "--artifact-type", kind, "--subject", whole, "--platform", platform],
                *["--file", sbom, "--file-media-type", kind, "--file-title", "--strip-dirs"],
                *["--annotation", f"org.opencontainers.image.created={self.created}"],
            )
            run(regctl, "tag", "rm", f"{layout}:{platform.replace('/', '-')}")
        return run(regctl, "image", "digest", whole).strip()


def layer(path: Path, files: dict[str, bytes], mode: int, when: int) -> Path:
    """A tar of files and the folders that they are in: sorted, of root, with one time."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as archive:
        for name in sorted(folders | files.keys()):
            entry = tarfile.TarInfo(name)
            entry.mtime = when
            if name in files:
                entry.mode, entry.size = mode, len(files[name])
                archive.addfile(entry, io.BytesIO(files[name]))
            else:
                entry.mode, entry.type = 0o755, tarfile.DIRTYPE
                archive.addfile(entry)
    return path


def checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main(words: list[str]) -> None:
    as_root = words[:1] == ["--root"]
    places = [Path(word).resolve() for word in words if word != "--root"]
    if len(places) != 2:
        sys.exit("usage: build.py [--root] SOURCES OUTPUT")
    sources, output = places
    host = next(line.split()[1] for line in run("rustc", "-vV").splitlines() if line.startswith("host: "))
    wanted = [platform for platform in PLATFORMS if not as_root or PLATFORMS[platform][0] == host]
    compilers = {platform: cc for platform in wanted if (cc := compiler(platform, host))}
    if not compilers:
        sys.exit("there is no platform that the image could be built for")
    # Never somebody's folder of another kind.
    if output.is_dir() and any(output.iterdir()) and not (output / "oci/oci-layout").is_file():
        sys.exit(f"{output} is there and holds no image: name another folder (make image OUTPUT=…)")
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as aside:
        build = Build(sources, output, Path(aside))
        programs = {platform: build.program(platform, cc) for platform, cc in compilers.items()}
        if as_root:
            return build.root(*programs.values())
        sboms = {platform: build.sbom(platform, cc, programs[platform]) for platform, cc in compilers.items()}
        digest = build.image(programs, sboms)
    (output / "digest").write_text(f"{digest}\n")
    sums = [f"{checksum(path)}  {path.name}\n" for path in sorted(output.iterdir()) if path.is_file()]
    (output / "SHA256SUMS").write_text("".join(sums))
    say(f"{output / 'oci'}: {build.version}, {', '.join(programs)}, {digest}")


if __name__ == "__main__":
    main(sys.argv[1:])
