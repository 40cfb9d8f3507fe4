"""`deploy/kubernetes`: valid by the API's own schemas, and about the service that is in this repository."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
import yaml
from bentoml._internal.container.generate import BENTO_UID_GID

from embedder.fetch.addresses import DENIED_IPV4, DENIED_IPV6, GLOBAL_UNICAST
from embedder.http.gate import OPENABLE, ROUTES
from embedder.settings import KNOBS, Settings
from tests.server import ROOT, plain_environ

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
    command = [
        str(Path(sys.executable).with_name("kubernetes-validate")),
        "--strict",
        "-k",
        version,
    ]
    return subprocess.run([*command, file], capture_output=True, text=True)


# Valid


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("file", KUSTOMIZATION["resources"])
def test_each_object_is_valid(file: str, version: str) -> None:
    done = validated(BASE / file, version)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "right", "wrong"),
    [
        ("deployment.yaml", "readOnlyRootFilesystem: true", "readOnlyRootFileSystem: true"),
        ("deployment.yaml", "terminationGracePeriodSeconds: 75", "terminationGracePeriodSeconds: 75s"),
        ("networkpolicy.yaml", "except:", "excepting:"),
        ("horizontalpodautoscaler.yaml", "averageUtilization: 70", "averageUtilization: 70%"),
    ],
)
def test_the_validator_sees_what_is_wrong(tmp_path: Path, file: str, right: str, wrong: str) -> None:
    text = (BASE / file).read_text()
    assert right in text
    (tmp_path / file).write_text(text.replace(right, wrong))
    assert validated(tmp_path / file, VERSIONS[-1]).returncode != 0


def test_every_file_is_in_the_kustomization() -> None:
    files = {file.name for file in BASE.glob("*.yaml")} - {"kustomization.yaml"}
    assert files == set(KUSTOMIZATION["resources"])
    component = read("kustomization.yaml", BASE / "monitoring")
    assert component["kind"] == "Component"
    assert component["resources"] == ["servicemonitor.yaml"]


def test_all_kinds_are_there() -> None:
    assert OBJECTS.keys() == {
        "Namespace",
        "Deployment",
        "Service",
        "HorizontalPodAutoscaler",
        "PodDisruptionBudget",
        "NetworkPolicy",
    }


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


def test_its_settings_are_settings_with_values_that_can_be_used() -> None:
    assert SETTINGS.keys() <= {knob.variable for knob in KNOBS.values()}
    assert Settings.from_environ(SETTINGS).workers == 2


def test_every_setting_that_a_file_names_is_one() -> None:
    for file in BASE.rglob("*.yaml"):
        named = set(re.findall(r"\bEMBEDDER_[A-Z_]+\b", file.read_text()))
        assert named <= {knob.variable for knob in KNOBS.values()}, file


def test_one_worker_has_one_whole_core_and_no_less_than_it_asks_for() -> None:
    resources = CONTAINER["resources"]
    assert resources["requests"] == resources["limits"]
    assert resources["limits"]["cpu"] == SETTINGS["EMBEDDER_WORKERS"]


def test_services_of_that_name_are_not_taken_for_settings() -> None:
    # Kubernetes would set EMBEDDER_PORT=tcp://10.0.0.1:8000 for the Service.
    assert f"{OBJECTS['Service']['metadata']['name'].upper()}_PORT" == KNOBS["port"].variable
    assert POD["enableServiceLinks"] is False


def test_ports_lead_to_where_the_service_listens() -> None:
    (port,) = CONTAINER["ports"]
    assert str(port["containerPort"]) == SETTINGS.get("EMBEDDER_PORT", KNOBS["port"].default)
    (service,) = OBJECTS["Service"]["spec"]["ports"]
    (endpoint,) = MONITOR["spec"]["endpoints"]
    (ingress,) = OBJECTS["NetworkPolicy"]["spec"]["ingress"]
    assert service["targetPort"] == port["name"]
    assert endpoint["port"] == service["name"]
    assert [rule["port"] for rule in ingress["ports"]] == [port["name"]]


def probes() -> Iterator[tuple[str, Object]]:
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        yield kind, CONTAINER[kind]["httpGet"]


def test_probes_ask_for_routes_that_are_open_to_all() -> None:
    opened = {path for name in SETTINGS["EMBEDDER_OPEN_ROUTES"].split(",") for path in OPENABLE[name]}
    for kind, probe in probes():
        assert ROUTES[probe["path"]][0] == "GET", kind
        assert probe["port"] == CONTAINER["ports"][0]["name"]
    assert [probe["path"] for _, probe in probes()] == ["/livez", "/livez", "/readyz"]
    assert MONITOR["spec"]["endpoints"][0]["path"] in opened


def test_labels_and_selectors_are_of_the_same_pods() -> None:
    selectors = {
        "Deployment": OBJECTS["Deployment"]["spec"]["selector"]["matchLabels"],
        "Service": OBJECTS["Service"]["spec"]["selector"],
        "PodDisruptionBudget": OBJECTS["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        "NetworkPolicy": OBJECTS["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
        **{
            spread["topologyKey"]: spread["labelSelector"]["matchLabels"]
            for spread in POD["topologySpreadConstraints"]
        },
    }
    assert len(selectors) == 6
    for kind, selector in selectors.items():
        assert selector == LABELS, kind
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


def test_it_runs_as_the_images_user_and_can_do_nothing_else() -> None:
    pod, container = POD["securityContext"], CONTAINER["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] == pod["runAsGroup"] == BENTO_UID_GID
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["allowPrivilegeEscalation"] is False
    assert container["readOnlyRootFilesystem"] is True
    assert container["capabilities"] == {"drop": ["ALL"]}
    assert POD["automountServiceAccountToken"] is False
    (mount,) = CONTAINER["volumeMounts"]
    (volume,) = POD["volumes"]
    assert mount == {"name": volume["name"], "mountPath": "/tmp"}  # noqa: S108 - in a container
    assert volume["emptyDir"].keys() == {"medium", "sizeLimit"}
    labels = OBJECTS["Namespace"]["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"


def test_there_is_time_to_finish_what_is_in_work() -> None:
    program = (
        "import service; from embedder.runtime.shutdown import GRACE_S; "
        "print(GRACE_S + service.REQUEST_TIMEOUT_S)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program],
        cwd=ROOT,
        env={**plain_environ(), **SETTINGS},
        capture_output=True,
        text=True,
        check=True,
    )
    *_, pre_stop_s = CONTAINER["lifecycle"]["preStop"]["exec"]["command"]
    assert POD["terminationGracePeriodSeconds"] > float(pre_stop_s) + float(done.stdout)
    compose = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["embedder"]
    assert float(compose["stop_grace_period"].removesuffix("s")) > float(done.stdout)


# Where it may go


def test_egress_is_denied_to_the_networks_that_the_service_denies() -> None:
    *_, images = OBJECTS["NetworkPolicy"]["spec"]["egress"]
    four, six = (peer["ipBlock"] for peer in images["to"])
    assert four["cidr"] == "0.0.0.0/0"
    assert [ip_network(network) for network in four["except"]] == list(DENIED_IPV4)
    assert ip_network(six["cidr"]) == GLOBAL_UNICAST
    assert [ip_network(network) for network in six["except"]] == list(DENIED_IPV6)
    ports = {str(port["port"]) for port in images["ports"]}
    assert ports == set(SETTINGS.get("EMBEDDER_ALLOWED_PORTS", KNOBS["allowed_ports"].default).split(","))


def test_egress_is_restricted_and_names_can_be_resolved() -> None:
    policy = OBJECTS["NetworkPolicy"]["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    names, _ = policy["egress"]
    assert {(port["port"], port["protocol"]) for port in names["ports"]} == {(53, "UDP"), (53, "TCP")}
    assert all(names["to"])  # an empty peer would be everything
