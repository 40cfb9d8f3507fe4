"""Put a model into BentoML's model store, where the service finds it.

    python scripts/save_model.py                        ImageNet weights, downloaded (45 MB)
    python scripts/save_model.py --weights my.pth       a state_dict in torchvision's layout
    python scripts/save_model.py --weights untrained    no download; to try the service with
    python scripts/save_model.py --precision int8       int8 beside fp32: nearly three times as fast

Ends with 0 when the store's latest model is the wanted one, or the untrained one that was allowed in
its place. Otherwise with one line that says why not, 1 (130 after Ctrl-C), and the store as it was.
"""

from __future__ import annotations

import argparse
import hashlib
import platform
import re
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from models import (
    PREPROCESSING,
    DownloadFailed,
    QuantizationError,
    WeightsError,
    read_weights_file,
)
from models.download import IMAGENET_URL, cached_file, wait_for_answer

if TYPE_CHECKING:
    import bentoml

    from models.calibration import Collection, Images
    from models.resnet18 import Weights

REQUIREMENTS = ("bentoml", "onnx", "onnxruntime", "onnxscript", "scikit-image", "torch", "torchvision")
FP32_FILE = "fp32.onnx"
INT8_FILE = "int8.onnx"
SAMPLE_PHOTOS = "sample photos"
MIN_INT8_COSINE = 0.99
"""Below this, between int8 and fp32, on any held-out image, int8 is refused."""
RETRY_TIMEOUT_S = 3.0


class StoreError(Exception):
    """BentoML's model store can't be read or written; the message is one line that says why."""


def main(arguments: Sequence[str] | None = None, *, imagenet_url: str | None = None) -> int:
    """The command; gives its exit status. `imagenet_url` replaces torchvision's, for tests."""
    options = _options(arguments)
    try:
        images = options.calibration_images
        put_into_store(
            Wanted(options.weights, options.precision, _find(images) if images else None),
            name=options.name,
            force=options.force,
            if_missing=options.if_missing,
            fallback_untrained=options.fallback_untrained,
            imagenet_url=imagenet_url,
        )
    except (WeightsError, QuantizationError, StoreError) as exc:
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

    weights: str
    """imagenet, untrained or a path."""
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
            or stored.get("architecture") != "resnet18"
        ):
            return False  # none, or somebody else's of the same name
        if preprocessing.get("version") != PREPROCESSING.version:
            return False
        made = stored["precisions"].get(self.precision)
        calibration = self.calibration.description if self.calibration else None
        if made is None or calibration not in (None, made.get("calibration")):
            return False
        wanted = weights or self.weights
        if wanted in ("imagenet", "untrained"):
            return stored.get("weights") == wanted
        path = Path(wanted)
        sha256 = _sha256(read_weights_file(path))
        return (stored.get("weights"), stored.get("weights_sha256")) == (path.name, sha256)


def put_into_store(
    wanted: Wanted,
    *,
    name: str,
    force: bool,
    if_missing: bool,
    fallback_untrained: bool,
    imagenet_url: str | None,
) -> None:
    """Make `wanted` the latest model of that `name`; with `force` also an int8 that is far from fp32.

    Raises `WeightsError`, `QuantizationError` or `StoreError`; the store is then as it was.
    """
    stored = _latest_metadata(name)
    if if_missing and wanted.is_in(stored):
        print(f"{name}:latest has the {wanted.weights} weights already")
        return
    has_untrained = if_missing and wanted.is_in(stored, weights="untrained")
    progress = Progress()
    try:
        weights = _weights(wanted.weights, imagenet_url or IMAGENET_URL, progress, quick=has_untrained)
    except DownloadFailed as exc:
        if not fallback_untrained:
            raise
        _warn_about_fallback(exc)
        if has_untrained:
            print(f"{name}:latest has untrained weights already")
            return
        weights = _weights("untrained", "", progress, quick=False)

    files, metadata = _made(weights, wanted, force, progress)
    progress("saving")
    model = save(name, files, metadata)
    size = sum(map(len, files.values()))
    print(f"saved {model.tag} ({weights.name}, {_megabytes(size)}) in {model.path}")
    _print_total(Path(model.path).parent)


