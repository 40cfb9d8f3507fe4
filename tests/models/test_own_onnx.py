"""An image tower that somebody exported is saved with pixels in front and unit vectors behind, or refused."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import yaml
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from embedder.model.spec import ModelSpec, Preprocessing
from models import ArchitectureError, own_onnx
from models.photos import photo
from tests.models.test_preprocessor_config import SIGLIP
from tests.server import ROOT, plain_environ

CROP, DIMENSION = 32, 5
PREPROCESSING = Preprocessing(CROP, CROP, "bicubic", "squash", (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
WEIGHTS = np.random.default_rng(3).normal(size=(3 * CROP * CROP, DIMENSION)).astype(np.float32)


def tower(
    shape: tuple[int | str, ...] = ("n", 3, CROP, CROP),
    *,
    kind: int = TensorProto.FLOAT,
    more_inputs: tuple[str, ...] = (),
    fixed_rows: bool = False,
) -> onnx.ModelProto:
    """As exporters make them: float32 (n, 3, 32, 32) → a vector, and what is on the way to it (n, 3 * 32 * 32)."""
    rows = np.array([3, -1] if fixed_rows else [0, -1])
    cast = helper.make_node("Cast", ["pixel_values"], ["floats"], to=TensorProto.FLOAT)
    nodes = [
        cast,
        helper.make_node("Reshape", ["floats", "rows"], ["last_hidden_state"]),
        helper.make_node("MatMul", ["last_hidden_state", "weights"], ["image_embeds"]),
    ]
    graph = helper.make_graph(
        nodes,
        "tower",
        [
            helper.make_tensor_value_info("pixel_values", kind, shape),
            *(helper.make_tensor_value_info(name, TensorProto.INT64, ["n", "m"]) for name in more_inputs),
        ],
        [
            helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n", 3 * CROP * CROP]),
            helper.make_tensor_value_info("image_embeds", TensorProto.FLOAT, ["n", DIMENSION]),
        ],
        [numpy_helper.from_array(WEIGHTS, "weights"), numpy_helper.from_array(rows, "rows")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def by_hand(pixels: NDArray[np.uint8]) -> NDArray[np.float64]:
    """What the tower gives for uint8 (n, 32, 32, 3), of length 1."""
    normalised = (pixels / 255 - PREPROCESSING.mean) / PREPROCESSING.std
    vectors = normalised.transpose(0, 3, 1, 2).reshape(len(pixels), -1) @ WEIGHTS
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def test_it_takes_pixels_and_gives_unit_vectors() -> None:
    content = own_onnx.prepared(tower(), PREPROCESSING, output="image_embeds", l2=True)
    onnx.checker.check_model(onnx.load_from_string(content))
    assert own_onnx.check(content, tower(), PREPROCESSING, "image_embeds") == DIMENSION
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(4).integers(0, 256, (4, CROP, CROP, 3), np.uint8)
    assert session.run(None, {"pixels": pixels})[0] == pytest.approx(by_hand(pixels), abs=1e-5)


@pytest.mark.parametrize(
    ("model", "output", "l2", "said"),
    [
        (
            tower((1, 3, CROP, CROP)),
            "image_embeds",
            True,
            "takes 1 images at a time: export it with a dynamic",
        ),
        (tower(("n", 3, 48, 48)), "image_embeds", True, "the preprocessing makes 32 x 32 pixels"),
        (tower(kind=TensorProto.FLOAT16), "image_embeds", True, "its input is FLOAT16"),
        (tower(("n", 3)), "image_embeds", True, "its input is FLOAT ['n', 3], not float32 (n, 3, 32, 32)"),
        (tower(more_inputs=("input_ids",)), "image_embeds", True, "2 inputs (pixel_values, input_ids)"),
        (tower(), None, True, "2 of its outputs are vectors: name one of last_hidden_state, image_embeds"),
        (tower(), "none", True, "it has no output 'none': name one of last_hidden_state, image_embeds"),
        (tower(), "image_embeds", False, ", not 1: add --l2"),
        (tower(fixed_rows=True), "image_embeds", True, "can't run it with 1 and with 3 images"),
    ],
)
def test_what_is_wrong_with_it_is_said_in_one_line(
    model: onnx.ModelProto, output: str | None, l2: bool, said: str
) -> None:
    def saved() -> None:
        content = own_onnx.prepared(model, PREPROCESSING, output=output, l2=l2)
        own_onnx.check(content, model, PREPROCESSING, output)

    with pytest.raises(ArchitectureError) as refused:
        saved()
    assert said in str(refused.value)
    assert "\n" not in str(refused.value)


def save(home: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command: list[str | Path] = [sys.executable, ROOT / "scripts" / "save_model.py", *arguments]
    environ = {**plain_environ(), "BENTOML_HOME": str(home)}
    return subprocess.run(command, env=environ, capture_output=True, text=True)


def test_the_command_saves_it_with_its_sha256_and_its_licence(tmp_path: Path) -> None:
    (tmp_path / "tower.onnx").write_bytes(tower().SerializeToString())
    size = {"height": CROP, "width": CROP}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({**SIGLIP, "size": size}))
    (tmp_path / "LICENCE.txt").write_text("To be used by whoever wants to.")
    arguments = (
        *("--onnx", tmp_path / "tower.onnx", "--preprocessing", tmp_path / "preprocessor_config.json"),
        *("--name", "tower", "--output", "image_embeds", "--l2", "--licence", tmp_path / "LICENCE.txt"),
    )
    done = save(tmp_path / "bentoml", *arguments)
    assert done.returncode == 0, done.stderr
    models = tmp_path / "bentoml" / "models" / "tower"
    folder = models / (models / "latest").read_text()
    assert (folder / "LICENCE").read_text() == "To be used by whoever wants to."
    metadata = yaml.safe_load((folder / "model.yaml").read_text())["metadata"]
    spec = ModelSpec.from_metadata("tower:1", metadata, precision="fp32")
    assert (spec.dimension, spec.preprocessing.mode, spec.architecture) == (5, "squash", "tower/image_embeds")
    assert spec.weights_sha256 == hashlib.sha256((tmp_path / "tower.onnx").read_bytes()).hexdigest()
    assert (metadata["licence"], metadata["weights"]) == ("LICENCE.txt", "tower.onnx")
    session = onnxruntime.InferenceSession(folder / "fp32.onnx", providers=["CPUExecutionProvider"])
    pixels = np.asarray(photo("coffee.png").resize((CROP, CROP)))[None]
    assert session.run(None, {"pixels": pixels})[0].shape == (1, DIMENSION)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--l2",), "--preprocessing, --crop, --output, --licence, --l2 are for --onnx"),
        (("--onnx", "a.onnx", "--crop", "32"), "--onnx takes --name, and either --preprocessing or --crop"),
        (("--onnx", "a.onnx", "--name", "a"), "--onnx takes --name, and either --preprocessing or --crop"),
        (
            ("--onnx", "a.onnx", "--name", "a", "--crop", "32", "--if-missing"),
            "are for the networks that are made here",
        ),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    done = save(tmp_path, *arguments)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr


def test_a_geometry_that_can_not_be_made_is_named(tmp_path: Path) -> None:
    done = save(tmp_path, "--onnx", "a.onnx", "--name", "a", "--crop", "32", "--resize", "16")
    assert done.returncode == 1
    assert "its resize is 16 and its crop 32" in done.stderr


def test_a_file_that_is_no_onnx_is_named(tmp_path: Path) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    done = save(tmp_path, "--onnx", tmp_path / "text.onnx", "--name", "a", "--crop", "32")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f"save_model: {tmp_path}/text.onnx is no ONNX file")
