#!/usr/bin/env python3
"""Runs the image that was built as a cluster would, with what the Deployment forbids: check.py OUTPUT [PLATFORM].

runc starts it, in namespaces of its own, of which the network is one that holds nothing but loopback and a name server and
an HTTPS server of ours (tools/probe). That takes Linux and root. With --contents the image is looked at, and not run.
"""

import ctypes
import fcntl
import hashlib
import json
import os
import platform
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tarfile
import tempfile
import time
import zlib
from pathlib import Path

from tools import CHECKOUT, go_tools, run, say

USER = 65532
# Bounds, with a quarter to spare: what exceeds them was not meant to be there.
MOST_COMPRESSED = 8_400_000
MOST_UNPACKED = 18_200_000
CERTIFICATES = "etc/ssl/certs/ca-certificates.crt"
# Roots that Azure's endpoints stand under.
ROOTS = {"DigiCert Global Root G2", "DigiCert Global Root G3", "Microsoft RSA Root Certificate Authority 2017"}
HOST = "arm.portcullis.test"
CONFIG = f"""clusterId: check
cloud: {{name: Custom, resourceManager: 'https://{HOST}', authority: 'https://{HOST}', audience: 'https://{HOST}'CA}}
credentials: [{{name: default, accessToken: {{tokenFile: /etc/portcullis/config/token}}}}]
namespaces: [{{name: team-web, credential: default, scopes: [/subscriptions/11111111-2222-3333-4444-555555555555/resourceGroups/web]}}]
"""
ELSEWHERE = "\nA container may not start others: run it on a machine of its own, or leave it out: make image CHECK=contents"
wrong: list[str] = []


def expect(condition: object, what: str, found: object = "") -> None:
    """Says that something is so, or takes down that it is not."""
    say(f"  {'ok  ' if condition else 'NOT '} {what}" + ("" if condition or found == "" else f": {found}"))
    if not condition:
        wrong.append(what)


class Deployment:
    """What deploy/base/deployment.yaml demands of the image, read by its lines: Python has no YAML of its own."""

    def __init__(self) -> None:
        text = (CHECKOUT / "deploy/base/deployment.yaml").read_text()

        def one(pattern: str) -> str:
            found = re.findall(pattern, text)
            if len(found) != 1:
                sys.exit(f"deploy/base/deployment.yaml has {len(found)} times {pattern!r}, and this check reads it once")
            return found[0]

        self.user, self.group = int(one(r"runAsUser: (\d+)")), int(one(r"runAsGroup: (\d+)"))
        self.arguments = [word.strip() for word in one(r" args: \[(.*)\]").split(",")]
        self.memory = int(one(r"limits: \{memory: (\d+)Mi\}")) << 20
        for said in ("runAsNonRoot: true", "readOnlyRootFilesystem: true", "allowPrivilegeEscalation: false", r"capabilities: \{drop: \[ALL\]\}"):
            one(said)
        if re.search(r"^\s+command:", text, re.MULTILINE):
            sys.exit("deploy/base/deployment.yaml has a command: this check knows the image's own entry point alone")


