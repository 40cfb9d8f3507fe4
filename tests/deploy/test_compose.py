"""`deploy/compose.yaml`: valid, and about the files, networks, ports and settings that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

from embedder.settings import ROWS, Settings
from tests.deploy.deadlines import deadlines_s
from tests.server import ROOT

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]  # Any: YAML


def validated(file: Path) -> subprocess.CompletedProcess[str]:
    """Against the schema of the Compose specification, which the package carries."""
    command = [
        str(Path(sys.executable).with_name("check-jsonschema")),
        "--builtin-schema",
        "vendor.compose-spec",
    ]
    return subprocess.run([*command, file], capture_output=True, text=True)


def test_it_is_valid_and_the_validator_sees_what_is_wrong(tmp_path: Path) -> None:
    done = validated(DEPLOY / "compose.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    text = (DEPLOY / "compose.yaml").read_text()
    (tmp_path / "compose.yaml").write_text(text.replace("read_only: true", "readonly: true"))
    assert validated(tmp_path / "compose.yaml").returncode != 0


def test_each_file_that_is_mounted_is_there_and_can_not_be_written() -> None:
    for service in SERVICES.values():
        for mount in service.get("volumes", []):
            source, _, mode = mount.partition(":")
            assert source in COMPOSE["volumes"] or ((DEPLOY / source).exists() and mode.endswith(":ro")), (
                mount
            )


def test_the_image_is_the_one_that_make_builds() -> None:
    (built,) = re.findall(r"^IMAGE \?= (\S+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert SERVICES["embedder"]["image"] == f"${{IMAGE:-{built}}}"


def test_only_nginx_can_be_reached_from_other_machines() -> None:
    for name, service in SERVICES.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:") or name == "nginx"
    assert "ports" not in SERVICES["embedder"]
    assert set(SERVICES["nginx"]["networks"]) & set(SERVICES["prometheus"]["networks"]) == set()


def test_nginx_finds_the_service_and_listens_where_it_is_published() -> None:
    configuration = re.sub(r"#.*", "", (DEPLOY / "nginx.conf").read_text())
    (server,) = re.findall(r"\bserver\s+([\w.]+:\d+);", configuration)
    assert server == f"embedder:{Settings().port}"
    (listen,) = re.findall(r"\blisten\s+(\d+)\b", configuration)
    (published,) = SERVICES["nginx"]["ports"]
    assert published.endswith(f":{listen}")
    assert set(SERVICES["nginx"]["networks"]) & set(SERVICES["embedder"]["networks"])


def test_prometheus_scrapes_the_service_where_it_listens() -> None:
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"embedder:{Settings().port}"]}]
    assert set(SERVICES["prometheus"]["networks"]) & set(SERVICES["embedder"]["networks"])
    # With keys set, /metrics asks for one: Prometheus has none.
    assert SERVICES["embedder"]["environment"]["EMBEDDER_OPEN_ROUTES"] == "metrics"


def test_there_is_time_to_finish_what_is_in_work() -> None:
    assert float(SERVICES["embedder"]["stop_grace_period"].removesuffix("s")) > sum(deadlines_s())


def test_every_setting_named_is_one() -> None:
    named = set(re.findall(r"\bEMBEDDER_[A-Z_]+\b", (DEPLOY / "compose.yaml").read_text()))
    assert named
    assert named <= ROWS.keys()


def test_a_second_service_has_what_the_first_one_has_and_is_for_this_machine_alone() -> None:
    file = DEPLOY / "compose.two-models.yaml"
    done = validated(file)
    assert done.returncode == 0, done.stdout + done.stderr
    (service,) = yaml.safe_load(file.read_text())["services"].values()
    extended = service["extends"]
    assert (DEPLOY / extended["file"]).name == "compose.yaml"
    assert extended["service"] in SERVICES
    (port,) = service["ports"]
    assert port.startswith("127.0.0.1:")
    assert port.endswith(f":{Settings().port}")
