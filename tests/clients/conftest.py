"""One simulator for each test, started from the built binary (AZURE_SIMULATOR), and stopped by its own pid."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
import urllib.request

import pytest
from azure.identity import ClientSecretCredential
from azure.mgmt.compute import ComputeManagementClient
from azure.mgmt.network import NetworkManagementClient
from azure.mgmt.resource import ResourceManagementClient


class Simulator:
    """A running azure-simulator."""

    def __init__(self, folder: pathlib.Path):
        binary = os.environ.get("AZURE_SIMULATOR") or shutil.which("azure-simulator")
        if not binary:
            pytest.fail("AZURE_SIMULATOR must name the built azure-simulator")
        announced = folder / "simulator.json"
        self.log = open(folder / "simulator.log", "wb")
        self.process = subprocess.Popen([binary, "--announce", str(announced)], stderr=self.log)
        deadline = time.monotonic() + 30
        while not announced.exists():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the simulator does not start: {(folder / 'simulator.log').read_text()}")
            time.sleep(0.02)
        self.__dict__.update(json.loads(announced.read_text()))

    def control(self, path: str, body=None):
        """Asks the control door."""
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(f"{self.url}/_sim/{path}", data)) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def passes(self, source: str, destination: str, port: int) -> bool:
        """Would a TCP packet pass?"""
        probe = {"source": source, "destination": destination, "port": port, "protocol": "Tcp"}
        return self.control("probe", probe)["allowed"]

    def stop(self):
        """Ends it, and waits for the end."""
        self.process.terminate()
        try:
            assert self.process.wait(10) == 0, "SIGTERM must end it with status 0"
        finally:
            self.log.close()


@pytest.fixture
def simulator(tmp_path, monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    running = Simulator(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", running.caFile)
    yield running
    running.stop()


class Clients:
    """One client of each library, signed in as the simulator's own application."""

    def __init__(self, simulator):
        credential = ClientSecretCredential(
            simulator.tenantId, simulator.clientId, simulator.clientSecret,
            authority=simulator.tlsUrl, disable_instance_discovery=True,
        )
        options = {
            "base_url": simulator.tlsUrl,
            "credential_scopes": [f"{simulator.tlsUrl}/.default"],
            "polling_interval": 1,
        }
        self.network = NetworkManagementClient(credential, simulator.subscriptionId, **options)
        self.compute = ComputeManagementClient(credential, simulator.subscriptionId, **options)
        self.resource = ResourceManagementClient(credential, simulator.subscriptionId, **options)


@pytest.fixture
def clients(simulator):
    return Clients(simulator)


@pytest.fixture
def az(simulator, tmp_path):
    """Runs the az CLI against the simulator, with a configuration of its own."""
    environment = {
        **os.environ,
        "AZURE_CONFIG_DIR": str(tmp_path / "azure"),
        "AZURE_CORE_COLLECT_TELEMETRY": "no",
        "AZURE_CORE_INSTANCE_DISCOVERY": "false",
        "AZURE_CORE_LOGIN_EXPERIENCE_V2": "no",
        "REQUESTS_CA_BUNDLE": simulator.caFile,
    }

    def run(*arguments, code=0):
        command = [sys.executable, "-m", "azure.cli", *arguments, "--output", "json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == code, f"{arguments}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        if code:
            return done.stderr
        return json.loads(done.stdout) if done.stdout.strip() else None

    run("cloud", "register", "--name", "Simulated", "--endpoint-resource-manager", simulator.tlsUrl)
    run("cloud", "set", "--name", "Simulated")
    run(
        "login", "--service-principal", "--username", simulator.clientId, "--password", simulator.clientSecret,
        "--tenant", simulator.tenantId,
    )
    return run
