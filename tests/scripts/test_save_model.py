from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms import functional

from models.download import IMAGENET_URL
from models.resnet18 import sample_photos
from tests.weights import discriminating_state_dict, save_pth, serve_files, torchvision_embeddings

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "save_model.py"


CALLS = """
import contextlib, io, json, os
models = Path(os.environ["BENTOML_HOME"], "models", "resnet18")
for arguments, url in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(arguments, imagenet_url=url)
    print(json.dumps({
        "status": status,
        "stdout": out.getvalue(),
        "stderr": err.getvalue(),
        "latest": (models / "latest").read_text(),
        "versions": sorted(path.name for path in models.iterdir() if path.is_dir()),
    }))
"""


@dataclass(frozen=True)
class Call:
    """What one call of `main` returned and said, and what the store held then."""

    status: int
    stdout: str
    stderr: str
    latest: str
    versions: list[str]


@dataclass(frozen=True)
class Store:
    """A BentoML home of its own, and the script run in it, away from every network."""

    folder: Path
    home: Path

    @classmethod
    def below(cls, folder: Path) -> Store:
        return cls(folder, folder / "bentoml")

    def environment(self) -> dict[str, str]:
        """Proxies at a port of this machine where nobody listens: what a machine offline sees."""
        proxies = dict.fromkeys(("http_proxy", "https_proxy"), f"http://127.0.0.1:{unused_port()}")
        return {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            **proxies,
            "no_proxy": "127.0.0.1",
            "BENTOML_HOME": str(self.home),
            "BENTOML_DO_NOT_TRACK": "True",
            "TORCH_HOME": str(self.folder / "torch"),
            "TMPDIR": str(self.temporary),
        }

    @property
    def temporary(self) -> Path:
        folder = self.folder / "temporary"
        folder.mkdir(exist_ok=True)
        return folder

    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, SCRIPT, *arguments],
            cwd=self.folder,
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
        )

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `code` next to the script's functions: many calls for one import of torch."""
        return subprocess.run(
            [sys.executable, "-c", f"from scripts.save_model import *\n{code}", *arguments],
            cwd=ROOT,
            env=self.environment(),
            capture_output=True,
            text=True,
        )

    def calls(self, *calls: tuple[list[str], str | None]) -> list[Call]:
        """`main(arguments, imagenet_url=...)` for each, in one process: torch takes seconds to import."""
        run = self.python(CALLS, json.dumps(calls))
        assert run.returncode == 0, run.stderr
        return [Call(**json.loads(line)) for line in run.stdout.splitlines()]

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file and folder of the store: size, and when it was last written in ns."""
        return {
            str(path.relative_to(self.home)): (path.stat().st_size * path.is_file(), path.stat().st_mtime_ns)
            for path in (self.home / "models").rglob("*")
        }

    @property
    def latest(self) -> str:
        """The version of the latest model."""
        return (self.home / "models" / "resnet18" / "latest").read_text()

    def metadata(self, version: str) -> dict[str, Any]:
        description = self.home / "models" / "resnet18" / version / "model.yaml"
        metadata: dict[str, Any] = yaml.safe_load(description.read_text())["metadata"]
        return metadata

    def left_behind(self) -> list[Path]:
        """Temporary files that are still there. torch keeps an empty folder for its compiler."""
        return [path for path in self.temporary.rglob("*") if not path.name.startswith("torchinductor")]


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.below(tmp_path)


@pytest.fixture(scope="module")
def pth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pth(tmp_path_factory.mktemp("weights") / "a.pth")


@pytest.fixture(scope="module")
def first_run(
    tmp_path_factory: pytest.TempPathFactory, pth: Path
) -> tuple[Store, subprocess.CompletedProcess[str]]:
    """A store that holds a.pth's model, and what the script said when it saved it."""
    store = Store.below(tmp_path_factory.mktemp("first"))
    return store, store.run("--weights", pth)


@pytest.fixture
def stored(first_run: tuple[Store, object], tmp_path: Path) -> Store:
    """A copy of it, to change."""
    shutil.copytree(first_run[0].home, tmp_path / "bentoml", copy_function=shutil.copy2)
    return Store.below(tmp_path)


def failed(store: Store, run: Call | subprocess.CompletedProcess[str]) -> str:
    """The line that says why; nothing else was said, but for the steps up to there."""
    assert (run.status if isinstance(run, Call) else run.returncode) == 1
    assert run.stdout == ""
    assert store.left_behind() == []
    *steps, line = run.stderr.splitlines()
    # A step of ours, or the bar of torch's download.
    assert all(re.match(r" *\d+\.\d( s  |%$)", step) for step in steps if step), run.stderr
    return line


