"""`deploy/kubernetes`: valid by the API's own schemas, and about the service that is in this repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from bentoml._internal.container.generate import BENTO_UID_GID

from embedder.fetch.addresses import DENIED_IPV4, DENIED_IPV6, GLOBAL_UNICAST
from embedder.http.gate import Routes
from embedder.settings import ROWS, Settings
from tests.deploy.deadlines import deadlines_s
from tests.server import ROOT

BASE = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.28", "1.34")
"""Of Kubernetes: the oldest and the newest that the files are held against."""

Object = dict[str, Any]  # Any: YAML


def read(name: str, folder: Path = BASE) -> Object:
    (content,) = yaml.safe_load_all((folder / name).read_text())
    return content  # type: ignore[no-any-return]


KUSTOMIZATION = read("kustomization.yaml")
OBJECTS: dict[str, Object] = {}
for _file in KUSTOMIZATION["resources"]:
    _object = read(_file)
    OBJECTS[_object["kind"]] = _object
MONITOR = read("servicemonitor.yaml", BASE / "monitoring")

POD: Object = OBJECTS["Deployment"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
LABELS: dict[str, str] = OBJECTS["Deployment"]["spec"]["template"]["metadata"]["labels"]
SETTINGS = dict(
    literal.split("=", 1)
    for generator in KUSTOMIZATION["configMapGenerator"]
    for literal in generator["literals"]
)


def validated(file: Path, version: str) -> subprocess.CompletedProcess[str]:
    """By the schemas of Kubernetes' API, which the package carries. An unknown field is an error."""
    validate = Path(sys.executable).with_name("kubernetes-validate")
    return subprocess.run([validate, "--strict", "-k", version, file], capture_output=True, text=True)


# Valid


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", sorted({file.name for file in BASE.glob("*.yaml")} - {"kustomization.yaml"}))
def test_each_object_is_valid_and_in_the_kustomization(file: str, version: str) -> None:
    assert file in KUSTOMIZATION["resources"]
    done = validated(BASE / file, version)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_validator_sees_a_field_that_does_not_exist(tmp_path: Path) -> None:
    text = (BASE / "deployment.yaml").read_text()
    wrong = text.replace("readOnlyRootFilesystem: true", "readOnlyRootFileSystem: true")
    assert wrong != text
    (tmp_path / "deployment.yaml").write_text(wrong)
    assert validated(tmp_path / "deployment.yaml", VERSIONS[-1]).returncode != 0


# Built, as `kubectl apply -k` does

KUBECTL = shutil.which("kubectl")
needs_kubectl = pytest.mark.skipif(
    not KUBECTL, reason="kubectl, which builds kustomizations, is not installed"
)


