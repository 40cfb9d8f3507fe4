"""The int8 network from the fp32 one, and how near the two are. No torch.

    fp32.onnx ─► fold the normalisation into the first convolution
              ─► run it on calibration images: the range of each activation, the mean of each channel
              ─► int8 weights and biases, activations rounded to uint8 ─► int8.onnx

The file is in ONNX's QDQ form: float operators between QuantizeLinear and DequantizeLinear, which ONNX
Runtime fuses into integer ones when it loads it. Weights have a scale per output channel, activations
one per tensor. `onnxruntime.quantization.quantize_static` writes the same form; what is written here
runs 1.3 times as fast, with a fifth less error (the model card has the numbers). What differs:

- The first convolution takes the pixels as they are, so nothing is computed or rounded before it; and in
  blocks of four, so that ONNX Runtime has a fast kernel for it: 1.1 ms of 9.8 an image, instead of 3.9.
- Its weights are a little smaller than 8 bits allow. x86 CPUs without VNNI add pairs of uint8 x int8
  products in 16 bits, which pixels near white overflow: computed that way, one photo's cosine fell to
  0.963. Here no pair can. In the other layers no pair came near: of 1.3 thousand million, the largest
  was 60 % of what fits.
- Rounded weights give a channel another mean than fp32's; the bias takes that back, and with it a tenth
  of the error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic

from embedder.model.encoder import Pixels
from models import QuantizationError

NEIGHBOURS = 10
"""How many nearest neighbours `fidelity` looks at."""

# One block of pixels is what the first convolution sees as one pixel of many channels: four, because ONNX
# Runtime's fast int8 kernels take channels by four.
_BLOCK = 4
# uint8 times int8, and of those two, in 16 bits: what x86 CPUs without VNNI add up.
_MOST_OF_A_PAIR = (2**15 - 1) / 255
_MOST_OF_ANY_PAIR = 64  # 2 * 64 * 255 fits in 16 bits, whatever the pixels and the network

_BATCH_PIXELS = 8 * 224**2  # all activations of ResNet18 for 8 images are 100 MB

Users = dict[str, list[onnx.NodeProto]]

Constants = Mapping[str, NDArray[Any]]
"""A graph's weights and tables by name. Any: of several dtypes."""


@dataclass(frozen=True)
class Fidelity:
    """How near int8's embeddings are to fp32's, over `images`."""

    images: int
    mean_cosine: float
    min_cosine: float
    neighbours_kept: float
    """Of each image's 10 nearest others by fp32, the share that is among int8's 10; the mean, 0 to 1."""


def quantize(fp32: bytes, pixels: Pixels) -> bytes:
    """The int8 file for the ONNX file `fp32`, with the same input and output.

    `fp32` is a file of `export.export_onnx` or `own_onnx.prepared`. `pixels` are the calibration images,
    uint8 (n, crop, crop, 3): they set the ranges, so they should look like those that will be embedded.
    For ResNet18 it takes 5 to 10 s for 100 of them.

    Raises `QuantizationError` for a network without convolutions and matrix products by weights.
    """
    model = onnx.load_from_string(fp32)
    in_blocks = _is_resnet18(model)
    if in_blocks:
        _take_pixels_in_blocks(model)
    constants = _constants(model)
    integer = _integer_nodes(model, constants, _MOVES if in_blocks else ("MaxPool",))
    if not integer and not any(node.op_type in _PRODUCTS for node in model.graph.node):
        raise QuantizationError("nothing in this network can be computed in integers: serve it in fp32")
    given = set() if in_blocks else _given_rounded(model, integer)
    rounded = dict.fromkeys((*_rounded_tensors(model, constants, integer), *sorted(given)))
    observed = _observe(model, [*rounded], pixels) if rounded else {}
    scales = {name: _Scale.over(tensor.low, tensor.high) for name, tensor in observed.items()}
    scales[_BLOCKS] = _Scale(1.0, 0)  # whole numbers already: nothing to round

    writer = _Writer()
    for node in model.graph.node:
        inputs = list(node.input)
        if node.op_type == "Conv" and node.output[0] in integer:
            source, weight, *bias = inputs
            if source != _BLOCKS:
                inputs[0] = writer.rounded(source, scales[source])
            inputs[1:] = writer.weights(
                weight,
                constants[weight],
                constants[bias[0]] if bias else np.zeros(len(constants[weight]), np.float32),
                input_scale=scales[source].step,
                input_mean=observed[source].mean,
                most=127 if in_blocks else _MOST_OF_ANY_PAIR,
                any_pair_fits=source == _BLOCKS,
            )
        elif node.op_type == "Add" and node.output[0] in integer:
            inputs = [name if name in constants else writer.rounded(name, scales[name]) for name in inputs]
        elif node.op_type in _MOVES and node.output[0] in integer:
            inputs[0] = writer.rounded(inputs[0], scales[inputs[0]])
            scales[node.output[0]] = scales[node.input[0]]  # so that it runs on uint8
        inputs = [writer.rounded(name, scales[name]) if name in given else name for name in inputs]
        for name in inputs:
            if name in constants:
                writer.constant(name, constants[name])
        copied = onnx.NodeProto()
        copied.CopyFrom(node)
        copied.input[:] = inputs
        writer.nodes.append(copied)
    _replace(model, writer.nodes, writer.constants)
    return _with_integer_products(model)


