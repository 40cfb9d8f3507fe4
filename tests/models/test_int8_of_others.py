"""int8 of networks that are not ResNet18: integers where convolutions and products are, and how near it is to fp32."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from models import QuantizationError, architectures
from models.calibration import Images, sample_images
from models.export import export_onnx
from models.quantize import fidelity, quantize
from tests.weights import discriminate

# Convolutions with ReLU; with SiLU, by groups, and what looks at a whole picture; tokens from the beginning.
CONVOLUTIONS = ("timm/test_resnet.r160_in1k", "timm/test_efficientnet.r160_in1k")
TOKENS = ("timm/test_convnext.r160_in1k", "timm/test_vit.r160_in1k")


@pytest.fixture(scope="module", params=[*CONVOLUTIONS, *TOKENS])
def made(request: pytest.FixtureRequest) -> tuple[bytes, bytes, Images]:
    """fp32, int8, and the images that it was calibrated on and others."""
    backbone = architectures.maker(request.param).backbone(request.param, "untrained")
    discriminate(backbone.network, backbone.transform)
    fp32 = export_onnx(backbone)
    images = sample_images(backbone.preprocessing)
    return fp32, quantize(fp32, images.calibration[::2]), images


def test_it_is_near_fp32_on_other_images(made: tuple[bytes, bytes, Images]) -> None:
    fp32, int8, images = made
    assert fidelity(fp32, int8, images.held_out).mean_cosine >= 0.98


def test_input_and_output_are_those_of_fp32(made: tuple[bytes, bytes, Images]) -> None:
    before, after = (onnx.load_from_string(file) for file in made[:2])
    onnx.checker.check_model(after)
    assert list(after.graph.input) == list(before.graph.input)
    assert [each.name for each in after.graph.output] == ["embeddings"]
    assert len(made[1]) < 0.5 * len(made[0])


def test_convolutions_but_for_those_that_make_tokens_and_products_by_weights_run_in_integers(
    request: pytest.FixtureRequest, made: tuple[bytes, bytes, Images], tmp_path: Path
) -> None:
    fp32, int8, _ = made
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3  # it warns that the file is for machines like this one
    onnxruntime.InferenceSession(int8, options, providers=["CPUExecutionProvider"])
    before = onnx.load_from_string(fp32).graph
    after = Counter(node.op_type for node in onnx.load(tmp_path / "optimised.onnx").graph.node)
    weights = {tensor.name for tensor in before.initializer}
    products = [
        node for node in before.node if node.op_type in ("MatMul", "Gemm") and node.input[1] in weights
    ]
    convolutions = [node for node in before.node if node.op_type == "Conv"]
    of_tokens = request.node.callspec.params["made"] in TOKENS
    by_groups = [node for node in convolutions if any(a.name == "group" and a.i > 1 for a in node.attribute)]
    in_float = len(by_groups) + 1 if of_tokens else 0  # the first one makes tokens of pixels
    assert after["Conv"] + after["FusedConv"] == in_float
    assert after["QLinearConv"] == len(convolutions) - in_float
    assert after["DynamicQuantizeMatMul"] + after["MatMulIntegerToFloat"] + after["MatMulInteger"] == len(
        products
    )


def test_no_pixels_overflow_what_cpus_without_vnni_add_up_in_16_bits(
    made: tuple[bytes, bytes, Images],
) -> None:
    graph = onnx.load_from_string(made[1]).graph
    levels = {
        tensor.name: numpy_helper.to_array(tensor)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and tensor.dims and np.prod(tensor.dims) > 1
    }
    assert levels
    for name, values in levels.items():
        assert 2 * 255 * np.abs(values.astype(int)).max() <= 2**15 - 1, name


def test_a_network_without_weights_to_round_is_refused() -> None:
    node = onnx.helper.make_node("Identity", ["pixels"], ["embeddings"])
    value = onnx.helper.make_tensor_value_info("pixels", onnx.TensorProto.FLOAT, ["n", 2])
    other = onnx.helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["n", 2])
    model = onnx.helper.make_model(onnx.helper.make_graph([node], "none", [value], [other]))
    with pytest.raises(QuantizationError, match="nothing in this network can be computed in integers"):
        quantize(model.SerializeToString(), np.zeros((1, 2, 2, 3), np.uint8))
