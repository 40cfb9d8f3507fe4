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
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torchvision.transforms import functional

from embedder.model.spec import Preprocessing
from models.download import IMAGENET_URL
from models.photos import sample_photos
from models.resnet18 import PREPROCESSING
from scripts.save_model import REQUIREMENTS, main
from tests.weights import (
    discriminating_state_dict,
    onnx_embeddings,
    save_pth,
    serve_files,
    torchvision_embeddings,
)

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "save_model.py"


# The calls are about the store: what they make of the same weights and images is made once.
CALLS = """
import contextlib, dataclasses, io, json, os
from models import export, quantize

def once(module, name, key, made):
    make = getattr(module, name)
    setattr(module, name, lambda *given: made.get(key(*given)) or made.setdefault(key(*given), make(*given)))

import bentoml
stored = bentoml.models.get("resnet18:latest")
exported = {stored.info.metadata["weights_sha256"]: Path(stored.path_of("fp32.onnx")).read_bytes()}
once(export, "export_onnx", lambda backbone: backbone.weights.sha256, exported)
once(export, "check_export", lambda onnx, backbone: onnx, {})
once(quantize, "quantize", lambda fp32, pixels: (fp32, pixels.tobytes()), {})
once(quantize, "fidelity", lambda fp32, int8, pixels: (int8, pixels.tobytes()), {})
models = Path(os.environ["BENTOML_HOME"], "models", "resnet18")
for arguments, url in json.loads(sys.argv[1]):
    if url:
        architectures.OWN["resnet18"] = dataclasses.replace(architectures.OWN["resnet18"], url=url)
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        status = main(arguments)
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
        places = {"BENTOML_HOME": self.home, "TORCH_HOME": self.folder / "torch", "TMPDIR": self.temporary}
        return {
            **{name: value for name, value in os.environ.items() if "proxy" not in name.lower()},
            **{name: str(folder) for name, folder in places.items()},
            **proxies,
            "no_proxy": "127.0.0.1",
            "BENTOML_DO_NOT_TRACK": "True",
        }

    @property
    def temporary(self) -> Path:
        folder = self.folder / "temporary"
        folder.mkdir(exist_ok=True)
        return folder

    def run(self, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        return self._run([SCRIPT, *arguments], **environment)

    def python(self, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `code` next to the script's functions: many calls for one import of torch."""
        imports = "from scripts.save_model import *\nfrom models.store import StoreError, save\n"
        return self._run(["-c", imports + code, *arguments], PYTHONPATH=str(ROOT))

    def _run(self, command: Sequence[str | Path], **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *command],
            cwd=self.folder,
            env={**self.environment(), **environment},
            capture_output=True,
            text=True,
        )

    def calls(self, *calls: tuple[list[str], str | None]) -> list[Call]:
        """`main(arguments)` for each, with weights from that URL, in one process: torch takes seconds to import."""
        run = self.python(CALLS, json.dumps(calls))
        assert run.returncode == 0, run.stderr
        return [Call(**json.loads(line)) for line in run.stdout.splitlines()]

    def listing(self) -> dict[str, tuple[int, int]]:
        """Every file and folder of the store: size, and when it was last written in ns."""
        return {
            str(path.relative_to(self.home)): (path.stat().st_size * path.is_file(), path.stat().st_mtime_ns)
            for path in (self.home / "models").rglob("*")
        }

    def model(self, version: str, file: str) -> Path:
        return self.home / "models" / "resnet18" / version / file

    def megabytes(self) -> str:
        return f"{sum(file.stat().st_size for file in self.home.rglob('*.onnx')) / 1e6:.1f}"

    @property
    def latest(self) -> str:
        """The version of the latest model."""
        return (self.home / "models" / "resnet18" / "latest").read_text()

    def metadata(self, version: str) -> dict[str, Any]:
        text = self.model(version, "model.yaml").read_text()
        metadata: dict[str, Any] = yaml.safe_load(text)["metadata"]
        return metadata

    def left_behind(self) -> list[Path]:
        """Temporary files that are still there. torch keeps an empty folder for its compiler."""
        return [path for path in self.temporary.rglob("*") if not path.name.startswith("torchinductor")]


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def unused_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.below(tmp_path)


