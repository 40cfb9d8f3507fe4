"""`deploy/compose.yaml`: valid, hardened, and about files and settings that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from embedder.settings import KNOBS
from tests.server import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]  # Any: YAML

each_service = pytest.mark.parametrize("name", SERVICES)


def validated(file: Path) -> subprocess.CompletedProcess[str]:
    """Against the schema of the Compose specification, which the package carries."""
    command = [
        str(Path(sys.executable).with_name("check-jsonschema")),
        "--builtin-schema",
        "vendor.compose-spec",
    ]
    return subprocess.run([*command, file], capture_output=True, text=True)


def test_it_is_valid() -> None:
    done = validated(DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("read_only: true", "readonly: true"), ("cap_drop: [ALL]", "cap_drop: ALL"), ("ports: [", "port: [")],
)
def test_the_validator_sees_what_is_wrong(tmp_path: Path, right: str, wrong: str) -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong))
    assert validated(tmp_path / "compose.yaml").returncode != 0


def test_these_are_its_services() -> None:
    assert SERVICES.keys() == {"embedder", "nginx", "prometheus", "grafana"}


@each_service
def test_each_service_can_write_nowhere_and_has_no_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert "cap_add" not in service
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not service.get("privileged")
    assert any(mount.split(":")[0] == "/tmp" for mount in service["tmpfs"])  # noqa: S108 - in a container
    for mount in service.get("volumes", []):
        source, _, mode = mount.partition(":")
        assert source in COMPOSE["volumes"] or mode.endswith(":ro"), mount


@each_service
def test_each_service_says_whether_it_is_healthy(name: str) -> None:
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"


@each_service
def test_each_image_has_a_version_or_is_the_one_that_make_builds(name: str) -> None:
    image = SERVICES[name]["image"]
    if name == "embedder":
        (built,) = re.findall(r"^IMAGE \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert image == f"${{IMAGE:-{built}}}"
    else:
        assert re.fullmatch(r"[a-z/]+:v?\d+\.\d+\.\d+(-[a-z]+)?", image), image


@each_service
def test_each_file_that_is_mounted_is_there(name: str) -> None:
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        assert source in COMPOSE["volumes"] or (DEPLOY / source).exists(), mount


def test_only_nginx_can_be_reached_from_other_machines() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or name == "nginx"
    assert "ports" not in SERVICES["embedder"]
    assert set(SERVICES["nginx"]["networks"]) & set(SERVICES["prometheus"]["networks"]) == set()


def test_nginx_finds_the_service_and_listens_where_it_is_published() -> None:
    configuration = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    (server,) = re.findall(r"\bserver\s+([\w.]+:\d+);", configuration)
    assert server == f"embedder:{KNOBS['port'].default}"
    (listen,) = re.findall(r"\blisten\s+(\d+)\b", configuration)
    (published,) = SERVICES["nginx"]["ports"]
    assert published.endswith(f":{listen}")


def test_prometheus_scrapes_the_service_where_it_listens() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"embedder:{KNOBS['port'].default}"]}]
    assert "monitoring" in SERVICES["embedder"]["networks"]
    assert "monitoring" in SERVICES["prometheus"]["networks"]
    # With keys set, /metrics asks for one: Prometheus has none.
    assert SERVICES["embedder"]["environment"]["EMBEDDER_OPEN_ROUTES"] == "metrics"


def test_every_setting_named_is_one() -> None:
    named = set(re.findall(r"\bEMBEDDER_[A-Z_]+\b", (DEPLOY / "compose.yaml").read_text()))
    assert named
    assert named <= {knob.variable for knob in KNOBS.values()}
