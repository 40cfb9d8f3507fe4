"""Weights: what a file may hold, what is said of one that holds something else, and downloads."""

from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import ResNet18_Weights, resnet18, resnet34

from models import DownloadFailed, Weights, WeightsError
from models.download import IMAGENET_URL, cached_file
from models.resnet18 import LAYOUT
from models.weights import checked, downloaded, read_state_dict
from tests.weights import discriminating_state_dict, save_pth, serve_files


@pytest.fixture(scope="session")
def pth(weights_file: Path) -> Path:
    return weights_file


@pytest.fixture(scope="module")
def state_dict(pth: Path) -> dict[str, Tensor]:
    return read_state_dict(pth, LAYOUT)[1]


# Weights from a file


def test_a_file_gives_its_weights_and_where_they_come_from(pth: Path) -> None:
    weights, state_dict = read_state_dict(pth, LAYOUT)
    assert (weights.name, weights.source, weights.trained) == (pth.name, pth.name, True)
    assert weights.sha256 == hashlib.sha256(pth.read_bytes()).hexdigest()
    assert torch.equal(state_dict["conv1.weight"], discriminating_state_dict()["conv1.weight"])


@pytest.mark.parametrize("left_out", ["fc.", "num_batches_tracked"])
def test_what_is_not_used_may_be_missing(
    tmp_path: Path, state_dict: dict[str, Tensor], left_out: str
) -> None:
    kept = {name: value for name, value in discriminating_state_dict().items() if left_out not in name}
    torch.save(kept, tmp_path / "less.pth")
    assert same(read_state_dict(tmp_path / "less.pth", LAYOUT)[1], state_dict)


def test_a_last_layer_for_other_classes_and_double_precision_are_taken(
    tmp_path: Path, state_dict: dict[str, Tensor]
) -> None:
    finetuned = {
        name: value.double() if value.is_floating_point() else value
        for name, value in discriminating_state_dict().items()
    } | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(finetuned, tmp_path / "finetuned.pth")
    assert same(read_state_dict(tmp_path / "finetuned.pth", LAYOUT)[1], state_dict)


def test_a_safetensors_file_gives_the_same_and_a_damaged_one_is_named(
    tmp_path: Path, state_dict: dict[str, Tensor]
) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(discriminating_state_dict(), path)
    assert same(read_state_dict(path, LAYOUT)[1], state_dict)
    for content in (b"", path.read_bytes()[:-1], b"PK"):
        path.write_bytes(content)
        assert refusal(path) == f"{path} is not a .safetensors file, or is damaged"


def same(some: object, other: object) -> bool:
    assert isinstance(some, dict)
    assert isinstance(other, dict)
    return some.keys() == other.keys() and all(torch.equal(some[name], other[name]) for name in some)


def changed(**values: object) -> dict[str, object]:
    """The good state_dict with some values in place of its own; None takes the name out."""
    replaced = {name.replace("__", "."): value for name, value in values.items()}
    state_dict = {**discriminating_state_dict(), **replaced}
    return {name: value for name, value in state_dict.items() if value is not None}


def vector(value: float, **options: Any) -> Tensor:  # Any: torch's own
    return torch.full((64,), value, **options)