class Image:
    """One platform of the layout, unpacked."""

    def __init__(self, output: Path, kind: str, folder: Path):
        self.layout, self.root = output / "oci", folder / "rootfs"
        ref = self.whole = f"ocidir://{self.layout}:{self.version(output)}"
        regctl = go_tools() / "regctl"
        self.digest = run(regctl, "image", "digest", ref).strip()
        self.manifest = json.loads(run(regctl, "manifest", "get", "--platform", kind, "--format", "raw-body", ref))
        self.config = json.loads(self.blob(self.manifest["config"]["digest"]))
        self.labels = self.config["config"].get("Labels", {})
        listed = json.loads(run(regctl, "artifact", "list", ref, "--platform", kind, "--format", "{{json .}}"))
        self.referrers = listed.get("descriptors") or []
        self.entries: dict[str, tarfile.TarInfo] = {}
        self.root.mkdir()
        for described in self.manifest["layers"]:
            with tarfile.open(self.layout / "blobs" / described["digest"].replace(":", "/"), "r:gz") as archive:
                for entry in archive:
                    self.entries[entry.name.removeprefix("./")] = entry
                    archive.extract(entry, self.root, numeric_owner=True)
        self.root.chmod(0o755)

    @staticmethod
    def version(output: Path) -> str:
        for described in json.loads((output / "oci/index.json").read_text())["manifests"]:
            name = described.get("annotations", {}).get("org.opencontainers.image.ref.name", "")
            if not name.startswith("sha256-"):
                return name
        sys.exit(f"{output}/oci has no image with a tag")

    def blob(self, digest: str) -> bytes:
        return (self.layout / "blobs" / digest.replace(":", "/")).read_bytes()

    def state(self) -> dict[str, str]:
        """What is unpacked, to be compared later. Folders that runc mounts upon are not there at first, and are no files."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            if path.is_file() and path.stat().st_size:
                found[str(path)] = f"{path.stat().st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        return found


class Runtime:
    """runc, with the bundle of a pod of the Deployment."""

    def __init__(self, image: Image, deployment: Deployment, folder: Path):
        self.image, self.deployment, self.folder = image, deployment, folder
        self.tools = go_tools()
        self.runs = 0
        self.memory = True
        (folder / "bundle").mkdir()
        self.base = json.loads(self.spec())

    def spec(self) -> str:
        run(self.tools / "runc", "spec", "--bundle", self.folder / "bundle")
        return (self.folder / "bundle/config.json").read_text()

    def run(self, *words: str, files: dict[str, str] | None = None, mounts: dict[str, Path] | None = None, entry: str = "", user: int | None = None, read_only: bool = True) -> tuple[int, str, str]:
        """Exit code and what was said. `files` are those of the ConfigMap; `mounts` are files from outside."""
        self.runs += 1
        folder = self.folder / f"run-{self.runs}"
        folder.mkdir(mode=0o755)
        own = self.image.config["config"]
        config = json.loads(json.dumps(self.base))
        user = self.deployment.user if user is None else user
        group = self.deployment.group if user else 0
        config["process"] |= {
            "terminal": False,
            "user": {"uid": user, "gid": group, "additionalGids": [group] if user else []},
            "args": [entry, *words] if entry else [*own["Entrypoint"], *words],
            "env": own.get("Env", []),
            "cwd": own.get("WorkingDir") or "/",
            "capabilities": {},
            "noNewPrivileges": True,
        }
        config["root"] = {"path": str(self.image.root), "readonly": read_only}
        if files is not None:
            for name, text in files.items():
                (folder / name).write_text(text)
                (folder / name).chmod(0o644)
            mounts = (mounts or {}) | {"/etc/portcullis/config": folder}
        for place, source in (mounts or {}).items():
            config["mounts"].append({"destination": place, "source": str(source), "type": "bind", "options": ["rbind", "ro", "nosuid", "nodev"]})
        linux = config["linux"]
        # The network is this process's own, which has left that of the machine.
        linux["namespaces"] = [space for space in linux["namespaces"] if space["type"] != "network"]
        if self.memory:
            linux["resources"]["memory"] = {"limit": self.deployment.memory}
        bundle = self.folder / "bundle"
        (bundle / "config.json").write_text(json.dumps(config))
        runc = [self.tools / "runc", "--root", self.folder / "state", "run", "--bundle", bundle, f"portcullis-check-{os.getpid()}-{self.runs}"]
        done = subprocess.run(runc, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
        return done.returncode, done.stdout, done.stderr

    def start(self) -> None:
        """Can it run anything here, and with a limit to memory?"""
        code, _, said = self.run("--version")
        if code and "cgroup" in said:
            self.memory = False
            code, _, said = self.run("--version")
        if code and "runc run failed" in said:
            sys.exit(f"runc cannot run it here: {said.strip()}{ELSEWHERE}")


def leave_the_network() -> None:
    """Goes over to an empty network of this process's own."""
    libc = ctypes.CDLL(None, use_errno=True)
    new_network = 0x40000000
    if libc.unshare(new_network):
        sys.exit(f"there is no network namespace to be had ({os.strerror(ctypes.get_errno())}){ELSEWHERE}")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as own:
        set_flags, up = 0x8914, 0x1
        fcntl.ioctl(own, set_flags, struct.pack("16sh14x", b"lo", up))


