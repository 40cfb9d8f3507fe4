"""int8: how near it is to fp32, that it runs in integers, and the images it is made and measured with."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
import yaml
from onnx import numpy_helper
from PIL import Image

from models import QuantizationError
from models.calibration import (
    CALIBRATION_PHOTOS,
    HELD_OUT_PHOTOS,
    MIN_IMAGES,
    Images,
    find,
    own_images,
    sample_images,
)
from models.quantize import Fidelity, fidelity, quantize
from models.resnet18 import PREPROCESSING
from tests.weights import onnx_embeddings

Pixels = npt.NDArray[np.uint8]
Embeddings = npt.NDArray[np.float32]


@pytest.fixture(scope="module")
def made(store: Path) -> Path:
    """The folder of a model that was saved as users save it."""
    models = store / "models" / "resnet18"
    return models / (models / "latest").read_text().strip()


@pytest.fixture(scope="module")
def fp32(made: Path) -> bytes:
    return (made / "fp32.onnx").read_bytes()


@pytest.fixture(scope="module")
def images() -> Images:
    return sample_images(PREPROCESSING)


@pytest.fixture(scope="module")
def int8(made: Path) -> bytes:
    return (made / "int8.onnx").read_bytes()


# How near int8 is


# Measured: 0.9978 and 0.973. Integer sums are the same on every CPU; what is between them is float,
# and moves these by less than the distance to the bounds.
def test_the_aims_are_met_on_weights_that_tell_photos_apart(made: Path) -> None:
    measured = yaml.safe_load((made / "model.yaml").read_text())["metadata"]["precisions"]["int8"]
    assert measured["fidelity_images"] == 112
    assert measured["min_cosine_to_fp32"] >= 0.997
    assert measured["neighbours_kept_of_10"] >= 0.95


def test_fidelity_is_what_a_calculation_one_by_one_gives(fp32: bytes, int8: bytes, images: Images) -> None:
    pixels = images.held_out[:24]  # pieces of two photos, which are near each other
    wanted, got = onnx_embeddings(fp32, pixels), onnx_embeddings(int8, pixels)

    def nearest(embeddings: Embeddings, which: int) -> set[int]:
        others = [index for index in range(len(embeddings)) if index != which]
        others.sort(key=lambda other: -float(np.dot(embeddings[which], embeddings[other])))
        return set(others[:10])

    cosines = [float(np.dot(a, b)) for a, b in zip(wanted, got, strict=True)]
    kept = [len(nearest(wanted, index) & nearest(got, index)) / 10 for index in range(len(pixels))]
    measured = fidelity(fp32, int8, pixels)
    assert measured.images == len(pixels) == 24
    assert measured.mean_cosine == pytest.approx(sum(cosines) / len(cosines), abs=1e-6)
    assert measured.min_cosine == pytest.approx(min(cosines), abs=1e-6)
    assert measured.neighbours_kept == pytest.approx(sum(kept) / len(kept), abs=1e-12)
    assert measured.neighbours_kept < 1  # or it could not tell one formula from another


def test_a_file_is_at_one_from_itself_and_ten_neighbours_take_eleven_images(
    fp32: bytes, images: Images
) -> None:
    assert fidelity(fp32, fp32, images.held_out[:11]) == Fidelity(11, 1.0, 1.0, 1.0)
    with pytest.raises(ValueError, match="10 images have no 10 neighbours"):
        fidelity(fp32, fp32, images.held_out[:10])


def test_calibrated_on_flat_grey_it_is_far_from_fp32(fp32: bytes, images: Images) -> None:
    grey = quantize(fp32, np.full((4, 224, 224, 3), 116, np.uint8))  # ImageNet's mean: activations are small
    assert fidelity(fp32, grey, images.held_out[::8]).min_cosine < 0.99


def test_flat_images_are_not_lost(fp32: bytes, int8: bytes) -> None:
    # Every place of one has the same error, so that none averages out. Measured: 0.982 and 0.993.
    flat = np.stack([np.full((224, 224, 3), level, np.uint8) for level in (0, 255)])
    assert (onnx_embeddings(fp32, flat) * onnx_embeddings(int8, flat)).sum(axis=1).min() >= 0.97


def test_a_channel_that_is_nearly_off_keeps_its_bias(fp32: bytes, images: Images) -> None:
    model = onnx.load_from_string(fp32)
    for tensor in model.graph.initializer:
        if tensor.name.startswith("features.6.0.conv1.weight"):
            values = numpy_helper.to_array(tensor).copy()
            values[::2] = 0.7 if tensor.name.endswith("bias") else values[::2] * 1e-20
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    off = model.SerializeToString()
    measured = fidelity(off, quantize(off, images.calibration[::8]), images.held_out[::8])
    assert measured.min_cosine >= 0.997


# The file


def test_embeddings_have_norm_1_and_do_not_depend_on_the_batch(int8: bytes, images: Images) -> None:
    together = onnx_embeddings(int8, images.held_out[:3])
    assert (together.dtype, together.shape) == (np.dtype(np.float32), (3, 512))
    assert np.linalg.norm(together.astype(float), axis=1) == pytest.approx(1, abs=1e-6)
    alone = [onnx_embeddings(int8, images.held_out[index : index + 1])[0] for index in range(3)]
    assert np.stack(alone) == pytest.approx(together, abs=1e-6)


def test_input_and_output_are_those_of_fp32_and_the_file_is_a_quarter(
    fp32: bytes, int8: bytes, images: Images
) -> None:
    before, after = onnx.load_from_string(fp32), onnx.load_from_string(int8)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    assert len(int8) < 0.26 * len(fp32)
    with pytest.raises(QuantizationError, match="nothing in this network can be"):  # it is int8 already
        quantize(int8, images.calibration[:1])


def test_onnx_runtime_computes_everything_up_to_the_last_addition_in_integers(
    int8: bytes, tmp_path: Path
) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for machines like this one
    onnxruntime.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    assert operators["QLinearConv"] == 20
    assert operators["QLinearAdd"] == 7
    assert operators["Add"] == operators["Relu"] == 1
    assert operators["DequantizeLinear"] == 2  # what that addition takes
    assert not operators.keys() & {"Conv", "QuantizeLinear", "Cast", "Mul", "MaxPool"}


def test_no_pixels_overflow_what_cpus_without_vnni_add_up_in_16_bits(int8: bytes) -> None:
    graph = onnx.load_from_string(int8).graph
    first = next(node for node in graph.node if node.op_type == "Conv")
    weights = next(node.input[0] for node in graph.node if node.output[0] == first.input[1])
    levels = next(
        numpy_helper.to_array(tensor).astype(int) for tensor in graph.initializer if tensor.name == weights
    )
    pairs = levels.reshape(128, 6, 2, 7, 3)  # channels lie side by side
    for worst in (np.maximum(pairs, 0), np.minimum(pairs, 0)):  # each pixel 255 or 0, whichever is worse
        assert np.abs(255 * worst.sum(axis=2)).max() <= 2**15 - 1
    assert np.abs(levels).max() <= 127


# The images


def test_the_sample_images_are_all_different_and_of_different_photos(images: Images) -> None:
    assert not set(CALIBRATION_PHOTOS) & set(HELD_OUT_PHOTOS)
    assert (len(images.calibration), len(images.held_out)) == (112, 112)
    assert len({image.tobytes() for image in (*images.calibration, *images.held_out)}) == 224


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`MIN_IMAGES` different images, each of one colour, in a folder and a folder in it."""
    folder = tmp_path_factory.mktemp("images")
    (folder / "more").mkdir()
    for index in range(MIN_IMAGES):
        colour = (index, 255 - index, 128)
        Image.new("RGB", (8, 8), colour).save(folder / ("more" if index % 2 else ".") / f"{index}.png")
    return folder


