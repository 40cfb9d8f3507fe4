"""What a stored model says of itself: read, refused where it can't be served, and what makes vectors comparable."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from embedder.model.spec import ModelSpec, Preprocessing, SpecError
from tests import networks


def read(metadata: dict[str, Any], precision: str = "fp32") -> ModelSpec:  # Any: JSON
    return ModelSpec.from_metadata("tiny:1", metadata, precision=precision)


def refused(metadata: dict[str, Any], precision: str = "fp32") -> str:  # Any: JSON
    with pytest.raises(SpecError) as caught:
        read(metadata, precision)
    return str(caught.value)


def test_everything_that_depends_on_the_network_is_read() -> None:
    spec = read(networks.metadata())
    assert (spec.tag, spec.architecture, spec.dimension, spec.trained) == ("tiny:1", "tiny", 7, True)
    assert (spec.precision, spec.file, spec.weights_sha256) == ("fp32", "fp32.onnx", "5" * 64)
    assert spec.preprocessing == Preprocessing(72, 64, "bicubic", "shorter_side", networks.MEAN, networks.STD)


def test_models_saved_before_there_was_a_mode_keep_their_pixels() -> None:
    old = networks.metadata(interpolation="bilinear, antialiased")  # as it was written then
    del old["preprocessing"]["mode"]
    assert read(old) == read(networks.metadata(interpolation="bilinear"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"version": 2}, "its preprocessing has version 2, this code knows version 1"),
        ({"version": None}, "its preprocessing has version None"),
        ({"interpolation": "area"}, "its interpolation is 'area'; known are bilinear, bicubic"),
        ({"interpolation": None}, "its interpolation is 'None'"),
        ({"mode": "border"}, "its resize mode is 'border'; known are shorter_side, squash"),
        ({"crop": 73}, "its resize is 72 and its crop 73"),
        ({"crop": 0}, "its resize is 72 and its crop 0"),
        ({"resize": 4097}, "its resize is 4097"),
        ({"resize": "72"}, "its resize is '72'"),
        ({"mean": None}, "its mean is None, not three numbers"),
        ({"std": [0.1, 0.2]}, "its std is [0.1, 0.2], not three numbers"),
    ],
)
def test_preprocessing_that_this_code_does_not_know_is_refused(changes: dict[str, object], said: str) -> None:
    assert said in refused(networks.metadata(**changes))


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({}, "it was not saved by scripts/save_model.py"),
        ({"preprocessing": "none"}, "it was not saved by scripts/save_model.py"),
        ({"precisions": []}, "it was not saved by scripts/save_model.py"),
        ({"dimension": 0}, "its dimension is 0"),
        ({"dimension": "7"}, "its dimension is '7'"),
        ({"precisions": {"fp32": {}}}, "it was not saved by scripts/save_model.py"),
        ({"weights_sha256": None}, "its weights' sha256 None"),
        ({"architecture": None}, "its architecture is None"),
    ],
)
def test_metadata_that_can_not_be_are_refused(metadata: dict[str, Any], said: str) -> None:  # Any: JSON
    assert said in refused({**networks.metadata(), **metadata} if metadata else {})


def test_a_precision_that_was_not_saved_is_refused_with_the_command_that_saves_it() -> None:
    said = refused(networks.metadata(), "int8")
    assert said.startswith("it was saved in fp32, not in int8; ")
    assert said.endswith("python scripts/save_model.py --architecture tiny --precision int8")


def test_bf16_is_computed_from_the_file_of_fp32_and_compared_with_itself_alone() -> None:
    exact, bf16 = (read(networks.metadata(), precision) for precision in ("fp32", "bf16"))
    assert (bf16.precision, bf16.file, bf16.file_sha256) == ("bf16", exact.file, exact.file_sha256)
    assert bf16.fingerprint != exact.fingerprint


# The fingerprint

SPEC = ModelSpec.from_metadata("tiny:1", networks.metadata(), precision="fp32")


def test_a_fingerprint_is_12_hexadecimal_digits_and_the_same_wherever_it_is_made() -> None:
    assert SPEC.fingerprint == read(networks.metadata()).fingerprint
    assert len(SPEC.fingerprint) == 12
    assert int(SPEC.fingerprint, 16) >= 0


# An index that somebody made before there was another network must not be told that its vectors are others.
@pytest.mark.parametrize(("precision", "fingerprint"), [("fp32", "167be5139ee7"), ("int8", "1417f9bab51b")])
def test_the_fingerprint_of_a_resnet18_is_what_it_was_when_there_was_no_other_network(
    precision: str, fingerprint: str
) -> None:
    stored = {
        "architecture": "resnet18",
        "weights": "imagenet",
        "weights_sha256": "f37072fd47e89c5e827621c5baffa7500819f7896bbacec160b1a16c560e07ec",
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
            "fp32": {"file": "fp32.onnx"},
            "int8": {"file": "int8.onnx", "sha256": "6" * 64},
        },
    }
    assert ModelSpec.from_metadata("resnet18:1", stored, precision=precision).fingerprint == fingerprint
    del stored["precisions"]["int8"]  # type: ignore[attr-defined]  # it is a dictionary
    assert refused(stored, "int8").endswith("; save it again: python scripts/save_model.py --precision int8")


@pytest.mark.parametrize(
    "other", [{"tag": "tiny:2"}, {"file": "other.onnx"}, {"file_sha256": "6" * 64}, {"trained": False}]
)
def test_vectors_of_the_same_network_may_be_compared_wherever_it_is_stored(other: dict[str, Any]) -> None:
    assert replace(SPEC, **other).fingerprint == SPEC.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"architecture": "small"},
        {"weights_sha256": "6" * 64},
        {"precision": "int8"},
        {"renditions": ("cloudinary",)},
    ],
)
def test_vectors_of_another_network_may_not_be_compared(other: dict[str, Any]) -> None:
    assert replace(SPEC, **other).fingerprint != SPEC.fingerprint


@pytest.mark.parametrize(
    "other",
    [
        {"resize": 73},
        {"crop": 63},
        {"interpolation": "bilinear"},
        {"mode": "other"},
        {"mean": (0.4, 0.5, 0.61)},
        {"std": (0.2, 0.3, 0.26)},
        {"version": 2},
    ],
)
def test_vectors_of_other_pixels_may_not_be_compared(other: dict[str, Any]) -> None:
    changed = replace(SPEC, preprocessing=replace(SPEC.preprocessing, **other))
    assert changed.fingerprint != SPEC.fingerprint


def test_the_cdns_that_are_asked_for_smaller_pictures_tell_vectors_apart() -> None:
    each = [(), ("cloudinary",), ("cloudinary@img.example",), ("shopify",), ("cloudinary", "shopify")]
    assert len({replace(SPEC, renditions=names).fingerprint for names in each}) == len(each)
    backwards = replace(SPEC, renditions=("shopify", "cloudinary"))
    assert backwards.fingerprint == replace(SPEC, renditions=("cloudinary", "shopify")).fingerprint


def test_int8_networks_that_were_quantised_differently_may_not_be_compared() -> None:
    one, other = (replace(SPEC, precision="int8", file_sha256=digit * 64) for digit in "67")
    assert one.fingerprint != other.fingerprint