# What is saved


def test_it_says_what_it_does_and_what_it_saved_where(
    first_run: tuple[Store, subprocess.CompletedProcess[str]], pth: Path
) -> None:
    store, run = first_run
    assert run.returncode == 0, run.stderr
    steps = [line.split(" s  ") for line in run.stderr.splitlines()]
    assert [step for _, step in steps] == [
        "loading torch",
        f"getting the weights: {pth}",
        "exporting to ONNX",
        "comparing with torch on 8 photos",
        "saving",
    ]
    assert [float(seconds) for seconds, _ in steps] == sorted(float(seconds) for seconds, _ in steps)
    folder = store.home / "models" / "resnet18" / store.latest
    size = (folder / "fp32.onnx").stat().st_size / 1e6
    assert run.stdout == f"saved resnet18:{store.latest} (a.pth, {size:.1f} MB) in {folder}\n"
    assert store.left_behind() == []


def test_the_stored_model_gives_what_torchvision_gives(first_run: tuple[Store, object]) -> None:
    photos = sample_photos()
    resized = (functional.resize(photo, 256, antialias=True) for photo in photos)
    pixels = np.stack([np.asarray(functional.center_crop(photo, 224)) for photo in resized])
    store = first_run[0]
    session = onnxruntime.InferenceSession(
        store.home / "models" / "resnet18" / store.latest / "fp32.onnx",
        providers=["CPUExecutionProvider"],
    )
    (embeddings,) = session.run(["embeddings"], {"pixels": pixels})
    expected = torchvision_embeddings(discriminating_state_dict(), photos)
    assert (embeddings * expected).sum(axis=1).min() >= 0.99999


