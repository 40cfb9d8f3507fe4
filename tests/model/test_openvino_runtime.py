"""bf16: where it can be had, how near it is to fp32, and that nobody is told of its use."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from PIL import Image

from embedder.model import openvino_runtime
from embedder.model.encoder import Encoder
from tests import networks
from tests.conftest import Reference, Serving
from tests.pictures import data_url, encoded
from tests.server import ROOT, plain_environ

NOT_HERE = openvino_runtime.unusable()
with_bf16 = pytest.mark.skipif(NOT_HERE is not None, reason=NOT_HERE or "")

_CHECK = """
import sys
from embedder.engine import Engine, StartError
from embedder.settings import Settings

try:
    Engine(Settings(precision="bf16", model=sys.argv[1])).check()
except StartError as error:
    print(error)
"""


def refused(home: Path, model: str) -> str:
    """What the engine says of the model in that BENTOML_HOME; in its own process, which reads one store."""
    environ = {**plain_environ(), "BENTOML_HOME": str(home)}
    command = [sys.executable, "-c", _CHECK, model]
    return subprocess.run(
        command, cwd=ROOT, env=environ, stdout=subprocess.PIPE, text=True, check=True
    ).stdout


@pytest.mark.parametrize("flags", ["fpu avx512_bf16 sse", "fpu amx_bf16", "amx_bf16"])
def test_a_processor_with_bf16_can_be_used(tmp_path: Path, flags: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t\t: none\n")
    assert openvino_runtime.unusable(tmp_path / "cpuinfo") is None


@pytest.mark.parametrize(
    "said", ["flags\t\t: fpu avx512f avx512_vnni\n", "bugs\t\t: avx512_bf16\n", "Features\t: fp bf16\n", ""]
)
def test_a_processor_without_bf16_can_not(tmp_path: Path, said: str) -> None:
    (tmp_path / "cpuinfo").write_text(f"processor\t: 0\n{said}")
    reason = openvino_runtime.unusable(tmp_path / "cpuinfo")
    assert reason == "bf16 takes a processor with AVX-512 BF16 or AMX: this one has neither"


@pytest.mark.skipif(NOT_HERE is None, reason="this processor has bf16")
def test_where_it_can_not_be_had_the_start_says_so_in_one_sentence(store: Path) -> None:
    assert refused(store, "resnet18:latest") == f"{NOT_HERE}; EMBEDDER_PRECISION=fp32 serves the same file\n"


@with_bf16
def test_what_is_served_in_bf16_is_as_near_as_fp32_is(
    serving: Serving, reference: Reference, photo: bytes
) -> None:
    whole = Image.open(io.BytesIO(photo))
    pictures = [encoded(whole.crop((left, 0, left + 256, 256)), "PNG") for left in (0, 60, 120, 180)]
    with serving(EMBEDDER_PRECISION="bf16") as server:
        precision = server.get("/info").json()["precision"]
        urls = [data_url(picture) for picture in pictures]
        vectors = server.post("/embed_batch", {"urls": urls}).json()["embeddings"]
    assert precision == "bf16"
    cosines = [
        float(vector @ reference(file)) for vector, file in zip(np.array(vectors), pictures, strict=True)
    ]
    assert min(cosines) > 0.9998
    # It is bf16, not fp32 under its name.
    assert max(cosines) < 0.999999


_IMPORT = """
import sys
from pathlib import Path

def watch(event, arguments):
    if event.startswith("socket."):
        print(event, arguments)

sys.addaudithook(watch)
from embedder.model.openvino_runtime import Network
Network(Path(sys.argv[1]), threads=1, batches=1)
"""


def test_nobody_is_told_of_its_use(store: Path, tmp_path: Path) -> None:
    (file,) = store.glob("models/resnet18/*/fp32.onnx")
    command = [sys.executable, "-c", _IMPORT, str(file)]
    done = subprocess.run(command, cwd=ROOT, env={"HOME": str(tmp_path)}, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not [*tmp_path.iterdir()]  # it keeps an identity of its own there


def _cancelling() -> bytes:
    """ONNX, as `networks.network`, whose features are small differences of large numbers."""
    columns = networks.weights()
    nodes = [
        helper.make_node("Cast", ["pixels"], ["floats"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Flatten", ["floats"], ["flat"]),
        helper.make_node("MatMul", ["flat", "large"], ["sums"]),
        helper.make_node("Relu", ["sums"], ["positive"]),
        helper.make_node("MatMul", ["positive", "difference"], ["features"]),
        helper.make_node("LpNormalization", ["features"], ["embeddings"], axis=1, p=2),
    ]
    difference = np.zeros((8, 7), np.float32)
    difference[np.arange(7), np.arange(7)] = 1
    difference[7] = -1
    constants = {
        "large": np.concatenate([1 + 1e-3 * columns, np.ones((len(columns), 1))], axis=1).astype(np.float32),
        "difference": difference,
    }
    graph = helper.make_graph(
        nodes,
        "cancelling",
        [helper.make_tensor_value_info("pixels", onnx.TensorProto.UINT8, ["n", 64, 64, 3])],
        [helper.make_tensor_value_info("embeddings", onnx.TensorProto.FLOAT, ["n", 7])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    content: bytes = model.SerializeToString()
    return content


@with_bf16
def test_a_network_that_bf16_makes_another_one_is_not_served_in_it(store: Path, tmp_path: Path) -> None:
    said = refused(networks.save(tmp_path / "home", networks.metadata(), _cancelling()), "tiny:1")
    assert re.fullmatch(
        r"in bf16 this network's embeddings have a cosine of -?0\.\d{3} with those in fp32: serve it in fp32 "
        r"\(EMBEDDER_PRECISION=fp32\)\n",
        said,
    )
    assert refused(store, "resnet18:latest") == ""


@with_bf16
def test_a_file_that_is_none_is_refused_as_in_fp32(tmp_path: Path) -> None:
    (tmp_path / "fp32.onnx").write_bytes(b"no network")
    encoder = Encoder(replace(networks.spec(), precision="bf16"), threads=1, threads_alone=1)
    with pytest.raises(RuntimeError):
        encoder.load(tmp_path / "fp32.onnx")