@pytest.fixture(scope="session")
def pth(weights_file: Path) -> Path:
    return weights_file


@pytest.fixture(scope="session")
def first_run(saved: Path) -> tuple[Store, Path]:
    """A store that holds `pth`'s model, fp32 and int8, and what the script said when it saved it."""
    return Store.below(saved), saved


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
    # A step of ours, or the bar of torch's download: its own, or tqdm's where that is installed.
    assert all(re.match(r" *(\d+\.\d( s  |%$)|\d+%\|)", step) for step in steps if step), run.stderr
    return line


# What is saved


def test_it_says_what_it_does_and_what_it_saved_where(first_run: tuple[Store, Path], pth: Path) -> None:
    store, said = first_run
    *steps, measured, saving = (said / "stderr").read_text().splitlines()
    assert [line.split(" s  ")[1] for line in (*steps, saving)] == [
        *("loading torch", f"getting the weights: {pth}", "decoding calibration images", "exporting to ONNX"),
        *("comparing with torch on 8 photos", "making int8 with 112 images"),
        *("comparing int8 with fp32 on 112 other images", "saving"),
    ]
    assert " s  int8: cosine with fp32 " in measured
    where = store.model(store.latest, "")
    saved = f"saved resnet18:{store.latest} ({pth.name}, {store.megabytes()} MB) in {where}\n"
    assert (said / "stdout").read_text() == saved
    assert store.left_behind() == []


def test_the_stored_model_gives_what_torchvision_gives(first_run: tuple[Store, object]) -> None:
    photos = sample_photos()
    resized = (functional.resize(photo, 256, antialias=True) for photo in photos)
    pixels = np.stack([np.asarray(functional.center_crop(photo, 224)) for photo in resized])
    store = first_run[0]
    embeddings = onnx_embeddings(store.model(store.latest, "fp32.onnx").read_bytes(), pixels)
    expected = torchvision_embeddings(discriminating_state_dict(), photos)
    assert (embeddings * expected).sum(axis=1).min() >= 0.99999


def test_bentoml_gives_back_the_documented_metadata_without_torch(
    first_run: tuple[Store, object], pth: Path
) -> None:
    store = first_run[0]
    run = store.python(
        "import bentoml, json\n"
        "model = bentoml.models.get('resnet18:latest')\n"
        "print(json.dumps([model.info.metadata, model.info.labels, 'torch' in sys.modules]))"
    )
    metadata, labels, torch_was_imported = json.loads(run.stdout)
    cosine = metadata["precisions"]["fp32"].pop("min_cosine_to_torch")
    assert 0.99999 <= cosine <= 1
    assert metadata["precisions"].pop("int8")["calibration"] == "sample photos"
    assert metadata == {
        "architecture": "resnet18",
        "weights": pth.name,
        "weights_source": pth.name,
        "weights_sha256": sha256_of(pth),
        "trained": True,
        "dimension": 512,
        "preprocessing": {
            "version": 1,
            "resize": 256,
            "crop": 224,
            "interpolation": "bilinear",
            "mode": "shorter_side",
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
        },
        "precisions": {
            "fp32": {"file": "fp32.onnx", "sha256": sha256_of(store.model(store.latest, "fp32.onnx"))}
        },
        "libraries": {
            **{name: version(name) for name in ("torch", "torchvision", "onnx", "onnxruntime")},
            "python": platform.python_version(),
        },
    }
    assert Preprocessing.from_metadata(metadata["preprocessing"]) == PREPROCESSING
    assert labels == {"weights": pth.name, "trained": "true"}
    assert not torch_was_imported


# Calls that are repeated


