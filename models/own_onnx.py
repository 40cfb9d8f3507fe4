"""An image tower that somebody exported: made to take pixels and to give unit vectors, and checked.

pixels                                   their model                          embeddings
uint8 (n, crop, crop, 3) ─► normalised ─► float32 (n, 3, crop, crop) → (n, d) ─► L2, if asked ─► float32 (n, d)
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
from google.protobuf.message import DecodeError, EncodeError
from onnx import TensorProto, compose, helper, numpy_helper

from embedder.model.spec import Preprocessing
from models import ArchitectureError, Weights, read_weights_file
from models.photos import sample_photos

_PREFIX = "own/"
_MIN_COSINE = 0.99999
_MAX_BYTES = 2**31 - 1
"""What one ONNX file holds."""

_Floats = npt.NDArray[np.float32]


def read(path: Path) -> tuple[onnx.ModelProto, Weights]:
    """The model at `path`, with what lies in files beside it. Raises `WeightsError` or `ArchitectureError`."""
    content = read_weights_file(path)
    try:
        model = onnx.load(path)
        if model.ByteSize() > _MAX_BYTES:
            raise EncodeError
        if any(
            tensor.data_location == TensorProto.EXTERNAL
            for tensor in onnx.load_from_string(content).graph.initializer
        ):
            content = model.SerializeToString()
    except (DecodeError, onnx.checker.ValidationError, OSError) as exc:
        raise ArchitectureError(f"{path} is no ONNX file, or a file beside it is missing: {exc}") from exc
    except (EncodeError, ValueError) as exc:
        raise ArchitectureError(f"{path} has more than 2 GB, which one file can't hold") from exc
    sha256 = hashlib.sha256(content).hexdigest()
    return model, Weights(path.name, path.name, sha256, trained=True)


def prepared(model: onnx.ModelProto, preprocessing: Preprocessing, *, output: str | None, l2: bool) -> bytes:
    """`model` between pixels and embeddings. Raises `ArchitectureError` for what is wrong with it."""
    pixel_values, channels_last = _input(model, preprocessing.crop)
    chosen = _output(model, output)
    model = compose.add_prefix(model, _PREFIX)
    graph = model.graph
    mean, std = (np.array(values, np.float32) for values in (preprocessing.mean, preprocessing.std))
    before = [
        helper.make_node("Cast", ["pixels"], ["levels"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["levels", "scale"], ["scaled"]),
        helper.make_node("Add", ["scaled", "shift"], ["normalised"]),
        helper.make_node("Identity", ["normalised"], [_PREFIX + pixel_values])
        if channels_last
        else helper.make_node("Transpose", ["normalised"], [_PREFIX + pixel_values], perm=[0, 3, 1, 2]),
    ]
    after = (
        helper.make_node("LpNormalization", [_PREFIX + chosen], ["embeddings"], axis=1, p=2)
        if l2
        else helper.make_node("Identity", [_PREFIX + chosen], ["embeddings"])
    )
    nodes = [*before, *graph.node, after]
    crop = preprocessing.crop
    del graph.node[:], graph.output[:], graph.value_info[:]
    for given in [given for given in graph.input if given.name == _PREFIX + pixel_values]:
        graph.input.remove(given)
    graph.node.extend(nodes)
    graph.initializer.extend(
        [numpy_helper.from_array(1 / (255 * std), "scale"), numpy_helper.from_array(-mean / std, "shift")]
    )
    graph.input.insert(
        0, helper.make_tensor_value_info("pixels", TensorProto.UINT8, ["batch", crop, crop, 3])
    )
    graph.output.append(helper.make_tensor_value_info("embeddings", TensorProto.FLOAT, ["batch", None]))
    content: bytes = model.SerializeToString()
    return content


def check(content: bytes, original: onnx.ModelProto, preprocessing: Preprocessing, output: str | None) -> int:
    """How many numbers the file `content` gives.

    Raises `ArchitectureError` if they are not `original`'s, depend on how many images go together, are not one
    vector for an image, or are of other lengths than 1.
    """
    crop = preprocessing.crop
    pixels = np.stack([np.asarray(photo.resize((crop, crop))) for photo in sample_photos()[:3]])
    pixel_values, channels_last = _input(original, crop)
    normalised = (pixels / 255 - preprocessing.mean) / preprocessing.std
    planes = normalised if channels_last else normalised.transpose(0, 3, 1, 2)
    try:
        expected = _run(
            original.SerializeToString(), _output(original, output), {pixel_values: planes.astype(np.float32)}
        )
        session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
        together = session.run(["embeddings"], {"pixels": pixels})[0]
        alone = np.concatenate([session.run(["embeddings"], {"pixels": one[None]})[0] for one in pixels])
    except Exception as exc:  # ONNX Runtime's have no class in common
        reason = " ".join(str(exc).split())[:200]
        raise ArchitectureError(f"ONNX Runtime can't run it with 1 and with 3 images: {reason}") from exc
    if together.ndim != 2:
        raise ArchitectureError(
            f"its output has the shape {together.shape[1:]} for an image: name another (--output)"
        )
    lengths = np.linalg.norm(together, axis=1)
    if not np.all(np.abs(lengths - 1) < 1e-3):
        raise ArchitectureError(f"its vectors have lengths like {lengths[0]:.3g}, not 1: add --l2")
    for other, what in (
        (alone, "depend on how many images go together"),
        (expected, "are not those of the file"),
    ):
        cosines = (together * other).sum(axis=1) / np.linalg.norm(other, axis=1)
        if not cosines.min() >= _MIN_COSINE:
            raise ArchitectureError(f"its vectors {what}: cosine {cosines.min():.6f}")
    return int(together.shape[1])


def several_outputs(model: onnx.ModelProto) -> bool:
    return len(model.graph.output) > 1


def _run(content: bytes, output: str, inputs: dict[str, _Floats]) -> _Floats:
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    given: _Floats = session.run([output], inputs)[0]
    return given


def _input(model: onnx.ModelProto, crop: int) -> tuple[str, bool]:
    """The name of its one input, and whether channels come last in it."""
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = [given for given in model.graph.input if given.name not in constants]
    if len(inputs) != 1:
        names = ", ".join(given.name for given in inputs)
        raise ArchitectureError(
            f"it takes {len(inputs)} inputs ({names}), not an image alone: export its image tower"
        )
    tensor = inputs[0].type.tensor_type
    kind = TensorProto.DataType.Name(tensor.elem_type)
    sizes: list[Any] = [size.dim_value or size.dim_param for size in tensor.shape.dim]  # Any: int or str
    if kind != "FLOAT" or len(sizes) != 4:
        raise ArchitectureError(f"its input is {kind} {sizes}, not float32 (n, 3, {crop}, {crop})")
    if isinstance(sizes[0], int):
        raise ArchitectureError(f"it takes {sizes[0]} images at a time: export it with a dynamic batch")
    channels_last = sizes[3] == 3 and sizes[1] != 3
    wanted = (crop, crop, 3) if channels_last else (3, crop, crop)
    if any(isinstance(size, int) and size != want for size, want in zip(sizes[1:], wanted, strict=True)):
        raise ArchitectureError(f"its input is {sizes}; the preprocessing makes {crop} x {crop} pixels")
    return inputs[0].name, channels_last


def _output(model: onnx.ModelProto, wanted: str | None) -> str:
    """`wanted`, or the one output that has a vector for each image."""
    ranks: dict[str, int] = {
        given.name: len(given.type.tensor_type.shape.dim) for given in model.graph.output
    }
    vectors = [name for name, rank in ranks.items() if rank == 2]
    if wanted in ranks:
        return str(wanted)
    if wanted is None and (len(vectors) == 1 or len(ranks) == 1):
        return vectors[0] if vectors else next(iter(ranks))
    lacks = f"it has no output {wanted!r}" if wanted else f"{len(vectors)} of its outputs are vectors"
    raise ArchitectureError(f"{lacks}: name one of {', '.join(ranks)} (--output)")