def _with_integer_products(model: onnx.ModelProto) -> bytes:
    """`model` with its products by weights in integers: what they take is rounded each time, by its own range."""
    if not any(node.op_type in _PRODUCTS for node in model.graph.node):
        int8: bytes = model.SerializeToString()
        return int8
    with TemporaryDirectory() as folder:
        file = Path(folder, "int8.onnx")
        quantize_dynamic(
            model,
            file,
            op_types_to_quantize=[*_PRODUCTS],
            per_channel=True,
            weight_type=QuantType.QInt8,
            reduce_range=True,
        )
        return file.read_bytes()


def fidelity(fp32: bytes, int8: bytes, pixels: Pixels) -> Fidelity:
    """How near `int8` is to `fp32` on `pixels`, uint8 (n, 224, 224, 3), with n over `NEIGHBOURS`.

    It says something about other images only if none of these was used for calibration.
    """
    if len(pixels) <= NEIGHBOURS:
        raise ValueError(f"{len(pixels)} images have no {NEIGHBOURS} neighbours each")
    wanted, got = _embed(fp32, pixels), _embed(int8, pixels)
    # 1 - |a - b|² / 2: the cosine of unit vectors, and less if they are not of length 1.
    cosines = 1 - ((wanted - got) ** 2).sum(axis=1) / 2
    kept = [
        len(np.intersect1d(*nearest)) / NEIGHBOURS
        for nearest in zip(_neighbours(wanted), _neighbours(got), strict=True)
    ]
    return Fidelity(len(pixels), float(cosines.mean()), float(cosines.min()), float(np.mean(kept)))


def _neighbours(embeddings: NDArray[np.float64]) -> NDArray[np.intp]:
    """The indices of each one's nearest others, (n, NEIGHBOURS)."""
    cosines = embeddings @ embeddings.T
    np.fill_diagonal(cosines, -np.inf)
    return np.argsort(-cosines, axis=1)[:, :NEIGHBOURS]


def _embed(model: bytes, pixels: Pixels) -> NDArray[np.float64]:
    batches = _run(model, ["embeddings"], pixels)
    return np.concatenate([embeddings for (embeddings,) in batches]).astype(np.float64)