def test_if_the_latest_model_has_the_weights_nothing_is_done_and_torch_is_not_needed(
    stored: Store, pth: Path, tmp_path: Path
) -> None:
    (tmp_path / "torch.py").write_text("raise ModuleNotFoundError(name='torch')")
    before = stored.listing()
    run = stored.run("--if-missing", "--weights", pth, PYTHONPATH=str(tmp_path))
    assert (run.returncode, run.stderr) == (0, "")
    assert run.stdout == f"resnet18:latest has the {pth} weights already\n"
    assert stored.listing() == before
    # Neither is another file of the same name taken for it, nor another precision, nor other preprocessing.
    same_name = save_pth(tmp_path / pth.name, seed=1)
    run = stored.run("--if-missing", "--weights", same_name, PYTHONPATH=str(tmp_path))
    assert failed(stored, run).startswith("save_model: torch is not installed")
    description = stored.model(stored.latest, "model.yaml")
    whole = description.read_text()
    description.write_text(whole.replace("    int8:\n", "    int4:\n"))
    run = stored.run("--if-missing", "--weights", pth, "--precision", "int8", PYTHONPATH=str(tmp_path))
    assert failed(stored, run).startswith("save_model: torch is not installed")
    description.write_text(whole)
    description.write_text(description.read_text().replace("    version: 1\n", "    version: 0\n"))
    assert stored.metadata(stored.latest)["preprocessing"]["version"] == 0
    run = stored.run("--if-missing", "--weights", pth, PYTHONPATH=str(tmp_path))
    assert failed(stored, run).startswith("save_model: torch is not installed")


@pytest.fixture(scope="module")
def story(
    tmp_path_factory: pytest.TempPathFactory, first_run: tuple[Store, object], pth: Path
) -> tuple[Store, str, list[Call]]:
    """A store with `pth`'s model, and the quick start in it: twice offline, twice online; `pth` again."""
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


def test_offline_the_quick_start_saves_untrained_weights_once_and_warns_each_time(
    story: tuple[Store, str, list[Call]],
) -> None:
    store, _, (first, again, *_) = story
    for call in (first, again):
        assert call.status == 0
        assert "\nWARNING: the model has UNTRAINED weights." in call.stderr
        assert "\n    make serve ARCHITECTURE=efficientnet_lite0\n" in call.stderr
    assert "can't be downloaded: [Errno 111] Connection refused\n" in first.stderr
    assert first.stdout.startswith(f"saved resnet18:{first.latest} (untrained, ")
    assert len(first.versions) == 2
    assert store.metadata(first.latest)["trained"] is False
    assert again.stdout == "resnet18:latest has untrained weights already\n"
    assert (again.latest, again.versions) == (first.latest, first.versions)


def test_online_again_the_quick_start_saves_the_real_weights_once(
    story: tuple[Store, str, list[Call]],
) -> None:
    store, url, (_, offline, call, again, _) = story
    assert call.status == 0
    assert "WARNING" not in call.stderr
    assert call.stdout.startswith(f"saved resnet18:{call.latest} (imagenet, ")
    assert {*call.versions} == {*offline.versions, call.latest}
    metadata = store.metadata(call.latest)
    assert [metadata[key] for key in ("weights", "weights_source", "trained")] == ["imagenet", url, True]
    assert (again.status, again.stderr) == (0, "")
    assert again.stdout == "resnet18:latest has the imagenet weights already\n"
    assert (again.latest, again.versions) == (call.latest, call.versions)


def test_earlier_weights_become_the_latest_again_and_the_versions_are_counted(
    story: tuple[Store, str, list[Call]], pth: Path
) -> None:
    store, _, (*_, before, call) = story
    assert call.status == 0
    assert {*call.versions} == {*before.versions, call.latest}
    assert store.metadata(call.latest)["weights"] == pth.name
    saved, counted = call.stdout.splitlines()
    assert saved.startswith(f"saved resnet18:{call.latest} ({pth.name}, ")
    size = store.megabytes()
    assert counted.startswith(f"the store holds 4 versions of resnet18, {size} MB: `bentoml models list")


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
def int8_story(
    tmp_path_factory: pytest.TempPathFactory, first_run: tuple[Store, object], pth: Path, dark: Path
) -> tuple[Store, list[Call]]:
    """In a store with `pth`'s model: int8 from dark images, the same forced, and both once more."""
    store = Store.below(tmp_path_factory.mktemp("int8"))
    shutil.copytree(first_run[0].home, store.home)
    (store.folder / "few").mkdir()
    int8 = ["--weights", str(pth), "--precision", "int8", "--if-missing"]
    on_dark = [*int8, "--calibration-images", str(dark)]
    on_few = [*int8, "--calibration-images", str(store.folder / "few")]
    again = (on_dark, int8, ["--weights", str(pth), "--if-missing"])
    return store, store.calls(*((call, None) for call in (on_dark, [*on_dark, "--force"], *again, on_few)))