def _weights(wanted: str, imagenet_url: str, progress: Progress, *, quick: bool) -> Weights:
    """`quick` asks the weights' server first: seconds are not worth spending on torch where it does not answer."""
    if quick and wanted == "imagenet" and not cached_file(imagenet_url).exists():
        wait_for_answer(imagenet_url, RETRY_TIMEOUT_S)
    progress("loading torch")
    from models import resnet18

    progress(f"getting the weights: {wanted}")
    if wanted == "imagenet":
        return resnet18.imagenet_weights(imagenet_url)
    return resnet18.untrained_weights() if wanted == "untrained" else resnet18.file_weights(Path(wanted))


def _made(
    weights: Weights, wanted: Wanted, force: bool, progress: Progress
) -> tuple[dict[str, bytes], dict[str, Any]]:  # Any: JSON
    """The model's files by name, and its metadata."""
    from models import resnet18

    images = _images(wanted.calibration, progress) if wanted.precision == "int8" else None
    progress("exporting to ONNX")
    onnx = resnet18.export_onnx(weights)
    progress(f"comparing with torch on {len(resnet18.SAMPLE_PHOTOS)} photos")
    min_cosine = resnet18.check_export(onnx, weights)
    files = {FP32_FILE: onnx}
    precisions: dict[str, Any] = {
        "fp32": {"file": FP32_FILE, "sha256": _sha256(onnx), "min_cosine_to_torch": min_cosine}
    }
    if images is not None:
        calibration = wanted.calibration.description if wanted.calibration else SAMPLE_PHOTOS
        files[INT8_FILE], measured = _quantized(onnx, images, force, progress)
        precisions["int8"] = {**measured, "calibration": calibration}
    preprocessing = asdict(PREPROCESSING)
    return files, {
        "architecture": "resnet18",
        "weights": weights.name,
        "weights_source": weights.source,
        "weights_sha256": weights.sha256,
        "trained": weights.trained,
        "dimension": resnet18.DIMENSION,
        # BentoML keeps lists, not tuples.
        "preprocessing": {**preprocessing, "mean": [*PREPROCESSING.mean], "std": [*PREPROCESSING.std]},
        "precisions": precisions,
        "libraries": {
            **{library: version(library) for library in ("torch", "torchvision", "onnx", "onnxruntime")},
            "python": platform.python_version(),
        },
    }


def _find(source: Path) -> Collection:
    from models import calibration

    return calibration.find(source)


def _images(collection: Collection | None, progress: Progress) -> Images:
    from models import calibration

    progress("decoding calibration images")
    images = calibration.own_images(collection) if collection else calibration.sample_images()
    if images.skipped:
        progress(f"{images.skipped} files are skipped: they are no images, or can't be read")
    return images


def _quantized(fp32: bytes, images: Images, force: bool, progress: Progress) -> tuple[bytes, dict[str, Any]]:
    """The int8 file, and what the metadata say of it.

    Raises `QuantizationError` if a cosine is below `MIN_INT8_COSINE`, unless `force`.
    """
    from models import quantize

    progress(f"making int8 with {len(images.calibration)} images")
    int8 = quantize.quantize(fp32, images.calibration)
    progress(f"comparing int8 with fp32 on {len(images.held_out)} other images")
    fidelity = quantize.fidelity(fp32, int8, images.held_out)
    measured = (
        f"cosine with fp32 {fidelity.mean_cosine:.5f} on average and {fidelity.min_cosine:.5f} at least, "
        f"{fidelity.neighbours_kept:.1%} of the {quantize.NEIGHBOURS} nearest neighbours kept"
    )
    progress(f"int8: {measured}")
    if not fidelity.min_cosine >= MIN_INT8_COSINE and not force:  # not "<": a NaN is refused
        raise QuantizationError(
            f"int8 is too far from fp32: {measured}; at least {MIN_INT8_COSINE} is wanted: calibrate it "
            "on images like those to embed (--calibration-images), or save it all the same (--force)"
        )
    return int8, {
        "file": INT8_FILE,
        "sha256": _sha256(int8),
        "mean_cosine_to_fp32": fidelity.mean_cosine,
        "min_cosine_to_fp32": fidelity.min_cosine,
        "neighbours_kept_of_10": fidelity.neighbours_kept,
        "calibration_images": len(images.calibration),
        "fidelity_images": fidelity.images,
    }


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _latest_metadata(name: str) -> Mapping[str, Any] | None:
    import bentoml

    try:
        return bentoml.models.get(name).info.metadata
    except bentoml.exceptions.NotFound:
        return None
    except (bentoml.exceptions.BentoMLException, OSError) as exc:
        raise StoreError(f"the model store can't be read: {exc}") from exc