def built(folder: Path) -> list[Object]:
    done = subprocess.run([str(KUBECTL), "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return list(yaml.safe_load_all(done.stdout))


@needs_kubectl
def test_the_base_builds_in_one_namespace_with_the_settings_as_a_map() -> None:
    objects = {item["kind"]: item for item in built(BASE)}
    settings = objects.pop("ConfigMap")
    assert settings["data"] == SETTINGS
    assert objects.keys() == OBJECTS.keys()
    namespace = objects.pop("Namespace")["metadata"]["name"]
    assert {item["metadata"]["namespace"] for item in [*objects.values(), settings]} == {namespace}
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"][0]["configMapRef"]["name"] == settings["metadata"]["name"]


def overlay() -> str:
    """The kustomization that deploy/README.md shows."""
    readme = (ROOT / "deploy" / "README.md").read_text()
    (block,) = (
        block for block in re.findall(r"```yaml\n(.*?)```", readme, re.DOTALL) if "components:" in block
    )
    return str(block)


@needs_kubectl
def test_the_readmes_overlay_builds_with_its_image_its_settings_and_a_monitor(tmp_path: Path) -> None:
    shutil.copytree(BASE, tmp_path / "deploy" / "kubernetes")
    (tmp_path / "production").mkdir()
    (tmp_path / "production" / "kustomization.yaml").write_text(overlay())
    objects = {item["kind"]: item for item in built(tmp_path / "production")}
    assert objects.keys() == {*OBJECTS, "ConfigMap", "ServiceMonitor"}
    wanted = yaml.safe_load(overlay())
    (image,) = wanted["images"]
    (container,) = objects["Deployment"]["spec"]["template"]["spec"]["containers"]
    (name,) = re.findall(r"^IMAGE \?= (\S+):latest$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert image["name"] == CONTAINER["image"] == name
    assert container["image"] == f"{image['newName']}:{image['newTag']}"
    (generator,) = wanted["configMapGenerator"]
    changed = dict(literal.split("=", 1) for literal in generator["literals"])
    assert objects["ConfigMap"]["data"] == {**SETTINGS, **changed}
    Settings.from_environ(objects["ConfigMap"]["data"])  # raises where one can't be used


# About this service


def test_its_settings_can_be_used_and_each_worker_has_a_whole_core() -> None:
    assert Settings.from_environ(SETTINGS).workers == int(CONTAINER["resources"]["limits"]["cpu"])


def test_every_setting_that_a_file_names_is_one_and_no_service_is_taken_for_one() -> None:
    for file in BASE.rglob("*.yaml"):
        named = set(re.findall(r"\bEMBEDDER_[A-Z_]+\b", file.read_text()))
        assert named <= ROWS.keys(), file
    # Kubernetes would set EMBEDDER_PORT=tcp://10.0.0.1:8000 for the Service.
    assert f"{OBJECTS['Service']['metadata']['name'].upper()}_PORT" in ROWS
    assert POD["enableServiceLinks"] is False


def test_ports_lead_to_where_the_service_listens() -> None:
    (port,) = CONTAINER["ports"]
    assert port["containerPort"] == Settings.from_environ(SETTINGS).port
    (service,) = OBJECTS["Service"]["spec"]["ports"]
    (endpoint,) = MONITOR["spec"]["endpoints"]
    (ingress,) = OBJECTS["NetworkPolicy"]["spec"]["ingress"]
    assert service["targetPort"] == port["name"]
    assert endpoint["port"] == service["name"]
    assert [rule["port"] for rule in ingress["ports"]] == [port["name"]]


def test_probes_and_prometheus_ask_for_routes_that_are_open() -> None:
    routes = Routes([])
    opened = routes.open_paths(Settings.from_environ(SETTINGS).open_routes)
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = CONTAINER[kind]["httpGet"]
        assert "GET" in routes.methods()[probe["path"]]
        assert probe["path"] in opened
        assert probe["port"] == CONTAINER["ports"][0]["name"]
    assert MONITOR["spec"]["endpoints"][0]["path"] in opened


def test_labels_and_selectors_are_of_the_same_pods() -> None:
    for selector in (
        OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"],
        OBJECTS["Service"]["spec"]["selector"],
        OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        *(spread["labelSelector"]["matchLabels"] for spread in POD["topologySpreadConstraints"]),
    ):
        assert selector == LABELS
    # A ServiceMonitor selects services, not pods.
    assert MONITOR["spec"]["selector"]["matchLabels"] == OBJECTS["Service"]["metadata"]["labels"]
    assert MONITOR["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
    assert MONITOR["apiVersion"] == "monitoring.coreos.com/v1"
    target = OBJECTS["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]
    deployment = OBJECTS["Deployment"]
    assert target == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]  # or each apply would undo the autoscaler


def test_it_runs_as_the_images_user_and_writes_only_to_memory() -> None:
    assert POD["securityContext"]["runAsUser"] == POD["securityContext"]["runAsGroup"] == BENTO_UID_GID
    (mount,) = CONTAINER["volumeMounts"]
    (volume,) = POD["volumes"]
    assert volume["name"] == mount["name"]
    assert volume["emptyDir"]["medium"] == "Memory"  # a full disk would end workers: deploy/README.md
    dockerfile = (ROOT / "deploy" / "Dockerfile.j2").read_text()
    assert f"BENTOML_HOME={mount['mountPath']}/" in dockerfile  # where BentoML's metrics are


def test_there_is_time_to_finish_what_is_in_work() -> None:
    *_, pre_stop_s = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] > float(pre_stop_s) + sum(deadlines_s(**SETTINGS))


# Where it may go


def test_egress_is_denied_to_the_networks_that_the_service_denies() -> None:
    *_, images = OBJECTS["NetworkPolicy"]["spec"]["egress"]
    four, six = (peer["ipBlock"] for peer in images["to"])
    assert four["cidr"] == "0.0.0.0/0"
    assert [ip_network(network) for network in four["except"]] == list(DENIED_IPV4)
    assert ip_network(six["cidr"]) == GLOBAL_UNICAST
    assert [ip_network(network) for network in six["except"]] == list(DENIED_IPV6)
    assert {port["port"] for port in images["ports"]} == Settings.from_environ(SETTINGS).allowed_ports