def contents(image: Image, output: Path) -> None:
    """What the image holds, without running it."""
    say(f"what {image.whole} holds")
    sums = dict(reversed(line.split("  ")) for line in (output / "SHA256SUMS").read_text().splitlines())
    beside = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.iterdir() if path.is_file() and path.name != "SHA256SUMS"}
    expect(sums == beside and (output / "digest").read_text().strip() == image.digest, "SHA256SUMS and digest are those of what is there", sums)
    blobs = [path for path in (image.layout / "blobs/sha256").iterdir()]
    expect(all(hashlib.sha256(path.read_bytes()).hexdigest() == path.name for path in blobs), f"each of {len(blobs)} blobs has its name for its hash")
    files = {name: entry for name, entry in image.entries.items() if entry.isfile()}
    odd = [name for name, entry in image.entries.items() if not (entry.isfile() or entry.isdir())]
    expect(not odd, "files and folders, and nothing else", odd)
    expect(not [n for n, e in image.entries.items() if e.mode & 0o6000], "nothing is setuid or setgid", [n for n, e in image.entries.items() if e.mode & 0o6000])
    loose = [name for name, entry in image.entries.items() if entry.mode & 0o022 or entry.uid or entry.gid]
    expect(not loose, "all is root's, and nobody else may write it", loose)
    programs = [name for name, entry in files.items() if entry.mode & 0o111 or (image.root / name).read_bytes()[:4] in (b"\x7fELF",) or (image.root / name).read_bytes()[:2] == b"#!"]
    entry = [f"/{name}" for name in programs]
    expect(entry == image.config["config"]["Entrypoint"], "one program, which is the entry point: no shell", programs)
    for name in programs:
        expect(is_static(image.root / name), f"{name} is static", "it wants an interpreter")
        inside = dependencies(image.root / name)
        kinds = [described.get("artifactType") for described in image.referrers]
        expect(kinds == ["application/vnd.cyclonedx+json"], "one SBOM refers to the image", kinds)
        if not image.referrers:
            continue
        referrer = json.loads(image.blob(image.referrers[0]["digest"]))
        sbom = json.loads(image.blob(referrer["layers"][0]["digest"]))
        listed = {(part["name"], part["version"]) for part in [sbom["metadata"]["component"], *sbom["components"]]}
        expect(len(inside) > 100 and inside <= listed, f"it knows each of the {len(inside)} packages that the program says it is made of", sorted(inside - listed))
        names = {name for name, _ in listed}
        expect({"glibc", "certifi", "tzdata"} <= names, "and what else is there", names)
        own = sbom["metadata"]["component"]["hashes"][0]["content"]
        expect(own == hashlib.sha256((image.root / name).read_bytes()).hexdigest(), "and is of this program", own)
    compressed = sum(described["size"] for described in image.manifest["layers"])
    unpacked = sum(entry.size for entry in files.values())
    expect(compressed <= MOST_COMPRESSED, f"{compressed:,} bytes to pull, at most {MOST_COMPRESSED:,}")
    expect(unpacked <= MOST_UNPACKED, f"{unpacked:,} bytes on disk, at most {MOST_UNPACKED:,}")
    expect(image.config["config"]["User"] == f"{USER}:{USER}", f"it runs as {USER} where nobody says otherwise", image.config["config"]["User"])
    wanted = {f"org.opencontainers.image.{name}" for name in "title description version revision source licenses created".split()}
    expect(not [name for name in wanted if not image.labels.get(name)], "it says what it is, by labels", wanted - image.labels.keys())
    try:
        trusted = ssl.create_default_context(cafile=image.root / CERTIFICATES).get_ca_certs()
    except (OSError, ssl.SSLError):
        trusted = []
    roots = [dict(part[0] for part in found["subject"]) for found in trusted]
    names = {name.get("commonName") for name in roots}
    expect(len(roots) > 100 and names >= ROOTS, f"{len(roots)} certificates to trust, those of Azure among them", ROOTS - names)
    zones = [name for name in files if name.startswith("usr/share/zoneinfo/") and (image.root / name).read_bytes()[:4] == b"TZif"]
    expect(len(zones) > 400 and "usr/share/zoneinfo/Europe/Berlin" in zones, f"{len(zones)} time zones")
    own, dockerfile = image.config["config"], (CHECKOUT / "Dockerfile").read_text()
    told = [f"USER {own['User']}", f"WORKDIR {own['WorkingDir']}", f"ENTRYPOINT {json.dumps(own['Entrypoint'])}", f"ENV {own['Env'][0]}"]
    expect(all(f"\n{line}\n" in dockerfile for line in told), "the Dockerfile says the same", told)


def is_static(path: Path) -> bool:
    """An ELF file without an interpreter (PT_INTERP)."""
    contents = path.read_bytes()
    start, = struct.unpack_from("<Q", contents, 32)
    size, count = struct.unpack_from("<HH", contents, 54)
    return contents[:5] == b"\x7fELF\x02" and all(struct.unpack_from("<I", contents, start + n * size)[0] != 3 for n in range(count))


