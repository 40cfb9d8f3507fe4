from __future__ import annotations

import hashlib
import os
import re
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18, resnet34
from torchvision.transforms import functional

from models import PREPROCESSING, DownloadFailed, WeightsError
from models.download import IMAGENET_URL, cached_file
from models.resnet18 import (
    SAMPLE_PHOTOS,
    Embedder,
    Weights,
    check_export,
    file_weights,
    imagenet_weights,
    sample_photos,
    untrained_weights,
)
from tests.weights import (
    discriminating_state_dict,
    onnx_embeddings,
    save_pth,
    serve_files,
    torchvision_embeddings,
)


@pytest.fixture(scope="session")
def pth(weights_file: Path) -> Path:
    return weights_file


@pytest.fixture(scope="module")
def weights(pth: Path) -> Weights:
    return file_weights(pth)


@pytest.fixture(scope="module")
def exported(store: Path) -> bytes:
    """What `export_onnx` made of `weights`, for the store."""
    (file,) = store.glob("models/resnet18/*/fp32.onnx")
    return file.read_bytes()


@pytest.fixture(scope="module")
def pixels() -> npt.NDArray[np.uint8]:
    """The sample photos, uint8 (8, 224, 224, 3), by torchvision."""
    resized = (functional.resize(photo, 256, antialias=True) for photo in sample_photos())
    return np.stack([np.asarray(functional.center_crop(photo, 224)) for photo in resized])


@pytest.fixture(scope="module")
def expected() -> npt.NDArray[np.float64]:
    """The sample photos' embeddings by torchvision, float64 (8, 512)."""
    return torchvision_embeddings(discriminating_state_dict(), sample_photos())


@pytest.fixture(scope="module")
def untrained() -> Weights:
    return untrained_weights()


# The exported file


@pytest.mark.parametrize("batch_size", [1, 11])
def test_the_file_gives_what_torchvision_gives_at_any_batch_size(
    exported: bytes, pixels: npt.NDArray[np.uint8], expected: npt.NDArray[np.float64], batch_size: int
) -> None:
    which = np.arange(batch_size) % len(pixels)
    embeddings = onnx_embeddings(exported, pixels[which])
    assert embeddings.dtype == np.float32
    assert embeddings.shape == (batch_size, 512)
    assert np.linalg.norm(embeddings.astype(float), axis=1) == pytest.approx(1, abs=1e-6)
    assert (embeddings * expected[which]).sum(axis=1).min() >= 0.99999


def test_another_photo_and_a_crop_off_by_two_pixels_would_be_noticed(
    exported: bytes, pixels: npt.NDArray[np.uint8], expected: npt.NDArray[np.float64]
) -> None:
    cosines = expected @ expected.T
    assert cosines[~np.eye(len(SAMPLE_PHOTOS), dtype=bool)].mean() < 0.95
    embeddings = onnx_embeddings(exported, np.roll(pixels, 2, axis=2))
    assert (embeddings * expected).sum(axis=1).max() < 0.999


def test_the_file_is_valid_onnx_with_the_promised_input_and_output(exported: bytes) -> None:
    model = onnx.load_from_string(exported)
    onnx.checker.check_model(model, full_check=True)
    (pixels,), (embeddings,) = model.graph.input, model.graph.output

    def described(value: onnx.ValueInfoProto) -> tuple[str, int, list[str | int]]:
        tensor = value.type.tensor_type
        sizes = [size.dim_param or size.dim_value for size in tensor.shape.dim]
        return value.name, tensor.elem_type, sizes

    assert described(pixels) == ("pixels", onnx.TensorProto.UINT8, ["batch", 224, 224, 3])
    assert described(embeddings) == ("embeddings", onnx.TensorProto.FLOAT, ["batch", 512])
    operators = [node.op_type for node in model.graph.node]
    assert operators.count("Conv") == 20  # He et al. 2015, table 1: 17, and 3 in the shortcuts
    assert "BatchNormalization" not in operators


def test_the_file_names_no_directory_of_the_machine_that_made_it(exported: bytes) -> None:
    assert str(Path(__file__).parents[2]).encode() not in exported
    assert os.path.dirname(torch.__file__).encode() not in exported


def test_features_that_are_all_zero_give_the_zero_vector(weights: Weights) -> None:
    zero = {name: torch.zeros_like(value) for name, value in weights.state_dict.items()}
    with torch.no_grad():
        embeddings = Embedder(zero)(torch.zeros(2, 224, 224, 3, dtype=torch.uint8))
    assert torch.equal(embeddings, torch.zeros(2, 512))


