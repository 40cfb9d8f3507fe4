from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import ResNet18_Weights
from torchvision.transforms import functional

from models import WeightsError, resnet18
from models.backbone import Backbone
from models.backbone import untrained as made_untrained
from models.export import Embedder, check_export
from models.photos import SAMPLE_PHOTOS, sample_photos
from models.resnet18 import PREPROCESSING
from tests.weights import discriminating_state_dict, onnx_embeddings, torchvision_embeddings


@pytest.fixture(scope="module")
def backbone(weights_file: Path) -> Backbone:
    return resnet18.backbone("resnet18", str(weights_file))


@pytest.fixture(scope="module")
def exported(store: Path) -> bytes:
    """What `export_onnx` made of `backbone`, for the store."""
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
def untrained() -> Backbone:
    return resnet18.backbone("resnet18", "untrained")


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


def test_features_that_are_all_zero_give_the_zero_vector(backbone: Backbone) -> None:
    zero = {name: torch.zeros_like(value) for name, value in backbone.judge.state_dict().items()}
    with torch.no_grad():
        pixels = torch.zeros(2, 224, 224, 3, dtype=torch.uint8)
        embeddings = Embedder(resnet18.body(resnet18.headless(zero)), PREPROCESSING)(pixels)
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
    exported: bytes, untrained: Backbone
) -> None:
    with pytest.raises(WeightsError, match=r"untrained differs from torch: cosine 0\.\d{6} for ") as refused:
        check_export(exported, untrained)
    assert any(photo in str(refused.value) for photo in SAMPLE_PHOTOS)


def test_an_export_that_gives_nan_is_refused(exported: bytes, backbone: Backbone) -> None:
    model = onnx.load_from_string(exported)
    for tensor in model.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(values * np.nan, tensor.name))
    with pytest.raises(WeightsError, match="cosine nan"):
        check_export(model.SerializeToString(), backbone)


def test_an_export_whose_vectors_are_not_of_length_one_is_refused(
    exported: bytes, backbone: Backbone
) -> None:
    model = onnx.load_from_string(exported)
    (last,) = (node for node in model.graph.node if "embeddings" in node.output)
    last.output[:] = ["unit"]
    model.graph.node.append(onnx.helper.make_node("Add", ["unit", "unit"], ["embeddings"]))
    with pytest.raises(WeightsError, match=r"cosine 0\.5"):
        check_export(model.SerializeToString(), backbone)


# Weights without training


def test_untrained_weights_are_the_same_on_every_call_and_leave_the_random_state_alone(
    untrained: Backbone,
) -> None:
    before = torch.random.get_rng_state()
    again = made_untrained(models.resnet18, resnet18.PRESET)
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, tensor in untrained.judge.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(again.state_dict()[name], tensor)
    assert (untrained.weights.name, untrained.weights.trained) == ("untrained", False)


def test_untrained_weights_have_the_batch_statistics_of_the_sample_photos(untrained: Backbone) -> None:
    state_dict = untrained.judge.state_dict()
    preset = ResNet18_Weights.IMAGENET1K_V1.transforms()
    photos = torch.stack([preset(photo) for photo in sample_photos()])
    first_layer = nn.functional.conv2d(photos, state_dict["conv1.weight"], stride=2, padding=3)
    torch.testing.assert_close(state_dict["bn1.running_mean"], first_layer.mean((0, 2, 3)))
    torch.testing.assert_close(state_dict["bn1.running_var"], first_layer.var((0, 2, 3)))