def test_int8_that_is_far_from_fp32_is_refused_with_the_numbers(
    int8_story: tuple[Store, list[Call]], first_run: tuple[Store, object]
) -> None:
    store, (call, *_) = int8_story
    line = failed(store, call)
    said = re.match(
        r"save_model: int8 is too far from fp32: cosine with fp32 (?P<mean>0\.\d{5}) on average "
        r"and (?P<min>0\.\d{5}) at least, \d+\.\d% of the 10 nearest neighbours kept; "
        r"at least 0\.99 is wanted: calibrate it",
        line,
    )
    assert said is not None, line
    assert float(said["min"]) < min(0.99, float(said["mean"]))
    assert (call.latest, call.versions) == (first_run[0].latest, [first_run[0].latest])


def test_forced_it_is_saved_beside_fp32_with_the_numbers_and_is_enough_for_both_precisions(
    int8_story: tuple[Store, list[Call]], dark: Path, pth: Path
) -> None:
    store, (refused, call, *again, _) = int8_story
    assert call.status == 0, call.stderr
    assert {*call.versions} == {*refused.versions, call.latest}
    onnx = store.model(call.latest, "int8.onnx")
    assert sorted(path.name for path in onnx.parent.glob("*.onnx")) == ["fp32.onnx", "int8.onnx"]
    int8 = store.metadata(call.latest)["precisions"]["int8"]
    assert re.fullmatch(r"own images, 150 files, sha256 [0-9a-f]{12}", int8.pop("calibration"))
    said = (
        f"cosine with fp32 {int8.pop('mean_cosine_to_fp32'):.5f} on average and "
        f"{int8.pop('min_cosine_to_fp32'):.5f} at least, {int8.pop('neighbours_kept_of_10'):.1%} of the 10"
    )
    assert said in call.stderr
    assert int8.pop("sha256") == sha256_of(onnx)
    assert int8 == {"file": "int8.onnx", "calibration_images": 100, "fidelity_images": 50}
    assert str(dark) not in (onnx.parent / "model.yaml").read_text()
    for later in again:
        assert (later.status, later.stderr, later.latest) == (0, "", call.latest)
        assert later.stdout == f"resnet18:latest has the {pth} weights already\n"


def test_too_few_calibration_images_are_refused(int8_story: tuple[Store, list[Call]]) -> None:
    store, (*_, call) = int8_story
    assert "/few has 0 different files that can be read" in failed(store, call)


def test_options_that_can_not_be_used_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    names = ("", "Resnet", "../up", "a:b", "a" * 64)
    for arguments, said in (
        (["--force"], "--calibration-images and --force are for --precision int8"),
        (["--calibration-images", "."], "--calibration-images and --force are for --precision int8"),
        *((["--name", name], f"argument --name: {name!r} is not a name") for name in names),
    ):
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        assert ended.value.code == 2
        assert said in capsys.readouterr().err


# Failures: one line, 1, the store as it was