def dependencies(path: Path) -> set[tuple[str, str]]:
    """The packages that cargo-auditable has written into a program (the section .dep-v0), build-time ones left out."""
    contents = path.read_bytes()
    start, = struct.unpack_from("<Q", contents, 40)
    size, count, names = struct.unpack_from("<HHH", contents, 58)
    sections = [struct.unpack_from("<IIQQQQ", contents, start + n * size) for n in range(count)]
    for name, _, _, _, offset, length in sections:
        at = sections[names][4] + name
        if contents[at : contents.index(b"\0", at)] == b".dep-v0":
            packages = json.loads(zlib.decompress(contents[offset : offset + length]))["packages"]
            return {(package["name"], package["version"]) for package in packages if package.get("kind") != "build"}
    return set()


def commands(runtime: Runtime, image: Image) -> None:
    say("the program, as the Deployment runs it")
    version = image.labels["org.opencontainers.image.version"]
    code, out, said = runtime.run("--version")
    expect(code == 0 and out.startswith(f"portcullis {version}"), f"--version: {out.strip()}", said)
    revision = image.labels["org.opencontainers.image.revision"]
    expect(f"(commit {revision})" in out, f"the commit that it names is {revision}", out)
    example = (CHECKOUT / "docs/configuration.example.yaml").read_text()
    path = "/etc/portcullis/config/config.yaml"
    code, out, said = runtime.run("config", "check", "--config", path, files={"config.yaml": example})
    expect(code == 0 and f"{path} is right" in out, "config check says that the example is right", f"{code} {out}{said}")
    code, out, said = runtime.run("config", "check", "--config", path, files={"config.yaml": example.replace("sweepInterval: 60s", "sweepInterval: 60 seconds")})
    expect(code == 1 and "sweepInterval" in said, f"and names the field of a wrong one, with exit code 1: {said.strip()}", f"{code} {out}{said}")
    code, out, said = runtime.run("config", "check", "--config", path)
    expect(code == 1 and "No such file" in said, f"or that there is none: {said.strip()}", f"{code} {out}{said}")
    code, out, said = runtime.run("--wrong")
    expect(code == 2, "wrong usage is exit code 2", f"{code} {out}{said}")
    code, out, said = runtime.run(entry="portcullis", *["--version"])
    expect(code == 0, "portcullis is found by its name, as kubectl exec wants it", said)
    code, out, said = runtime.run(*runtime.deployment.arguments, files={"config.yaml": example.replace("caFile: /etc/portcullis/ca.pem", "")})
    # There is no API server: that is what it may complain of, and nothing else.
    expect(code == 1 and re.search("kubeconfig|Kubernetes|cluster", said), "the Deployment's arguments are understood, up to the API server that is not there", f"{code} {out}{said}")
    for shell in ("/bin/sh", "/bin/bash", "/busybox/sh", "/usr/bin/env"):
        code, _, said = runtime.run(entry=shell)
        if code == 0 or "no such file" not in said:
            expect(False, f"{shell} is not there", f"{code} {said}")
    expect(True, "no shell starts")