def _run(model: bytes, outputs: Sequence[str], pixels: Pixels) -> Iterable[list[NDArray[np.float32]]]:
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    size = max(1, _BATCH_PIXELS // pixels[0, :, :, 0].size)
    for start in range(0, len(pixels), size):
        yield session.run(list(outputs), {"pixels": pixels[start : start + size]})


# The fp32 network, ready to be rounded

_BLOCKS = "blocks"
_PRODUCTS = ("MatMul", "Gemm")
_MOVES = ("MaxPool", "Reshape", "Transpose")
"""Operators that give no value that they did not take."""


def _is_resnet18(model: onnx.ModelProto) -> bool:
    """Whether it begins as ResNet18 does, so that its first convolution can take blocks of pixels."""
    nodes = list(model.graph.node[:7])
    begins = ["Transpose", "Cast", "Mul", "Add", "Conv", "Relu", "MaxPool"]
    if [node.op_type for node in nodes] != begins:
        return False
    weights = _constants(model).get(nodes[4].input[1])
    return weights is not None and weights.shape == (64, 3, 7, 7) and _side(model) == 224


def _side(model: onnx.ModelProto) -> int:
    side: int = model.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    return side


def _is_convolution(node: onnx.NodeProto, constants: Constants) -> bool:
    """Of two dimensions, and by weights."""
    return (
        node.op_type == "Conv"
        and all(name in constants for name in node.input[1:])
        and constants[node.input[1]].ndim == 4
    )


def _take_pixels_in_blocks(model: onnx.ModelProto) -> None:
    """Make the first convolution of `model` take blocks of pixels instead of normalised pixels.

    Of a row, `_BLOCK` pixels of 3 channels become one of 12, which moves nothing in memory. The two outputs
    that begin in a block become one of twice the channels. The result is the same but for what surrounds the
    image: normalised pixels are 0 there, which is the mean, and uint8 has the nearest whole number.

        normalised = scale * pixel + shift
        weight * normalised + bias = (weight * scale) * pixel + (weight * shift + bias)
    """
    constants = _constants(model)
    nodes = list(model.graph.node)
    _, _, multiply, add, first, relu, pool = nodes[:7]
    scale = constants[multiply.input[1]].astype(np.float64)  # (3, 1, 1)
    shift = constants[add.input[1]].astype(np.float64)

    weights = constants[first.input[1]]  # (64, 3, 7, 7), stride 2, 3 pixels around the image
    bias = constants[first.input[2]] + (weights * shift).sum(axis=(1, 2, 3))
    # Outputs 2b and 2b + 1 take the pixels from 4b - 3 to 4b + 5: of blocks b - 1 to b + 1.
    window = np.zeros((2, 64, 3, 7, 3 * _BLOCK))
    window[0, ..., 1:8] = window[1, ..., 3:10] = weights * scale
    blocks = window.reshape(128, 3, 7, 3, _BLOCK).transpose(0, 4, 1, 2, 3).reshape(128, 3 * _BLOCK, 7, 3)
    constants[first.input[1]] = blocks.astype(np.float32)
    constants[first.input[2]] = np.concatenate([bias, bias]).astype(np.float32)
    constants |= {
        "outside": np.rint(-shift / scale).astype(np.uint8).reshape(1, 1, 1, 3),
        "sides": np.array([224, _BLOCK, 3]),
        "edges": np.array([3, 224 + 2 * _BLOCK, 3]),
        "in_blocks": np.array([-1, 224 + 2 * 3, 224 // _BLOCK + 2, 3 * _BLOCK]),
        "one_by_one": np.array([-1, 112, 112, 64]),
        "one": np.array(1, np.float32),
        "zero": np.array(0, np.uint8),
    }
    before = [
        helper.make_node("Shape", ["pixels"], ["n"], start=0, end=1),
        helper.make_node("Concat", ["n", "sides"], ["n_sides"], axis=0),
        helper.make_node("Expand", ["outside", "n_sides"], ["side"]),
        helper.make_node("Concat", ["side", "pixels", "side"], ["wide"], axis=2),
        helper.make_node("Concat", ["n", "edges"], ["n_edges"], axis=0),
        helper.make_node("Expand", ["outside", "n_edges"], ["edge"]),
        helper.make_node("Concat", ["edge", "wide", "edge"], ["surrounded"], axis=1),
        helper.make_node("Reshape", ["surrounded", "in_blocks"], ["last_channels"]),
        helper.make_node("Transpose", ["last_channels"], ["first_channels"], perm=[0, 3, 1, 2]),
        helper.make_node("DequantizeLinear", ["first_channels", "one", "zero"], [_BLOCKS]),
    ]
    conv = helper.make_node(
        "Conv", [_BLOCKS, *first.input[1:]], first.output, kernel_shape=[7, 3], strides=[2, 1]
    )
    after = [
        helper.make_node("Transpose", relu.output, ["two_by_two"], perm=[0, 2, 3, 1]),
        helper.make_node("Reshape", ["two_by_two", "one_by_one"], ["separate"]),
        helper.make_node("Transpose", ["separate"], ["pooled"], perm=[0, 3, 1, 2]),
    ]
    pool.input[0] = "pooled"
    _replace(model, [*before, conv, relu, *after, *nodes[6:]], constants)


def _integer_nodes(model: onnx.ModelProto, constants: Constants, moves: tuple[str, ...]) -> set[str]:
    """The first outputs of the nodes that are to compute in integers; of those that move values, `moves`.

    Beside the convolutions they are what stands between two of them and runs in integers too. A convolution whose
    output goes to where tokens are made is none of them: a vision transformer's first one is 1 % of its work, and
    ConvNeXt's, one for each channel, wait for memory.
    """
    users = _users(model)
    found = set[str]()
    near = set[str]()  # what comes out of them, or of an activation that ONNX Runtime makes part of them
    for node in model.graph.node:
        output = node.output[0]
        joins = node.op_type in ("Add", *moves) and all(
            name in near for name in _activations(node, constants)
        )
        convolves = _is_convolution(node, constants) and not _makes_tokens(output, users, moves)
        if convolves or joins:
            found.add(output)
            near.add(output)
        elif node.op_type in ("Relu", "Clip") and node.input[0] in near:
            near.add(output)
    return found


def _makes_tokens(output: str, users: Users, moves: tuple[str, ...]) -> bool:
    makers = {"Reshape", "Transpose", "Flatten", "LayerNormalization"} - {*moves}
    return any(user.op_type in makers for user in users[_activated(output, users)])


def _activated(output: str, users: Users) -> str:
    """What a convolution gives once ONNX Runtime has made the activation behind it part of it."""
    taken_by = users[output]
    if len(taken_by) == 1 and taken_by[0].op_type in ("Relu", "Clip"):
        return str(taken_by[0].output[0])
    return output


def _given_rounded(model: onnx.ModelProto, integer: set[str]) -> set[str]:
    """What convolutions give: rounded for whoever takes it, or ONNX Runtime would compute them in float."""
    users = _users(model)
    return {
        _activated(node.output[0], users)
        for node in model.graph.node
        if node.op_type == "Conv" and node.output[0] in integer
    }


def _users(model: onnx.ModelProto) -> Users:
    """The nodes that take a tensor, by its name."""
    users: Users = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            users[name].append(node)
    return users


def _activations(node: onnx.NodeProto, constants: Constants) -> list[str]:
    return [name for name in node.input if name not in constants]


def _rounded_tensors(model: onnx.ModelProto, constants: Constants, integer: set[str]) -> list[str]:
    """The activations that become uint8, without those that are another one with its values moved."""
    rearranged = {node.output[0] for node in model.graph.node if node.op_type in ("Reshape", "Transpose")}
    taken = (
        name
        for node in model.graph.node
        if node.output[0] in integer
        for name in _activations(node, constants)
        if not (name in rearranged and name in integer)
    )
    return list(taken)


@dataclass(frozen=True)
class _Observed:
    """An activation over all calibration images.

    The range is that of all values, and 0: it is what surrounds an image, and must stay exact. Leaving
    the outermost values out of it makes the steps finer, and images unlike those seen much worse. With
    1 of 10,000 left out, the smallest cosine was 0.9987 where the held-out photos were tamer than the
    others, and 0.966 to 0.981 in four other splits of the same photos; with all, 0.9975 or more in each.
    """

    low: float
    high: float
    mean: NDArray[np.float64]
    """Of each channel, (channels,)."""


def _observe(model: onnx.ModelProto, names: Sequence[str], pixels: Pixels) -> dict[str, _Observed]:
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names
    )
    lows = dict.fromkeys(names, 0.0)
    highs = dict.fromkeys(names, 0.0)
    sums: dict[str, Any] = dict.fromkeys(names, 0.0)  # Any: 0 at first, then (channels,)
    for batch in _run(probe.SerializeToString(), names, pixels):
        for name, values in zip(names, batch, strict=True):  # (batch, channels, height, width)
            lows[name] = min(lows[name], float(values.min()))
            highs[name] = max(highs[name], float(values.max()))
            sums[name] = sums[name] + values.mean(axis=(2, 3), dtype=np.float64).sum(axis=0)
    return {name: _Observed(lows[name], highs[name], sums[name] / len(pixels)) for name in names}


# The rounded network


@dataclass(frozen=True)
class _Scale:
    """uint8 q stands for `step * (q - zero)`."""

    step: float
    zero: int

    @classmethod
    def over(cls, low: float, high: float) -> _Scale:
        step = (high - low) / 255 or 1.0
        return cls(step, round(-low / step))


class _Writer:
    """Collects the nodes and constants of the int8 graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, NDArray[Any]] = {}
        self._rounded: set[str] = set()

    def constant(self, name: str, value: NDArray[Any]) -> str:
        self.constants[name] = value
        return name

    def rounded(self, tensor: str, scale: _Scale) -> str:
        """The name of `tensor` rounded to uint8 and back."""
        if tensor not in self._rounded:
            self._rounded.add(tensor)
            how = [
                self.constant(f"{tensor}.scale", np.array(scale.step, np.float32)),
                self.constant(f"{tensor}.zero", np.array(scale.zero, np.uint8)),
            ]
            self.nodes += [
                helper.make_node("QuantizeLinear", [tensor, *how], [f"{tensor}.uint8"]),
                helper.make_node("DequantizeLinear", [f"{tensor}.uint8", *how], [f"{tensor}.rounded"]),
            ]
        return f"{tensor}.rounded"

    def weights(
        self,
        name: str,
        weight: NDArray[np.float32],
        bias: NDArray[np.float32],
        *,
        input_scale: float,
        input_mean: NDArray[np.float64],
        most: int,
        any_pair_fits: bool,
    ) -> tuple[str, str]:
        """The names of a convolution's weights and bias, rounded to -`most` ... `most` and to 32 bits.

        `weight` is (out, in of its group, height, width), `input_mean` (in,). With `any_pair_fits`, neighbouring
        channels of whatever values add up within 16 bits.
        """
        largest = np.abs(weight).max(axis=(1, 2, 3)) / most
        if any_pair_fits:
            largest = np.maximum(largest, _largest_pair(weight) / (_MOST_OF_A_PAIR - 1))  # 1: for rounding
        # A channel that is nearly off, as trained networks have them, keeps its bias: within 30 bits.
        scale = np.maximum(largest, np.abs(bias) / (input_scale * 2**30)).astype(np.float32)
        scale[scale == 0] = 1
        levels = np.rint(weight / scale[:, None, None, None])
        error = weight - levels.astype(np.float64) * scale[:, None, None, None]
        bias_scale = (input_scale * scale).astype(np.float32)
        means = input_mean.reshape(-1, weight.shape[1])  # (groups, in of a group)
        errors = error.sum(axis=(2, 3)).reshape(len(means), -1, weight.shape[1])
        lost = np.concatenate([of_group @ mean for of_group, mean in zip(errors, means, strict=True)])
        bias_levels = np.rint((bias + lost) / bias_scale)

        return (
            self._dequantized(name, levels.astype(np.int8), scale),
            self._dequantized(f"{name}.bias", bias_levels.astype(np.int32), bias_scale),
        )

    def _dequantized(self, name: str, levels: NDArray[Any], scale: NDArray[np.float32]) -> str:
        inputs = [
            self.constant(f"{name}.levels", levels),
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.zero", np.zeros(len(levels), levels.dtype)),
        ]
        self.nodes.append(helper.make_node("DequantizeLinear", inputs, [f"{name}.rounded"], axis=0))
        return f"{name}.rounded"


def _largest_pair(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """For each output, the most that two neighbouring input channels of values 0 to 1 add up to, or down."""
    pairs = weight.reshape(len(weight), -1, 2, *weight.shape[2:])
    sums = [np.abs(side(pairs, 0).sum(axis=2)).max(axis=(1, 2, 3)) for side in (np.maximum, np.minimum)]
    largest: NDArray[np.float32] = np.maximum(*sums)
    return largest


def _constants(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def _replace(
    model: onnx.ModelProto, nodes: Iterable[onnx.NodeProto], constants: Mapping[str, NDArray[Any]]
) -> None:
    """Give `model` another graph between the same input and output."""
    nodes = list(nodes)
    used = {name for node in nodes for name in node.input}
    graph = model.graph
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend(
        numpy_helper.from_array(value, name) for name, value in constants.items() if name in used
    )