def save(name: str, files: Mapping[str, bytes], metadata: dict[str, Any]) -> bentoml.Model:
    """A new entry of the store, its latest, with these files by name. If it fails, the store is as it was."""
    import bentoml

    tag = bentoml.Tag(name, None).make_new_version()
    labels = {"weights": metadata["weights"], "trained": str(metadata["trained"]).lower()}
    try:
        # No `module`: BentoML would import it, and with it torch, in the serving process.
        with bentoml.models.create(tag, labels=labels, metadata=metadata) as model:
            for file, content in files.items():
                Path(model.path_of(file)).write_bytes(content)
        return bentoml.models.get(tag)
    except BaseException as exc:
        _undo(tag)
        if isinstance(exc, OSError):
            raise StoreError(f"{tag} can't be saved: {_reason(exc)}") from exc
        if isinstance(exc, bentoml.exceptions.BentoMLException):
            raise StoreError(f"{tag} can't be saved: {exc}") from exc
        raise


def _undo(tag: bentoml.Tag) -> None:
    """Remove what is left of an entry that failed while it was saved.

    BentoML removes it by itself, but not after Ctrl-C, nor if the disk is full when it notes which
    entry is the latest, and it leaves the folder that holds all versions.
    """
    import bentoml
    from bentoml._internal.configuration.containers import BentoMLContainer  # no public way

    versions = Path(BentoMLContainer.model_store_dir.get(), tag.name)
    if (versions / str(tag.version)).exists():
        bentoml.models.delete(tag)
    elif versions.is_dir() and not any(versions.iterdir()):
        versions.rmdir()


def _reason(error: OSError) -> str:
    """What the system said, without the file: it may be one of hundreds that were to be copied."""
    if isinstance(error, shutil.Error):  # a list of (from, to, what str(OSError) said)
        return str(error.args[0][0][2])
    return str(error)


def _print_total(versions: Path) -> None:
    """Nothing is removed by itself, as somebody may serve it by its version: so say what piles up."""
    count = sum(entry.is_dir() for entry in versions.iterdir())
    if count > 1:
        size = sum(file.stat().st_size for file in versions.rglob("*") if file.is_file())
        print(
            f"the store holds {count} versions of {versions.name}, {_megabytes(size)}: "
            f"`bentoml models list {versions.name}` shows them, `bentoml models delete` removes one"
        )


def _warn_about_fallback(reason: DownloadFailed) -> None:
    rule = "*" * 78
    print(
        f"{rule}\n"
        "WARNING: the model has UNTRAINED weights. Its vectors have the right form but say\n"
        "little about an image: try the service with them, don't keep or compare them.\n"
        f"Why: {reason}\n"
        "To get the real weights, do the same again with a network, or name a file:\n"
        "    python scripts/save_model.py --weights resnet18-f37072fd.pth\n"
        f"{rule}",
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
        "--weights",
        default="imagenet",
        metavar="imagenet|untrained|PATH",
        help="torchvision's ImageNet weights (default), a random initialisation, or a .pth file",
    )
    parser.add_argument(
        "--name", type=_model_name, default="resnet18", help="its name in the store (%(default)s)"
    )
    parser.add_argument(
        "--precision",
        default="fp32",
        choices=("fp32", "int8"),
        help="fp32 (default), or int8 as well, for EMBEDDER_PRECISION=int8",
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
    options = parser.parse_args(arguments)
    if options.precision == "fp32" and (options.calibration_images or options.force):
        parser.error("--calibration-images and --force are for --precision int8")
    return options


if __name__ == "__main__":
    sys.exit(main())