WRONG_CONTENT: dict[str, tuple[Callable[[], object], str]] = {
    "a missing key": (lambda: changed(conv1__weight=None), "lacks 'conv1.weight'"),
    "nothing": (dict, "lacks 'conv1.weight', 'bn1.weight', 'bn1.bias' and 97 more"),  # 20 x (a filter, 4 of BatchNorm)
    "an unexpected key": (lambda: changed(**{"two\nlines": torch.ones(1)}), r"has 'two\nlines', which ResNet"),
    "a ResNet34": (lambda: resnet34().state_dict(), "has 'layer1.2.conv1.weight', "),
    "a wrong shape": (lambda: changed(conv1__weight=torch.ones(64, 1, 7, 7)), "has the shape (64, 1, 7, 7)"),
    "NaN": (lambda: changed(bn1__bias=vector(torch.nan)), "bn1.bias has 64 NaN or infinite values"),
    "too large for float32": (
        lambda: changed(bn1__bias=vector(1e300, dtype=torch.float64)), "bn1.bias has 64 NaN or infinite values"
    ),
    "a negative variance": (lambda: changed(bn1__running_var=vector(-1.0)), "bn1.running_var has negative variances"),
    "integers": (lambda: changed(bn1__bias=vector(1, dtype=torch.int64)), "bn1.bias is not a dense tensor of floats"),
    "a sparse tensor": (lambda: changed(bn1__bias=vector(1.0).to_sparse()), "bn1.bias is not a dense tensor of floats"),
    "no values": (lambda: changed(bn1__bias=vector(1.0, device="meta")), "bn1.bias is not a dense tensor of floats"),
    "no tensor": (lambda: changed(bn1__bias=1.0), "bn1.bias is not a dense tensor of floats"),
    "a checkpoint": (lambda: {"epoch": 3, "state_dict": discriminating_state_dict()}, "is a whole checkpoint"),
    "DataParallel's prefix": (
        lambda: {f"module.{name}": value for name, value in discriminating_state_dict().items()}, "'module.'"
    ),
    "a list": (lambda: list(discriminating_state_dict().values()), "holds a list, not a state_dict"),
    "names that are numbers": (lambda: {0: torch.ones(3)}, "holds a dict, not a state_dict"),
}  # fmt: skip


# torch says so when it loads the sparse tensor of one case.
@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants:UserWarning")
@pytest.mark.parametrize("case", WRONG_CONTENT)
def test_a_file_with_something_else_is_refused_in_one_line_that_names_it(tmp_path: Path, case: str) -> None:
    make, reason = WRONG_CONTENT[case]
    torch.save(make(), tmp_path / "b.pth")
    assert reason in refusal(tmp_path / "b.pth")


def refusal(path: Path) -> str:
    with pytest.raises(WeightsError) as refused:
        read_state_dict(path, LAYOUT)
    line = str(refused.value)
    assert str(path) in line
    assert "\n" not in line
    return line


def test_what_is_no_readable_file_is_named_and_a_device_is_not_read(tmp_path: Path) -> None:
    for path, reason in {
        tmp_path / "nothing.pth": "can't be read: No such file or directory",
        tmp_path: "is a directory; a file with a state_dict is wanted",
        Path("/dev/zero"): "is a device or pipe; a file with a state_dict is wanted",
    }.items():
        assert refusal(path) == f"{path} {reason}"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    path = save_pth(tmp_path / "secret.pth")
    path.chmod(0)
    assert refusal(path) == f"{path} can't be read: Permission denied"


@pytest.mark.parametrize("name", ["imagenet", "pretrained", "untrained"])
def test_a_file_can_not_pass_for_other_weights_by_its_name(tmp_path: Path, name: str) -> None:
    path = save_pth(tmp_path / name)
    assert refusal(path) == f"'{path}' is no name for weights: rename the file"