def test_failures_are_named_in_one_line_and_leave_the_store_as_it_was(
    first_run: tuple[Store, object], tmp_path: Path
) -> None:
    store = Store.below(tmp_path)
    shutil.copytree(first_run[0].home, store.home, copy_function=shutil.copy2)
    before = store.listing()
    kept = {name: value for name, value in discriminating_state_dict().items() if name != "bn1.bias"}
    torch.save(kept, tmp_path / "b.pth")
    with serve_files({"resnet18-01234567.pth": b"another file"}) as origin:
        missing_key, missing_file, no_network, wrong_sha256 = store.calls(
            (["--weights", str(tmp_path / "b.pth")], None),
            (["--weights", f"{tmp_path}/no\nthing.pth", "--if-missing"], None),
            ([], None),
            (["--fallback-untrained"], f"{origin}/resnet18-01234567.pth"),
        )
    assert failed(store, missing_key) == f"save_model: {tmp_path}/b.pth lacks 'bn1.bias'"
    assert failed(store, missing_file).startswith(
        f"save_model: {tmp_path}/no thing.pth can't be read: No such"
    )
    line = failed(store, no_network)
    assert line.startswith(f"save_model: {IMAGENET_URL} can't be downloaded: ")
    assert "Connection refused" in line
    assert "is not the right file: invalid hash value" in failed(store, wrong_sha256)
    assert store.listing() == before
    assert [path for path in (tmp_path / "torch").rglob("*") if path.is_file()] == []


def test_a_missing_package_is_named_with_a_command_that_installs_it(store: Store, tmp_path: Path) -> None:
    (tmp_path / "bentoml.py").write_text("raise ModuleNotFoundError(name='bentoml')")
    line = failed(store, store.run("--fallback-untrained", PYTHONPATH=str(tmp_path)))
    assert line.startswith("save_model: bentoml is not installed; `make setup` installs")
    assert line.endswith(f"pip install {' '.join(REQUIREMENTS)}")


def test_the_command_names_all_packages_that_making_a_model_takes() -> None:
    project = (ROOT / "pyproject.toml").read_text()
    extra = project.partition("export = [")[2].partition("]")[0]
    packages = set(re.findall(r'^ *"([a-z0-9-]+)', extra, flags=re.MULTILINE))
    assert {*REQUIREMENTS} == packages | {"bentoml", "onnxruntime"}


def test_a_store_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    store = Store(tmp_path, tmp_path / "file" / "bentoml")
    assert failed(store, store.run()) == (
        f"save_model: the model store can't be read: [Errno 20] Not a directory: '{store.home}'"
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


def test_a_full_disk_is_named_nothing_of_the_model_is_left_and_one_that_just_fits_is_saved(
    tiny_disk: Path, tmp_path: Path
) -> None:
    for store in (Store(tiny_disk, tmp_path / "bentoml"), Store(tmp_path, tiny_disk / "bentoml")):
        line = failed(store, store.python(SAVE, "100000"))
        assert line.startswith("save_model: resnet18:")
        assert "can't be saved: [Errno 28] No space left on device" in line
        assert store.listing() == {}
    # There is room for the model now, but not for the note that it is the latest.
    assert "[Errno 28] No space left on device" in failed(store, store.python(SAVE, "4097"))
    assert store.listing() == {}
    run = store.python(SAVE, "4096")
    assert (run.returncode, run.stdout) == (0, f"resnet18:{store.latest}\n"), run.stderr


# An audit hook is where a test can stand in the middle of a copy, and press Ctrl-C there.
INTERRUPTED_COPY = """
def interrupt(event, arguments):
    if event == "shutil.copyfile" and str(arguments[1]).endswith("model.yaml"):
        raise KeyboardInterrupt

sys.addaudithook(interrupt)
"""


@pytest.mark.parametrize("first", [True, False])
def test_ctrl_c_while_a_model_is_copied_leaves_the_store_as_it_was(
    request: pytest.FixtureRequest, first: bool
) -> None:
    store = request.getfixturevalue("store" if first else "stored")
    # Without times: removing an entry again moves its folder's, and rewrites the latest.
    before = {path: size for path, (size, _) in store.listing().items()}
    latest = None if first else store.latest
    run = store.python(f"{INTERRUPTED_COPY}\n{SAVE}", "4096")
    assert run.stderr.splitlines()[-1] == "KeyboardInterrupt"
    assert {path: size for path, (size, _) in store.listing().items()} == before
    assert latest is None or store.latest == latest


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
