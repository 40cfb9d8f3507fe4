"""`deploy/kubernetes/catalogue`: of this project's command, settings and versions. The RayJob itself was run nowhere.

Its CRD is in no package index, so its fields were held against KubeRay's by hand: deploy/README.md.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
import tomllib
from typing import Any

import pytest
import yaml

from embedder.settings import ROWS, Settings
from tests.deploy.test_kubernetes import BASE, VERSIONS, validated
from tests.server import ROOT

FOLDER = BASE / "catalogue"
JOB: dict[str, Any] = yaml.safe_load((FOLDER / "rayjob.yaml").read_text())["spec"]  # Any: YAML
CLAIM: dict[str, Any] = yaml.safe_load((FOLDER / "persistentvolumeclaim.yaml").read_text())
CLUSTER = JOB["rayClusterSpec"]
(WORKERS,) = CLUSTER["workerGroupSpecs"]
PODS = [CLUSTER["headGroupSpec"]["template"]["spec"], WORKERS["template"]["spec"]]
DOCKERFILE = (ROOT / "deploy" / "Dockerfile.ray").read_text()


@pytest.mark.parametrize("version", VERSIONS)
def test_the_claim_is_valid_and_many_may_write_to_it(version: str) -> None:
    done = validated(FOLDER / "persistentvolumeclaim.yaml", version)
    assert done.returncode == 0, done.stdout + done.stderr
    assert CLAIM["spec"]["accessModes"] == ["ReadWriteMany"]


def test_the_command_is_one_that_the_script_takes() -> None:
    python, script, *arguments = shlex.split(JOB["entrypoint"])
    assert (python, script) == ("python", "/app/scripts/embed_catalogue.py")
    program = (
        "import runpy, sys; sys.argv = sys.argv[1:]; "
        "parser = runpy.run_path(sys.argv[0])['_parser'](); print(vars(parser.parse_args()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(ROOT / "scripts" / "embed_catalogue.py"), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "'runner': 'ray', 'ray_address': 'auto'" in done.stdout
    (mount,) = {each["mountPath"] for pod in PODS for each in pod["containers"][0]["volumeMounts"]}
    paths = [word for word in arguments if word.startswith("/")]
    assert len(paths) == 2
    assert all(path.startswith(f"{mount}/") for path in paths)


def test_all_pods_have_one_environment_of_settings_and_one_volume() -> None:
    head, worker = (pod["containers"][0] for pod in PODS)
    assert head["image"] == worker["image"]
    assert head["env"] == worker["env"]
    words = {each["name"]: each["value"] for each in head["env"] if each["name"].startswith("EMBEDDER_")}
    assert words.keys() <= ROWS.keys()
    Settings.from_environ(words)  # raises where one can't be used
    for pod in PODS:
        (volume,) = pod["volumes"]
        assert volume["persistentVolumeClaim"]["claimName"] == CLAIM["metadata"]["name"]
        assert pod["enableServiceLinks"] is False
        resources = pod["containers"][0]["resources"]
        assert resources["requests"] == resources["limits"]
        assert int(resources["limits"]["cpu"]) == float(resources["limits"]["cpu"])
    assert CLUSTER["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_the_image_has_the_rays_version_that_daft_takes_and_all_that_the_job_imports() -> None:
    import ray

    assert CLUSTER["rayVersion"] == ray.__version__
    assert f"FROM rayproject/ray:{ray.__version__}-py311\n" in DOCKERFILE
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert "'.[bulk,ray]'" in DOCKERFILE
    assert {"bulk", "ray"} <= extras.keys()
    for name in ("bulk", "embedder", "scripts"):
        assert f"COPY {name} {name}\n" in DOCKERFILE
    assert "ENV PYTHONPATH=/app " in DOCKERFILE