def looks(runtime: Runtime) -> None:
    say("what a stranger in it could do")
    probe = {"/probe": runtime.tools / "probe"}

    def look(**how: object) -> dict:
        code, out, said = runtime.run("look", entry="/probe", mounts=probe, **how)
        if code:
            sys.exit(f"the probe failed ({code}): {out}{said}")
        return json.loads(out)

    found = look()
    expect((found["Uid"], found["Gid"]) == (USER, USER), f"uid and gid are {USER}", (found["Uid"], found["Gid"]))
    none = {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    expect(all(int(found["Status"][name], 16) == 0 for name in none), "no capability", found["Status"])
    expect(found["Status"]["NoNewPrivs"] == "1", "no way to more rights", found["Status"])
    expect(found["ReadOnly"] and found["Looked"] > 400 and not found["Writable"], f"none of {found['Looked']} files and folders can be written", found["Writable"])
    found = look(read_only=False)
    expect(not found["Writable"], "nor by the user alone, were the root not read-only", found["Writable"])
    found = look(user=0)
    expect(found["Uid"] == 0 and not found["Writable"], "nor by the read-only root alone, were the user root", found["Writable"])
    if runtime.memory:
        expect(found["Memory"] == str(runtime.deployment.memory), f"memory is limited to {runtime.deployment.memory:,} bytes", found["Memory"])
    else:
        say("  --   memory is not limited: no cgroup is to be had here")
    if found["Status"].get("Seccomp") != "2":
        say("  --   seccomp is not tried: runc is built without it")


def network(runtime: Runtime, image: Image, folder: Path) -> None:
    say("names and certificates")
    authority, heard = folder / "ca.pem", folder / "heard"
    with heard.open("w") as out:
        server = subprocess.Popen([runtime.tools / "probe", "serve", authority], stdout=out, stderr=out)
    try:
        for _ in range(100):
            if authority.is_file() or server.poll() is not None:
                break
            time.sleep(0.1)
        if not authority.is_file():
            sys.exit(f"the probe does not serve: {heard.read_text()}")
        (folder / "resolv.conf").write_text("nameserver 127.0.0.1\noptions timeout:1 attempts:2\n")
        (folder / "hosts").write_text("127.0.0.1 localhost\n")
        (folder / "both.pem").write_text((image.root / CERTIFICATES).read_text() + authority.read_text())
        (folder / "none.pem").write_text("")
        # As the kubelet writes them.
        kubelet = {"/etc/resolv.conf": folder / "resolv.conf", "/etc/hosts": folder / "hosts"}

        def sweep(ca: str = "", **mounts: Path) -> tuple[int, str, str, str]:
            before = len(heard.read_text())
            files = {"config.yaml": CONFIG.replace("CA", ca), "token": "eyJ.a.b", "ca.pem": authority.read_text()}
            trusted = {f"/{CERTIFICATES}": path for path in mounts.values()}
            words = ["sweep", "--dry-run", "--config", "/etc/portcullis/config/config.yaml"]
            return *runtime.run(*words, files=files, mounts=kubelet | trusted), heard.read_text()[before:]

        own = ", caFile: /etc/portcullis/config/ca.pem"
        code, out, said, asked = sweep(own)
        expect(f"dns {HOST}." in asked, "a name is asked for where /etc/resolv.conf says", asked + said)
        expect(code == 0 and f"https {HOST} GET" in asked, "and its address answers, by TLS", f"{code} {out}{said}{asked}")
        code, out, said, asked = sweep()
        expect(code == 1 and "UnknownIssuer" in said and "https" not in asked, "a certificate that no public root vouches for is refused", f"{code} {out}{said}{asked}")
        code, out, said, asked = sweep(trusted=folder / "both.pem")
        expect(code == 0 and f"https {HOST} GET" in asked, f"the roots are those in /{CERTIFICATES}", f"{code} {out}{said}{asked}")
        code, out, said, asked = sweep(trusted=folder / "none.pem")
        expect(code == 1 and "UnknownIssuer" not in said, "and without them there are no others", f"{code} {out}{said}{asked}")
        (folder / "hosts").write_text(f"127.0.0.1 {HOST}\n")
        code, out, said, asked = sweep(own)
        expect(code == 0 and "dns" not in asked, "/etc/hosts goes before", f"{code} {out}{said}{asked}")
    finally:
        server.terminate()
        server.wait()


def main(words: list[str]) -> None:
    machine = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())
    whole = "--contents" not in words
    words = [word for word in words if word != "--contents"]
    if len(words) not in (1, 2):
        sys.exit("usage: check.py [--contents] OUTPUT [PLATFORM]")
    output, kind = Path(words[0]).resolve(), (words[1:] or [f"linux/{machine}"])[0]
    if not (output / "oci/index.json").is_file():
        sys.exit(f"{output} holds no image: make image")
    if whole and os.geteuid():
        sys.exit("only root may start containers: sudo -E make image-check")
    begun = time.monotonic()
    # Readable by whoever the program runs as.
    folder = Path(tempfile.mkdtemp(prefix="portcullis-image-"))
    folder.chmod(0o755)
    try:
        image, deployment = Image(output, kind, folder), Deployment()
        contents(image, output)
        if whole:
            before = image.state()
            leave_the_network()
            runtime = Runtime(image, deployment, folder)
            runtime.start()
            commands(runtime, image)
            looks(runtime)
            network(runtime, image, folder)
            expect(image.state() == before, "after all of it the root is as it was")
    finally:
        shutil.rmtree(folder)
    if wrong:
        sys.exit(f"{kind} {image.digest} is not right: " + "; ".join(wrong))
    how = "is right" if whole else "holds what it should; it was not run"
    say(f"{kind} {image.digest} {how}, in {time.monotonic() - begun:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
