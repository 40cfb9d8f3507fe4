"""`make bench-models`: size, speed, int8's fidelity and memory of each network, into the model card's table.

    a network ─► fp32 file, int8 file ─► a process that has one of them: memory
                                     └─► one thread, fp32 and int8 by turns: processor time an image

Where a network's weights can't be downloaded it has made-up ones that tell photos apart. Size, speed and memory
do not depend on them; int8's fidelity does, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import describe_machine
from models import DownloadFailed, architectures

ROOT = Path(__file__).resolve().parent.parent
CARD = ROOT / "models" / "README.md"
RESULTS = ROOT / "benchmarks" / "backbones.json"
BEGIN, END = "<!-- made by make bench-models -->", "<!-- end -->"

NETWORKS = (
    "resnet18",
    "efficientnet_lite0",
    "mobilenet_v3_large",
    "resnet50",
    "convnext_tiny",
    "efficientnet_v2_s",
    "vit_b_16",
    "timm/vit_small_patch14_dinov2.lvd142m",
    "timm/vit_base_patch16_siglip_224.webli",
)
TIMM_TOP1 = {"efficientnet_lite0": 74.83}
"""timm's results/results-imagenet.csv, which its package has not; torchvision has its own in `weights.meta`."""

SECONDS = 20.0
MIN_ROUNDS = 5

# The most memory that a process had that does what a worker does with a file: with Python and its libraries, without a
# server. VmHWM, as getrusage's figure begins with what the process that started this one has.
_MEMORY = """
import sys
from pathlib import Path
import numpy as np
from embedder.model.encoder import Encoder
from tests.networks import spec

file, crop, dimension = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
encoder = Encoder(spec(dimension, resize=crop, crop=crop), threads=1, threads_alone=1)
encoder.load(file)
encoder.encode(np.zeros((8, crop, crop, 3), np.uint8))
status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
print(int(status["VmHWM"].split()[0]) * 1024 / 1e6)
"""


@dataclass(frozen=True)
class Measured:
    architecture: str
    weights: str
    """`imagenet`, `pretrained`, or `made up`."""
    parameters_millions: float
    dimension: int
    crop: int
    megabytes: dict[str, float]
    """By precision, as all that follows."""
    images_per_s: dict[str, float]
    """Of one core: one image at a time, by processor time, the median."""
    memory_megabytes: dict[str, float]
    min_cosine: float
    """Between int8 and fp32, over held-out images."""
    mean_cosine: float
    neighbours_kept: float
    top1: float | None


def measure(architecture: str) -> Measured:
    """Takes a minute to ten. Raises `ArchitectureError`, `WeightsError` or `QuantizationError`."""
    from models import calibration, making, quantize

    backbone = _backbone(architecture)
    parameters = sum(parameter.numel() for parameter in backbone.network.parameters())
    network = making.of_backbone(backbone, _say)
    images = calibration.sample_images(network.preprocessing)
    _say("making int8")
    files = {"fp32": network.onnx, "int8": quantize.quantize(network.onnx, images.calibration)}
    fidelity = quantize.fidelity(files["fp32"], files["int8"], images.held_out)
    _say("measuring")
    crop = network.preprocessing.crop
    return Measured(
        architecture=architecture,
        weights=backbone.weights.name if backbone.weights.trained else "made up",
        parameters_millions=parameters / 1e6,
        dimension=network.dimension,
        crop=crop,
        megabytes={name: len(file) / 1e6 for name, file in files.items()},
        images_per_s=_speeds(files, crop),
        memory_megabytes={name: _memory(file, crop, network.dimension) for name, file in files.items()},
        min_cosine=fidelity.min_cosine,
        mean_cosine=fidelity.mean_cosine,
        neighbours_kept=fidelity.neighbours_kept,
        top1=_top1(architecture),
    )


def _backbone(architecture: str) -> Any:  # Any: models.backbone.Backbone, whose import takes torch
    from tests.weights import discriminate

    maker = architectures.maker(architecture)
    try:
        return maker.backbone(architecture, architectures.weights_name(architecture, "pretrained"))
    except DownloadFailed:
        backbone = maker.backbone(architecture, "untrained")
    discriminate(backbone.judge, backbone.transform)
    return backbone