def test_a_damaged_file_and_one_that_torch_did_not_write_are_refused(tmp_path: Path, pth: Path) -> None:
    path, half = tmp_path / "c.pth", pth.read_bytes()[: pth.stat().st_size // 2]
    for content in (b"", b"<html>404</html>", b"\x80\x02.", b"PK\x03\x04 not a zip", os.urandom(999), half):
        path.write_bytes(content)
        assert refusal(path) == f"{path} is not a file that torch.save wrote, or is damaged"


class Trap:
    """Unpickling one makes the directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.directory),)


def test_code_in_a_file_is_not_executed_and_a_whole_model_is_not_loaded(tmp_path: Path) -> None:
    torch.save({"conv1.weight": Trap(tmp_path / "executed")}, tmp_path / "trap.pth")
    assert "was not loaded (it calls 'posix.mkdir')" in refusal(tmp_path / "trap.pth")
    assert not (tmp_path / "executed").exists()
    torch.save(resnet18(), tmp_path / "model.pth")
    assert "(it calls 'torchvision.models.resnet.ResNet')" in refusal(tmp_path / "model.pth")


# Weights by download


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's cache of downloads, empty; and no proxy between us and the test's server."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    return tmp_path / "hub" / "checkpoints"


def named_after(content: bytes) -> str:
    return f"resnet18-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def refused_download(url: str, *, timeout_s: float = 10, later: bool) -> str:
    """What is said of `url`; `later` says whether trying later may work."""
    with pytest.raises(WeightsError) as failed:
        downloaded(url, "imagenet", timeout_s=timeout_s)
    assert isinstance(failed.value, DownloadFailed) is later
    return str(failed.value)


def test_a_download_is_kept_and_not_made_again(cache: Path, pth: Path, state_dict: dict[str, Tensor]) -> None:
    content = pth.read_bytes()
    name = named_after(content)
    with serve_files({name: content}) as origin:
        weights, path, found = downloaded(f"{origin}/{name}", "imagenet", timeout_s=3)
    sha256 = hashlib.sha256(content).hexdigest()
    assert weights == Weights("imagenet", f"{origin}/{name}", sha256, trained=True)
    assert same(checked(found, path, LAYOUT), state_dict)
    assert [file.name for file in cache.iterdir()] == [name]
    again, *_ = downloaded(f"{origin}/{name}", "imagenet")  # the server is gone
    assert again == weights
    assert socket.getdefaulttimeout() is None  # sockets of others keep theirs


def test_a_download_with_another_sha256_is_refused_and_not_kept(cache: Path) -> None:
    with serve_files({"resnet18-01234567.pth": b"another file"}) as origin:
        said = refused_download(f"{origin}/resnet18-01234567.pth", later=False)
    got = hashlib.sha256(b"another file").hexdigest()
    assert said.endswith(f'is not the right file: invalid hash value (expected "01234567", got "{got}")')
    assert list(cache.iterdir()) == []


def test_a_download_that_is_cut_short_is_refused_and_not_kept(cache: Path, pth: Path) -> None:
    content = pth.read_bytes()
    name = named_after(content)
    with (
        serve_files({name: content[:100_000]}, declared_bytes=len(content)) as origin,
        pytest.raises(WeightsError, match=r"was cut short|can't be downloaded"),
    ):
        downloaded(f"{origin}/{name}", "imagenet")
    assert list(cache.iterdir()) == []


def test_a_damaged_file_in_the_cache_and_a_url_without_a_sha256_are_named_and_not_used(cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "resnet18-01234567.pth").write_bytes(b"damaged")
    said = refused_download("http://127.0.0.1:1/resnet18-01234567.pth", later=False)
    assert said.startswith(f"{cache}/resnet18-01234567.pth is damaged, its sha256 is ")
    assert "the start of a sha256" in refused_download("http://127.0.0.1:1/resnet18.pth", later=False)


def test_a_404_a_refused_connection_and_no_answer_are_failed_downloads(cache: Path) -> None:
    with serve_files({}) as origin:
        url = f"{origin}/resnet18-01234567.pth"
        assert refused_download(url, later=True) == f"{url} can't be downloaded: HTTP 404 Not Found"
    assert refused_download(url, later=True).endswith("[Errno 111] Connection refused")
    with serve_files({}, silent=True) as origin:
        said = refused_download(f"{origin}/resnet18-01234567.pth", timeout_s=0.2, later=True)
    assert re.search(r"can't be downloaded: (no answer within 0\.2 s|timed out)$", said)
    assert not cache.exists()


def test_a_cache_that_can_not_be_written_is_not_called_a_failed_download(
    tmp_path: Path, cache: Path, pth: Path
) -> None:
    (tmp_path / "hub").write_bytes(b"a file where the folder should be")
    name = named_after(pth.read_bytes())
    with serve_files({name: pth.read_bytes()}) as origin:
        said = refused_download(f"{origin}/{name}", later=False)
    assert said.startswith(f"the download can't be kept in {cache}: Not a directory")


def test_the_url_and_the_cache_are_torchvisions() -> None:
    assert ResNet18_Weights.IMAGENET1K_V1.url == IMAGENET_URL
    assert cached_file(IMAGENET_URL) == Path(torch.hub.get_dir(), "checkpoints", "resnet18-f37072fd.pth")