def test_bentoml_gives_back_the_documented_metadata_without_torch(
    first_run: tuple[Store, object], pth: Path
) -> None:
    run = first_run[0].python(
        "import bentoml, json\n"
        "model = bentoml.models.get('resnet18:latest')\n"
        "print(json.dumps([model.info.metadata, model.info.labels, 'torch' in sys.modules]))"
    )
    metadata, labels, torch_was_imported = json.loads(run.stdout)
    cosine = metadata["precisions"]["fp32"].pop("min_cosine_to_torch")
    assert 0.99999 <= cosine <= 1
    onnx = first_run[0].home / "models" / "resnet18" / first_run[0].latest / "fp32.onnx"
    assert metadata == {
        "architecture": "resnet18",
        "weights": "a.pth",
        "weights_source": "a.pth",
        "weights_sha256": hashlib.sha256(pth.read_bytes()).hexdigest(),
        "trained": True,
        "dimension": 512,
        "preprocessing": {
            "version": 1,
            "resize": 256,
            "crop": 224,
            "interpolation": "bilinear, antialiased",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "precisions": {
            "fp32": {"file": "fp32.onnx", "sha256": hashlib.sha256(onnx.read_bytes()).hexdigest()}
        },
        "libraries": {
            **{name: version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime")},
            "python": platform.python_version(),
        },
    }
    assert labels == {"weights": "a.pth", "trained": "true"}
    assert not torch_was_imported


# Calls that are repeated


@pytest.fixture
def without_torch(tmp_path: Path) -> str:
    """A PYTHONPATH on which torch is not installed."""
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    return str(tmp_path / "path")


def test_if_the_latest_model_has_the_weights_nothing_is_done_and_torch_is_not_needed(
    first_run: tuple[Store, object], pth: Path, without_torch: str
) -> None:
    store = first_run[0]
    before = store.listing()
    run = store.run("--if-missing", "--weights", pth, PYTHONPATH=without_torch)
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"resnet18:latest has the {pth} weights already\n"
    assert store.listing() == before


def test_a_changed_file_of_the_same_name_is_not_taken_for_the_stored_one(
    first_run: tuple[Store, object], tmp_path: Path, without_torch: str
) -> None:
    same_name = save_pth(tmp_path / "a.pth", seed=1)
    run = first_run[0].run("--if-missing", "--weights", same_name, PYTHONPATH=without_torch)
    assert failed(first_run[0], run).startswith("save_model: torch is not installed")


def test_a_model_for_another_preprocessing_is_not_taken_for_the_wanted_one(
    stored: Store, pth: Path, without_torch: str
) -> None:
    description = stored.home / "models" / "resnet18" / stored.latest / "model.yaml"
    description.write_text(description.read_text().replace("    version: 1\n", "    version: 0\n"))
    assert stored.metadata(stored.latest)["preprocessing"]["version"] == 0
    run = stored.run("--if-missing", "--weights", pth, PYTHONPATH=without_torch)
    assert failed(stored, run).startswith("save_model: torch is not installed")


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory,
    first_run: tuple[Store, object],
    pth: Path,
    int8_story_begun: object,  # on another core: each takes half a minute
) -> tuple[Store, str, list[Call]]:
    """A store with a.pth's model, and the quick start in it: twice offline, twice online; a.pth again."""
    store = Store.below(tmp_path_factory.mktemp("story"))
    shutil.copytree(first_run[0].home, store.home)
    content = pth.read_bytes()
    name = f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    quick_start = ["--if-missing", "--fallback-untrained"]
    with serve_files({name: content}) as origin:
        online, offline = f"{origin}/{name}", f"http://127.0.0.1:{unused_port()}/{name}"
        calls = store.calls(
            (quick_start, offline),
            (quick_start, offline),
            (quick_start, online),
            (quick_start, online),
            ([*quick_start, "--weights", str(pth)], offline),
        )
    return store, online, calls


def test_offline_the_quick_start_saves_untrained_weights_and_warns(
    story: tuple[Store, str, list[Call]],
) -> None:
    _, _, (call, *_) = story
    assert call.status == 0
    assert "\nWARNING: the model has UNTRAINED weights." in call.stderr
    assert "can't be downloaded: [Errno 111] Connection refused\n" in call.stderr
    assert call.stdout.startswith(f"saved resnet18:{call.latest} (untrained, ")
    assert len(call.versions) == 2


def test_still_offline_the_quick_start_keeps_the_untrained_model_and_warns_again(
    story: tuple[Store, str, list[Call]],
) -> None:
    _, _, (first, call, *_) = story
    assert call.status == 0
    assert "\nWARNING: the model has UNTRAINED weights." in call.stderr
    assert call.stdout == "resnet18:latest has untrained weights already\n"
    assert (call.latest, call.versions) == (first.latest, first.versions)


def test_online_again_the_quick_start_saves_the_real_weights(
    story: tuple[Store, str, list[Call]],
) -> None:
    store, url, (_, offline, call, *_) = story
    assert call.status == 0
    assert "WARNING" not in call.stderr
    assert call.stdout.startswith(f"saved resnet18:{call.latest} (imagenet, ")
    assert {*call.versions} == {*offline.versions, call.latest}
    metadata = store.metadata(call.latest)
    assert (metadata["weights"], metadata["weights_source"]) == ("imagenet", url)
    assert metadata["trained"] is True


def test_with_the_real_weights_in_place_the_quick_start_does_nothing(
    story: tuple[Store, str, list[Call]],
) -> None:
    _, _, (_, _, online, call, _) = story
    assert (call.status, call.stderr) == (0, "")
    assert call.stdout == "resnet18:latest has the imagenet weights already\n"
    assert (call.latest, call.versions) == (online.latest, online.versions)


def test_earlier_weights_become_the_latest_again_and_the_versions_that_pile_up_are_counted(
    story: tuple[Store, str, list[Call]], first_run: tuple[Store, object]
) -> None:
    store, _, (*_, before, call) = story
    assert call.status == 0
    assert {*call.versions} == {*before.versions, call.latest}
    assert store.metadata(call.latest)["weights"] == "a.pth"
    saved, counted = call.stdout.splitlines()
    assert saved.startswith(f"saved resnet18:{call.latest} (a.pth, ")
    model_bytes = (first_run[0].home / "models/resnet18" / first_run[0].latest / "fp32.onnx").stat().st_size
    assert counted == (
        f"the store holds 4 versions of resnet18, {4 * model_bytes / 1e6:.1f} MB: "
        "`bentoml models list resnet18` shows them, `bentoml models delete` removes one"
    )


# int8


@pytest.fixture(scope="module")
def dark(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 dark images to calibrate on, and 50 of noise to measure on: by their sha256, which splits them."""
    folder = tmp_path_factory.mktemp("dark")
    random = np.random.default_rng(0)
    for name, count, highest, first_digits in (("dark", 100, 4, "89abcdef"), ("noise", 50, 256, "01234567")):
        while len(list(folder.glob(f"{name}*"))) < count:
            file = io.BytesIO()
            Image.fromarray(random.integers(0, highest, (16, 16, 3), np.uint8)).save(file, "PNG")
            sha256 = hashlib.sha256(file.getvalue()).hexdigest()
            if sha256[0] in first_digits:
                (folder / f"{name}-{sha256}.png").write_bytes(file.getvalue())
    return folder


@pytest.fixture(scope="module")
def int8_story_begun(
    tmp_path_factory: pytest.TempPathFactory, first_run: tuple[Store, object], pth: Path, dark: Path
) -> Iterator[tuple[Store, Future[list[Call]]]]:
    store = Store.below(tmp_path_factory.mktemp("int8"))
    shutil.copytree(first_run[0].home, store.home)
    (store.folder / "few").mkdir()
    int8 = ["--weights", str(pth), "--precision", "int8", "--if-missing"]
    calls: list[tuple[list[str], str | None]] = [
        ([*int8, "--calibration-images", str(dark)], None),
        ([*int8, "--calibration-images", str(dark), "--force"], None),
        ([*int8, "--calibration-images", str(dark)], None),
        (int8, None),
        (["--weights", str(pth), "--if-missing"], None),
        ([*int8, "--calibration-images", str(store.folder / "few")], None),
    ]
    with ThreadPoolExecutor(1) as beside:
        yield store, beside.submit(store.calls, *calls)


@pytest.fixture(scope="module")
def int8_story(int8_story_begun: tuple[Store, Future[list[Call]]]) -> tuple[Store, list[Call]]:
    """In a store with a.pth's fp32 model: int8 from dark images, the same forced, and what is done again."""
    store, calls = int8_story_begun
    return store, calls.result()


def test_int8_that_is_far_from_fp32_is_refused_with_the_numbers(
    int8_story: tuple[Store, list[Call]], first_run: tuple[Store, object]
) -> None:
    store, (call, *_) = int8_story
    line = failed(store, call)
    said = re.fullmatch(
        r"save_model: int8 is too far from fp32: cosine with fp32 (?P<mean>0\.\d{5}) on average "
        r"and (?P<min>0\.\d{5}) at least, \d+\.\d% of the 10 nearest neighbours kept; "
        r"at least 0\.99 is wanted: calibrate it on images like those to embed \(--calibration-images\), "
        r"or save it all the same \(--force\)",
        line,
    )
    assert said is not None, line
    assert float(said["min"]) < min(0.99, float(said["mean"]))
    assert (call.latest, call.versions) == (first_run[0].latest, [first_run[0].latest])


def test_forced_it_is_saved_beside_fp32_with_the_numbers_in_the_metadata(
    int8_story: tuple[Store, list[Call]], dark: Path
) -> None:
    store, (refused, call, *_) = int8_story
    assert call.status == 0, call.stderr
    assert {*call.versions} == {*refused.versions, call.latest}
    folder = store.home / "models" / "resnet18" / call.latest
    assert sorted(path.name for path in folder.glob("*.onnx")) == ["fp32.onnx", "int8.onnx"]
    precisions = store.metadata(call.latest)["precisions"]
    assert precisions["fp32"]["file"] == "fp32.onnx"
    int8 = precisions["int8"]
    assert re.fullmatch(r"own images, 150 files, sha256 [0-9a-f]{12}", int8.pop("calibration"))
    said = (
        f"cosine with fp32 {int8.pop('mean_cosine_to_fp32'):.5f} on average and "
        f"{int8.pop('min_cosine_to_fp32'):.5f} at least, {int8.pop('neighbours_kept_of_10'):.1%} of the 10"
    )
    assert said in call.stderr
    assert int8.pop("sha256") == hashlib.sha256((folder / "int8.onnx").read_bytes()).hexdigest()
    assert int8 == {"file": "int8.onnx", "calibration_images": 100, "fidelity_images": 50}
    assert str(dark) not in (folder / "model.yaml").read_text()


def test_a_model_with_int8_is_enough_for_both_precisions(
    int8_story: tuple[Store, list[Call]], pth: Path
) -> None:
    _, (_, forced, *again, _) = int8_story
    assert len(again) == 3
    for call in again:
        assert (call.status, call.stderr) == (0, "")
        assert call.stdout == f"resnet18:latest has the {pth} weights already\n"
        assert call.latest == forced.latest


def test_a_model_without_int8_is_not_served_in_it_and_the_command_that_adds_it_is_named(
    first_run: tuple[Store, object],
) -> None:
    store = first_run[0]
    run = store.python(
        "from embedder.model.store import EmbeddingModel\nEmbeddingModel('resnet18:latest').onnx_file('int8')"
    )
    assert run.stderr.splitlines()[-1] == (
        f"bentoml.exceptions.BentoMLException: resnet18:{store.latest} was saved in fp32, not in int8; "
        "save it again: python scripts/save_model.py --precision int8"
    )


def test_too_few_calibration_images_are_refused(int8_story: tuple[Store, list[Call]]) -> None:
    store, (*_, call) = int8_story
    assert failed(store, call) == (
        f"save_model: {store.folder}/few has 0 different files that can be read; "
        "calibration takes 150 images or more"
    )


@pytest.mark.parametrize("option", [["--force"], ["--calibration-images", "."]])
def test_what_is_for_int8_is_refused_without_it(store: Store, option: list[str]) -> None:
    run = store.run(*option)
    assert run.returncode == 2
    assert run.stderr.endswith("error: --calibration-images and --force are for --precision int8\n")


# Failures: one line, 1, the store as it was


@pytest.fixture(scope="module")
def failures(
    tmp_path_factory: pytest.TempPathFactory, first_run: tuple[Store, object]
) -> tuple[Store, list[Call]]:
    """In a store with a.pth's model: a file without a key, no network, and the wrong download."""
    store = Store.below(tmp_path_factory.mktemp("failures"))
    shutil.copytree(first_run[0].home, store.home)
    kept = {name: value for name, value in discriminating_state_dict().items() if name != "bn1.bias"}
    torch.save(kept, store.folder / "b.pth")
    with serve_files({"resnet18-01234567.pth": b"another file"}) as origin:
        calls = store.calls(
            (["--weights", str(store.folder / "b.pth")], None),
            ([], None),
            (["--fallback-untrained"], f"{origin}/resnet18-01234567.pth"),
        )
    return store, calls


def test_a_missing_key_is_named_and_the_store_is_left_as_it_was(failures: tuple[Store, list[Call]]) -> None:
    store, (call, _, _) = failures
    assert failed(store, call) == f"save_model: {store.folder}/b.pth lacks 'bn1.bias'"


def test_without_leave_to_fall_back_a_failed_download_is_an_error(
    failures: tuple[Store, list[Call]],
) -> None:
    store, (_, call, _) = failures
    line = failed(store, call)
    assert line.startswith(f"save_model: {IMAGENET_URL} can't be downloaded: ")
    assert "Connection refused" in line


def test_a_download_with_the_wrong_sha256_is_an_error_even_with_leave_to_fall_back(
    failures: tuple[Store, list[Call]],
) -> None:
    store, (_, _, call) = failures
    assert "was cut short or is not the right file: invalid hash value" in failed(store, call)


def test_no_failure_changed_the_store(
    failures: tuple[Store, list[Call]], first_run: tuple[Store, object]
) -> None:
    store, _ = failures
    assert store.listing() == first_run[0].listing()
    assert [path for path in (store.folder / "torch").rglob("*") if path.is_file()] == []


def test_a_missing_file_is_named_and_the_store_is_left_as_it_was(
    first_run: tuple[Store, object], tmp_path: Path
) -> None:
    store = first_run[0]
    before = store.listing()
    run = store.run("--weights", tmp_path / "no\nthing.pth", "--if-missing")
    assert run.stderr == f"save_model: {tmp_path}/no thing.pth can't be read: No such file or directory\n"
    assert run.returncode == 1
    assert store.listing() == before


@pytest.mark.parametrize("missing", ["torch", "bentoml"])
def test_a_missing_package_is_named_with_a_command_that_installs_it(
    store: Store, tmp_path: Path, missing: str
) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError(name={missing!r})")
    run = store.run("--fallback-untrained", PYTHONPATH=str(tmp_path))
    assert failed(store, run) == (
        f"save_model: {missing} is not installed; `make setup` installs what is needed, as does: "
        "pip install bentoml onnx onnxruntime onnxscript scikit-image torch torchvision"
    )


def test_the_command_names_all_packages_that_making_a_model_takes() -> None:
    from scripts.save_model import REQUIREMENTS

    project = (ROOT / "pyproject.toml").read_text()
    extra = project.partition("export = [")[2].partition("]")[0]
    packages = set(re.findall(r'^ *"([a-z-]+)', extra, flags=re.MULTILINE))
    assert {*REQUIREMENTS} == packages | {"bentoml", "onnxruntime"}


def test_a_store_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path, tmp_path / "file" / "bentoml")
    assert failed(store, store.run()) == (
        f"save_model: the model store can't be read: [Errno 20] Not a directory: '{store.home}'"
    )


@pytest.mark.parametrize("name", ["", "Resnet", "../up", "a:b", "a" * 64])
def test_a_name_that_bentoml_does_not_take_is_refused(store: Store, name: str) -> None:
    run = store.run("--name", name)
    assert run.returncode == 2
    assert run.stderr.splitlines()[-1] == (
        f"save_model.py: error: argument --name: {name!r} is not a name: up to 63 of a-z 0-9 . _ -, "
        "a letter or digit first and last"
    )


SAVE = """
try:
    model = save("resnet18", {"fp32.onnx": b"x" * int(sys.argv[1])}, {"weights": "a.pth", "trained": True})
except StoreError as exc:
    sys.exit(f"save_model: {exc}")
print(model.tag)
"""


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Room for three pages of 4 KB: a description (1), the latest's name (1), a model of up to 4 KB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount: list[str | Path] = ["mount", "-t", "tmpfs", "-o", "size=12k", "tmpfs", folder]
    mounted = subprocess.run(mount, capture_output=True, text=True)
    if mounted.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_model_that_just_fits_on_the_disk_is_saved(tiny_disk: Path, tmp_path: Path) -> None:
    store = Store(tmp_path, tiny_disk / "bentoml")
    run = store.python(SAVE, "4096")
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"resnet18:{store.latest}\n"


# With one page more there is room for the model, but not for the note that it is the latest.
@pytest.mark.parametrize("size", ["4097", "100000"])
def test_a_full_disk_is_named_and_nothing_of_the_model_is_left(
    tiny_disk: Path, tmp_path: Path, size: str
) -> None:
    store = Store(tmp_path, tiny_disk / "bentoml")
    run = store.python(SAVE, size)
    line = failed(store, run)
    assert line.startswith("save_model: resnet18:")
    assert "can't be saved: [Errno 28] No space left on device" in line
    assert store.listing() == {}


def test_a_full_temporary_folder_is_named_and_nothing_of_the_model_is_left(
    tiny_disk: Path, tmp_path: Path
) -> None:
    store = Store(tiny_disk, tmp_path / "bentoml")
    run = store.python(SAVE, "100000")
    assert "can't be saved: [Errno 28] No space left on device" in failed(store, run)
    assert store.listing() == {}


# An audit hook is where a test can stand in the middle of a copy, and press Ctrl-C there.
INTERRUPTED_COPY = """
def interrupt(event, arguments):
    if event == "shutil.copyfile" and str(arguments[1]).endswith("model.yaml"):
        raise KeyboardInterrupt

sys.addaudithook(interrupt)
"""


def test_ctrl_c_while_the_model_is_copied_leaves_the_store_as_it_was(
    first_run: tuple[Store, object],
) -> None:
    store = first_run[0]
    before, latest = store.listing(), store.latest
    run = store.python(f"{INTERRUPTED_COPY}\n{SAVE}", "4096")
    assert run.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert store.latest == latest
    assert contents(store.listing()) == contents(before)


def test_ctrl_c_while_the_first_model_is_copied_leaves_an_empty_store(store: Store) -> None:
    run = store.python(f"{INTERRUPTED_COPY}\n{SAVE}", "4096")
    assert run.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert store.listing() == {}


def contents(listing: dict[str, tuple[int, int]]) -> dict[str, int]:
    """Names and sizes: removing an entry again moves its folder's time, and rewrites the latest."""
    return {path: size for path, (size, _) in listing.items()}


def test_ctrl_c_gives_one_line_and_130(store: Store) -> None:
    process = subprocess.Popen(
        [sys.executable, SCRIPT, "--weights", "untrained"],
        env=store.environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # Whoever runs the tests in the background may have had it ignored, which is inherited.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    with process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.endswith("exporting to ONNX\n"):
                process.send_signal(signal.SIGINT)
                break
        assert process.stderr.read() == "save_model: interrupted\n"
    assert process.returncode == 130
    assert store.listing() == {}
    assert store.left_behind() == []