def colours(pixels: Pixels) -> list[int]:
    """What tells the images of `folder` apart, in their order."""
    return [int(red) for red in pixels[:, 0, 0, 0]]


def test_a_directory_is_split_into_two_thirds_and_another_third(folder: Path) -> None:
    images = own_images(find(folder), PREPROCESSING)
    assert (len(images.calibration), len(images.held_out), images.skipped) == (100, 50, 0)
    assert sorted(colours(images.calibration) + colours(images.held_out)) == list(range(MIN_IMAGES))


def test_the_split_depends_on_what_the_files_hold_not_on_their_names(folder: Path, tmp_path: Path) -> None:
    for path in folder.rglob("*.png"):
        shutil.copy(path, tmp_path / f"{999 - int(path.stem)}")
    here, there = find(folder), find(tmp_path)
    assert there.description == here.description
    assert str(folder) not in here.description
    assert colours(own_images(there, PREPROCESSING).held_out) == colours(
        own_images(here, PREPROCESSING).held_out
    )


def test_a_list_of_files_is_the_same_as_their_directory(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    names = [str(path.relative_to(folder)) for path in folder.rglob("*.png")]
    (tmp_path / "list.txt").write_text("\n".join([*names, "", "missing.png"]))
    listed = find(tmp_path / "list.txt")
    assert listed.description == find(folder).description
    assert own_images(listed, PREPROCESSING).skipped == 1


def test_too_few_different_images_are_refused_and_what_is_no_image_is_skipped(
    folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(folder, images)
    (images / "notes.txt").write_text("no image")
    assert own_images(find(images), PREPROCESSING).skipped == 1
    (images / "0.png").write_bytes(b"damaged")
    with pytest.raises(QuantizationError, match=r"^149 of 151 files are images .* 150 or more$"):
        own_images(find(images), PREPROCESSING)
    (images / "notes.txt").unlink()
    shutil.copy(images / "2.png", images / "0.png")  # the same file twice counts once
    with pytest.raises(QuantizationError, match=r"images has 149 different files .* 150 images or more$"):
        find(images)


def test_a_missing_source_and_one_that_is_no_text_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(QuantizationError, match="nothing can't be read: No such file or directory"):
        find(tmp_path / "nothing")
    with pytest.raises(QuantizationError, match=r"0\.png is no directory, and no text with a path"):
        find(folder / "0.png")