def _speeds(files: dict[str, bytes], crop: int) -> dict[str, float]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    sessions = {
        name: onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        for name, file in files.items()
    }
    pixels = np.random.default_rng(0).integers(0, 256, (1, crop, crop, 3), np.uint8)
    took_s: dict[str, list[float]] = {name: [] for name in files}
    until = time.monotonic() + SECONDS
    for round_ in range(10_000):
        if round_ > MIN_ROUNDS and time.monotonic() > until:
            break
        for name, session in sessions.items():
            started_s = time.process_time()
            session.run(None, {"pixels": pixels})
            if round_:  # the first one allocates
                took_s[name].append(time.process_time() - started_s)
    return {name: 1 / statistics.median(times) for name, times in took_s.items()}


def _memory(file: bytes, crop: int, dimension: int) -> float:
    with tempfile.NamedTemporaryFile(suffix=".onnx") as kept:
        kept.write(file)
        kept.flush()
        command = [sys.executable, "-c", _MEMORY, kept.name, str(crop), str(dimension)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return float(done.stdout)


def _top1(architecture: str) -> float | None:
    """On ImageNet-1K, with the last layer, by the library's own table."""
    from torchvision import models

    if architecture not in models.list_models(module=models):
        return TIMM_TOP1.get(architecture)
    metrics = models.get_model_weights(architecture).DEFAULT.meta["_metrics"]
    return float(metrics["ImageNet-1K"]["acc@1"])


def table(measured: Sequence[Measured], machine: dict[str, str]) -> str:
    """The table of the model card."""
    rows = [
        f"One thread of {machine['processor']}, ONNX Runtime {machine['onnxruntime']}, commit "
        f"{machine['commit']}: one image at a time, processor time, medians of fp32 and int8 by turns. Memory is "
        "what a process has at most that runs eight at once.",
        "",
        "| `ARCHITECTURE` | parameters | numbers | pixels | file, fp32 and int8 | images/s a core | memory "
        "| int8: least and mean cosine, neighbours kept | top-1 |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for each in measured:
        made_up = "" if each.weights != "made up" else " *"
        rows.append(
            f"| `{each.architecture}` | {each.parameters_millions:.1f} M | {each.dimension} | {each.crop} "
            f"| {each.megabytes['fp32']:.0f}, {each.megabytes['int8']:.0f} MB "
            f"| {each.images_per_s['fp32']:.1f}, {each.images_per_s['int8']:.1f} "
            f"| {each.memory_megabytes['fp32']:.0f}, {each.memory_megabytes['int8']:.0f} MB "
            f"| {each.min_cosine:.4f}, {each.mean_cosine:.4f}, {each.neighbours_kept:.0%}{made_up} "
            f"| {f'{each.top1:.1f} %' if each.top1 else ''} |"
        )
    return "\n".join(rows)


def write(measured: Sequence[Measured]) -> None:
    """The results as JSON, and as a table in the model card."""
    machine = describe_machine()
    text = json.dumps({"machine": machine, "measured": [asdict(each) for each in measured]}, indent=1)
    RESULTS.write_text(text + "\n")
    card = CARD.read_text()
    before, _, rest = card.partition(BEGIN)
    _, _, after = rest.partition(END)
    CARD.write_text(f"{before}{BEGIN}\n\n{table(measured, machine)}\n\n{END}{after}")


def _say(what: str) -> None:
    print(f"bench-models: {what}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("networks", nargs="*", default=NETWORKS, help="all of the model card's by default")
    parser.add_argument("--one", action="store_true", help="measure one, and print it as JSON")
    arguments = parser.parse_args()
    if arguments.one:
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)  # of ONNX Runtime's quantiser
        print(json.dumps(asdict(measure(arguments.networks[0]))))
        return 0
    measured = []
    for network in arguments.networks:
        _say(network)
        # In a process of its own, whose memory is given back.
        command = [sys.executable, "-m", "benchmarks.backbones", "--one", network]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        if done.returncode != 0:
            return done.returncode
        measured.append(Measured(**json.loads(done.stdout.splitlines()[-1])))
    write(measured)
    return 0


if __name__ == "__main__":
    sys.exit(main())
