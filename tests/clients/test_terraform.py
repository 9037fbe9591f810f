"""Terraform with the azurerm provider, over TLS. Skipped where there is no terraform or no provider."""

import json
import os
import pathlib
import shutil
import subprocess

import pytest

HERE = pathlib.Path(__file__).parent / "terraform"


def provider() -> pathlib.Path:
    """The provider's binary: AZURERM_PROVIDER, or what terraform/provider.sh has built."""
    if not shutil.which("terraform"):
        pytest.skip("terraform is not installed")
    named = os.environ.get("AZURERM_PROVIDER")
    if named:
        return pathlib.Path(named).resolve(strict=True)
    home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    cache = pathlib.Path(os.environ.get("PORTCULLIS_CACHE") or pathlib.Path(home) / "portcullis")
    built = sorted(cache.glob("azurerm-*/terraform-provider-azurerm"))
    if not built:
        pytest.skip("no azurerm provider: set AZURERM_PROVIDER, or run tests/clients/terraform/provider.sh")
    return built[-1]


class Terraform:
    """The configuration of terraform/ in a folder of its own, against one simulator."""

    def __init__(self, simulator, folder: pathlib.Path, binary: pathlib.Path):
        (folder / "bin").mkdir()
        (folder / "bin" / "terraform-provider-azurerm").symlink_to(binary)
        self.folder = folder / "world"
        self.folder.mkdir()
        shutil.copy(HERE / "main.tf", self.folder)
        rc = folder / "terraform.rc"
        rc.write_text(
            'provider_installation {\n  dev_overrides { "hashicorp/azurerm" = "%s" }\n  direct {}\n}\n' % (folder / "bin")
        )
        self.simulator = simulator
        self.environment = {
            **os.environ,
            "TF_CLI_CONFIG_FILE": str(rc),
            "CHECKPOINT_DISABLE": "1",
            "SSL_CERT_FILE": simulator.caFile,
            "ARM_METADATA_HOSTNAME": simulator.tlsUrl.removeprefix("https://"),
            "ARM_TENANT_ID": simulator.tenantId,
            "ARM_CLIENT_ID": simulator.clientId,
            "ARM_CLIENT_SECRET": simulator.clientSecret,
            "ARM_SUBSCRIPTION_ID": simulator.subscriptionId,
            "ARM_USE_CLI": "false",
        }

    def run(self, command: str, *arguments, codes=(0,), **variables) -> subprocess.CompletedProcess:
        """One command, with variables for the configuration."""
        (self.folder / "terraform.tfvars.json").write_text(json.dumps(variables))
        line = ["terraform", command, "-no-color", "-input=false", *arguments]
        done = subprocess.run(line, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=300)
        assert done.returncode in codes, f"{line}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def apply(self, **variables):
        return self.run("apply", "-auto-approve", **variables)

    def differs(self, **variables) -> bool:
        """Would an apply change anything?"""
        return self.run("plan", "-detailed-exitcode", codes=(0, 2), **variables).returncode == 2

    def outputs(self):
        done = subprocess.run(
            ["terraform", "output", "-json"], cwd=self.folder, env=self.environment, capture_output=True, check=True
        )
        return {name: output["value"] for name, output in json.loads(done.stdout).items()}

    def ignore_inline_rules(self):
        """As the documentation advises for groups with inline rules."""
        path = self.folder / "main.tf"
        mark = 'resource "azurerm_network_security_group" "inline" {\n'
        text = path.read_text()
        assert mark in text
        path.write_text(text.replace(mark, mark + "  lifecycle {\n    ignore_changes = [security_rule]\n  }\n"))


@pytest.fixture
def terraform(simulator, tmp_path):
    folder = tmp_path / "terraform"
    folder.mkdir()
    return Terraform(simulator, folder, provider())


def deny(simulator, group: str):
    """A rule of another writer, such as a lock."""
    scope = f"/subscriptions/{simulator.subscriptionId}/resourceGroups/terraform/providers/Microsoft.Network"
    rule = {
        "id": f"{scope}/networkSecurityGroups/{group}/securityRules/lock",
        "properties": {
            "access": "Deny", "direction": "Inbound", "priority": 150, "protocol": "*", "sourceAddressPrefix": "*",
            "sourcePortRange": "*", "destinationAddressPrefix": "10.0.1.4", "destinationPortRange": "22",
        },
    }
    simulator.control("world", {"resources": [rule]})


def rules(simulator, group: str) -> set[str]:
    """Names of the rules of a network security group."""
    mark = f"/networksecuritygroups/{group}/securityrules/"
    ids = [resource["id"].lower() for resource in simulator.control("world")["goal"]]
    return {name.partition(mark)[2] for name in ids if mark in name}


def test_a_world_is_applied_changed_and_destroyed(simulator, terraform):
    terraform.apply()
    address = terraform.outputs()["public_ip"]
    assert simulator.passes("203.0.113.7", address, 22)
    assert not simulator.passes("203.0.113.9", address, 22)
    assert not terraform.differs()

    changed = {"ssh_source": "203.0.113.9", "tags": {"role": "web"}}
    assert terraform.differs(**changed)
    terraform.apply(**changed)
    assert not simulator.passes("203.0.113.7", address, 22)
    assert simulator.passes("203.0.113.9", address, 22)
    assert not terraform.differs(**changed)

    terraform.run("destroy", "-auto-approve", **changed)
    assert simulator.control("world")["goal"] == []


def test_rules_of_others_outlive_an_apply_unless_the_group_has_inline_rules(simulator, terraform):
    terraform.apply()
    assert not terraform.differs()
    deny(simulator, "separate")
    assert not terraform.differs(), "separate rules leave those of others alone"
    deny(simulator, "inline")
    plan = terraform.run("plan", "-detailed-exitcode", codes=(2,)).stdout
    assert "azurerm_network_security_group.inline will be updated" in plan
    assert "azurerm_network_security_group.separate will" not in plan

    # Also when a tag has the groups written as a whole.
    terraform.apply(tags={"role": "web"})
    assert rules(simulator, "separate") == {"ssh", "web", "lock"}
    assert rules(simulator, "inline") == {"ssh", "web"}, "inline rules are the whole truth"

    terraform.ignore_inline_rules()
    deny(simulator, "inline")
    assert not terraform.differs(tags={"role": "web"})
    terraform.apply(tags={"role": "db"})
    assert rules(simulator, "inline") == {"ssh", "web", "lock"}