def test_preprocessing_is_described_as_torchvision_does_it() -> None:
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    assert preset.antialias
    assert PREPROCESSING.resize == preset.resize_size[0]
    assert PREPROCESSING.crop == preset.crop_size[0]
    assert PREPROCESSING.interpolation == preset.interpolation.value
    assert PREPROCESSING.mean == tuple(preset.mean)
    assert PREPROCESSING.std == tuple(preset.std)


def test_an_export_of_other_weights_is_refused_naming_cosine_and_photo(
    exported: bytes, untrained: Weights
) -> None:
    with pytest.raises(WeightsError, match=r"untrained differs from torch: cosine 0\.\d{6} for ") as refused:
        check_export(exported, untrained)
    assert any(photo in str(refused.value) for photo in SAMPLE_PHOTOS)


def test_an_export_that_gives_nan_is_refused(exported: bytes, weights: Weights) -> None:
    model = onnx.load_from_string(exported)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.nan, tensor.name))
    with pytest.raises(WeightsError, match="cosine nan"):
        check_export(model.SerializeToString(), weights)


def test_an_export_whose_vectors_are_not_of_length_one_is_refused(exported: bytes, weights: Weights) -> None:
    model = onnx.load_from_string(exported)
    (last,) = (node for node in model.graph.node if "embeddings" in node.output)
    last.output[:] = ["unit"]
    model.graph.node.append(onnx.helper.make_node("Add", ["unit", "unit"], ["embeddings"]))
    with pytest.raises(WeightsError, match=r"cosine 0\.5"):
        check_export(model.SerializeToString(), weights)


# Weights without training


def test_untrained_weights_are_the_same_on_every_call_and_leave_the_random_state_alone(
    untrained: Weights,
) -> None:
    before = torch.random.get_rng_state()
    again = untrained_weights()
    assert again.sha256 == untrained.sha256
    assert torch.equal(torch.random.get_rng_state(), before)
    assert (again.name, again.trained) == ("untrained", False)


def test_untrained_weights_have_the_batch_statistics_of_the_sample_photos(untrained: Weights) -> None:
    state_dict = untrained.state_dict
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    photos = torch.stack([preset(photo) for photo in sample_photos()])
    first_layer = nn.functional.conv2d(photos, state_dict["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(state_dict["bn1.running_mean"], first_layer.mean((0, 2, 3)))
    torch.testing.assert_close(state_dict["bn1.running_var"], first_layer.var((0, 2, 3)))


# Weights from a file


def test_a_file_gives_its_weights_and_where_they_come_from(pth: Path, weights: Weights) -> None:
    assert (weights.name, weights.source, weights.trained) == (pth.name, pth.name, True)
    assert weights.sha256 == hashlib.sha256(pth.read_bytes()).hexdigest()
    assert torch.equal(weights.state_dict["conv1.weight"], discriminating_state_dict()["conv1.weight"])


@pytest.mark.parametrize("left_out", ["fc.", "num_batches_tracked"])
def test_what_is_not_used_may_be_missing(tmp_path: Path, weights: Weights, left_out: str) -> None:
    kept = {name: value for name, value in discriminating_state_dict().items() if left_out not in name}
    torch.save(kept, tmp_path / "less.pth")
    assert same(file_weights(tmp_path / "less.pth").state_dict, weights.state_dict)


def test_a_last_layer_for_other_classes_and_double_precision_are_taken(
    tmp_path: Path, weights: Weights
) -> None:
    state_dict = {
        name: value.double() if value.is_floating_point() else value
        for name, value in discriminating_state_dict().items()
    } | {"fc.weight": torch.zeros(10, 512), "fc.bias": torch.zeros(10)}
    torch.save(state_dict, tmp_path / "finetuned.pth")
    assert same(file_weights(tmp_path / "finetuned.pth").state_dict, weights.state_dict)


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
        file_weights(path)
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


@pytest.mark.parametrize("name", ["imagenet", "untrained"])
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
        imagenet_weights(url, timeout_s=timeout_s)
    assert isinstance(failed.value, DownloadFailed) is later
    return str(failed.value)


def test_a_download_is_kept_and_not_made_again(cache: Path, pth: Path, weights: Weights) -> None:
    content = pth.read_bytes()
    name = named_after(content)
    with serve_files({name: content}) as origin:
        downloaded = imagenet_weights(f"{origin}/{name}", timeout_s=3)
    assert (downloaded.name, downloaded.source) == ("imagenet", f"{origin}/{name}")
    assert (downloaded.sha256, downloaded.trained) == (weights.sha256, True)
    assert same(downloaded.state_dict, weights.state_dict)
    assert [file.name for file in cache.iterdir()] == [name]
    again = imagenet_weights(f"{origin}/{name}")  # the server is gone
    assert again.sha256 == weights.sha256
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
        imagenet_weights(f"{origin}/{name}")
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
